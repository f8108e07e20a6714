"""An S3-compatible object store as a place to read and write: `s3://BUCKET/KEY`.

boto3 has the client (multipart, retries), and its own rules say who asks (environment, ~/.aws, a
role); another store than Amazon's is AWS_ENDPOINT_URL, which GDAL is told of too. An object appears
whole or not at all.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import InputError
from pipeline.storage import atomic_file

SCHEME = "s3://"
ATTEMPTS = 6  # of a request that fails for the moment: 503, a cut connection
PATIENCE = 30  # seconds without an answer
REMEDIES = {  # by the store's code of an error; the first word that is in it
    "Expired": "the credentials have expired: get new ones, then run the same command again",
    "AccessDenied": "these credentials may not: ask for the right, or use others",
    "InvalidAccessKeyId": "the store does not know this access key: correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret does not fit the access key: correct "
    "AWS_SECRET_ACCESS_KEY",
    "NoSuchBucket": "there is no such bucket: create it, or correct its name",
    "SlowDown": "the store is busy: run the same command again later",
    "ServiceUnavailable": "the store is busy: run the same command again later",
    "503": "the store is busy: run the same command again later",
    "403": "these credentials may not: ask for the right, or use others",
}


@dataclass(frozen=True)
class Object:
    name: str  # its key within the folder that was listed
    etag: str
    size: int  # bytes


def is_object(path: object) -> bool:
    return str(path).lower().startswith(SCHEME)


def gdal_options() -> dict[str, object]:
    """What GDAL is told of the store that boto3 knows by AWS_ENDPOINT_URL."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return {}
    place = urlsplit(endpoint)
    https = "YES" if place.scheme == "https" else "NO"
    return {
        "AWS_S3_ENDPOINT": place.netloc + place.path,
        "AWS_HTTPS": https,
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }


def join(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"


def read(url: str) -> bytes | None:
    """An object's bytes; None where there is none. Raises InputError where the
    store refuses, as all here do.
    """
    bucket, key = _parts(url)
    with _asking(url) as missing:
        # asks again where an answer is cut short
        _client().download_fileobj(bucket, key, content := BytesIO())
        return content.getvalue()
    return missing


def about(url: str) -> dict | None:
    """An object's etag and its own notes (`write`); None where there is none."""
    bucket, key = _parts(url)
    with _asking(url) as missing:
        answer = _client().head_object(Bucket=bucket, Key=key)
        return {"etag": answer["ETag"].strip('"'), "notes": answer["Metadata"]}
    return missing


def download(url: str, path: Path, advance: Callable[[int], None] | None = None) -> None:
    """An object as a file, whole or not at all; `advance` hears of each number of bytes done.

    Raises InputError where there is none.
    """
    bucket, key = _parts(url)
    with atomic_file(path) as partial:
        with _asking(url):
            _client().download_file(bucket, key, str(partial), Callback=advance)
            return
        raise InputError(f"{url}: nothing is there; correct the address")


def write(url: str, content: Path | bytes, notes: dict[str, str] | None = None) -> None:
    """A file or bytes as an object, with notes of ours beside it."""
    bucket, key = _parts(url)
    with _asking(url):
        if isinstance(content, bytes):
            _client().put_object(Bucket=bucket, Key=key, Body=content, Metadata=notes or {})
        else:
            _client().upload_file(str(content), bucket, key, ExtraArgs={"Metadata": notes or {}})


def remove(url: str) -> None:
    bucket, key = _parts(url)
    with _asking(url):
        _client().delete_object(Bucket=bucket, Key=key)


def names(url: str) -> list[str]:
    """The names of the objects that lie directly in a folder, sorted."""
    prefix, items = _listed(url, "Contents", Delimiter="/")
    return sorted(filter(None, (item["Key"].removeprefix(prefix) for item in items)))


def folders(url: str) -> list[str]:
    """The names of the folders that lie directly in a folder, sorted."""
    prefix, items = _listed(url, "CommonPrefixes", Delimiter="/")
    return sorted(filter(None, (item["Prefix"].removeprefix(prefix)[:-1] for item in items)))


def objects(url: str) -> list[Object]:
    """What lies in a folder and in those below it; an object that only marks a folder is none."""
    prefix, items = _listed(url, "Contents")
    return [
        Object(item["Key"].removeprefix(prefix), item["ETag"].strip('"'), item["Size"])
        for item in items
        if not item["Key"].endswith("/")
    ]


def _listed(url: str, kind: str, **how: str) -> tuple[str, list[dict]]:
    """A folder as the beginning of its keys, and what the store lists under it."""
    bucket, key = _parts(url)
    prefix = key.rstrip("/") + "/" if key else ""
    with _asking(url):
        pages = _client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=bucket, Prefix=prefix, **how)
        return prefix, [item for page in found for item in page.get(kind, [])]
    return prefix, []


def _parts(url: str) -> tuple[str, str]:
    bucket, _, key = url[len(SCHEME) :].partition("/")
    if not bucket:
        raise InputError(f"{url}: write {SCHEME}BUCKET/KEY")
    return bucket, key


@cache
def _client():
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError:
        raise InputError("s3:// needs boto3; install the extra: pip install -e '.[s3]'") from None
    retries = {"max_attempts": ATTEMPTS, "mode": "standard"}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    settings = Config(retries=retries, connect_timeout=PATIENCE, read_timeout=PATIENCE)
    if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in {"YES", "TRUE", "ON", "1"}:  # GDAL's
        settings = settings.merge(Config(signature_version=UNSIGNED))
    return boto3.session.Session(region_name=region).client("s3", config=settings)


@contextmanager
def _asking(url: str) -> Generator[None]:
    """Nothing there goes by in silence; whatever else the store refuses becomes one InputError."""
    _client()
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield None
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in {"404", "NoSuchKey"}:
            return
        raise _refused(url, _word(url) or code if code.isdecimal() else code) from None
    except (BotoCoreError, Boto3Error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # this machine's disk
            raise
        code = next((code for code in REMEDIES if code in str(error)), "")
        if code:
            raise _refused(url, code) from None
        detail = " ".join(str(error).split())
        raise InputError(
            f"{url}: the store cannot be asked ({detail}); check AWS_ENDPOINT_URL, "
            f"the credentials and "
            "the network, then run the same command again"
        ) from None


def _word(url: str) -> str | None:
    """Why an object is refused: the answer to a HEAD has no body to say it, that to a GET has."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _parts(url)
    try:
        _client().get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
    except ClientError as error:
        return error.response.get("Error", {}).get("Code")
    except BotoCoreError:
        pass
    return None


def _refused(url: str, code: str) -> InputError:
    remedy = next(
        (remedy for word, remedy in REMEDIES.items() if word in code),
        "see the store's own documentation",
    )
    return InputError(f"{url}: refused ({code or 'without a reason'}); {remedy}")
