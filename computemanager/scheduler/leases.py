"""Blocks on loan: leases, and the stretches of blocks that one or two leases are on.

A lease is answered in order, so what is done of it is a number and not a set. Where blocks are run a second
time elsewhere, two leases are on the same stretch: the second one begins where the first had got to, and a
block counts when either gets past it. What both have not got past yet comes back when both are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from computemanager.scheduler.roster import Worker

__all__ = ["Lease", "Stretch", "as_range"]


class Stretch:
    """Blocks that were lent out together.

    Attributes
    ----------
    blocks : sequence of int
        All of them, in the order in which they are worked on.
    accepted : int
        So many from the first on are finished.
    leases : list of Lease
        Who is on it: one, or two where a copy runs.
    skipped : set of int
        Positions beyond `accepted` that are finished without a value.
    suspect : bool
        A worker has ended on one of the blocks.
    """

    __slots__ = ("accepted", "blocks", "leases", "skipped", "suspect")

    def __init__(self, blocks: Sequence[int], *, suspect: bool = False) -> None:
        self.blocks = blocks
        self.suspect = suspect
        self.accepted = 0
        self.leases: list[Lease] = []
        self.skipped: set[int] = set()

    @property
    def rest(self) -> Sequence[int]:
        """The blocks that are not finished."""
        if not self.skipped:
            return self.blocks[self.accepted :]
        return tuple(
            self.blocks[position]
            for position in range(self.accepted, len(self.blocks))
            if position not in self.skipped
        )

    @property
    def left(self) -> int:
        """How many blocks are not finished."""
        return len(self.blocks) - self.accepted - len(self.skipped)

    def advance(self, start: int, stop: int) -> list[int] | range:
        """Count positions from `start` up to `stop` as answered; return those that were not finished yet."""
        first = start if start > self.accepted else self.accepted
        if stop <= first:
            return range(0)
        fresh: list[int] | range = range(first, stop)
        if self.skipped:
            fresh = [position for position in fresh if position not in self.skipped]
        self.accepted = stop
        if self.skipped:
            self._pass_skipped()
        return fresh

    def skip(self, position: int) -> None:
        """Count one block as finished without a value."""
        self.skipped.add(position)
        self._pass_skipped()

    def is_finished(self, position: int) -> bool:
        """Whether the block at this position needs no more work."""
        return position < self.accepted or position in self.skipped

    def _pass_skipped(self) -> None:
        while self.accepted in self.skipped:
            self.accepted += 1
        self.skipped = {position for position in self.skipped if position >= self.accepted}


class Lease:
    """What one worker has been lent: a stretch from `start` on, of which it has handed in `done` blocks.

    `recalled` says that it was asked for back; `silent_at` is the block under which `Stragglers` knows it
    while its worker is silent.
    """

    __slots__ = ("done", "number", "recalled", "silent_at", "start", "stretch", "worker")

    def __init__(self, number: int, worker: Worker, stretch: Stretch, start: int) -> None:
        self.number = number
        self.worker = worker
        self.stretch = stretch
        self.start = start
        self.done = 0
        self.recalled = False
        self.silent_at: int | None = None

    @property
    def position(self) -> int:
        """Where in the stretch the next answer begins."""
        return self.start + self.done

    @property
    def outstanding(self) -> int:
        """How many blocks have not been handed in, finished elsewhere or not."""
        return len(self.stretch.blocks) - self.start - self.done

    @property
    def may_be_copied(self) -> bool:
        """Whether there is something to run a second time: not twice, and no block that ends workers."""
        stretch = self.stretch
        return (
            len(stretch.leases) == 1
            and stretch.accepted < len(stretch.blocks)
            and not stretch.suspect
            and not stretch.skipped
        )


def as_range(blocks: list[int]) -> Sequence[int]:
    """The same blocks, as a range where they follow each other.

    Examples
    --------
    >>> as_range([4, 5, 6]), as_range([4, 6])
    (range(4, 7), (4, 6))
    """
    first, last = blocks[0], blocks[-1]
    return range(first, last + 1) if last - first == len(blocks) - 1 else tuple(blocks)
