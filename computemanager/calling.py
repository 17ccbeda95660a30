"""Calling the user's function, and what becomes of what it raises. The same in every kind of worker."""

from __future__ import annotations

import pickle
import traceback
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
        # The first frame is ours (`call`); the user's story starts below it.
        inner = error.__traceback__.tb_next if error.__traceback__ else None
        return cls(error, "".join(traceback.format_exception(type(error), error, inner)))

    def dumps(self) -> bytes:
        """Pickle it; an exception that would not survive the journey is replaced by its type and text."""
        try:
            data: bytes = cloudpickle.dumps(tuple(self), 5)
            pickle.loads(data)
        except Exception:
            stand_in = RuntimeError(f"{type(self.original).__name__}: {self.original}")
            data = cloudpickle.dumps((stand_in, self.traceback_text), 5)
        return data


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
