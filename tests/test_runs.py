import pytest

from pipeline import runs
from pipeline.runs import idle_cores, last_runs, recorded


def test_the_last_run_of_each_verb_and_arguments_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()
    for arguments in (
        ["tile", "--city", "a"],
        ["tile", "--city", "b"],
        ["tile", "--city", "a"],
        ["train"],
    ):
        with recorded(arguments):
            pass
    found = last_runs(tmp_path)
    assert [(run["verb"], *run["arguments"]) for run in found] == [
        ("tile", "--city", "a"), ("tile", "--city", "b"), ("train",),
    ]  # fmt: skip
    assert found[2]["hardware"]


def test_a_run_that_fails_or_only_helps_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()
    with pytest.raises(ValueError), recorded(["train"]):
        raise ValueError
    with recorded(["train", "--help"]):
        pass
    assert last_runs(tmp_path) == []


def test_a_run_that_cannot_be_noted_is_done_all_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()
    # as good as a folder that nothing can be written into, for root too
    (tmp_path / ".work").touch()
    with recorded(["summary"]):
        pass
    assert last_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("running", "idle"), [("1/80", 4), ("2/80", 3), ("4/80", 1), ("90/900", 1), (None, 4)]
)
def test_the_idle_cores_are_those_that_no_other_process_wants(running, idle, tmp_path, monkeypatch):
    load = tmp_path / "loadavg"
    if running:  # the reader is one of those that run
        load.write_text(f"0.97 1.05 0.86 {running} 6060\n")
    monkeypatch.setattr(runs, "LOAD", load)
    monkeypatch.setattr(runs, "cores", lambda: 4)
    monkeypatch.setattr(runs.os, "cpu_count", lambda: 4)
    assert idle_cores() == idle
