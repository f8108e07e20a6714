"""The colours of every figure, after Okabe and Ito: apart for every kind of
colour vision, one meaning each.
"""

from itertools import cycle
from typing import get_args

from pipeline.params import AttackMethod

BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
VERMILION, OLIVE, BLACK, INK, GREY = "#D55E00", "#8C7A00", "#000000", "#222222", "#8A8A8A"

CITIES = [BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, OLIVE, BLACK]
SEEN, UNSEEN = BLUE, ORANGE
BOUNDS = {"clean": BLUE, "attacked": VERMILION, "certified": GREEN}
METHODS = dict(
    zip(get_args(AttackMethod), cycle([ORANGE, SKY, GREEN, PINK, BLUE, OLIVE, BLACK]), strict=False)
)
ATTACKS = {"noise": GREY, **METHODS, "worst": VERMILION}
TRUTH, PREDICTION = SKY, "#F0E442"
# the last a pink that stands out on a photograph
FOUND, INVENTED, MISSED = GREEN, ORANGE, "#CC3CA0"


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour written #rrggbb."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
