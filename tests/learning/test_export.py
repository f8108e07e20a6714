import json

import numpy as np
import pytest
import torch

from pipeline import load_model
from pipeline.errors import InputError
from pipeline.learning.models import build_model, save_model
from pipeline.params import Model

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

from pipeline.learning.export import TOLERANCE, export, load_onnx, stac_item  # noqa: E402


def write_model(folder, model: Model, channels: int = 3):
    torch.manual_seed(0)
    segmenter = build_model(model, channels).eval()
    segmenter.set_normalisation([0.4] * channels, [0.2] * channels)
    save_model(
        folder,
        segmenter,
        {"model": model.model_dump(), "bands": [1, 2, 3, 4][:channels], "channels": channels,
         "classes": model.classes, "gsd": 0.5, "threshold": 0.4, "temperature": 1.5, "cities": ["here"]},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("model") / "unet", Model(architecture="small_unet", width=8), 4)
    export(folder)
    return folder


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 33, 130), (2, 7, 256)])
def test_onnx_agrees_with_torch_at_any_size(exported, size):
    batch, height, width = size
    images = torch.rand(batch, 4, height, width)
    with torch.inference_mode():
        expected = load_model(exported, "cpu").segmenter(images)
    logits = load_onnx(exported / "model.onnx")(images)
    assert logits.shape == expected.shape == (batch, 2, height, width)
    assert (logits - expected).abs().max() < TOLERANCE


def test_the_card_travels_inside_the_file_and_the_map_is_the_same(exported):
    from_onnx, from_torch = load_model(exported / "model.onnx"), load_model(exported, "cpu")
    assert from_onnx.card == from_torch.card
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 4), dtype=np.uint8)
    one, two = (m.predict(image, window=64, min_area=0) for m in (from_onnx, from_torch))
    assert (one.mask == two.mask).mean() > 0.999
    assert np.abs(one.probability - two.probability).max() < 0.005


def test_stac_item_has_what_the_extension_asks_for(exported):
    item = json.loads((exported / "item.json").read_text())
    p = item["properties"]
    assert item == stac_item(exported, p["mlm:total_parameters"])
    assert any("/mlm/v1" in e for e in item["stac_extensions"])
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output", "datetime"} <= set(p)
    assert item["type"] == "Feature" and item["geometry"] is None and "bbox" not in item
    assert p["mlm:input"][0]["bands"] == [b["name"] for b in item["assets"]["weights"]["bands"]]
    assert p["mlm:input"][0]["input"]["shape"][1] == 4 and p["mlm:output"][0]["result"]["shape"][1] == 2
    for asset in item["assets"].values():
        assert (exported / asset["href"]).is_file()
        assert ("mlm:model" in asset["roles"]) == ("mlm:artifact_type" in asset)


def test_other_files_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not protobuf")
    with pytest.raises(InputError, match="not a readable ONNX file"):
        load_onnx(tmp_path / "broken.onnx")
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "foreign.onnx"
    )
    with pytest.raises(InputError, match="foreign.onnx"):
        load_onnx(tmp_path / "foreign.onnx")
