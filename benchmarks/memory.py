"""Memory of the main process on a raster of 20,000 x 20,000, single band: bounded by the window.

Every style runs in a process of its own, whose peak is what the system says when it has ended. The input is
made by `applier` itself, from nothing but a grid.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import heading

STYLES = {
    "CW_NONE": "",
    "CW_NONE, 2 readers": "numReadWorkers=2",
    "CW_THREADS x2": "numComputeWorkers=2, computeWorkerKind=applier.CW_THREADS",
    "CW_SUBPROC x2": "numComputeWorkers=2, computeWorkerKind=applier.CW_SUBPROC",
    "CW_SUBPROC x2, main reads with 1": (
        "numComputeWorkers=2, computeWorkerKind=applier.CW_SUBPROC, "
        "numReadWorkers=1, computeWorkersRead=False"
    ),
}

SCRIPT = """
import resource, sys, time
import applier

def work(info, inputs, outputs):
    outputs.out = inputs.img * 0.5

infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
infiles.img, outfiles.out = sys.argv[1], sys.argv[2]
controls = applier.ApplierControls()
controls.setProgress(None)
controls.setConcurrencyStyle(applier.ConcurrencyStyle({style}))
started = time.perf_counter()
applier.apply(work, infiles, outfiles, controls=controls)
seconds = time.perf_counter() - started
try:
    # getrusage also knows the peak of the process that started this one: Linux hands it on.
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
print(peak * 1024 / 1e6, seconds)
"""


def make_input(path: Path, size: int) -> None:
    """A float32 raster of smooth waves, one band."""
    import numpy as np
    import rasterio
    from rasterio.windows import Window

    profile: dict[str, Any] = {"driver": "GTiff", "tiled": True, "compress": "DEFLATE", "zlevel": 1}
    with rasterio.open(
        path,
        "w",
        width=size,
        height=size,
        count=1,
        dtype="float32",
        crs="EPSG:32618",
        transform=rasterio.transform.from_origin(0, 0, 30, 30),
        **profile,
    ) as dataset:
        x = np.sin(np.arange(size, dtype="float32") / 900)
        for row in range(0, size, 256):
            height = min(256, size - row)
            y = np.cos(np.arange(row, row + height, dtype="float32") / 700)[:, None]
            dataset.write((np.round(1000 * x * y))[None], window=Window(0, row, size, height))


def main(size: int = 20_000) -> None:
    """Run every style once."""
    heading(f"memory of the main process, {size} x {size} float32, one band (goal: below 500 MB)")
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "in.tif", Path(name) / "out.tif"
        make_input(source, size)
        for label, style in STYLES.items():
            script = SCRIPT.replace("{style}", style)
            done = subprocess.run(
                [sys.executable, "-c", script, source, target], check=True, capture_output=True, text=True
            )
            peak, seconds = map(float, done.stdout.split())
            print(f"   {label:34}  peak {peak:6.0f} MB  in {seconds:6.1f} s", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
