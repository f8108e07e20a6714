import inspect

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.networks.models import Segmenter
from pipeline.transfer import adaptation
from pipeline.transfer.adaptation import adapt, confident_labels
from pipeline.transfer.predictions import building_probability, tile_iou

METHODS = ["none", "histogram", "fda", "adabn", "entropy", "self_training"]


@pytest.fixture(scope="module")
def ladder(toy_segmenter, make_tiles, make_dim):
    """IoU of every method on a city under another light and on one whose contrast is inverted."""
    source, source_labels = make_tiles(1)
    unseen, labels = make_tiles(2)
    cities = {
        "same": (source, unseen, labels),
        "dim": (make_dim(source), make_dim(unseen), labels),
        "inverted": (255 - source, 255 - unseen, labels),
    }
    return {
        method: {
            city: tile_iou(adapt(method, toy_segmenter, source, target), test, truth)
            for city, (target, test, truth) in cities.items()
        }
        for method in METHODS
    }


def test_the_fixture_is_what_it_says(ladder):
    assert ladder["none"]["same"] > 0.9
    assert ladder["none"]["dim"] < 0.5
    assert ladder["none"]["inverted"] < 0.1


@pytest.mark.parametrize("method", ["histogram", "adabn", "entropy", "self_training"])
def test_a_radiometric_shift_is_repaired(ladder, method):
    assert ladder[method]["dim"] >= ladder["none"]["dim"] + 0.1
    assert ladder[method]["dim"] > 0.8


@pytest.mark.parametrize("method", METHODS)
def test_an_inverted_city_is_not_repaired(ladder, method):
    assert ladder[method]["inverted"] <= ladder["none"]["inverted"] + 0.02


@pytest.mark.parametrize("method", METHODS)
def test_a_city_without_shift_loses_little(ladder, method):
    assert ladder[method]["same"] > ladder["none"]["same"] - 0.05


def test_no_function_takes_a_label():
    for name, function in inspect.getmembers(adaptation, inspect.isfunction):
        if function.__module__ == adaptation.__name__:
            assert not any(
                "label" in p or "truth" in p for p in inspect.signature(function).parameters
            ), name


@pytest.mark.parametrize("method", METHODS)
def test_adaptation_leaves_the_original_and_repeats_itself(
    toy_segmenter, make_tiles, make_dim, method
):
    before = {k: v.clone() for k, v in toy_segmenter.state_dict().items()}
    source, target = make_tiles(1, count=6)[0], make_dim(make_tiles(2, count=6)[0])
    first, second = (
        adapt(method, toy_segmenter, source, target, steps=3, seed=4) for _ in range(2)
    )
    assert all(torch.equal(before[k], v) for k, v in toy_segmenter.state_dict().items())
    assert not toy_segmenter._forward_pre_hooks
    np.testing.assert_array_equal(*(building_probability(m, target) for m in (first, second)))


def test_histogram_matching_undoes_a_monotone_map(make_tiles, make_dim):
    source, _ = make_tiles(3, count=32)
    match = adaptation.histogram_matching(source, make_dim(source))
    dimmed = torch.from_numpy(make_dim(source)).movedim(-1, 1) / 255
    restored = match(dimmed).movedim(1, -1).numpy() * 255
    error = np.abs(restored - source)
    assert np.quantile(error, 0.99) <= 3  # 0.4 × 255 levels cannot tell neighbours apart
    assert np.abs(make_dim(source).astype(float) - source).mean() > 20 * error.mean()


@pytest.mark.parametrize("levels", [[50, 200], list(range(20, 120, 2)), [30, 60, 255]])
def test_a_city_matched_to_itself_stays_as_it_is(levels):
    """Of few levels, of a stretched scene's every other one, of saturated roofs."""
    rng = np.random.default_rng(0)
    source = rng.choice(np.array(levels, np.uint8), (4, 32, 32, 3))
    images = torch.from_numpy(source).movedim(-1, 1) / 255
    match = adaptation.histogram_matching(source, source)
    torch.testing.assert_close(match(images), images, rtol=0, atol=0.5 / 255)
    darker = adaptation.histogram_matching(source // 2, source)  # no roof becomes white
    torch.testing.assert_close(
        darker(images), torch.from_numpy(source // 2).movedim(-1, 1) / 255, rtol=0, atol=0.5 / 255
    )


def test_fourier_matching_moves_the_mean_and_keeps_the_texture(make_tiles, make_dim):
    source, _ = make_tiles(4)
    dimmed = torch.from_numpy(make_dim(source)).movedim(-1, 1) / 255
    matched = adaptation.fourier_matching(source)(dimmed)
    means = torch.from_numpy(source / 255.0).mean().item()
    assert matched.mean().item() == pytest.approx(means, abs=0.01)
    fine = [torch.fft.fft2(x)[..., 10:20, 10:20].abs().mean().item() for x in (dimmed, matched)]
    assert fine[0] == pytest.approx(fine[1], rel=0.02)


def test_adabn_measures_the_targets_moments(toy_segmenter, make_tiles, make_dim):
    target = make_dim(make_tiles(5)[0])
    adapted = adapt("adabn", toy_segmenter, target, target, batch_size=16)
    first = toy_segmenter.network[0](torch.from_numpy(target).movedim(-1, 1) / 255)
    torch.testing.assert_close(
        adapted.network[1].running_mean, first.mean((0, 2, 3)), rtol=1e-2, atol=1e-3
    )
    torch.testing.assert_close(
        adapted.network[1].running_var, first.var((0, 2, 3)), rtol=2e-2, atol=1e-4
    )


class Pooling(nn.Module):
    """A head that normalises one pooled pixel an image, as those of DeepLabV3+,
    PAN and UPerNet do.
    """

    def __init__(self):
        super().__init__()
        self.near, self.far, self.out = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.out(self.near(x) + self.far(x.mean((2, 3), keepdim=True)))


@pytest.mark.parametrize("method", ["adabn", "entropy", "self_training"])
@pytest.mark.parametrize("count", [1, 9, 16])
def test_a_last_batch_of_one_tile_is_no_matter(make_tiles, method, count):
    torch.manual_seed(0)
    segmenter, target = Segmenter(Pooling(), 3, 1).eval(), make_tiles(6, count=count)[0]
    adapted = adapt(method, segmenter, target, target, batch_size=1 if count == 16 else 8, steps=2)
    assert not torch.equal(adapted.network.near.running_mean, segmenter.network.near.running_mean)
    measured = count == 9  # one tile, or one at a time, has no variance: what training knew stays
    assert (
        torch.equal(adapted.network.far.running_var, segmenter.network.far.running_var) != measured
    )
    assert not adapted.training and np.isfinite(building_probability(adapted, target)).all()


def test_every_tile_weighs_nearly_the_same(toy_segmenter, make_tiles, make_dim):
    """Nine tiles in batches of eight: not eight of them half, and the ninth the other half."""
    target = np.concatenate([make_tiles(7, count=8)[0], make_dim(make_tiles(8, count=1)[0])])
    first = toy_segmenter.network[0](torch.from_numpy(target).movedim(-1, 1) / 255)
    adapted = adapt("adabn", toy_segmenter, target, target, batch_size=8)
    moved = (adapted.network[1].running_mean - first.mean((0, 2, 3))).abs()
    assert (moved < 0.2 * (first[:8].mean((0, 2, 3)) - first[8].mean((1, 2))).abs()).all()


@pytest.mark.parametrize("method", METHODS)
def test_without_a_picture_nothing_changes(toy_segmenter, make_tiles, method):
    tiles = make_tiles(9, count=2)[0]
    before = building_probability(toy_segmenter, tiles)
    for source, target in ((tiles, tiles[:0]), (tiles[:0], tiles)):
        np.testing.assert_array_equal(
            building_probability(adapt(method, toy_segmenter, source, target), tiles), before
        )


def test_confident_labels_keep_a_share_of_each_class():
    probability = np.linspace(0, 1, 1000, dtype=np.float32).reshape(1, 20, 50)
    labels = confident_labels(probability, 0.3)
    assert (labels == 1).sum() == pytest.approx(150, abs=2)
    assert (labels == 0).sum() == pytest.approx(150, abs=2)
    assert probability[labels == 1].min() > 0.84 and probability[labels == 0].max() < 0.16
