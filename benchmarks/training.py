"""Training loop / bare steps: what loading, augmentation, validation bookkeeping
and Lightning cost.

    python -m benchmarks.training [--processes 2] [--gpu]

--processes 2: two processes of torchrun against two of bare DistributedDataParallel, at the same
global batch. --gpu: a U-Net ResNet-34, 32 crops of 512², bf16, compiled, where there is a GPU.

Both sides run the same network, batch, precision and optimiser; the bare steps reuse one batch in
memory. The two are interleaved and repeated, so that a busy machine slows both.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.demo_tiles import demo_params, demo_tiles
from benchmarks.ratio import arguments_of, arithmetic, cannot, medians, report
from pipeline.networks.models import build_model
from pipeline.networks.precision import autocast, device
from pipeline.tiles.tensors import to_float
from pipeline.training.crops import RandomCrops
from pipeline.training.fit import fit
from pipeline.training.losses import build_loss

STEPS, ROUNDS, WARM, GOAL = 30, 3, 3, 0.95
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def bare(params, cities) -> float:
    """Images a second of forward, backward and step on a batch that lies in memory."""
    on, train = device(), params.train
    model = build_model(train.model, 3).to(on, memory_format=torch.channels_last).train()
    if WORLD > 1:
        model = DistributedDataParallel(model)
    if train.compile:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), train.learning_rate, fused=True)
    crops = RandomCrops(cities, train.crop, RANK, "none")
    pairs = [crops[i] for i in range(train.batch_size // WORLD)]
    images, labels = (torch.stack(part).to(on) for part in zip(*pairs, strict=True))
    images, labels, loss = to_float(images), labels.long(), build_loss(train.loss.model_dump())
    for step in range(STEPS + WARM):
        if step == WARM:
            start = time.perf_counter()
        with autocast(on):
            value = loss(model(images), labels)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_gradient)
        optimizer.step()
    value.item()
    return STEPS * train.batch_size / (time.perf_counter() - start)


def one_image(params) -> None:
    """Forward and backward of one crop, neither compiled nor on a card: what
    arithmetic an image takes.
    """
    crop = torch.rand(1, 3, params.train.crop, params.train.crop)
    build_model(params.train.model, 3).train()(crop).sum().backward()


def loop(params, cities, folder: Path) -> float:
    """Images a second of `fit`, validation and saving not counted: the
    difference of a long and a short run.
    """
    seconds = []
    for steps in (WARM, STEPS + WARM):
        train = params.train.model_copy(update={"epochs": 1, "steps_per_epoch": steps})
        part = folder / f"{steps}"
        start = time.perf_counter()
        fit(params.model_copy(update={"train": train}), cities, part / "model", work=part / "work")
        seconds.append(time.perf_counter() - start)
    return STEPS * params.train.batch_size / (seconds[1] - seconds[0])


def main(options: argparse.Namespace, folder: Path) -> None:
    params = demo_params()
    if options.gpu:
        model = params.train.model.model_copy(update={"encoder": "resnet34"})
        large = {"model": model, "crop": 512, "batch_size": 32, "compile": True}
        params = params.model_copy(update={"train": params.train.model_copy(update=large)})
    cities = demo_tiles(params)
    pairs = [(loop(params, cities, folder / f"{i}"), bare(params, cities)) for i in range(ROUNDS)]
    ours, limit, ratio = medians(pairs)
    if RANK == 0:
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        measured = f"{ours:.1f} and {limit:.1f} images/s, {arithmetic(lambda: one_image(params), ours, card)}"
        report(options.what, ratio, GOAL, measured)


if __name__ == "__main__":
    parser = arguments_of(__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    where = ", GPU" * options.gpu or f", {options.processes} processes" * (options.processes > 1)
    options.what = f"training loop / steps on tensors in memory{where}"
    if options.gpu and not torch.cuda.is_available():
        cannot(options.what, GOAL, "no GPU")
    if options.processes > WORLD:  # not under torchrun yet
        demo_tiles(demo_params())  # before two processes want to make them
        with tempfile.TemporaryDirectory() as folder:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command = [
                *torchrun,
                f"--nproc-per-node={options.processes}",
                "-m",
                "benchmarks.training",
                *sys.argv[1:],
            ]
            sys.exit(
                subprocess.run(command, env={**os.environ, "BENCHMARK_FOLDER": folder}).returncode
            )
    if WORLD > 1:
        main(options, Path(os.environ["BENCHMARK_FOLDER"]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(options, Path(folder))
