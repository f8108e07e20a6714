"""Where the numbers come from: data and their rights, parameters, code,
versions, time and hardware.
"""

import json
import platform
from datetime import datetime
from importlib import metadata

import yaml

from pipeline.metrics import STAGES
from pipeline.report.changes import git
from pipeline.report.results import Results
from pipeline.runs import last_runs

LIBRARIES = (
    "torch",
    "lightning",
    "segmentation-models-pytorch",
    "numpy",
    "scipy",
    "rasterio",
    "geopandas",
    "dvc",
)
# a run with these is of other things than this page shows
FOREIGN = {"--params", "--model", "--tiles", "--out"}


def data(results: Results) -> list[dict]:
    """One row a city: how much there is of it, whose it is, and what may be done with it."""
    rows = []
    for city in results.cities:
        source, about = results.sources.get(city), results.tiles.get(city, {})
        if source or about:
            regions = about.get("regions", [])
            splits = {
                s: sum(r.split == s for r in regions) for s in ("train", "validation", "test")
            }
            rows.append({
                "city": city,
                "source": source.source if source else None,
                "rights": source.rights if source else None,
                "attribution": source.attribution if source else None,
                "splits": " / ".join(str(n) for n in splits.values()) if regions else None,
                "area": sum(r.pixels for r in regions) * about["gsd"] ** 2 / 1e6 if about else None,
                "building": about.get("statistics", {}).get("building"),
                "gsd": about.get("gsd"),
            })  # fmt: skip
    return rows


def parameters(results: Results) -> str:
    return yaml.safe_dump(
        json.loads(results.params.model_dump_json()), sort_keys=False, allow_unicode=True
    )


def versions() -> list[tuple[str, str]]:
    found = [("python", platform.python_version())]
    for name in LIBRARIES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def revision(results: Results) -> str:
    """The commit, and whether files kept by git differ from it; metrics are
    outcomes and do not count.
    """
    commit = git(results.root, "rev-parse", "HEAD")
    if not commit:
        return ""
    changed = git(
        results.root,
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":!metrics",
        ":!dvc.lock",
    )
    return f"{commit[:12]}{' with uncommitted changes' if changed else ''}"


def runs(results: Results) -> list[dict]:
    """When each stage ran last, how long and on what; a stage that runs once a city is one row,
    its times summed.
    """
    recorded: dict[str, list[dict]] = {}
    for run in last_runs(results.root):
        if not FOREIGN & {argument.split("=")[0] for argument in run["arguments"]}:
            fold = run["verb"] == "train" and "--without" in run["arguments"]  # one by one
            recorded.setdefault("holdout" if fold else run["verb"], []).append(run)
    rows = []
    for stage in (
        "fetch",
        "tile",
        "train",
        "holdout",
        *[stage for stage in STAGES if stage != "train"],
    ):
        path = results.root / f"metrics/{stage}.json"
        if stage in recorded:
            last = max(recorded[stage], key=lambda run: run["finished"])
            seconds = sum(run["seconds"] for run in recorded[stage])
            rows.append(
                {
                    "stage": stage,
                    "finished": last["finished"],
                    "seconds": seconds,
                    "on": last["hardware"],
                }
            )
        elif path.exists():
            written = (
                datetime.fromtimestamp(path.stat().st_mtime)
                .astimezone()
                .isoformat(timespec="minutes")
            )
            rows.append({"stage": stage, "finished": written, "seconds": None, "on": None})
    return rows
