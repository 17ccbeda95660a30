"""A slot: the process that runs the user's function, one block at a time.

::

    HELLO ──> main          main ──> JOB          READY ──> main
    main ──> WORK (a lease) ... ANSWER (its next blocks) ──> main ... until STOP

"Main" is whoever holds the slot: the caller's process, or the agent on another machine.

Several blocks come in one lease where they are short, and values are handed in together, but never kept
longer than `ANSWER_AFTER_S` while the slot goes on. Between blocks the slot notes in a small file which one
it is on, so that main can tell which block a dead slot was running.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import mmap
import os
import pickle
import platform
import shutil
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from computemanager import payload, wire
from computemanager.calling import Failure, call
from computemanager.errors import PayloadError
from computemanager.model import Job
from computemanager.sharedmem import SlabReader, SlabWriter
from computemanager.transport import WorkerSocket
from computemanager.wire import Kind, Message

__all__ = ["Place", "Slot", "main", "read_place"]

DIRECTORY_VARIABLE = "COMPUTEMANAGER_DIRECTORY"
"""Environment variable: the run's private directory."""

SHARED_MEMORY_VARIABLE = "COMPUTEMANAGER_SHARED_MEMORY"
"""Environment variable: "1" where main and worker pass large buffers through shared memory."""

ANSWER_AFTER_S = 0.005
"""Values of finished blocks are not held back longer than this while the slot works on the next."""

_TRIES_TO_REMOVE = 100
_PAUSE_TO_REMOVE_S = 0.01

_PLACE = struct.Struct("<QId")
_BETWEEN_BLOCKS = 0xFFFFFFFF


class Place:
    """The file in which a slot notes which block it is on, and since when."""

    def __init__(self, path: Path, *, is_reader: bool = False) -> None:
        self._seen: tuple[int, int, float] | None = None
        if is_reader:
            with open(path, "r+b") as file:
                self._map = mmap.mmap(file.fileno(), _PLACE.size)
            return
        with open(path, "w+b") as file:
            file.write(_PLACE.pack(0, _BETWEEN_BLOCKS, 0.0))
            file.flush()
            self._map = mmap.mmap(file.fileno(), _PLACE.size)

    def note(self, lease: int, position: int = _BETWEEN_BLOCKS) -> None:
        """The slot starts with the block at this position of a lease; or with none."""
        # The clock is the machine's, so the reader's is the same.
        _PLACE.pack_into(self._map, 0, lease, position, time.monotonic())

    def read(self) -> tuple[int, int] | None:
        """Lease and position; None between blocks."""
        lease, position, _ = _PLACE.unpack_from(self._map)
        return None if position == _BETWEEN_BLOCKS else (lease, position)

    def overdue(self, now: float, limit_s: float) -> bool:
        """Whether the slot has been on one block for longer than the limit.

        True only at the second look that finds so: the slot may be in the middle of a note at one of them.
        """
        noted: tuple[int, int, float] = _PLACE.unpack_from(self._map)
        is_late = noted[1] != _BETWEEN_BLOCKS and now - noted[2] > limit_s
        was_late = self._seen == noted
        self._seen = noted if is_late else None
        return is_late and was_late


def read_place(path: Path) -> tuple[int, int] | None:
    """Lease and position that a slot, which may be dead, noted last; None if it was between blocks."""
    try:
        lease, position, _ = _PLACE.unpack(path.read_bytes())
    except (OSError, struct.error):
        return None
    return None if position == _BETWEEN_BLOCKS else (lease, position)


class Slot:
    """One worker process's state and loop.

    Parameters
    ----------
    environment : mapping
        Environment variables: name, address, directory.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.name = environment["COMPUTEMANAGER_WORKER"]
        directory = Path(environment[DIRECTORY_VARIABLE])
        self._socket = WorkerSocket(environment, self.name)
        self._place = Place(directory / f"{self.name}.place")
        shared = environment.get(SHARED_MEMORY_VARIABLE) == "1"
        self._writer = SlabWriter(directory, f"{self.name}-out") if shared else None
        self._reader = SlabReader(directory, "main-out") if shared else None
        self._job: Job | None = None
        self._state_sent: bytes | None = None
        self._pending: deque[Message] = deque()  # leases not begun
        self._stopping = False

    def run(self) -> None:
        """Serve until main says stop."""
        hello = {"protocol": wire.PROTOCOL, "pid": os.getpid(), "python": platform.python_version()}
        self._socket.send(wire.encode(Message(Kind.HELLO, payload=json.dumps(hello).encode())))
        while True:
            starved = not self._listen()
            if starved:
                starved = self._listen(wait=True) and bool(self._pending)
            if self._stopping:
                break
            if self._pending:
                self._work(self._pending.popleft(), starved)
        self._socket.close()

    def _listen(self, *, wait: bool = False) -> bool:
        """Take in what main has said; whether there is something to do."""
        while (frames := self._socket.receive(wait=wait)) is not None:
            wait = False
            message = wire.decode(frames)
            if message.kind is Kind.WORK:
                self._pending.append(message)
            elif message.kind is Kind.RETURNED:
                self._take_back(message)
            elif message.kind is Kind.RECALL:
                self._give_back(message.lease)
            elif message.kind is Kind.JOB:
                self._take_job(message)
            elif message.kind is Kind.STOP:
                self._stopping = True
        return bool(self._pending) or self._stopping

    def _give_back(self, lease: int) -> None:
        for message in self._pending:
            if message.lease == lease:
                self._pending.remove(message)
                self._send(Message(Kind.GAVE_BACK, lease))
                return

    def _take_job(self, message: Message) -> None:
        try:
            self._job, self._state_sent = payload.loads_job(message.payload)
        except BaseException:
            self._socket.send(wire.encode(Message(Kind.REFUSED, payload=traceback.format_exc().encode())))
            return
        self._socket.send(wire.encode(Message(Kind.READY)))

    def _take_back(self, message: Message) -> None:
        if self._writer is not None:
            for slab in pickle.loads(message.payload):
                self._writer.free(slab)

    def _work(self, message: Message, starved: bool) -> None:
        """Run a lease's blocks, in order, and hand in their values."""
        job = self._job
        assert job is not None
        clock = time.perf_counter
        started = clock()
        blocks = payload.unpack(message.payload, message.places, message.buffers, self._reader)
        lease, total = message.lease, message.number
        del message
        values: list[Any] = []
        done = 0  # blocks handed in
        overhead_s = clock() - started
        started = clock()
        for position in range(total):
            self._place.note(lease, position)
            block, blocks[position] = blocks[position], None  # its memory is free when the function is done
            try:
                values.append(call(job, block, job.state))
            except BaseException as error:
                self._place.note(lease)
                failure = Failure.of(error)
                if job.state is None:
                    self._answer(lease, done, values, clock() - started, overhead_s, starved)
                else:
                    # The state may hold half of what the block was to count: back to what main knows, and
                    # what has been done since then is done again.
                    self._roll_back()
                self._fail(lease, position, failure)
                return
            del block
            now = clock()
            if now - started > ANSWER_AFTER_S or position == total - 1:
                self._place.note(lease)
                if not self._answer(lease, done, values, now - started, overhead_s, starved):
                    self._hand_in_what_can_be(lease, done, values)
                    return
                done += len(values)
                values = []
                overhead_s, starved = 0.0, False
                started = clock()

    def _answer(
        self, lease: int, done: int, values: list[Any], seconds: float, overhead_s: float, starved: bool
    ) -> bool:
        """Hand in values, `done` before them; False if they cannot be pickled: the end of the lease."""
        _flush_output()
        self._return_slabs()
        if not values:
            return True
        started = time.perf_counter()
        state = self._changed_state()
        content: Any = values if state is None else (values, pickle.PickleBuffer(state))
        try:
            packed = payload.pack(content, self._writer)
        except PayloadError:
            return False
        if state is not None:
            self._state_sent = state
        overhead_s += time.perf_counter() - started if state is not None else 0.0
        self._send(
            Message(
                Kind.ANSWER,
                lease,
                len(values),
                packed.payload,
                packed.places,
                packed.buffers,
                seconds,
                overhead_s,
                starved,
                state is not None,
                position=done,
            )
        )
        return True

    def _hand_in_what_can_be(self, lease: int, done: int, values: list[Any]) -> None:
        """One of the values cannot be pickled: hand in those before it, and fail on that one."""
        assert self._job is not None
        for position, value in enumerate(values, done):
            try:
                payload.pack(value, None)
            except PayloadError as error:
                refusal = PayloadError(f"what the function returned cannot be sent back: {error}")
                if self._job.state is not None:
                    self._roll_back()
                self._fail(lease, position, Failure.of(refusal))
                return
            if self._job.state is None:  # a state goes with all values since the last answer, or with none
                self._answer(lease, position, [value], 0.0, 0.0, False)

    def _fail(self, lease: int, position: int, failure: Failure) -> None:
        _flush_output()
        self._send(Message(Kind.FAILED, lease, position, payload=failure.dumps()))

    def _roll_back(self) -> None:
        """Take the state back to what main knows."""
        assert self._job is not None and self._state_sent is not None
        self._job = replace(self._job, state=pickle.loads(self._state_sent))

    def _changed_state(self) -> bytes | None:
        """The worker's copy of the state, pickled, if it is not as main knows it."""
        assert self._job is not None
        if self._job.state is None:
            return None
        pickled = payload.dumps_any(self._job.state)
        return None if pickled == self._state_sent else pickled

    def _return_slabs(self) -> None:
        """Tell main which of its slabs nobody here looks at any more (what is kept, stays)."""
        if self._reader is not None and (slabs := self._reader.returned()):
            self._send(Message(Kind.RETURNED, number=len(slabs), payload=pickle.dumps(slabs)))

    def _send(self, message: Message) -> None:
        self._socket.send(wire.encode(message))


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def _end_with_main(directory: str) -> threading.Event:
    """End this process when main is gone: main holds the other end of our standard input.

    The pipe is moved away first, so that the user's function reads an empty standard input and no such thing.
    The event is set when the end has begun.
    """
    ending = threading.Event()
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        while os.read(lifeline, 1024):
            pass
        ending.set()
        # Nobody else is left to remove it, if main was killed. Again and again, as the other thread, or other
        # slots, may be about to make a file in it.
        for _ in range(_TRIES_TO_REMOVE):
            shutil.rmtree(directory, ignore_errors=True)
            if not os.path.exists(directory):
                break
            time.sleep(_PAUSE_TO_REMOVE_S)
        os._exit(1)

    threading.Thread(target=watch, name="computemanager-lifeline", daemon=True).start()
    return ending


def main() -> None:
    """Run a slot: the entry point of worker processes."""
    faulthandler.enable()  # a crash in compiled code leaves its traceback on stderr, which main keeps
    ending = _end_with_main(os.environ[DIRECTORY_VARIABLE])
    try:
        Slot(os.environ).run()
    except BaseException:
        if ending.is_set():
            threading.Event().wait()  # files vanish: who removes them ends this process when all are gone
        raise
    _flush_output()
