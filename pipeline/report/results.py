"""What the stages have left on disk: everything the page is made from, and nothing else."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.errors import InputError
from pipeline.imagery.scene import City, read_city
from pipeline.metrics import STAGES, CityScores, Gap, Metrics
from pipeline.metrics import read as read_metrics
from pipeline.networks.card import Card, read_card
from pipeline.params import Params
from pipeline.storage import read_json
from pipeline.tiles.store import read_index


def read(path: Path):
    """The content of a JSON file, None where it is absent. Raises InputError
    where it is not JSON.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); run its stage again") from None


@dataclass(frozen=True)
class Results:
    """The folder a pipeline runs in, read lazily. A stage that has not run has empty metrics."""

    params: Params
    root: Path = field(default_factory=Path)

    @cached_property
    def metrics(self) -> Metrics:
        found = {
            stage: read_metrics(kind, self.root / f"metrics/{stage}.json")
            for stage, kind in STAGES.items()
        }
        return Metrics.model_validate(found)

    @cached_property
    def card(self) -> Card | None:
        """models/all's; none before training."""
        folder = self.root / "models/all"
        return read_card(folder) if (folder / "model.json").exists() else None

    @property
    def brief(self) -> bool:
        """Whether the models without a city were trained for fewer epochs than
        the delivered one.
        """
        return (
            self.params.generalize.epochs or self.params.train.epochs
        ) < self.params.train.epochs

    @cached_property
    def cities(self) -> list[str]:
        """Every city named by the parameters or a metrics file, the worst mapped one first,
        unmeasured ones last.
        """
        names = dict.fromkeys(
            [*self.params.fetch.cities, *self.metrics.evaluate.city, *self.metrics.generalize.city]
        )
        return sorted(names, key=lambda city: (self.score(city), city))

    def score(self, city: str) -> float:
        """The IoU a city is ranked by: unseen, unless that is of a short training; else seen."""
        unseen = self.metrics.generalize.city.get(city, Gap()).unseen
        seen = self.metrics.evaluate.city.get(city, CityScores()).iou
        known = (seen, unseen) if self.brief else (unseen, seen)
        return next((iou for iou in known if iou is not None), 2.0)

    @cached_property
    def sources(self) -> dict[str, City]:
        folders = {city: self.root / "data/scenes" / city for city in self.cities}
        return {city: read_city(f) for city, f in folders.items() if (f / "city.json").exists()}

    @cached_property
    def tiles(self) -> dict[str, dict]:
        """regions.json of each tiled city, its regions as `Region`; the pixels stay closed."""
        folders = {city: self.root / "data/tiles" / city for city in self.cities}
        found = {
            city: read_index(f) for city, f in folders.items() if (f / "regions.json").exists()
        }
        return {city: {**about, "regions": index.regions} for city, (about, index) in found.items()}

    @cached_property
    def scenes(self) -> dict[tuple[str, str], float | None]:
        """IoU of each evaluated scene by (city, scene)."""
        rows = read(self.array("evaluate", "scenes.json")) or []
        return {(row["city"], row["scene"]): row["iou"] for row in rows}

    def array(self, *parts: str) -> Path:
        """A stage's exact arrays: `arrays/STAGE/…`."""
        return self.root.joinpath("arrays", *parts)
