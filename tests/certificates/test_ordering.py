"""The rows of each road on linear networks, whose radius is known, and what
must break a sandwich.
"""

import math

import pytest
import torch
from torch import nn

from pipeline.certificates import ordering
from pipeline.certificates.lipschitz import (
    LOGIT_ROUNDING,
    ROUNDING,
    at_radius,
    certified_iou,
    collective_iou,
    lipschitz_radii,
    overspent,
)
from pipeline.certificates.ordering import SandwichBroken
from pipeline.networks.models import Segmenter
from pipeline.params import Convex, LipschitzNet, Smoothing

STD = 0.5


def linear(weight) -> Segmenter:
    """Logits ∓w·(x − ½) / (σ√2) of each pixel by itself: the exact ℓ2 radius is |w·(x − ½)|, w of
    length 1; the ℓ∞ radius is that over Σ|w|; the network after the normalisation is 1-Lipschitz,
    the segmenter 1/σ.
    """
    net = nn.Conv2d(2, 2, 1, bias=False)
    net.weight.data = torch.stack([-torch.tensor(weight), torch.tensor(weight)]).view(
        2, 2, 1, 1
    ) / math.sqrt(2)
    segmenter = Segmenter(net, 2, 1)
    segmenter.set_normalisation([0.5, 0.5], [STD, STD])
    return segmenter.eval().requires_grad_(False)


@pytest.fixture
def data():
    """Labels that the linear network of weight (.6, .8) finds at margins of 0
    to .4, one in ten of them wrong.
    """
    random = torch.Generator().manual_seed(0)
    margin = torch.rand(3, 1, 8, 8, generator=random) * 0.8 - 0.4
    images = 0.5 + margin * torch.tensor([0.6, 0.8]).view(1, 2, 1, 1)
    labels = (margin[:, 0] > 0).long()
    wrong = torch.rand(labels.shape, generator=random) < 0.1
    return images, torch.where(wrong, 1 - labels, labels), margin[:, 0].abs()


def test_lipschitz_rows_are_the_certificates_at_their_radius(data):
    images, labels, exact = data
    segmenter = linear([0.6, 0.8])
    rows = ordering.lipschitz_rows(
        segmenter, (images, labels), LipschitzNet(radii=[0.05, 0.2]), 10, 0, "here"
    )
    prediction, radius = (
        segmenter(images).argmax(1),
        (exact * (1 - ROUNDING) - STD * LOGIT_ROUNDING).clamp_min(0),
    )
    for r in (0.05, 0.2):
        row = rows[f"{r:g}"]
        assert row["clean"] == certified_iou(prediction, labels)
        assert row["certified"] == collective_iou(radius, prediction, labels, r)
        assert row["per_pixel"] == certified_iou(at_radius(prediction, radius, r), labels)
        assert row["per_pixel"] < row["certified"] <= row["attacked"] < row["clean"]


def test_lipschitz_rows_fail_where_pixels_together_cost_too_little(data, monkeypatch):
    """Radii of pixels that hold one by one, and a perturbation that flips two
    for the price of one.
    """
    images, labels, _ = data
    monkeypatch.setattr(ordering, "refuted", lambda *_: torch.zeros(1, dtype=torch.bool))
    monkeypatch.setattr(ordering, "lipschitz_radii", lambda *a: 100 * lipschitz_radii(*a))
    with pytest.raises(SandwichBroken, match="inside their certified radius"):
        ordering.lipschitz_rows(
            linear([0.6, 0.8]), (images, labels), LipschitzNet(radii=[0.2]), 10, 0, "here"
        )


def test_overspent_by_hand():
    radius, prediction = torch.tensor([[[3.0, 4.0, 9.0]]]), torch.tensor([[[1, 0, 1]]])
    attacked = torch.tensor([[[0, 1, 1]]])
    assert not overspent(radius, prediction, attacked, torch.tensor([5.0])).any()
    assert overspent(radius, prediction, attacked, torch.tensor([4.9])).tolist() == [
        [[True, True, False]]
    ]


def test_convex_rows_are_exact_on_a_linear_network(data):
    images, labels, exact = data
    segmenter = linear([0.6, 0.8])
    prediction, radii = segmenter(images).argmax(1), [4.0, 16.0, 64.0]
    rows = ordering.convex_rows(segmenter, (images, labels), Convex(radii=radii), 10, 0, "here")
    for r in radii:
        certified = certified_iou(at_radius(prediction, exact / 1.4, r / 255), labels)
        assert (
            rows[f"{r:g}"]["certified"]
            == rows[f"{r:g}"]["ibp"]
            == certified
            == rows[f"{r:g}"]["attacked"]
        )
    assert rows["64"]["certified"] < rows["4"]["certified"]


def test_what_holds_at_a_radius_holds_at_every_smaller_one(data, monkeypatch):
    """CROWN need not nest: what it has proven at 16/255 stays where it fails at 4/255."""
    images, labels, _ = data
    whole = ordering.crown_ibp_margins

    def only_wide(bounds, box, chunk):
        margins = whole(bounds, box, chunk=chunk)
        return (
            margins if (box.upper - box.lower).max() > 30 / 255 / STD else -torch.ones_like(margins)
        )

    monkeypatch.setattr(ordering, "crown_ibp_margins", only_wide)
    monkeypatch.setattr(
        ordering, "interval_margins", lambda bounds, box, chunk: -torch.ones(3, 2, 8, 8)
    )
    settings = Convex(radii=[4.0, 16.0])
    rows = ordering.convex_rows(linear([0.6, 0.8]), (images, labels), settings, 2, 0, "here")
    assert rows["4"]["certified"] == rows["16"]["certified"] > 0


def test_smoothing_rows_stand_at_the_radius_they_prove(data):
    """Where a pixel's margin is below σ·Φ⁻¹(τ) nothing is certified, and where
    it is 3σ everything.
    """
    images, _, exact = data
    segmenter = linear([0.6, 0.8])
    prediction, settings = (
        segmenter(images).argmax(1),
        Smoothing(sigma=[0.05], n0=10, n=100, batch_size=3),
    )
    rows = ordering.smoothing_rows(segmenter, (images, prediction), settings, 5, 0, "here")
    assert list(rows) == ["0.03372"] and float("0.03372") <= 0.05 * 0.6744897
    most = certified_iou(at_radius(prediction, exact, 0.0337), prediction)
    least = certified_iou(at_radius(prediction, exact, 0.15), prediction)
    assert least <= rows["0.03372"]["certified"] <= most
    assert least > 0.2 and most < 1


def test_a_published_radius_is_rounded_down():
    assert ordering.key(0.1 * 0.674489750) == "0.06744"
    assert ordering.key(0.05) == "0.05" and ordering.key(2.0) == "2"
    assert ordering.key(12.345678) == "12.34567"  # of more than six digits too


def test_rising_names_what_is_out_of_order():
    row = {"certified": 0.5, "attacked": 0.4, "clean": 0.9}
    ordering.rising("here", row, "attacked", "certified", "clean")
    with pytest.raises(
        SandwichBroken, match="here: certified IoU 0.5000 is above attacked IoU 0.4000"
    ):
        ordering.rising("here", row, "certified", "attacked", "clean")


def test_a_radius_gives_up_what_the_layers_round():
    """A network whose norm is 1.00009, for float32 layers are not exactly orthogonal."""
    margin, norm = 300.0, 1 + 9e-5
    logits = torch.tensor([-margin, margin]).view(1, 2, 1, 1) * norm / math.sqrt(2)
    assert margin * (1 - 2e-4) < lipschitz_radii(logits).item() <= margin


def test_a_radius_gives_up_what_the_logits_round():
    close = torch.tensor([0.5, 0.5 + 1e-5]).view(1, 2, 1, 1)
    assert lipschitz_radii(close).item() == 0


@pytest.mark.parametrize("road", ordering.ROWS)
def test_where_there_is_no_building_every_iou_is_null(data, road):
    images, labels, _ = data
    settings = {
        "smoothing": Smoothing(sigma=[0.05], n0=4, n=60), "convex": Convex(radii=[1]),
        "lipschitz": LipschitzNet(radii=[0.1]),
    }[road]  # fmt: skip
    for empty in (0 * labels, 0 * labels + 255):
        (row,) = ordering.ROWS[road](
            linear([0.6, 0.8]), (images, empty), settings, 2, 0, "here"
        ).values()
        assert {value for name, value in row.items() if name != "abstained"} == {None}
