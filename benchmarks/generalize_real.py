"""Five real cities, each left out once: how well is a city mapped that training has never seen?

    python -m benchmarks.generalize_real        (an hour or two on 2 cores; --epochs 3 for a first look; --measure to
                                                 measure the models of an earlier run again)

Reads benchmarks/real_cities.yaml (../shared/cities at 0.3 m), trains on all cities and on all but
each, and writes benchmarks/generalize_real.md: the leave-one-city-out table with intervals, the
city × city matrix, the adaptation ladder and the label-free estimates. Killed and started again, it
goes on from the last finished epoch.
"""

import json
import math
import os
from pathlib import Path

from benchmarks.ratio import arguments_of
from pipeline.params import Params, load_params
from pipeline.stages import fetch, generalize, holdout, tile, train

ROOT = Path(__file__).parents[1]
LADDER = ["none", "histogram", "fda", "adabn", "entropy", "self_training"]


def real_params(epochs: int | None) -> Params:
    params = load_params(ROOT / "benchmarks/real_cities.yaml")
    generalize = params.generalize.model_copy(
        update={"adaptation": LADDER, "epochs": None, "corruption_tiles": 16}
    )
    training = params.train.model_copy(update={"epochs": epochs or params.train.epochs})
    source = params.fetch.model_copy(update={"path": str((ROOT / params.fetch.path).resolve())})
    return params.model_copy(update={"generalize": generalize, "train": training, "fetch": source})


def table(columns: list[str], rows: list[list]) -> str:
    def cell(value) -> str:
        return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(m: dict, params: Params, command: str) -> str:
    """The page of one run's metrics."""
    cities, t = list(m["city"]), params.train
    keys = ("seen", "unseen", "unseen_low", "unseen_high", "gap", "gap_low", "gap_high")
    gaps = [*m["city"].items(), ("mean city", m["mean_city"]), ("pooled", m["pooled"])]
    scores = ("thresholded", "atc", "expected", "no_gap", "mean_gap", "mean_unseen")
    estimates, errors = m["label_free"]["city"], m["label_free"]["mean_error"]
    guesses = [[c, r["iou"], *(r[s] for s in scores), r["distance"]] for c, r in estimates.items()]
    kinds = ("clean", "corrupted", "attacked", "certified")
    attack, certificate = m["robustness"]["attack"], m["robustness"]["certificate"]
    radius = math.floor(1e5 * certificate["radius"]) / 1e5  # never above what is proven
    sides = [(c, s, r) for c, city in m["robustness"]["city"].items() for s, r in city.items() if r]
    parts = [
        "# A real city never seen",
        f"`{command}`",
        f"{t.model.architecture} {t.model.encoder}, {t.model.encoder_weights or 'random'} weights, "
        f"{t.epochs * t.steps_per_epoch} steps a model at {params.tile.gsd} m, training seeds "
        f"{m['seeds']}. IoU on whole test scenes; 95 % intervals over scenes (units) in pairs, or "
        "over blocks where a city has one test scene; the models are held fixed.",
        table(
            ["city", "units", *(key.replace("_", " ") for key in keys)],
            [[c, f"{r['units']:g}", *(r[k] for k in keys)] for c, r in gaps],
        ),
        f"Worst city: {m['worst_city']['city']}.",
        "## City × city",
        table(
            ["trained on", *cities],
            [[name, *(r[c] for c in cities)] for name, r in m["matrix"].items()],
        ),
        "## Adaptation without labels",
        table(
            ["method", *cities],
            [[name, *(r[c] for c in cities)] for name, r in m["adaptation"].items()],
        ),
        "\n".join(
            f"- {c}: {r['method']}, chosen on the other cities, {r['iou']:.3f}; "
            f"oracle {r['oracle']['method']} {r['oracle']['iou']:.3f}"
            for c, r in m["adaptation_choice"].items()
        ),
        "Repaired by no method tried, though a model that has seen it maps it clearly better: "
        f"{', '.join(m['beyond_adaptation']) or 'none'}.",
        "## IoU estimated without labels",
        "thresholded, atc and expected look at the new city's images. no_gap (the IoU of the "
        "model's own cities), "
        "mean_gap (that less the other folds' mean gap) and mean_unseen (the other folds' unseen "
        "IoU) are naive "
        f"guesses: they do not. The best of these, in hindsight, is {m['label_free']['naive']}.",
        table(
            ["city", "IoU", *scores, "feature distance"],
            [*guesses, ["mean error", None, *(errors[s] for s in scores), None]],
        ),
        "## Robustness, seen and unseen",
        f"On a few crops a city: the mean over all corruptions at severity 3, PGD at ℓ∞ "
        f"{attack['epsilon']:g}/255, and "
        f"what is certified of the smoothed model at ℓ2 {radius:g}, which is another ball.",
        table(["city", *kinds], [[f"{c}, {s}", *(r[k] for k in kinds)] for c, s, r in sides]),
        "\n".join(
            f"- {c}: worst corruption {w['name']} at severity {w['severity']}, keeps "
            f"{w['retained']:.2f}"
            for c, w in m["worst_corruption"].items()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--epochs", type=int, help="of every model; default as real_cities.yaml")
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".work/generalize_real", help="tiles and models"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/generalize_real.md")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="train nothing: the models of an earlier run are there",
    )
    options = parser.parse_args()
    params, out = real_params(options.epochs), options.out.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    os.chdir(options.work)
    if not all(
        (Path("data/tiles") / city / "regions.json").exists() for city in params.fetch.cities
    ):
        fetch.run(params)
        tile.run(params)
    if not options.measure:
        train.run(params)
        holdout.run(params)
    generalize.run(params)
    command = "python -m benchmarks.generalize_real" + (
        f" --epochs {options.epochs}" if options.epochs else ""
    )
    text = report(json.loads(Path("metrics/generalize.json").read_text()), params, command)
    out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
