"""The interface of every kind of worker, and how a kind is found by its name."""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from typing import Any, ClassVar

from computemanager.errors import SettingsError
from computemanager.model import Job, Outcome, RunStatistics, Settings
from computemanager.signals import terminated_as_exception

__all__ = ["ComputeWorkerManager", "known_kinds", "manager_class"]

_BUILT_IN = {
    "CW_NONE": "computemanager.inprocess:CallerManager",
    "CW_THREADS": "computemanager.inprocess:ThreadsManager",
    "CW_SUBPROC": "computemanager.subproc:SubprocManager",
}
_registered: dict[str, type[ComputeWorkerManager]] = {}


class ComputeWorkerManager(ABC):
    """Gets blocks onto workers, and their outcomes back.

    A new kind is a subclass that sets `kind` and implements `_run`; it is found by that name as soon as its
    module is imported. `computemanager.testing.ManagerContract` holds the tests that it has to pass.

    Parameters
    ----------
    settings : Settings, optional
        How many workers, how large a window, and so on.

    Attributes
    ----------
    kind : str
        The kind's name, such as ``"CW_THREADS"``.
    statistics : RunStatistics
        Counts of the run so far.

    Examples
    --------
    >>> manager = manager_class("CW_NONE")()
    >>> [outcome.value for outcome in manager.run(Job(abs), [-1, 2, -3])]
    [1, 2, 3]
    """

    kind: ClassVar[str]

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.statistics = RunStatistics()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            _registered[cls.kind] = cls

    def run(self, job: Job, blocks: Iterable[Any]) -> Generator[Outcome, None, None]:
        """Compute every block.

        Parameters
        ----------
        job : Job
            The function, and what else a worker needs once.
        blocks : iterable
            The plan: pulled lazily, never more than the window ahead of what has been yielded.

        Yields
        ------
        Outcome
            Exactly one a block, in the order of the plan unless the settings say otherwise.

        Raises
        ------
        BlockError
            If the function raised; the original exception is its ``__cause__``.
        PoisonBlockError, WorkersLostError, PayloadError, WaitTimeoutError
            If workers cannot run the job.

        Notes
        -----
        However the generator ends (used up, closed, an exception, SIGTERM, Ctrl-C), no process, thread,
        socket or temporary file is left.
        """
        with terminated_as_exception():
            yield from self._run(job, iter(blocks))

    def states(self) -> list[Any]:
        """The workers' copies of the job's state, after the run; empty if the job had none."""
        return []

    @abstractmethod
    def _run(self, job: Job, blocks: Any) -> Generator[Outcome, None, None]:
        """What `run` promises, for an iterator of blocks."""


def known_kinds() -> list[str]:
    """Names of the kinds that can be used now.

    Examples
    --------
    >>> known_kinds()[:3]
    ['CW_NONE', 'CW_SUBPROC', 'CW_THREADS']
    """
    return sorted({*_BUILT_IN, *_registered})


def manager_class(kind: str) -> type[ComputeWorkerManager]:
    """The manager of a kind.

    Raises
    ------
    SettingsError
        If no kind has that name.

    Examples
    --------
    >>> manager_class("CW_THREADS").kind
    'CW_THREADS'
    """
    if kind in _registered:
        return _registered[kind]
    if kind in _BUILT_IN:
        module, _, name = _BUILT_IN[kind].partition(":")
        found: type[ComputeWorkerManager] = getattr(importlib.import_module(module), name)
        return found
    near = difflib.get_close_matches(str(kind), known_kinds(), 1)
    raise SettingsError(
        f"no kind of worker is named {kind!r}"
        + (f"; did you mean {near[0]}?" if near else ".")
        + f" Known: {', '.join(known_kinds())}"
    )
