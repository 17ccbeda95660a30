"""Jobs that go on without the blocks that cannot be computed: the same bytes as if these had given nodata."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import applier
from applier import ApplierControls, ApplierReturn, BlocksSkippedWarning, OtherInputs
from computemanager.errors import BlockError, BlockTimeoutError, PoisonBlockError

pytestmark = pytest.mark.filterwarnings("ignore::applier.concurrency.ConcurrencyWarning")

Run = Callable[..., ApplierReturn]
WINDOW = (64, 48)  # columns and rows: 4 x 4 blocks, of which the last are smaller
SHAPE = (3, 170, 210)
BAD = {0, 1, 6, 15}
"""The first two, so that the outputs' type is not known yet; one in the middle; the last."""

STYLES = [
    pytest.param({}, id="none"),
    pytest.param({"numReadWorkers": 2}, id="none-readers"),
    pytest.param({"numComputeWorkers": 2, "computeWorkerKind": "CW_THREADS"}, id="threads"),
    pytest.param({"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC"}, id="subproc"),
    pytest.param(
        {"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC", "numReadWorkers": 1}, id="subproc-readers"
    ),
]


@pytest.fixture
def image(tmp_path: Path, write_raster: Callable[..., str]) -> str:
    pixels = np.random.default_rng(3).integers(1, 200, SHAPE).astype(np.uint8)
    return write_raster(tmp_path / "in.tif", pixels)


def number_of(info: Any) -> int:
    column, row = info.getBlockCount()
    return int(row * 4 + column)


NODATA: dict[str, float] = {"plain": 7, "wide": -1.5, "none": 0, "imagine": 7, "jpeg": 7, "sparse": 7}


def controls_for() -> ApplierControls:
    controls = ApplierControls()
    controls.setWindowSize(*WINDOW)
    controls.setOverlap(2)
    controls.setStatsIgnore(7)
    controls.setStatsIgnore(-1.5, "wide")
    controls.setStatsIgnore(None, "none")
    controls.setCreationOptions(
        {"BLOCKXSIZE": 64, "BLOCKYSIZE": 48}, "plain"
    )  # whole chunks, made by workers
    controls.setCreationOptions({"COMPRESS": "JPEG"}, "jpeg")
    controls.setCreationOptions({"BLOCKXSIZE": 32, "BLOCKYSIZE": 16, "SPARSE_OK": True}, "sparse")
    controls.setOutputDriverName("HFA", "imagine")
    return controls


def outfiles_in(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    return {name: folder / f"{name}{'.img' if name == 'imagine' else '.tif'}" for name in NODATA}


def compute(info: Any, inputs: Any, outputs: Any) -> None:
    outputs.plain = outputs.jpeg = outputs.imagine = outputs.none = outputs.sparse = inputs.img // 2 + 8
    outputs.wide = inputs.img[:1] / np.float32(3)


def fails_on_bad(info: Any, inputs: Any, outputs: Any, other: Any) -> None:
    other.blocks.append(number_of(info))
    compute(info, inputs, outputs)
    if number_of(info) in BAD:
        raise ValueError(f"nothing to see in {number_of(info)}")


def gives_nodata_for_bad(info: Any, inputs: Any, outputs: Any) -> None:
    compute(info, inputs, outputs)
    if number_of(info) in BAD:
        for name, nodata in NODATA.items():
            array = getattr(outputs, name)
            setattr(outputs, name, np.full(array.shape, nodata, array.dtype))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("style", STYLES)
def test_skipped_blocks_are_nodata_to_the_byte(
    image: str, style: dict[str, Any], tmp_path: Path, run: Run
) -> None:
    run(gives_nodata_for_bad, {"img": image}, outfiles_in(tmp_path / "expected"), controls=controls_for())
    controls = controls_for()
    controls.setOnBlockError("skip")
    other = OtherInputs(blocks=[])
    outfiles = outfiles_in(tmp_path / "skipped")
    with pytest.warns(BlocksSkippedWarning) as caught:
        returned = run(fails_on_bad, {"img": image}, outfiles, other, controls=controls, **style)
    assert digests(tmp_path / "skipped") == digests(tmp_path / "expected")

    assert returned.blocks == 12
    assert sorted(n for copy in returned.otherArgsList for n in copy.blocks) == sorted({*range(16)} - BAD)
    assert [record.block for record in returned.skippedBlocks] == sorted(BAD)
    record = returned.skippedBlocks[2]
    assert record.place == (
        "block 6 (block row 1, block column 2; window: rows 48 to 95, columns 128 to 191)"
    )
    assert record.reason == "ValueError: nothing to see in 6" and record.attempts == 1 and record.worker
    assert "in fails_on_bad" in record.traceback
    (warned,) = (each for each in caught if each.category is BlocksSkippedWarning)
    assert "conftest" in warned.filename, "the line that called apply()"
    text = str(warned.message)
    assert text.startswith("4 of 16 blocks could not be computed and were skipped")
    assert "block 6 (block row 1" in text and "... and 1 more" in text
    assert ", 4 skipped" in repr(returned) and "block 15 (block row 3" in returned.summary()


def test_a_block_that_needs_several_tries_is_not_skipped(image: str, tmp_path: Path, run: Run) -> None:
    def fails_once(info: Any, inputs: Any, outputs: Any, other: Any) -> None:
        inputs.img += 1
        marker = tmp_path / f"tried-{number_of(info)}"
        if not marker.exists():
            marker.touch()
            raise OSError("the network is down for a moment")
        outputs.out = inputs.img

    for kind in ("CW_THREADS", "CW_SUBPROC"):
        controls = ApplierControls()
        controls.setOnBlockError("skip")
        out = tmp_path / f"{kind}.tif"
        returned = run(
            fails_once,
            {"img": image},
            {"out": out},
            OtherInputs(),
            controls=controls,
            window=WINDOW,
            numComputeWorkers=2,
            computeWorkerKind=kind,
            maxBlockRaises=2,
        )
        assert returned.retries >= 16 and not returned.skippedBlocks and returned.blocks == 16
        for marker in tmp_path.glob("tried-*"):
            marker.unlink()
    assert (tmp_path / "CW_THREADS.tif").read_bytes() == (tmp_path / "CW_SUBPROC.tif").read_bytes()


@pytest.mark.parametrize("style", STYLES)
def test_a_job_without_any_block_that_can_be_computed_fails_and_writes_nothing(
    image: str, style: dict[str, Any], tmp_path: Path, run: Run
) -> None:
    def always_fails(info: Any, inputs: Any, outputs: Any) -> None:
        raise ZeroDivisionError(f"no luck with {number_of(info)}")

    out = tmp_path / "out.tif"
    controls = ApplierControls()
    controls.setOnBlockError("skip")
    with pytest.raises(BlockError) as caught:
        run(always_fails, {"img": image}, {"out": out}, controls=controls, window=WINDOW, **style)
    text = str(caught.value)
    assert "always_fails: none of the 16 blocks could be computed, so no output was written" in text
    assert "was block 0 (block row 0" in text and "ZeroDivisionError: no luck with 0" in text
    assert "in always_fails" in text and "The worker's traceback" in text
    assert "applier.run_block(always_fails, infiles, outfiles, otherArgs, controls, block=0)" in text
    assert caught.value.block_index == 0 and "always_fails" in caught.value.worker_traceback
    assert os.listdir(tmp_path) == ["in.tif"]


def test_outputs_of_another_type_than_the_first_are_still_an_error(
    image: str, tmp_path: Path, run: Run
) -> None:
    def changes_type(info: Any, inputs: Any, outputs: Any) -> None:
        if number_of(info) == 0:
            raise ValueError
        outputs.out = inputs.img.astype("uint8" if number_of(info) < 9 else "float32")

    controls = ApplierControls()
    controls.setOnBlockError("skip")
    with pytest.raises(
        applier.OutputError, match="row 2, column 1 gave float32 .* row 0, column 1 gave uint8"
    ):
        run(changes_type, {"img": image}, {"out": tmp_path / "out.tif"}, controls=controls, window=WINDOW)
    assert os.listdir(tmp_path) == ["in.tif"]


def test_a_job_without_outputs_goes_on_too(image: str, tmp_path: Path, run: Run) -> None:
    def count(info: Any, inputs: Any, outputs: Any, other: Any) -> None:
        other.total += 1
        if number_of(info) in BAD:
            raise ValueError

    controls = ApplierControls()
    controls.setOnBlockError("skip")
    other = OtherInputs(total=0)
    with pytest.warns(BlocksSkippedWarning):
        returned = run(count, {"img": image}, {}, other, controls=controls, window=WINDOW)
    assert other.total == 12 and returned.otherArgsList == [other]


# -- blocks that end their process or take too long ----------------------------------------------------


def kills_its_process(info: Any, inputs: Any, outputs: Any) -> None:
    if number_of(info) in BAD:
        os.kill(os.getpid(), signal.SIGKILL)
    outputs.out = inputs.img


def takes_for_ever(info: Any, inputs: Any, outputs: Any) -> None:
    if number_of(info) == 6:
        time.sleep(600)
    outputs.out = inputs.img


SUBPROC = {"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC"}


def test_blocks_that_kill_their_worker_are_gone_on_without(image: str, tmp_path: Path, run: Run) -> None:
    def nodata_for_bad(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img * (number_of(info) not in BAD)

    run(nodata_for_bad, {"img": image}, {"out": tmp_path / "expected.tif"}, window=WINDOW)
    controls = ApplierControls()
    controls.setOnBlockError("skip")
    with pytest.warns(BlocksSkippedWarning, match="4 of 16 blocks"):
        returned = run(
            kills_its_process,
            {"img": image},
            {"out": tmp_path / "out.tif"},
            controls=controls,
            window=WINDOW,
            maxBlockKills=2,
            **SUBPROC,
        )
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "expected.tif").read_bytes()
    assert [record.block for record in returned.skippedBlocks] == sorted(BAD)
    for record in returned.skippedBlocks:
        assert record.attempts == 2 and "SIGKILL" in record.reason and record.traceback == ""


def test_a_block_that_takes_too_long_is_gone_on_without(image: str, tmp_path: Path, run: Run) -> None:
    controls = ApplierControls()
    controls.setOnBlockError("skip")
    with pytest.warns(BlocksSkippedWarning, match="1 of 16 blocks"):
        returned = run(
            takes_for_ever,
            {"img": image},
            {"out": tmp_path / "out.tif"},
            controls=controls,
            window=WINDOW,
            blockTimeout=0.5,
            maxBlockTimeouts=1,
            **SUBPROC,
        )
    (record,) = returned.skippedBlocks
    assert record.block == 6 and record.attempts == 1
    assert "0.5 s" in record.reason


def test_errors_of_blocks_that_end_a_job_name_the_place_and_what_to_do(
    image: str, tmp_path: Path, run: Run
) -> None:
    outfiles = {"out": tmp_path / "out.tif"}
    with pytest.raises(BlockTimeoutError) as late:
        run(
            takes_for_ever,
            {"img": image},
            outfiles,
            window=WINDOW,
            blockTimeout=0.5,
            maxBlockTimeouts=1,
            **SUBPROC,
        )
    text = str(late.value)
    assert text.startswith("takes_for_ever took longer than 0.5 s (blockTimeout), on block 6 (block row 1")
    assert "controls.setOnBlockError('skip')" in text
    assert "applier.run_block(takes_for_ever, infiles, outfiles, otherArgs, controls, block=6)" in text
    assert (late.value.block_index, late.value.attempts, late.value.limit_s) == (6, 1, 0.5)
    with pytest.raises(PoisonBlockError, match=r"on block \d+ \(block row"):
        run(kills_its_process, {"img": image}, outfiles, window=WINDOW, maxBlockKills=1, **SUBPROC)
    assert os.listdir(tmp_path) == ["in.tif"]


def test_a_skipped_block_can_be_run_alone(image: str, tmp_path: Path) -> None:
    infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
    infiles.img, outfiles.out = image, str(tmp_path / "out.tif")

    def fails_at_two(info: Any, inputs: Any, outputs: Any) -> None:
        if number_of(info) == 2:
            raise LookupError("two")
        outputs.out = inputs.img

    controls = ApplierControls()
    controls.setWindowSize(*WINDOW)
    controls.setOnBlockError("skip")
    with pytest.warns(BlocksSkippedWarning):
        returned = applier.apply(fails_at_two, infiles, outfiles, controls=controls)
    with pytest.raises(LookupError, match="two"):
        applier.run_block(
            fails_at_two, infiles, outfiles, controls=controls, block=returned.skippedBlocks[0].block
        )
