"""A model folder for other tools: model.onnx, model.pt2, item.json (STAC, Machine
Learning Model), a page.

A graph holds the normalisation and the padding to the network's stride, so it takes images of any
size in [0, 1] and answers logits. The model card travels inside the file:
`networks.onnx_file.load_onnx` needs nothing else.
"""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.mapping.stac import stac_item
from pipeline.metrics import EvaluateMetrics, read
from pipeline.networks.card import read_card
from pipeline.networks.hub import readme
from pipeline.networks.models import Segmenter, read_model
from pipeline.networks.onnx_file import onnxruntime
from pipeline.storage import atomic_file, write_json

TOLERANCE = 1e-4  # largest difference of a logit between torch and onnxruntime
SIZES = ((96, 128), (161, 75))  # of images on which an export is held against the model
OPSET = 18
TILE, OVERLAP = 512, 25  # Deepness: pixels along a tile's side, % of it shared with the next
DYNAMIC = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)  # images (N, C, H, W)


class _ConstantSame(nn.Module):
    """timm's Conv2dSame where the sides are multiples of its stride: TensorFlow's padding is then
    the same at any size, and a program that computed it of the size could not be saved.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        sizes = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
        pads = [max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in sizes]
        (top, left), (bottom, right) = [p // 2 for p in pads], [p - p // 2 for p in pads]
        self.pads = left, right, top, bottom

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c = self.conv
        return F.conv2d(F.pad(x, self.pads), c.weight, c.bias, c.stride, 0, c.dilation, c.groups)


class _Graph(nn.Module):
    """`Segmenter.forward` without a branch on the image's size, which an export would freeze."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, segmenter: Segmenter):
        from timm.layers import Conv2dSame

        super().__init__()
        self.register_buffer("mean", segmenter.mean)
        self.register_buffer("std", segmenter.std)
        self.network = deepcopy(segmenter.network)
        for name, module in [*self.network.named_modules()]:
            if isinstance(module, Conv2dSame):
                self.network.set_submodule(name, _ConstantSame(module))
        self.stride, self.sides = segmenter.stride, segmenter.sides
        self.contacts = segmenter.contacts

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        height, width = images.shape[-2:]
        x = (images - self.mean) / self.std
        if self.stride > 1:
            x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode=self.sides)
        rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        # a slice asks what it cuts
        z = self.network(x).index_select(-2, rows).index_select(-1, columns)
        return (z[:, :-1], z[:, -1:]) if self.contacts else z


class _Probabilities(nn.Module):
    """What Deepness decides by: the calibrated probability of building, or of each class where
    there are several.

    The plugin sets what is below its threshold to 0 and takes the largest: of several classes, so
    that this is the card's own decision, its threshold is in the graph. It fills a tile that
    reaches over the scene's border with black, where `infer` ends a window: such a tile is moved
    until border and border meet, and its probabilities are moved back.
    """

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.logits, self.decision = _Graph(segmenter), segmenter.decision

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        moves = [_to_the_border(images, axis, self.logits.stride) for axis in (2, 3)]
        for axis, (there, _) in zip((2, 3), moves, strict=True):
            images = images.index_select(axis, there)
        found = self._calibrated(images)
        for axis, (_, back) in zip((2, 3), moves, strict=True):
            found = found.index_select(axis, back)
        return found

    def _calibrated(self, images: torch.Tensor) -> torch.Tensor:
        logits, temperature = self.logits(images), self.decision.temperature
        # contacts part buildings in outlines only
        logits = logits[0] if isinstance(logits, tuple) else logits
        if logits.shape[1] == 2:
            return (logits / temperature).softmax(1)[:, 1:]
        return (self.decision.logits(logits) / temperature).softmax(1)


def _to_the_border(
    images: torch.Tensor, axis: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where along an axis each place of a tile (N, C, H, W) reads from, and where the answer is
    read from: first what is not black, or last, up to a multiple of the stride. Edges are repeated.
    """
    seen = (images.amax((0, 1, 5 - axis)) > 0).int()
    places = torch.arange(len(seen), device=images.device)
    first, last = seen.argmax(), len(seen) - 1 - seen.flip(0).argmax()
    past = (last // stride + 1) * stride - len(seen)  # 0 where the tile is full
    move = torch.where(first > 0, first, past.clamp(max=0))
    return (places + move).clamp(first, last), (places - move).clamp(0, len(seen) - 1)


def export(folder: str | Path) -> Path:
    """Write FOLDER/model.onnx and FOLDER/item.json; returns the ONNX file's path.

    The file is read back and compared with torch on two image sizes before it takes
    its name. Raises InputError where an architecture cannot be exported or a logit
    differs by more than TOLERANCE.
    """
    folder, runtime = Path(folder), onnxruntime()
    segmenter = read_model(folder)
    with atomic_file(folder / "model.onnx") as partial:
        _write_onnx(segmenter, partial)
        session = runtime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        _check_equal(folder, segmenter, lambda images: _run(session, images))
    parameters = sum(w.numel() for w in segmenter.parameters())
    write_json(folder / "item.json", stac_item(folder, parameters))
    return folder / "model.onnx"


def export_program(folder: str | Path) -> Path:
    """Write FOLDER/model.pt2, which `torch.export.load` reads without this pipeline; the card is
    its extra file model.json. Returns its path.

    Read back and compared like `export`'s. Raises InputError likewise.
    """
    folder = Path(folder)
    from torch._dynamo.exc import TorchDynamoException

    segmenter = read_model(folder)
    example = torch.rand(2, segmenter.card.channels, 96, 128)
    with atomic_file(folder / "model.pt2") as partial:
        try:
            program = torch.export.export(
                _Graph(segmenter).eval(), (example,), dynamic_shapes=(DYNAMIC,)
            )
            card = {"model.json": segmenter.card.model_dump_json()}
            torch.export.save(program, partial, extra_files=card)
        except (TorchDynamoException, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{folder}: this architecture cannot be exported by torch.export ({reason})"
            ) from None
        read_back = torch.export.load(partial).module()
        joined = torch.cat if segmenter.contacts else lambda found, _: found
        _check_equal(folder, segmenter, lambda images: joined(read_back(images), 1).numpy())
    return folder / "model.pt2"


def export_page(folder: str | Path, measured: str | Path) -> Path:
    """Write FOLDER/README.md anew with the IoU per city of a metrics file, if it is
    there; returns its path.

    Raises InputError where that is no file of `evaluate`.
    """
    folder = Path(folder)
    page = readme(read_card(folder), read(EvaluateMetrics, measured))
    with atomic_file(folder / "README.md") as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / "README.md"


def export_deepness(folder: str | Path) -> Path:
    """Write FOLDER/deepness.onnx, which QGIS's plugin Deepness opens with nothing
    to set; returns its path.

    Tiles of 512² pixels at the model's ground sample distance, in [0, 1]; calibrated probabilities.
    Raises InputError as `export` does.
    """
    folder, runtime = Path(folder), onnxruntime()
    segmenter = read_model(folder)
    card, several = segmenter.card, segmenter.card.classes > 1
    names = [
        "background",
        *([f"class {k}" for k in range(1, card.classes + 1)] if several else ["building"]),
    ]
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
        _write_graph(graph, images, ["probabilities"], None, props, partial)
        session = runtime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        with torch.inference_mode():
            difference = float(
                np.abs(
                    session.run(None, {"images": images.numpy()})[0] - graph(images).numpy()
                ).max()
            )
        if not difference <= TOLERANCE:
            raise InputError(
                f"{folder}: ONNX and torch differ by {difference:.1e} of probability; "
                f"it was not exported"
            )
    return folder / "deepness.onnx"


def _write_onnx(segmenter: Segmenter, path: Path) -> None:
    images = torch.rand(2, segmenter.card.channels, 96, 128)
    outputs = ["logits", "contacts"] if segmenter.contacts else ["logits"]
    props = {"card": segmenter.card.model_dump_json(), "stride": str(segmenter.stride)}
    _write_graph(_Graph(segmenter).eval(), images, outputs, {"images": DYNAMIC}, props, path)


def _write_graph(
    graph: nn.Module,
    images: torch.Tensor,
    outputs: list[str],
    shapes: dict | None,
    props: dict[str, str],
    path: Path,
) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter stands on it
    except ImportError:
        raise InputError(
            "export needs onnx and onnxscript; install the extra: pip install -e '.[onnx]'"
        ) from None
    try:
        program = torch.onnx.export(
            graph,
            (images,),
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"this architecture cannot be exported to ONNX ({reason})") from None
    assert program is not None  # as of dynamo=True
    model = program.model_proto
    onnx.helper.set_model_props(model, props)
    onnx.save(model, path)


def _check_equal(folder: Path, segmenter: Segmenter, exported) -> None:
    """Raise InputError where what was exported answers other logits than the model, on an image
    of each of SIZES.
    """
    random = torch.Generator().manual_seed(0)
    for size in SIZES:
        images = torch.rand(1, segmenter.card.channels, *size, generator=random)
        with torch.inference_mode():
            expected = segmenter(images, contacts=segmenter.contacts).numpy()
            difference = np.abs(exported(images) - expected).max()
        if not difference <= TOLERANCE:
            raise InputError(
                f"{folder}: it and its export differ by {difference:.1e} in a logit; "
                f"it was not exported"
            )


def _run(session, images: torch.Tensor) -> np.ndarray:
    try:
        return np.concatenate(session.run(None, {"images": images.numpy()}), axis=1)
    except Exception as error:  # onnxruntime's own exceptions have no public base class
        raise InputError(
            f"the exported graph does not run ({str(error).strip().splitlines()[0]})"
        ) from None
