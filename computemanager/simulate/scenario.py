"""What a simulated job is made of: the work, the workers, and what happens to them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Scenario"]


@dataclass(frozen=True)
class Scenario:
    """A job and what happens to it. The defaults are a calm day; `draw` makes up a bad one.

    Times are seconds of the simulated clock; chances are from 0 to 1.

    Attributes
    ----------
    blocks, hosts, slots, window : int
        How many.
    ordered, local : bool
        Outcomes in order; a host is one worker, as local processes are.
    block_s, spread : float
        Usual time of a block, and the sigma of its lognormal distribution.
    slow_blocks : dict of int to float
        Blocks that take so many times longer.
    slowness : tuple of float
        How many times slower than usual the first, second ... host is; the last one goes for all others.
    start_s, delay_s, caller_s, overhead_s : float
        What it takes to start a host, to carry a message, the caller to take an outcome, and a worker to
        begin with a lease.
    raising, killing, hanging : dict of int to int
        Blocks whose first so many attempts raise, end their slot, or do not end.
    block_timeout_s : float or None
        The limit that ends blocks which hang.
    slot_life_s, host_life_s, host_ends_s, until_cut_s, until_freeze_s, until_drain_s : float or None
        Mean time until it happens; None for never. `host_ends_s` is a time that is known before.
    cut_s, freeze_s : float
        How long a host is cut off, and a slot stands still, on average.
    silent_s, grace_s : float
        When a host that is not heard of is called silent, and gone.
    start_failure, hopeless, no_blame, duplicate, no_handing_in : float
        Chances: a host ends before it joins; for good; what a dead slot was on is not known; an answer comes
        twice; the blocks before one that raises are not handed in.
    limits : dict
        What to set of `SchedulerLimits`.
    """

    blocks: int = 100
    hosts: int = 4
    slots: int = 1
    window: int = 1024
    ordered: bool = True
    local: bool = False
    block_s: float = 1.0
    spread: float = 0.0
    slow_blocks: dict[int, float] = field(default_factory=dict)
    slowness: tuple[float, ...] = (1.0,)
    start_s: float = 0.0
    delay_s: float = 0.0
    caller_s: float = 0.0
    overhead_s: float = 0.0
    raising: dict[int, int] = field(default_factory=dict)
    killing: dict[int, int] = field(default_factory=dict)
    hanging: dict[int, int] = field(default_factory=dict)
    block_timeout_s: float | None = None
    slot_life_s: float | None = None
    host_life_s: float | None = None
    host_ends_s: float | None = None
    until_cut_s: float | None = None
    until_freeze_s: float | None = None
    until_drain_s: float | None = None
    cut_s: float = 10.0
    freeze_s: float = 10.0
    silent_s: float = 3.0
    grace_s: float = 30.0
    start_failure: float = 0.0
    hopeless: float = 0.0
    no_blame: float = 0.0
    duplicate: float = 0.0
    no_handing_in: float = 0.0
    limits: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def draw(chance: random.Random) -> Scenario:
        """Make up a job and a bad day."""
        blocks = int(chance.choice((1, 5, 40, 120, 250)) * chance.uniform(0.5, 1.5)) + 1
        hosts = chance.choice((1, 1, 2, 3, 4, 6, 10))
        block_s = 10 ** chance.uniform(-5, 2)
        job_s = max(30.0, block_s * blocks / hosts)
        local = chance.random() < 0.3
        remote = not local

        def now_and_then(*choices: float) -> float | None:
            return chance.choice((None, None, *choices))

        def some_blocks(most: int) -> dict[int, int]:
            if chance.random() < 0.7:
                return {}
            found = (chance.randrange(blocks) for _ in range(chance.randint(1, 3)))
            return {block: chance.choice((1, 1, 2, most)) for block in found}

        limits: dict[str, Any] = {
            "max_raises_per_block": chance.choice((1, 1, 2, 3)),
            "max_kills_per_block": chance.choice((1, 2, 3)),
            "max_timeouts_per_block": chance.choice((1, 2)),
            "max_losses_per_block": chance.choice((2, 20, 20)),
            "skip": chance.random() < 0.5,
            "speculate": chance.random() < 0.75,
            "min_workers": chance.randint(1, hosts),
            "start_timeout_s": now_and_then(40.0, 20.0 * (1 + job_s)),
            "outcome_timeout_s": now_and_then(100.0 * (1 + block_s)),
        }
        timeout_s = now_and_then(300.0 * block_s + 1.0)
        return Scenario(
            blocks=blocks,
            hosts=hosts,
            slots=1 if local else chance.choice((1, 1, 2, 4)),
            window=chance.choice((1, 2, 7, 64, 1024)),
            ordered=chance.random() < 0.8,
            local=local,
            block_s=block_s,
            spread=chance.choice((0.0, 0.3, 1.0)),
            slow_blocks={chance.randrange(blocks): 100.0} if chance.random() < 0.3 else {},
            slowness=tuple(min(50.0, chance.paretovariate(1.5)) for _ in range(hosts)),
            start_s=chance.choice((0.0, 0.5, 60.0)),
            delay_s=0.0 if local else chance.choice((0.0, 0.001, 0.1)),
            caller_s=chance.choice((0.0, 0.0, block_s / hosts)),
            overhead_s=chance.choice((0.0, 0.0, min(0.1, block_s))),
            raising=some_blocks(99),
            killing=some_blocks(99),
            hanging=some_blocks(99) if timeout_s is not None else {},
            block_timeout_s=timeout_s,
            slot_life_s=now_and_then(job_s, 5 * job_s),
            host_life_s=now_and_then(job_s, 5 * job_s) if remote else None,
            host_ends_s=now_and_then(job_s / 2, 2 * job_s + 200 * block_s) if remote else None,
            until_cut_s=now_and_then(job_s / 4, job_s) if remote else None,
            until_freeze_s=now_and_then(job_s),
            until_drain_s=now_and_then(job_s, 4 * job_s) if remote else None,
            cut_s=chance.choice((1.0, 5.0, 60.0)),
            freeze_s=chance.choice((0.1, 10.0, job_s)),
            start_failure=chance.choice((0.0, 0.0, 0.2)),
            hopeless=chance.choice((0.0, 0.0, 0.1)),
            no_blame=chance.choice((0.0, 0.2)),
            duplicate=chance.choice((0.0, 0.1)),
            no_handing_in=0.5,
            limits=limits,
        )
