"""Matrices with known answers."""

import numpy as np
import pytest

from pipeline.incremental.scores import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    summary,
)

R = np.array([[0.8, 0.3, 0.1], [0.9, 0.7, 0.2], [0.5, 0.6, 0.4]])


def test_a_matrix_by_hand():
    assert average_accuracy(R) == pytest.approx((0.5 + 0.6 + 0.4) / 3)
    assert backward_transfer(R) == pytest.approx(((0.5 - 0.8) + (0.6 - 0.7)) / 2)
    assert forward_transfer(R, np.array([0.0, 0.1, 0.05])) == pytest.approx(
        ((0.3 - 0.1) + (0.2 - 0.05)) / 2
    )
    assert forgetting(R) == pytest.approx(((0.9 - 0.5) + (0.7 - 0.6)) / 2)


def test_forgetting_is_no_less_than_what_backward_transfer_loses():
    random = np.random.default_rng(0)
    for _ in range(50):
        r = random.random((4, 4))
        assert forgetting(r) >= -backward_transfer(r) - 1e-12


def test_nothing_is_forgotten_where_nothing_changes():
    constant = np.tile([0.2, 0.5, 0.9], (3, 1))
    found = summary(constant, np.zeros(3))
    assert found == {
        "average": pytest.approx(1.6 / 3),
        "forgetting": 0,
        "backward": 0,
        "forward": pytest.approx(0.7),
    }


def test_a_city_without_a_building_enters_no_mean():
    r = R.copy()
    r[:, 1] = np.nan
    assert average_accuracy(r) == pytest.approx(0.45)
    assert backward_transfer(r) == pytest.approx(-0.3) and forgetting(r) == pytest.approx(0.4)
    assert forward_transfer(r, np.zeros(3)) == pytest.approx(0.2)
    assert set(summary(np.full((2, 2), np.nan), np.zeros(2)).values()) == {None}


def test_two_cities():
    r = np.array([[0.6, 0.2], [0.1, 0.5]])
    assert forgetting(r) == pytest.approx(0.5) and backward_transfer(r) == pytest.approx(-0.5)
