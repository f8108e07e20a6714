"""Samples of randomised smoothing a second against bare forward passes of the same
model, batch and number format.

    python -m benchmarks.smoothing [--size 512 --samples 300 --batch 16]

The ratio is what drawing noise and counting votes leave of the network's own speed.
"""

import time

import torch

from benchmarks.ratio import arguments_of, medians, report
from pipeline.certificates.smoothing import votes
from pipeline.networks.models import build_model
from pipeline.networks.precision import autocast, choose, device
from pipeline.params import Model

ROUNDS = 5


def seconds(work, on: torch.device) -> float:
    if on.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if on.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    on = device()
    parser = arguments_of(__doc__)
    parser.add_argument("--size", type=int, default=512 if on.type == "cuda" else 128)
    parser.add_argument("--samples", type=int, default=300 if on.type == "cuda" else 32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tiles", type=int, default=4 if on.type == "cuda" else 1)
    options = parser.parse_args()
    segmenter = (
        build_model(Model(architecture="unet", encoder="resnet18"), 3).eval().requires_grad_(False)
    )
    segmenter = segmenter.to(on, memory_format=torch.channels_last)
    images = torch.rand(options.tiles, 3, options.size, options.size, device=on)
    batch = (
        images[:1].expand(options.batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    )
    passes = options.tiles * -(-options.samples // options.batch)

    @torch.inference_mode()
    def bare():
        for _ in range(passes):
            with autocast(on):
                segmenter(batch)

    def smoothed():
        votes(segmenter, images, 0.25, options.samples, batch_size=options.batch)

    pixels = options.tiles * options.size**2 / 1e6
    bare(), smoothed()
    pairs = [(seconds(bare, on), seconds(smoothed, on)) for _ in range(ROUNDS)]
    rates = [
        (options.samples * pixels / s, passes * options.batch * options.size**2 / 1e6 / b)
        for b, s in pairs
    ]
    rate, bare_rate, ratio = medians(rates)
    print(
        f"{options.tiles} tiles of {options.size}², {options.samples} samples, "
        f"{choose('auto', on)} on {on.type}"
    )
    measured = f"{rate:.1f} and {bare_rate:.1f} Mpx·samples/s"
    report("samples of randomised smoothing / bare forward passes", ratio, 0.9, measured)


if __name__ == "__main__":
    main()
