"""The one command of the benchmarks: its table names files that are there, and renews only the
rows it measured.
"""

import importlib
import runpy
import sys
from pathlib import Path

import pytest

runner = importlib.import_module("benchmarks.__main__")
FOLDER = Path(runner.__file__).parent


def test_every_benchmark_has_its_module():
    for name, command in runner.BENCHMARKS.items():
        assert (FOLDER / f"{command.split()[0]}.py").exists(), name


def test_a_row_renews_itself_and_no_other():
    one = runner.renew(
        "", "two cores", "torch 1", "| training | what | ≥ 0.9 | 0.5 | no | slow | 0.0 | before |"
    )
    two = runner.renew(
        one, "two cores", "torch 2", "| tiling | what | ≥ 0.7 | 0.8 | yes | fast | 0.0 | now |"
    )
    elsewhere = runner.renew(
        two, "a GPU", "torch 2", "| training | what | ≥ 0.9 | 0.95 | yes | fast | 0.0 | now |"
    )
    again = runner.renew(
        elsewhere,
        "two cores",
        "torch 2",
        "| training | what | ≥ 0.9 | 0.92 | yes | fast | 0.0 | now |",
    )
    rows = [
        line for line in again.splitlines() if line.startswith(("| tiling", "| training", "## "))
    ]
    assert [row.split(" | ")[:4] for row in rows] == [
        ["## two cores"],
        ["| tiling", "what", "≥ 0.7", "0.8"],
        ["| training", "what", "≥ 0.9", "0.92"],
        ["## a GPU"],
        ["| training", "what", "≥ 0.9", "0.95"],
    ]


def test_the_line_a_benchmark_prints_is_the_line_that_is_read(capsys):
    from benchmarks.ratio import report

    report(
        "training loop / steps on tensors in memory", 0.958, 0.95, "94 and 98 images/s (1 process)"
    )
    found = runner.LINE.match(capsys.readouterr().out)
    assert found.groups() == (
        "0.958",
        "0.95",
        "training loop / steps on tensors in memory",
        "94 and 98 images/s (1 process)",
    )


def test_a_ratio_is_of_pairs_not_of_the_fastest_moments():
    from benchmarks.ratio import medians

    # the limit met one good moment: the fastest of each would say 0.5
    assert medians([(8, 9), (4, 8), (9, 9)]) == (8, 9, 8 / 9)


def test_arithmetic_is_counted_and_held_against_a_known_card():
    import torch

    from benchmarks.ratio import arithmetic

    def step() -> None:
        torch.ones(100, 500) @ torch.ones(500, 1000)  # 10⁸ operations

    assert (
        arithmetic(step, 98_900, "NVIDIA H100 80GB HBM3")
        == "9.89 Tflop/s, 1% of the card's bf16 peak"
    )
    assert arithmetic(step, 98_900, "CPU") == "9.89 Tflop/s"


RUNS = [
    path.stem
    for path in sorted(FOLDER.glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", RUNS)
def test_help_says_what_it_measures_and_measures_nothing(module, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(f"benchmarks.{module}", run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) > 4 and not list(tmp_path.iterdir())
