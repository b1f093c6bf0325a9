"""labelme, VIA, CVAT, Label Studio, Supervisely, QuPath: sets as these tools write them read to the same masks."""

import csv
import io
import json
import math
import zlib

import numpy as np
import pytest
import tifffile
from own_sets import (
    HEIGHT,
    HOLED,
    PLAIN,
    WIDTH,
    Truth,
    base64_of,
    brush,
    check,
    corners,
    cvat_xml,
    faults,
    feature,
    labelme_value,
    picture,
    png,
    points,
    regions,
    via_2,
    via_3,
    write_json,
    write_text,
)
from PIL import Image

import utils
from data.crops import trim
from data.formats import cvat, geojson, label_studio, labelme, supervisely, via
from data.listing import decode_base64
from data.reading import NoMasks, Options
from data.recognise import open_records
from data.records import Object
from data.writers.geojson import feature as written_feature
from data.writers.geojson import write_features

PARTS = {**PLAIN, "a": [Truth("cat", ((4, 5, 20, 18), (30, 5, 40, 12))), Truth("dog", ((24, 20, 40, 35),))]}


def pictures(root, stems="abc", suffix=".jpg"):
    for stem in stems:
        picture(root / f"{stem}{suffix}")


############################################################
#  labelme
############################################################


@pytest.mark.parametrize(
    "path", ["{}.jpg", "..\\images\\{}.jpg", "C:\\Users\\x\\{}.jpg", "/home/x/{}.jpg", "old name.jpg"]
)
def test_labelme(tmp_path, path):
    pictures(tmp_path / "images")
    folder = "labels" if ".." in path else "images"
    for stem, objects in PARTS.items():
        write_json(tmp_path / folder / f"{stem}.json", labelme_value(stem, objects, imagePath=path.format(stem)))
    picture(tmp_path / "images" / "d.jpg")
    write_json(tmp_path / folder / "other.json", {"of": "another tool"})
    write_text(tmp_path / folder / "empty.json", "")
    records = check(tmp_path, PARTS)
    assert faults(records, "remark")["pictures have no label"] == ["images/d.jpg"]
    assert list(faults(records).values()) == [[f"{folder}/empty.json is empty"]]
    assert len(open_records(tmp_path, options=Options(empty="label")).pictures) == 4


def test_labelme_version_3(tmp_path):
    pictures(tmp_path)
    for stem, objects in PLAIN.items():
        value = labelme_value(stem, objects, lineColor=[0, 255, 0, 128], fillColor=[255, 0, 0, 128])
        del value["imageHeight"], value["imageWidth"], value["version"]
        value["shapes"] = [{"label": s["label"], "points": s["points"], "line_color": None} for s in value["shapes"]]
        write_json(tmp_path / f"{stem}.json", value)
    assert not faults(check(tmp_path, PLAIN))


def test_labelme_shapes(tmp_path):
    picture(tmp_path / "a.jpg")
    mask = HOLED["a"][0].mask()[4:30, 4:28]
    shapes = {
        "rectangle": [[20, 18], [4, 5]], "circle": [[20, 20], [20, 10]], "oriented_rectangle": corners((4, 5, 20, 18)),
        "mask": [[4, 4], [27, 29]], "line": [[1, 1], [5, 5]], "point": [[1, 1]], "points": [[1, 1]],
        "linestrip": [[1, 1], [5, 5], [9, 1]],
    }  # fmt: skip
    value = labelme_value("a", [])
    value["shapes"] = [{"label": kind, "points": points, "shape_type": kind, "group_id": True,
                        "mask": base64_of(png(mask)) if kind == "mask" else None}
                       for kind, points in shapes.items()]  # fmt: skip
    write_json(tmp_path / "a.json", value)
    records = open_records(tmp_path)
    found = {o.name: utils.rle_to_mask(o.mask(HEIGHT, WIDTH)) for o in records.pictures[0].objects}
    assert set(found) == {"rectangle", "circle", "oriented_rectangle", "mask"}
    assert (found["mask"] == HOLED["a"][0].mask()).all()
    assert (found["rectangle"] == PLAIN["a"][0].mask()).all()
    assert (found["oriented_rectangle"] == PLAIN["a"][0].mask()).all()
    assert found["circle"].sum() == pytest.approx(math.pi * 100, rel=0.03)
    assert len(faults(records, "remark")["shapes are lines or points"]) == 4


def test_labelme_labels_that_are_whole_numbers(tmp_path):
    picture(tmp_path / "a.jpg")
    value = labelme_value("a", PLAIN["a"])
    value["shapes"][0]["label"], value["shapes"][1]["label"] = 1, True
    write_json(tmp_path / "a.json", value)
    assert [parsed.name for parsed in open_records(tmp_path).pictures[0].objects] == ["1", ""]


def test_labelme_bad_shapes_cost_a_shape_each(tmp_path):
    picture(tmp_path / "a.jpg")
    value = labelme_value("a", PLAIN["a"])
    big = base64_of(png(np.ones((99, 99), bool)))
    value["shapes"] += [
        None, {}, {"label": "x", "points": [[1, 2], [3, 4]]}, {"label": "x", "points": [["a", 2]]},
        {"label": "x", "points": [[1, 2], [1e300, 4], [9, 9]]},
        {"label": "x", "points": [[0, 0]], "shape_type": "cube"},
        {"label": "x", "points": [[0, 0], [5, 5]], "shape_type": "mask", "mask": "no base64"},
        {"label": "x", "points": [[0, 0], [5, 5]], "shape_type": "mask", "mask": big},
        {"label": "x", "points": [[0, 0], [5, 5]], "shape_type": "mask", "mask": base64_of(b"no PNG")},
    ]  # fmt: skip
    write_json(tmp_path / "a.json", value)
    records = check(tmp_path, {"a": PLAIN["a"]})
    assert len(faults(records)["objects cannot be used"]) == 9


def test_labelme_embedded_pictures(tmp_path):
    picture(tmp_path / "x" / "a.jpg")
    data = (tmp_path / "x" / "a.jpg").read_bytes()
    (tmp_path / "x" / "a.jpg").unlink()
    write_json(tmp_path / "a.json", labelme_value("gone", PLAIN["a"], imageData=base64_of(data)), "utf-16")
    write_json(tmp_path / "b.json", labelme_value("gone", PLAIN["a"], imageData="#"))
    records = check(tmp_path, {"a": PLAIN["a"]})
    assert records.pictures[0].embedded().shape == (HEIGHT, WIDTH, 3)
    assert "imageData is no base64" in faults(records)["pictures cannot be read"][0]


def test_labelme_is_labelme():
    assert labelme.is_labelme({"shapes": [], "imagePath": "a.jpg"})
    assert not labelme.is_labelme({"shapes": {}, "imagePath": "a.jpg"})
    assert decode_base64("aGVs\nbG8=") == b"hello"
    with pytest.raises(ValueError, match="base64"):
        decode_base64("%%%")


############################################################
#  VIA
############################################################


@pytest.mark.parametrize("kind", ["1", "2", "project", "csv", "csv 1", "3"])
def test_via(tmp_path, kind):
    pictures(tmp_path)
    if kind.startswith("csv"):
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow([("#" if kind == "csv 1" else "") + "filename", "file_size", "file_attributes", "region_count",
                         "region_id", "region_shape_attributes", "region_attributes"])  # fmt: skip
        for entry in via_2(PLAIN).values():
            for i, region in enumerate(entry["regions"] or [{"shape_attributes": {}, "region_attributes": {}}]):
                cells = [json.dumps(region[key]) for key in ("shape_attributes", "region_attributes")]
                writer.writerow([entry["filename"], 1, "{}", len(entry["regions"]), i, *cells])
        write_text(tmp_path / "via.csv", file.getvalue())
    elif kind == "3":
        write_json(tmp_path / "via.json", via_3(PLAIN))
    else:
        value = via_2(PLAIN, as_dict=kind == "1")
        project = {"_via_settings": {}, "_via_img_metadata": value, "_via_attributes": {}}
        write_json(tmp_path / "via.json", project if kind == "project" else value)
        write_json(tmp_path / "again.json", value)  # exported twice: counts once
    records = check(tmp_path, PLAIN)
    assert not faults(records)
    assert {p.path.stem for p in records.pictures if p.is_labelled} == {"a", "b", "c"}


def test_via_of_two_splits_in_one_folder(tmp_path):
    pictures(tmp_path)
    write_json(tmp_path / "via_train.json", via_2({stem: PLAIN[stem] for stem in "ac"}))
    write_json(tmp_path / "via_val.json", via_2({"b": PLAIN["b"]}))
    check(tmp_path, PLAIN)


@pytest.mark.parametrize(("attributes", "options", "expected"), [
    (lambda item: {}, Options(), {""}),
    (lambda item: {"Type": item.name, "note": "x"}, Options(), {"cat", "dog"}),
    (lambda item: {"kind": {"cat": item.name == "cat", "dog": item.name == "dog"}}, Options(), {"cat", "dog"}),
    (lambda item: {"class": item.name, "age": "old"}, Options(class_attribute="age"), {"old"}),
])  # fmt: skip
def test_via_class_attribute(tmp_path, attributes, options, expected):
    pictures(tmp_path)
    write_json(tmp_path / "via.json", via_2(PLAIN, attributes))
    assert {o.name for p in open_records(tmp_path, options=options).pictures for o in p.objects} == expected
    with pytest.raises(ValueError, match="--class-attribute nothing"):
        open_records(tmp_path, options=Options(class_attribute="nothing"))


def test_via_shapes():
    area = {
        "rect": ({"x": 1, "y": 2, "width": 10, "height": 5}, 50), "circle": ({"cx": 9, "cy": 9, "r": 4}, math.pi * 16),
        "ellipse": ({"cx": 9, "cy": 9, "rx": 4, "ry": 2, "theta": 1}, math.pi * 8),
        "extreme_circle": ({"values": [5, 9, 13, 9, 9, 13]}, math.pi * 16),
    }  # fmt: skip
    for name, (shape, expected) in area.items():
        x, y = via.ring_of({"name": name, **shape}).T
        assert abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 == pytest.approx(expected, rel=0.01)
    assert via.ring_of({"name": "polyline"}) is None
    turned = via.ring_of({"name": "ellipse", "cx": 0, "cy": 0, "rx": 4, "ry": 1, "theta": math.pi / 2})
    assert np.abs(turned).max(axis=0) == pytest.approx([1, 4], abs=0.01)
    for bad in ({"name": "polygon", "all_points_x": [1], "all_points_y": []}, {"name": "star"}, {},
                {"name": "extreme_circle", "values": [0, 0, 1, 1, 2, 2]}):  # fmt: skip
        with pytest.raises(ValueError, match="has"):
            via.ring_of(bad)


def test_via_bad_regions_cost_a_region_each(tmp_path):
    pictures(tmp_path)
    value = via_2(PLAIN)
    value["a.jpg123"]["regions"] += [None, {"shape_attributes": {"name": "circle", "cx": "x"}}, 3]
    value["gone"] = {"filename": "gone.jpg", "regions": []}
    value["odd"] = {"filename": 3, "regions": 4}
    write_json(tmp_path / "via.json", value)
    found = faults(check(tmp_path, PLAIN))
    assert len(found["objects cannot be used"]) == 3
    assert found["labels name a picture that is not there"] == ["via.json: gone.jpg"]


############################################################
#  CVAT
############################################################


@pytest.mark.parametrize("kind", ["task", "job", "project", "beside"])
def test_cvat(tmp_path, kind):
    folder = {"project": "images/Train", "beside": "."}.get(kind, "images")
    pictures(tmp_path / folder / "x &amp; y".replace("&amp;", "&"))
    more = ' subset="Train" task_id="3"' if kind == "project" else ""
    text = cvat_xml(HOLED, lambda stem: f"x &amp; y/{stem}.jpg", kind, more)
    write_text(tmp_path / "annotations.xml", text)
    records = check(tmp_path, HOLED)
    assert not faults(records)
    assert {p.split for p in records.pictures} == {"train" if kind == "project" else None}


def test_cvat_groups_and_ellipses(tmp_path):
    picture(tmp_path / "a.jpg")
    shapes = "".join(
        f'<polygon label="{label}" group_id="1" points="{points(part)}"/>'
        for label, part in (("cat", (1, 1, 9, 9)), ("dog", (10, 10, 19, 19)), ("cat", (20, 1, 29, 9)))
    )
    shapes += '<ellipse label="egg" cx="20" cy="20" rx="10" ry="5" rotation="90"/>'
    text = f'<annotations><image name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{shapes}</image></annotations>'
    write_text(tmp_path / "annotations.xml", text)
    found = {o.name: utils.rle_to_mask(o.mask(HEIGHT, WIDTH)) for o in open_records(tmp_path).pictures[0].objects}
    assert {name: mask.sum() for name, mask in found.items() if name != "egg"} == {"cat": 64 + 72, "dog": 81}
    assert np.ptp(np.argwhere(found["egg"]), axis=0) == pytest.approx([19, 9], abs=1)


def test_cvat_video(tmp_path):
    for frame in range(6):
        picture(tmp_path / "images" / f"frame_{frame:06}.PNG")
    shape = '<polygon frame="{}" keyframe="1" outside="{}" points="{}"/>'
    box = points((4, 5, 20, 18))
    track = f'<track id="0" label="cat" group_id="0">{shape.format(1, 0, box)}{shape.format(4, 1, box)}</track>'
    track += f'<track id="1" label="dog">{shape.format(5, 0, box)}{shape.format("x", 0, box)}</track>'
    track += f'<track id="2" label="dog">{shape.format(9, 0, box)}</track>'
    size = f"<original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size>"
    meta = f"<meta><task><size>6</size><mode>interpolation</mode>{size}</task></meta>"
    write_text(tmp_path / "annotations.xml", f"<annotations><version>1.1</version>{meta}{track}</annotations>")
    records = open_records(tmp_path)
    names = [[o.name for o in found.objects] for found in records.pictures]
    assert names == [[], ["cat"], ["cat"], ["cat"], [], ["dog"]]
    assert faults(records)["labels name a picture that is not there"] == ["annotations.xml: frame 9"]


def test_the_length_of_a_cvat_video_takes_no_time(tmp_path, monkeypatch):
    """Tracks of a file that says a million frames are followed where there are pictures."""
    for frame in (2, 999_998):
        picture(tmp_path / "images" / f"frame_{frame:06}.PNG")
    asked = []
    real = cvat._frame_file
    monkeypatch.setattr(cvat, "_frame_file", lambda *args: asked.append(args[3]) or real(*args))
    shape = f'<polygon frame="1" keyframe="1" outside="0" points="{points((4, 5, 20, 18))}"/>'
    tracks = "".join(f'<track id="{number}" label="cat">{shape}</track>' for number in range(20))
    text = f"<annotations><version>1.1</version><meta><task><size>1000000</size></task></meta>{tracks}</annotations>"
    write_text(tmp_path / "annotations.xml", text)
    records = open_records(tmp_path)
    assert [len(found.objects) for found in records.pictures] == [20, 20]
    assert asked == [1, 2, 999_998]
    assert faults(records)["labels name a picture that is not there"] == ["annotations.xml: frame 1"]


def test_cvat_bad_shapes_cost_a_shape_each(tmp_path):
    picture(tmp_path / "a.jpg")
    bad = ('<polygon label="x" points="1,2;3"/><polygon label="x"/><ellipse label="x" cx="1"/>'
           '<mask label="x" rle="1,2" left="0" top="0" width="2" height="2"/>'
           '<mask label="x" rle="4" left="0" top="0" width="99999999" height="99999999"/>'
           '<mask label="x"/>')  # fmt: skip
    text = cvat_xml({"a": PLAIN["a"]}, "{}.jpg".format).replace("</image>", f"{bad}</image>")
    write_text(tmp_path / "annotations.xml", text)
    assert len(faults(check(tmp_path, {"a": PLAIN["a"]}))["objects cannot be used"]) == 6


def test_cvat_boxes_are_no_masks(tmp_path):
    pictures(tmp_path)
    write_text(tmp_path / "annotations.xml", cvat_xml({"a": [], "b": []}, "{}.jpg".format))
    with pytest.raises(NoMasks, match="CVAT XML labels are boxes, 2 of them"):
        open_records(tmp_path)


############################################################
#  Label Studio
############################################################


SPLIT_PARTS = {stem: [Truth(item.name, (part,), item.hole) for item in objects for part in item.parts]
               for stem, objects in HOLED.items()}  # fmt: skip


@pytest.mark.parametrize("address", [
    "/data/upload/1/0a1b2c3d-{}.jpg", "/data/local-files/?d=some%20where/images/{}.jpg", "s3://bucket/x/{}.jpg",
    "https://host/x/{}.jpg?token=1", "images\\{}.jpg",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["json", "min"])
def test_label_studio(tmp_path, address, kind):
    pictures(tmp_path / "images")
    tasks = []
    for stem, objects in SPLIT_PARTS.items():
        image, results = address.format(stem), regions(objects)
        cancelled = {"was_cancelled": True, "result": regions(PLAIN["a"])}
        second = {"was_cancelled": False, "result": []}
        task = {
            "data": {"image": image},
            "annotations": [cancelled, {"was_cancelled": False, "result": results}, second],
        }
        if kind == "min":
            flat_regions = [
                {**result["value"], "original_width": WIDTH, "original_height": HEIGHT} for result in results
            ]
            task = {"image": image, "id": 1, "tag": flat_regions, "annotator": 1, "annotation_id": 3}
            tasks.append(task)
        tasks.append(task)
    tasks.append({"data": {"image": "gone.jpg"}, "annotations": []})
    write_json(tmp_path / "project.json", tasks if kind == "json" else tasks[:-1])
    records = check(tmp_path, SPLIT_PARTS)
    assert len(faults(records)["tasks have annotations by several people"]) == 3


def test_label_studio_task_without_annotations_is_not_labelled(tmp_path):
    pictures(tmp_path)
    tasks = [{"data": {"image": f"{stem}.jpg"}, "annotations": [{"result": regions(PLAIN[stem])}]} for stem in "ab"]
    write_json(tmp_path / "x.json", [*tasks, {"data": {"image": "c.jpg"}, "annotations": []}])
    records = check(tmp_path, PLAIN)
    assert [p.path.name for p in records.pictures if not p.is_labelled] == ["c.jpg"]


def test_label_studio_shapes_and_bad_regions(tmp_path):
    pictures(tmp_path)
    egg = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 10, "rotation": 0, "ellipselabels": ["egg"]}
    sizes = {"original_width": WIDTH, "original_height": HEIGHT}
    bad = [{"type": "brushlabels", "value": {"rle": [0, 0, 300]}, **sizes}, {"type": "polygonlabels"},
           {"type": "brushlabels", "value": {"rle": brush(PLAIN["a"][0].mask())[:40]}, **sizes},
           {"type": "brushlabels", "value": {"rle": [1]}, "original_width": 10**9,
            "original_height": 10**9}]  # fmt: skip
    results = [{"type": "ellipselabels", "value": egg, **sizes}, {"type": "rectanglelabels", "value": {}}, *bad, 3]
    write_json(tmp_path / "x.json", [{"data": {"image": "a.jpg"}, "annotations": [{"result": results}]}])
    records = open_records(tmp_path)
    (found,) = records.pictures[0].objects
    assert utils.rle_area(found.mask(HEIGHT, WIDTH)) == pytest.approx(math.pi * 12 * 4, rel=0.03)
    assert len(faults(records)["objects cannot be used"]) == 4
    assert not label_studio.is_label_studio([{"data": 3}])


def test_label_studio_brush_of_a_larger_picture(tmp_path):
    pictures(tmp_path)
    mask = np.repeat(np.repeat(PLAIN["a"][0].mask(), 2, 0), 2, 1)
    value = {"rle": brush(mask), "brushlabels": ["cat"]}
    result = {"type": "brushlabels", "value": value, "original_width": 2 * WIDTH, "original_height": 2 * HEIGHT}
    write_json(tmp_path / "x.json", [{"data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}])
    check(tmp_path, {"a": PLAIN["a"][:1]})
    assert (label_studio.brush_mask(brush(mask), 2 * HEIGHT, 2 * WIDTH) == mask).all()


############################################################
#  Supervisely and QuPath
############################################################


def test_supervisely(tmp_path):
    for stem, objects in HOLED.items():
        picture(tmp_path / "ds" / "img" / f"{stem}.jpg")
        entries = []
        for item in objects:
            x1, y1 = np.array(item.parts).min(axis=0)[:2].tolist()
            x2, y2 = np.array(item.parts).max(axis=0)[2:].tolist()
            entry = {"classTitle": item.name, "geometryType": "bitmap"}
            if item.hole:
                entry["geometryType"] = "polygon"
                entry["points"] = {"exterior": corners(item.parts[0]), "interior": [corners(item.hole)]}
            else:
                alpha = item.mask()[y1:y2, x1:x2].astype(np.uint8) * 255
                file = io.BytesIO()
                Image.fromarray(np.stack([alpha * 0 + 255] * 3 + [alpha], 2)).save(file, "PNG")
                entry["bitmap"] = {"origin": [x1, y1], "data": base64_of(zlib.compress(file.getvalue()))}
            entries.append(entry)
        bomb = base64_of(zlib.compress(b"0" * 10**6))
        entries += [{"geometryType": "rectangle"}, {"geometryType": "polygon"}, None,
                    {"geometryType": "bitmap", "bitmap": {"origin": [0, 0], "data": bomb}}]  # fmt: skip
        value = {"size": {"height": HEIGHT, "width": WIDTH}, "tags": [{"name": "val"}], "objects": entries}
        write_json(tmp_path / "ds" / "ann" / f"{stem}.jpg.json", value)
    write_json(tmp_path / "meta.json", {"classes": [], "tags": []})
    records = check(tmp_path, HOLED)
    assert {p.split for p in records.pictures} == {"val"}
    assert len(faults(records)["objects cannot be used"]) == 9
    assert not supervisely.is_supervisely({"objects": []})


@pytest.mark.parametrize("kind", ["collection", "list"])
def test_geojson(tmp_path, kind):
    around = Truth("region", ((0, 0, 47, 39),))
    for stem, objects in HOLED.items():
        picture(tmp_path / f"{stem}.ome.tif")
        features = [feature(item, "cell", nucleusGeometry={"type": "Polygon"}) for item in objects]
        if objects:
            point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}}
            bad = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1, 1]]]}}
            features += [feature(around, "annotation"), point, bad]
        value = {"type": "FeatureCollection", "features": features} if kind == "collection" else features
        write_json(tmp_path / f"{stem}.ome.geojson", value)
    records = check(tmp_path, {f"{stem}.ome": objects for stem, objects in HOLED.items()})
    assert len(faults(records, "remark")["annotations mark regions with detections or cells in them"]) == 2
    assert len(faults(records)["objects cannot be used"]) == 2


def on_a_map(path, epsg, transform):
    """A GeoTIFF of the size of the test pictures."""
    a, b, c, d, e, f = transform
    keys = (1, 1, 0, 1, 2048 if epsg == 4326 else 3072, 0, 1, epsg)
    matrix = (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    tags = [(34264, 12, 16, matrix, True), (34735, 3, len(keys), keys, True)]
    tifffile.imwrite(path, np.zeros((HEIGHT, WIDTH), np.uint8), extratags=tags, metadata=None)


@pytest.mark.parametrize(("epsg", "transform", "crs"), [
    (32633, (0.5, 0.1, 500000.0, 0.1, -0.5, 5300000.0), "EPSG:32633"),
    (32633, (0.5, 0.0, 500000.0, 0.0, -0.5, 5300000.0), None),  # no pixels of the picture, but places in it
    (4326, (1e-5, 0.0, 8.0, 0.0, -1e-5, 47.0), "EPSG:4326"),  # which RFC 7946 does not name
    (4326, (1e-5, 0.0, 8.0, 0.0, -1e-5, 47.0), None),
    (32633, None, None),  # QuPath's pixels of a picture with a place
])  # fmt: skip
def test_geojson_on_a_map_comes_back(tmp_path, epsg, transform, crs):
    for stem, objects in HOLED.items():
        on_a_map(tmp_path / f"{stem}.tif", epsg, transform or (0.5, 0.0, 500000.0, 0.0, -0.5, 5300000.0))
        crops = [(Object(t.name, ""), trim(0, 0, t.mask())) for t in objects]
        write_features(
            tmp_path / f"{stem}.geojson", (written_feature(*each, transform=transform) for each in crops), crs
        )
    check(tmp_path, HOLED)


@pytest.mark.parametrize(("epsg", "message"), [(None, "has no place on a map"), (32632, "a.tif has EPSG:32632")])
def test_geojson_of_another_map_is_refused(tmp_path, epsg, message):
    transform = (0.5, 0.0, 500000.0, 0.0, -0.5, 5300000.0)
    if epsg:
        on_a_map(tmp_path / "a.tif", epsg, transform)
    else:
        picture(tmp_path / "a.tif")
    crop = trim(0, 0, HOLED["a"][0].mask())
    write_features(tmp_path / "a.geojson", iter([written_feature(Object("x", ""), crop, transform)]), "EPSG:32633")
    with pytest.raises(ValueError, match=f"a.geojson: urn:ogc:def:crs:EPSG::32633, and .*{message}"):
        open_records(tmp_path)


def test_geojson_takes_the_objects_of_the_slice_that_is_read(tmp_path):
    planes = [{"c": -1, "z": 0, "t": 0}, {"c": -1, "z": 2, "t": 0}, {"c": 1, "z": 0, "t": 1}, None]
    features = [feature(PLAIN["a"][0]) for _ in planes]
    for entry, plane in zip(features, planes, strict=True):
        entry["geometry"]["plane"] = plane
    write_json(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": features})
    values = np.random.default_rng(0).integers(0, 255, (3, HEIGHT, WIDTH), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": "ZYX"})
    records = open_records(tmp_path)
    assert [parsed.place for parsed in records.pictures[0].objects] == ["feature 1", "feature 4"]
    left_out = faults(records)["objects lie on other slices or times than the first one, which is read"]
    assert left_out == ["a.geojson: feature 2", "a.geojson: feature 3"]
    tifffile.imwrite(tmp_path / "a.tif", values[0])
    assert len(open_records(tmp_path).pictures[0].objects) == 4, "a slice that was saved for itself"


def test_geojson_island_in_a_hole_and_names(tmp_path):
    picture(tmp_path / "a.png")
    ring, island = Truth("x", ((2, 2, 30, 30),), (6, 6, 26, 26)), Truth("x", ((12, 12, 20, 20),))
    value = feature(ring)
    value["geometry"] = {
        "type": "MultiPolygon",
        "coordinates": [feature(t)["geometry"]["coordinates"] for t in (ring, island)],
    }
    value["properties"] = {"object_type": "annotation", "classification": {"names": ["Tumor", "Positive"]}}
    bare = {"type": "Feature", "id": "PathCellObject", "geometry": feature(island)["geometry"], "properties": None}
    bare["geometry"]["coordinates"] = [[[x, y + 20, 0] for x, y in r] for r in bare["geometry"]["coordinates"]]
    write_json(tmp_path / "a.png.geojson", [value, bare])
    found = {o.name: utils.rle_to_mask(o.mask(HEIGHT, WIDTH)) for o in open_records(tmp_path).pictures[0].objects}
    assert (found["Tumor: Positive"] == (ring.mask() | island.mask())).all()
    assert found[""].sum() == 64
    assert geojson.features_of({"type": "Topology"}) is None
