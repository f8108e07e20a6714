import pytest
import torch

from pipeline.errors import InputError
from pipeline.networks.models import build_model
from pipeline.params import Model, Train, parse_params, parse_section
from pipeline.tiles.store import open_cities
from pipeline.training.fit import SegmentationTraining, fit, kept_epoch
from pipeline.training.group_dro import GroupWeights
from pipeline.training.losses import build_loss

LOSS = build_loss({"cross_entropy": 1.0})


def batch(*shares):
    """A crop of each group in turn, of which the network is wrong on a share of the pixels:
    logits, labels, groups.
    """
    labels = torch.zeros(len(shares), 8, 8, dtype=torch.long)
    logits = torch.zeros(len(shares), 2, 8, 8)
    for crop, share in zip(logits, shares, strict=True):
        wrong = round(8 * share)
        crop[0, wrong:], crop[1, :wrong] = 2.0, 2.0
    return logits, labels, torch.arange(len(shares))


def test_the_weights_are_those_of_the_algorithm():
    weights = GroupWeights(2, step=0.5)
    losses = torch.tensor([0.2, 1.0])
    for _ in range(3):
        weights.update(losses)
    expected = torch.exp(3 * 0.5 * losses)
    torch.testing.assert_close(weights.q, expected / expected.sum())


def test_the_loss_is_the_weighted_sum_and_goes_to_the_worst_group():
    logits, labels, groups = batch(0.0, 0.75, 0.25)
    weights, values = GroupWeights(3, step=1.0), []
    of_each = torch.stack([LOSS(logits[i : i + 1], labels[i : i + 1]) for i in range(3)])
    for _ in range(40):
        values.append(weights.loss(LOSS, logits, labels, groups))
        torch.testing.assert_close(values[-1], weights.q @ of_each)
    assert values[0] > of_each.mean() and values[-1] == pytest.approx(
        float(of_each.max()), abs=1e-3
    )
    assert weights.q.argmax() == 1


def test_with_a_step_near_zero_it_is_the_mean_over_groups():
    logits, labels, groups = batch(0.0, 0.75)
    value = GroupWeights(2, step=1e-9).loss(LOSS, logits, labels, groups)
    torch.testing.assert_close(value, LOSS(logits, labels))  # one crop each: the mean over pixels


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "focal", "lovasz", "hinge"])
def test_a_group_without_a_crop_keeps_its_weight_and_gives_no_gradient(name):
    logits, labels, _ = batch(0.5, 0.25)
    logits.requires_grad_()
    weights = GroupWeights(3, step=0.1)
    value = weights.loss(build_loss({name: 1.0}), logits, labels, torch.tensor([0, 2]))
    value.backward()
    assert (
        torch.isfinite(value) and torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0
    )
    assert weights.q[1] == weights.q.min() and weights.q.sum() == pytest.approx(1)


TRAIN = {"model": {"architecture": "small_fcn", "width": 4}, "loss": {"cross_entropy": 1.0}, "epochs": 2,
         "steps_per_epoch": 2, "batch_size": 4, "crop": 64, "precision": "fp32", "group_dro": 0.5,
         "select": "worst_city"}  # fmt: skip


@pytest.mark.parametrize("method", ["none", "fast", "trades"])
def test_it_trains_with_any_attack_and_keeps_the_worst_city_s_epoch(toy_tiles, tmp_path, method):
    cities = ["toyton", "dimham"]
    train = {**TRAIN, "adversarial": {"method": method, "steps": 1}}
    values = {
        "fetch": {"source": "demo", "path": "-", "cities": cities},
        "tile": {"gsd": 0.5, "size": 64},
    }
    params = parse_params({**values, "train": train})
    card = fit(params, open_cities(cities, toy_tiles), tmp_path / "model", work=tmp_path / "work")
    worst = [epoch["worst_city_iou"] for epoch in card.history]
    assert len(worst) == 2 and all(
        w <= epoch["iou"] for w, epoch in zip(worst, card.history, strict=True)
    )
    assert card.metrics["validation_worst_city_iou"] == max(worst)


def test_the_weights_outlive_a_kill():
    train = parse_section(Train, TRAIN)
    before, after = (
        SegmentationTraining(build_model(Model(architecture="linear"), 3), train, 2)
        for _ in range(2)
    )
    before.weights.update(torch.tensor([0.1, 2.0]))
    checkpoint = {}
    before.on_save_checkpoint(checkpoint)
    after.on_load_checkpoint(checkpoint)
    assert after.weights.q[1] > 0.6 and torch.equal(after.weights.q, before.weights.q)


def test_free_training_replays_other_cities_and_is_refused():
    train = {
        "model": {"architecture": "linear"},
        "loss": {"dice": 1.0},
        "epochs": 1,
        "steps_per_epoch": 1,
        "batch_size": 1,
        "crop": 32,
        "group_dro": 0.01,
    }
    assert parse_section(Train, train).group_dro == 0.01
    with pytest.raises(InputError, match="take fast or pgd"):
        parse_section(Train, {**train, "adversarial": {"method": "free"}})


def test_the_epoch_that_is_kept_is_the_one_selected():
    history = [
        {"iou": 0.8, "worst_city_iou": 0.3},
        {"iou": 0.7, "worst_city_iou": 0.5},
        {"iou": 0.75, "worst_city_iou": None},
    ]
    assert kept_epoch(history, "iou")["validation_iou"] == 0.8
    assert kept_epoch(history, "worst_city_iou") == {
        "validation_iou": 0.7,
        "validation_worst_city_iou": 0.5,
    }
    nothing = {"iou": None, "worst_city_iou": None}
    assert kept_epoch([nothing, nothing], "iou")["validation_iou"] is None
