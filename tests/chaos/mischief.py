"""Faults at random moments while a job runs, and a table of what was done and survived.

The same seed gives the same faults in the same order on the same hosts. Which process of a host is hit, and
where the job is at that moment, is up to the machine.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pytest

from tests.chaos.network import Direction, Host, Network, frozen

psutil = pytest.importorskip("psutil", reason="finding processes needs psutil (extra 'test')")

__all__ = ["ALL", "NETWORK", "PROCESSES", "Fault", "FaultTable", "Mischief", "Planned", "schedule"]


class Planned(NamedTuple):
    """A fault that is to come.

    Attributes
    ----------
    pause_s : float
        How long after the one before it.
    kind : str
        One of `ALL`.
    host : int
        Number of the host, from 0.
    lasts_s : float
        For how long, unless it is over at once, such as a kill.
    pick : int
        For what is to be chosen when it comes: which process, which direction, how slow.
    """

    pause_s: float
    kind: str
    host: int
    lasts_s: float
    pick: int


class Fault(NamedTuple):
    """A fault that was. `at_s` counts from the start of the mischief; `detail` says what was hit, and how."""

    at_s: float
    kind: str
    host: str
    lasts_s: float
    detail: str


# -- kinds of faults ---------------------------------------------------------------------------------------
# Each begins a fault on a host, leaves in the stack what mends it, and says what it did; "" if there was
# nothing to do it to.

Begin = Callable[[Host, contextlib.ExitStack, int], str]


def unplug(host: Host, mend: contextlib.ExitStack, pick: int) -> str:
    mend.enter_context(host.unplugged())
    return "link down"


def drop(host: Host, mend: contextlib.ExitStack, pick: int) -> str:
    directions: list[Direction] = ["both", "in", "out"]
    direction = directions[pick % 3]
    mend.enter_context(host.dropping(direction))
    return f"firewall drops {direction}"


def refuse(host: Host, mend: contextlib.ExitStack, pick: int) -> str:
    mend.enter_context(host.refusing())
    return "firewall resets"


def reset(host: Host, mend: contextlib.ExitStack, pick: int) -> str:
    connections = host.reset_connections()
    return f"{connections} connections" if connections else ""


def limit(host: Host, mend: contextlib.ExitStack, pick: int) -> str:
    bytes_per_s = [50_000, 500_000, 5_000_000][pick % 3]
    mend.enter_context(host.limited(bytes_per_s))
    return f"{bytes_per_s:,} bytes/s"


def slow(host: Host, mend: contextlib.ExitStack, pick: int) -> str:
    delay_s, loss = [(0.1, 0.05), (0.3, 0.0), (0.01, 0.2)][pick % 3]
    mend.enter_context(host.slowed(delay_s, loss, seed=pick))
    return f"delay {1000 * delay_s:.0f} ms, loss {loss:.0%}"


def signalled(find: Callable[[Host], list[Any]], signal_name: str) -> Begin:
    """Return a fault that sends a signal to one of the processes that `find` gives."""

    def begin(host: Host, mend: contextlib.ExitStack, pick: int) -> str:
        if not (there := find(host)):
            return ""
        process = there[pick % len(there)]
        getattr(process, signal_name)()
        return f"pid {process.pid}"

    return begin


def froze(find: Callable[[Host], list[Any]], *, all_of_them: bool = False) -> Begin:
    """Return a fault that freezes one of the processes that `find` gives, or all of them, for a while."""

    def begin(host: Host, mend: contextlib.ExitStack, pick: int) -> str:
        if not (there := find(host)):
            return ""
        chosen = there if all_of_them else [there[pick % len(there)]]
        mend.enter_context(frozen(*chosen))
        return ", ".join(f"pid {process.pid}" for process in chosen)

    return begin


NETWORK: Mapping[str, Begin] = {
    "link down": unplug,
    "firewall drop": drop,
    "firewall reset": refuse,
    "connection reset": reset,
    "rate limit": limit,
    "delay and loss": slow,
}
"""Faults of the network."""

PROCESSES: Mapping[str, Begin] = {
    "kill agent": signalled(Host.agents, "kill"),
    "kill slot": signalled(Host.slots, "kill"),
    "terminate agent": signalled(Host.agents, "terminate"),
    "freeze agent": froze(Host.agents),
    "freeze slot": froze(Host.slots),
    "freeze host": froze(Host.processes, all_of_them=True),
}
"""Faults of processes: SIGKILL, SIGTERM, and SIGSTOP followed by SIGCONT."""

ALL: Mapping[str, Begin] = {**NETWORK, **PROCESSES}
"""All kinds of faults, and what begins each."""

AT_ONCE = frozenset({"connection reset", "kill agent", "kill slot", "terminate agent"})
"""Those with nothing to mend: they are over when they have begun."""


def schedule(
    seed: int,
    kinds: Sequence[str],
    num_hosts: int,
    *,
    pause_s: tuple[float, float],
    lasts_s: tuple[float, float],
) -> Iterator[Planned]:
    """Yield faults without end, the same for the same arguments; see `Mischief` for these."""
    chance = random.Random(seed)
    while True:
        yield Planned(
            chance.uniform(*pause_s),
            chance.choice(kinds),
            chance.randrange(num_hosts),
            chance.uniform(*lasts_s),
            chance.randrange(2**30),
        )


# -- the trouble-maker -------------------------------------------------------------------------------------


@dataclass
class _UnderWay:
    """A fault that is not mended yet."""

    until: float
    kind: str
    host: Host
    mend: contextlib.ExitStack


class Mischief:
    """Within, a thread does one random thing after the other to the hosts of a network; then all is mended.

    Faults overlap, on one host too, but a host has each kind only once at a time.

    Parameters
    ----------
    network : Network
        Its hosts are hit, its main is not.
    seed : int
        Decides what comes when, and where.
    kinds : sequence of str
        Which of `ALL`; default all of them.
    pause_s : tuple of float
        Shortest and longest time from one fault to the next, in seconds.
    lasts_s : tuple of float
        Shortest and longest time that a fault lasts. Choose it on both sides of the grace time.
    spared : int
        So many hosts at least have no lasting fault at any moment. Default 1: the job gets on.

    Attributes
    ----------
    faults : list of Fault
        What was done so far, in order.
    """

    def __init__(
        self,
        network: Network,
        seed: int,
        *,
        kinds: Iterable[str] = tuple(ALL),
        pause_s: tuple[float, float] = (0.1, 1.0),
        lasts_s: tuple[float, float] = (0.1, 5.0),
        spared: int = 1,
    ) -> None:
        self.faults: list[Fault] = []
        self._hosts = network.hosts
        self._spared = spared
        self._plan = schedule(seed, list(kinds), len(self._hosts), pause_s=pause_s, lasts_s=lasts_s)
        self._began = time.monotonic()
        self._under_way: list[_UnderWay] = []
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"mischief {seed}")

    def __enter__(self) -> Mischief:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        # An error of the job says more than one of ours.
        if self._failure is not None and error is None:
            raise self._failure

    @property
    def is_running(self) -> bool:
        """Whether the thread is at work; it ends early if a fault could not be begun."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            for planned in self._plan:
                if not self._wait(planned.pause_s):
                    break
                self._begin(planned)
        except BaseException as failure:
            self._failure = failure
        finally:
            self._mend(float("inf"))

    def _wait(self, seconds: float) -> bool:
        """Let time pass and mend what is due; return False at once if it is time to stop."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            self._mend(now)
            next_end = min([end, *(fault.until for fault in self._under_way)])
            if self._stop.wait(max(0.0, next_end - now)):
                return False
        return not self._stop.is_set()

    def _begin(self, planned: Planned) -> None:
        host = self._hosts[planned.host]
        lasts_s = 0.0 if planned.kind in AT_ONCE else planned.lasts_s
        if lasts_s:
            hosts_hit = {host.name, *(fault.host.name for fault in self._under_way)}
            if len(self._hosts) - len(hosts_hit) < self._spared:
                return
            if any(fault.host is host and fault.kind == planned.kind for fault in self._under_way):
                return
        mend = contextlib.ExitStack()
        try:
            detail = ALL[planned.kind](host, mend, planned.pick)
        except psutil.NoSuchProcess:  # it ended before the blow fell
            return
        if not detail:
            return
        now = time.monotonic()
        self.faults.append(Fault(now - self._began, planned.kind, host.name, lasts_s, detail))
        if lasts_s:
            self._under_way.append(_UnderWay(now + lasts_s, planned.kind, host, mend))

    def _mend(self, now: float) -> None:
        """Mend the faults that are over by `now`; all of them even if one cannot be."""
        over = [fault for fault in self._under_way if fault.until <= now]
        self._under_way = [fault for fault in self._under_way if fault.until > now]
        with contextlib.ExitStack() as all_of_them:
            for fault in over:
                all_of_them.callback(fault.mend.close)


class FaultTable:
    """How often each kind of fault was injected, and how often the job came out right all the same.

    Examples
    --------
    >>> table = FaultTable()
    >>> table.add(["kill slot", "kill slot", "link down"], survived=True)
    >>> table.add(["link down"], survived=False)
    >>> print(table)
    fault      injected  survived
    kill slot         2         2
    link down         2         1
    """

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}

    def add(self, kinds: Iterable[str], *, survived: bool) -> None:
        """Count the faults of a job, and whether the job survived them."""
        for kind in kinds:
            counts = self._counts.setdefault(kind, [0, 0])
            counts[0] += 1
            counts[1] += survived

    def write(self, path: Path) -> None:
        """Write the table as JSON: by kind, how often injected and how often survived."""
        rows = {
            kind: {"injected": injected, "survived": survived}
            for kind, (injected, survived) in sorted(self._counts.items())
        }
        path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        width = max(map(len, ["fault", *self._counts]))
        rows = [("fault", "injected", "survived")]
        rows += [(kind, str(counts[0]), str(counts[1])) for kind, counts in sorted(self._counts.items())]
        return "\n".join(f"{kind:{width}}{injected:>10}{survived:>10}" for kind, injected, survived in rows)
