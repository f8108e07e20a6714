"""Our Wong–Kolter bounds against convex_adversarial, the authors' own code, on an 8×8 FCN.

The package is a benchmark's oracle, never a dependency: install it in an environment of its own
that also holds torch and this project (`pip install --no-deps convex_adversarial==0.4.4`), then run
`python -m benchmarks.outer_polytope`. It prints how tight our bounds are beside intervals and,
where the package is there, the largest difference of the two packages' lower bounds of the logits,
and the time ratio.
"""

import time

import torch
from torch import nn

from benchmarks.ratio import arguments_of
from pipeline.certificates.bounds import Bounds, Box
from pipeline.certificates.outer_polytope import outer_polytope_boxes
from pipeline.networks.small_nets import SmallFCN


def theirs(net: nn.Module, image: torch.Tensor, epsilon: float) -> torch.Tensor | None:
    """The authors' lower bounds of every logit; None where their package is not installed."""
    try:
        from convex_adversarial import DualNetwork
    except ImportError:
        return None
    dual = DualNetwork(nn.Sequential(*net, nn.Flatten()), image, epsilon)
    outputs = torch.eye(net(image).numel())
    return torch.cat([dual(outputs[None, i : i + 1]) for i in range(len(outputs))]).flatten()


def main() -> None:
    arguments_of(__doc__).parse_args()
    torch.manual_seed(0)
    side, epsilon = 8, 0.05
    net, image = SmallFCN(3, 2, 4).eval().requires_grad_(False), torch.rand(1, 3, side, side)
    start = time.perf_counter()
    other = theirs(net, image, epsilon)
    seconds = time.perf_counter() - start

    start = time.perf_counter()
    bounds, box = Bounds(net), Box(image - epsilon, image + epsilon)
    ours = outer_polytope_boxes(bounds, box)[bounds.logits].lower.flatten()
    own_seconds = time.perf_counter() - start

    ibp, logits = bounds.intervals(box)[bounds.logits].lower.flatten(), net(image).flatten()
    loose, tight = (float((logits - bound).mean()) for bound in (ibp, ours))
    print(
        f"mean width below the logit: IBP {loose:.4f}, outer polytope {tight:.4f}, in "
        f"{own_seconds:.2f} s"
    )
    if other is None:
        print(
            "convex_adversarial is not installed here, so that its column is left out: see this "
            "file's first lines"
        )
        return
    width = (other - ours).abs().max() / (logits - other).mean()
    print(
        f"largest difference {(other - ours).abs().max():.1e} ({width:.1e} of a bound's mean width)"
    )
    print(f"time, theirs / ours: {seconds / own_seconds:.2f}")


if __name__ == "__main__":
    main()
