"""Outlines of the same raw polygons, by ours and by buildingregulariser, against a
city's own footprints.

    python -m benchmarks.outlines CITY … [--root FOLDER] [--split test]
    python -m benchmarks.outlines CITY … [--root FOLDER] --picture docs/outlines.jpg    ten blocks, before and after

FOLDER is where the pipeline has run: data/scenes, data/tiles, models/all. The library is measured
where it can be imported (pip install buildingregulariser==0.2.5, in an environment of its own: the
pipeline does not need it), with its defaults, tolerances in the units of the polygons: metres, its
own `simplify_tolerance` as wide as ours.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import shapely
from PIL import Image, ImageDraw

from benchmarks.ratio import arguments_of
from pipeline.mapping.polygons import Polygoniser
from pipeline.mapping.regular import RASTER_STEPS, Outlines
from pipeline.networks.models import read_model
from pipeline.params import Evaluate
from pipeline.scoring.evaluation import evaluate_scenes
from pipeline.scoring.outlines import METRICS, compare, summary
from pipeline.stages.evaluate import NOTHING, footprint_reader
from pipeline.tiles.store import CityTiles

LEAST = 10  # m²
BLOCK, ZOOM = 112, 3  # pixels along a block of the picture; screen pixels for each
# raw (n,) in pixels, (H, W), gsd -> outlines (n,)
Draw = Callable[[np.ndarray, tuple[int, int], float], np.ndarray]


def ours(style: str) -> Draw:
    return lambda raw, shape, gsd: Outlines(style, shape, (gsd, gsd)).add(raw, shape[0], NOTHING)[0]


def library(**options) -> Draw | None:
    try:
        from buildingregulariser import regularize_geodataframe
    except ImportError:
        return None
    import geopandas

    def draw(raw: np.ndarray, shape: tuple[int, int], gsd: float) -> np.ndarray:
        metres = geopandas.GeoDataFrame(geometry=shapely.transform(raw, lambda xy: xy * gsd))
        found = regularize_geodataframe(
            metres, simplify_tolerance=RASTER_STEPS * gsd, num_cores=1, **options
        )
        return shapely.transform(np.array(found.geometry), lambda xy: xy / gsd)

    return draw


def overlapping(outlines: np.ndarray) -> int:
    """How many outlines share more than a square pixel's hundredth with another."""
    one, other = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    one, other = one[one != other], other[one != other]
    return len(
        np.unique(one[shapely.area(shapely.intersection(outlines[one], outlines[other])) > 0.01])
    )


def measured(draw: Draw, scenes: list[tuple]) -> dict:
    """The metrics of a city's scenes (raw, footprints, shape, gsd, image) and
    the seconds it took.
    """
    compared, seconds, invalid, overlaps = [], 0.0, 0, 0
    for raw, footprints, shape, gsd, _ in scenes:
        begun = time.perf_counter()
        outlines = draw(raw, shape, gsd)
        seconds += time.perf_counter() - begun
        valid = shapely.is_valid(outlines)
        invalid += np.count_nonzero(~valid)
        outlines = outlines[valid & ~shapely.is_empty(outlines)]
        overlaps += overlapping(outlines)
        metres = [
            shapely.transform(polygons, lambda xy, gsd=gsd: xy * gsd)
            for polygons in (outlines, footprints)
        ]
        compared.append(compare(*metres))
    count = sum(len(raw) for raw, *_ in scenes)
    return summary(compared, 500) | {
        "invalid": invalid,
        "overlapping": overlaps,
        "per second": count / seconds,
    }


def city_scenes(root: Path, name: str, split: str) -> list[tuple]:
    city, segmenter = CityTiles(root / "data/tiles" / name), read_model(root / "models/all", "cpu")
    read, scenes = footprint_reader(name, root / "data/scenes"), []
    for scene, _ in evaluate_scenes(segmenter, city, Evaluate(), split):
        polygoniser = Polygoniser(scene.prediction.shape[1])
        parts = [polygoniser.add(scene.prediction, scene.prediction), polygoniser.finish()]
        raw = np.concatenate([part.geometry[part.pixels * city.gsd**2 >= LEAST] for part in parts])
        scenes.append(
            (raw, read(scene.region), scene.prediction.shape, city.gsd, city.image(scene.region))
        )
    return scenes


def picture(path: Path, scenes: list[tuple]) -> None:
    """Ten blocks, the one with the most outlines of each scene, two rows of
    them: raw above, regular below.
    """
    blocks = []
    for raw, _, shape, gsd, image in scenes:
        regular = ours("regular")(raw, shape, gsd)
        corners = [
            (r, c)
            for r in range(0, shape[0] - BLOCK + 1, 32)
            for c in range(0, shape[1] - BLOCK + 1, 32)
        ]
        inside = [
            np.count_nonzero(shapely.within(raw, shapely.box(c, r, c + BLOCK, r + BLOCK)))
            for r, c in corners
        ]
        blocks.append((max(inside), corners[int(np.argmax(inside))], raw, regular, image))
    blocks = sorted(blocks, key=lambda block: -block[0])[:10]
    side = BLOCK * ZOOM
    sheet = Image.new("RGB", (5 * (side + 6) - 6, 4 * (side + 6) - 6), "white")
    for k, (_, corner, *both, image) in enumerate(blocks):
        for below, outlines in enumerate(both):
            place = (k % 5 * (side + 6), (2 * (k // 5) + below) * (side + 6))
            sheet.paste(drawn(image, corner, outlines), place)
    sheet.save(path, quality=60, optimize=True)


def drawn(image: np.ndarray, corner: tuple[int, int], outlines: np.ndarray) -> Image.Image:
    top, left = corner
    part = Image.fromarray(np.ascontiguousarray(image[top : top + BLOCK, left : left + BLOCK, :3]))
    part = part.resize((BLOCK * ZOOM, BLOCK * ZOOM), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(part)
    for ring in shapely.get_rings(outlines[~shapely.is_empty(outlines)]):
        pen.line(
            [tuple(p) for p in (shapely.get_coordinates(ring) - [left, top]) * ZOOM],
            fill="#F0E442",
            width=2,
        )
    return part


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("cities", nargs="+", metavar="CITY")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--split", default="test")
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    if asked.picture:
        return picture(
            asked.picture,
            [s for name in asked.cities for s in city_scenes(asked.root, name, asked.split)],
        )
    methods = {
        "raw": ours("raw"), "simplified": ours("simplified"), "ours, regular": ours("regular"),
        "buildingregulariser": library(),
        "with its neighbour alignment": library(neighbor_alignment=True),
    }  # fmt: skip
    columns = ["pairs", *METRICS, "invalid", "overlapping", "per second"]
    print("| city | outlines | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 2))
    for name in asked.cities:
        scenes = city_scenes(asked.root, name, asked.split)
        for method, draw in methods.items():
            if draw is None:
                continue
            found = measured(draw, scenes)
            cells = [
                f"{found[c]:.0f}" if isinstance(found[c], int) else f"{found[c]:.3g}"
                for c in columns
            ]
            print(f"| {name} | {method} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
