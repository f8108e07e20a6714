"""What benchmarks/peers.py measures, by TorchGeo's own means: PYTHON with_torchgeo.py
crops|scene|labels FOLDER

Run by the python of an environment that holds TorchGeo. Prints {"seconds": …}, imports and a
warm-up left out.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import torch
from torch.utils.data import DataLoader
from torchgeo.datasets import OpenBuildings, RasterDataset, stack_samples
from torchgeo.samplers import GridGeoSampler, RandomGeoSampler


class Images(RasterDataset):
    filename_glob = "*.tif"


class Labels(RasterDataset):
    filename_glob = "*.tif"
    is_image = False


def crops(folder: Path, crop: int, batch: int, count: int, **_) -> float:
    pairs = Images(folder / "images") & Labels(folder / "labels")
    sampler = RandomGeoSampler(pairs, size=crop, length=count + batch)
    loader = iter(DataLoader(pairs, batch_size=batch, sampler=sampler, collate_fn=stack_samples))
    next(loader)
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def scene(folder: Path, window: int, stride: int, batch: int, **_) -> float:
    """Forward passes and nothing else: TorchGeo neither stitches windows nor writes a map."""
    import segmentation_models_pytorch as smp
    from safetensors.torch import load_file

    model = smp.Unet("resnet18", encoder_weights=None, classes=2).eval()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    images = Images(folder / "scene")
    windows = GridGeoSampler(images, size=window, stride=stride)
    loader = DataLoader(images, batch_size=batch, sampler=windows, collate_fn=stack_samples)
    with torch.inference_mode():
        model(torch.zeros(batch, 3, window, window))
        start = time.perf_counter()
        for sample in loader:
            model(sample["image"] / 255).softmax(1).argmax(1)
    return time.perf_counter() - start


def labels(folder: Path, west: float, north: float, resolution: float, patch: int, **_) -> float:
    start = time.perf_counter()
    cells = OpenBuildings(folder / "cells", res=resolution)
    side, always = patch * resolution, slice(pandas.Timestamp.min, pandas.Timestamp.max)
    mask = cells[west : west + side : resolution, north - side : north : resolution, always]["mask"]
    seconds = time.perf_counter() - start
    np.save(folder / "labels.npy", mask[0].numpy() > 0)
    return seconds


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    settings = json.loads((folder / "settings.json").read_text())
    print(
        json.dumps(
            {
                "seconds": {"crops": crops, "scene": scene, "labels": labels}[name](
                    folder, **settings
                )
            }
        )
    )
