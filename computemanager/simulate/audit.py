"""Books of a simulation's own, kept apart from the scheduler's to see whether its promises hold."""

from __future__ import annotations

from collections.abc import Sequence

from computemanager.errors import InternalError
from computemanager.model import Outcome
from computemanager.scheduler import (
    Accept,
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
    Planned,
    Raised,
    Recall,
    SchedulerLimits,
    Skip,
    WorkerJoined,
    WorkerLost,
)

__all__ = ["Audit", "Violation"]

MARGIN = 1.25
"""A worker that is to end may be spared blocks if it has less time than this times the longest block."""


class Violation(InternalError):
    """A promise that a simulation saw broken."""


class _Worker:
    def __init__(self, name: str, host: str, ends_at: float | None) -> None:
        self.name = name
        self.host = host
        self.ends_at = ends_at
        self.leases: dict[int, _Lease] = {}
        self.idle_since: float | None = None
        self.slowest_s = 0.0


class _Lease:
    def __init__(self, blocks: Sequence[int]) -> None:
        self.blocks = blocks
        self.done = 0

    @property
    def left(self) -> Sequence[int]:
        return self.blocks[self.done :]


class Audit:
    """What main was told and what it did, in the plainest way.

    Attributes
    ----------
    hosts, silent : set of str
        Hosts that were started and are not known to have ended; those that are silent.
    accepted : set of int
        Blocks that count.
    """

    def __init__(self, limits: SchedulerLimits, *, ordered: bool) -> None:
        self._limits = limits
        self._ordered = ordered
        self.hosts: set[str] = set()
        self.silent: set[str] = set()
        self.accepted: set[int] = set()
        self._skipped: set[int] = set()
        self._taken: set[int] = set()
        self._pulled = 0
        self._draining: set[str] = set()
        self._had_workers: set[str] = set()
        self._workers: dict[str, _Worker] = {}
        self._holders: dict[int, int] = {}  # of an unanswered block
        self._failures: dict[tuple[Cause, int], int] = {}
        self._suspects: set[int] = set()
        self._last_lease = 0
        self._recalled: set[int] = set()
        self._ends = self._hopeless = 0
        self._longest_s = 0.0

    # -- events ----------------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """Take note of what the scheduler is about to be told."""
        if isinstance(event, Planned):
            self._pulled += event.number
        elif isinstance(event, HostStarted):
            self.hosts.add(event.host)
        elif isinstance(event, HostSilent):
            self.silent.add(event.host)
        elif isinstance(event, HostBack):
            self.silent.discard(event.host)
        elif isinstance(event, HostDraining):
            self._draining.add(event.host)
        elif isinstance(event, WorkerJoined):
            host = event.host or event.worker
            self._workers[event.worker] = _Worker(event.worker, host, event.ends_at)
            self._had_workers.add(host)
        elif isinstance(event, WorkerLost):
            self._lost(event)
        elif isinstance(event, HostEnded):
            self._ended(event)
        elif isinstance(event, (Answered, Raised, GaveBack)):
            self._lease_event(event)

    def _lease_event(self, event: Answered | Raised | GaveBack) -> None:
        worker = self._workers.get(event.worker)
        lease = worker.leases.get(event.lease) if worker is not None else None
        if worker is None or lease is None:
            return
        if isinstance(event, Answered):
            pace = event.seconds / event.number
            worker.slowest_s = max(worker.slowest_s, pace)
            self._longest_s = max(self._longest_s, pace)
            self._release(lease.left[: event.number])
            lease.done += event.number
            if lease.left:
                return
        elif isinstance(event, Raised):
            self._fail(Cause.USER_EXCEPTION, lease.blocks[event.position])
        self._release(lease.left)
        del worker.leases[event.lease]

    def _lost(self, event: WorkerLost) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            return
        if any(event.running in lease.left for lease in worker.leases.values()):
            assert event.running is not None
            self._fail(Cause.BLOCK_TIMEOUT if event.timed_out else Cause.POISON_BLOCK, event.running)
            self._suspects.add(event.running)
        else:
            self._ends += 1
        self._remove(worker)

    def _ended(self, event: HostEnded) -> None:
        if event.host not in self.hosts:
            return
        self.hosts.discard(event.host)
        self._hopeless += event.hopeless
        workers = [worker for worker in self._workers.values() if worker.host == event.host]
        self._ends += bool(workers) or event.host not in self._had_workers
        for worker in workers:
            lost = [block for lease in worker.leases.values() for block in lease.left]
            self._remove(worker)
            for block in lost:
                if block not in self._holders:
                    self._fail(Cause.LOST_TOO_OFTEN, block)

    def _fail(self, cause: Cause, block: int) -> None:
        if not self._is_finished(block):
            self._failures[cause, block] = self._failures.get((cause, block), 0) + 1
            if self._failures[cause, block] > self._most(cause):
                raise Violation(f"block {block} was tried again after its last {cause.value}")

    def _most(self, cause: Cause) -> int:
        limits = self._limits
        return {
            Cause.USER_EXCEPTION: limits.max_raises_per_block,
            Cause.POISON_BLOCK: limits.max_kills_per_block,
            Cause.BLOCK_TIMEOUT: limits.max_timeouts_per_block,
            Cause.LOST_TOO_OFTEN: limits.max_losses_per_block,
        }[cause]

    def _remove(self, worker: _Worker) -> None:
        del self._workers[worker.name]
        for lease in worker.leases.values():
            self._release(lease.left)

    def _release(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]

    def _is_finished(self, block: int) -> bool:
        return block in self.accepted or block in self._skipped

    # -- actions ---------------------------------------------------------------------------------------

    def dispatch(self, action: Dispatch) -> None:
        """Blocks go to a worker that is there, and not to too many."""
        worker = self._workers.get(action.worker)
        if worker is None or worker.host in self.silent or worker.host in self._draining:
            raise Violation(f"{action} to a worker that is gone, silent or about to end")
        if action.lease <= self._last_lease or not action.blocks:
            raise Violation(f"{action} is empty, or the lease's number is not new")
        self._last_lease = action.lease
        held = [block for lease in worker.leases.values() for block in lease.left]
        if self._suspects.intersection([*action.blocks, *held]) and (len(action.blocks) > 1 or held):
            raise Violation(f"{action}: a block that ended its worker is not alone")
        for block in action.blocks:
            holders = self._holders[block] = self._holders.get(block, 0) + 1
            if block >= self._pulled or self._is_finished(block):
                raise Violation(f"{action}: block {block} is not pulled yet, or finished")
            if holders > 2 or (holders == 2 and (not self._limits.speculate or block in self._suspects)):
                raise Violation(f"{action}: block {block} is with {holders - 1} already")
        worker.leases[action.lease] = _Lease(action.blocks)

    def accept(self, action: Accept, handed_in: Sequence[int]) -> None:
        """What counts was handed in just now, and counts once."""
        values = handed_in if action.positions is None else [handed_in[at] for at in action.positions]
        if list(values) != list(action.blocks) or not action.blocks:
            raise Violation(f"{action}: the values are those of {list(values)}")
        for block in action.blocks:
            if self._is_finished(block):
                raise Violation(f"block {block} is accepted although it is finished")
            self.accepted.add(block)
        self._finished(action.blocks)

    def skip(self, action: Skip) -> None:
        """A block is left out only where that was asked for, after as many attempts as allowed."""
        self._judge(action.cause, action.block, action.attempts)
        if not self._limits.skip or self._is_finished(action.block):
            raise Violation(f"{action}: was not asked for, or is finished")
        if action.cause is Cause.LOST_TOO_OFTEN:
            raise Violation(f"{action}: the block is not at fault")
        self._skipped.add(action.block)
        self._finished([action.block])

    def recall(self, action: Recall) -> None:
        """Only what waits behind something else is asked for, and once."""
        worker = self._workers.get(action.worker)
        if worker is None or action.lease not in list(worker.leases)[1:] or action.lease in self._recalled:
            raise Violation(f"{action}: no such lease, or it is begun, or was recalled before")
        self._recalled.add(action.lease)

    def give_up(self, action: GiveUp, *, now: float) -> None:
        """The job ends with an error only for a reason."""
        cause, limits = action.cause, self._limits
        hosts_there = len({worker.host for worker in self._workers.values()})
        if cause is Cause.NO_WORKERS:
            right = self._ends >= max(4, limits.num_workers + 1) or self._hopeless >= limits.num_workers
        elif cause is Cause.START_TIMEOUT:
            right = not self._had_workers and limits.start_timeout_s is not None
        elif cause is Cause.TOO_FEW_WORKERS:
            right = hosts_there < limits.min_workers and limits.start_timeout_s is not None
        elif cause is Cause.OUTCOME_TIMEOUT:
            right = limits.outcome_timeout_s is not None and now >= limits.outcome_timeout_s
        else:
            assert action.block is not None
            self._judge(cause, action.block, action.attempts)
            right = not limits.skip or cause is Cause.LOST_TOO_OFTEN
        if not right:
            raise Violation(f"{action} for no reason")

    def take(self, outcome: Outcome) -> None:
        """The caller gets every block once, in order."""
        block = outcome.block_index
        if block in self._taken or (self._ordered and block != len(self._taken)):
            raise Violation(f"the outcome of block {block} is the caller's number {len(self._taken)}")
        if (block if outcome.skipped is None else None) != outcome.value:
            raise Violation(f"the outcome of block {block} is {outcome}")
        self._taken.add(block)

    def _judge(self, cause: Cause, block: int, attempts: int) -> None:
        failures = self._failures.get((cause, block), 0)
        if not failures == attempts == self._most(cause):
            raise Violation(
                f"block {block} is given up after {attempts} x {cause.value}; it was {failures} times, "
                f"and {self._most(cause)} are allowed"
            )

    def _finished(self, blocks: Sequence[int]) -> None:
        self._ends = 0
        for block in blocks:
            self._suspects.discard(block)

    # -- at any time -----------------------------------------------------------------------------------

    def check(self, waiting: int, now: float, *, plan_ended: bool) -> None:
        """No block is lost, and nobody is idle for no reason.

        A worker that is there and has nothing may be left so while blocks wait, if it is about to end, or,
        when there is no more to come, for as long as one block takes it: the others are quicker.
        """
        in_work = sum(not self._is_finished(block) for block in self._holders)
        unfinished = self._pulled - len(self.accepted) - len(self._skipped)
        if in_work + waiting != unfinished:
            raise Violation(f"{unfinished} blocks are unfinished, {in_work} in work, {waiting} wait")
        for worker in self._workers.values():
            idle = waiting and not worker.leases
            if not idle or worker.host in self.silent or worker.host in self._draining:
                worker.idle_since = None
                continue
            if worker.ends_at is not None and worker.ends_at - now <= MARGIN * self._longest_s:
                continue
            if worker.idle_since is None:
                worker.idle_since = now
            if now - worker.idle_since > (worker.slowest_s if plan_ended else 0.0) or (
                not plan_ended or not worker.slowest_s
            ):
                raise Violation(
                    f"{worker.name} has nothing since {worker.idle_since:.6f} although {waiting} blocks wait"
                )

    def check_end(self, blocks: int) -> None:
        """All that was planned has reached the caller."""
        if self.accepted | self._skipped != set(range(blocks)) or len(self._taken) != blocks:
            raise Violation(
                f"of {blocks} blocks {len(self.accepted)} were accepted, {len(self._skipped)} skipped and "
                f"{len(self._taken)} taken"
            )
