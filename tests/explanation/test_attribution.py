import numpy as np
import pytest
import torch
from torch import nn

from pipeline.course import tint
from pipeline.explanation import attribution
from pipeline.explanation.attribution import Building
from pipeline.networks.decision import Decision


@pytest.fixture
def building():
    """A tile with the planted tint and the largest roof in it."""
    images, labels = tint.tiles(1, 3)
    return Building(images[0], labels[0] == 1)


def test_integrated_gradients_sum_to_the_difference_of_the_scores(building):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(), nn.Conv2d(8, 2, 1))
    of = attribution.evidence(network, building.mask)
    found = attribution.integrated_gradients(of, building.image, building.flat, 64)
    with torch.no_grad():
        difference = of(building.image[None]) - of(building.flat[None])
    assert float(found.sum()) == pytest.approx(float(difference), abs=1e-4)


def test_of_a_linear_network_occlusion_and_gradients_agree(by_colour, building):
    """Both are w · (x − x′), square by square."""
    square = attribution.cells(building.mask.shape, 8)
    of = attribution.evidence(by_colour, building.mask)
    gradients = attribution.integrated_gradients(of, building.image, building.flat, 2)
    hidden = attribution.occlusion(of, building.image, building.flat, square)
    np.testing.assert_allclose(hidden, attribution.by_cell(gradients, square), atol=1e-4)


def test_squares_are_numbered_row_by_row_and_all_are_there():
    square = attribution.cells((5, 7), 2)
    assert square.max() == 11 and square[4, 6] == 11 and square[0, 6] == 3
    assert (torch.bincount(square.flatten()) > 0).all()


def test_deletion_ends_at_the_flat_image_and_insertion_at_the_image(by_colour, building):
    square = attribution.cells(building.mask.shape, 8)
    found = attribution.probability(by_colour, building.mask)
    order = torch.arange(16)
    whole, flat = (float(found(x[None])) for x in (building.image, building.flat))
    gone = attribution.deletion(found, building.image, building.flat, square, order)
    come = attribution.deletion(found, building.flat, building.image, square, order)
    assert gone[0] == come[-1] == pytest.approx(whole) and gone[-1] == come[0] == pytest.approx(
        flat
    )


def test_the_network_that_answers_from_the_tint_is_explained_by_it(by_colour, building):
    found = attribution.explain(by_colour, building, 4, 4, 0)["numbers"]
    red, green, blue = found["bands"]
    assert red == 0 and green + blue == pytest.approx(1)
    assert found["inside"] == pytest.approx(1)  # it looks at single pixels
    for method in ("integrated gradients", "occlusion"):
        deletion, insertion = found["areas"][method]
        assert deletion < found["areas"]["random"][0] - 0.1
        assert insertion > found["areas"]["random"][1] + 0.1


def test_the_network_that_answers_from_brightness_sees_all_bands_alike(by_brightness, building):
    of = attribution.evidence(by_brightness, building.mask)
    grey = building.image.mean(0, keepdim=True).expand(3, -1, -1)
    flat = grey.mean((1, 2), keepdim=True).expand_as(grey)
    bands = attribution.shares(attribution.integrated_gradients(of, grey, flat, 4))
    assert bands == pytest.approx([1 / 3] * 3)


def test_randomised_layers_keep_their_weights_in_no_order():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)
    ).requires_grad_(False)
    before = [w.clone() for w in network.parameters()]
    head, everything = (attribution.randomised(network, share, 0) for share in (0.0, 1.0))
    same = [torch.equal(a, b) for a, b in zip(network.parameters(), head.parameters(), strict=True)]
    assert same == [True, True, True, True, False, True]
    for was, now in zip(network.parameters(), everything.parameters(), strict=True):
        torch.testing.assert_close(was.flatten().sort().values, now.flatten().sort().values)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_an_explanation_is_like_itself_and_unlike_its_opposite():
    values = torch.arange(9.0)
    assert attribution.alike(values, 2 * values) == pytest.approx(1)
    assert attribution.alike(values, -values) == pytest.approx(-1)
    assert attribution.alike(values, torch.zeros(9)) is None


def test_of_several_kinds_the_margin_is_positive_where_a_building_is_drawn():
    torch.manual_seed(0)
    decision, z = Decision(1.7, 0.8), 2 * torch.randn(1, 4, 32, 32)
    margin = attribution.margin(decision.logits, z)
    drawn = decision(z)
    assert ((margin > 0) == (drawn > 0)).all() and 0.1 < (drawn > 0).float().mean() < 0.9
