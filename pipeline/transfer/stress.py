"""What a city's IoU withstands, by a model that has seen the city and by one that has not: corruptions, a light
attack, a certificate."""

from collections.abc import Callable

import numpy as np
import torch

from pipeline.attacks.engine import Target, pgd
from pipeline.certificates.lipschitz import certified_iou
from pipeline.certificates.samples import check_samples
from pipeline.certificates.smoothing import radius, smooth
from pipeline.console import progress
from pipeline.networks.models import Segmenter
from pipeline.networks.precision import device
from pipeline.params import Params
from pipeline.scoring.metrics import iou
from pipeline.tiles.store import Cities
from pipeline.tiles.tensors import to_tensors
from pipeline.transfer import corruptions
from pipeline.transfer.predictions import mean, tile_iou

MAPPED = 0.1  # a clean IoU below which a city is not mapped: what it retains would be a ratio of noise


def corrupted(params: Params, cities: Cities, unseen: dict[str, Segmenter]) -> dict:
    """IoU of each city, not seen in training, under every corruption and severity, and the share it retains.

    The share is left out where the clean IoU is under MAPPED.
    """
    g = params.generalize
    samples = {city: cities[city].sample("test", g.corruption_tiles, seed=g.seed) for city in sorted(unseen)}
    clean = {city: tile_iou(unseen[city], *sample) for city, sample in samples.items()}
    found: dict = {name: {str(s): {} for s in corruptions.SEVERITIES} for name in corruptions.NAMES}
    jobs = [(name, s, city) for name in corruptions.NAMES for s in corruptions.SEVERITIES for city in samples]
    for name, severity, city in progress(jobs, "corruptions"):
        images, labels = corruptions.corrupt(name, severity, *samples[city], cities[city].gsd, g.seed)
        found[name][str(severity)][city] = tile_iou(unseen[city], images, labels)
    worst, retained = {}, {name: {} for name in found}
    for city in [city for city in samples if (clean[city] or 0) >= MAPPED]:
        shares = {
            (name, s): found[name][s][city] / clean[city]
            for name in found
            for s in found[name]
            if found[name][s][city] is not None
        }
        name, severity = min(shares, key=shares.__getitem__)
        worst[city] = {"name": name, "severity": severity, "retained": shares[name, severity]}
        for name in found:
            retained[name][city] = float(np.mean([v for (n, _), v in shares.items() if n == name] or [1.0]))
    return {"corruption": found, "corruption_clean": clean, "corruption_retained": retained, "worst_corruption": worst}


def robustness(params: Params, cities: Cities, seen: Segmenter, unseen: dict[str, Segmenter]) -> dict:
    """Clean, attacked, certified and corrupted IoU of each city by the model that saw it and the one that did not.

    A side is None where there is no such model, or nothing to find.

    All four on the same crops. The attack is a light PGD (an upper bound; the stage attack has the strong
    ones), the certificate randomised smoothing, the corruption the mean over the table at severity 3.
    """
    g, c, s = params.generalize, params.certify, params.certify.smoothing
    epsilon, sigma, certify = params.attack.reference, s.sigma[0], "smoothing" in c.methods
    if certify:
        check_samples(s.n, c.crop**2, s.tau, s.alpha)
    found: dict = {city: {} for city in sorted(cities)}
    sides: list[tuple[str, Callable[[str], Segmenter | None]]] = [("seen", lambda _: seen), ("unseen", unseen.get)]
    for city, (side, model) in progress([(city, side) for city in found for side in sides], "robustness"):
        images, labels = cities[city].sample("test", g.corruption_tiles, c.crop, g.seed)
        found[city][side], segmenter, on = None, model(city), device()
        if segmenter is None:
            continue
        x, y = to_tensors((images, labels), on)
        generator = torch.Generator(on).manual_seed(g.seed)
        target = Target(segmenter.deployed(), x, y, "linf", epsilon / 255)
        attacked = pgd(target, g.attack_steps, generator=generator)
        shaken = [corruptions.corrupt(name, 3, images, labels, cities[city].gsd, g.seed) for name in corruptions.NAMES]
        with torch.inference_mode():
            after = segmenter.decide(segmenter(attacked))  # in full precision, as it was attacked
        row = {
            "clean": tile_iou(segmenter, images, labels),
            "attacked": iou(after, y),
            "certified": None,
            "corrupted": mean(tile_iou(segmenter, *pair) for pair in shaken),
        }
        if certify:
            noisy = smooth(segmenter.deployed(), x, sigma, s.n0, s.n, batch_size=s.batch_size, generator=generator)
            row["certified"] = certified_iou(noisy.certified(s.tau, s.alpha, s.correction), y)
        found[city][side] = row if row["clean"] is not None else None
    return {
        "attack": {"norm": "linf", "epsilon": epsilon, "steps": g.attack_steps},
        "certificate": {"norm": "l2", "radius": radius(sigma, s.tau), "sigma": sigma} if certify else None,
        "city": {city: row for city, row in found.items() if row["seen"] is not None},
    }
