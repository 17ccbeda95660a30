"""The window: what has been pulled from the plan and not yet been taken by the caller.

Used by every manager, so that order and back-pressure are the same whatever runs the blocks. It counts
blocks from the moment they are pulled, keeps outcomes that came too early, and hands them out in order.
"""

from __future__ import annotations

from computemanager.errors import InternalError
from computemanager.model import Outcome

__all__ = ["Window"]


class Window:
    """Bounds and orders the outcomes of one run.

    Parameters
    ----------
    capacity : int
        Most blocks that may be pulled and not taken.
    ordered : bool
        Hand out in the order of the plan (default), or in order of arrival.

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

    def __init__(self, capacity: int, *, ordered: bool = True) -> None:
        self.capacity = capacity
        self.ordered = ordered
        self._pulled = 0
        self._taken = 0
        self._waiting: dict[int, Outcome] = {}

    @property
    def room(self) -> int:
        """How many more blocks may be pulled now."""
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

    def put(self, outcome: Outcome) -> None:
        """Add the outcome of a pulled block."""
        index = outcome.block_index
        if index in self._waiting or index >= self._pulled or (self.ordered and index < self._taken):
            raise InternalError(f"a second or unasked outcome for block {index}")
        self._waiting[index] = outcome

    def take(self) -> Outcome | None:
        """Remove and return the outcome whose turn it is, or None while it is not there."""
        waiting = self._waiting
        if self.ordered:
            outcome = waiting.pop(self._taken, None)
        elif waiting:
            outcome = waiting.pop(next(iter(waiting)))
        else:
            outcome = None
        if outcome is not None:
            self._taken += 1
        return outcome
