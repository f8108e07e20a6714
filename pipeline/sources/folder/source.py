"""Source `folder`: the user's own imagery, left where it is; of a bucket (PATH is s3://…) brought.

PATH/CITY/images/*.tif          scenes of any size, CRS, band count and type; .png, .jp2, … and sub-folders too
PATH/CITY/labels/*.tif          under the same names: 0, classes 1..k, 255 ignore; or 0 and 255 (building)
PATH/CITY/labels/*.geojson      or a file of footprints a scene, in any CRS (formats: geo.vector_file)
PATH/CITY/buildings.geojson     or, instead of labels/, one file of footprints for all

Whatever a later stage would stumble over is found here, before anything is computed.
"""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import rasterio
import shapely
from pyproj import CRS, Geod
from pyproj.exceptions import ProjError

from pipeline import bucket, params
from pipeline.bucket import is_object
from pipeline.errors import InputError, nearest
from pipeline.imagery.formats import REMOTE
from pipeline.imagery.grid import PIXELS, check_place
from pipeline.imagery.raster import files_read, grid_of, open_raster, unknown
from pipeline.imagery.scene import City, Scene
from pipeline.imagery.vector import (
    SUFFIXES,
    Bounds,
    Footprints,
    check_one_side,
    read_footprints,
    rough_shift,
    transform_bounds,
)
from pipeline.sources.folder.in_bucket import as_there, bring
from pipeline.sources.survey import Image, check_complete, listed, named, stamp, survey_all

IMAGES, LABELS = "images", "labels"
BELOW = "**/[!.]*"  # a folder and its sub-folders
TIFF = {".tif", ".tiff"}
UNREAD = {  # suffixes of what may hold a scene and is not taken
    ".vrt",
    ".ecw",
    ".sid",
    ".nc",
    ".hdf",
    ".h5",
    ".asc",
    ".bil",
    ".bmp",
    ".gif",
    ".webp",
    ".npy",
    ".jxl",
    ".mbtiles",
    ".zip",
    ".7z",
    ".tar",
    ".tgz",
    ".gz",
    ".bz2",
    ".rar",
}
SAID = {  # counts of a city's footprints that its user hears of
    "repaired_polygons": "invalid polygons repaired",
    "dropped_polygons": "geometries without an area left out",
    "closed_lines": "closed lines read as the outlines of buildings",
    "other_features": "features of OpenStreetMap left out, for they are no building",
}
# in the first bytes of an image's description, which is GeoJSON too: the image's outline
STAC = b'"stac_version"'
STAC_HEAD = 2**20  # bytes


def fetch(fetch: params.Fetch, city: str, folder: Path, work: Path) -> City:
    """Check a city of the user's folder and note where its files lie; nothing is
    copied into `folder`. Those of a bucket are brought to `work`, and lie there.

    Raises InputError: city, image or label missing; label of another size; CRS
    missing; truncated file; footprints that lie elsewhere. An image without data is
    left out and counted in the notes, as repairs are.
    """
    place = _city_folder(fetch.path, city)
    if not is_object(place):
        return _survey(fetch, city, Path(place))
    root = bring(place, work, (IMAGES, LABELS))
    with as_there(root, place):
        found = _survey(fetch, city, root)
    found.notes["warnings"] = [text.replace(str(root), place) for text in found.notes["warnings"]]
    return found


def _survey(fetch: params.Fetch, city: str, root: Path) -> City:
    override = fetch.overrides.get(city, params.CityOverride())
    labels, warnings = _label_source(root)
    drawn = labels.name != LABELS or bool(_vectors(labels, BELOW))
    scenes, passed = _scenes_in(root / IMAGES)
    files, over = [str(path) for path in scenes.values()], labels.name if drawn else None
    images, notes = survey_all(files, city, root / IMAGES, override.gsd, list(scenes), over=over)
    notes["warnings"] += warnings
    if passed:
        notes["warnings"].append(
            f"{root / IMAGES}: passed over {listed(passed)}; scenes are GeoTIFF, PNG, JPEG or JP2"
        )
    if drawn:
        raster_building, files = 1, dict.fromkeys(images, labels)
        if labels.name == LABELS:
            files = _each(labels, images, city, override.unlabelled == "ignore")
        digests = dict(
            zip(
                files,
                overlay(
                    list(files.values()), list(files), city, override.where, notes, fetch.groups
                ),
                strict=True,
            )
        )
        bare = _unlabelled(notes["scenes_without_buildings"], images, city, override, notes)
        paths = [None if image.name in bare else files.get(image) for image in images]
        stamps = [f"{stamp(*image.files)} {digests.get(image, '')}" for image in images]
    elif fetch.groups:
        raise InputError(
            f"fetch.groups: {labels} holds rasters, which have no columns; set it to null"
        )
    elif override.where:
        raise InputError(
            f"fetch.overrides.{city}.where: {labels} holds rasters, which have no "
            f"columns; take it out"
        )
    else:
        paths, raster_building = _rasters(labels, images, city, override, notes)
        stamps = [
            stamp(*image.files, *(files_read(path) if path else ()))
            for image, path in zip(images, paths, strict=True)
        ]
    return City(
        city=city,
        source="folder",
        scenes=[
            Scene(image.name, image.path, str(path) if path else None, stamp=stamped)
            for image, path, stamped in zip(images, paths, stamps, strict=True)
        ],
        gsd=override.gsd,
        bands=override.bands,
        range=override.range,
        where=override.where,
        groups=fetch.groups,
        raster_building=raster_building,
        notes=notes,
    )


def look_up(fetch: params.Fetch, city: str) -> None:
    """Raise InputError where there is no such city."""
    _city_folder(fetch.path, city)


def _unlabelled(
    bare: list[str], images: list[Image], city: str, override: params.CityOverride, notes: dict
) -> set[str]:
    """The scenes without a footprint that are left out; unless it is stated what they mean,
    they are background.
    """
    if override.unlabelled is None and 0 < len(bare) < len(images):
        notes["warnings"].append(
            f"{city}: {len(bare)} of {len(images)} scenes hold no footprint and are background: "
            f"{listed(bare)}; where "
            f"nobody drew their buildings, state fetch.overrides.{city}.unlabelled: ignore (else: "
            f"background)"
        )
    return set(bare) if override.unlabelled == "ignore" else set()


def overlay(
    paths: list[Path],
    images: list[Image],
    city: str,
    where: str | None,
    notes: dict,
    column: str | None = None,
) -> list[str]:
    """What the files of footprints, one an image or one for all, draw on each
    image: a digest of it.

    Counts in `notes` the footprints over the images, what was repaired, closed or left out, and the
    scenes without any. Raises InputError where a file's footprints lie over none of its images, or
    no feature of any is a building.
    """
    for image in images:
        with named(image.path):
            check_one_side(image.grid.crs, image.grid.bounds)
    counts, digests, built, covered = Counter(), [""] * len(images), set(), set()
    for (path, crs), members in _alike(paths, images).items():
        boxes = _boxes([images[i] for i in members])
        bounds = tuple(shapely.total_bounds(boxes).tolist())
        found = read_footprints(path, crs, bounds, where, column)
        tree = shapely.STRtree(found.polygons)
        scene, footprint = tree.query(boxes, predicate="intersects")
        for i, near in zip(
            members,
            np.split(footprint, np.searchsorted(scene, range(1, len(members)))),
            strict=True,
        ):
            digests[i] = found.some(near).digest
        built |= {images[members[i]].name for i in scene}
        covered |= {images[members[i]].name for i in tree.query(boxes, predicate="covered_by")[0]}
        counts.update(_counts(found, len(np.unique(footprint))))
        if (rough := rough_shift(found.source, crs, bounds)) and f"{city}: {rough}" not in notes[
            "warnings"
        ]:
            notes["warnings"].append(f"{city}: {rough}")
    for path in dict.fromkeys(paths):
        below = [image for image, own in zip(images, paths, strict=True) if own == path]
        if not built & {image.name for image in below}:
            _refuse_elsewhere(path, below, city, where)
    place = paths[0] if len(set(paths)) == 1 else paths[0].parent
    if not built:
        notes["warnings"].append(_why_empty(place, paths, city, where))
    if covered:
        notes["warnings"].append(
            f"{place}: a single polygon covers all of scene {listed(sorted(covered))}; is it the "
            f"outline of an area?"
        )
    notes |= counts | {
        "scenes_without_buildings": [image.name for image in images if image.name not in built]
    }
    notes["warnings"] += [
        f"{place}: {counts[key]} {words}" for key, words in SAID.items() if counts[key]
    ]
    return digests


def _counts(found: Footprints, footprints: int) -> dict[str, int]:
    return {
        "footprints": footprints,
        "repaired_polygons": found.repaired,
        "dropped_polygons": found.dropped,
        "closed_lines": found.outlines,
        "other_features": found.others,
    }


def _alike(paths: list[Path], images: list[Image]) -> dict[tuple, list[int]]:
    """Which images share a file of footprints and a CRS: they are read at once."""
    sharing: dict[tuple, list[int]] = {}
    for i, (path, image) in enumerate(zip(paths, images, strict=True)):
        sharing.setdefault((path, image.grid.crs), []).append(i)
    return sharing


def _boxes(images: list[Image]) -> np.ndarray:
    return np.array([shapely.box(*image.grid.bounds) for image in images], object)


def _refuse_elsewhere(path: Path, images: list[Image], city: str, where: str | None) -> None:
    """Raise InputError where a file none of whose footprints lies over an image
    of its holds some at all.
    """
    if len(everything := read_footprints(path, where=where)):
        raise InputError(
            f"{path}: none of its {len(everything)} footprints overlaps an image of {city}; "
            f"{_elsewhere(everything, images)}"
        )


def _why_empty(place: Path, paths: list[Path], city: str, where: str | None) -> str:
    """That there is no polygon anywhere. Raises InputError where there are
    other features than buildings.
    """
    found = [read_footprints(path, where=where) for path in dict.fromkeys(paths)]
    others, dropped = sum(each.others for each in found), sum(each.dropped for each in found)
    if others or dropped:
        raise InputError(
            f"{place}: not one of its features is a building ({others} are tagged otherwise, "
            f"{dropped} are "
            "points, open lines or empty); export the buildings as polygons"
        )
    if where:
        raise InputError(
            f"{place}: no feature meets fetch.overrides.{city}.where ({where}); correct it"
        )
    return f"{place}: holds no polygon, so {city} has no building anywhere"


def _elsewhere(footprints: Footprints, images: list[Image]) -> str:
    """How far the footprints are from the images, or the CRS in which they would fit."""
    declared, there = CRS.from_user_input(footprints.source), images[0].grid.crs
    left, bottom, right, top = footprints.bounds
    tries = {crs: (crs, footprints.bounds) for crs in ("EPSG:4326", "EPSG:3857", there.to_string())}
    tries[f"{declared.to_string()} with x and y exchanged"] = declared, (bottom, left, top, right)
    for name, (crs, bounds) in tries.items():
        box = _moved(bounds, crs, there)
        if box and shapely.intersects(shapely.box(*box), _boxes(images)).any():
            return f"they declare {declared.to_string()} but would fit as {name}; correct the file"
    box, image = (
        _moved(footprints.bounds, declared, "OGC:CRS84"),
        _moved(images[0].grid.bounds, there, "OGC:CRS84"),
    )
    if not box or not image:
        return f"as {declared.to_string()} they lie nowhere on the ground; correct their CRS"
    (x, y), (to_x, to_y) = (
        ((west + east) / 2, (south + north) / 2) for west, south, east, north in (box, image)
    )
    metres = Geod(ellps="WGS84").inv(x, y, to_x, to_y)[2]
    return (
        f"they lie {metres / 1000:.1f} km away; correct their CRS or bring the file of this place"
    )


def _moved(bounds: Bounds, source, target) -> Bounds | None:
    try:
        box = transform_bounds(bounds, source, target)
    except ProjError:
        return None
    return box if np.isfinite(box).all() else None


def _city_folder(path: str, city: str) -> str:
    """A city's folder, here or in a bucket. Raises InputError where there is none."""
    root = path.rstrip("/") if is_object(path) else str(Path(path).resolve())
    found = _folders(root)
    alike = [name for name in found if _composed(name) == _composed(city)]
    if alike:
        return f"{root}/{city if city in alike else alike[0]}"
    there = [name for name in found if IMAGES in _folders(f"{root}/{name}")]
    if not there:
        raise InputError(
            f"{root}: holds no folder CITY/{IMAGES}; set fetch.path to the folder of your cities"
        )
    raise InputError(f"{root}/{city}: no such city; did you mean {nearest(city, there)}?")


def _folders(place: str) -> list[str]:
    """The names of the folders in a folder, here or in a bucket."""
    if is_object(place):
        return bucket.folders(place)
    return sorted(path.name for path in Path(place).glob("*") if path.is_dir())


def _scenes_in(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Rasters of a folder and those below it by scene name, in natural order, and the files that
    are passed over.

    A picture beside a GeoTIFF of its name is a preview. Raises InputError where two
    scenes share a name.
    """
    found, passed = {}, []
    files = (
        path
        for path in folder.rglob("*")
        if not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    for path in sorted(
        files,
        key=lambda path: (path.suffix.lower() not in TIFF, _natural(path.relative_to(folder))),
    ):
        suffix, inside = path.suffix.lower(), path.relative_to(folder)
        name = _name(inside)
        if path.is_dir():  # one behind a link is not walked into
            passed += [str(inside)] if path.is_symlink() else []
        elif suffix in UNREAD or suffix in REMOTE and name in found:
            passed.append(str(inside))
        elif suffix in TIFF and name in found:
            raise InputError(f"{folder}: two scenes are called {name}; rename one")
        elif suffix in TIFF or suffix in REMOTE:
            found[name] = path
    return dict(
        sorted(found.items(), key=lambda item: _natural(item[1].relative_to(folder)))
    ), passed


def _name(inside: Path) -> str:
    """What a file within its folder is called."""
    return _composed("-".join(inside.with_suffix("").parts))


def _composed(name: str) -> str:
    """A name with each accent in its letter (NFC): macOS takes them apart
    (NFD), and both look the same.
    """
    return unicodedata.normalize("NFC", name)


def _natural(path: Path) -> list:
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", str(path))
    ]


def _label_source(root: Path) -> tuple[Path, list[str]]:
    """labels/, or the one file of footprints; and warnings."""
    vectors = _vectors(root)
    if (root / LABELS).is_dir():
        unused = listed([vector.name for vector in vectors])
        return root / LABELS, [f"{root}: {LABELS}/ is used, {unused} is not"] if vectors else []
    if len(vectors) > 1:
        raise InputError(
            f"{root}: holds {len(vectors)} files of footprints, "
            f"{listed([v.name for v in vectors])}; keep one"
        )
    if not vectors:
        named = [f for f in _folders(str(root)) if f != IMAGES and not f.startswith(".")]
        others = listed([f"{name}/" for name in named])
        called = f" ({others}, if that holds them, must be called {LABELS}/)" if others else ""
        raise InputError(
            f"{root}: has neither {LABELS}/ nor a file of footprints to learn from; bring one{called}"
            ", or map its images with `python -m pipeline predict` and a trained model"
        )
    return vectors[0], []


def _vectors(folder: Path, below: str = "[!.]*") -> list[Path]:
    """The files of footprints in a folder; a STAC item's outline of its image is none."""
    found = sorted(
        (path for path in folder.glob(below) if path.suffix.lower() in SUFFIXES), key=_natural
    )
    return [path for path in found if not ("json" in path.suffix.lower() and _is_stac(path))]


def _is_stac(path: Path) -> bool:
    with path.open("rb") as file:
        return STAC in file.read(STAC_HEAD)


def _each(folder: Path, images: list[Image], city: str, some: bool) -> dict[Image, Path]:
    """The file of footprints of every image, or of `some`."""
    if rasters := [path.name for path in _scenes_in(folder)[0].values()]:
        raise InputError(
            f"{folder}: holds both rasters, {rasters[0]}, and footprints; keep one kind"
        )
    by_name: dict[str, Path] = {}
    for path in _vectors(folder, BELOW):  # sub-folders as the images'
        name = _name(path.relative_to(folder))
        if (twice := by_name.setdefault(name, path)) != path:
            raise InputError(
                f"{folder}: both {twice.name} and {path.name} are labels of one scene; keep one"
            )
    missing = [image.name for image in images if image.name not in by_name]
    if missing and not (some and len(missing) < len(images)):
        first = next(iter(by_name.values()))
        raise InputError(
            f"{folder}: no footprints for {len(missing)} of {len(images)} images: "
            f"{listed(missing)}; name them as "
            f"their image, {missing[0]}{first.suffix} for one (here is {first.name}), or state "
            f"fetch.overrides.{city}."
            "unlabelled: ignore"
        )
    return {image: by_name[image.name] for image in images if image.name in by_name}


def _rasters(
    folder: Path, images: list[Image], city: str, override: params.CityOverride, notes: dict
) -> tuple[list[Path | None], int]:
    """The label file of every image, and which value means building (stated, or
    found). Notes the values found.

    An image without one has none where `unlabelled: ignore` is stated; else InputError.
    """
    by_name, _ = _scenes_in(folder)
    missing = [image.name for image in images if image.name not in by_name]
    if missing and override.unlabelled != "ignore":
        others = [by_name[name].name for name in by_name.keys() - {image.name for image in images}]
        here = f" (here is {min(others)})" if others else ""
        raise InputError(
            f"{folder}: no label for {len(missing)} of {len(images)} images: {listed(missing)}; "
            f"add "
            f"{missing[0]}.tif{here}, take the image away, or state "
            f"fetch.overrides.{city}.unlabelled: ignore"
        )
    if len(missing) == len(images):
        raise InputError(
            f"{folder}: no label for any image of {city}; labels bear the names of their images"
        )
    notes["scenes_without_label"] = missing
    pairs = [(by_name[image.name], image) for image in images if image.name in by_name]
    found = {
        str(path.relative_to(folder)): _label_values(path, image, notes) for path, image in pairs
    }
    values, building = set().union(*found.values()), override.building
    notes["label_values"] = sorted(values)
    if building is None:
        building = _building_value(found, folder, city, notes)
    if values <= {0}:
        notes["warnings"].append(f"{folder}: no label holds a building anywhere, only 0")
    return [by_name.get(image.name) for image in images], building


def _building_value(found: dict[str, set[int]], folder: Path, city: str, notes: dict) -> int:
    """What draws a building, by the values in each label file: 255 where no file
    holds a class, else 1.

    A file with both tells that 255 is ignore. Raises InputError where some hold the one, some the
    other, none both.
    """
    stated, classes = f"fetch.overrides.{city}.building", set(range(1, 255))
    only_255 = [name for name, values in found.items() if 255 in values and not values & classes]
    with_class = [name for name, values in found.items() if values & classes]
    if only_255 and not with_class:
        notes["warnings"].append(
            f"{folder}: 255 is read as building, for no label holds a 1; where it means ignore, "
            f"state {stated}: 1"
        )
        return 255
    if only_255 and not any(255 in found[name] for name in with_class):
        raise InputError(
            f"{folder}: {only_255[0]} holds 255 and no class, {with_class[0]} a class and no 255; "
            f"recode one if both "
            f"draw buildings, or state {stated}: 1 if 255 means ignore"
        )
    return 1


def _label_values(path: Path, image: Image, notes: dict) -> set[int]:
    """The values of a label raster, without what it says it does not know. Raises InputError
    where it is none.
    """
    with open_raster(path) as dataset, named(path):
        check_complete(dataset)
        if dataset.count != 1:
            raise InputError(f"has {dataset.count} bands; a label has one: {_one_band(dataset)}")
        if dataset.shape != image.grid.shape:
            size, expected = (
                f"{width}×{height}" for height, width in (dataset.shape, image.grid.shape)
            )
            raise InputError(f"is {size} pixels, its image {expected}; make them the same size")
        grid = grid_of(dataset)
        if not check_place(grid, image.grid) and PIXELS[0] not in (
            grid.transform,
            image.grid.transform,
        ):
            notes["warnings"].append(
                f"{path}: no CRS tells whether it lies on its image; taken pixel for pixel"
            )
        found = set()
        for _, window in dataset.block_windows(1):
            raw = dataset.read(1, window=window)
            hidden = unknown(dataset, raw, window, {0, 1})
            found |= set(np.unique(raw if hidden is None else raw[~hidden]).tolist())
        _check_values(
            found,
            lossy="JPEG" in {dataset.driver, str(dataset.compression and dataset.compression.name)},
        )
        return {int(value) for value in found}


def _one_band(dataset: rasterio.DatasetReader) -> str:
    """What makes one band of a label raster's several."""
    for _, window in dataset.block_windows(1):
        bands = dataset.read(dataset.indexes[:3], window=window)
        if (bands != bands[:1]).any():
            return "recode its colours as 0, classes 1..k, 255 (ignore)"
    return "keep the first, rio stack LABELS --bidx 1 NEW"


def _check_values(found: set[float], lossy: bool) -> None:
    """Raise InputError where a label raster holds what is no label."""
    if wrong := found - set(range(256)):
        raise InputError(
            f"holds the value {min(wrong)}; a label is 0, a class 1..k, or 255 (ignore)"
        )
    between = found - {0, 1, 255}
    if between and (lossy or max(between) >= 128):  # nobody draws so many classes
        some = listed([f"{value:g}" for value in sorted(between)])
        raise InputError(
            f"holds {some} between 0 and 255, as a mask kept as JPEG or resized smoothly does; "
            f"make it "
            "255 where it is 128 or more, 0 elsewhere, and keep it without loss, as PNG or GeoTIFF"
        )
