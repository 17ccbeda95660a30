"""Apply a function to rasters, or to any data, block by block, on any number of workers.

The names here are those that scripts written for RIOS import; see `applier.apply`.
"""

from applier.associations import BlockAssociations, FilenameAssociations, OtherInputs
from applier.concurrency import ConcurrencyStyle, ConcurrencyWarning
from applier.constants import (
    BOUNDS_FROM_REFERENCE,
    CW_AGENTS,
    CW_AWSBATCH,
    CW_DASK,
    CW_ECS,
    CW_EXECUTOR,
    CW_NONE,
    CW_PBS,
    CW_SLURM,
    CW_SSH,
    CW_SUBPROC,
    CW_THREADS,
    INTERSECTION,
    UNION,
)
from applier.controls import ApplierControls
from applier.engine import apply, run_block
from applier.errors import (
    ApplierError,
    CancelledError,
    ControlsError,
    FileOpenError,
    GridMismatchError,
    MissingExtraError,
    OutputError,
)
from applier.info import ReaderInfo
from applier.report import ApplierReturn, BlocksSkippedWarning
from applier.timers import Timers
from computemanager.errors import BlockError

__all__ = [
    "BOUNDS_FROM_REFERENCE",
    "CW_AGENTS",
    "CW_AWSBATCH",
    "CW_DASK",
    "CW_ECS",
    "CW_EXECUTOR",
    "CW_NONE",
    "CW_PBS",
    "CW_SLURM",
    "CW_SSH",
    "CW_SUBPROC",
    "CW_THREADS",
    "INTERSECTION",
    "UNION",
    "ApplierControls",
    "ApplierError",
    "ApplierReturn",
    "BlockAssociations",
    "BlockError",
    "BlocksSkippedWarning",
    "CancelledError",
    "ConcurrencyStyle",
    "ConcurrencyWarning",
    "ControlsError",
    "FileOpenError",
    "FilenameAssociations",
    "GridMismatchError",
    "MissingExtraError",
    "OtherInputs",
    "OutputError",
    "ReaderInfo",
    "Timers",
    "apply",
    "run_block",
]
