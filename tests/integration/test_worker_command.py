"""The command ``computemanager worker`` at a real socket: who is let in, and how those that are not end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from computemanager import hello
from computemanager.hello import Hello
from computemanager.transport import Listening, MainSocket

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ends workers by a signal")

PATIENCE_S = 30.0
ADDRESS, SERVER_KEY, CLIENT_KEY = (
    f"COMPUTEMANAGER_{name}" for name in ("ADDRESS", "SERVER_KEY", "CLIENT_KEY")
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def main() -> Iterator[MainSocket]:
    """Return main's socket, which says nothing by itself."""
    socket = MainSocket(Listening("127.0.0.1", grace_s=3.0))
    try:
        yield socket
    finally:
        socket.close()


@pytest.fixture
def start(main: MainSocket) -> Iterator[Start]:
    """Return a function that starts the command with main's join details, or others."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "computemanager.worker", "--grace", "3", *words]
        started.append(
            subprocess.Popen(
                command,
                env={**os.environ, **main.environment, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield run
    for worker in started:
        worker.kill()
        worker.communicate()


def greeted(main: MainSocket, number: int = 1) -> list[tuple[bytes, Hello]]:
    """The hellos of so many workers, each once."""
    found: dict[bytes, Hello] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < number:
        assert time.monotonic() < deadline, found
        for sender, frames in main.receive(0.05):
            assert bytes(frames[0]) == hello.HELLO
            found[sender] = Hello.decode(frames[1])
    return list(found.items())


def ended(worker: subprocess.Popen[str], main: MainSocket) -> str:
    """Let main do its work until a worker has ended; what it wrote on stderr."""
    deadline = time.monotonic() + PATIENCE_S
    while worker.poll() is None:
        assert time.monotonic() < deadline
        main.receive(0.02)
    output, errors = worker.communicate()
    assert not output
    return errors


def test_it_says_who_it_is(main: MainSocket, start: Start) -> None:
    start("--slots", "3", "--max-runtime", "1000", "--name", "by hand", COMPUTEMANAGER_IMAGE="image:1")
    ((sender, said),) = greeted(main)
    here = Hello.of_this_process("by hand", said.token, 3)
    assert said._replace(ends_in_s=None) == here._replace(environment="image:1")
    assert sender == b"a" + said.token.to_bytes(8, "big")
    assert said.ends_in_s is not None and 900 < said.ends_in_s <= 1000


def test_as_many_slots_as_processors(main: MainSocket, start: Start) -> None:
    start("--slots", "auto", COMPUTEMANAGER_WORKER="from its provider")
    ((_, said),) = greeted(main)
    assert said.name == "from its provider"
    assert said.slots == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def test_workers_without_a_name_have_one_of_their_own(main: MainSocket, start: Start) -> None:
    """The process's number alone would be the same in many a container."""
    start()
    start()
    names = {said.name for _, said in greeted(main, 2)}
    assert len(names) == 2
    assert all(name.startswith(os.uname().nodename[:200]) for name in names)


def test_a_worker_with_another_key(main: MainSocket, start: Start) -> None:
    other = MainSocket(Listening("127.0.0.1"))
    try:
        worker = start(COMPUTEMANAGER_CLIENT_KEY=other.environment[CLIENT_KEY])
    finally:
        other.close()
    errors = ended(worker, main)
    assert worker.returncode == 3 and main.refused == 1
    assert errors == (
        "computemanager worker: main does not let this agent in: it has the key of another job\n"
    )


@pytest.mark.parametrize("wrong", ["key", "port"])
def test_a_worker_that_does_not_reach_its_main(wrong: str, main: MainSocket, start: Start) -> None:
    """A key of another main, or nobody there: it gives up, with what to look at."""
    other = MainSocket(Listening("127.0.0.1"))
    changed = {"key": SERVER_KEY, "port": ADDRESS}[wrong]
    details = {changed: other.environment[changed]}
    other.close()
    worker = start("--join-timeout", "1.5", **details)
    errors = ended(worker, main)
    assert worker.returncode == 4
    assert (
        f"main could not be reached at {details.get(ADDRESS, main.environment[ADDRESS])} for 1.5 s" in errors
    )
    assert "firewall" in errors


def test_a_worker_that_is_refused(main: MainSocket, start: Start) -> None:
    """It passes on why: its log is where users look first."""
    worker = start()
    ((sender, _),) = greeted(main)
    main.send(sender, [hello.REFUSED, "you have the wrong versions: äöü".encode()])
    errors = ended(worker, main)
    assert worker.returncode == 3
    assert errors == "computemanager worker: you have the wrong versions: äöü\n"


def test_a_worker_that_main_has_left(main: MainSocket, start: Start) -> None:
    """After the grace it ends, whatever the job's state was."""
    worker = start("--grace", "1")
    ((sender, _),) = greeted(main)
    main.send(sender, [hello.WELCOME, b'{"block_timeout_s": null}'])
    deadline = time.monotonic() + PATIENCE_S
    while not main.receive(0.05):  # the first packet of its session, or one more hello
        assert time.monotonic() < deadline
    time.sleep(0.2)
    main.close()
    _, errors = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 4
    assert "main has been out of reach for 1 s; this agent ends" in errors


def test_a_worker_that_is_asked_to_end_before_it_was_let_in(main: MainSocket, start: Start) -> None:
    worker = start()
    greeted(main)
    worker.send_signal(signal.SIGTERM)
    errors = ended(worker, main)
    assert (worker.returncode, errors) == (0, "")


def test_a_worker_whose_slots_cannot_start(main: MainSocket, start: Start, tmp_path: Path) -> None:
    """It says how they ended, also where main has not let it in."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'COMPUTEMANAGER_DIRECTORY' in os.environ:\n"
        "    sys.stderr.write('no licence for this machine\\n')\n"
        "    os._exit(9)\n"
    )
    worker = start(PYTHONPATH=str(tmp_path))
    errors = ended(worker, main)
    assert worker.returncode == 1
    assert "its slots end before they can work: it exited with code 9" in errors
    assert "no licence for this machine" in errors


def test_workers_that_are_killed_while_their_slots_start(main: MainSocket, start: Start) -> None:
    """Their slots remove what they were about to use."""
    workers = [start().pid for _ in range(8)]
    greeted(main, len(workers))
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    parents = {Path("/dev/shm"), Path(tempfile.gettempdir()), Path("/tmp")}
    deadline = time.monotonic() + PATIENCE_S
    while left := [
        path for pid in workers for parent in parents for path in parent.glob(f"computemanager-{pid}-*")
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_the_keys_are_not_passed_on(main: MainSocket, start: Start, tmp_path: Path) -> None:
    """Neither on its command line, nor in the environment of its slots, nor in that of what they start."""
    psutil = pytest.importorskip("psutil", reason="looking at processes needs psutil (extra 'test')")
    worker = start("--slots", "2")
    greeted(main)
    process = psutil.Process(worker.pid)
    deadline = time.monotonic() + PATIENCE_S
    while len(slots := [one for one in process.children() if "slot" in " ".join(one.cmdline())]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    secret = main.environment[CLIENT_KEY]
    for one in (process, *slots):
        assert secret not in " ".join(one.cmdline())
    for slot in slots:
        assert secret not in "".join(slot.environ().values())
        assert not {SERVER_KEY, CLIENT_KEY} & set(slot.environ())
