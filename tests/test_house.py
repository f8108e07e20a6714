"""The house: imports only go down the floors, never round, and each DVC stage depends on the
code it imports.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import yaml

from pipeline.code import ROOMS
from pipeline.params import Fetch, Params

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", "storage", "runs", "code"},
    {"params", "metrics", "presets", "console", "labels", "project", "reference", "bucket", "cluster"},
    {"imagery"}, {"tiles", "sources"}, {"networks"}, {"scoring"}, {"training"}, {"attacks"},
    {"certificates"}, {"transfer", "mapping", "explanation", "privacy", "incremental"},
    {"assessment"}, {"report"}, {"course"}, {"stages"}, {"__init__", "__main__"},
]  # fmt: skip
MODULES = sorted((ROOT / "pipeline").rglob("*.py"))


@cache
def imports(module: Path) -> frozenset[Path]:
    """The project's own files that a module names in an import, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "pipeline"
        ):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "pipeline"}
    files = (ROOT / (name.replace(".", "/") + ".py") for name in names)
    return frozenset(file for file in files if file.exists())


def closure(module: Path) -> set[Path]:
    seen, todo = set(), [module]
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo.extend(imports(file))
    return seen


def floor(module: Path) -> int:
    part = module.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    return next(i for i, names in enumerate(FLOORS) if part in names)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(ROOT)))
def test_no_import_goes_up_and_none_goes_round(module):
    for imported in imports(module):
        assert floor(imported) <= floor(module), f"{imported.name} lives above {module.name}"
        assert module not in closure(imported), (
            f"{module.name} and {imported.name} import each other"
        )


def test_no_module_gives_one_name_to_two_things():
    """No linter of ours sees it: the second constant is what every function above it would get."""
    for module in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        names = [
            target.id
            for node in ast.parse(module.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        assert not (twice := {name for name in names if names.count(name) > 1}), (module, twice)


def test_imagery_knows_no_torch_and_nothing_is_called_utils():
    for module in MODULES:
        assert module.stem not in {"utils", "helpers", "common", "misc"}
        if module.parent.name in {"imagery", "sources"}:
            assert "import torch" not in module.read_text()


def test_only_the_report_draws():
    """And the course, whose pictures are its lessons: stages leave numbers and arrays."""
    for module in MODULES:
        if module.relative_to(PIPELINE).parts[0] not in {"report", "course"}:
            assert "matplotlib" not in module.read_text(encoding="utf-8"), module
        if module.parent.name != "report" and module.parts[-2:] != ("stages", "report.py"):
            drawn = {file for file in imports(module) if file.parent.name == "report"}
            assert {file.stem for file in drawn} <= (
                {"comparison"} if module.name == "__main__.py" else set()
            ), module


def test_only_one_module_knows_albumentations():
    def names(module: Path) -> set[str]:
        """Everything imported, by whatever way: `import a.b`, `from a import b`, or another
        module's name for it.
        """
        nodes = [
            n
            for n in ast.walk(ast.parse(module.read_text()))
            if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        found = [
            part
            for n in nodes
            for part in [getattr(n, "module", None) or "", *(alias.name for alias in n.names)]
        ]
        return {name.split(".")[0] for name in found}

    assert [m.name for m in MODULES if "albumentations" in names(m)] == ["augment.py"]


def test_what_is_slow_to_import_is_imported_where_it_is_used():
    """Lightning takes two seconds, scipy.stats half a one: of every verb's start, and every worker's."""
    slow = re.compile(r"^(?:from|import) (lightning|scipy\.stats|pipeline\.training\.fit)\b", re.M)
    found = {(m.name, name) for m in MODULES for name in slow.findall(m.read_text("utf-8"))}
    assert found == {("fit.py", "lightning"), ("attribution.py", "scipy.stats")}


# How a stage reads parameters, writes files and speaks, not what it computes: no
# reason to run it again.
PIPELINE = ROOT / "pipeline"
PLUMBING = {
    PIPELINE / f"{name}.py"
    for name in (
        "bucket",
        "cluster",
        "code",
        "console",
        "errors",
        "metrics",
        "params",
        "runs",
        "storage",
    )
}
# by some sources
SHARED = {PIPELINE / "sources" / f"{name}.py" for name in ("archive", "download", "survey")}
UNUSED = dict.fromkeys(get_args(Fetch.model_fields["source"].annotation), SHARED)
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CHECK, SWEEP = STAGES.pop("check"), STAGES.pop("sweep")  # they compute nothing and have no section


def test_every_parameter_is_checked_before_the_first_stage():
    """Whatever is edited in params.yaml: a stage watches single keys, and a
    misspelt one is none of them.
    """
    ((out, how),) = CHECK["outs"][0].items()
    assert CHECK["params"] == [{"params.yaml": None}] and CHECK["cmd"].endswith(
        f"pipeline check --for-dvc > {out}"
    )
    assert how == {"cache": False}  # from the cache it would come without its links
    for stage in (STAGES["fetch"], SWEEP):  # sweep is the first where there is no city
        assert out in stage["deps"]


def test_no_stage_hashes_what_only_one_machine_has():
    """Folders of cities are hashed as a whole after sweep has run, and models/
    holds the user's own models too.
    """
    for name, stage in STAGES.items():
        assert not {"models", "data/scenes"} & {*stage["deps"]}, name
    for name in ("train", "holdout"):  # all others wait for models/all
        assert {*SWEEP["outs"]} <= {*STAGES[name]["deps"]}


def test_a_plot_named_by_its_path_is_an_output_as_a_whole():
    """Inside one DVC asks the cache, which a clone lacks before the stage has run, and ends
    every experiment there.
    """
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    outs = {
        out for stage in STAGES.values() for out in stage.get("outs", []) if isinstance(out, str)
    }
    assert {plot for plot in plots if isinstance(plot, str)} <= outs


def test_what_a_stage_starts_from_is_watched():
    for name, watched in {
        "train": "train",
        "holdout": "train",
        "attack": "attack",
        "certify": "certify",
    }.items():
        assert f"data/watched/{watched}" in STAGES[name]["deps"]
        # else DVC misses the folder in a clone
        assert (ROOT / "data/watched" / watched / "README.md").exists()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_rooms_it_stands_on_and_no_other(name):
    """DVC and every fingerprint know the same rooms (pipeline/code.py), and
    these hold what the stage imports.
    """
    verb = STAGES[name]["cmd"].split()[3]
    module = f"stages/{verb}.py"
    code = [
        dep.removeprefix("pipeline/") for dep in STAGES[name]["deps"] if dep.startswith("pipeline/")
    ]
    # another source's code makes no city of this one
    own = ["sources/${fetch.source}"] if verb == "fetch" else []
    assert code == [*ROOMS[verb], *own, module]
    for source in get_args(Fetch.model_fields["source"].annotation) if own else [None]:
        rooms = {PIPELINE / room.replace("${fetch.source}", str(source)) for room in code}
        used = closure(PIPELINE / module)
        if source:
            used |= closure(PIPELINE / "sources" / source / "source.py")
        for file in used - PLUMBING:
            assert rooms & {file, *file.parents}, (
                f"{name} does not depend on {file.relative_to(ROOT)}"
            )
        for room in rooms - UNUSED.get(source, set()):
            assert any(room in {file, *file.parents} for file in used), (
                f"{name} does not use {room.name}"
            )


def test_every_stage_has_its_verb_section_and_module():
    for name, stage in STAGES.items():
        verb = stage["cmd"].split()[3]
        assert (ROOT / "pipeline" / "stages" / f"{verb}.py").exists(), name
        sections = {p.split(".")[0] for p in stage.get("params", [])}
        own = "generalize" if verb == "holdout" else verb  # whose folds these are
        assert own in sections, f"{name} does not watch its own parameters"


@pytest.mark.parametrize("verb", sorted({stage["cmd"].split()[3] for stage in STAGES.values()}))
def test_a_verb_watches_the_sections_it_reads(verb):
    """`params.SECTION` in the code of a stage is a parameter that DVC must
    watch, or the city of its matrix.
    """
    stages = [stage for stage in STAGES.values() if stage["cmd"].split()[3] == verb]
    watched = {p.split(".")[0] for stage in stages for p in stage["params"]}
    watched |= {"fetch" for stage in stages if "matrix" in stage}
    own = ROOT / "pipeline" / "stages" / f"{verb}.py"
    for file in closure(own):
        if file == own or file.parent != own.parent:
            read = set(
                re.findall(
                    rf"\bparams\.({'|'.join(Params.model_fields)})\b",
                    file.read_text(encoding="utf-8"),
                )
            )
            assert read <= watched, (
                f"{verb} does not watch {read - watched}, which {file.name} reads"
            )
