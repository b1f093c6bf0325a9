"""Each planted defect is found and named with its file, in every format in which it can occur, and loses nothing else.

A clean set of each format has neither errors nor warnings.
"""

import csv
import io
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import roifile
import tifffile
from own_sets import base64_of, brush, png, rle_text, rows_rle, write_json, write_png, write_text, write_zip
from PIL import Image

import utils
from data.check import Report, check
from data.recognise import _LINKS, _RESULTS, open_records
from data.records import ERROR, REMARK, WARNING

HEIGHT, WIDTH = 60, 80
Labels = dict[str, list[tuple[str, np.ndarray]]]  # {stem: [(class, ring [N, (x, y)])]}


def ring(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """A hexagon in a box, with corners that are no whole numbers."""
    points = [[0, 0.3], [0.4, 0], [1, 0.2], [0.9, 0.7], [0.6, 1], [0.1, 0.8]]
    return np.array(points) * [x2 - x1, y2 - y1] + [x1 + 0.21, y1 + 0.17]


def clean() -> Labels:
    """Three pictures with five objects."""
    return {
        "one": [("cat", ring(4, 5, 30, 28)), ("dog", ring(40, 10, 70, 50))],
        "two": [("dog", ring(10, 10, 50, 45)), ("cat", ring(54, 30, 76, 57))],
        "three": [("cat", ring(20, 8, 60, 52))],
    }


def scene(seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Image.Image:
    """A picture that looks like no other."""
    noise = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size[::-1], Image.BICUBIC)


def save(path: Path, seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(seed, size).save(path)
    return path


def pictures(folder: Path, labels: Labels, suffix: str = ".png") -> None:
    for stem in labels:
        save(folder / f"{stem}{suffix}", sum(map(ord, stem)))


def mask_of(points: np.ndarray) -> np.ndarray:
    return utils.rle_to_mask(utils.polygons_to_rle([points.ravel().tolist()], HEIGHT, WIDTH))


def numbers_of(objects: list) -> np.ndarray:
    values = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number, (_, points) in enumerate(objects, 1):
        values[mask_of(points)] = number
    return values


############################################################
#  Sets of each format
############################################################


def write_coco(root, labels):
    pictures(root / "images", labels)
    value = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    ids = {"cat": 1, "dog": 2}
    for number, (stem, objects) in enumerate(labels.items(), 1):
        value["images"].append({"id": number, "file_name": f"{stem}.png", "height": HEIGHT, "width": WIDTH})
        for name, points in objects:
            if name not in ids:
                ids[name] = len(ids) + 1
                value["categories"].append({"id": ids[name], "name": name})
            (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
            value["annotations"].append({
                "id": len(value["annotations"]) + 1, "image_id": number, "category_id": ids[name], "iscrowd": 0,
                "segmentation": [points.ravel().tolist()], "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float((x2 - x1) * (y2 - y1)) * 0.7,
            })  # fmt: skip
    write_json(root / "labels.json", value)


def write_yolo(root, labels):
    pictures(root / "images", labels)
    names = ["cat", "dog"]
    for stem, objects in labels.items():
        lines = []
        for name, points in objects:
            names += [name] if name not in names else []
            lines.append(f"{names.index(name)} " + " ".join(f"{v:.6f}" for v in (points / [WIDTH, HEIGHT]).ravel()))
        write_text(root / "labels" / f"{stem}.txt", "\n".join(lines))
    write_text(root / "data.yaml", f"train: images\nnames: {json.dumps(names, ensure_ascii=False)}\n")


def write_labelme(root, labels):
    pictures(root, labels)
    for stem, objects in labels.items():
        shapes = [{"label": name, "points": points.tolist(), "shape_type": "polygon", "group_id": None, "flags": {}}
                  for name, points in objects]  # fmt: skip
        value = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{stem}.png", "imageData": None}
        write_json(root / f"{stem}.json", {**value, "imageHeight": HEIGHT, "imageWidth": WIDTH})


def write_isat(root, labels):
    pictures(root, labels)
    for stem, objects in labels.items():
        entries = [{"category": name, "group": i, "segmentation": points.tolist(), "layer": 1.0, "iscrowd": False}
                   for i, (name, points) in enumerate(objects, 1)]  # fmt: skip
        info = {"description": "ISAT", "name": f"{stem}.png", "width": WIDTH, "height": HEIGHT}
        write_json(root / f"{stem}.json", {"info": info, "objects": entries})


def via_regions(objects):
    return [{"shape_attributes": {"name": "polygon", "all_points_x": points[:, 0].tolist(),
                                  "all_points_y": points[:, 1].tolist()},
             "region_attributes": {"class": name}} for name, points in objects]  # fmt: skip


def write_via(root, labels):
    pictures(root, labels)
    value = {f"{stem}.png1": {"filename": f"{stem}.png", "size": 1, "regions": via_regions(objects),
                              "file_attributes": {}} for stem, objects in labels.items()}  # fmt: skip
    write_json(root / "via.json", value)


def write_via_csv(root, labels):
    pictures(root, labels)
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["filename", "file_size", "file_attributes", "region_count", "region_id",
                     "region_shape_attributes", "region_attributes"])  # fmt: skip
    for stem, objects in labels.items():
        for i, region in enumerate(via_regions(objects)):
            cells = [json.dumps(region[key], ensure_ascii=False) for key in ("shape_attributes", "region_attributes")]
            writer.writerow([f"{stem}.png", 1, "{}", len(objects), i, *cells])
    write_text(root / "via.csv", file.getvalue())


def write_via_3(root, labels):
    pictures(root, labels)
    names = sorted({name for objects in labels.values() for name, _ in objects})
    metadata = {}
    for view, objects in enumerate(labels.values(), 1):
        for name, points in objects:
            entry = {
                "vid": str(view),
                "z": [],
                "xy": [7, *points.ravel().tolist()],
                "av": {"1": str(names.index(name))},
            }
            metadata[f"{view}_{len(metadata)}"] = entry
    value = {
        "project": {"pid": "x"}, "config": {}, "metadata": metadata,
        "attribute": {"1": {"aname": "class", "options": {str(i): name for i, name in enumerate(names)}}},
        "file": {str(i): {"fid": str(i), "fname": f"{stem}.png"} for i, stem in enumerate(labels, 1)},
        "view": {str(i): {"fid_list": [str(i)]} for i, _ in enumerate(labels, 1)},
    }  # fmt: skip
    write_json(root / "via.json", value)


def write_cvat(root, labels):
    pictures(root / "images", labels)
    images = []
    for number, (stem, objects) in enumerate(labels.items()):
        shapes = "".join(
            f'<polygon label="{name}" points="{";".join(f"{x:.2f},{y:.2f}" for x, y in points)}"/>'
            for name, points in objects
        )  # fmt: skip
        images.append(f'<image id="{number}" name="{stem}.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>')
    text = "\n".join(["<annotations>", "<version>1.1</version>", *images, "</annotations>"])
    write_text(root / "annotations.xml", text)


def write_cvat_masks(root, labels):
    write_cvat(root, {stem: [] for stem in labels})
    path = root / "annotations.xml"
    text = path.read_text()
    for stem, objects in labels.items():
        shapes = ""
        for name, points in objects:
            rle = rows_rle(mask_of(points))
            shapes += f'<mask label="{name}" rle="{rle}" left="0" top="0" width="{WIDTH}" height="{HEIGHT}"/>'
        start = text.index("></image>", text.index(f'"{stem}.png"'))
        text = f"{text[:start]}>{shapes}</image>{text[start + 9 :]}"
    path.write_text(text)


def write_label_studio(root, labels):
    pictures(root, labels)
    tasks = []
    for stem, objects in labels.items():
        result = [{"type": "polygonlabels", "original_width": WIDTH, "original_height": HEIGHT,
                   "value": {"points": (points / [WIDTH, HEIGHT] * 100).tolist(), "polygonlabels": [name]}}
                  for name, points in objects]  # fmt: skip
        annotations = [{"result": result, "was_cancelled": False}]
        tasks.append({"data": {"image": f"/data/upload/1/0a1b2c3d-{stem}.png"}, "annotations": annotations})
    write_json(root / "project.json", tasks)


def write_label_studio_brush(root, labels):
    pictures(root, labels)
    tasks = []
    for stem, objects in labels.items():
        result = [{"type": "brushlabels", "original_width": WIDTH, "original_height": HEIGHT,
                   "value": {"format": "rle", "rle": brush(mask_of(points)), "brushlabels": [name]}}
                  for name, points in objects]  # fmt: skip
        tasks.append({"data": {"image": f"/data/upload/1/0a1b2c3d-{stem}.png"}, "annotations": [{"result": result}]})
    write_json(root / "project.json", tasks)


def write_supervisely(root, labels):
    pictures(root / "ds" / "img", labels)
    write_json(root / "meta.json", {"classes": [], "tags": []})
    for stem, objects in labels.items():
        entries = [{"classTitle": name, "geometryType": "polygon",
                    "points": {"exterior": points.tolist(), "interior": []}} for name, points in objects]  # fmt: skip
        value = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": entries, "tags": []}
        write_json(root / "ds" / "ann" / f"{stem}.png.json", value)


def write_supervisely_bitmaps(root, labels):
    write_supervisely(root, {stem: [] for stem in labels})
    for stem, objects in labels.items():
        entries = [{"classTitle": name, "geometryType": "bitmap",
                    "bitmap": {"origin": [0, 0], "data": base64_of(zlib.compress(png(mask_of(points))))}}
                   for name, points in objects]  # fmt: skip
        value = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": entries, "tags": []}
        write_json(root / "ds" / "ann" / f"{stem}.png.json", value)


def write_geojson(root, labels):
    pictures(root, labels)
    for stem, objects in labels.items():
        features = [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[*points.tolist(),
                                                                                        points[0].tolist()]]},
                     "properties": {"objectType": "detection", "classification": {"name": name}}}
                    for name, points in objects]  # fmt: skip
        write_json(root / f"{stem}.geojson", {"type": "FeatureCollection", "features": features})


def write_imagej(root, labels):
    pictures(root, labels)
    for stem, objects in labels.items():
        members = {f"{i:04}.roi": roifile.ImagejRoi.frompoints(points.astype(np.float32), name=f"{name}-{i}").tobytes()
                   for i, (name, points) in enumerate(objects, 1)}  # fmt: skip
        write_zip(root / f"{stem}.zip", members)


def write_voc_xml(root, labels):
    pictures(root / "images", labels)
    for stem, objects in labels.items():
        parts = [f"<filename>{stem}.png</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"]
        for name, points in objects:
            pairs = "".join(f"<x{i}>{x:.2f}</x{i}><y{i}>{y:.2f}</y{i}>" for i, (x, y) in enumerate(points + 1, 1))
            parts.append(f"<object><name>{name}</name><polygon>{pairs}</polygon></object>")
        write_text(root / "annotations" / f"{stem}.xml", "\n".join(["<annotation>", *parts, "</annotation>"]))


def write_labelme_xml(root, labels):
    pictures(root / "Images" / "s", labels)
    for stem, objects in labels.items():
        parts = [f"<filename>{stem}.png</filename><imagesize><nrows>{HEIGHT}</nrows><ncols>{WIDTH}</ncols></imagesize>"]
        for i, (name, points) in enumerate(objects):
            pairs = "".join(f"<pt><x>{x:.2f}</x><y>{y:.2f}</y></pt>" for x, y in points)
            parts.append(
                f"<object><name>{name}</name><deleted>0</deleted><id>{i}</id><polygon>{pairs}</polygon></object>"
            )
        write_text(root / "Annotations" / "s" / f"{stem}.xml", "\n".join(["<annotation>", *parts, "</annotation>"]))


def write_datumaro(root, labels):
    pictures(root / "images" / "default", labels)
    names = sorted({name for objects in labels.values() for name, _ in objects})
    items = []
    for stem, objects in labels.items():
        entries = [{"id": i, "type": "polygon", "attributes": {}, "group": i, "label_id": names.index(name),
                    "points": points.ravel().tolist()} for i, (name, points) in enumerate(objects, 1)]  # fmt: skip
        items.append({"id": stem, "annotations": entries, "image": {"path": f"{stem}.png", "size": [HEIGHT, WIDTH]}})
    categories = {"label": {"labels": [{"name": name, "parent": "", "attributes": []} for name in names]}}
    write_json(root / "annotations" / "default.json", {"infos": {}, "categories": categories, "items": items})


def write_sa1b(root, labels):
    pictures(root, labels)
    for number, (stem, objects) in enumerate(labels.items()):
        entries = [{"id": i, "segmentation": utils.rle_to_json(utils.mask_to_rle(mask_of(points)))}
                   for i, (_, points) in enumerate(objects)]  # fmt: skip
        image = {"image_id": number, "file_name": f"{stem}.png", "height": HEIGHT, "width": WIDTH}
        write_json(root / f"{stem}.json", {"image": image, "annotations": entries})


def write_label_images(root, labels):
    pictures(root / "images", labels)
    for stem, objects in labels.items():
        write_png(root / "masks" / f"{stem}.png", numbers_of(objects))


def write_binary_masks(root, labels):
    pictures(root / "images", labels)
    for stem, objects in labels.items():
        for i, (name, points) in enumerate(objects):
            write_png(root / "masks" / stem / f"{name}_{i}.png", mask_of(points).astype(np.uint8) * 255)


def write_bowl(root, labels):
    for stem, objects in labels.items():
        save(root / stem / "images" / f"{stem}.png", sum(map(ord, stem)))
        for i, (_, points) in enumerate(objects):
            write_png(root / stem / "masks" / f"{i:032x}.png", mask_of(points).astype(np.uint8) * 255)


def write_rle_csv(root, labels):
    pictures(root / "images", labels)
    rows = [f"{stem},{rle_text(mask_of(points))}" for stem, objects in labels.items() for _, points in objects]
    write_text(root / "labels.csv", "ImageId,EncodedPixels\n" + "\n".join(rows) + "\n")


def write_voc(root, labels):
    pictures(root / "JPEGImages", labels)
    for stem, objects in labels.items():
        values = numbers_of(objects).astype(np.uint8)
        classes = np.array([0, *({"cat": 8, "dog": 12}.get(name, 15) for name, _ in objects)], np.uint8)[values]
        for folder, array in (("SegmentationObject", values), ("SegmentationClass", classes)):
            write_png(root / folder / f"{stem}.png", array)
    write_text(root / "ImageSets" / "Segmentation" / "default.txt", "\n".join(labels))


def write_cityscapes(root, labels):
    for stem, objects in labels.items():
        save(root / "leftImg8bit" / "train" / "x" / f"{stem}_leftImg8bit.png", sum(map(ord, stem)))
        numbers = [0, *({"cat": 26, "dog": 24}.get(name, 25) * 1000 + i for i, (name, _) in enumerate(objects))]
        values = np.array(numbers, np.uint16)[numbers_of(objects)]
        write_png(root / "gtFine" / "train" / "x" / f"{stem}_gtFine_instanceIds.png", values)


def write_open_images(root, labels):
    pictures(root / "images", labels)
    rows = []
    for stem, objects in labels.items():
        for i, (name, points) in enumerate(objects):
            write_png(root / "masks" / f"{stem}_{i}.png", mask_of(points).astype(np.uint8) * 255)
            rows.append(f"{stem}_{i}.png,{stem},/m/{name}")
    text = "MaskPath,ImageID,LabelName\n" + "\n".join(rows) + "\n"
    write_text(root / "annotations-object-segmentation.csv", text)


class Format(NamedTuple):
    write: Callable
    label: str  # the label file of a picture, or of all; {} is the stem
    picture: str
    has_classes: bool = True
    is_text: bool = True  # its label files are texts
    says_size: bool = True

    @property
    def is_shared(self) -> bool:
        """Whether one label file has all pictures."""
        return "{}" not in self.label

    @property
    def has_outlines(self) -> bool:
        return self in [FORMATS[name] for name in OUTLINES]


FORMATS = {
    "coco": Format(write_coco, "labels.json", "images/{}.png"),
    "yolo": Format(write_yolo, "labels/{}.txt", "images/{}.png", says_size=False),
    "labelme": Format(write_labelme, "{}.json", "{}.png"),
    "isat": Format(write_isat, "{}.json", "{}.png"),
    "via": Format(write_via, "via.json", "{}.png", says_size=False),
    "via csv": Format(write_via_csv, "via.csv", "{}.png", says_size=False),
    "via 3": Format(write_via_3, "via.json", "{}.png", says_size=False),
    "cvat": Format(write_cvat, "annotations.xml", "images/{}.png"),
    "cvat masks": Format(write_cvat_masks, "annotations.xml", "images/{}.png"),
    "label studio": Format(write_label_studio, "project.json", "{}.png"),
    "label studio brush": Format(write_label_studio_brush, "project.json", "{}.png"),
    "supervisely": Format(write_supervisely, "ds/ann/{}.png.json", "ds/img/{}.png"),
    "supervisely bitmaps": Format(write_supervisely_bitmaps, "ds/ann/{}.png.json", "ds/img/{}.png"),
    "geojson": Format(write_geojson, "{}.geojson", "{}.png", says_size=False),
    "imagej": Format(write_imagej, "{}.zip", "{}.png", is_text=False, says_size=False),
    "voc xml": Format(write_voc_xml, "annotations/{}.xml", "images/{}.png"),
    "labelme xml": Format(write_labelme_xml, "Annotations/s/{}.xml", "Images/s/{}.png"),
    "datumaro": Format(write_datumaro, "annotations/default.json", "images/default/{}.png"),
    "sa1b": Format(write_sa1b, "{}.json", "{}.png", has_classes=False),
    "label images": Format(write_label_images, "masks/{}.png", "images/{}.png", has_classes=False, is_text=False),
    "binary masks": Format(write_binary_masks, "masks/{}/cat_0.png", "images/{}.png", is_text=False),
    "bowl": Format(write_bowl, "{}/masks/" + "0" * 32 + ".png", "{0}/images/{0}.png", False, False),
    "rle csv": Format(write_rle_csv, "labels.csv", "images/{}.png", has_classes=False, says_size=False),
    "voc": Format(write_voc, "SegmentationObject/{}.png", "JPEGImages/{}.png", is_text=False),
    "cityscapes": Format(write_cityscapes, "gtFine/train/x/{}_gtFine_instanceIds.png",
                         "leftImg8bit/train/x/{}_leftImg8bit.png", is_text=False),
    "open images": Format(write_open_images, "annotations-object-segmentation.csv", "images/{}.png",
                          says_size=False),
}  # fmt: skip
OUTLINES = ("coco", "yolo", "labelme", "isat", "via", "via csv", "via 3", "cvat", "label studio", "supervisely",
            "geojson", "imagej", "voc xml", "labelme xml", "datumaro")  # fmt: skip
MASKS = [name for name in FORMATS if name not in OUTLINES]
# All objects of a picture are in one image of numbers: the later one hides the earlier, so they cannot be there twice.
NUMBERS = ("label images", "voc", "cityscapes")
# A picture without a label shows no object, by the format's own rule; in VOC, a list says which pictures are labelled.
EMPTY_WITHOUT = ("yolo", "binary masks", "bowl", "voc")


def report_of(root: Path) -> Report:
    return check(open_records(root))


def text_of(root: Path) -> str:
    """The report, or the error that ends it."""
    try:
        return report_of(root).text()
    except ValueError as error:
        return str(error)


def assert_found(report: Report, place: str, *words: str, severities: tuple = (ERROR, WARNING)) -> None:
    """Some fault names the place, and says one of the words."""
    found = [(fault.what, places) for severity in severities for fault, places in report.faults[severity]]
    hits = [what for what, places in found if any(place in text for text in places)]
    assert any(word in what for what in hits for word in words), (place, words, found)
    assert place in report.text()


def count(report: Report) -> int:
    return len(report.table.classes)


@pytest.mark.parametrize("name", FORMATS)
def test_a_clean_set(name, tmp_path):
    FORMATS[name].write(tmp_path, clean())
    report = report_of(tmp_path)
    assert not report.faults[ERROR]
    assert not report.faults[WARNING]
    assert count(report) == 5
    if FORMATS[name].has_classes:
        assert len(report.table.class_names) == 2


@pytest.mark.parametrize("name", FORMATS)
def test_faults_of_pictures(name, tmp_path):
    """One picture is missing, one is cut off, one is a web page, one has no label, and three are as they should be."""
    chosen, faulty = FORMATS[name], clean()["one"]
    chosen.write(tmp_path, {**clean(), "gone": faulty, "half": faulty, "page": faulty})
    gone, half, page, bare = (tmp_path / chosen.picture.format(stem) for stem in ("gone", "half", "page", "bare"))
    gone.unlink()
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    page.write_bytes(b"<html>not found</html>")
    save(bare, 99)
    report = report_of(tmp_path)
    assert_found(report, "gone", "not there", "belong to no picture", severities=(ERROR,))
    assert_found(report, half.name, "cannot be read", severities=(ERROR,))
    assert_found(report, page.name, "cannot be read", severities=(ERROR,))
    if name in EMPTY_WITHOUT:
        assert bare.name in report.text()
    else:
        assert_found(report, bare.name, "no label", severities=(WARNING,))
    assert count(report) == 5


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].says_size])
def test_sizes_of_pictures(name, tmp_path):
    """One picture has another shape, and one was made smaller."""
    chosen, faulty = FORMATS[name], clean()["one"]
    chosen.write(tmp_path, {**clean(), "square": faulty, "small": faulty})
    square, small = (tmp_path / chosen.picture.format(stem) for stem in ("square", "small"))
    save(square, 1, (WIDTH, WIDTH))
    save(small, 2, (HEIGHT // 2, WIDTH // 2))
    report = report_of(tmp_path)
    assert_found(report, "square", "another size", "of another size", severities=(ERROR,))
    assert_found(report, "small", "size")
    assert count(report) in (5, 7)  # the small one is left out, or its labels are scaled


@pytest.mark.parametrize("name", [name for name in OUTLINES if not FORMATS[name].says_size and name != "yolo"])
def test_a_smaller_picture_whose_size_no_label_says(name, tmp_path):
    chosen = FORMATS[name]
    chosen.write(tmp_path, clean())
    save(tmp_path / chosen.picture.format("one"), 1, (HEIGHT // 2, WIDTH // 2))
    assert_found(report_of(tmp_path), "one", "outside")


@pytest.mark.parametrize("name", [name for name in FORMATS if not FORMATS[name].is_shared])
def test_faults_of_label_files(name, tmp_path):
    """One label file is cut off, one is empty, one belongs to no picture, and three are as they should be."""
    chosen, faulty = FORMATS[name], clean()["three"]
    chosen.write(tmp_path, {**clean(), "half": faulty, "empty": faulty})
    half, empty, gone = (tmp_path / chosen.label.format(stem) for stem in ("half", "empty", "gone"))
    gone.parent.mkdir(parents=True, exist_ok=True)
    gone.write_bytes(half.read_bytes().replace(b"half.png", b"gone.png") if chosen.is_text else half.read_bytes())
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    empty.write_bytes(b"")
    report = report_of(tmp_path)
    assert_found(report, "gone", "not there", "belong to no picture", severities=(ERROR,))
    if name == "yolo":  # an empty file is a picture without objects, and the half of a line may be a line
        assert count(report) in (5, 6)
        return
    assert_found(report, half.relative_to(tmp_path).as_posix(), "cannot be read", severities=(ERROR,))
    assert_found(report, empty.relative_to(tmp_path).as_posix(), "cannot be read", severities=(ERROR,))
    assert count(report) == 5


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].is_shared])
def test_the_only_label_file_is_cut_off(name, tmp_path):
    chosen = FORMATS[name]
    chosen.write(tmp_path, clean())
    path = tmp_path / chosen.label
    text = path.read_text()
    path.write_text(text[: text.rindex("two") + 9])
    assert path.name in text_of(tmp_path)


def with_class(name: str) -> Labels:
    labels = clean()
    labels["one"][0] = (name, labels["one"][0][1])
    return labels


@pytest.mark.parametrize("name", [n for n in FORMATS if FORMATS[n].is_text and FORMATS[n].has_classes])
def test_a_label_file_of_another_encoding(name, tmp_path):
    chosen = FORMATS[name]
    chosen.write(tmp_path, with_class("Größe"))
    path = tmp_path / (chosen.label.format("one") if name != "yolo" else "data.yaml")
    path.write_bytes(path.read_bytes().decode().encode("cp1252"))
    report = report_of(tmp_path)
    assert_found(report, path.name, "not UTF-8", severities=(WARNING,))
    assert count(report) == 5
    assert any("Größe" in n for n in report.table.class_names), report.table.class_names


@pytest.mark.parametrize("byte_order", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", [n for n in FORMATS if FORMATS[n].is_text])
def test_label_files_in_utf_16_with_a_mark(name, byte_order, tmp_path):
    FORMATS[name].write(tmp_path, with_class("Größe"))
    expected = report_of(tmp_path)
    for path in tmp_path.rglob("*.*"):
        if path.suffix in (".json", ".geojson", ".xml", ".csv", ".txt", ".yaml"):
            path.write_bytes(f"\ufeff{path.read_text(encoding='utf-8')}".encode(byte_order))
    report = report_of(tmp_path)
    assert (count(report), report.table.class_names) == (count(expected), expected.table.class_names)
    assert not report.faults[WARNING]
    assert not report.faults[ERROR]


@pytest.mark.parametrize("name", [n for n in FORMATS if FORMATS[n].label.endswith(".xml")])
def test_an_xml_file_is_read_in_the_encoding_that_it_declares(name, tmp_path):
    FORMATS[name].write(tmp_path, with_class("клетка"))
    for path in tmp_path.rglob("*.xml"):
        text = re.sub(r"^<\?xml.*?\?>", "", path.read_text(encoding="utf-8"))
        path.write_bytes(f'<?xml version="1.0" encoding="windows-1251"?>{text}'.encode("cp1251"))
    report = report_of(tmp_path)
    assert "клетка" in report.table.class_names
    assert count(report) == 5
    assert not report.faults[WARNING]


@pytest.mark.parametrize("name", [n for n in FORMATS if FORMATS[n].label.endswith(".csv")])
@pytest.mark.parametrize("separator", ";\t")
def test_tables_with_semicolons_and_tabs(name, separator, tmp_path):
    FORMATS[name].write(tmp_path, clean())
    path = tmp_path / FORMATS[name].label
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    report = report_of(tmp_path)
    assert count(report) == 5
    assert not report.faults[ERROR]


@pytest.mark.parametrize("name", [n for n in FORMATS if FORMATS[n].has_classes and n not in ("voc", "cityscapes")])
def test_class_names_that_differ_by_case_or_spaces(name, tmp_path):
    FORMATS[name].write(tmp_path, with_class("Cat"))
    report = report_of(tmp_path)
    assert_found(report, "Cat", "case or spaces", severities=(WARNING,))
    assert count(report) == 5


FAULTY_OUTLINES = {  # outline, words for it, severity, whether the object is kept
    "outside": (ring(300, 5, 320, 25), ("wholly outside", "outside of the image", "beyond"), ERROR, False),
    "beyond": (ring(70, 5, 100, 25), ("partly outside",), WARNING, True),
    "bow": (np.array([[4.3, 4.2], [30.2, 30.4], [30.4, 4.3], [4.2, 30.3]]), ("cross themselves",), WARNING, True),
    "zero": (np.array([[5.1, 5.1], [5.3, 5.1], [5.3, 5.3]]), ("zero pixels", "without a pixel"), ERROR, False),
    "line": (np.array([[5.1, 5.1], [9.3, 9.1]]), ("cannot be used", "good polygon", "boxes"), ERROR, False),
    "twin": (ring(20.3, 8.2, 60.3, 52.2), ("twice",), WARNING, False),
}


@pytest.mark.parametrize("name", OUTLINES)
def test_faulty_outlines(name, tmp_path):
    """Each picture has one faulty outline beside a good one."""
    labels = clean()
    for stem, (outline, *_) in FAULTY_OUTLINES.items():
        labels[stem] = [*clean()["three"], ("cat", outline)]
    FORMATS[name].write(tmp_path, labels)
    report = report_of(tmp_path)
    for stem, (_, words, severity, _) in FAULTY_OUTLINES.items():
        assert_found(report, f"{stem}.", *words, severities=(severity,))
    assert count(report) == 5 + len(FAULTY_OUTLINES) + sum(is_kept for *_, is_kept in FAULTY_OUTLINES.values())


@pytest.mark.parametrize("name", [name for name in MASKS if name not in NUMBERS])
def test_faulty_masks(name, tmp_path):
    """A mask is there twice, and one has no pixels."""
    labels = clean()
    labels["three"].append(labels["three"][0])
    labels["two"].append(("cat", np.array([[5.1, 5.1], [5.3, 5.1], [5.3, 5.3]])))
    FORMATS[name].write(tmp_path, labels)
    report = report_of(tmp_path)
    assert_found(report, "three", "twice", severities=(WARNING,))
    assert_found(report, "two", "zero pixels", "all black", severities=(ERROR,))
    assert count(report) == 5


############################################################
#  Defects of single formats
############################################################


def edit(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "place"),
    [
        ("coco", "labels.json", '"category_id": 1', '"category_id": 99', "id 1"),
        ("coco", "labels.json", '"image_id": 1', '"image_id": 99', "id 1"),
        ("yolo", "labels/one.txt", "0 0.", "17 0.", "labels/one.txt: line 1"),
        ("datumaro", "annotations/default.json", '"label_id": 0', '"label_id": 9', "(one.png): annotation 1"),
        ("yolo", "labels/one.txt", "0 0.", "0 nan 0.", "labels/one.txt: line 1"),
    ],
)
def test_a_number_out_of_range_costs_one_object(name, file, old, new, place, tmp_path):
    FORMATS[name].write(tmp_path, clean())
    edit(tmp_path / file, (old, new))
    report = report_of(tmp_path)
    assert_found(report, place, "out of range", "cannot be used", severities=(ERROR,))
    assert count(report) == 4


BOXES = {
    "coco": ("labels.json", None),
    "sa1b": ("{}.json", None),
    "yolo": ("labels/{}.txt", "0 0.5 0.5 0.2 0.3\n1 0.2 0.2 0.1 0.1"),
    "cvat": ("annotations.xml", None),
    "voc xml": ("annotations/{}.xml", None),
    "supervisely": ("ds/ann/{}.png.json", None),
    "label studio": ("project.json", None),
    "datumaro": ("annotations/default.json", None),
    "labelme xml": ("Annotations/s/{}.xml", None),
}


def boxes_only(text: str, name: str) -> str:
    """The text of a label file with boxes in the place of outlines."""
    import re

    if name == "coco":
        value = json.loads(text)
        for entry in value["annotations"]:
            del entry["segmentation"]
        return json.dumps(value)
    if name == "sa1b":
        value = json.loads(text)
        value["annotations"] = [{"id": entry["id"], "bbox": [1, 2, 9, 9]} for entry in value["annotations"]]
        return json.dumps(value)
    if name == "cvat":
        return re.sub(r'<polygon label="(\w+)" points="[^"]*"/>',
                      r'<box label="\1" xtl="1" ytl="2" xbr="9" ybr="9"/>', text)  # fmt: skip
    if name == "voc xml":
        return re.sub(r"<polygon>.*?</polygon>", "<bndbox><xmin>1</xmin></bndbox>", text)
    if name == "labelme xml":
        return re.sub(r"<polygon>", "<type>bounding_box</type><polygon>", text)
    pairs = {"supervisely": ('"polygon"', '"rectangle"'), "label studio": ("polygonlabels", "rectanglelabels"),
             "datumaro": ('"polygon"', '"bbox"')}  # fmt: skip
    return text.replace(*pairs[name])


@pytest.mark.parametrize("name", BOXES)
def test_boxes_are_no_masks(name, tmp_path):
    FORMATS[name].write(tmp_path, clean())
    file, text = BOXES[name]
    for path in {tmp_path / file.format(stem) for stem in clean()}:
        path.write_text(text or boxes_only(path.read_text(), name))
    with pytest.raises(ValueError, match="boxes"):
        report_of(tmp_path)


def test_rectangles_throughout_may_be_boxes(tmp_path):
    labels = {stem: [("cat", np.array([[x, 4.3], [x + 9, 4.3], [x + 9, 20.6], [x, 20.6]])) for x in (3, 23, 43, 63)]
              for stem in clean()}  # fmt: skip
    write_labelme(tmp_path, labels)
    report = report_of(tmp_path)
    assert "all 12 outlines are rectangles" in report.text()
    assert not report.has_errors


def test_pixels_instead_of_fractions(tmp_path):
    write_yolo(tmp_path, clean())
    points = ring(4, 5, 30, 28)
    write_text(tmp_path / "labels" / "one.txt", "0 " + " ".join(f"{value:.1f}" for value in points.ravel()))
    report = report_of(tmp_path)
    assert_found(report, "labels/one.txt", "pixels instead of fractions", severities=(WARNING,))
    assert count(report) == 4


def test_keypoints_are_no_outlines(tmp_path):
    write_yolo(tmp_path, clean())
    edit(tmp_path / "data.yaml", ("names:", "kpt_shape: [4, 3]\nnames:"))
    with pytest.raises(ValueError, match="keypoints"):
        report_of(tmp_path)


@pytest.mark.parametrize("name", ["label images", "bowl"])
def test_foreground_masks(name, tmp_path):
    write_label_images(tmp_path, clean())
    for path in (tmp_path / "masks").iterdir():
        values = (np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255
        path.unlink()
        folder = tmp_path / "masks" / path.stem if name == "bowl" else tmp_path / "masks"
        write_png(folder / path.name, values)
    with pytest.raises(ValueError, match="5 connected parts"):
        report_of(tmp_path)


############################################################
#  Pictures of sets with splits, and of two formats
############################################################


def write_splits(name: str, root: Path, same: bool = False) -> tuple[str, str]:
    """Two splits of a format, each a set of its own in a folder; same: a picture of val shows one of train."""
    chosen = FORMATS[name]
    labels = clean()
    chosen.write(root / "train", {stem: labels[stem] for stem in ("one", "two")})
    chosen.write(root / "val", {"three": labels["three"], "four": labels["one"]})
    paths = [root / split / chosen.picture.format(stem) for split, stem in (("train", "one"), ("val", "four"))]
    if same:
        with Image.open(paths[0]) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).point(lambda v: min(255, v + 9)).save(paths[1])
    return tuple(path.relative_to(root).as_posix() for path in paths)


SPLITTABLE = [name for name in FORMATS if name not in ("yolo", "cityscapes", "supervisely", "supervisely bitmaps")]


@pytest.mark.parametrize("name", SPLITTABLE)
def test_a_picture_in_two_splits(name, tmp_path):
    first, second = write_splits(name, tmp_path, same=True)
    report = report_of(tmp_path)
    assert report.leaks == [(first, second)], report.faults
    assert_found(report, second, "will be too good", severities=(WARNING,))
    assert set(report.splits) == {"train", "val"}
    assert count(report) == 7


@pytest.mark.parametrize("name", SPLITTABLE)
def test_equal_names_in_two_splits(name, tmp_path):
    """1.png of train and 1.png of val are two pictures; if one is missing, the other does not stand in for it."""
    chosen, labels = FORMATS[name], clean()
    chosen.write(tmp_path / "train", labels)
    chosen.write(tmp_path / "val", {"one": labels["two"], "four": labels["three"]})
    save(tmp_path / "val" / chosen.picture.format("one"), 77)
    report = report_of(tmp_path)
    assert not report.faults[ERROR]
    assert not report.faults[WARNING]
    assert count(report) == 8
    (tmp_path / "val" / chosen.picture.format("one")).unlink()
    report = report_of(tmp_path)
    assert_found(report, "val/", "not there", "without a file", "belong to no picture", severities=(ERROR,))
    assert count(report) == 6


def test_one_picture_twice(tmp_path):
    for name in ("labelme", "label images", "coco"):
        root = tmp_path / name
        labels = clean()
        FORMATS[name].write(root, {**labels, "again": labels["one"]})
        first, second = (root / FORMATS[name].picture.format(stem) for stem in ("one", "again"))
        second.write_bytes(first.read_bytes())
        assert_found(report_of(root), second.name, "equal files", severities=(WARNING,))


def test_labels_of_a_zarr_folder_are_refused_with_a_way_out(tmp_path):
    (tmp_path / "a.ome.zarr").mkdir()
    write_json(tmp_path / "labels.json", {
        "images": [{"id": 1, "file_name": "a.ome.zarr", "height": 40, "width": 48}], "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    })  # fmt: skip
    with pytest.raises(ValueError, match=r"a\.ome\.zarr.*write it as a TIFF in tiles first"):
        open_records(tmp_path)


@pytest.mark.parametrize("name", ["coco", "via", "cvat", "label studio", "datumaro"])
def test_one_picture_with_two_entries(name, tmp_path):
    FORMATS[name].write(tmp_path, {**clean(), "other": [("cat", ring(2, 30, 12, 50))]})
    path = tmp_path / FORMATS[name].label
    path.write_text(path.read_text().replace('other.png"', 'one.png"'))
    report = report_of(tmp_path)
    assert_found(report, "one.png", "two entries", severities=(WARNING,))
    assert count(report) == 6


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("voc", "cityscapes", "bowl")])
def test_names_that_differ_by_case(name, tmp_path):
    chosen = FORMATS[name]
    chosen.write(tmp_path, clean())
    path = tmp_path / chosen.picture.format("one")
    path.rename(path.with_name("One.PNG"))
    report = report_of(tmp_path)
    assert_found(report, "One.PNG", "another name", severities=(WARNING,))
    assert count(report) == 5


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("coco", *MASKS)])
def test_two_formats(name, tmp_path):
    """The pictures are labelled in this format, and in COCO's."""
    chosen = FORMATS[name]
    write_coco(tmp_path / "x", clean())
    value = json.loads((tmp_path / "x" / "labels.json").read_text())
    chosen.write(tmp_path / "y", clean())
    for path in (tmp_path / "x" / "images").iterdir():
        path.unlink()
    for entry in value["images"]:
        entry["file_name"] = chosen.picture.format(Path(entry["file_name"]).stem)
    write_json(tmp_path / "y" / "coco" / "labels.json", value)
    (tmp_path / "x" / "labels.json").unlink()
    with pytest.raises(ValueError, match=r"two formats: .*COCO json"):
        report_of(tmp_path)


@pytest.mark.parametrize("name", OUTLINES)
def test_x_and_y_that_are_exchanged(name, tmp_path):
    """Nothing lies inside of all pictures as it is, and all does with x and y exchanged."""
    labels = {stem: [(n, points[:, ::-1]) for n, points in objects] for stem, objects in clean().items()}
    FORMATS[name].write(tmp_path, labels)
    assert "x and y" in text_of(tmp_path)


@pytest.mark.parametrize("name", ["isat", "voc xml"])
def test_outlines_elsewhere_than_their_boxes(name, tmp_path):
    """x and y are exchanged, and all lies inside: only the boxes in the file tell."""
    labels = {stem: [(n, points / 2) for n, points in objects] for stem, objects in clean().items()}
    FORMATS[name].write(tmp_path, labels)
    for stem, objects in labels.items():
        path = tmp_path / FORMATS[name].label.format(stem)
        text = path.read_text()
        for _, points in objects:
            (x1, y1), (x2, y2) = points.min(axis=0)[::-1], points.max(axis=0)[::-1]
            if name == "isat":
                text = text.replace('"layer": 1.0', f'"layer": 1, "bbox": [{x1}, {y1}, {x2}, {y2}]', 1)
            else:
                sides = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True)
                box = "".join(f"<{side}>{value:.1f}</{side}>" for side, value in sides)
                text = text.replace("</name><polygon>", f"</name><bndbox>{box}</bndbox><polygon>", 1)
        path.write_text(text)
    report = report_of(tmp_path)
    assert_found(report, "(with x and y exchanged it fits)", "elsewhere than the boxes", severities=(WARNING,))


def test_stacks_of_label_images_are_refused(tmp_path):
    """3D label images, of few slices or many, and a batch of one."""
    write_label_images(tmp_path, clean())
    values = numbers_of(clean()["one"])
    for stem, count_, shape in (("one", 3, None), ("two", 12, None), ("three", 2, "ZYX")):
        (tmp_path / "masks" / f"{stem}.png").unlink()
        stack = np.stack([values * (i + 1) for i in range(count_)])
        metadata = {"imagej": True, "metadata": {"axes": shape}} if shape else {}
        tifffile.imwrite(tmp_path / "masks" / f"{stem}.tif", stack, photometric="minisblack", **metadata)
    write_png(tmp_path / "masks" / "four.png", values)
    save(tmp_path / "images" / "four.png", 4)
    report = report_of(tmp_path)
    for stem in ("one", "two", "three"):
        assert_found(report, f"masks/{stem}.tif", "stacks of several planes", severities=(ERROR,))
    assert count(report) == 2


def test_pictures_of_voc_that_no_list_has_are_no_fault(tmp_path):
    write_voc(tmp_path, clean())
    save(tmp_path / "JPEGImages" / "boxes_only.png", 9)
    report = report_of(tmp_path)
    assert not report.faults[WARNING]
    assert "not in ImageSets/Segmentation" in report.text()


def test_two_categories_of_one_name_are_one_class(tmp_path):
    write_coco(tmp_path, clean())
    (path,) = tmp_path.rglob("*.json")
    value = json.loads(path.read_text())
    value["categories"][1]["name"] = "cat"
    write_json(path, value)
    records = open_records(tmp_path)
    faults = check(records).faults[WARNING]
    assert [(fault.what, fault.done, len(places)) for fault, places in faults] == [
        ("categories have the name of another", "taken as one class", 1)
    ]
    assert {parsed.name for picture in records.pictures for parsed in picture.objects} == {"cat"}


def test_links_that_lead_out_are_named_and_not_followed(tmp_path):
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    write_coco(root, clean())
    save(elsewhere / "more.png", 9)
    (root / "more").symlink_to(elsewhere)
    (root / "images" / "inside.png").symlink_to(root / "images" / "one.png")
    records = open_records(root)
    assert records.findings.of(WARNING)[_LINKS] == ["more"]
    (root / "images").rename(elsewhere / "images")
    (root / "images").symlink_to(elsewhere / "images")
    with pytest.raises((ValueError, OSError), match="links are not followed that lead out of the folder: images, more"):
        open_records(root)


def test_folders_of_results_inside_of_a_data_set_are_named(tmp_path):
    """Logs may be a class, whose masks have a folder of this name."""
    save(tmp_path / "images" / "one.png", 1)
    for name in ("logs", "trees"):
        for number in (1, 2):
            write_png(tmp_path / "masks" / "one" / name / f"{number}.png", mask_of(clean()["one"][number - 1][1]))
    write_png(tmp_path / "output" / "x.png", np.ones((9, 9), bool))
    records = open_records(tmp_path)
    assert records.findings.of(REMARK)[_RESULTS] == ["masks/one/logs"]
    assert [parsed.name for parsed in records.pictures[0].objects] == ["trees", "trees"]


def test_pictures_that_a_label_may_not_mean_are_named(tmp_path):
    """exp.2.geojson may be a second file for exp.png, or that of a picture which is missing."""
    ring = [[4, 4], [30, 4], [30, 30], [4, 4]]
    value = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    for folder, picture, label in (("a", "exp", "exp.2.geojson"), ("b", "slide", "slide.ome.geojson")):
        save(tmp_path / folder / f"{picture}.png", ord(folder))
        write_json(tmp_path / folder / label, [value])
    assert names_noted(tmp_path) == ["a/exp.2.geojson is a/exp.png"]
    shape = {"label": "cat", "shape_type": "polygon", "points": ring[:3]}
    save(tmp_path / "labelme" / "one.png", 1)
    write_json(tmp_path / "labelme" / "one.json", {"shapes": [shape], "imagePath": "..\\old.png", "version": "5.4.1"})
    assert names_noted(tmp_path / "labelme") == ["..\\old.png is one.png"]
    save(tmp_path / "rois" / "img.tif", 1)
    roi = roifile.ImagejRoi.frompoints(np.array(ring[:3], np.float32)).tobytes()
    write_zip(tmp_path / "rois" / "img_2.zip", {"0001.roi": roi})
    assert names_noted(tmp_path / "rois") == ["img_2.zip is img.tif"]


def names_noted(root: Path) -> list[str]:
    places = open_records(root).findings.of(REMARK).items()
    return [name for fault, names in places if "under another name" in fault.what for name in names]


############################################################
#  Backgrounds and specks
############################################################


def warnings_of(root: Path) -> dict[str, int]:
    faults = check(open_records(root)).faults[WARNING]
    return {fault.what.partition(",")[0]: len(places) for fault, places in faults}


BACKGROUND = "objects reach all four edges and cover more than half of their picture"


@pytest.mark.parametrize(("inverted", "share"), [(1, 1), (3, 3), (0, 0)])
def test_a_background_that_is_an_object_is_named(inverted, share, tmp_path):
    """A number for background that is not 0, or masks in which objects are black."""
    for number, (stem, objects) in enumerate(clean().items()):
        save(tmp_path / "images" / f"{stem}.png", number)
        values = numbers_of(objects)
        values[values == 0] = 9 if number < inverted else 0
        write_png(tmp_path / "masks" / f"{stem}.png", values)
    assert warnings_of(tmp_path) == ({BACKGROUND: share} if share else {})


def test_one_close_up_among_many_pictures_is_no_background(tmp_path):
    for number in range(20):
        save(tmp_path / "images" / f"{number}.png", number)
        values = numbers_of(clean()["one"])
        values[values == 0] = 9 if number == 7 else 0
        write_png(tmp_path / "masks" / f"{number}.png", values)
    assert warnings_of(tmp_path) == {}


def test_specks_of_smoothed_label_images_are_named(tmp_path):
    save(tmp_path / "images" / "one.png", 1)
    values = numbers_of(clean()["one"])
    values[0, ::4] = np.arange(100, 120)
    write_png(tmp_path / "masks" / "one.png", values)
    assert warnings_of(tmp_path) == {"objects have one or two pixels": 20}


############################################################
#  PNG files whose header lies
############################################################


def huge_png(side: int = 40_000) -> bytes:
    """A PNG of a few bytes whose header says that it has billions of pixels."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    start = file.getvalue().index(b"IHDR")
    return file.getvalue()[:start] + header + zlib.crc32(header).to_bytes(4, "big") + file.getvalue()[start + 21 :]


def in_labelme(root: Path, data: bytes) -> None:
    shape = {"label": "cat", "shape_type": "mask", "points": [[0, 0], [9, 9]], "mask": base64_of(data)}
    write_json(root / "one.json", {"shapes": [shape], "imagePath": "one.png", "imageData": None, "version": "5.4.1"})
    save(root / "one.png", 1)


def in_supervisely(root: Path, data: bytes) -> None:
    bitmap = {"origin": [0, 0], "data": base64_of(zlib.compress(data))}
    value = {"size": {"height": HEIGHT, "width": WIDTH}, "tags": []}
    value["objects"] = [{"classTitle": "cat", "geometryType": "bitmap", "bitmap": bitmap}]
    write_json(root / "set" / "ann" / "one.png.json", value)
    write_json(root / "meta.json", {"classes": [], "tags": []})
    save(root / "set" / "img" / "one.png", 1)


def in_voc(root: Path, data: bytes) -> None:
    save(root / "JPEGImages" / "one.png", 1)
    (root / "SegmentationObject").mkdir()
    (root / "SegmentationObject" / "one.png").write_bytes(data)


@pytest.mark.parametrize("data", [huge_png(), huge_png(12_000), png(np.ones((9, 9)))[:-30], b"GIF89a"])
@pytest.mark.parametrize("write", [in_labelme, in_supervisely, in_voc])
def test_a_png_in_labels_that_lies_costs_its_file_or_object(write, data, tmp_path):
    write(tmp_path, data)
    if write is in_voc:
        write_png(tmp_path / "SegmentationObject" / "two.png", numbers_of(clean()["two"]).astype(np.uint8))
        save(tmp_path / "JPEGImages" / "two.png", 2)
    records = open_records(tmp_path)
    errors = check(records).faults[ERROR]
    assert any("one" in place for _, places in errors for place in places), "it is named"
    assert len(records.pictures) >= 1
