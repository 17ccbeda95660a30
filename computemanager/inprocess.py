"""Workers inside the calling process: none (`CallerManager`), or threads (`ThreadsManager`)."""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import cloudpickle

from computemanager.base import ComputeWorkerManager
from computemanager.calling import Failure, block_error, call
from computemanager.errors import PayloadError, WaitTimeoutError
from computemanager.model import Job, Outcome, Settings
from computemanager.window import Window

__all__ = ["CallerManager", "ThreadsManager"]


class CallerManager(ComputeWorkerManager):
    """``CW_NONE``: the caller does the work itself, one block at a time; the state is not copied."""

    kind = "CW_NONE"
    _state: Any = None

    def states(self) -> list[Any]:
        """See `ComputeWorkerManager.states`."""
        return [] if self._state is None else [self._state]

    def _run(self, job: Job, blocks: Iterator[Any]) -> Generator[Outcome, None, None]:
        started = time.monotonic()
        self._state = job.state
        self.statistics.workers = 1
        for index, block in enumerate(blocks):
            try:
                value = call(job, block, job.state)
            except Exception as error:
                raise block_error(job, index, block, "this process", Failure.of(error)) from error
            if index == 0:
                self.statistics.first_outcome_s = time.monotonic() - started
            self.statistics.blocks += 1
            yield Outcome(index, value, "this process")


class _Answer(NamedTuple):
    block_index: int
    block: Any
    value: Any
    failure: Failure | None
    worker: str


class ThreadsManager(ComputeWorkerManager):
    """``CW_THREADS``: threads of this process.

    They run side by side only where the function lets go of Python's global lock, as NumPy, GDAL and
    compression do; otherwise ``CW_SUBPROC`` is the kind to use.
    """

    kind = "CW_THREADS"

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self._states: dict[str, Any] = {}
        self._busy: set[str] = set()  # threads that finished a block

    def states(self) -> list[Any]:
        """See `ComputeWorkerManager.states`."""
        return [state for name, state in self._states.items() if name in self._busy]

    def _run(self, job: Job, blocks: Iterator[Any]) -> Generator[Outcome, None, None]:
        self._states, self._busy = {}, set()
        todo: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        stopping = threading.Event()
        names = [f"thread-{number}" for number in range(self.settings.num_workers)]
        threads = [
            threading.Thread(
                target=_work, args=(job, state, name, todo, done, stopping), name=f"computemanager-{name}"
            )
            for name, state in zip(names, self._copies(job, names), strict=True)
        ]
        try:
            for thread in threads:
                thread.start()
            yield from self._exchange(job, blocks, todo, done)
        finally:
            # A thread cannot be ended from outside: each finishes the block it is on, and takes no other.
            stopping.set()
            for _ in threads:
                todo.put(None)
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _copies(self, job: Job, names: list[str]) -> list[Any]:
        if job.state is None:
            return [None] * len(names)
        try:
            pickled = cloudpickle.dumps(job.state, 5)
        except Exception as error:
            raise PayloadError(
                f"{job.name}: each thread works on its own copy of the state, which cannot be copied: {error}"
            ) from error
        self._states = {name: pickle.loads(pickled) for name in names}
        return list(self._states.values())

    def _exchange(
        self,
        job: Job,
        blocks: Iterator[Any],
        todo: queue.SimpleQueue[tuple[int, Any] | None],
        done: queue.SimpleQueue[_Answer],
    ) -> Generator[Outcome, None, None]:
        started = time.monotonic()
        settings = self.settings
        window = Window(settings.window, ordered=settings.ordered)
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
            while (outcome := window.take()) is not None:
                yield outcome
                if not plan_ended and working < settings.num_workers + 1:
                    break
            if plan_ended and not window.outstanding:
                return
            if not working:
                continue
            try:
                answer = done.get(timeout=settings.outcome_timeout_s)
            except queue.Empty:
                raise WaitTimeoutError(
                    f"{job.name}: no block was finished within {settings.outcome_timeout_s} s "
                    f"(computeBufferPopTimeout); {working} are being computed or wait for a thread"
                ) from None
            while True:
                working -= 1
                if answer.failure is not None:
                    error = block_error(job, answer.block_index, answer.block, answer.worker, answer.failure)
                    raise error from answer.failure.original
                self._busy.add(answer.worker)
                self.statistics.blocks += 1
                self.statistics.workers = len(self._busy)
                if self.statistics.blocks == 1:
                    self.statistics.first_outcome_s = time.monotonic() - started
                window.put(Outcome(answer.block_index, answer.value, answer.worker))
                if done.empty():
                    break
                answer = done.get()


def _work(
    job: Job,
    state: Any,
    name: str,
    todo: queue.SimpleQueue[tuple[int, Any] | None],
    done: queue.SimpleQueue[_Answer],
    stopping: threading.Event,
) -> None:
    """A thread's life."""
    while (item := todo.get()) is not None and not stopping.is_set():
        index, block = item
        try:
            answer = _Answer(index, None, call(job, block, state), None, name)
        except BaseException as error:
            answer = _Answer(index, block, None, Failure.of(error), name)
        done.put(answer)
        del item, block, answer  # a thread that waits must not keep a block's arrays alive
