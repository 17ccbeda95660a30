"""The scheduler's judgement: pure functions of figures, so that each can be read, tested and argued about."""

from __future__ import annotations

__all__ = [
    "MAX_BATCH",
    "MAX_CREDIT",
    "QUEUE_AHEAD_BELOW_S",
    "batch_size",
    "lease_target_s",
    "may_queue_ahead",
    "start_failures_allowed",
]

MAX_BATCH = 256
"""Most blocks in one lease: beyond it, a message costs next to nothing a block already (measured)."""

MAX_CREDIT = 8
"""Most leases a worker holds at once."""

QUEUE_AHEAD_BELOW_S = 1.0
"""A worker whose blocks take longer gets the next one only when it is done: the round trip is nothing to
it, and a block queued behind a slow one is a block that an idle worker could have had."""

LEASE_S = 0.002
"""Time a lease should be worth. Short, so that outcomes come back smoothly and what a lease holds stays in
the processor's cache; long beside what a message costs (about 0.1 ms for both ends)."""

LEASE_S_PER_WORKER = 0.0002
"""With many workers the caller's side becomes the narrow place: leases grow with their number."""

OVERHEAD_SHARE = 0.05
"""A worker's cost a lease (packing its copy of the state, say) may be this share of the lease."""


def lease_target_s(workers: int, overhead_s: float) -> float:
    """Seconds of work that one lease should hold.

    Examples
    --------
    >>> lease_target_s(2, 0.0)
    0.002
    >>> lease_target_s(2, 0.025)    # 25 ms of overhead a lease: half a second of work, to keep it at 5 %
    0.5
    """
    return max(LEASE_S, LEASE_S_PER_WORKER * workers, overhead_s / OVERHEAD_SHARE)


def batch_size(previous: int, seconds_per_block: float, target_s: float, fair_share: int) -> int:
    """How many blocks the next lease should hold.

    Grows by four at the most from one lease to the next, since the first blocks of a job may be unlike the
    rest; shrinks at once.

    Examples
    --------
    >>> batch_size(1, 1e-6, 0.002, 1000)
    4
    >>> batch_size(64, 1.0, 0.002, 1000)
    1
    >>> batch_size(64, 1e-6, 0.002, 10)
    10
    """
    wanted = target_s / seconds_per_block if seconds_per_block > 0 else MAX_BATCH
    return max(1, int(min(wanted, 4 * previous, fair_share, MAX_BATCH)))


def may_queue_ahead(seconds_per_block: float | None, waiting_blocks: int, workers: int) -> bool:
    """Whether a busy worker may be given a further lease.

    Not before it has shown how quick it is, not when its blocks are long, and not when what is left could
    go to workers that run out of work first.

    Examples
    --------
    >>> may_queue_ahead(None, 100, 2), may_queue_ahead(0.01, 100, 2), may_queue_ahead(0.01, 2, 2)
    (False, True, False)
    """
    return (
        seconds_per_block is not None and seconds_per_block < QUEUE_AHEAD_BELOW_S and waiting_blocks > workers
    )


def start_failures_allowed(workers: int) -> int:
    """How many workers may end in a row, with no block finished in between, before the job is given up.

    Examples
    --------
    >>> start_failures_allowed(2)
    4
    """
    return max(4, workers + 1)
