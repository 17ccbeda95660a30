"""Every exception this package raises on purpose.

The axis of the hierarchy is whose turn it is to act::

    ComputeManagerError
    ├── SettingsError        the caller asked for something that cannot be
    ├── PayloadError         the function or an argument cannot travel to a worker
    ├── BlockError           the caller's function raised on a block
    ├── PoisonBlockError     a block killed its worker again and again
    ├── BlockTimeoutError    a block takes longer than the caller allows
    ├── WorkersLostError     workers would not start, or none is left
    ├── WaitTimeoutError     a time limit that the caller set has passed
    ├── CheckpointError      a checkpoint that is another job's, or cannot be read
    └── InternalError        a bug of ours

Each also inherits the builtin that a caller would naturally catch. A message says what happened,
where, and what to do about it; the same facts are attributes.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BlockError",
    "BlockTimeoutError",
    "CheckpointError",
    "ComputeManagerError",
    "InternalError",
    "PayloadError",
    "PoisonBlockError",
    "SettingsError",
    "WaitTimeoutError",
    "WorkersLostError",
]


class ComputeManagerError(Exception):
    """Root of all exceptions raised on purpose by `computemanager` and `applier`."""


class SettingsError(ComputeManagerError, ValueError):
    """A setting, or a combination of settings, that makes no sense."""


class PayloadError(ComputeManagerError, TypeError):
    """The user's function, or something it needs, cannot be sent to another process."""


class BlockError(ComputeManagerError, RuntimeError):
    """The user's function raised on a block.

    The original exception is ``__cause__`` (and `original`), so ``raise ... from`` reads naturally in
    a traceback.

    Attributes
    ----------
    original : BaseException
        What the function raised. An exception that could not travel from the worker is stood in for
        by a `RuntimeError` with its type and text.
    worker_traceback : str
        The traceback as the worker formatted it.
    block_index : int
        Number of the block in the plan, from 0.
    block : Any
        The block itself (for rasters an `applier.raster.tiles.Tile`), or None where it is unknown.
    worker : str
        Name of the worker that ran it.
    """

    def __init__(
        self,
        message: str,
        *,
        original: BaseException,
        worker_traceback: str,
        block_index: int,
        block: Any = None,
        worker: str = "",
    ) -> None:
        super().__init__(message)
        self.original = original
        self.worker_traceback = worker_traceback
        self.block_index = block_index
        self.block = block
        self.worker = worker


class PoisonBlockError(ComputeManagerError, RuntimeError):
    """One block ended the worker process that ran it, every time it was tried.

    Attributes
    ----------
    block_index : int
        Number of the block in the plan, from 0.
    attempts : int
        How many workers it ended.
    evidence : str
        How the last of them ended: signal or exit code, peak memory, last lines of its output.
    """

    def __init__(self, message: str, *, block_index: int, attempts: int, evidence: str) -> None:
        super().__init__(message)
        self.block_index = block_index
        self.attempts = attempts
        self.evidence = evidence


class BlockTimeoutError(ComputeManagerError, TimeoutError):
    """One block took longer than the caller's limit, every time it was tried.

    Attributes
    ----------
    block_index : int
        Number of the block in the plan, from 0.
    attempts : int
        How often it was tried.
    limit_s : float
        The limit, in seconds.
    """

    def __init__(self, message: str, *, block_index: int, attempts: int, limit_s: float) -> None:
        super().__init__(message)
        self.block_index = block_index
        self.attempts = attempts
        self.limit_s = limit_s


class CheckpointError(ComputeManagerError, ValueError):
    """A checkpoint directory that holds another job, is in use, or cannot be read or written."""


class WorkersLostError(ComputeManagerError, RuntimeError):
    """Workers do not start, or die one after another without finishing a block."""


class WaitTimeoutError(ComputeManagerError, TimeoutError):
    """A time limit set by the caller (none is set by default) has passed."""


class InternalError(ComputeManagerError, AssertionError):
    """A state that the design excludes: a bug in this library, please report it.

    Attributes
    ----------
    story : list of str
        The last transitions of what the error is about, oldest first.
    """

    def __init__(self, message: str, story: list[str] | None = None) -> None:
        super().__init__(message + "".join(f"\n  {line}" for line in story or []))
        self.story = story or []
