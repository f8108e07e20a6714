"""Outlines in metrics/evaluate.json: of a city whose footprints are at hand, as
`predict` would deliver them.
"""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from rasterio.features import rasterize
from toy import write_city

from pipeline.imagery import scene as scenes
from pipeline.networks.models import build_model, save_model
from pipeline.params import Model, load_params
from pipeline.stages.evaluate import run
from pipeline.storage import read_json
from pipeline.tiles.store import CityTiles

TINY = Path(__file__).parents[1] / "tiny.yaml"


@pytest.fixture
def house(tmp_path) -> tuple[shapely.Polygon, Path]:
    """Two bright houses at 25°, tiles of two scenes that show one each, and a
    model that finds what is bright.
    """
    plan = shapely.Polygon([(30, 30), (100, 30), (100, 60), (70, 60), (70, 95), (30, 95)])
    plan = shapely.affinity.rotate(plan, 25, "centroid")
    label = rasterize([plan], (128, 128)).astype(np.uint8)
    image = np.repeat(40 + 160 * label[..., None], 3, -1).astype(np.uint8)
    write_city(tmp_path / "tiles", [("test", image, label)] * 2, gsd=0.5)
    write_city(tmp_path / "tiles", [("test", image, label)] * 2, "rasterville", gsd=0.5)
    description = Model(architecture="linear")
    segmenter = build_model(description, 3)
    with torch.no_grad():
        segmenter.network.weight[:] = torch.tensor([[0.0, 0, 0], [10, 10, 10]])[..., None, None]
        segmenter.network.bias[:] = torch.tensor([0.0, -15])
    card = {
        "model": description.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
    }
    save_model(tmp_path / "model", segmenter, card)
    return plan, tmp_path


def test_outlines_are_scored_where_footprints_are_vectors_and_null_elsewhere(house):
    plan, folder = house
    regions = CityTiles(folder / "tiles/toyton").regions
    known = [
        shapely.transform(
            plan, lambda xy, r=r: np.stack(r.grid.transform @ (xy[:, 0], xy[:, 1]), 1)
        )
        for r in regions
    ]
    root = folder / "scenes/toyton"
    root.mkdir(parents=True)
    gpd.GeoDataFrame(geometry=known, crs=regions[0].crs).to_file(root / "footprints.gpkg")
    listed = [scenes.Scene(r.parent, "absent.tif", "footprints.gpkg") for r in regions]
    scenes.write_city(root, scenes.City("toyton", "folder", listed))
    params = load_params(TINY)
    params = params.model_copy(
        update={"fetch": params.fetch.model_copy(update={"cities": ["toyton", "rasterville"]})}
    )
    found = {}
    for style in ("regular", "raw"):
        asked = params.model_copy(
            update={"predict": params.predict.model_copy(update={"outlines": style})}
        )
        run(
            asked,
            *(folder / name for name in ("model", "tiles", "out.json", "arrays", "scenes", "work")),
        )
        found[style] = read_json(folder / "out.json")["city"]
    assert found["raw"]["rasterville"]["outlines"] is None
    regular, raw = (found[style]["toyton"]["outlines"] for style in ("regular", "raw"))
    assert regular["pairs"] == raw["pairs"] == 2
    assert (
        regular["rotation"] < 2 < raw["rotation"]
        and regular["vertex_ratio"] == 1 < 5 < raw["vertex_ratio"]
    )
    assert regular["iou"] > 0.95 and regular["polis"] < raw["polis"] + 0.2
