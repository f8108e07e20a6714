"""Charts as inline SVG, drawn by matplotlib: small panels that wrap on a phone,
with text that stays text.
"""

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.backends.backend_svg  # savefig must find its backend within the style
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, MaxNLocator

from pipeline.metrics import Sandwich, SizeBin
from pipeline.params import METHODS
from pipeline.report.answer import budget
from pipeline.report.colours import ATTACKS, BOUNDS, CITIES, GREY, INK
from pipeline.report.results import Results, read

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a city may be called $x$
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.8,
    "ytick.minor.size": 0,
}


@dataclass(frozen=True)
class Line:
    name: str
    x: list[float]
    y: list[float | None]
    colour: str
    width: float = 1.5
    steps: str = "default"  # "steps-pre": a value holds before its x too, "steps-post": after it


@dataclass(frozen=True)
class Chart:
    """A figure, drawn once: `svg` stands in the page, `file` is the same for `dvc plots`."""

    title: str
    svg: Markup
    file: str


@dataclass(frozen=True)
class Gallery:
    """Charts of one kind with one legend; those past `first` are folded away."""

    title: str
    text: str
    charts: list[Chart]
    legend: dict[str, str] = field(default_factory=dict)  # name to colour
    first: int = 6


RADIUS = {"linf": "radius, ℓ∞ in 1/255", "l2": "radius, ℓ2"}  # short enough for a small panel
RELIABILITY = [
    ("reliability.json", "as trained", GREY),
    ("reliability_calibrated.json", "calibrated", INK),
]
SMALL, WIDE = (2.3, 1.9), (4.8, 2.2)  # inches of a panel among others, and of one alone
# inches around the axes: panels of a gallery line up, and nothing is drawn twice to find its place
LEFT, RIGHT, TOP, BOTTOM, LINE = 0.64, 0.16, 0.08, 0.46, 0.17


def panel(
    title: str,
    lines: list[Line],
    x: str,
    y: str = "IoU",
    *,
    size=SMALL,
    prepare: Callable | None = None,
    **limits,
) -> Chart:
    """One chart of lines; `prepare` draws beneath them, `limits` go to matplotlib's Axes.set."""
    style: Any = {**STYLE, "svg.hashsalt": title}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        lines_below = max(map(_lines, limits.get("xticklabels", [])), default=1)
        axes = figure.add_axes(_inside(*size, lines_below))
        axes.set_axisbelow(True)
        for line in lines:
            mark: dict = (
                {"marker": "o", "markersize": 3} if len(line.x) < 30 and line.width > 1 else {}
            )
            values = [np.nan if v is None else v for v in line.y]
            # nothing was measured at its first x, it only says how far back y holds
            if line.steps == "steps-pre":
                mark |= {"markevery": slice(1, None)}
            axes.plot(
                line.x,
                values,
                color=line.colour,
                linewidth=line.width,
                drawstyle=line.steps,
                **mark,
            )
        axes.set_yticks([0.25, 0.75], minor=True)
        axes.grid(which="minor")
        axes.set(xlabel=x, ylabel=y, **{"ylim": (0, 1.02), "yticks": (0, 0.5, 1), **limits})
        axes.yaxis.set_major_formatter("{x:g}")
        if "xticks" not in limits:
            axes.xaxis.set_major_locator(
                MaxNLocator(5, integer=x == "epoch", steps=[1, 2, 2.5, 5, 10])
            )
        if prepare:
            prepare(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    return Chart(title, inline(drawn, f"{title}: {y} against {x}"), drawn)


def _lines(text: str) -> int:
    return text.count("\n") + 1


def _inside(width: float, height: float, lines: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of the axes in shares of a panel whose ticks have so many
    lines of text.
    """
    bottom = BOTTOM + (lines - 1) * LINE
    wide, high = width - LEFT - RIGHT, height - bottom - TOP
    return LEFT / width, bottom / height, wide / width, high / height


def galleries(results: Results) -> dict[str, list["Gallery"]]:
    """Every figure there is, by what it is about; a stage that has not run has none."""
    kinds = learning, confidence, attack, sandwich, cues, corruption, adaptation
    return {kind.__name__: kind(results) for kind in kinds}


def write_figures(drawn: Iterable["Gallery"], folder: Path) -> None:
    """Each chart as FOLDER/GALLERY/CHART.svg."""
    for gallery in drawn:
        place = folder / slug(gallery.title)
        place.mkdir(parents=True, exist_ok=True)
        for chart in gallery.charts:
            (place / f"{slug(chart.title)}.svg").write_text(chart.file, encoding="utf-8")


def slug(title: str) -> str:
    """A title as a file's name: other characters than letters and digits become one hyphen."""
    return re.sub(r"[\W_]+", "-", title).strip("-").lower()


def inline(svg: str, description: str) -> Markup:
    """A matplotlib SVG made fit for a page: scalable, named for screen readers, without ids
    that would repeat.
    """
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # text as a comment: a title could end it
    svg = re.sub(r"<!--.*?-->\n? *", "", svg, flags=re.DOTALL)
    size, rest = svg.split(">", 1)
    size = re.sub(r' (width|height)="[^"]*"', "", size)
    return Markup('{} role="img" aria-label="{}">{}').format(
        Markup(size), description, Markup(rest)
    )


def lines_of(cities: Iterable[str], x: list[float], values: Callable[[str], list]) -> list[Line]:
    """One line a city; beyond eight the cities turn thin and grey under their mean."""
    cities = list(cities)
    if len(cities) <= len(CITIES):
        return [
            Line(city, x, values(city), colour)
            for city, colour in zip(cities, CITIES, strict=False)
        ]
    grey = [Line(city, x, values(city), "#c4c4c4", 0.7) for city in cities]
    y = np.array([line.y for line in grey], float)
    known = np.isfinite(y).any(0)
    mean = np.full(y.shape[1], np.nan)
    mean[known] = np.nanmean(y[:, known], axis=0)
    return [*grey, Line("mean of cities", x, mean.tolist(), INK, 2.2)]


def city_legend(cities: Iterable[str]) -> dict[str, str]:
    cities = list(cities)
    if len(cities) <= len(CITIES):
        return dict(zip(cities, CITIES, strict=False))
    return {"a city": "#c4c4c4", "mean of cities": INK}


def learning(results: Results) -> list[Gallery]:
    history = results.card.history if results.card else []
    if not history:
        return []
    epochs = [h["epoch"] + 1 for h in history]
    iou = Line("IoU", epochs, [h["iou"] for h in history], BOUNDS["clean"])
    loss = Line("loss", epochs, [h["loss"] for h in history], GREY)
    natural = {"ylim": (0, None), "yticks": [], "prepare": free}
    charts = [
        panel("Validation IoU", [iou], "epoch"),
        panel("Training loss", [loss], "epoch", "loss", **natural),
    ]
    return [
        Gallery(
            "Learning", "The epoch with the best validation IoU is the one that is kept.", charts
        )
    ]


def confidence(results: Results) -> list[Gallery]:
    """Reliability, precision–recall, and quality by size of building."""
    charts, legend = [], {}
    reliable = [
        Line(name, [b["probability"] for b in bins], [b["frequency"] for b in bins], colour)
        for file, name, colour in RELIABILITY
        if (bins := read(results.array("evaluate", file)))
    ]
    if reliable:
        names = "probability of building", "share building"
        charts.append(panel("Reliability", reliable, *names, prepare=diagonal, xlim=(0, 1)))
    evaluated = results.metrics.evaluate.city
    cities = [c for c in results.cities if c in evaluated]
    points = read(results.array("evaluate", "precision_recall.json"))
    if points:
        legend = city_legend(cities)
        lines = precision_recall(cities, points)
        charts.append(panel("Precision and recall", lines, "recall", "precision", xlim=(0, 1.02)))
    sizes = {c: evaluated[c].size for c in cities if evaluated[c].size}
    if sizes:
        legend = city_legend(cities)
        bins = list(next(iter(sizes.values())))
        lines = lines_of(
            sizes, list(range(len(bins))), lambda c: [sizes[c].get(b, SizeBin()).iou for b in bins]
        )
        names = [b.replace("-", "–\n") for b in bins]
        ticks: dict = {
            "xticks": range(len(bins)),
            "xticklabels": names,
            "xlim": (-0.3, len(bins) - 0.7),
        }
        charts.append(
            panel("IoU by size of building", lines, "ground area in m²", "mean best IoU", **ticks)
        )
    text = (
        "A reliable model (all cities; grey as trained, black with the temperature that predict "
        "applies) stays on "
        "the dashed line: of pixels given 80 %, 80 % are building."
    )
    return [Gallery("Confidence and size", text, charts, legend)] if charts else []


def free(axes) -> None:
    """A loss has no natural scale: matplotlib's own ticks."""
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_locator(AutoLocator())


def diagonal(axes) -> None:
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)


def precision_recall(cities: list[str], points: list[dict]) -> list[Line]:
    recall = np.linspace(0, 1, 60)
    curves = {}
    for city in cities:
        own = sorted((p["recall"], p["precision"]) for p in points if p["city"] == city)
        if own:
            x, y = np.array(own).T
            curves[city] = np.where(recall < x[0], np.nan, np.interp(recall, x, y)).tolist()
    return (
        [line for line in lines_of(curves, recall.tolist(), curves.__getitem__)] if curves else []
    )


def attack(results: Results) -> list[Gallery]:
    attacked = results.metrics.attack.city
    curves = {c: attacked[c].linf for c in results.cities if c in attacked and attacked[c].linf}
    cities = list(curves)
    if not cities:
        return []
    budgets = sorted({b for by_budget in curves.values() for b in by_budget}, key=float)

    def along(city: str, name: str) -> list[float | None]:
        rows = [curves[city].get(b) for b in budgets]
        return [
            next(iter(curves[city].values())).clean,
            *(getattr(row, name, None) for row in rows),
        ]

    x = [0.0, *map(float, budgets)]
    worst = lines_of(cities, x, lambda c: along(c, "worst"))
    together = panel(
        "All cities, worst of all attacks", worst, "ε in 1/255", size=WIDE, prepare=ticks_at(x)
    )
    of_city = []
    for city in cities:
        lines = [
            Line(a, x, along(city, a), colour, 2.4 if a == "worst" else 1.1)
            for a, colour in ATTACKS.items()
        ]
        lines = [line for line in lines if any(v is not None for v in line.y[1:])]
        of_city.append(panel(city, lines, "ε in 1/255", prepare=ticks_at(x)))
    return [
        Gallery(
            "IoU against the budget ε",
            f"No pixel is changed by more than ε; the summary above is at "
            f"{budget(results)}/255, far below what an eye can "
            f"see.",
            [together],
            city_legend(cities),
        ),
        Gallery(
            "Every attack",
            "Noise of the same budget is what chance can do; the worst case "
            "takes the most harmful "
            "attack on each tile.",
            of_city,
            ATTACKS,
        ),
    ]


def ticks_at(x: list[float]) -> Callable:
    """Label the measured budgets on a logarithmic axis, where 0 too has its
    place, without crowding.
    """

    def prepare(axes) -> None:
        shown = [v for i, v in enumerate(x) if i == 0 or v >= 2 * x[i - 1]]
        axes.set_xscale("symlog", linthresh=min(v for v in x if v > 0))
        axes.set_xticks(shown, [f"{v:g}" for v in shown])
        axes.minorticks_off()

    return prepare


def sandwich(results: Results) -> list[Gallery]:
    """Certified ≤ attacked ≤ clean IoU against the radius, a gallery for each
    road to a certificate.
    """
    galleries = []
    for road, certificate in METHODS.items():
        found, label = results.metrics.certify.of(road), RADIUS[certificate.norm]
        charts = []
        for city in [c for c in results.cities if c in found.city]:
            lines = sandwich_lines(found.city[city])
            charts.append(panel(city, lines, label, prepare=between(*lines[1:])))
        if charts:
            text = f"Of {certificate.whose(found.deployed)}."
            galleries.append(Gallery(certificate.title, text, charts, BOUNDS, first=5))
    return galleries


def sandwich_lines(by_radius: dict[str, Sandwich]) -> list[Line]:
    """Clean, attacked, certified. In steps, since no more is known between the radii: a certificate
    holds for all smaller ones, and what an attack does it can do within all greater ones.
    """
    radii = sorted(by_radius, key=float)
    clean, attacked, certified = ([getattr(by_radius[r], kind) for r in radii] for kind in BOUNDS)
    x = [0.0, *map(float, radii)]
    return [
        Line("clean", x, [clean[0], *clean], BOUNDS["clean"]),
        Line("attacked", x, [clean[0], *attacked], BOUNDS["attacked"], steps="steps-post"),
        Line("certified", x, [certified[0], *certified], BOUNDS["certified"], steps="steps-pre"),
    ]


def between(upper: Line, lower: Line) -> Callable:
    """Shade what is unknown: the room between the best attack of less and the
    certificate of no less.
    """
    above, below = ([np.nan if v is None else v for v in line.y] for line in (upper, lower))
    above = [above[0], *above[:-1]]
    return lambda axes: axes.fill_between(
        upper.x, above, below, step="pre", color="#dddddd", alpha=0.7, linewidth=0
    )


def cues(results: Results) -> list[Gallery]:
    """What each city's IoU loses where a cue is taken."""
    explained = results.metrics.explain.city
    rows = {c: explained[c].cue for c in results.cities if c in explained}
    cities = list(rows)
    if not cities:
        return []
    names = list(next(iter(rows.values())))
    lines = lines_of(
        cities,
        list(range(len(names))),
        lambda c: [cue and cue.drop for cue in map(rows[c].get, names)],
    )
    ticks = {"xticks": range(len(names)), "xticklabels": [n.replace(" ", "\n", 1) for n in names]}
    chart = panel(
        "IoU lost", lines, "cue taken", "IoU lost", size=WIDE, prepare=free, ylim=None, **ticks
    )
    return [
        Gallery(
            "IoU lost without a cue", "Zero: the map does without.", [chart], city_legend(cities)
        )
    ]


def corruption(results: Results) -> list[Gallery]:
    table, clean = (
        results.metrics.generalize.corruption,
        results.metrics.generalize.corruption_clean,
    )
    cities = [c for c in results.cities if c in clean]
    charts = []
    for name, by_severity in table.items():
        severities = sorted(by_severity, key=int)
        values = {c: [clean[c], *(by_severity[s].get(c) for s in severities)] for c in cities}
        lines = lines_of(cities, [0, *map(int, severities)], values.__getitem__)
        charts.append(
            panel(name.replace("_", " "), lines, "severity", xticks=range(len(severities) + 1))
        )
    text = (
        "Each city by the model that has not seen it. Severity 0 is the clean image, of the same "
        f"{results.params.generalize.corruption_tiles} tiles a city: not the IoU of its whole "
        f"scenes above."
    )
    return (
        [Gallery("Weather, light and camera", text, charts, city_legend(cities), first=20)]
        if charts
        else []
    )


def adaptation(results: Results) -> list[Gallery]:
    """The adaptation ladder and the frugal curve: what helps in a new city."""
    galleries, found = [], results.metrics.generalize
    ladder = found.adaptation
    cities = [c for c in results.cities if all(c in row for row in ladder.values())]
    if ladder and cities:
        methods = list(ladder)
        lines = lines_of(
            cities, list(range(len(methods))), lambda c: [ladder[m][c] for m in methods]
        )
        names = [method.replace("_", "-\n") for method in methods]
        ticks: dict = {
            "xticks": range(len(methods)),
            "xticklabels": names,
            "xlim": (-0.4, len(methods) - 0.6),
        }
        chart = panel("Adapting without labels", lines, "", size=WIDE, **ticks)
        text = "How much of the gap closes by the new city's unlabelled images."
        text += (
            f" No method repairs {', '.join(found.beyond_adaptation)}."
            if found.beyond_adaptation
            else ""
        )
        galleries.append(Gallery("Adapting without labels", text, [chart], city_legend(cities)))
    starts = found.frugal_by_initialisation or {"random": found.frugal}
    starts = {start: table for start, table in starts.items() if table}
    if starts:
        lines, legend = [], {}
        for (start, table), colour in zip(starts.items(), CITIES, strict=False):
            shares = sorted(table, key=float)
            means = [
                np.mean([v for v in table[s].values() if v is not None] or [np.nan]) for s in shares
            ]
            lines.append(
                Line(start.replace("_", " "), [100 * float(s) for s in shares], means, colour)
            )
            legend[f"from {start.replace('_', ' ')}"] = colour
        chart = panel(
            "Learning from few labels",
            lines,
            "share of the training scenes in %",
            "mean IoU",
            size=WIDE,
        )
        text = "IoU against how many of the training scenes are labelled; the mean over the cities."
        galleries.append(Gallery("Learning from few labels", text, [chart], legend))
    return galleries
