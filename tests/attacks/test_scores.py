"""A city whose tiles hold no building: measured, null in every table, and no evidence for or
against an attack.
"""

import pytest

from pipeline.attacks.audit import audit
from pipeline.attacks.scores import city_metrics, evidence

CHECKS = ("half_steps", "steps", "cooled", "sharpened", "transfer", "noise", "relative_clean")


def city(buildings: list[int], tiles: list, attacked: list) -> dict:
    return {
        "clean": {"tiles": tiles, "buildings": buildings},
        "linf 1": {
            "noise": tiles,
            "pgd": attacked,
            **dict.fromkeys(("apgd mce", "apgd js"), attacked),
        },
        "checks": {
            **dict.fromkeys(CHECKS, tiles),
            "steps": attacked,
            "vanishing": [[0, 0], tiles[1]],
        },
        "halving": {"linf": None},
        "patch": {
            "clean": tiles,
            "attacked": attacked,
            "scored_share": 0.5,
            "buildings": sum(buildings),
        },
        "excess": {"value": 0.0},
    }


TOWN = city([9, 5], [[9, 5], [10, 5]], [[4, 3], [10, 6]])
FIELDS = {
    "right": city([0, 0], [[0, 0], [0, 0]], [[0, 0], [0, 0]]),
    "invented": city([0, 0], [[0, 0], [3, 0]], [[0, 0], [90, 7]]),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_iou_of_a_city_without_buildings_is_null(field):
    metrics = city_metrics(FIELDS[field])
    row = metrics["linf"]["1"]
    assert {v for k, v in row.items() if k != "apgd_losses"} | set(row["apgd_losses"].values()) == {
        None
    }
    assert metrics["transfer"] == {"iou": None, "relative_clean": None}
    assert metrics["patch"]["clean"] is metrics["patch"]["attacked"] is None
    assert (
        city_metrics(TOWN)["linf"]["1"]["worst"] == 7 / 16
        and "buildings" not in city_metrics(TOWN)["patch"]
    )


@pytest.mark.parametrize("field", FIELDS)
def test_the_audit_judges_by_the_cities_with_buildings(field):
    longer = {"tiles": [[4], [10]], "excess": 0.0}  # of the town's fullest tile
    alone = evidence({"town": TOWN}, "1", longer)
    assert evidence({"field": FIELDS[field], "town": TOWN}, "1", longer) == alone
    assert all(audit(**alone).values())
    nothing = evidence({"field": FIELDS[field]}, "1", None)
    assert nothing["clean"] is None and all(audit(**nothing).values())
    nothing["excess"] = 1e-3  # a budget is one wherever it is
    assert not audit(**nothing)["within_budget"]
