"""`ApplierControls`: everything about a job that is not a file, a function or its arguments."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from applier.associations import closest_first
from applier.concurrency import ConcurrencyStyle
from applier.errors import ControlsError
from applier.options import GridOptions, OutputOptions, ReadOptions, RunOptions
from applier.progress import Progress, SilentProgress

__all__ = ["ApplierControls"]

# RIOS's name of an option, which is also an attribute of the controls: its group and field.
_OPTIONS: dict[str, tuple[str, str]] = {
    "windowxsize": ("grid", "window_xsize"),
    "windowysize": ("grid", "window_ysize"),
    "overlap": ("grid", "overlap"),
    "footprint": ("grid", "footprint"),
    "referenceImage": ("grid", "reference_image"),
    "layerselection": ("read", "layers"),
    "drivername": ("output", "driver"),
    "creationoptions": ("output", "creation_options"),
    "statsIgnore": ("output", "stats_ignore"),
    "concurrency": ("run", "concurrency"),
    "progress": ("run", "progress"),
    "jobName": ("run", "job_name"),
    "tempdir": ("run", "tempdir"),
    "checkpoint": ("run", "checkpoint"),
    "onBlockError": ("run", "on_block_error"),
}
_GROUPS_BY_IMAGE = ("read", "output")

_NOT_YET = frozenset(
    {
        "setAllowOverviewsGdalwarp",
        "setAlltouched",
        "setApproxStats",
        "setAutoColorTableType",
        "setBurnAttribute",
        "setBurnValue",
        "setCalcStats",
        "setCallBeforeClose",
        "setFilesForExtent",
        "setFilterSQL",
        "setInputNoDataValue",
        "setLayerNames",
        "setOmitBasicStats",
        "setOmitHistogram",
        "setOmitPyramids",
        "setOverviewAggregationType",
        "setOverviewLevels",
        "setOverviewMinDim",
        "setReferencePixgrid",
        "setResampleMethod",
        "setSinglePassBasicStats",
        "setSinglePassHistogram",
        "setSinglePassPyramids",
        "setThematic",
        "setVectorDatatype",
        "setVectorNull",
        "setVectorlayer",
    }
)
_OBSOLETE = {
    "setJobManagerType": "use setConcurrencyStyle",
    "setLoggingStream": "leave it out: messages go to Python's logging",
    "setNumThreads": "use setConcurrencyStyle",
}


class ApplierControls:
    """Settings of a job, each with a sensible default.

    Setters that take an `imagename` set the option for that symbolic name only, over what is set for
    all; a list of files shares one name. Values are checked when they are set. What RIOS keeps as
    attributes (``controls.overlap``) can be read and assigned under the same name.

    The environment variables ``APPLIER_WINDOW_XSIZE`` and ``APPLIER_WINDOW_YSIZE`` give the window size
    of controls that do not set one.

    Raises
    ------
    ControlsError
        On a value that makes no sense; the message shows a call that does.

    Examples
    --------
    >>> controls = ApplierControls()
    >>> controls.setOverlap(2)
    >>> controls.setStatsIgnore(255)
    >>> controls.setStatsIgnore(None, imagename="ndvi")
    >>> controls.output_options("ndvi").stats_ignore is None
    True
    >>> controls.output_options("classes").stats_ignore
    255
    >>> controls
    ApplierControls(overlap=2, statsIgnore=255, statsIgnore['ndvi']=None)
    """

    def __init__(self) -> None:
        groups = {
            "grid": GridOptions.from_environment(),
            "read": ReadOptions(),
            "output": OutputOptions(),
            "run": RunOptions(),
        }
        vars(self).update(_groups=groups, _by_image={})

    # -- the working grid -------------------------------------------------------------------------

    def setWindowXsize(self, windowxsize: int) -> None:
        """Set the number of columns of a block, in pixels (None: automatic)."""
        self.setOptionForImagename("windowxsize", None, windowxsize)

    def setWindowYsize(self, windowysize: int) -> None:
        """Set the number of rows of a block, in pixels (None: automatic)."""
        self.setOptionForImagename("windowysize", None, windowysize)

    def setWindowSize(self, windowxsize: int, windowysize: int) -> None:
        """Set columns and rows of a block, in pixels."""
        self.setWindowXsize(windowxsize)
        self.setWindowYsize(windowysize)

    def setOverlap(self, overlap: int) -> None:
        """Set the margin added on every side of a block, in pixels (default 0).

        Arrays then have ``rows + 2 * overlap`` rows and ``cols + 2 * overlap`` columns, outputs as
        well as inputs. Where the margin lies outside an input it is filled with that input's nodata
        value, else 0.
        """
        self.setOptionForImagename("overlap", None, overlap)

    def setFootprintType(self, footprint: int) -> None:
        """Set how the extent follows from the inputs.

        Parameters
        ----------
        footprint : int
            `applier.INTERSECTION` (default), `applier.UNION`, or `applier.BOUNDS_FROM_REFERENCE`: the
            extent of the reference image.
        """
        self.setOptionForImagename("footprint", None, footprint)

    def setReferenceImage(self, referenceImage: str | os.PathLike[str] | None) -> None:
        """Set the image, by symbolic or file name, whose grid is the working grid's."""
        self.setOptionForImagename("referenceImage", None, referenceImage)

    # -- inputs and outputs -----------------------------------------------------------------------

    def selectInputImageLayers(
        self, layerselection: Sequence[int] | None, imagename: str | None = None
    ) -> None:
        """Set which layers (bands) are read, as a list of numbers from 1, in the order wanted."""
        self.setOptionForImagename("layerselection", imagename, layerselection)

    def setOutputDriverName(self, drivername: str | None, imagename: str | None = None) -> None:
        """Set the format of outputs by GDAL's short name (default: from the extension)."""
        self.setOptionForImagename("drivername", imagename, drivername)

    def setCreationOptions(
        self, creationoptions: Iterable[str] | Mapping[str, Any] | None, imagename: str | None = None
    ) -> None:
        """Set GDAL's creation options, as a list of 'KEY=VALUE' or a dict.

        They are added to the format's defaults one by one, and win over them. A list for an `imagename`
        replaces the list for all.
        """
        self.setOptionForImagename("creationoptions", imagename, creationoptions)

    def setStatsIgnore(self, statsIgnore: int | float | None, imagename: str | None = None) -> None:
        """Set the nodata value written to outputs (default 0; None: none)."""
        self.setOptionForImagename("statsIgnore", imagename, statsIgnore)

    # -- the job ----------------------------------------------------------------------------------

    def setConcurrencyStyle(self, concurrencyStyle: ConcurrencyStyle) -> None:
        """Set the number and kind of workers (default: none)."""
        self.setOptionForImagename("concurrency", None, concurrencyStyle)

    def setProgress(self, progress: Progress | None) -> None:
        """Set the progress object; None for silence (default: a bar, where there is a terminal)."""
        self.setOptionForImagename("progress", None, SilentProgress() if progress is None else progress)

    def setJobName(self, jobName: str | None) -> None:
        """Set a name for the job, shown in its progress and in what it starts."""
        self.setOptionForImagename("jobName", None, jobName)

    def setTempdir(self, tempdir: str | os.PathLike[str] | None) -> None:
        """Set the directory of temporary files (default: chosen to fit)."""
        self.setOptionForImagename("tempdir", None, tempdir)

    def setOnBlockError(self, onBlockError: str) -> None:
        """Set what becomes of the job when a block cannot be computed.

        That is when the function raises on it, when it ends its worker process, or when it takes longer than
        ``blockTimeout``; each as often as `ConcurrencyStyle` says.

        Parameters
        ----------
        onBlockError : {'raise', 'skip'}
            'raise' (default) ends the job with an error that names the block; no output is written. 'skip'
            goes on without the block: its pixels become the output's nodata value (0 where there is none),
            `otherArgs` are as if it had never been tried, and ``skippedBlocks`` of what `applier.apply`
            returns says why; there is a `BlocksSkippedWarning` at the end. If no block at all can be
            computed the job ends with the error of the first.

        Notes
        -----
        With 'skip', workers in the main process (`CW_NONE`, `CW_THREADS`) copy `otherArgs` before every
        block, which takes time where they are large.
        """
        self.setOptionForImagename("onBlockError", None, onBlockError)

    def setCheckpoint(self, directory: str | os.PathLike[str] | None) -> None:
        """Set a directory in which results are kept until the job is done (default: None, nothing is kept).

        If the job does not come to its end (killed, an exception, no power), the same call resumes it: only
        blocks that were not kept are computed. What the function collects in ``otherArgs`` stays exact. A
        changed input, function or option that matters for the result is noticed and refused; the number and
        kind of workers may be another. When the outputs are complete, the directory is removed.

        Parameters
        ----------
        directory : str or os.PathLike or None
            A directory of this job's own, which is made if only its parent is there. It needs room for all
            results, compressed as in the outputs, and a copy of ``otherArgs`` for each time that a worker
            changed its own. Others may not be able to write to it.
        """
        self.setOptionForImagename("checkpoint", None, directory)

    # -- reading the options ----------------------------------------------------------------------

    @property
    def grid(self) -> GridOptions:
        """The options of the working grid."""
        group: GridOptions = self._groups["grid"]
        return group

    @property
    def run(self) -> RunOptions:
        """The options of the job as a whole."""
        group: RunOptions = self._groups["run"]
        return group

    def read_options(self, imagename: str) -> ReadOptions:
        """Return the options of one input: those for all, with its own over them."""
        group: ReadOptions = self._resolve("read", imagename)
        return group

    def output_options(self, imagename: str) -> OutputOptions:
        """Return the options of one output: those for all, with its own over them."""
        group: OutputOptions = self._resolve("output", imagename)
        return group

    def setOptionForImagename(self, option: str, imagename: str | None, value: Any) -> None:
        """Set an option by RIOS's name for it; the setters are more readable.

        Parameters
        ----------
        option : str
            E.g. ``'statsIgnore'``.
        imagename : str or None
            The symbolic name it is for, None for all.
        value
            Its value.

        Raises
        ------
        ControlsError
            If there is no such option, if it cannot differ between images, or if the value is bad.
        """
        group, field = _find(option)
        if imagename is None:
            self._groups[group] = replace(self._groups[group], **{field: value})
            return
        if group not in _GROUPS_BY_IMAGE or not isinstance(imagename, str):
            raise ControlsError(
                f"{option} for imagename {imagename!r}: "
                + (
                    "an imagename is the name of an attribute of infiles or outfiles"
                    if group in _GROUPS_BY_IMAGE
                    else f"{option} is the same for all images; leave the imagename out"
                )
            )
        checked = replace(self._groups[group], **{field: value})
        self._by_image.setdefault(imagename, {})[option] = getattr(checked, field)

    def getOptionForImagename(self, option: str, imagename: str | None) -> Any:
        """Return an option, by RIOS's name for it, as it holds for a symbolic name (None: for all)."""
        group, field = _find(option)
        return getattr(self._resolve(group, imagename), field)

    def check_imagenames(self, input_names: Iterable[str], output_names: Iterable[str]) -> None:
        """Check that every imagename an option was set for is that of an input or an output.

        Parameters
        ----------
        input_names, output_names : iterable of str
            The symbolic names on ``infiles`` and ``outfiles``.

        Raises
        ------
        ControlsError
            For the first that is neither.
        """
        known = list(dict.fromkeys((*input_names, *output_names)))
        for imagename, options in self._by_image.items():
            if imagename not in known:
                raise ControlsError(
                    f"controls set {', '.join(options)} for imagename {imagename!r}, which is neither an "
                    f"input nor an output; the names are: {_listed(imagename, known) or 'none'}"
                )

    def _resolve(self, group: str, imagename: str | None) -> Any:
        own = self._by_image.get(imagename, {})
        changes = {_OPTIONS[option][1]: own[option] for option in own if _OPTIONS[option][0] == group}
        return replace(self._groups[group], **changes)

    # -- RIOS's attributes ------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle ask before there are any attributes
            raise AttributeError(name)
        if name in _OPTIONS:
            return self.getOptionForImagename(name, None)
        raise AttributeError(_absent(name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OPTIONS:
            raise AttributeError(_absent(name))
        self.setOptionForImagename(name, None, value)

    def __repr__(self) -> str:
        default = ApplierControls()
        shown = [
            f"{option}={getattr(self, option)!r}"
            for option in _OPTIONS
            if getattr(self, option) != getattr(default, option)
        ]
        for imagename, options in self._by_image.items():
            shown += [f"{option}[{imagename!r}]={value!r}" for option, value in options.items()]
        return f"ApplierControls({', '.join(shown)})"


def _find(option: str) -> tuple[str, str]:
    if option not in _OPTIONS:
        raise ControlsError(f"there is no option {option!r}; there are: {_listed(option, _OPTIONS)}")
    return _OPTIONS[option]


def _absent(name: str) -> str:
    """Say why the controls have no attribute of this name."""
    if name in _NOT_YET:
        return f"ApplierControls.{name} is not available yet; leave the call out, or do that step separately"
    if name in _OBSOLETE:
        return f"ApplierControls.{name} is obsolete; {_OBSOLETE[name]}"
    setters = [item for item in vars(ApplierControls) if item.startswith(("set", "select"))]
    return f"ApplierControls has no {name!r}; closest are: {_listed(name, [*setters, *_OPTIONS], 3)}"


def _listed(name: str, known: Iterable[str], count: int | None = None) -> str:
    return ", ".join(closest_first(name, known)[:count])
