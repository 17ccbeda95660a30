"""What a worker does with one tile: read it, call the user's function, encode what it made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from applier.associations import BlockAssociations, closest_first, symbolic_names
from applier.errors import OutputError
from applier.info import ReaderInfo
from applier.ports import BlockResult, ReadBlock
from applier.raster.encoder import EncodedTile, encode
from applier.raster.grid import PixelGrid
from applier.raster.outputs import OutputSpec
from applier.raster.source import RasterSource
from applier.raster.tiles import Tile, TilePlan

__all__ = ["TileTask"]


@dataclass(frozen=True)
class TileTask:
    """The user's function and all it takes to call it on a tile; pickled once a worker.

    Attributes
    ----------
    function : callable
        The user's.
    source : RasterSource
        Reads tiles, where main has not.
    outputs : tuple of OutputSpec
        What to encode, in the order of the sinks.
    grid, tiles : PixelGrid, TilePlan
        The working grid and its division.
    margin : int
        Pixels of overlap.
    input_paths : mapping
        Files by symbolic name, for `info`.
    """

    function: Callable[..., None]
    source: RasterSource
    outputs: tuple[OutputSpec, ...]
    grid: PixelGrid
    tiles: TilePlan
    margin: int
    input_paths: Mapping[str, str | Sequence[str]]

    def __call__(self, block: Tile | ReadBlock, *other_args: Any) -> BlockResult:
        """Run a tile."""
        clock = time.perf_counter
        started = clock()
        if isinstance(block, ReadBlock):
            tile, content, read_s = block
        else:
            tile, content = block, self.source.read(block)
            read_s = clock() - started
        started = clock()
        outputs = self._call(tile, content, other_args)
        function_s = clock() - started
        started = clock()
        encoded = [self._encode(spec, tile, outputs) for spec in self.outputs]
        return BlockResult(encoded, read_s, function_s, clock() - started)

    def outputs_of(self, block: Tile, *other_args: Any) -> BlockAssociations:
        """What the user's function makes of a tile, not encoded."""
        return self._call(block, self.source.read(block), other_args)

    def _call(self, tile: Tile, content: Mapping[str, Any], other_args: tuple[Any, ...]) -> BlockAssociations:
        info = ReaderInfo(self.grid, tile, self.tiles, self.margin, self.input_paths)
        outputs = BlockAssociations()
        self.function(info, BlockAssociations(content), outputs, *other_args)
        self._check_names(outputs)
        return outputs

    def _check_names(self, outputs: BlockAssociations) -> None:
        known = {spec.name for spec in self.outputs}
        for name in symbolic_names(outputs):
            if name not in known:
                near = closest_first(name, known)
                raise OutputError(
                    f"the function set outputs.{name}, but outfiles has no {name!r}"
                    + (f"; it has: {', '.join(near)}" if near else "; outfiles is empty")
                    + f". Set outfiles.{name} to a file name, or correct the name in the function"
                )

    def _encode(self, spec: OutputSpec, tile: Tile, outputs: BlockAssociations) -> EncodedTile:
        made = vars(outputs).get(spec.name)
        if made is None:
            raise OutputError(
                f"the function did not set outputs.{spec.name}, which is to be written to {spec.path}. Every "
                f"output must be set for every block"
            )
        if spec.seq is None:
            return encode(spec, tile, made)
        wanted = sum(other.name == spec.name for other in self.outputs)
        if not isinstance(made, list) or len(made) != wanted:
            given = f"a list of {len(made)}" if isinstance(made, list) else f"a {type(made).__name__}"
            raise OutputError(
                f"outputs.{spec.name} is {given}, but outfiles.{spec.name} is a list of {wanted} files; "
                f"set it to a list of {wanted} arrays"
            )
        return encode(spec, tile, made[spec.seq])
