"""`apply` with a plan that is no raster: what the engine does with any kind of data."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import applier
import applier.raster.planning
from applier import ApplierControls, CancelledError, ConcurrencyStyle, FilenameAssociations, OtherInputs
from applier.engine import WINDOW_BYTES, _settings
from applier.errors import ControlsError, OutputError
from applier.ports import BlockResult, Plan, ReadBlock
from computemanager import Job, Settings, manager_class
from computemanager.errors import BlockError, SettingsError

pytestmark = pytest.mark.filterwarnings("ignore::applier.concurrency.ConcurrencyWarning")

STYLES: list[Any] = [
    pytest.param({}, id="none"),
    pytest.param({"numReadWorkers": 2}, id="none, readers"),
    pytest.param({"numComputeWorkers": 3, "computeWorkerKind": "CW_THREADS"}, id="threads"),
    pytest.param(
        {"numComputeWorkers": 3, "computeWorkerKind": "CW_THREADS", "numReadWorkers": 2},
        id="threads, readers",
    ),
]


class Numbers:
    """Blocks are numbers, and reading one gives its square."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def block(self, index: int) -> int:
        return index

    def read(self, block: int) -> int:
        return block * block


class ListSink:
    """Keeps what is written, and what was done in which order."""

    def __init__(self, path: str, log: list[str], fails_at: str = "") -> None:
        self.path, self.log, self.fails_at = path, log, fails_at
        self.written: list[Any] = []
        self.committed = False

    def write(self, encoded: Any) -> None:
        self._note("write")
        self.written.append(encoded)

    def skip(self, block: Any) -> None:
        self._note("skip")
        self.written.append(("nothing known of", block))

    def finish(self) -> None:
        self._note("finish")

    def commit(self) -> None:
        self._note("commit")
        self.committed = True

    def abort(self) -> None:
        self.log.append(f"{self.path}: abort")

    def _note(self, what: str) -> None:
        self.log.append(f"{self.path}: {what}")
        if what == self.fails_at:
            raise OutputError(f"{self.path} fails to {what}")


class Case:
    """A job of 20 numbers and two sinks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.sinks = [ListSink("first", self.log), ListSink("second", self.log)]
        self.entered = 0
        monkeypatch.setattr(applier.raster.planning, "plan_rasters", self.plan)

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        self.entered += 1
        yield
        self.entered -= 10

    def plan(self, function: Callable[..., Any], infiles: Any, outfiles: Any, controls: Any) -> Plan:
        source = Numbers(20)

        def task(block: Any, *other: Any) -> BlockResult:
            number, content = block[:2] if isinstance(block, ReadBlock) else (block, source.read(block))
            value = function(number, content, None, *other)
            return BlockResult([value, -value], 0.25, 0.5, 0.125)

        return Plan(
            source=source,
            task=task,
            sinks=self.sinks,
            describe=lambda block: f"number {block}",
            environment=self.environment,
            worker_environment=lambda workers: {},
            working_grid="the grid",
        )

    def apply(
        self, function: Callable[..., Any], other: Any = None, progress: Any = None, **style: Any
    ) -> Any:
        controls = ApplierControls()
        controls.setConcurrencyStyle(ConcurrencyStyle(**style))
        controls.setProgress(progress)
        return applier.apply(
            function, FilenameAssociations(), FilenameAssociations(), other, controls=controls
        )


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(monkeypatch)


@pytest.mark.parametrize("style", STYLES)
def test_every_block_once_in_order(style: dict[str, Any], case: Case) -> None:
    def backwards(number: int, square: int, outputs: Any) -> int:
        time.sleep(0.0005 * (number % 4 == 0))
        return number + square

    returned = case.apply(backwards, **style)
    expected = [number + number**2 for number in range(20)]
    assert case.sinks[0].written == expected and case.sinks[1].written == [-value for value in expected]
    assert case.log[-6:] == [
        "first: finish",
        "second: finish",  # before any is committed
        "first: commit",
        "second: commit",
        "first: abort",
        "second: abort",
    ]
    assert (returned.blocks, returned.retries, returned.outputs) == (20, 0, ["first", "second"])
    assert returned.workinggrid == "the grid" and returned.otherArgsList == []
    assert returned.workers == (0 if "computeWorkerKind" not in style else returned.workers)
    assert case.entered == -9  # entered and left once
    for name, seconds in (("reading", 0.25), ("userfunction", 0.5), ("encoding", 0.125)):
        assert list(returned.timings.getDurationsForName(name)) == [seconds] * 20


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("step", ["write", "finish", "commit"])
def test_a_sink_that_fails(step: str, style: dict[str, Any], case: Case) -> None:
    case.sinks[1].fails_at = step
    with pytest.raises(OutputError, match=f"second fails to {step}"):
        case.apply(lambda number, square, outputs: number, **style)
    assert case.log[-2:] == ["first: abort", "second: abort"]
    assert not case.sinks[1].committed and case.sinks[0].committed == (step == "commit")


@pytest.mark.parametrize("style", STYLES)
def test_a_function_that_fails(style: dict[str, Any], case: Case) -> None:
    def fails(number: int, square: int, outputs: Any) -> int:
        if number == 13:
            raise LookupError(f"square is {square}")
        return number

    with pytest.raises(BlockError) as caught:
        case.apply(fails, **style)
    text = str(caught.value)
    assert "fails raised LookupError on number 13" in text and "square is 169" in text
    assert "applier.run_block(fails, infiles, outfiles, otherArgs, controls, block=13)" in text
    assert isinstance(caught.value.__cause__, LookupError)
    assert case.log[-2:] == ["first: abort", "second: abort"] and "first: finish" not in case.log


def test_other_args_reach_the_function_and_come_back(case: Case) -> None:
    def collect(number: int, square: int, outputs: Any, other: Any) -> int:
        other.seen.append(number)
        return 0

    for style in ({}, {"numComputeWorkers": 2, "computeWorkerKind": "CW_THREADS"}):
        other = OtherInputs(seen=[])
        returned = case.apply(collect, other, **style)
        assert sorted(number for copy in returned.otherArgsList for number in copy.seen) == list(range(20))


class Impatient:
    """Cancels after the third block."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def setTotalSteps(self, steps: int) -> None: ...

    def setProgress(self, progress: int) -> None:
        self.shown.append(progress)

    def wasCancelled(self) -> bool:
        return len(self.shown) > 3


@pytest.mark.parametrize("style", STYLES)
def test_cancelling(style: dict[str, Any], case: Case) -> None:
    progress = Impatient()
    with pytest.raises(CancelledError, match="no output was written"):
        case.apply(lambda number, square, outputs: number, progress=progress, **style)
    assert progress.shown == [0, 5, 10, 15] and len(case.sinks[0].written) == 3
    assert case.log[-2:] == ["first: abort", "second: abort"]


def test_a_name_for_the_job_is_always_found(case: Case) -> None:
    class Fails:
        def __call__(self, number: int, square: int, outputs: Any) -> int:
            raise ValueError

    with pytest.raises(BlockError, match="^Fails raised ValueError"):
        case.apply(Fails())


def test_nothing_is_planned_before_the_arguments_are_right(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_be_called(*arguments: Any) -> Any:
        pytest.fail("planned")

    monkeypatch.setattr(applier.raster.planning, "plan_rasters", must_not_be_called)
    with pytest.raises(ControlsError, match="does not take 3 arguments"):
        case.apply(lambda number: number)


@pytest.mark.parametrize("kind", ["CW_SLURM", "CW_ECS", "CW_DASK"])
def test_a_kind_that_is_not_there_leaves_no_sink(kind: str, case: Case) -> None:
    with pytest.raises(SettingsError, match=kind):
        case.apply(lambda number, square, outputs: number, numComputeWorkers=2, computeWorkerKind=kind)
    assert not case.sinks[0].written


def settings_for(**style: Any) -> Settings:
    controls = ApplierControls()
    controls.setConcurrencyStyle(ConcurrencyStyle(**style))
    controls.setTempdir("some/where")
    controls.setOnBlockError("skip")
    plan = Plan(
        source=Numbers(1),
        task=lambda block: BlockResult([], 0, 0, 0),
        sinks=[],
        describe=str,
        environment=contextlib.nullcontext,
        worker_environment=lambda count: {"COUNT": str(count)},
    )
    return _settings(controls.run, plan)


@given(workers=st.integers(0, 500))
def test_memory_is_bounded_in_bytes_whatever_the_number_of_workers(workers: int) -> None:
    kind = "CW_SUBPROC" if workers else "CW_NONE"
    settings = settings_for(numComputeWorkers=workers, computeWorkerKind=kind)
    assert settings.num_workers == max(1, workers)
    assert settings.window_bytes == WINDOW_BYTES
    assert settings.window > 2 * workers, "every worker has a block, and one that waits"
    assert settings.worker_environment == {"COUNT": str(settings.num_workers)}


def test_every_option_of_the_style_reaches_the_manager() -> None:
    settings = settings_for(
        numComputeWorkers=9,
        computeWorkerKind="CW_AGENTS",
        computeBufferPopTimeout=1.0,
        computeBarrierTimeout=2.0,
        blockTimeout=3.0,
        maxBlockRaises=4,
        maxBlockKills=5,
        maxBlockTimeouts=6,
        maxBlockLosses=7,
        speculation=False,
        graceTime=8.0,
        minComputeWorkers=9,
        maxRuntime=10.0,
    )
    assert settings == Settings(
        num_workers=9,
        window_bytes=WINDOW_BYTES,
        spill_directory="some/where",
        worker_environment={"COUNT": "9"},
        outcome_timeout_s=1.0,
        start_timeout_s=2.0,
        block_timeout_s=3.0,
        max_raises_per_block=4,
        max_kills_per_block=5,
        max_timeouts_per_block=6,
        max_losses_per_block=7,
        on_error="skip",
        speculate=False,
        grace_s=8.0,
        min_workers=9,
        max_runtime_s=10.0,
    )


def test_the_defaults_of_the_style_are_those_of_the_manager() -> None:
    controls = ApplierControls()
    plan = Plan(
        Numbers(1), lambda block: BlockResult([], 0, 0, 0), [], str, contextlib.nullcontext, lambda n: {}
    )
    assert _settings(controls.run, plan) == Settings(window_bytes=WINDOW_BYTES)


def test_the_traceback_starts_with_the_users_own_code() -> None:
    def inner() -> None:
        raise ValueError("deep")

    def function(block: int) -> None:
        inner()

    with pytest.raises(BlockError) as caught:
        list(manager_class("CW_THREADS")().run(Job(function), range(3)))
    files = re.findall(r'File "([^"]+)"', caught.value.worker_traceback)
    assert files == [__file__, __file__], "frames of the library tell the user nothing"
