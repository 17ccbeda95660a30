"""Timers against plain lists, the bound on their memory, and their report."""

from __future__ import annotations

import pickle
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from applier import timers as timers_module
from applier.report import ApplierReturn
from applier.timers import KEPT_DURATIONS, Timers

DURATIONS = st.lists(st.floats(0, 1e4), min_size=1, max_size=60)


def filled(durations: list[float], name: str = "reading") -> Timers:
    made = Timers()
    for seconds in durations:
        made.add(name, seconds)
    return made


@given(DURATIONS)
def test_the_summary_is_that_of_all_durations(durations: list[float]) -> None:
    made = filled(durations)
    assert made.getDurationsForName("reading") == durations
    summary = made.makeSummaryDict()["reading"]
    lower, median, upper = np.percentile(durations, (25, 50, 75))
    expected = {
        "N": len(durations),
        "tot": sum(durations),
        "mean": np.mean(durations),
        "min": min(durations),
        "lower": lower,
        "median": median,
        "upper": upper,
        "max": max(durations),
    }
    assert summary == pytest.approx(expected)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10)), max_size=40), st.integers(0, 40))
def test_merging_parts_gives_the_whole(entries: list[tuple[str, float]], cut: int) -> None:
    parts = Timers(), Timers()
    whole = Timers()
    for place, (name, seconds) in enumerate(entries):
        parts[place >= cut].add(name, seconds)
        whole.add(name, seconds)
    before = parts[1].makeSummaryDict()
    parts[0].merge(parts[1])
    assert parts[1].makeSummaryDict() == before
    for name, values in whole.makeSummaryDict().items():
        assert parts[0].makeSummaryDict()[name] == pytest.approx(values)
        assert parts[0].getDurationsForName(name) == whole.getDurationsForName(name)
    assert parts[0].makeSummaryDict().keys() == whole.makeSummaryDict().keys()


@given(st.integers(1, 60), st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_memory_is_bounded_and_exact_figures_stay_exact(limit: int, sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timers_module, "KEPT_DURATIONS", limit)
        made, values = Timers(), []
        for number, size in enumerate(sizes):
            batch = [float(len(values) + offset) for offset in range(size)]
            values += batch
            if number % 2:
                made.merge(filled(batch))
            else:
                for seconds in batch:
                    made.add("reading", seconds)
        kept = made.getDurationsForName("reading")
        summary = made.makeSummaryDict()["reading"]
    assert kept is not None
    assert 1 <= len(kept) <= limit
    assert set(kept) <= set(values)
    assert (summary["N"], summary["min"], summary["max"]) == (len(values), values[0], values[-1])
    assert summary["tot"] == pytest.approx(sum(values))


def test_merging_one_by_one_keeps_the_same_as_adding() -> None:
    """Thousands of short series, one a block, must not crowd out what came before."""
    values = [float(number) for number in range(3 * KEPT_DURATIONS)]
    merged = Timers()
    for seconds in values:
        merged.merge(filled([seconds])) if seconds % 3 == 0 else merged.add("reading", seconds)
    assert merged.getDurationsForName("reading") == filled(values).getDurationsForName("reading")


def test_the_sample_is_evenly_spread_and_the_same_every_time() -> None:
    values = [float(number) for number in range(5 * KEPT_DURATIONS)]
    made = filled(values)
    kept = made.getDurationsForName("reading")
    assert kept is not None and KEPT_DURATIONS // 2 <= len(kept) <= KEPT_DURATIONS
    assert len(set(np.diff(kept))) == 1
    assert kept == filled(values).getDurationsForName("reading")
    assert made.makeSummaryDict()["reading"]["median"] == pytest.approx(np.median(values), rel=1e-3)


def test_an_interval_is_timed_even_if_its_body_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    made = Timers()
    with made.interval("userfunction"):
        pass
    with pytest.raises(ZeroDivisionError), made.interval("userfunction"):
        1 / 0  # noqa: B018
    assert made.getDurationsForName("userfunction") == [2.5, 1.0]


def test_threads_lose_nothing() -> None:
    made = Timers()
    threads = [threading.Thread(target=lambda: [made.add("a", 1.0) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.makeSummaryDict()["a"]["N"] == 8000
    assert made.makeSummaryDict()["a"]["tot"] == 8000.0


def test_merging_with_itself_doubles() -> None:
    made = filled([1.0, 2.0])
    made.merge(made)
    assert made.getDurationsForName("reading") == [1.0, 2.0, 1.0, 2.0]


def test_pickles_and_goes_on() -> None:
    made = pickle.loads(pickle.dumps(filled([1.0])))
    made.add("reading", 3.0)
    assert made.getDurationsForName("reading") == [1.0, 3.0]


def test_an_unknown_name_has_no_durations() -> None:
    assert Timers().getDurationsForName("reading") is None
    assert Timers().makeSummaryDict() == {}


def test_the_report_is_a_table_in_a_sensible_order() -> None:
    made = Timers()
    for name, seconds in [
        ("zebra", 1.0),
        ("writing", 0.25),
        ("walltime", 9.5),
        ("reading", 2e-3),
        ("reading", 4e-3),
    ]:
        made.add(name, seconds)
    assert made.formatReport() == "\n".join(
        [
            "timer     count      total       mean        min        max",
            "-----------------------------------------------------------",
            "walltime      1    9.50 s     9.50 s     9.50 s     9.50 s",
            "reading       2    6.00 ms    3.00 ms    2.00 ms    4.00 ms",
            "writing       1  250.00 ms  250.00 ms  250.00 ms  250.00 ms",
            "zebra         1    1.00 s     1.00 s     1.00 s     1.00 s",
        ]
    )


def test_the_report_of_level_1_shows_quartiles() -> None:
    lines = filled([1.0, 2.0, 3.0, 4.0, 5.0]).formatReport(level=1).splitlines()
    assert lines[0].split() == [
        "timer",
        "count",
        "total",
        "mean",
        "min",
        "25",
        "%",
        "median",
        "75",
        "%",
        "max",
    ]
    assert lines[2].split()[2::2] == ["15.00", "3.00", "1.00", "2.00", "3.00", "4.00", "5.00"]
    assert Timers().formatReport() == "Nothing was timed."


def test_the_return_value_reads_well() -> None:
    rtn = ApplierReturn(
        timings=filled([2.0, 1.5], "walltime"), workers=1, blocks=7, retries=2, outputs=["a.tif"]
    )
    assert repr(rtn) == "<ApplierReturn: 7 blocks on 1 worker in 3.5 s, 2 retries; a.tif>"
    lines = rtn.summary().splitlines()
    assert lines[0] == "7 blocks on 1 worker in 3.5 s, 2 retries"
    assert lines[1].strip() == "a.tif"
    assert "\n".join(lines[3:]) == rtn.timings.formatReport()


def test_the_return_value_of_a_job_without_anything() -> None:
    rtn = ApplierReturn()
    assert repr(rtn) == "<ApplierReturn: 0 blocks without workers; no output files>"
    assert (rtn.otherArgsList, rtn.workinggrid, rtn.singlePassMgr) == ([], None, None)
    many = ApplierReturn(blocks=1, outputs=list("abcde"))
    assert repr(many) == "<ApplierReturn: 1 block without workers; a, b, c and 2 more>"
