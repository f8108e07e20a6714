"""What lies beside an image and is read along with it: its place (.wld, .tfw), GDAL's notes
(.aux.xml), a mask (.msk); of a mosaic its sources.

A user corrects an image by such a file alone, and its own bytes stay as they are.
"""

import re
from collections.abc import Set
from pathlib import Path

import rasterio

OVERVIEWS = ".ovr"  # the same pixels coarser: none of ours are made from them
COUNTED = {  # what GDAL notes of a raster's pixels: it follows from them
    "PAMDataset",
    "PAMRasterBand",
    "Metadata",
    "MDI",
    "Histograms",
    "HistItem",
    "HistMin",
    "HistMax",
    "BucketCount",
    "IncludeOutOfRange",
    "Approximate",
    "HistCounts",
}
# how they lie in the file, which GDAL repeats with its statistics
STORED = {"INTERLEAVE", "COMPRESSION", "SOURCE_COLOR_SPACE"}


def files_of(dataset: rasterio.DatasetReader) -> tuple[str, ...]:
    """The files that an open image is read from, sorted: its own, and what lies beside it or in it
    and says something of its pixels; no overviews, and no statistics, which any viewer leaves.
    """
    return tuple(sorted(path for path in dataset.files if not _follows(Path(path))))


def _follows(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(OVERVIEWS) or name.endswith(".aux.xml") and only_counted(path)


def only_counted(notes: Path, also: Set[str] = frozenset()) -> bool:
    """Whether GDAL's notes of a raster (.aux.xml) hold nothing but statistics of its pixels, and
    elements named in `also`.
    """
    text = notes.read_text(encoding="utf-8", errors="replace")
    keys = re.findall(r"<MDI key=\"(\w+)", text)
    return (COUNTED | also).issuperset(re.findall(r"<(\w+)", text)) and all(
        key in STORED or key.startswith("STATISTICS_") for key in keys
    )
