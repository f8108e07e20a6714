"""A model folder's README.md: the card that people read, with the front matter that
the Hugging Face Hub does.

Mitchell et al., Model Cards for Model Reporting, FAT* 2019; the keys are those of
the Hub's model cards.
"""

import yaml

from pipeline.metrics import CityScores, EvaluateMetrics
from pipeline.networks.card import Card
from pipeline.params import BARE

TAGS = [
    "image-segmentation",
    "building-segmentation",
    "remote-sensing",
    "aerial-imagery",
    "semantic-segmentation",
]


def readme(card: Card, measured: EvaluateMetrics | None = None) -> str:
    """The page of a model card (`model.json`); `measured`: a
    metrics/evaluate.json, its IoU per city too.
    """
    measured = measured or EvaluateMetrics()
    front = yaml.safe_dump(_front_matter(card, measured), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{_page(card, measured)}"


def _name(card: Card) -> str:
    return f"Buildings from the air: {card.model.architecture}"


def _front_matter(card: Card, measured: EvaluateMetrics) -> dict:
    known = {"validation": card.metrics.get("validation_iou")}
    known |= {"test, pooled": measured.pooled.iou}
    results = [
        {"task": {"type": "image-segmentation", "name": "Building segmentation"},
         "dataset": {"type": "custom", "name": f"{', '.join(card.cities) or 'unnamed'} ({split})"},
         "metrics": [{"type": "iou", "name": "IoU of buildings", "value": round(iou, 4)}]}
        for split, iou in known.items() if iou is not None
    ]  # fmt: skip
    front = {
        "license": "other",
        "license_name": "as-the-training-imagery",
        "library_name": "pytorch",
        "pipeline_tag": "image-segmentation",
        "tags": TAGS,
    }
    return front | ({"model-index": [{"name": _name(card), "results": results}]} if results else {})


def _page(card: Card, measured: EvaluateMetrics) -> str:
    model, iou = card.model, card.metrics.get("validation_iou")
    cities = ", ".join(card.cities) or "cities that the card does not name"
    validation = (
        "no building lay in validation"
        if iou is None
        else f"{iou:.3f} on validation scenes of these cities"
    )
    encoder = "" if model.architecture in BARE else f" with {model.encoder}"
    before = (
        f"; it started from a model that knew {', '.join(card.inherited)}" if card.inherited else ""
    )
    rows = [
        ("architecture", f"{model.architecture}{encoder}"),
        (
            "input",
            f"{card.channels} bands, {card.gsd:g} m on the ground per pixel, values in [0, 1]",
        ),
        (
            "output",
            f"logits of background and {card.classes} class{'es' * (card.classes > 1)} of building",
        ),
        (
            "threshold",
            f"{card.threshold:.3g} of the probability at temperature {card.temperature:.3g}",
        ),
        ("trained on", cities + before),
        ("IoU", validation),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    return f"""# {_name(card)}

Segments buildings in aerial and satellite images. `weights.safetensors` and `model.json` are data, never code.

| | |
|---|---|
{table}

{_measured(measured)}## Use

```python
from pipeline import load_model
buildings = load_model("FOLDER").predict("scene.tif")   # .mask, .probability, .polygons
```

or `python -m pipeline predict FOLDER scenes/*.tif --out maps`.

## Intended use, and limits

- For maps of buildings in imagery like that of the training cities, at about this resolution. Elsewhere IoU falls:
  hold it against labels of the new place, or look at the IoU that `predict` expects without labels.
- Its map is no cadastre: outlines err at their edges, and houses that touch become one.
- Manipulated pixels can empty its map, by perturbations that nobody sees, unless it was trained against them and a
  certificate says how far.
- Not for decisions about single people or their homes without a person who looks.

## Licence

The code is Apache-2.0. Weights carry what the licence of their training imagery and labels asks; whoever publishes them
states it here.
"""


def _measured(measured: EvaluateMetrics) -> str:
    cities = measured.city
    if not cities:
        return ""
    rows = "\n".join(
        f"| {city} | {_number(found.iou)} | {_interval(found)} |" for city, found in cities.items()
    )
    return f"""## IoU per city, on test scenes

| city | IoU | 95 % interval |
|---|---|---|
{rows}

"""


def _number(value: float | None) -> str:
    return "none: nothing to measure" if value is None else f"{value:.3f}"


def _interval(found: CityScores) -> str:
    low, high = found.iou_low, found.iou_high
    return "none that is honest" if low is None or high is None else f"{low:.2f}–{high:.2f}"
