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
    waiting = backlog.waiting
    roster.wake(now, hungry=waiting > 0)
    if not waiting:
        return
    roster.look_at_one_resting()
    workers = max(len(roster.workers), books.limits.num_workers)  # that are there, or that are to come
    while waiting:
        # A suspect is for a worker that has nothing else: until it has gone, nobody gets more than one lease.
        deep = not backlog.has_suspects and policy.may_queue_ahead(waiting, workers)
        worker = roster.first_free(deep=deep)
        if worker is None:
            break
        most = books.room(worker, now)
        if most < 1:
            roster.rest(worker, None)
        elif (rest_s := _rest_s(books, worker)) is not None:
            roster.rest(worker, now + rest_s)
        else:
            if books.unfinished == waiting:
                books.progress_at = now  # work begins
            if not worker.leases and backlog.suspect_is_next():
                stretch = Stretch(backlog.take_suspect(), suspect=True)
            else:
                stretch = Stretch(_ordinary(books, worker, most, workers))
            books.lend(worker, stretch, now, actions)
            waiting -= len(stretch.blocks)


def _ordinary(books: Books, worker: Worker, most: int, workers: int) -> Sequence[int]:
    size = 1
    if worker.seconds_per_block is not None:
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
