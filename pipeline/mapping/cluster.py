"""The same function on an engine that exists already: Ray, the optional extra."""

import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import torch

from pipeline.errors import InputError
from pipeline.mapping.inputs import Task

PATIENCE = 10  # seconds for a cluster to answer


def on_ray(attempt: Callable, model: str, tasks: list[Task], address: str) -> Iterator[tuple]:
    """Yield (task, *attempt(model, task)) as they end; `address` of a cluster, or "local" for one of this machine.

    Workers have other working folders: paths are absolute. Raises InputError where Ray is not installed or there is
    no cluster.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise InputError("--ray needs Ray; install the extra: pip install -e '.[ray]'") from None
    _check(address)
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}: no cluster to be had ({' '.join(str(error).split())})") from None
    try:
        remote = ray.remote(num_gpus=1 if torch.cuda.is_available() else 0)(attempt)
        pending = {remote.remote(model, task): task for task in tasks}
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            try:
                result = ray.get(ready)
            except RayTaskError:
                raise
            except RayError as error:  # its worker died, its machine was lost
                result = None, f"{pending[ready].scene}: {' '.join(str(error).split())}"
            yield pending.pop(ready), *result
    finally:
        ray.shutdown()


def _check(address: str) -> None:
    """Ray itself tries for minutes."""
    if address in {"local", "auto"}:
        return
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        socket.create_connection((place.hostname, place.port), PATIENCE).close()
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--ray {address}: nothing answers there ({error}); give HOST:PORT of a cluster's head, or local"
        ) from None
