from types import SimpleNamespace

import numpy as np
import pytest
from affine import Affine

from pipeline.errors import InputError
from pipeline.generalization.gap import Fold, Pair, check_disjoint, folds, gap_table
from pipeline.geo.grid import Grid, Window


def pair(seed: int, seen: float, unseen: float, units: int = 12, seeds: int = 1) -> Pair:
    rng = np.random.default_rng(seed)
    union = rng.integers(800, 4000, (seeds, units))
    wobble = rng.normal(0, 0.05, (seeds, units))
    return Pair(union * np.clip(seen + wobble, 0, 1), union, union * np.clip(unseen + wobble, 0, 1), union)


PAIRS = {"a": pair(0, 0.8, 0.75), "b": pair(1, 0.7, 0.4), "c": pair(2, 0.85, 0.86, units=5)}


def test_folds_depend_on_the_set_of_cities_alone():
    expected = [Fold("a", ("b", "c")), Fold("b", ("a", "c")), Fold("c", ("a", "b"))]
    assert folds(["b", "c", "a"]) == folds(["a", "b", "c"]) == expected
    with pytest.raises(InputError, match="name at least two"):
        folds(["alone"])


def region(parent, split, rows=(0, 10)):
    """A region of the rows from … to of a turned scene ten pixels wide."""
    scene = Grid(10, 10, Affine(0.5, 0.2, 100, 0.2, -0.5, 900), "EPSG:32633")
    grid = scene.window(Window(rows[0], 0, rows[1] - rows[0], 10))
    return SimpleNamespace(parent=parent, split=split, grid=grid)


def tiles_of(*regions):
    return SimpleNamespace(regions=list(regions), of_split=lambda split: [r for r in regions if r.split == split])


def test_no_parent_scene_on_both_sides():
    fold, card = Fold("a", ("b",)), {"cities": ["b"]}
    good = tiles_of(region("s1", "train"), region("s2", "validation"), region("s3", "test"))
    strips = [region(s, split, rows) for s in ("s", "t") for split, rows in (("train", (0, 6)), ("test", (6, 10)))]
    check_disjoint(fold, card, {"a": good, "b": tiles_of(*strips)})
    for leaky in ([region("s1", "train"), region("s1", "test")], [*strips, region("t", "validation", (9, 10))]):
        with pytest.raises(InputError, match=r"(s1|t) is in training and test"):
            check_disjoint(fold, card, {"a": tiles_of(*leaky)})
    with pytest.raises(InputError, match="trained on a"):
        check_disjoint(fold, {"cities": ["a", "b"]}, {"a": good})


def test_rows_are_the_plain_ratios_inside_their_intervals():
    table = gap_table(PAIRS, draws=1000, seed=0)
    for city, p in PAIRS.items():
        row = table["city"][city]
        seen, unseen = (i.sum() / p.seen_union.sum() for i in (p.seen_intersection, p.unseen_intersection))
        assert (row["seen"], row["unseen"], row["gap"]) == pytest.approx((seen, unseen, seen - unseen))
        for name in ("seen", "unseen", "gap"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert table["city"]["b"]["gap_low"] > 0.25
    assert table["city"]["a"]["gap_low"] > 0  # pairing: far less than the spread of the scenes


def test_worst_mean_best_and_pooled():
    table = gap_table(PAIRS, draws=1000, seed=0)
    unseen = [row["unseen"] for row in table["city"].values()]
    assert table["worst_city"]["city"] == "b" and table["worst_city"]["unseen"] == min(unseen)
    assert min(unseen) <= table["mean_city"]["unseen"] <= max(unseen)
    assert table["mean_city"]["unseen"] == pytest.approx(np.mean(unseen))
    i = sum(p.unseen_intersection.sum() for p in PAIRS.values())
    assert table["pooled"]["unseen"] == pytest.approx(i / sum(p.unseen_union.sum() for p in PAIRS.values()))
    for row in (table["mean_city"], table["pooled"]):
        assert row["gap_low"] < row["gap"] < row["gap_high"]
        assert row["gap_high"] - row["gap_low"] < 0.1


def test_seeds_give_mean_and_spread():
    one = gap_table({"a": pair(3, 0.8, 0.6), "b": pair(4, 0.8, 0.6)}, 500, 0)["city"]["a"]
    assert one["gap_spread"] is None
    p = pair(3, 0.8, 0.6, seeds=3)
    ious = p.unseen_intersection.sum(1) / p.unseen_union.sum(1)
    row = gap_table({"a": p, "b": pair(4, 0.8, 0.6, seeds=3)}, 500, 0)["city"]["a"]
    assert row["unseen"] == pytest.approx(ious.mean())
    assert row["unseen_spread"] == pytest.approx(ious.std(ddof=1))


def test_the_same_seed_gives_the_same_intervals_whatever_the_order_of_cities():
    backwards = dict(reversed(PAIRS.items()))
    assert gap_table(PAIRS, 500, 7) == gap_table(backwards, 500, 7)
    assert gap_table(PAIRS, 500, 7) != gap_table(PAIRS, 500, 8)


def test_a_city_without_a_building_is_left_out():
    empty = Pair(*(np.zeros((1, 4)) for _ in range(4)))
    assert set(gap_table(PAIRS | {"desert": empty}, 200, 0)["city"]) == set(PAIRS)
    with pytest.raises(InputError, match="no city has a building"):
        gap_table({"desert": empty}, 200, 0)


def test_the_stratified_mean_gap_covers_the_truth():
    rng, hits = np.random.default_rng(5), []
    for trial in range(400):
        pairs = {}
        for city, truth in (("a", 0.1), ("b", 0.3)):
            union = rng.gamma(8.0, 1000, (1, 20))
            unseen = union * (0.8 - truth + 0.05 * rng.normal(size=(1, 20)))
            pairs[city] = Pair(union * 0.8, union, unseen, union)
        row = gap_table(pairs, 300, trial)["mean_city"]
        hits.append(row["gap_low"] <= 0.2 <= row["gap_high"])
    assert 0.93 <= np.mean(hits) <= 0.975
