"""The convex outer adversarial polytope of Wong and Kolter 2018 ("Provable Defenses against
Adversarial Examples via the Convex Outer Adversarial Polytope", ICML): bounds from the dual of the
linear-programming relaxation, ℓ∞.

Replacing each ReLU by its triangle gives a linear program whose dual has the feasible point of
their theorem 1: a backward network ν that is linear in the objective c, with slope u / (u − l) at
every unstable ReLU,

    J = −Σ_i ν_{i+1}ᵀ b_i − xᵀ ν̂_1 − ε ‖ν̂_1‖₁ + Σ_i Σ_{j unstable} l_ij [ν_ij]₊,

which is a backward linear pass whose lower line is parallel to the chord. Unlike CROWN-IBP, the
bounds l, u of every hidden layer come from the same dual, layer by layer, and not from intervals:
tighter, and dearer.

Two ways to compute J. `outer_polytope_boxes` goes backward, an objective at a time: a proof.
`dual_differences` goes forward, for every objective at once, so that a network can be trained by J:
[ν]₊ = (ν + |ν|) / 2 makes J a linear pass less ½ Σ |l_ij ν_ij| + ε ‖ν̂_1‖₁, one ℓ1 norm of linear
forms. Wong, Schmidt, Metzen and Kolter 2018 ("Scaling provable adversarial defenses", NeurIPS,
section 3.2) estimate it from a few Cauchy projections (Li, Hastie and Church 2007).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.certificates.bounds import Affine, Bounds, Box, ReLU
from pipeline.certificates.crown import linear_lower
from pipeline.errors import InputError


def outer_polytope_boxes(bounds: Bounds, image: Box, *, chunk: int = 32) -> dict:
    """Boxes of the image's, every ReLU's input's and the logits' node, for one
    image's box (1, C, H, W).

    Algorithm 1 of the paper for a network of convolutions and ReLU (the small FCN):
    layer by layer, 2 · channels · receptive field passes each. Neither these bounds
    nor IBP's are always the tighter.
    """
    boxes = bounds.intervals(image)  # exact up to the first ReLU
    dual = [
        i
        for node, rule in bounds.rules.items()
        if isinstance(rule, ReLU)
        for i in node.all_input_nodes
    ]
    for node in [*dual[1:], bounds.logits]:
        boxes[node] = _dual_box(bounds, boxes, node, chunk)
    return {node: boxes[node] for node in [bounds.input, *dual, bounds.logits]}


def _dual_box(bounds: Bounds, boxes: dict, node, chunk: int) -> Box:
    ends = []
    for sign in (1, -1):
        channels = torch.eye(boxes[node].lower.shape[1], dtype=boxes[node].lower.dtype)
        specs = (sign * channels)[:, :, None, None].expand(-1, -1, *boxes[node].lower.shape[2:])
        specs = specs.to(boxes[node].lower.device)
        low = [
            linear_lower(bounds, boxes, node, c, relaxation="parallel", chunk=chunk) for c in specs
        ]
        ends.append(sign * torch.stack(low)[None])
    return Box(*ends)


class Errors(Protocol):
    """Independent errors e_j in [−1, 1], carried through linear layers as forms Σ_j a_j e_j."""

    def enter(self, size: Tensor) -> Tensor:
        """Forms (R, N, …) of fresh errors, one an element, of these sizes (N, …)."""

    def add(self, forms: Tensor, size: Tensor) -> Tensor:
        """The forms and fresh errors of these sizes."""

    def norm(self, forms: Tensor) -> Tensor:
        """Σ_j |a_j| of forms (R, N, …): (N, …)."""


@dataclass(frozen=True)
class Cauchy:
    """Each e_j replaced by `draws` standard Cauchy numbers: Σ_j a_j e_j is then Cauchy of scale Σ_j
    |a_j|, which the median of its absolute value estimates. For training: an estimate is no bound.
    """

    draws: int = 15
    generator: torch.Generator | None = None

    def enter(self, size: Tensor) -> Tensor:
        shape, device = (self.draws, *size.shape), size.device
        uniform = torch.rand(shape, dtype=size.dtype, device=device, generator=self.generator)
        return size * (torch.pi * (uniform - 0.5)).tan()

    def add(self, forms: Tensor, size: Tensor) -> Tensor:
        return forms + self.enter(size)

    def norm(self, forms: Tensor) -> Tensor:
        return forms.abs().median(0).values


def dual_differences(bounds: Bounds, box: Box, errors: Errors) -> Tensor:
    """J (N, K, K, H, W) for the objectives logit k − logit j over a box of images
    (N, C, H, W), differentiable in the network's parameters. Raises InputError on a
    layer that is neither affine nor ReLU.
    """
    centres = {bounds.input: (box.lower + box.upper) / 2}
    forms = {bounds.input: errors.enter((box.upper - box.lower) / 2)}
    for node, rule in bounds.read().items():
        inputs = node.all_input_nodes
        match rule:
            case Affine():
                centres[node] = rule(*(centres[i] for i in inputs))
                forms[node] = _through(rule, *(forms[i] for i in inputs))
            case ReLU():
                centres[node], forms[node] = _triangle(centres[inputs[0]], forms[inputs[0]], errors)
            case _:
                raise InputError(
                    f"certify: the dual has no rule for {node.name}; use convolutions and ReLU"
                )
    centre, form = centres[bounds.logits], forms[bounds.logits]
    radius = errors.norm(form[:, :, :, None] - form[:, :, None])
    return centre[:, :, None] - centre[:, None] - radius


def _through(rule: Affine, *forms: Tensor) -> Tensor:
    out = rule.linear(rule.weight, *(form.flatten(0, 1) for form in forms))
    return out.unflatten(0, forms[0].shape[:2])


def _triangle(centre: Tensor, forms: Tensor, errors: Errors) -> tuple[Tensor, Tensor]:
    """ReLU over [l, u] = centre ± radius: its chord and the parallel through 0 are slope · z −
    slope · l · (½ ± ½).
    """
    radius = errors.norm(forms)
    lower, upper = (centre - radius).clamp_max(0), (centre + radius).clamp_min(0)
    slope = upper / (upper - lower).clamp_min(1e-30)
    half = -slope * lower / 2
    return slope * centre + half, errors.add(slope * forms, half)
