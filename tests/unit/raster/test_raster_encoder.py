"""What an output may be, its chunks, and the errors on options and arrays."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.dtypes import dtype_fwd

from applier.errors import ControlsError, FileOpenError, OutputError
from applier.raster import outputs
from applier.raster.encoder import compress, encode
from applier.raster.grid import PixelGrid
from applier.raster.outputs import OutputSpec
from applier.raster.tiles import Tile, TilePlan

GRID = PixelGrid("", (500000.0, 10.0, 0.0, 6000000.0, 0.0, -10.0), 1000, 1000)


def spec_of(path="out.tif", window=(256, 256), grid=GRID, **options: object) -> OutputSpec:
    return OutputSpec.create("x", str(path), grid, window, **options)


@pytest.mark.parametrize(
    ("window", "chunk"),
    [
        ((256, 256), (256, 256)),
        ((512, 1024), (256, 256)),
        ((128, 144), (128, 144)),
        ((320, 512), (320, 256)),
        ((2000, 2000), (256, 256)),  # one block: any tile does
        ((2000, 160), (256, 160)),
        ((100, 256), (256, 256)),  # to be assembled
        ((64, 64), (256, 256)),
    ],
)
def test_tiles_suit_the_window(window, chunk) -> None:
    spec = spec_of(window=window)
    assert spec.chunk_shape(1, "uint8") == chunk
    aligned = all(w % c == 0 or w >= 1000 for w, c in zip(window, chunk, strict=True))
    assert spec.has_whole_chunks(1, "uint8") is aligned
    encoded = encode(
        spec, TilePlan(1000, 1000, *window).tile(0), np.ones((1, *np.minimum(window, 1000)), "u1")
    )
    assert (encoded.array is None) is aligned and (encoded.chunks is not None) is aligned


def test_the_users_options_win_one_by_one() -> None:
    options = dict(tiled="yes", blockxsize=64, Compress="zstd", zstd_level="3")
    assert spec_of(creation_options=options).tiff_options() == {
        "BLOCKYSIZE": "256",
        "BLOCKXSIZE": "64",
        "TILED": "YES",
        "COMPRESS": "zstd",
        "BIGTIFF": "IF_SAFER",
        "ZSTD_LEVEL": "3",
    }
    strips = spec_of(creation_options={"TILED": "no", "BLOCKYSIZE": "16"}, window=(64, 1000))
    assert strips.chunk_shape(3, "uint8") == (16, 1000) and strips.has_whole_chunks(3, "uint8")


@pytest.mark.parametrize(
    ("compression", "direct"), [("lzw", True), ("NONE", True), ("JPEG", False), ("WEBP", False)]
)
def test_chunks_that_share_tables_are_not_moved(compression, direct) -> None:
    spec = spec_of(creation_options={"COMPRESS": compression})
    assert spec.is_direct is direct
    assert spec.tiff_options()["COMPRESS"] == (compression if direct else "DEFLATE")
    assert not spec_of("a.img").is_direct and not spec_of(driver="COG").is_direct


@pytest.mark.parametrize(
    ("name", "driver"), [("a.tif", "GTiff"), ("a.TIFF", "GTiff"), ("a.img", "HFA"), ("a.png", "PNG")]
)
def test_the_driver_follows_from_the_extension(name, driver) -> None:
    assert spec_of(name).driver == driver
    assert spec_of(name, driver="ENVI").driver == "ENVI"


@pytest.mark.parametrize("name", ["a.xyzzy", "a", "dir.tif/a", "a.vrt"])
def test_an_extension_that_says_nothing(name) -> None:
    with pytest.raises(ControlsError, match="setOutputDriverName") as caught:
        spec_of(name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"COMPRESS": "BANANA"}, "COMPRESS=BANANA"),
        ({"FOO": "1"}, "FOO"),
        ({"BLOCKXSIZE": "77"}, "multiples of 16"),
        ({"BLOCKXSIZE": "big"}, "BLOCKXSIZE"),
        ({"PREDICTOR": "9"}, "PREDICTOR=9"),
        ({"ZLEVEL": "99"}, "ZLEVEL=99"),
        ({"INTERLEAVE": "BANANA"}, "INTERLEAVE"),
        ({"BIGTIFF": "PERHAPS"}, "BIGTIFF"),
        ({"COMPRESS": "JPEG", "JPEG_QUALITY": "777"}, "JPEG_QUALITY"),
    ],
)
def test_options_that_gdal_refuses_are_found_beforehand(tmp_path, options, words) -> None:
    with pytest.raises(ControlsError, match="setCreationOptions") as caught:
        spec_of(tmp_path / "a.tif", creation_options=options).validate()
    message = str(caught.value)
    assert words in message and "a.tif" in message and "output 'x'" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"PREDICTOR": "3", "COMPRESS": "ZSTD"},  # for floats only
        {"PHOTOMETRIC": "RGB"},  # for three bands only
        {"TILED": "NO"},
        {"COMPRESS": "JPEG", "JPEG_QUALITY": "80", "PHOTOMETRIC": "YCBCR"},
        {
            "NUM_THREADS": "ALL_CPUS",
            "BIGTIFF": "YES",
            "SPARSE_OK": "TRUE",
            "INTERLEAVE": "BAND",
            "NBITS": "4",
        },
    ],
)
def test_options_that_suit_some_outputs_pass(tmp_path, options) -> None:
    spec_of(tmp_path / "a.tif", creation_options=options).validate()
    assert list(tmp_path.iterdir()) == []


def test_other_formats_are_validated_too(tmp_path) -> None:
    for name, driver in [
        ("a.img", None),
        ("a.png", None),
        ("a.tif", "COG"),
        ("a.bin", "ENVI"),
        ("a.hgt", None),
    ]:
        spec_of(tmp_path / name, driver=driver).validate()
    for name, options in [("a.img", {"COMPRESSED": "BANANA"}), ("a.png", {"FOO": "1"})]:
        with pytest.raises(ControlsError, match=next(iter(options))):
            spec_of(tmp_path / name, creation_options=options).validate()
    for driver in ("NOSUCH", "HDF5", "VRT"):
        with pytest.raises(ControlsError, match="setOutputDriverName"):
            spec_of(tmp_path / "a.dat", driver=driver).validate()


def test_places_that_cannot_be_written_are_found_beforehand(tmp_path) -> None:
    with pytest.raises(FileOpenError, match="no directory .*nowhere"):
        spec_of(tmp_path / "nowhere/a.tif").validate()
    (tmp_path / "b.tif").mkdir()
    with pytest.raises(FileOpenError, match="is a directory"):
        spec_of(tmp_path / "b.tif").validate()
    with pytest.raises(ControlsError, match="local"):
        spec_of("s3://bucket/a.tif").validate()


TILE = Tile(5, 1, 1, 256, 256, 256, 200)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((256, 200), "u1"), r"is 2-D \(rows, cols\).*outputs.x = array\[None\]"),
        (np.zeros((1, 200, 256), "u1"), r"shape \(1, 200, 256\); it must be \(bands, 256, 200\)"),
        (np.zeros((0, 256, 200), "u1"), "shape"),
        (np.zeros((1, 1, 256, 200), "u1"), "shape"),
        ([[1]], "got list"),
        (None, "got NoneType"),
        (np.zeros((1, 256, 200), "U3"), "Convert"),
        (np.zeros((1, 256, 200), object), "object"),
    ],
)
def test_arrays_that_are_no_output(array, words) -> None:
    with pytest.raises(OutputError, match=words) as caught:
        encode(spec_of(), TILE, array)
    assert "block row 1, column 1" in str(caught.value) and "output 'x' (out.tif)" in str(caught.value)


def test_half_floats_are_told_a_type_where_gdal_has_none() -> None:
    if "float16" in dtype_fwd.values():
        pytest.skip("this GDAL writes float16")
    with pytest.raises(OutputError, match="float16.*'float32'"):
        encode(spec_of(), TILE, np.zeros((1, 256, 200), "f2"))


def test_messages_name_the_item_of_a_list() -> None:
    with pytest.raises(OutputError, match=r"output 'x'\[2\] .*outputs.x\[2\] = array\[None\]"):
        encode(spec_of(seq=2), TILE, np.zeros((256, 200), "u1"))


def test_long_floats_are_told_a_type() -> None:
    if np.dtype("longdouble").itemsize == 8:
        pytest.skip("long double is float64 on this platform")
    with pytest.raises(OutputError, match="'float64'"):
        encode(spec_of(), TILE, np.zeros((1, 256, 200), "longdouble"))


@pytest.mark.parametrize(("nodata", "dtype"), [(-9999, "uint8"), (256, "uint8"), (float("nan"), "int16")])
def test_a_nodata_value_that_does_not_fit(nodata, dtype) -> None:
    with pytest.raises(OutputError, match="setStatsIgnore"):
        encode(spec_of(nodata=nodata), TILE, np.zeros((1, 256, 200), dtype))


def test_gdals_refusal_names_output_type_and_options() -> None:
    spec = spec_of(creation_options={"PREDICTOR": "3"})
    with pytest.raises(OutputError, match="output 'x'.*uint8.*PREDICTOR=3.*GDAL says.*astype") as caught:
        encode(spec, TILE, np.zeros((1, 256, 200), "u1"))
    assert "vsimem" not in str(caught.value)
    encode(spec, TILE, np.zeros((1, 256, 200), "f4"))


@pytest.mark.parametrize("window", [(256, 256), (100, 256)])
def test_the_margin_is_cut_off(window) -> None:
    tile = TilePlan(1000, 1000, *window).tile(1)
    array = np.random.default_rng(0).integers(0, 9, (2, tile.height + 6, tile.width + 6)).astype("u1")
    inner = array[:, 3:-3, 3:-3]
    with_margin, without = (
        encode(spec_of(window=window), tile, array, 3),
        encode(spec_of(window=window), tile, inner),
    )
    by_spec = encode(spec_of(window=window, margin=3), tile, array)
    assert pickle.dumps(with_margin) == pickle.dumps(without) == pickle.dumps(by_spec)
    assert (
        with_margin.nbytes
        == (with_margin.array if with_margin.chunks is None else with_margin.chunks.data).nbytes
    )
    with pytest.raises(OutputError, match="overlap of 3 pixels"):
        encode(spec_of(window=window), tile, inner, 3)


def test_a_block_that_waits_holds_only_its_own_pixels() -> None:
    spec = spec_of(window=(100, 100))
    array = np.ones((1, 120, 120), "u1")
    encoded = encode(spec, TilePlan(1000, 1000, 100, 100).tile(0), array, 10)
    base = encoded.array.base
    assert base is None or base.nbytes == encoded.array.nbytes
    array[:] = 9
    assert (encoded.array == 1).all()  # the user may reuse the array


def test_bool_byte_order_and_masks() -> None:
    tile, shape = Tile(0, 0, 0, 0, 0, 20, 30), (1, 20, 30)
    grid = PixelGrid("", GRID.transform, 20, 100)
    spec = spec_of(grid=grid, window=(20, 30), nodata=7)
    assert encode(spec, tile, np.ones(shape, bool)).dtype == "uint8"
    swapped = encode(spec, tile, np.full(shape, 5, ">i2"))
    assert swapped.dtype == "int16" and (swapped.array == 5).all()
    masked = np.ma.masked_equal(np.arange(600).reshape(shape), 3)
    plain = encode(spec, tile, masked).array
    assert type(plain) is np.ndarray and plain[0, 0, 3] == 7 and plain[0, 0, 4] == 4


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_chunks_are_as_many_as_there_must_be(count, height, width, band) -> None:
    grid = PixelGrid("", GRID.transform, height, width)
    options = {"BLOCKXSIZE": "32", "BLOCKYSIZE": "16", "INTERLEAVE": "BAND" if band else "PIXEL"}
    spec = spec_of(grid=grid, window=(height, width), creation_options=options)
    pixels = np.random.default_rng(0).integers(0, 9, (count, height, width)).astype("f4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunks = compress(spec, pixels)
    assert (chunks.rows, chunks.cols) == (-(-height // 16), -(-width // 32))
    assert len(chunks.lengths) == chunks.rows * chunks.cols * (count if band else 1)
    assert sum(chunks.lengths) == chunks.data.nbytes and min(chunks.lengths) > 0
    assert compress(spec, pixels, threads=True).data.tobytes() == chunks.data.tobytes()


def test_threads_encode_the_same_bytes() -> None:
    spec, plan = spec_of(), TilePlan(1000, 1000, 256, 256)
    blocks = [
        np.random.default_rng(t.block_index).integers(0, 99, (2, t.height, t.width)).astype("u2")
        for t in plan
    ]
    alone = [encode(spec, tile, block) for tile, block in zip(plan, blocks, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda tile: encode(spec, tile, blocks[tile.block_index]), plan))
    assert [pickle.dumps(each) for each in together] == [pickle.dumps(each) for each in alone]


def test_a_warning_that_has_nothing_to_do_with_options_is_no_refusal(monkeypatch, tmp_path) -> None:
    @contextlib.contextmanager
    def warned():
        yield ["Cannot find gdalvrt.xsd (GDAL_DATA is not defined)"]

    monkeypatch.setattr(outputs, "gdal_warnings", warned)
    spec_of(tmp_path / "a.tif", creation_options={"TILED": "NO"}).validate()
