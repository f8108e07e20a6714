"""An adversarial example one can see, and adversarial training on a task whose
right answer is known.
"""

import torch
from torch import nn

from pipeline.attacks.engine import Target, noise, pgd
from pipeline.course import tint
from pipeline.course.encoders import with_encoder
from pipeline.course.fit import classes, fit, quality
from pipeline.course.lesson import Lesson, board, gallery
from pipeline.course.towns import tiles
from pipeline.params import Adversarial


def adversarial_example(
    steps: int = 80, scenes: int = 4, budget: float = 4, size: int = 256
) -> Lesson:
    """max over ‖δ‖∞ ≤ ε of L(f(x + δ), y), by δ ← clip(δ + α sign ∇L, −ε, ε)
    (Madry et al. 2018).
    """
    torch.manual_seed(0)
    images, labels = tiles("marlstead", range(2, 2 + scenes))
    network = with_encoder("lenet", images)
    fit(network, images, labels, steps, batch=4)
    x, y = tiles("marlstead", [1], size, size)
    target, generator = (
        Target(network, x, y, "linf", budget / 255),
        torch.Generator().manual_seed(0),
    )
    moved = {"noise": noise(target, generator), "attack": pgd(target, 20, generator=generator)}
    numbers = {"IoU, clean": quality(network, x, y)}
    numbers |= {
        f"IoU, {name} of {budget:g}/255": quality(network, image, y)
        for name, image in moved.items()
    }
    numbers["largest change of a pixel, 1/255"] = float(255 * (moved["attack"] - x).abs().max())
    pictures = {
        "image": x[0],
        "attacked": moved["attack"][0],
        "the difference × 20": 0.5 + 20 * (moved["attack"] - x)[0],
        "found in the image": classes(network, x)[0],
        "found in the attacked": classes(network, moved["attack"])[0],
    }
    return Lesson(
        numbers,
        gallery(pictures, {t: {"cmap": "gray"} for t, p in pictures.items() if p.ndim == 2}),
    )


def under_attack(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, budget: float
) -> float:
    """IoU under PGD-20 of budget/255, 0 = clean."""
    if not budget:
        return tint.pooled(network, images, labels)
    target = Target(network, images, labels, "linf", budget / 255)
    return tint.pooled(network, pgd(target, 20, generator=torch.Generator().manual_seed(0)), labels)


def adversarial_training(steps: int = 100, count: int = 16, width: int = 16) -> Lesson:
    """min over w of max over ‖δ‖∞ ≤ ε of L(f_w(x + δ), y): what a small budget
    can turn round is not learned.
    """
    trainings = {
        "standard": Adversarial(),
        "adversarial": Adversarial(method="pgd", epsilon=8, steps=3),
    }
    images, labels = tint.tiles(count, 99)
    budgets, signs = (0, 2, 4, 6, 8), {"as planted": 1, "removed": 0, "turned round": -1}
    figure, (picture, left, right) = board(3)
    picture.imshow(images[0].movedim(0, -1))
    picture.set_axis_off()
    picture.set_title("roofs: brighter, and tinted", fontsize=9)
    numbers = {}
    for shift, (name, config) in enumerate(trainings.items()):
        network = tint.train(config, steps, width=width)
        swapped = [tint.pooled(network, *tint.tiles(count, 99, sign)) for sign in signs.values()]
        attacked = [under_attack(network, images, labels, budget) for budget in budgets]
        numbers |= {f"{name}: IoU, tint {s}": v for s, v in zip(signs, swapped, strict=True)}
        numbers[f"{name}: IoU under PGD of 8/255"] = attacked[-1]
        left.bar([i + 0.4 * shift for i in range(3)], swapped, 0.4, label=name)
        right.plot(budgets, attacked, marker="o", markersize=3, label=name)
    left.set_xticks([0.2, 1.2, 2.2], ["planted", "removed", "turned"], fontsize=7)
    left.set_title("IoU by what the tint says", fontsize=9)
    right.set_title("IoU against ε, 1/255", fontsize=9)
    left.set(ylim=(0, 1.02))
    right.set(ylim=(0, 1.02))
    right.legend(fontsize=7, frameon=False)
    return Lesson(numbers, figure)
