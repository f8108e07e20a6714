"""The page of a model folder, as the Hugging Face Hub reads it."""

import pytest
import yaml

from pipeline.networks.card import Card
from pipeline.networks.hub import readme
from pipeline.networks.models import build_model, save_model
from pipeline.params import Model

CARD = {
    "model": Model(architecture="linear").model_dump(), "bands": [1, 2, 3], "channels": 3,
    "classes": 1, "gsd": 0.3, "cities": ["austin", "zanzibar"], "inherited": ["ohio"],
    "threshold": 0.45, "temperature": 1.2, "metrics": {"validation_iou": 0.7123456},
}  # fmt: skip


def front_matter(page: str) -> dict:
    start, front, _ = page.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front)


def test_a_saved_model_has_a_page_that_says_what_its_card_says(tmp_path):
    save_model(tmp_path / "model", build_model(Model(architecture="linear"), 3), CARD)
    page = (tmp_path / "model/README.md").read_text()
    assert page == readme(Card(**CARD))
    for said in (
        "austin, zanzibar",
        "knew ohio",
        "0.712",
        "0.3 m",
        "## Intended use, and limits",
        "## Licence",
    ):
        assert said in page


def test_the_front_matter_is_what_the_hub_takes():
    found = front_matter(readme(Card(**CARD)))
    assert found["license"] == "other" and found["license_name"] == found["license_name"].lower()
    assert found["pipeline_tag"] == "image-segmentation"
    (result,) = found["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "iou", "name": "IoU of buildings", "value": 0.7123}
    cards = pytest.importorskip("huggingface_hub").ModelCard(readme(Card(**CARD)))
    assert cards.data.eval_results[0].metric_value == 0.7123


def test_a_model_without_a_building_in_validation_claims_no_iou():
    page = readme(Card(**CARD | {"metrics": {"validation_iou": None}}))
    assert "model-index" not in front_matter(page) and "no building lay in validation" in page
