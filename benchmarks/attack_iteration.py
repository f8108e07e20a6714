"""The time of an attack iteration relative to one forward and backward pass: what
the engine costs by itself.

    python -m benchmarks.attack_iteration [--size 256] [--batch 16] [--model models/all]

Measured in one run, interleaved; the table shows medians of `--rounds` as attack / passes, the
ratio is its inverse for PGD, whose goal of at most 1.1 passes an iteration was set on a GPU. Also
the IoU that PGD reaches in bfloat16 and in float32, both measured in float32, where a model folder
and tiles are given.
"""

import statistics
import time
from pathlib import Path

import torch

from benchmarks.ratio import arguments_of, report
from pipeline import params
from pipeline.attacks import engine
from pipeline.attacks import losses as attack_losses
from pipeline.console import table
from pipeline.networks.models import build_model, read_model
from pipeline.networks.precision import autocast, device
from pipeline.training.perturb import pixel_gradient


def seconds(run) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--model", type=Path, help="a model folder; default: an untrained U-Net ResNet-18"
    )
    parser.add_argument(
        "--tiles", type=Path, help="a tiles folder: compare precisions on its cities"
    )
    a = parser.parse_args()
    on = device()
    segmenter = (
        read_model(a.model, on) if a.model else build_model(params.Model(architecture="unet"), 3)
    )
    segmenter = segmenter.eval().requires_grad_(False).to(on, memory_format=torch.channels_last)
    images = torch.rand(a.batch, 3, a.size, a.size).to(on, memory_format=torch.channels_last)
    labels = torch.randint(0, 2, (a.batch, a.size, a.size), device=on)
    target = engine.Target(segmenter, images, labels, "linf", 1 / 255)
    losses = engine.sea_losses(torch.tensor([800, 200]))

    def passes() -> None:
        for _ in range(a.steps):
            pixel_gradient(segmenter, images, labels, attack_losses.cross_entropy)

    runs = {
        "PGD": lambda: engine.pgd(target, a.steps, early_stop=False),
        "PGD, early stop": lambda: engine.pgd(target, a.steps),
        "SegPGD": lambda: engine.segpgd(target, a.steps, early_stop=False),
        "APGD, MCE": lambda: engine.apgd(target, losses["mce"], a.steps, images),
    }
    rows = []
    for precision in ("fp32", "bf16"):
        with autocast(on, precision):
            passes()  # warm-up
            ratios = {name: [] for name in runs}
            for _ in range(a.rounds):
                base = seconds(passes)
                for name, run in runs.items():
                    ratios[name].append(seconds(run) / base)
        rows.append([precision, *(statistics.median(r) for r in ratios.values())])
    title = (
        f"{a.steps} iterations (and the last look) / {a.steps} forward + backward passes, {on.type}"
    )
    table(f"{title}, {a.batch} × {a.size}²", ["precision", *runs], rows)
    slowest = max(row[1] for row in rows)
    measured = f"{a.steps} iterations, the slower of fp32 and bf16, {a.batch} × {a.size}²"
    report("forward + backward / PGD iteration", 1 / slowest, 0.9, measured)
    if a.tiles:
        compare_precisions(segmenter, a.tiles, a.steps)


def compare_precisions(segmenter, folder: Path, steps: int) -> None:
    from pipeline.attacks.worst_case import pooled_iou
    from pipeline.tiles.store import CityTiles
    from pipeline.tiles.tensors import to_tensors

    on, rows = device(), []
    for path in sorted(folder.glob("*/regions.json")):
        images, labels = to_tensors(CityTiles(path.parent).sample("test", 4), on)
        for budget in (0.5, 1, 2):
            target, row = engine.Target(segmenter, images, labels, "linf", budget / 255), []
            for precision in ("fp32", "bf16"):
                with autocast(on, precision):
                    found = engine.pgd(target, steps, generator=torch.Generator().manual_seed(0))
                with torch.no_grad():
                    counts = engine.counts(segmenter(found).argmax(1), labels)
                row.append(pooled_iou(*(c.cpu().numpy() for c in counts)))
            rows.append([f"{path.parent.name} {budget:g}/255", *row, row[1] - row[0]])
    table(
        f"IoU under PGD-{steps}, measured in float32",
        ["city, ε", "fp32", "bf16", "difference"],
        rows,
    )


if __name__ == "__main__":
    main()
