"""A segmenter whose logits move by no more than its input does: ‖f(x + δ) − f(x)‖₂
≤ ‖δ‖₂ over the whole image.

Every layer is non-expansive by construction, none by a measured norm (power iteration
under-estimates a norm, and so certifies nothing): orthogonal convolutions (Li et al. 2019,
"Preventing Gradient Attenuation in Lipschitz Constrained Convolutional Networks", BCOP), MinMax
(Anil, Lucas, Grosse 2019, "Sorting Out Lipschitz Function Approximation"), PixelUnshuffle for
strides, and a concatenated skip over √2.
"""

import math
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def minmax(x: Tensor, dim: int = 1) -> Tensor:
    """GroupSort-2: sort each pair of channels. A permutation at every point, so it
    keeps norms and gradients.

    Channel i pairs with channel i + n/2; an odd last channel passes unchanged. Any
    shape with a channel axis.
    """
    pairs = x.shape[dim] // 2
    a, b, rest = x.split([pairs, pairs, x.shape[dim] - 2 * pairs], dim)
    return torch.cat([torch.minimum(a, b), torch.maximum(a, b), rest], dim)


def groupsort(x: Tensor, group: int) -> Tensor:
    """Sort every `group` channels (Anil, Lucas, Grosse 2019, section 4.1): a permutation at every
    point, as `minmax`, which it is for pairs. (N, C, …); channel i stands with i + n, i + 2n, … for
    n groups, those left over pass.
    """
    groups = x.shape[1] // group
    sorted_, rest = x.split([group * groups, x.shape[1] - group * groups], 1)
    return torch.cat([sorted_.unflatten(1, (group, groups)).sort(1).values.flatten(1, 2), rest], 1)


class MinMax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return minmax(x)


class GroupSort(nn.Module):
    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return groupsort(x, self.group)


def replace_relu(network: nn.Module) -> nn.Module:
    """Put MinMax in the place of every ReLU module of `network`, which is changed and returned.
    Other activations stay, as the SiLU of EfficientNet's encoders.
    """
    for name, child in network.named_children():
        if isinstance(child, nn.ReLU):
            setattr(network, name, MinMax())
        else:
            replace_relu(child)
    return network


def orthonormal(weight: Tensor) -> Tensor:
    """The nearest frame's Q: a (m, n) matrix with orthonormal columns (m ≥ n) or
    rows (m < n), float64.

    QR in double precision leaves ‖QᵀQ − 1‖ near 1e-15, so that rounding to single
    costs less than 1e-6.
    """
    wide = weight.shape[0] < weight.shape[1]
    q = torch.linalg.qr((weight.T if wide else weight).double()).Q
    return q.T if wide else q


class NonExpansiveConv(nn.Module):
    """A convolution whose kernel is a function of free parameters. Zero padding keeps it
    non-expansive: it embeds the image in the plane (an isometry) and crops the answer (a
    projection). The kernel is computed once in eval mode.
    """

    def __init__(self, outputs: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._kept: tuple | None = None  # (what it was computed from, kernel)

    def kernel(self) -> Tensor:
        """(outputs, inputs, k, k), float32."""
        raise NotImplementedError

    def train(self, mode: bool = True):
        self._kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            kernel = self.kernel()
        else:
            state = [(p.device, p.data_ptr(), p._version) for p in self.parameters()]
            if self._kept is None or self._kept[0] != state:
                self._kept = state, self.kernel().detach()
            kernel = self._kept[1]
        return F.conv2d(x, kernel, self.bias, padding=kernel.shape[-1] // 2)


class OrthogonalConv(NonExpansiveConv):
    """3×3 (or 1×1) convolution with orthonormal rows or columns on the infinite plane.

    For a projector P, x ↦ P x + (1 − P) S x with S a shift by one pixel is orthogonal. Two of them
    down, two across (one shifting forth, one back) and a 1×1 orthogonal matrix make the 3×3 kernel
    (BCOP, separable as in Xiao 2018).
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3):
        super().__init__(outputs)
        widest = max(inputs, outputs)
        self.inputs, self.outputs, self.size = inputs, outputs, size
        # kernels do not feel the scale of these; a small one lets Adam's steps turn them
        self.mix = nn.Parameter(0.1 * torch.randn(outputs, inputs))
        frames = 0.1 * torch.randn(4 if size == 3 else 0, widest, max(widest // 2, 1))
        self.frames = nn.Parameter(frames, requires_grad=size == 3)

    def kernel(self) -> Tensor:
        mix = orthonormal(self.mix)
        if self.size == 1:
            return mix.float()[:, :, None, None]
        u = torch.linalg.qr(self.frames.double()).Q
        p = u @ u.mT
        q = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - p
        # (P₂ + (1 − P₂) S⁻¹)(P₁ + (1 − P₁) S): three taps, at −1, 0 and +1
        down, across = (
            torch.stack([q[b] @ p[a], p[b] @ p[a] + q[b] @ q[a], p[b] @ q[a]])
            for a, b in ((0, 1), (2, 3))
        )
        if self.outputs < self.inputs:  # mix last: its rows are orthonormal
            return torch.einsum("om,ymk,xki->oiyx", mix, down, across).float()
        return torch.einsum("yom,xmk,ki->oiyx", down, across, mix).float()


class AOLConv(NonExpansiveConv):
    """Almost-orthogonal convolution (Prach and Lampert 2022, theorem 2): free
    kernels, channels rescaled.

    Input channel i is scaled by (Σ_j Σ_shifts |Σ_o w_o,i ⋆ w_o,j|)^−½, a bound on the norm that
    needs no iteration.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3):
        super().__init__(outputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
        nn.init.dirac_(self.weight)
        with torch.no_grad():
            self.weight += 0.1 / math.sqrt(inputs * size * size) * torch.randn_like(self.weight)

    def kernel(self) -> Tensor:
        w = self.weight.double()
        across = w.transpose(0, 1)  # one image of `outputs` channels an input channel
        gram = F.conv2d(across, across, padding=w.shape[-1] - 1)
        return (w * (gram.abs().sum((1, 2, 3)) + 1e-12).rsqrt()[:, None, None]).float()


def simplex_frame(outputs: int) -> Tensor:
    """(K, K − 1) with orthonormal columns that sum to zero: logits differ only
    within their zero-sum subspace, where the radius (top − runner-up) / √2 loses
    nothing. For K = 2 it is (−1, 1) / √2.
    """
    frame = torch.zeros(outputs, outputs - 1, dtype=torch.float64)
    for k in range(1, outputs):
        frame[:k, k - 1], frame[k, k - 1] = -1, k
        frame[:, k - 1] /= math.sqrt(k * (k + 1))
    return frame.float()


CONVOLUTIONS = {"orthogonal": OrthogonalConv, "aol": AOLConv}


class LipschitzNet(nn.Module):
    """1-Lipschitz U-Net: images (N, C, H, W) to logits (N, K, H, W), H and W multiples of 4,
    ‖Δlogits‖₂ ≤ ‖Δx‖₂.

    PixelUnshuffle → convolutions and GroupSort (of `group` channels; 2 is MinMax) at ½ and ¼
    resolution → concat(skip, up) / √2 → PixelShuffle. Other sides have to be padded with a
    constant, which leaves ‖Δx‖ as it is; repeating the edge would stretch it.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        width: int,
        convolution: str = "orthogonal",
        group: int = 2,
    ):
        super().__init__()
        conv, sort = CONVOLUTIONS[convolution], MinMax() if group == 2 else GroupSort(group)
        self.unshuffle, self.shuffle = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        self.enter = nn.Sequential(
            conv(4 * channels, width, 1), conv(width, width), sort, conv(width, width), sort
        )
        self.lower = nn.Sequential(
            conv(4 * width, 2 * width, 1), conv(2 * width, 2 * width), sort,
            conv(2 * width, 2 * width), sort, conv(2 * width, 4 * width, 1),
        )  # fmt: skip
        self.merge = nn.Sequential(conv(2 * width, width), sort, conv(width, width), sort)
        self.out = conv(width, 4 * (outputs - 1), 1)
        self.register_buffer("frame", simplex_frame(outputs), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(self.unshuffle(x - 0.5))
        low = self.shuffle(self.lower(self.unshuffle(skip)))
        merged = self.merge(torch.cat([skip, low], 1) / math.sqrt(2))
        return torch.einsum("kj,njhw->nkhw", self.frame, self.shuffle(self.out(merged)))


@contextmanager
def watch_values(network: nn.Module, largest: list[float]):
    """Collect the largest |value| of every non-expansive convolution's answers: what float32 rounds
    is a share of it, also where large biases cancel before the logits.
    """
    layers = [m for m in network.modules() if isinstance(m, NonExpansiveConv)]
    hooks = [
        m.register_forward_hook(lambda _, __, y: largest.append(float(y.abs().max())))
        for m in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def radii(logits: Tensor) -> Tensor:
    """ℓ2 distance (N, H, W) at which the class of 1-Lipschitz logits (N, K, H, W) may change:
    (top − next) / √2.
    """
    top = logits.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]) / math.sqrt(2)
