"""What `fetch` leaves of a city and `tile` reads: data/scenes/CITY/city.json.

A scene is an image, its labels (raster, vector or none) and its city. Paths in city.json are
relative to its folder where fetch made the files, absolute where the user's own files stay in
place; an image may also be a URL.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.errors import InputError
from pipeline.labels import Split
from pipeline.storage import read_json, write_json


@dataclass(frozen=True)
class Scene:
    name: str
    image: str
    # a raster of 0, 1..k, 255, or vectors; a vector column `label` may hold 1..k or 255
    labels: str | None = None
    split: Split | None = None  # where the source has an official split
    # changes when the files change (size and time, or a checksum), so that DVC sees it
    stamp: str = ""


@dataclass(frozen=True)
class City:
    city: str
    source: str
    scenes: list[Scene]
    gsd: float | None = None  # metres on the ground, where the images carry no CRS
    bands: list[int] | None = None  # 1-based; None = tile.bands
    # values mapped to 0 and 255; None = uint8 as is, else estimated
    range: tuple[float, float] | None = None
    where: str | None = None  # an SQL condition: which vector features are buildings
    groups: str | None = None  # the column of vector labels that tells groups of buildings apart
    # the building value of raster labels: 1, or 255 where the source draws 0/255
    raster_building: int = 1
    rights: str = "not stated"
    attribution: str = ""
    # what fetch noticed: repaired polygons, estimated shifts, ...
    notes: dict = field(default_factory=dict)


def write_city(folder: Path, city: City) -> None:
    write_json(folder / "city.json", asdict(city))


def read_city(folder: Path) -> City:
    """Read FOLDER/city.json with its paths made whole. Raises InputError where
    fetch has not run.
    """
    path = Path(folder) / "city.json"
    try:
        city = TypeAdapter(City).validate_python(read_json(path))
    except OSError:
        raise InputError(
            f"{path}: not found; run the fetch stage for city {folder.name} first"
        ) from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: damaged ({reason}); run the fetch stage for city {folder.name} again"
        ) from None
    files = (
        {key: located(path.parent, getattr(scene, key)) for key in ("image", "labels")}
        for scene in city.scenes
    )
    return replace(
        city,
        scenes=[replace(scene, **file) for scene, file in zip(city.scenes, files, strict=True)],
    )


def located(folder: Path, path: str | None) -> str | None:
    """A path of FOLDER/city.json as rasterio opens it from anywhere."""
    return path if path is None or "://" in path else str(folder / path)
