"""Main's side of workers that are processes: the one loop around the scheduler.

::

    plan ──pull──> Window ──blocks──> Scheduler ──Dispatch──> MainSocket ──> workers
                     │                    ^                       │
    caller <──take───┘<────Accept─────────┴──────ANSWER───────────┘

Everything happens in the caller's thread, between two outcomes that it takes; there is no lock. What the
scheduler decides is carried out here, what happens (messages, deaths, time) is told to it.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from computemanager import payload, wire
from computemanager.calling import Failure, block_error
from computemanager.errors import (
    BlockError,
    PayloadError,
    PoisonBlockError,
    WaitTimeoutError,
    WorkersLostError,
)
from computemanager.model import Job, Outcome, RunStatistics, Settings
from computemanager.output import OutputPump
from computemanager.provider import Command, Provider
from computemanager.scheduler import (
    Accept,
    Action,
    Answered,
    Cause,
    Dispatch,
    Event,
    Failed,
    GiveUp,
    PlanEnded,
    Planned,
    Scheduler,
    SchedulerLimits,
    StartFailed,
    StartWorkers,
    Tick,
    WorkerJoined,
    WorkerLost,
    WorkerStarted,
)
from computemanager.sharedmem import SlabReader, SlabWriter
from computemanager.slot import read_place
from computemanager.transport import MainSocket
from computemanager.window import Window
from computemanager.wire import BadMessage, Kind, Message

__all__ = ["Farm"]

POLL_S = 0.02
"""How often the provider is asked who has died."""

LOOK_AGAIN_S = 0.001
"""While the caller takes one outcome after another, the socket is looked at this often."""

STOP_GRACE_S = 5.0
"""How long workers may take to end after a job that went well: user code may run at exit."""

_PULL_AT_ONCE = 64


class _Peer:
    """What main knows of a worker that has said hello."""

    def __init__(self, name: str, directory: Path | None) -> None:
        self.name = name
        self.place = None if directory is None else directory / f"{name}.place"
        self.slabs = SlabReader(directory, f"{name}-out") if directory is not None else None
        self.lent: set[int] = set()  # slabs of ours that it may be looking at
        self.state: Any = None
        self.joined = False


class Farm:
    """Runs one job on the workers of a provider.

    Parameters
    ----------
    provider : Provider
        Starts and stops the workers.
    command : Command
        What it runs.
    socket : MainSocket
        Where they connect.
    output : OutputPump
        What they print.
    settings : Settings
        The caller's.
    directory : path
        The run's private directory, shared with the workers.
    statistics : RunStatistics
        Counted up here.
    """

    def __init__(
        self,
        provider: Provider,
        command: Command,
        socket: MainSocket,
        output: OutputPump,
        settings: Settings,
        directory: Path,
        statistics: RunStatistics,
    ) -> None:
        self._provider = provider
        self._command = command
        self._socket = socket
        self._output = output
        self._settings = settings
        self._directory = directory
        self._statistics = statistics
        self._clock = time.monotonic
        self._window = Window(settings.window, ordered=settings.ordered)
        self._scheduler = Scheduler(
            SchedulerLimits(
                num_workers=settings.num_workers,
                window=settings.window,
                max_kills_per_block=settings.max_kills_per_block,
                start_timeout_s=settings.start_timeout_s,
                outcome_timeout_s=settings.outcome_timeout_s,
            ),
            self._clock(),
        )
        self._writer = SlabWriter(directory, "main-out") if settings.shared_memory else None
        self._peers: dict[str, _Peer] = {}
        self._gone_states: list[Any] = []
        self._busy: set[str] = set()  # workers that finished a block
        self._blocks: dict[int, Any] = {}  # pulled and not accepted, to be sent again if need be
        self._plan_ended = False
        self._failure: Failure | None = None
        self._values: Sequence[Any] = ()

    def run(self, job: Job, blocks: Iterator[Any]) -> Generator[Outcome, None, None]:
        """See `ComputeWorkerManager.run`. Leaves the clean-up to its caller, also after an exception."""
        self._job = job
        self._started_at = self._clock()
        self._polled_at = self._looked_at = 0.0
        # Workers start while the job is being pickled and the first blocks are read.
        self._pull(blocks, just_one=True)
        if self._plan_ended:
            return
        self._pickled_job = payload.dumps_job(job)
        while not (self._scheduler.finished and not self._window.outstanding):
            more = self._pull(blocks)
            self._look(0.0 if more else self._patience())
            while (outcome := self._window.take()) is not None:
                yield outcome
                if self._clock() - self._looked_at > LOOK_AGAIN_S:
                    self._pull(blocks)
                    self._look(0.0)
        self._say_goodbye()

    def states(self) -> list[Any]:
        """The workers' copies of the state, lost ones included, each as of its last accepted block."""
        pickled = [*self._gone_states, *(peer.state for peer in self._peers.values())]
        return [pickle.loads(state) for state in pickled if state is not None]

    # -- what comes in ---------------------------------------------------------------------------------

    def _pull(self, blocks: Iterator[Any], *, just_one: bool = False) -> bool:
        """Pull some blocks; True if there is room and a plan for more."""
        if self._plan_ended:
            return False
        room = 1 if just_one else min(_PULL_AT_ONCE, self._window.room)
        started = self._clock()
        count = 0
        while count < room:
            try:
                block = next(blocks)
            except StopIteration:
                self._plan_ended = True
                break
            self._blocks[self._window.admit()] = block
            count += 1
            if self._clock() - started > LOOK_AGAIN_S:
                break
        if count:
            self._tell(Planned(count))
        if self._plan_ended:
            self._tell(PlanEnded())
        return not self._plan_ended and self._window.room > 0

    def _patience(self) -> float:
        """How long nothing but a message needs attention."""
        deadline = self._scheduler.next_deadline()
        return POLL_S if deadline is None else max(0.0, min(POLL_S, deadline - self._clock()))

    def _look(self, timeout_s: float) -> None:
        """See what has happened, waiting up to `timeout_s` for the first message."""
        for worker, frames in self._socket.receive(timeout_s):
            try:
                message = wire.decode(frames)
            except BadMessage:
                continue  # nothing of ours
            self._take_message(worker, message)
        self._looked_at = now = self._clock()
        if now - self._polled_at >= POLL_S:
            self._polled_at = now
            for worker, evidence in self._provider.poll():
                self._take_death(worker, evidence)
            deadline = self._scheduler.next_deadline()
            if deadline is not None and now >= deadline:
                self._tell(Tick())
        self._output.flush()
        self._return_slabs()

    def _take_message(self, worker: str, message: Message) -> None:
        kind = message.kind
        peer = self._peers.get(worker)
        if kind is Kind.HELLO:
            self._take_hello(worker, message)
        elif peer is None:
            pass  # of a worker that is known to be dead: its blocks are elsewhere by now
        elif kind is Kind.ANSWER:
            self._take_answer(peer, message)
        elif kind is Kind.RETURNED:
            for slab in pickle.loads(message.payload):
                self._reclaim(peer, slab)
        elif kind is Kind.READY:
            peer.joined = True
            self._tell(WorkerJoined(worker))
        elif kind is Kind.FAILED:
            self._failure = Failure(*pickle.loads(message.payload))
            self._tell(Failed(worker, message.lease))
        elif kind is Kind.REFUSED:
            text = bytes(message.payload).decode(errors="replace")
            raise PayloadError(
                f"{self._job.name} cannot be unpickled in worker {worker}: a module it needs may be missing "
                f"there, or fail when it is imported. The worker's traceback:\n{text}"
            )

    def _take_hello(self, worker: str, message: Message) -> None:
        hello = json.loads(bytes(message.payload))
        if hello.get("protocol") != wire.PROTOCOL:
            raise WorkersLostError(
                f"worker {worker} speaks protocol {hello.get('protocol')}, this process {wire.PROTOCOL}: "
                f"install the same version of computemanager on both sides"
            )
        self._peers[worker] = _Peer(worker, self._directory if self._writer is not None else None)
        self._socket.send(worker, wire.encode(Message(Kind.JOB, payload=self._pickled_job)))

    def _take_answer(self, peer: _Peer, message: Message) -> None:
        event = Answered(
            peer.name, message.lease, message.number, message.seconds, message.overhead_s, message.starved
        )
        actions = self._scheduler.handle(event, self._clock())
        if not (actions and isinstance(actions[0], Accept)):
            # Too late: the lease is no longer this worker's. Its buffers go back unread.
            self._send_returned(peer, [slab for slab, _ in message.places if slab != wire.NO_SLAB])
            self._carry_out(actions)
            return
        values = payload.unpack(message.payload, message.places, message.buffers, peer.slabs)
        if message.has_state:
            values, state = values
            peer.state = bytes(state)
            del state
        self._values = values
        if not self._statistics.blocks:
            self._statistics.first_outcome_s = self._clock() - self._started_at
        self._carry_out(actions)
        self._values = ()

    def _take_death(self, worker: str, evidence: str) -> None:
        # What it had handed in before it died is still good.
        peer = self._peers.pop(worker, None)
        if peer is None:
            self._tell(StartFailed(worker, evidence))
            return
        for slab in list(peer.lent):
            self._reclaim(peer, slab)
        if peer.state is not None:
            self._gone_states.append(peer.state)
        noted = read_place(self._directory / f"{worker}.place")
        running = None if noted is None else self._scheduler.block_at(*noted)
        self._tell(WorkerLost(worker, running, evidence))

    # -- what goes out ---------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        self._carry_out(self._scheduler.handle(event, self._clock()))

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Accept):
                self._accept(action)
            elif isinstance(action, Dispatch):
                self._dispatch(action)
            elif isinstance(action, StartWorkers):
                for worker in self._provider.start(action.number, self._command):
                    self._tell(WorkerStarted(worker))
            else:
                self._give_up(action)
        statistics = self._statistics
        statistics.retries = self._scheduler.retries
        statistics.workers_lost = self._scheduler.workers_lost

    def _accept(self, action: Accept) -> None:
        worker, put, pop = action.worker, self._window.put, self._blocks.pop
        for index, value in zip(action.blocks, self._values, strict=True):
            pop(index)
            put(Outcome(index, value, worker))
        self._busy.add(worker)
        self._statistics.blocks += len(action.blocks)
        self._statistics.workers = len(self._busy)

    def _dispatch(self, action: Dispatch) -> None:
        peer = self._peers[action.worker]
        blocks = [self._blocks[index] for index in action.blocks]
        packed = payload.pack(blocks, self._writer)
        peer.lent.update(slab for slab, _ in packed.places if slab != wire.NO_SLAB)
        message = Message(Kind.WORK, action.lease, len(blocks), packed.payload, packed.places, packed.buffers)
        # A worker that is gone cannot be sent to; the provider will report its death.
        self._socket.send(action.worker, wire.encode(message))

    def _reclaim(self, peer: _Peer, slab: int) -> None:
        if slab in peer.lent and self._writer is not None:
            peer.lent.discard(slab)
            self._writer.free(slab)

    def _return_slabs(self) -> None:
        for peer in self._peers.values():
            if peer.slabs is not None:
                self._send_returned(peer, peer.slabs.returned())

    def _send_returned(self, peer: _Peer, slabs: list[int]) -> None:
        if slabs:
            message = Message(Kind.RETURNED, number=len(slabs), payload=pickle.dumps(slabs))
            self._socket.send(peer.name, wire.encode(message))

    def _say_goodbye(self) -> None:
        """The job is done: let workers end by themselves; those that are still starting need not go on."""
        joined = [name for name, peer in self._peers.items() if peer.joined]
        for worker in joined:
            self._socket.send(worker, wire.encode(Message(Kind.STOP)))
        self._provider.stop(joined, STOP_GRACE_S)

    def _give_up(self, action: GiveUp) -> None:
        """Raise what ends the job."""
        name, cause = self._job.name, action.cause
        if cause is Cause.USER_EXCEPTION:
            assert self._failure is not None and action.block is not None
            block = self._blocks[action.block]
            raise self._user_error(action.block, block, action.worker) from self._failure.original
        if cause is Cause.POISON_BLOCK:
            assert action.block is not None
            raise PoisonBlockError(
                f"{name}: block {action.block} ended its worker process {action.attempts} times. The last "
                f"time {action.evidence}\n"
                f"Run that block alone in this process to see why, or give workers more memory "
                f"(fewer workers, smaller blocks) if memory ran out.",
                block_index=action.block,
                attempts=action.attempts,
                evidence=action.evidence,
            )
        if cause is Cause.NO_WORKERS:
            raise WorkersLostError(
                f"{name}: {action.attempts} worker processes ended one after another without finishing a "
                f"block. The last one, {action.worker}: {action.evidence}"
            )
        if cause is Cause.START_TIMEOUT:
            raise WaitTimeoutError(
                f"{name}: no worker was ready within {self._settings.start_timeout_s} s "
                f"(computeBarrierTimeout). They had been started, but had not connected"
            )
        raise WaitTimeoutError(
            f"{name}: no block was finished within {self._settings.outcome_timeout_s} s "
            f"(computeBufferPopTimeout); the first one being computed is block {action.block}. "
            f"Set a longer limit, or none, if blocks may take that long"
        )

    def _user_error(self, index: int, block: Any, worker: str) -> BlockError:
        assert self._failure is not None
        return block_error(self._job, index, block, worker, self._failure)
