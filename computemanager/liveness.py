"""Whether a peer is still there, and how quick the way to it is. No clock is read here."""

from __future__ import annotations

import math
from enum import Enum

__all__ = ["BEATS_IN_GRACE", "Health", "Liveness", "PieceSize"]

BEATS_IN_GRACE = 10
"""Heartbeats in a grace time: a few may be lost without anybody noticing."""


class Health(Enum):
    """What is to be thought of a peer."""

    WELL = "well"
    """Heard not long ago."""

    SILENT = "silent"
    """Not heard for some time: give it nothing new, but its answers still count."""

    GONE = "gone"
    """Not heard for so long that its work is to be done elsewhere."""


class Liveness:
    """Judges a peer by when it was last heard, on a clock that stands still while we are not looking.

    A process that was suspended or busy for minutes must not find all its peers dead: what they sent
    meanwhile lies unread in its socket.

    Parameters
    ----------
    now : float
        Time on a monotonic clock, in seconds. The peer counts as heard now.
    silent_s, grace_s : float
        How long after it was last heard the peer is silent, and gone, in seconds.

    Examples
    --------
    >>> peer = Liveness(100.0, silent_s=3.0, grace_s=30.0)
    >>> for now in (101.0, 102.0, 103.0):
    ...     peer.looked(now)
    >>> peer.state(103.0)
    <Health.SILENT: 'silent'>
    >>> peer.heard(104.0)
    >>> peer.looked(500.0)  # this process was suspended
    >>> peer.state(500.0)
    <Health.WELL: 'well'>
    """

    def __init__(self, now: float, silent_s: float, grace_s: float) -> None:
        if not 0.0 < silent_s <= grace_s:
            raise ValueError(f"silent_s is {silent_s} and grace_s {grace_s}; they must be above 0, and rise")
        self._silent_s = silent_s
        self._grace_s = grace_s
        self._heard = now  # moved on by pauses
        self._looked = now

    def heard(self, now: float) -> None:
        """A sign of life came."""
        self._heard = now
        self._looked = max(now, self._looked)

    def looked(self, now: float) -> None:
        """We looked for signs of life. Call it at each look, after `heard` for what was found.

        A pause between looks that is longer than `silent_s` / 2 does not count; `next_change` says when to
        look in order not to make one.
        """
        self._heard = self._effectively_heard(now)
        self._looked = max(now, self._looked)

    def state(self, now: float) -> Health:
        """What is to be thought of the peer."""
        heard = self._effectively_heard(now)
        if now >= heard + self._grace_s:
            return Health.GONE
        return Health.SILENT if now >= heard + self._silent_s else Health.WELL

    def next_change(self, now: float) -> float:
        """When to look again: when the state may change, or before, so that waiting is not taken for a pause.

        Infinite where the peer is gone.
        """
        state = self.state(now)
        if state is Health.GONE:
            return math.inf
        limit_s = self._silent_s if state is Health.WELL else self._grace_s
        return min(self._effectively_heard(now) + limit_s, now + self._silent_s / 4)

    def _effectively_heard(self, now: float) -> float:
        """When the peer was last heard, had there been no pause."""
        pause_s = now - self._looked
        return self._heard + pause_s if pause_s > self._silent_s / 2 else self._heard


class PieceSize:
    """How large a piece of a message may be on a connection, so that something arrives all the time.

    Only whole pieces are a sign of life. On a slow connection they must be small; on a fast one, small ones
    would cost more than they carry. A piece is what the connection carries in `PIECE_S`, as far as seen.

    Examples
    --------
    >>> size = PieceSize(0.0)
    >>> size.nbytes == PieceSize.LEAST
    True
    >>> size.saw(1.0, acknowledged=400_000_000, busy=True)
    >>> size.nbytes == PieceSize.MOST
    True
    """

    LEAST, MOST = 64 * 1024, 2 * 1024 * 1024
    PIECE_S = 0.1
    LOOK_S = 0.05

    def __init__(self, now: float) -> None:
        self.nbytes = self.LEAST
        self._seen_at = now
        self._seen = 0

    def saw(self, now: float, acknowledged: int, *, busy: bool) -> None:
        """Take note of all that has been acknowledged by now; `busy`: more is under way or waits."""
        elapsed_s = now - self._seen_at
        if elapsed_s < self.LOOK_S:
            return
        per_piece = (acknowledged - self._seen) / elapsed_s * self.PIECE_S
        self._seen_at, self._seen = now, acknowledged
        # What was sent in a pause says nothing about what the connection could have carried.
        if busy or per_piece > self.nbytes:
            self.nbytes = max(self.LEAST, min(self.MOST, int(0.5 * (self.nbytes + per_piece))))
