"""Everything that a user may get wrong: the message says what, where and what to do, and nothing is left."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import applier
from applier import ApplierControls, FilenameAssociations, OtherInputs
from applier.errors import ApplierError, ControlsError, FileOpenError, GridMismatchError, OutputError
from computemanager.errors import BlockError, PayloadError, SettingsError
from computemanager.payload import LargePayloadWarning

pytestmark = pytest.mark.filterwarnings("ignore::applier.concurrency.ConcurrencyWarning")

THREADS: dict[str, Any] = {"numComputeWorkers": 2, "computeWorkerKind": "CW_THREADS"}
SUBPROC: dict[str, Any] = {"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC"}
KINDS: list[Any] = [
    pytest.param({}, id="none"),
    pytest.param({"numReadWorkers": 1}, id="none, one reader"),
    pytest.param(THREADS, id="threads"),
    pytest.param(SUBPROC, id="subproc"),
    pytest.param({**SUBPROC, "numReadWorkers": 1}, id="subproc, one reader"),
]
OLDER = b"an older file"


class Job:
    """A small job in a folder of its own, with one thing wrong with it."""

    def __init__(self, folder: Path, run: Callable[..., Any], write_raster: Callable[..., str]) -> None:
        self.folder = folder
        self.run = run
        self.write_raster = write_raster
        rng = np.random.default_rng(7)
        self.pixels = rng.integers(1, 200, (2, 100, 120), np.uint8)
        self.img = write_raster(folder / "in.tif", self.pixels)
        self.out = folder / "out.tif"
        self.out.write_bytes(OLDER)

    def fails(
        self,
        error: type[BaseException],
        *words: str,
        function: Callable[..., None] | None = None,
        infiles: dict[str, Any] | None = None,
        outfiles: dict[str, Any] | None = None,
        **more: Any,
    ) -> str:
        """Run it; it must raise an error whose text has these words, and leave the folder as it was."""

        def copy(info: Any, inputs: Any, outputs: Any) -> None:
            outputs.out = inputs.img

        before = self.contents()
        with pytest.raises(error) as caught:
            self.run(
                function or copy,
                {"img": self.img} if infiles is None else infiles,
                {"out": self.out} if outfiles is None else outfiles,
                window=(32, 32),
                **more,
            )
        text = str(caught.value)
        for word in words:
            assert word in text
        assert self.contents() == before
        self.error = caught.value
        return text

    def contents(self) -> dict[str, bytes | None]:
        return {
            str(path): path.read_bytes() if path.is_file() else None
            for path in sorted(self.folder.rglob("*"))
        }


@pytest.fixture
def job(tmp_path: Path, run: Callable[..., Any], write_raster: Callable[..., str]) -> Job:
    return Job(tmp_path, run, write_raster)


# -- inputs ----------------------------------------------------------------------------------------------


def test_missing_file(job: Job) -> None:
    missing = str(job.folder / "missing.tif")
    job.fails(FileOpenError, missing, "does not exist", "Check the name", infiles={"img": missing})
    job.fails(FileOpenError, missing, "does not exist", infiles={"img": [job.img, missing]})


def test_link_to_nowhere(job: Job) -> None:
    link = job.folder / "link.tif"
    link.symlink_to(job.folder / "nowhere.tif")
    with pytest.raises(FileOpenError, match=r"link\.tif is a link to .*nowhere\.tif, which does not exist"):
        job.run(lambda info, inputs, outputs: None, {"img": link}, {})


def test_text_file(job: Job) -> None:
    (job.folder / "notes.tif").write_text("no raster at all\n" * 50)
    job.fails(FileOpenError, "notes.tif", "not a raster", infiles={"img": job.folder / "notes.tif"})


def test_empty_file(job: Job) -> None:
    (job.folder / "empty.tif").touch()
    job.fails(FileOpenError, "empty.tif", "empty", infiles={"img": job.folder / "empty.tif"})


def test_directory_as_input(job: Job) -> None:
    job.fails(FileOpenError, str(job.folder), "directory", "Name a file in it", infiles={"img": job.folder})


@pytest.mark.parametrize("style", KINDS)
def test_damaged_tile(style: dict[str, Any], job: Job) -> None:
    """It opens, but one tile of it is noise: found where the block is read, by whoever reads."""
    import rasterio

    path = job.folder / "damaged.tif"
    job.write_raster(path, job.pixels, tiled=True, blockxsize=32, blockysize=32, compress="deflate")
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[offset : offset + 200] = b"\xff" * 200
    path.write_bytes(data)
    text = job.fails(FileOpenError, "damaged.tif", "GDAL says", "damaged", infiles={"img": path}, **style)
    assert "rows 64 to 95, columns 32 to 63" in text


@pytest.mark.parametrize("style", [{}, SUBPROC], ids=["none", "subproc"])
def test_file_that_was_not_copied_completely(style: dict[str, Any], job: Job) -> None:
    path = job.folder / "half.tif"
    job.write_raster(path, job.pixels)  # strips without compression
    path.write_bytes(path.read_bytes()[:-9_000])
    job.fails(FileOpenError, "half.tif", "not copied completely", infiles={"img": path}, **style)


def test_grids_that_do_not_match(job: Job) -> None:
    from rasterio.transform import Affine

    def other(name: str, **profile: Any) -> dict[str, Any]:
        return {"img": job.img, "other": job.write_raster(job.folder / name, job.pixels, **profile)}

    coarse = other("coarse.tif", transform=Affine(60, 0, 450_000, 0, -60, 1_800_000))
    job.fails(GridMismatchError, "in.tif", "coarse.tif", "pixel size", "60.0", "gdalwarp", infiles=coarse)
    shifted = other("shifted.tif", transform=Affine(30, 0, 450_010, 0, -30, 1_800_000))
    job.fails(GridMismatchError, "in.tif", "shifted.tif", "0.333 columns", infiles=shifted)
    elsewhere = other("elsewhere.tif", crs="EPSG:32616")
    job.fails(GridMismatchError, "elsewhere.tif", "UTM zone 15N", "UTM zone 16N", infiles=elsewhere)


def test_files_without_a_pixel_in_common(job: Job) -> None:
    far = job.write_raster(job.folder / "far.tif", job.pixels, at=(500, 500))
    job.fails(
        GridMismatchError,
        "in.tif",
        "far.tif",
        "no pixel in common",
        "UNION",
        infiles={"img": job.img, "far": far},
    )


def test_band_out_of_range(job: Job) -> None:
    controls = ApplierControls()
    controls.selectInputImageLayers([1, 3])
    job.fails(ControlsError, "layer 3", "infiles.img", "in.tif", "which has 2", controls=controls)


def test_nothing_to_take_the_grid_from(job: Job) -> None:
    job.fails(ControlsError, "infiles is empty", "setReferenceImage", infiles={})
    controls = ApplierControls()
    controls.setFootprintType(applier.BOUNDS_FROM_REFERENCE)
    job.fails(ControlsError, "BOUNDS_FROM_REFERENCE", "setReferenceImage", controls=controls)


# -- what the function makes -----------------------------------------------------------------------------


def wrong_shapes() -> dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]]:
    return {
        "2-D": (lambda img: img[0], ("2-D", "outputs.out = array[None]")),
        "a row too many": (
            lambda img: np.pad(img, ((0, 0), (0, 1), (0, 0))),
            ("(2, 33, 32)", "(bands, 32, 32)"),
        ),
        "no bands": (lambda img: img[:0], ("(0, 32, 32)", "(bands, 32, 32)")),
        "4-D": (lambda img: img[None], ("(1, 2, 32, 32)", "(bands, 32, 32)")),
        "a list": (lambda img: img.tolist(), ("list, not a NumPy array",)),
        "a number": (lambda img: 7, ("int, not a NumPy array",)),
        "texts": (lambda img: img.astype(str), ("no pixels of type", "astype")),
        "nothing": (lambda img: None, ("did not set outputs.out", "every block")),
    }


@pytest.mark.parametrize("what", wrong_shapes())
def test_wrong_array(what: str, job: Job) -> None:
    make, words = wrong_shapes()[what]

    def makes_it_wrong(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = make(inputs.img) if info.getBlockCount() == (1, 1) else inputs.img

    text = job.fails(
        OutputError, "out.tif", "'out'" if what != "nothing" else "out", *words, function=makes_it_wrong
    )
    assert "block row 1, block column 1" in text
    assert "rows 32 to 63, columns 32 to 63" in text


@pytest.mark.parametrize("style", [THREADS, SUBPROC, {**SUBPROC, "numReadWorkers": 1}])
def test_wrong_array_in_a_worker(style: dict[str, Any], job: Job) -> None:
    def makes_it_flat(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img[0] if info.getBlockCount() == (1, 1) else inputs.img

    job.fails(OutputError, "out.tif", "2-D", "array[None]", "block row 1", function=makes_it_flat, **style)


def test_overlap_forgotten_in_the_output(job: Job) -> None:
    controls = ApplierControls()
    controls.setOverlap(2)

    def cuts_the_margin_off(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img[:, 2:-2, 2:-2]

    job.fails(
        OutputError,
        "(2, 32, 32)",
        "(bands, 36, 36)",
        "overlap of 2",
        function=cuts_the_margin_off,
        controls=controls,
    )


@pytest.mark.parametrize("style", KINDS)
def test_type_that_changes_between_blocks(style: dict[str, Any], job: Job) -> None:
    def changes_type(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img.astype("float32") if info.isLastBlock() else inputs.img

    text = job.fails(OutputError, "out.tif", "float32", "uint8", "astype", function=changes_type, **style)
    assert re.search(r"block row 3, (block )?column 3", text)


def test_number_of_bands_that_changes_between_blocks(job: Job) -> None:
    def changes_bands(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img[:1] if info.isLastBlock() else inputs.img

    job.fails(OutputError, "out.tif", "1 band", "2 band", function=changes_bands)


@pytest.mark.parametrize("style", [{}, SUBPROC], ids=["none", "subproc"])
def test_output_names(style: dict[str, Any], job: Job) -> None:
    def misspells(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.uot = inputs.img

    def forgets(info: Any, inputs: Any, outputs: Any) -> None:
        pass

    job.fails(OutputError, "outputs.uot", "it has: out", "Set outfiles.uot", function=misspells, **style)
    job.fails(OutputError, "did not set outputs.out", "out.tif", "every block", function=forgets, **style)


def test_list_of_outputs_of_the_wrong_length(job: Job) -> None:
    two = {"out": [job.out, job.folder / "second.tif"]}

    def three(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = [inputs.img] * 3

    def single(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img

    job.fails(OutputError, "outputs.out is a list of 3", "list of 2 files", function=three, outfiles=two)
    job.fails(OutputError, "outputs.out is a ndarray", "list of 2 files", function=single, outfiles=two)


def test_input_name_that_is_not_there(job: Job) -> None:
    def misspells(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.image

    job.fails(BlockError, "AttributeError", "no 'image'; it has: img", function=misspells)


# -- what cannot travel ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", [{}, {"numReadWorkers": 1}])
def test_function_with_a_lock(reading: dict[str, Any], job: Job) -> None:
    guard = threading.Lock()

    def locked(info: Any, inputs: Any, outputs: Any) -> None:
        with guard:
            outputs.out = inputs.img

    job.fails(
        PayloadError,
        "locked",
        "captured variable 'guard'",
        "lock",
        "CW_THREADS",
        function=locked,
        **SUBPROC,
        **reading,
    )
    job.run(locked, {"img": job.img}, {"out": job.folder / "fine.tif"}, **THREADS)


def test_function_that_drags_megabytes_along(job: Job) -> None:
    table = np.arange(4_000_000, dtype=np.float64)

    def looks_up(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = table[inputs.img].astype(np.float32)

    with pytest.warns(LargePayloadWarning, match=r"looks_up drags 32\.\d MB .*'table'.*file"):
        job.run(looks_up, {"img": job.img}, {"out": job.folder / "fine.tif"}, **SUBPROC)


@pytest.mark.parametrize("style", [THREADS, SUBPROC], ids=["threads", "subproc"])
def test_other_args_with_a_lock(style: dict[str, Any], job: Job) -> None:
    def counts(info: Any, inputs: Any, outputs: Any, other: Any) -> None:
        outputs.out = inputs.img

    other = OtherInputs(guard=threading.Lock())
    job.fails(PayloadError, "counts", "lock", function=counts, other_args=other, **style)


# -- outputs ---------------------------------------------------------------------------------------------


def test_output_directory(job: Job) -> None:
    nowhere = job.folder / "nowhere" / "out.tif"
    job.fails(
        FileOpenError, "outfiles.out", str(nowhere), "no directory", "Make it", outfiles={"out": nowhere}
    )
    (job.folder / "taken.tif").mkdir()
    job.fails(FileOpenError, "taken.tif", "directory", outfiles={"out": job.folder / "taken.tif"})


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() == 0,
    reason="the user may write anywhere (root, or no POSIX system)",
)
def test_output_directory_that_may_not_be_written_to(job: Job) -> None:
    closed = job.folder / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    try:
        job.fails(FileOpenError, "outfiles.out", "may not be written", outfiles={"out": closed / "out.tif"})
    finally:
        closed.chmod(0o700)


def test_output_is_an_input(job: Job) -> None:
    job.fails(ControlsError, "outfiles.out", "in.tif", "infiles.img", outfiles={"out": job.img})
    roundabout = job.folder / ".." / job.folder.name / "in.tif"
    job.fails(ControlsError, "outfiles.out", "infiles.img", outfiles={"out": roundabout})


def test_two_outputs_are_one_file(job: Job) -> None:
    job.fails(ControlsError, "out.tif", "Name two files", outfiles={"out": job.out, "again": job.out})
    job.fails(ControlsError, "out.tif", "Name two files", outfiles={"out": [job.out, job.out]})


def test_formats_that_cannot_be(job: Job) -> None:
    unknown = job.folder / "out.xyzzy"
    job.fails(ControlsError, "out.xyzzy", "extension", "setOutputDriverName", outfiles={"out": unknown})
    controls = ApplierControls()
    controls.setOutputDriverName("NOSUCH")
    job.fails(ControlsError, "out.tif", "NOSUCH", "setOutputDriverName", controls=controls)


@pytest.mark.parametrize(
    "option", ["COMPRESS=NOSUCH", "NOSUCH=1", "BLOCKXSIZE=17", "COMPRESS=DEFLATE,PREDICTOR=9"]
)
def test_option_that_gdal_refuses(option: str, job: Job) -> None:
    controls = ApplierControls()
    controls.setCreationOptions(option.split(","))
    name = option.rpartition(",")[2].partition("=")[0]
    job.fails(ApplierError, "out.tif", name, "setCreationOptions", controls=controls)


def test_nodata_that_does_not_fit(job: Job) -> None:
    controls = ApplierControls()
    controls.setStatsIgnore(-9999)
    job.fails(OutputError, "out.tif", "-9999", "uint8", "setStatsIgnore", controls=controls)


# -- arguments -------------------------------------------------------------------------------------------


def test_arguments_of_the_wrong_type(job: Job) -> None:
    def fine(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img

    infiles, outfiles = FilenameAssociations(), FilenameAssociations()
    infiles.img, outfiles.out = job.img, job.out
    before = job.contents()
    wrong: list[tuple[Any, tuple[Any, ...], str]] = [
        (fine, ({"img": job.img}, outfiles), r"infiles is a dict; make it with .*FilenameAssociations\(\)"),
        (fine, (infiles, str(job.out)), r"outfiles is a str; make it with .*FilenameAssociations\(\)"),
        (
            fine,
            (infiles, outfiles, None, {"overlap": 1}),
            r"controls is a dict; make it with .*ApplierControls\(\)",
        ),
        (
            fine(None, OtherInputs(img=1), OtherInputs()),
            (infiles, outfiles),
            r"userFunction is None.*without \(\)",
        ),
        ("fine", (infiles, outfiles), "userFunction is 'fine'"),
    ]
    for function, arguments, message in wrong:
        with pytest.raises(ControlsError, match=message):
            applier.apply(function, *arguments)
    assert job.contents() == before


def test_function_with_the_wrong_number_of_arguments(job: Job) -> None:
    def two(info: Any, inputs: Any) -> None: ...

    def three(info: Any, inputs: Any, outputs: Any) -> None: ...

    def four(info: Any, inputs: Any, outputs: Any, other: Any) -> None: ...

    job.fails(ControlsError, "two", "(info, inputs, outputs)", function=two)
    job.fails(ControlsError, "four", "Without otherArgs", "(info, inputs, outputs)", function=four)
    job.fails(ControlsError, "three", "With otherArgs", "outputs, otherArgs)", function=three, other_args=1)


def test_kind_that_is_not_there_yet(job: Job) -> None:
    style = {"numComputeWorkers": 2, "computeWorkerKind": "CW_ECS"}
    job.fails(SettingsError, "CW_ECS", "CW_SUBPROC", "CW_THREADS", **style)


def test_option_for_an_image_that_is_not_there(job: Job) -> None:
    controls = ApplierControls()
    controls.setStatsIgnore(3, "uot")
    job.fails(ControlsError, "'uot'", "img", "out", controls=controls)


# -- the user's exception --------------------------------------------------------------------------------


class Odd(Exception):
    """Does not survive pickling."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("style", KINDS)
def test_exception_in_the_function(style: dict[str, Any], job: Job) -> None:
    def divides(info: Any, inputs: Any, outputs: Any, other: Any) -> None:
        if info.getBlockCount() == (3, 2):
            raise ZeroDivisionError(
                f"{other.what} in {inputs.img.shape} pixels that add up to {inputs.img.sum()}"
            )
        outputs.out = inputs.img

    other = OtherInputs(what="nought")
    text = job.fails(
        BlockError, "divides raised ZeroDivisionError", function=divides, other_args=other, **style
    )
    part = job.pixels[:, 64:96, 96:]
    words = f"nought in {part.shape} pixels that add up to {part.sum()}"
    error = job.error
    assert isinstance(error, BlockError) and isinstance(error.__cause__, ZeroDivisionError)
    assert str(error.__cause__) == words and error.original is error.__cause__
    assert error.block_index == 2 * 4 + 3 and error.block.row == 64 and error.block.col == 96
    assert (
        "block 11 (block row 2, block column 3; window:" in text
        and "rows 64 to 95, columns 96 to 119" in text
    )
    assert words in text and "Traceback" in text and "in divides" in text and "test_errors.py" in text
    line = next(line for line in text.splitlines() if "run_block" in line).strip()
    assert line == "applier.run_block(divides, infiles, outfiles, otherArgs, controls, block=11)"

    # The line that the message gives does what it says.
    infiles, outfiles = FilenameAssociations(), FilenameAssociations()
    infiles.img, outfiles.out = job.img, job.out
    controls = ApplierControls()
    controls.setWindowSize(32, 32)
    names = {"applier": applier, "divides": divides, "infiles": infiles, "outfiles": outfiles}
    with pytest.raises(ZeroDivisionError, match=re.escape(words)):
        exec(line, {**names, "otherArgs": other, "controls": controls})
    outputs = applier.run_block(divides, infiles, outfiles, other, controls, block=10)
    assert np.array_equal(outputs.out, job.pixels[:, 64:96, 64:96])
    assert job.out.read_bytes() == OLDER
    with pytest.raises(ControlsError, match="block=16: the job has blocks 0 to 15"):
        applier.run_block(divides, infiles, outfiles, other, controls, block=16)


@pytest.mark.parametrize("style", [{}, THREADS, SUBPROC], ids=["none", "threads", "subproc"])
@pytest.mark.parametrize("raises", ["Odd", "SystemExit", "OSError"])
def test_exceptions_of_all_sorts(raises: str, style: dict[str, Any], job: Job) -> None:
    def odd(info: Any, inputs: Any, outputs: Any) -> None:
        if info.isLastBlock():
            if raises == "Odd":
                raise Odd(1, 2)
            if raises == "SystemExit":
                raise SystemExit("7 and 8")
            raise FileNotFoundError(2, "1 and 2", "lut.csv")
        outputs.out = inputs.img

    if raises == "SystemExit" and not style:
        job.fails(SystemExit, "7 and 8", function=odd)  # the caller's own process may be ended by it
        return
    job.fails(BlockError, "and", raises if raises != "OSError" else "lut.csv", function=odd, **style)


def test_first_failing_block_is_reported_with_no_concurrency(job: Job) -> None:
    def all_fail(info: Any, inputs: Any, outputs: Any) -> None:
        raise ValueError("always")

    job.fails(BlockError, "block=0)", function=all_fail)
