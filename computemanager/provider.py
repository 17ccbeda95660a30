"""The seam between the farm and whatever starts its workers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = ["Command", "Provider", "WorkerEnd"]


@dataclass(frozen=True)
class Command:
    """What to run for a worker.

    Attributes
    ----------
    argv : tuple of str
        Program and arguments. Nothing secret: command lines can be read by others.
    environment : mapping of str to str
        Added to the worker's environment; how to reach main is in here.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]


class WorkerEnd(NamedTuple):
    """A worker that ended without having been told to.

    Attributes
    ----------
    worker : str
        Its name.
    evidence : str
        How it ended, in words for the user: exit code or signal, peak memory, last lines of output.
    """

    worker: str
    evidence: str


class Provider(Protocol):
    """Starts and stops workers; knows nothing of blocks, sockets or pickles."""

    def start(self, count: int, command: Command) -> Sequence[str]:
        """Start `count` workers and return their names, which are never used again.

        A worker finds its name in the environment variable ``COMPUTEMANAGER_WORKER``, or knows it from
        where it runs.
        """

    def poll(self) -> Sequence[WorkerEnd]:
        """The workers that have ended since the last call."""

    def kill(self, workers: Collection[str]) -> None:
        """End these at once: they have been given up. `poll` may report them or not."""

    def stop(self, ending: Collection[str] = (), grace_s: float = 0.0) -> None:
        """End all workers and leave nothing.

        Those in `ending` have been told to end by themselves and get up to `grace_s` seconds for it. Never
        raises, may be called again.
        """
