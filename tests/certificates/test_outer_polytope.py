"""The Wong–Kolter dual: sound, tighter than intervals, equal to a hand-written dual of algorithm 1,
backward and forward; and by random projections something to train by.
"""

import pytest
import torch
from torch import nn

from pipeline.certificates.bounds import Bounds, Box
from pipeline.certificates.crown import linear_lower
from pipeline.certificates.outer_polytope import Cauchy, dual_differences, outer_polytope_boxes
from pipeline.errors import InputError
from pipeline.networks.small_nets import SmallFCN


def dense(layer: nn.Conv2d, channels: int, side: int):
    """A convolution as (W, b): one column an input pixel."""
    basis = torch.eye(channels * side**2, dtype=torch.float64).view(-1, channels, side, side)
    bias = layer(torch.zeros_like(basis[:1])).flatten()
    return (layer(basis).flatten(1) - bias).T, bias


def wong_kolter(weights, biases, x, epsilon):
    """Algorithm 1 of the paper with dense matrices: bounds (lowers, uppers) of
    every layer's output.
    """
    lowers, uppers = [], []
    for depth in range(len(weights)):
        ends = []
        for sign in (1, -1):  # minimise cᵀz for c = ±e
            nu = -sign * torch.eye(len(biases[depth]), dtype=x.dtype)  # a row an objective
            value = torch.zeros(len(nu), dtype=x.dtype)
            for layer in range(depth, 0, -1):
                value -= nu @ biases[layer]
                hat = nu @ weights[layer]
                low, high = lowers[layer - 1], uppers[layer - 1]
                unstable = (low < 0) & (high > 0)
                slope = torch.where(unstable, high / (high - low), (low >= 0).to(x.dtype))
                nu = hat * slope
                value += torch.where(unstable, low * nu.clamp_min(0), 0).sum(1)
            value -= nu @ biases[0]
            hat = nu @ weights[0]
            value -= hat @ x + epsilon * hat.abs().sum(1)
            ends.append(sign * value)
        lowers.append(ends[0])
        uppers.append(ends[1])
    return lowers, uppers


def test_equals_the_dense_dual_and_contains_every_point(monkeypatch):
    # the paper's bounds give up nothing to rounding
    monkeypatch.setattr("pipeline.certificates.bounds.UNIT", 0.0)
    torch.manual_seed(0)
    net = SmallFCN(2, 2, 3).double().eval().requires_grad_(False)
    bounds, x, epsilon = Bounds(net), torch.rand(1, 2, 5, 5, dtype=torch.float64), 0.05
    box = Box(x - epsilon, x + epsilon)
    ibp = bounds.intervals(box)[bounds.logits]
    ours = outer_polytope_boxes(bounds, box)[bounds.logits]

    layers = [dense(m, m.in_channels, 5) for m in net if isinstance(m, nn.Conv2d)]
    lowers, uppers = wong_kolter(*zip(*layers, strict=True), x.flatten(), epsilon)
    assert torch.allclose(ours.lower.flatten(), lowers[-1], atol=1e-9, rtol=0)
    assert torch.allclose(ours.upper.flatten(), uppers[-1], atol=1e-9, rtol=0)

    assert (ours.lower > ibp.lower + 0.01).any()
    points = net(x + epsilon * (torch.rand(1000, 2, 5, 5, dtype=torch.float64) * 2 - 1).sign())
    assert (points >= ours.lower).all() and (points <= ours.upper).all()


class Every:
    """All errors of a network apart, one form each: what random projections estimate, exactly."""

    def enter(self, size):
        ones = torch.eye(size[0].numel(), dtype=size.dtype).view(-1, 1, *size.shape[1:])
        return ones * size

    def add(self, forms, size):
        return torch.cat([forms, self.enter(size)])

    def norm(self, forms):
        return forms.abs().sum(0)


def given_network(scale: float = 1.0):
    torch.manual_seed(0)
    net = SmallFCN(2, 2, 3).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
    return net, torch.rand(2, 2, 5, 5, dtype=torch.float64)


def test_the_forward_dual_is_the_backward_one(monkeypatch):
    monkeypatch.setattr("pipeline.certificates.bounds.UNIT", 0.0)
    net, x = given_network(1.5)
    bounds = Bounds(net.requires_grad_(False))
    box = Box(x[:1] - 0.05, x[:1] + 0.02)  # no ball: each pixel its own interval
    forward = dual_differences(bounds, box, Every())
    for *image, found in zip(*(side.split(1) for side in box), forward, strict=True):
        boxes = bounds.intervals(Box(*image)) | outer_polytope_boxes(bounds, Box(*image))
        for k, j in ((0, 1), (1, 0)):
            spec = torch.eye(2, dtype=x.dtype)[k] - torch.eye(2, dtype=x.dtype)[j]
            spec = spec[:, None, None].expand(-1, 5, 5)
            backward = linear_lower(bounds, boxes, bounds.logits, spec, relaxation="parallel")
            assert torch.allclose(found[k, j], backward, atol=1e-9, rtol=0)
    points = box.lower[0] + (box.upper - box.lower)[0] * torch.randint(0, 2, (2000, 2, 5, 5))
    z = net(points)
    lead = z[:, :, None] - z[:, None]
    assert (lead >= forward[0] - 1e-12).all() and (lead.amin(0) - forward[0]).mean() < forward[
        0
    ].abs().mean()


def test_cauchy_projections_estimate_an_l1_norm():
    errors = Cauchy(4001, torch.Generator().manual_seed(0))
    sizes = torch.rand(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    estimate = errors.norm(errors.add(errors.enter(sizes), sizes) @ weights)
    assert torch.allclose(estimate, 2 * sizes @ weights.abs(), rtol=0.15)


def test_its_gradient_raises_the_proven_bound():
    """A given network, its margins at given labels: thirty steps up the estimate raise what the
    exact dual proves.
    """
    net, x = given_network(2.0)
    labels = net(x).argmax(1, keepdim=True)  # the map as it is
    bounds, box = Bounds(net), Box(x - 0.05, x + 0.05)

    def proven(errors):
        differences = dual_differences(bounds, box, errors)
        lead = torch.stack([differences[:, 0, 1], differences[:, 1, 0]], 1)
        return lead.gather(1, labels).clamp_max(1).mean()

    with torch.no_grad():
        before = float(proven(Every()))
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    errors = Cauchy(15, torch.Generator().manual_seed(3))
    for _ in range(30):
        optimiser.zero_grad()
        (-proven(errors)).backward()
        optimiser.step()
    with torch.no_grad():
        assert float(proven(Every())) > before + 0.3


def test_a_layer_without_a_dual_is_named():
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(2)).eval()
    with pytest.raises(InputError, match="the dual has no rule for"):
        dual_differences(
            Bounds(net), Box(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)), Cauchy()
        )
