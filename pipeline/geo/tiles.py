"""Tiles on disk: a city's scenes at one ground sample distance, memory-mapped, plus a table of tile footprints.

data/tiles/CITY/
    images.npy      uint8, flat: the regions' (H, W, C) pixels one after another
    labels.npy      uint8, flat: the regions' (H, W) labels: 0 background, 1..k classes, 255 ignore
    regions.json    one record a region: where it lies in the arrays, on the ground, and in which split
    tiles.parquet   GeoParquet, one row a tile: region, split, row, column, building share, footprint

A region is a whole scene, or one block of a city's single large scene; it belongs to exactly one split. Regions are
stored unbroken, so a training crop may start at any pixel and a metric is a metric over scenes, not over tiles.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.geo.scene import IGNORE, Split


@dataclass(frozen=True)
class Region:
    name: str
    parent: str  # the scene it was cut from
    split: Split
    height: int
    width: int
    offset: int  # pixels before it in labels.npy (times C in images.npy)
    transform: tuple[float, float, float, float, float, float]  # affine a..f: pixel to CRS units
    crs: str | None  # WKT or authority code; None where the image had none


class CityTiles:
    """One city's tiles, opened read-only. `image` and `label` return views into the mapped file, not copies."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / "regions.json").read_text(encoding="utf-8"))
            self._images = np.load(self.folder / "images.npy", mmap_mode="r", allow_pickle=False)
            self._labels = np.load(self.folder / "labels.npy", mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise InputError(f"{error.filename}: not found; run the tile stage for {self.folder.name} first") from None
        except ValueError as error:
            raise InputError(f"{self.folder}: a tile array is damaged ({error}); run the tile stage again") from None
        self.city: str = about["city"]
        self.gsd: float = about["gsd"]
        self.size: int = about["size"]
        self.channels: int = about["channels"]
        self.classes: int = about["classes"]
        self.about: dict = about
        self.regions = [Region(**{**r, "transform": tuple(r["transform"])}) for r in about["regions"]]
        pixels = sum(r.height * r.width for r in self.regions)
        if self._labels.shape != (pixels,) or self._images.shape != (pixels * self.channels,):
            raise InputError(f"{self.folder}: tile arrays and regions.json disagree; run the tile stage again")

    def of_split(self, split: Split) -> list[Region]:
        return [r for r in self.regions if r.split == split]

    def image(self, region: Region) -> np.ndarray:
        """(H, W, C) uint8."""
        start = region.offset * self.channels
        flat = self._images[start : start + region.height * region.width * self.channels]
        return flat.reshape(region.height, region.width, self.channels)

    def label(self, region: Region) -> np.ndarray:
        """(H, W) uint8: 0 background, 1..k classes, 255 ignore."""
        return self._labels[region.offset : region.offset + region.height * region.width].reshape(
            region.height, region.width
        )

    @cached_property
    def table(self) -> dict[str, np.ndarray]:
        """tiles.parquet without its geometry: region (index), split, row, column, building, valid."""
        import pyarrow.parquet as parquet

        columns = ["region", "split", "row", "column", "building", "valid"]
        table = parquet.read_table(self.folder / "tiles.parquet", columns=columns)
        return {name: table[name].to_numpy(zero_copy_only=False) for name in columns}

    def sample(self, split: Split, count: int, size: int | None = None, seed: int = 0):
        """`count` tiles of a split, without replacement, those with buildings first.

        Returns images (N, S, S, C) uint8 and labels (N, S, S) uint8; S is `size` (centre of the tile) or the tile
        size, N ≤ count. Where a region is smaller than a tile, the rest is image 0 and label 255.
        """
        table, size = self.table, size or self.size
        rows = np.flatnonzero((table["split"] == split) & (table["valid"] > 0))
        rows = np.random.default_rng(seed).permutation(rows)
        rows = rows[np.argsort(table["building"][rows] <= 0, kind="stable")][:count]
        images = np.zeros((len(rows), size, size, self.channels), np.uint8)
        labels = np.full((len(rows), size, size), IGNORE, np.uint8)
        inset = max(0, self.size - size) // 2
        for i, row in enumerate(rows):
            region = self.regions[table["region"][row]]
            top, left = int(table["row"][row]) + inset, int(table["column"][row]) + inset
            patch = self.label(region)[top : top + size, left : left + size]
            labels[i, : patch.shape[0], : patch.shape[1]] = patch
            images[i, : patch.shape[0], : patch.shape[1]] = self.image(region)[top : top + size, left : left + size]
        return images, labels

    def unlabelled(self, split: Split, count: int, size: int | None = None, seed: int = 0) -> np.ndarray:
        """`count` random crops of a split's images, (N, S, S, C) uint8, chosen and returned without any label.

        Neither labels.npy nor the table of tiles (whose building shares are labels too) is opened. Crops that are
        mostly 0 in every band are nodata and left out, so N ≤ count; regions smaller than S are mirrored.
        """
        regions, size, rng = self.of_split(split), size or self.size, np.random.default_rng(seed)
        area = np.array([r.height * r.width for r in regions], float)
        crops = []
        for region in rng.choice(len(regions), 4 * count, p=area / area.sum()) if regions else []:
            image = self.image(regions[region])
            top, left = (int(rng.integers(max(0, side - size) + 1)) for side in image.shape[:2])
            crop = image[top : top + size, left : left + size]
            if (crop == 0).all(axis=-1).mean() < 0.5:
                short = [(0, size - side) for side in crop.shape[:2]]
                crops.append(np.pad(crop, [*short, (0, 0)], mode="symmetric"))
            if len(crops) == count:
                break
        return np.stack(crops) if crops else np.empty((0, size, size, self.channels), np.uint8)
