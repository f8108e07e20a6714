"""The attacks by the names of attack.methods: what the campaign runs and the metrics, tables and
figures show.

To add one: its name to `params.AttackMethod`, its line here, and its loss or optimiser where the
others live.
"""

from collections.abc import Callable
from functools import partial

import torch

from pipeline import params
from pipeline.attacks import engine
from pipeline.attacks.engine import Target

Attack = Callable[[Target], torch.Tensor]


def methods(
    settings: params.Attack, pixels: torch.Tensor, generator: torch.Generator
) -> dict[str, Attack]:
    """Every attack, the cheapest first, as "METHOD" or "METHOD MEMBER": with members, a method is
    on each tile as bad as its worst. `pixels` (K,) counts the training set's pixels of each class.
    """
    options = {"restarts": settings.restarts, "generator": generator}
    steps = {"steps": settings.steps, **options}
    return {
        "fgsm": engine.fgsm,
        "pgd": partial(engine.pgd, **steps),
        "segpgd": partial(engine.segpgd, **steps),
        "cospgd": partial(engine.cospgd, **steps),
        **{
            f"apgd {name}": partial(
                engine.red_epsilon, loss=loss, steps=settings.apgd_steps, **options
            )
            for name, loss in engine.sea_losses(pixels).items()
        },
        "soft_iou": partial(engine.soft_iou, steps=settings.soft_iou_steps, **options),
    }
