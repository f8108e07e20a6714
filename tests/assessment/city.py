"""A small city that a model of one colour maps, and a labeller who knows the truth."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import torch
from affine import Affine
from rasterio.features import shapes

from pipeline.assessment.survey import LABELS
from pipeline.networks.models import build_model, save_model
from pipeline.params import Model

PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 6_650_000)
CRS = "EPSG:32632"


def red_model(folder: Path, bias: float = -4.0) -> Path:
    """Pixel by pixel: red roofs are buildings; what is a little red is doubtful."""
    description = Model(architecture="linear")
    segmenter = build_model(description, 3)
    with torch.no_grad():
        segmenter.network.weight[:] = torch.tensor([[0, 0, 0], [20.0, -10, -10]])[..., None, None]
        segmenter.network.bias[:] = torch.tensor([0.0, bias])
    card = {
        "model": description.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
        "threshold": 0.5,
        "temperature": 1.0,
        "metrics": {},
        "cities": [],
    }
    save_model(folder, segmenter, card)
    return folder


def town(height: int = 448, width: int = 448, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 and truth (H, W): most roofs are red, one in four is pale, and some red
    things are no roofs.
    """
    rng = np.random.default_rng(seed)
    truth, colour = (
        np.zeros((height, width), np.uint8),
        rng.integers(60, 160, (height, width, 1), dtype=np.uint8),
    )
    image = np.repeat(colour, 3, axis=2)
    for _ in range(height * width // 2500):
        top, left, kind = rng.integers(0, height - 30), rng.integers(0, width - 30), rng.random()
        place = slice(top, top + rng.integers(10, 30)), slice(left, left + rng.integers(10, 30))
        truth[place] = kind < 0.9
        image[place] = (220, 40, 40) if kind < 0.65 or kind >= 0.9 else (140, 90, 90)
    return image, truth


def write_scene(path: Path, image: np.ndarray, transform=PLACE, crs=CRS) -> Path:
    height, width, count = image.shape
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": count,
        "dtype": "uint8",
    }
    with rasterio.open(path, "w", transform=transform, crs=crs, **profile) as file:
        file.write(np.moveaxis(image, -1, 0))
    return path


def true_polygons(truth: np.ndarray, transform=PLACE, crs=CRS) -> gpd.GeoDataFrame:
    found = [
        shapely.geometry.shape(g) for g, v in shapes(truth, mask=truth > 0, transform=transform)
    ]
    return gpd.GeoDataFrame({"label": np.ones(len(found), np.int32)}, geometry=found, crs=crs)


def labelled(folder: Path, truth: np.ndarray, status: str = "done") -> None:
    """Draw the truth in every frame, as a labeller who rewrites both layers through GeoPandas."""
    path = folder / LABELS
    frames = gpd.read_file(path, layer="frames")
    frames["status"] = status
    buildings = true_polygons(truth).clip(frames.union_all())
    buildings = buildings[buildings.geom_type.isin(["Polygon", "MultiPolygon"])]
    frames.to_file(path, layer="frames", driver="GPKG")
    buildings.to_file(path, layer="buildings", driver="GPKG")


def map_counts(image: np.ndarray, truth: np.ndarray, bias: float = -4.0) -> np.ndarray:
    """TP, FP, FN of the whole city, computed without the pipeline."""
    x = image.astype(float) / 255
    drawn = 20 * x[..., 0] - 10 * x[..., 1] - 10 * x[..., 2] + bias > 0
    return np.array(
        [(drawn & (truth > 0)).sum(), (drawn & (truth == 0)).sum(), (~drawn & (truth > 0)).sum()]
    )
