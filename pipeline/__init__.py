"""Map buildings from the air: `load_model(path).predict(image)`.

The stages are the verbs of `python -m pipeline`.
"""

import os

# Before torch starts its threads: beside another busy process, threads that spin while they wait for
# each other's last one make every step many times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load_model(path, device=None):
    """A model folder, or an ONNX file that `export` wrote, as a Predictor; device None = a GPU if any.

    `load_model(path).predict(image)` maps an array (H, W, C) uint8, or a raster's path or URL.
    """
    from pipeline.mapping.inputs import load
    from pipeline.mapping.predictor import Predictor

    return Predictor(load(path, device))
