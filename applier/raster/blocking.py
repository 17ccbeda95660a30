"""How large a block is where nobody says, and what GDAL has to keep so that nothing is unpacked twice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from applier.raster.datasets import RasterFacts, gdal_settings
from applier.raster.grid import PixelGrid
from applier.raster.tiles import TilePlan

__all__ = ["GdalCache", "choose_window"]

WINDOW = 512
"""Rows and columns of a block: measured, see docs/decisions/0007."""

STRIP_ROWS = 256
"""Rows of a block that is as wide as the grid."""

LARGEST_STRIP_BYTES = 48 * 1024**2
"""A block as wide as the grid holds no more of the inputs than this; else it is cut into squares."""

MAIN_CACHE_BYTES = 64 * 1024**2
WORKERS_CACHE_BYTES = 512 * 1024**2
"""What GDAL may keep of files' blocks in the main process, and in all workers of a machine together."""

LARGEST_CACHE_BYTES = 1024**3
"""What a process may keep at the most where blocks do not fit the files."""

_CACHE_VARIABLE = "GDAL_CACHEMAX"


def _is_striped(facts: RasterFacts) -> bool:
    """Whether the file's own blocks are rows: to read a few columns, GDAL unpacks all of them."""
    return facts.block_width >= facts.grid.width > WINDOW


def _row_bytes(facts: RasterFacts) -> int:
    """Bytes of one row of pixels of all bands, which GDAL unpacks together."""
    return facts.grid.width * sum(np.dtype(dtype).itemsize for dtype in facts.dtypes)


def choose_window(
    grid: PixelGrid, inputs: Sequence[RasterFacts], chunk: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Choose rows and columns of a block.

    Parameters
    ----------
    grid : PixelGrid
        The working grid.
    inputs : sequence of RasterFacts
        The files that will be read.
    chunk : tuple of 2 int, optional
        Rows and columns of an output's own blocks, where the user has set them: the window is a multiple, so
        that no block of the file has to be put together from several windows.

    Returns
    -------
    tuple of 2 int
        512 x 512, or 256 rows of the whole grid where an input is made of strips.
    """
    chunk_rows, chunk_cols = chunk or (STRIP_ROWS, STRIP_ROWS)
    strip = STRIP_ROWS * sum(map(_row_bytes, inputs))
    if any(map(_is_striped, inputs)) and strip <= LARGEST_STRIP_BYTES:
        rows, cols = STRIP_ROWS, grid.width
    else:
        rows, cols = WINDOW, WINDOW
    return chunk_rows * max(1, rows // chunk_rows), chunk_cols * max(1, -(-cols // chunk_cols))


@dataclass(frozen=True)
class GdalCache:
    """How much GDAL may keep of the files' blocks in each process.

    Parameters
    ----------
    needed_bytes : int
        So much keeps a row of blocks from unpacking the same strips again and again, for one reader.
    main_readers : int
        Threads of the main process that read.
    """

    needed_bytes: int
    main_readers: int = 1

    @classmethod
    def for_reading(
        cls, inputs: Sequence[RasterFacts], tiles: TilePlan, margin: int, main_readers: int
    ) -> GdalCache:
        """Work out what a job needs."""
        needed = 0
        for facts in inputs:
            if facts.block_width > tiles.window_width:
                rows = tiles.window_height + 2 * margin + 2 * facts.block_height
                needed += rows * _row_bytes(facts)
        return cls(needed * 5 // 4, main_readers)

    def environment(self) -> AbstractContextManager[None]:
        """For the main process while the job runs; what the user has set in the environment stays."""
        if _CACHE_VARIABLE in os.environ:
            return nullcontext()
        needed = min(self.needed_bytes * self.main_readers, LARGEST_CACHE_BYTES)
        return gdal_settings(max(MAIN_CACHE_BYTES, needed))

    def worker_environment(self, workers: int) -> dict[str, str]:
        """Environment variables for each of so many worker processes on this machine."""
        if _CACHE_VARIABLE in os.environ:
            return {}
        share = max(WORKERS_CACHE_BYTES // workers, min(self.needed_bytes, LARGEST_CACHE_BYTES))
        return {_CACHE_VARIABLE: str(max(16, share // 1_000_000))}  # GDAL takes small numbers for megabytes
