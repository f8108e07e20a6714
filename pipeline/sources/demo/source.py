"""Source `demo`: invented cities seen from the air, drawn rather than downloaded.

data/sources/demo.yaml says what each city is like; town.layout draws a scene's
plan, town.render looks at it from above. A scene depends on the seed, its city and
its number alone, whatever else is drawn.
"""

import hashlib
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyogrio.raw
import rasterio
import shapely
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from pipeline import params
from pipeline.console import progress
from pipeline.imagery.scene import City, Scene
from pipeline.imagery.writer import onto_disk, refuse_holes
from pipeline.runs import cores
from pipeline.sources.demo.layout import draw_plan
from pipeline.sources.demo.plan import Plan
from pipeline.sources.demo.render import render
from pipeline.sources.demo.schema import DemoCity, Manifest, Material, find_city

MANIFEST = "data/sources/demo.yaml"
COLUMNS = 4  # scenes side by side in a city
APART = 1.25  # sides of a scene from one to the next: they never touch
# every fourth scene, from the second, was flown to the edge of the strip and lacks a corner
WEDGE = 4


def fetch(fetch: params.Fetch, city: str, folder: Path, work: Path) -> City:
    """Draw a city's scenes: FOLDER/images/*.tif and FOLDER/footprints.fgb.

    Images are (H, W, 3) uint8 GeoTIFFs, nodata 0. Raises InputError for a city the
    manifest does not have.
    """
    manifest = params.load_section(Manifest, fetch.path, MANIFEST)
    about = find_city(manifest, city)
    numbers = (
        list(range(1, about.scenes + 1)) if fetch.scenes == "all" else sorted(set(fetch.scenes))
    )
    scenes, outlines, labels = [], [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)

    def draw(number: int) -> tuple[int, str, Plan]:
        entropy = [fetch.seed, zlib.crc32(city.encode()), number]
        image = f"images/{city}-{number:02d}.tif"
        size = fetch.scene_size
        return number, image, draw_scene(about, manifest.materials, size, entropy, folder / image)

    with ThreadPoolExecutor(min(4, cores())) as pool:  # so many are in memory at once
        drawings = list(progress(pool.map(draw, numbers), f"demo: {city}", len(numbers)))
    for number, image, plan in drawings:
        drawn = [plan.footprints, plan.streets if fetch.streets else []]
        labels += [kind for kind, shapes in enumerate(drawn, 1) for _ in shapes]
        outlines.append(project(sum(drawn, []), about, place(about, number, fetch.scene_size)))
        stamp = hashlib.sha256(
            (folder / image).read_bytes() + b"".join(shapely.to_wkb(outlines[-1]))
        )
        scenes.append(
            Scene(f"{city}-{number:02d}", image, "footprints.fgb", stamp=stamp.hexdigest()[:16])
        )
    shapes = np.concatenate(outlines)
    path = folder / "footprints.fgb"
    with onto_disk(path):
        columns = ([np.array(labels, np.int32)], ["label"]) if fetch.streets else ([], [])
        pyogrio.raw.write(
            path,
            shapely.to_wkb(shapes),
            *columns,
            geometry_type="Polygon",
            driver="FlatGeobuf",
            crs=f"EPSG:{about.labels_epsg}",
            layer=city,
        )
    return City(
        city=city,
        source="demo",
        scenes=scenes,
        rights="CC0-1.0",
        attribution="generated, no real place",
        notes={"footprints": labels.count(1)},
    )


def look_up(fetch: params.Fetch, city: str) -> None:
    """Raise InputError where there is no such city."""
    find_city(params.load_section(Manifest, fetch.path, MANIFEST), city)


def place(city: DemoCity, number: int, size: int) -> Affine:
    """Where scene `number` lies: the transform from its pixels to the city's CRS.

    Web Mercator stretches by 1/cos(latitude), so its pixel is that much larger than on the ground.
    """
    x, y = city.origin
    stretch = 1.0
    if city.epsg == 3857:
        latitude = transform_points("EPSG:3857", "EPSG:4326", [x], [y])[1][0]
        stretch = 1 / math.cos(math.radians(latitude))
    pixel = city.gsd * stretch
    row, column = divmod(number - 1, COLUMNS)
    step = APART * size * pixel
    return Affine(pixel, 0, x + column * step, 0, -pixel, y - row * step)


def draw_scene(
    city: DemoCity, materials: dict[str, Material], size: int, entropy: list[int], path: Path
) -> Plan:
    """Write one scene of size×size pixels as a tiled GeoTIFF; returns the plan
    it was drawn from.
    """
    number = entropy[-1]
    plan = draw_plan(city, materials, size * city.gsd, entropy)
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    profile = {
        "driver": "GTiff",
        "width": size,
        "height": size,
        "count": 3,
        "dtype": "uint8",
        "nodata": 0,
        "crs": f"EPSG:{city.epsg}",
        "transform": place(city, number, size),
        "photometric": "RGB",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 4,
        "BIGTIFF": "IF_SAFER",
    }
    with onto_disk(path), rasterio.open(path, "w", **profile) as dataset:
        for picture in render(plan, city, size, seed):
            image, (rows, cols) = picture.image, picture.image.shape[:2]
            if number % WEDGE == 2:
                image[
                    unflown(seed, size)(
                        picture.row + np.arange(rows)[:, None], picture.col + np.arange(cols)
                    )
                ] = 0
            dataset.write(
                image.transpose(2, 0, 1), window=Window(picture.col, picture.row, cols, rows)
            )
    with onto_disk(path):
        refuse_holes(path)
    return plan


def unflown(seed: int, size: int):
    """A test of (rows, columns): do they lie beyond the flown strip, whose edge
    slants across one side?
    """
    rng = np.random.default_rng(seed)
    turn = rng.integers(4) * np.pi / 2 + rng.uniform(-0.25, 0.25)
    reach = rng.uniform(0.36, 0.44) * size  # from the centre to the line
    cos, sin = math.cos(turn), math.sin(turn)
    return lambda row, col: (row - size / 2) * sin + (col - size / 2) * cos > reach


def project(polygons: list[shapely.Polygon], city: DemoCity, transform: Affine) -> np.ndarray:
    """(N,) polygons of a plan in the CRS of the city's labels."""
    onto = transform @ Affine.scale(1 / city.gsd)

    def move(points: np.ndarray) -> np.ndarray:
        x, y = onto @ (points[:, 0], points[:, 1])
        if city.labels_epsg != city.epsg:
            x, y = transform_points(f"EPSG:{city.epsg}", f"EPSG:{city.labels_epsg}", x, y)
        return np.stack([x, y], 1)

    return shapely.transform(np.array(polygons, dtype=object), move)
