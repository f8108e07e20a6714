"""Which scenes a command line means: files, folders, globs, lists and URLs,
each with a name of its own.
"""

import glob
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline import bucket
from pipeline.bucket import is_object
from pipeline.errors import InputError
from pipeline.imagery.formats import check_address

IMAGES = {".tif", ".tiff", ".vrt", ".jp2", ".jpg", ".jpeg", ".png", ".img"}
LISTS = {".txt", ".lst"}  # one scene a line; blank lines and those that begin with # are skipped


def list_scenes(arguments: list[str]) -> dict[str, str]:
    """Names to paths or URLs, in the order given and without doubles.

    Raises InputError where nothing is found, a URL's scheme is not one of SCHEMES, a list is none
    or names itself, or two scenes share a name.
    """
    try:
        paths = list(
            dict.fromkeys(path for argument in arguments for path in _expand(argument, Path()))
        )
        return dict(zip(_names(paths), paths, strict=True))
    except InputError:
        raise
    # a name no file can have, bytes that are no text, …
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{', '.join(arguments)[:200]}: cannot be read as scenes ({error})"
        ) from None


def _expand(argument: str, base: Path) -> list[str]:
    if argument.startswith("/vsi") or re.match(r"[A-Za-z][\w+.-]*://", argument):
        check_address(argument)
        if is_object(argument) and (within := _in_bucket(argument)) is not None:
            return within
        return [argument] if not argument.lower().startswith("file://") else [_path(argument)]
    path = base / argument
    if path.is_dir():
        found = sorted(
            str(p)
            for p in path.iterdir()
            if p.suffix.lower() in IMAGES and not p.name.startswith(".")
        )
        if not found:
            raise InputError(f"{path}: no images in this folder ({', '.join(sorted(IMAGES))})")
        return found
    if path.suffix.lower() in LISTS and path.is_file():
        return [p for line in _lines(path) for p in _expand(line, path.parent)]
    if not path.exists() and glob.has_magic(argument):
        found = [p for p in _matches(path) if Path(p).is_file()]
        if not found:
            raise InputError(f"{argument}: matches no file")
        return found
    return [str(path)]


def _in_bucket(url: str) -> list[str] | None:
    """The scenes of a folder (s3://BUCKET/FOLDER/) or a list in an object store; None where it
    is a scene itself.
    """
    parent, _, name = url.rpartition("/")
    suffix = Path(name).suffix.lower()
    if suffix in LISTS:
        if (text := bucket.read(url)) is None:
            raise InputError(f"{url}: no such list; correct its address")
        lines = filter(None, (line.strip() for line in text.decode("utf-8-sig").split("\n")))
        scenes = [
            line if "://" in line else bucket.join(parent, line) for line in lines if line[0] != "#"
        ]
        for scene in scenes:
            check_address(scene)
        return scenes
    if suffix:
        return None
    found = [
        bucket.join(url, name) for name in bucket.names(url) if Path(name).suffix.lower() in IMAGES
    ]
    if not found:
        raise InputError(f"{url}: no images in this folder ({', '.join(sorted(IMAGES))})")
    return found


def _lines(path: Path) -> list[str]:
    """A list's scenes: what begins with # is a remark, unless a file beside the
    list is called so.
    """
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n"))
    return [
        line for line in lines if line and (line[0] != "#" or os.path.isfile(path.parent / line))
    ]


def _matches(pattern: Path) -> list[str]:
    """What a glob means; its first folders, as far as they exist, are names and no pattern
    (`maps [old]/*.tif`).
    """
    folder = next(parent for parent in pattern.parents if parent.is_dir())
    found = glob.glob(str(pattern.relative_to(folder)), root_dir=folder, recursive=True)
    return sorted(str(folder / name) for name in found)


def _path(url: str) -> str:
    place = urlsplit(url)
    if place.netloc not in {"", "localhost"}:
        raise InputError(f"{url}: a file's URL has three slashes, file:///folder/scene.tif")
    return unquote(place.path)


def _names(paths: list[str]) -> list[str]:
    """File names without suffix, with as many parent folders before them as it
    takes to tell all apart.
    """
    parts = []
    for path in paths:
        whole = Path(unquote(urlsplit(path).path) if "://" in path else path)
        if not whole.stem or "\0" in str(whole):
            raise InputError(
                f"{path}: has no file's name to call its map by; give another address of it"
            )
        parts.append([p for p in (*whole.parent.parts, whole.stem) if p not in ("/", "..")])
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["-".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    twice = next((path for path, p in zip(paths, parts, strict=True) if parts.count(p) > 1), "")
    if twice:
        raise InputError(
            f"{twice}: another scene has the same name; results would overwrite each "
            f"other, rename one"
        )
    return []
