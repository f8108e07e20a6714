"""`dvc status` and a `dvc repro` with nothing to do, 180 scenes of Inria's size /
the same scenes empty.

    python -m benchmarks.no_op status | repro

Both projects are copies of this one with the preset inria: 5 cities of 36 scenes, 75 MB each, as
sparse files, and small stand-ins for all other outputs. Hashes are remembered by size and time of
change, so the limit is that nobody pays for pixels again: what DVC needs for the same stages and
files with nothing in them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.ratio import arguments_of, medians, report
from pipeline.presets import full

ROOT = Path(__file__).parents[1]
SCENES, BYTES, ROUNDS = 36, 5000 * 5000 * 3, 3


def project(folder: Path, size: int) -> Path:
    """A copy of the project whose stages are all done, with scenes of `size` bytes."""
    for name in ("pipeline", "data/sources", "data/watched"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(
        ROOT / ".dvc",
        folder / ".dvc",
        ignore=shutil.ignore_patterns("cache", "tmp", "config.local"),
    )
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(full(ROOT / "presets/inria.yaml"), encoding="utf-8")
    dvc(folder, "config", "--local", "core.no_scm", "true")
    cities = yaml.safe_load((folder / "params.yaml").read_text())["fetch"]["cities"]
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        for out in (
            name if isinstance(name, str) else next(iter(name)) for name in stage.get("outs", [])
        ):
            for city in cities:
                made = folder / out.replace("${item.city}", city)
                made.mkdir(parents=True, exist_ok=True)
                (made / "model.json").write_text(json.dumps([out, city]))
        for metrics in stage.get("metrics", []):
            path = folder / next(iter(metrics))
            path.parent.mkdir(exist_ok=True)
            path.write_text("{}")
    for city in cities:
        for i in range(SCENES):
            with (folder / "data/scenes" / city / f"{city}{i + 1}.tif").open("wb") as file:
                file.truncate(size)
    dvc(folder, "commit", "--force", "--quiet")
    return folder


def dvc(folder: Path, *arguments: str) -> float:
    """Seconds of a command; ends the benchmark where it fails or finds something to do."""
    start = time.perf_counter()
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode or (arguments[0] in ("status", "repro") and "up to date" not in done.stdout):
        sys.exit(f"dvc {' '.join(arguments)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return seconds


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    arguments.add_argument("command", choices=["status", "repro"])
    command = arguments.parse_args().command
    with tempfile.TemporaryDirectory() as work:
        empty, full = project(Path(work) / "empty", 0), project(Path(work) / "full", BYTES)
        dvc(empty, command), dvc(full, command)
        pairs = [(dvc(empty, command), dvc(full, command)) for _ in range(ROUNDS)]
    limit, ours, ratio = medians(pairs)
    measured = f"{limit:.1f} and {ours:.1f} s, 180 scenes of 75 MB"
    report(f"dvc {command} without pixels / with", ratio, 0.9, measured)
