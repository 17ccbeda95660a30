"""Calling the user's function, and what becomes of what it raises. The same in every kind of worker."""

from __future__ import annotations

import pickle
import traceback
import types
from typing import Any, NamedTuple

import cloudpickle

from computemanager.errors import BlockError
from computemanager.model import Job

__all__ = ["Failure", "block_error", "call"]


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


def block_error(job: Job, index: int, block: Any, worker: str, failure: Failure) -> BlockError:
    """The error to raise (from ``failure.original``) in the caller."""
    original = failure.original
    return BlockError(
        f"{job.name} raised {type(original).__name__} on block {index} (in {worker}): {original}\n"
        f"The worker's traceback:\n{failure.traceback_text}",
        original=original,
        worker_traceback=failure.traceback_text,
        block_index=index,
        block=block,
        worker=worker,
    )
