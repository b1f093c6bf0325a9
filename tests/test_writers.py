"""data/writers/: what they write reads to the same masks, classes, splits and sizes, and they say what is lost."""

import base64
import csv
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

import utils
from data.object_checks import check_objects
from data.recognise import Records, open_records
from data.records import Findings, Object, Picture
from data.writers.all import WRITERS
from data.writers.common import number_names

NAMES = ("nucleus, dividing", "Zelle (groß) 日本", 'a "b"', "rod/coccus", "type 2")
SCORES = {"score": 0.91234567, "mask_iou": 0.8, "mask_score": 0.73, "accept": 0.5}


def records_of(root: Path, pictures: dict[str, tuple], **options) -> Records:
    """Records of {file name: (split, [(class, mask)])}; the pictures are written as noise."""
    parsed = []
    for name, (split, objects) in pictures.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = objects[0][1].shape if objects else (20, 30)
        noise = np.random.default_rng(len(parsed)).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(path)
        found = [Object(label, f"object {i}", rle=utils.mask_to_rle(mask)) for i, (label, mask) in enumerate(objects)]
        parsed.append(Picture(path, "x", split=split, objects=found, height=height, width=width))
    return Records(root, "made", "by a test", parsed, Findings(), **options)


def content(records: Records) -> dict[str, tuple]:
    """{bytes of the picture: its split, size, and objects as (class, mask)}, whatever the names of files."""
    return {
        picture.path.read_bytes(): (
            picture.split, picture.height, picture.width,
            sorted((parsed.name, parsed.mask(picture.height, picture.width)["counts"]) for parsed in picture.objects),
        )
        for picture in records.pictures
    }  # fmt: skip


def random_masks(seed: int, count: int = 6, height: int = 24, width: int = 31) -> list[np.ndarray]:
    """Masks that do not overlap: a pixel, one at the border, one with a hole, parts that touch at a corner, noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    ring = (np.hypot(rows - 7, columns - 7) < 6) & (np.hypot(rows - 7, columns - 7) > 2.5)
    steps = (rows + columns == 40) | ((rows > 20) & (columns < 3))
    taken = ring | steps
    masks = [ring, steps, (rows == 0) & (columns == width - 1), (rows == height - 1) & (columns > 8) & (columns < 12)]
    taken |= masks[2] | masks[3]
    for _ in range(count - 4):
        y, x = rng.integers(0, height - 8), rng.integers(12, width - 9)
        noise = (rng.random((height, width)) < 0.6) & (rows >= y) & (rows < y + 9) & (columns >= x) & (columns < x + 9)
        noise &= ~taken
        noise[y + 4, 14] = not taken[y + 4, 14]
        taken |= noise
        masks.append(noise)
    return [mask for mask in masks if mask.any()]


def mixed_set(root: Path) -> Records:
    """Three pictures, of two splits, with names that are hard on files: two of one stem, spaces, quotes, commas."""
    masks = [random_masks(seed) for seed in (1, 2, 3)]
    labels = [[(NAMES[i % len(NAMES)], mask) for i, mask in enumerate(group)] for group in masks]
    return records_of(root, {
        "train/a, b.png": ("train", labels[0]),
        "other place/a, b.png": ("val", labels[1]),
        "other place/日本 it's 50%.tif": ("val", labels[2]),
        "other place/nothing.png": ("val", []),
    })  # fmt: skip


############################################################
#  Every format
############################################################


@pytest.mark.parametrize("name", WRITERS)
def test_all_comes_back(name, tmp_path):
    """To the bit, without --format, whatever the names of files and classes."""
    records = mixed_set(tmp_path / "in")
    for parsed in records.pictures[0].objects:
        parsed.attributes = dict(SCORES)
    notes: list[str] = []
    WRITERS[name](records, tmp_path / "out", True, notes)
    read = open_records(tmp_path / "out")
    expected, found = content(records), content(read)
    assert found == expected
    left_over = [path for path in (tmp_path / "out").rglob("*") if ".tmp" in path.name]
    assert left_over == []


@pytest.mark.parametrize("name", WRITERS)
def test_class_names_that_are_numbers_or_end_in_digits(name, tmp_path):
    names = ("1", "0", "CD4", "CD8", "G1", "G2")
    pictures = {f"{i}.png": (None, list(zip(names, random_masks(i), strict=False))) for i in range(4)}
    records = records_of(tmp_path / "in", pictures)
    WRITERS[name](records, tmp_path / "out", True)
    assert content(open_records(tmp_path / "out")) == content(records)


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_without_splits_and_a_picture_without_objects(name, tmp_path):
    masks = random_masks(4)
    pictures = {f"{i}.png": (None, [("cell", mask) for mask in masks[i:]]) for i in range(3)}
    records = records_of(tmp_path / "in", {**pictures, "none.png": (None, [])})
    WRITERS[name](records, tmp_path / "out", True)
    read = open_records(tmp_path / "out")
    assert content(read) == content(records)
    assert all(picture.is_labelled for picture in read.pictures)


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_of_one_stem_and_folder_stay_apart(name, tmp_path):
    masks = random_masks(5)
    records = records_of(tmp_path / "in", {
        "a.png": (None, [("cell", masks[0])]),
        "a.tif": (None, [("cell", masks[1]), ("cell", masks[2])]),
        "A.bmp": (None, [("cell", masks[3])]),
    })  # fmt: skip
    notes: list[str] = []
    WRITERS[name](records, tmp_path / "out", True, notes)
    assert content(open_records(tmp_path / "out")) == content(records)
    if name not in ("coco", "cvat"):
        assert any(note.startswith("2 pictures have") for note in notes)


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_that_exif_turns_are_labelled_as_they_are_shown(name, tmp_path):
    """Their labels may be of the stored pixels. Tools show them turned."""
    root = tmp_path / "in"
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(root / "a.png", exif=exif)
    mask = np.zeros((20, 30), bool)
    mask[2:6, 3:14] = True
    found = Object("cell", "1", rle=utils.mask_to_rle(mask))
    stored = Picture(root / "a.png", "x", objects=[found], height=20, width=30, is_stored=True)
    WRITERS[name](Records(root, "made", "", [stored], Findings()), tmp_path / "out", True)
    (picture,) = open_records(tmp_path / "out").pictures
    actual = utils.rle_to_mask(picture.objects[0].mask(picture.height, picture.width))
    expected = mask if name == "coco" else np.rot90(mask, -1)  # COCO's height and width tell which it is
    assert np.array_equal(actual, expected)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("coco", "voc")])
def test_crowds_are_left_out_and_counted(name, tmp_path):
    masks = random_masks(6)
    records = records_of(tmp_path / "in", {"a.png": (None, [("cell", masks[0]), ("cell", masks[1])])})
    records.pictures[0].objects[1].is_crowd = True
    notes: list[str] = []
    WRITERS[name](records, tmp_path / "out", True, notes)
    assert any(note.startswith("1 crowd is left out") for note in notes)
    assert len(open_records(tmp_path / "out").pictures[0].objects) == 1
    assert len(records.pictures[0].objects) == 2, "the records stay as they are"


@pytest.mark.parametrize("name", WRITERS)
def test_classes_without_objects_keep_their_numbers(name, tmp_path):
    records = records_of(tmp_path / "in", {"a.png": (None, [("dog", random_masks(7)[0])])}, class_names=["cat", "dog"])
    WRITERS[name](records, tmp_path / "out", True)
    assert [parsed.name for parsed in open_records(tmp_path / "out").pictures[0].objects] == ["dog"]


def test_overlaps_stay_where_a_format_has_them(tmp_path):
    low, high = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    low[2:12, 2:20], high[5:9, 5:15] = True, True
    records = records_of(tmp_path / "in", {"a.png": (None, [("cell", low), ("cell", high)])})
    for name in set(WRITERS) - {"voc", "label_images"}:
        WRITERS[name](records, tmp_path / name, True)
        assert content(open_records(tmp_path / name)) == content(records), name


@pytest.mark.parametrize("name", ["voc", "label_images"])
@pytest.mark.parametrize("scores", [None, (0.9, 0.6), (0.6, 0.9)])
def test_overlaps_go_to_the_better_score_or_the_smaller_object(name, scores, tmp_path):
    large, small = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    large[2:12, 2:20], small[5:9, 5:15] = True, True
    records = records_of(tmp_path / "in", {"a.png": (None, [("cell", large), ("cell", small)])})
    for parsed, score in zip(records.pictures[0].objects, scores or (), strict=False):
        parsed.attributes = {"mask_score": score}
    notes: list[str] = []
    WRITERS[name](records, tmp_path / "out", True, notes)
    found = [utils.rle_area(parsed.rle) for parsed in open_records(tmp_path / "out").pictures[0].objects]
    assert found == ([180] if scores == (0.9, 0.6) else [140, 40])
    assert any(note.startswith("40 pixels are of several objects") for note in notes)
    assert any(note.startswith("1 object has no pixel left") for note in notes) == (scores == (0.9, 0.6))


@pytest.mark.parametrize("name", set(WRITERS) - {"yolo", "voc"})
def test_no_picture_is_copied_unasked(name, tmp_path):
    records = mixed_set(tmp_path / "in")
    WRITERS[name](records, tmp_path / "out", False)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    originals = {path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()}
    assert not originals & {path.read_bytes() for path in files}


@pytest.mark.parametrize("name", WRITERS)
def test_names_of_files_that_are_no_unicode(name, tmp_path):
    """Linux has such names, for example those of old disks in Latin-1."""
    odd = os.fsdecode(b"caf\xe9 1.png")
    try:
        records = records_of(tmp_path / "in", {odd: (None, [("cell", mask) for mask in random_masks(3)])})
    except OSError:
        pytest.skip("this file system takes Unicode only")
    WRITERS[name](records, tmp_path / "out", True)
    assert content(open_records(tmp_path / "out")) == content(records)


def test_equal_names_get_numbers():
    assert number_names(["a", "A", "b", "a", "a_2", "a"]) == ["a", "A_2", "b", "a_3", "a_2_2", "a_4"]
    many = number_names(["frame"] * 20_000)  # as of many videos in one list
    assert many[-1] == "frame_20000"
    assert len(set(many)) == 20_000


############################################################
#  What the tools of a format do with it
############################################################


def pillow_mask(points: list, height: int, width: int) -> np.ndarray:
    """As labelme fills polygons: utils/shape.py, shape_to_mask."""
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], outline=1, fill=1)
    return np.asarray(canvas) > 0


def test_labelme_fills_its_polygons_to_the_same_masks(tmp_path):
    records = records_of(tmp_path / "in", {"b/a.png": (None, [("cell", mask) for mask in random_masks(8)])})
    records.pictures[0].objects[1].attributes = dict(SCORES)
    WRITERS["labelme"](records, tmp_path / "out")
    value = json.loads((tmp_path / "out" / "b" / "a.json").read_text())
    assert (tmp_path / "out" / "b" / value["imagePath"]).samefile(tmp_path / "in" / "b" / "a.png")
    assert (value["imageHeight"], value["imageWidth"]) == (24, 31)
    filled: dict = {}
    for number, shape in enumerate(value["shapes"]):
        key = number if shape["group_id"] is None else f"group {shape['group_id']}"
        if shape["shape_type"] == "mask":
            (x1, y1), (x2, y2) = shape["points"]
            mask = np.zeros((24, 31), bool)
            mask[y1 : y2 + 1, x1 : x2 + 1] = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
        else:
            mask = pillow_mask(shape["points"], 24, 31)
        filled[key] = filled.get(key, False) | mask
    masks = [parsed.rle for parsed in records.pictures[0].objects]
    assert [utils.mask_to_rle(mask) for mask in filled.values()] == masks
    described = {shape["description"] for shape in value["shapes"]}
    assert described == {"", "score 0.9123, mask_iou 0.8, mask_score 0.73, accept 0.5"}
    assert any(shape.get("attributes") == SCORES for shape in value["shapes"])


def test_a_line_of_yolo_is_one_polygon_and_names_are_numbers(tmp_path):
    import yaml

    records = mixed_set(tmp_path / "in")
    notes: list[str] = []
    path = WRITERS["yolo"](records, tmp_path / "out", notes=notes)
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(value["names"].values()) == sorted(NAMES, key=str.casefold)
    assert (value["train"], value["val"]) == ("images/train", "images/val")
    for picture in ("train/a, b", "val/other place/a, b", "val/other place/日本 it's 50%", "val/other place/nothing"):
        lines = (tmp_path / "out" / "labels" / f"{picture}.txt").read_text().splitlines()
        assert len(lines) == (0 if "nothing" in picture else 6)
        for line in lines:
            values = np.array(line.split()[1:], float)
            assert line.split()[0] in "01234"
            assert len(values) % 2 == 0
            assert len(values) >= 6
            assert ((values >= 0) & (values <= 1)).all()
    assert any("pictures are copied" in note for note in notes)


def test_bridges_are_no_fault_of_the_labels(tmp_path):
    """check warns of polygons that cross themselves and lose area. Bridges that cross an outline lose none."""
    records = mixed_set(tmp_path / "in")
    WRITERS["yolo"](records, tmp_path / "out")
    read = open_records(tmp_path / "out")
    check_objects(read)
    assert not read.findings.of("error")
    assert not read.findings.of("warning")


def test_qupath_gets_closed_rings_holes_and_measurements(tmp_path):
    records = records_of(tmp_path / "in", {"a.png": (None, [("cell", mask) for mask in random_masks(9)[:2]])})
    records.pictures[0].objects[0].attributes = {**SCORES, "note": "doubtful"}
    WRITERS["geojson"](records, tmp_path / "out")
    value = json.loads((tmp_path / "out" / "a.geojson").read_text())
    ring, steps = value["features"]
    assert ring["geometry"]["type"] == "Polygon"
    assert len(ring["geometry"]["coordinates"]) == 2, "an outer ring and a hole"
    assert all(line[0] == line[-1] for line in ring["geometry"]["coordinates"])
    assert ring["properties"]["measurements"] == SCORES
    assert ring["properties"]["metadata"] == {"note": "doubtful"}
    assert ring["properties"]["objectType"] == "annotation"
    assert steps["geometry"]["type"] == "MultiPolygon"


def test_imagej_reads_the_rois_with_their_properties(tmp_path):
    import roifile

    records = mixed_set(tmp_path / "in")
    records.pictures[0].objects[2].attributes = dict(SCORES)
    WRITERS["imagej"](records, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out" / "train" / "a, b_RoiSet.zip") as file:
        rois = {name: roifile.ImagejRoi.frombytes(file.read(name)) for name in file.namelist()}
    assert next(iter(rois)) == "nucleus, dividing-0001.roi"
    assert [roi.composite for roi in rois.values()][:3] == [True, True, False]
    assert "class: rod/coccus\n" in rois["rod_coccus-0004.roi"].props
    assert "score: 0.9123\n" in list(rois.values())[2].props
    assert list(rois.values())[2].coordinates().tolist() == [[30, 0], [31, 0], [31, 1], [30, 1]]


def test_cvat_gets_labels_attributes_and_subsets(tmp_path):
    import xml.etree.ElementTree as ElementTree

    records = mixed_set(tmp_path / "in")
    records.pictures[0].objects[0].attributes = dict(SCORES)
    path = WRITERS["cvat"](records, tmp_path / "out")
    root = ElementTree.parse(path).getroot()
    assert root.findtext("version") == "1.1"
    assert [label.findtext("name") for label in root.iter("label")] == sorted(NAMES, key=str.casefold)
    assert root.find("image").get("subset") == "train"
    mask = root.find("image/mask")
    assert {entry.get("name"): entry.text for entry in mask} == {
        "score": "0.9123", "mask_iou": "0.8", "mask_score": "0.73", "accept": "0.5"
    }  # fmt: skip
    runs = [int(run) for run in mask.get("rle").split(",")]
    assert sum(runs) == int(mask.get("width")) * int(mask.get("height"))
    labels = json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8"))
    assert labels[0]["attributes"][0] == {"name": "score", "mutable": False, "input_type": "text", "values": [""]}


def test_what_xml_cannot_hold_is_replaced(tmp_path):
    records = records_of(tmp_path / "in", {"a.png": (None, [("a\x01b", m) for m in random_masks(1)[:1]])})
    notes: list[str] = []
    WRITERS["cvat"](records, tmp_path / "out", True, notes)
    assert [parsed.name for parsed in open_records(tmp_path / "out").pictures[0].objects] == ["a_b"]
    assert notes == ["1 class name is changed: XML cannot hold some of its characters"]


def test_voc_has_colours_numbers_and_void(tmp_path):
    masks = random_masks(3)
    records = records_of(tmp_path / "in", {"sub/a b.png": ("val", [("x: 1", masks[0]), ("dog", masks[1])])})
    records.pictures[0].objects[1].is_crowd = True
    notes: list[str] = []
    out = WRITERS["voc"](records, tmp_path / "out", True, notes)
    assert (out / "ImageSets" / "Segmentation" / "val.txt").read_text() == "a_b\n"
    lines = (out / "labelmap.txt").read_text().splitlines()
    assert lines[1:] == ["background:0,0,0::", "dog:128,0,0::", "x_ 1:0,128,0::"]
    with Image.open(out / "SegmentationClass" / "a_b.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image) == 2, masks[0])
        assert np.array_equal(np.asarray(image) == 255, masks[1])
        assert image.convert("RGB").getpixel((7, 4)) == (0, 128, 0)
    assert any("1 crowd is void" in note for note in notes)
    assert any(note.startswith("1 class name is changed") for note in notes)


def test_voc_of_more_objects_than_a_byte_numbers(tmp_path):
    masks = []
    for number in range(300):
        mask = np.zeros((24, 31), bool)
        mask[number // 15, 2 * (number % 15)] = True
        masks.append(mask)
    records = records_of(tmp_path / "in", {"a.png": (None, [("cell", mask) for mask in masks])})
    notes: list[str] = []
    WRITERS["voc"](records, tmp_path / "out", True, notes)
    assert content(open_records(tmp_path / "out")) == content(records)
    assert any(note.startswith("1 picture has more than 254 objects") for note in notes)


def test_label_images_have_16_bits_and_32_where_they_must(tmp_path):
    records = mixed_set(tmp_path / "in")
    out = WRITERS["label_images"](records, tmp_path / "out", True)
    values = tifffile.imread(out / "masks" / "train" / "a, b.tif")
    assert values.dtype == np.uint16
    with (out / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[3] == {"file": "masks/train/a, b.tif", "number": "4", "class": "rod/coccus"}
    of_class = tifffile.imread(out / "classes" / "rod_coccus" / "train" / "a, b.tif")
    assert np.array_equal(of_class, np.where(values == 4, 4, 0))
    many = np.arange(300 * 300).reshape(300, 300) + 1
    from data.writers.label_images import _write

    _write(tmp_path / "many.tif", many)
    assert tifffile.imread(tmp_path / "many.tif").dtype == np.uint32
    assert np.array_equal(tifffile.imread(tmp_path / "many.tif"), many)


def test_pictures_whose_names_look_like_label_images(tmp_path):
    masks = random_masks(2)
    names = ("x_masks.png", "y_label.png", "roi_3.png", "z.ome.tif")
    records = records_of(tmp_path / "in", {name: (None, [("cell", m)]) for name, m in zip(names, masks, strict=False)})
    for name in WRITERS:
        WRITERS[name](records, tmp_path / name, True)
        assert content(open_records(tmp_path / name)) == content(records), name


def test_a_class_table_that_is_another_table_is_ignored(tmp_path):
    records = records_of(tmp_path / "in", {"a.png": (None, [("cell", m) for m in random_masks(2)])})
    out = WRITERS["label_images"](records, tmp_path / "out", True)
    for text in ("", "a,b\n1,2\n", "file,number\nx", '"'):
        (out / "classes.csv").write_text(text)
        assert {parsed.name for parsed in open_records(out).pictures[0].objects} == {""}
