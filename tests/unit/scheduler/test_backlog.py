"""The ranges in which blocks wait and are finished, against plain sets."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from computemanager.scheduler.backlog import Backlog, Frontier
from computemanager.scheduler.leases import Stretch
from computemanager.scheduler.pace import Times


@given(st.lists(st.one_of(st.integers(1, 30), st.integers(-30, -1)), max_size=40), st.randoms())
def test_what_is_handed_out_is_the_lowest_that_waits(steps: list[int], chance: object) -> None:
    backlog, waiting, out = Backlog(), set(range(100)), []
    backlog.plan(100)
    for step in steps:
        if step > 0:
            taken = list(backlog.take(step))
            returned_first = sorted(waiting)[: len(taken)]
            assert taken == returned_first and len(taken) <= step
            waiting -= set(taken)
            out += taken
        elif out:
            back = sorted(chance.sample(out, min(-step, len(out))))  # type: ignore[attr-defined]
            back = [block for block in back if block in out]
            out = [block for block in out if block not in back]
            contiguous = back == list(range(back[0], back[-1] + 1))
            backlog.give_back(range(back[0], back[-1] + 1) if contiguous else back)
            waiting |= set(back)
        assert backlog.waiting == len(waiting) and not backlog.problems()


def test_suspects_wait_apart_and_take_their_turn() -> None:
    backlog = Backlog()
    backlog.plan(10)
    backlog.take(5)
    backlog.give_back_suspect(3)
    backlog.give_back([1])
    assert not backlog.suspect_is_next() and list(backlog.take(1)) == [1]
    assert backlog.suspect_is_next() and list(backlog.take_suspect()) == [3] and not backlog.has_suspects


@given(st.permutations(range(25)), st.integers(1, 5))
def test_the_frontier_is_the_lowest_that_is_missing(order: list[int], size: int) -> None:
    frontier, missing = Frontier(), set(range(25))
    for start in range(0, 25, size):
        blocks = sorted(order[start : start + size])
        frontier.finish(tuple(blocks))
        missing -= set(blocks)
        assert frontier.lowest == min(missing, default=25) and frontier.finished == 25 - len(missing)
    assert not frontier._beyond, "what is finished in a row takes no room"


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), max_size=12), st.sets(st.integers(0, 19)))
def test_two_on_one_stretch_finish_each_block_once(
    answers: list[tuple[bool, int]], skipped: set[int]
) -> None:
    stretch, at, finished = Stretch(range(100, 120)), {False: 0, True: 0}, []
    for which, number in answers:
        stop = min(20, at[which] + number)
        finished += stretch.advance(at[which], stop)
        at[which] = stop
        for position in sorted(skipped):
            if not stretch.is_finished(position):
                stretch.skip(position)
                finished.append(position)
                skipped = skipped - {position}
                break
    assert len(set(finished)) == len(finished) == 20 - stretch.left
    assert sorted([*(100 + position for position in finished), *stretch.rest]) == list(range(100, 120))


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=200))
def test_typical_and_upper_times_are_within_a_class_of_the_true_ones(seconds: list[float]) -> None:
    times = Times()
    for each in seconds:
        times.add(each)
    ranked = sorted(seconds)
    median = ranked[(len(ranked) - 1) // 2]
    sure = ranked[-(-len(ranked) * 9 // 10) - 1]
    clamp = 2.0**-24, 2.0**23
    if clamp[0] < median < clamp[1]:
        assert times.typical is not None and 0.5 < times.typical / median < 2.0
    if clamp[0] < sure < clamp[1]:
        upper = times.upper(0.9)
        assert upper is not None and sure <= upper < 2.0 * sure


def test_times_forget_slowly() -> None:
    times = Times()
    times.add(1.0, 4000)
    times.add(100.0, 3000)
    assert times.total < 4096
    times.add(100.0, 1000)
    assert times.typical == 100.0
