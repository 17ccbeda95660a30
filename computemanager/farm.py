"""Main's side of workers that are not in its own process: the one loop around the scheduler.

::

    plan ──pull──> Window ──blocks──> Scheduler ──Dispatch──> Crew ──> workers
                     │                    ^                    │
    caller <──take───┘<────Accept─────────┴─────happenings─────┘

Everything happens in the caller's thread, between two outcomes that it takes; there is no lock. What the
scheduler decides is carried out here, what happens (messages, deaths, time) is told to it.
"""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NoReturn

from computemanager import crew as happened
from computemanager import payload
from computemanager.calling import Failure, block_error, skipped_block
from computemanager.crew import Crew, Happening
from computemanager.errors import (
    BlockTimeoutError,
    PayloadError,
    PoisonBlockError,
    WaitTimeoutError,
    WorkersLostError,
)
from computemanager.model import Job, Outcome, RunStatistics, Settings, Skipped
from computemanager.scheduler import (
    Accept,
    Action,
    Answered,
    Cause,
    Dispatch,
    Event,
    GaveBack,
    GiveUp,
    HostBack,
    HostDraining,
    HostEnded,
    HostSilent,
    HostStarted,
    PlanEnded,
    Planned,
    Raised,
    Recall,
    Scheduler,
    SchedulerLimits,
    Skip,
    StartHosts,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from computemanager.spill import Spill, bytes_of
from computemanager.window import Window

__all__ = ["Farm", "Keep"]

Keep = Callable[[Sequence[int], Sequence[Any], str, "bytes | None"], None]
"""Called with each accepted answer: blocks, their values, the worker, its state."""

PATIENCE_S = 0.02
"""How long the loop waits for a message before it looks at everything else."""

LOOK_AGAIN_S = 0.001
"""While the caller takes one outcome after another, the crew is looked at this often."""

STOP_GRACE_S = 5.0
"""How long workers may take to end after a job that went well: user code may run at exit."""

COUNTED_BYTES = 4096
"""Smaller outcomes are not counted while they wait: the window in blocks bounds them well enough."""

_PULL_AT_ONCE = 64


class Farm:
    """Runs one job on a crew of workers.

    Parameters
    ----------
    crew : Crew
        The workers.
    settings : Settings
        The caller's.
    statistics : RunStatistics
        Counted up here.
    keep : callable, optional
        Told of every accepted answer before the caller sees it.
    number : callable, optional
        Gives the number that a block has for the user, for errors. Default: its number here.
    """

    def __init__(
        self,
        crew: Crew,
        settings: Settings,
        statistics: RunStatistics,
        keep: Keep | None = None,
        number: Callable[[int], int] = lambda block: block,
    ) -> None:
        self._crew = crew
        self._settings = settings
        self._statistics = statistics
        self._keep = keep
        self._number = number
        self._clock = time.monotonic
        self._spill = Spill(settings.spill_directory)
        self._window = Window(
            settings.window, ordered=settings.ordered, memory_bytes=settings.window_bytes, spill=self._spill
        )
        self._blocks: dict[int, Any] = {}  # pulled and not accepted, to be sent again if need be
        self._block_bytes = 0  # of a typical one
        self._plan_ended = False
        self._states: dict[str, Any] = {}  # of workers, lost ones included, as of their last accepted block
        self._busy: set[str] = set()  # workers that finished a block
        self._failures: dict[int, Any] = {}  # what the function raised on blocks, pickled
        self._values: Any = ()
        self._nbytes = 0
        self._bad_answers = 0

    def run(self, job: Job, blocks: Iterator[Any]) -> Generator[Outcome, None, None]:
        """See `ComputeWorkerManager.run`. Leaves the clean-up of the crew to its caller."""
        self._job = job
        self._started_at = self._looked_at = self._clock()
        self._scheduler = Scheduler(_limits(self._settings, job), self._started_at)
        try:
            # Workers start while the job is being pickled and the first blocks are read.
            self._pull(blocks, just_one=True)
            if self._plan_ended:
                return
            self._crew.set_job(payload.dumps_job(job))
            while not (self._scheduler.finished and not self._window.outstanding):
                more = self._pull(blocks)
                self._look(0.0 if more else self._patience())
                while (outcome := self._window.take()) is not None:
                    yield outcome
                    if self._clock() - self._looked_at > LOOK_AGAIN_S:
                        self._pull(blocks)
                        self._look(0.0)
            self._crew.say_goodbye(STOP_GRACE_S)
        finally:
            self._count()
            self._spill.close()

    def states(self) -> list[Any]:
        """The workers' copies of the state, lost ones included, each as of its last accepted block."""
        return [pickle.loads(state) for state in self._states.values()]

    # -- what comes in ---------------------------------------------------------------------------------

    def _pull(self, blocks: Iterator[Any], *, just_one: bool = False) -> bool:
        """Pull some blocks; True if there is room and a plan for more."""
        if self._plan_ended:
            return False
        room = 1 if just_one else min(_PULL_AT_ONCE, self._room())
        started = self._clock()
        number = 0
        while number < room:
            try:
                block = next(blocks)
            except StopIteration:
                self._plan_ended = True
                break
            index = self._window.admit()
            self._blocks[index] = block
            if index % 64 < 2:
                self._block_bytes = max(self._block_bytes, bytes_of(block))
            number += 1
            if self._clock() - started > LOOK_AGAIN_S:
                break
        if number:
            self._tell(Planned(number))
        if self._plan_ended:
            self._tell(PlanEnded())
        return not self._plan_ended and self._room() > 0

    def _room(self) -> int:
        """How many blocks may be pulled: those that carry data must not fill the memory."""
        room = self._window.room
        if self._block_bytes > 0:
            most = max(2 * self._settings.num_workers + 2, self._settings.window_bytes // self._block_bytes)
            room = min(room, most - len(self._blocks))
        return room

    def _patience(self) -> float:
        """How long nothing but a message needs attention."""
        deadline = self._scheduler.next_deadline()
        return PATIENCE_S if deadline is None else max(0.0, min(PATIENCE_S, deadline - self._clock()))

    def _look(self, timeout_s: float) -> None:
        """See what has happened, waiting up to `timeout_s` for the first message."""
        for happening in self._crew.look(timeout_s):
            self._take(happening)
        self._looked_at = now = self._clock()
        deadline = self._scheduler.next_deadline()
        if deadline is not None and now >= deadline:
            self._tell(Tick())

    def _take(self, happening: Happening) -> None:
        """Tell the scheduler what has happened, in its words."""
        if isinstance(happening, happened.Answer):
            self._take_answer(happening)
        elif isinstance(happening, happened.Joined):
            self._tell(WorkerJoined(*happening))
        elif isinstance(happening, happened.GaveBackLease):
            self._tell(GaveBack(*happening))
        elif isinstance(happening, happened.Failure):
            block = self._scheduler.block_at(happening.lease, happening.position)
            if block is not None:
                self._failures[block] = bytes(happening.pickled)
            self._tell(Raised(happening.worker, happening.lease, happening.position))
        elif isinstance(happening, happened.Lost):
            place = happening.place
            running = None if place is None else self._scheduler.block_at(*place)
            self._tell(WorkerLost(happening.worker, running, happening.evidence, happening.timed_out))
        elif isinstance(happening, happened.Ended):
            self._tell(HostEnded(*happening))
        elif isinstance(happening, happened.Silent):
            self._tell(HostSilent(happening.host))
        elif isinstance(happening, happened.Heard):
            self._tell(HostBack(happening.host))
        elif isinstance(happening, happened.Draining):
            self._tell(HostDraining(happening.host))
        elif isinstance(happening, happened.Started):
            self._tell(HostStarted(happening.host))
        else:
            raise PayloadError(
                f"{self._job.name} cannot be unpickled in worker {happening.worker}: a module it needs may "
                f"be missing there, or fail when it is imported. The worker's traceback:\n{happening.text}"
            )

    def _take_answer(self, answer: happened.Answer) -> None:
        worker, message = answer
        progress = self._scheduler.progress_of(message.lease, worker)
        if progress is None:
            self._crew.drop(answer)  # too late: the blocks are another's by now, or done
        elif message.position != progress[0] or not 0 < message.number <= progress[1]:
            self._bad_answers += 1  # an answer that came before, or one that cannot be
            self._crew.drop(answer)
            return
        elif not self._read(answer, progress[0]):
            return
        self._tell(
            Answered(
                worker, message.lease, message.number, message.seconds, message.overhead_s, message.starved
            )
        )
        self._values = ()

    def _read(self, answer: happened.Answer, done: int) -> bool:
        """Unpickle an answer; False where that cannot be done here: its first block has failed."""
        worker, message = answer
        try:
            values = self._crew.values(answer)
            if message.has_state:
                values, state = values
                self._states[worker] = bytes(state)
            if len(values) != message.number:
                raise ValueError(f"{message.number} values were announced and {len(values)} sent")
        except Exception as error:
            refusal = PayloadError(
                f"what the function returned cannot be unpickled in this process: {type(error).__name__}: "
                f"{error}. Return plain types and arrays, or classes that can be imported here"
            )
            failure = Failure(refusal, traceback.format_exc())
            self._take(happened.Failure(worker, message.lease, done, failure.dumps()))
            return False
        self._values = values
        nbytes = len(message.payload) + sum(length for _, length in message.places)
        each = nbytes // message.number
        self._nbytes = each if each >= COUNTED_BYTES else 0
        if not self._statistics.blocks:
            self._statistics.first_outcome_s = self._clock() - self._started_at
        return True

    # -- what goes out ---------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        self._carry_out(self._scheduler.handle(event, self._clock()))

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Accept):
                self._accept(action)
            elif isinstance(action, Dispatch):
                blocks = [self._blocks[index] for index in action.blocks]
                self._crew.dispatch(action.worker, action.lease, blocks)
            elif isinstance(action, Recall):
                self._crew.recall(action.worker, action.lease)
            elif isinstance(action, StartHosts):
                for host in self._crew.start(action.number):
                    self._tell(HostStarted(host))
            elif isinstance(action, Skip):
                self._skip(action)
            else:
                self._give_up(action)

    def _accept(self, action: Accept) -> None:
        blocks, worker = action.blocks, action.worker
        values = self._values
        if action.positions is not None:
            values = [values[position] for position in action.positions]
        if self._keep is not None:
            self._keep(blocks, values, worker, self._states.get(worker))
        put, pop, nbytes = self._window.put, self._blocks.pop, self._nbytes
        for index, value in zip(blocks, values, strict=True):
            pop(index)
            put(Outcome(index, value, worker), nbytes)
        if self._failures:
            for index in blocks:
                self._failures.pop(index, None)
        self._busy.add(worker)
        self._statistics.blocks += len(blocks)
        self._statistics.workers = len(self._busy)

    def _skip(self, action: Skip) -> None:
        block = self._blocks.pop(action.block)
        pickled = self._failures.pop(action.block, None)
        if pickled is not None and action.cause is Cause.USER_EXCEPTION:
            failure = Failure(*pickle.loads(pickled))
            skipped = skipped_block(action.block, block, action.worker, failure, action.attempts)
        else:
            skipped = Skipped(action.block, block, action.evidence, "", action.attempts, action.worker)
        self._window.put(Outcome(action.block, None, action.worker, skipped))
        self._statistics.skipped += 1

    def _count(self) -> None:
        statistics, scheduler = self._statistics, self._scheduler
        statistics.retries = scheduler.retries
        statistics.workers_lost = scheduler.workers_lost
        statistics.speculated = scheduler.speculated
        statistics.stale_answers = scheduler.stale_answers
        statistics.spilled_bytes = self._window.spilled_bytes
        statistics.dropped_messages = self._crew.dropped_messages + self._bad_answers

    def _give_up(self, action: GiveUp) -> NoReturn:
        """Raise what ends the job."""
        name, cause, attempts, settings = self._job.name, action.cause, action.attempts, self._settings
        block = None if action.block is None else self._number(action.block)
        if cause is Cause.USER_EXCEPTION:
            assert block is not None and action.block is not None
            failure = Failure(*pickle.loads(self._failures[action.block]))
            error = block_error(
                self._job, block, self._blocks[action.block], action.worker, failure, attempts
            )
            raise error from failure.original
        if cause is Cause.POISON_BLOCK:
            assert block is not None
            raise PoisonBlockError(
                f"{name}: block {block} ended its worker process {attempts} times. The last time "
                f"{action.evidence}\n"
                f"Run that block alone in this process to see why, or give workers more memory "
                f"(fewer workers, smaller blocks) if memory ran out.",
                block_index=block,
                attempts=attempts,
                evidence=action.evidence,
            )
        if cause is Cause.BLOCK_TIMEOUT:
            assert block is not None and settings.block_timeout_s is not None
            raise BlockTimeoutError(
                f"{name}: block {block} took longer than {settings.block_timeout_s} s (blockTimeout), "
                f"{attempts} times. Set a longer limit, or none, if blocks may take that long; run that "
                f"block alone in this process to see what it does",
                block_index=block,
                attempts=attempts,
                limit_s=settings.block_timeout_s,
            )
        if cause is Cause.LOST_TOO_OFTEN:
            raise WorkersLostError(
                f"{name}: block {block} was lost with its worker's machine {attempts} times "
                f"(maxBlockLosses). The last time {action.evidence}"
            )
        if cause is Cause.NO_WORKERS:
            ended = f"{attempts} workers ended one after another" if attempts > 1 else "a worker ended"
            raise WorkersLostError(
                f"{name}: {ended} without finishing a block. The last one, {action.worker}: {action.evidence}"
            )
        if cause is Cause.START_TIMEOUT:
            raise WaitTimeoutError(
                f"{name}: no worker was ready within {settings.start_timeout_s} s "
                f"(computeBarrierTimeout). They had been started, but had not connected"
            )
        if cause is Cause.TOO_FEW_WORKERS:
            raise WorkersLostError(
                f"{name}: fewer than {settings.min_workers} workers (minComputeWorkers) were left, and no "
                f"new ones came within {settings.start_timeout_s} s (computeBarrierTimeout). "
                f"{self._statistics.blocks} blocks were done"
                + (f". The last one to go, {action.worker}: {action.evidence}" if action.evidence else "")
            )
        raise WaitTimeoutError(
            f"{name}: no block was finished within {settings.outcome_timeout_s} s "
            f"(computeBufferPopTimeout); the first one being computed is block {block}. "
            f"Set a longer limit, or none, if blocks may take that long"
        )


def _limits(settings: Settings, job: Job) -> SchedulerLimits:
    return SchedulerLimits(
        num_workers=settings.num_workers,
        window=settings.window,
        max_raises_per_block=settings.max_raises_per_block,
        max_kills_per_block=settings.max_kills_per_block,
        max_timeouts_per_block=settings.max_timeouts_per_block,
        max_losses_per_block=settings.max_losses_per_block,
        skip=settings.on_error == "skip",
        # A block that runs twice would count twice in the state.
        speculate=settings.speculate and job.state is None,
        min_workers=settings.min_workers,
        start_timeout_s=settings.start_timeout_s,
        outcome_timeout_s=settings.outcome_timeout_s,
    )
