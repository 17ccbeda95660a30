"""How fast arrays travel to an agent and back over TCP, with CURVE and without, beside a bare ZeroMQ loop.

Everything runs on this machine: main, the agent, its slot and all that encrypts share its cores. The library
never sends unencrypted over TCP; for the comparison without CURVE, its one function for each end that
switches it on is replaced here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import peers
import zmq
from harness import Contestant, alternate, heading, report

from computemanager import Job, Settings, manager_class, transport

IN_FLIGHT_BYTES = 64 << 20


def bare(nbytes: int, count: int, *, curve: bool) -> Contestant:
    """A ROUTER here and a DEALER that echoes in another process; nothing is copied that need not be."""

    def run() -> float:
        public, secret = zmq.curve_keypair()
        context = zmq.Context(io_threads=transport._io_threads())
        router = context.socket(zmq.ROUTER)
        if curve:
            router.curve_secretkey, router.curve_server = secret, True
        port = router.bind_to_random_port("tcp://127.0.0.1")
        key = public.decode() if curve else ""
        echo = subprocess.Popen([sys.executable, __file__, "--echo", str(port), key])
        try:
            sender, _ = router.recv_multipart()
            arrays = list(peers.arrays(nbytes, 8))
            in_flight = max(2, IN_FLIGHT_BYTES // nbytes)
            warm_up = 2 * in_flight
            sent = received = 0
            started = 0.0
            while received < warm_up + count:
                while sent < warm_up + count and sent - received < in_flight:
                    router.send_multipart([sender, arrays[sent % 8]], copy=False)
                    sent += 1
                frame = router.recv_multipart(copy=False)[1]
                assert len(frame) == nbytes
                received += 1
                if received == warm_up:
                    started = time.perf_counter()
            return time.perf_counter() - started
        finally:
            echo.kill()
            echo.wait()
            context.destroy(linger=0)

    return run


def echo(port: str, key: str) -> None:
    """The other end of `bare`."""
    dealer = zmq.Context().socket(zmq.DEALER)
    if key:
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
        dealer.curve_serverkey = key.encode()
    dealer.connect(f"tcp://127.0.0.1:{port}")
    dealer.send(b"")
    while True:
        dealer.send_multipart(dealer.recv_multipart(copy=False), copy=False)


def ours(nbytes: int, count: int, *, curve: bool, slots: int = 1) -> Contestant:
    """An agent of this machine that hands back what it gets."""

    def run() -> float:
        in_flight = max(2, IN_FLIGHT_BYTES // nbytes)
        settings = Settings(window_blocks=in_flight, extra_params={"slots": slots})
        warm_up = 2 * in_flight
        made = itertools.islice(itertools.cycle(peers.arrays(nbytes, 8)), warm_up + count)
        with contextlib.nullcontext() if curve else without_curve():
            outcomes = manager_class("CW_AGENTS")(settings).run(Job(peers.echo), made)
            for _ in range(warm_up):
                next(outcomes)
            started = time.perf_counter()
            received = [peers.seen(outcome.value) for outcome in outcomes]
            seconds = time.perf_counter() - started
        assert received == [((warm_up + number) % 8, nbytes) for number in range(count)]
        return seconds

    return run


@contextlib.contextmanager
def without_curve() -> Iterator[None]:
    """Within, neither main nor the agents it starts encrypt anything."""
    server = transport._secure_server
    transport._secure_server = lambda *_: None
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "without_curve")
    os.environ["PYTHONPATH"], before = folder, os.environ.get("PYTHONPATH")
    try:
        yield
    finally:
        transport._secure_server = server
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def main(rounds: int = 5) -> None:
    """Run both sizes, with CURVE and without."""
    for mebibytes, count in ((8, 100), (1, 500)):
        nbytes = mebibytes << 20
        for curve in (False, True):
            number = count // 4 if curve else count
            heading(
                f"{number} arrays of {mebibytes} MiB over TCP, there and back, "
                f"{'with' if curve else 'without'} CURVE"
            )
            report(
                alternate(
                    {
                        "zmq, bare": bare(nbytes, number, curve=curve),
                        "CW_AGENTS, 1 slot": ours(nbytes, number, curve=curve),
                        "CW_AGENTS, 2 slots": ours(nbytes, number, curve=curve, slots=2),
                    },
                    rounds,
                ),
                "zmq, bare",
                amount=2 * nbytes * number / 1e9,
                unit="GB/s",
                goals={"CW_AGENTS, 1 slot": "at least 0.8"},
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--echo"]:
        echo(*sys.argv[2:])
    else:
        np.seterr(all="raise")
        main(*map(int, sys.argv[1:]))
