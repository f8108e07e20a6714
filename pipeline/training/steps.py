"""What the trainings of this folder share a step at a time: how far to go, and which batches
cannot be learned from.
"""

from contextlib import contextmanager

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from pipeline.errors import InputError


def one_cycle(optimizer: Optimizer, peak: float, steps: int) -> OneCycleLR:
    """The learning rate up to `peak` over a fifth of the steps, and down over the others (Smith
    and Topin 2019).
    """
    # a fifth of 5 steps rises in no time at all, a division by zero
    rise = 0.2 if steps > 5 else 0.3
    return OneCycleLR(optimizer, peak, total_steps=steps, pct_start=rise)


@contextmanager
def batches_of_several(parameter: str, architecture: str):
    """Raise InputError in the place of torch's ValueError where a network pools to one pixel
    what it normalises.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"{parameter}: {architecture} normalises over its batch and cannot learn from one crop "
            f"a process; raise it"
        ) from None
