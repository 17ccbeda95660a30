"""The command: run seeds, and print what came of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from computemanager.simulate.audit import Violation
from computemanager.simulate.simulation import Simulation

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``computemanager simulate``; return the exit code: 1 if a promise was broken.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the command's name. Default: those of the process.

    Examples
    --------
    >>> main(["--seed", "1", "--blocks", "4"])  # doctest: +ELLIPSIS
    seed 1: ...
    0
    """
    parser = argparse.ArgumentParser(
        prog="computemanager simulate",
        description="Run the scheduler on a simulated day with workers that die, freeze and are cut off, and "
        "check that every block counts exactly once.",
    )
    parser.add_argument("--seed", type=int, required=True, help="what the day is made of")
    parser.add_argument("--seeds", type=int, default=1, metavar="COUNT", help="run so many, from --seed on")
    parser.add_argument("--blocks", type=int, help="blocks of the job, instead of what the seed says")
    parser.add_argument("--hosts", type=int, help="hosts to keep running, instead of what the seed says")
    parser.add_argument("--trace", action="store_true", help="print every event and action")
    arguments = parser.parse_args(argv)
    overrides = {
        name: value
        for name, value in (("blocks", arguments.blocks), ("hosts", arguments.hosts))
        if value is not None
    }
    for name, value in {**overrides, "seeds": arguments.seeds}.items():
        if value < 1:
            parser.error(f"--{name} is {value}; give a number of at least 1")
    broken = 0
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        try:
            text = Simulation(seed, trace=_write if arguments.trace else None, **overrides).run().summary()
        except Violation as violation:
            broken += 1
            text = f"seed {seed}: BROKEN: {violation}"
        _write(text)
    return 1 if broken else 0


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
