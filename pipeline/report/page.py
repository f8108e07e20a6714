"""The page: results in, one self-contained HTML text out."""

import base64
import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.attacks.audit import failures
from pipeline.report import charts, colours, provenance
from pipeline.report.answer import answer, budget, down
from pipeline.report.changes import changes
from pipeline.report.downloads import downloads
from pipeline.report.explained import explained, rests_on
from pipeline.report.footprints import colour, ink, maps
from pipeline.report.results import Results
from pipeline.report.viewer import examples, pictures
from pipeline.runs import hardware

HERE = Path(__file__).parent
ESTIMATES = {
    "thresholded": "average thresholded confidence, once a class",
    "atc": "average thresholded confidence",
    "expected": "calibrated Soft Dice Confidence",
}
GUESSES = {
    "no_gap": "that a new city is mapped like the others",
    "mean_gap": "that it loses what other new cities lose",
    "mean_unseen": "that it is mapped like other new cities",
}
Row = TypeVar("Row")
MANY = 12  # rows of a table beyond which they are folded away


def page(results: Results, drawn: dict[str, list[charts.Gallery]]) -> str:
    """The HTML of everything that has run, with its figures as `charts.galleries` drew them.

    All text is escaped, and the page may load nothing from anywhere.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = score
    shared: dict[str, Any] = {"colour": colour, "ink": ink, "many": MANY, "down": down}
    environment.globals.update(shared)
    style, script = (
        Markup((HERE / name).read_text(encoding="utf-8")) for name in ("style.css", "viewer.js")
    )
    shown = pictures(results)
    metrics = results.metrics
    evaluated = in_order(results, metrics.evaluate.city)
    return environment.get_template("page.html.j2").render(
        title=results.params.report.title,
        made=f"{datetime.now():%d %B %Y}",
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        results=results,
        answer=answer(results),
        pictures=shown,
        legends={
            "truth": {"building": colours.TRUTH},
            "prediction": {"building": colours.PREDICTION},
            "errors": {
                "found": colours.FOUND,
                "invented": colours.INVENTED,
                "missed": colours.MISSED,
            },
            "confidence": {"0": colour(0), "½": colour(0.5), "1": colour(1)},
        },
        maps=maps(results, shown),
        evaluated=evaluated,
        outlines={c: row.outlines for c, row in evaluated.items() if row.outlines},
        fairness=metrics.evaluate.fairness,
        classes=list(dict.fromkeys(k for row in evaluated.values() for k in row.class_iou)),
        learning=[*drawn["learning"], *drawn["confidence"]],
        matrix=heat_map(results),
        unseen=[*drawn["corruption"], *drawn["adaptation"]],
        robustness=metrics.generalize.robustness,
        estimate=estimate(results),
        few_labels=few_labels(results),
        attack=drawn["attack"],
        budget=budget(results),
        attack_examples=examples(results),
        attack_city=in_order(results, metrics.attack.city),
        audit=metrics.attack.audit,
        audit_numbers=metrics.attack.audit_numbers,
        audit_failed=failures(metrics.attack.audit),
        sandwich=drawn["sandwich"],
        explained=in_order(results, metrics.explain.city),
        rests_on=rests_on(results),
        cues=drawn["cues"],
        faithful=metrics.explain.attribution,
        explained_examples=explained(results),
        incremental=metrics.incremental,
        privacy=metrics.privacy,
        changes=changes(results),
        downloads=downloads(results),
        provenance={
            "data": provenance.data(results),
            "parameters": provenance.parameters(results),
            "versions": provenance.versions(),
            "revision": provenance.revision(results),
            "machine": hardware(),
            "runs": provenance.runs(results),
        },
    )


def in_order(results: Results, rows: dict[str, Row]) -> dict[str, Row]:
    """As the page's cities come."""
    return {city: rows[city] for city in results.cities if city in rows}


def score(value: float | None, digits: int = 2) -> str:
    """0.58, or a dash where nothing was measured."""
    return "–" if value is None else f"{value:.{digits}f}"


def estimate(results: Results) -> dict | None:
    """Of the IoU estimated without labels and of naive guesses what erred
    least, and the mean errors of both.
    """
    label_free = results.metrics.generalize.label_free
    guess, shown = label_free.naive, label_free.estimate
    if not guess or not shown:
        return None
    errors = label_free.mean_error
    error, usual = errors[shown], errors[guess]
    rows = in_order(results, label_free.city)
    return {
        "guess": GUESSES[guess],
        "name": ESTIMATES[shown],
        "error": error,
        "guess_error": usual,
        "beaten": error is not None and usual is not None and error < usual,
        "rows": [
            (city, row.iou, getattr(row, shown), getattr(row, guess)) for city, row in rows.items()
        ],
    }


def few_labels(results: Results) -> dict | None:
    """What labelled frames tell of a city and teach a model: rows of (city, IoU, interval, width,
    plain width) and of (city, strategy, IoU by number of frames, change of the other cities).
    """
    found = results.metrics.few_labels
    known = {city: entry for city, entry in found.city.items() if entry}
    of = {city: entry.interval for city, entry in known.items() if entry.interval}
    counts = sorted({n for interval in of.values() for n in interval}, key=int)
    shown = "20" if "20" in counts else next(iter(counts), None)
    told = [
        (
            city,
            known[city].iou,
            row["iou"]["assisted"],
            row["iou"]["plain"],
            row["built"]["assisted"],
        )
        for city, interval in of.items()
        if (row := interval.get(shown))
    ]
    taught = [
        (city, strategy, [entry.iou, *ious.values()], found.forgotten[strategy][city])
        for city, entry in known.items()
        for strategy, ious in entry.learned.items()
    ]
    budgets = list(next(iter(known[taught[0][0]].learned.values()))) if taught else []
    return (
        {"frames": shown, "told": told, "taught": taught, "budgets": budgets}
        if told or taught
        else None
    )


def heat_map(results: Results) -> list[tuple[str, list[tuple[str, float | None, bool]]]]:
    """Rows of (model, cells of (city, IoU, whether the model has not seen the
    city)): all, then the worst city's.

    None for a single city, which nothing is held out of.
    """
    table = results.metrics.generalize.matrix
    order = ["all", *(f"{kind}-{city}" for kind in ("without", "only") for city in results.cities)]
    models = [m for m in order if m in table] + [m for m in table if m not in order]
    cities = [c for c in results.cities if any(c in row for row in table.values())]
    if len(cities) < 2:
        return []

    def is_unseen(model: str, city: str) -> bool:
        return model == f"without-{city}" or (model.startswith("only-") and model != f"only-{city}")

    return [(m, [(c, table[m].get(c), is_unseen(m, c)) for c in cities]) for m in models]
