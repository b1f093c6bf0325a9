"""data/measurements.py: sizes and brightness of objects as scikit-image has them, and sizes of pixels by metadata."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.measure import regionprops

import utils
from data.images import read_values
from data.measurements import MOST_MICROMETRES, measure, pixel_size, turned_sides


def blob(seed: int) -> np.ndarray:
    """A mask of several parts, some of them at the border."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :50]
    mask = np.zeros((40, 50), bool)
    for _ in range(2):
        y, x, a, b, turn = *rng.uniform(0, 40, 2), *rng.uniform(2, 12, 2), rng.uniform(0, 3)
        along = (rows - y) * np.cos(turn) + (columns - x) * np.sin(turn)
        across = (columns - x) * np.cos(turn) - (rows - y) * np.sin(turn)
        mask |= (along / a) ** 2 + (across / b) ** 2 < 1
    mask[20, 25] = True
    return mask


@pytest.mark.parametrize("seed", range(12))
def test_measurements_are_those_of_regionprops(seed):
    mask = blob(seed)
    values = np.random.default_rng(seed).integers(0, 40_000, (40, 50, 3)).astype(np.uint16)
    taken = measure(utils.mask_to_rle(mask), values)
    (region,) = regionprops(mask.astype(int), values)
    y1, x1, y2, x2 = region.bbox
    assert (taken.x, taken.y, taken.width_of_box, taken.height_of_box) == (x1, y1, x2 - x1, y2 - y1)
    assert taken.area == region.area
    assert taken.perimeter == pytest.approx(region.perimeter)
    assert taken.diameter == pytest.approx(region.equivalent_diameter_area)
    assert (taken.centroid_y - 0.5, taken.centroid_x - 0.5) == pytest.approx(region.centroid)
    assert taken.means == pytest.approx(region.intensity_mean)
    assert taken.deviations == pytest.approx(values[mask].std(axis=0))
    assert taken.touches_edge == bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    angles = np.linspace(0, np.pi / 2, 2000)
    y, x = np.nonzero(mask)
    corners = np.concatenate([np.stack([x + dx, y + dy]) for dx in (0, 1) for dy in (0, 1)], axis=1)
    along, across = (np.stack([np.cos(a), np.sin(a)], 1) @ corners for a in (angles, angles + np.pi / 2))
    smallest = (np.ptp(along, axis=1) * np.ptp(across, axis=1)).min()
    assert smallest * 0.997 <= taken.length * taken.width <= smallest + 1e-6, "no turn makes a smaller rectangle"
    assert taken.length >= taken.width


def test_measurements_by_hand():
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    taken = measure(utils.mask_to_rle(mask), np.full((10, 12, 1), 7.5))
    assert taken[:5] == (3, 2, 6, 3, 18)
    assert (taken.length, taken.width) == (6, 3)
    assert (taken.centroid_x, taken.centroid_y) == (6, 3.5)
    assert (taken.means, taken.deviations, taken.touches_edge) == ((7.5,), (0.0,), False)
    one = np.zeros((3, 3), bool)
    one[0, 1] = True
    taken = measure(utils.mask_to_rle(one), None)
    assert (taken.area, taken.length, taken.width, taken.perimeter, taken.means) == (1, 1, 1, 0, ())
    assert taken.touches_edge
    diagonal = turned_sides(np.eye(20, dtype=bool))
    assert diagonal == pytest.approx((20 * np.sqrt(2), np.sqrt(2)))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="without a pixel"):
        measure(utils.mask_to_rle(np.zeros((4, 4), bool)), None)
    with pytest.raises(ValueError, match=r"the picture is \[5, 4\], and the mask \[4, 4\]"):
        measure(utils.mask_to_rle(np.ones((4, 4), bool)), np.zeros((5, 4, 1)))


############################################################
#  Size of a pixel
############################################################


@pytest.mark.parametrize(("unit", "pixels", "expected"), [
    ("micron", 4.0, 0.25), ("um", 2.0, 0.5), ("\\u00B5m", 2.0, 0.5), ("nm", 0.01, 0.1), ("mm", 1000.0, 1.0),
    ("pixel", 1.0, None), ("", 1.0, None), ("furlong", 1.0, None),
])  # fmt: skip
def test_imagej_says_unit_and_resolution(tmp_path, unit, pixels, expected):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.zeros((8, 9), np.uint16), imagej=True, resolution=(pixels, pixels), metadata={"unit": unit}
    )
    assert pixel_size(path) == (None if expected is None else pytest.approx(expected, rel=1e-4))


@pytest.mark.parametrize(("x", "y", "unit", "expected"), [
    (0.325, 0.325, None, 0.325), (325, 325, "nm", 0.325), (0.3, 0.3, "mm", 300), (0.3, 0.6, "µm", None),
    (0.3, 0.3, "reference frame", None),
])  # fmt: skip
def test_ome_says_the_physical_size(tmp_path, x, y, unit, expected):
    path = tmp_path / "a.ome.tif"
    sizes = {"PhysicalSizeX": x, "PhysicalSizeY": y}
    sizes |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit} if unit else {}
    tifffile.imwrite(path, np.zeros((8, 9), np.uint16), metadata={"axes": "YX", **sizes})
    assert pixel_size(path) == (None if expected is None else pytest.approx(expected))


def test_plain_files_have_a_size_only_where_it_is_one_of_a_microscope(tmp_path):
    path, pixels = tmp_path / "a.tif", np.zeros((8, 9), np.uint8)
    tifffile.imwrite(path, pixels, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", metadata=None)
    assert pixel_size(path) == pytest.approx(0.5)
    tifffile.imwrite(path, pixels, resolution=(118, 118), resolutionunit="CENTIMETER", metadata=None)
    assert pixel_size(path) is None, f"300 dots an inch are above {MOST_MICROMETRES} micrometres"
    tifffile.imwrite(path, pixels, resolution=(72, 72), resolutionunit="INCH", metadata=None)
    assert pixel_size(path) is None
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(300, 300))
    assert pixel_size(tmp_path / "a.png") is None
    path.write_bytes(b"II*\0" + b"\xff" * 40)
    assert pixel_size(path) is None
    path.write_bytes(b"")
    assert pixel_size(path) is None


############################################################
#  The picture's own values
############################################################


def test_values_stay_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 4000, (9, 11), np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_values(tmp_path / "deep.png"), deep[..., None])
    colours = rng.integers(0, 255, (9, 11, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    assert np.array_equal(read_values(tmp_path / "colours.png"), colours)
    Image.fromarray(colours[..., 0]).save(tmp_path / "gray.png")
    assert np.array_equal(read_values(tmp_path / "gray.png"), colours[..., :1])
    five = rng.integers(0, 60_000, (5, 9, 11), np.uint16)
    tifffile.imwrite(tmp_path / "five.tif", five, imagej=True, metadata={"axes": "CYX"})
    assert np.array_equal(read_values(tmp_path / "five.tif"), five.transpose(1, 2, 0)), "all channels"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_values(tmp_path / "turned.png"), np.rot90(colours, -1))
