"""Certified IoU on a fixture with a known answer.

Each 32² tile holds grey noise, equal in all channels, and rectangles of class 1 that are brighter by the contrast of
the tile. Run: python -m benchmarks.certify_fixture [--steps N]. It prints, for the small FCN and U-Net trained by IBP
at 2/255 and for Lipschitz networks of MinMax (GroupSort 2) and of larger groups, the certified, attacked and clean IoU
at each radius.
"""

import argparse
import time

import torch

from pipeline.attacks.engine import Target, pgd
from pipeline.certificates.bounds import Bounds, certified_classes, image_box, interval_margins
from pipeline.certificates.crown import crown_ibp_margins
from pipeline.certificates.interval_training import train_interval, train_margin
from pipeline.certificates.lipschitz import at_radius, certified_iou, collective_iou, lipschitz_radii
from pipeline.console import table
from pipeline.networks.lipschitz import LipschitzNet
from pipeline.networks.models import Segmenter
from pipeline.networks.small_nets import SmallFCN, SmallUNet


def rectangles(count: int, size: int = 32, contrast: float = 0.3, noise: float = 0.02, seed: int = 0):
    """Images (N, 3, S, S) in [0,1] and labels (N, S, S): one to three bright rectangles on grey noise."""
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
        crown = certified_iou(certified_classes(crown_ibp_margins(bounds, box)), labels) if linear else None
        attacked = attacked_iou(segmenter, images, labels, "linf", radius / 255)
        at = f"ℓ∞ {radius:g}/255"
        rows.append([f"{name} ({seconds:.0f} s)", at, ibp, crown, attacked, clean, trained.collapsed])
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", choices=["fcn", "unet", "lipschitz"])
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    if options.only in (None, "fcn"):
        rows += convex("small FCN", SmallFCN(3, 2, 16), options.steps, True)
    if options.only in (None, "unet"):
        rows += convex("small U-Net", SmallUNet(3, 2, 16), options.steps, False)
    if options.only in (None, "lipschitz"):
        for convolution, group in (("orthogonal", 2), ("orthogonal", 4), ("orthogonal", 8), ("aol", 2)):
            rows += lipschitz(options.steps, convolution, group)
    certified = ["IBP / per pixel", "CROWN-IBP / collective"]
    table("IoU on the fixture", ["model", "radius", *certified, "attacked", "clean", "collapsed"], rows)


if __name__ == "__main__":
    main()
