"""The stage on two toy cities: the schema, what each method is, and that a kill costs one
sequence at most.
"""

import json

import numpy as np
import pytest
import torch
from toy import toy_scene, write_city

from pipeline.errors import InputError
from pipeline.incremental.arriving import class_loss, only, with_one_more
from pipeline.incremental.sequence import Learner, fresh, orders
from pipeline.incremental.summary import estimate
from pipeline.params import Incremental, parse_params
from pipeline.stages import incremental
from pipeline.tiles.store import open_cities

CITIES = ["toyton", "dimham"]
CPU = torch.device("cpu")
QUICK = {
    "architecture": "small_fcn",
    "width": 4,
    "steps": 4,
    "batch_size": 2,
    "crop": 32,
    "tiles": 4,
    "replay": 2,
}


def settings(cities=CITIES, **changes):
    return parse_params(
        {
            "fetch": {"source": "demo", "path": "unused", "cities": list(cities)},
            "tile": {"gsd": 0.5, "size": 64},
            "train": {
                "model": {"architecture": "small_fcn"},
                "loss": {"cross_entropy": 1.0},
                "epochs": 1,
                "steps_per_epoch": 1,
                "batch_size": 1,
                "crop": 64,
            },
            "incremental": {**QUICK, **changes},
        }
    )


def run(tiles, **changes):
    out = tiles.parent / "incremental.json"
    incremental.run(settings(**changes), tiles, out, tiles.parent / "work")
    return json.loads(out.read_text())


def test_a_crop_is_cut_to_a_tile(toy_tiles):
    once = {"orders": 1, "methods": ["replay"]}
    assert run(toy_tiles, crop=640, **once) == run(toy_tiles, crop=64, **once)


def test_every_method_in_two_orders(toy_tiles):
    metrics = run(toy_tiles)
    assert [o["cities"] for o in metrics["order"]] == [CITIES, CITIES[::-1]]
    for method in ("finetune", "replay", "lwf", "ewc"):
        assert set(metrics["method"][method]) == {
            "average", "average_low", "average_high", "backward", "backward_low", "backward_high",
            "forgetting", "forward",
        }  # fmt: skip
        for order in metrics["order"]:
            r = np.array(order[method]["matrix"])
            assert r.shape == (2, 2) and order[method]["backward"] == pytest.approx(
                r[1, 0] - r[0, 0]
            )
        averages = [np.array(o[method]["matrix"])[-1].mean() for o in metrics["order"]]
        assert metrics["method"][method]["average"] == pytest.approx(np.mean(averages))
    for order in metrics["order"]:  # until a second city comes all methods are one
        first = [order[m]["matrix"][0] for m in ("finetune", "replay", "lwf", "ewc")]
        assert all(line == first[0] for line in first)
    assert metrics["classes"] is None and 0 <= metrics["joint"]["average"] <= 1
    assert not any((toy_tiles.parent / "work").iterdir())


def test_what_is_measured_is_not_measured_again(toy_tiles, monkeypatch):
    whole, real, calls = run(toy_tiles), incremental.measure, []

    def stopped(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments[0])
        return real(*arguments)

    monkeypatch.setattr(incremental, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(toy_tiles)
    rest = []
    monkeypatch.setattr(incremental, "measure", lambda *a: rest.append(a[0]) or real(*a))
    assert run(toy_tiles) == whole
    assert calls == ["joint", "finetune", "replay"] and rest[0] == "lwf" and "joint" not in rest


def test_bad_input_is_one_sentence(toy_tiles):
    with pytest.raises(InputError, match="a single city"):
        run(toy_tiles, cities=["toyton"])
    write_city(toy_tiles, [("train", *toy_scene(5)), ("validation", *toy_scene(6))], "testless")
    with pytest.raises(InputError, match="testless: no test scenes"):
        run(toy_tiles, cities=[*CITIES, "testless"])
    assert not (toy_tiles.parent / "incremental.json").exists()


def test_orders_are_as_many_as_there_are():
    assert orders(["a", "b"], 5, 0) == [["a", "b"], ["b", "a"]]
    found = orders(list("abcd"), 6, 0)
    assert len({tuple(o) for o in found}) == 6 and found[:2] == [list("abcd"), list("dcba")]


def learner(method, tiles, **changes):
    s = Incremental(**{**QUICK, **changes})
    one = Learner(method, fresh(s, 3, 1), s, CPU)
    one.learn(open_cities(CITIES, tiles)[0])
    return one


def test_a_step_adds_what_its_method_is(toy_tiles):
    """Right after a city nothing has moved: the penalties are zero, and replay
    alone sees other images.
    """
    images, labels = torch.rand(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32))
    plain = learner("finetune", toy_tiles).of_step(0, images, labels)
    for method in ("lwf", "ewc"):
        one = learner(method, toy_tiles)
        assert one.of_step(0, images, labels).item() == pytest.approx(plain.item(), abs=1e-5)
        with torch.no_grad():
            for weight in one.segmenter.parameters():
                weight += 0.1
        free = one.loss(one.segmenter(images), labels)
        assert one.of_step(0, images, labels) > free + 1e-4
    one = learner("replay", toy_tiles)
    past = one.rehearsed(0, images, labels)
    assert torch.equal(past[0][:1], images[:1]) and len(past[0]) == 2
    assert any(torch.equal(past[0][1], tile) for tile in one.memory[0][0])


def test_a_paired_difference_of_the_same_network_is_nothing():
    same = (np.array([5, 2, 9]), np.array([10, 4, 11]))
    found = estimate([same], [same], 100, 0)
    assert found.value == 0 and found.error == 0
    assert estimate([same], [], 100, 0).value == pytest.approx(16 / 25)


def test_a_class_that_arrives_is_measured_by_each_method(toy_tiles):
    half = [("train", *toy_scene(i)) for i in range(2)] + [
        ("test", *toy_scene(i + 5)) for i in range(2)
    ]
    toy_tiles = toy_tiles.parent / "two classes"
    for city in CITIES:
        scenes = [
            (s, i, label * (1 + (np.arange(128) > 64)).astype(np.uint8)) for s, i, label in half
        ]
        write_city(toy_tiles, scenes, city)
        about = json.loads((toy_tiles / city / "regions.json").read_text())
        (toy_tiles / city / "regions.json").write_text(json.dumps({**about, "classes": 2}))
    classes = run(toy_tiles, methods=["finetune"])["classes"]
    assert set(classes) == {"finetune", "lwf", "mib", "joint"}
    assert len({row["before"] for row in classes.values()}) == 1
    assert all(0 <= row[key] <= 1 for row in classes.values() for key in ("before", "old", "new"))


def test_old_objects_called_background_are_punished_by_all_but_mib():
    """A network that finds the old class, and labels that call it background:
    only MiB leaves it alone.
    """
    labels = torch.tensor([[[0, 1, 2, 255]]])
    assert only(labels, [2]).tolist() == [[[0, 0, 2, 255]]] and only(labels, [1]).tolist() == [
        [[0, 1, 0, 255]]
    ]
    taught = torch.tensor([[9.0, -9.0, 9.0, 9.0], [-9.0, 9.0, -9.0, -9.0]]).view(1, 2, 1, 4)
    ideal = torch.full((1, 3, 1, 4), -9.0)
    ideal[0, [0, 1, 2, 0], 0, [0, 1, 2, 3]] = 9.0  # background, old, new
    seen = only(labels, [2])
    assert class_loss("mib", ideal, seen, taught, 1.0) < 1e-3
    for method in ("finetune", "lwf"):
        assert class_loss(method, ideal, seen, taught, 1.0) > 1


def test_a_network_with_one_more_class_draws_the_old_ones_as_before():
    s = Incremental(**QUICK)
    for architecture in ("small_fcn", "small_unet"):
        first = fresh(s.model_copy(update={"architecture": architecture}), 3, 1).eval()
        images = torch.rand(1, 3, 32, 32)
        grown = with_one_more(first)
        before, after = first(images).softmax(1), grown(images).softmax(1)
        assert grown.classes == 2 and torch.allclose(after[:, 1], before[:, 1], atol=1e-6)
