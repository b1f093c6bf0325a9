"""Small sets of labelled pictures in the formats of data/formats/, written as each format's own tools write them.

All hold the same three pictures of 48 x 40 pixels: squares that overlap, one with a hole, one of two parts, and a
picture without objects. Their masks are exact in pixels; outlines go along the edges of pixels.
"""

import base64
import io
import itertools
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import roifile
from PIL import Image

import utils
from data.recognise import Records, open_records

HEIGHT, WIDTH = 40, 48


class Truth(NamedTuple):
    """An object as boxes (x1, y1, x2, y2) of its parts, and of its hole."""

    name: str
    parts: tuple
    hole: tuple | None = None

    def mask(self) -> np.ndarray:
        mask = np.zeros((HEIGHT, WIDTH), bool)
        for x1, y1, x2, y2 in self.parts:
            mask[y1:y2, x1:x2] = True
        if self.hole:
            x1, y1, x2, y2 = self.hole
            mask[y1:y2, x1:x2] = False
        return mask


# {stem: objects}. The first two objects of b overlap: label images cannot hold that.
PLAIN = {
    "a": [Truth("cat", ((4, 5, 20, 18),)), Truth("dog", ((24, 8, 40, 30),))],
    "b": [Truth("dog", ((6, 6, 24, 24),)), Truth("cat", ((16, 14, 34, 33),)), Truth("dog", ((38, 2, 46, 12),))],
    "c": [],
}
FLAT = {**PLAIN, "b": [Truth("dog", ((6, 6, 24, 24),)), Truth("cat", ((24, 14, 34, 33),))]}  # touching objects
HOLED = {
    **PLAIN,
    "a": [Truth("cat", ((4, 4, 28, 30),), (10, 10, 20, 20)), Truth("dog", ((32, 3, 40, 12), (32, 20, 44, 35)))],
}


def corners(box: tuple) -> list[list[float]]:
    """The four corners of a box, as [x, y]."""
    x1, y1, x2, y2 = box
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def flat(box: tuple, shift: float = 0.0) -> list[float]:
    """The corners as one list, moved by a part of a pixel that changes no mask."""
    return [value + shift for corner in corners(box) for value in corner]


def picture(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH), **options) -> Path:
    """Writes a picture of noise, another one for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(map(ord, path.stem)))
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path, **options)
    return path


def write_json(path: Path, value, encoding: str = "utf-8") -> Path:
    """Writes a JSON file, its letters unescaped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(value, ensure_ascii=False).encode(encoding))
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes a text file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_png(path: Path, values: np.ndarray) -> Path:
    """Writes an array as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def numbers(objects: list[Truth], dtype=np.uint16) -> np.ndarray:
    """The label image of objects: 1, 2, ..., a later object above an earlier one."""
    values = np.zeros((HEIGHT, WIDTH), dtype)
    for number, truth in enumerate(objects, 1):
        values[truth.mask()] = number
    return values


def check(root: Path, truth: dict[str, list[Truth]], bar: float = 1.0, names: bool = True, **options) -> Records:
    """Reads a set and compares it. Each object must have one of the same class and an IoU of the bar at least."""
    records = open_records(root, **options)
    pictures = {p.path.stem if p.path else Path(p.label).stem: p for p in records.pictures if p.is_labelled}
    expected = {stem for stem in truth if truth[stem] or stem in pictures}
    assert set(pictures) == expected
    for stem, found in pictures.items():
        assert (found.height, found.width) == (HEIGHT, WIDTH)
        left = [(parsed.name, utils.rle_to_mask(parsed.mask(HEIGHT, WIDTH))) for parsed in found.objects]
        assert len(left) == len(truth[stem]), stem
        for wanted in truth[stem]:
            mask = wanted.mask()
            ious = [(m & mask).sum() / (m | mask).sum() * (not names or n == wanted.name) for n, m in left]
            best = int(np.argmax(ious))
            assert ious[best] >= bar, (stem, wanted, ious, [n for n, _ in left])
            left.pop(best)
    return records


def faults(records: Records, *severities: str) -> dict[str, list[str]]:
    """{what: places} of the findings of these severities; default: errors and warnings."""
    wanted = severities or ("error", "warning")
    return {fault.what: places for fault, places in records.findings.places.items() if fault.severity in wanted}


############################################################
#  COCO
############################################################


def coco(truth: dict[str, list[Truth]], suffix: str = ".png", folder: str = "") -> dict:
    """A value of COCO json. Objects with holes are RLE, others polygons."""
    ids = {"cat": 3, "dog": 7}
    value = {"images": [], "annotations": [], "categories": [{"id": i, "name": name} for name, i in ids.items()]}
    for image_id, (stem, objects) in enumerate(truth.items(), 1):
        value["images"].append(
            {"id": image_id, "file_name": f"{folder}{stem}{suffix}", "height": HEIGHT, "width": WIDTH}
        )
        for item in objects:
            polygons = [flat(part, 0.2) for part in item.parts]
            segmentation = utils.rle_to_json(utils.mask_to_rle(item.mask())) if item.hole else polygons
            x1, y1, x2, y2 = (
                np.array(item.parts).min(axis=0)[:2].tolist() + np.array(item.parts).max(axis=0)[2:].tolist()
            )
            entry = {"id": len(value["annotations"]) + 1, "image_id": image_id, "category_id": ids[item.name],
                     "segmentation": segmentation, "iscrowd": 0, "area": int(item.mask().sum()),
                     "bbox": [x1, y1, x2 - x1, y2 - y1]}  # fmt: skip
            value["annotations"].append(entry)
    return value


############################################################
#  Other formats
############################################################


def png(mask: np.ndarray) -> bytes:
    """A mask as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return file.getvalue()


def base64_of(data: bytes) -> str:
    """Base64 as text."""
    return base64.b64encode(data).decode()


def labelme_value(stem, objects, shift=0.2, **more):
    """A value of labelme's json."""
    shapes = []
    for group, item in enumerate(objects):
        for part in item.parts:
            points = (np.array(corners(part)) + shift).tolist()
            shape = {"label": item.name, "points": points, "group_id": group if len(item.parts) > 1 else None}
            shapes.append({**shape, "shape_type": "polygon", "flags": {}, "description": "", "mask": None})
    value = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{stem}.jpg", "imageData": None}
    return {**value, "imageHeight": HEIGHT, "imageWidth": WIDTH, **more}


def via_region(part, attributes):
    """A region of VIA 1 and 2."""
    xs, ys = zip(*corners(part), strict=True)
    shape = {"name": "polygon", "all_points_x": [x + 0.2 for x in xs], "all_points_y": [y + 0.2 for y in ys]}
    return {"shape_attributes": shape, "region_attributes": attributes}


def via_2(truth, attributes=lambda item: {"class": item.name, "id": "7"}, as_dict=False):
    """A value of VIA 1 or 2. attributes: of an object."""
    value = {}
    for stem, objects in truth.items():
        regions = [via_region(part, attributes(item)) for item in objects for part in item.parts]
        regions = {str(i): region for i, region in enumerate(regions)} if as_dict else regions
        value[f"{stem}.jpg123"] = {"filename": f"{stem}.jpg", "size": 123, "regions": regions, "file_attributes": {}}
    return value


def via_3(truth):
    """A project of VIA 3."""
    metadata = {}
    for view, (_, objects) in enumerate(truth.items(), 1):
        for item in objects:
            for part in item.parts:
                av = {"1": {"cat": "0", "dog": "1"}[item.name]}
                metadata[f"{view}_{len(metadata)}"] = {"vid": str(view), "z": [], "xy": [7, *flat(part, 0.2)], "av": av}
    metadata["video"] = {"vid": "1", "z": [1.0, 2.0], "xy": [7, 1, 1, 2, 2, 3, 1], "av": {}}
    return {
        "project": {"pid": "x"}, "config": {}, "metadata": metadata,
        "attribute": {"1": {"aname": "kind", "options": {"0": "cat", "1": "dog"}}},
        "file": {str(i): {"fid": str(i), "fname": f"{stem}.jpg"} for i, stem in enumerate(truth, 1)},
        "view": {str(i): {"fid_list": [str(i)]} for i, _ in enumerate(truth, 1)},
    }  # fmt: skip


def points(part):
    """The corners of a box as CVAT writes them."""
    return ";".join(f"{x + 0.2:.2f},{y + 0.2:.2f}" for x, y in corners(part))


def rows_rle(mask):
    """CVAT's RLE of a mask: along its rows."""
    edges = np.flatnonzero(np.diff(np.r_[0, mask.ravel().astype(np.int8)]))
    return ", ".join(map(str, np.diff(np.r_[0, edges, mask.size])))


def cvat_shape(item, group):
    """The elements of an object in CVAT's XML."""
    if item.hole:
        x1, y1, x2, y2 = item.parts[0]
        rle = rows_rle(item.mask()[y1:y2, x1:x2])
        return f'<mask label="{item.name}" rle="{rle}" left="{x1}" top="{y1}" width="{x2 - x1}" height="{y2 - y1}"/>'
    group = f' group_id="{group}"' if len(item.parts) > 1 else ""
    return "".join(f'<polygon label="{item.name}" points="{points(part)}"{group}/>' for part in item.parts)


def cvat_xml(truth, names, kind="task", more=""):
    """CVAT's XML of pictures. names: of a stem. kind: task, job or project."""
    images = []
    for i, (stem, objects) in enumerate(truth.items()):
        shapes = "".join(cvat_shape(item, group) for group, item in enumerate(objects, 1))
        images.append(f'<image id="{i}" name="{names(stem)}" width="{WIDTH}" height="{HEIGHT}"{more}>{shapes}'
                      f'<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/></image>')  # fmt: skip
    meta = f"<meta><{kind}><size>3</size><labels><label><name>cat</name></label></labels></{kind}></meta>"
    head = '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>'
    return f"{head}{meta}{''.join(images)}</annotations>"


def brush(mask: np.ndarray) -> list[int]:
    """Label Studio's RLE: here only runs of one value, and of single bytes that differ."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask] = 255
    values = values.ravel()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    edges = np.r_[0, np.flatnonzero(np.diff(values.astype(int))) + 1, len(values)]
    for start, end in itertools.pairwise(edges):
        for place in range(start, end, 1 << 16):
            bits += f"1{3:02b}{min(end - place, 1 << 16) - 1:016b}{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def region(item, part):
    """A region of Label Studio: a brush for an object with a hole, else a polygon."""
    sizes = {"original_width": WIDTH, "original_height": HEIGHT}
    if item.hole:
        value = {"format": "rle", "rle": brush(item.mask()), "brushlabels": [item.name]}
        return {**sizes, "type": "brushlabels", "value": value}
    percent = ((np.array(corners(part)) + 0.2) / [WIDTH, HEIGHT] * 100).tolist()
    return {**sizes, "type": "polygonlabels", "value": {"points": percent, "polygonlabels": [item.name]}}


def regions(objects):
    """The regions of Label Studio of all parts of objects."""
    return [region(item, part) for item in objects for part in item.parts]


def feature(item, kind="detection", **more):
    """A feature of QuPath's GeoJSON."""
    polygons = [[[*corners(part), corners(part)[0]]] for part in item.parts]
    if item.hole:
        polygons[0].append([*corners(item.hole), corners(item.hole)[0]])
    many = len(polygons) > 1
    geometry = {"type": "MultiPolygon" if many else "Polygon", "coordinates": polygons if many else polygons[0]}
    properties = {"objectType": kind, "classification": {"name": item.name}, **more}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def line(number: int | str, box: tuple) -> str:
    """A line of YOLO's labels."""
    points = np.reshape(flat(box, 0.2), (-1, 2)) / [WIDTH, HEIGHT]
    return f"{number} " + " ".join(f"{value:.6g}" for value in points.ravel())


def yolo_text(objects: list[Truth]) -> str:
    """The text of a YOLO label file."""
    return "\n".join(line(("cat", "dog").index(item.name), part) for item in objects for part in item.parts)


def rle_text(mask):
    """The RLE of the Data Science Bowl."""
    edges = np.flatnonzero(np.diff(np.r_[0, mask.T.ravel().astype(np.int8), 0]))
    return " ".join(f"{start + 1} {end - start}" for start, end in edges.reshape(-1, 2))


def xml(stem, objects, shape):
    """supervision's XML of a picture; without a shape, boxes only."""
    parts = [f"<annotation><filename>{stem}.jpg</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"]
    for item in objects:
        for x1, y1, x2, y2 in item.parts:
            pairs = enumerate(corners((x1 + 1, y1 + 1, x2, y2)), 1)  # 1-based, through the centres of pixels
            points = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in pairs)
            shapes = f"<bndbox><xmin>{x1}</xmin></bndbox>" + (f"<polygon>{points}</polygon>" if shape else "")
            parts.append(f"<object><name>{item.name}</name>{shapes}</object>")
    return "".join([*parts, "</annotation>"])


def roi(box, name):
    """The bytes of one of ImageJ's ROIs."""
    return roifile.ImagejRoi.frompoints(np.array(corners(box), np.int32), name=name).tobytes()


def write_zip(path, members):
    """Writes a zip file of {name: bytes}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
