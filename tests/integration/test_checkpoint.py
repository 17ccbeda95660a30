"""`controls.setCheckpoint`: a job that did not come to its end goes on, and only that job does."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import applier
from applier import ApplierControls, ApplierReturn, ConcurrencyStyle, FilenameAssociations, OtherInputs
from applier.errors import CancelledError, ControlsError
from applier.progress import SilentProgress
from applier.readahead import read_blocks
from computemanager.errors import BlockError, CheckpointError
from computemanager.journal import CheckpointWarning

pytestmark = pytest.mark.filterwarnings("ignore::applier.concurrency.ConcurrencyWarning")

ROWS, COLS, WINDOW = 200, 160, 20
BLOCKS = (ROWS // WINDOW) * (COLS // WINDOW)
STYLES: list[Any] = [
    pytest.param({}, id="none"),
    pytest.param({"numReadWorkers": 2}, id="none, two readers"),
    pytest.param({"numComputeWorkers": 2, "computeWorkerKind": "CW_THREADS"}, id="threads"),
    pytest.param({"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC"}, id="subproc"),
    pytest.param(
        {"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC", "numReadWorkers": 1},
        id="subproc, a reader",
    ),
]


class Stops(SilentProgress):
    """Cancels the job after some blocks, and notes what it was shown."""

    steps_are_blocks = True

    def __init__(self, after: int) -> None:
        self.after = after
        self.shown: list[int] = []

    def setProgress(self, progress: int) -> None:
        self.shown.append(progress)

    def wasCancelled(self) -> bool:
        return bool(self.shown) and self.shown[-1] >= self.after


class Job:
    """A job that collects what its function was called with."""

    def __init__(self, folder: Path, write_raster: Callable[..., str]) -> None:
        self.folder = folder
        self.kept = folder / "kept"
        self.out = folder / "out.tif"
        pixels = np.random.default_rng(3).integers(0, 5000, (2, ROWS, COLS), np.uint16)
        self.total = int(pixels.sum(dtype=np.int64))
        self.img = write_raster(folder / "in.tif", pixels)
        self.infiles = FilenameAssociations()
        self.infiles.img = self.img
        self.outfiles = FilenameAssociations()
        self.outfiles.out = str(self.out)
        self.controls = ApplierControls()
        self.controls.setWindowSize(WINDOW, WINDOW)
        self.controls.setCheckpoint(self.kept)
        self.other: Any = None
        self.function: Callable[..., None] = double

    def run(self, *, stop_after: int | None = None, **style: Any) -> ApplierReturn:
        self.progress = Stops(10**9 if stop_after is None else stop_after)
        self.controls.setProgress(self.progress)
        self.controls.setConcurrencyStyle(ConcurrencyStyle(**style))
        return applier.apply(self.function, self.infiles, self.outfiles, self.other, controls=self.controls)

    def stop(self, after: int = 30, **style: Any) -> None:
        with pytest.raises(CancelledError):
            self.run(stop_after=after, **style)
        assert self.kept.is_dir() and not self.out.exists()

    def refused(self, *words: str) -> str:
        """Try to resume; the message must have these words, and the checkpoint be as it was."""
        before = (self.kept / "records").read_bytes()
        with pytest.raises(CheckpointError) as caught:
            self.run()
        text = str(caught.value)
        for word in words:
            assert word in text
        assert (self.kept / "records").read_bytes() == before
        return text


def double(info: Any, inputs: Any, outputs: Any) -> None:
    outputs.out = inputs.img * 2


def adds_up(info: Any, inputs: Any, outputs: Any, other: Any) -> None:
    other.blocks += 1
    other.total += int(inputs.img.sum(dtype=np.int64))
    outputs.out = inputs.img * 2


@pytest.fixture
def job(tmp_path: Path, write_raster: Callable[..., str]) -> Job:
    return Job(tmp_path, write_raster)


@pytest.fixture
def expected(job: Job) -> bytes:
    """Return the output of a run without a checkpoint, in which nothing happens."""
    job.controls.setCheckpoint(None)
    job.run()
    found = job.out.read_bytes()
    job.out.unlink()
    job.controls.setCheckpoint(job.kept)
    return found


@pytest.mark.parametrize("style", STYLES)
def test_resumed(style: dict[str, Any], job: Job, expected: bytes) -> None:
    job.function = adds_up
    for stop in (0, 11, 40):
        job.other = OtherInputs(blocks=0, total=0)
        job.stop(stop + 1, **style)
    job.other = OtherInputs(blocks=0, total=0)
    returned = job.run(**style)
    assert job.out.read_bytes() == expected
    assert not job.kept.exists(), "the job is done"
    assert returned.blocks == BLOCKS and 41 <= returned.blocksKept <= BLOCKS
    assert sum(copy.blocks for copy in returned.otherArgsList) == BLOCKS
    assert sum(copy.total for copy in returned.otherArgsList) == job.total
    assert f", {returned.blocksKept} of {BLOCKS} blocks from the checkpoint" in returned.summary()
    assert f", {returned.blocksKept} of {BLOCKS} blocks from the checkpoint" in repr(returned)
    # Progress begins at what was kept, and goes on by one.
    first = job.progress.shown.index(returned.blocksKept)
    assert job.progress.shown[first:] == list(range(returned.blocksKept, BLOCKS + 1)) and first <= 1
    # What other runs spent is not counted.
    computed = returned.timings.getDurationsForName("userfunction") or []
    assert len(computed) == BLOCKS - returned.blocksKept


def test_on_other_workers(job: Job, expected: bytes) -> None:
    job.stop(10)
    job.stop(30, numComputeWorkers=3, computeWorkerKind="CW_THREADS")
    job.controls.setJobName("another name")
    job.controls.setTempdir(job.folder)
    returned = job.run(numComputeWorkers=2, computeWorkerKind="CW_SUBPROC")
    assert job.out.read_bytes() == expected and returned.blocksKept >= 30


def test_nothing_kept_yet_and_everything_kept(job: Job, expected: bytes) -> None:
    returned = job.run()
    assert returned.blocksKept == 0 and "checkpoint" not in repr(returned)
    assert job.out.read_bytes() == expected and not job.kept.exists()
    job.out.unlink()
    job.stop(BLOCKS)
    returned = job.run()
    assert returned.blocksKept == BLOCKS and job.out.read_bytes() == expected


def test_a_block_that_fails_for_a_while(job: Job, expected: bytes) -> None:
    """For a reason outside of the function: it is the same job when it is started again."""
    marker = job.folder / "there"

    def needs_a_file(info: Any, inputs: Any, outputs: Any) -> None:
        if info.getBlockCount() == (5, 5):
            marker.read_bytes()
        outputs.out = inputs.img * 2

    job.function = needs_a_file
    for _ in range(2):
        with pytest.raises(BlockError, match=r"block 45 \(block row 5, block column 5") as caught:
            job.run()
        assert caught.value.block_index == 45 and not job.out.exists()
    marker.touch()
    returned = job.run()
    assert returned.blocksKept == 45 and job.out.read_bytes() == expected


@pytest.mark.parametrize("suffix", [".tif", ".img", ".png"])
def test_formats_that_are_made_at_the_end(suffix: str, job: Job) -> None:
    def plain() -> None:
        job.outfiles.out = str(job.folder / f"plain{suffix}")
        job.controls.setCheckpoint(None)
        job.run()

    plain()
    job.out = job.folder / f"out{suffix}"
    job.outfiles.out = str(job.out)
    job.controls.setCheckpoint(job.kept)
    job.stop(33)
    job.run()
    assert job.out.read_bytes() == (job.folder / f"plain{suffix}").read_bytes()


def test_skipped_blocks_are_tried_again(job: Job, expected: bytes) -> None:
    marker = job.folder / "there"

    def needs_a_file(info: Any, inputs: Any, outputs: Any) -> None:
        if info.getBlockCount() == (0, 1):
            marker.read_bytes()
        outputs.out = inputs.img * 2

    job.function = needs_a_file
    job.controls.setOnBlockError("skip")
    job.stop(30)
    marker.touch()
    returned = job.run()
    assert returned.blocksKept == 29 and returned.skippedBlocks == [] and job.out.read_bytes() == expected


def test_readers_leave_out_what_is_kept() -> None:
    class Source:
        def __init__(self) -> None:
            self.read_blocks: list[int] = []

        def __len__(self) -> int:
            return 20

        def __iter__(self) -> Any:
            return iter(range(20))

        def block(self, index: int) -> int:
            return index

        def read(self, block: int) -> int:
            self.read_blocks.append(block)
            return block * block

    kept = {0, 1, 2, 7, 9, 19}
    for readers in (0, 1, 3):
        source = Source()
        found = list(read_blocks(source, readers, None, kept))
        assert [block if number in kept else block.content for number, block in enumerate(found)] == [
            number if number in kept else number**2 for number in range(20)
        ]
        assert sorted(source.read_blocks) == [number for number in range(20) if number not in kept]


def test_the_disk_of_the_checkpoint_is_full(
    job: Job, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "writev"):
        pytest.skip("uses writev")

    def full(file: int, pieces: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.warns(CheckpointWarning, match="No space left on device. The job goes on") as caught:
        job.run()
    assert len(caught) == 1 and job.out.read_bytes() == expected and not job.kept.exists()


# -- another job ---------------------------------------------------------------------------------------------


def test_another_input(job: Job) -> None:
    job.stop()
    size = os.path.getsize(job.img)
    with open(job.img, "ab") as file:
        file.write(bytes(432))
    job.refused(
        f"the checkpoint in {job.kept} is of another job",
        f"infiles.img (in.tif): size {size:,} bytes -> {size + 432:,} bytes",
        "infiles.img (in.tif): modified ",
        "To resume that job, start it as it was. To begin this one, delete that directory, or give another",
    )
    os.truncate(job.img, size)
    text = job.refused("infiles.img (in.tif): modified ")
    assert "size" not in text


def test_a_changed_part_of_an_input(job: Job) -> None:
    """A VRT is a small file that does not change with what it shows."""
    vrt = job.folder / "in.vrt"
    vrt.write_text(
        f'<VRTDataset rasterXSize="{COLS}" rasterYSize="{ROWS}"><SRS>EPSG:32615</SRS>'
        "<GeoTransform>450000, 30, 0, 1800000, 0, -30</GeoTransform>"
        '<VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">in.tif</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    job.infiles.img = str(vrt)
    job.stop()
    os.utime(job.img)
    job.refused("in.tif, which is a part of in.vrt: modified ")


def test_what_other_programs_add_to_an_input_is_no_change(job: Job, expected: bytes) -> None:
    job.stop()
    (job.folder / "in.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    job.run()
    assert job.out.read_bytes() == expected


def test_another_function(job: Job) -> None:
    factor = 2

    def multiply(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img * factor

    job.function = multiply
    job.stop()
    factor = 3
    text = job.refused(
        "function: digest of its code and all it uses ", "delete that directory, or give another"
    )
    assert re.search(r"uses [0-9a-f]{32} -> [0-9a-f]{32}\n", text)
    job.function = double
    job.refused("function: name multiply -> double")


def test_other_other_args(job: Job) -> None:
    job.function = adds_up
    job.other = OtherInputs(blocks=0, total=0)
    job.stop()
    # CW_NONE works on the caller's own object: that is changed now.
    job.refused("otherArgs: digest of its values ")
    job.other = OtherInputs(blocks=0, total=0)
    assert job.run().blocksKept >= 30


def test_other_outputs(job: Job) -> None:
    job.stop()
    job.controls.setCreationOptions(["COMPRESS=LZW"])
    job.refused("outfiles.out (out.tif): creation_options () -> (('COMPRESS', 'LZW'),)")
    job.controls.setCreationOptions([])
    job.controls.setStatsIgnore(7)
    job.refused("outfiles.out (out.tif): stats_ignore 0 -> 7")
    job.controls.setStatsIgnore(0)
    job.outfiles.out = str(job.folder / "another.tif")
    job.refused("outfiles.out (out.tif): no part of the job now")


def test_other_controls(job: Job) -> None:
    job.stop()
    job.controls.setWindowSize(40, 20)
    job.refused("controls: window_xsize 20 -> 40", "blocks: number 80 -> 40", "columns 0 to 39")
    job.controls.setWindowSize(WINDOW, WINDOW)
    job.controls.setOverlap(1)
    job.refused("controls: overlap 0 -> 1")
    job.controls.setOverlap(0)
    job.controls.selectInputImageLayers([2], imagename="img")
    job.refused("infiles.img (in.tif): layers None -> (2,)")
    job.controls.selectInputImageLayers(None, imagename="img")
    assert job.run().blocksKept >= 30


def test_another_version(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.stop()
    monkeypatch.setattr("importlib.metadata.version", lambda package: "99")
    job.refused("versions: computemanager ", "versions: rasterio ", " -> 99")


# -- what may be given wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, "", b"kept", ["a"], True])
def test_no_path(value: Any) -> None:
    with pytest.raises(
        ControlsError, match=r"setCheckpoint\(.*\): give a path, e.g. controls.setCheckpoint\("
    ):
        ApplierControls().setCheckpoint(value)


def test_the_option_like_any_other() -> None:
    controls = ApplierControls()
    assert controls.checkpoint is None
    controls.setCheckpoint(Path("some") / "place")
    assert controls.checkpoint == os.path.join("some", "place")
    assert repr(controls) == f"ApplierControls(checkpoint={controls.checkpoint!r})"


def test_a_directory_that_will_not_do(job: Job) -> None:
    job.controls.setCheckpoint(job.img)
    with pytest.raises(CheckpointError, match=r"in.tif is a file; a checkpoint needs a directory of its own"):
        job.run()
    job.controls.setCheckpoint(job.folder / "missing" / "kept")
    with pytest.raises(CheckpointError, match="there is no directory .*missing. Make that first"):
        job.run()
    job.controls.setCheckpoint(job.folder)
    with pytest.raises(CheckpointError, match=r"holds other files \(in.tif\)"):
        job.run()
    assert os.listdir(job.folder) == ["in.tif"]


def test_what_cannot_be_compared(job: Job) -> None:
    with open(job.folder / "log", "w") as log:

        def logs(info: Any, inputs: Any, outputs: Any) -> None:
            log.write("x")
            outputs.out = inputs.img

        job.function = logs
        with pytest.raises(
            CheckpointError, match=r"captured variable log \(a TextIOWrapper\).*run without a check"
        ):
            job.run()
    assert not job.kept.exists()


def test_a_damaged_record(job: Job, expected: bytes) -> None:
    job.stop(50)
    records = job.kept / "records"
    data = bytearray(records.read_bytes())
    data[len(data) // 2] ^= 8
    records.write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        returned = job.run()
    assert ["is damaged" in str(each.message) for each in caught] == [True]
    assert 0 < returned.blocksKept < 50 and job.out.read_bytes() == expected
