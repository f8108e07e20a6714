"""Every stage of a tiny project run once undisturbed: what each finds, what it
leaves, how long it takes.
"""

import json
import multiprocessing
import time

import pytest
import yaml
from faulty import IMPORTED, ROOT, VERBS, Stage, Tree, tiny


@pytest.fixture(scope="session")
def stages(tmp_path_factory) -> dict[str, Stage]:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(IMPORTED)
    root = tmp_path_factory.mktemp("stages")
    tree = Tree(root / "start", processes)
    (tree.folder / "data").mkdir(parents=True)
    (tree.folder / "data/sources").symlink_to(ROOT / "data/sources")
    (tree.folder / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    found = {}
    for name, arguments in VERBS.items():
        if name == "report":
            tree = audited(tree.copy(root / "audited"))
        done = tree.copy(root / name)
        begun = time.monotonic()
        assert done.run(arguments) == 0, f"{name}: {done.said}"
        found[name] = Stage(arguments, tree, done.folder, done.changes, time.monotonic() - begun)
        tree = done
    return found


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
