"""Stage report: one self-contained page of all that has run, which opens from a USB stick.

Writes report/index.html, its figures as figures/GALLERY/CHART.svg for `dvc plots`, and the page's
first table as metrics/report/CITY.json, a ReportMetrics (DVC prints a row a file): IoU of what the
page calls by these names, as far as measured, and their means over the cities that have them as
metrics/report/mean_city.json.

Where a check of the attacks' honesty audit failed, the page says so in red, and the stage ends with
that error once all is written: the page can be read, but DVC records no run that shows numbers
which must not be believed.
"""

from itertools import chain
from pathlib import Path
from statistics import fmean

from pipeline.console import console, table
from pipeline.metrics import ReportMetrics, write
from pipeline.params import Params
from pipeline.storage import atomic_file, atomic_folder


def run(params: Params, root: Path = Path(), out: Path | None = None) -> None:
    """Write the report of the folder `root`.

    Raises InputError where a metrics file is damaged, and AuditFailed, all being written, where the
    attacks are weak.
    """
    from pipeline.attacks.audit import demand
    from pipeline.report.answer import answer, sandwich
    from pipeline.report.charts import galleries, write_figures
    from pipeline.report.page import page
    from pipeline.report.results import Results

    out = out or root / "report/index.html"
    results = Results(params, root)
    drawn = galleries(results)
    text, found = page(results, drawn), answer(results)
    with atomic_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    with atomic_folder(root / "figures") as folder:
        write_figures(chain(*drawn.values()), folder)
    kinds = [kind.name for kind in found.kinds]
    proven = sandwich(results)
    written = {city: entry(row, proven.get(city)) for city, row in found.rows}
    with atomic_folder(root / "metrics/report") as folder:
        for name, row in {**written, "mean_city": mean_of(list(written.values()))}.items():
            write(folder / f"{name}.json", ReportMetrics, row)
    cities = {
        city: {kind: measure.iou for kind, measure in row.items()} for city, row in found.rows
    }
    mean = {kind: fmean(row[kind] for row in cities.values() if kind in row) for kind in kinds}
    rows = [*cities.items(), ("mean_city", mean)]
    table(
        "IoU", ["city", *kinds], [[name, *(row.get(kind) for kind in kinds)] for name, row in rows]
    )
    console.print(f"report: {out}, {out.stat().st_size / 1e6:.1f} MB")
    demand(results.metrics.attack.audit, str(root / "metrics/attack.json"))


def entry(measures: dict, sandwich: dict | None) -> dict:
    """One city's metrics: an IoU, what it is of, and apart from them the
    sandwich, whose three compare.
    """
    found = {}
    for kind, measure in measures.items():
        if kind != "certified":
            found[kind] = measure.iou
            found |= {f"{kind}_of": measure.of} if measure.of is not None else {}
    return found | ({"sandwich": sandwich} if sandwich else {})


def mean_of(rows: list[dict]) -> dict:
    """The mean of each number over the rows that have it, in sections as in numbers."""
    means = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        means[name] = mean_of(values) if isinstance(values[0], dict) else fmean(values)
    return means
