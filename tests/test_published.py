"""Published checkpoints by name: addresses, hashes, spellings, and what their files do not say."""

import hashlib
import re
from urllib.parse import urlsplit

import pytest
import torch
from foreign_shapes import detectron2_shapes, without_memory
from helpers import random_image
from http_server import FileServer
from zoo_files import detectron2_state, zoo_bytes

from config import DETECTION, Config, settings_that
from weights.download import download, expected_digest
from weights.load import load_checkpoint, load_model
from weights.published import (
    _FILES,
    EMBEDDED,
    IMAGENET,
    MODEL_NAMES,
    PUBLISHED,
    Published,
    find_published,
    find_weights,
    some_names,
)

CONTENT = b"weights" * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()
OTHER_NAMES = {"coco": "ms_rcnn_r101_caffe_fpn_2x_coco", "best": "mask_rcnn_R_101_FPN_400ep_LSJ"}
ZOO = {name: published for name, published in PUBLISHED.items() if "dl.fbaipublicfiles.com" in published.url}
MMDET = {name: published for name, published in PUBLISHED.items() if "openmmlab" in published.url}

############################################################
#  The table
############################################################


def test_names_and_files_are_unique():
    """A file in models/ or in the cache is found by its name, so no two models may have the same."""
    records = {published.name: published for published in PUBLISHED.values()}
    assert len(records) == len(PUBLISHED) - len(OTHER_NAMES)
    for name, other in OTHER_NAMES.items():
        assert PUBLISHED[name] is PUBLISHED[other]
    assert all(published.name == name for name, published in PUBLISHED.items() if name not in OTHER_NAMES)
    everything = [*records.values(), *IMAGENET.values()]
    assert len({published.url for published in everything}) == len(everything)
    assert len({published.file_name for published in everything}) == len(everything)
    assert len(set(MODEL_NAMES)) == len(PUBLISHED) + len(EMBEDDED)


@pytest.mark.parametrize("published", [*PUBLISHED.values(), *IMAGENET.values()], ids=lambda published: published.url)
def test_addresses_and_hashes_are_well_formed(published):
    parts = urlsplit(published.url)
    assert (parts.scheme, parts.query, parts.fragment) == ("https", "", "")
    assert re.fullmatch(r"/[\w./-]+\.(pth|pkl|h5)", parts.path)
    assert published.style in ("caffe", "pytorch")
    assert published.note
    assert published.sha256 is None or published.url.endswith(f"-{published.sha256}.pth")
    assert published.md5 is None or published.url.endswith(f"/model_final_{published.md5}.pkl")
    assert (published.digest is None) == (published.name == "matterport"), "only Keras published no hash"


@pytest.mark.parametrize("published", ZOO.values(), ids=lambda published: published.name)
def test_detectron2s_models(published):
    _, config, number, file = published.url.removeprefix("https://dl.fbaipublicfiles.com/detectron2/").split("/")
    assert published.name.endswith(config)
    assert number.isdigit()
    assert file == f"model_final_{published.md5}.pkl"
    assert re.search(r"mask AP \d\d\.\d$", published.note)
    is_scratch_with_deviation = config.startswith("scratch_mask_rcnn_R_50_FPN_9x")
    has_deviation = "X_101" in config or is_scratch_with_deviation
    expected = (58.395, 57.12, 57.375) if has_deviation else None
    assert published.detection.get("STD_PIXEL") == expected
    assert (published.style == "pytorch") == (has_deviation or config.endswith("_gn"))


def test_the_zoos_table_is_that_of_the_specification():
    shared = EMBEDDED["shapes"].parents[2] / "shared" / "spec" / "detectron2.md"
    if not shared.is_file():
        pytest.skip("the shared folder with the specification is not there")
    rows = re.findall(r"^\| ([^|]*) \| (\S+\.pkl)[^|]* \| ?([\d.]*) \| ([\d.]*) \|$", shared.read_text(), re.MULTILINE)
    assert len(rows) == 15
    for name, path, box_ap, mask_ap in rows:
        published = next(zoo for zoo in ZOO.values() if zoo.url.endswith(path))
        assert published.name.removeprefix("lvis_").removeprefix("cityscapes_") in name
        assert (f"box AP {box_ap}, " in published.note) == bool(box_ap)
        assert published.note.endswith(f"mask AP {mask_ap}")


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_of_detection_are_valid(name):
    """Of the dialect that the file will have, and nothing that a conversion reads from the file."""
    settings = dict(PUBLISHED[name].detection)
    classes = len(settings["CLASS_NAMES"]) if "CLASS_NAMES" in settings else 81
    config = Config(NUM_CLASSES=classes, BACKBONE_STYLE=PUBLISHED[name].style, **settings)
    assert {setting: getattr(config, setting) for setting in settings} == settings
    assert set(settings) <= set(settings_that(DETECTION))
    assert not settings.keys() & {"NUM_CLASSES", "BACKBONE", "BACKBONE_STYLE", "DIALECT"}


def test_what_the_zoos_configs_change():
    cityscapes = PUBLISHED["cityscapes_mask_rcnn_R_50_FPN"].detection
    assert (cityscapes["IMAGE_MIN_DIM"], cityscapes["IMAGE_MAX_DIM"]) == (1024, 2048)
    assert cityscapes["CLASS_NAMES"][:4] == ("BG", "person", "rider", "car")
    assert len(cityscapes["CLASS_NAMES"]) == 9
    for name in ("R_50", "R_101", "X_101_32x8d"):
        lvis = PUBLISHED[f"lvis_mask_rcnn_{name}_FPN_1x"].detection
        assert (lvis["DETECTION_MIN_CONFIDENCE"], lvis["DETECTION_MAX_INSTANCES"]) == (0.0001, 300)


############################################################
#  Spellings
############################################################

SPELLINGS = {
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": "mask_rcnn_R_50_FPN_3x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml": "mask_rcnn_R_50_FPN_3x",
    "mask_rcnn_R_50_FPN_3x.yaml": "mask_rcnn_R_50_FPN_3x",
    "mask_rcnn_r_50_fpn_3x": "mask_rcnn_R_50_FPN_3x",
    "new_baselines/mask_rcnn_R_101_FPN_400ep_LSJ.py": "mask_rcnn_R_101_FPN_400ep_LSJ",
    "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml": "lvis_mask_rcnn_R_50_FPN_1x",
    "Cityscapes/mask_rcnn_R_50_FPN.yaml": "cityscapes_mask_rcnn_R_50_FPN",
    "mask-rcnn_r50-caffe_fpn_ms-poly-3x_coco": "mask_rcnn_r50_caffe_fpn_mstrain-poly_3x_coco",
    "mask-rcnn_x101-64x4d_fpn_ms-poly_3x_coco": "mask_rcnn_x101_64x4d_fpn_mstrain-poly_3x_coco",
    "ms-rcnn_r101-caffe_fpn_2x_coco": "ms_rcnn_r101_caffe_fpn_2x_coco",
    "BEST": "mask_rcnn_R_101_FPN_400ep_LSJ",
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_other_spellings_mean_the_same_model(text, monkeypatch):
    monkeypatch.setattr("weights.published._fetch", lambda published: published.name)
    assert find_weights(text) == SPELLINGS[text]
    assert find_published(text) is PUBLISHED[SPELLINGS[text]]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_name_and_every_address_of_the_zoo_is_found(name, monkeypatch):
    monkeypatch.setattr("weights.published._fetch", lambda published: published)
    published = PUBLISHED[name]
    assert find_weights(name) is published
    if name in ZOO:
        path = published.url.removeprefix("https://dl.fbaipublicfiles.com/detectron2/")
        for text in (published.url, path, f"detectron2://{path}"):
            assert find_weights(text) is published


def test_names_that_are_none_suggest_what_was_meant():
    for name, hint in (
        ("mask_rcnn_R_101_FPN_1x", r"; did you mean mask_rcnn_R_101_FPN_3x\?$"),
        ("shape", r"; did you mean shapes\?$"),
        ("imagnet", r"; did you mean imagenet\?$"),
        ("something", r" and \d+ more \(docs/models\.md\)$"),
    ):
        with pytest.raises(ValueError, match=hint) as caught:
            find_weights(name)
        assert str(caught.value).count("\n") == 0
    for path, hint in (
        ("downloads/model_final_f10217.pkl", r"model_final_f10217\.pkl is the file of mask_rcnn_R_50_FPN_3x, and that"),
        ("LVIS-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", r"did you mean lvis_mask_rcnn_R_50_FPN_1x\?$"),
        ("logs/mine.pth", r"none of coco, best, .* more \(docs/models\.md\) either$"),
    ):
        with pytest.raises(FileNotFoundError, match=hint):
            find_weights(path)
    assert all(name in PUBLISHED or name in EMBEDDED for name in some_names().split(" and ")[0].split(", "))


############################################################
#  md5
############################################################


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("weights.download.BACKOFF", 0)
    monkeypatch.setattr("weights.published.MODELS", tmp_path / "models")
    monkeypatch.setenv("MASKSCORING_CACHE", str(tmp_path / "cache"))
    with FileServer(CONTENT) as file_server:
        yield file_server


def offer(server, monkeypatch, md5=MD5[:6]) -> Published:
    """The zoo's model of the best numbers, on the local server."""
    url = f"{server.root}/Group/config/1/model_final_{md5}.pkl"
    published = Published("best", url, None, "caffe", "a small one", md5=md5)
    monkeypatch.setitem(PUBLISHED, "mask_rcnn_R_101_FPN_400ep_LSJ", published)
    monkeypatch.setitem(PUBLISHED, "best", published)
    return published


def test_a_pickle_with_the_right_md5_is_downloaded(server, monkeypatch, tmp_path):
    published = offer(server, monkeypatch)
    cached = tmp_path / "cache" / f"model_final_{MD5[:6]}.pkl"
    assert find_weights("best") == cached
    assert cached.read_bytes() == CONTENT
    assert find_weights("best") == cached
    assert len(server.requests) == 1
    cached.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=rf"{published.file_name} has md5 [0-9a-f]{{32}}, expected {MD5[:6]}\.\.\.: "):
        find_weights("best")


def test_a_model_of_the_zoo_from_its_address_to_its_detections(server, monkeypatch, tmp_path, capsys):
    """Download, md5, the pickle, its conversion, and what the name says of it; then the file by itself."""
    server.content = zoo_bytes(detectron2_state("resnet50", 80))
    md5 = hashlib.md5(server.content).hexdigest()[:6]
    published = offer(server, monkeypatch, md5)
    monkeypatch.setitem(_FILES, published.file_name, published)
    network = load_model("best", "cpu")
    assert (network.config.DIALECT, network.config.BACKBONE_STYLE) == ("detectron2", "caffe")
    assert network.class_names[:3] == ["BG", "person", "bicycle"]
    assert "assumed" not in capsys.readouterr().out
    (result,) = network.detect([random_image(60, 80)])
    assert result["masks"].shape == (60, 80, len(result["rois"]))
    here = tmp_path / published.file_name
    (tmp_path / "cache" / published.file_name).rename(here)
    assert same(load_model(here, "cpu").state_dict(), network.state_dict())
    assert "assumed" not in capsys.readouterr().out, "its name and md5 tell what it is"
    other = tmp_path / "mine.pkl"
    here.rename(other)
    load_model(other, "cpu")
    assert "assumed     caffe style, as detectron2's ResNets have" in capsys.readouterr().out


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def test_a_pickle_with_another_md5_is_refused(server, monkeypatch, tmp_path):
    offer(server, monkeypatch, "f10217")
    with pytest.raises(ValueError, match=f"does not have the md5 f10217 that was expected, but {MD5}"):
        find_weights("best")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])


def test_the_md5_is_of_the_resumed_file_too(server, monkeypatch, tmp_path):
    offer(server, monkeypatch)
    server.drops = [1000]
    with pytest.raises(ConnectionError):
        download(f"{server.root}/x.pkl", tmp_path / "x.pkl", md5=MD5, progress=False, retries=0)
    with open(tmp_path / "x.pkl.part", "r+b") as file:
        file.write(b"damage")
    with pytest.raises(ValueError, match=f"does not have the md5 {MD5} that was expected"):
        download(f"{server.root}/x.pkl", tmp_path / "x.pkl", md5=MD5, progress=False)
    assert server.asked("Range") == [None, "bytes=1000-"]
    assert download(f"{server.root}/x.pkl", tmp_path / "x.pkl", md5=MD5.upper(), progress=False).is_file()
    with pytest.raises(ValueError, match=f"is there but is another file: md5 {'0' * 32} was expected"):
        download(f"{server.root}/x.pkl", tmp_path / "x.pkl", md5="0" * 32)


def test_hashes_that_are_none():
    for md5 in ("", "f1021", "g" * 6, "0" * 33):
        with pytest.raises(ValueError, match="md5 must be 32 hex digits, or the first 6 or more of them, not"):
            expected_digest(None, md5)
    with pytest.raises(ValueError, match="give sha256 or md5, not both"):
        expected_digest("0" * 64, "0" * 32)
    assert expected_digest(None, None) is None


def test_a_file_of_a_published_name_and_hash_is_known(tmp_path, monkeypatch):
    """Whoever downloaded a model need not say its style; another file of that name is not taken for it."""
    published = Published("mine", f"https://x/model_final_{MD5[:6]}.pkl", None, "caffe", "", md5=MD5[:6])
    monkeypatch.setitem(_FILES, published.file_name, published)
    path = tmp_path / published.file_name
    path.write_bytes(CONTENT)
    assert find_published(path) is published
    path.write_bytes(b"another")
    assert find_published(path) is None
    assert find_published(tmp_path / "none") is None


############################################################
#  By name, a file is complete
############################################################


def test_what_the_zoos_files_do_not_say_is_known_by_name(tmp_path, monkeypatch, capsys):
    """On files without constants, as a trainer writes them: style, pixels, sizes, limits and classes are known."""
    monkeypatch.setattr("weights.checkpoint._storable", lambda tensor: tensor)
    path = tmp_path / "cached.pth"
    monkeypatch.setattr("weights.load.find_weights", lambda name: path)
    for name, backbone, classes, style, expected in (
        ("mask_rcnn_R_50_FPN_3x", "resnet50", 80, "caffe", {"STD_PIXEL": (1, 1, 1)}),
        ("COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml", "resnext101_32x8d", 80, "pytorch",
         {"STD_PIXEL": (58.395, 57.12, 57.375), "DETECTION_MAX_INSTANCES": 100}),
        ("cityscapes_mask_rcnn_R_50_FPN", "resnet50", 8, "caffe", {"IMAGE_MIN_DIM": 1024, "IMAGE_MAX_DIM": 2048}),
        ("lvis_mask_rcnn_R_101_FPN_1x", "resnet101", 1230, "caffe",
         {"DETECTION_MIN_CONFIDENCE": 0.0001, "DETECTION_MAX_INSTANCES": 300, "IMAGE_MIN_DIM": 800}),
    ):  # fmt: skip
        torch.save({"model": without_memory(detectron2_shapes(backbone, classes))}, path)
        checkpoint = load_checkpoint(name)
        config = Config.from_dict(checkpoint["config"])
        expected |= {"BACKBONE": backbone, "BACKBONE_STYLE": style, "DIALECT": "detectron2"}
        assert {setting: getattr(config, setting) for setting in expected} == expected
        assert config.MEAN_PIXEL == (123.675, 116.28, 103.53)
        assert checkpoint["model"]["backbone.stem.weight"][0, :, 0, 0].tolist() == [3, 2, 1], "files are BGR"
        printed = capsys.readouterr().out
        assert ('assumed     no names of classes: they are called "class 1"' in printed) == (classes == 1230)
        assert printed.count("assumed") == (classes == 1230), "all else is known"
        if classes == 8:
            assert checkpoint["class_names"][:3] == ["BG", "person", "rider"]
    changed = load_checkpoint("lvis_mask_rcnn_R_101_FPN_1x", DETECTION_MAX_INSTANCES=5)["config"]
    assert changed["DETECTION_MAX_INSTANCES"] == 100, "the caller stores what the caller gives"
    assert changed["DETECTION_MIN_CONFIDENCE"] == 0.0001
