"""What is proven of a scene's map is what predict draws there, however its pixels are moved
within the radius.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from pipeline.certificates.bounds import ABSTAIN
from pipeline.errors import InputError
from pipeline.mapping.proven import proven_classes, window_of
from pipeline.networks.decision import Decision
from pipeline.networks.models import Segmenter, build_model, save_model
from pipeline.params import Model, Predict, load_params
from pipeline.scoring.inference import infer
from pipeline.stages import certify_scene, predict

TINY = Path(__file__).parents[1] / "tiny.yaml"
RULE = {"temperature": 1.9, "threshold": 0.35}
WINDOW = {"window": 32, "overlap": 0.25, "polygons": "none", "min_area": 0}


def save(folder: Path, scene: np.ndarray, architecture: str, **model) -> Path:
    """A model, untrained, whose biases are moved until it draws half of the scene as buildings."""
    torch.manual_seed(0)
    description = Model(architecture=architecture, **model)
    segmenter = build_model(description, 3).eval().requires_grad_(False)
    card = {
        "model": description.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
        **RULE,
    }
    segmenter.decision = Decision(**RULE)
    logits = segmenter.deployed()(torch.from_numpy(scene).movedim(-1, 0)[None] / 255)
    lead = (logits[:, 1] - logits[:, 0]).median()
    if architecture == "lipschitz":
        segmenter.network.out.bias.data -= lead / math.sqrt(2)
    else:
        [m for m in segmenter.modules() if isinstance(m, torch.nn.Conv2d)][-1].bias.data[1] -= lead
    save_model(folder, segmenter, card)
    return folder


def write(path: Path, image: np.ndarray, **profile) -> Path:
    shape = {"height": image.shape[0], "width": image.shape[1], "count": 3, "dtype": "uint8"}
    place = {"crs": "EPSG:32632", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 6_650_000)}
    with rasterio.open(path, "w", driver="GTiff", **shape, **(place | profile)) as file:
        file.write(np.moveaxis(image, -1, 0))
    return path


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


@pytest.fixture
def scene():
    """(42, 58, 3) uint8: no multiple of a stride, more than a window."""
    random = np.random.default_rng(0)
    patches = np.kron(random.integers(30, 220, (6, 8, 3)), np.ones((8, 8, 1)))[:42, :58]
    return np.clip(patches + random.integers(-3, 4, patches.shape), 2, 253).astype(np.uint8)


def settings(model: Path, **certify):
    base = load_params(TINY)
    changed = {
        "model": str(model),
        "smoothing": {"sigma": [0.02], "n0": 8, "n": 60, "alpha": 0.01},
        **certify,
    }
    return type(base).model_validate(
        {**base.model_dump(), "certify": {**base.certify.model_dump(), **changed},
         "predict": {**base.predict.model_dump(), **WINDOW}}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "method", "radius"),
    [({"architecture": "small_fcn", "width": 4}, "convex", 1.0),
     ({"architecture": "lipschitz", "width": 8}, "lipschitz", 0.05)],
)  # fmt: skip
def test_what_is_proven_is_drawn_whatever_moves_the_pixels(tmp_path, scene, model, method, radius):
    params = settings(save(tmp_path / "model", scene, **model))
    certify_scene.run(
        params, str(write(tmp_path / "town.tif", scene)), tmp_path / "out", radius=radius
    )
    record = json.loads((tmp_path / "out" / "town.certified.json").read_text())
    proven = read(tmp_path / "out" / "town.certified.tif")
    known = proven < 254
    assert record["method"] == method and record["threshold"] == RULE["threshold"]
    assert record["share"] == pytest.approx(known.mean(), abs=1e-4) and 0.02 < record["share"] < 1
    random = np.random.default_rng(1)
    # ±1/255 a value where the ball is that large, else one value of one pixel by 12/255
    for _ in range(3):
        moved = scene + random.choice([-1, 1], scene.shape)
        if method == "lipschitz":
            moved = scene.astype(int)
            moved[tuple(random.integers(0, side) for side in scene.shape)] -= 12
        name = f"moved{random.integers(1e9)}"
        write(tmp_path / f"{name}.tif", np.clip(moved, 0, 255).astype(np.uint8))
        predict.run(
            tmp_path / "model",
            [str(tmp_path / f"{name}.tif")],
            tmp_path / "maps",
            settings=params.predict,
        )
        assert (read(tmp_path / "maps" / f"{name}.tif") == proven)[known].all()


@pytest.mark.parametrize(
    ("architecture", "width", "radius", "metres"),  # a pixel; the model's is 0.5
    [
        ("small_fcn", 4, 1.0, 0.5),
        ("lipschitz", 8, 0.01, 0.5),
        ("lipschitz", 8, 0.01, 0.4),
        ("lipschitz", 8, 0.01, 0.6),
    ],
)
def test_predict_draws_what_it_says_is_proven(tmp_path, scene, architecture, width, radius, metres):
    folder = save(tmp_path / "model", scene, architecture, width=width)
    place = {"transform": Affine(metres, 0, 500_000, 0, -metres, 6_650_000)}
    town = write(tmp_path / "town.tif", scene, **place)
    asked = Predict(**WINDOW, certified=True, radius=radius)
    predict.run(folder, [str(town)], tmp_path / "maps", settings=asked)
    about = json.loads((tmp_path / "maps" / "town.json").read_text())["certified"]
    proven, drawn = (
        read(tmp_path / "maps" / "town.certified.tif"),
        read(tmp_path / "maps" / "town.tif"),
    )
    known = proven < 254
    assert about["share"] == pytest.approx(known.mean()) and 0.002 < about["share"] < 1
    assert (proven == drawn)[known].all()
    if metres == 0.5:  # as certify --scene finds it
        params = settings(folder)
        certify_scene.run(params, str(town), tmp_path / "out", radius=asked.radius)
        assert (read(tmp_path / "out" / "town.certified.tif") == proven).all()
    # finished: nothing is certified again
    predict.run(folder, [str(town)], tmp_path / "maps", settings=asked)


def test_what_is_proven_is_drawn_in_the_arithmetic_of_its_proof(tmp_path, scene, monkeypatch):
    """Before anything is certified too: no TF32, no cuDNN, whose sums have no bound."""
    cudnn, seen = torch.backends.cudnn, []
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    folder = save(tmp_path / "model", scene, "small_fcn", width=4)
    town = write(tmp_path / "town.tif", scene)
    forward = Segmenter.forward

    def watched(self, *images, **options):
        seen.append((cudnn.enabled, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return forward(self, *images, **options)

    monkeypatch.setattr(Segmenter, "forward", watched)
    predict.run(folder, [str(town)], tmp_path / "maps", settings=Predict(**WINDOW))
    assert set(seen) == {(False, False, False)} and cudnn.enabled


@pytest.mark.parametrize("threshold", [0.5, 0.99, 0.9999])
def test_a_proof_outlasts_the_rounding_of_probabilities(threshold):
    """Of nets whose margin is as near to the threshold as float32 tells apart: what is proven is
    drawn, though near 1 a probability has few digits left.
    """
    segmenter = build_model(Model(architecture="small_fcn", width=2), 1).eval()
    for weight in segmenter.requires_grad_(False).parameters():
        weight.zero_()
    segmenter.decision = Decision(threshold=threshold)
    image, settings = np.zeros((40, 40, 1), np.uint8), Predict(window=32, overlap=0.25)
    step, proven = 4 * 2.0**-24 / (1 - threshold), 0
    for k in range(24):
        segmenter.network[-1].bias[1] = segmenter.decision.shift + k * step
        classes = proven_classes(segmenter, image, settings, window_of(segmenter, "convex", 1.0))
        bands = infer(segmenter, image, window=32, overlap=0.25, precision="fp32")
        drawn = segmenter.decision.of_probabilities(np.concatenate([p[..., 1:] for _, p in bands]))
        assert (drawn == 1)[classes == 1].all()
        proven += bool((classes == 1).any())
    assert 0 < proven < 24


def test_predict_says_which_models_prove_their_maps(tmp_path, scene):
    town, folder = (
        str(write(tmp_path / "town.tif", scene)),
        save(tmp_path / "model", scene, "linear"),
    )
    with pytest.raises(InputError, match="architecture linear, of whose map nothing is proven"):
        predict.run(folder, [town], tmp_path / "maps", settings=Predict(**WINDOW, certified=True))
    assert not (tmp_path / "maps").exists()


def test_a_pixel_is_proven_where_every_window_and_turn_proves_the_same(scene):
    segmenter, turned = (
        build_model(Model(architecture="linear"), 3),
        Predict(window=32, augment=True),
    )

    def bright(image, stretch):
        return (image[0, 0] > 0.5).long()

    assert (proven_classes(segmenter, scene, turned, bright) == (scene[..., 0] > 127)).all()
    calls = []

    def contrary(image, stretch):
        calls.append(image)
        return torch.full(image.shape[-2:], int(len(calls) == 3))

    assert (proven_classes(segmenter, scene[:32, :32], turned, contrary) == ABSTAIN).all() and len(
        calls
    ) == 8


def test_an_edge_that_is_repeated_stretches_a_perturbation(scene):
    """(42, 58) of a stride of 4: two rows and two columns are put on, a corner
    then counts nine times.
    """
    segmenter, seen = build_model(Model(architecture="lipschitz", width=4), 3), []

    def window(image, stretch):
        seen.append(stretch)
        return torch.zeros(image.shape[-2:], dtype=torch.int64)

    proven_classes(segmenter, scene, Predict(window=64), window)
    assert seen == [pytest.approx(3)]


def test_smoothing_certifies_any_model_and_no_data_stays_so(tmp_path, scene):
    scene[:, :10] = 0
    town = write(tmp_path / "town.tif", scene, nodata=0)
    model = save(tmp_path / "model", scene, "small_fcn", width=6, activation="minmax")
    certify_scene.run(settings(model), str(town), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "town.certified.json").read_text())
    proven = read(tmp_path / "out" / "town.certified.tif")
    assert (proven[:, :10] == 255).all() and (proven[:, 10:] != 255).all()
    assert (
        record["method"] == "smoothing"
        and record["confidence"] == 0.99
        and record["pixels"] == 42 * 48
    )
    certify_scene.run(settings(model), str(town), tmp_path / "again")  # its noise is of a seed
    assert (read(tmp_path / "again" / "town.certified.tif") == proven).all()


def test_what_cannot_be_certified_is_refused_before_any_work(tmp_path, scene):
    town = str(write(tmp_path / "town.tif", scene))
    params = settings(save(tmp_path / "model", scene, "linear"))
    with pytest.raises(InputError, match="architecture is linear; choose smoothing"):
        certify_scene.run(params, town, tmp_path / "out", method="convex")
    with pytest.raises(InputError, match="sigma and tau"):
        certify_scene.run(params, town, tmp_path / "out", radius=0.1)
    fcn = settings(save(tmp_path / "fcn", scene, "small_fcn", width=4))
    with pytest.raises(InputError, match="a radius above 0"):
        certify_scene.run(fcn, town, tmp_path / "out", radius=-1.0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "town.certified.tif").write_text("mine")
    with pytest.raises(InputError, match="would be overwritten"):
        certify_scene.run(fcn, town, tmp_path / "out")
    assert (tmp_path / "out" / "town.certified.tif").read_text() == "mine"
