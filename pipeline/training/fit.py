"""Training a segmenter: Lightning runs the loop, DDP and checkpoints; this module
says what a step is.

`fit` is a function of its parameters, tiles and code: killed at any moment and called again it
resumes from the last epoch's checkpoint and ends with the same weights; changed parameters, tiles
or code never meet an old checkpoint.

Several processes (DDP under torchrun) see the batches of one. Their losses are one process's where
these are means over pixels (see losses.py); batch statistics are shared on GPUs, and each process's
own on CPUs, where torch has no other.
"""

import csv
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import lightning
import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision, TorchCheckpointIO
from lightning.pytorch.plugins.environments import TorchElasticEnvironment

from pipeline.code import version
from pipeline.console import console, duration, progress_bar
from pipeline.errors import InputError
from pipeline.networks.card import Card, read_card
from pipeline.networks.decision import Decision, leading
from pipeline.networks.glance import Glance
from pipeline.networks.models import (
    Segmenter,
    build_model,
    kept_model,
    read_model,
    save_model,
    weights_file,
)
from pipeline.networks.precision import channels_last, choose, depthwise_in_full, device
from pipeline.params import Model, Params, Train
from pipeline.scoring.metrics import buildings, counts, ratio
from pipeline.storage import atomic_file, digest, fingerprint
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_float
from pipeline.training.adversarial import adversarial_loss, overfitting_gap, replay, resume_replay
from pipeline.training.calibration import UNCALIBRATED, calibrate
from pipeline.training.crops import (
    RandomCrops,
    StepSampler,
    WindowGrid,
    WithCity,
    channel_statistics,
    loader,
)
from pipeline.training.glance import threshold_glance, train_glance
from pipeline.training.group_dro import GroupWeights
from pipeline.training.loggers import loggers, tell
from pipeline.training.losses import build_loss, contact_loss
from pipeline.training.steps import batches_of_several, one_cycle
from pipeline.training.style import restyled

CONTACTS = 0.5  # weight of what is learned of contacts beside what is learned of buildings
# train.select: the column of the curve that is meant
SELECTED = {"pooled": "iou", "worst_city": "worst_city_iou"}
LIGHTNING_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed",
}  # fmt: skip


class MixedOnCPU(MixedPrecision):
    """Lightning's bf16, in the arithmetic of pipeline.networks.precision."""

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def forward_context(self) -> Generator[None]:
        with super().forward_context(), depthwise_in_full():
            yield


class SegmentationTraining(lightning.LightningModule):
    def __init__(self, segmenter: Segmenter, train: Train, cities: int):
        super().__init__()
        self.segmenter, self.train_params, self.cities = segmenter, train, cities
        self.weights = GroupWeights(cities, train.group_dro) if train.group_dro else None
        self.loss = build_loss(train.loss.model_dump())
        self.history: list[dict] = []
        self.losses: list[torch.Tensor] = []
        self.before, self.started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since training began, the time between a kill and the next start left out."""
        return self.before + time.perf_counter() - self.started

    def configure_model(self) -> None:
        if self.train_params.compile:
            self.segmenter.compile()

    def configure_optimizers(self):
        t, total = self.train_params, self.train_params.epochs * self.train_params.steps_per_epoch
        weights = [p for p in self.segmenter.parameters() if p.requires_grad]
        # one kernel a step; fp16's scaler cannot clip with it
        fused = self.trainer.precision != "16-mixed"
        match t.optimizer:
            case "sgd":
                nesterov = t.momentum > 0
                optimizer = torch.optim.SGD(
                    weights,
                    t.learning_rate,
                    t.momentum,
                    weight_decay=t.weight_decay,
                    nesterov=nesterov,
                    fused=fused,
                )
            case "adam":
                optimizer = torch.optim.Adam(
                    weights, t.learning_rate, weight_decay=t.weight_decay, fused=fused
                )
            case "adamw":
                optimizer = torch.optim.AdamW(
                    weights, t.learning_rate, weight_decay=t.weight_decay, fused=fused
                )
        match t.schedule:
            case "constant":
                return optimizer
            case "cosine":
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
            case "one_cycle":
                schedule = one_cycle(optimizer, t.learning_rate, total)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        # Lightning's own refuses fused optimisers for the sake of a scaler they do not have
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def training_step(self, batch, _):
        self.check_loss()
        # Dropout, noise and attacks draw from a generator that any restart reaches again.
        torch.manual_seed(
            hash((self.train_params.seed, self.global_step, self.global_rank)) % 2**63
        )
        t, images, labels = self.train_params, to_float(batch[0]), batch[1].long()
        if t.style:
            images = restyled(images, t.style).clamp(0, 1)
        if t.noise:  # of randomised smoothing: unclipped, as the certificate draws it
            images = images + t.noise * torch.randn_like(images)
        of_batch = self.loss
        if self.weights:
            of_batch = partial(self.weights.loss, self.loss, group=batch[-1])
        if t.adversarial.method == "none":
            logits = self.segmenter(images, contacts=t.model.contact > 0)
            loss = of_batch(logits[:, : t.model.classes + 1], labels)
        else:
            done = self.global_step / (t.epochs * t.steps_per_epoch)
            loss, logs = adversarial_loss(
                self.segmenter, images, labels, of_batch, t.adversarial, done
            )
            self.log_dict({key: float(value) for key, value in logs.items()})
        if t.model.contact:
            if t.adversarial.method != "none":
                logits = self.segmenter(images, contacts=True)
            loss = loss + CONTACTS * contact_loss(self.loss, logits[:, -1:], batch[2].long())
        self.losses.append(loss.detach())
        return loss

    def check_loss(self) -> None:
        """Raise InputError where the loss of the step before is not finite: to ask for this one's
        would empty a GPU's queue at every step.
        """
        if self.losses and not torch.isfinite(self.losses[-1]):
            raise self.diverged("the loss is", self.global_step - 1)

    def diverged(self, what: str, step: int) -> InputError:
        return InputError(
            f"training: {what} not finite at step {step}; lower train.learning_rate "
            f"({self.train_params.learning_rate}) or set train.clip_gradient"
        )

    def on_validation_epoch_start(self) -> None:
        self.counts = torch.zeros(4, self.cities, dtype=torch.float64, device=self.device)

    def validation_step(self, batch, index) -> None:
        labels, city = batch[1], batch[-1]
        if index == 0:
            self.first = batch[:2]
        logits = self.segmenter(to_float(batch[0]))
        intersection, union = counts(leading(logits), labels)
        failed = (~logits.isfinite()).flatten(1).any(1)
        of_tiles = torch.stack(
            [n.double() for n in (intersection, union, buildings(labels), failed)]
        )
        self.counts.index_add_(1, city, of_tiles)

    def on_validation_epoch_end(self) -> None:
        self.check_loss()
        intersection, union, truth, failed = self.trainer.strategy.reduce(
            self.counts, reduce_op="sum"
        ).cpu()
        if failed.any():  # the last step's loss is never looked at
            raise self.diverged("the network's answer is", self.global_step)
        loss = (
            torch.stack(self.losses).mean() if self.losses else torch.zeros((), device=self.device)
        )
        loss = self.trainer.strategy.reduce(loss.float(), reduce_op="mean")
        self.losses.clear()
        iou = ratio(intersection.sum(), union.sum()) if truth.any() else None
        worst = min((intersection / union)[truth > 0].tolist(), default=None)
        record = {
            "epoch": self.current_epoch,
            "loss": float(loss),
            "iou": iou,
            "worst_city_iou": worst,
        }
        chosen = record[SELECTED[self.train_params.select]]
        # Where validation knows no building no epoch is better than the one after:
        # the last is kept.
        score = float(self.current_epoch) if chosen is None else chosen
        self.log("iou", score, prog_bar=True, sync_dist=False, logger=False)
        logged = self.trainer.callback_metrics
        record |= {k: float(v) for k, v in logged.items() if k not in {"iou", "loss"}}
        if self.train_params.adversarial.method != "none":
            record |= self.overfitting()
        self.history.append(
            {**record, "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]}
        )
        if self.trainer.is_global_zero:
            write_history(Path(self.trainer.default_root_dir) / "curve.csv", self.history)
            tell(self.trainer, self.history[-1])

    def overfitting(self) -> dict[str, float]:
        """IoU under FGSM and PGD of one validation batch; needs gradients,
        which Lightning turns off here.
        """
        with torch.inference_mode(False):
            images, labels = (part.clone() for part in self.first)
            return overfitting_gap(
                self.segmenter, to_float(images), labels.long(), self.train_params.adversarial
            )

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["history"], checkpoint["replay"] = self.history, replay(self.segmenter)
        checkpoint["seconds"] = self.seconds
        checkpoint["group_weights"] = self.weights and self.weights.q

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.history, self.before = checkpoint["history"], checkpoint["seconds"]
        resume_replay(self.segmenter, checkpoint["replay"])
        if self.weights:
            self.weights.q = checkpoint["group_weights"]


def write_history(path: Path, history: list[dict]) -> None:
    """The learning curve as CSV: a row an epoch."""
    with atomic_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, history[-1])
        writer.writeheader()
        writer.writerows(history)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints by way of their own folder: Lightning's go through the
    system's, where a kill leaves them.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options=None) -> None:
        with atomic_file(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class Bar(Callback):
    """What the first process tells of the run: how long it will take, steps and
    time left, the validation IoU.
    """

    WARM, TIMED = 5, 15  # steps that are slower than the rest, and steps whose time is taken

    def on_train_start(self, trainer, pl_module) -> None:
        train = pl_module.train_params
        self.first, self.total = trainer.global_step, train.epochs * train.steps_per_epoch
        self.bar = progress_bar()
        if trainer.is_global_zero:
            self.bar.start()
        self.task = self.bar.add_task("training", total=self.total, completed=self.first)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        known = pl_module.history and pl_module.history[-1]["iou"] is not None
        iou = f", validation IoU {pl_module.history[-1]['iou']:.3f}" if known else ""
        self.bar.update(self.task, completed=trainer.global_step, description=f"training{iou}")
        done, left = trainer.global_step - self.first, self.total - trainer.global_step
        if done == self.WARM:
            self.since = time.perf_counter()
        if done == self.WARM + self.TIMED and left > done and trainer.is_global_zero:
            seconds = left * (time.perf_counter() - self.since) / self.TIMED
            console.print(
                f"training: {left} steps to go, about {duration(seconds)} and the "
                f"validations between"
            )

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.is_global_zero and not console.is_terminal:
            last = pl_module.history[-1]
            known = "none, no building there" if last["iou"] is None else f"{last['iou']:.3f}"
            console.print(
                f"epoch {last['epoch'] + 1} of {pl_module.train_params.epochs}: loss "
                f"{last['loss']:.3f}, "
                f"validation IoU {known}"
            )

    def teardown(self, trainer, pl_module, stage) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()


def processes() -> tuple[int, int]:
    """This process's rank and how many train together: (0, 1) but under torchrun."""
    if not TorchElasticEnvironment.detect():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _start(train: Train) -> list:
    """What training starts from, card and digests: files that change under the same path make
    another training.
    """
    digests = []
    for path in (train.init, train.model.encoder_weights):
        if path not in (None, "imagenet") and (file := weights_file(path)).is_file():
            digests.append(digest(file))
    return [read_card(train.init).model_dump(mode="json") if train.init else None, digests]


def _segmenter(params: Params, cities: list[CityTiles]) -> Segmenter:
    train, channels = params.train, cities[0].channels
    if not train.init:
        segmenter = build_model(train.model, channels)
        if train.model.encoder_weights != "imagenet" or channels != 3:
            segmenter.set_normalisation(*channel_statistics(cities))
        # dividing by a deviation would multiply its constant
        if train.model.architecture == "lipschitz":
            segmenter.set_normalisation(torch.full((channels,), 0.5), torch.ones(channels))
        return segmenter
    card = check_start(train.init, train.model, channels)
    if not math.isclose(card.gsd, cities[0].gsd, rel_tol=0.01):
        console.print(
            f"warning: train.init: {train.init} knows pixels of {card.gsd:g} m, the tiles' are "
            f"{cities[0].gsd:g} m; " "set tile.gsd to match, or expect it to learn the scale anew",
            style="yellow", markup=False,
        )  # fmt: skip
    return read_model(train.init).requires_grad_(True).train()


def check_start(init: str, model: Model, channels: int) -> Card:
    """The card of the model to start from. Raises InputError where it is
    another network than train.model.
    """
    card = read_card(init)
    wanted = model.model_dump(exclude={"encoder_weights"})
    different = [k for k, v in wanted.items() if getattr(card.model, k) != v]
    if different or card.channels != channels:
        what = (
            ", ".join(f"{k} {getattr(card.model, k)!r}" for k in different)
            or f"{card.channels} channels"
        )
        raise InputError(
            f"train.init: {init} has {what}; set train.model to match, or start from another model"
        )
    return card


def inherited(train: Train) -> list[str]:
    """Cities whose labels the model that training starts from has seen: one that is held out
    must not be among them.
    """
    if not train.init:
        return []
    start = read_card(train.init)
    return sorted({*start.cities, *start.inherited})


def fit(
    params: Params, cities: list[CityTiles], folder: Path, *, work: Path, name: str = "all"
) -> Card:
    """Train on the `train` regions of `cities`, keep the weights of the best
    validation IoU, write `folder`.

    `work` holds the checkpoint while training lasts. Returns the model card. Under torchrun every
    process calls it. Raises InputError on parameters that cannot be trained.
    """
    train = params.train
    for key in ("channels", "gsd", "classes"):
        if len({getattr(city, key) for city in cities}) > 1:
            raise InputError(
                f"the cities' tiles differ in {key}; run the tile stage for all of them again"
            )
    if cities[0].classes != train.model.classes:
        raise InputError(
            f"the tiles hold {cities[0].classes} classes, but train.model.classes is "
            f"{train.model.classes}; "
            "run the tile stage again"
        )
    for split in ("train", "validation"):
        if not any(city.of_split(split) for city in cities):
            names = ", ".join(city.city for city in cities)
            raise InputError(
                f"no {split} scenes in {names}; change tile.validation and tile.test, or add scenes"
            )
    rank, world = processes()
    if train.batch_size % world:
        raise InputError(
            f"train.batch_size is {train.batch_size}; {world} processes cannot share it evenly"
        )

    key = fingerprint(
        train.model_dump(exclude={"loggers"}),
        [city.about for city in cities],
        version("train"),
        _start(train),
    )
    work = Path(work) / f"train-{name}-{key}"
    work.parent.mkdir(parents=True, exist_ok=True)
    # a killed DVC may leave its trainer behind
    with FileLock(work.parent / f"train-{name}-{rank}.lock"):
        done = kept_model(folder, key)
        card = done.card if done else _fit(params, cities, Path(folder), work, rank, world, key)
        if rank == 0:  # also what a run left that was killed just here
            shutil.rmtree(work, ignore_errors=True)
    return card


def _whole(checkpoint: Path) -> bool:
    """Whether there is a checkpoint to resume from; one that a failing disk
    damaged is as good as none.
    """
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception:  # torch meets damage with any of half a dozen exceptions
        return False
    return True


def _fit(
    params: Params,
    cities: list[CityTiles],
    folder: Path,
    work: Path,
    rank: int,
    world: int,
    key: str,
) -> Card:
    train, on = params.train, device()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    lightning.seed_everything(train.seed, verbose=False)
    segmenter = _segmenter(params, cities)
    module = SegmentationTraining(channels_last(segmenter), train, len(cities))
    checkpoint = ModelCheckpoint(work, filename="best", monitor="iou", mode="max", save_last=True)
    trainer = _trainer(train, on, work, world, checkpoint, loggers(train.loggers, folder.name))
    last = work / "last.ckpt"
    resumed = _whole(last)
    loaders = _loaders(train, cities, on, rank, world)
    try:
        with batches_of_several("train.batch_size", train.model.architecture):
            trainer.fit(
                module,
                *loaders,
                ckpt_path=last if resumed else None,
                weights_only=True if resumed else None,
            )
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise stopped(last) from None
    if trainer.interrupted:
        raise stopped(last)
    seconds = module.seconds

    if rank == 0:
        best = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)[
            "state_dict"
        ]
        segmenter.load_state_dict({k.removeprefix("segmenter."): w for k, w in best.items()})
        calibration = calibrate(segmenter.eval().to(on), cities, train.crop)
        segmenter.decision = Decision(calibration["temperature"], calibration["threshold"])
        glance, known = _glance(segmenter, cities, train)
    else:
        calibration, glance, known = UNCALIBRATED, None, None
    card = Card(
        model=train.model,
        channels=cities[0].channels,
        bands=params.tile.bands,
        classes=train.model.classes,
        gsd=cities[0].gsd,
        cities=[c.city for c in cities],
        inherited=inherited(train),
        normalisation={
            "mean": segmenter.mean.flatten().tolist(),
            "std": segmenter.std.flatten().tolist(),
        },
        **calibration,
        glance=known,
        params=params.model_dump(mode="json", include={"tile", "train"}),
        metrics=kept_epoch(module.history, SELECTED[train.select]),
        history=module.history,
        training={
            "seconds": round(seconds, 1),
            "resumed": resumed,
            "device": str(on.type),
            "precision": choose(train.precision, on),
            "processes": world,
            "torch": torch.__version__,
        },
        fingerprint=key,
    )
    if rank == 0:
        save_model(folder, segmenter, card, glance)
    trainer.strategy.barrier()
    return card


def _glance(
    segmenter: Segmenter, cities: list[CityTiles], train: Train
) -> tuple[Glance | None, dict | None]:
    """The glance that train.glance asks for, and what the card says of it; none where it cannot
    say what it loses.
    """
    if not train.glance:
        return None, None
    glance = train_glance(cities, train, next(segmenter.buffers()).device)
    known = threshold_glance(glance, segmenter, cities, train.crop)
    return (glance, known) if known else (None, None)


def kept_epoch(history: list[dict], selected: str) -> dict:
    """What is known of the epoch whose weights are kept; the last where
    validation knows no building.
    """
    known = [h for h in history if h[selected] is not None] or history[-1:]
    best = max(known, key=lambda h: h[selected] or 0.0)
    return {"validation_iou": best["iou"], "validation_worst_city_iou": best["worst_city_iou"]}


def stopped(checkpoint: Path) -> KeyboardInterrupt:
    """Ctrl-C, which says so where nothing is kept yet."""
    if checkpoint.exists():
        return KeyboardInterrupt()
    return KeyboardInterrupt(
        "nothing is kept before the first epoch ends, so the same command begins anew"
    )


def _loaders(train: Train, cities: list[CityTiles], on: torch.device, rank: int, world: int):
    """Batches of training crops and of validation windows, this process's share of them."""
    cuda = on.type == "cuda"
    workers = train.workers or (min(12, os.cpu_count() or 1) if cuda else 0)
    crops = RandomCrops(
        cities, train.crop, train.seed, train.augment, train.city_weighting, train.model.contact
    )
    steps = StepSampler(train.batch_size, train.steps_per_epoch, rank, world)
    windows = WindowGrid(cities, "validation", train.crop)
    if len(windows) < world:
        raise InputError(
            f"validation has {len(windows)} windows of train.crop {train.crop} for {world} "
            f"processes; start fewer"
        )
    # as many for each process: they wait for each other
    looks = -(-len(windows) // (train.batch_size * world)) * world
    batches = [list(batch) for batch in np.array_split(range(len(windows)), looks)]
    training, validation = (WithCity(part, cities) for part in (crops, windows))
    return loader(training, steps, workers, cuda), loader(validation, batches[rank::world], 0, cuda)


def _trainer(
    train: Train, on: torch.device, work: Path, world: int, checkpoint: Callback, listeners: list
) -> lightning.Trainer:
    callbacks: list[Callback] = [checkpoint, Bar()]
    if train.patience:
        callbacks.append(EarlyStopping("iou", patience=train.patience, mode="max"))
    if train.ema:
        callbacks.append(EMAWeightAveraging(decay=train.ema, use_buffers=True))
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if world > 1 else 1
    precision = LIGHTNING_PRECISION[choose(train.precision, on)]
    own = [MixedOnCPU()] if (on.type, precision) == ("cpu", "bf16-mixed") else []
    return lightning.Trainer(
        accelerator="gpu" if on.type == "cuda" else "cpu",
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        sync_batchnorm=world > 1 and on.type == "cuda",
        precision=None if own else precision,
        max_epochs=train.epochs,
        gradient_clip_val=train.clip_gradient or None,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints(), *own],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        logger=listeners or False,
        log_every_n_steps=1,
        default_root_dir=work,
    )
