"""Which code made a file: the rooms that its stage stands on, in dvc.yaml and in
every fingerprint alike.

DVC must find them in dvc.yaml itself; tests/test_house.py holds the two together,
and both to what is imported.
"""

from pathlib import Path

from pipeline.storage import fingerprint

ROOT = Path(__file__).parent
NETWORK = ("labels.py", "imagery/grid.py", "tiles", "networks")
LEARNED = (*NETWORK, "scoring", "training")
ROOMS = {
    "fetch": (
        "labels.py",
        "imagery",
        "sources/archive.py",
        "sources/download.py",
        "sources/survey.py",
    ),
    "tile": ("labels.py", "imagery", "tiles"),
    "train": LEARNED,
    "holdout": (*LEARNED, "stages/train.py"),
    "pretrain": LEARNED,
    "evaluate": (
        "labels.py",
        "imagery",
        "tiles",
        "networks",
        "scoring",
        "mapping/polygons.py",
        "mapping/regular.py",
        "mapping/tracing.py",
    ),  # fmt: skip
    "attack": (*LEARNED, "attacks", "certificates"),
    "certify": (*LEARNED, "attacks", "certificates"),
    "explain": (*NETWORK, "scoring", "attacks/patch.py", "explanation"),
    "generalize": (*LEARNED, "attacks", "certificates", "transfer"),
    "few_labels": (
        "labels.py",
        "imagery",
        "tiles",
        "networks",
        "scoring",
        "training",
        "mapping",
        "assessment",
    ),
    "incremental": (*LEARNED, "incremental"),
    "privacy": (*LEARNED, "privacy"),
    "report": (
        "labels.py",
        "imagery/grid.py",
        "imagery/scene.py",
        "tiles",
        "networks/card.py",
        "scoring",
        "attacks/audit.py",
        "report",
    ),  # fmt: skip
}


def version(stage: str) -> str:
    """16 digits that change with any line of the rooms that `stage` stands on, or of its module."""
    own = [ROOT / "stages" / f"{stage}.py", *(ROOT / room for room in ROOMS[stage])]
    files = sorted({file for room in own for file in [room, *room.rglob("*.py")] if file.is_file()})
    return fingerprint(
        [[str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")] for file in files]
    )
