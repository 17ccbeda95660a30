"""Agents and their slots are killed, frozen, slowed and misled; the job ends right, or says what is wrong."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from computemanager.base import ComputeWorkerManager, manager_class
from computemanager.errors import (
    BlockError,
    BlockTimeoutError,
    PoisonBlockError,
    WaitTimeoutError,
    WorkersLostError,
)
from computemanager.model import Job, Outcome, Settings
from computemanager.output import OutputPump
from computemanager.payload import LargePayloadWarning
from computemanager.processes import LocalProcesses
from computemanager.provider import Command, Provider, WorkerEnd
from computemanager.remote import AgentsManager

psutil = pytest.importorskip("psutil", reason="finding and watching processes needs psutil (extra 'test')")

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="kills processes by signals, which only POSIX systems have"
)

GRACE_S = 3.0
MARK = "CHAOS_TEST"
"""In the environment of every process of a test, those included that have lost their parents."""

PATIENCE_S = 20.0
"""What takes a second or less on a machine that is not busy may take so long."""


# -- the processes of a job ------------------------------------------------------------------------------


def marked(mark: str) -> list[Any]:
    """Living processes, this one left out, that have a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark and is_alive(process):
                found.append(process)
    return found


def is_alive(process: Any) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def command_of(process: Any) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def agents_of(pid: int) -> list[Any]:
    """The agents of a main process, oldest first."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children()
        return [child for child in children if "computemanager.worker" in command_of(child)]
    return []


def agents() -> list[Any]:
    return agents_of(os.getpid())


def slots_of(agent: Any) -> list[Any]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in agent.children() if "computemanager.slot" in command_of(child)]
    return []


def wait_until(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Poll until a condition holds; its value."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not come about within {patience_s} s"
        time.sleep(0.01)
    return value


@pytest.fixture(autouse=True)
def no_orphans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Fail a test after which a slot or agent goes on, also one whose parent has died; give the mark."""
    mark = str(tmp_path)
    monkeypatch.setenv(MARK, mark)
    yield mark
    try:
        wait_until(lambda: not marked(mark), 10.0)
    finally:
        for process in marked(mark):
            process.kill()


def manager(workers: int = 2, slots: int = 1, **changes: Any) -> ComputeWorkerManager:
    parameters = {"slots": slots, **changes.pop("extra_params", {})}
    settings = {"num_workers": workers, "grace_s": GRACE_S, "extra_params": parameters, **changes}
    return manager_class("CW_AGENTS")(Settings(**settings))


def values(outcomes: Iterable[Outcome]) -> list[Any]:
    """Their values; the outcomes must be complete and in order."""
    found = []
    for number, outcome in enumerate(outcomes):
        assert outcome.block_index == number
        found.append(outcome.value)
    return found


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if what is in here takes longer than promised, a busy machine taken into account."""
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took < seconds + PATIENCE_S, f"{took:.1f} s"


@contextlib.contextmanager
def meanwhile(action: Callable[[threading.Event], None]) -> Iterator[None]:
    """Within, a thread does something; it is told when it is time to stop."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action(stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures, failures


def slow_square(seconds: float) -> Callable[[int], int]:
    def square(block: int) -> int:
        time.sleep(seconds)
        return block * block

    return square


SQUARES = [block * block for block in range(1000)]


# -- slots that die --------------------------------------------------------------------------------------

WAYS_TO_DIE: dict[str, Callable[[], Any]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda: os._exit(3),
    "crash": lambda: __import__("ctypes").string_at(0),
    "memory": lambda: (bytearray(b"x") * 300_000_000, os.kill(os.getpid(), signal.SIGKILL)),
}


def new_total() -> Any:
    """Return a state whose class travels by value, as one of a user's script does."""

    class State:
        blocks = 0
        total = 0

    return State()


def counts_exactly(run: ComputeWorkerManager, blocks: int) -> None:
    states = run.states()
    assert sum(state.blocks for state in states) == blocks
    assert sum(state.total for state in states) == sum(range(blocks))


@pytest.mark.parametrize("way", WAYS_TO_DIE)
def test_a_slot_that_ends_once(way: str, tmp_path: Path) -> None:
    die = WAYS_TO_DIE[way]

    def dies_once_on_some(block: int, state: Any) -> int:
        time.sleep(0.002)
        state.blocks += 1  # before: this must not be counted
        state.total += block
        if block in (0, 50, 99):
            with contextlib.suppress(FileExistsError):
                (tmp_path / str(block)).touch(exist_ok=False)
                die()
        return block * block

    run = manager(2, 2)
    with within(5.0):
        assert values(run.run(Job(dies_once_on_some, new_total()), range(100))) == SQUARES[:100]
    assert len(list(tmp_path.iterdir())) == 3
    assert run.statistics.retries >= 3 and run.statistics.workers_lost == 3
    counts_exactly(run, 100)


@pytest.mark.parametrize(
    ("way", "evidence"),
    [
        ("SIGKILL", "SIGKILL"),
        ("exit", "exited with code 3"),
        ("crash", "SIGSEGV"),
        ("memory", "often the system, because memory ran out"),
    ],
)
def test_a_block_that_always_ends_its_slot(way: str, evidence: str) -> None:
    die = WAYS_TO_DIE[way]

    def poisonous(block: int) -> int:
        if block == 7:
            sys.stderr.write("the last words\n")
            sys.stderr.flush()
            die()
        return block

    with within(5.0), pytest.raises(PoisonBlockError) as caught:
        list(manager(1, 2).run(Job(poisonous, name="poisonous"), range(20)))
    error, text = caught.value, str(caught.value)
    assert (error.block_index, error.attempts) == (7, 3)
    assert "poisonous: block 7 ended its worker process 3 times" in text
    assert evidence in text and "the last words" in text
    peak_mb = float(error.evidence.partition("peak memory ")[2].replace("at most ", "").split()[0])
    assert peak_mb > (300 if way == "memory" else 10)


def test_memory_that_is_refused_is_the_functions_own_error() -> None:
    """Where the system says no rather than kill: an exception like any other, and the slot lives on."""

    def greedy(block: int) -> int:
        import resource

        if block == 3:
            limits = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (4 * 1024**3, limits[1]))
            try:
                bytearray(8 * 1024**3)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)
        return block

    run = manager(1)
    with pytest.raises(BlockError) as caught:
        list(run.run(Job(greedy), range(5)))
    assert caught.value.block_index == 3 and isinstance(caught.value.original, MemoryError)
    assert run.statistics.workers_lost == 0


def test_a_job_that_ends_slots_when_it_is_unpickled() -> None:
    """No slot ever gets to work: the job ends soon, and the agent passes on how they ended."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (os._exit, (5,))

    bomb = Bomb()
    with within(10.0), pytest.raises(WorkersLostError) as caught:
        list(manager(1).run(Job(lambda block: bomb), range(3)))
    text = str(caught.value)
    assert "without finishing a block" in text
    assert "its slots end before they can work: it exited with code 5" in text


# -- agents that die -------------------------------------------------------------------------------------


def test_a_busy_agent_is_killed() -> None:
    """Its blocks are done elsewhere, another agent takes its place, and its slots go with it."""
    run = manager(2, 2)
    outcomes = []
    with within(10.0):
        for outcome in run.run(Job(slow_square(0.03)), range(300)):
            outcomes.append(outcome)
            if len(outcomes) == 50:
                first = agents()
                its_slots = slots_of(first[0])
                first[0].kill()
            if len(outcomes) == 290:
                assert len(agents()) == 2 and first[0] not in agents()
                assert not any(map(is_alive, its_slots))
    assert len(its_slots) == 2
    assert values(outcomes) == SQUARES[:300]
    assert run.statistics.workers_lost == 2


def test_an_idle_agent_is_killed(tmp_path: Path) -> None:
    """Nothing is done again, and the job goes on where it is."""

    def work(block: int) -> int:
        (tmp_path / f"{block}-{os.getpid()}").touch()
        while block == 1 and not list(tmp_path.glob("0-*")):
            time.sleep(0.01)  # so that both agents have a block, though one could do both in this time
        time.sleep(3.0 if block == 0 else 0.0)
        return block

    def kill_idle(stop: threading.Event) -> None:
        (begun,) = wait_until(lambda: list(tmp_path.glob("1-*")))
        wait_until(lambda: list(tmp_path.glob("0-*")))
        time.sleep(0.5)  # block 1 is done
        psutil.Process(int(begun.name.partition("-")[2])).parent().kill()

    run = manager(2, speculate=False)
    with within(10.0), meanwhile(kill_idle):
        assert values(run.run(Job(work), range(2))) == [0, 1]
    assert len(list(tmp_path.iterdir())) == 2
    assert run.statistics.retries == 0 and run.statistics.workers_lost == 1


def test_all_agents_are_killed_at_once() -> None:
    run = manager(3, 2)
    outcomes = []
    with within(10.0):
        for outcome in run.run(Job(slow_square(0.03), None), range(300)):
            outcomes.append(outcome)
            if len(outcomes) in (50, 150):
                for agent in agents():
                    agent.kill()
    assert values(outcomes) == SQUARES[:300]
    assert run.statistics.workers_lost >= 6


@pytest.mark.parametrize("prefix", [["false"], ["sh", "-c", "echo no such image >&2; exit 9"]])
def test_agents_that_die_at_the_start(prefix: list[str]) -> None:
    with within(5.0), pytest.raises(WorkersLostError) as caught:
        list(manager(2, extra_params={"prefixes": [prefix], "address": "127.0.0.1"}).run(Job(abs), range(9)))
    text = str(caught.value)
    assert "ended one after another without finishing a block" in text
    assert f"it exited with code {1 if prefix == ['false'] else 9}" in text
    assert prefix == ["false"] or "no such image" in text


# -- frozen ----------------------------------------------------------------------------------------------


def freeze(victim: Any, seconds: float) -> threading.Timer:
    """Stop a process for a while; whoever calls waits for the timer's thread."""

    def thaw() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.resume()

    victim.suspend()
    timer = threading.Timer(seconds, thaw)
    timer.start()
    return timer


@pytest.mark.parametrize("state", [False, True], ids=["plain", "state"])
def test_an_agent_is_frozen_for_less_than_the_grace(state: bool) -> None:
    """Nothing is lost: what it had finished counts when it is back."""

    def work(block: int, total: Any = None) -> int:
        time.sleep(0.02)
        if total is not None:
            total.blocks += 1
            total.total += block
        return block * block

    run = manager(2, 2)
    outcomes = []
    timer = None
    with within(10.0):
        for outcome in run.run(Job(work, new_total() if state else None), range(400)):
            outcomes.append(outcome)
            if len(outcomes) == 100:
                timer = freeze(agents()[0], 0.6 * GRACE_S)  # longer than until it counts as silent
    assert timer is not None
    timer.join()
    assert values(outcomes) == SQUARES[:400]
    assert run.statistics.workers_lost == 0 and run.statistics.retries == 0
    if state:
        counts_exactly(run, 400)


@pytest.mark.parametrize("thawed", [True, False])
def test_an_agent_is_frozen_for_longer_than_the_grace(thawed: bool) -> None:
    """Its blocks are done elsewhere and it is killed, also while the other one keeps main busy."""
    run = manager(2, 2)
    victim = None
    outcomes = []
    timer = None
    with within(GRACE_S + 10.0):
        for outcome in run.run(Job(slow_square(0.01)), range(1000)):
            outcomes.append(outcome)
            if len(outcomes) == 100:
                victim = agents()[0]
                timer = freeze(victim, 2 * GRACE_S if thawed else 60.0)
        assert victim is not None and timer is not None
        wait_until(lambda: not is_alive(victim), GRACE_S + PATIENCE_S)
    timer.cancel()
    timer.join()
    assert values(outcomes) == SQUARES


def test_the_blocks_of_a_frozen_agent_with_a_state_count_once() -> None:
    def count(block: int, total: Any) -> int:
        time.sleep(0.05)
        total.blocks += 1
        total.total += block
        return block * block

    run = manager(2, 2)
    timer = None
    outcomes = []
    with within(2 * GRACE_S + 10.0):
        for outcome in run.run(Job(count, new_total()), range(400)):
            outcomes.append(outcome)
            if len(outcomes) == 40:
                timer = freeze(agents()[0], 60.0)
    assert timer is not None
    timer.cancel()
    timer.join()
    assert values(outcomes) == SQUARES[:400]
    assert run.statistics.workers_lost == 2 and run.statistics.retries >= 1
    counts_exactly(run, 400)


@pytest.mark.parametrize("state", [False, True], ids=["plain", "state"])
def test_a_slow_host(state: bool, tmp_path: Path) -> None:
    """A slot that is 20 times slower: the others do its last blocks too, and count them once."""
    slow = tmp_path / "slow"

    def work(block: int, total: Any = None) -> int:
        with contextlib.suppress(FileExistsError), open(slow, "x") as file:
            file.write(str(os.getpid()))  # the first one is the slow one
        time.sleep(2.0 if slow.read_text() == str(os.getpid()) else 0.1)
        if total is not None:
            total.blocks += 1
            total.total += block
        return block * block

    run = manager(2, 2)
    with within(4.0):
        outcomes = run.run(Job(work, new_total() if state else None), range(40))
        assert values(outcomes) == SQUARES[:40]
    if state:
        assert run.statistics.speculated == 0
        counts_exactly(run, 40)
    else:
        assert run.statistics.speculated >= 1


# -- asked to end ----------------------------------------------------------------------------------------


def test_sigterm_to_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hands back what it does not finish, says goodbye, and another one takes its place."""
    codes: list[int | None] = []
    poll = LocalProcesses.poll

    def noted(self: LocalProcesses) -> Sequence[WorkerEnd]:
        there = dict(self._processes)
        ended = poll(self)
        codes.extend(there[end.worker].returncode for end in ended)
        return ended

    monkeypatch.setattr(LocalProcesses, "poll", noted)
    run = manager(2, 2)
    outcomes = []
    with within(10.0):
        for outcome in run.run(Job(slow_square(0.3)), range(40)):
            outcomes.append(outcome)
            if len(outcomes) == 6:
                first = agents()
                first[0].terminate()
            if len(outcomes) == 38:
                assert not is_alive(first[0]) and len(agents()) == 2
    assert values(outcomes) == SQUARES[:40]
    assert run.statistics.workers_lost == 2 and run.statistics.stale_answers == 0
    assert codes and set(codes) == {0}


def hold_by_value() -> Callable[[float], None]:
    """Return a function that holds Python's global lock, and travels to slots by value."""

    def hold(seconds: float) -> None:
        import ctypes

        ctypes.PyDLL(None).usleep(int(seconds * 1e6))

    return hold


def test_sigterm_to_an_agent_whose_slot_holds_the_lock(tmp_path: Path) -> None:
    """It need not be asked: its block is elsewhere within about a second."""
    hold = hold_by_value()

    def work(block: int) -> int:
        if block == 0:
            with contextlib.suppress(FileExistsError):
                (tmp_path / "held").touch(exist_ok=False)
                hold(60.0)
        return block * block

    def terminate(stop: threading.Event) -> None:
        wait_until((tmp_path / "held").exists)
        time.sleep(0.2)
        for agent in agents():
            agent.terminate()

    run = manager(1, speculate=False)
    with within(10.0), meanwhile(terminate):
        assert values(run.run(Job(work), range(4))) == SQUARES[:4]
    assert run.statistics.retries == 0  # handed back, and not lost


def test_what_an_agent_hands_back_need_not_wait_for_its_other_slots(tmp_path: Path) -> None:
    """User code that runs at a slot's exit may take seconds; the block is done elsewhere meanwhile."""

    def work(block: int) -> bool:
        import atexit

        marker = tmp_path / "begun"
        if block:
            atexit.unregister(time.sleep)
            atexit.register(time.sleep, 30.0)
            (tmp_path / f"{os.getppid()}-{os.getpid()}").touch()
            time.sleep(0.1)
        elif not marker.exists():
            (tmp_path / "new").write_text(str(os.getppid()))
            (tmp_path / "new").rename(marker)
            time.sleep(60.0)
        else:
            (other,) = tmp_path.glob(f"{marker.read_text()}-*")
            os.kill(int(other.name.partition("-")[2]), 0)  # raises if that slot has ended
        return True

    def terminate(stop: threading.Event) -> None:
        wait_until((tmp_path / "begun").exists)
        time.sleep(1.0)
        psutil.Process(int((tmp_path / "begun").read_text())).terminate()

    run = manager(2, 2, speculate=False, grace_s=30.0)  # long: it is not to be given up meanwhile
    with within(10.0), meanwhile(terminate):
        assert values(run.run(Job(work), range(40))) == [True] * 40
    assert run.statistics.speculated == 0


# -- main is killed --------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from pathlib import Path
from computemanager.base import manager_class
from computemanager.model import Job, Settings

folder = Path(sys.argv[1])

def work(block):
    import os
    (folder / str(os.getpid())).touch()
    time.sleep(0.05)
    return block

settings = Settings(num_workers=2, grace_s=2.0, extra_params={"slots": 2})
for outcome in manager_class("CW_AGENTS")(settings).run(Job(work), range(10**6)):
    pass
"""


def run_directories(pids: Collection[int]) -> list[Path]:
    import tempfile

    parents = {Path("/dev/shm"), Path(tempfile.gettempdir()), Path("/tmp")}
    return [path for pid in pids for parent in parents for path in parent.glob(f"computemanager-{pid}-*")]


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGSTOP"])
def test_main_is_killed(how: str, tmp_path: Path, no_orphans: str) -> None:
    """Agents notice, end their slots, end themselves and leave nothing; after the grace if it was SIGKILL."""
    script, folder = tmp_path / "script.py", tmp_path / "slots"
    script.write_text(SCRIPT)
    folder.mkdir()
    main = subprocess.Popen([sys.executable, str(script), str(folder)], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: len(list(folder.iterdir())) == 4)
        pids = [process.pid for process in marked(no_orphans)]
        assert len(pids) == 1 + 2 + 4 and run_directories(pids)
        main.send_signal(getattr(signal, how))
        if how != "SIGSTOP":
            main.wait(PATIENCE_S)
        wait_until(lambda: not [one for one in marked(no_orphans) if one.pid != main.pid], 2.0 + PATIENCE_S)
        wait_until(lambda: not run_directories([pid for pid in pids if pid != main.pid]))
    finally:
        main.kill()
        main.communicate()
    assert main.returncode == (-signal.SIGTERM if how == "SIGTERM" else -signal.SIGKILL)


# -- limits of time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["CW_AGENTS", "CW_SUBPROC"])
def test_a_block_that_never_ends(kind: str) -> None:
    """Not even by a signal handler in Python: the global lock is held."""
    hold = hold_by_value()

    def work(block: int) -> int:
        if block == 2:
            hold(600.0)
        return block

    run = manager_class(kind)(
        Settings(num_workers=1, grace_s=GRACE_S, block_timeout_s=0.7, max_timeouts_per_block=2)
    )
    with within(5.0), pytest.raises(BlockTimeoutError) as caught:
        list(run.run(Job(work, name="endless"), range(5)))
    error, text = caught.value, str(caught.value)
    assert (error.block_index, error.attempts, error.limit_s) == (2, 2, 0.7)
    assert "endless: block 2 took longer than 0.7 s (blockTimeout), 2 times" in text


@pytest.mark.parametrize("kind", ["CW_AGENTS", "CW_SUBPROC"])
def test_a_block_that_never_ends_is_gone_on_without(kind: str) -> None:
    def work(block: int) -> int:
        if block in (2, 11):
            import re

            re.match(r"(a+)+$", "a" * 64 + "b")  # not in this life
        return block

    run = manager_class(kind)(
        Settings(
            num_workers=2,
            grace_s=GRACE_S,
            block_timeout_s=0.7,
            max_timeouts_per_block=1,
            on_error="skip",
        )
    )
    with within(5.0):
        outcomes = list(run.run(Job(work), range(20)))
    assert [outcome.block_index for outcome in outcomes] == list(range(20))
    for number, outcome in enumerate(outcomes):
        if number in (2, 11):
            skipped = outcome.skipped
            assert skipped is not None and skipped.block == number and skipped.attempts == 1
            assert "took longer than 0.7 s" in skipped.reason
        else:
            assert outcome.skipped is None and outcome.value == number
    assert run.statistics.skipped == 2


def test_agents_with_an_end_take_no_block_that_they_cannot_finish(tmp_path: Path) -> None:
    """No block is begun twice, though eight agents' lives are needed for all of them."""

    def work(block: int) -> int:
        (tmp_path / f"{block}-{os.getpid()}").touch()
        time.sleep(0.5)
        return block * block

    run = manager(2, max_runtime_s=3.0)
    with within(15.0):
        assert values(run.run(Job(work), range(16))) == SQUARES[:16]
    assert len(list(tmp_path.iterdir())) == 16
    assert run.statistics.retries == 0 and run.statistics.workers >= 4


def test_blocks_that_take_longer_than_an_agent_lives() -> None:
    """Nobody can ever finish one: the job says so and ends, rather than try for ever."""
    with within(20.0), pytest.raises(WorkersLostError) as caught:
        list(manager(1, max_runtime_s=1.5).run(Job(slow_square(30.0)), range(2)))
    text = str(caught.value)
    assert "without finishing a block" in text and "its time was up (maxRuntime)" in text


# -- agents that come late, or never ---------------------------------------------------------------------


class FirstOnly(Provider):
    """Starts a number of agents and no more, whatever it is asked for; keeps the command."""

    def __init__(self, processes: LocalProcesses, most: int) -> None:
        self._processes = processes
        self._left = most
        self.command: Command | None = None

    def start(self, count: int, command: Command) -> Sequence[str]:
        self.command = command
        number = min(count, self._left)
        self._left -= number
        return self._processes.start(number, command)

    def poll(self) -> Sequence[WorkerEnd]:
        return self._processes.poll()

    def kill(self, workers: Collection[str]) -> None:
        self._processes.kill(workers)

    def stop(self, ending: Collection[str] = (), grace_s: float = 0.0) -> None:
        self._processes.stop(ending, grace_s)


def few_agents(most: int, **changes: Any) -> tuple[AgentsManager, Callable[[], FirstOnly]]:
    """A manager whose provider starts only so many agents, and how to get at that provider."""
    made: list[FirstOnly] = []

    class FewAgents(AgentsManager):
        def provider(self, output: OutputPump) -> Provider:
            made.append(FirstOnly(LocalProcesses(output, "agent"), most))
            return made[-1]

    settings = Settings(**{"num_workers": 2, "grace_s": GRACE_S, **changes})
    return FewAgents(settings), lambda: made[-1]


def by_hand(command: Command, *words: str) -> subprocess.Popen[bytes]:
    """Start a worker as a user would: with the join details in the environment."""
    names = ("COMPUTEMANAGER_ADDRESS", "COMPUTEMANAGER_SERVER_KEY", "COMPUTEMANAGER_CLIENT_KEY")
    details = {name: command.environment[name] for name in names}
    return subprocess.Popen(
        [sys.executable, "-m", "computemanager.worker", "--grace", str(GRACE_S), *words],
        env={**os.environ, **details},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize("name", ["", "one name for both"])
def test_workers_that_are_started_by_hand_join_late(name: str) -> None:
    """They get work, and end with the job; also several of one name, as in containers."""
    run, provider = few_agents(1)
    workers: list[subprocess.Popen[bytes]] = []
    seen: dict[str, int] = {}
    try:
        with within(10.0):
            outcomes = []
            for outcome in run.run(Job(slow_square(0.05)), range(300)):
                outcomes.append(outcome)
                seen[outcome.worker] = seen.get(outcome.worker, 0) + 1
                if len(outcomes) == 20:
                    command = provider().command
                    assert command is not None
                    words = ["--name", name] if name else []
                    workers += [by_hand(command, "--slots", "2", *words) for _ in range(2)]
        assert values(outcomes) == SQUARES[:300]
        errors = [worker.communicate(timeout=PATIENCE_S)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert [worker.returncode for worker in workers] == [0, 0], errors
    hosts = {worker.rpartition("/")[0] for worker in seen}
    assert len(seen) == 1 + 2 * 2 and len(hosts) == 3 and "agent-0" in hosts
    if name:
        assert hosts == {"agent-0", name, f"{name}#2"}
    assert run.statistics.workers_lost == 0 and run.statistics.retries == 0


def test_all_are_lost_and_none_comes() -> None:
    run, _ = few_agents(2, start_timeout_s=1.0)
    done = 0
    with within(5.0), pytest.raises(WorkersLostError) as caught:
        for _ in run.run(Job(slow_square(0.02), name="forsaken"), range(300)):
            done += 1
            if done == 50:
                for agent in agents():
                    agent.kill()
    text = str(caught.value)
    assert "forsaken: fewer than 1 workers (minComputeWorkers) were left" in text
    assert "no new ones came within 1.0 s (computeBarrierTimeout)" in text
    assert f"{run.statistics.blocks} blocks were done" in text and run.statistics.blocks >= 50


def test_too_few_are_left() -> None:
    run, _ = few_agents(2, start_timeout_s=1.0, min_workers=2)
    done = 0
    with within(5.0), pytest.raises(WorkersLostError, match="fewer than 2 workers") as caught:
        for _ in run.run(Job(slow_square(0.02)), range(900)):
            done += 1
            if done == 50:
                agents()[0].kill()
    assert "no new ones came within 1.0 s" in str(caught.value)


def test_none_ever_comes() -> None:
    run, _ = few_agents(0, start_timeout_s=0.5)
    with within(2.0), pytest.raises(WaitTimeoutError, match=r"no worker was ready within 0\.5 s"):
        list(run.run(Job(abs), range(3)))


# -- agents that are not of the same make ----------------------------------------------------------------

SHIM = """
import platform
import numpy, cloudpickle
numpy.__version__ = "999.1.0"
cloudpickle.__version__ = "998.0"
platform.python_version = lambda: "3.99.1"
"""


def test_agents_of_other_versions_are_refused(tmp_path: Path) -> None:
    """All that differs is said at once, and what is to be rebuilt."""
    (tmp_path / "sitecustomize.py").write_text(SHIM)
    environment = {"PYTHONPATH": str(tmp_path), "COMPUTEMANAGER_IMAGE": "registry/old-image:7"}
    with within(5.0), pytest.raises(WorkersLostError) as caught:
        list(manager(2, worker_environment=environment).run(Job(abs), range(9)))
    text = str(caught.value)
    for part in ("Python: 3.99.1 there", "NumPy: 999.1.0 there", "cloudpickle: 998.0 there"):
        assert part in text
    assert "is not made of the same parts" in text
    assert f"(registry/old-image:7) with Python {sys.version.split()[0]}" in text
    assert f"NumPy {np.__version__}" in text.splitlines()[-1]


# -- much to carry ---------------------------------------------------------------------------------------


def test_what_slots_print_arrives_whole(capfd: pytest.CaptureFixture[str]) -> None:
    def talk(block: int) -> int:
        sys.stdout.write(f"block {block} says " + "x" * 2000 + "\n")
        sys.stderr.write(f"block {block} warns äöü\n")
        return block

    values(manager(2, 2).run(Job(talk), range(200)))
    captured = capfd.readouterr()
    assert sorted(captured.out.splitlines()) == sorted(f"block {n} says " + "x" * 2000 for n in range(200))
    assert sorted(captured.err.splitlines()) == sorted(f"block {n} warns äöü" for n in range(200))


@pytest.mark.slow
def test_a_slot_that_prints_50_mb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is not held up for good, and neither agent nor main keeps all of it."""
    peaks: list[int] = []

    def babble(block: int) -> int:
        line = "x" * 999 + "\n"
        for _ in range(50_000):
            sys.stdout.write(line)
        sys.stdout.write(f"the end of {block}\n")
        return block

    def watch(stop: threading.Event) -> None:
        while not stop.wait(0.05):
            for agent in agents():
                with contextlib.suppress(psutil.NoSuchProcess):
                    peaks.append(agent.memory_info().rss)

    with within(20.0), meanwhile(watch):
        assert values(manager(1).run(Job(babble), range(1))) == [0]
    captured = capfd.readouterr()
    assert captured.out.endswith("the end of 0\n")
    printed = len(captured.out)
    dropped = sum(
        int(line.split()[0].strip("[")) for line in captured.err.splitlines() if "were dropped" in line
    )
    assert printed + dropped == 50_000_000 + len("the end of 0\n")
    assert max(peaks) < 250e6


def test_a_large_job() -> None:
    weight = np.random.default_rng(1).bytes(20_000_000)

    def weigh(block: int) -> int:
        return len(weight) + block

    with within(10.0), pytest.warns(LargePayloadWarning, match=r"drags 20\.\d MB"):
        assert values(manager(2).run(Job(weigh), range(4))) == [20_000_000 + n for n in range(4)]


@pytest.mark.slow
def test_large_blocks_and_answers() -> None:
    """In pieces: 64 MB to the agents, 70 MB back."""
    blocks = [np.full(8_000_000, number, np.float64) for number in range(3)]

    def grow(block: Any) -> Any:
        return np.concatenate([block, np.full(750_000, -1.0)])

    run = manager(2, window_blocks=2)
    with within(20.0):
        for number, outcome in enumerate(run.run(Job(grow), iter(blocks))):
            assert outcome.value.nbytes == 70_000_000
            assert (outcome.value[:8_000_000] == number).all() and (outcome.value[8_000_000:] == -1.0).all()
            del outcome
    assert run.statistics.retries == 0


def test_a_caller_that_pauses_for_longer_than_the_grace() -> None:
    """libzmq answers for main meanwhile: no agent leaves, and none is taken for dead afterwards."""
    run = manager(2, 2, grace_s=2.0)
    outcomes = []
    for outcome in run.run(Job(slow_square(0.02)), range(300)):
        outcomes.append(outcome)
        if len(outcomes) == 30:
            first = agents()
            time.sleep(6.0)
        if len(outcomes) == 290:
            assert agents() == first
    assert values(outcomes) == SQUARES[:300]
    assert run.statistics.workers_lost == 0 and run.statistics.retries == 0


# -- all at random ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(1, 1 + int(os.environ.get("COMPUTEMANAGER_ROUNDS", "3"))))
def test_a_state_is_exact_whatever_is_killed(seed: int) -> None:
    """Slots and agents are killed, terminated and frozen at random moments."""
    chance = random.Random(seed)
    left = 6

    def strike(stop: threading.Event) -> None:
        nonlocal left
        while left and not stop.wait(chance.uniform(0.1, 0.6)):
            there = agents()
            if not there:
                continue
            agent = chance.choice(there)
            blow = chance.choice(["kill agent", "terminate agent", "kill slot", "kill slot", "freeze"])
            with contextlib.suppress(psutil.NoSuchProcess):
                if blow == "kill agent":
                    agent.kill()
                elif blow == "terminate agent":
                    agent.terminate()
                elif blow == "freeze":
                    agent.suspend()
                    stop.wait(1.5)
                    agent.resume()
                elif slots := slots_of(agent):
                    chance.choice(slots).kill()
                left -= 1

    def count(block: int, total: Any) -> int:
        time.sleep(0.02)
        total.blocks += 1
        total.total += block
        return block * block

    run = manager(3, 2)
    with within(20.0), meanwhile(strike):
        assert values(run.run(Job(count, new_total()), range(1000))) == SQUARES
    counts_exactly(run, 1000)
    assert left < 6
