import numpy as np
import torch
from toy import toy_scene, write_city

from pipeline import params
from pipeline.networks.glance import built
from pipeline.networks.models import build_model
from pipeline.params import Train
from pipeline.tiles.store import open_cities
from pipeline.tiles.tensors import to_tensors
from pipeline.training.glance import LOST, threshold_glance, train_glance


def test_it_learns_where_buildings_are_and_skips_what_the_map_does_not_need(tmp_path):
    """The map is that of a given network, which calls bright ground a building."""
    scenes = [
        (split, *toy_scene(i, contrast=120))
        for i, split in enumerate(["train", "train", "validation", "test"])
    ]
    write_city(tmp_path / "tiles", scenes, "toyton")
    cities = open_cities(["toyton"], tmp_path / "tiles")
    model = params.Model(architecture="linear")
    train = Train(
        model=model,
        loss={"cross_entropy": 1.0},
        epochs=1,
        steps_per_epoch=1,
        batch_size=8,
        crop=64,
        glance=60,
    )
    segmenter = build_model(model, 3).eval()
    with torch.no_grad():
        segmenter.network.weight[:] = torch.tensor([[0.0] * 3, [10.0] * 3])[..., None, None]
        segmenter.network.bias[:] = torch.tensor([0.0, -18.0])
    glance = train_glance(cities, train, torch.device("cpu"))
    about = threshold_glance(glance, segmenter, cities, 64)
    assert about["lost"] <= LOST and about["threshold"] == float(glance.threshold)
    assert about["side"] == int(glance.side) == 64
    images, labels = to_tensors(cities[0].sample("test", 8), "cpu")
    scores, holds = glance(images), built(labels == 1) > 0
    assert scores[holds].mean() > scores[~holds].mean() + 1
    again = train_glance(cities, train, torch.device("cpu"))
    assert all(
        torch.equal(a, b) for a, b in zip(glance.parameters(), again.parameters(), strict=True)
    )
    assert np.isfinite(about["skipped"])
