"""Is the attack honest? Checks that a weak attack or a model that hides its
gradients does not pass.

After Carlini et al., "On Evaluating Adversarial Robustness" (2019). A weak attack shows itself:
more iterations help less than fewer, a copy's gradients beat the model's own, a loss that rescales
the logits beats those that do not, ten times the gradients find much more, or pixels turned nearly
at will leave the map standing.
"""

from collections.abc import Iterable

from pipeline.errors import InputError

TOLERANCE = 0.005  # IoU: half a point
ENOUGH = 0.03  # IoU: what a much longer attack may still find
ROUNDING = 1e-6  # pixel range [0, 1]
CHECKS = {
    "within_budget": "no perturbation is longer than ε + 1e-6 and every pixel is in [0, 1]",
    "monotone_in_budget": "the worst IoU found at a budget is no higher than that found at a "
    "smaller one",
    "monotone_in_steps": "PGD of more steps is no weaker than PGD of half as many",
    "white_box_below_transfer": "gradients of the model itself harm no less than those of another",
    "white_box_below_scale_free": "the attacks harm no less than two that the size of the logits "
    "cannot mislead",
    "transfer_below_noise": "gradients of another model harm no less than noise",
    "noise_below_clean": "noise helps no city",
    "vanishes": "the IoU at 32/255 is below 0.1 in every city",
    "ten_times_is_no_worse": "ten times the gradients of the longest attack lower the worst IoU by "
    "less than 0.03",
}


class AuditFailed(InputError):
    """An attack that cannot be trusted: its numbers must not be published."""


def falls(values: Iterable[float | None], tolerance: float) -> bool:
    """Whether no value is above the one before by more than the tolerance; None
    was not measured.
    """
    values = [value for value in values if value is not None]
    return all(b <= a + tolerance for a, b in zip(values[:-1], values[1:], strict=True))


def audit(
    *,
    excess: float,
    worst: list[list[float]],
    steps: list[float | None],
    white_box: float | None,
    scale_free: float | None,
    transfer: float | None,
    noise: float | None,
    clean: float | None,
    vanishing: list[float],
    ten_times: float,
) -> dict[str, bool]:
    """Every check by name.

    excess      the largest ‖δ‖ − ε, or distance of a pixel from [0, 1], of all attacks
    worst       for each city and norm the worst IoU of each ε's own attacks by growing ε, the clean IoU first
    steps       pooled IoU under PGD by growing number of steps
    white_box, scale_free, transfer, noise, clean   pooled IoU at one budget
    vanishing   each city's IoU under a white-box attack at 32/255
    ten_times   the fall of the worst IoU by ten times the gradients, on a tile of each city

    Cities without a building in their tiles are in none of these IoUs; None where no city has one.
    """
    return {
        "within_budget": excess <= ROUNDING,
        "monotone_in_budget": all(falls(values, TOLERANCE) for values in worst),
        "monotone_in_steps": falls(steps, TOLERANCE),
        "white_box_below_transfer": falls([transfer, white_box], TOLERANCE),
        "white_box_below_scale_free": falls([scale_free, white_box], TOLERANCE),
        "transfer_below_noise": falls([noise, transfer], TOLERANCE),
        "noise_below_clean": falls([clean, noise], TOLERANCE),
        "vanishes": all(value < 0.1 for value in vanishing),
        "ten_times_is_no_worse": ten_times < ENOUGH,
    }


def failures(checks: dict[str, bool]) -> list[str]:
    """Each failed check in words."""
    failed = [name for name, passed in checks.items() if not passed]
    return [f"{name} ({CHECKS.get(name, 'no check of this version')})" for name in failed]


def demand(checks: dict[str, bool], evidence: str) -> None:
    """Raise AuditFailed naming every failed check and where the numbers are kept."""
    if failed := failures(checks):
        raise AuditFailed(
            f"attack: honesty audit failed: {'; '.join(failed)}; the model may hide its gradients, "
            "or the attack is too weak: raise attack.soft_iou_steps, steps, apgd_steps or "
            "restarts, "
            f"or name more attack.methods; the numbers are audit_numbers in {evidence}"
        )
