"""Where and in which number format a model runs: asked of the machine, not guessed."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.errors import InputError

Network = TypeVar("Network", bound=nn.Module)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def direct_sums() -> None:
    """From now on a float32 convolution of this process is a sum of its products, whose rounding
    has a bound: no TF32, and no Winograd or FFT by NNPACK. cuDNN has both and no switch for them:
    `without_cudnn`.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.nnpack.set_flags(False)


@contextmanager
def without_cudnn() -> Generator[None]:
    with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
        yield


def choose(precision: str, on: torch.device) -> str:
    """'auto' becomes bf16 where the hardware multiplies it natively (AMX,
    AVX512-BF16, Ampere), else fp32.
    """
    if precision == "fp16" and on.type == "cpu":
        raise InputError("precision fp16 needs a GPU; use auto, bf16 or fp32 on this machine")
    if precision != "auto":
        return precision
    if on.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


@contextmanager
def autocast(on: torch.device, precision: str = "auto") -> Generator[None]:
    """Mixed precision, as `choose` says, for what is computed within."""
    dtype = DTYPES[choose(precision, on)]
    mixed = torch.autocast(on.type, dtype=dtype, enabled=dtype != torch.float32)
    narrow = (on.type, dtype) == ("cpu", torch.bfloat16)
    with mixed, depthwise_in_full() if narrow else nullcontext():
        yield


def depthwise_in_full() -> AbstractContextManager:
    """Of a pass that may be differentiated; the mode itself costs a call of Python an operation."""
    return nullcontext() if torch.is_inference_mode_enabled() else DepthwiseInFull()


class DepthwiseInFull(TorchFunctionMode):
    """Depthwise convolutions in float32 where gradients will be asked for: on a CPU their
    backward pass in bf16 takes oneDNN up to twenty times as long (`python -m benchmarks depthwise`).
    """

    def __torch_function__(self, func, types, args: tuple = (), kwargs=None):
        groups = args[6] if func is F.conv2d and len(args) > 6 else 1
        if groups == 1 or not torch.is_grad_enabled():
            return func(*args, **kwargs or {})
        images, weight, *others = args
        with torch.autocast("cpu", enabled=False):
            return func(images.float(), weight.float(), *others, **kwargs or {})


def channels_last(network: Network) -> Network:
    """The same network, its weights laid out as convolutions are fastest."""
    return network.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]  # PyTorch's omission
