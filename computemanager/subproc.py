"""``CW_SUBPROC``: workers as processes of this machine, the kind for functions that hold the global lock."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

from computemanager.base import ComputeWorkerManager
from computemanager.farm import Farm
from computemanager.hub import SlotHub
from computemanager.model import Job, Outcome, Settings
from computemanager.slotcrew import SlotCrew

__all__ = ["SubprocManager"]


class SubprocManager(ComputeWorkerManager):
    """``CW_SUBPROC``: local worker processes.

    Each worker process is a fresh Python (no fork), so threads, open files and locks of the caller are not
    in its way, and scripts need no ``if __name__ == "__main__"``.
    """

    kind = "CW_SUBPROC"

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self._farm: Farm | None = None

    def _states(self) -> list[Any]:
        return [] if self._farm is None else self._farm.states()

    def _run(self, job: Job, blocks: Iterator[Any]) -> Generator[Outcome, None, None]:
        settings = self.settings
        hub = SlotHub(
            settings.worker_environment,
            threads_per_worker=settings.threads_per_worker,
            shared_memory=settings.shared_memory,
            block_timeout_s=settings.block_timeout_s,
        )
        with contextlib.closing(hub):
            self._farm = Farm(SlotCrew(hub), settings, self.statistics, self._keep, self._number)
            yield from self._farm.run(job, blocks)
