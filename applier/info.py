"""`ReaderInfo`: what the user's function is told about its block and the whole grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from applier.raster.grid import PixelGrid
    from applier.raster.tiles import Tile, TilePlan

__all__ = ["ReaderInfo"]

# A coordinate on the edge of a pixel comes out of the division a rounding error to either side. Nearer
# than this (pixels) it counts as on the edge, and thereby to the pixel of the higher row or column.
_EDGE = 1e-6


class ReaderInfo:
    """Where a block lies; the first argument of the user's function.

    Sizes and positions are in pixels, ``(x, y)`` meaning (columns, rows) as in GDAL, except where rows
    are said to come first. A block's arrays hold its margin (see
    `applier.ApplierControls.setOverlap`); its size does not.

    Parameters
    ----------
    grid : PixelGrid
        The working grid.
    tile : Tile
        The block.
    tiles : TilePlan
        All blocks.
    margin : int, default 0
        Pixels added on every side of the block.
    input_paths : mapping, optional
        File name, or list of file names, by symbolic name.
    """

    def __init__(
        self,
        grid: PixelGrid,
        tile: Tile,
        tiles: TilePlan,
        margin: int = 0,
        input_paths: Mapping[str, str | Sequence[str]] | None = None,
    ) -> None:
        self.grid = grid
        self.tile = tile
        self.tiles = tiles
        self.margin = margin
        self.input_paths = dict(input_paths or {})

    # -- the whole grid ---------------------------------------------------------------------------

    def getWindowSize(self) -> tuple[int, int]:
        """Return ``(xsize, ysize)`` of a window: of every block that the grid's edge does not cut."""
        return self.tiles.window_width, self.tiles.window_height

    def getOverlapSize(self) -> int:
        """Return the pixels of margin on every side of a block."""
        return self.margin

    def getTotalSize(self) -> tuple[int, int]:
        """Return ``(xsize, ysize)`` of the working grid."""
        return self.grid.width, self.grid.height

    def getTransform(self) -> tuple[float, float, float, float, float, float]:
        """Return the working grid's geotransform, in GDAL's order.

        ``x = t[0] + column * t[1] + row * t[2]`` and ``y = t[3] + column * t[4] + row * t[5]`` is the
        corner of a pixel that has the lowest row and column.
        """
        return self.grid.transform

    def getProjection(self) -> str:
        """Return the coordinate system of the working grid as WKT, empty if it has none."""
        return self.grid.crs_wkt

    def getPixelSize(self) -> tuple[float, float]:
        """Return the lengths of a pixel's sides in units of the coordinate system, both positive.

        The first side leads from column to column, the second from row to row.
        """
        _, across_x, down_x, _, across_y, down_y = self.grid.transform
        return math.hypot(across_x, across_y), math.hypot(down_x, down_y)

    def getTotalBlocks(self) -> tuple[int, int]:
        """Return the number of blocks in a row of blocks, and of such rows."""
        return self.tiles.cols, self.tiles.rows

    # -- this block -------------------------------------------------------------------------------

    def getBlockSize(self) -> tuple[int, int]:
        """Return ``(xsize, ysize)`` of this block without its margin."""
        return self.tile.width, self.tile.height

    def getBlockCount(self) -> tuple[int, int]:
        """Return this block's place among the blocks, ``(column, row)`` from 0."""
        return self.tile.block_col, self.tile.block_row

    def isFirstBlock(self) -> bool:
        """Whether this is the block in the grid's top left corner, the first in order."""
        return self.tile.block_index == 0

    def isLastBlock(self) -> bool:
        """Whether this is the last block in order.

        With several workers it need not be the last that is computed.
        """
        return self.tile.block_index == len(self.tiles) - 1

    def getPercent(self) -> int:
        """Return the share of blocks before this one in order, in whole percent (0 to 99)."""
        return 100 * self.tile.block_index // len(self.tiles)

    # -- coordinates ------------------------------------------------------------------------------

    def getBlockCoordArrays(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the coordinates of the centres of the block's pixels, margin included.

        Returns
        -------
        xs, ys : ndarray of float64, shape (rows, cols)
            In the working grid's coordinate system; each as large as the block's arrays.
        """
        origin_x, across_x, down_x, origin_y, across_y, down_y = self.grid.transform
        top, left, height, width = self._array_window()
        rows = np.arange(top, top + height)[:, np.newaxis] + 0.5
        cols = np.arange(left, left + width)[np.newaxis, :] + 0.5
        return origin_x + cols * across_x + rows * down_x, origin_y + cols * across_y + rows * down_y

    def getPixRowColBlock(self, x: float, y: float) -> tuple[int, int] | tuple[None, None]:
        """Find the element of the block's arrays that a point lies in.

        Parameters
        ----------
        x, y : float
            The point, in the working grid's coordinate system.

        Returns
        -------
        row, col : int
            Indices into the arrays, margin included; both None if the point lies outside of them. A
            point on the edge of two pixels lies in that of the higher row or column.
        """
        column, row = self._grid_position(x, y)
        if not (math.isfinite(column) and math.isfinite(row)):
            return None, None
        top, left, height, width = self._array_window()
        array_row, array_col = math.floor(row + _EDGE) - top, math.floor(column + _EDGE) - left
        if 0 <= array_row < height and 0 <= array_col < width:
            return array_row, array_col
        return None, None

    def getPixColRow(self, x: int, y: int) -> tuple[int, int]:
        """Find the pixel of the working grid that an element of the block's arrays is.

        Parameters
        ----------
        x, y : int
            Column and row in the block's arrays, margin included.

        Returns
        -------
        column, row : int
            In the working grid; outside of it (negative, say) for a margin beyond its edge.
        """
        top, left, _, _ = self._array_window()
        return left + x, top + y

    def _array_window(self) -> tuple[int, int, int, int]:
        """Return first row and column in the grid, and height and width, of the block's arrays."""
        tile, margin = self.tile, self.margin
        return tile.row - margin, tile.col - margin, tile.height + 2 * margin, tile.width + 2 * margin

    def _grid_position(self, x: float, y: float) -> tuple[float, float]:
        """Return the fractional column and row of a point: the inverse of the geotransform."""
        origin_x, across_x, down_x, origin_y, across_y, down_y = self.grid.transform
        area = across_x * down_y - down_x * across_y
        dx, dy = x - origin_x, y - origin_y
        return (dx * down_y - dy * down_x) / area, (dy * across_x - dx * across_y) / area

    def __repr__(self) -> str:
        tile = self.tile
        return (
            f"<ReaderInfo of block {tile.block_index + 1} of {len(self.tiles)}: rows {tile.row} to "
            f"{tile.row + tile.height - 1}, columns {tile.col} to {tile.col + tile.width - 1}, "
            f"margin {self.margin}>"
        )
