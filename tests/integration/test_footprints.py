"""Which pixels a job covers, and what the function sees of each input there: compared with NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import applier
from applier import ApplierControls, OtherInputs

pytestmark = pytest.mark.filterwarnings("ignore::applier.concurrency.ConcurrencyWarning")

RASTER = "LE70220491999322EDC01_stack.tif"
KINDS: list[Any] = [
    pytest.param({}, id="none"),
    pytest.param({"numReadWorkers": 1}, id="none, one reader"),
    pytest.param({"numComputeWorkers": 3, "computeWorkerKind": "CW_THREADS"}, id="threads"),
    pytest.param({"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC"}, id="subproc"),
    pytest.param(
        {"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC", "numReadWorkers": 1},
        id="subproc, one reader",
    ),
]

Box = tuple[int, int, int, int]
"""First row, first column, row after the last, column after the last: on the grid of the real raster."""


@pytest.fixture(scope="module")
def scene(request: pytest.FixtureRequest, read_raster: Callable[[Any], Any]) -> Any:
    """Return 3 bands of a real raster, of which the tests' files are cut."""
    path = Path(__file__).resolve().parents[2] / "../shared/data/raster" / RASTER
    if not path.is_file():
        pytest.skip(f"no real raster {path} (optional; not part of the repository)")
    return read_raster(path)[:3]


@pytest.fixture(scope="module")
def cut(
    scene: Any, write_raster: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """Return a function that writes a box of the scene to a file."""
    folder = tmp_path_factory.mktemp("cut")
    numbers = iter(range(10_000))

    def write(box: Box, **profile: Any) -> str:
        top, left, bottom, right = box
        path = folder / f"{next(numbers)}.tif"
        return write_raster(path, scene[:, top:bottom, left:right], at=(top, left), **profile)

    return write


def seen(scene: Any, box: Box, extent: Box, fill: int) -> Any:
    """What the function is to see of a file of `box`, over an extent that may reach beyond the scene."""
    margin = 500  # more than any extent reaches out
    canvas = np.full((len(scene), *(size + 2 * margin for size in scene.shape[1:])), fill, scene.dtype)
    top, left, bottom, right = box
    canvas[:, margin + top : margin + bottom, margin + left : margin + right] = scene[
        :, top:bottom, left:right
    ]
    top, left, bottom, right = (edge + margin for edge in extent)
    return canvas[:, top:bottom, left:right]


def common(boxes: list[Box], footprint: int, reference: int) -> Box:
    if footprint == applier.BOUNDS_FROM_REFERENCE:
        return boxes[reference]
    outer, inner = (max, min) if footprint == applier.INTERSECTION else (min, max)
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return outer(tops), outer(lefts), inner(bottoms), inner(rights)


def stack_up(info: Any, inputs: Any, outputs: Any) -> None:
    """Everything that the function sees, margin cut off by `apply`."""
    outputs.out = np.concatenate(inputs.each)


def check_transform(path: Any, extent: Box) -> None:
    import rasterio
    from rasterio.transform import Affine

    top, left, bottom, right = extent
    with rasterio.open(path) as dataset:
        assert (dataset.height, dataset.width) == (bottom - top, right - left)
        expected = Affine(30.0, 0.0, 450_000.0 + 30 * left, 0.0, -30.0, 1_800_000.0 - 30 * top)
        assert dataset.transform.almost_equals(expected, 1e-6)
        assert dataset.crs.to_epsg() == 32615


def boxes_that_overlap() -> Any:
    """Three boxes of the scene that have pixels around its middle in common."""
    near, far = st.integers(0, 110), st.integers(130, 240)
    return st.lists(st.tuples(near, near, far, far), min_size=3, max_size=3)


class Situation(NamedTuple):
    """Three files, and what is asked of them."""

    boxes: list[Box]
    fills: list[int | None]
    footprint: int
    reference: int
    overlap: int
    window: tuple[int, int]


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        Situation,
        boxes=boxes_that_overlap(),
        fills=st.lists(st.sampled_from([None, -9999, 77]), min_size=3, max_size=3),
        footprint=st.sampled_from([applier.INTERSECTION, applier.UNION, applier.BOUNDS_FROM_REFERENCE]),
        reference=st.integers(0, 2),
        overlap=st.integers(0, 5),
        window=st.tuples(st.integers(20, 260), st.integers(20, 260)),
    )
)
def test_any_boxes_any_footprint(
    scene: Any,
    cut: Any,
    run: Any,
    read_raster: Any,
    tmp_path_factory: pytest.TempPathFactory,
    situation: Situation,
) -> None:
    boxes, fills, footprint, reference, overlap, window = situation
    paths = [cut(box, nodata=fill) for box, fill in zip(boxes, fills, strict=True)]
    extent = common(boxes, footprint, reference)
    controls = ApplierControls()
    controls.setFootprintType(footprint)
    controls.setReferenceImage(paths[reference])
    controls.setOverlap(overlap)
    controls.setWindowSize(*window)
    out = tmp_path_factory.mktemp("any") / "out.tif"

    def stack_and_check_margin(info: Any, inputs: Any, outputs: Any) -> None:
        """The margin, too, is what the whole image has there."""
        wanted = np.concatenate(
            [
                seen(scene, box, grown(extent, overlap), fill or 0)
                for box, fill in zip(boxes, fills, strict=True)
            ]
        )
        columns, rows = info.getBlockCount()
        top, left = rows * window[1], columns * window[0]
        got = np.concatenate(inputs.each)
        assert np.array_equal(got, wanted[:, top : top + got.shape[1], left : left + got.shape[2]])
        outputs.out = got

    returned = run(stack_and_check_margin, {"each": paths}, {"out": out}, controls=controls)
    expected = np.concatenate(
        [seen(scene, box, extent, fill or 0) for box, fill in zip(boxes, fills, strict=True)]
    )
    assert np.array_equal(read_raster(out), expected)
    check_transform(out, extent)
    rows, columns = -(-expected.shape[1] // window[1]), -(-expected.shape[2] // window[0])
    assert returned.blocks == rows * columns


def grown(box: Box, margin: int) -> Box:
    top, left, bottom, right = box
    return top - margin, left - margin, bottom + margin, right + margin


@pytest.mark.parametrize("style", KINDS)
@pytest.mark.parametrize("footprint", [applier.INTERSECTION, applier.UNION, applier.BOUNDS_FROM_REFERENCE])
def test_every_kind_covers_the_same(
    style: dict[str, Any], footprint: int, scene: Any, cut: Any, run: Any, read_raster: Any, tmp_path: Path
) -> None:
    boxes: list[Box] = [(0, 0, 150, 170), (60, 90, 250, 250), (10, 100, 140, 180)]
    paths = [cut(box, nodata=-9999) for box in boxes]
    controls = ApplierControls()
    controls.setFootprintType(footprint)
    controls.setReferenceImage("each" if footprint == applier.BOUNDS_FROM_REFERENCE else paths[1])
    controls.setOverlap(3)
    run(stack_up, {"each": paths}, {"out": tmp_path / "out.tif"}, controls=controls, window=(64, 48), **style)
    extent = common(boxes, footprint, 0)  # a symbolic name of a list stands for its first file
    expected = np.concatenate([seen(scene, box, extent, -9999) for box in boxes])
    assert np.array_equal(read_raster(tmp_path / "out.tif"), expected)
    check_transform(tmp_path / "out.tif", extent)


def test_a_reference_that_is_no_input_gives_the_extent(
    scene: Any, cut: Any, run: Any, read_raster: Any, tmp_path: Path
) -> None:
    box, reference = (20, 20, 120, 120), (0, 50, 200, 240)
    controls = ApplierControls()
    controls.setFootprintType(applier.BOUNDS_FROM_REFERENCE)
    controls.setReferenceImage(cut(reference))
    run(stack_up, {"each": [cut(box, nodata=-1)]}, {"out": tmp_path / "out.tif"}, controls=controls)
    assert np.array_equal(read_raster(tmp_path / "out.tif"), seen(scene, box, reference, -1))


def test_layers_are_those_asked_for_in_that_order(
    scene: Any, cut: Any, run: Any, read_raster: Any, tmp_path: Path
) -> None:
    def both(info: Any, inputs: Any, outputs: Any) -> None:
        assert inputs.some.shape[0] == 4 and inputs.all.shape[0] == 3
        outputs.out = np.concatenate([inputs.some, inputs.all])

    path = cut((0, 0, 250, 250))
    controls = ApplierControls()
    controls.selectInputImageLayers([3, 1, 3, 2], "some")
    run(
        both, {"some": path, "all": path}, {"out": tmp_path / "out.tif"}, controls=controls, window=(100, 100)
    )
    assert np.array_equal(read_raster(tmp_path / "out.tif"), scene[[2, 0, 2, 1, 0, 1, 2]])


@pytest.mark.parametrize("style", KINDS)
def test_no_outputs_at_all_sums_are_exact(
    style: dict[str, Any], scene: Any, cut: Any, run: Any, tmp_path: Path
) -> None:
    def collect(info: Any, inputs: Any, outputs: Any, other: Any) -> None:
        other.total += inputs.img.sum(axis=(1, 2), dtype=np.int64)
        other.blocks.append(info.getBlockCount())
        np.add.at(other.histogram, inputs.img[0].ravel() % 100, 1)

    other = OtherInputs(total=np.zeros(3, np.int64), blocks=[], histogram=np.zeros(100, np.int64))
    returned = run(collect, {"img": cut((0, 0, 250, 250))}, {}, other, window=(40, 30), **style)
    copies = returned.otherArgsList
    assert np.array_equal(sum(copy.total for copy in copies), scene.sum(axis=(1, 2), dtype=np.int64))
    expected = np.bincount(scene[0].ravel() % 100, minlength=100)
    assert np.array_equal(sum(copy.histogram for copy in copies), expected)
    blocks = [block for copy in copies for block in copy.blocks]
    assert sorted(blocks) == [(column, row) for column in range(7) for row in range(9)]
    assert returned.blocks == 63 and returned.outputs == [] and list(tmp_path.iterdir()) == []
    if style.get("computeWorkerKind"):
        assert other.blocks == []  # ours is not touched: every worker has a copy
        assert 1 <= len(copies) <= style["numComputeWorkers"]
    else:
        assert copies[0] is other


@pytest.mark.parametrize("style", KINDS)
def test_no_inputs_at_all(
    style: dict[str, Any], cut: Any, run: Any, read_raster: Any, tmp_path: Path
) -> None:
    def coordinates(info: Any, inputs: Any, outputs: Any) -> None:
        assert len(inputs) == 0
        outputs.out = np.stack(info.getBlockCoordArrays())

    extent = (30, 40, 203, 140)
    controls = ApplierControls()
    controls.setReferenceImage(cut(extent))
    run(coordinates, {}, {"out": tmp_path / "out.tif"}, controls=controls, window=(64, 64), **style)
    x, y = read_raster(tmp_path / "out.tif")
    assert np.array_equal(x, np.tile(450_000.0 + 30 * (np.arange(40, 140) + 0.5), (173, 1)))
    assert np.array_equal(y, np.tile(1_800_000.0 - 30 * (np.arange(30, 203) + 0.5), (100, 1)).T)
    check_transform(tmp_path / "out.tif", extent)
