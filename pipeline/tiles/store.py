"""Tiles on disk: a city's scenes at one ground sample distance, memory-mapped, plus
a table of tiles.

data/tiles/CITY/
    images.npy      uint8, flat: the regions' (H, W, C) pixels one after another
    labels.npy      uint8, flat: the regions' (H, W) labels: 0 background, 1..k classes, 255 ignore
    numbers.npy     uint8, flat: which building is which (see tiles/instances.py); only of a city with footprints
    groups.npy      uint8, flat: the regions' (H, W) codes of groups of buildings from 1, if fetch.groups asks for any
    regions.json    one record a region: where it lies in the arrays, on the ground, and in which split
    tiles.parquet   GeoParquet in EPSG:4326, one row a tile: region (its index), split, row and column (pixels
                    from the region's corner), building (share of its valid pixels), valid (share of the
                    tile), scene

A region is a whole scene, or one block of a city's single large scene; it belongs to exactly one
split. Regions are stored unbroken: a training crop may start at any pixel, and a metric is one over
scenes, not over tiles.
"""

import os
import shutil
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
from affine import Affine
from pydantic import Field, TypeAdapter

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid, Window
from pipeline.labels import IGNORE, Split
from pipeline.params import Count, GroundSampleDistance
from pipeline.storage import read_json, write_json
from pipeline.tiles.instances import instances


@dataclass(frozen=True)
class Region:
    name: str
    parent: str  # the scene it was cut from
    split: Split
    height: Count
    width: Count
    offset: Annotated[int, Field(ge=0)]  # pixels before it in labels.npy (times C in images.npy)
    transform: tuple[float, float, float, float, float, float]  # affine a..f: pixel to CRS units
    crs: str | None  # WKT or authority code; None where the image had none

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def grid(self) -> Grid:
        return Grid(self.height, self.width, Affine(*self.transform), self.crs)

    def windows(self, size: int) -> list[Window]:
        """Its tiles, row by row; the last of a row or column may reach past the region."""
        return [
            Window(r, c, size, size)
            for r in range(0, self.height, size)
            for c in range(0, self.width, size)
        ]


@dataclass(frozen=True)
class Index:
    """What the stages rely on in regions.json; a file may say more."""

    city: str
    gsd: GroundSampleDistance
    size: Count
    channels: Count
    classes: Annotated[int, Field(ge=1, le=254)]
    regions: list[Region]
    # names, by code from 1
    groups: Annotated[list[str], Field(max_length=254)] = field(default_factory=list)
    grouped_by: str | None = None  # the column of these names


INDEX = TypeAdapter(Index)


def read_index(folder: Path) -> tuple[dict, Index]:
    """FOLDER/regions.json as it stands, and checked. Raises InputError where it
    is absent or damaged.
    """
    try:
        about = read_json(folder / "regions.json")
        index = INDEX.validate_python(about)
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename}: not found; run the tile stage for {folder.name} first"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(folder / "regions.json", error) from None
    if index.city != folder.resolve().name:  # it names files that are written
        raise InputError(f"{folder}: holds the tiles of {index.city!r}; run the tile stage again")
    return about, index


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: damaged ({' '.join(str(error).split())[:200]}); run the tile stage again"
    )


class CityTiles:
    """One city's tiles, opened read-only. `image` and `label` return views into
    the mapped files.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.about, index = read_index(self.folder)
        self.city, self.gsd, self.size = index.city, index.gsd, index.size
        self.channels, self.classes, self.regions = index.channels, index.classes, index.regions
        self.group_names, self.grouped_by = index.groups, index.grouped_by
        self._images, self._labels = (self._mapped(name) for name in ("images", "labels"))
        self._groups = self._mapped("groups") if self.group_names else None
        self._numbers = self._mapped("numbers") if (self.folder / "numbers.npy").exists() else None
        pixels = sum(r.pixels for r in self.regions)
        inside = all(r.offset + r.pixels <= pixels for r in self.regions)
        flat = [array for array in (self._labels, self._groups, self._numbers) if array is not None]
        if (
            not inside
            or any(array.shape != (pixels,) for array in flat)
            or self._images.shape != (pixels * self.channels,)
        ):
            raise InputError(
                f"{self.folder}: tile arrays and regions.json disagree; run the tile stage again"
            )

    def _mapped(self, name: str) -> np.ndarray:
        """An array of bytes as long as its file: what a header claims beyond it
        is never allocated.
        """
        path = self.folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise InputError(
                f"{path}: not found; run the tile stage for {self.folder.name} first"
            ) from None
        except (OSError, ValueError, EOFError, OverflowError) as error:
            raise _damaged(path, error) from None
        if array.dtype != np.uint8:
            raise _damaged(path, TypeError(f"it holds {array.dtype}, not bytes"))
        return array.view(np.ndarray)  # slices of np.memmap cost a crop a tenth of its time

    def of_split(self, split: Split) -> list[Region]:
        return [r for r in self.regions if r.split == split]

    def image(self, region: Region) -> np.ndarray:
        """(H, W, C) uint8."""
        start = region.offset * self.channels
        flat = self._images[start : start + region.height * region.width * self.channels]
        return flat.reshape(region.height, region.width, self.channels)

    def label(self, region: Region) -> np.ndarray:
        """(H, W) uint8: 0 background, 1..k classes, 255 ignore."""
        return _cut(self._labels, region)

    def groups(self, region: Region) -> np.ndarray | None:
        """(H, W) uint8 codes of groups of buildings, 0 where there is none;
        None where none were asked for.
        """
        return None if self._groups is None else _cut(self._groups, region)

    def numbers(self, region: Region) -> np.ndarray | None:
        """(H, W) uint8: 0, or a number that neighbouring buildings do not share; None where
        labels were rasters.
        """
        return None if self._numbers is None else _cut(self._numbers, region)

    def instances(self, region: Region) -> np.ndarray:
        """(H, W) int32: 0, or which building."""
        return instances(self.label(region), self.numbers(region))

    @cached_property
    def table(self) -> dict[str, np.ndarray]:
        """tiles.parquet without its geometry: region (index), split, row,
        column, building, valid.
        """
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException

        path, places = self.folder / "tiles.parquet", ("region", "row", "column")
        columns = [*places, "split", "building", "valid"]
        try:
            table = parquet.read_table(path, columns=columns)
        except (OSError, ArrowException) as error:
            raise _damaged(path, error) from None
        found = {name: table[name].to_numpy(zero_copy_only=False) for name in columns}
        if any(found[name].dtype.kind not in "iu" or (found[name] < 0).any() for name in places):
            raise _damaged(path, ValueError("a tile has no place"))
        if (found["region"] >= len(self.regions)).any():
            raise _damaged(path, ValueError("it holds tiles of another city"))
        return found

    def sample(self, split: Split, count: int, size: int | None = None, seed: int = 0):
        """`count` tiles of a split: `read` of what `chosen` picks."""
        return self.read(self.chosen(split, count, size, seed), size)

    def chosen(
        self, split: Split, count: int, size: int | None = None, seed: int = 0
    ) -> np.ndarray:
        """Rows (N,) of the table: `count` tiles of a split, without replacement, those with
        buildings first.

        N ≤ count. Tiles less than half of which (of their centre of `size` pixels) is valid are
        taken only where all are such.
        """
        table, size = self.table, size or self.size
        rows = np.flatnonzero(table["split"] == split)
        if (valid := table["valid"][rows] > 0).any():
            rows = rows[valid]
        rows = np.random.default_rng(seed).permutation(rows)
        rows = rows[np.argsort(table["building"][rows] <= 0, kind="stable")]
        full = list(islice((row for row in rows if 2 * self._valid(row, size) >= size**2), count))
        return np.array(full or rows[:count], int)

    def read(self, rows: np.ndarray, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, S, S, C) uint8 and labels (N, S, S) uint8 of tiles by their rows of the table.

        S is `size` (centre of the tile) or the tile size. Where a region is smaller than a tile,
        the rest is image 0 and label 255.
        """
        size = size or self.size
        images = np.zeros((len(rows), size, size, self.channels), np.uint8)
        labels = np.full((len(rows), size, size), IGNORE, np.uint8)
        for i, row in enumerate(rows):
            region, place = self._place(row, size)
            patch = self.label(region)[place]
            labels[i, : patch.shape[0], : patch.shape[1]] = patch
            images[i, : patch.shape[0], : patch.shape[1]] = self.image(region)[place]
        return images, labels

    def scenes(self, rows: np.ndarray) -> np.ndarray:
        """Names (N,) of the scenes that tiles were cut from, by their rows of the table."""
        return np.array(
            [self.regions[region].parent for region in self.table["region"][rows]], object
        )

    def _place(self, row: int, size: int) -> tuple[Region, tuple[slice, slice]]:
        """The region of a tile of the table, and in it the tile's centre of size × size pixels."""
        inset = max(0, self.size - size) // 2
        top, left = (int(self.table[name][row]) + inset for name in ("row", "column"))
        return self.regions[self.table["region"][row]], (
            slice(top, top + size),
            slice(left, left + size),
        )

    def _valid(self, row: int, size: int) -> float:
        """Valid pixels of a tile, or of its centre, by its label where the table does not say."""
        if size == self.size:
            return float(self.table["valid"][row]) * size**2
        region, place = self._place(row, size)
        return float(np.count_nonzero(self.label(region)[place] != IGNORE))

    def unlabelled(
        self, split: Split, count: int, size: int | None = None, seed: int = 0
    ) -> np.ndarray:
        """`count` random crops of a split's images, (N, S, S, C) uint8, chosen and
        given without any label.

        Neither labels.npy nor the table of tiles (whose building shares are labels too) is opened.
        Crops that are mostly 0 in every band are nodata and left out, so N ≤ count; regions smaller
        than S are mirrored.
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


def _cut(flat: np.ndarray, region: Region) -> np.ndarray:
    return flat[region.offset : region.offset + region.pixels].reshape(region.height, region.width)


def allocate(
    folder: Path, regions: list[Region], channels: int, groups: bool = False, numbers: bool = False
) -> None:
    """Lay out the arrays for `write_window` to fill. Raises InputError where
    the disk is too small.
    """
    pixels = sum(r.pixels for r in regions)
    depths = {"images": channels, "labels": 1, "groups": int(groups), "numbers": int(numbers)}
    needed, free = pixels * sum(depths.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder.parent}: {needed / 1e9:.1f} GB of tiles do not fit into the "
            f"{free / 1e9:.1f} GB free; raise tile.gsd or make room"
        )
    for name, length in ((name, pixels * depth) for name, depth in depths.items() if depth):
        path = folder / f"{name}.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(length,))
        if hasattr(os, "posix_fallocate"):  # not on macOS
            # take the space now, not window by window until the disk is full
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def write_window(
    folder: Path,
    region: Region,
    window: Window,
    image: np.ndarray,
    label: np.ndarray,
    groups: np.ndarray | None = None,
    numbers: np.ndarray | None = None,
) -> None:
    """Put a window of a region, image (h, w, C), label and, if any, groups and numbers (h, w)
    uint8, into the arrays; processes may side by side.

    Written, not mapped: a fresh page of a map costs a fault every 4 kB, and a full disk kills who
    touches it. Raises InputError where the disk is full.
    """
    whole_rows = window.width == region.width
    layers = [("images", image, image.shape[2]), ("labels", label, 1)]
    layers += [
        (name, layer, 1)
        for name, layer in (("groups", groups), ("numbers", numbers))
        if layer is not None
    ]
    for name, pixels, depth in layers:
        try:
            with (folder / f"{name}.npy").open("r+b") as file:
                header = _header(file)
                for row, line in enumerate([pixels] if whole_rows else pixels):
                    start = region.offset + (window.top + row) * region.width + window.left
                    file.seek(header + start * depth)
                    file.write(np.ascontiguousarray(line).data)
        except OSError as error:
            detail = f"{folder.parent}: tiles cannot be written ({error.strerror})"
            raise InputError(f"{detail}; make room, or raise tile.gsd") from None


def _header(file) -> int:
    """Bytes before the first pixel of a .npy file."""
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return file.tell()


def written_label(folder: Path, region: Region) -> np.ndarray:
    """A region's (H, W) label, mapped, while its city is still being written."""
    return _cut(np.load(folder / "labels.npy", mmap_mode="r"), region)


def count_tiles(label: np.ndarray, size: int) -> np.ndarray:
    """Building pixels and valid pixels of each tile of a (H, W) label: (2,
    ⌈H/size⌉, ⌈W/size⌉) int64.
    """
    rows, columns = (range(0, length, size) for length in label.shape)
    valid = label != IGNORE

    def count(mask: np.ndarray) -> list[list[int]]:
        return [
            [int(np.count_nonzero(mask[r : r + size, c : c + size])) for c in columns] for r in rows
        ]

    return np.array([count(valid & (label > 0)), count(valid)], np.int64)


def write_index(folder: Path, about: dict, regions: list[Region], counts: list[np.ndarray]) -> dict:
    """Write regions.json (returned) and tiles.parquet. counts: of each region's
    label by `count_tiles`.

    The footprint of a tile is its part inside the region; it is missing where the
    image carries no CRS.
    """
    import geopandas

    size, columns, footprints = about["size"], [], []
    for index, (region, (building, valid)) in enumerate(zip(regions, counts, strict=True)):
        windows = region.windows(size)
        columns.append(
            {
                "region": np.full(len(windows), index, np.int32),
                "split": np.full(len(windows), region.split, object),
                "row": np.array([w.top for w in windows], np.int32),
                "column": np.array([w.left for w in windows], np.int32),
                "building": (building / np.maximum(valid, 1)).ravel().astype(np.float32),
                "valid": (valid / size**2).ravel().astype(np.float32),
                "scene": np.full(len(windows), region.parent, object),
            }
        )
        if region.crs is None:
            footprints.append(np.full(len(windows), None, object))
            continue
        inside = [
            w._replace(
                height=min(size, region.height - w.top), width=min(size, region.width - w.left)
            )
            for w in windows
        ]
        footprints.append(region.grid.outlines(inside))
    merged = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    frame = geopandas.GeoDataFrame(merged, geometry=np.concatenate(footprints), crs="EPSG:4326")
    frame.to_parquet(folder / "tiles.parquet", index=False)
    about = {**about, "regions": [asdict(region) for region in regions]}
    write_json(folder / "regions.json", about)
    return about


Cities = dict[str, CityTiles]  # by name


def open_cities(cities: list[str], root: str | Path = "data/tiles") -> list[CityTiles]:
    """The tiles of each named city under `root`. Raises InputError where the
    tile stage has not run.
    """
    return [CityTiles(Path(root) / city) for city in cities]
