"""What others give is data: bounded before it is built, refused in a sentence, and never run."""

import ast
import json
import socket
import struct
import threading
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from faulty import ROOT, each, snapshot, visible
from toy import toy_scene, write_city

from pipeline.errors import InputError
from pipeline.imagery.raster import open_raster
from pipeline.imagery.scene import City, read_city
from pipeline.imagery.scene import write_city as write_scenes
from pipeline.imagery.vector import read_footprints
from pipeline.mapping.scene_list import list_scenes
from pipeline.tiles.store import CityTiles

MODULES = sorted((ROOT / "pipeline").rglob("*.py"))
RUNNING = {"eval", "exec", "compile", "__import__"}  # builtins that make code of text
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def sins(tree: ast.AST) -> list[str]:
    """Calls and imports that could run what a file holds."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"imports {name}" for name in names if name.split(".")[0] in UNPICKLING]
        if not isinstance(node, ast.Call):
            continue
        said = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        unsafe = said == "torch.load" and given.get("weights_only") != "True"
        unsafe |= said == "np.load" and given.get("allow_pickle", "False") != "False"
        unsafe |= said in RUNNING or said in {
            "yaml.load",
            "yaml.unsafe_load",
            "yaml.full_load",
            "os.system",
        }
        unsafe |= given.get("shell") == "True" or given.get("trust_remote_code") == "True"
        found += [said] if unsafe else []
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "eval(x)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_the_search_finds_what_it_is_for(text):
    assert sins(ast.parse(text))


def test_nothing_in_the_pipeline_runs_what_a_file_holds():
    found = {
        str(m.relative_to(ROOT)): said
        for m in MODULES
        if (said := sins(ast.parse(m.read_text(encoding="utf-8"))))
    }
    # which names all that it may build: see below
    assert found == {"pipeline/cluster.py": ["imports pickle"]}


def test_a_kept_result_that_would_run_something_is_refused(tmp_path):
    import pickle

    from pipeline.cluster import _Own
    from pipeline.scoring.evaluation import CityResult

    for code in (
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"cpipeline.cluster\nshutil.rmtree\n(S'x'\ntR.",
        b"cbuiltins\neval\n.",
    ):
        (tmp_path / "result.pickle").write_bytes(code)
        with pytest.raises(InputError, match="not ours; delete"):
            _Own.read(tmp_path / "result.pickle")
    (tmp_path / "result.pickle").write_bytes(
        pickle.dumps(CityResult("a", 0.5, pixels=np.arange(4)))
    )
    assert _Own.read(tmp_path / "result.pickle").pixels.tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------ models


CARD = {
    "model": {"architecture": "small_unet", "width": 4},
    "channels": 3,
    "classes": 1,
    "gsd": 0.5,
    "bands": [1, 2, 3],
}
WRONG = {
    "absurd channels": {"channels": 10**9},
    "absurd width": {"model": {"architecture": "small_unet", "width": 10**7}},
    "absurd decoder": {"model": {"architecture": "unet", "decoder_channels": [10**8] * 5}},
    "absurd classes": {"classes": 10**9}, "classes of another model": {"classes": 7},
    "an encoder from the "
    "network": {"model": {"architecture": "unet", "encoder": "tu-hf-hub:evil/model"}},
    "an encoder from a folder": {"model": {"architecture": "unet", "encoder": "tu-local-dir:/tmp"}},
    "a resolution of atoms": {"gsd": 1e-9}, "no resolution": {"gsd": float("nan")},
    "no number": {"temperature": "hot"}, "division by zero": {"temperature": 0},
    "bands of another model": {"bands": [1]}, "a list": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from pipeline.networks.models import build_model, save_model
    from pipeline.params import Model

    folder = tmp_path_factory.mktemp("models") / "small"
    save_model(folder, build_model(Model(**CARD["model"]), 3), CARD)
    return folder


def damaged(model: Path, folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(data if file.name == name else file.read_bytes())
    return folder


@pytest.mark.parametrize("what", WRONG)
def test_a_card_is_checked_before_anything_is_built(model, tmp_path, what, monkeypatch):
    from pipeline.networks import models

    monkeypatch.setattr(models, "build_model", lambda *_: pytest.fail("it was built"))
    card = [] if WRONG[what] is None else CARD | WRONG[what]
    folder = damaged(model, tmp_path / "model", "model.json", json.dumps(card).encode())
    with pytest.raises(
        InputError,
        match=r"model\.json: not a model card of this "
        r"pipeline",
    ) as error:
        models.read_model(folder)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"1" * 10_000, b"null"])
def test_a_card_that_is_no_card(model, tmp_path, data):
    from pipeline.networks.models import read_model

    with pytest.raises(InputError, match=r"model\.json: .*model card"):
        read_model(damaged(model, tmp_path / "model", "model.json", data))


HEADERS = {
    "a header of 2⁶² bytes": struct.pack("<Q", 2**62) + b"{}",
    "a tensor of 10¹² numbers": json.dumps(
        {"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    ),
    "a shape its bytes do not fill": json.dumps(
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}
    ),
    "no header": "no header",
    "half a file": None,
    "nothing": b"",
}


@pytest.mark.parametrize("what", HEADERS)
def test_weights_that_lie_about_their_size(model, tmp_path, what):
    from pipeline.networks.models import read_model

    data = HEADERS[what]
    if data is None:
        data = (model / "weights.safetensors").read_bytes()[:-100]
    elif isinstance(data, str):
        data = struct.pack("<Q", len(data)) + data.encode() + b"\0" * 4
    folder = damaged(model, tmp_path / "model", "weights.safetensors", data)
    with pytest.raises(InputError, match=r"weights\.safetensors: damaged weights"):
        read_model(folder)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
@pytest.mark.parametrize("stage", ["train"], indirect=True)
def test_a_damaged_model_is_trained_again(stage, tree, stages, name):
    """The sentence says so; that the training finds its old model there must
    not keep it from it.
    """
    done = stages["train"].after
    (tree.folder / "models/all").mkdir(parents=True)
    for file in (done / "models/all").iterdir():
        data = file.read_bytes()
        (tree.folder / "models/all" / file.name).write_bytes(
            data[:100] if file.name == name else data
        )
    assert tree.run(stage.arguments) == 0, tree.said
    assert snapshot(tree.folder) == stage.left


@pytest.mark.parametrize("stage", ["train"], indirect=True)
def test_a_damaged_checkpoint_is_as_good_as_none(stage, tree):
    folder = next(
        c.split()[1] for c in stage.changes if ".work/train-all-" in c and c.startswith("os.mkdir")
    )
    work = tree.folder / Path(*[p for p in Path(folder).parts if not p.endswith(".partial")][-2:])
    work.mkdir(parents=True)
    (work / "last.ckpt").write_bytes(b"PK\x03\x04 half a checkpoint")
    assert tree.run(stage.arguments) == 0, tree.said
    assert visible(tree.folder) == visible(stage.after)


# ------------------------------------------------------------------ tiles


def header(shape: tuple, dtype: str = "|u1") -> bytes:
    text = str({"descr": dtype, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + b"\0" * 64


ARRAYS = {
    "10¹² elements": header((10**12,)),
    "10³⁰ elements": header((10**30,)),
    "objects": header((8,), "|O"),
    "floats": header((64 * 64,), "<f8") + b"\0" * 8 * 64 * 64,
    "no header": b"\x93NUMPY",
    "code": b"\x93NUMPY\x01\x00\x20\x00__import__('os').system('true') \n",
    "nothing": b"",
}


@pytest.fixture
def city(tmp_path) -> Path:
    return write_city(tmp_path / "tiles", [("train", *toy_scene(0, 64))], "toyton")


@pytest.mark.parametrize("name", ["images", "labels"])
@pytest.mark.parametrize("what", ARRAYS)
def test_an_array_is_as_long_as_its_file(city, what, name):
    (city / f"{name}.npy").write_bytes(ARRAYS[what])
    with pytest.raises(InputError, match="run the tile stage"):
        CityTiles(city)


REGIONS = {
    "a height below zero": {"height": -64},
    "an offset beyond the array": {"offset": 10**9},
    "an offset before it": {"offset": -1},
    "a height of words": {"height": "tall"},
    "a split of its own": {"split": "secret"},
    "a transform of two": {"transform": [1, 2]},
}


@pytest.mark.parametrize("what", REGIONS)
def test_regions_lie_inside_their_arrays(city, what):
    about = json.loads((city / "regions.json").read_text())
    about["regions"][0] |= REGIONS[what]
    (city / "regions.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="run the tile stage again"):
        CityTiles(city)


@pytest.mark.parametrize(
    "wrong", [{"city": "../../x"}, {"classes": 10**9}, {"gsd": 0}, {"size": 0}, {"regions": {}}]
)
def test_an_index_of_another_kind(city, wrong):
    path = city / "regions.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(InputError, match="run the tile stage again"):
        CityTiles(city)


def test_a_damaged_table_of_tiles(city):
    (city / "tiles.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(InputError, match=r"tiles\.parquet: damaged"):
        CityTiles(city).sample("train", 1)


# ------------------------------------------------------------------ addresses and names


@pytest.mark.parametrize(
    "address",
    [
        "gopher://example.org/a.tif",
        "ftp://example.org/a.tif",
        "dict://localhost:11211/a",
        "zip://a.zip!a.tif",
        "/vsicurl/https://example.org/a.tif",
        "/vsizip//tmp/a.zip/a.tif",
        "WMS:http://example.org",
        "<GDAL_WMS/>",
        "NETCDF:a.nc:b",
        "GTIFF_DIR:1:a.tif",
        "a\0b.tif",
    ],
)
def test_only_files_and_five_schemes_reach_gdal(address, tmp_path, monkeypatch):
    """On the command line, in a list, and in a city.json alike."""
    monkeypatch.setattr(rasterio, "open", lambda *_, **__: pytest.fail("GDAL was asked"))
    write_scenes(tmp_path, City("town", "stranger", []))
    about = json.loads((tmp_path / "city.json").read_text())
    about["scenes"] = [{"name": "a", "image": address}]
    (tmp_path / "city.json").write_text(json.dumps(about))
    with pytest.raises(InputError), open_raster(read_city(tmp_path).scenes[0].image):
        pass
    (tmp_path / "list.txt").write_text(f"{address}\n")
    for given in (address, str(tmp_path / "list.txt")):
        with pytest.raises(InputError):
            for scene in list_scenes([given]).values():
                with open_raster(scene):
                    pass


@pytest.fixture
def listener():
    """A port of this machine that hangs up on whoever calls, and the list of its callers."""
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as waiting:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    call, caller = waiting.accept()
                    calls.append(caller)
                    call.close()

        threading.Thread(target=hang_up, daemon=True).start()
        yield waiting.getsockname()[1], calls
        waiting.shutdown(socket.SHUT_RDWR)


def image(path: Path, **tags) -> Path:
    where = {"crs": "EPSG:32633", "transform": Affine(1, 0, 5e5, 0, -1, 5e6)}
    with rasterio.open(
        path, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8", **where
    ) as file:
        file.write(np.ones((1, 64, 64), np.uint8))
        file.update_tags(ns="OVERVIEWS", **tags)
    return path


def mosaic(path: Path, source: str, more: str = "", within: str = "") -> Path:
    path.write_text(
        f'<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32633</SRS>{more}'
        "<GeoTransform>500000, 1, 0, 5000000, 0, -1</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">'
        f'{source}{within}</SourceFilename><SourceBand>1</SourceBand><SrcRect xOff="0" yOff="0" '
        f'xSize="64" ySize="64"/>'
        '<DstRect xOff="0" yOff="0" xSize="64" '
        'ySize="64"/></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    return path


WMS = (
    "<GDAL_WMS><Service "
    'name="TMS"><ServerUrl>{url}</ServerUrl></Service><DataWindow><UpperLeftX>0</UpperLeftX>'
    "<UpperLeftY>64</UpperLeftY><LowerRightX>64</LowerRightX><LowerRightY>0</LowerRightY><SizeX>64</SizeX>"
    "<SizeY>64</SizeY></DataWindow><BandsCount>1</BandsCount></GDAL_WMS>"
)
OVERVIEWS = '<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{url}</MDI></Metadata>'


def calling_image(folder: Path, kind: str, url: str) -> Path:
    """An image that has GDAL call `url`, were any driver allowed to read it."""
    path = folder / "a.tif"
    match kind:
        case "a mosaic under another name":
            return mosaic(path, url)
        case "a mosaic behind another format's mark":
            mosaic(path, url)
            path.write_bytes(b"\xff\xd8\xff" + path.read_bytes())
            return mosaic(folder / "b.vrt", "a.tif")
        case "a mosaic of addresses":
            return mosaic(folder / "a.vrt", url)
        case "a mosaic of GDAL's paths":
            return mosaic(folder / "a.vrt", "/vsicurl/" + url)
        case "a mosaic in a mosaic":
            mosaic(folder / "b.vrt", url)
            return mosaic(folder / "a.vrt", "b.vrt")
        case "a map service":
            path.write_text(WMS.format(url=url))
        case "a mosaic of a map service":
            path.write_text(WMS.format(url=url))
            return mosaic(folder / "a.vrt", "a.tif")
        case "a name cut by a comment":
            image(folder / "a.tif2")
            path.write_text(WMS.format(url=url))
            return mosaic(folder / "a.vrt", "a.tif", within="<!-- -->2")
        case "overviews in its tags":
            image(path, OVERVIEW_FILE=url)
        case "overviews in a mosaic":
            image(path)
            return mosaic(folder / "a.vrt", "a.tif", more=OVERVIEWS.format(url=url))
        case "overviews in the notes beside it":
            image(path)
            (folder / "a.tif.aux.xml").write_text(
                f"<PAMDataset>{OVERVIEWS.format(url=url)}</PAMDataset>"
            )
        case "overviews beside it":
            mosaic(image(path).with_name("a.tif.ovr"), url)
        case "a mask beside it":
            mosaic(image(path).with_name("a.tif.Msk"), url)
        case "a mask in capitals beside it":
            mosaic(image(path).with_name("A.TIF.MSK"), url)
    return path


IMAGES = [
    "a mosaic under another name", "a mosaic behind another format's mark", "a mosaic of addresses",
    "a mosaic of GDAL's paths", "a mosaic in a mosaic", "a map service",
    "a mosaic of a map service", "a name cut by a comment", "overviews in its tags",
    "overviews in a mosaic", "overviews in the notes beside it", "overviews beside it",
    "a mask beside it", "a mask in capitals beside it",
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["http", "ftp"])
@pytest.mark.parametrize("kind", IMAGES)
def test_no_image_makes_a_call(tmp_path, listener, kind, scheme):
    port, calls = listener
    path = calling_image(tmp_path, kind, f"{scheme}://127.0.0.1:{port}/x.tif")
    with pytest.raises(InputError, match=path.stem) as error, open_raster(path) as dataset:
        dataset.read(out_shape=(1, 8, 8))
        dataset.read_masks(1)
    assert not calls and len(str(error.value).splitlines()) == 1


def test_a_mosaic_of_files_is_an_image(tmp_path):
    image(tmp_path / "a.tif"), mosaic(tmp_path / "b.vrt", "a.tif")
    with open_raster(mosaic(tmp_path / "c.vrt", "b.vrt")) as dataset:
        assert dataset.read().all()
    for text in ("c.vrt", "missing.tif"):
        with (
            pytest.raises(InputError, match="mosaic"),
            open_raster(mosaic(tmp_path / "c.vrt", text)),
        ):
            pass


def test_a_virtual_raster_that_is_no_mosaic_is_not_called_damaged(tmp_path):
    image(tmp_path / "a.tif")
    path = mosaic(tmp_path / "b.vrt", "a.tif")
    path.write_text(path.read_text().replace(" raster", ' subClass="VRTWarpedDataset" raster', 1))
    with pytest.raises(InputError) as refused, open_raster(path):
        pass
    assert str(refused.value) == (
        f"{path}: holds subClass; of virtual rasters only mosaics are taken, as gdalbuildvrt "
        "writes them: write it out as a GeoTIFF"
    )
    path.write_bytes(b"<VRTDataset>\xff</VRTDataset>")
    with pytest.raises(InputError, match="it is no XML"), open_raster(path):
        pass


def test_what_lies_beside_an_image_is_looked_at_by_its_whole_name(tmp_path):
    """`city2.aux` is no part of `city.tif`; `city.aux`, of LaTeX say, is taken for one by GDAL."""
    path = image(tmp_path / "city.tif")
    for name in ("city2.aux", "city-old.ovr"):
        (tmp_path / name).write_text("\\relax")
    with open_raster(path) as dataset:
        assert dataset.read().all()
    (tmp_path / "city.aux").write_text("\\relax")
    with (
        pytest.raises(InputError, match=r"city\.tif: city\.aux beside it .*move city\.aux away"),
        open_raster(path),
    ):
        pass


FOOTPRINTS = {
    "a virtual layer": "<OGRVRTDataSource><OGRVRTLayer "
    "name='x'><SrcDataSource>{url}</SrcDataSource></OGRVRTLayer>"
    "</OGRVRTDataSource>",
    "a feature service": "<OGRWFSDataSource><URL>{url}</URL></OGRWFSDataSource>",
    "a command": '{{"type": "gdal_streamed_alg", "command_line": "gdal vector pipeline ! read '
    "{url} ! reproject "
    '--dst-crs EPSG:4326"}}',
}
FOOTPRINTS["a virtual layer in GeoJSON"] = '{{"a": "' + FOOTPRINTS["a virtual layer"] + '"}}'


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "zipped"])
@pytest.mark.parametrize("kind", FOOTPRINTS)
def test_no_footprints_make_a_call(tmp_path, listener, kind, packed):
    port, calls = listener
    text = FOOTPRINTS[kind].format(url=f"http://127.0.0.1:{port}/x.geojson")
    path = tmp_path / ("a.zip" if packed else "a.geojson")
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.geojson", text)
    else:
        path.write_text(text)
    with pytest.raises(InputError, match=path.name):
        read_footprints(path)
    assert not calls


def test_lists_that_are_none(tmp_path):
    (tmp_path / "itself.txt").write_text("itself.txt\n")
    (tmp_path / "bytes.txt").write_bytes(bytes(range(256)))
    for argument in (
        str(tmp_path / "itself.txt"),
        str(tmp_path / "bytes.txt"),
        "x" * 5000,
        "https://example.org/",
    ):
        with pytest.raises(InputError):
            list_scenes([argument])


@pytest.mark.parametrize(
    "address", ["https://example.org/..%2f..%2fevil.tif", "https://example.org/%2e%2e/a.tif"]
)
def test_names_of_maps_stay_in_their_folder(address):
    for name in list_scenes([address]):
        assert "/" not in name and name not in {"", ".", ".."}


@pytest.mark.parametrize("stage", ["predict"], indirect=True)
def test_a_record_from_elsewhere_deletes_nothing(stage, tree):
    (tree.folder / "maps").mkdir()
    precious = tree.folder / "precious.txt"
    precious.write_text("mine")
    record = {"key": "x", "files": ["../precious.txt", str(precious)]}
    (tree.folder / "maps/brickvale-01.json").write_text(json.dumps(record))
    assert tree.run(stage.arguments) == 0, tree.said
    assert precious.read_text() == "mine"
    precious.unlink()
    assert snapshot(tree.folder) == stage.left


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"city": 3}', b"[" * 200_000, b"\xff"])
def test_a_damaged_city(tmp_path, data):
    (tmp_path / "city.json").write_bytes(data)
    with pytest.raises(InputError, match=r"city\.json: damaged .*run the fetch stage") as error:
        read_city(tmp_path)
    assert len(str(error.value).splitlines()) == 1


# ------------------------------------------------------------------ damage between stages


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


SPOILS = (cut, noise, Path.unlink)  # a scene's image meets all three, other files one, in turns
DAMAGE = {
    "tile": [
        "data/scenes/brickvale/city.json",
        "data/scenes/duskholm/footprints.fgb",
        "data/scenes/duskholm/images/duskholm-01.tif",
    ],
    "train": ["data/tiles/duskholm/images.npy", "data/tiles/brickvale/regions.json"],
    "evaluate": ["models/all/weights.safetensors", "data/tiles/duskholm/labels.npy"],
    "attack": ["models/all/model.json", "data/tiles/duskholm/tiles.parquet"],
    "certify": ["models/all/model.json", "data/tiles/duskholm/labels.npy"],
    "generalize": [
        "models/folds/without-brickvale/weights.safetensors",
        "models/folds/without-duskholm/model.json",
    ],
    "report": [
        "metrics/evaluate.json",
        "data/tiles/duskholm/regions.json",
        "data/scenes/brickvale/city.json",
    ],
    "predict": ["data/scenes/brickvale/images/brickvale-01.tif", "models/all/weights.safetensors"],
}


@each(DAMAGE)
def test_damaged_or_missing_it_is_named_and_nothing_is_half_done(stage, tree, request):
    before, after, verb = visible(tree.folder), visible(stage.after), request.node.callspec.id
    # predict asks for no section but its own
    names = ["tiny.yaml"] * (verb != "predict") + DAMAGE[verb]
    spoils = [(name, SPOILS[i % 3]) for i, name in enumerate(names)]
    spoils += [
        (name, spoil)
        for name in names
        if "images/" in name
        for spoil in SPOILS
        if (name, spoil) not in spoils
    ]
    for name, spoil in spoils:
        path = tree.folder / name
        kept = path.read_bytes()
        spoil(path)
        code = tree.run(stage.arguments)
        optional = not path.exists() and (
            verb == "report" or verb == "predict" and "images/" in name
        )
        assert code == (0 if optional else 2), f"{name}, {spoil.__name__}: {tree.said}"
        if not optional:
            words = {Path(name).name, Path(name).stem, Path(name).parent.name}
            assert "Traceback" not in tree.said and any(word in tree.said for word in words), (
                tree.said
            )
        path.write_bytes(kept)
        for known, data in visible(tree.folder).items():
            whole = data in (before.get(known), after.get(known))
            assert whole or optional or known.startswith(("maps/", "report/")), (
                f"{known} after {spoil.__name__} of {name}"
            )
    for left in tree.folder.rglob("*.partial"):
        pytest.fail(f"{left} is left behind")
