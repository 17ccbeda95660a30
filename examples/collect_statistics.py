"""A histogram of a raster: no output file, each worker counts for itself, and the counts are added up."""

import tempfile
from pathlib import Path

import numpy as np
import rasterio

import applier


def count(info, inputs, outputs, otherArgs):
    # Each worker has its own copy of otherArgs, and keeps it from block to block.
    otherArgs.histogram += np.bincount(inputs.image.ravel(), minlength=256)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "image.tif")
        pixels = np.random.default_rng(1).normal(120, 30, (1, 900, 900)).clip(0, 255).astype(np.uint8)
        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000)}
        with rasterio.open(
            source, "w", "GTiff", width=900, height=900, count=1, dtype="uint8", **place
        ) as raster:
            raster.write(pixels)

        infiles = applier.FilenameAssociations()
        infiles.image = source
        otherArgs = applier.OtherInputs()
        otherArgs.histogram = np.zeros(256, dtype=np.int64)
        controls = applier.ApplierControls()
        controls.setWindowSize(256, 256)
        style = applier.ConcurrencyStyle(
            numComputeWorkers=2, computeWorkerKind=applier.CW_SUBPROC, computeWorkersRead=True
        )
        controls.setConcurrencyStyle(style)
        returned = applier.apply(count, infiles, applier.FilenameAssociations(), otherArgs, controls)

        histogram = sum(copy.histogram for copy in returned.otherArgsList)
        print(f"{histogram.sum()} pixels counted, the most frequent value is {histogram.argmax()}")
