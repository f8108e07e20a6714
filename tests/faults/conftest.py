"""The stages of a tiny project run once undisturbed: what each finds, what it
leaves, how long it takes.
"""

import json
import multiprocessing
import time
from pathlib import Path

import pytest
import yaml
from faulty import IMPORTED, ROOT, VERBS, Stage, Tree, tiny

MOST = (
    400  # modules that a stage may import itself: with Lightning among them they are two thousand
)


class Undisturbed(dict[str, Stage]):
    """Each stage, run when it is first asked for, in a copy of what the one before it left."""

    def __init__(self, root: Path):
        self.root, self.processes = root, multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(IMPORTED)
        (root / "start/data").mkdir(parents=True)
        (root / "start/data/sources").symlink_to(ROOT / "data/sources")
        (root / "start/tiny.yaml").write_text(yaml.safe_dump(tiny()))

    def __missing__(self, name: str) -> Stage:
        verbs = [None, *VERBS]
        earlier = "train" if name == "predict" else verbs[verbs.index(name) - 1]
        tree = Tree(self[earlier].after if earlier else self.root / "start", self.processes)
        if name == "report":
            tree = audited(tree.copy(self.root / "audited"))
        done = tree.copy(self.root / name)
        begun = time.monotonic()
        assert done.run(VERBS[name]) == 0, f"{name}: {done.said}"
        late = sorted({module.split(".")[0] for module in done.imports})
        assert len(done.imports) < MOST, f"{name} imports in every fork, name in IMPORTED: {late}"
        self[name] = Stage(VERBS[name], tree, done.folder, done.changes, time.monotonic() - begun)
        return self[name]


@pytest.fixture(scope="session")
def stages(tmp_path_factory) -> dict[str, Stage]:
    return Undisturbed(tmp_path_factory.mktemp("stages"))


def audited(tree: Tree) -> Tree:
    """The tree with an audit that holds: whether it does, of a few hundred weights under four
    gradients, is luck.
    """
    path = tree.folder / "metrics/attack.json"
    measured = json.loads(path.read_text())
    path.write_text(json.dumps(measured | {"audit": dict.fromkeys(measured["audit"], True)}))
    return tree


@pytest.fixture
def stage(request, stages) -> Stage:
    return stages[request.param]


@pytest.fixture
def tree(stage, tmp_path):
    """The work tree as the stage finds it; nothing of it runs on after the test."""
    tree = stage.before.copy(tmp_path / "tree")
    yield tree
    for process in tree.running:
        process.kill()
