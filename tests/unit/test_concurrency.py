"""Concurrency styles: RIOS's parameters, what is refused and in which words."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import pickle
from typing import Any

import numpy as np
import pytest

from applier import concurrency
from applier.concurrency import ConcurrencyStyle, ConcurrencyWarning
from applier.constants import COMPUTE_WORKER_KINDS, CW_NONE, CW_SUBPROC, CW_THREADS
from computemanager.errors import SettingsError

real_processors = concurrency._processors


@pytest.fixture(autouse=True)
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "_processors", lambda: 4)


def test_parameters_are_those_of_rios_in_its_order_then_ours_by_name() -> None:
    parameters = inspect.signature(ConcurrencyStyle).parameters.values()
    assert [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD] == [
        "numReadWorkers",
        "numComputeWorkers",
        "computeWorkerKind",
        "computeWorkerExtraParams",
        "computeWorkersRead",
        "singleBlockComputeWorkers",
        "haveSharedTemp",
        "readBufferInsertTimeout",
        "readBufferPopTimeout",
        "computeBufferInsertTimeout",
        "computeBufferPopTimeout",
        "computeBarrierTimeout",
    ]
    assert {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY} == {
        "blockTimeout": None,
        "maxBlockRaises": 1,
        "maxBlockKills": 3,
        "maxBlockTimeouts": 2,
        "maxBlockLosses": 20,
        "speculation": True,
        "graceTime": 30.0,
        "minComputeWorkers": 1,
        "maxRuntime": None,
    }


def test_the_default_is_no_concurrency() -> None:
    style = ConcurrencyStyle()
    assert (style.numReadWorkers, style.numComputeWorkers, style.computeWorkerKind) == (0, 0, CW_NONE)
    assert not style.workers_read
    assert repr(style) == "ConcurrencyStyle()"


SENSIBLE: list[dict[str, Any]] = [
    {"numReadWorkers": 3},
    {"numComputeWorkers": 2, "computeWorkerKind": CW_THREADS},
    {"numReadWorkers": 1, "numComputeWorkers": 3, "computeWorkerKind": CW_SUBPROC},
    {"numReadWorkers": 2, "numComputeWorkers": 50, "computeWorkerKind": "CW_ECS", "computeWorkersRead": True},
    {"numComputeWorkers": 500, "computeWorkerKind": "CW_ECS", "computeWorkersRead": False},
    {"computeWorkerKind": "CW_SLURM", "singleBlockComputeWorkers": True, "haveSharedTemp": False},
    {"computeWorkerKind": "CW_DASK"},
    {"computeWorkerKind": "CW_EXECUTOR", "computeWorkerExtraParams": {"executor": object()}},
    {"readBufferPopTimeout": 10, "computeBarrierTimeout": 0.5, "computeBufferPopTimeout": None},
    {"numComputeWorkers": 4, "computeWorkerKind": CW_SUBPROC, "blockTimeout": 60, "maxBlockTimeouts": 5},
    {"numComputeWorkers": 4, "computeWorkerKind": "CW_AGENTS", "minComputeWorkers": 4, "speculation": False},
    {"numComputeWorkers": 9, "computeWorkerKind": "CW_SLURM", "maxRuntime": 3600.0, "graceTime": 5},
    {"computeWorkerKind": "CW_SLURM", "singleBlockComputeWorkers": True, "minComputeWorkers": 3},
    {"computeWorkerKind": "CW_DASK", "minComputeWorkers": 3, "blockTimeout": 1.5},
    {"maxBlockRaises": 2},
]


@pytest.mark.parametrize("settings", SENSIBLE)
def test_sensible_combinations_are_kept_as_given(settings: dict[str, Any]) -> None:
    style = ConcurrencyStyle(**settings)
    for name, value in settings.items():
        assert getattr(style, name) == value


@pytest.mark.parametrize("kind", COMPUTE_WORKER_KINDS)
def test_every_kind_can_be_asked_for(kind: str) -> None:
    count = 0 if kind == CW_NONE else 2
    assert ConcurrencyStyle(numComputeWorkers=count, computeWorkerKind=kind).computeWorkerKind == kind


SENSELESS = [
    ({"numComputeWorkers": 4}, "numComputeWorkers=4 needs a kind.*computeWorkerKind=applier.CW_SUBPROC"),
    ({"computeWorkerKind": CW_THREADS}, "CW_THREADS with no workers: add numComputeWorkers"),
    ({"computeWorkersRead": True}, "computeWorkersRead=True without compute workers"),
    ({"computeWorkerExtraParams": {"a": 1}}, "computeWorkerExtraParams without compute workers"),
    ({"singleBlockComputeWorkers": True}, "one job a block is for batch queues only"),
    ({"singleBlockComputeWorkers": True, "computeWorkerKind": "CW_ECS"}, "computeWorkerKind=CW_ECS: one job"),
    (
        {"singleBlockComputeWorkers": True, "computeWorkerKind": "CW_PBS", "numComputeWorkers": 3},
        "leave numComputeWorkers out",
    ),
    ({"computeWorkerKind": "CW_THREAD", "numComputeWorkers": 1}, "the kinds are CW_THREADS, "),
    ({"computeWorkerKind": "ecs", "numComputeWorkers": 1}, "the kinds are CW_ECS, "),
    ({"computeWorkerKind": 2, "numComputeWorkers": 1}, "computeWorkerKind=2 is not a kind"),
    ({"numReadWorkers": -1}, "numReadWorkers=-1: give a whole number"),
    (
        {"numComputeWorkers": 2.0, "computeWorkerKind": CW_THREADS},
        "numComputeWorkers=2.0: give a whole number",
    ),
    ({"numReadWorkers": True}, "numReadWorkers=True: give a whole number"),
    ({"numReadWorkers": None}, "numReadWorkers=None: give a whole number"),
    ({"computeWorkersRead": 1}, "computeWorkersRead=1: give True or False"),
    ({"haveSharedTemp": None}, "haveSharedTemp=None: give True or False"),
    ({"singleBlockComputeWorkers": "no"}, "give True or False"),
    ({"computeBarrierTimeout": 0}, "computeBarrierTimeout=0: give a number of seconds above 0"),
    ({"readBufferInsertTimeout": -3.5}, "readBufferInsertTimeout=-3.5"),
    ({"readBufferPopTimeout": "10"}, "readBufferPopTimeout='10'"),
    ({"computeBufferInsertTimeout": float("nan")}, "computeBufferInsertTimeout=nan"),
    ({"computeBufferPopTimeout": True}, "computeBufferPopTimeout=True"),
    ({"blockTimeout": 5}, "blockTimeout=5 with computeWorkerKind=CW_NONE: .*applier.CW_SUBPROC"),
    (
        {"blockTimeout": 5, "numComputeWorkers": 2, "computeWorkerKind": CW_THREADS},
        "with computeWorkerKind=CW_THREADS: a block .* cannot be ended from outside.*applier.CW_SUBPROC",
    ),
    (
        {"blockTimeout": 0, "numComputeWorkers": 2, "computeWorkerKind": CW_SUBPROC},
        "blockTimeout=0: give a number of seconds above 0",
    ),
    ({"maxBlockRaises": 0}, "maxBlockRaises=0: give a whole number, 1 or more"),
    ({"maxBlockKills": 1.5}, "maxBlockKills=1.5: give a whole number, 1 or more"),
    ({"maxBlockTimeouts": True}, "maxBlockTimeouts=True: give a whole number"),
    ({"maxBlockLosses": None}, "maxBlockLosses=None: give a whole number"),
    ({"minComputeWorkers": 0}, "minComputeWorkers=0: give a whole number, 1 or more"),
    (
        {"minComputeWorkers": 5, "numComputeWorkers": 4, "computeWorkerKind": "CW_AGENTS"},
        "minComputeWorkers=5 with numComputeWorkers=4: .*lower minComputeWorkers",
    ),
    ({"minComputeWorkers": 2}, "minComputeWorkers=2 with numComputeWorkers=0"),
    ({"speculation": 1}, "speculation=1: give True or False"),
    ({"graceTime": None}, "graceTime=None: give a number of seconds"),
    ({"graceTime": -1}, "graceTime=-1: give a number of seconds above 0; a lost worker"),
    ({"graceTime": True}, "graceTime=True: give a number of seconds"),
    ({"maxRuntime": 0}, "maxRuntime=0: give a number of seconds above 0"),
]


@pytest.mark.parametrize(("settings", "said"), SENSELESS)
def test_senseless_settings_say_what_to_write(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        ConcurrencyStyle(**settings)


def test_numpy_counts_become_int() -> None:
    style = ConcurrencyStyle(np.int64(1), np.uint8(2), CW_THREADS)
    assert (type(style.numReadWorkers), type(style.numComputeWorkers)) == (int, int)


@pytest.mark.parametrize("kind", [CW_THREADS, CW_SUBPROC])
def test_more_local_workers_than_processors_is_a_warning(kind: str) -> None:
    with pytest.warns(ConcurrencyWarning, match="more than the 4 processors") as caught:
        ConcurrencyStyle(numReadWorkers=2, numComputeWorkers=3, computeWorkerKind=kind)
    assert caught[0].filename == __file__


def test_remote_workers_and_readers_alone_are_not_counted_against_processors() -> None:
    ConcurrencyStyle(numReadWorkers=20)
    ConcurrencyStyle(numComputeWorkers=100, computeWorkerKind="CW_SLURM")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"numReadWorkers": 2}, False),
        ({"numComputeWorkers": 2, "computeWorkerKind": CW_SUBPROC}, True),
        ({"numComputeWorkers": 2, "computeWorkerKind": CW_THREADS}, True),
        ({"numComputeWorkers": 2, "computeWorkerKind": CW_SUBPROC, "numReadWorkers": 1}, False),
        ({"numComputeWorkers": 2, "computeWorkerKind": "CW_ECS", "numReadWorkers": 1}, True),
        ({"numComputeWorkers": 2, "computeWorkerKind": "CW_ECS", "computeWorkersRead": False}, False),
        ({"numComputeWorkers": 2, "computeWorkerKind": CW_SUBPROC, "computeWorkersRead": False}, False),
    ],
)
def test_who_reads(settings: dict[str, Any], expected: bool) -> None:
    assert ConcurrencyStyle(**settings).workers_read is expected


def test_extra_parameters_are_copied_and_their_values_never_shown() -> None:
    extra = {"password": "s3cret", "n": 1}
    style = ConcurrencyStyle(numComputeWorkers=1, computeWorkerKind="CW_ECS", computeWorkerExtraParams=extra)
    extra["n"] = 2
    assert style.computeWorkerExtraParams == {"password": "s3cret", "n": 1}
    assert "s3cret" not in repr(style) and "'password': ..." in repr(style)
    with pytest.raises(SettingsError) as caught:
        ConcurrencyStyle(numComputeWorkers=1, computeWorkerKind="CW_ECS", computeWorkerExtraParams="s3cret")  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value) and "is a str" in str(caught.value)


def test_a_style_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConcurrencyStyle().numReadWorkers = 1  # type: ignore[misc]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_are_equal(clone: Any) -> None:
    style = ConcurrencyStyle(1, 2, "CW_ECS", {"a": [1]}, computeBarrierTimeout=5, maxBlockRaises=2)
    assert clone(style) == style


def test_only_what_differs_from_the_default_is_shown() -> None:
    style = ConcurrencyStyle(0, 3, "CW_AGENTS", blockTimeout=9.5, minComputeWorkers=2, graceTime=30.0)
    assert repr(style) == (
        "ConcurrencyStyle(numComputeWorkers=3, computeWorkerKind='CW_AGENTS', blockTimeout=9.5, "
        "minComputeWorkers=2)"
    )


def test_agents_are_not_counted_against_processors() -> None:
    ConcurrencyStyle(numComputeWorkers=100, computeWorkerKind="CW_AGENTS")


def test_this_machine_has_processors() -> None:
    assert 1 <= real_processors() <= (os.cpu_count() or 1)
