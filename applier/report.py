"""`ApplierReturn`: what `applier.apply` gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from applier.timers import Timers

if TYPE_CHECKING:
    from applier.raster.grid import PixelGrid

__all__ = ["ApplierReturn"]


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
        Blocks computed.
    retries : int
        Blocks that had to be tried again, each counted as often as it was.
    outputs : list of str
        Files written.

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
    outputs: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return the job in a few lines: blocks, workers, files, times."""
        files = [f"  {path}" for path in self.outputs]
        return "\n".join([self._headline(), *files, "", self.timings.formatReport()])

    def _headline(self) -> str:
        workers = f"on {_counted(self.workers, 'worker')}" if self.workers else "without workers"
        retries = f", {_counted(self.retries, 'retry', 'retries')}" if self.retries else ""
        walltime = self.timings.getDurationsForName("walltime")
        seconds = f" in {sum(walltime):.1f} s" if walltime else ""
        return f"{_counted(self.blocks, 'block')} {workers}{seconds}{retries}"

    def __repr__(self) -> str:
        more = len(self.outputs) - 3
        files = ", ".join(self.outputs[:3]) + (f" and {more} more" if more > 0 else "")
        return f"<ApplierReturn: {self._headline()}; {files or 'no output files'}>"


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
