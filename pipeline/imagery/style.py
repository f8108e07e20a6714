"""How QGIS opens a map: colours that lie in the GeoPackage itself (its table
layer_styles) and in the mask.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from xml.sax.saxutils import quoteattr

# Okabe and Ito's
STATUS = {"new": "213,94,0", "changed": "230,159,0", "matched": "0,158,115", "missing": "0,114,178"}
# up to, colour
CONFIDENCE = ((0.7, "254,204,92"), (0.85, "253,141,60"), (0.95, "240,59,32"), (1.0, "165,15,21"))
CLASSES = ["213,94,0", "0,114,178", "230,159,0", "0,158,115", "204,121,167", "86,180,233"]
TABLE = """create table layer_styles (
    id integer primary key autoincrement not null, f_table_catalog text(256), f_table_schema text(256),
    f_table_name text(256), f_geometry_column text(256), styleName text(30), styleQML text, styleSLD text,
    useAsDefault boolean, description text, owner text(30), ui text(30), update_time datetime)"""
NOW = "1970-01-01T00:00:00.000Z"  # the same run, the same bytes


def mask_colours(classes: int) -> dict[int, tuple[int, int, int, int]]:
    """The colour of each value of a mask; 0 and 255 (no data) are not drawn where a program
    knows transparency.
    """
    colours = {0: (255, 255, 255, 0)}
    for k in range(1, classes + 1):
        red, green, blue = map(int, CLASSES[(k - 1) % len(CLASSES)].split(","))
        colours[k] = red, green, blue, 255
    return colours | {255: (0, 0, 0, 0)}


def write_style(path: Path, layer: str, columns: list[str]) -> None:
    """Add the style that QGIS opens a layer of a GeoPackage with: by status where there is one,
    else by confidence.
    """
    qml = _by_status() if "status" in columns else _by_confidence()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(TABLE)
        database.execute(
            "insert into gpkg_contents (table_name, data_type, identifier, last_change) values (?, "
            "?, ?, ?)",
            ("layer_styles", "attributes", "layer_styles", NOW),
        )
        database.execute(
            "insert into layer_styles (f_table_catalog, f_table_schema, f_table_name, "
            "f_geometry_column, styleName, "
            "styleQML, styleSLD, useAsDefault, description, owner, ui, update_time) "
            "values ('', '', ?, ?, ?, ?, '', 1, '', '', '', ?)",
            (layer, _geometry_column(database, layer), layer, qml, NOW),
        )


def _geometry_column(database: sqlite3.Connection, layer: str) -> str:
    found = database.execute(
        "select column_name from gpkg_geometry_columns where table_name = ?", (layer,)
    )
    return found.fetchone()[0]


def _by_status() -> str:
    categories = "".join(
        f'<category value={quoteattr(name)} symbol="{i}" label={quoteattr(name)} render="true"/>'
        for i, name in enumerate(STATUS)
    )
    body = f"<categories>{categories}</categories>"
    return _qml('type="categorizedSymbol" attr="status"', body, list(STATUS.values()))


def _by_confidence() -> str:
    ends = [0.0, *(end for end, _ in CONFIDENCE)]
    ranges = "".join(
        f'<range lower="{low}" upper="{high}" symbol="{i}" label="{low:g} - {high:g}" '
        f'render="true"/>'
        for i, (low, high) in enumerate(zip(ends, ends[1:], strict=False))
    )
    kind = 'type="graduatedSymbol" attr="confidence" graduatedMethod="GraduatedColor"'
    return _qml(kind, f"<ranges>{ranges}</ranges>", [colour for _, colour in CONFIDENCE])


def _qml(kind: str, body: str, colours: list[str]) -> str:
    symbols = "".join(
        f'<symbol name="{i}" type="fill" alpha="1"><layer class="SimpleFill" enabled="1"><Option '
        f'type="Map">'
        f'<Option name="color" type="QString" value="{colour},90"/>'
        f'<Option name="outline_color" type="QString" value="{colour},255"/>'
        '<Option name="outline_style" type="QString" value="solid"/>'
        '<Option name="outline_width" type="QString" value="0.4"/>'
        '<Option name="style" type="QString" value="solid"/></Option></layer></symbol>'
        for i, colour in enumerate(colours)
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'><qgis "
        'styleCategories="Symbology">'
        f"<renderer-v2 {kind}>{body}<symbols>{symbols}</symbols></renderer-v2></qgis>"
    )
