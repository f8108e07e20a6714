"""Many scenes' footprints as one layer: whole on seams, once in overlaps, and
the same however they are read.
"""

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from shapely.geometry import box

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid
from pipeline.imagery.writer import footprints
from pipeline.mapping import merge as module
from pipeline.mapping.merge import merge

EAST, NORTH, SIDE = 500_000.0, 5_400_000.0, 100  # a scene is 100 × 100 pixels of 1 m


def scene(
    folder,
    name: str,
    left: float,
    top: float,
    buildings: list,
    suffix="gpkg",
    crs="EPSG:32633",
    labels=None,
):
    """A mapped scene whose corner lies `left` and `top` metres from the first's, and `buildings`
    (metres from there) clipped to it, as predict leaves them.
    """
    transform = Affine(1, 0, EAST + left, 0, -1, NORTH - top)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": SIDE, "width": SIDE}
    with rasterio.open(folder / f"{name}.tif", "w", **profile, crs=crs, transform=transform):
        pass
    edge = box(left, top, left + SIDE, top + SIDE)
    seen = [b.intersection(edge) for b in buildings]
    kept = [i for i, b in enumerate(seen) if b.area > 0]
    placed = geopandas.GeoSeries([seen[i] for i in kept]).affine_transform(
        [1, 0, 0, -1, EAST, NORTH]
    )
    grid = Grid(SIDE, SIDE, transform, rasterio.CRS.from_string(crs))
    (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    with footprints(folder / f"{name}.{suffix}", grid.crs) as write:
        if kept:
            columns = {
                "id": [f"{name}-{i}" for i in kept],
                "label": [labels[i] if labels else 1 for i in kept],
                "area_m2": [seen[i].area for i in kept],
                "confidence": [0.9] * len(kept),
            }
            said = {
                "class": "building",
                "regularised": False,
                "source": name,
                "captured": None,
                "model": "m",
                "model_version": "1",
            }
            columns |= {key: [value] * len(kept) for key, value in said.items()}
            write(columns, np.array(list(placed), object))


def merged(folder, names, suffix="gpkg"):
    merge(folder, names, suffix)
    path = folder / f"merged.{suffix}"
    return geopandas.read_parquet(path) if suffix == "parquet" else geopandas.read_file(path)


TOWN = [
    box(10, 10, 20, 30),
    box(90, 40, 115, 60),
    box(130, 70, 140, 80),
    box(85, 90, 110, 120),
    box(40, 95, 60, 130),
]


@pytest.mark.parametrize("step", [100, 70], ids=["abutting", "overlapping"])
@pytest.mark.parametrize("suffix", ["gpkg", "parquet"])
def test_buildings_on_edges_are_whole_and_those_seen_twice_are_there_once(tmp_path, step, suffix):
    names = []
    for i, (left, top) in enumerate([(0, 0), (step, 0), (0, step), (step, step)]):
        scene(tmp_path, f"s{i}", left, top, TOWN, suffix)
        names.append(f"s{i}")
    layer = merged(tmp_path, names, suffix)
    assert len(layer) == len(TOWN)
    truth = geopandas.GeoSeries(TOWN).affine_transform([1, 0, 0, -1, EAST, NORTH])
    for building in truth:
        (same,) = [g for g in layer.geometry if g.intersects(building)]
        assert same.symmetric_difference(building).area < 1e-3 * building.area
    assert layer.area_m2.sum() == pytest.approx(sum(b.area for b in TOWN), rel=1e-3)
    assert layer.id.is_unique and (layer.confidence == 0.9).all()


def test_a_gap_that_simplified_outlines_leave_on_the_seam_is_closed(tmp_path):
    scene(tmp_path, "a", 0, 0, [box(80, 20, 99.2, 40)])
    scene(tmp_path, "b", 100, 0, [box(100.3, 20, 120, 40)])
    (building,) = merged(tmp_path, ["a", "b"]).geometry
    assert building.geom_type == "Polygon" and building.area == pytest.approx(800, rel=0.01)


def test_neighbours_within_one_scene_and_other_classes_stay_apart(tmp_path):
    scene(tmp_path, "a", 0, 0, [box(80, 20, 100, 30), box(80, 31, 100, 40)], labels=[1, 2])
    scene(tmp_path, "b", 100, 0, [box(100, 20, 110, 30), box(100, 31, 110, 40)], labels=[1, 2])
    layer = merged(tmp_path, ["a", "b"])
    assert sorted(zip(layer.label, layer.area.round(), strict=True)) == [(1, 300), (2, 270)]


def test_a_piece_cut_by_an_edge_gives_way_to_the_whole_and_no_ground_counts_twice(tmp_path):
    """The second scene sees the house whole, 2 m further east, and a neighbour
    that overlaps the first's.
    """
    scene(tmp_path, "a", 0, 0, [box(90, 20, 120, 40), box(60, 60, 90, 80)])
    scene(tmp_path, "b", 50, 0, [box(92, 20, 122, 40), box(85, 60, 110, 80)])
    layer = merged(tmp_path, ["a", "b"])
    areas = sorted(layer.area.round().tolist())
    assert areas == [400, 600, 600]  # 25 × 20 less the 5 × 20 that the larger neighbour has
    assert layer.union_all().area == pytest.approx(layer.area.sum())


@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_the_layer_does_not_depend_on_how_much_is_held_at_a_time(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(module, "BATCH", batch)
    random = np.random.default_rng(0)
    town = [
        box(x, y, x + 8, y + 8)
        for x, y in random.permutation(
            [(x, y) for x in range(0, 160, 12) for y in range(0, 90, 12)]
        )
    ]
    for i in range(3):
        scene(tmp_path, f"s{i}", 40 * i, 0, town)
    layer = merged(tmp_path, ["s0", "s1", "s2"])
    inside = [b.intersection(box(0, 0, 180, 100)) for b in town]
    assert len(layer) == sum(b.area > 0 for b in inside)
    assert layer.area.sum() == pytest.approx(sum(b.area for b in inside))


def test_scenes_of_two_zones_meet_in_the_first_ones_crs(tmp_path):
    scene(tmp_path, "a", 0, 0, [box(80, 20, 100, 40)])
    scene(tmp_path, "b", 0, 0, [box(80, 20, 100, 40)])
    both = merged(tmp_path, ["a"])
    geopandas.read_file(tmp_path / "b.gpkg").to_crs("EPSG:3857").to_file(
        tmp_path / "b.gpkg", layer="buildings"
    )
    corners = geopandas.GeoSeries(
        [box(EAST, NORTH - SIDE, EAST + SIDE, NORTH)], crs="EPSG:32633"
    ).to_crs("EPSG:3857")
    west, south, east, north = corners.total_bounds
    transform = Affine((east - west) / SIDE, 0, west, 0, -(north - south) / SIDE, north)
    with rasterio.open(
        tmp_path / "b.tif",
        "w",
        driver="GTiff",
        dtype="uint8",
        count=1,
        height=SIDE,
        width=SIDE,
        crs="EPSG:3857",
        transform=transform,
    ):
        pass
    layer = merged(tmp_path, ["a", "b"])
    assert layer.crs == both.crs and len(layer) == 1
    assert layer.geometry[0].symmetric_difference(both.geometry[0]).area < 0.05 * 400


def test_it_is_not_made_again_and_an_edited_layer_stays(tmp_path):
    scene(tmp_path, "a", 0, 0, TOWN)
    merged(tmp_path, ["a"])
    before = (tmp_path / "merged.gpkg").stat().st_mtime_ns
    layer = merged(tmp_path, ["a"])
    assert (tmp_path / "merged.gpkg").stat().st_mtime_ns == before and len(layer) == 4
    layer.iloc[:1].to_file(tmp_path / "merged.gpkg", layer="buildings")
    scene(tmp_path, "a", 0, 0, TOWN[:1])
    with pytest.raises(InputError, match="merged.gpkg: was changed since"):
        merge(tmp_path, ["a"], "gpkg")
    assert len(geopandas.read_file(tmp_path / "merged.gpkg")) == 1
