"""A class that arrives later: first all classes but the last are labelled, then the last alone
(Cermelli et al. 2020).

What was labelled in the first step is background in the second, and what comes in the second was
background in the first: to go on training says that every old object is none (background shift).

finetune    cross-entropy with the labels as they are
lwf         and a distillation of the old outputs, in which the new class has no place
mib         unbiased cross-entropy and distillation
joint       all classes labelled throughout: the ceiling

All but joint start from the same first step, with the outputs that MiB starts the new class from.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from pipeline.incremental.losses import (
    distillation,
    grow,
    unbiased_cross_entropy,
    unbiased_distillation,
)
from pipeline.incremental.sequence import Crops, fresh, optimise
from pipeline.networks.models import Segmenter
from pipeline.params import Incremental
from pipeline.tiles.store import CityTiles
from pipeline.training.losses import cross_entropy

METHODS = ("finetune", "lwf", "mib", "joint")


def only(labels: Tensor, kinds: list[int]) -> Tensor:
    """Labels (N, H, W) in which all other classes are background; 255 stays."""
    known = torch.isin(labels, torch.tensor([*kinds, 255], device=labels.device))
    return torch.where(known, labels, 0)


def last_layer(network: nn.Module) -> tuple[nn.Module, str]:
    """Where a network's last convolution is, as (parent, name)."""
    name = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)][-1]
    parent, _, own = name.rpartition(".")
    return network.get_submodule(parent), own


def with_one_more(segmenter: Segmenter) -> Segmenter:
    """A copy that also knows a new class."""
    grown = deepcopy(segmenter).requires_grad_(True)
    parent, name = last_layer(grown.network)
    setattr(parent, name, grow(getattr(parent, name), 1))
    grown.classes += 1
    return grown


def class_loss(
    method: str, logits: Tensor, labels: Tensor, taught: Tensor, weight: float
) -> Tensor:
    """Of the second step; `taught` (N, old, H, W) is what the network of the first says."""
    old = taught.shape[1]
    match method:
        case "finetune":
            return cross_entropy(logits, labels)
        case "lwf":
            return cross_entropy(logits, labels) + weight * distillation(
                logits[:, :old], taught, labels
            )
        case "mib":
            seen = unbiased_distillation(logits, taught, labels)
            return unbiased_cross_entropy(logits, labels, old) + weight * seen
    raise AssertionError(method)


def trained(
    method: str,
    first: Segmenter | None,
    cities: list[CityTiles],
    settings: Incremental,
    on: torch.device,
) -> Segmenter:
    """The network of a method, after both steps; `first` is that of the first
    step, None for joint.
    """
    classes, crops = cities[0].classes, Crops(cities, settings, on)
    steps = settings.steps * len(cities)
    if first is None:
        return supervised(cities, list(range(1, classes + 1)), 2 * steps, settings, on)
    segmenter = with_one_more(first)

    def of_step(step: int) -> Tensor:
        images, labels = crops.batch(steps + step)
        with torch.no_grad():
            taught = first(images)
        return class_loss(
            method, segmenter(images), only(labels, [classes]), taught, settings.distillation
        )

    optimise(segmenter, steps, settings.learning_rate, of_step)
    return segmenter


def supervised(
    cities: list[CityTiles], kinds: list[int], steps: int, settings: Incremental, on: torch.device
) -> Segmenter:
    """Trained on labels of some classes; one output each, and background."""
    segmenter, crops = (
        fresh(settings, cities[0].channels, len(kinds)).to(on),
        Crops(cities, settings, on),
    )

    def of_step(step: int) -> Tensor:
        images, labels = crops.batch(step)
        return cross_entropy(segmenter(images), only(labels, kinds))

    optimise(segmenter, steps, settings.learning_rate, of_step)
    return segmenter
