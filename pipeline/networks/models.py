"""The segmenters: one registry of fully convolutional networks, and their form on disk.

A model folder holds weights.safetensors and model.json (the card): data, never code.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from pipeline import params
from pipeline.errors import InputError
from pipeline.networks.card import Card, read_card
from pipeline.networks.decision import Decision, Deployed
from pipeline.networks.folding import folded
from pipeline.networks.glance import Glance
from pipeline.networks.hub import readme
from pipeline.networks.imagenet import normalisation, packaged_weights, start_from
from pipeline.networks.precision import channels_last
from pipeline.storage import atomic_folder, write_json

SMP = {  # our name: class of segmentation_models_pytorch
    "unet": "Unet",
    "unet++": "UnetPlusPlus",
    "fpn": "FPN",
    "deeplabv3+": "DeepLabV3Plus",
    "segformer": "Segformer",
    "manet": "MAnet",
    "linknet": "Linknet",
    "pspnet": "PSPNet",
    "pan": "PAN",
    "upernet": "UPerNet",
}
GLANCE = "glance.safetensors"  # in a model folder
TIMM = "tu-"  # before the name of an encoder of timm
TORCHVISION = {"fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101"}


class Segmenter(nn.Module):
    """Images (N, C, H, W) float in [0, 1] to logits (N, K, H, W), K = classes + 1, for any H and W.

    The normalisation lives inside, so a perturbation's budget is in pixel units. `card` describes
    the model, `decision` says which class a pixel is drawn as: `decide(logits)`. Where the network
    has `contacts`, it answers one channel more, the logit that a pixel lies close to two buildings;
    it is given where it is asked for.
    """

    mean: torch.Tensor
    std: torch.Tensor
    card: Card  # of a model that was read; one that is only built has none

    def __init__(
        self,
        network: nn.Module,
        channels: int,
        classes: int,
        stride: int = 1,
        sides: str = "replicate",
        contacts: bool = False,
    ):
        super().__init__()
        self.network, self.classes, self.stride, self.contacts = network, classes, stride, contacts
        # F.pad's mode; "constant" where repeating an edge would stretch a perturbation
        self.sides = sides
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))
        self.decision = Decision()

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """The map that is deployed, classes (N, H, W), of logits (N, K, H, W)."""
        return self.decision(logits)

    def deployed(self) -> Deployed:
        """The network as predict runs it, its batch norms folded, answering with logits whose
        largest is the class that is drawn.
        """
        return Deployed(folded(self))

    def set_normalisation(self, mean, std) -> None:
        self.mean.copy_(torch.as_tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.std.copy_(torch.as_tensor(std, dtype=torch.float32).view(1, -1, 1, 1).clamp_min(1e-3))

    def forward(self, images: torch.Tensor, contacts: bool = False) -> torch.Tensor:
        """With `contacts` (N, K + 1, H, W), that of a network which has them last."""
        height, width = images.shape[-2:]
        x = (images - self.mean) / self.std
        down, right = -height % self.stride, -width % self.stride
        if down or right:  # encoders halve the image `log2(stride)` times
            x = F.pad(x, (0, right, 0, down), mode=self.sides)
        z = self.network(x)[..., :height, :width]
        return z if contacts or not self.contacts else z[:, :-1]


class WindowCNN(nn.Module):
    """A LeNet-like classifier of a 32² window's centre pixel, and the same network
    over a whole image at once.

    `forward` reasons by layer (à trous: every stride becomes a dilation), `classify` by window; the
    logits are equal (Long, Shelhamer, Darrell 2015, section 3.1, "filter rarefaction").
    """

    window = 32

    def __init__(self, channels: int, outputs: int, width: int):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(channels, width, 3), nn.Conv2d(width, width, 3)
        self.c3 = nn.Conv2d(width, width, 3)
        self.hidden, self.out = nn.Conv2d(width, 2 * width, 6), nn.Conv2d(2 * width, outputs, 1)
        self.relu = nn.ReLU()  # a module, so that train.model.activation finds it

    def _features(self, x: torch.Tensor, dense: bool) -> torch.Tensor:
        stride, d = (1, 2) if dense else (2, 1)
        x = self.relu(self.c2(self.relu(self.c1(x))))
        x = F.max_pool2d(x, 2, stride)
        x = self.relu(F.conv2d(x, self.c3.weight, self.c3.bias, dilation=d))
        x = F.max_pool2d(x, 2, stride, dilation=d)
        return self.out(
            self.relu(F.conv2d(x, self.hidden.weight, self.hidden.bias, dilation=d * d))
        )

    def classify(self, windows: torch.Tensor) -> torch.Tensor:
        """Windows (N, C, 32, 32) to logits (N, K) of the pixel at row 15, column 15."""
        return self._features(windows, dense=False).flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        before, after = (self.window - 1) // 2, self.window // 2
        return self._features(F.pad(images, (before, after, before, after)), dense=True)


class _Out(nn.Module):
    """torchvision's segmenters answer with a dict."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)["out"]


@torch.inference_mode(False)  # _without_idle asks the gradients
def _smp(model: params.Model, channels: int, outputs: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    _check_encoder(model.encoder)
    options = {}
    # one width a level
    if model.decoder_channels and model.architecture in {"unet", "unet++", "manet"}:
        options = {
            "decoder_channels": model.decoder_channels,
            "encoder_depth": len(model.decoder_channels),
        }
    packaged = packaged_weights(model.encoder) if model.encoder_weights == "imagenet" else None
    download = model.encoder_weights == "imagenet" and packaged is None
    try:
        network = getattr(smp, SMP[model.architecture])(
            encoder_name=model.encoder,
            encoder_weights="imagenet" if download else None,
            in_channels=channels,
            classes=outputs,
            **options,
        )
        if packaged:
            start_from(network.encoder, packaged)
        return _without_idle(network, channels)
    except InputError:
        raise
    except (OSError, ConnectionError) as error:
        raise InputError(
            f"train.model.encoder_weights: ImageNet weights of {model.encoder} cannot be fetched "
            f"({error}); "
            "connect to the network once, name a file of weights, or set it to null"
        ) from None
    except Exception as error:  # each family of encoders has its own for what it cannot do
        raise InputError(
            f"train.model: {model.architecture} with the encoder {model.encoder} does not accept "
            f"these settings: "
            f"{str(error) or type(error).__name__}; choose another encoder, such as resnet18"
        ) from None


def _check_encoder(name: str) -> None:
    """Raise InputError where no encoder is called so; tu- names are timm's, with or without a
    tag of its weights.
    """
    import difflib

    import segmentation_models_pytorch as smp
    import timm

    if (
        timm.is_model(name.removeprefix(TIMM))
        if name.startswith(TIMM)
        else name in smp.encoders.get_encoder_names()
    ):
        return
    known = [*smp.encoders.get_encoder_names(), *(TIMM + timms for timms in timm.list_models())]
    alike = [other for other in known if other.startswith(TIMM) == name.startswith(TIMM)]
    near = difflib.get_close_matches(name, alike, n=3, cutoff=0)
    raise InputError(
        f"train.model.encoder: unknown encoder {name!r}; near it are {', '.join(near)}"
    )


class _Idle(nn.Identity):
    """In the place of what is called, with whatever arguments, and not used."""

    def forward(self, input, *_):
        return input


def _without_idle(network: nn.Module, channels: int) -> nn.Module:
    """Replace the encoder's stages that no output depends on: they would be
    stored, and never trained.
    """
    network.eval()(torch.zeros(1, channels, 128, 128)).sum().backward()
    _replace_idle(network.get_submodule("encoder"))
    network.zero_grad()
    return network.train()


def _replace_idle(module: nn.Module) -> None:
    for name, child in module.named_children():
        trained = [p.grad is not None for p in child.parameters()]
        if trained and not any(trained):
            setattr(module, name, _Idle())
        elif not all(trained):
            _replace_idle(child)


def _torchvision(model: params.Model, channels: int, outputs: int) -> nn.Module:
    from torchvision.models import segmentation

    weights = "IMAGENET1K_V1" if model.encoder_weights == "imagenet" else None
    network = getattr(segmentation, model.architecture)(
        weights=None, weights_backbone=weights, num_classes=outputs, aux_loss=False
    )
    if channels != 3:
        network.backbone.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return _Out(network)


def weights_file(path: str) -> Path:
    """The safetensors file that a path to weights or to a model folder means."""
    return Path(path) / "weights.safetensors" if Path(path).is_dir() else Path(path)


def _load_encoder(network: nn.Module, path: str) -> None:
    """Start the encoder from a safetensors file of its own, or from the encoder
    inside a model folder.

    A classifier's weights will do: its head, and stages that the network does
    without, are left out.
    """
    file = weights_file(path)
    place = "network.backbone" if isinstance(network, _Out) else "encoder"
    try:
        encoder = network.get_submodule(place)
    except AttributeError:
        raise InputError(
            "train.model.encoder_weights: this architecture has no encoder; set it to null"
        ) from None
    weights, prefix = read_weights(file), f"network.{place}."
    if any(key.startswith(prefix) for key in weights):
        weights = {
            key.removeprefix(prefix): w for key, w in weights.items() if key.startswith(prefix)
        }
    idle = [f"{name}." for name, module in encoder.named_modules() if isinstance(module, _Idle)]
    weights = {key: w for key, w in weights.items() if not key.startswith(("fc.", *idle))}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"train.model.encoder_weights: {file} does not fit the encoder: {error}"
        ) from None


def build_model(model: params.Model, channels: int) -> Segmenter:
    """The segmenter that train.model describes, with random or given weights. Raises InputError
    on what cannot be.
    """
    from pipeline.networks.lipschitz import LipschitzNet, MinMax, replace_relu
    from pipeline.networks.small_nets import SmallFCN, SmallUNet

    outputs, stride, sides = model.classes + 1 + (model.contact > 0), 1, "replicate"
    match model.architecture:
        case "linear":
            network = nn.Conv2d(channels, outputs, 1)
        case "window_cnn":
            network = WindowCNN(channels, outputs, model.width)
        case "small_fcn":
            network = SmallFCN(channels, outputs, model.width)
        case "small_unet":
            network, stride = SmallUNet(channels, outputs, model.width), 4
        case "lipschitz":
            network, stride, sides = (
                LipschitzNet(channels, outputs, model.width, group=model.group),
                4,
                "constant",
            )
        case name if name in TORCHVISION:
            network, stride = _torchvision(model, channels, outputs), 8
        case _:
            network = _smp(model, channels, outputs)
            # PAN pools its 1/32 features thrice more
            stride = 128 if model.architecture == "pan" else 32
    if model.activation == "minmax":
        replace_relu(network)
        if not any(isinstance(m, MinMax) for m in network.modules()):
            raise InputError(
                f"train.model.activation: {model.architecture} has no ReLU for minmax to replace; "
                f"set it to relu"
            )
    if model.encoder_weights not in (None, "imagenet"):
        _load_encoder(network, model.encoder_weights)
    segmenter = Segmenter(network, channels, model.classes, stride, sides, model.contact > 0)
    if model.encoder_weights == "imagenet" and channels == 3:
        segmenter.set_normalisation(*normalisation(model.encoder))
    return segmenter


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """A safetensors file's tensors. Raises InputError where it is absent or damaged; other
    formats are not read.
    """
    if file.suffix != ".safetensors":
        raise InputError(
            f"{file}: weights are read from safetensors files only; convert this one first"
        )
    try:
        return load_file(file)
    except FileNotFoundError:
        raise InputError(f"{file}: not found; train a model first or correct the path") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file}: damaged weights ({error}); train the model again or fetch a fresh copy"
        ) from None


def save_model(
    folder: str | Path, segmenter: Segmenter, card: Card | dict, glance: Glance | None = None
) -> None:
    """Write FOLDER/weights.safetensors, model.json and its page README.md, and the glance's weights
    where there is one, atomically. `card`: a Card, or its keys.
    """
    card = Card.model_validate(card)
    with atomic_folder(folder) as partial:
        for module, name in ((segmenter, "weights.safetensors"), (glance, GLANCE)):
            if module is None:
                continue
            weights = {
                key: w.detach().cpu().contiguous().clone() for key, w in module.state_dict().items()
            }
            try:
                save_file(weights, partial / name)
            except SafetensorError as error:
                raise InputError(
                    f"{folder}: the weights cannot be written ({error}); make space, run again"
                ) from None
        write_json(partial / "model.json", card.model_dump(mode="json"))
        (partial / "README.md").write_text(readme(card), encoding="utf-8")


def kept_model(folder: str | Path, key: str) -> "Segmenter | None":
    """The model that an earlier run with the same fingerprint left; None where there is none,
    or it is damaged.
    """
    try:
        return read_model(folder) if read_card(folder).fingerprint == key else None
    except InputError:
        return None


def read_model(folder: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """Read a model folder into a Segmenter in eval mode. Raises InputError when it is absent,
    damaged or mismatched.
    """
    card = read_card(folder)
    try:
        segmenter = build_model(
            card.model.model_copy(update={"encoder_weights": None}), card.channels
        )
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder}/model.json: not a model card of this pipeline ({error})"
        ) from None
    try:
        segmenter.load_state_dict(read_weights(Path(folder) / "weights.safetensors"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(
            f"{folder}: weights do not fit model.json ({reason}); train the model again"
        ) from None
    segmenter.card, segmenter.decision = card, Decision.of(card)
    return channels_last(segmenter.eval().requires_grad_(False).to(device))


def read_glance(folder: str | Path, device: str | torch.device = "cpu") -> Glance:
    """A model folder's glance. Raises InputError where it has none, or a damaged one."""
    if not Path(folder).is_dir() or not (card := read_card(folder)).glance:
        raise InputError(
            f"predict.skip_empty: {folder} has no glance to skip by; train with train.glance: 300, "
            f"or set it to false"
        )
    glance = Glance(card.channels)
    try:
        glance.load_state_dict(read_weights(Path(folder) / GLANCE))
    except RuntimeError:
        raise InputError(
            f"{folder}/{GLANCE}: does not fit model.json; train the model again"
        ) from None
    return glance.eval().requires_grad_(False).to(device)
