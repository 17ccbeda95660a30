"""What the tests of `applier.apply` on files share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

import applier
from applier import ApplierControls, ApplierReturn, ConcurrencyStyle, FilenameAssociations

CRS = "EPSG:32615"


@pytest.fixture(scope="session")
def write_raster() -> Callable[..., str]:
    """Return a function that writes an array of (bands, rows, cols) as a GeoTIFF, with rasterio alone."""

    def write(
        path: Path, array: np.ndarray[Any, Any], *, at: tuple[int, int] = (0, 0), **profile: Any
    ) -> str:
        """`at`: row and column of its first pixel on the grid of all such files."""
        settings: dict[str, Any] = {
            "driver": "GTiff",
            "crs": CRS,
            "transform": Affine(30.0, 0.0, 450_000.0 + 30 * at[1], 0.0, -30.0, 1_800_000.0 - 30 * at[0]),
            "nodata": None,
            **profile,
        }
        count, height, width = array.shape
        with rasterio.open(
            path, "w", count=count, height=height, width=width, dtype=array.dtype.name, **settings
        ) as dataset:
            dataset.write(array)
        return str(path)

    return write


@pytest.fixture(scope="session")
def read_raster() -> Callable[[Any], np.ndarray[Any, Any]]:
    """Return a function that reads a whole raster with rasterio alone."""

    def read(path: Any) -> np.ndarray[Any, Any]:
        with rasterio.open(path) as dataset:
            pixels: np.ndarray[Any, Any] = dataset.read()
        return pixels

    return read


@pytest.fixture(scope="session")
def run() -> Callable[..., ApplierReturn]:
    """Return `applier.apply` for files given as dicts and a style given as keyword arguments."""

    def apply(
        function: Callable[..., None],
        infiles: Mapping[str, Any],
        outfiles: Mapping[str, Any],
        other_args: Any = None,
        *,
        controls: ApplierControls | None = None,
        window: tuple[int, int] | None = None,
        **style: Any,
    ) -> ApplierReturn:
        """`window`: columns and rows."""
        controls = controls or ApplierControls()
        if window is not None:
            controls.setWindowSize(*window)
        if style:
            controls.setConcurrencyStyle(ConcurrencyStyle(**style))
        return applier.apply(function, files(infiles), files(outfiles), other_args, controls=controls)

    return apply


def files(names: Mapping[str, Any]) -> FilenameAssociations:
    associations = FilenameAssociations()
    for name, entry in names.items():
        setattr(associations, name, entry)
    return associations
