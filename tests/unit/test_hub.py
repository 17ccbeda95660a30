"""Slots of this machine: what they note, how they end, and what becomes of the memory lent to them."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from computemanager import payload
from computemanager.hub import SlotEnd, SlotHub
from computemanager.model import Job
from computemanager.slot import Place, read_place
from computemanager.wire import Kind, Message

PATIENCE_S = 20.0
PLACE = struct.Struct("<QId")
BETWEEN = 0xFFFFFFFF


# -- the note of a slot ----------------------------------------------------------------------------------


@pytest.fixture
def note(tmp_path: Path) -> Callable[[int, int, float], None]:
    """Return a function that writes what a slot notes, at any time."""
    path = tmp_path / "slot-0.place"
    Place(path)

    def write(lease: int, position: int, since: float) -> None:
        with open(path, "r+b") as file:
            file.write(PLACE.pack(lease, position, since))

    return write


@pytest.fixture
def reader(note: object, tmp_path: Path) -> Place:
    return Place(tmp_path / "slot-0.place", is_reader=True)


def test_a_new_slot_is_between_blocks(reader: Place, tmp_path: Path) -> None:
    assert reader.read() is None and read_place(tmp_path / "slot-0.place") is None
    assert not reader.overdue(1e9, 1.0) and not reader.overdue(1e9, 1.0)


def test_what_is_noted_is_read(tmp_path: Path) -> None:
    path = tmp_path / "slot-1.place"
    slot, holder = Place(path), Place(path, is_reader=True)
    slot.note(2**63, 5)
    assert holder.read() == read_place(path) == (2**63, 5)
    now = time.monotonic()
    assert not holder.overdue(now, 60.0)
    assert [holder.overdue(now + 61.0, 60.0) for _ in range(2)] == [False, True]
    slot.note(2**63)
    assert holder.read() is None and read_place(path) is None


@pytest.mark.parametrize("content", [None, b"", b"x" * (PLACE.size - 1), b"x" * (PLACE.size + 1)])
def test_a_note_that_is_none(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "slot-2.place"
    if content is not None:
        path.write_bytes(content)
    assert read_place(path) is None


def test_a_slot_is_overdue_at_the_second_look(note: Callable[..., None], reader: Place) -> None:
    note(7, 3, 100.0)
    assert [reader.overdue(now, 10.0) for now in (105.0, 110.0, 110.1, 110.2)] == [False, False, False, True]


def test_a_torn_note_is_not_overdue(note: Callable[..., None], reader: Place) -> None:
    """A look may fall between the block's number and the time, which is that of the block before."""
    note(7, 3, 100.0)
    assert not reader.overdue(105.0, 10.0)
    note(7, 4, 100.0)  # half of the note for block 4
    assert not reader.overdue(111.0, 10.0)
    note(7, 4, 111.0)  # the rest of it
    assert not reader.overdue(111.1, 10.0)
    note(7, 5, 111.0)  # at the next look a torn one again, of another block
    assert not reader.overdue(122.0, 10.0)
    note(7, 6, 111.0)
    assert not reader.overdue(122.1, 10.0)


def test_a_slot_that_goes_on_between_two_looks_is_not_overdue(
    note: Callable[..., None], reader: Place
) -> None:
    note(7, 3, 100.0)
    assert not reader.overdue(111.0, 10.0)
    note(7, BETWEEN, 111.0)
    assert not reader.overdue(125.0, 10.0)
    note(7, 3, 100.0)  # what was seen before has been forgotten
    assert not reader.overdue(126.0, 10.0)


# -- a slot whose holder has died ------------------------------------------------------------------------

ORPHAN = """
import os, sys, time
from computemanager.slot import _end_with_main

remove, late = os.rmdir, [sys.argv[1] + "/late"]

def rmdir(*arguments, **options):
    if late:  # as another thread or slot does, that notes a place just now
        open(late.pop(), "w").close()
    remove(*arguments, **options)

os.rmdir = rmdir
_end_with_main(sys.argv[1])
time.sleep(60.0)
"""


def test_an_orphan_removes_the_directory_though_files_are_made_in_it(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "main").touch()
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, str(directory)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1 and not done.stderr
    assert not directory.exists()


# -- a hub with a slot -----------------------------------------------------------------------------------


class OneSlot:
    """A hub with a slot that has a job."""

    def __init__(self, hub: SlotHub, function: Callable[[Any], Any]) -> None:
        self.hub = hub
        (self.name,) = hub.start(1)
        hub.set_job(payload.dumps_job(Job(function)))
        self.until(Kind.READY)

    def until(self, kind: Kind) -> Message:
        """The next message of this kind."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < deadline
            for name, message in self.hub.receive(0.02):
                assert name == self.name
                if message.kind is kind:
                    return message

    def end(self) -> SlotEnd:
        """How it ended."""
        deadline = time.monotonic() + PATIENCE_S
        while not (ended := self.hub.ended()):
            assert time.monotonic() < deadline
            self.hub.receive(0.02)
        (end,) = ended
        return end

    def work(self, lease: int, *blocks: Any) -> list[int]:
        """Send it blocks; the slabs that they are in."""
        packed = payload.pack(list(blocks), self.hub.writer)
        self.hub.send(
            self.name,
            Message(Kind.WORK, lease, len(blocks), packed.payload, packed.places, packed.buffers),
        )
        return [slab for slab, _ in packed.places]


@pytest.fixture
def one_slot() -> Iterator[Callable[..., OneSlot]]:
    """Return a function that makes a hub with a slot, which is closed after the test."""
    with contextlib.ExitStack() as undo:

        def make(function: Callable[[Any], Any], **options: Any) -> OneSlot:
            return OneSlot(undo.enter_context(contextlib.closing(SlotHub({}, **options))), function)

        yield make


def by_value() -> Callable[[Any], Any]:
    """Return a function that sleeps on 7 and ends its process on 8; a slot has not got this module."""

    def work(block: Any) -> Any:
        if isinstance(block, int) and block == 7:
            time.sleep(60.0)
        if isinstance(block, int) and block == 8:
            os._exit(4)
        return None

    return work


def test_a_block_that_takes_too_long(one_slot: Callable[..., OneSlot]) -> None:
    """Its slot is ended, and the place says which block it was."""
    slot = one_slot(by_value(), block_timeout_s=0.3)
    slot.work(41, 1, 2, 7, 3)
    assert slot.end() == SlotEnd(
        slot.name, (41, 2), "it was ended because the block took longer than 0.3 s", True
    )
    assert slot.hub.ended() == []


def test_a_limit_that_is_set_later(one_slot: Callable[..., OneSlot]) -> None:
    """An agent hears of it with main's welcome, when its slots are there already."""
    slot = one_slot(by_value())
    slot.hub.block_timeout_s = 0.3
    slot.work(42, 7)
    end = slot.end()
    assert end.timed_out and end.place == (42, 0)


def test_a_slot_that_ends_by_itself(one_slot: Callable[..., OneSlot]) -> None:
    slot = one_slot(by_value(), block_timeout_s=60.0)
    slot.work(43, 1, 8)
    end = slot.end()
    assert end.place == (43, 1) and not end.timed_out
    assert end.evidence.startswith("it exited with code 4, peak memory ")


def test_a_slot_that_ends_between_blocks(one_slot: Callable[..., OneSlot]) -> None:
    slot = one_slot(by_value())
    slot.work(44, 1)
    slot.until(Kind.ANSWER)
    slot.hub.kill([slot.name])
    end = slot.end()
    assert end.place is None and "SIGKILL" in end.evidence and not end.timed_out


def test_slabs_come_back_when_the_slot_has_ended(one_slot: Callable[..., OneSlot]) -> None:
    """Those that it was looking at, too; the next of that size are put there."""
    slot = one_slot(by_value())
    array = np.arange(200_000.0)
    lent = slot.work(45, 7, array, -array)
    assert all(lent) and len(set(lent)) == 2
    slot.hub.kill([slot.name])
    slot.end()
    places, inline = slot.hub.place_buffers([array, array])
    assert sorted(slab for slab, _ in places) == sorted(lent) and not inline


def test_slabs_come_back_when_the_slot_has_looked_at_them(one_slot: Callable[..., OneSlot]) -> None:
    slot = one_slot(by_value())
    array = np.arange(200_000.0)
    (lent,) = slot.work(46, array)
    slot.until(Kind.ANSWER)
    slot.work(47, 1)  # what is no longer looked at is said with the next answer
    slot.until(Kind.ANSWER)
    slot.hub.receive(0.1)
    (again,) = slot.work(48, array)
    assert again == lent


def test_nothing_is_lent_to_a_slot_that_is_gone(one_slot: Callable[..., OneSlot]) -> None:
    """Messages of a slot that has been reported as ended are of no account."""
    slot = one_slot(by_value())
    slot.work(49, 1, 8)
    slot.end()
    assert slot.hub.receive(0.1) == []


def test_without_shared_memory(one_slot: Callable[..., OneSlot]) -> None:
    slot = one_slot(by_value(), shared_memory=False)
    assert slot.hub.writer is None and slot.hub.reader(slot.name) is None
    array = np.arange(200_000.0)
    places, inline = slot.hub.place_buffers([array, b"small"])
    assert [slab for slab, _ in places] == [0, 0] and inline[0] is array and len(inline) == 2
    assert slot.work(50, array) == [0]
    assert slot.until(Kind.ANSWER).number == 1


def test_closing_leaves_nothing_and_may_be_done_twice(one_slot: Callable[..., OneSlot]) -> None:
    slot = one_slot(by_value())
    slot.work(51, 7)
    slot.hub.close()
    assert not slot.hub.path.exists()
    slot.hub.close()
