"""A building casts its shadow away from the sun; what casts none is flagged."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.attacks.shadows import is_true, scores, threshold, toward, verdict
from pipeline.params import load_params

ROOT = Path(__file__).parents[2]

NORTH_UP = (0.5, 0, 1000, 0, -0.5, 2000)
SUN = (135.0, 45.0)  # south-east: shadows fall north-west


def town(standing: bool, seed: int = 0, sun: tuple[float, float] = SUN):
    """(image, classes): nine squares of 10 pixels; the ground up to 6 pixels beside those that
    stand is in shadow.
    """
    random = np.random.default_rng(seed)
    image, classes = random.normal(150, 4, (120, 120, 3)), np.zeros((120, 120), np.uint8)
    rows, columns = (-side for side in toward(sun, NORTH_UP))
    for top in (15, 55, 95):
        for left in (15, 55, 95):
            for far in range(7 if standing else 0):
                y, x = top + round(far * rows), left + round(far * columns)
                image[y : y + 10, x : x + 10] = random.normal(70, 4, (10, 10, 3))
            image[top : top + 10, left : left + 10] = 200
            classes[top : top + 10, left : left + 10] = 1
    return image.clip(0, 255), classes


def test_the_sun_on_the_grid():
    assert toward((90, 30), NORTH_UP) == pytest.approx((0, 1))  # east: to the right
    assert toward((0, 30), NORTH_UP) == pytest.approx((-1, 0))  # north: up
    assert toward(SUN, NORTH_UP) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))
    assert toward((0, 30), (0.5, 0, 0, 0, 0.5, 0)) == pytest.approx((1, 0))  # south up


@pytest.mark.parametrize("azimuth", [0, 90, 135, 210, 290])
def test_a_shadow_is_looked_for_where_the_sun_asks_for_it(azimuth):
    sun = (azimuth, 45.0)
    standing = scores(*town(True, sun=sun), 0.5, sun, NORTH_UP)[1]
    flat = scores(*town(False), 0.5, sun, NORTH_UP)[1]
    wrong = scores(*town(True, sun=sun), 0.5, ((azimuth + 180) % 360, 45.0), NORTH_UP)[1]
    assert (
        len(standing) == 9
        and standing.max() < 0.7
        and abs(flat - 1).max() < 0.1
        and wrong.min() > 1.3
    )


def test_false_buildings_are_found_and_true_ones_spared():
    limit = threshold([scores(*town(True, seed), 0.5, SUN, NORTH_UP)[1] for seed in (1, 2)])
    found = [
        (scores(*town(standing, 3), 0.5, SUN, NORTH_UP)[1], np.full(9, standing))
        for standing in (True, False)
    ]
    judged = verdict(found, limit)
    assert judged["false_flagged"] == 1 and judged["auc"] == 1 and judged["true_flagged"] <= 0.4
    assert (judged["true"], judged["false"], judged["unjudged"]) == (9, 9, 0)


def test_what_cannot_be_judged_is_not():
    image, classes = town(True)
    classes[classes == 0] = 255
    assert (
        np.isnan(scores(image, classes, 0.5, SUN, NORTH_UP)[1]).all()
        and threshold([np.full(3, np.nan)]) is None
    )
    small = np.zeros_like(classes)
    small[20:23, 20:23] = 1  # 2.25 m²
    components, of_small = scores(image, small, 0.5, SUN, NORTH_UP)
    assert np.isnan(of_small).all() and not is_true(components, np.zeros_like(small)).any()
    nothing = verdict([(of_small, np.array([False]))], None)
    assert (
        nothing["true_flagged"] is nothing["false_flagged"] is nothing["auc"] is None
        and nothing["unjudged"] == 1
    )


def test_the_demo_knows_its_sun():
    drawn = yaml.safe_load((ROOT / "data/sources/demo.yaml").read_text())["cities"]
    stated = load_params(ROOT / "presets/demo.yaml").attack.physics.sun
    assert stated == {
        city: (about["light"]["azimuth"], about["light"]["elevation"])
        for city, about in drawn.items()
    }
