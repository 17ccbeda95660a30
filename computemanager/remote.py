"""What all kinds whose workers are agents elsewhere have in common; and ``CW_AGENTS``, the plainest of them.

A kind says how to start so many copies of one command (a `Provider`), and that is all.
"""

from __future__ import annotations

import contextlib
import difflib
from abc import abstractmethod
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from computemanager.address import reachable_address
from computemanager.agentcrew import AgentCrew
from computemanager.base import ComputeWorkerManager
from computemanager.errors import SettingsError
from computemanager.farm import Farm
from computemanager.hub import python_command, thread_limits
from computemanager.model import Job, Outcome, Settings
from computemanager.output import OutputPump
from computemanager.processes import LocalProcesses
from computemanager.provider import Command, Provider, WorkerEnd
from computemanager.transport import Listening, MainSocket

__all__ = ["AgentsManager", "AgentsParameters", "RemoteManager"]

ABANDON_GRACE_S = 2.0
"""How long agents get to end when a job has failed, before they are ended."""


@dataclass(frozen=True)
class AgentsParameters:
    """The parameters of ``CW_AGENTS``.

    Parameters
    ----------
    slots : int or 'auto'
        Child processes of each agent that run the user's function. Default 1; ``'auto'``: as many as the
        agent's machine has processors.
    prefixes : sequence of sequences of str
        Commands to put before the agent's own, used in turn, one an agent: ``[["nice"]]``, say, or
        ``[["nsenter", "--net=/run/netns/one"], ...]``. Default: none.
    address : str, optional
        By which agents reach this machine. Default: the loopback where there is no prefix, else see
        `computemanager.address.reachable_address`.
    ports : int or pair of int, optional
        The port to listen on, or the first and last to try. Default: any that is free.
    everywhere : bool
        Listen on all interfaces rather than on `address` alone.
    """

    slots: int | str = 1
    prefixes: Sequence[Sequence[str]] = ()
    address: str | None = None
    ports: int | Sequence[int] | None = None
    everywhere: bool = False

    def __post_init__(self) -> None:
        if self.slots != "auto" and not (isinstance(self.slots, int) and self.slots >= 1):
            raise SettingsError(f"slots is {self.slots!r}; give a whole number of at least 1, or 'auto'")
        if isinstance(self.prefixes, str) or any(isinstance(prefix, str) for prefix in self.prefixes):
            raise SettingsError(
                f"prefixes is {self.prefixes!r}; give a list of commands, each a list of words: "
                "[['nice', '-n', '5']]"
            )
        self.port_range()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> AgentsParameters:
        """From a mapping such as ``computeWorkerExtraParams``.

        Raises
        ------
        SettingsError
            If one is not known, or makes no sense.
        """
        known = list(cls.__dataclass_fields__)
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                raise SettingsError(
                    f"computeWorkerExtraParams of CW_AGENTS has no {name!r}"
                    + (f"; did you mean {near[0]!r}?" if near else ".")
                    + f" Known: {', '.join(known)}"
                )
        return cls(**given)

    def port_range(self) -> tuple[int, int] | None:
        """First and last port to try; None for any."""
        ports = self.ports
        if ports is None:
            return None
        pair = [ports, ports] if isinstance(ports, int) else list(ports)
        if len(pair) != 2 or not all(isinstance(port, int) and 0 < port < 65536 for port in pair):
            raise SettingsError(f"ports is {ports!r}; give one port, or the first and the last to try")
        if pair[0] > pair[1]:
            raise SettingsError(f"ports is {ports!r}; the first is larger than the last")
        return pair[0], pair[1]


class RemoteManager(ComputeWorkerManager):
    """Base of the kinds whose workers are agents; a kind implements `listening`, `slots` and `provider`."""

    takes_extra_params = True

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self._farm: Farm | None = None

    @abstractmethod
    def listening(self) -> Listening:
        """Where main listens."""

    @abstractmethod
    def slots(self) -> int | str:
        """Slots of an agent, or 'auto'."""

    @abstractmethod
    def provider(self, output: OutputPump) -> Provider:
        """What starts and stops agents."""

    def _states(self) -> list[Any]:
        return [] if self._farm is None else self._farm.states()

    def _run(self, job: Job, blocks: Iterator[Any]) -> Generator[Outcome, None, None]:
        settings = self.settings
        output = OutputPump()
        # Undone in reverse, each step also if another was interrupted by a signal.
        with contextlib.ExitStack() as undo:
            socket = MainSocket(self.listening())
            undo.callback(socket.close)
            undo.callback(output.close)
            provider = self.provider(output)
            undo.callback(provider.stop)  # twice: the first time may be the one that is interrupted
            undo.callback(provider.stop)
            crew = AgentCrew(
                socket,
                provider,
                self._command(socket.environment),
                output,
                grace_s=settings.grace_s,
                block_timeout_s=settings.block_timeout_s,
            )
            undo.callback(crew.abandon, ABANDON_GRACE_S)
            self._farm = Farm(crew, settings, self.statistics, self._keep, self._number)
            yield from self._farm.run(job, blocks)

    def _command(self, join_details: Mapping[str, str]) -> Command:
        settings = self.settings
        words = ["--slots", str(self.slots()), "--grace", str(settings.grace_s)]
        if settings.max_runtime_s is not None:
            words += ["--max-runtime", str(settings.max_runtime_s)]
        return python_command(
            f"from computemanager.worker import main; sys.exit(main({words!r}))",
            {
                **thread_limits(settings.threads_per_worker),
                **settings.worker_environment,
                **join_details,
            },
        )


class AgentsManager(RemoteManager):
    """``CW_AGENTS``: agents started by a command on this machine, which may put them somewhere else.

    Settings' `extra_params` are those of `AgentsParameters`.
    """

    kind = "CW_AGENTS"

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self._parameters = AgentsParameters.of(self.settings.extra_params)

    def listening(self) -> Listening:
        """See `RemoteManager.listening`."""
        parameters = self._parameters
        is_here = parameters.address is None and not parameters.prefixes
        return Listening(
            "127.0.0.1" if is_here else reachable_address(parameters.address),
            parameters.port_range(),
            parameters.everywhere,
            self.settings.grace_s,
        )

    def slots(self) -> int | str:
        """See `RemoteManager.slots`."""
        return self._parameters.slots

    def provider(self, output: OutputPump) -> Provider:
        """See `RemoteManager.provider`."""
        return _Prefixed(LocalProcesses(output, "agent"), self._parameters.prefixes)


class _Prefixed:
    """A `Provider` of local processes, each with the next of some prefixes before its command."""

    def __init__(self, processes: LocalProcesses, prefixes: Sequence[Sequence[str]]) -> None:
        self._processes = processes
        self._prefixes = [tuple(prefix) for prefix in prefixes] or [()]
        self._started = 0

    def start(self, count: int, command: Command) -> Sequence[str]:
        names: list[str] = []
        for _ in range(count):
            prefix = self._prefixes[self._started % len(self._prefixes)]
            self._started += 1
            names += self._processes.start(1, Command((*prefix, *command.argv), command.environment))
        return names

    def poll(self) -> Sequence[WorkerEnd]:
        return self._processes.poll()

    def kill(self, workers: Collection[str]) -> None:
        self._processes.kill(workers)

    def stop(self, ending: Collection[str] = (), grace_s: float = 0.0) -> None:
        self._processes.stop(ending, grace_s)
