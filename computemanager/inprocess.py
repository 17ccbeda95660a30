"""Workers inside the calling process: none (`CallerManager`), or threads (`ThreadsManager`)."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from computemanager.base import ComputeWorkerManager
from computemanager.calling import Failure, Snapshot, block_error, call, skipped_block
from computemanager.errors import PayloadError, SettingsError, WaitTimeoutError
from computemanager.model import Job, Outcome, Settings, Skipped
from computemanager.spill import Spill, bytes_of
from computemanager.window import Window

__all__ = ["CallerManager", "ThreadsManager"]


class _Answer(NamedTuple):
    """What became of a block: a value, a reason to skip it, or a failure that ends the job."""

    block_index: int
    block: Any
    worker: str
    value: Any = None
    skipped: Skipped | None = None
    failure: Failure | None = None
    attempts: int = 1
    state: bytes | None = None  # as of this block, where it is to be kept


class _Desk:
    """Where blocks are worked on, one after another and on one state.

    Parameters
    ----------
    job : Job
    settings : Settings
    worker : str
        The name to answer with.
    state : object
        What the function is given as the job's state.
    is_own : bool
        Whether nobody else holds that object, so that a copy may take its place.
    keeps_state : bool
        Whether answers are to carry the state.
    """

    def __init__(
        self, job: Job, settings: Settings, worker: str, state: Any, *, is_own: bool, keeps_state: bool
    ) -> None:
        self.worker = worker
        self.state = state
        self._job = job
        self._is_own = is_own
        self._max_attempts = settings.max_raises_per_block
        self._is_skipping = settings.on_error == "skip"
        self._keeps_state = keeps_state and state is not None
        self._can_go_back = state is not None and (self._max_attempts > 1 or self._is_skipping)
        self._before: Snapshot | None = None  # the state as it is, if it has been pickled since it changed

    def work(self, index: int, block: Any) -> _Answer:
        """Run a block, again where that may help; the state counts it once, or not at all."""
        if self._can_go_back and self._before is None:
            self._before = Snapshot(self.state)
        again = self._for_later_tries(block)
        given = block
        attempts = 1
        while True:
            try:
                value = call(self._job, given, self.state)
            except Exception as error:
                self._go_back()
                if attempts == self._max_attempts:
                    failure = Failure.of(error)
                    if not self._is_skipping:
                        return _Answer(index, block, self.worker, failure=failure, attempts=attempts)
                    skipped = skipped_block(index, block, self.worker, failure, attempts)
                    # Or this frame and the traceback, which has it, would keep each other and the block.
                    del failure
                    return _Answer(index, None, self.worker, skipped=skipped, attempts=attempts)
                attempts += 1
                given = block if again is None else again.copy()
            else:
                self._before = Snapshot(self.state) if self._keeps_state else None
                state = None if self._before is None else self._before.pickled
                return _Answer(index, None, self.worker, value, attempts=attempts, state=state)

    def _for_later_tries(self, block: Any) -> Snapshot | None:
        """The block as it is, because the function may change it before it raises."""
        if self._max_attempts > 1:
            with contextlib.suppress(PayloadError):  # a block of this process only: that one again, then
                return Snapshot(block)
        return None

    def _go_back(self) -> None:
        if self._before is None:
            return
        if self._is_own:
            self.state = self._before.copy()
        else:
            self._before.restore(self.state)


class _InProcessManager(ComputeWorkerManager):
    """What both kinds do with answers."""

    def _check_settings(self) -> None:
        if self.settings.block_timeout_s is not None:
            raise SettingsError(
                f"block_timeout_s={self.settings.block_timeout_s} (blockTimeout) with {self.kind}: a block "
                f"that runs in this process cannot be ended from outside. Use CW_SUBPROC, which runs blocks "
                f"in processes of their own, or set no limit"
            )

    def _outcome(self, job: Job, answer: _Answer, started: float) -> Outcome:
        """Count an answer and keep its value; raise what ends the job."""
        index, worker = answer.block_index, answer.worker
        self.statistics.retries += answer.attempts - 1
        if answer.failure is not None:
            number = self._number(index)
            error = block_error(job, number, answer.block, worker, answer.failure, answer.attempts)
            raise error from answer.failure.original
        if answer.skipped is not None:
            self.statistics.skipped += 1
            return Outcome(index, None, worker, answer.skipped)
        if self._keep is not None:
            self._keep([index], [answer.value], worker, answer.state)
        if not self.statistics.blocks:
            self.statistics.first_outcome_s = time.monotonic() - started
        self.statistics.blocks += 1
        return Outcome(index, answer.value, worker)


class CallerManager(_InProcessManager):
    """``CW_NONE``: the caller does the work itself, one block at a time; the state is not copied.

    Where a failed try of a block has to be undone, the caller's own state is changed back as
    `computemanager.calling.Snapshot.restore` does it.
    """

    kind = "CW_NONE"
    _state: Any = None

    def _states(self) -> list[Any]:
        return [] if self._state is None else [self._state]

    def _run(self, job: Job, blocks: Iterator[Any]) -> Generator[Outcome, None, None]:
        self._check_settings()
        started = time.monotonic()
        self._state = job.state
        self.statistics.workers = 1
        desk = _Desk(
            job,
            self.settings,
            "this process",
            job.state,
            is_own=False,
            keeps_state=self._keep is not None,
        )
        for index, block in enumerate(blocks):
            yield self._outcome(job, desk.work(index, block), started)


class ThreadsManager(_InProcessManager):
    """``CW_THREADS``: threads of this process.

    They run side by side only where the function lets go of Python's global lock, as NumPy, GDAL and
    compression do; otherwise ``CW_SUBPROC`` is the kind to use.
    """

    kind = "CW_THREADS"

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self._desks: list[_Desk] = []
        self._busy: set[str] = set()  # threads that finished a block

    def _states(self) -> list[Any]:
        return [desk.state for desk in self._desks if desk.worker in self._busy and desk.state is not None]

    def _run(self, job: Job, blocks: Iterator[Any]) -> Generator[Outcome, None, None]:
        self._check_settings()
        self._desks, self._busy = self._make_desks(job), set()
        todo: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        stopping = threading.Event()
        threads = [
            threading.Thread(
                target=_serve, args=(desk, todo, done, stopping), name=f"computemanager-{desk.worker}"
            )
            for desk in self._desks
        ]
        try:
            for thread in threads:
                thread.start()
            with contextlib.closing(Spill(self.settings.spill_directory)) as spill:
                yield from self._exchange(job, blocks, todo, done, spill)
        finally:
            # A thread cannot be ended from outside: each finishes the block it is on, and takes no other.
            stopping.set()
            for _ in threads:
                todo.put(None)
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _make_desks(self, job: Job) -> list[_Desk]:
        before = None
        if job.state is not None:
            try:
                before = Snapshot(job.state)
            except PayloadError as error:
                raise PayloadError(f"{job.name}: {error}") from error
        return [
            _Desk(
                job,
                self.settings,
                f"thread-{number}",
                None if before is None else before.copy(),
                is_own=True,
                keeps_state=self._keep is not None,
            )
            for number in range(self.settings.num_workers)
        ]

    def _exchange(
        self,
        job: Job,
        blocks: Iterator[Any],
        todo: queue.SimpleQueue[tuple[int, Any] | None],
        done: queue.SimpleQueue[_Answer],
        spill: Spill,
    ) -> Generator[Outcome, None, None]:
        started = time.monotonic()
        settings = self.settings
        window = Window(
            settings.window, ordered=settings.ordered, memory_bytes=settings.window_bytes, spill=spill
        )
        plan_ended = False
        working = 0  # blocks handed to the threads and not handed back
        while True:
            # Enough to keep every thread busy while the caller has its turn; the rest of the window is for
            # outcomes that wait for an earlier one.
            while not plan_ended and window.room and working < 2 * settings.num_workers + 2:
                try:
                    block = next(blocks)
                except StopIteration:
                    plan_ended = True
                else:
                    todo.put((window.admit(), block))
                    working += 1
            outcome = window.take()
            if outcome is not None:
                yield outcome
                del outcome  # the caller's alone
            elif plan_ended and not window.outstanding:
                return
            elif working:
                answer = self._wait_for_one(job, done, working)
                working -= 1
                self._take_in(job, answer, window, started)
                del answer
            # Also between two outcomes that the caller takes, so that the threads get new blocks meanwhile.
            while working and not done.empty():
                working -= 1
                self._take_in(job, done.get(), window, started)

    def _wait_for_one(self, job: Job, done: queue.SimpleQueue[_Answer], working: int) -> _Answer:
        limit_s = self.settings.outcome_timeout_s
        try:
            return done.get(timeout=limit_s)
        except queue.Empty:
            raise WaitTimeoutError(
                f"{job.name}: no block was finished within {limit_s} s "
                f"(computeBufferPopTimeout); {working} are being computed or wait for a thread"
            ) from None

    def _take_in(self, job: Job, answer: _Answer, window: Window, started: float) -> None:
        outcome = self._outcome(job, answer, started)
        if outcome.skipped is None:
            self._busy.add(answer.worker)
            self.statistics.workers = len(self._busy)
        before = window.spilled_bytes
        window.put(outcome, bytes_of(outcome.value))
        self.statistics.spilled_bytes += window.spilled_bytes - before


def _serve(
    desk: _Desk,
    todo: queue.SimpleQueue[tuple[int, Any] | None],
    done: queue.SimpleQueue[_Answer],
    stopping: threading.Event,
) -> None:
    """A thread's life."""
    while (item := todo.get()) is not None and not stopping.is_set():
        index, block = item
        try:
            answer = desk.work(index, block)
        except BaseException as error:
            answer = _Answer(index, block, desk.worker, failure=Failure.of(error))
        done.put(answer)
        del item, block, answer  # a thread that waits must not keep a block's arrays alive
