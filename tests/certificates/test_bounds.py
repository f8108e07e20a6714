"""Bounds against random points, adversarial points, a net computed by hand, and themselves."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.attacks.engine import Target, pgd
from pipeline.certificates import bounds as bounds_module
from pipeline.certificates import crown
from pipeline.certificates.bounds import (
    Bounds,
    Box,
    certified_classes,
    image_box,
    interval_margins,
    worst_margins,
)
from pipeline.certificates.crown import crown_ibp_margins, linear_lower
from pipeline.errors import InputError
from pipeline.networks.decision import Decision
from pipeline.networks.models import Segmenter
from pipeline.networks.small_nets import SmallFCN, SmallUNet


def every_layer() -> nn.Module:
    """One of each kind of layer that the small nets lack."""
    norm = nn.BatchNorm2d(6)
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    # negative scales swap the ends
    norm.weight.data, norm.bias.data = torch.randn(6), torch.randn(6)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), norm, nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2),
        nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.ReLU(), nn.MaxPool2d(3, 1, 1),
        nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(4, 3, 3, padding=1),
    )  # fmt: skip


NETS = {
    "fcn": lambda: SmallFCN(3, 2, 8),
    "unet": lambda: SmallUNet(3, 2, 4),
    "every-layer": every_layer,
    "linear": lambda: nn.Conv2d(3, 4, 1),
    "grouped-end": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1, groups=2)
    ),
    "transposed-end": lambda: nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(2, 2, 2, stride=2)
    ),
}


@pytest.fixture(params=NETS, scope="module")
def case(request):
    torch.manual_seed(0)
    network = NETS[request.param]().eval().requires_grad_(False)
    segmenter = Segmenter(network, 3, 1)
    segmenter.set_normalisation([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    return segmenter.eval(), Bounds(network), torch.rand(1, 3, 16, 16)


def linear_boxes(segmenter, bounds, images, epsilon):
    """CROWN lower bounds (K, K, H, W) of logit k − logit j, and the intervals they stand on."""
    boxes = bounds.intervals(image_box(segmenter, images, epsilon))
    classes = boxes[bounds.logits].lower.shape[1]
    lower = torch.zeros(classes, classes, *images.shape[-2:])
    for k in range(classes):
        for j in set(range(classes)) - {k}:
            spec = torch.zeros(classes, *images.shape[-2:])
            spec[k], spec[j] = 1, -1
            lower[k, j] = linear_lower(bounds, boxes, bounds.logits, spec)
    return boxes, lower


def random_points(images, epsilon, count=1000):
    """Points of the box, half of them corners, inside [0, 1]."""
    delta = torch.rand(count, *images.shape[1:]) * 2 - 1
    delta[::2] = delta[::2].sign()
    return (images + epsilon * delta).clamp(0, 1)


def assert_inside(logits, boxes, bounds, lower):
    box = boxes[bounds.logits]
    assert (logits >= box.lower).all() and (logits <= box.upper).all()
    pairs = logits[:, :, None] - logits[:, None]
    assert (pairs >= bounds.differences(boxes)).all()
    assert (pairs >= lower).all()


@pytest.mark.parametrize("epsilon", [0.5 / 255, 8 / 255])
def test_no_point_of_the_box_escapes(case, epsilon):
    segmenter, bounds, images = case
    boxes, lower = linear_boxes(segmenter, bounds, images, epsilon)
    assert_inside(segmenter(random_points(images, epsilon)), boxes, bounds, lower)
    clean = segmenter(images).argmax(1)
    for truth in (clean, 1 - clean.clamp_max(1)):  # away from the prediction, and towards it
        found = pgd(Target(segmenter, images, truth, "linf", epsilon), 20, early_stop=False)
        assert_inside(segmenter(found), boxes, bounds, lower)


def test_a_shrunk_bound_would_be_caught(case):
    """The check above has teeth: bounds for half the radius do not hold on the whole box."""
    segmenter, bounds, images = case
    boxes, lower = linear_boxes(segmenter, bounds, images, 1e-4)
    with pytest.raises(AssertionError):
        assert_inside(segmenter(random_points(images, 8 / 255)), boxes, bounds, lower)


def test_bounds_nest_as_epsilon_shrinks(case):
    """Intervals always do. CROWN's lower line may switch, but not across radii four times apart."""
    segmenter, bounds, images = case
    narrower, linear = None, None
    for epsilon in (4 / 255, 1 / 255, 0.25 / 255, 0.0):
        boxes, lower = linear_boxes(segmenter, bounds, images, epsilon)
        if narrower is not None:
            assert all((boxes[n].lower >= narrower[n].lower).all() for n in boxes)
            assert all((boxes[n].upper <= narrower[n].upper).all() for n in boxes)
            assert (lower >= linear).all()
        narrower, linear = boxes, lower
    rounding = narrower[bounds.logits].upper - narrower[bounds.logits].lower  # ε = 0
    assert rounding.max() < 1e-2
    logits = segmenter(images)[0]
    assert (logits[:, None] - logits[None] - linear).max() < 1e-2


def test_ibp_below_crown_ibp_below_pgd_below_clean(case):
    segmenter, bounds, images = case
    clean = segmenter(images).argmax(1)
    for epsilon in (0.1 / 255, 0.5 / 255, 2 / 255):
        box = image_box(segmenter, images, epsilon)
        ibp, crown = interval_margins(bounds, box), crown_ibp_margins(bounds, box)
        assert (crown >= ibp).all()
        found = pgd(Target(segmenter, images, clean, "linf", epsilon), 20, early_stop=False)
        kept = segmenter(found).argmax(1) == clean
        for certified in (certified_classes(ibp), certified_classes(crown)):
            assert (certified[certified >= 0] == clean[certified >= 0]).all()
            assert kept[certified >= 0].all()


def halved(channels, outputs, width) -> nn.Module:
    """An odd image does not halve evenly: 21 pixels become 11."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(width, outputs, 3, padding=1),
    )


def doubled(channels, outputs, width) -> nn.Module:
    """An even row looks one pixel up and down, an odd one two up."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, stride=2), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(width, outputs, 1),
    )  # fmt: skip


def narrowed(channels, outputs, width) -> nn.Module:
    """A pixel of the answer is one image pixel high and four wide."""
    return nn.Sequential(nn.AvgPool2d((1, 4)), nn.Conv2d(channels, outputs, 3, padding=1))


def widened(channels, outputs, width) -> nn.Module:
    """The answer has more pixels than the image."""
    return nn.Sequential(
        nn.Conv2d(channels, 4 * outputs, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2)
    )


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (SmallFCN, 24),
        (SmallFCN, 7),
        (SmallUNet, 40),
        (SmallUNet, 16),
        (halved, 21),
        (doubled, 24),
        (narrowed, 24),
        (widened, 6),
    ],
)
def test_pixels_that_share_a_pass_get_what_they_get_alone(make, size, monkeypatch):
    torch.manual_seed(1)
    network = make(2, 2, 4).double().eval().requires_grad_(False)
    bounds, image = Bounds(network), torch.rand(1, 2, size, size, dtype=torch.float64)
    boxes = bounds.intervals(Box(image - 0.01, image + 0.01))
    spec = torch.randn_like(boxes[bounds.logits].lower[0])
    where = torch.rand(spec.shape[1:]) < 50 / spec[0].numel()
    shared = linear_lower(bounds, boxes, bounds.logits, spec, where=where)
    # every pixel is believed to see the whole image
    monkeypatch.setattr(crown, "_reach", lambda *_: size)
    alone = linear_lower(bounds, boxes, bounds.logits, spec, where=where, chunk=7)
    assert where.any() and torch.allclose(shared[where], alone[where], atol=1e-12, rtol=0)


def test_float32_gives_up_little():
    torch.manual_seed(2)
    network = SmallFCN(3, 2, 8).eval().requires_grad_(False)
    image, spec = torch.rand(1, 3, 16, 16), torch.randn(2, 16, 16)

    def lower(dtype):
        own = Bounds(network.to(dtype))
        boxes = own.intervals(Box(image.to(dtype) - 0.01, image.to(dtype) + 0.01))
        return linear_lower(own, boxes, own.logits, spec.to(dtype)).double()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds_module, "UNIT", 0.0)
        exact = lower(torch.float64)
    given_up = exact - lower(torch.float32)
    assert given_up.min() > 0 and given_up.max() < 1e-3


def cancelling() -> nn.Module:
    """Last weights ±100 w + 0.001: the linear form is tiny where what the
    network adds up is large.
    """
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 2, 1)
    )
    large = 100 * torch.randn(8)
    net[2].weight.data[8:] = net[2].weight.data[:8]
    net[2].bias.data[8:] = net[2].bias.data[:8]
    net[3].weight.data[1, :8, 0, 0], net[3].weight.data[1, 8:, 0, 0] = (
        large,
        -large + 1e-3 * torch.randn(8),
    )
    net[3].weight.data[0] = 0
    return net


def large_weights() -> nn.Module:
    """Both logits are w · x at 1,000 times its size, and their difference is 0.001."""
    net = nn.Conv2d(3, 2, 3, padding=1)
    net.weight.data[:] = 1000 * net.weight.data[:1]
    net.bias.data = torch.tensor([0.0, 1e-3])
    return net


def far_mean() -> nn.Module:
    """A batch norm whose large mean and bias cancel, up to rounding."""
    norm = nn.BatchNorm2d(8)
    norm.running_mean, norm.running_var = torch.full((8,), 1e5), 0.5 + torch.rand(8)
    norm.bias.data = norm.running_mean * (norm.running_var + norm.eps).rsqrt()
    return nn.Sequential(nn.Conv2d(3, 8, 1), norm)


@pytest.mark.parametrize("make", [cancelling, large_weights, far_mean])
def test_what_float32_rounds_stays_inside(make):
    torch.manual_seed(3)
    segmenter = Segmenter(make().eval().requires_grad_(False), 3, 1).eval()
    bounds, images, epsilon = Bounds(segmenter.network), torch.rand(1, 3, 16, 16), 1e-7
    boxes, lower = linear_boxes(segmenter, bounds, images, epsilon)
    assert_inside(segmenter(images), boxes, bounds, lower)
    assert_inside(segmenter(random_points(images, epsilon, 50)), boxes, bounds, lower)
    box = image_box(segmenter, images, epsilon)
    for margins in (interval_margins(bounds, box), crown_ibp_margins(bounds, box)):
        certified, clean = certified_classes(margins), segmenter(images).argmax(1)
        assert (certified[certified >= 0] == clean[certified >= 0]).all()


def test_the_image_box_holds_the_ball_that_an_attack_may_use():
    """An attack's ε is held to 1e-6, and x ± ε is no float32."""
    torch.manual_seed(4)
    segmenter, images, epsilon = (
        Segmenter(nn.Identity(), 3, 1),
        0.2 + 0.6 * torch.rand(1, 3, 8, 8),
        2 / 255,
    )
    box = image_box(segmenter, images, epsilon)
    assert (box.lower.double() <= images.double() - epsilon - 1e-6).all()
    assert (box.upper.double() >= images.double() + epsilon + 1e-6).all()
    assert (box.upper - box.lower).max() < 2 * epsilon + 1e-5


def two_neurons() -> nn.Module:
    """One pixel, x ∈ ℝ²: hidden h = relu(x₀ + x₁, x₀ − x₁), logits (0, h₀ − h₁ + 1)."""
    net = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 2, 1))
    net[0].weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).view(2, 2, 1, 1)
    net[2].weight.data = torch.tensor([[0.0, 0.0], [1.0, -1.0]]).view(2, 2, 1, 1)
    net[2].bias.data = torch.tensor([0.0, 1.0])
    return net.eval().requires_grad_(False)


def test_two_neurons_by_hand(monkeypatch):
    """x = (1, 0.9) ± 0.2: h₀ in [1.5, 2.3] is stable; a = x₀ − x₁ in [−0.3, 0.5] is not.

    IBP: h₁ in [0, 0.5], so l₁ − l₀ in [1.5 − 0.5 + 1, 2.3 − 0 + 1] = [2, 3.3]. CROWN, lower: h₁ ≤
    (0.5 / 0.8)(a + 0.3) and the form is x₀ + x₁ − 0.625 (x₀ − x₁) − 0.1875 + 1 = 0.375 x₀ + 1.625
    x₁ + 0.8125, least at x = (0.8, 0.7): 2.25. CROWN, upper: h₁ ≥ a, since 0.5 > 0.3, so x₀ + x₁ −
    a + 1 = 2 x₁ + 1, greatest at x₁ = 1.1: 3.2.
    """
    monkeypatch.setattr(bounds_module, "UNIT", 0.0)
    bounds, x = Bounds(two_neurons().double()), torch.tensor([1.0, 0.9]).double().view(1, 2, 1, 1)
    boxes = bounds.intervals(Box(x - 0.2, x + 0.2))
    differences = bounds.differences(boxes).flatten(3)[0, ..., 0]
    assert differences[1, 0].item() == pytest.approx(2, abs=1e-6)
    assert differences[0, 1].item() == pytest.approx(-3.3, abs=1e-6)
    spec = torch.tensor([-1.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    assert linear_lower(bounds, boxes, bounds.logits, spec).item() == pytest.approx(2.25, abs=1e-6)
    assert -linear_lower(bounds, boxes, bounds.logits, -spec).item() == pytest.approx(3.2, abs=1e-6)


def test_worst_margin_is_the_least_difference():
    differences = torch.tensor([[0.0, 2.0, -1.0], [-3.0, 0.0, -2.0], [0.5, 0.1, 0.0]]).view(
        1, 3, 3, 1, 1
    )
    margins = worst_margins(differences)
    assert margins.flatten().tolist() == pytest.approx([-1, -3, 0.1])
    assert certified_classes(margins).item() == 2
    assert certified_classes(torch.tensor([[-1.0, -0.1]]).view(1, 2, 1, 1)).item() == -1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sigmoid(),
        nn.BatchNorm2d(3).train(),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.Dropout(0.5),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.Upsample(scale_factor=3),
    ],
)
def test_a_layer_without_a_sound_rule_is_refused_by_name(layer):
    with pytest.raises(InputError, match=type(layer).__name__):
        Bounds(nn.Sequential(nn.Conv2d(3, 3, 1), layer))


def test_a_relu_in_place_is_refused():
    """y = conv(x), z = relu(y) in place: y is z by the time that both are added."""

    class InPlace(nn.Module):
        def __init__(self, functional):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)
            self.relu = (lambda y: F.relu(y, inplace=True)) if functional else nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.conv(x)
            return y + self.relu(y)

    for functional in (True, False):
        with pytest.raises(InputError, match="in place"):
            Bounds(InPlace(functional))


def test_an_argument_beside_the_image_is_refused():
    class Sized(nn.Module):
        def __init__(self, *args, **options):
            super().__init__()
            self.up, self.args, self.options = nn.ConvTranspose2d(2, 2, 2, stride=2), args, options

        def forward(self, x):
            return self.up(x, *self.args, **self.options)

    for network in (Sized(output_size=[9, 9]), Sized([9, 9])):
        with pytest.raises(InputError, match="ConvTranspose2d"):
            Bounds(network)


def test_adding_a_constant_is_refused_and_adding_a_skip_is_bounded():
    class Skip(nn.Module):
        def __init__(self, constant):
            super().__init__()
            self.conv, self.constant = nn.Conv2d(2, 2, 1), constant

        def forward(self, x):
            return self.conv(x) + (self.constant if self.constant else x)

    with pytest.raises(InputError, match="add"):
        Bounds(Skip(1.5))
    torch.manual_seed(0)
    net = Skip(None).requires_grad_(False)
    x = torch.rand(1, 2, 4, 4)
    bounds = Bounds(net)
    box = bounds.intervals(Box(x - 0.1, x + 0.1))[bounds.logits]
    seen = net(x + (torch.rand(200, 2, 4, 4) * 2 - 1).sign() * 0.1)
    assert (seen >= box.lower).all() and (seen <= box.upper).all()


DECISIONS = [Decision(1.93, 0.394), Decision(0.5, 0.8)]


@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("name", ["fcn", "every-layer", "linear"])
def test_what_is_certified_is_what_is_drawn(name, decision):
    """Two, three and four classes; no random point of the box, and no attack on the map drawn,
    changes a class.
    """
    torch.manual_seed(0)
    network, images = NETS[name]().eval().requires_grad_(False), torch.rand(1, 3, 16, 16)
    segmenter = Segmenter(network, 3, 1).eval()
    segmenter.decision = decision
    bounds, epsilon = Bounds(network, decision), 0.2 / 255
    box = image_box(segmenter, images, epsilon)
    deployed, drawn = segmenter.deployed(), segmenter.decide(segmenter(images))
    attacked = pgd(Target(deployed, images, drawn, "linf", epsilon), 10, early_stop=False)
    points = torch.cat([random_points(images, epsilon, 200), attacked])
    ibp, crown = interval_margins(bounds, box), crown_ibp_margins(bounds, box)
    assert (crown >= ibp).all()
    for certified in (certified_classes(ibp), certified_classes(crown)):
        known = certified >= 0
        assert (certified == drawn)[known].all()
        assert (segmenter.decide(segmenter(points)) == certified)[
            known.expand(len(points), -1, -1)
        ].all()
    assert (certified_classes(crown) >= 0).any()


def test_a_threshold_moves_the_certificate_with_the_map():
    """Margin 12 x − 6, drawn from −0.83 on: what is certified background ends
    where buildings are drawn.
    """
    net = nn.Conv2d(1, 2, 1)
    net.weight.data, net.bias.data = (
        torch.tensor([-6.0, 6.0]).view(2, 1, 1, 1),
        torch.tensor([3.0, -3.0]),
    )
    segmenter, rule = (
        Segmenter(net.eval().requires_grad_(False), 1, 1).eval(),
        Decision(1.93, 0.394),
    )
    segmenter.decision, images = rule, torch.linspace(0, 1, 1024).view(1, 1, 32, 32)
    certified = certified_classes(
        crown_ibp_margins(Bounds(net, rule), image_box(segmenter, images, 1 / 255))
    )
    drawn = ((segmenter(images) / rule.temperature).softmax(1)[:, 1] > rule.threshold).long()
    assert (certified >= 0).sum() == 1024 - 8 and (certified == drawn)[certified >= 0].all()
    edge = (6 + rule.shift) / 12
    assert images[certified[:, None] == 0].max() == pytest.approx(edge - 1 / 255, abs=2e-3)


def extreme(width: int = 8, big: float = 1e6) -> nn.Module:
    """Channels of very different sizes, of which the last layer subtracts equal ones."""
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(), nn.Conv2d(width, 2, 3, padding=1),
    )  # fmt: skip
    net[0].weight.data *= big
    net[2].weight.data[1], net[2].bias.data[1] = net[2].weight.data[0], net[2].bias.data[0]
    net[4].weight.data[:, 1] = -net[4].weight.data[:, 0] * (1 + 1e-6)
    return net.eval().requires_grad_(False)


def test_bounds_hold_whatever_kernel_the_machine_has():
    """Without oneDNN a batch of sixteen goes to NNPACK, whose Winograd kernels round otherwise:
    it is not asked.
    """
    torch.manual_seed(5)
    segmenter, images = Segmenter(extreme(), 3, 1).eval(), torch.rand(1, 3, 12, 12)
    bounds = Bounds(segmenter.network)
    boxes = bounds.intervals(image_box(segmenter, images, 0.0))
    with torch.backends.mkldnn.flags(enabled=False):
        many = segmenter(images.expand(20, -1, -1, -1))
    assert (many >= boxes[bounds.logits].lower).all() and (many <= boxes[bounds.logits].upper).all()


def test_what_a_hook_may_change_is_refused():
    net = SmallFCN(3, 2, 4).eval()
    bounds, x = Bounds(net), torch.rand(1, 3, 8, 8)
    for register in (
        net[2].register_forward_hook,
        net[2].register_forward_pre_hook,
        net.register_forward_hook,
    ):
        handle = register(lambda _, given, *__: None)
        with pytest.raises(InputError, match="hook"):
            Bounds(net)
        handle.remove()
    handle = net[2].register_forward_hook(lambda _, __, y: y + 1)  # after the bounds were drawn up
    with pytest.raises(InputError, match="hook"):
        bounds.intervals(Box(x, x))
    handle.remove()
    net[2].forward = lambda x: x + 1
    with pytest.raises(InputError, match="hook"):
        Bounds(net)


def test_a_pool_that_divides_by_less_than_nothing_is_refused():
    with pytest.raises(InputError, match="AvgPool2d"):
        Bounds(nn.Sequential(nn.Conv2d(3, 2, 1), nn.AvgPool2d(2, divisor_override=-3)))
    Bounds(nn.Sequential(nn.Conv2d(3, 2, 1), nn.AvgPool2d(2, divisor_override=3)))


def test_half_precision_is_refused():
    with pytest.raises(InputError, match="bfloat16"):
        Bounds(SmallFCN(3, 2, 4).bfloat16())


def test_batch_statistics_and_weights_are_read_when_used():
    torch.manual_seed(6)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    bounds, x = Bounds(net), torch.rand(1, 3, 6, 6)
    net[1].running_mean, net[1].running_var = torch.randn(4), torch.rand(4) + 0.5
    net[0].weight = nn.Parameter(torch.randn(4, 3, 1, 1), requires_grad=False)
    box = bounds.intervals(Box(x - 0.01, x + 0.01))[bounds.logits]
    assert (net(x) >= box.lower).all() and (net(x) <= box.upper).all()
    net[1].train()
    with pytest.raises(InputError, match="BatchNorm2d"):
        bounds.intervals(Box(x, x))
