"""The registry: every architecture, any image size, and a form on disk that is data only."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import InputError
from pipeline.networks.models import (
    SMP,
    TORCHVISION,
    WindowCNN,
    build_model,
    read_model,
    save_model,
)
from pipeline.params import Model

OWN = ["linear", "window_cnn", "small_fcn", "small_unet", "lipschitz"]


def card(model: Model, channels: int) -> dict:
    return {"model": model.model_dump(), "channels": channels, "classes": model.classes, "gsd": 0.5}


@pytest.mark.parametrize("architecture", [*SMP, *OWN, "fcn_resnet50", "deeplabv3_resnet50"])
def test_logits_have_the_image_size_whatever_it_is(architecture):
    model = build_model(Model(architecture=architecture, width=8, classes=2), 3).eval()
    for shape in ((64, 64), (70, 45)):
        with torch.no_grad():
            assert model(torch.rand(1, 3, *shape)).shape == (1, 3, *shape)
    assert {*SMP, *OWN, *TORCHVISION} == set(Model.model_fields["architecture"].annotation.__args__)


@pytest.mark.parametrize(
    "encoder", ["resnet18", "resnet34", "vgg11", "vgg11_bn", "tu-mobilenetv3_small_050"]
)
def test_encoders_of_other_families_and_band_counts(encoder):
    model = build_model(Model(architecture="unet", encoder=encoder), 4).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 4, 64, 64)).shape == (1, 2, 64, 64)


def test_reasoning_by_layer_gives_the_logits_of_reasoning_by_window():
    torch.manual_seed(0)
    net = WindowCNN(3, 2, 8).double().eval()
    image = torch.rand(1, 3, 60, 50, dtype=torch.float64)
    dense = net(image)
    windows = image.unfold(2, 32, 1).unfold(3, 32, 1)  # (1, 3, rows, columns, 32, 32)
    rows, columns = windows.shape[2:4]
    logits = net.classify(windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32))
    logits = logits.T.reshape(2, rows, columns)
    torch.testing.assert_close(
        dense[0, :, 15 : 15 + rows, 15 : 15 + columns], logits, rtol=0, atol=1e-12
    )


def test_linear_segmenter_is_one_affine_map_a_pixel():
    model = build_model(Model(architecture="linear"), 3)
    assert sum(p.numel() for p in model.parameters()) == 2 * 3 + 2


@pytest.mark.parametrize("architecture", ["unet", "small_fcn", "lipschitz"])
def test_saved_and_loaded_it_gives_the_same_logits(tmp_path, architecture):
    settings = Model(architecture=architecture, width=8)
    model = build_model(settings, 3)
    model.set_normalisation([0.4, 0.5, 0.6], [0.1, 0.2, 0.3])
    save_model(tmp_path / "m", model, card(settings, 3))
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            read_model(tmp_path / "m")(image), model.eval()(image), atol=1e-4, rtol=0
        )
    assert {f.name for f in (tmp_path / "m").iterdir()} == {
        "weights.safetensors",
        "model.json",
        "README.md",
    }


def test_normalisation_lives_inside(tmp_path):
    model = build_model(Model(architecture="linear"), 3)
    x = torch.rand(1, 3, 8, 8)
    plain = model(x)
    model.set_normalisation([0.5] * 3, [0.25] * 3)
    torch.testing.assert_close(model(x * 0.25 + 0.5), plain)


def test_an_encoder_starts_from_a_file(tmp_path):
    first = build_model(Model(architecture="unet"), 3)
    save_model(tmp_path / "m", first, card(Model(architecture="unet"), 3))
    second = build_model(Model(architecture="fpn", encoder_weights=str(tmp_path / "m")), 3)
    for a, b in zip(
        first.network.encoder.parameters(), second.network.encoder.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="does not fit the encoder"):
        build_model(
            Model(architecture="fpn", encoder="resnet34", encoder_weights=str(tmp_path / "m")), 3
        )


@pytest.mark.parametrize(
    ("architecture", "shallow"),
    [("unet", [64, 32, 16, 16]), ("unet", None), ("fcn_resnet50", None)],
)
def test_an_encoder_starts_from_a_classifiers_file(tmp_path, architecture, shallow):
    from torchvision.models import resnet18, resnet50

    classifier = (resnet50 if architecture == "fcn_resnet50" else resnet18)(weights=None)
    save_file(classifier.state_dict(), tmp_path / "resnet.safetensors")
    settings = Model(
        architecture=architecture,
        decoder_channels=shallow,
        encoder_weights=str(tmp_path / "resnet.safetensors"),
    )
    weights = build_model(settings, 3).state_dict()
    for name, w in classifier.layer3.state_dict().items():
        found = [key for key in weights if key.endswith(f"layer3.{name}")]
        assert len(found) == 1 and torch.equal(weights[found[0]], w)


def test_an_architecture_without_encoder_takes_no_encoder_weights(tmp_path):
    with pytest.raises(InputError, match="has no encoder; set it to null"):
        build_model(Model(architecture="small_unet", encoder_weights=str(tmp_path)), 3)


def test_damaged_models_are_refused_with_a_sentence(tmp_path):
    settings = Model(architecture="linear")
    with pytest.raises(InputError, match="model.json: not found; run the train stage"):
        read_model(tmp_path / "m")
    save_model(tmp_path / "m", build_model(settings, 3), card(settings, 3))
    weights = tmp_path / "m" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(InputError, match="damaged weights"):
        read_model(tmp_path / "m")
    weights.write_bytes(whole)
    (tmp_path / "m" / "model.json").write_text(json.dumps(card(settings, 4)))
    with pytest.raises(InputError, match="weights do not fit"):
        read_model(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text(
        '{"model": {"architecture": "unet", "evil": 1}, "channels": 3}'
    )
    with pytest.raises(InputError, match="not a model card"):
        read_model(tmp_path / "m")


@pytest.mark.parametrize(
    "encoder",
    ["resnet18", "vgg11_bn", "efficientnet-b0", "densenet121", "tu-mobilenetv3_small_050"],
)
def test_a_shallower_encoder_has_no_idle_weights(encoder):
    model = build_model(
        Model(architecture="unet", encoder=encoder, decoder_channels=[64, 32, 16, 16]), 3
    )
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_shallower_encoder_is_a_third_of_the_weights():
    shallow = build_model(Model(architecture="unet", decoder_channels=[64, 32, 16, 16]), 3)
    deep = build_model(Model(architecture="unet"), 3)
    assert (
        sum(p.numel() for p in shallow.parameters()) < sum(p.numel() for p in deep.parameters()) / 3
    )


@pytest.mark.parametrize("architecture", [*SMP, "deeplabv3_resnet50", "lipschitz"])
def test_every_weight_is_trained(architecture):
    """Of any architecture under the shipped parameters: what has no gradient
    stops several processes.
    """
    model = build_model(
        Model(architecture=architecture, width=8, decoder_channels=[64, 32, 16, 16]), 3
    )
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "encoder,says",
    {
        "tu-resnet18d_typo": "unknown encoder 'tu-resnet18d_typo'; near it are tu-resnet18d,",
        "tu-swin_tiny_patch4_window7_224": "does not accept these settings: .*224.*; choose "
        "another encoder",
    }.items(),
)
def test_an_encoder_of_timm_is_built_or_refused_in_a_sentence(encoder, says):
    with pytest.raises(InputError, match=says):
        build_model(Model(architecture="unet", encoder=encoder), 3)
