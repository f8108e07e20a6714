"""Do not reason by window, reason by layer: the same logits, pixel by pixel or all at once.

`python -m benchmarks.window_cnn`
"""

import time

import torch

from benchmarks.ratio import arguments_of, report
from pipeline.networks.models import WindowCNN

if __name__ == "__main__":
    arguments_of(__doc__).parse_args()
    torch.manual_seed(0)
    net, side = WindowCNN(3, 2, 32).eval(), 128
    image = torch.rand(1, 3, side, side)
    with torch.inference_mode():
        net(image), net.classify(torch.rand(64, 3, 32, 32))
        start = time.perf_counter()
        dense = net(image)[0, :, 15 : side - 16, 15 : side - 16]
        by_layer = time.perf_counter() - start
        start = time.perf_counter()
        windows = (
            image.unfold(2, 32, 1).unfold(3, 32, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32)
        )
        by_window = torch.cat([net.classify(w) for w in windows.split(512)]).T.reshape(dense.shape)
        by_window_seconds = time.perf_counter() - start
    print(
        f"largest difference of the {windows.shape[0]} pixels' logits: "
        f"{(dense - by_window).abs().max():.1e}"
    )
    measured = f"{by_window_seconds:.1f} s and {1000 * by_layer:.0f} ms"
    report("seconds by window / by layer", by_window_seconds / by_layer, 10, measured)
