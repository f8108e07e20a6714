"""The parts of a sum (cities, folds, scenes): in this process, a process to a few cores, on Ray (an
optional extra), or in an array of jobs.

A part is a function of its name, wherever it is computed: bytes are those of one process of as many
threads on the same kind of processor. Workers see the paths that this process sees.
"""

import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipeline.console import console, progress
from pipeline.errors import InputError
from pipeline.runs import cores
from pipeline.storage import atomic_folder, digest, fingerprint

CORES = "cores"  # where parts run that share this machine's cores
PATIENCE = 10  # seconds for a cluster to answer
RETRIES = 3  # of a part whose worker or machine is lost
RESULT = "result.pickle"  # our own, of this project's working folder
Part = TypeVar("Part")
Result = TypeVar("Result")


def shard_of(parts: list[Part], shard: str | None) -> list[Part]:
    """Of "i/n" every n-th part from the i-th, i from 1; all of them without."""
    if shard is None:
        return parts
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise InputError(f"--shard {shard}: write i/n with 1 ≤ i ≤ n, such as 2/8")
    return parts[int(index) - 1 :: int(count)]


def summands(
    work: Callable[[str, Path], Result],
    names: list[str],
    kept: Path,
    *,
    ray: str | None,
    shard: str | None,
) -> dict[str, Result] | None:
    """`work(name, folder)` of every name, in their order; None of a shard, whose
    parts wait for the whole.

    A part is kept in `kept`/name as it ends, with the files that it has written to its folder:
    interrupted, the rest is done. `kept` bears what a part depends on in its name, and is the
    caller's to remove.
    """
    todo = [name for name in shard_of(names, shard) if not (kept / name / RESULT).exists()]
    for _ in each(partial(_keep, work, kept), todo, ray):
        pass
    if shard:
        console.print(
            f"shard {shard}: {', '.join(shard_of(names, shard)) or 'nothing'} done; "
            f"after the others' the "
            "same command without --shard sums up"
        )
        return None
    try:
        return {name: _Own.read(kept / name / RESULT) for name in names}
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename}: not here; Ray's workers must see this folder, under this path"
        ) from None


def content(*things: object) -> str:
    """16 hexadecimal digits of what files and folders (paths), arrays and
    networks hold, and of plain values.
    """
    return fingerprint([_digest(thing) for thing in things])


def _digest(thing: Any) -> Any:
    if isinstance(thing, Path):
        files = sorted(file for file in [thing, *thing.rglob("*")] if file.is_file())
        return [[str(file.relative_to(thing)), digest(file)] for file in files]
    if hasattr(thing, "state_dict"):
        return [
            str(thing),
            str(getattr(thing, "card", None)),
            *map(_digest, thing.state_dict().values()),
        ]
    if hasattr(thing, "cpu"):
        return _digest(thing.cpu().contiguous().numpy())
    return sha256(thing.tobytes()).hexdigest() if hasattr(thing, "tobytes") else thing


def forget(kept: Path) -> None:
    """Remove what is kept, results first: after a kill in between a part is done again, never
    half of it taken.
    """
    for result in kept.rglob(RESULT):
        result.unlink(missing_ok=True)
    shutil.rmtree(kept, ignore_errors=True)


class _Own(pickle.Unpickler):
    """Reads results of this project's classes and arrays, and calls nothing
    else, whatever the file holds.
    """

    ARRAYS = {"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"}

    @classmethod
    def read(cls, path: Path) -> Any:
        with open(path, "rb") as file:
            return cls(file).load()

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self.ARRAYS:
            return super().find_class(module, name)
        if module.split(".")[0] == "pipeline" and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise InputError(
            f"{module}.{name} in a kept result: not ours; delete .work and run the command again"
        )


def _keep(work: Callable[[str, Path], object], kept: Path, name: str) -> None:
    with atomic_folder(kept / name) as folder:
        result = work(name, folder)
        (folder / RESULT).write_bytes(pickle.dumps(result))


def each(
    work: Callable[[Part], Result],
    parts: Iterable[Part],
    ray: str | None = None,
    *,
    gpu: bool = True,
    lost: Callable[[Part, str], Result] | None = None,
) -> Iterator[tuple[Part, Result]]:
    """Yield (part, work(part)) one after another; with `ray`, CORES, "local" or the address of a
    cluster, as they end.

    There `work` is sent once a worker, so that what it caches serves all parts of a worker. A part
    has a GPU where there are some (unless `gpu` is false) and its share of the cores. One whose
    worker is lost is done again, RETRIES times; then `lost(part, reason)` stands for its result, or
    ends it all. What a worker says is said here.

    Raises what `work` raises, and InputError where Ray is not installed or there is no cluster. A
    cluster stays connected while this process lives.
    """
    parts = list(parts)
    if not parts or ray is None or (ray in {CORES, "local"} and len(parts) == 1) or _at_a_gpu(ray):
        yield from ((part, work(part)) for part in parts)
    elif ray == CORES:
        count = min(len(parts), cores())
        yield from progress(_on_cores(work, parts, count), f"parts, {count} at once", len(parts))
    else:
        yield from progress(
            _on_ray(work, parts, ray, gpu, lost), f"parts on Ray ({ray})", len(parts)
        )


def _at_a_gpu(where: str) -> bool:
    """Whether the cores have nothing to share: the work is the GPU's."""
    if where != CORES:
        return False
    import torch

    return torch.cuda.is_available()


def _on_cores(work, parts: list, count: int) -> Iterator[tuple]:
    """`count` processes at once. Two of a thread each do nearly twice what one of two threads does:
    the layers of a small network are too short to be shared. Such as are left end with this one.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, spawn, _as_worker, (max(1, cores() // count),)) as pool:
        try:
            pending = {pool.submit(_said, work, Path.cwd(), part): part for part in parts}
            for done in as_completed(pending):
                said, result = done.result()
                console.print(said, end="", markup=False, highlight=False)
                yield pending[done], result
        except BrokenProcessPool:
            raise InputError(
                "a process was killed, for want of memory perhaps: run the same command again, "
                "with OMP_NUM_THREADS=1 one part at a time"
            ) from None
        finally:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(cancel_futures=True)  # waits for their ends


def _as_worker(threads: int) -> None:
    """Ctrl-C ends it without a word, and so does its parent's end."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_outlive, args=(multiprocessing.parent_process(),), daemon=True).start()


def _outlive(parent) -> None:
    parent.join()
    os._exit(1)


def _on_ray(work, parts: list, address: str, gpu: bool, lost) -> Iterator[tuple]:
    ray = _connected(address)
    from ray.exceptions import RayError, RayTaskError

    here = Path.cwd()

    @ray.remote(max_retries=RETRIES, **_resources(ray, len(parts), gpu))
    def there(part):
        return _said(work, here, part)

    pending = {there.remote(part): part for part in parts}
    try:
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            part = pending.pop(ready)
            try:
                said, result = ray.get(ready)
            except RayTaskError as error:
                raise error.cause or error from None
            except RayError as error:  # its worker died, its machine was lost, each time
                reason = " ".join(str(error).split())
                if lost is None:
                    raise InputError(
                        f"--ray {address}: {part}: {reason}; run the same command again"
                    ) from None
                said, result = "", lost(part, reason)
            console.print(said, end="")
            yield part, result
    finally:
        for left in pending:
            ray.cancel(left, force=True)


def _said(work, here: Path, part) -> tuple[str, object]:
    """In a worker: its result, and what it has to say."""
    if here.is_dir():
        os.chdir(here)
    with console.capture() as said:
        result = work(part)
    return said.get(), result


def _resources(ray, parts: int, gpu: bool) -> dict:
    """What each of so many parts asks of the cluster: a GPU, and as many threads as
    leave room for all at once.

    OMP_NUM_THREADS, where it is less than this machine's cores, is the most: who
    states it wants its bytes.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) if gpu else 0
    room = [(int(n.get("CPU", 0)), int(n.get("GPU", 0)) if gpus else parts) for n in nodes]
    at_once, most = min(parts, gpus or parts), max((cpus for cpus, _ in room), default=1)
    fitting = (t for t in range(most, 0, -1) if sum(min(c // t, g) for c, g in room) >= at_once)
    threads, stated = next(fitting, 1), os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdecimal() and 0 < int(stated) < cores():
        threads = min(threads, int(stated))
    environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
    return {"num_cpus": threads, "num_gpus": int(gpus > 0), "runtime_env": environment}


def _connected(address: str):
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray; install the extra: pip install -e '.[ray]'") from None
    if not ray.is_initialized():
        _check(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own: dict[str, Any] = (
            {"num_cpus": cores(), "include_dashboard": False} if address == "local" else {}
        )
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"--ray {address}: no cluster to be had ({' '.join(str(error).split())})"
            ) from None
    return ray


def _check(address: str) -> None:
    """Ray itself tries for minutes."""
    if address in {"local", "auto"}:
        return
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        socket.create_connection((place.hostname, place.port), PATIENCE).close()
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--ray {address}: nothing answers there ({error}); give HOST:PORT of a cluster's "
            f"head, or local"
        ) from None
