"""The contact channel on its way: asked for, blended, averaged over turns, and
never in anybody's way.
"""

import numpy as np
import pytest
import shapely
import torch
from torch import nn
from toy import toy_scene, write_city

from pipeline.mapping.predictor import Predictor
from pipeline.networks.card import Card
from pipeline.networks.decision import Decision
from pipeline.networks.models import Segmenter, build_model
from pipeline.params import Evaluate, Model, Predict
from pipeline.scoring.disagreement import Disagreement
from pipeline.scoring.evaluation import Both, evaluate_city
from pipeline.scoring.inference import infer
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_float

CARD = {
    "model": {"architecture": "unet", "contact": 1},
    "channels": 3,
    "bands": [1, 2, 3],
    "classes": 1,
    "gsd": 0.5,
}


def given() -> Segmenter:
    """Red is building, blue is contact."""
    network = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        network.weight[:] = 20 * torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 1]])[..., None, None]
        network.bias[:] = torch.tensor([0.0, -10, -10])
    segmenter = Segmenter(network, 3, 1, contacts=True).eval().requires_grad_(False)
    segmenter.card = Card.model_validate(CARD)
    segmenter.decision = Decision.of(segmenter.card)
    return segmenter


def terrace() -> tuple[np.ndarray, np.ndarray]:
    """Four houses wall to wall, (H, W, 3) and their mask."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[30:60, 20:100, 0] = 255
    image[30:60, [39, 40, 59, 60, 79, 80], 2] = 255
    return image, (image[..., 0] > 0).astype(np.uint8)


def test_classes_are_as_ever_and_contacts_on_request():
    segmenter, images = given(), torch.rand(2, 3, 9, 7)
    every = segmenter(images, contacts=True)
    assert every.shape == (2, 3, 9, 7) and torch.equal(segmenter(images), every[:, :2])


def test_a_network_is_built_with_room_for_contacts():
    model = Model(architecture="unet", encoder="resnet18", contact=1, decoder_channels=[16, 8])
    segmenter = build_model(model, 3).eval()
    with torch.no_grad():
        assert segmenter(torch.rand(1, 3, 32, 32)).shape[1] == 2
        assert segmenter(torch.rand(1, 3, 32, 32), contacts=True).shape[1] == 3
    with pytest.raises(ValueError, match="small_fcn has classes only"):
        Model(architecture="small_fcn", contact=1)


@pytest.mark.parametrize("wrapped", [lambda s: s, Both, lambda s: Disagreement(s, 1.0)])
def test_windows_blend_the_probability_of_a_contact(wrapped):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    segmenter = given()
    bands = infer(wrapped(segmenter), image, window=32, precision="fp32", contacts=True)
    last = np.concatenate([p for _, p in bands])[..., -1]
    expected = (
        segmenter(to_float(torch.from_numpy(image)[None]), contacts=True)[0, -1].sigmoid().numpy()
    )
    np.testing.assert_allclose(last, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"augment": True}])
def test_predict_tells_a_terrace_apart_and_the_mask_is_whole(options):
    image, truth = terrace()
    found = Predictor(given()).predict(image, window=64, outlines="raw", **options)
    assert np.array_equal(found.mask, truth) and len(found.geometry) == 4
    # three lines, a pixel thin
    assert shapely.union_all(found.geometry).area == truth.sum() - 3 * 30
    whole = Predictor(given()).predict(image, window=64, outlines="raw", split=1.0, **options)
    assert len(whole.geometry) == 1 and np.array_equal(whole.mask, truth)


def test_evaluate_counts_what_predict_delivers(tmp_path):
    image, truth = terrace()
    folder, numbers = write_city(tmp_path, [("test", image, truth)]), truth.copy()
    for i in range(4):
        numbers[:, 20 + 20 * i : 40 + 20 * i] *= i + 1
    np.save(folder / "numbers.npy", numbers.ravel())
    city = CityTiles(folder)
    apart, merged = (
        evaluate_city(given(), city, Evaluate(), predict=Predict(split=split))
        for split in (0.3, 1.0)
    )
    assert apart.buildings.quality[1] == 1 and merged.buildings.quality[1] == 0
    assert (apart.buildings.merged, merged.buildings.merged) == (
        0,
        1,
    ) and apart.iou == merged.iou == 1
    least = evaluate_city(given(), city, Evaluate(), predict=Predict(min_area=200))
    assert len(least.buildings.match) == 0 and len(least.buildings.area) == 4


def test_of_label_rasters_blobs_are_counted_on_both_sides(tmp_path):
    image, truth = terrace()
    city = CityTiles(write_city(tmp_path, [("test", image, truth)]))  # knows no walls: one blob
    found = evaluate_city(given(), city, Evaluate()).buildings
    assert len(found.area) == len(found.match) == 1
    assert found.quality[1] == 1 and found.split == 0


def test_older_tiles_and_models_are_as_they_were(tmp_path):
    image, label = toy_scene(0)
    city = CityTiles(write_city(tmp_path, [("test", image, label)]))
    assert city.numbers(city.regions[0]) is None
    assert not build_model(Model(architecture="linear"), 3).contacts
