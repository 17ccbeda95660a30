"""Opening rasters: what is said of files that cannot be opened, the cache, and GDAL's settings."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS

from applier.errors import FileOpenError
from applier.raster import datasets
from applier.raster.datasets import close_all, describe, gdal_settings, gdal_warnings, open_dataset
from applier.raster.grid import same_crs


@pytest.fixture(autouse=True)
def nothing_open():
    close_all()
    yield
    close_all()


def make(path: Path, value: int = 1, **profile: object) -> Path:
    given = {"driver": "GTiff", "height": 4, "width": 6, "count": 1, "dtype": "uint8", **profile}
    given.setdefault("transform", rasterio.Affine(2.0, 0.0, 10.0, 0.0, -2.0, 20.0))
    with rasterio.open(path, "w", **given) as dataset:
        dataset.write(np.full((given["count"], given["height"], given["width"]), value, given["dtype"]))
    return path


def test_describe_says_what_the_file_has(tmp_path) -> None:
    path = make(
        tmp_path / "a.tif", count=2, dtype="int16", nodata=-5, crs="EPSG:32632", width=40, blockysize=2
    )
    facts = describe(path)
    assert facts.path == str(path) and facts.driver == "GTiff" and facts.count == 2
    assert facts.dtypes == ("int16", "int16") and facts.nodata == (-5.0, -5.0)
    assert (facts.block_height, facts.block_width) == (2, 40)
    assert facts.grid.transform == (10.0, 2.0, 0.0, 20.0, 0.0, -2.0)
    assert (facts.grid.height, facts.grid.width) == (4, 40)
    assert same_crs(facts.grid.crs_wkt, CRS.from_epsg(32632).to_wkt())


def test_every_real_file_is_described(shared_data: Path) -> None:
    for path in [*sorted((shared_data / "raster").glob("*.tif")), shared_data / "raster/N42E001.hgt"]:
        facts = describe(path)
        with rasterio.open(path) as dataset:
            assert (facts.grid.height, facts.grid.width, facts.count) == (
                dataset.height,
                dataset.width,
                dataset.count,
            )
            assert facts.dtypes == dataset.dtypes and facts.nodata == dataset.nodatavals
            assert facts.grid.bounds == pytest.approx(tuple(dataset.bounds))


def test_a_raster_without_georeference_is_a_grid_and_no_warning(tmp_path) -> None:
    path = tmp_path / "plain.pgm"
    path.write_bytes(b"P5 3 2 255\n" + bytes(range(6)))
    facts = describe(path)  # a warning would be an error here
    assert facts.grid.transform == (0.0, 1.0, 0.0, 0.0, 0.0, 1.0) and facts.grid.crs_wkt == ""


def test_complex_integers_are_read_as_complex(tmp_path) -> None:
    path = make(tmp_path / "c.tif", dtype="complex64")
    with (
        rasterio.open(
            tmp_path / "ci.tif",
            "w",
            driver="GTiff",
            height=4,
            width=6,
            count=1,
            dtype="complex_int16",
            transform=rasterio.Affine(1, 0, 1, 0, -1, 1),
        ) as dataset,
        rasterio.open(path) as source,
    ):
        dataset.write(source.read())
    assert describe(tmp_path / "ci.tif").dtypes == ("complex64",)


def test_what_cannot_be_opened_says_why(tmp_path) -> None:
    (tmp_path / "text.tif").write_text("no raster")
    (tmp_path / "empty.tif").touch()
    os.symlink(tmp_path / "gone.tif", tmp_path / "link.tif")
    cases = {
        "missing.tif": "does not exist",
        "text.tif": "not a raster GDAL can read, or is damaged",
        "empty.tif": "empty",
        "link.tif": "is a link to .*gone.tif, which does not exist",
    }
    for name, words in cases.items():
        with pytest.raises(FileOpenError, match=words) as caught:
            open_dataset(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(FileOpenError, match="is a directory"):
        open_dataset(tmp_path)
    with pytest.raises(FileOpenError, match="cannot be opened.*access rights"):
        open_dataset("/vsizip/nothing.zip/a.tif")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_says_so(tmp_path) -> None:
    path = make(tmp_path / "a.tif")
    path.chmod(0)
    with pytest.raises(FileOpenError, match="may not be read by this user"):
        open_dataset(path)


def test_a_container_names_the_rasters_in_it(tmp_path) -> None:
    path = tmp_path / "two.gpkg"
    for table in ("first", "second"):
        make(
            path,
            driver="GPKG",
            RASTER_TABLE=table,
            APPEND_SUBDATASET="YES" if path.exists() else "NO",
            crs="EPSG:32632",
            width=256,
            height=256,
        )
    with pytest.raises(FileOpenError, match="no bands of its own") as caught:
        describe(path)
    assert "first" in str(caught.value) and "second" in str(caught.value)


def test_a_file_is_opened_once_a_thread(tmp_path) -> None:
    path = make(tmp_path / "a.tif")
    mine = open_dataset(path)
    assert open_dataset(str(path)) is mine
    others: list[object] = []

    def other() -> None:
        others.append(open_dataset(path))
        close_all()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert others[0] is not mine and others[0].closed and not mine.closed
    close_all()
    assert mine.closed and open_dataset(path) is not mine


def test_the_cache_closes_what_was_not_used_for_longest(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets, "MAX_OPEN_FILES", 2)
    paths = [make(tmp_path / f"{n}.tif") for n in range(3)]
    first, second = open_dataset(paths[0]), open_dataset(paths[1])
    assert open_dataset(paths[0]) is first
    open_dataset(paths[2])
    assert second.closed and not first.closed


def test_a_replaced_file_is_opened_anew(tmp_path) -> None:
    path = make(tmp_path / "a.tif", value=1)
    assert open_dataset(path).read().max() == 1
    os.replace(make(tmp_path / "b.tif", value=2), path)
    assert open_dataset(path).read().max() == 2


def test_same_crs() -> None:
    a, b = CRS.from_epsg(32632), CRS.from_epsg(32633)
    assert same_crs(a.to_wkt(), a.to_wkt(version="WKT2_2019"))
    assert same_crs("", "")
    assert not same_crs(a.to_wkt(), b.to_wkt())
    assert not same_crs(a.to_wkt(), "") and not same_crs(a.to_wkt(), "nonsense")


def test_gdals_cache_is_limited_in_all_threads_and_restored() -> None:
    from rasterio._env import get_gdal_config

    def limit() -> int:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(get_gdal_config("GDAL_CACHEMAX")))
        thread.start()
        thread.join()
        return seen[0]

    before = limit()
    with gdal_settings(50_000_000):
        assert limit() == 50_000_000
        with gdal_settings(30_000_000):
            assert limit() == 30_000_000
        assert limit() == 50_000_000
    assert limit() == before


def test_gdals_warnings_are_collected(tmp_path) -> None:
    with gdal_warnings() as found:
        make(tmp_path / "a.tif", NONSENSE="1")
    assert any("NONSENSE" in words for words in found)
    with gdal_warnings() as found:
        make(tmp_path / "b.tif")
    assert found == []
