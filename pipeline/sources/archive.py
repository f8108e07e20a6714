"""Archives from strangers: only the members asked for, streamed to disk, under
names and size bounds of ours.

Inria's archive is a 7z in volumes that holds one zip that holds the scenes. Both
readers refuse an archive with a member that climbs out of its folder, write a
member only under the name given, and check its CRC.
"""

import errno
import hashlib
import io
import lzma
import os
import re
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path, PurePosixPath

from pipeline.console import progress
from pipeline.errors import InputError
from pipeline.sources.download import CHUNK, byte_bar, ensure_free
from pipeline.storage import atomic_file


class Damaged(InputError):
    """An archive that did not arrive as it was sent: only a new download helps."""


def volumes_of(first: str | Path) -> list[Path]:
    """The volumes NAME.7z.001, NAME.7z.002, … beside the first one, in order.
    Raises InputError at a gap.
    """
    first = Path(first)
    if first.suffix == ".7z":
        return [first]
    stem = first.with_suffix("").name
    numbered = {
        int(path.suffix[1:]): path
        for path in first.parent.iterdir()
        if path.stem == stem and re.fullmatch(r"\.\d{3,4}", path.suffix)
    }
    missing = [
        number for number in range(1, max(numbered, default=1) + 1) if number not in numbered
    ]
    if missing:
        raise InputError(
            f"{first.parent}: volume {stem}.{missing[0]:03} is missing; download it too"
        )
    return [numbered[number] for number in sorted(numbered)]


class Volumes(io.RawIOBase):
    """The volumes of an archive as one read-only file."""

    def __init__(self, paths: Iterable[Path]):
        self.files = [Path(path).open("rb") for path in paths]  # noqa: SIM115 (closed by close)
        self.ends = list(accumulate(os.fstat(file.fileno()).st_size for file in self.files))
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.ends[-1])[whence]
        return self.position

    def readinto(self, buffer) -> int:
        index = bisect_right(self.ends, self.position)
        if index == len(self.files):
            return 0
        self.files[index].seek(self.position - (self.ends[index - 1] if index else 0))
        count = self.files[index].readinto(buffer)
        self.position += count
        return count

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()


class _Sink:
    """A file that py7zr writes a member's bytes to as it decompresses them, hashed on the way."""

    def __init__(self, path: Path, advance: Callable[[int], None]):
        self.file, self.hash, self.advance = path.open("wb"), hashlib.md5(), advance

    def write(self, data: bytes | bytearray) -> int:
        self.hash.update(data)
        self.advance(len(data))
        return self.file.write(data)

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.size()

    def flush(self) -> None:
        self.file.flush()

    def size(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()


def extract_7z(
    volumes: list[Path], member: str, path: Path, *, limit: int, md5: str | None = None
) -> Path:
    """Stream `member` of a 7z archive in one or more volumes to `path`, hashing it
    in the same pass.

    `limit` is the most bytes the member may declare. Raises Damaged: a volume cut or damaged,
    another md5. Raises InputError: no such member, an unsafe name, a member over the limit, no
    space on the disk.
    """
    import py7zr
    from py7zr.io import WriterFactory

    where = volumes[0] if len(volumes) == 1 else f"{volumes[0]} and {len(volumes) - 1} more volumes"
    with io.BufferedReader(Volumes(volumes), CHUNK) as stream, atomic_file(path) as partial:
        try:
            archive = py7zr.SevenZipFile(stream)
            sizes = {info.filename: info.uncompressed for info in archive.list()}
            _check_names(sizes, where)
            size = _size_of(member, sizes, limit, where)
            ensure_free(partial.parent, size, f"unpacking {member}")
            with byte_bar(f"unpacking {member}", size) as advance:
                sink = _Sink(partial, advance)

                class OneFile(WriterFactory):
                    def create(self, filename: str):
                        return sink

                archive.extract(targets=[member], factory=OneFile())
                sink.close()
        except InputError:
            raise
        except OSError as error:
            raise _disk(error, path) from None
        # py7zr meets damage with any of a dozen exceptions, IndexError among them
        except Exception as error:
            raise _damaged(where, error) from None
        if md5 is not None and sink.hash.hexdigest() != md5.lower():
            raise Damaged(
                f"{where}: the md5 of {member} is {sink.hash.hexdigest()} where {md5} is expected, "
                f"so a "
                "volume was damaged on its way; download the volumes again"
            )
    return path


def extract_zip(archive: str | Path, members: dict[str, Path], *, limit: int) -> dict[str, int]:
    """Stream members of a zip to files: `members` maps a member's name to its path.
    Returns their CRC-32.

    `limit` is the most bytes one member may declare. Raises InputError: cut or damaged archive, no
    such member, an unsafe name anywhere in it, a member over the limit, no space on the disk.
    """
    archive = Path(archive)
    try:
        with zipfile.ZipFile(archive) as file:
            sizes = {info.filename: info.file_size for info in file.infolist()}
            _check_names(sizes, archive)
            total = sum(_size_of(member, sizes, limit, archive) for member in members)
            folder = next(iter(members.values()), archive).parent
            ensure_free(folder, total, f"unpacking {len(members)} files of {archive.name}")
            for member, path in progress(
                members.items(), f"unpacking {archive.name}", len(members)
            ):
                with (
                    file.open(member) as source,
                    atomic_file(path) as partial,
                    partial.open("wb") as target,
                ):
                    while chunk := source.read(CHUNK):
                        target.write(chunk)
            return {member: file.getinfo(member).CRC for member in members}
    except InputError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        ValueError,
        RuntimeError,
    ) as error:
        raise _damaged(archive, error) from None
    except OSError as error:
        raise _disk(error, archive) from None


def names_in_zip(archive: str | Path) -> list[str]:
    """The names of all members. Raises InputError for a damaged archive or an unsafe name in it."""
    try:
        with zipfile.ZipFile(archive) as file:
            names = file.namelist()
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise _damaged(archive, error) from None
    _check_names(names, archive)
    return names


def _check_names(names: Iterable[str], where: object) -> None:
    """Refuse the whole archive for one name that leaves its folder: whoever made it meant harm."""
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or parts[:1] == ("/",) or re.match(r"[A-Za-z]:", name):
            raise InputError(
                f"{where}: member {name!r} climbs out of its folder; do not use this archive"
            )


def _size_of(member: str, sizes: dict[str, int], limit: int, where: object) -> int:
    if member not in sizes:
        raise InputError(
            f"{where}: holds no {member}; download the archive again or correct the manifest"
        )
    if sizes[member] > limit:
        raise InputError(
            f"{where}: {member} unpacks to {sizes[member]} bytes where at most {limit} are "
            f"expected; "
            "do not use this archive, or correct the manifest"
        )
    return sizes[member]


def _damaged(where: object, error: Exception) -> Damaged:
    return Damaged(
        f"{where}: cut short or damaged ({type(error).__name__}: {error}); download it again"
    )


def _disk(error: OSError, path: Path) -> Exception:
    if error.errno == errno.ENOSPC:
        return InputError(f"{path.parent}: the disk is full; make space, run again")
    if error.errno == errno.EINVAL:  # an offset in a cut archive that points before its beginning
        return _damaged(path, error)
    return error
