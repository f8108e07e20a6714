"""What colleagues get: a wheel that works outside the checkout, an image, a model by `dvc pull`."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from affine import Affine
from toy import toy_scene, write_city

from pipeline.errors import InputError
from pipeline.networks.models import build_model, save_model
from pipeline.params import Model, load_params
from pipeline.presets import find, full
from pipeline.project import given, init, without_code
from pipeline.storage import write_json

ROOT = Path(__file__).parents[1]


def run(*words: str, cwd: Path, path: Path = ROOT) -> str:
    """A command's output; Python finds the pipeline at `path`, and git who commits."""
    git = {
        f"GIT_{who}_{what}": "nobody@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        **git,
        "PATH": binaries,
        "PYTHONPATH": str(path),
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (
            not name.startswith(("benchmarks/", "docs/", "metrics/", "tests/"))
            and (ROOT / name).is_file()
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    words = (
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        "..",
        ".",
    )
    run(sys.executable, "-m", *words, cwd=source)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_makes_a_project_that_checks_outside_the_checkout(wheel, tmp_path):
    assert (wheel / "pipeline/py.typed").exists() and (wheel / "pipeline/report/style.css").exists()
    scripts = next(wheel.glob("*.dist-info/entry_points.txt")).read_text()
    assert "buildings = pipeline.__main__:main" in scripts
    run(
        sys.executable,
        "-m",
        "pipeline",
        "init",
        "mine",
        "--preset",
        "town",
        cwd=tmp_path,
        path=wheel,
    )
    said = run(
        sys.executable, "-c", "import pipeline; print(pipeline.__file__)", cwd=tmp_path, path=wheel
    )
    assert Path(said.strip()).is_relative_to(wheel)
    assert load_params(tmp_path / "mine/params.yaml") == load_params(ROOT / "presets/town.yaml")
    run("git", "init", "--quiet", cwd=tmp_path / "mine")
    run("dvc", "init", "--quiet", cwd=tmp_path / "mine")
    assert "fetch@my-town" in run(
        "dvc", "stage", "list", "--fail", cwd=tmp_path / "mine", path=wheel
    )


def test_init_leaves_what_is_there_and_its_stages_are_the_same_but_for_code(tmp_path):
    (tmp_path / ".gitignore").write_text("mine\n")
    written = init(tmp_path, full(find("demo")))
    assert (
        tmp_path / ".gitignore"
    ).read_text() == "mine\n" and tmp_path / ".gitignore" not in written
    theirs, ours = (
        yaml.safe_load((folder / "dvc.yaml").read_text()) for folder in (tmp_path, ROOT)
    )
    for name, stage in ours["stages"].items():
        stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith("pipeline/")]
        if not stage["deps"]:
            del stage["deps"]
        assert theirs["stages"][name] == stage
    with pytest.raises(InputError, match="params.yaml: is there already"):
        init(tmp_path, "")
    assert given() == ROOT and "pipeline/" not in without_code(
        "deps:\n  - pipeline/tiles\n  - data\n"
    )


def test_every_path_that_the_image_copies_exists():
    """As far as a machine without docker can check it; whitespace ends a path, the last one is
    inside the image.
    """
    copied = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source for line in copied for source in line.split()[:-1]]
    assert sources and all((ROOT / source).exists() for source in sources)
    ignored = {line.strip("/") for line in (ROOT / ".dockerignore").read_text().split()}
    assert not any(
        source == name or source.startswith(f"{name}/") for source in sources for name in ignored
    )


def test_hooks_are_local_commands():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/")


@pytest.fixture
def trained(tmp_path) -> Path:
    """A project, git and DVC set up, whose stage train is done: its outputs
    stand there, no training ran.
    """
    project = tmp_path / "project"
    run(
        sys.executable,
        "-m",
        "pipeline",
        "init",
        str(project),
        "--preset",
        str(ROOT / "tests/tiny.yaml"),
        cwd=tmp_path,
    )
    write_city(project / "data/tiles", [("train", *toy_scene(0, 64))], "brickvale")
    (project / "data/swept.txt").write_text("")
    description = Model(architecture="linear")
    torch.manual_seed(0)
    card = {
        "model": description.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
    }
    save_model(project / "models/all", build_model(description, 3), card)
    (project / "arrays/train").mkdir(parents=True)
    (project / "arrays/train/curve.csv").write_text("epoch,loss,iou\n0,1,0.5\n")
    write_json(project / "metrics/train.json", {"validation_iou": 0.5})
    run("git", "init", "--quiet", "--initial-branch", "main", cwd=project)
    run("dvc", "init", "--quiet", cwd=project)
    run("dvc", "commit", "--quiet", "--force", "train", cwd=project)
    return project


@pytest.mark.slow
@pytest.mark.parametrize("place", ["a folder", "a bucket"])
def test_a_colleague_pulls_the_model_and_maps_without_training(place, trained, request, tmp_path):
    """The page docs/sharing.md, with either remote."""
    if place == "a bucket":
        pytest.importorskip("dvc_s3", reason="the s3 extra is not installed")
        store = request.getfixturevalue("store")
        store.client.create_bucket(Bucket="ours")
        remote, endpoint = "s3://ours/buildings", os.environ["AWS_ENDPOINT_URL"]
    else:
        remote, endpoint = str(tmp_path / "remote"), None
    run("dvc", "remote", "add", "--quiet", "--default", "shared", remote, cwd=trained)
    if endpoint:
        run("dvc", "remote", "modify", "--quiet", "shared", "endpointurl", endpoint, cwd=trained)
    run("git", "add", ".", cwd=trained)
    run("git", "commit", "--quiet", "--message", "Trained", cwd=trained)
    run("dvc", "push", "--quiet", "train", cwd=trained)
    run("git", "clone", "--quiet", str(trained), "theirs", cwd=tmp_path)
    theirs = tmp_path / "theirs"
    assert not (theirs / "models").exists()
    run("dvc", "pull", "--quiet", "models/all", cwd=theirs)
    for name in ("weights.safetensors", "model.json", "README.md"):
        assert (theirs / "models/all" / name).read_bytes() == (
            trained / "models/all" / name
        ).read_bytes()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8)
    place = {"crs": "EPSG:32632", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 6_650_000)}
    with rasterio.open(
        tmp_path / "scene.tif", "w", "GTiff", 50, 40, 3, dtype="uint8", **place
    ) as file:
        file.write(pixels)
    run(
        sys.executable,
        "-m",
        "pipeline",
        "predict",
        "models/all",
        str(tmp_path / "scene.tif"),
        cwd=theirs,
    )
    assert (theirs / "predictions/scene.tif").exists() and not (theirs / "arrays").exists()
    run("git", "tag", "--annotate", "buildings@v1.0.0", "--message", "Two cities", cwd=trained)
    run("dvc", "artifacts", "get", str(trained), "buildings", "--out", "got", cwd=tmp_path)
    assert (tmp_path / "got/weights.safetensors").exists()
