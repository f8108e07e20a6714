"""Writing that a failure cannot half-do."""

import fcntl
import json
import multiprocessing
import os
import tempfile

import pytest

from pipeline.storage import atomic_file, atomic_folder, fingerprint, sweep, write_json


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    with pytest.raises(ValueError):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1} and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_folder_and_success_replaces_it_whole(tmp_path):
    path = tmp_path / "city"
    for name in ("old", "new"):
        with atomic_folder(path) as partial:
            (partial / name).touch()
    with pytest.raises(RuntimeError), atomic_folder(path) as partial:
        (partial / "half").touch()
        raise RuntimeError
    assert [f.name for f in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_swept_and_a_namesake_s_is_not(tmp_path):
    killed, namesake = tmp_path / ".city.abcd1234.partial", tmp_path / ".city.two.abcd1234.partial"
    killed.mkdir(), namesake.mkdir()
    with atomic_folder(tmp_path / "city"):
        assert not killed.exists() and namesake.exists()


def test_a_folder_that_another_run_sweeps_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    made, held = [], []

    def swept(**options) -> str:
        """The first is gone at once, the second is being swept, the third is left alone."""
        made.append(mkdtemp(**options))
        if len(made) == 1:
            os.rmdir(made[0])
        elif len(made) == 2:
            held.append(os.open(made[1], os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        return made[-1]

    mkdtemp = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    write_json(tmp_path / "a.json", 1)
    assert len(made) == 3 and json.loads((tmp_path / "a.json").read_text()) == 1
    os.close(held[0])
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def _write_often(path, times: int) -> None:
    for i in range(times):
        write_json(path / "a.json", i)
        with atomic_folder(path / "city") as partial:
            (partial / f"{i}").touch()


def test_two_that_write_under_one_name_never_sweep_each_other_s_work(tmp_path):
    context = multiprocessing.get_context("forkserver")
    both = [context.Process(target=_write_often, args=(tmp_path, 200)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "city"]
    assert len(list((tmp_path / "city").iterdir())) == 1


def test_a_fingerprint_follows_content_not_order():
    assert (
        fingerprint({"a": 1, "b": 2})
        == fingerprint({"b": 2, "a": 1})
        != fingerprint({"a": 1, "b": 3})
    )
