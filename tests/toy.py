"""Tiny cities as the tile stage writes them."""

import json
from pathlib import Path
from zlib import crc32

import geopandas as gpd
import numpy as np
from shapely.geometry import box


def write_city(
    folder: Path, scenes: list, city: str = "toyton", gsd: float = 0.5, size: int = 64
) -> Path:
    """Write tiles as the tile stage does. `scenes`: (split, image (H, W, C)
    uint8, label (H, W) uint8) each.
    """
    folder = folder / city
    folder.mkdir(parents=True)
    regions, rows, offset = [], [], 0
    for i, (split, _, label) in enumerate(scenes):
        height, width = label.shape
        name = f"{city}-{i + 1}"
        regions.append({
            "name": name, "parent": name, "split": split, "height": height, "width": width,
            "offset": offset,
            "transform": [gsd, 0, 1000.0 * i, 0, -gsd, 1000.0 * (crc32(city.encode()) % 1000)],
            "crs": "EPSG:32633",
        })  # fmt: skip
        offset += height * width
        for top in range(0, height, size):
            for left in range(0, width, size):
                part = label[top : top + size, left : left + size]
                rows.append({
                    "region": i, "split": split, "row": top, "column": left, "scene": name,
                    "building": float((part == 1).mean()), "valid": float((part != 255).mean()),
                    "geometry": box(left, top, left + size, top + size),
                })  # fmt: skip
    np.save(folder / "images.npy", np.concatenate([image.ravel() for _, image, _ in scenes]))
    np.save(folder / "labels.npy", np.concatenate([label.ravel() for *_, label in scenes]))
    gpd.GeoDataFrame(rows, crs="EPSG:4326").to_parquet(folder / "tiles.parquet")
    about = {
        "city": city,
        "gsd": gsd,
        "size": size,
        "channels": scenes[0][1].shape[-1],
        "classes": 1,
    }
    (folder / "regions.json").write_text(json.dumps({**about, "regions": regions}))
    return folder


def toy_scene(seed: int, side: int = 128, contrast: int = 90):
    """Bright rectangles on noise: image (S, S, 3) and label (S, S), easy for any network."""
    random = np.random.default_rng(seed)
    label = np.zeros((side, side), np.uint8)
    for _ in range(side * side // 1500):
        top, left = random.integers(0, side - 20, 2)
        label[top : top + random.integers(8, 20), left : left + random.integers(8, 20)] = 1
    image = random.normal(90, 20, (side, side, 3)) + contrast * label[..., None]
    return np.clip(image, 1, 255).astype(np.uint8), label


def bright_glance():
    """A glance, given and not learned, that answers the first band's brightness less one half."""
    import torch

    from pipeline.networks.glance import Glance

    glance = Glance(3).eval().requires_grad_(False)
    for layer in glance.layers:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.zeros_(layer.weight)
            middle = layer.kernel_size[0] // 2
            layer.weight[0, 0, middle, middle] = 1
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
    glance.layers[-1].bias.fill_(-0.5)
    return glance
