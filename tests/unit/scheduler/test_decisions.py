"""What the scheduler decides in plain cases: who gets what, who starts, when a job is given up."""

from __future__ import annotations

import pytest

from computemanager.errors import InternalError
from computemanager.scheduler import (
    Answered,
    Cause,
    GaveBack,
    GiveUp,
    HostDraining,
    HostEnded,
    HostStarted,
    Raised,
    Skip,
    Tick,
    WorkerJoined,
    WorkerLost,
    policy,
)

from .paper import Farm

# -- starting ----------------------------------------------------------------------------------------------


def test_a_job_without_blocks_is_finished_and_starts_nobody() -> None:
    farm = Farm()
    farm.end_plan()
    assert farm.scheduler.finished and not farm.starting


def test_no_more_hosts_than_blocks() -> None:
    farm = Farm(num_workers=8)
    farm.end_plan()
    farm.plan(3, end=False)
    assert len(farm.starting) == 3


def test_work_starts_with_the_first_worker_whatever_the_least_number() -> None:
    farm = Farm(num_workers=4, min_workers=4)
    farm.plan(10)
    farm.join("w2")
    assert [dispatch.worker for dispatch in farm.dispatches] == ["w2"]


def test_a_host_may_have_many_workers_that_go_one_by_one() -> None:
    farm = Farm(num_workers=1)
    farm.plan(50)
    farm.join("w0", "w0.0", "w0.1", "w0.2")
    assert {dispatch.worker for dispatch in farm.dispatches} == {"w0.0", "w0.1", "w0.2"}
    farm.lose_slot("w0.1")
    assert farm.started == 1, "the host lives, and starts a new slot itself"
    farm.join("w0", "w0.3")
    assert farm.dispatches[-1].worker == "w0.3" and farm.scheduler.workers_lost == 1
    farm.end_host("w0", "w0.0", "w0.2", "w0.3")
    assert farm.started == 2 and farm.scheduler.workers_lost == 4


def test_a_draining_host_is_replaced_and_gets_nothing_more() -> None:
    farm = Farm(num_workers=1)
    farm.plan(50)
    farm.join_all()
    farm.tell(HostDraining("w0"))
    assert farm.starting == ["w1"]
    farm.answer(farm.holder(0))
    assert not farm.leases, "the audit would object to a dispatch, too"
    farm.join("w1")
    farm.end_host("w0")
    assert farm.starting == [] and farm.holder(1)


def test_a_hopeless_host_is_not_replaced() -> None:
    farm = Farm(num_workers=2)
    farm.plan(50)
    farm.end_host("w0", hopeless=True)
    assert farm.started == 2 and farm.gave_up is None
    farm.end_host("w1")
    assert farm.started == 3, "this one may have had bad luck"
    farm.end_host("w2", hopeless=True)
    assert farm.gave_up == GiveUp(Cause.NO_WORKERS, None, 3, "w2", "host is gone")


def test_hosts_that_never_start_end_the_job() -> None:
    farm = Farm(num_workers=2)
    farm.plan(5)
    while farm.starting and farm.gave_up is None:
        farm.tell(HostEnded(farm.starting.pop(), "no such program"))
    assert farm.gave_up is not None and farm.gave_up.cause is Cause.NO_WORKERS
    assert farm.gave_up.evidence == "no such program"
    assert farm.started <= 2 * policy.start_failures_allowed(2)


def test_a_local_workers_death_counts_once() -> None:
    farm = Farm(num_workers=2)
    farm.plan(100)
    for times in range(policy.start_failures_allowed(2)):
        assert farm.gave_up is None, f"after {times} deaths"
        farm.join_all()
        farm.lose(farm.joined[0], running=False)
    assert farm.gave_up is not None and farm.gave_up.cause is Cause.NO_WORKERS


def test_machines_that_are_lost_at_work_are_not_taken_for_a_job_that_cannot_be_done() -> None:
    """As on cheap machines that last less long than a block takes; each block counts its own losses."""
    farm = Farm(num_workers=2, max_losses_per_block=8)
    farm.plan(2)
    for times in range(2 * policy.start_failures_allowed(2)):
        assert farm.gave_up is None, f"after {times} losses"
        farm.join_all()
        farm.end_host(farm.joined[0])
    farm.join_all()
    farm.finish()
    assert sorted(farm.accepted) == [0, 1]


def test_machines_that_are_lost_at_work_again_and_again_end_the_job_all_the_same() -> None:
    farm = Farm(num_workers=2, max_losses_per_block=1000)
    farm.plan(2)
    losses = 0
    while farm.gave_up is None:
        farm.join_all()
        farm.end_host(farm.joined[0])
        losses += 1
    assert farm.gave_up.cause is Cause.NO_WORKERS and farm.gave_up.attempts == losses
    assert losses == 5 * policy.start_failures_allowed(2)


def drain(farm: Farm, host: str) -> None:
    """It is asked to end, and hands back what it has."""
    farm.tell(HostDraining(host))
    for number in [number for number, lease in farm.leases.items() if lease.worker == host]:
        farm.give_back(number)
    farm.end_host(host)


def test_hosts_that_were_asked_to_end_say_little_about_the_job() -> None:
    farm = Farm(num_workers=2)
    farm.plan(2)
    ends = 0
    while farm.gave_up is None:
        farm.join_all()
        drain(farm, farm.joined[0])
        ends += 1
    assert farm.gave_up.cause is Cause.NO_WORKERS
    assert ends == 5 * policy.start_failures_allowed(2)


def test_hosts_whose_time_is_up_before_a_block_is_done_end_the_job_soon() -> None:
    """The block takes longer than hosts live: trying on for twenty of their lives helps nobody."""
    farm = Farm(num_workers=1)
    farm.plan(1)
    ends = 0
    while farm.gave_up is None:
        host = farm.starting[0]
        farm.join(host, ends_at=farm.now + 10.0)
        farm.pass_time(11.0)
        drain(farm, host)
        ends += 1
    assert farm.gave_up.cause is Cause.NO_WORKERS
    assert ends == policy.start_failures_allowed(1)


# -- handing out -------------------------------------------------------------------------------------------


def test_leases_grow_for_quick_blocks_and_shrink_for_slow_ones() -> None:
    farm = Farm(num_workers=1, window=1024)
    farm.plan(10_000, end=False)
    farm.join_all()
    for _ in range(6):
        farm.answer(min(farm.leases), seconds=1e-6)
    sizes = [len(dispatch.blocks) for dispatch in farm.dispatches]
    assert sizes[0] == 1 and max(sizes) >= 64
    assert all(later <= 4 * earlier for earlier, later in zip(sizes, sizes[1:], strict=False))
    while len(farm.leases) > 1:
        farm.answer(min(farm.leases), seconds=2.0)
    farm.answer(min(farm.leases), seconds=2.0)
    assert len(farm.dispatches[-1].blocks) == 1


def test_slow_blocks_are_not_queued_behind_each_other() -> None:
    farm = Farm(num_workers=2)
    farm.plan(100)
    farm.join_all()
    for lease in sorted(farm.leases):
        farm.answer(lease, 1, seconds=policy.QUEUE_AHEAD_BELOW_S + 0.01)
    assert len(farm.leases) == 2


def test_quick_blocks_are_queued_ahead() -> None:
    farm = Farm(num_workers=2)
    farm.plan(100)
    farm.join_all()
    for lease in sorted(farm.leases):
        farm.answer(lease, 1, seconds=policy.QUEUE_AHEAD_BELOW_S - 0.01)
    assert [len(farm.held(worker)) for worker in ("w0", "w1")] == [2, 2]


def test_the_last_blocks_wait_for_whoever_is_free_first() -> None:
    farm = Farm(num_workers=2)
    farm.plan(20)
    farm.join_all()
    while farm.scheduler.waiting > 2:
        farm.answer(min(farm.leases), 1, seconds=0.01)
    # Two blocks wait, two workers are busy: neither block may lie behind another.
    waiting = farm.scheduler.waiting
    slow = farm.leases[max(farm.leases)].worker
    for lease in [lease for lease in sorted(farm.leases) if farm.leases[lease].worker != slow]:
        farm.answer(lease, seconds=0.01)
    assert waiting and farm.scheduler.waiting == waiting - 1


def test_lost_blocks_come_first_and_in_order() -> None:
    farm = Farm(num_workers=3)
    farm.plan(50)
    farm.join_all()
    # The worker with the lowest block is lost last.
    for lease in sorted(farm.leases, reverse=True):
        farm.lose(farm.leases[lease].worker, running=False)
    before = len(farm.dispatches)
    farm.join(farm.starting[0])
    assert list(farm.dispatches[before].blocks) == [0]
    assert farm.scheduler.retries == 3


def test_starved_workers_get_more_credit_up_to_a_bound() -> None:
    farm = Farm(num_workers=1, window=4096)
    farm.plan(4096, end=False)
    farm.join_all()
    held = set()
    for _ in range(40):
        farm.answer(min(farm.leases), seconds=0.001, starved=True)
        held.add(len(farm.leases))
    assert max(held) == policy.MAX_CREDIT


# -- answers -----------------------------------------------------------------------------------------------


def test_an_answer_under_another_workers_lease_is_dropped() -> None:
    farm = Farm(num_workers=2, max_raises_per_block=1)
    farm.plan(50)
    farm.join_all()
    lease = min(farm.leases)
    (other,) = set(farm.joined) - {farm.leases[lease].worker}
    farm.tell(Answered(other, lease, 1, 0.1))
    farm.tell(Raised(other, lease, 0))
    farm.tell(GaveBack(other, lease))
    assert farm.accepted == [] and farm.scheduler.stale_answers == 2 and farm.gave_up is None
    farm.answer(lease)
    assert farm.accepted == [0]


def test_an_answer_of_more_blocks_than_leased_is_a_bug_with_a_story() -> None:
    farm = Farm(num_workers=1)
    farm.plan(1)
    farm.join_all()
    with pytest.raises(InternalError, match="answers 2 blocks") as caught:
        farm.tell(Answered("w0", 1, 2, 0.1))
    assert any("WorkerJoined" in line for line in caught.value.story)


def test_an_exception_on_a_block_that_is_done_is_a_bug() -> None:
    farm = Farm(num_workers=1)
    farm.plan(1)
    farm.join_all()
    with pytest.raises(InternalError, match="raised on block 1 of lease 1"):
        farm.scheduler.handle(Raised("w0", 1, 1), 0.0)


@pytest.mark.parametrize("twice", [False, True])
def test_a_worker_nobody_started_and_one_that_joins_twice_are_bugs(twice: bool) -> None:
    farm = Farm(num_workers=1)
    farm.plan(1)
    farm.join_all()
    with pytest.raises(InternalError, match="a second time" if twice else "was never started"):
        farm.scheduler.handle(WorkerJoined("w0") if twice else WorkerJoined("x"), 0.0)


def test_the_block_at_a_place_of_a_lease() -> None:
    farm = Farm(num_workers=1)
    farm.plan(2)
    farm.join_all()
    lease = min(farm.leases)
    assert [farm.scheduler.block_at(lease, at) for at in (-1, 0, 1)] == [None, 0, None]
    assert farm.scheduler.block_at(lease + 1, 0) is None


def test_what_is_given_back_goes_on_elsewhere_and_is_no_retry() -> None:
    farm = Farm(num_workers=2)
    farm.plan(50)
    farm.join_all()
    lease = farm.holder(0)
    farm.tell(HostDraining(farm.leases[lease].worker))
    farm.give_back(lease)
    farm.answer(farm.holder(1))
    assert farm.holder(0) and farm.scheduler.retries == 0


# -- trouble -----------------------------------------------------------------------------------------------


def test_the_users_exception_ends_the_job() -> None:
    farm = Farm(num_workers=1)
    farm.plan(5)
    farm.join_all()
    farm.fail(min(farm.leases))
    assert farm.gave_up == GiveUp(Cause.USER_EXCEPTION, 0, 1, "w0")
    assert farm.scheduler.handle(Raised("w0", 99, 0), 1.0) == []
    assert farm.scheduler.handle(Tick(), 1.0) == []
    assert farm.scheduler.next_deadline() is None


def test_an_exception_is_tried_again_as_often_as_asked_for() -> None:
    farm = Farm(num_workers=1, max_raises_per_block=3)
    farm.plan(5)
    farm.join_all()
    farm.fail(farm.holder(0))
    farm.fail(farm.holder(0))
    farm.answer(farm.holder(0))
    assert farm.gave_up is None and farm.scheduler.retries == 2
    for _ in range(3):
        farm.fail(farm.holder(1))
    assert farm.gave_up == GiveUp(Cause.USER_EXCEPTION, 1, 3, "w0")


def test_blocks_before_the_one_that_raised_and_not_handed_in_are_run_again() -> None:
    farm = Farm(num_workers=1, max_raises_per_block=2, window=1024)
    farm.plan(1000)
    farm.join_all()
    while max(len(lease.left) for lease in farm.leases.values()) < 8:
        farm.answer(min(farm.leases), seconds=1e-6)
    number = max(farm.leases)
    blocks = farm.leases[number].blocks
    farm.answer(number, 2, seconds=1e-6)
    farm.fail(number, 5)
    farm.finish()
    assert sorted(farm.accepted) == list(range(1000)) and farm.scheduler.retries == len(blocks) - 2


def test_a_suspect_runs_alone() -> None:
    farm = Farm(num_workers=1)
    farm.plan(1000)
    farm.join_all()
    while max(len(lease.left) for lease in farm.leases.values()) < 8:
        farm.answer(min(farm.leases), seconds=1e-6)
    suspect = farm.leases[min(farm.leases)].left[0]
    farm.lose(farm.joined[0])
    farm.join_all()
    (lease,) = farm.leases.values()
    assert lease.left == [suspect]
    farm.answer(min(farm.leases))
    assert len(next(iter(farm.leases.values())).left) >= 1 and suspect in farm.accepted


def test_nobody_queues_ahead_while_a_suspect_waits_for_somebody_idle() -> None:
    farm = Farm(num_workers=2)
    farm.plan(1000)
    farm.join_all()
    farm.answer(farm.holder(0), seconds=0.02)
    farm.answer(farm.holder(1), seconds=0.02)
    suspect = farm.leases[farm.held("w1")[0]].left[0]
    farm.lose("w1")
    assert len(farm.held("w0")) == 2
    farm.answer(farm.held("w0")[0], seconds=0.02)
    assert len(farm.held("w0")) == 1
    farm.answer(farm.held("w0")[0], seconds=0.02)
    assert farm.leases[farm.held("w0")[0]].left == [suspect]


def test_blocks_queued_behind_a_killed_worker_are_not_counted_against() -> None:
    farm = Farm(num_workers=1, max_kills_per_block=1, max_losses_per_block=1, skip=True)
    farm.plan(100)
    farm.join_all()
    farm.answer(min(farm.leases), seconds=0.01)
    queued = [block for lease in farm.leases.values() for block in lease.left][1:]
    farm.lose(farm.joined[0])
    assert [skip.block for skip in farm.skips] == [1] and queued
    farm.finish()
    assert farm.gave_up is None and sorted(farm.accepted) == [0, *range(2, 100)]


def test_a_block_that_kills_every_worker_ends_the_job_with_evidence() -> None:
    farm = Farm(num_workers=1, max_kills_per_block=3)
    farm.plan(1)
    for times in range(3):
        farm.join_all()
        farm.lose(farm.joined[0], evidence=f"death {times + 1}")
    assert farm.gave_up == GiveUp(Cause.POISON_BLOCK, 0, 3, "w2", "death 3")


def test_causes_are_counted_apart() -> None:
    farm = Farm(num_workers=1, max_raises_per_block=2, max_kills_per_block=2, max_timeouts_per_block=2)
    farm.plan(1)
    farm.join_all()
    farm.fail(farm.holder(0))
    farm.lose("w0", timed_out=True)
    farm.join_all()
    farm.lose("w1")
    farm.join_all()
    assert farm.gave_up is None
    farm.lose("w2", timed_out=True, evidence="ran for 5 s")
    assert farm.gave_up == GiveUp(Cause.BLOCK_TIMEOUT, 0, 2, "w2", "ran for 5 s")


def test_a_lost_host_counts_against_all_that_it_held_also_what_was_queued() -> None:
    farm = Farm(num_workers=1, max_losses_per_block=2)
    farm.plan(100)
    farm.join_all()
    farm.answer(farm.holder(0), seconds=0.01)
    assert len(farm.held("w0")) == 2
    queued = farm.leases[farm.held("w0")[1]].left[0]
    farm.end_host("w0")
    farm.join_all()
    while queued not in farm.leases[min(farm.leases)].left:
        farm.answer(min(farm.leases), seconds=0.1)
    assert farm.gave_up is None
    farm.end_host("w1")
    assert farm.gave_up == GiveUp(Cause.LOST_TOO_OFTEN, queued, 2, "w1", "host is gone")


def test_a_block_that_is_lost_too_often_ends_the_job_even_where_blocks_may_be_skipped() -> None:
    farm = Farm(num_workers=2, max_losses_per_block=2, skip=True)
    farm.plan(100)
    farm.join("w0")
    farm.end_host("w0")
    farm.join("w2")
    farm.end_host("w2")
    assert farm.gave_up == GiveUp(Cause.LOST_TOO_OFTEN, 0, 2, "w2", "host is gone")


@pytest.mark.parametrize(
    ("cause", "limit"),
    [
        (Cause.USER_EXCEPTION, "max_raises_per_block"),
        (Cause.POISON_BLOCK, "max_kills_per_block"),
        (Cause.BLOCK_TIMEOUT, "max_timeouts_per_block"),
    ],
)
def test_blocks_at_their_limit_are_skipped_if_asked_for(cause: Cause, limit: str) -> None:
    farm = Farm(num_workers=1, skip=True, **{limit: 2})
    farm.plan(3)
    for _ in range(2):
        farm.join_all()
        if cause is Cause.USER_EXCEPTION:
            farm.fail(farm.holder(0))
        else:
            farm.lose(farm.joined[0], timed_out=cause is Cause.BLOCK_TIMEOUT)
    worker, evidence = ("w0", "") if cause is Cause.USER_EXCEPTION else ("w1", "gone")
    assert farm.skips == [Skip(0, cause, 2, worker, evidence)]
    farm.finish()
    assert farm.scheduler.finished and farm.accepted == [1, 2] and farm.scheduler.skipped == 1


def test_an_answer_clears_what_is_held_against_a_block() -> None:
    farm = Farm(num_workers=1)
    farm.plan(2)
    farm.join_all()
    farm.lose("w0")
    farm.join_all()
    assert farm.scheduler._books.trouble
    farm.answer(farm.holder(0))
    assert not farm.scheduler._books.trouble


# -- limits of time ----------------------------------------------------------------------------------------


def test_the_limit_on_starting_counts_until_the_first_worker() -> None:
    farm = Farm(start_timeout_s=10.0)
    farm.plan(5)
    assert farm.scheduler.next_deadline() == 10.0
    farm.now = 9.9
    farm.tell(Tick())
    assert farm.gave_up is None
    farm.now = 10.0
    farm.tell(Tick())
    assert farm.gave_up == GiveUp(Cause.START_TIMEOUT, evidence="0 of 1 are there")
    joined = Farm(start_timeout_s=10.0)
    joined.plan(5)
    joined.join("w0")
    assert joined.scheduler.next_deadline() is None


def test_too_few_hosts_are_waited_for_as_long_from_when_they_fell_below() -> None:
    farm = Farm(num_workers=2, min_workers=2, start_timeout_s=10.0)
    farm.plan(500)
    farm.join("w0", "w0.0", "w0.1")
    assert farm.scheduler.next_deadline() == 10.0, "two workers of one host are one host"
    farm.join("w1")
    assert farm.scheduler.next_deadline() is None
    farm.now = 50.0
    farm.end_host("w1")
    farm.now = 55.0
    farm.lose_slot("w0.0")
    assert farm.scheduler.next_deadline() == 60.0
    farm.pass_time(5.0)
    assert farm.gave_up == GiveUp(Cause.TOO_FEW_WORKERS, evidence="1 of 2 are there")


def test_nobody_is_missed_while_there_is_no_work() -> None:
    farm = Farm(num_workers=1, start_timeout_s=10.0)
    assert farm.scheduler.next_deadline() is None
    farm.now = 100.0
    farm.plan(1)
    assert farm.scheduler.next_deadline() == 110.0


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
    assert farm.gave_up == GiveUp(Cause.OUTCOME_TIMEOUT, 1)


def test_a_worker_gets_nothing_that_it_cannot_finish() -> None:
    farm = Farm(num_workers=2)
    farm.plan(500, end=False)
    farm.join("w0")
    for _ in range(10):
        farm.answer(min(farm.leases), seconds=1.0)
    farm.join("w1", ends_at=farm.now + 1.2)
    assert not farm.held("w1"), "a block takes 1 s, and some more to be on the safe side"
    farm.tell(HostStarted("w9"))
    farm.join("w9", ends_at=farm.now + 1.3)
    assert farm.held("w9")


def test_leases_are_cut_to_what_a_worker_can_finish() -> None:
    farm = Farm(num_workers=2, window=100_000)
    farm.plan(10_000, end=False)
    farm.join("w0")
    farm.join("w1", ends_at=1.0)
    while farm.now < 1.0 and farm.held("w1"):
        late = farm.leases[farm.held("w1")[0]]
        assert farm.now + len(late.left) * 0.0001 <= 1.0
        for worker in ("w0", "w1"):
            number = farm.held(worker)[0]
            farm.answer(number, seconds=0.0001 * len(farm.leases[number].left))
    assert farm.now > 0.5


def test_a_worker_whose_time_is_not_known_to_suffice_may_try_one() -> None:
    farm = Farm(num_workers=1)
    farm.plan(500)
    farm.join("w0", ends_at=0.001)
    assert len(farm.leases) == 1


def test_a_late_death_of_a_worker_unknown_is_no_news() -> None:
    farm = Farm(num_workers=1)
    farm.plan(5)
    farm.join_all()
    farm.tell(WorkerLost("x", None, "who?"))
    farm.tell(HostEnded("x", "who?"))
    assert farm.scheduler.workers_lost == 0
