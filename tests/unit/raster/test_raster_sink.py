"""Rasters written block by block, against rasterio writing the whole array at once."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from applier.errors import FileOpenError, OutputError
from applier.raster import tiff
from applier.raster.encoder import encode
from applier.raster.grid import PixelGrid
from applier.raster.outputs import OutputSpec
from applier.raster.sink import RasterSink
from applier.raster.tiles import TilePlan

UTM = CRS.from_epsg(32632).to_wkt()
T = (500000.0, 10.0, 0.0, 6000000.0, 0.0, -10.0)


def spec_for(path, array, window, **options) -> OutputSpec:
    grid = PixelGrid(UTM, T, *array.shape[1:])
    return OutputSpec.create("x", path, grid, window, **options)


def fill(sink: RasterSink, array: np.ndarray) -> None:
    spec = sink.spec
    for tile in TilePlan(*array.shape[1:], *spec.window):
        block = array[:, tile.row : tile.row + tile.height, tile.col : tile.col + tile.width]
        sink.write(pickle.loads(pickle.dumps(encode(spec, tile, block))))


def write(path, array, window=(256, 256), **options) -> None:
    sink = RasterSink(spec_for(path, array, window, **options))
    fill(sink, array)
    sink.finish()
    sink.commit()


def write_whole(path, array, nodata=None, creation_options=(), **tiles) -> None:
    """What rasterio makes of it."""
    profile = {
        "count": len(array),
        "height": array.shape[1],
        "width": array.shape[2],
        "dtype": array.dtype.name,
    }
    options = {"TILED": "YES", "COMPRESS": "DEFLATE", **tiles, **dict(creation_options)}
    transform = rasterio.Affine.from_gdal(*T)
    with rasterio.open(
        path, "w", driver="GTiff", crs=UTM, transform=transform, nodata=nodata, **profile, **options
    ) as dataset:
        dataset.write(array)


def assert_same_file(path, other) -> None:
    with rasterio.open(path) as new, rasterio.open(other) as old:
        assert new.profile == old.profile
        assert new.tags() == old.tags() and new.tags(ns="IMAGE_STRUCTURE") == old.tags(ns="IMAGE_STRUCTURE")
        assert new.colorinterp == old.colorinterp and new.photometric == old.photometric
        assert new.block_shapes == old.block_shapes
        np.testing.assert_array_equal(new.read(), old.read())
        checksums = [[dataset.checksum(band) for band in dataset.indexes] for dataset in (new, old)]
        assert checksums[0] == checksums[1]


def numbers(shape, dtype="uint8") -> np.ndarray:
    rng = np.random.default_rng(7)
    if np.dtype(dtype).kind == "c":
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    return rng.integers(0, 120, shape).astype(dtype)


DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64"]
DTYPES += ["float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(64, 80), (50, 70)])
def test_every_type(tmp_path, dtype, window) -> None:
    array = numbers((2, 150, 170), dtype)
    options = {"BLOCKXSIZE": "80", "BLOCKYSIZE": "64"}
    write(tmp_path / "a.tif", array, window, nodata=5, creation_options=options)
    write_whole(tmp_path / "b.tif", array, 5, options)
    assert_same_file(tmp_path / "a.tif", tmp_path / "b.tif")
    assert sorted(os.listdir(tmp_path)) == ["a.tif", "b.tif"]


COMPRESSIONS = [
    {"COMPRESS": "NONE"},
    {"COMPRESS": "DEFLATE", "PREDICTOR": "2", "ZLEVEL": "9"},
    {"COMPRESS": "LZW"},
    {"COMPRESS": "ZSTD", "ZSTD_LEVEL": "3", "PREDICTOR": "3"},
    {"COMPRESS": "LZMA"},
    {"COMPRESS": "PACKBITS"},
    {"COMPRESS": "LERC", "MAX_Z_ERROR": "0.5"},
    {"COMPRESS": "LERC_ZSTD"},
    {"COMPRESS": "LERC_DEFLATE"},
]


@pytest.mark.parametrize("options", COMPRESSIONS, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("window", [(64, 64), (50, 170)])
def test_every_compression(tmp_path, options, window) -> None:
    array = numbers((3, 150, 170), "float32" if options.get("PREDICTOR") == "3" else "uint16")
    options = {**options, "BLOCKXSIZE": "64", "BLOCKYSIZE": "32"}
    write(tmp_path / "a.tif", array, window, creation_options=options)
    write_whole(tmp_path / "b.tif", array, None, options)
    assert_same_file(tmp_path / "a.tif", tmp_path / "b.tif")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.sampled_from([1, 2, 3, 4, 31]), st.integers(1, 130), st.integers(1, 130)),
    window=st.tuples(st.integers(1, 100), st.integers(1, 100))
    | st.sampled_from([(32, 32), (16, 64), (48, 200)]),
    interleave=st.sampled_from(["PIXEL", "BAND"]),
    big=st.sampled_from(["YES", "NO", "IF_SAFER"]),
    layout=st.sampled_from(
        [{}, {"BLOCKXSIZE": "32", "BLOCKYSIZE": "16"}, {"TILED": "NO"}, {"TILED": "NO", "BLOCKYSIZE": "7"}]
    ),
    more=st.sampled_from(
        [{}, {"ENDIANNESS": "BIG"}, {"NUM_THREADS": "2"}, {"SPARSE_OK": "TRUE"}, {"NBITS": "7"}]
    ),
)
def test_any_shape_window_and_layout(tmp_path, shape, window, interleave, big, layout, more) -> None:
    array = numbers(shape)
    array[:, : shape[1] // 2] = 0  # nodata, and so left out where SPARSE_OK
    options = {"INTERLEAVE": interleave, "BIGTIFF": big, **layout, **more}
    path, other = tmp_path / "a.tif", tmp_path / "b.tif"
    write(path, array, window, nodata=0, creation_options=options)
    spec = spec_for(path, array, window, creation_options=options)
    tiles = {key: value for key, value in spec.tiff_options().items() if key.startswith("BLOCK")}
    write_whole(other, array, 0, options, **tiles)
    assert_same_file(path, other)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize(
    "options", [{}, {"NBITS": "1"}, {"COMPRESS": "LERC"}, {"INTERLEAVE": "BAND"}], ids=str
)
def test_strips_of_gdals_own_height(tmp_path, dtype, options) -> None:
    if dtype == "float64" and "NBITS" in options:
        pytest.skip("NBITS is for integers")
    array = numbers((3, 100, 1300), dtype) % 2
    options = {"TILED": "NO", **options}
    write(tmp_path / "a.tif", array, (32, 1300), creation_options=options)
    write_whole(tmp_path / "b.tif", array, None, options)
    assert_same_file(tmp_path / "a.tif", tmp_path / "b.tif")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bytes_do_not_depend_on_threads(tmp_path) -> None:
    array = numbers((3, 700, 900), "uint16")
    for window in [(256, 256), (100, 300)]:
        for options in [{}, {"NUM_THREADS": "3"}, {"NUM_THREADS": "ALL_CPUS"}]:
            name = f"{len(list(tmp_path.iterdir()))}.tif"
            write(tmp_path / name, array, window, creation_options=options)
        files = sorted(tmp_path.iterdir())[-3:]
        assert len({digest(file) for file in files}) == 1


def test_31_bands_of_real_data(tmp_path, shared_data: Path) -> None:
    with rasterio.open(shared_data / "raster/above_landcover_31band.tif") as dataset:
        array = dataset.read(window=((900, 1500), (600, 1200)))
    write(tmp_path / "a.tif", array, (512, 512), nodata=255)
    write_whole(tmp_path / "b.tif", array, 255, BLOCKXSIZE="256", BLOCKYSIZE="256")
    assert_same_file(tmp_path / "a.tif", tmp_path / "b.tif")
    assert (tmp_path / "a.tif").stat().st_size <= 1.02 * (tmp_path / "b.tif").stat().st_size


def test_sparse_files_stay_sparse(tmp_path) -> None:
    array = np.zeros((2, 512, 512), "u1")
    array[0, 300:310, 300:310] = 1
    for interleave, chunk_bytes in (("PIXEL", 2 * 65536), ("BAND", 65536)):
        options = {"SPARSE_OK": "TRUE", "INTERLEAVE": interleave, "COMPRESS": "NONE"}
        write(tmp_path / "a.tif", array, nodata=0, creation_options=options)
        assert chunk_bytes < (tmp_path / "a.tif").stat().st_size < chunk_bytes + 4000
        with rasterio.open(tmp_path / "a.tif") as dataset:
            np.testing.assert_array_equal(dataset.read(), array)


@pytest.mark.parametrize(
    ("nodata", "dtype"), [(None, "uint8"), (3, "int16"), (2**60 + 1, "int64"), (0.5, "uint8")]
)
def test_zeros_in_sparse_files_stay_zeros(tmp_path, nodata, dtype) -> None:
    array = np.zeros((1, 100, 100), dtype)
    write(tmp_path / "a.tif", array, nodata=nodata, creation_options={"SPARSE_OK": "TRUE"})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), array)


def test_without_georeference(tmp_path) -> None:
    array = numbers((1, 20, 20))
    spec = OutputSpec.create(
        "x", tmp_path / "a.tif", PixelGrid("", (0.0, 1.0, 0.0, 0.0, 0.0, 1.0), 20, 20), (16, 16)
    )
    sink = RasterSink(spec)
    fill(sink, array)
    sink.finish()
    sink.commit()
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.crs is None
        np.testing.assert_array_equal(dataset.read(), array)


@pytest.mark.parametrize(
    ("nodata", "dtype"), [(2**62 + 1, "int64"), (2**64 - 1, "uint64"), (-(2**60) - 1, "int64")]
)
def test_nodata_beyond_what_a_float_holds(tmp_path, nodata, dtype) -> None:
    write(tmp_path / "a.tif", numbers((1, 20, 20), dtype), nodata=nodata)
    assert str(nodata).encode() + b"\0" in (tmp_path / "a.tif").read_bytes()


@pytest.mark.parametrize("nodata", [float("nan"), -9999.25, 0, None])
def test_nodata_of_floats(tmp_path, nodata) -> None:
    array = numbers((1, 40, 40), "float32")
    write(tmp_path / "a.tif", array, nodata=nodata)
    write_whole(tmp_path / "b.tif", array, nodata)
    with rasterio.open(tmp_path / "a.tif") as new, rasterio.open(tmp_path / "b.tif") as old:
        np.testing.assert_equal(new.nodata, old.nodata)


@pytest.mark.parametrize(
    ("name", "driver", "dtype", "count", "options"),
    [
        ("a.img", None, "float32", 3, {}),
        ("a.img", None, "uint8", 1, {"COMPRESSED": "YES"}),
        ("a.png", None, "uint8", 3, {}),
        ("a.tif", "COG", "int16", 2, {"COMPRESS": "ZSTD", "NUM_THREADS": "2"}),
        ("a.bin", "ENVI", "uint16", 2, {}),
        ("a.jp2", None, "uint8", 3, {"REVERSIBLE": "YES", "QUALITY": "100"}),
    ],
)
@pytest.mark.parametrize("window", [(64, 64), (70, 300)])
def test_other_formats_hold_the_same_pixels(tmp_path, name, driver, dtype, count, options, window) -> None:
    array = numbers((count, 150, 170), dtype)
    path = tmp_path / name
    write(path, array, window, driver=driver, nodata=3, creation_options=options)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), array)
        assert dataset.transform.to_gdal() == T and dataset.crs.to_epsg() == 32632
        if driver != "ENVI" and name != "a.jp2":
            assert dataset.nodatavals == (3.0,) * count
    assert not [entry for entry in os.listdir(tmp_path) if not entry.startswith("a.")]


@pytest.mark.parametrize("options", [{"COMPRESS": "JPEG", "JPEG_QUALITY": "85"}, {"COMPRESS": "WEBP"}])
def test_lossy_gtiff_is_what_gdal_makes_of_the_whole(tmp_path, options) -> None:
    array = numbers((3, 300, 520))
    for name, more in (("a.tif", {}), ("c.tif", {"NUM_THREADS": "3"})):
        write(tmp_path / name, array, creation_options={**options, **more})
    write_whole(tmp_path / "w.tif", array)
    with rasterio.open(tmp_path / "w.tif") as whole:
        rasterio.shutil.copy(
            whole,
            tmp_path / "b.tif",
            driver="GTiff",
            TILED="YES",
            BLOCKXSIZE="256",
            BLOCKYSIZE="256",
            **options,
        )
    assert_same_file(tmp_path / "a.tif", tmp_path / "b.tif")
    assert digest(tmp_path / "a.tif") == digest(tmp_path / "c.tif")


def test_the_working_file_is_made_where_asked(tmp_path) -> None:
    there, out = tmp_path / "temp", tmp_path / "out"
    there.mkdir()
    out.mkdir()
    array = numbers((1, 100, 100))
    sink = RasterSink(spec_for(out / "a.img", array, (64, 64)), there)
    assert list(there.iterdir()) == list(out.iterdir()) == []
    fill(sink, array)
    assert len(list(there.rglob("*.tif"))) == 1 and not list(out.rglob("*.tif"))
    sink.finish()
    sink.commit()
    assert list(there.iterdir()) == [] and "a.img" in os.listdir(out)


def test_nothing_is_there_before_the_commit_and_nothing_after_an_abort(tmp_path) -> None:
    array = numbers((1, 300, 300))
    for stage in range(4):
        sink = RasterSink(spec_for(tmp_path / "a.tif", array, (256, 256)))
        assert list(tmp_path.iterdir()) == []
        if stage >= 1:
            sink.write(encode(sink.spec, TilePlan(300, 300, 256, 256).tile(0), array[:, :256, :256]))
        if stage >= 2:
            sink.abort()
            fill_again = RasterSink(sink.spec)
            fill(fill_again, array)
            sink = fill_again
        if stage == 3:
            sink.finish()
            sink.finish()
        assert not (tmp_path / "a.tif").exists()
        sink.abort()
        sink.abort()
        assert list(tmp_path.iterdir()) == []


def test_the_older_file_stays_until_the_commit(tmp_path) -> None:
    path = tmp_path / "a.tif"
    path.write_text("older")
    array = numbers((1, 30, 30))
    sink = RasterSink(spec_for(path, array, (256, 256)))
    fill(sink, array)
    sink.finish()
    assert path.read_text() == "older"
    sink.commit()
    sink.abort()
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), array)


def test_what_lay_beside_an_older_file_goes_with_it(tmp_path) -> None:
    array = numbers((1, 30, 30))
    for suffix in (".aux.xml", ".ovr", ".msk"):
        (tmp_path / f"a.tif{suffix}").write_text("stale")
    for name in ("a.ige", "a.rrd", "a.txt", "b.tif.ovr"):
        (tmp_path / name).write_text("stale")
    write(tmp_path / "a.tif", array)
    assert sorted(os.listdir(tmp_path)) == ["a.ige", "a.rrd", "a.tif", "a.txt", "b.tif.ovr"]
    (tmp_path / "a.img.aux.xml").write_text("stale")
    write(tmp_path / "a.img", array, nodata=5)
    left = os.listdir(tmp_path)
    assert "a.ige" not in left and "a.rrd" not in left and "a.txt" in left and "a.tif" in left
    if "a.img.aux.xml" in left:
        assert (tmp_path / "a.img.aux.xml").read_text() != "stale"


def test_a_sidecar_that_gdal_makes_comes_along(tmp_path) -> None:
    write(tmp_path / "a.tif", numbers((1, 30, 30)), creation_options={"TFW": "YES"})
    lines = (tmp_path / "a.tfw").read_text().split()
    assert [float(line) for line in lines] == [10, 0, 0, -10, 500005, 5999995]


def test_blocks_must_agree(tmp_path) -> None:
    array = numbers((1, 300, 300))
    tiles = list(TilePlan(300, 300, 256, 256))
    for odd, words in (
        (
            array.astype("f4"),
            "column 1 gave float32 with 1 band, but block row 0, column 0 gave uint8 with 1 band",
        ),
        (np.concatenate([array, array]), "gave uint8 with 2 bands"),
    ):
        sink = RasterSink(spec_for(tmp_path / "a.tif", array, (256, 256)))
        sink.write(encode(sink.spec, tiles[0], array[:, :256, :256]))
        with pytest.raises(OutputError, match=words):
            sink.write(encode(sink.spec, tiles[1], odd[:, :256, 256:]))
        sink.abort()


def test_a_file_without_all_blocks_is_not_finished(tmp_path) -> None:
    array = numbers((1, 300, 300))
    sink = RasterSink(spec_for(tmp_path / "a.tif", array, (256, 256)))
    with pytest.raises(OutputError, match="none of 4 blocks"):
        sink.finish()
    sink.write(encode(sink.spec, TilePlan(300, 300, 256, 256).tile(0), array[:, :256, :256]))
    with pytest.raises(OutputError, match="1 of 4 blocks"):
        sink.finish()
    with pytest.raises(OutputError, match="before commit"):
        sink.commit()
    sink.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_the_format_has_not_is_found_at_the_first_block(tmp_path) -> None:
    for name, array in (
        ("a.png", numbers((1, 30, 30), "float32")),
        ("a.png", numbers((7, 30, 30))),
        ("a.img", numbers((1, 30, 30), "int64")),
    ):
        sink = RasterSink(spec_for(tmp_path / name, array, (256, 256)))
        with pytest.raises(OutputError, match="setOutputDriverName"):
            fill(sink, array)
        sink.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_classic_file_that_cannot_hold_the_pixels(tmp_path) -> None:
    options = {"COMPRESS": "NONE", "BIGTIFF": "NO"}
    grid = PixelGrid(UTM, T, 70_000, 70_000)
    sink = RasterSink(OutputSpec.create("x", tmp_path / "a.tif", grid, (256, 256), creation_options=options))
    with pytest.raises(OutputError, match="BIGTIFF=YES"):
        sink.write(
            encode(sink.spec, TilePlan(70_000, 70_000, 256, 256).tile(0), np.ones((1, 256, 256), "u1"))
        )
    sink.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_compressed_classic_file_that_grows_too_big(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tiff, "CLASSIC_LIMIT", 50_000)
    array = numbers((1, 300, 300))
    sink = RasterSink(spec_for(tmp_path / "a.tif", array, (256, 256), creation_options={"BIGTIFF": "NO"}))
    with pytest.raises(OutputError, match="BIGTIFF=YES"):
        fill(sink, array)
    sink.abort()


@pytest.mark.parametrize(("count", "big"), [(1, False), (3, True)])
def test_files_that_might_pass_4_gib_are_bigtiff(tmp_path, count, big) -> None:
    grid = PixelGrid(UTM, T, 30_000, 30_000)
    sink = RasterSink(OutputSpec.create("x", tmp_path / "a.tif", grid, (256, 256)))
    sink.write(
        encode(sink.spec, TilePlan(30_000, 30_000, 256, 256).tile(0), np.ones((count, 256, 256), "u1"))
    )
    assert sink._tiff is not None and sink._tiff._template.big is big
    sink.abort()


def test_a_directory_that_vanished(tmp_path) -> None:
    array = numbers((1, 30, 30))
    sink = RasterSink(spec_for(tmp_path / "gone/a.tif", array, (256, 256)))
    with pytest.raises(FileOpenError, match="output 'x' .*gone/a.tif.* cannot be written"):
        fill(sink, array)
    sink.abort()


FULL_DISK = """
import resource, signal, sys
import numpy as np
sys.path.insert(0, {tests!r})
from test_raster_sink import fill, numbers, spec_for
from applier.errors import FileOpenError, OutputError
from applier.raster.sink import RasterSink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
array = np.random.default_rng(0).integers(0, 255, (1, 700, 700)).astype("u1")
sink = RasterSink(spec_for({path!r}, array, {window!r}))
try:
    fill(sink, array)
    sink.finish()
except FileOpenError as error:
    print("FileOpenError", error)
sink.abort()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to stand in for a full disk")
@pytest.mark.parametrize("window", [(256, 256), (100, 100)])
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, window) -> None:
    code = FULL_DISK.format(tests=str(Path(__file__).parent), path=str(tmp_path / "a.tif"), window=window)
    root = str(Path(__file__).resolve().parents[3])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert "FileOpenError" in run.stdout and "a.tif" in run.stdout and "Make room" in run.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_long_name(tmp_path) -> None:
    name = "n" * 245 + ".tif"
    write(tmp_path / name, numbers((1, 20, 20)))
    assert os.listdir(tmp_path) == [name]


def test_the_rows_that_are_kept_are_one_row_of_blocks_and_chunks(tmp_path) -> None:
    array = numbers((1, 2000, 100))
    sink = RasterSink(spec_for(tmp_path / "a.tif", array, (100, 100)))
    plan = TilePlan(2000, 100, 100, 100)
    for tile in plan:
        sink.write(encode(sink.spec, tile, array[:, tile.row : tile.row + tile.height]))
        assert sink._assembly is not None and sink._assembly._rows.shape[1] <= 100 + 256
    sink.finish()
    sink.commit()
    with rasterio.open(tmp_path / "a.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), array)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_makes_is_not(tmp_path) -> None:
    """Both beside the file that is written now."""
    path = tmp_path / "out[1].tif"
    array = np.ones((1, 100, 100), "u1")
    spec = spec_for(path, array, (256, 256))
    living, killed, now = RasterSink(spec), RasterSink(spec), RasterSink(spec)
    first = encode(spec, TilePlan(100, 100, 256, 256).tile(0), array)
    living.write(first)
    killed.write(first)
    assert len(list(tmp_path.glob(".*.partial"))) == 2
    killed._lock.close()  # what the system does when a process is killed
    now.write(first)
    assert sorted(map(str, tmp_path.glob(".*.partial"))) == sorted([living._partial, now._partial])
    for sink in (living, killed, now):
        sink.abort()
    assert list(tmp_path.iterdir()) == []


# -- blocks that are skipped ---------------------------------------------------------------------------


def nodata_where(array: np.ndarray, window, skipped, nodata) -> np.ndarray:
    """The array as it would be if the function had known nothing of some of the blocks."""
    array = array.copy()
    for tile in TilePlan(*array.shape[1:], *window):
        if tile.block_index in skipped:
            array[:, tile.row : tile.row + tile.height, tile.col : tile.col + tile.width] = nodata
    return array


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    skipped=st.sets(st.integers(0, 8), max_size=8),
    dtype=st.sampled_from(DTYPES),
    nodata=st.sampled_from([None, 0, 5, 100]),
    options=st.sampled_from(
        [{}, {"TILED": "NO"}, {"BLOCKXSIZE": "32", "BLOCKYSIZE": "32"}, {"SPARSE_OK": "YES"}]
    ),
)
def test_skipped_blocks_are_nodata_to_the_byte(tmp_path, skipped, dtype, nodata, options) -> None:
    window = (64, 96)
    array = numbers((2, 150, 250), dtype)
    known = {"nodata": nodata, "creation_options": options}
    write(tmp_path / "a.tif", nodata_where(array, window, skipped, nodata or 0), window, **known)
    sink = RasterSink(spec_for(tmp_path / "b.tif", array, window, **known))
    for tile in TilePlan(*array.shape[1:], *window):
        if tile.block_index in skipped:
            sink.skip(tile)
        else:
            block = array[:, tile.row : tile.row + tile.height, tile.col : tile.col + tile.width]
            sink.write(encode(sink.spec, tile, block))
    sink.finish()
    sink.commit()
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_the_margin_of_the_spec_is_no_part_of_a_skipped_block(tmp_path) -> None:
    array = numbers((1, 100, 100))
    sink = RasterSink(spec_for(tmp_path / "a.tif", array, (50, 100), margin=3, nodata=9))
    first, second = TilePlan(100, 100, 50, 100)
    sink.write(encode(sink.spec, first, array[:, :50], margin=0))
    sink.skip(second)
    sink.finish()
    sink.commit()
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert (dataset.read()[:, :50] == array[:, :50]).all() and (dataset.read()[:, 50:] == 9).all()


def test_a_raster_of_skipped_blocks_alone_is_none(tmp_path) -> None:
    sink = RasterSink(spec_for(tmp_path / "a.tif", numbers((1, 100, 100)), (50, 100)))
    for tile in TilePlan(100, 100, 50, 100):
        sink.skip(tile)
    with pytest.raises(OutputError, match="none of 2 blocks have been written"):
        sink.finish()
    sink.abort()
    assert os.listdir(tmp_path) == []
