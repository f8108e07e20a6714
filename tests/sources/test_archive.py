import hashlib
import io
import os
import zipfile
import zlib

import multivolumefile
import py7zr
import pytest

from pipeline.errors import InputError
from pipeline.sources.archive import Volumes, extract_7z, extract_zip, names_in_zip, volumes_of

BODY = os.urandom(100_000) + bytes(100_000)
LIMIT = len(BODY)


@pytest.fixture
def volumes(tmp_path):
    """inner.zip and a second file in eight or so volumes named as Inria names them."""
    with (
        multivolumefile.MultiVolume(tmp_path / "a.7z", "wb", volume=13_000, ext_digits=3) as file,
        py7zr.SevenZipFile(file, "w") as archive,
    ):
        archive.writestr(b"read me", "README.txt")
        archive.writestr(BODY, "inner.zip")
    paths = volumes_of(tmp_path / "a.7z.001")
    assert len(paths) > 5
    return paths


@pytest.fixture
def zipped(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/a.tif", BODY)
        archive.writestr("data/b.tif", b"b")
    return path


def leftovers(folder) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith((".", "out"))]


def test_volumes_read_like_their_concatenation(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(4)]
    for path, size in zip(paths, (7, 0, 1, 40), strict=True):
        path.write_bytes(os.urandom(size))
    whole = b"".join(path.read_bytes() for path in paths)
    with io.BufferedReader(Volumes(paths), 16) as stream:
        assert stream.read() == whole
        for start, count in [(0, 9), (6, 1), (6, 3), (7, 0), (7, 1), (8, 100), (48, 1)]:
            stream.seek(start)
            assert stream.read(count) == whole[start : start + count]
        assert stream.seek(-3, io.SEEK_END) == 45


def test_a_missing_volume_is_named(volumes):
    volumes[2].unlink()
    with pytest.raises(InputError, match=r"volume a.7z.003 is missing"):
        volumes_of(volumes[0])


def test_other_files_beside_the_volumes_are_not_volumes(volumes):
    for name in ("a.7z.001.part", "a.7z.md5", "b.7z.009"):
        (volumes[0].parent / name).touch()
    assert volumes_of(volumes[0]) == volumes


def test_only_the_member_asked_for_leaves_the_7z(volumes, tmp_path):
    md5 = hashlib.md5(BODY).hexdigest()
    path = extract_7z(volumes, "inner.zip", tmp_path / "out.zip", limit=LIMIT, md5=md5)
    assert path.read_bytes() == BODY
    assert leftovers(tmp_path) == ["out.zip"]


def cut_last(volumes):
    volumes[-1].write_bytes(volumes[-1].read_bytes()[:-50])


def cut_middle(volumes):
    volumes[2].write_bytes(volumes[2].read_bytes()[:-50])


def flip_a_byte(volumes):
    data = bytearray(volumes[2].read_bytes())
    data[5000] ^= 255
    volumes[2].write_bytes(data)


def not_an_archive(volumes):
    volumes[0].write_bytes(b"<html>" * 1000)


def drop_last(volumes):
    volumes.pop()


@pytest.mark.parametrize("damage", [cut_last, cut_middle, flip_a_byte, not_an_archive, drop_last])
def test_a_damaged_volume_is_an_error_and_leaves_nothing(volumes, tmp_path, damage):
    damage(volumes)
    with pytest.raises(InputError, match="a.7z.001 and .* more volumes: cut short or damaged .*"):
        extract_7z(volumes, "inner.zip", tmp_path / "out.zip", limit=LIMIT)
    assert leftovers(tmp_path) == []


def test_7z_bounds_names_and_checksums(volumes, tmp_path):
    out = tmp_path / "out.zip"
    with pytest.raises(InputError, match="unpacks to 200000 bytes where at most 199999"):
        extract_7z(volumes, "inner.zip", out, limit=LIMIT - 1)
    with pytest.raises(InputError, match="holds no other.zip"):
        extract_7z(volumes, "other.zip", out, limit=LIMIT)
    with pytest.raises(InputError, match="the md5 of inner.zip is .* where 0 is expected"):
        extract_7z(volumes, "inner.zip", out, limit=LIMIT, md5="0")
    assert leftovers(tmp_path) == []


def test_a_7z_member_that_climbs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(py7zr.py7zr, "check_archive_path", lambda _: True)
    with py7zr.SevenZipFile(tmp_path / "evil.7z", "w") as archive:
        archive._writestr(BODY, "inner.zip")
        archive._writestr(b"evil", "../evil.txt")
    with pytest.raises(InputError, match=r"member '\.\./evil.txt' climbs out"):
        extract_7z([tmp_path / "evil.7z"], "inner.zip", tmp_path / "out.zip", limit=LIMIT)
    assert leftovers(tmp_path) == []


def test_zip_members_are_streamed_and_verified(zipped, tmp_path):
    crc = extract_zip(zipped, {"data/a.tif": tmp_path / "x" / "one.tif"}, limit=LIMIT)
    assert (tmp_path / "x" / "one.tif").read_bytes() == BODY
    assert crc == {"data/a.tif": zlib.crc32(BODY)}
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["one.tif"]
    assert names_in_zip(zipped) == ["data/a.tif", "data/b.tif"]


@pytest.mark.parametrize(
    "name", ["../evil.tif", "data/../../evil.tif", "/evil.tif", "C:\\evil", "..\\evil"]
)
def test_a_zip_with_a_climbing_member_is_refused_whole(zipped, tmp_path, name):
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(InputError, match="climbs out of its folder"):
        extract_zip(zipped, {"data/a.tif": tmp_path / "out.tif"}, limit=LIMIT)
    with pytest.raises(InputError, match="climbs out of its folder"):
        names_in_zip(zipped)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("keep", [0, 10, 50_000, -30, -1])
def test_a_truncated_zip_is_an_error_and_leaves_nothing(zipped, tmp_path, keep):
    zipped.write_bytes(zipped.read_bytes()[:keep])
    with pytest.raises(InputError, match="a.zip: cut short or damaged"):
        extract_zip(zipped, {"data/a.tif": tmp_path / "out.tif"}, limit=LIMIT)
    assert leftovers(tmp_path) == []


def test_a_flipped_byte_in_a_zip_is_an_error_and_leaves_nothing(zipped, tmp_path):
    data = bytearray(zipped.read_bytes())
    data[50_000] ^= 1
    zipped.write_bytes(data)
    with pytest.raises(InputError, match="a.zip: cut short or damaged"):
        extract_zip(zipped, {"data/a.tif": tmp_path / "out.tif"}, limit=LIMIT)
    assert leftovers(tmp_path) == []


def test_a_bomb_is_refused_before_it_unpacks(zipped, tmp_path):
    with pytest.raises(
        InputError, match="data/a.tif unpacks to 200000 bytes where at most 100 are expected"
    ):
        extract_zip(
            zipped, {"data/b.tif": tmp_path / "out.b", "data/a.tif": tmp_path / "out.a"}, limit=100
        )
    assert leftovers(tmp_path) == []


def test_a_zip_that_lies_about_a_size_cannot_write_more(zipped, tmp_path):
    data = zipped.read_bytes()
    lie = data.replace(len(BODY).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    assert lie != data
    zipped.write_bytes(lie)
    with pytest.raises(InputError, match="cut short or damaged"):
        extract_zip(zipped, {"data/a.tif": tmp_path / "out.tif"}, limit=1000)
    assert leftovers(tmp_path) == []


def test_a_missing_member_is_named(zipped, tmp_path):
    with pytest.raises(InputError, match="a.zip: holds no data/c.tif"):
        extract_zip(zipped, {"data/c.tif": tmp_path / "out.tif"}, limit=LIMIT)
