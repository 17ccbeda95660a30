"""From the arguments of `apply` to a plan: grid, tiles, what to read, what to write. Checks all it can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from applier.associations import FilenameAssociations, symbolic_names
from applier.concurrency import ConcurrencyStyle
from applier.constants import BOUNDS_FROM_REFERENCE, CW_THREADS
from applier.controls import ApplierControls
from applier.errors import ControlsError, FileOpenError, require
from applier.ports import Plan

__all__ = ["plan_rasters"]

require("rasterio", "raster")

from applier.raster.blocking import GdalCache, choose_window  # noqa: E402 (after the check above)
from applier.raster.datasets import RasterFacts, describe  # noqa: E402
from applier.raster.grid import PixelGrid, common_grid  # noqa: E402
from applier.raster.outputs import OutputSpec  # noqa: E402
from applier.raster.sink import RasterSink  # noqa: E402
from applier.raster.source import RasterInput, RasterSource  # noqa: E402
from applier.raster.task import TileTask  # noqa: E402
from applier.raster.tiles import Tile, TilePlan  # noqa: E402


@dataclass(frozen=True)
class _TileSource:
    """The tiles of a job and how to read them (a `applier.ports.BlockSource`)."""

    tiles: TilePlan
    source: RasterSource

    def __len__(self) -> int:
        return len(self.tiles)

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)

    def block(self, index: int) -> Tile:
        """The tile with this number."""
        return self.tiles.tile(index)

    def read(self, block: Tile) -> Any:
        """See `RasterSource.read`."""
        return self.source.read(block)


def plan_rasters(
    function: Callable[..., None],
    infiles: FilenameAssociations,
    outfiles: FilenameAssociations,
    controls: ApplierControls,
) -> Plan:
    """Plan a job on rasters.

    Raises
    ------
    FileOpenError, GridMismatchError, ControlsError
        If the files or controls cannot be used. Nothing has been created then.
    """
    controls.check_imagenames(symbolic_names(infiles), symbolic_names(outfiles))
    _check_paths(infiles, outfiles)
    facts = [(name, seq, describe(path)) for name, seq, path in infiles]
    grid = _working_grid(facts, controls)
    margin = controls.grid.overlap
    source = RasterSource(tuple(_input(name, seq, each, grid, controls) for name, seq, each in facts), margin)
    inputs = [each for _, _, each in facts]
    tiles = _tiles(grid, inputs, controls, outfiles)
    cache = GdalCache.for_reading(inputs, tiles, margin, _main_readers(controls.run.concurrency))
    outputs = tuple(_output(name, seq, path, grid, tiles, controls) for name, seq, path in outfiles)
    for spec in outputs:
        spec.validate()
    task = TileTask(
        function, source, outputs, grid, tiles, margin, {n: infiles[n] for n in symbolic_names(infiles)}
    )
    return Plan(
        source=_TileSource(tiles, source),
        task=task,
        sinks=[RasterSink(spec, controls.run.tempdir) for spec in outputs],
        describe=_describe,
        environment=cache.environment,
        worker_environment=cache.worker_environment,
        working_grid=grid,
    )


def _check_paths(infiles: FilenameAssociations, outfiles: FilenameAssociations) -> None:
    inputs = {os.path.realpath(path): (name, path) for name, _, path in infiles}
    seen: dict[str, str] = {}
    for name, _, path in outfiles:
        real = os.path.realpath(path)
        if real in inputs:
            raise ControlsError(
                f"outfiles.{name} is {path}, which is also infiles.{inputs[real][0]}. Write to another file"
            )
        if real in seen:
            raise ControlsError(f"outfiles.{name} and outfiles.{seen[real]} are both {path}. Name two files")
        seen[real] = name
        folder = os.path.dirname(real)
        if not os.path.isdir(folder):
            raise FileOpenError(
                f"outfiles.{name} is {path}, but there is no directory {folder}. Make it first"
            )
        if os.path.isdir(real):
            raise FileOpenError(f"outfiles.{name} is {path}, which is a directory. Name a file in it")
        if not os.access(folder, os.W_OK):
            raise FileOpenError(f"outfiles.{name} is {path}, but {folder} may not be written to by this user")


def _working_grid(facts: list[tuple[str, int | None, RasterFacts]], controls: ApplierControls) -> PixelGrid:
    options = controls.grid
    grids = [(each.path, each.grid) for _, _, each in facts]
    if options.reference_image is None:
        if options.footprint == BOUNDS_FROM_REFERENCE:
            raise ControlsError(
                "controls.setFootprintType(applier.BOUNDS_FROM_REFERENCE) needs a reference: add "
                "controls.setReferenceImage(...) with the name of an input"
            )
        if not grids:
            raise ControlsError(
                "infiles is empty, so there is no grid to work on: set an input, or a raster whose "
                "grid to use, with controls.setReferenceImage('file.tif')"
            )
        return common_grid(grids, options.footprint)
    position = _reference(options.reference_image, facts)
    if position is not None:
        return common_grid(grids, options.footprint, position)
    reference = describe(options.reference_image)
    grids.append((reference.path, reference.grid))
    # A reference that is no input fixes the pixels; it takes part in the extent only where it defines it.
    if options.footprint == BOUNDS_FROM_REFERENCE or not facts:
        return common_grid(grids, BOUNDS_FROM_REFERENCE, len(grids) - 1)
    common_grid(grids, BOUNDS_FROM_REFERENCE, len(grids) - 1)
    return common_grid(grids[:-1], options.footprint)


def _reference(name: str, facts: list[tuple[str, int | None, RasterFacts]]) -> int | None:
    """Which input a reference is: by its symbolic name, else by its file name."""
    for position, (symbolic, _, each) in enumerate(facts):
        if name == symbolic or os.path.realpath(name) == os.path.realpath(each.path):
            return position
    return None


def _input(
    name: str, seq: int | None, facts: RasterFacts, grid: PixelGrid, controls: ApplierControls
) -> RasterInput:
    layers = controls.read_options(name).layers or tuple(range(1, facts.count + 1))
    for layer in layers:
        if layer > facts.count:
            raise ControlsError(
                f"selectInputImageLayers asks for layer {layer} of infiles.{name} ({facts.path}), which has "
                f"{facts.count} (counted from 1)"
            )
    row, col = facts.grid.pixel_offset_to(grid)
    return RasterInput(
        name=name,
        seq=seq,
        path=facts.path,
        layers=layers,
        dtype=np.result_type(*[np.dtype(facts.dtypes[layer - 1]) for layer in layers]).name,
        row_offset=row,
        col_offset=col,
        fill=tuple(facts.nodata[layer - 1] for layer in layers),
    )


def _tiles(
    grid: PixelGrid, inputs: list[RasterFacts], controls: ApplierControls, outfiles: FilenameAssociations
) -> TilePlan:
    """Cut the grid as the user says, or as suits the files."""
    size = controls.grid.window_size
    if size is not None:
        return TilePlan(grid.height, grid.width, window_height=size[1], window_width=size[0])
    chunk = None
    for name in symbolic_names(outfiles):
        options = dict(controls.output_options(name).creation_options)
        own = [options.get("BLOCKYSIZE", ""), options.get("BLOCKXSIZE", "")]
        if all(text.isdigit() and int(text) > 0 for text in own):
            chunk = int(own[0]), int(own[1])
    height, width = choose_window(grid, inputs, chunk)
    return TilePlan(grid.height, grid.width, window_height=height, window_width=width)


def _main_readers(style: ConcurrencyStyle) -> int:
    """Threads of the main process that read."""
    if style.workers_read:
        return style.numComputeWorkers if style.computeWorkerKind == CW_THREADS else 1
    return max(1, style.numReadWorkers)


def _output(
    name: str, seq: int | None, path: str, grid: PixelGrid, tiles: TilePlan, controls: ApplierControls
) -> OutputSpec:
    options = controls.output_options(name)
    return OutputSpec.create(
        name,
        path,
        grid,
        (tiles.window_height, tiles.window_width),
        seq=seq,
        driver=options.driver,
        margin=controls.grid.overlap,
        nodata=options.stats_ignore,
        creation_options=options.creation_options,
    )


def _describe(tile: Tile) -> str:
    return (
        f"block {tile.block_index} (block row {tile.block_row}, block column {tile.block_col}; window: "
        f"rows {tile.row} to {tile.row + tile.height - 1}, columns {tile.col} to {tile.col + tile.width - 1})"
    )
