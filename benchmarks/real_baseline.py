"""The bare script that benchmarks/real_cities.yaml must beat: smp's U-Net ResNet-18 as it comes, flips, one cycle.

    python -m benchmarks.real_baseline [MODEL_FOLDER [STEPS]]    after `fetch` and `tile` of benchmarks/real_cities.yaml
    python -m pipeline evaluate --params benchmarks/real_cities.yaml --model MODEL_FOLDER --out metrics/baseline.json

600 steps of eight 256-pixel crops, bf16 where the processor has it, channels-last, on the same tiles and split; no
validation, no selection.
"""

import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

from pipeline import params
from pipeline.networks.models import build_model, save_model
from pipeline.networks.precision import autocast
from pipeline.tiles.store import open_cities

BATCH, CROP, RATE = 8, 256, 2e-3
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 600
random = np.random.default_rng(0)
torch.manual_seed(0)

settings = params.load_params("benchmarks/real_cities.yaml")
cities = open_cities(settings.fetch.cities)
regions = [[(city.image(r), city.label(r)) for r in city.of_split("train")] for city in cities]
card = params.Model(architecture="unet", encoder="resnet18")
model = build_model(card, 3).train().to(memory_format=torch.channels_last)
model.set_normalisation([0.4] * 3, [0.2] * 3)
optimizer = torch.optim.AdamW(model.parameters(), RATE)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)


def crop():
    scenes = regions[random.integers(len(regions))]
    area = np.array([label.size for _, label in scenes])
    image, label = scenes[random.choice(len(scenes), p=area / area.sum())]
    top, left = (random.integers(0, side - CROP + 1) for side in label.shape)
    image, label = image[top : top + CROP, left : left + CROP], label[top : top + CROP, left : left + CROP]
    if random.random() < 0.5:
        image, label = image[::-1], label[::-1]
    if random.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return torch.from_numpy(image.copy()), torch.from_numpy(label.copy())


start = time.perf_counter()
for step in range(STEPS):
    images, labels = (torch.stack(part) for part in zip(*(crop() for _ in range(BATCH)), strict=True))
    images = (images.movedim(-1, 1).float() / 255).to(memory_format=torch.channels_last)
    with autocast(torch.device("cpu")):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), labels.long(), ignore_index=255)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 50 == 49:
        print(f"step {step + 1}  loss {loss.item():.3f}  {time.perf_counter() - start:.0f} s", flush=True)

about = {"model": card.model_dump(), "channels": 3, "bands": settings.tile.bands, "classes": 1,
         "gsd": settings.tile.gsd, "cities": settings.fetch.cities, "threshold": 0.5, "temperature": 1.0}  # fmt: skip
save_model(sys.argv[1] if len(sys.argv) > 1 else "models/baseline", model.eval(), about)
