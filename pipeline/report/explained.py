"""What the map rests on, in words and pictures: of metrics/explain.json and arrays/explain."""

import io
import zipfile

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pipeline.metrics import CityExplained
from pipeline.report.results import Results
from pipeline.report.viewer import Figured, overlay, unreadable, webp

MOST = 3  # cities shown, the hardest
BLAND = 1e-9


def rests_on(results: Results) -> str:
    """ "The model leans on colour in X (IoU −0.31, at least 0.22) and on shadow in Y": the least
    that is lost for certain, of all cues in all cities at once.
    """
    cities = results.metrics.explain.city
    built = [city for city in results.cities if city in cities and any(cities[city].cue.values())]
    leaning = {city: cities[city].leans_on for city in built}
    if not leaning:
        return ""
    named = [f"on {cue} in {listed(cities, leaning, cue)}" for cue in found_of(leaning)]
    none = [city for city, cue in leaning.items() if cue is None]
    said = [f"The model leans {joined(named)}."] if named else []
    rest = f"On no single cue for certain in {joined(none)}." if none else ""
    return " ".join([*said, *filter(None, [rest])])


def found_of(leaning: dict[str, str | None]) -> list[str]:
    """The cues in the order of how many cities lean on them."""
    cues = [cue for cue in leaning.values() if cue]
    return sorted(dict.fromkeys(cues), key=lambda cue: -cues.count(cue))


def listed(cities: dict[str, CityExplained], leaning: dict[str, str | None], cue: str) -> str:
    """Each city that leans on a cue, and the IoU it loses, with its interval."""
    rows = ((city, cities[city].cue[cue]) for city, name in leaning.items() if name == cue)
    return joined(
        [
            f"{city} (IoU −{row.drop:.2f}, {row.drop_low:.2f} to {row.drop_high:.2f})"
            for city, row in rows
            if row
        ]
    )


def joined(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def explained(results: Results) -> list[Figured]:
    """A tile of each of the hardest cities as it is and without each cue, its errors in colour, and
    what speaks for one of its buildings."""
    paths = {city: results.array("explain", f"{city}.npz") for city in results.cities}
    found = []
    for city in [city for city, path in paths.items() if path.exists()][:MOST]:
        try:
            with np.load(paths[city], allow_pickle=False) as arrays:
                image = cues_shown(dict(arrays))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise unreadable(paths[city], results.root, error) from None
        found.append(Figured(city, webp(image, quality=70), *image.size))
    return found


def cues_shown(arrays: dict[str, np.ndarray]) -> Image.Image:
    """Above the images, below the maps; in the last column a building and the evidence for it."""
    columns = {"as it is": (arrays["image"], arrays["map"], arrays["label"])}
    for name in arrays:
        if name.startswith("without "):
            columns[named(name)] = arrays[name], arrays[f"map {name}"], arrays[f"label {name}"]
    last = "gradients" in arrays
    figure = Figure(figsize=(2 * (len(columns) + last), 4.3), layout="constrained")
    axes = figure.subplots(2, len(columns) + last, squeeze=False)
    for (title, (image, found, label)), (above, below) in zip(
        columns.items(), axes.T, strict=False
    ):
        above.imshow(visible(image), interpolation="nearest")
        below.imshow(overlay(visible(image), found, label), interpolation="nearest")
        above.set_title(title, fontsize="medium")
    if last:
        evidence(*axes[:, -1], arrays)
    for axis in axes.flat:
        axis.axis("off")
    data = io.BytesIO()
    figure.savefig(data, dpi=90)
    return Image.open(data).convert("RGB")


def named(key: str) -> str:
    """ "without colour", but "shape alone" for what takes all but shape."""
    return "shape alone" if key == "without all but shape" else key


def evidence(above, below, arrays: dict[str, np.ndarray]) -> None:
    """A building's outline, and what speaks for it (red) and against it (blue)."""
    above.imshow(visible(arrays["explained"]), interpolation="nearest")
    above.contour(arrays["building"], [0.5], colors="white", linewidths=1)
    above.set_title("one building", fontsize="medium")
    most = max(BLAND, float(np.quantile(np.abs(arrays["gradients"]), 0.99)))
    below.imshow(arrays["gradients"], cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    below.set_title("its evidence", fontsize="medium")


def visible(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] of an image of any bands."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, -1)
