"""The scheduler: events in, actions out. No socket, thread, clock or chance in here.

Where a block can be
--------------------
::

    fresh ──dispatch──> leased ──answer──> accepted
                         │  ^
                worker   │  │ dispatch, alone if it is a suspect
                lost     v  │
                        returned ──(killed its worker max_kills times)──> given up

Blocks are numbered in the order of the plan, and workers hand in a lease's blocks in the lease's order. So
the fresh blocks are one range, a lease is usually a range too, and every event costs the same however many
blocks it is about: a million blocks are no list anywhere.

Every lease has an id that is never used again and every answer names it: what a worker hands in under a
lease that was taken from it is recognised and counted, and has no effect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from computemanager.errors import InternalError
from computemanager.scheduler import policy
from computemanager.scheduler.actions import Accept, Action, Cause, Dispatch, GiveUp, StartWorkers
from computemanager.scheduler.events import (
    Answered,
    Event,
    Failed,
    PlanEnded,
    Planned,
    StartFailed,
    Tick,
    WorkerJoined,
    WorkerLost,
    WorkerStarted,
)

__all__ = ["Scheduler", "SchedulerLimits"]


@dataclass(frozen=True)
class SchedulerLimits:
    """What the caller has set.

    Attributes
    ----------
    num_workers : int
        Workers to keep running while there is work for them.
    window : int
        The window in blocks: a lease never holds more than a worker's fair share of it.
    max_kills_per_block : int
        Deaths of workers on one block that end the job.
    start_timeout_s, outcome_timeout_s : float or None
        See `computemanager.Settings`.
    """

    num_workers: int
    window: int = 1024
    max_kills_per_block: int = 3
    start_timeout_s: float | None = None
    outcome_timeout_s: float | None = None


@dataclass
class _Lease:
    worker: str
    blocks: Sequence[int]
    done: int = 0

    @property
    def rest(self) -> Sequence[int]:
        return self.blocks[self.done :]


@dataclass
class _Worker:
    joined: bool = False
    leases: dict[int, _Lease] = field(default_factory=dict)
    credit: int = 2
    batch: int = 1
    seconds_per_block: float | None = None
    overhead_s: float = 0.0
    on_suspect: bool = False


class Scheduler:
    """Decides which worker gets which blocks, and when to give up.

    Parameters
    ----------
    limits : SchedulerLimits
        What the caller has set.
    now : float
        The time at which the job starts, on the same clock as all later times, in seconds.

    Examples
    --------
    >>> scheduler = Scheduler(SchedulerLimits(num_workers=1), now=0.0)
    >>> scheduler.handle(Planned(2), 0.0)
    [StartWorkers(number=1)]
    >>> scheduler.handle(WorkerStarted("w0"), 0.0)
    []
    >>> scheduler.handle(WorkerJoined("w0"), 0.2)
    [Dispatch(worker='w0', lease=1, blocks=range(0, 1))]
    >>> scheduler.handle(Answered("w0", 1, 1, seconds=0.1), 0.3)
    [Accept(worker='w0', blocks=range(0, 1)), Dispatch(worker='w0', lease=2, blocks=range(1, 2))]
    """

    def __init__(self, limits: SchedulerLimits, now: float) -> None:
        self.limits = limits
        self.stale_answers = 0
        self.retries = 0
        self.workers_lost = 0
        self._planned = 0
        self._next_fresh = 0
        self._accepted = 0
        self._plan_ended = False
        self._given_up = False
        self._returned: deque[int] = deque()
        self._kills: dict[int, int] = {}
        self._workers: dict[str, _Worker] = {}
        self._leases: dict[int, _Lease] = {}
        self._last_lease = 0
        self._ends_without_progress = 0
        self._starting_since: float = now
        self._progress_at: float = now
        self._asked_to_start = 0
        self._story: deque[tuple[float, Event]] = deque(maxlen=50)

    # -- what the driver may ask -----------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Every block of the plan, which has ended, is accepted."""
        return self._plan_ended and self._accepted == self._planned

    @property
    def waiting(self) -> int:
        """Pulled blocks that no worker has."""
        return len(self._returned) + self._planned - self._next_fresh

    def next_deadline(self) -> float | None:
        """When to send a `Tick` if nothing else happens before, or None."""
        if self._given_up or self.finished:
            return None
        limits = self.limits
        if not self._any_joined():
            return None if limits.start_timeout_s is None else self._starting_since + limits.start_timeout_s
        if self._leases and limits.outcome_timeout_s is not None:
            return self._progress_at + limits.outcome_timeout_s
        return None

    def block_at(self, lease_id: int, position: int) -> int | None:
        """The block at a place in a lease that is still out, or None."""
        lease = self._leases.get(lease_id)
        return None if lease is None or position >= len(lease.blocks) else lease.blocks[position]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in what has happened; return what is to be done about it, in order."""
        self._story.append((now, event))
        actions: list[Action] = []
        if self._given_up:
            return actions
        if isinstance(event, Answered):
            self._answered(event, now, actions)
        elif isinstance(event, Planned):
            if not self._leases:
                self._progress_at = now
            self._planned += event.number
        elif isinstance(event, PlanEnded):
            self._plan_ended = True
        elif isinstance(event, WorkerStarted):
            self._asked_to_start -= 1
            self._workers[event.worker] = _Worker()
        elif isinstance(event, WorkerJoined):
            self._worker(event.worker).joined = True
            if len(self._leases) == 0:
                self._progress_at = now
        elif isinstance(event, WorkerLost):
            self._lost(event, now, actions)
        elif isinstance(event, StartFailed):
            self._workers.pop(event.worker, None)
            self._count_end(event.worker, event.evidence, actions)
        elif isinstance(event, Failed):
            self._failed(event, actions)
        elif isinstance(event, Tick):
            self._tick(now, actions)
        else:
            raise InternalError(f"unknown event {event!r}", self.story())
        if not self._given_up:
            self._start_workers(actions)
            self._dispatch(actions)
        return actions

    def story(self) -> list[str]:
        """The last events, oldest first, for the report of an error that should not happen."""
        return [f"{when:.6f} {event!r}" for when, event in self._story]

    def check(self) -> None:
        """Raise `InternalError` if the books do not balance. For tests: it looks at every lease."""
        fresh = range(self._next_fresh, self._planned)
        leased = [b for lease in self._leases.values() for b in lease.rest]
        known = len(fresh) + len(leased) + len(self._returned) + self._accepted
        problems = []
        if known != self._planned:
            problems.append(f"{self._planned} blocks planned, but {known} accounted for")
        if len({*leased, *self._returned}) != len(leased) + len(self._returned):
            problems.append("a block is in two places")
        if any(b >= self._next_fresh for b in leased) or any(b >= self._next_fresh for b in self._returned):
            problems.append("a fresh block is leased or returned")
        held = {lease_id for worker in self._workers.values() for lease_id in worker.leases}
        if held != set(self._leases):
            problems.append("leases of workers and leases known differ")
        if any(worker.leases and not worker.joined for worker in self._workers.values()):
            problems.append("a worker that has not joined holds a lease")
        if problems:
            raise InternalError("; ".join(problems), self.story())

    # -- events ----------------------------------------------------------------------------------------

    def _answered(self, event: Answered, now: float, actions: list[Action]) -> None:
        lease = self._leases.get(event.lease)
        if lease is None or lease.worker != event.worker:
            self.stale_answers += 1
            return
        if not 0 < event.number <= len(lease.blocks) - lease.done:
            raise InternalError(
                f"{event.worker} answers {event.number} blocks of lease {event.lease}, which has "
                f"{len(lease.blocks) - lease.done} left",
                self.story(),
            )
        blocks = lease.blocks[lease.done : lease.done + event.number]
        lease.done += event.number
        worker = self._workers[event.worker]
        self._learn(worker, event)
        if lease.done == len(lease.blocks):
            self._drop_lease(event.lease)
            worker.on_suspect = False
        self._accepted += event.number
        self._ends_without_progress = 0
        self._progress_at = now
        if self._kills:
            for block in blocks:
                self._kills.pop(block, None)
        actions.append(Accept(event.worker, blocks))

    def _learn(self, worker: _Worker, event: Answered) -> None:
        seconds = event.seconds / event.number
        known = worker.seconds_per_block
        worker.seconds_per_block = seconds if known is None else 0.5 * (known + seconds)
        worker.overhead_s = event.overhead_s
        # A worker that ran dry needs more in its queue: the round trip, or the caller's own work between
        # two looks at the socket, is longer than what it had.
        if event.starved and len(worker.leases) == worker.credit:
            worker.credit = min(worker.credit + 1, policy.MAX_CREDIT)

    def _failed(self, event: Failed, actions: list[Action]) -> None:
        lease = self._leases.get(event.lease)
        if lease is None or lease.worker != event.worker:
            self.stale_answers += 1
            return
        self._give_up(
            actions, GiveUp(Cause.USER_EXCEPTION, lease.blocks[lease.done], attempts=1, worker=event.worker)
        )

    def _lost(self, event: WorkerLost, now: float, actions: list[Action]) -> None:
        self.workers_lost += 1
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return
        rest = [block for lease in worker.leases.values() for block in lease.rest]
        for lease_id in list(worker.leases):
            del self._leases[lease_id]
        self.retries += len(rest)
        # To the front, in order: the caller waits for the lowest number.
        self._returned = deque(sorted([*rest, *self._returned]))
        running = event.running
        if running is not None and running in rest:
            kills = self._kills[running] = self._kills.get(running, 0) + 1
            if kills >= self.limits.max_kills_per_block:
                give_up = GiveUp(Cause.POISON_BLOCK, running, kills, event.worker, event.evidence)
                self._give_up(actions, give_up)
                return
        else:
            self._count_end(event.worker, event.evidence, actions)
        if not self._any_joined():
            self._starting_since = now

    def _count_end(self, worker: str, evidence: str, actions: list[Action]) -> None:
        """Count an end of a worker that no block is to blame for."""
        self._ends_without_progress += 1
        ends = self._ends_without_progress
        if ends >= policy.start_failures_allowed(self.limits.num_workers):
            self._give_up(actions, GiveUp(Cause.NO_WORKERS, None, ends, worker, evidence))

    def _tick(self, now: float, actions: list[Action]) -> None:
        deadline = self.next_deadline()
        if deadline is None or now < deadline:
            return
        cause = Cause.OUTCOME_TIMEOUT if self._any_joined() else Cause.START_TIMEOUT
        block = min((lease.rest[0] for lease in self._leases.values()), default=None)
        self._give_up(actions, GiveUp(cause, block))

    # -- decisions -------------------------------------------------------------------------------------

    def _start_workers(self, actions: list[Action]) -> None:
        unfinished = self._planned - self._accepted
        running = len(self._workers) + self._asked_to_start
        # Before the plan has ended there is more to come: start all at once rather than one a block.
        wanted = min(self.limits.num_workers, unfinished) if self._plan_ended else self.limits.num_workers
        if unfinished and running < wanted:
            self._asked_to_start += wanted - running
            actions.append(StartWorkers(wanted - running))

    def _dispatch(self, actions: list[Action]) -> None:
        if not self.waiting:
            return
        # Idle workers first, then those that may queue ahead, always the one with the least on its hands.
        joined = [item for item in self._workers.items() if item[1].joined]
        depth = 0
        while self.waiting and joined:
            joined = [(name, worker) for name, worker in joined if self._may_take(worker, depth)]
            for name, worker in joined:
                if not self.waiting:
                    break
                if len(worker.leases) == depth and self._may_take(worker, depth):
                    self._lease(name, worker, actions)
            depth += 1

    def _may_take(self, worker: _Worker, depth: int) -> bool:
        if worker.on_suspect or depth >= worker.credit:
            return False
        return depth == 0 or policy.may_queue_ahead(
            worker.seconds_per_block, self.waiting, len(self._workers)
        )

    def _lease(self, name: str, worker: _Worker, actions: list[Action]) -> None:
        blocks = self._next_blocks(worker)
        if not blocks:
            return
        self._last_lease += 1
        lease = _Lease(name, blocks)
        self._leases[self._last_lease] = worker.leases[self._last_lease] = lease
        actions.append(Dispatch(name, self._last_lease, blocks))

    def _next_blocks(self, worker: _Worker) -> Sequence[int]:
        if self._returned:
            return self._next_returned(worker)
        size = 1
        if worker.seconds_per_block is not None:
            target_s = policy.lease_target_s(len(self._workers), worker.overhead_s)
            # What is here now is shared out so that everyone has two leases from it.
            in_reach = self.waiting if self._plan_ended else self.limits.window // 2
            fair_share = max(1, in_reach // (2 * max(1, len(self._workers))))
            size = policy.batch_size(worker.batch, worker.seconds_per_block, target_s, fair_share)
            worker.batch = size
        first = self._next_fresh
        self._next_fresh = min(first + size, self._planned)
        return range(first, self._next_fresh)

    def _next_returned(self, worker: _Worker) -> Sequence[int]:
        """Take blocks that came back.

        One that a worker died on goes alone, to a worker that has nothing else: if it kills again, it is
        certain which it was, and nothing goes down with it.
        """
        if self._returned[0] in self._kills:
            if worker.leases:
                return ()
            worker.on_suspect = True
            return (self._returned.popleft(),)
        blocks: list[int] = []
        while self._returned and len(blocks) < worker.batch and self._returned[0] not in self._kills:
            blocks.append(self._returned.popleft())
        return tuple(blocks)

    # -- small things ----------------------------------------------------------------------------------

    def _any_joined(self) -> bool:
        return any(worker.joined for worker in self._workers.values())

    def _worker(self, name: str) -> _Worker:
        try:
            return self._workers[name]
        except KeyError:
            raise InternalError(f"worker {name} joined but was never started", self.story()) from None

    def _drop_lease(self, lease_id: int) -> None:
        lease = self._leases.pop(lease_id)
        del self._workers[lease.worker].leases[lease_id]

    def _give_up(self, actions: list[Action], give_up: GiveUp) -> None:
        self._given_up = True
        actions.append(give_up)
