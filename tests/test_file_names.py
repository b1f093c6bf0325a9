"""Names in annotation files from other machines: the file that each one means, and never one outside of the folder."""

import json
import logging
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from data import file_names
from data.file_names import find_files, name_in_entry
from data.formats.coco import CocoDataset

CASES = Path(__file__).parents[2] / "shared" / "cases" / "annotations"
NFC, NFD = unicodedata.normalize("NFC", "é1.png"), unicodedata.normalize("NFD", "é1.png")


@pytest.fixture
def folder(tmp_path):
    """Makes files: folder("a/b.png") returns the folder that has it."""
    root = tmp_path / "images"
    root.mkdir()

    def make(*names):
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    return make


@pytest.mark.parametrize(
    ("files", "name", "path", "rules"),
    [
        (["im1.png"], "im1.png", "im1.png", ""),
        (["a/im1.png"], "a/im1.png", "a/im1.png", ""),
        (["a/im1.png"], "a\\im1.png", "a/im1.png", ""),
        (["a/im1.png"], "./a/im1.png", "a/im1.png", ""),
        (["im%201.png"], "im%201.png", "im%201.png", ""),
        (["im1.png"], "images/im1.png", "im1.png", file_names.FOLDERS),
        (["im1.png"], "/home/other/images/im1.png", "im1.png", file_names.FOLDERS),
        (["im1.png"], "/im1.png", "im1.png", file_names.FOLDERS),
        (["a/im1.png"], "D:\\data\\a\\im1.png", "a/im1.png", file_names.FOLDERS),
        (["a/im1.png"], "\\\\server\\share\\a\\im1.png", "a/im1.png", file_names.FOLDERS),
        (["a/im1.png"], "../images/a/im1.png", "a/im1.png", file_names.FOLDERS),
        (["im1.png"], "IM1.PNG", "im1.png", file_names.CASE),
        (["A/Im1.PNG"], "a/im1.png", "A/Im1.PNG", file_names.CASE),
        (["im 1.png"], "im%201.png", "im 1.png", file_names.CODES),
        (["a/im1.png"], "a%2Fim1.png", "a/im1.png", file_names.CODES),
        (["é.png"], "%C3%A9.png", "é.png", file_names.CODES),
        (["im1.png"], "im1.jpg", "im1.png", file_names.SUFFIX),
        (["im1.jpeg"], "IM1.JPG", "im1.jpeg", file_names.SUFFIX),
        (["im1.png"], "im1", "im1.png", file_names.SUFFIX),
        (["im1.png"], "x/im1.jpg", "im1.png", f"{file_names.FOLDERS}, {file_names.SUFFIX}"),
        ([NFD], NFC, NFD, file_names.UNICODE),
        ([NFC], NFD, NFC, file_names.UNICODE),
        (["im1.png"], "http://images.cocodataset.org/train2017/im1.png", "im1.png", file_names.FOLDERS),
        (["train2017/im1.png", "im1.png"], "http://x.org/train2017/im1.png", "train2017/im1.png", file_names.FOLDERS),
        (["im 1.png"], "https://x.org/a/im%201.png?key=../b", "im 1.png", f"{file_names.CODES}, {file_names.FOLDERS}"),
        (["a/b/im1.png"], "im1.png", "a/b/im1.png", file_names.ANYWHERE),
        (["a/im1.png", "b/im1.png"], "x/b/im1.png", "b/im1.png", file_names.FOLDERS),
        (["c/a/im1.png", "c/b/im1.png"], "x/b/im1.png", "c/b/im1.png", file_names.ANYWHERE),
        (["im1.png", "old/im1.png"], "images/im1.png", "im1.png", file_names.FOLDERS),
        (["im1.png", "IM1.png"], "x/IM1.png", "IM1.png", file_names.FOLDERS),
        (["train\\im1.png"], "train/im1.png", "train\\im1.png", ""),  # unpacked from an archive of Windows
    ],
)
def test_a_name_means_one_file(folder, caplog, files, name, path, rules):
    root = folder(*files)
    (match,) = find_files(root, [name])
    assert match.path == path
    assert (root / path).is_file()
    assert ", ".join(match.rules) == rules or (not rules and "\\" in path)
    if rules:
        assert f"1 of 1 images were found under other names than the file says: 1 {rules}" in caplog.text
    elif "\\" not in path:
        assert caplog.text == ""


@pytest.mark.parametrize(
    ("files", "name", "candidates"),
    [
        (["a/im1.png", "b/im1.png"], "im1.png", ("a/im1.png", "b/im1.png")),
        (["a/im1.png", "b/im1.png"], "x/im1.png", ("a/im1.png", "b/im1.png")),
        (["im1.png", "im1.tif"], "im1.jpg", ("im1.png", "im1.tif")),
        (["IM1.png", "im1.PNG"], "im1.png", ("IM1.png", "im1.PNG")),
    ],
)
def test_a_name_that_fits_several_files_is_named(folder, files, name, candidates):
    (match,) = find_files(folder(*files), [name])
    assert (match.path, match.candidates) == (None, candidates)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["im1.png"], "im2.png"),
        (["im1.png"], ""),
        (["im1.png"], None),
        (["im1.png"], 1),
        (["im1.png"], "."),
        (["im1.png"], "im1.png/x"),
        (["im1.png"], "nul\0.png"),
        (["im1.png"], "\ud800.png"),
        (["im1.png"], "http://[broken"),
        (["im1.txt"], "im1.jpg"),  # a file of labels is no image
        (["masks/im1.png"], "im1.jpg"),  # nor is a mask in another folder
        (["im1.png"], "im1.v2"),
        ([], "im1.png"),
    ],
)
def test_a_name_that_means_nothing(folder, caplog, files, name):
    (match,) = find_files(folder(*files), [name])
    assert match.path is None
    assert not match.candidates
    assert caplog.text == ""


def test_no_folder_at_all(tmp_path):
    assert find_files(tmp_path / "nowhere", ["a.png"])[0].path is None


@pytest.mark.parametrize("name", ["secret.png", "../secret.png", "%2e%2e/secret.png", "x/../../secret.png",
                                  "/tmp/secret.png", "link.png", "LINK.PNG", "x/link.png"])  # fmt: skip
def test_no_rule_leads_out_of_the_folder(folder, name):
    root = folder("im1.png")
    (root.parent / "secret.png").touch()
    (root.parent / "outside").mkdir()
    (root.parent / "outside" / "secret.png").touch()
    (root / "linked").symlink_to(root.parent / "outside")
    (root / "a").mkdir()
    (root / "a" / "link.png").symlink_to(root.parent / "secret.png")
    assert find_files(root, [name])[0].path is None


def test_links_inside_of_the_folder_count_once(folder):
    root = folder("a/im1.png")
    (root / "b").symlink_to(root / "a")
    (root / "loop").symlink_to(root)
    (root / "other.png").symlink_to(root / "a" / "im1.png")
    assert find_files(root, ["x/im1.png"])[0].path == "a/im1.png"
    assert find_files(root, ["x/other.png"])[0].path == "other.png"
    assert find_files(root, ["b/im1.png"])[0].path == "b/im1.png", "the exact name may use the owner's link"


def test_two_names_do_not_mean_one_file(folder):
    """Two videos with the same names of frames, and the frames of one of them."""
    matches = find_files(folder("1.png", "2.png"), ["video1/1.png", "video2/1.png", "2.png", "video1/2.png"])
    assert [match.path for match in matches] == [None, None, "2.png", None]
    assert matches[0].candidates == ("1.png",)
    twice = find_files(folder(), ["x/1.png", "x/1.png"])
    assert [match.path for match in twice] == ["1.png"] * 2, "the same name twice is no contradiction"


def test_the_files_are_listed_only_if_a_name_is_missing(folder, monkeypatch):
    root = folder("a/1.png", "a/2.png", "b/3.png")
    monkeypatch.setattr(file_names, "FileIndex", lambda folder: pytest.fail("was listed"))
    assert [match.path for match in find_files(root, ["a/1.png", "b/3.png"])] == ["a/1.png", "b/3.png"]


def test_the_work_is_bounded(folder, monkeypatch, caplog):
    root = folder(*[f"{number}/image.png" for number in range(150)])
    (match,) = find_files(root, ["image.png"])
    assert match.path is None
    assert len(match.candidates) == 150
    assert find_files(root, ["x/77/image.png"])[0].path == "77/image.png"
    monkeypatch.setattr(file_names, "MAX_FILES", 5)
    find_files(root, ["x/77/image.png"])
    assert "more than 5 files; the others are not looked at" in caplog.text


def test_messages_cannot_move_the_cursor(folder, caplog):
    find_files(folder("a\x1b[2J.png"), ["x/a\x1b[2J.png"])
    assert "a\\x1b[2J.png" in caplog.text
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"file_name": "a.png", "coco_url": "http://x/b.png"}, "a.png"),
        ({"file_name": "", "coco_url": "http://x/b.png"}, "http://x/b.png"),
        ({"id": 1, "path": "/data/a.png"}, "/data/a.png"),
        ({"filename": None, "flickr_url": "http://x/b.png"}, "http://x/b.png"),
        ({"id": 1}, None),
        ({"file_name": 7}, 7),
    ],
)
def test_entries_say_their_name_by_several_keys(entry, name):
    assert name_in_entry(entry) == name


############################################################
#  Data sets
############################################################


def write(path, names, key="file_name"):
    """A file of three images with an object each."""
    box = [10, 10, 20, 20]
    ring = [10, 10, 30, 10, 30, 30, 10, 30]
    images = [{"id": i, key: name, "height": 60, "width": 80} for i, name in enumerate(names, start=1)]
    objects = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0, "segmentation": [ring]}
        for i in range(1, len(names) + 1)
    ]
    contents = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    path.write_text(json.dumps(contents))


def load(json_path, folder):
    dataset = CocoDataset()
    dataset.load_annotations(json_path, folder)
    dataset.prepare()
    return dataset


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("C:\\Users\\me\\im{}.PNG", "file_name"),
        ("http://images.cocodataset.org/train2017/im{}.png", "coco_url"),
        ("/datasets/mine/im{}.png", "path"),
    ],
)
def test_a_data_set_of_another_machine_is_read(tmp_path, caplog, pattern, key):
    (tmp_path / "images").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (80, 60), (number, 0, 0)).save(tmp_path / "images" / f"im{number}.png")
    write(tmp_path / "ann.json", [pattern.format(number) for number in (1, 2, 3)], key)
    dataset = load(tmp_path / "ann.json", tmp_path / "images")
    assert [dataset.load_image(i)[0, 0, 0] for i in range(3)] == [1, 2, 3]
    assert dataset.skipped == {}
    assert "3 of 3 images were found under other names than the file says" in caplog.text


def test_an_ambiguous_image_is_left_out_and_named(tmp_path):
    for name in ("a/im1.png", "b/im1.png", "im2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60)).save(tmp_path / "images" / name)
    write(tmp_path / "ann.json", ["im1.png", "im2.png"])
    dataset = load(tmp_path / "ann.json", tmp_path / "images")
    assert dataset.num_images == 1
    (labels,) = dataset.lost_images.values()
    assert labels == ["im1.png (a/im1.png, b/im1.png)"]


def test_advice_where_nothing_matches_is_safe(tmp_path):
    """It names both sides, and moves, deletes and downloads nothing."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "other.txt").touch()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "im1.png").touch()
    write(tmp_path / "ann.json", ["/home/me/im1.png"])
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path / "ann.json", tmp_path / "images")
    message = str(caught.value)
    assert f"{tmp_path}/images has none of the images, such as '/home/me/im1.png'. It has 'other.txt'." in message
    assert f"{tmp_path}/pictures has it: give this folder as image_dir." in message
    assert not any(word in message for word in ("move", "cocodataset", "--download"))


def test_a_data_set_in_cocos_folders_is_not_called_coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images" / "train2017").mkdir(parents=True)
    (tmp_path / "images" / "train2017" / "im1.png").touch()
    write(tmp_path / "annotations" / "instances_train2017.json", ["im1.png"])
    with pytest.raises(FileNotFoundError) as caught:
        CocoDataset().load_coco(tmp_path, "train", 2017)
    message = str(caught.value)
    link = f"ln -s {tmp_path}/images/train2017 {tmp_path}/train2017"
    assert f"A link makes it known: {link}" in message
    assert "cocodataset" not in message
    os.symlink(*link.split()[2:])
    dataset = CocoDataset()
    dataset.load_coco(tmp_path, "train", 2017)
    assert len(dataset.image_info) == 1


@pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not beside this checkout")
@pytest.mark.parametrize("case", ["10_lvis_coco_url", "10c_prefix_images", "10g_upper", "10p_nfc_nfd"])
def test_the_cases_are_read(tmp_path, caplog, case):
    folder = CASES / case / "images"
    if case == "10p_nfc_nfd":  # git cannot store its pictures' names everywhere
        folder = tmp_path
        for number in (1, 2, 3):
            source = CASES / "10g_upper" / "images" / f"im{number}.png"
            shutil.copy(source, tmp_path / unicodedata.normalize("NFD", f"é{number}.png"))
    caplog.set_level(logging.WARNING)
    dataset = load(CASES / case / "ann.json", folder)
    assert dataset.num_images == 3
    assert dataset.lost_images == {}
    assert [dataset.load_image(i).shape for i in range(3)] == [(60, 80, 3)] * 3
    assert "3 of 3 images were found under other names" in caplog.text
