"""What has gone wrong with which block, counted by cause: kept only for blocks with trouble."""

from __future__ import annotations

from collections.abc import Iterable

from computemanager.scheduler.actions import Cause
from computemanager.scheduler.limits import SchedulerLimits

__all__ = ["Trouble"]

_BLAMED = (Cause.POISON_BLOCK, Cause.BLOCK_TIMEOUT)


class Trouble:
    """Counts of failed attempts.

    Parameters
    ----------
    limits : SchedulerLimits
        How many of each are too many.

    Examples
    --------
    >>> trouble = Trouble(SchedulerLimits(num_workers=1, max_kills_per_block=2))
    >>> trouble.add(7, Cause.POISON_BLOCK), trouble.at_limit(7, Cause.POISON_BLOCK), trouble.is_suspect(7)
    (1, False, True)
    >>> trouble.add(7, Cause.POISON_BLOCK), trouble.at_limit(7, Cause.POISON_BLOCK)
    (2, True)
    >>> trouble.clear([7])
    >>> trouble.is_suspect(7)
    False
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = {
            Cause.USER_EXCEPTION: limits.max_raises_per_block,
            Cause.POISON_BLOCK: limits.max_kills_per_block,
            Cause.BLOCK_TIMEOUT: limits.max_timeouts_per_block,
            Cause.LOST_TOO_OFTEN: limits.max_losses_per_block,
        }
        self._counts: dict[int, dict[Cause, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, block: int, cause: Cause) -> int:
        """Count one more failed attempt; return how many of this cause there are now."""
        counts = self._counts.setdefault(block, {})
        counts[cause] = counts.get(cause, 0) + 1
        return counts[cause]

    def at_limit(self, block: int, cause: Cause) -> bool:
        """Whether a block has failed as often as it may."""
        return self._counts.get(block, {}).get(cause, 0) >= self._limits[cause]

    def is_suspect(self, block: int) -> bool:
        """Whether a worker has ended on this block: it goes alone, so that nothing goes down with it."""
        counts = self._counts.get(block)
        return counts is not None and any(cause in counts for cause in _BLAMED)

    def clear(self, blocks: Iterable[int]) -> None:
        """Forget what is known of blocks that are finished."""
        for block in blocks:
            self._counts.pop(block, None)

    def problems(self) -> list[str]:
        """What is wrong with the counts; for `Scheduler.check`."""
        return [
            f"block {block} has {number} x {cause.value}, more than the limit"
            for block, counts in self._counts.items()
            for cause, number in counts.items()
            if number > self._limits[cause]
        ]
