"""How long the parts of a job took, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

__all__ = ["KEPT_DURATIONS", "Timers"]

#: Durations kept of each name, at most.
KEPT_DURATIONS = 10_000

# The order of the parts in a report; names that are not here follow in alphabetical order.
_ORDER = (
    "walltime",
    "startup",
    "reading",
    "userfunction",
    "encoding",
    "writing",
    "closing",
    "waiting",
)


@dataclass
class _Series:
    """The durations of one name: exact count, total, least and greatest, and some of the rest.

    Every `stride`-th duration is kept. When they become too many every other one is dropped and the
    stride doubles, so that what is kept is spread evenly over the job and depends on nothing but the
    durations and their order: no random numbers.
    """

    count: int = 0
    total: float = 0.0
    least: float = float("inf")
    greatest: float = 0.0
    stride: int = 1
    kept: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        if self.count % self.stride == 0:
            self.kept.append(seconds)
        self.count += 1
        self.total += seconds
        self.least = min(self.least, seconds)
        self.greatest = max(self.greatest, seconds)
        self._thin()

    def merge(self, other: _Series) -> None:
        self.total += other.total
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)
        # As if the others had been added one by one: only those at a multiple of the stride are kept,
        # or thousands of short series would crowd out a long one.
        stride = max(self.stride, other.stride)
        first = -self.count % stride
        theirs = other.kept[-(-first // other.stride) :: stride // other.stride]
        self.kept = self.kept[:: stride // self.stride] + theirs
        self.count += other.count
        self.stride = stride
        self._thin()

    def _thin(self) -> None:
        while len(self.kept) > KEPT_DURATIONS:
            del self.kept[1::2]
            self.stride *= 2


class Timers:
    """Durations of named intervals, gathered over many blocks, threads and workers.

    Of each name the count, total, least and greatest are exact. The durations themselves, and with
    them the quartiles, are exact up to 10,000; beyond that they are an evenly spread sample, the same
    for the same durations in the same order. Safe for use from several threads, and can be pickled.

    Examples
    --------
    >>> timers = Timers()
    >>> with timers.interval("reading"):
    ...     data = bytes(10)
    >>> timers.add("reading", 2.5)
    >>> timers.makeSummaryDict()["reading"]["N"]
    2
    """

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}
        self._lock = threading.Lock()

    @contextmanager
    def interval(self, intervalName: str) -> Iterator[None]:
        """Time the body of a ``with`` statement, also where it raises.

        Parameters
        ----------
        intervalName : str
            The name to add the duration to.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(intervalName, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add one duration, in seconds."""
        with self._lock:
            self._series.setdefault(name, _Series()).add(seconds)

    def merge(self, other: Timers) -> None:
        """Add all that another object has gathered; the other is not changed."""
        theirs = other._copy()
        with self._lock:
            for name, series in theirs.items():
                self._series.setdefault(name, _Series()).merge(series)

    def getDurationsForName(self, intervalName: str) -> list[float] | None:
        """Return the durations of a name, in seconds, None if there is no such name.

        Of more than 10,000 this is an evenly spread sample of 5,000 to 10,000.
        """
        series = self._copy().get(intervalName)
        return None if series is None else series.kept

    def makeSummaryDict(self) -> dict[str, dict[str, float]]:
        """Summarise each name.

        Returns
        -------
        dict
            By name, a dict of ``N`` (count) and, in seconds, ``tot``, ``mean``, ``min``, ``lower``
            (quartile), ``median``, ``upper`` (quartile) and ``max``. Names are in the order of a report.
        """
        copied = self._copy()
        known = {name: place for place, name in enumerate(_ORDER)}
        summary = {}
        for name in sorted(copied, key=lambda name: (known.get(name, len(known)), name)):
            series = copied[name]
            lower, median, upper = (float(value) for value in np.percentile(series.kept, (25, 50, 75)))
            summary[name] = {
                "N": series.count,
                "tot": series.total,
                "mean": series.total / series.count,
                "min": series.least,
                "lower": lower,
                "median": median,
                "upper": upper,
                "max": series.greatest,
            }
        return summary

    def formatReport(self, level: int = 0) -> str:
        """Format a table of all names.

        Parameters
        ----------
        level : int, default 0
            From 1 on the quartiles are shown too.

        Returns
        -------
        str
            Several lines without a newline at the end. Times of several workers are added up, so that
            a part may well exceed the wall clock.
        """
        quartiles = ("lower", "median", "upper") if level > 0 else ()
        statistics = ("tot", "mean", "min", *quartiles, "max")
        headings = {"tot": "total", "lower": "25 %", "upper": "75 %"}
        rows = [["timer", "count", *(headings.get(key, key) for key in statistics)]]
        for name, values in self.makeSummaryDict().items():
            rows.append([name, f"{values['N']:.0f}", *(_duration(values[key]) for key in statistics)])
        if len(rows) == 1:
            return "Nothing was timed."
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def _copy(self) -> dict[str, _Series]:
        with self._lock:
            return {name: replace(series, kept=list(series.kept)) for name, series in self._series.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"_series": self._copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._series = state["_series"]
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        parts = (
            f"{name}={_duration(values['tot']).rstrip()}" for name, values in self.makeSummaryDict().items()
        )
        return f"<Timers {', '.join(parts)}>"


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    """Pad a row's cells: the name to the left, numbers to the right."""
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    cells[0] = row[0].ljust(widths[0])
    return cells


def _duration(seconds: float) -> str:
    """Format a duration with a unit that suits it, two characters wide, so that points line up."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale or unit == "us":
            break
    return f"{seconds / scale:.2f} {unit:<2}"
