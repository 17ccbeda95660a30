"""What the scheduler tells its driver to do: the closed union `Action`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

__all__ = ["Accept", "Action", "Cause", "Dispatch", "GiveUp", "StartWorkers"]


class Cause(Enum):
    """Why a job cannot be finished."""

    USER_EXCEPTION = "user exception"
    """The user's function raised; its worker is well."""

    POISON_BLOCK = "poison block"
    """A block's worker process died each time it was tried; other blocks are fine."""

    NO_WORKERS = "no workers"
    """Workers end before they join, or keep dying without finishing anything; no single block is to blame."""

    START_TIMEOUT = "start timeout"
    """Workers are still starting, but the caller's limit for the first one has passed."""

    OUTCOME_TIMEOUT = "outcome timeout"
    """Workers are there and busy, but no block was finished within the caller's limit."""


class Dispatch(NamedTuple):
    """Send these blocks to this worker under this lease."""

    worker: str
    lease: int
    blocks: Sequence[int]


class Accept(NamedTuple):
    """These blocks, handed in by this worker just now, count: each is named here once in a job's life."""

    worker: str
    blocks: Sequence[int]


class StartWorkers(NamedTuple):
    """Launch so many workers."""

    number: int


class GiveUp(NamedTuple):
    """End the job with an error."""

    cause: Cause
    block: int | None = None
    attempts: int = 0
    worker: str = ""
    evidence: str = ""


Action = Dispatch | Accept | StartWorkers | GiveUp
