"""IoU against ε of two models side by side: what adversarial training buys on real
tiles, and what it costs.

    python -m benchmarks.attack_real --pair models/pair     after `fetch` and `tile` of benchmarks/real_cities.yaml
    python -m benchmarks.attack_real models/all models/robust --cities ohio

`--pair` trains both from the same ImageNet start with as many steps: FOLDER/clean, and
FOLDER/robust by PGD at `--epsilon` (`--pgd` gradients a batch). Killed and started again it goes
on. Writes benchmarks/attack_real.md: per city and budget the IoU under PGD, under the soft-IoU
attack and the exact worst case over all methods of stage `attack`, clean and all smaller budgets;
and the seconds each training took.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.generalize_real import ROOT, table
from benchmarks.ratio import arguments_of
from pipeline.attacks.protocol import Campaign, CityAttack
from pipeline.attacks.worst_case import pooled_iou, worst_case
from pipeline.console import progress
from pipeline.networks.models import read_model
from pipeline.networks.precision import autocast, device
from pipeline.params import Adversarial, Attack, load_params
from pipeline.storage import WORK, read_json
from pipeline.tiles.store import CityTiles, open_cities
from pipeline.tiles.tensors import to_tensors
from pipeline.training.fit import fit


def measure(segmenter, images, labels, epsilon: float, settings: Attack, pixels) -> dict:
    """Counts of the clean map and of every method at ℓ∞ ε."""
    campaign = Campaign(
        segmenter,
        segmenter,
        settings,
        pixels,
        [],
        lambda: autocast(images.device, settings.precision),
    )
    city = CityAttack(campaign, images, labels, 1.0)
    return {
        "clean": city.clean,
        **dict(city.every_attack(replace(city.reference, epsilon=epsilon))),
    }


def pair(a, folder: Path) -> list[Path]:
    """The clean and the robust model, trained alike but for the perturbed batches."""
    params = load_params(Path(__file__).with_name("real_cities.yaml"))
    model = {"encoder": a.encoder, "encoder_weights": a.weights}
    shape = {
        "model": params.train.model.model_copy(update=model),
        "epochs": a.epochs,
        "steps_per_epoch": a.steps_per_epoch,
        "crop": a.crop,
        "learning_rate": 1e-3,
    }
    robust = Adversarial(method="pgd", epsilon=a.epsilon, steps=a.pgd, warmup=0.3)
    cities = open_cities(a.cities or params.fetch.cities, a.tiles)
    for name, adversarial in (("clean", Adversarial()), ("robust", robust)):
        train = params.train.model_copy(update=shape | {"adversarial": adversarial})
        fit(params.model_copy(update={"train": train}), cities, folder / name, work=WORK, name=name)
    return [folder / "clean", folder / "robust"]


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="model folders")
    parser.add_argument(
        "--pair", type=Path, metavar="FOLDER", help="train a clean and a robust model into it"
    )
    parser.add_argument("--encoder", default="tu-tf_efficientnet_lite0")
    parser.add_argument("--weights", default="imagenet", help="imagenet, or a file of weights")
    parser.add_argument("--epsilon", type=float, default=4, help="1/255, of the robust training")
    parser.add_argument(
        "--pgd", type=int, default=3, help="gradients a batch of the robust training"
    )
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps-per-epoch", type=int, default=100)
    parser.add_argument("--crop", type=int, default=128, help="pixels along a training crop's side")
    parser.add_argument("--tiles", type=Path, default=Path("data/tiles"))
    parser.add_argument("--cities", nargs="*", help="default: every city of the tiles folder")
    parser.add_argument("--count", type=int, default=4, help="test tiles a city")
    parser.add_argument(
        "--linf", nargs="*", type=float, default=[0.5, 1, 2, 4, 8], help="budgets in 1/255"
    )
    parser.add_argument(
        "--longer", type=int, default=1, help="times the default gradients of every attack"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="fp32", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/attack_real.md")
    a = parser.parse_args()
    if a.pair:
        a.models += pair(a, a.pair)
    if not a.models:
        parser.error("name model folders, or --pair FOLDER to train two")
    longer = {
        name: a.longer * getattr(Attack(), name)
        for name in ("steps", "apgd_steps", "soft_iou_steps")
    }
    settings = Attack(batch_size=a.batch, precision=a.precision).model_copy(update=longer)
    names = a.cities or sorted(p.parent.name for p in a.tiles.glob("*/regions.json"))
    cities = {name: CityTiles(a.tiles / name) for name in names}
    pixels = torch.from_numpy(sum(
        np.bincount(c.label(r).ravel(), minlength=256)[: c.classes + 1]
        for c in cities.values() for r in c.of_split("train")
    ))  # fmt: skip
    rows = []
    for name, city in cities.items():
        images, labels = to_tensors(city.sample("test", a.count), device())
        columns = {}
        for folder in a.models:
            segmenter = read_model(folder, device()).eval()
            candidates, columns[folder] = [], {}
            for budget in progress(sorted(a.linf), f"{name}, {folder.name}"):
                found = measure(segmenter, images, labels, budget / 255, settings, pixels)
                candidates += found.values()
                iou = [pooled_iou(*found[key]) for key in ("clean", "pgd", "soft_iou")]
                columns[folder][budget] = [*iou, worst_case(*zip(*candidates, strict=True))[0]]
        for budget in sorted(a.linf):
            rows.append(
                [
                    f"{name} {budget:g}/255",
                    *(v for folder in a.models for v in columns[folder][budget]),
                ]
            )
    heads = [
        f"{folder.name}: {kind}"
        for folder in a.models
        for kind in ("clean", "PGD", "soft IoU", "worst")
    ]
    took = {
        folder.name: read_json(folder / "model.json").get("training", {}).get("seconds")
        for folder in a.models
    }
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items() if seconds)
    text = (
        "\n\n".join(
            [
                "# Real cities under attack",
                f"`python -m benchmarks.attack_real {' '.join(sys.argv[1:])}`",
                f"IoU on {a.count} test tiles a city under ℓ∞ attacks in {a.precision}: PGD on "
                f"cross-entropy of "
                f"{settings.steps} gradients, the soft-IoU attack of {settings.soft_iou_steps}, "
                f"and the "
                f"exact worst case over "
                "all methods, the clean image and all smaller budgets."
                + (f" Trained in: {spent}." if spent else ""),
                table(["city, ε", *heads], rows),
            ]
        )
        + "\n"
    )
    a.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
