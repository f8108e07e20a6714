"""The share of a map's pixels that change with the inference window (goal ≤ 0.5 %).

    python -m benchmarks.seams MODEL SCENE…

Windows of 256, 512 and 1024 pixels, compared two by two over all scenes, in the
mask on the scenes' own grids.
"""

import itertools

import numpy as np

from benchmarks.ratio import arguments_of
from pipeline import load_model

WINDOWS = (256, 512, 1024)

if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    arguments.add_argument("model")
    arguments.add_argument("scenes", nargs="+", metavar="SCENE")
    options = arguments.parse_args()
    model, scenes = load_model(options.model), options.scenes
    differ, pixels = dict.fromkeys(itertools.combinations(WINDOWS, 2), 0), 0
    for scene in scenes:
        masks = {
            window: model.predict(scene, window=window, polygons="none").mask for window in WINDOWS
        }
        pixels += masks[WINDOWS[0]].size
        for pair in differ:
            differ[pair] += np.count_nonzero(masks[pair[0]] != masks[pair[1]])
    for (one, other), count in differ.items():
        print(
            f"{one} against {other}: {count / pixels:.3%} of {pixels / 1e6:.1f} Mpx differ (goal "
            f"≤ 0.5 %)"
        )
