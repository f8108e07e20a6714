"""Stage tile: every scene at one ground sample distance, as memory-mapped arrays (see
pipeline.tiles.store).

A city is planned here (grids, splits, value range, footprints) and filled by pipeline.tiles.tiling.
One whose parameters and scenes are unchanged is kept.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import shapely

from pipeline.cluster import each, shard_of
from pipeline.console import console, table
from pipeline.errors import InputError
from pipeline.imagery.grid import SPLITS, Grid, Window, draw_splits, missing_splits, strips
from pipeline.imagery.raster import (
    UNITS_APART,
    Raster,
    declared_bands,
    open_image,
    open_raster,
    robust_range,
    units,
)
from pipeline.imagery.scene import City, Scene, read_city
from pipeline.imagery.vector import SUFFIXES, read_footprints
from pipeline.labels import Split
from pipeline.params import Params, Tile
from pipeline.storage import atomic_folder, fingerprint
from pipeline.tiles.instances import NEAR, number_apart
from pipeline.tiles.store import CityTiles, Region, allocate, write_index
from pipeline.tiles.tiling import MOST_GROUPS, Planned, Source, fill, named

FORMAT = 3  # of the arrays and of the way they are made; raise it and every city is tiled again
SAME_GROUND = 0.02  # share of the smaller of two scenes above which they show the same ground


def run(
    params: Params,
    city: str | None = None,
    scenes_root: Path = Path("data/scenes"),
    out_root: Path = Path("data/tiles"),
    *,
    ray: str | None = None,
    shard: str | None = None,
) -> None:
    """Tile one city, or every city of fetch.cities; ray, shard: where, see pipeline.cluster.

    Raises InputError on scenes that cannot be tiled.
    """

    def tiled(name: str) -> list:
        return _summary(
            tile_city(params, read_city(Path(scenes_root) / name), Path(out_root) / name)
        )

    cities = shard_of([city] if city else params.fetch.cities, shard)
    done = dict(each(tiled, cities, ray, gpu=False))
    columns = [
        "city",
        "scenes",
        "train",
        "val.",
        "test",
        "Mpx",
        "building %",
        "ignored %",
        "gsd from",
        "to",
    ]
    table(
        "Tiles: regions per split, shares of pixels, metres a pixel",
        columns,
        [done[name] for name in cities],
    )


def tile_city(params: Params, city: City, folder: Path) -> dict:
    """Write one city's tiles to `folder` unless they are there already; returns what
    regions.json says.
    """
    # what changes speed changes no byte
    asked = params.tile.model_dump(exclude={"memory", "workers"})
    mark = fingerprint(FORMAT, asked, params.train.model.classes, asdict(city))
    if (kept := _kept(folder, mark)) is not None:
        console.print(f"{city.city}: scenes and parameters unchanged, its tiles are kept")
        return kept
    plans = plan_city(params, city)
    regions = [plan.region for plan in plans]
    channels = len(plans[0].source.bands)
    with atomic_folder(folder) as partial:
        numbered = any(plan.source.labels is None for plan in plans)
        allocate(
            partial, regions, channels, groups=bool(plans[0].source.group_names), numbers=numbered
        )
        counts, seen = fill(plans, partial, params.tile, f"tile {city.city}")
        if blank := [name for name, pixels in seen.items() if not pixels]:
            raise InputError(
                f"{city.city}: scene {', '.join(blank)} is nodata everywhere; remove it or correct "
                f"its nodata"
            )
        built = _built(city, regions, counts)
        about = write_index(partial, _about(params, city, plans, counts, mark), regions, counts)
    _warn_solid(city, regions, counts)
    if not any(built.values()):
        _warn(
            f"{city.city}: no building anywhere in its labels; it can teach and test background "
            f"only"
        )
    elif not built.get("test", True):
        _warn(
            f"{city.city}: no building in its test split, so it will have no IoU; another "
            f"tile.seed may draw one"
        )
    return about


def _warn_solid(city: City, regions: list[Region], counts: list[np.ndarray]) -> None:
    """Warn of scenes that are building from edge to edge: few are, and many a
    wrong label makes them so.
    """
    solid = {}
    for region, count in zip(regions, counts, strict=True):
        building, valid = count.sum(axis=(1, 2))
        if valid:
            solid[region.parent] = solid.get(region.parent, True) and bool(building == valid)
    if found := [name for name, whole in solid.items() if whole]:
        where = (
            "everywhere in its labels"
            if len(found) == len(solid)
            else f"everywhere in {_some(found)}"
        )
        _warn(
            f"{city.city}: building {where}; look whether the labels are inverted, or hold the "
            f"outline of an area "
            "(land use, a district) as if it were a building"
        )


def _built(city: City, regions: list[Region], counts: list[np.ndarray]) -> dict[Split, int]:
    """Building pixels of each split. Raises InputError where a split has no
    pixel to learn from or to score.
    """
    built = {}
    for split in {region.split for region in regions}:
        members = [i for i, region in enumerate(regions) if region.split == split]
        built[split], valid = sum(counts[i].sum(axis=(1, 2)) for i in members).tolist()
        if not valid:
            names = ", ".join(regions[i].name for i in members)
            raise InputError(
                f"{city.city}: its {split} split ({names}) has no pixel with both data and a "
                f"label; "
                "change tile.seed, tile.validation or tile.test, or add scenes"
            )
    return built


def plan_city(params: Params, city: City) -> list[Planned]:
    """Every region of a city's labelled scenes: its grid, its split, and how it is read."""
    tile, classes = params.tile, params.train.model.classes
    scenes = [scene for scene in city.scenes if scene.labels]
    if not scenes:
        raise InputError(
            f"{city.city}: no scene has labels; add labels, or map it with the predict stage"
        )
    bands = city.bands or tile.bands
    if len(bands) != len(tile.bands):
        raise InputError(
            f"{city.city}: reads {len(bands)} bands where tile.bands asks for {len(tile.bands)}; "
            f"agree on one"
        )
    grids, natives, densities, read, samples = [], [], [], [], {}
    for i, scene in enumerate(scenes):
        with named(scene.name), open_raster(scene.image) as dataset:
            image = Raster(
                dataset, city.bands or declared_bands(dataset, bands), tile.gsd, city.gsd
            )
            grids.append(image.grid)
            natives.append(max(image.native))
            densities.append(image.density)
            read.append(image.bands)
            if image.source_dtype != np.uint8 or city.range:
                samples[i] = image.sample()
    ranges = _ranges(city, [scene.name for scene in scenes], samples)
    sources = [
        Source(scene.name, scene.image, bands, tile.gsd, city.gsd, scale, classes, tile.all_touched)
        for scene, bands, scale in zip(scenes, read, ranges, strict=True)
    ]
    if other := [i for i, own in enumerate(read) if own != bands]:
        _warn(
            f"{city.city}: {_some([scenes[i].name for i in other])}: red, green and blue are "
            f"declared in another "
            f"order, so bands {read[other[0]]} are read; state fetch.overrides.{city.city}.bands "
            f"where that is wrong"
        )
    enlarged = sum(native / tile.gsd > tile.max_upsampling for native in natives)
    if enlarged:
        _warn(
            f"{city.city}: {enlarged} of {len(scenes)} scenes are enlarged "
            f"{max(natives) / tile.gsd:.1f} "
            f"times: their pixels are {max(natives):.2f} m and tile.gsd asks for {tile.gsd:g} m"
        )
    if small := sum(min(grid.shape) < tile.size for grid in grids):
        _warn(
            f"{city.city}: {small} of {len(scenes)} scenes are smaller than a tile of "
            f"{tile.size} px and are padded"
        )
    sources = _with_labels(city, scenes, sources, grids)
    sources = _with_groups(city, sources)
    plans, offset = [], 0
    for i, split, window in _cut(tile, city, scenes, grids, sources):
        part = grids[i].window(window)
        name = scenes[i].name if window[2:] == grids[i].shape else f"{scenes[i].name}/{split}"
        crs = None if part.crs is None else part.crs.to_string()
        region = Region(
            name, scenes[i].name, split, *part.shape, offset, tuple(part.transform)[:6], crs
        )
        plans.append(Planned(sources[i], region, window, natives[i], densities[i]))
        offset += region.pixels
    _warn_shared_ground(city, [plan.region for plan in plans])
    return plans


def _ranges(
    city: City, names: list[str], samples: dict[int, np.ndarray]
) -> list[tuple[float, float] | None]:
    """The values mapped to 0 and 255 in every scene: the stated ones, else one estimate for all
    scenes of one unit.

    None leaves 8 bits as they are. `samples`: values of the scenes that need a range, by number.
    """
    stated = f"fetch.overrides.{city.city}.range"
    if city.range:
        _warn_far_from_range(city, city.range, names, samples, stated)
        return [city.range] * len(names)
    if not samples:
        return [None] * len(names)
    members, found = list(samples), list(samples.values())
    groups = sorted(units(found), key=len, reverse=True) or [range(len(found))]
    usual, *others = (robust_range([found[i] for i in group]) for group in groups)
    if usual is None:
        raise InputError(f"{city.city}: no data to estimate a value range from; state {stated}")
    ranges = dict.fromkeys(members, usual)
    for group, own in zip(groups[1:], others, strict=True):
        if own is None:
            continue
        ranges |= {members[i]: own for i in group}
        _warn(
            f"{city.city}: {_some([names[members[i]] for i in group])}: other units than in the "
            f"other scenes "
            f"({own[0]:.3g} to {own[1]:.3g} beside {usual[0]:.3g} to {usual[1]:.3g}), scaled by "
            f"themselves; "
            "give all scenes of a city one unit"
        )
    return [ranges.get(i) for i in range(len(names))]


def _warn_far_from_range(
    city: City,
    within: tuple[float, float],
    names: list[str],
    samples: dict[int, np.ndarray],
    stated: str,
) -> None:
    """Warn of scenes that a stated range makes black or white from edge to edge."""
    low, high = within
    own = {i: robust_range([sample]) for i, sample in samples.items()}
    far = [
        names[i]
        for i, r in own.items()
        if r and (r[1] < low + (high - low) / UNITS_APART or r[0] > high)
    ]
    if far:
        _warn(
            f"{city.city}: {_some(far)}: values far from {stated} [{low:g}, {high:g}]; give all "
            f"scenes one unit"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _cut(
    tile: Tile, city: City, scenes: list[Scene], grids: list[Grid], sources: list[Source]
) -> Iterator[tuple[int, Split, Window]]:
    """(scene, split, window) of every region: whole scenes, or blocks where a
    city has too few scenes.
    """
    given = [scene.split for scene in scenes]
    splits = draw_splits(given, tile.validation, tile.test, tile.seed)
    missing = missing_splits(given)
    if missing and None not in given:
        _warn(f"{city.city}: every scene comes with a split and none is for {' or '.join(missing)}")
    margin = tile.size if tile.margin is None else tile.margin
    spans = {i: _span(sources[i]) for i, split in enumerate(splits) if split is None}
    blocks = {
        i: strips(grids[i], missing, tile.validation, tile.test, margin, span)
        for i, span in spans.items()
    }
    if blocks and not any(blocks.values()):
        longest = max(spans, key=lambda i: spans[i][1] - spans[i][0])
        raise InputError(
            f"{city.city}: scene {scenes[longest].name} has "
            f"{spans[longest][1] - spans[longest][0]} pixels at "
            f"{tile.gsd:g} m, too few for blocks of {', '.join(missing)} with {margin} between; "
            f"lower tile.gsd or "
            "tile.margin, or add scenes"
        )
    for i, split in enumerate(splits):
        # a scene too small to cut, beside one that is not
        whole = {split or "train": Window(0, 0, *grids[i].shape)}
        for name, window in (blocks.get(i) or whole).items():
            yield i, name, window


def _span(source: Source) -> tuple[int, int]:
    """From where to where along its longer side a scene holds data."""
    with (
        named(source.name),
        open_image(source.image, source.bands, source.gsd, source.native) as image,
    ):
        return image.data_span(0 if image.grid.height >= image.grid.width else 1)


def _with_labels(
    city: City, scenes: list[Scene], sources: list[Source], grids: list[Grid]
) -> list[Source]:
    """Sources that know their labels; a file of footprints is read once for all
    scenes in its reach.
    """
    sharing: dict[tuple, list[int]] = {}
    labelled = list(sources)
    for i, (scene, grid) in enumerate(zip(scenes, grids, strict=True)):
        if Path(str(scene.labels)).suffix.lower() not in SUFFIXES:
            labelled[i] = replace(
                sources[i], labels=scene.labels, raster_building=city.raster_building
            )
        elif grid.crs is None:
            raise InputError(
                f"scene {scene.name}: the image carries no CRS, so footprints cannot be laid on "
                f"it; add one"
            )
        else:
            sharing.setdefault((scene.labels, grid.crs.to_wkt()), []).append(i)
    for (path, crs), members in sharing.items():
        boxes = shapely.box(*np.array([grids[i].bounds for i in members]).T)
        near_by = NEAR * max(_longer_step(grids[i]) for i in members)
        found = read_footprints(
            path, crs, tuple(shapely.total_bounds(boxes)), city.where, city.groups
        )
        numbers, tree = number_apart(found.polygons, near_by), shapely.STRtree(found.polygons)
        for i, box in zip(members, boxes, strict=True):
            near = np.sort(tree.query(box))
            mine, own = found.some(near), {"numbers": numbers[near]}
            labelled[i] = replace(
                sources[i], polygons=mine.polygons, values=mine.labels, groups=mine.groups, **own
            )
    return labelled


def _longer_step(grid: Grid) -> float:
    """From a pixel to its neighbour, in units of the CRS; along a row or along a column,
    whichever is more.
    """
    return float(np.hypot(*np.reshape(grid.transform[:6], (2, 3))[:, :2]).max())


def _with_groups(city: City, sources: list[Source]) -> list[Source]:
    """Sources with their footprints' groups as codes: one more than the place of
    the name, 0 where there is none.

    Raises InputError where the column of fetch.groups holds values rather than groups.
    """
    names = sorted(
        {word for s in sources if s.groups is not None for word in s.groups if word is not None}
    )
    if len(names) > MOST_GROUPS:
        raise InputError(
            f"{city.city}: fetch.groups: column {city.groups} holds {len(names)} values; bring "
            f"them into at most "
            f"{MOST_GROUPS} groups"
        )
    code = {None: 0} | {name: 1 + i for i, name in enumerate(names)}
    coded = (
        None if s.groups is None else np.array([code[word] for word in s.groups], np.uint8)
        for s in sources
    )
    return [
        replace(s, groups=c if names else None, group_names=names)
        for s, c in zip(sources, coded, strict=True)
    ]


def _kept(folder: Path, mark: str) -> dict | None:
    """What an earlier run left, if it is whole and was made from the same scenes and parameters."""
    try:
        about = CityTiles(folder).about
    except (InputError, KeyError, TypeError):
        return None
    return (
        about if about.get("fingerprint") == mark and (folder / "tiles.parquet").exists() else None
    )


def _about(params: Params, city: City, plans: list[Planned], counts: list, mark: str) -> dict:
    building, valid = sum(count.sum(axis=(1, 2)) for count in counts).tolist()
    pixels = sum(plan.region.pixels for plan in plans)
    native = [plan.native for plan in plans]
    ranges = [plan.source.range for plan in plans if plan.source.range]
    names = plans[0].source.group_names
    return {
        "city": city.city,
        "gsd": params.tile.gsd,
        "size": params.tile.size,
        "channels": len(plans[0].source.bands),
        "classes": params.train.model.classes,
        **({"groups": names, "grouped_by": city.groups} if names else {}),
        "bands": city.bands or params.tile.bands,
        "range": ranges[0] if ranges else None,
        "fingerprint": mark,
        "statistics": {
            "scenes": len({plan.region.parent for plan in plans}),
            "pixels": pixels,
            "building": building / max(1, valid),
            "ignored": 1 - valid / pixels,
            "native_gsd": [min(native), max(native)],
        },
    }


def _summary(about: dict) -> list:
    found = about["statistics"]
    low, high = (f"{gsd:.3g}" for gsd in found["native_gsd"])
    regions = [sum(region["split"] == split for region in about["regions"]) for split in SPLITS]
    shares = [f"{100 * found[key]:.1f}" for key in ("building", "ignored")]
    native = low if low == high else f"{low}–{high}"
    return [
        about["city"],
        found["scenes"],
        *regions,
        f"{found['pixels'] / 1e6:.2f}",
        *shares,
        native,
        f"{about['gsd']:g}",
    ]


def _warn_shared_ground(city: City, regions: list[Region]) -> None:
    """Warn of scenes that overlap on the ground: they leak from one split to another."""
    placed = [region for region in regions if region.crs is not None]
    outlines = np.array([region.grid.outlines()[0] for region in placed], object)
    first, second = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        a, b = placed[i], placed[j]
        if i < j and a.split != b.split:
            shared = outlines[i].intersection(outlines[j]).area / min(
                outlines[i].area, outlines[j].area
            )
            if shared > SAME_GROUND:
                _warn(
                    f"{city.city}: {a.name} ({a.split}) and {b.name} ({b.split}) share "
                    f"{100 * shared:.0f} % "
                    "of their ground; scores of this city are flattered"
                )
                return


def _warn(message: str) -> None:
    console.print(f"warning: {message}", style="yellow", markup=False)
