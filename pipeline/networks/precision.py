"""Where and in which number format a model runs: asked of the machine, not guessed."""

import torch

from pipeline.errors import InputError

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
    torch.backends.cudnn.flags(enabled=False).
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.nnpack.set_flags(False)


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


def autocast(on: torch.device, precision: str = "auto") -> torch.autocast:
    dtype = DTYPES[choose(precision, on)]
    return torch.autocast(on.type, dtype=dtype, enabled=dtype != torch.float32)
