"""Map buildings from the air: `load_model(path).predict(image)`.

The stages are the verbs of `python -m pipeline`.
"""


def load_model(path, device=None):
    """A model folder, or an ONNX file that `export` wrote, as a Predictor; device None = a GPU if any.

    `load_model(path).predict(image)` maps an array (H, W, C) uint8, or a raster's path or URL.
    """
    from pipeline.prediction.inputs import load
    from pipeline.prediction.predictor import Predictor

    return Predictor(load(path, device))
