"""Rows a second kept from a cell of Open Buildings, against plain decompression of the same file.

    python -m benchmarks.open_buildings [ROWS]

A cell of 1 million buildings (default) is written once to a temporary folder. The
ratio is the time gzip alone takes to that of `keep_near`, which also parses every
centroid and the polygons near the scene, while the next rows are unpacked.
"""

import gzip
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.ratio import arguments_of, medians, report
from pipeline.console import table
from pipeline.sources.open_buildings.source import COLUMNS, keep_near

SCENE = (32.59, 0.30, 32.61, 0.32)  # degrees: 2.2 km of a city
ROUNDS = 3


def write_cell(path: Path, rows: int) -> None:
    """Rectangles, half of them even over 5 degrees, half in a city of 0.3
    degrees around the scene.
    """
    random = np.random.default_rng(0)
    anywhere = random.uniform((30, -2), (35, 2), (rows // 2, 2))
    city = random.uniform((32.45, 0.15), (32.75, 0.45), (rows - rows // 2, 2))
    middle = np.concatenate([anywhere, city])
    half = random.uniform(3e-5, 1e-4, (rows, 2))
    confidence = random.uniform(0.65, 1, rows)
    with gzip.open(path, "wt", compresslevel=6) as file:
        file.write(COLUMNS + "\n")
        for (x, y), (w, h), sure in zip(
            middle.tolist(), half.tolist(), confidence.tolist(), strict=True
        ):
            corners = [
                (x - w, y - h),
                (x + w, y - h),
                (x + w, y + h),
                (x - w, y + h),
                (x - w, y - h),
            ]
            ring = ", ".join(f"{a:.14f} {b:.14f}" for a, b in corners)
            area = 4 * w * h * 111_320**2
            file.write(f'{y:.8f},{x:.8f},{area:.4f},{sure:.4f},"POLYGON(({ring}))",6GCRPR67+XXXX\n')


def decompress(path: Path) -> int:
    with gzip.open(path) as file:
        return sum(len(chunk) for chunk in iter(lambda: file.read(1 << 20), b""))


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.csv.gz"
        write_cell(path, rows)
        pairs = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            size = decompress(path)
            middle = time.perf_counter()
            kept = len(keep_near(path, [SCENE]))
            pairs.append((middle - start, time.perf_counter() - middle))
    unpacking, filtering, ratio = medians(pairs)
    lines = [
        [name, seconds, int(rows / seconds), size / seconds / 1e6]
        for name, seconds in {"plain decompression": unpacking, "filter": filtering}.items()
    ]
    table(f"{rows} rows, {kept} kept", ["", "s", "rows/s", "MB/s"], lines)
    measured = f"{rows / filtering / 1e6:.2f} million rows/s, {kept} of {rows} kept"
    report("plain decompression / filtering a cell", ratio, 0.6, measured)


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    arguments.add_argument("rows", type=int, nargs="?", default=1_000_000)
    main(arguments.parse_args().rows)
