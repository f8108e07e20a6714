"""The references of parameters and of metrics, docs/parameters.md and docs/metrics.md, written
from their schemas.
"""

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import TypeGuard, get_args, get_origin

from pydantic_core import PydanticUndefined

from pipeline.metrics import FILES, OpenRecord, Record
from pipeline.params import Params, Section
from pipeline.presets import comment, inner_sections, one_line

OPENING = """# Parameters

Written by `python -m pipeline parameters` from `pipeline/params.py`, where each is declared with its type. A parameter
without a default must be given; `python -m pipeline preset NAME > params.yaml` writes a file that gives all of them.
"""


def reference() -> str:
    """A Markdown page: a table a section, a row a parameter."""
    tables = (table(name, field) for name, field in Params.model_fields.items())
    return "\n".join([OPENING, *(line for lines in tables for line in lines)])


def table(path: str, field) -> Iterator[str]:
    """The lines of a section's heading and table, those of the sections within it after it."""
    within = []
    yield f"## {path}\n\n{_sentence(field.description)}\n\n| parameter | default | meaning |\n|---|---|---|"
    for key, own in field.annotation.model_fields.items():
        if isinstance(own.annotation, type) and issubclass(own.annotation, Section):
            within.append((f"{path}.{key}", own))
        else:
            yield f"| `{path}.{key}` | {_default(own)} | {_cell(own)} |"
            for section in inner_sections(own.annotation):
                yield from (
                    f"| `{path}.{key}.CITY.{k}` | {_default(f)} | {_cell(f)} |" for k, f in section
                )
    yield ""
    for inner in within:
        yield from table(*inner)


def _one_line(record: type) -> str:
    """What a record says of itself."""
    return " ".join((record.__doc__ or "").split())


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _default(field) -> str:
    value = field.get_default(call_default_factory=True)
    return "" if value is PydanticUndefined else f"`{one_line(value)}`"


def _cell(field) -> str:
    return comment(field).replace("|", "\\|")


METRICS = """# Reading the metrics

`dvc metrics show metrics/report` prints the report's first table, a row a city, and `dvc metrics diff --targets
metrics/report` what changed in it; every stage's own file holds the rest, and `dvc plots show` the figures.

IoU is Σ∩/Σ∪ over all valid pixels of a city's whole test scenes, of buildings against background; never a mean over
tiles. Every IoU, certificate and attack is of the map that `predict` deploys: the calibrated probability cut at the
card's threshold, windows blended where whole scenes are measured, one window where tiles are. `null` means there was
nothing to measure: a city without a building in its test scenes or tiles has no IoU, and is in no mean.

Intervals are 95 %, over a city's test scenes, or over blocks as long as the errors of its only one are correlated; none
is shown where nothing honest can be said (one small scene). On simulated cities they hold the truth in .97–.99 of cases
where scenes are alike, .92–.96 where the built-up ones are mapped better, .92–.99 where one scene in eight fails
(`python -m benchmarks.intervals`). They hold the models fixed: they say what other scenes of the city would show
(blocks: more ground of that scene), not another training.

Attacks give an upper bound of what survives; where a check of their own audit fails (ten times the gradients find .03
more, say), `metrics/attack.json` and the page say which, in red, the other stages go on, and `dvc repro` ends with the
error at `report`: the page is written, but DVC records it only once the audit passes. Certificates give a lower bound:
certified ≤ attacked ≤ clean, of one model under one budget; a certificate by smoothing holds with the confidence
1 − `certify.smoothing.alpha` a tile.

## Every number

Written by `python -m pipeline metrics > docs/metrics.md` from `pipeline/metrics.py`, where each is declared with its
type. Names in capitals stand for what is measured; ± marks a number whose 95 % interval stands beside it, under the
same name with `_low` and `_high`. What its stage was not asked for is absent.
"""


def numbers() -> str:
    """A Markdown page: how to read the metrics, and a table a stage, a row a number."""
    tables = (numbers_of(stage, *file) for stage, file in FILES.items())
    return "\n".join([METRICS, *(line for lines in tables for line in lines)])


def numbers_of(stage: str, file: str, kind: type[Record]) -> Iterator[str]:
    """The lines of a stage's heading and table."""
    yield f"### {stage}\n\n`{file}`. {_one_line(kind)}\n\n| number | meaning |\n|---|---|"
    yield from (f"| {name} | {meaning} |" for name, meaning in rows_of(kind, "", "", {}))
    yield ""


def rows_of(
    kind: object, path: str, meaning: str, known: dict[type, str], mark: str = ""
) -> Iterator[tuple[str, str]]:
    """The dotted name and the meaning of every number below a type, and of the tables that hold
    them. What is inside a record is said once: `known` has where.
    """
    origin, inside = get_origin(kind), [part for part in get_args(kind) if part is not NoneType]
    if origin is dict:
        yield from rows_of(inside[1], f"{path}.{inside[0].__metadata__[0]}", meaning, known)
    elif origin is list and _is_record(inside[0]):
        yield from rows_of(inside[0], f"{path}[]", meaning, known)
    elif origin is UnionType and len(inside) == 1:
        yield from rows_of(inside[0], path, meaning, known, mark)
    elif not _is_record(kind):
        yield f"`{path[1:]}`{mark}", meaning
    elif kind in known:
        yield f"`{path[1:]}`", f"{meaning}; its numbers as those of `{known[kind]}`"
    else:
        known[kind] = path[1:]
        yield from [(f"`{path[1:]}`", meaning)] if path else []
        yield from fields_of(kind, path, known)


def fields_of(kind: type[Record], path: str, known: dict[type, str]) -> Iterator[tuple[str, str]]:
    """Those of a record, an interval being its number's; what is open comes last."""
    for name, field in kind.model_fields.items():
        if not name.endswith(("_low", "_high")) and not field.exclude:
            mark = " ±" if f"{name}_low" in kind.model_fields else ""
            yield from rows_of(
                field.annotation,
                f"{path}.{field.alias or name}",
                field.description or "",
                known,
                mark,
            )
    if issubclass(kind, OpenRecord):
        table = kind.__annotations__["__pydantic_extra__"]
        value = get_args(table)[1]
        yield from rows_of(table, path, _one_line(value if _is_record(value) else kind), known)


def _is_record(kind: object) -> TypeGuard[type[Record]]:
    return isinstance(kind, type) and issubclass(kind, Record)
