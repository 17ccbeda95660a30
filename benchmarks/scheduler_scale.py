"""What one event costs the scheduler, by the number of workers and of blocks: it should not matter.

No process, socket or waiting: workers are entries in a heap, on a clock of their own. Blocks take 10 s give
or take a half, so that each is a lease and an answer of its own. What is timed, in seconds of processor time,
is the scheduler and that heap.
"""

from __future__ import annotations

import heapq
import random
import sys
import time
import tracemalloc
from collections.abc import Sequence

from harness import heading

from computemanager.scheduler import (
    Accept,
    Action,
    Answered,
    Dispatch,
    Event,
    HostStarted,
    PlanEnded,
    Planned,
    Scheduler,
    SchedulerLimits,
    WorkerJoined,
)

BLOCK_S = 10.0
WORKERS = (10, 100, 1_000, 10_000)
BLOCKS = (1_000, 10_000, 100_000, 1_000_000)


class Paper:
    """A job of so many blocks on so many workers that need no processor."""

    def __init__(self, workers: int, blocks: int) -> None:
        self.window = max(1024, 256 * workers)
        self.blocks = blocks
        self.workers = workers
        self.scheduler = Scheduler(SchedulerLimits(workers, window=self.window), 0.0)
        self.now = 0.0
        self.events = self.planned = self.accepted = 0
        self._chance = random.Random(1)
        self._due: list[tuple[float, int, str, int]] = []
        self._free_at: dict[str, float] = {}

    def run(self) -> float:
        """Do the job; return the seconds of processor time it took, whoever else uses the machine."""
        started = time.process_time()
        self.pull()
        names = [f"w{number}" for number in range(self.workers)]
        for name in names:
            self.tell(HostStarted(name))
        for name in names:
            self.tell(WorkerJoined(name))
        while self._due:
            self.now, lease, worker, number = heapq.heappop(self._due)
            self.tell(Answered(worker, lease, number, number * BLOCK_S))
            self.pull()
        assert self.accepted == self.blocks, "every block counts once"
        return time.process_time() - started

    def pull(self) -> None:
        """Plan more where the window has room for it, as the farm does."""
        room = min(self.window - (self.planned - self.accepted), self.blocks - self.planned)
        if room >= min(64, self.blocks - self.planned) > 0:
            self.planned += room
            self.tell(Planned(room))
            if self.planned == self.blocks:
                self.tell(PlanEnded())

    def tell(self, event: Event) -> None:
        """Tell the scheduler, and do what it says."""
        self.events += 1
        self.carry_out(self.scheduler.handle(event, self.now))

    def carry_out(self, actions: Sequence[Action]) -> None:
        """Note what workers will do."""
        for action in actions:
            if isinstance(action, Dispatch):
                number = len(action.blocks)
                begins = max(self.now, self._free_at.get(action.worker, 0.0))
                ends = begins + number * BLOCK_S * self._chance.uniform(0.5, 1.5)
                self._free_at[action.worker] = ends
                heapq.heappush(self._due, (ends, action.lease, action.worker, number))
            elif isinstance(action, Accept):
                self.accepted += len(action.blocks)


def measure(workers: int, blocks: int) -> None:
    """Print a line: with memory, which is measured in a run of its own since that makes all slower."""
    paper = Paper(workers, blocks)
    seconds = paper.run()
    line = f"{workers:7,} workers  {blocks:9,} blocks  {paper.events:9,} events  {seconds:6.2f} s"
    line += f"  {paper.events / seconds:9,.0f} events/s  {1e6 * seconds / paper.events:6.1f} us an event"
    if blocks <= 100_000:
        tracemalloc.start()
        Paper(workers, blocks).run()
        line += f"  peak {tracemalloc.get_traced_memory()[1] / 1e6:6.1f} MB"
        tracemalloc.stop()
    print(f"   {line}", flush=True)


def main(largest: int = BLOCKS[-1]) -> None:
    """Both curves, and the largest of both together."""
    heading("scheduler: cost of an event by workers (goal: flat)")
    for workers in WORKERS:
        measure(workers, min(largest, 100_000))
    heading("scheduler: cost of an event by blocks, 100 workers (goal: flat)")
    for blocks in BLOCKS:
        measure(100, min(largest, blocks))
    heading("scheduler: 10,000 workers, 1,000,000 blocks, one process")
    measure(WORKERS[-1], largest)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
