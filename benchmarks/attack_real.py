"""IoU against ε of two models side by side: what adversarial training buys on real tiles, and what it costs.

    python -m benchmarks.attack_real models/all --harden models/hardened   after `train` of benchmarks/real_cities.yaml
    python -m benchmarks.attack_real models/all models/hardened --cities ohio

`--harden` fine-tunes the first model into another folder (PGD-3 at 4/255, 300 steps of eight crops) and attacks both on
the same tiles with the same settings. Writes benchmarks/attack_real.md: per city and budget the IoU under PGD-CE and
under the APGD ensemble at equal gradients, and the exact worst case over both, clean and all smaller budgets.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.generalize_real import ROOT, table
from pipeline.console import progress
from pipeline.geo.tiles import CityTiles, open_cities
from pipeline.learning.crops import to_tensors
from pipeline.learning.models import load_model
from pipeline.learning.precision import autocast, device
from pipeline.learning.training import fit
from pipeline.params import Adversarial, load_params
from pipeline.robustness import attacks
from pipeline.robustness.scores import APGD
from pipeline.robustness.worst_case import pooled_iou, worst_case
from pipeline.storage import WORK


def measure(segmenter, images, labels, norm: str, epsilon: float, steps: int, pixels, batch: int, precision: str):
    """Counts of the clean map, of PGD with 3 × `steps` gradients and of each APGD loss with `steps`."""
    generator = torch.Generator().manual_seed(0)
    target = attacks.Target(segmenter, images, labels, norm, epsilon)
    runs = {"pgd": lambda part: attacks.pgd(part, 3 * steps, generator=generator)}
    for name, loss in attacks.sea_losses(pixels).items():
        runs[name] = lambda part, loss=loss: attacks.red_epsilon(part, loss, steps, generator=generator)
    found = {"clean": images}
    with autocast(images.device, precision):
        found |= {name: attacks.in_batches(target, batch, run) for name, run in runs.items()}
    with torch.no_grad():
        maps = {n: torch.cat([segmenter(p).argmax(1) for p in x.split(batch)]) for n, x in found.items()}
    return {n: [c.cpu().numpy() for c in attacks.counts(m, labels)] for n, m in maps.items()}


def harden(model: Path, tiles: Path, folder: Path) -> Path:
    """The model after adversarial training from where it stands: from scratch it would need many times the steps."""
    params = load_params(Path(__file__).with_name("real_cities.yaml"))
    recipe = {"adversarial": Adversarial(method="pgd", epsilon=4, steps=3, warmup=0.3), "init": str(model)}
    shorter = {"epochs": 4, "steps_per_epoch": 75, "crop": 128, "learning_rate": 1e-3}
    params = params.model_copy(update={"train": params.train.model_copy(update=recipe | shorter)})
    fit(params, open_cities(params.fetch.cities, tiles), folder, work=WORK, name="hardened")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="model folders")
    parser.add_argument("--harden", type=Path, metavar="FOLDER", help="train the first one adversarially into FOLDER")
    parser.add_argument("--tiles", type=Path, default=Path("data/tiles"))
    parser.add_argument("--cities", nargs="*", help="default: every city of the tiles folder")
    parser.add_argument("--count", type=int, default=4, help="test tiles a city")
    parser.add_argument("--linf", nargs="*", type=float, default=[0.5, 1, 2, 4, 8], help="budgets in 1/255")
    parser.add_argument("--steps", type=int, default=10, help="gradients of each APGD loss")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="fp32", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/attack_real.md")
    a = parser.parse_args()
    if a.harden:
        a.models.append(harden(a.models[0], a.tiles, a.harden))
    names = a.cities or sorted(p.parent.name for p in a.tiles.glob("*/regions.json"))
    cities = {name: CityTiles(a.tiles / name) for name in names}
    pixels = torch.from_numpy(sum(
        np.bincount(c.label(r).ravel(), minlength=256)[: c.classes + 1]
        for c in cities.values() for r in c.of_split("train")
    ))  # fmt: skip
    rows, weaker = [], []
    for name, city in cities.items():
        images, labels = to_tensors(city.sample("test", a.count), device())
        columns = {}
        for folder in a.models:
            segmenter = load_model(folder, device())
            candidates, columns[folder] = [], {}
            for budget in progress(sorted(a.linf), f"{name}, {folder.name}"):
                counts = measure(segmenter, images, labels, "linf", budget / 255, a.steps, pixels, a.batch, a.precision)
                iou = {key: pooled_iou(*value) for key, value in counts.items()}
                ensemble = worst_case(*zip(*(counts[key] for key in APGD), strict=True))[0]
                candidates += counts.values()
                worst = worst_case(*zip(*candidates, strict=True))[0]
                columns[folder][budget] = [iou["clean"], iou["pgd"], ensemble, worst]
                if ensemble > iou["pgd"] + 1e-9:
                    weaker.append(f"{name}, {folder.name}, {budget:g}/255: {ensemble:.3f} > {iou['pgd']:.3f}")
        for budget in sorted(a.linf):
            rows.append([f"{name} {budget:g}/255", *(v for folder in a.models for v in columns[folder][budget])])
    kinds = ("clean", f"PGD-CE {3 * a.steps}", f"APGD 3×{a.steps}", "worst")
    heads = [f"{folder.name}: {kind}" for folder in a.models for kind in kinds]
    cases = len(rows) * len(a.models)
    text = "\n\n".join([
        "# Real cities under attack",
        f"`python -m benchmarks.attack_real {' '.join(sys.argv[1:])}`",
        f"IoU on {a.count} test tiles a city under ℓ∞ attacks in {a.precision}: PGD on cross-entropy, the APGD "
        "ensemble of as many gradients (its exact worst case over three losses), and the exact worst case over both, "
        "the clean image and all smaller budgets.",
        table(["city, ε", *heads], rows),
        f"The ensemble is no weaker than PGD-CE in {cases - len(weaker)} of {cases} cases"
        + (f"; it is weaker at {'; '.join(weaker)}." if weaker else "."),
    ]) + "\n"  # fmt: skip
    a.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
