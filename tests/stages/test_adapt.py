"""adapt: a model that learns the labelled frames, is judged on frames it has
not seen, and does not forget.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "assessment"))
from city import labelled, map_counts, red_model, town, write_scene  # noqa: E402

from pipeline.assessment.adapting import LabelledFrame, Tuning, fine_tune, map_frame  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from pipeline.networks.models import read_card, read_model  # noqa: E402
from pipeline.stages import adapt, assess, sample  # noqa: E402


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    """A model that sees hardly any roof, its sample, labelled with the truth."""
    folder = tmp_path_factory.mktemp("adapt")
    image, truth = town(256, 256)
    red_model(folder / "model", bias=-16)
    write_scene(folder / "town.tif", image)
    sample.run(folder / "model", [str(folder / "town.tif")], folder / "CITY", tiles=10, side=64)
    labelled(folder / "CITY", truth)
    return folder


def test_what_was_learned_is_judged_on_frames_that_were_not(city):
    before = assess.run(city / "CITY")["assisted"]["iou"]["value"]
    adapt.run(
        city / "model",
        city / "CITY",
        city / "adapted",
        tiles=city / "none",
        steps=60,
        folds=2,
        learning_rate=0.3,
    )
    after = assess.run(city / "CITY", model=city / "adapted")["assisted"]["iou"]["value"]
    image, truth = town(256, 256)
    tp, fp, fn = map_counts(image, truth, bias=-16)
    assert before < 0.2 and tp / (tp + fp + fn) < 0.2 and after > before + 0.2
    card = read_card(city / "adapted")
    assert card.cities == ["CITY"] and card.adapted["frames"] == 10 and not card.adapted["replayed"]


def test_nothing_is_promised_of_a_model_that_the_labels_have_taught(city):
    """Each frame is judged by another training than the one delivered."""
    with pytest.raises(InputError, match="leave --model out"):
        assess.run(city / "CITY", model=city / "adapted", at_least_recall=0.8)


def test_what_is_mapped_where_there_is_no_data_counts_for_nothing(city):
    label = np.zeros((64, 64), np.uint8)
    label[:, 40:] = 255
    image = np.where(label[..., None] == 255, 0, 200).repeat(3, -1).astype(np.uint8)
    frame = LabelledFrame(image, label, (slice(0, 64), slice(0, 64)))
    levels = map_frame(read_model(city / "model"), frame)
    assert ((levels == 255) == (label == 255)).all()


def test_the_same_seed_gives_the_same_weights(city):
    for name in ("a", "b"):
        adapt.run(city / "model", city / "CITY", city / name, tiles=city / "none", steps=3, folds=1)
    one, other = ((city / name / "weights.safetensors").read_bytes() for name in ("a", "b"))
    assert one == other


def test_it_is_delivered_part_of_the_way_from_the_old_weights_to_the_new(city):
    frame = LabelledFrame(
        *(part.astype(np.uint8) for part in town(64, 64)), (slice(0, 64), slice(0, 64))
    )
    old = read_model(city / "model")
    whole, part, none = (
        torch.nn.utils.parameters_to_vector(
            fine_tune(old, [frame], Tuning(steps=2, share=s)).parameters()
        )
        for s in (1, 0.75, 0)
    )
    start = torch.nn.utils.parameters_to_vector(old.parameters())
    assert torch.equal(none, start) and not torch.equal(whole, start)
    assert torch.allclose(part, start + 0.75 * (whole - start), atol=1e-6)


def test_what_cannot_be_adapted_is_one_sentence(city, tmp_path):
    red_model(tmp_path / "other", bias=-9)
    with pytest.raises(InputError, match="was sampled by"):
        adapt.run(tmp_path / "other", city / "CITY", tmp_path / "out")
    with pytest.raises(InputError, match="already there"):
        adapt.run(city / "model", city / "CITY", city / "model")
    with pytest.raises(InputError, match="made? it with adapt|make it with adapt"):
        assess.run(city / "CITY", model=city / "model")
    assert not (tmp_path / "out").exists()


def test_a_model_adapted_to_other_labels_is_refused(city, tmp_path):
    sample.run(
        city / "model", [str(city / "town.tif")], tmp_path / "CITY", tiles=10, side=64, seed=1
    )
    labelled(tmp_path / "CITY", town(256, 256)[1])
    np.savez(tmp_path / "cross_fitted.npz", sample=np.array("another"))
    with pytest.raises(InputError, match="adapted to another sample"):
        assess.run(tmp_path / "CITY", model=tmp_path)
