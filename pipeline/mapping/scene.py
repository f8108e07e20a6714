"""One scene to its map on disk: a function of the model, the scene and the settings.

A finished map is not made again; one that a kill cut short is.
"""

import hashlib
import os
import re
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from pipeline import bucket
from pipeline.bucket import is_object
from pipeline.errors import InputError
from pipeline.imagery.formats import unreadable
from pipeline.imagery.grid import Grid
from pipeline.imagery.raster import files_read, grid_of
from pipeline.imagery.style import mask_colours
from pipeline.imagery.writer import (
    FIELDS,
    WriteFootprints,
    WriteRows,
    cloud_optimised,
    footprint_rows,
    footprints,
)
from pipeline.mapping import in_bucket
from pipeline.mapping.catalogue import map_item
from pipeline.mapping.edits import content
from pipeline.mapping.flow import Glimpses, fill, label_free_iou
from pipeline.mapping.inputs import Task, class_names, decision, load, open_scene
from pipeline.mapping.known import MISSING, STATUS, Known, conflate
from pipeline.mapping.mapper import LAYERS, STEPS, Mapper
from pipeline.mapping.proven import prove
from pipeline.mapping.publishing import finished, forget, publish, replaceable
from pipeline.mapping.read_ahead import ReadAhead
from pipeline.metrics import PredictMetrics, described, parse
from pipeline.networks.card import Card
from pipeline.networks.glance import Glance
from pipeline.networks.models import GLANCE, read_glance
from pipeline.networks.precision import device
from pipeline.storage import WORK, fingerprint, scratch, write_json

FORMAT = 7  # raise it when the same inputs give other outputs
UNLIKE = 0.75  # share of what is usual under which an expected IoU is worth a warning
CACHE = 128  # MB of decoded blocks GDAL keeps


def predict_scene(model: str, task: Task) -> PredictMetrics:
    """Map one scene; returns OUT/NAME.json's content, `fresh` where it was not there already.

    Raises InputError: unreadable scene, too few bands, no CRS and no `gsd`, a file of the map's
    name that is not predict's or was edited since, a full disk. Nothing is left then.
    """
    if is_object(task.out):
        return _predict_into_bucket(model, task)
    record = Path(task.out) / f"{task.name}.json"
    _, model_key = model_of(model)
    key = fingerprint(FORMAT, model_key, Path(model).name, _scene_key(task.scene), _choices(task))
    names = sorted(file_names(task).values())
    if before := finished(record, key, names):
        return parse(PredictMetrics, {**before, "fresh": False}, record)
    replaceable(record, names)  # refused before the work
    with scratch(record) as partial:
        found = _made(model, task, partial, key)
        made = described(PredictMetrics, found)
        # an editor may have come meanwhile
        publish(partial, record, found, replaceable(record, names))
    forget(record)
    return made


def _predict_into_bucket(model: str, task: Task) -> PredictMetrics:
    """The same, published into an object store; files are made in this machine's work folder."""
    _, model_key = model_of(model)
    key = fingerprint(FORMAT, model_key, Path(model).name, _scene_key(task.scene), _choices(task))
    names = sorted(file_names(task).values())
    if before := in_bucket.finished(task.out, task.name, key, names):
        return parse(
            PredictMetrics, {**before, "fresh": False}, bucket.join(task.out, f"{task.name}.json")
        )
    in_bucket.check_replaceable(task.out, task.name, names)  # refused before the work
    with scratch(WORK / "maps" / task.name) as partial:
        found = _made(model, task, partial, key)
        made = described(PredictMetrics, found)
        in_bucket.publish(partial, task.out, task.name, found)
    return made


def _made(model: str, task: Task, partial: Path, key: str) -> dict:
    """Map a scene into the folder `partial`; returns the record to be, with the
    contents of its files.
    """
    segmenter, version = model_of(model)
    glance = read_glance(model, device()).folded() if task.settings.skip_empty else None
    found = _map_scene(
        segmenter, glance, task, partial, {"model": Path(model).stem, "model_version": version}
    )
    files = {name: content(partial / name) for name in sorted(file_names(task).values())}
    return {"scene": task.scene, "key": key, "files": files, **found}


def local_model(model: str) -> str:
    """A model's path on this machine: one in an object store is brought to the work folder, once
    while it is the same.

    Raises InputError where there is none.
    """
    if not is_object(model):
        return model
    files = (
        [""] if model.lower().endswith(".onnx") else ["weights.safetensors", "model.json", GLANCE]
    )
    urls = {name: bucket.join(model, name) if name else model for name in files}
    held = {name: bucket.about(url) for name, url in urls.items()}
    # few have one
    if absent := [urls[name] for name, about in held.items() if about is None and name != GLANCE]:
        raise InputError(f"{absent[0]}: nothing is there; correct the address of the model")
    etags = {name: about["etag"] for name, about in held.items() if about}
    place = WORK / "models" / fingerprint(model, list(etags.values())) / Path(model).name
    paths = {name: place / name for name in etags}
    for name, path in paths.items():
        if not path.exists():
            bucket.download(urls[name], path)
    return str(place.absolute())


def file_names(task: Task) -> dict[str, str]:
    """The files of a map beside its record, by layer."""
    asked, names = task.settings, {"mask": f"{task.name}.tif"}
    for layer in ("probability", "uncertainty", "certified"):
        if getattr(asked, layer):
            names[layer] = f"{task.name}.{layer}.tif"
    if asked.polygons != "none":
        names["polygons"] = f"{task.name}.{asked.polygons}"
        if task.known:
            names["missing"] = f"{task.name}.missing.{asked.polygons}"
    if asked.stac:
        names["item"] = f"{task.name}.item.json"
    return names


def _choices(task: Task) -> dict:
    nothing = {"batch_size"} if task.settings.certified else {"batch_size", "certified", "radius"}
    settings = task.settings.model_dump(exclude=nothing)  # of what changes nothing but speed
    if not settings["stac"]:
        del settings["stac"]  # maps of before there were items stay as they are
    known = task.known and (task.known, _state(task.known))
    return {
        "settings": settings,
        "gsd": task.gsd,
        "bands": task.bands,
        "range": task.range,
        "known": known,
    }


def model_of(model: str) -> tuple:
    """A segmenter and its fingerprint, loaded once a process as long as its files do not change."""
    parts = (
        [Path(model) / name for name in ("weights.safetensors", "model.json")]
        if Path(model).is_dir()
        else [model]
    )
    return _model(model, tuple(_state(part) for part in parts))


@lru_cache(maxsize=1)
def _model(model: str, state: tuple) -> tuple:
    segmenter = load(model)
    card = segmenter.card.model_dump(mode="json", exclude={"metrics", "history", "training"})
    weights = Path(model) / "weights.safetensors" if Path(model).is_dir() else Path(model)
    with open(weights, "rb") as file:
        return segmenter, fingerprint(hashlib.file_digest(file, "sha256").hexdigest(), card)


def _scene_key(scene: str) -> list:
    """What tells a scene from an earlier state of it: the sizes and times of its file and of what is
    read along with it, an object's etag.

    Another URL is taken at its word.
    """
    if is_object(scene):
        return [scene, *([about["etag"]] if (about := bucket.about(scene)) else [])]
    if "://" in scene:
        return [scene]
    try:
        os.stat(scene)
        scene.encode()
    except OSError as error:
        raise unreadable(scene, error) from None
    except UnicodeEncodeError:
        raise InputError(
            f"{scene}: its name is no UTF-8 text; rename it, or set a UTF-8 locale"
        ) from None
    return [scene, *map(_state, files_read(scene))]


def _state(path: str | Path) -> tuple[int, int] | None:
    try:
        about = os.stat(path)
    except OSError:  # absent, or a mosaic's source behind a URL
        return None
    return about.st_size, about.st_mtime_ns


def _open_layers(
    stack: ExitStack, task: Task, folder: Path, scene: Grid, card: Card
) -> dict[str, WriteRows]:
    """The rasters asked for, ready for rows."""
    bands = {"mask": ["building"], "probability": class_names(card), "uncertainty": ["uncertainty"]}
    layers = {}
    for layer, name in file_names(task).items():
        if layer in LAYERS:
            mask = layer == "mask"
            step, colours = (
                (1, mask_colours(card.classes)) if mask else (LAYERS[layer] / STEPS, None)
            )
            layers[layer] = stack.enter_context(
                cloud_optimised(folder / name, scene, bands[layer], step, colours)
            )
    return layers


def _map_scene(segmenter, glance: Glance | None, task: Task, folder: Path, model: dict) -> dict:
    """Read, infer, write; returns what was found. `glance`: skip what it sees nothing in."""
    settings, card, files = task.settings, segmenter.card, file_names(task)
    outlines = folder / "outlines.parquet" if task.known else folder / files.get("polygons", "")
    with rasterio.Env(GDAL_CACHEMAX=CACHE), ExitStack() as stack:
        image, twin = open_scene(stack, task, card)
        scene, origin = _drawn_down(grid_of(image.dataset)), _origin(task.scene, image.dataset)
        known = Known(Path(task.known), scene, image.native) if task.known else None
        layers = _open_layers(stack, task, folder, scene, card)
        polygons = None
        if settings.polygons != "none":
            rows = stack.enter_context(
                (footprint_rows if known else footprints)(outlines, scene.crs)
            )
            polygons = _described(rows, class_names(card), model | origin)
        mapper = Mapper(
            image.grid, scene, image.native, settings, decision(settings, card).of_probabilities,
            layers, polygons, twin.source_validity, task.name, segmenter.contacts,
        )  # fmt: skip
        pixels = stack.enter_context(ReadAhead(image))
        glimpses = Glimpses(glance) if glance else None
        totals = fill(segmenter, pixels, mapper, settings, task.name, pixels.empty, glimpses)
        proven = None
        if settings.certified:
            path = folder / file_names(task)["certified"]
            proven = prove(segmenter, image, scene, settings, path, twin.source_validity)
        expected, usual = (
            label_free_iou(totals, card.confidence),
            card.metrics.get("validation_iou"),
        )
        found = {
            "gsd": [round(metres, 6) for metres in image.native],
            "bands": image.bands,
            "range": image.range,
            "pixels": scene.height * scene.width,
            "area_km2": round(totals.area / 1e6, 6),
            # without outlines they were not counted
            "buildings": totals.buildings if polygons else None,
            "built_area_m2": round(totals.built_area, 1) if polygons else None,
            "certified": proven,
            "skipped": glimpses and round(glimpses.share, 4),
            "skipped_below": glance and round(float(glance.threshold), 4),
            "expected_iou": expected and round(expected, 3),
            "validation_iou": usual and round(usual, 3),
            "unlike_training": unlike(expected, usual, card.least_expected_iou),
        }
    if settings.stac:
        item = map_item(task.name, scene, files, {"scene": task.scene, **found}, model | origin)
        write_json(folder / files["item"], item)
    return found | {
        "known": _compared(known, outlines, folder, files, settings.min_area) if known else None
    }


def unlike(expected: float | None, validation: float | None, least: float | None) -> bool:
    """Whether a scene's expected IoU is far below what is usual in the training cities.

    That is the `least` expected of one of their held-out scenes, or their IoU on `validation` where
    it is less: a city harder than the others is below the latter in its own scenes too.
    """
    known = [iou for iou in (validation, least) if iou is not None]
    return expected is not None and bool(known) and expected < UNLIKE * min(known)


def _compared(
    known: Known, outlines: Path, folder: Path, files: dict[str, str], least: float
) -> dict:
    """Write the outlines with their status, and what is missing; returns what
    the record says of it.
    """
    with (
        footprints(folder / files["polygons"], known.scene.crs, FIELDS | STATUS) as write,
        footprints(folder / files["missing"], known.scene.crs, MISSING, "missing") as write_missing,
    ):
        found = conflate(outlines, known, folder / files["mask"], least, write, write_missing)
    outlines.unlink()
    return found


def _drawn_down(scene: Grid) -> Grid:
    """The grid of an image without any place as QGIS shows it, its first row at 0 and the
    others below, y < 0.
    """
    if scene.crs is not None or scene.transform != Affine.identity():
        return scene
    return replace(scene, transform=Affine.scale(1, -1))


def _described(
    write: WriteFootprints, classes: list[str], constant: dict[str, str | None]
) -> WriteFootprints:
    """`write` with the columns that every building of a map shares, and the name of its class."""
    names = np.array([None, *classes], object)

    def described(columns: dict[str, np.ndarray], polygons: np.ndarray) -> None:
        shared = {name: np.full(len(polygons), value, object) for name, value in constant.items()}
        write(columns | {"class": names[columns["label"]]} | shared, polygons)

    return described


def _origin(scene: str, dataset) -> dict[str, str | None]:
    """What a scene says of itself: its name, and the day it was taken where its tags hold one."""
    said = dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME") or dataset.tags().get(
        "TIFFTAG_DATETIME", ""
    )
    day = re.match(r"((?:19|20)\d\d)[-:](\d\d)[-:](\d\d)", said)
    return {
        "source": scene.rsplit("/", 1)[-1].partition("?")[0],
        "captured": day and "-".join(day.groups()),
    }
