"""Directories of runs that nobody owns any more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from computemanager import rundir
from computemanager.rundir import LOCK_NAME, RunDirectory, hold_lock, remove_strays


@pytest.fixture
def aged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that makes a run's directory, as old as it says."""
    monkeypatch.setattr(rundir, "_parents", lambda: [tmp_path])

    def make(name: str, *, lock: bool = True, seconds: float = 1000.0) -> Path:
        path = tmp_path / f"computemanager-{name}"
        path.mkdir()
        (path / "main-out-1").write_bytes(b"slabs")
        if lock:
            (path / LOCK_NAME).write_bytes(b"")
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))
        return path

    return make


def test_what_nobody_holds_is_removed(aged: Callable[..., Path]) -> None:
    stray = aged("1-stray")
    assert remove_strays() == [stray] and not stray.exists()


def test_what_was_removed_half_way_is_removed_wholly(aged: Callable[..., Path]) -> None:
    stray = aged("2-half", lock=False)
    assert remove_strays() == [stray] and not stray.exists()


def test_what_somebody_holds_stays(aged: Callable[..., Path]) -> None:
    path = aged("3-held")
    with hold_lock(path):
        os.utime(path, (0, 0))
        assert remove_strays() == [] and path.exists()


@pytest.mark.parametrize("lock", [False, True])
def test_what_is_being_made_stays(aged: Callable[..., Path], lock: bool) -> None:
    path = aged("4-young", lock=lock, seconds=1.0)
    assert remove_strays() == [] and path.exists()


def test_other_things_stay(tmp_path: Path, aged: Callable[..., Path]) -> None:
    others = [tmp_path / "somebody-elses", tmp_path / "computemanager-notes"]
    for other in others:
        other.mkdir()
        os.utime(other, (0, 0))
    assert remove_strays() == [] and all(other.exists() for other in others)


def test_a_directory_is_its_owners_alone_and_goes_with_the_run() -> None:
    directory = RunDirectory()
    if os.name == "posix":
        assert directory.path.stat().st_mode & 0o077 == 0
    directory.close()
    directory.close()
    assert not directory.path.exists()
