"""The interface of every kind of worker, and how a kind is found by its name."""

from __future__ import annotations

import contextlib
import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from computemanager.errors import SettingsError
from computemanager.model import Job, Outcome, RunStatistics, Settings
from computemanager.signals import terminated_as_exception

if TYPE_CHECKING:
    from computemanager.journal import Journal

__all__ = ["ComputeWorkerManager", "known_kinds", "manager_class"]

_BUILT_IN = {
    "CW_NONE": "computemanager.inprocess:CallerManager",
    "CW_THREADS": "computemanager.inprocess:ThreadsManager",
    "CW_SUBPROC": "computemanager.subproc:SubprocManager",
    "CW_AGENTS": "computemanager.remote:AgentsManager",
}
_registered: dict[str, type[ComputeWorkerManager]] = {}


class ComputeWorkerManager(ABC):
    """Gets blocks onto workers, and their outcomes back.

    A new kind is a subclass that sets `kind` and implements `_run` and, where workers have copies of the
    job's state, `_states`; it is found by that name as soon as its module is imported.
    `computemanager.testing.ManagerContract` holds the tests that it has to pass.

    `_run` numbers the blocks that it is given from 0, in the order in which it pulls them. Where a journal is
    kept those are not the plan's numbers, as some blocks may be left out. So a kind

    - gives outcomes (and what is in `Outcome.skipped`) its own numbers: `run` puts the plan's there;
    - calls ``self._number(k)`` for the number that goes into an exception and its message;
    - where ``self._keep`` is not None calls ``self._keep(numbers, values, worker, state)``, again with its
      own numbers, as soon as blocks are finished, before they wait for their turn; `state` is the pickle of
      that worker's copy of the state as of those blocks, None where the job has none.

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
    takes_extra_params: ClassVar[bool] = False
    """Whether the kind has parameters of its own (`Settings.extra_params`)."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        if self.settings.extra_params and not self.takes_extra_params:
            names = ", ".join(map(str, self.settings.extra_params))
            raise SettingsError(
                f"{self.kind} has no parameters of its own, but computeWorkerExtraParams has {names}. Leave "
                f"it out, or choose the kind that it is for"
            )
        self.statistics = RunStatistics()
        self._journal: Journal | None = None
        self._keep: Callable[[Sequence[int], Sequence[Any], str, bytes | None], None] | None = None
        self._number: Callable[[int], int] = _same

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            _registered[cls.kind] = cls

    def run(
        self, job: Job, blocks: Iterable[Any], *, journal: Journal | None = None
    ) -> Generator[Outcome, None, None]:
        """Compute every block.

        Parameters
        ----------
        job : Job
            The function, and what else a worker needs once.
        blocks : iterable
            The plan: pulled lazily, never more than the window ahead of what has been yielded.
        journal : Journal, optional
            Where finished blocks are kept, open. Those that it has kept before are not computed again: they
            are pulled, dropped, and yielded with the value from the journal, as of worker ``"checkpoint"``.
            They do not count in the window. The plan must be the one that the journal was begun with.

        Yields
        ------
        Outcome
            Exactly one a block, in the order of the plan unless the settings say otherwise.

        Raises
        ------
        BlockError
            If the function raised; the original exception is its ``__cause__``.
        PoisonBlockError, BlockTimeoutError, WorkersLostError, PayloadError, WaitTimeoutError
            If workers cannot run the job.
        CheckpointError
            If something in the journal cannot be read.

        Notes
        -----
        However the generator ends (used up, closed, an exception, SIGTERM, Ctrl-C), no process, thread,
        socket or temporary file is left.
        """
        self._journal, self._keep, self._number = journal, None, _same
        with terminated_as_exception():
            if journal is None:
                yield from self._run(job, iter(blocks))
                return
            rest = _Rest(blocks, journal)
            self._keep, self._number = rest.keep, rest.number
            with contextlib.closing(self._run(job, rest.blocks())) as run:
                yield from rest.merged(run, self.settings.ordered)

    def states(self) -> list[Any]:
        """The workers' copies of the job's state, after the run; empty if the job had none.

        With a journal (still open), also those of earlier runs, as of what is kept of them.
        """
        return [*self._states(), *(self._journal.states() if self._journal is not None else [])]

    def _states(self) -> list[Any]:
        """The copies of the state in this run, each as of the last accepted block of its worker."""
        return []

    @abstractmethod
    def _run(self, job: Job, blocks: Any) -> Generator[Outcome, None, None]:
        """What `run` promises, for an iterator of blocks; see the class for how they are numbered."""


def _same(number: int) -> int:
    return number


class _Rest:
    """The blocks of a plan that a journal has not kept, under numbers of their own."""

    def __init__(self, blocks: Iterable[Any], journal: Journal) -> None:
        self._plan = enumerate(blocks)
        self._journal = journal
        self._first: tuple[int, Any] | None = None  # not kept, pulled, and not given to the manager
        self._pulled = 0
        self._merged = 0  # kept blocks below this have been yielded
        self._numbers: dict[int, int] = {}  # of the blocks under way: the manager's, the plan's

    def blocks(self) -> Iterator[Any]:
        """What the manager is given."""
        for own, (number, block) in enumerate(self._not_kept()):
            self._numbers[own] = number
            yield block

    def number(self, own: int) -> int:
        """The plan's number of a block that is under way."""
        return self._numbers[own]

    def keep(self, numbers: Sequence[int], values: Sequence[Any], worker: str, state: bytes | None) -> None:
        """See `Journal.keep`; with the manager's numbers."""
        self._journal.keep([self._numbers[own] for own in numbers], values, worker, state)

    def merged(self, run: Iterator[Outcome], ordered: bool) -> Generator[Outcome, None, None]:
        """All outcomes of the plan: the run's and those that are kept."""
        # Often all that is kept lies at the start. It is taken first, so that whoever writes results has
        # something to do before workers are there.
        self._first = next(self._not_kept(), None)
        yield from self._kept_below(self._pulled)
        for outcome in run:
            number = self._numbers.pop(outcome.block_index)
            yield from self._kept_below(number if ordered else self._pulled)
            skipped = outcome.skipped and outcome.skipped._replace(block_index=number)
            yield outcome._replace(block_index=number, skipped=skipped)
            del outcome  # its arrays may be in shared memory that is wanted again
        yield from self._kept_below(self._pulled)

    def _not_kept(self) -> Iterator[tuple[int, Any]]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        kept = self._journal.kept
        for number, block in self._plan:
            self._pulled = number + 1
            if number not in kept:
                yield number, block

    def _kept_below(self, end: int) -> Iterator[Outcome]:
        kept = self._journal.kept
        while self._merged < end:
            number, self._merged = self._merged, self._merged + 1
            if number in kept:
                yield Outcome(number, self._journal.value(number), "checkpoint")


def known_kinds() -> list[str]:
    """Names of the kinds that can be used now.

    Examples
    --------
    >>> known_kinds()[:3]
    ['CW_AGENTS', 'CW_NONE', 'CW_SUBPROC']
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
