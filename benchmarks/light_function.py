"""(c) A trivial function, the sum of two 3-band rasters of 6000 x 6000: what the library itself costs.

Against the two things that a person would write instead: a plain loop over windows with rasterio, and the
same loop with reading and adding in a ThreadPoolExecutor (the writer stays in the main thread: GDAL does not
write from several). All read and write the same files with the same options and the same windows.
"""

from __future__ import annotations

import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from harness import Contestant, alternate, heading, report, timed
from rasterio.windows import Window

import applier

WINDOW = 512
OPTIONS = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "DEFLATE"}


def make_inputs(folder: Path, size: int) -> tuple[Path, Path]:
    """Two rasters of smooth terrain with noise, so that compression has something to do."""
    paths = folder / "a.tif", folder / "b.tif"
    rng = np.random.default_rng(1)
    profile = {"width": size, "height": size, "count": 3, "dtype": "uint16", "crs": "EPSG:32618"}
    profile["transform"] = rasterio.transform.from_origin(0, 0, 30, 30)
    x = np.arange(size)
    for path in paths:
        with rasterio.open(path, "w", **profile, **OPTIONS) as dataset:
            for row in range(0, size, WINDOW):
                height = min(WINDOW, size - row)
                y = np.arange(row, row + height)[:, None]
                base = 3000 + 1500 * np.sin(x / 700) * np.cos(y / 900)
                block = base + rng.integers(0, 60, (3, height, size))
                dataset.write(block.astype("uint16"), window=Window(0, row, size, height))
    return paths


def windows(size: int) -> Iterator[Window]:
    """All windows, row by row."""
    for row in range(0, size, WINDOW):
        for col in range(0, size, WINDOW):
            yield Window(col, row, min(WINDOW, size - col), min(WINDOW, size - row))


def plain_loop(a: Path, b: Path, out: Path, **options: Any) -> None:
    """What a person writes first."""
    with rasterio.open(a) as first, rasterio.open(b) as second:
        profile = {**first.profile, **OPTIONS, **options}
        with rasterio.open(out, "w", **profile) as target:
            for window in windows(first.width):
                target.write(first.read(window=window) + second.read(window=window), window=window)


def thread_pool(a: Path, b: Path, out: Path, threads: int = 2, **options: Any) -> None:
    """What a person writes next: each thread has its own datasets, results are written in order."""
    import threading

    local = threading.local()

    def add(window: Window) -> Any:
        if not hasattr(local, "files"):
            local.files = rasterio.open(a), rasterio.open(b)
        first, second = local.files
        return first.read(window=window) + second.read(window=window)

    with rasterio.open(a) as first:
        profile, size = {**first.profile, **OPTIONS, **options}, first.width
    with rasterio.open(out, "w", **profile) as target, ThreadPoolExecutor(threads) as pool:
        ahead: deque[Any] = deque()
        for window in windows(size):
            ahead.append((window, pool.submit(add, window)))
            if len(ahead) > 4 * threads:
                done, future = ahead.popleft()
                target.write(future.result(), window=done)
        for done, future in ahead:
            target.write(future.result(), window=done)


def add(info: Any, inputs: Any, outputs: Any) -> None:
    """The same with `applier`."""
    outputs.total = inputs.a + inputs.b


def ours(
    a: Path, b: Path, out: Path, *, window: int = WINDOW, checkpoint: Path | None = None, **style: Any
) -> None:
    """The library, with the same windows and options."""
    infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
    infiles.a, infiles.b, outfiles.total = a, b, out
    controls = applier.ApplierControls()
    controls.setWindowSize(window, window)
    controls.setStatsIgnore(None)
    controls.setCreationOptions(
        {"BLOCKXSIZE": "512", "BLOCKYSIZE": "512", "COMPRESS": "DEFLATE", "PREDICTOR": "1"}
    )
    controls.setProgress(None)
    controls.setCheckpoint(checkpoint)
    controls.setConcurrencyStyle(applier.ConcurrencyStyle(**style))
    applier.apply(add, infiles, outfiles, controls=controls)


def main(rounds: int = 5, size: int = 6000) -> None:
    """Run all."""
    heading(f"(c) a trivial function on {size} x {size} x 3 uint16, window {WINDOW}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        a, b = make_inputs(folder, size)

        def call(function: Any, **arguments: Any) -> Contestant:
            return timed(lambda: function(a, b, folder / "out.tif", **arguments))

        contestants = {
            "plain loop": call(plain_loop),
            "thread pool x2": call(thread_pool),
            "thread pool x2, GDAL NUM_THREADS=2": call(thread_pool, num_threads=2),
            "CW_NONE": call(ours),
            "CW_THREADS x2": call(ours, numComputeWorkers=2, computeWorkerKind=applier.CW_THREADS),
            "CW_SUBPROC x2": call(ours, numComputeWorkers=2, computeWorkerKind=applier.CW_SUBPROC),
        }
        seconds = alternate(contestants, rounds)
        report(
            seconds,
            "plain loop",
            goals={
                "CW_NONE": "at least 0.91 (1.1 times the loop's time at most)",
                "CW_THREADS x2": "one of the two at least as fast as the thread pool",
                "CW_SUBPROC x2": "one of the two at least as fast as the thread pool",
            },
        )
        with (
            rasterio.open(folder / "out.tif") as result,
            rasterio.open(a) as first,
            rasterio.open(b) as second,
        ):
            window = Window(1000, 2000, 700, 700)
            assert np.array_equal(
                result.read(window=window), first.read(window=window) + second.read(window=window)
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
