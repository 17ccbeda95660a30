"""Values on disk come back as they were, use no more disk than they need, and none is lost on a full disk."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemanager.model import Outcome
from computemanager.spill import Spill, SpillFull, _Space, bytes_of
from computemanager.window import Window


@pytest.fixture
def spill() -> Iterator[Spill]:
    with contextlib.closing(Spill()) as made:
        yield made


class Pair(NamedTuple):
    name: str
    pixels: Any


@dataclasses.dataclass
class Record:
    pixels: Any
    more: Any = None


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, Record):
        return same(vars(left), vars(right))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    return bool(left == right)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        "text",
        {"a": [1, 2.5, None]},
        np.arange(100_000, dtype=np.int16),
        np.zeros((0, 5)),
        np.arange(60_000).reshape(200, 300)[::2, ::3],  # not contiguous
        np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
        Pair("two", np.full((3, 100, 100), 7, np.uint8)),
        [np.ones(20_000), Record(np.ones(20_000), "more")],
        bytearray(50_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_comes_back_as_it_was(spill: Spill, value: Any) -> None:
    token = spill.put(value)
    assert same(spill.get(token), value)
    assert spill.size == 0


def test_arrays_are_as_writable_as_they_were(spill: Spill) -> None:
    constant = np.zeros(50_000)
    constant.flags.writeable = False
    token = spill.put([np.zeros(50_000), np.zeros(10), constant])
    large, small, constant = spill.get(token)
    large += 1
    small += 1
    assert not constant.flags.writeable


def test_what_only_cloudpickle_can_take_along_comes_back(spill: Spill) -> None:
    class Local:
        def __init__(self) -> None:
            self.pixels = np.arange(50_000)

    token = spill.put([np.arange(50_000), Local()])
    assert spill.size < 1.2 * 2 * 8 * 50_000, "the buffers are written once"
    array, local = spill.get(token)
    assert np.array_equal(array, np.arange(50_000)) and np.array_equal(local.pixels, array)


values = st.one_of(
    st.binary(max_size=50),
    st.integers(0, 200_000).map(lambda length: np.arange(length, dtype=np.uint8)),
    st.tuples(st.text(max_size=5), st.integers(0, 20_000).map(np.ones)),
)


@given(st.lists(values, max_size=20), st.randoms(use_true_random=False))
def test_many_values_in_any_order_and_the_file_ends_empty(
    given_values: list[Any], chance: random.Random
) -> None:
    with contextlib.closing(Spill()) as spill:
        held: dict[int, Any] = {}
        for value in given_values:
            held[spill.put(value)] = value
            if chance.random() < 0.4:
                token = chance.choice(list(held))
                assert same(spill.get(token), held.pop(token))
        for token in chance.sample(list(held), len(held)):
            assert same(spill.get(token), held[token])
        assert spill.size == 0
        if spill._file is not None:
            assert os.fstat(spill._file.fileno()).st_size == 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_space_is_never_given_out_twice_and_is_used_again(lengths: list[int], chance: random.Random) -> None:
    space = _Space()
    held: list[tuple[int, int]] = []
    for length in lengths:
        start = space.allocate(length)
        assert all(start + length <= other or other + more <= start for other, more in held)
        held.append((start, length))
        while held and chance.random() < 0.5:
            space.free(*held.pop(chance.randrange(len(held))))
        assert space.end == max((start + length for start, length in held), default=0)
        # Holes are all that is free, each as long as it can be.
        edges = [0, *(edge for place in sorted(held) for edge in (place[0], sum(place)))]
        gaps = zip(edges[::2], edges[1::2], strict=False)
        assert space.holes == [(start, stop - start) for start, stop in gaps if stop > start]


def test_a_long_job_does_not_fill_the_disk(spill: Spill) -> None:
    waiting = collections.deque(spill.put(np.zeros(30_000 + i % 7, np.uint8)) for i in range(10))
    for i in range(500):
        spill.get(waiting.popleft())
        waiting.append(spill.put(np.zeros(30_000 + i % 7, np.uint8)))
    assert spill.size < 15 * 30_000


def test_the_file_has_no_name(tmp_path: Path) -> None:
    with contextlib.closing(Spill(str(tmp_path))) as spill:
        assert list(tmp_path.iterdir()) == []
        spill.put(np.zeros(100_000))
        assert list(tmp_path.iterdir()) == []
        assert spill.size > 800_000


def test_nothing_is_left_of_a_killed_process(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, numpy\n"
        "from computemanager.spill import Spill\n"
        "spill = Spill(sys.argv[1])\n"
        "spill.put(numpy.zeros(100_000))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_closing_is_legal_at_any_time_and_leaves_no_file() -> None:
    spill = Spill()
    spill.close()
    spill.put(np.zeros(100_000))
    file = spill._file
    assert file is not None
    spill.close()
    spill.close()
    assert file.closed and spill.size == 0


def test_an_unused_spill_makes_no_file(tmp_path: Path) -> None:
    Spill(str(tmp_path / "does not exist")).close()


# -- a disk that is full -------------------------------------------------------------------------------


@contextlib.contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    """A disk that is full as soon as a file has so many bytes (the errno differs, EFBIG)."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_refuses_and_takes_values_again_when_there_is_room(
    spill: Spill, caplog: pytest.LogCaptureFixture
) -> None:
    with files_of_at_most(250_000):
        first = spill.put(np.full(100_000, 1, np.uint8))
        second = spill.put(np.full(100_000, 2, np.uint8))
        for _ in range(3):
            with pytest.raises(SpillFull):
                spill.put(np.full(100_000, 3, np.uint8))
        size = spill.size
        assert size < 210_000, "nothing is kept of what did not fit"
        assert (spill.get(first) == 1).all()
        third = spill.put(np.full(100_000, 3, np.uint8))
        assert spill.size == size
    assert (spill.get(second) == 2).all() and (spill.get(third) == 3).all()
    assert len(caplog.records) == 1, "said once"
    assert f"(in {tempfile.gettempdir()})" in caplog.text
    assert os.strerror(errno.EFBIG) in caplog.text and "controls.setTempdir" in caplog.text


def test_a_directory_that_is_not_there_counts_as_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = tmp_path / "missing"
    with contextlib.closing(Spill(str(missing))) as spill, pytest.raises(SpillFull):
        spill.put(1)
    assert str(missing) in caplog.text


def test_a_value_that_cannot_be_pickled_is_refused(spill: Spill, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SpillFull, match="cannot be pickled"):
        spill.put([np.zeros(50_000), threading.Lock()])
    assert spill.size == 0 and "cannot be pickled" in caplog.text


def test_the_window_loses_nothing_on_a_full_disk(spill: Spill) -> None:
    window = Window(20, memory_bytes=100_000, spill=spill)
    for _ in range(20):
        window.admit()
    with files_of_at_most(500_000):
        for index in range(19, -1, -1):
            window.put(Outcome(index, np.full(50_000, index, np.uint8), ""), 50_000)
        assert window.spilled_bytes == 9 * 50_000 and window.room == 0
        outcomes = []
        while (outcome := window.take()) is not None:
            outcomes.append(outcome)
    assert [outcome.block_index for outcome in outcomes] == list(range(20))
    assert all((outcome.value == outcome.block_index).all() for outcome in outcomes)
    assert window.room == 20 and spill.size == 0


# -- what values weigh ---------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("empty", "pixels")

    def __init__(self) -> None:
        self.pixels = np.zeros(1_000_000, np.uint8)


class Hostile:
    @property
    def nbytes(self) -> int:
        raise OSError("not now")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


MEGABYTE = np.zeros(1_000_000, np.uint8)


@pytest.mark.parametrize(
    ("value", "megabytes"),
    [
        (MEGABYTE, 1),
        (MEGABYTE[: len(MEGABYTE) // 2], 0.5),
        (np.ma.masked_array(MEGABYTE, MEGABYTE > 0), 2),
        (bytes(1_000_000), 1),
        ("x" * 1_000_000, 1),
        (memoryview(bytes(1_000_000)), 1),
        ([MEGABYTE, MEGABYTE.copy()], 2),
        ([MEGABYTE, MEGABYTE], 1),  # held twice
        ({"a": {"b": (MEGABYTE,)}}, 1),
        (Pair("name", MEGABYTE), 1),
        (Record(MEGABYTE, [MEGABYTE.copy()]), 2),
        (Slotted(), 1),
        (np.array([MEGABYTE, None], object), 1),
        ([f"{i:09}" + "x" * 991 for i in range(1000)], 1),
        ({f"{i:010}": "x" * 990 for i in range(1000)}, 1),
        ([1.5] * 25_000, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_are_about_right(value: Any, megabytes: float) -> None:
    assert bytes_of(value) == pytest.approx(megabytes * 1e6, rel=0.15)


def test_cycles_deep_nesting_and_hostile_objects_are_no_trouble() -> None:
    cycle: list[Any] = [MEGABYTE]
    cycle.append(cycle)
    assert 1e6 <= bytes_of(cycle) < 1.1e6
    deep: Any = MEGABYTE
    for _ in range(100_000):
        deep = [deep]
    assert bytes_of(deep) < 10_000
    while isinstance(deep, list):  # taken apart from outside, as Python itself would nest as deeply
        deep = deep[0]
    assert bytes_of([Hostile(), MEGABYTE]) >= 1e6
    assert bytes_of(int) == 0


def test_a_huge_value_is_weighed_in_few_looks() -> None:
    looks = 0

    class Counted:
        @property
        def nbytes(self) -> int:
            nonlocal looks
            looks += 1
            return 10

    nested = [[[Counted() for _ in range(30)] for _ in range(30)] for _ in range(300)]
    assert bytes_of(nested) > 1e6
    assert looks < 10_000
