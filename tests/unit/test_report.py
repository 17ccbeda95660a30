"""What a job says of the blocks that it has gone on without."""

from __future__ import annotations

from typing import Any

import pytest

from applier import BlocksSkippedWarning
from applier.report import ApplierReturn, SkippedBlock, skipped_warning
from computemanager.model import Skipped


def skipped(number: int, reason: str = "ValueError: no", **changes: Any) -> SkippedBlock:
    whole = Skipped(number, object(), reason, "Traceback ...", worker="thread-1")._replace(**changes)
    return SkippedBlock.of(whole, f"block {number} (row {number})")


def test_a_record_has_what_the_manager_says_but_not_the_block_itself() -> None:
    record = skipped(7, attempts=3)
    assert record == (7, "block 7 (row 7)", "ValueError: no", "Traceback ...", "thread-1", 3)
    assert SkippedBlock.of(Skipped(1, None, "r", "long"), "b", has_traceback=False).traceback == ""


@pytest.mark.parametrize(
    ("reason", "attempts", "shown"),
    [
        ("ValueError: no", 1, "block 4 (row 4): ValueError: no"),
        (
            "it was killed\n  out of\tmemory",
            3,
            "block 4 (row 4): it was killed out of memory (tried 3 times)",
        ),
        ("", 1, "block 4 (row 4): (no reason is known)"),
        ("x" * 500, 1, "block 4 (row 4): " + "x" * 197 + "..."),
    ],
)
def test_a_record_is_shown_in_a_line(reason: str, attempts: int, shown: str) -> None:
    assert str(skipped(4, reason, attempts=attempts)) == shown


def test_the_warning_says_how_many_the_first_few_and_where_the_list_is() -> None:
    warning = skipped_warning([skipped(number) for number in range(5)], 120)
    assert isinstance(warning, BlocksSkippedWarning) and isinstance(warning, UserWarning)
    assert str(warning).splitlines() == [
        "5 of 120 blocks could not be computed and were skipped; the outputs have nodata there:",
        "  block 0 (row 0): ValueError: no",
        "  block 1 (row 1): ValueError: no",
        "  block 2 (row 2): ValueError: no",
        "  ... and 2 more",
        "All of them, with tracebacks, are in skippedBlocks of what apply() returned.",
    ]
    assert str(skipped_warning([skipped(1)], 2)).startswith(
        "1 of 2 blocks could not be computed and was skipped;"
    )


def test_a_return_shows_what_was_skipped() -> None:
    rtn = ApplierReturn(
        workers=2, blocks=97, outputs=["a.tif"], skippedBlocks=[skipped(n) for n in range(23)]
    )
    assert repr(rtn) == "<ApplierReturn: 97 blocks on 2 workers, 23 skipped; a.tif>"
    lines = rtn.summary().splitlines()
    assert lines[:4] == [
        "97 blocks on 2 workers, 23 skipped",
        "  a.tif",
        "skipped:",
        "  block 0 (row 0): ValueError: no",
    ]
    assert lines[22:25] == ["  block 19 (row 19): ValueError: no", "  ... and 3 more", ""]


def test_without_skipped_blocks_nothing_is_said() -> None:
    rtn = ApplierReturn(blocks=2)
    assert rtn.skippedBlocks == [] and "skipped" not in rtn.summary() and "skipped" not in repr(rtn)
