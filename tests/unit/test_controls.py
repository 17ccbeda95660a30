"""The controls: what each setter leaves behind, one image over all, and what wrong calls are told."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from applier.concurrency import ConcurrencyStyle
from applier.constants import BOUNDS_FROM_REFERENCE, INTERSECTION, UNION
from applier.controls import ApplierControls
from applier.errors import ControlsError
from applier.options import GridOptions, OutputOptions, ReadOptions, RunOptions
from applier.progress import CUIProgressBar, SilentProgress


@pytest.fixture(autouse=True)
def no_window_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPLIER_WINDOW_XSIZE", raising=False)
    monkeypatch.delenv("APPLIER_WINDOW_YSIZE", raising=False)


def test_defaults() -> None:
    controls = ApplierControls()
    assert controls.grid == GridOptions(None, None, 0, INTERSECTION, None)
    assert controls.read_options("any") == ReadOptions(None)
    assert controls.output_options("any") == OutputOptions(None, (), 0)
    assert controls.run == RunOptions(ConcurrencyStyle(), None, None, None)
    assert controls.grid.window_size is None
    assert repr(controls) == "ApplierControls()"


def test_grid_setters() -> None:
    controls = ApplierControls()
    controls.setWindowSize(512, 128)
    controls.setOverlap(np.int16(3))
    controls.setFootprintType(BOUNDS_FROM_REFERENCE)
    controls.setReferenceImage(Path("ref.tif"))
    assert controls.grid == GridOptions(512, 128, 3, BOUNDS_FROM_REFERENCE, "ref.tif")
    assert controls.grid.window_size == (512, 128)
    assert type(controls.grid.overlap) is int


def test_one_window_size_leaves_the_other_at_256() -> None:
    controls = ApplierControls()
    controls.setWindowYsize(40)
    assert controls.grid.window_size == (256, 40)
    controls.setWindowXsize(50)
    assert controls.grid.window_size == (50, 40)


def test_job_setters() -> None:
    controls, bar, style = ApplierControls(), CUIProgressBar(), ConcurrencyStyle(numReadWorkers=1)
    controls.setProgress(bar)
    controls.setJobName("ndvi")
    controls.setTempdir(Path("scratch"))
    controls.setConcurrencyStyle(style)
    assert controls.run == RunOptions(style, bar, "ndvi", "scratch")
    controls.setProgress(None)
    assert isinstance(controls.run.progress, SilentProgress)


def test_what_becomes_of_a_block_that_cannot_be_computed() -> None:
    controls = ApplierControls()
    assert controls.run.on_block_error == "raise"
    controls.setOnBlockError("skip")
    assert controls.run.on_block_error == controls.onBlockError == "skip"
    assert repr(controls) == "ApplierControls(onBlockError='skip')"
    for wrong in ("ignore", True, None, "Skip"):
        with pytest.raises(ControlsError, match=rf"setOnBlockError\({wrong!r}\): give 'raise', .* or 'skip'"):
            controls.setOnBlockError(wrong)  # type: ignore[arg-type]
    with pytest.raises(ControlsError):
        controls.setOptionForImagename("onBlockError", "ndvi", "skip")


@pytest.mark.parametrize(
    ("x", "y", "expected"), [("64", "", (64, 256)), ("", " 32 ", (256, 32)), ("5", "6", (5, 6))]
)
def test_window_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, x: str, y: str, expected: tuple[int, int]
) -> None:
    monkeypatch.setenv("APPLIER_WINDOW_XSIZE", x)
    monkeypatch.setenv("APPLIER_WINDOW_YSIZE", y)
    controls = ApplierControls()
    assert controls.grid.window_size == expected
    controls.setWindowSize(7, 8)
    assert controls.grid.window_size == (7, 8)


@pytest.mark.parametrize("text", ["0", "-1", "many", "2.5"])
def test_a_bad_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("APPLIER_WINDOW_YSIZE", text)
    with pytest.raises(ControlsError, match=f"environment variable APPLIER_WINDOW_YSIZE='{text}'"):
        ApplierControls()


VALUES = {
    "statsIgnore": st.one_of(st.none(), st.integers(), st.floats(allow_nan=False)),
    "drivername": st.sampled_from(["GTiff", "HFA", "PNG"]),
    "layerselection": st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
}
SETTINGS = st.sampled_from(sorted(VALUES)).flatmap(
    lambda option: st.tuples(st.just(option), st.sampled_from([None, "a", "b"]), VALUES[option])
)


@given(st.lists(SETTINGS, max_size=12))
def test_the_last_setting_for_an_image_wins_then_the_last_for_all(
    settings: list[tuple[str, Any, Any]],
) -> None:
    controls = ApplierControls()
    expected: dict[tuple[str, str | None], Any] = {}
    for option, imagename, value in settings:
        controls.setOptionForImagename(option, imagename, value)
        expected[option, imagename] = value
    defaults = {"statsIgnore": 0, "drivername": None, "layerselection": None}
    for option, default in defaults.items():
        for imagename in ("a", "b", "c", None):
            for_all = expected.get((option, None), default)
            wanted = expected.get((option, imagename), for_all)
            assert controls.getOptionForImagename(option, imagename) == wanted
    assert controls.output_options("a").driver == controls.getOptionForImagename("drivername", "a")
    assert controls.read_options("b").layers == controls.getOptionForImagename("layerselection", "b")


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z]{1,6}", fullmatch=True), st.from_regex(r"[a-z0-9=.]{0,5}", fullmatch=True)
    )
)
def test_creation_options_of_every_form_are_the_same(options: dict[str, str]) -> None:
    pairs = tuple(options.items())
    forms = (
        options,
        {key.lower(): value for key, value in pairs},
        [f"{key}={value}" for key, value in pairs],
        tuple(f" {key.lower()}={value}" for key, value in pairs),
        pairs,
    )
    for form in forms:
        assert OutputOptions(creation_options=form).creation_options == pairs  # type: ignore[arg-type]


def test_creation_options_from_python_values() -> None:
    controls = ApplierControls()
    controls.setCreationOptions({"TILED": True, "SPARSE_OK": False, "ZLEVEL": 9}, imagename="out")
    assert controls.output_options("out").creation_options == (
        ("TILED", "YES"),
        ("SPARSE_OK", "NO"),
        ("ZLEVEL", "9"),
    )
    controls.setCreationOptions(None, imagename="out")
    assert controls.output_options("out").creation_options == ()


@pytest.mark.parametrize("value", [np.float32(0.5), np.uint8(200), np.array(3), 5, -9999.0, None])
def test_stats_ignore_becomes_a_plain_number(value: Any) -> None:
    kept = OutputOptions(stats_ignore=value).stats_ignore
    assert kept == value
    assert type(kept) in (int, float, type(None))


def test_stats_ignore_may_be_nan() -> None:
    kept = OutputOptions(stats_ignore=float("nan")).stats_ignore
    assert kept is not None and np.isnan(kept)


WRONG = [
    ("setWindowXsize", (0,), r"setWindowXsize\(0\).*controls.setWindowXsize\(256\)"),
    ("setWindowYsize", (2.5,), r"setWindowYsize\(2.5\)"),
    ("setWindowSize", (256, -1), r"setWindowYsize\(-1\)"),
    ("setWindowSize", ("256", 1), r"setWindowXsize\('256'\)"),
    ("setOverlap", (-1,), r"setOverlap\(-1\).*controls.setOverlap\(2\)"),
    ("setOverlap", (True,), r"setOverlap\(True\)"),
    ("setFootprintType", (3,), r"setFootprintType\(3\).*applier.INTERSECTION, applier.UNION"),
    ("setFootprintType", ("UNION",), r"setFootprintType\('UNION'\)"),
    ("setFootprintType", ([UNION],), r"setFootprintType\(\[1\]\)"),
    ("setReferenceImage", (1,), r"setReferenceImage\(1\)"),
    ("selectInputImageLayers", ([0, 1],), r"\[0, 1\]\): layers are counted from 1"),
    ("selectInputImageLayers", ([1.5],), "counted from 1"),
    ("selectInputImageLayers", ([True],), "counted from 1"),
    ("selectInputImageLayers", ([],), "at least one layer"),
    ("selectInputImageLayers", (3,), r"selectInputImageLayers\(3\): give a list"),
    ("selectInputImageLayers", ("12",), "give a list"),
    ("setOutputDriverName", ("",), r"setOutputDriverName\(''\)"),
    ("setOutputDriverName", (3,), r"setOutputDriverName\(3\)"),
    ("setCreationOptions", (["COMPRESS"],), "'COMPRESS' is not of the form 'KEY=VALUE'"),
    ("setCreationOptions", ("COMPRESS=LZW",), "give a list"),
    ("setCreationOptions", (["A=1", "a=2"],), "A is given twice"),
    ("setCreationOptions", (["=1"],), "has no key"),
    ("setCreationOptions", ([7],), "7 is not of the form"),
    ("setCreationOptions", (7,), "give a list"),
    ("setStatsIgnore", ("0",), r"setStatsIgnore\('0'\)"),
    ("setStatsIgnore", ([0, 1],), "one number for all layers"),
    ("setStatsIgnore", (np.array([0, 1]),), "one number for all layers"),
    ("setStatsIgnore", (True,), r"setStatsIgnore\(True\)"),
    ("setStatsIgnore", (1j,), r"setStatsIgnore\(1j\)"),
    ("setProgress", ("yes",), r"setProgress\('yes'\)"),
    ("setJobName", ("",), r"setJobName\(''\)"),
    ("setConcurrencyStyle", ("CW_THREADS",), r"setConcurrencyStyle\('CW_THREADS'\).*ConcurrencyStyle\("),
    ("setTempdir", (3,), r"setTempdir\(3\)"),
]


@pytest.mark.parametrize(("setter", "arguments", "said"), WRONG)
def test_a_wrong_call_is_shown_and_changes_nothing(
    setter: str, arguments: tuple[Any, ...], said: str
) -> None:
    controls = ApplierControls()
    with pytest.raises(ControlsError, match=said):
        getattr(controls, setter)(*arguments)
    if setter != "setWindowSize":
        assert repr(controls) == "ApplierControls()"


@pytest.mark.parametrize(
    ("setter", "value"),
    [("selectInputImageLayers", [0]), ("setCreationOptions", ["X"]), ("setStatsIgnore", "")],
)
def test_a_wrong_call_for_one_image_changes_nothing(setter: str, value: Any) -> None:
    controls = ApplierControls()
    with pytest.raises(ControlsError):
        getattr(controls, setter)(value, imagename="img")
    controls.check_imagenames([], [])  # would name img, had it been taken note of
    with pytest.raises(ControlsError, match="an imagename is the name of an attribute"):
        controls.setStatsIgnore(1, imagename=7)  # type: ignore[arg-type]


def test_imagenames_must_be_those_of_files() -> None:
    controls = ApplierControls()
    controls.setStatsIgnore(1, imagename="ndvi")
    controls.selectInputImageLayers([1], imagename="img")
    controls.check_imagenames(["img"], ["ndvi"])
    with pytest.raises(ControlsError, match=r"statsIgnore for imagename 'ndvi'.*names are: ndiv, img"):
        controls.check_imagenames(["img"], ["ndiv"])
    with pytest.raises(ControlsError, match="names are: none"):
        controls.check_imagenames([], [])


def test_options_of_the_job_are_the_same_for_all_images() -> None:
    controls = ApplierControls()
    with pytest.raises(ControlsError, match="overlap is the same for all images"):
        controls.setOptionForImagename("overlap", "img", 1)
    controls.setOverlap(2)
    assert controls.getOptionForImagename("overlap", "img") == 2
    with pytest.raises(ControlsError, match="no option 'overlapp'; there are: overlap"):
        controls.getOptionForImagename("overlapp", None)


def test_attributes_of_rios_read_and_set_the_options() -> None:
    controls = ApplierControls()
    controls.windowxsize = 64
    controls.statsIgnore = None
    assert (controls.grid.window_xsize, controls.output_options("x").stats_ignore) == (64, None)
    controls.setOverlap(3)
    assert (controls.overlap, controls.footprint, controls.concurrency) == (
        3,
        INTERSECTION,
        ConcurrencyStyle(),
    )
    with pytest.raises(ControlsError):
        controls.overlap = -1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("setCalcStats", "setCalcStats is not available yet"),
        ("setResampleMethod", "setResampleMethod is not available yet"),
        ("setNumThreads", "obsolete; use setConcurrencyStyle"),
        ("setOverlp", "no 'setOverlp'; closest are: setOverlap"),
    ],
)
def test_absent_methods_say_why(name: str, said: str) -> None:
    with pytest.raises(AttributeError, match=said):
        getattr(ApplierControls(), name)
    with pytest.raises(AttributeError, match=said):
        setattr(ApplierControls(), name, 1)


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_are_equal(clone: Any) -> None:
    controls = ApplierControls()
    controls.setOverlap(2)
    controls.setStatsIgnore(7, imagename="a")
    controls.setConcurrencyStyle(ConcurrencyStyle(1, 1, "CW_ECS", {"cluster": "x"}))
    assert vars(clone(controls)) == vars(controls)
    assert repr(clone(controls)) == repr(controls)
