"""Main's half of writing rasters: encoded blocks are placed in a file that appears only when it is complete.

The file is made in a hidden directory beside its final place. Chunks are appended as they come; the head of
the file, which says where they are, is written last. It is the head of an empty file that GDAL made with the
same options, so that all but the chunks (bands, projection, nodata, ...) is GDAL's own.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import numpy as np
import rasterio
import rasterio.shutil

from applier.errors import FileOpenError, OutputError
from applier.raster import tiff
from applier.raster.datasets import IDENTITY, quiet
from applier.raster.encoder import Chunks, EncodedTile, compress, encode
from applier.raster.outputs import OutputSpec, check_final_format, check_nodata, explained
from applier.raster.tiles import Tile, TilePlan
from computemanager.rundir import hold_lock, is_abandoned

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RasterSink"]

_GDAL_NODATA = 42113
# Sizes from which GDAL makes BigTIFF files, for IF_SAFER and IF_NEEDED.
_SAFE_BYTES, _NEEDED_BYTES = 2_000_000_000, 4_200_000_000
# What GDAL keeps beside a raster; of an older file it would be taken for the new one's.
_SIDECARS = (".aux.xml", ".ovr", ".msk", ".ovr.msk", ".msk.ovr")
_HFA_SIDECARS = (".ige", ".rrd", ".rde")
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class RasterSink:
    """Write one raster from encoded blocks.

    Parameters
    ----------
    spec : OutputSpec
    temp_directory : str or os.PathLike, optional
        Where the working file is made for formats that need one (see `applier.raster.encoder`). Default:
        beside the final file. All else is made beside the final file, so that it can be renamed.

    Attributes
    ----------
    spec : OutputSpec
    path : str
        The final file.

    Notes
    -----
    Call `write` or `skip` for each block, `finish`, then `commit`; `abort` at any time, also after an error.
    """

    def __init__(self, spec: OutputSpec, temp_directory: str | os.PathLike[str] | None = None) -> None:
        self.spec = spec
        self.path = spec.path
        self._temp_directory = temp_directory
        self._plan = TilePlan(spec.grid.height, spec.grid.width, *spec.window)
        self._written = 0
        self._skipped_first = 0  # so many blocks were skipped before the first that was not, and wait for it
        self._first: EncodedTile | None = None
        self._partial = ""
        self._working = ""
        self._lock: IO[bytes] | None = None  # says to other processes that somebody is at work in there
        self._tiff: _TiffFile | None = None
        self._assembly: _Assembly | None = None
        self._finished = False

    def write(self, encoded: EncodedTile) -> None:
        """Write one block; blocks come in the order of the plan.

        Parameters
        ----------
        encoded : EncodedTile

        Raises
        ------
        OutputError
            If the block has another type or number of bands than the first, or the file would get too big.
        FileOpenError
            If the file cannot be written (disk full, no permission).
        """
        if self._first is None:
            self._start(encoded)
            for index in range(self._skipped_first):
                self._add(self._nodata_tile(self._plan.tile(index)))
        assert self._first is not None
        if (encoded.count, encoded.dtype) != (self._first.count, self._first.dtype):
            raise OutputError(
                f"{self.spec.label}: {_place(encoded.tile)} gave {_kind(encoded)}, but "
                f"{_place(self._first.tile)} gave {_kind(self._first)}. Make both the same for every block, "
                "e.g. with array.astype."
            )
        self._add(encoded)

    def skip(self, block: Tile) -> None:
        """Write a block of nothing but nodata, or 0 where the output has no nodata value.

        Type and number of bands are those of the first block that is not skipped; until that comes, nothing
        is written.

        Parameters
        ----------
        block : Tile

        Raises
        ------
        FileOpenError
            If the file cannot be written.
        """
        if self._first is None:
            self._skipped_first += 1
        else:
            self._add(self._nodata_tile(block))

    def _nodata_tile(self, tile: Tile) -> EncodedTile:
        """What the user's function would have to return to say that it knows nothing here."""
        assert self._first is not None
        nodata = 0 if self.spec.nodata is None else self.spec.nodata
        pixels = np.full((self._first.count, tile.height, tile.width), nodata, self._first.dtype)
        return encode(self.spec, tile, pixels, margin=0)

    def _add(self, encoded: EncodedTile) -> None:
        """Place the next block in the file."""
        assert self._tiff is not None
        with self._disk_errors():
            if encoded.chunks is not None:
                chunk_height, chunk_width = self._tiff.chunk_shape
                row, col = encoded.tile.row // chunk_height, encoded.tile.col // chunk_width
                self._tiff.append(encoded.chunks, row, col)
            else:
                self._assemble(encoded)
        self._written += 1

    def finish(self) -> None:
        """Complete the file, still out of sight.

        Raises
        ------
        OutputError
            If blocks are missing, or GDAL cannot make the final format.
        FileOpenError
            If the file cannot be written.
        """
        if self._finished:
            return
        if self._written != len(self._plan):
            number = self._written or "none"
            raise OutputError(
                f"{self.spec.label}: {number} of {len(self._plan)} blocks have been written, "
                "so there is no complete raster. The user's function must set this output for every block."
            )
        assert self._tiff is not None
        self._assembly = None
        with self._disk_errors():
            self._tiff.finish()
            if not self.spec.is_direct:
                self._make_final_format()
        self._finished = True

    def commit(self) -> None:
        """Move the complete file to its name, replacing an older file and what GDAL kept beside that.

        Raises
        ------
        FileOpenError
            If it cannot be moved.
        """
        if not self._finished:
            raise OutputError(f"{self.spec.label}: finish() before commit()")
        directory, name = os.path.split(os.path.abspath(self.path))
        try:
            content = self._content
            new = sorted(os.listdir(content), key=lambda entry: entry == name)  # the raster itself last
            for stale in self._sidecars():
                if os.path.basename(stale) not in new and os.path.lexists(stale):
                    os.remove(stale)
            for entry in new:
                os.replace(os.path.join(content, entry), os.path.join(directory, entry))
        except OSError as error:
            raise FileOpenError(
                f"{self.spec.label}: the complete file cannot take its place: {error}. "
                "Close programs that have the older file open, and check permissions."
            ) from error
        self.abort()

    def abort(self) -> None:
        """Remove all that is not committed. May be called at any time, and again; never raises."""
        if self._tiff is not None:
            self._tiff.close()
        self._tiff = self._assembly = None
        if self._lock is not None:
            self._lock.close()
        for directory in (self._working, self._partial):
            if directory:
                shutil.rmtree(directory, ignore_errors=True)
        self._partial = self._working = ""
        self._lock = None
        self._finished = False

    @property
    def _content(self) -> str:
        """Directory of what will be moved to the final place: the raster, and what GDAL puts beside it."""
        return os.path.join(self._partial, "content")

    def _start(self, first: EncodedTile) -> None:
        """Make the empty file for what the first block shows of the output."""
        spec = self.spec
        check_nodata(spec, first.dtype)
        _check_size(spec, _raw_bytes(spec, first.count, first.dtype))
        if not spec.is_direct:
            check_final_format(spec, first.count, first.dtype)
        directory, name = os.path.split(os.path.abspath(self.path))
        with self._disk_errors():
            # Names may have 255 bytes; the random part must fit.
            prefix = f".{name[:50]}."
            _remove_abandoned(directory, prefix)
            self._partial = tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=directory)
            self._lock = hold_lock(Path(self._partial))
            os.mkdir(self._content)
            if spec.is_direct:
                path = os.path.join(self._content, name)
            else:
                self._working = tempfile.mkdtemp(prefix="working.", dir=self._temp_directory or self._partial)
                path = os.path.join(self._working, "working.tif")
            with explained(spec, first.count, first.dtype):
                template = _make_template(spec, path, first.count, first.dtype)
            self._tiff = _TiffFile(path, template, spec)
        self._first = first

    def _assemble(self, encoded: EncodedTile) -> None:
        """Take a block that has no whole chunks; compress rows of chunks as they fill up."""
        assert self._tiff is not None and encoded.array is not None
        if self._assembly is None:
            self._assembly = _Assembly(self.spec, encoded.count, encoded.dtype, self._tiff.chunk_shape[0])
        for chunk_row, pixels in self._assembly.add(encoded.tile, encoded.array):
            with explained(self.spec, encoded.count, encoded.dtype):
                chunks = compress(self.spec, pixels, threads=True)
            self._tiff.append(chunks, chunk_row, 0)

    def _make_final_format(self) -> None:
        """Copy the working file into the final format."""
        assert self._tiff is not None and self._first is not None
        target = os.path.join(self._content, os.path.basename(self.path))
        with explained(self.spec, self._first.count, self._first.dtype), quiet():
            options = self.spec.final_options()
            rasterio.shutil.copy(self._tiff.path, target, driver=self.spec.driver, **options)
        shutil.rmtree(self._working, ignore_errors=True)
        if not os.path.isfile(target):
            raise OutputError(
                f"{self.spec.label}: driver {self.spec.driver} made no file of that name. Choose another "
                "with controls.setOutputDriverName, e.g. 'GTiff'."
            )
        with open(target, "r+b") as file:
            os.fsync(file.fileno())

    def _sidecars(self) -> list[str]:
        path = os.path.abspath(self.path)
        found = [path + suffix for suffix in _SIDECARS]
        if self.spec.driver == "HFA":
            found += [os.path.splitext(path)[0] + suffix for suffix in _HFA_SIDECARS]
        return found

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (FileOpenError, OutputError):
            raise
        except OSError as error:
            size = f" It had {self._tiff.end} bytes so far." if self._tiff is not None else ""
            advice = "Check the directory and its permissions."
            if error.errno in _NO_ROOM:
                advice = "Make room, write elsewhere, or compress more (controls.setCreationOptions)."
            raise FileOpenError(f"{self.spec.label} cannot be written: {error}.{size} {advice}") from error


def _remove_abandoned(directory: str, prefix: str) -> None:
    """Remove what earlier processes left that were killed while they wrote a file of this name."""
    for stale in Path(directory).glob(glob.escape(prefix) + "*.partial"):
        if is_abandoned(stale):
            shutil.rmtree(stale, ignore_errors=True)


class _TiffFile:
    """A TIFF file that grows at its end and gets its head last."""

    def __init__(self, path: str, template: tiff.TiffDirectory, spec: OutputSpec) -> None:
        self.path = path
        self.chunk_shape = template.chunk_shape
        self._template = template
        self._spec = spec
        # 12 bytes a chunk; a chunk of more than 4 GiB is none that TIFF libraries read.
        self._offsets = np.zeros(template.chunk_grid, np.uint64)
        self._byte_counts = np.zeros(template.chunk_grid, np.uint32)
        self.end = tiff.head_size(template, self._offsets.size)
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed in close()
        self._file.seek(self.end)

    def append(self, chunks: Chunks, chunk_row: int, chunk_col: int) -> None:
        """Append chunks whose first is at this row and column of chunks."""
        if not self._template.big and self.end + chunks.data.nbytes > tiff.CLASSIC_LIMIT:
            raise OutputError(
                f"{self._spec.label}: the file passes 4 GiB, which a classic TIFF cannot hold. "
                "Set the creation option BIGTIFF=YES (controls.setCreationOptions)."
            )
        lengths = np.array(chunks.lengths, np.uint64)
        starts = np.where(lengths > 0, self.end + np.cumsum(lengths) - lengths, 0)
        shape = (-1, chunks.rows, chunks.cols)
        rows, cols = slice(chunk_row, chunk_row + chunks.rows), slice(chunk_col, chunk_col + chunks.cols)
        self._offsets[:, rows, cols] = starts.reshape(shape)
        self._byte_counts[:, rows, cols] = lengths.reshape(shape)
        self._file.write(chunks.data.data)
        self.end += chunks.data.nbytes

    def finish(self) -> None:
        """Write the head, and see to it that all is on the disk."""
        self._file.seek(0)
        self._file.write(tiff.build(self._template, self._offsets.ravel(), self._byte_counts.ravel()))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Close the file as it is; never raises."""
        with contextlib.suppress(OSError):
            self._file.close()


class _Assembly:
    """One row of blocks, and what the row before it left over: rows of chunks are cut from it."""

    def __init__(self, spec: OutputSpec, count: int, dtype: str, chunk_height: int) -> None:
        self._grid = spec.grid
        self._chunk_height = chunk_height
        height = min(spec.window[0] + chunk_height - 1, spec.grid.height)
        self._rows: NDArray[Any] = np.empty((count, height, spec.grid.width), dtype)
        self._top = 0  # row of the grid that is row 0 here

    def add(self, tile: Tile, pixels: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Take a block; at the last of a row give (row of chunks, pixels) for all that are complete."""
        start = tile.row - self._top
        self._rows[:, start : start + tile.height, tile.col : tile.col + tile.width] = pixels
        if tile.col + tile.width < self._grid.width:
            return
        filled = start + tile.height
        is_last = tile.row + tile.height == self._grid.height
        done = 0
        while filled - done >= self._chunk_height or (is_last and done < filled):
            height = min(self._chunk_height, filled - done)
            yield (self._top + done) // self._chunk_height, self._rows[:, done : done + height]
            done += height
        # Copied, as the two may overlap.
        self._rows[:, : filled - done] = self._rows[:, done:filled].copy()
        self._top += done


def _make_template(spec: OutputSpec, path: str, count: int, dtype: str) -> tiff.TiffDirectory:
    """Let GDAL make an empty file of one chunk with all options and metadata, and take its head.

    It is made at `path`, so that sidecars that GDAL adds (a world file, say) are there too. One chunk,
    because the size of the image is only two values of the head, while GDAL would keep a list of all chunks.
    """
    height, width = spec.grid.height, spec.grid.width
    chunk_height, chunk_width = spec.chunk_shape(count, dtype)
    options = spec.tiff_options()
    options.pop("NUM_THREADS", None)
    options["SPARSE_OK"] = "YES"
    options["BLOCKYSIZE"] = str(chunk_height)
    options["BIGTIFF"] = "YES" if _is_big(options, _raw_bytes(spec, count, dtype)) else "NO"
    georeference: dict[str, Any] = {}
    if spec.grid.transform != IDENTITY:
        georeference["transform"] = rasterio.Affine.from_gdal(*spec.grid.transform)
    if spec.grid.crs_wkt:
        georeference["crs"] = spec.grid.crs_wkt
    with (
        quiet(),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=chunk_height,
            width=chunk_width,
            count=count,
            dtype=dtype,
            nodata=spec.nodata if spec.nodata_survives_float(dtype) else 0,
            **georeference,
            **options,
        ),
    ):
        pass
    with open(path, "rb") as file:
        template = tiff.parse(file.read())
    if template.chunk_shape != (chunk_height, chunk_width):
        raise ValueError(f"chunks of {template.chunk_shape} pixels instead of {(chunk_height, chunk_width)}")
    if spec.nodata is not None and not spec.nodata_survives_float(dtype):
        template = template.with_value(_GDAL_NODATA, str(int(spec.nodata)))
    template = template.with_value(tiff.IMAGE_LENGTH, height).with_value(tiff.IMAGE_WIDTH, width)
    return template


def _check_size(spec: OutputSpec, raw_bytes: int) -> None:
    """Find out at the first block that the last will not fit, where that is certain."""
    options = spec.tiff_options()
    sparse = options.get("SPARSE_OK", "NO").upper() not in {"NO", "FALSE", "OFF", "0"}
    certain = options["COMPRESS"].upper() == "NONE" and not sparse
    if certain and not _is_big(options, raw_bytes) and raw_bytes > tiff.CLASSIC_LIMIT:
        raise OutputError(
            f"{spec.label}: its {raw_bytes} bytes of pixels do not fit into a classic TIFF, which ends at "
            "4 GiB. Set the creation option BIGTIFF=YES (controls.setCreationOptions)."
        )


def _is_big(options: dict[str, str], raw_bytes: int) -> bool:
    """Whether GDAL would make a BigTIFF of so many bytes of pixels before compression."""
    wish = options.get("BIGTIFF", "IF_SAFER").upper()
    if wish == "IF_SAFER":
        return raw_bytes > _SAFE_BYTES
    if wish == "IF_NEEDED":
        return options["COMPRESS"].upper() == "NONE" and raw_bytes > _NEEDED_BYTES
    return wish in {"YES", "TRUE", "ON", "1"}


def _raw_bytes(spec: OutputSpec, count: int, dtype: str) -> int:
    """Bytes of all pixels before compression."""
    return spec.grid.height * spec.grid.width * count * np.dtype(dtype).itemsize


def _place(tile: Tile) -> str:
    return f"block row {tile.block_row}, column {tile.block_col}"


def _kind(encoded: EncodedTile) -> str:
    return f"{encoded.dtype} with {encoded.count} band{'s' if encoded.count != 1 else ''}"
