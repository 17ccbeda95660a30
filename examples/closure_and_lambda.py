"""Any callable will do: a function made by a function, or a lambda, also on worker processes."""

import tempfile
from pathlib import Path

import numpy as np
import rasterio

import applier


def above(threshold):
    """Return a function for apply that marks pixels above a threshold; it remembers which."""

    def mark(info, inputs, outputs):
        outputs.result = (inputs.image > threshold).astype(np.uint8)

    return mark


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        source, result = Path(name, "image.tif"), Path(name, "result.tif")
        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000)}
        with rasterio.open(
            source, "w", "GTiff", width=256, height=256, count=1, dtype="uint8", **place
        ) as raster:
            raster.write(np.arange(256, dtype=np.uint8)[None, None].repeat(256, axis=1))

        infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
        infiles.image, outfiles.result = source, result
        controls = applier.ApplierControls()
        style = applier.ConcurrencyStyle(numComputeWorkers=2, computeWorkerKind=applier.CW_SUBPROC)
        controls.setConcurrencyStyle(style)

        invert = lambda info, inputs, outputs: setattr(outputs, "result", 255 - inputs.image)  # noqa: E731
        for what, function in (("above 99", above(99)), ("inverted", invert)):
            applier.apply(function, infiles, outfiles, controls=controls)
            with rasterio.open(result) as raster:
                print(f"{what}: sum {raster.read().sum(dtype=np.int64)}")
