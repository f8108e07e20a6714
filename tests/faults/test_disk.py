"""A disk that fills up, and one that takes nothing at all: one sentence, nothing half written, and
the same command goes on when there is room again.
"""

import os
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from faulty import STAGES, Stage, Tree, each, snapshot, visible

PAGE = 4096  # bytes a tmpfs hands out at a time


def refused(tree: Tree, stage: Stage, code: int, words: tuple[str, ...] = ("space", "fit")) -> None:
    """The run ended with a sentence, and every file is whole under its name or not there."""
    assert code == 2, f"exit {code}: {tree.said}"
    said = tree.said.strip().splitlines()
    assert said[-1].startswith("error: ") and "Traceback" not in tree.said
    assert any(word in tree.said for word in words), said[-1]
    whole = visible(stage.before.folder) | visible(stage.after)
    for name, data in visible(tree.folder).items():
        assert data == whole[name], f"{name} is half written"
    assert not [name for name in snapshot(tree.folder) if ".partial" in name]


def same(tree: Tree, stage: Stage) -> None:
    assert tree.run(stage.arguments) == 0, tree.said
    left = snapshot(tree.folder)
    assert [n for n in left.keys() | stage.left.keys() if left.get(n) != stage.left.get(n)] == []


@each(STAGES)
def test_a_disk_that_fills_at_a_change_of_a_file(stage, tree, request):
    draw = np.random.default_rng(zlib.crc32(request.node.callspec.id.encode()))
    moment = int(
        draw.integers(1, sum(c.startswith(("open", "os.mkdir")) for c in stage.changes) + 1)
    )
    refused(tree, stage, tree.run(stage.arguments, "full", moment))
    same(tree, stage)


@pytest.fixture
def small_disk(stage, tmp_path):
    """The work tree on a file system of its own, and a function that leaves so
    many bytes free on it.
    """
    folder = tmp_path / "tree"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        tree = stage.before.copy(folder)

        def leave(free: int) -> None:
            disk = os.statvfs(folder)
            size = (disk.f_blocks - disk.f_bfree) * disk.f_frsize + free
            subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

        yield tree, leave
        for process in tree.running:
            process.kill()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def pages(folder: Path) -> int:
    """Bytes a folder takes on a tmpfs."""
    return sum(
        -(-file.stat().st_size // PAGE) * PAGE for file in folder.rglob("*") if file.is_file()
    )


@each(STAGES)
def test_a_small_disk(stage, small_disk):
    tree, leave = small_disk
    need = pages(stage.after) - pages(stage.before.folder)
    for share in (0, 0.6):
        leave(int(share * need) // PAGE * PAGE)
        refused(tree, stage, tree.run(stage.arguments))
    leave(64 << 20)
    same(tree, stage)


# these write nothing into data/
READING = [name for name in STAGES if name not in {"fetch", "tile"}]


@each(STAGES)
def test_a_read_only_disk(stage, small_disk, request):
    """Refused where a stage must write, no hindrance where it only reads: data/
    of a stage behind tiling.
    """
    tree, _ = small_disk
    subprocess.run(["mount", "-o", "remount,ro", tree.folder], check=True)
    refused(tree, stage, tree.run(stage.arguments), words=("Read-only file system",))
    subprocess.run(["mount", "-o", "remount,rw", tree.folder], check=True)
    if request.node.callspec.id not in READING:
        return same(tree, stage)
    data = tree.folder / "data"
    subprocess.run(["mount", "--bind", data, data], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", data], check=True)
        with pytest.raises(OSError):
            (data / "x").touch()
        same(tree, stage)
    finally:
        subprocess.run(["umount", "--lazy", data], check=True)
