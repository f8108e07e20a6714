"""Outlines as a mapper draws them: straight walls at right angles, at 45° where that fits better,
circles for tanks.

A building's main direction is the mean of its edges' directions modulo 90°, long edges first. Each
edge of the simplified outline turns to the nearest direction allowed; a run of edges of one
direction is one wall, a line at their mean; corners are where neighbouring walls meet. The shortest
wall goes, and its neighbours become one, until none is shorter than a jog. All buildings are worked
on at once: walls lie in flat arrays, linked in rings.
"""

from dataclasses import dataclass, fields

import numpy as np
import shapely

from pipeline.params import Outline

RASTER_STEPS = 1.5  # pixels: what the steps of a slanted wall deviate from it by
# a shorter wall is none: pixels; share of the square root of the building's area
JOG, RELATIVE_JOG = 6.0, 0.15
# with the raw outline: where regular walls agree less, the simplified outline stays
LEAST_IOU = 0.8
REACH = 8  # pixels that an outline may stand out from its building's bounding box
GAIN = 0.04  # of IoU, what makes 45° worth it: of 45° that fits a little better, most is chance
DIAGONAL = 0.15  # share of an outline's length that has to lie nearer to 45° than to right angles
# IoU with the disc of its area, and pixels, of a building that may be a tank
ROUND, ROUND_PIXELS = 0.93, 300
CIRCLE = 24  # corners


class Outlines:
    """Outlines of buildings as they end, from the top of a scene: valid, inside it, and none
    overlaps another.

    What two outlines claim stays with the building that ends first (by its last
    row, then its first column), so that outlines do not depend on how the scene was
    cut into bands; the other's wall then runs along its neighbour's. Memory is that
    of the outlines that a building still open may reach.
    """

    def __init__(self, style: Outline, shape: tuple[int, int], pixel: tuple[float, float]):
        """shape: the scene's rows and columns; pixel: metres on the ground
        (along a row, along a column).
        """
        self.style, self.pixel, self.scene = style, pixel, shapely.box(0, 0, shape[1], shape[0])
        self.earlier = np.empty(0, object)

    def add(self, raw: np.ndarray, row: int, opened: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outlines (n,) of raw ones (n,), in pixel coordinates, and which are regular (n,) bool;
        None: nothing left.

        row: the scene's next one; opened: bounding boxes (m, 4) of what has begun
        above it and not ended.
        """
        if self.style == "raw" or not len(raw):
            return raw, np.zeros(len(raw), bool)
        shapes, regular = (regularise if self.style == "regular" else simplified)(raw, self.pixel)
        # the last bits depend on what is computed side by side
        shapes = shapely.set_precision(shapes, 2.0**-16)
        return self._apart(self._inside(shapes), shapely.bounds(raw), row, opened), regular

    def _inside(self, shapes: np.ndarray) -> np.ndarray:
        out = ~shapely.covers(self.scene, shapes)
        shapes[out] = _largest(shapely.intersection(shapes[out], self.scene))
        return shapes

    def _apart(
        self, shapes: np.ndarray, bounds: np.ndarray, row: int, opened: np.ndarray
    ) -> np.ndarray:
        order = np.lexsort((bounds[:, 1], bounds[:, 0], bounds[:, 3]))
        settled = np.concatenate([self.earlier, shapes[order]])
        first = len(self.earlier)
        later, sooner = shapely.STRtree(settled).query(settled[first:], predicate="intersects")
        later += first
        mine, theirs = later[sooner < later], sooner[sooner < later]
        for i in np.unique(mine):  # few: most buildings stand apart
            others = settled[theirs[mine == i]]
            if shapely.area(shapely.intersection(settled[i], others)).any():
                settled[i] = _largest(shapely.difference(settled[i], shapely.union_all(others)))
        shapes = np.empty(len(order), object)
        shapes[order] = settled[first:]
        boxes = shapely.bounds(settled) + [-REACH, -REACH, REACH, REACH]
        reached = boxes[:, 3] >= row
        if len(opened):
            reached[shapely.STRtree(shapely.box(*opened.T)).query(shapely.box(*boxes.T))[0]] = True
        self.earlier = settled[reached & ~shapely.is_empty(settled)]
        return shapes


def _largest(shapes: np.ndarray) -> np.ndarray | shapely.Polygon:
    """The largest polygon of each shape; an empty one where there is none."""

    def of(shape) -> shapely.Polygon:
        parts = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
        return max(parts, key=shapely.area, default=shapely.Polygon())

    return (
        np.array([of(shape) for shape in shapes], object)
        if isinstance(shapes, np.ndarray)
        else of(shapes)
    )


def simplified(polygons: np.ndarray, pixel: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Outlines (n,) without the vertices that move them by less than the steps of the raster; none
    is regular (n,).

    Douglas, Peucker 1973. pixel: metres on the ground of a pixel (along a row, along a column).
    """
    metres = shapely.simplify(
        shapely.transform(polygons, lambda xy: xy * pixel), RASTER_STEPS * max(pixel)
    )
    return shapely.transform(metres, lambda xy: xy / pixel), np.zeros(len(polygons), bool)


def regularise(polygons: np.ndarray, pixel: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Regular outlines (n,) of raw ones (n,) in pixel coordinates, and which are
    regular (n,) bool. All are valid.

    Where straight walls would change a building too much (LEAST_IOU, REACH) its simplified outline
    stays. pixel: metres on the ground of a pixel (along a row, along a column).
    """
    if not len(polygons):
        return polygons, np.zeros(0, bool)
    raw = shapely.transform(polygons, lambda xy: xy * pixel)
    outlines = shapely.simplify(raw, RASTER_STEPS * max(pixel))
    ground = shapely.area(raw)
    jog = np.maximum(JOG * max(pixel), RELATIVE_JOG * np.sqrt(ground))
    rings = _Rings.of(outlines)
    angle = main_direction(rings)
    best = _walled(rings, angle, jog, 2)
    iou = overlap(best, raw)
    slanted = np.flatnonzero(rings.share_near_45(angle) > DIAGONAL)
    tanks = np.flatnonzero(_maybe_round(outlines, ground, pixel))
    for chosen, gain, shape in (
        (
            slanted,
            GAIN,
            lambda: _walled(_Rings.of(outlines[slanted]), angle[slanted], jog[slanted], 4),
        ),
        (tanks, 0, lambda: _discs(raw[tanks])),
    ):
        if len(chosen):
            shapes = shape()
            fit = overlap(shapes, raw[chosen])
            better = fit > iou[chosen] + gain
            best[chosen[better]], iou[chosen[better]] = shapes[better], fit[better]
    beyond = np.abs(shapely.bounds(best) - shapely.bounds(raw)).max(axis=1)
    regular = (iou >= LEAST_IOU) & (beyond <= REACH * min(pixel))
    shapes = np.where(regular, best, outlines)
    return shapely.transform(shapes, lambda xy: xy / pixel), regular


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU (n,) of pairs of polygons; 0 where one is invalid or empty."""
    fits = shapely.is_valid(one) & ~shapely.is_empty(one)
    both = np.zeros(len(one))
    both[fits] = shapely.area(shapely.intersection(one[fits], other[fits]))
    return both / (shapely.area(one) + shapely.area(other) - both)


@dataclass
class _Rings:
    """The rings of n polygons: points (p, 2) without the closing one, and the edge from each to
    the next (p, 2).
    """

    points: np.ndarray
    edges: np.ndarray
    ring: np.ndarray  # (p,) of which ring, rings counted over all polygons
    polygon: np.ndarray  # (r,) of which polygon each ring is
    outer: np.ndarray  # (r,) bool
    count: int  # n

    @classmethod
    def of(cls, polygons: np.ndarray) -> "_Rings":
        _, xy, (ends, rings) = shapely.to_ragged_array(polygons, include_z=False)
        last = np.zeros(len(xy), bool)
        last[ends[1:] - 1] = True
        lengths = np.diff(ends) - 1
        polygon = np.repeat(np.arange(len(polygons)), np.diff(rings))
        outer = np.zeros(len(lengths), bool)
        outer[rings[:-1]] = True
        edges = np.diff(xy, axis=0, append=xy[-1:])[~last]
        return cls(
            xy[~last],
            edges,
            np.repeat(np.arange(len(lengths)), lengths),
            polygon,
            outer,
            len(polygons),
        )

    def share_near_45(self, angle: np.ndarray) -> np.ndarray:
        """(n,) share of each polygon's length that is nearer to 45° than to `angle` (n,) and
        its perpendicular.
        """
        owner, length = self.polygon[self.ring], np.hypot(*self.edges.T)
        aside = np.arctan2(self.edges[:, 1], self.edges[:, 0]) - angle[owner]
        diagonal = np.cos(4 * aside) < 0
        return np.bincount(owner, length * diagonal, self.count) / np.bincount(
            owner, length, self.count
        )


def main_direction(rings: _Rings) -> np.ndarray:
    """(n,) radians modulo 90° of each polygon's walls: the mean of its edges'
    directions, by length squared.

    Of four times the angles, so that right angles agree and 45° takes away from all alike. Squared,
    long edges decide.
    """
    owner, edge = rings.polygon[rings.ring], rings.edges[:, 0] + 1j * rings.edges[:, 1]
    fourfold = edge**4 / np.maximum(np.abs(edge), 1e-9) ** 2
    parts = (np.bincount(owner, part, rings.count) for part in (fourfold.real, fourfold.imag))
    return np.angle(next(parts) + 1j * next(parts)) / 4


@dataclass
class _Walls:
    """Walls (w,) of many rings, linked: directions are multiples of 180° / `directions`."""

    direction: np.ndarray
    offset: np.ndarray  # along the wall's normal
    weight: np.ndarray  # metres of edges it is the mean of
    forward: np.ndarray  # +1 or -1: which way the ring runs along it
    ring: np.ndarray
    after: np.ndarray
    before: np.ndarray

    def where(self, kept: np.ndarray) -> "_Walls":
        """Those walls (w,) bool alone; what links to others is gone too."""
        number = np.cumsum(kept) - 1
        parts = {f.name: getattr(self, f.name)[kept] for f in fields(self)}
        return _Walls(
            **parts | {"after": number[parts["after"]], "before": number[parts["before"]]}
        )


def _walled(rings: _Rings, angle: np.ndarray, jog: np.ndarray, directions: int) -> np.ndarray:
    """Polygons (n,) of walls in so many directions from `angle` (n,) on; empty
    where no ring of walls is left.
    """
    turn = -angle[rings.polygon[rings.ring]]
    walls, unit = _runs(rings, turn, directions), np.pi / directions
    normals = np.stack(
        [-np.sin(unit * np.arange(directions)), np.cos(unit * np.arange(directions))], 1
    )
    walls, walled = _without_jogs(walls, jog[rings.polygon], rings.outer, normals)
    points = _corners(walls, walls.after, normals)
    order = _in_order(walls)
    back = angle[rings.polygon[walls.ring[order]]]
    xy = _turned(points[order], back)
    return _polygons(xy, walls.ring[order], rings, walled)


def _turned(xy: np.ndarray, angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * xy[:, 0] - sin * xy[:, 1], sin * xy[:, 0] + cos * xy[:, 1]], 1)


def _runs(rings: _Rings, turn: np.ndarray, directions: int) -> _Walls:
    """Edges turned by `turn` (p,) into the building's frame, and neighbours of one direction
    merged into a wall.
    """
    points, edges, unit = (
        _turned(rings.points, turn),
        _turned(rings.edges, turn),
        np.pi / directions,
    )
    nearest = np.rint(np.arctan2(edges[:, 1], edges[:, 0]) / unit).astype(int) % directions
    firsts = np.flatnonzero(np.diff(rings.ring, prepend=-1))
    previous = np.arange(len(points)) - 1
    previous[firsts] = np.append(firsts[1:], len(points)) - 1
    begins = nearest != nearest[previous]
    # A ring may start amid a wall: its first edges belong to the ring's last wall.
    run = np.cumsum(begins) - 1
    per_ring = np.bincount(rings.ring, begins, len(rings.polygon)).astype(int)
    first_run = np.cumsum(per_ring) - per_ring
    last_run = first_run + per_ring - 1
    amid = run < first_run[rings.ring]
    run = np.where(amid, last_run[rings.ring], run)
    usable = per_ring[rings.ring] > 0
    run, edges, points, following = (
        run[usable],
        edges[usable],
        points[usable],
        (points + edges)[usable],
    )
    count, nearest, ring = int(begins.sum()), nearest[begins], rings.ring[begins]
    cos, sin = np.cos(unit * nearest), np.sin(unit * nearest)
    middle, length = (points + following) / 2, np.hypot(*edges.T)
    across = middle[:, 1] * cos[run] - middle[:, 0] * sin[run]
    along = edges[:, 0] * cos[run] + edges[:, 1] * sin[run]
    weight = np.bincount(run, length, count)
    offset = np.bincount(run, length * across, count) / np.maximum(weight, 1e-12)
    forward = np.where(np.bincount(run, along, count) >= 0, 1, -1)
    index = np.arange(count)
    kept = per_ring[ring] > 0
    after, before = index + 1, index - 1
    after[last_run[ring] == index] = first_run[ring[last_run[ring] == index]]
    before[first_run[ring] == index] = last_run[ring[first_run[ring] == index]]
    return _Walls(nearest, offset, weight, forward, ring, after, before).where(kept)


def _corners(walls: _Walls, other: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """(w, 2) where each wall meets the one numbered `other` (w,)."""
    a, b = normals[walls.direction], normals[walls.direction[other]]
    c, d = walls.offset, walls.offset[other]
    cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack(
            [(c * b[:, 1] - d * a[:, 1]) / cross, (a[:, 0] * d - b[:, 0] * c) / cross], 1
        )


def _without_jogs(walls: _Walls, jog: np.ndarray, outer: np.ndarray, normals: np.ndarray) -> tuple:
    """Walls without those shorter than `jog` (r,) metres, the shortest of each ring first; and
    which rings are left.

    A ring keeps four walls; a hole of four with a short one among them was none, and goes.
    """
    none = np.zeros(len(walls.ring), bool)  # of tanks alone, which are round, there is no wall
    done, active, rings = [walls.where(none)], walls, len(jog)
    left = np.zeros(rings, bool)
    while len(active.ring):
        end, normal = _corners(active, active.after, normals), normals[active.direction]
        wall = end - end[active.before]
        length = (wall[:, 0] * normal[:, 1] - wall[:, 1] * normal[:, 0]) * active.forward
        order = np.lexsort((length, active.ring))
        first = np.flatnonzero(np.diff(active.ring[order], prepend=-1))
        shortest, ring = order[first], active.ring[order[first]]
        number = np.diff(np.append(first, len(order)))
        short = length[shortest] < jog[ring]
        finished = ~short | (number <= 4)
        left[ring[finished & (~short | outer[ring]) & (number >= 4)]] = True
        ended = np.zeros(rings, bool)
        ended[ring[finished]] = True
        kept = ~ended[active.ring]
        done.append(active.where(~kept & left[active.ring]))
        kept &= _drop(active, shortest[~finished])
        active = active.where(kept)
    base = np.cumsum([0] + [len(part.ring) for part in done])
    merged = {
        f.name: np.concatenate([getattr(part, f.name) for part in done]) for f in fields(_Walls)
    }
    for link in ("after", "before"):
        merged[link] = np.concatenate(
            [getattr(p, link) + b for p, b in zip(done, base, strict=False)]
        )
    return _Walls(**merged), left


def _drop(walls: _Walls, short: np.ndarray) -> np.ndarray:
    """Take out the walls numbered `short`, one a ring, and make parallel neighbours one; (w,)
    bool, which are left.
    """
    kept = np.ones(len(walls.ring), bool)
    before, after = walls.before[short], walls.after[short]
    kept[short] = False
    same = walls.direction[before] == walls.direction[after]
    one, two = before[same], after[same]
    weight = walls.weight[one] + walls.weight[two]
    walls.offset[one] = (
        walls.weight[one] * walls.offset[one] + walls.weight[two] * walls.offset[two]
    ) / weight
    walls.forward[one] = np.where(
        walls.weight[one] >= walls.weight[two], walls.forward[one], walls.forward[two]
    )
    walls.weight[one] = weight
    kept[two] = False
    following = np.where(same, walls.after[after], after)
    walls.after[before], walls.before[following] = following, before
    return kept


def _in_order(walls: _Walls) -> np.ndarray:
    """Numbers of the walls, ring by ring, each ring round from its first one: walls of a ring
    never change places.
    """
    return np.argsort(walls.ring, kind="stable")


def _polygons(xy: np.ndarray, ring: np.ndarray, rings: _Rings, left: np.ndarray) -> np.ndarray:
    """Polygons (n,) of the points (p, 2) of those rings that are left; empty
    where the outer one is not.
    """
    standing = left & left[np.flatnonzero(rings.outer)][rings.polygon]
    inside = standing[ring]
    xy, ring = xy[inside], ring[inside]
    first = np.flatnonzero(np.diff(ring, prepend=-1))
    lengths = np.diff(np.append(first, len(ring)))
    closed = np.insert(xy, np.append(first[1:], len(ring)), xy[first], axis=0) if len(first) else xy
    ends = np.concatenate([[0], np.cumsum(lengths + 1)])
    per_polygon = np.bincount(rings.polygon[standing], minlength=rings.count)
    there = per_polygon > 0
    polygons = np.full(rings.count, shapely.Polygon(), object)
    if there.any():
        counts = np.concatenate([[0], np.cumsum(per_polygon[there])])
        polygons[there] = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, closed, (ends, counts)
        )
    return polygons


def _maybe_round(
    outlines: np.ndarray, ground: np.ndarray, pixel: tuple[float, float]
) -> np.ndarray:
    """(n,) bool: compact, without a yard, and large enough for its corners to
    show if it had any.
    """
    compact = 4 * np.pi * shapely.area(outlines) / shapely.length(outlines) ** 2
    whole = shapely.get_num_interior_rings(outlines) == 0
    return (compact > 0.87) & whole & (ground > ROUND_PIXELS * pixel[0] * pixel[1])


def _discs(raw: np.ndarray) -> np.ndarray:
    """Circles (n,) of the buildings' centres and areas, empty where a building is no disc."""
    turns = 2 * np.pi * np.arange(CIRCLE) / CIRCLE
    unit = np.stack([np.cos(turns), np.sin(turns)], 1) / np.sqrt(
        CIRCLE / 2 * np.sin(2 * np.pi / CIRCLE)
    )
    centre = shapely.get_coordinates(shapely.centroid(raw))
    discs = shapely.polygons(centre[:, None] + unit * np.sqrt(shapely.area(raw))[:, None, None])
    return np.where(overlap(discs, raw) >= ROUND, discs, shapely.Polygon())
