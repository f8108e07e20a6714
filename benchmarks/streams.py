"""Windows through a lite0 U-Net, two at once: in one pass of two threads / in two passes of a thread each.

    python -m benchmarks.streams

The second is how `pipeline.scoring.inference` passes them on a CPU. Alone, and beside a thread that sorts, as tracing a
map keeps a core busy; the ratio is the latter's.
"""

import threading
import time

import numpy as np
import torch

from benchmarks.ratio import arguments_of, cannot, medians, report
from pipeline.networks.folding import folded
from pipeline.networks.models import build_model
from pipeline.networks.precision import autocast
from pipeline.params import Model
from pipeline.scoring.inference import Streams, probabilities

ROUNDS, SIDE, WHAT, GOAL = 32, 512, "one pass of two windows / two passes side by side", 1.1
CPU = torch.device("cpu")


def main() -> None:
    arguments_of(__doc__).parse_args()
    if torch.get_num_threads() < 2:
        cannot(WHAT, GOAL, "one thread")
    model = Model(architecture="unet", encoder="tu-tf_efficientnet_lite0", encoder_weights=None)
    network = folded(build_model(model, 3).eval())
    images, done = torch.rand(2, 3, SIDE, SIDE), threading.Event()

    def passes(windows: list[int]) -> torch.Tensor:
        with torch.inference_mode(), autocast(CPU):
            return probabilities(network, images[windows], 1.0, False)

    def seconds(work) -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    def sort() -> None:
        while not done.is_set():
            np.sort(np.random.default_rng(0).random(2**18))

    with Streams(CPU, 2) as streams:
        ways = (lambda: passes([0, 1])), (lambda: [*streams.map(passes, [0, 1])])
        found = {}
        for beside in (False, True):
            tracing = threading.Thread(target=sort)
            if beside:
                tracing.start()
            pairs = [[seconds(way) for way in ways] for _ in range(ROUNDS)][2:]
            one, two, found[beside] = medians(pairs)
    done.set()
    tracing.join()
    report(
        WHAT,
        found[True],
        GOAL,
        f"{1000 * one:.0f} and {1000 * two:.0f} ms; alone {found[False]:.2f}",
    )


if __name__ == "__main__":
    main()
