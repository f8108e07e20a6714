"""The answer in one look: four IoUs a city, the worst city first, and one sentence made from them."""

from dataclasses import dataclass

from pipeline.report.results import Results


@dataclass(frozen=True)
class Kind:
    """A column of the answer: what is measured, its colour (Okabe and Ito) and its mark."""

    name: str
    colour: str
    mark: str
    meaning: str
    budget: str = ""  # of the change that it stands for, in words


@dataclass(frozen=True)
class Measure:
    iou: float
    low: float | None = None
    high: float | None = None
    clean: float | None = None  # of the same tiles, where the measure is of a few tiles under a change


@dataclass(frozen=True)
class Answer:
    kinds: list[Kind]
    rows: list[tuple[str, dict[str, Measure]]]
    sentence: str


def answer(results: Results) -> Answer:
    """Rows of the cities that anything is known of; kinds that no stage has measured are left out."""
    columns = [(seen_kind(results), seen(results)), *unseen(results), *attacked(results), *certified(results)]
    columns = [(kind, values) for kind, values in columns if values]
    rows = [(c, {kind.name: v[c] for kind, v in columns if c in v}) for c in results.cities]
    rows = [(city, row) for city, row in rows if row]
    return Answer([kind for kind, _ in columns], rows, sentence(results, rows[0][0]) if rows else "")


def measure(row: dict, name: str, prefix: str) -> Measure | None:
    """An IoU with its interval; [0, 1] is how the bootstrap says that one scene has no spread to show."""
    if row.get(name) is None:
        return None
    low, high = row.get(f"{prefix}_low"), row.get(f"{prefix}_high")
    if (low, high) == (0, 1):
        low = high = None
    return Measure(row[name], low, high, row.get("clean"))


def _known(rows: dict, name: str, prefix: str) -> dict[str, Measure]:
    measures = {city: measure(row, name, prefix) for city, row in rows.items()}
    return {city: m for city, m in measures.items() if m}


def seen_kind(results: Results) -> Kind:
    meaning = f"{results.params.evaluate.split} scenes of the cities the model was trained on"
    return Kind("seen", "#0072B2", "circle", meaning)


def seen(results: Results) -> dict[str, Measure]:
    """The delivered model's, else that of the gap's reference."""
    return _known(results.of("evaluate"), "iou", "iou") or _known(results.of("generalize"), "seen", "seen")


def unseen(results: Results) -> list[tuple[Kind, dict]]:
    meaning = "the same scenes, mapped by a model trained on the other cities only"
    if shorter(results):
        p = results.params
        meaning += f" (for {p.generalize.epochs} of {p.train.epochs} epochs only: expect more of a full training)"
    return [(Kind("unseen", "#E69F00", "diamond", meaning), _known(results.of("generalize"), "unseen", "unseen"))]


def shorter(results: Results) -> bool:
    """Whether the models without a city were trained for fewer epochs than the delivered one."""
    return (results.params.generalize.epochs or results.params.train.epochs) < results.params.train.epochs


def reference(results: Results) -> str:
    """The budget of the summaries as attack.json names it, or the least it has."""
    wanted = f"{results.params.attack.reference:g}"
    budgets = next((row["linf"] for row in results.of("attack").values() if row.get("linf")), {})
    return wanted if wanted in budgets else min(budgets, key=float, default=wanted)


def attacked(results: Results) -> list[tuple[Kind, dict]]:
    budget = reference(results)
    rows = {city: row["linf"].get(budget, {}) for city, row in results.of("attack").items()}
    meaning = f"the worst attack found, every pixel changed by at most {budget}/255 (an upper bound)"
    return [(Kind("attacked", "#D55E00", "triangle", meaning), _known(rows, "worst", "worst"))]


def certified(results: Results) -> list[tuple[Kind, dict]]:
    """The smallest radius of the first road that ran; smoothing certifies the delivered model itself."""
    for road in ("smoothing", "convex", "lipschitz"):
        cities = results.of("certify", road).get("city")
        if cities:
            radius = min(next(iter(cities.values())), key=float)
            length = f"{float(radius):.2g}/255 a pixel" if road == "convex" else f"{float(radius):.2g} in length (ℓ2)"
            of = "the smoothed model" if road == "smoothing" else f"the {road} network"
            meaning = f"proven of {of}: no change up to {length} leaves less (a lower bound)"
            rows = {city: by_radius.get(radius, {}) for city, by_radius in cities.items()}
            kind = Kind("certified", "#009E73", "square", meaning, length)
            return [(kind, _known(rows, "certified", "certified"))]
    return []


def sentence(results: Results, city: str) -> str:
    """What to expect of the worst city, in words. Attacks and certificates are of the model that has seen it."""
    row = results.of("generalize").get(city, {})
    known = seen(results).get(city)
    first, then = f"Of {city} only its robustness is known", "There"
    if row.get("unseen") is not None:
        gap = row["seen"] - row["unseen"]
        compared = "as much as" if abs(gap) < 0.005 else f"{abs(gap):.2f} {'less' if gap > 0 else 'more'} than"
        other = "an equally short training that has seen it" if shorter(results) else "where it was trained"
        first = f"In a city like {city} expect an IoU of {row['unseen']:.2f}, {compared} {other}"
        then = "Even where it was trained"
    elif known:
        first = f"In {city}, the hardest city it was trained on, expect an IoU of {known.iou:.2f}"
    harm = [
        f"on the tiles tried, a change of {reference(results)}/255 a pixel can bring it from {values[city].clean:.2f} "
        f"down to {values[city].iou:.2f}"
        for _, values in attacked(results)
        if city in values
    ]
    proof = [
        f"under any change up to {kind.budget}, {proven(values[city].iou)} of {values[city].clean:.2f} is proven "
        "to stay"
        for kind, values in certified(results)
        if city in values
    ]
    return f"{first}. {then}, {'; '.join(harm + proof)}." if harm or proof else f"{first}."


def proven(iou: float) -> str:
    return f"{iou:.2f}" if iou >= 0.005 else "nothing"
