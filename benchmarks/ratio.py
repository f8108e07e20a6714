"""The line every benchmark ends with: one ratio measured in one run, the goal beside it, and what
it is a ratio of.

A ratio is the limit's time over ours (or our rate over the limit's): 1 is the limit
itself, and more is better.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence

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


def medians(pairs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Of what was measured in turns: of the first, of the second, and of first / second. A pair
    shares what the host's other guests leave; the fastest of each would be of two moments.
    """
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    return first, second, statistics.median(a / b for a, b in pairs)


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
