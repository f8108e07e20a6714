"""Training loop / bare steps: what loading, augmentation, validation bookkeeping and Lightning cost.

    python -m benchmarks.training

Both sides run the same network, batch, precision and optimiser; the bare steps reuse one batch in memory. The two are
interleaved and repeated, so that a busy machine slows both.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.demo_tiles import demo_params, demo_tiles
from benchmarks.ratio import report
from pipeline.learning.crops import RandomCrops, to_float
from pipeline.learning.losses import build_loss
from pipeline.learning.models import build_model
from pipeline.learning.precision import autocast, device
from pipeline.learning.training import fit

STEPS, ROUNDS = 30, 3


def bare(params, cities) -> float:
    """Images a second of forward, backward and step on a batch that lies in memory."""
    on, train = device(), params.train
    model = build_model(train.model, 3).to(on, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), train.learning_rate)
    crops = RandomCrops(cities, train.crop, 0, "none")
    pairs = [crops[i] for i in range(train.batch_size)]
    images, labels = (torch.stack(part).to(on) for part in zip(*pairs, strict=True))
    images, labels, loss = to_float(images), labels.long(), build_loss(train.loss)
    for step in range(STEPS + 3):
        if step == 3:
            start = time.perf_counter()
        with autocast(on):
            value = loss(model(images), labels)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_gradient)
        optimizer.step()
    value.item()
    return STEPS * train.batch_size / (time.perf_counter() - start)


def loop(params, cities) -> float:
    """Images a second of `fit`, validation and saving not counted: the difference of a long and a short run."""
    seconds = []
    for steps in (3, STEPS + 3):
        train = params.train.model_copy(update={"epochs": 1, "steps_per_epoch": steps})
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            fit(params.model_copy(update={"train": train}), cities, Path(folder) / "m", work=Path(folder) / "w")
            seconds.append(time.perf_counter() - start)
    return STEPS * params.train.batch_size / (seconds[1] - seconds[0])


if __name__ == "__main__":
    params = demo_params()
    cities = demo_tiles(params)
    pairs = [(loop(params, cities), bare(params, cities)) for _ in range(ROUNDS)]
    ratio = statistics.median(a / b for a, b in pairs)
    ours, limit = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    report("training loop / steps on tensors in memory", ratio, 0.95, f"{ours:.1f} and {limit:.1f} images/s")
