"""Tables and outlines of cells, read back by the readers of those programs they are for."""

import csv
import io
import json
import math

import numpy as np
import pytest
import shapely
from roifile import ROI_TYPE, ImagejRoi, roiread
from scipy import ndimage

from unet_jax import measure
from unet_jax.files.cell_table import join_tables, write_table
from unet_jax.files.geojson import write_geojson
from unet_jax.files.hyperstack import Frame
from unet_jax.files.rois import write_rois
from unet_jax.outlines import outlines

RNG = np.random.default_rng(0)
RING = np.pad(np.pad(np.zeros((2, 3), int), 1, constant_values=7), 1)
# The hole touches the outline at a corner.
TOUCHING = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0]])
APART = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 2]])


def covered(polygons, shape):
    """Where the centre of a pixel lies in the polygons, which are valid."""
    shapes = [shapely.Polygon(*polygon) for polygon in polygons]
    region = shapes[0] if len(shapes) == 1 else shapely.MultiPolygon(shapes)
    assert region.is_valid
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return shapely.contains_xy(region, x, y)


def random_cells():
    """Of one pixel, with holes, at the border, in pieces, touching at sides and corners."""
    for _ in range(60):
        cells = RNG.integers(0, RNG.integers(2, 5), RNG.integers(1, 9, 2))
        yield cells
        yield ndimage.zoom(cells, 3, order=0)


def test_outlines_by_hand():
    ((pixel,),) = outlines(np.array([[0, 0], [0, 5]])).values()
    np.testing.assert_array_equal(pixel.outline, [[2, 1], [2, 2], [1, 2], [1, 1]])
    ((ring,),) = outlines(RING).values()
    np.testing.assert_array_equal(ring.outline, [[6, 1], [6, 5], [1, 5], [1, 1]])
    (hole,) = ring.holes
    np.testing.assert_array_equal(hole, [[5, 4], [5, 2], [2, 2], [2, 4]])
    found = outlines(APART)
    assert [*found] == [2, 3] and [len(polygons) for polygons in found.values()] == [1, 2]
    assert outlines(np.zeros((3, 2), int)) == {}


def test_outlines_hold_exactly_the_pixels_of_their_cell():
    for cells in [RING, TOUCHING, APART, *random_cells()]:
        found = outlines(cells)
        assert [*found] == [number for number in np.unique(cells) if number]
        for number, polygons in found.items():
            np.testing.assert_array_equal(covered(polygons, cells.shape), cells == number)
            area = sum(shapely.Polygon(*polygon).area for polygon in polygons)
            assert area == (cells == number).sum()


def rings_of(roi):
    if roi.roitype == ROI_TYPE.TRACED:
        return [roi.coordinates()]
    return ImagejRoi.path2coords(roi.multi_coordinates)


def filled(rings, shape):
    """The even-odd rule, as ImageJ fills a composite outline."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for ring in rings:
        inside ^= shapely.contains_xy(shapely.Polygon(ring), x, y)
    return inside


def test_rois_are_the_cells(tmp_path):
    pages = [*random_cells()][:20]
    write_rois(tmp_path / "rois.zip", pages, Frame("Z", (20,)))
    rois = {roi.name: roi for roi in roiread(tmp_path / "rois.zip")}
    expected = 0
    for page, cells in enumerate(pages):
        for number in np.unique(cells[cells > 0]):
            roi = rois[f"{page:04d}-{number:04d}"]
            np.testing.assert_array_equal(filled(rings_of(roi), cells.shape), cells == number)
            assert (roi.position, roi.z_position, roi.t_position) == (page + 1, 0, 0)
            y, x = np.nonzero(cells == number)
            assert (roi.left, roi.top) == (x.min(), y.min())
            expected += 1
    assert len(rois) == expected > 20


@pytest.mark.parametrize(
    "frame, name, place",
    [
        (Frame(), "0001", (0, 0, 0)),
        (Frame(channels=3), "0001", (0, 0, 0)),
        (Frame("T", (6,)), "0005-0001", (6, 0, 0)),
        (Frame("T", (6,), channels=2), "0005-0001", (0, 0, 6)),
        (Frame("TZ", (2, 3)), "0005-0001", (0, 3, 2)),
    ],
)
def test_rois_lie_on_their_page(tmp_path, frame, name, place):
    pages = math.prod(frame.shape)
    write_rois(tmp_path / "rois.zip", [APART * 0] * (pages - 1) + [APART // 2], frame)
    (roi,) = roiread(tmp_path / "rois.zip")
    assert roi.name == name
    assert (roi.position, roi.z_position, roi.t_position) == place


def test_rois_of_a_large_image(tmp_path):
    """Beyond the 16 bits of ImageJ's coordinates."""
    cells = np.zeros((3, 70_000), np.uint8)
    cells[1, 69_990:69_995] = 1
    write_rois(tmp_path / "rois.zip", [cells], Frame())
    (roi,) = roiread(tmp_path / "rois.zip")
    np.testing.assert_array_equal(
        roi.coordinates(), [[69_995, 1], [69_995, 2], [69_990, 2], [69_990, 1]]
    )


NAMES, COLOURS = ("background", "nucleus", "debris"), np.array([[0] * 3, [255] * 3, [255, 0, 0]])


def test_geojson_is_the_cells_with_their_measurements(tmp_path):
    pages = [cells for cells in random_cells()][:12]
    image = [RNG.integers(0, 255, cells.shape) for cells in pages]
    probability = [RNG.dirichlet([1, 1, 1], cells.shape) for cells in pages]
    tables = [
        measure(*page, 0.5, probability=of_page)
        for *page, of_page in zip(image, pages, probability, strict=True)
    ]
    file, frame = tmp_path / "cells.geojson", Frame("TZ", (4, 3))
    write_geojson(file, pages, tables, frame, NAMES, COLOURS)
    features = json.loads(file.read_text())["features"]
    kinds = set()
    for page, (cells, table) in enumerate(zip(pages, tables, strict=True)):
        for row, number in enumerate(table["number"]):
            feature = features.pop(0)
            assert feature["geometry"].pop("plane") == {"c": -1, "z": page % 3, "t": page // 3}
            region = shapely.from_geojson(json.dumps(feature["geometry"]))
            assert region.is_valid
            y, x = np.mgrid[: cells.shape[0], : cells.shape[1]] + 0.5
            np.testing.assert_array_equal(shapely.contains_xy(region, x, y), cells == number)
            properties = feature["properties"]
            assert (properties["objectType"], properties["name"]) == ("detection", str(number))
            kind = table["class"][row]
            kinds.add(int(kind))
            colour = COLOURS[kind].tolist()
            assert properties["classification"] == {"name": NAMES[kind], "color": colour}
            expected = {
                name: float(column[row])
                for name, column in table.items()
                if name not in ("number", "class") and not np.isnan(column[row])
            }
            assert properties["measurements"] == pytest.approx(expected)
    assert not features and kinds == {1, 2}


def test_geojson_without_any_cell(tmp_path):
    nothing = np.zeros((2, 3), int)
    table = measure(nothing, nothing, probability=np.ones((2, 3, 2)))
    write_geojson(tmp_path / "cells.geojson", [nothing], [table], Frame(), NAMES, COLOURS)
    read = json.loads((tmp_path / "cells.geojson").read_text())
    assert read == {"type": "FeatureCollection", "features": []}


def test_measurements_by_hand():
    cells = np.zeros((9, 12), np.uint16)
    cells[1:3, 2:8], cells[8, 11], cells[4:8, 0] = 4, 2, 9
    image = np.arange(108, dtype=np.uint8).reshape(9, 12)
    probability = np.full((9, 12, 2), 0.5, np.float32)
    probability[1:3, 2:8] = [0.25, 0.75]
    table = measure(image, cells, 2.0, probability=probability)
    for name, expected in {
        "number": [2, 4, 9],
        "centre_x_um": [23, 10, 1],
        "centre_y_um": [17, 4, 12],
        "area_um2": [4, 48, 16],
        "perimeter_um": [0, 24, 4],  # through the centres of the pixels at the border
        "equivalent_diameter_um": 2 * np.sqrt(np.array([4, 48, 16]) / np.pi),
        "eccentricity": [0, np.sqrt(1 - 3 / 35), 1],  # variances (n * n - 1) / 12
        "orientation_degrees": [np.nan, 0, 90],
        "solidity": [1, 1, 1],
        "mean": [107, 22.5, 66],
        "minimum": [107, 14, 48],
        "maximum": [107, 31, 84],
        "at_border": [True, False, True],
        "mean_probability": [0.5, 0.75, 0.5],
    }.items():
        np.testing.assert_allclose(table.pop(name), expected, rtol=1e-6, err_msg=name)
    assert not table


def blobs(shape=(80, 90)):
    cells = ndimage.label(ndimage.gaussian_filter(RNG.normal(size=shape), 3) > 0.05)[0]
    sizes = np.bincount(cells.ravel())
    cells[sizes[cells] < 5] = 0
    assert len(np.unique(cells)) > 10
    return cells


@pytest.mark.parametrize("pixel_size", [None, 0.25, (0.5, 0.2)])
def test_measurements_are_those_computed_apart(pixel_size):
    cells, image = blobs(), RNG.normal(size=(80, 90, 5)).astype(np.float32)
    table = measure(image, cells, pixel_size)
    width, height = np.broadcast_to(pixel_size or 1, 2)
    unit = "um" if pixel_size else "px"
    assert {name.split("_")[-1] for name in table if "diameter" in name} == {unit}
    for row, number in enumerate(table["number"]):
        y, x = np.nonzero(cells == number)
        y, x, values = (y + 0.5) * height, (x + 0.5) * width, image[cells == number]
        area = len(x) * width * height
        covariance = np.cov(np.stack([x, -y]), bias=True)
        (short, long), axes = np.linalg.eigh(covariance)
        (polygon,) = outlines(cells)[number]
        hull = shapely.Polygon(polygon.outline).convex_hull.area
        expected = {
            f"centre_x_{unit}": x.mean(),
            f"centre_y_{unit}": y.mean(),
            f"area_{unit}2": area,
            f"equivalent_diameter_{unit}": np.sqrt(4 * area / np.pi),
            "eccentricity": np.sqrt(1 - max(short, 0) / long),
            **{f"mean_{c + 1}": values[:, c].mean() for c in range(5)},
            **{f"minimum_{c + 1}": values[:, c].min() for c in range(5)},
            **{f"maximum_{c + 1}": values[:, c].max() for c in range(5)},
        }
        found = {name: table[name][row] for name in expected}
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
        turned = np.degrees(np.arctan2(*axes[::-1, 1]))
        difference = (table["orientation_degrees"][row] - turned + 90) % 180 - 90
        assert abs(difference) < 1e-3 / (1 - short / long)
        # scikit-image's hull is of the pixels' sides' middles.
        assert table["solidity"][row] == pytest.approx(len(x) / hull, abs=0.25)
    perimeter = table[f"perimeter_{unit}"]
    assert np.isnan(perimeter).all() if width != height else (perimeter >= 0).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_means_of_many_floats_are_exact(dtype):
    image = np.full((1500, 1000, 2), 93.4, dtype)
    table = measure(image, np.ones((1500, 1000), int))
    assert table["mean_1"] == table["mean_2"] == float(image[0, 0, 0])


def test_numbers_of_cells_may_be_large():
    table, large = (measure(np.eye(3), APART * factor, 0.5) for factor in (1, 2**60))
    np.testing.assert_array_equal(large.pop("number"), table.pop("number") * 2**60)
    np.testing.assert_equal(large, table)


def test_what_cannot_be_measured():
    cells = np.ones((3, 4), int)
    with pytest.raises(ValueError, match=r"image: expected a shape that begins with \(3, 4\)"):
        measure(np.zeros((4, 3)), cells)
    with pytest.raises(ValueError, match="probability: expected a shape"):
        measure(np.zeros((3, 4)), cells, probability=np.zeros((3, 3, 2)))
    for size in (0, -1, np.nan, np.inf, (1, 0)):
        with pytest.raises(ValueError, match="pixel_size: expected more than 0"):
            measure(np.zeros((3, 4)), cells, size)


def test_tables_are_written_and_joined(tmp_path):
    first = measure(np.ones((3, 3)), APART, 0.5, probability=np.full((3, 3, 3), [0.2, 0.3, 0.5]))
    second = measure(np.ones((3, 3, 2)), APART * 0)
    third = measure(np.ones((3, 3)), APART)
    write_table(tmp_path / "a_table.csv", "a, 1.tif", [first, first], NAMES)
    write_table(tmp_path / "b_table.csv", "b.tif", [second], NAMES)
    write_table(tmp_path / "c_table.csv", "\u00e4.tif", [third], NAMES)
    join_tables(tmp_path, sorted(tmp_path.glob("*_table.csv")))
    rows = [*csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text(encoding="utf-8")))]
    assert [(row["image"], row["page"], row["number"]) for row in rows] == [
        *[("a, 1.tif", page, number) for page in "01" for number in "23"],
        *[("\u00e4.tif", "0", number) for number in "23"],
    ]
    assert [row["area_um2"] for row in rows] == ["0.25", "0.5"] * 2 + [""] * 2
    assert [row["area_px2"] for row in rows] == [""] * 4 + ["1", "2"]
    assert [row["class"] for row in rows] == ["debris"] * 4 + [""] * 2
    assert rows[0]["orientation_degrees"] == "" and rows[1]["orientation_degrees"] == "135"


def test_micrometres():
    size = (2.0, 3.0)
    assert Frame(pixel_size=size, unit="um").micrometres() == size
    assert Frame(pixel_size=size, unit="nm").micrometres() == pytest.approx((2e-3, 3e-3))
    assert Frame(pixel_size=size, unit="cm").micrometres() == (2e4, 3e4)
    for unknown in (Frame(), Frame(pixel_size=size), Frame(pixel_size=size, unit="inch")):
        assert unknown.micrometres() is None
