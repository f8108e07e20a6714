"""How long training will take, before it begins: a few steps on few pixels,
timed, times what is asked for.
"""

import time

import torch

from pipeline.networks.models import build_model
from pipeline.networks.precision import autocast, channels_last, device
from pipeline.params import Params
from pipeline.training.adversarial import adversarial_loss
from pipeline.training.losses import build_loss

# of the batch that is timed: the time of a larger one grows with its pixels
PIXELS = {"cpu": 2**16, "cuda": 2**20}
WARM, TIMED = 1, 2  # steps; the first one fills caches


def seconds_a_step(params: Params) -> float:
    """Seconds that this machine takes for a training step (batch_size crops), by steps of fewer
    and smaller crops.
    """
    train, on = params.train, device()
    side = min(train.crop, 128)
    batch = max(2, min(train.batch_size, PIXELS[on.type] // side**2))
    model = train.model.model_copy(update={"encoder_weights": None})
    segmenter = channels_last(build_model(model, len(params.tile.bands)).to(on))
    images = torch.rand(batch, len(params.tile.bands), side, side, device=on)
    labels = (images[:, 0] > 0.5).long()
    loss = build_loss(train.loss.model_dump())
    for step in range(WARM + TIMED):
        if step == WARM:
            began = _now(on)
        segmenter.zero_grad()
        with autocast(on, train.precision):
            if train.adversarial.method == "none":
                found = loss(segmenter(images), labels)
            else:
                found, _ = adversarial_loss(segmenter, images, labels, loss, train.adversarial, 1.0)
        found.backward()
    return (_now(on) - began) / TIMED * (train.batch_size * train.crop**2) / (batch * side**2)


def _now(on: torch.device) -> float:
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    return time.perf_counter()


def forecast(params: Params, seconds: float) -> tuple[float, float]:
    """Seconds of `train` (models/all), and of `dvc repro` with it: a fold for each city, none where
    there is but one.

    seconds: of a step.
    """
    t, cities = params.train, len(params.fetch.cities)
    whole = t.epochs * t.steps_per_epoch * seconds
    fold = (params.generalize.epochs or t.epochs) * t.steps_per_epoch * seconds
    return whole, whole + (cities * fold if cities > 1 else 0)
