"""Liveness: silence counts only while somebody listens."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from computemanager.liveness import Health, Liveness


def test_a_peer_goes_silent_and_then_is_gone() -> None:
    peer = Liveness(0.0, silent_s=3.0, grace_s=10.0)
    states = []
    for now in range(12):
        peer.looked(now)
        states.append(peer.state(now))
    assert states == [Health.WELL] * 3 + [Health.SILENT] * 7 + [Health.GONE] * 2


def test_a_sign_of_life_makes_it_well_again() -> None:
    peer = Liveness(0.0, silent_s=3.0, grace_s=10.0)
    for now in range(1, 9):
        peer.looked(now)
    assert peer.state(8.0) is Health.SILENT
    peer.heard(8.5)
    assert peer.state(8.5) is Health.WELL
    assert peer.state(9.5) is Health.WELL


def test_a_pause_in_which_nobody_looked_does_not_count() -> None:
    peer = Liveness(0.0, silent_s=3.0, grace_s=10.0)
    peer.looked(1.0)
    assert peer.state(1000.0) is Health.WELL  # before the look, too
    peer.looked(1000.0)
    assert peer.state(1000.0) is Health.WELL
    peer.looked(1001.0)
    assert peer.state(1001.0) is Health.WELL
    peer.looked(1002.0)
    assert peer.state(1002.0) is Health.SILENT


@pytest.mark.parametrize(("pause_s", "state"), [(1.5, Health.SILENT), (1.6, Health.WELL)])
def test_a_pause_is_more_than_half_of_the_time_until_silence(pause_s: float, state: Health) -> None:
    peer = Liveness(0.0, silent_s=3.0, grace_s=10.0)
    peer.looked(1.5)
    peer.looked(1.5 + pause_s)
    assert peer.state(1.5 + pause_s) is state


def test_a_silent_peer_is_not_gone_after_a_pause_but_still_silent() -> None:
    peer = Liveness(0.0, silent_s=2.0, grace_s=10.0)
    for now in range(1, 6):
        peer.looked(now)
    peer.looked(500.0)
    assert peer.state(500.0) is Health.SILENT


@given(
    silent_s=st.floats(0.01, 100),
    factor=st.floats(1.0, 20.0),
    start=st.floats(0.0, 1e6),
    late=st.lists(st.floats(0.0, 0.2), min_size=1, max_size=10),
)
def test_looking_when_told_finds_every_change_in_time(
    silent_s: float, factor: float, start: float, late: list[float]
) -> None:
    """Also where the look comes a little later than told, as it does after any wait."""
    grace_s = silent_s * factor
    peer = Liveness(start, silent_s, grace_s)
    now, looks = start, 0
    while (then := peer.next_change(now)) != math.inf:
        assert now < then <= start + grace_s
        state = peer.state(now)
        assert state is (Health.WELL if now < start + silent_s else Health.SILENT)
        now = then + late[looks % len(late)] * silent_s
        peer.looked(now)
        looks += 1
    assert peer.state(now) is Health.GONE
    assert start + grace_s <= now <= start + grace_s + 0.2 * silent_s
    assert looks <= 5 * factor + 5


@pytest.mark.parametrize(("silent_s", "grace_s"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_times_that_make_no_sense_are_refused(silent_s: float, grace_s: float) -> None:
    with pytest.raises(ValueError, match=r"silent_s is .* and grace_s .*; they must be above 0, and rise"):
        Liveness(0.0, silent_s, grace_s)
