from types import SimpleNamespace

import numpy as np
import pytest
from affine import Affine

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid, Window
from pipeline.networks.card import Card
from pipeline.params import Model
from pipeline.transfer.gap import COUNTS, Fold, Pair, check_fold, check_ground, folds, gap_table

LINEAR = Model(architecture="linear")


def pair(seed: int, seen: float, unseen: float, units: int = 12, seeds: int = 1) -> Pair:
    rng = np.random.default_rng(seed)
    union = rng.integers(800, 4000, (seeds, units))
    wobble = rng.normal(0, 0.05, (seeds, units))
    return Pair(
        union * np.clip(seen + wobble, 0, 1), union, union * np.clip(unseen + wobble, 0, 1), union
    )


PAIRS = {"a": pair(0, 0.8, 0.75), "b": pair(1, 0.7, 0.4), "c": pair(2, 0.85, 0.86, units=5)}


def test_folds_depend_on_the_set_of_cities_alone():
    expected = [Fold("a", ("b", "c")), Fold("b", ("a", "c")), Fold("c", ("a", "b"))]
    assert folds(["b", "c", "a"]) == folds(["a", "b", "c"]) == expected
    assert folds(["alone"]) == []


def region(parent, split, rows=(0, 10), east=100.0):
    """A region of the rows from … to of a turned scene ten pixels wide."""
    scene = Grid(10, 10, Affine(0.5, 0.2, 500_000 + east, 0.2, -0.5, 900), "EPSG:32633")
    grid = scene.window(Window(rows[0], 0, rows[1] - rows[0], 10))
    return SimpleNamespace(parent=parent, split=split, grid=grid, crs=grid.crs)


def tiles_of(*regions):
    return SimpleNamespace(
        regions=list(regions), of_split=lambda split: [r for r in regions if r.split == split]
    )


def test_no_parent_scene_on_both_sides():
    good = tiles_of(
        region("s1", "train"), region("s2", "validation", east=200), region("s3", "test", east=300)
    )
    strips = [
        region(s, split, rows)
        for s in ("s", "t")
        for split, rows in (("train", (0, 6)), ("test", (6, 10)))
    ]
    far = [
        region(s, split, rows, 900)
        for s in ("s", "t")
        for split, rows in (("train", (0, 6)), ("test", (6, 10)))
    ]
    check_ground({"a": good, "b": tiles_of(*far)})
    for leaky in (
        [region("s1", "train"), region("s1", "test")],
        [*strips, region("t", "validation", (9, 10))],
    ):
        with pytest.raises(InputError, match=r"(s1|t) is in training and test"):
            check_ground({"a": tiles_of(*leaky)})


def test_one_ground_flown_twice_is_one_city():
    city, elsewhere = (
        tiles_of(region("s1", "train", east=300), region("s2", "test")),
        region("z1", "train", east=500),
    )
    check_ground(
        {"a": city, "b": tiles_of(elsewhere, region("z2", "test"))}
    )  # both test it: neither trains on it
    for split in ("train", "validation"):
        with pytest.raises(
            InputError, match=r"a: its test scene s2 shares .* % of its ground with z2 of b"
        ):
            check_ground({"a": city, "b": tiles_of(elsewhere, region("z2", split, east=102))})


def card(*cities, epochs=3, **more):
    params = {"train": {"epochs": epochs, "seed": 0}}
    return Card(model=LINEAR, channels=3, classes=1, gsd=0.5, cities=cities, params=params, **more)


def test_a_fold_has_seen_its_cities_only_and_was_trained_like_the_reference():
    fold, reference = Fold("a", ("b", "c")), card("a", "b", "c")
    check_fold(fold, card("b", "c"), reference)
    check_fold(fold, card("c", "b", inherited=["d"]), reference)
    longer = card("b", "c", epochs=4)
    for wrong, says in (
        (card("a", "b", "c"), "trained on a"),
        (
            card("b", "c", inherited=["a", "b"]),
            "train.init started it from a model that had been trained on a",
        ),
        (card("b"), "trained on b, not b, c"),
        (longer, "train.epochs is 4, of the model on all cities 3"),
    ):
        with pytest.raises(InputError, match=f"models/folds/without-a: .*{says}.* --without a"):
            check_fold(fold, wrong, reference)


def test_rows_are_the_plain_ratios_inside_their_intervals():
    table = gap_table(PAIRS, draws=1000, seed=0)
    for city, p in PAIRS.items():
        row = table["city"][city]
        seen, unseen = (
            i.sum() / p.seen_union.sum() for i in (p.seen_intersection, p.unseen_intersection)
        )
        assert (row["seen"], row["unseen"], row["gap"]) == pytest.approx(
            (seen, unseen, seen - unseen)
        )
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
    assert table["pooled"]["unseen"] == pytest.approx(
        i / sum(p.unseen_union.sum() for p in PAIRS.values())
    )
    for row in (table["mean_city"], table["pooled"]):
        # cities that happen to be alike leave no width but rounding
        assert row["gap_low"] - 1e-12 < row["gap"] < row["gap_high"] + 1e-12
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
    assert gap_table({}, 200, 0) == {"city": {}}


def test_a_scene_without_a_building_is_no_unit():
    p = PAIRS["c"]
    padded = Pair(*(np.pad(getattr(p, name), ((0, 0), (0, 3))) for name in COUNTS))
    assert gap_table({"c": padded}, 200, 0) == gap_table({"c": p}, 200, 0)


def drawn_pair(rng, units: int, gap: float) -> Pair:
    """Scenes of any size, mapped with 0.75 and 0.75 − gap, both better where the scene is easy."""
    seen_union, ease = rng.gamma(8.0, 1000, (1, units)), 0.06 * rng.normal(size=(1, units))
    unseen_union = seen_union * rng.uniform(0.8, 1.2, (1, units))
    seen = 0.75 + ease + 0.02 * rng.normal(size=(1, units))
    unseen = 0.75 - gap + ease + 0.04 * rng.normal(size=(1, units))
    return Pair(
        seen_union * seen.clip(0, 1), seen_union, unseen_union * unseen.clip(0, 1), unseen_union
    )


@pytest.mark.parametrize("units", [2, 3, 5, 6, 12, 40])
def test_the_gap_covers_the_truth(units):
    rng, hits = np.random.default_rng(6), []
    for trial in range(400):
        row = gap_table({"a": drawn_pair(rng, units, 0.2)}, 200, trial)["city"]["a"]
        hits.append(row["gap_low"] <= 0.2 <= row["gap_high"])
    assert 0.92 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize("units", [(4, 4, 4), (3, 6, 12), (20, 20)])
def test_the_stratified_gaps_cover_the_truth(units):
    rng, hits = np.random.default_rng(5), []
    for trial in range(400):
        pairs = {str(i): drawn_pair(rng, n, 0.2) for i, n in enumerate(units)}
        table = gap_table(pairs, 200, trial)
        hits.append(
            [
                table[row]["gap_low"] <= 0.2 <= table[row]["gap_high"]
                for row in ("mean_city", "pooled")
            ]
        )
    assert (np.mean(hits, axis=0) >= 0.92).all() and (np.mean(hits, axis=0) <= 0.98).all()


def test_two_cities_of_two_scenes_are_at_least_covered():
    """How many degrees of freedom there are is a guess from two spreads: rather too few, so
    that intervals are wide.
    """
    rng, hits = np.random.default_rng(7), []
    for trial in range(400):
        row = gap_table({c: drawn_pair(rng, 2, 0.2) for c in "ab"}, 200, trial)["mean_city"]
        hits.append(row["gap_low"] <= 0.2 <= row["gap_high"])
    assert 0.92 <= np.mean(hits) <= 0.99


def scattered_pair(rng, units: int, spread: float, together: float) -> Pair:
    """Scenes around 0.6 whose seen and unseen IoU move by `spread` (logit), and `together` of
    it alike.
    """
    union = rng.lognormal(10, 0.7, (1, units))
    a, b = rng.normal(size=(2, 1, units))
    ious = (
        1 / (1 + np.exp(-0.4 - spread * z))
        for z in (a, together * a + np.sqrt(1 - together**2) * b)
    )
    seen, unseen = ious
    return Pair(seen * union, union, unseen * union, union)


def test_the_mean_unseen_iou_has_degrees_of_freedom_of_its_own():
    """One city of two very different scenes, whose gap is steady, among cities whose gap is noisy:
    of most draws the unseen mean is known far less well than the gap.
    """
    rng, wider = np.random.default_rng(8), []
    for trial in range(15):
        steady = scattered_pair(rng, 2, 0.9, 0.99)
        noisy = {c: scattered_pair(rng, 30, 0.35, -0.9) for c in "bcd"}
        row = gap_table({"a": steady, **noisy}, 500, trial)["mean_city"]
        wider.append((row["unseen_high"] - row["unseen_low"]) / (row["gap_high"] - row["gap_low"]))
    assert np.median(wider) > 1.5


def test_the_worst_of_equal_cities_is_not_read_too_low():
    rng = np.random.default_rng(9)
    union, z = np.exp(10 + 0.7 * rng.normal(size=400_000)), rng.normal(size=400_000)
    truth = (union / (1 + np.exp(-0.4 - 0.5 * z))).sum() / union.sum()
    hits, chosen = [], []
    for trial in range(150):
        pairs = {f"city {i}": scattered_pair(rng, 8, 0.5, 1) for i in range(8)}
        table = gap_table(pairs, 100, trial)
        worst, own = table["worst_city"], table["city"][table["worst_city"]["city"]]
        hits.append(worst["unseen_low"] <= truth <= worst["unseen_high"])
        chosen.append(own["unseen_low"] <= truth <= own["unseen_high"])
    # of another seed .86 to .93 chosen, and .99 to 1 of all at once
    assert np.mean(hits) > max(0.93, np.mean(chosen) + 0.02)


def test_a_city_of_one_unit_has_no_interval_nor_has_a_mean_with_it():
    table = gap_table({"one": pair(3, 0.8, 0.6, units=1), "more": pair(4, 0.8, 0.6)}, 200, 0)
    assert (
        table["city"]["one"]["unseen_low"]
        is table["mean_city"]["gap_high"]
        is table["pooled"]["seen_low"]
        is None
    )
    assert table["city"]["more"]["unseen_low"] < table["city"]["more"]["unseen"]
