"""Large buffers between processes of one host: slabs of shared memory that are used again and again.

A slab is a piece of a segment: a file in a private directory (in memory where the system has such a place,
see `computemanager.rundir`), mapped by both ends. Each end owns the slabs that it writes, and only the owner
decides about reuse::

    owner: SlabWriter.put(buffer) ── slab number, through the socket ──> reader: SlabReader.view(slab, length)
    owner: SlabWriter.free(slab)  <── numbers of slabs no longer looked at ── reader: SlabReader.returned()

The reader gets an array that is a *view* of the slab, and the slab is returned when the last reference to
that array, or to anything made from it, is gone: whoever keeps an array keeps it valid, for ever if need be.

Plain files rather than `multiprocessing.shared_memory`: its resource tracker unlinks segments that a child
only attached (before Python 3.13). Many slabs to a file, since a mapping holds a file descriptor and callers
may hold many arrays. A slab's blocks are allocated before it is written to, so that a full file system is an
error here and not a SIGBUS in the middle of a copy; then the buffer travels through the socket.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_BUFFER_BYTES", "SlabReader", "SlabWriter"]

MIN_BUFFER_BYTES = 64 * 1024
"""Smaller buffers travel through the socket: copying them costs less than the book-keeping."""

DEFAULT_BUDGET_BYTES = 2 * 1024**3

SEGMENT_BYTES = 64 * 1024**2
"""Size of a segment; a larger slab has one of its own."""

_OFFSET_BITS = 40  # of a slab's number: its offset in the segment; above them, the segment's number from 1


class _View(np.ndarray[Any, np.dtype[np.uint8]]):
    """A window on a slab whose end of life is watched.

    A class of its own, so that NumPy never skips it in a chain of bases: everything made from it holds it.
    """


def _size_class(nbytes: int) -> int:
    """Slab size for a buffer: rounded up by at most a quarter, so that unlike buffers can share slabs."""
    step = max(mmap.PAGESIZE, 1 << max(0, nbytes.bit_length() - 3))
    return -(-nbytes // step) * step


class _Segment:
    """A mapped file from which slabs are cut, one behind the other."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self.used = 0
        with open(path, "x+b") as file:
            file.truncate(nbytes)  # no blocks yet
            self.map = np.frombuffer(mmap.mmap(file.fileno(), nbytes), np.uint8)

    def cut(self, nbytes: int) -> int:
        """Allocate the next piece; its offset. OSError where the file system is full."""
        offset = self.used
        with open(self.path, "r+b", buffering=0) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), offset, nbytes)
            else:
                file.seek(offset)
                zeros = bytes(1024 * 1024)
                for start in range(0, nbytes, len(zeros)):
                    file.write(zeros[: nbytes - start])
        self.used += nbytes
        return offset


class SlabWriter:
    """Puts buffers into slabs of its own.

    Parameters
    ----------
    directory : path
        The private directory, on one host with the reader.
    prefix : str
        Start of this writer's file names, unlike that of any other writer in the directory.
    budget_bytes : int
        Most bytes in slabs at any time.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     writer, reader = SlabWriter(directory, "a"), SlabReader(directory, "a")
    ...     slab = writer.put(memoryview(b"x" * 100))
    ...     view = reader.view(slab, 100)
    ...     bytes(view[:3]), reader.returned()
    ...     del view
    ...     reader.returned() == [slab]
    (b'xxx', [])
    True
    """

    def __init__(
        self, directory: str | os.PathLike[str], prefix: str, budget_bytes: int = DEFAULT_BUDGET_BYTES
    ):
        self._directory = Path(directory)
        self._prefix = prefix
        self._budget = budget_bytes
        self._bytes = 0
        self._segments: list[_Segment] = []
        self._slabs: dict[int, npt.NDArray[np.uint8]] = {}
        self._free: dict[int, list[int]] = {}
        self._full = False

    def put(self, buffer: memoryview) -> int | None:
        """Copy a contiguous buffer into a slab; its number (not 0), or None where there is no room."""
        taken = self.take(buffer.nbytes)
        if taken is None:
            return None
        slab, memory = taken
        np.copyto(memory, np.frombuffer(buffer, np.uint8))
        return slab

    def take(self, nbytes: int) -> tuple[int, npt.NDArray[np.uint8]] | None:
        """A slab to be filled by the caller: its number and memory; None where there is no room."""
        size = _size_class(nbytes)
        free = self._free.get(size)
        slab = free.pop() if free else self._make(size) or self._larger_free(size)
        return None if slab is None else (slab, self._slabs[slab][:nbytes])

    def free(self, slab: int) -> None:
        """The reader no longer looks at this slab."""
        self._free.setdefault(len(self._slabs[slab]), []).append(slab)

    def _larger_free(self, size: int) -> int | None:
        fitting = min(
            (larger for larger, slabs in self._free.items() if slabs and larger > size), default=None
        )
        return None if fitting is None else self._free[fitting].pop()

    def _make(self, size: int) -> int | None:
        if self._full or self._bytes + size > self._budget:
            return None
        try:
            if not self._segments or self._segments[-1].used + size > self._segments[-1].nbytes:
                path = self._directory / f"{self._prefix}-{len(self._segments) + 1}"
                self._segments.append(_Segment(path, max(size, SEGMENT_BYTES)))
            segment = self._segments[-1]
            offset = segment.cut(size)
        except OSError:
            # No room (a container's /dev/shm may hold 64 MB): live with the slabs there are.
            self._full = True
            return None
        self._bytes += size
        slab = len(self._segments) << _OFFSET_BITS | offset
        self._slabs[slab] = segment.map[offset : offset + size]
        return slab


class SlabReader:
    """Looks at the slabs of one writer; see `SlabWriter` for the parameters and an example."""

    def __init__(self, directory: str | os.PathLike[str], prefix: str):
        self._directory = Path(directory)
        self._prefix = prefix
        self._maps: dict[int, mmap.mmap] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        # Filled by the garbage collector, at any moment and in any thread: a deque's append is atomic.
        self._returned: deque[int] = deque()

    def view(self, slab: int, length: int) -> npt.NDArray[np.uint8]:
        """A writable array of a slab's first `length` bytes; it stays as it is while the array lives."""
        segment, offset = slab >> _OFFSET_BITS, slab & ((1 << _OFFSET_BITS) - 1)
        mapped = self._maps.get(segment)
        if mapped is None:
            with open(self._directory / f"{self._prefix}-{segment}", "r+b") as file:
                mapped = self._maps[segment] = mmap.mmap(file.fileno(), 0)
        view: Any = np.ndarray.__new__(_View, (length,), np.uint8, mapped, offset)
        returned = self._returned

        def gone(_: object, slab: int = slab) -> None:
            returned.append(slab)

        self._watched[slab] = weakref.ref(view, gone)
        return view  # type: ignore[no-any-return]

    def returned(self) -> list[int]:
        """The slabs that nobody looks at any more since the last call; tell their writer."""
        slabs = []
        while self._returned:
            slabs.append(self._returned.popleft())
        return slabs
