"""Computers on a network, on one machine: network namespaces on a bridge, and what can go wrong between them.

::

                      hub (a namespace)
        main ---- p0 --+          +-- p1 ---- h1
       10.77.0.254     +-- br0 ---+-- p2 ---- h2
                                  +-- p3 ---- h3     10.77.0.3

Main and each host have a namespace, with one Ethernet device ``eth0`` whose other end is a port of the
bridge. Nothing is made in the machine's own namespace, so the addresses clash with nobody's, and any number
of networks live side by side. What a killed test run has left is removed by the next one.

All this needs Linux, root and a few programs; `network_or_skip` skips a test and says what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

from tests.chaos.namespaces import (
    enter,
    firewall,
    inside,
    ip_batch,
    own_prefix,
    processes_in,
    remove_namespace,
    remove_strays,
    run,
    wait_until,
)

psutil = pytest.importorskip("psutil", reason="finding processes needs psutil (extra 'test')")

__all__ = [
    "Host",
    "Network",
    "NetworkUnavailable",
    "SlowLink",
    "frozen",
    "network_or_skip",
]

Value = TypeVar("Value")
Direction = Literal["in", "out", "both"]

NEEDED = {"ip": "iproute2", "tc": "iproute2", "ss": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
"""Programs, and the Debian packages that they come with."""

SLOT_WORDS = "from computemanager.slot import"
"""In the command line of every slot process."""


class NetworkUnavailable(Exception):
    """Networks cannot be made here; the message says why."""


# -- one computer, and its faults --------------------------------------------------------------------------


class Host:
    """A computer on the network. Its faults are context managers: they are mended at the end of the block.

    Faults of different kinds may be on a host at the same time, and end in any order.

    Attributes
    ----------
    name : str
        ``main``, ``h1``, ``h2``, ...
    address : str
        Its IPv4 address.
    namespace : str
        Name of its network namespace.
    prefix : list of str
        What to put before a command so that it runs on this host, as the same process.
    """

    def __init__(self, name: str, address: str, namespace: str, hub: str, port: str) -> None:
        self.name = name
        self.address = address
        self.namespace = namespace
        self.prefix = inside(namespace)
        self._hub = hub
        self._port = port
        self._started: list[subprocess.Popen[Any]] = []

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address} in {self.namespace}>"

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on this host; options are those of `subprocess.Popen`. It ends with the network."""
        process = subprocess.Popen([*self.prefix, *command], **options)
        self._started.append(process)
        return process

    def call(self, function: Callable[[], Value]) -> Value:
        """Call a function in a thread on this host, and return what it gave.

        Sockets made there stay there. So does what a ZeroMQ context does in the background, if the
        function makes the context and its first socket.
        """

        def there() -> Value:
            enter(self.namespace)
            return function()

        with ThreadPoolExecutor(1) as threads:
            return threads.submit(there).result()

    def processes(self) -> list[Any]:
        """Return all processes on this host."""
        return processes_in(self.namespace)

    def slots(self) -> list[Any]:
        """Return the processes that run the user's function."""
        return [process for process in self.processes() if is_slot(process)]

    def agents(self) -> list[Any]:
        """Return the processes that were started on this host from outside: neither slots nor children."""
        there = self.processes()
        pids = {process.pid for process in there}
        found = []
        for process in there:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.ppid() not in pids and not is_slot(process):
                    found.append(process)
        return found

    @contextlib.contextmanager
    def unplugged(self) -> Iterator[None]:
        """Within, the cable is out: both ends see that, what was under way is lost."""
        run("ip", "-n", self._hub, "link", "set", self._port, "down")
        try:
            yield
        finally:
            run("ip", "-n", self._hub, "link", "set", self._port, "up")

    @contextlib.contextmanager
    def dropping(self, direction: Direction = "both") -> Iterator[None]:
        """Within, a firewall between this host and the others drops all, in silence.

        Parameters
        ----------
        direction : str
            ``"in"`` drops what is sent to the host, ``"out"`` what it sends, ``"both"`` (default) both.
        """
        sides = {"in": ["oifname"], "out": ["iifname"], "both": ["oifname", "iifname"]}[direction]
        rules = "; ".join(f'{side} "{self._port}" meta protocol ip drop' for side in sides)
        with firewall(self._hub, "bridge", "forward", rules):
            yield

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Within, whatever is sent to this host over TCP is answered with a reset.

        As a firewall does that was restarted and has forgotten its connections: the others see the
        connection reset, this host sees silence, and no new connection is made.
        """
        with firewall(
            self.namespace, "inet", "input", 'iifname "eth0" meta l4proto tcp reject with tcp reset'
        ):
            yield

    def reset_connections(self) -> int:
        """Reset the TCP connections of this host with others, once, for both ends; return how many."""
        command = [*self.prefix, "ss", "-H", "-K", "-t", "src", self.address]
        return len(run(*command).splitlines())

    @contextlib.contextmanager
    def limited(self, bytes_per_s: int) -> Iterator[None]:
        """Within, so many bytes a second get through to this host, and as many from it."""
        limit = f"root tbf rate {8 * bytes_per_s}bit burst 32kb latency 400ms".split()
        ends = [(self._hub, self._port), (self.namespace, "eth0")]
        with contextlib.ExitStack() as undo:
            for namespace, device in ends:
                run("tc", "-n", namespace, "qdisc", "add", "dev", device, *limit)
                undo.callback(run, "tc", "-n", namespace, "qdisc", "del", "dev", device, "root")
            yield

    @contextlib.contextmanager
    def slowed(self, delay_s: float = 0.1, loss: float = 0.05, *, seed: int = 0) -> Iterator[SlowLink]:
        """Within, what goes to and from this host is late, and some of it is lost.

        Parameters
        ----------
        delay_s : float
            How late, each way, in seconds. Default 0.1.
        loss : float
            Which share of the frames is lost, each way. Default 0.05.
        seed : int
            Of the losses.

        Yields
        ------
        SlowLink
            Through which both can be changed.
        """
        # The port leaves the bridge for one of its own; between the two is the slow link.
        near, far, bridge = (f"{self._port}{end}" for end in ("near", "far", "br"))
        with SlowLink(self._hub, near, far, seed) as link:
            ip_batch(
                self._hub,
                f"link add {bridge} type bridge",
                f"link set {near} master {bridge} up",
                f"link set {far} master br0 up",
                f"link set {bridge} up",
            )
            try:
                link.change(delay_s, loss)
                run("ip", "-n", self._hub, "link", "set", self._port, "master", bridge)
                yield link
            finally:
                ip_batch(self._hub, f"link set {self._port} master br0", f"link del {bridge}")

    def close(self) -> None:
        """End all that runs here, and remove the namespace."""
        remove_namespace(self.namespace)
        for process in self._started:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def is_slot(process: Any) -> bool:
    try:
        return any(SLOT_WORDS in word for word in process.cmdline())
    except psutil.Error:
        return False


def is_still(process: Any) -> bool:
    """Whether a process is stopped, or has ended."""
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def frozen(*processes: Any) -> Iterator[None]:
    """Within, processes do not run (SIGSTOP, then SIGCONT); those that have ended meanwhile do not matter."""
    try:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        wait_until(lambda: all(map(is_still, processes)))
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


class SlowLink:
    """A link that is late and loses frames, run by a process of its own.

    Attributes
    ----------
    passed, dropped : int
        Frames in both directions, known once the link is closed.
    """

    def __init__(self, namespace: str, near: str, far: str, seed: int) -> None:
        program = str(Path(__file__).with_name("slow_link.py"))
        self.passed = self.dropped = 0
        self._process = subprocess.Popen(
            # -I -S: it starts sooner.
            [*inside(namespace), sys.executable, "-I", "-S", program, near, far, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> SlowLink:
        try:
            self._expect("ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()  # it ends when its input does
        counts = re.fullmatch(r"(\d+) (\d+)\n", self._process.stdout.read())
        if counts:
            self.passed, self.dropped = int(counts[1]), int(counts[2])
        self._process.stdout.close()
        self._process.wait()

    def change(self, delay_s: float, loss: float) -> None:
        """Set the delay each way, in seconds, and the share of frames that is lost, from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{delay_s} {loss}\n")
        self._expect("changed")

    def _expect(self, answer: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line != answer:
            raise OSError(f"the process of a slow link said {line!r} where {answer!r} was expected")


# -- the network -------------------------------------------------------------------------------------------


class Network:
    """Main and some hosts, each in a network namespace, on one bridge. A context manager.

    Parameters
    ----------
    num_hosts : int
        Hosts beside main, 1 to 253.

    Attributes
    ----------
    main : Host
        Where the main script runs; all hosts can reach its address.
    hosts : list of Host
        Where agents run.

    Raises
    ------
    NetworkUnavailable
        From `start`: this machine, or this user, cannot have one; the message says why.
    """

    def __init__(self, num_hosts: int = 3) -> None:
        owner = own_prefix()
        self._hub = f"{owner}-hub"
        self.main = Host("main", "10.77.0.254", f"{owner}-main", self._hub, "p0")
        self.hosts = [
            Host(f"h{n}", f"10.77.0.{n}", f"{owner}-h{n}", self._hub, f"p{n}")
            for n in range(1, num_hosts + 1)
        ]

    def __enter__(self) -> Network:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def everyone(self) -> list[Host]:
        """Main and the hosts."""
        return [self.main, *self.hosts]

    @property
    def _namespaces(self) -> list[str]:
        return [self._hub, *(host.namespace for host in self.everyone)]

    def start(self) -> None:
        """Make the namespaces and connect them; first remove what killed test runs have left."""
        missing = why_no_network()
        if missing:
            raise NetworkUnavailable(missing)
        remove_strays()
        try:
            for namespace in self._namespaces:
                run("ip", "netns", "add", namespace)
            ports = []
            for host in self.everyone:
                ports.append(f"link add {host._port} type veth peer name eth0 netns {host.namespace}")
                ports.append(f"link set {host._port} master br0 up")
            ip_batch(self._hub, "link add br0 type bridge", "link set br0 up", *ports)
            for host in self.everyone:
                address = f"addr add {host.address}/24 dev eth0"
                ip_batch(host.namespace, "link set lo up", address, "link set eth0 up")
            # What the faults need of the kernel; there is nothing yet that they could disturb.
            run(*inside(self._hub), "nft", "add table bridge probe; delete table bridge probe")
            with self.main.limited(1_000_000):
                pass
        except OSError as error:
            raise NetworkUnavailable(f"network namespaces cannot be made here: {error}") from error

    def processes(self) -> list[Any]:
        """Return all processes on main and on the hosts."""
        return [process for host in self.everyone for process in host.processes()]

    def faults(self) -> list[str]:
        """Return what is not as it was at the start: ports, firewalls and limits, a line each."""
        found = []
        for namespace in self._namespaces:
            for device in json.loads(run("ip", "-n", namespace, "-json", "link", "show")):
                name = device["ifname"]
                if name == "lo":
                    continue
                if "UP" not in device["flags"]:
                    found.append(f"{namespace}: {name} is down")
                if device.get("master", "br0") != "br0":
                    found.append(f"{namespace}: {name} is on {device['master']}")
                if device["qdisc"] != "noqueue":
                    found.append(f"{namespace}: {name} has {device['qdisc']}")
            tables = run(*inside(namespace), "nft", "list", "tables").splitlines()
            found += [f"{namespace}: {table}" for table in tables]
        return found

    def close(self) -> None:
        """End all processes in the namespaces and remove them. May be called more than once."""
        for host in self.everyone:
            host.close()
        remove_namespace(self._hub)


def why_no_network() -> str:
    """Say what this machine or user lacks to make networks; "" if nothing that can be seen from outside."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are a thing of Linux"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            return f"the program '{program}' is missing (on Debian and Ubuntu in the package {package})"
    if not os.path.exists("/dev/net/tun"):
        return "/dev/net/tun is missing, which slow links are made with"
    return ""


@contextlib.contextmanager
def network_or_skip(num_hosts: int = 3) -> Iterator[Network]:
    """Within, there is a network; where there cannot be one, the test is skipped and the reason shown."""
    network = Network(num_hosts)
    try:
        network.__enter__()
    except NetworkUnavailable as reason:
        pytest.skip(str(reason))
    with contextlib.closing(network):
        yield network
