import json
import re
from datetime import datetime
from typing import get_args

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from pipeline import load_model
from pipeline.errors import InputError
from pipeline.networks.card import Card
from pipeline.networks.models import SMP, Segmenter, build_model, save_model
from pipeline.params import Model

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

from pipeline.mapping.export import TOLERANCE, export, export_deepness, export_page, export_program  # noqa: E402
from pipeline.mapping.stac import stac_item  # noqa: E402
from pipeline.networks.onnx_file import load_onnx  # noqa: E402


def write_model(folder, model: Model, channels: int = 3):
    torch.manual_seed(0)
    segmenter = build_model(model, channels).eval()
    segmenter.set_normalisation([0.4] * channels, [0.2] * channels)
    save_model(
        folder,
        segmenter,
        {
            "model": model.model_dump(),
            "bands": [1, 2, 3, 4][:channels],
            "channels": channels,
            "classes": model.classes,
            "gsd": 0.5,
            "threshold": 0.4,
            "temperature": 1.5,
            "cities": ["here"],
        },
    )
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = write_model(
        tmp_path_factory.mktemp("model") / "unet", Model(architecture="small_unet", width=8), 4
    )
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


def test_a_network_that_torch_cannot_export_is_one_sentence(tmp_path, monkeypatch):
    class Undecided(torch.nn.Module):
        def forward(self, x):
            return x[:, :2] if x.sum() > 0 else -x[:, :2]  # a branch on the values of an image

    segmenter = Segmenter(Undecided(), channels=3, classes=1)
    segmenter.card = Card.model_construct(channels=3)
    monkeypatch.setattr("pipeline.mapping.export.read_model", lambda folder: segmenter)
    with pytest.raises(InputError, match="cannot be exported by torch.export"):
        export_program(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_card_that_names_no_bands_means_the_first(tmp_path):
    folder = write_model(tmp_path / "unet", Model(architecture="linear"))
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(
        json.dumps({key: value for key, value in about.items() if key != "bands"})
    )
    model = stac_item(folder, 9)["properties"]
    assert model["mlm:input"][0]["bands"] == ["B1", "B2", "B3"]
    scene = tmp_path / "scene.tif"
    with rasterio.open(
        scene,
        "w",
        driver="GTiff",
        width=32,
        height=32,
        count=3,
        dtype="uint8",
        crs="EPSG:32633",
        transform=Affine(0.5, 0, 4e5, 0, -0.5, 5e6),
    ) as dataset:
        dataset.write(np.full((3, 32, 32), 100, np.uint8))
    assert load_model(folder).predict(scene).mask.shape == (32, 32)


def test_the_card_travels_inside_the_file_and_the_map_is_the_same(exported):
    from_onnx, from_torch = load_model(exported / "model.onnx"), load_model(exported, "cpu")
    assert from_onnx.card == from_torch.card
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 4), dtype=np.uint8)
    one, two = (m.predict(image, window=64, min_area=0) for m in (from_onnx, from_torch))
    assert (one.mask == two.mask).mean() > 0.999
    assert np.abs(one.probability - two.probability).max() < 0.005


def test_the_stac_item_has_what_the_item_specification_asks_for(exported):
    """https://github.com/radiantearth/stac-spec, item-spec 1.1: the required fields, and that
    of a null geometry.
    """
    item = json.loads((exported / "item.json").read_text())
    assert item == stac_item(exported, item["properties"]["mlm:total_parameters"])
    assert {"type", "stac_version", "id", "geometry", "properties", "links", "assets"} <= set(item)
    assert (item["type"], item["stac_version"], item["links"]) == ("Feature", "1.1.0", [])
    assert item["geometry"] is None and "bbox" not in item  # a box belongs to a geometry only
    assert datetime.fromisoformat(item["properties"]["datetime"]).tzinfo
    for asset in item["assets"].values():
        assert (exported / asset["href"]).is_file()


def test_the_stac_item_has_what_the_model_extension_asks_for(exported):
    """https://github.com/stac-extensions/mlm, json-schema/schema.json: required fields,
    patterns and references.
    """
    item = json.loads((exported / "item.json").read_text())
    p = item["properties"]
    assert any(
        e.startswith("https://stac-extensions.github.io/mlm/v1.") for e in item["stac_extensions"]
    )
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= set(p)
    assert p["mlm:name"] == "small_unet" and p["mlm:tasks"] == ["semantic-segmentation"]
    (source,), (result,) = p["mlm:input"], p["mlm:output"]
    assert {"name", "bands", "input"} <= set(source) and {"name", "tasks", "result"} <= set(result)
    for tensor, channels, axis in ((source["input"], 4, "bands"), (result["result"], 2, "class")):
        assert tensor["shape"] == [-1, channels, -1, -1] and tensor["data_type"] == "float32"
        assert tensor["dim_order"] == ["batch", axis, "height", "width"]
    # a model's bands are described in the item
    assert source["bands"] == [band["name"] for band in p["bands"]]
    assert source["value_scaling"] == [{"type": "min-max", "minimum": 0, "maximum": 255}]
    assert {"format", "expression"} <= set(result["post_processing_function"])
    assert [c["value"] for c in result["classification:classes"]] == [0, 1]
    assert all(re.fullmatch("[0-9A-Za-z-_]+", c["name"]) for c in result["classification:classes"])
    models = [asset for asset in item["assets"].values() if "mlm:model" in asset["roles"]]
    assert len(models) == 2 and all(asset["mlm:artifact_type"] for asset in models)


@pytest.mark.parametrize("architecture", get_args(Model.model_fields["architecture"].annotation))
def test_every_architecture_has_a_name_that_the_extension_takes(tmp_path, architecture):
    card = {
        "model": Model(architecture=architecture).model_dump(),
        "bands": [1],
        "channels": 1,
        "classes": 1,
        "gsd": 1,
    }
    (tmp_path / "model.json").write_text(json.dumps(card))
    (tmp_path / "weights.safetensors").touch()
    name = stac_item(tmp_path, 1)["properties"]["mlm:name"]
    assert re.fullmatch("[a-zA-Z][a-zA-Z0-9_.-]+[a-zA-Z0-9]", name)
    assert ("resnet18" in name) == (architecture in SMP)


def test_other_files_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not protobuf")
    with pytest.raises(InputError, match="not a readable ONNX file"):
        load_onnx(tmp_path / "broken.onnx")
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]),
        tmp_path / "foreign.onnx",
    )
    with pytest.raises(InputError, match="foreign.onnx"):
        load_onnx(tmp_path / "foreign.onnx")


@pytest.mark.parametrize("architecture", ["linear", "small_unet"])
def test_a_torch_export_program_needs_no_code_of_ours_and_gives_the_same(architecture, tmp_path):
    folder = write_model(tmp_path / "model", Model(architecture=architecture, width=4))
    path, card = export_program(folder), {"model.json": ""}
    program = torch.export.load(path, extra_files=card)
    images = torch.rand(3, 3, 45, 70)
    with torch.inference_mode():
        expected = load_model(folder, "cpu").segmenter(images)
    assert torch.allclose(program.module()(images), expected, atol=TOLERANCE)
    assert json.loads(card["model.json"])["gsd"] == 0.5


def test_the_page_of_the_hub_has_the_measured_cities(tmp_path):
    folder = write_model(tmp_path / "model", Model(architecture="linear"))
    metrics = {
        "pooled": {"iou": 0.61},
        "city": {"here": {"iou": 0.612, "iou_low": 0.5, "iou_high": 0.7}, "desert": {"iou": None}},
    }
    (tmp_path / "evaluate.json").write_text(json.dumps(metrics))
    text = export_page(folder, tmp_path / "evaluate.json").read_text()
    assert (
        "| here | 0.612 | 0.50–0.70 |" in text and "| desert | none: nothing to measure |" in text
    )
    assert "value: 0.61\n" in text
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="other.json: holds no metrics of the evaluate stage"):
        export_page(folder, tmp_path / "other.json")
    assert folder.joinpath("README.md").read_text() == text


def deepness(path, image: np.ndarray) -> np.ndarray:
    """The classes (H, W) that the plugin draws of an image (H, W, C) uint8: its reading of the
    file, its tiles, each of which keeps its middle, its threshold and its choice, without the
    median filter that its window may add.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    about = {
        name: json.loads(value)
        for name, value in session.get_modelmeta().custom_metadata_map.items()
    }
    (entry,), (output,) = session.get_inputs(), session.get_outputs()
    assert (
        about["model_type"].capitalize() == "Segmentor"
        and entry.shape[2] == entry.shape[3] == about["tile_size"]
    )
    assert len(output.shape) == 4 and output.shape[2] == output.shape[3]
    names = [
        name for _, name in sorted(about["class_names"].items(), key=lambda item: int(item[0]))
    ]
    assert len(names) == max(2, output.shape[1])
    size, trim = about["tile_size"], about["tile_size"] * about["tiles_overlap"] // 200
    height, width = image.shape[:2]
    step = size - 2 * trim
    tall, wide = (trim + -(-side // step) * step + trim for side in (height, width))
    padded = np.zeros((tall, wide, image.shape[2]), np.uint8)
    padded[trim : trim + height, trim : trim + width] = image
    drawn = np.zeros((tall, wide), int)
    for top in range(0, tall - size + 1, step):
        for left in range(0, wide - size + 1, step):
            tile = np.float32(
                padded[None, top : top + size, left : left + size] * 1.0 / 255.0
            ).transpose(0, 3, 1, 2)
            (result,) = session.run(None, {entry.name: tile})
            result[result < about["seg_thresh"]] = 0
            classes = (result != 0).astype(int)[:, 0] if result.shape[1] == 1 else result.argmax(1)
            inner = slice(trim, size - trim)
            drawn[top + trim : top + size - trim, left + trim : left + size - trim] = classes[0][
                inner, inner
            ]
    return drawn[trim : trim + height, trim : trim + width]


@pytest.mark.parametrize("classes", [1, 2])
def test_deepness_draws_what_predict_draws(tmp_path, classes):
    folder = write_model(
        tmp_path / "fcn", Model(architecture="small_fcn", width=8, classes=classes)
    )
    path = export_deepness(folder)
    about = {k: json.loads(v) for k, v in load_meta(path).items()}
    assert about["resolution"] == 50 and about["tiles_overlap"] == 25
    image = (
        np.random.default_rng(0)
        .integers(0, 256, (40, 45, 3), dtype=np.uint8)
        .repeat(16, 0)
        .repeat(16, 1)
    )
    predictor = load_model(folder, "cpu")
    probability = predictor.predict(image, threshold=0.01).probability.sum(-1)
    threshold = float(np.quantile(probability, 0.6))  # so that there is something to tell apart
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | {"threshold": threshold}))
    mask = load_model(folder, "cpu").predict(image).mask
    assert 0.2 < (mask > 0).mean() < 0.6
    inside = np.s_[32:-32, 32:-32]  # the plugin pads a scene with black, predict repeats its edge
    assert (deepness(export_deepness(folder), image)[inside] == mask[inside]).mean() >= 0.999


def load_meta(path) -> dict[str, str]:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
