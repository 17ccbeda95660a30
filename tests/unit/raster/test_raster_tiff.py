"""Heads of TIFF files: what GDAL wrote is read right, what is built GDAL reads, and nonsense is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.io import MemoryFile

from applier.raster import tiff

HERE = rasterio.Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 6000000.0)


def gdal_file(array: np.ndarray, **options: object) -> bytes:
    with MemoryFile() as memory:
        profile = {
            "height": array.shape[1],
            "width": array.shape[2],
            "count": len(array),
            "dtype": array.dtype.name,
        }
        with memory.open(
            driver="GTiff", transform=HERE, crs="EPSG:32632", nodata=7, **profile, **options
        ) as dataset:
            dataset.write(array)
        return bytes(memory.getbuffer())


LAYOUTS = st.fixed_dictionaries(
    {
        "BIGTIFF": st.sampled_from(["YES", "NO"]),
        "ENDIANNESS": st.sampled_from(["LITTLE", "BIG"]),
        "INTERLEAVE": st.sampled_from(["PIXEL", "BAND"]),
        "COMPRESS": st.sampled_from(["NONE", "DEFLATE", "LZW"]),
    }
)
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 80), st.integers(1, 80))


@settings(max_examples=60, deadline=None)
@given(SHAPES, LAYOUTS, st.booleans(), st.sampled_from(["uint8", "int16", "float32"]))
def test_a_file_taken_apart_and_put_together_reads_the_same(shape, options, tiled, dtype) -> None:
    array = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    block = {"TILED": "YES", "BLOCKXSIZE": 32, "BLOCKYSIZE": 16} if tiled else {"BLOCKYSIZE": 5}
    original = gdal_file(array, **options, **block)

    directory = tiff.parse(original)
    assert directory.big == (options["BIGTIFF"] == "YES")
    assert directory.tiled == tiled
    chunk_height, chunk_width = directory.chunk_shape
    assert (chunk_height, chunk_width) == ((16, 32) if tiled else (min(5, shape[1]), shape[2]))
    planes = shape[0] if options["INTERLEAVE"] == "BAND" and shape[0] > 1 else 1
    assert directory.chunk_grid == (planes, -(-shape[1] // chunk_height), -(-shape[2] // chunk_width))

    places, lengths = directory.chunks()
    head_size = tiff.head_size(directory, len(places))
    chunks = [original[start : start + length] for start, length in zip(places, lengths, strict=True)][::-1]
    body, starts = b"", []
    for chunk in chunks:  # in another order than GDAL's
        starts.append(head_size + len(body))
        body += chunk
    head = tiff.build(directory, starts[::-1], lengths)
    assert len(head) == head_size

    with (
        MemoryFile(head + body) as rebuilt,
        MemoryFile(original) as before,
        rebuilt.open() as new,
        before.open() as old,
    ):
        np.testing.assert_array_equal(new.read(), array)
        assert new.profile == old.profile
        assert new.tags() == old.tags()
    again = tiff.parse(head)
    others = {tag for tag in directory.entries if tag not in (273, 279, 324, 325)}
    assert {tag: again.entries[tag] for tag in others} == {tag: directory.entries[tag] for tag in others}


def test_a_value_is_replaced() -> None:
    directory = tiff.parse(gdal_file(np.zeros((1, 20, 30), "u1"), TILED="YES", BLOCKXSIZE=16, BLOCKYSIZE=16))
    changed = directory.with_value(256, 100).with_value(42113, "251")
    assert changed.chunk_grid == (1, 2, 7) and directory.chunk_grid == (1, 2, 2)
    n_chunks = 14
    with MemoryFile(tiff.build(changed, [0] * n_chunks, [0] * n_chunks)) as memory, memory.open() as dataset:
        assert (dataset.width, dataset.height, dataset.nodata) == (100, 20, 251)
        assert (dataset.read() == 251).all()  # as nothing was written


def test_4_gib_is_the_end_of_a_classic_file() -> None:
    classic = tiff.parse(gdal_file(np.zeros((1, 8, 8), "u1"), BIGTIFF="NO"))
    tiff.build(classic, [2**32 - 11], [10])
    with pytest.raises(ValueError, match="BigTIFF"):
        tiff.build(classic, [2**32 - 10], [10])
    big = tiff.parse(gdal_file(np.zeros((1, 8, 8), "u1"), BIGTIFF="YES"))
    assert tiff.parse(tiff.build(big, [2**40], [10])).chunks()[0].tolist() == [2**40]


GOOD = gdal_file(np.arange(400, dtype="u1").reshape(1, 20, 20), TILED="YES", BLOCKXSIZE=16, BLOCKYSIZE=16)


@given(st.binary(max_size=200))
def test_noise_is_refused(data) -> None:
    with pytest.raises(ValueError):
        tiff.parse(data)


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
def test_a_damaged_file_is_parsed_or_refused_with_valueerror(position, value, length) -> None:
    damaged = bytearray(GOOD)
    damaged[position] = value
    try:
        directory = tiff.parse(damaged[:length])
        directory.chunks()
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "begins with neither"),
        (b"II", "cut short"),
        (b"II\x2a\0", "cut short"),
        (b"II\x2c\0\0\0\0\0", "version 44"),
        (b"II\x2b\0\x04\0\0\0" + bytes(8), "not 8 bytes"),
        (struct.pack("<2sHLH", b"II", 42, 8, 3), "cut short in its 3"),
        (struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2**60), "cut short in its"),
        (struct.pack("<2sHLHHHLLL", b"II", 42, 8, 1, 256, 99, 1, 0, 0), "unknown type 99"),
        (struct.pack("<2sHLHHHLLL", b"II", 42, 8, 1, 256, 4, 2**31, 0, 0), "value of tag 256"),
    ],
)
def test_what_is_wrong_is_said(data, words) -> None:
    with pytest.raises(ValueError, match=words):
        tiff.parse(data)


def test_missing_and_contradictory_tags() -> None:
    empty = tiff.TiffDirectory("<", False, {})
    with pytest.raises(ValueError, match="tag 257 is missing"):
        _ = empty.chunk_shape
    with pytest.raises(ValueError, match="chunks of 0 x 5"):
        _ = empty.with_value(256, 5).with_value(257, 0).chunk_shape
    with pytest.raises(ValueError, match="2 offsets and 2 lengths for 4 chunks"):
        tiff.parse(
            tiff.build(empty.with_value(256, 5).with_value(257, 8).with_value(278, 2), [0, 0], [0, 0])
        ).chunks()


def test_real_files(shared_data: Path) -> None:
    seen = 0
    for path in sorted((shared_data / "raster").glob("*.tif")):
        directory = tiff.parse(path.read_bytes())
        with rasterio.open(path) as dataset:
            assert directory.chunk_shape == dataset.block_shapes[0]
            assert directory.integer(tiff.SAMPLES_PER_PIXEL, 1) == dataset.count
        assert len(directory.chunks()[0]) == np.prod(directory.chunk_grid)
        seen += 1
    assert seen > 10
