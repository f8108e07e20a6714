"""Map buildings from the air: `load_model(path).predict(image)`.

A network of your own: `evaluate(foreign(module))`, `attack(foreign(module))`.

The stages are the verbs of `python -m pipeline`.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.mapping.predictor import Predictor

# Before torch starts its threads: between two layers they wait for each other some microseconds
# awake, which makes a step 1.5 times as fast, and then sleep, because beside another busy process
# those that spin for long make every step many times longer (`python -m benchmarks company`).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def load_model(path, device=None) -> "Predictor":
    """A model folder, or an ONNX file that `export` wrote, as a Predictor; device
    None = a GPU if any.

    `load_model(path).predict(image)` maps an array (H, W, C) uint8, or a raster's path or URL.
    """
    from pipeline.mapping.inputs import load
    from pipeline.mapping.predictor import Predictor

    return Predictor(load(path, device))


def foreign(network, **about):
    """A torch module of your own, (N, C, H, W) in [0, 1] to (N, K, H, W), as a
    model for `evaluate` and `attack`.

    about: channels, classes, mean, std, answers, threshold and gsd, as
    networks.foreign.Foreign says.
    """
    from pipeline.networks.foreign import foreign as wrap

    return wrap(network, **about)


def evaluate(model, tiles="data/tiles", out="metrics/foreign.json", params="params.yaml") -> dict:
    """What metrics/evaluate.json would hold of a model on the test tiles: of
    `foreign(network)`, a folder, a file.
    """
    from pathlib import Path

    from pipeline.params import load_params
    from pipeline.stages import evaluate as stage
    from pipeline.storage import read_json

    model, out = Path(model) if isinstance(model, str) else model, Path(out)
    stage.run(load_params(params), model, Path(tiles), out, Path("arrays") / out.stem)
    return read_json(out)


def attack(
    model, tiles="data/tiles", out="metrics/foreign-attack.json", params="params.yaml"
) -> dict:
    """What metrics/attack.json would hold of `foreign(network)`, with the settings of
    params.yaml's section attack.
    """
    from pathlib import Path

    from pipeline.params import load_params
    from pipeline.stages import attack as stage
    from pipeline.storage import read_json

    out = Path(out)
    stage.run(load_params(params), Path(tiles), out, Path("arrays") / out.stem, segmenter=model)
    return read_json(out)
