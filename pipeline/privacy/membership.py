"""Membership inference: was this tile trained on? Two attacks, and what they find,
with intervals over scenes.

- The loss threshold (Yeom et al., "Privacy Risk in Machine Learning", CSF 2018): a
  tile of low loss was trained on.
- The likelihood ratio (LiRA; Carlini et al., "Membership Inference Attacks From First Principles",
  S&P 2022), in its offline variant: reference models that never saw the tile say what its
  confidence would be had it been left out.

Each is judged by its AUC and by the share of members it finds where it accuses one non-member in a
hundred. An attack shows what leaks at least; a better one may find more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline.labels import IGNORE
from pipeline.networks.decision import leading
from pipeline.scoring.bootstrap import (
    Estimate,
    degrees_of_freedom,
    iou_estimate,
    resample,
    satterthwaite,
)
from pipeline.scoring.metrics import buildings, counts

FPR = 0.01  # share of non-members that may be accused
LEAST = round(1 / FPR)  # non-members under which that share is less than one
BATCH = 16  # tiles a forward pass


def tile_scores(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, np.ndarray]:
    """What a model says of tiles (N, C, H, W) with labels (N, H, W), float64 (N,),
    means over valid pixels.

    "loss" is minus the cross-entropy; "confidence" the logit of the true class's
    probability, log p / (1 − p), which is near normal over models where p itself is
    not (Carlini et al. 2022, section IV-C).
    """
    parts: list[torch.Tensor] = []
    with torch.inference_mode():
        for some, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            logits, valid = model(some).double(), truth != IGNORE
            own = torch.where(valid, truth, 0).unsqueeze(1)
            true = logits.gather(1, own)[:, 0]
            others = logits.scatter(1, own, -torch.inf).logsumexp(1)
            pixels = torch.stack([true - logits.logsumexp(1), true - others]) * valid
            parts.append(pixels.sum((-2, -1)) / valid.sum((-2, -1)).clamp_min(1))
    loss, confidence = torch.cat(parts, 1).cpu().numpy()
    return {"loss": loss, "confidence": confidence}


def likelihood_ratio(target: np.ndarray, references: np.ndarray) -> np.ndarray:
    """z (N,) of the target's confidences (N,) under N(μ, σ²) of reference models
    (R, N) that never saw the tiles.

    The test Λ = Pr[Z ≤ φ(target)], Z ~ N(μ_out, σ_out²), is Φ(z) (Carlini et al.
    2022, section IV-C). μ is each tile's own, σ one for all: few references tell no
    tile's variance (section VI-B). A single one tells none at all; then σ is that
    of φ(target) − μ over the tiles, whoever is a member.
    """
    difference = target - references.mean(0)
    variance = references.var(0, ddof=1).mean() if len(references) > 1 else difference.var()
    return difference / np.sqrt(max(variance, 1e-12))


@dataclass(frozen=True)
class Side:
    """Tiles of one side, members or not: their scores (N,), and the scene (N,)
    that each was cut from.
    """

    scores: np.ndarray
    scenes: np.ndarray

    @classmethod
    def of_all(cls, sides: Iterable["Side"]) -> "Side":
        """Those of several cities together; a scene's name is its own in every city."""
        sides = list(sides)
        scenes = [
            np.array([f"{i}/{scene}" for scene in side.scenes], object)
            for i, side in enumerate(sides)
        ]
        return cls(np.concatenate([side.scores for side in sides]), np.concatenate(scenes))

    @property
    def of_scene(self) -> np.ndarray:
        """(S, N) float: which tiles are a scene's."""
        return (np.unique(self.scenes)[:, None] == self.scenes).astype(float)


def auc(members: Side, others: Side, draws: int, seed: int) -> Estimate:
    """The chance that a member scores above a non-member (ties count half), over scenes as they
    might have been drawn.

    Tiles of one scene are alike, so scenes are resampled, of either side (see
    pipeline/scoring/bootstrap.py).
    """
    above = (members.scores[:, None] > others.scores) + 0.5 * (
        members.scores[:, None] == others.scores
    )
    wins = members.of_scene @ above @ others.of_scene.T
    sizes = members.of_scene.sum(1), others.of_scene.sum(1)

    def of(member: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.einsum("ds,st,dt->d", member, wins, other) / (
            (member @ sizes[0]) * (other @ sizes[1])
        )

    once = [np.ones((1, len(size))) for size in sizes]
    drawn = [
        resample(len(size), draws, np.random.default_rng([seed, i])) for i, size in enumerate(sizes)
    ]
    parts = of(drawn[0], once[1].repeat(draws, 0)), of(once[0].repeat(draws, 0), drawn[1])
    value = float(of(*once)[0])
    return two_sided(value, parts, sizes)


def two_sided(value: float, parts: tuple, sizes: tuple) -> Estimate:
    """An estimate of two independent samples: values (draws,) as either is resampled, and the
    sizes of its units.
    """
    errors = np.array([part.std() for part in parts])
    freedoms = np.array([degrees_of_freedom(size) if len(size) > 1 else 0.0 for size in sizes])
    return Estimate(value, float(np.hypot(*errors)), satterthwaite(errors, freedoms), value)


def true_positives(members: Side, others: Side, draws: int, seed: int) -> Estimate | None:
    """The share of members that score above all but FPR of the non-members; None of
    fewer than LEAST of these.

    Its interval is over the members' scenes, the threshold held fixed, as the
    attacker would hold it.
    """
    if len(others.scores) < LEAST:
        return None
    threshold = np.sort(others.scores)[::-1][int(FPR * len(others.scores))]
    of_scene = members.of_scene
    return iou_estimate(of_scene @ (members.scores > threshold), of_scene.sum(1), draws, seed)


def rises(
    model: nn.Module,
    before: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    scenes: np.ndarray,
) -> dict:
    """{SCENE: log of its loss by `before` over its loss by `model`}, each a mean over its tiles (N,)
    of at least 1e-9.
    """
    now, then = (-tile_scores(network, images, labels)["loss"] for network in (model, before))
    return {
        scene: float(np.log(_mean(then[scenes == scene]) / _mean(now[scenes == scene])))
        for scene in sorted(set(scenes))
    }


def _mean(losses: np.ndarray) -> float:
    return max(float(losses.mean()), 1e-9)


def city_iou(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, scenes: np.ndarray, draws: int
) -> Estimate | None:
    """IoU of a city's tiles (N, C, H, W), over scenes; None where the labels know no building."""
    if not buildings(labels).any():
        return None
    with torch.inference_mode():
        classes = torch.cat([leading(model(some)) for some in images.split(BATCH)])
    of_scene = np.unique(scenes)[:, None] == scenes
    return iou_estimate(
        *(of_scene @ n.cpu().numpy() for n in counts(classes, labels)), draws, seed=0
    )
