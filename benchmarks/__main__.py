"""All benchmarks that this machine can run, one after another, each in a process of its own.

    python -m benchmarks             every one of them, under an hour on two quiet cores; writes benchmarks/RESULTS.md
    python -m benchmarks NAME …      some of them; their rows of the file are renewed, the others stay
    python -m benchmarks.MODULE -h   one module by itself, with its options

Each ends with one line: its ratio, the goal, and what it is a ratio of. What needs hours or shows
quality instead of speed is an experiment with a command of its own, in the first lines of its file:
real_baseline, generalize_real, certify_fixture, certify_real, attack_real, attack_cross_check,
tint, outer_polytope, seams, outlines, glance.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/RESULTS.md"
BENCHMARKS = {  # name: module and arguments
    "tiling": "tiling",
    "crops": "crops",
    "training": "training",
    "training_2": "training --processes 2",
    "training_gpu": "training --gpu",
    "company": "company",
    "depthwise": "depthwise",
    "streams": "streams",
    "inference": "inference",
    "inference_gpu": "inference --gpu",
    "predict": "predict throughput",
    "predict_memory": "predict memory",
    "predict_wide": "predict wide",
    "predict_shards": "predict shards",
    "predict_empty": "predict empty",
    "predict_dense": "predict dense",
    "folds": "folds",
    "window_cnn": "window_cnn",
    "attack_iteration": "attack_iteration",
    "ibp_step": "ibp_step",
    "smoothing": "smoothing",
    "dvc_status": "no_op status",
    "dvc_repro": "no_op repro",
    "open_buildings": "open_buildings",
    "polygonise": "polygonise",
    "outlines": "polygonise --regular",
    "peer_crops": "peers crops",
    "peer_scene": "peers scene",
    "peer_labels": "peers labels",
}
LINE = re.compile(r"ratio (\S+)  goal ≥ (\S+)  (.+?)  \((.+)\)")
INTRODUCTION = """# Results

Written by `python -m benchmarks`. A ratio is measured in one run: the median of pairs, the limit and ours in turns, or
one pair for window_cnn, folds and the peers. 1 is the limit itself, more is better. Beside each row: the absolute
numbers behind it, how busy the machine was (its load before the run), and the date and revision.
"""
HEADER = "| benchmark | ratio of | goal | ratio | met | measured | load | when |\n|---|---|---|---|---|---|---|---|\n"


def run(name: str) -> str:
    """The benchmark's row. What it prints is shown as it comes."""
    load = os.getloadavg()[0]
    print(f"\n{name}", flush=True)
    module, *arguments = BENCHMARKS[name].split()
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    found = None
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            found = LINE.match(line) or found
    when = f"{time.strftime('%Y-%m-%d')} {revision()}"
    if process.returncode or not found:
        return f"| {name} | | | – | failed | exit code {process.returncode} | {load:.1f} | {when} |"
    ratio, goal, what, measured = found.groups()
    met = "" if ratio == "–" else "yes" if float(ratio) >= float(goal) else "no"
    return f"| {name} | {what} | ≥ {goal} | {ratio} | {met} | {measured} | {load:.1f} | {when} |"


def revision() -> str:
    """The commit the code is at, marked where the code differs from it."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    others = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/RESULTS.md"]
    changed = commit.stdout and subprocess.run(others, cwd=ROOT).returncode
    return commit.stdout.strip() + "-dirty" * bool(changed)


def machine() -> str:
    cpu = (
        re.search(
            r"model name\s*: "
            r"(.+)",
            Path("/proc/cpuinfo").read_text(),
        )
        if platform.system() == "Linux"
        else None
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = "no GPU"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()[0]
    cpu = cpu[1] if cpu else platform.processor()
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} core{'s' * (cores > 1)}, {memory:.0f} GiB, {gpu}"


def versions() -> str:
    names = ["torch", "lightning", "segmentation-models-pytorch", "rasterio", "numpy", "dvc"]
    found = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return ", ".join([f"Python {platform.python_version()}", *found])


def renew(text: str, machine: str, versions: str, row: str) -> str:
    """RESULTS.md with `row` in the machine's section, in the order of BENCHMARKS; other
    machines' stay untouched.
    """
    title = f"\n## {machine}\n"
    introduction, *sections = re.split(r"(?=\n## )", text or INTRODUCTION)
    mine = next((section for section in sections if section.startswith(title)), "")
    rows = {line.split(" ")[1]: line for line in [*mine.splitlines(), row] if line.startswith("| ")}
    table = HEADER + "".join(rows[name] + "\n" for name in BENCHMARKS if name in rows)
    new = f"{title}\n{versions}\n\n{table}"
    return introduction + "".join(
        [new if s == mine else s for s in sections] if mine else [*sections, new]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    rows = []
    for name in names:
        rows.append(run(name))
        text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
        RESULTS.write_text(renew(text, machine(), versions(), rows[-1]), encoding="utf-8")
    print(f"\n{RESULTS.relative_to(ROOT)}:\n" + HEADER + "\n".join(rows))
    sys.exit(any("| failed |" in row for row in rows))


if __name__ == "__main__":
    main()
