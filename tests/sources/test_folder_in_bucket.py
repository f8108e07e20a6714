"""A folder of cities in a bucket: by the same rules, brought once, whatever happens on the way."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine

from pipeline import bucket
from pipeline.errors import InputError
from pipeline.imagery.scene import City
from pipeline.params import Fetch
from pipeline.sources.folder import in_bucket
from pipeline.sources.folder.source import fetch, look_up
from pipeline.sources.open_buildings.source import _scene_paths

PLACE = {"crs": "EPSG:32633", "transform": Affine(1, 0, 500_000, 0, -1, 6_000_000)}
NOISE = np.random.default_rng(0).integers(1, 255, (3, 64, 64), dtype=np.uint8)
LABELS = (NOISE[:1] > 200).astype(np.uint8)


def tif(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", "GTiff", width, height, count, dtype=pixels.dtype, **PLACE
    ) as file:
        file.write(pixels)


@pytest.fixture
def imagery(store, tmp_path, monkeypatch) -> str:
    """s3://BUCKET/imagery with the city town of two labelled scenes, as in the folder imagery."""
    monkeypatch.chdir(tmp_path)
    name = f"imagery-{abs(hash(tmp_path))}"
    store.client.create_bucket(Bucket=name)
    for i in (1, 2):
        tif(Path(f"imagery/town/images/s{i}.tif"), NOISE)
        tif(Path(f"imagery/town/labels/s{i}.tif"), LABELS)
    for path in Path("imagery").rglob("*.tif"):
        store.client.upload_file(str(path), name, str(path))
    return f"s3://{name}/imagery"


def taken(path: str, city: str = "town") -> City:
    wanted = Fetch(source="folder", path=path, cities=[city])
    look_up(wanted, city)
    return fetch(wanted, city, Path(), Path("work"))


def key(path: str, name: str) -> dict[str, str]:
    place, _, folder = path.removeprefix("s3://").partition("/")
    return {"Bucket": place, "Key": f"{folder}/{name}"}


def brought(store) -> set[str]:
    """The scenes and labels that were asked for, as images/s1 and so on; forgets them."""
    names = {path.partition("/town/")[2] for method, path in store.asked if method == "GET"}
    store.asked.clear()
    return {name.removesuffix(".tif") for name in names if name}


def test_a_city_of_a_bucket_is_the_city_of_a_folder(store, imagery):
    store.client.put_object(**key(imagery, "town/raw/film.tif"), Body=b"neither image nor label")
    store.client.put_object(**key(imagery, "town/images/.DS_Store"), Body=b"hidden")
    there, here = taken(imagery + "/"), taken("imagery")
    assert brought(store) == {"images/s1", "images/s2", "labels/s1", "labels/s2"}
    assert (there.notes, there.raster_building) == (here.notes, here.raster_building)
    for a, b in zip(there.scenes, here.scenes, strict=True):
        assert a.name == b.name
        assert Path(a.image).read_bytes() == Path(b.image).read_bytes()
        assert Path(a.labels).read_bytes() == Path(b.labels).read_bytes()


def test_it_is_brought_once_and_what_changes_there_changes_here(store, imagery):
    before = taken(imagery)
    brought(store)
    assert taken(imagery) == before and not brought(store)
    tif(Path("new.tif"), 1 - LABELS)  # of the same size
    store.client.upload_file("new.tif", *key(imagery, "town/labels/s2.tif").values())
    after = taken(imagery)
    assert brought(store) == {"labels/s2"}
    assert Path(after.scenes[1].labels).read_bytes() == Path("new.tif").read_bytes()
    assert [a.stamp == b.stamp for a, b in zip(before.scenes, after.scenes, strict=True)] == [
        True,
        False,
    ]
    for name in ("images/s1.tif", "labels/s1.tif"):
        store.client.delete_object(**key(imagery, f"town/{name}"))
    assert [scene.name for scene in taken(imagery).scenes] == ["s2"]
    assert not brought(store)


def test_what_is_wrong_is_said_of_the_object(store, imagery):
    store.client.delete_object(**key(imagery, "town/labels/s2.tif"))
    with pytest.raises(InputError, match=f"^{imagery}/town/labels: no label for 1 of 2 images: s2"):
        taken(imagery)
    store.client.put_object(**key(imagery, "town/images/s1.tif"), Body=b"no image")
    with pytest.raises(InputError, match=f"^{imagery}/town/images/s1.tif: cannot be read"):
        taken(imagery)
    with pytest.raises(InputError, match=f"^{imagery}/tawn: no such city; did you mean town"):
        taken(imagery, "tawn")
    with pytest.raises(InputError, match=f"^{imagery}/town: holds no folder CITY/images"):
        taken(f"{imagery}/town")
    with pytest.raises(InputError, match="there is no such bucket: create it, or correct its name"):
        taken(imagery.replace("s3://", "s3://no-such-"))
    store.client.put_object(**key(imagery, "town/images//s3.tif"), Body=b"")
    with pytest.raises(InputError, match="town/images//s3.tif: no file can be called so"):
        taken(imagery)


@pytest.mark.parametrize("fault", ["busy", "cut"])
def test_a_store_that_is_busy_or_cuts_connections_is_asked_again(store, imagery, fault):
    for name in ("imagery-", "images/s1", "labels/s2"):  # the list, and two objects
        store.fail("GET", fault, name)
    assert len(taken(imagery).scenes) == 2 and not store.faults


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_expired_credentials_are_one_sentence_and_what_has_come_stays(
    store, imagery, method, monkeypatch
):
    monkeypatch.setattr(in_bucket, "AT_ONCE", 1)
    store.fail("GET", "expired", "labels")
    store.fail(method, "expired", "labels")
    with pytest.raises(InputError, match="labels/s1.tif: refused .* the credentials have expired"):
        taken(imagery)
    store.faults.clear()
    brought(store)
    assert len(taken(imagery).scenes) == 2
    assert brought(store) == {"labels/s1", "labels/s2"}


def test_a_kill_costs_what_had_not_arrived(store, imagery):
    taken(imagery)
    brought(store)
    journal = next(Path("work").rglob(".town.objects"))
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines)[:-5])  # in the middle of a line
    assert len(taken(imagery).scenes) == 2 and len(brought(store)) == 1
    Path(taken(imagery).scenes[0].image).write_bytes(b"cut short")
    assert len(taken(imagery).scenes) == 2 and brought(store) == {"images/s1"}


def test_a_public_bucket_needs_no_credentials(store, imagery, monkeypatch):
    for path in Path("imagery/town").rglob("*.tif"):
        name = str(path.relative_to("imagery"))
        store.client.put_object_acl(ACL="public-read", **key(imagery, name))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket._client.cache_clear()
    assert len(taken(imagery).scenes) == 2


def test_open_buildings_takes_a_folder_of_scenes(store, imagery):
    folder = f"{imagery}/town/images/"
    assert _scene_paths([folder], "town") == [f"{folder}s1.tif", f"{folder}s2.tif"]
    with pytest.raises(InputError, match="town/none/: no scene of town, no .tif, is there"):
        _scene_paths([f"{imagery}/town/none/"], "town")


@pytest.mark.slow
def test_dvc_sees_what_changes_in_the_bucket(store, imagery, tmp_path):
    """As docs/scaling.md says: the stages are done until an object changes there."""
    pytest.importorskip("dvc_s3", reason="the s3 extra is not installed")

    def run(*words: str) -> str:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        done = subprocess.run(
            words, cwd=tmp_path / "project", env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "project").mkdir()
    run(sys.executable, "-m", "pipeline", "init", ".", "--preset", "town")
    run("dvc", "init", "--no-scm", "--quiet")
    settings = tmp_path / "project/params.yaml"
    params = yaml.safe_load(settings.read_text())
    params["fetch"] |= {"source": "folder", "path": imagery, "cities": ["town"]}
    params["tile"] |= {"gsd": 0.5, "size": 32, "margin": 0, "max_upsampling": 2.01}
    settings.write_text(yaml.safe_dump(params))
    tiles = tmp_path / "project/data/tiles/town"
    run("dvc", "repro", "tile")
    assert tiles.is_dir()
    assert "up to date" in run("dvc", "status", "tile")
    before = {path: path.read_bytes() for path in tiles.rglob("*.npy")}
    tif(Path("s2.tif"), NOISE[::-1])
    store.client.upload_file("s2.tif", **key(imagery, "town/images/s2.tif"))
    assert "fetch@town" in run("dvc", "status", "fetch")
    run("dvc", "repro", "tile")
    assert {path: path.read_bytes() for path in tiles.rglob("*.npy")} != before
    assert "up to date" in run("dvc", "status", "tile")
