"""The sockets: the only module that imports zmq.

Local workers connect through a socket file in the run's private directory. Where the system has no such
sockets, they use loopback TCP, encrypted and with a server key that only the workers are told.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

__all__ = ["MainSocket", "WorkerSocket"]

ADDRESS_VARIABLE = "COMPUTEMANAGER_ADDRESS"
SERVER_KEY_VARIABLE = "COMPUTEMANAGER_SERVER_KEY"

_MAX_WAIT_MS = 1000


class MainSocket:
    """Main's end: receives from and sends to any worker by its name.

    Frames are copied into zmq's memory: sending without a copy would start a thread in the host program, for
    good, that pyzmq keeps for such frames; and what is large goes through shared memory anyway.

    Parameters
    ----------
    directory : path
        The run's private directory.
    use_tcp : bool, optional
        Loopback TCP rather than a socket file. Default: only where there are no socket files.
    """

    def __init__(self, directory: Path, *, use_tcp: bool | None = None) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        # What may be under way is bounded by the scheduler's credits; a mark here would only drop messages.
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.router_mandatory = 1
        self.environment: Mapping[str, str]
        path = str(directory / "main")
        if use_tcp is None:
            use_tcp = not zmq.has("ipc") or len(os.fsencode(path)) > zmq.IPC_PATH_MAX_LEN
        if use_tcp:
            public, secret = zmq.curve_keypair()
            self._socket.curve_secretkey = secret
            self._socket.curve_server = True
            port = self._socket.bind_to_random_port("tcp://127.0.0.1")
            self.environment = {
                ADDRESS_VARIABLE: f"tcp://127.0.0.1:{port}",
                SERVER_KEY_VARIABLE: public.decode(),
            }
        else:
            self._socket.bind(f"ipc://{path}")
            self.environment = {ADDRESS_VARIABLE: f"ipc://{path}"}

    def send(self, worker: str, frames: Sequence[Any]) -> bool:
        """Queue a message; False if the worker is not connected any more."""
        try:
            self._socket.send_multipart([worker.encode(), *frames])
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def receive(self, timeout_s: float) -> list[tuple[str, list[Any]]]:
        """All messages that are there, waiting up to `timeout_s` seconds for the first."""
        messages: list[tuple[str, list[Any]]] = []
        if not self._socket.poll(min(_MAX_WAIT_MS, math.ceil(timeout_s * 1000))):
            return messages
        # A bounded number at a time: outcomes are to reach the caller while more of them arrive.
        while len(messages) < 64:
            try:
                sender, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            messages.append((sender.bytes.decode(errors="replace"), [frame.buffer for frame in frames]))
        return messages

    def close(self) -> None:
        """Close the socket; what has not been sent is dropped. May be called again."""
        self._socket.close(linger=0)
        self._context.term()


class WorkerSocket:
    """A worker's end: talks to main.

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
        if SERVER_KEY_VARIABLE in environment:
            public, secret = zmq.curve_keypair()
            self._socket.curve_publickey, self._socket.curve_secretkey = public, secret
            self._socket.curve_serverkey = environment[SERVER_KEY_VARIABLE].encode()
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
