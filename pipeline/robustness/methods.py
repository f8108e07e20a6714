"""The attacks by the names of attack.methods: what the campaign runs and the metrics, tables and
figures show.

To add one: its name to `params.AttackMethod`, its line here, and its loss or optimiser where the
others live.
"""

from collections.abc import Callable
from functools import partial

import torch

from pipeline import params
from pipeline.robustness import attacks
from pipeline.robustness.attacks import Target

Attack = Callable[[Target], torch.Tensor]


def methods(settings: params.Attack, pixels: torch.Tensor, generator: torch.Generator) -> dict[str, Attack]:
    """Every attack, the cheapest first, as "METHOD" or "METHOD MEMBER": with members, a method is on
    each tile as bad as its worst. `pixels` (K,) counts the training set's pixels of each class.
    """
    options = {"restarts": settings.restarts, "generator": generator}
    steps = {"steps": settings.steps, **options}
    return {
        "fgsm": attacks.fgsm,
        "pgd": partial(attacks.pgd, **steps),
        "segpgd": partial(attacks.segpgd, **steps),
        "cospgd": partial(attacks.cospgd, **steps),
        **{
            f"apgd {name}": partial(attacks.red_epsilon, loss=loss, steps=settings.apgd_steps, **options)
            for name, loss in attacks.sea_losses(pixels).items()
        },
        "soft_iou": partial(attacks.soft_iou, steps=settings.soft_iou_steps, **options),
    }
