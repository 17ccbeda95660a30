"""What `setCheckpoint` costs: the trivial function of (c), with and without it, by kind of worker."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import Contestant, alternate, heading, report, timed
from light_function import WINDOW, make_inputs, ours

import applier

STYLES: dict[str, dict[str, Any]] = {
    "CW_NONE": {},
    "CW_THREADS x2": {"numComputeWorkers": 2, "computeWorkerKind": applier.CW_THREADS},
    "CW_SUBPROC x2": {"numComputeWorkers": 2, "computeWorkerKind": applier.CW_SUBPROC},
}


def main(rounds: int = 5, size: int = 6000) -> None:
    """Run all."""
    heading(f"a checkpoint, on a trivial function on {size} x {size} x 3 uint16, window {WINDOW}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        a, b = make_inputs(folder, size)

        def call(**arguments: Any) -> Contestant:
            return timed(lambda: ours(a, b, folder / "out.tif", **arguments))

        for kind, style in STYLES.items():
            contestants = {
                kind: call(**style),
                "with a checkpoint": call(**style, checkpoint=folder / "kept"),
            }
            report(
                alternate(contestants, rounds),
                kind,
                goals={"with a checkpoint": "at least 0.91 (1.1 times the time without at most)"},
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
