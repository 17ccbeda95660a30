"""The scheduler against a model, on a clock of the test's own: no socket, no process, no waiting."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from computemanager.errors import InternalError
from computemanager.scheduler import (
    Accept,
    Answered,
    Cause,
    Dispatch,
    Event,
    Failed,
    GiveUp,
    PlanEnded,
    Planned,
    Scheduler,
    SchedulerLimits,
    StartFailed,
    StartWorkers,
    Tick,
    WorkerJoined,
    WorkerLost,
    WorkerStarted,
    policy,
)


class Farm:
    """Workers made of paper: keeps what was dispatched, and does whatever a test says."""

    def __init__(self, **limits: Any) -> None:
        self.now = 0.0
        self.limits = SchedulerLimits(**{"num_workers": 2, **limits})
        self.scheduler = Scheduler(self.limits, self.now)
        self.planned = 0
        self.plan_ended = False
        self.started = 0
        self.starting: list[str] = []
        self.joined: list[str] = []
        self.leases: dict[int, tuple[str, list[int]]] = {}  # what is still to be done of each
        self.dead_leases: list[tuple[str, int]] = []
        self.accepted: list[int] = []
        self.times_lost: dict[int, int] = {}
        self.gave_up: GiveUp | None = None
        self.dispatches: list[Dispatch] = []

    def tell(self, event: Event) -> None:
        todo = [event]
        while todo:
            for action in self.scheduler.handle(todo.pop(0), self.now):
                assert self.gave_up is None, "nothing is done after giving up"
                if isinstance(action, StartWorkers):
                    for _ in range(action.number):
                        name = f"w{self.started}"
                        self.started += 1
                        self.starting.append(name)
                        todo.append(WorkerStarted(name))
                elif isinstance(action, Dispatch):
                    assert action.worker in self.joined, "blocks go to workers that are there"
                    assert action.lease not in self.leases and action.blocks
                    assert max(action.blocks) < self.planned, "only what was planned"
                    if self.times_lost.keys() & set(action.blocks):
                        assert len(action.blocks) == 1, "a suspect goes alone"
                        held = [owner for owner, _ in self.leases.values() if owner == action.worker]
                        assert not held, "a suspect goes to a worker that has nothing else"
                    self.leases[action.lease] = (action.worker, list(action.blocks))
                    self.dispatches.append(action)
                elif isinstance(action, Accept):
                    self.accepted += action.blocks
                else:
                    self.gave_up = action

    def plan(self, count: int, *, end: bool = True) -> None:
        self.planned += count
        self.tell(Planned(count))
        if end:
            self.end_plan()

    def end_plan(self) -> None:
        self.plan_ended = True
        self.tell(PlanEnded())

    def join(self, name: str) -> None:
        self.starting.remove(name)
        self.joined.append(name)
        self.tell(WorkerJoined(name))

    def join_all(self) -> None:
        for name in list(self.starting):
            self.join(name)

    def answer(self, lease: int, count: int, seconds: float = 0.001, *, starved: bool = False) -> None:
        worker, blocks = self.leases[lease]
        if count == len(blocks):
            del self.leases[lease]
        else:
            self.leases[lease] = (worker, blocks[count:])
        self.now += seconds
        self.tell(Answered(worker, lease, count, seconds * count, starved=starved))

    def lose(self, name: str, *, running: bool = True, evidence: str = "gone") -> None:
        self.joined.remove(name)
        mine = sorted(lease for lease, (worker, _) in self.leases.items() if worker == name)
        block = self.leases[mine[0]][1][0] if mine and running else None
        for lease in mine:
            self.dead_leases.append((name, lease))
            del self.leases[lease]
        if block is not None:
            self.times_lost[block] = self.times_lost.get(block, 0) + 1
        self.tell(WorkerLost(name, block, evidence))

    def finish(self) -> None:
        """Do all that is to be done, well."""
        for _ in range(10_000):
            if self.scheduler.finished or self.gave_up:
                return
            self.join_all()
            for lease in sorted(self.leases):
                self.answer(lease, len(self.leases[lease][1]))
        raise AssertionError("the job does not end although all workers do their work")


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(workers=st.integers(1, 4), window=st.integers(1, 600), kills=st.integers(1, 4))
    def start(self, workers: int, window: int, kills: int) -> None:
        self.farm = Farm(num_workers=workers, window=window, max_kills_per_block=kills)

    def alive(self) -> bool:
        return self.farm.gave_up is None

    @precondition(lambda self: self.alive() and not self.farm.plan_ended)
    @rule(count=st.integers(1, 300))
    def plan(self, count: int) -> None:
        self.farm.plan(count, end=False)

    @precondition(lambda self: self.alive() and not self.farm.plan_ended)
    @rule()
    def end_plan(self) -> None:
        self.farm.end_plan()

    @precondition(lambda self: self.alive() and self.farm.starting)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        self.farm.join(data.draw(st.sampled_from(self.farm.starting)))

    @precondition(lambda self: self.alive() and self.farm.leases)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 10.0]), starved=st.booleans())
    def answer(self, data: st.DataObject, seconds: float, starved: bool) -> None:
        lease = data.draw(st.sampled_from(sorted(self.farm.leases)))
        count = data.draw(st.integers(1, len(self.farm.leases[lease][1])))
        self.farm.answer(lease, count, seconds, starved=starved)

    @precondition(lambda self: self.alive() and self.farm.dead_leases)
    @rule(data=st.data())
    def answer_late(self, data: st.DataObject) -> None:
        """A worker that was thought dead hands in a lease that is no longer its own."""
        worker, lease = data.draw(st.sampled_from(self.farm.dead_leases))
        before, stale = len(self.farm.accepted), self.farm.scheduler.stale_answers
        self.farm.tell(Answered(worker, lease, 1, 0.1))
        assert len(self.farm.accepted) == before and self.farm.scheduler.stale_answers == stale + 1

    @precondition(lambda self: self.alive() and self.farm.joined)
    @rule(data=st.data(), running=st.booleans())
    def lose(self, data: st.DataObject, running: bool) -> None:
        self.farm.lose(data.draw(st.sampled_from(self.farm.joined)), running=running)

    @precondition(lambda self: self.alive() and self.farm.starting)
    @rule()
    def fail_to_start(self) -> None:
        self.farm.tell(StartFailed(self.farm.starting.pop(), "could not start"))

    @rule()
    def tick(self) -> None:
        """Also after the end: whatever comes then changes nothing."""
        assert self.farm.scheduler.next_deadline() is None, "no limit was set"
        self.farm.tell(Tick())

    @invariant()
    def books_balance(self) -> None:
        self.farm.scheduler.check()
        assert len(set(self.farm.accepted)) == len(self.farm.accepted), "a block was accepted twice"

    @invariant()
    def nobody_idles(self) -> None:
        farm = self.farm
        if farm.gave_up is not None or not farm.scheduler.waiting:
            return
        busy = {worker for worker, _ in farm.leases.values()}
        assert busy >= set(farm.joined), "a worker has nothing to do although blocks wait"
        unfinished = farm.planned - len(farm.accepted)
        wanted = min(farm.limits.num_workers, unfinished) if farm.plan_ended else farm.limits.num_workers
        assert len(farm.joined) + len(farm.starting) >= wanted, "a lost worker was not replaced"

    @invariant()
    def workers_hold_no_more_than_their_credit(self) -> None:
        for worker in self.farm.joined:
            held = [blocks for owner, blocks in self.farm.leases.values() if owner == worker]
            assert len(held) <= policy.MAX_CREDIT
            assert all(len(blocks) <= policy.MAX_BATCH for blocks in held)

    @invariant()
    def attempts_are_bounded(self) -> None:
        assert all(times <= self.farm.limits.max_kills_per_block for times in self.farm.times_lost.values())

    def teardown(self) -> None:
        if not hasattr(self, "farm"):
            return
        if not self.farm.plan_ended and self.alive():
            self.farm.end_plan()
        self.farm.finish()
        if self.farm.gave_up is None:
            assert sorted(self.farm.accepted) == list(range(self.farm.planned))
        else:
            assert self.farm.gave_up.cause in (Cause.POISON_BLOCK, Cause.NO_WORKERS)


SchedulerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestScheduler = SchedulerMachine.TestCase


def test_a_job_without_blocks_is_finished_and_starts_nobody() -> None:
    farm = Farm()
    farm.end_plan()
    assert farm.scheduler.finished and not farm.starting


def test_no_more_workers_than_blocks() -> None:
    farm = Farm(num_workers=8)
    farm.end_plan()
    farm.plan(3, end=False)
    assert len(farm.starting) == 3


def test_work_starts_with_the_first_worker() -> None:
    farm = Farm(num_workers=4)
    farm.plan(10)
    farm.join("w2")
    assert [dispatch.worker for dispatch in farm.dispatches] == ["w2"]


def test_leases_grow_for_quick_blocks_and_shrink_for_slow_ones() -> None:
    farm = Farm(num_workers=1, window=1024)
    farm.plan(10_000, end=False)
    farm.join_all()
    for _ in range(6):
        lease = min(farm.leases)
        farm.answer(lease, len(farm.leases[lease][1]), seconds=1e-6)
    sizes = [len(dispatch.blocks) for dispatch in farm.dispatches]
    assert sizes[0] == 1 and max(sizes) >= 64
    assert all(later <= 4 * earlier for earlier, later in zip(sizes, sizes[1:], strict=False))
    while len(farm.leases) > 1:
        lease = min(farm.leases)
        farm.answer(lease, len(farm.leases[lease][1]), seconds=2.0)
    farm.answer(min(farm.leases), len(farm.leases[min(farm.leases)][1]), seconds=2.0)
    assert len(farm.dispatches[-1].blocks) == 1


def test_slow_blocks_are_not_queued_behind_each_other() -> None:
    farm = Farm(num_workers=2)
    farm.plan(100)
    farm.join_all()
    for lease in sorted(farm.leases):
        farm.answer(lease, 1, seconds=policy.QUEUE_AHEAD_BELOW_S + 1)
    assert len(farm.leases) == 2


def test_the_last_blocks_wait_for_whoever_is_free_first() -> None:
    farm = Farm(num_workers=2)
    farm.plan(20, end=True)
    farm.join_all()
    while farm.scheduler.waiting > 2:
        lease = min(farm.leases)
        farm.answer(lease, 1, seconds=0.01)
    # Two blocks wait, two workers are busy: neither block may lie behind another.
    waiting = farm.scheduler.waiting
    slow = max(farm.leases)
    for lease in [lease for lease in sorted(farm.leases) if farm.leases[lease][0] != farm.leases[slow][0]]:
        farm.answer(lease, len(farm.leases[lease][1]), seconds=0.01)
    assert waiting and farm.scheduler.waiting == waiting - 1


def test_a_lost_workers_blocks_come_first_and_in_order() -> None:
    farm = Farm(num_workers=2)
    farm.plan(50)
    farm.join_all()
    first = min(farm.leases)
    farm.lose(farm.leases[first][0], running=False)
    before = len(farm.dispatches)
    farm.answer(min(farm.leases), 1)
    assert list(farm.dispatches[before].blocks) == [0]


def test_blocks_of_several_lost_workers_come_in_order() -> None:
    farm = Farm(num_workers=3)
    farm.plan(50)
    farm.join_all()
    # The worker with the lowest block is lost last.
    for lease in sorted(farm.leases, reverse=True):
        farm.lose(farm.leases[lease][0], running=False)
    before = len(farm.dispatches)
    farm.join(farm.starting[0])
    assert list(farm.dispatches[before].blocks) == [0]


def test_an_answer_under_another_workers_lease_is_dropped() -> None:
    farm = Farm(num_workers=2)
    farm.plan(50)
    farm.join_all()
    lease = min(farm.leases)
    (other,) = set(farm.joined) - {farm.leases[lease][0]}
    farm.tell(Answered(other, lease, 1, 0.1))
    farm.tell(Failed(other, lease))
    assert farm.accepted == [] and farm.scheduler.stale_answers == 2 and farm.gave_up is None


def test_a_suspect_runs_alone() -> None:
    farm = Farm(num_workers=1)
    farm.plan(1000)
    farm.join_all()
    while max(len(blocks) for _, blocks in farm.leases.values()) < 8:
        farm.answer(min(farm.leases), len(farm.leases[min(farm.leases)][1]), seconds=1e-6)
    farm.lose(farm.joined[0])
    suspect = next(iter(farm.times_lost))
    farm.join_all()
    ((worker, blocks),) = farm.leases.values()
    assert blocks == [suspect]
    farm.answer(min(farm.leases), 1)
    assert len(next(iter(farm.leases.values()))[1]) >= 1 and suspect in farm.accepted


def test_a_block_that_kills_every_worker_ends_the_job_with_evidence() -> None:
    farm = Farm(num_workers=1, max_kills_per_block=3)
    farm.plan(1)
    for times in range(3):
        farm.join_all()
        farm.lose(farm.joined[0], evidence=f"death {times + 1}")
    assert farm.gave_up == GiveUp(Cause.POISON_BLOCK, 0, 3, "w2", "death 3")


def test_workers_that_never_start_end_the_job() -> None:
    farm = Farm(num_workers=2)
    farm.plan(5)
    while farm.starting and farm.gave_up is None:
        farm.tell(StartFailed(farm.starting.pop(), "no such program"))
    assert farm.gave_up is not None and farm.gave_up.cause is Cause.NO_WORKERS
    assert farm.gave_up.evidence == "no such program"
    assert farm.started <= 2 * policy.start_failures_allowed(2)


def test_the_users_exception_ends_the_job() -> None:
    farm = Farm(num_workers=1)
    farm.plan(5)
    farm.join_all()
    farm.tell(Failed("w0", min(farm.leases)))
    assert farm.gave_up == GiveUp(Cause.USER_EXCEPTION, 0, 1, "w0")
    farm.tell(Failed("w0", 99))
    assert farm.scheduler.handle(Tick(), 1.0) == []


def test_the_limit_on_starting_counts_until_the_first_worker() -> None:
    farm = Farm(start_timeout_s=10.0)
    farm.plan(5)
    assert farm.scheduler.next_deadline() == 10.0
    farm.now = 9.9
    farm.tell(Tick())
    assert farm.gave_up is None
    farm.now = 10.0
    farm.tell(Tick())
    assert farm.gave_up is not None and farm.gave_up.cause is Cause.START_TIMEOUT
    joined = Farm(start_timeout_s=10.0)
    joined.plan(5)
    joined.join("w0")
    assert joined.scheduler.next_deadline() is None


def test_the_limit_on_outcomes_counts_from_the_last_one() -> None:
    farm = Farm(num_workers=1, outcome_timeout_s=5.0)
    farm.plan(3)
    farm.join_all()
    assert farm.scheduler.next_deadline() == 5.0
    farm.now = 4.0
    farm.answer(min(farm.leases), 1, seconds=0.0)
    assert farm.scheduler.next_deadline() == 9.0
    farm.now = 9.0
    farm.tell(Tick())
    assert (
        farm.gave_up is not None and farm.gave_up.cause is Cause.OUTCOME_TIMEOUT and farm.gave_up.block == 1
    )


def test_an_answer_of_more_blocks_than_leased_is_a_bug_with_a_story() -> None:
    farm = Farm(num_workers=1)
    farm.plan(1)
    farm.join_all()
    with pytest.raises(InternalError, match="answers 2 blocks") as caught:
        farm.tell(Answered("w0", 1, 2, 0.1))
    assert any("WorkerJoined" in line for line in caught.value.story)


def test_starved_workers_get_more_credit_up_to_a_bound() -> None:
    farm = Farm(num_workers=1, window=4096)
    farm.plan(4096, end=False)
    farm.join_all()
    held = set()
    for _ in range(40):
        lease = min(farm.leases)
        farm.answer(lease, len(farm.leases[lease][1]), seconds=0.001, starved=True)
        held.add(len(farm.leases))
    assert max(held) == policy.MAX_CREDIT
