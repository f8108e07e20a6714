"""The typed schema of metrics/: one class a file, one file a stage, as
pipeline/params.py is of params.yaml.

What a number means stands here and nowhere else; `python -m pipeline metrics` prints it as
docs/metrics.md. `write` keeps what a stage has found and refuses what is not described; `read`
takes files of older versions too, whose numbers may be fewer, or more. A stage that has not run has
an empty record.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InputError
from pipeline.storage import read_json, write_json

Number = float | None  # null: there was nothing to measure
Count = int | None
Low = Annotated[Number, Field(description="the 95 % interval's lower end")]
High = Annotated[Number, Field(description="the 95 % interval's upper end")]

# The keys of tables, by what they are called on the page.
City = Annotated[str, "CITY"]
Name = Annotated[str, "NAME"]
Budget = Annotated[str, "BUDGET"]
Radius = Annotated[str, "RADIUS"]
Method = Annotated[str, "METHOD"]
Model = Annotated[str, "MODEL"]
Bin = Annotated[str, "M²"]
Class = Annotated[str, "CLASS"]
Kind = Annotated[str, "KIND"]
Group = Annotated[str, "GROUP"]
Check = Annotated[str, "CHECK"]
Severity = Annotated[str, "SEVERITY"]
Share = Annotated[str, "SHARE"]
Start = Annotated[str, "START"]
Frames = Annotated[str, "FRAMES"]


class Record(BaseModel):
    """What another version has written beside it is kept."""

    model_config = ConfigDict(
        extra="allow", frozen=True, strict=True, allow_inf_nan=False, serialize_by_alias=True
    )


class OpenRecord(Record):
    """One with typed values under names that a registry has, beside what is always there; its
    docstring, or that of the record which they are, says what they mean.
    """


class TrainMetrics(Record):
    """How well the delivered model maps its validation scenes, and how it was trained."""

    validation_iou: Number = Field(
        None, description="IoU of the validation scenes, of the epoch that is kept"
    )
    validation_worst_city_iou: Number = Field(None, description="of the city where that is least")
    temperature: Number = Field(None, description="that calibrates its probabilities")
    seconds: Number = Field(None, description="of training")
    resumed: bool | None = Field(None, description="whether an interrupted run was gone on with")
    device: str | None = Field(None, description="it was trained on: cpu, cuda")
    precision: str | None = Field(None, description="of the arithmetic")
    processes: Count = Field(None, description="that trained together")
    torch: str | None = Field(None, description="its version")


class Pooled(Record):
    iou: Number = Field(None, description="Σ∩/Σ∪ over the pixels of all cities")
    accuracy: Number = Field(None, description="share of pixels whose class is right")


class MeanCity(Record):
    iou: Number = Field(None, description="the mean over the cities that have buildings")
    iou_low: Low = None
    iou_high: High = None


class WorstCity(Record):
    iou: Number = Field(
        None, description="the least IoU of a city; its interval is of the least, whichever city's"
    )
    iou_low: Low = None
    iou_high: High = None
    city: str | None = Field(None, description="whose it is")


class SizeBin(Record):
    buildings: Count = Field(None, description="true buildings of this area")
    recall: Number = Field(None, description="share of them that is found")
    iou: Number = Field(None, description="mean over them of the IoU with the best of the map's")


class DrawnOutlines(Record):
    pairs: Count = Field(
        None, description="of an outline drawn and a footprint, with an IoU above 1/2"
    )
    iou: Number = Field(None, description="mean IoU of the pairs")
    iou_low: Low = None
    iou_high: High = None
    polis: Number = Field(None, description="PoLiS, metres between the two outlines")
    polis_low: Low = None
    polis_high: High = None
    tangent: Number = Field(
        None, description="largest angle between the two along the outline, degrees"
    )
    tangent_low: Low = None
    tangent_high: High = None
    rotation: Number = Field(None, description="angle between their main directions, degrees")
    rotation_low: Low = None
    rotation_high: High = None
    vertex_ratio: Number = Field(None, description="corners drawn for each of the footprints'")
    vertex_ratio_low: Low = None
    vertex_ratio_high: High = None
    c_iou: Number = Field(
        None, description="complexity-aware IoU: as iou, less where the corners are more or fewer"
    )
    c_iou_low: Low = None
    c_iou_high: High = None


class CityScores(OpenRecord):
    """a measure of your own in scoring/evaluation.py"""

    __pydantic_extra__: dict[Name, Number]
    iou: Number = Field(None, description="Σ∩/Σ∪ over the pixels of its scenes")
    iou_low: Low = None
    iou_high: High = None
    units: Count = Field(
        None, description="scenes or blocks with buildings that the interval is over"
    )
    blocks: bool | None = Field(None, description="whether they are blocks of a single scene")
    accuracy: Number = Field(None, description="share of pixels whose class is right")
    precision: Number = Field(None, description="share of the map's building pixels that are true")
    recall: Number = Field(
        None, description="share of the true building pixels that are on the map"
    )
    f1: Number = Field(None, description="harmonic mean of the two")
    boundary_iou: Number = Field(
        None,
        description="Cheng's (3 × 3 erosion, the image's border an edge), of edges "
        "evaluate.boundary metres thick",
    )
    object_f1: Number = Field(
        None,
        description="F1 of buildings, matched above an IoU of 1/2 (recognition quality); where "
        "labels were rasters, of blobs with blobs: they know no wall between two that touch",
    )
    ap50: Number = Field(None, description="average precision of buildings at that IoU")
    panoptic_quality: Number = Field(None, description="recognition × segmentation quality")
    segmentation_quality: Number = Field(None, description="mean IoU of the matched buildings")
    buildings: Count = Field(
        None, description="true ones: footprints, or where labels were rasters their components"
    )
    buildings_found: Count = Field(
        None, description="of the map, those under predict.min_area left out"
    )
    merged: Count = Field(None, description="found buildings that hold two true ones or more")
    split: Count = Field(None, description="true buildings that hold two found ones or more")
    ece: Number = Field(
        None, description="Guo's calibration error of the likelier of building and background"
    )
    ece_calibrated: Number = Field(
        None, description="the same at the card's temperature, as deployed"
    )
    size: dict[Bin, SizeBin] = Field({}, description="by the buildings' area")
    class_iou: dict[Class, Number] = Field(
        {}, description="IoU of each of several classes against all others"
    )
    outlines: DrawnOutlines | None = Field(
        None,
        description="how those that `predict` would deliver are drawn; null where labels are "
        "no vectors",
    )


class GroupScores(Record):
    units: Count = Field(None, description="scenes with a building of the group")
    iou: Number = Field(None, description="IoU; of groups of buildings the mean best one")
    iou_low: Low = None
    iou_high: High = None
    recall: Number = Field(None, description="share found, of pixels or of buildings")
    recall_low: Low = None
    recall_high: High = None


class Spread(Record):
    worst: Number = Field(
        None, description="of the worst group; its interval is of the least of all"
    )
    worst_group: str | None = Field(None, description="which that is")
    worst_low: Low = None
    worst_high: High = None
    best_group: str | None = Field(None, description="which is best")
    gap: Number = Field(
        None, description="between the two; its interval is simultaneous over the groups"
    )
    gap_low: Low = None
    gap_high: High = None


class Groups(Record):
    group: dict[Group, GroupScores] = Field({}, description="each group")
    iou: Spread = Field(Spread(), description="the worst and the best by IoU")
    recall: Spread = Field(Spread(), description="the worst and the best by recall")


class Fairness(Record):
    by: dict[Kind, Groups] = Field({}, description="city, density, size and fetch.groups' column")
    size_within_city: dict[City, Spread] = Field(
        {}, description="how recall depends on a building's size there"
    )


class EvaluateMetrics(Record):
    """IoU per city over whole test scenes, of the map that `predict` would deploy."""

    pooled: Pooled = Field(Pooled(), description="over the pixels of all cities")
    mean_city: MeanCity = Field(
        MeanCity(), description="over cities, so that a large one hides no small one"
    )
    worst_city: WorstCity = Field(WorstCity(), description="the city that is mapped worst")
    city: dict[City, CityScores] = Field(
        {}, description="each city; every IoU is null where no label is building"
    )
    fairness: Fairness = Field(
        Fairness(), description="whether some groups are mapped worse than others"
    )


class UnderBudget(OpenRecord):
    """IoU under each of attack.methods, and METHOD_losses, by each of the losses that were tried"""

    __pydantic_extra__: dict[Method, Number | dict[str, Number]]
    clean: Number = Field(None, description="IoU of the tiles left alone")
    noise: Number = Field(None, description="under noise of the same budget")
    worst: Number = Field(
        None, description="the exact worst case over all attacks, tile by tile; over other tiles"
    )
    worst_low: Low = None
    worst_high: High = None
    image_clean: Number = Field(
        None, description="mean over tiles with buildings of each tile's IoU"
    )
    image_worst: Number = Field(None, description="the same of each tile's worst")


class Transferred(Record):
    iou: Number = Field(None, description="IoU under a copy's, or attack.transfer's, perturbations")
    relative_clean: Number = Field(None, description="that model's own clean IoU")


class Patched(Record):
    clean: Number = Field(None, description="IoU outside the patch's reach, before")
    attacked: Number = Field(None, description="and after")
    effective_radius: Count = Field(
        None, description="pixels around one that hold 99 % of what decides it"
    )
    support_radius: Count = Field(None, description="pixels around one beyond which nothing does")
    scored_share: Number = Field(
        None, description="share of a tile that lies beyond the patch's reach"
    )


class Erased(Record):
    objects: Count = Field(None, description="true buildings")
    clean: Number = Field(None, description="share of them found")
    attacked: Number = Field(
        None, description="share found after the ground beside them was changed"
    )


class ErasedBySize(Erased):
    by_size: dict[Bin, Erased] = Field({}, description="by the buildings' area")


class Invented(Record):
    clean: Count = Field(None, description="false buildings on the map")
    attacked: Count = Field(None, description="false buildings after the true ones were changed")


class InventedBySize(Invented):
    by_size: dict[Bin, Invented] = Field({}, description="by the buildings' area")


class Universal(Record):
    iou: Number = Field(
        None, description="under the one perturbation made on the city's own training tiles"
    )
    made_on: dict[City, Number] = Field(
        {}, alias="from", description="under one made on another city's"
    )


class Worst(Record):
    worst: Number = Field(None, description="IoU, the worst of all that was tried on each tile")
    worst_low: Low = None
    worst_high: High = None


class PhysicalFamily(Worst):
    grid: Number = Field(None, description="IoU, the worst of its grid alone")
    certified: Number = Field(
        None, description="IoU that no gain and offset can take, where the model has a proof"
    )
    certified_low: Low = None
    certified_high: High = None


class Physical(Record):
    clean: Number = Field(None, description="IoU of the tiles left alone")
    all: Worst = Field(Worst(), description="the worst of every family on each tile")
    family: dict[Name, PhysicalFamily] = Field({}, description="each of attack.physics.families")


class Shadows(Record):
    sun: list[float] | None = Field(None, description="azimuth and height, degrees")
    threshold: Number = Field(
        None, description="its shaded over its sunlit side, above which a building casts no shadow"
    )
    true: Count = Field(None, description="true buildings judged")
    true_flagged: Number = Field(None, description="share of them that cast none")
    false: Count = Field(None, description="false buildings judged")
    false_flagged: Number = Field(None, description="share of them that cast none")
    auc: Number = Field(
        None, description="how often a false building is rather flagged than a true one"
    )
    unjudged: Count = Field(None, description="too small, or with too little ground beside them")


class CityUnderAttack(Record):
    linf: dict[Budget, UnderBudget] = Field(
        {}, description="by ℓ∞ budget in 1/255, as params.yaml writes it"
    )
    l2: dict[Budget, UnderBudget] = Field({}, description="by ℓ2 budget")
    transfer: Transferred | None = Field(None, description="attacks that never look into the model")
    halving: Number = Field(None, description="the ℓ∞ budget in 1/255 that halves the IoU")
    patch: Patched | None = Field(None, description="a square of any colour")
    physics: Physical | None = Field(None, description="what sun, air and camera can do")
    erase: ErasedBySize | None = Field(None, description="buildings made to vanish")
    invent: InventedBySize | None = Field(None, description="buildings made to appear")
    shadow: Shadows | None = Field(None, description="buildings of the map that cast no shadow")
    universal: Universal | None = Field(None, description="one perturbation for every tile")


class AuditNumbers(Record):
    excess: Number = Field(
        None, description="the most that a perturbation is longer than its budget"
    )
    worst: list[list[Number]] = Field(
        [], description="worst IoU by growing budget, of each city and norm"
    )
    steps: list[Number] = Field(
        [], description="IoU under PGD of half as many gradients, and of all"
    )
    white_box: Number = Field(None, description="the worst of the model's own gradients")
    scale_free: Number = Field(
        None, description="the worst of two losses that the logits' size cannot mislead"
    )
    transfer: Number = Field(None, description="under another model's gradients")
    noise: Number = Field(None, description="under noise")
    clean: Number = Field(None, description="of the tiles left alone")
    vanishing: list[Number] = Field([], description="each city's IoU at 32/255")
    ten_times: Number = Field(
        None,
        description="by how much ten times the gradients of the longest attack lower the "
        "worst, on a tile a city",
    )


class AttackMetrics(Record):
    """IoU under attack, an upper bound of what survives, and an audit of the attacks' honesty."""

    city: dict[City, CityUnderAttack] = Field(
        {}, description="each city; every IoU is null where no tile has building"
    )
    audit: dict[Check, bool] = Field({}, description="whether each check of attacks/audit.py holds")
    audit_numbers: AuditNumbers = Field(
        AuditNumbers(), description="what the checks judged, pooled over the cities"
    )


class Sandwich(Record):
    clean: Number = Field(None, description="IoU of the crops left alone")
    attacked: Number = Field(None, description="IoU under the worst attack found within the radius")
    certified: Number = Field(
        None, description="IoU that is proven to remain; the interval is over other crops"
    )
    certified_low: Low = None
    certified_high: High = None
    bonferroni: Number = Field(None, description="smoothing: certified by the stricter correction")
    literature: Number = Field(
        None, description="smoothing: by the usual formula, which is no bound"
    )
    abstained: Number = Field(
        None, description="smoothing: share of pixels without a certified class"
    )
    base_clean: Number = Field(None, description="smoothing: IoU of the model without noise")
    ibp: Number = Field(None, description="convex: certified by interval bounds alone")
    per_pixel: Number = Field(None, description="lipschitz: certified pixel by pixel")


class Certificates(Record):
    """each of certify.methods"""

    deployed: bool | None = Field(
        None, description="whether it is certify.model that is certified, or a small network"
    )
    train_iou: Number = Field(
        None, description="clean IoU of the small network over the last tenth of its training"
    )
    collapsed: bool | None = Field(None, description="whether it ended in one class")
    train_budget: Number = Field(None, description="it was trained against")
    lost: list[str] | None = Field(
        None, description="cities whose clean IoU is under a quarter of train_iou; null = none"
    )
    city: dict[City, dict[Radius, Sandwich]] = Field(
        {},
        description="by radius in the norm's unit, rounded down; null where the crops hold no "
        "building",
    )


class CertifyMetrics(OpenRecord):
    """Certified ≤ attacked ≤ clean IoU on the same crops: what no perturbation can do."""

    __pydantic_extra__: dict[Method, Certificates]

    @property
    def methods(self) -> dict[str, Certificates]:
        return self.model_extra or {}

    def of(self, method: str) -> Certificates:
        """Empty where it has not run."""
        return self.methods.get(method, Certificates())


class WithoutCue(Record):
    iou: Number = Field(None, description="IoU of the tiles without it")
    drop: Number = Field(
        None, description="how much less that is; intervals hold for all cues of all cities at once"
    )
    drop_low: Low = None
    drop_high: High = None


class Areas(Record):
    deletion: Number = Field(
        None, description="area under the curve as squares are deleted in its order"
    )
    insertion: Number = Field(None, description="and as they are inserted")


class Likeness(Record):
    signed: Number = Field(
        None, description="rank correlation with the gradients of the shuffled network"
    )
    absolute: Number = Field(None, description="the same without their sign")


class CityExplained(Record):
    iou: Number = Field(None, description="IoU of the tiles as they are")
    tiles: Count = Field(None, description="looked at, of the test split")
    cue: dict[Name, WithoutCue | None] = Field(
        {}, description="each cue; null where there is none to take"
    )
    leans_on: str | None = Field(None, description="the cue whose loss costs most for certain")
    attribution: dict[Method, Areas] = Field(
        {}, description="each way to explain a building, and a random order"
    )
    bands: list[float] | None = Field(
        None, description="shares of the integrated gradients of each band"
    )
    inside: Number = Field(None, description="share of them on the building itself")
    randomised: dict[Name, Likeness] = Field(
        {}, description="with the layers of head, half or all shuffled"
    )
    effective_radius: Number = Field(
        None, description="metres around a pixel that hold 99 % of what decides it"
    )
    support_radius: Number = Field(
        None, description="metres around a pixel beyond which nothing does"
    )


class Gains(Record):
    deletion_gain: Number = Field(
        None, description="what its order is better than a random one by, deleting"
    )
    deletion_gain_low: Low = None
    deletion_gain_high: High = None
    insertion_gain: Number = Field(
        None, description="and inserting; intervals are over other buildings"
    )
    insertion_gain_low: Low = None
    insertion_gain_high: High = None


class ExplainMetrics(Record):
    """What the map rests on in each city, and whether its explanations mean something."""

    city: dict[City, CityExplained] = Field({}, description="each city")
    buildings: Count = Field(None, description="explained, of all cities")
    attribution: dict[Method, Gains] = Field({}, description="each way to explain them")


class Gap(Record):
    units: Count = Field(None, description="test scenes or blocks that the intervals are over")
    seen: Number = Field(None, description="IoU by the model trained on every city")
    seen_low: Low = None
    seen_high: High = None
    seen_spread: Number = Field(None, description="its standard deviation over training seeds")
    unseen: Number = Field(None, description="IoU by the model trained without the city")
    unseen_low: Low = None
    unseen_high: High = None
    unseen_spread: Number = Field(None, description="its standard deviation over training seeds")
    gap: Number = Field(None, description="seen less unseen")
    gap_low: Low = None
    gap_high: High = None
    gap_spread: Number = Field(None, description="its standard deviation over training seeds")


class WorstUnseen(Record):
    city: str | None = Field(None, description="whose unseen IoU is least")
    seen: Number = Field(None, description="IoU by the model trained on every city")
    unseen: Number = Field(
        None, description="without it; the interval is of the least, whichever city's"
    )
    gap: Number = Field(None, description="seen less unseen")
    unseen_low: Low = None
    unseen_high: High = None


class WorstCorruption(Record):
    name: str | None = Field(None, description="the corruption that takes most")
    severity: str | None = Field(None, description="at which it does")
    retained: Number = Field(None, description="share of the clean IoU that remains")


class Adapted(Record):
    method: str | None = Field(None, description="the method")
    iou: Number = Field(None, description="IoU after it")


class Chosen(Adapted):
    oracle: Adapted = Field(Adapted(), description="the best, chosen with the city's own labels")


class Guessed(Record):
    iou: Number = Field(None, description="the true IoU, unseen")
    thresholded: Number = Field(
        None, description="estimate: average thresholded confidence, once a class"
    )
    atc: Number = Field(None, description="estimate: average thresholded confidence, as published")
    expected: Number = Field(
        None, description="estimate: calibrated Soft Dice Confidence as an IoU"
    )
    distance: Number = Field(
        None, description="how far its features lie, in units of the training cities' spread"
    )
    no_gap: Number = Field(None, description="guess: mapped like the training cities")
    mean_unseen: Number = Field(None, description="guess: mapped like other new cities")
    mean_gap: Number = Field(None, description="guess: loses what other new cities lose")


class LabelFree(Record):
    city: dict[City, Guessed] = Field({}, description="each held-out city")
    mean_error: dict[Name, Number] = Field(
        {}, description="mean absolute error of each estimate and guess"
    )
    estimate: str | None = Field(None, description="that errs least, in hindsight")
    naive: str | None = Field(None, description="guess that errs least, in hindsight")


class LightAttack(Record):
    norm: str = Field("linf", description="of the perturbation")
    epsilon: Number = Field(None, description="its budget in 1/255")
    steps: Count = Field(None, description="gradients of its PGD")


class LightCertificate(Record):
    norm: str = Field("l2", description="of the perturbation")
    radius: Number = Field(None, description="certified")
    sigma: Number = Field(None, description="of the noise")


class Withstood(Record):
    clean: Number = Field(None, description="IoU of the crops left alone")
    attacked: Number = Field(None, description="under the attack, an upper bound")
    certified: Number = Field(None, description="by smoothing, a lower bound")
    corrupted: Number = Field(None, description="mean over the corruptions at severity 3")


class BothSides(Record):
    seen: Withstood | None = Field(None, description="by the model that has seen the city")
    unseen: Withstood | None = Field(None, description="by the one that has not")


class Robustness(Record):
    attack: LightAttack = Field(LightAttack(), description="what was attacked with")
    certificate: LightCertificate | None = Field(None, description="what was certified")
    city: dict[City, BothSides] = Field({}, description="each city, all four on the same crops")


class GeneralizeMetrics(Record):
    """How good the map is in a city the model has never seen, and whether that
    can be known beforehand.
    """

    city: dict[City, Gap] = Field(
        {}, description="each held-out city that has buildings in its test scenes"
    )
    mean_city: Gap = Field(Gap(), description="the mean over the cities")
    pooled: Gap = Field(Gap(), description="Σ∩/Σ∪ over all cities")
    worst_city: WorstUnseen = Field(
        WorstUnseen(), description="the city that is mapped worst unseen"
    )
    corruption: dict[Name, dict[Severity, dict[City, Number]]] = Field(
        {}, description="IoU by the model that has not seen the city, on a few tiles"
    )
    adaptation: dict[Method, dict[City, Number]] = Field(
        {}, description="IoU after adapting to it without labels"
    )
    frugal: dict[Share, dict[City, Number]] = Field(
        {},
        description="IoU of models trained on a share of the training scenes, from the first "
        "of the starts",
    )
    seeds: list[int] = Field([], description="of the trainings")
    matrix: dict[Model, dict[City, Number]] = Field(
        {}, description="IoU of each model in each city"
    )
    corruption_clean: dict[City, Number] = Field(
        {}, description="IoU of the same tiles, left alone"
    )
    corruption_retained: dict[Name, dict[City, Number]] = Field(
        {}, description="share of it that remains"
    )
    worst_corruption: dict[City, WorstCorruption] = Field(
        {}, description="what harms each city most"
    )
    adaptation_choice: dict[City, Chosen] = Field(
        {}, description="the method that was best on the other cities"
    )
    beyond_adaptation: list[str] = Field([], description="cities that no method repairs")
    label_free: LabelFree = Field(LabelFree(), description="IoU estimated from unlabelled tiles")
    robustness: Robustness = Field(
        Robustness(), description="what the IoU withstands, seen and unseen"
    )
    frugal_by_initialisation: dict[Start, dict[Share, dict[City, Number]]] = Field(
        {}, description="as frugal, from each start of training"
    )
    frugal_scenes: dict[Share, dict[City, int]] = Field(
        {}, description="training scenes that a share is"
    )


class Worth(Record):
    coverage: Number = Field(None, description="share of samples whose interval holds the truth")
    width: Number = Field(
        None, description="median width of the interval; of built area, as a share of it"
    )


class Promise(Record):
    made: Number = Field(None, description="share of samples that allow one")
    kept: Number = Field(None, description="share of samples in which none is broken")


class CityFewLabels(Record):
    frames: Count = Field(None, description="of its test scenes")
    iou: Number = Field(None, description="by the model that has not seen it")
    interval: dict[Frames, dict[Name, dict[Method, Worth]]] = Field(
        {},
        description="95 % intervals from so many labelled frames of iou, precision, recall, f1, "
                    "built: " "assisted by the model, plain on the same frames, of a random sample"
    )  # fmt: skip
    promise: dict[Frames, Promise] = Field({}, description="of a frame's recall, at 95 %")
    learned: dict[Method, dict[Frames, Number]] = Field(
        {}, description="IoU after fine-tuning on so many frames, drawn by each strategy"
    )


class FewLabelsMetrics(Record):
    """What an hour of labelling buys in a city never seen."""

    city: dict[City, CityFewLabels | None] = Field(
        {}, description="each city; null where no test label is building"
    )
    forgotten: dict[Method, dict[City, Number]] = Field(
        {}, description="change of the other cities' mean IoU after the most frames, by strategy"
    )
    narrower: dict[Frames, dict[Name, Number]] = Field(
        {}, description="share by which the assisted interval is narrower than the plain one"
    )


class Average(Record):
    average: Number = Field(None, description="IoU over all cities when the last has come")
    average_low: Low = None
    average_high: High = None


class Forgetting(Average):
    backward: Number = Field(None, description="what later cities did to a city's IoU")
    backward_low: Low = None
    backward_high: High = None
    forgetting: Number = Field(None, description="what a city has lost since its best")
    forward: Number = Field(None, description="what earlier cities are worth before a city comes")


class Sequence(Record):
    """each of incremental.methods"""

    matrix: list[list[Number]] = Field(
        [], description="IoU in each city (columns) after each (rows)"
    )
    average: Number = Field(None, description="of this order alone, as are the three below")
    forgetting: Number = Field(None, description="what a city has lost since its best")
    backward: Number = Field(None, description="what later cities did to a city's IoU")
    forward: Number = Field(None, description="what earlier cities are worth before a city comes")


class Order(OpenRecord):
    __pydantic_extra__: dict[Method, Sequence]
    cities: list[str] = Field([], description="as they arrive")


class LateClass(Record):
    before: Number = Field(None, description="IoU of the old classes before the new one came")
    old: Number = Field(None, description="and after, mean over the cities")
    old_low: Low = None
    old_high: High = None
    new: Number = Field(None, description="IoU of the new one")
    new_low: Low = None
    new_high: High = None


class IncrementalMetrics(Record):
    """What a small network forgets as cities, or a class, arrive one after another."""

    method: dict[Method, Forgetting] = Field(
        {}, description="means over the orders; intervals over scenes"
    )
    joint: Average = Field(
        Average(), description="one network trained on all cities at once, for as many steps"
    )
    order: list[Order] = Field([], description="each order")
    classes: dict[Method, LateClass] | None = Field(
        None, description="null where the tiles hold one class"
    )


class Auc(Record):
    auc: Number = Field(
        None,
        description="how often a training tile looks more known than a test tile; 0.5 is chance",
    )
    auc_low: Low = None
    auc_high: High = None


class Attacks(Record):
    loss: Auc | None = Field(None, description="by the model's loss; null where a side has no tile")
    likelihood_ratio: Auc | None = Field(
        None, description="against models that have not seen the city, if any"
    )


class Sides(Record):
    members: Count = Field(None, description="scenes trained on")
    others: Count = Field(None, description="test scenes")


class CityMembers(Attacks):
    members: Count = Field(None, description="tiles of scenes trained on")
    others: Count = Field(None, description="tiles of test scenes")
    scenes: Sides = Field(Sides(), description="of both")
    references: Count = Field(None, description="models that have not seen the city")


class TruePositives(Record):
    tpr: Number = Field(None, description="share of the training tiles that are found")
    tpr_low: Low = None
    tpr_high: High = None


class PooledMembers(Record):
    fpr: Number = Field(None, description="share of false accusations allowed")
    loss: TruePositives | None = Field(None, description="by loss; null under 100 tiles")
    likelihood_ratio: TruePositives | None = Field(None, description="by likelihood ratio")


class PrivateNetwork(Attacks):
    epsilon: Number = Field(None, description="spent; null without privacy")
    noise: Number = Field(None, description="multiplier")
    iou: Number = Field(None, description="mean over the cities' test tiles")
    iou_low: Low = None
    iou_high: High = None
    auc_bound: Number = Field(
        None, description="what no attack on a scene can pass; null where the record is a tile"
    )


class Private(Record):
    unit: str | None = Field(None, description="the record that ε is of: scene or tile")
    records: Count = Field(None, description="of training")
    rate: Number = Field(None, description="share of them in a batch")
    steps: Count = Field(None, description="batches")
    clip: Number = Field(None, description="the longest gradient of a record")
    delta: Number = Field(None, description="δ")
    network: dict[Name, PrivateNetwork] = Field({}, description="plain, and each ε asked for")


class Planted(Record):
    city: str | None = Field(None, description="of the test scene that was repeated in training")
    scene: str | None = Field(None, description="its name")
    repeats: Count = Field(None, description="how often")
    rise: Number = Field(
        None, description="log of its loss without the plant over its loss with it"
    )
    next_rise: Number = Field(None, description="the most on another test scene")
    rank: Count = Field(None, description="of its rise; null where it is the only test scene")
    of: Count = Field(None, description="test scenes")
    found: bool | None = Field(None, description="whether it is the first; null likewise")


class PrivacyMetrics(Record):
    """Whether the model tells which scenes it was trained on, and what it costs
    to make sure it cannot.
    """

    city: dict[City, CityMembers] = Field({}, description="each city")
    mean_city: Attacks = Field(Attacks(), description="the mean over the cities")
    pooled: PooledMembers = Field(PooledMembers(), description="over the tiles of all cities")
    private: Private | None = Field(
        None, description="a small network trained without and with privacy"
    )
    planted: Planted | None = Field(None, description="a test scene repeated in its training")


class ProvenIoU(Record):
    clean: Number = Field(None, description="IoU of the crops left alone")
    attacked: Number = Field(None, description="under attack")
    certified: Number = Field(None, description="proven")


class ReportMetrics(Record):
    """The page's first table, a file a city (metrics/report/CITY.json), and mean_city.json, the
    mean of each number.
    """

    seen: Number = Field(None, description="IoU of the city's test scenes by the delivered model")
    unseen: Number = Field(None, description="by one that has not seen the city")
    unseen_of: Number = Field(None, description="what one trained alike that has seen it reaches")
    attacked: Number = Field(None, description="IoU under the worst attack")
    attacked_of: Number = Field(None, description="of the same tiles left alone")
    sandwich: ProvenIoU | None = Field(
        None, description="of one model and radius, on the same crops"
    )


class ProvenShare(Record):
    method: str | None = Field(None, description="by which it is proven")
    norm: str | None = Field(None, description="of the changes")
    unit: str | None = Field(None, description="of the radius")
    arithmetic: str | None = Field(None, description="of the certificate")
    pixels: Count = Field(None, description="with data")
    proven: dict[Class, int] = Field({}, description="pixels proven to be of it, 0 the background")
    share: Number = Field(None, description="share of the pixels that is proven")


class ProvenMap(ProvenShare):
    radius: Number = Field(None, description="of the changes that it withstands")


class AgainstKnown(Record):
    known: str | None = Field(None, description="the footprints' file")
    new: Count = Field(None, description="buildings of the map that it lacks")
    matched: Count = Field(None, description="buildings alike in both")
    changed: Count = Field(None, description="buildings in both of which one is larger")
    missing: Count = Field(None, description="its buildings that the map lacks")
    shift_m: list[float] | None = Field(
        None, description="metres east and north from the footprints to the image"
    )
    registration_m: Number = Field(
        None, description="metres, standard deviation of one building's offset about that"
    )
    registration_pairs: Count = Field(None, description="buildings that tell it")


class PredictMetrics(Record):
    """What a map is made of and what was found, beside the map; an unchanged
    key means the same map.
    """

    scene: str | None = Field(None, description="its path or URL")
    key: str | None = Field(None, description="of model, scene and settings")
    files: dict[Name, str] = Field({}, description="the map's files, and their contents' digests")
    gsd: list[float] | None = Field(
        None, description="metres a pixel of the scene, across and down"
    )
    bands: list[int] | None = Field(None, description="read, from 1")
    range: Annotated[list[float] | None, Field(strict=False)] = Field(
        None, description="values mapped to 0 and 255"
    )
    pixels: Count = Field(None, description="of the scene")
    area_km2: Number = Field(None, description="of the pixels with data")
    buildings: Count = Field(None, description="null where no outlines were asked for, as the next")
    built_area_m2: Number = Field(None, description="of the buildings")
    certified: ProvenMap | None = Field(None, description="where it was asked for")
    skipped: Number = Field(
        None, description="share of windows that a glance saw nothing in; null = none was asked"
    )
    skipped_below: Number = Field(
        None, description="the glance's threshold, a logit: windows under it were skipped"
    )
    expected_iou: Number = Field(None, description="estimated without labels")
    validation_iou: Number = Field(None, description="the model's usual one")
    unlike_training: bool | None = Field(
        None, description="whether the first is far under the second and every validation scene's"
    )
    known: AgainstKnown | None = Field(None, description="against footprints that one has")
    fresh: bool = Field(True, exclude=True)  # or it was there already


class CertifySceneMetrics(ProvenShare):
    """What is proven of one scene's map, beside the raster that says where."""

    scene: str | None = Field(None, description="its path or URL")
    model: str | None = Field(None, description="whose map it is")
    gsd: Number = Field(None, description="metres a pixel of the model")
    radius: str | None = Field(None, description="of the changes that it withstands, rounded down")
    of: str | None = Field(None, description="what the certificate is of, in words")
    temperature: Number = Field(None, description="of the map's probabilities")
    threshold: Number = Field(None, description="that they are cut at")
    confidence: Number = Field(None, description="of smoothing")
    window: Count = Field(
        None, description="pixels along the side of a window of the map; not of smoothing"
    )
    overlap: Number = Field(None, description="of its windows")
    augment: bool | None = Field(None, description="whether it is averaged over flips and turns")


class Estimated(Record):
    value: Number = Field(None, description="of the whole city")
    low: Low = None
    high: High = None


class Promised(Record):
    recall: Number = Field(None, description="asked for")
    confidence: Number = Field(None, description="asked for")
    per: str | None = Field(None, description="frame or area")
    threshold: Number = Field(
        None, description="the highest that is proven to find so much; null where none is"
    )
    frames: Count = Field(
        None, description="labelled ones that would do; null where no number would"
    )
    map: dict[Name, Estimated] = Field({}, description="the map that it draws, as assisted")


class AssessMetrics(Record):
    """How good a whole city's map is, from the frames that were labelled."""

    labelled: Count = Field(None, description="frames")
    unusable: Count = Field(None, description="frames")
    frames: Count = Field(None, description="of the city")
    threshold: Number = Field(None, description="of the map assessed")
    assisted: dict[Name, Estimated] = Field(
        {}, description="model-assisted: iou, precision, recall, f1 and built_m2"
    )
    plain: dict[Name, Estimated] = Field({}, description="the same of the labelled frames alone")
    more_to_halve: Count = Field(None, description="frames more that would halve the intervals")
    promise: Promised | None = Field(None, description="of recall, where it was asked for")


class Metrics(Record):
    """Every stage's file."""

    train: TrainMetrics = TrainMetrics()
    evaluate: EvaluateMetrics = EvaluateMetrics()
    attack: AttackMetrics = AttackMetrics()
    certify: CertifyMetrics = CertifyMetrics()
    explain: ExplainMetrics = ExplainMetrics()
    generalize: GeneralizeMetrics = GeneralizeMetrics()
    few_labels: FewLabelsMetrics = FewLabelsMetrics()
    incremental: IncrementalMetrics = IncrementalMetrics()
    privacy: PrivacyMetrics = PrivacyMetrics()


STAGES: dict[str, type[Record]] = {
    name: type(field.default) for name, field in Metrics.model_fields.items()
}
FILES: dict[str, tuple[str, type[Record]]] = {  # by the verb that leaves them
    **{stage: (f"metrics/{stage}.json", kind) for stage, kind in STAGES.items()},
    "report": ("metrics/report/CITY.json", ReportMetrics),
    "predict": ("OUT/SCENE.json", PredictMetrics),
    "certify --scene": ("OUT/SCENE.certified.json", CertifySceneMetrics),
    "assess": ("CITY/assessment.json", AssessMetrics),
}
Kept = TypeVar("Kept", bound=Record)


def parse(kind: type[Kept], content: object, where: str | Path) -> Kept:
    """A metrics file's content. Raises InputError, naming `where` it stands, where it is none."""
    try:
        found = kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        raise _none_of(kind, what, where) from None
    names = kind.model_fields.keys()  # none of certify's, whose methods may all be left out
    if names and not names & found.model_fields_set:  # or it would pass for no file at all
        raise _none_of(kind, "it has none of their names", where)
    return found


def _none_of(kind: type[Record], what: str, where: str | Path) -> InputError:
    stage = next(name for name, (_, one) in FILES.items() if one is kind)
    return InputError(f"{where}: holds no metrics of the {stage} stage ({what}); run it again")


def read(kind: type[Kept], path: str | Path) -> Kept:
    """A metrics file, empty where it is absent. Raises InputError where it is damaged."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return kind()
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); run its stage again") from None
    return parse(kind, content, path)


def write(path: str | Path, kind: type[Kept], found: dict) -> Kept:
    """Keep what a stage has found, atomically. Raises KeyError where a number of it has no
    description here.
    """
    record = described(kind, found)
    write_json(path, found)
    return record


def described(kind: type[Kept], found: dict) -> Kept:
    """What was found, as its record. Raises KeyError where a number of it has
    no description here.
    """
    record = kind.model_validate(found)
    if unknown := ", ".join(undescribed(record)):
        raise KeyError(f"{kind.__name__} in pipeline/metrics.py does not describe {unknown}")
    return record


def undescribed(value: object, path: str = "") -> Iterator[str]:
    """The dotted names of what no field stands for."""
    if isinstance(value, Record) and not isinstance(value, OpenRecord):
        yield from (f"{path}{key}" for key in value.model_extra or ())
    inside = dict(value) if isinstance(value, Record) else value if isinstance(value, dict) else {}
    for key, within in inside.items():
        yield from undescribed(within, f"{path}{key}.")
