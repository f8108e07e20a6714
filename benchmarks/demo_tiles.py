"""The demo's tiles as benchmark material, made once in a temporary folder."""

import os
import tempfile
from pathlib import Path

from pipeline.params import Params, load_params
from pipeline.stages import fetch, tile
from pipeline.tiles.store import CityTiles, open_cities

ROOT = Path(__file__).parents[1]


def demo_params(**fetch_values) -> Params:
    params = load_params(ROOT / "presets/demo.yaml")
    values = {
        "path": str(ROOT / params.fetch.path),
        "cities": params.fetch.cities[:2],
        **fetch_values,
    }
    return params.model_copy(update={"fetch": params.fetch.model_copy(update=values)})


def demo_tiles(params: Params) -> list[CityTiles]:
    """Tiles of params.fetch.cities, in a folder of this run and these parameters."""
    folder = (
        Path(tempfile.gettempdir())
        / f"demo-{params.fetch.scene_size}-{'-'.join(params.fetch.cities)}"
    )
    folder.mkdir(exist_ok=True)
    here = Path.cwd()
    os.chdir(folder)  # stages write below the folder they are started in
    try:
        if not Path("data/tiles", params.fetch.cities[-1]).exists():
            fetch.run(params)
            tile.run(params)
        return open_cities(params.fetch.cities, folder / "data/tiles")
    finally:
        os.chdir(here)
