"""Messages to frames and back. No socket is touched here, and nothing is unpickled.

A message is a list of frames. The first is a fixed head that says what the message is, which lease it
belongs to and where its large buffers are. Payload frames follow: a pickle (protocol 5) and, for buffers
that do not travel through shared memory, one frame each::

    head  = kind u8 | flags u8 | buffers u16 | number u32 | slot u32 | position u32 | lease u64
            | seconds f64 | overhead f64 | table
    table = one entry a buffer: slab u64 (0: the buffer is the next frame) | length u64
    frames = [head, pickle, buffer, buffer, ...]

`decode` accepts anything and either returns a `Message` or raises `BadMessage`: what it returns is of
the right shape, so that no reader has to check again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

__all__ = ["NO_SLAB", "PROTOCOL", "BadMessage", "BufferPlace", "Kind", "Message", "decode", "encode"]

PROTOCOL = 3
"""Raised when a frame changes its meaning; both ends must have the same."""

NO_SLAB = 0
"""Slab number of a buffer that travels as a frame of its own."""

_HEAD = struct.Struct("<BBHIIIQdd")
_PLACE = struct.Struct("<QQ")


class Kind(IntEnum):
    """What a message says."""

    HELLO = 1
    """Worker to main: I am here. Payload: JSON, the only payload that is read before anything is trusted."""

    JOB = 2
    """Main to worker: the pickled job."""

    READY = 3
    """Worker to main: I have the job and can take blocks."""

    REFUSED = 4
    """Worker to main: I cannot unpickle the job. Payload: why, as text."""

    WORK = 5
    """Main to worker: `number` blocks under a lease."""

    ANSWER = 6
    """Worker to main: the next `number` values of a lease, from the place `position` in it on. Who answers
    twice says the same place twice, and is not taken to have answered the blocks behind it."""

    FAILED = 7
    """Worker to main: the user's function raised on the block of a lease whose place in it is `number`. What
    was done before it and not answered is not handed in, and what comes after it is not begun."""

    STOP = 8
    """Main to worker: no more blocks will come; end. `number` 1: at once, whatever you are doing."""

    RETURNED = 9
    """Either way, on one host: these slabs of yours are free again. Payload: their numbers."""

    RECALL = 10
    """Main to worker: give back a lease, if you have not begun it."""

    GAVE_BACK = 11
    """Worker to main: I shall not do what I have not answered of this lease."""

    LOST = 12
    """Agent to main: a slot has ended by itself. Payload: JSON, how."""

    OUTPUT = 13
    """Agent to main: text that a slot printed; `number` 1: to stdout, 2: to stderr."""

    DRAINING = 14
    """Agent to main: I have been asked to end, and take no more blocks. Payload: why, as text."""

    GOODBYE = 15
    """Agent to main: the last message. Payload: why, as text."""


FLAG_STARVED = 1
FLAG_STATE = 2
"""The payload ends with the worker's copy of the state."""


class BadMessage(ValueError):
    """Frames that are no message of ours."""


class BufferPlace(NamedTuple):
    """Where a buffer that was taken out of a pickle is."""

    slab: int
    length: int


class Message(NamedTuple):
    """One message, either way.

    Attributes
    ----------
    kind : Kind
    lease : int
        The lease it is about, or 0.
    number : int
        Blocks (or slabs) it is about.
    slot : int
        Which of an agent's slots it is from or for; 0 where there are no agents.
    payload : bytes-like
        A pickle, or JSON for `Kind.HELLO`.
    places : sequence of BufferPlace
        One a buffer that was taken out of the pickle.
    buffers : sequence of bytes-like
        The buffers among `places` that have no slab, in order.
    seconds, overhead_s : float
        Time spent in the user's function; time spent around it.
    starved, has_state : bool
        See `scheduler.Answered`; whether the pickle carries the worker's state.
    position : int
        Place in the lease of the first block of an answer.
    """

    kind: Kind
    lease: int = 0
    number: int = 0
    payload: Any = b""
    places: Sequence[BufferPlace] = ()
    buffers: Sequence[Any] = ()
    seconds: float = 0.0
    overhead_s: float = 0.0
    starved: bool = False
    has_state: bool = False
    slot: int = 0
    position: int = 0


def encode(message: Message) -> list[Any]:
    """The frames of a message.

    Examples
    --------
    >>> frames = encode(Message(Kind.WORK, lease=7, number=1, payload=b"p"))
    >>> decode(frames).lease
    7
    """
    flags = message.starved * FLAG_STARVED | message.has_state * FLAG_STATE
    head = _HEAD.pack(
        message.kind,
        flags,
        len(message.places),
        message.number,
        message.slot,
        message.position,
        message.lease,
        message.seconds,
        message.overhead_s,
    )
    if message.places:
        head += b"".join([_PLACE.pack(slab, length) for slab, length in message.places])
    return [head, message.payload, *message.buffers]


def decode(frames: Sequence[Any]) -> Message:
    """The message in these frames (bytes-like objects).

    Raises
    ------
    BadMessage
        If they are not one, whatever else they are.
    """
    if len(frames) < 2:
        raise BadMessage(f"{len(frames)} frames; at least 2 are needed")
    head = bytes(frames[0])
    if len(head) < _HEAD.size:
        raise BadMessage(f"a head of {len(head)} bytes; at least {_HEAD.size} are needed")
    code, flags, places_count, number, slot, position, lease, seconds, overhead_s = _HEAD.unpack_from(head)
    if len(head) != _HEAD.size + places_count * _PLACE.size:
        raise BadMessage(f"a head of {len(head)} bytes for {places_count} buffers")
    try:
        kind = Kind(code)
    except ValueError:
        raise BadMessage(f"unknown kind {code}") from None
    if flags & ~(FLAG_STARVED | FLAG_STATE):
        raise BadMessage(f"unknown flags {flags:#x}")
    if not (seconds >= 0.0 and overhead_s >= 0.0):
        raise BadMessage("a negative time")
    places: list[BufferPlace] = []
    inline = 0
    for offset in range(_HEAD.size, len(head), _PLACE.size):
        slab, length = _PLACE.unpack_from(head, offset)
        if slab == NO_SLAB:
            if 2 + inline >= len(frames) or memoryview(frames[2 + inline]).nbytes != length:
                raise BadMessage(f"buffer frame {inline} is missing or not of {length} bytes")
            inline += 1
        places.append(BufferPlace(slab, length))
    if len(frames) != 2 + inline:
        raise BadMessage(f"{len(frames) - 2} buffer frames; {inline} are announced")
    return Message(
        kind,
        lease,
        number,
        frames[1],
        places,
        frames[2:],
        seconds,
        overhead_s,
        bool(flags & FLAG_STARVED),
        bool(flags & FLAG_STATE),
        slot,
        position,
    )
