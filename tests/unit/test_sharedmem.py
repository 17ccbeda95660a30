"""Slabs: what is written is read, what is kept stays, and a full file system is no crash."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from computemanager import sharedmem
from computemanager.sharedmem import SlabReader, SlabWriter


def content(seed: int, nbytes: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


class SlabMachine(RuleBasedStateMachine):
    """A writer and a reader; views are kept and dropped in any order, and never change while kept."""

    @initialize(budget=st.sampled_from([50_000, 400_000, 10**9]))
    def start(self, budget: int) -> None:
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.budget = budget
        self.writer = SlabWriter(self.directory.name, "w", budget)
        self.reader = SlabReader(self.directory.name, "w")
        self.kept: list[tuple[Any, int, int]] = []
        self.count = 0

    @rule(nbytes=st.integers(1, 150_000), derived=st.booleans())
    def send(self, nbytes: int, derived: bool) -> None:
        self.count += 1
        slab = self.writer.put(memoryview(content(self.count, nbytes)))
        if slab is None:
            assert self.budget < 10**9
            return
        view = self.reader.view(slab, nbytes)
        if derived:  # what is kept may be made from the view, in ways that hide it
            view = np.frombuffer(memoryview(view), np.uint8)[:]
        self.kept.append((view, self.count, nbytes))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.kept.pop(data.draw(st.integers(0, len(self.kept) - 1)))

    @rule()
    def give_back(self) -> None:
        for slab in self.reader.returned():
            self.writer.free(slab)

    @invariant()
    def what_is_kept_is_as_it_was(self) -> None:
        for view, seed, nbytes in getattr(self, "kept", []):
            assert np.array_equal(view, content(seed, nbytes))

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.kept.clear()
            self.directory.cleanup()


TestSlabs = SlabMachine.TestCase


def test_a_slab_is_used_again_once_it_is_returned(tmp_path: Path) -> None:
    writer, reader = SlabWriter(tmp_path, "w"), SlabReader(tmp_path, "w")
    first = writer.put(memoryview(bytes(100_000)))
    assert first is not None
    view = reader.view(first, 100_000)
    second = writer.put(memoryview(bytes(100_000)))
    assert second != first and reader.returned() == []
    del view
    gc.collect()
    assert reader.returned() == [first] and reader.returned() == []
    writer.free(first)
    assert writer.put(memoryview(bytes(99_990))) == first


def test_many_slabs_need_few_files(tmp_path: Path) -> None:
    writer = SlabWriter(tmp_path, "w")
    for _ in range(200):
        assert writer.put(memoryview(bytes(100_000)))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_file_system_is_no_slab_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SlabWriter(tmp_path, "w")
    assert writer.put(memoryview(bytes(100_000)))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert writer.put(memoryview(bytes(100_000))) is None
    assert writer.put(memoryview(bytes(10))) is None, "and it does not ask again and again"


def test_a_larger_free_slab_serves_where_no_new_one_can_be_made(tmp_path: Path) -> None:
    writer = SlabWriter(tmp_path, "w", budget_bytes=200_000)
    slab = writer.put(memoryview(bytes(190_000)))
    assert slab is not None and writer.put(memoryview(bytes(70_000))) is None
    writer.free(slab)
    assert writer.put(memoryview(bytes(70_000))) == slab


@pytest.mark.parametrize("nbytes", [1, 4096, 65_536, 65_537, 1_000_000, 8 * 2**20])
def test_size_classes_waste_at_most_a_quarter(nbytes: int) -> None:
    size = sharedmem._size_class(nbytes)
    assert nbytes <= size <= max(nbytes * 1.26, 2 * 4096 * 4)
