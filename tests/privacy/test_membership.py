"""Known answers of both attacks, of their AUC and its interval."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.nn import functional as F

from pipeline.privacy.membership import (
    Side,
    auc,
    city_iou,
    likelihood_ratio,
    rises,
    tile_scores,
    true_positives,
)
from pipeline.scoring.bootstrap import mean_of


def side(scores, scenes) -> Side:
    return Side(np.array(scores, float), np.array(list(scenes), object))


def constant(logits):
    """A network that says the same of every pixel: logits (K,)."""
    said = torch.tensor(logits, dtype=torch.float32).view(1, -1, 1, 1)
    return lambda images: said.expand(len(images), -1, *images.shape[-2:])


def test_scores_are_minus_the_cross_entropy_and_the_logit_of_the_true_class():
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 3, 3, padding=1).double()
    images = torch.rand(5, 3, 8, 8).double()
    labels = torch.randint(0, 3, (5, 8, 8))
    labels[:, :3] = 255
    found = tile_scores(network, images, labels)
    logits = network(images)
    for i in range(5):
        loss = F.cross_entropy(logits[i : i + 1], labels[i : i + 1], ignore_index=255)
        assert found["loss"][i] == pytest.approx(-loss.item())
        p = logits[i].softmax(0).gather(0, labels[i].clamp_max(2)[None])[0][labels[i] != 255]
        assert found["confidence"][i] == pytest.approx((p / (1 - p)).log().mean().item())


def test_a_confident_network_has_a_finite_score_and_a_tile_without_a_label_has_none():
    labels = torch.tensor([[[0]], [[1]], [[255]]])
    found = tile_scores(constant([200.0, -200.0]), torch.zeros(3, 3, 1, 1), labels)
    assert found["confidence"].tolist() == [400, -400, 0]


def test_the_auc_counts_pairs_and_halves_ties():
    members, others = side([3, 1, 2], "aab"), side([2, 0], "cd")
    # of 3, 1, 2 against 2, 0: 1 loses once, 2 ties once
    assert auc(members, others, 100, 0).value == 4.5 / 6
    assert auc(side([5, 6], "ab"), side([1, 2], "cd"), 100, 0).value == 1
    assert auc(members, members, 100, 0).value == 0.5


def test_one_scene_a_side_tells_of_no_other():
    assert auc(side([1, 2], "aa"), side([0, 3], "bc"), 100, 0).shown() == (None, None)


def test_the_interval_covers_the_truth_where_tiles_of_a_scene_are_alike():
    """300 draws of the demo's shape: 5 cities of 6 and 4 scenes, whose own level varies as much
    as their tiles do.
    """
    random, shift, covered = np.random.default_rng(0), 0.5, 0
    truth = norm.cdf(shift / 2)  # of N(shift, 2) above N(0, 2)
    for _ in range(100):
        cities = []
        for _ in range(5):
            sides = []
            for scenes, tiles, level in ((6, 12, shift), (4, 16, 0)):
                scores = np.repeat(random.normal(level, 1, scenes), tiles) + random.normal(
                    0, 1, scenes * tiles
                )
                sides.append(side(scores, np.repeat(np.arange(scenes), tiles)))
            cities.append(auc(*sides, 200, 0))
        low, high = mean_of(cities).interval()
        covered += low <= truth <= high
    assert covered >= 88  # of 100 at 95 %


def test_true_positives_accuse_at_most_one_non_member_in_a_hundred():
    others = side(np.arange(200), np.arange(200) // 20)
    members = side([198.5, 199.5, 197, 197.5], "aabb")
    found = true_positives(members, others, 200, 0)
    assert (others.scores > 197).sum() == 2 and found.value == 0.75
    assert true_positives(members, side(np.arange(99), np.zeros(99)), 200, 0) is None


def test_the_likelihood_ratio_takes_off_how_hard_a_tile_is():
    """Members are one more confident than a model that never saw them; tiles differ by a
    hundred times as much.
    """
    random = np.random.default_rng(0)
    hard, member = random.normal(0, 100, 400), np.arange(400) < 200
    target = hard + member + random.normal(0, 0.2, 400)
    references = hard + random.normal(0, 0.2, (4, 400))

    def found(scores):
        return auc(
            side(scores[member], np.arange(200)), side(scores[~member], np.arange(200)), 100, 0
        ).value

    assert abs(found(target) - 0.5) < 0.1
    assert (
        found(likelihood_ratio(target, references[:1])) > 0.97
        and found(likelihood_ratio(target, references)) > 0.99
    )
    z = likelihood_ratio(references.mean(0) + np.sqrt(references.var(0, ddof=1).mean()), references)
    assert z == pytest.approx(np.ones(400))


def test_cities_put_together_keep_their_scenes_apart():
    both = Side.of_all([side([1, 2], "aa"), side([3], "a")])
    assert both.scores.tolist() == [1, 2, 3] and both.of_scene.shape == (2, 3)


def test_the_loss_of_a_scene_known_by_heart_has_fallen():
    """A network that has learned scene b by heart, by hand: it answers b's
    label where it sees b's mark.
    """
    labels = torch.randint(0, 2, (6, 4, 4), generator=torch.Generator().manual_seed(0))
    images = torch.zeros(6, 3, 4, 4)
    scenes = np.array(list("aabbcc"), object)
    images[2:4, 0], images[2:4, 1] = 1, labels[2:4].float()

    def by_heart(x):
        sure = 4 * x[:, :1] * (2 * x[:, 1:2] - 1)
        return torch.cat([-sure, sure], 1)

    found = rises(by_heart, constant([0.0, 0.0]), images, labels, scenes)
    loss = np.log1p(np.exp(-8))  # of what is known by heart; of a guess ln 2
    assert found == {"a": 0, "b": pytest.approx(np.log(np.log(2) / loss)), "c": 0}


def test_iou_of_tiles_and_none_where_nothing_is_built():
    labels = torch.tensor([[[1, 1, 0, 255]], [[0, 0, 1, 0]]])
    found = city_iou(
        constant([0.0, 1.0]), torch.zeros(2, 3, 1, 4), labels, np.array(["a", "b"], object), 100
    )
    assert found.value == 3 / 7
    assert (
        city_iou(
            constant([0.0, 1.0]), torch.zeros(2, 3, 1, 4), 0 * labels, np.array(["a", "b"]), 100
        )
        is None
    )
