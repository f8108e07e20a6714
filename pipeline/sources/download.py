"""Files from the network: whole and verified under their final name, or not there at all.

`download` writes to PATH.part and remembers in PATH.part.json which version of the file that is a
part of (ETag or date). After a cut, a kill or a reboot it asks for the rest by HTTP Range, on
condition (If-Range) that the file is still the same; a server that answers with the whole file is
taken at its word. RFC 9110, sections 13.1.5 and 14.
"""

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from filelock import FileLock

from pipeline.console import progress_bar
from pipeline.errors import InputError
from pipeline.storage import write_json

CHUNK = 1 << 20  # bytes
BACKOFF = 1.0  # seconds before the first retry; doubled at every further one
LONGEST_PAUSE = 60.0  # seconds
TIMEOUT = (15, 60)  # seconds to connect, seconds without a byte
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
TRANSIENT_ERRORS = (
    requests.ConnectionError,
    requests.Timeout,
    urllib3.exceptions.HTTPError,  # what the raw stream raises
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)


def download(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    retries: int = 5,
    progress: bool = True,
) -> Path:
    """Bring `url` (http, https or file) to `path`, resuming what an earlier call left in PATH.part.

    `size` (bytes) and `md5` (hexadecimal) are checked before the file takes its name. `retries`
    counts failures in a row that bring no new byte, with exponential back-off between them. A file
    already at `path` that passes the checks is left alone. Two processes that want the same path
    wait for each other. Raises InputError: unknown scheme, HTTP error, a web page in place of the
    file, wrong size or checksum, no space on the disk, or `retries` used up (then PATH.part stays
    for the next call).
    """
    path = Path(path)
    scheme = urlsplit(url).scheme
    if scheme not in {"http", "https", "file"}:
        raise InputError(
            f"{url}: only http, https and file URLs can be downloaded; correct the URL"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists() and not _difference(path, size, md5):
            return path
        part = _Part(path.with_name(f"{path.name}.part"), url, checked=md5 is not None)
        try:
            if scheme == "file":
                _copy(part)
            else:
                _receive_all(part, size, retries, progress)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise InputError(
                    f"{path.parent}: the disk is full; make space, run again"
                ) from None
            raise
        if difference := _difference(part.path, size, md5):
            part.discard()
            raise InputError(
                f"{url}: {difference}; it was removed, run again or correct the manifest"
            )
        os.replace(part.path, path)
        part.discard()
    return path


def ensure_free(folder: str | Path, size: int, purpose: str) -> None:
    """Raise InputError unless the disk that holds `folder` has `size` bytes free."""
    folder = Path(folder)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(
            f"{folder}: {purpose} needs {size / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB "
            f"free; "
            "make space, or move the folder to a larger disk"
        )


@contextmanager
def byte_bar(name: str, total: int | None, done: int = 0, show: bool = True) -> Generator[Callable]:
    """A progress bar in megabytes; yields the function to call with each number of bytes done."""
    with progress_bar() as bar:
        bar.disable = bar.disable or not show
        megabytes: Any = done / 1e6  # Rich declares whole numbers and takes any
        task = bar.add_task(f"{name} (MB)", total=total and total / 1e6, completed=megabytes)
        yield lambda count: bar.advance(task, count / 1e6)


@dataclass
class _Version:
    """Which file a part is a part of."""

    url: str
    validator: str | None = None  # a strong ETag, else the date of the last change
    total: int | None = None  # bytes of the whole file


class _Part:
    """PATH.part, the bytes that are here, and PATH.part.json, the version of
    the file they belong to.
    """

    def __init__(self, path: Path, url: str, checked: bool):
        self.path, self.url = path, url
        self.record = path.with_name(f"{path.name}.json")
        try:
            self.version = _Version(**json.loads(self.record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self.version = _Version(url="")
        # Without a validator only a checksum would notice that the file changed
        # between the two halves.
        if self.version.url != url or not (self.version.validator or checked):
            self.discard()

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def complete(self) -> bool:
        return self.size > 0 and self.size == self.version.total

    def begin(self, version: _Version) -> None:
        """Start again from the first byte."""
        self.discard()
        self.version = version
        write_json(self.record, asdict(version))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)
        self.version = _Version(url="")


class _Retry(Exception):
    """This attempt failed, the next may not; `pause` is what the server asked for, in seconds."""

    def __init__(self, reason: str, pause: float = 0):
        super().__init__(reason)
        self.pause = pause


def _receive_all(part: _Part, size: int | None, retries: int, progress: bool) -> None:
    failures, furthest = 0, part.size
    while not part.complete:  # it is at once, after a kill between the last byte and the rename
        try:
            return _receive(part, size, progress)
        except requests.exceptions.SSLError as error:
            raise InputError(
                f"{part.url}: no secure connection ({error}); check the address"
            ) from None
        except (*TRANSIENT_ERRORS, _Retry) as error:
            # A server that ignores Range and always cuts at the same byte brings nothing: new
            # ground counts.
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures > retries:
                raise InputError(
                    f"{part.url}: gave up after {failures} failures in a row ({error}); "
                    f"{part.size} bytes "
                    f"are kept in {part.path}, run again to go on from there"
                ) from None
            time.sleep(
                min(max(BACKOFF * 2 ** (failures - 1), getattr(error, "pause", 0)), LONGEST_PAUSE)
            )
        except requests.RequestException as error:
            raise InputError(
                f"{part.url}: cannot be asked for ({error}); correct the URL"
            ) from None


def _receive(part: _Part, size: int | None, progress: bool) -> None:
    """One request, for the whole file or for the rest of it."""
    headers = {"Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.version.validator:
            headers["If-Range"] = part.version.validator
    with requests.get(part.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        _check_status(response, part)
        length = response.headers.get("Content-Length")
        first = response.raw.read1(CHUNK, decode_content=False)
        if _is_web_page(response, first, part.path):
            raise InputError(
                f"{part.url}: the server answered with a web page instead of the file (a login, a "
                f"proxy, an "
                "outage); open the address in a browser, then run again"
            )
        if response.status_code == 200:
            offered = int(length) if length else size
            if size is not None and offered != size:
                raise InputError(
                    f"{part.url}: {offered} bytes offered, {size} expected; check the URL"
                )
            part.begin(_Version(part.url, _validator(response), offered))
        total = part.version.total
        if total:
            ensure_free(part.path.parent, total - part.size, f"downloading {part.url}")
        name = part.path.name.removesuffix(".part")
        with part.path.open("ab") as file, byte_bar(name, total, part.size, progress) as advance:
            while first:
                file.write(first)
                advance(len(first))
                first = response.raw.read1(CHUNK, decode_content=False)
        if total and part.size < total:
            raise _Retry(f"the connection ended at byte {part.size} of {total}")


def _check_status(response: requests.Response, part: _Part) -> None:
    """Return for a 200, or for a 206 that continues the part; else raise _Retry or InputError."""
    status = response.status_code
    if status == 200:
        return
    if status == 206 and part.size:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        same_place = (
            found and int(found[1]) == part.size and found[2] in ("*", str(part.version.total))
        )
        if same_place and _validator(response) in (None, part.version.validator):
            return
        part.discard()
        raise _Retry("the server sent another part than the one asked for")
    if status == 416:
        part.discard()
        raise _Retry("the file became shorter than what is already here")
    if status in TRANSIENT_STATUS:
        pause = response.headers.get("Retry-After", "")
        raise _Retry(f"HTTP {status} {response.reason}", float(pause) if pause.isdecimal() else 0)
    if status in {401, 403, 407}:
        raise InputError(
            f"{part.url}: HTTP {status} {response.reason}, the server lets nobody in without "
            f"leave; sign in and "
            "download the file in a browser, then name it as file:///…"
        )
    raise InputError(f"{part.url}: HTTP {status} {response.reason}; check the URL in the manifest")


def _validator(response: requests.Response) -> str | None:
    """What If-Range may carry: a strong ETag, else the date (RFC 9110, section 13.1.5)."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _is_web_page(response: requests.Response, first: bytes, part: Path) -> bool:
    if part.name.endswith((".html.part", ".htm.part")):
        return False
    declared = response.headers.get("Content-Type", "").lower().startswith("text/html")
    return declared or first.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _copy(part: _Part) -> None:
    source = Path(unquote(urlsplit(part.url).path))
    if not source.is_file():
        raise InputError(f"{part.url}: no such file; correct the path")
    ensure_free(part.path.parent, source.stat().st_size, f"copying {source}")
    shutil.copyfile(source, part.path)


def _difference(path: Path, size: int | None, md5: str | None) -> str | None:
    """What is wrong with the file, as half a sentence; None where it is as expected."""
    actual = path.stat().st_size if path.exists() else 0
    if size is not None and actual != size:
        return f"{actual} bytes came where {size} are expected"
    if md5 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != md5.lower():
            return f"the md5 is {found} where {md5} is expected"
    return None
