import numpy as np
import pytest
import torch
from toy import bright_glance

from pipeline import params
from pipeline.errors import InputError
from pipeline.networks.glance import CELL, Glance, built
from pipeline.networks.models import build_model, read_glance, save_model
from pipeline.scoring.inference import infer
from pipeline.training.glance import skippable


@pytest.fixture
def bright() -> Glance:
    return bright_glance()


def test_a_cell_answers_for_its_pixels_whatever_the_size(bright):
    for height, width in ((64, 64), (33, 50), (1, 17)):
        cells = bright(torch.rand(2, 3, height, width))
        assert cells.shape == (2, -(-height // CELL), -(-width // CELL))
        assert built(torch.ones(2, height, width)).sum() == 2 * height * width
    labels = torch.zeros(1, 40, 40)
    labels[0, 20:24, 35:39] = 1
    assert built(labels).tolist() == [[[0, 0, 0], [0, 0, 16], [0, 0, 0]]]


def test_a_folded_glance_answers_alike():
    torch.manual_seed(0)
    glance, images = Glance(4), torch.rand(3, 4, 48, 80)
    for _ in range(20):
        glance(images * torch.tensor([0.1, 1, 3, 1])[:, None, None] + 0.2)
    glance.threshold.fill_(-1.5)
    glance.side.fill_(32)
    folded = glance.eval().folded()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(images), glance(images), rtol=0, atol=1e-5)
    assert (folded.threshold, folded.side) == (-1.5, 32)


def test_windows_smaller_than_the_thresholds_own_are_looked_at(bright):
    bright.side.fill_(64)
    for shape, worth in (((64, 96), False), ((64, 32), True), ((48, 64), True)):
        assert bright.sees(torch.zeros(2, 3, *shape)).tolist() == [worth] * 2


def test_windows_in_which_nothing_is_seen_are_not_computed(bright):
    torch.manual_seed(0)
    segmenter = build_model(params.Model(architecture="small_fcn", width=4), 3).eval()
    seen = []
    segmenter.network.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    image = np.zeros((256, 256, 3), np.uint8)
    image[160:224, 32:96] = 255
    options = {"window": 64, "overlap": 0.0, "batch_size": 3}
    whole = np.concatenate([p for _, p in infer(segmenter, image, **options)])
    assert sum(seen) == 16
    seen.clear()
    found = np.concatenate([p for _, p in infer(segmenter, image, **options, worth=bright.sees)])
    looked = np.zeros((256, 256), bool)
    looked[128:256, 0:128] = True
    assert sum(seen) == 4 and np.array_equal(found[looked], whole[looked])
    assert (found[~looked] == [1, 0]).all()


def test_the_threshold_loses_no_more_area_than_allowed_and_skips_all_it_may():
    scores = np.array([3.0, 0.0, 1.0, 2.0, 2.0, 4.0])
    areas = np.array([500.0, 0.0, 1.0, 0.0, 2.0, 497.0])
    assert skippable(scores, areas, lost=0.002) == {
        "threshold": 2.0,
        "lost": 0.001,
        "skipped": 2 / 6,
    }
    assert skippable(scores, areas, lost=0.003) == {
        "threshold": 3.0,
        "lost": 0.003,
        "skipped": 4 / 6,
    }
    assert skippable(scores, areas, lost=0) == {"threshold": 1.0, "lost": 0.0, "skipped": 1 / 6}
    assert skippable(scores, 0 * areas) is None


def test_it_is_kept_beside_the_model(bright, tmp_path):
    model = {"architecture": "small_fcn", "width": 4}
    segmenter = build_model(params.Model(**model), 3)
    card = {"model": model, "channels": 3, "classes": 1, "gsd": 0.5}
    save_model(tmp_path / "none", segmenter, card)
    with pytest.raises(
        InputError,
        match=r"none has no glance to skip by; train with "
        r"train\.glance",
    ):
        read_glance(tmp_path / "none")
    bright.threshold.fill_(0.25)
    save_model(tmp_path / "model", segmenter, card | {"glance": {"threshold": 0.25}}, bright)
    again, image = read_glance(tmp_path / "model"), torch.rand(1, 3, 40, 40)
    assert torch.equal(again(image), bright(image)) and again.threshold == 0.25
    (tmp_path / "model/glance.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match=r"glance\.safetensors: damaged weights"):
        read_glance(tmp_path / "model")
