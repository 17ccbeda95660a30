"""Every example runs, and says what it should; the main one also takes bad input gracefully."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))

# Arguments that keep an example short, and what its output has to hold. The numbers follow from the
# example's data; a new example needs an entry here.
EXPECTED = {
    "closure_and_lambda.py": ([], [f"above 99: sum {156 * 256}", f"inverted: sum {255 * 256 // 2 * 256}"]),
    "collect_statistics.py": ([], ["810000 pixels counted"]),
    "first_script.py": ([], ["800 x 600 uint16, all pixels [300]"]),
    "ndvi.py": (["--size", "300", "--workers", "2", "--out", "out"], ["quicklook.png"]),
    "remote_agents.py": ([], ["25 blocks on agents; the same bytes as without: True"]),
    "resume_after_a_kill.py": (
        [],
        [
            "an output is there: False",
            "blocks: 25",
            "some of them kept from before: True",
            "a checkpoint is left: False",
        ],
    ),
    "smooth_overlap.py": ([], ["standard deviation 73.9 before, 15.5 after"]),
    "synthetic_scene.py": (["scene.tif", "--size", "300"], ["scene.tif"]),
}


def run_example(name: str, arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-W", "error", str(REPOSITORY / "examples" / name), *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=110,
    )


def ndvi(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_example("ndvi.py", list(arguments), directory)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    arguments, expected = EXPECTED[example.name]
    done = run_example(example.name, arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [text for text in expected if text not in done.stdout] == []
    assert done.stderr == ""


def test_ndvi_is_the_formula_and_the_kind_of_worker_changes_nothing(tmp_path: Path) -> None:
    for kind in ("CW_NONE", "CW_SUBPROC"):
        done = ndvi(tmp_path, "--size", "300", "--workers", "2", "--kind", kind, "--out", kind)
        assert done.returncode == 0, done.stderr
    with rasterio.open(tmp_path / "CW_NONE" / "scene-300.tif") as scene:
        red, nir = scene.read([3, 4]).astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = (nir - red) / (nir + red)
    with rasterio.open(tmp_path / "CW_NONE" / "ndvi.tif") as result:
        found = result.read(1, masked=True)
    assert np.array_equal(np.ma.getmaskarray(found), np.isnan(expected))
    assert 0.05 < np.isnan(expected).mean() < 0.5  # a scene with a border
    np.testing.assert_allclose(found.compressed(), expected[~np.isnan(expected)], rtol=0, atol=1e-6)
    for name in ("ndvi.tif", "texture.tif", "quicklook.png"):
        assert (tmp_path / "CW_NONE" / name).read_bytes() == (tmp_path / "CW_SUBPROC" / name).read_bytes()


def test_ndvi_takes_an_image_of_the_user(tmp_path: Path, shared_data: Path) -> None:
    image = shared_data / "raster" / "landsat7_saltlake_7band_4326.tif"
    done = ndvi(tmp_path, "--image", str(image), "--red", "3", "--nir", "4", "--workers", "2", "--out", ".")
    assert done.returncode == 0, done.stderr
    with rasterio.open(image) as source, rasterio.open(tmp_path / "ndvi.tif") as result:
        red, nir = source.read([3, 4]).astype(np.float64)
        assert (result.crs, result.transform, result.shape) == (source.crs, source.transform, source.shape)
        found = result.read(1)
    valid = red + nir > 0
    assert (found[~valid] == -9999).all()
    np.testing.assert_allclose(found[valid], ((nir - red)[valid] / (nir + red)[valid]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "missing.tif"], ["missing.tif", "does not exist"]),
        (["--image", "notes.txt"], ["notes.txt", "cannot be read as an image"]),
        (["--image", "three.tif", "--red", "1", "--nir", "4"], ["--nir 4", "bands 1 to 3"]),
        (["--image", "three.tif", "--red", "0", "--nir", "2"], ["--red 0", "bands 1 to 3"]),
        (["--workers", "0"], ["--workers 0", "1 or more"]),
        (["--out", "notes.txt"], ["notes.txt", "not a directory"]),
    ],
)
def test_ndvi_says_in_one_line_what_is_wrong(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 0, 0, -10, 0)}
    three = {"width": 8, "height": 8, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "three.tif", "w", "GTiff", **three, **place):
        pass
    done = ndvi(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert [word for word in words if word not in done.stderr] == []


def test_a_scene_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    from synthetic_scene import Noise

    noise = Noise(np.random.default_rng(3), 300, 64, 5)
    whole = noise.window(np.arange(300), np.arange(300))
    assert 0 <= whole.min() < 0.4 < 0.6 < whole.max() <= 1
    assert np.array_equal(noise.window(np.arange(101, 200), np.arange(7, 300)), whole[101:200, 7:])
