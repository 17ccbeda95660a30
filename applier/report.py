"""`ApplierReturn`: what `applier.apply` gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from applier.timers import Timers

if TYPE_CHECKING:
    from applier.raster.grid import PixelGrid
    from computemanager.model import Skipped

__all__ = ["MAX_TRACEBACKS", "ApplierReturn", "BlocksSkippedWarning", "SkippedBlock", "skipped_warning"]

MAX_TRACEBACKS = 1000
"""Of so many skipped blocks the traceback is kept; those of millions would fill the memory."""

_SHOWN_IN_WARNING = 3
_SHOWN_IN_SUMMARY = 20
_REASON_CHARACTERS = 200


class BlocksSkippedWarning(UserWarning):
    """A job went on without blocks that could not be computed, as it was told to."""


class SkippedBlock(NamedTuple):
    """A block that could not be computed, in a job that went on without it.

    Attributes
    ----------
    block : int
        Its number, from 0; `applier.run_block` runs it alone.
    place : str
        Where it lies, in words.
    reason : str
        Why: the exception, what ended its worker process, the time limit.
    traceback : str
        The traceback as the worker formatted it; empty where there was no exception, and for all but the
        first 1000 blocks of a job.
    worker : str
        Name of the worker that tried it last.
    attempts : int
        How many times it was tried.
    """

    block: int
    place: str
    reason: str
    traceback: str
    worker: str
    attempts: int

    @classmethod
    def of(cls, skipped: Skipped, place: str, *, has_traceback: bool = True) -> SkippedBlock:
        """From what a manager says of it, and words for where it lies."""
        traceback = skipped.traceback if has_traceback else ""
        return cls(skipped.block_index, place, skipped.reason, traceback, skipped.worker, skipped.attempts)

    def __str__(self) -> str:
        reason = " ".join(self.reason.split()) or "(no reason is known)"
        if len(reason) > _REASON_CHARACTERS:
            reason = reason[: _REASON_CHARACTERS - 3] + "..."
        tries = f" (tried {self.attempts} times)" if self.attempts > 1 else ""
        return f"{self.place}: {reason}{tries}"


@dataclass(repr=False)
class ApplierReturn:
    """What a job did and left behind.

    Attributes
    ----------
    timings : Timers
        How long its parts took, added up over all workers.
    otherArgsList : list
        The copies of ``otherArgs``, one a worker, as the user's function left them; empty where there
        were no ``otherArgs``.
    workinggrid : PixelGrid or None
        The grid of the outputs; None for a job without rasters.
    singlePassMgr : None
        Always None; here for scripts that ask.
    workers : int
        Compute workers that took part; 0 where the main process computed by itself.
    blocks : int
        Blocks computed, those from the checkpoint included.
    retries : int
        Blocks that had to be tried again, each counted as often as it was.
    blocksKept : int
        Of `blocks`, those that an earlier run had computed: they came from the checkpoint
        (`ApplierControls.setCheckpoint`).
    outputs : list of str
        Files written.
    skippedBlocks : list of SkippedBlock
        Blocks that could not be computed, where the job was told to go on without them
        (`ApplierControls.setOnBlockError`). The outputs have nodata there.

    Examples
    --------
    >>> rtn = ApplierReturn(workers=4, blocks=120, outputs=["ndvi.tif"])
    >>> rtn
    <ApplierReturn: 120 blocks on 4 workers; ndvi.tif>
    """

    timings: Timers = field(default_factory=Timers)
    otherArgsList: list[Any] = field(default_factory=list)
    workinggrid: PixelGrid | None = None
    singlePassMgr: None = None
    workers: int = 0
    blocks: int = 0
    retries: int = 0
    blocksKept: int = 0
    outputs: list[str] = field(default_factory=list)
    skippedBlocks: list[SkippedBlock] = field(default_factory=list)

    def summary(self) -> str:
        """Return the job in a few lines: blocks, workers, files, skipped blocks, times."""
        lines = [self._headline(), *(f"  {path}" for path in self.outputs)]
        if self.skippedBlocks:
            lines += ["skipped:", _listing(self.skippedBlocks, _SHOWN_IN_SUMMARY)]
        return "\n".join([*lines, "", self.timings.formatReport()])

    def _headline(self) -> str:
        workers = f"on {_counted(self.workers, 'worker')}" if self.workers else "without workers"
        retries = f", {_counted(self.retries, 'retry', 'retries')}" if self.retries else ""
        walltime = self.timings.getDurationsForName("walltime")
        seconds = f" in {sum(walltime):.1f} s" if walltime else ""
        skipped = f", {len(self.skippedBlocks)} skipped" if self.skippedBlocks else ""
        kept = f", {self.blocksKept} of {self.blocks} blocks from the checkpoint" if self.blocksKept else ""
        return f"{_counted(self.blocks, 'block')} {workers}{seconds}{retries}{skipped}{kept}"

    def __repr__(self) -> str:
        more = len(self.outputs) - 3
        files = ", ".join(self.outputs[:3]) + (f" and {more} more" if more > 0 else "")
        return f"<ApplierReturn: {self._headline()}; {files or 'no output files'}>"


def skipped_warning(blocks: Sequence[SkippedBlock], total: int) -> BlocksSkippedWarning:
    """What to warn of in a job of so many blocks that has gone on without these."""
    was = "was" if len(blocks) == 1 else "were"
    return BlocksSkippedWarning(
        f"{len(blocks)} of {_counted(total, 'block')} could not be computed and {was} skipped; the outputs "
        f"have nodata there:\n{_listing(blocks, _SHOWN_IN_WARNING)}\n"
        "All of them, with tracebacks, are in skippedBlocks of what apply() returned."
    )


def _listing(blocks: Sequence[SkippedBlock], most: int) -> str:
    """The first of them, a line each, and how many more there are."""
    lines = [f"  {block}" for block in blocks[:most]]
    if len(blocks) > most:
        lines.append(f"  ... and {len(blocks) - most} more")
    return "\n".join(lines)


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
