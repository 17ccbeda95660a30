"""Pixel grids: alignment, offsets and common extents, against sets of pixels and plain arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from applier.constants import BOUNDS_FROM_REFERENCE, INTERSECTION, UNION
from applier.errors import GridMismatchError
from applier.raster.grid import TOLERANCE, PixelGrid, common_grid

TRANSFORMS = [
    (500000.0, 30.0, 0.0, 7000000.0, 0.0, -30.0),
    (-180.0, 1 / 3600, 0.0, 90.0, 0.0, -1 / 3600),
    (12.5, 0.25, 0.0, -3.0, 0.0, 0.5),  # south up
    (100.0, 8.0, 6.0, 200.0, 6.0, -8.0),  # rotated
    (0.0, 1.0, 0.0, 0.0, 0.0, 1.0),  # no georeference
]
transforms = st.sampled_from(TRANSFORMS)
sizes = st.integers(1, 5000)
shifts = st.integers(-100_000, 100_000)


def place_of(t: tuple[float, ...], row: float, col: float) -> tuple[float, float]:
    """The same by matrices."""
    x, y = np.array(t).reshape(2, 3) @ (1, col, row)
    return float(x), float(y)


@given(transforms, sizes, sizes, st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_corner_is_what_affine_says_and_pixel_at_its_inverse(t, height, width, row, col) -> None:
    grid = PixelGrid("", t, height, width)
    assert grid.corner(row, col) == pytest.approx(place_of(t, row, col))
    assert grid.pixel_at(*grid.corner(row, col)) == pytest.approx((row, col), abs=1e-5)


@given(transforms, sizes, sizes)
def test_bounds_are_around_all_corners(t, height, width) -> None:
    left, bottom, right, top = PixelGrid("", t, height, width).bounds
    corners = [place_of(t, row, col) for row in (0, height) for col in (0, width)]
    assert (left, right) == pytest.approx((min(x for x, _ in corners), max(x for x, _ in corners)))
    assert (bottom, top) == pytest.approx((min(y for _, y in corners), max(y for _, y in corners)))


@given(transforms, sizes, sizes, sizes, sizes, shifts, shifts)
def test_whole_pixels_apart_is_aligned(t, height, width, other_height, other_width, row, col) -> None:
    grid = PixelGrid("", t, height, width)
    other = grid.shifted(row, col, other_height, other_width)
    assert grid.is_aligned_with(other) and other.is_aligned_with(grid)
    assert grid.pixel_offset_to(other) == (row, col)
    assert other.pixel_offset_to(grid) == (-row, -col)


@given(transforms, sizes, sizes, shifts, shifts, st.floats(TOLERANCE + 0.01, 1 - TOLERANCE - 0.01))
def test_a_part_of_a_pixel_apart_is_not(t, height, width, row, col, part) -> None:
    grid = PixelGrid("", t, height, width)
    for other in (grid.shifted(row + part, col, 9, 9), grid.shifted(row, col + part, 9, 9)):
        assert not grid.is_aligned_with(other)
        with pytest.raises(GridMismatchError, match="origin off by"):
            grid.pixel_offset_to(other)


@given(sizes, sizes, st.floats(1e-9, 1e-3))
def test_a_difference_in_pixel_size_counts_by_what_it_adds_up_to(height, width, relative) -> None:
    drift = relative * max(height, width)
    assume(abs(drift - TOLERANCE) > 1e-3)
    a = PixelGrid("", (0.0, 10.0, 0.0, 0.0, 0.0, -10.0), height, width)
    b = PixelGrid("", (0.0, 10.0 * (1 + relative), 0.0, 0.0, 0.0, -10.0 * (1 + relative)), height, width)
    assert a.is_aligned_with(b) is b.is_aligned_with(a) is (drift < TOLERANCE)


@pytest.mark.parametrize(
    ("t", "words"),
    [
        ((0.0, 20.0, 0.0, 0.0, 0.0, -20.0), "pixel size"),
        ((0.0, 10.0, 0.0, 0.0, 0.0, 10.0), "pixel size"),  # south up
        ((0.0, 10.0, 1.0, 0.0, 0.0, -10.0), "rotation"),
        ((3.0, 10.0, 0.0, 0.0, 0.0, -10.0), r"origin off by .*\(0 rows, 0.3 columns\)"),
    ],
)
def test_the_message_says_what_differs_between_which_files(t, words) -> None:
    a = PixelGrid("", (0.0, 10.0, 0.0, 0.0, 0.0, -10.0), 100, 100)
    with pytest.raises(GridMismatchError, match=words) as caught:
        common_grid([("a.tif", a), ("b.tif", replace(a, transform=t))], INTERSECTION)
    assert "a.tif and b.tif" in str(caught.value) and "gdalwarp" in str(caught.value)


def test_projections_are_compared_by_meaning_not_spelling() -> None:
    from rasterio.crs import CRS

    t = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    gdal, newer = (CRS.from_epsg(4326).to_wkt(version=version) for version in ("WKT1_GDAL", "WKT2_2019"))
    assert gdal != newer
    assert common_grid([("a", PixelGrid(gdal, t, 5, 5)), ("b", PixelGrid(newer, t, 5, 5))], UNION).height == 5
    utm = CRS.from_epsg(32632).to_wkt()
    for wkt, name in ((utm, "WGS 84 / UTM zone 32N"), ("", "none")):
        with pytest.raises(GridMismatchError, match=f"projection 'WGS 84' and '?{name}"):
            common_grid([("a", PixelGrid(gdal, t, 5, 5)), ("b", PixelGrid(wkt, t, 5, 5))], UNION)


boxes = st.lists(
    st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9), st.integers(1, 9)),
    min_size=1,
    max_size=4,
)


@given(transforms, boxes, st.data())
def test_common_grid_is_what_sets_of_pixels_say(t, boxes, data) -> None:
    base = PixelGrid("", t, 1, 1)
    grids = [(f"{n}.tif", base.shifted(*box)) for n, box in enumerate(boxes)]
    rows = [set(range(row, row + height)) for row, _, height, _ in boxes]
    cols = [set(range(col, col + width)) for _, col, _, width in boxes]
    reference = data.draw(st.integers(0, len(boxes) - 1))

    def box_of(grid: PixelGrid) -> tuple[int, int, int, int]:
        return (*base.pixel_offset_to(grid), grid.height, grid.width)

    assert common_grid(grids, BOUNDS_FROM_REFERENCE, reference) == grids[reference][1]
    union = box_of(common_grid(grids, UNION, reference))
    all_rows, all_cols = set.union(*rows), set.union(*cols)
    assert union == (
        min(all_rows),
        min(all_cols),
        max(all_rows) - min(all_rows) + 1,
        max(all_cols) - min(all_cols) + 1,
    )
    shared_rows, shared_cols = set.intersection(*rows), set.intersection(*cols)
    if shared_rows and shared_cols:
        shared = box_of(common_grid(grids, INTERSECTION, reference))
        assert shared == (min(shared_rows), min(shared_cols), len(shared_rows), len(shared_cols))
    else:
        with pytest.raises(GridMismatchError, match="no pixel in common") as caught:
            common_grid(grids, INTERSECTION, reference)
        assert all(name in str(caught.value) for name, _ in grids)


def test_the_result_has_the_transform_of_the_reference() -> None:
    a = PixelGrid("", (0.0, 10.0, 0.0, 0.0, 0.0, -10.0), 10, 10)
    b = PixelGrid("", (20.0, 10.0000001, 0.0, -10.0, 0.0, -10.0000001), 10, 10)
    assert common_grid([("a", a), ("b", b)], INTERSECTION).transform == (20.0, 10.0, 0.0, -10.0, 0.0, -10.0)
    assert common_grid([("a", a), ("b", b)], INTERSECTION, reference=1).transform == b.transform


def test_pixels_without_area() -> None:
    flat = PixelGrid("", (0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 5, 5)
    with pytest.raises(GridMismatchError, match="without area"):
        flat.is_aligned_with(flat)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="at least one"):
        common_grid([], UNION)
    with pytest.raises(ValueError, match="footprint 7"):
        common_grid([("a", PixelGrid("", TRANSFORMS[0], 1, 1))], 7)
