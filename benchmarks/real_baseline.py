"""The bare script that benchmarks/real_cities.yaml must beat: smp's U-Net as it
comes, flips, one cycle.

    python -m benchmarks.real_baseline [MODEL_FOLDER]    after `fetch` and `tile` of benchmarks/real_cities.yaml
    python -m pipeline evaluate --params benchmarks/real_cities.yaml --model MODEL_FOLDER --out metrics/baseline.json

600 steps of eight 256-pixel crops, bf16 where the processor has it, channels-last, on the same
tiles and split; no validation, no selection. `--minutes` instead of `--steps` gives both the same
time: the schedule follows the clock.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.ratio import arguments_of
from pipeline import params
from pipeline.networks.models import build_model, save_model
from pipeline.networks.precision import autocast
from pipeline.tiles.store import open_cities

BATCH, CROP = 8, 256


def crop(regions: list, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A city at random, a scene of it by its area, a window and a flip."""
    scenes = regions[random.integers(len(regions))]
    area = np.array([label.size for _, label in scenes])
    image, label = scenes[random.choice(len(scenes), p=area / area.sum())]
    top, left = (random.integers(0, side - CROP + 1) for side in label.shape)
    image, label = (
        image[top : top + CROP, left : left + CROP],
        label[top : top + CROP, left : left + CROP],
    )
    if random.random() < 0.5:
        image, label = image[::-1], label[::-1]
    if random.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return torch.from_numpy(image.copy()), torch.from_numpy(label.copy())


def one_cycle(done: float, peak: float) -> float:
    """The learning rate when a share `done` of the training is over: three tenths up, the rest
    down (Smith 2018).
    """
    low, at = (peak / 25, done / 0.3) if done < 0.3 else (peak / 1e4, (1 - done) / 0.7)
    return low + (peak - low) * (1 - np.cos(np.pi * min(at, 1))) / 2


def main() -> None:
    arguments = arguments_of(__doc__)
    arguments.add_argument(
        "folder", type=Path, nargs="?", default=Path("models/baseline"), metavar="MODEL_FOLDER"
    )
    arguments.add_argument("--encoder", default="resnet18")
    arguments.add_argument(
        "--weights", choices=["imagenet"], help="where the encoder starts; random by default"
    )
    arguments.add_argument("--rate", type=float, default=2e-3)
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--minutes", type=float)
    options = arguments.parse_args()
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    settings = params.load_params("benchmarks/real_cities.yaml")
    cities = open_cities(settings.fetch.cities)
    regions = [[(city.image(r), city.label(r)) for r in city.of_split("train")] for city in cities]
    description = params.Model(
        architecture="unet", encoder=options.encoder, encoder_weights=options.weights
    )
    model = build_model(description, 3).train().to(memory_format=torch.channels_last)
    if not options.weights:  # those come with their own
        model.set_normalisation([0.4] * 3, [0.2] * 3)
    optimizer = torch.optim.AdamW(model.parameters(), options.rate)
    start, step, done = time.perf_counter(), 0, 0.0
    while done < 1:
        optimizer.param_groups[0]["lr"] = one_cycle(done, options.rate)
        images, labels = (
            torch.stack(p) for p in zip(*(crop(regions, random) for _ in range(BATCH)), strict=True)
        )
        images = (images.movedim(-1, 1).float() / 255).to(memory_format=torch.channels_last)
        with autocast(torch.device("cpu")):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels.long(), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step, seconds = step + 1, time.perf_counter() - start
        done = seconds / 60 / options.minutes if options.minutes else step / options.steps
        if step % 50 == 0:
            print(f"step {step}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
    about = {
        "model": description.model_dump(),
        "channels": 3,
        "bands": settings.tile.bands,
        "classes": 1,
        "gsd": settings.tile.gsd,
        "cities": settings.fetch.cities,
        "threshold": 0.5,
        "temperature": 1.0,
    }
    save_model(options.folder, model.eval(), about)


if __name__ == "__main__":
    main()
