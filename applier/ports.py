"""The seams between `applier.engine` and what it knows nothing of: rasters, or any other kind of data.

A kind of data plans a job (`Plan`): where blocks come from, what a worker does with one, and the sinks that
write the results. The engine runs the plan; it never asks what the blocks are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from applier.associations import BlockAssociations

__all__ = ["BlockResult", "BlockSource", "Plan", "ReadBlock", "Sink", "Task"]


class BlockSource(Protocol):
    """Where blocks come from."""

    def __len__(self) -> int:
        """How many blocks there are."""

    def __iter__(self) -> Any:
        """The blocks, lazily and always in the same order: places in the input, not its content."""

    def block(self, index: int) -> Any:
        """The block with this number, from 0."""

    def read(self, block: Any) -> Any:
        """The content of a block. Called in main, in threads and in workers; may be repeated."""


class BlockResult(NamedTuple):
    """What a worker hands back for a block.

    Attributes
    ----------
    encoded : list
        One entry a sink, ready to be written.
    read_s, function_s, encode_s : float
        Seconds spent on each.
    """

    encoded: list[Any]
    read_s: float
    function_s: float
    encode_s: float


class Task(Protocol):
    """What a worker does with a block; pickled once a worker."""

    def __call__(self, block: Any, *other_args: Any) -> BlockResult:
        """Read the block (unless it is a `ReadBlock`), call the user's function, encode what it made."""

    def outputs_of(self, block: Any, *other_args: Any) -> BlockAssociations:
        """What the user's function makes of a block, not encoded."""


class Sink(Protocol):
    """Where one output goes. Its `encode` half runs in the workers (see `BlockResult`)."""

    path: str

    def write(self, encoded: Any) -> None:
        """Add the next block; called in block order."""

    def skip(self, block: Any) -> None:
        """Go on without the next block, of which nothing is known but its place; in block order too.

        What is written there is what says 'nothing known' in the kind of output at hand.
        """

    def finish(self) -> None:
        """Complete the output, still under a temporary name."""

    def commit(self) -> None:
        """Give the output its name."""

    def abort(self) -> None:
        """Leave nothing. Never raises, may be called at any time and again."""


@dataclass(frozen=True)
class Plan:
    """A job, ready to run.

    Attributes
    ----------
    source : BlockSource
        The blocks.
    task : Task
        Called in a worker as ``task(block)`` or ``task(block, otherArgs)``. A block that main has read is
        given as a `ReadBlock`.
    sinks : sequence of Sink
        In the order of `BlockResult.encoded`.
    describe : callable
        Words for a block, for messages.
    environment : callable
        Called for a context manager that is entered in main while the job runs.
    worker_environment : callable
        Called with the number of workers on this machine for their environment variables.
    working_grid : object or None
        Handed on to the caller.
    """

    source: BlockSource
    task: Task
    sinks: Sequence[Sink]
    describe: Callable[[Any], str]
    environment: Callable[[], AbstractContextManager[None]]
    worker_environment: Callable[[int], dict[str, str]]
    working_grid: Any = None


class ReadBlock(NamedTuple):
    """A block together with its content."""

    block: Any
    content: Any
    read_s: float
