"""Jobs on three hosts of a network on which everything goes wrong; in the end nothing shows of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from computemanager.rundir import is_abandoned, remove_strays
from tests.chaos.farm_main import JOIN_VARIABLES, Order
from tests.chaos.mischief import ALL, FaultTable, Mischief
from tests.chaos.namespaces import wait_until
from tests.chaos.network import Direction, Host, Network, frozen, network_or_skip

psutil = pytest.importorskip("psutil", reason="finding processes needs psutil (extra 'test')")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="network namespaces are a thing of Linux"
    ),
]

# Read before the fixture that hides them.
ROUNDS = int(os.environ.get("COMPUTEMANAGER_ROUNDS", "3"))
REPORT = os.environ.get("COMPUTEMANAGER_FAULTS_REPORT")

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = str(Path(__file__).with_name("farm_main.py"))
LIAR = str(Path(__file__).with_name("lying_agent.py"))

GRACE_S = 3.0
SHORT_S = 1.5
"""How long a fault lasts that is over before the grace time is."""

LONG_S = 5.0
"""How long one lasts that is not: main has given up, whenever the last beat was."""

PATIENCE_S = 60.0
BETWEEN_CUTS_S = 1.0
"""Until main and hosts have found each other again, and a cut is one of its own."""

MISCHIEF_S = 10.0
"""How long random faults go on."""


# -- jobs ------------------------------------------------------------------------------------------------


class FarmJob:
    """A job whose main runs on the host main and whose agents run on the others.

    Parameters
    ----------
    network : Network
        Where.
    folder : Path
        For its files, new.
    order : Order
        What is run; folder, address and prefixes are filled in.
    liar : sequence of str
        Put before the commands of agents, on their hosts.
    """

    def __init__(self, network: Network, folder: Path, order: Order, liar: Sequence[str] = ()) -> None:
        folder.mkdir()
        self.folder = folder
        prefixes = [[*host.prefix, *liar] for host in network.hosts]
        self.order = dataclasses.replace(
            order, folder=str(folder), address=network.main.address, prefixes=prefixes
        )
        self._by_hand: list[subprocess.Popen[bytes]] = []
        with open(folder / "errors", "wb") as errors:
            self._main = network.main.popen(
                [sys.executable, "-W", "ignore", PROGRAM, json.dumps(dataclasses.asdict(self.order))],
                stderr=errors,
                cwd=REPOSITORY,
            )

    @property
    def taken(self) -> int:
        """Outcomes that main has taken so far."""
        path = self.folder / "progress"
        return path.stat().st_size if path.exists() else 0

    @property
    def ended(self) -> bool:
        """Whether main has ended, well or not."""
        return self._main.poll() is not None

    def wait_for(self, outcomes: int) -> None:
        """Wait until main has taken so many outcomes."""
        wait_until(lambda: self.taken >= outcomes or self.ended, PATIENCE_S)
        assert not self.ended, self.errors()

    def join(self, host: Host, name: str) -> subprocess.Popen[bytes]:
        """Start a worker by hand, as a user does."""
        details = json.loads((self.folder / "join").read_text())
        assert sorted(details) == sorted(JOIN_VARIABLES)
        words = ["--name", name, "--slots", "2", "--grace", str(self.order.grace_s)]
        worker = host.popen(
            [sys.executable, "-m", "computemanager.worker", *words],
            env={**os.environ, **details},
            cwd=REPOSITORY,
            stderr=subprocess.DEVNULL,
        )
        self._by_hand.append(worker)
        return worker

    def hurry(self) -> None:
        """From now on blocks take no more time than they must."""
        (self.folder / "hurry").touch()

    def finish(self) -> dict[str, Any]:
        """Wait for the end; the report."""
        self.hurry()
        try:
            code = self._main.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the job hangs after {self.taken} outcomes: {self.errors()}")
        assert code == 0, f"main ended with {code}: {self.errors()}"
        for worker in self._by_hand:
            worker.wait(PATIENCE_S)
        report: dict[str, Any] = json.loads((self.folder / "report").read_text())
        return report

    def errors(self) -> str:
        """What main and agents wrote to stderr, the end of it."""
        return (self.folder / "errors").read_text(errors="replace")[-5000:]


Undisturbed = Callable[[Order], dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Return a function that gives the report of ``CW_NONE`` for an order."""
    known: dict[Order, dict[str, Any]] = {}

    def report_of(order: Order) -> dict[str, Any]:
        # None of the rest can make a difference.
        plain = Order(
            folder="",
            kind="CW_NONE",
            blocks=order.blocks,
            large_every=order.large_every,
            large_bytes=order.large_bytes,
            state=True,
            raster=order.raster,
        )
        if plain not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            (folder / "hurry").touch()
            given = json.dumps(dataclasses.asdict(dataclasses.replace(plain, folder=str(folder))))
            subprocess.run([sys.executable, "-W", "ignore", PROGRAM, given], check=True, cwd=REPOSITORY)
            known[plain] = json.loads((folder / "report").read_text())
        return known[plain]

    return report_of


@pytest.fixture(scope="module")
def shared_network() -> Iterator[Network]:
    """Return a network for all tests of this file."""
    with network_or_skip(3) as network:
        yield network


@pytest.fixture
def network(shared_network: Network) -> Iterator[Network]:
    """Return a network on which nothing is wrong and nothing runs; after the test that must be so again."""
    yield shared_network
    try:
        # An agent that main could not reach any more ends by itself, some time after the grace time.
        wait_until(lambda: not shared_network.processes(), 3 * GRACE_S + 10)
        assert shared_network.faults() == []
    finally:
        for process in shared_network.processes():
            process.kill()


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[FaultTable]:
    """Return the table of all faults of this file; it is shown, and written where that was asked for."""
    table = FaultTable()
    yield table
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\n{table}")
    if REPORT:
        table.write(Path(REPORT))


class Jobs:
    """Two jobs at once that suffer the same: one with a state, whose blocks must never run twice at a time,
    and one without."""

    def __init__(
        self, network: Network, folder: Path, undisturbed: Undisturbed, table: FaultTable, **changes: Any
    ) -> None:
        order = Order(**{"folder": "", "blocks": 6000, "grace_s": GRACE_S, **changes})
        self._undisturbed = undisturbed
        self._table = table
        self.faults: list[str] = []
        self.plain = FarmJob(network, folder / "plain", order)
        self.counting = FarmJob(
            network, folder / "counting", dataclasses.replace(order, state=True, slots=order.slots - 1)
        )
        self.both = [self.plain, self.counting]

    def under_way(self) -> Jobs:
        """Wait until both are well under way, with workers on every host."""
        for job in self.both:
            job.wait_for(300)
        return self

    def finish(self) -> list[dict[str, Any]]:
        """Wait for the end of both, which came right; their reports."""
        came_right = False
        try:
            for job in self.both:
                assert job.taken < job.order.blocks, "the job was done before the faults were over"
                job.hurry()
            reports = [job.finish() for job in self.both]
            for job, report in zip(self.both, reports, strict=True):
                is_right(report, self._undisturbed(job.order), job)
            came_right = True
        finally:
            self._table.add(self.faults, survived=came_right)
        return reports


def is_right(report: dict[str, Any], right: dict[str, Any], job: FarmJob) -> None:
    """Fail unless a report says the same as that of an undisturbed job."""
    assert report["done"] == right["done"] == job.order.blocks
    assert report["digest"] == right["digest"]
    if job.order.state:
        assert report["sums"] == right["sums"]


Start = Callable[..., Jobs]


@pytest.fixture
def start(network: Network, tmp_path: Path, undisturbed: Undisturbed, table: FaultTable) -> Start:
    """Return a function that starts two jobs and waits until they are under way."""

    def start(**changes: Any) -> Jobs:
        return Jobs(network, tmp_path, undisturbed, table, **changes).under_way()

    return start


def nothing_was_lost(reports: Iterable[dict[str, Any]]) -> None:
    """Fail if anybody was given up: the fault was shorter than the grace time."""
    for report in reports:
        assert report["statistics"]["workers_lost"] == 0
        assert report["statistics"]["retries"] == 0


def workers_were_lost(reports: Iterable[dict[str, Any]]) -> None:
    """Fail if nobody was given up."""
    assert all(report["statistics"]["workers_lost"] > 0 for report in reports)


# -- processes -------------------------------------------------------------------------------------------


def test_slots_are_killed(network: Network, start: Start) -> None:
    jobs = start(raise_every=50)
    for host in network.hosts * 2:
        for slot in host.slots()[:2]:
            slot.kill()
            jobs.faults.append("kill slot")
        time.sleep(0.2)
    reports = jobs.finish()
    assert sum(report["statistics"]["workers_lost"] for report in reports) >= 6


def test_agents_are_killed(network: Network, start: Start) -> None:
    jobs = start()
    for host in network.hosts:
        for agent in host.agents():
            agent.kill()
            jobs.faults.append("kill agent")
        time.sleep(0.5)
    workers_were_lost(jobs.finish())


def test_an_agent_is_killed_while_it_says_goodbye(network: Network, start: Start) -> None:
    """Its slots have ended; nobody else could clear up after it, and there is nothing to clear up."""
    jobs = start()
    host = network.hosts[0]
    with host.dropping():  # nobody hears it, so that it waits for a moment
        agents = host.agents()
        for agent in agents:
            agent.terminate()
            jobs.faults += ["terminate agent", "firewall drop both"]
        wait_until(lambda: not host.slots())
        time.sleep(0.2)
        left = [path for path in run_directories() if int(path.name.split("-")[1]) in {a.pid for a in agents}]
        for agent in agents:
            agent.kill()
            jobs.faults.append("kill agent")
    jobs.finish()
    assert not left


def test_all_agents_are_killed_and_one_comes(network: Network, start: Start) -> None:
    """Nobody is left; what comes then is one worker that was started by hand."""
    jobs = start(most=3)
    for host in network.hosts:
        for agent in host.agents():
            agent.kill()
            jobs.faults.append("kill agent")
    wait_until(lambda: not [host for host in network.hosts if host.processes()])
    for job in jobs.both:
        job.join(network.hosts[1], "late")
    for report in jobs.finish():
        assert report["statistics"]["workers_lost"] >= 3
        assert "late/0" in set(report["workers"])


def test_hosts_freeze_for_less_than_the_grace(network: Network, start: Start) -> None:
    jobs = start()
    first, second, third = network.hosts
    for processes in (first.agents(), second.processes(), [*third.slots(), *first.processes()]):
        with frozen(*processes):
            time.sleep(SHORT_S)
    jobs.faults += ["freeze agent", "freeze host", "freeze slot", "freeze host"]
    nothing_was_lost(jobs.finish())


def test_hosts_freeze_for_longer_than_the_grace(network: Network, start: Start) -> None:
    jobs = start(blocks=8000)
    first, second, _ = network.hosts
    with frozen(*first.agents(), *second.processes()):
        time.sleep(LONG_S)
        jobs.faults += ["freeze agent", "freeze host"]
    workers_were_lost(jobs.finish())


def test_slots_freeze_for_longer_than_the_grace(network: Network, start: Start) -> None:
    """Their agent answers for them: nobody is given up."""
    jobs = start(blocks=8000)
    with frozen(*network.hosts[0].slots()):
        time.sleep(LONG_S)
        jobs.faults.append("freeze slot")
    nothing_was_lost(jobs.finish())


# -- the network -----------------------------------------------------------------------------------------

Cut = Callable[[Host], contextlib.AbstractContextManager[None]]


def dropping(direction: Direction) -> Cut:
    return lambda host: host.dropping(direction)


CUTS: dict[str, Cut] = {
    "link down": Host.unplugged,
    "firewall drop in": dropping("in"),
    "firewall drop out": dropping("out"),
    "firewall drop both": dropping("both"),
    "firewall reset": Host.refusing,
}


def test_hosts_are_cut_off_for_less_than_the_grace(network: Network, start: Start) -> None:
    """In every way, one after the other: nobody is given up, and no block is done again."""
    jobs = start(blocks=12_000)
    for number, (name, cut) in enumerate(CUTS.items()):
        with cut(network.hosts[number % 3]):
            time.sleep(SHORT_S)
            jobs.faults.append(name)
        time.sleep(BETWEEN_CUTS_S)
    nothing_was_lost(jobs.finish())


def test_main_is_cut_off_for_less_than_the_grace(network: Network, start: Start) -> None:
    jobs = start(blocks=10_000)
    for name in ("link down", "firewall drop both", "firewall reset"):
        with CUTS[name](network.main):
            time.sleep(SHORT_S)
            jobs.faults.append(name)
        time.sleep(BETWEEN_CUTS_S)
    nothing_was_lost(jobs.finish())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("link down", "firewall drop both"),
        ("firewall drop in", "firewall drop out"),
        ("firewall reset", "link down"),
    ],
)
def test_two_of_three_are_cut_off_for_longer_than_the_grace(
    network: Network, start: Start, one: str, other: str
) -> None:
    jobs = start(blocks=8000)
    with CUTS[one](network.hosts[0]), CUTS[other](network.hosts[2]):
        time.sleep(LONG_S)
        jobs.faults += [one, other]
    workers_were_lost(jobs.finish())


def test_connections_are_reset(network: Network, start: Start) -> None:
    jobs = start()
    for number in range(8):
        # Those of all agents of a host, and now and then all that main has.
        host = network.everyone[number % 4]
        jobs.faults += ["connection reset"] * host.reset_connections()
        time.sleep(0.3)
    assert len(jobs.faults) >= 16
    nothing_was_lost(jobs.finish())


def test_everybody_is_far_away_and_the_line_is_bad(network: Network, start: Start) -> None:
    """100 ms each way, one frame in twenty is lost: slow, but nobody is given up for that."""
    jobs = start(large_bytes=100_000)
    with contextlib.ExitStack() as links:
        opened = [links.enter_context(host.slowed(0.1, 0.05, seed=7)) for host in network.hosts]
        time.sleep(6.0)
        jobs.faults += ["delay and loss"] * 3
    assert all(link.passed > 100 and link.dropped > 5 for link in opened)
    for report in jobs.finish():
        assert report["statistics"]["workers_lost"] == 0


def test_large_answers_over_a_bad_line(network: Network, start: Start) -> None:
    """Pieces of answers of 3 MB arrive too slowly to be done in the time, but all the time."""
    jobs = start(large_every=100)
    with network.hosts[0].slowed(0.1, 0.05, seed=8), network.hosts[1].limited(500_000):
        time.sleep(6.0)
        jobs.faults += ["delay and loss", "rate limit"]
    jobs.finish()


# -- workers that main has not started -------------------------------------------------------------------


def test_workers_join_late_and_are_cut_off(network: Network, start: Start) -> None:
    """What comes back after the grace time, and cannot have been killed by main, starts anew or has ended."""
    jobs = start(most=2, blocks=8000)
    host = network.hosts[2]  # the third in turn: main has started nothing there
    assert not host.processes()
    late = [job.join(host, "late") for job in jobs.both]
    wait_until(lambda: len(host.slots()) == 4, PATIENCE_S)
    time.sleep(1.0)
    with host.unplugged():
        time.sleep(LONG_S)
        jobs.faults.append("link down")
        # 4: main was out of reach. Or it has not noticed yet for how long that was.
        assert all(worker.poll() in (None, 4) for worker in late)
    reports = jobs.finish()
    for report in reports:
        assert {"late/0", "late/1"} <= set(report["workers"])
    workers_were_lost(reports)


def test_a_worker_that_slept_is_told_that_it_is_too_late(network: Network, start: Start) -> None:
    """It has answers at hand for leases that are others' by now; it drops all of that and starts anew."""
    jobs = start(most=2, blocks=8000)
    host = network.hosts[2]
    late = [job.join(host, "late") for job in jobs.both]
    wait_until(lambda: len(host.slots()) == 4, PATIENCE_S)
    time.sleep(1.0)
    with frozen(*host.processes()):
        time.sleep(LONG_S)
        jobs.faults.append("freeze host")
    time.sleep(2.0)  # to start anew and get work
    reports = jobs.finish()
    workers_were_lost(reports)
    for report in reports:
        assert {"late/0", "late/1", "late#2/0"} <= set(report["workers"])
    assert [worker.returncode for worker in late] == [0, 0]


# -- agents that lie -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [False, True], ids=["plain", "counting"])
@pytest.mark.parametrize(
    "lie",
    [
        "answers_twice",
        "answers_again_later",
        "repeats_packets",
        "loses_packets",
    ],
)
def test_agents_that_lie(
    network: Network, tmp_path: Path, undisturbed: Undisturbed, table: FaultTable, lie: str, state: bool
) -> None:
    """All three do, and slow blocks among quick ones make answers of parts of leases."""
    order = Order("", blocks=6000, slow_every=50, slow_s=0.02, state=state, grace_s=GRACE_S)
    job = FarmJob(network, tmp_path / "job", order, [sys.executable, LIAR, lie])
    came_right = False
    try:
        job.wait_for(3000)
        report = job.finish()
        is_right(report, undisturbed(order), job)
        came_right = True
    finally:
        table.add([lie.replace("_", " ")], survived=came_right)
    assert report["statistics"]["workers_lost"] == 0
    if lie.startswith("answers"):
        ignored = report["statistics"]["stale_answers"] + report["statistics"]["dropped_messages"]
        assert ignored > 100


# -- a raster --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a raster of noise."""
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path_factory.mktemp("raster") / "in.tif"
    pixels = np.random.default_rng(3).integers(0, 10_000, (2, 2000, 1500), np.uint16)
    profile = {"driver": "GTiff", "count": 2, "height": 2000, "width": 1500, "dtype": "uint16"}
    transform = rasterio.Affine(10, 0, 0, 0, -10, 0)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **profile) as dataset:
        dataset.write(pixels)
    return str(path)


def test_a_raster_is_the_same_to_the_byte(
    network: Network, tmp_path: Path, undisturbed: Undisturbed, table: FaultTable, raster: str
) -> None:
    order = Order("", blocks=1200, slow_every=1, slow_s=0.04, grace_s=GRACE_S, state=True, raster=raster)
    job = FarmJob(network, tmp_path / "job", order)
    first, second, third = network.hosts
    faults = ["link down", "connection reset", "kill slot", "delay and loss", "kill agent"]
    came_right = False
    try:
        job.wait_for(100)
        with first.slowed(0.05, 0.02, seed=9):
            first.slots()[0].kill()
            with second.unplugged():
                time.sleep(SHORT_S)
            assert second.reset_connections()
        third.agents()[0].kill()
        time.sleep(0.5)
        assert job.taken < order.blocks
        is_right(job.finish(), undisturbed(order), job)
        came_right = True
    finally:
        table.add(faults, survived=came_right)
    assert not list(job.folder.glob("*.partial"))


# -- all at random ---------------------------------------------------------------------------------------


def run_directories() -> set[Path]:
    """The directories of runs and agents of all processes of this machine."""
    return {
        path
        for parent in ("/dev/shm", tempfile.gettempdir())
        for path in Path(parent).glob("computemanager-*-*")
    }


@pytest.fixture
def next_run_clears_up() -> Iterator[None]:
    """After the test, do as the next run on the machine does, and a minute later.

    Where an agent and all its slots are killed at one moment, or an agent before it has any, nobody is left
    who could remove their directory.
    """
    before = run_directories()
    yield
    for path in run_directories() - before:
        if not psutil.pid_exists(int(path.name.split("-")[1])) and is_abandoned(path):
            os.utime(path, (0, 0))
            remove_strays()
            assert not path.exists()


@pytest.mark.usefixtures("next_run_clears_up")
@pytest.mark.parametrize("seed", range(1, 1 + ROUNDS))
def test_everything_at_random(network: Network, start: Start, seed: int) -> None:
    jobs = start(blocks=20_000, raise_every=200)
    wild = Mischief(network, seed, pause_s=(0.05, 0.8), lasts_s=(0.2, 5.0))
    try:
        with wild:
            end = time.monotonic() + MISCHIEF_S
            while wild.is_running and time.monotonic() < end and all(not job.ended for job in jobs.both):
                time.sleep(0.05)
    finally:
        jobs.faults += [fault.kind for fault in wild.faults]
    assert set(jobs.faults) <= set(ALL)
    jobs.finish()


# -- the sockets -----------------------------------------------------------------------------------------

CUT_AGAIN_AND_AGAIN = """
import os, random, sys, time
from computemanager.transport import AgentSocket, Listening, MainSocket
from tests.chaos.network import Network

chance = random.Random(1)
grace_s = 1.5
with Network(3) as network:
    main = network.main.call(lambda: MainSocket(Listening(network.main.address, grace_s=grace_s)))
    agents = [
        host.call(lambda: AgentSocket(main.environment, host.name.encode(), grace_s))
        for host in network.hosts
    ]
    heard = 0

    def talk(seconds, pause_s):
        global heard
        end, said_at = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            if time.monotonic() - said_at > pause_s:
                said_at = time.monotonic()
                for agent in agents:
                    agent.send([b"x" * 10])
            for sender, frames in main.receive(0.002):
                main.send(sender, [bytes(frame) for frame in frames])
            heard += sum(1 for agent in agents for _ in agent.receive())

    talk(0.5, 0.01)
    for _ in range(int(sys.argv[1])):
        one, two, three = (chance.choice(["in", "out", "both"]) for _ in network.hosts)
        with network.hosts[0].dropping(one), network.hosts[1].dropping(two), network.hosts[2].dropping(three):
            talk(chance.choice([0.4, 0.5, 0.6, 0.7]), chance.choice([0.4, 0.1, 0.02]))
        talk(chance.choice([0.2, 0.5, 1.0]), 0.3)
    before = heard
    talk(3.0, 0.1)
    print(heard - before)
    sys.stdout.flush()
    for agent in agents:
        agent.close()
    main.close()
"""


def test_main_lives_through_cuts_of_its_connections() -> None:
    """libzmq ends the whole process, on an assertion, if main's socket has heartbeats of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CUT_AGAIN_AND_AGAIN), str(2 * ROUNDS)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20  # all is well again
