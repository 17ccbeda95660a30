"""Kinds that run in this process: tries again, goes on without a block, and the state stays exact."""

from __future__ import annotations

import contextlib
import gc
import pickle
import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from computemanager.base import ComputeWorkerManager, manager_class
from computemanager.calling import Snapshot
from computemanager.errors import BlockError, PayloadError, SettingsError
from computemanager.model import Job, Outcome, Settings
from computemanager.testing import nothing_left

KINDS = ["CW_NONE", "CW_THREADS"]


def make(kind: str, **changes: Any) -> ComputeWorkerManager:
    return manager_class(kind)(Settings(**{"num_workers": 2, **changes}))


class Script:
    """A function that fails on given blocks the given number of times, and counts its calls."""

    def __init__(self, failures: dict[int, int]) -> None:
        self.left = dict(failures)
        self.calls: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __call__(self, block: int, *state: Any) -> int:
        if state:
            # Half of the block's work, before it fails: has to be undone.
            state[0].add(block)
        with self._lock:
            self.calls[block] += 1
            self.left[block] = left = self.left.get(block, 0) - 1
        if left >= 0:
            raise ValueError(f"no {block}")
        return block * 10


class Totals:
    """A state with all that a block may change."""

    def __init__(self) -> None:
        self.sum = 0
        self.seen: list[int] = []
        self.counts = np.zeros(64, int)

    def add(self, block: int) -> None:
        self.sum += block
        self.seen.append(block)
        self.counts[block] += 1
        if block == 5:
            self.extra = "an attribute that was not there"


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_tried_as_often_as_allowed(kind: str) -> None:
    function = Script({3: 2, 7: 1})
    manager = make(kind, max_raises_per_block=3)
    outcomes = list(manager.run(Job(function), range(10)))
    assert [outcome.value for outcome in outcomes] == [10 * block for block in range(10)]
    assert function.calls == {**dict.fromkeys(range(10), 1), 3: 3, 7: 2}
    statistics = manager.statistics
    assert (statistics.blocks, statistics.retries, statistics.skipped) == (10, 3, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_last_try_the_job_ends_and_says_how_often(kind: str) -> None:
    function = Script({4: 99})
    with pytest.raises(
        BlockError, match=r"raised ValueError on block 4 \(in .*, tried 3 times\): no 4"
    ) as caught:
        list(make(kind, max_raises_per_block=3).run(Job(function), range(10)))
    assert function.calls[4] == 3
    assert isinstance(caught.value.__cause__, ValueError) and caught.value.block == 4


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_nothing_is_tried_again(kind: str) -> None:
    function = Script({4: 1})
    with pytest.raises(BlockError, match=r"on block 4 \(in [^,]*\): no 4"):
        list(make(kind).run(Job(function), range(10)))
    assert function.calls[4] == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ordered", [True, False])
def test_a_block_that_cannot_be_computed_is_gone_on_without(kind: str, ordered: bool) -> None:
    manager = make(kind, on_error="skip", max_raises_per_block=2, ordered=ordered)
    outcomes = sorted(manager.run(Job(Script({3: 2, 7: 1, 0: 5})), range(10)))
    assert [outcome.block_index for outcome in outcomes] == list(range(10))
    assert [o.block_index for o in outcomes if o.skipped is not None] == [0, 3]
    assert [o.value for o in outcomes] == [None if i in (0, 3) else 10 * i for i in range(10)]
    skipped = outcomes[3].skipped
    assert skipped is not None
    assert (skipped.block_index, skipped.block, skipped.reason) == (3, 3, "ValueError: no 3")
    assert skipped.attempts == 2 and skipped.worker == outcomes[3].worker
    assert "in __call__" in skipped.traceback and skipped.traceback.endswith("ValueError: no 3\n")
    statistics = manager.statistics
    assert (statistics.blocks, statistics.retries, statistics.skipped) == (8, 3, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_all_blocks_may_be_skipped(kind: str) -> None:
    manager = make(kind, on_error="skip")
    outcomes = list(manager.run(Job(Script(dict.fromkeys(range(5), 1))), range(5)))
    assert all(outcome.skipped is not None for outcome in outcomes)
    assert manager.statistics.blocks == 0 and manager.statistics.first_outcome_s == 0.0


def test_a_long_reason_is_one_short_line() -> None:
    def fails(block: int) -> None:
        raise OSError("a\n  b " + "x" * 5000)

    (outcome,) = make("CW_NONE", on_error="skip").run(Job(fails), [0])
    assert outcome.skipped is not None
    reason = outcome.skipped.reason
    assert reason.startswith("OSError: a b xxx") and reason.endswith("...") and len(reason) == 300


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_an_error_of_the_function_ends_the_job_all_the_same(kind: str) -> None:
    def leaves(block: int) -> None:
        raise SystemExit(3)

    with pytest.raises((SystemExit, BlockError)) as caught:
        list(make(kind, on_error="skip", max_raises_per_block=3).run(Job(leaves), range(3)))
    assert "SystemExit" in repr(caught.value) or isinstance(caught.value, SystemExit)


@settings(deadline=None)
@given(
    failures=st.dictionaries(st.integers(0, 19), st.integers(1, 4), max_size=8),
    kind=st.sampled_from(KINDS),
    tries=st.integers(1, 3),
    workers=st.integers(1, 3),
)
def test_the_state_counts_each_block_once_and_skipped_ones_never(
    failures: dict[int, int], kind: str, tries: int, workers: int
) -> None:
    state = Totals()
    manager = make(kind, on_error="skip", max_raises_per_block=tries, num_workers=workers)
    outcomes = list(manager.run(Job(Script(failures), state), range(20)))
    done = [outcome.block_index for outcome in outcomes if outcome.skipped is None]
    assert done == [block for block in range(20) if failures.get(block, 0) < tries]
    states = manager.states()
    assert sorted(block for each in states for block in each.seen) == done
    assert sum(each.sum for each in states) == sum(done)
    assert sum(int(each.counts.sum()) for each in states) == len(done)
    assert sum(hasattr(each, "extra") for each in states) == (5 in done)
    if kind == "CW_NONE":
        assert states == [state], "the caller's own object"


def test_without_retries_and_skipping_the_state_need_not_be_copied() -> None:
    lock = threading.Lock()
    manager = make("CW_NONE")
    list(manager.run(Job(lambda block, state: None, [lock]), range(3)))
    assert manager.states()[0][0] is lock


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{"on_error": "skip"}, {"max_raises_per_block": 2}])
def test_a_state_that_cannot_be_copied_is_refused_before_it_matters(
    kind: str, changes: dict[str, Any]
) -> None:
    called: list[int] = []
    with pytest.raises(PayloadError, match="state cannot be copied.*lock.*Take out of it what cannot"):
        list(
            make(kind, **changes).run(Job(lambda block, state: called.append(block), [threading.Lock()]), [0])
        )
    assert not called


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_was_changed_by_a_failed_try_is_as_before_in_the_next(kind: str) -> None:
    seen: list[list[int]] = []

    def half_done(block: Any) -> int:
        seen.append(block.tolist())
        block += 1
        if len(seen) < 3:
            raise ValueError("not yet")
        return int(block.sum())

    (outcome,) = make(kind, num_workers=1, max_raises_per_block=3).run(Job(half_done), [np.arange(3)])
    assert seen == [[0, 1, 2]] * 3 and outcome.value == 6


def test_a_block_that_cannot_be_copied_is_tried_again_as_it_is() -> None:
    lock = threading.Lock()
    seen: list[Any] = []

    def fails_once(block: Any) -> None:
        seen.append(block)
        if len(seen) == 1:
            raise ValueError

    list(make("CW_NONE", max_raises_per_block=2).run(Job(fails_once), [lock]))
    assert seen == [lock, lock]


class Memory:
    """Something to hold on to, which can be watched."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_block_keeps_nothing_of_its_try_alive(kind: str) -> None:
    watched: list[weakref.ref[Memory]] = []

    def fails(block: int) -> None:
        memory = Memory()
        watched.append(weakref.ref(memory))
        raise ValueError(block)

    gc.disable()
    try:
        outcomes = list(make(kind, on_error="skip", max_raises_per_block=2).run(Job(fails), range(5)))
        assert len(outcomes) == 5 and len(watched) == 10
        assert [ref() for ref in watched] == [None] * 10
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_limit_for_a_block_is_refused(kind: str) -> None:
    pulled: list[int] = []
    with pytest.raises(SettingsError, match=rf"block_timeout_s=5 \(blockTimeout\) with {kind}: .*CW_SUBPROC"):
        list(make(kind, block_timeout_s=5).run(Job(abs), (pulled.append(i) for i in range(3))))
    assert not pulled


# -- keeping what is done ------------------------------------------------------------------------------


def kept_run(
    kind: str, job: Job, blocks: int, **changes: Any
) -> tuple[list[Outcome], list[tuple[Sequence[int], Sequence[Any], str, bytes | None]], list[int]]:
    """A run with a journal's callback: outcomes, what was kept, and how much was kept before each outcome."""
    kept: list[Any] = []
    manager = make(kind, **changes)
    run = manager._run(job, iter(range(blocks)))
    manager._keep = lambda *entry: kept.append(entry)
    outcomes, before = [], []
    for outcome in run:
        outcomes.append(outcome)
        before.append(len(kept))
    return outcomes, kept, before


@pytest.mark.parametrize("kind", KINDS)
def test_finished_blocks_are_kept_once_and_skipped_ones_are_not(kind: str) -> None:
    outcomes, kept, before = kept_run(kind, Job(Script({3: 1})), 10, on_error="skip")
    assert sorted(index for indexes, _, _, _ in kept for index in indexes) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert all(values == [10 * indexes[0]] for indexes, values, _, _ in kept)
    assert all(state is None for *_, state in kept)
    assert {worker for _, _, worker, _ in kept} <= {outcome.worker for outcome in outcomes}
    assert all(number >= index for index, number in enumerate(before)), "kept before the caller has it"


def test_a_block_is_kept_before_it_waits_for_its_turn() -> None:
    others = threading.Event()

    def first_waits(block: int) -> int:
        if block == 0:
            assert others.wait(60)
        return block

    kept: list[int] = []

    def keep(indexes: Sequence[int], *_: Any) -> None:
        kept.extend(indexes)
        if len(kept) == 3:
            others.set()

    manager = make("CW_THREADS")
    manager._keep = keep
    assert [outcome.value for outcome in manager._run(Job(first_waits), iter(range(4)))] == [0, 1, 2, 3]
    assert kept[0] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_has_the_state_as_of_that_block(kind: str) -> None:
    _, kept, _ = kept_run(
        kind, Job(Script({3: 2, 6: 1}), Totals()), 10, on_error="skip", max_raises_per_block=2
    )
    done: dict[str, list[int]] = {}
    for indexes, _, worker, state in kept:
        done.setdefault(worker, []).extend(indexes)
        assert state is not None
        assert pickle.loads(state).seen == done[worker]
    assert sorted(block for blocks in done.values() for block in blocks) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


# -- memory and disk -----------------------------------------------------------------------------------


def test_threads_put_on_disk_what_waits_for_a_slow_block() -> None:
    rest = threading.Event()
    answered = 0

    def work(block: int) -> Any:
        if block == 0:
            assert rest.wait(60)
        return np.full(10_000, block, np.uint16)

    def keep(indexes: Sequence[int], *_: Any) -> None:
        nonlocal answered
        answered += 1
        if answered == 50:
            rest.set()

    manager = make("CW_THREADS", window_bytes=100_000)
    manager._keep = keep
    with contextlib.closing(manager._run(Job(work), iter(range(60)))) as run:
        for index, outcome in enumerate(run):
            assert outcome.block_index == index and (outcome.value == index).all()
    assert manager.statistics.spilled_bytes >= 44 * 20_000


def test_threads_get_new_blocks_while_the_caller_takes_what_waited() -> None:
    """One slow block, then a caller that takes its time over what has piled up behind it."""
    others = threading.Event()
    computed = [threading.Event() for _ in range(200)]
    kept = 0

    def work(block: int) -> None:
        if block == 0:
            assert others.wait(60)
        computed[block].set()

    def keep(*_: Any) -> None:
        nonlocal kept
        kept += 1
        if kept == 50:
            others.set()

    manager = make("CW_THREADS")
    manager._keep = keep
    for outcome in manager._run(Job(work), iter(range(200))):
        if outcome.block_index < 40:
            assert computed[50 + outcome.block_index].wait(20), "the threads have nothing to do"


def test_a_run_that_is_closed_leaves_nothing_of_what_is_on_disk() -> None:
    enough = threading.Event()
    manager = make("CW_THREADS", window_bytes=1)

    def keep(indexes: Sequence[int], *_: Any) -> None:
        if indexes == [20]:
            enough.set()

    def work(block: int) -> Any:
        if block == 0:
            assert enough.wait(60)
        return np.zeros(10_000)

    manager._keep = keep
    with nothing_left():
        run = manager._run(Job(work), iter(range(1000)))
        next(run)
        assert manager.statistics.spilled_bytes > 0
        run.close()


# -- going back ----------------------------------------------------------------------------------------


class Slots:
    __slots__ = ("value",)


class Named(dict[str, int]):
    """A dict with an attribute."""


def changed(value: Any, change: Callable[[Any], None]) -> Any:
    """The same object after a change that was undone."""
    before = Snapshot(value)
    change(value)
    before.restore(value)
    return value


def test_containers_and_objects_are_restored_in_place() -> None:
    assert changed([1, [2]], lambda state: (state[1].append(3), state.append(4))) == [1, [2]]
    assert changed({1: 2}, lambda state: (state.pop(1), state.update(a=1))) == {1: 2}
    assert changed({1, 2}, lambda state: state.add(3)) == {1, 2}
    assert changed(bytearray(b"abc"), lambda state: state.extend(b"d")) == b"abc"
    assert changed(np.arange(3), lambda state: state.fill(7)).tolist() == [0, 1, 2]
    totals = changed(Totals(), lambda state: state.add(5))
    assert vars(totals).keys() == {"sum", "seen", "counts"} and totals.sum == 0 and not totals.counts.any()
    named = Named(a=1)
    named.note = "first"  # type: ignore[attr-defined]
    changed(named, lambda state: (state.clear(), setattr(state, "note", "second")))
    assert named == {"a": 1} and named.note == "first"  # type: ignore[attr-defined]


def test_what_is_pickled_by_its_name_and_what_has_no_attributes_stays_as_it_is() -> None:
    assert changed(contextlib, lambda state: None).suppress is contextlib.suppress
    assert changed(Totals, lambda state: None).__name__ == "Totals"
    assert changed(types.SimpleNamespace(a=1), lambda state: setattr(state, "a", 2)).a == 1
    assert changed((1, 2), lambda state: None) == (1, 2)
    slots = Slots()
    slots.value = 1
    assert changed(slots, lambda state: setattr(state, "value", 2)).value == 2
