"""The records of metrics/: every number has its meaning, a file is read as it was written,
damage is one sentence.
"""

import json
from pathlib import Path
from typing import get_args

import pytest
from report_factory import STAGES as MADE
from report_factory import make

from pipeline import metrics
from pipeline.errors import InputError
from pipeline.metrics import (
    STAGES,
    CertifyMetrics,
    CityScores,
    DrawnOutlines,
    EvaluateMetrics,
    Record,
    ReportMetrics,
    read,
    write,
)
from pipeline.params import AttackMethod
from pipeline.reference import numbers
from pipeline.scoring.evaluation import MEASURES
from pipeline.scoring.outlines import METRICS

ROOT = Path(__file__).parents[1]
RECORDS = [
    kind for kind in vars(metrics).values() if isinstance(kind, type) and issubclass(kind, Record)
]


def test_the_page_of_metrics_is_written_from_the_records():
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert page == numbers(), "run `python -m pipeline metrics > docs/metrics.md`"
    for line in page.splitlines():  # a bar within a cell would end it
        assert not line.startswith("|") or line.count("|") == 3


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_number_has_its_meaning_and_may_be_absent(kind):
    """An interval's two ends stand together, beside their number."""
    for name, field in kind.model_fields.items():
        assert field.description or field.exclude or kind is metrics.Metrics, (
            f"{kind.__name__}.{name}"
        )
        if name.endswith(("_low", "_high")):
            number = name.rsplit("_", 1)[0]
            assert {number, f"{number}_low", f"{number}_high"} <= kind.model_fields.keys()
    assert not kind().model_dump(exclude_unset=True)


def test_what_is_measured_is_described():
    assert MEASURES.keys() <= CityScores.model_fields.keys()
    ends = {name + end for name in METRICS for end in ("", "_low", "_high")}
    assert DrawnOutlines.model_fields.keys() == {"pairs", *ends}
    # open: an attack more is no field
    assert not {*get_args(AttackMethod)} & metrics.UnderBudget.model_fields.keys()


def test_every_file_is_read_as_it_was_written(tmp_path):
    make(tmp_path, ["here", "there"])
    for stage in MADE:
        path = tmp_path / f"metrics/{stage}.json"
        found = read(STAGES[stage], path)
        assert found.model_dump(mode="json", exclude_unset=True) == json.loads(path.read_text()), (
            stage
        )
        assert [*metrics.undescribed(found)] == [], stage


def test_the_demos_numbers_are_all_described():
    for path in sorted((ROOT / "metrics").rglob("*.json")):
        found = read(ReportMetrics if path.parent.name == "report" else STAGES[path.stem], path)
        assert found.model_dump(mode="json", exclude_unset=True) == json.loads(path.read_text()), (
            path
        )
        assert [*metrics.undescribed(found)] == [], path


def test_what_is_written_is_what_was_found(tmp_path):
    """In its own order; a measure of one's own is a number of a city, anything
    else needs its description.
    """
    path = tmp_path / "evaluate.json"
    city = {"specificity": 0.5, "iou": 1, "iou_low": None}
    found = {"city": {"here": city}, "pooled": {"iou": 0.25}}
    record = write(path, EvaluateMetrics, found)
    assert (
        record == read(EvaluateMetrics, path)
        and path.read_text() == json.dumps(found, indent=2) + "\n"
    )
    assert (record.city["here"].iou, record.city["here"].specificity, record.city["here"].f1) == (
        1,
        0.5,
        None,
    )
    with pytest.raises(KeyError, match=r"EvaluateMetrics .* does not describe fair, pooled.ioo"):
        write(path, EvaluateMetrics, {"pooled": {"ioo": 0.5}, "fair": {}})
    assert json.loads(path.read_text()) == found


def test_the_number_of_another_version_is_kept(tmp_path):
    path = tmp_path / "evaluate.json"
    path.write_text('{"pooled": {"iou": 0.5, "iou_then": 0.4}}')
    assert read(EvaluateMetrics, path).model_dump(exclude_unset=True) == json.loads(
        path.read_text()
    )


def test_a_certify_stage_without_a_method_leaves_an_empty_file(tmp_path):
    write(tmp_path / "certify.json", CertifyMetrics, {})
    assert read(CertifyMetrics, tmp_path / "certify.json") == CertifyMetrics()


def test_a_stage_that_has_not_run_is_empty(tmp_path):
    assert read(EvaluateMetrics, tmp_path / "evaluate.json") == EvaluateMetrics()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("{}", r"holds no metrics of the evaluate stage \(it has none of their names\)"),
        ('{"iou": 0.5}', r"holds no metrics of the evaluate stage \(it has none"),
        ("[]", r"holds no metrics of the evaluate stage \(Input should be a valid"),
        ('{"city": {"here": 0.5}}', r"holds no metrics of the evaluate stage \(city.here: "),
        (
            '{"pooled": {"iou": "0.5"}}',
            r"holds no metrics of the evaluate stage \(pooled.iou: Input should be a valid number",
        ),
        (
            '{"pooled": {"iou": NaN}}',
            r"holds no metrics of the evaluate stage \(pooled.iou: Input should be a finite number",
        ),
        (
            '{"city": {"here": {"buildings": 1.5}}}',
            r"holds no metrics of the evaluate stage \(city.here.buildings: ",
        ),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, content, said):
    path = tmp_path / "evaluate.json"
    path.write_text(content)
    with pytest.raises(
        InputError,
        match=rf"evaluate.json: {said}.*; run (it|its stage) "
        rf"again$",
    ) as error:
        read(EvaluateMetrics, path)
    assert "\n" not in str(error.value)
