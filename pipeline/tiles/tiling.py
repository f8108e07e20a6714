"""Filling a city's arrays (see geo.tiles): regions in shards, in this process or several, each
window by window.

A shard is some rows of tiles of a region; whoever takes it reads its windows from
the scene's files and writes them to their place in the arrays, so that memory is
bounded whatever the size of a scene.
"""

import os
import signal
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np
import rasterio

from pipeline.console import progress
from pipeline.errors import InputError
from pipeline.imagery.grid import BLOCK, Window, windows
from pipeline.imagery.raster import RasterLabels, open_image, open_raster
from pipeline.imagery.rasterize import VectorLabels
from pipeline.labels import IGNORE
from pipeline.params import Tile
from pipeline.runs import cores
from pipeline.tiles.store import Region, count_tiles, write_window, written_label

MOST_GROUPS = 20  # that a column may tell apart
SHARD = 16_000_000  # source pixels a worker takes at a time
# pixels read at a time: larger ones ask the system for fresh memory each, at twice the read's cost
WINDOW = 4_000_000
WORTH_A_POOL = 48_000_000  # source pixels below which starting processes costs more than it saves


@dataclass(frozen=True)
class Source:
    """How one scene is read; small enough to be sent to a process."""

    name: str
    image: str
    bands: list[int]
    gsd: float
    native: float | None
    range: tuple[float, float] | None
    classes: int
    all_touched: bool
    labels: str | None = None  # a label raster, or else
    raster_building: int = 1
    # footprints in the image's CRS
    polygons: np.ndarray = field(default_factory=lambda: np.empty(0, object))
    values: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))  # and their labels
    numbers: np.ndarray | None = None  # and which building is which (see tiles/instances.py)
    # and the codes of their groups from 1, 0 for none; None where there are none
    groups: np.ndarray | None = None
    group_names: list[str] = field(default_factory=list)  # by code from 1


@dataclass(frozen=True)
class Planned:
    """A region, the scene it is read from and where in that scene's target grid it lies."""

    source: Source
    region: Region
    window: Window
    native: float  # metres a pixel of the image
    density: float  # source pixels a target pixel


@dataclass(frozen=True)
class Shard:
    """Rows of a region, whole rows of tiles, that one worker fills."""

    index: int  # of the region
    plan: Planned
    rows: tuple[int, int]
    folder: Path
    size: int
    memory: int  # MB


def fill(
    plans: list[Planned], folder: Path, tile: Tile, description: str
) -> tuple[list[np.ndarray], dict[str, int]]:
    """Fill the arrays that `allocate` laid out in `folder`.

    Returns the counts of every region's tiles (see `count_tiles`) and every scene's number of
    pixels with data. Raises InputError on a scene that cannot be read, a label that is none, a full
    disk, a process that was killed.
    """
    parts: list[dict[int, np.ndarray]] = [{} for _ in plans]
    seen = dict.fromkeys((plan.region.parent for plan in plans), 0)
    for shard, (counted, pixels) in _run(
        list(_shards(plans, folder, tile)), _workers(tile, plans), description
    ):
        parts[shard.index][shard.rows[0]] = counted
        seen[shard.plan.region.parent] += pixels
    return [np.concatenate([part[row] for row in sorted(part)], axis=1) for part in parts], seen


def _run(shards: list[Shard], workers: int, description: str) -> Iterator[tuple[Shard, tuple]]:
    """Run every shard, in this process or in several, and yield each with what
    it counted as it is done.
    """
    if min(workers, len(shards)) == 1:
        for shard in progress(shards, description):
            yield shard, _fill_shard(shard)
        return
    spawn = get_context("spawn")  # GDAL does not survive fork
    pool = ProcessPoolExecutor(
        min(workers, len(shards)), mp_context=spawn, initializer=_leave_with_parent
    )
    try:
        with _uninterrupted():
            futures = {pool.submit(_fill_shard, shard): shard for shard in shards}
        for future in progress(as_completed(futures), description, total=len(futures)):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise InputError(
            "a tiling process was killed, perhaps for memory; lower tile.memory or tile.workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _shards(plans: list[Planned], folder: Path, tile: Tile) -> Iterator[Shard]:
    for index, plan in enumerate(plans):
        rows = SHARD / (plan.density * plan.region.width)
        rows = max(1, int(rows) // tile.size) * tile.size
        for top in range(0, plan.region.height, rows):
            bottom = min(top + rows, plan.region.height)
            yield Shard(index, plan, (top, bottom), folder, tile.size, tile.memory)


def _workers(tile: Tile, plans: list[Planned]) -> int:
    if tile.workers:
        return tile.workers
    source = sum(plan.region.pixels * plan.density for plan in plans)
    return cores() if source > WORTH_A_POOL else 1


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Ctrl-C waits, and what is started meanwhile never hears of it: it is the
    parent's to answer.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _leave_with_parent() -> None:
    """A worker whose parent is killed would wait for its next shard for ever."""
    if parent := parent_process():
        Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _fill_shard(shard: Shard) -> tuple[np.ndarray, int]:
    """Write a shard's pixels and labels; returns its tiles' counts and its
    number of pixels with data.
    """
    plan, (top, bottom) = shard.plan, shard.rows
    source, region, seen = plan.source, plan.region, 0
    with (
        named(source.name),
        # in bytes: rasterize takes MB for bytes
        rasterio.Env(GDAL_CACHEMAX=shard.memory * 2**20 // 4),
        open_image(source.image, source.bands, source.gsd, source.native, source.range) as image,
        _open_labels(source, image) as labels,
    ):
        groups = None if source.groups is None else _groups(source, source.groups, image)
        budget = min(
            int(0.75e6 * shard.memory / image.bytes_per_pixel), max(WINDOW, BLOCK * region.width)
        )
        for window in windows(bottom - top, region.width, budget):
            window = window.shifted(top, 0)
            within = window.shifted(plan.window.top, plan.window.left)
            pixels, data = image.read(within)
            label, numbers = (
                labels.read_numbered(within)
                if source.labels is None
                else (labels.read(within), None)
            )
            if data is not None:
                label[~data] = IGNORE
            codes = groups.read(within) if groups else None
            write_window(shard.folder, region, window, pixels, label, codes, numbers)
            seen += label.size if data is None else int(data.sum())
    label = written_label(shard.folder, region)
    counts = [
        count_tiles(label[row : min(row + shard.size, bottom)], shard.size)
        for row in range(top, bottom, shard.size)
    ]
    return np.concatenate(counts, axis=1), seen


@contextmanager
def _open_labels(source: Source, image):
    if source.labels is None:
        footprints = source.polygons, source.values, image.grid, source.classes, source.all_touched
        yield VectorLabels(*footprints, source.numbers)
    else:
        with open_raster(source.labels) as dataset:
            yield RasterLabels(dataset, image, source.classes, source.raster_building)


def _groups(source: Source, codes: np.ndarray, image) -> VectorLabels:
    """The footprints again, as what their groups' codes draw."""
    some = codes > 0
    return VectorLabels(
        source.polygons[some], codes[some], image.grid, MOST_GROUPS, source.all_touched
    )


@contextmanager
def named(scene: str):
    try:
        yield
    except InputError as error:
        raise InputError(f"scene {scene}: {error}") from None
