"""Make a satellite scene that looks like one: `python examples/synthetic_scene.py scene.tif --size 4000`.

Four bands (blue, green, red, near infrared) of surface reflectance x 10,000 as uint16, 10 m pixels, nodata 0
outside a tilted footprint. Hills, forest, fields, lakes and rivers, clouds with their shadows, and a sensor
with stripes and noise. The same size and seed always give the same pixels. It is written in strips: memory
does not grow with the height of the scene.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import rasterio

STRIP_ROWS = 256
SUN = np.array([-0.55, -0.45, 0.70], dtype=np.float32)  # from the north-west
#                 blue   green    red    nir
DEEP_WATER = (0.035, 0.030, 0.015, 0.006)
SHALLOWS = (0.065, 0.070, 0.045, 0.015)
BARE_SOIL = (0.080, 0.115, 0.160, 0.230)
STUBBLE = (0.100, 0.150, 0.200, 0.280)
CROP = (0.030, 0.070, 0.035, 0.480)
MEADOW = (0.040, 0.085, 0.060, 0.360)
FOREST = (0.018, 0.038, 0.022, 0.290)
ROCK = (0.140, 0.155, 0.175, 0.220)
CLOUD = (0.620, 0.640, 0.660, 0.680)


class Noise:
    """Fractal noise in 0..1: random values on ever finer lattices, interpolated and added up.

    Any window of it can be asked for, and neighbouring windows fit together.
    """

    def __init__(self, rng: np.random.Generator, size: int, coarsest: int, octaves: int) -> None:
        self.layers = []
        for octave in range(octaves):
            cell = max(coarsest >> octave, 2)
            nodes = (size + 512) // cell + 3
            self.layers.append((cell, 0.5**octave, rng.random((nodes, nodes), dtype=np.float32)))
        self.total = sum(weight for _, weight, _ in self.layers)

    def window(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Return values at these row and column numbers (0 and up), shape (len(rows), len(cols))."""
        result = np.zeros((len(rows), len(cols)), dtype=np.float32)
        for cell, weight, lattice in self.layers:
            row, down = self._split(rows, cell)
            col, right = self._split(cols, cell)
            near = lattice[row[0] : row[-1] + 2]
            across = near[:, col] + right * (near[:, col + 1] - near[:, col])
            row -= row[0]
            result += weight * (across[row] + down[:, None] * (across[row + 1] - across[row]))
        return result / self.total

    @staticmethod
    def _split(positions: np.ndarray, cell: int) -> tuple[np.ndarray, np.ndarray]:
        node, rest = np.divmod(positions, cell)
        part = (rest / cell).astype(np.float32)
        return node, part * part * (3 - 2 * part)


def smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return 0 below `low`, 1 above `high`, and a smooth rise between."""
    part = np.clip((values - low) / (high - low), 0, 1)
    return part * part * (3 - 2 * part)


class Parcels:
    """Fields: strips of random width in a turned coordinate system, each cut into parcels with one crop."""

    def __init__(self, rng: np.random.Generator, size: int, angle: float) -> None:
        self.cos, self.sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        self.shift = size + 16
        reach = 3 * self.shift
        self.strip, self.strip_edge = self._cuts(rng, reach, 34, 80)
        self.piece, self.piece_edge = self._cuts(rng, reach, 45, 190)
        self.offset = rng.integers(0, 200, self.strip[-1] + 1)
        self.green = rng.choice([0.03, 0.10, 0.30, 0.62, 0.85, 0.97], size=4096).astype(np.float32)
        self.tone = rng.uniform(0.85, 1.15, size=4096).astype(np.float32)

    @staticmethod
    def _cuts(rng: np.random.Generator, reach: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        edge = np.zeros(reach, dtype=bool)
        edge[np.cumsum(rng.integers(low, high, reach // low)).clip(max=reach - 1)] = True
        return np.cumsum(edge), edge

    def window(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return how green, how bright, and whether a lane runs there."""
        y, x = rows[:, None].astype(np.float32), cols[None, :].astype(np.float32)
        u = (x * self.cos + y * self.sin).astype(np.int32) + self.shift
        v = (y * self.cos - x * self.sin).astype(np.int32) + self.shift
        strip = self.strip[u]
        v += self.offset[strip].astype(np.int32)
        parcel = (strip * 7919 + self.piece[v] * 104729) % 4096
        return self.green[parcel], self.tone[parcel], self.strip_edge[u] | self.piece_edge[v]


class Scene:
    """All that is random about a scene; any strip of rows can be made from it."""

    def __init__(self, size: int, seed: int = 7) -> None:
        self.size, self.seed = size, seed
        rng = np.random.default_rng(seed)
        self.height = Noise(rng, size, 1024, 9)
        self.moisture = Noise(rng, size, 256, 6)
        self.valleys = Noise(rng, size, 700, 5)
        self.clouds = Noise(rng, size, 600, 8)
        self.canopy = Noise(rng, size, 6, 2)
        self.parcels = Parcels(rng, size, 0.35)
        columns = rng.normal(1.0, 0.006, (4, size)) * np.where(rng.random((4, size)) < 0.002, 0.96, 1.0)
        self.stripes = columns.astype(np.float32)

    def strip(self, first: int, count: int) -> np.ndarray:
        """Return rows `first` to `first + count`, uint16, shape (4, count, size)."""
        rows, cols = np.arange(first, first + count), np.arange(self.size)
        reflectance = self._ground(rows, cols)
        self._cover_with_clouds(reflectance, rows, cols)
        reflectance *= self.stripes[:, None, :]
        rng = np.random.default_rng([self.seed, first])
        reflectance += 0.0025 * rng.standard_normal(reflectance.shape, dtype=np.float32)
        counts = np.clip(np.rint(reflectance * 10_000), 1, 10_000).astype(np.uint16)
        counts[:, ~self._footprint(rows, cols)] = 0
        return counts

    def _ground(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        grown_rows, grown_cols = np.arange(rows[0], rows[-1] + 2), np.arange(cols[0], cols[-1] + 2)
        relief = self.height.window(grown_rows, grown_cols)
        height = relief[:-1, :-1]
        slope_y = 180 * np.diff(relief, axis=0)[:, :-1]
        slope_x = 180 * np.diff(relief, axis=1)[:-1]
        light = (SUN[2] - SUN[0] * slope_x - SUN[1] * slope_y) / np.sqrt(1 + slope_x**2 + slope_y**2)
        light = np.clip(light / SUN[2], 0.35, 1.5)
        moisture = self.moisture.window(rows, cols)
        river = np.abs(self.valleys.window(rows, cols) - 0.5)
        canopy = self.canopy.window(rows, cols) - 0.5
        green, tone, lane = self.parcels.window(rows, cols)

        hilly = smoothstep(height + 0.25 * (moisture - 0.5), 0.50, 0.54)
        stony = smoothstep(height + 0.20 * (moisture - 0.5), 0.66, 0.72)
        wild = hilly * smoothstep(moisture, 0.40, 0.48)
        stream = smoothstep(-river, -0.0055, -0.0040) * (1 - stony)
        water = np.maximum(smoothstep(-height, -0.375, -0.370), stream)
        deep = smoothstep(-height, -0.36, -0.30)
        banks = smoothstep(-river, -0.016, -0.010) * (1 - hilly)
        green = np.clip(green * (0.75 + 0.5 * moisture), 0, 1)

        result = np.empty((4, len(rows), len(cols)), dtype=np.float32)
        for band in range(4):
            soil = np.where(tone > 1, STUBBLE[band], BARE_SOIL[band])
            field = (soil + green * (CROP[band] - soil)) * tone
            field = np.where(lane, 0.5 * (BARE_SOIL[band] + MEADOW[band]), field)
            slopes = MEADOW[band] + wild * (FOREST[band] - MEADOW[band])
            slopes *= 0.8 + 0.4 * moisture + wild * canopy * (1.0 if band == 3 else 0.4)
            land = field + np.maximum(hilly, banks) * (slopes - field)
            land += stony * (ROCK[band] - land)
            land *= 1 + hilly * (light - 1)
            lake = SHALLOWS[band] + deep * (DEEP_WATER[band] - SHALLOWS[band])
            result[band] = land + water * (lake - land)
        return result

    def _cover_with_clouds(self, reflectance: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> None:
        cloud = smoothstep(self.clouds.window(rows, cols), 0.62, 0.72)
        shadow = smoothstep(self.clouds.window(rows + 70, cols + 90), 0.62, 0.72)
        for band in range(4):
            reflectance[band] *= 1 - 0.6 * shadow
            reflectance[band] += cloud * (CLOUD[band] - reflectance[band])

    def _footprint(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        y = (rows[:, None] + 0.5) / self.size - 0.5
        x = (cols[None, :] + 0.5) / self.size - 0.5
        angle = 0.17
        across = x * np.cos(angle) + y * np.sin(angle)
        along = y * np.cos(angle) - x * np.sin(angle)
        return (np.abs(across) < 0.43) & (np.abs(along) < 0.43)


def make_scene(path: str | os.PathLike[str], size: int = 4000, seed: int = 7) -> Path:
    """Write a GeoTIFF of `size` x `size` pixels; it appears under its name when it is complete."""
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    scene = Scene(size, seed)
    profile = {
        "driver": "GTiff", "dtype": "uint16", "count": 4, "width": size, "height": size, "nodata": 0,
        "crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 399_960, 0, -10, 5_300_040),
        "tiled": True, "blockxsize": 256, "blockysize": 256,
        "compress": "deflate", "zlevel": 1, "predictor": 2, "num_threads": "all_cpus",
    }  # fmt: skip
    with rasterio.open(unfinished, "w", **profile) as dataset:
        for band, name in enumerate(("blue", "green", "red", "near infrared"), 1):
            dataset.set_band_description(band, name)
        for first in range(0, size, STRIP_ROWS):
            count = min(STRIP_ROWS, size - first)
            dataset.write(scene.strip(first, count), window=((first, first + count), (0, size)))
    os.replace(unfinished, path)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a synthetic satellite scene (GeoTIFF).")
    parser.add_argument("path", nargs="?", default="scene.tif")
    parser.add_argument("--size", type=int, default=4000, help="rows and columns (default 4000)")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    print(make_scene(arguments.path, arguments.size, arguments.seed))
