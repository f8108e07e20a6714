"""What the page gives away: its numbers as CSV, its scenes as a GeoPackage, both inside it as
data: addresses.
"""

import base64
import csv
import io
import tempfile
from pathlib import Path

from pipeline.report.answer import columns
from pipeline.report.results import Results

# in every GeoPackage, so that the same results make the same page
WRITTEN = "2000-01-01T00:00:00.000Z"
TYPES = {"csv": "text/csv", "gpkg": "application/geopackage+sqlite3"}


def downloads(results: Results) -> dict[str, str]:
    """File names and their data: addresses; what nothing is known of is left out."""
    found = {"numbers.csv": numbers(results), "scenes.gpkg": scenes(results)}
    return {name: address(name, data) for name, data in found.items() if data}


def address(name: str, data: bytes) -> str:
    return f"data:{TYPES[name.split('.')[1]]};base64,{base64.b64encode(data).decode()}"


def numbers(results: Results) -> bytes:
    """The answer, a row an IoU: city, kind, iou, low, high, and what it is of."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["city", "kind", "iou", "low", "high", "of"])
    for kind, measures in columns(results):
        writer.writerows(
            [city, kind.name, m.iou, m.low, m.high, m.of] for city, m in measures.items()
        )
    return text.getvalue().encode() if columns(results) else b""


def scenes(results: Results) -> bytes:
    """Outlines of all scenes that have coordinates, with city, scene, split and IoU, in
    longitude and latitude.
    """
    rows = [
        (city, r)
        for city, about in results.tiles.items()
        for r in about["regions"]
        if r.crs is not None
    ]
    if not rows:
        return b""
    import geopandas
    import pyogrio

    table = geopandas.GeoDataFrame(
        {
            "city": [city for city, _ in rows],
            "scene": [r.name for _, r in rows],
            "split": [r.split for _, r in rows],
            "iou": [results.scenes.get((city, r.name)) for city, r in rows],
        },
        geometry=[r.grid.outlines()[0] for _, r in rows],
        crs="EPSG:4326",
    )
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": WRITTEN})
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scenes.gpkg"
            table.astype({"iou": float}).to_file(path, layer="scenes")
            return path.read_bytes()
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
