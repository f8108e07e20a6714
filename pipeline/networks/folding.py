"""Batch norms folded into the convolutions before them: the same map in fewer passes over memory.

A batch norm in eval mode is affine, as a convolution is: γ (W∗x + b − μ) / σ + β is a convolution
by γW/σ. Networks that are proven have no batch norm, and stay as they are.
"""

from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.networks.precision import Network, channels_last

PROBE = 64  # pixels along the image that shows which norm follows which convolution
ALIKE = 1e-3  # of the largest logit: rounding, and nothing else


@torch.inference_mode(False)
@torch.no_grad()
def folded(segmenter: Network) -> Network:
    """A copy of a Segmenter that maps alike and faster; the segmenter itself where it has nothing to fold, is a
    stranger's, or the copy would not map alike. The copy is for mapping, not to learn on.
    """
    norms = any(isinstance(module, nn.BatchNorm2d) for module in segmenter.modules())
    if not norms or not getattr(segmenter.get_submodule("network"), "foldable", True):
        return segmenter
    mean, copy = segmenter.get_buffer("mean"), deepcopy(segmenter).cpu().eval()
    side = max(PROBE, int(getattr(segmenter, "stride", 1)))
    shape = (1, mean.shape[1], side, side)
    probe = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    pairs, before = followed(copy, probe)
    for convolution, norm in pairs:
        fold(convolution, norm)
    replace(copy, {norm for _, norm in pairs})
    error = (copy(probe, contacts=True) - before).abs().max()
    if not pairs or not error <= ALIKE * before.abs().max():  # nor where it is no number
        return segmenter  # a convolution that is more than its weights, or is used twice
    return channels_last(copy.to(mean.device))


def followed(
    network: nn.Module, probe: torch.Tensor
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], torch.Tensor]:
    """Each batch norm whose input is what a convolution has just made, and that convolution; and
    what the network answers.
    """
    made: list[tuple[torch.Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note(convolution, _, output) -> None:
        made.append((output, convolution))

    def pair(norm, inputs) -> None:
        pairs.extend((by, norm) for output, by in made if output is inputs[0])

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            hooks.append(module.register_forward_pre_hook(pair))
    answer = network(probe, contacts=True)
    for hook in hooks:
        hook.remove()
    return pairs, answer


def fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """The convolution does the norm's work too."""
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.get_buffer("running_mean"),
        norm.get_buffer("running_var"), norm.eps, norm.weight, norm.bias,
    )  # fmt: skip


def replace(network: nn.Module, norms: set[nn.Module]) -> None:
    """Leave of these norms what else they do: timm's activate too."""
    for parent in [*network.modules()]:
        for name, child in parent.named_children():
            if child in norms:
                setattr(parent, name, getattr(child, "act", nn.Identity()))
