"""What the files of scenes say of themselves, found before anything is computed."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio

from pipeline.console import progress
from pipeline.errors import InputError
from pipeline.imagery.grid import Grid
from pipeline.imagery.raster import grid_of, open_raster, unplaced
from pipeline.imagery.sidecars import files_of


@dataclass(frozen=True)
class Image:
    """What a scene's file says of itself."""

    path: str  # a file or a URL, as rasterio opens it
    grid: Grid
    blank: bool  # no pixel tells anything
    name: str
    files: tuple[str, ...]  # it, and what is read along with it


def survey_all(
    paths: list[str],
    city: str,
    place: object,
    gsd: float | None,
    names: list[str] | None = None,
    *,
    over: str | None = None,
) -> tuple[list[Image], dict]:
    """Every image that holds data, and the city's notes so far: warnings, and the images left out.

    names: of the scenes; None = their files' without suffix. `over`: the footprints
    to be laid over them.
    """
    if not paths:
        raise InputError(
            f"{place}: holds no image; put the scenes of {city} there or leave the city out"
        )
    names = names or [Path(path).stem for path in paths]
    surveyed = progress(zip(paths, names, strict=True), f"checking {city}", len(paths))
    images = [survey(path, gsd, name, over=over) for path, name in surveyed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{place}: two scenes are called {twice[0]}; rename one")
    blank = [image.name for image in images if image.blank]
    if len(blank) == len(images):
        raise InputError(
            f"{place}: no scene of {city} holds data, every pixel is nodata; check the files"
        )
    notes = {"warnings": [], "scenes_without_data": blank}
    if blank:
        notes["warnings"].append(
            f"{city}: {len(blank)} scenes hold nothing but nodata and are left out: {listed(blank)}"
        )
    return [image for image in images if not image.blank], notes


def survey(
    path: str, gsd: float | None = None, name: str | None = None, *, over: str | None = None
) -> Image:
    """Open an image, check that it is whole and lies on the ground, and read on
    until two pixels differ.

    `gsd` is what the user states where the file does not place its pixels on Earth, which helps no
    footprints `over` it. Raises InputError.
    """
    with open_raster(path) as dataset, named(path):
        check_complete(dataset)
        reason = unplaced(dataset)
        if reason and over is not None:
            raise InputError(f"{reason}, so {over} cannot be laid over it; assign one")
        if reason and gsd is None:
            raise InputError(
                f"{reason}; correct that, or state fetch.overrides.CITY.gsd in metres a pixel"
            )
        found = name or Path(path).stem
        return Image(path, grid_of(dataset), _blank(dataset), found, files_of(dataset))


@contextmanager
def named(path: str | Path) -> Generator[None]:
    """Begin the sentence of an InputError with the file it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def stamp(*paths: str | Path) -> str:
    """Size and time of change of files."""
    return " ".join(f"{status.st_size}-{status.st_mtime_ns}" for status in map(os.stat, paths))


def check_complete(dataset: rasterio.DatasetReader) -> None:
    """Raise InputError where a block that the TIFF's directory promises ends beyond
    the end of the file.

    Of other formats the last pixels are read.
    """
    path = Path(dataset.name)
    if not path.is_file():  # a URL
        return
    if dataset.driver != "GTiff":
        dataset.read(1, window=((dataset.height - 1, dataset.height), (0, dataset.width)))
        return
    size = path.stat().st_size
    for band in dataset.indexes if dataset.interleaving.name == "band" else (1,):
        for (row, column), _ in dataset.block_windows(band):
            place = f"{column}_{row}"
            offset = int(dataset.get_tag_item(f"BLOCK_OFFSET_{place}", "TIFF", bidx=band) or 0)
            end = offset + int(dataset.get_tag_item(f"BLOCK_SIZE_{place}", "TIFF", bidx=band) or 0)
            if end > size:
                raise InputError(
                    f"is truncated: it has {size} bytes and should have at least "
                    f"{end}; copy it again"
                )


def _blank(dataset: rasterio.DatasetReader) -> bool:
    """Whether every pixel is nodata or all are the same one."""
    first = None
    for _, window in dataset.block_windows(1):
        pixels = dataset.read(window=window)
        pixels = pixels[
            :, (dataset.dataset_mask(window=window) > 0) & np.isfinite(pixels).all(axis=0)
        ]
        if pixels.size and first is None:
            first = pixels[:, :1]
        if pixels.size and (pixels != first).any():
            return False
    return True


def listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
