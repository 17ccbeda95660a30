"""What an output raster is to be: its place, its format, its options; and whether GDAL agrees.

A GeoTIFF whose chunks stand alone is made of chunks that workers compress (`applier.raster.encoder`).
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

import numpy as np
import rasterio.shutil
from rasterio.drivers import driver_from_extension, is_blacklisted
from rasterio.io import MemoryFile

from applier.errors import ControlsError, FileOpenError, OutputError
from applier.raster import tiff
from applier.raster.datasets import gdal_errors, gdal_warnings, gdal_words, quiet
from applier.raster.grid import PixelGrid

__all__ = ["NOT_FOR_BLOCKS", "SOMEWHERE", "OutputSpec", "check_final_format", "check_nodata", "explained"]

# Compressions whose chunks stand alone, so that they may be moved from one file to another.
_DIRECT = frozenset(
    {"NONE", "DEFLATE", "LZW", "ZSTD", "LZMA", "PACKBITS", "LERC", "LERC_DEFLATE", "LERC_ZSTD"}
)
_DEFAULTS = {"TILED": "YES", "COMPRESS": "DEFLATE", "BIGTIFF": "IF_SAFER"}
# Quick to write, read once, and known to every GDAL.
_WORKING = {"TILED": "YES", "COMPRESS": "DEFLATE", "ZLEVEL": "1", "BIGTIFF": "YES"}
_ABOUT_PIXELS = re.compile(
    r"data type|\bbands?\b.*(support|must)|(support|must).*\bbands?\b|BitsPerSample", re.IGNORECASE
)
_ABOUT_OPTIONS = re.compile(r"creation option|not recogni")

NOT_FOR_BLOCKS = frozenset({"NUM_THREADS", "BIGTIFF", "TFW", "PROFILE"})
"""Options of the file as a whole, or of how it is written: none of a block's business."""

SOMEWHERE = rasterio.Affine(1.0, 0.0, 1.0, 0.0, -1.0, 1.0)
"""Any transform will do for a raster in memory; having none makes rasterio warn."""


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
        for_file = {key: value for key, value in options.items() if key not in NOT_FOR_BLOCKS}
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
            transform=SOMEWHERE,
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
                    memory.open(driver="GTiff", transform=SOMEWHERE, **shape, **spec.tiff_options()).close()
            else:
                _copy_example(spec, count, dtype, spec.final_options())
        except gdal_errors() as error:
            words = gdal_words(error)
            # Other formats may refuse the example for its size or projection, which says nothing of options.
            if spec.is_direct or any(f"{key}={value}" in words for key, value in spec.creation_options):
                return words
    # GDAL may also warn of what has nothing to do with options, such as data files it does not find.
    keys = [key for key, _ in spec.creation_options] if spec.is_direct else []
    telling = [words for words in warned if _ABOUT_OPTIONS.search(words) or any(key in words for key in keys)]
    return "; ".join(dict.fromkeys(telling))


def _copy_example(spec: OutputSpec, count: int, dtype: str, options: Mapping[str, str]) -> None:
    """Let GDAL make a small raster in the final format, in memory."""
    extension = os.path.splitext(spec.path)[1]
    with MemoryFile() as memory, MemoryFile(ext=extension) as target, quiet():
        with memory.open(
            driver="GTiff", height=64, width=64, count=count, dtype=dtype, transform=SOMEWHERE
        ) as dataset:
            dataset.write(np.zeros((count, 64, 64), dtype))
        rasterio.shutil.copy(memory.name, target.name, driver=spec.driver, **options)
