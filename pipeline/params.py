"""The typed schema of params.yaml: one class a section, one section a stage.

`load_params(path)` reads the file strictly: an unknown key names its nearest known one, a wrong value names what is
allowed, and both happen before any stage starts.
"""

import os
import re
import reprlib
import unicodedata
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import InputError, nearest

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=1024)]  # channels of a layer
Widths = Annotated[list[Width], Field(max_length=8)]
GroundSampleDistance = Annotated[float, Field(ge=0.01, le=30)]  # metres
AsList = Field(strict=False)  # of a tuple, which YAML writes as a list


EXAMPLE = "presets/demo.yaml"  # a params.yaml with every parameter


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Parsed = TypeVar("Parsed", bound=Section)


# A city's name is a folder, a stage of DVC's matrix, an option's value and a key beside those of the metrics.
SIGNS = frozenset(" _-.,()&+")
LONGEST_CITY = 100  # bytes; a file system takes 255, and temporary names are longer
KEYS = {"all", "city", "mean", "mean_city", "mean city", "pooled", "worst_city"}


class CityOverride(Section):
    """What a folder city's files do not say themselves."""

    gsd: Positive | None = None  # metres on the ground, where the images carry no CRS
    bands: Annotated[list[Count], Field(min_length=1)] | None = None  # 1-based, in the order red, green, blue
    range: Annotated[tuple[float, float], AsList] | None = None  # values mapped to 0 and 255
    building: Literal[1, 255] | None = None  # its value in label rasters; null = 255 where none holds a 1
    unlabelled: Literal["background", "ignore"] | None = None  # scenes without a footprint or label; null = background
    where: Annotated[str, Field(min_length=1)] | None = None  # SQL: which footprints are buildings

    @field_validator("range")
    @classmethod
    def low_before_high(cls, value):
        if value and value[0] >= value[1]:
            raise ValueError("it must be two values, the lower first")
        return value


OVERRIDES = {"folder": set(CityOverride.model_fields), "open_buildings": {"bands", "range"}}  # a source reads


class Fetch(Section):
    source: Literal["demo", "folder", "inria", "open_buildings"]
    path: str  # what the source reads: its manifest, or the folder of imagery; DVC watches it
    cities: Annotated[list[str], Field(min_length=1)]
    scenes: Annotated[list[Count], Field(min_length=1)] | Literal["all"] = "all"  # inria, demo: their numbers
    scene_size: Annotated[int, Field(ge=64, le=20_000)] = 640  # demo: pixels along a scene's side
    seed: Annotated[int, Field(ge=0)] = 0
    archive: str | None = None  # inria: a downloaded .7z.001/.zip, or the unpacked AerialImageDataset folder
    keep_archive: bool = True  # inria: keep the verified archive for the next city
    official_split: bool = True  # inria: scenes 1-5 of a city are its test split; false = tile draws every split
    precision: Literal[80, 85, 90] = 90  # open_buildings: per-cell confidence threshold, % precision
    overrides: dict[str, CityOverride] = {}

    @field_validator("scenes", mode="wrap")
    @classmethod
    def all_or_numbers(cls, value, check):
        try:
            return check(value)
        except ValidationError:
            raise ValueError("it must be all, or a list of scene numbers such as [1, 2]") from None

    @model_validator(mode="after")
    def cities_once(self):
        twice = sorted({c for c in self.cities if self.cities.count(c) > 1})
        if twice:
            raise ValueError(f"fetch.cities names {', '.join(twice)} twice; name each city once")
        for city in self.cities:
            check_city(city)
        known = {}
        for city in self.cities:
            if (other := known.setdefault(folded(city), city)) != city:
                raise ValueError(f"fetch.cities: {other} and {city} differ by case only, one folder on some disks")
        for city in sorted(set(self.overrides) - set(self.cities)):
            near = nearest(city, self.cities)
            raise ValueError(f"fetch.overrides: {city} is not one of fetch.cities; did you mean {near}?")
        for city, override in self.overrides.items():
            stated = {key for key, value in override if value is not None}
            if unread := sorted(stated - OVERRIDES.get(self.source, set())):
                raise ValueError(f"fetch.overrides.{city}.{unread[0]}: source {self.source} reads none; take it out")
        return self


def check_city(city: str) -> None:
    """Raise ValueError where a city cannot be called so. Letters of any script may stand in its name."""
    signs = [sign for sign in city if unicodedata.category(sign)[0] not in "LMN"]  # letter, mark, number
    plain = city == city.strip() and city[:1] not in SIGNS - {"_"} and set(signs) <= SIGNS
    if not city or not plain or len(city.encode()) > LONGEST_CITY:
        raise ValueError(
            f"fetch.cities: {city!r} cannot be a folder's name and a stage's; take letters, digits, - and _"
        )
    if folded(city) in KEYS:
        raise ValueError(f"fetch.cities: {city} means something else in the metrics; give the city another name")


def folded(name: str) -> str:
    """What two names that are one folder on some disks have in common."""
    return unicodedata.normalize("NFC", name).casefold()


class Tile(Section):
    gsd: GroundSampleDistance  # metres on the ground per pixel
    size: Annotated[int, Field(ge=32, le=4096, multiple_of=32)]  # pixels along a tile's side
    bands: Annotated[list[Count], Field(min_length=1)] = [1, 2, 3]
    margin: Annotated[int, Field(ge=0)] | None = None  # pixels between blocks of a single scene; null = one tile
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.15  # share of a city's scenes
    test: Annotated[float, Field(gt=0, lt=0.6)] = 0.2  # share of a city's scenes
    seed: Annotated[int, Field(ge=0)] = 0
    max_upsampling: Annotated[float, Field(ge=1)] = 1.5  # warn beyond this factor
    all_touched: bool = False  # rasterise every pixel a footprint touches, not only covered centres
    memory: Annotated[int, Field(ge=64)] = 512  # MB one scene's windows may hold
    workers: Annotated[int, Field(ge=0)] = 0  # processes; 0 = one a core


WRITTEN = re.compile(r"models/(all|certify|folds|without-[^/]*)(/.*)?")  # by stages: DVC deletes it before they run


def written_by_a_stage(path: str) -> bool:
    return bool(WRITTEN.fullmatch(Path(os.path.relpath(Path(path).resolve())).as_posix()))


def _not_written(path: str | None) -> str | None:
    if path and written_by_a_stage(path):
        raise ValueError("a stage writes there, and DVC deletes it first; start from a copy elsewhere (cp -r)")
    return path


StartingPoint = Annotated[str | None, AfterValidator(_not_written)]


class Model(Section):
    architecture: Literal[
        "unet", "unet++", "fpn", "deeplabv3+", "segformer", "manet", "linknet", "pspnet", "pan", "upernet",
        "fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101",
        "linear", "window_cnn", "small_fcn", "small_unet", "lipschitz",
    ]  # fmt: skip
    encoder: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "resnet18"  # any encoder of segmentation-models-pytorch
    encoder_weights: StartingPoint = None  # null, imagenet, or a file of weights
    decoder_channels: Widths | None = None  # unet, unet++, manet: widths from deep to shallow; null = their own
    classes: Annotated[int, Field(ge=1, le=254)] = 1  # kinds of foreground, background not counted
    activation: Literal["relu", "minmax"] = "relu"
    width: Width = 32  # channels of window_cnn, small_fcn, small_unet and lipschitz
    group: Annotated[int, Field(ge=2, le=64)] = 2  # lipschitz: channels that GroupSort sorts together; 2 = MinMax


class Adversarial(Section):
    method: Literal["none", "pgd", "trades", "fast", "free"] = "none"
    norm: Literal["linf", "l2"] = "linf"
    epsilon: Annotated[float, Field(ge=0)] = 4  # linf: budget in 1/255; l2: in units of the pixel range [0,1]
    steps: Count = 5  # gradient steps a batch
    beta: Positive = 6  # trades: weight of the KL term
    warmup: Share = 0  # share of training over which ε grows from 0


class Loss(Section):
    """Weights of a sum; 0 = off."""

    cross_entropy: Weight = 0
    dice: Weight = 0
    focal: Weight = 0
    lovasz: Weight = 0
    hinge: Weight = 0

    @model_validator(mode="after")
    def something_to_learn_from(self):
        if not any(self.model_dump().values()):
            raise ValueError("train.loss: every weight is 0; give one of " + ", ".join(type(self).model_fields))
        return self


class Train(Section):
    model: Model
    init: StartingPoint = None  # a model folder to start from: a clean, robust or pre-trained one
    loss: Loss
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    momentum: Share = 0.9
    schedule: Literal["constant", "cosine", "one_cycle"] = "one_cycle"
    epochs: Count
    steps_per_epoch: Count  # batches an epoch
    batch_size: Count  # crops a step, over all processes
    crop: Annotated[int, Field(ge=32, multiple_of=32)]  # pixels along a training crop's side
    clip_gradient: Annotated[float, Field(ge=0)] = 1.0  # ℓ2 norm; 0 = off
    patience: Annotated[int, Field(ge=0)] = 0  # epochs without a better validation IoU before stopping; 0 = never
    ema: Annotated[float, Field(ge=0, lt=1)] = 0  # decay a step of the averaged weights; 0 = off
    city_weighting: Literal["even", "root", "area"] = "even"
    augment: Literal["none", "flips", "standard", "strong"] = "standard"
    noise: Annotated[float, Field(ge=0)] = 0  # σ of Gaussian noise, in units of the pixel range [0,1]
    adversarial: Adversarial = Adversarial()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    workers: Annotated[int, Field(ge=0)] = 0  # loader processes; 0 = a thread of the trainer
    seed: Annotated[int, Field(ge=0)] = 0


class Evaluate(Section):
    split: Literal["test", "validation", "train"] = "test"
    window: Annotated[int, Field(ge=32, multiple_of=32)] = 512  # pixels along an inference window's side
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = 0.25  # share of a window
    batch_size: Count = 4
    augment: bool = False  # average over the eight flips and turns
    bootstrap: Annotated[int, Field(ge=100)] = 2000  # draws for the 95 % intervals
    block: Annotated[int, Field(ge=16)] = 128  # pixels of a bootstrap block where a city has one test scene
    boundary: Positive = 1.5  # metres of tolerance of the boundary IoU
    size_bins: Annotated[list[Positive], Field(min_length=1)] = [50, 150, 500]  # m², edges between building sizes

    @field_validator("size_bins")
    @classmethod
    def rising(cls, edges):
        if any(b <= a for a, b in zip(edges, edges[1:], strict=False)):
            raise ValueError(f"sizes must rise from bin to bin; write {sorted(set(edges))}")
        return edges


AttackMethod = Literal["fgsm", "pgd", "segpgd", "cospgd", "apgd", "soft_iou"]  # see robustness/methods.py


class Attack(Section):
    model: str = "models/all"
    tiles: Annotated[int, Field(ge=1)] = 2  # tiles a city, drawn from the test split
    linf: list[Positive] = [0.5, 1, 2]  # budgets in 1/255; the audit adds the reference and 32
    l2: list[Positive] = []  # budgets in pixel units of the [0,1] range
    methods: list[AttackMethod] = list(get_args(AttackMethod))  # drop any: the worst case is over the others
    steps: Count = 5  # gradients of pgd, segpgd, cospgd
    apgd_steps: Count = 5  # gradients of each apgd loss
    soft_iou_steps: Count = 36  # gradients of soft_iou, the strongest: the first to raise
    restarts: Count = 1  # random starts of each pgd and apgd; the best counts
    batch_size: Count = 8
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    targeted: Annotated[float, Field(ge=0)] = 8  # 1/255, the ℓ∞ budget that erases and invents buildings; 0 = off
    universal: bool = True
    patch: Annotated[int, Field(ge=0)] = 32  # pixels along a patch's side; 0 = off
    transfer: str | None = None  # another model's folder; null = a noisy, tuned copy
    halving: bool = True  # bisect the budget that halves a city's IoU
    reference: Positive = 1  # 1/255, the ℓ∞ budget of the audit and all but the main attacks
    seed: Annotated[int, Field(ge=0)] = 0


class Certificate(Section):
    """A road to a certificate: what it is called, the norm of its radii, and what it certifies, here and nowhere else.

    A new one is a section here and in METHODS, its rows in pipeline/robustness/sandwich.py, and, where it needs a
    network of its own, its training in pipeline/stages/certify.py.
    """

    title: ClassVar[str]
    norm: ClassVar[Literal["linf", "l2"]]
    delivered: ClassVar[str] = "the delivered model"
    own: ClassVar[str] = ""  # the network trained for it where certify.model is of another architecture
    architectures: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def certifies(cls, model: "Model") -> bool:
        """Whether it can certify such a model as it is deployed."""
        return model.architecture in cls.architectures

    @classmethod
    def whose(cls, deployed: bool) -> str:
        """The model that is certified, in words."""
        return cls.delivered if deployed or not cls.own else cls.own


class Smoothing(Certificate):
    title: ClassVar[str] = "Randomised smoothing"
    norm: ClassVar[str] = "l2"
    delivered: ClassVar[str] = "the smoothed model, a majority vote under noise"

    @classmethod
    def certifies(cls, model: "Model") -> bool:
        return True

    sigma: Annotated[list[Positive], Field(min_length=1)] = [0.05]  # noise σ, pixel range [0,1]
    n0: Count = 8  # samples that vote a class
    n: Count = 64  # samples that certify it
    tau: Annotated[float, Field(gt=0.5, lt=1)] = 0.75
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001  # family-wise error a tile
    correction: Literal["holm", "bonferroni"] = "holm"
    batch_size: Count = 16


class Convex(Certificate):
    title: ClassVar[str] = "Convex relaxation"
    norm: ClassVar[str] = "linf"
    own: ClassVar[str] = "a small network trained with interval bounds"
    architectures: ClassVar[tuple[str, ...]] = ("small_fcn", "small_unet")

    @classmethod
    def certifies(cls, model: "Model") -> bool:
        return super().certifies(model) and model.activation == "relu"  # no bound is known for minmax

    radii: Annotated[list[Positive], Field(min_length=1)] = [0.5, 1, 2]  # ℓ∞, 1/255
    train_epsilon: Positive = 2  # 1/255, the budget of IBP training
    steps: Count = 300
    width: Width = 16
    architecture: Literal["small_fcn", "small_unet"] = "small_fcn"
    chunk: Count = 256  # backward CROWN passes held at once: bounds the memory


class LipschitzNet(Certificate):
    title: ClassVar[str] = "Lipschitz network"
    norm: ClassVar[str] = "l2"
    own: ClassVar[str] = "a small 1-Lipschitz network"
    architectures: ClassVar[tuple[str, ...]] = ("lipschitz",)

    radii: Annotated[list[Positive], Field(min_length=1)] = [0.05, 0.1, 0.3]  # ℓ2, pixel range [0,1]
    steps: Count = 400
    width: Width = 16
    margin: Positive = 0.1  # ℓ2 radius the hinge asks for
    group: Annotated[int, Field(ge=2, le=64)] = 2  # channels that GroupSort sorts together; 2 = MinMax


METHODS: dict[str, type[Certificate]] = {"smoothing": Smoothing, "convex": Convex, "lipschitz": LipschitzNet}
UNITS = {"linf": "ℓ∞, 1/255", "l2": "ℓ2, pixel range [0,1]"}  # of a certificate's radii


class Certify(Section):
    model: str = "models/all"
    methods: list[Literal[*METHODS]] = [*METHODS]
    tiles: Count = 2  # tiles a city
    crop: Annotated[int, Field(ge=16, multiple_of=16)] = 64  # pixels along the certified crop's side
    attack_steps: Count = 20  # PGD gradients of the attacked IoU beside each certificate
    smoothing: Smoothing = Smoothing()
    convex: Convex = Convex()
    lipschitz: LipschitzNet = LipschitzNet()
    seed: Annotated[int, Field(ge=0)] = 0


class Generalize(Section):
    epochs: Annotated[int, Field(ge=1)] | None = None  # of a fold's model; null = as train.epochs
    single_city: bool = False  # also train one model a city
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    corruptions: bool = True
    corruption_tiles: Count = 4  # tiles a city a corruption is measured on
    adaptation: list[Literal["none", "histogram", "fda", "adabn", "entropy", "self_training"]] = [
        "none", "histogram", "fda", "adabn",
    ]  # fmt: skip
    adaptation_tiles: Count = 32  # unlabelled tiles of the new city an adaptation sees
    adaptation_steps: Count = 20  # batches of entropy and self_training
    attack_steps: Annotated[int, Field(ge=0)] = 5  # PGD gradients on the held-out city's tiles; 0 = off
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = []  # shares of training scenes; empty = off
    initialisations: list[Literal["random", "imagenet", "self_supervised", "other_cities"]] = ["random"]
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("seeds", "fractions", "initialisations", "adaptation")
    @classmethod
    def once_each(cls, values):
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{twice[0]} stands in it twice, and a copy measures nothing new; drop one")
        return values


class Pretrain(Section):
    steps: Count = 300  # batches
    batch_size: Count = 8
    crop: Annotated[int, Field(ge=32, multiple_of=32)] = 128  # pixels along a crop's side
    tiles: Count = 64  # unlabelled crops a city
    square: Count = 16  # pixels along a hidden square's side
    hidden: Annotated[float, Field(gt=0, lt=1)] = 0.5  # share of squares hidden
    learning_rate: Positive = 1e-3
    seed: Annotated[int, Field(ge=0)] = 0


class Report(Section):
    title: str = "Buildings from the air"
    scenes: Count | None = 5  # scenes a city in the viewer; null = all
    image_side: Annotated[int, Field(ge=64)] = 640  # pixels of a viewer image's longer side


class Predict(Section):
    window: Annotated[int, Field(ge=32, multiple_of=32)] = 512
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = 0.25
    batch_size: Count = 4
    augment: bool = False  # average over the eight flips and turns
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None  # null = the model card's, from validation
    probability: bool = False  # also write calibrated probabilities
    uncertainty: bool = False  # also write the deviation over the eight flips and turns; implies augment
    polygons: Literal["gpkg", "fgb", "parquet", "geojson", "none"] = "gpkg"
    min_area: Annotated[float, Field(ge=0)] = 10  # m², smaller polygons are dropped
    simplify: Annotated[float, Field(ge=0)] = 0  # metres
    square: bool = False  # right angles


class Params(Section):
    fetch: Fetch
    tile: Tile
    train: Train
    evaluate: Evaluate = Evaluate()
    attack: Attack = Attack()
    certify: Certify = Certify()
    generalize: Generalize = Generalize()
    pretrain: Pretrain = Pretrain()
    report: Report = Report()
    predict: Predict = Predict()


class OnlyPredict(Section, extra="ignore"):
    """A params.yaml of which only the section predict matters: the rest may be another project's."""

    predict: Predict = Predict()


def _known_keys(section: type[Section], location: tuple) -> list[str]:
    """The keys of the section inside `section` that `location` (pydantic's path to an error) ends in."""
    kind = section
    for key in location[:-1]:
        if isinstance(kind, type) and issubclass(kind, Section):
            kind = kind.model_fields[key].annotation
        else:  # a dict or list of sections
            kind = get_args(kind)[-1]
    return list(kind.model_fields)


def _quoted(value: object) -> str:
    """The remedy where YAML took a name for something else: NO and on for a truth, 2024 for a number."""
    if value is None or isinstance(value, dict | list):
        return ""
    return f'; quote it, "{("NO", "YES")[value] if isinstance(value, bool) else value}", if it is a name'


def _sentence(error: dict, section: type[Section], path: Path, example: str) -> str:
    key = ".".join(" ".join(str(part).split()) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = nearest(str(error["loc"][-1]), _known_keys(section, error["loc"]))
        return f"{path}: unknown parameter {key}; did you mean {near}?"
    if error["type"] == "missing":
        return f"{path}: parameter {key} is missing; {example} shows every one"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "it must")
    message = message.replace("List should have", "it must have").replace(" after validation", "")
    if error["type"] == "string_type":
        message += _quoted(error["input"])
    if message.startswith(key):  # it says itself what it is about
        return f"{path}: {message}"
    return f"{path}: {key} is {reprlib.repr(error['input'])}, but {message}"


def parse_section(section: type[Parsed], values: object, path: Path | None = None, example: str = EXAMPLE) -> Parsed:
    """Check nested dicts against a schema. Raises InputError with one sentence a mistake."""
    path = path or Path(section.__name__.lower())
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys such as {next(iter(section.model_fields))}:, see {example}")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_sentence(e, section, path, example) for e in error.errors())) from None


class _Loader(yaml.SafeLoader):
    """YAML without its two traps: of a key written twice the last silently wins, and 1e-3 is a word."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_section(section: type[Parsed], path: str | Path, example: str) -> Parsed:
    """Read and check a YAML file. Raises InputError when it is absent, is not YAML, or breaks the schema."""
    path = Path(path)
    try:
        data = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); an example is {example}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no such day, too many digits
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse_section(section, data, path, example)


def parse_params(data: object) -> Params:
    """Check what a params.yaml holds. Raises InputError with one sentence a mistake."""
    return parse_section(Params, data, Path("params.yaml"))


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a params.yaml. Raises InputError: see `load_section`."""
    return load_section(Params, path, EXAMPLE)
