"""Maps published into an object store: the files first, the record last, as
`publishing` does on a disk.

Objects cannot be renamed, and each appears whole: until the record is there, a scene is unfinished.
What predict put there carries the fingerprint of its content as a note; an object without one, or
with another than its record tells, is somebody else's and stays.
"""

import json
from pathlib import Path

from pipeline import bucket
from pipeline.errors import InputError

NOTE = "predict-content"


def finished(out: str, name: str, key: str, names: list[str]) -> dict | None:
    """The record of a map that is there already, of this key and these files,
    none of which was changed since.
    """
    found = _record(out, name)
    if not found or (found["key"], sorted(found["files"])) != (key, sorted(names)):
        return None
    held = {file: bucket.about(bucket.join(out, file)) for file in names}
    whole = all(
        about and about["notes"].get(NOTE) == found["files"][file] for file, about in held.items()
    )
    return found if whole else None


def check_replaceable(out: str, name: str, names: list[str]) -> None:
    """Raise InputError where an object of a map's name is not predict's."""
    for file in [*names, f"{name}.json"]:
        about = bucket.about(bucket.join(out, file))
        if about and NOTE not in about["notes"]:
            raise InputError(
                f"{bucket.join(out, file)}: would be overwritten, and predict did not write it; "
                f"move it, or choose "
                "another --out"
            )


def publish(partial: Path, out: str, name: str, found: dict) -> None:
    """Put the files of `found`, which lie in `partial`, and then its record; what an older map
    had more of goes.
    """
    before = _record(out, name) or {"files": {}}
    for file, content in found["files"].items():
        bucket.write(bucket.join(out, file), partial / file, {NOTE: content})
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    bucket.write(bucket.join(out, f"{name}.json"), text.encode(), {NOTE: "record"})
    for file in before["files"].keys() - found["files"].keys():
        if file.startswith(f"{name}.") and "/" not in file:
            bucket.remove(bucket.join(out, file))


def _record(out: str, name: str) -> dict | None:
    text = bucket.read(bucket.join(out, f"{name}.json"))
    try:
        found = json.loads(text) if text else None
        return (
            found
            if found and isinstance(found["files"], dict) and isinstance(found["key"], str)
            else None
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
