"""COCO json in its dialects, SA-1B and YOLO: small sets in the formats' own conventions read to the same masks."""

import numpy as np
import pytest
from own_sets import (
    HEIGHT,
    HOLED,
    PLAIN,
    WIDTH,
    check,
    coco,
    faults,
    flat,
    line,
    picture,
    write_json,
    write_text,
    yolo_text,
)
from PIL import Image

import utils
from data.formats import coco_records, yolo
from data.formats.sa1b import is_sa1b
from data.reading import NoMasks, Options, Reading
from data.recognise import open_records

TRAIN_VAL = {"train": ("a", "c"), "val": ("b",)}


def pictures(root, stems="abc", suffix=".png"):
    for stem in stems:
        picture(root / f"{stem}{suffix}")


############################################################
#  COCO
############################################################


def test_coco_own_layout(tmp_path):
    for split, stems in TRAIN_VAL.items():
        pictures(tmp_path / split, stems)
        value = coco({stem: HOLED[stem] for stem in stems})
        write_json(tmp_path / "annotations" / f"instances_{split}.json", value)
        write_json(tmp_path / "annotations" / f"person_keypoints_{split}.json", value)  # the same pictures again
        write_json(tmp_path / "annotations" / f"captions_{split}.json", {"images": [], "annotations": []})
    records = check(tmp_path, HOLED)
    assert records.title == coco_records.TITLE
    assert {p.path.stem: p.split for p in records.pictures} == {"a": "train", "c": "train", "b": "val"}
    assert not faults(records)


def test_coco_roboflow(tmp_path):
    for split, stems in {"train": "ac", "valid": "b"}.items():
        pictures(tmp_path / split, stems)
        value = coco({stem: PLAIN[stem] for stem in stems})
        value["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        write_json(tmp_path / split / "_annotations.coco.json", value)
    write_text(tmp_path / "README.roboflow.txt", "exported")
    records = check(tmp_path, PLAIN)
    assert {p.split for p in records.pictures} == {"train", "val"}
    assert {o.name for p in records.pictures for o in p.objects} == {"cat", "dog"}


@pytest.mark.parametrize("crowds", ["auto", "objects", "ignore"])
def test_coco_masks_of_cvat_are_no_crowds(tmp_path, crowds):
    pictures(tmp_path / "images" / "default")
    value = coco(HOLED)
    for entry in value["annotations"]:
        entry["attributes"] = {"occluded": False}
    holed = next(entry for entry in value["annotations"] if isinstance(entry["segmentation"], dict))
    holed["iscrowd"] = 1
    polygon = next(entry for entry in value["annotations"] if isinstance(entry["segmentation"], list))
    value["annotations"] += [{**polygon, "id": 100 + i} for i in range(30)]  # less than 5 % are marked
    write_json(tmp_path / "annotations" / "instances_default.json", value)
    records = open_records(tmp_path, options=Options(crowds=crowds))
    assert sum(o.is_crowd for p in records.pictures for o in p.objects) == (crowds == "ignore")
    assert (coco_records._MASKS.what in faults(records, "remark")) == (crowds != "ignore")


def test_coco_own_crowds_stay(tmp_path):
    pictures(tmp_path)
    value = {**coco(HOLED), "info": {"url": "http://cocodataset.org"}}
    value["annotations"][0]["iscrowd"] = 1
    write_json(tmp_path / "instances.json", value)
    assert sum(o.is_crowd for p in open_records(tmp_path).pictures for o in p.objects) == 1


def test_coco_contours_are_filled_with_their_outline(tmp_path):
    """supervision: contours through the centres of pixels, whole numbers throughout."""
    pictures(tmp_path)
    value = coco(PLAIN)
    for entry, (_, box) in zip(value["annotations"], _boxes(PLAIN), strict=True):
        x1, y1, x2, y2 = box
        entry["segmentation"] = [flat((x1, y1, x2 - 1, y2 - 1))]
    write_json(tmp_path / "a.json", value)
    records = check(tmp_path, PLAIN)
    what = "5 polygons have whole numbers throughout, as contours through pixel centres have"
    assert what in faults(records, "remark")
    with pytest.raises(AssertionError):
        check(tmp_path, PLAIN, options=Options(filling="centres"))


def _boxes(truth):
    return [(stem, part) for stem, objects in truth.items() for item in objects for part in item.parts]


def test_coco_label_studio_stretches_turned_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for stem in "abc":
        picture(tmp_path / "images" / f"{stem}.jpg", (WIDTH, HEIGHT), exif=exif)  # shown as HEIGHT x WIDTH
    value = {**coco(PLAIN, ".jpg", "images/"), "info": {"contributor": "Label Studio"}}
    for entry in value["images"]:
        entry["height"], entry["width"] = WIDTH, HEIGHT
    for entry in value["annotations"]:
        points = np.reshape(entry["segmentation"][0], (-1, 2)) * [HEIGHT / WIDTH, WIDTH / HEIGHT]
        entry["segmentation"] = [points.ravel().tolist()]
        entry["bbox"] = [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()]
    write_json(tmp_path / "result.json", value)
    check(tmp_path, PLAIN, 0.95)


def test_coco_turned_pictures_with_stored_sizes(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for stem in "abc":
        picture(tmp_path / f"{stem}.jpg", (HEIGHT, WIDTH), exif=exif)
    write_json(tmp_path / "result.json", coco(PLAIN, ".jpg"))
    records = check(tmp_path, PLAIN)
    assert all(p.is_stored for p in records.pictures)


@pytest.mark.parametrize("prefix", ["C:\\Users\\me\\data\\", "/home/me/data/", "images/", "https://x.org/"])
def test_coco_names_of_other_machines(tmp_path, prefix):
    pictures(tmp_path / "images")
    write_json(tmp_path / "dataset.json", coco(PLAIN, folder=prefix))
    check(tmp_path, PLAIN)


def test_coco_lvis_has_addresses_only(tmp_path):
    pictures(tmp_path / "val2017")
    value = coco(PLAIN)
    for entry in value["images"]:
        entry["coco_url"] = "http://images.cocodataset.org/val2017/" + entry.pop("file_name")
    for entry in value["annotations"]:
        del entry["iscrowd"]
    write_json(tmp_path / "lvis_v1_val.json", value)
    assert {p.split for p in check(tmp_path, PLAIN).pictures} == {"val"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_coco_encodings_and_text_ids(tmp_path, encoding):
    pictures(tmp_path)
    value = coco(PLAIN)
    value["categories"][0]["name"] = "Kätzchen"
    for entry in value["images"]:
        entry["id"] = f"id-{entry['id']}"
    for entry in value["annotations"]:
        entry["image_id"] = f"id-{entry['image_id']}"
    write_json(tmp_path / "x.json", value, encoding)
    records = open_records(tmp_path)
    assert {o.name for p in records.pictures for o in p.objects} == {"Kätzchen", "dog"}
    assert ("label files are not UTF-8" in faults(records)) == (encoding == "cp1252")


def test_coco_composed_and_decomposed_names(tmp_path):
    for stem in "abc":
        picture(tmp_path / f"u\u0308 {stem}.png")
    write_json(tmp_path / "x.json", coco(PLAIN, folder="\u00fc "))
    assert len(open_records(tmp_path).pictures) == 3


def test_coco_equal_entries_of_two_files_count_once(tmp_path):
    pictures(tmp_path)
    write_json(tmp_path / "all.json", coco(HOLED))
    write_json(tmp_path / "train.json", coco(HOLED))
    records = check(tmp_path, HOLED)
    assert len(faults(records)["pictures have two entries or label files"]) == 3


def test_coco_one_bad_label_costs_one_label(tmp_path):
    pictures(tmp_path)
    value = coco(PLAIN)
    value["annotations"][0]["segmentation"] = [[1, 2, 3]]
    write_json(tmp_path / "x.json", value)
    write_json(tmp_path / "y.json", coco({"gone": PLAIN["a"]}))
    write_text(tmp_path / "z.json", '{"images": [')
    records = check(tmp_path, {**PLAIN, "a": PLAIN["a"][1:]})
    assert sum(map(len, faults(records, "error").values())) >= 2


def test_coco_boxes_are_no_masks(tmp_path):
    pictures(tmp_path)
    value = coco(PLAIN)
    for entry in value["annotations"]:
        del entry["segmentation"]
    write_json(tmp_path / "x.json", value)
    with pytest.raises(NoMasks, match="boxes"):
        open_records(tmp_path)


def test_coco_pictures_that_were_made_smaller(tmp_path):
    for stem in "abc":
        picture(tmp_path / f"{stem}.png", (HEIGHT, WIDTH) if stem == "b" else (HEIGHT // 2, WIDTH // 2))
    picture(tmp_path / "c.png", (HEIGHT, 2 * WIDTH))
    write_json(tmp_path / "x.json", coco(PLAIN))
    records = open_records(tmp_path)
    found = {p.path.stem: p for p in records.pictures}
    assert set(found) == {"a", "b"}
    areas = [utils.rle_area(o.mask(20, 24)) for o in found["a"].objects]
    assert areas == pytest.approx([16 * 13 / 4, 16 * 22 / 4], rel=0.2)
    assert set(faults(records)) == {"pictures have another size than their labels say, by one factor",
                                    "pictures have another size than their labels say"}  # fmt: skip


def test_sa1b(tmp_path):
    for stem, objects in HOLED.items():
        picture(tmp_path / f"{stem}.jpg")
        entries = [{"id": 1, "segmentation": utils.rle_to_json(utils.mask_to_rle(item.mask()))} for item in objects]
        image = {"image_id": 1, "file_name": f"{stem}.jpg", "height": HEIGHT, "width": WIDTH}
        write_json(tmp_path / f"{stem}.json", {"image": image, "annotations": entries})
    write_json(tmp_path / "d.json", {"image": {"file_name": "a.jpg"}, "annotations": [{"segmentation": 3}]})
    records = check(tmp_path, HOLED, names=False)
    assert records.title == "SA-1B json"
    assert "objects cannot be used" in faults(records)
    assert not is_sa1b({"image": "x", "annotations": []})


############################################################
#  YOLO
############################################################


NAMES = {
    "list": "names: [cat, dog]\nnc: 2\n",
    "lines": "names:\n- cat\n- 'dog'  # woof\n",
    "dict": "names:\n  0: cat\n  1: dog\n",
    "quoted": 'names: {"0": "cat", "1": "dog"}\n',
    "folded": "names: [cat,\n  dog]\n",
}


@pytest.mark.parametrize("names", NAMES)
def test_yolo_ultralytics_layout(tmp_path, names):
    for split, stems in TRAIN_VAL.items():
        pictures(tmp_path / "images" / split, stems, ".jpg")
        for stem in stems:
            if PLAIN[stem]:  # an absent file is a picture without objects
                write_text(tmp_path / "labels" / split / f"{stem}.txt", yolo_text(PLAIN[stem]))
    write_text(tmp_path / "data.yaml", f"path: /home/me/set\ntrain: images/train\nval: images/val\n{NAMES[names]}")
    records = check(tmp_path, PLAIN)
    assert {p.path.stem for p in records.pictures} == {"a", "b", "c"}, "a picture without a label file has no objects"
    assert {p.path.stem: p.split for p in records.pictures} == {"a": "train", "c": "train", "b": "val"}
    assert not faults(records)


def test_yolo_roboflow_layout(tmp_path):
    for split, stems in {"train": "ac", "valid": "b"}.items():
        pictures(tmp_path / split / "images", stems)
        for stem in stems:
            write_text(tmp_path / split / "labels" / f"{stem}.txt", yolo_text(PLAIN[stem]))
    write_text(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: ['cat', 'dog']\n")
    assert {p.path.stem: p.split for p in check(tmp_path, PLAIN).pictures} == {"a": "train", "c": "train", "b": "val"}


@pytest.mark.parametrize("entries", [
    "train: [images/one, images/two]\nval: images/three\n",
    "train: lists/t.txt\nval: lists/v.txt\n",
    "path: ../datasets/street\ntrain: /content/street/lists/t.txt\nval: images/three\n",
])  # fmt: skip
def test_yolo_splits_of_data_yaml(tmp_path, entries):
    for folder, stem in {"one": "a", "two": "c", "three": "b"}.items():
        picture(tmp_path / "images" / folder / f"{stem}.png")
        write_text(tmp_path / "labels" / folder / f"{stem}.txt", yolo_text(PLAIN[stem]))
    write_text(tmp_path / "lists" / "t.txt", "./images/one/a.png\n/content/street/images/two/c.png\n")
    write_text(tmp_path / "lists" / "v.txt", "images\\three\\b.png\n")
    write_text(tmp_path / "data.yaml", f"{entries}names: [cat, dog]\n")
    assert {p.path.stem: p.split for p in check(tmp_path, PLAIN).pictures} == {"a": "train", "c": "train", "b": "val"}


def test_yolo_autosplit_and_classes_txt_in_one_folder(tmp_path):
    pictures(tmp_path)
    for stem in "abc":
        write_text(tmp_path / f"{stem}.txt", yolo_text(PLAIN[stem]))
    write_text(tmp_path / "classes.txt", "cat\ndog\n")
    write_text(tmp_path / "autosplit_train.txt", "./a.png\n./c.png\n")
    write_text(tmp_path / "autosplit_val.txt", "./b.png\n")
    assert {p.path.stem: p.split for p in check(tmp_path, PLAIN).pictures} == {"a": "train", "c": "train", "b": "val"}


def test_yolo_names_are_text_as_written(tmp_path):
    picture(tmp_path / "a.png")
    write_text(tmp_path / "a.txt", line(0, (2, 2, 9, 9)) + "\n" + line(1, (2, 2, 9, 9)))
    write_text(tmp_path / "data.yaml", "names: [no, 007]\n")
    assert [o.name for o in open_records(tmp_path).pictures[0].objects] == ["no", "007"]
    write_text(tmp_path / "data.yaml", "names: !!python/object/apply:os.system ['false']\n")
    records = open_records(tmp_path)  # no loader of objects runs: the tag is ignored
    assert [o.name for o in records.pictures[0].objects] == ["false"]


def test_yolo_class_names_instead_of_numbers(tmp_path):
    pictures(tmp_path)
    for stem in "abc":
        text = "\n".join(line(item.name, part) for item in PLAIN[stem] for part in item.parts)
        write_text(tmp_path / f"{stem}.txt", text)
    write_text(tmp_path / "classes.txt", "cat\ndog\n")
    check(tmp_path, PLAIN)


def test_yolo_class_names_that_are_numbers(tmp_path):
    picture(tmp_path / "a.png")
    fields = ("0", "1", "2.0", "5", "3", "cat")
    write_text(tmp_path / "a.txt", "\n".join(line(field, (2, 2 + i, 9, 9 + i)) for i, field in enumerate(fields)))
    write_text(tmp_path / "data.yaml", "names: ['1', '2', '5', 'cat']\n")
    records = open_records(tmp_path)
    assert [parsed.name for parsed in records.pictures[0].objects] == ["1", "2", "5", "5", "cat", "cat"]
    assert faults(records) == {yolo._NAME.what: ["a.txt: line 4: 5"]}


def test_yolo_bad_lines_cost_a_line_each(tmp_path):
    pictures(tmp_path)
    bad = [
        "0 0.5 0.5 0.2 0.2",
        line(9, (2, 2, 9, 9)),
        "0 1 2 3",
        "x y z",
        "0 0.1 0.1 0.5 0.1 0.1 nan",
        "1 5 5 0.1 0.1 0.2 9",
    ]
    write_text(tmp_path / "a.txt", "\n".join([yolo_text(PLAIN["a"]), *bad]))
    write_text(tmp_path / "b.txt", yolo_text(PLAIN["b"]))
    write_text(tmp_path / "gone.txt", yolo_text(PLAIN["b"]))
    write_text(tmp_path / "classes.txt", "cat\ndog\n")
    records = check(tmp_path, PLAIN)
    found = faults(records, "error")
    assert found[yolo._BOXES.what] == ["a.txt: line 3"]
    assert found[yolo._NO_CLASS.what] == ["a.txt: line 4: class 9 of 2"]
    assert found[yolo._RANGE.what] == ["a.txt: line 7: nan", "a.txt: line 8: 9"]
    assert len(found["objects cannot be used"]) == 2
    assert found["labels name a picture that is not there"] == ["gone.txt"]


def test_yolo_pixels(tmp_path):
    pictures(tmp_path)
    lines = [[("cat", "dog").index(item.name), *flat(item.parts[0], 0.2)] for item in PLAIN["a"]]
    write_text(tmp_path / "a.txt", "\n".join(" ".join(map(str, line)) for line in lines))
    write_text(tmp_path / "b.txt", yolo_text(PLAIN["b"]))
    write_text(tmp_path / "classes.txt", "cat\ndog\n")
    assert faults(check(tmp_path, PLAIN)) == {"label files have pixels instead of fractions": ["a.txt"]}


def test_yolo_a_label_without_picture_takes_no_other_one(tmp_path):
    picture(tmp_path / "images" / "train" / "a.png")
    picture(tmp_path / "images" / "val" / "b.png")
    write_text(tmp_path / "labels" / "train" / "a.txt", yolo_text(PLAIN["a"]))
    write_text(tmp_path / "labels" / "val" / "b.txt", yolo_text(PLAIN["b"]))
    write_text(tmp_path / "labels" / "val" / "a.txt", yolo_text(PLAIN["b"]))
    write_text(tmp_path / "data.yaml", "names: [cat, dog]\n")
    records = check(tmp_path, {stem: PLAIN[stem] for stem in "ab"})
    assert faults(records)["labels name a picture that is not there"] == ["labels/val/a.txt"]


def test_yolo_boxes_are_no_masks(tmp_path):
    pictures(tmp_path)
    write_text(tmp_path / "a.txt", "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.1 0.1")
    with pytest.raises(NoMasks, match=r"2 of them \(the first in a\.txt\)"):
        open_records(tmp_path)


def test_yolo_is_label_and_read_names(tmp_path):
    assert yolo.is_label("0 0.1 0.1 0.2 0.2 0.3 0.3\n")
    assert not yolo.is_label("")
    assert not yolo.is_label("These are notes of 3 4 words\nand more")
    write_text(tmp_path / "classes.txt", "cat\n\ndog\n")
    assert yolo.read_names(Reading(tmp_path), []) == {"classes.txt": {0: "cat", 2: "dog"}}


LISTS = {"data.yaml": "names: [{}, {}]\n", "classes.txt": "{}\n{}\n"}


@pytest.mark.parametrize("first", LISTS)
@pytest.mark.parametrize("second", LISTS)
def test_yolo_two_exports_have_class_lists_of_their_own(tmp_path, first, second):
    for folder, stems, file, names in (("A", "ac", first, ("cat", "dog")), ("B", "b", second, ("dog", "cat"))):
        for stem in stems:
            picture(tmp_path / folder / "images" / f"{stem}.png")
            text = "\n".join(line(names.index(item.name), part) for item in PLAIN[stem] for part in item.parts)
            write_text(tmp_path / folder / "labels" / f"{stem}.txt", text)
        write_text(tmp_path / folder / file, LISTS[file].format(*names))
    records = check(tmp_path, PLAIN)
    assert faults(records, "remark") == {"class lists differ": [f"{f}/{n}" for f, n in sorted_lists(first, second)]}
    assert not faults(records)


def sorted_lists(first, second):
    return sorted([("A", first), ("B", second)], key=lambda item: (item[1] != "data.yaml", item[0]))


def test_yolo_class_lists_that_differ(tmp_path):
    picture(tmp_path / "labels" / "a.png")
    write_text(tmp_path / "labels" / "a.txt", line(0, (2, 2, 9, 9)))
    write_text(tmp_path / "x" / "one.yaml", "names: [cat]\n")
    write_text(tmp_path / "y" / "two.yaml", "names: [cat]\n")
    assert open_records(tmp_path).pictures[0].objects[0].name == "cat"
    write_text(tmp_path / "y" / "two.yaml", "names: [dog]\n")
    with pytest.raises(ValueError, match=r"lists x/one.yaml and y/two.yaml differ, and neither is nearer to labels/a"):
        open_records(tmp_path)
    write_text(tmp_path / "z.yaml", "names: [cow]\n")  # above the labels
    assert open_records(tmp_path).pictures[0].objects[0].name == "cow"
    write_text(tmp_path / "data.yaml", "names: [hen]\n")
    records = open_records(tmp_path)
    assert records.pictures[0].objects[0].name == "hen"
    assert faults(records, "remark")[yolo._OTHER_LISTS.what] == ["z.yaml", "x/one.yaml", "y/two.yaml"]


def test_yolo_a_broken_yaml_is_one_file(tmp_path):
    picture(tmp_path / "a.png")
    write_text(tmp_path / "a.txt", line(0, (2, 2, 9, 9)))
    write_text(tmp_path / "data.yaml", "names: [cat\n")
    assert len(faults(open_records(tmp_path), "error")["label files cannot be read"]) == 1
