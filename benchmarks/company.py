"""Training beside one busy process / training alone: the share of its speed that it keeps.

    python -m benchmarks.company

A thread that spins while it waits for another that has lost its core makes a step last many times
as long: OpenMP's threads sleep after some microseconds (pipeline/__init__.py), and a stage starts
as many as there are idle cores. Alone and beside a process that never rests are measured in turns,
each in a process of its own.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.demo_tiles import demo_params, demo_tiles
from benchmarks.ratio import arguments_of, medians, report
from pipeline.runs import idle_cores

STEPS, WARM, ROUNDS, GOAL = 25, 5, 3, 0.45


def seconds() -> float:
    """Of STEPS training steps: the difference of a long and a short run of `fit`."""
    from pipeline.training.fit import fit

    params, runs = demo_params(), []
    with tempfile.TemporaryDirectory() as folder:
        for steps in (WARM, STEPS + WARM):
            train = params.train.model_copy(update={"epochs": 1, "steps_per_epoch": steps})
            longer, part = params.model_copy(update={"train": train}), Path(folder, f"{steps}")
            start = time.perf_counter()
            fit(longer, demo_tiles(params), part / "model", work=part / "work")
            runs.append(time.perf_counter() - start)
    return runs[1] - runs[0]


def measure(busy: bool) -> float:
    """`seconds` in a fresh process, beside another that never rests or not."""
    company = [subprocess.Popen([sys.executable, "-c", "while True: pass"])] if busy else []
    try:
        command = [sys.executable, "-m", "benchmarks.company", "--once"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return float(printed.split()[-1])
    finally:
        for process in company:
            process.kill()


if __name__ == "__main__":
    parser = arguments_of(__doc__)
    parser.add_argument(
        "--once", action="store_true", help="print the seconds of one run, and no ratio"
    )
    if parser.parse_args().once:
        os.environ["OMP_NUM_THREADS"] = str(idle_cores())  # as any verb does
        print(seconds())
        sys.exit()
    demo_tiles(demo_params())  # made once, before the clock runs
    pairs = [(measure(busy=False), measure(busy=True)) for _ in range(ROUNDS)]
    alone, beside, ratio = medians(pairs)
    measured = f"{STEPS} steps: {alone:.1f} and {beside:.1f} s"
    report("training alone / beside one busy process", ratio, GOAL, measured)
