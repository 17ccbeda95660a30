"""What the farm sees of its workers, wherever they are: the seam between the loop and how messages travel.

`computemanager.slotcrew` is the crew of local processes, `computemanager.agentcrew` that of agents elsewhere.
A *host* is what is started and ends as a whole (a local slot, or an agent with its slots), a *worker* is what
takes leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from computemanager.wire import Message

__all__ = [
    "Answer",
    "Crew",
    "Draining",
    "Ended",
    "Failure",
    "GaveBackLease",
    "Happening",
    "Heard",
    "Joined",
    "Lost",
    "Refused",
    "Silent",
    "Started",
]


class Started(NamedTuple):
    """A host is there that the farm has not asked for, such as one that was started by hand."""

    host: str


class Joined(NamedTuple):
    """A worker has the job and can take blocks; `ends_at` is when it will be gone, on `time.monotonic`."""

    worker: str
    host: str
    ends_at: float | None = None


class Answer(NamedTuple):
    """A worker hands in values; the crew that gave this out can read them."""

    worker: str
    message: Message


class Failure(NamedTuple):
    """The user's function raised on the block at this position of a lease; `pickled` says what."""

    worker: str
    lease: int
    position: int
    pickled: Any


class GaveBackLease(NamedTuple):
    """A worker will not do the rest of a lease."""

    worker: str
    lease: int


class Lost(NamedTuple):
    """A worker has ended by itself, on the block at this place (lease, position) if it was on one."""

    worker: str
    place: tuple[int, int] | None
    evidence: str
    timed_out: bool = False


class Ended(NamedTuple):
    """A host is gone, with all its workers; `hopeless`: another one like it would be no better."""

    host: str
    evidence: str
    hopeless: bool = False


class Silent(NamedTuple):
    """A host has not been heard of for a while."""

    host: str


class Heard(NamedTuple):
    """A host that was silent is back, with all it had."""

    host: str


class Draining(NamedTuple):
    """A host will end soon and takes no more blocks."""

    host: str


class Refused(NamedTuple):
    """A worker cannot unpickle the job; its traceback."""

    worker: str
    text: str


Happening = (
    Started | Joined | Answer | Failure | GaveBackLease | Lost | Ended | Silent | Heard | Draining | Refused
)


class Crew(Protocol):
    """Workers of one kind of place, and how to talk to them."""

    @property
    def dropped_messages(self) -> int:
        """Messages so far that were not understood or not expected."""

    def start(self, number: int) -> Sequence[str]:
        """Start so many hosts; their names, which are never used again."""

    def set_job(self, pickled_job: bytes) -> None:
        """Give the job to all workers, those that come later included."""

    def look(self, timeout_s: float) -> Sequence[Happening]:
        """See what has happened, waiting up to `timeout_s` seconds for the first message."""

    def dispatch(self, worker: str, lease: int, blocks: Sequence[Any]) -> None:
        """Send blocks to a worker, or keep them for it while it cannot be reached."""

    def recall(self, worker: str, lease: int) -> None:
        """Ask a worker to give a lease back, if it has not begun it."""

    def values(self, answer: Answer) -> Any:
        """What an answer carries: a list of values, or that and the worker's state as bytes."""

    def drop(self, answer: Answer) -> None:
        """Let go of an answer that nobody will read."""

    def say_goodbye(self, grace_s: float) -> None:
        """The job is done: let workers end by themselves, those that are still starting at once."""
