"""How long jobs take on the simulated clock: exact, since nothing else is on it."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from computemanager.simulate import Scenario, Simulation


def makespan(**day: Any) -> float:
    return Simulation(0, scenario=Scenario(**day)).run().makespan_s


@pytest.mark.parametrize("block_s", [0.01, 0.1, 1.0, 60.0])
@pytest.mark.parametrize("slow", range(4))
@pytest.mark.parametrize("speculate", [False, True])
def test_one_worker_that_is_ten_times_slower_hardly_matters(
    block_s: float, slow: int, speculate: bool
) -> None:
    slowness = tuple(10.0 if number == slow else 1.0 for number in range(4))
    limits = {"speculate": speculate}
    equal = makespan(blocks=200, hosts=4, block_s=block_s, limits=limits)
    took = makespan(blocks=200, hosts=4, block_s=block_s, slowness=slowness, limits=limits)
    assert equal == pytest.approx(50 * block_s)
    assert took <= 1.3 * equal * (1 + 1e-9)
    assert took == pytest.approx(65 * block_s), "three do 195 blocks in that time, the slow one six"


@pytest.mark.parametrize("position", [0, 1, 20, 500, 700])
def test_one_block_that_takes_a_hundred_times_longer_idles_nobody(position: int) -> None:
    took = makespan(blocks=800, hosts=4, slow_blocks={position: 100.0})
    assert took == max(math.ceil((799 + 100) / 4), position // 4 + 100), "four are busy all the time"


@pytest.mark.parametrize("window", [16, 64])
def test_nor_does_it_in_a_small_window_while_that_has_room(window: int) -> None:
    day = {"blocks": 800, "hosts": 4, "slow_blocks": {100: 100.0}, "limits": {"speculate": False}}
    took = makespan(window=window, **day)
    beyond = window - 4  # done by the others while the window stands still
    assert took <= 100 + 100 / 4 + (800 - 100 - beyond) / 4 + 2


@settings(max_examples=30, deadline=None)
@given(
    slowness=st.lists(st.floats(1.0, 30.0), min_size=2, max_size=6),
    blocks=st.integers(100, 400),
    speculate=st.booleans(),
)
def test_any_mix_of_speeds_is_near_the_best_possible(
    slowness: list[float], blocks: int, speculate: bool
) -> None:
    hosts = len(slowness)
    took = makespan(blocks=blocks, hosts=hosts, slowness=tuple(slowness), limits={"speculate": speculate})
    usual = hosts / sum(1 / each for each in slowness)
    assert took <= best_possible(slowness, blocks) + 2 * usual


def best_possible(slowness: list[float], blocks: int) -> float:
    """The earliest time at which the workers can have done so many blocks of 1 s."""
    low, high = 0.0, max(slowness) * blocks
    for _ in range(60):
        middle = 0.5 * (low + high)
        if sum(int(middle / each) for each in slowness) >= blocks:
            high = middle
        else:
            low = middle
    return high


def test_a_worker_that_stands_still_holds_up_the_end_no_longer_than_two_blocks() -> None:
    calm = makespan(blocks=41, hosts=4)
    took = makespan(blocks=41, hosts=4, slow_blocks={40: 1.0}, slowness=(1.0, 1.0, 1.0, 1000.0))
    assert calm == 11.0 and took <= 41 / 3 + 3
