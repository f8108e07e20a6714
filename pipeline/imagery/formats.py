"""Opening what others give, by the driver that a file's first bytes ask for and no other.

Left to itself GDAL tries all its drivers, and some do what a text says (fetch an address, run a
command), whatever the file is called. What one file names in another (mosaics, overviews, masks) is
held to the same.
"""

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import rasterio

from pipeline.errors import REMEDIES, InputError, cause

SCHEMES = ("http", "https", "file", "s3", "gs")
HEAD = 2**16  # bytes; GDAL's drivers look for their mark in fewer
MARKS = {
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "GTiff"), b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG", b"\0\0\0\x0cjP  \r\n\x87\n": "JP2OpenJPEG",
    b"\xffO\xffQ": "JP2OpenJPEG", b"EHFA_HEADER_TAG": "HFA",
}  # fmt: skip
# GDAL finds these before any mark, whatever stands before them
VIRTUAL = (b"<VRTDataset", b"<GDALTileIndexDataset")
# a URL's; else TIFF
REMOTE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jp2": "JP2OpenJPEG", ".img": "HFA"}
BESIDE = {".ovr", ".msk", ".aux"}  # files that GDAL opens with an image of their name
# texts that name footprints elsewhere
REACHING = re.compile(rb"<OGR\w*DataSource|gdal_streamed_alg", re.IGNORECASE)
MOSAIC = {  # the elements of a VRT as gdalbuildvrt writes it
    "VRTDataset",
    "SRS",
    "GeoTransform",
    "Metadata",
    "MDI",
    "OverviewList",
    "BlockXSize",
    "BlockYSize",
    "VRTRasterBand",
    "Description",
    "UnitType",
    "Offset",
    "Scale",
    "ColorInterp",
    "ColorTable",
    "Entry",
    "NoDataValue",
    "MaskBand",
    "HideNoDataValue",
    "SimpleSource",
    "ComplexSource",
    "SourceFilename",
    "SourceBand",
    "SourceProperties",
    "SrcRect",
    "DstRect",
    "NODATA",
    "UseMaskBand",
    "ScaleOffset",
    "ScaleRatio",
}
ATTRIBUTES = {
    "rasterXSize", "rasterYSize", "RasterXSize", "RasterYSize", "DataType", "dataType", "band",
    "BlockXSize", "BlockYSize", "blockXSize", "blockYSize", "dataAxisToSRSAxisMapping",
    "relativeToVRT", "shared", "resampling", "xOff", "yOff", "xSize", "ySize", "key", "domain",
    "c1", "c2", "c3", "c4",
}  # fmt: skip
ADVICE = {  # what GDAL's words on a file or an address call for; the first that fit
    r"\bAWS_": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_NO_SIGN_REQUEST=YES for a "
    "public bucket",
    r"\bGS_": "set GOOGLE_APPLICATION_CREDENTIALS, or GS_NO_SIGN_REQUEST=YES for a public bucket",
    r"\b40[13]\b|[Aa]ccess "
    r"?[Dd]enied": "it may not be read: check its address and the key or token it asks for",
    r"\b(404|410)\b|does not exist": "nothing is there: check its address",
    r"\b(429|50\d)\b": "the server is busy or broken: run the same command again later",
    r"SSL|TLS|certificate": "no secure connection: check its address (http or https?) and this "
    "machine's clock",
    r"CURL error": "nobody answers there: check its address and the network",
    r"No such file": "it is missing: correct its name or fetch it again",
    r" is no TIFF": "another format, or damaged: write it as a GeoTIFF, or fetch it again",
}
DAMAGED = "it is damaged or cut short: fetch it again"
LARGEST_VRT = 2**28  # bytes; a mosaic of a million images


def check_address(path: str) -> None:
    """Raise InputError for what is no URL of SCHEMES and no file: GDAL's own paths reach
    anywhere, in any protocol.
    """
    scheme, found, _ = path.partition("://")
    if found and "/" not in scheme:
        if scheme.lower() not in SCHEMES:
            raise InputError(
                f"{path}: a scene's URL begins with one of {', '.join(f'{s}://' for s in SCHEMES)}"
            )
    elif path.startswith("/vsi"):
        raise InputError(f"{path}: GDAL's own paths are not taken; give the file or its URL")
    elif not os.path.exists(path):
        raise InputError(f"{path}: cannot be read (no such file); it is missing: fetch it again")


def unreadable(path: str | Path, error: Exception) -> InputError:
    """The sentence about an image that rasterio or the operating system cannot read, with the
    cause's own remedy.
    """
    detail = " ".join(str(getattr(error, "strerror", None) or error.__cause__ or error).split())
    said = (advice for words, advice in ADVICE.items() if re.search(words, detail))
    advice = REMEDIES.get(cause(error)) or next(said, DAMAGED)
    return InputError(f"{path}: cannot be read ({detail}); {advice}")


def open_alone(path: str, within: frozenset[str] = frozenset()) -> rasterio.DatasetReader:
    """Open an image, a file or a URL of SCHEMES, or a mosaic (.vrt) of files;
    `within`: the mosaics that name it.

    Raises InputError, RasterioError or OSError where it is none or names more than that.
    """
    check_address(path)
    if "://" in path and not path.lower().startswith("file://"):
        driver = REMOTE.get(Path(urlsplit(path).path).suffix.lower(), "GTiff")
    else:
        path = urlsplit(path).path if "://" in path else path
        driver = "VRT" if path.lower().endswith(".vrt") else _driver(Path(path))
        _check_beside(Path(path))
    if driver == "VRT":
        _check_mosaic(Path(path), within | {os.path.realpath(path)})
    dataset = rasterio.open(path, driver=driver)
    if dataset.tags(ns="OVERVIEWS"):
        dataset.close()
        raise OSError("its metadata name a file of overviews")
    return dataset


def _driver(path: Path) -> str:
    """The driver whose mark a file begins with. Raises OSError where it is of
    no format that is taken.
    """
    head = _head(path)
    driver = next((driver for mark, driver in MARKS.items() if head.startswith(mark)), None)
    if driver is None or any(mark in head for mark in VIRTUAL):
        raise OSError(f"{path.name} is no TIFF, PNG, JPEG, JPEG 2000 or Imagine file")
    return driver


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _check_beside(path: Path) -> None:
    """Masks and overviews beside an image are images too. Raises InputError where one is none.

    GDAL finds them by the image's name or its stem, large or small letters alike.
    """
    start = f"{path.stem}.".lower()  # of NAME.msk too, which is STEM.SUFFIX.msk
    for name in sorted(os.listdir(path.parent)):
        beside = name.lower().startswith(start) and name != path.name
        if beside and os.path.splitext(name)[1].lower() in BESIDE:
            try:
                _driver(path.parent / name)
            except OSError as error:
                raise InputError(
                    f"{path}: {name} beside it would be read along with it and cannot be "
                    f"({error}); move {name} away, or rename it"
                ) from None


def _check_mosaic(path: Path, within: frozenset[str]) -> None:
    """Raise InputError or OSError where a VRT is more than a mosaic of images on this machine."""
    if path.stat().st_size > LARGEST_VRT:
        raise OSError("it is too long for a mosaic")
    sources = set()
    for element in _elements(path):
        if other := {element.tag} - MOSAIC or element.attrib.keys() - ATTRIBUTES:
            raise InputError(
                f"{path}: holds {min(other)}; of virtual rasters only mosaics are taken, as "
                f"gdalbuildvrt writes them: write it out as a GeoTIFF"
            )
        if element.tag == "SourceFilename":
            sources.add((element.get("relativeToVRT", "0"), element.text or ""))
    for beside, name in sorted(sources):
        source = path.parent / name if beside == "1" else Path(name)
        if (
            beside not in {"0", "1"}
            or "://" in name
            or name.startswith("/vsi")
            or not source.is_file()
        ):
            raise InputError(
                f"{path}: its source {name!r} is no file; a mosaic's sources are "
                f"images on this machine"
            )
        if os.path.realpath(source) in within:
            raise InputError(f"{path}: is a mosaic of itself")
        open_alone(str(source), within).close()


def _elements(path: Path) -> Iterator[ElementTree.Element]:
    """Every element of an XML file. Raises OSError where it is none, or holds what two readers of
    XML may read differently.
    """
    try:
        text = path.read_text(encoding="utf-8")
        # a comment, say, within a name: GDAL's reader of XML and Python's would differ
        if "<!" in text:
            raise OSError("it holds a comment or a DOCTYPE")
        return ElementTree.fromstring(text).iter()
    # ValueError: its bytes are no UTF-8
    except (ElementTree.ParseError, ValueError) as error:
        raise OSError(f"it is no XML: {error}") from None


def check_footprints(path: Path) -> None:
    """Raise InputError where a file, or one packed in it, sends GDAL elsewhere instead of
    holding footprints.
    """
    heads = [_head(path)] if path.is_file() else []
    if heads and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    heads.append(member.read(HEAD))
    if any(REACHING.search(head) for head in heads):
        raise InputError(f"{path}: only says where footprints are; give the file that holds them")
