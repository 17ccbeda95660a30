"""How far a job is: the progress objects of RIOS, a bar by tqdm, and what drives either.

A progress object has the methods of `Progress`. The engine calls a `ProgressReporter`, which counts
blocks and tells the object as much as it can show.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

__all__ = [
    "CUIProgressBar",
    "LogProgressBar",
    "Progress",
    "ProgressReporter",
    "SilentProgress",
    "TqdmProgress",
    "default_progress",
]


@runtime_checkable
class Progress(Protocol):
    """A progress object, as RIOS has them: shown on a terminal, in a log, or in a window.

    An object with an attribute ``steps_are_blocks`` that is true is told the number of blocks, total
    and done; any other is told 100 and whole percents, each once.
    """

    def setTotalSteps(self, steps: int) -> None:
        """Take note of the number of steps there are."""

    def setProgress(self, progress: int) -> None:
        """Show that this many steps are done."""

    def reset(self) -> None:
        """End this display; another may follow."""

    def setLabelText(self, text: str) -> None:
        """Show what is being done."""

    def wasCancelled(self) -> bool:
        """Tell whether the user wants the job to stop."""

    def displayException(self, trace: str) -> None:
        """Show the traceback of an exception."""

    def displayWarning(self, text: str) -> None:
        """Show a warning."""

    def displayError(self, text: str) -> None:
        """Show an error."""

    def displayInfo(self, text: str) -> None:
        """Show a message."""


class SilentProgress:
    """Progress that shows nothing."""

    def setTotalSteps(self, steps: int) -> None:
        """Do nothing."""

    def setProgress(self, progress: int) -> None:
        """Do nothing."""

    def reset(self) -> None:
        """Do nothing."""

    def setLabelText(self, text: str) -> None:
        """Do nothing."""

    def wasCancelled(self) -> bool:
        """Return False: there is nothing to cancel it with."""
        return False

    def displayException(self, trace: str) -> None:
        """Do nothing."""

    def displayWarning(self, text: str) -> None:
        """Do nothing."""

    def displayError(self, text: str) -> None:
        """Do nothing."""

    def displayInfo(self, text: str) -> None:
        """Do nothing."""


class CUIProgressBar(SilentProgress):
    """Percent on standard output, over and over on one line.

    Percents are only written to a terminal, so that a log file is not filled with them; messages are
    written to either.
    """

    def __init__(self) -> None:
        self._steps = 100

    def setTotalSteps(self, steps: int) -> None:
        """Set what 100 % is."""
        self._steps = steps

    def setProgress(self, progress: int) -> None:
        """Write the percent done."""
        if sys.stdout.isatty():
            self._write(f"\r{_percent(progress, self._steps):3d} %")

    def reset(self) -> None:
        """Go on to a new line."""
        if sys.stdout.isatty():
            self._write("\n")

    def setLabelText(self, text: str) -> None:
        """Write the text on a line of its own."""
        self._write(f"\n{text}\n")

    def displayException(self, trace: str) -> None:
        """Write the traceback."""
        self._write(f"\n{trace}\n")

    def displayWarning(self, text: str) -> None:
        """Write the warning."""
        self._write(f"\nWarning: {text}\n")

    def displayError(self, text: str) -> None:
        """Write the error."""
        self._write(f"\nError: {text}\n")

    def displayInfo(self, text: str) -> None:
        """Write the message."""
        self._write(f"\nInfo: {text}\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class LogProgressBar(SilentProgress):
    """Percent and messages as records of a logger, each percent once.

    Parameters
    ----------
    logger : logging.Logger, optional
        Where to log to; by default the logger ``applier.progress``.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger(__name__)
        self._steps = 100
        self._last: int | None = None

    def setTotalSteps(self, steps: int) -> None:
        """Set what 100 % is, and start again."""
        self._steps, self._last = steps, None

    def setProgress(self, progress: int) -> None:
        """Log the percent done, if it is another than the last."""
        percent = _percent(progress, self._steps)
        if percent != self._last:
            self._logger.info("%d %% done", percent)
            self._last = percent

    def reset(self) -> None:
        """Forget what was logged."""
        self._last = None

    def setLabelText(self, text: str) -> None:
        """Log the text."""
        self._logger.info("%s", text)

    def displayException(self, trace: str) -> None:
        """Log the traceback as an error."""
        self._logger.error("%s", trace)

    def displayWarning(self, text: str) -> None:
        """Log the warning."""
        self._logger.warning("%s", text)

    def displayError(self, text: str) -> None:
        """Log the error."""
        self._logger.error("%s", text)

    def displayInfo(self, text: str) -> None:
        """Log the message."""
        self._logger.info("%s", text)


class TqdmProgress(SilentProgress):
    """A bar by tqdm on standard error: blocks done and in all, rate, time left.

    Parameters
    ----------
    **settings
        Passed to tqdm, e.g. ``file=``, ``ncols=`` or ``mininterval=`` (seconds).
    """

    steps_are_blocks = True

    def __init__(self, **settings: Any) -> None:
        self._settings = {"unit": "block", "miniters": 1, "dynamic_ncols": True, **settings}
        self._label = ""
        self._bar: Any = None

    def setTotalSteps(self, steps: int | None) -> None:
        """Start a bar of that many blocks; None where their number is not known."""
        self.reset()
        self._bar = _tqdm_class()(total=steps, desc=self._label or None, **self._settings)

    def setProgress(self, progress: int) -> None:
        """Show that this many blocks are done."""
        if self._bar is not None:
            self._bar.update(progress - self._bar.n)

    def reset(self) -> None:
        """Draw the bar for the last time, and leave it standing."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def setLabelText(self, text: str) -> None:
        """Show the text in front of the bar."""
        self._label = text
        if self._bar is not None:
            self._bar.set_description(text)

    def displayException(self, trace: str) -> None:
        """Write the traceback above the bar."""
        self._write(trace)

    def displayWarning(self, text: str) -> None:
        """Write the warning above the bar."""
        self._write(f"Warning: {text}")

    def displayError(self, text: str) -> None:
        """Write the error above the bar."""
        self._write(f"Error: {text}")

    def displayInfo(self, text: str) -> None:
        """Write the message above the bar."""
        self._write(text)

    def _write(self, text: str) -> None:
        file = self._settings.get("file") or sys.stderr
        if self._bar is None:
            file.write(text + "\n")
        else:
            self._bar.write(text, file=file)


def _tqdm_class() -> Any:
    """Make a class of tqdm's bars that starts no thread of its own and needs no lock between processes."""
    if _in_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm says so where the notebook has no widgets; text will do
            from tqdm.auto import tqdm as parent
    else:
        from tqdm.std import tqdm as parent  # type: ignore[assignment]
    return type("BlockBar", (parent,), {"monitor_interval": 0, "_lock": threading.RLock()})


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (a terminal IPython is not)."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def default_progress() -> Progress:
    """Choose a progress object: a bar on a terminal and in a notebook, else silence.

    Returns
    -------
    Progress
        A `TqdmProgress` or a `SilentProgress`.
    """
    stderr = sys.stderr  # None under pythonw
    if _in_notebook() or (stderr is not None and stderr.isatty()):
        return TqdmProgress()
    return SilentProgress()


class ProgressReporter:
    """Count blocks, and tell a progress object as much as it can show.

    Parameters
    ----------
    progress : Progress, optional
        An object with at least ``setTotalSteps`` and ``setProgress``; by default that of
        `default_progress`.

    Attributes
    ----------
    cancelled : bool
        Whether the object has said, when a block was done, that the user wants to stop.

    Examples
    --------
    >>> with ProgressReporter(SilentProgress()) as reporter:
    ...     reporter.start(total=2, label="ndvi")
    ...     reporter.advance()
    >>> reporter.done, reporter.cancelled
    (1, False)
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress: Any = default_progress() if progress is None else progress
        self._counts_blocks = bool(getattr(self._progress, "steps_are_blocks", False))
        self._total: int | None = None
        self._shown: int | None = None
        self._is_open = False
        self.done = 0
        self.cancelled = False

    def start(self, total: int | None, label: str = "") -> None:
        """Begin to show progress.

        Parameters
        ----------
        total : int or None
            Blocks there are, None where nobody knows; objects that show percents then show none.
        label : str, optional
            What the job is called.
        """
        self._total, self._is_open = total, True
        self._shown, self.done = None, 0
        if label:
            self._tell("setLabelText", label)
        self._tell("setTotalSteps", total if self._counts_blocks else 100)
        self._show()

    def advance(self, blocks: int = 1) -> None:
        """Count blocks as done."""
        self.done += blocks
        self._show()
        self.cancelled = self.cancelled or bool(self._tell("wasCancelled"))

    def close(self) -> None:
        """End the display, finished or not. May be called any number of times."""
        if self._is_open:
            self._is_open = False
            self._tell("reset")

    def _show(self) -> None:
        if self._counts_blocks:
            step = self.done
        elif self._total is not None:
            step = _percent(self.done, self._total)
        else:
            return
        if step != self._shown:
            self._shown = step
            self._tell("setProgress", step)

    def _tell(self, method: str, *arguments: object) -> Any:
        # Objects written for RIOS have setTotalSteps and setProgress, and often no more.
        call = getattr(self._progress, method, None)
        return call(*arguments) if callable(call) else None

    def __enter__(self) -> ProgressReporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _percent(done: int, total: int) -> int:
    """Return the whole percent; 100 only when all is done, also of nothing."""
    return 100 * done // total if total > 0 else 100
