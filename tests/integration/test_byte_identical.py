"""Output files are the same to the byte, whoever reads, whoever computes and whatever the blocks take."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from applier import ApplierControls

pytestmark = pytest.mark.filterwarnings("ignore::applier.concurrency.ConcurrencyWarning")

RASTER = "olinda_L7_ETMs_6band.tif"
OVERLAP = 2

READING: list[dict[str, Any]] = [
    {"computeWorkersRead": True},
    {"computeWorkersRead": False, "numReadWorkers": 0},
    {"computeWorkersRead": False, "numReadWorkers": 1},
    {"computeWorkersRead": False, "numReadWorkers": 2},
]


def styles() -> Iterator[Any]:
    for readers in (1, 2):
        yield pytest.param({"numReadWorkers": readers}, id=f"none-readers{readers}")
    for workers in (1, 2, 3, 4):
        for number, reading in enumerate(READING):
            if workers == 4 or number in (0, workers):
                style = {"numComputeWorkers": workers, "computeWorkerKind": "CW_THREADS", **reading}
                yield pytest.param(style, id=f"threads{workers}-reading{number}")
        for number, reading in enumerate(READING):
            if number in (0, 4 - workers):
                style = {"numComputeWorkers": workers, "computeWorkerKind": "CW_SUBPROC", **reading}
                yield pytest.param(style, id=f"subproc{workers}-reading{number}")
    for slots in (1, 2):
        style = {
            "numComputeWorkers": 3 - slots,
            "computeWorkerKind": "CW_AGENTS",
            "computeWorkerExtraParams": {"slots": slots},
        }
        yield pytest.param(style, id=f"agents{3 - slots}-slots{slots}")


def make_outputs(info: Any, inputs: Any, outputs: Any) -> None:
    """Several outputs, after a delay that differs from block to block and from run to run."""
    column, row = info.getBlockCount()
    by_block = random.Random(1000 * row + column).random()
    time.sleep(0.004 * (by_block + random.SystemRandom().random()))
    bands = inputs.img.astype(np.float32)
    outputs.plain = inputs.img
    outputs.index = ((bands[3] - bands[2]) / (bands[3] + bands[2] + 1))[None]
    outputs.compressed_in_threads = outputs.all_cpus = outputs.strips = (inputs.img[::-1] * 3).astype(
        np.uint16
    )
    outputs.pair = [inputs.img[:1] // 2, inputs.img[1:3].max(axis=0, keepdims=True)]
    outputs.imagine = inputs.img[:2] + 1


def controls_for(window: tuple[int, int]) -> ApplierControls:
    controls = ApplierControls()
    controls.setWindowSize(*window)
    controls.setOverlap(OVERLAP)
    controls.setCreationOptions({"BLOCKXSIZE": 64, "BLOCKYSIZE": 64}, "plain")
    controls.setCreationOptions(["BLOCKXSIZE=64", "BLOCKYSIZE=64", "NUM_THREADS=2"], "compressed_in_threads")
    controls.setCreationOptions(["NUM_THREADS=ALL_CPUS", "COMPRESS=LZW"], "all_cpus")
    controls.setCreationOptions(["TILED=NO", "BLOCKYSIZE=16"], "strips")
    controls.setStatsIgnore(None, "pair")
    return controls


def outfiles_in(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    names = ("plain", "index", "compressed_in_threads", "all_cpus", "strips")
    outfiles: dict[str, Any] = {name: folder / f"{name}.tif" for name in names}
    return {
        **outfiles,
        "pair": [folder / "first.tif", folder / "second.tif"],
        "imagine": folder / "imagine.img",
    }


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def reference() -> dict[tuple[int, int], dict[str, str]]:
    """What one process makes, block after block; filled by the first test."""
    return {}


@pytest.mark.parametrize("window", [(64, 64), (100, 70)], ids=["whole tiles", "tiles put together"])
@pytest.mark.parametrize("style", list(styles()))
def test_same_bytes(
    style: dict[str, Any],
    window: tuple[int, int],
    shared_data: Path,
    tmp_path: Path,
    run: Callable[..., Any],
    reference: dict[tuple[int, int], dict[str, str]],
) -> None:
    infiles = {"img": shared_data / "raster" / RASTER}
    if window not in reference:
        run(make_outputs, infiles, outfiles_in(tmp_path / "reference"), controls=controls_for(window))
        reference[window] = digests(tmp_path / "reference")
    run(make_outputs, infiles, outfiles_in(tmp_path / "out"), controls=controls_for(window), **style)
    assert digests(tmp_path / "out") == reference[window]
    assert len([name for name in reference[window] if name.endswith((".tif", ".img"))]) == 8


def test_pixels_are_the_same_for_every_window(
    shared_data: Path, tmp_path: Path, run: Callable[..., Any], read_raster: Callable[[Any], Any]
) -> None:
    """What `test_same_bytes` compares with is right."""
    path = shared_data / "raster" / RASTER
    whole = read_raster(path)
    for window in ((64, 64), (100, 70)):
        outfiles = outfiles_in(tmp_path / f"{window[0]}")
        run(make_outputs, {"img": path}, outfiles, controls=controls_for(window))
        bands = whole.astype(np.float32)
        assert np.array_equal(read_raster(outfiles["plain"]), whole)
        index = (bands[3] - bands[2]) / (bands[3] + bands[2] + 1)
        assert np.array_equal(read_raster(outfiles["index"])[0], index)
        tripled = (whole[::-1] * 3).astype(np.uint16)
        for name in ("compressed_in_threads", "all_cpus", "strips"):
            assert np.array_equal(read_raster(outfiles[name]), tripled)
        assert np.array_equal(read_raster(outfiles["pair"][0]), whole[:1] // 2)
        assert np.array_equal(read_raster(outfiles["pair"][1])[0], whole[1:3].max(axis=0))
        assert np.array_equal(read_raster(outfiles["imagine"]), whole[:2] + 1)


def test_the_end_of_a_run_does_not_depend_on_its_middle(
    shared_data: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """Blocks that come in backwards: the first is the slowest by far, so all others wait for it."""

    def first_is_last(info: Any, inputs: Any, outputs: Any) -> None:
        if info.isFirstBlock():
            time.sleep(0.5)
        outputs.out = inputs.img

    infiles = {"img": shared_data / "raster" / RASTER}
    found = set()
    for number, style in enumerate(
        [
            {},
            *(
                {"numComputeWorkers": 2, "computeWorkerKind": kind}
                for kind in ("CW_THREADS", "CW_SUBPROC", "CW_AGENTS")
            ),
        ]
    ):
        out = tmp_path / f"{number}.tif"
        run(first_is_last, infiles, {"out": out}, window=(32, 32), **style)
        found.add(out.read_bytes())
    assert len(found) == 1
