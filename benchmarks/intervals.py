"""How often "95 %" intervals hold the truth, on cities made to be hard in one way each.

    python -m benchmarks.intervals              a table, two minutes on one core
    python -m benchmarks.intervals --trials 200 a rougher one

Over scenes: `alike` and `uneven` scatter by 0.5 and 0.8 on the logit scale; of `built_up_better`
the large scenes are mapped better; of `one_in_eight_fails` one scene in eight is hardly mapped at
all. Over blocks of one scene: its errors are correlated over so many pixels (σ of a Gaussian), and
it is so many pixels wide; a dash: hardly any scene has one.
"""

import numpy as np
from scipy import ndimage
from scipy.special import expit

from benchmarks.ratio import arguments_of
from pipeline.scoring import blocks
from pipeline.scoring.blocks import CELL
from pipeline.scoring.bootstrap import IOU, iou_interval

Counts = tuple[np.ndarray, np.ndarray]  # intersections and unions
SCENES = (2, 3, 5, 10, 40)
RARE = 0.1  # share of scenes that have an interval, under which the table shows none


def alike(rng: np.random.Generator, count: int, spread: float = 0.5) -> Counts:
    """Scenes of any size whose IoU scatters around 0.7."""
    unions = rng.lognormal(10, 0.7, count)
    return expit(0.85 + spread * rng.normal(size=count)) * unions, unions


def uneven(rng: np.random.Generator, count: int) -> Counts:
    return alike(rng, count, 0.8)


def built_up_better(rng: np.random.Generator, count: int) -> Counts:
    size = rng.normal(size=count)
    unions = np.exp(10 + 1.2 * size)
    return expit(0.6 + 0.4 * size + 0.5 * rng.normal(size=count)) * unions, unions


def one_in_eight_fails(rng: np.random.Generator, count: int) -> Counts:
    unions = rng.lognormal(10, 0.7, count)
    well = expit(1.1 + 0.3 * rng.normal(size=count))
    return np.where(rng.random(count) < 1 / 8, 0.2, well) * unions, unions


CITIES = (alike, uneven, built_up_better, one_in_eight_fails)


def coverage(city, count: int, trials: int) -> float:
    """The share of intervals of `count` scenes that hold the IoU of half a million."""
    intersections, unions = city(np.random.default_rng(0), 500_000)
    truth, rng = intersections.sum() / unions.sum(), np.random.default_rng(1)
    found = [iou_interval(*city(rng, count), draws=100, seed=trial) for trial in range(trials)]
    return float(np.mean([low <= truth <= high for low, high in found]))


def scene(rng: np.random.Generator, side: int, correlated: float) -> np.ndarray:
    """(3, side, side) cells of a scene whose buildings are found well or badly over
    `correlated` pixels (σ).
    """
    field = rng.normal(size=(side, side))
    if correlated:
        field = ndimage.gaussian_filter(field, correlated / CELL, mode="wrap")
    union = rng.integers(800, 1600, (side, side))
    found = expit(1.2 + 0.8 * field / field.std() + 0.3 * rng.normal(size=(side, side)))
    return np.stack([np.rint(found * union).astype(int), union, np.full_like(union, CELL**2)])


def coverage_of_blocks(side: int, correlated: float, trials: int) -> tuple[float | None, float]:
    """The share of intervals over blocks that hold the truth, and the share of
    scenes that have one.
    """
    rng = np.random.default_rng(int(correlated) + side)
    counts = np.sum([scene(rng, side, correlated)[:2].sum((1, 2)) for _ in range(300)], axis=0)
    truth, hits = counts[0] / counts[1], []
    for trial in range(trials):
        units = blocks.blocks([scene(rng, side, correlated)], 256)
        low, high = iou_interval(units.intersection, units.union, 100, trial, held=units.held)
        if (low, high) != IOU:
            hits.append(low <= truth <= high)
    return (float(np.mean(hits)) if hits else None), len(hits) / trials


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--trials", type=int, default=2000, help="intervals a cell of the table")
    trials = parser.parse_args().trials
    print("| scenes |", " | ".join(map(str, SCENES)), "|\n|---|" + "---|" * len(SCENES))
    for city in CITIES:
        row = " | ".join(f"{coverage(city, count, trials):.3f}" for count in SCENES)
        print(f"| {city.__name__.replace('_', ' ')} | {row} |", flush=True)
    reaches = (0, 64, 128, 256)
    print(
        "\n| pixels wide |",
        " | ".join(f"over {reach} px" for reach in reaches),
        "|\n|---|" + "---|" * len(reaches),
    )
    for width in (768, 2048, 4096, 8192):
        found = [coverage_of_blocks(width // CELL, reach, max(1, trials // 4)) for reach in reaches]
        row = " | ".join(
            f"{hit:.3f} ({share:.0%} have one)" if share >= RARE else "–" for hit, share in found
        )
        print(f"| {width} | {row} |", flush=True)


if __name__ == "__main__":
    main()
