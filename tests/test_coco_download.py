"""Downloads of COCO, from a server with archives of a few images: what is fetched, resumed, checked and unpacked."""

import hashlib
import io
import json
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from http_server import FileServer

import utils
from data.coco_files import ARCHIVES, BASE_URL, Archive, download_coco, missing_annotations
from data.formats.coco import CocoDataset

IMAGES = {"train": [1, 2, 3], "val": [4, 5]}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def instances(numbers, year) -> bytes:
    names = {number: (f"COCO_val2014_{number}.jpg" if year == 2014 else f"{number}.jpg") for number in numbers}
    ring = [1, 1, 9, 1, 9, 9]
    return json.dumps(
        {
            "images": [{"id": number, "file_name": names[number], "height": 10, "width": 10} for number in numbers],
            "categories": [{"id": 1, "name": "person"}],
            "annotations": [
                {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 36, "bbox": [1, 1, 8, 8],
                 "segmentation": [ring]}
                for number in numbers
            ],
        }
    ).encode()  # fmt: skip


def archives() -> dict[str, dict[str, bytes]]:
    """What is in each archive. 2017's val has 4 and 5, and 2014's val 6 besides."""
    pixels = b"no JPEG" * 1000
    return {
        "annotations2017": {f"annotations/instances_{name}2017.json": instances(IMAGES[name], 2017) for name in IMAGES},
        "annotations2014": {"annotations/instances_val2014.json": instances([6, 4, 5], 2014)},
        "train2017": {f"train2017/{number}.jpg": pixels for number in IMAGES["train"]},
        "val2017": {f"val2017/{number}.jpg": pixels for number in IMAGES["val"]},
        "val2014": {f"val2014/COCO_val2014_{number}.jpg": pixels for number in (4, 5, 6)},
    }


@pytest.fixture
def server(monkeypatch):
    """COCO's server, as far as the module knows."""
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("weights.download.BACKOFF", 0)
    with FileServer(b"no such file") as file_server:
        monkeypatch.setattr("data.coco_files.BASE_URL", f"{file_server.root}/")
        for name, files in archives().items():
            publish(file_server, monkeypatch, name, zipped(files), sum(".jpg" in file for file in files))
        yield file_server


def publish(server, monkeypatch, name, content, images) -> None:
    path = ARCHIVES[name].path
    server.files[f"/{path}"] = content
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        unpacked = sum(member.file_size for member in opened.infolist())
    archive = Archive(path, len(content), unpacked, hashlib.sha256(content).hexdigest(), images)
    monkeypatch.setitem(ARCHIVES, name, archive)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "new" / "coco"


def get(root, subset="val", year=2017, **options) -> Path:
    return download_coco(root, subset, year, **{"progress": False, **options})


def asked(server) -> list[str]:
    """The archives that were asked for since the last call."""
    paths = [Path(path).name for path, _ in server.requests]
    server.requests.clear()
    return paths


def files_of(root) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


VAL = {
    "annotations/instances_train2017.json", "annotations/instances_val2017.json", "val2017/4.jpg", "val2017/5.jpg",
}  # fmt: skip


def test_the_facts_as_published():
    """Sizes and hashes are of the files themselves; a digit that is wrong costs whoever downloads 19 GB."""
    assert BASE_URL == "http://images.cocodataset.org/"
    assert {name: (archive.size, archive.images) for name, archive in ARCHIVES.items()} == {
        "annotations2014": (252872794, 0),
        "annotations2017": (252907541, 0),
        "train2014": (13510573713, 82783),
        "val2014": (6645013297, 40504),
        "train2017": (19336861798, 118287),
        "val2017": (815585330, 5000),
    }
    assert {name: archive.sha256[:8] + archive.sha256[-4:] for name, archive in ARCHIVES.items()} == {
        "annotations2014": "031296bbf009",
        "annotations2017": "113a836d0268",
        "train2014": "ede4087e1775",
        "val2014": "fe9be816fde0",
        "train2017": "69a8bb58d929",
        "val2017": "4f7e2ccb2f05",
    }
    for name, archive in ARCHIVES.items():
        assert len(archive.sha256) == 64
        assert Path(archive.path).name == (f"{name}.zip" if archive.images else f"annotations_trainval{name[-4:]}.zip")
        assert archive.unpacked >= archive.size


def test_download(server, root):
    assert get(str(root)) == root
    assert files_of(root) == VAL  # no archive, part or lock
    assert asked(server) == ["annotations_trainval2017.zip", "val2017.zip"]
    get(root)
    assert asked(server) == []
    get(root, "train")
    assert asked(server) == ["train2017.zip"]
    assert files_of(root) == VAL | {f"train2017/{number}.jpg" for number in IMAGES["train"]}


def test_what_is_printed(server, root, capsys):
    get(root, progress=True)
    out = capsys.readouterr().out
    assert f"{server.root}/zips/val2017.zip (0.0 GB) -> {root}" in out
    assert f"{root / 'val2017.zip'} is unpacked and deleted" in out
    shutil.rmtree(root)
    get(root, progress=False)
    assert capsys.readouterr() == ("", "")


def test_archives_may_be_kept(server, root):
    get(root, keep_zip=True)
    assert files_of(root) == VAL | {"annotations_trainval2017.zip", "val2017.zip"}


def test_an_archive_that_is_there_is_used(server, root):
    root.mkdir(parents=True)
    (root / "val2017.zip").write_bytes(server.files["/zips/val2017.zip"])
    get(root)
    assert asked(server) == ["annotations_trainval2017.zip"]
    assert files_of(root) == VAL


def test_a_connection_that_drops(server, root):
    """What came stays; the next request asks for the rest."""
    server.drops = [None, 500, 300]
    get(root)
    ranges = server.asked("Range")
    assert ranges == [None, None, "bytes=500-", "bytes=800-"]
    assert files_of(root) == VAL


def test_a_download_that_was_cut_off_goes_on(server, root):
    server.drops = [None, 500, 0, 0, 0]
    with pytest.raises(ConnectionError, match="500 bytes are kept"):
        get(root)
    assert (root / "val2017.zip.part").stat().st_size == 500
    asked(server)
    get(root)
    assert server.asked("Range") == ["bytes=500-"]
    assert files_of(root) == VAL


def test_a_wrong_hash(server, root):
    content = bytearray(server.files["/zips/val2017.zip"])
    content[200] ^= 1
    server.files["/zips/val2017.zip"] = bytes(content)
    with pytest.raises(ValueError, match=r"val2017\.zip does not have the sha256"):
        get(root)
    assert "val2017" not in {path.name for path in root.iterdir()}
    assert not {path.name for path in root.glob("val2017.zip*")} - {"val2017.zip.lock"}  # which locks nothing


@pytest.mark.parametrize("name", ["../x.jpg", "val2017/../../x.jpg", "/x.jpg", "..\\x.jpg"])
def test_an_archive_that_would_leave_the_folder(server, root, monkeypatch, name):
    """Even with the right hash."""
    content = zipped({"val2017/4.jpg": b"", name: b"evil"})
    publish(server, monkeypatch, "val2017", content, 2)
    with pytest.raises(ValueError, match="leaves the folder"):
        get(root)
    assert not list(root.parent.parent.rglob("x.jpg"))
    assert not (root / "val2017").exists()


def test_unpacking_that_was_interrupted_is_completed(server, root, monkeypatch):
    replace, left = utils.os.replace, [4]  # json, json, then the archive of images and one of them

    def stop(source, target):
        if Path(target).suffix == ".jpg":
            left[0] -= 3
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(utils.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        get(root)
    monkeypatch.setattr(utils.os, "replace", replace)
    assert files_of(root) == VAL - {"val2017/5.jpg"} | {"val2017.zip"}
    asked(server)
    get(root)
    assert asked(server) == []
    assert files_of(root) == VAL


def test_an_image_that_was_lost_is_fetched_again(server, root):
    get(root)
    (root / "val2017" / "4.jpg").rename(root / "val2017" / "4.jpg.77.part")  # as unpacking leaves it when it is killed
    asked(server)
    get(root)
    assert asked(server) == ["val2017.zip"]
    assert files_of(root) == VAL | {"val2017/4.jpg.77.part"}


def test_an_archive_without_what_it_should_have(server, root, monkeypatch):
    publish(server, monkeypatch, "val2017", zipped({"val2017/4.jpg": b""}), 2)
    with pytest.raises(ValueError, match="val2017 of COCO lacks files that it should have"):
        get(root)


def test_minival_needs_the_annotations_of_both_years(server, root):
    get(root, "minival", None)
    assert asked(server) == ["annotations_trainval2014.zip", "annotations_trainval2017.zip", "val2014.zip"]
    get(root, "valminusminival", "2014")
    assert asked(server) == []
    (root / "annotations" / "instances_val2017.json").unlink()
    (root / "annotations" / "instances_minival2014.json").write_bytes(instances([4], 2014))
    get(root, "minival", 2014)
    assert asked(server) == []


def test_load_coco_downloads(server, root, caplog):
    dataset = CocoDataset()
    dataset.load_coco(root, "val", auto_download=True)
    assert [info["path"] for info in dataset.image_info] == [str(root / "val2017" / f"{n}.jpg") for n in (4, 5)]
    dataset = CocoDataset()
    dataset.load_coco(root, "minival", auto_download=True)
    assert [info["id"] for info in dataset.image_info] == [4, 5]
    assert "has 2 images instead of" not in caplog.text  # as many as the archive is known to have
    asked(server)
    dataset.auto_download(root, "train", 2017)
    assert asked(server) == ["train2017.zip"]


def test_nothing_is_downloaded_unasked(server, root):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        CocoDataset().load_coco(root, "val")
    assert asked(server) == []
    assert not root.exists()


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("keep_zip", [False, True])
def test_room_on_the_disk(server, root, monkeypatch, keep_zip):
    """Both archives are unpacked; only a kept one lies beside what comes after it."""
    first, second = ARCHIVES["annotations2017"], ARCHIVES["val2017"]
    need = first.unpacked + second.unpacked + second.size + (first.size if keep_zip else 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, need - 1))
    with pytest.raises(OSError, match=r"COCO's annotations2017 and val2017 need up to .* GB in .* GB left; make room"):
        get(root, keep_zip=keep_zip)
    assert asked(server) == []
    assert not root.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, need))
    get(root, keep_zip=keep_zip)


def test_room_for_what_is_there_already_is_not_needed(server, root, monkeypatch):
    archive = ARCHIVES["val2017"]
    get(root)
    shutil.rmtree(root / "val2017")
    (root / "val2017.zip.part").write_bytes(server.files["/zips/val2017.zip"][:400])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, archive.size + archive.unpacked - 401))
    with pytest.raises(OSError, match="make room"):
        get(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, archive.size + archive.unpacked - 400))
    get(root)
    assert files_of(root) == VAL


def test_behind_a_proxy(server, root, monkeypatch):
    monkeypatch.setattr("data.coco_files.BASE_URL", "http://coco.invalid/")
    monkeypatch.setenv("http_proxy", server.root)
    server.files |= {f"http://coco.invalid{path}": content for path, content in server.files.items()}
    get(root)
    assert files_of(root) == VAL


def test_wrong_arguments(server, root):
    with pytest.raises(ValueError, match="subset must be one of"):
        get(root, "test")
    with pytest.raises(ValueError, match="year of the subset 'val' must be 2014 or 2017, not 2012"):
        get(root, "val", 2012)
    assert not root.exists()


def test_a_missing_file_of_another_data_set_is_not_downloaded(tmp_path):
    """Whoever has images of their own is not sent to 20 GB of COCO's."""
    for name, content in (("annotations/instances_train2017.json", b"{}"), ("train2017/cell 1.png", b"")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    message = str(missing_annotations(tmp_path, tmp_path / "annotations" / "instances_val2017.json", "val"))
    assert "annotations/instances_val2017.json, and its images in val2017/." in message
    assert "cocodataset" not in message
    assert "--download" not in message
    (tmp_path / "train2017" / "cell 1.png").rename(tmp_path / "train2017" / "000000000009.jpg")
    message = str(missing_annotations(tmp_path, tmp_path / "annotations" / "instances_val2017.json", "val"))
    assert "--download" in message
