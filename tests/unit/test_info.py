"""Block information against an independent computation: whole-grid arrays, matrices and rasterio's affine."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from applier.info import ReaderInfo
from applier.raster.grid import PixelGrid
from applier.raster.tiles import TilePlan

# Upright, south-up, rotated, sheared, in degrees, in metres; GDAL order.
TRANSFORMS = st.sampled_from(
    [
        (500000.0, 30.0, 0.0, 7000000.0, 0.0, -30.0),
        (-180.0, 1e-4, 0.0, 90.0, 0.0, -1e-4),
        (12.5, 0.25, 0.0, -3.0, 0.0, 0.5),
        (100.0, 8.0, 6.0, 200.0, 6.0, -8.0),
        (0.1, 3.0, -1.0, 7.7, 2.0, -5.0),
        (0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    ]
)


@st.composite
def infos(draw: st.DrawFn) -> ReaderInfo:
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    plan = TilePlan(height, width, draw(st.integers(1, 70)), draw(st.integers(1, 70)))
    tile = plan.tile(draw(st.integers(0, len(plan) - 1)))
    grid = PixelGrid("", draw(TRANSFORMS), height, width)
    return ReaderInfo(grid, tile, plan, draw(st.integers(0, 4)))


def padded_grid(info: ReaderInfo) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns, xs and ys of every pixel of the grid with its margin, pixel by pixel."""
    t, margin = np.array(info.grid.transform).reshape(2, 3), info.margin
    rows, cols = np.mgrid[-margin : info.grid.height + margin, -margin : info.grid.width + margin]
    xs, ys = np.einsum("ij,jrc->irc", t, np.stack([np.ones(rows.shape), cols + 0.5, rows + 0.5]))
    return rows, cols, xs, ys


def block_slices(info: ReaderInfo) -> tuple[slice, slice]:
    tile, twice = info.tile, 2 * info.margin
    return slice(tile.row, tile.row + tile.height + twice), slice(tile.col, tile.col + tile.width + twice)


@given(infos())
def test_coordinates_are_a_cut_out_of_those_of_the_grid(info: ReaderInfo) -> None:
    _, _, xs, ys = padded_grid(info)
    block_xs, block_ys = info.getBlockCoordArrays()
    xsize, ysize = info.getBlockSize()
    assert block_xs.shape == block_ys.shape == (ysize + 2 * info.margin, xsize + 2 * info.margin)
    np.testing.assert_allclose(block_xs, xs[block_slices(info)], rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(block_ys, ys[block_slices(info)], rtol=1e-12, atol=1e-9)


@given(infos(), st.floats(-0.49, 0.49), st.floats(-0.49, 0.49))
def test_a_point_is_found_exactly_where_its_pixel_is(info: ReaderInfo, right: float, down: float) -> None:
    rows, cols, xs, ys = padded_grid(info)
    t = info.grid.transform
    xs, ys = xs + right * t[1] + down * t[2], ys + right * t[4] + down * t[5]
    row_slice, col_slice = block_slices(info)
    for index in np.ndindex(*rows.shape) if rows.size < 400 else [(0, 0), (-1, -1), (0, -1), (-1, 0)]:
        place = tuple(i % n for i, n in zip(index, rows.shape, strict=True))
        inside = row_slice.start <= place[0] < row_slice.stop and col_slice.start <= place[1] < col_slice.stop
        expected = (place[0] - row_slice.start, place[1] - col_slice.start) if inside else (None, None)
        assert info.getPixRowColBlock(float(xs[index]), float(ys[index])) == expected


@given(infos(), st.data())
def test_elements_of_the_block_lead_to_the_grid_and_back(info: ReaderInfo, data: st.DataObject) -> None:
    rows, cols, xs, ys = (array[block_slices(info)] for array in padded_grid(info))
    row = data.draw(st.integers(0, rows.shape[0] - 1))
    col = data.draw(st.integers(0, rows.shape[1] - 1))
    assert info.getPixColRow(col, row) == (cols[row, col], rows[row, col])
    assert info.getPixRowColBlock(float(xs[row, col]), float(ys[row, col])) == (row, col)


@given(infos())
def test_the_corner_of_a_pixel_belongs_to_it(info: ReaderInfo) -> None:
    t = info.grid.transform
    column, row = info.getPixColRow(0, 0)
    corner = t[0] + column * t[1] + row * t[2], t[3] + column * t[4] + row * t[5]
    assert info.getPixRowColBlock(*corner) == (0, 0)
    height, width = info.getBlockCoordArrays()[0].shape
    column, row = column + width, row + height
    beyond = t[0] + column * t[1] + row * t[2], t[3] + column * t[4] + row * t[5]
    assert info.getPixRowColBlock(*beyond) == (None, None)


@pytest.mark.parametrize("point", [(float("nan"), 0.0), (0.0, float("inf")), (float("-inf"), float("inf"))])
def test_a_point_that_is_nowhere_is_outside(point: tuple[float, float]) -> None:
    plan = TilePlan(4, 4, 4, 4)
    grid = PixelGrid("", (0.0, 1.0, 0.0, 4.0, 0.0, -1.0), 4, 4)
    assert ReaderInfo(grid, plan.tile(0), plan).getPixRowColBlock(*point) == (None, None)


@given(infos())
def test_blocks_in_order_have_rising_percents_and_cover_the_grid(info: ReaderInfo) -> None:
    covered = np.zeros((info.grid.height, info.grid.width), dtype=int)
    percents, firsts, lasts, counts = [], [], [], []
    for tile in info.tiles:
        one = ReaderInfo(info.grid, tile, info.tiles, 0)
        xsize, ysize = one.getBlockSize()
        col, row = one.getPixColRow(0, 0)
        covered[row : row + ysize, col : col + xsize] += 1
        percents.append(one.getPercent())
        firsts.append(one.isFirstBlock())
        lasts.append(one.isLastBlock())
        counts.append(one.getBlockCount())
    n = len(percents)
    assert (covered == 1).all()
    assert percents == [int(100 * done / n) for done in range(n)]
    assert firsts == [True] + [False] * (n - 1)
    assert lasts == [False] * (n - 1) + [True]
    across, down = info.getTotalBlocks()
    assert counts == [(x, y) for y in range(down) for x in range(across)]


def test_facts_of_the_grid() -> None:
    plan = TilePlan(100, 250, 64, 128)
    grid = PixelGrid("LOCAL_CS[]", (100.0, 8.0, 6.0, 200.0, 6.0, -8.0), 100, 250)
    info = ReaderInfo(grid, plan.tile(3), plan, 2, {"img": "scene.tif", "many": ["a.tif", "b.tif"]})
    assert info.getWindowSize() == (128, 64)
    assert info.getOverlapSize() == 2
    assert info.getTotalSize() == (250, 100)
    assert info.getTotalBlocks() == (2, 2)
    assert info.getBlockSize() == (122, 36)
    assert info.getBlockCount() == (1, 1)
    assert tuple(info.getTransform()) == grid.transform
    assert info.getProjection() == "LOCAL_CS[]"
    assert info.getPixelSize() == pytest.approx((10.0, 10.0))
    assert info.input_paths == {"img": "scene.tif", "many": ["a.tif", "b.tif"]}
    assert repr(info) == "<ReaderInfo of block 4 of 4: rows 64 to 99, columns 128 to 249, margin 2>"


@given(infos())
def test_pixel_size_is_the_distance_between_neighbours(info: ReaderInfo) -> None:
    _, _, xs, ys = padded_grid(ReaderInfo(info.grid, info.tile, info.tiles, 1))
    across = np.hypot(xs[0, 1] - xs[0, 0], ys[0, 1] - ys[0, 0])
    down = np.hypot(xs[1, 0] - xs[0, 0], ys[1, 0] - ys[0, 0])
    assert info.getPixelSize() == pytest.approx((across, down), rel=1e-5)


@given(infos())
def test_pickles(info: ReaderInfo) -> None:
    assert vars(pickle.loads(pickle.dumps(info))) == vars(info)
