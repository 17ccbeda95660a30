"""What main makes of agents, where no agent is needed to see it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence

import pytest

from computemanager.agentcrew import NOBODY_AFTER_S, AgentCrew
from computemanager.output import OutputPump
from computemanager.provider import Command, WorkerEnd
from computemanager.transport import Listening, MainSocket


class Nobody:
    """A provider whose workers never come."""

    def start(self, count: int, command: Command) -> Sequence[str]:
        return [f"agent-{number}" for number in range(count)]

    def poll(self) -> Sequence[WorkerEnd]:
        return ()

    def kill(self, workers: Collection[str]) -> None:
        raise AssertionError

    def stop(self, ending: Collection[str] = (), grace_s: float = 0.0) -> None:
        raise AssertionError


@contextlib.contextmanager
def crew_of_nobody() -> Iterator[AgentCrew]:
    with contextlib.closing(MainSocket(Listening("127.0.0.1"))) as socket:
        yield AgentCrew(socket, Nobody(), Command((), {}), OutputPump(), grace_s=10.0)


def test_the_log_says_where_workers_that_never_come_were_told_to_connect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 1000.0
    with crew_of_nobody() as crew, caplog.at_level(logging.WARNING):
        crew._clock = lambda: now
        crew.start(3)
        for step in range(1, 20):
            now = 1000.0 + step * NOBODY_AFTER_S / 10
            assert crew.look(0.0) == []
            assert bool(caplog.records) == (step > 10)
        (record,) = caplog.records
        assert crew._socket.environment["COMPUTEMANAGER_ADDRESS"] in record.getMessage()
        assert "security group" in record.getMessage()
