"""The sandwich for real cities: certified ≤ attacked ≤ clean IoU on three roads, within ten minutes on two cores.

Run: python -m benchmarks.certify_real [--cities austin montenegro]. Reads ../shared/cities through the folder source,
trains one small U-Net with noise (what smoothing certifies), then runs the stage. Everything stays in a temporary
folder, or in --keep.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from pipeline.params import parse_params
from pipeline.stages import certify, fetch, tile, train

IMAGERY = Path(__file__).resolve().parents[2] / "shared" / "cities"


def settings(cities: list[str]) -> dict:
    return {
        "fetch": {"source": "folder", "path": str(IMAGERY), "cities": cities},
        "tile": {"gsd": 0.5, "size": 128, "bands": [1, 2, 3]},
        "train": {
            "model": {"architecture": "small_unet", "width": 16},
            "loss": {"cross_entropy": 1.0, "dice": 1.0},
            "learning_rate": 5e-3, "epochs": 6, "steps_per_epoch": 50, "batch_size": 8, "crop": 128,
            "noise": 0.1,
        },
        "certify": {
            "tiles": 4, "crop": 64, "attack_steps": 20,
            "smoothing": {"sigma": [0.05, 0.1, 0.25], "n0": 16, "n": 100},
            "convex": {"radii": [0.25, 0.5, 1, 2], "train_epsilon": 1, "steps": 600},
            "lipschitz": {"radii": [0.02, 0.05, 0.1, 0.3], "steps": 800},
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cities", nargs="+", default=["austin", "montenegro"])
    parser.add_argument("--keep", type=Path, help="work here and keep everything")
    options = parser.parse_args()
    if not IMAGERY.is_dir():
        sys.exit("no real imagery: cities/ is not beside the checkout (../shared/cities)")
    params = parse_params(settings(options.cities))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        start = time.perf_counter()
        for stage in (fetch, tile, train, certify):
            stage.run(params)
        print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
