"""Small checkpoints with the names of Detectron2 and of Caffe2, for tests: every layer of ours in their words."""

import copy
import pickle
import re

import numpy as np
import torch

from config import Config
from model import network_shapes

SMALL = {
    "BACKBONE_WIDTH": 0.125,
    "TOP_DOWN_PYRAMID_SIZE": 8,
    "RPN_CHANNELS": 8,
    "FPN_CLASSIF_FC_LAYERS_SIZE": 8,
    "MASK_HEAD_CHANNELS": 8,
}
_WORDS = {
    r"backbone\.stem": r"backbone.bottom_up.stem.conv1",
    r"backbone\.layer(\d)": lambda match: f"backbone.bottom_up.res{int(match[1]) + 1}",
    r"fpn\.(lateral|output)\.(\d)": lambda match: f"backbone.fpn_{match[1]}{int(match[2]) + 2}",
    r"rpn\.convs\.0": "proposal_generator.rpn_head.conv",
    r"rpn\.objectness": "proposal_generator.rpn_head.objectness_logits",
    r"rpn\.deltas": "proposal_generator.rpn_head.anchor_deltas",
    r"box_head\.fcs\.(\d)": lambda match: f"roi_heads.box_head.fc{int(match[1]) + 1}",
    r"box_head\.class_logits": "roi_heads.box_predictor.cls_score",
    r"box_head\.box_deltas": "roi_heads.box_predictor.bbox_pred",
    r"mask_head\.convs\.(\d)": lambda match: f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}",
    r"mask_head\.upsample": "roi_heads.mask_head.deconv",
    r"mask_head\.mask_logits": "roi_heads.mask_head.predictor",
}
_NO_BACKGROUND = {"roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_head.predictor": 1}


def in_detectron2s_words(name: str) -> str:
    """Detectron2's name of a tensor that we call so."""
    for pattern, words in _WORDS.items():
        if re.match(pattern, name):
            return re.sub(pattern, words, name, count=1)
    raise KeyError(name)


def in_caffe2s_words(name: str) -> str:
    """Caffe2's name of a tensor of a backbone that we call so."""
    leaf = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b", "norm.running_mean": "bn_rm",
            "norm.running_var": "bn_riv"}  # fmt: skip
    if match := re.fullmatch(r"backbone\.stem\.(.+)", name):
        return ("conv1_" if match[1] == "weight" else "res_conv1_") + leaf[match[1]]
    stage, block, layer, rest = re.fullmatch(r"backbone\.layer(\d)\.(\d+)\.(\w+?)\.(.+)", name).groups()
    branch = "branch1" if layer == "shortcut" else f"branch2{'abc'[int(layer[-1]) - 1]}"
    return f"res{int(stage) + 1}_{block}_{branch}_{leaf[rest]}"


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of a tensor, the same each time; of a variance, above 0."""
    values = np.random.default_rng(abs(hash(tuple(name.encode()))) % 2**32).standard_normal(shape) / 10
    return (np.abs(values) + 0.5 if name.endswith(("running_var", "_riv")) else values).astype(np.float32)


def detectron2_state(backbone: str = "resnet18", classes: int = 3, **settings) -> dict[str, np.ndarray]:
    """A Mask R-CNN of Detectron2 with small heads. classes: without the background."""
    config = Config(
        DIALECT="detectron2", BACKBONE=backbone, USE_MASKIOU_HEAD=False, NUM_CLASSES=classes + 1, **SMALL, **settings
    )
    state = {}
    for ours, shape in network_shapes(config).items():
        name, shape = in_detectron2s_words(ours), list(shape)
        shape[0] -= _NO_BACKGROUND.get(name.rpartition(".")[0], 0)
        state[name] = numbers(name, tuple(shape))
    return state


def backbone_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a narrow backbone by our names."""
    shapes = network_shapes(Config(BACKBONE=backbone, BACKBONE_WIDTH=SMALL["BACKBONE_WIDTH"]))
    return {name: tuple(shape) for name, shape in shapes.items() if name.startswith("backbone.")}


def zoo_bytes(state: dict, protocol: int = 2, **others) -> bytes:
    """A file of the model zoo."""
    return pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo", **others}, protocol)


def trainer_contents(state: dict, **others) -> dict:
    """What Detectron2's trainer saves."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}
    schedule = {"base_lrs": [0.02], "last_epoch": 269999}
    return {"model": tensors, "optimizer": {"state": {}, "param_groups": [{"lr": 0.02}]}, "scheduler": schedule,
            "iteration": 269999, **others}  # fmt: skip


def config_yaml(**changes) -> dict:
    """Some keys of a config.yaml that fits detectron2_state; MODEL__RPN__NMS_THRESH is MODEL.RPN.NMS_THRESH."""
    contents = {
        "VERSION": 2,
        "INPUT": {"FORMAT": "BGR", "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333},
        "MODEL": {
            "META_ARCHITECTURE": "GeneralizedRCNN",
            "MASK_ON": True,
            "PIXEL_MEAN": [103.53, 116.28, 123.675],
            "PIXEL_STD": [1.0, 1.0, 1.0],
            "RESNETS": {"DEPTH": 18, "STRIDE_IN_1X1": True, "NORM": "FrozenBN"},
            "ANCHOR_GENERATOR": {"SIZES": [[32], [64], [128], [256], [512]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]},
            "RPN": {"NMS_THRESH": 0.7, "BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0], "CONV_DIMS": [-1]},
            "ROI_HEADS": {"NAME": "StandardROIHeads", "NUM_CLASSES": 3, "SCORE_THRESH_TEST": 0.05},
            "ROI_BOX_HEAD": {"POOLER_TYPE": "ROIAlignV2", "POOLER_RESOLUTION": 7},
        },
        "TEST": {"DETECTIONS_PER_IMAGE": 100},
    }
    return changed(contents, **changes)


def changed(contents: dict, **values) -> dict:
    """A copy of nested dicts with other values: MODEL__RPN__NMS_THRESH is MODEL.RPN.NMS_THRESH."""
    contents = copy.deepcopy(contents)
    for key, value in values.items():
        *parents, name = key.split("__") if not key.startswith("_") else [key]
        place = contents
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return contents
