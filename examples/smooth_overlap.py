"""Mean of the 5 x 5 pixels around each pixel: blocks are read with a margin of 2, so there are no seams."""

import tempfile
from pathlib import Path

import numpy as np
import rasterio

import applier

MARGIN = 2


def smooth(info, inputs, outputs):
    image = inputs.image.astype(np.float32)
    squares = np.lib.stride_tricks.sliding_window_view(image, (2 * MARGIN + 1, 2 * MARGIN + 1), axis=(1, 2))
    # The output has the size of the input, margin included; the margin is cut off when it is written.
    outputs.smooth = np.pad(squares.mean(axis=(3, 4)), ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        source, result = Path(name, "image.tif"), Path(name, "smooth.tif")
        noise = np.random.default_rng(1).integers(0, 256, (1, 500, 700), dtype=np.uint8)
        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000)}
        with rasterio.open(
            source, "w", "GTiff", width=700, height=500, count=1, dtype="uint8", **place
        ) as raster:
            raster.write(noise)

        infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
        infiles.image, outfiles.smooth = source, result
        controls = applier.ApplierControls()
        controls.setOverlap(MARGIN)
        controls.setWindowSize(128, 128)
        applier.apply(smooth, infiles, outfiles, controls=controls)

        with rasterio.open(result) as raster:
            print(f"standard deviation {noise.std():.1f} before, {raster.read().std():.1f} after")
