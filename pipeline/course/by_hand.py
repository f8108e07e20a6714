"""Gradients by hand against autograd: least squares, then a network of one hidden layer."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.course.lesson import Lesson, board, curves
from pipeline.course.towns import scene


def squares_gradient(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """∇L(w) = Xᵀ(Xw − y) / N of L(w) = ‖Xw − y‖² / 2N (Gauss 1809); X (N, D), y (N,), w (D,)."""
    return x.T @ (x @ w - y) / len(y)


def solve(x: Tensor, y: Tensor) -> Tensor:
    """The normal equations, where that gradient is zero: XᵀX w = Xᵀy."""
    return torch.linalg.solve(x.T @ x, x.T @ y)


def shadows(count: int, elevation: float) -> tuple[Tensor, Tensor]:
    """Heights of buildings beside a constant 1 (N, 2) and their shadows' lengths (N,), metres,
    measured with noise.
    """
    height = 3 + 9 * torch.rand(count, dtype=torch.float64)
    length = height / math.tan(math.radians(elevation)) + 0.4 * torch.randn(
        count, dtype=torch.float64
    )
    return torch.stack([height, torch.ones_like(height)], 1), length


def least_squares(count: int = 200, steps: int = 300, rate: float = 0.03) -> Lesson:
    """How high does the sun stand? From shadows = height / tan(elevation), by
    descent along the gradient.
    """
    torch.manual_seed(0)
    x, y = shadows(count, elevation=49)
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    losses, apart = [], 0.0
    for _ in range(steps):
        loss = (x @ w - y).square().mean() / 2
        (automatic,) = torch.autograd.grad(loss, w)
        by_hand = squares_gradient(x, y, w.detach())
        apart = max(apart, float((automatic - by_hand).abs().max()))
        losses.append(loss.item())
        w = (w.detach() - rate * by_hand).requires_grad_()
    best = solve(x, y)
    figure, (left, right) = board(2)
    left.plot(x[:, 0], y, ".", markersize=3, color="#8A8A8A")
    ends = torch.tensor([[3.0, 1], [12, 1]], dtype=torch.float64)
    left.plot(ends[:, 0], ends @ best, color="#D55E00")
    left.set_title("shadow against height, m", fontsize=9)
    curves(right, "loss by gradient descent", {"‖Xw − y‖² / 2N": losses}, "step", yscale="log")
    numbers = {
        "gradient by hand − autograd, largest": apart,
        "sun's elevation, planted": 49.0,
        "sun's elevation, normal equations": math.degrees(math.atan(1 / best[0])),
        f"sun's elevation, {steps} steps of descent": math.degrees(math.atan(1 / w[0].item())),
    }
    return Lesson(numbers, figure)


def forward(x: Tensor, y: Tensor, weights: list[Tensor]) -> tuple[Tensor, tuple]:
    """L = −mean log softmax(z)_y, z = h W₂ + b₂, h = max(0, a), a = x W₁ + b₁; and what
    `backward` needs.
    """
    w1, b1, w2, b2 = weights
    a = x @ w1 + b1
    h = a.clamp_min(0)
    log_p = (h @ w2 + b2).log_softmax(1)
    return -log_p[torch.arange(len(y)), y].mean(), (a, h, log_p)


def backward(x: Tensor, y: Tensor, weights: list[Tensor], kept: tuple) -> list[Tensor]:
    """The chain rule from the loss back (Rumelhart, Hinton, Williams 1986):

    ∂z = (softmax(z) − onehot(y)) / N,  ∂W₂ = hᵀ ∂z,  ∂a = (∂z W₂ᵀ) · 1[a > 0],  ∂W₁ = xᵀ ∂a.
    """
    a, h, log_p = kept
    z = (log_p.exp() - F.one_hot(y, log_p.shape[1])) / len(y)
    a = (z @ weights[2].T) * (a > 0)
    return [x.T @ a, a.sum(0), h.T @ z, z.sum(0)]


def backpropagation(
    width: int = 16, steps: int = 300, size: int = 128, rate: float = 1.0
) -> Lesson:
    """A pixel's colour to its class, trained by the gradients by hand, autograd looking on."""
    torch.manual_seed(0)
    image, labels = scene("tinroof", 1, size)
    x, y = image.flatten(1).T.double(), labels.flatten()
    x = (x - x.mean(0)) / x.std(0)
    shapes = (3, width), (width,), (width, 2), (2,)
    weights = [torch.randn(shape, dtype=torch.float64) / shape[0] ** 0.5 for shape in shapes]
    losses, apart = [], 0.0
    for _ in range(steps):
        leaves = [w.requires_grad_() for w in weights]
        loss, kept = forward(x, y, leaves)
        loss.backward()
        with torch.no_grad():
            by_hand = backward(x, y, leaves, kept)
            apart = max(
                apart,
                *(float((g - w.grad).abs().max()) for g, w in zip(by_hand, leaves, strict=True)),
            )
            weights = [w.detach() - rate * g for w, g in zip(leaves, by_hand, strict=True)]
        losses.append(loss.item())
    figure, (left, right) = board(2)
    for name, g, w in zip(("W₁", "b₁", "W₂", "b₂"), by_hand, leaves, strict=True):
        left.plot(w.grad.flatten(), g.flatten(), ".", label=name)
    left.axline((0, 0), slope=1, linewidth=0.7, color="#8A8A8A")
    left.set_title("gradient by hand against autograd", fontsize=9)
    left.legend(fontsize=7, frameon=False)
    curves(right, "descent along it", {"cross-entropy": losses}, "step")
    numbers = {
        "weights": sum(w.numel() for w in weights),
        "gradient by hand − loss.backward(), largest": apart,
        "loss, first and last": f"{losses[0]:.3f} → {losses[-1]:.3f}",
    }
    return Lesson(numbers, figure)
