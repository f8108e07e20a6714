"""A temperature is kept where it makes confidence honest on tiles it was not
fitted on, and nowhere else.
"""

import numpy as np
import pytest
import torch

from pipeline.scoring.expected_iou import Thresholds
from pipeline.training.calibration import fit_temperature, helps, least_expected_iou

HALF = torch.arange(40_000) % 2 == 0


def drawn(sharpened: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, 2) and classes (N,) of pixels whose margins are `sharpened` times too sure."""
    generator = torch.Generator().manual_seed(0)
    margin = 1.5 * torch.randn(len(HALF), generator=generator)
    classes = (torch.rand(len(HALF), generator=generator) < margin.sigmoid()).long()
    return torch.stack([torch.zeros(len(HALF)), sharpened * margin], 1), classes


def test_an_overconfident_model_is_cooled_by_as_much_as_it_is_too_sure():
    z, y = drawn(torch.tensor(3.0))
    assert abs(fit_temperature(z, y) - 3) < 0.15
    assert helps(HALF, z, y)


def test_what_cools_one_half_and_harms_the_other_is_not_kept():
    z, y = drawn(torch.where(HALF, 4.0, 1.0))
    assert fit_temperature(z[HALF], y[HALF]) > 3
    assert not helps(HALF, z, y)


def test_a_single_window_cannot_tell():
    z, y = drawn(torch.tensor(3.0))
    assert not helps(torch.ones_like(HALF), z, y)


def test_the_least_expected_iou_is_that_of_the_hardest_scene():
    """Of a hundred pixels found, those of 0.8 and more count as right; of the background all
    are surer than 0.9.
    """
    easy, hard = ([0.95] * sure + [0.6] * (100 - sure) + [0.05] * 900 for sure in (90, 40))
    probability = np.array([*easy, *hard, *[0.05] * 1000])
    scenes = np.repeat(["town/1", "town/2", "town/3"], 1000)
    least = least_expected_iou(probability, scenes, Thresholds(building=0.8, background=0.9))
    assert least == pytest.approx(0.4)
    assert least_expected_iou(np.array([0.1]), np.array(["town/3"]), Thresholds(0.8, 0.9)) is None
