"""The line every benchmark ends with: one ratio measured in one run, the goal beside it, and what it is a ratio of.

A ratio is the limit's time over ours (or our rate over the limit's): 1 is the limit itself, and more is better.
"""

import sys


def report(what: str, ratio: float | None, goal: float, measured: str) -> None:
    value = "–" if ratio is None else f"{ratio:.3g}"
    print(f"ratio {value}  goal ≥ {goal:g}  {what}  ({measured})", flush=True)


def cannot(what: str, goal: float, why: str) -> None:
    """End here: this machine lacks what the benchmark needs."""
    report(what, None, goal, f"not measured: {why}")
    sys.exit()
