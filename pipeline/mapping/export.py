"""A model folder for other tools: model.onnx, and item.json, a STAC item of the Machine Learning Model kind.

The ONNX graph holds the normalisation and the padding to the network's stride, so it takes images of any size
in [0, 1] and answers logits. The model card travels inside the file: `load_onnx` needs nothing else.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.mapping.stac import stac_item
from pipeline.networks.card import Card, parse_card
from pipeline.networks.models import Segmenter, load_model
from pipeline.storage import atomic_file, write_json

TOLERANCE = 1e-4  # largest difference of a logit between torch and onnxruntime
OPSET = 18
TILE, OVERLAP = 512, 25  # Deepness: pixels along a tile's side, % of it shared with the next


class _Graph(nn.Module):
    """`Segmenter.forward` without a branch on the image's size, which an export would freeze."""

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        stride = self.segmenter.stride
        x = (images - self.segmenter.mean) / self.segmenter.std
        if stride > 1:
            x = F.pad(x, (0, -width % stride, 0, -height % stride), mode=self.segmenter.sides)
        return self.segmenter.network(x)[..., :height, :width]


class _Probabilities(nn.Module):
    """What Deepness decides by: the calibrated probability of building, or of each class where there are several.

    The plugin sets what is below its threshold to 0 and takes the largest: of several classes, so that this is the
    card's own decision, its threshold is in the graph.
    """

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.logits, self.decision = _Graph(segmenter), segmenter.decision

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits, temperature = self.logits(images), self.decision.temperature
        if logits.shape[1] == 2:
            return (logits / temperature).softmax(1)[:, 1:]
        return (self.decision.logits(logits) / temperature).softmax(1)


class OnnxSegmenter(nn.Module):
    """An ONNX file as a Segmenter: images (N, C, H, W) in [0, 1] to logits (N, K, H, W)."""

    def __init__(self, session, card: Card, stride: int):
        super().__init__()
        self.session, self.card, self.classes, self.stride = session, card, card.classes, stride
        self.register_buffer("device_of_results", torch.zeros(()))  # onnxruntime takes and gives CPU arrays

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (logits,) = self.session.run(["logits"], {"images": images.detach().float().cpu().numpy()})
        return torch.from_numpy(logits).to(images.device)


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError:
        raise InputError("ONNX models need onnxruntime; install the extra: pip install -e '.[onnx]'") from None
    return onnxruntime


def load_onnx(path: str | Path) -> OnnxSegmenter:
    """Read a model that `export` wrote. Raises InputError where it is absent, damaged or without a card."""
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=runtime.get_available_providers())
    except Exception as error:  # onnxruntime's own exceptions have no public base class
        raise InputError(f"{path}: not a readable ONNX file ({str(error).strip().splitlines()[0]})") from None
    about = session.get_modelmeta().custom_metadata_map
    if not {"card", "stride"} <= set(about):
        raise InputError(f"{path}: an ONNX file without this pipeline's model card; write it with the export command")
    try:
        card, stride = parse_card(json.loads(about["card"]), path), int(about["stride"])
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged model card ({error}); export the model again") from None
    return OnnxSegmenter(session, card, stride).eval()


def export(folder: str | Path) -> Path:
    """Write FOLDER/model.onnx and FOLDER/item.json; returns the ONNX file's path.

    The file is read back and compared with torch on two image sizes before it takes its name. Raises
    InputError where an architecture cannot be exported or a logit differs by more than TOLERANCE.
    """
    folder, runtime = Path(folder), _onnxruntime()
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


def export_deepness(folder: str | Path) -> Path:
    """Write FOLDER/deepness.onnx, which QGIS's plugin Deepness opens with nothing to set; returns its path.

    Tiles of 512² pixels at the model's ground sample distance, in [0, 1]; calibrated probabilities. Raises InputError
    as `export` does.
    """
    folder, runtime = Path(folder), _onnxruntime()
    segmenter = load_model(folder)
    card, several = segmenter.card, segmenter.card.classes > 1
    names = ["background", *([f"class {k}" for k in range(1, card.classes + 1)] if several else ["building"])]
    about = {
        "model_type": "Segmentor",
        "class_names": {str(k): name for k, name in enumerate(names)},
        "resolution": 100 * card.gsd,  # cm a pixel
        "tile_size": TILE,
        "tiles_overlap": OVERLAP,
        "seg_thresh": 0.0 if several else card.threshold,
        "seg_small_segment": 0,
    }
    images = torch.rand(1, card.channels, TILE, TILE, generator=torch.Generator().manual_seed(0))
    graph = _Probabilities(segmenter).eval()
    with atomic_file(folder / "deepness.onnx") as partial:
        props = {name: json.dumps(value) for name, value in about.items()}
        _write_graph(graph, images, "probabilities", {}, props, partial)
        session = runtime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        with torch.inference_mode():
            difference = float(np.abs(session.run(None, {"images": images.numpy()})[0] - graph(images).numpy()).max())
        if not difference <= TOLERANCE:
            raise InputError(f"{folder}: ONNX and torch differ by {difference:.1e} of probability; it was not exported")
    return folder / "deepness.onnx"


def _write_onnx(segmenter: Segmenter, path: Path) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    images = torch.rand(2, segmenter.card.channels, 96, 128)
    props = {"card": segmenter.card.model_dump_json(), "stride": str(segmenter.stride)}
    _write_graph(
        _Graph(segmenter).eval(), images, "logits", {"images": {0: dynamic, 2: dynamic, 3: dynamic}}, props, path
    )


def _write_graph(
    graph: nn.Module, images: torch.Tensor, output: str, shapes: dict, props: dict[str, str], path: Path
) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter stands on it
    except ImportError:
        raise InputError("export needs onnx and onnxscript; install the extra: pip install -e '.[onnx]'") from None
    try:
        program = torch.onnx.export(
            graph,
            (images,),
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=shapes or None,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"this architecture cannot be exported to ONNX ({reason})") from None
    model = program.model_proto
    onnx.helper.set_model_props(model, props)
    onnx.save(model, path)


def _difference(segmenter: Segmenter, session, height: int, width: int) -> float:
    images = torch.rand(1, segmenter.card.channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = segmenter(images).numpy()
    try:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
    except Exception as error:  # onnxruntime's own exceptions have no public base class
        raise InputError(f"the exported graph does not run ({str(error).strip().splitlines()[0]})") from None
    return float(np.abs(logits - expected).max())
