"""Four encoders of one segmenter: LeNet and AlexNet, small and fully
convolutional, beside VGG and ResNet.
"""

import time
from collections.abc import Sequence

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin
from segmentation_models_pytorch.encoders.vgg import VGGEncoder
from torch import nn

from pipeline import params
from pipeline.course.fit import classes, fit, quality
from pipeline.course.lesson import Lesson, gallery
from pipeline.course.towns import tiles
from pipeline.networks.models import build_model

YEARS = {"lenet": 1998, "alexnet": 2012, "vgg": 2014, "resnet18": 2015}
DECODER = [32, 16, 8]  # the U-Net's, which all four share


class _Stages(nn.Module, EncoderMixin):
    """Images (N, 3, H, W) to themselves and what each stage makes of the one
    before, ever coarser.
    """

    def __init__(self, stages: Sequence[nn.Module], channels: list[int], depth: int):
        super().__init__()
        self._depth, self._in_channels, self._output_stride = depth, 3, 32
        self._out_channels = [3, *channels]
        self.stages = nn.ModuleList(stages[:depth])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = [x]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


class LeNet(_Stages):
    """LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998): C1 S2, C3 S4, C5; its two dense layers are
    the segmenter's.
    """

    def __init__(self, depth: int = 3, output_stride: int = 32):
        stages = [
            nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(16, 120, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        ]
        super().__init__(stages, [6, 16, 120], depth)


class AlexNet(_Stages):
    """AlexNet (Krizhevsky, Sutskever, Hinton 2012), a quarter as wide, its first stride 2 for
    objects of ten pixels.
    """

    def __init__(self, depth: int = 3, output_stride: int = 32):
        stages = [
            nn.Sequential(nn.Conv2d(3, 24, 11, stride=2, padding=5), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(24, 64, 5, padding=2), nn.ReLU()),
            nn.Sequential(
                nn.MaxPool2d(3, 2, 1),
                nn.Conv2d(64, 96, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(96, 96, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(96, 64, 3, padding=1),
                nn.ReLU(),
            ),
        ]
        super().__init__(stages, [24, 64, 64], depth)


# VGG-11 (Simonyan and Zisserman 2014) with batch norm, a quarter as wide; ResNet-18 (He et al.
# 2015) is as it is.
VGG = {
    "out_channels": [16, 32, 64, 128, 128, 128],
    "config": [16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"],
    "batch_norm": True,
}
# As segmentation-models-pytorch's documentation adds an encoder: known by its name from here on.
_known: dict = smp.encoders.encoders
for _name, _encoder, _settings in (
    ("lenet", LeNet, {}),
    ("alexnet", AlexNet, {}),
    ("vgg", VGGEncoder, VGG),
):
    _known[_name] = {"encoder": _encoder, "pretrained_settings": {}, "params": _settings}


def with_encoder(name: str, images: torch.Tensor) -> nn.Module:
    """The course's one segmenter: a U-Net (Ronneberger, Fischer, Brox 2015) of three levels over
    that encoder, behind the normalisation of the images (N, 3, H, W) it will learn from.
    """
    network = build_model(
        params.Model(architecture="unet", encoder=name, decoder_channels=DECODER), 3
    )
    network.set_normalisation(images.mean((0, 2, 3)), images.std((0, 2, 3)))
    return network


def encoders(steps: int = 40, scenes: int = 4, names: tuple[str, ...] = tuple(YEARS)) -> Lesson:
    """As many steps for each, on the same tiles; one city, a scene not seen."""
    images, labels = tiles("pinemoor", range(2, 2 + scenes))
    unseen, truth = tiles("pinemoor", [1], size=256)
    pictures, numbers = {"a scene not seen": unseen[0], "labels": truth[0]}, {}
    for name in names:
        torch.manual_seed(0)
        network = with_encoder(name, images)
        start = time.perf_counter()
        fit(network, images, labels, steps, rate=1e-2, batch=4)
        seconds = time.perf_counter() - start
        found = quality(network, unseen, truth)
        weights = sum(p.numel() for p in network.get_submodule("network.encoder").parameters())
        pictures[f"{name}: IoU {found:.2f}"] = classes(network, unseen)[0]
        numbers[f"{name}, {YEARS[name]}"] = f"IoU {found:.3f}, {weights:,} weights, {seconds:.1f} s"
    grey = {title: {"cmap": "gray"} for title, picture in pictures.items() if picture.ndim == 2}
    return Lesson(numbers, gallery(pictures, grey))
