"""One rule from logits to the map: the same in logits, in probabilities, in the margins that
certificates bound.
"""

import math

import numpy as np
import pytest
import torch

from pipeline import params
from pipeline.networks.decision import Decision
from pipeline.networks.lipschitz import radii
from pipeline.networks.models import build_model, read_model, save_model

RULES = [Decision(), Decision(1.93, 0.394), Decision(0.5, 0.8), Decision(4.0, 0.3)]


def drawn(z: torch.Tensor, rule: Decision) -> torch.Tensor:
    """As predict draws it, in float64: a building where its tempered
    probability exceeds the threshold.
    """
    p = (z.double() / rule.temperature).softmax(1)
    return torch.where(1 - p[:, 0] > rule.threshold, p[:, 1:].argmax(1) + 1, 0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_logits_probabilities_and_margins_draw_one_map(rule, classes):
    z = 4 * torch.randn(2, classes, 40, 40, generator=torch.Generator().manual_seed(classes))
    expected = drawn(z, rule)
    assert torch.equal(rule(z), expected) and torch.equal(rule.logits(z).argmax(1), expected)
    p = (z.double() / rule.temperature).softmax(1)[:, 1:].movedim(1, -1).numpy()
    assert np.array_equal(rule.of_probabilities(p), expected.numpy())
    assert len(expected.unique()) == classes


def test_the_likelier_class_wins_where_nothing_was_calibrated():
    z = torch.randn(1, 2, 30, 30)
    assert torch.equal(Decision()(z), z.argmax(1)) and torch.equal(Decision().logits(z), z)


@pytest.mark.parametrize(("threshold", "everywhere"), [(0.0, 1), (1.0, 0)])
def test_the_ends_of_the_threshold_draw_one_class(threshold, everywhere):
    rule = Decision(2.0, threshold)
    assert (rule(torch.randn(1, 2, 5, 5)) == everywhere).all()


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_stretches_no_distance(rule):
    """A change of the logits shorter than the radius of the decision's logits leaves the class."""
    random = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(1, 3, 50, 50, generator=random)
    reach = radii(rule.logits(z))[:, None]
    for _ in range(20):
        step = torch.randn(z.shape, generator=random)
        step = step / step.norm(dim=1, keepdim=True)
        assert torch.equal(rule(z + 0.999 * reach * step), rule(z))


def test_a_model_folder_brings_its_rule(tmp_path):
    model = params.Model(architecture="linear")
    card = {
        "model": model.model_dump(),
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
        "temperature": 2.0,
        "threshold": 0.3,
    }
    save_model(tmp_path / "m", build_model(model, 3), card)
    segmenter, images = read_model(tmp_path / "m"), torch.rand(2, 3, 16, 16)
    assert segmenter.decision == Decision(2.0, 0.3)
    assert segmenter.decision.shift == pytest.approx(2 * math.log(0.3 / 0.7))
    deployed = segmenter.deployed()(images).argmax(1)
    assert torch.equal(deployed, segmenter.decide(segmenter(images)))
    assert torch.equal(deployed, drawn(segmenter(images), segmenter.decision))
