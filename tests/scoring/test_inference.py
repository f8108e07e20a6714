"""Scene inference: windows cover everything, blending changes nothing that is
translation-equivariant.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pipeline.networks.models import Segmenter, build_model
from pipeline.params import Model
from pipeline.scoring.inference import blend_weights, infer, window_starts
from pipeline.tiles.tensors import to_float


def pointwise(channels: int = 3, classes: int = 1) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(nn.Conv2d(channels, classes + 1, 1), channels, classes).eval()


def inferred(segmenter: Segmenter, image: np.ndarray, **options) -> np.ndarray:
    return np.concatenate([p for _, p in infer(segmenter, image, **options)])


@given(st.integers(1, 3000), st.integers(1, 600), st.floats(0, 0.89), st.sampled_from([1, 4, 32]))
def test_windows_cover_every_pixel_and_share_the_overlap(length, window, overlap, stride):
    length, window = length * stride, window * stride
    starts = window_starts(length, window, overlap, stride)
    assert starts[0] == 0 and starts[-1] == max(0, length - window)
    steps = np.diff(starts)
    assert (steps <= max(stride, window * (1 - overlap))).all() and (steps > 0).all()
    assert not np.mod(starts, stride).any()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_windows_side_by_side_are_the_map_of_one_after_another(two_threads):
    """And torch's threads are as they were, here and in threads to come."""
    image = np.random.default_rng(0).integers(1, 256, (100, 150, 3), np.uint8)
    model = build_model(Model(architecture="small_unet", width=4), 3).eval()
    names: set[str] = set()
    model.register_forward_hook(lambda *_: names.add(threading.current_thread().name))
    options = {"window": 32, "precision": "fp32"}
    one = inferred(model, image, batch_size=1, **options)
    assert names == {threading.current_thread().name}
    two = inferred(model, image, batch_size=4, **options)
    assert len(names - {threading.current_thread().name}) == 2
    np.testing.assert_array_equal(one, two)
    with ThreadPoolExecutor(1) as pool:
        assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 2


def test_what_a_window_raises_is_raised(two_threads):
    class Broken(nn.Module):
        def forward(self, x):
            raise MemoryError("no more")

    segmenter = Segmenter(Broken(), 3, 1).eval()
    with pytest.raises(MemoryError, match="no more"):
        inferred(segmenter, np.zeros((64, 200, 3), np.uint8), window=32)


def test_blend_weights_are_nowhere_zero():
    assert blend_weights(512, 300).min() > 0


@pytest.mark.parametrize("shape", [(50, 70), (64, 64), (200, 130), (65, 300)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_a_translation_equivariant_model_gives_the_same_tiled_and_whole(shape, overlap):
    image = np.random.default_rng(0).integers(1, 256, (*shape, 3), np.uint8)
    model = pointwise(classes=2)
    whole = (
        model(to_float(torch.from_numpy(image)[None])).softmax(1)[0].movedim(0, -1).detach().numpy()
    )
    tiled = inferred(model, image, window=64, overlap=overlap, precision="fp32")
    assert tiled.shape == (*shape, 3)
    np.testing.assert_allclose(tiled, whole, atol=2e-6)


class Blocks(nn.Module):
    """What an encoder of stride 32 knows of a pixel, without its borders: the
    mean of the block it lies in.
    """

    def forward(self, x):
        mean = F.interpolate(F.avg_pool2d(x, 32), scale_factor=32)
        return torch.cat([-mean[:, :1], mean[:, :1]], 1)


@pytest.mark.parametrize("shape", [(200, 130), (97, 300), (20, 64)])
@pytest.mark.parametrize(("window", "overlap"), [(64, 0.25), (96, 0.5), (100, 0.0), (512, 0.25)])
def test_windows_begin_where_the_networks_strides_do(shape, window, overlap):
    image = np.random.default_rng(0).integers(1, 256, (*shape, 3), np.uint8)
    model = Segmenter(Blocks(), 3, 1, stride=32).eval()
    whole = model(to_float(torch.from_numpy(image)[None])).softmax(1)[0].movedim(0, -1).numpy()
    tiled = inferred(model, image, window=window, overlap=overlap, precision="fp32")
    np.testing.assert_allclose(tiled, whole, atol=2e-6)


def test_a_unet_changes_little_with_the_window_on_a_real_city(shared_cities):
    """Of given weights: their windows begin where the encoder's strides do, so that another size
    moves the map far less than another phase of the strides, which begins half a stride aside.
    """
    with rasterio.open(shared_cities / "austin" / "images" / "austin_0.tif") as scene:
        image = np.moveaxis(scene.read(window=((0, 512), (0, 512))), 0, -1)
    torch.manual_seed(0)
    segmenter = build_model(
        Model(architecture="unet", encoder="resnet18", decoder_channels=[64, 32, 16, 8]), 3
    )
    segmenter.set_normalisation([0.4] * 3, [0.2] * 3)
    for layer in segmenter.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a single look gives the statistics
    with torch.no_grad():
        segmenter(to_float(torch.from_numpy(image[None, :256, :256].copy())))
    one, other = (inferred(segmenter.eval(), image, window=w, precision="fp32") for w in (256, 512))
    aside = inferred(segmenter, image[16:, 16:], window=256, precision="fp32")
    assert one[..., 1].std() > 0.1  # there is something to disagree about
    assert np.abs(one - other).mean() < 0.4 * np.abs(one[16:, 16:] - aside).mean()


def test_bands_follow_each_other_without_gaps():
    image = np.random.default_rng(0).integers(1, 256, (230, 90, 3), np.uint8)
    row = 0
    for top, p in infer(pointwise(), image, window=64, overlap=0.3, precision="fp32"):
        assert top == row
        row += len(p)
    assert row == 230


def test_only_one_band_of_the_scene_is_read_at_a_time():
    class Scene:
        shape = (1000, 64, 3)
        tallest = 0

        def __getitem__(self, rows):
            Scene.tallest = max(Scene.tallest, rows.stop - rows.start)
            return np.full((min(rows.stop, 1000) - rows.start, 64, 3), 7, np.uint8)

    assert sum(len(p) for _, p in infer(pointwise(), Scene(), window=64, precision="fp32")) == 1000
    assert Scene.tallest == 64


def test_windows_without_data_are_background_and_black_ones_are_not():
    image, asked = np.zeros((100, 130, 3), np.uint8), set()

    def empty(rows: slice, columns: slice) -> bool:
        asked.add((rows.start, rows.stop, columns.start))
        return rows.start == columns.start == 0

    everywhere = inferred(pointwise(), image, window=64, overlap=0, precision="fp32")[0, 0, 0]
    found = inferred(pointwise(), image, window=64, overlap=0, precision="fp32", empty=empty)[
        ..., 0
    ]
    assert {(0, 64, 0), (36, 100, 66)} <= asked
    assert (found[:36, :33] == 1).all() and 0.1 < everywhere < 0.9  # up to the next windows
    np.testing.assert_allclose(found[64:], everywhere, atol=1e-6)


def test_the_eight_symmetries_average_out_a_direction():
    class Gradient(nn.Module):
        def forward(self, x):  # building probability grows to the right
            ramp = torch.linspace(-3, 3, x.shape[-1]).expand(x.shape[0], 1, *x.shape[-2:])
            return torch.cat([-ramp, ramp], 1)

    p = inferred(
        Segmenter(Gradient(), 3, 1), np.full((64, 64, 3), 9, np.uint8), window=64, augment=True
    )
    for other in (p[::-1], p[:, ::-1], p.transpose(1, 0, 2)):
        np.testing.assert_allclose(p, other, atol=1e-6)


def test_every_view_comes_back_upright():
    """A model of single pixels does not see the symmetries at all: on an image that none of
    them maps to itself.
    """
    image = np.random.default_rng(0).integers(1, 256, (40, 64, 3), np.uint8)
    once, eight = (
        inferred(pointwise(), image, window=64, augment=a, precision="fp32") for a in (False, True)
    )
    np.testing.assert_allclose(once, eight, atol=1e-6)
