"""The audit passes an honest attack and names what is wrong with a dishonest one."""

import itertools

import pytest
import torch
from robustness import tint
from torch import nn

from pipeline import params
from pipeline.params import Adversarial
from pipeline.robustness.audit import CHECKS, AuditFailed, audit, demand
from pipeline.robustness.campaign import Campaign, attack_city
from pipeline.robustness.scores import city_metrics, evidence

HONEST = {
    "excess": 1e-8,
    "worst": [[0.9, 0.7, 0.7, 0.1]],
    "steps": [0.5, 0.5],
    "white_box": 0.5,
    "transfer": 0.6,
    "noise": 0.9,
    "clean": 0.9,
    "vanishing": [0.0, 0.05],
}


@pytest.mark.parametrize(
    "check,change",
    {
        "within_budget": {"excess": 2e-6},
        "monotone_in_budget": {"worst": [[0.9, 0.5, 0.51]]},
        "monotone_in_steps": {"steps": [0.4, 0.41]},
        "white_box_below_transfer": {"transfer": 0.49},
        "transfer_below_noise": {"transfer": 0.91},
        "noise_below_clean": {"clean": 0.89},
        "vanishes": {"vanishing": [0.0, 0.2]},
    }.items(),
)
def test_each_check_fails_alone_and_is_named(check, change):
    assert all(audit(**HONEST).values())
    checks = audit(**{**HONEST, **change})
    assert set(checks) == set(CHECKS) and [name for name, passed in checks.items() if not passed] == [check]
    with pytest.raises(AuditFailed, match=check):
        demand(checks, "evidence.json")


class Quantised(nn.Module):
    """An input layer of a few grey levels: the network behind it hardly changes, its pixel gradient is zero."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images * 24).round() / 24


class Saturated(nn.Module):
    """An output so sure of itself that the gradient of its cross-entropy underflows to zero."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return 1e6 * logits


def measured(model: nn.Module, relative: nn.Module) -> dict:
    settings = params.Attack(
        linf=[2, 4, 8], reference=8, steps=8, apgd_steps=4, patch=4, methods=["fgsm", "pgd", "apgd"], batch_size=16
    )
    campaign = Campaign(model, relative, settings, torch.tensor([800, 200]), [50.0, 150.0])
    return {name: numbers for name, numbers, _ in attack_city(campaign, *tint.tiles(24, 99), tint.tiles(8, 98), 0.5)}


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    """Trained from two seeds. Their tint is exact, so all they know is within reach of 8/255."""
    return tint.train(Adversarial(), 120), tint.train(Adversarial(), 120, seed=7)


def test_an_honest_model_passes(models):
    numbers = measured(*models)
    found = evidence({"tinted": numbers}, "8")
    checks = audit(**found)
    assert all(checks.values()), found
    metrics = city_metrics(numbers)
    for row in metrics["linf"].values():
        assert row["worst"] <= min(row[name] for name in ("clean", "noise", "fgsm", "pgd", "apgd")) + 1e-12
        assert row["apgd"] <= min(row["apgd_losses"].values()) + 1e-12
    worst = [metrics["linf"][e]["worst"] for e in ("2", "4", "8")]
    assert all(b <= a for a, b in itertools.pairwise(worst))
    assert 0 < metrics["halving"] <= 8
    assert metrics["erase"]["attacked"] <= metrics["erase"]["clean"]
    assert metrics["patch"]["support_radius"] == 7 and metrics["patch"]["scored_share"] > 0.5


@pytest.mark.parametrize("mask", ["quantised", "saturated"])
def test_a_model_that_hides_its_gradients_is_flagged(models, mask):
    open_model, other = models
    hidden = nn.Sequential(Quantised(), open_model) if mask == "quantised" else nn.Sequential(open_model, Saturated())
    checks = audit(**evidence({"tinted": measured(hidden, other)}, "8"))
    assert not checks["vanishes"] or not checks["white_box_below_transfer"]
    with pytest.raises(AuditFailed):
        demand(checks, "evidence.json")
