"""The values behind the controls: small frozen groups that check themselves.

Each field is checked and brought to one form when a group is made, so that whoever reads an option need
not ask whether it makes sense. `applier.controls.ApplierControls` is how scripts set them.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from applier.concurrency import ConcurrencyStyle
from applier.constants import (
    DEFAULT_FOOTPRINT,
    DEFAULT_OVERLAP,
    DEFAULT_STATS_IGNORE,
    DEFAULT_WINDOW_SIZE,
    FOOTPRINTS,
    WINDOW_XSIZE_VARIABLE,
    WINDOW_YSIZE_VARIABLE,
)
from applier.errors import ControlsError

if TYPE_CHECKING:
    from applier.progress import Progress

__all__ = ["GridOptions", "OutputOptions", "ReadOptions", "RunOptions"]


def _whole(value: Any, least: int, problem: str) -> int:
    """Return `value` as an int of at least `least`, else raise `problem` (numpy's integers will do)."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ControlsError(problem)
    return number


def _path(value: Any, call: str) -> str | None:
    """Return a path as a str; None stays None."""
    if value is None:
        return None
    if isinstance(value, (str, os.PathLike)) and os.fsdecode(value):
        return os.fsdecode(value)
    raise ControlsError(f"{call}({value!r}): give a path, e.g. controls.{call}('some/path')")


@dataclass(frozen=True)
class GridOptions:
    """The working grid and how it is cut into windows.

    Parameters
    ----------
    window_xsize, window_ysize : int, optional
        Columns and rows of a window, in pixels; None leaves the choice to `applier.apply`.
    overlap : int, default 0
        Pixels of margin on every side of a block.
    footprint : int, default `applier.INTERSECTION`
        `applier.INTERSECTION`, `applier.UNION` or `applier.BOUNDS_FROM_REFERENCE`.
    reference_image : str or os.PathLike, optional
        Symbolic name or file name of the image that fixes the grid.

    Raises
    ------
    ControlsError
        On a size below 1, an overlap below 0, a footprint that is not one of the three.

    Examples
    --------
    >>> GridOptions(window_xsize=512).window_size
    (512, 256)
    >>> GridOptions().window_size is None
    True
    """

    window_xsize: int | None = None
    window_ysize: int | None = None
    overlap: int = DEFAULT_OVERLAP
    footprint: int = DEFAULT_FOOTPRINT
    reference_image: str | None = None

    def __post_init__(self) -> None:
        for name, letter in (("window_xsize", "X"), ("window_ysize", "Y")):
            size = getattr(self, name)
            if size is not None:
                call = f"setWindow{letter}size"
                problem = (
                    f"{call}({size!r}): a window is a whole number of pixels, 1 or more, "
                    f"e.g. controls.{call}({DEFAULT_WINDOW_SIZE}) or controls.setWindowSize(512, 512)"
                )
                object.__setattr__(self, name, _whole(size, 1, problem))
        problem = (
            f"setOverlap({self.overlap!r}): the overlap is a whole number of pixels added on every side "
            "of a block, 0 or more, e.g. controls.setOverlap(2)"
        )
        object.__setattr__(self, "overlap", _whole(self.overlap, 0, problem))
        if (
            not isinstance(self.footprint, int)
            or isinstance(self.footprint, bool)
            or self.footprint not in FOOTPRINTS
        ):
            names = ", ".join(f"applier.{name}" for name in FOOTPRINTS.values())
            raise ControlsError(
                f"setFootprintType({self.footprint!r}): there is no such footprint; the types are {names}, "
                "e.g. controls.setFootprintType(applier.UNION)"
            )
        object.__setattr__(self, "reference_image", _path(self.reference_image, "setReferenceImage"))

    @classmethod
    def from_environment(cls) -> GridOptions:
        """Make the defaults, with a window size from APPLIER_WINDOW_XSIZE and APPLIER_WINDOW_YSIZE.

        Raises
        ------
        ControlsError
            If a variable is set to anything but a whole number, 1 or more.
        """
        return cls(
            window_xsize=_size_from_environment(WINDOW_XSIZE_VARIABLE),
            window_ysize=_size_from_environment(WINDOW_YSIZE_VARIABLE),
        )

    @property
    def window_size(self) -> tuple[int, int] | None:
        """``(xsize, ysize)`` in pixels, None for automatic; where one is set the other is 256."""
        if self.window_xsize is None and self.window_ysize is None:
            return None
        return self.window_xsize or DEFAULT_WINDOW_SIZE, self.window_ysize or DEFAULT_WINDOW_SIZE


def _size_from_environment(variable: str) -> int | None:
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    try:
        size = int(text)
    except ValueError:
        size = 0
    return _whole(
        size, 1, f"environment variable {variable}={text!r}: give a number of pixels, e.g. {variable}=512"
    )


@dataclass(frozen=True)
class ReadOptions:
    """How an input is read.

    Parameters
    ----------
    layers : sequence of int, optional
        Which layers (bands) to read and in which order, counted from 1; None reads all.

    Raises
    ------
    ControlsError
        On an empty list, or numbers below 1.

    Examples
    --------
    >>> ReadOptions([4, 3]).layers
    (4, 3)
    """

    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.layers is None:
            return
        given: Any = self.layers
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise ControlsError(
                f"selectInputImageLayers({given!r}): give a list of layer numbers, "
                "e.g. controls.selectInputImageLayers([1, 2])"
            )
        numbers = list(given)
        problem = (
            f"selectInputImageLayers({numbers!r}): layers are counted from 1, as in GDAL; the first two are "
            "controls.selectInputImageLayers([1, 2])"
        )
        if not numbers:
            raise ControlsError("selectInputImageLayers([]): select at least one layer, or None for all")
        object.__setattr__(self, "layers", tuple(_whole(number, 1, problem) for number in numbers))


@dataclass(frozen=True)
class OutputOptions:
    """How an output is written.

    Parameters
    ----------
    driver : str, optional
        GDAL's short name of the format; None takes it from the file name's extension.
    creation_options : iterable of 'KEY=VALUE' str, mapping, or iterable of pairs, optional
        GDAL's creation options. Kept as a tuple of ``(KEY, value)`` with the key in upper case; a
        mapping may hold bool and numbers.
    stats_ignore : int or float or None, default 0
        The nodata value of the file; None sets none.

    Raises
    ------
    ControlsError
        On an option without ``=``, a key given twice, a nodata value that is not a number.

    Examples
    --------
    >>> OutputOptions(creation_options=["compress=ZSTD"]).creation_options
    (('COMPRESS', 'ZSTD'),)
    >>> OutputOptions(creation_options={"TILED": True, "ZLEVEL": 9}).creation_options
    (('TILED', 'YES'), ('ZLEVEL', '9'))
    """

    driver: str | None = None
    creation_options: tuple[tuple[str, str], ...] = ()
    stats_ignore: int | float | None = DEFAULT_STATS_IGNORE

    def __post_init__(self) -> None:
        if self.driver is not None and not (isinstance(self.driver, str) and self.driver.strip()):
            raise ControlsError(
                f"setOutputDriverName({self.driver!r}): give GDAL's short name of a format, "
                "e.g. controls.setOutputDriverName('GTiff')"
            )
        object.__setattr__(self, "creation_options", _creation_options(self.creation_options))
        object.__setattr__(self, "stats_ignore", _stats_ignore(self.stats_ignore))


def _creation_options(given: Any) -> tuple[tuple[str, str], ...]:
    """Bring creation options of any accepted form to pairs."""
    example = "e.g. controls.setCreationOptions(['COMPRESS=DEFLATE', 'TILED=YES'])"
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ControlsError(f"setCreationOptions({given!r}): give a list of 'KEY=VALUE' or a dict, {example}")
    pairs: list[tuple[str, str]] = []
    for item in given.items() if isinstance(given, Mapping) else given:
        key, value = item if isinstance(item, tuple) and len(item) == 2 else _split_option(item, example)
        key = str(key).strip().upper()
        if not key or key in dict(pairs):
            fault = f"{key} is given twice" if key else f"{item!r} has no key"
            raise ControlsError(f"setCreationOptions: {fault}; give each option once, {example}")
        pairs.append((key, {True: "YES", False: "NO"}[value] if isinstance(value, bool) else str(value)))
    return tuple(pairs)


def _split_option(item: Any, example: str) -> tuple[str, str]:
    key, equals, value = item.partition("=") if isinstance(item, str) else ("", "", "")
    if not equals:
        raise ControlsError(f"setCreationOptions: {item!r} is not of the form 'KEY=VALUE', {example}")
    return key, value


def _stats_ignore(given: Any) -> int | float | None:
    """Return a nodata value as a plain int or float; None stays None."""
    value = given.item() if hasattr(given, "item") and getattr(given, "ndim", None) == 0 else given
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise ControlsError(
        f"setStatsIgnore({given!r}): the nodata value is one number for all layers, or None for none, "
        "e.g. controls.setStatsIgnore(-9999)"
    )


@dataclass(frozen=True)
class RunOptions:
    """How the job is run and shown.

    Parameters
    ----------
    concurrency : ConcurrencyStyle
        Workers; by default there are none.
    progress : Progress, optional
        A progress object; None takes `applier.progress.default_progress`.
    job_name : str, optional
        Name of the job, shown beside its progress and used in the names of what it starts.
    tempdir : str or os.PathLike, optional
        Directory of temporary files; None lets each part choose a fitting place.
    checkpoint : str or os.PathLike, optional
        Directory in which results are kept until the job is done; None keeps none.
    on_block_error : {'raise', 'skip'}
        Whether the job ends with the first block that cannot be computed (default), or goes on without it.

    Raises
    ------
    ControlsError
        On values of another type.
    """

    concurrency: ConcurrencyStyle = field(default_factory=ConcurrencyStyle)
    progress: Progress | None = None
    job_name: str | None = None
    tempdir: str | None = None
    on_block_error: str = "raise"
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        concurrency: Any = self.concurrency
        if not isinstance(concurrency, ConcurrencyStyle):
            raise ControlsError(
                f"setConcurrencyStyle({concurrency!r}): give a ConcurrencyStyle, e.g. "
                "controls.setConcurrencyStyle(applier.ConcurrencyStyle("
                "numComputeWorkers=4, computeWorkerKind=applier.CW_SUBPROC))"
            )
        if self.progress is not None and not callable(getattr(self.progress, "setProgress", None)):
            raise ControlsError(
                f"setProgress({self.progress!r}): give an object with setTotalSteps and setProgress, "
                "e.g. controls.setProgress(applier.progress.CUIProgressBar()), or None for silence"
            )
        if self.job_name is not None and not (isinstance(self.job_name, str) and self.job_name.strip()):
            raise ControlsError(
                f"setJobName({self.job_name!r}): give a text, e.g. controls.setJobName('ndvi-2026')"
            )
        object.__setattr__(self, "tempdir", _path(self.tempdir, "setTempdir"))
        object.__setattr__(self, "checkpoint", _path(self.checkpoint, "setCheckpoint"))
        if self.on_block_error not in ("raise", "skip"):
            raise ControlsError(
                f"setOnBlockError({self.on_block_error!r}): give 'raise', and the job ends with the first "
                "block that cannot be computed, or 'skip', and it goes on without such blocks"
            )
