"""Generalisation on cities: learn in each, look in all."""

from collections.abc import Callable

import torch
from torch import nn

from pipeline.course.encoders import with_encoder
from pipeline.course.fit import fit, quality
from pipeline.course.lesson import Lesson, board
from pipeline.course.towns import manifest, tiles
from pipeline.training.losses import build_loss

City = tuple[torch.Tensor, torch.Tensor]  # images (N, 3, S, S), labels (N, S, S)


def matrix(
    learn: Callable[..., nn.Module], training: dict[str, City], unseen: dict[str, City]
) -> torch.Tensor:
    """(trained in, looked at) IoU: on the diagonal new scenes of a known city,
    beside it cities never seen.
    """
    networks = [learn(*city) for city in training.values()]
    return torch.tensor(
        [[quality(network, *city) for city in unseen.values()] for network in networks]
    )


def gap(table: torch.Tensor) -> tuple[float, float]:
    """Mean IoU in the city itself, and in the others."""
    own = torch.eye(len(table), dtype=torch.bool)
    return float(table[own].mean()), float(table[~own].mean())


def cities(steps: int = 50, scenes: int = 3, count: int = 5) -> Lesson:
    """The gap E[IoU | city seen] − E[IoU | city unseen] (stage `generalize` measures it
    properly, with intervals).
    """

    def learn(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
        torch.manual_seed(0)
        network = with_encoder("lenet", images)
        fit(
            network,
            images,
            labels,
            steps,
            loss=build_loss({"cross_entropy": 1, "dice": 1}),
            batch=4,
        )
        return network

    names = list(manifest().cities)[:count]
    training = {name: tiles(name, range(3, 3 + scenes)) for name in names}
    table = matrix(learn, training, {name: tiles(name, [1, 2]) for name in names})
    seen, elsewhere = gap(table)
    figure, (axes,) = board(1, 3.4)
    figure.set_size_inches(4.2, 3.6)
    axes.imshow(table, vmin=0, vmax=1, cmap="Blues")
    for (row, column), value in zip(
        torch.cartesian_prod(*[torch.arange(len(names))] * 2), table.flatten(), strict=True
    ):
        axes.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if value > 0.6 else "black",
        )
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=20)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title("IoU: learned in (row), looked at (column)", fontsize=9)
    return Lesson(
        {"IoU in the city seen": seen, "IoU in cities unseen": elsewhere, "gap": seen - elsewhere},
        figure,
    )
