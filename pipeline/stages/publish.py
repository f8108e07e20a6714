"""Verb publish: a model into a bucket, for predict and evaluate on other machines.

Its card is put last, and until it is there nobody finds a model. What is published never changes:
another model takes another address, so that shards which run for days map with one.
"""

from pathlib import Path

from pipeline import bucket
from pipeline.bucket import is_object
from pipeline.cluster import content
from pipeline.console import console
from pipeline.errors import InputError
from pipeline.networks.card import read_card
from pipeline.networks.models import weights_file

NOTE = "model-content"
CARD = "model.json"


def run(model: Path, to: str) -> None:
    """Put the files of a model folder to s3://BUCKET/FOLDER; those that an earlier run has put
    stay. Raises InputError: no model, no address, another model or another's file is there.
    """
    if not is_object(to):
        raise InputError(f"{to}: publish writes to s3://BUCKET/FOLDER; copy the folder elsewhere")
    read_card(model)
    if not weights_file(str(model)).is_file():
        raise InputError(f"{model}: holds no weights.safetensors; train a model first")
    files = [file for file in sorted(model.iterdir()) if file.is_file() and file.name[0] != "."]
    names = {file.name for file in files}
    note = content(*(part for file in files for part in (file.name, file)))
    held = {name: _note(bucket.join(to, name)) for name in names | {*bucket.names(to)}}
    _check_place(to, held, note)
    for name in held.keys() - names:
        bucket.remove(bucket.join(to, name))
    for name in sorted(names, key=lambda name: (name == CARD, name)):
        if held[name] != note:
            bucket.write(bucket.join(to, name), model / name, {NOTE: note})
    console.print(f"published {model} as {to}: {len(names)} files")


def _note(url: str) -> str | None:
    """Of which model an object is a file; nothing of an object that publish did not put, None
    where there is none.
    """
    about = bucket.about(url)
    return about["notes"].get(NOTE, "") if about else None


def _check_place(to: str, held: dict[str, str | None], note: str) -> None:
    """Raise InputError unless all that is there is publish's own, unfinished or this model's."""
    if others := sorted(name for name, found in held.items() if found == ""):
        raise InputError(f"{to}: holds {others[0]}, which publish did not put; choose another")
    if held[CARD] not in (None, note):
        raise InputError(
            f"{to}: holds another model, and what is published does not change; choose another "
            f"address, such as {to.rstrip('/')}-2"
        )
