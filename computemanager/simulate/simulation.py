"""A simulated job: main's loop around the real scheduler and the real window, on the clock of an agenda."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from computemanager.errors import InternalError
from computemanager.model import Outcome, Skipped
from computemanager.scheduler import (
    Accept,
    Action,
    Dispatch,
    Event,
    GiveUp,
    HostStarted,
    PlanEnded,
    Planned,
    Recall,
    Scheduler,
    SchedulerLimits,
    Skip,
    StartHosts,
    Tick,
    WorkerJoined,
)
from computemanager.simulate.audit import Audit, Violation
from computemanager.simulate.report import Report
from computemanager.simulate.scenario import Scenario
from computemanager.simulate.world import Agenda, World
from computemanager.window import Window

__all__ = ["Simulation"]

_FOREVER_S = 1e9
_CHECK_ALL_BELOW = 400
_CHECK_EVERY = 20
_TICKS_IN_PLACE = 50
_STEPS, _STEPS_PER_BLOCK = 100_000, 500
_PULL_AT_ONCE = 64


class Simulation:
    """One job on a made-up day.

    Parameters
    ----------
    seed : int
        What the day is made of.
    scheduler : type of Scheduler
        The one to be tried.
    trace : callable, optional
        Called with a line of text for every event and action.
    scenario : Scenario, optional
        The day itself, where it is not to be drawn.
    **overrides
        Fields of `Scenario` to replace.

    Examples
    --------
    >>> report = Simulation(1, scenario=Scenario(blocks=8, hosts=4)).run()
    >>> report.accepted, report.makespan_s
    (8, 2.0)
    """

    def __init__(
        self,
        seed: int,
        *,
        scheduler: type[Scheduler] = Scheduler,
        trace: Callable[[str], object] | None = None,
        scenario: Scenario | None = None,
        **overrides: Any,
    ) -> None:
        self.seed = seed
        chance = random.Random(seed)
        self._is_drawn = scenario is None and not overrides
        self.scenario = scenario = dataclasses.replace(scenario or Scenario.draw(chance), **overrides)
        self._trace = trace
        self._agenda = Agenda()
        limits = SchedulerLimits(scenario.hosts, window=scenario.window, **scenario.limits)
        self._scheduler = scheduler(limits, 0.0)
        self._window = Window(scenario.window, ordered=scenario.ordered)
        self._audit = Audit(limits, ordered=scenario.ordered)
        self._world = World(scenario, chance, self._agenda, self._audit, self._hear)
        self._pulled = 0
        self._plan_ended = False
        self._inbox: deque[tuple[Event, Sequence[int]]] = deque()
        self._busy_until = 0.0  # the caller has main's thread
        self._ticks_in_place = 0
        self._events = 0
        self._gave_up: GiveUp | None = None

    def run(self) -> Report:
        """Run the job to its end.

        Raises
        ------
        Violation
            If a promise was broken; the message says how to see it again.
        """
        try:
            self._live()
        except InternalError as error:
            how = "" if self._is_drawn else " with the same scenario"
            raise Violation(
                f"{error.args[0]}\nat {self._agenda.now:.6f} s of seed {self.seed}; to see it again{how}: "
                f"computemanager simulate --seed {self.seed} --trace"
            ) from error
        scheduler = self._scheduler
        return Report(
            seed=self.seed,
            blocks=self.scenario.blocks,
            accepted=len(self._audit.accepted),
            skipped=scheduler.skipped,
            makespan_s=self._agenda.now,
            events=self._events,
            hosts=self._world.num_hosts,
            retries=scheduler.retries,
            workers_lost=scheduler.workers_lost,
            speculated=scheduler.speculated,
            stale_answers=scheduler.stale_answers,
            gave_up=self._gave_up,
        )

    def _live(self) -> None:
        steps = _STEPS + _STEPS_PER_BLOCK * self.scenario.blocks
        self._main()
        while not self._over():
            steps -= 1
            if not self._agenda:
                raise Violation("nothing will happen any more, and the job is not done")
            happen = self._agenda.next()
            if self._agenda.now > _FOREVER_S or not steps:
                raise Violation("the job does not end")
            happen()
        if self._gave_up is None:
            self._audit.check_end(self.scenario.blocks)

    def _over(self) -> bool:
        return self._gave_up is not None or (self._scheduler.finished and not self._window.outstanding)

    # -- main ------------------------------------------------------------------------------------------

    def _main(self) -> None:
        """What the farm's loop does: messages, the plan, the caller, the time."""
        agenda = self._agenda
        while not self._over() and agenda.now >= self._busy_until:
            while self._inbox:
                self._ticks_in_place = 0
                self._tell(*self._inbox.popleft())
            self._pull()
            outcome = None if self._gave_up else self._window.take()
            if outcome is not None:
                self._audit.take(outcome)
                self._busy_until = agenda.now + self.scenario.caller_s
            elif not self._tick():
                return
        if not self._over():
            agenda.at(self._busy_until, self._main)

    def _tick(self) -> bool:
        """Send a tick if one is due; else see to it that one will be, and return False."""
        deadline = None if self._over() else self._scheduler.next_deadline()
        if deadline is None:
            return False
        if deadline > self._agenda.now:
            self._agenda.at(deadline, self._main)
            return False
        self._ticks_in_place += 1
        if self._ticks_in_place > _TICKS_IN_PLACE:
            raise Violation(f"the scheduler asks for a tick at {deadline} again and again")
        self._tell(Tick())
        return True

    def _hear(self, event: Event, blocks: Sequence[int]) -> None:
        """Something reaches main, which may be busy."""
        if self._over():
            return
        self._inbox.append((event, blocks))
        if self._agenda.now >= self._busy_until:
            self._main()

    def _pull(self) -> None:
        while not self._plan_ended and self._gave_up is None:
            number = min(_PULL_AT_ONCE, self._window.room, self.scenario.blocks - self._pulled)
            for _ in range(number):
                self._window.admit()
            self._pulled += number
            if number:
                self._tell(Planned(number))
            elif not self._window.room:
                return
            else:
                self._plan_ended = True
                self._tell(PlanEnded())

    def _tell(self, event: Event, blocks: Sequence[int] = ()) -> None:
        """Tell the scheduler, do what it says, and see whether that was right."""
        todo = deque([(event, blocks)])
        while todo and self._gave_up is None:
            event, blocks = todo.popleft()
            if isinstance(event, WorkerJoined) and (event.host or event.worker) not in self._audit.hosts:
                continue  # main has given up the host in the meantime
            self._note(f"{self._agenda.now:14.6f} {event}")
            self._audit.event(event)
            self._events += 1
            for action in self._scheduler.handle(event, self._agenda.now):
                self._note(f"{'':17}{action}")
                todo.extend((started, ()) for started in self._carry_out(action, blocks))
        if self._gave_up is None and (self._events < _CHECK_ALL_BELOW or self._events % _CHECK_EVERY == 0):
            self._scheduler.check()
            self._audit.check(self._scheduler.waiting, self._agenda.now, plan_ended=self._plan_ended)

    def _carry_out(self, action: Action, blocks: Sequence[int]) -> list[Event]:
        if isinstance(action, Dispatch):
            self._audit.dispatch(action)
            self._world.dispatch(action)
        elif isinstance(action, Accept):
            self._audit.accept(action, blocks)
            for block in action.blocks:
                self._window.put(Outcome(block, block, action.worker))
        elif isinstance(action, Recall):
            self._audit.recall(action)
            self._world.recall(action)
        elif isinstance(action, StartHosts):
            return [HostStarted(self._world.start_host()) for _ in range(action.number)]
        elif isinstance(action, Skip):
            self._audit.skip(action)
            skipped = Skipped(action.block, None, action.cause.value, attempts=action.attempts)
            self._window.put(Outcome(action.block, None, action.worker, skipped))
        else:
            self._gave_up = action
            self._audit.give_up(action, now=self._agenda.now)
        return []

    def _note(self, line: str) -> None:
        if self._trace is not None:
            self._trace(line)
