"""Reading tiles, against slices of the whole array with a wide frame of fill around it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from applier.errors import FileOpenError
from applier.raster.datasets import close_all, describe
from applier.raster.source import RasterInput, RasterSource
from applier.raster.tiles import Tile, TilePlan

FRAME = 60
ARRAY = np.random.default_rng(3).integers(1, 200, (4, 37, 53)).astype("int16")
HERE = rasterio.Affine(2.0, 0.0, 10.0, 0.0, -2.0, 20.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("source") / "a.tif")
    save(path, ARRAY, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    yield path
    close_all()


def save(path: str, array: np.ndarray, **options: object) -> None:
    profile = {
        "count": len(array),
        "height": array.shape[1],
        "width": array.shape[2],
        "dtype": array.dtype.name,
    }
    with rasterio.open(path, "w", driver="GTiff", transform=HERE, **profile, **options) as dataset:
        dataset.write(array)


def raster_input(
    path: str, layers=(1,), dtype="int16", offset=(0, 0), fill=None, name="a", seq=None
) -> RasterInput:
    return RasterInput(name, seq, path, tuple(layers), dtype, *offset, fill or (None,) * len(layers))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offset=st.tuples(st.integers(-25, 25), st.integers(-25, 25)),
    origin=st.tuples(st.integers(0, 40), st.integers(0, 60)),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    margin=st.integers(0, 8),
    layers=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    dtype=st.sampled_from(["int16", "float64"]),
    data=st.data(),
)
def test_any_window_is_a_slice_of_the_framed_array(  # noqa: PLR0913 - one each for what may vary
    path, offset, origin, size, margin, layers, dtype, data
) -> None:
    fill = data.draw(st.tuples(*[st.sampled_from([None, 0.0, -7.0, 300.0])] * len(layers)))
    source = RasterSource((raster_input(path, layers, dtype, offset, fill),), margin)
    tile = Tile(0, 0, 0, *origin, *size)
    block = source.read(tile)["a"]

    framed = np.stack(
        [
            np.pad(ARRAY[layer - 1].astype(dtype), FRAME + 60, constant_values=value or 0)
            for layer, value in zip(layers, fill, strict=True)
        ]
    )
    row, col = (o + s + FRAME + 60 - margin for o, s in zip(origin, offset, strict=True))
    expected = framed[:, row : row + size[0] + 2 * margin, col : col + size[1] + 2 * margin]
    assert isinstance(block, np.ndarray)
    np.testing.assert_array_equal(block, expected)
    assert block.dtype == dtype and block.flags.writeable and block.flags.c_contiguous


@pytest.mark.parametrize(
    ("fill", "dtype", "expected"),
    [
        (-9999.0, "uint8", 0),
        (float("nan"), "int16", 0),
        (0.5, "int16", 0),
        (255.0, "uint8", 255),
        (float("nan"), "float32", np.nan),
    ],
)
def test_a_nodata_value_without_place_in_the_type_is_0(path, fill, dtype, expected) -> None:
    source = RasterSource((raster_input(path, (1,), dtype, (-100, 0), (fill,)),))
    np.testing.assert_array_equal(
        source.read(Tile(0, 0, 0, 0, 0, 3, 3))["a"], np.full((1, 3, 3), expected, dtype)
    )


def test_lists_come_as_lists_in_their_order(path, tmp_path) -> None:
    save(str(tmp_path / "b.tif"), ARRAY[:2] + 1000)
    source = RasterSource(
        (
            raster_input(path, (2,), name="many", seq=0),
            raster_input(str(tmp_path / "b.tif"), (1, 2), name="many", seq=1),
            raster_input(path, (1,), name="one"),
        )
    )
    blocks = source.read(Tile(0, 0, 0, 4, 5, 6, 7))
    assert list(blocks) == ["many", "one"] and isinstance(blocks["many"], list)
    np.testing.assert_array_equal(blocks["many"][0], ARRAY[1:2, 4:10, 5:12])
    np.testing.assert_array_equal(blocks["many"][1], ARRAY[:2, 4:10, 5:12] + 1000)


def test_bands_of_several_types_come_in_the_common_type(tmp_path) -> None:
    """A VRT of two files; GDAL reads such bands one at a time."""
    save(str(tmp_path / "a.tif"), ARRAY[:1].astype("uint8"))
    save(str(tmp_path / "b.tif"), ARRAY[1:2].astype("float32") / 3)
    band = (
        '<VRTRasterBand dataType="{0}" band="{1}"><SimpleSource><SourceFilename relativeToVRT="1">{2}'
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    )
    bands = band.format("Byte", 1, "a.tif") + band.format("Float32", 2, "b.tif")
    path = tmp_path / "both.vrt"
    path.write_text(
        '<VRTDataset rasterXSize="53" rasterYSize="37"><GeoTransform>10, 2, 0, 20, 0, -2</GeoTransform>'
        f"{bands}</VRTDataset>"
    )
    assert describe(path).dtypes == ("uint8", "float32")
    source = RasterSource((raster_input(str(path), (1, 2), "float32", fill=(9.0, -1.0)),), margin=2)
    block = source.read(Tile(0, 0, 0, 0, 0, 10, 10))["a"]
    whole = np.stack([ARRAY[0].astype("f4"), ARRAY[1].astype("f4") / 3])
    expected = np.stack([np.pad(w, 2, constant_values=v) for w, v in zip(whole, (9, -1), strict=True)])
    np.testing.assert_array_equal(block, expected[:, :14, :14])
    close_all()


def test_threads_and_pickles_read_the_same(path) -> None:
    source = pickle.loads(pickle.dumps(RasterSource((raster_input(path, (1, 2, 3, 4)),), margin=3)))
    plan = TilePlan(37, 53, 8, 8)
    padded = np.pad(ARRAY, ((0, 0), (3, 3), (3, 3)))
    with ThreadPoolExecutor(4) as pool:
        for tile, blocks in zip(plan, pool.map(source.read, plan), strict=True):
            bottom, right = tile.row + tile.height + 6, tile.col + tile.width + 6
            np.testing.assert_array_equal(blocks["a"], padded[:, tile.row : bottom, tile.col : right])


def test_damage_names_file_and_window(path, tmp_path) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) * 2 // 3 :] = b"\xff" * (len(data) - len(data) * 2 // 3)
    (tmp_path / "bad.tif").write_bytes(data)
    source = RasterSource((raster_input(str(tmp_path / "bad.tif"), (1, 2, 3, 4)),))
    with pytest.raises(FileOpenError, match="rows 0 to 36, columns 0 to 52") as caught:
        source.read(Tile(0, 0, 0, 0, 0, 37, 53))
    assert "bad.tif" in str(caught.value) and "GDAL says" in str(caught.value)
    assert "previous exception" not in str(caught.value)
    close_all()


def test_real_data_tile_by_tile(shared_data: Path) -> None:
    path = str(shared_data / "raster/bahamas_rgb_utm18n_300m.tif")
    with rasterio.open(path) as dataset:
        whole = np.pad(dataset.read(), ((0, 0), (5, 5), (5, 5)))
    facts = describe(path)
    source = RasterSource((raster_input(path, (1, 2, 3), "uint8", fill=facts.nodata),), margin=5)
    for tile in TilePlan(facts.grid.height, facts.grid.width, 200, 300):
        bottom, right = tile.row + tile.height + 10, tile.col + tile.width + 10
        np.testing.assert_array_equal(source.read(tile)["a"], whole[:, tile.row : bottom, tile.col : right])
    close_all()
