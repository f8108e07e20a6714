"""Cities that arrive one after another, and a network that must not forget: one
sequence a method and order.

finetune    goes on training on the city that has come, and on nothing else
replay      keeps a few tiles of each city, which make half of every later batch (Chaudhry et al. 2019, "On Tiny
            Episodic Memories in Continual Learning")
lwf, ewc    keep none: see losses.py
joint       sees all cities at once, for as many steps in all: the ceiling
"""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.incremental.losses import Weights, distillation, ewc, fisher
from pipeline.networks.decision import leading
from pipeline.networks.models import Segmenter, build_model
from pipeline.params import Incremental, Model
from pipeline.scoring.metrics import counts
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_float, to_tensors
from pipeline.training.crops import RandomCrops
from pipeline.training.losses import build_loss
from pipeline.training.steps import one_cycle

Counts = dict[str, list[list[int]]]  # by city: intersection and union of each of its scenes
Batch = tuple[Tensor, Tensor]  # images (N, C, H, W) in [0, 1] and labels (N, H, W)
FISHER = 32  # crops a city whose gradients make the Fisher information


def orders(cities: list[str], count: int, seed: int) -> list[list[str]]:
    """`count` orders of arrival, as far as there are so many: as listed, reversed, and drawn."""
    found = [cities, cities[::-1]][:count]
    random = np.random.default_rng(seed)
    for _ in range(100 * count):
        if len(found) == count:
            break
        drawn = [cities[i] for i in random.permutation(len(cities))]
        found += [drawn] * (drawn not in found)
    return found


def fresh(settings: Incremental, channels: int, classes: int) -> Segmenter:
    """A new network; its normalisation is of no city, for those to come are not known."""
    torch.manual_seed(settings.seed)
    model = Model(architecture=settings.architecture, width=settings.width, classes=classes)
    segmenter = build_model(model, channels)
    segmenter.set_normalisation([0.5] * channels, [0.25] * channels)
    return segmenter


def optimise(network: nn.Module, steps: int, rate: float, loss: Callable[[int], Tensor]) -> None:
    """Adam along one cycle; `loss(step)` is what a step lowers."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = one_cycle(optimizer, rate, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1)
        optimizer.step()
        schedule.step()
    network.eval()


class Crops:
    """Batches of random training crops of some cities, a function of seed and step."""

    def __init__(self, cities: list[CityTiles], settings: Incremental, on: torch.device):
        self.crops = RandomCrops(cities, settings.crop, settings.seed, "flips")
        self.size, self.on = settings.batch_size, on

    def batch(self, step: int) -> Batch:
        pairs = [self.crops[step * self.size + i] for i in range(self.size)]
        images, labels = (torch.stack(side).to(self.on) for side in zip(*pairs, strict=True))
        return to_float(images), labels.long()


def run_sequence(
    method: str, sequence: list[CityTiles], tests: "Tests", settings: Incremental, on: torch.device
) -> list[Counts]:
    """What is measured in every city after each city's training, T entries."""
    segmenter = fresh(settings, sequence[0].channels, sequence[0].classes).to(on)
    learner, measured = Learner(method, segmenter, settings, on), []
    for city in sequence:
        learner.learn(city)
        measured.append(tests.measure(segmenter))
    return measured


def joint(cities: list[CityTiles], settings: Incremental, on: torch.device) -> Segmenter:
    """Trained on all cities at once, for as many steps as a sequence has."""
    segmenter = fresh(settings, cities[0].channels, cities[0].classes).to(on)
    crops, loss = Crops(cities, settings, on), build_loss({"cross_entropy": 1.0, "dice": 1.0})

    def of_step(step: int) -> Tensor:
        images, labels = crops.batch(step)
        return loss(segmenter(images), labels)

    optimise(segmenter, settings.steps * len(cities), settings.learning_rate, of_step)
    return segmenter


class Learner:
    """A network in a sequence, and what its method keeps of the cities that have been."""

    def __init__(self, method: str, segmenter: Segmenter, settings: Incremental, on: torch.device):
        self.method, self.segmenter, self.settings, self.on = method, segmenter, settings, on
        self.loss = build_loss({"cross_entropy": 1.0, "dice": 1.0})
        self.memory: list[Batch] = []
        self.before: Segmenter | None = None
        self.kept: list[tuple[Weights, Weights]] = []

    def learn(self, city: CityTiles) -> None:
        s, crops = self.settings, Crops([city], self.settings, self.on)
        optimise(
            self.segmenter,
            s.steps,
            s.learning_rate,
            lambda step: self.of_step(step, *crops.batch(step)),
        )
        self.remember(city, crops)

    def of_step(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        if self.memory:
            images, labels = self.rehearsed(step, images, labels)
        logits = self.segmenter(images)
        loss = self.loss(logits, labels)
        if self.before is not None:
            with torch.no_grad():
                taught = self.before(images)
            loss = loss + self.settings.distillation * distillation(logits, taught, labels)
        if self.kept:
            loss = loss + self.settings.ewc * ewc(self.segmenter, self.kept)
        return loss

    def rehearsed(self, step: int, images: Tensor, labels: Tensor) -> Batch:
        """The batch with its second half from memory, cities drawn evenly."""
        half, random = len(images) // 2, np.random.default_rng((self.settings.seed, step))
        old = [self.memory[random.integers(len(self.memory))] for _ in range(len(images) - half)]
        rows = [int(random.integers(len(tiles[0]))) for tiles in old]
        past = [
            torch.stack([tiles[side][row] for tiles, row in zip(old, rows, strict=True)])
            for side in (0, 1)
        ]
        return torch.cat([images[:half], past[0]]), torch.cat([labels[:half], past[1]])

    def remember(self, city: CityTiles, crops: Crops) -> None:
        match self.method:
            case "replay":
                self.memory.append(
                    to_tensors(
                        city.sample("train", self.settings.replay, self.settings.crop), self.on
                    )
                )
            case "lwf":
                self.before = deepcopy(self.segmenter).requires_grad_(False)
            case "ewc":
                images = crops.batch(0)[0].split(1)
                more = -(-FISHER // len(images))
                some = (image for step in range(more) for image in crops.batch(step)[0].split(1))
                then = {
                    name: weight.detach().clone()
                    for name, weight in self.segmenter.named_parameters()
                }
                self.kept.append((fisher(self.segmenter, some), then))


class Tests:
    """Tiles of each city's test scenes, on which every network is measured."""

    __test__ = False  # to pytest

    def __init__(self, cities: list[CityTiles], count: int, seed: int, on: torch.device):
        self.tiles = {}
        for city in cities:
            rows = city.chosen("test", count, seed=seed)
            self.tiles[city.city] = (*to_tensors(city.read(rows), on), city.scenes(rows))

    @torch.inference_mode()
    def classes(self, segmenter: nn.Module, city: str) -> Tensor:
        return torch.cat([leading(segmenter(some)) for some in self.tiles[city][0].split(8)])

    def measure(self, segmenter: nn.Module, kind: int | None = None) -> Counts:
        """Intersection and union by scene; of one class alone where a `kind` is given."""
        found = {}
        for city, (_, labels, scenes) in self.tiles.items():
            said, truth = self.classes(segmenter, city), labels
            if kind is not None:
                said, truth = (
                    (said == kind).long(),
                    torch.where(labels == 255, labels, (labels == kind).long()),
                )
            of_scene = (np.unique(scenes)[:, None] == scenes).astype(int)
            found[city] = [(of_scene @ n.cpu().numpy()).tolist() for n in counts(said, truth)]
        return found

    def built(self, city: str, kind: int | None = None) -> bool:
        """Whether the labels know a building there, or the class of a kind."""
        labels = self.tiles[city][1]
        known = labels[labels != 255]
        return bool((known > 0).any() if kind is None else (known == kind).any())
