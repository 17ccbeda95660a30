"""Workers and the main process are killed, frozen and starved; the job ends right, or leaves nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import applier
from applier import ApplierControls, ApplierReturn, ConcurrencyStyle, FilenameAssociations, OtherInputs
from computemanager.errors import PoisonBlockError
from computemanager.model import Job
from computemanager.subproc import SubprocManager

psutil = pytest.importorskip("psutil", reason="finding and watching processes needs psutil (extra 'test')")

pytestmark = [
    pytest.mark.skipif(
        os.name != "posix", reason="kills processes by signals, which only POSIX systems have"
    ),
    pytest.mark.filterwarnings("ignore::applier.concurrency.ConcurrencyWarning"),
]

ROWS, COLS, WINDOW = 500, 400, 25
BLOCKS = (ROWS // WINDOW) * (COLS // WINDOW)


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a raster of two bands of noise, 320 blocks."""
    import rasterio

    path = tmp_path_factory.mktemp("chaos") / "in.tif"
    pixels = np.random.default_rng(1).integers(0, 10_000, (2, ROWS, COLS), np.uint16)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=ROWS,
        width=COLS,
        count=2,
        dtype="uint16",
        crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as dataset:
        dataset.write(pixels)
    return path


@pytest.fixture(scope="module")
def pixels(raster: Path) -> Any:
    """Return its pixels."""
    import rasterio

    with rasterio.open(raster) as dataset:
        return dataset.read()


@pytest.fixture(scope="module")
def undisturbed(raster: Path) -> bytes:
    """Return the output file of a job in which nothing happens."""
    out = raster.parent / "undisturbed.tif"
    run(double, raster, out, kind="CW_NONE", workers=0)
    return out.read_bytes()


def double(info: Any, inputs: Any, outputs: Any) -> None:
    outputs.out = inputs.img * 2


def run(
    function: Callable[..., None],
    raster: Path,
    out: Path | None,
    other: Any = None,
    *,
    kind: str = "CW_SUBPROC",
    workers: int = 2,
    readers: int = 0,
) -> ApplierReturn:
    infiles, outfiles = FilenameAssociations(), FilenameAssociations()
    infiles.img = raster
    if out is not None:
        outfiles.out = out
    controls = ApplierControls()
    controls.setWindowSize(WINDOW, WINDOW)
    controls.setConcurrencyStyle(
        ConcurrencyStyle(numComputeWorkers=workers, computeWorkerKind=kind, numReadWorkers=readers)
    )
    return applier.apply(function, infiles, outfiles, other, controls=controls)


def wait_until(condition: Callable[[], Any], patience_s: float = 20.0) -> Any:
    """Poll until a condition holds; its value."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not come about within {patience_s} s"
        time.sleep(0.01)
    return value


def workers_of(pid: int) -> list[Any]:
    """The worker processes of a main process, oldest first."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children()
        return [child for child in children if "computemanager.slot" in " ".join(command_of(child))]
    return []


def command_of(process: Any) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


# -- workers that die, while main goes on ----------------------------------------------------------------


@contextlib.contextmanager
def disturber(action: Callable[[random.Random], None], seed: int) -> Iterator[list[BaseException]]:
    """Within, a thread does something to the workers again and again, at random moments."""
    stop = threading.Event()
    chance = random.Random(seed)
    failures: list[BaseException] = []

    def disturb() -> None:
        try:
            while not stop.wait(chance.uniform(0.02, 0.4)):
                action(chance)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield failures
    finally:
        stop.set()
        thread.join()
    assert not failures


def slow_sum(info: Any, inputs: Any, outputs: Any, other: Any) -> None:
    """Takes a few milliseconds; counts blocks and pixels."""
    time.sleep(0.006)
    other.blocks += 1
    other.total += int(inputs.img.sum(dtype=np.int64))
    outputs.out = inputs.img * 2


@pytest.mark.parametrize("readers", [0, 1], ids=["workers read", "main reads"])
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(
    seed: int, readers: int, raster: Path, pixels: Any, undisturbed: bytes, tmp_path: Path
) -> None:
    killed: list[int] = []
    left = 0

    def kill_one(chance: random.Random) -> None:
        nonlocal left
        workers = workers_of(os.getpid())
        if workers and left:
            left -= 1
            victim = chance.choice(workers)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                killed.append(victim.pid)

    # Three a run: four that end one after another before they have done anything end the job, rightly.
    for attempt in range(2):
        left = 3
        out = tmp_path / f"{attempt}.tif"
        with disturber(kill_one, seed + 10 * attempt):
            returned = run(slow_sum, raster, out, OtherInputs(blocks=0, total=0), readers=readers)
        assert out.read_bytes() == undisturbed
        assert sum(copy.blocks for copy in returned.otherArgsList) == BLOCKS
        assert sum(copy.total for copy in returned.otherArgsList) == pixels.sum(dtype=np.int64)
        assert returned.blocks == BLOCKS
    assert len(killed) >= 3


WAYS_TO_DIE: dict[str, Callable[[], Any]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda: os._exit(3),
    "crash": lambda: __import__("ctypes").string_at(0),
    "abort": lambda: os.abort(),
}


@pytest.mark.parametrize("way", WAYS_TO_DIE)
def test_a_block_that_ends_its_worker_once(
    way: str, raster: Path, pixels: Any, undisturbed: bytes, tmp_path: Path
) -> None:
    markers = tmp_path / "markers"
    markers.mkdir()
    die = WAYS_TO_DIE[way]

    def dies_once_on_some(info: Any, inputs: Any, outputs: Any, other: Any) -> None:
        column, row = info.getBlockCount()
        other.blocks += 1  # before: this must not be counted
        other.total += int(inputs.img.sum(dtype=np.int64))
        if (column, row) in {(0, 0), (7, 9), (15, 19)}:
            with contextlib.suppress(FileExistsError):
                (markers / f"{column}-{row}").touch(exist_ok=False)
                die()
        outputs.out = inputs.img * 2

    started = time.monotonic()
    returned = run(dies_once_on_some, raster, tmp_path / "out.tif", OtherInputs(blocks=0, total=0))
    assert time.monotonic() - started < 30
    assert len(list(markers.iterdir())) == 3
    assert (tmp_path / "out.tif").read_bytes() == undisturbed
    assert returned.retries >= 3
    assert sum(copy.blocks for copy in returned.otherArgsList) == BLOCKS
    assert sum(copy.total for copy in returned.otherArgsList) == pixels.sum(dtype=np.int64)


@pytest.mark.parametrize(
    ("way", "evidence"),
    [("SIGKILL", "SIGKILL"), ("exit", "exited with code 3"), ("crash", "SIGSEGV"), ("abort", "SIGABRT")],
)
def test_a_block_that_always_ends_its_worker(way: str, evidence: str, raster: Path, tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"
    attempts.mkdir()
    die = WAYS_TO_DIE[way]

    def poisonous(info: Any, inputs: Any, outputs: Any) -> None:
        if info.getBlockCount() == (5, 3):
            sys.stderr.write("the last words\n")
            sys.stderr.flush()
            (attempts / f"{os.getpid()}").touch()
            die()
        outputs.out = inputs.img * 2

    out = tmp_path / "out.tif"
    out.write_bytes(b"older")
    with pytest.raises(PoisonBlockError) as caught:
        run(poisonous, raster, out)
    error, text = caught.value, str(caught.value)
    assert (error.block_index, error.attempts) == (3 * (COLS // WINDOW) + 5, 3)
    assert len(list(attempts.iterdir())) == 3
    assert evidence in error.evidence and evidence in text and "the last words" in text
    assert "poisonous" in text and "block 53 (block row 3, block column 5" in text
    assert "rows 75 to 99, columns 125 to 149" in text
    assert "applier.run_block(" in text and f"block={error.block_index})" in text
    assert "peak memory" in text and " MB" in text
    assert out.read_bytes() == b"older"


def test_a_frozen_worker_is_waited_for(raster: Path, undisturbed: bytes, tmp_path: Path) -> None:
    """Stopped and continued, one after the other: nothing is lost or done twice."""
    stopped: list[int] = []

    def stop_one(chance: random.Random) -> None:
        workers = workers_of(os.getpid())
        if workers and len(stopped) < 3:
            victim = chance.choice(workers)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.suspend()
                stopped.append(victim.pid)
                time.sleep(1.0 if len(stopped) == 1 else 0.2)
                victim.resume()

    with disturber(stop_one, 5):
        returned = run(slow_sum, raster, tmp_path / "out.tif", OtherInputs(blocks=0, total=0))
    assert stopped
    assert (tmp_path / "out.tif").read_bytes() == undisturbed
    assert sum(copy.blocks for copy in returned.otherArgsList) == BLOCKS and returned.retries == 0


def test_no_shared_memory(
    raster: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no slab can be allocated, arrays go through the socket."""
    refused: list[int] = []

    def full(descriptor: int, offset: int, length: int) -> None:
        refused.append(length)
        raise OSError(28, "No space left on device")

    def big_blocks(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img * 2

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    infiles, outfiles = FilenameAssociations(), FilenameAssociations()
    infiles.img, outfiles.out = raster, tmp_path / "out.tif"
    controls = ApplierControls()
    controls.setWindowSize(COLS, 125)  # 200,000 bytes: enough for a slab
    controls.setConcurrencyStyle(
        ConcurrencyStyle(numComputeWorkers=2, computeWorkerKind="CW_SUBPROC", numReadWorkers=1)
    )
    applier.apply(big_blocks, infiles, outfiles, controls=controls)
    assert refused  # main tried; the workers' slabs are tested with a full file system below
    import rasterio

    with rasterio.open(outfiles.out) as dataset, rasterio.open(raster) as source:
        assert np.array_equal(dataset.read(), source.read() * 2)


# -- main in a process of its own ------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
from pathlib import Path
import applier

folder = Path(sys.argv[1])

def slow(info, inputs, outputs):
    (folder / "started" / str(os.getpid())).touch()
    time.sleep(float(os.environ.get("BLOCK_S", "0.02")))
    outputs.out = inputs.img * 2

infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
infiles.img, outfiles.out = str(folder / "in.tif"), os.environ.get("OUT", str(folder / "out.tif"))
controls = applier.ApplierControls()
controls.setWindowSize(25, 25)
controls.setConcurrencyStyle(applier.ConcurrencyStyle(
    numComputeWorkers=int(os.environ.get("WORKERS", "2")),
    computeWorkerKind=os.environ.get("KIND", "CW_SUBPROC"),
    numReadWorkers=int(os.environ.get("READERS", "0"))))
applier.apply(slow, infiles, outfiles, controls=controls)
sys.stderr.write("done\\n")
"""


class Main:
    """A script under way in a process of its own."""

    def __init__(
        self, folder: Path, raster: Path, command: list[str] | None = None, **environment: str
    ) -> None:
        (folder / "started").mkdir()
        (folder / "in.tif").write_bytes(raster.read_bytes())
        (folder / "script.py").write_text(SCRIPT)
        self.folder = folder
        self.process = subprocess.Popen(
            [*(command or []), sys.executable, "-W", "ignore", str(folder / "script.py"), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **environment},
        )

    def wait_for_blocks(self) -> list[Any]:
        """Wait until two workers compute; they."""
        wait_until(
            lambda: len(list((self.folder / "started").iterdir())) == 2 or self.process.poll() is not None
        )
        assert self.process.poll() is None, self.process.communicate()
        workers = workers_of(self.process.pid)
        assert len(workers) == 2 and run_directories(self.process.pid)
        wait_until(lambda: list(self.folder.glob(".*.partial")))
        return workers

    def end(self) -> tuple[int, str]:
        """Exit code and what it wrote on stderr."""
        errors = self.process.communicate(timeout=30)[1].decode()
        return self.process.returncode, errors

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def run_directories(pid: int) -> list[Path]:
    import tempfile

    parents = {Path("/dev/shm"), Path(tempfile.gettempdir()), Path("/tmp")}
    return [path for parent in parents for path in parent.glob(f"computemanager-{pid}-*")]


def alive(processes: list[Any]) -> list[Any]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def main(tmp_path: Path, raster: Path) -> Iterator[Callable[..., Main]]:
    """Return a function that starts a main process, which is ended after the test in any case."""
    started: list[Main] = []

    def start(command: list[str] | None = None, **environment: str) -> Main:
        started.append(Main(tmp_path, raster, command, **environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


def nothing_left_of(main: Main, workers: list[Any]) -> None:
    wait_until(lambda: not alive(workers), 5.0)
    wait_until(lambda: not run_directories(main.process.pid), 5.0)
    assert not list(main.folder.glob(".*")) and not (main.folder / "out.tif").exists()


@pytest.mark.parametrize("readers", ["0", "2"])
def test_sigterm_to_main(readers: str, main: Callable[..., Main]) -> None:
    job = main(READERS=readers)
    workers = job.wait_for_blocks()
    job.process.send_signal(signal.SIGTERM)
    code, _ = job.end()
    assert code == -signal.SIGTERM
    nothing_left_of(job, workers)


def test_sigterm_twice(main: Callable[..., Main]) -> None:
    job = main(BLOCK_S="30")
    workers = wait_for_first_blocks(job)
    job.process.send_signal(signal.SIGTERM)
    job.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    code, _ = job.end()
    assert code == -signal.SIGTERM and time.monotonic() - started < 10  # blocks of 30 s are not waited for
    nothing_left_of(job, workers)


def wait_for_first_blocks(job: Main) -> list[Any]:
    wait_until(lambda: len(list((job.folder / "started").iterdir())) == 2)
    return workers_of(job.process.pid)


@pytest.mark.parametrize("readers", ["0", "2"])
def test_ctrl_c(readers: str, main: Callable[..., Main]) -> None:
    job = main(READERS=readers)
    workers = job.wait_for_blocks()
    os.killpg(job.process.pid, signal.SIGINT)  # as the terminal does it
    code, errors = job.end()
    assert code in (-signal.SIGINT, 130) and "KeyboardInterrupt" in errors
    nothing_left_of(job, workers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(("kind", "workers", "readers"), [("CW_NONE", "0", "2"), ("CW_THREADS", "2", "1")])
def test_signals_without_worker_processes(
    kind: str, workers: str, readers: str, number: int, main: Callable[..., Main]
) -> None:
    job = main(KIND=kind, WORKERS=workers, READERS=readers)
    wait_until(lambda: list(job.folder.glob(".*.partial")))
    job.process.send_signal(number)
    code, _ = job.end()
    assert code in (-number, 128 + number)
    nothing_left_of(job, [])


def test_signals_at_any_moment(
    main: Callable[..., Main], raster: Path, tmp_path: Path, undisturbed: bytes
) -> None:
    """While Python starts, plans, starts workers, computes, finishes: all is written, or nothing is left."""
    chance = random.Random(3)
    started = time.monotonic()
    folders = [tmp_path / f"{number}" for number in range(11)]
    for folder in folders:
        folder.mkdir()
    job = Main(folders[0], raster, BLOCK_S="0.001")
    assert job.end()[0] == 0
    usual_s = time.monotonic() - started
    codes = []
    for number, folder in enumerate(folders[1:]):
        job = Main(folder, raster, BLOCK_S="0.001")
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(chance.uniform(0.1, usual_s))
            workers = workers_of(job.process.pid)
            job.process.send_signal((signal.SIGTERM, signal.SIGINT)[number % 2])
            codes.append(job.end()[0])
        finally:
            job.close()
        if (folder / "out.tif").exists():
            assert (folder / "out.tif").read_bytes() == undisturbed
            (folder / "out.tif").unlink()
        nothing_left_of(job, workers)
    assert any(codes)


@pytest.mark.leaves("partial")
def test_main_is_killed(main: Callable[..., Main]) -> None:
    """The workers notice, end, and remove the run's directory."""
    job = main()
    workers = job.wait_for_blocks()
    job.process.kill()
    job.end()
    wait_until(lambda: not alive(workers), 5.0)
    wait_until(lambda: not run_directories(job.process.pid), 5.0)
    assert not (job.folder / "out.tif").exists()


@pytest.mark.leaves("partial")
def test_main_and_workers_are_killed(main: Callable[..., Main], raster: Path) -> None:
    """Nobody is left to clean up: the next run does it, once the directory is old enough."""
    job = main()
    workers = job.wait_for_blocks()
    job.process.send_signal(signal.SIGSTOP)  # or it would start others in their place
    for one in workers:
        one.kill()
    job.process.kill()
    job.end()
    wait_until(lambda: not alive(workers), 5.0)
    (stray,) = run_directories(job.process.pid)
    os.utime(stray, (time.time() - 3600, time.time() - 3600))
    list(SubprocManager().run(Job(abs), [-1]))
    assert not stray.exists()


@pytest.mark.parametrize("blocked_s", [1.0])
def test_output_that_is_not_read_for_a_while(
    blocked_s: float, tmp_path: Path, raster: Path, undisturbed: bytes
) -> None:
    """Main waits as any program whose output is blocked; the workers go on, and so does main afterwards."""
    script = tmp_path / "loud.py"
    script.write_text(
        SCRIPT.replace(
            "def slow(info, inputs, outputs):", "def slow(info, inputs, outputs):\n    print('x' * 5000)"
        )
    )
    (tmp_path / "started").mkdir()
    (tmp_path / "in.tif").write_bytes(raster.read_bytes())
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "BLOCK_S": "0"},
    )
    try:
        # The pipe holds about 64 kB of 1.6 MB, so that main is stuck in a write soon.
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING)
        time.sleep(blocked_s)
        assert process.poll() is None and not (tmp_path / "out.tif").exists()
        out, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors.decode()
    assert out.decode().split() == ["x" * 5000] * BLOCKS
    assert (tmp_path / "out.tif").read_bytes() == undisturbed


# -- no room ---------------------------------------------------------------------------------------------


def in_mounts(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script with mounts of its own, or skip where that is not permitted."""
    prefix = ["unshare", "--mount", "--propagation", "private"]
    try:
        probe = subprocess.run(
            [*prefix, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("needs the program unshare, which makes mounts of a process's own (Linux)")
    if probe.returncode:
        pytest.skip(f"mounts are not permitted here: {probe.stderr.decode().strip()}")
    return subprocess.run(
        [*prefix, "sh", "-ec", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )


def test_disk_full(tmp_path: Path, raster: Path) -> None:
    """The output does not fit: a clear error, nothing left, the older file untouched."""
    (tmp_path / "started").mkdir()
    (tmp_path / "small").mkdir()
    (tmp_path / "in.tif").write_bytes(raster.read_bytes())
    (tmp_path / "script.py").write_text(SCRIPT)
    result = in_mounts(
        f"""
        mount -t tmpfs -o size=200k tmpfs {tmp_path}/small
        echo older > {tmp_path}/small/out.tif
        export OUT={tmp_path}/small/out.tif BLOCK_S=0
        {sys.executable} -W ignore {tmp_path}/script.py {tmp_path} || echo "exit code $?"
        echo "left: $(ls -A {tmp_path}/small) $(cat {tmp_path}/small/out.tif)"
        """,
        tmp_path,
    )
    assert "exit code 1" in result.stdout and "left: out.tif older" in result.stdout
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("applier.errors.FileOpenError: ")
    assert "out.tif" in last and "No space left" in last and "Make room" in last


def test_file_size_limit(tmp_path: Path, raster: Path) -> None:
    """The same on systems without such mounts: files may have 300 kB at the most."""
    resource = pytest.importorskip("resource")
    (tmp_path / "started").mkdir()
    (tmp_path / "in.tif").write_bytes(raster.read_bytes())
    (tmp_path / "script.py").write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), str(tmp_path)],
        env={**os.environ, "BLOCK_S": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("applier.errors.FileOpenError: ") and "out.tif" in last and "Make room" in last
    assert not (tmp_path / "out.tif").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("free", ["some", "none"])
@pytest.mark.parametrize("readers", ["0", "1"])
@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="this system has no /dev/shm")
def test_shared_memory_full(
    free: str, readers: str, tmp_path: Path, raster: Path, undisturbed: bytes
) -> None:
    """A container's /dev/shm may be small, and full of what others keep there."""
    (tmp_path / "started").mkdir()
    (tmp_path / "in.tif").write_bytes(raster.read_bytes())
    (tmp_path / "script.py").write_text(SCRIPT.replace("setWindowSize(25, 25)", "setWindowSize(400, 125)"))
    fill = "dd if=/dev/zero of=/dev/shm/others bs=4k 2>/dev/null || true" if free == "none" else ":"
    result = in_mounts(
        f"""
        mount -t tmpfs -o size=300k tmpfs /dev/shm
        {fill}
        export BLOCK_S=0 READERS={readers}
        {sys.executable} -W ignore {tmp_path}/script.py {tmp_path}
        echo "left: $(ls -A /dev/shm)"
        """,
        tmp_path,
    )
    assert result.returncode == 0 and result.stderr == "done\n", result.stderr
    assert result.stdout == ("left: \n" if free == "some" else "left: others\n")
    import rasterio

    with rasterio.open(tmp_path / "out.tif") as dataset, rasterio.open(raster) as source:
        assert np.array_equal(dataset.read(), source.read() * 2)
