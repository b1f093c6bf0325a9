"""Anyone's checkpoint opens, or is refused in a sentence that says what it is: whole name lists, prefixes, guesses."""

import gzip
import json
import sys
import threading
import types
from collections import OrderedDict
from pathlib import Path

import golden_weights
import numpy as np
import pytest
import torch
from helpers import TinyConfig, imagenet_state, tiny_model

import cli
import demo
import model
from config import Config
from weights.checkpoint import read_checkpoint
from weights.convert import convert
from weights.load import load_checkpoint, load_model, load_with_report
from weights.stem import fit_images
from weights.torch_files import load_torch_file

# Names and shapes of models of torchvision 0.28.0 and Detectron2: {model: [[name, shape], ...]}. The constructors of
# these libraries made the lists, on the device meta.
KEYS = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "foreign_keys.json.gz").read_bytes()))


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Conversions leave tensors without memory as they are."""
    monkeypatch.setattr("weights.checkpoint._storable", lambda tensor: tensor)


def foreign(name):
    """The state dict of a model in KEYS, without memory."""
    fill = {"num_batches_tracked": torch.tensor(0), "running_var": torch.tensor(1.0)}
    return {key: fill.get(key.rpartition(".")[2], torch.tensor(0.0)).expand(shape) for key, shape in KEYS[name]}


def torchvision_state(**changes):
    state = golden_weights.empty_state_dict("p3_v1")
    return state | {name.replace("__", "."): value for name, value in changes.items()}


def save(path, contents):
    torch.save(contents, path)
    return path


############################################################
#  What cannot be converted
############################################################

NO_MASKS = "it finds boxes only and has no mask head"
NOT_RESNET = "its backbone is no ResNet"
CLASSIFIER = "it is an image classifier that is no ResNet"
ONE_STAGE = "it is a one-stage detector of torchvision"
GROUPS = r"bottleneck blocks with 3x3 convolutions of 128 channels in \d+ groups, which is none of resnet18"
REFUSED = {
    "fasterrcnn_resnet50_fpn": NO_MASKS,
    "fasterrcnn_resnet50_fpn_v2": NO_MASKS,
    "keypointrcnn_resnet50_fpn": "it finds keypoints",
    "retinanet_resnet50_fpn": ONE_STAGE,
    "fcos_resnet50_fpn": ONE_STAGE,
    "ssd300_vgg16": ONE_STAGE,
    "fasterrcnn_mobilenet_v3_large_fpn": NOT_RESNET,
    "maskrcnn_mobilenet_v3_large_fpn": NOT_RESNET,
    "maskrcnn_mobilenet_v2 (tutorial)": NOT_RESNET,
    "maskrcnn_resnext50_32x4d": GROUPS,
    "maskrcnn_wide_resnet50_2": GROUPS,
    "classifier_wide_resnet50_2": GROUPS,
    **{
        f"classifier_{name}": CLASSIFIER
        for name in ("mobilenet_v2", "vgg16", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t")
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused_by_name(name, tmp_path):
    """With the whole list of names, as they are and as the trainer's file has them."""
    for contents in (foreign(name), {"model": {f"module.{key}": value for key, value in foreign(name).items()}}):
        with pytest.raises(ValueError, match=REFUSED[name]) as error:
            load_checkpoint(save(tmp_path / "x.pth", contents))
        assert str(error.value).startswith(str(tmp_path / "x.pth"))


def test_relatives_of_known_formats_are_refused_by_name(tmp_path):
    mmdet, heads = golden_weights.empty_state_dict("r50"), ("roi_head.bbox_head.", "roi_head.mask_head.")
    cascade = {}
    for name, value in mmdet.items():
        head = next((head for head in heads if name.startswith(head)), None)
        stages = [f"{head}{stage}.{name.removeprefix(head)}" for stage in range(3)] if head else [name]
        cascade |= dict.fromkeys(stages, value)
    benchmark = golden_weights.empty_state_dict("p2_mask_r50")
    for state, reason in (
        (cascade, "it is a cascade of several heads"),
        (mmdet | {"roi_head.point_head.fcs.0.conv.weight": torch.zeros(1)}, "its heads are not those of Mask R-CNN"),
        ({name: value for name, value in mmdet.items() if "mask" not in name}, NO_MASKS),
        ({name: value for name, value in benchmark.items() if "roi_heads.mask" not in name}, NO_MASKS),
        ({name.replace("roi_head.", ""): value for name, value in mmdet.items()}, r"it is of mmdetection 1\.x"),
        (tiny_model().state_dict(), "it is a bare state dict of this project"),
    ):
        with pytest.raises(ValueError, match=f"x.pth is not converted: {reason}"):
            load_checkpoint(save(tmp_path / "x.pth", {"state_dict": state}))


def test_what_torchvisions_constructors_make_is_converted(tmp_path):
    for name, backbone, classes in (
        ("maskrcnn_resnet50_fpn (constructor)", "resnet50", 91),
        ("maskrcnn_resnet152", "resnet152", 2),
    ):
        checkpoint = load_checkpoint(save(tmp_path / "x.pth", foreign(name)))
        assert checkpoint["config"]["BACKBONE"] == backbone
        assert checkpoint["config"]["NUM_CLASSES"] == classes
        variance = checkpoint["model"]["backbone.stem.norm.running_var"]
        assert float(variance[0]) == np.float32(1 + 1e-5), "both add 1e-5 for certain"


############################################################
#  Wrappers and averages
############################################################


@pytest.mark.parametrize(
    "prefix",
    ["module._orig_mod.", "_orig_mod.module.", "model.module.", "module.model.", "_forward_module.model.module."],
)
def test_prefixes_come_off_in_any_order(prefix, tmp_path):
    state = torchvision_state()
    path = save(tmp_path / "x.pth", {"state_dict": {prefix + name: value for name, value in state.items()}})
    checkpoint, report = load_with_report(path)
    assert checkpoint["model"].keys() == load_checkpoint(save(tmp_path / "y.pth", state))["model"].keys()
    for part in prefix.strip(".").split("."):
        assert part in "\n".join(report.names)
    assert "names       without" in report.text(0)


def test_wrappers_inside_of_names_come_off(tmp_path):
    state = {name.replace("backbone.", "backbone._orig_mod."): value for name, value in torchvision_state().items()}
    assert len(load_checkpoint(save(tmp_path / "x.pth", state))["model"]) == 307
    state["backbone.body.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(ValueError, match=r"x.pth has two tensors backbone\.body\.conv1\.weight, one of them as backb"):
        load_checkpoint(save(tmp_path / "x.pth", state))


def test_dicts_inside_of_dicts(tmp_path):
    state = torchvision_state()
    for contents in (
        {"model": {"state_dict": state}, "epoch": 3},
        {"state_dict": {"model": {"module": state}}},
        {"model": OrderedDict(state), "model_ema": {"n_averaged": torch.tensor(3)}, "args": None},
    ):
        checkpoint, report = load_with_report(save(tmp_path / "x.pth", contents))
        assert len(checkpoint["model"]) == 307
        assert set(report.dropped) == {*contents} - {"model", "state_dict"}


def test_averages_beside_the_weights_are_dropped_by_name(tmp_path):
    state = torchvision_state()
    averaged = {"n_averaged": torch.tensor(7), **{f"module.{name}": value for name, value in state.items()}}
    checkpoint, report = load_with_report(save(tmp_path / "x.pth", averaged))
    assert len(checkpoint["model"]) == 307
    assert "dropped     n_averaged" in report.text(307)
    state = golden_weights.empty_state_dict("r50")
    hook = {f"ema_{name.replace('.', '_')}": value for name, value in state.items()}
    checkpoint, report = load_with_report(save(tmp_path / "r50_fpn.pth", {"state_dict": state | hook}))
    assert len(checkpoint["model"]) == 321
    assert f"ema_* ({len(hook)})" in report.text(321)


############################################################
#  What a file does not say
############################################################


def with_anchors(count):
    """torchvision's names with so many anchors in a cell. Each anchor's bias is its number."""
    return torchvision_state(
        rpn__head__cls_logits__weight=torch.zeros(1).expand(count, 256, 1, 1),
        rpn__head__cls_logits__bias=torch.arange(float(count)),
        rpn__head__bbox_pred__weight=torch.zeros(1).expand(4 * count, 256, 1, 1),
        rpn__head__bbox_pred__bias=torch.zeros(4 * count),
    )


def test_the_number_of_anchors_follows_from_the_tensors(tmp_path, monkeypatch):
    path = save(tmp_path / "x.pth", with_anchors(5))
    with pytest.raises(ValueError, match=r"x.pth has 5 anchors in each cell, and .*--set RPN_ANCHOR_RATIOS="):
        load_checkpoint(path)
    ratios = (0.25, 0.5, 1, 2, 4)
    checkpoint = load_checkpoint(path, RPN_ANCHOR_RATIOS=ratios)
    assert tuple(checkpoint["config"]["RPN_ANCHOR_RATIOS"]) == ratios
    assert checkpoint["model"]["rpn.objectness.bias"].tolist() == [4, 3, 2, 1, 0], "the first anchor is tall"
    monkeypatch.setattr(model, "initialise", lambda *arguments: None)
    network = load_model(path, "cpu", RPN_ANCHOR_RATIOS=ratios)
    assert network.rpn.objectness.bias.tolist() == [4, 3, 2, 1, 0]


def test_guesses_are_printed_once_by_every_loader(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model, "initialise", lambda *arguments: None)
    path = save(tmp_path / "x.pth", torchvision_state())
    settings = {"DIALECT": "torchvision", "BACKBONE": "resnet50", "USE_MASKIOU_HEAD": False, "NUM_CLASSES": 91}
    network = model.MaskRCNN(Config(**settings))
    for load in (load_checkpoint, lambda path: load_model(path, "cpu"), network.load_weights):
        load(path)
        printed = capsys.readouterr().out
        assert printed.count("assumed     eps 0 of the batch norms") == 1
        assert printed.count("assumed     anchors of 32 64 128 256 512 pixels, images of 800 to 1333 pixels") == 1
    load_checkpoint(path, eps=1e-5, RPN_ANCHOR_SCALES=(16, 32, 64, 128, 256))
    printed = capsys.readouterr().out
    assert "eps" not in printed
    assert "anchors of" not in printed, "what is given is no guess"
    assert "images of 800 to 1333 pixels" in printed
    load_checkpoint(save(tmp_path / "r50_caffe_fpn.pth", {"state_dict": golden_weights.empty_state_dict("r50")}))
    printed = capsys.readouterr().out
    assert "assumed     caffe style, as the name of the file says; --style" in printed
    assert "assumed     pixels in BGR order" in printed


def test_our_own_and_published_files_leave_nothing_to_assume(tmp_path, capsys, monkeypatch):
    tiny_model().save(tmp_path / "ours.pth")
    load_model(tmp_path / "ours.pth", "cpu")
    with pytest.raises(ValueError, match=r"eps 0.5 is for checkpoints of torchvision; .*ours.pth is of this project"):
        load_model(tmp_path / "ours.pth", "cpu", eps=0.5)
    monkeypatch.setattr("weights.load.find_weights", lambda name: save(tmp_path / "x.pth", torchvision_state()))
    load_checkpoint("torchvision")
    assert capsys.readouterr().out == ""


def test_eps_of_a_torchvision_training(tmp_path, capsys):
    """Zeros in a variance show that eps is not 0. An optimiser in the file shows that somebody trained."""
    path = save(tmp_path / "x.pth", torchvision_state(backbone__body__bn1__running_var=torch.zeros(64)))
    with pytest.raises(ValueError, match=r"x.pth: backbone\.stem\.norm\.running_var, .* has zeros.*--eps 1e-5"):
        load_checkpoint(path)
    assert load_checkpoint(path, eps=1e-5)["model"]["backbone.stem.norm.running_var"][0] == np.float32(1e-5)
    capsys.readouterr()
    load_checkpoint(save(tmp_path / "x.pth", {"model": torchvision_state(), "optimizer": {"state": {}}}))
    assert "the file is of a training, because it has an optimizer; give --eps 1e-5" in capsys.readouterr().out


def test_load_weights_takes_anchors_and_eps_that_the_file_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "initialise", lambda *arguments: None)
    settings = {"DIALECT": "torchvision", "BACKBONE": "resnet50", "USE_MASKIOU_HEAD": False, "NUM_CLASSES": 91}
    small = {"RPN_ANCHOR_SCALES": (8, 16, 32, 64, 128), "RPN_ANCHOR_RATIOS": (0.25, 0.5, 1, 2, 4)}
    network = model.MaskRCNN(Config(**settings, **small))
    network.load_weights(save(tmp_path / "x.pth", with_anchors(5)), eps=1e-5)
    assert network.rpn.objectness.bias.tolist() == [4, 3, 2, 1, 0]
    assert network.backbone.stem.norm.running_var[0] == np.float32(1 + 1e-5)


def test_a_model_of_other_images_takes_what_the_file_was_trained_with(tmp_path):
    """A model of five channels, scaled by percentiles, starts from weights of three, scaled by depth."""
    settings = {"DIALECT": "torchvision", "BACKBONE": "resnet50", "USE_MASKIOU_HEAD": False, "NUM_CLASSES": 91}
    config = Config(**settings, IMAGE_CHANNEL_COUNT=5, PIXEL_RANGE="percentiles")
    path = save(tmp_path / "x.pth", torchvision_state())
    checkpoint, _ = convert(path, model.network_shapes, model_config=config)
    stored = checkpoint["config"]
    assert (stored["IMAGE_CHANNEL_COUNT"], stored["PIXEL_RANGE"]) == (3, "depth")
    assert tuple(stored["MEAN_PIXEL"]) == Config(DIALECT="torchvision").MEAN_PIXEL
    fitted, sentences = fit_images(checkpoint, config)
    assert fitted["model"]["backbone.stem.weight"].shape == (64, 5, 7, 7)
    assert len(sentences) == 2


def test_the_command_lines_take_the_options(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("cli.load_model", lambda *arguments, **options: calls.append(options) or 1 / 0)
    classes = tmp_path / "names.txt"
    classes.write_text("cat\ndog\n")
    words = ["--style", "caffe", "--classes", str(classes), "--eps", "1e-5"]
    with pytest.raises(ZeroDivisionError):
        demo.main(["--model", "x.pth", "--output", str(tmp_path), *words])
    parser = cli.Parser("x", None)
    cli.add_checkpoint_options(parser)
    nothing = dict.fromkeys(("style", "class_names", "eps", "source_config"))
    assert cli.checkpoint_options(parser.parse_args([])) == nothing
    assert cli.checkpoint_options(types.SimpleNamespace()) == nothing
    assert {"style": "caffe", "class_names": ["cat", "dog"], "eps": 1e-5}.items() <= calls[0].items()
    with pytest.raises(SystemExit):
        parser.parse_args(["--eps", "nan"])
    assert "--eps: must be a number from 0 to 1, not 'nan'" in capsys.readouterr().err


############################################################
#  Files that are not weights
############################################################


class Sub(OrderedDict):
    """A class of somebody's training code."""


DEEP = [1]
for _ in range(60):
    DEEP = [DEEP]
LAUGHS = [1]
for _ in range(40):
    LAUGHS = [LAUGHS] * 10
STRANGE = {
    "a bare tensor": (lambda: torch.zeros(3), "holds a tensor, where a checkpoint is a dict"),
    "a list": (lambda: [1, 2], "holds a list, where"),
    "None": (lambda: None, "holds None, where"),
    "a NumPy number": (lambda: np.float64(3), "holds an object, where"),
    "a module": (lambda: torch.nn.Linear(2, 2), r"no weight: torch\.nn\.modules\.linear\.Linear\. It could run code"),
    "a subclass": (lambda: Sub(a=torch.zeros(1)), r"no weight: [\w.]+\.Sub\. It could run code"),
    "an empty dict": (dict, "no state dict.*it is empty"),
    "None among the weights": (lambda: {"a": torch.zeros(1), "b": None}, "no state dict.*; b is None"),
    "NumPy arrays": (lambda: {"state_dict": {"a": np.zeros(3)}}, "no state dict.*; a is an object"),
    "a sparse tensor": (lambda: {"a": torch.eye(3).to_sparse()}, "no state dict.*; a is a sparse tensor"),
    "a meta tensor": (lambda: {"a": torch.zeros(3, device="meta")}, "no state dict.*; a is a meta tensor"),
    "numbers as names": (lambda: {1: torch.zeros(1)}, "no state dict.*; a name is a number"),
    "bytes as names": (lambda: {b"a": torch.zeros(1)}, "no state dict.*; a name is bytes"),
    "a number of 5000 digits": (lambda: {10**5000: 10**5000}, "no state dict.*; a name is a number"),
    "control characters": (lambda: {"\x1b[2J" * 999: torch.zeros(1)}, r"It has \\x1b\[2J\\x1b\[2J.*\.\.\."),
    "an optimiser": (lambda: {"state": {}, "param_groups": [{"lr": 0.1}]}, "It has the state of an optimiser; the w"),
    "an optimiser and more": (lambda: {"optimizer": {}, "epoch": 3}, "It has the state of an optimiser; the w"),
    "deep lists": (lambda: {"a": DEEP}, r"x.pth is truncated or damaged; .*more than 50 lie in each other"),
    "lists of lists of lists": (lambda: {"a": LAUGHS}, "no state dict.*; a is a list"),
    "a huge view": (lambda: {"a": torch.zeros(1).expand(1 << 30, 1 << 10)}, "claim much more memory than the file"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_files_that_hold_something_else(name, tmp_path):
    make, message = STRANGE[name]
    for zipped in (True, False):
        torch.save(make(), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=message) as error:
            load_checkpoint(tmp_path / "x.pth")
        assert str(error.value).startswith(str(tmp_path / "x.pth"))
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("dtype", "is_read"),
    [
        *((dtype, True) for dtype in (torch.float16, torch.bfloat16, torch.float64)),
        *((dtype, False) for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)),
    ],
)
def test_types_of_numbers(dtype, is_read, tmp_path):
    stem = torch.full((64, 3, 7, 7), 0.5).to(dtype)
    path = save(tmp_path / "x.pth", torchvision_state(backbone__body__conv1__weight=stem))
    if is_read:
        assert float(load_checkpoint(path)["model"]["backbone.stem.weight"][0, 0, 0, 0]) == 0.5
    else:
        with pytest.raises(ValueError, match=rf"conv1\.weight is {dtype}, .*where weights are dense and floating"):
            load_checkpoint(path)


def test_numbers_beyond_float32_are_refused(tmp_path):
    stem = torch.full((64, 3, 7, 7), 1e300, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"conv1\.weight has values beyond the range of float32"):
        load_checkpoint(save(tmp_path / "x.pth", torchvision_state(backbone__body__conv1__weight=stem)))


@pytest.mark.parametrize(
    "name", ["layer.99999999999999999999.weight", f"backbone.body.layer1.{'9' * 5000}.conv1.weight"]
)
def test_layers_of_enormous_numbers_are_left_over(name, tmp_path):
    path = save(tmp_path / "x.pth", {**torchvision_state(), name: torch.zeros(3)})
    with pytest.raises(ValueError, match=r"left over 1: .*9999") as error:
        load_checkpoint(path)
    assert len(str(error.value)) < 500


def test_threads_load_without_disturbing_each_other(tmp_path):
    """torch.load would share its list of harmless names."""
    contents = {"state_dict": {"a": torch.arange(5.0)}, "meta": {"loss": np.float64(0.5)}}
    path, results = save(tmp_path / "x.pth", contents), []

    def load():
        results.extend(load_torch_file(path)["state_dict"]["a"].tolist() for _ in range(50))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[0, 1, 2, 3, 4]] * 200


############################################################
#  Our own, with settings that cannot be
############################################################

IMPOSSIBLE = {
    "RPN_CONVS": (10**9, "settings say RPN_CONVS = 1000000000, and its"),
    "BOX_HEAD_FC_LAYERS": (10**6, "settings say BOX_HEAD_FC_LAYERS = 1000000"),
    "TOP_DOWN_PYRAMID_SIZE": (1 << 30, "settings say TOP_DOWN_PYRAMID_SIZE = 1073741824"),
    "BACKBONE_WIDTH": (1e300, r"settings say BACKBONE_WIDTH = 1e\+300"),
    "MASK_HEAD_CHANNELS": (10**400, "MASK_HEAD_CHANNELS has an enormous number, where settings are"),
    "MEAN_PIXEL": ([float("nan"), 0.0, 0.0], "MEAN_PIXEL has nan, where settings are"),
    "NAME": ("\x1b[2J" * 10**6, r"NAME has '\\x1b\[2J"),
    "RPN_ANCHOR_SCALES": ([[[1]]] * 5, "RPN_ANCHOR_SCALES has a list, where settings are"),
    "BACKBONE": ("resnet9999999", r"a config that this code does not know: BACKBONE must be one of resnet18"),
    "MASK_SHAPE": ("x", "a config that this code does not know: MASK_SHAPE"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_settings_that_the_file_cannot_fill_are_refused_before_a_network_is_built(name, tmp_path, monkeypatch):
    value, message = IMPOSSIBLE[name]
    contents = tiny_model().to_checkpoint()
    contents = {**contents, "config": {**contents["config"], name: value}}
    monkeypatch.setattr(model.MaskRCNN, "__init__", lambda *arguments: pytest.fail("a network was built"))
    for load in (load_checkpoint, load_model, read_checkpoint):
        with pytest.raises(ValueError, match=message) as error:
            load(save(tmp_path / "x.pth", contents))
        assert str(error.value).startswith(str(tmp_path / "x.pth"))
        assert len(str(error.value)) < 1500


def test_a_million_classes_are_refused(tmp_path):
    contents = tiny_model().to_checkpoint()
    names = {"class_names": None, "category_ids": None}
    for count, message in ((10**9, "settings say NUM_CLASSES = 1000000000"), (10**5, "does not fit the network")):
        config = {**contents["config"], "NUM_CLASSES": count, "CLASS_NAMES": None, "CATEGORY_IDS": None}
        with pytest.raises(ValueError, match=message):
            load_checkpoint(save(tmp_path / "x.pth", {**contents, **names, "config": config}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": torch.tensor([1, 2])}, "of version a tensor, this code"),
        ({"format": torch.tensor([1, 2])}, "it is a bare state dict of this project"),
        ({"dialect": ["mmdet"]}, "dialect is a list, where it should be a text"),
        ({"source": None}, "source is None, where it should be a text"),
        ({"class_names": {"a": [1]}}, "class_names has a list"),
        ({"category_ids": ["x"] * 4}, "CATEGORY_IDS must be a list of int"),
        ({"config": {1: 2}}, "the name of a setting is 1"),
        ({"model": {5: torch.zeros(1)}}, "lacks texts as names of tensors"),
    ],
    ids=str,
)
def test_entries_of_a_wrong_type(changes, message, tmp_path):
    contents = {**tiny_model().to_checkpoint(), **changes}
    with pytest.raises(ValueError, match=message):
        load_checkpoint(save(tmp_path / "x.pth", contents))


def test_what_is_printed_of_a_file_has_no_control_characters(tmp_path):
    contents = tiny_model().to_checkpoint()
    path = save(tmp_path / "x.pth", {**contents, "source": "\x1b[2Jsource\n" * 1000})
    source = load_model(path, "cpu").source
    assert source.isprintable()
    assert len(source) < 2000
    assert source.startswith(r"\x1b[2Jsource\n")


def test_tiny_models_come_back(tmp_path):
    """The reader and torch's agree on every number, zipped or not."""
    network = tiny_model()
    for zipped in (True, False):
        torch.save(network.to_checkpoint(), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        theirs = torch.load(tmp_path / "x.pth", weights_only=True)["model"]
        ours = load_torch_file(tmp_path / "x.pth")["model"]
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) and theirs[name].dtype == ours[name].dtype for name in ours)
        assert load_model(tmp_path / "x.pth", "cpu").config.NAME == TinyConfig.NAME


############################################################
#  safetensors
############################################################


def write_safetensors(path, tensors, **header):
    """The format by hand: the length of a header, the header, the numbers. header: entries, or changes of entries."""
    entries, pieces, end = dict(header), [], 0
    for name, tensor in tensors.items():
        pieces.append(tensor.contiguous().numpy().tobytes())
        start, end = end, end + len(pieces[-1])
        entry = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
        entries[name] = {**entry, **header.get(name, {})}
    text = json.dumps(entries).encode()
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *pieces]))
    return path


def test_safetensors_need_their_package(tmp_path, monkeypatch):
    path = write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match=r"x.safetensors is a safetensors file, .*: `pip install safetensors`"):
        load_checkpoint(path)


def test_safetensors_are_read(tmp_path, monkeypatch):
    """With the package where it is installed; else with a stand-in, which shows what is called."""
    state = {name: value.float().contiguous() for name, value in imagenet_state("resnet18").items()}
    try:
        import safetensors.torch  # noqa: F401
    except ImportError:
        package = types.ModuleType("safetensors.torch")
        package.load_file = lambda path: state
        monkeypatch.setitem(sys.modules, "safetensors", types.ModuleType("safetensors"))
        monkeypatch.setitem(sys.modules, "safetensors.torch", package)
    path = write_safetensors(tmp_path / "x.safetensors", state, __metadata__={"format": "pt"})
    expected = load_checkpoint(save(tmp_path / "x.pth", imagenet_state("resnet18")))["model"]
    found = load_checkpoint(path)["model"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    with pytest.raises(ValueError, match=r"x.safetensors is not a checkpoint of this project; `python convert_wei"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data_offsets": [0, 800]}, "a lies beyond the end of the file"),
        ({"shape": [1 << 40, 1 << 40]}, "a claims another size than it has"),
        ({"dtype": "F128"}, "the type of a is none of"),
        ({"shape": [-1]}, "a has no shape or no place"),
        ({"data_offsets": [8, 0]}, "a lies beyond the end"),
    ],
    ids=str,
)
def test_safetensors_that_claim_what_they_do_not_have(entry, message, tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, a=entry)
    with pytest.raises(ValueError, match=rf"x.safetensors is truncated or damaged; fetch it again \({message}"):
        load_checkpoint(path)
    path.write_bytes(b"\xff" * 7 + b"\x00" + b'{"a"')
    with pytest.raises(ValueError, match=r"its header should have .* bytes"):
        load_checkpoint(path)
