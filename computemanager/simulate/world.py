"""Hosts and slots on paper, the network between them and main, and all that can go wrong with them."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence

from computemanager.scheduler import (
    Answered,
    Dispatch,
    Event,
    GaveBack,
    HostBack,
    HostDraining,
    HostEnded,
    HostSilent,
    Raised,
    Recall,
    WorkerJoined,
    WorkerLost,
    policy,
)
from computemanager.simulate.audit import Audit
from computemanager.simulate.scenario import Scenario

__all__ = ["Agenda", "World"]


class Agenda:
    """What is to happen when: the simulated clock.

    Examples
    --------
    >>> agenda = Agenda()
    >>> agenda.at(2.5, lambda: None)
    >>> agenda.next()()
    >>> agenda.now
    2.5
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._entries: list[tuple[float, int, Callable[[], None]]] = []
        self._last_entry = 0

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, when: float, happen: Callable[[], None]) -> None:
        """Note something; what is noted first for a time happens first."""
        self._last_entry += 1
        heapq.heappush(self._entries, (when, self._last_entry, happen))

    def next(self) -> Callable[[], None]:
        """Go on to the next entry's time, and return what is to happen."""
        self.now, _, happen = heapq.heappop(self._entries)
        return happen


class PaperHost:
    """A host on paper: what it is, and what main has been told of it."""

    def __init__(self, name: str, slowness: float, ends_at: float | None) -> None:
        self.name = name
        self.slowness = slowness
        self.ends_at = ends_at
        self.slots: dict[str, PaperSlot] = {}
        self.next_slot = 0
        self.dead = False  # it is gone in truth
        self.draining = False
        self.cut_until: float | None = None
        self.held: list[Callable[[], None]] = []  # messages that wait for the end of a cut


class PaperSlot:
    """A slot on paper: what it was sent, and what it is on."""

    def __init__(self, name: str, host: PaperHost) -> None:
        self.name = name
        self.host = host
        self.dead = False
        self.queue: deque[tuple[int, Sequence[int]]] = deque()
        self.done = 0  # of the first lease in the queue
        self.turn = 0  # what is planned for an older turn is void
        self.ends: list[float] = []  # when each block it is on will be finished
        self.then: Callable[[], None] | None = None
        self.starved = False
        self.began = 0.0


class World:
    """Everything but main.

    Parameters
    ----------
    scenario : Scenario
        What happens.
    chance : random.Random
        When it happens.
    agenda : Agenda
        The clock.
    audit : Audit
        What main knows, to behave as its side of the connections would.
    hear : callable
        Called with each event that reaches main, and the blocks that it hands in.
    """

    def __init__(
        self,
        scenario: Scenario,
        chance: random.Random,
        agenda: Agenda,
        audit: Audit,
        hear: Callable[[Event, Sequence[int]], None],
    ) -> None:
        self._scenario = scenario
        self._chance = chance
        self._agenda = agenda
        self._audit = audit
        self._hear = hear
        self._slots: dict[str, PaperSlot] = {}
        self.num_hosts = 0
        self._block_s = [
            scenario.block_s
            * (chance.lognormvariate(0.0, scenario.spread) if scenario.spread else 1.0)
            * scenario.slow_blocks.get(block, 1.0)
            for block in range(scenario.blocks)
        ]
        self._attempts: dict[tuple[str, int], int] = {}

    def dispatch(self, action: Dispatch) -> None:
        """Carry blocks to a worker."""
        slot = self._slots[action.worker]
        self._send(slot.host, lambda: self._receive(slot, action))

    def recall(self, action: Recall) -> None:
        """Carry the wish to have a lease back to a worker."""
        slot = self._slots[action.worker]
        self._send(slot.host, lambda: self._give_back(slot, action.lease))

    def _mean(self, mean_s: float) -> float:
        return self._agenda.now + self._chance.expovariate(1.0 / mean_s)

    # -- the network -----------------------------------------------------------------------------------

    def _send(self, host: PaperHost, arrive: Callable[[], None]) -> None:
        """Carry something to a host or from it, in order; while it is cut off, it waits."""

        def arrival() -> None:
            if host.cut_until is not None:
                host.held.append(arrive)
            else:
                arrive()

        self._agenda.at(self._agenda.now + self._scenario.delay_s, arrival)

    def _report(self, host: PaperHost, event: Event, blocks: Sequence[int] = ()) -> None:
        """A host tells main something. What it had sent before it ended still arrives, late maybe."""
        self._send(host, lambda: self._hear(event, blocks))

    def _cut(self, host: PaperHost) -> None:
        if host.dead or host.cut_until is not None:
            return
        host.cut_until = until = self._mean(self._scenario.cut_s)
        self._agenda.at(
            self._agenda.now + self._scenario.silent_s,
            lambda: self._notice(host, until, HostSilent(host.name)),
        )
        ended = HostEnded(host.name, "not heard of")
        self._agenda.at(self._agenda.now + self._scenario.grace_s, lambda: self._notice(host, until, ended))
        self._agenda.at(until, lambda: self._heal(host))

    def _notice(self, host: PaperHost, until: float, event: Event) -> None:
        if host.cut_until == until and host.name in self._audit.hosts:
            self._hear(event, ())

    def _heal(self, host: PaperHost) -> None:
        host.cut_until = None
        if host.name not in self._audit.hosts:
            self._end_in_truth(host)  # main has given it up, and it learns of that now
        elif host.name in self._audit.silent:
            self._hear(HostBack(host.name), ())
        held, host.held = host.held, []
        for arrive in held:
            arrive()
        if self._scenario.until_cut_s is not None:
            self._agenda.at(self._mean(self._scenario.until_cut_s), lambda: self._cut(host))

    # -- hosts -----------------------------------------------------------------------------------------

    def start_host(self) -> str:
        """Launch one more host; return its name."""
        scenario, chance = self._scenario, self._chance
        number = self.num_hosts
        self.num_hosts += 1
        ends_at = None
        if scenario.host_ends_s is not None:
            ends_at = self._agenda.now + scenario.host_ends_s * chance.uniform(0.5, 1.5)
        slowness = scenario.slowness[min(number, len(scenario.slowness) - 1)]
        host = PaperHost(f"h{number}", slowness, ends_at)
        starts_at = self._agenda.now + scenario.start_s * chance.uniform(0.5, 1.5)
        if chance.random() < scenario.start_failure:
            ended = HostEnded(host.name, "would not start", hopeless=chance.random() < scenario.hopeless)
            host.dead = True
            self._agenda.at(starts_at, lambda: self._hear(ended, ()))
            return host.name
        for _ in range(scenario.slots):
            self._agenda.at(starts_at, lambda: self._start_slot(host))
        if ends_at is not None:
            self._agenda.at(max(starts_at, ends_at), lambda: self._end_host(host))
        happenings: tuple[tuple[float | None, Callable[[PaperHost], None]], ...] = (
            (scenario.host_life_s, self._end_host),
            (scenario.until_cut_s, self._cut),
            (scenario.until_drain_s, self._drain),
        )
        for mean_s, happen in happenings:
            if mean_s is not None:
                when = starts_at - self._agenda.now + self._mean(mean_s)
                self._agenda.at(when, lambda happen=happen: happen(host))  # type: ignore[misc]
        return host.name

    def _end_host(self, host: PaperHost) -> None:
        if not host.dead:
            self._end_in_truth(host)
            hopeless = self._chance.random() < self._scenario.hopeless
            # The provider knows, however the network is.
            self._agenda.at(self._agenda.now, lambda: self._hear(HostEnded(host.name, "ended", hopeless), ()))

    def _end_in_truth(self, host: PaperHost) -> None:
        host.dead = True
        for slot in host.slots.values():
            slot.dead = True
            slot.turn += 1

    def _drain(self, host: PaperHost) -> None:
        if host.dead or host.draining:
            return
        host.draining = True
        self._report(host, HostDraining(host.name))
        for slot in list(host.slots.values()):
            for lease, _ in list(slot.queue)[1:]:
                self._give_back(slot, lease)
        self._agenda.at(self._agenda.now + self._chance.uniform(0.1, 60.0), lambda: self._end_host(host))

    # -- slots -----------------------------------------------------------------------------------------

    def _start_slot(self, host: PaperHost) -> None:
        if host.dead or host.draining:
            return
        name = host.name if self._scenario.local else f"{host.name}.{host.next_slot}"
        host.next_slot += 1
        slot = host.slots[name] = self._slots[name] = PaperSlot(name, host)
        of_host = "" if self._scenario.local else host.name
        self._report(host, WorkerJoined(name, of_host, host.ends_at))
        if self._scenario.slot_life_s is not None:
            self._agenda.at(self._mean(self._scenario.slot_life_s), lambda: self._kill(slot, "killed"))
        if self._scenario.until_freeze_s is not None:
            self._agenda.at(self._mean(self._scenario.until_freeze_s), lambda: self._freeze(slot))

    def _receive(self, slot: PaperSlot, action: Dispatch) -> None:
        if not slot.dead:
            slot.queue.append((action.lease, action.blocks))
            if len(slot.queue) == 1:
                self._begin(slot, starved=True)

    def _begin(self, slot: PaperSlot, *, starved: bool) -> None:
        """Go on with the first lease, up to the next answer or mishap."""
        slot.turn += 1
        slot.ends, slot.then, slot.starved, slot.began = [], None, starved, self._agenda.now
        if not slot.queue:
            return
        lease, blocks = slot.queue[0]
        end = self._agenda.now + (0.0 if slot.done else self._scenario.overhead_s)
        for position in range(slot.done, len(blocks)):
            mishap = self._mishap(slot, lease, blocks, position)
            end += self._block_s[blocks[position]] * slot.host.slowness
            if mishap is not None:
                slot.then, more_s = mishap
                end += more_s
            slot.ends.append(end)
            if mishap is not None or end - self._agenda.now > policy.ANSWER_AFTER_S:
                break
        turn = slot.turn
        self._agenda.at(end, lambda: self._reach(slot, turn))

    def _mishap(
        self, slot: PaperSlot, lease: int, blocks: Sequence[int], position: int
    ) -> tuple[Callable[[], None], float] | None:
        """What goes wrong with a block, and how much longer it takes until then."""
        scenario, block = self._scenario, blocks[position]
        if self._fails("raise", scenario.raising, block):
            return lambda: self._raise(slot, lease, position), 0.0
        if self._fails("kill", scenario.killing, block):
            return lambda: self._kill(slot, "killed by its block"), 0.0
        limit_s = scenario.block_timeout_s
        if limit_s is not None:
            usual_s = self._block_s[block] * slot.host.slowness
            if self._fails("hang", scenario.hanging, block) or usual_s > limit_s:
                return lambda: self._kill(slot, "too long", timed_out=True), limit_s - usual_s
        return None

    def _fails(self, kind: str, blocks: dict[int, int], block: int) -> bool:
        if block not in blocks:
            return False
        attempt = self._attempts[kind, block] = self._attempts.get((kind, block), 0) + 1
        return attempt <= blocks[block]

    def _reach(self, slot: PaperSlot, turn: int) -> None:
        if slot.turn != turn:
            return
        if slot.then is not None:
            slot.then()
            return
        number = len(slot.ends)
        self._answer(slot, number, self._agenda.now - slot.began)
        self._begin(slot, starved=False)

    def _answer(self, slot: PaperSlot, number: int, seconds: float) -> None:
        lease, blocks = slot.queue[0]
        handed_in = blocks[slot.done : slot.done + number]
        slot.done += number
        overhead_s = self._scenario.overhead_s if slot.done == number else 0.0
        event = Answered(slot.name, lease, number, seconds - overhead_s, overhead_s, slot.starved)
        self._report(slot.host, event, handed_in)
        if slot.done == len(blocks):
            slot.queue.popleft()
            slot.done = 0
            if self._chance.random() < self._scenario.duplicate:
                self._report(slot.host, event, handed_in)

    def _raise(self, slot: PaperSlot, lease: int, position: int) -> None:
        before = len(slot.ends) - 1
        if before and self._chance.random() >= self._scenario.no_handing_in:
            self._answer(slot, before, self._agenda.now - slot.began)
        slot.queue.popleft()
        slot.done = 0
        self._report(slot.host, Raised(slot.name, lease, position))
        self._begin(slot, starved=False)

    def _kill(self, slot: PaperSlot, evidence: str, *, timed_out: bool = False) -> None:
        if slot.dead or slot.host.dead:
            return
        host, running = slot.host, None
        if slot.ends and slot.queue:
            on = sum(end < self._agenda.now for end in slot.ends)
            running = slot.queue[0][1][min(slot.done + on, len(slot.queue[0][1]) - 1)]
            if not timed_out and self._chance.random() < self._scenario.no_blame:
                running = None
        slot.dead = True
        slot.turn += 1
        del host.slots[slot.name]
        lost = WorkerLost(slot.name, running, evidence, timed_out)
        self._report(host, lost)
        if self._scenario.local:
            host.dead = True
            self._report(host, HostEnded(host.name, evidence))
        else:
            self._agenda.at(self._agenda.now + self._chance.uniform(0.0, 1.0), lambda: self._start_slot(host))

    def _freeze(self, slot: PaperSlot) -> None:
        if slot.dead or self._scenario.until_freeze_s is None:
            return
        still_s = 0.0
        if slot.queue and slot.ends:
            still_s = self._chance.expovariate(1.0 / self._scenario.freeze_s)
            slot.turn += 1
            turn = slot.turn
            slot.ends = [end if end < self._agenda.now else end + still_s for end in slot.ends]
            self._agenda.at(slot.ends[-1], lambda: self._reach(slot, turn))
        again = still_s + self._mean(self._scenario.until_freeze_s)
        self._agenda.at(again, lambda: self._freeze(slot))

    def _give_back(self, slot: PaperSlot, lease: int) -> None:
        """Hand back a lease that was not begun with."""
        for place, (number, _) in enumerate(slot.queue):
            if number == lease and place > 0 and not slot.dead:
                del slot.queue[place]
                self._report(slot.host, GaveBack(slot.name, lease))
                return
