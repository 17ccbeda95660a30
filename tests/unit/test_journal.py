"""The journal: what was kept is there again, whatever happened to the process or the file."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from computemanager.base import manager_class
from computemanager.errors import BlockError, CheckpointError
from computemanager.journal import WAITING_RECORDS, CheckpointWarning, Journal, KeptBlocks
from computemanager.model import Job, Settings
from computemanager.records import RecordFile
from computemanager.writebehind import WriteBehind

IDENTITY = {"function": {"name": "f", "code": "123"}, "grid": "10 x 10"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def contents(place: Path) -> tuple[dict[int, Any], list[Any]]:
    """Values by block, and states."""
    with Journal.open(place, IDENTITY) as journal:
        return {number: journal.value(number) for number in journal.kept}, journal.states()


# -- what goes in comes out --------------------------------------------------------------------------------


def test_a_new_journal_is_empty(place: Path) -> None:
    assert contents(place) == ({}, [])
    if os.name == "posix":
        assert place.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}


def test_values_come_back(place: Path) -> None:
    array = np.arange(50_000.0).reshape(100, 500)
    flipped = np.asfortranarray(array[:, ::2])
    with Journal.open(place, IDENTITY) as journal:
        journal.keep([4, 2], [array, {"a": [1, "text", None]}], "one")
        journal.keep([3], [(flipped, array[::2], b"x" * 100_000)], "two")
        journal.keep([], [], "three")
        assert len(journal.kept) == 0, "what is kept now is not what was kept before"
    with Journal.open(place, IDENTITY) as journal:
        assert list(journal.kept) == [2, 3, 4] and len(journal.kept) == 3
        assert (
            3 in journal.kept and 1 not in journal.kept and -1 not in journal.kept and 5 not in journal.kept
        )
        assert np.array_equal(journal.value(4), array) and journal.value(4).flags.writeable
        again, part, text = journal.value(3)
        assert np.array_equal(again, flipped) and again.flags.f_contiguous
        assert np.array_equal(part, array[::2]) and text == b"x" * 100_000
        assert journal.value(2) == {"a": [1, "text", None]}
        with pytest.raises(KeyError, match="block 1 is not kept"):
            journal.value(1)


def test_many_pieces_in_one_record(place: Path) -> None:
    """More than a system writes at once."""
    arrays = [np.full(20_000, number % 256, np.uint8) for number in range(1500)]
    with Journal.open(place, IDENTITY) as journal:
        journal.keep(range(1500), arrays, "one")
    with Journal.open(place, IDENTITY) as journal:
        assert all((journal.value(number) == number % 256).all() for number in range(1500))


def test_writing_in_steps(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may write less than it is given, and may have no writev."""
    array = np.arange(10_000)
    if hasattr(os, "writev"):
        whole = os.writev
        monkeypatch.setattr(os, "writev", lambda file, pieces: whole(file, [memoryview(pieces[0])[:777]]))
    with Journal.open(place, IDENTITY) as journal:
        journal.keep([0], [array], "one", b"N.")
    monkeypatch.delattr(os, "writev", raising=False)
    with Journal.open(place, IDENTITY) as journal:
        journal.keep([1], [array + 1], "one", b"N.")
    values, states = contents(place)
    assert (
        np.array_equal(values[0], array) and np.array_equal(values[1], array + 1) and states == [None, None]
    )


def test_the_last_state_of_every_worker_of_every_run(place: Path) -> None:
    def state(value: Any) -> bytes:
        return pickle.dumps(value)

    with Journal.open(place, IDENTITY) as journal:
        journal.keep([0], ["a"], "one", state(1))
        journal.keep([1], ["b"], "two", state(10))
        journal.keep([2], ["c"], "one", state(2))
        assert journal.states() == [], "this run's own are still the workers'"
    with Journal.open(place, IDENTITY) as journal:
        assert sorted(journal.states()) == [2, 10]
        journal.keep([3], ["d"], "one", state(100))  # the name again, but another worker
        journal.keep([4], ["e"], "one", state(100))
    with Journal.open(place, IDENTITY) as journal:
        journal.keep([5], ["f"], "one")
    assert sorted(contents(place)[1]) == [2, 10, 100]


def test_a_state_that_stays_the_same_is_written_once(place: Path) -> None:
    table = pickle.dumps(b"x" * 1_000_000)
    with Journal.open(place, IDENTITY) as journal:
        for number in range(20):
            journal.keep([number], [number], "one", bytes(table))
        journal.keep([20], [20], "two", table)
    assert 2_000_000 < (place / "records").stat().st_size < 2_100_000
    values, states = contents(place)
    assert len(values) == 21 and states == [b"x" * 1_000_000] * 2


def test_reading_and_keeping_take_turns(place: Path) -> None:
    with Journal.open(place, IDENTITY) as journal:
        journal.keep([0, 1], ["a", "b"], "one")
        journal.keep([2], ["c"], "one")
    with Journal.open(place, IDENTITY) as journal:
        for number in range(3):
            assert journal.value(number) == "abc"[number]
            journal.keep([10 + number], [number], "one")
    assert contents(place)[0] == {0: "a", 1: "b", 2: "c", 10: 0, 11: 1, 12: 2}


@given(numbers=st.lists(st.integers(0, 300)))
def test_kept_blocks_are_a_set(numbers: list[int]) -> None:
    kept = KeptBlocks()
    for offset, number in enumerate(numbers):
        kept.add(number, offset)
    assert list(kept) == sorted(set(numbers)) and len(kept) == len(set(numbers))
    assert all((number in kept) == (number in numbers) for number in range(-2, 302))
    assert all(numbers[kept.offset(number)] == number for number in kept)


def test_keeping_in_many_threads(place: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with Journal.open(place, IDENTITY) as journal, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: journal.keep([number], [[number] * 50], f"{number % 8}"), range(400)))
    assert contents(place)[0] == {number: [number] * 50 for number in range(400)}


def test_the_records_are_written_out_now_and_then(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync" if hasattr(os, "fdatasync") else "fsync", synced.append)
    monkeypatch.setattr("computemanager.journal.SYNC_INTERVAL_S", 0.0)
    with Journal.open(place, IDENTITY) as journal:
        before = len(synced)
        journal.keep([0], ["a"], "one")
    assert len(synced) == before + 1


# -- the process or the machine dies ------------------------------------------------------------------------


def small_journal(place: Path) -> tuple[bytes, list[int]]:
    """A file of three records; where each ends."""
    ends = []
    with open(place.parent / "made", "w+b", buffering=0) as file:
        records = RecordFile(file)
        for number in range(3):
            blocks, values = [2 * number, 2 * number + 1], [number, "x"]
            records.append(records.prepare(1, blocks, values, f"w{number}", pickle.dumps(number)))
            ends.append(records.end)
    with Journal.open(place, IDENTITY):
        pass
    os.replace(place.parent / "made", place / "records")
    return (place / "records").read_bytes(), ends


def test_cut_off_at_every_byte(place: Path) -> None:
    whole, ends = small_journal(place)
    for length in range(len(whole) + 1):
        (place / "records").write_bytes(whole[:length])
        values, states = contents(place)  # without a warning: that is how a killed process leaves it
        good = sum(end <= length for end in ends)
        assert list(values) == list(range(2 * good)) and states == list(range(good))
        assert (place / "records").stat().st_size == (ends[good - 1] if good else 0)
        with Journal.open(place, IDENTITY) as journal:
            journal.keep([99], ["after"], "w")
        assert contents(place)[0] == {**values, 99: "after"}


def test_every_bit_turned(place: Path) -> None:
    whole, ends = small_journal(place)
    unnoticed = 0
    for position in range(0, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        (place / "records").write_bytes(damaged)
        good = sum(end <= position for end in ends)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values, states = contents(place)
        assert list(values) == list(range(2 * good)) and states == list(range(good)), position
        assert values == {number: "x" if number % 2 else number // 2 for number in values}
        unnoticed += not caught
        if caught:
            assert [each.category for each in caught] == [CheckpointWarning]
            text = str(caught[0].message)
            assert (
                f"the checkpoint in {place} is damaged" in text and f"{2 * good} blocks before that" in text
            )
    assert not unnoticed


def test_zeros_at_the_end(place: Path) -> None:
    """As a file system may leave it when the power goes."""
    whole, _ = small_journal(place)
    (place / "records").write_bytes(whole + bytes(5000))
    with pytest.warns(CheckpointWarning, match="there is no record at byte"):
        assert len(contents(place)[0]) == 6
    assert (place / "records").read_bytes() == whole


@given(
    records=st.lists(st.tuples(st.lists(st.integers(0, 999)), st.binary(max_size=40), st.text(max_size=5))),
    rest=st.binary(max_size=200),
)
@settings(max_examples=50)
def test_noise_after_good_records(
    records: list[tuple[list[int], bytes, str]], rest: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("noise") / "kept"
    expected: dict[int, Any] = {}
    with Journal.open(place, IDENTITY) as journal:
        for numbers, value, worker in records:
            journal.keep(numbers, [value] * len(numbers), worker, pickle.dumps(value))
            expected.update(dict.fromkeys(numbers, value))
    with open(place / "records", "ab") as file:
        file.write(rest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        assert contents(place) == (expected, list({worker: value for _, value, worker in records}.values()))


KILLED = """
import os, signal, sys
from computemanager.journal import Journal
journal = Journal.open(sys.argv[1], {"job": "this"})
for number in range(1000):
    journal.keep([number], [bytes(1000)], "one")
    print(number, flush=True)
    if number == 700:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
def test_a_process_that_is_killed_leaves_all_but_what_was_about_to_be_written(place: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(place)], capture_output=True, text=True)
    assert done.stdout.split()[-1] == "700"
    with Journal.open(place, {"job": "this"}) as journal:
        kept = list(journal.kept)
    assert kept == list(range(len(kept))) and 701 - WAITING_RECORDS - 2 <= len(kept) <= 701


# -- trouble with the disk ---------------------------------------------------------------------------------


@contextlib.contextmanager
def size_limit(size: int) -> Iterator[None]:
    """Limit the size of files within, as a full disk would.

    Not beyond the lines of a test that need it: what pytest prints may go to a file.
    """
    resource = pytest.importorskip("resource", reason="limits the size of files as only POSIX systems can")
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_ends_keeping_and_nothing_else(place: Path) -> None:
    with Journal.open(place, IDENTITY) as journal:
        journal.keep([0], [np.zeros(5000)], "one", b"N.")
    with (
        pytest.warns(
            CheckpointWarning, match="no longer kept in .*kept: .*too large.*The job goes on"
        ) as told,
        Journal.open(place, IDENTITY) as journal,
        size_limit(60_000),
    ):
        for number in range(1, 10):
            journal.keep([number], [np.ones(5000)], "one", pickle.dumps(number))
        journal.close()
    assert len(told) == 1
    values, states = contents(place)
    assert list(values) == [0] and states == [None]


def test_a_full_disk_at_the_start(place: Path) -> None:
    refused = pytest.raises(CheckpointError, match="kept cannot be used: .*on a disk with room")
    with size_limit(0), refused:
        Journal.open(place, IDENTITY)


def test_a_disk_that_fails_later(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the thread finds that has records written out is told by the next that is kept."""
    monkeypatch.setattr("computemanager.journal.SYNC_INTERVAL_S", 0.0)
    with Journal.open(place, IDENTITY) as journal:

        def fails(descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fdatasync" if hasattr(os, "fdatasync") else "fsync", fails)
        journal.keep([0], ["a"], "one")
        assert journal._syncing is not None
        journal._syncing.join()
        with pytest.warns(CheckpointWarning, match="Input/output error"):
            journal.keep([1], ["b"], "one")


def test_a_value_that_cannot_be_pickled(place: Path) -> None:
    with Journal.open(place, IDENTITY) as journal:
        journal.keep([0], ["a"], "one")
        with pytest.warns(CheckpointWarning, match="generator"):
            journal.keep([1], [(number for number in range(3))], "one")
    assert contents(place)[0] == {0: "a"}


def test_a_value_that_cannot_be_unpickled(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal.open(place, IDENTITY) as journal:
        journal.keep([0], [Total], "one", pickle.dumps(Total))
    monkeypatch.delattr(sys.modules[Total.__module__], "Total")
    with Journal.open(place, IDENTITY) as journal:
        with pytest.raises(
            CheckpointError, match="block 0 cannot be read from .*AttributeError.*Delete that dir"
        ):
            journal.value(0)
        with pytest.raises(CheckpointError, match="the state of one in run 1 cannot be read"):
            journal.states()


def test_a_file_that_becomes_shorter(place: Path) -> None:
    small_journal(place)
    with Journal.open(place, IDENTITY) as journal:
        os.truncate(place / "records", 100)
        with pytest.raises(CheckpointError, match="the file is shorter than it was"):
            journal.value(5)


def test_a_write_that_fails_half_way_leaves_no_half_record(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "writev"):
        pytest.skip("uses writev")
    whole = os.writev

    def fails(file: int, pieces: Any) -> int:
        whole(file, [memoryview(pieces[0])[:50]])
        raise OSError(28, "No space left on device")

    with Journal.open(place, IDENTITY) as journal:
        journal.keep([0], ["a"], "one", pickle.dumps(1))
    with pytest.warns(CheckpointWarning, match="No space left"), Journal.open(place, IDENTITY) as journal:
        monkeypatch.setattr(os, "writev", fails)
        journal.keep([1], ["b"], "one", pickle.dumps(2))
    monkeypatch.setattr(os, "writev", whole)
    with Journal.open(place, IDENTITY) as journal:
        journal.keep([2], ["c"], "one", pickle.dumps(2))
    assert contents(place) == ({0: "a", 2: "c"}, [1, 2])


def test_the_job_waits_for_the_disk_only_when_too_much_waits_for_it() -> None:
    written: list[int] = []
    may_write = threading.Event()

    def write(number: int) -> None:
        may_write.wait(30)
        written.append(number)

    behind = WriteBehind(write, 2)
    for number in range(3):  # one is being written, two wait
        behind.put(number)
    assert written == []
    waiting = threading.Thread(target=behind.put, args=(3,))
    waiting.start()
    assert waiting.is_alive()
    may_write.set()
    waiting.join()
    assert behind.close() is None
    assert written == [0, 1, 2, 3]


# -- whose it is -------------------------------------------------------------------------------------------


def test_another_identity_is_refused_with_all_that_differs(place: Path) -> None:
    old = {
        "function": {"name": "f", "code": "123"},
        "infiles.img (scene.tif)": {"size": "1,234,567 bytes", "layers": "all"},
        "infiles.dem (dem.tif)": {"size": "5 bytes"},
        "grid": "10 x 10",
        "same": "as before",
    }
    new = {
        "function": {"name": "f", "code": "456", "more": "yes"},
        "infiles.img (scene.tif)": {"size": "1,234,999 bytes", "layers": "all"},
        "infiles.slope (slope.tif)": {"size": "5 bytes"},
        "grid": "20 x 10",
        "same": "as before",
    }
    Journal.open(place, old).close()
    with pytest.raises(CheckpointError) as caught:
        Journal.open(place, new)
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        f"the checkpoint in {place} is of another job than this. What differs (kept there -> now):"
    )
    assert lines[1:-1] == [
        "  function: code 123 -> 456",
        "  function: more none -> yes",
        "  infiles.img (scene.tif): size 1,234,567 bytes -> 1,234,999 bytes",
        "  infiles.dem (dem.tif): no part of the job now",
        "  grid: 10 x 10 -> 20 x 10",
        "  infiles.slope (slope.tif): was no part of the job",
    ]
    assert lines[-1] == (
        "To resume that job, start it as it was. To begin this one, delete that directory, or give another"
    )
    Journal.open(place, old).close()  # nothing was harmed


def test_a_part_that_becomes_a_mapping(place: Path) -> None:
    Journal.open(place, {"grid": "10"}).close()
    with pytest.raises(CheckpointError, match="grid: 10 -> {'rows': '10'}"):
        Journal.open(place, {"grid": {"rows": "10"}})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\x00\xff"])
def test_a_damaged_identity(text: str, place: Path) -> None:
    Journal.open(place, IDENTITY).close()
    (place / "identity.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        CheckpointError, match=r"identity.json is damaged.*Delete that directory to begin anew"
    ):
        Journal.open(place, IDENTITY)


def test_another_format(place: Path) -> None:
    Journal.open(place, IDENTITY).close()
    found = json.loads((place / "identity.json").read_text())
    (place / "identity.json").write_text(json.dumps({**found, "format": 7}))
    with pytest.raises(CheckpointError, match="in format 7, .*another version.* reads format 1"):
        Journal.open(place, IDENTITY)


def test_killed_while_it_began(place: Path) -> None:
    """Before the identity was there."""
    Journal.open(place, IDENTITY).close()
    os.replace(place / "identity.json", place / "identity.json.new")
    (place / "identity.json.new").write_text("{")
    assert contents(place) == ({}, [])


def test_two_processes(place: Path) -> None:
    code = f"from computemanager.journal import Journal; Journal.open({str(place)!r}, {{}})"
    with Journal.open(place, {}):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"kept is in use by process {os.getpid()}. Wait until that has ended" in done.stderr
        with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
            Journal.open(place, {})
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


posix = pytest.mark.skipif(os.name != "posix", reason="rights as POSIX systems have them")


@posix
@pytest.mark.parametrize("name", ["", "records", "identity.json", "lock"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_may_write_to(mode: int, name: str, place: Path) -> None:
    Journal.open(place, IDENTITY).close()
    path = place / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(CheckpointError, match="may be written to by other users.*chmod go-w"):
        Journal.open(place, IDENTITY)
    path.chmod(path.stat().st_mode & ~0o022)
    Journal.open(place, IDENTITY).close()


@posix
@pytest.mark.parametrize("name", ["", "records", "identity.json", "lock"])
def test_what_belongs_to_another_user(name: str, place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    Journal.open(place, IDENTITY).close()
    os.chown(place / name, 12345, -1)
    with pytest.raises(CheckpointError, match="belongs to another user .number 12345."):
        Journal.open(place, IDENTITY)


@posix
@pytest.mark.parametrize("name", ["records", "identity.json", "lock"])
def test_links_are_not_followed(name: str, place: Path, tmp_path: Path) -> None:
    Journal.open(place, IDENTITY).close()
    (place / name).rename(tmp_path / "target")
    (place / name).symlink_to(tmp_path / "target")
    with pytest.raises(CheckpointError, match="cannot be used"):
        Journal.open(place, IDENTITY)


def test_directories_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no directory .*missing. Make that first"):
        Journal.open(tmp_path / "missing" / "kept", IDENTITY)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is a file; a checkpoint needs a directory of its own"):
        Journal.open(tmp_path / "file", IDENTITY)
    with pytest.raises(CheckpointError, match=r"there is no directory .*file. Make that first"):
        Journal.open(tmp_path / "file" / "kept", IDENTITY)
    with pytest.raises(CheckpointError, match=r"holds other files \(file\)"):
        Journal.open(tmp_path, IDENTITY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@posix
def test_a_directory_that_may_not_be_written_to(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="kept cannot be used: .*Permission denied"):
        Journal.open(tmp_path / "kept", IDENTITY)
    tmp_path.chmod(0o700)


def test_discarding(tmp_path: Path, place: Path) -> None:
    with Journal.open(place, IDENTITY) as journal:
        journal.keep([0], ["a"], "one")
        journal.discard()
        journal.discard()
        journal.keep([1], ["b"], "one")  # not any more
    assert not place.exists()
    place.mkdir(mode=0o700)
    Journal.open(place, IDENTITY).close()
    (place / "notes").touch()
    Journal.open(place, IDENTITY).discard()
    assert [path.name for path in place.iterdir()] == ["notes"], "what is not its own stays"


def test_discarding_what_cannot_be_removed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.open(place, IDENTITY)

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.warns(
        CheckpointWarning, match="the job is done, but its checkpoint cannot be removed: no. Delete"
    ):
        journal.discard()


# -- runs with a journal -----------------------------------------------------------------------------------

KINDS = ["CW_NONE", "CW_THREADS", "CW_SUBPROC"]


class Total:
    """A state."""

    def __init__(self) -> None:
        self.sum = 0


def add(block: int, total: Total) -> list[int]:
    total.sum += block
    return [block]


def sums(states: list[Any]) -> int:
    return sum(state.sum for state in states)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@given(kept=st.sets(st.integers(0, 29)))
@settings(max_examples=15, deadline=None)
def test_a_run_goes_on(
    kind: str, ordered: bool, kept: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if kind == "CW_SUBPROC" and len(kept) % 3:
        return  # a few will do: they take long to start
    place = tmp_path_factory.mktemp("run") / "kept"
    total = Total()
    total.sum = sum(kept)
    with Journal.open(place, IDENTITY) as journal:
        for number in kept:
            journal.keep([number], [f"kept {number}"], "one", pickle.dumps(total))
    pulled: list[int] = []

    def plan() -> Iterator[int]:
        for number in range(30):
            pulled.append(number)
            yield number

    with Journal.open(place, IDENTITY) as journal:
        manager = manager_class(kind)(Settings(num_workers=2, ordered=ordered, window_blocks=4))
        outcomes = []
        for outcome in manager.run(Job(add, Total()), plan(), journal=journal):
            outcomes.append(outcome)
            under_way = set(pulled) - {each.block_index for each in outcomes} - kept
            assert len(under_way) <= 4, "kept blocks do not count in the window, all others do"
        if ordered:
            assert [outcome.block_index for outcome in outcomes] == list(range(30))
        assert {outcome.block_index: outcome.value for outcome in outcomes} == {
            number: f"kept {number}" if number in kept else [number] for number in range(30)
        }
        assert all((outcome.worker == "checkpoint") == (outcome.block_index in kept) for outcome in outcomes)
        assert sums(manager.states()) == sum(range(30))
        assert manager.statistics.blocks == 30 - len(kept)
    with Journal.open(place, IDENTITY) as journal:
        assert list(journal.kept) == list(range(30)), "all is kept now, under the plan's numbers"
        again = manager_class(kind)(Settings(num_workers=2, ordered=ordered))
        everything = [outcome.value for outcome in again.run(Job(add, Total()), range(30), journal=journal)]
        assert everything == [f"kept {number}" if number in kept else [number] for number in range(30)]
        assert sums(again.states()) == sum(range(30)) and again.statistics.blocks == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_given_up_and_goes_on(kind: str, place: Path) -> None:
    """Again and again, a few blocks at a time, with a state and workers of the same names."""
    for length in (1, 5, 9, 14, 100):
        with Journal.open(place, IDENTITY) as journal:
            before = len(journal.kept)
            manager = manager_class(kind)(Settings(num_workers=2, window_blocks=3))
            run = manager.run(Job(add, Total()), range(20), journal=journal)
            values = [outcome.value for outcome, _ in zip(run, range(length), strict=False)]
            run.close()
            assert values == [[number] for number in range(min(length, 20))]
            if length < 20:
                assert before < 20 and sums(journal.states()) <= sum(range(20))
    assert len(values) == 20
    with Journal.open(place, IDENTITY) as journal:
        assert list(journal.kept) == list(range(20))
        assert sums(journal.states()) == sum(range(20)), "each block was counted once"


@pytest.mark.parametrize("kind", KINDS)
def test_errors_have_the_plans_number(kind: str, place: Path) -> None:
    def fails(block: int) -> int:
        if block == 7:
            raise LookupError("seven")
        return block

    with Journal.open(place, IDENTITY) as journal:
        journal.keep([0, 1, 2, 3, 5], [0, 1, 2, 3, 5], "one")
    with Journal.open(place, IDENTITY) as journal:
        run = manager_class(kind)(Settings(num_workers=2)).run(Job(fails), range(10), journal=journal)
        with pytest.raises(BlockError, match="on block 7 ") as caught:
            list(run)
        assert caught.value.block_index == 7 and caught.value.block in (7, None)
    with Journal.open(place, IDENTITY) as journal:
        settings = Settings(num_workers=2, on_error="skip")
        run = manager_class(kind)(settings).run(Job(fails), range(10), journal=journal)
        outcomes = list(run)
        assert [outcome.block_index for outcome in outcomes] == list(range(10))
        (skipped,) = [outcome.skipped for outcome in outcomes if outcome.skipped is not None]
        assert skipped.block_index == 7 and outcomes[7].skipped is skipped
    with Journal.open(place, IDENTITY) as journal:
        assert 7 not in journal.kept and len(journal.kept) == 9, "what was skipped may go well next time"


def test_without_a_journal_nothing_is_kept_any_more(place: Path) -> None:
    manager = manager_class("CW_NONE")()
    with Journal.open(place, IDENTITY) as journal:
        list(manager.run(Job(abs), [-1, -2], journal=journal))
        assert [outcome.value for outcome in manager.run(Job(abs), [-3])] == [3]
        assert manager.states() == []
    assert contents(place)[0] == {0: 1, 1: 2}


def test_a_plan_without_an_end_is_pulled_lazily(place: Path) -> None:
    import itertools

    with Journal.open(place, IDENTITY) as journal:
        journal.keep([0, 1, 4], [0, 1, 4], "one")
    with Journal.open(place, IDENTITY) as journal:
        plan = itertools.count()
        run = manager_class("CW_NONE")().run(Job(abs), plan, journal=journal)
        assert [next(run).block_index for _ in range(7)] == list(range(7))
        run.close()
        assert next(plan) == 7
