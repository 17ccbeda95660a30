"""The main process is killed again and again and started again; in the end nothing shows of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from computemanager.journal import WAITING_RECORDS

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="kills processes by signals, which only POSIX systems have"
)

ROUNDS = int(os.environ.get("COMPUTEMANAGER_ROUNDS", "1"))  # read before the fixture that hides it
KILLS = 10
ROWS, COLS, WINDOW = 500, 400, 25
BLOCKS = (ROWS // WINDOW) * (COLS // WINDOW)
WORKERS = 2
# Blocks that a worker may have finished or begun without main having taken its answer, and those in records
# that were about to be written.
ABOUT_TO_BE_WRITTEN = 1 + WAITING_RECORDS
MOST_LOST = {"CW_NONE": 1 + ABOUT_TO_BE_WRITTEN, "CW_SUBPROC": 8 * WORKERS + ABOUT_TO_BE_WRITTEN}

SCRIPT = """
import json, os, sys, time
from pathlib import Path
import numpy as np
import applier

folder = Path(os.environ["FOLDER"])

def adds_up(info, inputs, outputs, other):
    calls = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(calls, b"x")
    os.close(calls)
    time.sleep(0.004)
    other.blocks += 1
    other.total += int(inputs.img.sum(dtype=np.int64))
    outputs.out = inputs.img * 2

infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
infiles.img, outfiles.out = folder / "in.tif", folder / "out.tif"
controls = applier.ApplierControls()
controls.setWindowSize(25, 25)
controls.setProgress(None)
if os.environ.get("KEEP"):
    controls.setCheckpoint(folder / "kept")
kind = os.environ["KIND"]
controls.setConcurrencyStyle(applier.ConcurrencyStyle(
    numComputeWorkers=0 if kind == "CW_NONE" else 2, computeWorkerKind=kind))
other = applier.OtherInputs(blocks=0, total=0)
returned = applier.apply(adds_up, infiles, outfiles, other, controls=controls)
(folder / "report").write_text(json.dumps({
    "counted": sum(copy.blocks for copy in returned.otherArgsList),
    "total": sum(copy.total for copy in returned.otherArgsList),
    "blocks": returned.blocks,
    "kept": returned.blocksKept,
}))
"""


class Job:
    """The script in a folder of its own, to be started as often as need be."""

    def __init__(self, folder: Path) -> None:
        import rasterio

        self.folder = folder
        (folder / "script.py").write_text(SCRIPT)
        pixels = np.random.default_rng(11).integers(0, 10_000, (2, ROWS, COLS), np.uint16)
        self.total = int(pixels.sum(dtype=np.int64))
        profile = {"driver": "GTiff", "height": ROWS, "width": COLS, "count": 2, "dtype": "uint16"}
        transform = rasterio.Affine(10, 0, 0, 0, -10, 0)
        with rasterio.open(
            folder / "in.tif", "w", crs="EPSG:32633", transform=transform, **profile
        ) as dataset:
            dataset.write(pixels)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, kind: str, keep: bool = True) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "FOLDER": str(self.folder), "KIND": kind, "KEEP": "yes" if keep else ""}
        with open(self.folder / "errors", "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(self.folder / "script.py")],
                stderr=errors,
                start_new_session=True,
                env=environment,
            )
        self.processes.append(process)
        return process

    def finish(self, kind: str, keep: bool = True) -> dict[str, int]:
        """Run it to its end; its report."""
        process = self.start(kind, keep)
        assert process.wait(60) == 0, (self.folder / "errors").read_text()
        report: dict[str, int] = json.loads((self.folder / "report").read_text())
        return report

    def size(self) -> int:
        """Bytes that are kept."""
        try:
            return (self.folder / "kept" / "records").stat().st_size
        except FileNotFoundError:
            return 0

    def calls(self) -> int:
        """How often the function has been called, by whomever."""
        path = self.folder / "calls"
        return path.stat().st_size if path.exists() else 0

    def wait_for(self, process: subprocess.Popen[bytes], size: int) -> None:
        """Wait until so many bytes are kept, or the job is done."""
        deadline = time.monotonic() + 30
        while self.size() < size and process.poll() is None:
            assert time.monotonic() < deadline, (self.folder / "errors").read_text()
            time.sleep(0.0005)

    def end(self, process: subprocess.Popen[bytes], number: int) -> int:
        """Send the main process a signal; its exit code, when its workers have gone as well."""
        process.send_signal(number)
        code = process.wait(30)
        deadline = time.monotonic() + 20
        while run_directories(process.pid):
            assert time.monotonic() < deadline, "workers outlive the main process"
            time.sleep(0.005)
        return code

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def run_directories(pid: int) -> list[Path]:
    parents = {Path("/dev/shm"), Path(tempfile.gettempdir())}
    return [path for parent in parents for path in parent.glob(f"computemanager-{pid}-*")]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    made.close()


@pytest.fixture
def undisturbed(job: Job) -> bytes:
    """Return the output of a run without workers, checkpoint or trouble."""
    report = job.finish("CW_NONE", keep=False)
    assert report == {"counted": BLOCKS, "total": job.total, "blocks": BLOCKS, "kept": 0}
    found = (job.folder / "out.tif").read_bytes()
    (job.folder / "out.tif").unlink()
    (job.folder / "calls").unlink()
    return found


def is_as_undisturbed(job: Job, report: dict[str, int], undisturbed: bytes) -> None:
    assert (job.folder / "out.tif").read_bytes() == undisturbed
    assert report["counted"] == report["blocks"] == BLOCKS and report["total"] == job.total
    assert not (job.folder / "kept").exists() and not list(job.folder.glob(".*"))


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("kind", ["CW_SUBPROC", "CW_NONE"])
def test_killed_and_resumed(
    kind: str, seed: int, job: Job, undisturbed: bytes, record_property: Callable[[str, Any], None]
) -> None:
    chance = random.Random(seed)
    kills = 0
    size = 0
    while kills < KILLS:
        process = job.start(kind)
        # Some blocks further on (one is about 2600 bytes), or while it starts and looks at what is there.
        more = chance.choice([0, chance.randrange(60_000), chance.randrange(60_000)])
        job.wait_for(process, size + more)
        if not more:
            time.sleep(chance.uniform(0, 0.4))
        if process.poll() is not None:
            break
        kills += job.end(process, signal.SIGKILL) == -signal.SIGKILL
        assert not (job.folder / "out.tif").exists()
        assert job.size() >= size - 6_000, "at most the record that was being written is gone"
        size = job.size()
    report = job.finish(kind)
    is_as_undisturbed(job, report, undisturbed)
    assert kills == KILLS and report["kept"] > 0
    again = job.calls() - BLOCKS
    sys.stdout.write(
        f"{kind}: killed {kills} times; {again} of {BLOCKS} blocks computed again "
        f"({again / BLOCKS:.1%}, {again / kills:.1f} a kill)\n"
    )
    record_property("computed again", again)
    assert 0 <= again <= kills * MOST_LOST[kind]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["CW_SUBPROC", "CW_NONE"])
def test_ended_in_good_order_and_resumed(kind: str, number: int, job: Job, undisturbed: bytes) -> None:
    process = job.start(kind)
    job.wait_for(process, 40_000)
    assert job.end(process, number) == -number
    assert not (job.folder / "out.tif").exists() and not list(job.folder.glob(".*"))
    report = job.finish("CW_NONE" if kind == "CW_SUBPROC" else "CW_SUBPROC")
    is_as_undisturbed(job, report, undisturbed)
    assert report["kept"] >= 10


def test_two_at_once(job: Job, undisturbed: bytes) -> None:
    first = job.start("CW_NONE")
    job.wait_for(first, 1)
    second = job.start("CW_NONE")
    assert second.wait(30) == 1
    assert f"is in use by process {first.pid}" in (job.folder / "errors").read_text()
    assert first.wait(30) == 0
    is_as_undisturbed(job, json.loads((job.folder / "report").read_text()), undisturbed)
