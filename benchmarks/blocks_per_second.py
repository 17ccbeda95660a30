"""(d) What a block costs at least: blocks that do nothing, and small tiles.

Ours always keeps order, window and recovery; peers are used as their manuals advise for throughput.
Starting workers is not in the figures of (d), for any of them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers
from harness import Contestant, Skipped, alternate, heading, report
from light_function import make_inputs, ours

import applier
from computemanager import Job, Settings, manager_class


def nothing(block: int) -> int:
    """The block itself."""
    return block


def noop_ours(kind: str, blocks: int, workers: int = 2) -> float:
    """Seconds for all blocks, after those that the workers needed to be there and to get going."""
    manager = manager_class(kind)(Settings(num_workers=workers))
    extra = 2000
    run = manager.run(Job(nothing), range(extra + blocks))
    for _ in range(extra):
        next(run)
    started = time.perf_counter()
    count = sum(1 for _ in run)
    seconds = time.perf_counter() - started
    assert count == blocks
    return seconds


def peer(work: Any, *arguments: int) -> Contestant:
    """A peer's function; one that is not installed is left out."""

    def run() -> float:
        try:
            return float(work(*arguments))
        except peers.PeerMissingError as error:
            raise Skipped(str(error)) from None

    return run


def small_tiles(folder: Path, size: int, window: int, **style: Any) -> Contestant:
    """The sum of two rasters in small windows."""
    a, b = folder / "a.tif", folder / "b.tif"

    def run() -> float:
        started = time.perf_counter()
        ours(a, b, folder / "out.tif", window=window, **style)
        return time.perf_counter() - started

    return run


def main(rounds: int = 5, blocks: int = 20_000, slow_blocks: int = 2_000) -> None:
    """Run all."""
    heading(f"(d) {blocks} blocks that do nothing, 2 workers, ordered and windowed")
    seconds = alternate(
        {
            "CW_SUBPROC x2": lambda: noop_ours("CW_SUBPROC", blocks),
            "CW_THREADS x2": lambda: noop_ours("CW_THREADS", blocks),
            "multiprocessing, Pool.imap": peer(peers.noop_multiprocessing, blocks),
            "multiprocessing, chunks of 64": peer(peers.noop_multiprocessing_chunks, blocks),
            "joblib (loky, automatic batches)": peer(peers.noop_joblib, blocks),
            "zmq, bare loop": peer(peers.noop_zmq, blocks),
        },
        rounds,
    )
    report(
        seconds,
        "multiprocessing, Pool.imap",
        amount=blocks,
        unit="blocks/s",
        goals={"CW_SUBPROC x2": "at least 50,000 blocks/s"},
    )
    heading(f"(d) the same, {slow_blocks} blocks, with the peers that are slower")
    report(
        alternate(
            {
                "CW_SUBPROC x2": lambda: noop_ours("CW_SUBPROC", slow_blocks),
                "dask.distributed": peer(peers.noop_dask, slow_blocks),
                "Ray": peer(peers.noop_ray, slow_blocks),
            },
            min(rounds, 3),
        ),
        "Ray",
        amount=slow_blocks,
        unit="blocks/s",
    )
    size = 2048
    heading(f"(d) small tiles: a sum over {size} x {size} x 3, start-up included")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, size)
        subproc = {"numComputeWorkers": 2, "computeWorkerKind": applier.CW_SUBPROC}
        report(
            alternate(
                {
                    "CW_NONE, 512": small_tiles(folder, size, 512),
                    "CW_NONE, 64": small_tiles(folder, size, 64),
                    "CW_SUBPROC x2, 64": small_tiles(folder, size, 64, **subproc),
                },
                rounds,
            ),
            "CW_NONE, 512",
            amount=(size / 64) ** 2,
            unit="tiles of 64 x 64 a second",
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
