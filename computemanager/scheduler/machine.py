"""The scheduler: events in, actions out. No socket, thread, clock or chance in here.

Where a block can be
--------------------
::

    fresh ──dispatch──> in work ──answer──> accepted
                         │  ^  │
       worker lost,      │  │  └──(failed as often as it may)──> skipped, or the job is given up
       raised, given     v  │ dispatch; alone if it ended a worker
       back            waiting again

While it is in work, two workers may be on it: a copy is run where the first one is silent or late. The first
answer counts, and a block waits again only when neither has it any more.

Blocks are numbered in the order of the plan, and workers hand in a lease's blocks in the lease's order. So
the fresh blocks are one range, a lease is usually a range too, and every event costs the same however many
blocks and workers there are: a million blocks are no list anywhere, and nothing walks over all workers.

Every lease has a number that is never used again and every answer names it: what a worker hands in under a
lease that was taken from it is recognised and counted, and has no effect.

The books are in `books`, who gets what waits is decided in `dispatch`, what idle workers do for others in
`rescue`, and all figures come from `policy`.
"""

from __future__ import annotations

from collections import deque

from computemanager.errors import InternalError
from computemanager.scheduler import policy
from computemanager.scheduler.actions import Accept, Action, Cause, GiveUp, StartHosts
from computemanager.scheduler.books import Books
from computemanager.scheduler.dispatch import dispatch
from computemanager.scheduler.events import (
    Answered,
    Event,
    GaveBack,
    HostBack,
    HostDraining,
    HostEnded,
    HostSilent,
    HostStarted,
    PlanEnded,
    Planned,
    Raised,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from computemanager.scheduler.leases import Lease
from computemanager.scheduler.limits import SchedulerLimits
from computemanager.scheduler.rescue import rescue, rescue_lowest
from computemanager.scheduler.roster import Worker

__all__ = ["Scheduler"]


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
    [StartHosts(number=1)]
    >>> scheduler.handle(HostStarted("w0"), 0.0)
    []
    >>> scheduler.handle(WorkerJoined("w0"), 0.2)
    [Dispatch(worker='w0', lease=1, blocks=range(0, 1))]
    >>> for action in scheduler.handle(Answered("w0", 1, 1, seconds=0.1), 0.3):
    ...     print(action)
    Accept(worker='w0', blocks=range(0, 1), positions=None)
    Dispatch(worker='w0', lease=2, blocks=range(1, 2))
    """

    def __init__(self, limits: SchedulerLimits, now: float) -> None:
        self.limits = limits
        self._books = Books(limits, now)
        self._asked_to_start = 0
        self._hopeless = 0
        self._last_end = ("", "")  # host or worker, evidence
        self._any_joined = False
        self._too_few_since: float | None = now
        self._look_again_at: float | None = None
        self._story: deque[tuple[float, Event]] = deque(maxlen=50)

    # -- what the driver may ask -----------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Every block of the plan, which has ended, is accepted or skipped."""
        return self._books.plan_ended and not self._books.unfinished

    @property
    def waiting(self) -> int:
        """Pulled blocks that no worker has."""
        return self._books.backlog.waiting

    @property
    def stale_answers(self) -> int:
        """Blocks that were answered too late to count: they were done elsewhere, or had been taken away."""
        return self._books.stale_answers

    @property
    def retries(self) -> int:
        """Blocks handed out again because an attempt failed, or their worker was lost."""
        return self._books.retries

    @property
    def workers_lost(self) -> int:
        """Workers that were there and are gone."""
        return self._books.workers_lost

    @property
    def speculated(self) -> int:
        """Blocks that were handed to a second worker."""
        return self._books.speculated

    @property
    def skipped(self) -> int:
        """Blocks that the job goes on without."""
        return self._books.skipped

    def next_deadline(self) -> float | None:
        """When to send a `Tick` if nothing else happens before, or None."""
        if self._books.given_up or self.finished:
            return None
        times = (
            self._too_few_deadline(),
            self._outcome_deadline(),
            self._look_again_at,
            self._books.roster.next_alarm,
        )
        return min((time for time in times if time is not None), default=None)

    def block_at(self, lease_id: int, position: int) -> int | None:
        """The block at a place in a lease that is still out, counted from its first, or None."""
        lease = self._books.leases.get(lease_id)
        if lease is None or not 0 <= position < len(lease.stretch.blocks) - lease.start:
            return None
        return lease.stretch.blocks[lease.start + position]

    def progress_of(self, lease_id: int, worker: str) -> tuple[int, int] | None:
        """How many blocks a worker has answered of a lease, and how many not; None if it has no such."""
        lease = self._books.leases.get(lease_id)
        return None if lease is None or lease.worker.name != worker else (lease.done, lease.outstanding)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in what has happened; return what is to be done about it, in order."""
        self._story.append((now, event))
        actions: list[Action] = []
        books = self._books
        if books.given_up:
            return actions
        if isinstance(event, Answered):
            self._answered(event, now, actions)
        elif isinstance(event, Planned):
            if not books.unfinished and self._too_few_since is not None:
                self._too_few_since = now
            books.backlog.plan(event.number)
        elif isinstance(event, PlanEnded):
            books.plan_ended = True
        elif isinstance(event, Tick):
            self._tick(now, actions)
        elif isinstance(event, (Raised, GaveBack)):
            self._ended_lease(event, now, actions)
        else:
            self._changed_workers(event, now, actions)
        if not books.given_up:
            self._start_hosts(actions)
            rescue_lowest(books, now, actions)
            dispatch(books, now, actions)
            self._look_again_at = rescue(books, now, actions)
        return actions

    def story(self) -> list[str]:
        """The last events, oldest first, for the report of an error that should not happen."""
        return [f"{when:.6f} {event!r}" for when, event in self._story]

    def check(self) -> None:
        """Raise `InternalError` if the books do not balance. For tests: it looks at everything."""
        problems = list(self._books.problems())
        enough = self._books.roster.hosts_with_workers >= self.limits.min_workers
        if enough != (self._too_few_since is None):
            problems.append("it is not known whether there are enough workers")
        if problems:
            raise InternalError("; ".join(problems), self.story())

    # -- leases ----------------------------------------------------------------------------------------

    def _answered(self, event: Answered, now: float, actions: list[Action]) -> None:
        books = self._books
        lease = books.leases.get(event.lease)
        if lease is None or lease.worker.name != event.worker:
            books.stale_answers += event.number
            return
        number = event.number
        if not 0 < number <= lease.outstanding:
            raise InternalError(
                f"{event.worker} answers {number} blocks of lease {event.lease}, which has "
                f"{lease.outstanding} left",
                self.story(),
            )
        self._learn(lease.worker, event)
        self._accept(lease, number, now, actions)
        if not lease.outstanding:
            books.close(lease)
        self._has_progressed(lease.worker, now)

    def _accept(self, lease: Lease, number: int, now: float, actions: list[Action]) -> None:
        books, stretch = self._books, lease.stretch
        start = lease.position
        lease.done += number
        fresh = stretch.advance(start, start + number)
        books.stale_answers += number - len(fresh)
        if not fresh:
            return
        positions = None
        if len(fresh) == number:
            blocks = stretch.blocks[start : start + number]
        else:
            blocks = tuple(stretch.blocks[position] for position in fresh)
            positions = tuple(position - start for position in fresh)
        books.finish(blocks, now)
        actions.append(Accept(lease.worker.name, blocks, positions))
        if len(stretch.leases) > 1:
            for other in stretch.leases:
                books.stragglers.note(other.worker)

    def _learn(self, worker: Worker, event: Answered) -> None:
        seconds = event.seconds / event.number
        known = worker.seconds_per_block
        worker.seconds_per_block = seconds if known is None else 0.5 * (known + seconds)
        worker.overhead_s = event.overhead_s
        self._books.times.add(seconds, event.number)
        if worker.times is not None:
            worker.times.add(seconds, event.number)
        # A worker that ran dry needs more in its queue: the round trip, or the caller's own work between
        # two looks at the socket, is longer than what it had.
        if event.starved and len(worker.leases) == worker.credit:
            worker.credit = min(worker.credit + 1, policy.MAX_CREDIT)

    def _ended_lease(self, event: Raised | GaveBack, now: float, actions: list[Action]) -> None:
        books = self._books
        lease = books.leases.get(event.lease)
        if lease is None or lease.worker.name != event.worker:
            books.stale_answers += isinstance(event, Raised)
            return
        if isinstance(event, Raised):
            position = lease.start + event.position
            if not lease.position <= position < len(lease.stretch.blocks):
                raise InternalError(
                    f"{event.worker} raised on block {event.position} of lease {event.lease}, which has done "
                    f"{lease.done} and has {lease.outstanding} left",
                    self.story(),
                )
            if lease.stretch.is_finished(position):
                books.stale_answers += 1
            else:
                books.blame(lease, position, Cause.USER_EXCEPTION, (event.worker, ""), now, actions)
        was_on_it = next(iter(lease.worker.leases)) == event.lease
        returned = books.close(lease)
        books.retries += returned if isinstance(event, Raised) else 0
        if was_on_it:
            self._has_progressed(lease.worker, now)
        else:  # what it gives back from its queue says nothing about the block that it is on
            books.roster.stir(lease.worker)
            books.refile(lease.worker)

    def _has_progressed(self, worker: Worker, now: float) -> None:
        worker.progress_at = now
        self._books.roster.stir(worker)
        self._books.refile(worker, progressed=True)

    # -- hosts and workers -----------------------------------------------------------------------------

    def _changed_workers(self, event: Event, now: float, actions: list[Action]) -> None:
        roster = self._books.roster
        if isinstance(event, WorkerJoined):
            self._joined(event, now)
        elif isinstance(event, WorkerLost):
            self._lost(event, now, actions)
        elif isinstance(event, HostStarted):
            self._asked_to_start = max(0, self._asked_to_start - 1)
            roster.start_host(event.host)
        elif isinstance(event, HostEnded):
            self._ended(event, now, actions)
        elif isinstance(event, (HostSilent, HostBack)):
            host = roster.hosts.get(event.host)
            if host is not None:
                host.silent = isinstance(event, HostSilent)
                for worker in host.workers.values():
                    self._books.refile(worker)
        elif isinstance(event, HostDraining):
            host = roster.hosts.get(event.host)
            if host is not None:
                roster.drain(host)
        else:
            raise InternalError(f"unknown event {event!r}", self.story())
        self._note_too_few(now)

    def _joined(self, event: WorkerJoined, now: float) -> None:
        roster = self._books.roster
        host = roster.hosts.get(event.host or event.worker)
        if host is None or event.worker in roster.workers:
            what = "but its host was never started" if host is None else "a second time"
            raise InternalError(f"worker {event.worker} joined {what}", self.story())
        roster.join(event.worker, host, event.ends_at, now)
        self._any_joined = True

    def _lost(self, event: WorkerLost, now: float, actions: list[Action]) -> None:
        books = self._books
        worker = books.roster.workers.get(event.worker)
        if worker is None:
            return
        found = None if event.running is None else _find(worker, event.running)
        if found is None:
            self._count_end(event.worker, event.evidence, actions)
        else:
            lease, position = found
            if not lease.stretch.is_finished(position):
                cause = Cause.BLOCK_TIMEOUT if event.timed_out else Cause.POISON_BLOCK
                books.blame(lease, position, cause, (event.worker, event.evidence), now, actions)
        books.remove(worker)

    def _ended(self, event: HostEnded, now: float, actions: list[Action]) -> None:
        books = self._books
        host = books.roster.hosts.get(event.host)
        if host is None:
            return
        # A host whose workers were lost one by one before has been counted with them.
        if host.workers or not host.joined:
            workers = host.workers.values()
            time_is_up = any(worker.ends_at is not None and worker.ends_at <= now for worker in workers)
            was_taken = host.draining or any(worker.leases for worker in workers)
            self._count_end(event.host, event.evidence, actions, was_taken=was_taken and not time_is_up)
        for worker in list(host.workers.values()):
            for lease in worker.leases.values():
                if len(lease.stretch.leases) == 1:
                    self._lose_rest(lease, event, now, actions)
            books.remove(worker)
        books.roster.end_host(host)
        self._hopeless += event.hopeless
        self._last_end = (event.host, event.evidence)

    def _lose_rest(self, lease: Lease, event: HostEnded, now: float, actions: list[Action]) -> None:
        for position in range(lease.stretch.accepted, len(lease.stretch.blocks)):
            if not lease.stretch.is_finished(position):
                end = (event.host, event.evidence)
                self._books.blame(lease, position, Cause.LOST_TOO_OFTEN, end, now, actions)

    def _count_end(self, name: str, evidence: str, actions: list[Action], *, was_taken: bool = False) -> None:
        """Count an end that no block is to blame for; a machine that was taken away weighs less."""
        books = self._books
        books.ends_without_progress += 1
        books.weight_of_ends += policy.weight_of_end(was_taken=was_taken)
        if books.weight_of_ends >= policy.start_failures_allowed(self.limits.num_workers):
            ends = books.ends_without_progress
            books.give_up(GiveUp(Cause.NO_WORKERS, None, ends, name, evidence), actions)

    def _start_hosts(self, actions: list[Action]) -> None:
        books = self._books
        unfinished = books.unfinished
        if not unfinished:
            return
        allowed = self.limits.num_workers - self._hopeless
        # Before the plan has ended there is more to come: start all at once rather than one a block.
        wanted = min(allowed, unfinished) if books.plan_ended else allowed
        there = len(books.roster.hosts) - books.roster.hosts_draining + self._asked_to_start
        if there < wanted:
            self._asked_to_start += wanted - there
            actions.append(StartHosts(wanted - there))
        elif allowed <= 0 and not books.roster.hosts and not self._asked_to_start:
            ends = books.ends_without_progress
            books.give_up(GiveUp(Cause.NO_WORKERS, None, ends, *self._last_end), actions)

    # -- limits of time --------------------------------------------------------------------------------

    def _note_too_few(self, now: float) -> None:
        if self._books.roster.hosts_with_workers >= self.limits.min_workers:
            self._too_few_since = None
        elif self._too_few_since is None:
            self._too_few_since = now

    def _too_few_deadline(self) -> float | None:
        limit_s, since = self.limits.start_timeout_s, self._too_few_since
        return None if limit_s is None or since is None or not self._books.unfinished else since + limit_s

    def _outcome_deadline(self) -> float | None:
        limit_s = self.limits.outcome_timeout_s
        return None if limit_s is None or not self._books.in_work else self._books.progress_at + limit_s

    def _tick(self, now: float, actions: list[Action]) -> None:
        books = self._books
        too_few, no_outcome = self._too_few_deadline(), self._outcome_deadline()
        if too_few is not None and now >= too_few:
            cause = Cause.TOO_FEW_WORKERS if self._any_joined else Cause.START_TIMEOUT
            evidence = f"{books.roster.hosts_with_workers} of {self.limits.min_workers} are there"
            books.give_up(GiveUp(cause, None, 0, "", evidence), actions)
        elif no_outcome is not None and now >= no_outcome:
            lent = (block for lease in books.leases.values() for block in lease.stretch.rest[:1])
            books.give_up(GiveUp(Cause.OUTCOME_TIMEOUT, min(lent)), actions)


def _find(worker: Worker, block: int) -> tuple[Lease, int] | None:
    """The lease of a worker that a block is in, and where in the lease's stretch; None if it has no such."""
    for lease in worker.leases.values():
        blocks = lease.stretch.blocks
        if block in blocks and (position := blocks.index(block)) >= lease.position:
            return lease, position
    return None
