"""An IBP training step / forward + backward of the same network: what carrying an interval costs.

    python -m benchmarks.ibp_step [--size 64] [--batch 8]

An interval is a centre and a radius, each sent through every layer, so its step
costs two plain ones, and the plain logits of the mixed loss a third: 1/3 is the
limit, and the worst logits and balanced losses come on top. Steps are those of a
whole schedule, of which the first fifth carries no interval.
"""

import time

import torch

from benchmarks.ratio import arguments_of, medians, report
from pipeline.certificates.interval_training import train_interval
from pipeline.networks.models import build_model
from pipeline.networks.precision import device
from pipeline.params import Model
from pipeline.training.losses import cross_entropy

STEPS, ROUNDS, EPSILON = 20, 5, 2 / 255


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    on = device()
    segmenter = build_model(Model(architecture="small_unet", width=16), 3).to(on)
    images = torch.rand(options.batch, 3, options.size, options.size, device=on)
    labels = torch.randint(0, 2, (options.batch, options.size, options.size), device=on)

    def batches():
        while True:
            yield images, labels

    def interval() -> float:
        segmenter.requires_grad_(True)
        start = time.perf_counter()
        train_interval(segmenter, batches(), STEPS, EPSILON)
        return time.perf_counter() - start

    def plain() -> float:
        segmenter.requires_grad_(True).train()
        optimiser = torch.optim.Adam(segmenter.parameters(), 1e-3)
        start = time.perf_counter()
        for _ in range(STEPS):
            optimiser.zero_grad()
            cross_entropy(segmenter(images), labels).backward()
            optimiser.step()
        return time.perf_counter() - start

    plain(), interval()
    pairs = [(plain(), interval()) for _ in range(ROUNDS)]
    bare, whole, ratio = medians(pairs)
    a_step = f"{1000 / STEPS * bare:.0f} and {1000 / STEPS * whole:.0f} ms"
    measured = f"{a_step}, {options.batch} × {options.size}², a small U-Net"
    report("forward + backward / IBP step", ratio, 0.2, measured)


if __name__ == "__main__":
    main()
