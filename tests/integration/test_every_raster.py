"""Every real raster goes through `apply` in every style; NumPy on the whole array says what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from applier import ApplierControls

DATA = Path(__file__).resolve().parents[2] / "../shared/data/raster"
RASTERS = sorted(path.name for path in DATA.glob("*") if path.suffix in {".tif", ".hgt"})
MAX_PIXELS = 8_000_000
"""Of larger stacks only some bands are taken."""

STYLES: dict[str, dict[str, Any]] = {
    "none": {},
    "threads": {"numComputeWorkers": 2, "computeWorkerKind": "CW_THREADS"},
    "threads, read in main": {
        "numComputeWorkers": 2,
        "computeWorkerKind": "CW_THREADS",
        "numReadWorkers": 1,
    },
    "subproc": {"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC"},
    "subproc, read in main": {
        "numComputeWorkers": 2,
        "computeWorkerKind": "CW_SUBPROC",
        "numReadWorkers": 2,
    },
}

pytestmark = pytest.mark.filterwarnings("ignore::applier.concurrency.ConcurrencyWarning")


def dilated(padded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The greatest of each pixel and its four neighbours, for an array with a margin of 1."""
    centre = padded[:, 1:-1, 1:-1]
    sideways = np.maximum(padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    return np.maximum(centre, np.maximum(sideways, np.maximum(padded[:, :-2, 1:-1], padded[:, 2:, 1:-1])))


def dilate_block(info: Any, inputs: Any, outputs: Any) -> None:
    block = inputs.img
    outputs.grown = np.pad(dilated(block), ((0, 0), (1, 1), (1, 1)))
    outputs.same = block


@pytest.mark.skipif(not RASTERS, reason=f"no real rasters at {DATA} (optional; not part of the repository)")
@pytest.mark.parametrize("name", RASTERS)
def test_comes_out_as_numpy_makes_it(
    name: str, tmp_path: Path, run: Callable[..., Any], read_raster: Any
) -> None:
    path = DATA / name
    with rasterio.open(path) as dataset:
        pixels = dataset.width * dataset.height
        layers = list(range(1, dataset.count + 1))
        if pixels * dataset.count > MAX_PIXELS:
            layers = layers[:: -max(1, len(layers) // max(1, MAX_PIXELS // pixels))]  # not in file order
        whole = dataset.read(layers)
        nodata, crs, transform = dataset.nodata, dataset.crs, dataset.transform
    fill = 0 if nodata is None else whole.dtype.type(nodata)
    expected = dilated(np.pad(whole, ((0, 0), (1, 1), (1, 1)), constant_values=fill))
    # The largest one is compressed often enough in the other tests.
    styles = STYLES if pixels < 4 * MAX_PIXELS else {name: STYLES[name] for name in ("subproc",)}
    for style_name, style in styles.items():
        controls = ApplierControls()
        controls.setOverlap(1)
        controls.setStatsIgnore(nodata)
        controls.selectInputImageLayers(layers)
        controls.setCreationOptions({"ZLEVEL": 1})
        outfiles = {"grown": tmp_path / "grown.tif", "same": tmp_path / "same.tif"}
        returned = run(dilate_block, {"img": path}, outfiles, controls=controls, **style)
        with rasterio.open(outfiles["same"]) as same:
            assert np.array_equal(same.read(), whole), style_name
            assert same.crs == crs and same.nodata == nodata and set(same.nodatavals) == {nodata}
            assert same.transform == transform and same.dtypes[0] == whole.dtype.name
        assert np.array_equal(read_raster(outfiles["grown"]), expected), style_name
        assert returned.workinggrid.transform == transform.to_gdal()
        assert (returned.workinggrid.height, returned.workinggrid.width) == whole.shape[1:]
        for leftover in tmp_path.iterdir():
            leftover.unlink()
