"""Values that wait on disk for their turn, and what values weigh."""

from __future__ import annotations

import bisect
import contextlib
import logging
import pickle
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from computemanager import payload
from computemanager.errors import PayloadError
from computemanager.window import SpillFull

__all__ = ["Spill", "SpillFull", "bytes_of"]

_log = logging.getLogger(__name__)

_MAX_DEPTH = 8
_MAX_LOOKS = 2000
_MAX_ITEMS = 64
"""Of a longer container so many items are weighed, and the rest taken to be like them."""
_POINTER_BYTES, _SMALL_BYTES = 8, 32


class Spill:
    """A temporary file of values; each is given back once.

    The file is made with the first value and has no name, so that nothing is left of it even if this process
    is killed. The space of values given back is used again, and cut off where it is at the file's end.
    Not for several threads at once.

    Parameters
    ----------
    directory : str, optional
        Where the file is made. Default: the system's directory for temporary files.

    Examples
    --------
    >>> with contextlib.closing(Spill()) as spill:
    ...     token = spill.put({"name": "a", "pixels": np.arange(5)})
    ...     spill.get(token)["pixels"].tolist()
    [0, 1, 2, 3, 4]
    """

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory
        self._file: BinaryIO | None = None
        self._space = _Space()
        self._places: dict[int, _Place] = {}
        self._next_token = 0
        self._has_complained = False

    @property
    def size(self) -> int:
        """How many bytes the file has."""
        return self._space.end

    def put(self, value: Any) -> int:
        """Write a value to the file.

        Parameters
        ----------
        value : object
            Anything that pickle or cloudpickle can take. Large buffers, such as those of arrays, are written
            as they are.

        Returns
        -------
        int
            A token that `get` takes.

        Raises
        ------
        SpillFull
            If it cannot be written, or cannot be pickled. The first time, a warning is logged.
        """
        buffers: list[memoryview] = []

        def take_out(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < payload.OUT_OF_BAND_BYTES:
                return True  # stays in the pickle
            buffers.append(raw)
            return False

        try:
            try:
                head = pickle.dumps(value, 5, buffer_callback=take_out)
            except Exception:
                buffers.clear()
                head = payload.dumps_any(value)
            parts = [memoryview(head), *buffers]
            lengths = [part.nbytes for part in parts]
            start = self._write(parts, sum(lengths))
        except (OSError, PayloadError) as error:
            self._complain(error)
            raise SpillFull(str(error)) from error
        self._next_token += 1
        self._places[self._next_token] = _Place(start, lengths)
        return self._next_token

    def get(self, token: int) -> Any:
        """Read a value back, and free its space.

        Parameters
        ----------
        token : int
            From `put`; it is good for one time.

        Returns
        -------
        object
            Equal to what was put; its arrays are as writable as they were.

        Raises
        ------
        OSError
            If the disk cannot be read.
        """
        start, lengths = self._places.pop(token)
        assert self._file is not None
        self._file.seek(start)
        parts = []
        for length in lengths:
            part = np.empty(length, np.uint8)  # unlike a bytearray, not filled with zeros first
            self._read_into(part.data)
            parts.append(part)
        self._release(start, sum(lengths))
        return pickle.loads(parts[0].data, buffers=parts[1:])

    def close(self) -> None:
        """Remove the file and all in it. May be called at any time, and again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
        self._space = _Space()
        self._places.clear()

    def _write(self, parts: Sequence[memoryview], length: int) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 - closed in close()
                buffering=0, prefix="computemanager-", dir=self._directory
            )
        start = self._space.allocate(length)
        try:
            self._file.seek(start)
            for part in parts:
                rest = part
                while rest.nbytes:  # one call may write less than it is given
                    rest = rest[self._file.write(rest) :]
        except OSError:
            self._release(start, length)
            raise
        return start

    def _read_into(self, rest: memoryview) -> None:
        assert self._file is not None
        while rest.nbytes:
            got = self._file.readinto(rest)  # type: ignore[attr-defined]
            if not got:
                raise OSError("the file of outcomes that wait for their turn has been cut short")
            rest = rest[got:]

    def _release(self, start: int, length: int) -> None:
        assert self._file is not None
        before = self._space.end
        self._space.free(start, length)
        if self._space.end < before:
            # Where it fails, the space is only given back later.
            with contextlib.suppress(OSError):
                self._file.truncate(self._space.end)

    def _complain(self, error: Exception) -> None:
        if not self._has_complained:
            self._has_complained = True
            _log.warning(
                "outcomes that wait for an earlier block stay in memory, and fewer blocks are under way, as "
                "they cannot be put on disk (in %s): %s. Make room there, or name another directory "
                "(controls.setTempdir, or spill_directory in Settings)",
                self._directory or tempfile.gettempdir(),
                error,
            )


class _Place(NamedTuple):
    start: int
    lengths: list[int]  # of the pickle and its buffers


class _Space:
    """Which bytes of a file are in use."""

    def __init__(self) -> None:
        self.end = 0
        self.holes: list[tuple[int, int]] = []  # (start, length), in order, never side by side or at the end

    def allocate(self, length: int) -> int:
        """The start of so many free bytes: the first hole that has them, or the end."""
        for number, (start, hole) in enumerate(self.holes):
            if hole >= length:
                if hole == length:
                    del self.holes[number]
                else:
                    self.holes[number] = (start + length, hole - length)
                return start
        self.end += length
        return self.end - length

    def free(self, start: int, length: int) -> None:
        """Give back what `allocate` gave."""
        number = bisect.bisect(self.holes, (start, length))
        if number < len(self.holes) and self.holes[number][0] == start + length:
            length += self.holes.pop(number)[1]
        if number and sum(self.holes[number - 1]) == start:
            before, more = self.holes.pop(number - 1)
            start, length, number = before, length + more, number - 1
        if start + length == self.end:
            self.end = start
        else:
            self.holes.insert(number, (start, length))


def bytes_of(value: Any) -> int:
    """About how many bytes of memory a value takes.

    Cheap rather than exact: of long containers a part is looked at, what is nested deeply is left out, and
    what a value holds twice counts once.

    Parameters
    ----------
    value : object

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> bytes_of([np.zeros((2, 100, 100)), "name"]) // 1000
    160
    """
    return _weigh(value, set(), _MAX_DEPTH)


def _weigh(value: Any, seen: set[int], depth: int) -> int:
    if value is None or isinstance(value, (bool, int, float, complex)):
        return _SMALL_BYTES
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    if id(value) in seen or isinstance(value, type):
        return 0
    seen.add(id(value))
    try:
        own = _nbytes(value)
        if own is None:
            own = sys.getsizeof(value)  # some objects of extensions know all that they hold
            if depth:
                parts, number = _parts(value)
                own = max(own, _POINTER_BYTES * number + _weigh_all(parts, number, seen, depth - 1))
    except Exception:
        # Attributes of the user's objects may run any code. An estimate is not worth failing for.
        own = _SMALL_BYTES
    return own


def _nbytes(value: Any) -> int | None:
    """What arrays and the like say that they take."""
    if isinstance(value, np.ma.MaskedArray):
        return int(value.data.nbytes + np.ma.getmaskarray(value).nbytes)
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return None
    nbytes = getattr(value, "nbytes", None)
    return int(nbytes) if isinstance(nbytes, (int, np.integer)) else None


def _parts(value: Any) -> tuple[Iterable[Any], int]:
    """What a value holds, and how many those are."""
    if isinstance(value, np.ndarray):
        return value.flat, value.size
    if isinstance(value, dict):
        return chain.from_iterable(value.items()), 2 * len(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return value, len(value)
    attributes = list(getattr(value, "__dict__", {}).values())
    for each in type(value).__mro__:
        slots = each.__dict__.get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        attributes += [getattr(value, name) for name in names if hasattr(value, name)]
    return attributes, len(attributes)


def _weigh_all(parts: Iterable[Any], number: int, seen: set[int], depth: int) -> int:
    if not number:
        return 0
    step = -(-number // _MAX_ITEMS)
    if step > 1:
        step |= 1  # odd, so that keys and values of a dict both get a look
    weights: list[int] = []
    for part in islice(parts, 0, None, step):
        if weights and len(seen) >= _MAX_LOOKS:
            break  # the rest is taken to be like those before
        weights.append(_weigh(part, seen, depth))
    return sum(weights) * number // len(weights)
