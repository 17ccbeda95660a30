"""Strangers and madmen at main's socket: nothing of theirs is unpickled, and those who work are served.

All the while, an agent of the usual kind has to get leases done. `COMPUTEMANAGER_ROUNDS` sets the number of
rounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from computemanager import hello, payload, wire
from computemanager.agentcrew import AgentCrew
from computemanager.crew import Answer, Ended, Happening, Joined, Lost, Started
from computemanager.hello import Hello
from computemanager.model import Job
from computemanager.output import OutputPump
from computemanager.provider import Command, WorkerEnd
from computemanager.session import Session
from computemanager.transport import MAX_FRAME_BYTES, Listening, MainSocket
from computemanager.wire import BufferPlace, Kind, Message

ROUNDS = int(os.environ.get("COMPUTEMANAGER_ROUNDS", "40"))
GRACE_S = 5.0
GOOD = "good"
PATIENCE_S = 20.0
MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the agent is ended by a signal")


class NoProvider:
    """A provider that starts nothing: agents come by themselves."""

    def __init__(self) -> None:
        self.killed: list[str] = []

    def start(self, count: int, command: Command) -> Sequence[str]:
        return []

    def poll(self) -> Sequence[WorkerEnd]:
        return []

    def kill(self, workers: Collection[str]) -> None:
        self.killed += workers

    def stop(self, ending: Collection[str] = (), grace_s: float = 0.0) -> None:
        pass


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self._path,))


class Main:
    """Main's end with an agent that does honest work, both real."""

    def __init__(self, canary: Path) -> None:
        self.canary_path = canary
        self.canary = pickle.dumps(Canary(canary))
        self.socket = MainSocket(Listening("127.0.0.1", grace_s=GRACE_S))
        self.environment = dict(self.socket.environment)
        self.provider = NoProvider()
        self._output = OutputPump()
        command = Command(("true",), {})
        self.crew = AgentCrew(self.socket, self.provider, command, self._output, grace_s=GRACE_S)
        self.others: list[Happening] = []
        self._lease = 0
        self._worker = ""
        self._values: dict[int, list[Any]] = {}  # by lease
        self.agent = subprocess.Popen(
            [sys.executable, "-m", "computemanager.worker", "--name", GOOD, "--grace", str(GRACE_S)],
            env={**os.environ, **self.environment},
        )
        self.crew.set_job(payload.dumps_job(Job(abs)))
        self.look_until(lambda: self._worker)

    def look(self, timeout_s: float = 0.0) -> None:
        for happening in self.crew.look(timeout_s):
            if isinstance(happening, Joined) and happening.host == GOOD:
                self._worker = happening.worker
            elif isinstance(happening, Answer) and happening.worker == self._worker:
                lease = happening.message.lease
                self._values.setdefault(lease, []).extend(self.crew.values(happening))
            elif not (isinstance(happening, Started) and happening.host == GOOD):
                # As the farm does: the lease is not one that it has given out, so nobody reads the values.
                self.others.append(happening)
        assert not self.canary_path.exists()

    def look_until(self, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, f"did not come about within {patience_s} s"
            self.look(0.01)

    def serves(self) -> None:
        """Have the agent do a lease."""
        self._lease += 1
        blocks = [-self._lease, 3, -5]
        self.crew.dispatch(self._worker, self._lease, blocks)
        self.look_until(lambda: len(self._values.get(self._lease, ())) == len(blocks))
        assert self._values.pop(self._lease) == [self._lease, 3, 5]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.environment["COMPUTEMANAGER_ADDRESS"].partition("//")[2].partition(":")
        return host, int(port)

    def close(self) -> None:
        self.agent.kill()
        self.agent.wait()
        self.socket.close()
        self._output.close()


@pytest.fixture
def main(tmp_path: Path) -> Iterator[Main]:
    served = Main(tmp_path / "canary")
    try:
        yield served
        served.serves()
        assert served.agent.poll() is None and not served.provider.killed
        assert not [one for one in served.others if isinstance(one, Ended) and one.host == GOOD]
        assert not served.canary_path.exists()
    finally:
        served.close()


@contextlib.contextmanager
def dealer(environment: dict[str, str], identity: bytes = b"", *, curve: bool = True) -> Iterator[Any]:
    """A peer's socket, with the keys that are in this environment."""
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    try:
        peer.linger = 0
        if identity:
            peer.identity = identity
        if curve:
            secret = environment["COMPUTEMANAGER_CLIENT_KEY"].encode()
            peer.curve_secretkey = secret
            peer.curve_publickey = zmq.curve_public(secret)
            peer.curve_serverkey = environment["COMPUTEMANAGER_SERVER_KEY"].encode()
        peer.connect(environment["COMPUTEMANAGER_ADDRESS"])
        yield peer
    finally:
        peer.close()
        context.term()


class Insider:
    """A peer that has the job's key: an agent by all appearances, which says what it likes."""

    def __init__(self, main: Main, peer: Any, token: int, name: str = "mad") -> None:
        self.main = main
        self.peer = peer
        self.token = token
        self.greeting = Hello.of_this_process(name, token, 1)
        self.session = Session(token)

    def put(self, frames: Sequence[Any]) -> None:
        self.peer.send_multipart([bytes(frame) for frame in frames])

    def join(self) -> None:
        """Be let in, and get the job."""
        self.put([hello.HELLO, self.greeting.encode()])
        received: list[Any] = []
        self.main.look_until(lambda: received.extend(self.heard()) or received)
        assert received[0][0] == hello.WELCOME

    def heard(self) -> list[list[bytes]]:
        found = []
        while self.peer.poll(0):
            found.append(self.peer.recv_multipart())
        return found

    def say(self, message: Message) -> None:
        """Say something in due form."""
        self.session.send(wire.encode(message))
        for packet in self.session.packets():
            self.put(packet)


def identity_of(token: int) -> bytes:
    return b"a" + token.to_bytes(8, "big")


@contextlib.contextmanager
def insider(main: Main, token: int, *, joined: bool = True, name: str = "mad") -> Iterator[Insider]:
    with dealer(main.environment, identity_of(token)) as peer:
        found = Insider(main, peer, token, name)
        if joined:
            found.join()
        yield found


# -- strangers -------------------------------------------------------------------------------------------

# RFC 23: signature, version, mechanism, as-server, filler.
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


def greeting_of(mechanism: bytes) -> bytes:
    return SIGNATURE + b"\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


def command(name: bytes, body: bytes) -> bytes:
    content = bytes([len(name)]) + name + body
    return b"\x04" + bytes([len(content)]) + content


def test_strangers_without_zeromq(main: Main) -> None:
    """Random bytes, greetings that stop in the middle, handshakes that lead nowhere, pickles."""
    chance = random.Random(1)
    whole = greeting_of(b"CURVE")
    ready = command(b"READY", b"\x0bSocket-Type\0\0\0\x06DEALER")
    for number in range(ROUNDS):
        said = [
            chance.randbytes(chance.choice([1, 10, 64, 1000, 100_000])),
            whole[: chance.randrange(1, len(whole))],
            greeting_of(b"NULL") + ready + b"\0" + bytes([200]) + main.canary[:200],
            greeting_of(b"PLAIN") + command(b"HELLO", b"\x04user\x04pass"),
            whole + command(b"HELLO", chance.randbytes(194)),
            whole + command(b"INITIATE", chance.randbytes(150)) + main.canary,
            whole + b"\x06" + (2**62).to_bytes(8, "big") + chance.randbytes(100),
            main.canary,
        ][number % 8]
        with contextlib.closing(sockets.create_connection(main.address)) as stranger:
            # Main may close it as soon as it has seen enough.
            with contextlib.suppress(OSError):
                stranger.sendall(said)
                if number % 3 == 0:
                    stranger.shutdown(sockets.SHUT_WR)
            main.look()
            if number % 5 == 0:
                main.serves()
    assert not main.others


@pytest.mark.parametrize("wrong", ["no keys", "client key", "server key", "both keys"])
def test_strangers_with_zeromq(wrong: str, main: Main) -> None:
    """Turned away before a byte of theirs is looked at."""
    before = main.crew.dropped_messages
    environment = dict(main.environment)
    if wrong in ("client key", "both keys"):
        environment["COMPUTEMANAGER_CLIENT_KEY"] = zmq.curve_keypair()[1].decode()
    if wrong in ("server key", "both keys"):
        environment["COMPUTEMANAGER_SERVER_KEY"] = zmq.curve_keypair()[0].decode()
    taken_token = 12345
    for _ in range(max(1, ROUNDS // 10)):
        identity = identity_of(taken_token)
        with dealer(environment, identity, curve=wrong != "no keys") as stranger:
            greeting = Hello.of_this_process("stranger", taken_token, 1).encode()
            for frames in ([hello.HELLO, greeting], [main.canary], [b"", main.canary]):
                # A socket that has been turned away for good has no place for messages any more.
                with contextlib.suppress(zmq.Again):
                    stranger.send_multipart(frames, zmq.NOBLOCK)
            for _ in range(10):
                main.look(0.02)
                main.serves()
            assert not stranger.poll(0)
    assert not main.others
    if wrong == "client key":  # the others do not get as far as to be asked who they are
        assert main.crew.dropped_messages > before


# -- those who have the key ------------------------------------------------------------------------------


def test_random_frames(main: Main) -> None:
    """From one that has never said hello, and from one that has."""
    chance = random.Random(2)
    for joined in (False, True):
        with insider(main, 20 + joined, joined=joined) as mad:
            expected = main.crew.dropped_messages + ROUNDS
            for _ in range(ROUNDS):
                frames = [
                    chance.randbytes(chance.choice([0, 1, 5, 50, 51, 52, 100, 5000]))
                    for _ in range(chance.choice([1, 1, 2, 3, 10]))
                ]
                if chance.random() < 0.3:
                    frames[0] = chance.choice([b"hello", b"welcome", b"refused", b"gone", b""])
                if chance.random() < 0.3:
                    frames[-1] = main.canary
                mad.put(frames)
                main.look()
            main.look_until(lambda least=expected: main.crew.dropped_messages >= least)
            main.serves()
    assert not [one for one in main.others if isinstance(one, Answer)]


BAD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**64,
    10**400,
    0.5,
    "",
    "x" * 201,
    "\ud800",
    [],
    {},
    {"Python": 3},
    {"\ud800": "1"},
    ["deep", [["deeper"]]],
]


def test_every_field_of_a_hello(main: Main) -> None:
    """Left out, doubled, or with any value: let in, refused or dropped, and nothing worse."""
    right = json.loads(Hello.of_this_process("mutant", 30, 1).encode())
    greetings: list[Any] = [{key: right[key] for key in right if key != field} for field in right]
    greetings += [{**right, field: value} for field in right for value in BAD_VALUES]
    greetings += [{**right, "versions": {**right["versions"], what: "\ud800"}} for what in right["versions"]]
    greetings += [{**right, "more": 1}, [right], right["name"], 7, None]
    texts = [json.dumps(greeting).encode() for greeting in greetings]
    whole = json.dumps(right).encode()
    texts += [
        whole[:-1],
        whole + b"}",
        b"\xff" + whole,
        b"",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        whole.replace(b'"token": 30', b'"token": NaN'),
        whole.replace(b'"ends_in_s": null', b'"ends_in_s": Infinity'),
        whole.replace(b'"ends_in_s": null', b'"ends_in_s": NaN'),
        whole.replace(b'"token": 30', b'"token": ' + b"3" * 5000),
        whole.ljust(70_000),
        whole.decode().encode("utf-16"),
    ]
    with insider(main, 30, joined=False) as mutant:
        before = main.crew.dropped_messages
        for text in texts:
            mutant.put([hello.HELLO, text])
            main.look()
        main.serves()
        main.look_until(lambda: main.crew.dropped_messages >= before + len(texts) // 2)
        mutant.put([hello.HELLO])
        mutant.put([hello.HELLO, whole, whole])
        mutant.put([hello.HELLO, json.dumps({**right, "token": 31}).encode()])  # another's token
        counted = main.crew.dropped_messages
        main.look_until(lambda: main.crew.dropped_messages >= counted + 3)


@pytest.mark.parametrize("field", ["name", "machine", "host", "environment", "versions"])
def test_what_cannot_be_said_back(field: str, main: Main) -> None:
    """One that would be refused, with its own words in the refusal: half a character among them."""
    right = json.loads(Hello.of_this_process("mutant", 33, 1).encode())
    other = {**right, "versions": {**right["versions"], "Python": "2.7"}}
    broken = {**other["versions"], "NumPy": "\ud800"} if field == "versions" else "\ud800"
    with insider(main, 33, joined=False) as mutant:
        before = main.crew.dropped_messages
        mutant.put([hello.HELLO, json.dumps({**other, field: broken}).encode()])
        main.look_until(lambda: main.crew.dropped_messages > before)
        mutant.put([hello.HELLO, json.dumps(other).encode()])
        received: list[list[bytes]] = []
        main.look_until(lambda: received.extend(mutant.heard()) or received)
        assert [frames[0] for frames in received] == [hello.REFUSED]
        assert "Python: 2.7 there" in received[0][1].decode()


def flipped(head: bytes, chance: random.Random) -> bytes:
    """A head with one bit changed."""
    changed = bytearray(head)
    changed[chance.randrange(len(head))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def test_packets_cut_changed_and_said_again(main: Main) -> None:
    chance = random.Random(3)
    with insider(main, 40) as mad:
        mad.say(Message(Kind.READY))
        told: list[list[bytes]] = []
        before = main.crew.dropped_messages
        for number in range(ROUNDS):
            mad.session.send(wire.encode(Message(Kind.ANSWER, 10**9 + number, 1, main.canary)))
            for packet in mad.session.packets():
                told.append([bytes(frame) for frame in packet])
            told.append([bytes(frame) for frame in mad.session.beat()])
            packet = chance.choice(told)
            mad.put([flipped(packet[0], chance), *packet[1:]])
            mad.put([packet[0][: chance.randrange(len(packet[0]))], *packet[1:]])
            mad.put(packet[:-1] or [b""])
            mad.put([*packet, b"more"])
            mad.put(chance.choice(told))
            main.look()
        main.serves()
        main.look_until(lambda: main.crew.dropped_messages >= before + 2 * ROUNDS)
        for packet in told:  # all again, and in order: nothing counts twice
            mad.put(packet)
            main.look()
        before = main.crew.dropped_messages
        mad.put([b"the last"])
        main.look_until(lambda: main.crew.dropped_messages > before)
        main.serves()
    answers = [one.message.lease for one in main.others if isinstance(one, Answer)]
    assert answers == [10**9 + number for number in range(ROUNDS)]


def test_frames_that_are_too_large_or_too_many(main: Main) -> None:
    with insider(main, 50) as mad:
        mad.put([bytes(MAX_FRAME_BYTES + MIB)])
        for _ in range(20):
            main.look(0.01)
        main.serves()
    with insider(main, 51) as mad:
        before = main.crew.dropped_messages
        mad.put([b"x"] * 10_000)
        mad.put([b""] * 10_000)
        main.look_until(lambda: main.crew.dropped_messages >= before + 2)
        main.serves()


@pytest.mark.parametrize("announced", [1 << 30, 60 << 30, (1 << 64) - 1])
def test_a_message_that_is_announced_to_be_huge(announced: int, main: Main) -> None:
    """Memory for it is asked for at most once, is not touched, and main goes on where there is none."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if announced else 0
    with insider(main, 60) as mad:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mad.session.send([b"head", np.broadcast_to(np.uint8(0), 3 * MIB).tobytes()])
        first = [bytes(frame) for frame in next(iter(mad.session.packets()))]
        # The length of the second frame is the last word of the head.
        head = first[0][4:-8] + announced.to_bytes(8, "little")
        from zlib import crc32

        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), limits[1]))
        try:
            mad.put([crc32(head).to_bytes(4, "little") + head, *first[1:]])
            for _ in range(20):
                main.look(0.01)
            main.serves()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert (after - before) * 1024 < 100 * MIB
    if announced == 60 << 30:
        (ended,) = [one for one in main.others if isinstance(one, Ended)]
        assert ended.host == "mad" and "does not fit into this process's memory" in ended.evidence
        main.provider.killed.clear()


def test_another_token(main: Main) -> None:
    """Packets of a session that is another's, and of one that has been given up."""
    with insider(main, 70) as mad:
        before = main.crew.dropped_messages
        stranger = Session(71)
        stranger.send(wire.encode(Message(Kind.READY)))
        for packet in stranger.packets():
            mad.put(packet)
        main.look_until(lambda: main.crew.dropped_messages >= before + 1)
        mad.say(Message(Kind.GOODBYE, payload=b"gone"))
        main.look_until(lambda: [one for one in main.others if isinstance(one, Ended)])
        mad.heard()
        mad.say(Message(Kind.READY))
        received: list[list[bytes]] = []
        main.look_until(lambda: received.extend(mad.heard()) or [hello.GONE] in received)
        assert not [one for one in main.others if isinstance(one, Joined)]
        main.serves()


def test_what_only_main_says_and_what_makes_no_sense(main: Main) -> None:
    """Each is dropped and counted: nothing of it reaches the farm."""
    nonsense = [
        *(Message(kind, 1, 1, main.canary) for kind in (Kind.JOB, Kind.WORK, Kind.STOP, Kind.RECALL)),
        Message(Kind.HELLO, payload=b"{}"),
        Message(Kind.RETURNED, number=1, payload=main.canary),
        # Not from a slot that has joined.
        *(
            Message(kind, 1, 1, main.canary, slot=7)
            for kind in (Kind.ANSWER, Kind.FAILED, Kind.GAVE_BACK, Kind.LOST)
        ),
        # Slabs are for one machine.
        Message(Kind.ANSWER, 1, 1, main.canary, [BufferPlace(3, 100)]),
        Message(Kind.READY),  # again
    ]
    with insider(main, 80) as mad:
        mad.say(Message(Kind.READY))
        main.look_until(lambda: [one for one in main.others if isinstance(one, Joined)])
        known = list(main.others)
        before = main.crew.dropped_messages
        for message in nonsense:
            mad.say(message)
            main.look()
        main.look_until(lambda: main.crew.dropped_messages >= before + len(nonsense))
        assert main.crew.dropped_messages == before + len(nonsense)
        assert main.others == known
        mad.session.send([b"no message of ours", b""])
        for packet in mad.session.packets():
            mad.put(packet)
        main.look_until(lambda: main.crew.dropped_messages == before + len(nonsense) + 1)


def test_answers_for_leases_that_nobody_gave_out(main: Main) -> None:
    """They come as answers, whose values the farm does not ask for: their pickles stay closed."""
    chance = random.Random(4)
    with insider(main, 90) as mad:
        mad.say(Message(Kind.READY))
        for _ in range(ROUNDS):
            mad.say(
                Message(
                    chance.choice([Kind.ANSWER, Kind.FAILED]),
                    chance.randrange(2**64),
                    chance.randrange(2**32),
                    main.canary,
                    [BufferPlace(0, 3)] if chance.random() < 0.5 else [],
                    [b"abc"],
                    chance.choice([0.0, 1e300, float("inf")]),
                )
                if chance.random() < 0.7
                else Message(Kind.GAVE_BACK, chance.randrange(2**64))
            )
            main.look()
        main.serves()


STRANGE_ENDS = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"position": "x", "evidence": "e", "timed_out": false}',
    b'{"position": Infinity, "evidence": "e", "timed_out": false}',
    b'{"position": NaN, "evidence": "e", "timed_out": false}',
    b'{"position": [1], "evidence": "e", "timed_out": false}',
    b'{"position": -5, "evidence": {}, "timed_out": "?"}',
    b'{"position": ' + b"9" * 5000 + b', "evidence": "e", "timed_out": false}',
]


def test_ends_that_make_no_sense(main: Main) -> None:
    """A slot is lost all the same, and nobody is blamed without evidence."""
    with insider(main, 100) as mad:
        for told in STRANGE_ENDS:
            mad.say(Message(Kind.READY))
            mad.say(Message(Kind.LOST, 1, payload=told))
            main.look()
        main.look_until(lambda: len([o for o in main.others if isinstance(o, Lost)]) == len(STRANGE_ENDS))
        main.serves()
    lost = [one for one in main.others if isinstance(one, Lost)]
    assert [one.evidence for one in lost].count("its agent did not say why") == len(STRANGE_ENDS) - 1
    assert [one.place for one in lost if one.place] == [(1, -5)]


def test_texts_that_are_none(main: Main, capfd: pytest.CaptureFixture[str]) -> None:
    with insider(main, 110) as mad:
        for kind in (Kind.OUTPUT, Kind.DRAINING, Kind.REFUSED):
            for text in (b"", b"\xff\xfe\x00", b"x" * 100_000, main.canary):
                mad.say(Message(kind, number=9, payload=text))
                main.look()
        main.serves()
        mad.say(Message(Kind.GOODBYE, payload=b"\xff" + main.canary))
        main.look_until(lambda: [one for one in main.others if isinstance(one, Ended)])
    assert "x" * 100_000 in capfd.readouterr().err


def test_one_that_talks_nonsense_for_ever_is_given_up(main: Main) -> None:
    """Garbage is no sign of life."""
    with insider(main, 120) as mad:
        mad.say(Message(Kind.READY))

        def chatter() -> list[Happening]:
            mad.put([b"garbage that is no packet, though it has the length of one, or more than that"])
            return [one for one in main.others if isinstance(one, Ended)]

        main.look_until(chatter, GRACE_S + PATIENCE_S)
        main.provider.killed.clear()
        main.serves()
