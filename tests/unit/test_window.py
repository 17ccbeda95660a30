"""The window: order and bound, against a list."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemanager.errors import InternalError
from computemanager.model import Outcome
from computemanager.window import SpillFull, Window


class Shelf:
    """A spill in memory, which counts what it holds and may be full."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.puts = 0
        self.is_full = False

    def put(self, value: Any) -> int:
        if self.is_full:
            raise SpillFull("no room")
        self.puts += 1
        self.held[self.puts] = value
        return self.puts

    def get(self, token: int) -> Any:
        return self.held.pop(token)


def outcome(index: int, value: Any = None) -> Outcome:
    return Outcome(index, f"v{index}" if value is None else value, "w")


def admitted(number: int, **options: Any) -> Window:
    """A window of so many blocks, all pulled."""
    window = Window(number, **options)
    for _ in range(number):
        window.admit()
    return window


@given(count=st.integers(0, 60), capacity=st.integers(1, 20), seed=st.integers(), ordered=st.booleans())
def test_everything_comes_out_once_within_the_bound(
    count: int, capacity: int, seed: int, ordered: bool
) -> None:
    chance = random.Random(seed)
    window = Window(capacity, ordered=ordered)
    pulled: list[int] = []
    inside: list[int] = []
    taken: list[int] = []
    while len(taken) < count:
        choice = chance.random()
        if choice < 0.4 and len(pulled) < count and window.room:
            index = window.admit()
            pulled.append(index)
            inside.append(index)
        elif choice < 0.8 and inside:
            index = inside.pop(chance.randrange(len(inside)))
            window.put(Outcome(index, f"v{index}", "w"))
        else:
            outcome = window.take()
            if outcome is not None:
                assert outcome.value == f"v{outcome.block_index}"
                taken.append(outcome.block_index)
        assert window.outstanding == len(pulled) - len(taken) <= capacity
        assert window.room == capacity - window.outstanding
    assert sorted(taken) == list(range(count))
    if ordered:
        assert taken == list(range(count))


def test_a_block_beyond_the_bound_and_a_second_outcome_are_bugs() -> None:
    window = Window(1)
    window.admit()
    with pytest.raises(InternalError):
        window.admit()
    window.put(Outcome(0, None, "w"))
    with pytest.raises(InternalError):
        window.put(Outcome(0, None, "w"))
    assert window.take() is not None
    with pytest.raises(InternalError):
        window.put(Outcome(0, None, "w"))
    with pytest.raises(InternalError):
        window.put(Outcome(7, None, "w"))


@given(
    count=st.integers(0, 60),
    capacity=st.integers(1, 20),
    memory=st.integers(0, 50),
    seed=st.integers(),
    ordered=st.booleans(),
    may_be_full=st.booleans(),
    has_spill=st.booleans(),
)
def test_memory_is_bounded_and_nothing_is_lost_whatever_the_disk_does(
    count: int, capacity: int, memory: int, seed: int, ordered: bool, may_be_full: bool, has_spill: bool
) -> None:
    chance = random.Random(seed)
    shelf = Shelf()
    window = Window(capacity, ordered=ordered, memory_bytes=memory, spill=shelf if has_spill else None)
    pulled, inside, taken = 0, [], []
    while len(taken) < count:
        if may_be_full:
            shelf.is_full = chance.random() < 0.3
        if pulled < count and window.room and chance.random() < 0.5:
            inside.append(window.admit())
            pulled += 1
        if inside and chance.random() < 0.6:
            index = inside.pop(chance.randrange(len(inside)))
            before = window.waiting_bytes
            window.put(outcome(index), chance.choice([0, 1, 10, 30]))
            if window.waiting_bytes > max(before, memory):
                assert window.room == 0, "beyond the memory, so nothing more may be pulled"
                assert shelf.is_full or not has_spill
        # A caller that is slower than the workers now and then.
        while chance.random() < 0.4 and (got := window.take()) is not None:
            assert got == outcome(got.block_index)
            taken.append(got.block_index)
        if not inside and not window.room:
            # All that was pulled has been answered: the window must not wait for anything else.
            got = window.take()
            assert got is not None
            taken.append(got.block_index)
    assert sorted(taken) == list(range(count))
    if ordered:
        assert taken == list(range(count))
    assert not shelf.held and window.waiting_bytes == 0


def test_what_does_not_fit_waits_elsewhere_and_comes_back_in_turn() -> None:
    shelf = Shelf()
    window = admitted(5, memory_bytes=100, spill=shelf)
    for index, nbytes in ((1, 60), (2, 60), (3, 40), (4, 1)):
        window.put(outcome(index), nbytes)
    assert list(shelf.held.values()) == ["v2", "v4"]
    assert (window.waiting_bytes, window.spilled_bytes) == (100, 61)
    assert window.take() is None
    window.put(outcome(0), 1000)
    assert [window.take() for _ in range(5)] == [outcome(index) for index in range(5)]
    assert (window.waiting_bytes, window.spilled_bytes) == (0, 61)
    assert not shelf.held


def test_the_outcome_whose_turn_it_is_never_spills() -> None:
    shelf = Shelf()
    window = admitted(2, memory_bytes=0, spill=shelf)
    window.put(outcome(0), 1000)
    assert shelf.puts == 0 and window.take() == outcome(0)
    window = admitted(2, memory_bytes=0, spill=shelf, ordered=False)
    window.put(outcome(1), 1000)
    assert shelf.puts == 0


def test_a_skipped_block_takes_no_memory_and_no_disk() -> None:
    shelf = Shelf()
    shelf.is_full = True
    window = admitted(4, memory_bytes=5, spill=shelf)
    window.put(outcome(1), 7)
    shelf.is_full = False
    window.put(outcome(2))
    assert shelf.puts == 0 and window.waiting_bytes == 7
    window.put(outcome(3), 1)
    assert shelf.puts == 1


@pytest.mark.parametrize("spill", [None, "full"])
def test_without_a_place_to_spill_nothing_more_is_pulled_until_there_is_memory(spill: str | None) -> None:
    shelf = Shelf()
    shelf.is_full = True
    window = Window(10, memory_bytes=100, spill=None if spill is None else shelf)
    for _ in range(5):
        window.admit()
    window.put(outcome(1), 60)
    assert window.room == 5
    window.put(outcome(2), 60)  # finished anyway, so it is kept
    assert (window.room, window.waiting_bytes, window.spilled_bytes) == (0, 120, 0)
    window.put(outcome(0), 60)
    assert window.take() == outcome(0) and window.room == 0
    assert window.take() == outcome(1) and window.waiting_bytes == 60
    assert window.take() == outcome(2) and window.room == 8


def test_while_the_caller_is_slow_no_more_is_pulled_than_memory_holds() -> None:
    shelf = Shelf()
    window = Window(100, memory_bytes=100, spill=shelf)
    for _ in range(6):
        window.admit()
    window.put(outcome(0), 40)
    window.put(outcome(1), 40)
    window.put(outcome(2), 40)
    assert window.room == 0, "the caller has three to take, and a fourth would have to spill"
    window.put(outcome(3), 40)
    assert shelf.puts == 1
    window.take(), window.take()
    assert window.room == 96
    # One that is missing holds the others up: then it is not the caller, and the disk has room.
    window = Window(100, memory_bytes=100, spill=shelf)
    for _ in range(6):
        window.admit()
    for index in range(1, 6):
        window.put(outcome(index), 40)
    assert window.room == 94
