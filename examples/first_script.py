"""Add two rasters, block by block."""

import tempfile
from pathlib import Path

import numpy as np
import rasterio

import applier


def add(info, inputs, outputs):
    # Arrays are (bands, rows, cols). Sums of two bytes need more than a byte.
    outputs.total = inputs.first.astype(np.uint16) + inputs.second


def make_raster(path, value):
    shape = {"count": 1, "height": 600, "width": 800, "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000)}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place) as raster:
        raster.write(np.full((1, 600, 800), value, dtype=np.uint8))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_raster(directory / "first.tif", 200)
        make_raster(directory / "second.tif", 100)

        infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
        infiles.first = directory / "first.tif"
        infiles.second = directory / "second.tif"
        outfiles.total = directory / "total.tif"
        applier.apply(add, infiles, outfiles)

        with rasterio.open(directory / "total.tif") as total:
            print(f"{total.width} x {total.height} {total.dtypes[0]}, all pixels {np.unique(total.read())}")
