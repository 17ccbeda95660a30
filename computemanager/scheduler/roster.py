"""Who is there: hosts, their workers, and which worker is the next to get blocks.

Workers that may take blocks stand in queues by how many leases they hold, so that the one with the least on
its hands is found at once, whatever their number. A worker changes its place only when something happens
to it or its host.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from computemanager.scheduler import policy
from computemanager.scheduler.leases import Lease
from computemanager.scheduler.pace import Times

__all__ = ["Host", "Roster", "Worker"]


class Host:
    """What a provider started, with the workers that have joined and not been lost."""

    __slots__ = ("draining", "joined", "name", "silent", "workers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers: dict[str, Worker] = {}
        self.joined = False  # a worker has joined, be it still there or not
        self.silent = False
        self.draining = False

    @property
    def well(self) -> bool:
        """Whether its workers may be given blocks."""
        return not (self.silent or self.draining)


class Worker:
    """One worker that has joined.

    Attributes
    ----------
    leases : dict
        What it holds, oldest first: it works on the first.
    credit, batch : int
        Most leases it may hold, blocks in its last lease.
    seconds_per_block : float or None
        Its pace of late.
    progress_at : float
        When it last handed something in, or got something when it had nothing.
    times : Times or None
        Its own times, where it has an end to be ready by.
    place : int or None
        The queue it stands in.
    resting : bool
        It is left without work for now; `rest_until` is when that ends at the latest, if that is known.
    rested : bool
        It has been left without work for as long as was promised.
    """

    __slots__ = (
        "batch",
        "counted_rate",
        "credit",
        "ends_at",
        "host",
        "leases",
        "name",
        "overhead_s",
        "place",
        "progress_at",
        "rest_until",
        "rested",
        "resting",
        "seconds_per_block",
        "times",
    )

    def __init__(self, name: str, host: Host, ends_at: float | None, now: float) -> None:
        self.name = name
        self.host = host
        self.ends_at = ends_at
        self.leases: dict[int, Lease] = {}
        self.credit = 2
        self.batch = 1
        self.seconds_per_block: float | None = None
        self.overhead_s = 0.0
        self.progress_at = now
        self.times = None if ends_at is None else Times()
        self.place: int | None = None
        self.counted_rate = 0
        self.resting = False
        self.rest_until: float | None = None
        self.rested = False

    @property
    def in_hand(self) -> int:
        """How many blocks it holds."""
        return sum(lease.outstanding for lease in self.leases.values())

    def proper_place(self) -> int | None:
        """The queue in which it should stand: the number of leases it holds, if it may take one more."""
        if self.resting or not self.host.well:
            return None
        held = len(self.leases)
        if held == 0:
            return 0
        if held >= self.credit or not policy.is_quick(self.seconds_per_block):
            return None
        first = next(iter(self.leases.values()))
        return None if first.stretch.suspect else held


class Roster:
    """All hosts and workers.

    Attributes
    ----------
    hosts, workers : dict
        By name.
    hosts_draining, hosts_with_workers : int
        How many there are.
    rate, paced : int
        Blocks in 1e9 s that all workers whose pace is known get done together, and how many workers that is.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.workers: dict[str, Worker] = {}
        self.hosts_draining = 0
        self.hosts_with_workers = 0
        self.rate = 0
        self.paced = 0
        self._queues: list[OrderedDict[Worker, None]] = [OrderedDict() for _ in range(policy.MAX_CREDIT)]
        self._resting: OrderedDict[Worker, None] = OrderedDict()
        self._alarms: list[tuple[float, int, Worker]] = []
        self._last_alarm = 0

    # -- coming and going ------------------------------------------------------------------------------

    def start_host(self, name: str) -> None:
        """Register a host that was launched."""
        self.hosts[name] = Host(name)

    def end_host(self, host: Host) -> None:
        """Forget a host, whose workers are forgotten already."""
        self.hosts_draining -= host.draining
        del self.hosts[host.name]

    def join(self, name: str, host: Host, ends_at: float | None, now: float) -> Worker:
        """Register a worker that can take blocks."""
        worker = self.workers[name] = host.workers[name] = Worker(name, host, ends_at, now)
        host.joined = True
        self.hosts_with_workers += len(host.workers) == 1
        self.file(worker)
        return worker

    def lose(self, worker: Worker) -> None:
        """Forget a worker."""
        del self.workers[worker.name], worker.host.workers[worker.name]
        self.hosts_with_workers -= not worker.host.workers
        self._move(worker, None)
        self._resting.pop(worker, None)
        worker.rest_until = None
        self._count_rate(worker, 0)

    def drain(self, host: Host) -> None:
        """A host takes no more."""
        if not host.draining:
            host.draining = True
            self.hosts_draining += 1
            self.file_all(host)

    # -- who is next -----------------------------------------------------------------------------------

    @property
    def idle(self) -> int:
        """How many workers have nothing to do and could do something."""
        return len(self._queues[0])

    def some_idle(self, most: int) -> list[Worker]:
        """The workers that have been idle the longest."""
        return list(islice(self._queues[0], most))

    def put_last(self, worker: Worker) -> None:
        """Let the other idle workers go first."""
        self._queues[0].move_to_end(worker)

    def first_free(self, *, deep: bool) -> Worker | None:
        """The worker with the least on its hands; without `deep`, only one that has nothing."""
        for queue in self._queues:
            if queue:
                return next(iter(queue))
            if not deep:
                break
        return None

    def file(self, worker: Worker) -> None:
        """Put a worker where it belongs after anything that concerns it has changed."""
        self.place(worker)
        pace = worker.seconds_per_block
        self._count_rate(worker, 0 if pace is None or not worker.host.well else policy.rate_of(pace))

    def place(self, worker: Worker) -> None:
        """The same, where neither its pace nor its host have changed."""
        place = worker.proper_place()
        if place != worker.place:
            self._move(worker, place)

    def file_all(self, host: Host) -> None:
        """The same for all workers of a host."""
        for worker in host.workers.values():
            self.file(worker)

    def _move(self, worker: Worker, place: int | None) -> None:
        if worker.place is not None:
            del self._queues[worker.place][worker]
        if place is not None:
            self._queues[place][worker] = None
        worker.place = place

    def _count_rate(self, worker: Worker, rate: int) -> None:
        # Whole numbers, so that a million additions and subtractions leave no error behind.
        if rate != worker.counted_rate:
            self.paced += (rate > 0) - (worker.counted_rate > 0)
            self.rate += rate - worker.counted_rate
            worker.counted_rate = rate

    # -- rest ------------------------------------------------------------------------------------------

    def rest(self, worker: Worker, until: float | None) -> None:
        """Leave a worker without more work: until then, or until it is looked at again."""
        worker.resting = True
        if worker.rest_until is None and until is not None:
            worker.rest_until = until
            self._last_alarm += 1
            heapq.heappush(self._alarms, (until, self._last_alarm, worker))
        self._resting[worker] = None
        self.file(worker)

    def stir(self, worker: Worker) -> None:
        """Let a worker that rests be looked at again, since something has happened to it."""
        if worker.resting:
            worker.resting = False
            del self._resting[worker]

    def look_at_one_resting(self) -> None:
        """Give the worker that was not looked at for the longest a chance to be chosen."""
        if self._resting:
            worker, _ = self._resting.popitem(last=False)
            worker.resting = False
            self.file(worker)

    def wake(self, now: float, *, hungry: bool) -> None:
        """End the rest of those whose time has come; `hungry` says that blocks wait."""
        while self._alarms and (self._alarms[0][0] <= now or self._is_stale(self._alarms[0])):
            alarm = heapq.heappop(self._alarms)
            if not self._is_stale(alarm):
                worker = alarm[2]
                worker.rest_until = None
                worker.rested = hungry
                worker.resting = False
                self._resting.pop(worker, None)
                self.file(worker)

    def has_work(self, worker: Worker) -> None:
        """Note that a worker got blocks, which ends any rest."""
        worker.rested = False
        worker.rest_until = None

    @property
    def next_alarm(self) -> float | None:
        """When the next rest ends; None if nobody rests for a time that is known."""
        while self._alarms and self._is_stale(self._alarms[0]):
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def _is_stale(self, alarm: tuple[float, int, Worker]) -> bool:
        return alarm[2].rest_until != alarm[0]

    # -- for tests -------------------------------------------------------------------------------------

    def problems(self) -> Iterator[str]:
        """What is wrong with these books, for `Scheduler.check`."""
        for worker in self.workers.values():
            if worker.place != worker.proper_place():
                yield f"{worker.name} stands in queue {worker.place}, not {worker.proper_place()}"
            if worker.resting != (worker in self._resting):
                yield f"{worker.name} rests and is not known to rest, or the other way round"
            if worker.host.workers.get(worker.name) is not worker:
                yield f"{worker.name} is not a worker of its host"
        standing = {worker for queue in self._queues for worker in queue} | set(self._resting)
        if any(self.workers.get(worker.name) is not worker for worker in standing):
            yield "a worker that is gone stands in a queue"
        if sum(map(len, self._queues)) != sum(w.place is not None for w in self.workers.values()):
            yield "a worker stands in two queues"
        if self.rate != sum(worker.counted_rate for worker in self.workers.values()):
            yield "the rate of all workers is not the sum of theirs"
        if self.paced != sum(worker.counted_rate > 0 for worker in self.workers.values()):
            yield "the number of workers whose pace is known is wrong"
        if self.hosts_with_workers != sum(bool(host.workers) for host in self.hosts.values()):
            yield "the number of hosts with workers is wrong"
        if self.hosts_draining != sum(host.draining for host in self.hosts.values()):
            yield "the number of draining hosts is wrong"
