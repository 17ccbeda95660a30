"""The README's code runs, its commands are the ones that CI runs, and its links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text("utf-8")


def marked_command(marker: str) -> str:
    match = re.search(rf"^<!-- {marker} -->\n```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert match is not None, f"README.md has no command marked {marker}"
    return match[1].strip()


def test_python_runs_and_computes_ndvi(
    run_page: Callable[[Path], CompletedProcess[str]], tmp_path: Path
) -> None:
    rasterio = pytest.importorskip("rasterio")
    done = run_page(REPOSITORY / "README.md")
    assert done.returncode == 0, done.stderr
    with rasterio.open(tmp_path / "scene.tif") as scene, rasterio.open(tmp_path / "ndvi.tif") as result:
        red, nir = scene.read([3, 4]).astype(np.float64)
        found = result.read(1)
    valid = red + nir > 0
    np.testing.assert_allclose(found[valid], (nir - red)[valid] / (nir + red)[valid], rtol=0, atol=1e-6)


@pytest.mark.parametrize("marker", ["main-command", "test-command"])
def test_commands_are_one_line_and_ci_runs_them(marker: str) -> None:
    command = marked_command(marker)
    assert "\n" not in command
    assert command.startswith("python3 -m venv .venv && ")
    assert f"run_readme {marker}\n" in (REPOSITORY / ".ci" / "run").read_text("utf-8")


def test_main_command_runs_a_file_that_exists() -> None:
    script = re.search(r"\S+\.py", marked_command("main-command"))
    assert script is not None
    assert (REPOSITORY / script[0]).is_file()


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []
