"""Self-supervised pre-training on unlabelled tiles: masked-image modelling for a
convolutional segmenter.

Squares of each tile are hidden and the network paints them in (SimMIM, Xie et al., CVPR 2022: raw
pixels, L1 on what was hidden, one light head; the square's mean colour stands for the learned mask
token). The network is the segmenter itself with one output a band, so encoder and decoder are both
trained; its last layer is not kept.

The result is a model folder: `train.init` starts from it.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from pipeline import params
from pipeline.code import version
from pipeline.console import progress
from pipeline.errors import InputError
from pipeline.networks.card import Card, read_card
from pipeline.networks.models import Segmenter, build_model, save_model
from pipeline.networks.precision import autocast, channels_last, device
from pipeline.storage import fingerprint
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_float
from pipeline.training.steps import batches_of_several, one_cycle


def hide(images: torch.Tensor, square: int, share: float, generator: torch.Generator):
    """Replace about `share` of each image's squares by its mean colour: (images, mask), the
    mask (N, 1, H, W).
    """
    n, _, height, width = images.shape
    rows, columns = -(-height // square), -(-width // square)
    coarse = (torch.rand(n, 1, rows, columns, generator=generator) < share).to(images)
    mask = coarse.repeat_interleave(square, 2).repeat_interleave(square, 3)[..., :height, :width]
    return images * (1 - mask) + images.mean((2, 3), keepdim=True) * mask, mask


def pretrain(p: params.Params, cities: list[CityTiles], folder: Path) -> Card:
    """Train train.model on the training scenes' images as `pretrain` says; write
    `folder`, return its card.

    The same call again returns what is there. No label is read: crops come from
    CityTiles.unlabelled. The card's history holds the mean loss of each tenth.
    """
    options, model, channels = p.pretrain, p.train.model, cities[0].channels
    key = fingerprint(
        version("pretrain"), options.model_dump(), model.model_dump(), [c.about for c in cities]
    )
    if (Path(folder) / "model.json").exists() and (done := read_card(folder)).fingerprint == key:
        return done
    torch.manual_seed(options.seed)
    pool = np.concatenate(
        [c.unlabelled("train", options.tiles, options.crop, options.seed) for c in cities]
    )
    if not len(pool):
        names = ", ".join(c.city for c in cities)
        raise InputError(
            f"pretrain: no training scene of {names} shows anything but nodata; add scenes"
        )
    painter = build_model(model.model_copy(update={"classes": max(1, channels - 1)}), channels)
    # those come with a normalisation of their own
    if model.encoder_weights != "imagenet" or channels != 3:
        pixels = pool.reshape(-1, channels) / 255
        painter.set_normalisation(pixels.mean(0), pixels.std(0))
    on = device()
    channels_last(painter.to(on)).train()
    with batches_of_several(
        "pretrain.batch_size", f"{model.architecture} of {len(pool)} crops in all"
    ):
        losses = _paint(painter, pool, options, on)
    segmenter = _with_new_head(
        painter.cpu(), build_model(model.model_copy(update={"encoder_weights": None}), channels)
    )
    tenth = max(1, len(losses) // 10)
    card = Card(  # it has seen no city's labels: a fold may start from it whatever city is held out
        model=model,
        channels=channels,
        bands=p.tile.bands,
        classes=model.classes,
        gsd=cities[0].gsd,
        images=[c.city for c in cities],
        params=p.model_dump(mode="json", include={"tile", "pretrain"}),
        metrics={
            "first_loss": float(np.mean(losses[:tenth])),
            "last_loss": float(np.mean(losses[-tenth:])),
        },
        fingerprint=key,
        history=[float(np.mean(losses[i : i + tenth])) for i in range(0, len(losses), tenth)],
    )
    save_model(folder, segmenter, card)
    return card


def check_place(folder: Path) -> None:
    """Raise InputError where writing `folder` would take away what is not pre-trained: it is
    replaced as a whole.
    """
    if params.written_by_a_stage(str(folder)):
        raise InputError(
            f"{folder}: a stage writes there, and DVC deletes it; take another, such "
            f"as --out pretrained"
        )
    if not Path(folder).exists() or not any(Path(folder).iterdir()):
        return
    if not (Path(folder) / "model.json").exists() or not read_card(folder).images:
        raise InputError(
            f"{folder}: holds something else than a pre-trained model; take another "
            f"folder, or empty it"
        )


def _paint(
    painter: Segmenter, pool: np.ndarray, options: params.Pretrain, on: torch.device
) -> list[float]:
    rng, generator = (
        np.random.default_rng(options.seed),
        torch.Generator().manual_seed(options.seed),
    )
    optimizer = torch.optim.AdamW(painter.parameters(), options.learning_rate)
    schedule, losses = one_cycle(optimizer, options.learning_rate, options.steps), []
    for step in progress(range(options.steps), "pre-training"):
        drawn = rng.choice(len(pool), min(options.batch_size, len(pool)), replace=False)
        images = to_float(torch.from_numpy(pool[drawn]))
        seen, mask = (x.to(on) for x in hide(images, options.square, options.hidden, generator))
        with autocast(on):
            painted = painter(seen)[:, : images.shape[1]]
        error = F.l1_loss(painted.float(), images.to(on), reduction="none")
        loss = (error * mask).sum() / (mask.sum() * images.shape[1]).clamp_min(1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise _diverged(step, options)
    with torch.no_grad():  # no step looks at what the last one did
        if not painter.eval()(seen).isfinite().all():
            raise _diverged(options.steps, options)
    return losses


def _diverged(step: int, options: params.Pretrain) -> InputError:
    return InputError(
        f"pre-training: the loss is not finite at step {step}; lower pretrain.learning_rate "
        f"({options.learning_rate})"
    )


def _with_new_head(painter: Segmenter, segmenter: Segmenter) -> Segmenter:
    """Copy every weight whose shape fits; the last layer, one output a band in
    the painter, stays random.
    """
    fresh = segmenter.state_dict()
    fitting = {
        k: w for k, w in painter.state_dict().items() if k in fresh and fresh[k].shape == w.shape
    }
    segmenter.load_state_dict({**fresh, **fitting})
    return segmenter
