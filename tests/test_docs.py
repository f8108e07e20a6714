"""The documentation is true: links lead somewhere, commands and parameters
exist, Python blocks run.
"""

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import typer
import yaml
from affine import Affine

from pipeline.__main__ import app
from pipeline.mapping.export import export_program
from pipeline.networks.models import build_model, save_model
from pipeline.params import Model, Params, Section
from pipeline.presets import find
from pipeline.reference import reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def prose(page: Path) -> str:
    return re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


def spans(page: Path) -> list[str]:
    """What stands in backticks, a line break within one being a space."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def headings(page: Path) -> set[str]:
    found = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", text.lower()).strip()) for text in found}


def test_the_readme_is_a_page():
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    assert len(words) <= 900


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_something(page):
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:  # somebody else's page
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)}: {text} leads to {target}"
        assert not anchor or anchor in headings(file), (
            f"{name(page)}: no heading {anchor} in {target}"
        )


def commands(page: Path) -> list[list[str]]:
    """Every command of a page: of its shell blocks, and those in backticks of its text."""
    lines = [
        line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()
    ]
    starts = ("python -m ", "buildings ", "dvc ", "torchrun ", "make ")
    lines += [code for code in spans(page) if code.startswith(starts) and "…" not in code]
    return [words for line in lines for words in split(line)]


def split(line: str) -> list[list[str]]:
    words, found = shlex.split(line, comments=True), [[]]
    for word in words:
        found.append([]) if word in {"&&", "|", ";"} else found[-1].append(word)
    return [words[: words.index(">")] if ">" in words else words for words in found if words]


def verb_and_arguments(words: list[str]) -> list[str] | None:
    """What follows `buildings` or `python -m pipeline`, under whatever launcher."""
    if words[0] == "buildings":
        return words[1:]
    at = next((i for i in range(len(words) - 1) if words[i : i + 2] == ["-m", "pipeline"]), None)
    wrapped = [word for word in words if word.startswith("python -m pipeline")]  # sbatch --wrap '…'
    return shlex.split(wrapped[0])[3:] if wrapped else None if at is None else words[at + 2 :]


def check_pipeline(arguments: list[str]) -> None:
    verb = arguments[0]
    if verb in {"VERB", "--help"}:
        return
    COMMANDS[verb].make_context(verb, [*arguments[1:]], resilient_parsing="--help" in arguments)
    if verb == "preset" and arguments[1] not in {"NAME", "PATH"}:
        find(arguments[1])


def check_dvc(arguments: list[str]) -> None:
    """Stages that are named exist, and so do the parameters that an experiment sets."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    if arguments[0] == "repro":
        assert {a for a in arguments[1:] if a[0] != "-"} <= stages.keys()
    for option, value in zip(arguments, arguments[1:], strict=False):
        if option == "-S":
            assert parameter(value.partition("=")[0]), value


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_exists_with_its_options(page):
    for words in commands(page):
        if (arguments := verb_and_arguments(words)) is not None:
            if arguments:
                check_pipeline(arguments)
        elif words[0] == "dvc":
            check_dvc(words[1:])
        elif words[0] == "make":
            target = next((word for word in words[1:] if "=" not in word), "run")
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
            module = words[2].removeprefix("benchmarks.")
            assert (
                module == "MODULE"
                or module == "NAME"
                or (ROOT / f"benchmarks/{module}.py").exists()
            ), words


@cache
def parameter(path: str) -> bool:
    """Whether the schema has it: a section or a parameter, of a city too
    (fetch.overrides.CITY.gsd).
    """
    section = Params
    keys = path.split(".")
    if keys[:2] == ["fetch", "overrides"]:
        return True
    for key in keys:
        if (
            not (isinstance(section, type) and issubclass(section, Section))
            or key not in section.model_fields
        ):
            return False
        section = section.model_fields[key].annotation
    return True


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_parameter_that_a_page_names_is_one(page):
    sections = "|".join(Params.model_fields)
    for code in spans(page):
        found = re.match(rf"((?:{sections})(?:\.[a-z_0-9]+)+)(?:[:= ]|$)", code)
        if found and not found[1].endswith((".py", ".json", ".csv", ".html", ".yaml")):
            assert parameter(found[1]), f"{name(page)}: {found[1]}"


def test_the_page_of_parameters_has_them_all():
    page = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    assert page == reference(), "run `python -m pipeline parameters > docs/parameters.md`"

    def names(section, prefix=""):
        for key, field in section.model_fields.items():
            kind = field.annotation
            inner = isinstance(kind, type) and issubclass(kind, Section)
            yield from names(kind, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]

    for parameter_name in names(Params):
        assert page.count(f"| `{parameter_name}` |") == 1
    for line in page.splitlines():  # a bar within a cell would end it
        assert not line.startswith("|") or line.replace("\\|", "").count("|") == 4


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with a model and a scene of the names that the pages use."""
    description = Model(architecture="linear")
    card = {
        "model": description.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
    }
    torch.manual_seed(0)
    for folder in ("models/all", "handover"):
        save_model(tmp_path / folder, build_model(description, 3), card)
    export_program(tmp_path / "handover")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 80), dtype=np.uint8)
    place = {"crs": "EPSG:32632", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 6_650_000)}
    with rasterio.open(
        tmp_path / "scene.tif", "w", "GTiff", 80, 64, 3, dtype="uint8", **place
    ) as file:
        file.write(pixels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_blocks_run(page, project):
    for block in blocks(page, "python"):
        exec(compile(block, name(page), "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "book", sorted((ROOT / "docs/notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_a_notebook_runs_from_top_to_bottom(book, tmp_path, monkeypatch):
    """Its cells in a process of their own, as a kernel would run them; the notebook in git
    carries no outputs.
    """
    cells = [
        cell
        for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    assert cells and not any(cell["outputs"] for cell in cells)
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    environment = {
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "TINY": "1",
    }
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_site_is_built_of_pages_that_exist():
    settings = re.sub(
        r"!!python/name:[\w.]+", "null", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    )
    tops = [page for entry in yaml.safe_load(settings)["nav"] for page in entry.values()]
    groups = [
        [page] if isinstance(page, str) else [p for entry in page for p in entry.values()]
        for page in tops
    ]
    pages = sum(groups, [])
    on_disk = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(pages) <= on_disk and len(pages) == len(set(pages))
