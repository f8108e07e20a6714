"""What a mapper holds at a time; its maps are tested with the predict stage."""

import numpy as np
import pytest
from affine import Affine

from pipeline.imagery.grid import Grid
from pipeline.mapping import mapper as module
from pipeline.mapping.mapper import Mapper
from pipeline.networks.decision import Decision
from pipeline.params import Predict


@pytest.mark.parametrize("times", [0.25, 1, 4, 20])
def test_memory_is_that_of_a_band_however_fine_the_model(times, monkeypatch):
    """A scene of 10 m and a model of half a metre have 400 pixels of the model
    in one of the scene.
    """
    chunk, (height, width) = 20_000, (400, 200)
    monkeypatch.setattr(module, "CHUNK", chunk)
    scene = Grid(height, width, Affine(10, 0, 5e5, 0, -10, 6.65e6), "EPSG:32632")
    model = Grid(int(height * times), int(width * times), Affine.identity(), scene.crs)
    held, written = [], np.zeros((height, width), np.uint8)

    def rows(top: int, pixels: np.ndarray) -> None:
        written[top : top + pixels.shape[1]] = pixels[0] + 1

    decide = Decision().of_probabilities
    mapper = Mapper(
        model, scene, (10, 10), Predict(min_area=0), decide, {"mask": rows}, lambda *_: None
    )
    advance = mapper._advance
    monkeypatch.setattr(
        mapper, "_advance", lambda: held.append(mapper.band[..., 0].size) or advance()
    )
    for top in range(0, model.height, 64):
        mapper.add(np.full((min(64, model.height - top), model.width, 1), 0.9, np.float32))
    assert mapper.finish().buildings == 1 and (written == 2).all()
    assert max(held) <= 3 * max(chunk, int(times + 2) * model.width)  # a row of the scene at least
