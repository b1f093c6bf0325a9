"""An exported network finds what the model finds, in onnxruntime, in OpenVINO and as a program of torch.export.

The networks have a small backbone of four convolutions, and most of them one size of images, so that an export takes
seconds. benchmarks/check_exports.py has the large ones.
"""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_image, tiny_model
from PIL import Image
from torch import nn

import export
import fused
import model as modellib
import onnx_detect
from config import DIALECTS
from model import Conv
from onnx_detect import Detector

ROOT = Path(export.__file__).parent
PAGE = (ROOT / "docs" / "export.md").read_text()
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, export.PACKAGES)),
    reason=f"no {', '.join(export.PACKAGES)}: pip install {' '.join(export.PACKAGES)}",
)


class FourStages(nn.Module):
    """The smallest backbone: C2 to C5 by a convolution each."""

    def __init__(self, config) -> None:
        super().__init__()
        self.channels = [8, 8, 8, 8]
        sizes = [(config.IMAGE_CHANNEL_COUNT, 4), (8, 2), (8, 2), (8, 2)]
        self.stages = nn.ModuleList(Conv(count, 8, 3, stride, relu=True) for count, stride in sizes)

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def small_model(seed: int = 0, **settings) -> modellib.MaskRCNN:
    """It finds nothing in an image of its mean colour: without features, all is background."""
    settings = {"BACKBONE": FourStages, "DETECTION_MAX_INSTANCES": 15, "DETECTION_MIN_CONFIDENCE": 0.05, **settings}
    # Dialects that do not divide pixels would make scores of exactly 1 here, whose order is no one's.
    model = tiny_model(seed, **{"STD_PIXEL": (57.4, 57.1, 58.4), **settings})
    with torch.no_grad():
        model.box_head.class_logits.weight *= 8
        model.box_head.class_logits.bias[0] = 4
        if model.maskiou_head is not None:  # a new one predicts 1
            model.maskiou_head.maskious.weight.normal_(std=0.1)
    return model


# One size of images: such a network is exported in half of the time.
SQUARE = {"IMAGE_RESIZE_MODE": "square", "IMAGE_MIN_DIM": 128}
long = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "long", reason="HYPOTHESIS_PROFILE=long has it")
CASES = {
    "any size, two looks": {"DIALECT": "torchvision", "BOX_HEAD_LOOKS": 2},
    "matterport": {"DIALECT": "matterport", **SQUARE},
    "group norm, no MaskIoU head": {
        "DIALECT": "detectron2", "FPN_NORM": "group", "BOX_HEAD_NORM": "group", "BOX_HEAD_CONVS": 1,
        "MASK_HEAD_NORM": "group", "USE_MASKIOU_HEAD": False, **SQUARE,
    },
    "mmdet": {"BACKBONE": "resnet18"},
    "benchmark": {"DIALECT": "benchmark"},
}  # fmt: skip
ALL = [*list(CASES)[:3], *(pytest.param(name, marks=long) for name in list(CASES)[3:])]


@functools.cache
def traced(case: str) -> tuple[modellib.MaskRCNN, torch.export.ExportedProgram, dict]:
    model = small_model(**CASES[case])
    settings = {**export.settings_of(model), "has_mask_ious": model.maskiou_head is not None}
    return model, export.trace(export.frozen(model)), settings


@functools.cache
def exported(case: str) -> tuple[modellib.MaskRCNN, bytes, Detector]:
    model, program, settings = traced(case)
    data = export.to_onnx(program, export.output_names(model), settings)
    return model, data, Detector(data)


IMAGES = {"a": random_image(80, 60, 1), "b": random_image(50, 100, 2)}
# Square ones are not padded. In padding, many places have one score, and this network, which has learned nothing, may
# choose any of them.
SQUARES = {"a": random_image(70, 70, 1), "b": random_image(128, 128, 2)}
MEAN = np.full((70, 70, 3), (124, 116, 104), np.uint8)


def images_for(case: str) -> dict[str, np.ndarray]:
    return SQUARES if CASES[case].get("IMAGE_RESIZE_MODE") == "square" else IMAGES


############################################################
#  Without ONNX
############################################################


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_exported_path_computes_the_same(dialect, monkeypatch):
    """What the model does for other programs, run here, and a copy with frozen weights."""
    model = small_model(DIALECT=dialect, **SQUARE)
    frozen = export.frozen(model)
    images = [SQUARES["a"], SQUARES["b"], np.ascontiguousarray(SQUARES["b"][::-1])]
    expected = model.detect(images)
    assert all(len(result["scores"]) > 3 for result in expected)
    for name in (fused, modellib):
        monkeypatch.setattr(name, "is_exporting", lambda: True)
    for network in (model, frozen):
        for result, other in zip(network.detect(images), expected, strict=True):
            assert (result["class_ids"] == other["class_ids"]).all()
            np.testing.assert_allclose(result["rois"], other["rois"], atol=1e-3)
            np.testing.assert_allclose(result["mask_scores"], other["mask_scores"], atol=1e-5)


def test_settings_are_those_of_the_model():
    changes = {"MASKIOU_CLAMP": False, "BOXES_OF_MASKS": True, "SCORE_THRESHOLD": 0.3}
    model = small_model(DIALECT="benchmark", IMAGE_MIN_DIM=70, BIT_DEPTH=12, **changes)
    settings = onnx_detect.Settings.parse(json.dumps(export.settings_of(model)))
    assert settings.size_rounding == "truncate"
    assert settings.coordinates == "inclusive"
    assert (settings.min_dim, settings.max_dim, settings.bit_depth) == (70, 128, 12)
    assert not settings.clamps_mask_iou
    assert settings.boxes_of_masks
    assert settings.score_threshold == 0.3
    assert settings.class_names == ("BG", "cat", "dog", "cow")
    assert not onnx_detect.Settings.parse(json.dumps(export.settings_of(small_model()))).boxes_of_masks
    assert settings.mean == tuple(model.config.MEAN_PIXEL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"IMAGE_RESIZE_MODE": "crop", "IMAGE_MIN_DIM": 64}, "--set IMAGE_RESIZE_MODE=pad64"),
        ({"DIALECT": "matterport", "IMAGE_RESIZE_MODE": "pad64"}, "--set IMAGE_RESIZE_MODE=square"),
        ({"DIALECT": "torchvision", "RPN_ANCHOR_STRIDE": 2}, "RPN_ANCHOR_STRIDE must be 1"),
    ],
)
def test_settings_that_cannot_be_exported(settings, message):
    with pytest.raises(ValueError, match=message):
        export.settings_of(small_model(**settings))


def test_half_rounds_large_weights_only():
    model = small_model()
    network = export.frozen(model, half=True)
    large, small = network.box_head.fcs[0].prepared_0, network.box_head.fcs[0].prepared_1
    assert torch.equal(large, large.half().float())
    assert torch.equal(small, model.box_head.fcs[0].bias)
    assert not torch.equal(model.box_head.fcs[0].weight, model.box_head.fcs[0].weight.half().float())
    with torch.no_grad():
        model.box_head.fcs[0].weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"--half: a number of the weight box_head\.fcs\.0\.weight is above 65504"):
        export.frozen(model, half=True)


############################################################
#  Comparison
############################################################


def a_result(count: int = 40) -> dict:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (count, 2)).astype(np.float32)
    masks = np.zeros((80, 80, count), bool)
    for i, (y, x) in enumerate(corner.astype(int)):
        masks[y : y + 20, x : x + 20, i] = True
    scores = np.linspace(0.9, 0.2, count, dtype=np.float32)
    rois = np.concatenate([corner, corner + 20], axis=1)
    return {"rois": rois, "class_ids": np.arange(count) % 3 + 1, "scores": scores, "masks": masks}


SETTINGS = onnx_detect.Settings.parse(json.dumps(export.settings_of(small_model(DETECTION_MAX_INSTANCES=100))))


def test_equal_results_agree():
    agreement = export.compare(a_result(), a_result(), SETTINGS)
    assert agreement == (40, 40, 40, 40, 0)
    assert agreement.is_good
    assert export.compare(a_result(0), a_result(0), SETTINGS) == (0, 0, 0, 0, 0)
    assert not export.compare(a_result(0), a_result(1), SETTINGS).is_good
    assert not export.compare(a_result(9), a_result(8), SETTINGS).is_good


@pytest.mark.parametrize(
    ("column", "change"),
    [("rois", 1.5), ("scores", 0.004), ("class_ids", 1), ("masks", None)],
)
def test_what_differs_is_a_miss(column, change):
    result = a_result()
    for count, i in enumerate((3, 9), start=1):
        if column == "masks":
            result["masks"][:20, :20, i] ^= True
        else:
            result[column][i] += change
        agreement = export.compare(a_result(), result, SETTINGS)
        assert (agreement.matched, agreement.misses) == (40 - count, 2 * count)
        assert agreement.is_good == (count == 1)


def test_the_last_of_many_may_differ():
    """Those whose score is the lowest that is reported: rounding decides whether they are."""
    less = {name: column[..., :-1] if name == "masks" else column[:-1] for name, column in a_result(100).items()}
    assert export.compare(a_result(100), less, SETTINGS).misses == 0
    assert export.compare(a_result(99), {**less, "scores": less["scores"] + 0.01}, SETTINGS).misses > 100


############################################################
#  ONNX
############################################################


@needs_onnx
@pytest.mark.parametrize("case", ALL)
def test_the_file_finds_what_the_model_finds(case):
    """Of two sizes, one by one and three together, in blank images, and nothing where there is nothing."""
    model, _, detector = exported(case)
    a, b = images_for(case).values()
    assert len(export.check(model, detector, {"a": a, "b": b})) == 6
    batches = [[a], [b], [a, np.broadcast_to(MEAN[0, 0], a.shape), a[:, ::-1]], [MEAN], [MEAN, MEAN]]
    for images in batches:
        for image, result, expected in zip(images, detector.detect_batch(images), model.detect(images), strict=True):
            agreement = export.compare(expected, result, detector.settings)
            is_blank = bool((image == MEAN[0, 0]).all())
            if is_blank and case == "group norm, no MaskIoU head":  # norms enlarge what rounding leaves of no features
                assert agreement.found == agreement.expected
                continue
            if case not in ("matterport", "group norm, no MaskIoU head"):  # black padding
                assert (agreement.expected == 0) == is_blank
            assert agreement.misses == 0
            assert agreement.identical >= 0.8 * agreement.expected


@needs_onnx
def test_the_file_is_standard():
    import onnx

    model, data, _ = exported("any size, two looks")
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    assert [(entry.domain, entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx")] == [
        ("", export.OPSET)
    ]
    assert [value.name for value in proto.graph.input] == list(onnx_detect.INPUTS)
    assert [value.name for value in proto.graph.output] == export.output_names(model)
    assert not [node for node in proto.graph.node if node.op_type == "RoiAlign" and len(node.attribute) < 6]
    bytes_of_weights = sum(p.numel() for p in model.parameters()) * 4
    assert len(data) < bytes_of_weights + 150_000, "weights are stored once"


@needs_onnx
def test_half_of_the_bytes():
    """Weights that float16 holds are stored so, others stay; both files compute the same to the bit."""
    import onnx
    from onnx import numpy_helper

    _, data, _ = exported("matterport")
    assert abs(len(export.halve(data)) - len(data)) < 100, "float16 cannot hold these"
    proto = onnx.load_from_string(data)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type == 1 and np.abs(values).max(initial=0) <= 65504:  # constants may be larger
            rounded = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    data = proto.SerializeToString()
    halved = export.halve(data)
    assert len(halved) < 0.8 * len(data)
    result, expected = (Detector(each).detect(SQUARES["a"]) for each in (halved, data))
    assert len(expected["scores"]) > 3
    assert all((result[name] == expected[name]).all() for name in expected)


def test_a_program_of_torch_export():
    """.pt2: the same, with the operators of this project."""
    model, program, settings = traced("matterport")
    detector = export.ProgramDetector(export.to_pt2(program, settings))
    assert len(export.check(model, detector, SQUARES)) == 6


@needs_onnx
def test_a_network_that_finds_something_else_is_refused():
    _, _, detector = exported("any size, two looks")
    other = small_model(1, **CASES["any size, two looks"])
    with pytest.raises(ValueError, match=r"finds something else than the model in a: \d+ objects here"):
        export.check(other, detector, IMAGES)


@needs_onnx
def test_without_torch(tmp_path):
    """Two files in a folder, and an interpreter that has no torch."""
    model, data, _ = exported("any size, two looks")
    (tmp_path / "model.onnx").write_bytes(data)
    (tmp_path / "onnx_detect.py").write_bytes((ROOT / "onnx_detect.py").read_bytes())
    Image.fromarray(IMAGES["b"]).save(tmp_path / "b.png")
    code = (
        "import sys; sys.modules['torch'] = None; import numpy as np; from onnx_detect import Detector\n"
        "result = Detector('model.onnx').detect('b.png'); np.savez('b.npz', **result)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    result = dict(np.load(tmp_path / "b.npz"))
    (expected,) = model.detect([IMAGES["b"]])
    agreement = export.compare(expected, result, SETTINGS)
    assert agreement.misses == 0
    assert agreement.matched > 3


@needs_onnx
def test_files_that_are_no_models(tmp_path):
    import onnx
    from onnx import helper

    path = tmp_path / "a.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"model .*a\.onnx cannot be read"):
        Detector(path)
    value = helper.make_tensor_value_info("x", 1, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", 1, [1])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match="has no settings"):
        Detector(path)
    proto = onnx.load_from_string(exported("any size, two looks")[1])
    proto.metadata_props[0].value = json.dumps({**json.loads(proto.metadata_props[0].value), "channels": 4})
    with pytest.raises(ValueError, match="the model: its setting mean must be 4 numbers"):
        Detector(proto.SerializeToString())


############################################################
#  Triton and OpenVINO
############################################################


@needs_onnx
def test_the_configuration_of_triton():
    """It names the inputs and outputs of the file, and the page shows it."""
    text = export.triton_config(exported("any size, two looks")[1])
    assert re.findall(r'name: "(\w+)", data_type: (\w+), dims: \[ ([-\d, ]+) \]', text) == [
        ("pixels", "TYPE_FP32", "-1, 3, -1, -1"),
        ("windows", "TYPE_FP32", "-1, 4"),
        ("boxes", "TYPE_FP32", "-1, 4"),
        ("batch_index", "TYPE_INT64", "-1"),
        ("class_ids", "TYPE_INT64", "-1"),
        ("scores", "TYPE_FP32", "-1"),
        ("mask_probs", "TYPE_FP32", "-1, 28, 28"),
        ("mask_ious", "TYPE_FP32", "-1"),
    ]
    assert text in PAGE
    assert "dims: [ -1, 3, 128, 128 ]" in export.triton_config(exported("matterport")[1])


@needs_onnx
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="no openvino: pip install openvino")
@pytest.mark.parametrize("case", ["any size, two looks", "matterport"])
def test_openvino(case, tmp_path):
    """The class of docs/export.md, in float32."""
    model, data, _ = exported(case)
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    (block,) = [block for block in re.findall(r"```py\n(.*?)```", PAGE, flags=re.DOTALL) if "openvino" in block]
    names = {}
    exec(block.split("\ndetector = ")[0], names)
    detector = names["OpenVinoDetector"](path)
    a, b = images_for(case).values()
    for images in ([a], [b], [a, a[::-1]]):
        for result, expected in zip(detector.detect_batch(images), model.detect(images), strict=True):
            assert export.compare(expected, result, detector.settings).misses == 0


############################################################
#  Command
############################################################


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/a.pth"], r"a\.pth must be a file \.onnx, or \.pt2"),
        (["{folder}/there.onnx"], r"there\.onnx exists; --force replaces it"),
        (["{folder}/no/a.onnx"], r"the folder .*no does not exist"),
        (["{folder}/a.pt2", "--half"], r"--half and --triton are of \.onnx files"),
        (["{folder}/a.onnx", "--triton", "{folder}"], "--triton .* is a folder; name a file in it"),
    ],
)
def test_mistakes(arguments, message, tmp_path, capsys):
    (tmp_path / "there.onnx").touch()
    assert export.main(["shapes", *[argument.format(folder=tmp_path) for argument in arguments]]) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(rf"export.py: .*{message}.*\n", printed), printed


def test_missing_packages(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert export.main(["shapes", str(tmp_path / "a.onnx")]) == 1
    assert capsys.readouterr().err == (
        "export.py: export needs packages that are not installed: pip install onnx onnxscript onnxruntime\n"
    )


@needs_onnx
def test_the_command(tmp_path, monkeypatch, capsys):
    """It writes a file that agrees, with the configuration of Triton, and leaves none that does not."""
    _, data, detector = exported("any size, two looks")
    model = exported("any size, two looks")[0]
    monkeypatch.setattr(export.cli, "open_model", lambda *_, **__: model)
    monkeypatch.setattr(export, "export_model", lambda *_: (data, model, detector))
    target, config, image = tmp_path / "a.onnx", tmp_path / "config.pbtxt", tmp_path / "a.png"
    Image.fromarray(IMAGES["a"]).save(image)
    arguments = ["tiny", str(target), "--triton", str(config), "--check", str(image)]
    assert export.main(arguments) == 0
    assert target.read_bytes() == data
    assert config.read_text().startswith('name: "a"\n')
    assert re.search(r"checked in a.png: (\d+) of \1 alike", capsys.readouterr().out)
    other = small_model(1, **CASES["any size, two looks"])
    monkeypatch.setattr(export, "export_model", lambda *_: (b"worse", other, detector))
    assert export.main([*arguments, "--force"]) == 2
    assert target.read_bytes() == data
    target.unlink()
    assert export.main([*arguments, "--force"]) == 2
    assert not target.exists()


############################################################
#  The page
############################################################


def test_the_example_of_the_page():
    """docs/export.md's example in numbers: resizing, boxes and a pasted mask."""
    (block,) = re.findall(r"<!-- example -->\n\n```\n(.*?)```", PAGE, flags=re.DOTALL)
    numbers = dict(re.findall(r"^([\w ]+?) {2,}(\S.*)$", block, flags=re.MULTILINE))
    settings = onnx_detect.Settings.parse(
        json.dumps({**export.settings_of(small_model()), "min_dim": 800, "max_dim": 1333})
    )
    height, width = map(int, numbers["image"].split(" x "))
    plan = onnx_detect.plan_resize(height, width, settings)
    assert numbers["resized"] == "{} x {}".format(*plan.size)
    assert numbers["padded"] == "{} x {}".format(*plan.padded_shape)
    assert numbers["window"] == str(plan.window)
    box = np.float32([json.loads(numbers["output box"])])
    boxes, keep = onnx_detect.boxes_in_image(box, plan.window, (height, width), settings)
    assert keep.all()
    assert json.loads(numbers["box in the image"]) == boxes[0].tolist()
    probs = np.float32(json.loads(numbers["mask"]))
    y, x, crop = onnx_detect.paste_mask(probs, boxes[0], (height, width), "centres")
    positions = onnx_detect._positions(boxes[0][0], boxes[0][2], 2, height, "centres")
    assert json.loads(numbers["first row and column"]) == [y, x]
    assert json.loads(numbers["positions of the rows"]) == positions[1].tolist()
    assert json.loads(numbers["pasted"]) == crop.astype(int).tolist()


def test_every_setting_is_on_the_page():
    for name in export.settings_of(small_model()):
        assert f"`{name}`" in PAGE, name
    for name in (*onnx_detect.INPUTS, *onnx_detect.OUTPUTS, "mask_ious"):
        assert f"`{name}`" in PAGE, name
