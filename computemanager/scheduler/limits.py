"""What the caller has set, as far as the scheduler goes by it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SchedulerLimits"]


@dataclass(frozen=True)
class SchedulerLimits:
    """What the caller has set; see `computemanager.Settings` for what the limits are for.

    Attributes
    ----------
    num_workers : int
        Hosts to keep running while there is work for them.
    window : int
        The window in blocks: a lease never holds more than a worker's fair share of it.
    max_raises_per_block, max_kills_per_block, max_timeouts_per_block, max_losses_per_block : int
        How often a block is tried, counted by cause, before the job ends.
    skip : bool
        Go on without a block that has reached a limit (not that of losses: there the block is not at fault).
    speculate : bool
        Run blocks of silent or slow workers a second time elsewhere.
    min_workers : int
        Hosts with a worker that has joined, without which the job does not go on for longer than
        `start_timeout_s`.
    start_timeout_s : float or None
        How long there may be fewer than `min_workers`, in seconds.
    outcome_timeout_s : float or None
        How long no block may be finished while some are being computed, in seconds.
    """

    num_workers: int
    window: int = 1024
    max_raises_per_block: int = 1
    max_kills_per_block: int = 3
    max_timeouts_per_block: int = 2
    max_losses_per_block: int = 20
    skip: bool = False
    speculate: bool = True
    min_workers: int = 1
    start_timeout_s: float | None = None
    outcome_timeout_s: float | None = None
