"""Reading: one tile of every input, with its margin, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from applier.errors import FileOpenError
from applier.raster.datasets import gdal_errors, gdal_words, open_dataset
from applier.raster.tiles import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RasterInput", "RasterSource"]


@dataclass(frozen=True)
class RasterInput:
    """One file, and how it lies under the working grid.

    Attributes
    ----------
    name : str
        The symbolic name under which the user's function sees it.
    seq : int or None
        Position in the list, where the name stands for a list of files; else None.
    path : str
    layers : tuple of int
        Bands to read, from 1.
    dtype : str
        NumPy's name of the type of the array (the common type of those bands).
    row_offset, col_offset : int
        The working grid's origin in pixels of this file; negative where the file starts later.
    fill : tuple of (float or None)
        For each of `layers`, the value of pixels outside the file; None stands for 0.
    """

    name: str
    seq: int | None
    path: str
    layers: tuple[int, ...]
    dtype: str
    row_offset: int
    col_offset: int
    fill: tuple[float | None, ...]

    def read(self, tile: Tile, margin: int) -> NDArray[Any]:
        """Read one tile of this file.

        Parameters
        ----------
        tile : Tile
        margin : int
            Pixels read beyond the tile on each side.

        Returns
        -------
        numpy.ndarray
            Shape ``(len(layers), tile.height + 2*margin, tile.width + 2*margin)``; writable, C-contiguous.

        Raises
        ------
        FileOpenError
            If the file cannot be opened, or its pixels cannot be read.
        """
        dataset = open_dataset(self.path)
        top, left = tile.row + self.row_offset - margin, tile.col + self.col_offset - margin
        height, width = tile.height + 2 * margin, tile.width + 2 * margin
        block: NDArray[Any] = np.empty((len(self.layers), height, width), self.dtype)
        rows = (max(top, 0), min(top + height, dataset.height))
        cols = (max(left, 0), min(left + width, dataset.width))
        if rows[1] - rows[0] < height or cols[1] - cols[0] < width:
            for layer, value in zip(block, self.fill, strict=True):
                layer[:] = _as_pixel(value, block.dtype)
        if rows[0] >= rows[1] or cols[0] >= cols[1]:
            return block
        inside = block[:, rows[0] - top : rows[1] - top, cols[0] - left : cols[1] - left]
        try:
            if len({dataset.dtypes[layer - 1] for layer in self.layers}) == 1:
                dataset.read(list(self.layers), out=inside, window=(rows, cols))
            else:  # rasterio reads bands of several types only one at a time
                for layer, target in zip(self.layers, inside, strict=True):
                    dataset.read(layer, out=target, window=(rows, cols))
        except gdal_errors() as error:
            raise FileOpenError(
                f"{self.path}: rows {rows[0]} to {rows[1] - 1}, columns {cols[0]} to {cols[1] - 1} "
                f"(from 0) cannot be read. GDAL says: {gdal_words(error)}. The file is probably damaged or "
                "was not copied completely; 'gdalinfo -checksum' reads it as a whole."
            ) from error
        return block


@dataclass(frozen=True)
class RasterSource:
    """All inputs of a job; it may be pickled and used by several threads at once.

    Parameters
    ----------
    inputs : tuple of RasterInput
        Those of one list in order of their `seq`.
    margin : int
        Pixels read beyond each tile on each side.
    """

    inputs: tuple[RasterInput, ...]
    margin: int = 0

    def read(self, tile: Tile) -> dict[str, NDArray[Any] | list[NDArray[Any]]]:
        """Read one tile of every input.

        Parameters
        ----------
        tile : Tile

        Returns
        -------
        dict of str to numpy.ndarray or list of numpy.ndarray
            By symbolic name; arrays of shape ``(bands, height + 2*margin, width + 2*margin)``. What lies
            outside a file has the layer's nodata value, or 0 where it has none.

        Raises
        ------
        FileOpenError
            If a file cannot be opened or read; it names file and window.
        """
        blocks: dict[str, NDArray[Any] | list[NDArray[Any]]] = {}
        for each in self.inputs:
            block = each.read(tile, self.margin)
            if each.seq is None:
                blocks[each.name] = block
                continue
            in_list = blocks.setdefault(each.name, [])
            assert isinstance(in_list, list)
            in_list.append(block)
        return blocks


def _as_pixel(value: float | None, dtype: np.dtype[Any]) -> Any:
    """The fill value in `dtype`; 0 where it has no place there (-9999 declared for a byte, say)."""
    if value is None:
        return 0
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        fits = value == value and float(value).is_integer() and limits.min <= value <= limits.max
        return int(value) if fits else 0
    return value
