"""The same function on an engine that exists already: Ray, the optional extra."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from pipeline.errors import InputError
from pipeline.prediction.inputs import Task


def on_ray(attempt: Callable, model: str, tasks: list[Task], address: str) -> Iterator[tuple]:
    """Yield (task, *attempt(model, task)) as they end; `address` of a cluster, or "local".

    Raises InputError where Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray; install the extra: pip install 'building-pipeline[ray]'") from None
    ray.init(address=None if address == "local" else address, log_to_driver=False)
    try:
        remote = ray.remote(num_gpus=1 if torch.cuda.is_available() else 0)(attempt)
        pending = {remote.remote(_absolute(model), _elsewhere(task)): task for task in tasks}
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            yield pending.pop(ready), *ray.get(ready)
    finally:
        ray.shutdown()


def _elsewhere(task: Task) -> Task:
    """A worker has another working folder."""
    return replace(task, scene=_absolute(task.scene), out=_absolute(task.out))


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.join(os.getcwd(), path)
