"""Calling the user's function, what becomes of what it raises, and how what it changed is undone.

The same in every kind of worker.
"""

from __future__ import annotations

import pickle
import traceback
import types
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from computemanager import payload
from computemanager.errors import BlockError, PayloadError
from computemanager.model import Job, Skipped

__all__ = ["Failure", "Snapshot", "block_error", "call", "skipped_block"]

_REASON_CHARACTERS = 300


class Failure(NamedTuple):
    """What the user's function raised, fit to travel."""

    original: BaseException
    traceback_text: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """From an exception that has just been caught."""
        inner = error.__traceback__
        while inner is not None and _is_ours(inner):
            inner = inner.tb_next
        # All of it is ours where we are the ones who complain.
        shown = error.__traceback__ if inner is None else inner
        return cls(error, "".join(traceback.format_exception(type(error), error, shown)))

    def dumps(self) -> bytes:
        """Pickle it; an exception that would not survive the journey is replaced by its type and text."""
        try:
            data: bytes = cloudpickle.dumps(tuple(self), 5)
            pickle.loads(data)
        except Exception:
            stand_in = RuntimeError(f"{type(self.original).__name__}: {self.original}")
            data = cloudpickle.dumps((stand_in, self.traceback_text), 5)
        return data


def _is_ours(frame: types.TracebackType) -> bool:
    """Whether a frame is of this library: the user's story starts below those."""
    return str(frame.tb_frame.f_globals.get("__name__")).partition(".")[0] in ("applier", "computemanager")


def call(job: Job, block: Any, state: Any) -> Any:
    """Call the job's function on a block."""
    return job.function(block) if state is None else job.function(block, state)


class Snapshot:
    """A job's state as it is now, to go back to after a try of a block that failed.

    Parameters
    ----------
    state : object
        Has to be something that pickle or cloudpickle can take.

    Attributes
    ----------
    pickled : bytes
        The state.

    Raises
    ------
    PayloadError
        If it cannot be pickled.

    Examples
    --------
    >>> totals = {"sum": 5}
    >>> before = Snapshot(totals)
    >>> totals["sum"] = totals["half a block"] = 7
    >>> before.restore(totals)
    >>> totals
    {'sum': 5}
    """

    def __init__(self, state: Any) -> None:
        try:
            self.pickled = payload.dumps_any(state)
        except PayloadError as error:
            raise PayloadError(
                f"the job's state cannot be copied: {error}. Each thread needs a copy, and trying a block "
                f"again, going on without one and keeping a checkpoint do. Take out of it what cannot be "
                f"pickled (open files, locks, connections), or use CW_NONE without any of these"
            ) from error

    def copy(self) -> Any:
        """A new object that equals the state at that time."""
        return pickle.loads(self.pickled)

    def restore(self, state: Any) -> None:
        """Make the state itself, of which others hold references, what it was.

        A dict, list, set, bytearray or array gets its items back, and any object with a ``__dict__`` its
        attributes. Items and attributes become new objects. What has neither, such as an object with
        nothing but ``__slots__``, stays as it is.
        """
        before = self.copy()
        if before is state:
            return  # pickled by its name, as a module or class is
        if isinstance(state, (dict, set)):
            state.clear()
            state.update(before)
        elif isinstance(state, (list, bytearray)):
            state[:] = before
        elif isinstance(state, np.ndarray):
            state[...] = before
        if hasattr(state, "__dict__"):
            vars(state).clear()
            vars(state).update(vars(before))


def skipped_block(index: int, block: Any, worker: str, failure: Failure, attempts: int) -> Skipped:
    """What to say of a block on which the function raised, in a job that goes on without it."""
    original = failure.original
    reason = " ".join(f"{type(original).__name__}: {original}".split())
    if len(reason) > _REASON_CHARACTERS:
        reason = reason[: _REASON_CHARACTERS - 3] + "..."
    return Skipped(index, block, reason, failure.traceback_text, attempts, worker)


def block_error(
    job: Job, index: int, block: Any, worker: str, failure: Failure, attempts: int = 1
) -> BlockError:
    """The error to raise (from ``failure.original``) in the caller."""
    original = failure.original
    tries = f", tried {attempts} times" if attempts > 1 else ""
    return BlockError(
        f"{job.name} raised {type(original).__name__} on block {index} (in {worker}{tries}): {original}\n"
        f"The worker's traceback:\n{failure.traceback_text}",
        original=original,
        worker_traceback=failure.traceback_text,
        block_index=index,
        block=block,
        worker=worker,
    )
