"""The algebra of pixel grids: are two aligned, where does one lie in the other, what do many share.

Two grids are *aligned* when each pixel of one falls on a pixel of the other to within `TOLERANCE` of a pixel,
over the whole of both. So a difference in pixel size that only rounding made is accepted on an image where it
adds up to nothing, and refused on one so large that it would shift the far edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from applier.constants import BOUNDS_FROM_REFERENCE, INTERSECTION, UNION
from applier.errors import GridMismatchError

__all__ = ["TOLERANCE", "PixelGrid", "common_grid", "same_crs"]

#: How far, in pixels, aligned grids may be apart anywhere: well below what registration of images reaches.
TOLERANCE = 0.05


@dataclass(frozen=True)
class PixelGrid:
    """Where the pixels of a raster lie.

    Parameters
    ----------
    crs_wkt : str
        The projection as WKT; '' where there is none.
    transform : tuple of 6 float
        In GDAL's order ``(x0, dx, rx, y0, ry, dy)``: pixel (row, col) has its top-left corner at
        ``(x0 + col*dx + row*rx, y0 + col*ry + row*dy)``, in units of the projection. Rasters without
        georeference have ``(0, 1, 0, 0, 0, 1)``, and are grids like any other.
    height, width : int
        Size in pixels.

    Examples
    --------
    >>> grid = PixelGrid("", (500.0, 10.0, 0.0, 900.0, 0.0, -10.0), height=20, width=30)
    >>> grid.bounds
    (500.0, 700.0, 800.0, 900.0)
    >>> grid.pixel_offset_to(PixelGrid("", (520.0, 10.0, 0.0, 890.0, 0.0, -10.0), height=5, width=5))
    (1, 2)
    """

    crs_wkt: str
    transform: tuple[float, float, float, float, float, float]
    height: int
    width: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) around all pixels, in units of the projection."""
        corners = [self.corner(row, col) for row in (0, self.height) for col in (0, self.width)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def corner(self, row: float, col: float) -> tuple[float, float]:
        """Return the place of the top-left corner of a pixel.

        Parameters
        ----------
        row, col : float
            Pixel coordinates; they may lie outside the grid.

        Returns
        -------
        tuple of 2 float
            (x, y) in units of the projection.
        """
        x0, dx, rx, y0, ry, dy = self.transform
        return x0 + col * dx + row * rx, y0 + col * ry + row * dy

    def pixel_at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel coordinates of a place: the inverse of `corner`.

        Parameters
        ----------
        x, y : float
            In units of the projection.

        Returns
        -------
        tuple of 2 float
            (row, col), not rounded.

        Raises
        ------
        GridMismatchError
            If the transform cannot be inverted (pixels without area).
        """
        x0, dx, rx, y0, ry, dy = self.transform
        area = dx * dy - rx * ry
        if area == 0 or not math.isfinite(area):
            raise GridMismatchError(
                f"The geotransform {self.transform} has pixels without area; give the file a valid one, "
                "e.g. with gdal_edit.py -a_ullr"
            )
        return ((y - y0) * dx - (x - x0) * ry) / area, ((x - x0) * dy - (y - y0) * rx) / area

    def is_aligned_with(self, other: PixelGrid) -> bool:
        """Say whether the pixels of both grids coincide (see `TOLERANCE`); projections are not compared.

        Parameters
        ----------
        other : PixelGrid

        Returns
        -------
        bool
        """
        row, col = self.pixel_at(*other.corner(0, 0))
        if not _near_integer(row) or not _near_integer(col):
            return False
        return self._drift(other) <= TOLERANCE

    def pixel_offset_to(self, other: PixelGrid) -> tuple[int, int]:
        """Return the pixel of this grid on which the origin of `other` lies.

        Parameters
        ----------
        other : PixelGrid
            A grid aligned with this one.

        Returns
        -------
        tuple of 2 int
            (row, col); negative where `other` starts above or left of this grid.

        Raises
        ------
        GridMismatchError
            If the grids are not aligned; the message says how they differ.
        """
        if not self.is_aligned_with(other):
            raise GridMismatchError("The grids are not aligned: " + "; ".join(self._differences(other)))
        row, col = self.pixel_at(*other.corner(0, 0))
        return round(row), round(col)

    def shifted(self, row: int, col: int, height: int, width: int) -> PixelGrid:
        """Return the grid of another window on the same pixels.

        Parameters
        ----------
        row, col : int
            The window's origin in pixels of this grid; it may lie outside.
        height, width : int
            Its size in pixels.

        Returns
        -------
        PixelGrid
        """
        _, dx, rx, _, ry, dy = self.transform
        x0, y0 = self.corner(row, col)
        return PixelGrid(self.crs_wkt, (x0, dx, rx, y0, ry, dy), height, width)

    def _drift(self, other: PixelGrid) -> float:
        """How far apart, in pixels, the far corners come to lie if the origins coincide."""
        height, width = max(self.height, other.height), max(self.width, other.width)
        start_row, start_col = self.pixel_at(*other.corner(0, 0))
        drift = 0.0
        for row, col in ((height, 0), (0, width), (height, width)):
            ours_row, ours_col = self.pixel_at(*other.corner(row, col))
            drift = max(drift, abs(ours_row - start_row - row), abs(ours_col - start_col - col))
        return drift

    def _differences(self, other: PixelGrid) -> list[str]:
        """What keeps the grids from being aligned, in words."""
        found = []
        _, dx, rx, _, ry, dy = self.transform
        _, other_dx, other_rx, _, other_ry, other_dy = other.transform
        drift = self._drift(other)
        if drift > TOLERANCE:
            if (rx, ry) != (other_rx, other_ry):
                found.append(f"rotation ({rx!r}, {ry!r}) and ({other_rx!r}, {other_ry!r})")
            if (dx, dy) != (other_dx, other_dy):
                found.append(
                    f"pixel size ({dx!r}, {dy!r}) and ({other_dx!r}, {other_dy!r}), "
                    f"which adds up to {drift:.3g} pixels over the image"
                )
        else:
            row, col = self.pixel_at(*other.corner(0, 0))
            if not _near_integer(row) or not _near_integer(col):
                found.append(
                    f"origin off by a fraction of a pixel ({abs(row - round(row)):.3g} rows, "
                    f"{abs(col - round(col)):.3g} columns)"
                )
        return found


def common_grid(grids: Sequence[tuple[str, PixelGrid]], footprint: int, reference: int = 0) -> PixelGrid:
    """Return the working grid of several rasters that lie on one grid.

    Parameters
    ----------
    grids : sequence of (str, PixelGrid)
        The file's name (for messages) and grid of each input; at least one.
    footprint : int
        `applier.constants.INTERSECTION`, `UNION` or `BOUNDS_FROM_REFERENCE`.
    reference : int, default 0
        Position in `grids` of the raster whose projection and transform the result has.

    Returns
    -------
    PixelGrid

    Raises
    ------
    GridMismatchError
        If two inputs are not on one grid, or (INTERSECTION) share no pixel. It names the files.
    ValueError
        If `grids` is empty or `footprint` is none of the three.

    Examples
    --------
    >>> from applier.constants import INTERSECTION
    >>> left = PixelGrid("", (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), height=10, width=10)
    >>> right = PixelGrid("", (4.0, 1.0, 0.0, 0.0, 0.0, -1.0), height=10, width=10)
    >>> common_grid([("a.tif", left), ("b.tif", right)], INTERSECTION).bounds
    (4.0, -10.0, 10.0, 0.0)
    """
    if not grids:
        raise ValueError("common_grid needs at least one grid")
    if footprint not in (INTERSECTION, UNION, BOUNDS_FROM_REFERENCE):
        raise ValueError(
            f"footprint {footprint!r} is not one of INTERSECTION, UNION and BOUNDS_FROM_REFERENCE of applier"
        )
    reference_name, base = grids[reference]
    boxes = []
    for name, grid in grids:
        _require_same_grid(reference_name, base, name, grid)
        row, col = base.pixel_offset_to(grid)
        boxes.append((row, col, row + grid.height, col + grid.width))
    if footprint == BOUNDS_FROM_REFERENCE:
        return base
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    if footprint == UNION:
        top, left, bottom, right = min(tops), min(lefts), max(bottoms), max(rights)
    else:
        top, left, bottom, right = max(tops), max(lefts), min(bottoms), min(rights)
        if bottom <= top or right <= left:
            extents = "\n".join(f"  {name}: {_extent(grid)}" for name, grid in grids)
            raise GridMismatchError(
                f"The inputs have no pixel in common, so their intersection is empty:\n{extents}\n"
                "Leave out the file that lies elsewhere, or use controls.setFootprintType(applier.UNION)."
            )
    return base.shifted(top, left, bottom - top, right - left)


@lru_cache(maxsize=1024)
def same_crs(a: str, b: str) -> bool:
    """Say whether two WKT texts mean one projection.

    Parameters
    ----------
    a, b : str
        WKT; '' where there is none, which equals only itself.

    Returns
    -------
    bool
    """
    if a == b:
        return True
    if not a or not b:
        return False
    # Files spell one projection in many ways; only rasterio can tell, and it is not needed otherwise.
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return bool(CRS.from_wkt(a) == CRS.from_wkt(b))
    except CRSError:
        return False


def _require_same_grid(name_a: str, a: PixelGrid, name_b: str, b: PixelGrid) -> None:
    differences = []
    if not same_crs(a.crs_wkt, b.crs_wkt):
        differences.append(f"projection {_crs_name(a.crs_wkt)} and {_crs_name(b.crs_wkt)}")
    differences += a._differences(b)
    if differences:
        listed = "\n".join(f"  {line}" for line in differences)
        raise GridMismatchError(
            f"{name_a} and {name_b} are not on one pixel grid; they differ in\n{listed}\n"
            f"Inputs must share one grid: warp {name_b} onto that of {name_a} first, e.g. with gdalwarp "
            "(-t_srs, -tr and -te, or -tap)."
        )


def _near_integer(value: float) -> bool:
    return math.isfinite(value) and abs(value - round(value)) <= TOLERANCE


def _extent(grid: PixelGrid) -> str:
    left, bottom, right, top = grid.bounds
    return f"x {left:.10g} to {right:.10g}, y {bottom:.10g} to {top:.10g}"


def _crs_name(wkt: str) -> str:
    """The name of a projection: the first quoted text of its WKT."""
    parts = wkt.split('"', 2)
    return repr(parts[1]) if len(parts) == 3 else "none"
