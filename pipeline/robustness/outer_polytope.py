"""The convex outer adversarial polytope of Wong and Kolter 2018 ("Provable Defenses against Adversarial
Examples via the Convex Outer Adversarial Polytope", ICML): bounds from the dual of the linear-programming
relaxation, ℓ∞.

Replacing each ReLU by its triangle gives a linear program whose dual has the feasible point of their theorem
1: a backward network ν that is linear in the objective c, with slope u / (u − l) at every unstable ReLU,

    J = −Σ_i ν_{i+1}ᵀ b_i − xᵀ ν̂_1 − ε ‖ν̂_1‖₁ + Σ_i Σ_{j unstable} l_ij [ν_ij]₊,

which is a backward linear pass whose lower line is parallel to the chord. Unlike CROWN-IBP, the bounds l, u
of every hidden layer come from the same dual, layer by layer, and not from intervals: tighter, and dearer.
"""

import torch

from pipeline.robustness.bounds import Bounds, Box, ReLU


def outer_polytope_boxes(bounds: Bounds, image: Box, *, chunk: int = 64) -> dict:
    """Boxes of every node for one image's box (1, C, H, W); hidden bounds as in algorithm 1, never above
    IBP's.

    A network of convolutions and ReLU (the small FCN); a hidden layer costs 2 · channels · receptive field
    passes.
    """
    boxes = bounds.intervals(image)
    affine = bounds.input
    for node in bounds.nodes[1:]:
        if isinstance(bounds.rules[node], ReLU):
            (affine,) = node.all_input_nodes
            if _first_affine(bounds, affine):  # intervals are exact there
                continue
            boxes[affine] = _dual_box(bounds, boxes, affine, chunk)
            _propagate(bounds, boxes, affine)
    boxes[bounds.logits] = _dual_box(bounds, boxes, bounds.logits, chunk)
    return boxes


def _first_affine(bounds: Bounds, node) -> bool:
    return node.all_input_nodes == [bounds.input]


def _propagate(bounds: Bounds, boxes: dict, after) -> None:
    """Intervals again from `after` on."""
    for node in bounds.nodes[bounds.nodes.index(after) + 1 :]:
        boxes[node] = bounds.rules[node].interval(*(boxes[i] for i in node.all_input_nodes))


def _dual_box(bounds: Bounds, boxes: dict, node, chunk: int) -> Box:
    lower, upper = boxes[node]
    for channel in range(lower.shape[1]):
        spec = torch.zeros_like(lower[0])
        spec[channel] = 1
        low = bounds.linear_lower(boxes, node, spec, relaxation="parallel", chunk=chunk)
        high = -bounds.linear_lower(boxes, node, -spec, relaxation="parallel", chunk=chunk)
        lower[0, channel] = torch.maximum(lower[0, channel], low)
        upper[0, channel] = torch.minimum(upper[0, channel], high)
    return Box(lower, upper)
