"""What a topic of the course gives: numbers to print and one picture. The course draws here, for
itself: its pictures show a lesson, those of the report a result.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure


class Lesson(NamedTuple):
    numbers: Mapping[str, object]  # what was measured: value
    picture: Figure


def board(panels: int, height: float = 2.9) -> tuple[Figure, np.ndarray]:
    """A figure of panels side by side, and their axes (panels,)."""
    figure = Figure(figsize=(2.5 * panels + 0.3, height), dpi=100, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.tick_params(labelsize=7)
    return figure, axes


def show(axes, title: str, picture: torch.Tensor, **options) -> None:
    """Draw an image (3, H, W) in [0, 1], or a map (H, W)."""
    array = picture.detach().float()
    axes.imshow((array.movedim(0, -1).clamp(0, 1) if array.ndim == 3 else array).numpy(), **options)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def gallery(pictures: dict[str, torch.Tensor], options: dict[str, dict] | None = None) -> Figure:
    """Pictures side by side, each under its title; `options` go to the imshow of single ones."""
    figure, axes = board(len(pictures))
    for each, (title, picture) in zip(axes, pictures.items(), strict=True):
        show(each, title, picture, **(options or {}).get(title, {}))
    return figure


def curves(axes, title: str, lines: dict[str, Iterable[float]], x: str, **limits) -> None:
    """Lines against their index, named."""
    for name, values in lines.items():
        axes.plot(list(values), label=name, linewidth=1.3)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set(**limits)
    axes.legend(fontsize=7, frameon=False)
