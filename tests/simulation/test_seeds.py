"""Thousands of bad days: every promise holds on each; and schedulers with a fault do not get through."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import re
from typing import Any

import pytest

from computemanager.errors import InternalError
from computemanager.scheduler import (
    Accept,
    Action,
    Answered,
    Cause,
    Dispatch,
    Event,
    HostSilent,
    Scheduler,
    SchedulerLimits,
    WorkerLost,
)
from computemanager.simulate import Scenario, Simulation, Violation, command, main

SEEDS = int(os.environ.get("COMPUTEMANAGER_SEEDS", "3000"))  # read before a fixture removes it
AT_ONCE = 200


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_every_promise_holds_on_every_day(first: int) -> None:
    for seed in range(first, min(first + AT_ONCE, SEEDS)):
        Simulation(seed).run()


def test_days_are_bad_enough() -> None:
    """What the seeds do not bring about is not tested by them."""
    seen: collections.Counter[Any] = collections.Counter()
    for seed in range(10_000, 10_400):
        report = Simulation(seed).run()
        seen[report.gave_up and report.gave_up.cause] += 1
        for name in ("skipped", "retries", "workers_lost", "speculated", "stale_answers"):
            seen[name] += getattr(report, name) > 0
    few = {what: seen[what] for what in [None, *Cause] if not seen[what]}
    assert few.keys() <= {Cause.TOO_FEW_WORKERS}, few
    assert all(seen[name] > 20 for name in ("skipped", "retries", "workers_lost", "speculated")), seen


def test_few_workers_for_too_long() -> None:
    calm = Scenario(hosts=2, local=True, start_failure=0.9, hopeless=1.0, start_s=1.0, block_s=10.0)
    causes = set()
    for seed in range(40):
        limits = {"min_workers": 2, "start_timeout_s": 30.0}
        gave_up = Simulation(seed, scenario=calm, limits=limits).run().gave_up
        causes.add(gave_up and gave_up.cause)
    assert Cause.TOO_FEW_WORKERS in causes


def test_a_seed_is_always_the_same_day() -> None:
    for seed in range(20):
        traces: list[list[str]] = [[], []]
        reports = [Simulation(seed, trace=trace.append).run() for trace in traces]
        assert reports[0] == reports[1] and traces[0] == traces[1]


# -- schedulers with a fault -------------------------------------------------------------------------------


class ForgetsLeases(Scheduler):
    """Believes that it sent what it did not send."""

    def handle(self, event: Event, now: float) -> list[Action]:
        actions = super().handle(event, now)
        return [one for one in actions if not (isinstance(one, Dispatch) and one.lease % 7 == 0)]


class AcceptsTwice(Scheduler):
    """Lets an answer count that comes a second time."""

    def handle(self, event: Event, now: float) -> list[Action]:
        stale = self.stale_answers
        actions = super().handle(event, now)
        if isinstance(event, Answered) and self.stale_answers > stale and event.number == 1:
            actions.insert(0, Accept(event.worker, range(1)))
        return actions


class IgnoresSilence(Scheduler):
    """Sends blocks to workers that nobody has heard of."""

    def handle(self, event: Event, now: float) -> list[Action]:
        return [] if isinstance(event, HostSilent) else super().handle(event, now)


class MissesDeaths(Scheduler):
    """Does not notice that some workers are gone."""

    def handle(self, event: Event, now: float) -> list[Action]:
        return [] if isinstance(event, WorkerLost) else super().handle(event, now)


class TriesTooOften(Scheduler):
    """Miscounts attempts by one."""

    def __init__(self, limits: SchedulerLimits, now: float) -> None:
        more = {
            field.name: getattr(limits, field.name) + 1
            for field in dataclasses.fields(limits)
            if field.name.startswith("max_")
        }
        super().__init__(dataclasses.replace(limits, **more), now)


class KeepsPeopleIdle(Scheduler):
    """Gives every other worker nothing."""

    def handle(self, event: Event, now: float) -> list[Action]:
        roster = self._books.roster
        for worker in roster.some_idle(1):
            if worker.name.endswith(("1", "3")):
                roster.rest(worker, None)
        return super().handle(event, now)


class AsksForTicksAllTheTime(Scheduler):
    """Wants to be woken for nothing."""

    def next_deadline(self) -> float | None:
        return 0.0 if not self.finished else None


class CopiesWithoutLeave(Scheduler):
    """Runs blocks twice although their state may not be counted twice."""

    def __init__(self, limits: SchedulerLimits, now: float) -> None:
        super().__init__(dataclasses.replace(limits, speculate=True), now)


FAULTY = [
    ForgetsLeases,
    AcceptsTwice,
    IgnoresSilence,
    MissesDeaths,
    TriesTooOften,
    KeepsPeopleIdle,
    AsksForTicksAllTheTime,
    CopiesWithoutLeave,
]


@pytest.mark.parametrize("faulty", FAULTY)
def test_a_faulty_scheduler_is_caught_and_the_message_says_how_to_see_it(faulty: type[Scheduler]) -> None:
    for seed in range(1000):
        try:
            Simulation(seed, scheduler=faulty).run()
        except Violation as violation:
            how = rf"at [0-9.]+ s of seed {seed}; .*computemanager simulate --seed {seed} --trace"
            assert re.search(how, str(violation))
            return
    raise AssertionError("1000 days were not bad enough")


def test_a_violation_is_an_internal_error() -> None:
    with pytest.raises(InternalError, match="with the same scenario"):
        Simulation(0, scenario=Scenario(), scheduler=ForgetsLeases).run()


# -- the command -------------------------------------------------------------------------------------------


def test_the_command_runs_seeds_and_prints_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "5", "--seeds", "3", "--blocks", "9", "--hosts", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["seed 5", "seed 6", "seed 7"]
    assert all(" of 9 blocks" in line for line in lines)


def test_the_command_traces(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "5", "--trace"]) == 0
    assert "Dispatch(worker=" in capsys.readouterr().out


def test_the_command_says_what_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Simulation", functools.partial(Simulation, scheduler=ForgetsLeases))
    assert main(["--seed", "0", "--seeds", "30"]) == 1
    assert "BROKEN" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--seeds", "--blocks", "--hosts"])
def test_the_command_refuses_numbers_below_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--seed", "1", option, "0"])
    assert f"{option} is 0; give a number of at least 1" in capsys.readouterr().err
