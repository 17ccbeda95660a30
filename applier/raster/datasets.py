"""Opened rasters, one cache a thread, and what GDAL says about a file.

GDAL's datasets must not be used by two threads at once, so each thread (and so each process) has its own.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from applier.errors import FileOpenError
from applier.raster.grid import PixelGrid

__all__ = [
    "IDENTITY",
    "MAX_OPEN_FILES",
    "RasterFacts",
    "close_all",
    "describe",
    "gdal_errors",
    "gdal_settings",
    "gdal_warnings",
    "gdal_words",
    "open_dataset",
    "quiet",
]

#: Files that one thread keeps open; the one not used for longest is closed first.
MAX_OPEN_FILES = 64

#: The geotransform of rasters that have none.
IDENTITY = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

_cache = threading.local()
_filters_lock = threading.Lock()


@dataclass(frozen=True)
class RasterFacts:
    """What planning needs to know of a raster.

    Attributes
    ----------
    path : str
    grid : PixelGrid
    count : int
        Number of bands.
    dtypes : tuple of str
        NumPy's name of the type of each band.
    nodata : tuple of (float or None)
        Nodata value of each band.
    block_height, block_width : int
        Size in pixels of the file's own blocks.
    driver : str
        GDAL's short name of the format.
    """

    path: str
    grid: PixelGrid
    count: int
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    block_height: int
    block_width: int
    driver: str


def open_dataset(path: str | os.PathLike[str]) -> DatasetReader:
    """Return this thread's dataset of a file, opening it if need be.

    Parameters
    ----------
    path : str or os.PathLike
        Anything that rasterio opens. A local file that has changed since is opened anew.

    Returns
    -------
    rasterio.io.DatasetReader
        It belongs to the cache: do not close it, do not hand it to another thread.

    Raises
    ------
    FileOpenError
        If the file is missing, a directory, forbidden, or nothing GDAL can read.
    """
    name = os.fspath(path)
    opened: OrderedDict[str, tuple[object, DatasetReader]] | None = getattr(_cache, "opened", None)
    if opened is None:
        opened = _cache.opened = OrderedDict()
    signature = _signature(name)
    if name in opened:
        known, dataset = opened[name]
        if known == signature:
            opened.move_to_end(name)
            return dataset
        del opened[name]
        dataset.close()
    try:
        with quiet():
            dataset = rasterio.open(name)
    except gdal_errors() as error:
        raise FileOpenError(_why_not_opened(name, error)) from error
    opened[name] = (signature, dataset)
    while len(opened) > MAX_OPEN_FILES:
        opened.popitem(last=False)[1][1].close()
    return dataset


def close_all() -> None:
    """Close what this thread has opened; other threads close theirs when they end."""
    opened = getattr(_cache, "opened", None)
    while opened:
        opened.popitem()[1][1].close()


def describe(path: str | os.PathLike[str]) -> RasterFacts:
    """Return what planning needs to know of a raster.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    RasterFacts

    Raises
    ------
    FileOpenError
        If it cannot be opened, or is a container without bands of its own.
    """
    name = os.fspath(path)
    dataset = open_dataset(name)
    if dataset.count == 0:
        inside = "".join(f"\n  {subdataset}" for subdataset in dataset.subdatasets[:20])
        raise FileOpenError(f"{name} has no bands of its own; name one of the rasters in it:{inside}")
    crs_wkt = dataset.crs.to_wkt() if dataset.crs else ""
    block_height, block_width = dataset.block_shapes[0]
    return RasterFacts(
        path=name,
        grid=PixelGrid(crs_wkt, _transform_of(dataset), dataset.height, dataset.width),
        count=dataset.count,
        # NumPy has no complex integers; rasterio reads them as complex64.
        dtypes=tuple("complex64" if dtype == "complex_int16" else dtype for dtype in dataset.dtypes),
        nodata=tuple(dataset.nodatavals),
        block_height=block_height,
        block_width=block_width,
        driver=dataset.driver,
    )


@contextmanager
def gdal_settings(cache_bytes: int) -> Iterator[None]:
    """Limit GDAL's cache of blocks in this process (all its threads), and restore the limit afterwards.

    Without it the cache may grow to 5 % of the machine's memory in every process.

    Parameters
    ----------
    cache_bytes : int
        The limit in bytes; at least 1 MB, as GDAL takes small numbers for megabytes.
    """
    with rasterio.Env(GDAL_CACHEMAX=max(cache_bytes, 1_000_000)):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep rasterio from warning that a raster has no georeference: to us it is a grid like any other."""
    # The filters are global to the process, so only one thread at a time may swap them.
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def gdal_warnings() -> Iterator[list[str]]:
    """Collect what GDAL warns of in this thread; rasterio sends warnings to a logger, not to the caller.

    Yields
    ------
    list of str
        Grows as warnings come.
    """
    found: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread and record.levelno >= logging.WARNING:
                found.append(gdal_words(record.getMessage()))

    logger = logging.getLogger("rasterio._env")
    level, handler = logger.level, Collector()
    logger.addHandler(handler)
    if not logger.isEnabledFor(logging.WARNING):
        logger.setLevel(logging.WARNING)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def gdal_errors() -> tuple[type[Exception], ...]:
    """Return all that rasterio raises when GDAL refuses something (there is no one root)."""
    from rasterio._err import CPLE_BaseError

    return (RasterioError, CPLE_BaseError, OSError, ValueError, TypeError)


def gdal_words(error: BaseException | str) -> str:
    """Return what GDAL said, without rasterio's wrapping and names of temporary files.

    Parameters
    ----------
    error : BaseException or str
        Of an exception, the text of the one that caused it all.

    Returns
    -------
    str
    """
    if isinstance(error, BaseException):
        while error.__cause__ is not None:
            error = error.__cause__
        error = str(error)
    error = re.sub(r"^CPLE_\w+ in ", "", error)
    error = re.sub(r"(/vsimem/)?(?:[0-9a-f-]{36}/)?[0-9a-f-]{36}\.\w+: ?", "", error)
    return " ".join(error.split()).rstrip(".")


def _transform_of(dataset: DatasetReader) -> tuple[float, float, float, float, float, float]:
    """The geotransform, or the identity where there is none.

    `dataset.transform` is not used: some drivers leave it uninitialised, and the warning is all that tells.
    """
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("error", NotGeoreferencedWarning)
        try:
            x0, dx, rx, y0, ry, dy = dataset.read_transform()
        except NotGeoreferencedWarning:
            return IDENTITY
    # With ground control points in place of a transform there is no warning.
    return IDENTITY if dataset.gcps[0] else (x0, dx, rx, y0, ry, dy)


def _signature(name: str) -> object:
    """What changes when a local file is replaced; None for all that is not a local file."""
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _why_not_opened(name: str, error: Exception) -> str:
    words = gdal_words(error)
    if "://" in name or name.startswith("/vsi") or (":" in name and not os.path.exists(name)):
        return f"{name} cannot be opened: {words}. Check the name and, for a remote file, access rights."
    if not os.path.lexists(name):
        return f"{name} does not exist (looked for {os.path.abspath(name)}). Check the name."
    if not os.path.exists(name):
        return f"{name} is a link to {os.path.realpath(name)}, which does not exist."
    if os.path.isdir(name):
        return f"{name} is a directory, not a raster. Name a file in it."
    if not os.access(name, os.R_OK):
        return f"{name} exists, but may not be read by this user. Change its permissions."
    if os.path.getsize(name) == 0:
        return f"{name} is empty (0 bytes). Was it copied completely?"
    return f"{name} is not a raster GDAL can read, or is damaged. GDAL says: {words}."
