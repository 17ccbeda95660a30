"""Sockets: where main listens, who is let in, and what happens to those that are not."""

from __future__ import annotations

import contextlib
import socket as sockets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from computemanager.errors import SettingsError, WorkersLostError
from computemanager.model import Job, Settings
from computemanager.subproc import SubprocManager
from computemanager.transport import (
    AT_ONCE,
    MAX_FRAME_BYTES,
    AgentSocket,
    Listening,
    MainSocket,
    WorkerSocket,
)

ADDRESS, SERVER_KEY, CLIENT_KEY = (
    f"COMPUTEMANAGER_{name}" for name in ("ADDRESS", "SERVER_KEY", "CLIENT_KEY")
)
PATIENCE_S = 20.0
ELSEWHERE = "203.0.113.7"
"""An address that is nobody's: it is for documents."""


@pytest.fixture
def listen() -> Iterator[Callable[..., MainSocket]]:
    """Return a function that makes a main socket on the loopback, which is closed after the test."""
    with contextlib.ExitStack() as undo:

        def make(where: Path | Listening | None = None) -> MainSocket:
            main = MainSocket(where or Listening("127.0.0.1", grace_s=3.0))
            return undo.enter_context(contextlib.closing(main))

        yield make


@contextlib.contextmanager
def agent(environment: Any, identity: bytes = b"an agent") -> Iterator[AgentSocket]:
    with contextlib.closing(AgentSocket(environment, identity, grace_s=3.0)) as made:
        yield made


def port_of(main: MainSocket) -> int:
    return int(main.environment[ADDRESS].rpartition(":")[2])


def received(main: MainSocket, number: int) -> list[tuple[bytes, list[bytes]]]:
    """So many messages; fails if they do not come."""
    found: list[tuple[bytes, list[bytes]]] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < number:
        assert time.monotonic() < deadline, found
        found += [(sender, [bytes(one) for one in frames]) for sender, frames in main.receive(0.05)]
    return found


def until(main: MainSocket, peer: AgentSocket, condition: Callable[[], Any]) -> None:
    """Let both ends do their work until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        main.receive(0.01)
        peer.wait(0.01)


# -- where main listens ----------------------------------------------------------------------------------


def test_any_free_port(listen: Callable[..., MainSocket]) -> None:
    first, second = listen(), listen()
    assert first.environment[ADDRESS].startswith("tcp://127.0.0.1:")
    assert port_of(first) != port_of(second)


def test_the_first_free_port_of_a_range(listen: Callable[..., MainSocket]) -> None:
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        found = port_of(listen(Listening("127.0.0.1", (first, min(first + 50, 65535)))))
    assert first < found <= first + 50


def test_all_ports_of_a_range_are_taken(listen: Callable[..., MainSocket]) -> None:
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WorkersLostError) as caught:
            listen(Listening("127.0.0.1", (port, port)))
    assert f"no free port from {port} to {port} on 127.0.0.1" in str(caught.value)
    assert "Give another port or a larger range" in str(caught.value)


@pytest.mark.parametrize("address", [ELSEWHERE, "no-such-host.invalid", ""])
def test_an_address_that_this_machine_does_not_have(address: str, listen: Callable[..., MainSocket]) -> None:
    with pytest.raises(SettingsError) as caught:
        listen(Listening(address))
    assert f"no network interface with the address {address}" in str(caught.value)
    assert "everywhere=True" in str(caught.value)


def test_everywhere(listen: Callable[..., MainSocket]) -> None:
    """Workers are told the address that is translated on the way, and it is listened to on all interfaces."""
    main = listen(Listening(ELSEWHERE, everywhere=True))
    assert main.environment[ADDRESS] == f"tcp://{ELSEWHERE}:{port_of(main)}"
    here = {**main.environment, ADDRESS: f"tcp://127.0.0.1:{port_of(main)}"}
    with agent(here) as peer:
        peer.send([b"through"])
        assert received(main, 1) == [(b"an agent", [b"through"])]


def test_only_on_the_address_that_was_given(listen: Callable[..., MainSocket]) -> None:
    main = listen(Listening("127.0.0.1"))
    with pytest.raises(ConnectionRefusedError):
        sockets.create_connection(("127.0.0.2", port_of(main)), timeout=5)


def test_ipv6(listen: Callable[..., MainSocket]) -> None:
    try:
        sockets.create_server(("::1", 0), family=sockets.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    main = listen(Listening("::1"))
    assert main.environment[ADDRESS] == f"tcp://[::1]:{port_of(main)}"
    # A connecting end has to be told as well.
    with contextlib.closing(sockets.create_connection(("::1", port_of(main)), timeout=5)) as raw:
        assert raw.recv(1)[:1] == b"\xff"  # the first byte of a greeting


# -- keys ------------------------------------------------------------------------------------------------


def test_each_socket_has_its_own_keys(listen: Callable[..., MainSocket]) -> None:
    environments = [listen().environment for _ in range(2)]
    for name in (SERVER_KEY, CLIENT_KEY):
        assert len({environment[name] for environment in environments}) == 2
    for environment in environments:
        assert set(environment) == {ADDRESS, SERVER_KEY, CLIENT_KEY}
        assert environment[SERVER_KEY] != zmq.curve_public(environment[CLIENT_KEY].encode()).decode()


def test_local_sockets_need_no_keys(listen: Callable[..., MainSocket], tmp_path: Path) -> None:
    main = listen(tmp_path)
    assert set(main.environment) == {ADDRESS}
    assert main.environment[ADDRESS].startswith("ipc://")


def test_an_agent_with_the_key_is_let_in(listen: Callable[..., MainSocket], tmp_path: Path) -> None:
    main = listen()
    with agent(main.environment) as peer:
        assert not peer.connected
        until(main, peer, lambda: peer.connected)
        peer.send([b"one", b"", b"two"])
        assert received(main, 1) == [(b"an agent", [b"one", b"", b"two"])]
        assert main.send(b"an agent", [b"answer"])
        answers: list[bytes] = []
        until(
            main,
            peer,
            lambda: answers.extend(bytes(f) for frames in peer.receive() for f in frames) or answers,
        )
        assert answers == [b"answer"] and main.refused == 0 and not peer.turned_away
        main.close()
        until(listen(), peer, lambda: not peer.connected)


def test_an_agent_with_another_key_is_turned_away(listen: Callable[..., MainSocket], tmp_path: Path) -> None:
    """It is told, once and for all, and what it says then goes nowhere instead of waiting for ever."""
    main = listen()
    environment = {**main.environment, CLIENT_KEY: listen().environment[CLIENT_KEY]}
    with agent(environment) as peer:
        until(main, peer, lambda: peer.turned_away)
        assert not peer.connected
        for _ in range(10):
            peer.send([b"let me in"])
            peer.wait(0.01)
            assert peer.turned_away and not main.receive(0.01)
    assert main.refused == 1


def test_an_agent_that_looks_for_another_main_is_not_let_in(
    listen: Callable[..., MainSocket], tmp_path: Path
) -> None:
    main = listen()
    with agent({**main.environment, SERVER_KEY: listen().environment[SERVER_KEY]}) as peer:
        peer.send([b"are you mine?"])
        for _ in range(20):
            assert not main.receive(0.02)
            peer.wait(0.01)
        assert not peer.connected


# -- messages --------------------------------------------------------------------------------------------


def test_one_that_is_not_there_cannot_be_sent_to(listen: Callable[..., MainSocket]) -> None:
    assert listen().send(b"nobody", [b"hello?"]) is False


def test_a_name_comes_back_on_a_new_connection(listen: Callable[..., MainSocket]) -> None:
    """Before main has noticed that the old one is gone."""
    main = listen()
    with contextlib.ExitStack() as undo:
        old = undo.enter_context(agent(main.environment))
        old.send([b"old"])
        assert received(main, 1) == [(b"an agent", [b"old"])]
        new = undo.enter_context(agent(main.environment))
        new.send([b"new"])
        assert received(main, 1) == [(b"an agent", [b"new"])]
        assert main.send(b"an agent", [b"to the new one"])
        deadline = time.monotonic() + PATIENCE_S
        while not (found := [bytes(one) for frames in new.receive() for one in frames]):
            assert time.monotonic() < deadline
        assert found == [b"to the new one"] and not list(old.receive())


def test_a_bounded_number_is_received_at_a_time(listen: Callable[..., MainSocket]) -> None:
    main = listen()
    with agent(main.environment) as peer:
        for number in range(3 * AT_ONCE):
            peer.send([str(number).encode()])
        found: list[bytes] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < 3 * AT_ONCE:
            some = main.receive(0.05)
            assert len(some) <= AT_ONCE and time.monotonic() < deadline
            found += [bytes(frames[0]) for _, frames in some]
    assert found == [str(number).encode() for number in range(3 * AT_ONCE)]


def test_frames_that_are_too_large_end_the_connection(
    listen: Callable[..., MainSocket], tmp_path: Path
) -> None:
    """The peer's alone; and it may come back."""
    main = listen()
    with agent(main.environment) as peer:
        until(main, peer, lambda: peer.connected)
        peer.send([bytes(MAX_FRAME_BYTES + 1)])
        until(listen(), peer, lambda: not peer.connected)
        until(main, peer, lambda: peer.connected)
    with agent(main.environment, b"another") as peer:
        nbytes = MAX_FRAME_BYTES - 1000  # encryption adds something
        peer.send([bytes(nbytes)])
        ((sender, frames),) = received(main, 1)
        assert sender == b"another" and len(frames[0]) == nbytes


# -- where there are no socket files ---------------------------------------------------------------------


def test_local_workers_without_socket_files(
    listen: Callable[..., MainSocket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loopback, with keys, since others on the machine can connect to it."""
    monkeypatch.setattr(zmq, "has", lambda what: what != "ipc")
    main = listen(tmp_path)
    assert main.environment[ADDRESS].startswith("tcp://127.0.0.1:") and CLIENT_KEY in main.environment
    with contextlib.closing(WorkerSocket(main.environment, "slot-0")) as worker:
        worker.send([b"hello"])
        assert received(main, 1) == [(b"slot-0", [b"hello"])]
        assert main.send(b"slot-0", [b"work"])
        frames = worker.receive(wait=True)
        assert frames is not None and [bytes(one) for one in frames] == [b"work"]
        assert worker.receive(wait=False) is None


def test_a_path_that_is_too_long_for_a_socket_file(listen: Callable[..., MainSocket], tmp_path: Path) -> None:
    deep = tmp_path / ("x" * zmq.IPC_PATH_MAX_LEN)
    assert listen(deep).environment[ADDRESS].startswith("tcp://127.0.0.1:")


def test_a_job_without_socket_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda what: what != "ipc")
    outcomes = list(SubprocManager(Settings(num_workers=2)).run(Job(abs), range(-50, 0)))
    assert [outcome.value for outcome in outcomes] == list(range(50, 0, -1))
