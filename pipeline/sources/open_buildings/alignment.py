"""How far footprints lie beside the buildings of an image: translation by
correlating outlines with edges.

An outline and an image edge agree where they lie at the same place *and* in the same direction.
What is correlated is therefore the squared projection of the image's gradient g on the outline's
normal n, (g·n)² = Σᵢⱼ gᵢgⱼ nᵢnⱼ: three correlations of structure tensors, each by FFT, for all
translations at once. The sign of the contrast does not enter: a roof may be darker or brighter than
the ground around it.
"""

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
import shapely
from pyproj import Geod
from rasterio.enums import Resampling
from rasterio.windows import Window as RasterioWindow
from scipy import fft, ndimage

from pipeline.imagery.grid import Grid, Window, ground_sample_distance, to_degrees
from pipeline.imagery.raster import grid_of, open_raster
from pipeline.imagery.rasterize import rasterize
from pipeline.imagery.vector import Footprints

GSD = 0.5  # metres a pixel of the view that is compared; Open Buildings was drawn on 0.5 m imagery
SIDE = 1024  # pixels along its longer side
REACH = 10.0  # metres, the largest shift looked for
BLUR = 1.0  # pixels, σ of the gradients
NEIGHBOURHOOD = 8.0  # pixels, σ of the window within which contrast is evened out
# a peak to believe: real ones are 5.4-11 from ten footprints on, mirrored footprints' below 4.6
STRONG = 5.0


@dataclass(frozen=True)
class Shift:
    east: float  # metres by which the footprints would have to move
    north: float
    strength: float  # height of the peak in standard deviations of all shifts within REACH

    @property
    def metres(self) -> float:
        return float(np.hypot(self.east, self.north))


def estimate_shift(
    path: str, footprints: Footprints, bands: list[int] | None = None
) -> Shift | None:
    """The translation from footprints to an image in their CRS; None where no footprint is in view.

    One view is compared, SIDE pixels of GSD metres around the middle of the footprints, read
    through overviews where there are any. `bands` are averaged; None = the first three.
    """
    with open_raster(path) as dataset:
        whole = grid_of(dataset)
        view = _view(whole, footprints)
        source = RasterioWindow(view.left, view.top, view.width, view.height)
        # source pixels a pixel seen
        pixel = [max(1.0, GSD / metres) for metres in ground_sample_distance(whole)]
        grid = whole.window(view).resized(
            max(1, round(view.height / pixel[1])), max(1, round(view.width / pixel[0]))
        )
        bands = bands or dataset.indexes[:3]
        how = {"window": source, "resampling": Resampling.average}
        image = (
            dataset.read(bands, out_shape=(len(bands), *grid.shape), **how)
            .astype(np.float32)
            .mean(axis=0)
        )
        valid = dataset.dataset_mask(window=source, out_shape=grid.shape) > 0
    valid &= np.isfinite(image)
    mask = rasterize(footprints.polygons, np.ones(len(footprints), np.uint8), grid) > 0
    if not (mask & valid).any() or min(grid.shape) < 4 * NEIGHBOURHOOD:
        return None
    reach = int(np.ceil(REACH / min(ground_sample_distance(grid))))
    rows, columns, strength = translation(image, valid, mask, min(reach, min(grid.shape) // 2))
    return Shift(*_metres(grid, rows, columns), strength)


def _view(grid: Grid, footprints: Footprints) -> Window:
    """Source pixels: SIDE by SIDE pixels of GSD metres around the median
    footprint, or what there is.
    """
    centres = shapely.get_coordinates(shapely.centroid(footprints.polygons))
    middle = np.median(np.stack(~grid.transform @ centres.T), axis=1) if len(centres) else (0, 0)
    sizes, starts = [], []
    for length, metres, centre in zip(
        grid.shape[::-1], ground_sample_distance(grid), middle, strict=True
    ):
        sizes.append(min(length, max(1, round(SIDE * max(GSD / metres, 1)))))
        starts.append(int(np.clip(centre - sizes[-1] / 2, 0, length - sizes[-1])))
    return Window(starts[1], starts[0], sizes[1], sizes[0])


def _metres(grid: Grid, rows: float, columns: float) -> tuple[float, float]:
    """Metres east and north of a step in pixels, at the middle of the grid."""
    column, row = grid.width / 2, grid.height / 2
    steps = np.array([[column, row], [column + columns, row + rows]])
    x, y = to_degrees(grid.crs).transform(*(grid.transform @ steps.T))
    azimuth, _, metres = Geod(ellps="WGS84").inv(x[0], y[0], x[1], y[1])
    return metres * sin(radians(azimuth)), metres * cos(radians(azimuth))


def translation(
    image: np.ndarray, valid: np.ndarray, mask: np.ndarray, reach: int
) -> tuple[float, float, float]:
    """(rows, columns, strength): where `mask` (H, W) bool fits `image` (H, W) best,
    within `reach` pixels.

    `strength` is the height of the peak in standard deviations of all shifts tried. The parabola
    through the peak and its neighbours gives the fraction of a pixel.
    """
    edges = _tensor(np.where(valid, image, image[valid].mean()))
    evenness = (
        ndimage.gaussian_filter(edges[0] + edges[2], NEIGHBOURHOOD)
        + 1e-3 * (edges[0] + edges[2]).mean()
    )
    # the border of nodata is no edge of a building
    seen = ndimage.binary_erosion(valid, iterations=4)
    edges = [np.where(seen, part / evenness, 0) for part in edges]
    outlines = _tensor(mask.astype(np.float32))
    shape = [fft.next_fast_len(side + reach, real=True) for side in image.shape]
    score = 0
    for part, outline, weight in zip(edges, outlines, (1, 2, 1), strict=True):
        part = np.where(seen, part - part[seen].mean(), 0)
        score = score + weight * fft.rfft2(part, shape) * np.conj(fft.rfft2(outline, shape))
    score = np.roll(fft.irfft2(score, shape), (reach, reach), axis=(0, 1))[
        : 2 * reach + 1, : 2 * reach + 1
    ]
    row, column = np.unravel_index(score.argmax(), score.shape)
    strength = float((score.max() - score.mean()) / (score.std() + 1e-12))
    return (
        row - reach + _vertex(score[:, column], row),
        column - reach + _vertex(score[row], column),
        strength,
    )


def _tensor(image: np.ndarray) -> list[np.ndarray]:
    """The gradient's products: rows², rows·columns, columns²."""
    rows = ndimage.gaussian_filter(image, BLUR, order=(1, 0), output=np.float32)
    columns = ndimage.gaussian_filter(image, BLUR, order=(0, 1), output=np.float32)
    return [rows * rows, rows * columns, columns * columns]


def _vertex(line: np.ndarray, peak: int) -> float:
    """Offset of the vertex of the parabola through a peak and its two neighbours, in samples."""
    if not 0 < peak < len(line) - 1:
        return 0.0
    before, at, after = line[peak - 1 : peak + 2]
    return float((before - after) / (2 * (before - 2 * at + after) or 1))
