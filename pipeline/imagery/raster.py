"""Reading a scene at the ground sample distance asked for: windows of uint8 pixels,
validity and labels.

Everything happens in pixel space. Shrinking averages over the area a target pixel
covers, enlarging is bilinear; both are one sparse matrix along rows and one along
columns, so a window gives the same bytes wherever it is cut. Nodata pixels weigh 0;
a target pixel half covered by nodata is nodata (0, label 255).
"""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow
from scipy import sparse

from pipeline.bucket import gdal_options
from pipeline.errors import InputError
from pipeline.imagery.formats import open_alone, unreadable
from pipeline.imagery.grid import (
    BLOCK,
    PIXELS,
    Grid,
    Window,
    check_place,
    ground_sample_distance,
    target_grid,
)
from pipeline.imagery.sidecars import files_of
from pipeline.labels import IGNORE

STRIP = 2**22  # pixels read at a time where all of a scene is
# a scene is sampled in 8×8 patches of 32×32 pixels for its value range
SAMPLES, SAMPLE_SIDE = 8, 32
# GDAL on a URL: no listing of the folder beside it, patience with the network but not without end
REMOTE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": 4,
    "GDAL_HTTP_RETRY_DELAY": 1,  # seconds
    "GDAL_HTTP_CONNECTTIMEOUT": 15,  # seconds
    "GDAL_HTTP_LOW_SPEED_TIME": 60,  # seconds below
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,  # bytes a second
}
# a shortcut that takes a PNG cut short for a whole one
CAUTIOUS = {"GDAL_PNG_WHOLE_IMAGE_OPTIM": False}
# uncompressed pixels straight from the file, a third of the time of GDAL's cache
LOCAL = {"GTIFF_DIRECT_IO": True}
LARGEST = 100  # times a pixel is enlarged; Sentinel-2 at 30 cm is 33
PERCENTILES = (2, 98)  # values mapped to 0 and 255 where a city declares none
# times from one scene's bright values to the next brighter one's: counts of 8 and 12 bits are 16
UNITS_APART = 12
# the magnitude from which on a float is a sentinel, declared or not: -1.8e308, -3.4e38, 1e38
MEASURED = 1e30
COLOURS = ColorInterp.red, ColorInterp.green, ColorInterp.blue
# with more of a fourth band between its extremes it is near infrared, not alpha
ALPHA_BETWEEN = 0.1


def resampling_matrix(source: int, target: int, enlarge: str = "bilinear") -> sparse.csr_matrix:
    """(target, source) float32 weights, rows summing to 1, that resample a line of pixels.

    Each target pixel averages the source pixels it covers, in proportion; when enlarging,
    `bilinear` interpolates between the two nearest centres instead (`area` keeps the average:
    nearly the nearest pixel).
    """
    scale = source / target
    if scale < 1 and enlarge == "bilinear":
        centre = np.clip((np.arange(target) + 0.5) * scale - 0.5, 0, source - 1)
        first = np.minimum(centre.astype(int), max(0, source - 2))[:, None]
        columns = first + np.arange(min(2, source))
        weights = 1 - np.abs(columns - centre[:, None])
    else:
        edges = np.arange(target + 1) * source / target
        columns = np.floor(edges[:-1, None]).astype(int) + np.arange(int(np.ceil(scale)) + 1)
        weights = np.minimum(columns + 1, edges[1:, None]) - np.maximum(columns, edges[:-1, None])
    weights = np.where((weights > 1e-6) & (columns < source), weights, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(target)[:, None], columns.shape)
    kept = weights > 0
    entries = weights[kept].astype(np.float32), (rows[kept], columns[kept])
    return sparse.csr_matrix(entries, shape=(target, source))


@contextmanager
def open_raster(path: str | Path) -> Generator[rasterio.DatasetReader]:
    """Open a file, or a URL of SCHEMES, with rasterio.

    Whatever it finds wrong, on opening or in mid-read, becomes one InputError.
    """
    status = os.stat(path) if Path(path).is_file() else None
    with (
        _reading(path),
        rasterio.Env(**CAUTIOUS, **(REMOTE | gdal_options() if "://" in str(path) else {})),
    ):
        with rasterio.Env(**LOCAL) if status else nullcontext():
            dataset = open_alone(str(path))
        with dataset:
            if (
                status
                and _blocks_end(str(path), status.st_size, status.st_mtime_ns) > status.st_size
            ):
                raise OSError("its last block of pixels lies behind its end")
            yield dataset


def files_read(path: str | Path) -> tuple[str, ...]:
    """The files on this machine that an image is read from (see `files_of`), by opening it once.

    Raises InputError where it cannot be opened.
    """
    with _reading(path), rasterio.Env(**CAUTIOUS), open_alone(str(path)) as dataset:
        return files_of(dataset)


@lru_cache(1024)
def _blocks_end(path: str, size: int, changed: int) -> int:
    """The byte behind the last block of an uncompressed GeoTIFF, of other files 0; asked once, of
    every block, as long as the file's size and its time of change are the same.

    Read directly, a block that a cut file lacks is silently whatever was in memory before.
    """
    with open_alone(path) as dataset:
        if dataset.driver != "GTiff" or dataset.compression is not None:
            return 0
        bands = [1] if dataset.interleaving == Interleaving.pixel else dataset.indexes
        (height, width), last = dataset.block_shapes[0], (0, "0_0", 1)
        for band in bands:
            for y in range(-(-dataset.height // height)):
                for x in range(-(-dataset.width // width)):
                    offset = dataset.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=band)
                    # a block of a sparse file may be missing
                    last = max(last, (int(offset or 0), f"{x}_{y}", band))
        return last[0] + int(
            dataset.get_tag_item(f"BLOCK_SIZE_{last[1]}", "TIFF", bidx=last[2]) or 0
        )


@contextmanager
def _reading(path: str | Path) -> Generator[None]:
    """Blame `path`: where two files are open at once, each names its own damage."""
    try:
        yield
    except (RasterioError, OSError) as error:
        raise unreadable(path, error) from None


def grid_of(dataset) -> Grid:
    """A raster's grid, without a CRS where its own does not place it on Earth (see `unplaced`)."""
    grid = Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)
    return replace(grid, crs=None) if unplaced(dataset) else grid


def unplaced(dataset) -> str | None:
    """Why nobody can say how long a raster's pixels are on the ground; None
    where the file tells.
    """
    if dataset.crs is None:
        return "carries no CRS"
    if dataset.transform in PIXELS:
        return "carries a CRS but no geotransform"
    try:
        ground_sample_distance(Grid(dataset.height, dataset.width, dataset.transform, dataset.crs))
    except InputError as error:
        return str(error)
    return None


def declared_bands(dataset, bands: list[int]) -> list[int]:
    """`bands` with red, green and blue where the file says they are, if it says so and 1, 2, 3 (, 4
    …) are asked for.

    PlanetScope's first band is blue. Who asks for another order knows the file, and is given it.
    """
    count = len(bands)
    if not 3 <= count <= dataset.count or bands != list(range(1, count + 1)):
        return bands
    described = [_colour(text) for text in dataset.descriptions]
    # the latter red, green, blue unless someone says otherwise
    for declared in (described, list(dataset.colorinterp)):
        if all(colour in declared for colour in COLOURS):
            colours = [declared.index(colour) + 1 for colour in COLOURS]
            return colours + [band for band in dataset.indexes if band not in colours][: count - 3]
    return bands


def _colour(description: str | None) -> ColorInterp | None:
    """The colour that a band's description is: "Red" or "B04 red", and nothing else (no red
    edge, no coastal blue).
    """
    words = set(re.findall("[a-z]+", (description or "").lower())) - {"b", "band"}
    return next((colour for colour in COLOURS if words == {colour.name}), None)


def check_colours(dataset) -> None:
    """Raise InputError where an image's pixels are numbers in a table of colours, no brightness."""
    if ColorInterp.palette in dataset.colorinterp:
        raise InputError(
            f"{dataset.name}: is paletted, its pixels are numbers in a table of colours; expand "
            f"them: gdal_translate -expand rgb IN OUT"
        )


class Resampler:
    """Reads `source`-grid pixels for windows of `target`, both over one
    outline, and resamples them.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int], enlarge: str = "bilinear"):
        self.same = tuple(source) == tuple(target)
        # source pixels a target pixel
        self.density = source[0] * source[1] / (target[0] * target[1])
        if not self.same:
            self.rows = resampling_matrix(source[0], target[0], enlarge)
            self.columns = resampling_matrix(source[1], target[1], enlarge)

    def source_window(self, window: Window) -> Window:
        """The source pixels that a window of the target depends on."""
        if self.same:
            return window
        top, bottom = self._reach(self.rows, window.slices[0])
        left, right = self._reach(self.columns, window.slices[1])
        return Window(top, left, bottom - top, right - left)

    @staticmethod
    def _reach(matrix: sparse.csr_matrix, part: slice) -> tuple[int, int]:
        indices = matrix.indices[matrix.indptr[part.start] : matrix.indptr[part.stop]]
        return int(indices.min()), int(indices.max()) + 1

    def __call__(self, pixels: np.ndarray, window: Window) -> np.ndarray:
        """(h, w) source pixels of `source_window(window)` → (window.height,
        window.width) float32.
        """
        reach = self.source_window(window)
        rows = self.rows[window.slices[0], reach.slices[0]]
        columns = self.columns[window.slices[1], reach.slices[1]]
        down = rows @ pixels.astype(np.float32, copy=False)
        return (columns @ np.ascontiguousarray(down.T)).T


class Raster:
    """An image as (height, width, channels) uint8 on the target grid, read by windows or slices.

    gsd: metres on the ground a pixel; native: the same of the image's own pixels, where it carries
    no CRS; bands: 1-based; range: the values mapped to 0 and 255, None to leave them as they are
    (uint8). See `open_image`.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(
        self, dataset, bands: list[int], gsd: float, native: float | None, value_range=None
    ):
        check_colours(dataset)
        if max(bands) > dataset.count:
            raise InputError(
                f"{dataset.name}: has {dataset.count} band{'s' * (dataset.count > 1)}, but band "
                f"{max(bands)} "
                "is asked for; list the bands it has in tile.bands or in fetch.overrides.CITY.bands"
            )
        if "complex" in dataset.dtypes[bands[0] - 1]:
            raise InputError(
                f"{dataset.name}: holds complex numbers; write their magnitude to a "
                f"raster of its own"
            )
        self.dataset, self.bands, self.range = dataset, list(bands), value_range
        self.source_dtype = np.dtype(dataset.dtypes[bands[0] - 1])
        source = grid_of(dataset)
        if source.crs is not None:
            self.native = ground_sample_distance(source)
        elif native:
            self.native = native, native
        else:
            raise InputError(
                f"{dataset.name}: {unplaced(dataset)}; state its metres a pixel in "
                f"fetch.overrides.CITY.gsd"
            )
        # weights for a continent would be drawn up before anything is read
        if max(self.native) > LARGEST * gsd:
            raise InputError(
                f"{dataset.name}: its pixels are {max(self.native):g} m on the ground, more than "
                f"{LARGEST} times the "
                f"{gsd:g} m asked for; correct its georeferencing"
            )
        self.grid = target_grid(source, self.native, gsd)
        self.shape = (*self.grid.shape, len(self.bands))
        self._resample = Resampler(source.shape, self.grid.shape)
        self.density = self._resample.density  # source pixels a target pixel

    @property
    def bytes_per_pixel(self) -> float:
        """Peak memory of `read` a target pixel: the source bands, one of them
        as floats, and the result.
        """
        source = len(self.bands) * self.source_dtype.itemsize + (2 if self._resample.same else 14)
        return self._resample.density * source + 6 * len(self.bands) + 8

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        rows, columns = (*key, slice(None))[:2] if isinstance(key, tuple) else (key, slice(None))
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = columns.indices(self.shape[1])
        return self.read(Window(top, left, bottom - top, right - left))[0]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels (h, w, C) uint8 and validity (h, w) bool, None where all are valid."""
        if self.range is None and self.source_dtype != np.uint8:
            raise InputError(
                f"{self.dataset.name}: holds {self.source_dtype}, and no range to "
                f"scale it to 8 bits"
            )
        out = np.empty((window.height, window.width, len(self.bands)), np.uint8)
        reach = self._resample.source_window(window)
        if self._resample.same and self.range is None:
            raw = self._read(self.bands, reach, np.moveaxis(out, 2, 0))
            valid = self._validity(raw, reach)
        else:
            raw = self._read(self.bands, reach)
            valid = self._validity(raw, reach)
            share = None if valid is None or self._resample.same else self._resample(valid, window)
            for band, values in enumerate(raw):
                out[..., band] = self._scaled(values, valid, share, window)
            valid = valid if share is None else share > 0.5
        if valid is not None:
            out[~valid] = 0
        return out, valid

    def _scaled(
        self, values: np.ndarray, valid: np.ndarray | None, share: np.ndarray | None, window: Window
    ):
        if valid is not None:
            values = np.where(valid, values, 0)
        if not self._resample.same:
            if self.range is not None and self._masked and values.dtype.kind == "f":
                # a nodata value in one band alone drowns no neighbour
                values = np.clip(values, *self.range)
            values = self._resample(values, window)
            if share is not None:
                values = values / np.maximum(share, 1e-6)
        if self.range is not None:
            low, high = self.range
            values = (values.astype(np.float32, copy=False) - low) * np.float32(255 / (high - low))
        return np.rint(np.clip(values, 0, 255)).astype(np.uint8)

    def _read(self, bands, window: Window, out: np.ndarray | None = None) -> np.ndarray:
        where = RasterioWindow(window.left, window.top, window.width, window.height)
        with _reading(self.dataset.name):
            return self.dataset.read(bands, window=where, out=out)

    def _validity(self, raw: np.ndarray | None, window: Window) -> np.ndarray | None:
        """Where source pixels (C, h, w) hold data: where GDAL says so and no band is NaN, infinite
        or beyond what is measured; None = all.

        `raw` is looked at only where it holds floats.
        """
        valid = self._unmasked(window)
        if raw is not None and self.source_dtype.kind == "f":
            measured = np.asarray((np.abs(raw) < MEASURED).all(axis=0))
            valid = measured if valid is None else valid & measured
        return None if valid is None or valid.all() else valid

    def _unmasked(self, window: Window) -> np.ndarray | None:
        """(h, w) bool: GDAL's mask of the bands read, None where none can say no.

        As in GDAL a mask wins over transparency, and both over nodata values, which one band with
        data refutes: a value of nodata in one band alone is a colour (black, say).
        """
        where, valid = RasterioWindow(window.left, window.top, window.width, window.height), None
        with _reading(self.dataset.name):
            if self._masked == "alpha":
                return self.dataset.read(self._alpha, window=where) > 0
            for band in self._masked:
                data = self.dataset.read_masks(band, window=where) > 0
                valid = data if valid is None else valid | data
                if valid.all():
                    return None
        return valid

    @cached_property
    def _masked(self) -> list[int] | str:
        """The bands whose masks are asked: none, one that stands for all, all; or "alpha"."""
        flags = [self.dataset.mask_flag_enums[band - 1] for band in self.bands]
        if MaskFlags.per_dataset in flags[0] and MaskFlags.alpha not in flags[0]:
            return self.bands[:1]
        if self._alpha:
            return "alpha"
        by_value = all(MaskFlags.nodata in flag for flag in flags)
        return self.bands if by_value else []

    def source_validity(self, window: Window) -> np.ndarray | None:
        """(h, w) bool of a window of the image's own grid: where it holds data,
        None if everywhere.
        """
        raw = self._read(self.bands, window) if self.source_dtype.kind == "f" else None
        return self._validity(raw, window)

    def data_span(self, axis: int) -> tuple[int, int]:
        """The first row (axis 0) or column (axis 1) with data, and the one behind the last; all,
        where none has any.

        Read from both ends, and no farther than the first pixel with data.
        """
        shape = self.dataset.shape

        def with_data(start: int) -> np.ndarray:
            slab = [0, 0, *shape]
            slab[axis], slab[axis + 2] = start, min(BLOCK, shape[axis] - start)
            valid = self.source_validity(Window(*slab))
            return start + (
                np.arange(slab[axis + 2])
                if valid is None
                else np.flatnonzero(valid.any(axis=1 - axis))
            )

        starts, ours, theirs = range(0, shape[axis], BLOCK), self.grid.shape[axis], shape[axis]
        first = next((found[0] for found in map(with_data, starts) if len(found)), None)
        if first is None:
            return 0, ours
        last = next(found[-1] for found in map(with_data, reversed(starts)) if len(found))
        # in whole numbers: a float would round beyond the last pixel
        behind = -(-(last + 1) * ours // theirs)
        return int(first * ours // theirs), int(behind)

    @cached_property
    def _alpha(self) -> int | None:
        """The transparency band. Files call any fourth band alpha; near
        infrared shows by its values.
        """
        alpha = [
            i
            for i, kind in enumerate(self.dataset.colorinterp, start=1)
            if kind == ColorInterp.alpha
        ]
        if not alpha or alpha[0] in self.bands:
            return None
        values = np.concatenate(
            [self._read(alpha[0], patch).ravel() for patch in _patches(self.dataset)]
        )
        return (
            alpha[0] if ((values > 0) & (values < values.max())).mean() <= ALPHA_BETWEEN else None
        )

    def sample(self) -> np.ndarray:
        """(N,) valid values of the bands, from patches spread over the image; from all of it
        where these miss them.
        """
        found = np.concatenate([self._values(patch) for patch in _patches(self.dataset)])
        return (
            found
            if len(found)
            else np.concatenate([self._values(strip) for strip in _strips(self.dataset)])
        )

    def _values(self, window: Window) -> np.ndarray:
        """(N,) valid values of the bands, of about as many pixels as a patch has at most."""
        raw = self._read(self.bands, window)
        valid, known = self._validity(raw, window), np.ones(raw.shape, bool)
        # a valid pixel may lack a band
        if isinstance(self._masked, list) and len(self._masked) > 1:
            where = RasterioWindow(window.left, window.top, window.width, window.height)
            known = self.dataset.read_masks(self.bands, window=where) > 0
        values = raw[known if valid is None else known & valid]
        return values[:: max(1, len(values) // (len(raw) * SAMPLE_SIDE**2))]


def _patches(dataset) -> Iterator[Window]:
    for top in np.unique(np.linspace(0, max(0, dataset.height - SAMPLE_SIDE), SAMPLES).astype(int)):
        for left in np.unique(
            np.linspace(0, max(0, dataset.width - SAMPLE_SIDE), SAMPLES).astype(int)
        ):
            size = min(SAMPLE_SIDE, dataset.height), min(SAMPLE_SIDE, dataset.width)
            yield Window(int(top), int(left), *size)


def _strips(dataset) -> Iterator[Window]:
    rows = max(1, STRIP // dataset.width)
    for top in range(0, dataset.height, rows):
        yield Window(top, 0, min(rows, dataset.height - top), dataset.width)


@contextmanager
def open_image(
    path: str | Path, bands: list[int], gsd: float, native: float | None = None, value_range=None
):
    """Open an image as a `Raster` at `gsd` metres a pixel.

    Raises InputError where the file cannot be read, lacks a band, or has neither a
    CRS nor a `native` gsd.
    """
    with open_raster(path) as dataset:
        yield Raster(dataset, bands, gsd, native, value_range)


def units(samples: list[np.ndarray]) -> list[list[int]]:
    """Samples of several images, by number, in groups of one unit: none is UNITS_APART times as
    bright as the next.

    Where reflectances from 0 to 1 lie beside counts of 16 bits, one range for both turns the former
    black. Samples without a value above 0 tell nothing and are left out.
    """
    bright = [
        np.percentile(np.abs(sample), PERCENTILES[1]) if len(sample) else 0 for sample in samples
    ]
    groups: list[list[int]] = []
    for i in sorted(np.flatnonzero(bright).tolist(), key=lambda i: bright[i]):
        if groups and bright[i] < UNITS_APART * bright[groups[-1][-1]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def robust_range(samples: list[np.ndarray]) -> tuple[float, float] | None:
    """The values to map to 0 and 255, from samples of every image of a city, so
    that all are scaled alike.

    None where no sample holds data.
    """
    values = np.concatenate(samples)
    if not len(values):
        return None
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    # beyond 2⁵³ one more is the same
    return (low, high) if high > low else (low, low + max(1, abs(low) / 1e6))


class RasterLabels:
    """A label raster on an image's target grid: the class that covers most of each target pixel.

    building: 1 where the file holds 0, classes 1..k and 255 ignore; 255 where it holds 0/255.
    """

    def __init__(self, dataset, image: Raster, classes: int, building: int = 1):
        if dataset.shape != image.dataset.shape:
            sizes = ["×".join(map(str, d.shape[::-1])) for d in (dataset, image.dataset)]
            raise InputError(
                f"{dataset.name}: labels of {sizes[0]} pixels for an image of {sizes[1]}; sizes "
                f"must agree"
            )
        if dataset.count != 1:
            raise InputError(f"{dataset.name}: labels have {dataset.count} bands; one is expected")
        try:
            check_place(grid_of(dataset), grid_of(image.dataset))
        except InputError as error:
            raise InputError(f"{dataset.name}: {error}") from None
        self.dataset = dataset
        self.expected = (
            "0 and 255 (building)" if building == 255 else f"0, 1..{classes} and 255 (ignore)"
        )
        self._table = np.full(256, -1, np.int16)  # value in the file → label; -1 is an error
        self._table[::255] = [0, 1] if building == 255 else [0, IGNORE]
        if building != 255:
            self._table[: classes + 1] = range(classes + 1)
        self._resample = Resampler(dataset.shape, image.grid.shape, enlarge="area")

    def read(self, window: Window) -> np.ndarray:
        """(h, w) uint8. Raises InputError on a value that is no class."""
        reach = self._resample.source_window(window)
        where = RasterioWindow(reach.left, reach.top, reach.width, reach.height)
        raw = self.dataset.read(1, window=where)
        labels = self._labels(
            raw, unknown(self.dataset, raw, where, np.flatnonzero(self._table >= 0))
        )
        kinds = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
        if self._resample.same:
            return labels
        best = np.full((window.height, window.width), kinds[0], np.uint8)
        if len(kinds) > 1:
            most = self._resample(labels == kinds[0], window)
            for kind in kinds[1:]:
                share = self._resample(labels == kind, window)
                best[share > most] = kind
                np.maximum(most, share, out=most)
        return best

    def _labels(self, raw: np.ndarray, unknown: np.ndarray | None) -> np.ndarray:
        if unknown is not None:
            raw = np.where(unknown, 0, raw)
        if raw.dtype != np.uint8:
            values = np.unique(raw)
            self._refuse(values[~np.isin(values, range(256))])
            raw = raw.astype(np.uint8)
        present = np.flatnonzero(np.bincount(raw.ravel(), minlength=256))
        self._refuse(present[self._table[present] < 0])
        labels = self._table.astype(np.uint8)[raw]
        if unknown is not None:
            labels[unknown] = IGNORE
        return labels

    def _refuse(self, wrong: np.ndarray) -> None:
        if len(wrong):
            raise InputError(
                f"{self.dataset.name}: labels hold {wrong[0]:g}; expected {self.expected}; "
                "recode them or raise train.model.classes"
            )


def unknown(dataset, raw: np.ndarray, where: RasterioWindow, known) -> np.ndarray | None:
    """(h, w) bool: where a label raster says that it does not know, by GDAL's mask
    or a NaN; None = nowhere.

    A nodata value that is among the `known` labels (0, mostly) is that label,
    whatever the header says.
    """
    flags = dataset.mask_flag_enums[0]
    by_mask = MaskFlags.all_valid not in flags and not (
        MaskFlags.nodata in flags and dataset.nodata in known
    )
    masked = dataset.read_masks(1, window=where) == 0 if by_mask else None
    if raw.dtype.kind != "f":
        return masked
    return np.isnan(raw) if masked is None else masked | np.isnan(raw)
