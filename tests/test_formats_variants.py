"""Variants of the formats, as each tool and version writes them: they read to the same masks without any warning.

Each function writes one variant. Its docstring names the tool, and the version whose files or source it follows.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import roifile
import tifffile
from own_sets import (
    FLAT,
    HEIGHT,
    HOLED,
    PLAIN,
    WIDTH,
    Truth,
    base64_of,
    check,
    coco,
    corners,
    cvat_xml,
    faults,
    feature,
    flat,
    labelme_value,
    numbers,
    picture,
    png,
    points,
    region,
    regions,
    roi,
    via_2,
    via_3,
    write_json,
    write_png,
    write_text,
    write_zip,
    xml,
    yolo_text,
)
from PIL import Image

import utils
from data.check import check as check_records
from data.listing import Listing
from data.recognise import open_records
from data.records import ERROR, WARNING

PARTS = {**PLAIN, "a": [Truth("cat", ((4, 5, 20, 18), (30, 5, 40, 12))), Truth("dog", ((24, 20, 40, 35),))]}
SPLIT = {stem: [Truth(item.name, (part,), item.hole) for item in objects for part in item.parts]
         for stem, objects in HOLED.items()}  # fmt: skip
SPLITS = {"train": "ac", "val": "b"}


class Variant(NamedTuple):
    write: Callable[[Path], object]
    truth: dict
    bar: float
    names: bool  # whether the format has classes
    splits: dict | None


VARIANTS: dict[str, Variant] = {}


def variant(truth, bar=1.0, names=True, splits=None):
    """Registers a function that writes a variant. splits: {split: stems} that it must be read with."""

    def register(write):
        assert write.__name__ not in VARIANTS, write.__name__
        VARIANTS[write.__name__] = Variant(write, truth, bar, names, splits)
        return write

    return register


def pictures(folder, stems="abc", suffix=".jpg"):
    for stem in stems:
        picture(folder / f"{stem}{suffix}")


############################################################
#  labelme and tools with its format
############################################################


@variant(PARTS)
def labelme_4_with_its_picture_embedded(root):
    """labelme 4.5.6, with "Save With Image Data": the picture lies beside it as well."""
    pictures(root)
    for stem, objects in PARTS.items():
        data = base64_of((root / f"{stem}.jpg").read_bytes())
        write_json(root / f"{stem}.json", labelme_value(stem, objects, version="4.5.6", imageData=data))


@variant(HOLED)
def labelme_6_masks(root):
    """labelme 6.3.1, AI masks and oriented rectangles: corners of a mask lie inside, and are no whole numbers."""
    pictures(root)
    for stem, objects in HOLED.items():
        value = labelme_value(stem, [], version="6.3.1")
        for group, item in enumerate(objects):
            shape = {"label": item.name, "group_id": group if len(item.parts) > 1 else None, "flags": {}, "mask": None}
            for part in item.parts:
                x1, y1, x2, y2 = part
                if item.hole:
                    box = [[x1 - 0.3, y1 + 0.4], [x2 - 0.8, y2 - 0.9]]
                    mask = base64_of(png(item.mask()[y1:y2, x1:x2]))
                    value["shapes"].append({**shape, "points": box, "shape_type": "mask", "mask": mask})
                else:
                    value["shapes"].append({**shape, "points": corners(part), "shape_type": "oriented_rectangle"})
        write_json(root / f"{stem}.json", value)


@variant(PLAIN)
def labelme_7_rectangles_in_any_order(root):
    """labelme 7.1: two corners of a rectangle, the right one first; keys of later versions are unknown."""
    pictures(root)
    for stem, objects in PLAIN.items():
        value = labelme_value(stem, [], version="7.1.0", schema=2)
        for item in objects:
            ((x1, y1, x2, y2),) = item.parts
            shape = {"label": item.name, "points": [[x2 - 0.3, y1 + 0.2], [x1 + 0.2, y2 - 0.3]], "group_id": None}
            value["shapes"].append({**shape, "shape_type": "rectangle", "flags": {}, "mask": None})
        write_json(root / f"{stem}.json", value)


@variant(PLAIN)
def x_anylabeling(root):
    """X-AnyLabeling 2.4: rectangles have four corners, rotation has an angle; scores, attributes, difficult."""
    pictures(root)
    for stem, objects in PLAIN.items():
        value = labelme_value(stem, [], version="2.4.4", text="", description="", checked=False)
        for number, item in enumerate(objects):
            more = {"score": 0.91, "difficult": False, "attributes": {"colour": "red"}, "kie_linking": [],
                    "direction": 1.57, "description": None, "group_id": None, "flags": {}}  # fmt: skip
            kind = ("rectangle", "rotation", "polygon")[number]
            box = (np.array(corners(item.parts[0])) + 0.2).tolist()
            value["shapes"].append({"label": item.name, "points": box, "shape_type": kind, **more})
        write_json(root / f"{stem}.json", value)


@variant(PLAIN, splits=SPLITS)
def labelme_labels_in_a_folder_of_their_own(root):
    """labelme --output DIR of several folders of pictures; imagePath has lost its folders."""
    for split, stems in SPLITS.items():
        pictures(root / "images" / split, stems)
        for stem in stems:
            write_json(root / "labels" / split / f"{stem}.json", labelme_value(stem, PLAIN[stem]))


@variant({**PLAIN, "b": PLAIN["a"]})
def labelme_same_names_in_two_splits(root):
    """Names start again in each split: 1.jpg of train and 1.jpg of val. Here both are read by their folders."""
    for split, stems in SPLITS.items():
        for stem in stems:
            picture(root / "images" / split / f"{stem}.jpg")
            write_json(root / "labels" / split / f"{stem}.json", labelme_value(stem, {**PLAIN, "b": PLAIN["a"]}[stem]))


@variant(PLAIN)
def labelme_without_pictures(root):
    """labelme 5.4, imageData, and no picture anywhere."""
    for stem, objects in PLAIN.items():
        data = base64_of(picture(root / "x" / f"{stem}.jpg").read_bytes())
        (root / "x" / f"{stem}.jpg").unlink()
        write_json(root / f"{stem}.json", labelme_value(stem, objects, imageData=data))


@variant(PARTS)
def isat(root):
    """ISAT with segment anything 1.4: parts of an object share a group and a category; bbox is x1 y1 x2 y2."""
    pictures(root)
    write_text(root / "isat.yaml", "label:\n- color: '#ff0000'\n  name: cat\n- color: '#00ff00'\n  name: dog\n")
    for stem, objects in PARTS.items():
        info = {"description": "ISAT", "folder": "D:/set", "name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT,
                "depth": 3, "note": ""}  # fmt: skip
        entries = [
            {"category": item.name, "group": group, "segmentation": (np.array(corners(part)) + 0.2).tolist(),
             "area": 9.0, "layer": 1.0, "bbox": list(part), "iscrowd": False, "note": ""}
            for group, item in enumerate(objects, 1) for part in item.parts
        ]  # fmt: skip
        write_json(root / f"{stem}.json", {"info": info, "objects": entries})


############################################################
#  VIA
############################################################


@variant(PLAIN)
def via_1_json(root):
    """VIA 1.0.6: regions are a dict, fileref and base64_img_data."""
    pictures(root)
    value = via_2(PLAIN, lambda item: {"name": item.name}, as_dict=True)
    for entry in value.values():
        entry.update(fileref="", base64_img_data="")
    write_json(root / "via_region_data.json", value)


@variant(PLAIN)
def via_2_classes_of_a_dropdown(root):
    """VIA 2.0.12: attributes of a dropdown, a radio and a checkbox, besides attributes of files."""
    pictures(root)
    value = via_2(PLAIN, lambda item: {"kind": item.name, "sure": {"yes": True}, "seen by": "x"})
    for entry in value.values():
        entry["file_attributes"] = {"caption": "y", "public_domain": "no"}
    options = {"type": "dropdown", "description": "", "options": {"cat": "", "dog": ""}, "default_options": {}}
    project = {
        "_via_settings": {"ui": {}, "core": {"default_filepath": "./images/"}, "project": {"name": "x"}},
        "_via_img_metadata": value,
        "_via_attributes": {"region": {"kind": options}, "file": {}},
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": list(value),
    }
    write_json(root / "via_project_26Nov2026.json", project)


@variant(PLAIN)
def via_2_classes_of_a_checkbox(root):
    """VIA 2.0.12: the class is a checkbox, {option: true}."""
    pictures(root / "images")
    write_json(root / "via.json", via_2(PLAIN, lambda item: {"type": {item.name: True, "other": False}}))


@variant(PLAIN)
def via_2_csv_with_a_mark(root):
    """VIA 2.0.12, "Export Annotations (as csv)", saved once more by Excel: a mark and CRLF."""
    pictures(root)
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerow(["filename", "file_size", "file_attributes", "region_count", "region_id",
                     "region_shape_attributes", "region_attributes"])  # fmt: skip
    for entry in via_2(PLAIN).values():
        for i, item in enumerate(entry["regions"] or [{"shape_attributes": {}, "region_attributes": {}}]):
            cells = [json.dumps(item[key]) for key in ("shape_attributes", "region_attributes")]
            writer.writerow([entry["filename"], -1, '{"caption": "x"}', len(entry["regions"]), i, *cells])
    (root / "via_csv.csv").write_bytes(b"\xef\xbb\xbf" + file.getvalue().encode())


@variant(PLAIN)
def via_2_shapes(root):
    """VIA 2.0.12: rectangles as floats, and polygons whose last point repeats the first."""
    pictures(root)
    value = via_2(PLAIN)
    for entry in value.values():
        for number, item in enumerate(entry["regions"]):
            shape = item["shape_attributes"]
            if number:
                shape["all_points_x"].append(shape["all_points_x"][0])
                shape["all_points_y"].append(shape["all_points_y"][0])
            else:
                x, y = min(shape["all_points_x"]), min(shape["all_points_y"])
                size = {"width": max(shape["all_points_x"]) - x, "height": max(shape["all_points_y"]) - y}
                item["shape_attributes"] = {"name": "rect", "x": x, "y": y, **size}
    write_json(root / "via.json", value)


@variant(PLAIN, splits=SPLITS)
def via_balloon(root):
    """Matterport's balloon: train/ and val/ with via_region_data.json each."""
    for split, stems in SPLITS.items():
        pictures(root / split, stems)
        write_json(root / split / "via_region_data.json", via_2({stem: PLAIN[stem] for stem in stems}, as_dict=True))


@variant(PLAIN)
def via_3_project(root):
    """VIA 3.0.11: a project; file ids are numbers, pictures lie in a folder."""
    pictures(root / "images")
    value = via_3(PLAIN)
    del value["metadata"]["video"]
    for entry in value["file"].values():
        entry.update(type=2, loc=1, src=f"images/{entry['fname']}")
    for key, entry in value["metadata"].items():
        entry.update(flg=0, vid=key.partition("_")[0])
    value["config"] = {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}}
    write_json(root / "via_project.json", value)


############################################################
#  CVAT
############################################################


@variant(HOLED)
def cvat_images_with_attributes(root):
    """CVAT 2.60, "CVAT for images 1.1": attributes of shapes, tags, and shapes that are no masks."""
    pictures(root / "images")
    text = cvat_xml(HOLED, "{}.jpg".format)
    for tag in ("polygon", "mask"):
        text = text.replace(f"<{tag} ", f'<{tag} source="manual" occluded="1" z_order="0" ')
    text = text.replace(
        '</image>',
        '<polyline label="x" points="1,1;5,5;9,9"/><points label="x" points="1,1"/><tag label="dark" source="manual"/>'
        '<cuboid label="x" xtl1="1"/><skeleton label="x"><points label="1" points="1,1"/></skeleton></image>',
    )  # fmt: skip
    write_text(root / "annotations.xml", text)


@variant(PLAIN)
def cvat_frames_as_images(root):
    """CVAT 2.60: a task of a video exported as "CVAT for images 1.1"; names have no suffix."""
    pictures(root / "images", suffix=".PNG")
    write_text(root / "annotations.xml", cvat_xml(PLAIN, "{}".format, more=' task_id="3"'))


TRACK = '<track id="{}" label="{}"{}>{}</track>'
SHAPE = '<polygon frame="{}" keyframe="1" outside="{}" occluded="0" points="{}" z_order="0"/>'


def tracks(truth, names, more=""):
    """Tracks of CVAT: each object is in its own frame only. names: stems in the order of frames."""
    texts = []
    for frame, stem in enumerate(names):
        for item in truth[stem]:
            shapes = SHAPE.format(frame, 0, points(item.parts[0])) + SHAPE.format(frame + 1, 1, points(item.parts[0]))
            texts.append(TRACK.format(len(texts), item.name, more, shapes))
    return "".join(texts)


@variant({f"frame_{i:06}": PLAIN[stem] for i, stem in enumerate("abc")})
def cvat_video(root):
    """CVAT 2.60, "CVAT for video 1.1"; a frame without tracks is a picture without objects."""
    for i in range(3):
        picture(root / "images" / f"frame_{i:06}.PNG")
    size = f"<original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size>"
    meta = f"<meta><task><id>5</id><size>3</size><mode>interpolation</mode>{size}</task></meta>"
    write_text(root / "annotations.xml",
               f"<annotations><version>1.1</version>{meta}{tracks(PLAIN, 'abc')}</annotations>")  # fmt: skip


def project_of_videos():
    """The XML of a project of two videos in subsets of their own."""
    tasks = "".join(
        f"<task><id>{number}</id><name>v{number}</name><size>{size}</size><mode>interpolation</mode>"
        f"<subset>{subset}</subset><original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size></task>"
        for number, subset, size in ((5, "Train", 2), (6, "Validation", 1))
    )
    meta = f"<meta><project><id>1</id><tasks>{tasks}</tasks></project></meta>"
    body = tracks(PLAIN, "ac", ' task_id="5" subset="Train"') + tracks(PLAIN, "b", ' task_id="6" subset="Validation"')
    return f"<annotations><version>1.1</version>{meta}{body}</annotations>"


def test_cvat_project_of_two_videos(tmp_path):
    """CVAT 2.60 writes the frames of a project to images/SUBSET/frame_000000.PNG, and numbers start again."""
    for name in ("Train/frame_000000", "Train/frame_000001", "Validation/frame_000000"):
        picture(tmp_path / "images" / f"{name}.PNG")
    write_text(tmp_path / "annotations.xml", project_of_videos())
    records = open_records(tmp_path)
    found = {p.path.parent.name + p.path.stem[-1]: [o.name for o in p.objects] for p in records.pictures}
    assert found == {"Train0": ["cat", "dog"], "Train1": [], "Validation0": ["dog", "cat", "dog"]}
    assert {p.split for p in records.pictures if p.path.parent.name == "Train"} == {"train"}
    assert not faults(records)


def test_cvat_two_videos_of_one_subset_cannot_be_told_apart(tmp_path):
    for name in ("frame_000000", "frame_000001"):
        picture(tmp_path / "images" / "Train" / f"{name}.PNG")
    write_text(tmp_path / "annotations.xml", project_of_videos().replace("Validation", "Train"))
    records = open_records(tmp_path)
    assert [p.path.stem for p in records.pictures if p.is_labelled] == ["frame_000001"]
    (places,) = [places for what, places in faults(records).items() if "several videos" in what]
    assert places == ["annotations.xml: images/Train/frame_000000.PNG of the tasks 5 and 6"]


@variant({"frame_000000": PLAIN["a"], "frame_000001": PLAIN["b"]})
def cvat_exports_of_two_tasks(root):
    """Two exports of videos, unpacked beside each other: frames have equal names."""
    for folder, names in (("one", "a"), ("two", "cb")):
        for i, _ in enumerate(names):
            if (folder, i) != ("two", 0):
                picture(root / folder / "images" / f"frame_{i:06}.PNG")
        truth = {**PLAIN, "c": []}
        meta = f"<meta><task><size>{len(names)}</size><mode>interpolation</mode></task></meta>"
        text = f"<annotations><version>1.1</version>{meta}{tracks(truth, names)}</annotations>"
        write_text(root / folder / "annotations.xml", text)


@variant(PLAIN)
def cvat_job(root):
    """CVAT 2.60, a job: <meta><job>; pictures beside the XML."""
    pictures(root)
    write_text(root / "annotations.xml", cvat_xml(PLAIN, "{}.jpg".format, "job"))


@variant(PLAIN, splits=SPLITS)
def cvat_project_of_subsets(root):
    """CVAT 2.60, a project: images/SUBSET/NAME; the same name may be in two subsets."""
    text = cvat_xml(PLAIN, "{}.jpg".format, "project")
    for split, stems in SPLITS.items():
        pictures(root / "images" / split, stems)
        for stem in stems:
            text = text.replace(f'name="{stem}.jpg"', f'name="{stem}.jpg" subset="{split}" task_id="4"')
    write_text(root / "annotations.xml", text)


############################################################
#  YOLO
############################################################


def yolo_labels(folder, stems, end="\n"):
    for stem in stems:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.txt").write_bytes(yolo_text(PLAIN[stem]).replace("\n", end).encode())


@variant(PLAIN, splits=SPLITS)
def yolo_split_first(root):
    """train/images and train/labels, names as a list."""
    for split, stems in SPLITS.items():
        pictures(root / split / "images", stems)
        yolo_labels(root / split / "labels", stems)
    write_text(root / "data.yaml", "train: train/images\nval: val/images\nnc: 2\nnames: ['cat', 'dog']\n")


@variant(PLAIN, splits=SPLITS)
def yolo_label_studio(root):
    """Label Studio 1.20, YOLO: classes.txt, notes.json, images/ and labels/; CRLF and spaces at line ends."""
    for split, stems in SPLITS.items():
        pictures(root / "images" / split, stems)
        yolo_labels(root / "labels" / split, stems, " \r\n")
    write_text(root / "classes.txt", "cat\r\ndog\r\n")
    write_json(root / "notes.json", {"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2026}})


@variant(PLAIN, splits=SPLITS)
def yolo_cvat(root):
    """CVAT 2.60, Ultralytics YOLO Segmentation 1.0: lists of pictures, a dict of names, labels/train/."""
    for split, stems in SPLITS.items():
        pictures(root / "images" / split, stems)
        yolo_labels(root / "labels" / split, stems)
        write_text(root / f"{split}.txt", "".join(f"data/images/{split}/{stem}.jpg\n" for stem in stems))
    write_text(root / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\nval: val.txt\n")


@variant(PLAIN)
def yolo_flat_with_a_mark(root):
    """Pictures and labels in one folder, obj.names and obj.data as darknet has them; UTF-8 with a mark."""
    pictures(root / "obj_train_data")
    yolo_labels(root / "obj_train_data", "abc")
    path = root / "obj_train_data" / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    write_text(root / "obj.names", "cat\ndog\n")
    write_text(root / "obj.data", "classes = 2\nnames = data/obj.names\nbackup = backup/\n")
    write_text(root / "train.txt", "".join(f"data/obj_train_data/{stem}.jpg\n" for stem in "abc"))


@variant(PLAIN, names=False)
def yolo_without_names(root):
    """No data.yaml, no classes.txt: the classes have numbers only."""
    pictures(root / "images")
    yolo_labels(root / "labels", "abc")


@variant(PLAIN, splits=SPLITS)
def yolo_yaml_elsewhere(root):
    """data.yaml of another name, with path of another machine, names as a list over lines, and a download script."""
    for split, stems in SPLITS.items():
        pictures(root / "set" / "images" / split, stems)
        yolo_labels(root / "set" / "labels" / split, stems)
    write_text(
        root / "cats.yaml",
        "# cats\npath: C:\\data\\set\ntrain:\n  - images/train\nval: images/val\ntest:\nnames:\n  - cat\n  - dog\n"
        "download: |\n  from pathlib import Path\n  raise SystemExit\n",
    )


############################################################
#  COCO json
############################################################


@variant(PLAIN)
def coco_fiftyone(root):
    """FiftyOne 1.9, COCODetectionDataset: data/ and labels.json; info without contributor."""
    pictures(root / "data")
    value = coco(PLAIN, ".jpg")
    value["info"] = {"description": "Exported from FiftyOne", "contributor": "", "url": "https://voxel51.com/fiftyone"}
    value["licenses"] = []
    write_json(root / "labels.json", value)


@variant(PLAIN, splits=SPLITS)
def coco_mmdetection(root):
    """MMDetection's balloon: train/annotation_coco.json beside the pictures; categories from 0."""
    for split, stems in SPLITS.items():
        pictures(root / split, stems)
        value = coco({stem: PLAIN[stem] for stem in stems}, ".jpg")
        for category in value["categories"]:
            category["id"] = {3: 0, 7: 1}[category["id"]]
        for entry in value["annotations"]:
            entry["category_id"] = {3: 0, 7: 1}[entry["category_id"]]
        write_json(root / split / "annotation_coco.json", value)


@variant(HOLED)
def coco_uncompressed(root):
    """pycocotools' other RLE: counts as a list."""
    pictures(root)
    value = coco(HOLED, ".jpg")
    for entry in value["annotations"]:
        if isinstance(entry["segmentation"], dict):
            mask = HOLED["a"][0].mask()
            edges = np.flatnonzero(np.diff(np.r_[0, mask.T.ravel().astype(np.int8)]))
            counts = np.diff(np.r_[0, edges, mask.size]).tolist()
            entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
    write_json(root / "x.json", value)


@variant(PLAIN)
def coco_flat_polygon(root):
    """A segmentation that is one flat list of numbers, not a list of lists."""
    pictures(root)
    value = coco(PLAIN, ".jpg")
    for entry in value["annotations"]:
        (entry["segmentation"],) = entry["segmentation"]
    write_json(root / "x.json", value)


@variant(PLAIN)
def coco_json_in_a_sibling_folder(root):
    """labels/all.json beside photos/: neither folder says anything."""
    pictures(root / "photos")
    write_json(root / "labels" / "all.json", coco(PLAIN, ".jpg"))


@variant(PLAIN)
def coco_absolute_names(root):
    """labelme2coco 0.2.6: absolute names of this or another machine, dataset.json, whole numbers."""
    pictures(root)
    write_json(root / "dataset.json", coco(PLAIN, ".jpg", "/home/me/set/"))


@variant(PLAIN)
def coco_windows_names(root):
    """Label Studio on Windows: images\\\\NAME."""
    pictures(root / "images")
    value = coco(PLAIN, ".jpg", "images\\")
    value["info"] = {"year": 2026, "version": "1.0", "contributor": "Label Studio", "url": ""}
    for entry in value["annotations"]:
        entry["ignore"] = 0
    write_json(root / "result.json", value)


@variant(PLAIN, splits=SPLITS)
def coco_cvat_subsets(root):
    """CVAT 2.60, COCO 1.0: annotations/instances_SUBSET.json, images/SUBSET/; a license without a name."""
    for split, stems in {"Train": "ac", "Validation": "b"}.items():
        pictures(root / "images" / split, stems)
        value = coco({stem: PLAIN[stem] for stem in stems}, ".jpg")
        value.update(licenses=[{"name": "", "id": 0, "url": ""}], info={"contributor": "", "year": ""})
        for entry in value["annotations"]:
            entry["attributes"] = {"occluded": False}
        for entry in value["images"]:
            entry.update(license=0, flickr_url="", coco_url="", date_captured=0)
        write_json(root / "annotations" / f"instances_{split}.json", value)


@variant(HOLED)
def coco_text_ids(root):
    """Ids of images that are texts, as FiftyOne and own scripts have them."""
    pictures(root)
    value = coco(HOLED, ".jpg")
    for entry in value["images"]:
        entry["id"] = f"img-{entry['id']}"
    for entry in value["annotations"]:
        entry["image_id"] = f"img-{entry['image_id']}"
    write_json(root / "x.json", value)


@variant(PLAIN, splits=SPLITS)
def coco_one_file_with_paths_of_splits(root):
    """One json for all, whose file names have the folder of the split."""
    value = coco(PLAIN, ".jpg")
    for split, stems in SPLITS.items():
        pictures(root / "images" / split, stems)
        for entry in value["images"]:
            if entry["file_name"][0] in stems:
                entry["file_name"] = f"images/{split}/{entry['file_name']}"
    write_json(root / "annotations" / "all.json", value)


############################################################
#  Label Studio, Supervisely
############################################################


@variant(SPLIT)
def label_studio_export(root):
    """Label Studio 1.20, JSON, "with images": meta of tasks, of people and of predictions; unknown keys."""
    pictures(root / "images", suffix=".jpg")
    for stem in "abc":
        (root / "images" / f"{stem}.jpg").rename(root / "images" / f"0a1b2c3d-{stem}.jpg")
    tasks = []
    for number, (stem, objects) in enumerate(SPLIT.items(), 1):
        result = [{"id": f"x{i}", "from_name": "label", "to_name": "image", "image_rotation": 0, "origin": "manual",
                   **part} for i, part in enumerate(regions(objects))]  # fmt: skip
        result.append({"id": "y", "type": "choices", "value": {"choices": ["fine"]}, "from_name": "c"})
        annotation = {"id": number, "completed_by": 1, "result": result, "was_cancelled": False,
                      "ground_truth": False, "prediction": {}}  # fmt: skip
        tasks.append({"id": number, "annotations": [annotation], "drafts": [], "predictions": [], "meta": {},
                      "file_upload": f"0a1b2c3d-{stem}.jpg", "project": 1,
                      "data": {"image": f"/data/upload/1/0a1b2c3d-{stem}.jpg"}})  # fmt: skip
    write_json(root / "project-1-at-2026-11-28.json", tasks)


def test_label_studio_export_names(tmp_path):
    label_studio_export(tmp_path)
    records = check(tmp_path, {f"0a1b2c3d-{stem}": objects for stem, objects in SPLIT.items()})
    assert not faults(records)


VARIANTS.pop("label_studio_export")  # its pictures keep the digits: the test above


@variant(PLAIN)
def label_studio_min(root):
    """Label Studio 1.20, JSON-MIN: one flat entry for each annotation; the control is called tag."""
    pictures(root)
    entries = []
    for number, (stem, objects) in enumerate(PLAIN.items(), 1):
        items = []
        for item in objects:
            value = region(item, item.parts[0])
            items.append({**value["value"], "original_width": WIDTH, "original_height": HEIGHT})
        entry = {"image": f"/data/upload/2/1234abcd-{stem}.jpg", "id": number, "annotator": 1,
                 "annotation_id": number, "created_at": "2026-11-28T02:24:21Z", "lead_time": 3.1}  # fmt: skip
        entries.append({**entry, "tag": items} if items else entry)
    write_json(root / "project-2.json", entries)


def supervisely_value(objects, kind="polygon"):
    """An annotation of Supervisely. kind: of objects without holes in polygons."""
    entries = []
    for item in objects:
        for x1, y1, x2, y2 in item.parts:
            entry = {"classTitle": item.name, "geometryType": kind, "labelerLogin": "x", "tags": []}
            if kind == "bitmap":
                mask = item.mask()[y1:y2, x1:x2]
                data = base64_of(zlib.compress(png(mask)))
                entry.update(bitmap={"origin": [x1, y1], "data": data}, points={"exterior": [], "interior": []})
            else:
                hole = [(np.array(corners(item.hole)) + 0.2).tolist()] if item.hole else []
                ring = (np.array(corners((x1, y1, x2, y2))) + 0.2).tolist()
                entry.update(points={"exterior": ring, "interior": hole})
            entries.append(entry)
    return {"description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH}, "objects": entries}


@variant(SPLIT, splits={"train": "ac", "val": "b"})
def supervisely_project(root):
    """supervisely 6.74, Project.download: a folder for each data set; meta.json."""
    write_json(root / "meta.json", {"classes": [{"title": "cat", "shape": "polygon"}], "tags": []})
    for number, (split, stems) in enumerate(SPLITS.items()):
        pictures(root / split / "img", stems)
        for stem in stems:
            value = supervisely_value(SPLIT[stem], ("polygon", "bitmap")[number])
            write_json(root / split / "ann" / f"{stem}.jpg.json", value)


@variant({**PLAIN, "b": PLAIN["a"]})
def supervisely_equal_names(root):
    """Two data sets of one project with pictures of equal names would be one: here the folder tells."""
    write_json(root / "p" / "meta.json", {"classes": [], "tags": []})
    for folder, stems in (("ds1", "ac"), ("ds2", "b")):
        pictures(root / "p" / folder / "img", stems)
        for stem in stems:
            value = supervisely_value({**PLAIN, "b": PLAIN["a"]}[stem])
            write_json(root / "p" / folder / "ann" / f"{stem}.jpg.json", value)


############################################################
#  QuPath, ImageJ
############################################################


@variant(HOLED)
def qupath_cells(root):
    """QuPath 0.5, "Export objects as GeoJSON": cells with a nucleus, in a region that is an annotation."""
    pictures(root, suffix=".tif")
    for stem, objects in HOLED.items():
        region = feature(Truth("Region*", ((0, 0, WIDTH, HEIGHT),)), "annotation", isLocked=False)
        cells = []
        for item in objects:
            cell = feature(item, "cell", measurements={"Area": 1.0})
            cell["nucleusGeometry"] = feature(Truth("x", ((12, 6, 14, 8),)))["geometry"]
            cells.append({**cell, "id": "4f1-a"})
        features = [region, *cells] if objects else []
        write_json(root / f"{stem}.geojson", {"type": "FeatureCollection", "features": features})


@variant(HOLED)
def qupath_list(root):
    """QuPath 0.2, a bare list in NAME.json; the type of an object is the id, a class has names in parts."""
    pictures(root / "images", suffix=".png")
    for stem, objects in HOLED.items():
        features = [feature(item, "") for item in objects]
        for entry in features:
            entry["id"] = "PathDetectionObject"
            del entry["properties"]["objectType"]
            entry["properties"]["classification"]["colorRGB"] = -3140401
        write_json(root / "labels" / f"{stem}.json", features)


@variant(PLAIN)
def qupath_packed(root):
    """QuPath 0.5, "Export as compressed": NAME.geojson.gz."""
    pictures(root, suffix=".tif")
    for stem, objects in PLAIN.items():
        text = json.dumps({"type": "FeatureCollection", "features": [feature(item) for item in objects]})
        (root / f"{stem}.geojson.gz").write_bytes(gzip.compress(text.encode()))


@variant({**PLAIN, "c": PLAIN["a"]})
def imagej_sets_in_folders(root):
    """ImageJ 1.54, ROI Manager, "Save": RoiSet.zip in the folder of each picture. (roifile 2026.2.10)"""
    for stem, objects in {**PLAIN, "c": PLAIN["a"]}.items():
        picture(root / f"sample {stem}" / f"{stem}.tif")
        members = {f"{i:04}.roi": roi(item.parts[0], f"{item.name}-{i:04}") for i, item in enumerate(objects)}
        write_zip(root / f"sample {stem}" / "RoiSet.zip", members)


@variant({**PLAIN, "c": PLAIN["a"]}, names=False)
def imagej_single_rois(root):
    """ImageJ 1.54: pictures in images/, files NAME_001.roi in rois/; names of digits."""
    for stem, objects in {**PLAIN, "c": PLAIN["a"]}.items():
        picture(root / "images" / f"{stem}.tif")
        for i, item in enumerate(objects, 1):
            path = root / "rois" / f"{stem}_{i:03}.roi"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(roi(item.parts[0], f"00{i}-0123"))


@variant({**HOLED, "c": PLAIN["a"]})
def imagej_composites(root):
    """ImageJ 1.54, composite ROIs: shapes of several parts and with holes; the class before the number."""
    for stem, objects in {**HOLED, "c": PLAIN["a"]}.items():
        picture(root / f"{stem}.png")
        members = {}
        for i, item in enumerate(objects):
            rings = [*item.parts, *([item.hole] if item.hole else [])]
            numbers_ = []
            for ring in rings:
                for step, (x, y) in enumerate(corners(ring)):
                    numbers_ += [0.0 if step == 0 else 1.0, x, y]
                numbers_.append(4.0)
            found = roifile.ImagejRoi(
                roitype=roifile.ROI_TYPE.RECT, name=f"{item.name}-{i}", shape_roi_size=len(numbers_),
                multi_coordinates=np.array(numbers_, np.float32), right=WIDTH, bottom=HEIGHT,
            ) if len(rings) > 1 else roifile.ImagejRoi.frompoints(np.array(corners(rings[0]), np.int32),
                                                                  name=f"{item.name}-{i}")  # fmt: skip
            members[f"{i:04}.roi"] = found.tobytes()
        write_zip(root / f"{stem}_RoiSet.zip", members)


############################################################
#  Label images and masks
############################################################


def tiff(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, **options)


@variant(FLAT, names=False)
def label_images_of_napari(root):
    """napari 0.6, "Save Selected Layers": int32, NAME.tif beside NAME-labels.tif."""
    for stem, objects in FLAT.items():
        picture(root / f"{stem}.tif")
        tiff(root / f"{stem}-labels.tif", numbers(objects, np.int32), compression="zlib")


@variant(FLAT, names=False)
def label_images_ome(root):
    """OME-TIFF with metadata, channels first in the picture. (tifffile 2026.3.3)"""
    for stem, objects in FLAT.items():
        seed = ord(stem)
        channels = np.random.default_rng(seed).integers(0, 4000, (3, HEIGHT, WIDTH), np.uint16)
        tiff(root / "images" / f"{stem}.ome.tif", channels, metadata={"axes": "CYX", "PhysicalSizeX": 0.3}, ome=True,
             photometric="minisblack")  # fmt: skip
        tiff(root / "masks" / f"{stem}.ome.tif", numbers(objects), metadata={"axes": "YX"}, ome=True)


@variant(FLAT, names=False)
def label_images_of_imagej_hyperstacks(root):
    """ImageJ 1.54: a hyperstack of two channels, a label image of 32 bits, float. (tifffile 2026.3.3)"""
    for stem, objects in FLAT.items():
        channels = np.random.default_rng(ord(stem)).integers(0, 4000, (2, HEIGHT, WIDTH), np.uint16)
        tiff(root / f"{stem}.tif", channels, imagej=True, metadata={"axes": "CYX"})
        tiff(root / f"{stem}_masks.tif", numbers(objects, np.float32), imagej=True)


@variant(FLAT, names=False)
def label_images_of_16_bit_png(root):
    """StarDist's notebooks and Cellpose on Windows: PNG of 16 bits."""
    for stem, objects in FLAT.items():
        picture(root / "train" / "images" / f"{stem}.png")
        write_png(root / "train" / "masks" / f"{stem}.png", numbers(objects, np.uint16) * 300)


@variant(FLAT, names=False)
def label_images_with_a_page_axis(root):
    """A label image of shape 1 x H x W, as scripts save it from a batch of one; int32, big-endian, BigTIFF."""
    for stem, objects in FLAT.items():
        picture(root / "images" / f"{stem}.png")
        tiff(root / "labels" / f"{stem}.tif", numbers(objects, np.int32)[None], byteorder=">", bigtiff=True)


@variant(FLAT, names=False)
def label_images_in_rgba(root):
    """A label image in the three channels of RGBA, alpha 255 throughout."""
    for stem, objects in FLAT.items():
        picture(root / "images" / f"{stem}.jpg")
        values = numbers(objects, np.uint8)
        write_png(root / "masks" / f"{stem}.png", np.dstack([values, values, values, np.full_like(values, 255)]))


@variant(HOLED)
def masks_in_alpha(root):
    """Cut-outs: white everywhere, and the object is where alpha is not 0."""
    for stem, objects in HOLED.items():
        picture(root / "images" / f"{stem}.jpg")
        for number, item in enumerate(objects):
            alpha = item.mask().astype(np.uint8) * 255
            for_all = np.full((HEIGHT, WIDTH, 3), 255 if number else 0, np.uint8)
            write_png(root / "masks" / stem / f"{item.name}_{number}.png", np.dstack([for_all, alpha]))


@variant(HOLED)
def masks_of_la(root):
    """Gray with alpha 255 throughout: the gray counts."""
    for stem, objects in HOLED.items():
        picture(root / "images" / f"{stem}.jpg")
        for number, item in enumerate(objects):
            gray = item.mask().astype(np.uint8) * 255
            path = root / "masks" / f"{stem}_{item.name}_{number}.png"
            write_png(path, np.dstack([gray, np.full_like(gray, 255)]))


@variant(HOLED)
def masks_inverted_palette(root):
    """1-bit and palette PNGs."""
    for stem, objects in HOLED.items():
        picture(root / "images" / f"{stem}.jpg")
        for number, item in enumerate(objects):
            path = root / "masks" / stem / f"{item.name}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(item.mask())
            (image if number else image.convert("P")).save(path)


@variant(HOLED, names=False)
def masks_beside_their_picture(root):
    """NAME/NAME.png and NAME/masks/*.png."""
    for stem, objects in HOLED.items():
        picture(root / stem / f"{stem}.png")
        for number, item in enumerate(objects):
            write_png(root / stem / "masks" / f"{number}.png", item.mask().astype(np.uint8) * 255)


def test_masks_beside_pictures_of_one_name(tmp_path):
    """NAME/image.png and NAME/masks/*.png: the folder has the name, and all pictures have the same."""
    for seed, (stem, objects) in enumerate(HOLED.items()):
        values = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        write_png(tmp_path / stem / "image.png", values)
        for number, item in enumerate(objects):
            write_png(tmp_path / stem / "masks" / f"mask_{number}.png", item.mask().astype(np.uint8) * 255)
    records = open_records(tmp_path)
    found = {p.path.parent.name: len(p.objects) for p in records.pictures}
    assert found == {"a": 2, "b": 3, "c": 0}
    assert {o.name for p in records.pictures for o in p.objects} == {""}
    assert not faults(records)


@variant(HOLED, names=False, splits=SPLITS)
def dsb_in_two_splits(root):
    """Data Science Bowl 2018, cut into train/ and val/ by hand."""
    for split, stems in SPLITS.items():
        for stem in stems:
            picture(root / split / stem / "images" / f"{stem}.png")
            for number, item in enumerate(HOLED[stem]):
                path = root / split / stem / "masks" / f"{number:032x}.png"
                write_png(path, item.mask().astype(np.uint8) * 255)


############################################################
#  VOC, Cityscapes
############################################################


def voc_palette_png(path, values, mode="P"):
    from data.formats.voc import palette

    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "P":
        image = Image.fromarray(values.astype(np.uint8))
        image.putpalette(palette().ravel().tolist())
        image.save(path)
    else:
        Image.fromarray(palette()[values]).save(path)


@variant(FLAT, splits=SPLITS)
def voc_2012(root):
    """VOC2012's own layout: palette PNGs, boxes in Annotations, classes of VOC, trainval.txt."""
    root = root / "VOCdevkit" / "VOC2012"
    pictures(root / "JPEGImages")
    for stem, objects in FLAT.items():
        values = numbers(objects, np.uint8)
        classes = np.array([0, *({"cat": 8, "dog": 12}[item.name] for item in objects)])[values]
        voc_palette_png(root / "SegmentationObject" / f"{stem}.png", values)
        voc_palette_png(root / "SegmentationClass" / f"{stem}.png", classes)
        write_text(root / "Annotations" / f"{stem}.xml", xml(stem, objects, False))
    for split, stems in {**SPLITS, "trainval": "abc"}.items():
        write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", "\n".join(stems))


@variant(FLAT)
def voc_cvat(root):
    """CVAT 2.60, Segmentation mask 1.1: RGB PNGs, labelmap.txt with colours, default.txt."""
    pictures(root / "JPEGImages")
    write_text(root / "labelmap.txt",
               "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,0,124::\ndog:10,20,30::\n")  # fmt: skip
    colours = np.array([[0, 0, 0], [255, 0, 124], [10, 20, 30]], np.uint8)
    for stem, objects in FLAT.items():
        values = numbers(objects, np.uint8)
        voc_palette_png(root / "SegmentationObject" / f"{stem}.png", values, "RGB")
        classes = np.array([0, *({"cat": 1, "dog": 2}[item.name] for item in objects)])[values]
        write_png(root / "SegmentationClass" / f"{stem}.png", colours[classes])
    write_text(root / "ImageSets" / "Segmentation" / "default.txt", "a\nb\nc\n")


@variant({stem: [Truth({"cat": "car", "dog": "person"}[i.name], i.parts) for i in objects]
          for stem, objects in FLAT.items()}, splits=SPLITS)  # fmt: skip
def cityscapes_gt_fine(root):
    """Cityscapes: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY with four files each."""
    for split, stems in SPLITS.items():
        for stem in stems:
            image = picture(root / "leftImg8bit" / split / "aachen" / f"{stem}.png")
            image.rename(image.with_name(f"{stem}_leftImg8bit.png"))
            values = numbers(FLAT[stem])
            ids = [7, *({"cat": 26, "dog": 24}[item.name] * 1000 + i for i, item in enumerate(FLAT[stem]))]
            ids = np.array(ids, np.uint16)
            write_png(root / "gtFine" / split / "aachen" / f"{stem}_gtFine_instanceIds.png", ids[values])
            write_png(root / "gtFine" / split / "aachen" / f"{stem}_gtFine_labelIds.png", values.astype(np.uint8))
            write_png(root / "gtFine" / split / "aachen" / f"{stem}_gtFine_color.png",
                      np.dstack([values.astype(np.uint8)] * 4))  # fmt: skip
            write_json(root / "gtFine" / split / "aachen" / f"{stem}_gtFine_polygons.json", {"objects": []})


############################################################
#  What foreign libraries wrote
############################################################


@variant(PARTS, splits=SPLITS)
def datumaro_polygons_in_groups(root):
    """datumaro 1.13.12, export to "datumaro": polygons of one group are an object; a file for each subset."""
    labels = [{"name": name, "parent": "", "attributes": []} for name in ("cat", "dog")]
    for split, stems in SPLITS.items():
        pictures(root / "images" / split, stems)
        items = []
        for stem in stems:
            entries = [
                {"id": 1, "type": "polygon", "attributes": {"occluded": False}, "group": group, "z_order": 0,
                 "label_id": ("cat", "dog").index(item.name), "points": flat(part, 0.2)}
                for group, item in enumerate(PARTS[stem], 1) for part in item.parts
            ]  # fmt: skip
            entries.append({"id": 9, "type": "label", "attributes": {}, "group": 0, "label_id": 0})
            items.append({"id": stem, "annotations": entries,
                          "image": {"path": f"{stem}.jpg", "size": [HEIGHT, WIDTH]}})  # fmt: skip
        value = {"dm_format_version": "1.0", "media_type": 2, "infos": {}, "items": items,
                 "categories": {"label": {"labels": labels, "label_groups": []}}}  # fmt: skip
        write_json(root / "annotations" / f"{split}.json", value)


@variant(HOLED)
def datumaro_masks(root):
    """datumaro 1.13.12, export to "datumaro": masks as RLE."""
    pictures(root / "images" / "default")
    items = []
    for stem, objects in HOLED.items():
        rles = [utils.rle_to_json(utils.mask_to_rle(item.mask())) for item in objects]
        entries = [{"id": 1, "type": "mask", "attributes": {}, "group": i, "z_order": i,
                    "label_id": ("cat", "dog").index(item.name), "rle": rles[i]}
                   for i, item in enumerate(objects)]  # fmt: skip
        items.append({"id": stem, "annotations": entries, "image": {"path": f"{stem}.jpg", "size": [HEIGHT, WIDTH]}})
    categories = {"label": {"labels": [{"name": "cat"}, {"name": "dog"}]}}
    write_json(root / "annotations" / "default.json", {"categories": categories, "items": items})


@variant(HOLED)
def labelme_of_2008(root):
    """CVAT 2.60, LabelMe ZIP 3.0 (datumaro 1.13.12, "label_me"): polygons, parts of objects, masks as files."""
    pictures(root / "Images" / "default")
    for stem, objects in HOLED.items():
        texts, number = [], 0
        for item in objects:
            first = number
            for i, part in enumerate(item.parts):
                name = f"{stem}_mask_{number}.png"
                if item.hole:
                    write_png(root / "Masks" / "default" / name, item.mask().astype(np.uint8) * 255)
                    shape = f"<segm><mask>{name}</mask><box><xmin>1</xmin></box></segm>"
                else:
                    pairs = "".join(f"<pt><x>{x + 0.2}</x><y>{y + 0.2}</y></pt>" for x, y in corners(part))
                    shape = f"<polygon>{pairs}<username></username></polygon>"
                whole = first if i else ""
                texts.append(f"<object><name>{item.name}</name><deleted>0</deleted><id>{number}</id><parts><hasparts>"
                             f"</hasparts><ispartof>{whole}</ispartof></parts>{shape}</object>")  # fmt: skip
                number += 1
        texts.append("<object><name>x</name><deleted>1</deleted><id>99</id></object>")
        size = f"<imagesize><nrows>{HEIGHT}</nrows><ncols>{WIDTH}</ncols></imagesize>"
        head = f"<filename>{stem}.jpg</filename><folder>default</folder>{size}"
        write_text(root / "Annotations" / "default" / f"{stem}.xml", f"<annotation>{head}{''.join(texts)}</annotation>")


@variant(PLAIN, splits=SPLITS)
def cvat_xml_of_datumaro(root):
    """datumaro 1.13.12, export to "cvat": train.xml and val.xml; pictures in one folder."""
    pictures(root / "images")
    for split, stems in SPLITS.items():
        write_text(root / f"{split}.xml", cvat_xml({stem: PLAIN[stem] for stem in stems}, "{}.jpg".format))


@variant(PLAIN)
def coco_of_uploads(root):
    """label-studio-sdk 2.1.2, COCO without pictures: addresses of uploads; a picture without objects has no size."""
    pictures(root / "images")
    value = coco(PLAIN, ".jpg")
    for entry in value["images"]:
        entry["file_name"] = f"/data/upload/1/0a1b2c3d-{entry['file_name']}"
        if entry["id"] == 3:
            del entry["height"], entry["width"]
    write_json(root / "result.json", value)


@variant(PLAIN)
def yolo_of_uploads(root):
    """label-studio-sdk 2.1.2, YOLO without pictures: labels have the names of uploads."""
    pictures(root / "images")
    for stem, objects in PLAIN.items():
        write_text(root / "labels" / f"0a1b2c3d-{stem}.txt", yolo_text(objects))
    write_text(root / "classes.txt", "cat\ndog\n")


@variant(HOLED)
def coco_supervision(root):
    """supervision 0.31.2: objects of parts and with holes carry iscrowd 1, which is no warning."""
    pictures(root / "images")
    value = coco(HOLED, ".jpg")
    for entry in value["annotations"]:
        entry["iscrowd"] = int(isinstance(entry["segmentation"], dict) or len(entry["segmentation"]) > 1)
    for category in value["categories"]:
        category["supercategory"] = "common-objects"
    write_json(root / "annotations.json", value)


@variant(PLAIN, splits=SPLITS)
def coco_with_files_of_other_tasks(root):
    """datumaro 1.13.12, export to "coco": six kinds of files for each subset."""
    for split, stems in SPLITS.items():
        pictures(root / "images" / split, stems)
        value = coco({stem: PLAIN[stem] for stem in stems}, ".jpg")
        write_json(root / "annotations" / f"instances_{split}.json", value)
        for kind in ("image_info", "labels", "captions", "person_keypoints"):
            entries = {"images": value["images"], "annotations": [], "categories": value["categories"]}
            write_json(root / "annotations" / f"{kind}_{split}.json", entries)


@variant(PLAIN)
def pictures_of_other_suffixes(root):
    """Pictures as JPEG 2000, PPM and TGA."""
    for stem, suffix in zip("abc", (".jp2", ".ppm", ".tga"), strict=True):
        path = picture(root / f"{stem}.png")
        with Image.open(path) as image:
            image.save(path.with_suffix(suffix))
        path.unlink()
        write_json(root / f"{stem}.json", labelme_value(stem, PLAIN[stem], imagePath=f"{stem}{suffix}"))


def test_frames_of_a_video_with_a_step(tmp_path):
    """CVAT 2.60: every second frame was labelled, by the filter step=2; frames keep their numbers."""
    for frame in (0, 2, 4):
        picture(tmp_path / "images" / f"frame_{frame:06}.PNG")
    box = points((4, 5, 20, 18))
    track = TRACK.format(0, "cat", "", SHAPE.format(0, 0, box) + SHAPE.format(4, 1, box))
    meta = "<meta><task><size>3</size><stop_frame>4</stop_frame><frame_filter>step=2</frame_filter></task></meta>"
    write_text(tmp_path / "annotations.xml", f"<annotations><version>1.1</version>{meta}{track}</annotations>")
    records = open_records(tmp_path)
    assert [len(p.objects) for p in records.pictures] == [1, 1, 0]
    assert not faults(records)


def test_packed_files_are_unpacked_up_to_a_limit(tmp_path, monkeypatch):
    picture(tmp_path / "a.tif")
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(b"[" + b" " * 5000 + b"]"))
    monkeypatch.setattr("data.listing.MAX_UNPACKED", 1000)
    with pytest.raises(ValueError, match="MB when it is unpacked"):
        Listing(tmp_path).json("a.geojson.gz")
    (tmp_path / "a.geojson.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        Listing(tmp_path).json("a.geojson.gz")


def test_archives_are_to_be_unpacked(tmp_path):
    write_zip(tmp_path / "export.zip", {"annotations.json": b"{}"})
    with pytest.raises(ValueError, match=r"There are archives \(export.zip\): unpack them"):
        open_records(tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(name, tmp_path):
    """It reads to its masks, and check finds nothing to warn of."""
    chosen = VARIANTS[name]
    chosen.write(tmp_path)
    truth = chosen.truth
    if name == "cityscapes_gt_fine":
        truth = {f"{stem}_leftImg8bit": objects for stem, objects in truth.items()}
    if name == "label_images_ome":
        truth = {f"{stem}.ome": objects for stem, objects in truth.items()}
    records = check(tmp_path, truth, chosen.bar, chosen.names)
    assert not faults(records)
    if chosen.splits:
        splits = {picture.path.stem[0]: picture.split for picture in records.pictures}
        assert splits == {stem: split for split, stems in chosen.splits.items() for stem in stems}
    report = check_records(records)
    found = [f"{fault.what}: {places}" for kind in (ERROR, WARNING) for fault, places in report.faults[kind]]
    assert not found
