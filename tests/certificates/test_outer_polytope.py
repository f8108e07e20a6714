"""The Wong–Kolter dual: sound, tighter than intervals, and equal to a hand-written dual of algorithm 1."""

import torch
from torch import nn

from pipeline.certificates.bounds import Bounds, Box
from pipeline.certificates.outer_polytope import outer_polytope_boxes
from pipeline.networks.small_nets import SmallFCN


def dense(layer: nn.Conv2d, channels: int, side: int):
    """A convolution as (W, b): one column an input pixel."""
    basis = torch.eye(channels * side**2, dtype=torch.float64).view(-1, channels, side, side)
    bias = layer(torch.zeros_like(basis[:1])).flatten()
    return (layer(basis).flatten(1) - bias).T, bias


def wong_kolter(weights, biases, x, epsilon):
    """Algorithm 1 of the paper with dense matrices: bounds (lowers, uppers) of every layer's output."""
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
    monkeypatch.setattr("pipeline.certificates.bounds.UNIT", 0.0)  # the paper's bounds give up nothing to rounding
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
