"""The Python in the documentation runs: all blocks of a page, in order, as one script.

A page starts in an empty directory that holds a `scene.tif` of four bands. A line number in a failure is the
line of the page.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    page for page in sorted((REPOSITORY / "docs").rglob("*.md")) if "```python" in page.read_text("utf-8")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY / "docs").as_posix())
def test_blocks_of_page_run(page: Path, run_page: Callable[[Path], CompletedProcess[str]]) -> None:
    done = run_page(page)
    assert done.returncode == 0, done.stderr


def test_there_are_pages_with_code() -> None:
    assert len(PAGES) >= 2
