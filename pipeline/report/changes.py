"""What changed since the metrics were last committed, where git keeps them: the answer's
numbers, then and now.
"""

import json
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.errors import InputError
from pipeline.metrics import STAGES, Metrics, Record, parse
from pipeline.report.answer import Measure, columns
from pipeline.report.results import Results

LEAST = 0.0005  # smaller changes are the last digit's


@dataclass(frozen=True)
class Change:
    """An IoU of the answer that moved."""

    kind: str
    city: str
    before: Measure
    after: Measure

    @property
    def beyond(self) -> bool:
        """Whether the new number lies outside the old one's interval."""
        low, high = self.before.low, self.before.high
        return low is not None and high is not None and not low <= self.after.iou <= high


@dataclass(frozen=True)
class Changes:
    """`rows`: what moved of the `known` numbers that were there before, the
    greatest change first.
    """

    revision: str
    date: str
    rows: list[Change]
    known: int


def git(root: Path, *arguments: str) -> str | None:
    """What git answers; None where it is absent, or `root` is no checkout, or the command fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@dataclass(frozen=True)
class Revision(Results):
    """The metrics that git keeps of a revision. Raises InputError where they are not JSON."""

    revision: str = "HEAD"

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics.model_validate(
            {stage: self._kept(stage, kind) for stage, kind in STAGES.items()}
        )

    def _kept(self, stage: str, kind: type[Record]) -> Record:
        text = git(self.root, "show", f"{self.revision}:./metrics/{stage}.json")
        where = f"metrics/{stage}.json in {'the last commit' if self.revision == 'HEAD' else self.revision}"
        try:
            return kind() if text is None else parse(kind, json.loads(text), where)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{where} is not valid JSON ({error}); commit a sound one") from None


def changes(results: Results) -> Changes | None:
    """The answer against HEAD's; None where HEAD knows none of its numbers, as at a first run.

    Numbers are the same only where what they mean is: an IoU under another budget has not changed.
    """
    before, after = headlines(Revision(results.params, results.root)), headlines(results)
    both = [key for key in after if key in before]
    if not both:
        return None
    rows = [Change(key[0], key[2], before[key], after[key]) for key in both]
    rows = [c for c in rows if abs(c.after.iou - c.before.iou) > LEAST]
    rows.sort(key=lambda c: -abs(c.after.iou - c.before.iou))
    revision, date = (git(results.root, "log", "-1", f"--format={f}") for f in ("%h", "%cs"))
    return Changes(revision or "", date or "", rows, len(both))


def headlines(results: Results) -> dict[tuple[str, str, str], Measure]:
    """Every IoU of the answer by its kind, what that means, and its city."""
    return {
        (kind.name, kind.meaning, city): measure
        for kind, measures in columns(results)
        for city, measure in measures.items()
    }
