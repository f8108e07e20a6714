"""Runs side by side: the workspace, folders, metrics files, git revisions and experiments of `dvc
exp`, a row each.

A run is a `Results`, whatever keeps it. Where its dvc.lock says that a stage has
measured another model than the one that was trained last, as after `dvc exp run
evaluate`, that stage's numbers are left out.
"""

import csv
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

import yaml

from pipeline.console import console, table
from pipeline.errors import InputError, nearest
from pipeline.metrics import EvaluateMetrics, Metrics, read
from pipeline.params import Params, load_params, parse_params
from pipeline.report.answer import Measure, columns, measure
from pipeline.report.changes import Revision, git
from pipeline.report.results import Results
from pipeline.storage import atomic_file

EXPERIMENT = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(.+)")  # how DVC keeps them in git
# by their stages
KINDS = {"seen": "evaluate", "unseen": "generalize", "attacked": "attack", "certified": "certify"}
BEGIN = ["run", "city"]  # of every CSV that is ours


@dataclass(frozen=True)
class OneFile(Results):
    """A metrics file alone, as `evaluate --out` writes it."""

    file: Path = Path("metrics/evaluate.json")

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(evaluate=read(EvaluateMetrics, self.file))


@dataclass(frozen=True)
class Run:
    """What was measured, under its name; `settings`: the parameters by their dotted names, to
    tell runs apart.
    """

    name: str
    results: Results
    settings: dict[str, object]
    stale: frozenset[str] = frozenset()  # stages whose numbers are of another model

    def measures(self, kind: str) -> dict[str, Measure]:
        """A kind of the answer, or a number of evaluate.json, of each city and of their mean."""
        evaluated = {} if "evaluate" in self.stale else self.results.metrics.evaluate.city
        if kind not in KINDS:
            known = {city: getattr(row, kind, None) for city, row in evaluated.items()}
            cities = {city: Measure(value) for city, value in known.items() if _is_number(value)}
            return cities | _mean(cities)
        if KINDS[kind] in self.stale:
            return {}
        cities = next((found for k, found in columns(self.results) if k.name == kind), {})
        return cities | (self._own_mean(kind) or _mean(cities))

    def _own_mean(self, kind: str) -> dict[str, Measure]:
        """The mean over cities with the interval that its stage has given it."""
        metrics, found = self.results.metrics, None
        if kind == "seen":
            found = measure(metrics.evaluate.mean_city, "iou")
        elif kind == "unseen":
            found = measure(metrics.generalize.mean_city, "unseen")
        return {"mean city": found} if found else {}

    @property
    def kinds(self) -> list[str]:
        """Every name that `measures` knows."""
        rows = self.results.metrics.evaluate.city.values()
        return list(dict.fromkeys([*KINDS, *(k for row in rows for k, v in row if _is_number(v))]))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mean(cities: dict[str, Measure]) -> dict[str, Measure]:
    return (
        {"mean city": Measure(sum(m.iou for m in cities.values()) / len(cities))} if cities else {}
    )


def compare(
    names: list[str], kind: str = "seen", file: Path | None = None, root: Path = Path()
) -> None:
    """Print the runs' table, and write all their numbers as CSV where a `file` is named.

    names: none = the workspace and every experiment of it. Raises InputError where a name is no
    run, no run knows `kind`, or `file` is something else than an earlier comparison.
    """
    found = (
        [run(name, root) for name in names] if names else [workspace(root), *every_experiment(root)]
    )
    known = list(dict.fromkeys(k for one in found for k in one.kinds))
    if kind not in known:
        raise InputError(
            f"--of {kind}: no such number; did you mean {nearest(kind, known)}? There are "
            f"{', '.join(known)}"
        )
    rows = {one.name: one.measures(kind) for one in found}
    cities = list(
        dict.fromkeys(city for row in rows.values() for city in row if city != "mean city")
    )
    if not cities:
        raise InputError(
            f"no run has measured {kind}: run its stage first, or name another with --of"
        )
    shown = [*cities, "mean city"]
    table(
        f"{kind}, with 95 % intervals" if kind in KINDS else kind, ["run", *shown],
        [[name, *(_cell(row.get(city)) for city in shown)] for name, row in rows.items()],
    )  # fmt: skip
    for one in found[1:]:
        if different := differences(found[0].settings, one.settings):
            console.print(f"{one.name}: {', '.join(different)}")
    if file:
        write_csv(file, found, known)
        console.print(f"every number: {file}")


def _cell(measure: Measure | None) -> str | None:
    if measure is None:
        return None
    if measure.low is None:
        return f"{measure.iou:.3f}"
    return f"{measure.iou:.2f} {measure.low:.2f}–{measure.high:.2f}"


def write_csv(file: Path, runs: list[Run], kinds: list[str]) -> None:
    """A row a run and city, a column a number; `pandas.read_csv(file)` needs no more. An older
    one is replaced.
    """
    if file.exists() and file.read_text(encoding="utf-8", errors="replace").split(",")[:2] != BEGIN:
        raise InputError(
            f"{file}: is no earlier comparison and would be overwritten; name another file"
        )
    names = [
        name
        for kind in kinds
        for name in ([kind, f"{kind}_low", f"{kind}_high"] if kind in KINDS else [kind])
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial, partial.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, [*BEGIN, *names])
        writer.writeheader()
        for one in runs:
            writer.writerows(_rows(one, kinds))


def _rows(one: Run, kinds: list[str]) -> list[dict]:
    rows: dict[str, dict] = {}
    for kind in kinds:
        for city, m in one.measures(kind).items():
            row = rows.setdefault(city, {"run": one.name, "city": city})
            row |= {kind: m.iou} | (
                {f"{kind}_low": m.low, f"{kind}_high": m.high} if kind in KINDS else {}
            )
    return list(rows.values())


def run(name: str, root: Path) -> Run:
    """A folder with metrics/, a metrics file, an experiment or a revision. Raises InputError
    where it is none.
    """
    path = root / name
    if (path / "metrics").is_dir():
        return workspace(path, name)
    if path.is_file():
        return Run(name, OneFile(_params(None, root), root, path), {})
    revision = experiments(root).get(name) or git(
        root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"
    )
    if not revision:
        raise InputError(
            f"{name}: no folder with metrics/, no metrics file, no experiment (`dvc exp list`) and "
            f"no revision of git"
        )
    kept = {file: git(root, "show", f"{revision}:./{file}") for file in ("params.yaml", "dvc.lock")}
    settings, lock = (yaml.safe_load(text or "") or {} for text in kept.values())
    results = Revision(_params(settings, root), root, revision)
    return Run(name, results, dict(flat(settings)), stale(lock))


def workspace(root: Path, name: str = "workspace") -> Run:
    """What lies in a folder now."""
    settings, lock = (_yaml(root / file) for file in ("params.yaml", "dvc.lock"))
    return Run(name, Results(_params(settings, root), root), dict(flat(settings)), stale(lock))


def _yaml(path: Path) -> dict:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _params(settings: dict | None, root: Path) -> Params:
    """A run's own parameters, or today's where it has none that today's schema reads."""
    try:
        return parse_params(settings)
    except InputError:
        return load_params(
            root / "params.yaml" if (root / "params.yaml").is_file() else "params.yaml"
        )


def experiments(root: Path) -> dict[str, str]:
    """The names of DVC's experiments and their revisions, the oldest first."""
    listed = (
        git(
            root,
            "for-each-ref",
            "refs/exps",
            "--sort=committerdate",
            "--format=%(refname) %(objectname)",
        )
        or ""
    )
    pairs = (line.rsplit(" ", 1) for line in listed.splitlines())
    return {found[1]: revision for ref, revision in pairs if (found := EXPERIMENT.fullmatch(ref))}


def every_experiment(root: Path) -> list[Run]:
    return [run(name, root) for name in experiments(root)]


def stale(lock: dict) -> frozenset[str]:
    """Stages that depend on models/all and have not seen the one that train has made."""
    stages = lock.get("stages") or {}
    made = _hash(stages.get("train", {}).get("outs"))
    seen = {name: _hash(stage.get("deps")) for name, stage in stages.items() if name != "train"}
    return frozenset(name for name, found in seen.items() if made and found and found != made)


def _hash(entries: list[dict] | None) -> str | None:
    return next(
        (entry.get("md5") for entry in entries or [] if entry["path"] == "models/all"), None
    )


def flat(tree: dict, path: str = "") -> list[tuple[str, object]]:
    """Every parameter by its dotted name."""
    return [
        leaf
        for key, value in tree.items()
        for leaf in (
            flat(value, f"{path}{key}.")
            if isinstance(value, dict) and value
            else [(f"{path}{key}", value)]
        )
    ]


def differences(first: dict[str, object], other: dict[str, object]) -> list[str]:
    """`key=value` of what another run has set otherwise, as `dvc exp run -S` takes it."""
    if not first or not other:
        return []
    return [
        f"{key}={json.dumps(value)}"
        for key, value in other.items()
        if first.get(key, value) != value
    ]
