"""What of a training travels to cities it has never seen: one change at a time,
equal steps, real cities.

    python -m pipeline fetch && python -m pipeline tile        in a folder whose params.yaml names the cities
    python -m benchmarks.what_travels VARIANT… [--steps 250 --seeds 1 --out travels.json]   there; all without VARIANT

The cities are dealt into two halves of like kinds (or --folds parts), each mapped by a network of the
others, so that every city is unseen once; or, with --model, all by a model that is there. IoU is over
all of a city's pixels, the mean over seeds. A row compares a variant with `--against` city by city:
the mean difference and its 95 % interval over cities (t), the least city's IoU. Changes go together
by a plus: style+crop192; `…+turns` right after the same without takes its networks. Rows in the file are
not trained again: one file for one --folds; two commands with `--out` of their own may run side by
side, `OMP_NUM_THREADS=1` each.
"""

import json
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from benchmarks.ratio import arguments_of
from pipeline import params
from pipeline.console import table
from pipeline.networks.card import check_fit
from pipeline.networks.models import build_model, read_model
from pipeline.networks.precision import autocast
from pipeline.scoring.inference import probabilities
from pipeline.scoring.metrics import counts, ratio
from pipeline.storage import write_json
from pipeline.tiles.store import CityTiles, open_cities
from pipeline.tiles.tensors import to_float
from pipeline.training.augment import augment
from pipeline.training.crops import read_crop
from pipeline.training.losses import build_loss
from pipeline.training.style import restyled

CPU = torch.device("cpu")
PLAIN = {
    "encoder": "tu-tf_efficientnet_lite0",
    "augment": "standard",
    "crop": 128,
    "batch": 8,
    "rate": 3e-3,
    "decoder": [64, 32, 16, 16],
}
VARIANTS = {
    "plain": {},
    "strong": {"augment": "strong"},
    "scale": {"scale": 2.0},  # crops of half to twice the ground, resampled
    "ema": {"ema": 0.99},
    "ema.98": {"ema": 0.98},
    "root": {"weighting": 0.5},
    # the rate stays at its peak from a third on, and weights are averaged there (Cha et al. 2021)
    "swa": {"swa": 1 / 3},
    "style": {"style": 0.5},  # a crop takes the mean and deviation of another city's, per channel
    "always": {"style": 1.0},
    # the same of the encoder's first two features (Zhou et al. 2021)
    "mixstyle": {"mixstyle": 0.5},
    "fda": {"fda": 0.5},  # low-frequency amplitudes of another city's crop (Yang & Soatto 2020)
    "mixup": {"mixup": 0.2},  # Beta(α, α) (Zhang et al. 2018)
    "encoder.1": {"encoder_rate": 0.1},  # the encoder learns at a tenth of the rate
    "rate.001": {"rate": 1e-3},
    "frozen": {"frozen": True},  # the encoder's batch norms keep ImageNet's statistics
    "dro": {"dro": 0.1},  # exponential weights of the cities' losses (Sagawa et al. 2020)
    "crop192": {"crop": 192},
    "turns": {"turns": True},  # no training: the map is the mean of eight flips and turns
    "wide": {"decoder": None},  # of five levels, 256 to 16 channels: segmentation-models-pytorch's
    "lite1": {"encoder": "tu-tf_efficientnet_lite1"},
    "lite2": {"encoder": "tu-tf_efficientnet_lite2"},
    "resnet18": {"encoder": "resnet18", "weights": None},
}


def settings(variant: str) -> dict:
    """PLAIN with the changes that a variant's words name."""
    return PLAIN | {k: v for word in variant.split("+") for k, v in VARIANTS[word].items()}


def crop(city: CityTiles, side: int, scale: float, level: str, random: np.random.Generator):
    """An augmented crop of a training or validation region, of `scale`⁻¹ …
    `scale` times the ground.
    """
    import cv2

    regions = city.regions
    area = np.array([r.pixels for r in regions], float)
    region = regions[random.choice(len(regions), p=area / area.sum())]
    ground = round(side * scale ** random.uniform(-1, 1))
    top, left = (
        int(random.integers(0, max(1, n - ground + 1))) for n in (region.height, region.width)
    )
    image, label = read_crop(city, region, top, left, ground)
    if ground != side:
        how = cv2.INTER_AREA if ground > side else cv2.INTER_LINEAR
        image = cv2.resize(image, (side, side), interpolation=how)
        label = cv2.resize(label, (side, side), interpolation=cv2.INTER_NEAREST)
    return augment(level, image, label, int(random.integers(2**31)))


def low_swapped(
    images: torch.Tensor, share: float, generator: torch.Generator, beta: float = 0.02
) -> torch.Tensor:
    order = torch.randperm(len(images), generator=generator)
    spectrum = torch.fft.fft2(images)
    amplitude, phase = spectrum.abs(), spectrum.angle()
    side = max(1, int(beta * images.shape[-1]))
    fy, fx = (torch.fft.fftfreq(n).abs() * n for n in images.shape[-2:])
    low = (fy[:, None] <= side) & (fx[None] <= side)
    mixed = torch.where(low, amplitude[order], amplitude)
    back = torch.fft.ifft2(torch.polar(mixed, phase)).real.clamp(0, 1)
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < share
    return torch.where(chosen, back, images)


def answer(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits, in the arithmetic of this machine."""
    with autocast(CPU):
        return model(images)


def train(cities: list[CityTiles], v: dict, steps: int, seed: int) -> nn.Module:
    random, generator = np.random.default_rng((seed, 1)), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    card = params.Model(
        architecture="unet", encoder=v["encoder"], encoder_weights=v.get("weights", "imagenet"),
        decoder_channels=v["decoder"],
    )  # fmt: skip
    model = build_model(card, 3).train().to(memory_format=torch.channels_last)
    if v.get("weights", "imagenet") is None:
        model.set_normalisation([0.4] * 3, [0.2] * 3)
    if v.get("frozen"):
        for module in model.network.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    encoder = {id(p) for p in model.network.encoder.parameters()}
    groups = [[p for p in model.parameters() if (id(p) in encoder) == own] for own in (True, False)]
    rates = [v["rate"] * v.get("encoder_rate", 1), v["rate"]]
    optimizer = torch.optim.AdamW(
        [{"params": g, "lr": r} for g, r in zip(groups, rates, strict=True)], fused=True
    )
    flat = round(v["swa"] * steps) if v.get("swa") else steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    if mixed := v.get("mixstyle"):
        for stage in list(model.network.encoder.model.blocks)[:2]:
            stage.register_forward_hook(
                lambda module, _, out: restyled(out, mixed, generator) if module.training else out
            )
    average = None
    if v.get("ema") or v.get("swa"):
        how = get_ema_multi_avg_fn(v["ema"]) if v.get("ema") else None
        average = AveragedModel(model, multi_avg_fn=how, use_buffers=True)
    loss_of, weights = build_loss({"cross_entropy": 1, "dice": 1}), np.ones(len(cities))
    share = np.array([sum(r.pixels for r in c.regions) for c in cities]) ** v.get("weighting", 0.0)

    def batch() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        chosen = random.choice(len(cities), v["batch"], p=share / share.sum())
        crops = [
            crop(cities[c], v["crop"], v.get("scale", 1.0), v["augment"], random) for c in chosen
        ]
        images, labels = (torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True))
        images = to_float(images)
        if v.get("style"):
            images = restyled(images, v["style"], generator).clamp(0, 1)
        if v.get("fda"):
            images = low_swapped(images, v["fda"], generator)
        return images.contiguous(memory_format=torch.channels_last), labels.long(), chosen

    for step in range(steps):
        images, labels, chosen = batch()
        if v.get("mixup"):
            order, own = (
                torch.randperm(len(images), generator=generator),
                float(random.beta(v["mixup"], v["mixup"])),
            )
            logits = answer(model, own * images + (1 - own) * images[order])
            loss = own * loss_of(logits, labels) + (1 - own) * loss_of(logits, labels[order])
        elif v.get("dro"):
            logits = answer(model, images)
            each = torch.stack(
                [loss_of(logits[i : i + 1], labels[i : i + 1]) for i in range(len(images))]
            )
            for city, value in zip(chosen, each.detach(), strict=True):
                weights[city] *= np.exp(v["dro"] * float(value))
            weights /= weights.mean()
            loss = (each * torch.tensor(weights[chosen], dtype=each.dtype)).mean()
        else:
            loss = loss_of(answer(model, images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step < flat:
            schedule.step()
        if average and (v.get("ema") or step >= flat):
            average.update_parameters(model)
    if v.get("swa"):  # averaged weights see other statistics than any of theirs
        update_bn((batch()[0] for _ in range(50)), average.module)
    return (average.module if average else model).eval()


@torch.inference_mode()
def iou_of(model: nn.Module, city: CityTiles, turns: bool, side: int = 512) -> float | None:
    """ΣI/ΣU over all of a city's pixels, in windows of `side` side by side; of the mean
    probability of eight symmetries with `turns`.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for region in city.regions:
        image, label = city.image(region), city.label(region)
        for top in range(0, region.height, side):
            for left in range(0, region.width, side):
                part = np.array(image[top : top + side, left : left + side])
                truth = torch.from_numpy(
                    np.array(label[top : top + side, left : left + side])
                ).long()[None]
                with autocast(CPU):
                    p = probabilities(model, to_float(torch.from_numpy(part)[None]), 1.0, turns)
                total += torch.stack([n.sum() for n in counts(p.argmax(1), truth)])
    return ratio(*total.tolist())


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument(
        "variants",
        nargs="*",
        default=[],
        metavar="VARIANT",
        help=f"of {', '.join(VARIANTS)}; joined by +",
    )
    parser.add_argument("--against", default="plain", metavar="VARIANT", help="default: plain")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folds", type=int, default=2, help="parts the cities are dealt into")
    parser.add_argument("--out", type=Path, default=Path("travels.json"))
    parser.add_argument(
        "--model", metavar="FOLDER", help="train nothing: the cities, by this model"
    )
    asked = parser.parse_args()
    words = {word for name in [*asked.variants, asked.against] for word in name.split("+")}
    if unknown := sorted(words - set(VARIANTS)):
        parser.error(f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    cities = open_cities(params.load_params("params.yaml").fetch.cities)
    if asked.model:
        model = read_model(asked.model)
        for city in cities:
            check_fit(model.card, city, asked.model)
        rows = [[c.city, *(iou_of(model, c, turns) for turns in (False, True))] for c in cities]
        table(f"IoU by {asked.model}", ["city", "one pass", "eight turns"], rows)
        return
    parts = [cities[k :: asked.folds] for k in range(asked.folds)]

    @lru_cache(asked.folds)  # for the same with turns, which comes next
    def taught(part: int, variant: str, seed: int) -> nn.Module:
        seen = [city for city in cities if city not in parts[part]]
        return train(seen, settings(variant), asked.steps, seed)

    found = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for seed in range(asked.seeds):
        for name in asked.variants or VARIANTS:
            key = f"{name} {seed} {asked.steps}"
            if key in found:
                continue
            started, ious = time.perf_counter(), {}
            trained = "+".join(w for w in name.split("+") if w != "turns") or "plain"
            turns = settings(name).get("turns", False)
            for part, unseen in enumerate(parts):
                model = taught(part, trained, seed)
                ious |= {city.city: iou_of(model, city, turns) for city in unseen}
            found[key] = {"iou": ious, "seconds": time.perf_counter() - started}
            write_json(asked.out, found)
            print(row(name, asked.against, found, asked.steps), flush=True)


def unseen(name: str, found: dict, steps: int) -> dict[str, float]:
    """{CITY: IoU} of a variant, the mean over its seeds."""
    runs = [
        run["iou"] for key, run in found.items() if key.rsplit(" ", 2)[::2] == [name, str(steps)]
    ]
    cities = [city for city, iou in runs[0].items() if iou is not None] if runs else []
    return {city: float(np.mean([run[city] for run in runs])) for city in cities}


def row(name: str, against: str, found: dict, steps: int) -> str:
    """Mean and least IoU of a variant's unseen cities, and its difference from another's, paired
    by city: its 95 % interval is over cities, whose IoU is the mean over seeds.
    """
    mine, base = unseen(name, found, steps), unseen(against, found, steps)
    means = f"{np.mean([*mine.values()]):.3f} | {min(mine.values()):.3f}"
    difference = np.array([mine[city] - base[city] for city in mine if city in base])
    count = len(difference)
    if name == against or count < 3:
        return f"| {name} | {means} | |"
    half = stats.t.ppf(0.975, count - 1) * difference.std(ddof=1) / count**0.5
    return f"| {name} | {means} | {difference.mean():+.3f} ± {half:.3f} |"


if __name__ == "__main__":
    main()
