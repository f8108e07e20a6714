"""Mixed precision on a CPU: a depthwise convolution that will be differentiated stays in float32."""

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.networks.precision import autocast

CPU = torch.device("cpu")


def layers() -> tuple[nn.Conv2d, nn.Conv2d, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 3), torch.rand(2, 6, 9, 9)


def test_depthwise_is_float32_where_gradients_are_asked_for_and_dense_is_not():
    depthwise, dense, images = layers()
    with autocast(CPU, "bf16"):
        wide, narrow = depthwise(images), dense(images)
        with torch.no_grad():
            quick = depthwise(images)
    assert torch.equal(wide, depthwise(images)) and wide.dtype == torch.float32
    assert narrow.dtype == quick.dtype == torch.bfloat16
    assert torch.equal(torch.autograd.grad(wide.sum(), depthwise.weight)[0],
                       torch.autograd.grad(depthwise(images).sum(), depthwise.weight)[0])  # fmt: skip


def test_of_bf16_inputs_too_and_however_the_function_is_called():
    depthwise, _, images = layers()
    with autocast(CPU, "bf16"):
        of_narrow = depthwise(images.bfloat16())
        assert F.conv2d(images, depthwise.weight[:, :1].expand(6, 6, 3, 3)).dtype == torch.bfloat16
    assert torch.equal(of_narrow, depthwise(images.bfloat16().float()))


def test_float32_is_left_alone():
    depthwise, dense, images = layers()
    with autocast(CPU, "fp32"):
        assert torch.equal(dense(images), F.conv2d(images, dense.weight, dense.bias))
        assert depthwise(images).dtype == torch.float32
