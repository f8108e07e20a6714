"""The model card, FOLDER/model.json: what a model is, what it was trained on, how its map is
drawn of its logits.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline import params
from pipeline.errors import InputError
from pipeline.storage import read_json
from pipeline.tiles.store import CityTiles


class Card(BaseModel):
    """A model card; every key is bounded before anything is built from it."""

    model_config = ConfigDict(extra="allow")  # a card of another version may say more

    model: params.Model = Field(description="the network, as train.model")
    channels: Annotated[int, Field(ge=1, le=256)] = Field(description="bands of its images")
    classes: Annotated[int, Field(ge=1, le=254)] = Field(description="kinds of foreground")
    gsd: params.GroundSampleDistance = Field(description="metres on the ground per pixel")
    bands: list[params.Count] | None = Field(
        None, description="1-based bands of the scenes it was trained on"
    )
    cities: list[str] = Field([], description="cities whose labels it has seen")
    inherited: list[str] = Field(
        [], description="cities whose labels the model it started from had seen"
    )
    images: list[str] = Field([], description="cities whose images it has seen without labels")
    normalisation: dict[str, list[float]] = Field(
        {}, description="mean and std of each band, in [0, 1]"
    )
    threshold: params.Share = Field(
        0.5, description="building probability above which a pixel is one, from validation"
    )
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = Field(
        1.0, description="that calibrates its probabilities"
    )
    confidence: dict[str, float] | None = Field(
        None, description="ATC's thresholds of building and background"
    )
    glance: dict[str, float] | None = Field(
        None,
        description="what tells empty ground: its threshold, the shares of area lost and of "
        "windows skipped on "
        "validation, the side of those windows in pixels",
    )
    least_expected_iou: float | None = Field(
        None, description="label-free, of the validation scenes of its cities"
    )
    params: dict = Field({}, description="the sections of params.yaml that made it")
    metrics: dict = Field({}, description="validation_iou, or what its kind of training measures")
    history: list = Field([], description="what each epoch measured")
    training: dict = Field({}, description="seconds, device, precision, processes, torch")
    fingerprint: str | None = Field(
        None, description="of parameters, tiles and code: equal means the same training"
    )

    @property
    def scene_bands(self) -> list[int]:
        """The bands of a scene that it reads: those it was trained on, the
        first where it does not say.
        """
        return self.bands or list(range(1, self.channels + 1))

    @model_validator(mode="after")
    def agrees(self) -> "Card":
        if self.classes != self.model.classes or self.bands and len(self.bands) != self.channels:
            raise ValueError("classes or bands are not those of the model")
        return self


def parse_card(card: object, where: str | Path) -> Card:
    """Raises InputError, naming `where` it stands, where it is no card of this pipeline."""
    try:
        return Card.model_validate(card)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(
            f"{where}: not a model card of this pipeline ({what}); train the model again"
        ) from None


def read_card(folder: str | Path) -> Card:
    """FOLDER/model.json. Raises InputError where it is absent or damaged."""
    path = Path(folder) / "model.json"
    try:
        return parse_card(read_json(path), path)
    except InputError:
        raise
    except OSError:
        raise InputError(
            f"{path}: not found; run the train stage first or correct the model's folder"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: damaged model card ({error}); train the model again") from None


def check_fit(card: Card, city: CityTiles, model: str | Path) -> None:
    """Raise InputError where a city's tiles are not what the model was trained to read."""
    for key, mine, theirs in (
        ("channels", card.channels, city.channels),
        # a foreign network need not say it
        ("ground sample distance", card.gsd or city.gsd, city.gsd),
        ("classes", card.classes, city.classes),
    ):
        if abs(mine - theirs) > 1e-6:
            raise InputError(
                f"{city.folder}: {key} {theirs:g}, but {model} was trained with "
                f"{mine:g}; tile it again"
            )
