"""ONNX files as segmenters: they map and can be evaluated; they answer no gradients, so nothing
can attack them.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.networks.card import Card, parse_card
from pipeline.networks.decision import Decision


class OnnxSegmenter(nn.Module):
    """An ONNX file as a Segmenter: images (N, C, H, W) in [0, 1] to logits (N, K, H, W)."""

    def __init__(self, session, card: Card, stride: int):
        super().__init__()
        self.session, self.card, self.classes, self.stride = session, card, card.classes, stride
        self.decision, self.contacts = Decision.of(card), card.model.contact > 0
        # onnxruntime takes and gives CPU arrays
        self.register_buffer("device_of_results", torch.zeros(()))

    def forward(self, images: torch.Tensor, contacts: bool = False) -> torch.Tensor:
        names = ["logits", "contacts"] if contacts else ["logits"]
        found = self.session.run(names, {"images": images.detach().float().cpu().numpy()})
        return torch.from_numpy(np.concatenate(found, axis=1)).to(images.device)


def onnxruntime():
    """The library. Raises InputError where the extra is not installed."""
    try:
        import onnxruntime as library
    except ImportError:
        raise InputError(
            "ONNX models need onnxruntime; install the extra: pip install -e '.[onnx]'"
        ) from None
    return library


def open_session(path: str | Path):
    """An ONNX file, ready to run. Raises InputError where it is absent or damaged."""
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(
            str(path), options, providers=runtime.get_available_providers()
        )
    except Exception as error:  # onnxruntime's own exceptions have no public base class
        raise InputError(
            f"{path}: not a readable ONNX file ({str(error).strip().splitlines()[0]})"
        ) from None


def has_card(session) -> bool:
    """Whether `export` wrote it."""
    return {"card", "stride"} <= set(session.get_modelmeta().custom_metadata_map)


def load_onnx(path: str | Path) -> OnnxSegmenter:
    """Read a model that `export` wrote. Raises InputError where it is absent,
    damaged or without a card.
    """
    session = open_session(path)
    about = session.get_modelmeta().custom_metadata_map
    if not has_card(session):
        raise InputError(
            f"{path}: an ONNX file without this pipeline's model card; write it with "
            f"the export command"
        )
    try:
        card, stride = parse_card(json.loads(about["card"]), path), int(about["stride"])
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged model card ({error}); export the model again") from None
    return OnnxSegmenter(session, card, stride).eval()
