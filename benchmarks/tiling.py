"""How fast is tiling? Against rasterio's plain read and numpy's plain write of the
same bytes, in one run.

    python -m benchmarks.tiling            speed, one process each
    python -m benchmarks.tiling --large    memory: a sparse scene of 20,000×20,000

The limit reads whole scenes with rasterio (at another ground sample distance by GDAL's own average)
and saves image and label bytes as .npy; it rasterises nothing, splits nothing, knows no nodata. A
ratio of 1 is its speed.

Milliseconds of CPU for an uncompressed scene of 3000², of which the limit takes 33.
Filled through memory maps: pixels 65, labels 8; tiles counted by sums 16;
footprints drawn 11 (a window). Expected without maps and GDAL's block cache: 20 to
read and write. Measured: read 12, written 6, counted 5, drawn 6.
"""

import contextlib
import io
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from rasterio.enums import Resampling

from benchmarks.ratio import arguments_of, medians, report
from pipeline.console import table
from pipeline.imagery.scene import City, Scene
from pipeline.params import Params, load_params
from pipeline.stages import tile
from pipeline.tiles.store import CityTiles

ROOT = Path(__file__).parents[1]
CORNER = (500_000, 5_000_000)
GOAL = 0.7
PROFILES = {
    "uncompressed": {"tiled": False},
    "deflate": {"tiled": True, "compress": "deflate", "predictor": 2},
    "jpeg": {"tiled": True, "compress": "jpeg", "photometric": "ycbcr", "jpeg_quality": 85},
}


def parameters(**options) -> Params:
    params = load_params(ROOT / "presets/demo.yaml")
    options = {"gsd": 0.3, "size": 256, "workers": 1} | options
    return params.model_copy(update={"tile": params.tile.model_copy(update=options)})


def scene(path: Path, side: int, index: int, profile: dict) -> None:
    """Smooth noise, which compresses about as imagery does."""
    rng = np.random.default_rng(index)
    coarse = (
        rng.integers(0, 256, (3, side // 8, side // 8)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    )
    pixels = coarse // 2 + rng.integers(0, 12, coarse.shape, dtype=np.uint8) + 40
    transform = rasterio.Affine(0.3, 0, CORNER[0] + index * side, 0, -0.3, CORNER[1])
    shape = {"count": 3, "height": side, "width": side, "dtype": "uint8"}
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32633", transform=transform, **shape, **profile
    ) as dataset:
        dataset.write(pixels)


def city(folder: Path, side: int, profile: dict, scenes: int = 3, density: float = 45) -> City:
    """Scenes with footprints: squares of 12 m, `density` a million pixels, which is a suburb's."""
    made, squares, rng = [], [], np.random.default_rng(0)
    buildings = round(density * side**2 / 1e6)
    for index, split in zip(range(scenes), ("train", "validation", "test"), strict=False):
        path = folder / f"scene{index}.tif"
        scene(path, side, index, profile)
        made.append(Scene(path.stem, str(path), str(folder / "buildings.gpkg"), split))
        x, y = rng.uniform(0, 0.3 * side - 12, (2, buildings))
        x, y = x + CORNER[0] + index * side, CORNER[1] - 12 - y
        squares.append(shapely.box(x, y, x + 12, y + 12))
    geopandas.GeoSeries(np.concatenate(squares), crs="EPSG:32633").to_file(
        folder / "buildings.gpkg"
    )
    return City("town", "benchmark", made)


def plain(town: City, out: Path, shape: tuple[int, int]) -> None:
    out.mkdir(exist_ok=True)
    for made in town.scenes:
        with rasterio.open(made.image) as dataset:
            image = dataset.read(out_shape=(dataset.count, *shape), resampling=Resampling.average)
        np.save(out / f"{made.name}.npy", image)
        np.save(out / f"{made.name}.label.npy", np.zeros(shape, np.uint8))


def seconds(action, *arguments) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        action(*arguments)
    return time.perf_counter() - start


def speed(side: int, repeats: int) -> None:
    rows = []
    for name, profile in PROFILES.items():
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            town = city(work, side, profile)
            for gsd in (0.3, 0.5):
                params, pairs = parameters(gsd=gsd), []
                tile.tile_city(params, town, work / f"warm{gsd}" / town.city)
                first = CityTiles(work / f"warm{gsd}" / town.city).regions[0]
                for _ in range(repeats):
                    limit = seconds(plain, town, work / "plain", first.grid.shape)
                    pairs.append(
                        (limit, seconds(tile.tile_city, params, town, work / "tiles/town"))
                    )
                    # else one would overwrite pages and one ask for new ones
                    shutil.rmtree(work / "tiles" / "town")
                    shutil.rmtree(work / "plain")
                limit, ours, ratio = medians(pairs)
                megapixels = len(town.scenes) * side**2 / 1e6
                rows.append(
                    [
                        name,
                        f"0.3 → {gsd}",
                        megapixels / ours,
                        megapixels / limit,
                        ratio,
                        GOAL if gsd == 0.3 else None,
                    ]
                )
    slowest = min((row for row in rows if row[-1]), key=lambda row: row[4])
    measured = f"{slowest[2]:.0f} and {slowest[3]:.0f} Mpx/s, {slowest[0]}"
    table(
        "Tiling, source Mpx/s",
        ["GeoTIFF", "gsd (m)", "tile", "plain read + write", "ratio", "goal"],
        rows,
    )
    report(
        "plain read + write / tiling, the slowest of three compressions", slowest[4], GOAL, measured
    )


def _large(folder: Path, memory: int, workers: int) -> None:
    side = 20_000
    transform = rasterio.Affine(0.3, 0, CORNER[0], 0, -0.3, CORNER[1])
    shape = {
        "count": 3,
        "height": side,
        "width": side,
        "dtype": "uint8",
        "tiled": True,
        "sparse_ok": True,
    }
    path = folder / "wide.tif"
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32633", transform=transform, **shape
    ) as dataset:
        dataset.write(np.full((3, 512, 512), 99, np.uint8), window=((0, 512), (0, 512)))
    corner = geopandas.GeoSeries(
        [shapely.box(CORNER[0], CORNER[1] - 50, CORNER[0] + 50, CORNER[1])], crs="EPSG:32633"
    )
    corner.to_file(folder / "buildings.gpkg")
    town = City(
        "town", "benchmark", [Scene("wide", str(path), str(folder / "buildings.gpkg"), "train")]
    )
    took = seconds(
        lambda: tile.tile_city(parameters(memory=memory, workers=workers), town, folder / "tiles")
    )
    peaks = [
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    rows = [[memory, workers, took, *(f"{peak:.0f}" for peak in peaks), "1000"]]
    table(
        "One scene of 20,000×20,000",
        ["tile.memory", "workers", "s", "parent MB", "largest worker MB", "limit"],
        rows,
    )


def large() -> None:
    """In a fresh process: peak memory is of a process's whole life."""
    for memory, workers in ((512, 1), (512, 2)):
        with tempfile.TemporaryDirectory() as work:
            process = multiprocessing.get_context("spawn").Process(
                target=_large, args=(Path(work), memory, workers)
            )
            process.start()
            process.join()


if __name__ == "__main__":
    parser = arguments_of(__doc__)
    parser.add_argument("--large", action="store_true")
    parser.add_argument(
        "--side", type=int, default=5000, help="pixels along a scene's side; 5000 is Inria's"
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    large() if options.large else speed(options.side, options.repeats)
