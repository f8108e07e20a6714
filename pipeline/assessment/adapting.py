"""A model that learned from the labelled frames, and what each frame would have been without having
been learned from.

Fine-tuning is short: a few hundred crops of the labelled frames, half of every batch from the old
cities where these are at hand (replay), so that they are not forgotten; batch-norm statistics stay
those of the old cities. What is delivered lies between the weights before and after (WiSE-FT,
Wortsman et al. 2022): most of what was learned, and little forgotten. Cross-fitting (as in
prediction-powered inference, Zrnic and Candès, PNAS 2024): the labelled frames are dealt into
folds, a model a fold is tuned without it, and maps it. Counts on these maps are as honest as those
of the model that saw no label.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from pipeline.assessment.geopackage import Labels
from pipeline.assessment.population import to_levels
from pipeline.assessment.survey import Survey
from pipeline.console import progress
from pipeline.errors import InputError
from pipeline.labels import IGNORE
from pipeline.networks.models import Segmenter
from pipeline.scoring.inference import infer
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_float
from pipeline.training.augment import augment
from pipeline.training.crops import RandomCrops
from pipeline.training.losses import build_loss
from pipeline.training.steps import one_cycle

CROSS_FITTED = "cross_fitted.npz"
LOSS = {"cross_entropy": 1.0, "dice": 1.0}


@dataclass(frozen=True)
class Tuning:
    """steps: batches; half of each of `batch` crops is replayed where there is something to replay.
    share: of the way from the weights before to those after.
    """

    steps: int = 80
    batch: int = 8
    crop: int = 128
    learning_rate: float = 3e-4
    share: float = 0.7
    seed: int = 0


@dataclass(frozen=True)
class LabelledFrame:
    """image (H, W, C) with its surroundings, label (H, W) that is 255 there,
    and the frame in it.
    """

    image: np.ndarray
    label: np.ndarray
    place: tuple[slice, slice]


def labelled_frames(survey: Survey, labels: Labels) -> list[LabelledFrame]:
    return [_frame(survey, i, mask) for i, mask in zip(labels.done, labels.masks, strict=True)]


def _frame(survey: Survey, i: int, mask: np.ndarray) -> LabelledFrame:
    with rasterio.open(survey.image(i)) as file:
        image = np.moveaxis(file.read(), 0, -1)
        grid = survey.grid(i)
        left, top = (round(v) for v in ~file.transform @ (grid.transform.c, grid.transform.f))
    place = slice(top, top + grid.height), slice(left, left + grid.width)
    label = np.full(image.shape[:2], IGNORE, np.uint8)
    label[place] = np.where(survey.levels(i) == IGNORE, IGNORE, mask)
    return LabelledFrame(image, label, place)


def _crop(
    frame: LabelledFrame, size: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random crop with the frame's labels in it; image 0 and label 255 beyond what there is."""
    image, label = (
        np.zeros((size, size, frame.image.shape[2]), np.uint8),
        np.full((size, size), IGNORE, np.uint8),
    )
    slack = [max(0, side - size) for side in frame.label.shape]
    top, left = (int(random.integers(s + 1)) for s in slack)
    part = frame.label[top : top + size, left : left + size]
    image[: part.shape[0], : part.shape[1]] = frame.image[top : top + size, left : left + size]
    label[: part.shape[0], : part.shape[1]] = part
    return image, label


def fine_tune(
    segmenter: Segmenter,
    frames: list[LabelledFrame],
    tuning: Tuning,
    replay: Sequence[CityTiles] = (),
    what: str = "adapting",
) -> Segmenter:
    """A copy of `segmenter`, in eval mode, that has learned the frames. Deterministic for a
    seed and a device.
    """
    # eval: batch norm keeps its statistics
    tuned = copy.deepcopy(segmenter).eval().requires_grad_(True)
    on, loss = next(tuned.buffers()).device, build_loss(LOSS)
    optimizer = torch.optim.AdamW(tuned.parameters(), tuning.learning_rate, weight_decay=1e-4)
    schedule = one_cycle(optimizer, tuning.learning_rate, tuning.steps)
    old = RandomCrops(list(replay), tuning.crop, tuning.seed, "standard") if replay else None
    own = tuning.batch - (tuning.batch // 2 if old else 0)
    torch.manual_seed(tuning.seed)
    for step in progress(range(tuning.steps), what):
        random = np.random.default_rng((tuning.seed, step))
        pairs = []
        for chosen in random.choice(len(frames), own, replace=own > len(frames)):
            pairs.append(
                augment(
                    "standard",
                    *_crop(frames[chosen], tuning.crop, random),
                    int(random.integers(2**31)),
                )
            )
        if old:
            first = step * (tuning.batch - own)
            pairs += [
                tuple(part.numpy() for part in old[first + k]) for k in range(tuning.batch - own)
            ]
        images, labels = (
            torch.from_numpy(np.stack(part)).to(on) for part in zip(*pairs, strict=True)
        )
        if (labels == IGNORE).all():
            continue
        value = loss(tuned(to_float(images)), labels)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    tuned.requires_grad_(False)
    for before, after in zip(segmenter.parameters(), tuned.parameters(), strict=True):
        after.copy_(before.lerp(after, tuning.share))
    return tuned


def map_frame(segmenter: Segmenter, frame: LabelledFrame) -> np.ndarray:
    """(h, w) uint8 levels of a frame, seen with its surroundings; 255 where it holds no data."""
    bands = infer(
        segmenter, frame.image, window=512, batch_size=1, temperature=segmenter.decision.temperature
    )
    levels = np.concatenate([to_levels(1 - p[..., 0]) for _, p in bands])[frame.place]
    return np.where(frame.label[frame.place] == IGNORE, IGNORE, levels).astype(np.uint8)


def cross_fit(
    segmenter: Segmenter,
    frames: list[LabelledFrame],
    folds: int,
    tuning: Tuning,
    replay: Sequence[CityTiles] = (),
) -> list[np.ndarray]:
    """Levels (h, w) of every frame by a model that was tuned on the other folds' frames."""
    order = np.random.default_rng(tuning.seed).permutation(len(frames))
    levels: dict[int, np.ndarray] = {}
    for fold in range(folds):
        out = set(order[fold::folds].tolist())
        rest = [frame for i, frame in enumerate(frames) if i not in out]
        tuned = fine_tune(
            segmenter, rest, tuning, replay, f"cross-fitting, fold {fold + 1} of {folds}"
        )
        for i in out:
            levels[i] = map_frame(tuned, frames[i])
    return [levels[i] for i in range(len(frames))]


def save_cross_fitted(
    folder: Path, survey: Survey, done: np.ndarray, levels: list[np.ndarray]
) -> None:
    arrays: dict[str, Any] = {
        f"frame_{survey.number(i)}": at for i, at in zip(done, levels, strict=True)
    }
    np.savez_compressed(folder / CROSS_FITTED, sample=np.array(survey.key), **arrays)


def cross_fitted(model: Path, survey: Survey, labels: Labels) -> list[np.ndarray]:
    """The levels of the frames done, each by a model that has not seen it. Raises InputError where
    MODEL was not adapted to this sample, or before some of its frames were labelled."""
    try:
        with np.load(Path(model) / CROSS_FITTED, allow_pickle=False) as arrays:
            if str(arrays["sample"]) != survey.key:
                raise InputError(
                    f"{model}: was adapted to another sample than {survey.folder}; "
                    f"name that one's folder"
                )
            names = [f"frame_{survey.number(i)}" for i in labels.done]
            if later := [name for name in names if name not in arrays]:
                number = later[0].removeprefix("frame_")
                raise InputError(
                    f"{model}: frame {number} was labelled after it was adapted; run adapt again"
                )
            return [
                np.where(survey.levels(i) == IGNORE, IGNORE, arrays[n])
                for i, n in zip(labels.done, names, strict=True)
            ]
    except InputError:
        raise
    except (OSError, ValueError, LookupError):
        raise InputError(
            f"{model}: holds no {CROSS_FITTED}, so it may have learned what it would be assessed "
            f"on; make it with adapt"
        ) from None
