"""What a demo city is like: the schema of data/sources/demo.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import InputError, nearest
from pipeline.params import AsList, Count, Positive, Section, Share

Colour = Annotated[tuple[int, int, int], AsList]  # red, green, blue, 0-255, as displayed
Span = Annotated[tuple[float, float], AsList]  # least and most
# relative frequencies
Weights = Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1)]


class Material(Section):
    colour: Colour
    alt: Colour | None = None  # mixed in by patches; null = the same
    spread: Share = 0.06  # relative lightness from one object to the next
    grain: Share = 0.05  # relative amplitude of the finest texture
    pattern: Literal["none", "courses", "sheets", "furrows"] = "none"
    period: Positive = 1.0  # metres between the pattern's lines


class Roof(Section):
    material: str
    form: Literal["flat", "shed", "gable", "hip", "vault"]
    pitch: Span = (0, 0)  # degrees
    weight: Positive = 1  # relative frequency


class Streets(Section):
    block: Span  # metres along a block's side
    width: Span  # metres from kerb to kerb: lane, avenue
    surface: str  # material
    kerb: str | None = None  # material of the pavement beside the street; null = none
    curve: Annotated[float, Field(ge=0)] = 0  # metres by which streets swing from straight
    marks: bool = True  # lane marks and crossings
    cars: Share = 0.3  # share of the kerbside places that are taken


class Buildings(Section):
    frontage: Span  # metres of street a lot has
    depth: Span  # metres from front to back of a house
    length: Span  # metres along the front of a house
    setback: Span  # metres from the pavement to the front
    height: Span  # metres to the eaves
    compound: Share  # share of houses with a second wing
    pools: Share = 0  # share of houses with one
    hall: Span = (18, 44)  # metres along a hall's side
    houses: list[Roof]
    halls: list[Roof]  # shops, flats, workshops


class Plants(Section):
    grass: str  # material of gardens and parks
    trees: Annotated[float, Field(ge=0)]  # trees a lot; streets and parks follow
    crown: Span  # metres of radius
    conifers: Share
    leaf: list[Colour]


class Light(Section):
    # degrees clockwise from north, where the sun stands
    azimuth: Annotated[float, Field(ge=0, lt=360)]
    elevation: Annotated[float, Field(ge=10, le=90)]  # degrees above the horizon
    ambient: Share  # sky's share of the light on open ground
    haze: Share  # share of airlight in what the camera sees
    air: Colour  # colour of that airlight


class Camera(Section):
    blur: Annotated[float, Field(ge=0, le=3)]  # pixels, σ of the point spread
    noise: Annotated[float, Field(ge=0, le=30)]  # grey levels, σ
    vignette: Share  # relative darkening of a corner
    cast: Annotated[tuple[float, float, float], AsList] = (1, 1, 1)  # gain of red, green, blue
    exposure: Positive = 1


class DemoCity(Section):
    epsg: int  # of the images
    labels_epsg: int  # of the footprints
    origin: Annotated[
        tuple[float, float], AsList
    ]  # easting, northing of the first scene's upper left corner, CRS units
    gsd: Positive  # metres on the ground per pixel
    scenes: Count = 12
    uses: Weights  # what blocks are used for, see layout.USES
    rural: Share  # chance that a large piece of land stays undivided
    river: Share = 0  # chance that a river crosses a scene
    streets: Streets
    buildings: Buildings
    yards: Weights  # materials of paved and bare rectangles that are no buildings
    decoys: Share  # share of lots with such a rectangle
    plants: Plants
    light: Light
    camera: Camera


class Manifest(Section):
    materials: dict[str, Material]
    cities: dict[str, DemoCity]


def find_city(manifest: Manifest, name: str) -> DemoCity:
    """The demo city of that name. Raises InputError that names the nearest known one."""
    if name not in manifest.cities:
        raise InputError(
            f"fetch.cities: the demo has no city {name!r}; did you mean "
            f"{nearest(name, manifest.cities)}? "
            f"It has {', '.join(manifest.cities)}"
        )
    return manifest.cities[name]
