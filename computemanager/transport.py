"""The sockets: the only module that imports zmq.

Workers on this machine connect through a socket file in the run's private directory. Everything else is TCP,
encrypted with CURVE: main proves who it is by a key whose public half travels with the join details, and lets
in only who has the job's client key. Both pairs of keys are made for one run and never written anywhere.

libzmq's own threads do the encryption and answer its heartbeats, so a connection stays alive while Python is
busy, and ends within seconds when the other machine is gone.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zmq
import zmq.utils.z85
from zmq.utils.monitor import recv_monitor_message

from computemanager.errors import SettingsError, WorkersLostError

__all__ = ["AgentSocket", "Listening", "MainSocket", "WorkerSocket"]

ADDRESS_VARIABLE = "COMPUTEMANAGER_ADDRESS"
SERVER_KEY_VARIABLE = "COMPUTEMANAGER_SERVER_KEY"
CLIENT_KEY_VARIABLE = "COMPUTEMANAGER_CLIENT_KEY"

MAX_FRAME_BYTES = 32 * 1024 * 1024
"""Larger frames end their connection before memory is given to them; `computemanager.session` cuts what is
larger into pieces far below this."""

_MAX_WAIT_MS = 1000
AT_ONCE = 64
"""Most messages that are received at a time; where there were fewer, nothing is left to be read."""

_ZAP_ADDRESS = "inproc://zeromq.zap.01"


class Listening(NamedTuple):
    """Where main listens for remote workers.

    Attributes
    ----------
    address : str
        Name or number by which workers reach this machine.
    ports : tuple of int, optional
        First and last port to try. Default: any that is free.
    everywhere : bool
        Listen on all interfaces, not just on the one with that address: where `address` is translated on
        the way here (NAT), say.
    grace_s : float
        Silence after which a connection is given up and made anew is a third of this.
    """

    address: str
    ports: tuple[int, int] | None = None
    everywhere: bool = False
    grace_s: float = 30.0


class MainSocket:
    """Main's end: receives from and sends to any worker by its name.

    Frames are copied into zmq's memory: sending without a copy would start a thread in the host program, for
    good, that pyzmq keeps for such frames; and what is large goes through shared memory on one host.

    Parameters
    ----------
    where : path or Listening
        The run's private directory, for a socket file (loopback TCP where the system has no such files); or
        where to listen for remote workers.

    Attributes
    ----------
    environment : mapping of str to str
        What a worker needs in its environment to connect.
    refused : int
        Connections turned away because they did not have the job's key.
    """

    def __init__(self, where: Path | Listening) -> None:
        if isinstance(where, Path):
            path = str(where / "main")
            has_files = zmq.has("ipc") and len(os.fsencode(path)) <= zmq.IPC_PATH_MAX_LEN
            listening = None if has_files else Listening("127.0.0.1")
        else:
            listening = where
        self._context = zmq.Context(io_threads=_io_threads() if listening else 1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._zap: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self.refused = 0
        self.environment: Mapping[str, str]
        try:
            self._socket.linger = 0
            # What may be under way is bounded by those who send; a mark here would only drop messages.
            self._socket.sndhwm = self._socket.rcvhwm = 0
            self._socket.router_mandatory = 1
            if listening is not None:
                self.environment = self._listen(listening)
            else:
                self._socket.bind(f"ipc://{path}")
                self.environment = {ADDRESS_VARIABLE: f"ipc://{path}"}
        except BaseException:
            self.close()
            raise

    def _listen(self, listening: Listening) -> Mapping[str, str]:
        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self._admitted = client_public
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind(_ZAP_ADDRESS)
        _secure_server(self._socket, server_secret)
        # A worker whose connection broke comes back under its name before the old one has timed out.
        self._socket.router_handover = 1
        self._socket.maxmsgsize = MAX_FRAME_BYTES
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._zap, zmq.POLLIN)
        port = _bind(self._socket, listening)
        host = f"[{listening.address}]" if ":" in listening.address else listening.address
        return {
            ADDRESS_VARIABLE: f"tcp://{host}:{port}",
            SERVER_KEY_VARIABLE: server_public.decode(),
            CLIENT_KEY_VARIABLE: client_secret.decode(),
        }

    def send(self, worker: bytes, frames: Sequence[Any]) -> bool:
        """Queue a message; False if the worker is not connected at the moment."""
        try:
            self._socket.send_multipart([worker, *frames])
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def receive(self, timeout_s: float) -> list[tuple[bytes, list[Any]]]:
        """All messages that are there, waiting up to `timeout_s` seconds for the first."""
        wait_ms = min(_MAX_WAIT_MS, math.ceil(timeout_s * 1000))
        if self._zap is None:
            if not self._socket.poll(wait_ms):
                return []
        else:
            ready = dict(self._poller.poll(wait_ms))
            if self._zap in ready:
                self._admit()
            if self._socket not in ready:
                return []
        messages: list[tuple[bytes, list[Any]]] = []
        # A bounded number at a time: outcomes are to reach the caller while more of them arrive.
        while len(messages) < AT_ONCE:
            try:
                sender, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            messages.append((sender.bytes, [frame.buffer for frame in frames]))
        return messages

    def _admit(self) -> None:
        """Answer libzmq's questions who may connect (its ZAP protocol, RFC 27)."""
        assert self._zap is not None
        while self._zap.poll(0):
            version, request, _, _, _, mechanism, *credentials = self._zap.recv_multipart()
            key = zmq.utils.z85.encode(credentials[0]) if credentials and len(credentials[0]) == 32 else b""
            is_ours = mechanism == b"CURVE" and key == self._admitted
            if not is_ours:
                self.refused += 1
            status, text = (b"200", b"OK") if is_ours else (b"400", b"not a worker of this job")
            self._zap.send_multipart([version, request, status, text, b"", b""])

    def close(self, linger_s: float = 0.0) -> None:
        """Close the socket, giving what is queued up to `linger_s` seconds to leave. May be called again."""
        self._socket.close(linger=math.ceil(linger_s * 1000))
        if self._zap is not None:
            self._zap.close(linger=0)
        self._context.term()


class WorkerSocket:
    """A local slot's end: talks to main, or to the agent that started it.

    Parameters
    ----------
    environment : mapping
        The worker's environment variables, which say where main is.
    name : str
        The worker's name.
    """

    def __init__(self, environment: Mapping[str, str], name: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 5000
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.identity = name.encode()
        if CLIENT_KEY_VARIABLE in environment:
            _secure_client(self._socket, environment)
        self._socket.connect(environment[ADDRESS_VARIABLE])

    def send(self, frames: Sequence[Any]) -> None:
        """Queue a message."""
        self._socket.send_multipart(list(frames))

    def receive(self, *, wait: bool) -> list[Any] | None:
        """The next message's frames; None if there is none and `wait` is False."""
        try:
            frames = self._socket.recv_multipart(0 if wait else zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        return [frame.buffer for frame in frames]

    def close(self) -> None:
        """Send what is queued, and close."""
        self._socket.close()
        self._context.term()


class AgentSocket:
    """An agent's end: talks to main over a connection that may break and come back.

    Parameters
    ----------
    environment : mapping
        Main's address and the keys.
    identity : bytes
        By which main knows this agent, also when its connection is a new one.
    grace_s : float
        As for `Listening`.
    slots : MainSocket, optional
        Where the agent's slots connect: `wait` looks there too.

    Attributes
    ----------
    connected : bool
        Whether there is a connection on which main has proved who it is, as far as is known.
    turned_away : bool
        Whether main has refused this agent's key. There will be no other try.
    """

    def __init__(
        self, environment: Mapping[str, str], identity: bytes, grace_s: float, slots: MainSocket | None = None
    ) -> None:
        self.connected = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.identity = identity
        self._socket.maxmsgsize = MAX_FRAME_BYTES
        # Tries come ever less often, but so that some of them fall into what a cut leaves of the grace time.
        self._socket.reconnect_ivl = 100
        self._socket.reconnect_ivl_max = max(100, min(2000, math.ceil(grace_s * 1000 / 10)))
        self._socket.connect_timeout = max(500, math.ceil(grace_s * 1000 / 6))
        _watch_connection(self._socket, grace_s)
        _secure_client(self._socket, environment)
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        self.turned_away = False
        self._poller = zmq.Poller()
        for socket in (self._socket, self._monitor, *([slots._socket] if slots is not None else [])):
            self._poller.register(socket, zmq.POLLIN)
        self._socket.connect(environment[ADDRESS_VARIABLE])

    def send(self, frames: Sequence[Any]) -> None:
        """Queue a message; its buffers must stay as they are until the other end has it.

        It is lost where main has turned this agent away: libzmq has given up the connection for good then,
        and would wait for another for ever.
        """
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(list(frames), zmq.NOBLOCK, copy=False)

    def receive(self) -> Iterator[list[Any]]:
        """The messages that are there now, a bounded number."""
        for _ in range(AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            yield [frame.buffer for frame in frames]

    def wait(self, timeout_s: float) -> None:
        """Wait for something to receive, here or at the slots' socket; note what the connection does."""
        ready = dict(self._poller.poll(max(0, math.ceil(timeout_s * 1000))))
        if self._monitor in ready:
            while self._monitor.poll(0):
                event = recv_monitor_message(self._monitor)["event"]
                self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    self.turned_away = True  # for good: the end of the connection is reported next

    def close(self, linger_s: float = 0.0) -> None:
        """Close, giving what is queued up to `linger_s` seconds to leave. May be called again."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        self._socket.close(linger=math.ceil(linger_s * 1000))
        self._context.term()


def _io_threads() -> int:
    """How many threads serve remote workers: encryption limits them, so they grow with the cores."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


def _secure_server(socket: zmq.Socket[bytes], secret: bytes) -> None:
    socket.curve_secretkey = secret
    socket.curve_server = True
    socket.zap_domain = b"computemanager"


def _secure_client(socket: zmq.Socket[bytes], environment: Mapping[str, str]) -> None:
    secret = environment[CLIENT_KEY_VARIABLE].encode()
    socket.curve_secretkey = secret
    socket.curve_publickey = zmq.curve_public(secret)
    socket.curve_serverkey = environment[SERVER_KEY_VARIABLE].encode()


def _watch_connection(socket: zmq.Socket[bytes], grace_s: float) -> None:
    """Let libzmq give up connections on which nothing comes, and make them anew within the grace time.

    The agent asks for signs of life, and tells main's libzmq after how long it is to give up too. Main's
    socket does not ask by itself: together with `router_handover` that ends the process in libzmq 4.3.5
    (an assertion in its engine, after a few cuts of the network).
    """
    socket.heartbeat_ivl = max(100, math.ceil(grace_s * 1000 / 10))
    socket.heartbeat_timeout = socket.heartbeat_ttl = max(300, math.ceil(grace_s * 1000 / 3))


def _bind(socket: zmq.Socket[bytes], listening: Listening) -> int:
    """Bind to the first free port; return it."""
    host = "0.0.0.0" if listening.everywhere else listening.address
    if ":" in host:
        socket.ipv6 = True
        host = f"[{host}]"
    ports: Iterable[int | str] = ["*"]  # the system knows a free one
    if listening.ports is not None:
        ports = range(listening.ports[0], listening.ports[1] + 1)
    for port in ports:
        try:
            socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                continue
            if error.errno in (errno.ENODEV, errno.EINVAL, zmq.EADDRNOTAVAIL):
                raise SettingsError(
                    f"this machine has no network interface with the address {listening.address}. Give the "
                    f"number of one that it has, or listen everywhere (everywhere=True) if that address is "
                    f"translated on the way here"
                ) from error
            raise WorkersLostError(f"cannot listen on {host}, port {port}: {error}") from error
        endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return int(endpoint.rstrip("\0").rpartition(":")[2])
    assert listening.ports is not None
    raise WorkersLostError(
        f"no free port from {listening.ports[0]} to {listening.ports[1]} on {listening.address} to listen on "
        f"for workers. Give another port or a larger range"
    )
