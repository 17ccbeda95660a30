"""Sessions: whatever the channel loses, everything comes out once, in order, and nothing else does."""

from __future__ import annotations

import random
import struct
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any
from zlib import crc32

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from computemanager.packet import MAX_FRAMES
from computemanager.session import ACKNOWLEDGE_BYTES, ACKNOWLEDGE_PACKETS, BadPacket, Session

FRAGMENT = 64
WINDOW = 600
SIZES = (0, 1, 2, 30, 63, 64, 65, 100, 127, 128, 129, 300, 1500)

HEAD = struct.Struct("<IQQQIIQIBB")
LARGEST_PACKET = FRAGMENT + HEAD.size + 8 * 8  # content, head, table of at most 8 frames
DATA, BEAT = 1, 2
BEGINS, AGAIN = 1, 2


def make(**changes: Any) -> Session:
    return Session(7, **{"fragment_bytes": FRAGMENT, "window_bytes": WINDOW, **changes})


def plain(frames: Iterable[Any]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


def forge(
    kind: int = DATA,
    flags: int = 0,
    number: int = 0,
    *parts: Any,
    table: Iterable[int] = (),
    **fields: int,
) -> list[bytes]:
    """Make a packet whose checksum is right, whatever else is not."""
    given = {"token": 7, "acknowledged": 0, "their_round": 0, "about": 0}
    given["nbytes"] = sum(map(len, parts))
    token, acknowledged, their_round, about, nbytes = (given | fields).values()
    body = HEAD.pack(0, token, number, acknowledged, their_round, about, nbytes, len(parts), kind, flags)
    body += b"".join(struct.pack("<Q", length) for length in table)
    return [with_new_checksum(body), *parts]


def with_new_checksum(head: bytes) -> bytes:
    return struct.pack("<I", crc32(head[4:])) + head[4:]


def snapshot(thing: Any) -> Any:
    """Copy everything that a session consists of, so that two moments can be compared."""
    if isinstance(thing, (list, tuple, deque)):
        return [snapshot(each) for each in thing]
    if isinstance(thing, dict):
        return {key: snapshot(value) for key, value in thing.items()}
    if isinstance(thing, (bytes, bytearray, memoryview)):
        return bytes(thing)
    if type(thing).__module__ == Session.__module__:
        names = getattr(type(thing), "__slots__", None) or vars(thing)
        return {name: snapshot(getattr(thing, name)) for name in names}
    return thing


class Buffer(bytearray):
    """A buffer whose end can be watched."""


class Link:
    """Two sessions and a channel between them that can be cut; checks what comes out as it goes."""

    def __init__(self, **changes: Any) -> None:
        self.ends = make(**changes), make(**changes)
        self.under_way: tuple[deque[list[bytes]], ...] = deque(), deque()  # to the end of that position
        self.sent: tuple[list[list[bytes]], ...] = [], []  # by the end of that position
        self.delivered = [0, 0]  # how many of the messages to the end of that position
        self.released: tuple[list[int], ...] = [], []
        self.buffers: tuple[list[list[weakref.ref[Buffer]]], ...] = [], []

    def send(self, end: int, sizes: Iterable[int]) -> None:
        number = len(self.sent[end])
        message = [bytes((number + position) % 251 for position in range(size)) for size in sizes]
        buffers = [Buffer(frame) for frame in message]
        self.sent[end].append(message)
        self.buffers[end].append([weakref.ref(buffer) for buffer in buffers if buffer])
        self.ends[end].send(buffers, lambda: self.released[end].append(number))

    def put_out(self, end: int, most: int = 1000) -> int:
        packets = self.ends[end].packets()
        taken = 0
        while taken < most and (packet := next(packets, None)) is not None:
            self.under_way[1 - end].append(plain(packet))
            taken += 1
            assert self.ends[end].unacknowledged <= WINDOW + LARGEST_PACKET
        return taken

    def beat(self, end: int) -> None:
        self.under_way[1 - end].append(plain(self.ends[end].beat()))

    def deliver(self, end: int, most: int = 1000) -> None:
        for _ in range(min(most, len(self.under_way[end]))):
            self.receive(end, self.under_way[end].popleft())

    def receive(self, end: int, packet: list[bytes]) -> None:
        for message in self.ends[end].receive(packet):
            assert plain(message) == self.sent[1 - end][self.delivered[end]]
            self.delivered[end] += 1
        assert self.ends[end].received == self.delivered[end]
        self.check_buffers(end)

    def check_buffers(self, end: int) -> None:
        """Those of messages acknowledged by then are gone, all others are there."""
        released = self.released[end]
        assert released == list(range(len(released)))
        assert len(released) <= self.delivered[1 - end]
        for number, buffers in enumerate(self.buffers[end]):
            for buffer in buffers:
                assert (buffer() is None) == (number < len(released))

    def cut(self) -> None:
        for packets in self.under_way:
            packets.clear()

    def settle(self) -> None:
        """Let everything flow until nothing more comes by itself."""
        while self.put_out(0) + self.put_out(1) or any(self.under_way):
            self.deliver(0)
            self.deliver(1)

    def heal(self) -> int:
        """Let everything flow, with beats; how many it took until all was through and acknowledged."""
        beats = 0
        self.settle()
        while not (self.ends[0].idle and self.ends[1].idle):
            beats += 1
            self.beat(0)
            self.beat(1)
            self.settle()
            assert beats < 10, "the sessions never come to an end"
        assert self.delivered == [len(self.sent[1]), len(self.sent[0])]
        for end in (0, 1):
            assert len(self.released[end]) == len(self.sent[end])
            assert self.ends[end].unacknowledged == 0
        return beats


ends = st.integers(0, 1)


class BreakingChannel(RuleBasedStateMachine):
    """Packets are lost, come twice, are damaged, and overtake each other, which no channel of ours does."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Link()
        self.old: list[tuple[int, list[bytes]]] = []

    @rule(end=ends, sizes=st.lists(st.sampled_from(SIZES), max_size=8))
    def send(self, end: int, sizes: list[int]) -> None:
        self.link.send(end, sizes)

    @rule(end=ends, most=st.integers(1, 20))
    def put_out(self, end: int, most: int) -> None:
        self.link.put_out(end, most)

    @rule(end=ends)
    def beat(self, end: int) -> None:
        self.link.beat(end)

    @rule(end=ends, most=st.integers(1, 20))
    def deliver(self, end: int, most: int) -> None:
        self.old += [(end, packet) for packet in list(self.link.under_way[end])[:most]]
        self.link.deliver(end, most)

    @rule()
    def cut(self) -> None:
        self.link.cut()

    @rule(end=ends, data=st.data())
    def lose_some(self, end: int, data: st.DataObject) -> None:
        packets = self.link.under_way[end]
        lost = data.draw(st.integers(0, len(packets)))
        for _ in range(lost):
            packets.popleft()

    @rule(end=ends, data=st.data())
    def overtake(self, end: int, data: st.DataObject) -> None:
        packets = self.link.under_way[end]
        if len(packets) > 1:
            at = data.draw(st.integers(0, len(packets) - 2))
            packets[at], packets[at + 1] = packets[at + 1], packets[at]

    @rule(data=st.data())
    def repeat_an_old_packet(self, data: st.DataObject) -> None:
        if self.old:
            self.link.receive(*data.draw(st.sampled_from(self.old[-40:])))

    @rule(end=ends, data=st.data())
    def damage_a_head(self, end: int, data: st.DataObject) -> None:
        if self.link.under_way[end]:
            head, *parts = self.link.under_way[end][0]
            bit = data.draw(st.integers(0, 8 * len(head) - 1))
            damaged = bytearray(head)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(BadPacket):
                self.link.receive(end, [bytes(damaged), *parts])

    @invariant()
    def buffers_are_kept_until_acknowledged(self) -> None:
        for end in (0, 1):
            self.link.check_buffers(end)

    def teardown(self) -> None:
        # One beat shows what is missing, one acknowledges it; one more where an old packet came in between.
        assert self.link.heal() <= 3


BreakingChannel.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
test_nothing_is_lost_or_doubled_on_a_breaking_channel = BreakingChannel.TestCase


@pytest.mark.parametrize("seed", range(40))
def test_a_long_conversation_survives_many_cuts(seed: int) -> None:
    chance = random.Random(seed)
    link = Link()
    for _ in range(400):
        end = chance.randrange(2)
        what = chance.random()
        if what < 0.25:
            link.send(end, chance.choices(SIZES, k=chance.randrange(5)))
        elif what < 0.55:
            link.put_out(end, chance.randrange(1, 12))
        elif what < 0.62:
            link.beat(end)
        elif what < 0.97:
            link.deliver(end, chance.randrange(1, 12))
        else:
            link.cut()
    assert link.heal() <= 3
    assert sum(session.resent for session in link.ends) > 0


def test_a_channel_without_faults_needs_no_second_packet() -> None:
    link = Link()
    for number in range(300):
        link.send(number % 2, [number, 3])
        link.settle()
    assert link.heal() <= 2
    assert [session.resent + session.duplicates for session in link.ends] == [0, 0]


# -- what is lost ------------------------------------------------------------------------------------------


def test_a_loss_at_the_end_is_noticed_by_the_next_beat() -> None:
    link = Link()
    link.send(0, [200])
    link.put_out(0)
    link.cut()
    link.settle()
    assert link.delivered == [0, 0]
    link.beat(0)
    link.settle()
    assert link.delivered == [0, 1]


def test_a_gap_is_noticed_without_a_beat_and_asked_for_once() -> None:
    link = Link()
    link.send(0, [FRAGMENT * 5])
    link.put_out(0)
    link.under_way[1].popleft()
    asked = 0
    while link.under_way[1]:
        link.deliver(1, 1)
        asked += link.put_out(1)
    assert asked == 1
    link.settle()
    assert link.delivered == [0, 1]
    assert link.ends[0].resent == 5


def test_a_request_that_was_lost_is_made_again_at_the_next_beat() -> None:
    link = Link()
    link.send(0, [FRAGMENT * 3])
    link.put_out(0)
    link.under_way[1].popleft()
    link.deliver(1)
    link.put_out(1)
    link.cut()
    link.settle()
    assert link.delivered == [0, 0]
    link.beat(0)
    link.settle()
    assert link.delivered == [0, 1]


def test_a_loss_that_many_beats_show_is_made_up_for_once() -> None:
    """Beats that piled up in a slow channel all show the same gap."""
    link = Link()
    link.send(0, [FRAGMENT * 4])
    link.put_out(0)
    link.cut()
    for _ in range(10):
        link.beat(0)
    while link.under_way[1]:
        link.deliver(1, 1)
        link.put_out(1)
    assert len(link.under_way[0]) == 10
    while link.under_way[0]:
        link.deliver(0, 1)
        link.put_out(0)
    link.settle()
    assert link.ends[0].resent == 4
    assert link.ends[1].duplicates == 0


def test_a_loss_is_noticed_from_an_acknowledgement() -> None:
    """One that is often busy acknowledging may never think of a beat."""
    here, there = make(), make()
    here.send([b"lost"])
    list(here.packets())
    there.send([b"x" * 200])
    for packet in there.packets():
        here.receive(packet)
    (acknowledgement,) = here.packets()
    there.receive(acknowledgement)
    (request,) = there.packets()
    here.receive(request)
    assert [there.receive(packet) for packet in here.packets()] == [[[b"lost"]]]


def test_a_loss_while_it_is_made_up_for_is_made_up_for_too() -> None:
    link = Link()
    link.send(0, [FRAGMENT * 4])
    link.put_out(0)
    link.under_way[1].popleft()
    link.deliver(1)
    link.put_out(1)
    link.deliver(0)
    link.put_out(0)  # all of it again
    link.under_way[1].popleft()
    link.settle()
    assert link.delivered == [0, 1]
    assert link.ends[0].resent == 8


def test_a_beat_names_what_was_put_out_and_not_what_will_be() -> None:
    """Or it would show a gap where there is none: between going back and putting out again."""
    here, there = make(), make()
    here.send([b"x" * 100])
    list(here.packets())
    there.receive(here.beat())
    here.receive(there.beat())  # asks for both again
    there.receive(here.beat())
    assert not list(there.packets())


def test_a_request_that_was_not_yet_made_is_forgotten_when_it_was_heard_already() -> None:
    here, there = make(), make()
    here.send([b"x" * 100])
    list(here.packets())
    there.receive(here.beat())
    (request,) = there.packets()
    there.receive(here.beat())
    here.receive(request)
    there.receive(here.beat())  # here has gone back since
    assert not list(there.packets())


def test_an_old_packet_that_comes_once_more_shows_no_loss() -> None:
    here, there = make(), make()
    here.send([b"x" * 200])
    *_, old = here.packets()
    there.receive(old)
    (request,) = there.packets()
    here.receive(request)
    there.receive(next(here.packets()))
    there.receive(old)
    assert not list(there.packets())


def test_a_beat_that_overtakes_what_it_tells_of_asks_for_nothing() -> None:
    here, there = make(), make()
    here.send([b"x"])
    (packet,) = here.packets()
    there.receive(here.beat())
    assert there.receive(packet) == [[b"x"]]
    here.receive(there.beat())
    assert here.idle and not list(here.packets())


def test_packets_that_come_twice_are_counted_and_acknowledged() -> None:
    here, there = make(), make()
    here.send([b"once"])
    (packet,) = here.packets()
    assert there.receive(packet) == [[b"once"]]
    assert not list(there.packets())
    assert there.receive(packet) == []
    assert there.duplicates == 1 and there.received == 1
    (acknowledgement,) = there.packets()
    here.receive(acknowledgement)
    assert here.idle


# -- acknowledgements and the window -----------------------------------------------------------------------


def test_small_messages_are_acknowledged_in_bunches() -> None:
    here, there = Session(7), Session(7)
    for number in range(1, 3 * ACKNOWLEDGE_PACKETS + 1):
        here.send([b"x"])
        for packet in here.packets():
            there.receive(packet)
        answers = list(there.packets())
        assert len(answers) == (number % ACKNOWLEDGE_PACKETS == 0)
    here.receive(answers[0])
    assert here.idle


def test_much_data_is_acknowledged_before_the_window_is_full() -> None:
    here, there = Session(7), Session(7)
    here.send([bytes(ACKNOWLEDGE_BYTES)])
    for packet in here.packets():
        there.receive(packet)
    (acknowledgement,) = there.packets()
    here.receive(acknowledgement)
    assert here.idle


def test_an_acknowledgement_rides_on_data() -> None:
    here, there = make(), make()
    here.send([b"x" * 100])
    for packet in here.packets():
        there.receive(packet)
    there.send([b"answer"])
    (packet,) = there.packets()
    assert here.receive(packet) == [[b"answer"]]
    assert here.idle


def test_what_is_under_way_is_bounded_by_the_window() -> None:
    here = make()
    here.send([b"x" * 10_000])
    first = len(list(here.packets()))
    assert WINDOW < here.unacknowledged <= WINDOW + LARGEST_PACKET
    assert not list(here.packets())
    assert 1 < first < 10_000 / FRAGMENT


@pytest.mark.parametrize("window", [0, 1, 50, 300])
def test_a_window_smaller_than_a_packet_lets_one_through_at_a_time(window: int) -> None:
    link = Link(window_bytes=window)
    link.send(0, [1000, 0, 70])
    link.settle()
    assert link.delivered == [0, 1]


def test_packets_not_taken_are_not_put_out() -> None:
    here, there = make(), make()
    here.send([b"x" * 300])
    there.receive(next(here.packets()))
    assert here.unacknowledged < 2 * LARGEST_PACKET
    messages = [message for packet in here.packets() for message in there.receive(packet)]
    assert plain(messages[0]) == [b"x" * 300]


def test_a_peer_that_asks_for_packets_again_and_acknowledges_them_gets_none() -> None:
    here = make()
    here.send([b"x" * 100])
    list(here.packets())
    here.receive(forge(BEAT, AGAIN))
    here.receive(forge(BEAT, acknowledged=1))
    assert len(list(here.packets())) == 1
    here.receive(forge(BEAT, acknowledged=2))
    assert here.idle and not list(here.packets())


def test_packets_may_become_larger_and_smaller_within_a_message() -> None:
    here, there = make(window_bytes=10**6), make()
    message = [bytes(range(250)) * 3, b"", b"tail"]
    here.send(message)
    messages: list[list[Any]] = []
    for size in (FRAGMENT, 200, 1, 10_000):
        here.fragment_bytes = size
        packet = next(here.packets())
        assert sum(map(len, packet[1:])) == min(size, 754 - FRAGMENT - 201)
        messages += there.receive(plain(packet))
    here.receive(there.beat())
    assert [plain(each) for each in messages] == [message]
    assert here.idle and here.acknowledged > 754 and there.acknowledged == 0


def test_done_may_send_the_next_message() -> None:
    here, there = make(), make()
    here.send([b"first"], lambda: here.send([b"second"]))
    for packet in here.packets():
        there.receive(packet)
    here.receive(there.beat())
    assert not here.idle
    assert [there.receive(packet) for packet in here.packets()] == [[[b"second"]]]


def test_a_message_that_is_partly_acknowledged_keeps_its_buffers() -> None:
    here, there = make(), make()
    done: list[bool] = []
    buffer = Buffer(200)
    gone = weakref.ref(buffer)
    here.send([buffer, b"tail"], lambda: done.append(True))
    del buffer
    packets = list(here.packets())
    for packet in packets[:-1]:
        there.receive(packet)
    here.receive(there.beat())
    del packet
    assert not done and gone() is not None
    there.receive(packets.pop())
    packets.clear()
    here.receive(there.beat())
    assert done and gone() is None


# -- what is sent and handed out ---------------------------------------------------------------------------


def test_parts_are_views_of_the_frames_that_were_sent() -> None:
    large = bytearray(range(200))
    here = make()
    here.send([b"small", large])
    views = [part for packet in here.packets() for part in packet[1:] if isinstance(part, memoryview)]
    assert all(view.obj is large for view in views)
    large[:] = bytes(200)
    assert not any(map(any, views))


def test_a_frame_in_one_piece_is_handed_out_as_it_came() -> None:
    here, there = make(), make()
    here.send([b"head", b"", b"y" * 20])
    (packet,) = here.packets()
    assert len(packet) == 3  # nothing for the empty frame
    parts = [memoryview(bytearray(part)) for part in packet[1:]]
    (frames,) = there.receive([packet[0], *parts])
    assert frames[0] is parts[0] and frames[1] == b"" and frames[2] is parts[1]


def test_a_frame_in_pieces_is_put_together_in_one_buffer() -> None:
    made: list[bytearray] = []

    def allocate(nbytes: int) -> bytearray:
        made.append(bytearray(nbytes))
        return made[-1]

    here, there = make(window_bytes=10**6), make(allocate=allocate)
    here.send([b"a" * 10, b"b" * 200, b"c" * 30, b"d" * 100])
    messages = []
    for packet in here.packets():
        messages += there.receive(packet)
    (frames,) = messages
    assert plain(frames) == [b"a" * 10, b"b" * 200, b"c" * 30, b"d" * 100]
    assert [len(buffer) for buffer in made] == [200, 100]
    assert frames[1] is made[0] and frames[3] is made[1]
    made[0] += b"a buffer of the caller's own, which it may resize"


def test_a_buffer_is_made_when_its_first_byte_arrives() -> None:
    made: list[int] = []

    def allocate(nbytes: int) -> bytearray:
        made.append(nbytes)
        return bytearray(nbytes)

    there = make(allocate=allocate)
    there.receive(forge(DATA, BEGINS, 1, b"ab", table=[2, 100, 2**35]))
    assert made == []
    there.receive(forge(DATA, 0, 2, b"c"))
    there.receive(forge(DATA, 0, 3, b"c" * 99))
    assert made == [100]


def test_many_small_frames_go_in_one_packet() -> None:
    frames = [bytes([number % 256]) * (number % 3) for number in range(MAX_FRAMES)]
    here, there = Session(7), Session(7)
    here.send(frames)
    (packet,) = here.packets()
    assert there.receive(packet) == [frames]


@pytest.mark.parametrize("frames", [[], [b""], [b"", b"", b""]])
def test_a_message_without_a_byte_arrives(frames: list[bytes]) -> None:
    here, there = make(), make()
    here.send(frames)
    (packet,) = here.packets()
    assert there.receive(packet) == [frames]


@pytest.mark.parametrize(
    "frame",
    [
        np.arange(100.0).reshape(20, 5),
        np.zeros((0, 3)),
        np.arange(100, dtype=">i2"),
        memoryview(np.arange(50, dtype=np.uint32)),
        memoryview(b"view"),
        np.float64(7).reshape(()),
    ],
    ids=["matrix", "empty", "big-endian", "view of numbers", "view", "scalar"],
)
def test_any_bytes_that_lie_behind_one_another_can_be_sent(frame: Any) -> None:
    here, there = make(window_bytes=10**6), make()
    here.send([frame])
    messages = [message for packet in here.packets() for message in there.receive(packet)]
    assert plain(messages[0]) == [memoryview(frame).tobytes()]


def test_frames_that_cannot_be_sent_are_refused_at_once() -> None:
    here = make(max_message_bytes=1000)
    with pytest.raises(TypeError, match=r"behind one another; make a copy"):
        here.send([np.arange(100)[::2]])
    with pytest.raises(TypeError, match="bytes-like"):
        here.send(["text"])
    with pytest.raises(ValueError, match=r"a message of 1001 bytes; split it, the limit is 1000"):
        here.send([bytes(1000), b"x"])
    with pytest.raises(ValueError, match=f"{MAX_FRAMES + 1} frames; put them into at most {MAX_FRAMES}"):
        here.send([b""] * (MAX_FRAMES + 1))
    with pytest.raises(ValueError, match="at least 1 byte"):
        make(fragment_bytes=0)
    assert here.idle and not list(here.packets())


@pytest.mark.parametrize("buffer", [b"x" * 100, bytearray(99)], ids=["read only", "too small"])
def test_a_buffer_of_no_use_is_an_error(buffer: Any) -> None:
    here, there = make(), make(allocate=lambda nbytes: buffer)
    here.send([bytes(100)])
    with pytest.raises(TypeError, match=r"allocate\(100\) gave something else than a writable buffer"):
        there.receive(next(here.packets()))


def test_a_packet_for_which_there_is_no_memory_comes_again() -> None:
    memory = iter([False, True])

    def allocate(nbytes: int) -> bytearray:
        if not next(memory):
            raise MemoryError
        return bytearray(nbytes)

    here, there = make(), make(allocate=allocate)
    here.send([b"x" * 100])
    first, second = here.packets()
    before = snapshot(there)
    with pytest.raises(MemoryError):
        there.receive(first)
    assert snapshot(there) == before
    there.receive(second)
    for packet in there.packets():
        here.receive(packet)
    messages = [message for packet in here.packets() for message in there.receive(packet)]
    assert plain(messages[0]) == [b"x" * 100]


# -- what is no packet of ours -----------------------------------------------------------------------------


def in_the_middle() -> Session:
    """Make a session that has sent 3 packets and waits for the rest of a frame, 36 of 100 bytes."""
    here, there = make(), make()
    here.send([b"x" * 150])
    there.send([b"y" * 100])
    list(here.packets())
    here.receive(next(there.packets()))
    return here


MALFORMED = {
    "no frames": ([], "without frames"),
    "text": (["text"], "not bytes"),
    "short head": ([b"x" * 41], "a head of 41 bytes; it has 50 to"),
    "long head": ([bytes(50 + 8 * MAX_FRAMES + 1)], "a head of 560051 bytes"),
    "checksum": ([b"x" * 50], "checksum is wrong"),
    "token": (forge(BEAT, token=8), "a packet of session 0x8; this is 0x7"),
    "kind": (forge(3), "unknown kind 3"),
    "no kind": (forge(0), "unknown kind 0"),
    "flag": (forge(BEAT, 4), "flags 0x4"),
    "acknowledged": (forge(BEAT, acknowledged=4), "packet 4 is acknowledged; 3 were sent"),
    "round": (forge(BEAT, AGAIN, about=1), "packet 1 of round 1, which was never sent"),
    "nothing to repeat": (forge(BEAT, AGAIN, acknowledged=3), "packet 4 of round 0, which was never sent"),
    "about": (forge(BEAT, about=1), "asks for nothing"),
    "data in a beat": (forge(BEAT, 0, 1, b"data"), "a beat that carries data"),
    "bytes in a beat": (forge(BEAT, 0, 1, nbytes=1), "a beat that carries data"),
    "beginning in a beat": (forge(BEAT, BEGINS), "a beat that carries data"),
    "table in a beat": (forge(BEAT, 0, 1, table=[1]), "a head of 58 bytes where no message begins"),
    "table in the middle": (forge(DATA, 0, 2, b"y" * 36, table=[1]), "where no message begins"),
    "number 0": (forge(DATA, 0, 0, b"y"), "number 0"),
    "no data": (forge(DATA, 0, 2), "data packet 2 has no data"),
    "no data at the beginning": (forge(DATA, BEGINS, 9, table=[5]), "data packet 9 has no data"),
    "empty part": (forge(DATA, 0, 2, b""), "part 0 has 0 bytes; 36 of frame 0"),
    "too much": (forge(DATA, 0, 2, b"y" * 37), "part 0 has 37 bytes; 36 of frame 0 are missing"),
    "too many parts": (forge(DATA, 0, 2, b"y" * 36, b"z"), "part 1 comes after the last of 1 frames"),
    "not the last": (forge(DATA, 0, 2, b"y", b"z"), "part 0 has 1 bytes; 36 of frame 0 are missing"),
    "part missing": (forge(DATA, 0, 2, b"y" * 36, b"")[:2], "1 parts; 2 are announced"),
    "part added": ([*forge(DATA, 0, 2, b"y" * 36), b""], "2 parts; 1 are announced"),
    "part cut": (forge(DATA, 0, 2, b"y" * 35, nbytes=36), "parts of 35 bytes; 36 are announced"),
    "text as part": (forge(DATA, 0, 2, "text"), "not bytes"),
    "scattered part": (forge(DATA, 0, 2, memoryview(bytes(72))[::2]), "not bytes"),
    "beginning in the middle": (forge(DATA, BEGINS, 2, b"y" * 36, table=[36]), "before the one before it"),
    "huge": (forge(DATA, BEGINS, 9, b"y", table=[2**63, 2**63]), "a message of 18446744073709551616 bytes"),
}


@pytest.mark.parametrize(("packet", "complaint"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_packet_is_refused_and_changes_nothing(packet: list[Any], complaint: str) -> None:
    session = in_the_middle()
    before = snapshot(session)
    with pytest.raises(BadPacket, match=complaint):
        session.receive(packet)
    assert snapshot(session) == before
    (message,) = session.receive(forge(DATA, 0, 2, b"y" * 36))
    assert plain(message) == [b"y" * 100]


def test_a_table_that_is_cut_is_refused() -> None:
    (packet,) = [forge(DATA, BEGINS, 1, b"y", table=[1])]
    with pytest.raises(BadPacket, match="7 bytes too many"):
        make().receive([with_new_checksum(packet[0][:-1]), b"y"])


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (forge(DATA, BEGINS, 1, b"abc", table=[3], nbytes=4), "parts of 3 bytes; 4 are announced"),
        (forge(DATA, BEGINS, 1, b"", b"a", table=[0, 1]), "part 0 has 0 bytes; 1 of frame 1 are missing"),
        (forge(DATA, BEGINS, 1, b"a", b"b", table=[1]), "part 1 comes after the last of 1 frames"),
        (forge(DATA, BEGINS, 1, b"ab", table=[]), "part 0 comes after the last of 0 frames"),
    ],
    ids=["wrong sum", "empty part", "too many parts", "no frames"],
)
def test_a_beginning_that_does_not_add_up_is_refused(packet: list[bytes], complaint: str) -> None:
    there = make()
    before = snapshot(there)
    with pytest.raises(BadPacket, match=complaint):
        there.receive(packet)
    assert snapshot(there) == before


def test_a_rest_that_looks_like_all_of_its_message_is_refused() -> None:
    there = make()
    there.receive(forge(DATA, BEGINS, 1, b"xy", table=[5, 5]))
    with pytest.raises(BadPacket, match="part 0 has 5 bytes; 3 of frame 0 are missing"):
        there.receive(forge(DATA, 0, 2, b"zzzzz", b"zzzzz"))


def test_the_middle_of_nothing_is_refused() -> None:
    with pytest.raises(BadPacket, match="has not begun"):
        make().receive(forge(DATA, 0, 1, b"y"))


def test_a_message_over_the_limit_is_refused_before_memory_is_asked_for() -> None:
    def allocate(nbytes: int) -> bytearray:
        raise AssertionError

    there = make(max_message_bytes=999, allocate=allocate)
    with pytest.raises(BadPacket, match="a message of 1000 bytes; the limit is 999"):
        there.receive(forge(DATA, BEGINS, 1, b"y", table=[1000]))


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_random_bytes_are_a_bad_packet(frames: list[bytes]) -> None:
    session = in_the_middle()
    before = snapshot(session)
    with pytest.raises(BadPacket):
        session.receive(frames)
    assert snapshot(session) == before


@given(sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=8), data=st.data())
def test_damaged_packets_are_refused_and_the_real_ones_still_arrive(
    sizes: list[int], data: st.DataObject
) -> None:
    """All damage but that of contents, which the encrypted channel excludes."""
    message = [bytes([position + 1]) * size for position, size in enumerate(sizes)]
    here, there = make(window_bytes=10**6), make(window_bytes=10**6)
    here.send(message)
    messages = []
    for packet in map(plain, here.packets()):
        damaged = list(packet)
        at = data.draw(st.integers(0, len(packet) - 1))
        how = data.draw(st.sampled_from(["bit", "cut", "drop", "add", "grow"]))
        if how == "bit":
            bit = data.draw(st.integers(0, 8 * len(packet[0]) - 1))
            flipped = bytearray(packet[0])
            flipped[bit // 8] ^= 1 << bit % 8
            damaged[0] = bytes(flipped)
        elif how == "cut":
            damaged[at] = damaged[at][: data.draw(st.integers(0, max(0, len(damaged[at]) - 1)))]
        elif how == "drop":
            del damaged[at]
        elif how == "grow":
            damaged[at] += bytes(2000)
        else:
            damaged.insert(at, b"more")
        before = snapshot(there)
        with pytest.raises(BadPacket):
            there.receive(damaged)
        assert snapshot(there) == before
        messages += there.receive(packet)
    assert [plain(each) for each in messages] == [message]


@given(
    head=st.tuples(
        st.integers(0, 4),
        st.integers(0, 4),
        st.integers(0, 5) | st.integers(0, 2**64 - 1),
    ),
    fields=st.fixed_dictionaries(
        {
            "token": st.sampled_from([7, 7, 7, 7, 8]),
            "acknowledged": st.integers(0, 4) | st.integers(0, 2**64 - 1),
            "their_round": st.integers(0, 2) | st.integers(0, 2**32 - 1),
            "about": st.integers(0, 2) | st.integers(0, 2**32 - 1),
        },
        optional={"nbytes": st.integers(0, 70) | st.integers(0, 2**64 - 1)},
    ),
    table=st.lists(st.integers(0, 70) | st.integers(0, 2**64 - 1), max_size=5),
    parts=st.lists(st.binary(max_size=70), max_size=6),
)
@settings(max_examples=500)
def test_a_lying_peer_is_answered_by_nothing_but_a_bad_packet(
    head: tuple[int, int, int], fields: dict[str, int], table: list[int], parts: list[bytes]
) -> None:
    """The checksum is right; the session either takes the packet or is as it was."""
    packet = forge(*head, *parts, table=table, **fields)
    # Where a frame begins, its buffer is made: none here that the machine would have to have.
    session = make(max_message_bytes=10_000)
    session.send([b"x" * 150])
    list(session.packets())
    before = snapshot(session)
    try:
        session.receive(packet)
    except BadPacket:
        assert snapshot(session) == before
    list(session.packets())
    session.beat()
    assert session.unacknowledged >= 0
