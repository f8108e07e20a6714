"""Source `inria`: the Inria Aerial Image Labeling dataset, from its own server or
from an archive here.

Volumes of a 7z → one zip → only the scenes asked for. At most two copies are on disk at a time: the
volumes go when the zip is verified. The official split is kept: scenes 1–5 of a training city are
those whose IoU papers report, so they are `test` here and nothing else touches them; `tile` draws
validation from the rest.
"""

import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import rasterio
from filelock import FileLock
from pydantic import Field
from rasterio.io import MemoryFile

from pipeline import params
from pipeline.console import progress
from pipeline.errors import InputError, nearest
from pipeline.imagery.raster import open_raster
from pipeline.imagery.scene import City, Scene, read_city
from pipeline.labels import IGNORE
from pipeline.params import Count, Positive, Section, load_section
from pipeline.sources.archive import Damaged, extract_7z, extract_zip, names_in_zip, volumes_of
from pipeline.sources.download import download, ensure_free
from pipeline.storage import atomic_file

MANIFEST = "data/sources/inria.yaml"
BUILDING = 255  # in the dataset's labels and in a submission
# the zip's bytes over the volumes': more is an archive bomb, imagery hardly compresses twice
MAX_RATIO = 3
Md5 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")]


class Volume(Section):
    url: str
    size: Count  # bytes
    md5: Md5 | None = None


class Zip(Section):
    name: str
    md5: Md5


class Manifest(Section):
    volumes: Annotated[list[Volume], Field(min_length=1)]
    zip: Zip
    side: Count  # pixels along a scene's side
    gsd: Positive  # metres on the ground per pixel
    numbers: Count  # scenes of a city
    training: list[str]
    test: list[str] = []  # cities without labels
    validation: list[Count] = []  # scenes of each training city that papers report on
    noisy: list[str] = []  # scenes known to be badly labelled
    rights: str
    attribution: str


def fetch(fetch: params.Fetch, city: str, folder: Path, work: Path) -> City:
    """Bring a city's scenes to FOLDER/{images,labels}, or leave them in an unpacked dataset.

    `work` keeps the archive between cities. A test city comes without labels. Raises InputError:
    unknown city or scene, failed download (see `download`), damaged archive (see `archive`), a
    scene that is missing, cut short or of another size, a label that is missing, of another size or
    with values besides 0 and 255.
    """
    manifest = load_section(Manifest, fetch.path, MANIFEST)
    names = _scene_names(fetch, city, manifest)
    members = {name: _members(name, labelled=city in manifest.training) for name in names}
    given = Path(fetch.archive) if fetch.archive else None
    if given and given.is_dir():
        archive, scenes = given, _in_place(given, members)
    else:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "inria.lock"):
            archive = _zip(given, manifest, work)
            scenes = _unpack(archive, members, folder, manifest)
    for scene in progress(scenes, f"checking {city}"):
        check_scene(
            folder / scene.image, folder / scene.labels if scene.labels else None, manifest.side
        )
    if archive != given and not fetch.keep_archive and _others_done(fetch, city, folder, manifest):
        shutil.rmtree(archive.parent)
    if fetch.official_split and city in manifest.training:
        held_out = {f"{city}{number}" for number in manifest.validation}
        scenes = [
            replace(scene, split="test") if scene.name in held_out else scene for scene in scenes
        ]
    return City(
        city=city,
        source="inria",
        scenes=scenes,
        gsd=manifest.gsd,
        raster_building=BUILDING,
        rights=manifest.rights,
        attribution=manifest.attribution,
        notes={"noisy_scenes": [name for name in names if name in manifest.noisy]},
    )


def look_up(fetch: params.Fetch, city: str) -> None:
    """Raise InputError where there is no such city or scene."""
    _scene_names(fetch, city, load_section(Manifest, fetch.path, MANIFEST))


def check_scene(image: Path, label: Path | None, side: int) -> None:
    """Open a scene and read its last block, and its label whole. Raises InputError: see `fetch`."""
    with open_raster(image) as dataset:
        _check_shape(dataset, 3, side)
        *_, (_, last) = dataset.block_windows(1)
        dataset.read(window=last)
    if label is None:
        return
    with open_raster(label) as dataset:
        _check_shape(dataset, 1, side)
        for _, window in dataset.block_windows(1):
            if wrong := set(np.unique(dataset.read(1, window=window)).tolist()) - {0, BUILDING}:
                raise InputError(
                    f"{label}: holds the value {min(wrong)}; a label of Inria is 0 or 255"
                )


def _check_shape(dataset: rasterio.DatasetReader, bands: int, side: int) -> None:
    if (dataset.count, dataset.height, dataset.width, dataset.dtypes[0]) != (
        bands,
        side,
        side,
        "uint8",
    ):
        found = f"{dataset.width}×{dataset.height} pixels of {dataset.count} {dataset.dtypes[0]}"
        raise InputError(
            f"{dataset.name}: is {found} where {side}×{side} of {bands} uint8 are expected; "
            f"replace the file"
        )


def pack_submission(
    predictions: str | Path, out: str | Path, manifest: str | Path = MANIFEST
) -> Path:
    """Pack the masks that `predict` wrote for the test cities (0, 1, 255 = nodata)
    as the contest's zip.

    The zip holds bellingham1.tif … tyrol-e36.tif: one band, 0 and 255, nodata as
    background. Raises InputError: a scene missing or there twice, a mask of another
    size, of several bands or with other values.
    """
    predictions, out, about = (
        Path(predictions),
        Path(out),
        load_section(Manifest, manifest, MANIFEST),
    )
    names = [f"{city}{number}" for city in about.test for number in range(1, about.numbers + 1)]
    found: dict[str, list[Path]] = {name: [] for name in names}
    for path in sorted(predictions.rglob("*.tif")):
        if path.stem in found:
            found[path.stem].append(path)
    if missing := [name for name, paths in found.items() if not paths]:
        raise InputError(
            f"{predictions}: no mask for {len(missing)} of {len(names)} test scenes, "
            f"{missing[0]}.tif first; predict them"
        )
    if twice := [name for name, paths in found.items() if len(paths) > 1]:
        raise InputError(f"{predictions}: two masks are called {twice[0]}.tif; take one away")
    with atomic_file(out) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name in progress(names, "packing"):
            archive.writestr(f"{name}.tif", _submission_mask(found[name][0], about.side))
    return out


def _submission_mask(path: Path, side: int) -> bytes:
    """A predicted mask as a GeoTIFF of 0 and 255."""
    with open_raster(path) as dataset:
        _check_shape(dataset, 1, side)
        mask, place = dataset.read(1), {"crs": dataset.crs, "transform": dataset.transform}
    values = set(np.unique(mask).tolist())
    if not values <= {0, 1, IGNORE} or (IGNORE in values and 1 not in values):
        raise InputError(
            f"{path}: holds {sorted(values)[:4]} where `predict` writes 0, 1 and 255 for nodata"
        )
    format = {"driver": "GTiff", "count": 1, "dtype": "uint8", "compress": "lzw"}
    with MemoryFile() as memory:
        with memory.open(height=side, width=side, **format, **place) as target:
            target.write(np.where(mask == 1, BUILDING, 0).astype(np.uint8), 1)
        return bytes(memory.getbuffer())


def _scene_names(fetch: params.Fetch, city: str, manifest: Manifest) -> list[str]:
    cities = manifest.training + manifest.test
    if city not in cities:
        raise InputError(
            f"fetch.cities: Inria has no city {city!r}; did you mean {nearest(city, cities)}?"
        )
    numbers = range(1, manifest.numbers + 1) if fetch.scenes == "all" else sorted(set(fetch.scenes))
    if numbers[-1] > manifest.numbers:
        raise InputError(
            f"fetch.scenes: {city} has no scene {numbers[-1]}, only 1 to {manifest.numbers}"
        )
    return [f"{city}{number}" for number in numbers]


def _members(name: str, labelled: bool) -> tuple[str, str | None]:
    """Where the dataset keeps a scene's image and label."""
    if labelled:
        return f"train/images/{name}.tif", f"train/gt/{name}.tif"
    return f"test/images/{name}.tif", None


def _in_place(root: Path, members: dict[str, tuple[str, str | None]]) -> list[Scene]:
    """The scenes of an unpacked dataset, which stay where they are."""
    roots = [path for path in (root, root / "AerialImageDataset") if (path / "train").is_dir()]
    if not roots:
        raise InputError(
            f"{root}: is no unpacked AerialImageDataset, no train/ in it; correct fetch.archive"
        )
    scenes = []
    for name, pair in members.items():
        files = [roots[0].absolute() / member for member in pair if member]
        if missing := [path for path in files if not path.is_file()]:
            raise InputError(
                f"{missing[0]}: missing; unpack it again or leave {name} out of fetch.scenes"
            )
        stamp = " ".join(f"{status.st_size}-{status.st_mtime_ns}" for status in map(os.stat, files))
        image, label = str(files[0]), str(files[1]) if len(files) > 1 else None
        scenes.append(Scene(name, image, label, stamp=stamp))
    return scenes


def _unpack(
    archive: Path, members: dict[str, tuple[str, str | None]], folder: Path, manifest: Manifest
) -> list[Scene]:
    """Extract the scenes asked for to FOLDER/images and FOLDER/labels."""
    full = {"/".join(PurePosixPath(member).parts[-3:]): member for member in names_in_zip(archive)}
    targets = {}
    for name, (image, label) in members.items():
        targets[full.get(image, image)] = folder / "images" / f"{name}.tif"
        if label:
            targets[full.get(label, label)] = folder / "labels" / f"{name}.tif"
    pixels = manifest.side**2
    crc = extract_zip(archive, targets, limit=2 * 3 * pixels + 2**20)
    return [
        Scene(
            name,
            f"images/{name}.tif",
            label and f"labels/{name}.tif",
            stamp=" ".join(f"{crc[full[member]]:08x}" for member in (image, label) if member),
        )
        for name, (image, label) in members.items()
    ]


def _zip(given: Path | None, manifest: Manifest, work: Path) -> Path:
    """The zip of scenes: the user's own, or the verified one out of volumes
    that are the user's or ours.
    """
    if given and given.suffix == ".zip":
        if not given.is_file():
            raise InputError(f"{given}: not found; correct fetch.archive")
        return given
    folder = work / f"inria-{manifest.zip.md5[:8]}"
    path = folder / manifest.zip.name
    ours = [folder / PurePosixPath(urlsplit(volume.url).path).name for volume in manifest.volumes]
    if not path.exists():
        volumes = _given_volumes(given, manifest) if given else _download_volumes(ours, manifest)
        limit = MAX_RATIO * sum(volume.size for volume in manifest.volumes) + 2**20
        try:
            extract_7z(volumes, path.name, path, limit=limit, md5=manifest.zip.md5)
        except Damaged as error:
            if given:
                raise
            for volume in ours:  # no md5 of theirs is published: none of them can be trusted
                volume.unlink()
            raise InputError(f"{error} (the volumes were removed: run the same command)") from None
    for volume in ours:  # the zip holds all that they held
        volume.unlink(missing_ok=True)
    return path


def _given_volumes(first: Path, manifest: Manifest) -> list[Path]:
    """The user's own volumes, checked for size; joined to one .7z they are welcome too."""
    if not first.is_file() or not first.name.endswith((".7z", ".7z.001")):
        raise InputError(
            f"{first}: is no archive of Inria; set fetch.archive to a .7z.001, a .zip or an "
            f"unpacked folder"
        )
    sizes = [volume.size for volume in manifest.volumes]
    expected = [sum(sizes)] if first.suffix == ".7z" else sizes
    volumes = volumes_of(first)
    if len(volumes) != len(expected):
        raise InputError(
            f"{first}: {len(volumes)} volumes, {len(expected)} expected; download the others"
        )
    for path, size in zip(volumes, expected, strict=True):
        if (here := path.stat().st_size) != size:
            raise InputError(
                f"{path}: has {here} bytes where {size} are expected; download it again"
            )
    return volumes


def _download_volumes(paths: list[Path], manifest: Manifest) -> list[Path]:
    whole = sum(volume.size for volume in manifest.volumes)
    here = sum(path.stat().st_size for path in paths[0].parent.glob("*") if path.is_file())
    ensure_free(paths[0].parent, 2 * whole - here, "Inria's volumes and the zip inside them")
    for path, volume in zip(paths, manifest.volumes, strict=True):
        download(volume.url, path, size=volume.size, md5=volume.md5)
    return paths


def _others_done(fetch: params.Fetch, city: str, folder: Path, manifest: Manifest) -> bool:
    """Whether every other city of fetch.cities has the scenes asked for: the
    archive has done its work.
    """
    for other in set(fetch.cities) - {city}:
        try:
            there = {scene.name for scene in read_city(folder.parent / other).scenes}
        except InputError:
            return False
        if not there.issuperset(_scene_names(fetch, other, manifest)):
            return False
    return True
