"""The constants that scripts name, and the defaults behind the controls."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BOUNDS_FROM_REFERENCE",
    "COMPUTE_WORKER_KINDS",
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
    "DEFAULT_FOOTPRINT",
    "DEFAULT_OVERLAP",
    "DEFAULT_STATS_IGNORE",
    "DEFAULT_WINDOW_SIZE",
    "FOOTPRINTS",
    "INTERSECTION",
    "LOCAL_KINDS",
    "UNION",
    "WINDOW_XSIZE_VARIABLE",
    "WINDOW_YSIZE_VARIABLE",
]

# Kinds of compute worker. Each is its own name, so that it reads well in a repr, a log and a pickle.
CW_NONE: Final = "CW_NONE"
CW_THREADS: Final = "CW_THREADS"
CW_SUBPROC: Final = "CW_SUBPROC"
# Agents (see `computemanager worker`) started by a command on this machine, which may take them elsewhere.
CW_AGENTS: Final = "CW_AGENTS"
CW_ECS: Final = "CW_ECS"
CW_AWSBATCH: Final = "CW_AWSBATCH"
CW_PBS: Final = "CW_PBS"
CW_SLURM: Final = "CW_SLURM"
CW_DASK: Final = "CW_DASK"
CW_EXECUTOR: Final = "CW_EXECUTOR"
CW_SSH: Final = "CW_SSH"

COMPUTE_WORKER_KINDS: Final[tuple[str, ...]] = (
    CW_NONE,
    CW_THREADS,
    CW_SUBPROC,
    CW_AGENTS,
    CW_ECS,
    CW_AWSBATCH,
    CW_PBS,
    CW_SLURM,
    CW_DASK,
    CW_EXECUTOR,
    CW_SSH,
)

# Kinds whose workers share this machine's processors with the main script.
LOCAL_KINDS: Final[frozenset[str]] = frozenset({CW_NONE, CW_THREADS, CW_SUBPROC})

# How the working grid follows from the grids of the inputs.
INTERSECTION: Final = 0
UNION: Final = 1
BOUNDS_FROM_REFERENCE: Final = 2

FOOTPRINTS: Final[dict[int, str]] = {
    INTERSECTION: "INTERSECTION",
    UNION: "UNION",
    BOUNDS_FROM_REFERENCE: "BOUNDS_FROM_REFERENCE",
}

DEFAULT_FOOTPRINT: Final = INTERSECTION
DEFAULT_OVERLAP: Final = 0
DEFAULT_STATS_IGNORE: Final = 0
# Pixels, in the direction that is not set where only one of the two is.
DEFAULT_WINDOW_SIZE: Final = 256

# Environment variables that set the window size of controls that do not set it themselves.
WINDOW_XSIZE_VARIABLE: Final = "APPLIER_WINDOW_XSIZE"
WINDOW_YSIZE_VARIABLE: Final = "APPLIER_WINDOW_YSIZE"
