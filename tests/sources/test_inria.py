import hashlib
import shutil
import zipfile
from pathlib import Path

import multivolumefile
import numpy as np
import py7zr
import pytest
import rasterio
import yaml

from pipeline import params
from pipeline.errors import InputError
from pipeline.imagery.scene import read_city, write_city
from pipeline.networks.models import build_model, save_model
from pipeline.params import load_section
from pipeline.sources import download
from pipeline.sources.inria import source as inria
from pipeline.sources.inria.source import MANIFEST, Manifest, check_scene, pack_submission
from pipeline.stages import fetch as fetch_stage
from pipeline.stages import predict as predict_stage

SIDE = 64
PLACE = {"crs": "EPSG:26914", "transform": rasterio.Affine(0.3, 0, 616500, 0, -0.3, 3345000)}
ZIP = "NEW2-AerialImageDataset.zip"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(download, "BACKOFF", 0)


def write_tiff(path: Path, pixels: np.ndarray, **options) -> None:
    """Write (bands, height, width) uint8 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    profile = {
        "driver": "GTiff",
        "count": bands,
        "height": height,
        "width": width,
        "dtype": pixels.dtype,
    }
    with rasterio.open(path, "w", **{**profile, **PLACE, **options}) as target:
        target.write(pixels)


@pytest.fixture
def dataset(tmp_path) -> Path:
    """AerialImageDataset in miniature: austin and tyrol-w with labels, sfo
    without, three scenes each.
    """
    root, random = tmp_path / "AerialImageDataset", np.random.default_rng(0)
    for city in ("austin", "tyrol-w", "sfo"):
        subset = "test" if city == "sfo" else "train"
        for number in (1, 2, 3):
            image = random.integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8)
            write_tiff(root / subset / "images" / f"{city}{number}.tif", image)
            if subset == "train":
                label = np.where(image[:1] > 128, 255, 0).astype(np.uint8)
                write_tiff(root / subset / "gt" / f"{city}{number}.tif", label)
    return root


def zip_dataset(root: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*.tif")):
            archive.write(file, file.relative_to(root.parent))
    return path


def split_7z(path: Path, folder: Path) -> list[Path]:
    """Put `path` into aerialimagelabeling.7z.001 to .005 in `folder`, as Inria's server has it."""
    size, joined = path.stat().st_size * 22 // 100, folder / "aerialimagelabeling.7z"
    with (
        multivolumefile.MultiVolume(joined, "wb", volume=size, ext_digits=3) as file,
        py7zr.SevenZipFile(file, "w") as archive,
    ):
        archive.write(path, path.name)
    volumes = sorted(folder.glob("aerialimagelabeling.7z.*"))
    assert len(volumes) == 5
    return volumes


def write_manifest(path: Path, url: str, volumes: list[Path], zipped: Path, **changes) -> Path:
    real = yaml.safe_load(Path(MANIFEST).read_text(encoding="utf-8"))
    small = {
        "volumes": [
            {"url": f"{url}/{volume.name}", "size": volume.stat().st_size} for volume in volumes
        ],
        "zip": {"name": zipped.name, "md5": hashlib.md5(zipped.read_bytes()).hexdigest()},
        "side": SIDE,
        "numbers": 3,
        "validation": [1],
        "noisy": ["austin2"],
    }
    path.write_text(yaml.safe_dump({**real, **small, **changes}), encoding="utf-8")
    return path


@pytest.fixture
def published(server, dataset, tmp_path):
    """The dataset on the local server; returns the manifest."""
    zipped = zip_dataset(dataset, tmp_path / ZIP)
    manifest = write_manifest(
        tmp_path / "inria.yaml", server.url, split_7z(zipped, server.root), zipped
    )
    zipped.unlink()
    return manifest


@pytest.fixture
def fetch(published, tmp_path):
    """Fetch a city as the stage does, by default austin from the server;
    options are of the fetch section.
    """

    def fetch(city="austin", **options):
        asked = {"source": "inria", "path": str(published), "cities": [city], **options}
        folder = tmp_path / "scenes" / city
        folder.mkdir(parents=True, exist_ok=True)
        found = inria.fetch(params.Fetch(**asked), city, folder, tmp_path / "work")
        write_city(folder, found)
        return read_city(folder)

    return fetch


def on_disk(folder: Path) -> set[str]:
    return {
        path.name
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def same_pixels(one: str | Path, other: str | Path) -> bool:
    with rasterio.open(one) as a, rasterio.open(other) as b:
        return (a.read() == b.read()).all() and a.crs == b.crs and a.transform == b.transform


def test_volumes_become_the_scenes_asked_for_and_the_zip_stays(fetch, dataset, tmp_path):
    city = fetch(scenes=[1, 3])
    assert [scene.name for scene in city.scenes] == ["austin1", "austin3"]
    for scene in city.scenes:
        assert same_pixels(scene.image, dataset / "train" / "images" / f"{scene.name}.tif")
        assert same_pixels(scene.labels, dataset / "train" / "gt" / f"{scene.name}.tif")
    assert city.raster_building == 255 and city.gsd == 0.3 and "IGARSS 2017" in city.attribution
    assert on_disk(tmp_path / "scenes") == {"austin1.tif", "austin3.tif", "city.json"}
    assert on_disk(tmp_path / "work") == {ZIP}


def test_the_official_split_is_a_parameter(fetch):
    assert [scene.split for scene in fetch().scenes] == ["test", None, None]
    assert [scene.split for scene in fetch(official_split=False).scenes] == [None, None, None]


def test_noisy_scenes_are_kept_and_named(fetch):
    assert fetch().notes["noisy_scenes"] == ["austin2"]


def test_a_second_city_comes_from_the_kept_zip(fetch, server):
    fetch()
    asked = len(server.requests)
    assert [scene.name for scene in fetch("tyrol-w").scenes] == ["tyrol-w1", "tyrol-w2", "tyrol-w3"]
    assert len(server.requests) == asked


def test_a_test_city_comes_without_labels_and_without_split(fetch, dataset):
    city = fetch("sfo", scenes=[1, 2])
    assert [(scene.name, scene.labels, scene.split) for scene in city.scenes] == [
        ("sfo1", None, None),
        ("sfo2", None, None),
    ]
    assert same_pixels(city.scenes[1].image, dataset / "test" / "images" / "sfo2.tif")


def test_stamps_follow_the_contents(fetch):
    first, again = fetch().scenes, fetch().scenes
    assert [scene.stamp for scene in first] == [scene.stamp for scene in again]
    assert len({scene.stamp for scene in first}) == 3


def test_never_three_copies_on_disk(fetch, tmp_path, monkeypatch):
    seen = []

    def watched(extract):
        def watching(*arguments, **options):
            seen.append(on_disk(tmp_path / "work"))
            return extract(*arguments, **options)

        return watching

    for name in ("extract_7z", "extract_zip"):
        monkeypatch.setattr(inria, name, watched(getattr(inria, name)))
    fetch()
    assert seen == [{f"aerialimagelabeling.7z.00{i}" for i in range(1, 6)}, {ZIP}]


def test_the_archive_goes_after_the_last_city_unless_kept(fetch, tmp_path):
    both = {"cities": ["austin", "tyrol-w"], "keep_archive": False}
    fetch("austin", **both)
    assert on_disk(tmp_path / "work") == {ZIP}
    fetch("tyrol-w", **both)
    assert on_disk(tmp_path / "work") == set()


def test_the_archive_stays_while_a_scene_is_wrong(fetch, published, tmp_path):
    manifest = yaml.safe_load(published.read_text())
    published.write_text(yaml.safe_dump({**manifest, "side": SIDE + 1}))
    with pytest.raises(InputError, match="is 64×64 pixels of 3 uint8 where 65×65"):
        fetch(keep_archive=False)
    assert on_disk(tmp_path / "work") == {ZIP}


def test_a_download_that_was_cut_everywhere_completes(fetch, server, dataset):
    sizes = {path.name: path.stat().st_size for path in server.root.iterdir()}
    for name, size in sizes.items():
        server.fail(name, cut_after=size // 3)
    city = fetch(scenes=[2])
    assert same_pixels(city.scenes[0].image, dataset / "train" / "images" / "austin2.tif")
    assert all(len(server.asked(name)) >= 3 for name in sizes)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"status": 404}, "7z.003: HTTP 404 Not Found"),
        ({"html": True}, "7z.003: the server answered with a web page"),
        ({"content": b"other"}, "7z.003: 5 bytes offered"),
        ({"cut_after": 10, "ignore_range": True}, "7z.003: gave up after 6 failures"),
    ],
)
def test_a_volume_that_does_not_come_is_an_error_and_costs_no_other(
    fetch, server, tmp_path, fault, sentence
):
    server.fail("aerialimagelabeling.7z.003", **fault)
    with pytest.raises(InputError, match=sentence):
        fetch()
    assert on_disk(tmp_path / "scenes") == set()
    done = {"aerialimagelabeling.7z.001", "aerialimagelabeling.7z.002"}
    here = {name for name in on_disk(tmp_path / "work") if ".part" not in name}
    assert here == done
    server.fail("aerialimagelabeling.7z.003")
    fetch()
    assert all(len(server.asked(name)) == 1 for name in done)


def test_a_damaged_volume_of_the_right_size_is_an_error(fetch, server, tmp_path):
    volume = server.root / "aerialimagelabeling.7z.002"
    server.fail(volume.name, content=bytes(volume.stat().st_size))
    with pytest.raises(InputError, match="cut short or damaged .*the volumes were removed"):
        fetch()
    assert on_disk(tmp_path / "work") == set()
    server.fail(volume.name)
    assert len(fetch().scenes) == 3


def test_a_wrong_checksum_of_the_zip_is_an_error(fetch, published, tmp_path):
    manifest = yaml.safe_load(published.read_text())
    wrong = {**manifest, "zip": {**manifest["zip"], "md5": "0" * 32}}
    published.write_text(yaml.safe_dump(wrong))
    with pytest.raises(InputError, match=f"the md5 of {ZIP} is .* where 0+ is expected"):
        fetch()
    assert on_disk(tmp_path / "work") == set()
    published.write_text(yaml.safe_dump(manifest))
    assert len(fetch().scenes) == 3


def test_a_disk_too_small_is_noticed_before_the_download(fetch, server, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="Inria's volumes and the zip inside them needs .* GB"):
        fetch()
    assert server.requests == []


def test_a_killed_unpacking_leaves_nothing_behind_for_long(fetch, published, tmp_path):
    md5 = load_section(Manifest, published, MANIFEST).zip.md5
    half = tmp_path / "work" / f"inria-{md5[:8]}" / f".{ZIP}.abcd1234.partial" / ZIP
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    fetch()
    assert not half.parent.exists()


def test_an_archive_downloaded_by_hand(fetch, server, dataset, tmp_path):
    first = server.root / "aerialimagelabeling.7z.001"
    city = fetch(archive=str(first), scenes=[1])
    assert same_pixels(city.scenes[0].labels, dataset / "train" / "gt" / "austin1.tif")
    assert first.exists() and server.requests == []  # the user's own volumes are not ours to delete


def test_volumes_joined_by_hand(fetch, server, tmp_path):
    joined = tmp_path / "joined.7z"
    joined.write_bytes(b"".join(path.read_bytes() for path in sorted(server.root.iterdir())))
    assert len(fetch(archive=str(joined)).scenes) == 3


def test_an_incomplete_archive_downloaded_by_hand(fetch, server, tmp_path):
    first, *_, last = sorted(server.root.iterdir())
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=f"7z.005: has {len(whole) - 1} bytes where {len(whole)}"):
        fetch(archive=str(first))
    last.unlink()
    with pytest.raises(InputError, match="4 volumes, 5 expected"):
        fetch(archive=str(first))
    with pytest.raises(InputError, match="nowhere.zip: not found"):
        fetch(archive=str(tmp_path / "nowhere.zip"))
    with pytest.raises(InputError, match="is no archive of Inria"):
        fetch(archive=str(tmp_path / "inria.yaml"))


def test_a_zip_by_hand_stays_where_it_is(fetch, dataset, tmp_path):
    zipped = zip_dataset(dataset, tmp_path / "mine.zip")
    city = fetch(archive=str(zipped), keep_archive=False)
    assert len(city.scenes) == 3 and zipped.exists()
    assert on_disk(tmp_path / "work") == set()


def test_a_truncated_zip_or_an_unsafe_one_is_an_error(fetch, dataset, tmp_path):
    zipped = zip_dataset(dataset, tmp_path / "mine.zip")
    whole = zipped.read_bytes()
    zipped.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="mine.zip: cut short or damaged"):
        fetch(archive=str(zipped))
    zipped.write_bytes(whole)
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr("AerialImageDataset/../../evil.tif", b"evil")
    with pytest.raises(InputError, match="climbs out of its folder"):
        fetch(archive=str(zipped))
    assert on_disk(tmp_path / "scenes") == set()


def test_a_scene_missing_from_the_zip_is_named(fetch, dataset, tmp_path):
    (dataset / "train" / "gt" / "austin2.tif").unlink()
    zipped = zip_dataset(dataset, tmp_path / "mine.zip")
    with pytest.raises(InputError, match="mine.zip: holds no train/gt/austin2.tif"):
        fetch(archive=str(zipped))


@pytest.mark.parametrize("deeper", [False, True])
def test_an_unpacked_dataset_stays_in_place(fetch, dataset, tmp_path, deeper):
    city = fetch(archive=str(dataset.parent if deeper else dataset))
    assert city.scenes[0].image == str(dataset / "train" / "images" / "austin1.tif")
    assert city.scenes[0].labels == str(dataset / "train" / "gt" / "austin1.tif")
    assert on_disk(tmp_path / "scenes") == {"city.json"}
    with pytest.raises(InputError, match="is no unpacked AerialImageDataset"):
        fetch(archive=str(dataset / "train" / "images"))


def test_a_missing_label_is_an_error(fetch, dataset):
    (dataset / "train" / "gt" / "austin3.tif").unlink()
    with pytest.raises(InputError, match="gt/austin3.tif: missing"):
        fetch(archive=str(dataset))
    assert len(fetch(archive=str(dataset), scenes=[1, 2]).scenes) == 2


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("compress", ["none", "lzw"])
def test_a_truncated_tiff_is_an_error(tmp_path, kept, compress):
    path = tmp_path / "austin1.tif"
    image = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8)
    write_tiff(path, image, compress=compress, blockysize=8)
    check_scene(path, None, SIDE)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match="austin1.tif: cannot be read .* cut short"):
        check_scene(path, None, SIDE)


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (
            np.zeros((1, SIDE, SIDE - 1), np.uint8),
            "gt/austin1.tif: is 63×64 pixels of 1 uint8 where 64×64",
        ),
        (
            np.zeros((3, SIDE, SIDE), np.uint8),
            "gt/austin1.tif: is 64×64 pixels of 3 uint8 where 64×64 of 1",
        ),
        (
            np.full((1, SIDE, SIDE), 7, np.uint8),
            "gt/austin1.tif: holds the value 7; a label of Inria is",
        ),
    ],
)
def test_a_label_that_does_not_fit_is_an_error(fetch, dataset, pixels, sentence):
    write_tiff(dataset / "train" / "gt" / "austin1.tif", pixels)
    with pytest.raises(InputError, match=sentence):
        fetch(archive=str(dataset))


def test_an_image_of_one_band_is_an_error(fetch, dataset):
    write_tiff(dataset / "train" / "images" / "austin1.tif", np.zeros((1, SIDE, SIDE), np.uint8))
    with pytest.raises(
        InputError, match="images/austin1.tif: is 64×64 pixels of 1 uint8 where 64×64 of 3"
    ):
        fetch(archive=str(dataset))


def test_unknown_cities_and_scenes_are_named(fetch):
    with pytest.raises(InputError, match="Inria has no city 'tyrol'; did you mean tyrol-"):
        fetch("tyrol")
    with pytest.raises(InputError, match="austin has no scene 37, only 1 to 3"):
        fetch(scenes=[1, 37])


def test_a_manifest_that_is_wrong(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_section(Manifest, tmp_path / "none.yaml", MANIFEST)
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        Path(MANIFEST).read_text(encoding="utf-8").replace("side: 5000", "sides: 5000")
    )
    with pytest.raises(
        InputError,
        match="parameter side is missing(.|\n)*unknown parameter sides; did you mean side",
    ):
        load_section(Manifest, broken, MANIFEST)


def test_the_real_manifest_is_the_published_dataset():
    manifest = load_section(Manifest, MANIFEST, MANIFEST)
    assert sum(volume.size for volume in manifest.volumes) == 20_957_265_875
    assert [volume.url[-3:] for volume in manifest.volumes] == ["001", "002", "003", "004", "005"]
    assert (
        len(manifest.training + manifest.test) == len(set(manifest.training + manifest.test)) == 10
    )
    assert all(name.rstrip("0123456789") in manifest.training for name in manifest.noisy)


def test_real_crops_through_the_whole_road(server, inria_crops, tmp_path):
    """Crops of real scenes under the names of scenes, in a miniature of the
    archive, cut on the way.
    """
    root = tmp_path / "AerialImageDataset"
    for kind in ("images", "gt"):
        (root / "train" / kind).mkdir(parents=True)
        for city in ("austin", "kitsap"):
            crops = sorted((inria_crops / kind).glob(f"{city}*.tif"))
            for number in (1, 2):
                shutil.copy(crops[number - 1], root / "train" / kind / f"{city}{number}.tif")
    zipped = zip_dataset(root, tmp_path / ZIP)
    volumes = split_7z(zipped, server.root)
    manifest = write_manifest(tmp_path / "m.yaml", server.url, volumes, zipped, side=256, numbers=2)
    server.fail(volumes[1].name, cut_after=volumes[1].stat().st_size // 2)
    for city in ("austin", "kitsap"):
        folder = tmp_path / "scenes" / city
        asked = params.Fetch(source="inria", path=str(manifest), cities=["austin", "kitsap"])
        found = inria.fetch(asked, city, folder, tmp_path / "work")
        for scene in found.scenes:
            original = root / "train" / "images" / f"{scene.name}.tif"
            assert (folder / scene.image).read_bytes() == original.read_bytes()


@pytest.fixture
def predicted(tmp_path, published) -> Path:
    """What `predict` writes for the only test city, with nodata in one corner of every mask."""
    manifest = yaml.safe_load(published.read_text())
    published.write_text(yaml.safe_dump({**manifest, "test": ["sfo"]}))
    for number in (1, 2, 3):
        mask = np.random.default_rng(number).integers(0, 2, (1, SIDE, SIDE)).astype(np.uint8)
        mask[0, :4, :4] = 255
        write_tiff(tmp_path / "predictions" / "sfo" / f"sfo{number}.tif", mask)
    return tmp_path / "predictions"


def test_a_submission_is_a_zip_of_0_and_255(predicted, published, tmp_path):
    out = pack_submission(predicted, tmp_path / "submission.zip", published)
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["sfo1.tif", "sfo2.tif", "sfo3.tif"]
        archive.extractall(tmp_path / "back")
    for name in ("sfo1", "sfo2", "sfo3"):
        with rasterio.open(tmp_path / "back" / f"{name}.tif") as packed:
            with rasterio.open(predicted / "sfo" / f"{name}.tif") as mask:
                assert (packed.read() == np.where(mask.read() == 1, 255, 0)).all()
            assert packed.count == 1 and packed.dtypes == ("uint8",) and packed.crs == PLACE["crs"]


def test_a_submission_from_the_server_to_the_zip(published, tmp_path, monkeypatch):
    """The README's recipe: the test cities are named in a parameter file of
    their own, and never tiled.
    """
    manifest, preset = (
        yaml.safe_load(published.read_text()),
        yaml.safe_load(Path("presets/inria.yaml").read_text()),
    )
    published.write_text(yaml.safe_dump({**manifest, "test": ["sfo"]}))
    preset["fetch"] |= {"path": str(published), "cities": ["sfo"]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(preset))
    network = params.Model(architecture="linear")
    card = {
        "model": network.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": 0.3,
        "threshold": 0.5,
        "temperature": 1.0,
        "metrics": {},
    }
    save_model(tmp_path / "model", build_model(network, 3), card)
    monkeypatch.chdir(tmp_path)
    fetch_stage.run(params.load_params("test.yaml"))
    predict_stage.run(Path("model"), ["data/scenes/sfo/images"], Path("predictions"))
    packed = pack_submission("predictions", "submission.zip", published)
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == ["sfo1.tif", "sfo2.tif", "sfo3.tif"]


def test_a_submission_that_the_contest_would_refuse(predicted, published, tmp_path):
    def refused(sentence):
        with pytest.raises(InputError, match=sentence):
            pack_submission(predicted, tmp_path / "submission.zip", published)
        assert not (tmp_path / "submission.zip").exists()

    mask = np.ones((1, SIDE, SIDE), np.uint8)
    write_tiff(predicted / "sfo2.tif", mask)
    refused("two masks are called sfo2.tif")
    (predicted / "sfo" / "sfo2.tif").unlink()
    write_tiff(predicted / "sfo2.tif", mask[:, 1:])
    refused("sfo2.tif: is 64×63 pixels")
    write_tiff(predicted / "sfo2.tif", 255 * mask)
    refused(r"sfo2.tif: holds \[255\]")
    write_tiff(predicted / "sfo2.tif", 7 * mask)
    refused(r"sfo2.tif: holds \[7\]")
    (predicted / "sfo2.tif").unlink()
    refused("no mask for 1 of 3 test scenes, sfo2.tif first")
