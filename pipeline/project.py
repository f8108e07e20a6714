"""A project: what a folder holds before `dvc repro`; the checkout is one, and a wheel carries
what makes another.
"""

import re
from pathlib import Path

from pipeline.errors import InputError
from pipeline.storage import atomic_file

PACKAGE = Path(__file__).parent
FILES = ("dvc.yaml", ".dvcignore", ".gitignore", "data/sources/*.yaml", "data/watched/*/README.md")
NOTE = """\
# Written by `python -m pipeline init`. The stages' code is that of the installed package, which DVC does not watch:
# after an upgrade, `dvc repro --force` runs everything anew.
"""


def given() -> Path:
    """The folder of what every project starts from: the checkout, or its copy inside an
    installed wheel.
    """
    inside = PACKAGE / "given"
    return inside if inside.is_dir() else PACKAGE.parent


def init(folder: Path, params: str) -> list[Path]:
    """Write dvc.yaml, sources and params.yaml (the text `params`) into `folder`;
    returns the files written.

    A file that is there already stays as it is, and is not among them. Raises InputError where
    there is a params.yaml.
    """
    if (folder / "params.yaml").exists():
        raise InputError(
            f"{folder / 'params.yaml'}: is there already; choose another folder, or edit it"
        )
    root = given()
    texts = {path.relative_to(root): path.read_text(encoding="utf-8") for path in _files(root)}
    texts[Path("dvc.yaml")] = NOTE + without_code(texts[Path("dvc.yaml")])
    texts[Path("params.yaml")] = params
    fresh = {folder / name: text for name, text in texts.items() if not (folder / name).exists()}
    for path, text in fresh.items():
        with atomic_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return list(fresh)


def _files(root: Path) -> list[Path]:
    return sorted(path for pattern in FILES for path in root.glob(pattern))


def without_code(text: str) -> str:
    """A dvc.yaml whose stages depend on data and parameters alone."""
    text = re.sub(r"^ *- pipeline/.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^ *deps:\n(?! *-)", "", text, flags=re.MULTILINE)
