"""Our attacks against others' code: is there an outsider that finds what they miss?

    pip install --target CROSS --no-deps torchattacks                   no dependency: a folder of its own
    PYTHONPATH=CROSS python -m benchmarks.attack_cross_check            the planted tint
    PYTHONPATH=CROSS python -m benchmarks.attack_cross_check models/all [--cities zanzibar] [--out TABLE.md]

First our PGD against torchattacks' at equal settings, on the tint; it averages the loss over all
pixels of a batch and answers the last iterate, so ours is shown both ways: last and best. Then the
exact worst case over all default attacks, as stage `attack` measures it, against outsiders of as
many gradients and of ten times as many: torchattacks' PGD and MI-FGSM where it is installed, and a
soft-IoU attack that shares no line with ours. "ours × 10" is every default attack ten times as
long. The last column is by how much the best outsider or ourselves, ten times as long, are lower.

IoU under PGD-20, mean of 3 seeds, against torchattacks 3.5.1 on a CPU:

    ε      torchattacks  ours, last  ours, best  last − torchattacks  σ over seeds
    1/255         0.961       0.960       0.960                0.000         0.000
    2/255         0.870       0.868       0.870               −0.002         0.001
    4/255         0.357       0.359       0.357                0.001         0.003
    8/255         0.066       0.066       0.066                0.000         0.002
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.generalize_real import table as markdown
from benchmarks.ratio import arguments_of
from pipeline.attacks import engine
from pipeline.attacks.protocol import Campaign, CityAttack
from pipeline.attacks.worst_case import worst_case
from pipeline.console import progress, table
from pipeline.course import tint
from pipeline.networks.models import read_model
from pipeline.params import Adversarial, Attack
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_tensors

try:
    import torchattacks
except ImportError:  # its columns stay empty
    torchattacks = None

STEPS, TILES = 20, 64
OURS = Attack()
GRADIENTS = 1 + 3 * OURS.steps + 4 * OURS.apgd_steps + OURS.soft_iou_steps


def outsider(
    model, images, labels, epsilon: float, steps: int, weight: float = 0.35
) -> torch.Tensor:
    """A soft-IoU attack in its own words: heavy-ball sign steps on sigmoids of the margins, whose
    absolute temperature falls from 4 to ½; the iterate that misses and invents most counts."""
    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)).to(images)
    x, speed = (images + epsilon * (2 * start - 1)).clamp(0, 1), 0
    best, most = x, torch.full((len(x),), -1.0, device=x.device)
    true, real = labels > 0, labels != 255
    price = (true + weight * ~true) * real
    for t in range(steps + 1):
        x = x.detach().requires_grad_()
        z = model(x).float()
        wrong = torch.where(true, z[:, 0] - z[:, 1], z[:, 1] - z[:, 0])
        lost = (price * (wrong > 0)).sum((1, 2))
        best = torch.where((lost > most)[:, None, None, None], x.detach(), best)
        most = torch.maximum(lost, most)
        if t < steps:
            warmth = max(0.5, 4 * (1 - t / steps))
            (pull,) = torch.autograd.grad((price * torch.sigmoid(wrong / warmth)).sum(), x)
            speed = 0.75 * speed + pull / pull.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-20)
            stride = epsilon * (0.02 + 0.5 + 0.5 * math.cos(math.pi * t / steps))
            x = x.detach() + stride * speed.sign()
            x = torch.minimum(torch.maximum(x, images - epsilon), images + epsilon).clamp(0, 1)
    return best


def theirs(name: str, model, images, labels, epsilon: float, steps: int) -> torch.Tensor:
    torch.manual_seed(0)
    step = 2.5 * epsilon / steps
    attack = getattr(torchattacks, name)(model, eps=epsilon, alpha=step, steps=steps)
    return attack(images, torch.where(labels == 255, -100, labels).long())


def worst_of_ours(model, images, labels, epsilon: float, longer: int) -> float:
    """The exact worst case over the default attacks, each `longer` times as long as it is."""
    names = ("steps", "apgd_steps", "soft_iou_steps")
    settings = OURS.model_copy(update={name: longer * getattr(OURS, name) for name in names})
    pixels = torch.stack([(labels == 0).sum(), (labels == 1).sum()]).cpu()
    city = CityAttack(Campaign(model, model, settings, pixels, []), images, labels, 1.0)
    found = city.every_attack(replace(city.reference, epsilon=epsilon))
    return worst_case(*np.array([city.clean, *(m for _, m in found)]).swapaxes(0, 1))[0]


def against_outsiders(name: str, model, images, labels, epsilon: float) -> list:
    runs = {"soft IoU": outsider}
    for kind in ("PGD", "MIFGSM") if torchattacks else ():
        runs[kind] = lambda *case, kind=kind: theirs(kind, *case)
    case = model, images, labels, epsilon
    ours, long = (worst_of_ours(*case, longer) for longer in (1, 10))
    row = [name, tint.pooled(model, images, labels), ours]
    for kind in OUTSIDERS:
        for steps in (GRADIENTS, 10 * GRADIENTS):
            found = runs[kind](*case, steps) if kind in runs else None
            row.append(None if found is None else tint.pooled(model, found, labels))
    return [*row, long, ours - min(value for value in (*row[2:], long) if value is not None)]


OUTSIDERS = ("soft IoU", "PGD", "MIFGSM")
COLUMNS = [
    "case", "clean", f"ours, {GRADIENTS}",
    *(f"{kind}, {steps}" for kind in OUTSIDERS for steps in (GRADIENTS, 10 * GRADIENTS)),
    "ours × 10", "missed",
]  # fmt: skip


def last(target: engine.Target, generator: torch.Generator) -> torch.Tensor:
    """Our PGD with the last iterate's rank as its score, so that the last is what it returns."""
    turn = iter(range(STEPS + 1))

    def later(logits, labels):
        number = torch.full((len(labels),), float(next(turn)))
        return number, torch.zeros(len(labels), dtype=torch.bool)

    return engine.pgd(
        replace(target, score=later), STEPS, step=target.epsilon / 4, generator=generator
    )


def equal_settings(model, images, labels) -> None:
    """The table of the first lines."""
    rows = []
    for budget in (1, 2, 4, 8):
        epsilon, row = budget / 255, []
        for seed in range(3):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            target = engine.Target(model, images, labels, "linf", epsilon)
            pgd = torchattacks.PGD(
                model, eps=epsilon, alpha=epsilon / 4, steps=STEPS, random_start=True
            )
            best = engine.pgd(
                target, STEPS, step=epsilon / 4, early_stop=False, generator=generator
            )
            found = pgd(images, labels), last(target, generator), best
            row.append([tint.pooled(model, x, labels) for x in found])
        mean = torch.tensor(row).mean(0)
        spread = torch.tensor(row).std(0).max()
        rows.append([f"{budget}/255", *mean.tolist(), float(mean[1] - mean[0]), float(spread)])
    columns = [
        "ε",
        "torchattacks",
        "ours, last",
        "ours, best",
        "last − torchattacks",
        "σ over seeds",
    ]
    table(f"IoU under PGD-{STEPS}, 3 seeds", columns, rows)


def cases(a):
    """(name, model, images, labels, ε): of the model folder each city's test
    crops, or of the tint.
    """
    if a.model is None:
        model, (images, labels) = tint.train(Adversarial(), 200), tint.tiles(a.count, 99)
        for budget in (1, 2, 4):
            yield f"tint {budget}/255", model, images, labels, budget / 255
        return
    model = read_model(a.model).eval()
    for name in a.cities or sorted(p.parent.name for p in a.tiles.glob("*/regions.json")):
        sample = CityTiles(a.tiles / name).sample("test", a.count, a.size, seed=0)
        images, labels = to_tensors(sample, torch.device("cpu"))
        for budget in a.linf:
            yield f"{name} {budget:g}/255", model, images, labels.long(), budget / 255


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument(
        "model", nargs="?", type=Path, help="a model folder; default: a network of the planted tint"
    )
    parser.add_argument("--tiles", type=Path, default=Path("data/tiles"))
    parser.add_argument("--cities", nargs="*", help="default: every city of the tiles folder")
    parser.add_argument("--count", type=int, default=4, help="test crops a city")
    parser.add_argument("--size", type=int, default=64, help="pixels along a crop's side")
    parser.add_argument("--linf", nargs="*", type=float, default=[1], help="budgets in 1/255")
    parser.add_argument("--out", type=Path, help="also write the table as Markdown")
    a = parser.parse_args()
    if torchattacks and a.model is None:
        equal_settings(tint.train(Adversarial(), 200), *tint.tiles(TILES, 99))
    rows = [against_outsiders(*case) for case in progress(list(cases(a)), "outsiders")]
    table(f"IoU under {GRADIENTS} and {10 * GRADIENTS} gradients", COLUMNS, rows)
    print(f"missed by the default attacks, at most {np.max([row[-1] for row in rows]):.3f}")
    if a.out:
        a.out.write_text(f"`python -m benchmarks.attack_cross_check {' '.join(sys.argv[1:])}`\n\n"
                         f"{markdown(COLUMNS, rows)}\n", encoding="utf-8")  # fmt: skip


if __name__ == "__main__":
    main()
