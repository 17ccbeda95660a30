"""Who gets which of the waiting blocks."""

from __future__ import annotations

from collections.abc import Sequence

from computemanager.scheduler import policy
from computemanager.scheduler.actions import Action
from computemanager.scheduler.books import Books
from computemanager.scheduler.leases import Stretch
from computemanager.scheduler.roster import Worker

__all__ = ["dispatch"]


def dispatch(books: Books, now: float, actions: list[Action]) -> None:
    """Hand out blocks while there are some, and workers that may have them.

    Idle workers come first, then those that may queue ahead, always one with the least on its hands.
    """
    backlog, roster = books.backlog, books.roster
    roster.wake(now, hungry=backlog.waiting > 0)
    if not backlog.waiting:
        return
    roster.look_at_one_resting()
    while backlog.waiting:
        # A suspect is for a worker that has nothing else: until it has gone, nobody gets more than one lease.
        deep = not backlog.has_suspects and policy.may_queue_ahead(backlog.ordinary, _workers(books))
        worker = roster.first_free(deep=deep)
        if worker is None:
            break
        most = books.room(worker, now)
        if most < 1:
            roster.rest(worker, None)
        elif (rest_s := _rest_s(books, worker)) is not None:
            roster.rest(worker, now + rest_s)
        else:
            _hand_out(books, worker, most, now, actions)


def _hand_out(books: Books, worker: Worker, most: int, now: float, actions: list[Action]) -> None:
    if not books.in_work:
        books.progress_at = now
    if not worker.leases and books.backlog.suspect_is_next():
        stretch = Stretch(books.backlog.take_suspect(), suspect=True)
    else:
        stretch = Stretch(_ordinary(books, worker, most))
    books.lend(worker, stretch, now, actions)


def _ordinary(books: Books, worker: Worker, most: int) -> Sequence[int]:
    size = 1
    if worker.seconds_per_block is not None:
        workers = _workers(books)
        target_s = policy.lease_target_s(workers, worker.overhead_s)
        # What is here now is shared out so that everyone has two leases from it.
        in_reach = books.backlog.ordinary if books.plan_ended else books.limits.window // 2
        fair_share = max(1, in_reach // (2 * workers))
        size = policy.batch_size(worker.batch, worker.seconds_per_block, target_s, fair_share)
        worker.batch = size
    return books.backlog.take(min(size, most))


def _rest_s(books: Books, worker: Worker) -> float | None:
    if worker.leases or worker.rested or not books.plan_ended:
        return None
    roster = books.roster
    others = roster.paced - (worker.counted_rate > 0)
    others_rate = roster.rate - worker.counted_rate
    return policy.rest_s(worker.seconds_per_block, books.unfinished, others_rate, others)


def _workers(books: Books) -> int:
    """Workers to share with: those that are there, or that are to come."""
    return max(len(books.roster.workers), books.limits.num_workers)
