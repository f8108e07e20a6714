"""A demo plan seen from an aeroplane: deferred shading of height, slope and colour, at twice the resolution.

Geometry first (which surface, how high, how steep at every pixel), light second: the sun as a direction, the
sky as a share, shadows marched through the height field, haze, lens and sensor. Roofs are drawn where they
stand (no relief displacement), so footprints match them. Every texture is a function of place (value noise
over hashed lattices), so a scene of any size is rendered window by window without seams, and equal seeds give
equal bytes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from rasterio.features import rasterize
from rasterio.transform import Affine

from pipeline.sources.demo_city import DemoCity
from pipeline.sources.demo_plan import FORMS, PATTERNS, Plan, Solid, Surface, Tree

OVER = 2  # samples along a pixel's side
REACH = 14.0  # metres beyond a window from which things still throw shadows into it
WINDOW = 1024  # pixels along a window's side: bounds the memory of large scenes
LAYERS = 3  # of solids
SHADES = 32  # steps between a material's colour and its alternative


@dataclass(frozen=True)
class Grid:
    """A window of the fine grid: first row and column (may be negative), shape, and a pixel's side."""

    row: int
    col: int
    rows: int
    cols: int
    pixel: float  # metres

    def xy(self) -> tuple[np.ndarray, np.ndarray]:
        """(1, cols) and (rows, 1) float32: metres of pixel centres."""
        x = (self.col + np.arange(self.cols) + 0.5) * self.pixel
        y = (self.row + np.arange(self.rows) + 0.5) * self.pixel
        return x.astype(np.float32)[None], y.astype(np.float32)[:, None]

    def rasterize(self, polygons: np.ndarray) -> np.ndarray:
        """(rows, cols) int32: number, from 1, of the last polygon over each pixel's centre; 0 = none."""
        here = np.array([self.col, self.row])
        polygons = shapely.transform(polygons, lambda xy: xy / self.pixel - here)
        left, top, right, bottom = shapely.bounds(polygons).reshape(-1, 4).T
        seen = np.flatnonzero((right >= 0) & (bottom >= 0) & (left <= self.cols) & (top <= self.rows))
        shape = (self.rows, self.cols)
        if not len(seen):
            return np.zeros(shape, np.int32)
        numbered = [(polygons[i], int(i) + 1) for i in seen]
        return rasterize(numbered, shape, transform=Affine.identity(), dtype="int32")


def _mix(a: np.ndarray, b: np.ndarray, key: np.ndarray | int) -> np.ndarray:
    """uint32, shapes broadcast: well-mixed bits of integer places (Wellons's lowbias32 finaliser)."""
    with np.errstate(over="ignore"):
        h = a.astype(np.uint32) * np.uint32(0x9E3779B1) ^ b.astype(np.uint32) * np.uint32(0x85EBCA77)
        h = h + np.asarray(key).astype(np.uint32) * np.uint32(0x27D4EB2F)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            h ^= h >> np.uint32(shift)
            h *= np.uint32(factor)
        h ^= h >> np.uint32(16)
    return h


def white(row: int, col: int, rows: int, cols: int, seed: int) -> np.ndarray:
    """(rows, cols) float32, nearly normal: the four bytes of a hash added up (Irwin-Hall)."""
    bits = _mix(np.arange(row, row + rows)[:, None], np.arange(col, col + cols), seed)
    total = (bits & 0xFF) + (bits >> 8 & 0xFF) + (bits >> 16 & 0xFF) + (bits >> 24)
    return (total.astype(np.float32) - 510) / 147.8


def noise(grid: Grid, metres: float, seed: int) -> np.ndarray:
    """(rows, cols) float32 of unit-like scale: value noise with a lattice every `metres`."""
    step = max(1, round(metres / grid.pixel))
    if step == 1:
        return white(grid.row, grid.col, grid.rows, grid.cols, seed)
    row, col = grid.row // step - 2, grid.col // step - 2
    rows, cols = -(-grid.rows // step) + 5, -(-grid.cols // step) + 5
    field = cv2.resize(white(row, col, rows, cols, seed), (cols * step, rows * step), interpolation=cv2.INTER_CUBIC)
    top, left = grid.row - row * step, grid.col - col * step
    return field[top : top + grid.rows, left : left + grid.cols]


def _linear(colour: np.ndarray) -> np.ndarray:
    return np.square(np.clip(colour, 0, 1)).astype(np.float32)  # gamma 2


@dataclass
class Scenery:
    """What the light falls on, pixel by pixel (rows, cols)."""

    height: np.ndarray  # float32, metres
    slope_x: np.ndarray  # float32, rise over run
    slope_y: np.ndarray
    albedo: np.ndarray  # float32 (3, rows, cols), linear
    building: np.ndarray  # bool: a building's roof, trees above it or not
    canopy: np.ndarray  # bool: a tree is what one sees


class Painter:
    """Fills a window's scenery: the land, then roofs layer by layer, then trees."""

    def __init__(self, plan: Plan, city: DemoCity, seed: int, grid: Grid):
        self.plan, self.city, self.seed, self.grid = plan, city, seed, grid
        self.fine = 0.75 * noise(grid, grid.pixel, seed) + 0.55 * noise(grid, 0.7, seed + 1)
        octaves = (0.5, 2.3), (0.8, 7), (0.7, 26)  # amplitude, metres
        patches = sum(a * noise(grid, metres, seed + 2 + i) for i, (a, metres) in enumerate(octaves))
        self.patches = np.clip(0.5 + 0.42 * patches, 0, 1)
        self.shade = np.rint(self.patches * (SHADES - 1)).astype(np.int32)

    def textured(self, at, surfaces: list[Surface], which: np.ndarray) -> np.ndarray:
        """(3, ...) linear colours at `at` (an index of the grid) of surfaces[which]."""
        blend = np.linspace(0, 1, SHADES, dtype=np.float32)[:, None]
        colour, alt = (_linear(np.array([getattr(s, k) for s in surfaces]))[:, None] for k in ("colour", "alt"))
        shades = (colour + (alt - colour) * blend).reshape(-1, 3)
        grain = np.array([2 * s.grain for s in surfaces], np.float32)  # twice: linear light is the square
        texture = 1 + grain[which] * self.fine[at]
        index = which * SHADES + self.shade[at]
        return np.stack([np.take(band, index) * texture for band in np.ascontiguousarray(shades.T)])

    def ground(self) -> np.ndarray:
        """(3, rows, cols) linear colour of the land."""
        surfaces = [s for _, s in self.plan.ground]
        which = np.maximum(self.grid.rasterize(np.array([p for p, _ in self.plan.ground])) - 1, 0)
        albedo = self.textured(np.s_[:, :], surfaces, which)
        row, col = np.nonzero(np.array([s.pattern == "furrows" for s in surfaces])[which])
        if len(row):
            x, y = self.grid.xy()
            angle = np.array([s.angle for s in surfaces], np.float32)[which[row, col]]
            period = np.array([s.period for s in surfaces], np.float32)[which[row, col]]
            across = (y[row, 0] * np.cos(angle) - x[0, col] * np.sin(angle)) / period
            across += 0.25 * self.patches[row, col]
            albedo[:, row, col] *= 1 + 0.13 * np.sin(2 * np.pi * across)
        return albedo

    def roofs(self, scenery: Scenery) -> None:
        """Lay every solid's roof over what is there; where two overlap the higher one is seen."""
        x, y = self.grid.xy()
        for layer in range(LAYERS):
            solids = [s for s in self.plan.solids if s.layer == layer]
            outlines = shapely.polygons(np.array([s.corners for s in solids]).reshape(-1, 4, 2))
            ids = self.grid.rasterize(outlines)
            row, col = np.nonzero(ids)
            which = ids[row, col] - 1
            roof = RoofPixels(solids, which, x[0, col], y[row, 0])
            albedo = self.textured((row, col), [s.surface for s in solids], which) * roof.tone()
            scenery.building[row, col] |= roof.building

            seen = roof.decal | (roof.height > scenery.height[row, col])
            scenery.albedo[:, row[seen], col[seen]] = albedo[:, seen]
            raised = seen & ~roof.decal
            row, col = row[raised], col[raised]
            scenery.height[row, col] = roof.height[raised]
            scenery.slope_x[row, col] = roof.slope_x[raised]
            scenery.slope_y[row, col] = roof.slope_y[raised]

    def trees(self, scenery: Scenery) -> None:
        """Crowns with ragged outlines and lumps of leaves, over whatever stands below."""
        grid, near = self.grid, list(_near(self.plan.trees, self.grid))
        if not near:
            return
        x, y = grid.xy()
        ragged = noise(grid, 1.1, self.seed + 7) + 0.6 * noise(grid, 0.45, self.seed + 8)
        crown, tree = np.zeros((grid.rows, grid.cols), np.float32), np.zeros((grid.rows, grid.cols), np.int32)
        for number, (t, part) in enumerate(near):
            away = np.square((x[:, part[1]] - t.x) / t.radius) + np.square((y[part[0]] - t.y) / t.radius)
            inside = 1 - away + 0.22 * ragged[part]
            if t.conifer:
                z = t.height * (0.3 + 0.7 * np.clip(1 - np.sqrt(away), 0, 1)) + 0.25 * ragged[part]
            else:
                z = t.height - t.radius * (1 - np.sqrt(np.clip(inside, 0, 1)))
                z += 0.42 * min(t.radius / 2.5, 1) * ragged[part]
            taller = (inside > 0) & (z > crown[part])
            crown[part][taller] = z[taller]
            tree[part][taller] = number
        canopy = (crown > 0.3) & (crown > scenery.height)
        row, col = np.nonzero(canopy)
        scenery.canopy[:] = canopy
        scenery.height[row, col] = crown[row, col]
        slope_x = np.clip(cv2.Sobel(crown, cv2.CV_32F, 1, 0, scale=1 / (8 * grid.pixel)), -1.6, 1.6)
        slope_y = np.clip(cv2.Sobel(crown, cv2.CV_32F, 0, 1, scale=1 / (8 * grid.pixel)), -1.6, 1.6)
        scenery.slope_x[row, col], scenery.slope_y[row, col] = slope_x[row, col], slope_y[row, col]
        leaf = _linear(np.array([t.colour for t, _ in near]))[tree[row, col]].T
        scenery.albedo[:, row, col] = leaf * (1 + 0.22 * self.fine[row, col] + 0.12 * ragged[row, col])

    def scenery(self) -> Scenery:
        shape = (self.grid.rows, self.grid.cols)
        flat = [np.zeros(shape, np.float32) for _ in range(3)]
        scenery = Scenery(*flat, self.ground(), np.zeros(shape, bool), np.zeros(shape, bool))
        self.roofs(scenery)
        self.trees(scenery)
        return scenery


class RoofPixels:
    """The shape of roofs where they are: (N,) arrays, pixel i on solids[which[i]] at ground x[i], y[i]."""

    def __init__(self, solids: list[Solid], which: np.ndarray, x: np.ndarray, y: np.ndarray):
        def column(values, dtype=np.float32) -> np.ndarray:
            return np.array(list(values), dtype)[which]

        cos, sin = column(math.cos(s.angle) for s in solids), column(math.sin(s.angle) for s in solids)
        dx, dy = x - column(s.x for s in solids), y - column(s.y for s in solids)
        self.u, self.v = dy * cos - dx * sin, dx * cos + dy * sin  # metres from the centre, across and along
        half_width = column(s.half_width for s in solids)
        form = column((FORMS.index(s.form) for s in solids), np.int8)
        flat, shed, gable, hip, vault, self.decal = (form == i for i in range(len(FORMS)))
        self.building = column((s.building for s in solids), bool)
        self.pattern = column((PATTERNS.index(s.surface.pattern) for s in solids), np.int8)
        self.period = column(s.surface.period for s in solids)
        self.key = column((int(s.x * 977 + s.y * 7919) & 0xFFFFFFFF for s in solids), np.uint32)

        du = half_width - np.abs(self.u)  # metres from the eaves
        dv = column(s.half_length for s in solids) - np.abs(self.v)
        self.edge = np.minimum(du, dv)
        end = hip & (dv < du)  # a hip's two triangles
        self.down = np.where(end, dv, du)
        self.parapet = flat & self.building & (self.edge < 0.45)
        run = np.select([shed, gable | hip, vault], [self.u + half_width, self.down, du * (2 - du / half_width)])
        slope = column(s.slope for s in solids)
        self.height = column(s.eaves for s in solids) + slope * run + np.float32(0.5) * self.parapet

        bend = np.select([shed, gable | hip, vault], [1, -np.sign(self.u), -2 * self.u / half_width])
        along_u = np.where(end, 0, slope * bend)
        along_v = np.where(end, -slope * np.sign(self.v), 0)
        self.slope_x, self.slope_y = along_v * cos - along_u * sin, along_v * sin + along_u * cos

        ridge = (np.abs(self.u) < 0.28) & (gable | (hip & ~end))
        self.crest = ridge | (hip & (np.abs(du - dv) < 0.3) & (dv < half_width))
        self.gutter = (gable | hip) & (self.edge < 0.3)
        self.worn = flat & self.building

    def tone(self) -> np.ndarray:
        """(N,) float32 relative brightness of courses, sheets, crest, gutter and parapet."""
        tone = 1 + 0.16 * self.crest - 0.14 * self.gutter + 0.28 * self.parapet
        tone -= self.worn * 0.10 * np.exp(-np.square(self.edge - 1.2))
        tone += (self.pattern == PATTERNS.index("courses")) * 0.07 * np.sin(2 * np.pi * self.down / self.period)
        sheet = np.floor(self.v / self.period).astype(np.int32), np.floor(self.u / 3.1).astype(np.int32)
        own = (_mix(sheet[0], sheet[1], self.key) >> np.uint32(16)) / 65536 - 0.5  # each sheet has its own shade
        ribs = 0.05 * np.sin(2 * np.pi * self.v / self.period)
        tone += (self.pattern == PATTERNS.index("sheets")) * (0.16 * own + ribs)
        return tone.astype(np.float32)


def _near(trees: list[Tree], grid: Grid) -> Iterator[tuple[Tree, tuple[slice, slice]]]:
    """The trees whose crowns touch the grid, each with the part of the grid it may cover."""
    for t in trees:
        r = t.radius * 1.25 / grid.pixel
        row, col = t.y / grid.pixel - grid.row, t.x / grid.pixel - grid.col
        if -r < row < grid.rows + r and -r < col < grid.cols + r:
            yield t, np.s_[max(0, int(row - r)) : int(row + r) + 2, max(0, int(col - r)) : int(col + r) + 2]


def shadow_height(height: np.ndarray, toward: tuple[float, float], drop: float) -> np.ndarray:
    """Height up to which each place lies in shadow: max over t > 0 of height(p + t·toward) - t·drop.

    height: (H, W) metres; toward: unit step in pixels towards the sun (columns, rows); drop: metres the beam
    falls a pixel. The maximum over 2ⁿ steps takes n shifts: the reach doubles each time.
    """
    reach, shadow = 1.0, None
    top = float(height.max())
    while shadow is None or (reach < 1024 and reach * drop < top):
        source = height if shadow is None else shadow
        step = 1.0 if shadow is None else reach
        shift = np.array([[1, 0, step * toward[0]], [0, 1, step * toward[1]]])
        moved = cv2.warpAffine(source, shift, source.shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        moved -= step * drop
        shadow, reach = (moved, 1.0) if shadow is None else (np.maximum(shadow, moved), 2 * reach)
    return shadow


def illuminate(scenery: Scenery, city: DemoCity, pixel: float, azimuth: float) -> np.ndarray:
    """(3, rows, cols) linear light towards the camera; open level ground in the sun has its albedo."""
    light = city.light
    rise, turn = math.radians(light.elevation), math.radians(azimuth)
    toward = math.sin(turn), -math.cos(turn)
    sx, sy, sz = toward[0] * math.cos(rise), toward[1] * math.cos(rise), math.sin(rise)
    facing = (sz - scenery.slope_x * sx - scenery.slope_y * sy) / np.sqrt(1 + scenery.slope_x**2 + scenery.slope_y**2)
    shadow = shadow_height(scenery.height, toward, pixel * math.tan(rise))
    lit = np.clip(1 - (shadow - scenery.height - 0.12) / 0.35, 0, 1)
    lit = np.maximum(lit, 0.45 * scenery.canopy.astype(np.float32))  # leaves let light through
    direct = (1 - light.ambient) * lit * np.clip(facing, 0, None) / sz
    direct = direct / (1 + 0.22 * np.maximum(direct - 1, 0))  # film's shoulder
    size = max(3, int(7 / pixel) | 1)
    open_sky = np.clip(1 - 0.05 * np.maximum(cv2.blur(scenery.height, (size, size)) - scenery.height, 0), 0.45, 1)
    ambient = light.ambient * open_sky
    sun, sky = (1.04, 1.0, 0.95), (0.90, 0.99, 1.14)
    radiance = scenery.albedo
    for band, sun, sky in zip(radiance, (1.04, 1.0, 0.95), (0.90, 0.99, 1.14), strict=True):
        band *= direct * sun + ambient * sky
    return radiance


def expose(radiance: np.ndarray, city: DemoCity, seed: int, row: int, col: int, size: int) -> np.ndarray:
    """Haze, lens and sensor: linear (3, H, W) at row, col of a scene of `size` to (H, W, 3) uint8, from 1."""
    camera, light = city.camera, city.light
    rows, cols = radiance.shape[1:]
    y = (np.arange(row, row + rows, dtype=np.float32) - size / 2)[:, None] / size
    x = (np.arange(col, col + cols, dtype=np.float32) - size / 2)[None] / size
    lens = camera.exposure * (1 - light.haze) * (1 - 2 * camera.vignette * (x * x + y * y))
    common = 0.7 * white(row, col, rows, cols, seed + 24)
    image = np.empty((rows, cols, 3), np.uint8)
    for band in range(3):
        seen = radiance[band] * lens + light.haze * float(_linear(light.air[band] / 255))
        grey = 255 * camera.cast[band] * np.sqrt(np.clip(seen, 0, None))
        grey = np.where(grey > 210, 210 + 45 * np.tanh((grey - 210) / 45), grey)  # whites are not cut off
        dots = common + 0.7 * white(row, col, rows, cols, seed + 20 + band)
        grey += camera.noise * dots * (0.6 + grey / 320)
        image[..., band] = np.clip(np.rint(grey), 1, 255)
    return image


@dataclass(frozen=True)
class Picture:
    row: int
    col: int
    image: np.ndarray  # (H, W, 3) uint8, 1 to 255
    roofs: np.ndarray  # (H, W) float32, share of the pixel that a building covers
    canopy: np.ndarray  # (H, W) float32, share of the pixel that shows a tree


def render(plan: Plan, city: DemoCity, size: int, seed: int) -> Iterator[Picture]:
    """The scene of size×size pixels, window by window."""
    azimuth = city.light.azimuth + 4 * math.sin(seed)  # a few minutes between flight lines
    pixel, margin = city.gsd / OVER, int(REACH / city.gsd)
    for row in range(0, size, WINDOW):
        for col in range(0, size, WINDOW):
            rows, cols = min(WINDOW, size - row), min(WINDOW, size - col)
            high, wide = rows + 2 * margin, cols + 2 * margin
            grid = Grid((row - margin) * OVER, (col - margin) * OVER, high * OVER, wide * OVER, pixel)
            scenery = Painter(plan, city, seed, grid).scenery()

            def pooled(field: np.ndarray, high=high, wide=wide) -> np.ndarray:
                field = field.astype(np.float32, copy=False)
                return cv2.resize(field, (wide, high), interpolation=cv2.INTER_AREA)

            inner = np.s_[margin : high - margin, margin : wide - margin]
            roofs, canopy = pooled(scenery.building)[inner], pooled(scenery.canopy)[inner]
            radiance = illuminate(scenery, city, pixel, azimuth)
            spread = max(city.camera.blur, 0.2)
            seen = np.stack([cv2.GaussianBlur(pooled(band), (0, 0), spread)[inner] for band in radiance])
            yield Picture(row, col, expose(seen, city, seed, row, col, size), roofs, canopy)
