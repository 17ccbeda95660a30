"""What worker processes are given, and the ways that other systems than this one take."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from computemanager import Job, Settings, WorkersLostError, hub, manager_class, processes, transport
from computemanager.errors import PayloadError, PoisonBlockError
from computemanager.hub import THREAD_VARIABLES


def run(function: Any, blocks: Any, **settings: Any) -> list[Any]:
    manager = manager_class("CW_SUBPROC")(Settings(**{"num_workers": 2, **settings}))
    return [np.array(outcome.value) for outcome in manager.run(Job(function, name="the job"), blocks)]


def environment(block: Any) -> list[str]:
    import os

    return [os.environ.get(name, "not set") for name in block]


def test_workers_get_one_thread_each_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    (values,) = run(environment, [THREAD_VARIABLES])
    expected = ["7" if name == "MKL_NUM_THREADS" else "1" for name in THREAD_VARIABLES]
    assert values.tolist() == expected
    (values,) = run(
        environment, [["OMP_NUM_THREADS", "FOO"]], threads_per_worker=3, worker_environment={"FOO": "x"}
    )
    assert values.tolist() == ["3", "x"]


def test_the_thread_limit_is_there_before_numpy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that reads it when it is loaded has read it: OpenBLAS tells how many threads it made."""
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="tells how many threads a library has")
    assert threadpoolctl

    def threads(block: Any) -> int:
        import numpy
        import threadpoolctl

        numpy.ones((200, 200)) @ numpy.ones((200, 200))
        return max([each["num_threads"] for each in threadpoolctl.threadpool_info()], default=1)

    assert run(threads, [0]) == [1]


def test_workers_find_modules_where_the_caller_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("VALUE = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def look(block: Any) -> int:
        import only_here

        return int(only_here.VALUE)

    assert run(look, [0]) == [42]


# -- systems without socket files, fallocate, wait4 ----------------------------------------------------


def test_loopback_tcp_where_there_are_no_socket_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.zmq, "has", lambda what: False)
    made: list[str] = []
    listen = transport.MainSocket._listen

    def seen(self: Any, listening: Any) -> Any:
        environment = listen(self, listening)
        made.append(environment["COMPUTEMANAGER_ADDRESS"])
        return environment

    monkeypatch.setattr(transport.MainSocket, "_listen", seen)
    blocks = [np.full(300_000, number, np.uint8) for number in range(20)]
    values = run(lambda block: block + 1, (block.copy() for block in blocks))
    assert all((value == block + 1).all() for value, block in zip(values, blocks, strict=True))
    assert len(made) == 1 and made[0].startswith("tcp://127.0.0.1:")


def test_a_stranger_on_loopback_gets_nowhere() -> None:
    """Without the server's key, which only workers are told, nothing reaches main."""
    zmq = transport.zmq
    main = transport.MainSocket(transport.Listening("127.0.0.1"))
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.linger = 0
    try:
        stranger.connect(main.environment["COMPUTEMANAGER_ADDRESS"])
        stranger.send_multipart([b"hello", b"{}"])
        assert main.receive(0.5) == []
        worker = transport.WorkerSocket(main.environment, "w")
        worker.send([b"hello", b"{}"])
        received: list[Any] = []
        while not received:
            received = main.receive(1.0)
        assert [name for name, _ in received] == [b"w"]
        worker.close()
    finally:
        stranger.close()
        context.term()
        main.close()


def test_slabs_without_fallocate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    values = run(lambda block: int(block.sum()), (np.ones(200_000, np.uint8) for _ in range(10)))
    assert values == [200_000] * 10


def test_deaths_are_seen_without_wait4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "wait4")

    def die(block: int) -> None:
        import os

        os._exit(5)

    with pytest.raises(Exception, match="code 5"):
        run(die, range(2))


def test_evidence_names_signal_and_code() -> None:
    assert processes._how_it_ended(3) == "it exited with code 3"
    assert "SIGKILL" in processes._how_it_ended(-9) and "memory ran out" in processes._how_it_ended(-9)
    assert "SIGSEGV (a crash in compiled code)" in processes._how_it_ended(-11)
    assert "signal 250" in processes._how_it_ended(-250)


def test_the_peak_of_a_dead_worker_is_not_that_of_main() -> None:
    assert processes._peak_in_words(900e6, 200e6) == ", peak memory 900 MB"
    assert processes._peak_in_words(200e6, 200e6) == ", peak memory at most 200 MB"
    assert processes._peak_in_words(None, 0) == ""

    def take_much_and_die(block: int) -> None:
        import os

        kept = bytearray(600_000_000)
        kept[::4096] = bytes([1]) * len(kept[::4096])
        os._exit(9)

    with pytest.raises(PoisonBlockError) as caught:
        run(take_much_and_die, [0], num_workers=1)
    found = re.search(r"peak memory (at most )?(\d+) MB", caught.value.evidence)
    if hasattr(os, "wait4"):
        assert found and int(found[2]) >= 600


# -- workers that cannot start -------------------------------------------------------------------------


def test_an_interpreter_that_does_not_know_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(WorkersLostError, match=r"sys\.executable is empty.*CW_THREADS"):
        run(abs, [1])


def test_a_prefix_that_is_no_program_is_named() -> None:
    settings = Settings(extra_params={"prefixes": [["no-such-program"]], "address": "127.0.0.1"})
    with pytest.raises(WorkersLostError, match="cannot be started.*The command was 'no-such-program'"):
        list(manager_class("CW_AGENTS")(settings).run(Job(abs), range(3)))


def test_workers_that_end_at_once_are_shown_with_their_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    command = hub.python_command("sys.exit('no licence for this machine')", {})
    monkeypatch.setattr(hub, "python_command", lambda *_: command)
    with pytest.raises(WorkersLostError, match="exited with code 1") as caught:
        run(abs, [1])
    assert "no licence for this machine" in str(caught.value)


def test_a_job_that_cannot_be_unpickled_there_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks_in_workers.py").write_text(
        "import os\n"
        "if 'COMPUTEMANAGER_WORKER' in os.environ: raise RuntimeError('no display here')\n"
        "def work(block): return block\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import breaks_in_workers  # type: ignore[import-not-found]

    with pytest.raises(PayloadError, match="the job cannot be unpickled in worker slot-") as caught:
        run(breaks_in_workers.work, range(3))
    assert "no display here" in str(caught.value) and "breaks_in_workers.py" in str(caught.value)
