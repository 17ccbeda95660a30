"""Who has been busy the longest: found at once, since the queues here are in order of last progress."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from computemanager.scheduler.leases import Lease
from computemanager.scheduler.roster import Worker

__all__ = ["Stragglers"]


class Stragglers:
    """Workers whose blocks could be done elsewhere, the one without an answer for the longest first.

    Three queues: workers with a lease that can be copied, workers with queued leases that can be recalled,
    and leases of silent workers that can be copied.
    """

    def __init__(self) -> None:
        self.recalls = 0  # asked for and not yet closed
        self._slow: OrderedDict[Worker, None] = OrderedDict()
        self._queued: OrderedDict[Worker, None] = OrderedDict()
        self._silent: OrderedDict[int, Lease] = OrderedDict()

    def note(self, worker: Worker, *, progressed: bool = False) -> None:
        """Put a worker where it belongs, after its leases, their copies or its host's state have changed."""
        silent = worker.host.silent
        leases = worker.leases
        slow = not silent and self._lease_to_copy(worker) is not None
        _put(self._slow, worker, slow, progressed)
        queued = not silent and len(leases) > 1 and self._lease_to_recall(worker) is not None
        _put(self._queued, worker, queued, progressed)
        if not (silent or self._silent):
            return
        for lease in leases.values():
            at = None
            if silent and lease.may_be_copied:
                at = lease.stretch.blocks[lease.stretch.accepted]
            if at != lease.silent_at:
                self._set_silent(lease, at)

    def forget(self, worker: Worker) -> None:
        """A worker is gone, its leases closed."""
        self._slow.pop(worker, None)
        self._queued.pop(worker, None)

    def close(self, lease: Lease) -> None:
        """A lease is over."""
        self.recalls -= lease.recalled
        if lease.silent_at is not None:
            self._set_silent(lease, None)

    def recall(self, lease: Lease) -> None:
        """Note that a lease was asked for back."""
        lease.recalled = True
        self.recalls += 1
        self.note(lease.worker)

    def slowest(self) -> tuple[Worker, Lease] | None:
        """The worker without an answer for the longest, and its lease to copy."""
        for worker in self._slow:
            lease = self._lease_to_copy(worker)
            assert lease is not None
            return worker, lease
        return None

    def queued(self) -> tuple[Worker, Lease] | None:
        """The worker without an answer for the longest that holds more than it is on, and its last lease."""
        for worker in self._queued:
            lease = self._lease_to_recall(worker)
            assert lease is not None
            return worker, lease
        return None

    def silent(self, first: int | None = None) -> Lease | None:
        """A lease of a silent worker: the one whose next block is `first`, or the oldest."""
        if first is not None:
            return self._silent.get(first)
        return next(iter(self._silent.values()), None)

    def problems(self, workers: dict[str, Worker]) -> Iterator[str]:
        """What is wrong with these books, for `Scheduler.check`."""
        leases = [lease for worker in workers.values() for lease in worker.leases.values()]
        for name, queue in (("slow", self._slow), ("queued", self._queued)):
            if any(workers.get(worker.name) is not worker for worker in queue):
                yield f"a worker that is gone is in the queue of {name} ones"
        for worker in workers.values():
            well = not worker.host.silent
            if (worker in self._slow) != (well and self._lease_to_copy(worker) is not None):
                yield f"{worker.name} is or is not a candidate for a copy"
            if (worker in self._queued) != (well and self._lease_to_recall(worker) is not None):
                yield f"{worker.name} is or is not a candidate for a recall"
        found = {lease.number for lease in leases if lease.worker.host.silent and lease.may_be_copied}
        if found != {lease.number for lease in self._silent.values()}:
            yield "the leases of silent workers are not those that are known"
        if self.recalls != sum(lease.recalled for lease in leases):
            yield "the number of recalls is wrong"

    def _set_silent(self, lease: Lease, at: int | None) -> None:
        if lease.silent_at is not None:
            del self._silent[lease.silent_at]
        lease.silent_at = at
        if at is not None:
            self._silent[at] = lease

    @staticmethod
    def _lease_to_copy(worker: Worker) -> Lease | None:
        for lease in worker.leases.values():
            if lease.may_be_copied:
                return lease
        return None

    @staticmethod
    def _lease_to_recall(worker: Worker) -> Lease | None:
        if len(worker.leases) > 1:
            first = next(iter(worker.leases))
            for number, lease in reversed(worker.leases.items()):
                if number != first and not lease.recalled:
                    return lease
        return None


def _put(queue: OrderedDict[Worker, None], worker: Worker, belongs: bool, progressed: bool) -> None:
    if not belongs:
        queue.pop(worker, None)
    elif worker not in queue:
        queue[worker] = None
    elif progressed:
        queue.move_to_end(worker)
