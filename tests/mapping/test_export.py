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

from pipeline.mapping.export import (  # noqa: E402
    TOLERANCE,
    _Probabilities,
    export,
    export_deepness,
    export_page,
    export_program,
)
from pipeline.mapping.stac import stac_item  # noqa: E402
from pipeline.networks.onnx_file import load_onnx  # noqa: E402
from pipeline.tiles.tensors import to_float  # noqa: E402

LITE = Model(
    architecture="unet",
    encoder="tu-tf_efficientnet_lite0",
    encoder_weights="imagenet",
    decoder_channels=[64, 32, 16, 16],
)


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
    """https://stac-extensions.github.io/mlm/v1.6.0/schema.json, its rules for an item: required and
    refused fields, patterns and references.
    """
    item = json.loads((exported / "item.json").read_text())
    p = item["properties"]
    assert "https://stac-extensions.github.io/mlm/v1.6.0/schema.json" in item["stac_extensions"]
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= set(p)
    assert p["mlm:name"] == "small_unet" and p["mlm:tasks"] == ["semantic-segmentation"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", p["mlm:framework_version"])
    assert all(re.fullmatch("[0-9a-zA-Z_.-]+", name) for name in p["mlm:hyperparameters"])
    (source,), (result,) = p["mlm:input"], p["mlm:output"]
    assert {"name", "bands", "input"} <= set(source) and {"name", "tasks", "result"} <= set(result)
    assert "bands" not in result  # nor a dimension of that name
    for tensor, channels, axis in ((source["input"], 4, "bands"), (result["result"], 2, "class")):
        assert tensor["shape"] == [-1, channels, -1, -1] and tensor["data_type"] == "float32"
        assert tensor["dim_order"] == ["batch", axis, "height", "width"]
    # a model's bands are described in the item
    assert source["bands"] == [band["name"] for band in p["bands"]]
    assert source["value_scaling"] == [{"type": "min-max", "minimum": 0, "maximum": 255}]
    assert {"format", "expression"} <= set(result["post_processing_function"])
    assert [c["value"] for c in result["classification:classes"]] == [0, 1]
    assert all(re.fullmatch("[0-9A-Za-z-_]+", c["name"]) for c in result["classification:classes"])
    artifacts = {"mlm:artifact_type", "mlm:compile_method", "mlm:entrypoint"}  # of assets only
    assert not artifacts & set(p)
    for asset in item["assets"].values():
        models = {"mlm:artifact_type"} if "mlm:model" in asset["roles"] else set()
        assert {name for name in asset if name.startswith("mlm:")} == models
    assert sum("mlm:model" in asset["roles"] for asset in item["assets"].values()) == 2


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


@pytest.mark.parametrize(
    "model",
    [
        Model(architecture="linear"),
        Model(architecture="small_unet", width=4),
        pytest.param(LITE, marks=pytest.mark.slow),  # its "same" padding hangs on the size
    ],
    ids=lambda model: model.architecture,
)
def test_a_torch_export_program_needs_no_code_of_ours_and_gives_the_same(model, tmp_path):
    folder = write_model(tmp_path / "model", model)
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


def deepness_starts(length: int, size: int, stride: int) -> list[int]:
    """First pixels of the plugin's tiles, which end where the layer does or beyond, by black."""
    count = max(0, -(-(length - size) // stride)) + 1
    return [i * stride for i in range(count)]


def deepness(path, image: np.ndarray) -> np.ndarray:
    """The classes (H, W) that the plugin draws of a whole layer (H, W, C) uint8: its reading of the
    file, its threshold, its choice, and its tiles, each of which keeps its middle and the layer's
    sides, without the median filter that its window may add. What a last tile lacks is black: to
    the east, and to the north, as y grows northwards.
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
    size, half = about["tile_size"], about["tile_size"] * about["tiles_overlap"] // 200
    height, width = image.shape[:2]
    rows, columns = (deepness_starts(side, size, size - 2 * half) for side in (height, width))
    north, east = rows[-1] + size - height, columns[-1] + size - width
    layer = np.pad(image, ((north, 0), (0, east), (0, 0)))
    drawn = np.zeros(layer.shape[:2], int)
    for top in rows:
        for left in columns:
            tile = np.float32(layer[None, top : top + size, left : left + size] * 1.0 / 255.0)
            (result,) = session.run(None, {entry.name: tile.transpose(0, 3, 1, 2)})
            result[result < about["seg_thresh"]] = 0
            classes = (result != 0).astype(int)[:, 0] if result.shape[1] == 1 else result.argmax(1)
            # what earlier tiles drew of the overlap's first half stays
            r, c = (half if start else 0 for start in (top, left))
            drawn[top + r : top + size, left + c : left + size] = classes[0, r:, c:]
    return drawn[north:, :width]


@pytest.fixture
def in_float32(monkeypatch):
    """As the plugin computes: predict is in bfloat16 where the processor has it."""
    monkeypatch.setattr("pipeline.networks.precision.choose", lambda precision, on: "fp32")


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("classes", [1, pytest.param(2, marks=pytest.mark.slow)])
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
    assert (deepness(export_deepness(folder), image) == mask).mean() >= 0.999


def short_training(image: np.ndarray, label: np.ndarray, steps: int = 30) -> Segmenter:
    """The demo's U-Net after seconds on a scene (H, W, 3) and its label (H, W)."""
    torch.manual_seed(0)
    segmenter = build_model(LITE, 3)
    segmenter.set_normalisation([0.5] * 3, [0.5] * 3)
    optimizer = torch.optim.AdamW(segmenter.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    at = np.random.default_rng(0).integers(0, np.subtract(label.shape, 128), (steps, 8, 2))
    for corners in at:
        crops = [np.s_[row : row + 128, column : column + 128] for row, column in corners]
        x = to_float(torch.from_numpy(np.stack([image[crop] for crop in crops])))
        y = torch.from_numpy(np.stack([label[crop] for crop in crops])).long()
        loss = torch.nn.functional.cross_entropy(segmenter(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return segmenter.eval()


@pytest.mark.slow
@pytest.mark.usefixtures("in_float32")
def test_deepness_draws_a_real_scene_as_predict_does(shared_cities, tmp_path):
    """The scene is as high as a multiple of the network's stride: the plugin's tiles begin where
    the strides of predict's windows do.
    """
    with rasterio.open(shared_cities / "austin/images/austin_0.tif") as scene:
        image = np.moveaxis(scene.read([1, 2, 3]), 0, -1)[:736, :700].copy()
    with rasterio.open(shared_cities / "austin/labels/austin_0.tif") as scene:
        label = scene.read(1)[:736, :700] > 0
    card = {"model": LITE.model_dump(), "bands": [1, 2, 3], "channels": 3, "classes": 1}
    card |= {"gsd": 0.3, "threshold": 0.4, "temperature": 1.5, "cities": ["austin"]}
    save_model(tmp_path / "model", short_training(image, label), card)
    mask = load_model(tmp_path / "model", "cpu").predict(image, batch_size=1).mask
    assert ((mask > 0) & label).sum() > 0.4 * (
        (mask > 0) | label
    ).sum()  # there is a map to agree on
    assert (deepness(export_deepness(tmp_path / "model"), image) == mask).mean() >= 0.999


@pytest.mark.parametrize(("rows", "columns"), [((0, 96), (0, 96)), ((40, 96), (0, 96)),
                                               ((0, 96), (0, 50)), ((40, 96), (0, 50))])  # fmt: skip
def test_a_tile_over_the_border_is_answered_as_the_scene_is(tmp_path, rows, columns):
    segmenter = load_model(write_model(tmp_path / "m", Model(architecture="small_unet")), "cpu")
    graph, stride = _Probabilities(segmenter.segmenter).eval(), segmenter.segmenter.stride
    assert stride > 1 and 96 % stride == 0
    image, inside = torch.rand(1, 3, 96, 96) + 0.01, np.s_[:, :, slice(*rows), slice(*columns)]
    tile = torch.zeros_like(image)
    tile[inside] = image[inside]
    with torch.inference_mode():
        found, expected = graph(tile)[inside], graph(image[inside])
    north_east = np.s_[:, :, :24, -24:]  # of the tile's own sides the scene knows nothing
    assert torch.allclose(found[north_east], expected[north_east], atol=1e-4)
    assert graph(torch.zeros_like(tile)).isfinite().all()


def load_meta(path) -> dict[str, str]:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
