"""Presets: presets/NAME.yaml says in what it differs from the schema's defaults; here the whole
params.yaml is written of it, every parameter with its documentation, units and choices.
"""

import math
import re
import textwrap
from collections.abc import ItemsView, Iterator
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from pipeline.errors import InputError, nearest
from pipeline.params import Section, load_params
from pipeline.project import given

COLUMN, WIDTH, WRAP = 46, 120, 100  # of a comment beside its value; of the two; of one above


def find(name: str) -> Path:
    """The file of a preset, this folder's or the package's, or a path. Raises
    InputError where there is none.
    """
    folders = [Path("presets"), given() / "presets"]
    for path in (*(folder / f"{name}.yaml" for folder in folders), Path(name)):
        if path.is_file():
            return path
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    near = nearest(name, known)
    raise InputError(f"no preset {name}; did you mean {near}? There are {_either(known, 'and')}")


def full(path: Path) -> str:
    """The text of a params.yaml with the values of a preset's file, under its opening comment.

    Raises InputError: see `params.load_section`.
    """
    params = load_params(path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    sections = "\n".join(_section(name, params) for name in type(params).model_fields)
    return "".join(takewhile(lambda line: line.startswith("#"), lines)) + sections


def _section(name: str, parent: Section, indent: str = "") -> str:
    """A section's lines, those of its own sections among them."""
    section, about = getattr(parent, name), type(parent).model_fields[name].description
    lines = [f"{indent}{name}:  # {about}\n"]
    for key, field in type(section).model_fields.items():
        if isinstance(value := getattr(section, key), Section):
            lines.append(_section(key, section, indent + "  "))
        else:
            lines.extend(_parameter(f"{indent}  {key}: {one_line(value)}", field))
    return "".join(lines)


def _parameter(line: str, field: FieldInfo) -> Iterator[str]:
    """A value's line, its comment beside it, or above it where that is too long."""
    beside = f"{line.ljust(COLUMN - 2)}  # {comment(field)}"
    fields = [pair for pairs in inner_sections(field.annotation) for pair in pairs]
    inner = [f"- {key}: {comment(of_city)}" for key, of_city in fields]
    if inner or len(beside) > WIDTH:
        indent = line[: len(line) - len(line.lstrip())] + "# "
        for text in [comment(field), *inner]:
            yield textwrap.fill(text, WRAP, initial_indent=indent, subsequent_indent=indent) + "\n"
        yield line + "\n"
    else:
        yield beside + "\n"


def comment(field: FieldInfo) -> str:
    """What a parameter is, and what it can be where that is one of a few words."""
    return ": ".join(filter(None, [field.description, _choices(field.annotation)]))


def _choices(kind: object) -> str:
    """The words that a type allows; of one alone its description speaks."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _either(map(str, inside)) if len(inside) > 1 else ""
    if origin is list and get_origin(inside[0]) is Literal:
        return f"any of {', '.join(get_args(inside[0]))}"
    if origin in (Union, UnionType):
        return ", ".join(filter(None, map(_choices, inside)))
    return ""


def inner_sections(kind: object) -> list[ItemsView[str, FieldInfo]]:
    """The fields of the section that a dict's values are."""
    inside = get_args(kind) if get_origin(kind) is dict else ()
    return [
        k.model_fields.items() for k in inside if isinstance(k, type) and issubclass(k, Section)
    ]


def _either(names, word: str = "or") -> str:
    *names, last = names
    return f"{', '.join(names)} {word} {last}" if names else last


class _Dumper(yaml.SafeDumper):
    """A value on one line: 1.0 as 1, and of an override only what it says."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _number(dumper: _Dumper, value: float) -> yaml.Node:
    if float(value).is_integer():
        return dumper.represent_int(int(value))
    return dumper.represent_float(value)


def _override(dumper: _Dumper, value: Section) -> yaml.Node:
    return dumper.represent_dict(value.model_dump(exclude_defaults=True))


def _word(dumper: _Dumper, value: str) -> yaml.Node:
    """In quotes what begins as a number does: 1e3 and 08 are words to PyYAML and numbers to DVC."""
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, "'" if re.match(r"[-+]?\.?\d", value) else None
    )


_Dumper.add_representer(float, _number)
_Dumper.add_representer(str, _word)
_Dumper.add_multi_representer(Section, _override)


def one_line(value: object) -> str:
    """In a list it is on one line, and a word that YAML would misread there stands in quotes."""
    style = {"default_flow_style": True, "width": math.inf, "allow_unicode": True}
    return yaml.dump([value], Dumper=_Dumper, **style).strip()[1:-1]
