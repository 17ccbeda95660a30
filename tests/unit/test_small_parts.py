"""Parts too small for a file of tests each: output, run directories, signals, settings, kinds."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from computemanager import Job, Outcome, Settings, SettingsError, known_kinds, manager_class, rundir
from computemanager.base import ComputeWorkerManager
from computemanager.errors import ComputeManagerError
from computemanager.output import OutputPump
from computemanager.signals import Terminated, terminated_as_exception

# -- output --------------------------------------------------------------------------------------------


def pump_of(code: str) -> tuple[OutputPump, subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pump = OutputPump()
    assert process.stdout is not None and process.stderr is not None
    pump.watch("w", "stdout", process.stdout)
    pump.watch("w", "stderr", process.stderr)
    return pump, process


def test_a_process_that_prints_much_is_never_held_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written out while it prints 5 MB: it ends all the same, and nothing is lost."""
    pump, process = pump_of("for i in range(50000): print(i, 'x' * 94)")
    assert process.wait(timeout=60) == 0
    assert capsys.readouterr().out == ""
    pump.close()
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(50000))


def test_beyond_a_bound_the_oldest_output_is_dropped_and_said_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("computemanager.output._MAX_KEPT", 200_000)
    pump, process = pump_of("for i in range(50000): print(f'{i:09}')")
    process.wait(timeout=60)
    pump._join("w")
    pump.close()
    captured = capsys.readouterr()
    assert captured.out.endswith("000049999\n") and 0 < len(captured.out) <= 200_000
    assert captured.err == f"[{500_000 - len(captured.out)} characters of the workers' output were dropped]\n"


def test_the_tail_holds_the_last_lines_of_both_streams() -> None:
    pump, process = pump_of("import sys; print('hello'); print('sad end', file=sys.stderr)")
    process.wait(timeout=60)
    tail = pump.tail("w")
    assert "hello\n" in tail and "sad end\n" in tail
    pump._kept.clear()


def test_output_that_is_no_utf8_and_has_no_end_of_line_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    pump, process = pump_of("import sys; sys.stdout.buffer.write(b'caf\\xe9 \\xe2\\x82\\xac')")
    process.wait(timeout=60)
    pump.close()
    assert capsys.readouterr().out == "caf\ufffd \u20ac\n"


# -- run directories -----------------------------------------------------------------------------------


@pytest.fixture
def one_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rundir, "_parents", lambda: [tmp_path])
    monkeypatch.setattr(rundir, "_TOO_YOUNG_S", -1.0)
    return tmp_path


def test_a_run_directory_is_private_and_goes(one_parent: Path) -> None:
    directory = rundir.RunDirectory()
    assert directory.path.parent == one_parent
    if os.name == "posix":
        assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.close()
    directory.close()
    assert list(one_parent.iterdir()) == []


def test_strays_are_removed_and_living_runs_are_not(one_parent: Path) -> None:
    living = rundir.RunDirectory()
    stray = rundir.RunDirectory()
    stray._lock.close()  # what the system does when a process is killed
    other = one_parent / "computemanager-not-ours"
    other.mkdir()
    assert rundir.remove_strays() == [stray.path]
    assert living.path.is_dir() and other.is_dir()
    living.close()


def test_a_young_stray_is_left_alone(one_parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be one that another process is making at this moment."""
    monkeypatch.setattr(rundir, "_TOO_YOUNG_S", 60.0)
    stray = rundir.RunDirectory()
    stray._lock.close()
    assert rundir.remove_strays() == []


def test_no_place_for_a_directory_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "_parents", lambda: [tmp_path / "missing"])
    with pytest.raises(OSError, match="Set TMPDIR"):
        rundir.RunDirectory()


# -- signals -------------------------------------------------------------------------------------------


def test_sigterm_is_an_exception_within_and_delivered_afterwards() -> None:
    """In a process of its own, since it ends it."""
    code = (
        "import os, signal\n"
        "from computemanager.signals import terminated_as_exception\n"
        "with terminated_as_exception():\n"
        "    try:\n"
        "        with terminated_as_exception():\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "            signal.pause()\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"  # a second one does not stop the clean-up
        "        print('cleaned up', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGTERM and done.stdout == "cleaned up\n"


def test_the_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with terminated_as_exception():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_of_the_host_is_not_touched() -> None:
    heard: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with terminated_as_exception():
            signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_other_threads_have_nothing_to_do_with_signals() -> None:
    seen: list[Any] = []

    def look() -> None:
        with terminated_as_exception():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_terminated_is_not_caught_by_mistake() -> None:
    assert not issubclass(Terminated, Exception)


# -- settings and kinds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_workers": 0}, "num_workers is 0; give a whole number of at least 1"),
        ({"num_workers": 2.0}, "num_workers is 2.0"),
        ({"window_blocks": 0}, "window_blocks is 0"),
        ({"start_timeout_s": 0}, "start_timeout_s is 0; give seconds above 0, or None"),
        ({"outcome_timeout_s": -1}, "outcome_timeout_s is -1"),
    ],
)
def test_senseless_settings_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings(**wrong)


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"'CW_THREAD'; did you mean CW_THREADS\? Known: CW_AGENTS"):
        manager_class("CW_THREAD")


@pytest.mark.parametrize("kind", ["CW_NONE", "CW_THREADS", "CW_SUBPROC"])
def test_kinds_without_parameters_refuse_them(kind: str) -> None:
    with pytest.raises(SettingsError, match=f"{kind} has no parameters of its own, but .* has slots"):
        manager_class(kind)(Settings(extra_params={"slots": 2}))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"slot": 2}, "has no 'slot'; did you mean 'slots'"),
        ({"slots": 0}, "slots is 0; give a whole number of at least 1, or 'auto'"),
        ({"slots": "many"}, "slots is 'many'"),
        ({"prefixes": "nice"}, "prefixes is 'nice'; give a list of commands"),
        ({"prefixes": ["nice", "-n"]}, "a list of words"),
        ({"ports": 0}, "ports is 0; give one port, or the first and the last"),
        ({"ports": (6000, 5000)}, "the first is larger than the last"),
        ({"ports": (1, 2, 3)}, r"ports is \(1, 2, 3\)"),
    ],
)
def test_senseless_parameters_of_agents_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        manager_class("CW_AGENTS")(Settings(extra_params=wrong))


def test_a_new_kind_is_one_subclass() -> None:
    class Backwards(ComputeWorkerManager):
        kind = "CW_TEST_ONLY"

        def _run(self, job: Job, blocks: Iterator[Any]) -> Generator[Outcome, None, None]:
            for index, block in enumerate(blocks):
                yield Outcome(index, job.function(block), "me")

    assert "CW_TEST_ONLY" in known_kinds()
    manager = manager_class("CW_TEST_ONLY")()
    assert [outcome.value for outcome in manager.run(Job(abs), [-3])] == [3]


def test_importing_the_package_is_light() -> None:
    code = "import sys, computemanager, applier; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    for heavy in ("boto3", "rasterio", "pyogrio", "tqdm", "zmq", "pytest"):
        assert heavy not in modules, f"import applier brings {heavy}"


def test_time_is_only_that_of_the_monotonic_clock() -> None:
    """`time.time()` jumps; it is for what people read and for the age of files."""
    for path in Path(rundir.__file__).parent.rglob("*.py"):
        if path.name != "rundir.py":
            assert "time.time()" not in path.read_text(), path


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['rasterio'] = None\n"
        "import applier\n"
        "infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()\n"
        "infiles.a = 'a.tif'\n"
        "try: applier.apply(lambda info, inputs, outputs: None, infiles, outfiles)\n"
        "except applier.MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "rasterio is needed here" in done.stdout
    assert "python -m pip install 'computemanager[raster]'" in done.stdout


# -- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["computemanager.errors", "applier.errors"])
def test_the_drawing_of_the_hierarchy_shows_every_error_once(name: str) -> None:
    module = importlib.import_module(name)
    drawn = re.findall(r"[├└]── (\w+)", module.__doc__ or "")
    root = "ComputeManagerError" if name.startswith("compute") else "ApplierError"
    made = [each for each in module.__all__ if each[0].isupper() and each != root]
    assert sorted(drawn) == sorted(made)
    for each in drawn:
        bases = getattr(module, each).__mro__
        kin = [base for base in bases if base.__module__ == "builtins"]
        assert ComputeManagerError in bases
        assert kin[0] is not Exception, f"{each} can only be caught by its own name"
