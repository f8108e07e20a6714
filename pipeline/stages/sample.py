"""Verb sample: which frames of a city to label, as a GeoPackage to edit (see assessment/survey.py
for what is written).

The model maps the whole city once. A probability sample, stratified by the errors it expects of
itself, can be assessed; an active one (doubtful frames unlike each other), a core-set or a random
one is drawn to learn from.
"""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from pipeline.assessment import geopackage, survey
from pipeline.assessment.population import (
    check_place,
    crop,
    doubt,
    features,
    frame_windows,
    map_scene,
    of_scene,
    together,
)
from pipeline.assessment.sampling import active_sample, core_set, probability_sample
from pipeline.assessment.survey import Survey, SurveyedScene
from pipeline.console import console, remark, table
from pipeline.errors import InputError, nearest
from pipeline.mapping.inputs import Task, open_scene
from pipeline.mapping.scene import model_of
from pipeline.mapping.scene_list import list_scenes
from pipeline.networks.card import Card
from pipeline.params import Predict
from pipeline.storage import atomic_folder, fingerprint

STRATEGIES = ("probability", "active", "core_set", "random")
MARGIN = 32  # pixels of an image around its frame, so that a building on its edge is seen whole
LEAST_SIDE = 32


def run(
    model: Path, scenes: list[str], out: Path, *, tiles: int = 20, side: int = 128,
    strategy: str = "probability", seed: int = 0, gsd: float | None = None,
    bands: list[int] | None = None, value_range: list[float] | None = None,
) -> None:  # fmt: skip
    """Map the scenes, draw `tiles` frames of `side` pixels and write the folder
    OUT. Raises InputError.
    """
    if out.exists():
        raise InputError(
            f"{out}: is already there, perhaps with somebody's labels; choose another --out"
        )
    if strategy not in STRATEGIES:
        raise InputError(
            f"--strategy {strategy}: there is {', '.join(STRATEGIES)}; "
            f"{nearest(strategy, STRATEGIES)}?"
        )
    if tiles < 2 or side < LEAST_SIDE:
        raise InputError(
            f"--tiles {tiles}, --side {side}: at least 2 frames of at least "
            f"{LEAST_SIDE} pixels are drawn"
        )
    segmenter, model_key = model_of(str(model))
    named = list_scenes(scenes)
    tasks = {
        name: Task(
            path, name, "", gsd=gsd, bands=tuple(bands) if bands else None,
            range=tuple(value_range) if value_range else None,
        )
        for name, path in named.items()
    }  # fmt: skip
    with atomic_folder(out) as folder:
        (folder / "probability").mkdir()
        (folder / "images").mkdir()
        found, parts = [], []
        for number, (name, task) in enumerate(tasks.items()):
            scene, part = _map(
                segmenter, task, number, folder / "probability" / f"{name}.npy", side
            )
            found.append(scene)
            parts.append(part)
        frames = together(parts)
        if len(frames) < 2:
            raise InputError(
                f"{', '.join(named)}: {len(frames)} frames of {side} pixels hold data; choose a "
                f"smaller --side"
            )
        threshold = segmenter.decision.threshold
        size, tiles = doubt(frames.histogram, threshold), min(tiles, len(frames))
        stratum, inclusion = np.zeros(len(frames), int), np.full(len(frames), np.nan)
        match strategy:
            case "probability":
                drawing = probability_sample(size, tiles, seed)
                drawn, stratum, inclusion = drawing.drawn, drawing.stratum, drawing.inclusion
            case "active":
                drawn = active_sample(features(frames), size, tiles, seed)
            case "core_set":
                drawn = core_set(features(frames), tiles, seed)
            case "random":
                drawn = np.random.default_rng(seed).permutation(len(frames))[:tiles]
        about = {
            "key": fingerprint(survey.FORMAT, model_key, [s.path for s in found], tiles, side, strategy, seed),
            "model": str(model), "model_key": model_key, "strategy": strategy, "seed": seed,
            "side": side, "threshold": threshold, "gsd": segmenter.card.gsd,
            "bands": segmenter.card.bands,
        }  # fmt: skip
        drawn_survey = Survey(folder, about, found, frames, drawn, stratum, inclusion)
        survey.save(drawn_survey)
        for name, task in tasks.items():
            _cut_images(drawn_survey, task, name, segmenter.card)
        geopackage.write(drawn_survey)
    _say(drawn_survey, out)


def _map(segmenter, task: Task, number: int, path: Path, side: int):
    with ExitStack() as stack:
        image, twin = open_scene(stack, task, segmenter.card)
        check_place(image, task.scene)
        console.print(f"mapping {task.name}: {image.shape[0]} × {image.shape[1]} pixels")
        settings = Predict()
        levels = map_scene(segmenter, image, twin, path, settings.window, settings.batch_size)
        levels.flush()
        grid = image.grid
        crs = grid.crs if isinstance(grid.crs, str) else grid.crs.to_wkt()
        scene = SurveyedScene(
            task.name, task.scene, grid.height, grid.width, tuple(grid.transform)[:6], crs
        )
        return scene, of_scene(number, levels, image, frame_windows(*grid.shape, side))


def _cut_images(drawn: Survey, task: Task, name: str, card: Card) -> None:
    """The images of a scene's frames, with their surroundings."""
    own = [i for i in drawn.drawn if drawn.scenes[drawn.frames.scene[i]].name == name]
    if not own:
        return
    with ExitStack() as stack:
        image, _ = open_scene(stack, task, card)
        for i in own:
            pixels, place = crop(image, drawn.frames.place(i), MARGIN)
            grid = drawn.grid(i)
            profile = {
                "driver": "GTiff", "dtype": "uint8", "count": pixels.shape[2],
                "height": pixels.shape[0], "width": pixels.shape[1], "crs": grid.crs,
                "compress": "deflate",
                "transform": grid.transform @ Affine.translation(-place.left, -place.top),
            }  # fmt: skip
            with rasterio.open(drawn.image(i), "w", **profile) as file:
                file.write(np.moveaxis(pixels, -1, 0))


def _say(drawn: Survey, out: Path) -> None:
    hectares = [
        drawn.grid(i).height * drawn.grid(i).width * drawn.pixel_area / 1e4 for i in drawn.drawn
    ]
    table(
        "Sample",
        ["stratum", "frames", "to label", "chance of each"],
        [
            [
                str(h + 1),
                int((drawn.stratum == h).sum()),
                int((drawn.stratum[drawn.drawn] == h).sum()),
                None
                if np.isnan(drawn.inclusion).any()
                else float(drawn.inclusion[drawn.stratum == h][0]),
            ]
            for h in range(drawn.stratum.max() + 1)
        ],
    )
    console.print(
        f"{len(hectares)} frames, {sum(hectares):.1f} ha, to label in {out / survey.LABELS} (open "
        f"it in QGIS)"
    )
    console.print(
        "set a frame's status to done when every building in it is drawn, none too; or to unusable"
    )
    if not drawn.probability_sample:
        remark(
            "note", "yellow",
            f"frames drawn to learn from ({drawn.about['strategy']}): they have no known chance of "
            f"being drawn, "
            f"so " "`assess` cannot say from them how good the map is; label a probability sample "
                   "too",
        )  # fmt: skip
