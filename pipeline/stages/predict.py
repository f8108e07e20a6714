"""Stage predict: from any scene to a building map, on one machine or many.

OUT/NAME.tif                the mask on the scene's own grid, a COG: 0, classes 1..k, 255 no data
OUT/NAME.probability.tif    calibrated building probability, 0..254 for 0..1 (on request)
OUT/NAME.uncertainty.tif    its deviation over eight flips and turns, 0..254 for 0..1/2 (on request)
OUT/NAME.certified.tif      the class a pixel has whatever a perturbation does, 254 not proven (on request)
OUT/NAME.gpkg               layer buildings: id, class, label, confidence, area_m2, regularised, source, captured,
                            model, model_version (.gpkg, .fgb, .parquet, .geojson, .pmtiles)
OUT/NAME.missing.gpkg       with --known: footprints on which no building was found; the others have a status then:
                            new, matched or changed, with known_iou and offset_m
OUT/merged.gpkg             with --merge the buildings of all scenes, each once, and merged.json (see mapping.merge)
OUT/NAME.item.json          with --stac the map as a STAC item, and the run's index of them, OUT/items.parquet
OUT/NAME.json               written last: what was found (null: not asked for), and from which model, scene, settings

A file that was edited since is never overwritten: the scene fails, with a sentence
that names the file.

A scene is a pure function of the model, the scene and the settings: a finished one is skipped, a
killed one is done again, and shards of a list may run anywhere as long as they share OUT.
"""

import errno
import math
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.bucket import is_object
from pipeline.cluster import each, shard_of
from pipeline.console import console, remark, table
from pipeline.errors import InputError
from pipeline.imagery.writer import check_driver
from pipeline.mapping.catalogue import check_name, index
from pipeline.mapping.inputs import Task
from pipeline.mapping.merge import NAME, file_name, merge
from pipeline.mapping.proven import method_of_drawn
from pipeline.mapping.publishing import touched
from pipeline.mapping.scene import file_names, local_model, model_of, predict_scene
from pipeline.mapping.scene_list import list_scenes
from pipeline.metrics import PredictMetrics
from pipeline.networks.models import read_glance
from pipeline.params import Predict
from pipeline.storage import sweep

CAUTIONS = 5  # scenes named one by one


def run(
    model: str | Path,
    scenes: list[str],
    out: str | Path,
    *,
    settings: Predict | None = None,
    shard: str | None = None,
    gsd: float | None = None,
    bands: list[int] | None = None,
    value_range: Sequence[float] | None = None,
    known: Path | None = None,
    ray: str | None = None,
    merged: bool = False,
) -> None:
    """Map scenes (files, folders, globs, lists, URLs) with a model folder or an
    ONNX file, into `out`.

    known: a file of footprints, in any CRS, that the maps are held against; shard:
    "i/n", every n-th scene from the i-th (from 1); ray: "local" or the address of a
    Ray cluster; merged: one layer of all their footprints too. Raises InputError at
    the end where a scene failed; the others are done.
    """
    settings, begun = settings or Predict(), time.perf_counter()
    model = local_model(_absolute(model))
    options: dict[str, Any] = {
        "gsd": gsd,
        "bands": bands and tuple(bands),
        "range": value_range and tuple(value_range),
        "known": known and _absolute(known),
    }
    if known and settings.polygons == "none":
        raise InputError("--known compares outlines; choose a format with --polygons, such as gpkg")
    tasks = [
        Task(_absolute(scene), name, _absolute(out), settings, **options)
        for name, scene in list_scenes(scenes).items()
    ]
    _refuse_overwriting(tasks, out)
    if known:
        _refuse_replacing(known, tasks, out, merged)
    if merged:
        _refuse_merging(settings, shard, out, tasks)
    if settings.polygons != "none":
        check_driver(settings.polygons)
    indexed = settings.stac and not shard and not is_object(str(out))
    if indexed:
        check_name([task.name for task in tasks])
    tasks = shard_of(tasks, shard)
    segmenter, _ = model_of(model)  # fails before any scene is read
    if settings.certified:
        method_of_drawn(segmenter, model)
    if settings.skip_empty:
        read_glance(model)
    if not is_object(str(out)):
        _make_folder(Path(out))
    done, failed = [], []
    for task, (record, error) in each(partial(_attempt, model), tasks, ray, lost=_lost):
        if error:
            failed.append(task)
            remark("failed", "red", f"{task.name}: {error}")
        else:
            done.append(record)
    _summarise(done, failed, time.perf_counter() - begun)
    if failed:
        names = ", ".join(task.name for task in failed[:5]) + (" …" if len(failed) > 5 else "")
        raise InputError(
            f"{len(failed)} of {len(tasks)} scenes failed ({names}); correct them and run the "
            f"command again"
        )
    if indexed:
        found = index(Path(out), [task.name for task in tasks])
        console.print(f"catalogue: {found['items']} items in {Path(out) / 'items.parquet'}")
    if merged:
        found = merge(Path(out), [task.name for task in tasks], settings.polygons)
        console.print(
            f"merged: {found['buildings']} buildings in {Path(out) / file_name(settings.polygons)}"
        )


def _refuse_merging(
    settings: Predict, shard: str | None, out: str | Path, tasks: list[Task]
) -> None:
    if any(task.name == NAME for task in tasks):
        raise InputError(f"--merge: a scene is called {NAME}, as the layer would be; rename it")
    if is_object(str(out)):
        raise InputError(
            f"--merge reads maps on this machine, and --out {out} is none of it; merge where they "
            f"are copied"
        )
    if settings.polygons == "none":
        raise InputError(
            "--merge merges footprints, and --polygons none makes none; choose gpkg or another"
        )
    if settings.polygons == "pmtiles":
        raise InputError(
            "--merge unites footprints, and PMTiles hold them cut into tiles; choose "
            "gpkg or another"
        )
    if shard:
        raise InputError(
            f"--merge needs every scene, and --shard {shard} maps some; once all shards are done "
            f"run the command "
            "without --shard: what is mapped is not mapped again"
        )


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out {out}: is a file or lies under one; name a folder") from None
    sweep(out)  # a scene that is already there sweeps nothing itself


def _absolute(path: str | Path) -> str:
    """The same path for every working folder, so that a record is the same
    wherever its scene was mapped.
    """
    return str(path) if "://" in str(path) else str(Path(path).absolute())


def _refuse_overwriting(tasks: list[Task], out: str | Path) -> None:
    for task in tasks:
        scene = Path(task.scene)
        if "://" in task.scene:
            beside = task.scene.rpartition("/")[0] == str(out).rstrip("/")
        else:
            beside = not is_object(out) and Path(out).resolve() in {
                scene.resolve().parent,
                scene.parent.resolve(),
            }
        if beside:
            raise InputError(
                f"{out}: holds the scene {scene.name}; choose another --out, results bear its name"
            )
    for name, times in Counter(
        name for task in tasks for name in file_names(task).values()
    ).most_common(1):
        if times > 1:
            raise InputError(
                f"{out}/{name}: two scenes would both be mapped to it; rename one of them"
            )


def _refuse_replacing(known: Path, tasks: list[Task], out: str | Path, merged: bool) -> None:
    """The known footprints may be a map of an earlier run, but none that this one replaces."""
    homes = {known.absolute().parent.resolve(), known.resolve().parent}
    if is_object(str(out)) or Path(out).resolve() not in homes:
        return
    maps = {task.name: list(file_names(task).values()) for task in tasks}
    if merged:
        maps[NAME] = [file_name(tasks[0].settings.polygons)]
    for name, files in maps.items():
        paths = (Path(out) / file for file in touched(Path(out) / f"{name}.json", files))
        if known.exists() and any(path.exists() and path.samefile(known) for path in paths):
            raise InputError(
                f"--known {known}: is a file of the map of {name} in --out {out}, and would be "
                f"replaced; choose another --out"
            )


def _attempt(model: str, task: Task) -> tuple[PredictMetrics | None, str | None]:
    """A finished scene's record, or why there is none: one scene's failure is not the others'."""
    try:
        return predict_scene(model, task), None
    except InputError as error:
        return None, str(error)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # the disk is everybody's
            raise
        return None, f"{task.scene}: its name is too long to name a map by; rename it"
    except (MemoryError, RuntimeError) as error:  # a GPU's memory among them
        return None, f"{task.scene}: {type(error).__name__}: {' '.join(str(error).split())}"


def _lost(task: Task, reason: str) -> tuple[None, str]:
    return None, f"{task.scene}: {reason}"


def _summarise(done: list[PredictMetrics], failed: list[Task], seconds: float) -> None:
    fresh, counted = [r for r in done if r.fresh], [r for r in done if r.buildings is not None]
    rate = sum(r.pixels or 0 for r in fresh) / 1e6 / seconds if fresh else None
    table(
        "Mapped", ["scenes", "already there", "failed", "km²", "buildings", "built m²", "Mpx/s"],
        [[len(done), len(done) - len(fresh), len(failed), sum(r.area_km2 or 0 for r in done),
          sum(r.buildings or 0 for r in counted) if counted else None,
          round(sum(r.built_area_m2 or 0 for r in counted)) if counted else None, rate]],
    )  # fmt: skip
    if compared := [r.known for r in done if r.known]:
        columns = ["new", "matched", "changed", "missing"]
        shift = max((math.hypot(*r.shift_m) for r in compared if r.shift_m), default=None)
        error = max(
            (r.registration_m for r in compared if r.registration_m is not None), default=None
        )
        table(
            "Against the known footprints", [*columns, "largest shift m", "registration error m"],
            [[*(sum(getattr(r, name) for r in compared) for name in columns), shift and round(shift, 2), error]],
        )  # fmt: skip
    unlike = sorted((r for r in done if r.unlike_training), key=lambda r: r.expected_iou or 0)
    for record in unlike[:CAUTIONS]:
        remark(
            "caution", "yellow",
            f"{record.scene}: looks unlike the training cities: expected IoU "
            f"{record.expected_iou:.2f} (no labels "
            f"were " f"used), {record.validation_iou:.2f} on validation; look before you trust it",
        )  # fmt: skip
    if len(unlike) > CAUTIONS:
        rest = f"{len(unlike) - CAUTIONS} more look unlike the training cities"
        remark("caution", "yellow", f"{rest}: those with unlike_training in their .json")
