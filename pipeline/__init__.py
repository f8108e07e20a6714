"""Map buildings from the air: `load_model(path).predict(image)`. The stages are verbs of `python -m pipeline`."""


def load_model(path, device=None):
    """A model folder, or an ONNX file that `export` wrote, ready to predict.

    `load_model(path).predict(image)` maps an array (H, W, C) uint8 or a raster's path: see
    pipeline.stages.predict.predict. device: None = a GPU where there is one.
    """
    from pathlib import Path

    if Path(path).suffix == ".onnx":
        from pipeline.learning.export import load_onnx

        return load_onnx(path)
    from pipeline.learning import models, precision

    return models.load_model(path, device or precision.device())
