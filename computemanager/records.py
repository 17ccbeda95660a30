"""The file of a journal: records that are only ever added at its end, each with checksums.

::

    head     lengths of all that follows, two checksums
    table    numbers of the blocks, lengths of the buffers, name of the worker
    pickle   the list of the blocks' values
    state    the pickle of the worker's copy of the job's state, if it is another than in its last record
    buffers  what protocol 5 leaves out of the pickle: large arrays, raw

The head has a checksum of its own, so that a record that was not written to its end (there is less of it than
its head says) can be told from one that was damaged later.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from computemanager.payload import pack

__all__ = ["Entry", "RecordFile"]

_MAGIC = b"CMJ1"
# Magic, checksum of the rest of the head; checksum of the body, run, blocks, buffers, kind of state, bytes of
# the worker's name; bytes of the pickle, of the state, of all buffers.
_HEAD = struct.Struct("<4sI6I3Q")
_CHECKED_FROM = 8
_NUMBER_BYTES = 8
_NO_STATE, _NEW_STATE, _SAME_STATE = 0, 1, 2

_READ_BYTES = 1024 * 1024
_MOST_AT_ONCE = 1 << 30  # systems read and write 2 GB at once at most
_PIECES_AT_ONCE = 512  # and take 1024 pieces at least


class _Head(NamedTuple):
    magic: bytes
    head_checksum: int
    body_checksum: int
    run: int
    blocks: int
    buffers: int
    state_kind: int
    worker_bytes: int
    pickle_bytes: int
    state_bytes: int
    buffer_bytes: int

    @property
    def number_bytes(self) -> int:
        return _NUMBER_BYTES * (self.blocks + self.buffers)

    @property
    def table_bytes(self) -> int:
        return self.number_bytes + self.worker_bytes

    @property
    def body_bytes(self) -> int:
        return self.table_bytes + self.pickle_bytes + self.state_bytes + self.buffer_bytes


class Entry(NamedTuple):
    """What `RecordFile.entries` tells of a record.

    Attributes
    ----------
    offset : int
        Where it begins.
    run : int
        Which run of the job wrote it, from 1.
    blocks : tuple of int
        The blocks in it.
    worker : str
        Who computed them.
    state : tuple of (int, int), optional
        Offset and length of the worker's state, where it is another than in the worker's last record.
    """

    offset: int
    run: int
    blocks: tuple[int, ...]
    worker: str
    state: tuple[int, int] | None


class RecordFile:
    """A file of records, open for reading and adding.

    Parameters
    ----------
    file : io.FileIO
        Opened for both, without a buffer.

    Attributes
    ----------
    end : int
        Where the last good record ends. Set by `entries`, which is to be read to its end first.
    damage : str
        What is wrong with the record there, in words; empty if nothing is, or if it is just incomplete.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.end = 0
        self.damage = ""
        self._file = file
        self._lock = threading.Lock()  # for the place in the file
        self._states: dict[tuple[int, str], bytes] = {}

    def entries(self) -> Iterator[Entry]:
        """Give all good records, up to the first that is none, and cut off the rest."""
        size = os.fstat(self._file.fileno()).st_size
        with open(self._file.fileno(), "rb", buffering=_READ_BYTES, closefd=False) as file:
            while self.end < size:
                head = self._next_head(file, size - self.end)
                if head is None:
                    break
                table = file.read(head.table_bytes)
                checksum = zlib.crc32(table)
                left = head.body_bytes - head.table_bytes
                while left and (piece := file.read(min(left, _READ_BYTES))):
                    checksum = zlib.crc32(piece, checksum)
                    left -= len(piece)
                if checksum != head.body_checksum:
                    self.damage = "a checksum does not match"
                    break
                yield _entry(self.end, head, table)
                self.end += _HEAD.size + head.body_bytes
        if self.end < size:
            self._file.truncate(self.end)

    def _next_head(self, file: BinaryIO, left: int) -> _Head | None:
        """Read the head of a record; None if there is no complete record."""
        data = file.read(_HEAD.size)
        if len(data) < _HEAD.size:
            return None
        head = _Head(*_HEAD.unpack(data))
        if head.magic != _MAGIC or head.head_checksum != zlib.crc32(data[_CHECKED_FROM:]):
            self.damage = "there is no record"
            return None
        return head if left >= _HEAD.size + head.body_bytes else None

    def prepare(
        self, run: int, blocks: Sequence[int], values: Sequence[Any], worker: str, state: bytes | None
    ) -> Sequence[bytes | memoryview]:
        """Make a record, for `append` to add: checksums are of the values as they are now.

        Raises
        ------
        PayloadError
            If a value cannot be pickled.
        """
        kind, written_state = _NO_STATE, b""
        if state is not None:
            # One that is only looked at stays the same, and may be large.
            kind = _SAME_STATE if self._states.get((run, worker)) == state else _NEW_STATE
            written_state = state if kind == _NEW_STATE else b""
        pieces = _pieces(run, blocks, values, worker, kind, written_state)
        if kind == _NEW_STATE:
            self._states[run, worker] = written_state
        return pieces

    def append(self, record: Sequence[bytes | memoryview]) -> None:
        """Add a record. If that fails, the file is as it was. May be called from another thread.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        with self._lock:
            self._file.seek(self.end)
            try:
                _write(self._file, record)
            except BaseException:
                # Also if Ctrl-C comes in the middle: nothing may follow half a record.
                with contextlib.suppress(OSError):
                    self._file.truncate(self.end)
                raise
            self.end += sum(len(piece) for piece in record)

    def values(self, offset: int) -> dict[int, Any]:
        """Read the record at an offset: the values in it, by block.

        Raises
        ------
        OSError
            If it cannot be read.
        Exception
            Whatever unpickling raises.
        """
        head = _Head(*_HEAD.unpack(self.read(offset, _HEAD.size)))
        offset += _HEAD.size
        numbers = _numbers(head, self.read(offset, head.table_bytes))
        offset += head.table_bytes
        pickled = self.read(offset, head.pickle_bytes)
        offset += head.pickle_bytes + head.state_bytes
        buffers = []
        for length in numbers[head.blocks :]:
            buffers.append(self.read(offset, length))
            offset += length
        return dict(zip(numbers[: head.blocks], pickle.loads(pickled, buffers=buffers), strict=True))

    def read(self, offset: int, length: int) -> bytearray:
        """Read a stretch of the file.

        Raises
        ------
        OSError
            If it cannot be read, or is not there.
        """
        found = bytearray(length)
        view, done = memoryview(found), 0
        with self._lock:
            self._file.seek(offset)
            while done < length:
                step = self._file.readinto(view[done : done + _MOST_AT_ONCE])
                if not step:
                    raise OSError("the file is shorter than it was")
                done += step
        return found

    def sync(self) -> None:
        """Wait until the file is on the disk. May be called from another thread."""
        getattr(os, "fdatasync", os.fsync)(self._file.fileno())

    def clear(self) -> None:
        """Empty the file."""
        self._file.truncate(0)
        self.end = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _pieces(
    run: int, blocks: Sequence[int], values: Sequence[Any], worker: str, state_kind: int, state: bytes
) -> list[bytes | memoryview]:
    """The pieces of a record, large buffers not copied."""
    packed = pack(list(values), None)
    buffers = [memoryview(buffer) for buffer in packed.buffers]
    name = worker.encode()
    table = struct.pack(f"<{len(blocks) + len(buffers)}Q", *blocks, *[each.nbytes for each in buffers]) + name
    body: list[bytes | memoryview] = [table, packed.payload, state, *buffers]
    checksum = 0
    for piece in body:
        checksum = zlib.crc32(piece, checksum)
    rest = _HEAD.pack(
        _MAGIC,
        0,
        checksum,
        run,
        len(blocks),
        len(buffers),
        state_kind,
        len(name),
        len(packed.payload),
        len(state),
        sum(each.nbytes for each in buffers),
    )[_CHECKED_FROM:]
    head = _MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest
    # As few pieces as can be without copying what is large.
    return [head + table + packed.payload, *([state] if state else []), *buffers]


def _numbers(head: _Head, table: bytes | bytearray) -> tuple[int, ...]:
    """Numbers of the blocks, then lengths of the buffers."""
    return struct.unpack_from(f"<{head.blocks + head.buffers}Q", table)


def _entry(offset: int, head: _Head, table: bytes) -> Entry:
    state = None
    if head.state_kind == _NEW_STATE:
        state = (offset + _HEAD.size + head.table_bytes + head.pickle_bytes, head.state_bytes)
    worker = table[head.number_bytes :].decode()
    return Entry(offset, head.run, _numbers(head, table)[: head.blocks], worker, state)


def _write(file: io.FileIO, pieces: Sequence[bytes | memoryview]) -> None:
    """Write all of it; a system may take less than it is given."""
    left = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    if not hasattr(os, "writev"):
        for piece in left:
            while piece:
                piece = piece[file.write(piece[:_MOST_AT_ONCE]) :]
        return
    while left:
        written = os.writev(file.fileno(), left[:_PIECES_AT_ONCE])
        while left and written >= left[0].nbytes:
            written -= left.pop(0).nbytes
        if written:
            left[0] = left[0][written:]
