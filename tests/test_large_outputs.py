"""Results of large images: the same objects, pixels and numbers as in one piece, written row by row."""

import csv
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import TinyConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.crops import Crop
from data.georeference import Georeference
from data.measurements import pixel_size
from data.recognise import Records
from data.records import Findings, Picture
from data.regions import ArraySource
from data.sources import PictureFile
from data.writers import tiled_labels
from data.writers.coco import write_coco
from data.writers.common import Overlaps
from detections import ImageDetections
from evaluation import large_outputs
from evaluation.large_outputs import (
    CAPTIONED,
    CocoObjects,
    LargePicture,
    NumberedRows,
    coco_problem,
    coco_results_of,
    number_tiles,
    preview,
    table_of_large,
    table_rows,
    write_label,
    write_labels_of_large,
    write_preview,
)
from evaluation.own_detect import PictureResults
from evaluation.own_outputs import Table, objects_of, rows_of, table_of
from evaluation.own_results import Entry, coco_results
from tiles import TiledDetections
from visualize import random_colors

NAMES = TinyConfig.CLASS_NAMES
FACTORS = [0.0] * 6 + [1.0, 1.0, -2.0, 1.0, 1.0, -3.0] * 3  # of ACCEPT_CALIBRATION, for four classes


UTM = Georeference("EPSG:32633", (0.5, 0.0, 389_000.25, 0.0, -0.5, 5_820_000.75))


@pytest.fixture
def small(monkeypatch):
    """Tiles, blocks and regions of 16 pixels, so that small pictures have many of them."""
    monkeypatch.setattr(tiled_labels, "SIDE", 16)
    monkeypatch.setattr(large_outputs, "SIDE", 16)
    monkeypatch.setattr(large_outputs, "_BLOCK", 16)
    monkeypatch.setattr(large_outputs, "_KEPT_BYTES", 2000)
    monkeypatch.setattr(large_outputs, "_REGION", 16)


def found_of(crops, scores, ious=None) -> TiledDetections:
    """What a row of tiles has found: crops with their mask scores."""
    scores = np.array(scores, np.float32)
    boxes = [(y, x, y + mask.shape[0], x + mask.shape[1]) for y, x, mask in crops]
    return TiledDetections(
        rois=np.array(boxes, np.float32).reshape(-1, 4),
        class_ids=np.array([1 + i % 3 for i in range(len(crops))], np.int32),
        scores=scores,
        mask_ious=None if ious is None else np.array(ious, np.float32),
        mask_scores=scores if ious is None else scores * np.array(ious, np.float32),
        masks=list(crops),
        pieces=np.array([1 + i % 2 for i in range(len(crops))], np.int32),
        is_cut=np.array([i % 3 == 1 for i in range(len(crops))], bool),
    )


def large_of(rows, pixels, threshold=0.0, config=None, **fields) -> LargePicture:
    """A picture of some rows of tiles. pixels: an array, or the size of a black one."""
    pixels = np.zeros(pixels, np.uint8) if isinstance(pixels, tuple) else pixels
    objects = NumberedRows(lambda: rows, threshold)
    picture = PictureFile("/slides/a.tif", "a.tif")
    return LargePicture(picture, ArraySource(pixels), objects, config or TinyConfig(), NAMES, **fields)


def random_rows(seed: int, size=(70, 45), rows=4, objects=3) -> list[TiledDetections]:
    """Objects in any place, given in any row: with holes and parts, overlapping, of one pixel, at the border."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(rows):
        crops = []
        for _ in range(rng.integers(objects + 1)):
            height, width = rng.integers(1, 1 + np.minimum(size, rng.choice([1, 12, 70])))
            y, x = rng.integers(0, size[0] - height + 1), rng.integers(0, size[1] - width + 1)
            mask = rng.random((height, width)) < 0.7
            mask.flat[rng.integers(mask.size)] = True
            crops.append(Crop(int(y), int(x), mask))
        result.append(found_of(crops, rng.choice([0.5, 0.6, 0.7, 0.8], len(crops)), rng.uniform(0.5, 1, len(crops))))
    return result


def whole(large: LargePicture) -> tuple[PictureResults, TiledDetections]:
    """The results as those of an ordinary picture, best mask first, and the same with crops."""
    found = TiledDetections.cat([found for found, _ in large.objects]).sorted_by("mask_scores")
    codes = found.to_image_detections(large.size)
    assert type(codes) is ImageDetections
    accept = None
    for results, numbers in large.rows(""):
        if results.accept is not None:
            accept = np.zeros(len(found)) if accept is None else accept
            accept[np.array(numbers, int) - 1] = results.accept
    return PictureResults(large.picture, *large.size, codes, accept), found


def full_mask(crop: Crop, size) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[crop.y : crop.y + crop.mask.shape[0], crop.x : crop.x + crop.mask.shape[1]] = crop.mask
    return mask


def square(y, x, side=2) -> Crop:
    return Crop(y, x, np.ones((side, side), bool))


############################################################
#  Numbers
############################################################


def test_numbers_are_by_mask_score_and_ties_by_place():
    first = found_of([square(0, 0), square(0, 5)], [0.7, 0.9])
    second = found_of([square(9, 0), square(9, 5), square(9, 9)], [0.7, 0.3, 0.95])
    objects = NumberedRows(lambda: iter([first, second]), 0.5)
    assert len(objects) == 4
    for _ in range(2):
        (_found, numbers), (later, others) = objects
        assert (numbers.tolist(), others.tolist()) == ([3, 2], [4, 1])
        assert [crop.x for crop in later.masks] == [0, 9], "the object below the threshold is left out"
        assert later.mask_scores.tolist() == pytest.approx([0.7, 0.95])


def test_thresholds_are_compared_as_in_ordinary_pictures():
    rows = [found_of([square(0, 0), square(4, 4)], [0.9, 0.5])]
    assert len(NumberedRows(lambda: rows, 0.5)) == 2
    assert len(NumberedRows(lambda: rows, float(np.float32(0.9)))) == 1
    assert len(NumberedRows(lambda: rows, 0.9)) == 0, "the float32 is a little less"


def test_masks_lose_their_empty_sides_and_empty_ones_go():
    mask = np.zeros((6, 7), bool)
    mask[2:4, 3] = True
    objects = NumberedRows(lambda: [found_of([Crop(10, 20, mask), Crop(0, 0, mask & False)], [0.9, 0.9])], 0)
    ((found, numbers),) = objects
    assert found.masks[0][:2] == (12, 23)
    assert found.masks[0].mask.tolist() == [[True], [True]]
    assert numbers.tolist() == [1]


def test_complete_says_what_no_later_object_touches():
    rows = [[square(0, 0)], [], [square(30, 0), square(8, 1)], [square(20, 0)], []]
    objects = NumberedRows(lambda: [found_of(crops, [0.9] * len(crops)) for crops in rows], 0)
    assert objects.complete == [8, 8, 20, np.inf, np.inf]


def test_rows_that_change_are_an_error():
    rows = [found_of([square(0, 0)], [0.9])]
    objects = NumberedRows(lambda: list(rows), 0)
    rows.append(rows[0])
    with pytest.raises(ValueError, match="the rows had 1 objects when they were read first"):
        list(objects)
    del rows[:]
    with pytest.raises(ValueError, match="and now 0"):
        list(objects)


############################################################
#  Label images
############################################################


def rendered(large: LargePicture) -> np.ndarray:
    """The label image in one piece."""
    values = np.zeros(large.size, np.uint32)
    for number, crop in reversed(list(enumerate(whole(large)[1].masks, 1))):
        values[full_mask(crop, large.size)] = number
    return values


def assembled(large: LargePicture) -> np.ndarray:
    values = np.zeros(large.size, np.uint32)
    for y, x, part in number_tiles(large, Overlaps()):
        if part is not None:
            assert part.any()
            values[y : y + part.shape[0], x : x + part.shape[1]] = part
    return values


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_tiles_are_those_of_the_whole_label_image(seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_outputs, "SIDE", 16)
        large = large_of(random_rows(seed), (70, 45))
        assert (assembled(large) == rendered(large)).all()
        places = [(tile.y, tile.x) for tile in number_tiles(large, Overlaps())]
    assert places == list(itertools.product(range(0, 70, 16), range(0, 45, 16)))


def test_tiles_are_given_as_soon_as_nothing_can_touch_them(small):
    """Three rows of tiles; the last object of the first one comes with the second row of objects."""
    rows = [[square(0, 0)], [square(15, 30), square(40, 0)], [square(33, 20)], [square(47, 0, 1)]]
    rows = [found_of(crops, [0.9] * len(crops)) for crops in rows]
    large, read = large_of(rows, (48, 40)), []
    large.objects._rows = lambda: (read.append(i) or found for i, found in enumerate(rows))
    done = [(tile.y, max(read)) for tile in number_tiles(large, Overlaps()) if tile.x == 0]
    assert done == [(0, 1), (16, 1), (32, 3)]


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33)])
@pytest.mark.parametrize("objects", [0, 1])
def test_tiff_of_any_size(small, tmp_path, size, objects):
    rows = [found_of([square(size[0] - 1, size[1] - 1, 1)][:objects], [0.9][:objects])]
    path = write_label(large_of(rows, size), tmp_path / "masks" / "a.tif")
    with tifffile.TiffFile(path) as tiff:
        assert (tiff.is_bigtiff, tiff.pages[0].is_tiled, tiff.pages[0].dtype) == (True, True, np.uint32)
        assert tiff.asarray().tolist() == rendered(large_of(rows, size)).tolist()
    assert pixel_size(path) is None
    assert [file.name for file in path.parent.iterdir()] == ["a.tif"]


def test_pixels_of_several_objects_are_counted(small, tmp_path):
    """In tiles of 16: 8 x 8 pixels of two objects over a corner of four tiles, 4 x 4 of them of three."""
    rows = [found_of([square(10, 10, 12), square(14, 14, 12), square(18, 18, 2)], [0.9, 0.8, 0.7])]
    large, overlaps = large_of(rows, (40, 40)), Overlaps()
    write_label(large, tmp_path / "a.tif", overlaps)
    assert overlaps.pixels == 8 * 8
    write_labels_of_large(large, "label_images", tmp_path, "b.tif", overlaps)
    assert overlaps.pixels == 2 * 8 * 8


def test_no_replay_at_all_is_a_blank_image(small, tmp_path):
    path = write_label(large_of([], (20, 30)), tmp_path / "a.tif")
    assert tifffile.imread(path).tolist() == np.zeros((20, 30), int).tolist()


def test_tiff_keeps_the_size_of_a_pixel_and_is_the_same_again(small, tmp_path):
    rows = random_rows(3)
    large = large_of(rows, (70, 45), pixel_size=0.25)
    paths = [write_label(large, tmp_path / name / "a.tif") for name in "ab"]
    assert pixel_size(paths[0]) == pytest.approx(0.25)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert (tifffile.imread(paths[0]) == rendered(large)).all()
    with Image.open(paths[0]) as image:
        assert (np.array(image) == rendered(large)).all(), "Pillow reads it too"


def test_tiff_has_tiles_of_512_pixels_by_default(tmp_path):
    crops = [Crop(500, 500, np.ones((300, 700), bool))]
    large = large_of([found_of(crops, [0.9])], (900, 1300), pixel_size=50.0, georeference=UTM)
    path = write_label(large, tmp_path / "a.tif")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].tile == (512, 512)
        assert (tiff.asarray() == rendered(large)).all()
    assert pixel_size(path) == pytest.approx(50)
    lines = path.with_suffix(".tfw").read_text().splitlines()
    assert [float(line) for line in lines] == [0.5, 0, 0, -0.5, 389_000.5, 5_820_000.5], "the centre of the first pixel"


def test_a_failed_write_leaves_the_former_file(small, tmp_path):
    path = write_label(large_of(random_rows(1), (70, 45)), tmp_path / "a.tif")
    before = path.read_bytes()
    large = large_of(random_rows(2), (70, 45))
    large.objects._rows = list
    with pytest.raises(ValueError, match="changed meanwhile"):
        write_label(large, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be named .tif, .tiff, .zarr, got a.png"):
        write_label(large_of([], (3, 3)), tmp_path / "a.png")


def zarr_package():
    return pytest.importorskip("zarr", reason="zarr is not installed here: pip install zarr")


def test_ome_zarr(small, tmp_path):
    zarr = zarr_package()
    large = large_of(random_rows(5), (70, 45), pixel_size=0.5)
    path = tmp_path / "masks" / "a.zarr"
    for _ in range(2):  # the second one replaces the first
        write_label(large, path)
        root = zarr.open_group(str(path), mode="r")
        expected = rendered(large)
        for level, factor in enumerate((1, 2, 4, 8)):
            array = root[str(level)]
            assert (array.dtype, array.chunks) == (np.uint32, (16, 16))
            assert (array[:] == expected[::factor, ::factor]).all()
        assert "4" not in root
        assert [file.name for file in path.parent.iterdir()] == ["a.zarr"]
    attributes = json.loads((path / ".zattrs").read_text())
    assert attributes["image-label"] == {"version": "0.4"}
    (image,) = attributes["multiscales"]
    assert image["version"] == "0.4"
    assert image["axes"] == [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    scales = [entry["coordinateTransformations"] for entry in image["datasets"]]
    assert scales == [[{"type": "scale", "scale": [0.5 * 2**level] * 2}] for level in range(4)]
    assert (path / "0" / "0" / "0").is_file(), "chunks in folders, as OME-Zarr wants them"


def test_a_failed_ome_zarr_leaves_the_former_one(small, tmp_path):
    zarr = zarr_package()
    path = tmp_path / "a.zarr"
    former = large_of(random_rows(1), (70, 45))
    write_label(former, path)
    large = large_of(random_rows(2), (70, 45))
    large.objects._rows = list
    with pytest.raises(ValueError, match="changed meanwhile"):
        write_label(large, path)
    assert (zarr.open_group(str(path), mode="r")["0"][:] == rendered(former)).all()
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


def test_without_zarr_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    monkeypatch.setitem(sys.modules, "numcodecs", None)
    with pytest.raises(ValueError, match=r"a.zarr: OME-Zarr needs the package zarr: pip install zarr"):
        write_label(large_of([], (3, 3)), tmp_path / "a.zarr")


############################################################
#  Polygons
############################################################


def read_features(path: Path) -> list[dict]:
    return json.loads(path.read_text())["features"]


def mask_of(feature: dict, size) -> np.ndarray:
    """The pixels inside of an odd number of rings: each edge that leads up or down turns what is right of it."""
    geometry = feature["geometry"]
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    turns = np.zeros((size[0], size[1] + 1), int)
    for ring in itertools.chain.from_iterable(polygons):
        assert ring[0] == ring[-1]
        for (x, y), (other_x, other_y) in itertools.pairwise(ring):
            assert (x == other_x) != (y == other_y), "along the edges of pixels"
            if x == other_x:
                turns[min(y, other_y) : max(y, other_y), x] += 1
    return turns.cumsum(axis=1)[:, :-1] % 2 == 1


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_polygons_give_the_masks_back(tmp_path_factory, seed):
    large = large_of(random_rows(seed), (70, 45))
    path = write_label(large, tmp_path_factory.mktemp("polygons") / "a.geojson")
    features = read_features(path)
    crops = whole(large)[1].masks
    assert [feature["properties"]["measurements"]["number"] for feature in features] == [
        number for _, numbers in large.objects for number in numbers.tolist()
    ]
    for feature in features:
        numbers = feature["properties"]["measurements"]
        expected = full_mask(crops[numbers["number"] - 1], large.size)
        assert (mask_of(feature, large.size) == expected).all()
        assert numbers["area_px"] == expected.sum()


def test_properties_of_polygons(tmp_path):
    config = TinyConfig(ACCEPT_CALIBRATION=FACTORS)
    rows = [found_of([square(0, 0), square(4, 4)], [0.9, 0.8], [0.5, 0.75])]
    large = large_of(rows, (9, 9), config=config)
    first, second = read_features(write_label(large, tmp_path / "a.geojson"))
    accept = whole(large)[0].accept
    assert first["properties"] == {
        "objectType": "annotation", "classification": {"name": "cat"},
        "measurements": {
            "score": 0.9, "mask_iou": 0.5, "mask_score": 0.45, "accept": round(accept[1], 6), "number": 2, "area_px": 4
        },
        "pieces": 1, "is_cut": False,
    }  # fmt: skip
    assert (second["properties"]["pieces"], second["properties"]["is_cut"]) == (2, True)
    assert first["geometry"] == {"type": "Polygon", "coordinates": [[[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]]}


def ring_area(ring) -> float:
    x, y = np.array(ring[:-1]).T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


def test_polygons_on_a_map(tmp_path):
    mask = np.ones((3, 3), bool)
    mask[1, 1] = False
    rows = [found_of([Crop(2, 4, mask)], [0.9])]
    path = write_label(large_of(rows, (9, 9), georeference=UTM), tmp_path / "a.geojson")
    contents = json.loads(path.read_text())
    assert contents["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    (feature,) = contents["features"]
    outer, hole = feature["geometry"]["coordinates"]
    corners = {(389_002.25 + 1.5 * right, 5_819_999.75 - 1.5 * down) for right in (0, 1) for down in (0, 1)}
    assert set(map(tuple, outer)) == corners, "exact"
    assert (ring_area(outer), ring_area(hole)) == (2.25, -0.25), "counterclockwise, and holes the other way"
    properties = feature["properties"]
    assert (properties["class"], properties["number"], properties["score"]) == ("cat", 1, 0.9), "for programs for maps"


@pytest.mark.parametrize(
    ("crs", "name"),
    [
        ("EPSG:4326", None), ("OGC:CRS84", None), ("epsg:3857", "urn:ogc:def:crs:EPSG::3857"),
        ('PROJCS["a"]', 'PROJCS["a"]'),
    ],
)  # fmt: skip
def test_the_reference_of_a_map(tmp_path, crs, name):
    large = large_of([], (9, 9), georeference=Georeference(crs, (1e-5, 0, 13, 0, -1e-5, 52)))
    contents = json.loads(write_label(large, tmp_path / "a.geojson").read_text())
    assert contents["features"] == []
    assert contents.get("crs") == (name and {"type": "name", "properties": {"name": name}})


############################################################
#  Formats of ordinary pictures
############################################################


def test_files_have_the_names_of_those_of_ordinary_pictures(small, tmp_path):
    rows = [found_of([square(0, 0)], [0.8]), found_of([square(8, 8)], [0.9])]
    large = large_of(rows, (20, 20))
    write_labels_of_large(large, "geojson", tmp_path / "geojson", "plate 1/a.tif")
    assert len(read_features(tmp_path / "geojson" / "plate 1" / "a.geojson")) == 2
    folder = tmp_path / "label_images"
    folder.mkdir()
    (folder / "classes.csv").write_text("file,number,class,score\nmasks/b.tif,1,dog,0.7\nmasks/a.tif,9,cow,0.1\n")
    for name in ("a.tif", "c_masks.png", "a.tif"):
        write_labels_of_large(large, "label_images", folder, name)
    assert tifffile.imread(folder / "masks" / "a.tif").max() == 2
    with (folder / "classes.csv").open() as file:
        table = list(csv.reader(file))
    assert table == [
        ["file", "number", "class", "score", "mask_score", "pieces", "is_cut"],
        ["masks/b.tif", "1", "dog", "0.7", "", "", ""],
        ["masks/c_masks_picture.tif", "2", "cat", "0.8", "0.8", "1", "0"],
        ["masks/c_masks_picture.tif", "1", "cat", "0.9", "0.9", "1", "0"],
        ["masks/a.tif", "2", "cat", "0.8", "0.8", "1", "0"],
        ["masks/a.tif", "1", "cat", "0.9", "0.9", "1", "0"],
    ]
    with pytest.raises(
        ValueError, match=r"a\.tif is a large picture, which --to voc cannot hold; --to geojson or label"
    ):
        write_labels_of_large(large, "voc", tmp_path, "a.tif")


def test_classes_of_no_object(tmp_path):
    write_labels_of_large(large_of([], (20, 20)), "label_images", tmp_path, "a.tif")
    assert (tmp_path / "classes.csv").read_text() == "file,number,class\n"


############################################################
#  The table
############################################################


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(70, 45), (70, 45, 3)])
def test_the_table_is_that_of_the_whole_picture(small, tmp_path, seed, shape):
    pixels = np.random.default_rng(seed).integers(0, 60_000, shape).astype(np.uint16)
    config = TinyConfig(ACCEPT_CALIBRATION=FACTORS)
    large = large_of(random_rows(seed, objects=5), pixels, 0.4, config, pixel_size=0.5)
    rows = list(table_rows(large))
    results, found = whole(large)
    expected = rows_of(results, pixels.reshape(70, 45, -1), NAMES, 0.5)
    assert len(rows) == len(expected) >= 3
    ordered = sorted(rows, key=lambda row: row["number"])
    for row, pieces, is_cut in zip(ordered, found.pieces, found.is_cut, strict=True):
        assert (row.pop("pieces"), row.pop("is_cut")) == (pieces, "yes" if is_cut else "no")
    paths = tmp_path / "large.csv", tmp_path / "whole.csv"
    table = table_of(expected)
    assert table_of_large(large) == table._replace(is_tiled=True)
    table.write(paths[0], ordered)
    table.write(paths[1], expected)
    assert paths[0].read_text() == paths[1].read_text()


def test_the_table_of_a_map(tmp_path):
    rows = [found_of([square(2, 4)], [0.9])]
    large = large_of(rows, (9, 9), georeference=UTM)
    table = Table.joined([Table(True, 3), table_of_large(large)])
    assert table == Table(True, 3, True, True)
    table.write(tmp_path / "a" / "objects.csv", table_rows(large))
    with (tmp_path / "a" / "objects.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["centroid_map_x"], row["centroid_map_y"]) == ("389002.75", "5819999.25"), "all digits"
    assert (row["centroid_x_px"], row["mean_1"], row["mean_2"], row["pixel_size_um"]) == ("5", "0", "", "")
    assert list(row)[-2:] == ["pieces", "is_cut"]


def test_a_table_without_rows(tmp_path):
    Table().write(tmp_path / "objects.csv", iter([]))
    assert (tmp_path / "objects.csv").read_text().startswith("file,number,class,class_score,")
    assert list(table_rows(large_of([found_of([], [])], (9, 9)))) == []
    assert table_of([]) == Table()


def test_blocks_are_read_once_where_neighbours_lie(small):
    """Objects of a row come by score; their blocks are read in order."""
    crops = [square(y, x) for y in (2, 20) for x in range(2, 60, 5)]
    order = np.random.default_rng(0).permutation(len(crops))
    large = large_of([found_of([crops[i] for i in order], [0.9] * len(crops))], (40, 64))
    reads = []
    read = large.source.read
    large.source.read = lambda *region: reads.append(region) or read(*region)
    assert len(list(table_rows(large))) == len(crops)
    assert len(reads) <= 10
    assert max((y2 - y1) * (x2 - x1) for y1, x1, y2, x2 in reads) == 16 * 16


############################################################
#  COCO
############################################################


@pytest.mark.parametrize("seed", range(3))
def test_coco_files_are_those_of_the_whole_picture(tmp_path, seed):
    large = large_of(random_rows(seed, objects=5), (70, 45))
    results, found = whole(large)
    objects = CocoObjects(large)
    assert len(objects) == len(found)
    path = Path("/slides/a.tif")
    contents = {}
    for name, content in (("large", objects), ("whole", objects_of(results, NAMES))):
        picture = Picture(path, "", objects=content, height=70, width=45)
        records = Records(path.parent, "", "", [picture], Findings(), NAMES[1:])
        contents[name] = json.loads(write_coco(records, tmp_path / name).read_text())
    annotations = contents["large"].pop("annotations")
    expected = contents["whole"].pop("annotations")
    assert contents["large"] == contents["whole"]
    entries = list(coco_results_of(large, 1))
    assert [entry["segmentation"] for entry in entries] == [entry["segmentation"] for entry in annotations]
    assert [entry["id"] for entry in annotations] == list(range(1, len(found) + 1))
    numbers = [entry["attributes"]["number"] for entry in annotations]
    order = np.argsort(numbers)
    for i, entry in zip(order, expected, strict=True):
        attributes = annotations[i]["attributes"]
        assert attributes.pop("pieces") == found.pieces[numbers[i] - 1]
        assert attributes.pop("is_cut") == found.is_cut[numbers[i] - 1]
        assert annotations[i] | {"id": entry["id"]} == entry
    assert [entries[i] for i in order] == list(coco_results([Entry(1, results, [], None)], {}))


def test_coco_cannot_hold_the_largest_pictures():
    large = large_of([], (9, 9))
    assert coco_problem(large) is None
    large.source.shape = (70_000, 70_000, 3)
    message = r"a.tif has 70000 x 70000 pixels, .* fewer than 2\*\*32; --to geojson or label_images can"
    for make in (CocoObjects, lambda large: list(coco_results_of(large, 1))):
        with pytest.raises(ValueError, match=message):
            make(large)


############################################################
#  Preview
############################################################


def test_preview_is_the_mean_of_pixels_with_masks(small, monkeypatch, tmp_path):
    monkeypatch.setattr(large_outputs, "PREVIEW", 20)
    pixels = np.random.default_rng(0).integers(0, 255, (70, 45, 3)).astype(np.uint8)
    plain = preview(large_of([], pixels))
    assert (plain.shape, plain.dtype) == ((18, 12, 3), np.uint8)
    assert plain[1, 2].tolist() == np.rint(pixels[4:8, 8:12].mean(axis=(0, 1))).astype(int).tolist()
    assert (preview(large_of([found_of([], [])], pixels)) == plain).all()
    crops = [square(20 + 4 * (i // 10), 4 * (i % 10), 1) for i in range(CAPTIONED + 1)]
    large = large_of([found_of(crops[:50], [0.9] * 50), found_of(crops[50:], [0.8] * (len(crops) - 50))], pixels)
    drawn = preview(large)
    changed = (drawn != plain).any(axis=2)
    expected = np.zeros((18, 12), bool)
    expected[5:15, :10] = expected[15, 0] = True
    assert (changed == expected).all(), "an object of one pixel is seen"
    write_preview(large, tmp_path / "pictures" / "a.jpg")
    with Image.open(tmp_path / "pictures" / "a.jpg") as image:
        assert image.size == (12, 18)


def test_preview_of_few_objects_has_captions(monkeypatch):
    """So that the number of an object in the table leads to its place."""
    monkeypatch.setattr(large_outputs, "PREVIEW", 100)
    shown = []
    monkeypatch.setattr(large_outputs, "draw", lambda image, results, names: shown.append(results) or image)
    rows = [found_of([square(0, 0, 45)], [0.8]), found_of([square(100, 150, 20)], [0.9])]
    image = preview(large_of(rows, (200, 300)))
    assert image.shape == (67, 100, 3)
    (results,) = shown
    assert results.found.mask_scores.tolist() == pytest.approx([0.9, 0.8]), "the numbers of captions"
    assert results.found.masks[0][:2] == (33, 50)
    assert results.found.masks[0].mask.shape == (7, 7)
    assert results.found.rois[1].tolist() == [0, 0, 15, 15]


def test_preview_of_a_small_picture_is_not_shrunk():
    pixels = np.full((30, 40), 7, np.uint8)
    assert preview(large_of([found_of([square(3, 3)], [0.9])], pixels)).shape == (30, 40, 3)


def test_preview_has_the_best_mask_on_top():
    """Here it comes last."""
    count = CAPTIONED + 1
    rows = [found_of([square(2, 3, 5)] * count, np.linspace(0.5, 0.9, count))]
    drawn = preview(large_of(rows, (10, 10)))
    colour = np.array(random_colors(2)[1]) * 255
    assert drawn[2, 3].tolist() == colour.astype(np.uint8).tolist()
