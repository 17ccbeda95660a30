"""The crew of remote kinds: agents elsewhere, each with slots, reached over connections that break.

For each agent there is a `Session`, which makes up for what breaks, and a `Liveness`, which says when an
agent has been silent for too long. Losing sight of an agent for less than the grace time costs nothing: it
keeps its leases, goes on with them and hands in what it has finished.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from computemanager import hello, payload, wire
from computemanager.crew import (
    Answer,
    Draining,
    Ended,
    Failure,
    GaveBackLease,
    Happening,
    Heard,
    Joined,
    Lost,
    Refused,
    Silent,
    Started,
)
from computemanager.hello import BadHello, Hello
from computemanager.liveness import BEATS_IN_GRACE, Health, Liveness, PieceSize
from computemanager.output import OutputPump
from computemanager.provider import Command, Provider
from computemanager.session import BadPacket, Session
from computemanager.transport import ADDRESS_VARIABLE, AT_ONCE, MainSocket
from computemanager.wire import BadMessage, Kind, Message

__all__ = ["AgentCrew"]

_log = logging.getLogger(__name__)

SILENT_SHARE = 0.35
"""Share of the grace time after which an agent counts as silent."""

LOOK_AROUND_S = 0.05
"""How often the provider is asked who has ended, and agents are judged."""


NOBODY_AFTER_S = 60.0
"""When no agent has said hello so long after its start, the log says where they were told to connect."""


class _Peer:
    """What main knows of an agent that has said hello."""

    def __init__(self, host: str, greeting: Hello, now: float, grace_s: float) -> None:
        self.host = host
        self.unit = greeting.name  # what the provider calls it
        self.identity = hello.identity_of(greeting.token)
        self.session = Session(greeting.token, allocate=_memory)
        self.pieces = PieceSize(now)
        self.session.fragment_bytes = self.pieces.nbytes
        self.liveness = Liveness(now, grace_s * SILENT_SHARE, grace_s)
        self.health = Health.WELL
        self.ends_at = None if greeting.ends_in_s is None else now + greeting.ends_in_s
        self.joined: set[int] = set()
        self.said_at = now

    def measure(self, now: float) -> None:
        """Fit the pieces in which it is sent to to its connection."""
        session = self.session
        self.pieces.saw(now, session.acknowledged, busy=not session.idle)
        session.fragment_bytes = self.pieces.nbytes


class AgentCrew:
    """A `computemanager.crew.Crew` of agents.

    Parameters
    ----------
    socket : MainSocket
        Where they connect.
    provider : Provider
        Starts and stops them.
    command : Command
        What it runs.
    output : OutputPump
        What they print.
    grace_s : float
        Silence after which an agent is given up.
    block_timeout_s : float, optional
        What agents allow a block.
    """

    def __init__(
        self,
        socket: MainSocket,
        provider: Provider,
        command: Command,
        output: OutputPump,
        *,
        grace_s: float,
        block_timeout_s: float | None = None,
    ) -> None:
        self._socket = socket
        self._provider = provider
        self._command = command
        self._output = output
        self._grace_s = grace_s
        self._welcome = json.dumps({"block_timeout_s": block_timeout_s}).encode()
        self._here = Hello.of_this_process("main", 1, 1)
        self._pickled_job: bytes | None = None
        self._peers: dict[bytes, _Peer] = {}
        self._by_host: dict[str, _Peer] = {}
        self._units: set[str] = set()  # what the provider has started and not reported as ended
        self._used: set[str] = set()  # names of hosts that have said hello
        self._refused: dict[str, str] = {}
        self._around_at = 0.0
        self._nobody_since: float | None = None  # agents were started, and none has ever said hello
        self._taken = 0  # messages since agents were last judged
        self._clock = time.monotonic
        self._differences_seen: set[tuple[str, str]] = set()
        self._bad = 0

    @property
    def dropped_messages(self) -> int:
        """See `Crew`."""
        return self._bad + self._socket.refused

    # -- what the farm asks for ------------------------------------------------------------------------

    def start(self, number: int) -> Sequence[str]:
        """See `Crew.start`."""
        units = self._provider.start(number, self._command)
        if not self._used and self._nobody_since is None:
            self._nobody_since = self._clock()
        self._units.update(units)
        return units

    def set_job(self, pickled_job: bytes) -> None:
        """See `Crew.set_job`."""
        self._pickled_job = pickled_job
        for peer in self._peers.values():
            self._say(peer, Message(Kind.JOB, payload=pickled_job))

    def dispatch(self, worker: str, lease: int, blocks: Sequence[Any]) -> None:
        """See `Crew.dispatch`."""
        packed = payload.pack(blocks, None)
        message = Message(Kind.WORK, lease, len(blocks), packed.payload, packed.places, packed.buffers)
        self._say_to(worker, message)

    def recall(self, worker: str, lease: int) -> None:
        """See `Crew.recall`."""
        self._say_to(worker, Message(Kind.RECALL, lease))

    def values(self, answer: Answer) -> Any:
        """See `Crew.values`."""
        message = answer.message
        return payload.unpack(message.payload, message.places, message.buffers, None)

    def drop(self, answer: Answer) -> None:
        """See `Crew.drop`."""

    def look(self, timeout_s: float) -> Sequence[Happening]:
        """See `Crew.look`."""
        happenings: list[Happening] = []
        touched: dict[bytes, _Peer] = {}
        received = self._socket.receive(timeout_s)
        self._taken += len(received)
        now = self._clock()
        for sender, frames in received:
            peer = self._peers.get(sender)
            if not frames:
                self._bad += 1
            elif hello.is_word(frames[0]):
                self._take_word(sender, frames, now, happenings)
            elif peer is None:
                # Given up before, or never heard of: it is to start anew.
                self._bad += 1
                self._socket.send(sender, [hello.GONE])
            else:
                touched[sender] = peer
                self._take_packet(peer, frames, now, happenings)
        for peer in touched.values():
            self._put_out(peer, now)
        if now - self._around_at >= LOOK_AROUND_S:
            self._around_at = now
            # libzmq gives all that have said something their turn: where each has had one, or nothing is
            # left, nobody's sign of life is waiting to be read.
            caught_up = len(received) < AT_ONCE or self._taken > len(self._peers)
            if caught_up:
                self._taken = 0
            self._look_around(now, happenings, caught_up=caught_up)
        self._output.flush()
        return happenings

    def say_goodbye(self, grace_s: float) -> None:
        """See `Crew.say_goodbye`."""
        self._end_all(grace_s, at_once=False)

    def abandon(self, grace_s: float) -> None:
        """The job has failed: tell agents to end at once, and stop those that do not."""
        self._end_all(grace_s, at_once=True)

    def _end_all(self, grace_s: float, *, at_once: bool) -> None:
        for peer in self._peers.values():
            self._say(peer, Message(Kind.STOP, number=int(at_once)))
        deadline = self._clock() + grace_s
        while self._peers and self._clock() < deadline:
            self.look(0.02)
        # Those that have never said hello end now, the others have said goodbye and are about to.
        self._provider.stop([unit for unit in self._units if unit in self._used], grace_s)
        self._output.flush()

    # -- what agents say -------------------------------------------------------------------------------

    def _take_word(
        self, sender: bytes, frames: Sequence[Any], now: float, happenings: list[Happening]
    ) -> None:
        """Somebody says hello: perhaps again, because our answer was lost."""
        try:
            if bytes(frames[0]) != hello.HELLO or len(frames) != 2:
                raise BadHello("another word than hello")
            greeting = Hello.decode(frames[1])
            if sender != hello.identity_of(greeting.token):
                raise BadHello("a token that is another's")
        except BadHello:
            self._bad += 1
            return
        known = self._peers.get(sender)
        if known is not None:
            known.liveness.heard(now)
            self._socket.send(sender, [hello.WELCOME, self._welcome])
            return
        found = hello.differences(greeting, self._here)
        refusal = hello.refusal(greeting, found)
        if refusal is not None:
            self._refused[greeting.name] = refusal
            self._socket.send(sender, [hello.REFUSED, refusal.encode()])
            return
        self._note_differences(greeting, found)
        host = greeting.name
        if host in self._units:
            # The same agent after it had lost its memory. Those that we have not started may be several of
            # one name: a process has the same number in many a container.
            for peer in [peer for peer in self._peers.values() if peer.unit == host]:
                self._forget(peer, "it has started anew", happenings)
        if host not in self._units or host in self._used:
            host = self._new_name(host)
            happenings.append(Started(host))
        self._used.add(host)
        self._nobody_since = None
        peer = self._peers[sender] = self._by_host[host] = _Peer(host, greeting, now, self._grace_s)
        self._socket.send(sender, [hello.WELCOME, self._welcome])
        if self._pickled_job is not None:
            self._say(peer, Message(Kind.JOB, payload=self._pickled_job))

    def _take_packet(
        self, peer: _Peer, frames: Sequence[Any], now: float, happenings: list[Happening]
    ) -> None:
        try:
            packets = peer.session.receive(frames)
        except BadPacket:
            self._bad += 1
            return
        except MemoryError as error:
            # It would send that again and again; so would another agent, which is why the job ends in time.
            self._bad += 1
            self._provider.kill([peer.unit])
            self._forget(peer, f"what it sends does not fit into this process's memory: {error}", happenings)
            return
        # What is no packet of the session is no sign of life: nothing would come of waiting for such a peer.
        peer.liveness.heard(now)
        try:
            messages = [wire.decode(packet) for packet in packets]
        except BadMessage:
            self._bad += 1
            return
        for message in messages:
            if peer.identity not in self._peers:
                return  # it has said goodbye
            self._take_message(peer, message, now, happenings)

    def _take_message(self, peer: _Peer, message: Message, now: float, happenings: list[Happening]) -> None:
        kind, worker = message.kind, _worker(peer, message.slot)
        is_joined = message.slot in peer.joined
        if kind is Kind.ANSWER and is_joined and not any(slab for slab, _ in message.places):
            happenings.append(Answer(worker, message))
        elif kind is Kind.READY and not is_joined:
            peer.joined.add(message.slot)
            happenings.append(Joined(worker, peer.host, peer.ends_at))
        elif kind is Kind.FAILED and is_joined:
            happenings.append(Failure(worker, message.lease, message.number, message.payload))
        elif kind is Kind.GAVE_BACK and is_joined:
            happenings.append(GaveBackLease(worker, message.lease))
        elif kind is Kind.LOST and is_joined:
            peer.joined.discard(message.slot)
            happenings.append(_lost(worker, message))
        elif kind is Kind.REFUSED:
            happenings.append(Refused(worker, bytes(message.payload).decode(errors="replace")))
        elif kind is Kind.OUTPUT:
            text = bytes(message.payload).decode(errors="replace")
            self._output.put(peer.unit, "stdout" if message.number == 1 else "stderr", text)
        elif kind is Kind.DRAINING:
            _log.info("%s is about to end: %s", peer.host, bytes(message.payload).decode(errors="replace"))
            happenings.append(Draining(peer.host))
        elif kind is Kind.GOODBYE:
            self._send(peer, peer.session.beat(), now)  # acknowledges, so that it need not wait
            self._forget(peer, bytes(message.payload).decode(errors="replace"), happenings)
        else:
            self._bad += 1

    def _note_differences(self, greeting: Hello, found: Sequence[hello.Difference]) -> None:
        for what, there, here, _ in found:
            if (what, there) not in self._differences_seen:
                self._differences_seen.add((what, there))
                _log.info("worker %s has %s %s, this process %s", greeting.name, what, there, here)

    # -- time ------------------------------------------------------------------------------------------

    def _look_around(self, now: float, happenings: list[Happening], *, caught_up: bool) -> None:
        """Look at everything that sends no message: ended agents, silent ones, heartbeats that are due."""
        if self._nobody_since is not None and now - self._nobody_since > NOBODY_AFTER_S:
            self._nobody_since = None
            _log.warning(
                "no worker has connected within %.0f s of their start. They were told to come to %s: is that "
                "the address of this machine as seen from theirs, and may they connect to that port "
                "(firewall, security group)? Still waiting",
                NOBODY_AFTER_S,
                self._socket.environment[ADDRESS_VARIABLE],
            )
        for unit, evidence in self._provider.poll():
            self._units.discard(unit)
            peers = [peer for peer in self._peers.values() if peer.unit == unit]
            for peer in peers:
                self._forget(peer, evidence, happenings)
            if unit not in self._used:
                refusal = self._refused.pop(unit, None)
                happenings.append(Ended(unit, refusal or evidence, refusal is not None))
        for peer in list(self._peers.values()):
            peer.liveness.looked(now)
            if caught_up:
                self._judge(peer, now, happenings)
            peer.measure(now)
            if now - peer.said_at >= self._grace_s / BEATS_IN_GRACE:
                self._send(peer, peer.session.beat(), now)

    def _judge(self, peer: _Peer, now: float, happenings: list[Happening]) -> None:
        health = peer.liveness.state(now)
        if health is peer.health:
            return
        peer.health = health
        if health is Health.GONE:
            # What cannot be reached must not go on costing money; if it is still there, it will end itself.
            self._provider.kill([peer.unit])
            self._forget(peer, f"it was not heard of for {self._grace_s:g} s (graceTime)", happenings)
        elif health is Health.SILENT:
            happenings.append(Silent(peer.host))
        else:
            happenings.append(Heard(peer.host))

    def _forget(self, peer: _Peer, evidence: str, happenings: list[Happening]) -> None:
        del self._peers[peer.identity]
        del self._by_host[peer.host]
        happenings.append(Ended(peer.host, evidence))

    # -- what goes out ---------------------------------------------------------------------------------

    def _say_to(self, worker: str, message: Message) -> None:
        host, _, slot = worker.rpartition("/")
        peer = self._by_host.get(host)
        if peer is not None:
            self._say(peer, message._replace(slot=int(slot)))

    def _say(self, peer: _Peer, message: Message) -> None:
        peer.session.send(wire.encode(message))
        self._put_out(peer, self._clock())

    def _put_out(self, peer: _Peer, now: float) -> None:
        for packet in peer.session.packets():
            self._send(peer, packet, now)

    def _send(self, peer: _Peer, packet: list[Any], now: float) -> None:
        # If it is not connected the packet is lost, which the session makes up for.
        self._socket.send(peer.identity, packet)
        peer.said_at = now

    def _new_name(self, name: str) -> str:
        if name not in self._used:
            return name
        number = 2
        while f"{name}#{number}" in self._used:
            number += 1
        return f"{name}#{number}"


def _worker(peer: _Peer, slot: int) -> str:
    return f"{peer.host}/{slot}"


def _memory(nbytes: int) -> Any:
    return np.empty(nbytes, np.uint8).data  # unlike a bytearray, not filled with zeros first


def _lost(worker: str, message: Message) -> Lost:
    try:
        told = json.loads(bytes(message.payload))
        place = None if told["position"] is None else (message.lease, int(told["position"]))
        return Lost(worker, place, str(told["evidence"]), bool(told["timed_out"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Lost(worker, None, "its agent did not say why")
