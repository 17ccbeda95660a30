"""How long blocks take: a histogram that forgets slowly, for figures that one odd block cannot spoil."""

from __future__ import annotations

import math

__all__ = ["Times"]

_LOWEST = -24  # 2**-24 s is 60 ns: no block takes less
_HIGHEST = 24
_SIZE = _HIGHEST - _LOWEST + 1
_FORGET_AT = 4096


class Times:
    """Seconds a block, counted in classes that double in width.

    When many are in, all counts are halved: what was seen lately weighs more, since the blocks at the end
    of a job may be unlike the first.

    Examples
    --------
    >>> times = Times()
    >>> times.typical is None
    True
    >>> for seconds in (1.0, 1.0, 1.1, 1.2, 50.0):
    ...     times.add(seconds)
    >>> 1.0 < times.typical < 1.2, times.upper(0.9)
    (True, 50.0)
    """

    __slots__ = ("_counts", "_highest", "_sums", "_total", "_typical")

    def __init__(self) -> None:
        self._counts = [0.0] * _SIZE
        self._sums = [0.0] * _SIZE
        self._highest = [0.0] * _SIZE
        self._total = 0.0
        self._typical: float | None = None

    @property
    def total(self) -> float:
        """How many blocks are in, old ones weighing less."""
        return self._total

    def add(self, seconds: float, number: int = 1) -> None:
        """Count `number` blocks that took so long each."""
        place = min(max(math.frexp(seconds)[1], _LOWEST), _HIGHEST) - _LOWEST if seconds > 0 else 0
        self._counts[place] += number
        self._sums[place] += number * seconds
        if seconds > self._highest[place]:
            self._highest[place] = seconds
        self._total += number
        self._typical = None
        if self._total >= _FORGET_AT:
            self._forget()

    @property
    def typical(self) -> float | None:
        """The median in seconds, as the mean of its class; None before the first block."""
        if self._typical is None and self._total:
            place = self._place_of(0.5)
            self._typical = self._sums[place] / self._counts[place]
        return self._typical

    def upper(self, share: float) -> float | None:
        """Seconds within which this share of the blocks is done, on the safe side; None before the first."""
        return self._highest[self._place_of(share)] if self._total else None

    def _place_of(self, share: float) -> int:
        wanted, seen = share * self._total, 0.0
        last = 0
        for place, count in enumerate(self._counts):
            if count:
                seen += count
                last = place
                if seen >= wanted:
                    break
        return last

    def _forget(self) -> None:
        self._total = 0.0
        for place, count in enumerate(self._counts):
            if count < 1.0:
                self._counts[place] = self._sums[place] = self._highest[place] = 0.0
            else:
                self._counts[place] = 0.5 * count
                self._sums[place] *= 0.5
                self._total += 0.5 * count
