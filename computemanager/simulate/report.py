"""What came of a simulated job."""

from __future__ import annotations

from dataclasses import dataclass

from computemanager.scheduler import GiveUp

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """How a simulated job went.

    Attributes
    ----------
    seed, blocks, accepted, skipped, events, hosts : int
        `events` is how many the scheduler was told, `hosts` how many were started.
    makespan_s : float
        When the last outcome was taken, on the simulated clock.
    gave_up : GiveUp or None
        What ended the job, if it was not done.
    retries, workers_lost, speculated, stale_answers : int
        As the scheduler counted.
    """

    seed: int
    blocks: int
    accepted: int
    skipped: int
    makespan_s: float
    events: int
    hosts: int
    retries: int
    workers_lost: int
    speculated: int
    stale_answers: int
    gave_up: GiveUp | None

    def summary(self) -> str:
        """One line."""
        end = "done" if self.gave_up is None else f"given up: {self.gave_up.cause.value}"
        return (
            f"seed {self.seed}: {end} after {self.makespan_s:,.3f} s, "
            f"{self.accepted} of {self.blocks} blocks, "
            f"{self.skipped} skipped, {self.retries} retried, {self.speculated} copied, "
            f"{self.stale_answers} stale, {self.workers_lost} workers lost of {self.hosts} hosts, "
            f"{self.events} events"
        )
