"""The trainings of five held-out cities on one Ray worker and on two, a thread each.

    python -m benchmarks.folds

Six trainings, the five folds and their reference on all cities, as `generalize` asks them of each
seed. (The folds alone are five equal parts: on two workers 5/3 at most.) Both sides include the
start of Ray's workers; weights must be the same bytes.
"""

import os
import tempfile
import time
from pathlib import Path

from benchmarks.demo_tiles import demo_params, demo_tiles
from benchmarks.predict import apart
from benchmarks.ratio import arguments_of, cannot, report
from pipeline.runs import cores

SEED, STEPS, GOAL = 1, 80, 1.7
FIVE = ["brickvale", "marlstead", "tinroof", "pinemoor", "duskholm"]
WHAT = "five folds and their reference, one Ray worker / two"


def trainings(folder: Path, workers: int) -> tuple[float, dict[str, str]]:
    """Seconds, and each model's digest."""
    import ray

    from pipeline.stages.generalize import folds, models_of_seed
    from pipeline.storage import digest

    params = demo_params(cities=FIVE)
    train = params.train.model_copy(update={"epochs": 1, "steps_per_epoch": STEPS})
    generalize = params.generalize.model_copy(update={"epochs": None})
    params = params.model_copy(update={"train": train, "generalize": generalize})
    cities = {city.city: city for city in demo_tiles(params)}
    folder.mkdir()
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    begun = time.perf_counter()
    models = models_of_seed(params, cities, folds(cities), folder, SEED, "local")
    return time.perf_counter() - begun, {
        n: digest(model / "weights.safetensors") for n, model in models.items()
    }


def main() -> None:
    arguments_of(__doc__).parse_args()
    if cores() < 2:
        cannot(WHAT, GOAL, "one core")
    demo_tiles(demo_params(cities=FIVE))
    with tempfile.TemporaryDirectory() as folder:
        (one, alone), (two, together) = (
            apart(trainings, Path(folder, str(n)), n)["value"] for n in (1, 2)
        )
    measured = (
        f"{one:.0f} and {two:.0f} s, {'the same' if alone == together else 'DIFFERENT'} weights"
    )
    report(WHAT, one / two, GOAL, measured)


if __name__ == "__main__":
    main()
