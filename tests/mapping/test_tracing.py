import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.features import shapes
from scipy import ndimage

from pipeline.mapping.tracing import outlines


def numbered(mask: np.ndarray) -> np.ndarray:
    return ndimage.label(mask)[0].astype(np.int32)


def of_gdal(labels: np.ndarray, row: int) -> np.ndarray:
    found = shapes(labels, mask=labels > 0, connectivity=4, transform=Affine.translation(0, row))
    by_label = {int(label): shapely.geometry.shape(shape) for shape, label in found}
    return np.array([by_label[label] for label in sorted(by_label)], object)


@pytest.mark.parametrize("seed", range(12))
def test_outlines_are_gdals(seed):
    """Of speckle, which touches itself in corners, and of smooth shapes with yards."""
    rng = np.random.default_rng(seed)
    noise = rng.random(rng.integers(1, 50, 2))
    smooth = ndimage.gaussian_filter(noise, 1.5)
    for mask in (noise < rng.uniform(0.05, 0.95), smooth > np.median(smooth)):
        labels = numbered(mask)
        ours, theirs = outlines(labels, row=7), of_gdal(labels, row=7)
        assert len(ours) == len(theirs) == labels.max()
        assert shapely.to_wkb(shapely.normalize(ours)).tolist() == (
            shapely.to_wkb(shapely.normalize(theirs)).tolist()
        )
        assert shapely.is_valid(ours).all()
        assert shapely.area(ours).tolist() == np.bincount(labels.ravel())[1:].tolist()


def test_a_yard_that_touches_the_ground_outside_in_a_point_is_a_ring_of_its_own():
    mask = np.ones((4, 4), bool)
    mask[0, 0] = mask[1, 1] = False  # they meet in the point (1, 1)
    (outline,) = outlines(numbered(mask))
    assert outline.is_valid and outline.area == 14
    assert len(outline.exterior.coords) - 1 == 6
    (yard,) = outline.interiors
    assert shapely.Polygon(yard).equals(shapely.box(1, 1, 2, 2))


def test_two_pixels_that_meet_in_a_corner_are_two_squares():
    ours = outlines(np.array([[1, 0], [0, 2]], np.int32))
    assert [shape.bounds for shape in ours] == [(0, 0, 1, 1), (1, 1, 2, 2)]
    assert len(outlines(np.zeros((3, 5), np.int32))) == 0
