"""Reasoning by window against reasoning by layer: the same logits (Long, Shelhamer, Darrell
2015, section 3.1).
"""

import time

import torch
from torch import Tensor

from pipeline.course.lesson import Lesson, board, show
from pipeline.course.towns import scene
from pipeline.networks.models import WindowCNN


@torch.inference_mode()
def by_window(network: WindowCNN, image: Tensor) -> Tensor:
    """Logits (K, H − 31, W − 31): one 32² window of the image (C, H, W) after the other."""
    windows = image.unfold(1, network.window, 1).unfold(2, network.window, 1)
    rows, columns = windows.shape[1:3]
    windows = windows.permute(1, 2, 0, 3, 4).flatten(0, 1)
    return torch.cat([network.classify(part) for part in windows.split(512)]).T.unflatten(
        1, (rows, columns)
    )


@torch.inference_mode()
def by_layer(network: WindowCNN, image: Tensor) -> Tensor:
    """The same logits from the whole image at once: every stride becomes a dilation, no product
    is computed twice.
    """
    before, after = (network.window - 1) // 2, network.window // 2
    return network(image[None])[
        0, :, before : image.shape[1] - after, before : image.shape[2] - after
    ]


def windows(side: int = 96, width: int = 16) -> Lesson:
    """Neighbouring windows share nearly all their pixels, and by window each is
    computed 32² times.
    """
    torch.manual_seed(0)
    network, image = WindowCNN(3, 2, width).eval(), scene("brickvale", 1)[0][:, :side, :side]
    by_layer(network, image)  # the first pass pays for memory
    seconds, found = {}, {}
    for reasoning in (by_window, by_layer):
        start = time.perf_counter()
        found[reasoning] = reasoning(network, image)[1]
        seconds[reasoning] = time.perf_counter() - start
    figure, axes = board(4)
    show(axes[0], "image", image)
    show(axes[1], "a logit by window", found[by_window])
    show(axes[2], "the same by layer", found[by_layer])
    axes[3].bar(["by window", "by layer"], seconds.values(), color=["#E69F00", "#0072B2"])
    axes[3].set(yscale="log")
    axes[3].set_title("seconds", fontsize=9)
    numbers = {
        "windows": found[by_layer].numel(),
        "by window − by layer, largest": float((found[by_window] - found[by_layer]).abs().max()),
        "seconds by window / by layer": f"{seconds[by_window] / seconds[by_layer]:.0f}",
    }
    return Lesson(numbers, figure)
