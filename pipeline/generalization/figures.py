"""Figures of metrics/generalize.json. Colours tell apart under every kind of colour vision (Okabe and Ito; viridis)."""

from pathlib import Path

from matplotlib.figure import Figure

from pipeline.colours import CITIES, GREY, SEEN, UNSEEN, VERMILION


def draw_all(metrics: dict, folder: Path) -> None:
    """Write the figures whose numbers `metrics` holds into an existing folder."""
    drawings = {
        "gap": (gap, "city"),
        "matrix": (matrix, "matrix"),
        "corruption": (corruption, "corruption"),
        "adaptation": (adaptation, "adaptation"),
        "label_free": (label_free, "label_free"),
        "frugal": (frugal, "frugal_by_initialisation"),
    }
    for name, (draw, key) in drawings.items():
        if metrics.get(key):
            draw(metrics).savefig(folder / f"{name}.svg")


def gap(metrics: dict) -> Figure:
    """Seen and unseen IoU of each city with 95 % intervals, the worst unseen city at the top."""
    rows = sorted(metrics["city"].items(), key=lambda item: -item[1]["unseen"])
    figure = Figure(figsize=(6.4, 1.2 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, (_, row) in enumerate(rows):
        axes.plot([row["unseen"], row["seen"]], [y, y], color=GREY, linewidth=1, zorder=1)
        for side, colour, offset in (("seen", SEEN, 0.12), ("unseen", UNSEEN, -0.12)):
            ends = [_number(row[f"{side}_{end}"]) for end in ("low", "high")]
            axes.plot(ends, [y + offset] * 2, color=colour, linewidth=1.5)
            axes.scatter(row[side], y + offset, color=colour, s=26, zorder=2, label=side if y == 0 else None)
    labels = []
    for city, row in rows:
        interval = "" if row["gap_low"] is None else f" [{row['gap_low']:+.2f}, {row['gap_high']:+.2f}]"
        labels.append(f"{city}   gap {row['gap']:+.2f}{interval}")
    axes.set(yticks=range(len(rows)), yticklabels=labels, xlim=(0, 1), xlabel="IoU on the city's test scenes")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def matrix(metrics: dict) -> Figure:
    """IoU of each model (row) on each city (column); a frame marks the city a model has not seen."""
    table = metrics["matrix"]
    models, cities = list(table), list(next(iter(table.values())))
    figure = Figure(figsize=(2.4 + 0.85 * len(cities), 1.4 + 0.42 * len(models)), layout="constrained")
    axes = figure.subplots()
    values = [[float("nan") if table[m][c] is None else table[m][c] for c in cities] for m in models]
    shown = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for i, model in enumerate(models):
        for j, city in enumerate(cities):
            if table[model][city] is not None:
                dark = table[model][city] < 0.6
                axes.text(j, i, f"{table[model][city]:.2f}", ha="center", va="center", color="w" if dark else "k")
            if model == f"without-{city}":
                frame = dict(fill=False, edgecolor=VERMILION, linewidth=2)
                axes.add_patch(_rectangle((j - 0.48, i - 0.46), 0.96, 0.92, **frame))
    axes.set(xticks=range(len(cities)), yticks=range(len(models)), yticklabels=models, xlabel="tested on")
    axes.set_xticklabels(cities, rotation=30, ha="right")
    axes.set_ylabel("trained on")
    figure.colorbar(shown, label="IoU")
    return figure


def _rectangle(*place, **style):
    from matplotlib.patches import Rectangle

    return Rectangle(*place, **style)


def _lines(axes, cities: list[str], x: list, values: dict) -> None:
    """One line a city; beyond eight cities all are grey and the mean is drawn over them."""
    many = len(cities) > len(CITIES)
    for i, city in enumerate(cities):
        axes.plot(x, values[city], color=GREY if many else CITIES[i], linewidth=0.6 if many else 1.4,
                  marker=None if many else "o", markersize=3, label=None if many else city)  # fmt: skip
    if many:
        mean = [_mean([values[city][k] for city in cities]) for k in range(len(x))]
        axes.plot(x, mean, color="k", linewidth=2, label="mean of cities")


def _mean(values: list) -> float:
    known = [v for v in values if v is not None and v == v]
    return sum(known) / len(known) if known else float("nan")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def corruption(metrics: dict) -> Figure:
    """Small multiples: IoU of the held-out city against severity, one panel a corruption; severity 0 is clean."""
    clean, table = metrics["corruption_clean"], metrics["corruption"]
    cities, columns = sorted(clean), 5
    rows = -(-len(table) // columns)
    figure = Figure(figsize=(10, 0.6 + 1.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(table) :]:
        axes.set_visible(False)
    for axes, (name, levels) in zip(grid.flat, table.items(), strict=False):
        severities = sorted(levels, key=int)
        lines = {c: [_number(clean[c]), *(_number(levels[s].get(c)) for s in severities)] for c in cities}
        _lines(axes, cities, [0, *map(int, severities)], lines)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set(ylim=(0, 1), xticks=range(6))
        axes.grid(alpha=0.25)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel("IoU of the held-out city", fontsize=9)
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(8, len(names)), frameon=False)
    return figure


def adaptation(metrics: dict) -> Figure:
    """The ladder: IoU of each held-out city after each adaptation without labels."""
    table = metrics["adaptation"]
    methods, cities = list(table), sorted(next(iter(table.values())))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    lines = {city: [_number(table[method][city]) for method in methods] for city in cities}
    _lines(axes, cities, list(range(len(methods))), lines)
    names = [method.replace("_", " ") for method in methods]
    axes.set(xticks=range(len(methods)), xticklabels=names, ylim=(0, 1), ylabel="IoU of the held-out city")
    axes.grid(alpha=0.25, axis="y")
    figure.legend(loc="outside right center", frameon=False)
    return figure


def label_free(metrics: dict) -> Figure:
    """IoU estimated without labels, and the best naive guess, against the IoU that the labels then showed."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    rows = metrics["label_free"]["city"]
    truths = [row["iou"] for row in rows.values()]
    naive = metrics["label_free"]["naive"]
    for key, marker, colour in (("thresholded", "o", UNSEEN), (naive, "x", GREY)):
        if key:
            name = f"{key.replace('_', ' ')}, mean error {metrics['label_free']['mean_error'][key]:.2f}"
            axes.scatter(truths, [_number(row[key]) for row in rows.values()], marker=marker, color=colour, label=name)
    for city, row in rows.items():
        axes.annotate(city, (row["iou"], row["thresholded"]), xytext=(5, -9), textcoords="offset points", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="IoU of the held-out city", ylabel="estimated without labels")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def frugal(metrics: dict) -> Figure:
    """Mean-city IoU against the share of training scenes, one line an initialisation."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, (start, table) in enumerate(metrics["frugal_by_initialisation"].items()):
        shares = sorted(table, key=float)
        mean = [_mean(list(table[share].values())) for share in shares]
        name = start.replace("_", " ")
        axes.plot([float(s) for s in shares], mean, marker="o", color=CITIES[i], label=name)
    axes.set(xscale="log", ylim=(0, 1), xlabel="share of the training scenes", ylabel="IoU, mean of cities")
    axes.minorticks_off()
    axes.set_xticks([float(s) for s in shares], [f"{100 * float(s):g} %" for s in shares])
    axes.grid(alpha=0.25)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure
