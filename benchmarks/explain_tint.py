"""Does the explanation find the planted tint (pipeline/course/tint.py) where it is
used, and only there?

    python -m benchmarks.explain_tint [--steps 200] [--tiles 48]

Writes benchmarks/explain_tint.md: of the standard and the adversarially trained network, the IoU
lost without colour, its simultaneous interval, and each band's share of the integrated gradients.
The tint lies between green and blue.
"""

from pathlib import Path

import numpy as np

from benchmarks.generalize_real import ROOT, table
from benchmarks.ratio import arguments_of
from pipeline.course import tint
from pipeline.explanation.city import explain_city
from pipeline.explanation.summary import summarise
from pipeline.networks.models import Segmenter
from pipeline.params import Adversarial, Explain

NETWORKS = {
    "standard": Adversarial(),
    "pgd-3, 8/255": Adversarial(method="pgd", epsilon=8, steps=3),
}


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--tiles", type=int, default=48, help="test tiles")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/explain_tint.md")
    arguments = parser.parse_args()
    images, labels = (part.numpy() for part in tint.tiles(arguments.tiles, 99))
    tiles = images.transpose(0, 2, 3, 1), labels.astype(np.uint8)
    measured = {}
    for name, config in NETWORKS.items():
        network = tint.train(config, arguments.steps).requires_grad_(False)
        steps = explain_city(
            Segmenter(network, 3, 1).deployed(), *tiles, Explain(buildings=8, square=4)
        )
        measured[name] = {what: numbers for what, numbers, _ in steps}
    found = summarise(measured, dict.fromkeys(NETWORKS, 1.0))["city"]
    columns = [
        "training",
        "IoU",
        "without colour",
        "lost",
        "at least",
        "at most",
        "leans on",
        "red",
        "green",
        "blue",
    ]
    keys = ("iou", "drop", "drop_low", "drop_high")
    rows = [
        [
            name,
            row["iou"],
            *(row["cue"]["colour"][key] for key in keys),
            row["leans_on"] or "none",
            *row["bands"],
        ]
        for name, row in found.items()
    ]
    text = (
        "\n\n".join(
            [
                "# The explanation of networks on the planted tint",
                f"`python -m benchmarks.explain_tint --steps {arguments.steps} --tiles "
                f"{arguments.tiles}`",
                "IoU lost without colour, its interval simultaneous over all cues of both "
                "networks; shares "
                "of the integrated "
                "gradients by band.",
                table(columns, rows),
            ]
        )
        + "\n"
    )
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
