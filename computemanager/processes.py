"""Workers as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence

from computemanager.errors import WorkersLostError
from computemanager.output import OutputPump
from computemanager.provider import Command, WorkerEnd

__all__ = ["LocalProcesses"]

WORKER_VARIABLE = "COMPUTEMANAGER_WORKER"
"""Environment variable in which a worker finds its name."""

_LOOK_S = 0.002
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
_POSIX = os.name == "posix"
_NEW_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # what Windows has for a session


class LocalProcesses:
    """A `Provider` of local child processes.

    Each has a session of its own, so that Ctrl-C at the terminal reaches only the caller and whatever a
    worker started can be ended with it, and a pipe to main as its standard input, by whose end it knows that
    main is gone.

    Parameters
    ----------
    output : OutputPump
        What they print.
    prefix : str
        Start of their names.
    """

    def __init__(self, output: OutputPump, prefix: str) -> None:
        self._output = output
        self._prefix = prefix
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._peak_at_start: dict[str, float] = {}
        self._started = 0

    def start(self, count: int, command: Command) -> Sequence[str]:
        """See `Provider.start`."""
        names = []
        for _ in range(count):
            name = f"{self._prefix}-{self._started}"
            self._started += 1
            try:
                process = subprocess.Popen(
                    command.argv,
                    env={**os.environ, **command.environment, WORKER_VARIABLE: name},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=_POSIX,
                    creationflags=_NEW_GROUP,
                )
            except OSError as error:
                raise WorkersLostError(
                    f"a worker cannot be started: {error}. The command was {command.argv[0]!r}; is it "
                    f"installed, and may this user run it and start another process?"
                ) from error
            self._processes[name] = process
            self._peak_at_start[name] = _peak_bytes_of_main()
            self._output.watch(name, "stdout", process.stdout)  # type: ignore[arg-type]
            self._output.watch(name, "stderr", process.stderr)  # type: ignore[arg-type]
            names.append(name)
        return names

    def poll(self) -> Sequence[WorkerEnd]:
        """See `Provider.poll`."""
        ended = []
        for name, process in list(self._processes.items()):
            peak_bytes = _reap(process)
            if process.returncode is None:
                continue
            del self._processes[name]
            self._end_group(process)
            peak = _peak_in_words(peak_bytes, self._peak_at_start[name])
            evidence = f"{_how_it_ended(process.returncode)}{peak}"
            tail = self._output.tail(name).strip()
            if tail:
                evidence += "\nits last lines of output:\n  " + "\n  ".join(tail.splitlines())
            ended.append(WorkerEnd(name, evidence))
        return ended

    def kill(self, workers: Collection[str]) -> None:
        """End some at once; `poll` will report them."""
        for name in workers:
            if name in self._processes:
                self._processes[name].kill()

    def stop(self, ending: Collection[str] = (), grace_s: float = 0.0) -> None:
        """See `Provider.stop`."""
        deadline = time.monotonic() + grace_s
        for name, process in self._processes.items():
            if name not in ending:
                process.kill()
        for process in self._processes.values():
            # Not wait(timeout), which looks at ever longer intervals: the end of a job waits for this.
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
            if process.returncode is None:
                process.kill()
            self._end_group(process)
            process.wait()
        self._processes.clear()

    def _end_group(self, process: subprocess.Popen[bytes]) -> None:
        """End what the worker's user function may have started and left."""
        if _POSIX:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


def _reap(process: subprocess.Popen[bytes]) -> float | None:
    """Set `returncode` if the process has ended; return its peak memory in bytes, where the system tells."""
    if not hasattr(os, "wait4"):
        process.poll()
        return None
    try:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    except ChildProcessError:  # somebody else's wait() was quicker, as in a host that reaps all children
        process.returncode = process.poll() or 0
        return None
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * _MAXRSS_UNIT


def _peak_bytes_of_main() -> float:
    """Peak memory of this process: Linux counts it as a child's too, from before its program was loaded."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def _peak_in_words(peak_bytes: float | None, peak_of_main: float) -> str:
    if peak_bytes is None:
        return ""
    at_most = "at most " if peak_bytes <= peak_of_main else ""
    return f", peak memory {at_most}{peak_bytes / 1e6:.0f} MB"


def _how_it_ended(code: int) -> str:
    """Exit code or signal in words."""
    if code >= 0:
        return f"it exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = {
        "SIGKILL": " (killed from outside: often the system, because memory ran out)",
        "SIGSEGV": " (a crash in compiled code)",
        "SIGBUS": " (a crash in compiled code, or a mapped file that shrank)",
        "SIGABRT": " (compiled code gave up)",
    }.get(name, "")
    return f"it was ended by {name}{hint}"
