"""Non-expansive by an exact singular value decomposition, never by power iteration."""

import pytest
import torch

from pipeline import params
from pipeline.certificates.lipschitz import ROUNDING
from pipeline.errors import InputError
from pipeline.networks.lipschitz import (
    AOLConv,
    LipschitzNet,
    MinMax,
    OrthogonalConv,
    groupsort,
    minmax,
    radii,
    replace_relu,
    simplex_frame,
)
from pipeline.networks.models import build_model


def dirac(layer: AOLConv) -> AOLConv:
    """The identity: AOL's bound is exact here, so that the norm is 1 and not below."""
    torch.nn.init.dirac_(layer.weight)
    return layer


LAYERS = [
    pytest.param(lambda: OrthogonalConv(6, 6), id="orthogonal"),
    pytest.param(lambda: OrthogonalConv(4, 7), id="orthogonal-wider"),
    pytest.param(lambda: OrthogonalConv(7, 4), id="orthogonal-narrower"),
    pytest.param(lambda: OrthogonalConv(5, 8, 1), id="orthogonal-1x1"),
    pytest.param(lambda: AOLConv(5, 5), id="aol"),
    pytest.param(lambda: AOLConv(4, 7), id="aol-wider"),
    pytest.param(lambda: dirac(AOLConv(4, 4)), id="aol-identity"),
    pytest.param(lambda: torch.nn.PixelUnshuffle(2), id="unshuffle"),
]


def unrolled(layer, channels: int, side: int) -> torch.Tensor:
    """The layer without its bias as one matrix, a column an input pixel."""
    basis = torch.eye(channels * side * side).view(-1, channels, side, side)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros_like(basis[:1]))).flatten(1).T


def channels_of(layer) -> int:
    return layer.kernel().shape[1] if hasattr(layer, "kernel") else 4


@pytest.mark.parametrize("make", LAYERS)
def test_operator_norm_is_at_most_one(make):
    torch.manual_seed(0)
    for training in (0, 0.5):  # at initialisation, and after
        layer = make().eval()
        for parameter in layer.parameters():
            parameter.data += training * torch.randn_like(parameter)
        norm = torch.linalg.matrix_norm(unrolled(layer, channels_of(layer), 8).double(), 2)
        # twenty such layers in a row stay within what certificates.ROUNDING gives up
        assert norm <= 1 + ROUNDING / 20


def test_orthogonal_convolution_keeps_norms_away_from_the_border():
    torch.manual_seed(1)
    x = torch.nn.functional.pad(torch.randn(2, 6, 5, 5), (1, 1, 1, 1))
    layer = OrthogonalConv(6, 6).eval()
    assert torch.allclose(layer(x).norm(), x.norm(), rtol=1e-5)


@pytest.mark.parametrize(
    ("convolution", "group"), [("orthogonal", 2), ("orthogonal", 4), ("aol", 2)]
)
def test_network_is_non_expansive(convolution, group):
    torch.manual_seed(2)
    net = LipschitzNet(3, 2, 8, convolution, group).eval().requires_grad_(False)
    x = torch.rand(8, 3, 16, 16)
    for scale in (1e-2, 1.0):
        delta = scale * torch.randn_like(x)
        moved = (net(x + delta) - net(x)).flatten(1).norm(dim=1)
        assert (moved <= delta.flatten(1).norm(dim=1) * (1 + 1e-4)).all()
    # adversarial δ: climb the ratio itself
    delta = (0.01 * torch.randn_like(x)).requires_grad_()
    for _ in range(20):
        ratio = (net(x + delta) - net(x)).flatten(1).norm(dim=1) / delta.flatten(1).norm(dim=1)
        assert (ratio <= 1 + 1e-4).all()
        (step,) = torch.autograd.grad(ratio.sum(), delta)
        step = 0.02 * step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = (delta + step).detach().requires_grad_()
    # the climb found a tight direction
    assert ratio.max() > (0.5 if convolution == "orthogonal" else 0)


def test_segmenter_of_any_size_is_non_expansive():
    """17 = 4 · 4 + 1: the rows and columns put on repeat no pixel's change,
    which would count it four times.
    """
    torch.manual_seed(2)
    segmenter = (
        build_model(params.Model(architecture="lipschitz", width=8), 3).eval().requires_grad_(False)
    )
    entered = []
    segmenter.network.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    x, delta = torch.rand(4, 3, 17, 17), torch.zeros(4, 3, 17, 17)
    delta[..., -1, -1] = 0.1
    moved = segmenter(x + delta) - segmenter(x)
    assert entered[0].shape[-2:] == (20, 20)
    assert torch.allclose(
        (entered[0] - entered[1]).flatten(1).norm(dim=1), delta.flatten(1).norm(dim=1), rtol=1e-5
    )
    assert (moved.flatten(1).norm(dim=1) <= delta.flatten(1).norm(dim=1)).all()


def test_minmax_sorts_pairs_and_keeps_an_odd_channel():
    x = torch.tensor([3.0, 5.0, 1.0, 9.0, 7.0]).view(1, 5, 1, 1)
    assert minmax(x).flatten().tolist() == [1, 5, 3, 9, 7]


@pytest.mark.parametrize("shape", [(2, 8, 3, 3), (1, 7, 2, 2)])
def test_groupsort_of_pairs_is_minmax(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(groupsort(x, 2), minmax(x))


def test_groupsort_sorts_each_group_and_keeps_the_rest():
    # groups 3, 1, 2 and 5, 9, 0
    x = torch.tensor([3.0, 5.0, 1.0, 9.0, 2.0, 0.0, 7.0]).view(1, 7, 1, 1)
    assert groupsort(x, 3).flatten().tolist() == [1, 0, 2, 5, 3, 9, 7]


def test_replace_relu_reaches_nested_modules():
    net = torch.nn.Sequential(
        torch.nn.ReLU(), torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.ReLU())
    )
    kinds = [type(m) for m in replace_relu(net).modules()]
    assert torch.nn.ReLU not in kinds and kinds.count(MinMax) == 2


def test_minmax_reaches_the_window_classifier_and_is_refused_where_there_is_nothing_to_replace():
    model = params.Model(architecture="window_cnn", width=4, activation="minmax")
    network, x = build_model(model, 3).network, torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        seen = network(x)
        network.relu = torch.nn.ReLU()
        assert not torch.allclose(seen, network(x))
    with pytest.raises(InputError, match="linear has no ReLU"):
        build_model(params.Model(architecture="linear", activation="minmax"), 3)


@pytest.mark.parametrize("outputs", [2, 3, 6])
def test_simplex_frame_is_an_isometry_onto_zero_sum_logits(outputs):
    frame = simplex_frame(outputs)
    assert torch.allclose(frame.T @ frame, torch.eye(outputs - 1), atol=1e-6)
    assert frame.sum(0).abs().max() < 1e-6


def test_radius_of_a_signed_output_is_its_absolute_value():
    signed = torch.tensor([[[[-0.3, 0.2]]]])
    logits = torch.einsum("kj,njhw->nkhw", simplex_frame(2), signed)
    assert torch.allclose(radii(logits), torch.tensor([[[0.3, 0.2]]]))


def test_eval_kernel_follows_training_and_loading():
    torch.manual_seed(3)
    layer, other, x = (
        OrthogonalConv(4, 4).eval(),
        OrthogonalConv(4, 4).eval(),
        torch.randn(1, 4, 6, 6),
    )
    assert not torch.allclose(layer(x), other(x))
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))
    layer.train()
    layer.mix.data += 1
    assert not torch.allclose(layer.eval()(x), other(x))
