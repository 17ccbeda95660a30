"""Gets calls onto workers and their results back, in order.

The whole interface is `ComputeWorkerManager.run`: a job and a plan of blocks go in, exactly one outcome a
block comes out. This package knows nothing of rasters or file formats; `applier` is built on it.
"""

from computemanager.base import ComputeWorkerManager, known_kinds, manager_class
from computemanager.errors import (
    BlockError,
    BlockTimeoutError,
    CheckpointError,
    ComputeManagerError,
    InternalError,
    PayloadError,
    PoisonBlockError,
    SettingsError,
    WaitTimeoutError,
    WorkersLostError,
)
from computemanager.model import Job, Outcome, RunStatistics, Settings, Skipped

__all__ = [
    "BlockError",
    "BlockTimeoutError",
    "CheckpointError",
    "ComputeManagerError",
    "ComputeWorkerManager",
    "InternalError",
    "Job",
    "Outcome",
    "PayloadError",
    "PoisonBlockError",
    "RunStatistics",
    "Settings",
    "SettingsError",
    "Skipped",
    "WaitTimeoutError",
    "WorkersLostError",
    "known_kinds",
    "manager_class",
]
