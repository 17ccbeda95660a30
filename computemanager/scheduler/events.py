"""What can happen to a job, as the scheduler sees it: the closed union `Event`.

A *host* is what a provider starts, a *worker* is what takes leases: locally one process is both, remotely a
host is an agent whose slots are its workers.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "Answered",
    "Event",
    "GaveBack",
    "HostBack",
    "HostDraining",
    "HostEnded",
    "HostSilent",
    "HostStarted",
    "PlanEnded",
    "Planned",
    "Raised",
    "Tick",
    "WorkerJoined",
    "WorkerLost",
]


class Planned(NamedTuple):
    """So many more blocks were pulled from the plan; they are numbered on from the last."""

    number: int


class PlanEnded(NamedTuple):
    """The plan has no more blocks."""


class HostStarted(NamedTuple):
    """A host was launched. None of its workers has joined yet."""

    host: str


class HostEnded(NamedTuple):
    """A host is gone, and all its workers with it. What they had been lent is lost, and no block is to blame.

    `hopeless` says that another one would end the same way: it is not replaced.
    """

    host: str
    evidence: str
    hopeless: bool = False


class HostSilent(NamedTuple):
    """Nothing has been heard of a host for a while. It may come back."""

    host: str


class HostBack(NamedTuple):
    """A silent host has been heard of again."""

    host: str


class HostDraining(NamedTuple):
    """A host is about to end: it finishes what it has begun, and takes no more."""

    host: str


class WorkerJoined(NamedTuple):
    """A worker has the job: it can take blocks.

    Without a `host` it is its own. `ends_at` is the time, on the clock of all events, at which it will be
    gone; None where nobody has set one.
    """

    worker: str
    host: str = ""
    ends_at: float | None = None


class WorkerLost(NamedTuple):
    """A worker that had joined is gone; its host may live on.

    `running` is the block it was on when it died; None where that is not known, or it was between blocks.
    `timed_out` says that it was ended because that block took too long.
    """

    worker: str
    running: int | None
    evidence: str
    timed_out: bool = False


class Answered(NamedTuple):
    """A worker hands in the next `number` blocks of a lease, in the lease's order.

    `seconds` is what the worker spent on them, `overhead_s` what it spent once for the whole answer, and
    `starved` says that it had been waiting for this lease with nothing to do.
    """

    worker: str
    lease: int
    number: int
    seconds: float
    overhead_s: float = 0.0
    starved: bool = False


class Raised(NamedTuple):
    """The user's function raised on the block at `position` of a lease, counted from the lease's first.

    The worker is well, and has dropped the rest of the lease. What comes before `position` and has not been
    answered was not handed in.
    """

    worker: str
    lease: int
    position: int


class GaveBack(NamedTuple):
    """A worker hands back all that it has not answered of a lease: it has not begun with it."""

    worker: str
    lease: int


class Tick(NamedTuple):
    """Nothing happened but the time: sent when `next_deadline` has come."""


Event = (
    Planned
    | PlanEnded
    | HostStarted
    | HostEnded
    | HostSilent
    | HostBack
    | HostDraining
    | WorkerJoined
    | WorkerLost
    | Answered
    | Raised
    | GaveBack
    | Tick
)
