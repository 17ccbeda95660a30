"""How green is a scene, and how rough? NDVI and its local entropy, block by block, on all cores.

    python examples/ndvi.py                                      a synthetic scene, made on the first run
    python examples/ndvi.py --image scene.tif --red 3 --nir 4    your own

NDVI = (nir - red) / (nir + red) is high where plants grow. The entropy of NDVI in the 9 x 9 pixels around a
pixel tells edges and woodland (rough) from fields and water (smooth); it is slow enough to be shared out.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

import numpy as np

import applier
from computemanager.errors import ComputeManagerError

NODATA = -9999.0
RADIUS = 4  # the neighbourhood is 2 * RADIUS + 1 pixels wide
LEVELS = 64  # NDVI from 0 to 1 is sorted into so many classes to count; water, below 0, is in the lowest


def vegetation(info, inputs, outputs, otherArgs):
    """Compute both outputs for one block; arrays are (bands, rows, cols), margin included."""
    red, nir = inputs.image.astype(np.float32)
    total = red + nir
    valid = (total > 0) & (inputs.image != otherArgs.nodata).all(axis=0)
    ndvi = np.divide(nir - red, total, out=np.zeros_like(total), where=valid)
    outputs.ndvi = np.where(valid, ndvi, np.float32(NODATA))[None]
    outputs.texture = np.where(valid, local_entropy(ndvi, valid), np.float32(NODATA))[None]


def local_entropy(values, valid):
    """Return Shannon entropy, in bits, of the valid values in the square around each pixel.

    The outermost RADIUS rows and columns stay 0: their squares are not complete. They are the block's margin.
    """
    level = np.clip(values * LEVELS, 0, LEVELS - 1).astype(np.int8)
    level[~valid] = -1
    largest = (2 * RADIUS + 1) ** 2
    counts = np.arange(largest + 1)
    n_log_n = (counts * np.log2(np.maximum(counts, 1))).astype(np.float32)
    number = count_around(valid)
    total = np.zeros(number.shape, dtype=np.float32)
    for one in range(LEVELS):
        total += n_log_n[count_around(level == one)]
    inner = np.log2(np.maximum(number, 1), dtype=np.float32) - total / np.maximum(number, 1, dtype=np.float32)
    entropy = np.zeros(values.shape, dtype=np.float32)
    entropy[RADIUS:-RADIUS, RADIUS:-RADIUS] = np.maximum(inner, 0)
    return entropy


def count_around(mask):
    """Return how many pixels are true in each complete square; RADIUS pixels less on every side."""
    width = 2 * RADIUS + 1
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int32)
    mask.cumsum(axis=0, dtype=np.int32, out=sums[1:, 1:]).cumsum(axis=1, out=sums[1:, 1:])
    return sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width]


def run(arguments):
    """Process the scene; return what `applier.apply` returned and the paths of both outputs."""
    image = arguments.image or synthetic_scene(arguments.out, arguments.size)
    infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
    infiles.image = image
    outfiles.ndvi = arguments.out / "ndvi.tif"
    outfiles.texture = arguments.out / "texture.tif"

    otherArgs = applier.OtherInputs()
    otherArgs.nodata = check_image(image, arguments.red, arguments.nir)

    controls = applier.ApplierControls()
    controls.selectInputImageLayers([arguments.red, arguments.nir], imagename="image")
    controls.setOverlap(RADIUS)
    controls.setStatsIgnore(NODATA)
    if arguments.kind != applier.CW_NONE:
        style = applier.ConcurrencyStyle(
            numComputeWorkers=arguments.workers,
            computeWorkerKind=arguments.kind,
            computeWorkersRead=True,
        )
        controls.setConcurrencyStyle(style)
    returned = applier.apply(vegetation, infiles, outfiles, otherArgs, controls)
    return returned, Path(outfiles.ndvi), Path(outfiles.texture)


def check_image(path, red, nir):
    """Return the image's nodata value (or None) if it can be read and has these bands."""
    import rasterio

    try:
        with rasterio.open(path) as dataset:
            count, nodata = dataset.count, dataset.nodata
    except rasterio.errors.RasterioIOError as error:
        what = f"cannot be read as an image ({error})" if os.path.exists(path) else "does not exist"
        raise UsageError(f"--image {path}: {what}") from error
    for option, band in (("--red", red), ("--nir", nir)):
        if not 1 <= band <= count:
            raise UsageError(f"{option} {band}: {path} has bands 1 to {count}")
    return nodata


def synthetic_scene(directory, size):
    """Return the path of a synthetic scene, made now if an earlier run has not left it here."""
    from synthetic_scene import make_scene

    path = directory / f"scene-{size}.tif"
    if not path.exists():
        print(f"Making a synthetic scene of {size} x {size} pixels in {path} ...", flush=True)
        make_scene(path, size)
    return path


GREENNESS = ["#27408b", "#a5411f", "#e39a55", "#f6e8a6", "#8cc665", "#1b7837", "#00441b"]  # NDVI -0.3 to 0.9
ROUGHNESS = ["#0b0724", "#43106e", "#99266b", "#e15635", "#fca60c", "#fcfda4"]  # 0 to 4.5 bits


def quicklook(ndvi, texture, path, pixels=1000):
    """Write both outputs side by side as a small picture; nodata is transparent."""
    import rasterio

    left = coloured(ndvi, pixels, -0.3, 0.9, GREENNESS)
    right = coloured(texture, pixels, 0.0, 4.5, ROUGHNESS)
    gap = np.zeros((4, left.shape[1], max(pixels // 50, 1)), dtype=np.uint8)
    picture = np.concatenate([left, gap, right], axis=2)
    profile = {"driver": "PNG", "dtype": "uint8", "count": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # a picture is not a map
        with rasterio.open(path, "w", height=picture.shape[1], width=picture.shape[2], **profile) as png:
            png.write(picture)


def coloured(path, pixels, low, high, ramp):
    """Return a raster averaged down to `pixels` and coloured: uint8 RGBA, shape (4, rows, cols)."""
    import rasterio

    with rasterio.open(path) as dataset:
        step = max(dataset.height, dataset.width) / min(pixels, max(dataset.height, dataset.width))
        shape = (max(round(dataset.height / step), 1), max(round(dataset.width / step), 1))
        average = rasterio.enums.Resampling.average
        values = dataset.read(1, out_shape=shape, resampling=average, masked=True)
    colours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in ramp])
    stops = np.linspace(low, high, len(ramp))
    result = np.empty((4, *shape), dtype=np.uint8)
    for channel in range(3):
        result[channel] = np.rint(np.interp(values.filled(low), stops, colours[:, channel]))
    result[3] = np.where(np.ma.getmaskarray(values), 0, 255)
    return result


class UsageError(Exception):
    """The command line asks for what cannot be done."""


def parse(argv):
    """Return the command line's arguments, checked as far as that goes without opening files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    kinds = [applier.CW_SUBPROC, applier.CW_THREADS, applier.CW_NONE]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, help="your own raster (default: a synthetic scene)")
    parser.add_argument("--red", type=int, default=3, help="number of the red band (default 3)")
    parser.add_argument("--nir", type=int, default=4, help="number of the near infrared band (default 4)")
    parser.add_argument(
        "--out", type=Path, default=Path("ndvi-out"), help="directory for all that is written"
    )
    parser.add_argument("--workers", type=int, default=cores, help=f"default: all cores, here {cores}")
    parser.add_argument("--kind", choices=kinds, default=applier.CW_SUBPROC, help="kind of worker")
    parser.add_argument("--size", type=int, default=4000, help="rows and columns of the synthetic scene")
    arguments = parser.parse_args(argv)
    for option, least in (("workers", 1), ("size", 64)):
        if getattr(arguments, option) < least:
            raise UsageError(f"--{option} {getattr(arguments, option)}: must be {least} or more")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UsageError(f"--out {arguments.out}: is a file, not a directory")
    return arguments


def main(argv=None):
    """Run the example; return the exit status."""
    try:
        arguments = parse(argv)
        arguments.out.mkdir(parents=True, exist_ok=True)
        returned, ndvi, texture = run(arguments)
    except (UsageError, ComputeManagerError, OSError) as error:
        print(f"ndvi.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, (UsageError, OSError)) else 1
    picture = arguments.out / "quicklook.png"
    quicklook(ndvi, texture, picture)
    print(returned.timings.formatReport())
    print("Written:")
    for path, what in ((ndvi, "NDVI"), (texture, "entropy of NDVI, bits"), (picture, "a look at both")):
        print(f"  {str(path):28} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
