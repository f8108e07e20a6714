"""certify --scene: which pixels of a scene's map are proven, whatever a perturbation does.

OUT/NAME.certified.tif      on the model's grid: the class proven (0, 1..k), 254 not proven, 255 no data
OUT/NAME.certified.json     written last: the radius and its norm, what is certified, and how much of it is

A convex or Lipschitz certificate is of the map that `predict` draws, of blended windows, turned
where predict.augment says so: the blend of maps that all say k says k, so that a pixel is proven
where every window over it, each way it is turned, proves the same class. Smoothing's is of the
smoothed model, with its confidence over the whole scene.

A perturbation is one of the pixels as the model reads them, in [0, 1]. `predict --certified` writes
the same of a convex or Lipschitz model as a layer of its map, on the scene's own grid.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pipeline.console import console, progress
from pipeline.errors import InputError
from pipeline.metrics import CertifySceneMetrics, write
from pipeline.params import METHODS, UNITS, Certify, Params
from pipeline.storage import scratch


def run(
    params: Params,
    scene: str,
    out: Path = Path("certified"),
    *,
    method: str | None = None,
    radius: float | None = None,
    gsd: float | None = None,
    bands: Sequence[int] | None = None,
    value_range: Sequence[float] | None = None,
) -> None:
    """Certify the map of one scene by certify.model, with the settings of certify and predict.

    method: None = the strongest that the architecture allows; radius: in the norm's unit, None =
    the least of the method's. Raises InputError where the method cannot certify such a model, or
    the scene does not fit it.
    """
    from pipeline.mapping.inputs import Task, open_scene
    from pipeline.mapping.proven import write_proven
    from pipeline.networks.models import read_model
    from pipeline.networks.precision import device

    segmenter = read_model(params.certify.model, device())
    method = _method(params.certify, segmenter, method)
    radius = _radius(params.certify, method, radius)
    name, path = _one(scene)
    bands, value_range = (
        tuple(bands) if bands else None,
        tuple(value_range) if value_range else None,
    )
    task = Task(path, name, str(out), params.predict, gsd, bands, value_range)
    record = Path(out) / f"{name}.certified.json"
    if record.with_suffix(".tif").exists() and not record.exists():
        raise InputError(
            f"{record.with_suffix('.tif')}: would be overwritten, and no record beside it says "
            f"that certify made it; "
            "move it, or choose another --out"
        )
    with ExitStack() as stack, scratch(record) as partial:
        image, _ = open_scene(stack, task, segmenter.card)
        classes = _certified(segmenter, image, params, method, radius)
        found = write_proven(
            partial / f"{name}.certified.tif", image.grid, classes,
            lambda window: image.read(window)[1], segmenter.card,
        )  # fmt: skip
        about = {"scene": path, **_about(params, method, radius, segmenter), **found}
        write(record, CertifySceneMetrics, about)
        (partial / f"{name}.certified.tif").replace(record.with_suffix(".tif"))
    console.print(
        f"{record.with_suffix('.tif')}: {about['share']:.1%} of the pixels are proven at "
        f"{about['radius']} "
        f"({about['unit']}), of {about['of']}"
    )


def _one(scene: str) -> tuple[str, str]:
    """Name and path or URL of the scene."""
    from pipeline.mapping.scene_list import list_scenes

    found = list(list_scenes([scene]).items())
    if len(found) != 1:
        raise InputError(f"--scene {scene}: names {len(found)} scenes; name one raster")
    return found[0]


def _method(settings: Certify, segmenter, asked: str | None) -> str:
    """The method asked for, or the last that certifies such a model as it is
    deployed: the strongest.
    """
    from pipeline.mapping.proven import check_kinds

    check_kinds(segmenter, settings.model)
    model = segmenter.card.model
    able = [name for name, method in METHODS.items() if method.certifies(model)]
    if asked is not None and asked not in able:
        raise InputError(
            f"--method {asked}: cannot certify {settings.model}, whose architecture is "
            f"{model.architecture}; "
            f"choose {' or '.join(able)}"
        )
    return asked or able[-1]


def _radius(settings: Certify, method: str, asked: float | None) -> float:
    """The radius asked for, or the least of the method's settings."""
    from pipeline.certificates.smoothing import radius

    own = getattr(settings, method)
    known = [radius(sigma, own.tau) for sigma in own.sigma] if method == "smoothing" else own.radii
    if method == "smoothing" and asked is not None:
        raise InputError(
            "--radius: smoothing's follows from certify.smoothing.sigma and tau; set these instead"
        )
    if asked is not None and not 0 < asked < math.inf:
        raise InputError(
            f"--radius {asked:g}: write a radius above 0, in the unit {UNITS[METHODS[method].norm]}"
        )
    return min(known) if asked is None else asked


def _about(params: Params, method: str, radius: float, segmenter) -> dict:
    from pipeline.certificates.ordering import key
    from pipeline.networks.precision import choose

    decision, predict = segmenter.decision, params.predict
    about = {
        "model": params.certify.model, "gsd": segmenter.card.gsd, "method": method,
        "norm": METHODS[method].norm, "radius": key(radius), "unit": UNITS[METHODS[method].norm],
        "of": METHODS[method].whose(True), "temperature": decision.temperature,
        "threshold": decision.threshold, "arithmetic": "float32",
    }  # fmt: skip
    if method == "smoothing":  # of the model as it runs
        about["arithmetic"] = choose("auto", next(segmenter.buffers()).device)
        return {**about, "confidence": 1 - params.certify.smoothing.alpha}
    return {
        **about,
        "window": predict.window,
        "overlap": predict.overlap,
        "augment": predict.augment,
    }


def _certified(segmenter, image, params: Params, method: str, radius: float) -> np.ndarray:
    """(H, W) int16 classes, ABSTAIN where nothing is proven."""
    import torch

    from pipeline.certificates import smoothing
    from pipeline.mapping.inputs import decision
    from pipeline.mapping.proven import proven_classes, window_of

    if method == "smoothing":
        s, on = params.certify.smoothing, next(segmenter.buffers()).device
        # of a seed: who could draw again until enough is proven would prove nothing
        generator = torch.Generator(on).manual_seed(params.certify.seed)
        return smoothing.certify_scene(
            segmenter.deployed(), image, min(s.sigma), s.n0, s.n, s.tau, s.alpha,
            correction=s.correction, device=on, batch_size=s.batch_size, generator=generator,
        )  # fmt: skip
    segmenter.decision = decision(params.predict, segmenter.card)
    window = window_of(segmenter, method, radius, params.certify.convex.chunk)
    return proven_classes(
        segmenter, image, params.predict, window, lambda steps: progress(steps, "certifying")
    )
