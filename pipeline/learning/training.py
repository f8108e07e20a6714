"""Training a segmenter: Lightning runs the loop, DDP and checkpoints; this module says what a step is.

`fit` is a function of its parameters, tiles and code: killed at any moment and called again it resumes from the last
epoch's checkpoint and ends with the same weights; changed parameters, tiles or code never meet an old checkpoint.
"""

import json
import logging
import os
import shutil
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.environments import TorchElasticEnvironment

from pipeline.console import progress_bar
from pipeline.errors import InputError
from pipeline.geo.scene import IGNORE
from pipeline.geo.tiles import CityTiles
from pipeline.learning.adversarial import adversarial_loss, overfitting_gap, replay, resume_replay
from pipeline.learning.calibration import UNCALIBRATED, calibrate
from pipeline.learning.crops import RandomCrops, StepSampler, WindowGrid, channel_statistics, loader, to_float
from pipeline.learning.losses import build_loss
from pipeline.learning.models import (
    IMAGENET_MEAN,
    Segmenter,
    build_model,
    kept_model,
    load_model,
    read_card,
    save_model,
)
from pipeline.learning.precision import choose, device
from pipeline.params import Params, Train
from pipeline.storage import atomic_file, fingerprint

LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class SegmentationTraining(lightning.LightningModule):
    def __init__(self, segmenter: Segmenter, train: Train):
        super().__init__()
        self.segmenter, self.train_params = segmenter, train
        self.loss = build_loss(train.loss)
        self.history: list[dict] = []
        self.losses: list[torch.Tensor] = []

    def configure_model(self) -> None:
        if self.train_params.compile:
            self.segmenter.compile()

    def configure_optimizers(self):
        t, total = self.train_params, self.train_params.epochs * self.train_params.steps_per_epoch
        weights = [p for p in self.segmenter.parameters() if p.requires_grad]
        fused = self.trainer.precision != "16-mixed"  # one kernel a step; fp16's scaler cannot clip with it
        match t.optimizer:
            case "sgd":
                nesterov = t.momentum > 0
                optimizer = torch.optim.SGD(
                    weights, t.learning_rate, t.momentum, weight_decay=t.weight_decay, nesterov=nesterov, fused=fused
                )
            case "adam":
                optimizer = torch.optim.Adam(weights, t.learning_rate, weight_decay=t.weight_decay, fused=fused)
            case "adamw":
                optimizer = torch.optim.AdamW(weights, t.learning_rate, weight_decay=t.weight_decay, fused=fused)
        match t.schedule:
            case "constant":
                return optimizer
            case "cosine":
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
            case "one_cycle":
                schedule = torch.optim.lr_scheduler.OneCycleLR(
                    optimizer, t.learning_rate, total_steps=total, pct_start=0.2
                )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        if gradient_clip_val:  # Lightning's own refuses fused optimisers for the sake of a scaler they do not have
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def training_step(self, batch, _):
        # Dropout, noise and attacks draw from a generator that any restart reaches again.
        torch.manual_seed(hash((self.train_params.seed, self.global_step, self.global_rank)) % 2**63)
        t, images, labels = self.train_params, to_float(batch[0]), batch[1].long()
        if t.noise:  # of randomised smoothing: unclipped, as the certificate draws it
            images = images + t.noise * torch.randn_like(images)
        if t.adversarial.method == "none":
            loss = self.loss(self.segmenter(images), labels)
        else:
            done = self.global_step / (t.epochs * t.steps_per_epoch)
            loss, logs = adversarial_loss(self.segmenter, images, labels, self.loss, t.adversarial, done)
            self.log_dict({key: float(value) for key, value in logs.items()})
        if not torch.isfinite(loss):
            raise InputError(
                f"training: the loss is not finite at step {self.global_step}; lower train.learning_rate "
                f"({t.learning_rate}) or set train.clip_gradient"
            )
        self.losses.append(loss.detach())
        return loss

    def on_validation_epoch_start(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch, index) -> None:
        labels = batch[1]
        if index == 0:
            self.first = batch
        valid = labels != IGNORE
        found, truth = (self.segmenter(to_float(batch[0])).argmax(1) > 0) & valid, (labels > 0) & valid
        self.counts += torch.stack([(found & truth).sum(), (found | truth).sum()])

    def on_validation_epoch_end(self) -> None:
        counts = self.trainer.strategy.reduce(self.counts, reduce_op="sum")
        loss = torch.stack(self.losses).mean() if self.losses else torch.zeros((), device=self.device)
        loss = self.trainer.strategy.reduce(loss.float(), reduce_op="mean")
        self.losses.clear()
        iou = float(counts[0] / counts[1].clamp_min(1))
        self.log("iou", iou, prog_bar=True, sync_dist=False)
        record = {"epoch": self.current_epoch, "loss": float(loss), "iou": iou}
        logged = self.trainer.callback_metrics
        record |= {k: float(v) for k, v in logged.items() if k not in {"iou", "loss"}}
        if self.train_params.adversarial.method != "none":
            record |= self.overfitting()
        self.history.append({**record, "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]})

    def overfitting(self) -> dict[str, float]:
        """IoU under FGSM and PGD of one validation batch; needs gradients, which Lightning turns off here."""
        with torch.inference_mode(False):
            images, labels = (part.clone() for part in self.first)
            return overfitting_gap(self.segmenter, to_float(images), labels.long(), self.train_params.adversarial)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["history"], checkpoint["replay"] = self.history, replay(self.segmenter)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.history = checkpoint["history"]
        resume_replay(self.segmenter, checkpoint["replay"])


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints by way of their own folder: Lightning's go through the system's, where a kill leaves them."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options=None) -> None:
        with atomic_file(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class Bar(Callback):
    """The run's progress: steps, rate and time left, the last validation IoU."""

    def on_train_start(self, trainer, module) -> None:
        self.bar = progress_bar()
        self.bar.start()
        total = module.train_params.epochs * module.train_params.steps_per_epoch
        self.task = self.bar.add_task("training", total=total, completed=trainer.global_step)

    def on_train_batch_end(self, trainer, module, *_) -> None:
        iou = f", validation IoU {module.history[-1]['iou']:.3f}" if module.history else ""
        self.bar.update(self.task, completed=trainer.global_step, description=f"training{iou}")

    def teardown(self, trainer, module, stage) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()


def _code() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return fingerprint([file.read_text(encoding="utf-8") for file in files])


def _segmenter(params: Params, cities: list[CityTiles]) -> Segmenter:
    train, channels = params.train, cities[0].channels
    if not train.init:
        segmenter = build_model(train.model, channels)
        if train.model.encoder_weights != "imagenet" or channels != len(IMAGENET_MEAN):
            segmenter.set_normalisation(*channel_statistics(cities))
        if train.model.architecture == "lipschitz":  # dividing by a deviation would multiply its constant
            segmenter.set_normalisation(torch.full((channels,), 0.5), torch.ones(channels))
        return segmenter
    card = read_card(train.init)
    wanted = train.model.model_dump(exclude={"encoder_weights"})
    different = [k for k, v in wanted.items() if card["model"].get(k) != v]
    if different or card["channels"] != channels:
        what = ", ".join(f"{k} {card['model'].get(k)!r}" for k in different) or f"{card['channels']} channels"
        raise InputError(f"train.init: {train.init} has {what}; set train.model to match, or start from another model")
    return load_model(train.init).requires_grad_(True).train()


def fit(params: Params, cities: list[CityTiles], folder: Path, *, work: Path, name: str = "all") -> dict:
    """Train on the `train` regions of `cities`, keep the weights of the best validation IoU, write `folder`.

    `work` holds the checkpoint while training lasts. Returns the model card. Under torchrun every process calls it.
    Raises InputError on parameters that cannot be trained.
    """
    train = params.train
    for key in ("channels", "gsd"):
        if len({getattr(city, key) for city in cities}) > 1:
            raise InputError(f"the cities' tiles differ in {key}; run the tile stage for all of them again")
    for split in ("train", "validation"):
        if not any(city.of_split(split) for city in cities):
            names = ", ".join(city.city for city in cities)
            raise InputError(f"no {split} scenes in {names}; change tile.validation and tile.test, or add scenes")
    distributed = TorchElasticEnvironment.detect()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)) if distributed else 1
    if train.batch_size % world:
        raise InputError(f"train.batch_size is {train.batch_size}; {world} processes cannot share it evenly")

    start = train.init and read_card(train.init)
    key = fingerprint(train.model_dump(), [city.about for city in cities], _code(), start)
    work = Path(work) / f"train-{name}-{key}"
    work.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(work.parent / f"train-{name}-{rank}.lock"):  # a killed DVC may leave its trainer behind
        if done := kept_model(folder, key):
            return done.card
        card = _fit(params, cities, Path(folder), work, rank, world, key)
        if rank == 0:
            shutil.rmtree(work, ignore_errors=True)
    return card


def _whole(checkpoint: Path) -> bool:
    """Whether there is a checkpoint to resume from; one that a failing disk damaged is as good as none."""
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception:  # torch meets damage with any of half a dozen exceptions
        return False
    return True


def _fit(params: Params, cities: list[CityTiles], folder: Path, work: Path, rank: int, world: int, key: str) -> dict:
    train, on = params.train, device()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    lightning.seed_everything(train.seed, verbose=False)
    segmenter = _segmenter(params, cities)
    module = SegmentationTraining(segmenter.to(memory_format=torch.channels_last), train)

    workers = train.workers or (min(12, os.cpu_count() or 1) if on.type == "cuda" else 0)
    crops = RandomCrops(cities, train.crop, train.seed, train.augment, train.city_weighting)
    steps = StepSampler(train.batch_size, train.steps_per_epoch, rank, world)
    windows = WindowGrid(cities, "validation", train.crop)
    looks = [list(batch) for batch in np.array_split(range(len(windows)), -(-len(windows) // train.batch_size))]
    cuda = on.type == "cuda"
    loaders = loader(crops, steps, workers, cuda), loader(windows, looks[rank::world], 0, cuda)

    checkpoint = ModelCheckpoint(work, filename="best", monitor="iou", mode="max", save_last=True)
    callbacks: list[Callback] = [checkpoint, Bar()]
    if train.patience:
        callbacks.append(EarlyStopping("iou", patience=train.patience, mode="max"))
    if train.ema:
        callbacks.append(EMAWeightAveraging(decay=train.ema, use_buffers=True))
    started = time.perf_counter()
    trainer = lightning.Trainer(
        accelerator="gpu" if on.type == "cuda" else "cpu",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]) if world > 1 else 1,
        num_nodes=world // int(os.environ["LOCAL_WORLD_SIZE"]) if world > 1 else 1,
        strategy="ddp" if world > 1 else "auto",
        precision=LIGHTNING_PRECISION[choose(train.precision, on)],
        max_epochs=train.epochs,
        gradient_clip_val=train.clip_gradient or None,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        logger=False,
        log_every_n_steps=1,
        default_root_dir=work,
    )
    last = work / "last.ckpt"
    resumed = _whole(last)
    try:
        trainer.fit(module, *loaders, ckpt_path=last if resumed else None, weights_only=True if resumed else None)
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    if trainer.interrupted:
        raise KeyboardInterrupt
    seconds = time.perf_counter() - started

    best = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    segmenter = segmenter.cpu()
    segmenter.load_state_dict({k.removeprefix("segmenter."): w for k, w in best.items()})
    calibration = calibrate(segmenter.eval(), cities, train.crop) if rank == 0 else UNCALIBRATED
    card = {
        "model": train.model.model_dump(),
        "channels": cities[0].channels,
        "bands": params.tile.bands,
        "classes": train.model.classes,
        "gsd": cities[0].gsd,
        "cities": [c.city for c in cities],
        "normalisation": {"mean": segmenter.mean.flatten().tolist(), "std": segmenter.std.flatten().tolist()},
        **calibration,
        "params": json.loads(params.model_dump_json(include={"tile", "train"})),
        "metrics": {"validation_iou": float(checkpoint.best_model_score)},
        "history": module.history,
        "training": {"seconds": round(seconds, 1), "resumed": resumed, "device": str(on.type),
                     "precision": choose(train.precision, on), "processes": world, "torch": torch.__version__},
        "fingerprint": key,
    }  # fmt: skip
    if rank == 0:
        save_model(folder, segmenter, card)
    trainer.strategy.barrier()
    return card
