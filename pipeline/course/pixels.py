"""Classifiers that see one pixel's colour: a linear SVM by stochastic gradient descent, and a
multilayer perceptron.
"""

import torch
from torch import Tensor, nn

from pipeline import params
from pipeline.course.fit import classes, fit, quality, segmenter
from pipeline.course.lesson import Lesson, board, show
from pipeline.course.towns import tiles
from pipeline.networks.models import build_model
from pipeline.training.losses import hinge

CITY = "brickvale"  # red roofs: a colour says much here


def hinge_gradient(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Subgradient of mean max(0, 1 − y (w·x + b)): −y x and −y where the margin is under 1, else 0
    (Shalev-Shwartz et al. 2007, Pegasos); X (N, D), y (N,) of −1 and 1.
    """
    short = (y * (x @ w + b) < 1) * -y / len(y)
    return short @ x, short.sum()


def perceptron(width: int) -> nn.Sequential:
    """3 → width → width → 2, once a pixel: the same matrices as 1×1 convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, 2, 1),
    )


def svm(steps: int = 400, scenes: int = 4) -> Lesson:
    """w·x + b = 0 between roofs and the rest: min λ/2 ‖w‖² + mean max(0, 1 − y (w·x + b))
    (Cortes and Vapnik 1995).
    """
    torch.manual_seed(0)
    images, labels = tiles(CITY, range(2, 2 + scenes))
    network = build_model(params.Model(architecture="linear"), 3)
    network.set_normalisation(images.mean((0, 2, 3)), images.std((0, 2, 3)))
    fit(
        network,
        images,
        labels,
        steps,
        loss=hinge,
        rate=0.3,
        optimiser=torch.optim.SGD,
        weight_decay=1e-3,
    )
    weight, bias = (network.network.get_parameter(name).detach() for name in ("weight", "bias"))
    # two logits say as much as their difference
    w, b = (weight[1] - weight[0]).flatten(), bias[1] - bias[0]
    return _lesson(
        network, {"w (red, green, blue)": " ".join(f"{v:+.2f}" for v in w), "b": float(b)}
    )


def mlp(steps: int = 400, scenes: int = 4, width: int = 32) -> Lesson:
    """z = W₃ max(0, W₂ max(0, W₁x + b₁) + b₂) + b₃: curved borders in the space
    of colours (Cybenko 1989).
    """
    torch.manual_seed(0)
    images, labels = tiles(CITY, range(2, 2 + scenes))
    network = segmenter(perceptron(width), images)
    fit(network, images, labels, steps)
    return _lesson(network, {"weights": sum(p.numel() for p in network.parameters())})


def _lesson(network: nn.Module, numbers: dict) -> Lesson:
    """What the classifier makes of a scene it has not seen, and of every
    mixture of red and blue.
    """
    images, labels = tiles(CITY, [1], size=256)
    red, blue = torch.meshgrid(torch.linspace(0, 1, 128), torch.linspace(0, 1, 128), indexing="xy")
    plane = torch.stack([red, (red + blue) / 2, blue])
    figure, axes = board(4)
    show(axes[0], "a scene not seen", images[0])
    show(axes[1], "labels", labels[0], cmap="gray")
    show(axes[2], "found", classes(network, images)[0], cmap="gray")
    axes[3].imshow(plane.movedim(0, -1), origin="lower", extent=(0, 1, 0, 1))
    axes[3].contour(red, blue, classes(network, plane[None])[0], [0.5], colors="white")
    axes[3].set(title="red → against blue ↑")
    axes[3].title.set_fontsize(9)
    return Lesson({**numbers, "IoU of a scene not seen": quality(network, images, labels)}, figure)
