"""Masks as training keeps them: cut out where they are not empty, so that no mask is as large as its image.

H, W an image's height and width   N instances
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

import utils
from roialign import MaskCrops


class Crop(NamedTuple):
    """A mask where it is not empty."""

    y: int
    x: int
    mask: np.ndarray  # bool [h, w]; 0 x 0 if it is empty


class Flips(NamedTuple):
    """How an image is mirrored."""

    vertical: bool  # upside down
    horizontal: bool  # left to right


NO_FLIPS = Flips(False, False)


############################################################
#  Masks
############################################################


def extents(masks: np.ndarray | list[dict]) -> np.ndarray:
    """float32 [N, (y1, x1, y2, x2)]: the smallest box around each mask of a stack [H, W, N], or of N RLEs.

    Zeros if a mask is empty. No RLE is decoded to a mask.
    """
    if isinstance(masks, list):
        boxes = [utils.rle_to_bbox(rle) for rle in masks]
    else:
        sides = [map(_span, filled) for filled in (masks.any(axis=1).T, masks.any(axis=0).T)]  # of [N, H], of [N, W]
        boxes = [(y1, x1, y2, x2) for (y1, y2), (x1, x2) in zip(*sides, strict=True)]
    return np.array(boxes, np.float32).reshape(-1, 4)


def cut_out(
    masks: np.ndarray | list[dict], chosen: Sequence[int] | None = None, boxes: np.ndarray | None = None
) -> list[Crop]:
    """The crops of a stack [H, W, N], or of N RLEs.

    chosen: the masks to cut out, n of the N; None: all. boxes: [n, 4] in whole pixels, of the part of each that is
        wanted; None: its extent.
    """
    chosen = range(masks.shape[2] if isinstance(masks, np.ndarray) else len(masks)) if chosen is None else chosen
    if isinstance(masks, list):
        regions = [None] * len(chosen) if boxes is None else boxes.astype(np.int64).tolist()
        return [Crop(*utils.rle_to_crop(masks[i], region)) for i, region in zip(chosen, regions, strict=True)]
    regions = (extents(masks)[chosen] if boxes is None else boxes).astype(np.int64).tolist()
    return [Crop(y1, x1, masks[y1:y2, x1:x2, i]) for i, (y1, x1, y2, x2) in zip(chosen, regions, strict=True)]


def _span(filled: np.ndarray) -> tuple[int, int]:
    """The index of the first True in bool [n], and the index after the last one; (0, 0) if there is none."""
    indices = np.flatnonzero(filled)
    return (int(indices[0]), int(indices[-1]) + 1) if len(indices) else (0, 0)


def trim(y: int, x: int, mask: np.ndarray) -> Crop:
    """The crop without its empty rows and columns."""
    (top, bottom), (left, right) = _span(mask.any(axis=1)), _span(mask.any(axis=0))
    return Crop(y + top, x + left, mask[top:bottom, left:right])


def resize_crop(crop: Crop, rows: np.ndarray, columns: np.ndarray, flips: Flips = NO_FLIPS) -> Crop:
    """The crop of the resized mask: as utils.resize_mask resizes a whole mask, but only the part that is not empty.

    rows, columns: int64 [h] and [w], ascending: which row and column of the mask each of the result copies.
    flips: of the result.
    """
    y, x, mask = crop
    top, bottom = np.searchsorted(rows, (y, y + mask.shape[0])).tolist()
    left, right = np.searchsorted(columns, (x, x + mask.shape[1])).tolist()
    mask = mask[rows[top:bottom] - y][:, columns[left:right] - x]
    if flips.horizontal:
        mask, left = mask[:, ::-1], len(columns) - right
    if flips.vertical:
        mask, top = mask[::-1], len(rows) - bottom
    return trim(top, left, mask)


def turn_crop(crop: Crop, shape: Sequence[int], turns: int) -> Crop:
    """The crop of a mask [H, W] of this shape that is turned as np.rot90 turns it: counterclockwise, by quarters."""
    y, x, mask = crop
    height, width = shape[:2]
    corners = (y, x), (width - x - mask.shape[1], y), (height - y - mask.shape[0], width - x - mask.shape[1])
    top, left = (*corners, (x, height - y - mask.shape[0]))[turns % 4]
    return Crop(top, left, np.rot90(mask, turns))


def turned_size(shape: Sequence[int], turns: int) -> tuple[int, int]:
    """(height, width) of an image of this shape (height, width, ...) after quarter turns."""
    return (shape[1], shape[0]) if turns % 2 else (shape[0], shape[1])


def shift_crop(crop: Crop, y: int, x: int, size: tuple[int, int]) -> Crop:
    """The crop moved by (y, x) and cut off at the edges of an image of this size (height, width)."""
    y, x = crop.y + y, crop.x + x
    top, left = max(y, 0), max(x, 0)
    mask = crop.mask[top - y : max(size[0] - y, 0), left - x : max(size[1] - x, 0)]
    return trim(top, left, mask)


############################################################
#  Boxes
############################################################


def bounds(crops: Sequence[Crop]) -> np.ndarray:
    """float32 [N, 4]: the box around each crop."""
    boxes = [(y, x, y + mask.shape[0], x + mask.shape[1]) for y, x, mask in crops]
    return np.array(boxes, np.float32).reshape(-1, 4)


def flip_boxes(boxes: np.ndarray, size: Sequence[int], flips: Flips) -> np.ndarray:
    """Boxes [N, 4] of an image of this size (height, width), mirrored with it."""
    height, width = size[:2]
    if flips.horizontal:
        boxes = np.stack([boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1]], axis=1)
    if flips.vertical:
        boxes = np.stack([height - boxes[:, 2], boxes[:, 1], height - boxes[:, 0], boxes[:, 3]], axis=1)
    return boxes


def turn_boxes(boxes: np.ndarray, shape: Sequence[int], turns: int) -> np.ndarray:
    """Boxes [N, 4] of an image of this shape (height, width, ...), turned as np.rot90 turns it."""
    height, width = shape[:2]
    for _ in range(turns % 4):
        y1, x1, y2, x2 = boxes.T
        boxes = np.stack([width - x2, y1, width - x1, y2], axis=1)
        height, width = width, height
    return boxes


def clip_boxes(boxes: np.ndarray, bounds: np.ndarray, size: tuple[int, int], is_cropped: bool) -> np.ndarray:
    """Boxes of a data set, clipped to an image of this size (height, width): float32 [N, 4].

    bounds: [N, 4], the boxes around the masks. They replace boxes that a crop cuts: the rest of an object may be
        smaller than the rest of its box.
    """
    inside = boxes.clip(0, np.array(size * 2, np.float32))
    is_cut = (inside != boxes).any(axis=1, keepdims=True) & is_cropped
    return np.where(is_cut, bounds, inside)


############################################################
#  Packing
############################################################


def shrink(crop: Crop, shape: tuple[int, int]) -> Crop:
    """The mini mask of a crop: resized to a shape, with (0, 0) as its corner."""
    height, width = crop.mask.shape
    return Crop(0, 0, utils.minimize_mask(np.array([[0, 0, height, width]]), crop.mask[..., None], shape)[..., 0])


def pack(crops: Sequence[Crop], canvas: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> MaskCrops:
    """All crops as one MaskCrops. origin: (y, x) in the canvas of the point that the crops' y and x count from."""
    pixels = np.concatenate([np.zeros(0, bool), *(crop.mask.ravel() for crop in crops)])
    sizes = torch.tensor([crop.mask.shape for crop in crops], dtype=torch.int64).view(-1, 2)
    origins = torch.tensor([(crop.y, crop.x) for crop in crops], dtype=torch.int64).view(-1, 2)
    areas = sizes.prod(dim=1)
    return MaskCrops(
        pixels=torch.from_numpy(pixels.view(np.uint8)),
        offsets=areas.cumsum(0) - areas,
        sizes=sizes,
        origins=origins + torch.tensor(origin),
        canvases=torch.tensor(canvas).expand(len(crops), 2).contiguous(),
    )
