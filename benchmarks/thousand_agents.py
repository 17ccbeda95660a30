"""A thousand agents connected to one main over loopback TCP, with CURVE.

The agents are simulated: a few light processes speak the real protocol for a few hundred agents each, over
one encrypted connection an agent, and answer every block at once. Main is the real one: crew, session,
scheduler and window. What is measured is thus what main can carry.

    python benchmarks/thousand_agents.py [AGENTS] [BLOCKS]
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Collection, Sequence

import zmq
from harness import heading

from computemanager import Job, Settings, hello, wire
from computemanager.agentcrew import AgentCrew
from computemanager.farm import Farm
from computemanager.hello import Hello
from computemanager.model import RunStatistics
from computemanager.output import OutputPump
from computemanager.provider import Command, WorkerEnd
from computemanager.session import Session
from computemanager.transport import Listening, MainSocket, _secure_client
from computemanager.wire import Kind, Message

AGENTS_A_PROCESS = 250


class LightAgents:
    """A `Provider` of simulated agents."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._started = 0

    def start(self, count: int, command: Command) -> Sequence[str]:
        names = [f"agent-{self._started + number}" for number in range(count)]
        self._started += count
        for first in range(0, count, AGENTS_A_PROCESS):
            own = names[first : first + AGENTS_A_PROCESS]
            environment = {**os.environ, **command.environment}
            self.processes.append(
                subprocess.Popen([sys.executable, __file__, "--serve", *own], env=environment)
            )
        return names

    def poll(self) -> Sequence[WorkerEnd]:
        return ()

    def kill(self, workers: Collection[str]) -> None:
        pass

    def stop(self, ending: Collection[str] = (), grace_s: float = 0.0) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


class LightAgent:
    """The protocol of an agent with one slot, and nothing behind it."""

    def __init__(self, name: str, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        token = int.from_bytes(os.urandom(7), "big") + 1
        self.session = Session(token)
        self.greeting = Hello.of_this_process(name, token, 1).encode()
        self.socket = context.socket(zmq.DEALER)
        self.socket.identity = hello.identity_of(token)
        _secure_client(self.socket, os.environ)
        self.socket.connect(os.environ["COMPUTEMANAGER_ADDRESS"])
        self.socket.send_multipart([hello.HELLO, self.greeting])
        self.stopped = False

    def serve(self) -> None:
        """Take in what has come, and answer."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if hello.is_word(frames[0]):
                continue
            for message in map(wire.decode, self.session.receive(frames)):
                if message.kind is Kind.JOB:
                    self.say(Message(Kind.READY))
                elif message.kind is Kind.STOP:
                    self.say(Message(Kind.GOODBYE, payload=b"stopped"))
                    self.stopped = True
                elif message.kind is Kind.WORK:
                    values = pickle.dumps(pickle.loads(message.payload), 5)
                    answer = Message(Kind.ANSWER, message.lease, message.number, values)
                    self.say(answer._replace(seconds=1e-6, starved=True))
        for packet in self.session.packets():
            self.socket.send_multipart(packet)

    def say(self, message: Message) -> None:
        self.session.send(wire.encode(message))


def serve(names: Sequence[str]) -> None:
    """Serve some agents until all are told to stop."""
    context = zmq.Context()
    context.max_sockets = len(names) + 10
    agents = [LightAgent(name, context) for name in names]
    by_socket = {agent.socket: agent for agent in agents}
    poller = zmq.Poller()
    for agent in agents:
        poller.register(agent.socket, zmq.POLLIN)
    beat_at = time.monotonic()
    while not all(agent.stopped for agent in agents):
        for socket, _ in poller.poll(500):
            by_socket[socket].serve()
        if time.monotonic() - beat_at > 1.0:
            beat_at = time.monotonic()
            for agent in agents:
                agent.socket.send_multipart(agent.session.beat())
    time.sleep(0.2)
    context.destroy(linger=200)


def run(agents: int, blocks: int) -> None:
    """Run the job and print what it took."""
    heading(f"{agents} agents, {blocks:,} blocks that are answered at once")
    settings = Settings(num_workers=agents, window_blocks=100_000)
    statistics = RunStatistics()
    socket, provider, output = MainSocket(Listening("127.0.0.1")), LightAgents(), OutputPump()
    crew = AgentCrew(socket, provider, Command((), socket.environment), output, grace_s=30.0)
    farm = Farm(crew, settings, statistics)
    before_cpu, before_bytes = time.process_time(), _memory_bytes()
    started = time.perf_counter()
    joined_s = work_s = work_cpu = 0.0
    try:
        for number, outcome in enumerate(farm.run(Job(abs), iter(range(blocks))), 1):
            assert outcome.value == outcome.block_index
            if not joined_s and len(crew._peers) == agents:
                joined_s = time.perf_counter() - started
                first, first_cpu, first_at = number, time.process_time(), time.perf_counter()
            if number == blocks and joined_s:
                work_s = time.perf_counter() - first_at
                work_cpu = time.process_time() - first_cpu
    finally:
        provider.stop()
        output.close()
        socket.close()
    assert joined_s, "the job was over before all agents had joined: give it more blocks"
    print(
        f"   all had joined after {joined_s:6.2f} s, "
        f"the first outcome came after {statistics.first_outcome_s:.2f} s\n"
        f"   then {(blocks - first) / work_s:12,.0f} blocks/s, main busy on {work_cpu / work_s:.2f} cores\n"
        f"   main's CPU in all {time.process_time() - before_cpu:.1f} s, "
        f"memory {_memory_bytes() / 1e6:.0f} MB at most ({before_bytes / 1e6:.0f} MB before), "
        f"workers that took part {statistics.workers}"
    )
    print(json.dumps({"agents": agents, "blocks_per_s": (blocks - first) / work_s}))


def _memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(agents: int = 1000, blocks: int = 1_000_000) -> None:
    """Run with ten agents, a hundred, and so on up to the number asked for."""
    number = 10
    while number < agents:
        run(number, blocks)
        number *= 10
    run(agents, blocks)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
    else:
        main(*map(int, sys.argv[1:]))
