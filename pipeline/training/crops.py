"""Training crops from memory-mapped tiles: crop i is a function of (seed, i), so any run can be
resumed exactly.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.labels import IGNORE, Split
from pipeline.tiles.instances import contacts, instances
from pipeline.tiles.store import CityTiles, Region


def read_crop(
    city: CityTiles, region: Region, top: int, left: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image (S, S, C) and label (S, S), copied; beyond the region's edge the
    image is 0 and the label 255.
    """
    label = city.label(region)[top : top + size, left : left + size]
    image = city.image(region)[top : top + size, left : left + size]
    height, width = label.shape
    if (height, width) == (size, size):
        return np.array(image), np.array(label)
    whole_image = np.zeros((size, size, city.channels), np.uint8)
    whole_label = np.full((size, size), IGNORE, np.uint8)
    whole_image[:height, :width], whole_label[:height, :width] = image, label
    return whole_image, whole_label


def read_contacts(
    city: CityTiles, region: Region, top: int, left: int, size: int, metres: float
) -> np.ndarray:
    """(S, S) uint8: 1 within `metres` of two buildings, also beyond the crop's
    edge; 0 past the region's.
    """
    reach = metres / city.gsd
    around = round(reach) + 1
    first = max(0, top - around), max(0, left - around)
    seen = slice(first[0], top + size + around), slice(first[1], left + size + around)
    numbers = city.numbers(region)
    near = contacts(
        instances(city.label(region)[seen], None if numbers is None else numbers[seen]), reach
    )
    found = near[top - first[0] :, left - first[1] :][:size, :size]
    whole = np.zeros((size, size), np.uint8)
    whole[: found.shape[0], : found.shape[1]] = found
    return whole


class RandomCrops(Dataset):
    """Random crops of the training regions; cities drawn evenly, by the root of
    their area, or by their area.

    With `contact` metres there is a third tensor, (S, S) uint8: 1 within so much of
    two buildings, 255 to ignore.
    """

    def __init__(
        self,
        cities: list[CityTiles],
        size: int,
        seed: int,
        level: str,
        weighting: str = "even",
        contact: float = 0,
    ):
        self.size, self.seed, self.level, self.contact = size, seed, level, contact
        self.regions = [(c, r) for c in cities for r in c.of_split("train")]
        area = np.array([r.height * r.width for _, r in self.regions], float)
        names = np.array([c.city for c, _ in self.regions])
        whole = np.array([area[names == name].sum() for name in names])
        area *= whole ** {"even": -1.0, "root": -0.5, "area": 0.0}[weighting]
        self.probability = area / area.sum()

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return self.drawn(index)[1:]

    def drawn(self, index: int) -> tuple:
        """Crop `index`: the city it is of, its image (S, S, C), label and, if
        any, contacts (S, S) uint8.
        """
        from pipeline.training.augment import augment

        random = np.random.default_rng((self.seed, index))
        for _ in range(10):  # another place where nothing is labelled
            city, region = self.regions[random.choice(len(self.regions), p=self.probability)]
            top = int(random.integers(0, max(1, region.height - self.size + 1)))
            left = int(random.integers(0, max(1, region.width - self.size + 1)))
            image, label = read_crop(city, region, top, left, self.size)
            if (label != IGNORE).any():
                break
        if self.contact:
            near = read_contacts(city, region, top, left, self.size, self.contact)
            label = np.dstack([label, np.where(label == IGNORE, IGNORE, near)])
        image, label = augment(self.level, image, label, int(random.integers(2**31)))
        layers = [image, *np.moveaxis(label, -1, 0)] if self.contact else [image, label]
        return city, *(torch.from_numpy(np.ascontiguousarray(layer)) for layer in layers)


class StepSampler(Sampler):
    """The crops of one process: step s of the whole run holds crops s·batch … (s+1)·batch, shared
    among processes.

    So one process and many see the same global batches, and epoch e starts at the same crop however
    often it is run.
    """

    def __init__(self, batch_size: int, steps: int, rank: int = 0, world: int = 1):
        self.batch, self.steps, self.rank, self.world, self.epoch = (
            batch_size,
            steps,
            rank,
            world,
            0,
        )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        local = self.batch // self.world
        for step in range(self.epoch * self.steps, (self.epoch + 1) * self.steps):
            first = step * self.batch + self.rank * local
            yield list(range(first, first + local))


class WindowGrid(Dataset):
    """Windows that cover the regions of a split once, without overlap: a fast
    look at validation IoU.
    """

    def __init__(self, cities: list[CityTiles], split: Split, size: int):
        self.size = size
        self.windows = [
            (city, region, top, left)
            for city in cities
            for region in city.of_split(split)
            for top in range(0, region.height, size)
            for left in range(0, region.width, size)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.drawn(index)[1:]

    def scene(self, index: int) -> str:
        """Of which scene window `index` is, in a word that no scene of another city shares."""
        city, region, *_ = self.windows[index]
        return f"{city.city}/{region.parent}"

    def drawn(self, index: int) -> tuple[CityTiles, torch.Tensor, torch.Tensor]:
        """Window `index`: as of RandomCrops."""
        image, label = read_crop(*self.windows[index], self.size)
        return self.windows[index][0], torch.from_numpy(image), torch.from_numpy(label)


class WithCity(Dataset):
    """Crops or windows, each with the number of its city at the end."""

    def __init__(self, crops: RandomCrops | WindowGrid, cities: list[CityTiles]):
        self.crops, self.number = crops, {city.city: i for i, city in enumerate(cities)}

    def __getitem__(self, index: int) -> tuple:
        city, *layers = self.crops.drawn(index)
        return *layers, self.number[city.city]


def loader(dataset: Dataset, batches: Iterable[list[int]], workers: int, cuda: bool) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=cuda,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )


def channel_statistics(cities: list[CityTiles], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel in [0, 1], over valid pixels of 256 training
    crops, cities evenly.
    """
    crops = RandomCrops(cities, 64, seed, "none")
    batches = [crops[i] for i in range(256)]
    pixels = (
        np.concatenate([image.numpy()[label.numpy() != IGNORE] for image, label in batches]) / 255.0
    )
    return pixels.mean(0), pixels.std(0)
