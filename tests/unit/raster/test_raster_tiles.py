"""The plan of tiles against a count of every pixel."""

from __future__ import annotations

import pickle
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from applier.raster.tiles import Tile, TilePlan

sizes = st.integers(1, 40)


@given(sizes, sizes, sizes, sizes)
def test_tiles_cover_each_pixel_once_in_row_major_order(
    height: int, width: int, rows: int, cols: int
) -> None:
    plan = TilePlan(height, width, rows, cols)
    seen = np.zeros((height, width), int)
    tiles = list(plan)
    for tile in tiles:
        assert 0 < tile.height <= rows and 0 < tile.width <= cols
        seen[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width] += 1
    assert (seen == 1).all()
    assert [tile.block_index for tile in tiles] == list(range(len(plan)))
    assert [(t.block_row, t.block_col) for t in tiles] == list(np.ndindex(plan.rows, plan.cols))
    assert [(t.row, t.col) for t in tiles] == sorted((t.row, t.col) for t in tiles)
    assert [plan.tile(tile.block_index) for tile in tiles] == tiles


def test_ten_million_tiles_are_made_one_at_a_time() -> None:
    plan = TilePlan(1_000_000, 1_000_000, 256, 256)
    assert len(plan) == 3907 * 3907
    assert list(islice(plan, 2)) == [Tile(0, 0, 0, 0, 0, 256, 256), Tile(1, 0, 1, 0, 256, 256, 256)]
    last = plan.tile(len(plan) - 1)
    assert (last.row + last.height, last.col + last.width) == (1_000_000, 1_000_000)


def test_a_tile_travels() -> None:
    tile = TilePlan(10, 10, 4, 4).tile(5)
    assert pickle.loads(pickle.dumps(tile)) == tile


@pytest.mark.parametrize("index", [-1, 4])
def test_no_such_tile(index: int) -> None:
    with pytest.raises(IndexError, match="0 to 3"):
        TilePlan(8, 8, 4, 4).tile(index)


@pytest.mark.parametrize("position", range(4))
def test_sizes_are_at_least_one(position: int) -> None:
    given_sizes = [5, 5, 5, 5]
    given_sizes[position] = 0
    with pytest.raises(ValueError, match="must be 1 pixel or more"):
        TilePlan(*given_sizes)
