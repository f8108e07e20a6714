"""A training step of EfficientNet-lite0 in bf16 with its depthwise convolutions in bf16 / in float32.

    python -m benchmarks.depthwise

The steps' forward and backward passes in turns, eight crops of 128², on a CPU that multiplies bf16; the second is what
`pipeline.networks.precision` does. Elsewhere nothing is in bf16.
"""

import time
from contextlib import nullcontext

import torch
from torch.nn import functional as F

from benchmarks.ratio import arguments_of, cannot, medians, report
from pipeline.networks.models import build_model
from pipeline.networks.precision import DepthwiseInFull, choose
from pipeline.params import Model

ROUNDS, WHAT, GOAL = 8, "step in bf16 throughout / depthwise in float32", 1.1


def main() -> None:
    arguments_of(__doc__).parse_args()
    if choose("auto", torch.device("cpu")) != "bf16":
        cannot(WHAT, GOAL, "this CPU has no bf16")
    description = Model(
        architecture="unet", encoder="tu-tf_efficientnet_lite0", decoder_channels=[64, 32, 16, 16]
    )
    network = build_model(description, 3).train().to(memory_format=torch.channels_last)
    images = torch.rand(8, 3, 128, 128).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 2, (8, 128, 128))

    def step(mode) -> float:
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16), mode:
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        return time.perf_counter() - begun

    step(nullcontext()), step(DepthwiseInFull())
    pairs = [(step(nullcontext()), step(DepthwiseInFull())) for _ in range(ROUNDS)]
    narrow, ours, ratio = medians(pairs)
    report(WHAT, ratio, GOAL, f"{1000 * narrow:.0f} and {1000 * ours:.0f} ms")


if __name__ == "__main__":
    main()
