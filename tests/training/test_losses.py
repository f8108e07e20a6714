"""Losses: known values, and label 255 changes nothing."""

import numpy as np
import pytest
import torch

from pipeline.training.losses import LOSSES, build_loss


def example(classes: int):
    torch.manual_seed(0)
    return torch.randn(2, classes + 1, 8, 8), torch.randint(0, classes + 1, (2, 8, 8))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [1, 3])
def test_ignored_pixels_change_neither_loss_nor_gradient(name, classes):
    logits, labels = example(classes)
    labels[:, :3] = 255
    wild = logits.clone()
    wild[:, :, :3] = 100 * torch.randn(2, classes + 1, 3, 8)
    values, gradients = [], []
    for z in (logits, wild):
        z = z.clone().requires_grad_()
        loss = build_loss({name: 1.0})(z, labels.byte())
        loss.backward()
        values.append(loss.item()), gradients.append(z.grad)
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    for gradient in gradients:
        assert not gradient[:, :, :3].any() and gradient[:, :, 3:].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_certain_right_answer_costs_nothing_and_a_wrong_one_does(name):
    _, labels = example(1)
    right = 60 * (torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float() - 0.5)
    loss = build_loss({name: 1.0})
    assert loss(right, labels) == pytest.approx(0, abs=1e-4)
    assert loss(-right, labels) > 0.5


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_labelled_is_finite(name):
    logits, labels = example(1)
    assert torch.isfinite(build_loss({name: 1.0})(logits, torch.full_like(labels, 255)))


def test_hinge_is_the_svm_hinge_on_the_margin():
    z, y = torch.tensor([[[[0.3]], [[1.0]]]]), torch.tensor([[[1]]])
    assert LOSSES["hinge"](z, y) == pytest.approx(0.3)
    assert LOSSES["hinge"](z, 1 - y) == pytest.approx(1.7)


def test_lovasz_of_hard_predictions_is_the_jaccard_loss():
    random = np.random.default_rng(0)
    truth, found = (torch.from_numpy(random.integers(0, 2, (1, 16, 16))) for _ in range(2))
    z = 1000 * torch.stack([1 - found, found], 1).float()
    iou = (truth & found).sum() / (truth | found).sum()
    assert LOSSES["lovasz"](z, truth) == pytest.approx(1 - iou.item(), abs=1e-5)


def test_the_sum_is_weighted():
    logits, labels = example(1)
    parts = {name: loss(logits, labels).item() for name, loss in LOSSES.items()}
    total = build_loss({"dice": 2.0, "focal": 0.5})(logits, labels).item()
    assert total == pytest.approx(2 * parts["dice"] + 0.5 * parts["focal"], rel=1e-5)
