import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from pipeline.errors import InputError
from pipeline.imagery.grid import Window, windows
from pipeline.imagery.raster import (
    RasterLabels,
    Resampler,
    declared_bands,
    grid_of,
    open_image,
    open_raster,
    resampling_matrix,
    robust_range,
    units,
    unplaced,
)

HALF_METRE = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)


def write(path, pixels, transform=HALF_METRE, crs="EPSG:32633", **profile):
    """pixels (C, H, W) or (H, W) as a GeoTIFF."""
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    count, height, width = pixels.shape
    colorinterp = profile.pop("colorinterp", None)
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype,
        transform=transform, crs=crs, **profile,
    ) as dataset:  # fmt: skip
        if colorinterp:
            dataset.colorinterp = colorinterp
        dataset.write(pixels)
    return path


def write_mask(path, valid):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(valid)


def noise(*shape, high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def area_average(line: np.ndarray, target: int) -> np.ndarray:
    """The mean over each target pixel of a piecewise constant function, by its integral."""
    integral = np.concatenate([[0], np.cumsum(line, dtype=float)])
    edges = np.linspace(0, len(line), target + 1)
    return np.diff(np.interp(edges, np.arange(len(line) + 1), integral)) / (len(line) / target)


def read_all(path, bands=(1, 2, 3), gsd=0.5, **options):
    with open_image(path, list(bands), gsd, **options) as image:
        return image.read(Window(0, 0, *image.grid.shape))


@given(st.integers(1, 200), st.integers(1, 200))
def test_resampling_averages_over_the_area(source, target):
    line = noise(source, seed=source).astype(float)
    area = resampling_matrix(source, target, "area")
    assert np.allclose(area @ line, area_average(line, target), atol=1e-2)
    bilinear = resampling_matrix(source, target)
    if target > source:
        centres = (np.arange(target) + 0.5) * source / target - 0.5
        assert np.allclose(bilinear @ line, np.interp(centres, np.arange(source), line), atol=1e-2)
    assert np.allclose(bilinear.sum(axis=1), 1, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([(20, 31), (47, 33), (40, 20), (90, 13)]),
    st.integers(1, 400),
    st.integers(0, 5),
)
def test_windows_leave_no_seams(sizes, pixels, seed):
    source, target = (sizes[0], sizes[0] + 5), (sizes[1], sizes[1] + 2)
    resample, pixel = Resampler(source, target), noise(*source, seed=seed)
    whole = resample(pixel, Window(0, 0, *target))
    for window in windows(*target, pixels):
        part = resample(pixel[resample.source_window(window).slices], window)
        assert np.array_equal(part, whole[window.slices])


def test_the_same_gsd_gives_the_same_bytes(tmp_path):
    pixels = noise(4, 70, 90)
    path = write(tmp_path / "a.tif", pixels, photometric="rgb")
    image, valid = read_all(path, bands=[3, 1, 4], gsd=0.5)
    assert valid is None and np.array_equal(image, np.moveaxis(pixels[[2, 0, 3]], 0, 2))
    with open_image(path, [1], 0.5) as opened:
        assert opened.shape == (70, 90, 1) and len(opened) == 70
        assert np.array_equal(opened[10:20, 5:], np.moveaxis(pixels[:1, 10:20, 5:], 0, 2))


def test_shrinking_by_two_averages_four_pixels(tmp_path):
    pixels = noise(3, 60, 80)
    image, _ = read_all(write(tmp_path / "a.tif", pixels), gsd=1.0)
    means = pixels.reshape(3, 30, 2, 40, 2).mean(axis=(2, 4))
    assert np.abs(np.moveaxis(image, 2, 0) - means).max() <= 0.5 + 1e-4  # rounding alone


def test_a_south_up_image_is_its_north_up_twin_flipped(tmp_path):
    pixels = noise(3, 60, 81)
    flipped = Affine(0.5, 0, 500_000, 0, 0.5, 5_000_000 - 30)
    north, _ = read_all(write(tmp_path / "n.tif", pixels), gsd=0.8)
    south, _ = read_all(write(tmp_path / "s.tif", pixels[:, ::-1], transform=flipped), gsd=0.8)
    assert np.abs(south[::-1].astype(int) - north).max() <= 1  # float sums run the other way round


@pytest.mark.parametrize("gsd", [0.5, 1.0])
def test_nodata_is_black_and_invalid(tmp_path, gsd):
    pixels = np.clip(noise(3, 64, 64), 1, 255)
    pixels[:, :32, :] = 0
    pixels[0, 40:50] = 0  # one band at the nodata value is a colour, not nodata
    image, valid = read_all(write(tmp_path / "a.tif", pixels, nodata=0), gsd=gsd)
    rows = len(image) // 2
    assert not valid[:rows].any() and valid[rows:].all()
    assert not image[:rows].any() and image[rows:].any(axis=(1, 2)).all()


def test_nodata_does_not_darken_its_neighbours(tmp_path):
    pixels = np.full((3, 8, 8), 200, np.uint16)
    pixels[:, :, 0] = 65535
    image, valid = read_all(
        write(tmp_path / "a.tif", pixels, nodata=65535), gsd=1.5, value_range=(0, 255)
    )
    # a third of the first column is nodata: it weighs nothing
    assert valid.all() and (image == 200).all()


@pytest.mark.parametrize("kind", ["nan", "undeclared", "every band", "internal mask", "alpha"])
def test_every_kind_of_nodata(tmp_path, kind):
    pixels, hole = noise(3, 40, 40).astype(np.float64) + 1, np.zeros((40, 40), bool)
    hole[10:20, 5:30] = True
    path = tmp_path / "a.tif"
    if kind == "nan":
        pixels[1, hole] = np.nan
        write(path, pixels)
    elif kind == "undeclared":
        pixels[:, hole] = np.finfo(float).min
        write(path, pixels)
        with open_image(path, [1, 2, 3], 0.5) as opened:
            assert robust_range([opened.sample()])[0] >= 1
    elif kind == "every band":
        pixels[:, hole] = -9999
        write(path, pixels, nodata=-9999)
    elif kind == "internal mask":
        write_mask(write(path, pixels.astype(np.uint8)), ~hole)
    else:
        alpha = np.where(hole, 0, 255)[None]
        colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        write(path, np.concatenate([pixels, alpha]).astype(np.uint8), colorinterp=colours)
    image, valid = read_all(path, value_range=(0, 255))
    assert np.array_equal(~valid, hole) and not image[hole].any()


def test_nodata_written_as_rounded_text_is_nodata(tmp_path):
    pixels = noise(3, 40, 40).astype(np.float32) / 255
    pixels[:, :10] = np.float32(-3.4028235e38)
    path = write(tmp_path / "a.tif", pixels, nodata=-3.40282306074e38)
    with rasterio.open(path) as dataset:
        masked = dataset.dataset_mask() == 0
    image, valid = read_all(path, value_range=(0, 1))
    assert masked[:10].all() and np.array_equal(~valid, masked)
    with open_image(path, [1, 2, 3], 0.5) as opened:
        assert robust_range([opened.sample()])[0] >= 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_a_nodata_value_in_one_band_is_a_colour(tmp_path, dtype):
    pixels = noise(3, 64, 64).astype(dtype)
    pixels[2, 20:40, 20:40] = 0
    path = write(tmp_path / "a.tif", pixels, nodata=0)
    image, valid = read_all(path, value_range=(0, 255))
    assert valid is None and np.array_equal(image[..., 2], pixels[2])


def test_a_band_without_data_spoils_neither_range_nor_neighbours(tmp_path):
    pixels = np.full((3, 64, 64), 0.5, np.float32)
    pixels[2, :, :30] = -9999
    path = write(tmp_path / "a.tif", pixels, nodata=-9999)
    with open_image(path, [1, 2, 3], 1.0) as opened:
        assert robust_range([opened.sample()]) == pytest.approx((0.5, 1.5))
    image, _ = read_all(path, gsd=0.75, value_range=(0, 1))
    # black, one mixed, grey
    assert image[..., 2].max() == 128 and (np.unique(image[0, :, 2]) < 128).sum() <= 2


@pytest.mark.parametrize("kind", ["mask", "alpha"])
def test_a_mask_and_transparency_win_over_nodata(tmp_path, kind):
    pixels, hole = noise(3, 40, 40), np.zeros((40, 40), bool)
    pixels[:, :8], hole[20:30] = 0, True  # black roofs that the nodata value would hide
    path = tmp_path / "a.tif"
    if kind == "alpha":
        colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        alpha = np.where(hole, 0, 255).astype(np.uint8)[None]
        write(path, np.concatenate([pixels, alpha]), colorinterp=colours, nodata=0)
    else:
        write_mask(write(path, pixels, nodata=0), ~hole)
    assert np.array_equal(~read_all(path)[1], hole)
    with open_image(path, [1, 2, 3], 0.5) as opened:
        assert np.array_equal(~opened.source_validity(Window(0, 0, 40, 40)), hole)


def test_near_infrared_called_alpha_leaves_the_word_to_nodata(tmp_path):
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    pixels = noise(4, 64, 64, high=120)
    pixels[:3, :9] = 0
    image, valid = read_all(write(tmp_path / "a.tif", pixels, colorinterp=colours, nodata=0))
    assert not valid[:9].any() and valid[9:].all()


def test_near_infrared_that_claims_to_be_alpha_masks_nothing(tmp_path):
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    path = write(tmp_path / "a.tif", noise(4, 64, 64, high=120), colorinterp=colours)
    assert read_all(path)[1] is None


def test_value_range_maps_linearly_and_clips(tmp_path):
    pixels = np.array([[[0, 1000, 2000], [3000, 4000, 60000]]], np.uint16)
    image, _ = read_all(write(tmp_path / "a.tif", pixels), bands=[1], value_range=(1000, 4000))
    assert image[..., 0].tolist() == [[0, 0, 85], [170, 255, 255]]
    with pytest.raises(InputError, match="uint16"):
        read_all(tmp_path / "a.tif", bands=[1])


def test_robust_range_forgets_outliers(tmp_path):
    pixels = noise(3, 200, 200, high=1001, dtype=np.uint16)
    pixels[:, :3] = 65535
    pixels[:, :, 100:] = 0
    with open_image(write(tmp_path / "a.tif", pixels, nodata=0), [1, 2, 3], 0.5) as image:
        low, high = robust_range([image.sample()])
    assert low == pytest.approx(20, abs=10) and high == pytest.approx(985, abs=30)
    assert robust_range([np.zeros(0)]) is None
    assert robust_range([np.full(9, 7)]) == (7, 8)


def test_missing_crs_and_missing_band_name_the_file(tmp_path):
    path = write(tmp_path / "grey.tif", noise(1, 20, 20), crs=None)
    with pytest.raises(InputError, match=r"grey\.tif: has 1 band, but band 3"):
        read_all(path)
    with pytest.raises(InputError, match=r"grey\.tif: carries no CRS"):
        read_all(path, bands=[1])
    image, _ = read_all(path, bands=[1], gsd=0.6, native=0.3)
    assert image.shape == (10, 10, 1)


@pytest.mark.parametrize("left", [0.5, 0.9999])
@pytest.mark.parametrize(
    "profile", [{"compress": "deflate"}, {}, {"tiled": True}, {"interleave": "band"}], ids=str
)
def test_a_truncated_file_names_itself(profile, left, tmp_path):
    path = write(tmp_path / "cut.tif", noise(3, 300, 300), **profile)
    read_all(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(InputError, match=r"cut\.tif: cannot be read"):
        read_all(path)


@pytest.mark.parametrize("bands", [[1], [1, 1, 1], [1, 2, 3]])
def test_numbers_in_a_table_of_colours_are_no_brightness(tmp_path, bands):
    path = write(tmp_path / "a.tif", noise(20, 20, 1), photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {i: (255 - i, i, 0, 255) for i in range(256)})
    with pytest.raises(InputError, match=r"a\.tif: is paletted.*gdal_translate -expand rgb"):
        read_all(path, bands)


def test_no_raster_at_all_is_said(tmp_path):
    path = tmp_path / "cut.tif"
    path.write_text("<html>")
    with pytest.raises(InputError, match=r"cut\.tif: cannot be read"):
        read_all(path)


def read_labels(folder, labels, gsd=0.5, classes=1, building=1, **profile):
    image = write(folder / "image.tif", np.zeros((3, *labels.shape), np.uint8))
    path = write(folder / "label.tif", labels, **profile)
    with open_image(image, [1, 2, 3], gsd) as opened, open_raster(path) as dataset:
        reader = RasterLabels(dataset, opened, classes, building)
        return reader.read(Window(0, 0, *opened.grid.shape))


def test_label_rasters(tmp_path):
    labels = noise(40, 40, high=2)
    assert np.array_equal(read_labels(tmp_path, labels), labels)
    assert np.array_equal(read_labels(tmp_path, labels * 255, building=255), labels)
    kinds = np.where(labels, 3, 255).astype(np.int32)
    assert np.array_equal(read_labels(tmp_path, kinds, classes=3), kinds)
    unknown = np.where(labels, 1, -1).astype(np.float32)
    assert np.array_equal(read_labels(tmp_path, unknown, nodata=-1), np.where(labels, 1, 255))
    # 0 is background, whatever the header says
    assert np.array_equal(read_labels(tmp_path, labels, nodata=0), labels)
    with pytest.raises(InputError, match=r"label\.tif: labels hold 3"):
        read_labels(tmp_path, kinds, classes=2)
    with pytest.raises(InputError, match="labels hold 7"):
        read_labels(tmp_path, labels * 7, building=255)


def test_labels_shrink_to_what_covers_most_and_grow_to_the_nearest(tmp_path):
    labels = np.zeros((6, 6), np.uint8)
    labels[:2, :2], labels[3, 3:5], labels[4:, :2] = [[1, 1], [1, 0]], 1, 255
    expected = [[1, 0, 0], [0, 0, 0], [255, 0, 0]]
    assert read_labels(tmp_path, labels, gsd=1.0).tolist() == expected
    assert np.array_equal(read_labels(tmp_path, labels, gsd=0.25), labels.repeat(2, 0).repeat(2, 1))


def test_labels_of_another_size_or_place_are_refused(tmp_path):
    image = write(tmp_path / "image.tif", noise(3, 40, 40))
    small = write(tmp_path / "small.tif", noise(40, 39, high=2))
    moved = write(
        tmp_path / "moved.tif", noise(40, 40, high=2), HALF_METRE @ Affine.translation(3, 0)
    )
    for path, words in (
        (small, "39×40 pixels for an image of 40×40"),
        (moved, "elsewhere"),
        (image, "3 bands"),
    ):
        with (
            open_image(image, [1], 0.5) as opened,
            open_raster(path) as dataset,
            pytest.raises(InputError, match=words),
        ):
            RasterLabels(dataset, opened, classes=1)


@pytest.mark.parametrize(
    ("crs", "transform", "words"),
    [
        (None, HALF_METRE, "carries no CRS"),
        ("EPSG:32633", Affine.identity(), "no geotransform"),
        # QGIS counts the rows of such pictures downwards
        ("EPSG:4326", Affine.scale(1, -1), "no geotransform"),
        ('LOCAL_CS["site",UNIT["metre",1]]', HALF_METRE, "site does not place it on Earth"),
        ("EPSG:5817", HALF_METRE, "Tombak LNG plant does not place it on Earth"),
        ("IAU_2015:30100", Affine(1e-5, 0, 10, 0, -1e-5, 20), "Moon"),
        ("EPSG:4326", HALF_METRE, "WGS 84 does not place it on Earth"),
    ],
)
def test_a_raster_that_lies_nowhere_takes_the_stated_gsd(tmp_path, crs, transform, words):
    path = write(tmp_path / "a.tif", noise(3, 40, 60), transform=transform, crs=crs)
    with open_raster(path) as dataset:
        assert words in unplaced(dataset) and grid_of(dataset).crs is None
    with pytest.raises(InputError, match=words):
        read_all(path)
    assert read_all(path, gsd=0.5, native=0.25)[0].shape == (20, 30, 3)


BLUE_FIRST = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]


@pytest.mark.parametrize(
    ("declared", "asked", "read"),
    [
        (BLUE_FIRST, [1, 2, 3], [3, 2, 1]),
        (BLUE_FIRST + [ColorInterp.undefined], [1, 2, 3, 4], [3, 2, 1, 4]),
        ([ColorInterp.undefined, *BLUE_FIRST[::-1]], [1, 2, 3], [2, 3, 4]),
        ([ColorInterp.undefined, *BLUE_FIRST[::-1]], [1, 2, 3, 4], [2, 3, 4, 1]),
        (BLUE_FIRST, [3, 2, 1], [3, 2, 1]),  # asked for by someone who knows the file
        (BLUE_FIRST, [1], [1]),
        (BLUE_FIRST[::-1], [1, 2, 3], [1, 2, 3]),
        ([ColorInterp.gray, ColorInterp.undefined, ColorInterp.undefined], [1, 2, 3], [1, 2, 3]),
    ],
)
def test_red_green_and_blue_are_where_the_file_says(tmp_path, declared, asked, read):
    path = write(
        tmp_path / "a.tif",
        noise(len(declared), 8, 8),
        colorinterp=declared,
        photometric="minisblack",
    )
    with open_raster(path) as dataset:
        assert declared_bands(dataset, asked) == read


@pytest.mark.parametrize(
    ("described", "asked", "read"),
    [
        (["Blue", "Green", "Red", "NIR"], [1, 2, 3], [3, 2, 1]),
        (["B02 blue", "B03 green", "B04 red", "B08 nir"], [1, 2, 3, 4], [3, 2, 1, 4]),
        (
            ["coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"],
            [1, 2, 3],
            [6, 4, 2],
        ),
        (["blue", "green", "red edge"], [1, 2, 3], [1, 2, 3]),
        (["red", "green", "blue"], [1, 2, 3], [1, 2, 3]),
        (["a", None, "blue"], [1, 2, 3], [1, 2, 3]),
    ],
)
def test_red_green_and_blue_are_where_the_bands_descriptions_say(tmp_path, described, asked, read):
    path = write(tmp_path / "a.tif", noise(len(described), 8, 8))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = described
    with open_raster(path) as dataset:
        assert declared_bands(dataset, asked) == read


def test_units_are_told_by_their_brightness():
    counts, reflectance, dim = np.arange(4000), np.linspace(0, 1, 99), np.arange(900)
    assert units([counts, reflectance, dim]) == [[1], [2, 0]]
    assert units([counts, np.zeros(9), np.zeros(0)]) == [[0]]
    assert units([-reflectance, -counts]) == [[0], [1]]


@pytest.mark.parametrize(
    ("labels", "transform", "taken"),
    [
        ("EPSG:25833", HALF_METRE, True),  # the same ground under another name
        ("EPSG:32632", HALF_METRE, False),  # the next zone
        ("EPSG:4326", Affine(5e-6, 0, -100, 0, -5e-6, -20), False),  # the other side of the Earth
        ("EPSG:3857", Affine(0.5, 0, 0, 0, -0.5, 0), False),
        (None, HALF_METRE, True),
        (None, HALF_METRE @ Affine.translation(0, 80), False),  # a world file of the next sheet
        ('LOCAL_CS["RGF93 / Lambert-93",UNIT["metre",1]]', HALF_METRE, True),
        (
            'LOCAL_CS["RGF93 / Lambert-93",UNIT["metre",1]]',
            HALF_METRE @ Affine.translation(40, 0),
            False,
        ),
        # its own numbers tell nothing
        ('LOCAL_CS["site",UNIT["metre",1]]', Affine(0.5, 0, 0, 0, -0.5, 20), True),
        ("EPSG:32633", Affine.identity(), True),
        # upside down
        ("EPSG:32633", HALF_METRE @ Affine.translation(0, 40) @ Affine.scale(1, -1), False),
    ],
)
def test_labels_lie_on_their_image_in_whatever_crs(tmp_path, labels, transform, taken):
    image = write(tmp_path / "image.tif", noise(3, 40, 40))
    path = write(tmp_path / "label.tif", noise(40, 40, high=2), transform=transform, crs=labels)
    with open_image(image, [1], 0.5) as opened, open_raster(path) as dataset:
        if taken:
            RasterLabels(dataset, opened, classes=1)
            return
        with pytest.raises(
            InputError,
            match=r"label\.tif: lies elsewhere .*rio warp LABELS NEW "
            r"--like IMAGE",
        ):
            RasterLabels(dataset, opened, classes=1)


def test_what_a_label_does_not_know_is_ignored(tmp_path):
    labels = noise(40, 40, high=2).astype(np.float32)
    labels[:5] = np.float32(-3.4028235e38)
    labels[5:9] = np.nan
    read = read_labels(tmp_path, labels, nodata=-3.40282306074e38)
    assert (read[:9] == 255).all() and np.array_equal(read[9:], labels[9:])
    image = write(tmp_path / "image.tif", noise(3, 40, 40))
    write_mask(
        write(tmp_path / "masked.tif", np.zeros((40, 40), np.uint8)),
        np.arange(40)[:, None] > np.full(40, 9),
    )
    with open_image(image, [1], 0.5) as opened, open_raster(tmp_path / "masked.tif") as dataset:
        read = RasterLabels(dataset, opened, classes=1).read(Window(0, 0, 40, 40))
    assert (read[:10] == 255).all() and not read[10:].any()
