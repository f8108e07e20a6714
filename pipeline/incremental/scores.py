"""What a matrix of a sequence says: R[t, j] is the IoU in city j after city t,
cities in the order they arrive.

R is (T, T) float, NaN in the columns of cities without a building; a mean is over the others.
Average accuracy and the transfers are those of Lopez-Paz and Ranzato (NeurIPS 2017, equations 2 to
4), with IoU as accuracy; forgetting is Chaudhry et al.'s (ECCV 2018, equation 3).
"""

import warnings

import numpy as np


def mean(values: np.ndarray) -> float | None:
    """Of what is known; None where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        value = float(np.nanmean(values)) if len(values) else np.nan
    return None if np.isnan(value) else value


def average_accuracy(r: np.ndarray) -> float | None:
    """Mean of the last row: of all cities when all have come."""
    return mean(r[-1])


def backward_transfer(r: np.ndarray) -> float | None:
    """Mean of R[T, j] − R[j, j] over all but the last city: what later cities did to it.
    Negative: forgotten.
    """
    return mean((r[-1] - np.diag(r))[:-1])


def forward_transfer(r: np.ndarray, untrained: np.ndarray) -> float | None:
    """Mean of R[j − 1, j] − b_j over all but the first: what earlier cities are
    worth before it comes.

    `untrained` (T,) is b, the IoU of the network before any training.
    """
    return mean(np.diag(r, 1) - untrained[1:])


def forgetting(r: np.ndarray) -> float | None:
    """Mean of max_{t < T} R[t, j] − R[T, j] over all but the last city, from
    the city's own time on.
    """
    best = [r[j:-1, j].max() if len(r) - 1 > j else np.nan for j in range(len(r))]
    return mean((np.array(best) - r[-1])[:-1])


def summary(r: np.ndarray, untrained: np.ndarray) -> dict[str, float | None]:
    return {
        "average": average_accuracy(r),
        "forgetting": forgetting(r),
        "backward": backward_transfer(r),
        "forward": forward_transfer(r, untrained),
    }
