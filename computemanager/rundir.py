"""The private directory of one run: its local socket and its shared-memory slabs.

It is readable by its owner only, lies in memory where the system offers that (``/dev/shm``), and goes when
the run ends. If main is killed, the orphaned workers remove it; if they are killed too, the next run on the
machine does: a directory whose lock nobody holds belongs to nobody.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

__all__ = ["LOCK_NAME", "RunDirectory", "hold_lock", "is_abandoned", "remove_strays"]

_PREFIX = "computemanager-"
_OURS = re.compile(_PREFIX + r"\d+-\w+")
LOCK_NAME = "lock"
"""The file in a directory whose lock says that somebody uses it."""

_NEEDED_BYTES = 64 * 1024
_MAX_SOCKET_PATH = 90
_TOO_YOUNG_S = 60.0


def hold_lock(directory: Path) -> IO[bytes]:
    """Mark a directory as in use for as long as the returned file is open, or this process lives."""
    file = open(directory / LOCK_NAME, "a+b")  # noqa: SIM115 (open is what it is for)
    try_lock(file)
    return file


def is_abandoned(directory: Path) -> bool:
    """Whether the process that marked a directory with `hold_lock` is gone; False where nobody can tell."""
    try:
        with open(directory / LOCK_NAME, "r+b") as file:
            return try_lock(file)
    except OSError:
        return False


def try_lock(file: IO[bytes]) -> bool:
    """Take the lock on an open file for as long as it is open; False where another process has it."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
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
            except OSError as reason:
                error = reason
                continue
            try:
                # Full to the last page, as a container's /dev/shm may be: workers could not even start.
                (self.path / LOCK_NAME).write_bytes(bytes(_NEEDED_BYTES))
                break
            except OSError as reason:
                error = reason
                shutil.rmtree(self.path, ignore_errors=True)
        else:
            raise OSError(
                f"no place for a temporary directory: {error}. Set TMPDIR to a directory with room that you "
                f"can write to"
            ) from error
        self._lock = hold_lock(self.path)

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
                others = hasattr(os, "getuid") and status.st_uid != os.getuid()
            except OSError:
                continue
            # Ours, and without a lock: whoever removed it was killed in the middle, since making one begins
            # with the lock.
            removed_half_way = _OURS.fullmatch(path.name) is not None and not (path / LOCK_NAME).exists()
            abandoned = removed_half_way or is_abandoned(path)
            if not young and not others and abandoned:
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed
