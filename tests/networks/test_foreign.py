"""Networks of other tools: what they answer becomes logits, and what cannot be is one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import pipeline
from pipeline.errors import InputError
from pipeline.networks.foreign import load_network, load_with_gradients
from pipeline.params import load_params

ROOT = Path(__file__).parents[2]


class Bright(nn.Module):
    """Building where the mean of the channels exceeds half of what it reads: (N, 1, H, W)."""

    def __init__(self, level: float = 0.5):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, images):
        return 20 * (images.mean(1, keepdim=True) - self.level)


class Wrapped(nn.Module):
    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, images):
        return self.how(self.inner(images))


IMAGES = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("how", "about"),
    [
        (lambda z: z, {}),
        (lambda z: z.sigmoid(), {"answers": "probabilities"}),
        (lambda z: torch.cat([-z / 2, z / 2], 1), {}),
        (lambda z: torch.cat([-z, z], 1).softmax(1), {"answers": "probabilities"}),
        (lambda z: {"out": z}, {}),
        (lambda z: (z, "and more"), {}),
    ],
    ids=["logit", "probability", "logits", "probabilities", "dict", "tuple"],
)
def test_whatever_a_network_answers_the_map_is_the_same(how, about):
    model = pipeline.foreign(Wrapped(Bright(), how), **about)
    assert torch.equal(model.decide(model(IMAGES)), (IMAGES.mean(1) > 0.5).long())


def test_the_normalisation_is_taken_off_before_the_network():
    model = pipeline.foreign(Bright(0.0), mean=[0.4, 0.5, 0.6], std=[0.2])
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    assert torch.allclose(
        model(IMAGES)[:, 1:], 20 * ((IMAGES - mean) / 0.2).mean(1, keepdim=True), atol=1e-4
    )


def test_a_smaller_map_is_enlarged():
    model = pipeline.foreign(Wrapped(Bright(), lambda z: nn.functional.avg_pool2d(z, 4)))
    assert model(IMAGES).shape == (2, 2, 48, 40)


@pytest.mark.parametrize(
    ("network", "about", "says"),
    [
        (
            Wrapped(Bright(), lambda z: z.repeat(1, 3, 1, 1)),
            {},
            r"answers \(1, 3, 64, 64\) .* \(N, "
            r"2, H, W\)",
        ),
        (Wrapped(Bright(), lambda z: None), {}, "answers NoneType"),
        (nn.Conv2d(4, 2, 1), {}, "does not read 3 channels of 64 × 64 pixels"),
        (Bright(), {"sdt": [1]}, "sdt: Extra inputs"),
        (Bright(), {"mean": [0.1, 0.2]}, "one for each of 3 channels"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(network, about, says):
    with pytest.raises(InputError, match=says):
        pipeline.foreign(network, **about)


@pytest.fixture
def place(toy_tiles, monkeypatch):
    """A folder with toy tiles and a params.yaml of their cities."""
    data = load_params(ROOT / "tests/tiny.yaml").model_dump(mode="json")
    data["fetch"]["cities"] = ["toyton", "dimham"]
    data["attack"] |= {
        "tiles": 2,
        "crop": 32,
        "steps": 2,
        "apgd_steps": 2,
        "soft_iou_steps": 2,
        "patch": 0,
        "universal": False,
        "targeted": 0,
    }
    (toy_tiles.parent / "params.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.chdir(toy_tiles.parent)
    return toy_tiles


def test_a_torch_module_is_evaluated_and_attacked(place):
    """The recipe of docs/first_hour.md: a threshold of brightness finds bright buildings, and
    one of 1 finds none.
    """
    found = pipeline.evaluate(pipeline.foreign(Bright(0.5)), tiles=place)
    assert found["city"]["toyton"]["iou"] > 0.9
    assert pipeline.evaluate(pipeline.foreign(Bright(1.5)), tiles=place)["pooled"]["iou"] == 0
    row = pipeline.attack(pipeline.foreign(Bright(0.5)), tiles=place)["city"]["toyton"]["linf"]["2"]
    assert row["worst"] <= row["clean"]


def onnx_file(path: Path, network: nn.Module = None, sides=None) -> Path:
    pytest.importorskip("onnxruntime")
    dynamic = torch.export.Dim.DYNAMIC
    shape = (2, 3, *(sides or (64, 64)))
    axes = {"images": {0: dynamic} if sides else {0: dynamic, 2: dynamic, 3: dynamic}}
    program = torch.onnx.export(
        (network or Bright()).eval(), (torch.rand(shape),), input_names=["images"],
        dynamic_shapes=axes, dynamo=True, verbose=False,
    )  # fmt: skip
    program.save(path)
    return path


def test_an_onnx_file_is_evaluated_as_its_module(place, tmp_path):
    path = onnx_file(tmp_path / "bright.onnx")
    by_file = pipeline.evaluate(str(path), tiles=place)
    assert by_file == pipeline.evaluate(pipeline.foreign(Bright()), tiles=place)
    # nothing is brighter than that
    (tmp_path / "bright.json").write_text(json.dumps({"mean": [1.0]}))
    assert pipeline.evaluate(str(path), tiles=place)["pooled"]["iou"] == 0


def test_an_onnx_file_of_one_size_reads_windows_up_to_it(tmp_path):
    path = onnx_file(tmp_path / "fixed.onnx", sides=(48, 48))
    model = load_network(path)
    assert np.allclose(model(IMAGES), pipeline.foreign(Bright())(IMAGES), atol=1e-5)
    with pytest.raises(InputError, match="reads 48 × 48 pixels only; set evaluate.window to 48"):
        model(torch.rand(1, 3, 64, 64))


def test_what_has_no_gradients_or_no_network_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="answers no gradients"):
        load_with_gradients(tmp_path / "my.onnx")
    torch.save(Bright().state_dict(), tmp_path / "my.pt")
    for load in (load_network, load_with_gradients):
        with pytest.raises(InputError, match="my.pt: a pickle.*export it to ONNX"):
            load(tmp_path / "my.pt")
    (tmp_path / "bad.onnx").write_text("no graph")
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match="bad.onnx: not a readable ONNX file"):
        load_network(tmp_path / "bad.onnx")
