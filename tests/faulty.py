"""A tiny project whose stages run as processes of their own, with a fault at the n-th change of
their work tree.

Whatever Python does to files it announces as audit events (PEP 578), so no module of the pipeline
knows of this one.
"""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest
import yaml

from pipeline.params import load_params

ROOT = Path(__file__).parents[1]
GROWING = {"os.mkdir"}  # with `open` for writing: what a full disk refuses
CHANGING = GROWING | {"os.rename", "os.remove", "os.rmdir", "os.truncate"}


def perform(
    arguments: list[str], tree: str, log: str, fault: str | None = None, moment: int = 0
) -> None:
    """Run the verb in `tree`, what it says into `log`, its changes one a line into LOG.changes,
    the modules that it imports into LOG.imports.

    fault: "killed" dies by SIGKILL at the change number `moment` (from 1), "full" is a disk that
    from there on takes nothing new.
    """
    os.setsid()
    os.chdir(tree)
    # as from a command line, not as in this process
    multiprocessing.set_start_method(None, force=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1), os.dup2(said, 2)
    changes, imports = (
        os.open(f"{log}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for kind in ("changes", "imports")
    )
    seen = 0

    def watch(event: str, details: tuple) -> None:
        nonlocal seen
        if event == "open":
            path, _, flags = details
            grows = not isinstance(path, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        elif event in CHANGING:
            path, grows = details[event == "os.rename"], event in GROWING
        else:
            return
        if not (grows or event in CHANGING) or fault == "full" and not grows:
            return
        if not os.path.abspath(os.fsdecode(path)).startswith(tree):
            return
        seen += 1
        os.write(changes, f"{event} {os.fsdecode(path)}\n".encode())
        if fault == "killed" and seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "full" and seen >= moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))

    from pipeline.__main__ import main

    sys.addaudithook(watch)
    sys.argv, before = ["pipeline", *arguments], set(sys.modules)
    try:
        main()
    finally:
        os.write(imports, "\n".join(sys.modules.keys() - before).encode())


CITIES = ["brickvale", "duskholm"]
VERBS = {
    "fetch": ["fetch"],
    "tile": ["tile"],
    "train": ["train"],
    "evaluate": ["evaluate"],
    "attack": ["attack"],
    "certify": ["certify"],
    "holdout": ["holdout"],
    "generalize": ["generalize"],
    "report": ["report"],
    "predict": [
        "predict",
        "models/all",
        "data/scenes/brickvale/images",
        "--out",
        "maps",
        "--probability",
    ],
}
STAGES = list(VERBS)
# one that cuts data, one that resumes, one that maps: in every run of the tests
QUICK = {"tile", "train", "predict"}


def each(stages: Iterable[str]) -> pytest.MarkDecorator:
    """The test for each of these stages; all but QUICK are slow."""
    marked = [pytest.param(s, id=s, marks=[] if s in QUICK else pytest.mark.slow) for s in stages]
    return pytest.mark.parametrize("stage", marked, indirect=True)


# by the process that those of the stages are forked from: imports are most of what a tiny stage takes
IMPORTED = [
    *(f"pipeline.stages.{name}" for name in ("fetch", "tile", "attack", "certify", "generalize", "report", "predict")),
    "pipeline.sources.demo.source", "pipeline.report.page", "pipeline.training.augment", "pipeline.training.fit",
    "geopandas", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_agg",
    "torch._dynamo",  # which the first optimiser asks for
]  # fmt: skip


def tiny() -> dict:
    """tests/tiny.yaml, tinier: two cities, a network of a few hundred weights."""
    params = load_params(ROOT / "tests/tiny.yaml").model_dump(mode="json")
    params["fetch"] |= {"cities": CITIES, "scene_size": 128}
    params["tile"] |= {"size": 32}
    params["train"]["model"] |= {"architecture": "small_fcn", "width": 4}
    params["train"] |= {
        "epochs": 3,
        "steps_per_epoch": 8,
        "batch_size": 4,
        "crop": 32,
        "learning_rate": 0.01,
    }
    params["train"] |= {"augment": "flips"}
    params["evaluate"] |= {"window": 64, "bootstrap": 100}
    params["attack"] |= {"tiles": 1, "linf": [1], "patch": 8, "halving": False}
    params["attack"] |= {"steps": 4, "apgd_steps": 2, "soft_iou_steps": 4}
    params["certify"] |= {"attack_steps": 1}
    params["certify"]["convex"] |= {"steps": 2, "width": 4, "radii": [1]}
    params["certify"]["lipschitz"] |= {"steps": 2, "width": 4, "radii": [0.1]}
    params["generalize"] |= {
        "bootstrap": 100,
        "adaptation": ["none", "histogram"],
        "attack_steps": 1,
    }
    params["generalize"] |= {"adaptation_tiles": 2}
    return params


def content(path: Path) -> bytes:
    """A file's bytes, without what differs between runs and trees: seconds,
    whether it resumed, ids, places.
    """
    data = path.read_bytes()
    if path.name in {"model.json", "train.json"}:
        about = json.loads(data)
        for part in (about, about.get("training", {})):
            part.pop("seconds", None), part.pop("resumed", None)
        return json.dumps(about).encode()
    if path.parent.name == "maps" and path.suffix == ".json":
        about = json.loads(data)
        return json.dumps(
            about | {"scene": Path(about.get("scene", "")).name, "key": bool(about["key"])}
        ).encode()
    if path.suffix in {".svg", ".html"}:
        return re.sub(rb"<dc:date>.*?</dc:date>|\b(image|[a-z])[0-9a-f]{10}\b", b"", data)
    return data


def snapshot(tree: Path) -> dict[str, bytes]:
    """Every file and folder of a tree, hidden ones too, by its name."""
    found = {
        str(p.relative_to(tree)): content(p) if p.is_file() else b""
        for p in sorted(tree.rglob("*"))
    }
    return {name: data for name, data in found.items() if not name.startswith("data/sources")}


def visible(tree: Path) -> dict[str, bytes]:
    """The files under final names: nothing hidden, and not the notes a run
    keeps for its next one.
    """
    parts = {name: Path(name).parts for name in snapshot(tree)}
    return {
        name: data for name, data in snapshot(tree).items()
        if (tree / name).is_file() and not any(part.startswith(".") for part in parts[name])
    }  # fmt: skip


@dataclass
class Tree:
    """A work tree and the processes that run verbs in it."""

    folder: Path
    processes: object  # a multiprocessing context whose processes start with everything imported
    running: list = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def changes(self) -> list[str]:
        return Path(f"{self.log}.changes").read_text().splitlines()

    @property
    def imports(self) -> list[str]:
        """Modules that the verb has imported and the process that it was forked from had not."""
        return Path(f"{self.log}.imports").read_text().splitlines()

    def start(self, arguments: list[str], fault: str | None = None, moment: int = 0, log: str = ""):
        log = log or str(self.log)
        what = [*arguments, *(["--params", "tiny.yaml"] if "--params" not in arguments else [])]
        process = self.processes.Process(
            target=perform, args=(what, str(self.folder), log, fault, moment)
        )
        process.start()
        self.running.append(process)
        return process

    def run(self, arguments: list[str], fault: str | None = None, moment: int = 0) -> int:
        """The exit code of a verb, -9 where it was killed."""
        process = self.start(arguments, fault, moment)
        process.join(1200)
        return process.exitcode

    def copy(self, folder: Path) -> "Tree":
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        return Tree(folder, self.processes)

    def change(self, **sections) -> None:
        path = self.folder / "tiny.yaml"
        params = yaml.safe_load(path.read_text())
        for name, values in sections.items():
            params[name] |= values
        path.write_text(yaml.safe_dump(params))


@dataclass(frozen=True)
class Stage:
    """What a stage finds and leaves when nobody disturbs it."""

    arguments: list[str]
    before: Tree
    after: Path
    changes: list[str]
    seconds: float

    @cached_property
    def left(self) -> dict[str, bytes]:
        return snapshot(self.after)
