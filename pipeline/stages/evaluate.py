"""Stage evaluate: IoU per city over whole test scenes, with intervals, and pictures of what was found and missed.

Writes metrics/evaluate.json:

    city CITY            iou with iou_low and iou_high, accuracy, precision, recall, f1, boundary_iou, object_f1, ece,
                         ece_calibrated; size: {M²: number of buildings, their recall and iou}
    pooled, mean_city, worst_city

All are of the map that `predict` would deploy: windows blended, the calibrated probability cut at the card's
threshold. `ece` is of the probability as trained, `ece_calibrated` as deployed.
"""

from pathlib import Path

import numpy as np

from pipeline.colours import FOUND, INVENTED, MISSED, rgb
from pipeline.console import progress, table
from pipeline.errors import InputError
from pipeline.geo.scene import IGNORE
from pipeline.geo.tiles import CityTiles, open_cities
from pipeline.learning import metrics
from pipeline.params import Params
from pipeline.storage import atomic_folder, write_json

LONGEST_SIDE = 1280  # pixels of a picture; larger scenes are thinned


def run(
    params: Params,
    model: Path = Path("models/all"),
    tiles: Path = Path("data/tiles"),
    out: Path = Path("metrics/evaluate.json"),
    figures: Path = Path("figures/evaluate"),
) -> None:
    """Evaluate a model folder on a tile set; any model on any tiles of its ground sample distance and bands."""
    from pipeline.learning.evaluation import evaluate_scenes, summarise
    from pipeline.learning.models import load_model
    from pipeline.learning.precision import device

    segmenter = load_model(model, device())
    cities, e = open_cities(params.fetch.cities, tiles), params.evaluate
    results, scores = [], []
    with atomic_folder(figures) as folder:
        for city in cities:
            check_fit(segmenter.card, city, model)
            regions = city.of_split(e.split)
            if not regions:
                raise InputError(f"{city.folder}: no {e.split} scenes; raise tile.{e.split} or set evaluate.split")
            scenes = evaluate_scenes(segmenter, city, e, e.split)
            for scene, result in progress(scenes, f"evaluating {city.city}", len(regions)):  # noqa: B007
                draw(folder / "maps" / city.city, city, scene)
                tp, fp, fn, _ = map(int, scene.pixels)
                scores.append({"city": city.city, "scene": scene.region.name, "iou": metrics.ratio(tp, tp + fp + fn)})
            results.append(result)
        draw_curves(folder, results)
        write_json(folder / "scenes.json", scores)
    summary = summarise(results, e)
    write_json(out, summary)
    print_table(summary)


def check_fit(card: dict, city: CityTiles, model: Path) -> None:
    """Raise InputError where a city's tiles are not what the model was trained to read."""
    for key, mine, theirs in (
        ("channels", card["channels"], city.channels),
        ("ground sample distance", card["gsd"], city.gsd),
        ("classes", card["classes"], city.classes),
    ):
        if abs(mine - theirs) > 1e-6:
            raise InputError(f"{city.folder}: {key} {theirs:g}, but {model} was trained with {mine:g}; tile it again")


def print_table(summary: dict) -> None:
    columns = ["iou", "iou_low", "iou_high", "boundary_iou", "object_f1", "precision", "recall", "ece"]
    rows = [[name, *(c[k] for k in columns)] for name, c in summary["city"].items()]
    rows.append(["pooled", summary["pooled"]["iou"], *[None] * (len(columns) - 1)])
    rows.append(["mean city", summary["mean_city"]["iou"], *[None] * (len(columns) - 1)])
    table("IoU per city", ["city", "IoU", "low", "high", "boundary", "object F1", "precision", "recall", "ECE"], rows)


def overlay(image: np.ndarray, prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the image in grey under found (green), invented (orange) and missed (purple) buildings."""
    grey = image[..., :3].mean(-1, keepdims=True).repeat(3, -1)
    picture = 0.75 * grey + 40
    found, truth = prediction > 0, (label > 0) & (label != IGNORE)
    for mask, colour in ((found & truth, FOUND), (found & ~truth, INVENTED), (~found & truth, MISSED)):
        picture[mask] = 0.45 * picture[mask] + 0.55 * np.array(rgb(colour))
    picture[label == IGNORE] *= 0.4
    return picture.astype(np.uint8)


def draw(folder: Path, city: CityTiles, scene) -> None:
    """Pictures of one scene: image, truth, building probability, and the overlay of errors."""
    from PIL import Image

    region, step = scene.region, max(1, -(-max(scene.prediction.shape) // LONGEST_SIDE))
    image, label = city.image(region)[::step, ::step], city.label(region)[::step, ::step]
    prediction, confidence = scene.prediction[::step, ::step], scene.confidence[::step, ::step]
    rgb = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, -1)
    pictures = {
        "image": rgb,
        "truth": np.where(label == IGNORE, 128, np.where(label > 0, 255, 0)).astype(np.uint8),
        "probability": confidence,
        "overlay": overlay(rgb, prediction, label),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        file = folder / f"{region.name.replace('/', '-')}.{name}.jpg"
        Image.fromarray(np.ascontiguousarray(picture)).save(file, quality=88)


def draw_curves(folder: Path, results: list) -> None:
    """Reliability diagram and precision–recall curves, as SVG for the report and as JSON for `dvc plots`."""
    from matplotlib.figure import Figure

    before, after = sum(r.confidence for r in results), sum(r.calibrated for r in results)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    for counts, name, colour in ((before, "as trained", "#D55E00"), (after, "temperature scaled", "#0072B2")):
        r = metrics.reliability(counts)
        left.plot(r["probability"], r["frequency"], marker="o", markersize=3, color=colour, label=name)
    left.set(xlabel="predicted probability of building", ylabel="share that is building", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False)
    for r in results:
        curve = metrics.precision_recall(r.confidence)
        right.plot(curve["recall"], curve["precision"], linewidth=1.2, label=r.city)
    right.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    if len(results) <= 10:
        right.legend(frameon=False, fontsize="small")
    figure.savefig(folder / "confidence.svg")
    r = metrics.reliability(before)
    write_json(folder / "reliability.json", [
        {"probability": p, "frequency": f, "pixels": n}
        for p, f, n in zip(r["probability"], r["frequency"], r["pixels"], strict=True)
    ])  # fmt: skip
    curves = {r.city: metrics.precision_recall(r.confidence) for r in results}
    write_json(folder / "precision_recall.json", [
        {"city": city, "recall": recall, "precision": precision}
        for city, c in curves.items() for recall, precision in zip(c["recall"], c["precision"], strict=True)
    ])  # fmt: skip
