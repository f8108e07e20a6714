"""The stage check refuses, before anything runs, what a later stage would; for DVC it makes
links and sweeps.
"""

import json
import os
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.params import load_params, parse_params
from pipeline.stages import check

ROOT = Path(__file__).parents[2]


def tiny(**changes):
    """tests/tiny.yaml with "section.key.key" set otherwise."""
    data = load_params(ROOT / "tests/tiny.yaml").model_dump(mode="json")
    for path, value in changes.items():
        *sections, key = path.split(".")
        place = data
        for section in sections:
            place = place[section]
        place[key] = value
    return parse_params(data)


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A folder with the demo's manifest and nothing else."""
    place = tmp_path / "repository"
    (place / "data/sources").mkdir(parents=True)
    (place / "data/sources/demo.yaml").symlink_to(ROOT / "data/sources/demo.yaml")
    monkeypatch.chdir(place)
    return place


def card(folder: str, cities=(), **model) -> None:
    """A model folder of tests/tiny.yaml's network, as far as a check reads it."""
    network = tiny().train.model.model_dump() | model
    Path(folder).mkdir(parents=True)
    about = {"model": network, "channels": 3, "classes": 1, "gsd": 0.5, "cities": list(cities)}
    Path(folder, "model.json").write_text(json.dumps(about))
    Path(folder, "weights.safetensors").write_bytes(b"weights")


def test_parameters_that_can_run_pass_and_nothing_is_written(repository):
    before = sorted(repository.rglob("*"))
    check.run(tiny())
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"fetch.path": "data/my-imagery", "fetch.source": "folder"},
            "there is no data/my-imagery; put your cities",
        ),
        (
            {"fetch.cities": ["brickvale", "tinrof"]},
            "the demo has no city 'tinrof'; did you mean tinroof?",
        ),
        (
            {"tile.bands": [1, 2, 9]},
            "tile.bands: the scenes of source demo have 3 bands, but band 9 is asked for",
        ),
        ({"fetch.archive": "inria.7z.001"}, "fetch.archive: there is no inria.7z.001"),
        ({"train.model.encoder": "resnet19"}, "unknown encoder 'resnet19'; near it are resnet1"),
        (
            {"train.model.encoder": "tu-resnet19"},
            "unknown encoder 'tu-resnet19'; near it are tu-resnet1",
        ),
        ({"train.model.decoder_channels": [16] * 6}, "does not accept these settings"),
        ({"train.model.architecture": "linear", "train.model.activation": "minmax"}, "has no ReLU"),
        (
            {"train.model.encoder_weights": "some.pth"},
            "some.pth: weights are read from safetensors files only",
        ),
        ({"train.model.encoder_weights": "some.safetensors"}, "some.safetensors: not found"),
        (
            {
                "train.model.architecture": "linear",
                "train.model.encoder_weights": "some.safetensors",
            },
            "has no encoder",
        ),
        ({"attack.transfer": "other"}, "attack.transfer: other holds no model"),
        ({"certify.model": "other"}, "certify.model: other holds no model"),
        (
            {"certify.smoothing.n": 10},
            "10 samples can never certify one of 1024 pixels .* at least 49",
        ),
        ({"certify.smoothing.tau": 0.99}, "can never certify"),
        ({"certify.crop": 1024}, "can never certify"),
    ],
    ids=str,
)
def test_what_a_later_stage_would_refuse_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        check.run(tiny(**wrong))


def test_a_logger_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("pipeline.training.loggers.find_spec", lambda module: None)
    with pytest.raises(InputError, match="train.loggers: tensorboard is not installed; pip inst"):
        check.run(tiny(**{"train.loggers": ["tensorboard"]}))


def test_samples_of_a_certificate_that_is_not_asked_for_are_nobodys_business():
    check.run(tiny(**{"certify.smoothing.n": 10, "certify.methods": ["convex"]}))


def test_a_start_that_pretrain_will_make_is_only_warned_of(capsys):
    check.run(tiny(**{"train.init": "pretrained"}))
    assert "train.init: pretrained holds no model yet" in capsys.readouterr().err


def test_a_start_of_another_network_is_refused_and_one_that_knows_a_city_is_warned_of(capsys):
    card("start", ["tinroof"])
    check.run(tiny(**{"train.init": "start"}))
    assert "trained on tinroof: train starts from it, but holdout" in capsys.readouterr().err
    card("other", encoder="resnet34")
    with pytest.raises(InputError, match="other has encoder 'resnet34'; set train.model to match"):
        check.run(tiny(**{"train.init": "other"}))


def test_a_sun_of_no_city_is_warned_of_with_its_nearest(capsys):
    sun = {"brickvale": [158, 49], "duskhom": [248, 27], "marlstead": [208, 60]}
    check.run(tiny(**{"attack.physics.sun": sun}))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: attack.physics.sun: fetch.cities has no duskhom (nearest: dus")
    assert "marlstead (nearest: " in line and "brickvale (" not in line.partition("nearest")[0]
    check.run(tiny(**{"attack.physics.sun": {"brickvale": [158, 49]}}))
    assert not capsys.readouterr().err


def content(stage: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path("data/watched", stage).iterdir()}


def test_a_start_that_changes_under_its_name_changes_what_dvc_hashes():
    for stage in ("train", "attack", "certify"):
        Path("data/watched", stage).mkdir(parents=True)
    card("start")
    check.watch(tiny(**{"train.init": "start", "attack.transfer": "start"}))
    before = content("train")
    assert set(before) == {"init-model.json", "init-weights.safetensors"}
    assert set(content("attack")) == {"transfer-model.json", "transfer-weights.safetensors"}
    assert content("certify") == {}  # models/all is watched as it is
    Path("start").rename("old")
    card("start", ["elsewhere"])
    assert content("train") != before
    check.watch(tiny())
    assert content("train") == {} and Path("start/model.json").exists()


def test_an_experiments_copy_finds_what_git_does_not_keep(repository, monkeypatch):
    Path("imagery/town/images").mkdir(parents=True)
    card("start")
    card("models/all")
    copy = repository / ".dvc/tmp/exps/standalone/tmp0"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    changed = {
        "fetch.source": "folder",
        "fetch.path": "imagery",
        "fetch.cities": ["town"],
        "train.init": "start",
    }
    check.run(tiny(**changed), for_dvc=True)
    assert os.path.samefile("imagery", repository / "imagery") and Path("start/model.json").exists()
    assert not Path("models").exists()  # a stage writes it: it must not reach the workspace's
    monkeypatch.chdir(repository)
    assert Path("imagery").is_dir() and not Path("imagery").is_symlink()


def test_what_is_left_of_a_city_is_moved_aside_and_nothing_of_the_users(capsys):
    for city in ("brickvale", "gone"):
        Path("data/tiles", city).mkdir(parents=True)
        Path("data/tiles", city, "regions.json").write_text("{}")
        Path("models/folds", f"without-{city}").mkdir(parents=True)
    Path("models/folds/all").mkdir()
    Path("models/mine").mkdir()
    Path("data/tiles/notes.txt").touch()
    check.sweep(tiny())
    assert sorted(p.name for p in Path("data/tiles").iterdir()) == ["brickvale", "notes.txt"]
    assert sorted(p.name for p in Path("models").iterdir()) == ["folds", "mine"]
    assert sorted(p.name for p in Path("models/folds").iterdir()) == ["all", "without-brickvale"]
    assert Path(".work/swept/data/tiles/gone/regions.json").exists()
    assert "data/tiles/gone: its city is not in fetch.cities; moved to" in capsys.readouterr().err
