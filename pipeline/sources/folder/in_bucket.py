"""A city of a bucket, brought beside the work: every object a file of its own name, whole, once.

WORK/s3/BUCKET/…/CITY mirrors s3://BUCKET/…/CITY. A journal beside it notes each object as it
arrives, with its etag: after a kill the rest is brought, an object that has changed is brought
again, the file of one that is gone goes.
"""

import json
from collections.abc import Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from threading import Lock

from filelock import FileLock

from pipeline import bucket
from pipeline.bucket import SCHEME, Object
from pipeline.errors import InputError
from pipeline.sources.download import byte_bar, ensure_free
from pipeline.storage import atomic_file

AT_ONCE = 8  # objects; a large one comes in several parts at once besides


def bring(url: str, work: Path, parts: Collection[str]) -> Path:
    """The folder under `work` with what lies in s3://BUCKET/…/CITY itself and in its folders
    `parts`; hidden objects stay.

    Raises InputError: the store refuses, a name that no file can have, no space on the disk.
    """
    place = work.resolve() / "s3" / url[len(SCHEME) :]
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(f".{place.name}.lock")):
        wanted = [found for found in bucket.objects(url) if _belongs(found.name, parts)]
        _check_names(url, [found.name for found in wanted])
        journal = place.with_name(f".{place.name}.objects")
        noted = _noted(journal)
        here = {found for found in wanted if found in noted and _whole(place, found)}
        with atomic_file(journal) as partial:
            partial.write_text("".join(map(_line, here)), encoding="utf-8")
        _clear(place, {place / found.name for found in here})
        _bring_all(url, place, [found for found in wanted if found not in here], journal)
    return place


@contextmanager
def as_there(place: Path, url: str) -> Generator[None]:
    """A sentence about what was brought becomes one about the user's objects."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(place), url)) from None


def _belongs(name: str, parts: Collection[str]) -> bool:
    first, *rest = name.split("/")
    hidden = any(part.startswith(".") for part in (first, *rest))
    return not hidden and (not rest or first in parts or first.lower().endswith(".gdb"))


def _check_names(url: str, names: list[str]) -> None:
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for name in names:
        if "" in name.split("/") or name in folders:
            raise InputError(
                f"{url}/{name}: no file can be called so, with nothing between two slashes or as "
                f"a folder beside it; rename the object"
            )


def _noted(journal: Path) -> set[Object]:
    """The objects that have arrived; the last line of a killed run may be cut short."""
    noted = set()
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
        with suppress(ValueError, TypeError):
            noted.add(Object(*json.loads(line)))
    return noted


def _line(found: Object) -> str:
    return json.dumps([found.name, found.etag, found.size]) + "\n"


def _whole(place: Path, found: Object) -> bool:
    path = place / found.name
    return path.is_file() and path.stat().st_size == found.size


def _clear(place: Path, kept: set[Path]) -> None:
    """Remove every other file, and the folders that are empty then."""
    for path in sorted(place.rglob("*"), reverse=True):  # what is in a folder before the folder
        if not path.is_dir():
            if path not in kept:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def _bring_all(url: str, place: Path, missing: list[Object], journal: Path) -> None:
    total, noting = sum(found.size for found in missing), Lock()
    ensure_free(place, total, f"bringing {url}")
    with (
        journal.open("a", encoding="utf-8") as notes,
        byte_bar(f"bringing {place.name}", total, show=bool(missing)) as advance,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):

        def bring_one(found: Object) -> None:
            bucket.download(bucket.join(url, found.name), place / found.name, advance)
            with noting:
                notes.write(_line(found))
                notes.flush()

        for _ in pool.map(bring_one, missing):  # where one fails, those not yet begun are not
            pass
