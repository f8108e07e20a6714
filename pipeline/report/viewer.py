"""Scenes to look at: photograph, truth, prediction, errors and confidence as layers small enough for one page."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from pipeline.colours import FOUND, INVENTED, MISSED, PREDICTION, TRUTH, rgb
from pipeline.errors import InputError
from pipeline.geo.scene import IGNORE
from pipeline.geo.tiles import Region
from pipeline.learning.metrics import counts
from pipeline.report.results import Results

LAYERS = ("truth", "prediction", "errors", "confidence")


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
        drawn = [r for r in about["regions"] if files(results, city, r)["probability"].exists()]
        known = [r for r in drawn if results.scenes.get((city, r.name)) is not None]
        known.sort(key=lambda r: results.scenes[city, r.name])
        ordered = [*known[:1], *known[:0:-1][:1], *known[1:-1], *(r for r in drawn if r not in known)]
        found += [picture(results, city, r, about["size"]) for r in ordered[: results.params.report.scenes]]
    return found


def files(results: Results, city: str, region: Region) -> dict[str, Path]:
    names = ("image", "truth", "probability")
    return {n: results.figure("evaluate", "maps", city, f"{region.name.replace('/', '-')}.{n}.jpg") for n in names}


def picture(results: Results, city: str, region: Region, tile: int) -> Picture:
    """Layers from what the evaluate stage drew. The masks are cut from JPEG, so they are for the eye alone."""
    shown = {name: opened(path, results.root) for name, path in files(results, city, region).items()}
    scale = min(1, results.params.report.image_side / max(shown["image"].size))
    size = tuple(max(1, round(side * scale)) for side in shown["image"].size)
    photo = np.asarray(shown["image"].convert("RGB").resize(size, Image.Resampling.LANCZOS))
    grey, probability = (
        np.asarray(shown[n].convert("L").resize(size, Image.Resampling.BOX)) for n in ("truth", "probability")
    )
    truth, ignored, found = grey > 192, (grey > 64) & (grey <= 192), probability > 127
    ignored &= ~edge(truth)  # JPEG and resizing blur the truth's outlines through the ignored grey
    heat = (matplotlib.colormaps["viridis"](probability)[..., :3] * 255).astype(np.uint8)
    layers = {
        "truth": mask(truth, TRUTH),
        "prediction": mask(found, PREDICTION),
        "errors": errors(truth, found, ignored),
        "confidence": webp(Image.fromarray(heat), quality=60),
    }
    return Picture(
        city, region.name, results.scenes.get((city, region.name)), *size,
        webp(Image.fromarray(photo), quality=72), layers, spots(truth, found, ignored, tile, region),
    )  # fmt: skip


def opened(path: Path, root: Path) -> Image.Image:
    """A picture drawn by another stage, read to its end. Raises InputError where it is missing or damaged."""
    try:
        image = Image.open(path)
        image.load()
    except OSError as error:
        stage = path.relative_to(root / "figures").parts[0]
        raise InputError(f"{path}: not a readable picture ({error}); run `python -m pipeline {stage}` again") from None
    return image


def edge(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: the mask and two pixels around it."""
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, iterations=2)


def mask(where: np.ndarray, colour: str) -> str:
    layer = np.zeros((*where.shape, 4), np.uint8)
    layer[where] = (*rgb(colour), 165)
    return webp(Image.fromarray(layer), lossless=True)


def errors(truth: np.ndarray, found: np.ndarray, ignored: np.ndarray) -> str:
    layer = np.zeros((*truth.shape, 4), np.uint8)
    for where, colour in ((found & truth, FOUND), (found & ~truth, INVENTED), (~found & truth, MISSED)):
        layer[where] = (*rgb(colour), 185)
    layer[ignored] = (0, 0, 0, 150)
    return webp(Image.fromarray(layer), lossless=True)


def spots(truth, found, ignored, tile: int, region: Region) -> list[Spot]:
    """The tiles of least and greatest IoU among those with buildings enough to tell (1 % of the tile)."""
    height, width = truth.shape
    scored = []
    for window in region.windows(tile):
        top, left = window.top / region.height, window.left / region.width
        bottom = min(1, (window.top + window.height) / region.height)
        right = min(1, (window.left + window.width) / region.width)
        part = slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width))
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
class Example:
    city: str
    source: str
    width: int
    height: int


def examples(results: Results, most: int = 4) -> list[Example]:
    """What the attack did to the tile that lost most, of the hardest cities."""
    paths = {city: results.figure("attack", f"{city}.png") for city in results.cities}
    found = []
    for city in [city for city, path in paths.items() if path.exists()][:most]:
        image = opened(paths[city], results.root).convert("RGB")
        image.thumbnail((1320, 1320))
        found.append(Example(city, webp(image, quality=70), *image.size))
    return found
