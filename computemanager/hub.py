"""The slots of this machine and everything that ties them to the process that holds them.

Main holds slots of its own for ``CW_SUBPROC``; an agent holds those of its machine. Either way there is a
socket file, memory that both ends see, what the slots print, and a small file for each in which it notes
which block it is on: so the holder can tell what a dead one was doing, and end one that takes too long.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from computemanager import wire
from computemanager.errors import WorkersLostError
from computemanager.output import OutputPump
from computemanager.processes import LocalProcesses
from computemanager.provider import Command
from computemanager.rundir import RunDirectory, remove_strays
from computemanager.sharedmem import MIN_BUFFER_BYTES, SlabReader, SlabWriter
from computemanager.slot import DIRECTORY_VARIABLE, SHARED_MEMORY_VARIABLE, Place, read_place
from computemanager.transport import MainSocket
from computemanager.wire import NO_SLAB, BadMessage, BufferPlace, Kind, Message

__all__ = ["THREAD_VARIABLES", "SlotEnd", "SlotHub", "python_command", "thread_limits"]

PATH_VARIABLE = "COMPUTEMANAGER_SYS_PATH"

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "GDAL_NUM_THREADS",
)

# Let glibc keep the memory that arrays come and go in (it gives back large pieces at once by default, and a
# fresh page costs a fault): a tenth of the time of light functions, measured. Others ignore these.
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2), "MALLOC_TRIM_THRESHOLD_": str(256 * 1024**2)}

LOOK_AT_PROCESSES_S = 0.02
"""How often processes are asked who has died, and slots how long they have been on their block."""


class SlotEnd(NamedTuple):
    """A slot that ended without having been told to.

    Attributes
    ----------
    slot : str
        Its name.
    place : tuple of int or None
        Lease and position of the block it was on; None where it was between blocks.
    evidence : str
        How it ended, in words.
    timed_out : bool
        It was ended by us, because its block took longer than the limit.
    """

    slot: str
    place: tuple[int, int] | None
    evidence: str
    timed_out: bool


class SlotHub:
    """Holds slot processes of this machine.

    Parameters
    ----------
    environment : mapping of str to str
        Environment variables for the slots, over those of this process.
    threads_per_worker : int
        Thread limits of numeric libraries in the slots, where nothing else sets them.
    shared_memory : bool
        Pass large buffers through shared memory.
    block_timeout_s : float, optional
        End a slot whose block takes longer.

    Attributes
    ----------
    output : OutputPump
        What the slots print.
    block_timeout_s : float or None
        May be changed.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        threads_per_worker: int = 1,
        shared_memory: bool = True,
        block_timeout_s: float | None = None,
    ) -> None:
        remove_strays()
        self.output = OutputPump()
        self._processes = LocalProcesses(self.output, "slot")
        self.block_timeout_s = block_timeout_s
        self._shared_memory = shared_memory
        self._pickled_job: Any = None
        self._readers: dict[str, SlabReader] = {}
        self._lent: dict[str, set[int]] = {}  # slabs of ours that a slot may be looking at
        self._places: dict[str, Place] = {}
        self._overdue: dict[str, tuple[int, int]] = {}
        self._looked_at = 0.0
        self._allocated: dict[int, tuple[int, Any]] = {}  # by the buffer's id, which lives as long as this
        self._undo = contextlib.ExitStack()
        # Undone in reverse, each step also if another was interrupted by a signal.
        with contextlib.ExitStack() as undo:
            self._directory = RunDirectory()
            undo.callback(self._directory.close)
            self.path: Path = self._directory.path
            self.socket = MainSocket(self.path)
            undo.callback(self.socket.close)
            undo.callback(self.output.close)
            undo.callback(self._processes.stop)  # twice: the first time may be the one that is interrupted
            undo.callback(self._processes.stop)
            self.writer = SlabWriter(self.path, "main-out") if shared_memory else None
            self._command = python_command(
                "from computemanager.slot import main; main()",
                {
                    **thread_limits(threads_per_worker),
                    **environment,
                    **self.socket.environment,
                    DIRECTORY_VARIABLE: str(self.path),
                    SHARED_MEMORY_VARIABLE: "1" if shared_memory else "0",
                },
            )
            self._undo = undo.pop_all()

    def start(self, number: int) -> Sequence[str]:
        """Start so many slots; their names, which are never used again."""
        return self._processes.start(number, self._command)

    def set_job(self, pickled_job: Any) -> None:
        """Give the job to all slots: to those that are there now, and to others as they come."""
        self._pickled_job = pickled_job
        for slot in self._lent:
            self.send(slot, Message(Kind.JOB, payload=pickled_job))

    def receive(self, timeout_s: float) -> list[tuple[str, Message]]:
        """What slots say, waiting up to `timeout_s` seconds for the first message.

        What is about the hub's own affairs (hello, shared memory) is dealt with and not given out.
        """
        messages = []
        for sender, frames in self.socket.receive(timeout_s):
            slot = sender.decode(errors="replace")
            try:
                message = wire.decode(frames)
            except BadMessage:
                continue  # nothing of ours
            if message.kind is Kind.HELLO:
                self._readers[slot] = SlabReader(self.path, f"{slot}-out")
                self._lent[slot] = set()
                if self._pickled_job is not None:
                    self.send(slot, Message(Kind.JOB, payload=self._pickled_job))
            elif slot not in self._lent:
                pass  # it is known to be dead: its blocks are elsewhere by now
            elif message.kind is Kind.RETURNED:
                for slab in pickle.loads(message.payload):
                    self._reclaim(slot, slab)
            else:
                messages.append((slot, message))
        return messages

    def send(self, slot: str, message: Message) -> None:
        """Send to a slot; buffers in slabs count as lent to it. To one that is gone, nothing is sent."""
        if message.places:
            self._lent[slot].update(slab for slab, _ in message.places if slab != NO_SLAB)
        # A slot that is gone cannot be sent to; `ended` will report its death.
        self.socket.send(slot.encode(), wire.encode(message))

    def reader(self, slot: str) -> SlabReader | None:
        """What makes arrays of a slot's slabs, where there are any."""
        return self._readers.get(slot) if self._shared_memory else None

    def views(self, slot: str, message: Message) -> list[Any]:
        """The buffers of a message, those in slabs included, in the order of its places."""
        inline = iter(message.buffers)
        reader = self._readers[slot]
        return [next(inline) if slab == NO_SLAB else reader.view(slab, n) for slab, n in message.places]

    def allocate(self, nbytes: int) -> Any:
        """Memory for a buffer that will go to a slot: a slab where there is one."""
        taken = None
        if self.writer is not None and nbytes >= MIN_BUFFER_BYTES:
            taken = self.writer.take(nbytes)
        if taken is None:
            return np.empty(nbytes, np.uint8).data
        slab, memory = taken
        buffer = memory.data
        self._allocated[id(buffer)] = slab, buffer
        return buffer

    def release(self, buffers: Iterable[Any]) -> None:
        """These buffers go to no slot; where they came from `allocate`, their memory is free again."""
        for buffer in buffers:
            slab, _ = self._allocated.pop(id(buffer), (NO_SLAB, None))
            if slab != NO_SLAB and self.writer is not None:
                self.writer.free(slab)

    def place_buffers(self, buffers: Iterable[Any]) -> tuple[list[BufferPlace], list[Any]]:
        """Put buffers into slabs; the places of all, and those that found no slab."""
        places: list[BufferPlace] = []
        inline: list[Any] = []
        for buffer in buffers:
            view = memoryview(buffer)
            allocated, _ = self._allocated.pop(id(buffer), (NO_SLAB, None))
            if allocated != NO_SLAB:
                places.append(BufferPlace(allocated, view.nbytes))
                continue
            is_large = view.nbytes >= MIN_BUFFER_BYTES
            slab = self.writer.put(view) if self.writer is not None and is_large else None
            places.append(BufferPlace(slab or NO_SLAB, view.nbytes))
            if slab is None:
                inline.append(buffer)
        return places, inline

    def drop(self, slot: str, message: Message) -> None:
        """Give back the slabs of a message that nobody will read."""
        slabs = [slab for slab, _ in message.places if slab != NO_SLAB]
        if slabs:
            self._send_returned(slot, slabs)

    def tidy(self) -> None:
        """Tell slots which of their slabs nobody looks at any more."""
        for slot, reader in self._readers.items():
            if slabs := reader.returned():
                self._send_returned(slot, slabs)

    def ended(self) -> list[SlotEnd]:
        """The slots that have ended since the last call; ends those that are over their time.

        Looks at the processes only every `LOOK_AT_PROCESSES_S`.
        """
        now = time.monotonic()
        if now - self._looked_at < LOOK_AT_PROCESSES_S:
            return []
        self._looked_at = now
        if self.block_timeout_s is not None:
            self._end_overdue(now, self.block_timeout_s)
        return [self._bury(end.worker, end.evidence) for end in self._processes.poll()]

    def kill(self, slots: Collection[str]) -> None:
        """End slots at once; `ended` will tell."""
        self._processes.kill(slots)

    def stop(self, slots: Collection[str], grace_s: float) -> None:
        """Tell these slots to end and give them up to `grace_s` seconds for it; end all others at once."""
        for slot in slots:
            self.send(slot, Message(Kind.STOP))
        self._processes.stop(slots, grace_s)

    def remove_directory(self) -> None:
        """Remove the run's directory, once the slots have ended; what they handed in can still be read."""
        self.writer = None
        self._directory.close()

    def close(self) -> None:
        """End what is running, and leave nothing but arrays that the caller holds. May be called again."""
        self._undo.close()
        for held in (self._readers, self._places, self._lent, self._allocated):
            held.clear()
        self.writer = None

    def _bury(self, slot: str, evidence: str) -> SlotEnd:
        noted = read_place(self.path / f"{slot}.place")
        overdue = self._overdue.pop(slot, None)
        timed_out = overdue is not None and (noted is None or noted == overdue)
        if overdue is not None:
            if timed_out:
                noted = overdue
                evidence = f"it was ended because the block took longer than {self.block_timeout_s} s"
            else:
                # It had just gone on to another block, which is not to blame.
                noted, evidence = None, "it was ended because the block before took too long"
        for slab in list(self._lent.pop(slot, ())):
            if self.writer is not None:
                self.writer.free(slab)
        self._readers.pop(slot, None)
        self._places.pop(slot, None)
        return SlotEnd(slot, noted, evidence, timed_out)

    def _end_overdue(self, now: float, limit_s: float) -> None:
        for slot in self._lent:
            if slot in self._overdue:
                continue
            place = self._places.get(slot)
            if place is None:
                place = self._places[slot] = Place(self.path / f"{slot}.place", is_reader=True)
            if place.overdue(now, limit_s) and (noted := place.read()) is not None:
                self._overdue[slot] = noted
                self._processes.kill([slot])

    def _reclaim(self, slot: str, slab: int) -> None:
        if slab in self._lent[slot] and self.writer is not None:
            self._lent[slot].discard(slab)
            self.writer.free(slab)

    def _send_returned(self, slot: str, slabs: list[int]) -> None:
        message = Message(Kind.RETURNED, number=len(slabs), payload=pickle.dumps(slabs))
        self.socket.send(slot.encode(), wire.encode(message))


def python_command(code: str, environment: Mapping[str, str]) -> Command:
    """A command that runs a line of code in a fresh Python which finds modules where this one does.

    Not through PYTHONPATH, which would put installed packages before Python's own modules and be inherited
    by whatever the user's function starts.
    """
    if not sys.executable:
        raise WorkersLostError(
            "worker processes cannot be started: this Python does not know its own program "
            "(sys.executable is empty, as in an embedded interpreter). Use CW_THREADS"
        )
    boot = f"import json, os, sys; sys.path[:] = json.loads(os.environ.pop({PATH_VARIABLE!r})); {code}"
    return Command((sys.executable, "-c", boot), {**environment, PATH_VARIABLE: json.dumps(sys.path)})


def thread_limits(threads_per_worker: int) -> dict[str, str]:
    """Environment variables for a worker, where the user has not set them already."""
    defaults = {**dict.fromkeys(THREAD_VARIABLES, str(threads_per_worker)), **_MEMORY}
    return {name: value for name, value in defaults.items() if name not in os.environ}
