"""Side by side with TorchGeo and Raster Vision, each in an environment of its own: how much faster
than the better one?

    python -m venv ~/torchgeo && ~/torchgeo/bin/pip install torchgeo==0.8.1 requests fiona
    python -m venv ~/rastervision && ~/rastervision/bin/pip install rastervision==0.31.1
    export TORCHGEO=~/torchgeo/bin/python RASTERVISION=~/rastervision/bin/python
    python -m benchmarks.peers crops | scene | labels [--side 5000]

crops    random training pairs of image and label, 256², from the same tiled GeoTIFFs; ours come from tiles, and making
         those is said beside
scene    a scene mapped with the same U-Net ResNet-18 weights in the same windows: read, predicted, stitched, written.
         TorchGeo cannot stitch or write: its time is that of reading and forward passes
labels   the mask of one patch from a gzipped cell of a million Open Buildings; Raster Vision reads none

To spare two more gigabytes of torch, and to compare on the very same one, let each see this
project's packages behind its own before pip runs: echo .venv/lib/python3.X/site-packages, as an
absolute path, into a file project.pth in the environment's own site-packages.

All run one after another with the same number of threads and no loader processes. What a peer runs
is in benchmarks/peers/, written as its documentation does; ours may use what it does by itself
(bf16, channels-last).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from benchmarks.ratio import arguments_of, cannot, report

PEERS = {
    "TorchGeo": ("TORCHGEO", "with_torchgeo.py"),
    "Raster Vision": ("RASTERVISION", "with_rastervision.py"),
}
SETTINGS = {
    "crop": 256,
    "batch": 8,
    "count": 400,
    "window": 512,
    "stride": 384,
    "west": 32.595,
    "north": 0.315,
    "resolution": 1e-5,
    "patch": 512,
}
GOAL, SCENES, GSD = 2, 4, 0.5


def write_scene(folder: Path, name: str, side: int, index: int) -> tuple[Path, Path]:
    """An image and its label raster: noisy ground, brighter squares for
    buildings; tiled, not compressed.
    """
    rng, label = np.random.default_rng(index), np.zeros((side, side), np.uint8)
    for top, left in rng.integers(0, side - 40, (side * side // 20_000, 2)):
        label[top : top + 40, left : left + 40] = 1
    image = rng.integers(40, 120, (3, side, side), dtype=np.uint8) + 100 * label
    profile = {
        "driver": "GTiff",
        "height": side,
        "width": side,
        "dtype": "uint8",
        "tiled": True,
        "crs": "EPSG:32633",
        "transform": Affine(GSD, 0, 5e5 + index * side * GSD, 0, -GSD, 5e6),
    }
    paths = folder / "images" / f"{name}.tif", folder / "labels" / f"{name}.tif"
    for path, pixels in zip(paths, (image, label[None]), strict=True):
        path.parent.mkdir(exist_ok=True, parents=True)
        with rasterio.open(path, "w", count=len(pixels), **profile) as file:
            file.write(pixels)
    return paths


def peers(what: str, row: str, folder: Path, names: list[str]) -> dict[str, float]:
    """Seconds of each peer that is installed; ends the benchmark where none is."""
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    found = {}
    for name in names:
        variable, script = PEERS[name]
        if python := os.environ.get(variable):
            command = [python, str(Path(__file__).parent / "peers" / script), row, str(folder)]
            plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            done = subprocess.run(command, env=plain, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"{name} failed, exit code {done.returncode}")
            found[name] = json.loads(done.stdout.splitlines()[-1])["seconds"]
            print(f"{name}: {found[name]:.2f} s", flush=True)
    if not found:
        cannot(
            what,
            GOAL,
            f"{' and '.join(PEERS[name][0] for name in names)} not set, see benchmarks/peers.py",
        )
    return found


def crops(folder: Path, side: int) -> None:
    from torch.utils.data import DataLoader

    from benchmarks.tiling import parameters
    from pipeline.imagery.scene import City, Scene
    from pipeline.stages.tile import tile_city
    from pipeline.tiles.store import CityTiles
    from pipeline.training.crops import RandomCrops

    what = "training crops a second, ours / the best peer"
    scenes = [write_scene(folder, f"scene{i}", side, i) for i in range(SCENES)]
    found = peers(what, "crops", folder, list(PEERS))
    splits = ["train", "train", "validation", "test"]
    town = [
        Scene(image.stem, str(image), str(label), s)
        for (image, label), s in zip(scenes, splits, strict=True)
    ]
    start = time.perf_counter()
    tile_city(parameters(gsd=GSD), City("town", "benchmark", town), folder / "town")
    tiling = time.perf_counter() - start
    pairs, batch = (
        RandomCrops([CityTiles(folder / "town")], SETTINGS["crop"], 0, "none"),
        SETTINGS["batch"],
    )
    loader = iter(DataLoader(pairs, batch, sampler=range(SETTINGS["count"] + batch)))
    next(loader)
    start = time.perf_counter()
    for _ in loader:
        pass
    seconds = time.perf_counter() - start
    rates = {name: SETTINGS["count"] / s for name, s in {"ours": seconds, **found}.items()}
    measured = ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items())
    best = min(found.values())
    report(
        what, best / seconds, GOAL, f"{measured}; tiling the {SCENES} scenes once {tiling:.1f} s"
    )


def teach(segmenter, image: Path, label: Path, steps: int = 40) -> None:
    """A few steps, so that the maps to compare are of something."""
    import torch

    from pipeline.networks.precision import autocast
    from pipeline.training.losses import cross_entropy

    optimiser, random = (
        torch.optim.AdamW(segmenter.train().parameters(), 1e-3),
        np.random.default_rng(0),
    )
    with rasterio.open(image) as pixels, rasterio.open(label) as truth:
        for _ in range(steps):
            places = [Window(*random.integers(0, truth.width - 128, 2), 128, 128) for _ in range(8)]
            images = torch.from_numpy(
                np.stack([pixels.read(window=w) for w in places]) / np.float32(255)
            )
            labels = torch.from_numpy(np.stack([truth.read(1, window=w) for w in places])).long()
            with autocast(images.device):
                loss = cross_entropy(segmenter(images).float(), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    segmenter.eval()


def scene(folder: Path, side: int) -> None:
    import torch
    from safetensors.torch import save_file

    from benchmarks.predict import CARD
    from pipeline.networks.models import build_model, save_model
    from pipeline.params import Model, Predict
    from pipeline.stages.predict import run

    what = "a whole scene mapped, the best peer / ours"
    image, _ = write_scene(folder, "town", side, 0)
    (folder / "scene").mkdir()
    image = image.rename(folder / "scene" / image.name)
    torch.manual_seed(0)
    model = Model(architecture="unet", encoder="resnet18")
    segmenter = build_model(model, 3)
    teach(segmenter, image, folder / "labels" / image.name)
    save_file(segmenter.network.state_dict(), folder / "weights.safetensors")
    save_model(folder / "model", segmenter, {**CARD, "gsd": GSD, "model": model.model_dump()})
    found = peers(what, "scene", folder, list(PEERS))
    settings = Predict(
        window=SETTINGS["window"],
        overlap=1 - SETTINGS["stride"] / SETTINGS["window"],
        polygons="none",
    )
    warm, _ = write_scene(folder / "warm", "warm", 600, 1)
    run(folder / "model", [str(warm)], folder / "maps", settings=settings)
    start = time.perf_counter()
    run(folder / "model", [str(image)], folder / "maps", settings=settings)
    seconds = time.perf_counter() - start
    measured = ", ".join(f"{name} {s:.1f} s" for name, s in {"ours": seconds, **found}.items())
    theirs = (
        next((folder / "rastervision").glob("labels.tif"), None)
        if "Raster Vision" in found
        else None
    )
    if theirs:
        with (
            rasterio.open(theirs) as one,
            rasterio.open(next((folder / "maps").glob("town*.tif"))) as other,
        ):
            one, other = one.read(1), other.read(1)
            measured += (
                f"; {(one == other).mean():.2%} of pixels as Raster Vision's, "
                f"{(other == 1).mean():.1%} building"
            )
    report(
        what,
        min(found.values()) / seconds,
        GOAL,
        f"{side}², {measured}; TorchGeo neither stitches nor writes",
    )


def labels(folder: Path, rows: int) -> None:
    from benchmarks.open_buildings import write_cell
    from pipeline.imagery.grid import Grid
    from pipeline.imagery.rasterize import rasterize
    from pipeline.sources.open_buildings.source import keep_near

    what = "labels of a patch from an Open Buildings cell, the best peer / ours"
    cell = folder / "cells/025_buildings.csv.gz"
    cell.parent.mkdir()
    write_cell(cell, rows)
    ring = [[30, -2], [35, -2], [35, 2], [30, 2], [30, -2]]
    feature = {"type": "Feature", "properties": {"tile_url": f"https://example.org/{cell.name}"},
               "geometry": {"type": "Polygon", "coordinates": [ring]}}  # fmt: skip
    (cell.parent / "tiles.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": [feature]})
    )
    found = peers(what, "labels", folder, ["TorchGeo"])
    west, north, resolution, patch = (
        SETTINGS[key] for key in ("west", "north", "resolution", "patch")
    )
    grid = Grid(patch, patch, Affine(resolution, 0, west, 0, -resolution, north), "EPSG:4326")
    start = time.perf_counter()
    polygons = keep_near(cell, [grid.bounds]).geometry.to_numpy()
    mask = rasterize(polygons, np.ones(len(polygons), np.uint8), grid)
    seconds = time.perf_counter() - start
    same = (np.load(folder / "labels.npy") == (mask > 0)).mean()
    measured = (
        f"TorchGeo {found['TorchGeo']:.1f} s, ours {seconds:.1f} s; {same:.2%} of pixels equal"
    )
    report(what, found["TorchGeo"] / seconds, GOAL, measured)


if __name__ == "__main__":
    parser = arguments_of(__doc__)
    parser.add_argument("row", choices=["crops", "scene", "labels"])
    parser.add_argument("--side", type=int, default=5000, help="pixels along a scene's side")
    parser.add_argument("--rows", type=int, default=1_000_000, help="buildings in the cell")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if options.row == "labels":
            labels(Path(work), options.rows)
        else:
            {"crops": crops, "scene": scene}[options.row](Path(work), options.side)
