import json

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.networks.models import build_model, read_model
from pipeline.params import Model, parse_params
from pipeline.tiles.store import CityTiles
from pipeline.training.fit import fit
from pipeline.training.pretraining import check_place, hide, pretrain

PARAMS = parse_params(
    {
        "fetch": {"source": "demo", "path": "x", "cities": ["toyton", "dimham"]},
        "tile": {"gsd": 0.5, "size": 64},
        "train": {
            "model": {"architecture": "small_unet", "width": 8},
            "loss": {"cross_entropy": 1},
            "epochs": 1,
            "steps_per_epoch": 2,
            "batch_size": 2,
            "crop": 64,
        },
        "pretrain": {"steps": 60, "crop": 64, "tiles": 8, "square": 8, "learning_rate": 0.01},
    }
)


def opened(folder):
    return [CityTiles(folder / city) for city in ("toyton", "dimham")]


def test_hiding_replaces_whole_squares_by_the_mean():
    images = torch.rand(4, 3, 40, 40)
    seen, mask = hide(images, 8, 0.5, torch.Generator().manual_seed(0))
    assert 0.3 < mask.mean() < 0.7
    assert all(
        len(square.unique()) == 1 for square in mask.unfold(2, 8, 8).unfold(3, 8, 8).flatten(0, 3)
    )
    assert torch.equal(seen * (1 - mask), images * (1 - mask))
    hidden = mask[0, 0].bool()
    torch.testing.assert_close(
        seen[0][:, hidden], images[0].mean((1, 2))[:, None].expand(-1, int(hidden.sum()))
    )


def test_the_painter_learns_and_training_can_start_from_it(toy_tiles, tmp_path):
    card = pretrain(PARAMS, opened(toy_tiles), tmp_path / "start")
    assert card.metrics["last_loss"] < 0.8 * card.metrics["first_loss"]
    segmenter = read_model(tmp_path / "start")
    assert segmenter(torch.rand(1, 3, 32, 32)).shape == (1, 2, 32, 32)
    torch.manual_seed(PARAMS.pretrain.seed)
    fresh = build_model(Model(architecture="small_unet", width=8), 3)
    moved = [
        k for k, w in fresh.named_parameters() if not torch.equal(w, segmenter.state_dict()[k])
    ]
    assert len(moved) > 0.8 * len(list(fresh.parameters()))


@pytest.mark.parametrize("steps", [1, 5, 6])
def test_the_shortest_cycles_can_be_run(toy_tiles, tmp_path, steps):
    brief = PARAMS.model_copy(
        update={"pretrain": PARAMS.pretrain.model_copy(update={"steps": steps})}
    )
    assert len(pretrain(brief, opened(toy_tiles), tmp_path / "start").history) == steps


def test_what_cannot_be_learned_from_says_why(toy_tiles, tmp_path):
    def refused(match: str, cities: list, architecture: str = "small_unet", **options):
        model = PARAMS.train.model.model_copy(update={"architecture": architecture})
        params = PARAMS.model_copy(update={
            "train": PARAMS.train.model_copy(update={"model": model}),
            "pretrain": PARAMS.pretrain.model_copy(update={"steps": 2, "crop": 32, **options}),
        })  # fmt: skip
        with pytest.raises(InputError, match=match):
            pretrain(params, cities, tmp_path / "start")
        assert not (tmp_path / "start").exists()

    cities = opened(toy_tiles)
    for steps in (1, 2, 6):  # the last step, which no other looks at, and an earlier one
        refused(
            r"not finite at step \d; lower "
            r"pretrain.learning_rate",
            cities,
            learning_rate=1e30,
            steps=steps,
        )
    refused(
        r"pretrain.batch_size: deeplabv3\+ .* cannot learn from one "
        r"crop",
        cities,
        "deeplabv3+",
        batch_size=1,
    )
    for folder in (toy_tiles / "toyton", toy_tiles / "dimham"):
        np.save(folder / "images.npy", 0 * np.load(folder / "images.npy"))
    refused("no training scene of toyton, dimham shows anything but nodata", opened(toy_tiles))


def test_no_label_is_read(toy_tiles, tmp_path):
    first = pretrain(PARAMS, opened(toy_tiles), tmp_path / "one")
    for folder in (toy_tiles / "toyton", toy_tiles / "dimham"):
        labels = np.load(folder / "labels.npy")
        np.save(
            folder / "labels.npy",
            np.random.default_rng(0).integers(0, 2, labels.shape).astype(np.uint8),
        )
        (folder / "tiles.parquet").unlink()
    assert pretrain(PARAMS, opened(toy_tiles), tmp_path / "two") == first


def test_a_start_of_another_resolution_is_said(toy_tiles, tmp_path, capsys):
    pretrain(PARAMS, opened(toy_tiles), tmp_path / "start")
    card = json.loads((tmp_path / "start" / "model.json").read_text())
    (tmp_path / "start" / "model.json").write_text(json.dumps(card | {"gsd": 0.3}))
    for start, says in (("start", True), (None, False)):
        train = PARAMS.train.model_copy(update={"init": start and str(tmp_path / start)})
        fit(
            PARAMS.model_copy(update={"train": train}),
            opened(toy_tiles),
            tmp_path / "m",
            work=tmp_path / "w",
        )
        assert ("knows pixels of 0.3 m, the tiles' are 0.5 m" in capsys.readouterr().out) == says


def test_nothing_but_an_earlier_start_is_written_over(toy_tiles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for place in ("new", "empty"):
        check_place(tmp_path / place)
    pretrain(PARAMS, opened(toy_tiles), tmp_path / "start")
    check_place(tmp_path / "start")
    fit(PARAMS, opened(toy_tiles), tmp_path / "trained", work=tmp_path / "w")
    for place in (toy_tiles, tmp_path / "trained"):
        with pytest.raises(InputError, match="holds something else than a pre-trained model"):
            check_place(place)
    with pytest.raises(InputError, match="models/all: a stage writes there"):
        check_place("models/all")
