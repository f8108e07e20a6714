"""The answer in one look: four IoUs a city, the worst city first, and a few
plain sentences made from them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.metrics import Record, Sandwich
from pipeline.params import METHODS
from pipeline.report.colours import BOUNDS, SEEN, UNSEEN
from pipeline.report.results import Results


@dataclass(frozen=True)
class Kind:
    """A column of the answer: what is measured, its colour and its mark."""

    name: str
    colour: str
    mark: str
    meaning: str


@dataclass(frozen=True)
class Measure:
    """An IoU, its 95 % interval where one is known, and what it would be `of` a city seen or
    tiles left alone.
    """

    iou: float
    low: float | None = None
    high: float | None = None
    of: float | None = None


@dataclass(frozen=True)
class Answer:
    kinds: list[Kind]
    rows: list[tuple[str, dict[str, Measure]]]
    lead: str
    without_interval: list[str]  # sentences on why


def answer(results: Results) -> Answer:
    """Rows of the cities that anything is known of; kinds that no stage has
    measured are left out.
    """
    known = columns(results)
    rows = [(c, {kind.name: v[c] for kind, v in known if c in v}) for c in results.cities]
    return Answer(
        [kind for kind, _ in known],
        [(city, row) for city, row in rows if row],
        lead(results),
        without_interval(results),
    )


def columns(results: Results) -> list[tuple[Kind, dict[str, Measure]]]:
    """Each kind that was measured, and its IoU of each city."""
    measured = (seen(results), unseen(results), attacked(results), certified(results))
    return [(kind, values) for kind, values in zip(kinds(results), measured, strict=True) if values]


def kinds(results: Results) -> list[Kind]:
    p = results.params
    epochs = f"{p.generalize.epochs}, not {p.train.epochs} epochs"
    brief = f"; both of {epochs}: compare only these two" * results.brief
    # where the delivered model is not measured
    reference = f", by a model of {epochs}" * (results.brief and not delivered(results))
    road, radius = proof(results)
    whose = METHODS[road].whose(results.metrics.certify.of(road).deployed)
    sure = (
        f", {100 * (1 - p.certify.smoothing.alpha):g} % sure of each tile"
        if road == "smoothing"
        else ""
    )
    return [
        Kind(
            "seen",
            SEEN,
            "circle",
            f"{p.evaluate.split} scenes of the cities the model was trained on{reference}",
        ),
        Kind(
            "unseen",
            UNSEEN,
            "diamond",
            "the same scenes by a model that has not seen their "
            "city, of what one "
            f"trained alike that has seen it reaches{brief}",
        ),
        Kind(
            "attacked",
            BOUNDS["attacked"],
            "triangle",
            "the worst attack found, every pixel "
            "changed by at most "
            f"{budget(results)}/255 (an upper bound)",
        ),
        Kind(
            "certified",
            BOUNDS["certified"],
            "square",
            f"proven of {whose}{sure}: no change up "
            f"to "
            f"{length(road, radius)}{pixel(road, radius)} leaves less (a lower bound)",
        ),
    ]


def measures(rows: Mapping[str, Record], name: str, of: str = "") -> dict[str, Measure]:
    """The IoU `name` of each row that has it, and its interval where there is one."""
    found = {city: measure(row, name, of) for city, row in rows.items()}
    return {city: one for city, one in found.items() if one}


def measure(row: Record, name: str, of: str = "") -> Measure | None:
    """A record's number, with what stands as NAME_low, NAME_high and `of` beside it."""
    value, *rest = (getattr(row, key, None) for key in (name, f"{name}_low", f"{name}_high", of))
    return None if value is None else Measure(value, *rest)


def without_interval(results: Results) -> list[str]:
    """Why no interval of a city's scenes is shown."""
    measured = results.metrics.evaluate.city
    bare = [city for city, m in seen(results).items() if m.low is None and city in measured]
    small = [city for city in bare if measured[city].units == 1]
    extreme = [city for city in bare if city not in small and measured[city].iou in (0, 1)]
    return [
        *(
            f"None is shown of {', '.join(few)}: {why}."
            for few, why in (
                (
                    small,
                    "a single test scene with buildings, of too few blocks, says nothing of others",
                ),
                (
                    extreme,
                    "an IoU of 0 or 1 in every scene does not say how far the others are from it",
                ),
            )
            if few
        )
    ]


def sandwich(results: Results) -> dict[str, dict[str, float]]:
    """Certified, attacked and clean IoU of each city, of one model and radius
    and on the same crops.
    """
    return {
        city: {name: getattr(row, name) for name in BOUNDS}
        for city, row in at_radius(results).items()
        if row.certified is not None
    }


def at_radius(results: Results) -> dict[str, Sandwich]:
    """Each city's row of the page's certificate."""
    road, radius = proof(results)
    return {
        city: by_radius[radius]
        for city, by_radius in results.metrics.certify.of(road).city.items()
        if radius in by_radius
    }


def seen(results: Results) -> dict[str, Measure]:
    """The delivered model's, else that of the gap's reference."""
    return delivered(results) or measures(results.metrics.generalize.city, "seen")


def delivered(results: Results) -> dict[str, Measure]:
    return measures(results.metrics.evaluate.city, "iou")


def unseen(results: Results) -> dict[str, Measure]:
    return measures(results.metrics.generalize.city, "unseen", of="seen")


def attacked(results: Results) -> dict[str, Measure]:
    at = budget(results)
    rows = {
        city: row.linf[at] for city, row in results.metrics.attack.city.items() if at in row.linf
    }
    return measures(rows, "worst", of="clean")


def certified(results: Results) -> dict[str, Measure]:
    return measures(at_radius(results), "certified", of="clean")


def budget(results: Results) -> str:
    """The budget of the summaries as attack.json names it, or the least it has."""
    wanted = f"{results.params.attack.reference:g}"
    budgets = next((row.linf for row in results.metrics.attack.city.values() if row.linf), {})
    return wanted if wanted in budgets else min(budgets, key=float, default=wanted)


def proof(results: Results) -> tuple[str, str]:
    """The first road to a certificate that ran, and its smallest radius; smoothing certifies
    the delivered model.
    """
    for road in METHODS:
        for by_radius in results.metrics.certify.of(road).city.values():
            return road, min(by_radius, key=float)
    return "smoothing", "0"


def length(road: str, radius: str) -> str:
    """A radius in words, rounded down: what is said must have been proven."""
    return (
        f"{float(radius):g}/255 a pixel"
        if METHODS[road].norm == "linf"
        else f"{down(radius):g} in length (ℓ2)"
    )


def pixel(road: str, radius: str) -> str:
    """How much, or how little, a length over a whole crop is."""
    if METHODS[road].norm == "linf":
        return ""
    return f" over the whole crop, as of one channel of one pixel by {math.floor(255 * down(radius))}/255,"


def down(radius: str | float) -> float:
    return math.floor(1000 * float(radius)) / 1000


def lead(results: Results) -> str:
    """What to expect of cities seen and not seen, under attack and in proof: each of the city
    where it is worst.
    """
    return " ".join(
        [*where_trained(results), *elsewhere(results), *under_attack(results), *proven(results)]
    )


def where_trained(results: Results) -> list[str]:
    known = seen(results)
    return [f"Where it was trained, expect an IoU of {across(known)}."] if known else []


def elsewhere(results: Results) -> list[str]:
    """The IoU of a short training says little of a full one; what it loses in a
    city not seen says more.
    """
    known = {city: (m.iou, m.of) for city, m in unseen(results).items() if m.of is not None}
    if not known:
        return []
    city = min(known, key=lambda c: known[c][0] - known[c][1] if results.brief else known[c][0])
    iou, of = known[city]
    if of - iou < 0.005:
        other = "an equally short training that saw it" if results.brief else "where it was trained"
        return [f"A city like {city}, never seen: {iou:.2f}, no less than {other}."]
    if results.brief:
        return [
            f"A city like {city}, never seen: {iou:.2f}, where an equally short training that saw "
            f"it reaches {of:.2f}."
        ]
    return [
        f"In a city like {city}, never seen, expect {iou:.2f}, {of - iou:.2f} less than where "
        f"it was trained."
    ]


def under_attack(results: Results) -> list[str]:
    known = attacked(results)
    if not known:
        return []
    city = min(known, key=lambda c: known[c].iou)
    change = f"On the tiles attacked, a change of at most {budget(results)}/255 a pixel"
    return [f"{change} takes {city} from {known[city].of:.2f} down to {known[city].iou:.2f}."]


def proven(results: Results) -> list[str]:
    known = certified(results)
    if not known:
        return []
    kept = across(known) if max(m.iou for m in known.values()) >= 0.005 else "nothing"
    return [f"Whatever the change up to {length(*proof(results))}, {kept} is proven to stay."]


def across(known: dict[str, Measure]) -> str:
    """The least and the greatest IoU with their cities."""
    worst, best = (pick(known, key=lambda c: known[c].iou) for pick in (min, max))
    if len(known) == 1:
        return f"{known[worst].iou:.2f}"
    return f"{known[worst].iou:.2f} ({worst}) to {known[best].iou:.2f} ({best})"
