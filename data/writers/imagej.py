"""Writes records as ImageJ's regions of interest: NAME_RoiSet.zip for each picture.

Polygons go along the edges of pixels and give the mask back to the bit. An object with holes or of several parts is a
composite. A ROI's name is its class and its number. The class as it is, and the attributes, are among its properties,
which ImageJ lists, because a name cannot tell a number of its own from one that belongs to the class.
"""

import io
import json
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import utils
from data.object_checks import class_name
from data.recognise import Records
from data.records import Object

from .common import attribute_text, each_picture, write_bytes
from .outlines import outlines

CLASS = "class"  # the property that has it
_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0  # java.awt.geom.PathIterator
_DATE = (1980, 1, 1, 0, 0, 0)  # of the members, so that equal objects are equal files


def write_imagej(records: Records, folder: Path, copy_pictures: bool = False, notes: list[str] | None = None) -> Path:
    """Writes folder/NAME_RoiSet.zip for each picture; with copy_pictures, the pictures beside them.

    notes: as data/writers/common.py says.

    Returns: the folder.
    """
    for found in each_picture(records, folder, copy_pictures, notes):
        data = io.BytesIO()
        digits = max(4, len(str(len(found.objects))))
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
            for number, (parsed, rle) in enumerate(found.objects, 1):
                name = f"{_plain(class_name(parsed))}-{number:0{digits}d}"
                roi = _roi(parsed, rle, name)
                file.writestr(zipfile.ZipInfo(f"{name}.roi", _DATE), roi.tobytes(), zipfile.ZIP_DEFLATED)
        name = PurePosixPath(found.name)
        write_bytes(folder / name.with_name(f"{name.stem}_RoiSet.zip"), data.getvalue())
    return folder


def _plain(name: str) -> str:
    """A name without what a member of a zip file must not have, nor characters that take two words of UTF-16."""
    return "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() or ord(c) > 0xFFFF else c for c in name)[:100]


def _roi(parsed: Object, rle: dict, name: str) -> Any:
    import roifile  # here: few commands write ROIs

    y1, x1, crop = utils.rle_to_crop(rle)
    parts = outlines(crop)
    rings = [np.add(ring, [x1, y1]) for part in parts for ring in (part.outer, *part.holes)]
    if len(rings) == 1:
        roi = roifile.ImagejRoi.frompoints(rings[0].astype(np.int32), name=name)
    else:
        roi = roifile.ImagejRoi()
        roi.roitype, roi.name = roifile.ROI_TYPE.RECT, name
        roi.left, roi.top, roi.right, roi.bottom = x1, y1, x1 + crop.shape[1], y1 + crop.shape[0]
        roi.multi_coordinates = np.concatenate([_path(ring) for ring in rings]).astype(np.float32)
        roi.shape_roi_size = len(roi.multi_coordinates)
    properties = {CLASS: class_name(parsed), **attribute_text(parsed)}
    roi.props = "".join(f"{_plain(key)}: {property_text(value)}\n" for key, value in properties.items())
    return roi


def property_text(value: str) -> str:
    """A value of a property: as it is, or as JSON where it has new lines, quotes or unusual characters."""
    is_plain = value.isprintable() and value == value.strip() and '"' not in value and max(value, default="") < "\ud800"
    return value if is_plain else json.dumps(value)


def _path(ring: np.ndarray) -> np.ndarray:
    """The numbers of ImageJ's path: a kind and a point each, and the kind that closes the ring."""
    kinds = np.full(len(ring), _LINE)
    kinds[0] = _MOVE
    return np.append(np.column_stack([kinds, ring]).ravel(), _CLOSE)
