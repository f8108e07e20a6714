"""Adversarial training on a task with a known answer: the planted tint (pipeline/course/tint.py).

    python -m benchmarks.tint [--steps 200] [--tiles 64]

Writes benchmarks/tint.md: the IoU of each training method with the tint as planted, removed and
flipped, under PGD and under the APGD ensemble at equal numbers of gradients, the FGSM − PGD gap,
and the time of a step relative to a clean one.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks.generalize_real import ROOT, table
from benchmarks.ratio import arguments_of
from pipeline.attacks import engine
from pipeline.attacks.worst_case import worst_case
from pipeline.course import tint
from pipeline.params import Adversarial
from pipeline.training.adversarial import adversarial_loss, overfitting_gap
from pipeline.training.losses import cross_entropy

METHODS = {
    "standard": Adversarial(),
    "pgd-3, 8/255": Adversarial(method="pgd", epsilon=8, steps=3),
    "pgd-3, warm-up": Adversarial(method="pgd", epsilon=8, steps=3, warmup=0.3),
    "trades-3, 8/255": Adversarial(method="trades", epsilon=8, steps=3),
    "fast, 8/255": Adversarial(method="fast", epsilon=8),
    "free-3, 8/255": Adversarial(method="free", epsilon=8, steps=3),
}
PIXELS = torch.tensor([800, 200])  # of each class, roughly


def ensemble(model, images, labels, epsilon: float, steps: int) -> float:
    """The exact worst case over the four losses, `steps` gradients each."""
    generator = torch.Generator().manual_seed(0)
    target = engine.Target(model, images, labels, "linf", epsilon)
    found = [
        engine.red_epsilon(target, f, steps, generator=generator)
        for f in engine.sea_losses(PIXELS).values()
    ]
    with torch.no_grad():
        counts = [engine.counts(model(x).argmax(1), labels) for x in found]
    return worst_case([i.numpy() for i, _ in counts], [u.numpy() for _, u in counts])[0]


def step_costs(rounds: int = 15) -> dict[str, float]:
    """The time of a training step relative to a standard one: medians of rounds that visit
    every method in turn.
    """
    seconds = {name: [] for name in METHODS}
    images, labels = tint.tiles(8, 0)
    segmenter = tint.network()
    for _ in range(rounds):
        for name, config in METHODS.items():
            start = time.perf_counter()
            adversarial_loss(segmenter, images, labels, cross_entropy, config, 1.0)[0].backward()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: statistics.median(s) / statistics.median(seconds["standard"])
        for name, s in seconds.items()
    }


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--tiles", type=int, default=64, help="test tiles")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/tint.md")
    arguments = parser.parse_args()
    images, labels = tint.tiles(arguments.tiles, 99)
    rows, costs = [], step_costs()
    for name, config in METHODS.items():
        model = tint.train(config, arguments.steps)
        row = [
            name,
            *(tint.pooled(model, *tint.tiles(arguments.tiles, 99, sign)) for sign in (1, 0, -1)),
        ]
        for epsilon in (4 / 255, 8 / 255):
            target = engine.Target(model, images, labels, "linf", epsilon)
            found = engine.pgd(target, 40, generator=torch.Generator().manual_seed(0))
            row += [tint.pooled(model, found, labels), ensemble(model, images, labels, epsilon, 10)]
        gap = overfitting_gap(model, images, labels, Adversarial(method="pgd", epsilon=8))[
            "overfitting_gap"
        ]
        rows.append([*row, gap, costs[name]])
    columns = ["training", "planted", "removed", "flipped"]
    columns += [f"{name} {budget}/255" for budget in (4, 8) for name in ("PGD-40", "APGD 4×10")]
    weaker = sum(ensemble > pgd for row in rows for pgd, ensemble in (row[4:6], row[6:8]))
    text = (
        "\n\n".join(
            [
                "# Adversarial training on the planted tint",
                f"`python -m benchmarks.tint {' '.join(sys.argv[1:])}`".replace(" `", "`"),
                f"IoU of {arguments.tiles} tiles after {arguments.steps} steps of batch 8; a "
                f"network that "
                f"leans on the tint "
                "falls where it is removed or flipped. PGD on cross-entropy against the APGD "
                "ensemble of "
                "as many gradients.",
                table([*columns, "FGSM−PGD 8/255", "step time / standard"], rows),
                f"The ensemble is no weaker than PGD-CE in {2 * len(rows) - weaker} of "
                f"{2 * len(rows)} "
                f"cases.",
            ]
        )
        + "\n"
    )
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
