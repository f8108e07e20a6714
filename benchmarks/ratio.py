"""The line every benchmark ends with: one ratio measured in one run, the goal beside it, and what
it is a ratio of.

A ratio is the limit's time over ours (or our rate over the limit's): 1 is the limit
itself, and more is better.
"""

import argparse
import sys
from collections.abc import Callable

# dense bf16, by NVIDIA's data sheets
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def arguments_of(documentation: str) -> argparse.ArgumentParser:
    """`--help` shows the first lines of the file as they stand."""
    return argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def report(what: str, ratio: float | None, goal: float, measured: str) -> None:
    value = "–" if ratio is None else f"{ratio:.3g}"
    print(f"ratio {value}  goal ≥ {goal:g}  {what}  ({measured})", flush=True)


def cannot(what: str, goal: float, why: str) -> None:
    """End here: this machine lacks what the benchmark needs."""
    report(what, None, goal, f"not measured: {why}")
    sys.exit()


def arithmetic(step: Callable[[], object], rate: float, card: str) -> str:
    """What `rate` times `step` a second is in floating-point operations, and what share of the
    card's bf16 peak.

    What loading takes of the rest shows in the benchmark's own ratio; the others
    are the network's kernels.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        step()
    speed = counted.get_total_flops() * rate
    peak = next((peak for name, peak in PEAKS.items() if name in card), None)
    return f"{speed / 1e12:.3g} Tflop/s" + (
        f", {speed / peak:.0%} of the card's bf16 peak" if peak else ""
    )
