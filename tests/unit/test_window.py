"""The window: order and bound, against a list."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemanager.errors import InternalError
from computemanager.model import Outcome
from computemanager.window import Window


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
