import numpy as np
import pytest

from pipeline.labels import IGNORE
from pipeline.params import Evaluate
from pipeline.scoring import fairness, metrics
from pipeline.scoring.bootstrap import Estimate, gap_of, worst_of
from pipeline.scoring.fairness import SceneCounts
from pipeline.tiles.instances import instances

SETTINGS = Evaluate(size_bins=[50], bootstrap=200)


def scene(
    number: int, found_small: float = 1.0, city: str = "here", groups: bool = False
) -> SceneCounts:
    """Twelve houses of 36 m² in a row of the upper half, one of 144 m² below: all large ones and a
    share of the small are mapped.
    """
    label = np.zeros((96, 192), np.uint8)
    for i in range(12):
        label[8:14, 8 + 14 * i : 14 + 14 * i] = 1
    prediction = label.copy()
    prediction[:, 8 + round(14 * 12 * found_small) :] = 0
    label[60:72, 60:72] = prediction[60:72, 60:72] = 1
    label[90:, :] = IGNORE
    codes = np.where(np.arange(96)[:, None] < 48, 1, 2) * (label == 1) if groups else None
    squares = metrics.cell_counts(prediction, label, 48)
    found, truth = (instances(mask) for mask in (prediction, label))
    objects = metrics.match_objects(found, truth, prediction, codes)
    return SceneCounts(
        city, f"scene {number}", 1.0, squares, objects, ["poor", "rich"] if groups else []
    )


def city(shares, **options) -> list[SceneCounts]:
    return [scene(i, share, **options) for i, share in enumerate(shares)]


def test_small_buildings_are_missed_more():
    found = fairness.compare(fairness.by_size(city([0.5, 0.25, 0.5, 0.25]), [50]), SETTINGS)
    small, large = found["group"]["0-50"], found["group"]["50+"]
    assert small["recall"] == pytest.approx(18 / 48) and large["recall"] == 1
    assert small["recall_low"] < small["recall"] < small["recall_high"]
    recall = found["recall"]
    assert (recall["worst_group"], recall["best_group"]) == ("0-50", "50+")
    assert recall["gap"] == pytest.approx(1 - 18 / 48)


def test_ground_is_parted_by_how_much_of_it_is_built():
    scenes = city([0.5, 0.5, 0.5])
    groups = fairness.by_density(scenes)
    pixels = sum(counts for group in groups.values() for counts in group.values())
    # each pixel in one group
    np.testing.assert_array_equal(pixels, sum(s.ground.sum(1) for s in scenes))
    assert pixels[3] == 3 * (12 * 36 + 144)
    share = {
        n: sum(c[3] for c in g.values()) / max(1, sum(c[1] for c in g.values()))
        for n, g in groups.items()
    }
    assert set(share) == set(fairness.DENSITIES)


def test_the_groups_of_a_column_are_told_apart_by_its_buildings():
    found = fairness.fairness(city([0.5, 0.25, 0.5], groups=True), SETTINGS, "income")["by"][
        "income"
    ]
    assert (
        found["group"]["poor"]["recall"] == pytest.approx(15 / 36)
        and found["group"]["rich"]["recall"] == 1
    )
    assert found["recall"]["worst_group"] == "poor"


def test_within_each_city_and_between_them():
    scenes = [*city([0.5, 0.25, 0.5], city="a"), *city([1.0, 1.0, 0.75], city="b")]
    found = fairness.fairness(scenes, SETTINGS)
    assert found["by"]["city"]["iou"]["worst_group"] == "a"
    assert found["size_within_city"]["a"]["gap"] > found["size_within_city"]["b"]["gap"] > 0
    assert set(found["by"]) == {"city", "density", "size"}


def test_without_buildings_there_is_nothing_to_compare():
    label = np.zeros((96, 96), np.uint8)
    squares, objects = (
        metrics.cell_counts(label, label, 48),
        metrics.match_objects(label, label, label),
    )
    bare = [SceneCounts("bare", "only", 1.0, squares, objects)]
    assert fairness.fairness(bare, SETTINGS) == {"by": {}, "size_within_city": {}}
    assert fairness.fairness([], SETTINGS) == {"by": {}, "size_within_city": {}}


def test_groups_that_are_alike_have_a_gap_that_may_be_none():
    """The gap of the values is above zero by chance: the interval knows."""
    alike = [Estimate(value, 0.03, 20, value) for value in (0.70, 0.72, 0.75, 0.68)]
    low, high = gap_of(alike)
    assert low == 0 and 0.07 < high < 0.4


def test_groups_far_apart_have_a_gap_for_certain():
    low, high = gap_of([Estimate(0.3, 0.02, 20, 0.3), Estimate(0.8, 0.02, 20, 0.8)])
    assert 0.35 < low < 0.5 < high < 0.65


def test_the_simultaneous_gap_covers_the_true_one():
    rng = np.random.default_rng(0)
    truth = np.array([0.6, 0.65, 0.7, 0.7, 0.72])
    held = 0
    for _ in range(300):
        estimates = [Estimate(v, 0.04, 30, v) for v in truth + 0.04 * rng.standard_normal(5)]
        low, high = gap_of(estimates)
        held += low <= np.ptp(truth) <= high
        assert worst_of(estimates)[0] <= worst_of(estimates)[1]
    assert held >= 285


def test_a_building_belongs_to_the_group_on_its_pixels():
    label = np.zeros((8, 16), np.uint8)
    label[2:6, 2:6] = label[2:6, 9:14] = 1
    codes = np.zeros_like(label)
    codes[2:6, 9:14] = 2
    assert metrics.match_objects(
        instances(label), instances(label), label, codes
    ).group.tolist() == [0, 2]
