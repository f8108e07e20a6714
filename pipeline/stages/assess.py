"""Verb assess: how good a whole city's map is, from the frames that were labelled;
CITY/assessment.json and a table.

Of the sampled model, or, with --model, of one that `adapt` made from the same labels: then each
frame is judged by the model that was trained without it.
"""

from pathlib import Path

import numpy as np

from pipeline.assessment import geopackage, survey
from pipeline.assessment.adapting import cross_fitted
from pipeline.assessment.estimators import Design, Interval, assess, more_to_halve
from pipeline.assessment.geopackage import Labels
from pipeline.assessment.population import PROBABILITY, auxiliaries, building_levels, counts
from pipeline.assessment.promise import Promise, promise
from pipeline.assessment.survey import Survey
from pipeline.console import console, remark, table
from pipeline.errors import InputError
from pipeline.metrics import AssessMetrics, write

LEAST = 4  # labelled frames under which nothing is said
PER = ("frame", "area")


def run(
    folder: Path, *, model: Path | None = None, threshold: float | None = None,
    at_least_recall: float | None = None, confidence: float = 0.95, per: str = "frame",
) -> dict:  # fmt: skip
    """Raises InputError where the labels are not what `geopackage.read` accepts, or no estimate
    can be made of them.
    """
    city = survey.load(folder)
    if not city.probability_sample:
        raise InputError(
            f"{folder}: its frames were drawn to learn from ({city.about['strategy']}), so no "
            f"weight is known to "
            "make them stand for the city; draw a sample with --strategy probability and label that"
        )
    if (
        per not in PER
        or not 0 < confidence < 1
        or not (at_least_recall is None or 0 < at_least_recall < 1)
    ):
        raise InputError(
            "--at-least-recall and --confidence are between 0 and 1, --per is frame or area"
        )
    if model is not None and at_least_recall is not None:
        raise InputError(
            "--at-least-recall: nothing can be promised of a model of adapt, which these labels have "
            "taught; leave --model out, or sample frames anew with that model and label those"
        )
    labels = geopackage.read(city)
    if len(labels.done) < LEAST:
        raise InputError(
            f"{folder}: {len(labels.done)} frames are done; label at least {LEAST} for an estimate"
        )
    levels = (
        [city.levels(i) for i in labels.done]
        if model is None
        else cross_fitted(model, city, labels)
    )
    cut = city.threshold if threshold is None else threshold
    found = estimates(city, labels, levels, cut)
    if at_least_recall is not None:
        found["promise"] = promised(city, labels, levels, at_least_recall, confidence, per)
    write(folder / "assessment.json", AssessMetrics, found)
    _say(city, labels, found)
    return found


def design_of(city: Survey, labels: Labels) -> Design:
    return Design.of(city.stratum, labels.done)


def estimates(city: Survey, labels: Labels, levels: list[np.ndarray], threshold: float) -> dict:
    """IoU, precision, recall, F1 and built m², each with a 95 % interval:
    model-assisted and plain.
    """
    tallies = np.array(
        [counts(at, mask, threshold) for at, mask in zip(levels, labels.masks, strict=True)]
    )
    known = auxiliaries(
        city.frames.histogram, city.threshold
    )  # of the sampled model: fixed before anything was labelled
    design = design_of(city, labels)
    assisted, plain = (
        assess(tallies, design, known[labels.done], known.sum(0)),
        assess(tallies, design),
    )
    n = len(labels.done)
    return {
        "labelled": n, "unusable": len(labels.unusable), "frames": len(city.frames),
        "threshold": threshold, "assisted": _named(assisted, city.pixel_area),
        "plain": _named(plain, city.pixel_area),
        "more_to_halve": more_to_halve(n, len(city.frames)),
    }  # fmt: skip


def _named(found: dict[str, Interval], pixel_area: float) -> dict:
    built = found["built"]
    area = Interval(*(np.asarray(v) * pixel_area for v in (built.value, built.low, built.high)))
    return {
        **{name: v.shown() for name, v in found.items() if name != "built"},
        "built_m2": area.shown(),
    }


def promised(
    city: Survey,
    labels: Labels,
    levels: list[np.ndarray],
    recall: float,
    confidence: float,
    per: str,
) -> dict:
    """The highest threshold that is proven to find so much of the buildings,
    and the map it draws.
    """
    built = np.array(
        [building_levels(at, mask) for at, mask in zip(levels, labels.masks, strict=True)]
    )
    largest = (city.frames.window[:, 2] * city.frames.window[:, 3]).max()
    found = promise_of(
        built,
        1 / Design.of(city.stratum, labels.done, least=1).weights,
        len(city.frames),
        largest,
        1 - recall,
        confidence,
        per,
    )
    about = {
        "recall": recall,
        "confidence": confidence,
        "per": per,
        "threshold": found.threshold,
        "frames": found.frames,
    }
    if found.threshold is not None:
        about["map"] = estimates(city, labels, levels, found.threshold)["assisted"]
    return about


def promise_of(
    built: np.ndarray,
    inclusion: np.ndarray,
    frames: int,
    largest: float,
    share: float,
    confidence: float,
    per: str,
) -> Promise:
    """See `promise`; built: (n, LEVELS) building pixels of the labelled frames by level;
    largest: pixels of a frame.
    """
    area = built.sum(1)
    missed = built.cumsum(1).T / np.maximum(area, 1)
    size = (area > 0).astype(float) if per == "frame" else area / largest
    return promise(PROBABILITY, missed, size, inclusion, frames, share, confidence)


def _say(city: Survey, labels: Labels, found: dict) -> None:
    rows = []
    for name, ours in found["assisted"].items():
        plain = found["plain"][name]
        digits = 0 if name == "built_m2" else 3
        rows.append(
            [name, *(v and round(v, digits) for row in (ours, plain) for v in row.values())]
        )
    table(
        f"The whole city's map, from {found['labelled']} of {found['frames']} frames (95 % "
        f"intervals)",
        ["", "model-assisted", "low", "high", "plain", "low", "high"],
        rows,
    )
    if not labels.source.equals(geopackage.CRS.from_user_input(city.scenes[0].crs)):
        remark(
            "note",
            "yellow",
            f"the labels are in {labels.source.name}; they were brought back to the scenes' CRS",
        )
    if labels.clipped or labels.outside:
        remark(
            "note",
            "yellow",
            f"{labels.clipped} polygons reach out of their frames and were "
            f"clipped there, "
            f"{labels.outside} lie outside of every frame and were left out",
        )
    waiting = len(city.drawn) - len(labels.done) - len(labels.unusable)
    if waiting:
        first = {city.number(i) for i in labels.done} | {city.number(i) for i in labels.unusable}
        in_order = first == set(range(1, len(first) + 1))
        why = (
            ""
            if in_order
            else "; they were not labelled in order, so they count only if nobody chose which"
        )
        remark("note", "yellow", f"{waiting} frames are still to do{why}")
    if found["unusable"]:
        remark(
            "note",
            "yellow",
            f"{found['unusable']} unusable frames: the others of their stratum stand for them",
        )
    if found["more_to_halve"]:
        console.print(f"{found['more_to_halve']} more frames would halve the intervals")
    if "promise" in found:
        _say_promise(found["promise"], found["labelled"])


def _say_promise(p: dict, labelled: int) -> None:
    what = (
        "a frame's buildings, on average over frames," if p["per"] == "frame" else "the built area"
    )
    asked = f"at most {1 - p['recall']:.0%} of {what} missed, at {p['confidence']:.0%} confidence"
    if p["threshold"] is not None:
        m = p["map"]
        remark(
            "promise",
            "green",
            f"{asked}: predict with --threshold {p['threshold']:.4f} "
            f"(estimated: recall "
            f"{m['recall']['value']:.3f}, precision {m['precision']['value']:.3f})",
        )
    elif p["frames"] is None:
        remark(
            "no promise",
            "yellow",
            f"{asked}: no number of frames like these could prove it, the model misses more",
        )
    else:
        remark(
            "no promise",
            "yellow",
            f"{asked}: {labelled} frames cannot promise that; {p['frames']} like these could",
        )
