"""Bounds on a network's logits over a box of images by intervals (IBP, Gowal et al. 2018), ℓ∞.

The network's torch.fx graph is read once. Every operation is one of three kinds:

    affine        convolution, transposed convolution, batch norm, average pooling, upsampling, concatenation, …
                  centre through the operation, radius through its absolute value
    ReLU, max     monotone: each end by itself

pipeline.certificates.crown sends linear forms back through the same rules. Bounds hold for the
network as float32 computes it, its sums in any order, because every rule adds the roundings it may
have made (UNIT). A convolution by Winograd or FFT is no such sum:
pipeline.networks.precision.direct_sums turns these and TF32 off.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules import module as everywhere

from pipeline.errors import InputError
from pipeline.networks.decision import Decision
from pipeline.networks.models import Segmenter
from pipeline.networks.precision import direct_sums

ABSTAIN = -1  # the class of a pixel without a certificate
PIXEL_SLACK = 2e-6  # of the pixel range: rounding of x ± ε, and what an attack may exceed its ε by
# float32's unit roundoff: a sum of n products is off by at most n · UNIT · Σ|product|
UNIT = 2.0**-24
# units of the logits' size that a decision may round: by a shift, a softmax, the mean of windows
DECIDED = 32

REARRANGED = (nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d)
SUMS = {torch.add, operator.add}


class Box(NamedTuple):
    """Element by element lower ≤ value ≤ upper, both (N, ...)."""

    lower: Tensor
    upper: Tensor

    def largest(self) -> Tensor:
        return torch.maximum(self.lower.abs(), self.upper.abs())


def image_box(segmenter: Segmenter, images: Tensor, epsilon: float) -> Box:
    """The ℓ∞ ball of radius ε (pixel range [0,1]) around images (N, C, H, W), cut at [0,1],
    past the normalisation.
    """
    lower = (images - epsilon).clamp_min(0) - PIXEL_SLACK
    upper = (images + epsilon).clamp_max(1) + PIXEL_SLACK
    return Box((lower - segmenter.mean) / segmenter.std, (upper - segmenter.mean) / segmenter.std)


@dataclass(frozen=True)
class Affine:
    """x ↦ linear(weight, x) + bias; a None weight means a fixed operation with weights ≥ 0."""

    linear: Callable[..., Tensor]  # of the weight and the input tensors, linear in either
    weight: Tensor | None = None
    bias: Tensor | None = None  # (C, 1, 1)
    bias_size: Tensor | None = None  # where it is more than |bias|: the bias is itself a difference
    terms: int = 16  # products an output sums
    back: int = 16  # products the adjoint sums
    # the weight's first axis is the output channel, and every input channel reaches it
    dense: bool = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        out = self.linear(self.weight, *inputs)
        return out if self.bias is None else out + self.bias

    @property
    def rounding(self) -> float:
        """Share of Σ|product| that float32 may be off by: the network's sum, an interval's
        centre and its radius.
        """
        return 4 * (self.terms + 4) * UNIT

    @property
    def rounding_back(self) -> float:
        """Share of Σ|product| that the network's sum and the adjoint of a
        linear form may be off by.
        """
        return 2 * (self.terms + self.back + 8) * UNIT

    def interval(self, *boxes: Box) -> Box:
        """Centre and radius; the radius takes the rounding too."""
        centre = self(*((box.lower + box.upper) / 2 for box in boxes))
        radius = self.absolute(
            *((b.upper - b.lower) / 2 + self.rounding * b.largest() for b in boxes)
        )
        radius = radius + self.rounding * self._bias_size()
        return Box(centre - radius, centre + radius)

    def size(self, *boxes: Box) -> Tensor:
        """The largest Σ|product| of each output over boxes of the inputs."""
        return self.absolute(*(box.largest() for box in boxes)) + self._bias_size()

    def reach(self, *inputs: Tensor) -> Tensor:
        """Positive where an output depends on a positive input."""
        return self.linear(None if self.weight is None else torch.ones_like(self.weight), *inputs)

    def absolute(self, *inputs: Tensor) -> Tensor:
        """Through the weights' absolute values."""
        return self.linear(None if self.weight is None else self.weight.abs(), *inputs)

    def _bias_size(self) -> Tensor | float:
        if self.bias_size is not None:
            return self.bias_size
        return 0.0 if self.bias is None else self.bias.abs()


class ReLU:
    def interval(self, box: Box) -> Box:
        return Box(box.lower.relu(), box.upper.relu())


@dataclass(frozen=True)
class MaxPool:
    module: nn.MaxPool2d

    def interval(self, box: Box) -> Box:
        return Box(self.module(box.lower), self.module(box.upper))

    def best(self, lower: Tensor) -> Tensor:
        """Flat index (N, C, H', W') of each window's largest lower bound."""
        m = self.module
        window = m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode
        return F.max_pool2d(lower, *window, return_indices=True)[1]

    def reach(self, x: Tensor) -> Tensor:
        m = self.module
        return F.avg_pool2d(x, m.kernel_size, m.stride, m.padding, m.ceil_mode)


def _operation(node: fx.Node, modules: dict[str, nn.Module]) -> Affine | ReLU | MaxPool:
    """The rule of a graph node. Raises InputError, naming the operation, where there is none."""
    module = modules[str(node.target)] if node.op == "call_module" else None
    if getattr(module, "inplace", False) or node.kwargs.get("inplace"):
        raise InputError(
            f"certify: {node.name} works in place and overwrites what others may read; build it "
            f"with inplace=False"
        )
    match module:
        # as a transposed convolution's output_size
        case nn.Module() if node.kwargs or len(node.args) != 1:
            pass
        case nn.Conv2d(padding_mode="zeros") as conv:
            return Affine(
                lambda w,
                x: F.conv2d(x, w, None, conv.stride, conv.padding, conv.dilation, conv.groups),
                conv.weight, None if conv.bias is None else conv.bias[:, None, None],
                terms=conv.weight[0].numel(), back=conv.weight[:, 0].numel(),
                dense=conv.groups == 1,
            )  # fmt: skip
        case nn.ConvTranspose2d(stride=step, padding=tuple(pad), output_padding=extra) as up:
            return Affine(
                lambda w,
                x: F.conv_transpose2d(x, w, None, step, pad, extra, up.groups, up.dilation),
                up.weight, None if up.bias is None else up.bias[:, None, None],
                terms=up.weight[:, 0].numel(), back=up.weight[0].numel(),
            )  # fmt: skip
        case nn.BatchNorm2d(training=False, track_running_stats=True) as norm:
            scale = (norm.get_buffer("running_var") + norm.eps).rsqrt() * (
                norm.weight if norm.affine else 1
            )
            mean = norm.get_buffer("running_mean") * scale
            bias = norm.bias if norm.affine else torch.zeros_like(scale)
            sizes = (bias - mean)[:, None, None], (bias.abs() + mean.abs())[:, None, None]
            return Affine(lambda s, x: x * s[:, None, None], scale, *sizes)
        case nn.ReLU():
            return ReLU()
        case nn.MaxPool2d() as pool if pool.dilation in (1, (1, 1)):
            return MaxPool(pool)
        case nn.Upsample(mode="nearest" | "bilinear", align_corners=None | False) as m if (
            m.scale_factor in (2, 4, 8)
        ):
            # by powers of 2 its weights are exact
            return Affine(lambda _, x: m(x), back=int(2 * m.scale_factor) ** 2)
        # its weights are ≥ 0
        case nn.AvgPool2d(divisor_override=divisor) as pool if divisor is None or divisor > 0:
            side = pool.kernel_size if isinstance(pool.kernel_size, int) else max(pool.kernel_size)
            return Affine(lambda _, x: pool(x), terms=side**2, back=side**2)
        case nn.Module() if isinstance(module, REARRANGED):
            return Affine(lambda _, x: module(x))
    if node.op == "call_function" and node.target in {F.relu, torch.relu}:
        return ReLU()
    # not x + 1, not x + 2 · y
    of_nodes = all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs
    function: Any = node.target
    if node.op == "call_function" and (function is torch.cat or function in SUMS and of_nodes):

        def call(_, *inputs):
            known = dict(zip(node.all_input_nodes, inputs, strict=True))
            return function(*fx.map_arg(node.args, known.get), **node.kwargs)

        return Affine(call)
    name = (
        type(module).__name__
        if module is not None
        else getattr(node.target, "__name__", node.target)
    )
    raise InputError(
        f"certify: no sound bound is known for layer {name} ({node.name}); use convolutions, "
        "transposed convolutions, ReLU, pooling, nearest or bilinear upsampling by 2, 4 or 8, "
        "batch norm in eval mode and concatenation"
    )


def _check(modules: dict[str, nn.Module]) -> None:
    """Raise InputError where a module computes something else than its class
    says, or not in float32.
    """
    for name, module in modules.items():
        changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        if changed or everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
            raise InputError(
                f"certify: a hook may change what {name or 'the network'} computes, so that no "
                f"bound is known; "
                "remove it before certifying"
            )
        for weight in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if weight.is_floating_point() and weight.dtype not in (torch.float32, torch.float64):
                raise InputError(
                    f"certify: {name} is in {weight.dtype}; bounds know float32: call "
                    f".float() first"
                )


class Bounds:
    """The bounds of one network (N, C, H, W) → (N, K, H, W), and of the classes
    that `decision` makes of its logits (None = the largest logit). Raises
    InputError on a layer without a sound rule.
    """

    def __init__(self, network: nn.Module, decision: Decision | None = None):
        direct_sums()
        _check(dict(network.named_modules()))  # before a trace takes the hooks along
        traced = fx.symbolic_trace(nn.Sequential(network))
        self.modules, self.decision = dict(traced.named_modules()), decision
        *self.nodes, output = traced.graph.nodes
        self.input, self.logits = self.nodes[0], output.args[0]
        self.rules = self.read()

    def read(self) -> dict[fx.Node, "Affine | ReLU | MaxPool"]:
        """The rule of every node but the input, of the network's parameters as they are now."""
        _check(self.modules)
        return {node: _operation(node, self.modules) for node in self.nodes[1:]}

    def intervals(self, box: Box) -> dict[fx.Node, Box]:
        """IBP: a box for every node, differentiable in the network's
        parameters, which are read anew.
        """
        self.rules, boxes = self.read(), {self.input: box}
        for node in self.nodes[1:]:
            boxes[node] = self.rules[node].interval(*(boxes[i] for i in node.all_input_nodes))
        return boxes

    def differences(self, boxes: dict[fx.Node, Box]) -> Tensor:
        """IBP lower bounds (N, K, K, H, W) of logit k − logit j; the last convolution subtracts
        before it bounds.
        """
        rule, inputs = self.rules[self.logits], [boxes[i] for i in self.logits.all_input_nodes]
        classes = boxes[self.logits].lower.shape[1]
        unit = torch.eye(
            classes, device=boxes[self.logits].lower.device, dtype=boxes[self.logits].lower.dtype
        )
        pairs = (unit[:, None] - unit[None, :]).flatten(0, 1)
        if isinstance(rule, Affine) and rule.dense:
            bias = None if rule.bias is None else (pairs @ rule.bias.flatten())[:, None, None]
            weight = torch.einsum("pk,k...->p...", pairs, rule.weight)
            lower = Affine(rule.linear, weight, bias, terms=rule.terms).interval(*inputs).lower
            # but the network rounds each logit before anyone subtracts
            lower = lower - rule.rounding * torch.einsum(
                "pk,nkhw->nphw", pairs.abs(), rule.size(*inputs)
            )
        else:
            last = Affine(lambda w, x: torch.einsum("pk,nkhw->nphw", w, x), pairs, terms=2)
            lower = last.interval(boxes[self.logits]).lower
        return lower.unflatten(1, (classes, classes))

    def margins(self, boxes: dict[fx.Node, Box], differences: Tensor | None = None) -> Tensor:
        """(N, K, H, W): what each class is ahead by in the whole box, at least; of IBP's
        differences or better ones.
        """
        differences = self.differences(boxes) if differences is None else differences
        if self.decision is None:
            return worst_margins(differences)
        return decided_margins(
            differences, self.decision, boxes[self.logits].largest().amax(1, keepdim=True)
        )


def worst_margins(differences: Tensor) -> Tensor:
    """(N, K, H, W): lower bound of logit k minus the largest other logit;
    positive for at most one class.
    """
    own = torch.eye(differences.shape[1], dtype=torch.bool, device=differences.device)[
        None, :, :, None, None
    ]
    return differences.masked_fill(own, torch.inf).amin(2)


def decided_margins(differences: Tensor, decision: Decision, size: Tensor) -> Tensor:
    """(N, K, H, W): lower bound of each class's lead in `decision.logits`, given lower bounds (N,
    K, K, H, W) of the logits' differences and the largest logit (N, 1, H, W).

    A building leads background by T·log Σ exp((z_j − z_0)/T) − shift, which rises with each z_j −
    z_0: its least value takes their lower bounds, background's lead their upper ones,
    −differences[0].

    A map holds probabilities, of whose roundings a logit sees T / (1 − θ) = T + T · odds.
    """
    t, shift = decision.temperature, decision.shift
    building = t * (differences[:, 1:, 0] / t).logsumexp(1, keepdim=True) - shift
    background = shift - t * (-differences[:, 0, 1:] / t).logsumexp(1, keepdim=True)
    among = worst_margins(differences[:, 1:, 1:])  # infinite for a single kind of building
    given_up = DECIDED * UNIT * (size + abs(shift) + t + t * decision.odds)
    return torch.cat([background, torch.minimum(building, among)], 1) - given_up


def certified_classes(margins: Tensor) -> Tensor:
    """(N, H, W) int64: the class whose worst margin is positive, ABSTAIN where there is none."""
    best, cls = margins.max(1)
    return torch.where(best > 0, cls, ABSTAIN)


def interval_margins(bounds: Bounds, box: Box, chunk: int = 16) -> Tensor:
    """IBP worst margins (N, K, H, W) over a box of images (N, C, H, W), `chunk`
    images at a time.
    """
    parts = zip(box.lower.split(chunk), box.upper.split(chunk), strict=True)
    return torch.cat([bounds.margins(bounds.intervals(Box(*part))) for part in parts])
