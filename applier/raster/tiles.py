"""The plan of tiles: a grid cut into windows, row by row, without ever making a list of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Tile", "TilePlan"]


class Tile(NamedTuple):
    """One block of the working grid; offsets and sizes are in pixels and leave out the margin.

    Attributes
    ----------
    block_index : int
        Number of the tile in its plan, from 0, row by row.
    block_row, block_col : int
        Row and column of the tile among the tiles.
    row, col : int
        Where its top-left pixel lies in the working grid.
    height, width : int
        Its size; smaller than the window at the bottom and right edges.
    """

    block_index: int
    block_row: int
    block_col: int
    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True)
class TilePlan:
    """All tiles of a grid, made one at a time as they are asked for.

    Parameters
    ----------
    grid_height, grid_width : int
        Size of the working grid in pixels.
    window_height, window_width : int
        Size of a full tile in pixels.

    Raises
    ------
    ValueError
        If one of the sizes is not at least 1.

    Examples
    --------
    >>> plan = TilePlan(grid_height=100, grid_width=300, window_height=256, window_width=256)
    >>> len(plan), plan.rows, plan.cols
    (2, 1, 2)
    >>> plan.tile(1)
    Tile(block_index=1, block_row=0, block_col=1, row=0, col=256, height=100, width=44)
    """

    grid_height: int
    grid_width: int
    window_height: int
    window_width: int

    def __post_init__(self) -> None:
        for name in ("grid_height", "grid_width", "window_height", "window_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 pixel or more")

    @property
    def rows(self) -> int:
        """Number of rows of tiles."""
        return -(-self.grid_height // self.window_height)

    @property
    def cols(self) -> int:
        """Number of columns of tiles."""
        return -(-self.grid_width // self.window_width)

    def __len__(self) -> int:
        return self.rows * self.cols

    def __iter__(self) -> Iterator[Tile]:
        return map(self.tile, range(len(self)))

    def tile(self, index: int) -> Tile:
        """Return the tile with this number.

        Parameters
        ----------
        index : int
            From 0 to ``len(plan) - 1``, row by row.

        Returns
        -------
        Tile

        Raises
        ------
        IndexError
            If there is no such tile.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} does not exist, the plan has tiles 0 to {len(self) - 1}")
        block_row, block_col = divmod(index, self.cols)
        row, col = block_row * self.window_height, block_col * self.window_width
        height = min(self.window_height, self.grid_height - row)
        width = min(self.window_width, self.grid_width - col)
        return Tile(index, block_row, block_col, row, col, height, width)
