"""An agent that does not keep to the rules: ``lying_agent.py LIE`` as a prefix of an agent's command.

The lies are the names of the functions below. Everything else is as in a real agent.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

if "COMPUTEMANAGER_SYS_PATH" in os.environ:  # find modules where main does, as the agent will
    sys.path[:] = json.loads(os.environ["COMPUTEMANAGER_SYS_PATH"])

from computemanager import wire
from computemanager.agent import Agent
from computemanager.session import Session
from computemanager.transport import AgentSocket
from computemanager.wire import Kind, Message


def answers_twice() -> None:
    """Hand in every answer a second time, as another message."""
    say = Agent._say

    def say_twice(self: Agent, message: Message) -> None:
        say(self, message)
        if message.kind is Kind.ANSWER:
            say(self, message)

    Agent._say = say_twice  # type: ignore[method-assign]


def answers_again_later() -> None:
    """Hand in every answer a second time, when the lease is somebody's past."""
    say = Agent._say
    old: deque[list[Any]] = deque()

    def say_old_ones_too(self: Agent, message: Message) -> None:
        say(self, message)
        if message.kind is Kind.ANSWER:
            old.append([bytes(frame) for frame in wire.encode(message)])
            if len(old) > 20:
                self._session.send(old.popleft())

    Agent._say = say_old_ones_too  # type: ignore[method-assign]


def repeats_packets() -> None:
    """Send every packet twice, and every now and then one of the last fifty again."""
    chance = random.Random(1)
    send = AgentSocket.send
    past: deque[list[bytes]] = deque(maxlen=50)

    def send_again(self: AgentSocket, frames: Sequence[Any]) -> None:
        send(self, frames)
        send(self, frames)
        past.append([bytes(frame) for frame in frames])
        if chance.random() < 0.2:
            send(self, chance.choice(past))

    AgentSocket.send = send_again  # type: ignore[method-assign]


def loses_packets() -> None:
    """Lose one packet in ten, either way, though the connection stays."""
    chance = random.Random(2)
    send, receive = AgentSocket.send, Session.receive

    def send_some(self: AgentSocket, frames: Sequence[Any]) -> None:
        if chance.random() < 0.9:
            send(self, frames)

    def receive_some(self: Session, frames: Sequence[Any]) -> list[list[Any]]:
        return receive(self, frames) if chance.random() < 0.9 else []

    AgentSocket.send = send_some  # type: ignore[method-assign]
    Session.receive = receive_some  # type: ignore[method-assign]


LIES: dict[str, Callable[[], None]] = {
    lie.__name__: lie for lie in (answers_twice, answers_again_later, repeats_packets, loses_packets)
}

if __name__ == "__main__":
    LIES[sys.argv[1]]()
    code = sys.argv[-1]  # of: python -c CODE
    sys.argv = ["-c"]
    exec(code)
