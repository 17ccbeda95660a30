"""What is done about workers that are silent, slow or late: copies, recalls, and work kept from them."""

from __future__ import annotations

import pytest

from computemanager.scheduler import (
    Accept,
    Answered,
    HostBack,
    HostSilent,
    HostStarted,
    Raised,
    Recall,
    Tick,
    policy,
)

from .paper import Farm


def two_at_the_end(**limits: object) -> Farm:
    """Two workers that know their pace of 1 s, one with the last block, the other one idle since now."""
    farm = Farm(num_workers=2, **limits)
    farm.plan(5)
    farm.join_all()
    for block in range(4):
        farm.answer(farm.holder(block), seconds=0.5)
    assert farm.scheduler.waiting == 0 and len(farm.leases) == 1
    return farm


def late(farm: Farm) -> Farm:
    """Let time pass until the last block is late."""
    farm.pass_time(policy.LATE_FACTOR * 0.5)
    return farm


# -- copies of late blocks ---------------------------------------------------------------------------------


def test_a_late_block_is_run_again_by_an_idle_worker_and_the_driver_is_told_when_to_look() -> None:
    farm = two_at_the_end()
    assert farm.now == 2.0 and farm.scheduler.next_deadline() == 1.5 + policy.LATE_FACTOR * 0.5
    (first,) = farm.leases
    late(farm)
    assert sorted(lease.left for lease in farm.leases.values()) == [[4], [4]]
    assert farm.scheduler.speculated == 1 and farm.scheduler.retries == 0
    (copy,) = set(farm.leases) - {first}
    farm.answer(copy)
    assert farm.scheduler.finished and farm.scheduler.stale_answers == 0
    farm.answer(first)
    assert farm.accepted == [0, 1, 2, 3, 4] and farm.scheduler.stale_answers == 1


def test_no_copy_without_leave() -> None:
    farm = late(two_at_the_end(speculate=False))
    assert len(farm.leases) == 1 and farm.scheduler.next_deadline() is None


def test_no_second_copy() -> None:
    farm = late(two_at_the_end())
    assert len(farm.leases) == 2
    farm.tell(HostStarted("x"))
    farm.join("x")
    farm.pass_time(100.0)
    assert len(farm.leases) == 2 and farm.scheduler.next_deadline() is None


def test_no_copy_by_a_worker_that_would_take_longer_than_the_holder_has() -> None:
    farm = two_at_the_end()
    workers = farm.scheduler._books.roster.workers
    (holder,) = {lease.worker for lease in farm.leases.values()}
    (idle,) = set(workers) - {holder}
    workers[idle].seconds_per_block = 4.0
    farm.tell(Tick())
    assert farm.scheduler.next_deadline() == 1.5 + 4.0
    workers[holder].seconds_per_block = 40.0
    farm.tell(Tick())
    assert farm.scheduler.next_deadline() == 1.5 + policy.LATE_FACTOR * 0.5, "that one is even slower"


def copied_lease(**limits: object) -> tuple[Farm, int, int]:
    """The last blocks of 200 are one lease, of which a copy runs."""
    farm = Farm(num_workers=2, window=1024, **limits)
    farm.plan(200, end=False)
    farm.join("w0")
    farm.answer(farm.holder(0), seconds=1e-5)
    while farm.scheduler.waiting:
        farm.answer(min(farm.leases), seconds=1e-5)
    while len(farm.leases) > 1:
        farm.answer(min(farm.leases), seconds=1e-5)
    (first,) = farm.leases
    assert len(farm.leases[first].left) >= 4
    farm.join("w1")
    farm.pass_time(1.0)
    (copy,) = set(farm.leases) - {first}
    assert farm.leases[copy].left == farm.leases[first].left
    return farm, first, copy


def test_a_copy_of_some_blocks_counts_block_by_block() -> None:
    farm, first, copy = copied_lease()
    blocks = list(farm.leases[first].left)
    farm.answer(first, 2)
    farm.answer(copy, 3)
    assert farm.accepts[-1] == Accept("w1", (blocks[2],), (2,))
    assert farm.scheduler.stale_answers == 2
    farm.answer(first)
    assert farm.accepts[-1].positions == tuple(range(1, len(blocks) - 2))
    assert sorted(farm.accepted) == list(range(200))


def test_a_dead_copy_costs_nothing_and_two_dead_ones_bring_the_block_back_once() -> None:
    farm = late(two_at_the_end())
    one, other = sorted(farm.leases)
    farm.end_host(farm.leases[other].worker)
    assert farm.scheduler.waiting == 0 and farm.scheduler.retries == 0
    farm.end_host(farm.leases[one].worker)
    assert farm.scheduler.waiting == 1 and farm.scheduler.retries == 1
    farm.finish()
    assert farm.accepted == [0, 1, 2, 3, 4]


def test_a_block_that_raises_in_one_place_is_done_in_the_other() -> None:
    farm = late(two_at_the_end(max_raises_per_block=2))
    one, other = sorted(farm.leases)
    farm.fail(one)
    assert farm.scheduler.waiting == 0
    farm.answer(other)
    assert farm.scheduler.finished


def test_a_block_that_is_skipped_is_not_accepted_from_its_copy() -> None:
    farm = late(two_at_the_end(skip=True))
    one, other = sorted(farm.leases)
    farm.fail(one)
    assert [skip.block for skip in farm.skips] == [4] and farm.scheduler.finished
    farm.answer(other)
    assert farm.accepted == [0, 1, 2, 3] and farm.scheduler.stale_answers == 1


def test_an_exception_on_a_block_that_a_copy_has_done_is_stale() -> None:
    farm = late(two_at_the_end())
    one, other = sorted(farm.leases)
    worker = farm.leases[one].worker
    farm.plan(1, end=False)
    farm.answer(other)
    farm.tell(Raised(worker, one, 0))
    assert farm.gave_up is None and farm.scheduler.stale_answers == 1


def test_a_suspect_is_not_copied() -> None:
    farm = two_at_the_end()
    farm.lose(farm.leases[min(farm.leases)].worker)
    (suspect,) = farm.leases
    farm.tell(HostStarted("x"))
    farm.join("x")
    farm.pass_time(100.0)
    assert list(farm.leases) == [suspect]


def test_no_copy_by_a_worker_that_ends_before_it_could_be_done() -> None:
    farm = Farm(num_workers=2)
    farm.plan(2)
    farm.join("w0")
    farm.answer(farm.holder(0), seconds=1.0)
    farm.join("w1", ends_at=farm.now + 2.0)
    farm.pass_time(100.0)
    assert not farm.held("w1") and farm.scheduler.speculated == 0


def test_no_copy_of_what_has_a_gap_where_a_block_was_skipped() -> None:
    farm, first, copy = copied_lease(skip=True)
    gap = farm.leases[copy].left[2]
    farm.fail(first, farm.leases[first].done + 2)
    assert [skip.block for skip in farm.skips] == [gap]
    farm.tell(HostStarted("x"))
    farm.join("x")
    farm.pass_time(100.0)
    assert not farm.held("x"), "it would run that block again"
    farm.answer(copy)
    assert sorted([*farm.accepted, gap]) == list(range(200)) and farm.scheduler.stale_answers == 1


def test_a_frozen_workers_queued_leases_are_copied_one_after_the_other() -> None:
    farm = Farm(num_workers=2)
    farm.plan(40)
    farm.join_all()
    while farm.scheduler.waiting:
        farm.answer(farm.held("w0")[0], seconds=0.01)
        if len(farm.held("w1")) < 2 and farm.scheduler.waiting > 2:
            farm.answer(farm.held("w1")[0], seconds=0.01)
    assert len(farm.held("w1")) == 2
    # From here on w1 stands still, and does not answer a recall either.
    for _ in range(10):
        for number in farm.held("w0"):
            farm.answer(number, seconds=0.01)
        farm.pass_time(1.0)
    assert farm.scheduler.finished


# -- recalls -----------------------------------------------------------------------------------------------


def test_what_is_queued_behind_a_late_block_is_recalled_once_and_goes_to_the_idle() -> None:
    farm = Farm(num_workers=2, speculate=False)
    farm.plan(40)
    farm.join_all()
    while farm.scheduler.waiting:
        farm.answer(farm.held("w0")[0], seconds=0.01)
        if len(farm.held("w1")) < 2 and farm.scheduler.waiting > 2:
            farm.answer(farm.held("w1")[0], seconds=0.01)
    while farm.held("w0"):
        farm.answer(farm.held("w0")[0], seconds=0.01)
    on, queued = farm.held("w1")
    assert farm.recalls == [Recall("w1", queued)]
    farm.pass_time(10.0)
    assert len(farm.recalls) == 1
    farm.give_back(queued)
    (moved,) = farm.held("w0")
    assert farm.held("w1") == [on] and farm.scheduler.retries == 0
    farm.answer(moved)
    farm.answer(on)
    assert farm.scheduler.finished


def test_giving_back_is_no_progress_with_the_block_before() -> None:
    farm = Farm(num_workers=2)
    farm.plan(40)
    farm.join_all()
    while farm.scheduler.waiting:
        farm.answer(farm.held("w0")[0], seconds=0.01)
        if len(farm.held("w1")) < 2 and farm.scheduler.waiting > 2:
            farm.answer(farm.held("w1")[0], seconds=0.01)
    on, queued = farm.held("w1")
    since = farm.scheduler._books.roster.workers["w1"].progress_at
    farm.give_back(queued)
    assert farm.scheduler._books.roster.workers["w1"].progress_at == since < farm.now


# -- silence -----------------------------------------------------------------------------------------------


def test_a_silent_worker_gets_nothing_until_it_is_back() -> None:
    farm = Farm(num_workers=2, speculate=False)
    farm.plan(100)
    farm.join_all()
    farm.tell(HostSilent("w0"))
    farm.answer(farm.held("w0")[0])  # sent before it fell silent
    assert farm.held("w0") == []
    farm.tell(HostBack("w0"))
    assert len(farm.held("w0")) >= 1


def test_the_lowest_block_of_a_silent_worker_is_copied_before_anything_else() -> None:
    farm = Farm(num_workers=2)
    farm.plan(100)
    farm.join_all()
    lowest = farm.holder(0)
    farm.tell(HostSilent(farm.leases[lowest].worker))
    assert farm.holder(0) == lowest, "nobody is idle"
    farm.answer(farm.holder(1), seconds=1.0)
    assert farm.holder(0) != lowest and farm.dispatches[-1].blocks == range(0, 1)
    farm.answer(farm.holder(0), seconds=1.0)
    assert farm.accepted == [1, 0] and farm.dispatches[-1].blocks[0] == 2


def test_other_blocks_of_a_silent_worker_are_copied_when_nothing_waits() -> None:
    farm = Farm(num_workers=3)
    farm.plan(4)
    farm.join_all()
    silent = farm.holder(1)
    farm.tell(HostSilent(farm.leases[silent].worker))
    farm.answer(farm.holder(2), seconds=1.0)
    assert farm.holder(1) == silent and farm.holder(3)
    farm.answer(farm.holder(3), seconds=1.0)
    assert farm.holder(1) != silent and farm.scheduler.speculated == 1


def test_a_worker_that_comes_back_goes_on_and_is_no_candidate_any_more() -> None:
    farm = Farm(num_workers=1)
    farm.plan(2)
    farm.join_all()
    farm.tell(HostSilent("w0"))
    farm.tell(HostBack("w0"))
    farm.tell(HostSilent("nobody"))
    farm.answer(farm.holder(0))
    assert farm.scheduler.speculated == 0 and farm.holder(1)


# -- slow workers ------------------------------------------------------------------------------------------


def slow_one(farm: Farm) -> None:
    """Run to the point where a worker that is 10 x slower has nothing and 3 blocks wait."""
    farm.plan(63)
    farm.join_all()
    for _ in range(50):
        for worker in ("w0", "w1"):
            if len(farm.leases) > 1 and farm.scheduler.waiting > 3:
                farm.answer(farm.held(worker)[0], seconds=0.5)
    worker = farm.scheduler._books.roster.workers["w2"]
    number = farm.held("w2")[0]
    worker.seconds_per_block = 19.0
    farm.now += 1e-3
    lease = farm.leases.pop(number)
    farm.tell(Answered("w2", number, 1, 1.0), lease.left)


def test_a_slow_worker_gets_none_of_the_last_blocks_for_as_long_as_the_others_may_need() -> None:
    farm = Farm(num_workers=3, speculate=False)
    slow_one(farm)
    assert not farm.held("w2") and farm.scheduler.waiting == 3
    left = 5 + 2  # with the two blocks in work, and one block's time more for either of the others
    assert farm.scheduler.next_deadline() == pytest.approx(farm.now + left * 0.5 / 2)
    farm.pass_time(left * 0.5 / 2)
    assert farm.held("w2"), "the others have not kept to that"


def test_a_slow_worker_gets_them_when_the_others_are_gone() -> None:
    farm = Farm(num_workers=3, speculate=False)
    slow_one(farm)
    farm.end_host("w0")
    farm.end_host("w1")
    assert farm.held("w2")
