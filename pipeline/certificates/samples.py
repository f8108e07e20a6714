"""How many noise samples a certificate by smoothing needs at the least (see smoothing.py);
known without a network.
"""

import math

from pipeline.errors import InputError


def samples_needed(pixels: int, tau: float, alpha: float) -> int:
    """The least n with τⁿ ≤ α / pixels: below it, not even a unanimous pixel is certified."""
    return math.ceil(math.log(alpha / pixels) / math.log(tau) - 1e-9)


def check_samples(n: int, pixels: int, tau: float, alpha: float) -> None:
    """Raise InputError where the settings can never certify a pixel."""
    if n < (need := samples_needed(pixels, tau, alpha)):
        raise InputError(
            f"certify.smoothing: n = {n} samples can never certify one of {pixels} pixels at tau = "
            f"{tau} and "
            f"alpha = {alpha}; set n to at least {need}"
        )
