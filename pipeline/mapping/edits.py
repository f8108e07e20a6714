"""What lies where a map will go: what predict wrote itself, or something a person has changed
since, which stays.

A file's content decides, not its bytes: SQLite rewrites a GeoPackage's header whenever an editor
opens it. What GDAL and SQLite read along with a file (NAME.gpkg-wal, NAME.tif.ovr) would be applied
to its successor.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pipeline.errors import InputError
from pipeline.imagery.sidecars import only_counted

JOURNALS = ("-wal", "-shm", "-journal")  # SQLite's, of an editor that is open or has crashed
LAID_OVER = (".ovr", ".msk")  # pixels that GDAL shows instead of a raster's own
OWN_WORDS = {"Description"}  # our name of a band, which GDAL repeats with its statistics
STEP = 2**20  # bytes read at a time


def content(path: Path) -> str | None:
    """A fingerprint of what a file holds; of a GeoPackage, of its tables' rows. None where
    there is no such file.
    """
    digest = hashlib.sha256()
    try:
        for part in _rows(path) if path.suffix == ".gpkg" else _bytes(path):
            digest.update(part)
    # gone meanwhile; a folder of its name; a database no more
    except (OSError, sqlite3.Error) as error:
        return str(error) if path.exists() else None
    return digest.hexdigest()[:16]


def _bytes(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(STEP), b"")


def _rows(path: Path) -> Iterator[bytes]:
    """Every table, row by row, but SQLite's own and the spatial index: these
    follow from the others.
    """
    with closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    ) as database:
        database.text_factory = bytes
        tables = database.execute(
            "select name, sql from sqlite_master where type = 'table' and name not glob 'sqlite_*' "
            "and name not glob 'rtree_*' order by name"
        )
        for name, definition in tables.fetchall():
            yield repr((name, definition)).encode()
            quoted = name.decode().replace('"', '""')
            for row in database.execute(f'select * from "{quoted}"'):
                yield repr(row).encode()


def check_beside(path: Path) -> None:
    """Raise InputError where something beside `path` would be read along with a
    new file of that name.
    """
    for beside in _beside(path, JOURNALS if path.suffix == ".gpkg" else ()):
        if not path.exists():
            raise InputError(
                f"{beside}: is left of a {path.name} that is gone and would spoil a "
                f"new one; delete it"
            )
        raise InputError(
            f"{path}: is open in an editor such as QGIS, or was when that crashed ({beside.name} "
            f"lies beside it); "
            "close it there, after a crash open and close it once more, then run the same command "
            "again"
        )
    held = notes_of(path)
    notes = [held] if held.exists() and not only_counted(held, OWN_WORDS) else []
    for beside in [*_beside(path, LAID_OVER if path.suffix == ".tif" else ()), *notes]:
        raise InputError(
            f"{beside}: would be read along with the new {path.name}; move or delete it"
        )


def _beside(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return [
        beside for suffix in suffixes if (beside := path.with_name(path.name + suffix)).exists()
    ]


def notes_of(path: Path) -> Path:
    """Where GDAL keeps what it notes of a raster that it may not write to."""
    return path.with_name(f"{path.name}.aux.xml")
