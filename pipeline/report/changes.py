"""What changed since the metrics were last committed, where git keeps them."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.report.results import STAGES, Results

MOST = 12  # rows shown
LEAST = 0.0005  # smaller changes are the last digit's
HEADLINES = {"iou", "unseen", "seen", "gap", "worst", "certified", "attacked", "object_f1", "ece"}


@dataclass(frozen=True)
class Change:
    stage: str
    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Changes:
    """`rows`: headline numbers, the greatest change first; `total`: how many numbers changed in all."""

    revision: str
    date: str
    rows: list[Change]
    total: int


def git(root: Path, *arguments: str) -> str | None:
    """What git answers; None where it is absent, or `root` is no checkout, or the command fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def leaves(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number of nested dicts with the keys that lead to it."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, (int, float)) and not isinstance(tree, bool):
        yield path, tree


def changes(results: Results) -> Changes | None:
    """The metrics against those in HEAD; None where HEAD has none."""
    committed = {stage: git(results.root, "show", f"HEAD:./metrics/{stage}.json") for stage in STAGES}
    if not any(committed.values()):
        return None
    moved = []
    for stage, text in committed.items():
        before = dict(leaves(json.loads(text))) if text else {}
        for path, after in leaves(results.metrics[stage]):
            if path in before and abs(after - before[path]) > LEAST and path[-1] != "seconds":
                moved.append((path, Change(stage, " · ".join(path), before[path], after)))
    rows = [change for path, change in moved if path[-1] in HEADLINES]
    rows.sort(key=lambda c: -abs(c.after - c.before))
    revision, date = (git(results.root, "log", "-1", f"--format={f}") for f in ("%h", "%cs"))
    return Changes(revision or "", date or "", rows[:MOST], len(moved))
