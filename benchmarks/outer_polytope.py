"""Our Wong–Kolter bounds against convex_adversarial, the authors' own code, on an 8×8 FCN.

The package is a benchmark's oracle, never a dependency: install it in an environment of its own that also holds torch
and this project (`pip install --no-deps convex_adversarial==0.4.4`), then run `python -m benchmarks.outer_polytope`.
It prints the largest difference of the two packages' lower bounds of (true − other) logits, and the time ratio.
"""

import sys
import time

import torch
from torch import nn

from pipeline.learning.small_nets import SmallFCN
from pipeline.robustness.bounds import Bounds, Box
from pipeline.robustness.outer_polytope import outer_polytope_boxes


def main() -> None:
    try:
        from convex_adversarial import DualNetwork
    except ImportError:
        sys.exit("convex_adversarial is not installed here; see the first lines of benchmarks/outer_polytope.py")
    torch.manual_seed(0)
    side, epsilon = 8, 0.05
    net = SmallFCN(3, 2, 4).eval().requires_grad_(False)
    image = torch.rand(1, 3, side, side)

    start = time.perf_counter()
    flat = nn.Sequential(*net, nn.Flatten())
    dual = DualNetwork(flat, image, epsilon)
    outputs = 2 * side * side
    theirs = torch.cat([dual(torch.eye(outputs)[None, i : i + 1]) for i in range(outputs)]).flatten()
    seconds = time.perf_counter() - start

    start = time.perf_counter()
    bounds = Bounds(net)
    ours = outer_polytope_boxes(bounds, Box(image - epsilon, image + epsilon))[bounds.logits].lower.flatten()
    own_seconds = time.perf_counter() - start

    width = (theirs - ours).abs().max() / (net(image).flatten() - theirs).mean()
    print(f"largest difference {(theirs - ours).abs().max():.1e} ({width:.1e} of a bound's mean width)")
    print(f"time, theirs / ours: {seconds / own_seconds:.2f}")


if __name__ == "__main__":
    main()
