"""The directory of a journal: whose it is, who is using it, and which job it is of."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from computemanager.errors import CheckpointError
from computemanager.rundir import LOCK_NAME, try_lock

__all__ = ["ANEW", "RECORDS_NAME", "Identity", "hold_lock", "make_directory", "open_own", "settle_identity"]

Identity = Mapping[str, "str | Mapping[str, str]"]
"""Which job it is: parts by name, each a text or texts by name."""

RECORDS_NAME = "records"
IDENTITY_NAME = "identity.json"
ANEW = "Delete that directory to begin anew, or give another"
"""What to do about a directory that cannot be used any more; the end of a message."""

_FORMAT = 1
_OWN_NAMES = frozenset({LOCK_NAME, IDENTITY_NAME, IDENTITY_NAME + ".new", RECORDS_NAME})


def make_directory(path: Path) -> None:
    """Make the directory, or see that what is there can be trusted."""
    if not path.parent.is_dir():
        raise CheckpointError(
            f"the checkpoint directory {path} cannot be made: there is no directory {path.parent}. Make that "
            f"first, or give another place"
        )
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is a file; a checkpoint needs a directory of its own. Give another name"
        )
    _check_owner(path, path.stat())
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in _OWN_NAMES)
    if others and not (path / IDENTITY_NAME).exists():
        raise CheckpointError(
            f"{path} holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}); a "
            f"checkpoint needs a directory of its own. Give another name"
        )


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Refuse what somebody else may have written: it would be unpickled."""
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid != os.geteuid():
        raise CheckpointError(
            f"{path} belongs to another user (number {status.st_uid}), who could make this job run anything. "
            f"Give a directory of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CheckpointError(
            f"{path} may be written to by other users, who could make this job run anything. Take that right "
            f"away (chmod go-w '{path}'), or give another directory"
        )


def open_own(path: Path) -> int:
    """Open a file of the directory for reading and writing, making it if need be; links are not followed."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        _check_owner(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def hold_lock(directory: Path) -> io.FileIO:
    """Take the directory for this process."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(io.FileIO(open_own(directory / LOCK_NAME), "r+b"))
        if not try_lock(file):
            file.seek(1)
            holder = file.read().decode(errors="replace").strip()
            raise CheckpointError(
                f"the checkpoint in {directory} is in use by process {holder or '(unknown)'}. Wait until "
                f"that has ended, or give another directory"
            )
        file.truncate(0)
        file.seek(0)
        # Some systems let nobody read the first byte of a locked file.
        file.write(f" {os.getpid()}\n".encode())
        stack.pop_all()
    return file


def settle_identity(directory: Path, identity: Identity) -> None:
    """Compare the identity with that of the directory, or put it there."""
    path = directory / IDENTITY_NAME
    if not path.exists():
        new = path.with_name(path.name + ".new")
        new.unlink(missing_ok=True)
        with io.FileIO(open_own(new), "r+b") as file:
            text = json.dumps({"format": _FORMAT, "identity": identity}, indent=2, default=dict)
            file.write(text.encode())
            os.fsync(file.fileno())
        os.replace(new, path)
        return
    with io.FileIO(open_own(path), "r+b") as file:
        data = file.read()
    try:
        found = json.loads(data)
        found_format, old = found["format"], found["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}), so nobody knows what is kept there. {ANEW}"
        ) from error
    if found_format != _FORMAT:
        raise CheckpointError(
            f"the checkpoint in {directory} is in format {found_format}, written by another version of this "
            f"library, which reads format {_FORMAT}. {ANEW}"
        )
    differences = _differences(old, identity)
    if differences:
        lines = "".join(f"\n  {line}" for line in differences)
        raise CheckpointError(
            f"the checkpoint in {directory} is of another job than this. What differs (kept there -> now):"
            f"{lines}\nTo resume that job, start it as it was. To begin this one, delete that directory, or "
            f"give another"
        )


def _differences(old: Identity, new: Identity) -> list[str]:
    """A line for every part that differs, in words."""
    lines = []
    for part in dict.fromkeys([*old, *new]):
        if part not in new:
            lines.append(f"{part}: no part of the job now")
        elif part not in old:
            lines.append(f"{part}: was no part of the job")
        else:
            lines += [f"{part}: {change}" for change in _changes(old[part], new[part])]
    return lines


def _changes(old: str | Mapping[str, str], new: str | Mapping[str, str]) -> list[str]:
    """What has changed in a part."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        changed = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
        return [f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}" for name in changed]
    return [] if old == new else [f"{old} -> {new}"]
