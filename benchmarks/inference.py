"""Scene inference / bare forward passes over the same windows: what reading, blending and writing out cost.

    python -m benchmarks.inference [--side 2048] [--encoder resnet18] [--gpu]

--gpu: a U-Net ResNet-34 and a scene of 8192², where there is a GPU.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from benchmarks.ratio import cannot, report
from pipeline.learning.crops import to_float
from pipeline.learning.inference import infer, window_starts
from pipeline.learning.models import build_model
from pipeline.learning.precision import autocast, device
from pipeline.params import Model

WINDOW, OVERLAP, BATCH, ROUNDS = 512, 0.25, 4, 3


@torch.inference_mode()
def forward_passes(model, count: int) -> float:
    """Seconds of `count` windows through the network and its softmax, from one batch in memory."""
    batch = to_float(torch.randint(0, 256, (BATCH, WINDOW, WINDOW, 3), dtype=torch.uint8)).to(device())
    start = time.perf_counter()
    for _ in range(0, count, BATCH):
        with autocast(device()):
            p = model(batch).float().softmax(1)
    p.sum().item()
    return time.perf_counter() - start


def scene(model, image: np.ndarray) -> float:
    start = time.perf_counter()
    for _, p in infer(model, image, window=WINDOW, overlap=OVERLAP, batch_size=BATCH):
        p.argmax(-1)
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    image = np.random.default_rng(0).integers(1, 256, (side, side, 3), np.uint8)
    windows = len(window_starts(side, WINDOW, OVERLAP)) ** 2
    forward_passes(model, BATCH)
    pairs = [(forward_passes(model, windows), scene(model, image)) for _ in range(ROUNDS)]
    bare, whole = (statistics.median(t) for t in zip(*pairs, strict=True))
    speed = side * side / whole / 1e6
    measured = f"U-Net {encoder}, {windows} windows of {WINDOW}²: {bare:.1f} and {whole:.1f} s, {speed:.2f} Mpx/s"
    report(what, statistics.median(a / b for a, b in pairs), 0.95, measured)
