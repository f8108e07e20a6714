"""The convex outer polytope: what a ball of images can become, and what is
proven that it cannot.
"""

import math

import torch
from torch import Tensor, nn

from pipeline.certificates.bounds import Bounds, Box
from pipeline.certificates.crown import linear_lower
from pipeline.certificates.outer_polytope import outer_polytope_boxes
from pipeline.course.lesson import Lesson, board


def directions(count: int) -> Tensor:
    """(count, 2) unit vectors, all round."""
    angle = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    return torch.stack([angle.cos(), angle.sin()], 1)


def perceptron(width: int) -> nn.Sequential:
    """Two numbers to two logits by two hidden layers of ReLUs, written as an image of one
    pixel: (N, 2, 1, 1).
    """
    return nn.Sequential(
        nn.Conv2d(2, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, 2, 1),
    )


def support(bounds: Bounds, image: Box, c: Tensor) -> Tensor:
    """(D,) lower bounds of c·z over the box of one image (1, C, 1, 1), z its two logits, c (D, 2).

    Each is the dual of the linear program in which every ReLU is its triangle 0 ≤ y, x ≤ y, y ≤ u
    (x − l) / (u − l) (Wong and Kolter 2018, theorem 1); all together they cut the outer polytope
    out of the plane.
    """
    boxes = bounds.intervals(image) | outer_polytope_boxes(bounds, image)
    return torch.cat([
        linear_lower(bounds, boxes, bounds.logits, direction.view(2, 1, 1), relaxation="parallel")[0] for direction in c
    ])  # fmt: skip


def corners(c: Tensor, low: Tensor) -> Tensor:
    """(V, 2) corners, in order, of {z: c·z ≥ low}, for directions (D, 2) all round: where two cuts
    meet and no other leaves the point out.
    """
    i, j = torch.triu_indices(len(c), len(c), 1)
    pairs = torch.stack([c[i], c[j]], 1)
    sound = torch.linalg.det(pairs).abs() > 1e-6
    points = torch.linalg.solve(pairs[sound], torch.stack([low[i], low[j]], 1)[sound])
    kept = points[((points @ c.T) >= low - 1e-9).all(1)]
    around = kept - kept.mean(0)
    return kept[torch.atan2(around[:, 1], around[:, 0]).argsort()]


def area(points: Tensor) -> float:
    """Of a polygon (V, 2), by the shoelace formula."""
    x, y = points.T
    return float((x * y.roll(-1) - y * x.roll(-1)).sum().abs() / 2)


def reached(network: nn.Module, image: Box, count: int) -> Tensor:
    """(count, 2) logits of inputs drawn evenly from the box of one image (1, 2, 1, 1)."""
    spread = torch.rand(count, *image.lower.shape[1:], dtype=image.lower.dtype)
    with torch.no_grad():
        return network(image.lower + spread * (image.upper - image.lower)).flatten(1)


def polytope(width: int = 20, epsilon: float = 0.15, count: int = 4000, cuts: int = 48) -> Lesson:
    """Two logits of a small network of ReLUs: sampled, boxed by intervals, and cut by the dual
    in many directions.
    """
    torch.manual_seed(3)
    network = perceptron(width).double().eval().requires_grad_(False)
    for weight in network.parameters():
        if weight.dim() > 1:
            nn.init.kaiming_normal_(weight)
    x = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    image, bounds = Box(x - epsilon, x + epsilon), Bounds(network)
    points, c = reached(network, image, count), directions(cuts)
    cut = support(bounds, image, c)
    outer = corners(c, cut)
    low, high = (end.flatten() for end in bounds.intervals(image)[bounds.logits])
    box = torch.stack([low, torch.stack([high[0], low[1]]), high, torch.stack([low[0], high[1]])])
    figure, (axes,) = board(1)
    figure.set_size_inches(4.2, 3.4)
    axes.plot(points[:, 0], points[:, 1], ".", markersize=1, color="#8A8A8A", label="reached")
    for shape, name, colour in (
        (outer, "outer polytope", "#009E73"),
        (box, "intervals", "#E69F00"),
    ):
        axes.plot(*torch.cat([shape, shape[:1]]).T, color=colour, label=name)
    axes.set_title("two logits over the ball", fontsize=9)
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    numbers = {
        "inputs drawn from the ball": count,
        "of these outside the polytope": int((points @ c.T < cut).any(1).sum()),
        "area of the polytope": area(outer),
        "area of the intervals' box": area(box),
    }
    return Lesson(numbers, figure)
