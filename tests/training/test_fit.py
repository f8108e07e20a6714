"""Training is a function of parameters, tiles and code: whatever interrupts it,
the weights are the same.
"""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trainer
from safetensors.torch import load_file
from toy import toy_scene, write_city

from pipeline.errors import InputError
from pipeline.networks.card import read_card
from pipeline.params import parse_params
from pipeline.tiles.store import CityTiles, open_cities
from pipeline.training.crops import RandomCrops, StepSampler
from pipeline.training.fit import fit, stopped


def settings(**train) -> dict:
    return {
        "fetch": {"source": "demo", "path": "unused", "cities": ["toyton", "dimham"]},
        "tile": {"gsd": 0.5, "size": 64},
        "train": {
            "model": {"architecture": "small_fcn", "width": 8},
            "loss": {"cross_entropy": 1.0},
            "epochs": 4,
            "steps_per_epoch": 5,
            "batch_size": 4,
            "crop": 64,
            "precision": "fp32",
            "learning_rate": 0.01,
            **train,
        },
    }


def start(
    tiles: Path, folder: Path, params: dict, **environment: str
) -> multiprocessing.process.BaseProcess:
    """A process that trains, forked from one that has imported everything."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pipeline.training.fit", "pipeline.training.augment"])
    process = processes.Process(
        target=trainer.work, args=(str(tiles), str(folder), params), kwargs=environment
    )
    process.start()
    return process


def train(tiles: Path, folder: Path, params: dict) -> dict:
    process = start(tiles, folder, params)
    process.join(120)
    assert process.exitcode == 0
    return load_file(folder / "weights.safetensors")


@pytest.mark.slow
def test_killed_at_any_epoch_it_ends_with_the_same_weights(toy_tiles, tmp_path):
    params = settings(epochs=12, steps_per_epoch=8, augment="flips", ema=0.9, noise=0.05)
    whole = train(toy_tiles, tmp_path / "whole" / "model", params)
    folder = tmp_path / "killed" / "model"
    kills = 0
    for _ in range(3):
        process = start(toy_tiles, folder, params)
        before = {p: p.stat().st_mtime for p in (folder.parent / "work").glob("*/last.ckpt")}
        while process.is_alive() and kills < 3:
            now = {p: p.stat().st_mtime for p in (folder.parent / "work").glob("*/last.ckpt")}
            if now and now != before:  # an epoch further than where it started
                process.kill(), process.join()
                kills += process.exitcode == -signal.SIGKILL
            time.sleep(0.01)
    assert kills > 0 and not (folder / "model.json").exists(), (
        "the kills came too late to prove anything"
    )
    again = train(toy_tiles, folder, params)
    assert json.loads((folder / "model.json").read_text())["training"]["resumed"]
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
    assert not list((folder.parent / "work").rglob("*.ckpt"))


@pytest.mark.slow
def test_changed_parameters_never_meet_an_old_checkpoint(toy_tiles, tmp_path):
    folder = tmp_path / "run" / "model"
    process = start(toy_tiles, folder, settings(epochs=400))
    while not list((folder.parent / "work").glob("*/last.ckpt")):
        assert process.is_alive()
        time.sleep(0.02)
    process.kill(), process.join()
    train(toy_tiles, folder, settings(epochs=3))
    card = read_card(folder)
    assert not card.training["resumed"] and len(card.history) == 3


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def torchrun(tiles: Path, folder: Path, params: dict) -> None:
    folder.parent.mkdir()
    job = {"tiles": str(tiles), "folder": str(folder), "params": params}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    command += [trainer.__file__, json.dumps(job)]
    subprocess.run(command, check=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_two_processes_draw_the_same_loss_curve_as_one(tmp_path):
    """Also where their shares of a batch hold unlike numbers of valid pixels."""
    random = np.random.default_rng(0)
    for city in ("toyton", "dimham"):
        scenes = [
            (split, *toy_scene(i))
            for i, split in enumerate(["train", "train", "train", "validation"])
        ]
        for _, _, label in scenes[:3]:
            label[random.integers(8, 120) :] = 255
        write_city(tmp_path / "tiles", scenes, city)
    params = settings(
        optimizer="sgd", epochs=2, loss={"cross_entropy": 1.0, "focal": 1.0, "hinge": 0.5}
    )
    train(tmp_path / "tiles", tmp_path / "one" / "model", params)
    torchrun(tmp_path / "tiles", tmp_path / "two" / "model", params)
    one, two = (read_card(tmp_path / name / "model") for name in ("one", "two"))
    assert two.training["processes"] == 2
    assert [e["loss"] for e in two.history] == pytest.approx(
        [e["loss"] for e in one.history], rel=1e-4
    )
    assert [e["iou"] for e in two.history] == pytest.approx(
        [e["iou"] for e in one.history], abs=1e-3
    )


@pytest.mark.slow
def test_two_processes_train_what_holds_batch_norm_and_a_shortened_encoder(toy_tiles, tmp_path):
    model = {"architecture": "pspnet", "encoder": "resnet18"}
    params = settings(model=model, epochs=2, steps_per_epoch=2, crop=32, batch_size=4)
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "two"}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    (tmp_path / "two").mkdir()
    ranks = [
        start(toy_tiles, tmp_path / "two/model", params, RANK=rank, LOCAL_RANK=rank, **told)
        for rank in "01"
    ]
    for process in ranks:
        process.join(180)
    assert [process.exitcode for process in ranks] == [0, 0]
    card = read_card(tmp_path / "two/model")
    assert len(card.history) == 2 and card.confidence is not None  # calibrated


def test_adversarial_training_logs_the_gap_between_one_step_and_many(toy_tiles, tmp_path):
    from pipeline.training.fit import fit

    adversarial = {"method": "fast", "epsilon": 2, "steps": 1}
    params = parse_params(settings(epochs=2, steps_per_epoch=2, adversarial=adversarial))
    card = fit(
        params, open_cities(["toyton", "dimham"], toy_tiles), tmp_path / "m", work=tmp_path / "w"
    )
    for epoch in card.history:
        assert (
            epoch["overfitting_gap"] == epoch["fgsm_iou"] - epoch["pgd_iou"]
            and epoch["epsilon"] == 2
        )


def test_it_learns_and_keeps_the_best_epoch(toy_tiles, tmp_path):
    train(toy_tiles, tmp_path / "model", settings(epochs=8, steps_per_epoch=40, learning_rate=0.02))
    card = read_card(tmp_path / "model")
    curve = [e["iou"] for e in card.history]
    assert card.metrics["validation_iou"] == pytest.approx(max(curve)) and max(curve) > 0.5
    assert all(0.5 <= card.confidence[kind] <= 1 for kind in ("building", "background"))


def test_the_same_crop_for_the_same_index_whatever_was_read_before(toy_tiles):
    cities = [CityTiles(toy_tiles / c) for c in ("toyton", "dimham")]
    first, second = (RandomCrops(cities, 32, 0, "strong") for _ in range(2))
    image, label = first[17]
    second[3]
    again, label_again = second[17]
    assert torch.equal(image, again) and torch.equal(label, label_again)
    assert not torch.equal(image, RandomCrops(cities, 32, 1, "strong")[17][0])


def test_processes_share_each_global_batch_and_epochs_follow_each_other():
    def crops(rank, world, epoch):
        sampler = StepSampler(8, 3, rank, world)
        sampler.set_epoch(epoch)
        return [set(batch) for batch in sampler]

    for epoch in range(2):
        halves = [a | b for a, b in zip(crops(0, 2, epoch), crops(1, 2, epoch), strict=True)]
        assert halves == crops(0, 1, epoch)
    assert set().union(*crops(0, 1, 0), *crops(0, 1, 1)) == set(range(48))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_validation_windows_evenly(toy_tiles, world):
    """Each waits for the others after every batch, so all have as many, and none has none."""
    from pipeline.training.fit import _loaders

    train, cities = (
        parse_params(settings(crop=64)).train,
        open_cities(["toyton", "dimham"], toy_tiles),
    )
    shares = [
        _loaders(train, cities, torch.device("cpu"), rank, world)[1].batch_sampler
        for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1
    assert sorted(window for share in shares for batch in share for window in batch) == list(
        range(8)
    )
    with pytest.raises(InputError, match="8 windows of train.crop 64 for 9 processes"):
        _loaders(train, cities, torch.device("cpu"), 0, 9)


def test_weighting_gives_a_small_city_its_share(tmp_path):
    big = [("train", *toy_scene(i, 256)) for i in range(4)]  # 64 times the area of the small city
    write_city(tmp_path, big, "big"), write_city(tmp_path, [("train", *toy_scene(9, 64))], "small")
    cities = [CityTiles(tmp_path / "big"), CityTiles(tmp_path / "small")]
    for weighting, share in {"even": 1 / 2, "root": 1 / 9, "area": 1 / 65}.items():
        assert RandomCrops(cities, 32, 0, "none", weighting).probability[-1] == pytest.approx(share)


def test_what_cannot_be_trained_says_why(toy_tiles, tmp_path):
    from pipeline.training.fit import fit

    params = parse_params(settings())
    cities = open_cities(params.fetch.cities, toy_tiles)
    wrong = parse_params(settings(model={"architecture": "unet", "encoder": "resnet99"}))
    with pytest.raises(InputError, match="unknown encoder 'resnet99'; near it are .*resnet"):
        fit(wrong, cities, tmp_path / "m", work=tmp_path / "w")
    missing = parse_params(settings(init=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="nowhere/model.json: not found"):
        fit(missing, cities, tmp_path / "m", work=tmp_path / "w")
    with pytest.raises(InputError, match="tile stage"):
        CityTiles(tmp_path / "untiled")
    two_classes = parse_params(settings(model={"architecture": "small_fcn", "classes": 2}))
    with pytest.raises(
        InputError, match="tiles hold 1 classes, but train.model.classes is 2; run the tile stage"
    ):
        fit(two_classes, cities, tmp_path / "m", work=tmp_path / "w")
    one_crop = parse_params(settings(model={"architecture": "deeplabv3+"}, batch_size=1))
    with pytest.raises(
        InputError, match=r"deeplabv3\+ .* cannot learn from one crop a process; raise it"
    ):
        fit(one_crop, cities, tmp_path / "m", work=tmp_path / "w")
    with pytest.raises(InputError, match="not finite at step"):
        fit(
            parse_params(settings(learning_rate=1e30, clip_gradient=0)),
            cities,
            tmp_path / "m",
            work=tmp_path / "w",
        )
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("steps", [1, 2])
def test_a_divergence_in_the_last_step_is_said_as_any_other(toy_tiles, tmp_path, steps):
    """No step looks at its loss any more: validation does."""
    from pipeline.training.fit import fit

    wild = {"optimizer": "sgd", "schedule": "constant", "learning_rate": 1e30, "clip_gradient": 0}
    params = parse_params(settings(epochs=1, steps_per_epoch=steps, **wild))
    with pytest.raises(
        InputError,
        match=f"not finite at step {'1' if steps == 1 else '[12]'}; lower train.learning_rate",
    ):
        fit(params, open_cities(["toyton"], toy_tiles), tmp_path / "m", work=tmp_path / "w")
    assert not (tmp_path / "m").exists()


def test_without_a_building_in_validation_the_last_epoch_is_kept(tmp_path):
    from pipeline.training.fit import fit

    image, label = toy_scene(1)
    scenes = [("train", *toy_scene(0)), ("validation", image, 0 * label)]
    cities = [CityTiles(write_city(tmp_path / "tiles", scenes))]
    runs = {}
    for epochs in (1, 3):
        params = parse_params(
            settings(epochs=epochs, steps_per_epoch=2, patience=1, schedule="constant")
        )
        runs[epochs] = fit(params, cities, tmp_path / str(epochs), work=tmp_path / "w")
    assert runs[3].metrics["validation_iou"] is None and len(runs[3].history) == 3
    first, last = (load_file(tmp_path / str(epochs) / "weights.safetensors") for epochs in (1, 3))
    assert not all(torch.equal(first[key], last[key]) for key in first)


@pytest.mark.parametrize("key", ["encoder_weights", "init"])
def test_another_file_under_the_same_path_is_another_training(toy_tiles, tmp_path, key):
    from pipeline.networks.models import build_model, save_model
    from pipeline.training.fit import fit

    cities, start = open_cities(["toyton", "dimham"], toy_tiles), tmp_path / "start"
    model = {"architecture": "unet", "encoder": "resnet18", "decoder_channels": [16, 8]}
    chosen = (
        {"model": {**model, key: str(start)}}
        if key == "encoder_weights"
        else {"model": model, key: str(start)}
    )
    params = parse_params(settings(epochs=1, steps_per_epoch=1, **chosen))
    cards = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        segmenter = build_model(params.train.model.model_copy(update={"encoder_weights": None}), 3)
        save_model(
            start,
            segmenter,
            {"model": params.train.model.model_dump(), "channels": 3, "classes": 1, "gsd": 0.5},
        )
        cards.append(fit(params, cities, tmp_path / "m", work=tmp_path / "w"))
    assert cards[0] == cards[1] and cards[1].fingerprint != cards[2].fingerprint


def test_several_classes_are_learned(tmp_path):
    """Bright rectangles are class 1, dark ones class 2."""
    from pipeline.networks.models import read_model
    from pipeline.scoring.evaluation import city_metrics, evaluate_city
    from pipeline.training.fit import fit

    for city in ("toyton", "dimham"):
        scenes = []
        for i, split in enumerate(["train", "train", "validation", "test"]):
            image, label = toy_scene(i)
            dark = toy_scene(50 + i)[1].astype(bool)
            image[dark], label[dark] = image[dark] // 4, 2
            scenes.append((split, image, label))
        about = write_city(tmp_path / "tiles", scenes, city) / "regions.json"
        about.write_text(json.dumps({**json.loads(about.read_text()), "classes": 2}))
    model = {"architecture": "small_fcn", "width": 8, "classes": 2}
    params = parse_params(settings(epochs=4, steps_per_epoch=120, learning_rate=0.02, model=model))
    cities = open_cities(["toyton", "dimham"], tmp_path / "tiles")
    fit(params, cities, tmp_path / "m", work=tmp_path / "w")
    found = city_metrics(
        evaluate_city(read_model(tmp_path / "m"), cities[0], params.evaluate), params.evaluate
    )
    assert min(found["class_iou"].values()) > 0.6 and list(found["class_iou"]) == ["1", "2"]


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6])
def test_the_shortest_cycles_can_be_run(toy_tiles, tmp_path, steps):
    from pipeline.training.fit import fit

    params = parse_params(settings(epochs=1, steps_per_epoch=steps))
    card = fit(params, open_cities(["toyton"], toy_tiles), tmp_path / "m", work=tmp_path / "w")
    assert len(card.history) == 1


def test_a_log_gets_a_line_an_epoch_and_how_long_it_will_take(toy_tiles, tmp_path, capsys):
    fit(
        parse_params(settings(epochs=2, steps_per_epoch=30)),
        open_cities(["toyton", "dimham"], toy_tiles),
        tmp_path / "m",
        work=tmp_path / "w",
    )
    said = capsys.readouterr().out
    assert "training: 40 steps to go, about" in said
    assert re.findall(r"epoch (\d) of 2: loss 0\.\d+, validation IoU [01]\.\d+", said) == ["1", "2"]


def test_ctrl_c_before_the_first_checkpoint_says_that_nothing_is_kept(tmp_path):
    assert "begins anew" in str(stopped(tmp_path / "last.ckpt"))
    (tmp_path / "last.ckpt").touch()
    assert str(stopped(tmp_path / "last.ckpt")) == ""
