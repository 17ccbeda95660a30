"""What one slow worker, or one that is killed, costs a job of equal blocks on four workers.

Blocks only sleep, so four workers are four workers on any machine. The slow one takes ten times as long for
each block; the least possible is then 65 blocks' time for 200 blocks instead of 50 (1.3 times), and needs a
scheduler that gives it nothing at the end. The killed one ends in the middle of the job with SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
import tempfile
import time

from harness import Contestant, alternate, heading, report

from computemanager import Job, Settings, manager_class

BLOCKS, WORKERS = 200, 4


def job(kind: str, seconds: float, *, slow: bool = False, kill: bool = False) -> Contestant:
    """The job; the worker that makes a certain file first is the slow one, or is killed."""

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            mark = pathlib.Path(folder) / "mark"

            def work(block: int) -> int:
                if block and (slow or (kill and block == BLOCKS // 2)):
                    with contextlib.suppress(FileExistsError), mark.open("x") as file:
                        file.write(str(os.getpid()))
                    is_it = mark.read_text() in ("", str(os.getpid()))
                    if is_it and kill:
                        time.sleep(seconds / 2)
                        os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(seconds * (10 if is_it else 1))
                else:
                    time.sleep(seconds)
                return block

            settings = Settings(num_workers=WORKERS)
            started = time.perf_counter()
            outcomes = manager_class(kind)(settings).run(Job(work), range(BLOCKS))
            values = [outcome.value for outcome in outcomes]
            took = time.perf_counter() - started
        assert values == list(range(BLOCKS))
        return took

    return run


def main(rounds: int = 3, seconds: float = 0.1) -> None:
    """Run the three jobs on local processes and on agents."""
    for kind in ("CW_SUBPROC", "CW_AGENTS"):
        heading(f"{BLOCKS} blocks of {seconds} s on {WORKERS} workers, {kind}")
        report(
            alternate(
                {
                    "all well": job(kind, seconds),
                    "one ten times slower": job(kind, seconds, slow=True),
                    "one killed half-way": job(kind, seconds, kill=True),
                },
                rounds,
                warmup=0,
            ),
            "all well",
            goals={"one ten times slower": "at least 1/1.3 = 0.77"},
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
