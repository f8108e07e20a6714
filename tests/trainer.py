"""A process of its own that trains as the stage does, on tiles and parameters given as JSON."""

import json
import os
import sys
from pathlib import Path

import torch


def work(tiles: str, folder: str, params: dict, **environment: str) -> None:
    from pipeline.params import parse_params
    from pipeline.tiles.store import open_cities
    from pipeline.training.fit import fit

    os.environ |= environment
    torch.set_num_threads(1)
    cities = open_cities(params["fetch"]["cities"], tiles)
    fit(parse_params(params), cities, Path(folder), work=Path(folder).parent / "work")


if __name__ == "__main__":
    work(**json.loads(sys.argv[1]))
