"""Label images, binary masks, VOC, Cityscapes, Open Images and ImageJ's ROIs: small sets read to the same masks."""

import re

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
    check,
    corners,
    faults,
    numbers,
    picture,
    rle_text,
    roi,
    write_json,
    write_png,
    write_text,
    write_zip,
    xml,
)
from PIL import Image

import utils
from data.formats import binary_masks, label_images, voc
from data.images import read_mask, read_numbers
from data.numbered_names import _CLASSES, _NUMBERS, _UNCLEAR
from data.reading import Options
from data.recognise import open_records
from data.records import has_shape_of, nearest_pixels


def with_tiff(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, **options)


def image_tiffs(folder, **options):
    for stem in "abc":
        with_tiff(
            folder / f"{stem}.tif", np.random.default_rng(0).integers(0, 60000, (HEIGHT, WIDTH), np.uint16), **options
        )


############################################################
#  Label images
############################################################


def test_cellpose(tmp_path):
    for split, stems in {"train": "ac", "test": "b"}.items():
        for stem in stems:
            picture(tmp_path / split / f"{stem} 01.tif")
            suffix = "png" if stem == "a" else "tif"
            with_png = numbers(FLAT[stem]) * 7  # numbers with gaps
            write_png(tmp_path / split / f"{stem} 01_masks.{suffix}", with_png)
            write_png(tmp_path / split / f"{stem} 01_cp_masks.png", with_png)
            write_png(tmp_path / split / f"{stem} 01_flows.tif", with_png)
    (tmp_path / "train" / "a 01_seg.npy").write_bytes(b"\x93NUMPY a pickle")
    records = check(tmp_path, {f"{stem} 01": FLAT[stem] for stem in FLAT}, names=False)
    assert {p.split for p in records.pictures} == {"train", "test"}
    assert not faults(records)
    assert "_seg.npy files are pickles, which can run programs" in faults(records, "remark")


KINDS = {
    "uint8": (np.uint8, {}),
    "uint16": (np.uint16, {}),
    "int32": (np.int32, {}),
    "float32": (np.float32, {}),
    "big endian": (np.uint16, {"byteorder": ">"}),
    "BigTIFF": (np.uint32, {"bigtiff": True}),
    "deflate": (np.uint16, {"compression": "zlib"}),
    "ImageJ": (np.float32, {"imagej": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_stardist_label_images_of_any_type(tmp_path, kind):
    dtype, options = KINDS[kind]
    image_tiffs(tmp_path / "images")
    for stem, objects in FLAT.items():
        with_tiff(tmp_path / "masks" / f"{stem}.tif", numbers(objects, dtype), **options)
    assert not faults(check(tmp_path, FLAT, names=False))


@pytest.mark.parametrize(("image", "label"), [
    ("{}.ome.tif", "masks/{}.tif"), ("{}.tif", "masks/{}.ome.tif"), ("images/{}.ome.tif", "labels/{}_labels.ome.tif"),
    ("{}.tif", "{}-labels.tif"), ("images/{}.tif", "masks/{}_mask.tif"), ("x/images/{}.tif", "x/Labels/{}.tif"),
])  # fmt: skip
def test_names_of_label_images(tmp_path, image, label):
    for stem, objects in FLAT.items():
        with_tiff(tmp_path / image.format(f"{stem}_1"), np.zeros((HEIGHT, WIDTH), np.uint8))
        with_tiff(tmp_path / label.format(f"{stem}_1"), numbers(objects))
        picture(tmp_path / image.format(stem).replace(".ome.tif", ".png").replace(".tif", ".png"))
    records = open_records(tmp_path)
    labelled = {p.path.name.partition(".")[0]: len(p.objects) for p in records.pictures if p.is_labelled}
    assert labelled == {"a_1": 2, "b_1": 2, "c_1": 0}


def test_pictures_with_many_channels(tmp_path):
    for stem, shape in zip("abc", [(2, HEIGHT, WIDTH), (HEIGHT, WIDTH, 4), (5, HEIGHT, WIDTH)], strict=True):
        with_tiff(tmp_path / "images" / f"{stem}.tif", np.zeros(shape, np.uint16), photometric="minisblack")
        with_tiff(tmp_path / "masks" / f"{stem}.tif", numbers(FLAT[stem]))
    check(tmp_path, FLAT, names=False)


def test_label_images_of_colours_and_palettes(tmp_path):
    colours = np.array([[0, 0, 0], [250, 3, 9], [250, 3, 10]], np.uint8)
    for stem, objects in FLAT.items():
        picture(tmp_path / f"{stem}.jpg")
        if stem == "b":
            image = Image.fromarray(numbers(objects, np.uint8), mode="P") if False else Image.fromarray(
                numbers(objects, np.uint8))  # fmt: skip
            image.putpalette([0, 0, 0, 9, 9, 9, 9, 9, 9])  # the numbers count, not the colours
            image.save(tmp_path / "b_masks.png")
        else:
            write_png(tmp_path / f"{stem}_masks.png", colours[numbers(objects)])
    check(tmp_path, FLAT, names=False)


def test_label_images_that_are_none(tmp_path):
    image_tiffs(tmp_path / "images")
    with_tiff(tmp_path / "masks" / "a.tif", numbers(FLAT["a"]))
    with_tiff(tmp_path / "masks" / "b.tif", numbers(FLAT["b"], np.float32) + 0.5)
    with_tiff(tmp_path / "masks" / "c.tif", numbers(FLAT["b"], np.int32) - 1)
    found = faults(check(tmp_path, {"a": FLAT["a"]}, names=False), "error")
    assert "not whole" in found["label files cannot be read"][0]
    assert "negative" in found["label files cannot be read"][1]


@pytest.mark.parametrize("folder", ["", "sub/"])
@pytest.mark.parametrize("row", ["{},{},{}", "{};{};{}", "{};{}.0;{}", "{},{},{},0.9"])
def test_classes_of_label_images(tmp_path, folder, row):
    rows = [row[2].join(("file", "number", "class", "score"))]
    for stem, objects in FLAT.items():
        picture(tmp_path / folder / "images" / f"{stem}.png")
        write_png(tmp_path / folder / "masks" / f"{stem}.png", numbers(objects))
        slash = "\\" if stem == "b" else "/"
        rows += [row.format(f"masks{slash}{stem}.png", i, item.name) for i, item in enumerate(objects, 1)]
    write_text(tmp_path / folder / "classes.csv", "\n".join(rows))
    assert not faults(check(tmp_path, FLAT))
    write_text(tmp_path / folder / "classes.csv", "\n".join(rows[:-1]))
    records = open_records(tmp_path)
    assert faults(records) == {label_images._NO_ROW.what: [f"{folder}masks/b.png: number 2"]}
    write_text(tmp_path / folder / "classes.csv", "name,class\na,cat\n")
    records = open_records(tmp_path)
    assert faults(records, "remark") == {label_images._OTHER_TABLE.what: [f"{folder}classes.csv"]}


def test_jpeg_label_images_are_refused(tmp_path):
    for stem in "abc":
        picture(tmp_path / "images" / f"{stem}.png")
        write_png(tmp_path / "masks" / f"{stem}.jpg", numbers(FLAT[stem], np.uint8) * 20)
    with pytest.raises(ValueError, match=r"label images are JPEG, which changes their numbers: masks/a\.jpg"):
        open_records(tmp_path)


def test_foreground_masks(tmp_path):
    for stem, objects in PLAIN.items():
        picture(tmp_path / "images" / f"{stem}.png")
        write_png(tmp_path / "masks" / f"{stem}.png", (numbers(objects) > 0).astype(np.uint8) * 255)
    with pytest.raises(label_images.ForegroundMasks, match=r"\(255\), as in masks/a.png.* have 4 connected parts"):
        open_records(tmp_path)
    records = open_records(tmp_path, options=Options(split_parts=True))
    assert {p.path.stem: len(p.objects) for p in records.pictures} == {"a": 2, "b": 2, "c": 0}
    assert "masks have one number for all objects" in faults(records)


def test_objects_of_several_parts_are_counted(tmp_path):
    for stem, objects in HOLED.items():
        picture(tmp_path / "images" / f"{stem}.png")
        write_png(tmp_path / "masks" / f"{stem}.png", numbers(objects))
    truth = {"a": HOLED["a"], "b": HOLED["b"][1:], "c": []}
    records = open_records(tmp_path)
    assert faults(records, "remark") == {label_images._SPLIT.what: ["masks/a.png: 1 parts more than objects"]}
    assert len(records.pictures) == len(truth)


def test_transparency_of_masks(tmp_path):
    square = np.zeros((9, 9), np.uint8)
    square[2:5, 3:7] = 255
    white, opaque = np.full_like(square, 255), np.full_like(square, 255)
    cases = {
        "cut out": (np.dstack([white, white, white, square]), square),
        "black cut out": (np.dstack([square * 0] * 3 + [square]), square),
        "opaque": (np.dstack([square, square, square, opaque]), square),
        "gray": (np.dstack([square, opaque]), square),
        "transparent throughout": (np.dstack([square, square, square, square * 0]), square),
    }
    for name, (values, expected) in cases.items():
        Image.fromarray(values).save(tmp_path / "x.png")
        assert (label_images.one_channel(read_numbers(tmp_path / "x.png")) == expected).all(), name
    assert label_images.one_channel(np.zeros((0, 0, 4))).shape == (0, 0)


@pytest.mark.parametrize("photometric", ["miniswhite", "minisblack"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int32", "float32"])
def test_the_numbers_of_a_tiff_count_not_whether_it_shows_0_as_white(dtype, photometric, tmp_path):
    """tifffile writes bool arrays so that 0 is white, and so do fax and some lookup tables."""
    values = np.zeros((9, 9), dtype)
    values[2:5, 3:7] = 1
    tifffile.imwrite(tmp_path / "x.tif", values, photometric=photometric)
    numbers = label_images.one_channel(read_numbers(tmp_path / "x.tif"))
    assert set(np.unique(numbers)) == ({0, 255} if dtype == "bool" else {0, 1})
    assert ((numbers > 0) == (values > 0)).all()
    assert (read_mask(tmp_path / "x.tif") == (values > 0)).all()
    Image.fromarray(values > 0).save(tmp_path / "x.tif", compression="group4")
    assert (read_mask(tmp_path / "x.tif") == (values > 0)).all()


def test_numbers_of_and_objects_of():
    values = numbers(FLAT["a"]).astype(np.int64)
    values[values == 2] = 2**40  # memory does not grow with the largest number
    found = list(label_images.objects_of(values))
    assert [parsed.place for parsed in found] == ["number 1", f"number {2**40}"]
    assert (utils.rle_to_mask(found[0].rle) == FLAT["a"][0].mask()).all()
    assert list(label_images.objects_of(np.zeros((0, 4), np.int64))) == []
    with pytest.raises(ValueError, match="colours"):
        label_images.numbers_of(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    assert label_images.label_stem("x/cell 1_cp_masks.tif") == "cell 1"
    assert label_images.one_channel(np.ones((2, 3, 3), np.uint8)).shape == (2, 3)


def test_pickles_are_never_read(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a_seg.npy").write_bytes(b"cos\nsystem\n(S'touch /tmp/harm'\ntR.")
    with pytest.raises(ValueError, match="Save masks as PNG/tif"):
        open_records(tmp_path)


############################################################
#  Binary masks
############################################################


@pytest.mark.parametrize("has_masks", [True, False])
def test_data_science_bowl(tmp_path, has_masks):
    rows = ["ImageId,EncodedPixels"]
    for stem, objects in PLAIN.items():
        name = stem * 64
        image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 4), np.uint8)
        write_png(tmp_path / "stage1_train" / name / "images" / f"{name}.png", image)
        for number, item in enumerate(objects):
            if has_masks:
                mask = item.mask().astype(np.uint8) * 255
                write_png(tmp_path / "stage1_train" / name / "masks" / f"{number:x}{'0f' * 31}.png", mask)
            rows.append(f"{name},{rle_text(item.mask())}")
        if not objects:
            rows.append(f"{name},")
    write_text(tmp_path / "stage1_train_labels.csv", "\n".join([*rows, f"{'a' * 64},5 99999", f"{'a' * 64},x y"]))
    records = check(tmp_path, {stem * 64: objects for stem, objects in PLAIN.items()}, names=False)
    assert {p.split for p in records.pictures} == {"train"}
    assert len(records.pictures) == 3
    assert len(faults(records, "error").get("objects cannot be used", [])) == (0 if has_masks else 2)


def test_rle_of_columns():
    mask = PLAIN["a"][0].mask()
    assert (binary_masks.rle_of_columns(rle_text(mask), HEIGHT, WIDTH) == mask).all()
    with pytest.raises(ValueError, match="beyond"):
        binary_masks.rle_of_columns("1 9223372036854775807", HEIGHT, WIDTH)


@pytest.mark.parametrize("layout", ["{stem}/{name}_{number:03}", "{stem}_{name}_{number}", "{name}/{stem}_{number}",
                                    "{stem}/{name}/{number}", "{stem}/mask_{number}_{name}"])  # fmt: skip
def test_binary_masks_by_hand(tmp_path, layout):
    for stem, objects in HOLED.items():
        picture(tmp_path / "images" / f"im 1.{stem}.jpg")
        for number, item in enumerate(objects, 1):
            name = layout.format(stem=f"im 1.{stem}", name=item.name, number=number)
            values = item.mask().astype(np.uint8) * (1 if number == 1 else 255)
            write_png(tmp_path / "masks" / f"{name}.png", np.stack([values] * 3, 2) if number == 2 else values)
    name = layout.format(stem="im 1.a", name="cat", number=9)
    write_png(tmp_path / "masks" / f"{name}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    records = check(tmp_path, {f"im 1.{stem}": objects for stem, objects in HOLED.items()})
    assert faults(records) == {"mask files are all black": [f"masks/{name}.png"]}


def test_binary_masks_of_another_size_and_jpeg(tmp_path):
    for stem, objects in PLAIN.items():
        picture(tmp_path / "images" / f"{stem}.png")
        for number, item in enumerate(objects):
            write_png(tmp_path / "masks" / stem / f"{item.name}{number}.jpg", item.mask().astype(np.uint8) * 255)
    write_png(tmp_path / "masks" / "a" / "cat_9.png", np.full((9, 9), 255, np.uint8))
    records = check(tmp_path, PLAIN, 0.95)
    assert faults(records, "error") == {"mask files are of another size than their picture":
                                        ["masks/a/cat_9.png: 9 x 9 instead of 48 x 40"]}  # fmt: skip


@pytest.mark.parametrize("factor", [2, 3])
def test_binary_masks_of_pictures_that_were_scaled(tmp_path, factor):
    for stem, objects in PLAIN.items():
        picture(tmp_path / "images" / f"{stem}.png")
        for number, item in enumerate(objects):
            values = np.kron(item.mask(), np.ones((factor, factor))).astype(np.uint8) * 255
            write_png(tmp_path / "masks" / stem / f"{item.name}_{number}.png", values)
    records = check(tmp_path, PLAIN)
    scaled = faults(records, "warning")["mask files have another size than their picture, by one factor"]
    assert len(scaled) == sum(map(len, PLAIN.values()))
    assert scaled[0].endswith(f"{WIDTH * factor} x {HEIGHT * factor} instead of {WIDTH} x {HEIGHT}")


def test_nearest_pixels_are_those_of_centres():
    mask = np.array([[True, False], [False, True]])
    assert (nearest_pixels(mask, (4, 4)) == np.kron(mask, np.ones((2, 2), bool))).all()
    assert nearest_pixels(np.kron(mask, np.ones((3, 3), bool)), (2, 2)).tolist() == mask.tolist()
    assert nearest_pixels(mask, (1, 3)).tolist() == [[False, True, True]]
    assert has_shape_of((100, 200), (50, 100))
    assert has_shape_of((999, 2000), (500, 1000))
    assert not has_shape_of((100, 200), (100, 100))


SETS_OF_NAMES = {  # {picture: names of masks}: classes, what is said
    "a number behind the digits": ("type1_001 type2_001", "type1_001", "type1 type2", _CLASSES),
    "twice in a picture": ("CD4 CD8 CD4_1 CD8_1", "", "CD4 CD8", _CLASSES),
    "folders": ("CD4/001 CD4/002 CD8/001", "CD4/1", "CD4 CD8", _CLASSES),
    "a count": ("cell1 cell2 cell3", "cell1 cell2", "cell", _NUMBERS),
    "a count from 0": ("cell0 cell1 cell2", "cell0", "cell", _NUMBERS),
    "a count of all classes together": ("cat1 dog2 cat3", "dog1 cat2", "cat dog", _NUMBERS),
    "a count of the whole set": ("cell1 cell2", "cell3 cell4", "cell", _NUMBERS),
    "a name without digits first": ("cell cell2 cell3", "cell cell2", "cell", _NUMBERS),
    "many used once": (" ".join(f"cell{i * i}" for i in range(1, 12)), "cell7", "cell", _NUMBERS),
    "gaps, and few over pictures": ("CD4 CD8", "CD4 CD8", "CD4 CD8", _CLASSES),
    "one of two alone": ("G1 G2", "G2", "G1 G2", _CLASSES),
    "two in each": ("G1 G2", "G1 G2", "G", _UNCLEAR),
    "others have a number behind": ("G1 G2 CD4_1 CD8_1", "G1 G2", "CD4 CD8 G1 G2", _CLASSES),
    "one with digits": ("p53 cat_1 cat_2", "p53", "cat p53", None),
    "one object a picture": ("cat1", "cat1", "cat", None),
    "numbers behind signs": ("cat_1 cat-2 dog.3", "cat-1", "cat dog", None),
    "masks and hashes": ("mask1 object_2 label03 cat_mask_7", f"{'0f' * 16} mask", " cat", None),
}


@pytest.mark.parametrize("kind", SETS_OF_NAMES)
def test_digits_of_classes_and_numbers_of_objects(tmp_path, kind):
    *of_pictures, classes, fault = SETS_OF_NAMES[kind]
    for stem, names in zip(("one", "two"), of_pictures, strict=True):
        picture(tmp_path / "images" / f"{stem}.png")
        for number, name in enumerate(names.split(" ") if names else ()):
            mask = Truth("", ((4, 5 + number, 20, 18 + number),)).mask()
            write_png(tmp_path / "masks" / stem / f"{name}.png", mask.astype(np.uint8) * 255)
    records = open_records(tmp_path, "binary_masks")
    assert {parsed.name for p in records.pictures for parsed in p.objects} == set(classes.split(" "))
    told = records.findings.places.keys() & {_CLASSES, _NUMBERS, _UNCLEAR}
    assert told == ({fault} if fault else set())


############################################################
#  VOC, Cityscapes, Open Images
############################################################

LABEL_MAP = {
    "plain": "# label:color_rgb:parts:actions\nbackground:::\ndog:::\ncat:::\n",
    "coloured": "background:0,0,0::\ndog:10,20,30::\ncat:200,100,0::\nvoid:1,1,1::\n",
}


@pytest.mark.parametrize("kind", ["palette", "plain", "coloured"])
def test_voc(tmp_path, kind):
    names = list(voc.CLASSES) if kind == "palette" else ["background", "dog", "cat"]
    colours = np.array([[0, 0, 0], [10, 20, 30], [200, 100, 0]], np.uint8) if kind == "coloured" else voc.palette()
    for stem, objects in FLAT.items():
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        if not objects:
            continue
        classes = np.zeros((HEIGHT, WIDTH), np.uint8)
        for item in objects:
            classes[item.mask()] = names.index(item.name)
        things = numbers(objects, np.uint8)
        if kind == "palette":
            things[0], classes[0] = 255, 255  # void
        for folder, values, table in (("Object", things, voc.palette()), ("Class", classes, colours)):
            image = Image.fromarray(values if kind == "palette" else table[values])
            if kind == "palette":
                image.putpalette(voc.palette().ravel().tolist())
            path = tmp_path / f"Segmentation{folder}" / f"{stem}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
    if kind != "palette":
        write_text(tmp_path / "labelmap.txt", LABEL_MAP[kind])
    picture(tmp_path / "JPEGImages" / "not_listed.jpg")
    write_text(tmp_path / "ImageSets" / "Segmentation" / "train.txt", "a\nc\n")
    write_text(tmp_path / "ImageSets" / "Segmentation" / "val.txt", "b\n")
    write_text(tmp_path / "ImageSets" / "Segmentation" / "trainval.txt", "a\nb\nc\n")
    write_text(tmp_path / "Annotations" / "a.xml", "<annotation><filename>a.jpg</filename><size/></annotation>")
    records = check(tmp_path, FLAT)
    labelled = {p.path.stem: p.split for p in records.pictures if p.is_labelled}
    assert labelled == {"a": "train", "b": "val", "c": "train"}
    assert not faults(records)
    assert ("pictures have pixels of void, 255" in faults(records, "remark")) == (kind == "palette")


def test_voc_two_exports_have_class_lists_of_their_own(tmp_path):
    for folder, stem, names in (("A", "a", ["background", "dog", "cat"]), ("B", "b", ["background", "cat", "dog"])):
        picture(tmp_path / folder / "JPEGImages" / f"{stem}.jpg")
        classes = np.zeros((HEIGHT, WIDTH), np.uint8)
        for item in FLAT[stem]:
            classes[item.mask()] = names.index(item.name)
        write_png(tmp_path / folder / "SegmentationObject" / f"{stem}.png", numbers(FLAT[stem], np.uint8))
        write_png(tmp_path / folder / "SegmentationClass" / f"{stem}.png", classes)
        write_text(tmp_path / folder / "labelmap.txt", ":::\n".join([*names, ""]))
    records = check(tmp_path, {stem: FLAT[stem] for stem in "ab"})
    assert faults(records, "remark") == {"class lists differ": ["A/labelmap.txt", "B/labelmap.txt"]}
    for folder in "AB":
        (tmp_path / folder / "more").mkdir()
        (tmp_path / folder / "labelmap.txt").rename(tmp_path / folder / "more" / "labelmap.txt")
    check(tmp_path, {stem: FLAT[stem] for stem in "ab"})  # the list that shares a folder with a label is its own
    (tmp_path / "A" / "more").rename(tmp_path / "C")
    (tmp_path / "B" / "more").rename(tmp_path / "D")
    with pytest.raises(ValueError, match=r"C/labelmap.txt and D/labelmap.txt differ, and neither is nearer to A/"):
        open_records(tmp_path)


def test_voc_palette():
    assert voc.palette()[[0, 1, 2, 15, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [224, 224, 192],
    ]  # fmt: skip


def test_voc_xml_of_supervision(tmp_path):
    for stem, objects in PLAIN.items():
        picture(tmp_path / "images" / f"{stem}.jpg")
        write_text(tmp_path / "annotations" / f"{stem}.xml", xml(stem, objects, True))
    write_text(
        tmp_path / "annotations" / "d.xml",
        "<!DOCTYPE x [<!ENTITY a 'b'>]><annotation><filename>a</filename></annotation>",
    )
    write_text(tmp_path / "annotations" / "e.xml", "<annotation><filename>a.jpg")
    found = faults(check(tmp_path, PLAIN), "error")["label files cannot be read"]
    assert "DOCTYPE" in found[0]
    assert "cut off" in found[1]


def test_voc_xml_object_of_two_parts(tmp_path):
    picture(tmp_path / "a.jpg")
    parts = ((4, 5, 20, 18), (24, 8, 40, 30))
    text = xml("a", [Truth("cat", parts)], True)
    write_text(tmp_path / "a.xml", re.sub("</object><object><name>cat</name><bndbox>.*?</bndbox>", "", text))
    check(tmp_path, {"a": [Truth("cat", parts)]})


def test_voc_boxes_are_no_masks(tmp_path):
    picture(tmp_path / "a.jpg")
    write_text(tmp_path / "a.xml", xml("a", PLAIN["a"], False))
    with pytest.raises(ValueError, match="boxes, 2 of them"):
        open_records(tmp_path)


@pytest.mark.parametrize("own", [False, True])
def test_cityscapes(tmp_path, own):
    classes = {"cat": 1, "dog": 2} if own else {"cat": 24, "dog": 26}
    for stem, objects in FLAT.items():
        picture(tmp_path / "leftImg8bit" / "train" / "city" / f"{stem}_000_leftImg8bit.png")
        values = np.full((HEIGHT, WIDTH), 7, np.uint16)  # road
        for number, item in enumerate(objects):
            values[item.mask()] = classes[item.name] * 1000 + number
        values[0, :5] = classes["cat"]  # a group
        write_png(tmp_path / "gtFine" / "train" / "city" / f"{stem}_000_gtFine_instanceIds.png", values)
    if own:
        write_text(tmp_path / "label_colors.txt", "0 0 0 background\n1 2 3 cat\n4 5 6 dog\n")
    records = open_records(tmp_path)
    assert {p.split for p in records.pictures} == {"train"}
    names = {"cat": "cat", "dog": "dog"} if own else {"cat": "person", "dog": "car"}
    for found in records.pictures:
        truth = FLAT[found.path.name[0]]
        read = sorted(o.name for o in found.objects if not o.is_crowd)
        assert read == sorted(names[item.name] for item in truth)
        assert sum(o.is_crowd for o in found.objects) == 1
        masks = [utils.rle_to_mask(o.mask(HEIGHT, WIDTH)) for o in found.objects if not o.is_crowd]
        assert sorted(m.sum() for m in masks) == sorted(item.mask().sum() for item in truth)


def test_open_images(tmp_path):
    rows = ["MaskPath,ImageID,LabelName,BoxID"]
    for stem, objects in PLAIN.items():
        picture(tmp_path / "train" / f"{stem}.jpg")
        for number, item in enumerate(objects):
            values = np.repeat(np.repeat(item.mask(), 2, 0), 2, 1)  # twice as large as the picture
            write_png(tmp_path / "masks" / f"{stem}_{number}.png", values.astype(np.uint8) * 255)
            rows.append(f"{stem}_{number}.png,{stem},/m/{item.name},x")
    write_text(tmp_path / "train-annotations-object-segmentation.csv", "\n".join([*rows, "gone.png,a,/m/cat,x"]))
    write_text(tmp_path / "class-descriptions.csv", "/m/cat,cat\n/m/dog,dog\n")
    records = check(tmp_path, PLAIN)
    assert {p.split for p in records.pictures if p.objects} == {"train"}
    assert "gone.png is not there" in faults(records)["objects cannot be used"][0]


############################################################
#  ImageJ's ROIs
############################################################


@pytest.mark.parametrize("layout", ["{}_RoiSet.zip", "{}.zip", "rois/RoiSet_{}.zip", "{}.tif.zip"])
def test_imagej(tmp_path, layout):
    for stem, objects in PLAIN.items():
        picture(tmp_path / f"im {stem}.tif")
        members = {f"{n}.roi": roi(item.parts[0], f"{item.name}-{n:04}") for n, item in enumerate(objects)}
        point = roifile.ImagejRoi.frompoints(np.array([[3, 4]]), name="dot")
        point.roitype = roifile.ROI_TYPE.POINT
        members |= {"__MACOSX/._0.roi": b"x", "bad.roi": b"Iout no", "dot.roi": point.tobytes()}
        write_zip(tmp_path / layout.format(f"im {stem}"), members)
    records = check(tmp_path, {f"im {stem}": objects for stem, objects in PLAIN.items()})
    assert len(faults(records)["objects cannot be used"]) == 3
    assert len(faults(records, "remark")["ROIs are points or lines"]) == 3


def test_imagej_shapes(tmp_path):
    picture(tmp_path / "a.tif")
    kinds = roifile.ROI_TYPE
    options = {"version": 227, "left": 4, "top": 6, "right": 24, "bottom": 16}
    oval, rect = (roifile.ImagejRoi(roitype=kind, name="", **options) for kind in (kinds.OVAL, kinds.RECT))
    points = np.array(corners((4.5, 6.5, 24.5, 16.5)), np.float32)
    fine = roifile.ImagejRoi.frompoints(points, name="fine")
    for number, item in enumerate((oval, rect, fine)):
        (tmp_path / f"a-{number}.roi").write_bytes(item.tobytes())
    found = open_records(tmp_path).pictures[0].objects
    areas = [utils.rle_area(parsed.mask(HEIGHT, WIDTH)) for parsed in found]
    assert areas == pytest.approx([np.pi * 50, 200, 200], rel=0.06)
    assert [parsed.name for parsed in found] == ["", "", "fine"]


@pytest.mark.parametrize(("axes", "shape", "first", "others"), [
    ("ZYX", (3,), [{"position": 0}, {}], [{"position": 2}, {"z_position": 3}]),
    ("TZCYX", (2, 3, 2), [{"position": 1}, {"z_position": 0, "t_position": 0}], [{"t_position": 1}, {"position": 5}]),
    ("CYX", (2,), [{"position": 1}, {"c_position": 1}], []),
    ("YX", (), [{"position": 4}, {"z_position": 2}], []),  # a slice that was saved for itself, with its ROIs
])  # fmt: skip
def test_imagej_takes_the_rois_of_the_slice_that_is_read(tmp_path, axes, shape, first, others):
    """Positions here count from 0, as roifile's own writer takes them."""
    values = np.random.default_rng(0).integers(0, 255, (*shape, HEIGHT, WIDTH), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": axes})
    members = {}
    for number, where in enumerate([*first, *others]):
        item = roifile.ImagejRoi.frombytes(roi(PLAIN["a"][0].parts[0], f"cell-{number:04}"))
        for name, value in where.items():
            setattr(item, name, value + 1)
        members[f"{number}.roi"] = item.tobytes()
    write_zip(tmp_path / "a.zip", members)
    records = open_records(tmp_path)
    assert len(records.pictures[0].objects) == len(first)
    left_out = faults(records).get("objects lie on other slices or times than the first one, which is read", [])
    assert len(left_out) == len(others)


def test_imagej_names(tmp_path):
    picture(tmp_path / "a.tif")
    names = {"0001-0234": "", "nucleus-0012": "nucleus", "12 cell": "cell", "cell": "cell", "roi 7": "", "-": "",
             "eac228b6-ecfc-11f1-8425-02fc00000001": "", "CD4-0001": "CD4", "CD8-0001": "CD8", "CD4": "CD4",
             "G1": "G1", "G2": "G2", "p53": "p53", "Roi3": ""}  # fmt: skip
    members = {f"{i}.roi": roi((4, 5 + i, 20, 18 + i), name) for i, name in enumerate(names)}
    write_zip(tmp_path / "a_RoiSet.zip", members)
    records = open_records(tmp_path)
    assert [parsed.name for parsed in records.pictures[0].objects] == list(names.values())
    assert faults(records, "remark")[_CLASSES.what] == ["CD4, CD8", "G1, G2"]
    assert not faults(records)


def test_imagej_pictures_that_end_in_digits_are_no_classes(tmp_path):
    for stem in ("cell1", "cell2"):
        picture(tmp_path / f"{stem}.tif")
        (tmp_path / f"{stem}_001.roi").write_bytes(roi((4, 5, 20, 18), f"{stem}_001"))
        (tmp_path / f"{stem}_002.roi").write_bytes(roi((4, 5, 20, 18), "cat-2"))
    assert [[o.name for o in p.objects] for p in open_records(tmp_path).pictures] == [["", "cat"]] * 2


def test_zip_files_of_other_things_are_no_labels(tmp_path):
    picture(tmp_path / "a.tif")
    write_zip(tmp_path / "a.zip", {"a.txt": b"x"})
    (tmp_path / "b.zip").write_bytes(b"PK no zip")
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="1 pictures and no labels"):
        open_records(tmp_path)
