"""What benchmarks/peers.py measures, by Raster Vision's own means: PYTHON with_rastervision.py
crops|scene FOLDER

Run by the python of an environment that holds Raster Vision. Prints {"seconds": …}, imports and a
warm-up left out.
"""

import json
import sys
import time
from pathlib import Path

import torch
from rastervision.core.data import ClassConfig, SemanticSegmentationLabels
from rastervision.pytorch_learner import (
    SemanticSegmentationGeoDataConfig,
    SemanticSegmentationLearner,
    SemanticSegmentationLearnerConfig,
    SemanticSegmentationRandomWindowGeoDataset,
    SemanticSegmentationSlidingWindowGeoDataset,
    SolverConfig,
)
from torch.utils.data import ConcatDataset, DataLoader

CLASSES = ClassConfig(names=["background", "building"], null_class="background")


def crops(folder: Path, crop: int, batch: int, count: int, **_) -> float:
    scenes = sorted((folder / "images").glob("*.tif"))
    each = -(-(count + batch) // len(scenes))
    datasets = [
        SemanticSegmentationRandomWindowGeoDataset.from_uris(
            class_config=CLASSES,
            image_uri=str(image),
            label_raster_uri=str(folder / "labels" / image.name),
            out_size=crop,
            size_lims=(crop, crop + 1),
            padding=0,
            max_windows=each,
        )
        for image in scenes
    ]
    order = torch.randperm(each * len(scenes))[: count + batch].tolist()
    loader = iter(DataLoader(ConcatDataset(datasets), batch_size=batch, sampler=order))
    next(loader)
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def scene(folder: Path, window: int, stride: int, batch: int, **_) -> float:
    import segmentation_models_pytorch as smp
    from safetensors.torch import load_file

    model = smp.Unet("resnet18", encoder_weights=None, classes=2).eval()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    data = SemanticSegmentationGeoDataConfig(class_config=CLASSES, num_workers=0)
    config = SemanticSegmentationLearnerConfig(data=data, solver=SolverConfig(batch_sz=batch))
    learner = SemanticSegmentationLearner(
        config, output_dir=str(folder / "learner"), model=model, training=False
    )
    learner.predict(torch.zeros(batch, 3, window, window))
    start = time.perf_counter()
    windows = SemanticSegmentationSlidingWindowGeoDataset.from_uris(
        class_config=CLASSES,
        image_uri=str(next((folder / "scene").glob("*.tif"))),
        size=window,
        stride=stride,
    )
    options = {"progress_bar": False, "dataloader_kw": {"batch_size": batch, "num_workers": 0}}
    scores = learner.predict_dataset(windows, raw_out=True, numpy_out=True, **options)
    extent = windows.scene.extent
    stitched = SemanticSegmentationLabels.from_predictions(
        windows.windows, scores, extent, len(CLASSES), smooth=True
    )
    stitched.save(
        str(folder / "rastervision"), windows.scene.raster_source.crs_transformer, CLASSES
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    settings = json.loads((folder / "settings.json").read_text())
    print(json.dumps({"seconds": {"crops": crops, "scene": scene}[name](folder, **settings)}))
