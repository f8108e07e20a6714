"""Perturbed images inside a norm ball: what an attack and adversarial training have in common.

Images are (N, C, H, W) float in [0, 1]; ε is in the same unit (a budget of 4/255 is 0.0157), a
float or (N, 1, 1, 1).
"""

from collections.abc import Callable

import torch

from pipeline.labels import IGNORE

# logits, labels -> (N, H, W), what to maximise
PixelLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def length(vectors: torch.Tensor, norm: str) -> torch.Tensor:
    """The ℓ∞ or ℓ2 norm of each image, (N, 1, 1, 1)."""
    if norm == "linf":
        return vectors.abs().amax((1, 2, 3), keepdim=True)
    return vectors.square().sum((1, 2, 3), keepdim=True).sqrt()


def ball(delta: torch.Tensor, norm: str, epsilon) -> torch.Tensor:
    """The nearest point of the ball of radius ε around 0; of ℓ2, a millionth inside, where
    rounding cannot leave it.
    """
    if norm == "linf":
        return torch.clamp(delta, min=-epsilon, max=epsilon)
    return delta * ((1 - 1e-6) * epsilon / length(delta, norm).clamp_min(1e-12)).clamp_max(1)


def project(
    perturbed: torch.Tensor, images: torch.Tensor, norm: str, epsilon, mask=None
) -> torch.Tensor:
    """The ball of radius ε around `images`, then [0, 1]; where `mask` (N, 1, H, W)
    is false nothing may change.

    Clipping moves every pixel towards its original, so it never leaves the ball again.
    """
    delta = perturbed - images
    if mask is not None:
        delta = delta * mask
    return (images + ball(delta, norm, epsilon)).clamp(0, 1)


def steepest(gradient: torch.Tensor, norm: str) -> torch.Tensor:
    """The direction of norm 1 along which a linear function with this gradient grows fastest."""
    return gradient.sign() if norm == "linf" else gradient / length(gradient, norm).clamp_min(1e-12)


def random_direction(
    images: torch.Tensor, norm: str, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Uniform in the ℓ∞ ball of radius 1, or uniform on the ℓ2 sphere of radius 1.
    The draw is made where the generator lives: one on the CPU means the same
    perturbation whatever device the images are on.
    """
    place = generator.device if generator else images.device
    if norm == "linf":
        draw = torch.rand(images.shape, generator=generator, device=place) * 2 - 1
    else:
        draw = steepest(torch.randn(images.shape, generator=generator, device=place), "l2")
    return draw.to(images)


def valid_mean(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N, H, W) to (N,): the mean over pixels that are not ignored; 0 where none is left."""
    valid = labels != IGNORE
    return torch.where(valid, pixels, 0).sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)


def pixel_gradient(segmenter, images: torch.Tensor, labels: torch.Tensor, loss: PixelLoss):
    """One forward and one backward pass: the gradient (N, C, H, W) of each image's
    loss, the losses (N,) and the logits (N, K, H, W). Weight gradients are not
    computed: autograd is asked for the pixels alone.
    """
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = segmenter(leaf).float()
        losses = valid_mean(loss(logits, labels), labels)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return gradient, losses.detach(), logits.detach()
