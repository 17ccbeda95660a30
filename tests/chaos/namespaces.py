"""Linux network namespaces: whose they are, what runs in them, and how to get in.

The name of a namespace holds the number and the starting time of the process that made it, so that what a
killed test run has left can be told from what is in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

psutil = pytest.importorskip("psutil", reason="finding processes needs psutil (extra 'test')")

__all__ = [
    "NAMESPACES",
    "enter",
    "firewall",
    "inside",
    "ip_batch",
    "own_prefix",
    "processes_in",
    "remove_namespace",
    "remove_strays",
    "run",
    "wait_until",
]

Value = TypeVar("Value")

NAMESPACES = Path("/run/netns")
PREFIX = "cmtest"
CLONE_NEWNET = 0x40000000

_serial = itertools.count(1)


def run(*command: str, text: str | None = None) -> str:
    """Run a command of the system, give its output, or raise an error that holds what it said."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise OSError(
            f"{' '.join(command)!r} failed ({done.returncode}): {done.stderr.strip()}; input: {text}"
        )
    return done.stdout


def wait_until(condition: Callable[[], Value], patience_s: float = 20.0) -> Value:
    """Poll until a condition holds, and return what it gave."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come about within {patience_s} s: {condition}")
        time.sleep(0.01)
    return value


def started_at(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None if it is not there or only a zombie."""
    try:
        # The name of the program, in brackets, may hold anything; what is behind it is numbers.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def own_prefix() -> str:
    """Return the beginning of the names of a new group of namespaces of this process."""
    return f"{PREFIX}-{os.getpid()}-{started_at(os.getpid())}-{next(_serial)}"


def processes_in(namespace: str) -> list[Any]:
    """Return the processes in a namespace."""
    found = []
    with contextlib.suppress(OSError):
        wanted = os.stat(NAMESPACES / namespace)
        for process in psutil.process_iter():
            # A zombie is in no namespace any more.
            with contextlib.suppress(OSError):
                if os.path.samestat(wanted, os.stat(f"/proc/{process.pid}/ns/net")):
                    found.append(process)
    return found


def remove_namespace(name: str) -> None:
    """Kill what runs in a namespace and remove it."""

    def empty() -> bool:
        for process in (there := processes_in(name)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # again and again: it may have started others meanwhile
        return not there

    wait_until(empty)
    with contextlib.suppress(OSError):  # two test runs may clear up the same stray
        run("ip", "netns", "del", name)


def remove_strays() -> list[str]:
    """Remove the namespaces of processes that are no more, with all that runs in them; return their names."""
    strays = []
    for path in NAMESPACES.glob(f"{PREFIX}-*"):
        made_by = re.match(rf"{PREFIX}-(\d+)-(\d+)-", path.name)
        if made_by and started_at(int(made_by[1])) != int(made_by[2]):
            strays.append(path.name)
            remove_namespace(path.name)
    return strays


def inside(namespace: str) -> list[str]:
    """Return what to put before a command that is to run in a namespace, as the same process."""
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--"]


def enter(namespace: str) -> None:
    """Take the calling thread into a namespace, for good."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(NAMESPACES / namespace, os.O_RDONLY)
    try:
        if library.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def firewall(namespace: str, family: str, hook: str, rules: str) -> Iterator[None]:
    """Within, there are rules at a hook of a namespace, in a table of their own."""
    table = f"{family} fault{next(_serial)}"
    chain = f"chain rules {{ type filter hook {hook} priority 0; {rules}; }}"
    run(*inside(namespace), "nft", "-f", "-", text=f"table {table} {{ {chain}; }}\n")
    try:
        yield
    finally:
        run(*inside(namespace), "nft", "delete", "table", *table.split())


def ip_batch(namespace: str, *commands: str) -> None:
    """Run several commands of `ip` in a namespace, in one go."""
    run("ip", "-n", namespace, "-batch", "-", text="\n".join(commands))
