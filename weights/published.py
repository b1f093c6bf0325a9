"""Published checkpoints: names, addresses, hashes, and where their files are on this machine."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import BACKBONES, Config

from .download import download, sha256_of


@dataclass(frozen=True)
class Published:
    """A checkpoint that somebody offers for download."""

    name: str
    url: str
    sha256: str | None  # its first digits, as many as are published
    style: str | None  # of its ResNet: caffe or pytorch
    note: str
    settings: Mapping[str, Any] | None = None  # of Config, to train it anew; None where this project cannot


_MMDET_URL = "https://download.openmmlab.com/mmdetection/v2.0/ms_rcnn/"
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
    url = f"{_MMDET_URL}{name}/{name}_{suffix}.pth"
    return Published(name, url, suffix.rsplit("-", 1)[1], style, note, settings)


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
PUBLISHED: dict[str, Published] = {
    "coco": _MS_RCNN[3],
    **{published.name: published for published in _MS_RCNN},
    "matterport": Published("matterport", _MATTERPORT_URL, None, "caffe", "Matterport's Mask R-CNN, ResNet-101"),
    "torchvision": _torch_file(
        "torchvision", "maskrcnn_resnet50_fpn_coco-bf2d0c1e", "torchvision's Mask R-CNN, ResNet-50, v1"
    ),
    "torchvision_v2": _torch_file(
        "torchvision_v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019", "torchvision's Mask R-CNN, ResNet-50, v2"
    ),
}


# Models that this project trained and that lie in assets/. The script of the same name in samples/ trains each.
ROOT = Path(__file__).resolve().parent.parent
EMBEDDED: dict[str, Path] = {name: ROOT / "assets" / f"{name}.pth" for name in ("shapes", "nuclei")}
MODEL_NAMES = (*PUBLISHED, *EMBEDDED)

# --model imagenet, by backbone and style. OpenMMLab's are what mmdetection's published models started from.
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
    """The published checkpoint that a name means. None for a file, even of such a name, and for other names."""
    is_file = Path(name_or_path).expanduser().is_file()
    return None if is_file else PUBLISHED.get(str(name_or_path))


def find_weights(name_or_path: str | Path, backbone: str | None = None, style: str | None = None) -> Path:
    """The file that a name or path means: the path itself, a model in assets/, or a published file in models/, in the
    cache or downloaded.

    backbone, style: of the network that starts from "imagenet".

    Raises: FileNotFoundError for a path that does not exist, and for a download that failed, with the URL and the
        folders to put the file into; ValueError for unknown names, a wrong sha256, and "imagenet" if no weights are
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
    if name not in PUBLISHED:
        raise _unknown_model(name, path)
    return _fetch(PUBLISHED[name])


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
    names = [*MODEL_NAMES, "imagenet"]
    if path.suffix or len(path.parts) > 1:
        return FileNotFoundError(f"model {name} does not exist; as a name, it is none of {', '.join(names)} either")
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return ValueError(f"model {name!r} is neither a file nor one of {', '.join(names)}{hint}")


def _fetch(published: Published) -> Path:
    """The file of a published checkpoint, downloaded if this machine lacks it. Its sha256 is always checked."""
    file_name = published.url.rsplit("/", 1)[1]
    for folder in (MODELS, cache_folder()):
        path = folder / file_name
        if path.is_file():
            if published.sha256 and not (actual := sha256_of(path)).startswith(published.sha256):
                raise ValueError(
                    f"{path} has sha256 {actual}, expected {published.sha256}...: it is not the published file, or "
                    f"only a part of it. Remove it, and it will be downloaded again from {published.url}"
                )
            return path
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        download(published.url, path, sha256=published.sha256)
    except OSError as error:
        raise FileNotFoundError(
            f"{published.name} is not on this machine and could not be downloaded ({error.__cause__ or error}). Try "
            f"again, which resumes; or fetch {published.url} elsewhere and put the file into {MODELS} "
            f"or {cache_folder()}"
        ) from None
    return path
