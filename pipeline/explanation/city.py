"""What the map rests on in one city: its IoU without each cue, and what speaks
for its buildings.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from pipeline import params
from pipeline.attacks.patch import receptive_radius
from pipeline.explanation.attribution import BATCH, Building, explain
from pipeline.explanation.cues import CUES, roofs, taken
from pipeline.networks.decision import leading
from pipeline.scoring.metrics import buildings as counted
from pipeline.scoring.metrics import counts

LOOKED_AT = 2  # tiles that the receptive field is measured on
Record = tuple[str, object, dict[str, np.ndarray]]  # a measurement's name, numbers (JSON), pictures


def explain_city(
    segmenter: nn.Module, images: np.ndarray, labels: np.ndarray, e: params.Explain
) -> Iterator[Record]:
    """Every measurement, one at a time: a city's tiles, images (N, H, W, C) float32 in [0, 1] and
    labels (N, H, W) uint8, under a segmenter that answers with its deployed logits."""
    clean, shown = drawn(segmenter, images), fullest(labels)
    as_it_is = {"label": labels[shown], "image": images[shown], "map": clean[shown]}
    yield (
        "clean",
        {"counts": tallies(clean, labels), "buildings": int(counted(labels).sum())},
        as_it_is,
    )
    for name in CUES:
        if (without := taken(name, images, labels, e.seed)) is None:
            yield name, None, {}
            continue
        changed, judged = without
        found = drawn(segmenter, changed)
        pair = {"before": tallies(clean, judged), "after": tallies(found, judged)}
        pair["buildings"] = int(counted(judged).sum())  # pixels
        views = {"": changed, "map ": found, "label ": judged}
        yield name, pair, {f"{view}without {name}": of[shown] for view, of in views.items()}
    yield "receptive", receptive_radius(segmenter, tensor(segmenter, images[:LOOKED_AT])), {}
    for number, building in enumerate(buildings(segmenter, images, labels, clean, e.buildings)):
        found = explain(segmenter, building, e.steps, e.square, e.seed)
        pictures = {
            "explained": building.image.numpy(force=True).transpose(1, 2, 0),
            "building": building.mask.numpy(force=True),
            "gradients": found["gradients"],
        }
        yield f"building {number}", found["numbers"], pictures if number == 0 else {}


def tensor(segmenter: nn.Module, images: np.ndarray) -> torch.Tensor:
    """Images (N, H, W, C) as the network takes them, (N, C, H, W)."""
    moved = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return moved.to(next(segmenter.buffers()).device, memory_format=torch.channels_last)


@torch.no_grad()
def drawn(segmenter: nn.Module, images: np.ndarray) -> np.ndarray:
    """The map (N, H, W) uint8 of images (N, H, W, C)."""
    parts = tensor(segmenter, images).split(BATCH)
    return torch.cat([leading(segmenter(part)) for part in parts]).cpu().numpy().astype(np.uint8)


def tallies(classes: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """[intersections, unions] of each tile."""
    return [n.tolist() for n in counts(classes, labels)]


def fullest(labels: np.ndarray) -> int:
    """The tile with most building, which is shown."""
    return int(counted(labels).argmax())


def buildings(
    segmenter: nn.Module, images: np.ndarray, labels: np.ndarray, clean: np.ndarray, most: int
) -> Iterator[Building]:
    """The largest building of each tile that the map shows at least half of, of `most` tiles."""
    for image, label, found in zip(images, labels, clean, strict=True):
        places = roofs(label)
        area, hit = (
            np.bincount(p, minlength=places.max() + 1)[1:]
            for p in (places.ravel(), places[found > 0])
        )
        known = np.where(2 * hit >= area, area, 0)
        if most and known.any():
            most -= 1
            mask = torch.from_numpy(places == 1 + known.argmax())
            yield Building(tensor(segmenter, image[None])[0], mask)
