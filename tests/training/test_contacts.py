"""What a network learns of contacts: crops hold what the whole region says, and the loss is the
one of buildings.
"""

import numpy as np
import torch
from torch.nn import functional as F
from toy import write_city

from pipeline.labels import IGNORE
from pipeline.tiles.instances import contacts
from pipeline.tiles.store import CityTiles
from pipeline.training.crops import RandomCrops, read_contacts
from pipeline.training.losses import build_loss, contact_loss


def terraces(folder, side: int = 96) -> CityTiles:
    label, numbers = np.zeros((2, side, side), np.uint8)
    for top in range(6, side - 14, 22):
        for i, left in enumerate(range(4, side - 12, 9)):
            label[top : top + 14, left : left + 9], numbers[top : top + 14, left : left + 9] = (
                1,
                1 + i % 2,
            )
    label[:3] = IGNORE
    image = np.random.default_rng(0).integers(1, 256, (side, side, 3), np.uint8)
    np.save(write_city(folder, [("train", image, label)]) / "numbers.npy", numbers.ravel())
    return CityTiles(folder / "toyton")


def test_a_crops_contacts_are_the_regions(tmp_path):
    city = terraces(tmp_path)
    region = city.regions[0]
    whole = contacts(city.instances(region), 1.0 / city.gsd)
    assert 0.05 < whole.mean() < 0.8
    for top, left, size in ((0, 0, 32), (17, 29, 40), (80, 70, 32), (0, 0, 128)):
        found = read_contacts(city, region, top, left, size, 1.0)
        expected = np.zeros((size, size), bool)
        part = whole[top : top + size, left : left + size]
        expected[: part.shape[0], : part.shape[1]] = part
        assert np.array_equal(found, expected)


def test_crops_are_turned_with_their_contacts(tmp_path):
    city = terraces(tmp_path)
    plain = RandomCrops([city], 48, 0, "flips")
    with_contacts = RandomCrops([city], 48, 0, "flips", contact=1.0)
    for i in range(6):
        (image, label), (same, again, near) = plain[i], with_contacts[i]
        assert torch.equal(image, same) and torch.equal(label, again)
        assert torch.equal(near == IGNORE, label == IGNORE) and set(near.unique().tolist()) <= {
            0,
            1,
            IGNORE,
        }
        inside = (near == 1) & (label == 1)
        assert inside.any() and not ((near == 1) & (label != 1) & (label != 0)).any()


def test_the_loss_is_the_binary_cross_entropy_of_what_is_known():
    torch.manual_seed(0)
    logits, near = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
    near[:, 0] = IGNORE
    known = near != IGNORE
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][known], near[known].float())
    found = contact_loss(build_loss({"cross_entropy": 1.0}), logits, near)
    assert torch.allclose(found, expected)
