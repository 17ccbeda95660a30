"""(a) and (b): a function that holds Python's global lock, and one that is heavy on NumPy."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from harness import Contestant, alternate, heading, report

from computemanager import Job, Settings, manager_class


def hold_the_lock(block: int) -> int:
    """Pure Python: about 0.1 s on one core."""
    total = 0
    for i in range(1_000_000):
        total += (i * block) % 7
    return total


def heavy_on_numpy(block: int) -> float:
    """About 0.1 s on one core, in vectorised functions that let go of the global lock."""
    x = np.linspace(block, block + 1, 250_000)
    for _ in range(12):
        x = np.sqrt(np.abs(np.sin(x))) + np.exp(-x)
    return float(x.sum())


def contestant(kind: str, workers: int, function: Any, blocks: int) -> Contestant:
    """A whole run, start-up included."""

    def run() -> float:
        started = time.perf_counter()
        for _ in manager_class(kind)(Settings(num_workers=workers)).run(Job(function), range(blocks)):
            pass
        return time.perf_counter() - started

    return run


def main(rounds: int = 5, blocks: int = 100) -> None:
    """Run both."""
    heading(f"(a) a function that holds the global lock, {blocks} blocks, start-up included")
    report(
        alternate(
            {
                "CW_NONE": contestant("CW_NONE", 1, hold_the_lock, blocks),
                "CW_SUBPROC x2": contestant("CW_SUBPROC", 2, hold_the_lock, blocks),
                "CW_THREADS x2": contestant("CW_THREADS", 2, hold_the_lock, blocks),
            },
            rounds,
            warmup=0,
        ),
        "CW_NONE",
        goals={"CW_SUBPROC x2": "at least 1.85 on 2 cores"},
    )
    heading(f"(b) a function that is heavy on NumPy, {blocks} blocks, start-up included")
    report(
        alternate(
            {
                "CW_NONE": contestant("CW_NONE", 1, heavy_on_numpy, blocks),
                "CW_THREADS x2": contestant("CW_THREADS", 2, heavy_on_numpy, blocks),
                "CW_SUBPROC x2": contestant("CW_SUBPROC", 2, heavy_on_numpy, blocks),
            },
            rounds,
            warmup=0,
        ),
        "CW_NONE",
        goals={"CW_THREADS x2": "at least 1.7 on 2 cores", "CW_SUBPROC x2": "at least 1.7 on 2 cores"},
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
