"""A model folder for other tools: model.onnx, and item.json, a STAC item of the Machine Learning Model kind.

The ONNX graph holds the normalisation and the padding to the network's stride, so it takes images of any size
in [0, 1] and answers logits. The model card travels inside the file: `networks.onnx_file.load_onnx` needs nothing else.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.mapping.stac import stac_item
from pipeline.networks.models import Segmenter, load_model
from pipeline.networks.onnx_file import onnxruntime
from pipeline.storage import atomic_file, write_json

TOLERANCE = 1e-4  # largest difference of a logit between torch and onnxruntime
OPSET = 18


class _Graph(nn.Module):
    """`Segmenter.forward` without a branch on the image's size, which an export would freeze."""

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        height, width = images.shape[-2:]
        stride = self.segmenter.stride
        x = (images - self.segmenter.mean) / self.segmenter.std
        if stride > 1:
            x = F.pad(x, (0, -width % stride, 0, -height % stride), mode=self.segmenter.sides)
        z = self.segmenter.network(x)[..., :height, :width]
        return (z[:, :-1], z[:, -1:]) if self.segmenter.contacts else z


def export(folder: str | Path) -> Path:
    """Write FOLDER/model.onnx and FOLDER/item.json; returns the ONNX file's path.

    The file is read back and compared with torch on two image sizes before it takes its name. Raises
    InputError where an architecture cannot be exported or a logit differs by more than TOLERANCE.
    """
    folder, runtime = Path(folder), onnxruntime()
    segmenter = load_model(folder)
    with atomic_file(folder / "model.onnx") as partial:
        _write_onnx(segmenter, partial)
        session = runtime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        difference = max(_difference(segmenter, session, *size) for size in ((96, 128), (161, 75)))
        if not difference <= TOLERANCE:
            raise InputError(f"{folder}: ONNX and torch differ by {difference:.1e} in a logit; it was not exported")
    parameters = sum(w.numel() for w in segmenter.parameters())
    write_json(folder / "item.json", stac_item(folder, parameters))
    return folder / "model.onnx"


def _write_onnx(segmenter: Segmenter, path: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter stands on it
    except ImportError:
        raise InputError("export needs onnx and onnxscript; install the extra: pip install -e '.[onnx]'") from None
    dynamic = torch.export.Dim.DYNAMIC
    try:
        program = torch.onnx.export(
            _Graph(segmenter).eval(),
            (torch.rand(2, segmenter.card.channels, 96, 128),),
            input_names=["images"],
            output_names=["logits", "contacts"] if segmenter.contacts else ["logits"],
            dynamic_shapes={"images": {0: dynamic, 2: dynamic, 3: dynamic}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"this architecture cannot be exported to ONNX ({reason})") from None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"card": segmenter.card.model_dump_json(), "stride": str(segmenter.stride)})
    onnx.save(model, path)


def _difference(segmenter: Segmenter, session, height: int, width: int) -> float:
    images = torch.rand(1, segmenter.card.channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = segmenter(images, contacts=segmenter.contacts).numpy()
    try:
        found = np.concatenate(session.run(None, {"images": images.numpy()}), axis=1)
    except Exception as error:  # onnxruntime's own exceptions have no public base class
        raise InputError(f"the exported graph does not run ({str(error).strip().splitlines()[0]})") from None
    return float(np.abs(found - expected).max())
