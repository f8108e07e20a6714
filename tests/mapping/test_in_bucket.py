"""Scenes, lists, models and maps in an object store: a real S3 server on loopback, with faults."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from pipeline import bucket
from pipeline.errors import InputError
from pipeline.mapping.scene import local_model
from pipeline.networks.models import build_model, save_model
from pipeline.params import Model, Predict
from pipeline.stages.predict import run
from pipeline.stages.publish import run as publish

SETTINGS = Predict(window=128, min_area=0)


@pytest.fixture
def town(store, tmp_path, monkeypatch) -> str:
    """A bucket of this test's own with two scenes, a list of them and a model; the same lie in
    the working folder.
    """
    monkeypatch.chdir(tmp_path)
    name = f"town-{abs(hash(tmp_path))}"
    store.client.create_bucket(Bucket=name)
    description = Model(architecture="linear")
    segmenter = build_model(description, 3)
    with torch.no_grad():
        segmenter.network.weight[:] = torch.tensor([[0, 0, 0], [20.0, -10, -10]])[..., None, None]
        segmenter.network.bias[:] = torch.tensor([0.0, -4])
    card = {
        "model": description.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
    }
    save_model("model", segmenter, card)
    place = {"crs": "EPSG:32632", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 6_650_000)}
    Path("scenes").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(60, 120, (3, 90, 110), dtype=np.uint8)
        pixels[0, 20:50, 30 + 10 * i : 70] = 230
        with rasterio.open(
            f"scenes/s{i}.tif", "w", "GTiff", 110, 90, 3, dtype="uint8", **place
        ) as file:
            file.write(pixels)
    Path("list.txt").write_text("# two scenes\nscenes/s0.tif\nscenes/s1.tif\n")
    for path in [*Path("scenes").iterdir(), *Path("model").iterdir(), Path("list.txt")]:
        store.client.upload_file(str(path), name, str(path))
    return name


def test_a_map_in_a_bucket_is_the_map_on_a_disk(town, store):
    run("model", ["scenes"], "maps", settings=SETTINGS)
    run(f"s3://{town}/model", [f"s3://{town}/list.txt"], f"s3://{town}/maps", settings=SETTINGS)
    for name in ("s0.tif", "s1.tif"):
        assert bucket.read(f"s3://{town}/maps/{name}") == Path("maps", name).read_bytes()
    here = json.loads(Path("maps/s0.json").read_text())
    there = json.loads(bucket.read(f"s3://{town}/maps/s0.json"))
    for record in (here, there):
        del record["scene"], record["key"]
    assert here == there and here["buildings"]
    assert not list(Path(".work/maps").iterdir())


def test_a_finished_scene_is_skipped_until_it_changes_and_two_shards_make_one_map(town, store):
    out, folder = f"s3://{town}/maps", f"s3://{town}/scenes/"
    for shard in ("1/2", "2/2"):  # two machines that share nothing but the bucket
        run(f"s3://{town}/model", [folder], out, settings=SETTINGS, shard=shard)
    assert {f"maps/s{i}{end}" for i in range(2) for end in (".tif", ".gpkg", ".json")} <= set(
        store.keys(town)
    )
    store.asked.clear()
    run("model", [folder], out, settings=SETTINGS)
    assert not [path for method, path in store.asked if method in {"PUT", "POST", "DELETE"}]
    store.client.upload_file("scenes/s1.tif", town, "scenes/s0.tif")
    run("model", [folder], out, settings=SETTINGS)
    written = [path for method, path in store.asked if method == "PUT" and "/maps/" in path]
    assert written and all("/s0." in path for path in written) and written[-1].endswith("s0.json")


def test_what_others_put_there_stays(town, store):
    store.client.put_object(Bucket=town, Key="maps/s0.tif", Body=b"mine")
    with pytest.raises(InputError, match="1 of 2 scenes failed"):
        run("model", ["scenes"], f"s3://{town}/maps", settings=SETTINGS)
    assert bucket.read(f"s3://{town}/maps/s0.tif") == b"mine" and bucket.about(
        f"s3://{town}/maps/s1.json"
    )
    with pytest.raises(InputError, match="holds the scene s0.tif; choose another --out"):
        run("model", [f"s3://{town}/scenes"], f"s3://{town}/scenes", settings=SETTINGS)


@pytest.mark.parametrize("fault", ["busy", "cut"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_store_that_is_busy_or_cuts_connections_is_asked_again(town, store, fault, method):
    run("model", ["scenes/s0.tif"], "maps", settings=SETTINGS)
    store.fail(method, fault)
    run("model", ["scenes/s0.tif"], f"s3://{town}/maps", settings=SETTINGS)
    assert bucket.read(f"s3://{town}/maps/s0.tif") == Path("maps/s0.tif").read_bytes()
    assert not store.faults
    assert {"maps/s0.gpkg", "maps/s0.json", "maps/s0.tif"} <= set(store.keys(town))


def test_expired_credentials_are_one_sentence_and_leave_no_record(town, store, capsys):
    store.fail("PUT", "expired")
    with pytest.raises(InputError, match="1 of 1 scenes failed"):
        run("model", ["scenes/s0.tif"], f"s3://{town}/maps", settings=SETTINGS)
    assert "the credentials have expired: get new ones" in capsys.readouterr().out
    assert not [key for key in store.keys(town) if key.startswith("maps/")]
    store.faults.clear()
    run("model", ["scenes/s0.tif"], f"s3://{town}/maps", settings=SETTINGS)


def test_what_is_not_there_is_said(town, store):
    with pytest.raises(InputError, match="nothing is there; correct the address of the model"):
        run(f"s3://{town}/other", ["scenes"], "maps", settings=SETTINGS)
    with pytest.raises(InputError, match="no images in this folder"):
        run("model", [f"s3://{town}/nowhere/"], "maps", settings=SETTINGS)
    with pytest.raises(InputError, match="there is no such bucket"):
        run("model", [f"s3://no-such-{town}/scenes/"], "maps", settings=SETTINGS)


def test_a_published_model_is_whole_or_not_there_and_stays_as_it_is(town, store, capsys):
    to = f"s3://{town}/published"
    store.fail("PUT", "expired", "published/weights")
    with pytest.raises(InputError, match="the credentials have expired"):
        publish(Path("model"), to)
    store.faults.clear()
    with pytest.raises(InputError, match="nothing is there; correct the address of the model"):
        local_model(to)
    for fault in ("busy", "cut"):
        store.fail("PUT", fault, "published/")
    publish(Path("model"), to)
    assert not store.faults
    puts = [path for method, path in store.asked if method == "PUT" and "/published/" in path]
    assert puts[-1].endswith("model.json")
    brought = Path(local_model(to))
    for name in ("weights.safetensors", "model.json"):
        assert (brought / name).read_bytes() == Path("model", name).read_bytes()
    store.asked.clear()
    publish(Path("model"), to)
    assert not [path for method, path in store.asked if method == "PUT"]
    Path("model/README.md").write_text("another")
    with pytest.raises(InputError, match=f"holds another model.* such as {to}-2"):
        publish(Path("model"), to)
    with pytest.raises(InputError, match="holds README.md, which publish did not put"):
        publish(Path("model"), f"s3://{town}/model")


def test_what_a_killed_publication_left_of_another_model_goes(town, store):
    to = f"s3://{town}/published"
    Path("model/glance.safetensors").write_bytes(b"of the model before")
    publish(Path("model"), to)
    bucket.remove(f"{to}/model.json")  # as if it had been killed just before
    Path("model/glance.safetensors").unlink()
    publish(Path("model"), to)
    assert {f"published/{path.name}" for path in Path("model").iterdir()} == {
        key for key in store.keys(town) if key.startswith("published/")
    }
