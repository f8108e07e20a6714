"""Runs side by side: experiments, folders and files, one table and one CSV."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from report_factory import commit, make, write

from pipeline.errors import InputError
from pipeline.params import load_params
from pipeline.report.comparison import compare, differences, flat, stale

ROOT = Path(__file__).parents[2]


def params(root: Path, **loss: float) -> None:
    data = load_params(ROOT / "tests/tiny.yaml").model_dump(mode="json")
    data["train"]["loss"] |= loss
    (root / "params.yaml").write_text(yaml.safe_dump(data))


@pytest.fixture
def two(tmp_path) -> Path:
    """Two folders of runs with other losses; "b" maps better."""
    for name, better, loss in (("a", 0, {"dice": 1}), ("b", 0.1, {"dice": 0, "lovasz": 1})):
        make(tmp_path / name, ["here", "there"], ("evaluate", "generalize"))
        params(tmp_path / name, **loss)
        path = tmp_path / name / "metrics/evaluate.json"
        metrics = json.loads(path.read_text())
        for row in metrics["city"].values():
            row["iou"] += better
        write(path, metrics | {"mean_city": {"iou": 0.6 + better, "iou_low": 0.5, "iou_high": 0.7}})
    return tmp_path


def test_two_runs_are_two_rows_with_intervals_and_what_differs(two, capsys):
    compare(["a", "b"], root=two)
    said = " ".join(capsys.readouterr().out.split())
    assert "run here there mean city" in said
    assert "0.80 0.74–0.85" in said and "0.90 0.74–0.85" in said and "0.70 0.50–0.70" in said
    assert "b: train.loss.dice=0, train.loss.lovasz=1" in said


def test_every_number_is_one_line_of_pandas(two):
    pandas = pytest.importorskip("pandas")
    compare(["a", "b"], file=two / "numbers.csv", root=two)
    numbers = pandas.read_csv(two / "numbers.csv").pivot(index="city", columns="run", values="seen")
    assert numbers.b["here"] - numbers.a["here"] == pytest.approx(0.1)
    compare(["a"], file=two / "numbers.csv", root=two)  # its own file is renewed
    (two / "mine.csv").write_text("dear,diary\n")
    with pytest.raises(InputError, match=r"mine.csv: is no earlier comparison"):
        compare(["a"], file=two / "mine.csv", root=two)
    assert (two / "mine.csv").read_text() == "dear,diary\n"


def test_a_metrics_file_alone_is_a_run_and_any_number_of_it_is_compared(two, capsys):
    compare(["a/metrics/evaluate.json", "b"], "boundary_iou", root=two)
    said = " ".join(capsys.readouterr().out.split())
    assert "a/metrics/evaluate.json 0.600 0.350 0.475" in said


@pytest.mark.parametrize(
    ("names", "kind", "says"),
    [
        (["nowhere"], "seen", "nowhere: no folder with metrics/"),
        (["a"], "boundary", "--of boundary: no such number; did you mean boundary_iou"),
        (["a"], "attacked", "no run has measured attacked: run its stage first"),
    ],
)
def test_what_is_no_run_and_no_number_is_one_sentence(two, names, kind, says):
    with pytest.raises(InputError, match=says):
        compare(names, kind, root=two)


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_experiments_are_found_by_their_names(two, capsys):
    root = two / "a"
    commit(root)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True
    ).stdout.strip()
    subprocess.run(
        ["git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/brisk-loss", head],
        cwd=root,
        check=True,
    )
    subprocess.run(["git", "update-ref", "refs/exps/stash", head], cwd=root, check=True)
    compare([], file=root / "numbers.csv", root=root)
    with (root / "numbers.csv").open() as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"workspace", "brisk-loss"}
    compare(["HEAD", "brisk-loss"], root=root)


def test_numbers_of_another_model_are_left_out():
    """`dvc exp run evaluate` leaves attack.json of the model before."""

    def model(md5: str) -> list:
        return [{"path": "models/all", "md5": md5}, {"path": "data/tiles", "md5": "0"}]

    lock = {"stages": {"train": {"outs": model("new")}, "evaluate": {"deps": model("new")},
                       "attack": {"deps": model("old")}}}  # fmt: skip
    assert stale(lock) == {"attack"} and stale({}) == frozenset()


def test_differences_are_said_as_dvc_takes_them():
    first = dict(flat({"train": {"loss": {"dice": 1.0}, "epochs": 3}}))
    other = dict(flat({"train": {"loss": {"dice": 0}, "epochs": 3, "new": 1}}))
    assert differences(first, other) == ["train.loss.dice=0"]
