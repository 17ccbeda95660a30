"""What the tests of documents share: finding blocks of code, and running a page's as one script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

RunPage = Callable[[Path], "subprocess.CompletedProcess[str]"]


def python_of(page: Path) -> str:
    """Return the page's Python blocks as one script, each on the line numbers that it has in the page."""
    lines = []
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*```", line):
            inside = line.strip() == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small satellite scene of four bands, once."""
    pytest.importorskip("rasterio")
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "synthetic_scene.py", path, "--size", "600"], check=True
    )
    return path


@pytest.fixture
def run_page(tmp_path: Path, scene: Path) -> RunPage:
    """Return a function that runs a page's Python in an empty directory with a scene.tif in it."""

    def run(page: Path) -> subprocess.CompletedProcess[str]:
        (tmp_path / "scene.tif").write_bytes(scene.read_bytes())
        script = tmp_path / "page.py"
        script.write_text(python_of(page), encoding="utf-8")
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, "-W", "error", script.name],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=110,
        )

    return run
