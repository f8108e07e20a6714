"""Scenes to look at: photograph, truth, prediction, errors and confidence as layers small
enough for one page.
"""

import base64
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from pipeline.errors import InputError
from pipeline.labels import IGNORE
from pipeline.params import Attack
from pipeline.report.colours import FOUND, INVENTED, MISSED, PREDICTION, TRUTH, rgb
from pipeline.report.results import Results
from pipeline.scoring.metrics import counts, match_objects
from pipeline.tiles.instances import instances
from pipeline.tiles.store import Region

LAYERS = ("truth", "prediction", "errors", "confidence")
AMPLIFIED = 0.5  # the grey level that a perturbation of the whole budget reaches above or below ½


@dataclass(frozen=True)
class Spot:
    """A tile worth a look, as shares of the scene: its corner and its size."""

    name: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Picture:
    """One scene in the viewer. `photo` and `layers` are data: addresses of WebP images."""

    city: str
    scene: str
    iou: float | None
    width: int
    height: int
    photo: str
    layers: dict[str, str]
    spots: list[Spot] = field(default_factory=list)


def pictures(results: Results) -> list[Picture]:
    """report.scenes scenes of each city (null: all): its worst, its best, then the next worst.

    Raises InputError where a picture is missing or damaged.
    """
    found = []
    for city in results.cities:
        about = results.tiles.get(city)
        if not about:
            continue
        drawn = [r for r in about["regions"] if files(results, city, r)["prediction"].exists()]
        known = [r for r in drawn if results.scenes.get((city, r.name)) is not None]
        known.sort(key=lambda r: results.scenes[city, r.name] or 0)
        ordered = [
            *known[:1],
            *known[:0:-1][:1],
            *known[1:-1],
            *(r for r in drawn if r not in known),
        ]
        found += [
            picture(results, city, r, about["size"])
            for r in ordered[: results.params.report.scenes]
        ]
    return found


MAPS = {"image": "jpg", "label": "png", "prediction": "png", "confidence": "png"}


def files(results: Results, city: str, region: Region) -> dict[str, Path]:
    folder, name = results.array("evaluate", "maps", city), region.name.replace("/", "-")
    return {kind: folder / f"{name}.{kind}.{suffix}" for kind, suffix in MAPS.items()}


def picture(results: Results, city: str, region: Region, tile: int) -> Picture:
    """Layers from the exact maps of the evaluate stage, thinned to the page's size."""
    shown = {
        name: opened(path, results.root) for name, path in files(results, city, region).items()
    }
    truth, ignored, found = judged(shown["label"], shown["prediction"])
    where = spots(truth, found, ignored, tile, region)
    scale = min(1, results.params.report.image_side / max(shown["image"].size))
    width, height = (max(1, round(side * scale)) for side in shown["image"].size)
    size = width, height
    photo = shown["image"].convert("RGB").resize(size, Image.Resampling.LANCZOS)
    label, prediction = (
        shown[n].resize(size, Image.Resampling.NEAREST) for n in ("label", "prediction")
    )
    confidence = np.asarray(shown["confidence"].resize(size, Image.Resampling.BOX))
    truth, ignored, found = judged(label, prediction)
    heat = (matplotlib.colormaps["viridis"](confidence)[..., :3] * 255).astype(np.uint8)
    layers = {
        "truth": mask(truth, TRUTH),
        "prediction": mask(found, PREDICTION),
        "errors": errors(truth, found, ignored),
        "confidence": webp(Image.fromarray(heat), quality=60),
    }
    iou = results.scenes.get((city, region.name))
    return Picture(city, region.name, iou, *size, webp(photo, quality=72), layers, where)


def judged(label, prediction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is building, what is not labelled, and what was found, (H, W) bool,
    of maps of classes.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    return (label > 0) & (label != IGNORE), label == IGNORE, prediction > 0


def opened(path: Path, root: Path) -> Image.Image:
    """A map of another stage, read to its end. Raises InputError where it is missing or damaged."""
    try:
        image = Image.open(path)
        image.load()
    except OSError as error:
        raise unreadable(path, root, error) from None
    return image


def unreadable(path: Path, root: Path, error: Exception) -> InputError:
    stage = path.relative_to(root / "arrays").parts[0]
    return InputError(f"{path}: not readable ({error}); run `python -m pipeline {stage}` again")


def mask(where: np.ndarray, colour: str) -> str:
    layer = np.zeros((*where.shape, 4), np.uint8)
    layer[where] = (*rgb(colour), 165)
    return webp(Image.fromarray(layer), lossless=True)


def layers_of_errors(truth: np.ndarray, found: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """Where buildings were found, invented and missed, each with its colour."""
    return [(found & truth, FOUND), (found & ~truth, INVENTED), (~found & truth, MISSED)]


def errors(truth: np.ndarray, found: np.ndarray, ignored: np.ndarray) -> str:
    layer = np.zeros((*truth.shape, 4), np.uint8)
    for where, colour in layers_of_errors(truth, found):
        layer[where] = (*rgb(colour), 185)
    layer[ignored] = (0, 0, 0, 150)
    return webp(Image.fromarray(layer), lossless=True)


def spots(truth, found, ignored, tile: int, region: Region) -> list[Spot]:
    """The tiles of least and greatest IoU among those with buildings enough to
    tell (1 % of the tile).
    """
    height, width = truth.shape
    scored = []
    for window in region.windows(tile):
        top, left = window.top / region.height, window.left / region.width
        bottom = min(1, (window.top + window.height) / region.height)
        right = min(1, (window.left + window.width) / region.width)
        part = (
            slice(round(top * height), round(bottom * height)),
            slice(round(left * width), round(right * width)),
        )
        intersection, union = counts(found[part], np.where(ignored, IGNORE, truth)[part])
        if union > 0.01 * truth[part].size:
            scored.append((intersection / union, left, top, right - left, bottom - top))
    if len(scored) < 2:
        return []
    return [Spot("worst tile", *min(scored)[1:]), Spot("best tile", *max(scored)[1:])]


def webp(image: Image.Image, **options) -> str:
    """A data: address of the picture."""
    data = io.BytesIO()
    image.save(data, "WEBP", method=4, **options)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


@dataclass(frozen=True)
class Figured:
    """A city's figure: `source` is a data: address."""

    city: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class State:
    """A tile as the model meets it: its picture, what the model makes of it (errors in colour),
    what came of it.
    """

    name: str
    said: str
    image: str
    map: str


@dataclass(frozen=True)
class Example:
    """A city's tile clean, attacked and with its buildings erased; `change`: the attack's,
    amplified `gain` times.
    """

    city: str
    states: list[State]
    change: str
    gain: int


def examples(results: Results, most: int = 4) -> list[Example]:
    """What the attack did to the tile that lost most, of the hardest cities."""
    paths = {city: results.array("attack", f"{city}.npz") for city in results.cities}
    found = []
    for city in [city for city, path in paths.items() if path.exists()][:most]:
        try:
            with np.load(paths[city], allow_pickle=False) as arrays:
                found.append(example(city, dict(arrays), results.params.attack))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise unreadable(paths[city], results.root, error) from None
    return found


def example(city: str, arrays: dict[str, np.ndarray], settings: Attack) -> Example:
    """Of the arrays that the attack stage keeps of a tile; those of an earlier
    version know no erasing.
    """
    steps = {
        "clean": ("image", "before", ""),
        "attacked": (
            "attacked",
            "after",
            f", every pixel changed by at most {settings.reference:g}/255",
        ),
        "erased": (
            "erased",
            "after_erasing",
            f", the ground beside buildings changed by at most {settings.targeted:g}/255",
        ),
    }
    states = [
        State(name, verdict(arrays[after], arrays["label"]) + how, drawn(rgb_of(arrays[image])),
              drawn(overlay(rgb_of(arrays[image]), arrays[after], arrays["label"])))
        for name, (image, after, how) in steps.items() if image in arrays
    ]  # fmt: skip
    gain = AMPLIFIED * 255 / settings.reference
    change = (0.5 + gain * (rgb_of(arrays["attacked"]) - rgb_of(arrays["image"]))).clip(0, 1)
    return Example(city, states, drawn(change), round(gain))


def verdict(prediction: np.ndarray, label: np.ndarray) -> str:
    """The IoU of a tile and how many of its buildings are found."""
    intersection, union = counts(prediction, label)
    found = instances(np.where(label == IGNORE, IGNORE, prediction))
    objects = match_objects(found, instances(label), found > 0)
    right = np.count_nonzero(objects.match)
    return f"IoU {intersection / max(union, 1):.2f}, {right} of {len(objects.area)} buildings found"


def rgb_of(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) of an image (C, H, W), its first band thrice where it has fewer than three."""
    image = image.transpose(1, 2, 0)[..., :3]
    return image if image.shape[-1] == 3 else image[..., :1].repeat(3, -1)


def drawn(picture: np.ndarray) -> str:
    return webp(Image.fromarray(np.rint(255 * picture.clip(0, 1)).astype(np.uint8)), quality=90)


def overlay(image: np.ndarray, prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1]: an image in [0, 1], grey, under found, invented and missed buildings."""
    truth, ignored, found = judged(label, prediction)
    picture = 0.16 + 0.75 * image.mean(-1, keepdims=True).repeat(3, -1)
    for where, colour in layers_of_errors(truth, found):
        picture[where] = 0.45 * picture[where] + 0.55 * np.array(rgb(colour)) / 255
    picture[ignored] *= 0.4
    return picture
