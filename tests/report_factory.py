"""What the stages would have left of any number of cities, made up but shaped
alike: for the report's tests.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.imagery.scene import City, Scene, write_city
from pipeline.transfer.corruptions import NAMES, SEVERITIES

SIDE, TILE = 256, 64
DRAWN = {
    "iou": 0.8,
    "polis": 0.7,
    "tangent": 40.0,
    "rotation": 3.1,
    "vertex_ratio": 1.1,
    "c_iou": 0.6,
}
OUTLINES = {name + end: value for name, value in DRAWN.items() for end in ("", "_low", "_high")}
STAGES = (
    "train",
    "evaluate",
    "attack",
    "certify",
    "explain",
    "generalize",
    "incremental",
    "privacy",
)


def make(root: Path, cities: list[str], stages: tuple = STAGES) -> Path:
    """Fill `root` as a run of these stages on these cities would."""
    random = np.random.default_rng(0)
    level = {city: round(0.8 - 0.5 * i / len(cities), 3) for i, city in enumerate(cities)}
    writers = {
        "train": train, "evaluate": evaluate, "attack": attack, "certify": certify,
        "explain": explain, "generalize": generalize, "incremental": incremental,
        "privacy": privacy,
    }  # fmt: skip
    for i, city in enumerate(cities):
        scenes_of(root, city, i)
    for stage in stages:
        write(root / f"metrics/{stage}.json", writers[stage](root, level, random))
    return root


def write(path: Path, data) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def scenes_of(root: Path, city: str, number: int) -> None:
    folder = root / "data/scenes" / city
    folder.mkdir(parents=True)
    scenes = [Scene(f"{city}-{i}", f"{i}.tif") for i in range(6)]
    write_city(
        folder, City(city, "demo", scenes, rights="CC0-1.0", attribution=f"the <people> of {city}")
    )
    regions = [
        {
            "name": s.name,
            "parent": s.name,
            "split": "test" if i > 3 else "validation" if i == 3 else "train",
            "height": SIDE,
            "width": SIDE,
            "offset": i * SIDE**2,
            "crs": "EPSG:32633",
            "transform": [
                0.5,
                0,
                462000 + 160 * (i % 3),
                0,
                -0.5,
                5541000 - 160 * (i // 3) - 90000 * number,
            ],
        }
        for i, s in enumerate(scenes)
    ]
    write(root / "data/tiles" / city / "regions.json", {
        "city": city, "gsd": 0.5, "size": TILE, "channels": 3, "classes": 1, "regions": regions,
        "statistics": {"building": 0.2},
    })  # fmt: skip


def train(root: Path, level: dict, random) -> dict:
    history = [{"epoch": e, "loss": 1 / (e + 1), "iou": 0.7 * e / (e + 1)} for e in range(12)]
    training = {"seconds": 61.5, "device": "cpu"}
    model = {"architecture": "unet", "encoder": "resnet18"}
    card = {
        "model": model,
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
        "history": history,
        "training": training,
    }
    write(root / "models/all/model.json", card)
    return {"validation_iou": 0.64, **training}


def evaluate(root: Path, level: dict, random) -> dict:
    scores, curve = [], []
    for city, iou in level.items():
        (root / "arrays/evaluate/maps" / city).mkdir(parents=True)
        for i, better in ((4, -0.05), (5, 0.05)):
            pictures(root / "arrays/evaluate/maps" / city, f"{city}-{i}", random)
            scores.append({"city": city, "scene": f"{city}-{i}", "iou": iou + better})
        curve += [
            {"city": city, "recall": r / 20, "precision": 1 - (1 - iou) * (r / 20) ** 2}
            for r in range(21)
        ]
    write(root / "arrays/evaluate/scenes.json", scores)
    write(root / "arrays/evaluate/precision_recall.json", curve)
    write(root / "arrays/evaluate/reliability.json", [
        {"probability": p / 10, "frequency": (p / 10) ** 1.3, "pixels": 100} for p in range(11)
    ])  # fmt: skip
    sizes = ("0-50", "50-150", "150-500", "500+")
    return {
        "fairness": fair(level),
        "city": {
            city: {
                "iou": iou,
                "iou_low": iou - 0.06,
                "iou_high": iou + 0.05,
                "accuracy": 0.9,
                "precision": iou + 0.1,
                "recall": iou + 0.05,
                "f1": iou + 0.08,
                "boundary_iou": iou - 0.2,
                "object_f1": iou - 0.1,
                "ece": 0.04,
                "outlines": {"pairs": 40, **OUTLINES},
                "ap50": iou - 0.15,
                "panoptic_quality": iou - 0.3,
                "segmentation_quality": 0.8,
                "buildings": 90,
                "buildings_found": 88,
                "merged": 5,
                "split": 3,
                "size": {
                    s: {"buildings": 9, "recall": iou, "iou": iou - 0.3 + 0.1 * k}
                    for k, s in enumerate(sizes)
                },
            }
            for city, iou in level.items()
        },
    }


def fair(level: dict) -> dict:
    """The groups of evaluate: cities, which may be one, and two sizes."""
    groups = {name: {"iou": iou, "recall": iou} for name, iou in {**level, "0-50": 0.3}.items()}
    one = {
        "worst": 0.3,
        "worst_group": "0-50",
        "worst_low": None,
        "worst_high": None,
        "best_group": min(level),
        "gap": 0.2,
        "gap_low": 0.0,
        "gap_high": 0.4,
    }
    return {
        "by": {"size": {"group": groups, "iou": one, "recall": one}},
        "size_within_city": dict.fromkeys(level, one),
    }


def pictures(folder: Path, scene: str, random) -> None:
    """A photograph of bright blocks, their labels, and a map that misses some of them."""
    truth = np.zeros((SIDE, SIDE), np.uint8)
    probability = np.full((SIDE, SIDE), 20, np.uint8)
    for top, left in random.integers(0, SIDE - 30, (25, 2)):
        truth[top : top + 18, left : left + 24] = 1
        shift = random.integers(-4, 5)
        probability[top : top + 18, max(0, left + shift) : left + 24] = random.integers(90, 255)
    photo = random.integers(60, 110, (SIDE, SIDE, 3)) + 85 * truth[..., None]
    Image.fromarray(photo.astype(np.uint8)).save(folder / f"{scene}.image.jpg", quality=88)
    prediction = (probability > 127).astype(np.uint8)
    for name, exact in (("label", truth), ("prediction", prediction), ("confidence", probability)):
        Image.fromarray(exact).save(folder / f"{scene}.{name}.png")


def attack(root: Path, level: dict, random) -> dict:
    budgets, names = ("0.5", "1", "2"), ("fgsm", "pgd", "segpgd", "cospgd", "apgd")
    (root / "arrays/attack").mkdir(parents=True)
    cities = {}
    for city, iou in level.items():
        image, label = random.random((3, 64, 64)), random.integers(0, 2, (64, 64))
        shown = {
            "image": image,
            "attacked": image,
            "label": label,
            "before": label,
            "after": 1 - label,
            "erased": image,
            "after_erasing": 0 * label,
        }
        np.savez(root / f"arrays/attack/{city}.npz", **shown)
        cities[city] = {
            "linf": {
                b: {
                    "clean": iou,
                    "noise": iou - 0.01,
                    **{n: iou / (1 + float(b) + k / 5) for k, n in enumerate(names)},
                    "worst": iou / (2 + float(b)),
                }
                for b in budgets
            },
            "l2": {},
            "halving": 0.7,
            "transfer": {"iou": iou - 0.1, "relative_clean": iou},
            "erase": {"clean": 0.8, "attacked": 0.1},
            "invent": {"clean": 3, "attacked": 90},
            "patch": {"clean": iou, "attacked": None},
            "universal": {"iou": iou - 0.05, "from": {}},
            "physics": {
                "clean": iou,
                "all": {"worst": iou / 4, "worst_low": iou / 5, "worst_high": iou / 3},
                "family": {
                    "gain": {"grid": iou / 2, "worst": iou / 3, "certified": iou / 9},
                    "haze": {"grid": iou / 2, "worst": iou / 2},
                },
            },
            "shadow": {
                "sun": [158.0, 49.0],
                "threshold": 0.9,
                "true": 40,
                "true_flagged": 0.1,
                "false": 5,
                "false_flagged": 0.8,
                "auc": None,
                "unjudged": 3,
            },
        }
    return {"city": cities, "audit": {"within_budget": True, "monotone_in_budget": True}}


def certify(root: Path, level: dict, random) -> dict:
    radii = {
        "smoothing": ("0.0337",),
        "convex": ("0.5", "1", "2"),
        "lipschitz": ("0.05", "0.1", "0.3"),
    }
    return {
        road: {
            "city": {
                city: {
                    r: {
                        "clean": iou,
                        "attacked": iou * 0.8 ** (k + 1),
                        "certified": iou * 0.5 ** (k + 1),
                    }
                    for k, r in enumerate(of_road)
                }
                for city, iou in level.items()
            }
        }
        for road, of_road in radii.items()
    }


CUES = ("colour", "roof texture", "ground texture", "shadow", "surroundings", "all but shape")


def explain(root: Path, level: dict, random) -> dict:
    (root / "arrays/explain").mkdir(parents=True)
    cities = {}
    for i, (city, iou) in enumerate(level.items()):
        image, label = random.random((64, 64, 3), np.float32), random.integers(0, 2, (64, 64))
        views = {f"{view}without {cue}": of for cue in CUES[:2] for view, of in
                 (("", image), ("map ", label), ("label ", label))}  # fmt: skip
        building = np.zeros((64, 64), bool)
        building[8:20, 8:20] = True
        seen = {"explained": image, "building": building, "gradients": image[..., 0] - 0.5}
        np.savez(
            root / f"arrays/explain/{city}.npz",
            image=image,
            label=label,
            map=label,
            **views,
            **seen,
        )
        drop = {"iou": iou - 0.1, "drop": 0.1, "drop_low": 0.04, "drop_high": 0.16}
        cities[city] = {
            "iou": iou, "tiles": 8,
            "cue": {cue: drop if cue != "surroundings" else None for cue in CUES},
            "leans_on": (None, "shadow", "colour")[i % 3], "inside": 0.6, "bands": [0.3, 0.3, 0.4],
            "attribution": {"random": {"deletion": 0.5, "insertion": 0.5}},
            "randomised": {depth: {"signed": 0.1, "absolute": None} for depth in ("head", "half", "all")},
            "effective_radius": 21.5, "support_radius": None,
        }  # fmt: skip
    gain = {
        "deletion_gain": 0.2,
        "deletion_gain_low": 0.1,
        "deletion_gain_high": 0.3,
        "insertion_gain": 0.1,
        "insertion_gain_low": None,
        "insertion_gain_high": None,
    }
    return {
        "city": cities,
        "buildings": 4,
        "attribution": {"integrated gradients": gain, "occlusion": gain},
    }


def generalize(root: Path, level: dict, random) -> dict:
    rows = {
        city: {
            "seen": iou,
            "seen_low": iou - 0.06,
            "seen_high": iou + 0.05,
            "unseen": iou - 0.2,
            "unseen_low": iou - 0.27,
            "unseen_high": iou - 0.12,
            "gap": 0.2,
            "gap_low": 0.1,
            "gap_high": 0.3,
        }
        for city, iou in level.items()
    }
    models = ["all", *(f"without-{city}" for city in level)]
    estimate = {
        c: {
            "iou": r["unseen"],
            "thresholded": r["unseen"] + 0.03,
            "no_gap": r["seen"],
            "mean_unseen": 0.4,
        }
        for c, r in rows.items()
    }
    errors = {"thresholded": 0.03, "no_gap": 0.2, "mean_unseen": 0.1}
    return {
        "city": rows,
        "matrix": {
            m: {c: iou - 0.2 * (m == f"without-{c}") for c, iou in level.items()} for m in models
        },
        "corruption": {
            n: {
                str(s): {c: (iou - 0.2) * (1 - s / 8) for c, iou in level.items()}
                for s in SEVERITIES
            }
            for n in NAMES
        },
        "corruption_clean": {c: iou - 0.2 for c, iou in level.items()},
        "adaptation": {
            m: {c: iou - 0.2 + k / 50 for c, iou in level.items()}
            for k, m in enumerate(["none", "adabn"])
        },
        "label_free": {
            "city": estimate,
            "mean_error": errors,
            "estimate": "thresholded",
            "naive": "mean_unseen",
        },
        "robustness": {
            "attack": {"norm": "linf", "epsilon": 1.0, "steps": 5},
            "certificate": {"norm": "l2", "radius": 0.034, "sigma": 0.05},
            "city": {
                c: {
                    side: {
                        "clean": iou,
                        "attacked": iou / 2,
                        "certified": iou / 3,
                        "corrupted": iou / 1.2,
                    }
                    for side in ("seen", "unseen")
                }
                for c, iou in level.items()
            },
        },
        "beyond_adaptation": list(level)[-1:],
        "frugal": {
            f: {c: iou - 0.3 + float(f) / 4 for c, iou in level.items()}
            for f in ("0.25", "0.5", "1")
        },
    }


def incremental(root: Path, level: dict, random) -> dict:
    def ranged(name: str, value: float) -> dict:
        return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}

    cities, methods = list(level), ("finetune", "replay")
    scores = {
        **ranged("average", 0.4),
        **ranged("backward", -0.3),
        "forgetting": 0.3,
        "forward": 0.2,
    }
    matrix = [
        [level[city] / (1 + abs(i - j)) for j, city in enumerate(cities)]
        for i in range(len(cities))
    ]
    return {
        "method": dict.fromkeys(methods, scores), "joint": ranged("average", 0.6),
        "order": [{"cities": cities, **dict.fromkeys(methods, {"matrix": matrix, **scores})}],
        "classes": {m: {"before": 0.5, **ranged("old", 0.2), **ranged("new", 0.6)} for m in ("finetune", "mib")},
    }  # fmt: skip


def privacy(root: Path, level: dict, random) -> dict:
    def both(name: str, value: float) -> dict:
        row = {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
        return {"loss": row, "likelihood_ratio": None if value < 0.5 else row}

    network = {
        "iou": 0.4,
        "iou_low": None,
        "iou_high": None,
        **both("auc", 0.51),
        "auc_bound": 0.999,
    }
    return {
        "city": {city: both("auc", iou) for city, iou in level.items()},
        "mean_city": both("auc", 0.55),
        "pooled": {"fpr": 0.01, **both("tpr", 0.02)},
        "private": {
            "unit": "scene",
            "records": 30,
            "delta": 0.003,
            "network": {
                "plain": {**network, "epsilon": None, "auc_bound": None},
                "8": {**network, "epsilon": 7.9},
            },
        },
        "planted": {
            "city": next(iter(level)),
            "scene": "one",
            "repeats": 50,
            "rank": 1,
            "of": 20,
            "found": True,
        },
    }


def commit(root: Path) -> None:
    """Keep the metrics in a new git repository."""
    who = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
    for arguments in (["init", "-q"], ["add", "metrics"], [*who, "commit", "-qm", "a run"]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
