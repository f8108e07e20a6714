"""One sentence a cause, for what cannot be read or written, with the remedy
that helps against it.
"""

import errno
import os
import resource

import numpy as np
import pytest
from affine import Affine
from rasterio.errors import RasterioIOError

from pipeline.errors import REMEDIES, InputError, cause
from pipeline.imagery import writer
from pipeline.imagery.formats import unreadable
from pipeline.imagery.grid import Grid
from pipeline.imagery.raster import open_raster
from pipeline.imagery.writer import cloud_optimised, onto_disk

SAID = {  # GDAL's words
    "HTTP response code: 401": "key or token",
    "HTTP response code: 403": "key or token",
    "HTTP response code: 404": "nothing is there",
    "HTTP response code: 429": "again later",
    "HTTP response code: 503": "again later",
    "CURL error: Could not resolve host: nowhere.invalid": "the network",
    "CURL error: TLS connect error: wrong version number": "http or https",
    "AWS_SECRET_ACCESS_KEY and AWS_NO_SIGN_REQUEST configuration options not "
    "defined": "AWS_NO_SIGN_REQUEST=YES",
    "GS_SECRET_ACCESS_KEY or GS_NO_SIGN_REQUEST=YES configuration options not "
    "defined": "GS_NO_SIGN_REQUEST=YES",
    "a.tif: Permission denied": "permissions",
    "a.tif is no TIFF, PNG, JPEG, JPEG 2000 or Imagine file": "write it as a GeoTIFF",
    "TIFFReadDirectory:Failed to read directory at offset "
    "8": "damaged or cut short: fetch it again",
}


@pytest.mark.parametrize("words", SAID)
def test_what_cannot_be_read_names_its_cause_s_remedy(words):
    sentence = str(unreadable("a.tif", RasterioIOError(words)))
    assert sentence.startswith("a.tif: cannot be read") and SAID[words] in sentence
    assert ("fetch it again" in sentence) == ("fetch it again" in SAID[words] or "no TIFF" in words)


def test_a_folder_is_no_damaged_file(tmp_path):
    with (
        pytest.raises(InputError, match="Is a directory.*a folder is where a file is wanted"),
        open_raster(tmp_path),
    ):
        pass


@pytest.mark.parametrize("code", REMEDIES)
def test_what_cannot_be_written_names_its_cause_s_remedy(tmp_path, code):
    for error in (OSError(code, os.strerror(code)), RasterioIOError(f"a.tif: {os.strerror(code)}")):
        with pytest.raises(InputError) as refused, onto_disk(tmp_path / "a.tif"):
            raise error
        assert str(refused.value) == f"a.tif: {os.strerror(code)}; {REMEDIES[code]}"


def test_the_disk_is_blamed_only_where_it_refuses(tmp_path, monkeypatch):
    """GDAL's own numbers are no errno; where it names no cause the disk is asked."""
    error = RasterioIOError("TIFFAppendToStrip:Write error")
    error.errno = None
    with (
        pytest.raises(InputError, match="Write error.*it is not the disk"),
        onto_disk(tmp_path / "a.tif"),
    ):
        raise error
    foreign = Exception("Parse error")
    foreign.errno = errno.EPERM
    assert cause(foreign) is None
    monkeypatch.setattr(
        os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.EDQUOT, "")), False
    )
    with pytest.raises(InputError, match="free some of your quota"), onto_disk(tmp_path / "a.tif"):
        raise error


def test_a_file_that_grows_too_large_is_no_full_disk(tmp_path):
    noise = np.random.default_rng(0).integers(0, 250, (1, 600, 600), dtype=np.uint8)
    grid, before = (
        Grid(600, 600, Affine(0.5, 0, 0, 0, -0.5, 0), "EPSG:32632"),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with (
            pytest.raises(InputError, match="File too large.*ulimit -f"),
            cloud_optimised(tmp_path / "a.tif", grid, ["building"]) as write,
        ):
            write(0, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["a;b!.gpkg", "a b?.gpkg", "#(1).gpkg"])
def test_a_driver_sees_letters_only_and_the_file_gets_its_name(tmp_path, name):
    with writer.plain_name(tmp_path / name) as plain:
        assert plain.name == "buildings.gpkg" and not set("!;?#() ") & set(str(plain))
        plain.write_text("whole")
    assert (tmp_path / name).read_text() == "whole" and len(list(tmp_path.iterdir())) == 1
