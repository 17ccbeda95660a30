"""What ties the names in a user's function to files and to arrays.

`FilenameAssociations` says which files a symbolic name stands for; inside the user's function the same
names lead to arrays on `BlockAssociations` (``inputs`` and ``outputs``). `OtherInputs` holds anything
else. All three take any attribute name, so that our own methods stay few and code that must not depend
on them uses `symbolic_names`.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from applier.errors import ControlsError

__all__ = [
    "BlockAssociations",
    "FilenameAssociations",
    "OtherInputs",
    "closest_first",
    "symbolic_names",
]


def closest_first(name: str, known: Iterable[str]) -> list[str]:
    """Sort the known names by likeness to `name`, for error messages.

    Parameters
    ----------
    name : str
        What the user wrote.
    known : iterable of str
        What the user may have meant.

    Returns
    -------
    list of str
        All of `known`, most alike first; equally alike ones keep their order.

    Examples
    --------
    >>> closest_first("ndiv", ["red", "ndvi"])
    ['ndvi', 'red']
    """

    def likeness(candidate: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), candidate.lower()).ratio()

    return sorted(known, key=likeness, reverse=True)


def symbolic_names(associations: FilenameAssociations | BlockAssociations | OtherInputs) -> tuple[str, ...]:
    """List the symbolic names on an associations object, in order of first assignment.

    Safe where a user has a file called, say, ``names``: no attribute of the object is looked up.

    Examples
    --------
    >>> infiles = FilenameAssociations()
    >>> infiles.red, infiles.names = "red.tif", "names.tif"
    >>> symbolic_names(infiles)
    ('red', 'names')
    """
    return tuple(vars(associations))


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = ", ".join(closest_first(name, known))
    return f"{kind} has no {name!r}; " + (f"it has: {names}" if names else "nothing is set on it yet")


class _Associations:
    """Symbolic names, each with one entry or a list of entries, flattened when iterated."""

    def __getattr__(self, name: str) -> Any:
        # Only called for names that are not there. Python itself asks for dunder names (copy, pickle).
        raise AttributeError(_unknown(type(self).__name__, name, vars(self)))

    def _entry(self, key: object) -> tuple[str, int | None, Any]:
        """Take a key apart; return name, position and everything assigned to the name."""
        name, seq = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
        if not isinstance(name, str):
            raise KeyError(f"{key!r} is not a key: use 'name', ('name', None) or ('name', 0)")
        if name not in vars(self):
            raise KeyError(_unknown(type(self).__name__, name, vars(self)))
        entry = vars(self)[name]
        if seq is not None and not isinstance(entry, list):
            raise KeyError(f"{name!r} is a single entry, not a list: use ['{name}'] in place of [{key!r}]")
        if seq is not None and not 0 <= seq < len(entry):
            raise KeyError(f"{name!r} has {len(entry)} entries, numbered from 0: there is no number {seq}")
        return name, seq, entry

    def __getitem__(self, key: str | tuple[str, int | None]) -> Any:
        _, seq, entry = self._entry(key)
        return entry if seq is None else entry[seq]

    def __contains__(self, key: object) -> bool:
        try:
            self._entry(key)
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[tuple[str, int | None, Any]]:
        for name, entry in list(vars(self).items()):
            if isinstance(entry, list):
                yield from ((name, seq, value) for seq, value in enumerate(entry))
            else:
                yield name, None, entry

    def __len__(self) -> int:
        return sum(len(entry) if isinstance(entry, list) else 1 for entry in vars(self).values())

    def __repr__(self) -> str:
        entries = ", ".join(f"{name}={reprlib.repr(entry)}" for name, entry in vars(self).items())
        return f"{type(self).__name__}({entries})"


def _path(label: str, value: object) -> str:
    """Return `value` as a file name, or say what it is instead."""
    if isinstance(value, (str, os.PathLike)):
        path = os.fsdecode(value)
        if path:
            return path
        raise ControlsError(f"{label} is an empty string; give a file name or a list of them")
    given = "None" if value is None else f"of type {type(value).__name__} ({reprlib.repr(value)})"
    raise ControlsError(f"{label} is {given}; give a file name or a list of them")


class FilenameAssociations(_Associations):
    """Which files the symbolic names in a user's function stand for.

    Assign a file name, or a list of them, to an attribute of any name. In the user's function the same
    attribute of ``inputs`` or ``outputs`` is then an array, or a list of arrays.

    Iterating gives ``(symbolicName, seqNum, filename)`` for every file, in order of first assignment;
    ``seqNum`` is the position in the list, None for a single file. ``len()`` counts files. The object
    can be indexed (not assigned) by ``'name'`` or ``('name', seqNum)``.

    Raises
    ------
    ControlsError
        On assignment of anything but a `str`, an `os.PathLike`, or a list or tuple of those.

    Examples
    --------
    >>> infiles = FilenameAssociations()
    >>> infiles.dem = "dem.tif"
    >>> infiles.scenes = ["a.tif", "b.tif"]
    >>> list(infiles)
    [('dem', None, 'dem.tif'), ('scenes', 0, 'a.tif'), ('scenes', 1, 'b.tif')]
    >>> len(infiles), infiles["scenes", 1], "dem" in infiles
    (3, 'b.tif', True)
    """

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, (list, tuple)):
            # A list even for a tuple: scripts assign [] and append to it.
            entry: object = [_path(f"{name}[{seq}]", item) for seq, item in enumerate(value)]
        else:
            entry = _path(name, value)
        object.__setattr__(self, name, entry)

    def __iter__(self) -> Iterator[tuple[str, int | None, str]]:
        """Iterate over ``(symbolicName, seqNum, filename)``."""
        for name, seq, value in super().__iter__():
            # Checked again: what was appended to a list after its assignment has not been seen.
            yield name, seq, _path(name if seq is None else f"{name}[{seq}]", value)

    def names(self) -> tuple[str, ...]:
        """List the symbolic names in order of first assignment (see `symbolic_names`)."""
        return symbolic_names(self)


class BlockAssociations(_Associations):
    """The arrays of one block, as ``inputs`` and ``outputs`` of the user's function.

    Each attribute is an array of shape (bands, rows, cols), or a list of such arrays where the files
    are a list. Reading a name that is not there raises an `AttributeError` that lists those that are.
    Iteration, ``len()``, ``in`` and indexing are those of `FilenameAssociations`; here indexing may
    also assign.

    Parameters
    ----------
    blocks : FilenameAssociations or mapping, optional
        A mapping gives the arrays by name. A `FilenameAssociations` gives the names only: each
        starts as None, or as a list of None. By default the object is empty.

    Examples
    --------
    >>> inputs = BlockAssociations({"img": 1, "more": [2, 3]})
    >>> inputs.img, inputs["more", 1], len(inputs)
    (1, 3, 3)
    >>> inputs.imgs  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AttributeError: BlockAssociations has no 'imgs'; it has: img, more...
    """

    def __init__(self, blocks: FilenameAssociations | Mapping[str, Any] | None = None) -> None:
        if isinstance(blocks, FilenameAssociations):
            for name in symbolic_names(blocks):
                entry = blocks[name]
                vars(self)[name] = [None] * len(entry) if isinstance(entry, list) else None
        elif blocks is not None:
            vars(self).update(blocks)

    def __setattr__(self, name: str, value: object) -> None:
        vars(self)[name] = list(value) if isinstance(value, tuple) else value

    def __setitem__(self, key: str | tuple[str, int | None], value: object) -> None:
        name, seq = key if isinstance(key, tuple) else (key, None)
        if seq is None:
            setattr(self, name, value)
        else:
            self._entry(key)[2][seq] = value

    def names(self) -> tuple[str, ...]:
        """List the symbolic names in order of first assignment (see `symbolic_names`)."""
        return symbolic_names(self)


class OtherInputs:
    """Anything else that the user's function needs or collects.

    Set attributes of any name before `applier.apply`; the function sees them on its fourth argument
    and may change them. Every worker changes a copy of its own; the copies come back as
    ``otherArgsList`` on the return value.

    Parameters
    ----------
    **values
        Attributes to start with.

    Examples
    --------
    >>> other = OtherInputs(threshold=0.3)
    >>> other.count = 0
    >>> other
    OtherInputs(threshold=0.3, count=0)
    """

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_unknown("OtherInputs", name, vars(self)))

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[name] = value

    def __repr__(self) -> str:
        return f"OtherInputs({', '.join(f'{name}={reprlib.repr(v)}' for name, v in vars(self).items())})"
