"""`apply` from wherever a script may call it, and with whatever a script may call a function."""

from __future__ import annotations

import functools
import os
import queue
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import applier
from applier import ApplierControls, CancelledError, FilenameAssociations

pytestmark = pytest.mark.filterwarnings("ignore::applier.concurrency.ConcurrencyWarning")

STYLES: list[Any] = [
    pytest.param({}, id="none"),
    pytest.param({"numComputeWorkers": 2, "computeWorkerKind": "CW_THREADS"}, id="threads"),
    pytest.param({"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC"}, id="subproc"),
]


@pytest.fixture
def img(tmp_path: Path, write_raster: Callable[..., str]) -> str:
    """Return a raster of 2 bands, 100 rows, 120 columns: 30 blocks of 20 x 20."""
    pixels = np.arange(2 * 100 * 120, dtype=np.int32).reshape(2, 100, 120)
    return write_raster(tmp_path / "in.tif", pixels)


@pytest.fixture
def doubled(tmp_path: Path) -> np.ndarray[Any, Any]:
    return 2 * np.arange(2 * 100 * 120, dtype=np.int32).reshape(2, 100, 120)


# -- functions of every sort -----------------------------------------------------------------------------


class Multiplier:
    """A callable object."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img * self.factor

    def method(self, info: Any, inputs: Any, outputs: Any) -> None:
        self(info, inputs, outputs)


def multiply(factor: int, info: Any, inputs: Any, outputs: Any) -> None:
    outputs.out = inputs.img * factor


def closure(factor: int) -> Callable[..., None]:
    def multiply_by_captured(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.out = inputs.img * factor

    return multiply_by_captured


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "lambda": lambda info, inputs, outputs: setattr(outputs, "out", inputs.img * 2),
    "closure": closure(2),
    "partial": functools.partial(multiply, 2),
    "callable object": Multiplier(2),
    "method": Multiplier(2).method,
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("what", FUNCTIONS)
def test_functions(
    what: str, style: dict[str, Any], img: str, doubled: Any, run: Any, read_raster: Any, tmp_path: Path
) -> None:
    run(FUNCTIONS[what], {"img": img}, {"out": tmp_path / "out.tif"}, window=(20, 20), **style)
    assert np.array_equal(read_raster(tmp_path / "out.tif"), doubled)


@pytest.mark.parametrize("style", STYLES)
def test_several_threads_at_once(
    style: dict[str, Any], img: str, doubled: Any, run: Any, read_raster: Any, tmp_path: Path
) -> None:
    """Three jobs side by side, none in the main thread."""
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def one(number: int) -> None:
        try:
            ended.put(
                run(
                    closure(2 + number),
                    {"img": img},
                    {"out": tmp_path / f"{number}.tif"},
                    window=(20, 20),
                    **style,
                )
            )
        except BaseException as error:
            ended.put(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ended.get().blocks for _ in threads] == [30, 30, 30]
    for number in range(3):
        assert np.array_equal(read_raster(tmp_path / f"{number}.tif"), doubled // 2 * (2 + number))


def test_function_that_writes_and_reads_streams(
    img: str, run: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A megabyte of output gets through; standard input is empty, and no way to disturb the worker."""

    def loud(info: Any, inputs: Any, outputs: Any) -> None:
        assert sys.stdin.read() == ""
        column, row = info.getBlockCount()
        for line in range(300):
            sys.stdout.write(f"{row} {column} {line} {'x' * 100}\n")
        sys.stderr.write(f"done {row} {column}\n")

    style = {"numComputeWorkers": 2, "computeWorkerKind": "CW_SUBPROC"}
    run(loud, {"img": img}, {}, window=(20, 20), **style)
    captured = capfd.readouterr()
    blocks = [(row, column) for row in range(5) for column in range(6)]
    lines = sorted(f"{row} {column} {line} {'x' * 100}" for row, column in blocks for line in range(300))
    assert sorted(captured.out.splitlines()) == lines
    assert sorted(captured.err.splitlines()) == sorted(f"done {row} {column}" for row, column in blocks)


# -- progress and timings --------------------------------------------------------------------------------


class RiosProgress:
    """As scripts for RIOS write them."""

    def __init__(self, cancel_at: int = 1000) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.cancel_at = cancel_at

    def setTotalSteps(self, steps: int) -> None:
        self.calls.append(("total", steps))

    def setProgress(self, progress: int) -> None:
        self.calls.append(("progress", progress))

    def setLabelText(self, text: str) -> None:
        self.calls.append(("label", text))

    def reset(self) -> None:
        self.calls.append(("reset",))

    def wasCancelled(self) -> bool:
        return max(call[1] for call in self.calls if call[0] == "progress") >= self.cancel_at


@pytest.mark.parametrize("style", STYLES)
def test_progress(style: dict[str, Any], img: str, run: Any, tmp_path: Path) -> None:
    progress = RiosProgress()
    controls = ApplierControls()
    controls.setProgress(progress)
    controls.setJobName("doubling")
    run(closure(2), {"img": img}, {"out": tmp_path / "out.tif"}, controls=controls, window=(20, 20), **style)
    percents = [call[1] for call in progress.calls if call[0] == "progress"]
    assert progress.calls[:2] == [("label", "doubling"), ("total", 100)] and progress.calls[-1] == ("reset",)
    assert percents == sorted(set(100 * block // 30 for block in range(31)))


@pytest.mark.parametrize("style", STYLES)
def test_cancelling(style: dict[str, Any], img: str, run: Any, tmp_path: Path) -> None:
    progress = RiosProgress(cancel_at=50)
    controls = ApplierControls()
    controls.setProgress(progress)
    out = tmp_path / "out.tif"
    out.write_bytes(b"older")
    with pytest.raises(CancelledError, match="cancelled by the user"):
        run(closure(2), {"img": img}, {"out": out}, controls=controls, window=(20, 20), **style)
    assert progress.calls[-2:] == [("progress", 50), ("reset",)]
    assert out.read_bytes() == b"older"


@pytest.mark.parametrize("style", STYLES)
def test_timings(style: dict[str, Any], img: str, run: Any, tmp_path: Path) -> None:
    returned = run(closure(2), {"img": img}, {"out": tmp_path / "out.tif"}, window=(20, 20), **style)
    summary = returned.timings.makeSummaryDict()
    for name in ("reading", "userfunction", "encoding", "writing"):
        assert summary[name]["N"] == 30
    (walltime,) = returned.timings.getDurationsForName("walltime")
    waiting = returned.timings.getDurationsForName("waiting")
    assert (
        sum(waiting) < walltime if style else waiting is None
    )  # nobody waits for workers that are not there
    report = returned.timings.formatReport()
    for name in ("walltime", "reading", "userfunction", "encoding", "writing", "closing"):
        assert name in report
    assert returned.outputs == [str(tmp_path / "out.tif")]
    assert "30 blocks" in returned.summary() and "out.tif" in returned.summary()


# -- scripts ---------------------------------------------------------------------------------------------

CALL = """
infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
infiles.img, outfiles.out = os.environ["IMG"], os.environ["OUT"]
controls = applier.ApplierControls()
controls.setWindowSize(20, 20)
controls.setConcurrencyStyle(
    applier.ConcurrencyStyle(numComputeWorkers=2, computeWorkerKind="CW_SUBPROC"))
returned = applier.apply(function, infiles, outfiles, controls=controls)
"""
FUNCTION = """
import os
import applier

print("top level of", __name__)

def function(info, inputs, outputs):
    outputs.out = inputs.img * factor()

def factor():
    return 2
"""


@pytest.fixture
def python(tmp_path: Path, img: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs Python, in a directory where nothing is, and checks that it worked."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run_python(*arguments: str | Path, stdin: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-W", "ignore", *map(str, arguments)],
            **{"cwd": elsewhere, **more},
            env={**os.environ, "IMG": img, "OUT": str(tmp_path / "out.tif")},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        return result

    return run_python


@pytest.fixture
def right(tmp_path: Path, doubled: Any, read_raster: Any) -> Callable[[], bool]:
    return lambda: bool(np.array_equal(read_raster(tmp_path / "out.tif"), doubled))


def test_script_without_a_guard(python: Any, right: Any, tmp_path: Path) -> None:
    """Workers do not run the script again."""
    (tmp_path / "script.py").write_text(FUNCTION + CALL)
    assert python(tmp_path / "script.py").stdout == "top level of __main__\n"
    assert right()


def test_command_line_and_standard_input(python: Any, right: Any, tmp_path: Path) -> None:
    for arguments, stdin in ((["-c", FUNCTION + CALL], ""), (["-"], FUNCTION + CALL), ([], FUNCTION + CALL)):
        assert python(*arguments, stdin=stdin).stdout == "top level of __main__\n"
        assert right()
        (tmp_path / "out.tif").unlink()


def test_module_run_as_main(python: Any, right: Any, tmp_path: Path) -> None:
    package = tmp_path / "elsewhere" / "science"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "constants.py").write_text("FACTOR = 2\n")
    text = FUNCTION.replace("import os", "import os\nfrom .constants import FACTOR").replace(
        "return 2", "return FACTOR"
    )
    (package / "job.py").write_text(text + CALL)
    assert python("-m", "science.job").stdout == "top level of __main__\n"
    assert right()


HIDDEN = """
# What is beside the script goes with the function, even where workers could not import it.
here = os.path.dirname(os.path.realpath(__file__))
sys.path = [place for place in sys.path if os.path.realpath(place) != here]
"""


@pytest.mark.parametrize("importable", [True, False])
def test_module_and_package_beside_the_script(
    importable: bool, python: Any, right: Any, tmp_path: Path
) -> None:
    beside = tmp_path / "beside"
    (beside / "science" / "deep").mkdir(parents=True)
    (beside / "science" / "__init__.py").write_text("from .formulas import twice\n")
    (beside / "science" / "formulas.py").write_text(
        "from science.deep.constants import FACTOR\n\ndef twice(x):\n    return x * FACTOR\n"
    )
    (beside / "science" / "deep" / "__init__.py").touch()
    (beside / "science" / "deep" / "constants.py").write_text("FACTOR = 2\n")
    (beside / "functions.py").write_text(
        "import science\n\n"
        "def function(info, inputs, outputs):\n    outputs.out = science.twice(inputs.img)\n"
    )
    script = "import os, sys\nimport applier\nfrom functions import function\n"
    (beside / "script.py").write_text(script + ("" if importable else HIDDEN) + CALL)
    python(beside / "script.py")
    assert right()


def test_cells_of_an_interactive_session(python: Any, right: Any, tmp_path: Path) -> None:
    """Functions are defined in one cell, redefined in the next, and used in a third, as in a notebook."""
    cells = [
        "import os\nimport applier\nfactor = 5\n",
        "def function(info, inputs, outputs):\n    outputs.out = inputs.img * factor\n",
        "factor = 2\n",
        CALL,
    ]
    session = f"""
        import code, sys
        shell = code.InteractiveInterpreter(vars(sys.modules["__main__"]))
        for cell in {cells!r}:
            assert shell.runsource(cell, "<cell>", "exec") is False
        sys.exit(0 if "returned" in globals() else 1)
    """
    python("-c", textwrap.dedent(session))
    assert right()


def test_notebook(right: Any, img: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat, nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbformat, nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbformat, nbclient and ipykernel")
    monkeypatch.setenv("IMG", img)
    monkeypatch.setenv("OUT", str(tmp_path / "out.tif"))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(FUNCTION), nbformat.v4.new_code_cell(CALL + "\nreturned.blocks")]
    )
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    assert notebook.cells[1].outputs[-1]["data"]["text/plain"] == "30"
    assert right()


def test_import_is_light(python: Any) -> None:
    heavy = ["rasterio", "boto3", "zmq", "dask", "pandas", "matplotlib", "tqdm", "pytest"]
    listing = f"import sys, applier; print(*[name for name in {heavy!r} if name in sys.modules])"
    assert python("-c", listing).stdout == "\n"


def test_the_call_as_scripts_write_it(img: str, tmp_path: Path, read_raster: Any) -> None:
    """The call as README and RIOS write it, without any helper of these tests."""

    def ratio(info: Any, inputs: Any, outputs: Any) -> None:
        outputs.ratio = (inputs.img[1] / (inputs.img[0] + 1)).astype("float32")[None]

    infiles, outfiles = FilenameAssociations(), FilenameAssociations()
    infiles.img = img
    outfiles.ratio = str(tmp_path / "ratio.tif")
    applier.apply(ratio, infiles, outfiles)
    whole = read_raster(img)
    assert np.array_equal(read_raster(outfiles.ratio)[0], (whole[1] / (whole[0] + 1)).astype("float32"))
