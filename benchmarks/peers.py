"""The same work on other tools, timed the same way, to compare with in one and the same run.

Two kinds of work, on two worker processes of this computer:

- ``noop_PEER(n)``: a function that does nothing is called on 0 .. n-1 and all n values come back;
- ``echo_PEER(nbytes, count)``: `count` arrays of `nbytes` go to a function that returns what it gets, and
  come back; 2 * nbytes * count bytes travel.

Each returns seconds, from the first call submitted to the last value received; starting and warming up
workers is not in it. Each uses its tool as its manual advises for throughput: many calls in flight but not
all, batches where the tool makes them by itself, the shared-memory path for arrays where there is one. Order
is not asked of them.

    python benchmarks/peers.py                     all that are installed
    python benchmarks/peers.py ray zmq --noop 5000 --bytes 4000000 --count 100
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

WORKERS = 2
CALLS_IN_FLIGHT = 1000
"""For calls that carry next to nothing."""
ARRAYS_IN_FLIGHT = 8
KINDS_OF_ARRAY = 8


class PeerMissingError(ImportError):
    """The peer is not installed."""


def noop(number: int) -> int:
    """Do nothing, for one call."""
    return number


def echo(array: np.ndarray) -> np.ndarray:
    """Return the array received: what is measured is the way, not the making of arrays."""
    return array


def arrays(nbytes: int, count: int) -> Iterator[np.ndarray]:
    """Arrays to send, made beforehand; a few, in turn."""
    made = [np.full(nbytes, number, dtype=np.uint8) for number in range(KINDS_OF_ARRAY)]
    return itertools.islice(itertools.cycle(made), count)


def check_numbers(values: Iterable[int], count: int) -> None:
    """Fail unless each number from 0 to count - 1 is among the values, once."""
    if sorted(values) != list(range(count)):
        raise AssertionError("a peer lost or doubled a call")


def check_arrays(received: list[tuple[int, int]], nbytes: int, count: int) -> None:
    """Fail unless the arrays that came back, as (first byte, size), are those that were sent."""
    if sorted(received) != sorted((number % KINDS_OF_ARRAY, nbytes) for number in range(count)):
        raise AssertionError("a peer lost, doubled or changed an array")


def seen(array: np.ndarray) -> tuple[int, int]:
    """Return what `check_arrays` needs to know of an array, so that it need not be kept."""
    return int(array[0]), array.nbytes


# ---- multiprocessing


@contextlib.contextmanager
def _pool() -> Iterator[Any]:
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool.map(noop, range(10 * WORKERS), chunksize=1)
        yield pool


def noop_multiprocessing(n: int, chunksize: int = 1) -> float:
    """Pool.imap, one call a message."""
    with _pool() as pool:
        start = time.perf_counter()
        values = list(pool.imap(noop, range(n), chunksize=chunksize))
        seconds = time.perf_counter() - start
    check_numbers(values, n)
    return seconds


def noop_multiprocessing_chunks(n: int) -> float:
    """Pool.imap with 64 calls a message: fast, but the user has to know how long a call takes."""
    return noop_multiprocessing(n, chunksize=64)


def echo_multiprocessing(nbytes: int, count: int) -> float:
    """Pool.imap, which sends pickles through pipes."""
    with _pool() as pool:
        start = time.perf_counter()
        received = [seen(array) for array in pool.imap(echo, arrays(nbytes, count))]
        seconds = time.perf_counter() - start
    check_arrays(received, nbytes, count)
    return seconds


# ---- joblib, with loky


@contextlib.contextmanager
def _joblib() -> Iterator[Any]:
    joblib = _installed("joblib")
    from joblib.externals.loky import get_reusable_executor

    try:
        with joblib.Parallel(n_jobs=WORKERS, return_as="generator_unordered") as parallel:
            list(parallel(joblib.delayed(noop)(number) for number in range(10 * WORKERS)))
            yield parallel, joblib.delayed
    finally:
        get_reusable_executor().shutdown(wait=True)


def noop_joblib(n: int) -> float:
    """Parallel with its automatic batches."""
    with _joblib() as (parallel, delayed):
        start = time.perf_counter()
        values = list(parallel(delayed(noop)(number) for number in range(n)))
        seconds = time.perf_counter() - start
    check_numbers(values, n)
    return seconds


def echo_joblib(nbytes: int, count: int) -> float:
    """Parallel, which passes arrays over 1 MB as memory maps and gets results as pickles."""
    with _joblib() as (parallel, delayed):
        start = time.perf_counter()
        received = [
            seen(array) for array in parallel(delayed(echo)(array) for array in arrays(nbytes, count))
        ]
        seconds = time.perf_counter() - start
    check_arrays(received, nbytes, count)
    return seconds


# ---- Dask


@contextlib.contextmanager
def _dask() -> Iterator[Any]:
    distributed = _installed("distributed")
    import dask

    with (
        tempfile.TemporaryDirectory(prefix="dask-") as directory,
        dask.config.set({"temporary-directory": directory}),
        distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            host="127.0.0.1",
            local_directory=directory,
            silence_logs=logging.ERROR,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.gather(client.map(noop, range(10 * WORKERS), pure=False))
        yield client


def noop_dask(n: int) -> float:
    """Client.map and gather, a thousand at a time: one message to the scheduler for all of them."""
    with _dask() as client:
        start = time.perf_counter()
        values: list[int] = []
        for first in range(0, n, CALLS_IN_FLIGHT):
            numbers = range(first, min(first + CALLS_IN_FLIGHT, n))
            values += client.gather(client.map(noop, numbers, pure=False))
        seconds = time.perf_counter() - start
    check_numbers(values, n)
    return seconds


def echo_dask(nbytes: int, count: int) -> float:
    """Arrays scattered straight to a worker and gathered straight from it, past the scheduler."""

    def submit(array: np.ndarray) -> Any:
        return client.submit(echo, client.scatter(array, direct=True, hash=False), pure=False)

    with _dask() as client:
        start = time.perf_counter()
        received = [
            seen(client.gather(future, direct=True))
            for future in _few_at_a_time(submit, arrays(nbytes, count), ARRAYS_IN_FLIGHT)
        ]
        seconds = time.perf_counter() - start
    check_arrays(received, nbytes, count)
    return seconds


# ---- Ray


@contextlib.contextmanager
def _ray() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about GPUs
    ray = _installed("ray")
    directory = tempfile.mkdtemp(prefix="ray-")  # short: its sockets' paths have about 100 characters
    try:
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=1_000_000_000,
            _node_ip_address="127.0.0.1",
            _temp_dir=directory,
        )
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def noop_ray(n: int) -> float:
    """Remote functions, up to a thousand not waited for."""
    with _ray() as ray:
        call = ray.remote(noop)
        ray.get([call.remote(number) for number in range(10 * WORKERS)])
        start = time.perf_counter()
        values: list[int] = []
        waiting: deque[list[Any]] = deque()
        for first in range(0, n, CALLS_IN_FLIGHT // 2):
            waiting.append([call.remote(i) for i in range(first, min(first + CALLS_IN_FLIGHT // 2, n))])
            if len(waiting) == 2:
                values += ray.get(waiting.popleft())
        for references in waiting:
            values += ray.get(references)
        seconds = time.perf_counter() - start
    check_numbers(values, n)
    return seconds


def echo_ray(nbytes: int, count: int) -> float:
    """Arrays through the object store: shared memory, read without a copy."""
    with _ray() as ray:
        call = ray.remote(echo)
        ray.get([call.remote(np.zeros(nbytes, dtype=np.uint8)) for _ in range(2 * WORKERS)])
        start = time.perf_counter()
        received = [
            seen(ray.get(reference))
            for reference in _few_at_a_time(
                lambda array: call.remote(ray.put(array)), arrays(nbytes, count), ARRAYS_IN_FLIGHT
            )
        ]
        seconds = time.perf_counter() - start
    check_arrays(received, nbytes, count)
    return seconds


# ---- ZeroMQ alone: what a socket gives when there is nothing around it


@contextlib.contextmanager
def _zmq() -> Iterator[Any]:
    zmq = _installed("zmq")
    context = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="zmq-") as directory:
        local = hasattr(os, "fork")  # where there are local sockets
        socket = context.socket(zmq.DEALER)  # takes turns between those that are connected
        socket.linger = 0
        socket.bind(f"ipc://{directory}/s" if local else "tcp://127.0.0.1:*")
        command = [sys.executable, os.path.abspath(__file__), "--zmq-worker", socket.last_endpoint.decode()]
        workers = [subprocess.Popen(command) for _ in range(WORKERS)]
        try:
            for _ in workers:
                socket.recv()
            yield socket
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()
            socket.close()
            context.term()


def _zmq_worker(address: str) -> None:
    import zmq

    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(address)
    socket.send(b"")
    while True:
        frame = socket.recv(copy=False)
        if len(frame.buffer) == 8:
            socket.send(frame.bytes)
        else:
            socket.send(echo(np.frombuffer(frame.buffer, dtype=np.uint8)), copy=False)


def noop_zmq(n: int) -> float:
    """One message of 8 bytes a call, each way."""
    with _zmq() as socket:
        start = time.perf_counter()
        values = []
        for number in range(n):
            socket.send(number.to_bytes(8, "little"))
            if number >= CALLS_IN_FLIGHT // 10:
                values.append(int.from_bytes(socket.recv(), "little"))
        while len(values) < n:
            values.append(int.from_bytes(socket.recv(), "little"))
        seconds = time.perf_counter() - start
    check_numbers(values, n)
    return seconds


def echo_zmq(nbytes: int, count: int) -> float:
    """Arrays sent and received without a copy on our side of the socket."""

    def receive() -> tuple[int, int]:
        return seen(np.frombuffer(socket.recv(copy=False).buffer, dtype=np.uint8))

    with _zmq() as socket:
        start = time.perf_counter()
        received = []
        for number, array in enumerate(arrays(nbytes, count)):
            socket.send(array, copy=False)
            if number >= ARRAYS_IN_FLIGHT:
                received.append(receive())
        while len(received) < count:
            received.append(receive())
        seconds = time.perf_counter() - start
    check_arrays(received, nbytes, count)
    return seconds


# ---- all of them


def _installed(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PeerMissingError(f"{name} is not installed: python -m pip install {name}") from error


def _few_at_a_time(submit: Callable[[Any], Any], items: Iterable[Any], most: int) -> Iterator[Any]:
    """Submit items, no more than `most` ahead of what is taken; yield what `submit` returned, in order."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) >= most:
            yield waiting.popleft()
    yield from waiting


NOOP: dict[str, Callable[[int], float]] = {
    "multiprocessing": noop_multiprocessing,
    "multiprocessing_chunks": noop_multiprocessing_chunks,
    "joblib": noop_joblib,
    "dask": noop_dask,
    "ray": noop_ray,
    "zmq": noop_zmq,
}
ECHO: dict[str, Callable[[int, int], float]] = {
    "multiprocessing": echo_multiprocessing,
    "joblib": echo_joblib,
    "dask": echo_dask,
    "ray": echo_ray,
    "zmq": echo_zmq,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the same work on other tools.")
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"default: all of {', '.join(NOOP)}")
    parser.add_argument("--noop", type=int, default=5000, help="calls that do nothing (0: none)")
    parser.add_argument("--bytes", type=int, default=4_000_000, help="size of an array")
    parser.add_argument("--count", type=int, default=100, help="arrays to echo (0: none)")
    parser.add_argument("--zmq-worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.zmq_worker:
        _zmq_worker(arguments.zmq_worker)
    unknown = set(arguments.peers) - set(NOOP)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(NOOP)}")
    for peer in arguments.peers or NOOP:
        line = f"{peer:24}"
        try:
            if arguments.noop:
                line += f"{arguments.noop / NOOP[peer](arguments.noop):12,.0f} calls/s"
            if arguments.count and peer in ECHO:
                seconds = ECHO[peer](arguments.bytes, arguments.count)
                line += f"{2e-9 * arguments.bytes * arguments.count / seconds:10.2f} GB/s"
        except PeerMissingError as error:
            line += f"  {error}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
