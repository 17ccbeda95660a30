"""All that the scheduler knows, and the two ways in which blocks change hands: lend and close."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from computemanager.scheduler import policy
from computemanager.scheduler.actions import Action, Cause, Dispatch, GiveUp, Skip
from computemanager.scheduler.backlog import Backlog, Frontier
from computemanager.scheduler.leases import Lease, Stretch
from computemanager.scheduler.limits import SchedulerLimits
from computemanager.scheduler.pace import Times
from computemanager.scheduler.roster import Roster, Worker
from computemanager.scheduler.stragglers import Stragglers
from computemanager.scheduler.trouble import Trouble

__all__ = ["Books"]


class Books:
    """The state of one job.

    Attributes
    ----------
    leases : dict of int to Lease
        What is out, by the lease's number.
    progress_at : float
        When a block was finished last, or work began after a time without any.
    ends_without_progress : int
        How many hosts and workers have ended, with no block to blame, since a block was finished.
    weight_of_ends : float
        How much they count towards giving up (`policy.weight_of_end`).
    """

    def __init__(self, limits: SchedulerLimits, now: float) -> None:
        self.limits = limits
        self.backlog = Backlog()
        self.frontier = Frontier()
        self.roster = Roster()
        self.stragglers = Stragglers()
        self.trouble = Trouble(limits)
        self.times = Times()
        self.leases: dict[int, Lease] = {}
        self.plan_ended = False
        self.given_up = False
        self.progress_at = now
        self.ends_without_progress = 0
        self.weight_of_ends = 0.0
        self.stale_answers = self.retries = self.workers_lost = self.speculated = self.skipped = 0
        self._last_lease = 0

    @property
    def unfinished(self) -> int:
        """Blocks that were pulled from the plan and are neither accepted nor skipped."""
        return self.backlog.planned - self.frontier.finished

    @property
    def in_work(self) -> int:
        """Unfinished blocks that a worker has."""
        return self.unfinished - self.backlog.waiting

    def lend(self, worker: Worker, stretch: Stretch, now: float, actions: list[Action]) -> None:
        """Give a worker what is not finished of a stretch."""
        start = stretch.accepted
        self._last_lease += 1
        lease = Lease(self._last_lease, worker, stretch, start)
        stretch.leases.append(lease)
        if not worker.leases:
            worker.progress_at = now
        self.leases[lease.number] = worker.leases[lease.number] = lease
        self.roster.has_work(worker)
        self.roster.place(worker)
        self.stragglers.note(worker, progressed=len(worker.leases) == 1)
        blocks = stretch.blocks[start:] if start else stretch.blocks
        actions.append(Dispatch(worker.name, lease.number, blocks))

    def close(self, lease: Lease) -> int:
        """Take a lease from its worker; return how many blocks nobody has now for that.

        They wait again. What another worker is on as well stays with that one.
        """
        worker, stretch = lease.worker, lease.stretch
        del self.leases[lease.number], worker.leases[lease.number]
        stretch.leases.remove(lease)
        self.stragglers.close(lease)
        if stretch.leases:
            self.refile(stretch.leases[0].worker)
            return 0
        if stretch.accepted == len(stretch.blocks):
            return 0
        rest = stretch.rest
        if self.trouble and any(self.trouble.is_suspect(block) for block in rest):
            for block in rest:
                if self.trouble.is_suspect(block):
                    self.backlog.give_back_suspect(block)
                else:
                    self.backlog.give_back(range(block, block + 1))
        else:
            self.backlog.give_back(rest)
        return len(rest)

    def refile(self, worker: Worker, *, progressed: bool = False) -> None:
        """Put a worker where it belongs in all queues."""
        self.roster.file(worker)
        self.stragglers.note(worker, progressed=progressed)

    def remove(self, worker: Worker) -> None:
        """A worker is gone: what only it had waits again."""
        self.workers_lost += 1
        for lease in list(worker.leases.values()):
            self.retries += self.close(lease)
        self.roster.lose(worker)
        self.stragglers.forget(worker)

    def finish(self, blocks: Sequence[int], now: float) -> None:
        """Count blocks as finished."""
        self.frontier.finish(blocks)
        if self.trouble:
            self.trouble.clear(blocks)
        self.progress_at = now
        self.ends_without_progress = 0
        self.weight_of_ends = 0.0

    def blame(
        self,
        lease: Lease,
        position: int,
        cause: Cause,
        end: tuple[str, str],
        now: float,
        actions: list[Action],
    ) -> None:
        """Count a failed attempt at the block at this position of a lease's stretch.

        `end` is the name of what ended, worker or host, and the evidence. What is done if that was once too
        often: the job goes on without the block, or ends.
        """
        stretch = lease.stretch
        block = stretch.blocks[position]
        attempts = self.trouble.add(block, cause)
        if cause in (Cause.POISON_BLOCK, Cause.BLOCK_TIMEOUT):
            stretch.suspect = True
        if not self.trouble.at_limit(block, cause):
            return
        if self.limits.skip and cause is not Cause.LOST_TOO_OFTEN:
            stretch.skip(position)
            self.finish(range(block, block + 1), now)
            self.skipped += 1
            actions.append(Skip(block, cause, attempts, *end))
        else:
            self.give_up(GiveUp(cause, block, attempts, *end), actions)

    def give_up(self, give_up: GiveUp, actions: list[Action]) -> None:
        """End the job, unless it has ended."""
        if not self.given_up:
            self.given_up = True
            actions.append(give_up)

    def room(self, worker: Worker, now: float) -> int:
        """How many more blocks a worker can take before its time is up."""
        if worker.ends_at is None or worker.times is None:
            return policy.MAX_BATCH
        own, everybody = worker.times, self.times.upper(policy.SURE_SHARE)
        upper = own.upper(policy.SURE_SHARE)
        if own.total < policy.ENOUGH_TIMES and everybody is not None:
            upper = max(upper or 0.0, everybody)
        if upper is None and worker.leases:
            return 0
        return policy.blocks_in_time(worker.ends_at - now, upper) - worker.in_hand

    def problems(self) -> Iterator[str]:
        """What is wrong, for `Scheduler.check`: looks at everything."""
        backlog, frontier = self.backlog, self.frontier
        stretches = {id(lease.stretch): lease.stretch for lease in self.leases.values()}.values()
        lent = [block for stretch in stretches for block in stretch.rest]
        if self.in_work != len(lent):
            yield f"{backlog.planned} blocks planned, but {len(lent)} and not {self.in_work} are in work"
        elsewhere = [*lent, *backlog.blocks_returned()]
        if len(set(elsewhere)) != len(elsewhere):
            yield "a block is in two places"
        if any(frontier.is_finished(block) for block in elsewhere):
            yield "a finished block waits or is in work"
        if frontier.lowest < backlog.planned and frontier.is_finished(frontier.lowest):
            yield "the lowest unfinished block is finished"
        held = {number for worker in self.roster.workers.values() for number in worker.leases}
        if held != set(self.leases):
            yield "leases of workers and leases known differ"
        for number, lease in self.leases.items():
            if lease.number != number or lease not in lease.stretch.leases or len(lease.stretch.leases) > 2:
                yield f"lease {number} is not on its stretch, or with too many others"
            if lease.outstanding <= 0:
                yield f"lease {number} has nothing left and is still out"
        yield from backlog.problems()
        yield from self.roster.problems()
        yield from self.stragglers.problems(self.roster.workers)
        if not self.given_up:
            yield from self.trouble.problems()
