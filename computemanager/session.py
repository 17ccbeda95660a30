"""A reliable stream of messages over a connection that may break. No socket, thread or clock is here.

The channel below keeps packets in order, but loses those under way when it breaks, silently and in either
direction. Two `Session` objects, one at each end, make up for it: what is sent at one end comes out at the
other, in order, each message exactly once.

The frames of a message are one stream of bytes, cut where a packet is full. A part is all of a frame, or as
much of it as fits; frames without a byte have no part. So a small message is one packet, sent and handed out
without a copy, and a large frame is copied once, into the buffer it is put together in.

Data packets are numbered from 1, and the receiver takes only the next one. From a gap it knows of a loss, or
from a beat, which names the last packet put out. It asks, and the sender puts out again all that is not
acknowledged (go back n), in a new *round*. A request says which round it is about, so that a loss seen ten
times is made up for once: packets that were already under way when the sender went back ask for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from computemanager.packet import (
    AGAIN,
    BEAT,
    BEGINS,
    DATA,
    HEAD_BYTES,
    MAX_FRAMES,
    BadPacket,
    Envelope,
    flat_view,
    make_head,
    open_packet,
    part_bytes,
    table_of,
)

__all__ = ["BadPacket", "Session"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

ACKNOWLEDGE_BYTES = 512 * KIB
ACKNOWLEDGE_PACKETS = 16
"""An acknowledgement goes out by itself after so much was received, and otherwise with what goes out next."""


class _Message:
    """A message to be sent, cut into packets as they are put out."""

    __slots__ = ("done", "frames", "lengths", "offset", "position", "remaining")

    def __init__(self, frames: list[Any], lengths: list[int], done: Callable[[], None] | None) -> None:
        self.frames = frames  # bytes, or flat views
        self.lengths = lengths
        self.done = done
        self.position = self.offset = 0
        self.remaining = sum(lengths)

    def cut(self, fragment_bytes: int) -> list[Any]:
        """The parts of the next packet."""
        if self.offset == self.position == 0 and self.remaining <= fragment_bytes:
            self.remaining = 0
            return self.frames if all(self.lengths) else [frame for frame in self.frames if len(frame)]
        parts: list[Any] = []
        room = fragment_bytes
        while room and self.remaining:
            length = self.lengths[self.position]
            take = min(room, length - self.offset)
            if take == length > 0:
                parts.append(self.frames[self.position])
            elif take:
                parts.append(memoryview(self.frames[self.position])[self.offset : self.offset + take])
            room -= take
            self.remaining -= take
            self.offset += take
            if self.offset == length:
                self.position += 1
                self.offset = 0
        return parts


class _Packet:
    """A data packet that was put out and is not acknowledged."""

    __slots__ = ("content_bytes", "flags", "message", "nbytes", "parts", "table")

    def __init__(
        self, flags: int, table: bytes, parts: list[Any], content_bytes: int, message: _Message | None
    ) -> None:
        self.flags = flags
        self.table = table
        self.parts = parts
        self.content_bytes = content_bytes
        self.nbytes = HEAD_BYTES + len(table) + content_bytes
        self.message = message  # where this is its last packet


class _Incoming:
    """A message of which not all packets have come."""

    __slots__ = ("_buffer", "_filled", "_view", "frames", "lengths")

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = lengths
        self.frames: list[Any] = []  # those that are complete
        self._buffer: Any = None
        self._view: memoryview | None = None  # of the buffer in which the next frame is put together
        self._filled = 0

    def add(self, parts: Sequence[Any], nbytes: int, allocate: Callable[[int], Any]) -> None:
        """Take in the parts of a packet, `nbytes` in all; all of them, or none if that raises."""
        begins = not self.frames and not self._filled
        whole = begins and nbytes == sum(self.lengths) and all(self.lengths)
        if whole and tuple(map(part_bytes, parts)) == self.lengths:
            self.frames = list(parts)  # most messages: all of it at once
            return
        frames, opened, filled = self._arrange(parts, nbytes)
        buffer, view = self._buffer, self._view
        if view is not None:
            piece = flat_view(parts[0])
            view[self._filled : self._filled + len(piece)] = piece
        if opened is not None:
            length = self.lengths[len(self.frames) + len(frames)]
            buffer = allocate(length)
            view = memoryview(buffer).cast("B")
            if view.readonly or len(view) != length:
                raise TypeError(
                    f"allocate({length}) gave something else than a writable buffer of {length} bytes"
                )
            view[:filled] = flat_view(opened)
        elif not filled:
            buffer = view = None
        self.frames += frames
        self._buffer, self._view, self._filled = buffer, view, filled

    def _arrange(self, parts: Sequence[Any], announced: int) -> tuple[list[Any], Any, int]:
        """Check the parts against the lengths.

        Returns the frames that they complete, the last part where it opens a frame that goes on, and how much
        of the frame that goes on is there.
        """
        lengths, filled = self.lengths, self._filled
        position = len(self.frames)
        frames: list[Any] = []
        last = len(parts) - 1
        nbytes = 0
        opened = None
        for at, part in enumerate(parts):
            while position < len(lengths) and not lengths[position]:
                frames.append(b"")
                position += 1
            length = part_bytes(part)
            nbytes += length
            if position == len(lengths):
                raise BadPacket(f"part {at} comes after the last of {len(lengths)} frames")
            missing = lengths[position] - filled
            if not 0 < length <= missing or (length < missing and at < last):
                raise BadPacket(f"part {at} has {length} bytes; {missing} of frame {position} are missing")
            if length < missing:
                opened = None if filled else part
                filled += length
            else:
                frames.append(self._buffer if filled else part)
                position += 1
                filled = 0
        while position < len(lengths) and not lengths[position]:
            frames.append(b"")
            position += 1
        if announced != nbytes:
            raise BadPacket(f"parts of {nbytes} bytes; {announced} are announced")
        return frames, opened, filled


class Session:
    """One end of a stream of messages in both directions.

    Nothing is sent by itself. Put `packets` on the socket after each `send` and `receive`, and a `beat` every
    second or so: without beats, the loss of the last packets would stay unnoticed.

    Parameters
    ----------
    token : int
        Number below 2**64 that both ends agreed on; a packet with another one is of another session.
    fragment_bytes : int, optional
        Most bytes of content in a packet. Default 2 MiB.
    window_bytes : int, optional
        How much may be under way: put out and not acknowledged. Default 32 MiB, the same at both ends.
    max_message_bytes : int, optional
        A message with more content is refused, on either side. Default 64 GiB.
    allocate : callable, optional
        Makes the buffer of so many bytes in which a frame is put together that comes in pieces. Default
        `bytearray`.

    Attributes
    ----------
    unacknowledged : int
        Bytes of packets, heads included, that were put out and not acknowledged: never more than
        `window_bytes` and one packet.
    duplicates : int
        Packets received once more, and dropped.
    resent : int
        Packets put out once more.
    received : int
        Messages received.
    acknowledged : int
        Bytes that the other end has acknowledged so far, counted as in `unacknowledged`.
    fragment_bytes : int
        As given; may be changed, for packets yet to be cut.

    Examples
    --------
    >>> here, there = Session(7), Session(7)
    >>> here.send([b"head", b"", b"body"], done=lambda: print("arrived"))
    >>> for packet in here.packets():
    ...     there.receive(packet)
    [[b'head', b'', b'body']]
    >>> here.receive(there.beat())
    arrived
    []
    >>> here.idle
    True
    """

    def __init__(
        self,
        token: int,
        *,
        fragment_bytes: int = 2 * MIB,
        window_bytes: int = 32 * MIB,
        max_message_bytes: int = 64 * GIB,
        allocate: Callable[[int], Any] = bytearray,
    ) -> None:
        if fragment_bytes < 1:
            raise ValueError(f"fragment_bytes is {fragment_bytes}; a packet holds at least 1 byte")
        self._token = token
        self.fragment_bytes = fragment_bytes
        self._window_bytes = window_bytes
        self._max_message_bytes = max_message_bytes
        self._allocate = allocate
        self.unacknowledged = self.acknowledged = 0
        self.duplicates = self.resent = self.received = 0
        # What we send: packets _first to _last are in _sent, _next is the one to be put out next.
        self._queue: deque[_Message] = deque()
        self._sent: dict[int, _Packet] = {}
        self._first, self._next, self._last = 1, 1, 0
        self._round = 0
        # What we receive.
        self._expected = 1
        self._incoming: _Incoming | None = None
        self._their_round = 0
        self._asked = False  # for the gap in their round, because of a packet behind it
        self._ask = False  # with the next packet that we put out
        # What we have to acknowledge, beyond what the last packet that we put out did.
        self._news_packets = self._news_bytes = 0
        self._news_due = False
        self._acknowledge_bytes = min(ACKNOWLEDGE_BYTES, window_bytes // 4)

    @property
    def idle(self) -> bool:
        """Whether all that was sent is acknowledged."""
        return not self._queue and not self._sent

    def send(self, frames: Sequence[Any], done: Callable[[], None] | None = None) -> None:
        """Queue a message.

        Parameters
        ----------
        frames : sequence of bytes-like
            Kept as they are, not copied: they must not change until the other end has all of them.
        done : callable, optional
            Called once, when that is so and the frames are let go, from within `receive`. It must not raise.

        Raises
        ------
        ValueError
            If the message is too large, or has too many frames.
        TypeError
            If a frame is not bytes-like, or its bytes do not lie behind one another.
        """
        flat = [frame if type(frame) is bytes else flat_view(frame) for frame in frames]
        lengths = [len(frame) for frame in flat]
        if len(lengths) > MAX_FRAMES:
            raise ValueError(f"a message of {len(lengths)} frames; put them into at most {MAX_FRAMES}")
        message = _Message(flat, lengths, done)
        if message.remaining > self._max_message_bytes:
            raise ValueError(
                f"a message of {message.remaining} bytes; split it, the limit is {self._max_message_bytes}"
            )
        self._queue.append(message)

    def packets(self) -> Iterator[list[Any]]:
        """Packets to be put on the socket now; each counts as put out once it is taken.

        First those that were lost, then new ones as far as the window allows (one at least where nothing is
        under way), and a beat if an acknowledgement is due and there was nothing to carry it.
        """
        while True:
            if self._next <= self._last:
                packet = self._sent[self._next]
                self.resent += 1
            elif self._queue and self.unacknowledged <= self._window_bytes:
                packet = self._cut()
            else:
                break
            head = self._head(DATA, self._next, packet)
            self._next += 1
            yield [head, *packet.parts]
        if self._news_due or self._ask:
            yield self.beat()

    def beat(self) -> list[Any]:
        """A packet without data, by which the other end notices what it has missed; it acknowledges too."""
        return [self._head(BEAT, self._next - 1)]

    def receive(self, frames: Sequence[Any]) -> list[list[Any]]:
        """Take in a packet.

        Parameters
        ----------
        frames : sequence of bytes-like
            The frames of the packet.

        Returns
        -------
        list of list of bytes-like
            The messages that it completes. A frame is the very part that came where it came in one piece, the
            buffer it was put together in where it did not, and ``b""`` where it is empty.

        Raises
        ------
        BadPacket
            If it is malformed, of another session or impossible at this point. All is as it was before; what
            `allocate` raises changes nothing either, and the packet will be asked for again.
        """
        envelope, lengths = open_packet(frames)
        self._check(envelope, lengths)
        messages: list[list[Any]] = []
        wanted = envelope.kind == DATA and envelope.number == self._expected
        if wanted:
            messages = self._take_in(lengths, frames[1:], envelope.nbytes)
        # Nothing below can fail.
        if envelope.round > self._their_round:
            self._their_round = envelope.round
            self._asked = self._ask = False  # they went back, to where we asked or before
        if not wanted:
            self._notice(envelope)
        released = self._release(envelope.acknowledged)
        if envelope.flags & AGAIN and envelope.about == self._round:
            self._round += 1
            self._next = self._first
        for done in released:
            done()
        return messages

    def _cut(self) -> _Packet:
        """The next packet that was never put out."""
        message = self._queue[0]
        begins = message.position == message.offset == 0
        table = table_of(message.lengths) if begins else b""
        before = message.remaining
        parts = message.cut(self.fragment_bytes)
        if not message.remaining:
            self._queue.popleft()
        flags = BEGINS if begins else 0
        done = None if message.remaining else message
        packet = _Packet(flags, table, parts, before - message.remaining, done)
        self._last += 1
        self._sent[self._last] = packet
        self.unacknowledged += packet.nbytes
        return packet

    def _head(self, kind: int, number: int, data: _Packet | None = None) -> bytes:
        """The head of a packet that is put out now, with all that there is to be said by the way."""
        flags = about = nbytes = parts = 0
        table = b""
        if data is not None:
            flags, table, nbytes, parts = data.flags, data.table, data.content_bytes, len(data.parts)
        if self._ask:
            flags |= AGAIN
            about = self._their_round
            self._ask = False
        self._news_due = False
        self._news_packets = self._news_bytes = 0
        taken = self._expected - 1
        return make_head(
            Envelope(0, self._token, number, taken, self._round, about, nbytes, parts, kind, flags), table
        )

    def _check(self, envelope: Envelope, lengths: Sequence[int] | None) -> None:
        """Refuse a packet that says what cannot be."""
        if envelope.token != self._token:
            raise BadPacket(f"a packet of session {envelope.token:#x}; this is {self._token:#x}")
        acknowledged, about = envelope.acknowledged, envelope.about
        if acknowledged > self._last:
            raise BadPacket(f"packet {acknowledged} is acknowledged; {self._last} were sent")
        if envelope.flags & AGAIN:
            if about > self._round or (about == self._round and acknowledged == self._last):
                raise BadPacket(f"asks for packet {acknowledged + 1} of round {about}, which was never sent")
        elif about:
            raise BadPacket(f"is about round {about} and asks for nothing")
        if lengths and sum(lengths) > self._max_message_bytes:
            raise BadPacket(f"a message of {sum(lengths)} bytes; the limit is {self._max_message_bytes}")

    def _take_in(self, lengths: tuple[int, ...] | None, parts: Sequence[Any], nbytes: int) -> list[list[Any]]:
        """Take in the data packet that comes next, `lengths` where a message begins; what it completes."""
        incoming = self._incoming
        if lengths is not None:
            if incoming is not None:
                raise BadPacket("a message begins before the one before it has ended")
            incoming = _Incoming(lengths)
        elif incoming is None:
            raise BadPacket("the middle of a message that has not begun")
        incoming.add(parts, nbytes, self._allocate)
        self._news_packets += 1
        self._news_bytes += nbytes + HEAD_BYTES
        if self._news_packets >= ACKNOWLEDGE_PACKETS or self._news_bytes >= self._acknowledge_bytes:
            self._news_due = True
        self._expected += 1
        self._ask = False
        if len(incoming.frames) < len(incoming.lengths):
            self._incoming = incoming
            return []
        self._incoming = None
        self.received += 1
        return [incoming.frames]

    def _notice(self, envelope: Envelope) -> None:
        """Notice what a packet other than the next one means for what we acknowledge and ask for."""
        if envelope.number < self._expected:
            if envelope.kind == DATA:
                self.duplicates += 1
                self._news_due = True
        elif envelope.round == self._their_round and (envelope.kind == BEAT or not self._asked):
            # A gap. Packets behind it ask once a round; a beat asks again, as the request may have been lost.
            self._ask = self._asked = True

    def _release(self, acknowledged: int) -> list[Callable[[], None]]:
        """Let go of packets up to this one; whom to tell."""
        released = []
        while self._first <= acknowledged:
            packet = self._sent.pop(self._first)
            self._first += 1
            self.unacknowledged -= packet.nbytes
            self.acknowledged += packet.nbytes
            if packet.message is not None and packet.message.done is not None:
                released.append(packet.message.done)
        self._next = max(self._next, self._first)
        return released
