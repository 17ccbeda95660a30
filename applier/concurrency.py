"""How many workers there are, of which kind, and what they do."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from applier.associations import closest_first
from applier.constants import (
    COMPUTE_WORKER_KINDS,
    CW_DASK,
    CW_EXECUTOR,
    CW_NONE,
    CW_PBS,
    CW_SLURM,
    CW_THREADS,
    LOCAL_KINDS,
)
from computemanager.errors import SettingsError

__all__ = ["ConcurrencyStyle", "ConcurrencyWarning"]

# Kinds whose engine already knows how many workers it has.
_ENGINE_KINDS = frozenset({CW_DASK, CW_EXECUTOR})
_BATCH_QUEUE_KINDS = frozenset({CW_PBS, CW_SLURM})
# Kinds that run the function in the main process, where nothing can end it from outside.
_IN_PROCESS_KINDS = frozenset({CW_NONE, CW_THREADS})
# Of failed tries of a block, each counted and bounded by itself.
_CAUSES = ("Raises", "Kills", "Timeouts", "Losses")


class ConcurrencyWarning(UserWarning):
    """A `ConcurrencyStyle` that works, but hardly as fast as its author hopes."""


@dataclass(frozen=True)
class ConcurrencyStyle:
    """Where and how many times at once the user's function runs, and who reads.

    Outputs are the same bytes whatever the style. By default there is no concurrency. The object
    cannot be changed once made. Parameters up to `computeBarrierTimeout` and their order are those of RIOS;
    the others have to be given by name.

    Parameters
    ----------
    numReadWorkers : int, default 0
        Threads of the main process that read blocks ahead. With 0, blocks are read when they are needed.
        Without effect where workers read for themselves: each then reads its own block, and more workers
        read more side by side.
    numComputeWorkers : int, default 0
        Workers that run the user's function. 0 is right for `CW_NONE`; for `CW_DASK` and `CW_EXECUTOR`
        it means as many as the engine has.
    computeWorkerKind : str, default `CW_NONE`
        One of `CW_NONE`, `CW_THREADS` (functions that release the GIL), `CW_SUBPROC` (processes on
        this machine), `CW_AGENTS` (agents that a command starts), `CW_ECS`, `CW_AWSBATCH`, `CW_PBS`,
        `CW_SLURM`, `CW_DASK`, `CW_EXECUTOR`, `CW_SSH`.
    computeWorkerExtraParams : dict, optional
        What the kind needs besides; see its manager. Copied, never changed, and its values are not
        shown in the `repr`.
    computeWorkersRead : bool, optional
        Whether workers read their own blocks. None, the default, leaves it to the kind; see
        `workers_read`.
    singleBlockComputeWorkers : bool, default False
        For `CW_PBS` and `CW_SLURM`: one batch job a block, in place of `numComputeWorkers` jobs.
    haveSharedTemp : bool, default True
        Whether workers see the same temporary directory as the main process.
    readBufferPopTimeout : float, optional
        Give up when a read worker has not read a block after so many seconds. None, the default here and
        below, waits for as long as it takes: a lost worker is noticed without a time limit.
    computeBufferPopTimeout : float, optional
        Give up when no block has been computed for so many seconds.
    computeBarrierTimeout : float, optional
        Give up when no worker is ready after so many seconds. Work starts with the first that is.
    readBufferInsertTimeout, computeBufferInsertTimeout : float, optional
        Accepted for RIOS's scripts; nothing here ever waits to put something into a buffer.
    blockTimeout : float, optional
        A block that takes longer than so many seconds is ended, with the worker process it is in, and tried
        again. None, the default, sets no limit. Not for `CW_NONE` and `CW_THREADS`, where nothing can end it.
    maxBlockRaises : int, default 1
        How often a block is tried on which the function raises, before the job ends or goes on without it
        (`ApplierControls.setOnBlockError`). By default it is not tried again.
    maxBlockKills : int, default 3
        The same for a block on which the worker process dies.
    maxBlockTimeouts : int, default 2
        The same for a block that takes longer than `blockTimeout`.
    maxBlockLosses : int, default 20
        The same for a block whose worker's machine is lost.
    speculation : bool, default True
        Whether the blocks of a worker that is much slower than the others, or silent, are run a second time
        elsewhere; the first answer counts. Never done where there are otherArgs, which would count twice.
    graceTime : float, default 30
        Seconds for which a remote worker may be silent before its blocks are run elsewhere.
    minComputeWorkers : int, default 1
        Workers without which the job does not go on; it gives up after `computeBarrierTimeout`.
    maxRuntime : float, optional
        Seconds that a remote worker lives at most, where what starts it sets a limit. It is given no block
        that it cannot finish by then.

    Raises
    ------
    SettingsError
        On a combination that makes no sense, or a value out of range.

    Warns
    -----
    ConcurrencyWarning
        If more local workers are asked for than there are processors.

    Examples
    --------
    >>> ConcurrencyStyle(numComputeWorkers=1, computeWorkerKind="CW_SUBPROC")
    ConcurrencyStyle(numComputeWorkers=1, computeWorkerKind='CW_SUBPROC')
    >>> ConcurrencyStyle(numComputeWorkers=4)
    Traceback (most recent call last):
    computemanager.errors.SettingsError: numComputeWorkers=4 needs a kind of worker: add \
computeWorkerKind=applier.CW_SUBPROC (processes) or applier.CW_THREADS (threads)
    """

    numReadWorkers: int = 0
    numComputeWorkers: int = 0
    computeWorkerKind: str = CW_NONE
    computeWorkerExtraParams: Mapping[str, Any] | None = None
    computeWorkersRead: bool | None = None
    singleBlockComputeWorkers: bool = False
    haveSharedTemp: bool = True
    readBufferInsertTimeout: float | None = None
    readBufferPopTimeout: float | None = None
    computeBufferInsertTimeout: float | None = None
    computeBufferPopTimeout: float | None = None
    computeBarrierTimeout: float | None = None
    blockTimeout: float | None = field(default=None, kw_only=True)
    maxBlockRaises: int = field(default=1, kw_only=True)
    maxBlockKills: int = field(default=3, kw_only=True)
    maxBlockTimeouts: int = field(default=2, kw_only=True)
    maxBlockLosses: int = field(default=20, kw_only=True)
    speculation: bool = field(default=True, kw_only=True)
    graceTime: float = field(default=30.0, kw_only=True)
    minComputeWorkers: int = field(default=1, kw_only=True)
    maxRuntime: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._check_values()
        self._check_combinations()
        processors = _processors()
        asked = self.numComputeWorkers + self.numReadWorkers
        if self.computeWorkerKind in LOCAL_KINDS and self.numComputeWorkers > 0 and asked > processors:
            warnings.warn(
                f"numComputeWorkers={self.numComputeWorkers} and numReadWorkers={self.numReadWorkers} are "
                f"more than the {processors} processors of this machine; fewer are usually as fast",
                ConcurrencyWarning,
                stacklevel=3,
            )

    def _check_values(self) -> None:
        """Check each parameter by itself."""
        for name in ("numReadWorkers", "numComputeWorkers"):
            object.__setattr__(self, name, _count(name, getattr(self, name)))
        for name in (*(f"maxBlock{cause}" for cause in _CAUSES), "minComputeWorkers"):
            object.__setattr__(self, name, _count(name, getattr(self, name), 1))
        if self.computeWorkerKind not in COMPUTE_WORKER_KINDS:
            known = closest_first(str(self.computeWorkerKind), COMPUTE_WORKER_KINDS)
            raise SettingsError(
                f"computeWorkerKind={self.computeWorkerKind!r} is not a kind of worker; "
                f"the kinds are {', '.join(known)}, each a constant of applier, e.g. applier.{known[0]}"
            )
        extra: Any = self.computeWorkerExtraParams
        if extra is not None and not isinstance(extra, Mapping):
            # The type alone: the value may hold a secret.
            raise SettingsError(
                f"computeWorkerExtraParams is a {type(extra).__name__}; "
                "give a dict of the kind's parameters, or None"
            )
        object.__setattr__(self, "computeWorkerExtraParams", None if extra is None else dict(extra))
        for name in ("computeWorkersRead", "singleBlockComputeWorkers", "haveSharedTemp", "speculation"):
            value: Any = getattr(self, name)
            if not isinstance(value, bool) and not (name == "computeWorkersRead" and value is None):
                raise SettingsError(f"{name}={value!r}: give True or False")
        for item in fields(self):
            if item.name.endswith("Timeout") or item.name == "maxRuntime":
                _check_timeout(item.name, getattr(self, item.name))
        if not _is_above_zero(self.graceTime):
            raise SettingsError(
                f"graceTime={self.graceTime!r}: give a number of seconds above 0; a lost worker must be "
                "noticed some time"
            )

    def _check_combinations(self) -> None:
        """Check the parameters against each other."""
        kind, count, single = self.computeWorkerKind, self.numComputeWorkers, self.singleBlockComputeWorkers
        if single and kind not in _BATCH_QUEUE_KINDS:
            raise SettingsError(
                f"singleBlockComputeWorkers=True with computeWorkerKind={kind}: one job a block is for batch "
                "queues only (CW_SLURM, CW_PBS); leave it out and set numComputeWorkers"
            )
        if single and count > 0:
            raise SettingsError(
                f"singleBlockComputeWorkers=True with numComputeWorkers={count}: with one job a block "
                "there is no number of workers; leave numComputeWorkers out"
            )
        if kind == CW_NONE and count > 0:
            raise SettingsError(
                f"numComputeWorkers={count} needs a kind of worker: add "
                "computeWorkerKind=applier.CW_SUBPROC (processes) or applier.CW_THREADS (threads)"
            )
        if kind == CW_NONE and self.computeWorkersRead:
            raise SettingsError(
                "computeWorkersRead=True without compute workers: set computeWorkerKind and "
                "numComputeWorkers, or leave computeWorkersRead out"
            )
        if kind == CW_NONE and self.computeWorkerExtraParams:
            raise SettingsError(
                "computeWorkerExtraParams without compute workers: set computeWorkerKind and "
                "numComputeWorkers, or leave computeWorkerExtraParams out"
            )
        if count == 0 and kind != CW_NONE and not single and kind not in _ENGINE_KINDS:
            raise SettingsError(
                f"computeWorkerKind={kind} with no workers: add numComputeWorkers, e.g. numComputeWorkers=4"
            )
        if self.blockTimeout is not None and kind in _IN_PROCESS_KINDS:
            raise SettingsError(
                f"blockTimeout={self.blockTimeout!r} with computeWorkerKind={kind}: a block that runs in the "
                "main process cannot be ended from outside. Use computeWorkerKind=applier.CW_SUBPROC, which "
                "runs blocks in processes of their own, or leave blockTimeout out"
            )
        if self.minComputeWorkers > max(count, 1) and not single and kind not in _ENGINE_KINDS:
            raise SettingsError(
                f"minComputeWorkers={self.minComputeWorkers} with numComputeWorkers={count}: the job would "
                "wait for more workers than it starts; raise numComputeWorkers, or lower minComputeWorkers"
            )

    @property
    def workers_read(self) -> bool:
        """Whether workers read their own blocks, None having been decided.

        As `computeWorkersRead` says. Where it is None: workers read, except that there are none for
        `CW_NONE`, and that for `CW_THREADS` and `CW_SUBPROC` a number of read workers asks for readers
        in the main process.
        """
        if self.computeWorkersRead is not None:
            return self.computeWorkersRead
        if self.computeWorkerKind in LOCAL_KINDS:
            return self.computeWorkerKind != CW_NONE and self.numReadWorkers == 0
        return True

    def __repr__(self) -> str:
        shown = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "computeWorkerExtraParams" and value is not None:
                shown.append(f"{item.name}={{{', '.join(f'{key!r}: ...' for key in value)}}}")
            elif value != item.default:
                shown.append(f"{item.name}={value!r}")
        return f"ConcurrencyStyle({', '.join(shown)})"


def _count(name: str, value: Any, least: int = 0) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or number < least:
        raise SettingsError(f"{name}={value!r}: give a whole number, {least} or more")
    return number


def _check_timeout(name: str, value: Any) -> None:
    if value is not None and not _is_above_zero(value):
        raise SettingsError(f"{name}={value!r}: give a number of seconds above 0, or None for no limit")


def _is_above_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _processors() -> int:
    """Count the processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
