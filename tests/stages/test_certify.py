"""The stage on two toy cities: the schema, the sandwich, and no metrics where
an attack refutes it.
"""

import json

import pytest
import torch
from torch.nn import functional as F
from toy import toy_scene, write_city

from pipeline import params
from pipeline.certificates import ordering
from pipeline.certificates.bounds import interval_margins
from pipeline.certificates.ordering import SandwichBroken
from pipeline.errors import InputError
from pipeline.networks.decision import Decision
from pipeline.networks.models import build_model, read_model, save_model
from pipeline.params import parse_params
from pipeline.stages import certify
from pipeline.tiles.store import open_cities
from pipeline.tiles.tensors import to_tensors

CITIES = ["toyton", "dimham"]
# no road but smoothing certifies it
MODEL = {"architecture": "small_fcn", "width": 8, "activation": "minmax"}


RULE = {"temperature": 1.9, "threshold": 0.35}


def settings(model, **changes):
    return parse_params({
        "fetch": {"source": "demo", "path": "unused", "cities": CITIES},
        "tile": {"gsd": 0.5, "size": 64},
        "train": {"model": MODEL, "loss": {"cross_entropy": 1.0}, "epochs": 1, "steps_per_epoch": 1,
                  "batch_size": 1, "crop": 64},
        "certify": {
            "model": str(model), "tiles": 2, "crop": 32, "attack_steps": 4,
            "smoothing": {"sigma": [0.02, 0.05], "n0": 4, "n": 60, "batch_size": 30},
            "convex": {"radii": [0.5, 2], "steps": 60, "width": 8},
            "lipschitz": {"radii": [0.05, 0.3], "steps": 60, "width": 8, "margin": 0.1},
            **changes,
        },
    })  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Toy tiles and a small network that knows them."""
    folder = tmp_path_factory.mktemp("certify")
    for c, contrast in enumerate((110, 80)):
        splits = ["train", "train", "test"]
        scenes = [
            (split, *toy_scene(10 * c + i, contrast=contrast)) for i, split in enumerate(splits)
        ]
        write_city(folder / "tiles", scenes, CITIES[c])
    torch.manual_seed(0)
    segmenter = build_model(params.Model(**MODEL), 3)
    pairs = [to_tensors(c.sample("train", 8), "cpu") for c in open_cities(CITIES, folder / "tiles")]
    images, labels = (torch.cat(side) for side in zip(*pairs, strict=True))
    optimizer = torch.optim.Adam(segmenter.parameters(), 1e-2)
    for _ in range(60):
        loss = F.cross_entropy(segmenter(images), labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_model(
        folder / "model",
        segmenter,
        {"model": MODEL, "channels": 3, "gsd": 0.5, "classes": 1, **RULE},
    )
    return folder


def save_known(place, name, **model):
    """A model folder of another architecture, its normalisation that of the tiles, untrained."""
    torch.manual_seed(1)
    segmenter = build_model(params.Model(**model), 3)
    save_model(
        place / name, segmenter, {"model": model, "channels": 3, "gsd": 0.5, "classes": 1, **RULE}
    )
    return str(place / name)


def run(place, **changes):
    out = place / "metrics.json"
    parameters = settings(**{"model": place / "model", **changes})
    certify.run(parameters, place / "tiles", place / "models", out, place / "work")
    return json.loads(out.read_text())


def test_sandwich_of_every_method_and_city(place):
    metrics = run(place)
    assert set(metrics) == {"smoothing", "convex", "lipschitz"}
    radii = {
        "smoothing": ["0.01348", "0.03372"],
        "convex": ["0.5", "2"],
        "lipschitz": ["0.05", "0.3"],
    }
    for method, keys in radii.items():
        assert set(metrics[method]["city"]) == set(CITIES)
        for city, rows in metrics[method]["city"].items():
            assert list(rows) == keys, (method, city)
            for row in rows.values():
                assert 0 <= row["certified"] <= row["attacked"] <= row["clean"] <= 1
    assert all(row["certified"] > 0.2 for row in metrics["smoothing"]["city"]["toyton"].values())
    assert metrics["convex"]["city"]["toyton"]["0.5"]["certified"] > 0.2
    assert metrics["lipschitz"]["city"]["toyton"]["0.05"]["certified"] > 0.2
    for name in ("convex", "lipschitz"):
        card = read_model(place / "models" / "certify" / name).card
        assert card.cities == CITIES and card.metrics["collapsed"] is False
        clean = {
            city: next(iter(rows.values()))["clean"] for city, rows in metrics[name]["city"].items()
        }
        lost = [c for c in CITIES if clean[c] < 0.25 * metrics[name]["train_iou"]]
        assert metrics[name]["lost"] == (lost or None)


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("convex", {"architecture": "small_fcn", "width": 4}),
        ("convex", {"architecture": "small_unet", "width": 4}),
        ("lipschitz", {"architecture": "lipschitz", "width": 8, "group": 4}),
    ],
)
def test_the_deployed_model_is_certified_where_its_architecture_allows(
    place, monkeypatch, method, model
):
    monkeypatch.setattr(
        certify, "certifiable", lambda *_: pytest.fail("trained a network of its own")
    )
    seen, attack = [], ordering.attack
    monkeypatch.setattr(
        ordering, "attack", lambda target, *a: seen.append(target.segmenter) or attack(target, *a)
    )
    out = run(place, model=save_known(place, "deployed", **model), methods=[method])[method]
    assert out["deployed"] is True and set(out["city"]) == set(CITIES) and "train_iou" not in out
    # what is attacked is the map that is drawn
    assert all(d.decision == Decision(**RULE) for d in seen) and seen


def test_trained_networks_are_read_back(place, monkeypatch):
    before = run(place, methods=["lipschitz"])

    def never(*arguments, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr("pipeline.certificates.interval_training.train_margin", never)
    assert run(place, methods=["lipschitz"]) == before
    # radii are no part of the training
    fewer = {"radii": [0.05], "steps": 60, "width": 8, "margin": 0.1}
    rows = run(place, methods=["lipschitz"], lipschitz=fewer)["lipschitz"]["city"]["toyton"]
    assert rows == {"0.05": before["lipschitz"]["city"]["toyton"]["0.05"]}


@pytest.mark.parametrize("method", ["convex", "lipschitz", "smoothing"])
def test_an_unsound_certificate_fails_by_name_and_leaves_no_metrics(place, monkeypatch, method):
    (place / "metrics.json").write_text("what must not survive")
    match method:
        case "lipschitz":  # radii of a network believed to be 0.001-Lipschitz
            sound = ordering.lipschitz_radii
            monkeypatch.setattr(
                ordering, "lipschitz_radii", lambda u, constant, _: sound(u, constant / 1000)
            )
        case "convex":  # bounds of the centre alone

            def centre(bounds, box, **_):
                middle = (box.lower + box.upper) / 2
                return interval_margins(bounds, type(box)(middle, middle))

            monkeypatch.setattr(ordering, "interval_margins", centre)
            monkeypatch.setattr(ordering, "crown_ibp_margins", centre)
        case "smoothing":  # every pixel certified
            monkeypatch.setattr(
                ordering.smoothing.Smoothed, "certified", lambda self, *_: self.chosen
            )
    strong = {
        "convex": {"radii": [8], "steps": 60, "width": 8},
        "lipschitz": {"radii": [2], "steps": 60, "width": 8, "margin": 0.1},
        "smoothing": {"sigma": [1.0], "n0": 4, "n": 60},
    }
    with pytest.raises(SandwichBroken, match=f"{method}, (toyton|dimham)"):
        run(place, methods=[method], attack_steps=10, **{method: strong[method]})
    assert not (place / "metrics.json").exists()


def test_samples_that_can_never_certify_are_refused_before_any_work(place):
    with pytest.raises(InputError, match="set n to at least 49"):
        run(place, smoothing={"n": 48})


def test_a_collapse_is_seen_and_reported(place, monkeypatch):
    """Nothing but the worst case of a ball of 100/255: the network gives up,
    thrice, and the metrics say so.
    """
    schedule = "pipeline.certificates.interval_training.schedule"
    monkeypatch.setattr(schedule, lambda step, steps, epsilon: (100 / 255, 0.0))
    metrics = run(
        place,
        methods=["convex"],
        convex={"radii": [1], "steps": 30, "width": 4, "train_epsilon": 8},
    )
    assert metrics["convex"]["collapsed"] is True
    assert metrics["convex"]["train_budget"] == 2
