"""Two at once in one tree, Ctrl-C, and a parent that dies: one result, and no
process is left behind.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from faulty import ROOT, Tree, content, snapshot, tiny


@pytest.mark.parametrize("stage", ["tile", "train", "predict"], indirect=True)
def test_the_same_command_twice_at_once(stage, tree):
    """Trainers take turns and the second finds the work done; the others write
    the same twice. None fails.
    """
    logs = [f"{tree.log}.{i}" for i in (1, 2)]
    first, second = (tree.start(stage.arguments, log=log) for log in logs)
    first.join(), second.join()
    assert (first.exitcode, second.exitcode) == (0, 0), [Path(log).read_text() for log in logs]
    assert snapshot(tree.folder) == stage.left
    if stage.arguments == ["train"]:
        saved = [
            sum(
                "os.rename models/all" in c for c in Path(f"{log}.changes").read_text().splitlines()
            )
            for log in logs
        ]
        assert sorted(saved) == [0, 1], "both trained"


@pytest.mark.slow
def test_two_dvc_repro_at_once(stages, tmp_path):
    """One of them works, the other waits or says in a sentence that it is
    locked out; a third finds all done.
    """
    for name in ("pipeline", "data/sources"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    stages_ = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    (tmp_path / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {name: stages_[name] for name in ("check", "fetch", "tile")}})
    )
    params = tiny()
    params["fetch"]["cities"] = ["brickvale"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    tools = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    options = {
        "cwd": tmp_path,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    for command in (["init", "--no-scm", "--quiet"], ["config", "core.analytics", "false"]):
        subprocess.run([tools / "dvc", *command], check=True, **options)
    both = [subprocess.Popen([tools / "dvc", "repro"], **options) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert 0 in [process.returncode for process in both], said
    for process, words in zip(both, said, strict=True):
        assert process.returncode == 0 or ("lock" in words and "Traceback" not in words), words
    third = subprocess.run([tools / "dvc", "repro"], check=True, **options).stdout
    assert "Running stage" not in third and "up to date" in third
    for name in ("images.npy", "labels.npy", "tiles.parquet", "regions.json"):
        file = f"data/tiles/brickvale/{name}"
        assert content(tmp_path / file) == content(stages["tile"].after / file)
    assert not list(tmp_path.rglob("*.partial"))


def living(session: int) -> list[int]:
    """Processes of a session that are more than zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, *_ = (fields := (folder / "stat").read_text().rpartition(")")[2].split())
        except OSError:
            continue
        if int(fields[3]) == session and state != "Z":
            found.append(int(folder.name))
    return found


def wait_for(what, seconds: float = 300) -> bool:
    deadline = time.monotonic() + seconds
    while not (done := what()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(done)


def busy(tree: Tree, stage) -> tuple:
    """A run that tiles or trains with two workers, and is in the middle of it: the process, how
    many belong to it.
    """
    if stage.arguments == ["tile"]:
        tree.change(tile={"workers": 2})
        started = "data/tiles/.brickvale.*.partial/labels.npy"
    else:
        tree.change(train={"workers": 2, "epochs": 1000})
        started = ".work/train-all-*/last.ckpt"
    process = tree.start(stage.arguments)
    assert wait_for(lambda: list(tree.folder.glob(started)) and len(living(process.pid)) > 2), (
        tree.said
    )
    return process, living(process.pid)


@pytest.mark.parametrize("stage", ["tile", "train"], indirect=True)
def test_ctrl_c_leaves_no_process_and_no_half_file(stage, tree):
    process, _ = busy(tree, stage)
    os.killpg(process.pid, signal.SIGINT)
    process.join(120)
    assert process.exitcode == 130, tree.said
    assert (
        tree.said.strip().endswith("stopped; the same command goes on from here")
        and "Traceback" not in tree.said
    )
    assert wait_for(lambda: not living(process.pid), 60), "processes are left behind"
    assert not list(tree.folder.rglob("*.partial"))


@pytest.mark.parametrize("stage", ["tile", "train"], indirect=True)
def test_workers_do_not_outlive_a_killed_parent(stage, tree):
    process, _ = busy(tree, stage)
    process.kill()
    process.join()
    assert wait_for(lambda: not living(process.pid), 60), "workers wait for ever"
