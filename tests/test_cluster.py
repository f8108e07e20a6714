"""One process, Ray's workers (one of them lost) and shards give the same bytes."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from parts import square
from toy import toy_scene, write_city

from pipeline import cluster
from pipeline.cluster import CORES, content, each, shard_of, summands
from pipeline.errors import InputError
from pipeline.networks.models import build_model, read_model, save_model
from pipeline.params import Model, load_params, parse_params
from pipeline.presets import find, full
from pipeline.project import init
from pipeline.stages import attack, certify, evaluate, fetch, generalize, holdout, predict, tile

CITIES = ["toyton", "dimham"]
FOLDS = [f"models/folds/without-{city}/weights.safetensors" for city in CITIES]
SMALL = {"architecture": "small_fcn", "width": 4}


@pytest.fixture(scope="module")
def ray():
    """One for all tests; `each` finds it connected. It takes its time to start: all but one of
    those that need it are slow.
    """
    yield cluster._connected("local")
    cluster._connected("local").shutdown()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Tiles of two cities of bright houses, and two networks whose weights are
    given, not learned.
    """
    monkeypatch.chdir(tmp_path)
    for c, city in enumerate(CITIES):
        scenes = [
            (split, *toy_scene(10 * c + i, 64))
            for i, split in enumerate(["train", "validation", "test"])
        ]
        write_city(Path("data/tiles"), scenes, city)
    for name, model in {"bright": {"architecture": "linear"}, "small": SMALL}.items():
        torch.manual_seed(0)
        segmenter = build_model(Model(**model), 3)
        if name == "bright":
            with torch.no_grad():
                segmenter.network.weight[:] = torch.tensor([[0.0, 0, 0], [10, 10, 10]])[
                    ..., None, None
                ]
                segmenter.network.bias[:] = torch.tensor([0.0, -15])
        card = {"model": model, "bands": [1, 2, 3], "channels": 3, "classes": 1, "gsd": 0.5}
        save_model(Path("models") / name, segmenter, card)
    return tmp_path


def settings(**changes):
    return parse_params(
        {
            "fetch": {"source": "demo", "path": "unused", "cities": CITIES},
            "tile": {"gsd": 0.5, "size": 64},
            "train": {
                "model": SMALL,
                "loss": {"cross_entropy": 1},
                "epochs": 1,
                "steps_per_epoch": 1,
                "batch_size": 2,
                "crop": 32,
            },
            "attack": {
                "model": "models/bright",
                "tiles": 1,
                "linf": [4],
                "l2": [],
                "steps": 2,
                "apgd_steps": 2,
                "soft_iou_steps": 2,
                "reference": 4,
                "halving": False,
                "patch": 0,
                "physics": {"tiles": 1, "families": []},
                "precision": "fp32",
            },
            "certify": {
                "model": "models/small",
                "tiles": 1,
                "crop": 16,
                "attack_steps": 2,
                "smoothing": {"sigma": [0.02], "n0": 4, "n": 50},
                "convex": {"radii": [0.5]},
                "lipschitz": {"radii": [0.05], "steps": 2, "width": 4},
            },
            "generalize": {
                "corruption_tiles": 1,
                "adaptation": ["none", "adabn"],
                "adaptation_tiles": 2,
                "adaptation_steps": 1,
                "attack_steps": 1,
                "bootstrap": 100,
            },
            **changes,
        }
    )


def snapshot(*folders: str) -> dict[str, bytes]:
    files = [
        file
        for folder in map(Path, folders)
        for file in [folder, *folder.rglob("*")]
        if file.is_file()
    ]
    return {str(file): file.read_bytes() for file in files}


def both_ways(run, *outputs: str, where: str = "local") -> dict[str, bytes]:
    """What `run()` leaves; asserts that on Ray, or where else, it leaves the same."""
    run(ray=None)
    alone = snapshot(*outputs)
    for output in outputs:
        shutil.rmtree(output) if Path(output).is_dir() else Path(output).unlink()
    run(ray=where)
    assert snapshot(*outputs) == alone and alone
    assert not list(Path().glob(".work/*/*.partial"))
    return alone


# ---------------------------------------------------------------- the one interface


def test_shards_are_every_part_once():
    parts = list("abcde")
    assert shard_of(parts, "2/2") == ["b", "d"] and shard_of(parts, None) == parts
    assert sorted(sum((shard_of(parts, f"{i}/3") for i in (1, 2, 3)), [])) == parts
    for wrong in ("0/2", "3/2", "x", "1"):
        with pytest.raises(InputError, match="write i/n"):
            shard_of(parts, wrong)


def test_without_ray_nothing_imports_it(monkeypatch):
    monkeypatch.setattr(cluster, "_connected", lambda _: pytest.fail("asked for Ray"))
    assert list(each(str, [1, 2])) == [(1, "1"), (2, "2")]
    assert list(each(str, [1], "local")) == [(1, "1")]  # one part on one machine is no company


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "127.0.0.1:0"])
def test_a_cluster_that_is_not_there_is_a_sentence(address):
    with pytest.raises(InputError, match="nothing answers there"):
        cluster._check(address)


def test_kept_parts_hang_on_contents_not_on_names(tmp_path):
    (tmp_path / "a").write_text("x")
    array, network = np.arange(3), torch.nn.Linear(1, 1)
    before = content(tmp_path, array, network, 1)
    assert (
        content(tmp_path, array.copy(), network, 1)
        == before
        != content(tmp_path, array, network, 2)
    )
    (tmp_path / "a").write_text("y")
    assert content(tmp_path, array, network, 1) != before
    assert content(array) != content(array + 1)
    other = content(network)
    network.bias.data += 1
    assert content(network) != other


class Cluster:
    """What _resources asks of Ray."""

    def __init__(self, *nodes: tuple[int, int]):
        self.found = [
            {"Alive": True, "Resources": {"CPU": c, **({"GPU": g} if g else {})}} for c, g in nodes
        ]

    def nodes(self) -> list[dict]:
        return self.found


@pytest.mark.parametrize(
    ("nodes", "parts", "threads", "gpus"),
    [
        ([(2, 0)], 5, 1, 0),  # two at once, a thread each
        ([(16, 0)], 5, 3, 0),
        ([(16, 0), (16, 0)], 3, 8, 0),  # not 10, of which one fits a machine
        ([(16, 0), (16, 0)], 1, 16, 0),
        ([(32, 4)], 10, 8, 1),  # four at once, a GPU each
        ([(64, 0), (8, 2)], 5, 4, 1),  # the GPUs are on the small one
    ],
)
def test_a_part_takes_its_share(nodes, parts, threads, gpus, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    found = cluster._resources(Cluster(*nodes), parts, True)
    assert (found["num_cpus"], found["num_gpus"]) == (threads, gpus)
    assert found["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == str(threads)
    monkeypatch.setattr(cluster, "cores", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert cluster._resources(Cluster(*nodes), parts, True)["num_cpus"] == min(2, threads)
    assert cluster._resources(Cluster(*nodes), parts, False)["num_gpus"] == 0


@pytest.mark.slow
def test_a_lost_workers_part_is_done_again_and_what_is_said_is_heard(ray, tmp_path, capsys):
    def square(name: str, folder: Path) -> int:
        from pipeline.console import console  # a worker's own

        (folder / "file").write_text(name)
        if name == "3" and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        console.print(f"squaring {name}")
        return int(name) ** 2

    names = ["1", "2", "3"]
    assert summands(square, names, tmp_path / "kept", ray="local", shard=None) == {
        "1": 1,
        "2": 4,
        "3": 9,
    }
    assert (tmp_path / "died").exists() and (tmp_path / "kept/3/file").read_text() == "3"
    said = capsys.readouterr().out
    assert all(f"squaring {name}" in said for name in names)
    assert {path.name for path in (tmp_path / "kept").iterdir() if path.name[0] != "."} == {*names}


@pytest.mark.slow
def test_a_workers_sentence_is_ours_and_what_is_done_is_kept(ray, tmp_path):
    def work(name: str, folder: Path) -> str:
        if name == "bad":
            raise InputError("bad: cannot be read; correct it")
        return name

    with pytest.raises(InputError, match="^bad: cannot be read; correct it$"):
        summands(work, ["good", "bad"], tmp_path, ray="local", shard=None)
    assert summands(lambda *_: pytest.fail("again"), ["good"], tmp_path, ray=None, shard=None) == {
        "good": "good"
    }


@pytest.mark.slow
def test_a_part_that_is_always_lost_ends_it_in_one_sentence(ray, monkeypatch):
    monkeypatch.setattr(cluster, "RETRIES", 0)

    def die(part):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match="a: .*run the same command again"):
        list(each(die, ["a", "b"], "local"))
    found = dict(each(die, ["a", "b"], "local", lost=lambda part, reason: f"{part} is lost"))
    assert found == {"a": "a is lost", "b": "b is lost"}


# ---------------------------------------------------------------- this machine's cores


@pytest.fixture
def two_cores(monkeypatch):
    """Whatever this machine has: of a thread each."""
    monkeypatch.setattr(cluster, "cores", lambda: 2)


def test_cores_share_the_parts_a_thread_each(two_cores, tmp_path, capsys):
    found = summands(square, ["1", "2", "3"], tmp_path, ray=CORES, shard=None)
    assert found == {"1": 1, "2": 4, "3": 9}
    assert all((tmp_path / name / "threads").read_text() == "1" for name in found)
    said = capsys.readouterr().out
    assert all(f"squaring {name}" in said for name in found)


def test_a_process_that_is_killed_is_a_sentence_and_what_is_done_is_kept(two_cores, tmp_path):
    summands(square, ["1", "2"], tmp_path, ray=CORES, shard=None)
    with pytest.raises(InputError, match="a process was killed.*run the same command again"):
        summands(square, ["1", "2", "killed", "3"], tmp_path, ray=CORES, shard=None)
    with pytest.raises(InputError, match="^bad: cannot be read; correct it$"):
        summands(square, ["1", "bad", "3"], tmp_path, ray=CORES, shard=None)
    assert not multiprocessing.active_children()


def test_where_this_machine_has_a_gpu_or_one_part_nothing_is_shared(monkeypatch):
    monkeypatch.setattr(cluster, "_on_cores", lambda *_: pytest.fail("shared"))
    assert list(each(str, [1], CORES)) == [(1, "1")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert list(each(str, [1, 2], CORES)) == [(1, "1"), (2, "2")]


def test_whoever_states_fewer_threads_keeps_them(monkeypatch):
    from pipeline import __main__ as cli

    monkeypatch.setattr(cli, "cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # what `main` sets where nothing is stated
    assert cli.side_by_side(None, None) == CORES
    assert cli.side_by_side("local", None) == "local" and cli.side_by_side(None, "1/2") is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert cli.side_by_side(None, None) is None


@pytest.mark.slow
@pytest.mark.parametrize("stage", [attack, certify, holdout, generalize])
def test_on_its_cores_a_stage_finds_the_same(stage, two_cores, project):
    outputs = {
        attack: ("metrics/attack.json", "arrays/attack"),
        certify: ("metrics/certify.json", "models/certify/lipschitz/weights.safetensors"),
        holdout: FOLDS,
        generalize: ("metrics/generalize.json",),
    }[stage]
    if stage is generalize:
        folds_of(settings())
    both_ways(partial(stage.run, settings()), *outputs, where=CORES)


# ---------------------------------------------------------------- the stages


def test_evaluate(ray, project):
    """Under a network whose first worker dies on its way."""
    died = project / "died"

    def run(ray):
        segmenter = read_model("models/bright")
        if ray:

            def die(*_):
                if not died.exists():
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

            segmenter.register_forward_pre_hook(die)
        evaluate.run(settings(), segmenter, ray=ray)

    found = both_ways(run, "metrics/evaluate.json", "arrays/evaluate")
    assert died.exists() and not list(Path(".work/evaluate").iterdir())
    for i in (1, 2):
        evaluate.run(settings(), Path("models/bright"), shard=f"{i}/2", out=Path("sharded.json"))
        assert not Path("sharded.json").exists()
    evaluate.run(settings(), Path("models/bright"), out=Path("sharded.json"))
    assert Path("sharded.json").read_bytes() == found["metrics/evaluate.json"]


@pytest.mark.slow
def test_attack(ray, project):
    both_ways(partial(attack.run, settings()), "metrics/attack.json", "arrays/attack")


@pytest.mark.slow
def test_certify(ray, project):
    """One road that trains its network, one of the deployed one, one that votes."""
    both_ways(
        partial(certify.run, settings()),
        "metrics/certify.json",
        "models/certify/lipschitz/weights.safetensors",
    )


@pytest.mark.slow
def test_generalize(ray, project):
    folds_of(settings())
    both_ways(partial(generalize.run, settings()), "metrics/generalize.json")


def folds_of(params) -> None:
    """models/all and the folds: networks that are given, and cards that say
    what they were trained on.
    """
    for name, cities in {
        "all": CITIES,
        "without-toyton": ["dimham"],
        "without-dimham": ["toyton"],
    }.items():
        card = {
            "model": {"architecture": "linear"},
            "bands": [1, 2, 3],
            "channels": 3,
            "classes": 1,
            "gsd": 0.5,
        }
        card |= {"cities": cities, "params": {"train": params.train.model_dump()}}
        folder = Path("models" if name == "all" else "models/folds", name)
        save_model(folder, read_model("models/bright"), card)


def test_shards_wait_for_the_whole(project):
    folds_of(settings())
    for stage, name in ((attack, "attack"), (certify, "certify"), (generalize, "generalize")):
        stage.run(settings())
        whole = Path(f"metrics/{name}.json").read_bytes()
        Path(f"metrics/{name}.json").unlink()
        for i in (2, 1):
            stage.run(settings(), shard=f"{i}/2")
            assert not Path(f"metrics/{name}.json").exists()
        stage.run(settings())
        assert Path(f"metrics/{name}.json").read_bytes() == whole


@pytest.mark.slow
def test_holdout(ray, project):
    both_ways(partial(holdout.run, settings()), *FOLDS)
    with pytest.raises(InputError, match="did you mean toyton"):
        holdout.run(settings(), "toytown")


@pytest.mark.slow
def test_fetch_and_tile(ray, tmp_path, monkeypatch):
    demo = Path(__file__).parents[1] / "data/sources/demo.yaml"
    monkeypatch.chdir(tmp_path)
    of = {
        "source": "demo",
        "path": str(demo),
        "cities": ["brickvale", "tinroof"],
        "scenes": [1, 2, 3],
        "scene_size": 64,
    }
    asked = settings(fetch=of)
    both_ways(partial(fetch.run, asked), "data/scenes")
    both_ways(partial(tile.run, asked), "data/tiles")


@pytest.mark.slow
def test_predict(ray, project):
    """Of relative paths too: the workers' folder is another."""
    place = {"crs": "EPSG:32632", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 6_650_000)}
    Path("scenes").mkdir()
    for i in range(2):
        image, _ = toy_scene(i, 96)
        with rasterio.open(
            f"scenes/town{i}.tif", "w", "GTiff", 96, 96, 3, dtype="uint8", **place
        ) as file:
            file.write(np.moveaxis(image, -1, 0))
    maps = both_ways(partial(predict.run, "models/bright", ["scenes"], "maps"), "maps")
    assert {"maps/town0.tif", "maps/town1.gpkg"} <= maps.keys()


def test_dvc_takes_over_what_a_cluster_has_measured(project):
    """The page docs/scaling.md: run, `dvc commit`, and `dvc repro` finds it
    done until a byte is another.
    """
    init(project, full(find(Path(__file__).parent / "tiny.yaml")))
    asked = load_params(project / "params.yaml")
    for city in CITIES:
        shutil.rmtree(project / "data/tiles" / city)
    for i, city in enumerate(asked.fetch.cities):
        write_city(
            project / "data/tiles",
            [("train", *toy_scene(i, 64)), ("test", *toy_scene(i + 9, 64))],
            city,
        )
        shutil.copytree("models/bright", f"models/folds/without-{city}")
    shutil.copytree("models/bright", "models/all")
    Path("data/swept.txt").write_text("")
    evaluate.run(asked)  # as on Ray, see above

    def dvc(*words: str) -> str:
        command = [sys.executable, "-m", "dvc", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    dvc("init", "--quiet", "--no-scm")
    dvc("commit", "--quiet", "--force", "evaluate", "holdout")
    assert "up to date" in dvc("status", "evaluate", "holdout")
    metrics = Path("metrics/evaluate.json")
    metrics.write_bytes(metrics.read_bytes() + b" ")
    assert "metrics/evaluate.json" in dvc("status", "evaluate")
