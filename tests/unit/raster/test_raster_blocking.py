"""The size of a block and of GDAL's cache, where nobody sets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from applier.raster import blocking
from applier.raster.blocking import GdalCache, choose_window
from applier.raster.datasets import RasterFacts
from applier.raster.grid import PixelGrid
from applier.raster.tiles import TilePlan


def facts(
    width: int, height: int, block: tuple[int, int], dtypes: tuple[str, ...] = ("uint8",)
) -> RasterFacts:
    grid = PixelGrid("", (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), height, width)
    return RasterFacts("x.tif", grid, len(dtypes), dtypes, (None,) * len(dtypes), *block, "GTiff")


TILED = facts(5000, 4000, (256, 256))
STRIPED = facts(5000, 4000, (1, 5000))


def test_squares_for_tiles_and_whole_rows_for_strips() -> None:
    assert choose_window(TILED.grid, [TILED]) == (512, 512)
    assert choose_window(STRIPED.grid, [TILED, STRIPED]) == (256, 5120)
    assert choose_window(TILED.grid, []) == (512, 512)


def test_a_small_raster_of_one_strip_is_no_reason_for_whole_rows() -> None:
    small = facts(300, 200, (27, 300))
    assert choose_window(small.grid, [small]) == (512, 512)


def test_rows_that_would_be_too_much_at_once_are_cut_into_squares() -> None:
    wide = facts(40_000, 4000, (1, 40_000), ("float64",) * 4)
    assert choose_window(wide.grid, [wide]) == (512, 512)


@given(chunk=st.tuples(st.integers(1, 1200), st.integers(1, 1200)), striped=st.booleans())
def test_the_window_is_a_multiple_of_the_outputs_blocks(chunk: tuple[int, int], striped: bool) -> None:
    rows, cols = choose_window(TILED.grid, [STRIPED if striped else TILED], chunk)
    assert rows % chunk[0] == 0 and cols % chunk[1] == 0 and rows > 0 and cols > 0
    assert cols >= (TILED.grid.width if striped else 512)


def megabytes(cache: GdalCache, workers: int) -> int:
    return int(cache.worker_environment(workers)["GDAL_CACHEMAX"])


def test_workers_share_what_gdal_may_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
    tiles = TilePlan(4000, 5000, 512, 512)
    cache = GdalCache.for_reading([TILED], tiles, margin=0, main_readers=1)
    assert cache.needed_bytes == 0
    assert [workers * megabytes(cache, workers) for workers in (1, 2, 4)] == pytest.approx([537] * 3, abs=4)


def test_narrow_windows_of_a_striped_file_need_a_row_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
    wide = facts(50_000, 4000, (8, 50_000), ("float32", "float32"))
    cache = GdalCache.for_reading([wide], TilePlan(4000, 50_000, 512, 512), margin=10, main_readers=2)
    row = (512 + 2 * 10) * 50_000 * 8
    assert row < cache.needed_bytes < 1.5 * row
    assert megabytes(cache, 64) * 1_000_000 >= row
    huge = GdalCache(10**12)
    assert megabytes(huge, 2) * 1_000_000 <= blocking.LARGEST_CACHE_BYTES


def test_a_setting_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from rasterio._env import get_gdal_config

    monkeypatch.setenv("GDAL_CACHEMAX", "99")
    assert GdalCache(0).worker_environment(2) == {}
    before = get_gdal_config("GDAL_CACHEMAX")
    with GdalCache(0).environment():
        assert get_gdal_config("GDAL_CACHEMAX") == before


@pytest.mark.parametrize("style", [{}, {"numComputeWorkers": 2, "computeWorkerKind": "CW_THREADS"}])
def test_a_striped_file_goes_through_in_whole_rows(tmp_path: Path, style: dict[str, Any]) -> None:
    import applier

    array = np.random.default_rng(3).integers(0, 9, (2, 700, 1500)).astype("uint8")
    profile = {"driver": "GTiff", "width": 1500, "height": 700, "count": 2, "dtype": "uint8"}
    transform = rasterio.Affine(1.0, 0.0, 5.0, 0.0, -1.0, 5.0)
    with rasterio.open(
        tmp_path / "in.tif", "w", transform=transform, compress="DEFLATE", **profile
    ) as dataset:
        dataset.write(array)

    def double(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img * 2

    infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
    infiles.img, outfiles.out = tmp_path / "in.tif", tmp_path / "out.tif"
    controls = applier.ApplierControls()
    controls.setProgress(None)
    controls.setConcurrencyStyle(applier.ConcurrencyStyle(**style))
    returned = applier.apply(double, infiles, outfiles, controls=controls)
    assert returned.blocks == 3  # 256 whole rows each
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert np.array_equal(dataset.read(), array * 2) and dataset.block_shapes[0] == (256, 256)
