"""How a data set is looked at: its files, their text, the format that explains them, and what all formats share."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from own_sets import HEIGHT, PLAIN, WIDTH, check, coco, corners, faults, picture, write_json, write_text, yolo_text
from PIL import Image

import native
import utils
from data.formats import coco_records, labelme, yolo
from data.listing import MAX_LABEL_BYTES, Listing, folded, folder_of, parse_xml, stem_of, suffix_of
from data.reading import (
    NO_PICTURE,
    UNUSABLE,
    ObjectGroups,
    Options,
    Reading,
    closed_ring,
    nearest,
    point_array,
    split_of,
    split_of_file,
    whole_size,
)
from data.recognise import FORMAT_NAMES, open_records, recognise, settle_filling, settle_sizes
from data.records import (
    CONTOUR,
    ERROR,
    Bitmap,
    Fault,
    Findings,
    Object,
    Picture,
    bitmap_to_rle,
    ellipse,
    even_odd,
    rectangle,
)

EXAMPLES = native.ROOT.parent / "shared" / "data" / "own_examples"
VARIANTS = sorted(path.parent for path in EXAMPLES.glob("*/*/truth.json"))


############################################################
#  Examples
############################################################


@pytest.mark.skipif(not VARIANTS, reason=f"there is no {EXAMPLES}")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the script that checks
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_examples():
    """The examples of ../shared read to their truth, without --format."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import check as examples
    finally:
        sys.path.remove(str(EXAMPLES))

    def read(folder):
        records = open_records(folder)
        return {
            record.path.relative_to(folder).as_posix(): [
                (item.name, utils.rle_to_mask(item.mask(record.height, record.width)))
                for item in record.objects if not item.is_crowd
            ]
            for record in records.pictures
        }  # fmt: skip

    results = [examples.check(read, variant) for variant in VARIANTS]
    assert {result["name"]: result["faults"] for result in results if not result["ok"]} == {}


@pytest.mark.skipif(not VARIANTS, reason=f"there is no {EXAMPLES}")
def test_a_clean_example_has_no_warning():
    assert not faults(open_records(EXAMPLES / "broken" / "00_clean_coco" / "data"))


############################################################
#  Recognition
############################################################


def labelme_set(root):
    for stem in "abc":
        picture(root / f"{stem}.png")
        shapes = [{"label": item.name, "points": corners(part)} for item in PLAIN[stem] for part in item.parts]
        write_json(root / f"{stem}.json", {"shapes": shapes, "imagePath": f"{stem}.png"})


def test_two_formats_in_one_folder(tmp_path):
    labelme_set(tmp_path)
    write_json(tmp_path / "coco" / "all.json", coco(PLAIN))
    message = (
        r"two formats: COCO json \(3 pictures\) and labelme json \(3 pictures\); .* --format coco or --format labelme"
    )
    with pytest.raises(ValueError, match=message):
        open_records(tmp_path)
    assert check(tmp_path, PLAIN, format_name="coco").title == coco_records.TITLE
    assert check(tmp_path, PLAIN, format_name="labelme").title == labelme.TITLE
    with pytest.raises(ValueError, match=r"--format yolo: .* has no such labels"):
        open_records(tmp_path, "yolo")


def test_few_labels_of_another_format_are_named_and_left_out(tmp_path):
    labelme_set(tmp_path)
    write_text(tmp_path / "a.txt", "0 0.1 0.1 0.2 0.2 0.3 0.1")
    records = check(tmp_path, PLAIN)
    assert faults(records) == {"label files look like YOLO segmentation": ["a.txt"]}
    module, claim = recognise(Reading(tmp_path))
    assert (module, claim.pictures) == (labelme, 3)
    assert yolo.NAME in FORMAT_NAMES


def test_no_labels(tmp_path):
    picture(tmp_path / "a.png")
    write_json(tmp_path / "package.json", {"name": "x"})
    with pytest.raises(ValueError, match="1 pictures and no labels of any format that is known here"):
        open_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        open_records(tmp_path / "gone")
    with pytest.raises(NotADirectoryError, match="is a file; give the folder"):
        open_records(tmp_path / "a.png")


def test_no_picture_can_be_used(tmp_path):
    write_json(tmp_path / "a.json", {"shapes": [], "imagePath": "a.png"})
    with pytest.raises(ValueError, match=r"no picture of the labelme json labels can be used: 1 labels name a picture"):
        open_records(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(ValueError, match="pictures cannot be read"):
        open_records(tmp_path)


def test_masks_of_other_labels_are_no_second_format(tmp_path):
    labelme_set(tmp_path / "images")
    for stem in "abc":
        Path(tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)).save(tmp_path / "masks" / f"{stem}.png")
    assert open_records(tmp_path).title == labelme.TITLE


############################################################
#  Files
############################################################


def test_listing(tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"x")
    root = tmp_path / "set"
    for name in (
        "b/IMG 1.PNG",
        "a.json",
        ".hidden/a.png",
        "__MACOSX/a.png",
        "runs/a.png",
        "b/Thumbs.db",
        "b/.DS_Store",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    os.symlink(outside, root / "link.png")
    os.symlink(root / "b" / "IMG 1.PNG", root / "inside.png")
    listing = Listing(root)
    assert listing.files == ["a.json", "b/IMG 1.PNG", "inside.png"]
    assert listing.pictures == ["b/IMG 1.PNG", "inside.png"]
    assert listing.of(".json", ".xml") == ["a.json"]
    assert listing.relative(listing.path("b/IMG 1.PNG")) == "b/IMG 1.PNG"
    names = [f"{folder}/{i}" for folder in "xy" for i in range(50)]
    samples = listing.samples(names, 5)
    assert len(samples) == 10
    assert samples[0] == "x/0"


def test_text_and_json_of_any_encoding(tmp_path):
    listing = Listing(tmp_path)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        write_json(tmp_path / "a.json", {"name": "Größe"}, encoding)
        findings = Findings()
        assert listing.json("a.json", findings) == {"name": "Größe"}
        assert bool(findings.places) == (encoding == "cp1252")
    cases = {"": "is empty", '{"a": [1, 2': "is cut off: line 1", '{"a": x} and more text': "damaged"}
    for text, message in {**cases, "[" * 100_000: "cannot be read|cut off"}.items():
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            listing.json("a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\0\1")
    with pytest.raises(ValueError, match="is no text"):
        listing.text("a.json")
    assert MAX_LABEL_BYTES > 1 << 30


def test_parse_xml():
    text = '<?xml version="1.0" encoding="ISO-8859-1"?><a b="&lt;é"><c>x</c></a>'
    root = parse_xml(text, "x.xml")
    assert (root.get("b"), root.findtext("c")) == ("<é", "x")
    for bad, message in (("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "DOCTYPE"), ("<a>", "cut off"), ("", "no XML")):
        with pytest.raises(ValueError, match=message):
            parse_xml(bad, "x.xml")


def test_parts_of_names():
    assert [suffix_of("a/B.PNG"), folder_of("a/b/c.png"), folder_of("c.png"), stem_of("a/b.rf.x.png")] == [
        ".png", "a/b", "", "b.rf.x",
    ]  # fmt: skip
    assert folded("u\u0308 A") == folded("\u00dc a")


def test_find(tmp_path):
    for name in ("x/a.png", "y/a.png", "y/b c.JPG", "\u00fc.png"):
        picture(tmp_path / name.replace(".JPG", ".jpg"))
    (tmp_path / "y" / "b c.jpg").rename(tmp_path / "y" / "b c.JPG")
    reading = Reading(tmp_path)

    def find(*names):
        path = reading.find(*names)
        return path and reading.listing.relative(path)

    assert find("a.png", "x") == "x/a.png"
    assert find("../y/a.png", "x") == "y/a.png"
    assert find("/home/me/y/a.png") == "y/a.png"
    assert find("D:\\set\\B C.jpg") == "y/b c.JPG"
    assert find("b%20c.jpg") == "y/b c.JPG"
    assert find("u\u0308.png", "x") == "\u00fc.png"
    assert find("gone.png", "", "x/a.png") == "x/a.png"
    assert find("../../etc/passwd") is None
    assert find("z" * 5000) is None
    assert {fault.severity: len(places) for fault, places in reading.findings.places.items()} == {
        "warning": 1,  # another case
        "remark": 1,  # another Unicode form, percent codes
    }
    assert find("a.png") is None
    reading.no_picture("label.txt: line 1", None, "a.png")
    assert list(reading.findings.of(ERROR).values()) == [["label.txt: line 1: x/a.png, y/a.png"]]
    assert reading.find_stem("B C") == tmp_path / "y" / "b c.JPG"
    assert reading.find_stem("a") is None
    assert reading.find_stem("a", "Y", anywhere=False) == tmp_path / "y" / "a.png"


def test_find_prefers_the_folders_of_the_label(tmp_path):
    for name in ("images/train/1.png", "images/val/1.png", "images/val/2.png", "x/0a1b2c3d-3.png", "x/4.png"):
        picture(tmp_path / name)
    reading = Reading(tmp_path)

    def found(path):
        return path and reading.listing.relative(path)

    assert found(reading.find_stem("1", "labels/train/deep")) == "images/train/1.png"
    assert found(reading.find("1.png", "labels/val/deep")) == "images/val/1.png"
    assert reading.find_stem("1", "labels") is None
    assert reading.find_stem("2", "labels/train") is None, "a picture of another split is not meant"
    assert reading.find("2.png", "labels/train") is None
    assert found(reading.find("val/2.png", "labels/train")) == "images/val/2.png", "unless the name says so"
    assert found(reading.find_stem("12345678-4")) == "x/4.png"
    assert found(reading.find("12345678-4.png")) == "x/4.png"
    assert reading.without_upload("a/0a1b2c3d-3.png") == "a/0a1b2c3d-3.png", "it is the name of the file"
    assert reading.without_upload("12345678-5.png") == "12345678-5.png"
    assert nearest(["a/b/1", "a/c/1"], "x/c") == ["a/c/1"]
    reading.exclude(["images/val/1.png"])
    assert found(reading.find_stem("1", "labels")) == "images/train/1.png"
    reading.no_picture("label 7", None, "gone.png", 3)
    assert reading.findings.of(ERROR) == {NO_PICTURE: ["label 7"]}
    assert reading.head("x/4.png", 4)[1:] == "PNG"


def test_parsed_and_groups(tmp_path):
    reading = Reading(tmp_path)
    no_area = Fault("remark", "are lines", "left out")
    places = {"a": 1, "b": None, "c": 1}

    def parse(entry, place):
        return Object("cat", place, [rectangle(0, 0, 9, 9)]) if places[entry] else None

    pairs = list(reading.parsed("x.json", "shape", ["a", "b", "d", "c"], parse, no_area))
    assert [(parsed.place, entry) for parsed, entry in pairs] == [("shape 1", "a"), ("shape 4", "c")]
    assert reading.findings.places == {no_area: ["x.json: shape 2"], UNUSABLE: ["x.json: shape 3: has no d"]}
    groups = ObjectGroups((20, 20))
    for group, name in ((1, "cat"), (1, "dog"), (1, "cat"), (None, "cat"), (True, "cat"), ("", "cat"), (0, "cat")):
        groups.add(Object(name, "", [rectangle(0, 0, 9, 9)]), group)
    assert [len(parsed.rings) for parsed in groups.objects] == [2, 1, 1, 1, 1, 1]


def test_values(tmp_path):
    write_json(tmp_path / "a.json", {"shapes": [], "imagePath": ""})
    write_json(tmp_path / "b.json", {})
    write_text(tmp_path / "c.json", "{")
    reading = Reading(tmp_path)
    names = ["a.json", "b.json", "c.json"]
    assert list(reading.values(names, labelme.is_labelme)) == [("a.json", {"shapes": [], "imagePath": ""})]
    assert [places[0][:6] for places in reading.findings.places.values()] == ["b.json", "c.json"]


def test_looked_into(tmp_path):
    for i in range(30):
        write_json(tmp_path / "x" / f"{i}.json", {"shapes": [], "imagePath": ""} if i % 2 else {})
    reading = Reading(tmp_path)
    assert len(reading.looked_into(labelme.is_labelme)) == 15
    claim = reading.claim_json(labelme.is_labelme, "shapes")
    assert len(claim.labels) == 30


def test_splits():
    names = ["train/a.png", "x/valid/b.png", "Test/x/c.png", "stage1_train/a/images/a.png", "x/train.png", "b.png"]
    assert [split_of(name) for name in names] == ["train", "val", "test", "train", None, None]
    names = ["instances_val2017.json", "train_annotations.csv", "val/labels.json", "labels.json"]
    assert [split_of_file(name) for name in names] == ["val", "train", "val", None]
    assert split_of_file("annotations/instances_test_easy.json") == "test"


############################################################
#  Shapes and decisions
############################################################


def test_points_and_sizes():
    assert point_array([["1", 2]]).tolist() == [[1, 2]]
    for bad in (None, [], [[1]], [[1, "x"]], [[1, float("nan")]], [[1, 1e30]], [[[1, 2]]]):
        with pytest.raises(ValueError, match="has points"):
            point_array(bad)
    with pytest.raises(ValueError, match="encloses nothing"):
        closed_ring(point_array([[1, 2], [3, 4], [1, 2]]))
    assert whole_size("3", 4) == (3, 4)
    assert [whole_size(*size) for size in ((None, 3), (0, 3), ("x", 1), (10**9, 10**9), (float("inf"), 1))] == [
        None
    ] * 5


def test_masks_of_objects():
    square = rectangle(2, 3, 12, 9)
    assert utils.rle_area(Object("", "", [square]).mask(20, 20)) == 60
    assert utils.rle_area(Object("", "", [square], filling=CONTOUR).mask(20, 20)) == 11 * 7
    assert utils.rle_area(Object("", "", [square], [rectangle(4, 4, 6, 6)]).mask(20, 20)) == 56
    assert utils.rle_area(Object("", "", [square + 100], filling=CONTOUR).mask(20, 20)) == 0
    assert utils.rle_area(Object("", "").mask(20, 20)) == 0
    first, second = Object("", "", [square]), Object("", "", [rectangle(12, 3, 14, 9)], filling=CONTOUR)
    assert first.content != second.content
    assert first.content == Object("", "elsewhere", [square]).content
    first.join(second, (20, 20))
    assert utils.rle_area(first.mask(20, 20)) == 60 + 3 * 7
    rings = [rectangle(0, 0, 10, 10), rectangle(2, 2, 8, 8), rectangle(4, 4, 6, 6)]
    assert utils.rle_area(even_odd(rings, 20, 20)) == 100 - 36 + 4
    egg = ellipse(10, 10, 8, 2, np.pi / 2)
    assert np.ptp(egg, axis=0) == pytest.approx([4, 16])


def test_bitmaps_are_cut_off_at_the_edge():
    mask = np.ones((4, 6), bool)
    areas = [utils.rle_area(bitmap_to_rle(Bitmap(y, x, mask), 10, 10)) for y, x in ((0, 0), (-2, -3), (8, 8), (50, 0))]
    assert areas == [24, 6, 4, 0]


def test_findings():
    findings = Findings()
    fault = Fault(ERROR, "things are wrong", "left out")
    findings.add(fault)
    assert not findings.places
    findings.add(fault, "a", "b")
    assert findings.of(ERROR) == {fault: ["a", "b"]}
    assert not findings.of("warning")


def test_settle_filling():
    def pictures(*rings):
        return [Picture(None, "", objects=[Object("", "", [ring]) for ring in rings])]

    whole, drawn = rectangle(1.01, 2, 9, 9), rectangle(1.5, 2, 9, 9)
    for rings, expected in (((whole,), CONTOUR), ((whole, drawn), "centres"), ((), None)):
        found = pictures(*rings)
        settle_filling(found, Findings())
        assert {parsed.filling for parsed in found[0].objects} == ({expected} if expected else set())
    found = pictures(drawn)
    settle_filling(found, Findings(), CONTOUR)
    assert found[0].objects[0].filling == CONTOUR


def test_settle_sizes_scales_masks(tmp_path):
    path = picture(tmp_path / "a.png", (20, 30))
    mask = np.zeros((40, 60), bool)
    mask[10:20, 20:40] = True
    found = [Picture(path, "x", (40, 60), objects=[Object("", "", rle=utils.mask_to_rle(mask), box=(20, 10, 20, 10))])]
    settle_sizes(found, Reading(tmp_path))
    parsed = found[0].objects[0]
    assert utils.rle_to_bbox(parsed.mask(20, 30)) == (5, 10, 10, 20)
    assert parsed.box == (10, 5, 10, 5)


@pytest.mark.parametrize("said", [None, (20, 20)])
def test_square_pictures_that_are_turned_cannot_be_verified(tmp_path, said):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = picture(tmp_path / "a.jpg", (20, 20), exif=exif)
    reading = Reading(tmp_path)
    found = [Picture(path, "x", said, objects=[Object("", "")])]
    settle_sizes(found, reading)
    assert [places for fault, places in reading.findings.places.items() if "EXIF" in fault.what] == [["a.jpg"]]


def test_options_have_the_defaults_that_check_prints():
    assert Options() == Options("", "skip", "auto", False, "auto")


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_names_that_differ_by_case_are_named(tmp_path, kind):
    for stem in "abc":
        picture(tmp_path / f"IMG {stem}.png".replace("a.png", "A.png"))
    if kind == "coco":
        write_json(tmp_path / "x.json", coco(PLAIN, folder="IMG "))
    else:
        write_text(tmp_path / "classes.txt", "cat\ndog")
        for stem in PLAIN:
            write_text(tmp_path / f"IMG {stem}.txt", yolo_text(PLAIN[stem]))
    records = open_records(tmp_path)
    assert len(records.pictures) == 3
    (places,) = faults(records).values()
    assert len(places) == 1
    assert "is IMG A.png" in places[0]
