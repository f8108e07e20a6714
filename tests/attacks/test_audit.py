"""The audit passes an honest attack and names what is wrong with a dishonest one."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import params
from pipeline.attacks.audit import CHECKS, AuditFailed, audit, demand
from pipeline.attacks.protocol import Campaign, attack_city, longer
from pipeline.attacks.scores import by_method, city_metrics, evidence, fullest, on_fullest
from pipeline.attacks.surrogate import surrogate
from pipeline.attacks.worst_case import worst_case
from pipeline.course import tint
from pipeline.params import Adversarial

HONEST = {
    "excess": 1e-8,
    "worst": [[0.9, 0.7, 0.7, 0.1]],
    "steps": [0.5, 0.5],
    "white_box": 0.5,
    "scale_free": 0.5,
    "transfer": 0.6,
    "noise": 0.9,
    "clean": 0.9,
    "vanishing": [0.0, 0.05],
    "ten_times": 0.01,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "check,change",
    {
        "within_budget": {"excess": 2e-6},
        "monotone_in_budget": {"worst": [[0.9, 0.5, 0.51]]},
        "monotone_in_steps": {"steps": [0.4, 0.41]},
        "white_box_below_scale_free": {"scale_free": 0.49},
        "white_box_below_transfer": {"transfer": 0.49},
        "transfer_below_noise": {"transfer": 0.91},
        "noise_below_clean": {"clean": 0.89},
        "vanishes": {"vanishing": [0.0, 0.2]},
        "ten_times_is_no_worse": {"ten_times": 0.04},
    }.items(),
)
def test_each_check_fails_alone_and_is_named(check, change):
    assert all(audit(**HONEST).values())
    checks = audit(**{**HONEST, **change})
    assert set(checks) == set(CHECKS) and [
        name for name, passed in checks.items() if not passed
    ] == [check]
    with pytest.raises(AuditFailed, match=check):
        demand(checks, "evidence.json")


AT_REFERENCE = ("half_steps", "steps", "cooled", "sharpened", "transfer", "noise")


class Quantised(nn.Module):
    """An input layer of a few grey levels: the network behind it hardly changes, its pixel
    gradient is zero.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images * 24).round() / 24


class Saturated(nn.Module):
    """An output so sure of itself that the gradient of its cross-entropy
    underflows, to zero in the end.
    """

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.factor * logits


def measured(model: nn.Module, methods: list[str]) -> tuple[dict, dict]:
    """As the stage does by default, with a surrogate that is a copy of the model, its mask
    included: the measurements, and what the audit judges.
    """
    settings = params.Attack(
        linf=[2, 4, 8], reference=8, steps=8, apgd_steps=4, patch=4, methods=methods, batch_size=16
    )
    relative = surrogate(model, *tint.tiles(8, 98))
    campaign = Campaign(model, relative, settings, torch.tensor([800, 200]), [50.0, 150.0])
    tiles = tint.tiles(24, 99)
    numbers = {
        name: numbers for name, numbers, _ in attack_city(campaign, *tiles, tint.tiles(8, 98), 0.5)
    }
    one = [part[fullest(numbers)][None] for part in tiles]
    after = longer(campaign, *one, on_fullest({"tinted": numbers}, "8"))
    return numbers, evidence({"tinted": numbers}, "8", after)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Its tint is exact, so all it knows is within reach of 8/255."""
    return tint.train(Adversarial(), 120)


@pytest.mark.slow
def test_an_honest_model_passes(model):
    numbers, found = measured(model, ["fgsm", "pgd", "apgd", "soft_iou"])
    checks = audit(**found)
    assert all(checks.values()), found
    metrics = city_metrics(numbers)
    for row in metrics["linf"].values():
        assert (
            row["worst"]
            <= min(row[name] for name in ("clean", "noise", "fgsm", "pgd", "apgd")) + 1e-12
        )
        assert row["apgd"] <= min(row["apgd_losses"].values()) + 1e-12
    worst = [metrics["linf"][e]["worst"] for e in ("2", "4", "8")]
    assert all(b <= a for a, b in itertools.pairwise(worst))
    # strictly between two budgets of the table: the bisection attacks as it does
    assert 2 < metrics["halving"] < 4
    assert metrics["erase"]["attacked"] < metrics["erase"]["clean"]
    assert metrics["invent"]["attacked"] >= metrics["invent"]["clean"]
    assert metrics["patch"]["support_radius"] == 7 and metrics["patch"]["scored_share"] > 0.5


@pytest.mark.parametrize(
    "mask,check",
    [
        ("quantised", "vanishes"),
        ("sure", "white_box_below_scale_free"),
        pytest.param("saturated", "white_box_below_scale_free", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_hides_its_gradients_is_flagged(model, mask, check):
    hidden = {
        "quantised": nn.Sequential(Quantised(), model),
        "saturated": nn.Sequential(model, Saturated(1e6)),
        "sure": nn.Sequential(model, Saturated(100)),
    }[mask]
    checks = audit(**measured(hidden, ["fgsm", "pgd"])[1])
    with pytest.raises(AuditFailed, match=check):
        demand(checks, "evidence.json")


def test_each_budget_stands_on_its_own_attacks():
    """A larger budget's weaker attacks must show, though the worst IoU of the table never rises."""

    def city(at_two: int) -> dict:
        one, two = (
            {"noise": [[9], [10]], "pgd": [[4], [10]]},
            {"noise": [[9], [10]], "pgd": [[at_two], [10]]},
        )
        checks = {name: [[9], [10]] for name in AT_REFERENCE}
        return {
            "clean": {"tiles": [[9], [10]], "buildings": [9]},
            "linf 1": one,
            "linf 2": two,
            "checks": checks | {"vanishing": [[0], [10]], "relative_clean": [[9], [10]]},
            "excess": {"value": 0.0},
        }

    longer = {"tiles": [[3], [10]], "excess": 0.0}
    found = {at_two: audit(**evidence({"town": city(at_two)}, "1", longer)) for at_two in (3, 5)}
    assert found[3]["monotone_in_budget"] and not found[5]["monotone_in_budget"]
    assert city_metrics(city(5))["linf"]["2"]["worst"] == 0.4


def test_mean_over_tiles_leaves_out_those_without_buildings():
    clean = {"tiles": [[8, 0, 0], [10, 0, 5]], "buildings": [9, 0, 0]}
    checks = {name: clean["tiles"] for name in ("transfer", "relative_clean")}
    row = city_metrics({"clean": clean, "linf 1": {"noise": clean["tiles"]}, "checks": checks})[
        "linf"
    ]["1"]
    assert row["image_clean"] == row["image_worst"] == 0.8
    nothing = {
        "clean": {**clean, "buildings": [0, 0, 0]},
        "linf 1": {"noise": clean["tiles"]},
        "checks": checks,
    }
    assert city_metrics(nothing)["linf"]["1"]["image_worst"] is None


def test_the_longer_attack_counts_on_its_tiles_alone():
    """Two cities of two tiles: what all attacks found on the fullest ones, 3 + 2 of 20, falls to
    1 + 2 of 20; a longer attack beyond the budget counts as any other would.
    """

    def city(fullest: int, found: int) -> dict:
        tiles = {name: [[9, 9], [10, 10]] for name in AT_REFERENCE}
        own, buildings = [9, 9], [1, 1]
        own[fullest], buildings[fullest] = found, 9
        return {
            "clean": {"tiles": [[9, 9], [10, 10]], "buildings": buildings},
            "linf 1": {"noise": [[0, 0], [10, 10]], "pgd": [own, [10, 10]]},
            "checks": tiles | {"vanishing": [[0], [1]]},
            "excess": {"value": 0.0},
        }

    cities = {"town": city(0, 3), "village": city(1, 2)}
    found = evidence(cities, "1", {"tiles": [[1, 4], [10, 10]], "excess": 0.1})
    assert found["ten_times"] == pytest.approx((3 + 2) / 20 - (1 + 2) / 20)
    assert found["excess"] == 0.1


def test_a_method_of_several_losses_is_their_worst_case():
    found = {
        "noise": [[9, 9], [10, 10]],
        "apgd mce": [[2, 8], [10, 10]],
        "apgd js": [[7, 1], [10, 10]],
    }
    row = by_method(
        found, lambda measurements: worst_case(*np.array(measurements).swapaxes(0, 1))[0]
    )
    assert row == {"noise": 0.9, "apgd": 0.15, "apgd_losses": {"mce": 0.5, "js": 0.4}}
