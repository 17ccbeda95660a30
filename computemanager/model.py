"""The values that every part of the package passes around. Nothing here does any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from computemanager.errors import SettingsError

__all__ = ["Job", "Outcome", "RunStatistics", "Settings", "Skipped"]


@dataclass(frozen=True)
class Job:
    """What every worker needs once.

    Parameters
    ----------
    function : callable
        Called as ``function(block)``, or ``function(block, state)`` where `state` is given.
    state : object, optional
        Something that the function may change as it goes, such as a running total. Every worker works
        on a copy of its own; `ComputeWorkerManager.states` gives the copies back.
    name : str
        Shown in messages.

    Examples
    --------
    >>> Job(abs).function(-3)
    3
    """

    function: Callable[..., Any]
    state: Any = None
    name: str = "job"


class Skipped(NamedTuple):
    """A block that could not be computed, in a job that goes on without it.

    Attributes
    ----------
    block_index : int
        Number of the block in the plan, from 0.
    block : Any
        The block itself.
    reason : str
        Why, in a line: the exception, the signal that ended its worker, the time limit.
    traceback : str
        The traceback as the worker formatted it; empty where a worker ended or a time limit passed.
    attempts : int
        How many times it was tried.
    worker : str
        Name of the worker that tried it last.
    """

    block_index: int
    block: Any
    reason: str
    traceback: str = ""
    attempts: int = 1
    worker: str = ""


class Outcome(NamedTuple):
    """What became of one block.

    Attributes
    ----------
    block_index : int
        Number of the block in the plan, from 0.
    value : Any
        What the function returned. Arrays may be views of memory shared with the worker, which is reused
        once the last reference to them is gone; holding on to them is safe.
    worker : str
        Name of the worker that computed it.
    skipped : Skipped or None
        Why there is no value, where the settings say to go on without.
    """

    block_index: int
    value: Any
    worker: str
    skipped: Skipped | None = None


@dataclass
class RunStatistics:
    """What a run cost, counted as it goes.

    Attributes
    ----------
    workers : int
        Workers that computed at least one block.
    blocks : int
        Blocks with an accepted outcome.
    retries : int
        Blocks handed out again because their worker was lost, or their first try failed.
    workers_lost : int
        Workers that ended before they were told to.
    speculated : int
        Blocks run a second time elsewhere because their worker was slow or silent.
    skipped : int
        Blocks gone on without.
    spilled_bytes : int
        Bytes of outcomes that waited for their turn on disk.
    stale_answers : int
        Answers that came too late to count: the block was done elsewhere.
    dropped_messages : int
        Messages that were not understood, not expected or not from a worker of this job.
    first_outcome_s : float
        Seconds from the start of the run to the first accepted outcome.
    """

    workers: int = 0
    blocks: int = 0
    retries: int = 0
    workers_lost: int = 0
    speculated: int = 0
    skipped: int = 0
    spilled_bytes: int = 0
    stale_answers: int = 0
    dropped_messages: int = 0
    first_outcome_s: float = 0.0


_WHOLE_NUMBERS = (
    "num_workers",
    "threads_per_worker",
    "window_blocks",
    "window_bytes",
    "max_raises_per_block",
    "max_kills_per_block",
    "max_timeouts_per_block",
    "max_losses_per_block",
    "min_workers",
)
_SECONDS = ("start_timeout_s", "outcome_timeout_s", "block_timeout_s", "grace_s", "max_runtime_s")


@dataclass(frozen=True)
class Settings:
    """How a manager runs a job. Every kind understands all of them, or has no use for them.

    Parameters
    ----------
    num_workers : int
        Workers to run, at least 1. ``CW_NONE`` has just the caller. Of remote kinds: agents, each of
        which may have several slots.
    window_blocks : int, optional
        How many blocks may be between pulled from the plan and taken by the caller. Default: a few
        hundred for every worker, at least 1024, so that one slow block does not hold the others up.
    window_bytes : int
        How many bytes of outcomes that wait for an earlier one are kept in memory. What is beyond that
        waits on disk, in `spill_directory` (default: the system's temporary directory).
    ordered : bool
        Yield outcomes in the order of the plan (default), or as they come.
    worker_environment : mapping of str to str
        Environment variables for worker processes, beside the thread limits.
    threads_per_worker : int
        What each worker process may use for OpenMP, BLAS, MKL, Numba, NumExpr and GDAL, unless the
        environment says otherwise already. Default 1: the cores are busy with workers.
    start_timeout_s : float, optional
        Give up when fewer than `min_workers` have been there for so many seconds, at the start or after
        workers were lost. Default: none.
    outcome_timeout_s : float, optional
        Give up when no block has been finished for so many seconds. Default: none.
    block_timeout_s : float, optional
        A block that takes longer is ended, with its worker process. Default: none.
    max_raises_per_block, max_kills_per_block, max_timeouts_per_block, max_losses_per_block : int
        How often a block is tried before the job ends, counted by cause: the function raised (default 1:
        not tried again), its worker process died on it (3), it took longer than `block_timeout_s` (2),
        its worker's machine was lost (20).
    on_error : str
        ``"raise"`` ends the job with the first block that cannot be computed, ``"skip"`` goes on without
        it; see `Outcome.skipped`.
    speculate : bool
        Run the blocks of a worker that is much slower than the others, or silent, a second time elsewhere;
        the first answer wins. Default True. Never where the job has a state: a block must not count twice.
    grace_s : float
        A remote worker that has not been heard of for so long is given up and its blocks are done
        elsewhere; so is main by its workers, which then end. Default 30.
    min_workers : int
        Workers without which a job does not go on; see `start_timeout_s`. Default 1.
    max_runtime_s : float, optional
        How long a remote worker lives, in seconds from its start, where what starts it sets a limit. It is
        given no block that it cannot finish by then.
    extra_params : mapping
        What the kind needs besides; see its manager. Not shown in the `repr`: there may be secrets in it.
    shared_memory : bool
        Pass large arrays through shared memory where worker and caller are on one host (default).

    Examples
    --------
    >>> Settings(num_workers=2).window
    1024
    """

    num_workers: int = 1
    window_blocks: int | None = None
    window_bytes: int = 256 * 1024**2
    spill_directory: str | None = None
    ordered: bool = True
    worker_environment: Mapping[str, str] = field(default_factory=dict)
    threads_per_worker: int = 1
    start_timeout_s: float | None = None
    outcome_timeout_s: float | None = None
    block_timeout_s: float | None = None
    max_raises_per_block: int = 1
    max_kills_per_block: int = 3
    max_timeouts_per_block: int = 2
    max_losses_per_block: int = 20
    on_error: str = "raise"
    speculate: bool = True
    grace_s: float = 30.0
    min_workers: int = 1
    max_runtime_s: float | None = None
    shared_memory: bool = True
    extra_params: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SettingsError(f"{name} is {value!r}; give a whole number of at least 1")
        for name in _SECONDS:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"{name} is {value!r}; give seconds above 0, or None for no limit")
        if self.grace_s is None:
            raise SettingsError(
                "grace_s is None; give seconds above 0: a lost worker must be noticed some time"
            )
        if self.on_error not in ("raise", "skip"):
            raise SettingsError(f"on_error is {self.on_error!r}; give 'raise' or 'skip'")

    @property
    def window(self) -> int:
        """The window in blocks, with its default worked out."""
        return self.window_blocks or max(1024, 256 * self.num_workers)
