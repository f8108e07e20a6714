"""Scene inference / bare forward passes over the same windows: what reading mapped
tiles and blending cost.

    python -m benchmarks.inference [--side 2048] [--encoder resnet18] [--gpu]

--gpu: a U-Net ResNet-34 and a scene of 8192², where there is a GPU.
"""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.ratio import arguments_of, cannot, medians, report
from pipeline.networks.models import build_model
from pipeline.networks.precision import autocast, device
from pipeline.params import Model
from pipeline.scoring.inference import infer, window_starts
from pipeline.storage import write_json
from pipeline.tiles.store import CityTiles, Region
from pipeline.tiles.tensors import to_float

WINDOW, OVERLAP, BATCH, ROUNDS = 512, 0.25, 4, 3


def write_scene(folder: Path, side: int) -> CityTiles:
    """A city of one scene of noise, as the tile stage leaves it."""
    about = {"city": folder.name, "gsd": 0.5, "size": WINDOW, "channels": 3, "classes": 1}
    region = Region("noise", "noise", "test", side, side, 0, (0.5, 0, 0, 0, -0.5, 0), None)
    folder.mkdir()
    np.save(
        folder / "images.npy", np.random.default_rng(0).integers(1, 256, side * side * 3, np.uint8)
    )
    np.save(folder / "labels.npy", np.zeros(side * side, np.uint8))
    write_json(folder / "regions.json", {**about, "regions": [asdict(region)]})
    return CityTiles(folder)


@torch.inference_mode()
def forward_passes(model, side: int) -> float:
    """Seconds of the scene's windows, in its batches, through the network and
    its softmax, from memory.
    """
    images = to_float(torch.randint(0, 256, (BATCH, WINDOW, WINDOW, 3), dtype=torch.uint8)).to(
        device()
    )
    columns = len(window_starts(side, WINDOW, OVERLAP, model.stride))
    start = time.perf_counter()
    for _ in range(columns):  # as many rows
        for first in range(0, columns, BATCH):
            with autocast(device()):
                p = model(images[: columns - first]).float().softmax(1)
    p.sum().item()
    return time.perf_counter() - start


def scene(model, city: CityTiles) -> float:
    start = time.perf_counter()
    for _, p in infer(
        model, city.image(city.regions[0]), window=WINDOW, overlap=OVERLAP, batch_size=BATCH
    ):
        p.argmax(-1)
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = arguments_of(__doc__)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--side", type=int, help="pixels along the scene's side")
    parser.add_argument("--encoder")
    options = parser.parse_args()
    what = "bare forward passes / scene inference" + ", GPU" * options.gpu
    if options.gpu and not torch.cuda.is_available():
        cannot(what, 0.95, "no GPU")
    side = options.side or (8192 if options.gpu else 2048)
    encoder = options.encoder or ("resnet34" if options.gpu else "resnet18")
    model = build_model(Model(architecture="unet", encoder=encoder), 3)
    model = model.to(device(), memory_format=torch.channels_last).eval()
    windows = len(window_starts(side, WINDOW, OVERLAP, model.stride)) ** 2
    with tempfile.TemporaryDirectory() as folder:
        city = write_scene(Path(folder) / "noise", side)
        forward_passes(model, WINDOW)
        pairs = [(forward_passes(model, side), scene(model, city)) for _ in range(ROUNDS)]
    bare, whole, ratio = medians(pairs)
    speed = side * side / whole / 1e6
    measured = f"U-Net {encoder}, {windows} windows of {WINDOW}²: {bare:.1f} and {whole:.1f} s, {speed:.2f} Mpx/s"
    report(what, ratio, 0.95, measured)
