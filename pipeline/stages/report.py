"""Stage report: one self-contained page of all that has run, which opens from a USB stick.

Writes report/index.html, its figures as figures/GALLERY/CHART.svg for `dvc plots`, and the page's first
table as metrics/report/CITY.json (DVC prints a row a file):

    seen, unseen, attacked, certified      IoU of what the page calls by these names, as far as measured

and their means over the cities that have them as metrics/report/mean_city.json.

Where a check of the attacks' honesty audit failed, the page says so in red, and the stage ends with that error once all
is written: the page can be read, but DVC records no run that shows numbers which must not be believed.
"""

from itertools import chain
from pathlib import Path
from statistics import fmean

from pipeline.console import console, table
from pipeline.params import Params
from pipeline.storage import atomic_file, atomic_folder, write_json


def run(params: Params, root: Path = Path(), out: Path | None = None) -> None:
    """Write the report of the folder `root`.

    Raises InputError where a metrics file is damaged, and AuditFailed, all being written, where the attacks are weak.
    """
    from pipeline.report.answer import answer
    from pipeline.report.charts import galleries, write_figures
    from pipeline.report.page import page
    from pipeline.report.results import Results
    from pipeline.robustness.audit import demand

    out = out or root / "report/index.html"
    results = Results(params, root)
    drawn = galleries(results)
    text, found = page(results, drawn), answer(results)
    with atomic_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    with atomic_folder(root / "figures") as folder:
        write_figures(chain(*drawn.values()), folder)
    kinds = [kind.name for kind in found.kinds]
    cities = {city: {kind: measure.iou for kind, measure in row.items()} for city, row in found.rows}
    mean = {kind: fmean(row[kind] for row in cities.values() if kind in row) for kind in kinds}
    rows = [*cities.items(), ("mean_city", mean)]
    with atomic_folder(root / "metrics/report") as folder:
        for name, row in rows:
            write_json(folder / f"{name}.json", row)
    table("IoU", ["city", *kinds], [[name, *(row.get(kind) for kind in kinds)] for name, row in rows])
    console.print(f"report: {out}, {out.stat().st_size / 1e6:.1f} MB")
    demand(results.of("attack", "audit"), str(root / "metrics/attack.json"))
