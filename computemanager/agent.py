"""An agent: the process on another machine that holds slots for a main process elsewhere.

::

    main <══ session over TCP ══> agent <── socket file, shared memory ──> slots

It never runs the user's function, so it always answers, sees a slot die and says why, ends a slot whose
block takes too long, and goes on when the connection breaks: slots keep computing, and what they hand in
waits here until main has it. It ends when main tells it to, when main has been out of reach for longer than
the grace time, and soon after a SIGTERM, having handed back what it does not finish.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import FrameType
from typing import Any

from computemanager import hello, wire
from computemanager.hello import Hello
from computemanager.hub import SlotEnd, SlotHub
from computemanager.liveness import BEATS_IN_GRACE, PieceSize
from computemanager.session import BadPacket, Session
from computemanager.transport import AgentSocket
from computemanager.wire import NO_SLAB, BadMessage, BufferPlace, Kind, Message

__all__ = ["Agent", "AgentEnd", "AgentSettings"]

_log = logging.getLogger(__name__)

HELLO_AGAIN_S = 1.0

DRAIN_S = 0.5
"""After a SIGTERM, blocks that are being computed get so long to finish before they are handed back."""

STOP_GRACE_S = 5.0
"""How long slots may take to end after a job that went well: user code may run at exit."""

PASSED_ON = 2
"""Leases that a slot has at a time, the one it is on included; others wait here, from where they can be
handed back at once."""

_WAIT_S = 0.02
_PAUSE_S = 1.0
_START_FAILURES_ALLOWED = 3
_OUTPUT_AT_MOST = 4 * 1024 * 1024
"""Bytes under way beyond which what slots print waits."""


class AgentEnd(Enum):
    """Why an agent ended; the value is its exit code."""

    STOPPED = 0
    """Main said so, or it was asked to (SIGTERM) and handed back its work."""

    SLOTS_FAILED = 1
    """Its slots end before they can work."""

    REFUSED = 3
    """Main does not want it: it is made of other versions, or has another job's key."""

    MAIN_GONE = 4
    """Main has been out of reach for longer than the grace time, or never was in reach."""


@dataclass(frozen=True)
class AgentSettings:
    """How an agent works.

    Parameters
    ----------
    name : str
        What its provider calls it.
    slots : int
        Child processes that run the user's function.
    grace_s : float
        It ends itself when main has been out of reach for so long.
    join_timeout_s : float
        It ends itself when it has not reached main so long after its start.
    ends_in_s : float, optional
        Seconds until it will be ended from outside, where that is known.
    """

    name: str
    slots: int = 1
    grace_s: float = 30.0
    join_timeout_s: float = 120.0
    ends_in_s: float | None = None


class _Gone(Exception):
    """Main does not know this agent any more, and has given its work to others."""


class _Slot:
    """What the agent keeps of a slot."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.joined = False
        self.passed_on: dict[int, int] = {}  # lease: blocks not answered
        self.held: deque[Message] = deque()  # leases that have not been passed on


class Agent:
    """One agent process.

    Parameters
    ----------
    settings : AgentSettings
        How it works.
    join_details : mapping of str to str
        Main's address, its public key and the job's client key, as `MainSocket.environment` gives them.
    """

    def __init__(self, settings: AgentSettings, join_details: Mapping[str, str]) -> None:
        self._settings = settings
        self._join_details = join_details
        self._clock = time.monotonic
        self._started_at = self._clock()
        self._end_because = ""  # it is to hand back its work and end, for this reason

    def run(self) -> AgentEnd:
        """Serve until there is a reason to end."""
        with self._sigterm_noted():
            while True:
                with contextlib.ExitStack() as undo:
                    try:
                        return self._serve(undo)
                    except _Gone:
                        _log.info("main does not know this agent any more; it starts anew")

    @contextlib.contextmanager
    def _sigterm_noted(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._end_because = "it was asked to end (SIGTERM)"

        previous = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _serve(self, undo: contextlib.ExitStack) -> AgentEnd:
        """One life: from hello to an end, or until main has forgotten us (raises `_Gone`)."""
        settings = self._settings
        token = secrets.randbelow(2**64 - 1) + 1
        self._hub = undo.enter_context(contextlib.closing(SlotHub({})))
        self._socket = AgentSocket(
            self._join_details, hello.identity_of(token), settings.grace_s, self._hub.socket
        )
        undo.callback(self._socket.close)
        self._session = Session(token, allocate=self._hub.allocate)
        self._pieces = PieceSize(self._clock())
        self._slots: dict[str, _Slot] = {}
        self._by_number: dict[int, str] = {}
        self._failed_starts = 0
        self._welcome = False
        self._stop: int | None = None
        self._draining_until: float | None = None
        self._said_at = 0.0
        self._greeting = Hello.of_this_process(
            settings.name, token, settings.slots, self._seconds_left()
        ).encode()
        # While main considers the hello, Python starts and the large packages are loaded.
        self._start_slots(settings.slots)
        self._in_reach_at = self._looked_at = self._clock()
        end: AgentEnd | None = None
        while end is None:
            self._socket.wait(_WAIT_S)
            end = self._look(self._clock())
        self._finish()
        return end

    def _seconds_left(self) -> float | None:
        ends_in_s = self._settings.ends_in_s
        return None if ends_in_s is None else max(0.0, self._started_at + ends_in_s - self._clock())

    def _look(self, now: float) -> AgentEnd | None:
        for frames in self._socket.receive():
            refused = self._take(frames)
            if refused:
                return refused
        self._take_from_slots()
        for ended in self._hub.ended():
            self._slot_ended(ended)
        self._pass_on_output()
        self._hub.tidy()
        self._put_out(now)
        if self._failed_starts >= _START_FAILURES_ALLOWED:
            _complain(f"its slots end before they can work: {self._last_evidence}")
            return AgentEnd.SLOTS_FAILED
        if self._stop is not None:
            self._end_slots()
            return AgentEnd.STOPPED
        if not self._end_because and self._seconds_left() == 0.0:
            # It will get no more blocks, and its place is wanted for one that does.
            self._end_because = "its time was up (maxRuntime)"
        if self._end_because and self._drained(now):
            return AgentEnd.STOPPED
        return self._reach(now)

    # -- main ------------------------------------------------------------------------------------------

    def _reach(self, now: float) -> AgentEnd | None:
        """Whether main can be reached, or has been not too long ago."""
        if self._socket.turned_away:
            _complain("main does not let this agent in: it has the key of another job")
            return AgentEnd.REFUSED
        pause_s = now - self._looked_at
        self._looked_at = now
        if pause_s > _PAUSE_S:  # this process was stopped: that says nothing about main
            self._in_reach_at += pause_s
        # Encrypted and proven: libzmq's threads keep it so while main is busy with something else.
        if self._socket.connected and self._welcome:
            self._in_reach_at = now
            return None
        limit_s = self._settings.grace_s if self._welcome else self._settings.join_timeout_s
        if now - self._in_reach_at <= limit_s:
            return None
        address = self._join_details["COMPUTEMANAGER_ADDRESS"]
        _complain(
            f"main has been out of reach for {limit_s:g} s; this agent ends, so that its machine is not paid "
            f"for in vain"
            if self._welcome
            else f"main could not be reached at {address} for {limit_s:g} s. Is it running, is that "
            f"its address as seen from here, and may this machine connect to that port (firewall, security "
            f"group)?"
        )
        return AgentEnd.MAIN_GONE

    def _take(self, frames: Sequence[Any]) -> AgentEnd | None:
        """A packet from main, which has proved who it is."""
        if hello.is_word(frames[0]):
            word = bytes(frames[0])
            if word == hello.REFUSED and len(frames) == 2:
                _complain(bytes(frames[1]).decode(errors="replace"))
                return AgentEnd.REFUSED
            if word == hello.WELCOME and len(frames) == 2:
                self._hub.block_timeout_s = json.loads(bytes(frames[1]))["block_timeout_s"]
                self._welcome = True
            elif word == hello.GONE and self._welcome:
                raise _Gone
            return None
        try:
            messages = [wire.decode(message) for message in self._session.receive(frames)]
        except (BadPacket, BadMessage) as error:
            _log.warning("a packet from main was dropped: %s", error)
            return None
        for message in messages:
            self._obey(message)
        return None

    def _obey(self, message: Message) -> None:
        kind = message.kind
        if kind is Kind.JOB:
            self._hub.set_job(bytes(message.payload))
            self._let_go(message)
        elif kind is Kind.STOP:
            self._stop = message.number
        else:
            name = self._by_number.get(message.slot)
            if name is None:
                self._let_go(message)  # that slot has ended, and main has been told
                return
            slot = self._slots[name]
            if kind is Kind.WORK and self._draining_until is not None:
                self._let_go(message)
                self._say(Message(Kind.GAVE_BACK, message.lease, slot=slot.number))
            elif kind is Kind.WORK:
                slot.held.append(message)
                self._feed(name, slot)
            elif kind is Kind.RECALL:
                self._recall(name, slot, message.lease)

    def _put_out(self, now: float) -> None:
        if not self._welcome:
            if now - self._said_at >= HELLO_AGAIN_S:
                self._send([hello.HELLO, self._greeting], now)
            return
        self._pieces.saw(now, self._session.acknowledged, busy=not self._session.idle)
        self._session.fragment_bytes = self._pieces.nbytes
        for packet in self._session.packets():
            self._send(packet, now)
        if now - self._said_at >= self._settings.grace_s / BEATS_IN_GRACE:
            self._send(self._session.beat(), now)

    def _send(self, frames: Sequence[Any], now: float) -> None:
        self._socket.send(frames)
        self._said_at = now

    def _say(self, message: Message) -> None:
        self._session.send(wire.encode(message))

    # -- slots -----------------------------------------------------------------------------------------

    def _start_slots(self, number: int) -> None:
        for name in self._hub.start(number):
            slot = self._slots[name] = _Slot(int(name.rpartition("-")[2]))
            self._by_number[slot.number] = name

    def _feed(self, name: str, slot: _Slot) -> None:
        """Pass leases on to a slot, so that it has one to go on with."""
        while slot.held and len(slot.passed_on) < PASSED_ON:
            work = slot.held.popleft()
            slot.passed_on[work.lease] = work.number
            places, inline = self._hub.place_buffers(work.buffers)
            self._hub.send(name, work._replace(places=places, buffers=inline))
            self._hub.release([work.payload])

    def _let_go(self, message: Message) -> None:
        """Free the memory of a message that goes to no slot."""
        self._hub.release([message.payload, *message.buffers])

    def _recall(self, name: str, slot: _Slot, lease: int) -> None:
        for held in slot.held:
            if held.lease == lease:
                slot.held.remove(held)
                self._let_go(held)
                self._say(Message(Kind.GAVE_BACK, lease, slot=slot.number))
                return
        if lease in slot.passed_on:
            self._hub.send(name, Message(Kind.RECALL, lease))

    def _take_from_slots(self) -> None:
        for name, message in self._hub.receive(0.0):
            slot = self._slots.get(name)
            if slot is None:
                continue
            kind = message.kind
            if kind is Kind.READY:
                slot.joined = True
                self._failed_starts = 0
            elif kind is Kind.ANSWER:
                left = slot.passed_on.get(message.lease, 0) - message.number
                if left > 0:
                    slot.passed_on[message.lease] = left
                else:
                    slot.passed_on.pop(message.lease, None)
                views = self._hub.views(name, message)
                places = [BufferPlace(NO_SLAB, length) for _, length in message.places]
                message = message._replace(places=places, buffers=views)
            elif kind in (Kind.FAILED, Kind.GAVE_BACK):
                slot.passed_on.pop(message.lease, None)
            self._say(message._replace(slot=slot.number))
            self._feed(name, slot)

    def _slot_ended(self, ended: SlotEnd) -> None:
        slot = self._slots.pop(ended.slot)
        del self._by_number[slot.number]
        for held in slot.held:
            self._let_go(held)
        if slot.joined:
            lease, position = ended.place or (0, None)
            told = {"evidence": ended.evidence, "position": position, "timed_out": ended.timed_out}
            self._say(Message(Kind.LOST, lease, slot=slot.number, payload=json.dumps(told).encode()))
        else:
            self._failed_starts += 1
            self._last_evidence = ended.evidence
        if self._draining_until is None and self._failed_starts < _START_FAILURES_ALLOWED:
            self._start_slots(1)

    def _pass_on_output(self) -> None:
        # What slots print waits in the pump while much is under way, which drops the oldest of too much.
        if self._welcome and self._session.unacknowledged < _OUTPUT_AT_MOST:
            self._say_output()

    def _say_output(self) -> None:
        for stream, text in self._hub.output.take():
            number = 1 if stream == "stdout" else 2
            self._say(Message(Kind.OUTPUT, number=number, payload=text.encode()))

    # -- the end ---------------------------------------------------------------------------------------

    def _drained(self, now: float) -> bool:
        """After a SIGTERM: hand back what is not begun, wait a moment for what is; True when done."""
        if self._draining_until is None:
            self._draining_until = now + DRAIN_S
            self._say(Message(Kind.DRAINING, payload=self._end_because.encode()))
            for name, slot in self._slots.items():
                for held in slot.held:
                    self._let_go(held)
                    self._say(Message(Kind.GAVE_BACK, held.lease, slot=slot.number))
                slot.held.clear()
                for lease in list(slot.passed_on)[1:]:
                    self._hub.send(name, Message(Kind.RECALL, lease))
        if now < self._draining_until and any(slot.passed_on for slot in self._slots.values()):
            return False
        self._hub.kill([name for name, slot in self._slots.items() if slot.passed_on])
        for slot in self._slots.values():
            for lease in slot.passed_on:
                self._say(Message(Kind.GAVE_BACK, lease, slot=slot.number))
        self._put_out(now)  # others are to go on with that while slots end
        self._end_slots()
        return True

    def _end_slots(self) -> None:
        """Let slots end by themselves, or at once if main is in a hurry, and pass on their last words."""
        joined = [name for name, slot in self._slots.items() if slot.joined and not slot.passed_on]
        self._hub.stop([] if self._stop else joined, STOP_GRACE_S)
        self._hub.output.settle()
        self._hub.remove_directory()  # now: whoever kills this process while it says goodbye leaves nothing
        self._say_output()

    def _finish(self) -> None:
        """Say goodbye, and wait a moment for main to have heard all."""
        if not self._welcome:
            return
        why = self._end_because or "it was told to stop"
        if self._failed_starts >= _START_FAILURES_ALLOWED:
            why = f"its slots end before they can work: {self._last_evidence}"
        self._say(Message(Kind.GOODBYE, payload=why.encode()))
        deadline = self._clock() + min(2.0, self._settings.grace_s)
        while not self._session.idle and self._clock() < deadline:
            self._put_out(self._clock())
            self._socket.wait(_WAIT_S)
            for frames in self._socket.receive():
                with contextlib.suppress(BadPacket):
                    if not hello.is_word(frames[0]):
                        self._session.receive(frames)
                    else:
                        return  # main has forgotten us, so it has heard
        self._socket.close(linger_s=0.2)


def _complain(text: str) -> None:
    """Say on stderr why this agent ends: its log is where the user will look."""
    sys.stderr.write(f"computemanager worker: {text}\n")
    sys.stderr.flush()
