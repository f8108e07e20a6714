"""The sandwich for real cities: certified ≤ attacked ≤ clean IoU on three roads,
within ten minutes on two cores.

    python -m benchmarks.certify_real [--cities austin montenegro]

Reads ../shared/cities through the folder source, trains one U-Net with noise (what smoothing
certifies; the other roads prove nothing of its encoder and train networks of their own), then runs
the stage and writes benchmarks/certify_real.md. Everything else stays in a temporary folder, or in
--keep.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.generalize_real import table
from benchmarks.ratio import arguments_of
from pipeline.params import Params, parse_params
from pipeline.stages import certify, fetch, tile, train

ROOT = Path(__file__).resolve().parents[1]
IMAGERY = ROOT.parent / "shared" / "cities"
NEAR_ZERO = 0.05  # certified IoU
UNIT = {"smoothing": "ℓ2", "convex": "ℓ∞ /255", "lipschitz": "ℓ2"}


def settings(cities: list[str], steps: int = 300) -> dict:
    """`steps` of training the smoothed U-Net; the small networks of the other roads, which start
    from nothing, get twice and 8/3 as many.
    """
    return {
        "fetch": {"source": "folder", "path": str(IMAGERY), "cities": cities},
        "tile": {"gsd": 0.5, "size": 128, "bands": [1, 2, 3]},
        "train": {
            "model": {
                "architecture": "unet",
                "encoder": "tu-tf_efficientnet_lite0",
                "encoder_weights": "imagenet",
                "decoder_channels": [64, 32, 16, 16],
            },
            "loss": {"cross_entropy": 1.0, "dice": 1.0},
            "epochs": 6,
            "steps_per_epoch": max(1, steps // 6),
            "batch_size": 8,
            "crop": 128,
            "noise": 0.1,
        },
        "certify": {
            "tiles": 4,
            "crop": 64,
            "attack_steps": 20,
            "smoothing": {"sigma": [0.05, 0.1, 0.25], "n0": 16, "n": 100},
            "convex": {"radii": [0.25, 0.5, 1, 2], "train_epsilon": 1, "steps": 2 * steps},
            "lipschitz": {"radii": [0.02, 0.05, 0.1, 0.3], "steps": 8 * steps // 3},
        },
    }


def report(metrics: dict, params: Params, seconds: float, command: str) -> str:
    """The page of one run's metrics."""
    parts = [
        "# The sandwich of real cities",
        f"`{command}`",
        f"{params.certify.tiles} crops of {params.certify.crop}² a city at {params.tile.gsd} m, "
        f"test scenes; fetch, "
        f"tile, train and certify took {seconds:.0f} s. Smoothing certifies the delivered U-Net "
        "(EfficientNet-lite0, ImageNet, trained with noise), the other roads a small network of "
        "their own; radii are of a road's own norm (pixel range [0,1]): compare rows of one road. "
        "Smoothing's certificates hold on a tile with confidence "
        f"{1 - params.certify.smoothing.alpha:g}; its clean IoU is the smoothed model's.",
    ]
    for method, result in metrics.items():
        rows = [
            [city, radius, row["certified"], row["attacked"], row["clean"]]
            for city, by_radius in result["city"].items() for radius, row in by_radius.items()
        ]  # fmt: skip
        header = ["city", f"radius ({UNIT[method]})", "certified", "attacked", "clean"]
        parts += [f"## {method}", table(header, rows), word(result)]
    return "\n\n".join(parts) + "\n"


def word(result: dict) -> str:
    """What the table must not hide."""
    weak = []
    for city, by_radius in result["city"].items():
        radius, row = next(iter(by_radius.items()))  # the smallest
        if row["clean"] < NEAR_ZERO:
            weak.append(f"{city}: the network itself finds next to nothing ({row['clean']:.3f})")
        elif row["certified"] < NEAR_ZERO:
            weak.append(
                f"{city}: next to nothing is certified even at {radius}, of "
                f"{row['clean']:.3f} clean"
            )
    return (
        f"Near zero: {'; '.join(weak)}."
        if weak
        else "Not near zero in any city at the smallest radius."
    )


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--cities", nargs="+", default=["austin", "montenegro"])
    parser.add_argument(
        "--steps", type=int, default=300, help="of training the smoothed U-Net; few for a trial"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/certify_real.md")
    parser.add_argument("--keep", type=Path, help="work here and keep everything")
    options = parser.parse_args()
    if not IMAGERY.is_dir():
        sys.exit("no real imagery: cities/ is not beside the checkout (../shared/cities)")
    params, out = parse_params(settings(options.cities, options.steps)), options.out.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        start = time.perf_counter()
        for stage in (fetch, tile, train, certify):
            stage.run(params)
        seconds = time.perf_counter() - start
        metrics = json.loads(Path("metrics/certify.json").read_text(encoding="utf-8"))
    command = f"python -m benchmarks.certify_real --cities {' '.join(options.cities)} --steps {options.steps}"
    text = report(metrics, params, seconds, command)
    out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
