"""Every attack on one city's tiles: what is measured, as plain numbers that can be
kept between two runs.

A measurement is a pair of lists, intersection and union of each tile; a ratio comes
last. Attacks may run in mixed precision; what they found is always measured in
float32, by a forward pass of its own.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from pipeline import params
from pipeline.attacks import engine, losses, physics
from pipeline.attacks.engine import Target
from pipeline.attacks.methods import methods
from pipeline.attacks.objects import false_by_size, falses, recall_by_size, recalls
from pipeline.attacks.patch import beyond, corner_patch, receptive_radius
from pipeline.attacks.scores import Measurement
from pipeline.attacks.worst_case import worst_case
from pipeline.errors import InputError
from pipeline.labels import IGNORE
from pipeline.networks.decision import leading
from pipeline.scoring.metrics import buildings, counts
from pipeline.training.perturb import length

STRONG = 32  # 1/255: a budget at which no segmenter should stand
# mean margins of the logits the audit attacks: the model's own may lie where CE saturates
COOLED, SHARPENED = 1, 8
LONGER = 10  # times the gradients of the longest attack
HALVING_ROUNDS = 5  # bisections between two known budgets


@dataclass
class Campaign:
    """The model, another one to transfer from, and the settings of the stage."""

    segmenter: torch.nn.Module
    relative: torch.nn.Module
    settings: params.Attack
    pixels: torch.Tensor  # (K,) training pixels of each class
    size_bins: list[float]  # m²
    autocast: Callable[[], AbstractContextManager] = nullcontext
    # classes (N, H, W) under every exposure, −1 unproven
    proven: Callable[[torch.Tensor], torch.Tensor] | None = None

    def predict(self, images: torch.Tensor, segmenter=None) -> torch.Tensor:
        """(N, H, W) classes, in float32 whatever the attack's precision. Raises InputError
        where the model fails.
        """
        maps = []
        with torch.no_grad():
            for part in images.split(self.settings.batch_size):
                maps.append(self.classes((segmenter or self.segmenter)(part)))
        return torch.cat(maps)

    def classes(self, logits: torch.Tensor) -> torch.Tensor:
        if not logits.isfinite().all():
            raise InputError(
                f"attack.model: {self.settings.model} answers NaN or infinity on an image within "
                f"the budget; "
                "its weights are damaged or overflow: train it again"
            )
        return leading(logits)

    def run(self, target: Target, attack: Callable[[Target], torch.Tensor]) -> torch.Tensor:
        with self.autocast():
            return engine.in_batches(target, self.settings.batch_size, attack)


def excess(found: torch.Tensor, target: Target) -> float:
    """By how much the longest perturbation exceeds ε, or a pixel leaves [0, 1]; 0 at best. What is
    not a number exceeds everything.
    """
    found = found.double()
    over = length(found - target.images.double(), target.norm).max() - target.epsilon
    worst = torch.stack([over, found.max() - 1, -found.min()]).max().clamp_min(0)
    return float(worst.nan_to_num(torch.finfo(worst.dtype).max))


def smallest_budget(
    iou_at: Callable[[float], float], goal: float, low: float, high: float, rounds: int
) -> float:
    """The least ε known to bring the IoU to `goal` or below, by bisection of log ε between `low`,
    which does not, and `high`, which does; from 0 the first step is a quarter of `high`.
    """
    for _ in range(rounds):
        middle = math.sqrt(low * high) if low else high / 4
        if iou_at(middle) <= goal:
            high = middle
        else:
            low = middle
    return high


# a measurement's name, numbers (JSON), and arrays to keep
Record = tuple[str, dict, dict[str, np.ndarray]]


def attack_city(
    campaign: Campaign, images: torch.Tensor, labels: torch.Tensor, crafting: tuple, gsd: float
) -> Iterator[Record]:
    """Every measurement the settings ask for, one at a time.

    images (N, C, H, W) in [0, 1] and labels (N, H, W) of the tiles attacked; `crafting` the same of
    training tiles, which the universal perturbation is made on.
    """
    settings, attack = campaign.settings, CityAttack(campaign, images, labels, gsd)
    yield "clean", {"tiles": attack.clean, "buildings": attack.buildings}, {}
    yield from attack.by_budget()
    yield attack.checks()
    if settings.halving:
        yield attack.halving()
    if settings.targeted:
        yield attack.erasing()
        yield attack.inventing()
    if settings.patch:
        yield attack.patch()
    if settings.universal:
        yield attack.universal(crafting)
    yield from attack.views()
    yield "excess", {"value": attack.excess}, {}


def longer(
    campaign: Campaign, images: torch.Tensor, labels: torch.Tensor, before: ArrayLike
) -> dict:
    """What LONGER times the gradients of the longest attack find at ℓ∞ `attack.reference`, and their
    `excess`.

    images (N, C, H, W) and labels (N, H, W), a tile a city; `before` (attacks, 2, N): what was
    measured on them, whose worst IoU the attack is told.
    """
    settings = campaign.settings
    weight = worst_case(*np.array(before).swapaxes(0, 1))[0] or engine.SMALL
    target = Target(
        campaign.segmenter, images, labels, "linf", settings.reference / 255, weight=weight
    )
    steps = LONGER * max(settings.soft_iou_steps, settings.apgd_steps, settings.steps)
    generator = torch.Generator().manual_seed(settings.seed)
    found = campaign.run(target, lambda part: engine.soft_iou(part, steps, generator=generator))
    tiles = [c.tolist() for c in counts(campaign.predict(found), labels)]
    return {"tiles": tiles, "excess": excess(found, target)}


class CityAttack:
    """A city's tiles under attack. The order of the attacks is part of the
    result: they share one generator.
    """

    def __init__(self, campaign: Campaign, images: torch.Tensor, labels: torch.Tensor, gsd: float):
        self.campaign, self.images, self.labels, self.gsd = campaign, images, labels, gsd
        self.settings = campaign.settings
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        self.reference = Target(
            campaign.segmenter, images, labels, "linf", self.settings.reference / 255
        )
        self.excess = 0.0  # the worst of all attacks
        self.clean_map = campaign.predict(images)
        self.clean = self.counts(self.clean_map)
        self.buildings = buildings(labels).tolist()  # pixels of each tile
        self.known = [(0.0, self.clean)]  # linf budgets in 1/255 and everything measured there

    def counts(self, classes: torch.Tensor, labels: torch.Tensor | None = None) -> Measurement:
        return [c.tolist() for c in counts(classes, self.labels if labels is None else labels)]

    def measure(self, found: torch.Tensor, target: Target) -> Measurement:
        self.excess = max(self.excess, excess(found, target))
        return self.counts(self.campaign.predict(found), target.labels)

    def pgd(self, target: Target, steps: int | None = None, **options) -> torch.Tensor:
        steps = steps or self.settings.steps
        usual: dict[str, Any] = {"generator": self.generator, "restarts": self.settings.restarts}
        return self.campaign.run(target, lambda part: engine.pgd(part, steps, **usual | options))

    def by_budget(self) -> Iterator[Record]:
        # the audit judges every attack at the reference
        linf = {*self.settings.linf, self.settings.reference}
        for norm, budgets, unit in (("linf", linf, 255), ("l2", self.settings.l2, 1)):
            for budget in sorted(budgets):
                target = replace(self.reference, norm=norm, epsilon=budget / unit)
                results = dict(self.every_attack(target))
                if norm == "linf":
                    self.known += [(budget, measurement) for measurement in results.values()]
                yield f"{norm} {budget:g}", results, {}

    def every_attack(self, target: Target) -> Iterator[tuple[str, Measurement]]:
        """What every method of the settings does, the cheapest first, each told
        the worst IoU so far.
        """
        known = [self.clean, self.measure(engine.noise(target, self.generator), target)]
        yield "noise", known[-1]
        every = methods(self.settings, self.campaign.pixels, self.generator)
        for name in [name for name in every if name.split()[0] in self.settings.methods]:
            worst = worst_case(*np.array(known).swapaxes(0, 1))[0]
            told = replace(target, weight=worst or engine.SMALL)  # none left, or none to begin with
            known.append(self.measure(self.campaign.run(told, every[name]), target))
            yield name, known[-1]

    def checks(self) -> Record:
        """What the audit needs, at the reference budget and at one that nothing withstands."""
        campaign, reference = self.campaign, self.reference
        full = self.pgd(reference)
        found = {
            "half_steps": self.pgd(reference, max(1, self.settings.steps // 2)),
            "steps": full,
            "cooled": self.pgd(reference, loss=losses.tempered(COOLED)),
            "sharpened": self.pgd(reference, loss=losses.tempered(SHARPENED)),
            "noise": engine.noise(reference, self.generator),
            "transfer": self.pgd(replace(reference, segmenter=campaign.relative)),
        }
        measured: dict[str, Any] = {
            name: self.measure(images, reference) for name, images in found.items()
        }
        # Aimed at what the check asks for: cross-entropy spends most of its gradient on pixels
        # already wrong.
        strong = replace(reference, epsilon=STRONG / 255, score=engine.erased)
        vanishing = self.measure(
            self.pgd(strong, 2 * self.settings.steps, loss=losses.erase), strong
        )
        self.known += [(self.settings.reference, measurement) for measurement in measured.values()]
        self.known.append((STRONG, vanishing))
        measured |= {
            "vanishing": vanishing,
            "relative_clean": self.counts(campaign.predict(self.images, campaign.relative)),
        }
        return "checks", measured, self.picture(full)

    def picture(self, found: torch.Tensor) -> dict[str, np.ndarray]:
        """The tile that loses most, as the report shows it."""
        attacked_map = self.campaign.predict(found)
        lost = counts(self.clean_map, self.labels)[0] - counts(attacked_map, self.labels)[0]
        self.shown = int(lost.argmax())
        parts = {
            "image": self.images,
            "attacked": found,
            "label": self.labels,
            "before": self.clean_map,
            "after": attacked_map,
        }
        return {name: part[self.shown].cpu().numpy() for name, part in parts.items()}

    def worst_up_to(self, budget: float) -> float:
        """The exact worst IoU, of tiles with buildings, over all that was measured at ℓ∞
        budgets (1/255) up to this.
        """
        worst, _ = worst_case(*np.array([m for e, m in self.known if e <= budget]).swapaxes(0, 1))
        return worst or 0.0

    def halving(self) -> Record:
        """The smallest ℓ∞ budget (1/255) known to halve the city's IoU; None where not even the
        strongest does, or there is no building.
        """
        if not any(self.buildings):
            return "halving", {"linf": None}, {}
        goal = self.worst_up_to(0) / 2
        budgets = sorted({e for e, _ in self.known})
        enough = [e for e in budgets if self.worst_up_to(e) <= goal]
        if not enough or goal == 0:
            return "halving", {"linf": None}, {}
        low = max(e for e in budgets if e < enough[0])

        def iou_at(budget: float) -> float:
            target = replace(self.reference, epsilon=budget / 255)
            for _, measurement in self.every_attack(target):
                self.known.append((budget, measurement))
                if self.worst_up_to(budget) <= goal:  # enough is known
                    break
            return self.worst_up_to(budget)

        return (
            "halving",
            {"linf": smallest_budget(iou_at, goal, low, enough[0], HALVING_ROUNDS)},
            {},
        )

    def erasing(self) -> Record:
        """Change the ground beside buildings until they are gone."""
        target = self.targeted(self.labels == 0, engine.erased)
        before, after, found = self._by_size(
            recall_by_size, target, losses.erase, lambda counts: -counts[0].sum()
        )
        tile = found[self.shown : self.shown + 1]
        shown = {
            "erased": tile[0].cpu().numpy(),
            "after_erasing": self.campaign.predict(tile)[0].cpu().numpy(),
        }
        return "erase", recalls(self.campaign.size_bins, before, after), shown

    def inventing(self) -> Record:
        """Change buildings until others appear beside them."""
        target = self.targeted((self.labels > 0) & (self.labels != IGNORE), engine.invented)
        before, after, _ = self._by_size(false_by_size, target, losses.invent, np.sum)
        return "invent", falses(self.campaign.size_bins, before, after), {}

    def targeted(self, where: torch.Tensor, score: engine.Score) -> Target:
        return replace(
            self.reference,
            epsilon=self.settings.targeted / 255,
            mask=where.unsqueeze(1),
            score=score,
        )

    def _by_size(
        self,
        counter: Callable,
        target: Target,
        loss: losses.AttackLoss,
        harm: Callable[[np.ndarray], int],
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """Objects counted before and after, and the images found. The attack counts pixels; where
        it did no `harm` to a tile's objects, the attacker leaves the tile as it is.
        """
        found = self.pgd(target, loss=loss)
        self.measure(found, target)

        def count(maps: torch.Tensor) -> list[np.ndarray]:
            pairs = zip(maps.cpu().numpy(), self.labels.cpu().numpy(), strict=True)
            return [
                counter(m[None], label[None], self.gsd, self.campaign.size_bins)
                for m, label in pairs
            ]

        before, after = count(self.clean_map), count(self.campaign.predict(found))
        worse = [max(pair, key=harm) for pair in zip(before, after, strict=True)]
        return np.sum(before, axis=0), np.sum(worse, axis=0), found

    def patch(self) -> Record:
        effective, support = receptive_radius(
            self.campaign.segmenter, self.images[: self.settings.batch_size]
        )
        anything = replace(
            self.reference, epsilon=1.0, mask=corner_patch(self.images, self.settings.patch)
        )
        reach = max(self.labels.shape) if effective is None else self.settings.patch + effective
        scored = replace(anything, labels=beyond(self.labels, reach))
        share = (scored.labels != IGNORE).sum() / (self.labels != IGNORE).sum().clamp_min(1)
        measured = {
            "clean": self.counts(self.clean_map, scored.labels),
            "attacked": self.measure(self.pgd(scored, step=0.1), scored),
            "effective_radius": effective,
            "support_radius": support,
            "scored_share": float(share),
            "buildings": int(buildings(scored.labels).sum()),
        }
        return "patch", measured, {}

    def views(self) -> Iterator[Record]:
        """What sun, air and camera can do to a few of the tiles, a family at a time: every
        point that was tried.
        """
        tiles = slice(self.settings.physics.tiles)
        images, labels, clean = self.images[tiles], self.labels[tiles], self.clean_map[tiles]
        before = self.counts(clean, labels)
        weight = worst_case(*np.array([before]).swapaxes(0, 1))[0] or engine.SMALL
        for name, family in physics.families(self.settings.physics, images.shape[1]).items():
            proven = (
                self.campaign.proven(images) if self.campaign.proven and name == "gain" else None
            )
            measured: dict[str, Any] = {"clean": before, "grid": [], "gradient": [], "refuted": 0}
            for seen in self._seen(family, images, labels, weight):
                classes = self.campaign.classes(seen.logits)
                measured[seen.by].append(self.counts(classes, seen.labels))
                if proven is not None:
                    measured["refuted"] += int(
                        ((proven >= 0) & (proven != classes) & (seen.labels != IGNORE)).sum()
                    )
            if proven is not None:
                measured["certified"] = self.counts(proven, labels)
            yield f"physics {name}", measured, {}

    def _seen(self, family, images, labels, weight: float) -> Iterator[physics.Seen]:
        """The search's points, its batches put together again."""
        settings, size = self.settings.physics, self.settings.batch_size
        loss = losses.soft_iou(weight)

        def harm(logits, labels):
            return engine.harm(logits, labels, weight)[0]

        searches = [
            physics.search(
                family, self.campaign.segmenter, *part, loss, harm, settings.grid, settings.steps
            )
            for part in zip(images.split(size), labels.split(size), strict=True)
        ]
        for parts in zip(*searches, strict=True):
            whole = (
                torch.cat([getattr(p, what) for p in parts])
                for what in ("numbers", "logits", "labels")
            )
            yield physics.Seen(parts[0].by, *whole)

    def universal(self, crafting: tuple) -> Record:
        batches = list(
            zip(*(part.split(self.settings.batch_size) for part in crafting), strict=True)
        )
        with self.campaign.autocast():
            delta = engine.universal(
                self.campaign.segmenter,
                batches,
                "linf",
                self.reference.epsilon,
                self.settings.steps,
            )
        self.measure(engine.apply_universal(self.images, delta), self.reference)
        return "universal", {}, {"universal": delta.cpu().numpy()}
