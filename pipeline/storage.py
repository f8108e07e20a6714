"""Writing that a kill cannot half-do: a temporary name, then a rename."""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WORK = Path(".work")  # unfinished runs and caches: gone, they cost time only
LARGEST_JSON = 2**28  # bytes; metrics, cards and lists of regions are a thousandth of it


@contextmanager
def scratch(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, gone afterwards; those that killed runs left are swept first.

    The folder is locked while its process lives, so that two runs side by side never sweep each other's.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.partial"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    folder.chmod(0o755)
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock that dies with its process. Raises OSError where another process holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a network file system without such locks
            pass
        yield
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path of the same suffix; on success it takes the name `path`, on failure it vanishes."""
    path = Path(path)
    with scratch(path) as folder:
        yield folder / path.name
        os.replace(folder / path.name, path)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it takes the name `path`, on failure it vanishes."""
    path = Path(path)
    with scratch(path) as folder:
        yield folder
        if path.is_dir():
            with scratch(path) as old:  # deleting it in its place could be cut short half-way
                os.replace(path, old)
                os.replace(folder, path)
        else:
            os.replace(folder, path)


def read_json(path: str | Path) -> object:
    """The content of a JSON file. Raises OSError, and ValueError where it is not JSON or absurdly long or deep."""
    path = Path(path)
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{size} bytes where at most {LARGEST_JSON} are expected")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested without end") from None


def write_json(path: str | Path, data: object) -> None:
    """Write `data` as indented JSON, atomically. NaN is refused: it is not JSON."""
    text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that change when any part (JSON-able) changes."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
