"""Adaptation without labels: a segmenter and images of a new city in, a segmenter
fitted to that city out.

No function here takes a label, so none can be read while adapting. The ladder, from
the lightest touch:

    histogram       the new city's colours are mapped to the training cities', band by band
    fda             low frequencies get the amplitude of the training cities (Yang and Soatto, CVPR 2020)
    adabn           batch-norm statistics are measured again on the new city (Li et al., 2016)
    entropy         and scales and shifts lower the entropy of its predictions (TENT: Wang et al., ICLR 2021)
    self_training   and all weights learn its confident predictions (CBST: Zou et al., ECCV 2018)

The first two change the input, the last three the model. None repairs a concept
shift (roofs darker than the ground where training showed them brighter): the new
city's images alone do not say what its roofs are.
"""

import copy
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.labels import IGNORE
from pipeline.networks.models import Segmenter
from pipeline.networks.precision import autocast
from pipeline.tiles.tensors import to_float
from pipeline.transfer.predictions import batches, building_probability

LEVELS = np.arange(256)


def adapt(
    method: str,
    segmenter: Segmenter,
    source: np.ndarray,
    target: np.ndarray,
    *,
    steps: int = 20,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    seed: int = 0,
) -> Segmenter:
    """An adapted copy of `segmenter`, in eval mode; the original is not changed.

    `source` (N, S, S, C) uint8 are images of its training cities, `target` (M, S, S, C) of the new
    one. `steps` and `learning_rate` are those of entropy and self_training. Models without batch
    norm pass adabn unchanged, and every model does where a side has no image (all of it is nodata).
    """
    if not len(source) or not len(target):
        return copy.deepcopy(segmenter).eval()
    match method:
        case "none":
            return copy.deepcopy(segmenter).eval()
        case "histogram":
            return _see_through(segmenter, histogram_matching(source, target))
        case "fda":
            return _see_through(segmenter, fourier_matching(source))
        case "adabn":
            return adabn(segmenter, target, batch_size)
        case "entropy":
            return entropy_minimisation(segmenter, target, steps, learning_rate, batch_size, seed)
        case "self_training":
            return self_training(segmenter, target, steps, learning_rate / 10, batch_size, seed)
    raise KeyError(method)


def _see_through(segmenter: Segmenter, change: Callable[[torch.Tensor], torch.Tensor]) -> Segmenter:
    """A copy whose every input first goes through `change`."""
    adapted = copy.deepcopy(segmenter).eval()
    adapted.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
    return adapted


def _distribution(images: np.ndarray) -> np.ndarray:
    """(C, 256) cumulative share of each band's values, nodata (0 in every band) left out."""
    pixels = images[(images > 0).any(axis=-1)]
    counts = np.stack([np.bincount(band, minlength=256) for band in pixels.T])
    return counts.cumsum(axis=1) / max(1, len(pixels))


def _curve(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(256,) the source's level of the same rank as each of the target's, between the levels that
    the source has; both (256,) cumulative shares.
    """
    there = np.diff(source, prepend=0) > 0
    return np.interp(target, source[there], LEVELS[there])


def histogram_matching(
    source: np.ndarray, target: np.ndarray
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The monotone map, a band, from the target city's distribution of values
    to the source cities'.
    """
    pairs = zip(_distribution(source), _distribution(target), strict=True)
    curves = np.stack([_curve(s, t) for s, t in pairs]) / 255
    curves = torch.from_numpy(curves.astype(np.float32))

    def match(images: torch.Tensor) -> torch.Tensor:
        value = (images * 255).round().long().clamp(0, 255)
        band = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
        return curves.to(images.device)[band, value]

    return match


def fourier_matching(
    source: np.ndarray, share: float = 0.01
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Replace the lowest `share` of frequencies' amplitude by the source's mean, keep every phase
    (FDA, equation 3).

    The source's crops should have the size of the windows to come: other sizes
    interpolate its amplitudes.
    """
    half = max(1, int(min(source.shape[1:3]) * share))
    spectra = [
        torch.fft.fft2(b, norm="forward").abs() for b in batches(source, 16, torch.device("cpu"))
    ]
    centred = torch.fft.fftshift(torch.cat(spectra).mean(0, keepdim=True), dim=(2, 3))
    row, column = source.shape[1] // 2, source.shape[2] // 2
    low = centred[..., row - half : row + half + 1, column - half : column + half + 1]

    def match(images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        here = max(1, int(min(height, width) * share))
        spectrum = torch.fft.fftshift(torch.fft.fft2(images.float(), norm="forward"), dim=(2, 3))
        rows, columns = (slice(side // 2 - here, side // 2 + here + 1) for side in (height, width))
        wanted = F.interpolate(
            low.to(images), size=(2 * here + 1,) * 2, mode="bilinear", align_corners=True
        )
        spectrum[..., rows, columns] = torch.polar(
            wanted.float().expand(len(images), -1, -1, -1), spectrum[..., rows, columns].angle()
        )
        return torch.fft.ifft2(
            torch.fft.ifftshift(spectrum, dim=(2, 3)), norm="forward"
        ).real.clamp(0, 1)

    return match


def batch_norms(segmenter: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    layers = [m for m in segmenter.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [m for m in layers if m.track_running_stats]


@contextmanager
def normalising_by_batch(layers: list[nn.modules.batchnorm._BatchNorm]):
    """Batch norm normalises by each batch and keeps its statistics; a layer that pools a single
    image to a single pixel has no variance to measure there, and goes on by those it has.
    """

    def choose(layer, inputs) -> None:
        layer.train(inputs[0][:, 0].numel() > 1)

    hooks = [layer.register_forward_pre_hook(choose) for layer in layers]
    try:
        yield
    finally:
        for layer, hook in zip(layers, hooks, strict=True):
            hook.remove()
            layer.eval()


@torch.no_grad()
def adabn(segmenter: Segmenter, target: np.ndarray, batch_size: int = 8) -> Segmenter:
    """Batch norm's running mean and variance become the target's: the mean over its batches, of
    nearly equal size.
    """
    adapted = copy.deepcopy(segmenter).eval()
    layers, on = batch_norms(adapted), next(adapted.buffers()).device
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.get_buffer("num_batches_tracked").zero_()  # the first batch replaces what was known
        layer.momentum = None  # a cumulative mean instead of an exponential one
    with normalising_by_batch(layers):
        for part in np.array_split(target, -(-len(target) // batch_size)):
            for batch in batches(part, batch_size, on):
                with autocast(on):
                    adapted(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return adapted


def _descend(segmenter, weights, target, loss, steps, learning_rate, batch_size, seed) -> None:
    """`steps` of Adam on `weights`; `loss` takes logits and the drawn tiles' indices."""
    on, rng = next(segmenter.buffers()).device, np.random.default_rng(seed)
    optimizer = torch.optim.Adam(weights, learning_rate)
    for weight in weights:
        weight.requires_grad_(True)
    for _ in range(steps):
        drawn = rng.choice(len(target), min(batch_size, len(target)), replace=False)
        with autocast(on):
            logits = segmenter(to_float(torch.from_numpy(target[drawn]).to(on)))
        optimizer.zero_grad()
        loss(logits.float(), drawn).backward()
        optimizer.step()
    for weight in weights:
        weight.requires_grad_(False)


def entropy_minimisation(
    segmenter: Segmenter,
    target: np.ndarray,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> Segmenter:
    """TENT: batch norm normalises by the target's batches, its scales and
    shifts minimise the mean entropy.
    """
    adapted = adabn(segmenter, target, batch_size)
    layers = batch_norms(adapted)
    weights = [w for layer in layers if layer.affine for w in (layer.weight, layer.bias)]
    if not weights:
        return adapted

    def entropy(logits: torch.Tensor, _) -> torch.Tensor:
        return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()

    with normalising_by_batch(layers):
        _descend(adapted, weights, target, entropy, steps, learning_rate, batch_size, seed)
    return adabn(adapted, target, batch_size)


def self_training(
    segmenter: Segmenter,
    target: np.ndarray,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    share: float = 0.5,
) -> Segmenter:
    """After AdaBN, learn the most confident `share` of each predicted class;
    the other pixels are ignored.
    """
    adapted = adabn(segmenter, target, batch_size)
    pseudo = torch.from_numpy(confident_labels(building_probability(adapted, target), share)).long()

    def cross_entropy(logits: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        building = torch.cat([logits[:, :1], logits[:, 1:].logsumexp(1, keepdim=True)], 1)
        return F.cross_entropy(building, pseudo[drawn].to(logits.device), ignore_index=IGNORE)

    _descend(
        adapted,
        list(adapted.parameters()),
        target,
        cross_entropy,
        steps,
        learning_rate,
        batch_size,
        seed,
    )
    return adapted.eval()


def confident_labels(probability: np.ndarray, share: float) -> np.ndarray:
    """Pseudo-labels uint8: of each predicted class the most confident `share`, 255 elsewhere
    (CBST, equation 5).
    """
    labels = np.full(probability.shape, IGNORE, np.uint8)
    building = probability > 0.5
    for value, mask, confidence in ((1, building, probability), (0, ~building, 1 - probability)):
        if mask.any():
            labels[mask & (confidence >= np.quantile(confidence[mask], 1 - share))] = value
    return labels
