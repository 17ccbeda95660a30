"""Progress: what a reporter tells objects of either kind, and what these show."""

from __future__ import annotations

import io
import logging
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from applier.progress import (
    CUIProgressBar,
    LogProgressBar,
    Progress,
    ProgressReporter,
    SilentProgress,
    TqdmProgress,
    default_progress,
)


class Recorder(SilentProgress):
    """Writes down what it is told; wants to stop once `stop_at` has been shown."""

    def __init__(self, stop_at: int | None = None, steps_are_blocks: bool = False) -> None:
        self.told: list[tuple[str, Any]] = []
        self.stop_at = stop_at
        self.steps_are_blocks = steps_are_blocks

    def setTotalSteps(self, steps: int | None) -> None:
        self.told.append(("total", steps))

    def setProgress(self, progress: int) -> None:
        self.told.append(("progress", progress))

    def setLabelText(self, text: str) -> None:
        self.told.append(("label", text))

    def reset(self) -> None:
        self.told.append(("reset", None))

    def wasCancelled(self) -> bool:
        return self.stop_at is not None and ("progress", self.stop_at) in self.told

    def shown(self) -> list[int]:
        return [value for what, value in self.told if what == "progress"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.integers(1, 500))
def test_percents_are_told_once_each_from_0_to_100(total: int) -> None:
    recorder = Recorder()
    with ProgressReporter(recorder) as reporter:
        reporter.start(total, "ndvi")
        for _ in range(total):
            reporter.advance()
    assert recorder.told[:2] == [("label", "ndvi"), ("total", 100)]
    assert recorder.told[-1] == ("reset", None)
    expected = sorted({int(100 * done / total + 1e-9) for done in range(total + 1)})
    assert recorder.shown() == expected
    assert recorder.shown()[0] == 0 and recorder.shown()[-1] == 100


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_an_object_that_counts_blocks_is_told_blocks(advances: list[int]) -> None:
    recorder = Recorder(steps_are_blocks=True)
    reporter = ProgressReporter(recorder)
    reporter.start(sum(advances))
    for blocks in advances:
        reporter.advance(blocks)
    reporter.close()
    assert recorder.told[0] == ("total", sum(advances))
    assert recorder.shown() == [sum(advances[:n]) for n in range(len(advances) + 1)]
    assert reporter.done == sum(advances)


def test_an_unfinished_job_never_shows_100() -> None:
    recorder = Recorder()
    with pytest.raises(KeyError), ProgressReporter(recorder) as reporter:
        reporter.start(1000)
        reporter.advance(999)
        raise KeyError
    assert recorder.shown() == [0, 99]
    assert recorder.told[-1] == ("reset", None)


def test_with_an_unknown_total_only_blocks_can_be_shown() -> None:
    percents, blocks = Recorder(), Recorder(steps_are_blocks=True)
    for recorder in (percents, blocks):
        reporter = ProgressReporter(recorder)
        reporter.start(None)
        reporter.advance(3)
    assert percents.told == [("total", 100)]
    assert blocks.told == [("total", None), ("progress", 0), ("progress", 3)]


def test_nothing_to_do_is_all_done() -> None:
    recorder = Recorder()
    ProgressReporter(recorder).start(0)
    assert recorder.shown() == [100]


def test_a_wish_to_stop_is_kept() -> None:
    recorder = Recorder(stop_at=50)
    reporter = ProgressReporter(recorder)
    reporter.start(4)
    seen = []
    for _ in range(4):
        reporter.advance()
        seen.append(reporter.cancelled)
    assert seen == [False, True, True, True]
    recorder.stop_at = None
    reporter.advance()
    assert reporter.cancelled


def test_closing_is_legal_at_any_time_and_tells_once() -> None:
    recorder = Recorder()
    reporter = ProgressReporter(recorder)
    reporter.close()
    assert recorder.told == []
    reporter.start(1)
    reporter.close()
    reporter.close()
    assert recorder.told.count(("reset", None)) == 1


def test_an_object_with_two_methods_is_enough() -> None:
    class Minimal:
        steps: list[int] = []

        def setTotalSteps(self, steps: int) -> None:
            self.steps.append(steps)

        def setProgress(self, progress: int) -> None:
            self.steps.append(progress)

    with ProgressReporter(Minimal()) as reporter:  # type: ignore[arg-type]
        reporter.start(1, "label")
        reporter.advance()
    assert Minimal.steps == [100, 0, 100]


@pytest.mark.parametrize("kind", [SilentProgress, CUIProgressBar, LogProgressBar, TqdmProgress])
def test_all_of_ours_have_the_whole_interface(kind: Any) -> None:
    assert isinstance(kind(), Progress)
    assert kind().wasCancelled() is False


def test_silent_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    tell_all(SilentProgress())
    assert capsys.readouterr() == ("", "")


def tell_all(progress: Any) -> None:
    progress.setLabelText("label")
    progress.setTotalSteps(4)
    for step in (1, 1, 4):
        progress.setProgress(step)
    progress.displayInfo("note")
    progress.displayWarning("careful")
    progress.displayError("broken")
    progress.displayException("Traceback: x")
    progress.reset()


def test_percents_go_to_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        monkeypatch.setattr(sys, "stdout", stream)
        tell_all(CUIProgressBar())
    for text in ("label", "Info: note", "Warning: careful", "Error: broken", "Traceback: x"):
        assert text in terminal.getvalue() and text in log.getvalue()
    assert "\r 25 %" in terminal.getvalue() and "\r100 %" in terminal.getvalue()
    assert "%" not in log.getvalue()


def test_log_progress_logs_each_percent_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.progress")
    caplog.set_level(logging.INFO, logger.name)
    tell_all(LogProgressBar(logger))
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == [
        (logger.name, logging.INFO, "label"),
        (logger.name, logging.INFO, "25 % done"),
        (logger.name, logging.INFO, "100 % done"),
        (logger.name, logging.INFO, "note"),
        (logger.name, logging.WARNING, "careful"),
        (logger.name, logging.ERROR, "broken"),
        (logger.name, logging.ERROR, "Traceback: x"),
    ]


def test_the_bar_shows_blocks_and_leaves_no_thread() -> None:
    stream, before = io.StringIO(), threading.active_count()
    with ProgressReporter(TqdmProgress(file=stream, mininterval=0, ascii=True, ncols=80)) as reporter:
        reporter.start(8, "ndvi")
        reporter.advance(5)
        reporter.advance(3)
        assert threading.active_count() == before
    last = stream.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("ndvi: 100%|") and "| 8/8 [" in last and "block/s" in last
    assert "| 5/8 [" in stream.getvalue()


def test_the_bar_counts_where_the_total_is_unknown() -> None:
    stream = io.StringIO()
    with ProgressReporter(TqdmProgress(file=stream, mininterval=0)) as reporter:
        reporter.start(None)
        reporter.advance(5)
    assert "5block [" in stream.getvalue()


def test_messages_are_written_above_the_bar() -> None:
    stream = io.StringIO()
    tell_all(TqdmProgress(file=stream, mininterval=0))
    for text in ("label", "note\n", "Warning: careful\n", "Error: broken\n", "Traceback: x\n"):
        assert text in stream.getvalue()


@pytest.mark.parametrize(
    ("stream", "kind"), [(Terminal(), TqdmProgress), (io.StringIO(), SilentProgress), (None, SilentProgress)]
)
def test_the_default_depends_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, stream: Any, kind: type
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert type(default_progress()) is kind


def test_the_default_in_a_notebook_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = type("ZMQInteractiveShell", (), {})()
    ipython = type(sys)("IPython")
    ipython.get_ipython = lambda: kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(default_progress()) is TqdmProgress
