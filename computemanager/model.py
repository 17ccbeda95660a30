"""The values that every part of the package passes around. Nothing here does any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from computemanager.errors import SettingsError

__all__ = ["Job", "Outcome", "RunStatistics", "Settings"]


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
    """

    block_index: int
    value: Any
    worker: str


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
        Blocks handed out again because their worker was lost.
    workers_lost : int
        Workers that ended before they were told to.
    first_outcome_s : float
        Seconds from the start of the run to the first accepted outcome.
    """

    workers: int = 0
    blocks: int = 0
    retries: int = 0
    workers_lost: int = 0
    first_outcome_s: float = 0.0


@dataclass(frozen=True)
class Settings:
    """How a manager runs a job. Every kind understands all of them, or has no use for them.

    Parameters
    ----------
    num_workers : int
        Workers to run, at least 1. ``CW_NONE`` has just the caller.
    window_blocks : int, optional
        How many blocks may be between pulled from the plan and taken by the caller: the bound on memory.
        Default: a few leases' worth for every worker, at least 1024.
    ordered : bool
        Yield outcomes in the order of the plan (default), or as they come.
    worker_environment : mapping of str to str
        Environment variables for worker processes, beside the thread limits.
    threads_per_worker : int
        What each worker process may use for OpenMP, BLAS, MKL, Numba, NumExpr and GDAL, unless the
        environment says otherwise already. Default 1: the cores are busy with workers.
    start_timeout_s : float, optional
        Give up when no worker has started after so many seconds. Default: none.
    outcome_timeout_s : float, optional
        Give up when no block has been finished for so many seconds. Default: none.
    max_kills_per_block : int
        A block whose worker process dies while on it is tried again; after so many deaths the job ends.
    shared_memory : bool
        Pass large arrays through shared memory where worker and caller are on one host (default).

    Examples
    --------
    >>> Settings(num_workers=2).window
    1024
    """

    num_workers: int = 1
    window_blocks: int | None = None
    ordered: bool = True
    worker_environment: Mapping[str, str] = field(default_factory=dict)
    threads_per_worker: int = 1
    start_timeout_s: float | None = None
    outcome_timeout_s: float | None = None
    max_kills_per_block: int = 3
    shared_memory: bool = True

    def __post_init__(self) -> None:
        for name in ("num_workers", "threads_per_worker", "max_kills_per_block", "window_blocks"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SettingsError(f"{name} is {value!r}; give a whole number of at least 1")
        for name in ("start_timeout_s", "outcome_timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"{name} is {value!r}; give seconds above 0, or None for no limit")

    @property
    def window(self) -> int:
        """The window in blocks, with its default worked out."""
        return self.window_blocks or max(1024, 64 * self.num_workers)
