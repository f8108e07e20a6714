"""What skipping loses and saves on real ground: the whole map against the one that
passes over empty windows.

    python -m benchmarks.glance models/all [--steps 300] [--tiles data/tiles] [--cities CITY …]

Teaches a glance on the model's cities' training tiles, sets its threshold on their validation
tiles, and maps the test scenes of every city that lies in `--tiles`, in windows of 512 and of 256
pixels: a row a city, of those the model knows and of others, whose threshold promises nothing.
"""

from pathlib import Path

import numpy as np

from benchmarks.ratio import arguments_of
from pipeline.labels import IGNORE
from pipeline.mapping.flow import Glimpses
from pipeline.networks.models import read_model
from pipeline.networks.precision import device
from pipeline.params import Train
from pipeline.scoring.inference import infer
from pipeline.scoring.metrics import ratio
from pipeline.tiles.store import CityTiles
from pipeline.training.glance import threshold_glance, train_glance


def drawn(segmenter, image: np.ndarray, window: int, worth=None) -> np.ndarray:
    """(H, W) bool: what is drawn as building."""
    bands = infer(
        segmenter, image, window=window, temperature=segmenter.decision.temperature, worth=worth
    )
    return np.concatenate([segmenter.decision.of_probabilities(p[..., 1:]) for _, p in bands]) > 0


def row(segmenter, glance, city: CityTiles, window: int) -> str:
    # of the whole map and the other: I, U
    glimpses, counts = Glimpses(glance), np.zeros((2, 2), np.int64)
    kept = whole_area = 0
    for region in city.of_split("test"):
        image, label = np.asarray(city.image(region)), np.asarray(city.label(region))
        whole, fast = (
            drawn(segmenter, image, window, worth) & (label != IGNORE) for worth in (None, glimpses)
        )
        truth = (label > 0) & (label != IGNORE)
        counts += [[(m & truth).sum(), (m | truth).sum()] for m in (whole, fast)]
        kept, whole_area = kept + int((whole & fast).sum()), whole_area + int(whole.sum())
    before, after = (ratio(*c) for c in counts.tolist())
    known = city.city in segmenter.card.cities
    lost = 1 - kept / max(1, whole_area)
    return (
        f"| {city.city} | {'yes' if known else 'no'} | {window} | {glimpses.share:.0%} | "
        f"{lost:.2%} | "
        f"{before or 0:.4f} | {after or 0:.4f} |"
    )


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tiles", type=Path, default=Path("data/tiles"))
    parser.add_argument("--cities", nargs="*")
    asked = parser.parse_args()
    segmenter = read_model(asked.model, device())
    cities = [CityTiles(path.parent) for path in sorted(asked.tiles.glob("*/regions.json"))]
    seen = [city for city in cities if city.city in segmenter.card.cities]
    train = Train.model_validate({**segmenter.card.params["train"], "glance": asked.steps})
    glance = train_glance(seen, train, device())
    print(threshold_glance(glance, segmenter, seen, train.crop))
    print(
        "| city | seen | window | windows skipped | built area lost | IoU, whole | IoU, skipped |"
    )
    print("|---" * 7 + "|")
    for city in cities:
        if not asked.cities or city.city in asked.cities:
            for window in (512, 256):
                print(row(segmenter, glance, city, window), flush=True)


if __name__ == "__main__":
    main()
