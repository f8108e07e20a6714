"""The typed schema of params.yaml: one class a section, one section a stage.

A parameter's type, default and documentation stand here and nowhere else; its choices are told by
its type. `pipeline/presets.py` writes the commented file. `load_params(path)` reads one strictly,
whole or only what differs from the defaults: an unknown key names its nearest known one, a wrong
value names what is allowed, and both happen before any stage starts.
"""

import os
import re
import reprlib
import unicodedata
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError

from pipeline.errors import InputError, nearest

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Norm = Literal["linf", "l2"]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=32, multiple_of=32)]  # pixels that every network can halve
Overlap = Annotated[float, Field(ge=0, lt=0.9)]
Draws = Annotated[int, Field(ge=100)]
Group = Annotated[int, Field(ge=2, le=64)]
Width = Annotated[int, Field(ge=1, le=1024)]  # channels of a layer
Widths = Annotated[list[Width], Field(max_length=8)]
GroundSampleDistance = Annotated[float, Field(ge=0.01, le=30)]  # metres
Ordinals = Annotated[list[Count], Field(min_length=1)]
AsList = Field(strict=False)  # of a tuple, which YAML writes as a list


Item = TypeVar("Item")


def once_each(values: list[Item]) -> list[Item]:
    """The list. Raises ValueError where it says something twice."""
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(
            f"{twice[0]} stands in it twice, and a copy measures nothing new; drop one"
        )
    return values


Once = Annotated[list[Item], AfterValidator(once_each)]
Numbers = Annotated[Once[Positive], Field(min_length=1)]

EXAMPLE = "what `python -m pipeline preset demo` prints"  # a params.yaml with every parameter


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Parsed = TypeVar("Parsed", bound=Section)


# A city's name is a folder, a stage of DVC's matrix, an option's value and a key
# beside those of the metrics.
SIGNS = frozenset(" _-.,()&+")
LONGEST_CITY = 100  # bytes; a file system takes 255, and temporary names are longer
KEYS = {"all", "city", "mean", "mean_city", "mean city", "pooled", "worst_city"}


class CityOverride(Section):
    """What a folder city's files do not say themselves."""

    gsd: Positive | None = Field(None, description="metres a pixel, where the images carry no CRS")
    bands: Ordinals | None = Field(
        None, description="1-based, in the order red, green, blue; null = as tile.bands"
    )
    range: Annotated[tuple[float, float], AsList] | None = Field(
        None, description="[low, high], the values mapped to 0 and 255"
    )
    building: Literal[1, 255] | None = Field(
        None, description="in label rasters (null = 255 where none holds a 1)"
    )
    unlabelled: Literal["background", "ignore"] | None = Field(
        None, description="what scenes without a footprint or label are (null = background)"
    )
    where: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="an SQL condition: which footprints are buildings"
    )

    @field_validator("range")
    @classmethod
    def low_before_high(cls, value):
        if value and value[0] >= value[1]:
            raise ValueError("it must be two values, the lower first")
        return value


# a source reads
OVERRIDES = {"folder": set(CityOverride.model_fields), "open_buildings": {"bands", "range"}}


class Fetch(Section):
    source: Literal["demo", "folder", "inria", "open_buildings"] = Field(
        description="kind of source"
    )
    path: str = Field(description="the source's manifest, or the folder of imagery; DVC watches it")
    cities: Annotated[list[str], Field(min_length=1)] = Field(
        description="names; the DVC matrix runs over them"
    )
    scenes: Ordinals | Literal["all"] = Field(
        "all", description="inria (1-36), demo: numbers such as [1, 2], or all"
    )
    scene_size: Annotated[int, Field(ge=64, le=20_000)] = Field(
        640, description="demo: pixels along a scene's side"
    )
    seed: Whole = Field(0, description="demo: of the generator")
    streets: bool = Field(
        False, description="demo: label streets too, as class 2; train.model.classes is then 2"
    )
    archive: str | None = Field(
        None, description="inria: a downloaded .7z.001/.zip, or the unpacked AerialImageDataset"
    )
    keep_archive: bool = Field(
        True, description="inria: keep the verified archive for the next city"
    )
    official_split: bool = Field(
        True, description="inria: scenes 1-5 of a city are its test split; false = tile draws"
    )
    precision: Literal[80, 85, 90] = Field(
        90, description="open_buildings: % precision that sets a cell's threshold"
    )
    groups: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="folder: a column of the footprints that tells groups of buildings "
        "apart, to be fair to",
    )
    overrides: dict[str, CityOverride] = Field(
        {}, description="what a city's files do not say themselves, as CITY: {gsd: 0.3}"
    )

    @field_validator("scenes", mode="wrap")
    @classmethod
    def all_or_numbers(cls, value, check):
        try:
            numbers = check(value)
        except ValidationError:
            raise ValueError("it must be all, or a list of scene numbers such as [1, 2]") from None
        return numbers if numbers == "all" else once_each(numbers)

    @model_validator(mode="after")
    def cities_once(self):
        for city in self.cities:
            check_city(city)
        twice = sorted({c for c in self.cities if self.cities.count(c) > 1})
        if twice:
            raise ValueError(f"fetch.cities names {', '.join(twice)} twice; name each city once")
        known = {}
        for city in self.cities:
            if (other := known.setdefault(folded(city), city)) != city:
                raise ValueError(
                    f"fetch.cities: {other} and {city} differ by case only, one "
                    f"folder on some disks"
                )
        if self.groups and self.source != "folder":
            raise ValueError(
                f"fetch.groups: source {self.source} has no columns of yours; set it to null"
            )
        for city in sorted(set(self.overrides) - set(self.cities)):
            near = nearest(city, self.cities)
            raise ValueError(
                f"fetch.overrides: {short(city)} is not one of fetch.cities; did you mean {near}?"
            )
        for city, override in self.overrides.items():
            stated = {key for key, value in override if value is not None}
            if unread := sorted(stated - OVERRIDES.get(self.source, set())):
                raise ValueError(
                    f"fetch.overrides.{city}.{unread[0]}: source {self.source} reads "
                    f"none; take it out"
                )
        return self


def check_city(city: str) -> None:
    """Raise ValueError where a city cannot be called so. Letters of any script
    may stand in its name.
    """
    # letter, mark, number
    signs = [sign for sign in city if unicodedata.category(sign)[0] not in "LMN"]
    plain = city == city.strip() and city[:1] not in SIGNS - {"_"} and set(signs) <= SIGNS
    if not city or not plain or len(city.encode()) > LONGEST_CITY:
        raise ValueError(
            f"fetch.cities: {short(city)!r} cannot be a folder's name and a stage's; take letters, "
            f"digits, - and _"
        )
    if folded(city) in KEYS:
        raise ValueError(
            f"fetch.cities: {city} means something else in the metrics; give the city another name"
        )


def short(name: str) -> str:
    """A name as far as a sentence bears it."""
    return name if len(name) <= LONGEST_CITY else f"{name[:LONGEST_CITY]}…"


def folded(name: str) -> str:
    """What two names that are one folder on some disks have in common."""
    return unicodedata.normalize("NFC", name).casefold()


class Tile(Section):
    gsd: GroundSampleDistance = Field(description="metres on the ground per pixel")
    size: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = Field(
        description="pixels along a tile's side"
    )
    bands: Ordinals = Field([1, 2, 3], description="1-based bands to read, red green blue")
    margin: Whole | None = Field(
        None, description="pixels between blocks of a single scene; null = one tile"
    )
    validation: float = Field(0.15, gt=0, lt=0.5, description="share of a city's scenes")
    test: float = Field(0.2, gt=0, lt=0.6, description="share of a city's scenes")
    seed: Whole = Field(0, description="of the draw of scenes")
    max_upsampling: float = Field(1.5, ge=1, description="warn beyond this factor")
    all_touched: bool = Field(
        False, description="rasterise every pixel a footprint touches, not only covered centres"
    )
    memory: int = Field(512, ge=64, description="MB one scene's windows may hold")
    workers: Whole = Field(0, description="processes; 0 = one a core")


# by stages: DVC deletes it before they run
WRITTEN = re.compile(r"models/(all|certify|folds)(/.*)?")


def written_by_a_stage(path: str | Path) -> bool:
    return bool(WRITTEN.fullmatch(Path(os.path.relpath(Path(path).resolve())).as_posix()))


def _not_written(path: str | None) -> str | None:
    if path and written_by_a_stage(path):
        raise ValueError(
            "a stage writes there, and DVC deletes it first; start from a copy elsewhere (cp -r)"
        )
    return path


StartingPoint = Annotated[str | None, AfterValidator(_not_written)]


Architecture = Literal[
    "unet", "unet++", "fpn", "deeplabv3+", "segformer", "manet", "linknet", "pspnet", "pan",
    "upernet", "fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101",
    "linear", "window_cnn", "small_fcn", "small_unet", "lipschitz",
]  # fmt: skip


# baselines and what certificates are about
BARE = {"linear", "window_cnn", "small_fcn", "small_unet", "lipschitz"}


class Model(Section):
    architecture: Architecture = Field(
        description="the network; linear and window_cnn are baselines, the last three certifiable"
    )
    encoder: str = Field(
        "resnet18", pattern=r"^[\w.-]+$", description="any encoder of segmentation-models-pytorch"
    )
    encoder_weights: StartingPoint = Field(None, description="null, imagenet, or a file of weights")
    decoder_channels: Widths | None = Field(
        None, description="unet, unet++, manet: widths from deep to shallow; null = their own"
    )
    classes: int = Field(1, ge=1, le=254, description="kinds of foreground, background not counted")
    activation: Literal["relu", "minmax"] = Field("relu", description="after the layers")
    width: Width = Field(
        32, description="channels of window_cnn, small_fcn, small_unet and lipschitz"
    )
    group: Group = Field(
        2, description="lipschitz: channels that GroupSort sorts together; 2 = MinMax"
    )
    contact: Annotated[float, Field(ge=0, le=4)] = Field(
        0,
        description="metres from two buildings at once within which a head of its own learns "
        "contacts; 0 = none",
    )

    @model_validator(mode="after")
    def room_for_contacts(self):
        if self.contact and self.architecture in BARE:
            raise ValueError(
                f"train.model.contact: {self.architecture} has classes only; set it to 0"
            )
        return self


class Adversarial(Section):
    method: Literal["none", "pgd", "trades", "fast", "free"] = Field(
        "none", description="how a batch is attacked"
    )
    norm: Norm = Field("linf", description="of the budget")
    epsilon: Weight = Field(
        4, description="linf: budget in 1/255; l2: in units of the pixel range [0,1]"
    )
    steps: Count = Field(5, description="gradient steps a batch")
    beta: Positive = Field(6, description="trades: weight of the KL term")
    warmup: Share = Field(0, description="share of training over which ε grows from 0")


class Loss(Section):
    cross_entropy: Weight = Field(0, description="mean over pixels")
    dice: Weight = Field(0, description="1 − F1 of the batch, softly")
    focal: Weight = Field(0, description="cross-entropy of hard pixels")
    lovasz: Weight = Field(0, description="1 − IoU of the batch, softly")
    hinge: Weight = Field(0, description="of a linear SVM")

    @model_validator(mode="after")
    def something_to_learn_from(self):
        if not any(self.model_dump().values()):
            raise ValueError(
                "train.loss: every weight is 0; give one of " + ", ".join(type(self).model_fields)
            )
        return self


class Train(Section):
    model: Model = Field(description="the network")
    init: StartingPoint = Field(
        None, description="a model folder to start from: a clean, robust or pre-trained one"
    )
    loss: Loss = Field(description="weights of a sum; 0 = off")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adamw", description="of the weights")
    learning_rate: Positive = Field(1e-3, description="the highest of the schedule")
    weight_decay: Weight = Field(1e-4, description="ℓ2 pull on the weights")
    momentum: Share = Field(0.9, description="sgd only")
    schedule: Literal["constant", "cosine", "one_cycle"] = Field(
        "one_cycle", description="of the learning rate"
    )
    epochs: Count = Field(description="passes; validation IoU is measured after each")
    steps_per_epoch: Count = Field(description="batches an epoch")
    batch_size: Count = Field(description="crops a step, over all processes")
    crop: Side = Field(description="pixels along a training crop's side")
    clip_gradient: Weight = Field(1.0, description="ℓ2 norm; 0 = off")
    patience: Whole = Field(
        0, description="epochs without a better validation IoU before stopping; 0 = never"
    )
    ema: float = Field(0, ge=0, lt=1, description="decay a step of the averaged weights; 0 = off")
    city_weighting: Literal["even", "root", "area"] = Field(
        "even", description="a city's share of crops, alike or by its area"
    )
    group_dro: Weight = Field(
        0,
        description="step of the cities' weights: train for the worst one (Sagawa 2020); 0.01 "
        "is theirs, 0 = off",
    )
    select: Literal["pooled", "worst_city"] = Field(
        "pooled", description="whose validation IoU keeps an epoch and, with patience, stops"
    )
    augment: Literal["none", "flips", "standard", "strong"] = Field(
        "standard", description="how crops are varied"
    )
    style: Share = Field(
        0,
        description="of crops that take on the mean and deviation of another of the batch, for "
        "cities never seen",
    )
    noise: Weight = Field(0, description="σ of Gaussian noise, in units of the pixel range [0,1]")
    adversarial: Adversarial = Field(Adversarial(), description="training on attacked batches")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the arithmetic"
    )
    compile: bool = Field(False, description="torch.compile: minutes to start, then faster on GPUs")
    workers: Whole = Field(0, description="loader processes; 0 = a thread of the trainer")
    glance: Whole = Field(
        0,
        description="batches that teach a glance which ground is empty, for predict.skip_empty; "
        "0 = none",
    )
    loggers: Once[Literal["csv", "tensorboard", "mlflow"]] = Field(
        [], description="who else is told, under logs/"
    )
    seed: Whole = Field(0, description="of weights, crops and noise")

    @model_validator(mode="after")
    def cities_of_the_batch(self):
        if self.group_dro and self.adversarial.method == "free":
            raise ValueError(
                "train.group_dro weighs the cities of a batch, and train.adversarial.method free "
                "replays older ones; "
                "take fast or pgd, or set train.group_dro to 0"
            )
        return self


class Evaluate(Section):
    split: Literal["test", "validation", "train"] = Field(
        "test", description="whose scenes are measured"
    )
    window: Side = Field(512, description="pixels along an inference window's side")
    overlap: Overlap = Field(0.25, description="share of a window")
    batch_size: Count = Field(4, description="windows a forward pass")
    augment: bool = Field(False, description="average over the eight flips and turns")
    bootstrap: Draws = Field(2000, description="draws for the 95 % intervals")
    block: int = Field(
        256, ge=64, description="least pixels of a block where a city has one test scene"
    )
    boundary: Positive | None = Field(
        1.5,
        description="metres, thickness of the boundary IoU's edges; null = 2 % of the image's "
        "diagonal",
    )
    size_bins: Annotated[list[Positive], Field(min_length=1)] = Field(
        [50, 150, 500], description="m², edges between building sizes"
    )

    neighbourhood: Positive = Field(
        100, description="metres, squares whose built share tells dense from sparse ground"
    )

    @field_validator("size_bins")
    @classmethod
    def rising(cls, edges):
        if any(b <= a for a, b in zip(edges, edges[1:], strict=False)):
            raise ValueError(f"sizes must rise from bin to bin; write {sorted(set(edges))}")
        return edges


# see attacks/methods.py
AttackMethod = Literal["fgsm", "pgd", "segpgd", "cospgd", "apgd", "soft_iou"]


# see attacks/physics.py
PhysicalFamily = Literal["gain", "haze", "colour", "blur", "shift", "turn", "shadow"]


class Physics(Section):
    families: Once[PhysicalFamily] = Field(
        [*get_args(PhysicalFamily)], description="what is searched; empty = off"
    )
    gain: float = Field(0.15, ge=0, lt=1, description="largest relative change of a band")
    offset: Share = Field(0.05, description="largest change of a band, pixel range [0,1]")
    haze: Weight = Field(0.3, description="largest optical depth βd of the air")
    mired: float = Field(30, ge=0, le=100, description="largest change of the light's 1e6 / kelvin")
    blur: float = Field(1.5, ge=0, le=16, description="largest σ of the optics, pixels")
    shift: Weight = Field(0.5, description="largest shift along each axis, pixels")
    rotation: float = Field(5, ge=0, le=45, description="degrees")
    scale: float = Field(0.05, ge=0, le=0.5, description="largest relative change")
    shadow: Share = Field(0.5, description="largest share of a pixel that a cloud's shadow takes")
    softness: Positive = Field(4, description="least width of a shadow's edge, pixels")
    tiles: Count = Field(8, description="of attack.tiles, at most")
    grid: Count = Field(9, description="points of a family's grid")
    steps: Whole = Field(4, description="gradients from the worst of them")
    cells: Count = Field(
        16, description="parts of gain's range that are each certified, where the model can be"
    )
    sun: dict[str, Annotated[tuple[float, float], AsList]] = Field(
        {},
        description="CITY: [azimuth clockwise from north, elevation], degrees: checks that "
        "buildings cast shadows",
    )

    @field_validator("sun")
    @classmethod
    def above_the_horizon(cls, sun):
        for city, (azimuth, elevation) in sun.items():
            if not (0 <= azimuth <= 360 and 0 < elevation < 90):
                raise ValueError(
                    f"the sun of {city} must stand at 0 to 360 degrees of azimuth, 0 "
                    f"to 90 of elevation"
                )
        return sun


class Attack(Section):
    model: str = Field("models/all", description="the model folder that is attacked")
    tiles: Count = Field(
        8, description="tiles a city, of the test split; fewer than eight say little"
    )
    crop: int = Field(
        64,
        ge=16,
        multiple_of=16,
        description="pixels along an attacked tile's side, cut to tile.size",
    )
    linf: Once[Positive] = Field(
        [0.5, 1, 2], description="budgets in 1/255; the audit adds the reference and 32"
    )
    l2: Once[Positive] = Field([], description="budgets in pixel units of the [0,1] range")
    methods: Once[AttackMethod] = Field(
        [*get_args(AttackMethod)], description="whose worst case is taken"
    )
    steps: Count = Field(5, description="gradients of pgd, segpgd, cospgd")
    apgd_steps: Count = Field(5, description="gradients of each apgd loss")
    soft_iou_steps: Count = Field(
        36, description="gradients of soft_iou, the strongest: the first to raise"
    )
    restarts: Count = Field(1, description="random starts of each pgd and apgd; the best counts")
    batch_size: Count = Field(8, description="tiles attacked at once")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of the arithmetic")
    targeted: Weight = Field(
        8, description="1/255, the ℓ∞ budget that erases and invents buildings; 0 = off"
    )
    universal: bool = Field(True, description="one perturbation for a whole city, and its transfer")
    patch: Whole = Field(32, description="pixels along a patch's side; 0 = off")
    transfer: str | None = Field(
        None, description="another model's folder; null = a noisy, tuned copy"
    )
    halving: bool = Field(True, description="bisect the budget that halves a city's IoU")
    physics: Physics = Field(Physics(), description="what sun, air and camera can do")
    reference: Positive = Field(
        1, description="1/255, the ℓ∞ budget of the audit and all but the main attacks"
    )
    seed: Whole = Field(0, description="of tiles and starts")


class Certificate(Section):
    """A road to a certificate: what it is called, the norm of its radii, and what it certifies,
    here and nowhere else.

    A new one is a section here and in METHODS, its rows in pipeline/certificates/ordering.py, and,
    where it needs a network of its own, its training in pipeline/stages/certify.py.
    """

    title: ClassVar[str]
    norm: ClassVar[Norm]
    delivered: ClassVar[str] = "the delivered model"
    # the network trained for it where certify.model is of another architecture
    own: ClassVar[str] = ""
    architectures: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def certifies(cls, model: "Model | None") -> bool:
        """Whether it can certify such a model as it is deployed; of a foreign network, None,
        nothing is known.
        """
        return model is not None and model.architecture in cls.architectures

    @classmethod
    def whose(cls, deployed: bool | None) -> str:
        """The model that is certified, in words."""
        return cls.delivered if deployed or not cls.own else cls.own


class Smoothing(Certificate):
    title: ClassVar[str] = "Randomised smoothing"
    norm: ClassVar[Norm] = "l2"
    delivered: ClassVar[str] = "the smoothed model, a majority vote under noise"

    @classmethod
    def certifies(cls, model: "Model | None") -> bool:
        return True

    sigma: Numbers = Field([0.05], description="noise σ, pixel range [0,1]")
    n0: Count = Field(8, description="samples that vote a class")
    n: Count = Field(64, description="samples that certify it")
    tau: float = Field(
        0.75, gt=0.5, lt=1, description="share of samples that must agree; radius σ·Φ⁻¹(τ)"
    )
    alpha: float = Field(0.001, gt=0, lt=1, description="family-wise error a tile")
    correction: Literal["holm", "bonferroni"] = Field("holm", description="over pixels")
    batch_size: Count = Field(16, description="samples a forward pass: bounds the memory")


class Convex(Certificate):
    title: ClassVar[str] = "Convex relaxation"
    norm: ClassVar[Norm] = "linf"
    own: ClassVar[str] = "a small network trained with interval bounds"
    architectures: ClassVar[tuple[str, ...]] = ("small_fcn", "small_unet")

    @classmethod
    def certifies(cls, model: "Model | None") -> bool:
        relu = model is not None and model.activation == "relu"  # no bound is known for minmax
        return relu and super().certifies(model)

    radii: Numbers = Field([0.5, 1, 2], description="ℓ∞, 1/255")
    objective: Literal["ibp", "dual"] = Field(
        "ibp",
        description="what training bounds by: intervals, or Wong and Kolter's dual by "
        "random projections",
    )
    train_epsilon: Positive = Field(2, description="1/255, the budget of training")
    steps: Count = Field(300, description="batches of training")
    width: Width = Field(16, description="channels of the certifiable network")
    architecture: Literal["small_fcn", "small_unet"] = Field(
        "small_fcn", description="the certifiable network"
    )
    chunk: Count = Field(
        32, description="backward CROWN passes held at once: more take memory and, on a CPU, time"
    )


class LipschitzNet(Certificate):
    title: ClassVar[str] = "Lipschitz network"
    norm: ClassVar[Norm] = "l2"
    own: ClassVar[str] = "a small 1-Lipschitz network"
    architectures: ClassVar[tuple[str, ...]] = ("lipschitz",)

    radii: Numbers = Field([0.05, 0.1, 0.3], description="ℓ2, pixel range [0,1]")
    steps: Count = Field(400, description="batches of hinge training")
    width: Width = Field(16, description="channels of the 1-Lipschitz network")
    margin: Positive = Field(0.1, description="ℓ2 radius the hinge asks for")
    group: Group = Field(2, description="channels that GroupSort sorts together; 2 = MinMax")


METHODS: dict[str, type[Certificate]] = {
    "smoothing": Smoothing,
    "convex": Convex,
    "lipschitz": LipschitzNet,
}
UNITS = {"linf": "ℓ∞, 1/255", "l2": "ℓ2, pixel range [0,1]"}  # of a certificate's radii


def proof_of(model: Model | None) -> str | None:
    """The method that proves the map such a model draws, and not that of a vote; None: none does."""
    return next((name for name in ("convex", "lipschitz") if METHODS[name].certifies(model)), None)


class Certify(Section):
    model: str = Field(
        "models/all",
        description="the model folder certified, by every method that its architecture allows",
    )
    methods: Once[Literal[*METHODS]] = Field(  # ty: ignore[invalid-type-form]  # names that a plugin may add to
        [*METHODS], description="roads to a certificate"
    )
    tiles: Count = Field(8, description="tiles a city")
    crop: int = Field(
        64, ge=16, multiple_of=16, description="pixels along the certified crop's side"
    )
    attack_steps: Count = Field(
        20, description="PGD gradients of the attacked IoU beside each certificate"
    )
    smoothing: Smoothing = Field(Smoothing(), description="a majority vote under noise")
    convex: Convex = Field(Convex(), description="interval and linear bounds of a small network")
    lipschitz: LipschitzNet = Field(LipschitzNet(), description="a network that bounds itself")
    seed: Whole = Field(0, description="of tiles, training and noise")


Adaptation = Literal["none", "histogram", "fda", "adabn", "entropy", "self_training"]
Start = Literal["random", "imagenet", "self_supervised", "other_cities"]


class Generalize(Section):
    epochs: Count | None = Field(None, description="of a fold's model; null = as train.epochs")
    single_city: bool = Field(False, description="also train one model a city")
    seeds: Annotated[Once[Whole], Field(min_length=1)] = Field(
        [0], description="one whole experiment each; several give mean and spread"
    )
    bootstrap: Draws = Field(2000, description="draws for the 95 % intervals")
    corruptions: bool = Field(True, description="measure the frozen table of corruptions")
    corruption_tiles: Count = Field(4, description="tiles a city a corruption is measured on")
    adaptation: Once[Adaptation] = Field(
        ["none", "histogram", "fda", "adabn"], description="to the new city"
    )
    adaptation_tiles: Count = Field(
        32, description="unlabelled tiles of the new city an adaptation sees"
    )
    adaptation_steps: Count = Field(20, description="batches of entropy and self_training")
    attack_steps: Whole = Field(
        5, description="PGD gradients on the held-out city's tiles; 0 = off"
    )
    fractions: Once[Annotated[float, Field(gt=0, le=1)]] = Field(
        [], description="shares of training scenes; empty = off"
    )
    initialisations: Once[Start] = Field(["random"], description="of the curve over fractions")
    seed: Whole = Field(0, description="of tiles and draws")


class Explain(Section):
    tiles: Count = Field(
        24, description="tiles a city, of the test split; fewer than eight say little"
    )
    buildings: Whole = Field(
        4, description="buildings a city that are explained, one a tile; 0 = none"
    )
    steps: Count = Field(16, description="gradients of an integral")
    square: Count = Field(
        16, description="pixels along what is occluded, deleted and inserted at once"
    )
    seed: Whole = Field(0, description="of tiles, shuffles and random orders")


class Incremental(Section):
    architecture: Literal["small_fcn", "small_unet"] = Field(
        "small_unet", description="the network"
    )
    width: Width = Field(8, description="its channels")
    methods: Annotated[Once[Literal["finetune", "replay", "lwf", "ewc"]], Field(min_length=1)] = (
        Field(
            ["finetune", "replay", "lwf", "ewc"],
            description="against forgetting; the joint model is always there",
        )
    )
    orders: Count = Field(
        2, description="in which the cities arrive: as listed, reversed, then drawn"
    )
    steps: Count = Field(60, description="batches a city")
    batch_size: Annotated[int, Field(ge=2)] = Field(8, description="crops a step")
    crop: Side = Field(64, description="pixels along a training crop's side, cut to tile.size")
    learning_rate: Positive = Field(
        1e-2, description="the highest of the schedule, anew for each city"
    )
    replay: Count = Field(8, description="tiles a city that replay keeps")
    distillation: Weight = Field(1, description="weight of what the network before says: lwf, mib")
    ewc: Weight = Field(1000, description="λ of the quadratic penalty")
    tiles: Count = Field(24, description="tiles a city that is measured on, of the test split")
    bootstrap: Draws = Field(2000, description="draws for the 95 % intervals")
    seed: Whole = Field(0, description="of weights, crops, tiles and orders")


class Private(Section):
    architecture: Literal["small_fcn", "small_unet"] = Field(
        "small_fcn", description="the network, without batch norm"
    )
    width: Width = Field(8, description="its channels: fewer weights take less noise")
    epsilon: Once[Positive] = Field([8], description="ε to train at, one network each; empty = off")
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="δ; null = 0.1 / records"
    )
    unit: Literal["scene", "tile"] = Field("tile", description="the record that ε is of")
    rate: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="chance of a record to be drawn in a step"
    )
    clip: Positive = Field(1, description="ℓ2 norm that a record's gradient is clipped to")
    steps: Count = Field(100, description="noisy steps")
    crop: Side = Field(32, description="pixels along a crop's side")
    learning_rate: Positive = Field(1e-2, description="of Adam")


class Privacy(Section):
    model: str = Field(
        "models/all", description="the model folder that is asked what it was trained on"
    )
    references: Once[str] = Field(
        [], description="model folders beside models/folds, each for the cities it has not seen"
    )
    tiles: Count = Field(64, description="tiles a city, of training and of test scenes each")
    private: Private = Field(
        Private(), description="training with differential privacy (DP-SGD), a small network"
    )
    planted: Whole = Field(
        50, description="times a test scene is repeated in a training that goes on; 0 = off"
    )
    planted_steps: Count = Field(200, description="batches that this training goes on for")
    bootstrap: Draws = Field(2000, description="draws for the 95 % intervals")
    seed: Whole = Field(0, description="of tiles, training and noise")


LearningStrategy = Literal["random", "active", "core_set"]


class FewLabels(Section):
    samples: Once[Count] = Field(
        [10, 20, 40], description="labelled frames that an interval is made from"
    )
    draws: Whole = Field(1000, description="samples that intervals are tried on; 0 = off")
    recall: float = Field(
        0.8, gt=0, lt=1, description="that a threshold is to promise of a frame, at 95 %"
    )
    budgets: Once[Count] = Field(
        [],
        description="labelled frames to learn from; empty = off, each is a training a city and "
        "strategy",
    )
    strategies: Once[LearningStrategy] = Field(
        ["random", "active"], description="by which those frames are drawn"
    )
    steps: Count = Field(80, description="batches of a fine-tuning")
    side: Side = Field(128, description="pixels along a frame's side")
    seed: Whole = Field(0, description="of draws, crops and frames")


class Pretrain(Section):
    steps: Count = Field(300, description="batches")
    batch_size: Count = Field(8, description="crops a step")
    crop: Side = Field(128, description="pixels along a crop's side")
    tiles: Count = Field(64, description="unlabelled crops a city")
    square: Count = Field(16, description="pixels along a hidden square's side")
    hidden: float = Field(0.5, gt=0, lt=1, description="share of squares hidden")
    learning_rate: Positive = Field(1e-3, description="the highest of the schedule")
    seed: Whole = Field(0, description="of weights and crops")


class Report(Section):
    title: str = Field("Buildings from the air", description="the headline")
    scenes: Count | None = Field(5, description="scenes a city in the viewer; null = all")
    image_side: int = Field(640, ge=64, description="pixels of a viewer image's longer side")


Outline = Literal["regular", "simplified", "raw"]


class Predict(Section):
    window: Side = Field(512, description="pixels along an inference window's side")
    overlap: Overlap = Field(0.25, description="share of a window")
    batch_size: Count = Field(4, description="windows a forward pass")
    augment: bool = Field(False, description="average over the eight flips and turns")
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="null = the model card's, from validation"
    )
    probability: bool = Field(False, description="also write calibrated probabilities")
    uncertainty: bool = Field(
        False,
        description="also write the deviation over the eight flips and turns; implies augment",
    )
    certified: bool = Field(
        False,
        description="also write which pixels are proven (small_fcn, small_unet, lipschitz); slow",
    )
    radius: Positive | None = Field(
        None,
        description="of certified: ℓ∞, 1/255; of lipschitz ℓ2, pixel range; null = certify's "
        "least default",
    )
    polygons: Literal["gpkg", "fgb", "parquet", "geojson", "pmtiles", "none"] = Field(
        "gpkg", description="format of the outlines"
    )
    skip_empty: bool = Field(
        False, description="pass over windows in which a glance sees no building (train.glance)"
    )
    min_area: Weight = Field(10, description="m², smaller polygons are dropped")
    split: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3,
        description="probability of a contact at which buildings come apart, of models that "
        "tell; 1 = off",
    )
    neck: float = Field(
        0.65,
        ge=0,
        lt=1,
        description="of the width of the narrower of two parts: where a mask is narrower between "
        "them, they come apart; 0 = off",
    )
    outlines: Outline = Field(
        "regular", description="straight walls (regular), simplified, or the raster's own (raw)"
    )
    stac: bool = Field(
        False, description="also write a STAC item a map, and a stac-geoparquet index of the run"
    )

    @model_validator(mode="after")
    def proven_is_looked_at(self):
        if self.certified and self.skip_empty:
            raise ValueError(
                "predict.certified says nothing of a glance; set it or predict.skip_empty to false"
            )
        return self


class Params(Section):
    fetch: Fetch = Field(description="where the imagery comes from")
    tile: Tile = Field(description="one ground sample distance, labels on the grid, splits")
    train: Train = Field(description="the segmenter and how it learns")
    evaluate: Evaluate = Field(Evaluate(), description="IoU per city over whole scenes")
    attack: Attack = Field(Attack(), description="IoU under attack")
    certify: Certify = Field(Certify(), description="certified IoU")
    generalize: Generalize = Field(Generalize(), description="IoU in a city never seen")
    explain: Explain = Field(
        Explain(), description="what the map rests on, and whether its explanations hold"
    )
    incremental: Incremental = Field(
        Incremental(), description="cities, and a class, that arrive one after another"
    )
    privacy: Privacy = Field(Privacy(), description="does the model tell what it was trained on?")
    few_labels: FewLabels = Field(
        FewLabels(), description="what an hour of labelling buys in a city never seen"
    )
    pretrain: Pretrain = Field(Pretrain(), description="self-supervised start on unlabelled tiles")
    report: Report = Field(Report(), description="the page")
    predict: Predict = Field(Predict(), description="defaults of the predict verb")

    @model_validator(mode="after")
    def smaller_than_what_they_lie_in(self):
        tile, attack, private = self.tile.size, self.attack, self.privacy.private
        if attack.patch > min(attack.crop, tile):
            raise ValueError(
                f"attack.patch is {attack.patch}, but the tiles under attack are "
                f"{min(attack.crop, tile)} pixels wide (attack.crop, tile.size); take a smaller "
                f"patch, or 0"
            )
        if private.unit == "tile" and private.crop > tile:
            raise ValueError(
                f"privacy.private.crop is {private.crop}, but a record is a tile and tile.size "
                f"{tile}; take a smaller crop, or privacy.private.unit scene"
            )
        return self

    def of_folds(self, seed: int | None = None) -> "Params":
        """What a fold, and what it is compared with, is trained with: generalize.epochs, and where
        one is given a seed of the experiment.
        """
        train, epochs = self.train, self.generalize.epochs or self.train.epochs
        of_fold = {"epochs": epochs, "seed": train.seed if seed is None else seed}
        return self.model_copy(update={"train": train.model_copy(update=of_fold)})


class OnlyPredict(Section, extra="ignore"):
    """A params.yaml of which only the section predict matters: the rest may be
    another project's.
    """

    predict: Predict = Predict()


def _known_keys(section: type[Section], location: tuple) -> list[str]:
    """The keys of the section inside `section` that `location` (pydantic's path
    to an error) ends in.
    """
    kind: Any = section
    for key in location[:-1]:
        if isinstance(kind, type) and issubclass(kind, Section):
            kind = kind.model_fields[key].annotation
        else:  # a dict or list of sections
            kind = get_args(kind)[-1]
    return list(kind.model_fields)


def _quoted(value: object) -> str:
    """The remedy where YAML took a name for something else: NO and on for a
    truth, 2024 for a number.
    """
    if value is None or isinstance(value, dict | list):
        return ""
    word = ("NO", "YES")[value] if isinstance(value, bool) else value
    return f'; quote it, "{word}" or however it is written there, if it is a name'


def _sentence(error: ErrorDetails, section: type[Section], path: Path, example: str) -> str:
    key = ".".join(short(" ".join(str(part).split())) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = nearest(str(error["loc"][-1]), _known_keys(section, error["loc"]))
        return f"{path}: unknown parameter {key}; did you mean {near}?"
    if error["type"] == "missing":
        return f"{path}: parameter {key} is missing; see {example}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "it must")
    message = message.replace("List should have", "it must have").replace(" after validation", "")
    if error["type"] == "string_type":
        message += _quoted(error["input"])
    if message.startswith(key):  # it says itself what it is about
        return f"{path}: {message}"
    return f"{path}: {key} is {reprlib.repr(error['input'])}, but {message}"


def parse_section(
    section: type[Parsed], values: object, path: Path | None = None, example: str = EXAMPLE
) -> Parsed:
    """Check nested dicts against a schema. Raises InputError with one sentence a mistake."""
    path = path or Path(section.__name__.lower())
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: expected keys such as {next(iter(section.model_fields))}:, see {example}"
        )
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise InputError(
            "\n".join(_sentence(e, section, path, example) for e in error.errors())
        ) from None


class _Loader(yaml.SafeLoader):
    """YAML without its traps: of a key written twice the last silently wins, 1e-3 is a word, and so
    is 08, which is a number to DVC, a reader of YAML 1.2.
    """

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ConstructorError(None, None, f"{twice[0]} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$|0\d*[89]\d*$"),
    list("-+.0123456789"),
)


def load_section(section: type[Parsed], path: str | Path, example: str) -> Parsed:
    """Read and check a YAML file. Raises InputError when it is absent, is not
    YAML, or breaks the schema.
    """
    path = Path(path)
    try:
        data = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); see {example}") from None
    # ValueError: no such day, too many digits
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse_section(section, data, path, example)


def parse_params(data: object) -> Params:
    """Check what a params.yaml holds. Raises InputError with one sentence a mistake."""
    return parse_section(Params, data, Path("params.yaml"))


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a params.yaml. Raises InputError: see `load_section`."""
    return load_section(Params, path, EXAMPLE)
