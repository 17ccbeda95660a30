"""The crew of `CW_SUBPROC`: slots of this machine, which main holds itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from computemanager import payload
from computemanager.crew import Answer, Ended, Failure, GaveBackLease, Happening, Joined, Lost, Refused
from computemanager.hub import LOOK_AT_PROCESSES_S, SlotHub
from computemanager.wire import Kind, Message

__all__ = ["SlotCrew"]


class SlotCrew:
    """A `computemanager.crew.Crew` of local slots; each is a host of its own.

    Parameters
    ----------
    hub : SlotHub
        Holds them.
    """

    def __init__(self, hub: SlotHub) -> None:
        self._hub = hub
        self._joined: set[str] = set()
        self.dropped_messages = 0

    def start(self, number: int) -> Sequence[str]:
        """See `Crew.start`."""
        return self._hub.start(number)

    def set_job(self, pickled_job: bytes) -> None:
        """See `Crew.set_job`."""
        self._hub.set_job(pickled_job)

    def look(self, timeout_s: float) -> Sequence[Happening]:
        """See `Crew.look`."""
        messages = self._hub.receive(min(timeout_s, LOOK_AT_PROCESSES_S))
        happenings = [happening for slot, message in messages for happening in self._told(slot, message)]
        # What a slot had handed in before it died is still good: messages first.
        for end in self._hub.ended():
            if end.slot in self._joined:
                self._joined.discard(end.slot)
                happenings.append(Lost(end.slot, end.place, end.evidence, end.timed_out))
            happenings.append(Ended(end.slot, end.evidence))
        self._hub.output.flush()
        self._hub.tidy()
        return happenings

    def _told(self, slot: str, message: Message) -> list[Happening]:
        kind = message.kind
        if kind is Kind.ANSWER:
            return [Answer(slot, message)]
        if kind is Kind.READY:
            self._joined.add(slot)
            return [Joined(slot, slot)]
        if kind is Kind.FAILED:
            return [Failure(slot, message.lease, message.number, message.payload)]
        if kind is Kind.GAVE_BACK:
            return [GaveBackLease(slot, message.lease)]
        if kind is Kind.REFUSED:
            return [Refused(slot, bytes(message.payload).decode(errors="replace"))]
        self.dropped_messages += 1
        return []

    def dispatch(self, worker: str, lease: int, blocks: Sequence[Any]) -> None:
        """See `Crew.dispatch`."""
        packed = payload.pack(blocks, self._hub.writer)
        message = Message(Kind.WORK, lease, len(blocks), packed.payload, packed.places, packed.buffers)
        self._hub.send(worker, message)

    def recall(self, worker: str, lease: int) -> None:
        """See `Crew.recall`."""
        self._hub.send(worker, Message(Kind.RECALL, lease))

    def values(self, answer: Answer) -> Any:
        """See `Crew.values`."""
        message = answer.message
        reader = self._hub.reader(answer.worker)
        return payload.unpack(message.payload, message.places, message.buffers, reader)

    def drop(self, answer: Answer) -> None:
        """See `Crew.drop`."""
        self._hub.drop(answer.worker, answer.message)

    def say_goodbye(self, grace_s: float) -> None:
        """See `Crew.say_goodbye`."""
        self._hub.stop(self._joined, grace_s)
