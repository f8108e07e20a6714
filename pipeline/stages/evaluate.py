"""Stage evaluate: IoU per city over whole test scenes, with intervals, and the maps
themselves for the report.

Writes metrics/evaluate.json, an EvaluateMetrics. All numbers are of the map that `predict` would
deploy: windows blended, the calibrated probability cut at the card's threshold; buildings one by
one told apart (predict.split, predict.neck) where labels were footprints, those under
predict.min_area left out.

Killed and started again it goes on with the next city: what is measured stands in
.work/evaluate until all is.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.cluster import content, forget, summands
from pipeline.code import version
from pipeline.console import progress, table
from pipeline.errors import InputError
from pipeline.imagery.scene import read_city
from pipeline.imagery.vector import SUFFIXES, read_footprints
from pipeline.labels import IGNORE
from pipeline.mapping.polygons import Polygoniser
from pipeline.mapping.regular import Outlines
from pipeline.metrics import EvaluateMetrics, write
from pipeline.params import Evaluate, Params, Predict
from pipeline.scoring import metrics
from pipeline.scoring.outlines import METRICS, compare, summary
from pipeline.storage import WORK, atomic_folder, write_json
from pipeline.tiles.store import CityTiles, Region, open_cities

if TYPE_CHECKING:
    from pipeline.networks.models import Segmenter
    from pipeline.scoring.evaluation import CityResult

NOTHING = np.empty((0, 4))  # is open below a scene
LONGEST_SIDE = 1280  # pixels of a picture; larger scenes are thinned


@dataclass
class Evaluated:
    """A city: its counts, the IoU of its scenes one by one, and its outlines'
    scores; its maps lie beside.
    """

    result: "CityResult"
    scenes: list[dict]
    outlines: dict | None


@dataclass
class Evaluating:
    """What evaluates a city: a part of the stage. The model is loaded once a process."""

    params: Params
    model: "Path | Segmenter"
    tiles: Path
    scenes_root: Path

    @cached_property
    def segmenter(self) -> Any:
        """A Segmenter, or a network of others with its interface."""
        from pipeline.networks.foreign import load_network
        from pipeline.networks.precision import device

        return (
            load_network(self.model, device())
            if isinstance(self.model, Path)
            else self.model.to(device())
        )

    def __call__(self, name: str, folder: Path) -> Evaluated:
        from pipeline.networks.card import check_fit
        from pipeline.scoring.evaluation import evaluate_scenes

        (city,), e, predict = (
            open_cities([name], self.tiles),
            self.params.evaluate,
            self.params.predict,
        )
        check_fit(
            self.segmenter.card, city, self.model if isinstance(self.model, Path) else "the network"
        )
        scenes = evaluate_scenes(self.segmenter, city, e, e.split, predict)
        read, scores, drawn = footprint_reader(name, self.scenes_root), [], []
        for scene, result in progress(scenes, f"evaluating {name}", len(_regions(city, e))):  # noqa: B007
            write_maps(folder / "maps", city, scene)
            tp, fp, fn, _ = map(int, scene.pixels)
            scores.append(
                {"city": name, "scene": scene.region.name, "iou": metrics.ratio(tp, tp + fp + fn)}
            )
            if (footprints := read(scene.region)) is not None:
                drawn.append(score_outlines(scene, footprints, city.gsd, predict))
        return Evaluated(result, scores, summary(drawn, e.bootstrap) if drawn else None)

    def __getstate__(self) -> dict:
        return {name: self.__dict__[name] for name in ("params", "model", "tiles", "scenes_root")}


def run(
    params: Params,
    model: "Path | Segmenter" = Path("models/all"),
    tiles: Path = Path("data/tiles"),
    out: Path = Path("metrics/evaluate.json"),
    arrays: Path = Path("arrays/evaluate"),
    scenes_root: Path = Path("data/scenes"),
    work: Path = WORK / "evaluate",
    *,
    ray: str | None = None,
    shard: str | None = None,
) -> None:
    """Evaluate a model on a tile set of its ground sample distance and bands.

    model: a folder, an ONNX file of ours or another's, or a Segmenter; scenes_root: where `fetch`
    left the footprints that outlines are held against; ray, shard: where its cities are evaluated,
    see pipeline.cluster.
    """
    from pipeline.scoring.evaluation import summarise

    e, evaluating = params.evaluate, Evaluating(params, model, tiles, scenes_root)
    cities = open_cities(params.fetch.cities, tiles)
    _check_groups(cities, params.fetch.groups)
    names = [city.city for city in cities if _regions(city, e)]
    kept = work / _key(evaluating)
    found = summands(evaluating, names, kept, ray=ray, shard=shard)
    if found is None:
        return
    results = [city.result for city in found.values()]
    with atomic_folder(arrays) as folder:
        for name in names:
            shutil.copytree(kept / name / "maps", folder / "maps" / name)
        write_curves(folder, results)
        write_json(
            folder / "scenes.json", [score for city in found.values() for score in city.scenes]
        )
    measured = summarise(results, e, params.fetch.groups)
    for name, row in measured["city"].items():
        row["outlines"] = found[name].outlines
    record = write(out, EvaluateMetrics, measured)
    forget(kept)
    print_table(record)


def _regions(city: CityTiles, e: Evaluate) -> list[Region]:
    """Of the split to be evaluated. Raises InputError where a city has none."""
    if regions := city.of_split(e.split):
        return regions
    raise InputError(
        f"{city.folder}: no {e.split} scenes; raise tile.{e.split} or set evaluate.split"
    )


def _check_groups(cities: list[CityTiles], column: str | None) -> None:
    """Raise InputError where a city's buildings are told apart by another column."""
    for city in cities:
        if city.grouped_by not in (None, column):
            raise InputError(
                f"{city.folder}: buildings are grouped by their {city.grouped_by}, fetch.groups is "
                f"{column or 'null'}; run the fetch and tile stages again"
            )


def _key(evaluating: Evaluating) -> str:
    """What a kept city depends on: the settings, the model, the pixels and labels it is held
    against, and the code.
    """
    params, ground = evaluating.params, []
    for city in open_cities(params.fetch.cities, evaluating.tiles):
        described = evaluating.scenes_root / city.city / "city.json"  # of its footprints too
        ground += [city.about, described]
        for region in city.of_split(params.evaluate.split):
            ground += [
                city.image(region),
                city.label(region),
                city.numbers(region),
                city.groups(region),
            ]
    settings = [params.evaluate.model_dump(), params.predict.model_dump()]
    return content(version("evaluate"), settings, evaluating.model, *ground)


def print_table(found: EvaluateMetrics) -> None:
    objects = ["object_f1", "ap50", "panoptic_quality"]
    columns = ["iou", "iou_low", "iou_high", "boundary_iou", *objects, "precision", "recall", "ece"]
    rows = [[name, *(getattr(c, k) for k in columns)] for name, c in found.city.items()]
    rows.append(["pooled", found.pooled.iou, *[None] * (len(columns) - 1)])
    rows.append(["mean city", found.mean_city.iou, *[None] * (len(columns) - 1)])
    names = [
        "city",
        "IoU",
        "low",
        "high",
        "boundary",
        "object F1",
        "AP50",
        "PQ",
        "precision",
        "recall",
        "ECE",
    ]
    table("IoU per city", names, rows)
    columns = ["pairs", *METRICS]
    rows = [
        [name, *(getattr(c.outlines, k) for k in columns)]
        for name, c in found.city.items()
        if c.outlines
    ]
    if rows:
        names = ["city", "pairs", "IoU", "PoLiS m", "tangent °", "rotation °", "vertices", "C-IoU"]
        table("Outlines against the footprints, of the buildings found", names, rows)


def footprint_reader(city: str, root: Path) -> Callable[[Region], np.ndarray | None]:
    """Footprints (m,) of a region, in its pixels, that lie within it; None where they are not
    at hand as vectors.
    """
    path = root / city
    scenes = (
        {scene.name: scene for scene in read_city(path).scenes}
        if (path / "city.json").exists()
        else {}
    )
    where = read_city(path).where if scenes else None

    def read(region: Region) -> np.ndarray | None:
        scene = scenes.get(region.parent)
        labels = Path(scene.labels) if scene and scene.labels else None
        if (
            not labels
            or labels.suffix.lower() not in SUFFIXES
            or not labels.exists()
            or region.crs is None
        ):
            return None
        found = read_footprints(labels, region.crs, region.grid.bounds, where)
        polygons = shapely.get_parts(found.polygons[found.labels != IGNORE])
        place = ~region.grid.transform
        polygons = shapely.transform(polygons, lambda xy: np.stack(place @ (xy[:, 0], xy[:, 1]), 1))
        return polygons[shapely.covers(shapely.box(0, 0, region.width, region.height), polygons)]

    return read


def score_outlines(
    scene, footprints: np.ndarray, gsd: float, settings: Predict
) -> dict[str, tuple[float, float]]:
    """The outlines that `predict` would draw of a scene's map against its footprints."""
    polygoniser = Polygoniser(scene.prediction.shape[1])
    parts = [polygoniser.add(scene.apart, scene.apart), polygoniser.finish()]
    raw = np.concatenate(
        [part.geometry[part.pixels * gsd**2 >= settings.min_area] for part in parts]
    )
    shapes, _ = Outlines(settings.outlines, scene.prediction.shape, (gsd, gsd)).add(
        raw, polygoniser.row, NOTHING
    )
    return compare(
        *(shapely.transform(polygons, lambda xy: xy * gsd) for polygons in (shapes, footprints))
    )


def write_maps(folder: Path, city: CityTiles, scene) -> None:
    """One scene as the report shows it, thinned where it is large: a photograph, and exact labels,
    classes and building confidence (in 1/255) beside it."""
    from PIL import Image

    region, step = scene.region, max(1, -(-max(scene.prediction.shape) // LONGEST_SIDE))
    image, label = city.image(region)[::step, ::step], city.label(region)[::step, ::step]
    rgb = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, -1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in {
        "image.jpg": rgb,
        "label.png": label,
        "prediction.png": scene.prediction[::step, ::step],
        "confidence.png": scene.confidence[::step, ::step],
    }.items():
        file = folder / f"{region.name.replace('/', '-')}.{name}"
        Image.fromarray(np.ascontiguousarray(picture)).save(file, quality=88)


def write_curves(folder: Path, results: list) -> None:
    """Reliability over all cities, as trained and with the card's temperature, and each city's
    precision and recall."""
    for name, kind in (("reliability", "confidence"), ("reliability_calibrated", "calibrated")):
        r = metrics.reliability(sum(getattr(result, kind) for result in results))
        columns = zip(r["probability"], r["frequency"], r["pixels"], strict=True)
        rows = [{"probability": p, "frequency": f, "pixels": n} for p, f, n in columns]
        write_json(folder / f"{name}.json", rows)
    curves = {r.city: metrics.precision_recall(r.confidence) for r in results}
    rows = [
        {"city": city, "recall": recall, "precision": precision}
        for city, c in curves.items()
        for recall, precision in zip(c["recall"], c["precision"], strict=True)
    ]
    write_json(folder / "precision_recall.json", rows)
