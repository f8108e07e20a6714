"""What changed since the metrics were last committed, where git keeps them."""

import json
import math
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.report.results import STAGES, Results

MOST = 12  # rows shown
LEAST = 0.0005  # smaller changes are the last digit's
HEADLINES = {"iou", "unseen", "seen", "gap", "worst", "certified", "attacked", "object_f1", "ap50", "ece"}


@dataclass(frozen=True)
class Change:
    stage: str
    name: str
    before: float | None  # None: not there, or not measured
    after: float | None

    @property
    def size(self) -> float:
        """What comes or goes changes more than any number."""
        return math.inf if None in (self.before, self.after) else abs(self.after - self.before)


@dataclass(frozen=True)
class Changes:
    """`rows`: headline numbers, the greatest change first; `moved`, `added` and `gone`: how many numbers in all."""

    revision: str
    date: str
    rows: list[Change]
    moved: int
    added: int
    gone: int


def git(root: Path, *arguments: str) -> str | None:
    """What git answers; None where it is absent, or `root` is no checkout, or the command fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def leaves(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number of nested dicts with the keys that lead to it; how long a stage took is not one of its results."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, (int, float)) and not isinstance(tree, bool) and path[-1] != "seconds":
        yield path, tree


def committed(results: Results, stage: str) -> dict | None:
    """A stage's metrics in HEAD; None where HEAD has none. Raises InputError where they are not JSON."""
    text = git(results.root, "show", f"HEAD:./metrics/{stage}.json")
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise InputError(
            f"metrics/{stage}.json in the last commit is not valid JSON ({error}); commit a sound one"
        ) from None


def changes(results: Results) -> Changes | None:
    """The metrics against those in HEAD; None where HEAD has none."""
    kept = {stage: committed(results, stage) for stage in STAGES}
    if all(metrics is None for metrics in kept.values()):
        return None
    found = []
    for stage, metrics in kept.items():
        before, after = dict(leaves(metrics or {})), dict(leaves(results.metrics[stage]))
        for path in dict.fromkeys([*before, *after]):
            change = Change(stage, " · ".join(path), before.get(path), after.get(path))
            if change.size > LEAST:
                found.append((path, change))
    rows = [change for path, change in found if path[-1] in HEADLINES]
    rows.sort(key=lambda c: -c.size)
    added, gone = (sum(getattr(c, side) is None for _, c in found) for side in ("before", "after"))
    revision, date = (git(results.root, "log", "-1", f"--format={f}") for f in ("%h", "%cs"))
    return Changes(revision or "", date or "", rows[:MOST], len(found) - added - gone, added, gone)
