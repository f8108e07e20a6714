"""Writing that a kill cannot half-do: a temporary name, then a rename."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

WORK = Path(".work")  # unfinished runs and caches: gone, they cost time only
LARGEST_JSON = 2**28  # bytes; metrics, cards and lists of regions are a thousandth of it


@contextmanager
def scratch(path: str | Path) -> Generator[Path]:
    """Yield an empty temporary folder beside `path`, gone afterwards; those that killed runs left
    are swept first.

    The folder is locked while its process lives, so that two runs side by side
    never sweep each other's.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    folder, handle = _claim(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep(parent: Path, name: str | None = None) -> None:
    """Remove the temporary folders that killed runs left in a folder, of one
    name's writing or of all.
    """
    for left in parent.glob(f".{'*' if name is None else glob.escape(name)}.????????.partial"):
        with suppress(OSError):
            handle = _lock(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)


def _claim(path: Path) -> tuple[Path, int]:
    """A new folder beside `path` and its lock. Before it is locked another run may sweep it:
    then one more is made.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        with suppress(FileNotFoundError, BlockingIOError):
            folder.chmod(0o755)
            handle = _lock(folder)
            if folder.exists():
                return folder, handle
            os.close(handle)


def _lock(folder: Path) -> int:
    """A handle; the lock goes with it, or with its process. Raises OSError where another
    process holds the lock.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a network file system without such locks
        pass
    return handle


@contextmanager
def atomic_file(path: str | Path) -> Generator[Path]:
    """Yield a temporary path of the same suffix; on success it takes the name `path`, on
    failure it vanishes.
    """
    path = Path(path)
    with scratch(path) as folder:
        yield folder / path.name
        os.replace(folder / path.name, path)


@contextmanager
def atomic_folder(path: str | Path) -> Generator[Path]:
    """Yield an empty temporary folder; on success it takes the name `path`, on
    failure it vanishes.
    """
    path = Path(path)
    with scratch(path) as folder:
        yield folder
        while True:
            try:
                return os.replace(folder, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # deleting in its place could be cut short
            with scratch(path) as old, suppress(FileNotFoundError):
                os.replace(path, old)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises OSError, and ValueError where it is not JSON or
    absurdly long or deep.
    """
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


def digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that change when any part (JSON-able) changes."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
