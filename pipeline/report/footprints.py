"""A map a city: the footprints of its scenes from their real coordinates, coloured by IoU."""

from dataclasses import dataclass

import matplotlib
import numpy as np

from pipeline.report.results import Results
from pipeline.report.viewer import Picture

DEGREE = 111_320  # metres along a degree of latitude


@dataclass(frozen=True)
class Footprint:
    name: str
    split: str
    iou: float | None
    points: str  # of an SVG polygon, metres from the map's corner
    colour: str
    picture: int | None  # its place in the viewer


@dataclass(frozen=True)
class CityMap:
    city: str
    place: str
    width: float  # metres
    height: float
    footprints: list[Footprint]
    sparse: bool  # scenes so small on the map that only a thick outline shows them


def colour(iou: float | None) -> str:
    """Viridis from 0 to 1; white where nothing is known."""
    return (
        matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](iou))
        if iou is not None
        else "#ffffff"
    )


def ink(iou: float | None) -> str:
    """The text colour that reads on `colour(iou)`."""
    return "#ffffff" if iou is not None and iou < 0.6 else "#111111"


def maps(results: Results, shown: list[Picture]) -> list[CityMap]:
    """One map a city whose scenes carry coordinates. Regions cut from one large scene keep
    their own outlines.
    """
    places = {(p.city, p.scene): i for i, p in enumerate(shown)}
    found = []
    for city, about in results.tiles.items():
        regions = [r for r in about["regions"] if r.crs is not None]
        if not regions:
            continue
        degrees = np.stack([r.grid.degrees()[0] for r in regions])  # (N, 4, 2)
        longitude, latitude = degrees.reshape(-1, 2).mean(0)
        metres = degrees * [DEGREE * np.cos(np.radians(latitude)), -DEGREE]
        metres -= metres.min((0, 1))
        width, height = metres.max((0, 1))
        sparse = np.ptp(metres, axis=1).max() < 0.03 * max(width, height)
        footprints = [
            Footprint(
                r.name, r.split, results.scenes.get((city, r.name)),
                " ".join(f"{x:.1f},{y:.1f}" for x, y in ring),
                colour(results.scenes.get((city, r.name))), places.get((city, r.name)),
            )
            for r, ring in zip(regions, metres, strict=True)
        ]  # fmt: skip
        # the evaluated ones are drawn over the others
        footprints.sort(key=lambda f: f.iou is not None)
        where = place(longitude, latitude, max(width, height))
        found.append(CityMap(city, where, width, height, footprints, bool(sparse)))
    return found


def place(longitude: float, latitude: float, across: float) -> str:
    north, east = "N" if latitude >= 0 else "S", "E" if longitude >= 0 else "W"
    extent = f"{across / 1000:.1f} km" if across >= 1000 else f"{across:.0f} m"
    return f"{abs(latitude):.2f}° {north}, {abs(longitude):.2f}° {east} · {extent} across"
