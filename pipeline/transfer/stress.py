"""What a city's IoU withstands, by a model that has seen the city and by one that has not:
corruptions, a light attack, a certificate.
"""

import numpy as np
import torch

from pipeline.attacks.engine import Target, pgd
from pipeline.attacks.worst_case import worst_case
from pipeline.certificates.lipschitz import certified_iou
from pipeline.certificates.samples import check_samples
from pipeline.certificates.smoothing import radius, smooth
from pipeline.console import progress
from pipeline.networks.models import Segmenter
from pipeline.networks.precision import device
from pipeline.params import Params
from pipeline.scoring.metrics import counts
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_tensors
from pipeline.transfer import corruptions
from pipeline.transfer.predictions import mean, tile_iou

# a clean IoU below which a city is not mapped: what it retains would be a ratio of noise
MAPPED = 0.1


def corrupted(params: Params, city: CityTiles, unseen: Segmenter) -> dict:
    """IoU of a city under every corruption and severity, by a model that has not seen it: {"clean":
    IoU, NAME: {SEVERITY: IoU}}.
    """
    g = params.generalize
    sample = city.sample("test", g.corruption_tiles, seed=g.seed)
    found: dict = {"clean": tile_iou(unseen, *sample)} | {name: {} for name in corruptions.NAMES}
    jobs = [(name, severity) for name in corruptions.NAMES for severity in corruptions.SEVERITIES]
    for name, severity in progress(jobs, f"{city.city}: corruptions"):
        images, labels = corruptions.corrupt(name, severity, *sample, city.gsd, g.seed)
        found[name][str(severity)] = tile_iou(unseen, images, labels)
    return found


def corruption_table(of_city: dict[str, dict]) -> dict:
    """What each city's `corrupted` says, by corruption, and the share of its clean
    IoU that a city retains.

    The share is left out where the clean IoU is under MAPPED.
    """
    clean = {city: row["clean"] for city, row in of_city.items()}
    found = {
        name: {
            str(s): {city: row[name][str(s)] for city, row in of_city.items()}
            for s in corruptions.SEVERITIES
        }
        for name in corruptions.NAMES
    }
    worst, retained = {}, {name: {} for name in found}
    for city in [city for city in of_city if (clean[city] or 0) >= MAPPED]:
        shares = {
            (name, s): found[name][s][city] / clean[city]
            for name in found
            for s in found[name]
            if found[name][s][city] is not None
        }
        name, severity = min(shares, key=shares.__getitem__)
        worst[city] = {"name": name, "severity": severity, "retained": shares[name, severity]}
        for name in found:
            retained[name][city] = float(
                np.mean([v for (n, _), v in shares.items() if n == name] or [1.0])
            )
    return {
        "corruption": found,
        "corruption_clean": clean,
        "corruption_retained": retained,
        "worst_corruption": worst,
    }


def robust(params: Params, city: CityTiles, segmenter: Segmenter | None) -> dict | None:
    """Clean, attacked, certified and corrupted IoU of a city by a model; None where there is none,
    or nothing to find.

    All four on the same crops. The attack is a light PGD (an upper bound; the stage
    attack has the strong ones), the certificate randomised smoothing, the
    corruption the mean over the table at severity 3.
    """
    if segmenter is None:
        return None
    g, c, s, on = params.generalize, params.certify, params.certify.smoothing, device()
    images, labels = city.sample("test", g.corruption_tiles, c.crop, g.seed)
    x, y = to_tensors((images, labels), on)
    generator = torch.Generator(on).manual_seed(g.seed)
    target = Target(segmenter.deployed(), x, y, "linf", params.attack.reference / 255)
    attacked = pgd(target, g.attack_steps, generator=generator)
    shaken = [
        corruptions.corrupt(name, 3, images, labels, city.gsd, g.seed) for name in corruptions.NAMES
    ]
    with torch.inference_mode():
        # in full precision, as it was attacked; an attack may as well leave a tile as it is
        answers = [counts(segmenter.decide(segmenter(batch)), y) for batch in (x, attacked)]
    intersections, unions = (
        np.stack([n.cpu() for n in part]) for part in zip(*answers, strict=True)
    )
    row = {
        "clean": tile_iou(segmenter, images, labels),
        "attacked": worst_case(intersections, unions)[0],
        "certified": None,
        "corrupted": mean(tile_iou(segmenter, *pair) for pair in shaken),
    }
    if certifies(params):
        noisy = smooth(
            segmenter.deployed(),
            x,
            s.sigma[0],
            s.n0,
            s.n,
            batch_size=s.batch_size,
            generator=generator,
        )
        row["certified"] = certified_iou(noisy.certified(s.tau, s.alpha, s.correction), y)
    return row if row["clean"] is not None else None


def certifies(params: Params) -> bool:
    """Whether smoothing is asked for. Raises InputError where so few samples
    could never certify.
    """
    c, s = params.certify, params.certify.smoothing
    if "smoothing" not in c.methods:
        return False
    check_samples(s.n, c.crop**2, s.tau, s.alpha)
    return True


def robustness_table(params: Params, of_city: dict[str, dict]) -> dict:
    """{"city": {CITY: {"seen": row, "unseen": row}}} of the cities where a model that has seen
    them finds something.
    """
    g, s = params.generalize, params.certify.smoothing
    proof = (
        {"norm": "l2", "radius": radius(s.sigma[0], s.tau), "sigma": s.sigma[0]}
        if certifies(params)
        else None
    )
    return {
        "attack": {"norm": "linf", "epsilon": params.attack.reference, "steps": g.attack_steps},
        "certificate": proof,
        "city": {city: row for city, row in of_city.items() if row["seen"] is not None},
    }
