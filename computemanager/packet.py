"""The form of a packet between main and an agent. No socket is touched here, and nothing is unpickled.

A packet is a list of frames: a head, then parts of at most one message::

    head  = checksum u32 | token u64 | number u64 | acknowledged u64 | round u32 | about u32
            | bytes u64 | parts u32 | kind u8 | flags u8 | table
    table = length u64 of each of the message's frames; only in the packet in which a message begins

The checksum is of the head alone. It finds what is not a packet of ours; that contents arrive unchanged is
the business of the encrypted channel. What the fields mean is `computemanager.session`'s business.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple
from zlib import crc32

__all__ = [
    "AGAIN",
    "BEAT",
    "BEGINS",
    "DATA",
    "HEAD_BYTES",
    "MAX_FRAMES",
    "BadPacket",
    "Envelope",
    "flat_view",
    "make_head",
    "open_packet",
    "part_bytes",
    "table_of",
]

MAX_FRAMES = 70_000
"""Most frames of a message: more than the buffers that `computemanager.wire` can count."""

_BODY = struct.Struct("<QQQIIQIBB")
_CHECKSUM = struct.Struct("<I")
_HEAD = struct.Struct("<IQQQIIQIBB")
_LENGTH_BYTES = 8
HEAD_BYTES = _HEAD.size
"""Of a head without a table."""

_MAX_HEAD_BYTES = _HEAD.size + MAX_FRAMES * _LENGTH_BYTES
_TABLES = [struct.Struct(f"<{entries}Q") for entries in range(16)]

DATA = 1
"""Kind of packet: the next piece of a message; `number` is its place in the stream, from 1."""

BEAT = 2
"""Kind of packet: no data; `number` is the last packet that was put out."""

BEGINS = 1
"""Flag: a message begins with this packet."""

AGAIN = 2
"""Flag: a packet was lost in the round `about`; put out again all after `acknowledged`."""


class BadPacket(ValueError):
    """Frames that are no packet of ours, or one that cannot come at this point."""


class Envelope(NamedTuple):
    """What the head of a packet says, its table aside."""

    checksum: int
    token: int
    number: int
    acknowledged: int
    round: int
    about: int
    nbytes: int
    parts: int
    kind: int
    flags: int


def flat_view(frame: Any) -> memoryview:
    """A view of a frame's bytes."""
    view = memoryview(frame)
    if not view.c_contiguous:
        raise TypeError("a frame's bytes must lie behind one another; make a copy of it, by bytes() say")
    if view.ndim == 1 and view.format == "B":
        return view
    return view.cast("B") if view.nbytes else memoryview(b"")


def part_bytes(part: Any) -> int:
    """Length of a part that was received."""
    if type(part) is bytes:
        return len(part)
    if type(part) is memoryview and part.c_contiguous:
        return part.nbytes
    try:
        return flat_view(part).nbytes
    except (TypeError, ValueError, BufferError) as error:
        raise BadPacket(f"a part that is not bytes: {error}") from None


def open_packet(frames: Sequence[Any]) -> tuple[Envelope, tuple[int, ...] | None]:
    """The head of a packet, and the lengths of the message's frames where one begins.

    Everything is checked that can be seen from the packet alone, but for the lengths of its parts.
    """
    if not frames:
        raise BadPacket("a packet without frames")
    nbytes = part_bytes(frames[0])
    if not _HEAD.size <= nbytes <= _MAX_HEAD_BYTES:
        raise BadPacket(f"a head of {nbytes} bytes; it has {_HEAD.size} to {_MAX_HEAD_BYTES}")
    head = bytes(frames[0])
    envelope = Envelope._make(_HEAD.unpack_from(head))
    if crc32(head[_CHECKSUM.size :]) != envelope.checksum:
        raise BadPacket("the checksum is wrong")
    number, parts, kind, flags = envelope.number, envelope.parts, envelope.kind, envelope.flags
    if not DATA <= kind <= BEAT or flags & ~(BEGINS | AGAIN):
        raise BadPacket(f"unknown kind {kind} or flags {flags:#x}")
    if len(frames) != 1 + parts:
        raise BadPacket(f"{len(frames) - 1} parts; {parts} are announced")
    lengths = None
    if flags & BEGINS:
        lengths = _lengths(head)
    elif nbytes != _HEAD.size:
        raise BadPacket(f"a head of {nbytes} bytes where no message begins")
    if kind == DATA:
        if not number:
            raise BadPacket("a data packet with number 0")
        if not parts and (lengths is None or any(lengths)):
            raise BadPacket(f"data packet {number} has no data")
    elif parts or envelope.nbytes or flags & BEGINS:
        raise BadPacket("a beat that carries data")
    return envelope, lengths


def make_head(envelope: Envelope, table: bytes) -> bytes:
    """A head that says this; its checksum is filled in."""
    body = _BODY.pack(*envelope[1:]) + table
    return _CHECKSUM.pack(crc32(body)) + body


def table_of(lengths: Sequence[int]) -> bytes:
    """The table of a message with frames of these lengths."""
    entries = len(lengths)
    table = _TABLES[entries] if entries < len(_TABLES) else struct.Struct(f"<{entries}Q")
    return table.pack(*lengths)


def _lengths(head: bytes) -> tuple[int, ...]:
    entries, over = divmod(len(head) - _HEAD.size, _LENGTH_BYTES)
    if over:
        raise BadPacket(f"a table of lengths with {over} bytes too many")
    table = _TABLES[entries] if entries < len(_TABLES) else struct.Struct(f"<{entries}Q")
    return table.unpack_from(head, _HEAD.size)
