"""Stage predict: from any scene to a building map, on one machine or many.

OUT/NAME.tif                the mask on the scene's own grid, a COG: 0, classes 1..k, 255 no data
OUT/NAME.probability.tif    calibrated building probability, 0..254 for 0..1 (on request)
OUT/NAME.uncertainty.tif    its deviation over eight flips and turns, 0..254 for 0..1/2 (on request)
OUT/NAME.gpkg               polygons: id, label, area_m2, confidence (.gpkg, .fgb, .parquet, .geojson)
OUT/NAME.json               written last: what was found, and from which model, scene and settings

A scene is a pure function of the model, the scene and the settings: a finished one is skipped, a killed one
is done again, and shards of a list may run anywhere as long as they share OUT.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine

from pipeline.console import console, progress_bar, table
from pipeline.errors import InputError
from pipeline.geo.grid import Grid
from pipeline.geo.mapping import LAYERS, STEPS, Mapper, Totals
from pipeline.geo.raster import Raster, grid_of, open_raster, robust_range
from pipeline.geo.read_ahead import ReadAhead
from pipeline.geo.scene import IGNORE
from pipeline.geo.scene_list import list_scenes
from pipeline.geo.writer import cloud_optimised, footprints
from pipeline.learning.disagreement import Disagreement
from pipeline.learning.export import load_onnx
from pipeline.learning.inference import infer
from pipeline.learning.models import load_model
from pipeline.learning.precision import device
from pipeline.params import Predict
from pipeline.storage import fingerprint, scratch

FORMAT = 1  # raise it when the same inputs give other outputs
UNLIKE = 0.75  # share of the validation IoU under which an expected IoU is worth a warning
CACHE = 128  # MB of decoded blocks GDAL keeps
BAND, LEAST_WINDOW = 24_000_000, 128  # pixels of a band of windows; rows it never goes below


@dataclass(frozen=True)
class Task:
    """One scene to map; `gsd`, `bands` and `range` are what its file does not say itself."""

    scene: str
    name: str
    out: str
    settings: Predict = Predict()
    gsd: float | None = None  # metres on the ground, where the scene has no CRS
    bands: tuple[int, ...] | None = None  # 1-based; None = the model's
    range: tuple[float, float] | None = None  # values mapped to 0 and 255; None = estimated where they are not uint8


def run(
    model: Path,
    scenes: list[str],
    out: Path,
    *,
    settings: Predict | None = None,
    shard: str | None = None,
    gsd: float | None = None,
    bands: list[int] | None = None,
    value_range: tuple[float, float] | None = None,
    ray: str | None = None,
) -> None:
    """Map scenes (files, folders, globs, lists, URLs) with a model folder or an ONNX file, into `out`.

    shard: "i/n", every n-th scene from the i-th (from 1); ray: "local" or the address of a Ray cluster.
    Raises InputError at the end where a scene failed; the others are done.
    """
    settings, out, begun = settings or Predict(), Path(out), time.perf_counter()
    options = {"gsd": gsd, "bands": bands and tuple(bands), "range": value_range and tuple(value_range)}
    named = list_scenes(scenes)
    _refuse_overwriting(named, out)
    tasks = [Task(scene, name, str(out), settings, **options) for name, scene in named.items()]
    tasks = _shard(tasks, shard)
    segmenter = _load(str(model))  # fails before any scene is read
    out.mkdir(parents=True, exist_ok=True)
    done, failed = [], []
    results = _on_ray(str(model), tasks, ray) if ray else ((task, *_attempt(str(model), task)) for task in tasks)
    for task, record, error in results:
        if error:
            failed.append(task)
            console.print(f"[red]failed[/red] {task.name}: {error}")
        else:
            done.append(record)
    _summarise(segmenter.card, done, failed, time.perf_counter() - begun)
    if failed:
        names = ", ".join(task.name for task in failed[:5]) + (" …" if len(failed) > 5 else "")
        raise InputError(
            f"{len(failed)} of {len(tasks)} scenes failed ({names}); correct them and run the command again"
        )


def _shard(tasks: list[Task], shard: str | None) -> list[Task]:
    if shard is None:
        return tasks
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise InputError(f"--shard {shard}: write i/n with 1 ≤ i ≤ n, such as 2/8")
    return tasks[int(index) - 1 :: int(count)]


def _refuse_overwriting(named: dict[str, str], out: Path) -> None:
    for scene in named.values():
        if "://" not in scene and Path(scene).resolve().parent == out.resolve():
            raise InputError(f"{out}: holds the scene {Path(scene).name}; choose another --out, results bear its name")


def load(model: str | Path, on=None):
    """A model folder, or an ONNX file that `export` wrote; `on` None = a GPU where there is one."""
    return load_onnx(model) if Path(model).suffix == ".onnx" else load_model(model, on or device())


_load = lru_cache(maxsize=1)(load)


def _attempt(model: str, task: Task) -> tuple[dict | None, str | None]:
    """A finished scene's record, or why there is none: one scene's failure is not the others'."""
    try:
        return predict_scene(model, task), None
    except InputError as error:
        return None, str(error)


def _on_ray(model: str, tasks: list[Task], address: str) -> Iterator[tuple[Task, dict | None, str | None]]:
    """The same function on an engine that exists already: `address` of a cluster, or "local"."""
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray; install the extra: pip install 'building-pipeline[ray]'") from None
    ray.init(address=None if address == "local" else address, log_to_driver=False)
    try:
        attempt = ray.remote(num_gpus=1 if torch.cuda.is_available() else 0)(_attempt)
        here = os.getcwd()
        pending = {attempt.remote(_absolute(model, here), _at(task, here)): task for task in tasks}
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            yield pending.pop(ready), *ray.get(ready)
    finally:
        ray.shutdown()


def _absolute(path: str, here: str) -> str:
    return path if "://" in path else os.path.join(here, path)


def _at(task: Task, here: str) -> Task:
    return Task(**{**vars(task), "scene": _absolute(task.scene, here), "out": _absolute(task.out, here)})


# ---------------------------------------- one scene


def predict_scene(model: str, task: Task) -> dict:
    """Map one scene; returns OUT/NAME.json's content, `fresh` where it was not there already.

    Raises InputError: unreadable scene, too few bands, no CRS and no `gsd`, a full disk. Nothing is left
    then.
    """
    out, record = Path(task.out), Path(task.out) / f"{task.name}.json"
    segmenter = _load(model)
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
    card = {k: v for k, v in _load(model).card.items() if k not in {"metrics", "history", "training"}}
    weights = Path(model) / "weights.safetensors" if Path(model).is_dir() else Path(model)
    with open(weights, "rb") as file:
        return fingerprint(hashlib.file_digest(file, "sha256").hexdigest(), card)


def _scene_key(scene: str) -> list:
    if "://" in scene:
        return [scene]
    try:
        about = os.stat(scene)
    except OSError as error:
        raise InputError(f"{scene}: {error.strerror}") from None
    return [scene, about.st_size, about.st_mtime_ns]


def _read_record(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_record(path: Path, found: dict) -> None:
    try:
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path.name}: cannot be written ({error.strerror}); free some disk space") from None


def _map_scene(segmenter, task: Task, folder: Path) -> dict:
    """Read, infer, write; returns what was found."""
    settings, card = task.settings, segmenter.card
    remote = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if "://" in task.scene else {}
    with rasterio.Env(GDAL_CACHEMAX=CACHE, **remote), ExitStack() as stack:
        image, twin = (_open(stack, task, card) for _ in range(2))  # a handle a thread
        scene = grid_of(image.dataset)
        bands = {"mask": ["building"], "probability": _class_names(card), "uncertainty": ["uncertainty"]}
        wanted = {"mask": True, "probability": settings.probability, "uncertainty": settings.uncertainty}
        layers = {
            layer: stack.enter_context(
                cloud_optimised(
                    folder / (f"{task.name}.tif" if layer == "mask" else f"{task.name}.{layer}.tif"),
                    scene, bands[layer], 1 if layer == "mask" else LAYERS[layer] / STEPS,
                )
            )
            for layer in LAYERS if wanted[layer]
        }  # fmt: skip
        polygons = None
        if settings.polygons != "none":
            polygons = stack.enter_context(footprints(folder / f"{task.name}.{settings.polygons}", scene.crs))
        mapper = Mapper(
            image.grid, scene, image.native, settings, _threshold(settings, card),
            layers, polygons, twin.source_validity, task.name,
        )  # fmt: skip
        totals = _fill(segmenter, stack.enter_context(ReadAhead(image)), mapper, settings, task.name)
        expected = expected_iou(totals.histogram, card.get("confidence"))
        return {
            "gsd": [round(metres, 6) for metres in image.native],
            "range": image.range,
            "pixels": scene.height * scene.width,
            "area_km2": round(totals.area / 1e6, 6),
            "buildings": totals.buildings,
            "built_area_m2": round(totals.built_area, 1),
            "expected_iou": expected and round(expected, 3),
        }


def _open(stack: ExitStack, task: Task, card: dict) -> Raster:
    """The scene on the model's grid. Raises InputError where it cannot be read or does not fit the model."""
    dataset = stack.enter_context(open_raster(task.scene))
    bands = list(task.bands or card["bands"])
    if len(bands) != card["channels"]:
        raise InputError(f"--bands names {len(bands)} bands; the model reads {card['channels']}")
    if max(bands) > dataset.count:
        asked = ", ".join(map(str, bands))
        raise InputError(
            f"{task.scene}: has {dataset.count} band{'s' * (dataset.count > 1)}, but the model reads bands "
            f"{asked}; say which of the scene's bands to read with --bands"
        )
    if dataset.crs is None and task.gsd is None:
        raise InputError(f"{task.scene}: has no CRS, so its ground sample distance is unknown; state it with --gsd")
    scale = task.range
    if scale is None and dataset.dtypes[bands[0] - 1] != "uint8":
        scale = robust_range([Raster(dataset, bands, card["gsd"], task.gsd, (0, 1)).sample()])
        if scale is None:
            raise InputError(f"{task.scene}: holds no data to estimate a range of values from; state it with --range")
    return Raster(dataset, bands, card["gsd"], task.gsd, scale)


def _threshold(settings: Predict, card: dict) -> float:
    return settings.threshold or card.get("threshold", 0.5)


def _class_names(card: dict) -> list[str]:
    return ["building"] if card["classes"] == 1 else [f"class {k}" for k in range(1, card["classes"] + 1)]


def _fill(segmenter, image, mapper: Mapper, settings: Predict, name: str = "") -> Totals:
    """Run `image` through the segmenter and push its bands into `mapper`, which works in a thread."""
    temperature, augment = segmenter.card.get("temperature", 1.0), settings.augment
    if settings.uncertainty:
        segmenter, temperature, augment = Disagreement(segmenter, temperature), 1.0, False
    bands = infer(
        segmenter, image, window=_window(settings.window, image.shape[1]), overlap=settings.overlap,
        batch_size=settings.batch_size, augment=augment, temperature=temperature,
    )  # fmt: skip
    with progress_bar() as bar, ThreadPoolExecutor(1, thread_name_prefix="map") as worker:
        rows, mapping = bar.add_task(f"mapping {name}", total=image.shape[0]), None
        for top, probabilities in bands:
            bar.update(rows, completed=top + len(probabilities))
            buildings = np.ascontiguousarray(probabilities[..., 1:])
            del probabilities  # a band of a wide scene is hundreds of megabytes: hold no more of them than needed
            if settings.uncertainty:
                buildings = Disagreement.split(buildings)
            if mapping:
                mapping.result()
            mapping = worker.submit(mapper.add, buildings)
        mapping.result()
    return mapper.finish()


def _window(window: int, width: int) -> int:
    """The window of a scene so wide that a band of whole ones would not fit in BAND pixels is lower."""
    return min(window, max(LEAST_WINDOW, BAND // width // 32 * 32))


def expected_iou(histogram: np.ndarray, thresholds: dict | None = None) -> float | None:
    """The IoU to expect of a scene without labels, from the histogram (255,) of its building probability.

    E[I] / E[U] if the probabilities are true; with the card's thresholds of `building` and `background`
    confidence, fitted on validation, average thresholded confidence (Garg et al., ICLR 2022). None where
    nothing is built.
    """
    p = np.arange(len(histogram)) / STEPS
    found = p > 0.5
    right, missed = p * found, p * ~found
    if thresholds:
        right = found & (p >= thresholds["building"])
        missed = ~found & (1 - p < thresholds["background"])
    union = histogram @ (found | missed if thresholds else found + missed)
    return float(histogram @ right / union) if histogram[found].sum() else None


def _summarise(card: dict, done: list[dict], failed: list[Task], seconds: float) -> None:
    fresh = [r for r in done if r["fresh"]]
    rate = sum(r["pixels"] for r in fresh) / 1e6 / seconds if fresh else None
    table(
        "Mapped", ["scenes", "already there", "failed", "km²", "buildings", "built m²", "Mpx/s"],
        [[len(done), len(done) - len(fresh), len(failed), sum(r["area_km2"] for r in done),
          sum(r["buildings"] for r in done), round(sum(r["built_area_m2"] for r in done)), rate]],
    )  # fmt: skip
    usual = card.get("metrics", {}).get("validation_iou")
    for record in done:
        expected = record["expected_iou"]
        if usual and expected is not None and expected < UNLIKE * usual:
            console.print(
                f"[yellow]caution[/yellow] {record['scene']}: looks unlike the training cities: expected IoU "
                f"{expected:.2f} (no labels were used), {usual:.2f} on validation; look before you trust it"
            )


# ---------------------------------------- from Python


@dataclass(frozen=True)
class Map:
    """A map in memory: mask (H, W) uint8, probability (H, W, k) float32, and polygons with their columns."""

    mask: np.ndarray
    probability: np.ndarray
    transform: Affine
    crs: object | None
    columns: dict[str, np.ndarray]
    geometry: np.ndarray

    @property
    def polygons(self):
        """A GeoDataFrame: id, label, area_m2, confidence; in pixel coordinates where there is no CRS."""
        import geopandas

        return geopandas.GeoDataFrame(self.columns, geometry=self.geometry, crs=self.crs)


@dataclass(frozen=True)
class Predictor:
    """A model, ready to map: what `pipeline.load_model` answers."""

    segmenter: object  # a Segmenter or an OnnxSegmenter

    @property
    def card(self) -> dict:
        return self.segmenter.card

    def predict(
        self,
        image: np.ndarray | str | Path,
        *,
        gsd: float | None = None,
        bands: list[int] | None = None,
        value_range: tuple[float, float] | None = None,
        **settings,
    ) -> Map:
        """The map of an array (H, W, C) uint8 or of a raster's path or URL; `settings` as params.Predict.

        An array has the model's bands and ground sample distance; a raster is read as `run` reads it, and as
        its map is held in memory, larger scenes are for `run`. Raises InputError on an image that does not
        fit the model.
        """
        chosen = _settings(settings)
        with ExitStack() as stack:
            if isinstance(image, np.ndarray):
                scene = model = _check_array(image, self.card)
                native, validity = (self.card["gsd"], self.card["gsd"]), lambda window: None
            else:
                task = Task(str(image), "", "", chosen, gsd, bands and tuple(bands), value_range)
                raster, twin = (_open(stack, task, self.card) for _ in range(2))
                scene, model, native = grid_of(raster.dataset), raster.grid, raster.native
                validity, image = twin.source_validity, stack.enter_context(ReadAhead(raster))
            mask = np.zeros((1, *scene.shape), np.uint8)
            probability = np.zeros((self.card["classes"], *scene.shape), np.uint8)
            batches: list[tuple[dict, np.ndarray]] = []

            def into(array: np.ndarray):
                return lambda row, pixels: np.copyto(array[:, row : row + pixels.shape[1]], pixels)

            mapper = Mapper(
                model, scene, native, chosen, _threshold(chosen, self.card),
                {"mask": into(mask), "probability": into(probability)}, lambda *batch: batches.append(batch),
                validity,
            )  # fmt: skip
            _fill(self.segmenter, image, mapper, chosen)
        columns = {
            name: np.concatenate([c[name] for c, _ in batches] or [[]])
            for name in ("id", "label", "area_m2", "confidence")
        }
        geometry = np.concatenate([g for _, g in batches] or [np.empty(0, object)])
        values = np.where(mask == IGNORE, np.nan, probability / np.float32(STEPS))
        return Map(mask[0], np.moveaxis(values, 0, -1), scene.transform, scene.crs, columns, geometry)


def _check_array(image: np.ndarray, card: dict) -> Grid:
    if image.ndim != 3 or image.shape[2] != card["channels"] or image.dtype != np.uint8 or not image.size:
        wanted = f"(H, W, {card['channels']}) uint8"
        raise InputError(f"an image is {wanted} for this model, not {image.shape} {image.dtype}")
    return Grid(*image.shape[:2], Affine.identity(), None)


def _settings(settings: dict) -> Predict:
    from pydantic import ValidationError

    try:
        return Predict.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"predict: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
