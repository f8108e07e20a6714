import numpy as np

from pipeline.tiles.store import CityTiles
from pipeline.transfer.label_efficiency import nested_scenes, share_of

FRACTIONS = [0.01, 0.34, 0.67, 1.0]


def test_subsets_are_nested_and_never_empty(toy_tiles):
    city = CityTiles(toy_tiles / "toyton")
    for seed in range(5):
        subsets = nested_scenes(city, "train", FRACTIONS, seed)
        sizes = [len(subsets[f]) for f in FRACTIONS]
        assert sizes == [1, 2, 3, 3]
        for smaller, larger in zip(FRACTIONS, FRACTIONS[1:], strict=False):
            assert set(subsets[smaller]) <= set(subsets[larger])
        assert subsets == nested_scenes(city, "train", FRACTIONS, seed)
    draws = {tuple(nested_scenes(city, "train", [0.01], seed)[0.01]) for seed in range(20)}
    assert len(draws) > 1


def test_a_share_keeps_the_test_scenes_and_forgets_the_rest(toy_tiles):
    city = CityTiles(toy_tiles / "toyton")
    smaller = share_of(city, 0.34, seed=0)
    kept = nested_scenes(city, "train", [0.34], 0)[0.34]
    assert [r.name for r in smaller.of_split("train")] == kept
    assert smaller.of_split("test") == city.of_split("test")
    assert len(smaller.of_split("validation")) == 1
    assert [r["name"] for r in smaller.about["regions"]] == [r.name for r in smaller.regions]
    assert len(city.of_split("train")) == 3  # the city itself is unchanged
    for region in smaller.regions:
        np.testing.assert_array_equal(smaller.image(region), city.image(region))
    table = smaller.table
    names = {smaller.regions[i].split for i in table["region"]}
    assert names == {"train", "validation", "test"}
    assert all(
        smaller.regions[i].split == s for i, s in zip(table["region"], table["split"], strict=True)
    )
    images, _ = smaller.sample("train", 100)
    assert len(images) == 2 * (128 // 64) ** 2


def test_the_whole_share_is_the_city(toy_tiles):
    city = CityTiles(toy_tiles / "toyton")
    assert share_of(city, 1.0, 0).about == city.about
