"""Predict against its limits, as ratios measured in one run.

    python -m benchmarks.predict throughput | memory | wide | shards | empty | dense

throughput   bare forward passes of the same windows, of the network as it is trained / the whole command, which
             folds its batch norms, U-Net ResNet-18
memory       peak memory of a cheap model: a scene / one 16 times as high
wide         2 GB / peak memory of a virtual scene of 100,000 × 20,000 pixels, and of one of 100,000 × 1,000 with every
             layer; minutes
shards       one process on one core / two on one each, as of two machines: alone it would trace on the second
empty        bare forward passes of all windows / the command that skips what a glance sees nothing in, 5 % of the
dense        scene built, and all of it; the demo's U-Net on EfficientNet-lite0, a glance that is given
"""

import json
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from benchmarks.ratio import arguments_of, cannot, medians, report

GSD, ROUNDS = 0.5, 5
LIMIT = 2048  # MB
CARD = {
    "bands": [1, 2, 3],
    "channels": 3,
    "classes": 1,
    "gsd": GSD,
    "threshold": 0.5,
    "temperature": 1.0,
}


def write_town(path: Path, height: int, width: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    image = np.repeat(rng.integers(60, 180, (1, height, width), dtype=np.uint8), 3, axis=0)
    for top, left in rng.integers(0, (height - 40, width - 40), (height * width // 4000, 2)):
        image[:, top : top + rng.integers(10, 40), left : left + rng.integers(10, 40)] = [
            [[220]],
            [[40]],
            [[40]],
        ]
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8",
        "tiled": True, "compress": "deflate", "crs": "EPSG:32632",
        "transform": Affine(GSD, 0, 5e5, 0, -GSD, 5e6),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(image)
    return path


def write_virtual(path: Path, tile: Path, down: int, across: int) -> Path:
    """A VRT that repeats `tile`: as large as wanted, nothing on disk."""
    with rasterio.open(tile) as file:
        (height, width), transform, crs = file.shape, file.transform, file.crs.to_wkt()
    bands = ""
    for band in (1, 2, 3):
        sources = "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="0">{tile}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
            f'<DstRect xOff="{x * width}" yOff="{y * height}" xSize="{width}" ySize="{height}"/>'
            "</SimpleSource>"
            for y in range(down) for x in range(across)
        )  # fmt: skip
        bands += f'<VRTRasterBand dataType="Byte" band="{band}">{sources}</VRTRasterBand>'
    path.write_text(
        f'<VRTDataset rasterXSize="{across * width}" rasterYSize="{down * height}"><SRS>{crs}</SRS>'
        f"<GeoTransform>{', '.join(map(str, transform.to_gdal()))}</GeoTransform>{bands}</VRTDataset>"
    )
    return path


def write_model(folder: Path, architecture: str, town: tuple[Path, Path] | None = None) -> Path:
    """An untrained model, but for `town`: an image and its labels, of which it
    learns enough to map buildings.
    """
    import torch

    from benchmarks.peers import teach
    from pipeline.networks.models import build_model, save_model
    from pipeline.params import Model

    torch.manual_seed(0)
    description = Model(architecture=architecture)
    segmenter = build_model(description, 3)
    if architecture == "linear":  # red roofs
        with torch.no_grad():
            segmenter.network.weight[:] = torch.tensor([[0, 0, 0], [20.0, -10, -10]])[
                ..., None, None
            ]
            segmenter.network.bias[:] = torch.tensor([0.0, -4])
    if town:
        teach(segmenter, *town)
    save_model(folder, segmenter, {**CARD, "model": description.model_dump()})
    return folder


def apart(function, *arguments) -> dict:
    """`function`'s answer and peak memory, MB, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    answer = ours.recv()
    process.join()
    return answer


def _answer(pipe, function, arguments) -> None:
    value = function(*arguments)
    pipe.send(
        {"value": value, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    )


def command(
    model: Path, scenes: list[str], out: Path, shard: str | None = None, core: int | None = None,
    layers: bool = False, skip: bool = False,
) -> float:  # fmt: skip
    """Seconds of the whole command, imports left out; `core`: the only one it may use; `layers`:
    with probabilities and uncertainty.
    """
    import torch

    from pipeline.params import Predict
    from pipeline.stages.predict import run

    if core is not None:
        os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
    begun = time.perf_counter()
    run(
        model,
        scenes,
        out,
        shard=shard,
        settings=Predict(probability=layers, uncertainty=layers, skip_empty=skip),
    )
    return time.perf_counter() - begun


def forward_only(model: Path, scene: str) -> float:
    """Seconds of the same forward passes over pixels in memory, nothing blended or written."""
    import torch

    from pipeline.imagery.raster import open_image
    from pipeline.networks.models import read_model
    from pipeline.networks.precision import autocast, device
    from pipeline.params import Predict
    from pipeline.scoring.inference import window_starts
    from pipeline.tiles.tensors import to_float

    settings, segmenter = Predict(), read_model(model, device())
    with open_image(scene, [1, 2, 3], GSD) as raster:
        image = torch.from_numpy(raster[:])
    rows, columns = (
        window_starts(n, settings.window, settings.overlap, segmenter.stride)
        for n in image.shape[:2]
    )
    on, size = next(segmenter.buffers()).device, settings.window
    # of a CPU two at once: the caches hold their activations
    count = min(settings.batch_size, 2) if on.type == "cpu" else settings.batch_size
    begun = time.perf_counter()
    with torch.inference_mode():
        for top in rows:
            for start in range(0, len(columns), count):
                lefts = columns[start : start + count]
                batch = torch.stack(
                    [image[top : top + size, left : left + size] for left in lefts]
                ).to(on)
                with autocast(on):
                    segmenter(to_float(batch)).float().softmax(1)
        if on.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - begun


def throughput(folder: Path, side: int = 3072) -> None:
    import torch

    from benchmarks.peers import write_scene

    side = 20_000 if torch.cuda.is_available() else side
    tile, labels = write_scene(folder, "town", side // 4, 0)
    # an untrained one's speckles cost more to trace
    model = write_model(folder / "unet", "unet", (tile, labels))
    scene = write_virtual(folder / "scene.vrt", tile, 4, 4)
    with torch.inference_mode():
        command(model, [str(tile)], folder / "warm")
    pairs = [
        (forward_only(model, str(scene)), command(model, [str(scene)], folder / f"out{i}"))
        for i in range(ROUNDS)
    ]
    bare, whole, ratio = medians(pairs)
    measured = f"{side}²: {bare:.1f} and {whole:.1f} s, {side**2 / 1e6 / whole:.2f} Mpx/s"
    report("bare forward passes / predict command", ratio, 0.95, measured)


def memory(folder: Path) -> None:
    model, tile = (
        write_model(folder / "linear", "linear"),
        write_town(folder / "town.tif", 2000, 2000),
    )
    found = {}
    for name, down, across in (("1x", 1, 4), ("4x", 4, 4), ("16x", 16, 4)):
        scene = write_virtual(folder / f"{name}.vrt", tile, down, across)
        answer = apart(command, model, [str(scene)], folder / "out")
        found[name] = answer["peak_mb"]
        print(f"{name}: {answer['peak_mb']} MB, {answer['value']:.1f} s", flush=True)
    measured = f"{found['1x']} and {found['16x']} MB"
    report(
        "predict's peak memory, a scene / one 16 times as high",
        found["1x"] / found["16x"],
        0.9,
        measured,
    )


def wide(folder: Path) -> None:
    model, tile = (
        write_model(folder / "linear", "linear"),
        write_town(folder / "town.tif", 1000, 1000),
    )
    peaks = []
    for down, layers in ((1, True), (20, False)):
        scene = write_virtual(folder / f"{down}.vrt", tile, down, 100)
        answer = apart(command, model, [str(scene)], folder / "out", None, None, layers)
        peaks.append(answer["peak_mb"])
        print(
            f"100,000 × {down},000: {peaks[-1]} MB of {LIMIT}, {answer['value']:.1f} s", flush=True
        )
    measured = f"{peaks[1]} MB; with every layer {peaks[0]} MB"
    report("2 GB / predict's peak memory, 100,000 × 20,000 pixels", LIMIT / max(peaks), 1, measured)


def shards(folder: Path, scenes: int = 8) -> None:
    from benchmarks.peers import write_scene

    what, goal = "predict, one process / two shards", 1.85
    if len(cores := sorted(os.sched_getaffinity(0))) < 2:
        cannot(what, goal, "one core")
    towns = [write_scene(folder, f"town{i}", 1500, i) for i in range(scenes)]
    model, names = write_model(folder / "unet", "unet", towns[0]), [str(town) for town, _ in towns]

    def mapped(out: Path, shard: str | None = None, core: int = cores[0]) -> float:
        return apart(command, model, names, out, shard, core)["value"]

    pairs = []
    for turn in range(ROUNDS):
        alone, both = folder / f"one{turn}", folder / f"two{turn}"
        with ThreadPoolExecutor(2) as pool:
            pairs.append(
                (mapped(alone), max(pool.map(partial(mapped, both), ("1/2", "2/2"), cores)))
            )
    same = all((both / p.name).read_bytes() == p.read_bytes() for p in alone.iterdir())
    one, two, ratio = medians(pairs)
    measured = f"{one:.1f} and {two:.1f} s, {'the same' if same else 'DIFFERENT'} bytes"
    report(what, ratio, goal, measured)


def skipping(folder: Path, share: float, goal: float, side: int = 5000) -> None:
    """`share` of the scene is a bright town, the rest dark ground."""
    import torch

    from benchmarks.peers import teach, write_scene
    from pipeline.networks.models import build_model, save_model
    from pipeline.params import Model
    from tests.toy import bright_glance

    town, labels = write_scene(folder, "town", side // 4, 0)
    torch.manual_seed(0)
    description = Model(
        architecture="unet", encoder="tu-tf_efficientnet_lite0", decoder_channels=[64, 32, 16, 16]
    )
    segmenter, glance = build_model(description, 3), bright_glance()
    teach(segmenter, town, labels)
    glance.threshold.fill_(-0.3)
    card = {**CARD, "model": description.model_dump(), "glance": {"threshold": -0.3}}
    save_model(model := folder / "lite0", segmenter, card, glance)
    scene = mostly_dark(folder / "scene.tif", town, side, share)
    command(model, [str(town)], folder / "warm", skip=True)
    pairs = [
        (forward_only(model, str(scene)), command(model, [str(scene)], folder / f"{i}", skip=True))
        for i in range(ROUNDS)
    ]
    bare, ours, ratio = medians(pairs)
    skipped = json.loads((folder / "0/scene.json").read_text())["skipped"]
    measured = f"{side}²: {bare:.1f} and {ours:.1f} s, {skipped:.0%} of the windows skipped"
    report(f"bare forward passes / predict that skips, {share:.0%} built", ratio, goal, measured)


def mostly_dark(path: Path, town: Path, side: int, share: float) -> Path:
    with rasterio.open(town) as file:
        tile, profile = file.read(), file.profile
    times = -(-side // tile.shape[1])
    image = np.maximum(np.tile(tile, (1, times, times))[:, :side, :side], 60)
    if share < 1:
        image[:, int(side * share) :] //= 8
    with rasterio.open(path, "w", **(profile | {"height": side, "width": side})) as file:
        file.write(image)
    return path


WAYS = {
    "throughput": throughput,
    "memory": memory,
    "wide": wide,
    "shards": shards,
    "empty": partial(skipping, share=0.05, goal=4),
    "dense": partial(skipping, share=1.0, goal=0.9),
}

if __name__ == "__main__":
    parser = arguments_of(__doc__)
    parser.add_argument("way", choices=WAYS)
    way = WAYS[parser.parse_args().way]
    with tempfile.TemporaryDirectory() as folder:
        way(Path(folder))
