"""What can happen to a job, as the scheduler sees it: the closed union `Event`."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "Answered",
    "Event",
    "Failed",
    "PlanEnded",
    "Planned",
    "StartFailed",
    "Tick",
    "WorkerJoined",
    "WorkerLost",
    "WorkerStarted",
]


class Planned(NamedTuple):
    """So many more blocks were pulled from the plan; they are numbered on from the last."""

    number: int


class PlanEnded(NamedTuple):
    """The plan has no more blocks."""


class WorkerStarted(NamedTuple):
    """A worker was launched. It has not said hello yet."""

    worker: str


class WorkerJoined(NamedTuple):
    """A worker has said hello and has the job: it can take blocks."""

    worker: str


class StartFailed(NamedTuple):
    """A worker ended before it joined."""

    worker: str
    evidence: str


class WorkerLost(NamedTuple):
    """A worker that had joined is gone.

    `running` is the block it was on when it died; None where that is not known, or it was between blocks.
    """

    worker: str
    running: int | None
    evidence: str


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


class Failed(NamedTuple):
    """The user's function raised on the next block of a lease."""

    worker: str
    lease: int


class Tick(NamedTuple):
    """Nothing happened but the time: sent when `next_deadline` has come."""


Event = (
    Planned | PlanEnded | WorkerStarted | WorkerJoined | StartFailed | WorkerLost | Answered | Failed | Tick
)
