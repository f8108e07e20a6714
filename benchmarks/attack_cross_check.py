"""An independent cross-check: our PGD against torchattacks' on the planted tint, equal settings.

torchattacks is no dependency; it goes into a folder of its own:

    pip install --target CROSS --no-deps torchattacks
    PYTHONPATH=CROSS python -m benchmarks.attack_cross_check

Same network, tiles, ε, step and number of steps, random starts of each library's own; torchattacks averages
the loss over all pixels of a batch and answers the last iterate, so ours is shown both ways: last and best.

IoU under PGD-20, mean of 3 seeds, against torchattacks 3.5.1 on a CPU:

    ε      torchattacks  ours, last  ours, best  last − torchattacks  σ over seeds
    1/255         0.961       0.960       0.960                0.000         0.000
    2/255         0.870       0.868       0.870               −0.002         0.001
    4/255         0.357       0.359       0.357                0.001         0.003
    8/255         0.066       0.066       0.066                0.000         0.002
"""

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "robustness"), str(Path(__file__).parents[1])]
import tint  # noqa: E402

from pipeline.console import table  # noqa: E402
from pipeline.params import Adversarial  # noqa: E402
from pipeline.robustness import attack_losses, attacks  # noqa: E402

STEPS, TILES = 20, 64


def last(target: attacks.Target, generator: torch.Generator) -> torch.Tensor:
    """Our PGD with the last iterate's rank as its score, so that the last is what it returns."""
    turn = iter(range(STEPS + 1))

    def later(logits, labels):
        number = torch.full((len(labels),), float(next(turn)))
        return number, torch.zeros(len(labels), dtype=torch.bool)

    from dataclasses import replace

    return attacks.pgd(
        replace(target, score=later), STEPS, step=target.epsilon / 4, loss=attack_losses.cross_entropy,
        generator=generator,
    )  # fmt: skip


def main() -> None:
    import torchattacks

    model = tint.train(Adversarial(), 200)
    images, labels = tint.tiles(TILES, 99)
    rows = []
    for budget in (1, 2, 4, 8):
        epsilon, row = budget / 255, []
        for seed in range(3):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            target = attacks.Target(model, images, labels, "linf", epsilon)
            theirs = torchattacks.PGD(model, eps=epsilon, alpha=epsilon / 4, steps=STEPS, random_start=True)
            best = attacks.pgd(target, STEPS, step=epsilon / 4, early_stop=False, generator=generator)
            found = theirs(images, labels), last(target, generator), best
            row.append([tint.pooled(model, x, labels) for x in found])
        mean = torch.tensor(row).mean(0)
        spread = torch.tensor(row).std(0).max()
        rows.append([f"{budget}/255", *mean.tolist(), float(mean[1] - mean[0]), float(spread)])
    columns = ["ε", "torchattacks", "ours, last", "ours, best", "last − torchattacks", "σ over seeds"]
    table(f"IoU under PGD-{STEPS}, 3 seeds", columns, rows)


if __name__ == "__main__":
    main()
