"""The command line: one verb a stage, in pipeline order. Heavy imports only inside the verb
that needs them.
"""

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import REMEDIES, InputError, refusal
from pipeline.runs import cores, idle_cores, recorded

app = typer.Typer(
    name="pipeline",
    help="Map buildings from the air, and know how far to trust the map.\n\n"
    "`dvc repro` runs the stages in order; each also runs by itself: `python -m pipeline train`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

STOPPED = 130  # the exit code after Ctrl-C

# verbs that keep what they have finished
GOES_ON = {
    "fetch", "tile", "train", "evaluate", "attack", "certify", "holdout", "generalize", "explain",
    "privacy", "incremental", "predict", "publish",
}  # fmt: skip

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameters to read.")]
OneCity = Annotated[str | None, typer.Option(help="Only this city of fetch.cities.")]
OnRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        envvar="BUILDINGS_RAY",
        help="Where its parts run: local, or a Ray cluster's HOST:PORT.",
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard", help="i/n, i from 1: every n-th part from the i-th, as of an array of jobs."
    ),
]
PARAMS = Path("params.yaml")


def side_by_side(ray: str | None, shard: str | None) -> str | None:
    """Where the parts of a long stage run: as asked, else side by side on this machine's cores,
    unless OMP_NUM_THREADS keeps it to fewer.
    """
    from pipeline.cluster import CORES

    alone = shard is not None or int(os.environ["OMP_NUM_THREADS"]) < cores()
    return ray or (None if alone or cores() == 1 else CORES)


def load(path: Path):
    from pipeline.params import load_params

    return load_params(path)


def load_watched(path: Path):
    """The parameters of a stage whose starting points DVC watches: they may be
    newer than its `check`.
    """
    from pipeline.stages.check import watch

    parameters = load(path)
    watch(parameters)
    return parameters


@app.command()
def preset(name: Annotated[str, typer.Argument(help="Of a file in presets/, or a path.")]) -> None:
    """Print a whole params.yaml: the values of presets/NAME.yaml, every parameter and its unit.

    Example: `python -m pipeline preset folder > params.yaml`
    """
    from pipeline.presets import find, full

    typer.echo(full(find(name)).encode(), nl=False)  # UTF-8, whatever the terminal's is


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where the project goes.")] = Path("."),
    name: Annotated[str, typer.Option("--preset", help="Whose params.yaml is written.")] = "demo",
) -> None:
    """Make a project: dvc.yaml, the sources and a params.yaml with every parameter;
    `dvc repro` runs it.

    Example: `python -m pipeline init my-project --preset town`
    """
    from pipeline.presets import find, full
    from pipeline.project import init as write

    print(
        f"wrote {len(write(folder, full(find(name))))} files; in {folder.resolve()}: git init, "
        f"dvc init, dvc repro"
    )


@app.command()
def parameters() -> None:
    """Print every parameter, its default and its meaning, as the documentation's page has them.

    Example: `python -m pipeline parameters > docs/parameters.md`
    """
    from pipeline.reference import reference

    typer.echo(reference().encode(), nl=False)


@app.command()
def metrics() -> None:
    """Print every number of every metrics file and its meaning, as the
    documentation's page has them.

    Example: `python -m pipeline metrics > docs/metrics.md`
    """
    from pipeline.reference import numbers

    typer.echo(numbers().encode(), nl=False)


@app.command()
def check(
    params: ParamsFile = PARAMS,
    for_dvc: Annotated[
        bool, typer.Option("--for-dvc", hidden=True, help="Make the links that dvc.yaml needs.")
    ] = False,
) -> None:
    """Say whether every parameter is known and allowed, and roughly how long training will take.

    `dvc repro` asks the first before anything else.

    Example: `python -m pipeline check --params presets/inria.yaml`
    """
    from pipeline.stages import check as stage

    parameters = load(params)
    stage.run(parameters, for_dvc)
    print("every parameter is known, every value allowed")
    if not for_dvc:
        stage.tell_duration(parameters)


@app.command(hidden=True)
def sweep(params: ParamsFile = PARAMS) -> None:
    """Move aside tiles and folds of cities that are no longer in fetch.cities; `dvc
    repro` does it after tiling.

    Example: `python -m pipeline sweep`
    """
    from pipeline.stages import check as stage

    stage.sweep(load(params))


@app.command()
def fetch(
    city: OneCity = None, ray: OnRay = None, shard: Shard = None, params: ParamsFile = PARAMS
) -> None:
    """Bring the scenes of each city to data/scenes: demo, folder, inria or open_buildings.

    Example: `python -m pipeline fetch --city brickvale`
    """
    from pipeline.stages import fetch as stage

    stage.run(load(params), city, ray=ray, shard=shard)


@app.command()
def tile(
    city: OneCity = None, ray: OnRay = None, shard: Shard = None, params: ParamsFile = PARAMS
) -> None:
    """Resample scenes to one ground sample distance, rasterise labels, split: data/tiles.

    Example: `python -m pipeline tile --city brickvale`
    """
    from pipeline.stages import tile as stage

    stage.run(load(params), city, ray=ray, shard=shard)


@app.command()
def train(
    without: Annotated[
        str | None, typer.Option(help="Leave this city out: models/folds/without-CITY.")
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Train a segmenter on every city (models/all), or on every city but one.

    Example: `python -m pipeline train`, or on 4 GPUs `torchrun --nproc-per-node 4
    -m pipeline train`
    """
    from pipeline.stages import train as stage

    stage.run(load_watched(params), without)


@app.command()
def holdout(
    city: OneCity = None, ray: OnRay = None, shard: Shard = None, params: ParamsFile = PARAMS
) -> None:
    """Train the leave-one-city-out folds, models/folds/without-CITY of each city.

    Example: `python -m pipeline holdout`
    """
    from pipeline.stages import holdout as stage

    stage.run(load_watched(params), city, ray=side_by_side(ray, shard), shard=shard)


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Model folder to write.")] = Path("pretrained"),
    params: ParamsFile = PARAMS,
) -> None:
    """Learn an encoder from unlabelled tiles; start from it with train.init.

    Example: `python -m pipeline pretrain --out pretrained`
    """
    from pipeline.tiles.store import open_cities
    from pipeline.training.pretraining import check_place
    from pipeline.training.pretraining import pretrain as learn

    parameters = load(params)
    check_place(out)
    learn(parameters, open_cities(parameters.fetch.cities), out)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Option(help="A model folder, or an ONNX file; s3:// too.")
    ] = "models/all",
    tiles: Annotated[
        Path, typer.Option(help="Tiles of the model's ground sample distance.")
    ] = Path("data/tiles"),
    out: Annotated[Path, typer.Option(help="Metrics file to write.")] = Path(
        "metrics/evaluate.json"
    ),
    ray: OnRay = None,
    shard: Shard = None,
    params: ParamsFile = PARAMS,
) -> None:
    """IoU per city over whole test scenes, with 95 % intervals.

    Example: `python -m pipeline evaluate --model models/folds/without-tinroof --out metrics/other.json`
    """
    from pipeline.mapping.scene import local_model
    from pipeline.stages import evaluate as stage

    arrays, where = Path("arrays") / out.stem, side_by_side(ray, shard)
    stage.run(load(params), Path(local_model(model)), tiles, out, arrays, ray=where, shard=shard)


@app.command()
def attack(ray: OnRay = None, shard: Shard = None, params: ParamsFile = PARAMS) -> None:
    """IoU under attack: how far can the pixels be pushed? Audits its own honesty;
    the report fails where that did.

    Example: `python -m pipeline attack`
    """
    from pipeline.stages import attack as stage

    stage.run(load_watched(params), ray=side_by_side(ray, shard), shard=shard)


@app.command()
def certify(
    scene: Annotated[
        str | None, typer.Option(help="A raster: which pixels of its map are proven?")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Of --scene; else the strongest for certify.model.")
    ] = None,
    radius: Annotated[
        float | None, typer.Option(help="Of --scene, in the unit of its norm.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Of --scene: folder to write to.")] = Path("certified"),
    gsd: Annotated[
        float | None, typer.Option(help="Of --scene: metres a pixel, without a CRS.")
    ] = None,
    bands: Annotated[
        str | None, typer.Option(help="Of --scene: 1-based bands, such as 4,3,2.")
    ] = None,
    value_range: Annotated[
        str | None, typer.Option("--range", help="Of --scene: become 0 and 255.")
    ] = None,
    ray: OnRay = None,
    shard: Shard = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Certified IoU: what no perturbation can do. Smoothing, convex relaxation, Lipschitz network.

    Example: `python -m pipeline certify`, or of one scene's map `python -m pipeline
    certify --scene town.tif`
    """
    from pipeline.stages import certify as stage
    from pipeline.stages import certify_scene

    if scene is None:
        return stage.run(load_watched(params), ray=side_by_side(ray, shard), shard=shard)
    certify_scene.run(
        load_watched(params), scene, out, method=method, radius=radius, gsd=gsd,
        bands=numbers(bands, int, "--bands"), value_range=numbers(value_range, float, "--range"),
    )  # fmt: skip


@app.command()
def generalize(ray: OnRay = None, shard: Shard = None, params: ParamsFile = PARAMS) -> None:
    """IoU in a city never seen: held-out cities, corruptions, adaptation, an
    estimate without labels.

    Example: `python -m pipeline generalize` (after `holdout`)
    """
    from pipeline.stages import generalize as stage

    stage.run(load(params), ray=side_by_side(ray, shard), shard=shard)


@app.command()
def explain(
    model: Annotated[Path, typer.Option(help="A model folder.")] = Path("models/all"),
    tiles: Annotated[
        Path, typer.Option(help="Tiles of the model's ground sample distance.")
    ] = Path("data/tiles"),
    out: Annotated[Path, typer.Option(help="Metrics file to write.")] = Path(
        "metrics/explain.json"
    ),
    ray: OnRay = None,
    shard: Shard = None,
    params: ParamsFile = PARAMS,
) -> None:
    """What the map rests on in each city: colour, texture, shadow, surroundings; checked
    explanations of buildings.

    Example: `python -m pipeline explain`
    """
    from pipeline.stages import explain as stage

    where = side_by_side(ray, shard)
    stage.run(load(params), model, tiles, out, Path("arrays") / out.stem, ray=where, shard=shard)


@app.command()
def incremental(params: ParamsFile = PARAMS) -> None:
    """What does a network forget as cities, or a class, arrive one after another? Replay,
    distillation, EWC, MiB.

    Example: `python -m pipeline incremental`
    """
    from pipeline.stages import incremental as stage

    stage.run(load(params))


@app.command()
def privacy(params: ParamsFile = PARAMS) -> None:
    """Does the model tell which scenes it was trained on? Membership inference, and
    training with privacy.

    Example: `python -m pipeline privacy` (after `holdout`)
    """
    from pipeline.stages import privacy as stage

    stage.run(load(params))


@app.command()
def report(params: ParamsFile = PARAMS) -> None:
    """One self-contained page of all that has run: report/index.html.

    Example: `python -m pipeline report`
    """
    from pipeline.stages import report as stage

    stage.run(load(params))


@app.command()
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experiments, revisions, folders, metrics files; none: all experiments."
        ),
    ] = None,
    of: Annotated[
        str, typer.Option(help="seen, unseen, attacked, certified, or a number of evaluate.json.")
    ] = "seen",
    to: Annotated[
        Path | None, typer.Option("--csv", help="Every number of every run, a row a city.")
    ] = None,
) -> None:
    """Runs side by side, a row each: an IoU per city with its 95 % interval, and
    what each has set otherwise.

    Example: `python -m pipeline compare`, or `python -m pipeline compare main my-experiment --of
    unseen --csv runs.csv`
    """
    from pipeline.report.comparison import compare as side_by_side

    side_by_side(runs or [], of, to)


@app.command()
def predict(
    model: Annotated[
        str, typer.Argument(help="A model folder or an exported ONNX file; s3:// too.")
    ],
    scenes: Annotated[
        list[str], typer.Argument(help="Rasters, folders, globs, .txt lists or URLs.")
    ],
    out: Annotated[str, typer.Option(help="Folder to write to; s3:// too.")] = "predictions",
    polygons: Annotated[
        str | None, typer.Option(help="gpkg, fgb, parquet, geojson, pmtiles or none.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Building probability; else the model card's.")
    ] = None,
    min_area: Annotated[
        float | None, typer.Option(help="Smaller polygons are dropped, m².")
    ] = None,
    split: Annotated[
        float | None,
        typer.Option(
            help="Probability of a contact at which touching buildings come apart; 1 = off."
        ),
    ] = None,
    neck: Annotated[
        float | None, typer.Option(help="How narrow a joint parts two buildings; 0 = off.")
    ] = None,
    outlines: Annotated[str | None, typer.Option(help="regular, simplified or raw.")] = None,
    known: Annotated[
        Path | None, typer.Option(help="Footprints one has: what is new, changed, missing?")
    ] = None,
    probability: Annotated[
        bool, typer.Option("--probability", help="Write probabilities too.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write disagreement too.")
    ] = False,
    certified: Annotated[
        bool, typer.Option("--certified", help="Write which pixels are proven too; slow.")
    ] = False,
    radius: Annotated[
        float | None, typer.Option(help="Of --certified, in the unit of its norm.")
    ] = None,
    stac: Annotated[
        bool, typer.Option("--stac", help="A STAC item a map and an index of them too.")
    ] = False,
    gsd: Annotated[
        float | None, typer.Option(help="Metres a pixel, for scenes without a CRS.")
    ] = None,
    bands: Annotated[str | None, typer.Option(help="1-based bands, such as 4,3,2.")] = None,
    value_range: Annotated[
        str | None, typer.Option("--range", help="Values that become 0 and 255: 0,3000.")
    ] = None,
    shard: Shard = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="All scenes' buildings in one layer, each once.")
    ] = False,
    ray: OnRay = None,
    params: Annotated[
        Path | None, typer.Option(help="Its section predict holds the defaults.")
    ] = None,
) -> None:
    """Map any scene: a mask on its own grid, and polygons; memory grows with a band of rows only.

    What is not given is as ./params.yaml says in its section predict, if it is there.

    Example: `python -m pipeline predict models/all scenes/*.tif --out maps --polygons gpkg`
    """
    from pipeline.params import EXAMPLE, OnlyPredict, Predict, load_section, parse_section
    from pipeline.stages import predict as stage

    given = {
        "polygons": polygons, "threshold": threshold, "min_area": min_area, "split": split,
        "neck": neck, "outlines": outlines, "probability": probability or None,
        "uncertainty": uncertainty or None, "certified": certified or None, "radius": radius,
        "stac": stac or None,
    }  # fmt: skip
    file = params or (PARAMS if PARAMS.exists() else None)
    defaults = load_section(OnlyPredict, file, EXAMPLE).predict.model_dump() if file else {}
    settings = parse_section(
        Predict, defaults | {key: value for key, value in given.items() if value is not None}
    )
    stage.run(
        model, scenes, out, settings=settings, shard=shard, gsd=gsd,
        bands=numbers(bands, int, "--bands"), value_range=numbers(value_range, float, "--range"),
        known=known, ray=ray, merged=merge,
    )  # fmt: skip


def numbers(text: str | None, kind: type, option: str) -> list | None:
    try:
        return [kind(part) for part in text.split(",")] if text else None
    except ValueError:
        raise InputError(f"{option} {text}: write numbers with commas between them") from None


@app.command("few_labels")
def few_labels(params: ParamsFile = PARAMS) -> None:
    """What an hour of labelling buys in a city never seen: intervals, a promise, a
    model that learned.

    Example: `python -m pipeline few_labels` (after `holdout`)
    """
    from pipeline.stages import few_labels as stage

    stage.run(load(params))


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    scenes: Annotated[
        list[str], typer.Argument(help="Rasters, folders, globs, .txt lists or URLs.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, one a city.")],
    tiles: Annotated[int, typer.Option(help="Frames to label.")] = 20,
    side: Annotated[
        int, typer.Option(help="Pixels along a frame's side, of the model's size.")
    ] = 128,
    strategy: Annotated[
        str, typer.Option(help="probability, to assess; or active, core_set, random, to learn.")
    ] = "probability",
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    gsd: Annotated[
        float | None, typer.Option(help="Metres a pixel, for scenes without a CRS.")
    ] = None,
    bands: Annotated[str | None, typer.Option(help="1-based bands, such as 4,3,2.")] = None,
    value_range: Annotated[
        str | None, typer.Option("--range", help="Values that become 0 and 255: 0,3000.")
    ] = None,
) -> None:
    """Which frames of a new city to label: a sample with the model's draft, a
    GeoPackage to edit in QGIS.

    Example: `python -m pipeline sample models/all scenes/*.tif --tiles 20 --out labels/newtown`
    """
    from pipeline.stages import sample as stage

    stage.run(
        model, scenes, out, tiles=tiles, side=side, strategy=strategy, seed=seed, gsd=gsd,
        bands=numbers(bands, int, "--bands"), value_range=numbers(value_range, float, "--range"),
    )  # fmt: skip


@app.command()
def assess(
    city: Annotated[
        Path, typer.Argument(help="A folder of the sample verb, its label.gpkg edited.")
    ],
    model: Annotated[
        Path | None, typer.Option(help="A model of the adapt verb; else the one sampled with.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Of the map assessed; else the model's.")
    ] = None,
    at_least_recall: Annotated[float | None, typer.Option(help="The recall to promise.")] = None,
    confidence: Annotated[float, typer.Option(help="Of that promise.")] = 0.95,
    per: Annotated[
        str, typer.Option(help="Recall of frames, on average, or of built area: frame, area.")
    ] = "frame",
) -> None:
    """How good the whole city's map is, with 95 % intervals, from the frames that were labelled.

    Example: `python -m pipeline assess labels/newtown --at-least-recall .9 --confidence .95`
    """
    from pipeline.stages import assess as stage

    stage.run(
        city,
        model=model,
        threshold=threshold,
        at_least_recall=at_least_recall,
        confidence=confidence,
        per=per,
    )


@app.command()
def adapt(
    model: Annotated[Path, typer.Argument(help="The model folder that was sampled with.")],
    city: Annotated[
        Path, typer.Argument(help="A folder of the sample verb, its label.gpkg edited.")
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    tiles: Annotated[
        Path, typer.Option(help="Where the old cities' tiles are, to be replayed.")
    ] = Path("data/tiles"),
    steps: Annotated[int, typer.Option(help="Batches of a fine-tuning.")] = 80,
    folds: Annotated[
        int, typer.Option(help="Of cross-fitting; 1 = none, the model cannot be assessed then.")
    ] = 3,
    learning_rate: Annotated[float, typer.Option(help="The highest of the schedule.")] = 3e-4,
    seed: Annotated[int, typer.Option(help="Of crops and folds.")] = 0,
) -> None:
    """A model that has learned the labelled frames, without forgetting the old cities.

    Example: `python -m pipeline adapt models/all labels/newtown --out models/newtown`
    """
    from pipeline.stages import adapt as stage

    stage.run(
        model,
        city,
        out,
        tiles=tiles,
        steps=steps,
        folds=folds,
        learning_rate=learning_rate,
        seed=seed,
    )


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A model folder.")] = Path("models/all"),
    what: Annotated[
        str, typer.Option("--for", help="onnx, torch-export, hub or deepness (QGIS).")
    ] = "onnx",
    metrics: Annotated[Path, typer.Option(help="Of hub: IoU per city, if it is there.")] = Path(
        "metrics/evaluate.json"
    ),
) -> None:
    """A model for other tools, beside its weights: ONNX and a STAC item, a torch.export program,
    the Hub's page, or what QGIS's plugin Deepness opens.

    ONNX and the program are checked against the model before they take their names.

    Example: `python -m pipeline export handover --for torch-export`
    """
    from pipeline.console import console
    from pipeline.mapping import export as exports

    match what:
        case "onnx":
            path = exports.export(model)
        case "torch-export":
            path = exports.export_program(model)
        case "hub":
            path = exports.export_page(model, metrics)
        case "deepness":
            path = exports.export_deepness(model)
        case _:
            raise InputError(f"--for {what}: choose onnx, torch-export, hub or deepness")
    console.print(f"wrote {path}")


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    to: Annotated[str, typer.Argument(help="Where: s3://BUCKET/FOLDER.")],
) -> None:
    """Put a model into a bucket, for predict on other machines; whole or not at all.

    Example: `python -m pipeline publish models/all s3://our-bucket/models/all`
    """
    from pipeline.stages import publish as stage

    stage.run(model, to)


@app.command("pack-submission")
def pack(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of predicted masks of Inria's test scenes.")
    ],
    out: Annotated[Path, typer.Option(help="Zip to write.")] = Path("submission.zip"),
) -> None:
    """Pack predicted masks as the Inria contest's submission zip.

    Example: `python -m pipeline pack-submission predictions --out submission.zip`
    """
    from pipeline.sources.inria.source import pack_submission

    pack_submission(predictions, out)


@app.command()
def summary() -> None:
    """The table of IoU per city and the path of the report.

    Example: `python -m pipeline summary`
    """
    from pipeline.console import console
    from pipeline.metrics import EvaluateMetrics, read
    from pipeline.stages.evaluate import print_table

    path, page = Path("metrics/evaluate.json"), Path("report/index.html")
    if not path.exists():
        raise InputError(f"{path}: not found; run `dvc repro` or the evaluate stage first")
    print_table(read(EvaluateMetrics, path))
    if page.exists():
        console.print(f"report: {page.resolve()}")


@app.command()
def course(
    topic: Annotated[
        str | None, typer.Argument(help="One of the topics; without it they are listed.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the picture TOPIC.png.")] = Path("course"),
) -> None:
    """The lecture to run: one topic, its numbers and a picture, within a minute on a CPU.

    Example: `python -m pipeline course svm --out course`
    """
    from pipeline.course.topics import contents, teach

    if topic is None:
        contents()
    else:
        teach(topic, out)


def main() -> None:
    """Run a verb; bad input is one sentence and exit code 2, Ctrl-C exit code 130."""
    os.environ.setdefault("OMP_NUM_THREADS", str(idle_cores()))
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  where a caller closed it
    # a terminal that is not UTF-8 ends no stage whose work is done
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with recorded(sys.argv[1:]):
            if app(standalone_mode=False) == STOPPED:  # typer's whole answer to Ctrl-C
                raise KeyboardInterrupt
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        sentence = refusal(error.filename or "disk", error.errno)
        print(f"error: {sentence}, then run the same command again", file=sys.stderr)
        sys.exit(2)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort) as stop:
        goes_on = "goes on from here" if GOES_ON & {*sys.argv[1:2]} else "begins anew"
        print(f"stopped; {str(stop) or f'the same command {goes_on}'}", file=sys.stderr)
        sys.exit(STOPPED)
    except Exception as error:
        show = getattr(error, "show", None)
        if type(error).__module__.startswith(("click", "typer")) and show:
            show()  # a usage mistake: unknown option, missing argument
            for name in filter(os.path.exists, (a for a in sys.argv[1:] if a.startswith("-"))):
                print(f"{name} is a file: write ./{name}", file=sys.stderr)
            sys.exit(getattr(error, "exit_code", 2))
        raise


if __name__ == "__main__":
    main()
