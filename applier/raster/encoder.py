"""The worker's half of writing rasters: a block of pixels becomes the compressed chunks of a GeoTIFF.

Compression is the expensive half of writing, so it is done where the block was computed. GDAL writes the
block into a small GeoTIFF in memory, with the options of the output; its chunks are taken out and travel to
main, which only places them (`applier.raster.sink`). Where a block does not cover whole chunks of the output,
it travels as it is, and main assembles and compresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rasterio.dtypes import dtype_fwd
from rasterio.io import MemoryFile

from applier.errors import OutputError
from applier.raster import tiff
from applier.raster.outputs import NOT_FOR_BLOCKS, SOMEWHERE, OutputSpec, check_nodata, explained
from applier.raster.tiles import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Chunks", "EncodedTile", "compress", "encode"]

_INSTEAD = {"float16": "float32", "longdouble": "float64", "clongdouble": "complex64"}


class Chunks(NamedTuple):
    """Compressed chunks, back to back.

    Attributes
    ----------
    data : numpy.ndarray
        uint8, 1-D.
    lengths : tuple of int
        Bytes of each chunk, plane by plane, each row by row; 0 for one left out (SPARSE_OK).
    rows, cols : int
        Number of chunks in each direction.
    """

    data: NDArray[np.uint8]
    lengths: tuple[int, ...]
    rows: int
    cols: int


@dataclass(frozen=True)
class EncodedTile:
    """A block as it travels to main.

    Attributes
    ----------
    tile : Tile
    count : int
        Number of bands.
    dtype : str
        NumPy's name of the type of the pixels.
    chunks : Chunks or None
        The compressed pixels.
    array : numpy.ndarray or None
        The pixels, of shape ``(count, tile.height, tile.width)``, where the block has no whole chunks.
    """

    tile: Tile
    count: int
    dtype: str
    chunks: Chunks | None
    array: NDArray[Any] | None

    @property
    def nbytes(self) -> int:
        """Bytes of pixels, compressed or not."""
        if self.chunks is not None:
            return self.chunks.data.nbytes
        return 0 if self.array is None else self.array.nbytes


def encode(spec: OutputSpec, tile: Tile, array: NDArray[Any], margin: int | None = None) -> EncodedTile:
    """Turn one block of an output into what main writes.

    Parameters
    ----------
    spec : OutputSpec
    tile : Tile
    array : numpy.ndarray
        What the user's function gave: ``(bands, tile.height + 2*margin, tile.width + 2*margin)``. bool
        becomes uint8; masked pixels become nodata.
    margin : int, optional
        Default: that of `spec`.

    Returns
    -------
    EncodedTile

    Raises
    ------
    OutputError
        If this is no array of that shape, or of a type that GDAL cannot write.
    """
    margin = spec.margin if margin is None else margin
    array = _checked(spec, tile, array, margin)
    pixels = np.ascontiguousarray(array[:, margin : margin + tile.height, margin : margin + tile.width])
    count, dtype = len(pixels), pixels.dtype.name
    with explained(spec, count, dtype):
        whole_chunks = spec.has_whole_chunks(count, dtype)
    if not whole_chunks:
        # A view would keep the whole block, margin and all, for as long as the tile waits to be written.
        return EncodedTile(tile, count, dtype, None, pixels.copy() if pixels.base is not None else pixels)
    with explained(spec, count, dtype):
        return EncodedTile(tile, count, dtype, compress(spec, pixels), None)


def compress(spec: OutputSpec, pixels: NDArray[Any], *, threads: bool = False) -> Chunks:
    """Compress pixels into the chunks that the output has for them.

    Parameters
    ----------
    spec : OutputSpec
    pixels : numpy.ndarray
        ``(bands, rows, cols)``, of whole chunks but for the bottom and right edges; C-contiguous.
    threads : bool, default False
        Whether the user's NUM_THREADS holds (workers run beside each other already).

    Returns
    -------
    Chunks
        The same whatever `threads` is.
    """
    count, height, width = pixels.shape
    chunk_height, chunk_width = spec.chunk_shape(count, pixels.dtype.name)
    given = spec.tiff_options()
    options = {key: value for key, value in given.items() if key not in NOT_FOR_BLOCKS}
    options["BLOCKYSIZE"] = str(chunk_height)
    if options["TILED"] == "YES":
        options["BLOCKXSIZE"] = str(chunk_width)
    if threads and "NUM_THREADS" in given:
        options["NUM_THREADS"] = given["NUM_THREADS"]
    nodata = None
    if "SPARSE_OK" in options:  # then which chunks are left out depends on the nodata value
        nodata = spec.nodata
        is_pixel = nodata is None or pixels.dtype.kind not in "iu" or float(nodata).is_integer()
        if not (is_pixel and spec.nodata_survives_float(pixels.dtype.name)):
            # GDAL would take zeros for nodata, and nodata is not what readers would make of them.
            nodata = None
            del options["SPARSE_OK"]
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=height,
            width=width,
            count=count,
            dtype=pixels.dtype.name,
            nodata=nodata,
            transform=SOMEWHERE,
            **options,
        ) as dataset:
            dataset.write(pixels)
        buffer = np.frombuffer(memory.getbuffer(), np.uint8)
        directory = tiff.parse(buffer)
        offsets, byte_counts = directory.chunks()
        _, rows, cols = directory.chunk_grid
        lengths = tuple(byte_counts.tolist())
        places = zip(offsets.tolist(), lengths, strict=True)
        pieces = [buffer[start : start + length] for start, length in places if length]
        # This copies: the file in memory ends here.
        data = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
    return Chunks(data, lengths, rows, cols)


def _checked(spec: OutputSpec, tile: Tile, array: Any, margin: int) -> NDArray[Any]:
    """The array in a type that GDAL knows, if it has the right shape."""
    where = f"{spec.label}, block row {tile.block_row}, column {tile.block_col}"
    if not isinstance(array, np.ndarray):
        raise OutputError(
            f"{where}: got {type(array).__name__}, not a NumPy array. Outputs are arrays (bands, rows, cols)."
        )
    name = spec.name if spec.seq is None else f"{spec.name}[{spec.seq}]"
    if array.ndim == 2:
        raise OutputError(
            f"{where}: the array is 2-D (rows, cols); outputs are (bands, rows, cols). "
            f"For one band: outputs.{name} = array[None]"
        )
    expected = (tile.height + 2 * margin, tile.width + 2 * margin)
    if array.ndim != 3 or array.shape[1:] != expected or not len(array):
        hint = f", with the overlap of {margin} pixels on each side" if margin else ""
        raise OutputError(
            f"{where}: the array has shape {array.shape}; it must be (bands, {expected[0]}, {expected[1]}), "
            f"the size of the block{hint}."
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    dtype = array.dtype.name
    if dtype not in dtype_fwd.values():
        instead = next((new for old, new in _INSTEAD.items() if array.dtype == np.dtype(old)), "float32")
        raise OutputError(
            f"{where}: GDAL has no pixels of type {dtype}. Convert the array, e.g. array.astype({instead!r})."
        )
    check_nodata(spec, dtype)
    if isinstance(array, np.ma.MaskedArray):
        return np.asarray(array.filled(0 if spec.nodata is None else spec.nodata))
    return np.asarray(array)
