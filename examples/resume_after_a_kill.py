"""Kill a job in the middle, start it again, and see it go on where it was."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from synthetic_scene import make_scene

import applier


def slow_vegetation(info, inputs, outputs):
    time.sleep(0.1)
    red, nir = inputs.scene[2:4].astype("float32")
    outputs.ndvi = ((nir - red) / (nir + red).clip(min=1))[None]


def run(directory):
    infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
    infiles.scene, outfiles.ndvi = directory / "scene.tif", directory / "ndvi.tif"
    controls = applier.ApplierControls()
    controls.setWindowSize(100, 100)
    controls.setCheckpoint(directory / "ndvi.checkpoint")
    return applier.apply(slow_vegetation, infiles, outfiles, controls=controls)


def kill_in_the_middle(directory):
    """Run this script in another process, and kill that as soon as it has kept some blocks."""
    job = subprocess.Popen([sys.executable, __file__, str(directory)])
    records = directory / "ndvi.checkpoint" / "records"
    while job.poll() is None and not (records.exists() and records.stat().st_size > 50_000):
        time.sleep(0.02)
    job.kill()
    job.wait()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(Path(sys.argv[1]))
        sys.exit()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_scene(directory / "scene.tif", size=500)

        kill_in_the_middle(directory)
        print("killed; an output is there:", (directory / "ndvi.tif").exists())

        returned = run(directory)
        print("blocks:", returned.blocks)
        print("some of them kept from before:", 0 < returned.blocksKept < returned.blocks)
        print("a checkpoint is left:", (directory / "ndvi.checkpoint").exists())
