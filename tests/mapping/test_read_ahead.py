import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.mapping import read_ahead
from pipeline.mapping.read_ahead import ReadAhead


class Pixels:
    """A raster in memory that counts what is read of it."""

    def __init__(
        self, array: np.ndarray, fail_at: int | None = None, valid: np.ndarray | None = None
    ):
        self.array, self.shape, self.fail_at, self.rows_read, self.valid = (
            array,
            array.shape,
            fail_at,
            0,
            valid,
        )

    def read(self, window):
        if self.fail_at is not None and window.top >= self.fail_at:
            raise InputError("cut short")
        self.rows_read += window.height
        valid = None if self.valid is None else self.valid[window.slices]
        return self.array[window.slices].copy(), None if valid is None or valid.all() else valid


@pytest.mark.parametrize("seed", range(20))
def test_any_walk_downwards_sees_the_raster_and_reads_it_once(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*rng.integers(1, 90, 2), 3), dtype=np.uint8)
    monkeypatch.setattr(read_ahead, "STRIP", int(rng.integers(1, 2000)))
    raster, first, last = Pixels(pixels), 0, 0
    with ReadAhead(raster) as image:
        while last < len(pixels):
            first, last = (
                int(rng.integers(first, last + 1)),
                int(rng.integers(last, len(pixels) + 1)),
            )
            np.testing.assert_array_equal(image[first:last], pixels[first:last])
    assert raster.rows_read == len(pixels)


@pytest.mark.parametrize("seed", range(20))
def test_a_window_is_empty_where_no_pixel_is_valid(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    valid = np.kron(rng.random((6, 5)) < 0.3, np.ones((10, 8))).astype(bool)
    monkeypatch.setattr(read_ahead, "STRIP", int(rng.integers(1, 1000)))
    with ReadAhead(Pixels(np.zeros((*valid.shape, 3), np.uint8), valid=valid)) as image:
        for top in range(0, 50, 7):
            assert len(image[top : top + 20])
            for left in range(0, 40, 8):
                # the last one ends beyond the raster
                window = slice(top, min(60, top + 20)), slice(left, left + 9)
                assert image.empty(*window) == (not valid[window].any())


def test_memory_is_that_of_a_window_and_a_strip(monkeypatch):
    monkeypatch.setattr(read_ahead, "STRIP", 70)
    with ReadAhead(Pixels(np.zeros((500, 10, 3), np.uint8))) as image:
        for top in range(0, 480, 15):
            assert len(image[top : top + 20]) == 20
            assert len(image.rows) <= 20 + 2 * 7


def test_a_failing_read_is_raised_where_its_rows_are_asked_for(monkeypatch):
    monkeypatch.setattr(read_ahead, "STRIP", 100)
    with ReadAhead(Pixels(np.zeros((50, 10, 3), np.uint8), fail_at=20)) as image:
        image[0:10]
        with pytest.raises(InputError, match="cut short"):
            image[5:25]
