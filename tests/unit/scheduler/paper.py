"""Workers made of paper: they keep what was dispatched, and do whatever a test says."""

from __future__ import annotations

from typing import Any

from computemanager.scheduler import (
    Accept,
    Answered,
    Dispatch,
    Event,
    GaveBack,
    GiveUp,
    HostEnded,
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
from computemanager.simulate import Audit


class Lease:
    def __init__(self, worker: str, blocks: list[int]) -> None:
        self.worker = worker
        self.blocks = blocks
        self.done = 0

    @property
    def left(self) -> list[int]:
        return self.blocks[self.done :]


class Farm:
    """Everything around a scheduler. Each host is one worker of the same name, but for those of `join`."""

    def __init__(self, **limits: Any) -> None:
        self.now = 0.0
        self.limits = SchedulerLimits(**{"num_workers": 2, **limits})
        self.scheduler = Scheduler(self.limits, self.now)
        self.audit = Audit(self.limits, ordered=True)
        self.planned = 0
        self.plan_ended = False
        self.started = 0
        self.starting: list[str] = []
        self.joined: list[str] = []
        self.leases: dict[int, Lease] = {}
        self.dead_leases: list[tuple[str, int]] = []
        self.accepted: list[int] = []
        self.accepts: list[Accept] = []
        self.recalls: list[Recall] = []
        self.skips: list[Skip] = []
        self.gave_up: GiveUp | None = None
        self.events: list[Event] = []
        self.dispatches: list[Dispatch] = []

    def tell(self, event: Event, handed_in: list[int] | None = None) -> None:
        todo: list[tuple[Event, list[int]]] = [(event, handed_in or [])]
        while todo:
            event, blocks = todo.pop(0)
            self.events.append(event)
            if self.gave_up is None:
                self.audit.event(event)
            for action in self.scheduler.handle(event, self.now):
                assert self.gave_up is None, "nothing is done after giving up"
                if isinstance(action, StartHosts):
                    for _ in range(action.number):
                        name = f"w{self.started}"
                        self.started += 1
                        self.starting.append(name)
                        todo.append((HostStarted(name), []))
                elif isinstance(action, Dispatch):
                    self.audit.dispatch(action)
                    self.leases[action.lease] = Lease(action.worker, list(action.blocks))
                    self.dispatches.append(action)
                elif isinstance(action, Accept):
                    self.audit.accept(action, blocks)
                    self.accepted += action.blocks
                    self.accepts.append(action)
                elif isinstance(action, Recall):
                    self.audit.recall(action)
                    self.recalls.append(action)
                elif isinstance(action, Skip):
                    self.audit.skip(action)
                    self.skips.append(action)
                else:
                    self.audit.give_up(action, now=self.now)
                    self.gave_up = action

    def plan(self, count: int, *, end: bool = True) -> None:
        self.planned += count
        self.tell(Planned(count))
        if end:
            self.end_plan()

    def end_plan(self) -> None:
        self.plan_ended = True
        self.tell(PlanEnded())

    def join(self, host: str, *slots: str, ends_at: float | None = None) -> None:
        """A host's workers join: itself, or slots of it."""
        if host in self.starting:
            self.starting.remove(host)
        for name in slots or (host,):
            self.joined.append(name)
            self.tell(WorkerJoined(name, host if slots else "", ends_at))

    def join_all(self) -> None:
        for name in list(self.starting):
            self.join(name)

    def holder(self, block: int) -> int:
        """The newest lease that a block is in."""
        return max(number for number, lease in self.leases.items() if block in lease.left)

    def held(self, worker: str) -> list[int]:
        return sorted(number for number, lease in self.leases.items() if lease.worker == worker)

    def answer(
        self, number: int, count: int | None = None, seconds: float = 0.001, *, starved: bool = False
    ) -> None:
        """Hand in some blocks of a lease, or all. So many seconds pass first, which each of them took."""
        lease = self.leases[number]
        blocks = lease.left[:count]
        lease.done += len(blocks)
        if not lease.left:
            del self.leases[number]
        self.now += seconds
        self.tell(Answered(lease.worker, number, len(blocks), seconds * len(blocks), 0.0, starved), blocks)

    def fail(self, number: int, position: int = 0) -> None:
        """The function raises on a block of a lease."""
        lease = self.leases.pop(number)
        self.tell(Raised(lease.worker, number, position))

    def give_back(self, number: int) -> None:
        lease = self.leases.pop(number)
        self.tell(GaveBack(lease.worker, number))

    def lose(
        self, name: str, *, running: bool = True, evidence: str = "gone", timed_out: bool = False
    ) -> None:
        """A worker that is its own host dies, on the first block it has, or between blocks."""
        self.lose_slot(name, running=running, evidence=evidence, timed_out=timed_out)
        self.tell(HostEnded(name, evidence))

    def lose_slot(
        self, name: str, *, running: bool = True, evidence: str = "gone", timed_out: bool = False
    ) -> None:
        mine = self.held(name)
        block = self.leases[mine[0]].left[0] if mine and running else None
        self._forget(name)
        self.tell(WorkerLost(name, block, evidence, timed_out))

    def end_host(self, host: str, *slots: str, hopeless: bool = False) -> None:
        """A host is lost with its workers: itself, or slots of it; or it never had any."""
        if host in self.starting:
            self.starting.remove(host)
        for name in slots or (host,):
            if name in self.joined:
                self._forget(name)
        self.tell(HostEnded(host, "host is gone", hopeless))

    def _forget(self, name: str) -> None:
        self.joined.remove(name)
        for number in self.held(name):
            self.dead_leases.append((name, number))
            del self.leases[number]

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with a tick at each deadline."""
        end = self.now + seconds
        for _ in range(1000):
            deadline = self.scheduler.next_deadline()
            if self.gave_up is not None or deadline is None or deadline > end:
                self.now = end
                return
            assert deadline >= self.now or self.now == end, "a deadline that has passed is not looked at"
            self.now = max(self.now, deadline)
            self.tell(Tick())
        raise AssertionError("ticks do not help")

    def finish(self) -> None:
        """Do all that is to be done, well."""
        for _ in range(3000):
            if self.scheduler.finished or self.gave_up:
                return
            self.join_all()
            for number in sorted(self.leases):
                self.answer(number)
            if not self.leases:
                self.pass_time(100.0)
        raise AssertionError("the job does not end although all workers do their work")
