"""Every stage between an image and its detections, as pictures: anchors, refinement, masks, composition, scores.

N detections   R proposals   M mask side
Boxes are (y1, x1, y2, x2) in pixels of the image.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import utils
import visualize
from detections import Detections
from model import Images, MaskRCNN, clip_to_windows, decode_boxes, shrink, survive_rounding, unmold_boxes

############################################################
#  Looking inside
############################################################


class Inside(NamedTuple):
    """What lies between an image and its detections."""

    anchor_count: int
    anchors: np.ndarray  # [k, 4], those with the best objectness, best first
    refined: np.ndarray  # [k, 4], the same moved by their deltas, not clipped yet
    proposals: np.ndarray  # [R, 4], best first
    rois: np.ndarray  # [N, 4], the proposal that each detection comes from
    probs: np.ndarray  # [N, M, M], the masks as the network gives them
    result: dict[str, Any]  # of detect(masks="rle")


@torch.no_grad()
def look_inside(model: MaskRCNN, image: np.ndarray, best: int = 30) -> Inside:
    """Detect in an image, uint8 [H, W, 3], and keep what leads there. best: how many anchors to keep."""
    config, out = model.config, {}
    molded, _, windows = model.mold_inputs([image])
    pixels = torch.from_numpy(molded).to(model.device).permute(0, 3, 1, 2)
    found = model.predict(Images(pixels, torch.from_numpy(windows).to(pixels)), out)
    window = shrink(torch.from_numpy(windows).to(pixels), config)
    anchors, deltas = torch.cat(out["anchors"]), torch.cat(out["rpn/anchor_deltas"], dim=1)[0]
    top = torch.cat(out["rpn/objectness_logits"], dim=1)[0].topk(min(best, len(anchors))).indices
    refined = decode_boxes(anchors[top], deltas[top], config.RPN_BBOX_STD_DEV, config)
    rois = out["proposals"][_origins(found, out, window, config)]

    def in_image(boxes: Tensor) -> np.ndarray:
        return unmold_boxes(boxes.cpu(), windows[0], image.shape, config).numpy()

    found = found.to("cpu")
    kept = survive_rounding(unmold_boxes(found.boxes, windows[0], image.shape, config), config).numpy()
    return Inside(
        anchor_count=len(anchors),
        anchors=in_image(anchors[top]),
        refined=in_image(refined),
        proposals=in_image(out["proposals"]),
        rois=in_image(rois)[kept],  # results leave out what rounding leaves nothing of
        probs=found.mask_logits.sigmoid().numpy()[kept],
        result=model.to_result(found, windows[0], image.shape[:2], "rle"),
    )


def _origins(found: Detections, out: dict[str, Any], window: Tensor, config) -> Tensor:
    """The index of the proposal whose box, moved by the deltas of the detection's class, is the detection's: [N]."""
    deltas = out["box/box_deltas"][:, found.class_ids]  # [R, N, 4]
    proposals = out["proposals"][:, None].expand_as(deltas)
    moved = clip_to_windows(decode_boxes(proposals, deltas, config.BBOX_STD_DEV, config), window, config)
    distances = (moved - found.boxes).abs().sum(dim=2)  # [R, N]
    return distances.argmin(dim=0) if distances.numel() else found.class_ids.new_zeros(len(found.class_ids))


############################################################
#  Pictures
############################################################


def draw_stages(model: MaskRCNN, image: np.ndarray, limit: int = 8) -> dict[str, np.ndarray]:
    """The pictures of all stages, by name: uint8 [H, W, 3] each. limit: instances shown where each is shown alone.

    Returns: 1_anchors, 2_refinement, 3_masks, 4_composition and, if there are predicted IoUs, 5_mask_scoring.
    """
    inside = look_inside(model, image)
    result = inside.result
    pictures = {
        "1_anchors": draw_anchors(image, inside),
        "2_refinement": draw_refinement(model, image, inside, limit),
        "3_masks": draw_masks(model, image, inside, limit),
        "4_composition": visualize.figure_to_image(
            visualize.display_result(image, result, model.class_names, figsize=(10, 10))
        ),
    }
    if result["mask_ious"] is not None and len(result["mask_ious"]):
        figure = visualize.display_mask_scoring(image, result, model.class_names, limit=limit)
        pictures["5_mask_scoring"] = visualize.figure_to_image(figure)
    return pictures


def draw_anchors(image: np.ndarray, inside: Inside) -> np.ndarray:
    """Stage 1: the best anchors, the same refined, and the proposals that NMS leaves."""
    best, proposals = len(inside.anchors), inside.proposals[: len(inside.anchors)]
    parts = {
        f"1. The {best} best of {inside.anchor_count:,} anchors": inside.anchors,
        "2. Moved and resized by the RPN": inside.refined,
        f"3. After NMS: the {len(proposals)} best of {len(inside.proposals)} proposals": proposals,
    }
    return side_by_side([_boxes(image, boxes, title) for title, boxes in parts.items()])


def _boxes(image: np.ndarray, boxes: np.ndarray, title: str) -> np.ndarray:
    figure = visualize.draw_boxes(image, boxes, visibilities=[2] * len(boxes), title=title, figsize=(5, 5))
    return visualize.figure_to_image(figure)


def draw_refinement(model: MaskRCNN, image: np.ndarray, inside: Inside, limit: int) -> np.ndarray:
    """Stage 2: the proposals that became detections dashed, the detections solid."""
    result = inside.result
    captions = [model.class_names[class_id] for class_id in result["class_ids"][:limit]]
    title = "Dashed: proposal. Solid: the box after the second stage"
    boxes = (inside.rois[:limit], result["rois"][:limit])
    return visualize.figure_to_image(
        visualize.display_refinement(image, *boxes, captions, title=title, figsize=(10, 10))
    )


def draw_masks(model: MaskRCNN, image: np.ndarray, inside: Inside, limit: int) -> np.ndarray:
    """Stage 3: above, each mask as the network gives it; below, pasted into the image."""
    from matplotlib.colors import Normalize

    result, count = inside.result, min(limit, len(inside.probs))
    if count == 0:
        return visualize.figure_to_image(visualize.display_images([image], ["Nothing is found, so there are no masks"]))
    names = [model.class_names[class_id] for class_id in result["class_ids"][:count]]
    above = [f"{name}: {probs.shape[0]} x {probs.shape[1]}" for name, probs in zip(names, inside.probs, strict=False)]
    sizes = (result["rois"][:count, 2:] - result["rois"][:count, :2]).round().astype(int).tolist()
    below = [f"pasted: {height} x {width}" for height, width in sizes]
    crops = [_squared(pasted(image, result, i)) for i in range(count)]
    blank = [np.full((28, 28, 3), 255, np.uint8)] * max(0, 4 - count)  # so that few are not drawn huge
    above, below = above + [""] * len(blank), below + [""] * len(blank)
    figure = visualize.display_images(
        [*inside.probs[:count], *blank, *crops, *blank], above + below, cols=max(4, count), norm=Normalize(0, 1)
    )
    return visualize.figure_to_image(figure)


def pasted(image: np.ndarray, result: dict[str, Any], i: int) -> np.ndarray:
    """The image inside the box of an instance, tinted where its mask is: uint8 [h, w, 3]."""
    height, width = image.shape[:2]
    y1, x1 = np.floor(result["rois"][i, :2]).astype(int).clip(0, [height - 1, width - 1])
    y2, x2 = np.ceil(result["rois"][i, 2:]).astype(int).clip([y1 + 1, x1 + 1], [height, width])
    color = visualize.random_colors(i + 1)[i]
    painted = visualize.apply_mask(image.copy(), utils.rle_to_mask(result["masks"][i]), color)
    return painted[y1:y2, x1:x2]


def _squared(picture: np.ndarray) -> np.ndarray:
    """With white beside it, so that all are of one shape."""
    height, width = picture.shape[:2]
    above, left = max(width - height, 0), max(height - width, 0)
    return np.pad(
        picture, ((above // 2, above - above // 2), (left // 2, left - left // 2), (0, 0)), constant_values=255
    )


def side_by_side(pictures: list[np.ndarray], gap: int = 8) -> np.ndarray:
    """Pictures uint8 [H, W, 3] in a row, aligned below, white between them."""
    height = max(len(picture) for picture in pictures)
    parts = []
    for picture in pictures:
        padding = ((height - len(picture), 0), (gap if parts else 0, 0), (0, 0))
        parts.append(np.pad(picture, padding, constant_values=255))
    return np.concatenate(parts, axis=1)
