"""The network that other tests break works, each fault is felt, and each is mended: with plain ZeroMQ."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.utils.monitor

from tests.chaos import mischief
from tests.chaos.namespaces import NAMESPACES, remove_strays, wait_until
from tests.chaos.network import (
    Direction,
    Host,
    Network,
    NetworkUnavailable,
    frozen,
    network_or_skip,
)

psutil = pytest.importorskip("psutil", reason="finding processes needs psutil (extra 'test')")

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="network namespaces are a thing of Linux"
)

REPOSITORY = Path(__file__).resolve().parents[2]
PORT = 5555
CUT_S = 0.4
"""How long a message must stay away to count as cut off; without a fault it takes less than a millisecond."""


@pytest.fixture
def network() -> Iterator[Network]:
    """Return a network of main and three hosts."""
    with network_or_skip(3) as network:
        yield network


class Talk:
    """A ROUTER on main that answers every message, and a DEALER on each host."""

    def __init__(self, network: Network) -> None:
        self._contexts: list[zmq.Context[Any]] = []
        self._numbers = itertools.count()
        self._heard: dict[str, int] = {}  # by host: number of the last answer
        self.taken: dict[bytes, int] = {}  # by host's name: number of the last message that main took
        address = f"tcp://{network.main.address}:{PORT}"
        self.router = network.main.call(lambda: self._open(zmq.ROUTER, "main", address))
        self.dealers = {
            host.name: host.call(functools.partial(self._open, zmq.DEALER, host.name, address))
            for host in network.hosts
        }

    def _open(self, kind: int, name: str, address: str) -> Any:
        context: zmq.Context[Any] = zmq.Context()
        self._contexts.append(context)
        opened = context.socket(kind)
        opened.identity = name.encode()
        if kind == zmq.ROUTER:
            # A host that comes back after a cut has the name of a connection that may not be known as dead.
            # No heartbeats here: together with this, libzmq 4.3.5 aborts ("Assertion failed: !_io_error").
            opened.router_handover = True
            opened.bind(address)
        else:
            opened.heartbeat_ivl, opened.heartbeat_timeout, opened.heartbeat_ttl = (
                100,
                500,
                500,
            )  # milliseconds
            opened.reconnect_ivl = 20
            opened.connect(address)
        return opened

    def send(self, host: Host) -> int:
        """Send a message from a host, without waiting; its number."""
        number = next(self._numbers)
        self.dealers[host.name].send(str(number).encode())
        return number

    def heard(self, host: Host, number: int, patience_s: float) -> bool:
        """Whether the answer to a message comes in time; those to earlier ones are passed over."""
        dealer = self.dealers[host.name]
        poller = zmq.Poller()
        poller.register(self.router, zmq.POLLIN)
        poller.register(dealer, zmq.POLLIN)
        end = time.monotonic() + patience_s
        while self._heard.get(host.name, -1) < number:
            left_s = end - time.monotonic()
            if left_s <= 0:
                return False
            for ready, _ in poller.poll(int(1000 * left_s) + 1):
                if ready is self.router:
                    name, message = self.router.recv_multipart()
                    self.taken[name] = int(message)
                    self.router.send_multipart([name, message])
                else:
                    self._heard[host.name] = int(dealer.recv())
        return True

    def reaches(self, host: Host, patience_s: float = 20.0) -> bool:
        """Whether main and a host hear each other; a message lost in a fault is sent again."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            if self.heard(host, self.send(host), min(1.0, patience_s)):
                return True
        return False

    def is_cut_off(self, host: Host) -> bool:
        """Whether a message now stays without an answer for a while."""
        return not self.heard(host, self.send(host), CUT_S)

    def close(self) -> None:
        for context in self._contexts:
            context.destroy(linger=0)


@pytest.fixture
def talk(network: Network) -> Iterator[Talk]:
    """Return sockets on all hosts that have already heard of each other."""
    with contextlib.closing(Talk(network)) as talk:
        for host in network.hosts:
            assert talk.reaches(host)
        yield talk


# -- the network itself ------------------------------------------------------------------------------------


def test_every_host_reaches_main_and_nothing_is_made_outside(network: Network, talk: Talk) -> None:
    assert [host.name for host in network.everyone] == ["main", "h1", "h2", "h3"]
    assert network.faults() == []
    # A host has its own devices; the machine has none of ours.
    assert {name for _, name in network.hosts[0].call(socket.if_nameindex)} >= {"lo", "eth0"}
    assert not {"br0", "p0", "p1"} & {name for _, name in socket.if_nameindex()}


def test_two_networks_live_side_by_side_with_the_same_addresses(network: Network, talk: Talk) -> None:
    with network_or_skip(1) as other, contextlib.closing(Talk(other)) as other_talk:
        assert other.main.address == network.main.address
        assert other_talk.reaches(other.hosts[0])
        with other.hosts[0].unplugged():
            assert other_talk.is_cut_off(other.hosts[0])
            assert talk.reaches(network.hosts[0])


def test_a_command_runs_on_its_host_under_the_same_process_number(network: Network) -> None:
    host = network.hosts[1]
    program = "import os, socket; print(os.getpid(), [name for _, name in socket.if_nameindex()])"
    process = host.popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    said, _ = process.communicate()
    assert said.startswith(f"{process.pid} ") and "eth0" in said


def is_gone(process: Any) -> bool:
    """Whether a process has ended; nobody may have waited for it yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_closing_ends_what_will_not_end(network: Network) -> None:
    stubborn = """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
        sys.stdout.write("up\\n"); sys.stdout.flush()
        time.sleep(600)
    """
    process = network.hosts[0].popen(
        [sys.executable, "-c", textwrap.dedent(stubborn)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() + process.stdout.readline() == "up\nup\n"
    there = network.processes()
    assert len(there) == 2
    with frozen(*there):
        network.close()
    assert all(is_gone(process) for process in there)
    assert not [path for path in NAMESPACES.glob("cmtest-*") if f"-{os.getpid()}-" in path.name]
    network.close()  # twice does not matter


def test_what_a_killed_test_run_left_is_removed_and_what_lives_is_not(network: Network) -> None:
    killed = """
        import subprocess, time
        from tests.chaos.network import Network
        with Network(1) as network, network.hosts[0].slowed():
            host = network.hosts[0]
            sleeper = host.popen(["sleep", "600"], stdout=subprocess.DEVNULL)
            print(host.namespace, sleeper.pid, flush=True)
            time.sleep(600)
    """
    main = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(killed)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    try:
        assert main.stdout is not None
        namespace, pid = main.stdout.readline().split()
        orphan = psutil.Process(int(pid))
        assert namespace not in remove_strays()  # its maker lives
    finally:
        main.kill()
        main.communicate()
    removed = remove_strays()
    assert namespace in removed and len([name for name in removed if f"-{main.pid}-" in name]) == 3
    assert is_gone(orphan)
    assert not (NAMESPACES / namespace).exists()
    assert (NAMESPACES / network.main.namespace).exists()


# -- what is missing is said -------------------------------------------------------------------------------


def test_users_who_are_not_root_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NetworkUnavailable, match="only root can make network namespaces"):
        Network(1).start()


def test_a_missing_program_is_named_with_its_package(
    network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for program in ("ip", "tc", "ss", "nsenter"):
        (tmp_path / program).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NetworkUnavailable, match="'nft' is missing .* package nftables"):
        Network(1).start()
    with pytest.raises(pytest.skip.Exception, match="'nft' is missing"), network_or_skip():
        pass
    monkeypatch.undo()


def test_a_root_that_may_not_make_namespaces_is_told_what_the_system_said(network: Network) -> None:
    setpriv = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    program = "from tests.chaos.network import Network; Network(1).start()"
    done = subprocess.run(
        [*setpriv, sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert "NetworkUnavailable: network namespaces cannot be made here: 'ip netns add cmtest-" in done.stderr
    assert "ermitted" in done.stderr  # "Operation not permitted"


# -- faults of the network ---------------------------------------------------------------------------------


def test_an_unplugged_host_is_cut_off_alone_and_comes_back(network: Network, talk: Talk) -> None:
    cut, other, _ = network.hosts
    with cut.unplugged():
        assert network.faults() != []
        assert talk.is_cut_off(cut)
        assert talk.reaches(other)
    assert talk.reaches(cut)
    assert network.faults() == []


def test_main_unplugged_cuts_off_everybody(network: Network, talk: Talk) -> None:
    with network.main.unplugged():
        assert all(talk.is_cut_off(host) for host in network.hosts)
    assert all(talk.reaches(host) for host in network.hosts)


@pytest.mark.parametrize(
    ("direction", "main_takes"), [("in", True), ("out", False), ("both", False)], ids=str
)
def test_a_firewall_drops_one_way_or_both(
    network: Network, talk: Talk, direction: Direction, main_takes: bool
) -> None:
    cut, other, _ = network.hosts
    with cut.dropping(direction):
        number = talk.send(cut)
        assert not talk.heard(cut, number, CUT_S)
        assert (talk.taken[cut.name.encode()] == number) is main_takes
        assert talk.reaches(other)
    assert talk.reaches(cut)
    assert network.faults() == []


def test_connections_are_reset_at_both_ends_and_made_anew(network: Network, talk: Talk) -> None:
    cut = network.hosts[0]
    with (
        watched(talk.router, zmq.EVENT_DISCONNECTED) as main_lost,
        watched(talk.dealers[cut.name], zmq.EVENT_DISCONNECTED) as host_lost,
    ):
        assert cut.reset_connections() == 1
        wait_until(main_lost)
        wait_until(host_lost)
    assert talk.reaches(cut)
    assert network.hosts[1].reset_connections() == 1
    assert talk.reaches(network.hosts[1])
    assert network.main.reset_connections() == 3
    assert all(talk.reaches(host) for host in network.hosts)


@contextlib.contextmanager
def watched(watched_socket: Any, event: int) -> Iterator[Callable[[], bool]]:
    """Within, the function given says whether a ZeroMQ socket has had an event since the last time."""
    events = watched_socket.get_monitor_socket(event)

    def happened() -> bool:
        if not events.poll(0):
            return False
        return bool(zmq.utils.monitor.recv_monitor_message(events)["event"] == event)

    try:
        yield happened
    finally:
        watched_socket.disable_monitor()
        events.close(linger=0)


def test_a_firewall_that_has_forgotten_connections_resets_them_and_lets_none_in(
    network: Network, talk: Talk
) -> None:
    cut = network.hosts[0]
    with cut.refusing():
        with watched(talk.router, zmq.EVENT_DISCONNECTED) as main_lost:
            talk.send(cut)  # main acknowledges, and is told that there is no such connection
            wait_until(main_lost)
        assert talk.is_cut_off(cut)
        with pytest.raises(OSError):
            cut.call(lambda: socket.create_connection((network.main.address, PORT), timeout=CUT_S))
    assert talk.reaches(cut)
    assert network.faults() == []


@contextlib.contextmanager
def stream(host: Host, main: Host) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Within, there is a TCP connection from a host to main; both ends."""
    listener = main.call(lambda: socket.create_server((main.address, 0)))
    with listener:
        sender = host.call(lambda: socket.create_connection(listener.getsockname()))
        receiver, _ = listener.accept()
    with sender, receiver:
        yield sender, receiver


@pytest.mark.parametrize("from_main", [False, True], ids=["from the host", "from main"])
def test_no_more_than_the_limit_gets_through(network: Network, from_main: bool) -> None:
    bytes_per_s = 1_000_000
    host = network.hosts[0]
    with host.limited(bytes_per_s), stream(host, network.main) as (at_host, at_main):
        sender, receiver = (at_main, at_host) if from_main else (at_host, at_main)
        sender.setblocking(False)
        receiver.settimeout(0.1)
        began = time.monotonic()
        received = 0
        while received < 600_000:
            with contextlib.suppress(BlockingIOError):
                sender.send(bytes(100_000))
            with contextlib.suppress(TimeoutError):
                received += len(receiver.recv(100_000))
        # 32 kB may come in one go; the headers of packets count too, so this is on the safe side.
        assert received <= 32_768 + 100_000 + bytes_per_s * (time.monotonic() - began)
    assert network.faults() == []


def test_a_slow_link_delays_each_way_and_can_be_changed_while_in_use(network: Network, talk: Talk) -> None:
    slow, other, _ = network.hosts
    with slow.slowed(delay_s=0.1, loss=0.0) as link:
        assert network.faults() != []
        for _ in range(3):
            sent_at = time.monotonic()
            assert talk.heard(slow, talk.send(slow), 20)
            assert time.monotonic() - sent_at >= 0.2
        link.change(0.0, 1.0)
        assert talk.is_cut_off(slow)
        assert talk.reaches(other)
        link.change(0.001, 0.0)
        assert talk.reaches(slow)
    assert link.passed > 6 and link.dropped > 0
    assert talk.reaches(slow)
    assert network.faults() == []


def test_what_a_lossy_link_loses_is_sent_again(network: Network) -> None:
    host = network.hosts[0]
    content = os.urandom(2_000_000)
    with host.slowed(delay_s=0.005, loss=0.05) as link, stream(host, network.main) as (sender, receiver):
        sender.setblocking(False)
        received = bytearray()
        sent = 0
        receiver.settimeout(0.1)
        while len(received) < len(content):
            with contextlib.suppress(BlockingIOError):
                sent += sender.send(content[sent : sent + 100_000])
            with contextlib.suppress(TimeoutError):
                received += receiver.recv(1_000_000)
    assert received == content
    share = link.dropped / (link.passed + link.dropped)
    assert link.passed > 1000 and 0.02 < share < 0.1


def test_faults_of_different_kinds_overlap_and_end_in_any_order(network: Network, talk: Talk) -> None:
    host = network.hosts[0]
    faults: list[Callable[[], contextlib.AbstractContextManager[object]]] = [
        host.unplugged,
        host.dropping,
        host.refusing,
        lambda: host.limited(100_000),
        host.slowed,
    ]
    for first, second in itertools.permutations(faults, 2):
        outer, inner = contextlib.ExitStack(), contextlib.ExitStack()
        with outer, inner:
            outer.enter_context(first())
            inner.enter_context(second())
            outer.close()
        assert network.faults() == []
    assert talk.reaches(host)


def test_a_fault_is_mended_when_the_job_fails(network: Network, talk: Talk) -> None:
    host = network.hosts[0]
    with pytest.raises(RuntimeError, match="of the job"), host.unplugged(), host.slowed(), host.limited(1000):
        raise RuntimeError("of the job")
    assert network.faults() == []
    assert talk.reaches(host)


def test_a_command_that_fails_says_what_and_why(network: Network) -> None:
    network.close()
    with pytest.raises(OSError, match=r"'tc -n .* failed \(\d+\): Cannot open network namespace"):
        network.hosts[0].limited(1000).__enter__()


# -- faults of processes -----------------------------------------------------------------------------------

AGENT = """
    import subprocess, sys, time
    words = "from computemanager.{} import main".format("slot")  # not in the agent's own command line
    slot = [sys.executable, "-ISc", "import time; time.sleep(600)", words]
    slots = [subprocess.Popen(slot) for _ in range(2)]
    time.sleep(600)
"""


def start_agent(host: Host) -> subprocess.Popen[bytes]:
    """Start a process that soon has two children that look like slots."""
    return host.popen([sys.executable, "-ISc", textwrap.dedent(AGENT)])


def test_agents_and_slots_are_found_by_host(network: Network) -> None:
    agents = [start_agent(host) for host in network.hosts[:2]]
    for host, agent in zip(network.hosts, agents, strict=False):
        wait_until(lambda: len(network.hosts[0].slots()) == len(network.hosts[1].slots()) == 2)
        assert [found.pid for found in host.agents()] == [agent.pid]
        assert {found.ppid() for found in host.slots()} == {agent.pid}
        assert len(host.processes()) == 3
    assert network.hosts[2].processes() == []

    first = network.hosts[0]
    first.slots()[0].kill()
    wait_until(lambda: len(first.slots()) == 1)
    first.agents()[0].kill()
    assert agents[0].wait() == -signal.SIGKILL
    # A slot whose agent is gone is no agent.
    assert first.agents() == [] and len(first.slots()) == 1
    assert len(network.hosts[1].processes()) == 3


def test_frozen_processes_go_on_afterwards_even_if_one_has_ended(network: Network) -> None:
    start_agent(network.hosts[0])
    wait_until(lambda: len(network.hosts[0].slots()) == 2)
    agent, slots = network.hosts[0].agents()[0], network.hosts[0].slots()
    with frozen(agent, *slots):
        assert {process.status() for process in (agent, *slots)} == {psutil.STATUS_STOPPED}
        slots[0].kill()
    wait_until(lambda: agent.status() != psutil.STATUS_STOPPED)
    wait_until(lambda: slots[1].status() != psutil.STATUS_STOPPED)


# -- mischief ----------------------------------------------------------------------------------------------


def test_the_same_seed_plans_the_same_faults() -> None:
    def first(seed: int) -> list[mischief.Planned]:
        plan = mischief.schedule(seed, list(mischief.ALL), 3, pause_s=(0.1, 0.2), lasts_s=(1.0, 2.0))
        return list(itertools.islice(plan, 500))

    assert first(1) == first(1) != first(2)
    assert {planned.kind for planned in first(1)} == set(mischief.ALL)
    assert {planned.host for planned in first(1)} == {0, 1, 2}
    assert all(0.1 <= planned.pause_s <= 0.2 and 1 <= planned.lasts_s <= 2 for planned in first(1))


def test_mischief_does_all_it_knows_and_mends_it(network: Network, talk: Talk) -> None:
    wild = mischief.Mischief(network, 3, pause_s=(0.005, 0.02), lasts_s=(0.02, 0.2), spared=0)
    with wild:
        while wild.is_running and {fault.kind for fault in wild.faults} < set(mischief.ALL):
            for host in network.hosts:
                if not host.agents():
                    for orphan in host.slots():
                        orphan.kill()
                    start_agent(host)
            talk.reaches(network.hosts[0], 0.05)
    assert network.faults() == []
    assert psutil.STATUS_STOPPED not in {process.status() for process in network.processes()}
    assert all(talk.reaches(host) for host in network.hosts)
    assert [fault.at_s for fault in wild.faults] == sorted(fault.at_s for fault in wild.faults)
    assert {fault.host for fault in wild.faults} == {"h1", "h2", "h3"}
    assert all((fault.lasts_s == 0) == (fault.kind in mischief.AT_ONCE) for fault in wild.faults)


def test_mischief_spares_as_many_hosts_as_asked(network: Network, talk: Talk) -> None:
    wild = mischief.Mischief(
        network, 4, kinds=["link down", "firewall drop"], pause_s=(0.001, 0.01), lasts_s=(0.1, 0.3), spared=2
    )
    with wild:
        wait_until(lambda: len(wild.faults) >= 20)
    times = [(fault.at_s, fault.at_s + fault.lasts_s, fault.host) for fault in wild.faults]
    for at_s, _, host in times:
        hit = {other for begun_s, ended_s, other in times if begun_s < at_s < ended_s}
        assert hit <= {host}


def test_mischief_that_fails_is_heard_of_and_still_mended(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(host: Host, mend: contextlib.ExitStack, pick: int) -> str:
        raise OSError("no such fault")

    wild = mischief.Mischief(
        network, 5, pause_s=(0.001, 0.01), lasts_s=(60, 60), kinds=["link down", "broken"]
    )
    monkeypatch.setattr(mischief, "ALL", {**mischief.ALL, "broken": broken})
    with pytest.raises(OSError, match="no such fault"), wild:
        wait_until(lambda: not wild.is_running)
    assert network.faults() == []


def test_the_table_of_faults_counts_by_kind(tmp_path: Path) -> None:
    table = mischief.FaultTable()
    table.add(["kill slot", "link down", "kill slot"], survived=True)
    table.add(["link down"], survived=False)
    table.write(tmp_path / "faults.json")
    assert json.loads((tmp_path / "faults.json").read_text()) == {
        "kill slot": {"injected": 2, "survived": 2},
        "link down": {"injected": 2, "survived": 1},
    }
    assert str(table).splitlines() == [
        "fault      injected  survived",
        "kill slot         2         2",
        "link down         2         1",
    ]
