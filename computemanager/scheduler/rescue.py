"""What idle workers can do for blocks that are with another worker: run a copy, or take them over."""

from __future__ import annotations

from computemanager.scheduler import policy
from computemanager.scheduler.actions import Action, Recall
from computemanager.scheduler.books import Books
from computemanager.scheduler.leases import Lease
from computemanager.scheduler.roster import Worker

__all__ = ["rescue", "rescue_lowest"]


def rescue_lowest(books: Books, now: float, actions: list[Action]) -> None:
    """Copy the lowest unfinished block from a silent worker at once, since the window waits for it."""
    lease = books.stragglers.silent(books.frontier.lowest)
    if lease is not None and books.limits.speculate:
        _copy_to_idle(books, lease, now, actions)


def rescue(books: Books, now: float, actions: list[Action]) -> float | None:
    """Let idle workers help, when nothing waits; return when to look again if nothing happens before."""
    if books.backlog.waiting:
        return None
    roster = books.roster
    if books.limits.speculate:
        while roster.idle and (lease := books.stragglers.silent()) is not None:
            if not _copy_to_idle(books, lease, now, actions):
                break
    times = [_recall(books, now, actions)]
    if books.limits.speculate:
        times.append(_copy_late_ones(books, now, actions))
    return min((time for time in times if time is not None), default=None)


def _copy_late_ones(books: Books, now: float, actions: list[Action]) -> float | None:
    """Copy leases whose next answer is late; return when the next one will be."""
    typical = books.times.typical
    while typical is not None and books.roster.idle and (found := books.stragglers.slowest()) is not None:
        holder, lease = found
        helper = _best_idle(books, lease, now)
        if helper is None:
            return None
        own, left = _pace(books, helper), lease.stretch.left
        when = holder.progress_at + policy.copy_after_s(left, typical, own, holder.seconds_per_block)
        if now < when:
            return when
        _copy(books, lease, helper, now, actions)
    return None


def _recall(books: Books, now: float, actions: list[Action]) -> float | None:
    """Ask for queued leases, one for every idle worker; return when to look again."""
    stragglers = books.stragglers
    while books.roster.idle > stragglers.recalls and (found := stragglers.queued()) is not None:
        worker, lease = found
        when = worker.progress_at + policy.QUEUE_AHEAD_BELOW_S
        ahead = worker.in_hand - lease.outstanding
        if now < when and ahead * (worker.seconds_per_block or 0.0) < policy.QUEUE_AHEAD_BELOW_S:
            return when  # it will get to it before a message could be there and back
        stragglers.recall(lease)
        actions.append(Recall(worker.name, lease.number))
    return None


def _copy_to_idle(books: Books, lease: Lease, now: float, actions: list[Action]) -> bool:
    helper = _best_idle(books, lease, now)
    if helper is not None:
        _copy(books, lease, helper, now, actions)
    return helper is not None


def _best_idle(books: Books, lease: Lease, now: float) -> Worker | None:
    """The quickest of a few idle workers that can do the rest of a lease before they end."""
    best: Worker | None = None
    for worker in books.roster.some_idle(policy.LOOK_AT):
        # Others get their turn next time: what is looked at here may be no use for long.
        books.roster.put_last(worker)
        if books.room(worker, now) < lease.stretch.left:
            continue
        if best is None or _pace(books, worker) < _pace(books, best):
            best = worker
    return best


def _pace(books: Books, worker: Worker) -> float:
    """Seconds a block of a worker; the usual where it has not done any."""
    return worker.seconds_per_block if worker.seconds_per_block is not None else books.times.typical or 0.0


def _copy(books: Books, lease: Lease, helper: Worker, now: float, actions: list[Action]) -> None:
    books.speculated += lease.stretch.left
    books.lend(helper, lease.stretch, now, actions)
    books.stragglers.note(lease.worker)
