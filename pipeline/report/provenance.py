"""Where the numbers come from: data and their rights, parameters, code, versions, time and hardware."""

import json
import os
import platform
from datetime import datetime
from importlib import metadata
from pathlib import Path

import yaml

from pipeline.report.changes import git
from pipeline.report.results import STAGES, Results

LIBRARIES = ("torch", "lightning", "segmentation-models-pytorch", "numpy", "scipy", "rasterio", "geopandas", "dvc")


def data(results: Results) -> list[dict]:
    """One row a city: how much there is of it, whose it is, and what may be done with it."""
    rows = []
    for city in results.cities:
        source, about = results.sources.get(city), results.tiles.get(city, {})
        if source or about:
            regions = about.get("regions", [])
            splits = {s: sum(r.split == s for r in regions) for s in ("train", "validation", "test")}
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
    return yaml.safe_dump(json.loads(results.params.model_dump_json()), sort_keys=False, allow_unicode=True)


def versions() -> list[tuple[str, str]]:
    found = [("python", platform.python_version())]
    for name in LIBRARIES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def revision(results: Results) -> str:
    """The commit, and whether files kept by git differ from it; metrics are outcomes and do not count."""
    commit = git(results.root, "rev-parse", "HEAD")
    if not commit:
        return ""
    changed = git(results.root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!metrics", ":!dvc.lock")
    return f"{commit[:12]}{' with uncommitted changes' if changed else ''}"


def machine() -> str:
    """The machine this page is made on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {platform.system()}"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def runs(results: Results) -> list[dict]:
    """When each stage wrote its metrics, and what training says of its time and device."""
    training = results.card.get("training") or {}
    rows = []
    for stage in STAGES:
        path = results.root / f"metrics/{stage}.json"
        if path.exists():
            written = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
            row = {"stage": stage, "written": f"{written:%Y-%m-%d %H:%M}", "seconds": None, "device": None}
            if stage == "train" and training:
                row |= {"seconds": training.get("seconds"), "device": training.get("device")}
            rows.append(row)
    return rows
