"""Stage check: what a later stage would refuse is refused before the first scene is brought.

`load_params` has found every value allowed by itself; here they are held against each other and
against what lies on disk. Torch is imported only for a network not known to be fine.

For DVC it also makes links, because a dependency of DVC's can be neither null nor outside a copy of
the repository:

    data/watched/STAGE   to the files that the stage starts from (train.init and such, often null)
    fetch.path and such  DVC runs a queued experiment in a copy of what git keeps, in
                         WORKSPACE/.dvc/tmp/exps; what a relative path names and git does not keep
                         is linked there
"""

import shutil
import sys
from contextlib import suppress
from pathlib import Path

from pipeline.bucket import is_object
from pipeline.errors import InputError, nearest
from pipeline.params import Params, short, written_by_a_stage
from pipeline.storage import WORK

WATCHED = Path("data/watched")
# that go under every decoder
PLAIN = {"resnet18", "resnet34", "resnet50", "tu-tf_efficientnet_lite0"}
WITHOUT_ENCODER = {
    "linear", "window_cnn", "small_fcn", "small_unet", "lipschitz",
    "fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101",
}  # fmt: skip


def run(params: Params, for_dvc: bool = False) -> None:
    """Raise InputError where a stage would refuse these parameters. `for_dvc`
    makes the links above.
    """
    if for_dvc:
        bring_along(params)
    check_source(params)
    check_bands(params)
    check_starts(params)
    check_network(params)
    check_loggers(params)
    check_certify(params)
    tell_strangers(params)
    if for_dvc:
        watch(params)


def check_source(params: Params) -> None:
    """Raise InputError where the source has no such city, or there is no source."""
    from pipeline.stages.fetch import source_of

    path, source = params.fetch.path, params.fetch.source
    if not Path(path).exists() and not (source == "folder" and is_object(path)):
        raise InputError(f"fetch.path: there is no {path}; {SOURCES[source]}")
    if params.fetch.archive and not Path(params.fetch.archive).exists():
        raise InputError(
            f"fetch.archive: there is no {params.fetch.archive}; correct the path, or "
            f"null to download it"
        )
    for city in params.fetch.cities:
        source_of(source).look_up(params.fetch, city)


SOURCES = {
    "folder": "put your cities there as CITY/images/*.tif with CITY/labels/*.tif or one file of "
    "footprints, or name "
    "the folder they are in",
    "demo": "the demo's manifest is data/sources/demo.yaml",
    "inria": "its manifest is data/sources/inria.yaml",
    "open_buildings": "its manifest is data/sources/open_buildings.yaml",
}


BANDS = {"demo": 3, "inria": 3}  # of every scene; others' are known once they are there


def check_bands(params: Params) -> None:
    """Raise InputError where the source's scenes lack a band."""
    source, last = params.fetch.source, max(params.tile.bands)
    if last > BANDS.get(source, last):
        raise InputError(
            f"tile.bands: the scenes of source {source} have {BANDS[source]} bands, but band "
            f"{last} is asked for; list some that they have"
        )


def check_starts(params: Params) -> None:
    """Raise InputError where a model to start from, to attack or to certify is
    not there or does not fit.
    """
    attack, init = params.attack, params.train.init
    models = {
        "attack.model": attack.model,
        "attack.transfer": attack.transfer,
        "certify.model": params.certify.model,
    }
    for key, folder in models.items():
        if folder and not written_by_a_stage(folder) and not _is_model(folder):
            if Path(folder).is_file():
                from pipeline.networks.foreign import load_with_gradients

                load_with_gradients(folder)  # says what such a file lacks
            raise InputError(f"{key}: {folder} holds no model; make it first, or correct the path")
    if init and not _is_model(init):  # pretrain makes it from the tiles
        _warn(
            f"train.init: {init} holds no model yet; make it before the train stage, or correct "
            f"the path"
        )
    elif init:
        from pipeline.training.fit import check_start, inherited

        check_start(init, params.train.model, len(params.tile.bands))
        if barred := sorted({*inherited(params.train)} & {*params.fetch.cities}):
            _warn(
                f"train.init: {init} has been trained on {', '.join(barred)}: train starts from "
                f"it, but "
                "holdout and generalize will refuse to"
            )


def _is_model(folder: str) -> bool:
    return (Path(folder) / "model.json").is_file()


def check_network(params: Params) -> None:
    """Raise InputError where train.model cannot be built, or its weights cannot be read."""
    model = params.train.model
    given = model.encoder_weights not in (None, "imagenet")
    plain = model.architecture in WITHOUT_ENCODER or (
        model.encoder in PLAIN and len(model.decoder_channels or [1, 1, 1]) in (3, 4, 5)
    )
    if plain and not given and model.activation == "relu":
        return
    from pipeline.networks.models import build_model

    build_model(
        model if given else model.model_copy(update={"encoder_weights": None}),
        len(params.tile.bands),
    )


def check_loggers(params: Params) -> None:
    """Raise InputError where a logger is not installed: DVC would have removed the last model."""
    from pipeline.training.loggers import check_installed

    check_installed(params.train.loggers)


def check_certify(params: Params) -> None:
    """Raise InputError where n samples of smoothing can never certify a pixel."""
    certify = params.certify
    if "smoothing" in certify.methods:
        from pipeline.certificates.samples import check_samples

        smoothing = certify.smoothing
        check_samples(smoothing.n, certify.crop**2, smoothing.tau, smoothing.alpha)


def tell_strangers(params: Params) -> None:
    """Warn of a sun that shines on no city: a slip of the pen, or of one that was taken out."""
    cities = params.fetch.cities
    strangers = sorted(set(params.attack.physics.sun) - set(cities))
    if strangers:
        named = ", ".join(f"{short(name)} (nearest: {nearest(name, cities)})" for name in strangers)
        _warn(f"attack.physics.sun: fetch.cities has no {named}; correct the name, or leave it")


def tell_duration(params: Params) -> None:
    """Print how long training will take on this machine, roughly."""
    from pipeline.console import console, duration
    from pipeline.training.forecast import forecast, seconds_a_step

    t = params.train
    train, every = forecast(params, seconds_a_step(params))
    folds = (
        f"; `dvc repro` trains again without each city: {duration(every)}" if every > train else ""
    )
    console.print(
        f"training: {t.epochs * t.steps_per_epoch} steps, roughly {duration(train)} on "
        f"this machine{folds}"
    )


def bring_along(params: Params) -> None:
    """In a queued experiment's copy of the repository, link what it lacks to
    where it lies in the workspace.
    """
    here = Path.cwd()
    homes = [parent.parent for parent in here.parents if parent.name == ".dvc"]
    model = params.train.model
    named = (params.fetch.path, params.fetch.archive, params.train.init, model.encoder_weights,
             params.attack.model, params.attack.transfer, params.certify.model)  # fmt: skip
    for path in map(Path, filter(None, named)):
        outside = path.is_absolute() or written_by_a_stage(path) or path.exists()
        if homes and not outside and (homes[0] / path).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(homes[0] / path)


def watch(params: Params) -> None:
    """Link the files that each stage starts from into WATCHED/STAGE: DVC hashes
    what a link leads to.

    Nothing is linked outside a checkout, which has these folders.
    """
    weights = params.train.model.encoder_weights
    named = {
        "train": {
            "init": params.train.init,
            "encoder_weights": None if weights == "imagenet" else weights,
        },
        "attack": {"model": params.attack.model, "transfer": params.attack.transfer},
        "certify": {"model": params.certify.model},
    }
    for stage, starts in named.items():
        folder = WATCHED / stage
        if folder.is_dir():
            wanted = {
                f"{key}-{file.name}": file
                for key, start in starts.items()
                for file in _files(start)
            }
            _link(folder, wanted)


def _files(start: str | None) -> list[Path]:
    """The files that a path to weights or to a model folder means, unless DVC
    knows them as a stage's.
    """
    if not start or written_by_a_stage(start):
        return []
    path = Path(start).resolve()
    return [file for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file()]


def _link(folder: Path, wanted: dict[str, Path]) -> None:
    """Make these links the only ones in a folder; one that is right stays as it is."""
    for old in folder.iterdir():
        with suppress(FileNotFoundError):  # processes that train together do this together
            if old.is_symlink() and old.readlink() != wanted.get(old.name):
                old.unlink()
    for name, file in wanted.items():
        with suppress(FileExistsError):
            (folder / name).symlink_to(file)


def sweep(params: Params) -> None:
    """Move aside what earlier runs made for cities that are no longer in fetch.cities.

    Stages depend on data/tiles as a whole: a folder that only this machine has would be hashed
    there, and all others would train again. Scenes stay: no stage depends on them but their own.
    """
    kept = set(params.fetch.cities)
    stale = [
        p.parent for p in Path("data/tiles").glob("*/regions.json") if p.parent.name not in kept
    ]
    stale += [
        p
        for p in Path("models/folds").glob("without-*")
        if p.name.removeprefix("without-") not in kept
    ]
    for path in stale:
        aside = WORK / "swept" / path
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.move(path, aside)
        _warn(f"{path}: its city is not in fetch.cities; moved to {aside}")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
