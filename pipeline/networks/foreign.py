"""Networks that this pipeline has not trained, as Segmenters: a torch module, or an ONNX file
without our card.

Beside my.onnx a my.json may say what the file does not: the keys of `Foreign`.
"""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.networks.card import Card
from pipeline.networks.decision import Decision
from pipeline.networks.models import Segmenter, read_model
from pipeline.networks.onnx_file import has_card, load_onnx, open_session
from pipeline.storage import read_json

RECIPE = "wrap the torch module instead: `pipeline.foreign(module)`, see docs/first_hour.md"
SMALLEST = 1e-6  # of a probability, so that its logit is a number
STRIDE = 32  # images are padded to its multiples: what most encoders halve them to


class Foreign(BaseModel):
    """What a network reads and answers, where it is not as expected."""

    model_config = ConfigDict(extra="forbid")
    channels: int = Field(3, ge=1)
    classes: int = Field(1, ge=1, le=254)
    mean: list[float] = [0.0]  # of the channels in [0, 1], taken off before the network
    std: list[Annotated[float, Field(gt=0)]] = [1.0]
    answers: str = Field("logits", pattern="^(logits|probabilities)$")
    threshold: float = Field(0.5, ge=0, le=1)
    gsd: float | None = Field(None, gt=0)  # metres a pixel; None = whatever the tiles have


class Answers(nn.Module):
    """Whatever a network answers, as logits (N, K, H, W), background first.

    One channel is the building's logit, or its probability; a dict's "out" and the first of several
    answers count, as torchvision's and Hugging Face's; a smaller map is enlarged.
    """

    foldable = False  # a stranger's code may do anything between two layers

    def __init__(self, network: nn.Module, classes: int, answers: str):
        super().__init__()
        self.network, self.classes, self.answers = network, classes, answers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.network(images)
        if hasattr(found, "get"):
            found = found.get("out", found.get("logits"))
        found = found[0] if isinstance(found, tuple | list) else found
        self.check(found, images)
        if self.answers == "probabilities":
            found = found.clamp(SMALLEST, 1 - SMALLEST)
            found = found.log() - (1 - found).log() if found.shape[1] == 1 else found.log()
        if found.shape[1] == 1:
            found = torch.cat([torch.zeros_like(found), found], 1)
        if found.shape[-2:] != images.shape[-2:]:
            found = F.interpolate(found, images.shape[-2:], mode="bilinear", align_corners=False)
        return found

    def check(self, found: object, images: torch.Tensor) -> None:
        expected = {self.classes + 1} | ({1} if self.classes == 1 else set())
        if isinstance(found, torch.Tensor) and found.ndim == 4 and found.shape[1] in expected:
            return
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(
            f"the network answers {shape} to images {tuple(images.shape)}; (N, {self.classes + 1}, "
            f"H, W) is expected, "
            "background first"
            + (", or (N, 1, H, W) of the building alone" if self.classes == 1 else "")
        )


def foreign(network: nn.Module, *, name: str = "the network", **about) -> Segmenter:
    """A torch module as a Segmenter, ready for `pipeline.evaluate` and `pipeline.attack`.

    network: images (N, C, H, W), in [0, 1] less `mean` by `std`, to (N, K, H, W); about: the fields
    of `Foreign`. Raises InputError where a field is unknown, or the network answers otherwise.
    """
    try:
        given = Foreign(**about)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if any(len(values) not in (1, given.channels) for values in (given.mean, given.std)):
        raise InputError(
            f"{name}: mean and std have one value, or one for each of {given.channels} channels"
        )
    stride = 1 if getattr(network, "side", None) else STRIDE
    segmenter = Segmenter(
        Answers(network, given.classes, given.answers), given.channels, given.classes, stride
    )
    segmenter.mean.copy_(torch.tensor(given.mean).view(1, -1, 1, 1).expand_as(segmenter.mean))
    segmenter.std.copy_(torch.tensor(given.std).view(1, -1, 1, 1).expand_as(segmenter.std))
    segmenter.card = Card.model_construct(  # less than a card that is read must say
        model=None,
        channels=given.channels,
        classes=given.classes,
        threshold=given.threshold,
        gsd=given.gsd,
    )
    segmenter.decision = Decision.of(segmenter.card)
    segmenter.eval().requires_grad_(False)
    _try(segmenter, name)
    return segmenter


def _try(segmenter: Segmenter, name: str) -> None:
    """Raise InputError, before any work, where the network does not read such images."""
    on = next((p.device for p in segmenter.network.parameters()), torch.device("cpu"))
    segmenter.to(on)
    side = getattr(segmenter.network.network, "side", None) or 2 * STRIDE
    try:
        with torch.no_grad():
            segmenter(torch.zeros(1, segmenter.card.channels, side, side, device=on))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except Exception as error:  # whatever a stranger's network raises
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{name}: does not read {segmenter.card.channels} channels of {side} × {side} pixels "
            f"({reason})"
        ) from None


class _Session(nn.Module):
    """An ONNX graph of one input; `side`: of the square images that it is fixed to, None = any."""

    def __init__(self, session, path: Path):
        super().__init__()
        (self.input, *others), self.session, self.path = session.get_inputs(), session, path
        shape = self.input.shape
        if others or len(shape) != 4 or self.input.type != "tensor(float)":
            raise InputError(f"{path}: one float32 input (N, C, H, W) is expected; {RECIPE}")
        batch, self.channels, *sides = (n if isinstance(n, int) else None for n in shape)
        self.side, self.at_once = sides[0], batch
        if sides[0] != sides[1] or batch not in (None, 1):
            raise InputError(
                f"{path}: reads {shape} only; export it with dynamic axes, or {RECIPE}"
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        if self.side and max(height, width) > self.side:
            raise InputError(
                f"{self.path}: reads {self.side} × {self.side} pixels only; set evaluate.window to "
                f"{self.side}, "
                "or export it with dynamic axes"
            )
        if self.side:
            images = F.pad(images, (0, self.side - width, 0, self.side - height), mode="replicate")
        parts = images.detach().float().cpu().split(self.at_once or len(images))
        found = [self.session.run(None, {self.input.name: part.numpy()})[0] for part in parts]
        return torch.cat([torch.from_numpy(part) for part in found]).to(images.device)[
            ..., :height, :width
        ]


def foreign_onnx(path: Path) -> Segmenter:
    """An ONNX file of another tool's. Raises InputError where it or the my.json beside it is
    not as expected.
    """
    session = _Session(open_session(path), path)
    beside = path.with_suffix(".json")
    try:
        about = read_json(beside) if beside.exists() else {}
    except ValueError as error:
        raise InputError(f"{beside}: not valid JSON ({error})") from None
    if not isinstance(about, dict):
        raise InputError(
            f"{beside}: keys such as mean and std are expected: {', '.join(Foreign.model_fields)}"
        )
    channels = {"channels": session.channels} if session.channels else {}
    return foreign(session, name=str(path), **(channels | about))


def load_network(path: str | Path, on: torch.device | None = None) -> nn.Module:
    """A model folder, or an ONNX file of ours or another's, to evaluate. Raises InputError
    where it is neither.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        return load_onnx(path) if has_card(open_session(path)) else foreign_onnx(path)
    refuse_pickle(path)
    return read_model(path, on or "cpu")


def load_with_gradients(path: str | Path, on: torch.device | None = None) -> Segmenter:
    """A model folder, to attack. Raises InputError where it is an ONNX file,
    which answers no gradients.
    """
    if Path(path).suffix == ".onnx":
        raise InputError(
            f"{path}: an ONNX file answers no gradients to attack it by; name the model folder it "
            f"was exported from, "
            f"or {RECIPE}"
        )
    refuse_pickle(Path(path))
    return read_model(path, on or "cpu")


def refuse_pickle(path: Path) -> None:
    if path.is_file() and path.suffix in {".pt", ".pth", ".ckpt", ".bin", ".pkl"}:
        raise InputError(
            f"{path}: a pickle, which could run any code, and holds no network without its own; "
            f"export it to ONNX "
            f"(torch.onnx.export), or {RECIPE}"
        )
