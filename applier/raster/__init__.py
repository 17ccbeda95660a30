"""Rasters: pixel grids, the plan of tiles, reading, and writing.

- `applier.raster.planning`: from the arguments of `applier.apply` to a plan
- `applier.raster.task`: what a worker does with a tile
- `applier.raster.grid`: the algebra of pixel grids (pure)
- `applier.raster.tiles`: the lazy plan of tiles (pure)
- `applier.raster.blocking`: how large a block is, and what GDAL has to keep
- `applier.raster.datasets`: opened files, one cache a thread; the only place that opens one to read
- `applier.raster.source`: reads one tile of all inputs
- `applier.raster.outputs`: what an output is to be, and whether GDAL agrees
- `applier.raster.encoder`: the worker's half of writing: a block becomes compressed chunks
- `applier.raster.tiff`: the bytes of a TIFF file's head (pure)
- `applier.raster.sink`: main's half of writing: places chunks, commits the file
"""

from __future__ import annotations

__all__: list[str] = []
