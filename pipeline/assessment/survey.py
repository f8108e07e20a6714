"""A sample of a city's frames on disk: what `sample` writes, a labeller edits and
`assess` and `adapt` read.

CITY/label.gpkg         the only file to edit: layers frames (status) and buildings (see geopackage.py)
CITY/images/NAME.tif    the frames' images, with a margin, on the model's grid
CITY/survey.json        which model, scenes and draw; `key` tells one sample from another
CITY/frames.npz         every frame of the city: see population.Frames; stratum and chance of being drawn
CITY/probability/*.npy  the map's probability of building of every scene, in levels
CITY/draft.parquet      the draft as it was handed out: what differs from it has been edited
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from pipeline.assessment.population import Frames
from pipeline.errors import InputError
from pipeline.imagery.grid import Grid
from pipeline.storage import read_json, write_json

FORMAT = 1
SURVEY, FRAMES, LABELS, DRAFT = "survey.json", "frames.npz", "label.gpkg", "draft.parquet"


@dataclass(frozen=True)
class SurveyedScene:
    name: str
    path: str
    height: int
    width: int
    transform: tuple[float, float, float, float, float, float]
    crs: str

    @property
    def grid(self) -> Grid:
        return Grid(self.height, self.width, Affine(*self.transform), self.crs)


@dataclass(frozen=True)
class Survey:
    """drawn: indices (n,) of the frames to label, the first to be labelled first; stratum (N,);
    inclusion (N,), NaN where frames were drawn to learn from."""

    folder: Path
    about: dict
    scenes: list[SurveyedScene]
    frames: Frames
    drawn: np.ndarray
    stratum: np.ndarray
    inclusion: np.ndarray

    @property
    def key(self) -> str:
        return self.about["key"]

    @property
    def threshold(self) -> float:
        return self.about["threshold"]

    @property
    def pixel_area(self) -> float:
        """m² on the ground."""
        return self.about["gsd"] ** 2

    @property
    def probability_sample(self) -> bool:
        return self.about["strategy"] == "probability"

    def number(self, i: int) -> int:
        """What a labeller calls the frame of index i."""
        return int(np.flatnonzero(self.drawn == i)[0]) + 1

    def grid(self, i: int) -> Grid:
        return self.scenes[self.frames.scene[i]].grid.window(self.frames.place(i))

    def image(self, i: int) -> Path:
        return self.folder / "images" / f"{self.number(i):03d}.tif"

    @cached_property
    def _levels(self) -> list[np.ndarray]:
        return [
            np.load(self.folder / "probability" / f"{scene.name}.npy", mmap_mode="r")
            for scene in self.scenes
        ]

    def levels(self, i: int) -> np.ndarray:
        """(h, w) uint8 of the sampled model's map in a frame."""
        return self._levels[self.frames.scene[i]][self.frames.place(i).slices]


def save(survey: Survey) -> None:
    arrays: dict[str, Any] = {
        name: getattr(survey, name) for name in ("drawn", "stratum", "inclusion")
    }
    np.savez_compressed(survey.folder / FRAMES, **asdict(survey.frames), **arrays)
    scenes = [asdict(scene) for scene in survey.scenes]
    write_json(survey.folder / SURVEY, {"format": FORMAT, **survey.about, "scenes": scenes})


def load(folder: str | Path) -> Survey:
    """Raises InputError where the folder holds no sample, or is damaged."""
    folder = Path(folder)
    try:
        about = read_json(folder / SURVEY)
        scenes = [
            SurveyedScene(**scene | {"transform": tuple(scene["transform"])})
            for scene in about.pop("scenes")
        ]
        with np.load(folder / FRAMES, allow_pickle=False) as arrays:
            frames = Frames(*(arrays[name] for name in ("scene", "window", "histogram", "colour")))
            survey = Survey(
                folder,
                about,
                scenes,
                frames,
                *(arrays[n] for n in ("drawn", "stratum", "inclusion")),
            )
        survey.key, survey.threshold, survey.pixel_area, survey.probability_sample  # noqa: B018  they are there
        return survey
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename}: not found; draw a sample first: pipeline sample MODEL SCENES --out "
            f"CITY"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        words = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder}: its sample is damaged ({words}); draw it again, label.gpkg can stay"
        ) from None
