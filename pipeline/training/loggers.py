"""Who else is told of a training: Lightning's own loggers, each imported only where
`train.loggers` names it.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import InputError

LOGS = Path("logs")
# any of which Lightning writes with
WRITERS = {"csv": ("csv",), "tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}


def check_installed(names: Sequence[str]) -> None:
    """Raise InputError where one of these loggers is not installed; none is imported."""
    for name in names:
        if not any(map(find_spec, WRITERS[name])):
            raise _absent(name)


def loggers(names: Sequence[str], run: str) -> list:
    """Lightning's loggers of these names, in folders of their own under LOGS.

    Raises InputError where one is not installed.
    """
    return [_logger(name, run) for name in names]


def _logger(name: str, run: str):
    from lightning.pytorch import loggers

    try:
        match name:
            case "csv":
                return loggers.CSVLogger(LOGS / name, name=run)
            case "tensorboard":
                return loggers.TensorBoardLogger(LOGS / name, name=run, default_hp_metric=False)
            case "mlflow":
                return loggers.MLFlowLogger("buildings", run_name=run, save_dir=str(LOGS / name))
    except ModuleNotFoundError:
        raise _absent(name) from None


def _absent(name: str) -> InputError:
    package = {"mlflow": "mlflow-skinny"}.get(name, name)
    return InputError(
        f"train.loggers: {name} is not installed; pip install {package}, or leave it out"
    )


def tell(trainer, record: dict) -> None:
    """Log an epoch of the learning curve; what is null (no building in validation) is left out."""
    known = {key: value for key, value in record.items() if value is not None and key != "epoch"}
    for logger in trainer.loggers:
        logger.log_metrics(known, step=record["epoch"])
        logger.save()
