"""Giving a map's files their names, all or none for whoever reads the record; what
a person made or edited stays.

OUT/NAME.json is the record of a finished map, OUT/.NAME.journal that of one whose files are getting
their names. Both hold the files' contents (see `edits.content`), so that a file is known to be as
predict left it.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import InputError
from pipeline.imagery.writer import onto_disk
from pipeline.mapping.edits import check_beside, content, notes_of
from pipeline.storage import read_json, sweep


def finished(record: Path, key: str, names: list[str]) -> dict | None:
    """The record of a map that is there already, of this key and these files."""
    # Another process may be publishing this very map: its journal is gone only when
    # its record is there.
    unfinished, found = _read(_journal(record), record.stem), _read(record, record.stem)
    if not found or (found["key"], sorted(found["files"])) != (key, sorted(names)):
        return None
    if not all(record.with_name(name).exists() for name in names):
        return None
    if unfinished:
        sweep(record.parent, record.name)  # the folder of a run killed on its last step
        _journal(record).unlink(missing_ok=True)
    return found


def replaceable(record: Path, names: list[str]) -> dict[str, str]:
    """The contents, by name, of what a new map of these names replaces: all of it
    as predict left it.

    Raises InputError for a file that is not predict's or was changed since, or that
    an editor has open.
    """
    recorded, notes = record.exists(), _notes(record)
    if recorded and not notes:
        raise _foreign(record)
    paths = [record.with_name(name) for name in sorted(touched(record, names))]
    for path in paths:
        check_beside(path)
    there = {path: found for path in paths if (found := content(path)) is not None}
    own = _own(notes + _notes(record))  # another process may have published meanwhile
    for path, found in there.items():
        if path.name not in own:
            raise _foreign(path)
        if found not in own[path.name]:
            raise _edited(path, known=any(own[path.name]))
    return {path.name: found for path, found in there.items()}


def touched(record: Path, names: Iterable[str]) -> set[str]:
    """The names of the files that a new map of these names overwrites or, where an earlier one
    alone has them, deletes.
    """
    return {*names, *_own(_notes(record))}


def publish(partial: Path, record: Path, found: dict, replaced: dict[str, str]) -> None:
    """Give the files in `partial`, those of `found`, their names, and delete what
    it replaces and has no more.

    Until the record is there the scene is unfinished; what a kill leaves, the journal names.
    """
    journal, files = _journal(record), found["files"]
    _write(partial / journal.name, {"key": "", "files": files, "replaced": replaced})
    _write(partial / record.name, found)
    os.replace(partial / journal.name, journal)
    record.unlink(missing_ok=True)
    for name in files:
        os.replace(partial / name, record.with_name(name))
    for name in replaced.keys() - files.keys():
        record.with_name(name).unlink(missing_ok=True)
    for name in replaced.keys() | files.keys():
        notes_of(record.with_name(name)).unlink(missing_ok=True)
    os.replace(partial / record.name, record)


def forget(record: Path) -> None:
    """Delete the journal of a published map, when nothing else of its making is left."""
    _journal(record).unlink(missing_ok=True)


def _journal(record: Path) -> Path:
    return record.with_name(f".{record.stem}.journal")


def _notes(record: Path) -> list[dict]:
    """What is noted of a map: by an unfinished run, by a finished one."""
    return [notes for path in (_journal(record), record) if (notes := _read(path, record.stem))]


def _own(notes: list[dict]) -> dict[str, set[str]]:
    """The contents that predict is known to have given to each name."""
    own = {}
    for files in (part for found in notes for part in (found["files"], found.get("replaced", {}))):
        for name, held in files.items():
            own.setdefault(name, set()).add(held)
    return own


def _read(path: Path, name: str) -> dict | None:
    """What an earlier run noted, of files that are its own; None where it is
    absent or no record.
    """
    try:
        found = read_json(path)
        parts = {part: found[part] for part in ("files", "replaced") if part in found}
        return {**found, "key": found["key"], "files": {}} | {
            part: _within(name, parts[part]) for part in parts
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _within(name: str, files: dict[str, str] | list[str]) -> dict[str, str]:
    """The files of a map's own; an earlier version listed them without their contents."""
    held = files if isinstance(files, dict) else dict.fromkeys(files, "")
    return {
        file: found
        for file, found in held.items()
        if file.startswith(f"{name}.") and "/" not in file
    }


def _write(path: Path, found: dict) -> None:
    with onto_disk(path):
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _edited(path: Path, known: bool) -> InputError:
    since = (
        "was changed since predict wrote it"
        if known
        else "is of an earlier version, perhaps changed since"
    )
    return InputError(
        f"{path}: {since}, and would be overwritten; rename it to keep what it holds, delete it to "
        f"have it mapped "
        "anew, or choose another --out"
    )


def _foreign(path: Path) -> InputError:
    return InputError(
        f"{path}: would be overwritten, and no record beside it says that predict made it; "
        "move it, or choose another --out"
    )
