"""The seam between the farm and whatever starts its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

        A worker finds its name in the environment variable ``COMPUTEMANAGER_WORKER``.
        """

    def poll(self) -> Sequence[WorkerEnd]:
        """The workers that have ended since the last call."""

    def stop(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds for workers to end by themselves, end the rest, leave nothing.

        Never raises, may be called again.
        """
