"""The contract that every kind of worker keeps, as a test suite to subclass.

Whoever writes a `ComputeWorkerManager` puts this into a test module (pytest is needed)::

    from computemanager.testing import ManagerContract

    class TestMyKind(ManagerContract):
        kind = "CW_MINE"

and inherits all tests below.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from computemanager.base import ComputeWorkerManager, manager_class
from computemanager.errors import BlockError, WaitTimeoutError
from computemanager.model import Job, Settings

__all__ = ["ManagerContract", "leftovers", "nothing_left"]


def leftovers() -> dict[str, set[Any]]:
    """What this process has that a job might leave: threads, children, sockets and files, directories.

    Children and open files are seen on systems with ``/proc``.
    """
    found: dict[str, set[Any]] = {
        "threads": set(threading.enumerate()),
        "handlers": {(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)},
        "directories": set(),
        "children": set(),
        "descriptors": set(),
    }
    for parent in {Path("/dev/shm"), Path(tempfile.gettempdir())}:
        found["directories"] |= set(parent.glob(f"computemanager-{os.getpid()}-*"))
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            found["children"] |= set(children.read_text().split())
    for descriptor in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            found["descriptors"].add((descriptor.name, os.readlink(descriptor)))
    return found


@contextlib.contextmanager
def nothing_left(patience_s: float = 5.0) -> Iterator[None]:
    """Fail if what `leftovers` sees after the block was not there before it."""
    gc.collect()
    before = leftovers()
    yield
    deadline = time.monotonic() + patience_s
    while True:
        gc.collect()
        after = leftovers()
        new = {what: after[what] - before[what] for what in after if after[what] - before[what]}
        if not new:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind: {new}")
        time.sleep(0.02)


class _Odd(Exception):
    """An exception that does not survive pickling: its arguments are not those of its constructor."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class _Total:
    """A state: every worker adds to its own copy."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[Any] = []


class ManagerContract:
    """What every kind promises. Subclass it, set `kind`, and change `settings` if the kind needs it."""

    kind: ClassVar[str]
    pickles: ClassVar[bool] = True
    """Whether workers are other processes, so that functions are pickled."""

    copies_state: ClassVar[bool] = True
    """Whether workers have copies of the state (all but ``CW_NONE``)."""

    def settings(self, **changes: Any) -> Settings:
        """Settings for the tests: two workers."""
        return Settings(**{"num_workers": 2, **changes})

    def manager(self, **changes: Any) -> ComputeWorkerManager:
        """A manager of the kind."""
        return manager_class(self.kind)(self.settings(**changes))

    def values(self, function: Callable[..., Any], blocks: Any, **changes: Any) -> list[Any]:
        """The values of a whole run."""
        with nothing_left():
            run = self.manager(**changes).run(Job(function), blocks)
            # Copies: an array may be a view of shared memory, which stays for as long as the array does.
            return [copy.copy(outcome.value) for outcome in run]

    # -- every block once, in order --------------------------------------------------------------------

    def test_is_found_by_its_name(self) -> None:
        assert manager_class(self.kind).kind == self.kind

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
    def test_gives_one_outcome_a_block_in_order(self, count: int) -> None:
        manager = self.manager()
        outcomes = list(manager.run(Job(lambda block: block * 2), iter(range(count))))
        assert [(o.block_index, o.value) for o in outcomes] == [(i, 2 * i) for i in range(count)]
        assert manager.statistics.blocks == count

    def test_order_holds_whatever_the_blocks_take(self) -> None:
        def delayed(block: int) -> int:
            time.sleep(random.Random(block).random() * 0.01)
            return block

        assert self.values(delayed, range(100), num_workers=4) == list(range(100))

    def test_unordered_gives_each_block_once(self) -> None:
        outcomes = list(self.manager(ordered=False).run(Job(str), range(500)))
        assert sorted(o.block_index for o in outcomes) == list(range(500))
        assert all(o.value == str(o.block_index) for o in outcomes)

    @pytest.mark.parametrize("window", [1, 2, 7, 100])
    def test_never_more_than_the_window_is_pulled_and_not_yielded(self, window: int) -> None:
        pulled = taken = worst = 0

        def plan() -> Iterator[int]:
            nonlocal pulled, worst
            for block in range(300):
                pulled += 1
                worst = max(worst, pulled - taken)
                yield block

        for _ in self.manager(window_blocks=window).run(Job(lambda block: block), plan()):
            taken += 1
        assert taken == pulled == 300
        assert worst <= window

    def test_a_plan_of_ten_million_blocks_starts_at_once(self) -> None:
        plan = iter(range(10_000_000))
        run = self.manager(window_blocks=50).run(Job(lambda block: block), plan)
        with nothing_left():
            assert [outcome.value for outcome in itertools.islice(run, 3)] == [0, 1, 2]
            run.close()
        assert next(plan) <= 54

    def test_a_manager_can_run_again(self) -> None:
        manager = self.manager()
        for _ in range(2):
            assert [o.value for o in manager.run(Job(abs), [-1, -2])] == [1, 2]

    def test_two_runs_side_by_side(self) -> None:
        first = self.manager().run(Job(lambda block: block), range(50))
        second = self.manager().run(Job(lambda block: -block), range(50))
        with nothing_left():
            both = [(a.value, b.value) for a, b in zip(first, second, strict=True)]
        assert both == [(i, -i) for i in range(50)]

    def test_works_outside_the_main_thread(self) -> None:
        found: list[Any] = []
        with nothing_left():
            thread = threading.Thread(
                target=lambda: found.extend(o.value for o in self.manager().run(Job(abs), [-1, -2]))
            )
            thread.start()
            thread.join()
        assert found == [1, 2]

    def test_one_slow_block_idles_nobody(self, tmp_path: Path) -> None:
        """Block 0 waits until many others are done, whose outcomes go to disk beyond some bytes."""
        if self.kind == "CW_NONE":
            pytest.skip("the caller does the work itself, one block after another")
        folder, others, nbytes = str(tmp_path), 60, 100_000

        def wait_or_work(block: int) -> Any:
            if block == 0:
                deadline = time.monotonic() + 60
                while len(os.listdir(folder)) < others and time.monotonic() < deadline:
                    time.sleep(0.01)
                return len(os.listdir(folder))
            Path(folder, str(block)).touch()
            return np.full(nbytes, block, np.uint8)

        manager = self.manager(window_bytes=10 * nbytes, speculate=False)
        with nothing_left():
            outcomes = [
                (outcome.block_index, copy.copy(outcome.value))
                for outcome in manager.run(Job(wait_or_work), range(others + 1))
            ]
        assert [number for number, _ in outcomes] == list(range(others + 1))
        assert outcomes[0][1] == others
        assert all((value == number).all() and len(value) == nbytes for number, value in outcomes[1:])
        assert manager.statistics.spilled_bytes >= (others - 12) * nbytes

    # -- arrays ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("nbytes", [10, 20_000, 70_000, 3_000_000])
    @pytest.mark.parametrize("shared_memory", [True, False])
    def test_arrays_go_there_and_back(self, nbytes: int, shared_memory: bool) -> None:
        blocks = [np.full(nbytes, i, np.uint8) for i in range(20)]

        def invert(block: Any) -> Any:
            block += 1  # in place: inputs are as writable as they were
            return 255 - block

        values = self.values(invert, (block.copy() for block in blocks), shared_memory=shared_memory)
        assert all(np.array_equal(value, 254 - block) for value, block in zip(values, blocks, strict=True))

    def test_arrays_that_are_kept_stay_as_they_are(self) -> None:
        """In the caller, and in a worker's state, after the memory they came in could be used again."""

        def keep(block: Any, state: _Total) -> Any:
            state.count += 1
            if len(state.kept) < 3:
                state.kept.append(block)
            assert all((kept == kept[0]).all() for kept in state.kept)
            return block + 1

        manager = self.manager(num_workers=1, window_blocks=4)
        job = Job(keep, _Total())
        outcomes = list(manager.run(job, (np.full(200_000, i, np.int16) for i in range(40))))
        assert all((o.value == o.block_index + 1).all() for o in outcomes)
        (state,) = manager.states()
        assert [int(kept[0]) for kept in state.kept] == [0, 1, 2]
        assert all((kept == kept[0]).all() for kept in state.kept)

    # -- the state -------------------------------------------------------------------------------------

    def test_states_add_up(self) -> None:
        def count(block: int, state: _Total) -> None:
            state.count += block

        state = _Total()
        manager = self.manager(num_workers=3)
        with nothing_left():
            for _ in manager.run(Job(count, state), range(1000)):
                pass
        assert sum(copy.count for copy in manager.states()) == sum(range(1000))
        assert state.count == (0 if self.copies_state else sum(range(1000)))

    # -- what goes wrong -------------------------------------------------------------------------------

    def test_an_exception_reaches_the_caller(self) -> None:
        def fails_at_seven(block: int) -> int:
            if block == 7:
                raise KeyError("seven")
            return block

        seen = []
        with nothing_left(), pytest.raises(BlockError) as caught:
            for outcome in self.manager().run(Job(fails_at_seven, name="the job"), range(100)):
                seen.append(outcome.value)
        error = caught.value
        assert isinstance(error.__cause__, KeyError) and error.original is error.__cause__
        assert (error.block_index, error.block) == (7, 7)
        assert "fails_at_seven" in error.worker_traceback and "the job" in str(error)
        assert "KeyError" in str(error) and "block 7" in str(error)
        assert seen == list(range(len(seen))) and len(seen) <= 7

    def test_an_exception_that_cannot_travel_is_described(self) -> None:
        def raises_odd(block: int) -> None:
            raise _Odd(1, 2)

        with nothing_left(), pytest.raises(BlockError, match="1 and 2") as caught:
            list(self.manager().run(Job(raises_odd), range(3)))
        assert "_Odd" in caught.value.worker_traceback

    def test_an_exception_of_the_plan_reaches_the_caller(self) -> None:
        def plan() -> Iterator[int]:
            yield from range(10)
            raise OSError("cannot read on")

        with nothing_left(), pytest.raises(OSError, match="cannot read on"):
            list(self.manager().run(Job(abs), plan()))

    def test_closing_early_leaves_nothing(self) -> None:
        with nothing_left():
            run = self.manager().run(Job(lambda block: block), itertools.count())
            assert [next(run).value for _ in range(5)] == [0, 1, 2, 3, 4]
            run.close()

    def test_never_starting_leaves_nothing(self) -> None:
        with nothing_left():
            self.manager().run(Job(abs), range(10)).close()

    def test_an_exception_of_the_caller_leaves_nothing(self) -> None:
        with nothing_left(), pytest.raises(ZeroDivisionError):
            for outcome in self.manager().run(Job(lambda block: block), itertools.count()):
                if outcome.value == 3:
                    raise ZeroDivisionError

    def test_ctrl_c_leaves_nothing(self) -> None:
        # What a program that was started in the background ignores.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with nothing_left(), pytest.raises(KeyboardInterrupt):
                for outcome in self.manager().run(Job(lambda block: block), itertools.count()):
                    if outcome.value == 3:
                        signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, previous)

    def test_a_host_that_handles_sigterm_goes_on_doing_so(self) -> None:
        heard: list[int] = []
        previous = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        try:
            for outcome in self.manager().run(Job(lambda block: block), range(20)):
                if outcome.value == 3:
                    signal.raise_signal(signal.SIGTERM)
            assert heard == [signal.SIGTERM]
        finally:
            signal.signal(signal.SIGTERM, previous)

    def test_a_limit_on_waiting_says_which_it_was(self) -> None:
        if self.kind == "CW_NONE":
            pytest.skip("the caller does the work itself, so there is nothing to wait for")

        def slow(block: int) -> None:
            time.sleep(0.5)

        with nothing_left(), pytest.raises(WaitTimeoutError, match=r"0\.1 s"):
            list(self.manager(outcome_timeout_s=0.1).run(Job(slow), range(3)))

    def test_output_reaches_the_caller_whole(self, capfd: pytest.CaptureFixture[str]) -> None:
        def talk(block: int) -> None:
            sys.stdout.write(
                f"block {block} " + "x" * 1000 + "\n"
            )  # at once: print() writes the end by itself

        assert self.values(talk, range(300)) == [None] * 300
        lines = capfd.readouterr().out.splitlines()
        assert sorted(lines) == sorted(f"block {i} " + "x" * 1000 for i in range(300))

    # -- what can travel -------------------------------------------------------------------------------

    def test_lambdas_closures_and_local_classes_work(self) -> None:
        class Pair:
            def __init__(self, left: int, right: int) -> None:
                self.left, self.right = left, right

        offset = 10

        def make(block: int) -> Pair:
            return Pair(block, block + offset)

        pairs = self.values(make, range(5))
        assert [(pair.left, pair.right) for pair in pairs] == [(i, i + 10) for i in range(5)]

    def test_a_value_that_cannot_travel_is_an_error_of_its_block(self) -> None:
        if not self.pickles:
            pytest.skip("values stay in this process")

        def hand_out_a_lock(block: int) -> Any:
            return threading.Lock() if block == 4 else block

        with nothing_left(), pytest.raises(BlockError, match="cannot be sent back") as caught:
            list(self.manager().run(Job(hand_out_a_lock), range(10)))
        assert caught.value.block_index == 4
