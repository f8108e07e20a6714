"""One scene to its map on disk: a function of the model, the scene and the settings.

A finished map is not made again; one that a kill cut short is. Files get their names when all of them are whole.
"""

import hashlib
import json
import os
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

import rasterio

from pipeline.errors import InputError
from pipeline.geo.grid import Grid
from pipeline.geo.mapping import LAYERS, STEPS, Mapper
from pipeline.geo.raster import grid_of
from pipeline.geo.read_ahead import ReadAhead
from pipeline.geo.writer import WriteRows, cloud_optimised, footprints
from pipeline.prediction.flow import fill, label_free_iou
from pipeline.prediction.inputs import Task, class_names, load, open_scene, threshold
from pipeline.storage import fingerprint, read_json, scratch

FORMAT = 2  # raise it when the same inputs give other outputs
UNLIKE = 0.75  # share of the validation IoU under which an expected IoU is worth a warning
CACHE = 128  # MB of decoded blocks GDAL keeps

model_of = lru_cache(maxsize=1)(load)  # a process maps many scenes with one model


def predict_scene(model: str, task: Task) -> dict:
    """Map one scene; returns OUT/NAME.json's content, `fresh` where it was not there already.

    Raises InputError: unreadable scene, too few bands, no CRS and no `gsd`, a full disk. Nothing is left then.
    """
    out, record = Path(task.out), Path(task.out) / f"{task.name}.json"
    segmenter = model_of(model)
    key = fingerprint(FORMAT, _model_key(model), _scene_key(task.scene), _choices(task))
    before = _read_record(record)
    if before and before["key"] == key and all((out / name).exists() for name in before["files"]):
        return {**before, "fresh": False}
    with scratch(record) as partial:
        found = _map_scene(segmenter, task, partial)
        files = sorted(path.name for path in partial.iterdir())
        found = {"scene": task.scene, "key": key, "files": files, **found}
        _write_record(partial / record.name, found)
        record.unlink(missing_ok=True)  # from here to the last rename the scene counts as unfinished
        for name in files:
            os.replace(partial / name, out / name)
        for name in set(before["files"] if before else []) - set(files):
            (out / name).unlink(missing_ok=True)
        os.replace(partial / record.name, record)
    return {**found, "fresh": True}


def _choices(task: Task) -> dict:
    settings = task.settings.model_dump(exclude={"batch_size"})  # which changes nothing but speed
    return {"settings": settings, "gsd": task.gsd, "bands": task.bands, "range": task.range}


@lru_cache(maxsize=1)
def _model_key(model: str) -> str:
    card = {k: v for k, v in model_of(model).card.items() if k not in {"metrics", "history", "training"}}
    weights = Path(model) / "weights.safetensors" if Path(model).is_dir() else Path(model)
    with open(weights, "rb") as file:
        return fingerprint(hashlib.file_digest(file, "sha256").hexdigest(), card)


def _scene_key(scene: str) -> list:
    """What tells a scene from an earlier state of it: a file's size and time; a URL is taken at its word."""
    if "://" in scene:
        return [scene]
    try:
        about = os.stat(scene)
    except OSError as error:
        raise InputError(f"{scene}: {error.strerror}") from None
    return [scene, about.st_size, about.st_mtime_ns]


def _read_record(path: Path) -> dict | None:
    """What an earlier run noted; None where it is absent or damaged, or names files that are not its own."""
    try:
        found = read_json(path)
        own = all(name.startswith(f"{path.stem}.") and "/" not in name for name in found["files"])
        return found if own and "key" in found else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_record(path: Path, found: dict) -> None:
    try:
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path.name}: cannot be written ({error.strerror}); free some disk space") from None


def _open_layers(stack: ExitStack, task: Task, folder: Path, scene: Grid, card: dict) -> dict[str, WriteRows]:
    """The rasters asked for, ready for rows."""
    bands = {"mask": ["building"]}
    if task.settings.probability:
        bands["probability"] = class_names(card)
    if task.settings.uncertainty:
        bands["uncertainty"] = ["uncertainty"]
    layers = {}
    for layer, names in bands.items():
        suffix, step = (".tif", 1) if layer == "mask" else (f".{layer}.tif", LAYERS[layer] / STEPS)
        layers[layer] = stack.enter_context(cloud_optimised(folder / f"{task.name}{suffix}", scene, names, step))
    return layers


def _map_scene(segmenter, task: Task, folder: Path) -> dict:
    """Read, infer, write; returns what was found."""
    settings, card = task.settings, segmenter.card
    with rasterio.Env(GDAL_CACHEMAX=CACHE), ExitStack() as stack:
        image, twin = (open_scene(stack, task, card) for _ in range(2))  # a handle a thread
        scene = grid_of(image.dataset)
        layers = _open_layers(stack, task, folder, scene, card)
        polygons = None
        if settings.polygons != "none":
            polygons = stack.enter_context(footprints(folder / f"{task.name}.{settings.polygons}", scene.crs))
        mapper = Mapper(
            image.grid, scene, image.native, settings, threshold(settings, card),
            layers, polygons, twin.source_validity, task.name,
        )  # fmt: skip
        totals = fill(segmenter, stack.enter_context(ReadAhead(image)), mapper, settings, task.name)
        expected, usual = label_free_iou(totals, card), card.get("metrics", {}).get("validation_iou")
        return {
            "gsd": [round(metres, 6) for metres in image.native],
            "range": image.range,
            "pixels": scene.height * scene.width,
            "area_km2": round(totals.area / 1e6, 6),
            "buildings": totals.buildings,
            "built_area_m2": round(totals.built_area, 1),
            "expected_iou": expected and round(expected, 3),
            "validation_iou": usual and round(usual, 3),
            "unlike_training": expected is not None and usual is not None and expected < UNLIKE * usual,
        }
