"""The user's own folder: what is right is taken as it stands, what is wrong is
one sentence, said early.
"""

import json
import unicodedata

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine

from pipeline.errors import InputError
from pipeline.imagery.vector import reproject
from pipeline.params import CityOverride, Fetch
from pipeline.sources.folder.source import fetch
from pipeline.sources.survey import stamp

UTM = "EPSG:32633"
ORIGIN = 500_000, 6_000_000
NOISE = np.random.default_rng(0).integers(1, 255, (3, 64, 64), dtype=np.uint8)
BUILDING = shapely.box(500_010, 5_999_970, 500_020, 5_999_980)


def tif(path, pixels, crs=UTM, left=0.0, **options):
    """Pixels (C, H, W) at 1 m, `left` metres east of the origin."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    transform = Affine(1, 0, ORIGIN[0] + left, 0, -1, ORIGIN[1]) if crs else None
    profile = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype, "crs": crs}
    with rasterio.open(
        path, "w", driver="GTiff", transform=transform, **profile, **options
    ) as dataset:
        dataset.write(pixels)
    return path


def footprints(path, polygons, crs=UTM):
    wkb = shapely.to_wkb(np.array(polygons, object))
    pyogrio.raw.write(path, wkb, [], [], geometry_type="Polygon", crs=crs)
    return path


@pytest.fixture
def town(tmp_path):
    """A city of two scenes with label rasters, and one with a footprint over
    the first of two scenes.
    """
    for i in (1, 2):
        tif(tmp_path / "raster" / "images" / f"s{i}.tif", NOISE)
        tif(tmp_path / "raster" / "labels" / f"s{i}.tif", (NOISE[:1] > 200).astype(np.uint8))
        tif(tmp_path / "vector" / "images" / f"s{i}.tif", NOISE, left=100 * (i - 1))
    footprints(tmp_path / "vector" / "buildings.gpkg", [BUILDING])
    return tmp_path


def taken(root, city, **override):
    overrides = {city: CityOverride(**override)} if override else {}
    return fetch(
        Fetch(source="folder", path=str(root), cities=[city], overrides=overrides), city, root, root
    )


def grouped(root, city):
    return fetch(
        Fetch(source="folder", path=str(root), cities=[city], groups="income"), city, root, root
    )


def test_a_column_of_groups_is_asked_for_early_and_a_change_of_it_shows(town):
    with pytest.raises(InputError, match=r"fetch.groups: .* holds rasters"):
        grouped(town, "raster")
    with pytest.raises(InputError, match=r"buildings.gpkg: fetch.groups: no column 'income'"):
        grouped(town, "vector")
    stamps = []
    for word in ("low", "low", "high"):
        wkb, columns = shapely.to_wkb(np.array([BUILDING], object)), [np.array([word], object)]
        path = town / "vector" / "buildings.gpkg"
        path.unlink()
        pyogrio.raw.write(path, wkb, columns, ["income"], geometry_type="Polygon", crs=UTM)
        city = grouped(town, "vector")
        assert city.groups == "income"
        stamps.append(city.scenes[0].stamp)
    assert stamps[0] == stamps[1] != stamps[2]


def test_files_stay_in_place_and_a_change_shows(town):
    city = taken(town, "raster", bands=[3, 2, 1], range=(0, 200))
    assert [scene.name for scene in city.scenes] == ["s1", "s2"]
    assert city.scenes[0].image == str(town / "raster/images/s1.tif")
    assert city.scenes[0].labels == str(town / "raster/labels/s1.tif")
    assert (city.bands, city.range, city.raster_building) == ([3, 2, 1], (0, 200), 1)
    assert city.notes["warnings"] == []
    tif(town / "raster/labels/s2.tif", np.ones((1, 64, 64), np.uint8))
    again = taken(town, "raster")
    assert [a.stamp == b.stamp for a, b in zip(city.scenes, again.scenes, strict=True)] == [
        True,
        False,
    ]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("folder", ["images", "labels"])
def test_a_change_beside_a_raster_shows(town, folder):
    """Of its world file; without one a stamp is of the two files alone, as it always was."""
    path, label = town / "raster" / folder / "s1.tif", town / "raster/labels/s1.tif"
    place(NOISE if folder == "images" else (NOISE[:1] > 200).astype(np.uint8), path, "GTiff")
    image = town / "raster/images/s1.tif"
    stamps = [taken(town, "raster", gsd=1).scenes[0].stamp]
    assert stamps[0] == stamp(image, label)
    for left in (500_000.5, 500_000.7):
        path.with_suffix(".tfw").write_text(f"1\n0\n0\n-1\n{left}\n5999999.5\n")
        stamps.append(taken(town, "raster", gsd=1).scenes[0].stamp)
    assert len(set(stamps)) == 3


def test_a_change_beside_an_image_under_footprints_shows(town):
    image, stamps = town / "vector/images/s1.tif", [taken(town, "vector").scenes[0].stamp]
    assert stamps[0].startswith(f"{stamp(image)} ")
    notes = "<PAMDataset><PAMRasterBand band='1'>{}</PAMRasterBand></PAMDataset>"
    for said in ("<Metadata/>", "<NoDataValue>1</NoDataValue>"):  # the former says nothing
        image.with_name("s1.tif.aux.xml").write_text(notes.format(said))
        stamps.append(taken(town, "vector").scenes[0].stamp)
    assert stamps[0] == stamps[1] != stamps[2]


@pytest.mark.parametrize(
    ("values", "building"),
    [((0, 1), 1), ((0, 255), 255), ((0, 1, 255), 1), ((0, 1, 2), 1), ((255,), 255)],
)
def test_which_value_draws_a_building(town, values, building):
    for i in (1, 2):
        pixels = np.resize(np.array(values, np.uint8), (1, 64, 64))
        tif(town / "raster/labels" / f"s{i}.tif", pixels)
    city = taken(town, "raster")
    assert (city.raster_building, city.notes["label_values"]) == (building, list(values))
    told = [warning for warning in city.notes["warnings"] if "255 is read as building" in warning]
    assert bool(told) == (building == 255)


def test_what_255_means_is_not_guessed(town):
    def draw(name, *values):
        tif(town / "raster/labels" / name, np.resize(np.uint8(values), (1, 64, 64)))

    draw("s1.tif", 0, 255), draw("s2.tif", 0, 1)
    with pytest.raises(
        InputError,
        match=r"s1.tif holds 255 and no class, s2.tif a class and no 255; "
        r".*raster.building",
    ):
        taken(town, "raster")
    assert taken(town, "raster", building=1).raster_building == 1
    draw("s2.tif", 0, 1, 255)
    assert taken(town, "raster").raster_building == 1  # s2 tells that 255 is ignore
    draw("s2.tif", 0, 255)
    assert taken(town, "raster", building=1).raster_building == 1
    assert taken(town, "raster", building=255).notes["warnings"] == []


def test_declared_nodata_is_no_building(town):
    for i in (1, 2):
        tif(
            town / "raster/labels" / f"s{i}.tif",
            np.resize(np.uint8([0, 255]), (1, 64, 64)),
            nodata=255,
        )
    city = taken(town, "raster")
    assert city.raster_building == 1
    assert "no label holds a building" in city.notes["warnings"][0]


def test_footprints_serve_every_scene_and_building_free_ones_are_noted(town):
    city = taken(town, "vector")
    assert {scene.labels for scene in city.scenes} == {str(town / "vector/buildings.gpkg")}
    assert city.notes["footprints"] == 1
    assert city.notes["scenes_without_buildings"] == ["s2"]


def test_invalid_polygons_are_counted(town):
    x, y = 500_030, 5_999_960
    bowtie = shapely.Polygon([(x, y), (x + 4, y + 4), (x + 4, y), (x, y + 4)])
    line = shapely.Polygon([(x, y), (x + 4, y + 4), (x + 2, y + 2)])
    footprints(town / "vector/buildings.gpkg", [BUILDING, bowtie, line])
    notes = taken(town, "vector").notes
    assert (notes["footprints"], notes["repaired_polygons"], notes["dropped_polygons"]) == (2, 1, 1)
    assert any("1 invalid polygons repaired" in warning for warning in notes["warnings"])


def test_scenes_of_several_crs_share_one_file(town):
    west = tif(town / "vector/images/west.tif", NOISE, crs="EPSG:3857")
    box = shapely.box(*rasterio.open(west).bounds)
    footprints(
        town / "vector/buildings.gpkg", [BUILDING, reproject(np.array([box]), "EPSG:3857", UTM)[0]]
    )
    notes = taken(town, "vector").notes
    assert notes["footprints"] == 2
    assert notes["scenes_without_buildings"] == ["s2"]


def test_a_scene_across_the_antimeridian_is_named(town):
    path = town / "vector/images/s2.tif"
    with rasterio.open(path, "r+") as dataset:
        dataset.crs, dataset.transform = "EPSG:4326", Affine(1e-5, 0, 179.9999, 0, -1e-5, -17)
    with pytest.raises(InputError, match=r"s2\.tif: .* beyond the antimeridian.*UTM zone"):
        taken(town, "vector")


def test_missing_label(town):
    (town / "raster/labels/s2.tif").unlink()
    with pytest.raises(InputError, match=r"labels: no label for 1 of 2 images: s2; add s2.tif"):
        taken(town, "raster")


def test_a_missing_label_names_what_lies_there_instead(town):
    (town / "raster/labels/s2.tif").rename(town / "raster/labels/s2_mask.tif")
    with pytest.raises(
        InputError,
        match=r"images: s2; add s2.tif \(here is s2_mask.tif\), take "
        r"the image away",
    ):
        taken(town, "raster")


@pytest.mark.parametrize("labels", ["raster", "vector"])
def test_an_accent_is_the_same_however_a_system_writes_it(labels, tmp_path):
    """macOS takes it apart (NFD): a folder, an image and its label that look
    alike are one city's.
    """
    composed, apart = "Köln", unicodedata.normalize("NFD", "Köln")
    tif(tmp_path / apart / "images" / f"{composed}.tif", NOISE)
    if labels == "raster":
        tif(tmp_path / apart / "labels" / f"{apart}.tif", (NOISE[:1] > 200).astype(np.uint8))
    else:
        (tmp_path / apart / "labels").mkdir()
        footprints(tmp_path / apart / "labels" / f"{apart}.gpkg", [BUILDING])
    (scene,) = taken(tmp_path, composed).scenes
    assert scene.name == composed and scene.labels.endswith((f"{apart}.tif", f"{apart}.gpkg"))


def test_label_of_another_size(town):
    tif(town / "raster/labels/s2.tif", np.zeros((1, 64, 60), np.uint8))
    with pytest.raises(InputError, match=r"labels/s2.tif: is 60×64 pixels, its image 64×64"):
        taken(town, "raster")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((3, 64, 64), np.uint8), "has 3 bands; a label has one"),
        (np.resize(np.float32([0, np.nan, 0.5]), (1, 64, 64)), "holds the value 0.5"),
        (np.full((1, 64, 64), 300, np.uint16), "holds the value 300"),
    ],
)
def test_a_label_that_is_none(town, pixels, message):
    tif(town / "raster/labels/s2.tif", pixels)
    with pytest.raises(InputError, match=f"s2.tif: {message}"):
        taken(town, "raster")


def test_no_labels_at_all_goes_to_predict(town):
    (town / "vector/buildings.gpkg").unlink()
    with pytest.raises(
        InputError, match="neither labels/ nor a file of footprints .*pipeline predict"
    ):
        taken(town, "vector")


def test_labels_under_another_name_are_pointed_at(town):
    (town / "raster/labels").rename(town / "raster/gt")
    with pytest.raises(InputError, match=r"bring one \(gt/, .* must be called labels/\), or map"):
        taken(town, "raster")


def test_two_files_of_footprints_and_both_kinds(town):
    footprints(town / "vector/more.geojson", [shapely.box(1, 1, 2, 2)], "EPSG:4326")
    with pytest.raises(
        InputError,
        match=r"2 files of footprints, buildings.gpkg, more.geojson; "
        r"keep one",
    ):
        taken(town, "vector")
    footprints(town / "raster/more.geojson", [shapely.box(1, 1, 2, 2)], "EPSG:4326")
    assert "labels/ is used, more.geojson is not" in taken(town, "raster").notes["warnings"][0]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_crs_missing(town):
    tif(town / "raster/images/s2.tif", NOISE, crs=None)
    with pytest.raises(InputError, match=r"s2.tif: carries no CRS; .*gsd"):
        taken(town, "raster")
    assert taken(town, "raster", gsd=0.5).gsd == 0.5
    tif(town / "vector/images/s2.tif", NOISE, crs=None)
    with pytest.raises(
        InputError, match="s2.tif: carries no CRS, so buildings.gpkg cannot be laid"
    ):
        taken(town, "vector", gsd=0.5)


def test_footprints_elsewhere(town):
    path = town / "vector/buildings.gpkg"
    footprints(path, [shapely.affinity.translate(BUILDING, 0, 30_000)])
    with pytest.raises(
        InputError,
        match=r"none of its 1 footprints overlaps an image of vector; "
        r"they lie 30.0 km",
    ):
        taken(town, "vector")
    footprints(path, [BUILDING], "EPSG:3857")
    with pytest.raises(InputError, match="declare EPSG:3857 but would fit as EPSG:32633"):
        taken(town, "vector")
    degrees = reproject(np.array([BUILDING]), UTM, "EPSG:4326")
    footprints(path, shapely.transform(degrees, lambda xy: xy[:, ::-1]), "EPSG:4326")
    with pytest.raises(InputError, match="would fit as EPSG:4326 with x and y exchanged"):
        taken(town, "vector")
    path.unlink()
    footprints(town / "vector/metres.geojson", [BUILDING], "EPSG:4326")
    with pytest.raises(InputError, match="declare EPSG:4326 but would fit as EPSG:32633"):
        taken(town, "vector")


def test_footprints_a_scene(town):
    """As SpaceNet and RAMP publish them; a scene without buildings has an empty file."""
    (town / "vector/buildings.gpkg").unlink()
    (town / "vector/labels").mkdir()
    (town / "vector/labels/s2.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(
        InputError,
        match=r"no footprints for 1 of 2 images: s1; name them as their "
        r"image, s1.geojson",
    ):
        taken(town, "vector")
    degrees = reproject(np.array([BUILDING]), UTM, "EPSG:4326")
    own = footprints(town / "vector/labels/s1.geojson", degrees, "EPSG:4326")
    city = taken(town, "vector")
    assert [scene.labels for scene in city.scenes] == [str(own), str(own.with_name("s2.geojson"))]
    assert (city.notes["footprints"], city.notes["scenes_without_buildings"]) == (1, ["s2"])
    tif(town / "vector/labels/s1.tif", NOISE[:1])
    with pytest.raises(
        InputError, match="holds both rasters, s1.tif, and footprints; keep one kind"
    ):
        taken(town, "vector")


def test_footprints_a_scene_in_sub_folders(town):
    (town / "vector/buildings.gpkg").unlink()
    tif(town / "vector/images/more/s1.tif", NOISE)
    (town / "vector/labels/more").mkdir(parents=True)
    buildings = {"s1": [BUILDING], "s2": [], "more/s1": [BUILDING]}
    own = {
        name: footprints(town / f"vector/labels/{name}.gpkg", drawn)
        for name, drawn in buildings.items()
    }
    city = taken(town, "vector")
    assert {scene.name: scene.labels for scene in city.scenes} == {
        name.replace("/", "-"): str(path) for name, path in own.items()
    }


def test_the_stamp_is_of_what_is_drawn(town):
    """A file written anew is the same labels; one building more on a scene
    changes that scene's alone.
    """
    path = town / "vector/buildings.gpkg"
    before = [scene.stamp for scene in taken(town, "vector").scenes]
    footprints(path, [shapely.affinity.translate(BUILDING, 9_000, 0), BUILDING])
    assert [scene.stamp for scene in taken(town, "vector").scenes] == before
    footprints(path, [BUILDING, shapely.affinity.translate(BUILDING, 100, 0)])
    after = [scene.stamp for scene in taken(town, "vector").scenes]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False]


def test_a_stac_item_is_no_file_of_footprints(town):
    outline = shapely.geometry.mapping(shapely.box(14, 53, 16, 55))
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "s1",
        "geometry": outline,
        "properties": {},
    }
    (town / "vector/s1.json").write_text(json.dumps(item))
    assert taken(town, "vector").notes["footprints"] == 1
    (town / "vector/buildings.gpkg").unlink()
    with pytest.raises(InputError, match="neither labels/ nor a file of footprints"):
        taken(town, "vector")


def test_nothing_of_a_file_is_a_building(town):
    path = footprints(town / "vector/buildings.gpkg", [])
    wkb = shapely.to_wkb(
        np.array([BUILDING.exterior.interpolate(0), shapely.LineString([(0, 0), (9, 9)])])
    )
    pyogrio.raw.write(path, wkb, [], [], geometry_type="Unknown", crs=UTM)
    with pytest.raises(
        InputError,
        match=r"not one of its features is a building \(0 .*, 2 are "
        r"points, open lines",
    ):
        taken(town, "vector")


def test_a_condition_chooses_the_buildings_and_is_kept(town):
    path, land = town / "vector/buildings.gpkg", shapely.box(499_000, 5_999_000, 501_000, 6_001_000)
    data = [np.array(["house", "parcel"], object)]
    pyogrio.raw.write(
        path, shapely.to_wkb([BUILDING, land]), data, ["kind"], geometry_type="Polygon", crs=UTM
    )
    assert (
        "covers all of scene s1, s2; is it the outline"
        in taken(town, "vector").notes["warnings"][0]
    )
    city = taken(town, "vector", where="kind = 'house'")
    assert (city.where, city.notes["footprints"]) == ("kind = 'house'", 1)
    assert not any("outline" in warning for warning in city.notes["warnings"])
    with pytest.raises(
        InputError,
        match=r"no feature meets fetch.overrides.vector.where \(kind = "
        r"'tent'\)",
    ):
        taken(town, "vector", where="kind = 'tent'")
    with pytest.raises(
        InputError, match="overrides.raster.where: .* holds rasters, which have no columns"
    ):
        taken(town, "raster", where="kind = 'house'")


def test_no_building_anywhere_is_a_warning(town):
    (town / "vector/buildings.gpkg").unlink()
    (town / "vector/a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert "no building anywhere" in taken(town, "vector").notes["warnings"][0]
    for i in (1, 2):
        tif(town / "raster/labels" / f"s{i}.tif", np.zeros((1, 64, 64), np.uint8))
    assert "no label holds a building" in taken(town, "raster").notes["warnings"][0]


TILED = {"compress": "deflate", "tiled": True, "blockxsize": 32, "blockysize": 32}


@pytest.mark.parametrize("options", [{}, TILED, {"interleave": "band"}])
@pytest.mark.parametrize("kept", [0.3, 0.98])
def test_truncated_file(town, options, kept):
    path = tif(town / "raster/images/s2.tif", NOISE, **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(InputError, match=r"s2.tif: (is truncated|cannot be read)"):
        taken(town, "raster")


def test_a_web_page_instead_of_an_image(town):
    (town / "raster/images/s2.tif").write_text("<!doctype html>")
    with pytest.raises(InputError, match=r"s2.tif: cannot be read"):
        taken(town, "raster")


@pytest.mark.parametrize(
    "pixels", [np.zeros_like(NOISE), np.where(NOISE > 9, np.float32(np.nan), np.float32(7))]
)
def test_scene_without_data_is_left_out(town, pixels):
    tif(town / "raster/images/s2.tif", pixels, nodata=0 if pixels.dtype == np.uint8 else None)
    city = taken(town, "raster")
    assert [scene.name for scene in city.scenes] == ["s1"]
    assert city.notes["scenes_without_data"] == ["s2"]
    assert "1 scenes hold nothing but nodata and are left out: s2" in city.notes["warnings"][0]
    tif(town / "raster/images/s1.tif", pixels)
    with pytest.raises(InputError, match="no scene of raster holds data"):
        taken(town, "raster")


def test_a_single_pixel_of_data_is_data(town):
    pixels = np.zeros_like(NOISE)
    pixels[1, 63, 63] = 1
    tif(town / "raster/images/s2.tif", pixels)
    assert len(taken(town, "raster").scenes) == 2


def test_empty_and_unknown_cities(town):
    for path in (town / "raster/images").iterdir():
        path.unlink()
    (town / "raster/images/._s1.tif").write_text("what macOS leaves behind")
    with pytest.raises(InputError, match="images: holds no image; put the scenes of raster there"):
        taken(town, "raster")
    with pytest.raises(InputError, match="vektor: no such city; did you mean vector"):
        taken(town, "vektor")
    with pytest.raises(InputError, match="holds no folder CITY/images"):
        taken(town / "vector", "vector")


def test_two_scenes_of_one_name(town):
    tif(town / "raster/images/s2.TIFF", NOISE)
    with pytest.raises(InputError, match="two scenes are called s2"):
        taken(town, "raster")


def place(pixels, path, driver):
    """A picture without any place on Earth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "count": len(pixels),
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": pixels.dtype,
    }
    with rasterio.open(path, "w", driver=driver, **profile) as dataset:
        dataset.write(pixels)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_labels_of_one_name_in_two_folders_are_both_looked_at(town):
    for folder, building in (("", 255), ("more", 1)):
        tif(town / "raster/images" / folder / "s1.tif", NOISE)
        tif(town / "raster/labels" / folder / "s1.tif", np.uint8(building) * (NOISE[:1] > 200))
    tif(town / "raster/labels/s2.tif", np.uint8(255) * (NOISE[:1] > 200))
    with pytest.raises(InputError, match=r"s1.tif holds 255 and no class, .* a class and no 255"):
        taken(town, "raster")


def test_scenes_of_every_format_and_in_sub_folders(town):
    label = (NOISE[:1] > 200).astype(np.uint8)
    for name, driver in (("s3.png", "PNG"), ("s4.jp2", "JP2OpenJPEG"), ("s5.jpg", "JPEG")):
        place(NOISE, town / "raster/images" / name, driver)
        place(label, (town / "raster/labels" / name).with_suffix(".png"), "PNG")
    tif(town / "raster/images/more/s1.tif", NOISE)
    place(label, town / "raster/labels/more/s1.png", "PNG")
    place(NOISE, town / "raster/images/s1.jpg", "JPEG")  # a preview
    (town / "raster/images/all.vrt").write_text("a mosaic of the others")
    (town / "raster/images/s1.tif.aux.xml").write_text("what GDAL leaves behind")
    city = taken(town, "raster", gsd=1)
    assert [scene.name for scene in city.scenes] == ["more-s1", "s1", "s2", "s3", "s4", "s5"]
    assert city.scenes[0].labels == str(town / "raster/labels/more/s1.png")
    assert any(
        "passed over all.vrt, s1.jpg" in w or "passed over s1.jpg, all.vrt" in w
        for w in city.notes["warnings"]
    )


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(("name", "driver"), [("s3.png", "PNG"), ("s3.jpg", "JPEG")])
def test_a_picture_cut_short(town, name, driver):
    path = town / "raster/images" / name
    place(NOISE, path, driver)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=f"{name}: cannot be read"):
        taken(town, "raster", gsd=1)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_crs_without_a_geotransform_is_none(town):
    with rasterio.open(town / "raster/images/s2.tif", "r+") as dataset:
        dataset.transform = Affine.identity()
    with pytest.raises(
        InputError,
        match=r"s2.tif: carries a CRS but no geotransform; "
        r".*overrides.CITY.gsd",
    ):
        taken(town, "raster")
    assert len(taken(town, "raster", gsd=1).scenes) == 2


def test_labels_that_lie_elsewhere_are_found_early(town):
    tif(town / "raster/labels/s2.tif", np.ones((1, 64, 64), np.uint8), crs="EPSG:32632")
    with pytest.raises(
        InputError, match="labels/s2.tif: lies elsewhere on the ground than its image"
    ):
        taken(town, "raster")


def test_coordinates_that_tell_nothing_are_taken_and_said(town):
    path = town / "raster/labels/s2.tif"
    with rasterio.open(path, "r+") as dataset:
        dataset.crs, dataset.transform = (
            'LOCAL_CS["site",UNIT["metre",1]]',
            Affine(1, 0, 5, 0, -1, 64),
        )
    assert (
        "s2.tif: no CRS tells whether it lies on its image"
        in taken(town, "raster").notes["warnings"][0]
    )


BLURRED = np.clip(np.add.outer(np.arange(64), np.arange(64)) * 4 - 127, 0, 255)[None].astype(
    np.uint8
)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            np.resize(np.uint8([0, 3, 7, 250, 255]), (1, 64, 64)),
            "holds 3, 7, 250 between 0 and 255, .* as PNG or GeoTIFF",
        ),
        (np.resize(np.uint8([0, 128, 255]), (1, 64, 64)), "holds 128 between 0 and 255"),
        (BLURRED, ".* kept as JPEG or resized smoothly"),
        (
            np.repeat(BLURRED, 3, axis=0),
            "has 3 bands; a label has one: keep the first, rio stack LABELS --bidx 1",
        ),
        (NOISE, "has 3 bands; a label has one: recode its colours"),
    ],
)
def test_masks_that_went_through_a_picture(town, pixels, message):
    tif(town / "raster/labels/s2.tif", pixels)
    with pytest.raises(InputError, match=f"s2.tif: {message}"):
        taken(town, "raster")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_jpeg_of_a_faint_mask(town):
    (town / "raster/labels/s2.tif").unlink()
    faint = np.zeros((1, 64, 64), np.uint8)
    faint[0, 16:48, 16:48] = 9
    place(faint, town / "raster/labels/s2.jpg", "JPEG")
    with pytest.raises(InputError, match="s2.jpg: holds .* kept as JPEG"):
        taken(town, "raster")


def test_scenes_without_footprints_are_background_or_left_out(town):
    assert "vector.unlabelled: ignore" in taken(town, "vector").notes["warnings"][0]
    assert taken(town, "vector", unlabelled="background").notes["warnings"] == []
    city = taken(town, "vector", unlabelled="ignore")
    assert [scene.labels is None for scene in city.scenes] == [False, True] and city.notes[
        "warnings"
    ] == []


def test_scenes_without_a_label_raster_may_be_left_out(town):
    (town / "raster/labels/s2.tif").unlink()
    city = taken(town, "raster", unlabelled="ignore")
    assert [scene.labels is None for scene in city.scenes] == [False, True]
    (town / "raster/labels/s1.tif").unlink()
    with pytest.raises(InputError, match="no label for any image of raster"):
        taken(town, "raster", unlabelled="ignore")


def test_real_cities_as_they_stand(shared_cities):
    scenes = {"austin": 1, "banepa": 1, "montenegro": 12, "ohio": 118, "zanzibar": 2}
    for name, count in scenes.items():
        city = taken(shared_cities, name)
        assert (len(city.scenes), city.raster_building, city.notes["warnings"]) == (count, 1, [])
    assert city.notes["footprints"] == 201
