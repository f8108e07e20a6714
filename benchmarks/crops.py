"""Random training crops a second from tiles on disk / from the same pixels in
memory: what memory mapping costs.

    python -m benchmarks.crops [--side 5000] [--crop 256]

Same crops, same code, no augmentation; the arrays are mapped files on one side and
copies in memory on the other. The files lie in the system's cache by then, as they
do from an epoch's second half on.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.ratio import arguments_of, medians, report
from benchmarks.tiling import PROFILES, city, parameters
from pipeline.stages.tile import tile_city
from pipeline.tiles.store import CityTiles
from pipeline.training.crops import RandomCrops

COUNT, ROUNDS = 2000, 5


def rate(crops: RandomCrops) -> float:
    start = time.perf_counter()
    for i in range(COUNT):
        crops[i]
    return COUNT / (time.perf_counter() - start)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--side", type=int, default=5000, help="pixels along a scene's side")
    parser.add_argument("--crop", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        town = city(Path(work), options.side, PROFILES["uncompressed"])
        tile_city(parameters(), town, Path(work) / town.city)
        mapped, resident = (CityTiles(Path(work) / town.city) for _ in range(2))
        resident._images, resident._labels = np.array(mapped._images), np.array(mapped._labels)
        disk, memory = (
            RandomCrops([tiles], options.crop, 0, "none") for tiles in (mapped, resident)
        )
        rate(disk), rate(memory)
        pairs = [(rate(disk), rate(memory)) for _ in range(ROUNDS)]
    ours, limit, ratio = medians(pairs)
    measured = f"{ours:.0f} and {limit:.0f} pairs of {options.crop}²/s in one process"
    report("training crops from tiles / from memory", ratio, 0.92, measured)


if __name__ == "__main__":
    main()
