"""Certified IoU on a fixture with a known answer.

Each 32² tile holds grey noise, equal in all channels, and rectangles of class 1 that are brighter
by the contrast of the tile. Run: python -m benchmarks.certify_fixture [--steps N]. It prints, for
the small FCN and U-Net trained by IBP at 2/255 and for Lipschitz networks of MinMax (GroupSort 2)
and of larger groups, the certified, attacked and clean IoU at each radius.

With --only objectives it trains one small FCN three times, each for --seconds: by IBP, by CROWN-IBP
(on a random share of the pixels, IBP on the others: Zhang et al. 2020 mix the two by a weight) and
by Wong and Kolter's dual with Cauchy projections. All are certified by the same bounds.
"""

import time
from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from benchmarks.ratio import arguments_of
from pipeline.attacks.engine import Target, pgd
from pipeline.certificates.bounds import Bounds, Box, certified_classes, image_box, interval_margins
from pipeline.certificates.crown import crown_ibp_margins, linear_lower
from pipeline.certificates.interval_training import OBJECTIVES, train_interval, train_margin
from pipeline.certificates.lipschitz import (
    at_radius,
    certified_iou,
    collective_iou,
    lipschitz_radii,
)
from pipeline.console import table
from pipeline.networks.lipschitz import LipschitzNet
from pipeline.networks.models import Segmenter
from pipeline.networks.small_nets import SmallFCN, SmallUNet

PROBE = 10  # steps that say how long one takes


def rectangles(
    count: int, size: int = 32, contrast: float = 0.3, noise: float = 0.02, seed: int = 0
):
    """Images (N, 3, S, S) in [0,1] and labels (N, S, S): one to three bright
    rectangles on grey noise.
    """
    random = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, size, size, dtype=torch.long)
    for label in labels:
        for _ in range(int(torch.randint(1, 4, (), generator=random))):
            h, w = (int(n) for n in torch.randint(6, 14, (2,), generator=random))
            y, x = (int(torch.randint(0, size - n, (), generator=random)) for n in (h, w))
            label[y : y + h, x : x + w] = 1
    strength = contrast * (1 + 0.2 * torch.randn(count, 1, 1, generator=random))
    grey = 0.4 + noise * torch.randn(count, size, size, generator=random) + strength * labels
    return grey.clamp(0, 1)[:, None].expand(-1, 3, -1, -1).contiguous(), labels


def batches(size: int, **options):
    images, labels = rectangles(512, **options)
    random = torch.Generator().manual_seed(1)
    while True:
        rows = torch.randint(len(images), (size,), generator=random)
        yield images[rows], labels[rows]


def attacked_iou(segmenter, images, labels, norm, epsilon, steps=40):
    target = Target(segmenter, images, labels, norm, epsilon)
    generator = torch.Generator().manual_seed(2)
    return certified_iou(segmenter(pgd(target, steps, generator=generator)).argmax(1), labels)


def convex(name: str, network, steps: int, linear: bool) -> list[list]:
    segmenter = Segmenter(network, 3, 1)
    start = time.perf_counter()
    trained = train_interval(segmenter, batches(16), steps, 2 / 255)
    seconds = time.perf_counter() - start
    images, labels = rectangles(32, seed=9)
    clean = certified_iou(segmenter(images).argmax(1), labels)
    bounds, rows = Bounds(segmenter.network), []
    for radius in (0.5, 1, 2, 4):
        box = image_box(segmenter, images, radius / 255)
        ibp = certified_iou(certified_classes(interval_margins(bounds, box)), labels)
        crown = (
            certified_iou(certified_classes(crown_ibp_margins(bounds, box)), labels)
            if linear
            else None
        )
        attacked = attacked_iou(segmenter, images, labels, "linf", radius / 255)
        at = f"ℓ∞ {radius:g}/255"
        rows.append(
            [f"{name} ({seconds:.0f} s)", at, ibp, crown, attacked, clean, trained.collapsed]
        )
    return rows


def crown_bound(bounds: Bounds, box: Box, *, side: int = 27) -> Tensor:
    """IBP's differences (N, K, K, H, W), and CROWN-IBP's at one pixel in side², all that one
    backward pass bounds.
    """
    start = torch.randint(0, side, (2,)).tolist()
    found = []
    for image in zip(*(ends.split(1) for ends in box), strict=True):
        boxes = bounds.intervals(Box(*image))
        differences = bounds.differences(boxes)[0]
        kinds, _, *shape = differences.shape
        asked = torch.zeros(shape, dtype=torch.bool)
        asked[start[0] % shape[0] :: side, start[1] % shape[1] :: side] = True
        rows = []
        for k in range(kinds):
            for j in range(kinds):
                spec = (torch.eye(kinds)[k] - torch.eye(kinds)[j])[:, None, None].expand(-1, *shape)
                better = (
                    linear_lower(bounds, boxes, bounds.logits, spec, where=asked)
                    if k != j
                    else differences[k, j]
                )
                rows.append(torch.where(asked, better, differences[k, j]))
        found.append(torch.stack(rows).unflatten(0, (kinds, kinds)))
    return torch.stack(found)


def timed(bound: Callable, seconds: float) -> tuple[Segmenter, int]:
    """A small FCN trained by a bound for about so long, at 2/255, and its steps."""

    def train(steps: int) -> Segmenter:
        torch.manual_seed(0)
        segmenter = Segmenter(SmallFCN(3, 2, 16), 3, 1)
        train_interval(segmenter, islice(batches(16), steps), steps, 2 / 255, bound=bound)
        return segmenter

    start = time.process_time()
    train(PROBE)  # 8 of its steps are at ε > 0, as 8 in 10 of the whole training's
    steps = round(PROBE * seconds / (time.process_time() - start))
    return train(steps), steps


def objectives(seconds: float) -> list[list]:
    """Rows by training bound and radius: steps, IoU certified by IBP, by
    CROWN-IBP, attacked, clean.
    """
    images, labels = rectangles(32, seed=9)
    bounds_by = {
        "IBP": OBJECTIVES["ibp"],
        "CROWN-IBP": crown_bound,
        "dual, Cauchy": OBJECTIVES["dual"],
    }
    rows = []
    for name, bound in bounds_by.items():
        segmenter, steps = timed(bound, seconds)
        bounds, clean = (
            Bounds(segmenter.network),
            certified_iou(segmenter(images).argmax(1), labels),
        )
        for radius in (0.5, 1, 2, 4):
            box = image_box(segmenter, images, radius / 255)
            ibp = certified_iou(certified_classes(interval_margins(bounds, box)), labels)
            crown = certified_iou(certified_classes(crown_ibp_margins(bounds, box)), labels)
            attacked = attacked_iou(segmenter, images, labels, "linf", radius / 255)
            rows.append([name, steps, f"ℓ∞ {radius:g}/255", ibp, crown, attacked, clean])
    return rows


def lipschitz(steps: int, convolution: str, group: int) -> list[list]:
    segmenter = Segmenter(LipschitzNet(3, 2, 16, convolution, group), 3, 1)
    start = time.perf_counter()
    trained = train_margin(segmenter, batches(8), steps, 0.1)
    seconds = time.perf_counter() - start
    images, labels = rectangles(32, seed=9)
    logits, rows = segmenter(images), []
    radius, prediction = lipschitz_radii(logits), logits.argmax(1)
    clean = certified_iou(prediction, labels)
    for epsilon in (0.1, 0.3, 1.0):
        single = certified_iou(at_radius(prediction, radius, epsilon), labels)
        together = collective_iou(radius, prediction, labels, epsilon)
        attacked = attacked_iou(segmenter, images, labels, "l2", epsilon)
        name = f"{convolution} {group} ({seconds:.0f} s)"
        rows.append([name, f"ℓ2 {epsilon:g}", single, together, attacked, clean, trained.collapsed])
    return rows


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", choices=["fcn", "unet", "lipschitz", "objectives"])
    parser.add_argument(
        "--seconds", type=float, default=60, help="of a processor, that each objective trains for"
    )
    options = parser.parse_args()
    if options.only == "objectives":
        columns = [
            "trained by",
            "steps",
            "radius",
            "certified, IBP",
            "certified, CROWN-IBP",
            "attacked",
            "clean",
        ]
        return table(
            f"IoU after {options.seconds:g} s of training each",
            columns,
            objectives(options.seconds),
        )
    torch.manual_seed(0)
    rows = []
    if options.only in (None, "fcn"):
        rows += convex("small FCN", SmallFCN(3, 2, 16), options.steps, True)
    if options.only in (None, "unet"):
        rows += convex("small U-Net", SmallUNet(3, 2, 16), options.steps, False)
    if options.only in (None, "lipschitz"):
        for convolution, group in (
            ("orthogonal", 2),
            ("orthogonal", 4),
            ("orthogonal", 8),
            ("aol", 2),
        ):
            rows += lipschitz(options.steps, convolution, group)
    certified = ["IBP / per pixel", "CROWN-IBP / collective"]
    table(
        "IoU on the fixture",
        ["model", "radius", *certified, "attacked", "clean", "collapsed"],
        rows,
    )


if __name__ == "__main__":
    main()
