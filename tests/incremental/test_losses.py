"""Identities of the losses against forgetting."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.incremental.losses import (
    distillation,
    ewc,
    fisher,
    grow,
    unbiased_cross_entropy,
    unbiased_distillation,
)


@pytest.fixture
def logits():
    return torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def labels():
    labels = torch.randint(0, 3, (2, 5, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 0] = 255
    return labels


def test_distillation_is_zero_of_the_same_answer_and_torch_s_divergence_of_another(logits, labels):
    # a softmax knows no constant
    assert distillation(logits, logits + 3, labels) == pytest.approx(0, abs=1e-12)
    other, t = logits.flip(1), 2.0
    pixels = F.kl_div(
        (logits / t).log_softmax(1), (other / t).log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    assert distillation(logits, other, labels, t).item() == pytest.approx(
        4 * pixels[labels != 255].mean().item()
    )
    assert distillation(logits, other, labels) > 0


def test_what_is_ignored_teaches_nothing(logits, labels):
    changed = logits.clone()
    changed[0, :, 0] += torch.randn(3, 5)
    for loss in (
        lambda z: distillation(z, logits.flip(1), labels),
        lambda z: unbiased_cross_entropy(z, labels, 2),
        lambda z: unbiased_distillation(z, logits[:, :2], labels),
    ):
        assert loss(changed) == pytest.approx(loss(logits).item())
        assert loss(logits).isfinite() and loss(logits) >= 0
    assert unbiased_cross_entropy(logits, torch.full_like(labels, 255), 2) == 0


def test_ewc_is_a_parabola_in_each_weight_and_zero_where_nothing_moved():
    layer = nn.Linear(2, 1)
    then = {name: weight.detach().clone() for name, weight in layer.named_parameters()}
    information = {"weight": torch.tensor([[2.0, 3.0]]), "bias": torch.tensor([4.0])}
    assert ewc(layer, [(information, then)]) == 0
    with torch.no_grad():
        layer.weight += torch.tensor([[1.0, -2.0]])
        layer.bias += 0.5
    assert ewc(layer, [(information, then)]).item() == pytest.approx(
        0.5 * (2 * 1 + 3 * 4 + 4 * 0.25)
    )
    assert ewc(layer, [(information, then)] * 2).item() == pytest.approx(15.0)
    ewc(layer, [(information, then)]).backward()
    assert layer.weight.grad.tolist()[0] == pytest.approx([2.0, -6.0])


def test_the_fisher_information_of_a_bernoulli_bias():
    """One pixel, logits (0, b): (∂ log p / ∂b)² has the mean p (1 − p)."""
    network = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([0.0, 1.0]))
    torch.manual_seed(0)
    found = fisher(network, (torch.zeros(1, 1, 1, 1) for _ in range(4000)))
    p = torch.sigmoid(torch.tensor(1.0))
    assert found["bias"].tolist() == pytest.approx([(p * (1 - p)).item()] * 2, rel=0.06)
    assert (found["weight"] == 0).all()


def test_unbiased_losses_are_the_plain_ones_where_no_class_is_old_or_new(logits, labels):
    plain = F.cross_entropy(logits, labels, ignore_index=255)
    assert unbiased_cross_entropy(logits, labels, old=1).item() == pytest.approx(plain.item())
    assert unbiased_distillation(logits, logits.flip(1), labels).item() == pytest.approx(
        distillation(logits, logits.flip(1), labels, temperature=1.0).item()
    )


def test_an_old_class_called_background_costs_nothing():
    """A network sure of the old class 1 where the label says background: plain loss punishes
    it, MiB does not.
    """
    sure = torch.tensor([-20.0, 20.0, -20.0]).view(1, 3, 1, 1)
    background = torch.zeros(1, 1, 1, dtype=torch.long)
    assert F.cross_entropy(sure, background) > 30
    assert unbiased_cross_entropy(sure, background, old=2) < 1e-6
    # the new class is asked for as ever
    assert unbiased_cross_entropy(sure, background + 2, old=2) > 30


def test_a_new_class_where_the_old_network_saw_background_costs_nothing():
    sure = torch.tensor([-20.0, -20.0, 20.0]).view(1, 3, 1, 1)
    taught, label = (
        torch.tensor([20.0, -20.0]).view(1, 2, 1, 1),
        torch.zeros(1, 1, 1, dtype=torch.long),
    )
    assert unbiased_distillation(sure, taught, label) < 1e-6
    assert unbiased_distillation(sure, -taught, label) > 30  # not where it saw the old class


@pytest.mark.parametrize("classes", [1, 3])
def test_a_grown_layer_answers_as_before_with_the_new_classes_as_background(classes):
    torch.manual_seed(0)
    layer, features = nn.Conv2d(4, 2, 3, padding=1), torch.randn(2, 4, 6, 6)
    before, after = layer(features).softmax(1), grow(layer, classes)(features).softmax(1)
    assert after.shape[1] == 2 + classes
    assert torch.allclose(after[:, 1], before[:, 1], atol=1e-6)
    assert torch.allclose(after[:, [0, *range(2, 2 + classes)]].sum(1), before[:, 0], atol=1e-6)
    assert torch.allclose(after[:, 2], after[:, 0], atol=1e-6)
    labels = torch.zeros(2, 6, 6, dtype=torch.long)
    logits = grow(layer, classes)(features)
    assert unbiased_distillation(logits, layer(features), labels) < 1e-6
