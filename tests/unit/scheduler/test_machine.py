"""The scheduler against a model, on a clock of the test's own: no socket, no process, no waiting."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from computemanager.scheduler import (
    Answered,
    Cause,
    GaveBack,
    HostBack,
    HostDraining,
    HostEnded,
    HostSilent,
    Raised,
    Tick,
    policy,
)

from .paper import Farm


class SchedulerMachine(RuleBasedStateMachine):
    """Anything may happen to hosts of one or two workers, in any order; the audit watches."""

    @initialize(
        workers=st.integers(1, 4),
        window=st.integers(1, 600),
        attempts=st.integers(1, 3),
        losses=st.integers(2, 20),
        skip=st.booleans(),
        speculate=st.booleans(),
        slots=st.integers(1, 2),
    )
    def start(
        self, workers: int, window: int, attempts: int, losses: int, skip: bool, speculate: bool, slots: int
    ) -> None:
        self.slots = slots
        self.silent: set[str] = set()
        self.draining: set[str] = set()
        self.ending: set[str] = set()
        self.hosts: dict[str, list[str]] = {}
        self.farm = Farm(
            num_workers=workers,
            window=window,
            max_raises_per_block=attempts,
            max_kills_per_block=attempts,
            max_timeouts_per_block=attempts,
            max_losses_per_block=losses,
            skip=skip,
            speculate=speculate,
        )

    def alive(self) -> bool:
        return self.farm.gave_up is None

    def host_of(self, worker: str) -> str:
        return worker.partition(".")[0]

    @precondition(lambda self: self.alive() and not self.farm.plan_ended)
    @rule(count=st.integers(1, 300))
    def plan(self, count: int) -> None:
        self.farm.plan(count, end=False)

    @precondition(lambda self: self.alive() and not self.farm.plan_ended)
    @rule()
    def end_plan(self) -> None:
        self.farm.end_plan()

    @precondition(lambda self: self.alive() and self.farm.starting)
    @rule(data=st.data(), left_s=st.sampled_from([None, None, 0.05, 20.0]))
    def join(self, data: st.DataObject, left_s: float | None) -> None:
        host = data.draw(st.sampled_from(self.farm.starting))
        ends_at = None if left_s is None else self.farm.now + left_s
        if left_s is not None:
            self.ending.add(host)
        self.hosts[host] = [f"{host}.{number}" for number in range(self.slots)]
        self.farm.join(host, *self.hosts[host], ends_at=ends_at)

    @precondition(lambda self: self.alive() and self.farm.leases)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 10.0]), starved=st.booleans())
    def answer(self, data: st.DataObject, seconds: float, starved: bool) -> None:
        lease = data.draw(st.sampled_from(sorted(self.farm.leases)))
        count = data.draw(st.integers(1, len(self.farm.leases[lease].left)))
        self.farm.answer(lease, count, seconds, starved=starved)

    @precondition(lambda self: self.alive() and self.farm.leases)
    @rule(data=st.data())
    def raise_in_function(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.farm.leases)))
        lease = self.farm.leases[number]
        self.farm.fail(number, data.draw(st.integers(lease.done, len(lease.blocks) - 1)))

    @precondition(lambda self: self.alive() and self.farm.leases)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.farm.give_back(data.draw(st.sampled_from(sorted(self.farm.leases))))

    @precondition(lambda self: self.alive() and self.farm.dead_leases)
    @rule(data=st.data(), what=st.sampled_from([Answered, Raised, GaveBack]))
    def answer_late(self, data: st.DataObject, what: type) -> None:
        """A worker that was thought dead hands in a lease that is no longer its own."""
        worker, lease = data.draw(st.sampled_from(self.farm.dead_leases))
        before = list(self.farm.accepted)
        rest = {Answered: (1, 0.1), Raised: (0,), GaveBack: ()}[what]
        self.farm.tell(what(worker, lease, *rest))
        assert self.farm.accepted == before

    @precondition(lambda self: self.alive() and self.farm.joined)
    @rule(data=st.data(), running=st.booleans(), timed_out=st.booleans())
    def lose_slot(self, data: st.DataObject, running: bool, timed_out: bool) -> None:
        name = data.draw(st.sampled_from(self.farm.joined))
        self.hosts[self.host_of(name)].remove(name)
        self.farm.lose_slot(name, running=running, timed_out=timed_out)

    @precondition(lambda self: self.alive() and self.hosts)
    @rule(data=st.data(), hopeless=st.sampled_from([False, False, False, True]))
    def lose_host(self, data: st.DataObject, hopeless: bool) -> None:
        host = data.draw(st.sampled_from(sorted(self.hosts)))
        slots = self.hosts.pop(host)
        self.silent.discard(host)
        self.farm.end_host(host, *slots, hopeless=hopeless)

    @precondition(lambda self: self.alive() and self.hosts)
    @rule(data=st.data())
    def fall_silent_or_come_back(self, data: st.DataObject) -> None:
        host = data.draw(st.sampled_from(sorted(self.hosts)))
        self.farm.tell(HostBack(host) if host in self.silent else HostSilent(host))
        self.silent ^= {host}

    @precondition(lambda self: self.alive() and self.hosts)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        host = data.draw(st.sampled_from(sorted(self.hosts)))
        self.draining.add(host)
        self.farm.tell(HostDraining(host))

    @precondition(lambda self: self.alive() and self.farm.starting)
    @rule()
    def fail_to_start(self) -> None:
        self.farm.tell(HostEnded(self.farm.starting.pop(), "could not start"))

    @rule(seconds=st.sampled_from([0.0, 0.01, 1.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        """Also after the end: whatever comes then changes nothing."""
        self.farm.pass_time(seconds)
        self.farm.tell(Tick())

    @invariant()
    def books_balance(self) -> None:
        self.farm.scheduler.check()

    @invariant()
    def promises_hold(self) -> None:
        farm = self.farm
        if self.alive():
            farm.audit.check(farm.scheduler.waiting, farm.now, plan_ended=farm.plan_ended)

    @invariant()
    def those_lost_are_replaced(self) -> None:
        farm = self.farm
        unfinished = farm.planned - len(farm.accepted) - len(farm.skips)
        if not self.alive() or not unfinished or self.draining or any(h.hopeless for h in self.ends()):
            return
        wanted = min(farm.limits.num_workers, unfinished) if farm.plan_ended else farm.limits.num_workers
        assert len(self.hosts) + len(farm.starting) >= wanted, "a lost host was not replaced"

    def ends(self) -> list[HostEnded]:
        return [event for event in self.farm.events if isinstance(event, HostEnded)]

    @invariant()
    def workers_hold_no_more_than_their_credit(self) -> None:
        for worker in self.farm.joined:
            held = self.farm.held(worker)
            assert len(held) <= policy.MAX_CREDIT
            assert all(len(self.farm.leases[number].blocks) <= policy.MAX_BATCH for number in held)

    def teardown(self) -> None:
        if not hasattr(self, "farm"):
            return
        farm = self.farm
        for host in sorted(self.hosts):
            of_no_use = host in self.silent | self.draining | self.ending or not self.hosts[host]
            if self.alive() and of_no_use:
                farm.end_host(host, *self.hosts[host])
        if not farm.plan_ended and self.alive():
            farm.end_plan()
        farm.finish()
        if farm.gave_up is None:
            assert sorted([*farm.accepted, *(skip.block for skip in farm.skips)]) == list(range(farm.planned))
        else:
            assert farm.gave_up.cause not in (Cause.START_TIMEOUT, Cause.OUTCOME_TIMEOUT), "no limit was set"


SchedulerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestScheduler = SchedulerMachine.TestCase
