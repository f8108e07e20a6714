"""Stage fetch: a place becomes scenes, data/scenes/CITY/city.json, whatever its source.

Every scene is opened once more as the tile stage will open it, so that a band it
lacks is found at once.
"""

from functools import partial
from importlib import import_module
from pathlib import Path

from pipeline.cluster import each, shard_of
from pipeline.console import console, table
from pipeline.errors import InputError, nearest
from pipeline.imagery.raster import open_image
from pipeline.imagery.scene import City, read_city, write_city
from pipeline.params import Params, Tile
from pipeline.storage import atomic_folder

SCENES = Path("data/scenes")
DOWNLOADS = Path("data/downloads")  # what outlives a run: archives, cells


def run(
    params: Params, city: str | None = None, *, ray: str | None = None, shard: str | None = None
) -> None:
    """Fetch every city of fetch.cities, or the one given; a city appears whole or not at all.

    ray, shard: where cities are fetched, see pipeline.cluster.
    """
    fetch = params.fetch
    cities = fetch.cities if city is None else [city]
    for name in set(cities) - set(fetch.cities):
        raise InputError(
            f"--city: {name} is not one of fetch.cities; did you mean "
            f"{nearest(name, fetch.cities)}?"
        )
    cities = shard_of(cities, shard)
    done = dict(each(partial(bring, params), cities, ray, gpu=False))
    columns = ["city", "scenes", "labelled", "Mpx", "notes"]
    table(f"fetch: {fetch.source}", columns, [done[name][0] for name in cities])
    for warning in (warning for name in cities for warning in done[name][1]):
        console.print(f"warning: {warning}", style="yellow", markup=False)


def bring(params: Params, name: str) -> tuple[list, list[str]]:
    """Fetch one city: its row of the table, and its warnings."""
    with atomic_folder(SCENES / name) as folder:
        write_city(
            folder, source_of(params.fetch.source).fetch(params.fetch, name, folder, DOWNLOADS)
        )
        found = read_city(folder)
        pixels = _check(found, params.tile)
    labelled = sum(scene.labels is not None for scene in found.scenes)
    notes = {
        key: value for key, value in found.notes.items() if key not in {"warnings", "label_values"}
    }
    return [name, len(found.scenes), labelled, pixels / 1e6, _short(notes)], found.notes.get(
        "warnings", []
    )


def source_of(name: str):
    """A source's module: `fetch` brings a city, `look_up` refuses one that there is not."""
    return import_module(f"pipeline.sources.{name}.source")


def _check(city: City, tile: Tile) -> int:
    """Pixels of a city's images. Raises InputError: band missing."""
    pixels = 0
    for scene in city.scenes:
        with open_image(scene.image, city.bands or tile.bands, tile.gsd, city.gsd, (0, 1)) as image:
            pixels += image.dataset.height * image.dataset.width
    return pixels


def _short(notes: dict) -> str | None:
    """Notes in a few words: numbers as they are, lists of names by their
    length; the rest is in city.json.
    """
    counts = {key: len(value) if isinstance(value, list) else value for key, value in notes.items()}
    shown = [
        f"{value} {key.replace('_', ' ')}"
        for key, value in counts.items()
        if isinstance(value, int) and value
    ]
    return ", ".join(shown) or None
