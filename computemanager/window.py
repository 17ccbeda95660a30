"""The window: what has been pulled from the plan and not yet been taken by the caller.

Used by every manager, so that order and back-pressure are the same whatever runs the blocks. It counts
blocks from the moment they are pulled, keeps outcomes that came too early, and hands them out in order.
Beyond so many bytes it puts their values away with a spill (`computemanager.spill.Spill` is one on disk), so
that one slow block does not idle the rest. It does no input or output itself.
"""

from __future__ import annotations

from typing import Any, Protocol

from computemanager.errors import InternalError
from computemanager.model import Outcome

__all__ = ["SpillFull", "SpillSpace", "Window"]


class SpillFull(Exception):
    """A spill has no place for a value: it stays in memory. Never reaches the caller of a run."""


class SpillSpace(Protocol):
    """Where values wait that have no room in memory."""

    def put(self, value: Any) -> Any:
        """Keep a value; return a token for it. Raises `SpillFull` if it cannot be kept."""

    def get(self, token: Any) -> Any:
        """Give back the value of a token, and forget it."""


class Window:
    """Bounds and orders the outcomes of one run.

    Parameters
    ----------
    capacity : int
        Most blocks that may be pulled and not taken.
    ordered : bool
        Hand out in the order of the plan (default), or in order of arrival.
    memory_bytes : int, optional
        Most bytes of outcomes that wait for an earlier one in memory. Default: no limit.
    spill : SpillSpace, optional
        Where the values beyond `memory_bytes` go, to come back when it is their turn. Without one, or while
        it is full, they stay in memory and nothing more is pulled until they are below `memory_bytes`
        again: slower, but nothing is lost.

    Attributes
    ----------
    waiting_bytes : int
        Bytes of the outcomes that wait in memory.
    spilled_bytes : int
        Bytes of all the outcomes that have been spilled so far.

    Examples
    --------
    >>> window = Window(2)
    >>> window.admit(), window.admit(), window.room
    (0, 1, 0)
    >>> window.put(Outcome(1, "b", ""))
    >>> window.take() is None      # 0 is still missing
    True
    >>> window.put(Outcome(0, "a", ""))
    >>> window.take().value, window.take().value, window.room
    ('a', 'b', 2)
    """

    def __init__(
        self,
        capacity: int,
        *,
        ordered: bool = True,
        memory_bytes: int | None = None,
        spill: SpillSpace | None = None,
    ) -> None:
        self.capacity = capacity
        self.ordered = ordered
        self.memory_bytes = memory_bytes
        self.waiting_bytes = 0
        self.spilled_bytes = 0
        self._spill = spill
        self._pulled = 0
        self._taken = 0
        self._latest_bytes = 0
        self._waiting: dict[int, Outcome] = {}
        # Of those among them that take memory, or are on disk; most outcomes are small, and in neither.
        self._bytes: dict[int, int] = {}
        self._tokens: dict[int, Any] = {}

    @property
    def room(self) -> int:
        """How many more blocks may be pulled now.

        None while more bytes wait in memory than may. None either while the caller has an outcome to take and
        memory would not hold another: then it is the caller who is slow, and disk would not make it quicker.
        """
        if self.memory_bytes is not None and self._bytes:
            is_next_there = self._taken in self._waiting if self.ordered else bool(self._waiting)
            another = self._latest_bytes if is_next_there else 0
            if self.waiting_bytes + another > self.memory_bytes:
                return 0
        return self.capacity - (self._pulled - self._taken)

    @property
    def outstanding(self) -> int:
        """How many blocks are pulled and not taken."""
        return self._pulled - self._taken

    def admit(self) -> int:
        """Count one more pulled block; return its index."""
        if self._pulled - self._taken >= self.capacity:
            raise InternalError(f"a block was pulled although {self.capacity} are in the window")
        self._pulled += 1
        return self._pulled - 1

    def put(self, outcome: Outcome, nbytes: int = 0) -> None:
        """Add the outcome of a pulled block.

        Parameters
        ----------
        outcome : Outcome
        nbytes : int
            About how much memory its value takes.
        """
        index, waiting = outcome.block_index, self._waiting
        if index in waiting or index >= self._pulled or (self.ordered and index < self._taken):
            raise InternalError(f"a second or unasked outcome for block {index}")
        # The one whose turn it is, is on its way to the caller.
        if nbytes and (index != self._taken if self.ordered else waiting):
            outcome = self._weighed(outcome, nbytes)
        waiting[index] = outcome

    def take(self) -> Outcome | None:
        """Remove and return the outcome whose turn it is, or None while it is not there."""
        waiting = self._waiting
        if self.ordered:
            outcome = waiting.pop(self._taken, None)
        else:
            outcome = waiting.pop(next(iter(waiting))) if waiting else None
        if outcome is None:
            return None
        self._taken += 1
        if self._bytes:
            self.waiting_bytes -= self._bytes.pop(outcome.block_index, 0)
        if self._tokens and (token := self._tokens.pop(outcome.block_index, None)) is not None:
            assert self._spill is not None
            return outcome._replace(value=self._spill.get(token))
        return outcome

    def _weighed(self, outcome: Outcome, nbytes: int) -> Outcome:
        """Count an outcome that waits, or put its value on disk; the outcome that is to wait."""
        self._latest_bytes = nbytes
        is_full = self.memory_bytes is not None and self.waiting_bytes + nbytes > self.memory_bytes
        if is_full and self._spill is not None:
            try:
                self._tokens[outcome.block_index] = self._spill.put(outcome.value)
            except SpillFull:
                pass  # more than memory_bytes now, so there is no room for more
            else:
                self.spilled_bytes += nbytes
                return outcome._replace(value=None)
        self._bytes[outcome.block_index] = nbytes
        self.waiting_bytes += nbytes
        return outcome
