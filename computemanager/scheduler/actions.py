"""What the scheduler tells its driver to do: the closed union `Action`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

__all__ = ["Accept", "Action", "Cause", "Dispatch", "GiveUp", "Recall", "Skip", "StartHosts"]


class Cause(Enum):
    """Why a block, or the whole job, cannot be finished."""

    USER_EXCEPTION = "user exception"
    """The user's function raised; its worker is well."""

    POISON_BLOCK = "poison block"
    """A block's worker process died each time it was tried; other blocks are fine."""

    BLOCK_TIMEOUT = "block timeout"
    """A block took longer than the caller allows each time it was tried, and its worker was ended for it."""

    LOST_TOO_OFTEN = "lost too often"
    """A block's host was lost each time, with all that it held; nothing says that the block is at fault."""

    NO_WORKERS = "no workers"
    """Workers end before they join, or keep dying without finishing anything; no single block is to blame."""

    START_TIMEOUT = "start timeout"
    """Workers are still starting, but the caller's limit for the first one has passed."""

    TOO_FEW_WORKERS = "too few workers"
    """Some workers joined, but for as long as the caller's limit fewer than it wants were there."""

    OUTCOME_TIMEOUT = "outcome timeout"
    """Workers are there and busy, but no block was finished within the caller's limit."""


class Dispatch(NamedTuple):
    """Send these blocks to this worker under this lease."""

    worker: str
    lease: int
    blocks: Sequence[int]


class Accept(NamedTuple):
    """These blocks, handed in by this worker just now, count: each is named here once in a job's life.

    `positions` says which of the answer's values they are, where some of them are done elsewhere already;
    None means all.
    """

    worker: str
    blocks: Sequence[int]
    positions: Sequence[int] | None = None


class Recall(NamedTuple):
    """Ask this worker to hand back this lease, if it has not begun with it."""

    worker: str
    lease: int


class StartHosts(NamedTuple):
    """Launch so many hosts."""

    number: int


class Skip(NamedTuple):
    """Go on without this block: it is finished, and has no value."""

    block: int
    cause: Cause
    attempts: int = 0
    worker: str = ""
    evidence: str = ""


class GiveUp(NamedTuple):
    """End the job with an error."""

    cause: Cause
    block: int | None = None
    attempts: int = 0
    worker: str = ""
    evidence: str = ""


Action = Dispatch | Accept | Recall | StartHosts | Skip | GiveUp
