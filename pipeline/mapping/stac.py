"""A model's card as a STAC item of the Machine Learning Model kind, so that catalogues find it.

https://github.com/stac-extensions/mlm
"""

from datetime import UTC, datetime
from pathlib import Path

import torch

from pipeline.networks.card import read_card
from pipeline.networks.models import SMP

EXTENSIONS = [
    "https://stac-extensions.github.io/mlm/v1.6.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
]


def stac_item(folder: str | Path, parameters: int) -> dict:
    """The card of a model folder as a STAC 1.1 item; a model has no geometry. `parameters`: how
    many numbers it learnt.

    Raises InputError where the folder holds no card of this pipeline.
    """
    folder = Path(folder)
    card = read_card(folder)
    weights = folder / "weights.safetensors"
    names = [f"B{band}" for band in card.scene_bands]
    bands = [{"name": name, "gsd": card.gsd} for name in names]
    classes = [{"value": 0, "name": "background"}] + [
        {"value": k, "name": "building" if card.classes == 1 else f"class-{k}"}
        for k in range(1, card.classes + 1)
    ]

    def tensor(channels: int, axis: str) -> dict:
        return {
            "shape": [-1, channels, -1, -1],
            "dim_order": ["batch", axis, "height", "width"],
            "data_type": "float32",
        }

    written = datetime.fromtimestamp(weights.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    model = card.model
    parts = [
        model.architecture.replace("+", "plus"),
        *([model.encoder] if model.architecture in SMP else []),
    ]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": EXTENSIONS,
        "id": folder.resolve().name,
        "geometry": None,
        "properties": {
            "datetime": written,
            "description": f"Building segmentation, trained on {', '.join(card.cities)}",
            "gsd": card.gsd,
            "bands": bands,
            "mlm:name": "_".join(parts),
            "mlm:architecture": model.architecture,
            "mlm:tasks": ["semantic-segmentation"],
            "mlm:framework": "PyTorch",
            "mlm:framework_version": torch.__version__.split("+")[0],
            "mlm:total_parameters": parameters,
            "mlm:pretrained": True,
            "mlm:input": [
                {
                    "name": "images",
                    "bands": names,
                    "input": tensor(card.channels, "bands"),
                    "value_scaling": [{"type": "min-max", "minimum": 0, "maximum": 255}],
                    "resize_type": None,
                }
            ],
            "mlm:output": [
                {
                    "name": "logits",
                    "tasks": ["semantic-segmentation"],
                    "result": tensor(card.classes + 1, "class"),
                    "classification:classes": classes,
                    "post_processing_function": {
                        "format": "text",
                        "expression": "softmax over the class axis",
                    },
                }
            ],
            "mlm:hyperparameters": {"threshold": card.threshold, "temperature": card.temperature},
        },
        "links": [],
        "assets": {
            "weights": {
                "href": f"./{weights.name}",
                "type": "application/octet-stream; application=safetensors",
                "title": "Weights",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors.torch.save_file",
            },
            "card": {
                "href": "./model.json",
                "type": "application/json",
                "title": "Model card",
                "roles": ["metadata"],
            },
            "onnx": {
                "href": "./model.onnx",
                "type": "application/octet-stream; framework=onnx",
                "title": "ONNX graph: images in [0, 1] of any size to logits",
                "roles": ["mlm:model", "mlm:compiled"],
                "mlm:artifact_type": "onnx",
            },
        },
    }
