"""Measuring in pairs: every contestant in turn, round after round, and the ratios of each round.

Machines drift and neighbours come and go; two runs side by side in one round are comparable, two numbers
from different minutes are not. So every figure here is a ratio within a round, and its spread is printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["Skipped", "alternate", "heading", "report", "timed"]

Contestant = Callable[[], float]
"""Does the work once; returns the seconds it took."""


class Skipped(Exception):
    """A contestant that cannot take part; the text says why."""


def heading(title: str) -> None:
    """Print the title of a benchmark."""
    print(f"\n== {title}", flush=True)


def timed(work: Callable[[], object]) -> Contestant:
    """A contestant whose time is that of a whole call."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


def alternate(contestants: Mapping[str, Contestant], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Run all contestants in turn, `rounds` times after `warmup` rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    out: set[str] = set()
    for number in range(warmup + rounds):
        for name, run in contestants.items():
            if name in out:
                continue
            try:
                took = run()
            except Skipped as reason:
                print(f"   {name}: left out, {reason}")
                out.add(name)
                continue
            if number >= warmup:
                seconds[name].append(took)
    return {name: each for name, each in seconds.items() if each}


def report(
    seconds: Mapping[str, list[float]],
    baseline: str,
    *,
    amount: float | None = None,
    unit: str = "",
    goals: Mapping[str, str] | None = None,
) -> None:
    """Print each contestant's median, and its speed-up over the baseline: median, least, most.

    With an `amount` (blocks, gigabytes), also how much of it a second.
    """
    goals = goals or {}
    width = max(map(len, seconds))
    for name, each in seconds.items():
        median = statistics.median(each)
        line = f"   {name:{width}}  {median:8.3f} s"
        if amount is not None:
            line += f"  {amount / median:12,.{0 if amount / median > 100 else 2}f} {unit}"
        if name != baseline and baseline in seconds:
            ratios = [base / own for base, own in zip(seconds[baseline], each, strict=True)]
            line += (
                f"   speed-up over {baseline}: {statistics.median(ratios):.2f}"
                f" ({min(ratios):.2f} to {max(ratios):.2f})"
            )
        if name in goals:
            line += f"   [goal: {goals[name]}]"
        print(line, flush=True)
