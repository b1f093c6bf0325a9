"""Published checkpoints: names, addresses, hashes, and where their files are on this machine."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import BACKBONES, Config

from .class_names import KNOWN_CLASSES
from .download import Digest, download, expected_digest


@dataclass(frozen=True)
class Published:
    """A checkpoint that somebody offers for download."""

    name: str
    url: str
    sha256: str | None  # its first digits, as many as are published
    style: str | None  # of its ResNet: caffe or pytorch
    note: str
    settings: Mapping[str, Any] | None = None  # of Config, to train it anew; None where this project cannot
    md5: str | None = None  # its first digits, where they are published instead of the sha256
    detection: Mapping[str, Any] = field(default_factory=dict)  # settings of Config that its file does not say

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def digest(self) -> Digest | None:
        """The hash that its file should have; None where none is published."""
        return expected_digest(self.sha256, self.md5)


############################################################
#  mmdetection, torchvision, Matterport
############################################################

_MMDET_URL = "https://download.openmmlab.com/mmdetection/v2.0/"
_TORCH_URL = "https://download.pytorch.org/models/"
_MATTERPORT_URL = "https://github.com/matterport/Mask_RCNN/releases/download/v2.0/mask_rcnn_coco.h5"


def _ms_rcnn(backbone: str, style: str, schedule: str, box_ap: float, mask_ap: float, suffix: str) -> Published:
    """A Mask Scoring R-CNN of mmdetection. suffix: how its file's name ends, the hash last."""
    short = backbone.replace("resnext", "x").replace("resnet", "r") + ("_caffe" if style == "caffe" else "")
    name = f"ms_rcnn_{short}_fpn_{schedule}_coco"
    note = f"mmdetection's {name}: COCO box AP {box_ap}, mask AP {mask_ap}"
    settings = {"BACKBONE": backbone, "BACKBONE_STYLE": style, "SCHEDULE": schedule}
    if style == "caffe":
        settings["STD_PIXEL"] = (1.0, 1.0, 1.0)
    url = f"{_MMDET_URL}ms_rcnn/{name}/{name}_{suffix}.pth"
    return Published(name, url, suffix.rsplit("-", 1)[1], style, note, settings)


def _mmdet_mask_rcnn(short: str, box_ap: float, mask_ap: float, suffix: str) -> Published:
    """A plain Mask R-CNN of mmdetection, of 36 epochs and short sides of 640 to 800. short: its backbone.

    Its file has a config, which says the order of the channels; weights/convert.py knows it where the file does not.
    """
    name = f"mask_rcnn_{short}_fpn_mstrain-poly_3x_coco"
    note = f"mmdetection's {name}: COCO box AP {box_ap}, mask AP {mask_ap}"
    style = "caffe" if short.endswith("_caffe") else "pytorch"
    return Published(name, f"{_MMDET_URL}mask_rcnn/{name}/{name}_{suffix}.pth", suffix.rsplit("-", 1)[1], style, note)


def _torch_file(name: str, stem: str, note: str) -> Published:
    return Published(name, f"{_TORCH_URL}{stem}.pth", stem.rsplit("-", 1)[1], "pytorch", note)


_R50_2X = "bbox_mAP-0.388__segm_mAP-0.363_20200506_004738-ee87b137"
_R101_1X = "bbox_mAP-0.404__segm_mAP-0.376_20200506_004755-b9b12a37"
_R101_2X = "bbox_mAP-0.411__segm_mAP-0.381_20200506_011134-5f3cc74f"
_MS_RCNN = (
    _ms_rcnn("resnet50", "caffe", "1x", 38.2, 36.0, "20200702_180848-61c9355e"),
    _ms_rcnn("resnet50", "caffe", "2x", 38.8, 36.3, _R50_2X),
    _ms_rcnn("resnet101", "caffe", "1x", 40.4, 37.6, _R101_1X),
    _ms_rcnn("resnet101", "caffe", "2x", 41.1, 38.1, _R101_2X),
    _ms_rcnn("resnext101_32x4d", "pytorch", "1x", 41.8, 38.7, "20200206-81fd1740"),
    _ms_rcnn("resnext101_64x4d", "pytorch", "1x", 43.0, 39.5, "20200206-86ba88d2"),
    _ms_rcnn("resnext101_64x4d", "pytorch", "2x", 42.6, 39.5, "20200308-02a445e2"),
)
_MMDET_MASK_RCNN = (
    _mmdet_mask_rcnn("r50_caffe", 40.8, 37.0, "bbox_mAP-0.408__segm_mAP-0.37_20200504_163245-42aa3d00"),
    _mmdet_mask_rcnn("r50", 40.9, 37.1, "20210524_201154-21b550bb"),
    _mmdet_mask_rcnn("r101_caffe", 42.9, 38.5, "20210526_132339-3c33ce02"),
    _mmdet_mask_rcnn("r101", 42.7, 38.5, "20210524_200244-5675c317"),
    _mmdet_mask_rcnn("x101_32x4d", 43.6, 39.0, "20210524_201410-abcd7859"),
    _mmdet_mask_rcnn("x101_32x8d", 44.3, 39.5, "20210607_161042-8bd2c639"),
    _mmdet_mask_rcnn("x101_64x4d", 44.5, 39.7, "20210526_120447-c376f129"),
)


############################################################
#  detectron2's model zoo
############################################################

_DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2/"


def _detectron2(
    path: str, box_ap: float | None, mask_ap: float, style: str = "caffe", prefix: str = "", **detection: Any
) -> Published:
    """A Mask R-CNN of detectron2's model zoo.

    path: of its file, below the zoo's address: group/name/number/model_final_<first digits of its md5>.pkl.
    prefix: what makes its name here another one than that of COCO's model. detection: settings of Config that its
        config changes and its file does not say.
    """
    group, config, _, file = path.split("/")
    data = {"LVISv0.5-InstanceSegmentation": "LVIS v0.5", "Cityscapes": "Cityscapes"}.get(group, "COCO")
    box = "" if box_ap is None else f"box AP {box_ap}, "
    md5 = re.fullmatch(r"model_final_([0-9a-f]{6})\.pkl", file)[1]
    note = f"detectron2's {config}: {data} {box}mask AP {mask_ap}"
    return Published(prefix + config, _DETECTRON2_URL + path, None, style, note, md5=md5, detection=detection)


def _lvis(backbone: str, file: str, box_ap: float, mask_ap: float, style: str = "caffe", **detection: Any) -> Published:
    """A Mask R-CNN of LVIS: 1,230 classes, of which the rare ones have low scores."""
    limits = {"DETECTION_MIN_CONFIDENCE": 0.0001, "DETECTION_MAX_INSTANCES": 300}
    path = f"LVISv0.5-InstanceSegmentation/mask_rcnn_{backbone}_FPN_1x/{file}"
    return _detectron2(path, box_ap, mask_ap, style, "lvis_", **limits, **detection)


_COCO = "COCO-InstanceSegmentation/mask_rcnn_"
_LSJ = "new_baselines/mask_rcnn_"
_DEVIATION = {"STD_PIXEL": (58.395, 57.12, 57.375)}  # all others divide by 1
_DETECTRON2 = (
    _detectron2(f"{_COCO}R_50_FPN_1x/137260431/model_final_a54504.pkl", 38.6, 35.2),
    _detectron2(f"{_COCO}R_50_FPN_3x/137849600/model_final_f10217.pkl", 41.0, 37.2),
    _detectron2(f"{_COCO}R_101_FPN_3x/138205316/model_final_a3ec72.pkl", 42.9, 38.6),
    _detectron2(f"{_COCO}X_101_32x8d_FPN_3x/139653917/model_final_2d9806.pkl", 44.3, 39.5, "pytorch", **_DEVIATION),
    _detectron2(f"{_LSJ}R_50_FPN_100ep_LSJ/42047764/model_final_bb69de.pkl", 44.6, 40.3),
    _detectron2(f"{_LSJ}R_50_FPN_200ep_LSJ/42047638/model_final_89a8d3.pkl", 46.3, 41.7),
    _detectron2(f"{_LSJ}R_50_FPN_400ep_LSJ/42019571/model_final_14d201.pkl", 47.4, 42.5),
    _detectron2(f"{_LSJ}R_101_FPN_100ep_LSJ/42025812/model_final_4f7b58.pkl", 46.4, 41.6),
    _detectron2(f"{_LSJ}R_101_FPN_200ep_LSJ/42131867/model_final_0bb7ae.pkl", 48.0, 43.1),
    _detectron2(f"{_LSJ}R_101_FPN_400ep_LSJ/42073830/model_final_f96b26.pkl", 48.9, 43.7),
    # The stride of SyncBN's was in the 3x3 until February 2020 (issue 909 there), when this file replaced another.
    _detectron2("Misc/mask_rcnn_R_50_FPN_3x_syncbn/169527823/model_final_3b3c51.pkl", 41.9, 37.8),
    _detectron2("Misc/mask_rcnn_R_50_FPN_3x_gn/138602888/model_final_dc5d9e.pkl", 42.6, 38.6, "pytorch"),
    _detectron2("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn/138602908/model_final_01ca85.pkl", 39.9, 36.6, "pytorch"),
    _detectron2(
        "Misc/scratch_mask_rcnn_R_50_FPN_9x_gn/183808979/model_final_da7b4c.pkl", 43.7, 39.6, "pytorch", **_DEVIATION
    ),
    _detectron2(
        "Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn/184226666/model_final_5ce33e.pkl",
        43.6,
        39.3,
        "pytorch",
        **_DEVIATION,
    ),
    _detectron2(
        "Cityscapes/mask_rcnn_R_50_FPN/142423278/model_final_af9cf5.pkl",
        None,
        36.5,
        prefix="cityscapes_",
        IMAGE_MIN_DIM=1024,
        IMAGE_MAX_DIM=2048,
        CLASS_NAMES=("BG", *KNOWN_CLASSES["cityscapes"]),
    ),
    _lvis("R_50", "144219072/model_final_571f7c.pkl", 23.6, 24.4),
    _lvis("R_101", "144219035/model_final_824ab5.pkl", 25.6, 25.9),
    _lvis("X_101_32x8d", "144219108/model_final_5e3439.pkl", 26.7, 27.1, "pytorch", **_DEVIATION),
)
_BEST = next(published for published in _DETECTRON2 if published.name == "mask_rcnn_R_101_FPN_400ep_LSJ")


############################################################
#  Names
############################################################

PUBLISHED: dict[str, Published] = {
    "coco": _MS_RCNN[3],
    "best": _BEST,
    **{published.name: published for published in (*_MS_RCNN, *_DETECTRON2, *_MMDET_MASK_RCNN)},
    "matterport": Published("matterport", _MATTERPORT_URL, None, "caffe", "Matterport's Mask R-CNN, ResNet-101"),
    "torchvision": _torch_file(
        "torchvision", "maskrcnn_resnet50_fpn_coco-bf2d0c1e", "torchvision's Mask R-CNN, ResNet-50, v1"
    ),
    "torchvision_v2": _torch_file(
        "torchvision_v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019", "torchvision's Mask R-CNN, ResNet-50, v2"
    ),
}


# Models that this project trained and that lie in assets/; docs/results.md says how.
ROOT = Path(__file__).resolve().parent.parent
EMBEDDED: dict[str, Path] = {name: ROOT / "assets" / f"{name}.pth" for name in ("shapes", "nuclei", "photos")}
MODEL_NAMES = (*PUBLISHED, *EMBEDDED)


def some_names(*more: str) -> str:
    """A few names of models, for messages and --help, and where all are. more: names to add."""
    few = ("coco", "best", "ms_rcnn_r50_caffe_fpn_1x_coco", "mask_rcnn_R_50_FPN_3x", "torchvision", "matterport")
    return (
        f"{', '.join((*few, *EMBEDDED, *more))} and {len(MODEL_NAMES) - len(few) - len(EMBEDDED)} more (docs/models.md)"
    )


def _plain(name: str) -> str:
    """What all spellings of a name have in common.

    detectron2 names a model by the path of its config, with or without .yaml, and by its address. mmdetection 3 writes
    the names of version 2 with other separators, and mstrain as ms.
    """
    name = name.removeprefix("detectron2://").removeprefix(_DETECTRON2_URL)
    name = re.sub(r"\.(yaml|yml|py)$", "", name.lower())
    return re.sub(r"[-_]+", "_", name).replace("mstrain", "ms")


def _spellings(published: Published) -> list[str]:
    """A published model's name, and of detectron2's also the path of its config and that of its file."""
    if not published.url.startswith(_DETECTRON2_URL):
        return [published.name]
    path = published.url.removeprefix(_DETECTRON2_URL)
    return [published.name, "/".join(path.split("/")[:2]), path]


_NAMES = {_plain(text): name for name, published in PUBLISHED.items() for text in _spellings(published)}
_NAMES |= {_plain(name): name for name in PUBLISHED}

############################################################
#  ImageNet
############################################################

# --model imagenet, by backbone and style. OpenMMLab's are what mmdetection's published models started from; those of
# caffe style are MSRA's, which detectron2's started from, too.
_PRETRAIN_URL = "https://download.openmmlab.com/pretrain/third_party/"


def _pretrained(backbone: str, hash_: str, style: str = "pytorch", file: str | None = None) -> Published:
    url = f"{_PRETRAIN_URL}{file}-{hash_}.pth" if file else f"{_TORCH_URL}{backbone}-{hash_}.pth"
    note = f"{'OpenMMLab' if file else 'torchvision'}'s {backbone}, {style} style, trained on ImageNet"
    return Published("imagenet", url, hash_, style, note)


IMAGENET: dict[tuple[str, str], Published] = {
    ("resnet18", "pytorch"): _pretrained("resnet18", "f37072fd"),
    ("resnet34", "pytorch"): _pretrained("resnet34", "b627a593"),
    ("resnet50", "pytorch"): _pretrained("resnet50", "0676ba61"),
    ("resnet101", "pytorch"): _pretrained("resnet101", "63fe2227"),
    ("resnet152", "pytorch"): _pretrained("resnet152", "394f9c45"),
    ("resnet50", "caffe"): _pretrained("resnet50", "5891d200", "caffe", "resnet50_msra"),
    ("resnet101", "caffe"): _pretrained("resnet101", "6cc46731", "caffe", "resnet101_msra"),
    ("resnext101_32x4d", "pytorch"): _pretrained("resnext101_32x4d", "a5af3160", file="resnext101_32x4d"),
    ("resnext101_64x4d", "pytorch"): _pretrained("resnext101_64x4d", "ee2c6f71", file="resnext101_64x4d"),
    ("resnext101_32x8d", "pytorch"): _pretrained("resnext101_32x8d", "8ba56ff5"),
}
MODELS = ROOT / "models"


def cache_folder() -> Path:
    """Where downloads are kept: $MASKSCORING_CACHE, or mask-scoring-rcnn in the user's cache folder."""
    if os.environ.get("MASKSCORING_CACHE"):
        return Path(os.environ["MASKSCORING_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mask-scoring-rcnn"


def find_published(name_or_path: str | Path) -> Published | None:
    """The published checkpoint that a name means, in any spelling, or that a file is: one of a published file's name
    and hash. None for other files and names.
    """
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        return PUBLISHED.get(_NAMES.get(_plain(str(name_or_path)), ""))
    published = _FILES.get(path.name)
    is_that = published is not None and published.digest is not None and not published.digest.mismatch(path)
    return published if is_that else None


_FILES = {published.file_name: published for published in PUBLISHED.values()}


def find_weights(name_or_path: str | Path, backbone: str | None = None, style: str | None = None) -> Path:
    """The file that a name or path means: the path itself, a model in assets/, or a published file in models/, in the
    cache or downloaded.

    backbone, style: of the network that starts from "imagenet".

    Raises: FileNotFoundError for a path that does not exist, and for a download that failed, with the URL and the
        folders to put the file into; ValueError for unknown names, a wrong hash, and "imagenet" if no weights are
        published for the backbone and style.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    name = str(name_or_path)
    if name == "imagenet":
        return _fetch(_imagenet(backbone, style))
    if name in EMBEDDED:
        return _embedded(name)
    published = find_published(name)
    if published is None:
        raise _unknown_model(name, path)
    return _fetch(published)


def imagenet_weights(config: Config) -> Path:
    """The file with ImageNet weights that a training of this config starts from: IMAGENET_MODEL_PATH, or the published
    one for BACKBONE and BACKBONE_STYLE.

    Raises: FileNotFoundError if IMAGENET_MODEL_PATH is not a file; else as find_weights.
    """
    if config.IMAGENET_MODEL_PATH is None:
        return find_weights("imagenet", config.BACKBONE, config.BACKBONE_STYLE)
    path = Path(config.IMAGENET_MODEL_PATH).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"IMAGENET_MODEL_PATH {path} must be a file with ImageNet weights, and there is no such file; without "
            "this setting, training starts from the published weights"
        )
    return path


def _imagenet(backbone: str | None, style: str | None) -> Published:
    if backbone not in BACKBONES:
        raise ValueError(
            f"imagenet needs the backbone that starts from it, one of {', '.join(BACKBONES)}, not {backbone!r}"
        )
    if backbone in ("resnet18", "resnet34"):
        style = "pytorch"  # no 1x1 convolution that could have the stride
    published = IMAGENET.get((backbone, style or "pytorch"))
    if published is None:
        raise ValueError(
            f"No ImageNet weights are published for {backbone} of {style} style (BACKBONE_STYLE: where a bottleneck "
            "has its stride). Choose the other style, give a file (--model PATH), or start from a detector that has it"
        )
    return published


def _embedded(name: str) -> Path:
    path = EMBEDDED[name]
    if not path.is_file():
        raise FileNotFoundError(
            f"model {name} should be in {path}, which is missing; `git checkout {path}` restores it"
        )
    return path


def _unknown_model(name: str, path: Path) -> Exception:
    if path.is_dir():
        return ValueError(f"model {name} is a folder; give a checkpoint file in it")
    hint = _hint(name, path)
    if path.suffix or len(path.parts) > 1:
        return FileNotFoundError(
            f"model {name} does not exist; as a name, it is none of {some_names('imagenet')} either{hint}"
        )
    return ValueError(f"model {name!r} is neither a file nor one of {some_names('imagenet')}{hint}")


def _hint(name: str, path: Path) -> str:
    """The name that was meant, for a message: of a published file, or one that is spelled alike."""
    if path.name in _FILES:
        return f"; {path.name} is the file of {_FILES[path.name].name}, and that name downloads it"
    names = {**_NAMES, **{_plain(other): other for other in (*EMBEDDED, "imagenet")}}
    likeness = 0.8 if path.suffix or len(path.parts) > 1 else 0.6  # most paths are meant as paths
    close = difflib.get_close_matches(_plain(name), names, n=1, cutoff=likeness)
    return f"; did you mean {names[close[0]]}?" if close else ""


def _fetch(published: Published) -> Path:
    """The file of a published checkpoint, downloaded if this machine lacks it. Its hash is always checked."""
    expected = published.digest
    for folder in (MODELS, cache_folder()):
        path = folder / published.file_name
        if path.is_file():
            if expected is not None and (actual := expected.mismatch(path)):
                raise ValueError(
                    f"{path} has {expected.kind} {actual}, expected {expected.digits}...: it is not the published "
                    f"file, or only a part of it. Remove it, and it will be downloaded again from {published.url}"
                )
            return path
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        download(published.url, path, sha256=published.sha256, md5=published.md5)
    except OSError as error:
        raise FileNotFoundError(
            f"{published.name} is not on this machine and could not be downloaded ({error.__cause__ or error}). Try "
            f"again, which resumes; or fetch {published.url} elsewhere and put the file into {MODELS} "
            f"or {cache_folder()}"
        ) from None
    return path
