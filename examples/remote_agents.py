"""Compute on two agents over TCP, as on other machines, and compare with the same without workers.

Both agents run on this machine. To start them on others, put a command before theirs (`prefixes`) that takes
them there: see docs/howto/use_other_machines.md.
"""

import tempfile
from pathlib import Path

from synthetic_scene import make_scene

import applier


def vegetation(info, inputs, outputs):
    red, nir = inputs.scene[2:4].astype("float32")
    outputs.ndvi = ((nir - red) / (nir + red).clip(min=1))[None]


def run(scene, output, style):
    infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
    infiles.scene, outfiles.ndvi = scene, output
    controls = applier.ApplierControls()
    controls.setWindowSize(128, 128)
    controls.setConcurrencyStyle(style)
    return applier.apply(vegetation, infiles, outfiles, controls=controls)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        scene = make_scene(directory / "scene.tif", size=600)
        alone, remote = directory / "alone.tif", directory / "remote.tif"
        run(scene, alone, applier.ConcurrencyStyle())

        agents = applier.ConcurrencyStyle(
            numComputeWorkers=2,  # agents
            computeWorkerKind=applier.CW_AGENTS,
            computeWorkerExtraParams={"slots": 2},  # processes of each
            graceTime=10,  # seconds without a sign of life before its blocks are done elsewhere
        )
        returned = run(scene, remote, agents)

        same = alone.read_bytes() == remote.read_bytes()
        print(f"{returned.blocks} blocks on agents; the same bytes as without: {same}")
