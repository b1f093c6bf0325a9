"""Every format that records can be written in, by its name on command lines."""

from collections.abc import Callable
from pathlib import Path

from .coco import write_coco
from .cvat import write_cvat
from .geojson import write_geojson
from .imagej import write_imagej
from .label_images import write_label_images
from .labelme import write_labelme
from .voc import write_voc
from .yolo import write_yolo

WRITERS: dict[str, Callable[..., Path]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "labelme": write_labelme,
    "voc": write_voc,
    "label_images": write_label_images,
    "geojson": write_geojson,
    "imagej": write_imagej,
    "cvat": write_cvat,
}
