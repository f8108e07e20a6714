"""The reference of parameters, docs/parameters.md, written from the schema."""

from collections.abc import Iterator

from pydantic_core import PydanticUndefined

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
                yield from (f"| `{path}.{key}.CITY.{k}` | {_default(f)} | {_cell(f)} |" for k, f in section)
    yield ""
    for inner in within:
        yield from table(*inner)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _default(field) -> str:
    value = field.get_default(call_default_factory=True)
    return "" if value is PydanticUndefined else f"`{one_line(value)}`"


def _cell(field) -> str:
    return comment(field).replace("|", "\\|")
