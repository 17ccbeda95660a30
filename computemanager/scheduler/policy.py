"""The scheduler's judgement: pure functions of figures, so that each can be read, tested and argued about."""

from __future__ import annotations

import math

__all__ = [
    "ANSWER_AFTER_S",
    "ENOUGH_TIMES",
    "LATE_FACTOR",
    "LEAST_DELAY_S",
    "LOOK_AT",
    "MAX_BATCH",
    "MAX_CREDIT",
    "QUEUE_AHEAD_BELOW_S",
    "SURE_SHARE",
    "TIME_MARGIN",
    "batch_size",
    "blocks_in_time",
    "copy_after_s",
    "is_quick",
    "lease_target_s",
    "may_queue_ahead",
    "rate_of",
    "rest_s",
    "start_failures_allowed",
    "weight_of_end",
]

MAX_BATCH = 256
"""Most blocks in one lease: beyond it, a message costs next to nothing a block already (measured)."""

MAX_CREDIT = 8
"""Most leases a worker holds at once."""

QUEUE_AHEAD_BELOW_S = 0.05
"""A worker whose blocks take longer gets the next one only when it is done: a round trip, also to another
site, is little to it, and a block queued behind a slow one is a block that an idle worker could have had."""

LEASE_S = 0.002
"""Time a lease should be worth. Short, so that outcomes come back smoothly and what a lease holds stays in
the processor's cache; long beside what a message costs (about 0.1 ms for both ends)."""

LEASE_S_PER_WORKER = 0.0002
"""With many workers the caller's side becomes the narrow place: leases grow with their number."""

OVERHEAD_SHARE = 0.05
"""A worker's cost a lease (packing its copy of the state, say) may be this share of the lease."""


ANSWER_AFTER_S = 0.005
"""Workers hand in what they have at least this often, between two blocks."""

LATE_FACTOR = 1.5
"""A worker that has needed so many times the usual time for its next answer is late."""

LEAST_DELAY_S = 0.02
"""Nobody is late before that: messages take their time, too."""

TIME_MARGIN = 1.25
"""Blocks are assumed to take so many times longer than 90 % of them did, where a worker has to be done by a
certain time."""

SURE_SHARE = 0.9
"""The share of blocks that an estimate on the safe side should cover."""

ENOUGH_TIMES = 8
"""With fewer blocks behind it, a worker's own times are not the whole truth about it."""

LOOK_AT = 4
"""How many idle workers are compared before one gets a copy."""


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


def is_quick(seconds_per_block: float | None) -> bool:
    """Whether a busy worker may be given a further lease: not before it has shown how quick it is.

    Examples
    --------
    >>> is_quick(None), is_quick(0.01), is_quick(2.0)
    (False, True, False)
    """
    return seconds_per_block is not None and seconds_per_block < QUEUE_AHEAD_BELOW_S


def may_queue_ahead(waiting_blocks: int, workers: int) -> bool:
    """Whether busy workers may be given more at all: not what could go to those that are idle first.

    Examples
    --------
    >>> may_queue_ahead(100, 2), may_queue_ahead(2, 2)
    (True, False)
    """
    return waiting_blocks > workers


def rate_of(seconds_per_block: float) -> int:
    """Blocks in 1e9 seconds.

    Examples
    --------
    >>> rate_of(0.5)
    2000000000
    """
    return max(1, round(1e9 / max(seconds_per_block, 1e-9)))


def rest_s(seconds_per_block: float | None, unfinished: int, others_rate: int, others: int) -> float | None:
    """How long a slow worker is better left without work; None if it should have some.

    It is, if the others are expected to have finished everything that is left before it could finish one
    block. They are given the time of one block of theirs on top, since the last blocks do not end together.

    Examples
    --------
    >>> three = 3 * rate_of(1.0)
    >>> rest_s(10.0, 12, three, 3), rest_s(10.0, 60, three, 3), rest_s(1.0, 1, three, 3)
    (5.0, None, None)
    """
    if seconds_per_block is None or seconds_per_block < LEASE_S or others == 0:
        return None
    done_in = 1e9 * (unfinished + others) / others_rate
    return done_in if seconds_per_block > done_in else None


def blocks_in_time(seconds: float, upper_s: float | None) -> int:
    """How many blocks are sure to be done in some seconds, if one takes `upper_s` at the most.

    Where nobody knows yet, one may be tried.

    Examples
    --------
    >>> blocks_in_time(60.0, 10.0), blocks_in_time(60.0, None), blocks_in_time(-1.0, None)
    (4, 1, 0)
    """
    if seconds <= 0:
        return 0
    if upper_s is None:
        return 1
    return MAX_BATCH if upper_s <= 0 else min(MAX_BATCH, int(seconds / (upper_s * TIME_MARGIN)))


def copy_after_s(blocks: int, typical_s: float, own_s: float, holder_s: float | None) -> float:
    """When the rest of a lease is worth a copy, in seconds since its holder's last sign of progress.

    Not before its next answer is late; and not before an idle worker is expected to finish first, either
    because the holder is known to be slow, or because it has taken longer already than the other will need.

    Parameters
    ----------
    blocks : int
        How many blocks are left of the lease.
    typical_s, own_s : float
        Seconds a block takes usually, and the idle worker.
    holder_s : float or None
        Seconds a block takes the one that has the lease, if that is known.

    Examples
    --------
    >>> copy_after_s(1, 1.0, 1.0, 1.0), copy_after_s(1, 1.0, 4.0, 1.0), copy_after_s(1, 1.0, 4.0, 10.0)
    (1.5, 4.0, 1.5)
    """
    until_answer = blocks if typical_s <= 0 else max(1, min(blocks, math.ceil(ANSWER_AFTER_S / typical_s)))
    late = max(LATE_FACTOR * typical_s * until_answer, LEAST_DELAY_S)
    own = blocks * own_s
    if holder_s is not None and late < blocks * holder_s - own:
        return late
    return max(late, own)


def weight_of_end(*, was_taken: bool) -> float:
    """How much an end counts towards giving up, where no block is to blame and none is finished in between.

    A machine that is taken away, or lost in the middle of its work, says little: where machines are cheap,
    blocks may take longer than they last, and each block counts its own losses. Only if it goes on and on
    is there something wrong with the job.

    Examples
    --------
    >>> weight_of_end(was_taken=False), weight_of_end(was_taken=True)
    (1.0, 0.2)
    """
    return 0.2 if was_taken else 1.0


def start_failures_allowed(hosts: int) -> int:
    """How many hosts or workers may end in a row, no block finished in between, before the job is given up.

    Examples
    --------
    >>> start_failures_allowed(2)
    4
    """
    return max(4, hosts + 1)
