"""Fixtures for every test: nothing may be left behind, and real data is found if it is there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

try:
    import psutil
except ImportError:  # comes with the extra 'test'; without it the check of processes is left out
    psutil = None

REPOSITORY = Path(__file__).resolve().parents[1]
GRACE_S = 5.0
"""How long what a test started may take to vanish after it, in seconds."""

# Threads that libraries start once and keep for the life of the process.
LIBRARY_THREADS = {"TMonitor", "GarbageCollectorThread"}
LIBRARY_THREAD_NAMES = ("pytest_timeout", "pydevd", "ThreadPoolExecutor-hypothesis")


def pytest_configure(config: pytest.Config) -> None:
    """Give this run a temporary directory of its own, so that leftovers in it are this run's.

    pytest's own directories stay where they always are, to be looked at after a failure.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in the background so; tests of Ctrl-C, and what they start, need it back.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    usual = tempfile.gettempdir()
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", usual)
    private = tempfile.mkdtemp(prefix="cmtest-")  # short: the path of a local socket has about 100 characters
    config.stash[PRIVATE_TEMP] = (private, os.environ.get("TMPDIR"))
    os.environ["TMPDIR"] = tempfile.tempdir = private


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the run's temporary directory."""
    private, before = config.stash[PRIVATE_TEMP]
    tempfile.tempdir = None
    os.environ.pop("TMPDIR")
    if before is not None:
        os.environ["TMPDIR"] = before
    shutil.rmtree(private, ignore_errors=True)


PRIVATE_TEMP = pytest.StashKey[tuple[str, str | None]]()


@pytest.fixture
def shared_data() -> Path:
    """Return the directory of real data that lies beside the repository, or skip the test."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path} (optional; it is not part of the repository)")
    return path


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove our settings from the environment: a developer's own must not change a test."""
    for name in list(os.environ):
        if name.startswith(("APPLIER_", "COMPUTEMANAGER_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves processes, threads, files or signal handlers behind."""
    allowed = {kind for mark in request.node.iter_markers("leaves") for kind in mark.args}
    scratch: Path | None = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    looks: dict[str, Callable[[], dict[str, str]]] = {
        "processes": child_processes,
        "threads": running_threads,
        "files": temporary_files,
        "partial": lambda: partial_outputs(scratch),
        "signals": signal_handlers,
    }
    before = {kind: look() for kind, look in looks.items() if kind not in allowed}
    yield
    left = {kind: left_over(looks[kind], there) for kind, there in before.items()}
    found = [f"{kind}: {', '.join(sorted(things.values()))}" for kind, things in left.items() if things]
    if found:
        pytest.fail("left behind after the test: " + "; ".join(found), pytrace=False)


def left_over(look: Callable[[], dict[str, str]], before: dict[str, str]) -> dict[str, str]:
    """Return what is new since `before`, once it is gone or the grace is over.

    A look gives a description for each key: what is the same thing before and after has the same key.
    """
    end = time.monotonic() + GRACE_S
    while True:
        new = {key: what for key, what in look().items() if key not in before}
        # Shared memory is shared with whoever else runs these tests on the machine.
        new = {key: what for key, what in new.items() if not belongs_to_stranger(key)}
        if not new or time.monotonic() > end:
            return new
        time.sleep(0.02)


def child_processes() -> dict[str, str]:
    """Look for descendants, dead ones that nobody waited for included."""
    found: dict[str, str] = {}
    if psutil is None:
        return found
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline()) or child.name()
        except psutil.ZombieProcess:
            command = "(ended, never waited for)"
        except psutil.NoSuchProcess:
            continue
        if "resource_tracker" not in command:  # multiprocessing keeps one for the life of the process
            found[str(child.pid)] = f"{child.pid} {command[:120]}"
    return found


def running_threads() -> dict[str, str]:
    """Look for threads, but for those that libraries keep for good."""
    return {
        str(thread.ident): f"{thread.name} ({type(thread).__name__})"
        for thread in threading.enumerate()
        if type(thread).__name__ not in LIBRARY_THREADS
        and not thread.name.startswith(LIBRARY_THREAD_NAMES)
        and not isinstance(thread, threading._DummyThread)
    }


def temporary_files() -> dict[str, str]:
    """Look for our entries in the temporary directory and in shared memory."""
    return {
        path: path
        for place in (tempfile.gettempdir(), "/dev/shm")
        if os.path.isdir(place)
        for name in os.listdir(place)
        if name.startswith("computemanager-")
        for path in [os.path.join(place, name)]
    }


def belongs_to_stranger(path: str) -> bool:
    """Whether this is a run directory that a process holds which is neither this one nor its descendant."""
    if psutil is None or "computemanager-" not in path:
        return False
    holders = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(file.path == os.path.join(path, "lock") for file in process.open_files()):
                holders.add(process.pid)
    family = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    return bool(holders) and not holders & family


def partial_outputs(scratch: Path | None) -> dict[str, str]:
    """Look for the working directories of unfinished outputs below the test's directory."""
    return {} if scratch is None else {str(path): str(path) for path in scratch.rglob("*.partial")}


def signal_handlers() -> dict[str, str]:
    """Look at who handles the signals that a run may handle for a while."""
    handlers = (f"{number.name}={signal.getsignal(number)!r}" for number in (signal.SIGINT, signal.SIGTERM))
    return {handler: handler for handler in handlers}
