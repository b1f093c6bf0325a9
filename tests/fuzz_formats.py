"""Damaged label files of every format: each is read, or refused in a sentence; nothing else is raised."""

import gzip
import json

import numpy as np
import pytest
from fuzzing import damaged_bytes, damaged_json, fuzz
from own_sets import (
    FLAT,
    HOLED,
    PLAIN,
    Truth,
    coco,
    cvat_xml,
    feature,
    labelme_value,
    numbers,
    picture,
    regions,
    rle_text,
    roi,
    via_2,
    via_3,
    write_png,
    write_zip,
    xml,
    yolo_text,
)

import utils
from data.recognise import open_records

PARTS = [Truth(item.name, (part,), item.hole) for item in HOLED["a"] for part in item.parts]
ENTRY = {"segmentation": utils.rle_to_json(utils.mask_to_rle(PARTS[0].mask()))}
JSON = {
    "coco": coco(HOLED, ".png"),
    "labelme": labelme_value("a", HOLED["a"]),
    "via 2": via_2(PLAIN),
    "via 3": via_3(PLAIN),
    "label studio": [{"data": {"image": "a.png"}, "annotations": [{"result": regions(PARTS)}]}],
    "supervisely": {
        "size": {"height": 40, "width": 48},
        "objects": [{"classTitle": "x", "geometryType": "polygon", "points": {"exterior": [[1, 1], [9, 1], [9, 9]]}}],
    },
    "geojson": [feature(item) for item in HOLED["a"]],
    "isat": {
        "info": {"description": "ISAT", "name": "a.png", "width": 48, "height": 40},
        "objects": [{"category": "x", "group": 1, "segmentation": [[1, 1], [9, 1], [9, 9]], "bbox": [1, 1, 9, 9]}] * 2,
    },
    "datumaro": {
        "categories": {"label": {"labels": [{"name": "cat"}]}},
        "items": [
            {
                "id": "a",
                "image": {"path": "a.png", "size": [40, 48]},
                "annotations": [
                    {"type": "polygon", "label_id": 0, "group": 1, "points": [1, 1, 9, 1, 9, 9]},
                    {"type": "mask", "label_id": 0, "group": 1, "rle": ENTRY["segmentation"]},
                ],
            }
        ],
    },
    "sa1b": {"image": {"file_name": "a.png", "height": 40, "width": 48}, "annotations": [ENTRY]},
}
TEXT = {
    "a.txt": yolo_text(PLAIN["a"]),
    "a.xml": xml("a", PLAIN["a"], True),
    "labelme.xml": "<annotation><filename>a.png</filename><imagesize><nrows>40</nrows><ncols>48</ncols></imagesize>"
    "<object><name>x</name><deleted>0</deleted><id>0</id><polygon><pt><x>1</x><y>1</y></pt><pt><x>9</x><y>1</y></pt>"
    "<pt><x>9</x><y>9</y></pt></polygon></object></annotation>",
    "videos.xml": "<annotations><meta><project><tasks><task><id>5</id><size>2</size><mode>interpolation</mode>"
    '</task></tasks></project></meta><track task_id="5" label="x"><polygon frame="0" outside="0" points="1,1;9,1;9,9"/>'
    "</track></annotations>",
    "annotations.xml": cvat_xml(HOLED, "{}.png".format),
    "labels.csv": f"ImageId,EncodedPixels\na,{rle_text(PLAIN['a'][0].mask())}\nb,\n",
    "via.csv": "filename,region_shape_attributes,region_attributes\n"
    'a.png,"{""name"":""rect"",""x"":1,""y"":2,""width"":9,""height"":9}",{}\n',
}


def read(root):
    records = open_records(root)
    for found in records.pictures:
        for parsed in found.objects:
            parsed.mask(found.height, found.width)


@pytest.fixture
def root(tmp_path):
    for stem in PLAIN:
        picture(tmp_path / f"{stem}.png")
    return tmp_path


@pytest.mark.parametrize("kind", JSON)
def test_json(kind, root):
    def case(rng):
        (root / "a.json").write_bytes(json.dumps(damaged_json(JSON[kind], rng)).encode("utf-8", "surrogatepass"))
        read(root)

    fuzz(case, 60, "")


@pytest.mark.parametrize("name", TEXT)
def test_text(name, root):
    def case(rng):
        (root / name).write_bytes(damaged_bytes(TEXT[name].encode(), rng))
        (root / "data.yaml").write_bytes(damaged_bytes(b"train: [images, a.txt]\nnames: {0: cat, 1: dog}\n", rng))
        read(root)

    fuzz(case, 40, "")


def test_rois(root):
    write_zip(root / "a.zip", {"1.roi": roi((1, 1, 9, 9), "x"), "2.roi": roi((1, 1, 9, 9), "y")})
    data = (root / "a.zip").read_bytes()

    def case(rng):
        (root / "a.zip").write_bytes(damaged_bytes(data, rng))
        (root / "b.roi").write_bytes(damaged_bytes(roi((1, 1, 9, 9), "x"), rng))
        read(root)

    fuzz(case, 60, "")


def test_label_images(root):
    data = write_png(root / "a_masks.png", numbers(FLAT["a"])).read_bytes()
    write_png(root / "b_masks.png", np.full((40, 48), 3, np.uint8))

    def case(rng):
        (root / "a_masks.png").write_bytes(damaged_bytes(data, rng))
        read(root)

    fuzz(case, 40, "")


def test_packed(root):
    data = gzip.compress(json.dumps([feature(item) for item in HOLED["a"]]).encode())

    def case(rng):
        (root / "a.geojson.gz").write_bytes(damaged_bytes(data, rng))
        read(root)

    fuzz(case, 30, "")
