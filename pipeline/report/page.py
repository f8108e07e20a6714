"""The page: results in, one self-contained HTML text out."""

import base64
import hashlib
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import charts, provenance
from pipeline.report.answer import answer, reference, shorter
from pipeline.report.changes import changes
from pipeline.report.footprints import colour, ink, maps
from pipeline.report.results import Results
from pipeline.report.viewer import FOUND, INVENTED, MISSED, PREDICTION, TRUTH, examples, pictures
from pipeline.runs import hardware

HERE = Path(__file__).parent


def page(results: Results) -> str:
    """The HTML of everything that has run. All text is escaped, and the page may load nothing from anywhere."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["score"] = score
    environment.globals |= {"colour": colour, "ink": ink, "rgb": lambda c: "#{:02x}{:02x}{:02x}".format(*c)}
    style, script = (Markup((HERE / name).read_text(encoding="utf-8")) for name in ("style.css", "viewer.js"))
    shown = pictures(results)
    evaluated = results.of("evaluate")
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
            "truth": {"building": TRUTH},
            "prediction": {"building": PREDICTION},
            "errors": {"found": FOUND, "invented": INVENTED, "missed": MISSED},
            "confidence": {"0": (68, 1, 84), "½": (33, 145, 140), "1": (253, 231, 37)},
        },
        maps=maps(results, shown),
        evaluated={c: evaluated[c] for c in results.cities if c in evaluated},
        learning=[*charts.learning(results), *charts.confidence(results)],
        matrix=heat_map(results),
        shorter=shorter(results),
        unseen=[*charts.corruption(results), *charts.adaptation(results)],
        robustness=results.of("generalize", "robustness"),
        label_free=results.of("generalize", "label_free"),
        attack=charts.attack(results),
        attack_reference=reference(results),
        attack_examples=examples(results),
        attack_city={c: results.of("attack")[c] for c in results.cities if c in results.of("attack")},
        audit=results.of("attack", "audit"),
        sandwich=charts.sandwich(results),
        changes=changes(results),
        provenance={
            "data": provenance.data(results),
            "parameters": provenance.parameters(results),
            "versions": provenance.versions(),
            "revision": provenance.revision(results),
            "machine": hardware(),
            "runs": provenance.runs(results),
        },
    )


def score(value: float | None, digits: int = 2) -> str:
    """0.58, or a dash where nothing was measured."""
    return "–" if value is None else f"{value:.{digits}f}"


def heat_map(results: Results) -> list[tuple[str, list[tuple[str, float | None, bool]]]]:
    """Rows of (model, cells of (city, IoU, whether the model has not seen the city)): all, then the worst city's."""
    table = results.of("generalize", "matrix")
    order = ["all", *(f"{kind}-{city}" for kind in ("without", "only") for city in results.cities)]
    models = [m for m in order if m in table] + [m for m in table if m not in order]
    cities = [c for c in results.cities if any(c in row for row in table.values())]

    def is_unseen(model: str, city: str) -> bool:
        return model == f"without-{city}" or (model.startswith("only-") and model != f"only-{city}")

    return [(m, [(c, table[m].get(c), is_unseen(m, c)) for c in cities]) for m in models]
