"""``CW_SUBPROC``: workers as processes of this machine, the kind for functions that hold the global lock."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Generator, Iterator
from typing import Any

from computemanager.base import ComputeWorkerManager
from computemanager.errors import WorkersLostError
from computemanager.farm import Farm
from computemanager.model import Job, Outcome, Settings
from computemanager.output import OutputPump
from computemanager.processes import LocalProcesses
from computemanager.provider import Command
from computemanager.rundir import RunDirectory, remove_strays
from computemanager.slot import DIRECTORY_VARIABLE, SHARED_MEMORY_VARIABLE
from computemanager.transport import MainSocket

__all__ = ["SubprocManager"]

_PATH_VARIABLE = "COMPUTEMANAGER_SYS_PATH"

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "GDAL_NUM_THREADS",
)

# Let glibc keep the memory that arrays come and go in (it gives back large pieces at once by default, and a
# fresh page costs a fault): a tenth of the time of light functions, measured. Others ignore these.
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2), "MALLOC_TRIM_THRESHOLD_": str(256 * 1024**2)}

# The worker finds modules where the caller does. Not through PYTHONPATH, which would put installed
# packages before Python's own modules and be inherited by whatever the user's function starts.
_BOOT = (
    "import json, os, sys; sys.path[:] = json.loads(os.environ.pop({path!r})); "
    "from computemanager.slot import main; main()"
)


class SubprocManager(ComputeWorkerManager):
    """``CW_SUBPROC``: local worker processes.

    Each worker process is a fresh Python (no fork), so threads, open files and locks of the caller are not
    in its way, and scripts need no ``if __name__ == "__main__"``.
    """

    kind = "CW_SUBPROC"

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self._farm: Farm | None = None

    def states(self) -> list[Any]:
        """See `ComputeWorkerManager.states`."""
        return [] if self._farm is None else self._farm.states()

    def _run(self, job: Job, blocks: Iterator[Any]) -> Generator[Outcome, None, None]:
        remove_strays()
        output = OutputPump()
        processes = LocalProcesses(output)
        # Undone in reverse, each step also if another was interrupted by a signal.
        with contextlib.ExitStack() as undo:
            directory = RunDirectory()
            undo.callback(directory.close)
            socket = MainSocket(directory.path)
            undo.callback(socket.close)
            undo.callback(output.close)
            undo.callback(processes.stop)  # twice: the first time may be the one that is interrupted
            undo.callback(processes.stop)
            self._farm = Farm(
                processes,
                self._command(directory, socket),
                socket,
                output,
                self.settings,
                directory.path,
                self.statistics,
            )
            yield from self._farm.run(job, blocks)

    def _command(self, directory: RunDirectory, socket: MainSocket) -> Command:
        if not sys.executable:
            raise WorkersLostError(
                "worker processes cannot be started: this Python does not know its own program "
                "(sys.executable is empty, as in an embedded interpreter). Use CW_THREADS"
            )
        threads = str(self.settings.threads_per_worker)
        defaults = {**dict.fromkeys(THREAD_VARIABLES, threads), **_MEMORY}
        environment = {name: value for name, value in defaults.items() if name not in os.environ}
        environment.update(self.settings.worker_environment)
        environment.update(socket.environment)
        environment[DIRECTORY_VARIABLE] = str(directory.path)
        environment[SHARED_MEMORY_VARIABLE] = "1" if self.settings.shared_memory else "0"
        environment[_PATH_VARIABLE] = json.dumps(sys.path)
        return Command((sys.executable, "-c", _BOOT.format(path=_PATH_VARIABLE)), environment)
