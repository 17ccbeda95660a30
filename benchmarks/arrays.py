"""(e) How fast arrays travel: from the caller to two worker processes and back, in plus out."""

from __future__ import annotations

import itertools
import sys
import time

import numpy as np
import peers
from blocks_per_second import peer
from harness import Contestant, alternate, heading, report

from computemanager import Job, Settings, manager_class


def echo_ours(nbytes: int, count: int) -> Contestant:
    """The library, in order and within its window; starting workers and warming up is left out."""

    def run() -> float:
        in_flight = peers.ARRAYS_IN_FLIGHT if nbytes >= 4 << 20 else 8 * peers.ARRAYS_IN_FLIGHT
        manager = manager_class("CW_SUBPROC")(Settings(num_workers=2, window_blocks=in_flight))
        extra = 4 * in_flight
        made = itertools.islice(itertools.cycle(peers.arrays(nbytes, 8)), extra + count)
        outcomes = manager.run(Job(peers.echo), made)
        for _ in range(extra):
            next(outcomes)
        started = time.perf_counter()
        received = [peers.seen(outcome.value) for outcome in outcomes]
        seconds = time.perf_counter() - started
        assert received == [((extra + number) % 8, nbytes) for number in range(count)]
        return seconds

    return run


def copied(nbytes: int, count: int) -> Contestant:
    """The bound: copying the same bytes twice within this process."""

    def run() -> float:
        source, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
        started = time.perf_counter()
        for _ in range(count):
            np.copyto(target, source)
            np.copyto(source, target)
        return time.perf_counter() - started

    return run


def main(rounds: int = 5) -> None:
    """Run both sizes."""
    for mebibytes, count in ((8, 200), (1, 1000)):
        nbytes = mebibytes << 20
        heading(f"(e) {count} arrays of {mebibytes} MiB, there and back, 2 workers")
        works = {
            "zmq, bare": peers.echo_zmq,
            "Ray": peers.echo_ray,
            "joblib (loky)": peers.echo_joblib,
            "multiprocessing": peers.echo_multiprocessing,
            "dask.distributed": peers.echo_dask,
        }
        contestants: dict[str, Contestant] = {"CW_SUBPROC x2": echo_ours(nbytes, count)}
        contestants |= {label: peer(work, nbytes, count) for label, work in works.items()}
        contestants["(two copies in one process)"] = copied(nbytes, count)
        report(
            alternate(contestants, rounds),
            "zmq, bare",
            amount=2 * nbytes * count / 1e9,
            unit="GB/s",
            goals={"CW_SUBPROC x2": "at least 6 GB/s"},
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
