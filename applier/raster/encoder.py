"""The worker's half of writing rasters: a block of pixels becomes the compressed chunks of a GeoTIFF.

Compression is the expensive half of writing, so it is done where the block was computed. GDAL writes the
block into a small GeoTIFF in memory, with the options of the output; its chunks are taken out and travel to
main, which only places them (`applier.raster.sink`). Where a block does not cover whole chunks of the output,
it travels as it is, and main assembles and compresses.

Formats that are not made of such chunks (any driver but GTiff, and GTiff with JPEG, WEBP or JXL, whose
chunks share tables) are first written as a *working* GeoTIFF in this same way, which GDAL copies into the
final format at the end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rasterio.shutil
from rasterio.drivers import driver_from_extension, is_blacklisted
from rasterio.dtypes import dtype_fwd
from rasterio.io import MemoryFile

from applier.errors import ControlsError, FileOpenError, OutputError
from applier.raster import tiff
from applier.raster.datasets import gdal_errors, gdal_warnings, gdal_words, quiet
from applier.raster.grid import PixelGrid
from applier.raster.tiles import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Chunks", "EncodedTile", "OutputSpec", "compress", "encode"]

# Compressions whose chunks stand alone, so that they may be moved from one file to another.
_DIRECT = frozenset(
    {"NONE", "DEFLATE", "LZW", "ZSTD", "LZMA", "PACKBITS", "LERC", "LERC_DEFLATE", "LERC_ZSTD"}
)
# Options of the file as a whole, or of how it is written: none of the block's business.
_NOT_FOR_BLOCKS = frozenset({"NUM_THREADS", "BIGTIFF", "TFW", "PROFILE"})
_DEFAULTS = {"TILED": "YES", "COMPRESS": "DEFLATE", "BIGTIFF": "IF_SAFER"}
# Quick to write, read once, and known to every GDAL.
_WORKING = {"TILED": "YES", "COMPRESS": "DEFLATE", "ZLEVEL": "1", "BIGTIFF": "YES"}
# Any transform will do for a block; having none makes rasterio warn.
_SOMEWHERE = rasterio.Affine(1.0, 0.0, 1.0, 0.0, -1.0, 1.0)

_ABOUT_PIXELS = re.compile(
    r"data type|\bbands?\b.*(support|must)|(support|must).*\bbands?\b|BitsPerSample", re.IGNORECASE
)
_ABOUT_OPTIONS = re.compile(r"creation option|not recogni")
_INSTEAD = {"float16": "float32", "longdouble": "float64", "clongdouble": "complex64"}


@dataclass(frozen=True)
class OutputSpec:
    """One output raster: where it goes and how it is written.

    Attributes
    ----------
    name : str
        Symbolic name.
    seq : int or None
        Position in the list, where the name stands for a list of files; else None.
    path : str
        The final file, on a local file system.
    driver : str
        GDAL's short name of the format.
    grid : PixelGrid
        The grid of the output.
    window : tuple of 2 int
        (height, width) of a full block in pixels.
    margin : int, default 0
        Pixels that arrays have beyond the tile on each side; they are cut off.
    nodata : float or None, default None
        The file's nodata value.
    creation_options : tuple of (str, str)
        The user's, keys in upper case.
    """

    name: str
    seq: int | None
    path: str
    driver: str
    grid: PixelGrid
    window: tuple[int, int]
    margin: int = 0
    nodata: float | None = None
    creation_options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def create(  # noqa: PLR0913 - the fields of the class, most by keyword
        cls,
        name: str,
        path: str | os.PathLike[str],
        grid: PixelGrid,
        window: tuple[int, int],
        *,
        seq: int | None = None,
        driver: str | None = None,
        margin: int = 0,
        nodata: float | None = None,
        creation_options: Mapping[str, str] | tuple[tuple[str, str], ...] = (),
    ) -> OutputSpec:
        """Make a spec, taking the driver from the file's extension where none is given.

        Parameters are the attributes of the class.

        Raises
        ------
        ControlsError
            If no driver is given and the extension stands for none that can be written.

        Examples
        --------
        >>> grid = PixelGrid("", (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), height=100, width=100)
        >>> OutputSpec.create("ndvi", "ndvi.img", grid, (256, 256)).driver
        'HFA'
        """
        path = os.fspath(path)
        pairs = creation_options.items() if isinstance(creation_options, Mapping) else creation_options
        options = tuple((key.upper(), str(value)) for key, value in pairs)
        return cls(name, seq, path, driver or _driver_of(path), grid, window, margin, nodata, options)

    @property
    def label(self) -> str:
        """How messages name the output."""
        item = "" if self.seq is None else f"[{self.seq}]"
        return f"output {self.name!r}{item} ({self.path})"

    @property
    def is_direct(self) -> bool:
        """Whether the chunks make up the final file; else a working file is copied at the end."""
        compression = dict(self.creation_options).get("COMPRESS", "DEFLATE").upper()
        return self.driver == "GTiff" and compression in _DIRECT

    def tiff_options(self) -> dict[str, str]:
        """Return the complete creation options of the GeoTIFF that is made of chunks.

        Returns
        -------
        dict of str to str
            BLOCKYSIZE is missing for strips of GDAL's own choice.
        """
        if not self.is_direct:
            return {**_WORKING, **self._tile_size()}
        options = {**_DEFAULTS, **dict(self.creation_options)}
        options["TILED"] = "NO" if options["TILED"].upper() in {"NO", "FALSE", "OFF", "0"} else "YES"
        if options["TILED"] == "YES":
            return {**self._tile_size(), **options}
        options.pop("BLOCKXSIZE", None)
        return options

    def final_options(self) -> dict[str, str]:
        """Return the creation options of the copy into the final format (where not `is_direct`).

        Returns
        -------
        dict of str to str
        """
        if self.driver != "GTiff":
            return dict(self.creation_options)
        return {"TILED": "YES", "BIGTIFF": "IF_SAFER", **self._tile_size(), **dict(self.creation_options)}

    def chunk_shape(self, count: int, dtype: str) -> tuple[int, int]:
        """Return the (rows, cols) of a chunk of the GeoTIFF.

        Parameters
        ----------
        count : int
            Number of bands.
        dtype : str

        Returns
        -------
        tuple of 2 int
        """
        options = self.tiff_options()
        if options["TILED"] == "YES":
            return int(options["BLOCKYSIZE"]), int(options["BLOCKXSIZE"])
        if "BLOCKYSIZE" in options:
            return min(int(options["BLOCKYSIZE"]), self.grid.height), self.grid.width
        for_file = {key: value for key, value in options.items() if key not in _NOT_FOR_BLOCKS}
        height = _default_strip_height(self.grid.width, count, dtype, tuple(for_file.items()))
        return min(height, self.grid.height), self.grid.width

    def has_whole_chunks(self, count: int, dtype: str) -> bool:
        """Say whether every block covers whole chunks, so that workers can compress them.

        Parameters
        ----------
        count : int
            Number of bands.
        dtype : str

        Returns
        -------
        bool
        """
        sizes = zip(
            self.window, self.chunk_shape(count, dtype), (self.grid.height, self.grid.width), strict=True
        )
        return all(window % chunk == 0 or window >= grid for window, chunk, grid in sizes)

    def nodata_survives_float(self, dtype: str) -> bool:
        """Say whether the nodata value may go through rasterio, which makes a float of it.

        Parameters
        ----------
        dtype : str

        Returns
        -------
        bool
        """
        return self.nodata is None or np.dtype(dtype).kind not in "iu" or abs(self.nodata) <= 2**53

    def validate(self) -> None:
        """Find, before anything is computed, what would keep this output from being written.

        Raises
        ------
        FileOpenError
            If the directory is missing or may not be written to, or the path is a directory.
        ControlsError
            If GDAL does not know the driver or cannot write with it, or refuses a creation option.
        """
        self._validate_path()
        self._validate_driver()
        # Some options suit only some numbers of bands or types, and the outputs are not known yet:
        # one that suits none of these suits nothing.
        complaints = []
        for count, dtype in ((1, "uint8"), (1, "float32"), (3, "uint8"), (4, "uint8"), (1, "int16")):
            complaint = _try_options(self, count, dtype)
            if not complaint:
                return
            complaints.append(complaint)
        given = ", ".join(f"{key}={value}" for key, value in self.creation_options)
        raise ControlsError(
            f"{self.label}: GDAL refuses the creation options {given or '(none given)'} of driver "
            f"{self.driver}. GDAL says: {complaints[0]}. Change them with controls.setCreationOptions."
        )

    def _validate_path(self) -> None:
        if "://" in self.path or self.path.startswith("/vsi"):
            raise ControlsError(
                f"{self.label}: rasters are written to local files only. Write it locally and copy it after."
            )
        directory = os.path.dirname(os.path.abspath(self.path))
        if not os.path.isdir(directory):
            raise FileOpenError(
                f"{self.label} cannot be written: there is no directory {directory}. Make it first."
            )
        if os.path.isdir(self.path):
            raise FileOpenError(f"{self.label} cannot be written: it is a directory. Name a file.")
        if not os.access(directory, os.W_OK):
            raise FileOpenError(
                f"{self.label} cannot be written: this user may not write into {directory}. "
                "Change its permissions, or write elsewhere."
            )

    def _validate_driver(self) -> None:
        fault = None
        try:
            # Create and CreateCopy differ; what has neither shows when something is copied.
            if is_blacklisted(self.driver, "w") or self.driver == "VRT":
                fault = f"driver {self.driver} cannot make a raster file"
            else:
                _copy_example(self, 1, "uint8", {})
        except gdal_errors() as error:
            words = gdal_words(error)
            if re.search(r"Unrecognized driver|no create|not support.*creat", words, re.IGNORECASE):
                fault = words
        if fault:
            raise ControlsError(
                f"{self.label}: {fault}. Choose another with controls.setOutputDriverName, e.g. 'GTiff'."
            )

    def _tile_size(self) -> dict[str, str]:
        """Tiles of which a block has whole ones, if there is a sensible size; else 256 x 256."""
        sizes = []
        for window, extent in zip(self.window, (self.grid.height, self.grid.width), strict=True):
            if window % 256 == 0 or window >= extent:
                sizes.append(256)
            elif window % 16 == 0 and 128 <= window <= 1024:
                sizes.append(window)
            else:
                sizes = [256, 256]
                break
        return {"BLOCKYSIZE": str(sizes[0]), "BLOCKXSIZE": str(sizes[1])}


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
    options = {key: value for key, value in given.items() if key not in _NOT_FOR_BLOCKS}
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
            transform=_SOMEWHERE,
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


@contextmanager
def explained(spec: OutputSpec, count: int, dtype: str) -> Iterator[None]:
    """Turn what GDAL raises into an `OutputError` that names the output."""
    try:
        yield
    except gdal_errors() as error:
        given = ", ".join(f"{key}={value}" for key, value in spec.creation_options) or "none"
        raise OutputError(
            f"{spec.label}: GDAL cannot write {count} band(s) of {dtype} with driver {spec.driver} "
            f"(creation options: {given}). GDAL says: {gdal_words(error)}. Give the output another "
            "dtype with astype, or change controls.setCreationOptions or controls.setOutputDriverName."
        ) from error


def check_final_format(spec: OutputSpec, count: int, dtype: str) -> None:
    """Find out at the first block, not after the last, that the final format has no place for such pixels.

    Parameters
    ----------
    spec : OutputSpec
    count : int
        Number of bands.
    dtype : str

    Raises
    ------
    OutputError
        If GDAL says that the format does not support this type or number of bands.
    """
    try:
        _copy_example(spec, count, dtype, spec.final_options())
    except gdal_errors() as error:
        # Other complaints (projection, size of the image) may hold for the example alone.
        if _ABOUT_PIXELS.search(str(error)):
            with explained(spec, count, dtype):
                raise


def check_nodata(spec: OutputSpec, dtype: str) -> None:
    """Raise where the nodata value has no place in the type of the output.

    Parameters
    ----------
    spec : OutputSpec
    dtype : str

    Raises
    ------
    OutputError
    """
    nodata, kind = spec.nodata, np.dtype(dtype)
    if nodata is None or kind.kind not in "iu":
        return
    limits = np.iinfo(kind)
    if not (nodata == nodata and limits.min <= nodata <= limits.max):
        raise OutputError(
            f"{spec.label}: its nodata value {nodata} does not fit into {dtype} ({limits.min} to "
            f"{limits.max}). Choose another with controls.setStatsIgnore, or another dtype with astype."
        )


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


@lru_cache(maxsize=256)
def _default_strip_height(width: int, count: int, dtype: str, options: tuple[tuple[str, str], ...]) -> int:
    """Rows of a strip where GDAL chooses; it does so by the bytes of a row, whatever the image's height."""
    with MemoryFile() as memory:
        memory.open(
            driver="GTiff",
            height=65536,
            width=width,
            count=count,
            dtype=dtype,
            transform=_SOMEWHERE,
            **{**dict(options), "SPARSE_OK": "YES"},
        ).close()
        return tiff.parse(memory.getbuffer()).chunk_shape[0]


def _driver_of(path: str) -> str:
    advice = "set the format with controls.setOutputDriverName, e.g. 'GTiff', or name the file .tif"
    try:
        driver = str(driver_from_extension(path))
    except ValueError:
        raise ControlsError(f"{path}: GDAL writes no format with this extension; {advice}.") from None
    if driver == "VRT":
        raise ControlsError(f"{path}: a VRT only points to other rasters and cannot hold pixels; {advice}.")
    return driver


def _try_options(spec: OutputSpec, count: int, dtype: str) -> str:
    """What GDAL says against the options of an output of this kind; '' if nothing."""
    with gdal_warnings() as warned:
        try:
            if spec.is_direct:
                shape = {"height": 16, "width": 16, "count": count, "dtype": dtype}
                with MemoryFile() as memory:
                    memory.open(driver="GTiff", transform=_SOMEWHERE, **shape, **spec.tiff_options()).close()
            else:
                _copy_example(spec, count, dtype, spec.final_options())
        except gdal_errors() as error:
            words = gdal_words(error)
            # Other formats may refuse the example for its size or projection, which says nothing of options.
            if spec.is_direct or any(f"{key}={value}" in words for key, value in spec.creation_options):
                return words
    telling = [words for words in warned if spec.is_direct or _ABOUT_OPTIONS.search(words)]
    return "; ".join(dict.fromkeys(telling))


def _copy_example(spec: OutputSpec, count: int, dtype: str, options: Mapping[str, str]) -> None:
    """Let GDAL make a small raster in the final format, in memory."""
    extension = os.path.splitext(spec.path)[1]
    with MemoryFile() as memory, MemoryFile(ext=extension) as target, quiet():
        with memory.open(
            driver="GTiff", height=64, width=64, count=count, dtype=dtype, transform=_SOMEWHERE
        ) as dataset:
            dataset.write(np.zeros((count, 64, 64), dtype))
        rasterio.shutil.copy(memory.name, target.name, driver=spec.driver, **options)
