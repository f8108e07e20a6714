import pytest

from pipeline.runs import last_runs, recorded


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
