"""Blocks that nobody has, and how far the job has got: ranges throughout, whatever the number of blocks."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from computemanager.scheduler.leases import as_range

__all__ = ["Backlog", "Frontier"]


class Backlog:
    """The blocks that wait for a worker.

    Fresh ones are one range. Returned ones are a heap of ranges, so that the lowest goes first: the caller
    waits for it. Suspects, which ended a worker, wait apart: they are for workers that have nothing else.

    Examples
    --------
    >>> backlog = Backlog()
    >>> backlog.plan(10)
    >>> backlog.take(4)
    range(0, 4)
    >>> backlog.give_back([1, 2])
    >>> backlog.take(1), backlog.take(3), backlog.take(3), backlog.waiting
    (range(1, 2), range(2, 3), range(4, 7), 3)
    """

    def __init__(self) -> None:
        self.planned = 0
        self._next_fresh = 0
        self._returned: list[tuple[int, int]] = []
        self._num_returned = 0
        self._suspects: list[int] = []

    @property
    def waiting(self) -> int:
        """How many blocks wait for a worker."""
        return self.planned - self._next_fresh + self._num_returned + len(self._suspects)

    @property
    def ordinary(self) -> int:
        """How many of them are not suspects."""
        return self.planned - self._next_fresh + self._num_returned

    @property
    def has_suspects(self) -> bool:
        """Whether a suspect waits."""
        return bool(self._suspects)

    def plan(self, number: int) -> None:
        """Add fresh blocks."""
        self.planned += number

    def give_back(self, blocks: Iterable[int]) -> None:
        """Take back blocks, in rising order, that were handed out."""
        if isinstance(blocks, range):
            if blocks:
                heapq.heappush(self._returned, (blocks.start, blocks.stop))
                self._num_returned += len(blocks)
            return
        start = stop = -1
        for block in blocks:
            self._num_returned += 1
            if block != stop:
                if stop > start:
                    heapq.heappush(self._returned, (start, stop))
                start = block
            stop = block + 1
        if stop > start:
            heapq.heappush(self._returned, (start, stop))

    def give_back_suspect(self, block: int) -> None:
        """Take back a block that ended its worker."""
        heapq.heappush(self._suspects, block)

    def suspect_is_next(self) -> bool:
        """Whether the lowest waiting block is a suspect."""
        if not self._suspects:
            return False
        lowest = self._returned[0][0] if self._returned else self._next_fresh
        return not self.ordinary or self._suspects[0] < lowest

    def take_suspect(self) -> Sequence[int]:
        """Hand out the lowest suspect, alone."""
        block = heapq.heappop(self._suspects)
        return range(block, block + 1)

    def take(self, most: int) -> Sequence[int]:
        """Hand out blocks that are not suspects: returned ones if there are any, else fresh ones."""
        if not self._returned:
            first = self._next_fresh
            self._next_fresh = min(first + most, self.planned)
            return range(first, self._next_fresh)
        taken: list[int] = []
        while self._returned and len(taken) < most:
            start, stop = self._returned[0]
            end = min(stop, start + most - len(taken))
            taken.extend(range(start, end))
            if end < stop:
                heapq.heapreplace(self._returned, (end, stop))
            else:
                heapq.heappop(self._returned)
        self._num_returned -= len(taken)
        return as_range(taken)

    def blocks_returned(self) -> list[int]:
        """All returned blocks and suspects, for `Scheduler.check`."""
        return [*self._suspects, *(block for start, stop in self._returned for block in range(start, stop))]

    def problems(self) -> list[str]:
        """What is wrong with these books, for `Scheduler.check`."""
        found = []
        if sum(stop - start for start, stop in self._returned) != self._num_returned:
            found.append("the number of returned blocks is wrong")
        if any(block >= self._next_fresh for block in self.blocks_returned()):
            found.append("a fresh block is returned")
        return found


class Frontier:
    """The lowest block that is not finished, and what is finished beyond it, as ranges.

    Examples
    --------
    >>> frontier = Frontier()
    >>> frontier.finish(range(2, 5)); frontier.finish((0,)); frontier.lowest
    1
    >>> frontier.finish((1,)); frontier.lowest, frontier.finished
    (5, 5)
    """

    def __init__(self) -> None:
        self.lowest = 0
        self.finished = 0
        self._beyond: dict[int, int] = {}  # the first of each range: the one after its last

    def finish(self, blocks: Sequence[int]) -> None:
        """Count blocks as finished."""
        self.finished += len(blocks)
        if isinstance(blocks, range):
            self._add(blocks.start, blocks.stop)
        else:
            for block in blocks:
                self._add(block, block + 1)

    def is_finished(self, block: int) -> bool:
        """Whether a block is finished; looks at every range, for `Scheduler.check`."""
        return block < self.lowest or any(first <= block < end for first, end in self._beyond.items())

    def _add(self, start: int, stop: int) -> None:
        if start != self.lowest:
            self._beyond[start] = stop
            return
        beyond = self._beyond
        while (further := beyond.pop(stop, None)) is not None:
            stop = further
        self.lowest = stop
