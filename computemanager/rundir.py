"""The private directory of one run: its local socket and its shared-memory slabs.

It is readable by its owner only, lies in memory where the system offers that (``/dev/shm``), and goes when
the run ends. If main is killed, the orphaned workers remove it; if they are killed too, the next run on the
machine does: a directory whose lock nobody holds belongs to nobody.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

__all__ = ["RunDirectory", "remove_strays"]

_PREFIX = "computemanager-"
_LOCK_NAME = "lock"
_MAX_SOCKET_PATH = 90
_TOO_YOUNG_S = 60.0


def _try_lock(file: IO[bytes]) -> bool:
    """Take the lock on an open file for as long as it is open; False where another process has it."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _parents() -> list[Path]:
    """Where run directories may lie, best first. Socket paths must stay short (about 100 bytes)."""
    shared_memory = Path("/dev/shm")
    parents = (
        [shared_memory] if shared_memory.is_dir() and os.access(shared_memory, os.W_OK | os.X_OK) else []
    )
    temporary = Path(tempfile.gettempdir())
    if len(str(temporary)) > _MAX_SOCKET_PATH - 40 and Path("/tmp").is_dir():
        temporary = Path("/tmp")
    return [*parents, temporary]


class RunDirectory:
    """A private directory that lives as long as a run.

    Examples
    --------
    >>> directory = RunDirectory()
    >>> directory.path.is_dir()
    True
    >>> directory.close()
    >>> directory.path.exists()
    False
    """

    def __init__(self) -> None:
        error: OSError | None = None
        for parent in _parents():
            try:
                self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
                break
            except OSError as reason:
                error = reason
        else:
            raise OSError(
                f"no place for a temporary directory: {error}. Set TMPDIR to a directory you can write to"
            ) from error
        self._lock = open(self.path / _LOCK_NAME, "wb")  # noqa: SIM115 (held until close)
        _try_lock(self._lock)

    def close(self) -> None:
        """Remove the directory and all that is in it. Never raises; may be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)  # systems that keep locked files: now it can go


def remove_strays() -> list[Path]:
    """Remove run directories of this user whose run was killed together with all its workers.

    Returns
    -------
    list of Path
        What was removed.
    """
    removed = []
    for parent in _parents():
        for path in parent.glob(_PREFIX + "*"):
            try:
                status = path.stat()
                young = time.time() - status.st_mtime < _TOO_YOUNG_S
                if young or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
                    continue
                with open(path / _LOCK_NAME, "r+b") as lock:
                    dead = _try_lock(lock)
            except OSError:
                continue
            if dead:
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed
