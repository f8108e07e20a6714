"""The convex outer adversarial polytope of Wong and Kolter 2018 ("Provable Defenses against Adversarial Examples via
the Convex Outer Adversarial Polytope", ICML): bounds from the dual of the linear-programming relaxation, ℓ∞.

Replacing each ReLU by its triangle gives a linear program whose dual has the feasible point of their theorem
1: a backward network ν that is linear in the objective c, with slope u / (u − l) at every unstable ReLU,

    J = −Σ_i ν_{i+1}ᵀ b_i − xᵀ ν̂_1 − ε ‖ν̂_1‖₁ + Σ_i Σ_{j unstable} l_ij [ν_ij]₊,

which is a backward linear pass whose lower line is parallel to the chord. Unlike CROWN-IBP, the bounds l, u
of every hidden layer come from the same dual, layer by layer, and not from intervals: tighter, and dearer.
"""

import torch

from pipeline.certificates.bounds import Bounds, Box, ReLU
from pipeline.certificates.crown import linear_lower


def outer_polytope_boxes(bounds: Bounds, image: Box, *, chunk: int = 64) -> dict:
    """Boxes of the image's, every ReLU's input's and the logits' node, for one image's box (1, C, H, W).

    Algorithm 1 of the paper for a network of convolutions and ReLU (the small FCN): layer by layer, 2 ·
    channels · receptive field passes each. Neither these bounds nor IBP's are always the tighter.
    """
    boxes = bounds.intervals(image)  # exact up to the first ReLU
    dual = [i for node, rule in bounds.rules.items() if isinstance(rule, ReLU) for i in node.all_input_nodes]
    for node in [*dual[1:], bounds.logits]:
        boxes[node] = _dual_box(bounds, boxes, node, chunk)
    return {node: boxes[node] for node in [bounds.input, *dual, bounds.logits]}


def _dual_box(bounds: Bounds, boxes: dict, node, chunk: int) -> Box:
    ends = []
    for sign in (1, -1):
        channels = torch.eye(boxes[node].lower.shape[1], dtype=boxes[node].lower.dtype)
        specs = (sign * channels)[:, :, None, None].expand(-1, -1, *boxes[node].lower.shape[2:])
        specs = specs.to(boxes[node].lower.device)
        low = [linear_lower(bounds, boxes, node, c, relaxation="parallel", chunk=chunk) for c in specs]
        ends.append(sign * torch.stack(low)[None])
    return Box(*ends)
