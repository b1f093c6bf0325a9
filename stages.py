"""Every stage between an image and its detections: as values, and as pictures.

A anchors   G objects of the ground truth   N detections   R proposals   P RoIs of objects   M mask side
Boxes are (y1, x1, y2, x2) in pixels of the image.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import utils
import visualize
from data.dataset import Dataset, Instances, check_instances
from data.inputs import image_array
from data.samples import TrainingData, collate
from detections import Detections
from model import (
    BACKGROUND,
    Images,
    MaskRCNN,
    clip_to_windows,
    decode_boxes,
    mold_batch,
    shrink,
    unmold_boxes,
    unmold_detections,
)

############################################################
#  Looking inside
############################################################


class Truth(NamedTuple):
    """The objects of an image, and what training makes of them."""

    class_ids: np.ndarray  # int32 [G]; crowds are left out
    boxes: np.ndarray  # float32 [G, 4]
    masks: np.ndarray  # bool [H, W, G]
    positive: np.ndarray  # indices of anchors that the RPN learns from: anchors of objects,
    negative: np.ndarray  # and anchors of background
    target_class_ids: np.ndarray  # [P], of the RoIs that the mask head learns from
    target_masks: np.ndarray  # [P, M, M], 0 or 1


class Stages(NamedTuple):
    """The values between an image and its detections."""

    image: np.ndarray  # uint8 [H, W, 3]
    anchors: np.ndarray  # float32 [A, 4], of all levels
    objectness: np.ndarray  # [A] in [0, 1]
    refined_anchors: np.ndarray  # [A, 4], moved by their deltas, not clipped to the image
    proposals: np.ndarray  # [R, 4], after NMS, best first
    roi_class_ids: np.ndarray  # [R], the most likely class of each proposal, 0 for background,
    roi_scores: np.ndarray  # [R], its probability,
    refined_rois: np.ndarray  # [R, 4], and the proposal moved by the deltas of that class
    origins: np.ndarray  # [N], the index of the proposal that each detection comes from
    mask_probs: np.ndarray  # [N, M, M], the masks of the detections as the network gives them
    result: dict[str, Any]  # the detections, as detect(masks="rle") returns them
    out: dict[str, Any]  # everything else: see MaskRCNN.forward
    truth: Truth | None = None  # None: look_inside() got no instances

    def best_anchors(self, count: int) -> np.ndarray:
        """Indices of the anchors with the highest objectness, best first."""
        logits = torch.cat(self.out["rpn/objectness_logits"], dim=1)[0]  # a sigmoid makes large logits equal
        return logits.topk(min(count, len(logits))).indices.cpu().numpy()

    @property
    def masks(self) -> np.ndarray:
        """The masks of the detections, bool [H, W, N]."""
        codes = self.result["masks"]
        return utils.rle_to_mask(codes) if codes else np.zeros((*self.image.shape[:2], 0), bool)

    @property
    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, class ids and masks of the truth, as utils.compute_ap and visualize.display_differences take them."""
        return self.truth.boxes, self.truth.class_ids, self.truth.masks

    @property
    def detections(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, class ids, class scores and masks of the detections, likewise."""
        return self.result["rois"], self.result["class_ids"], self.result["scores"], self.masks

    @property
    def true_ious(self) -> np.ndarray:
        """The IoU of each detection's mask with the ground truth: float32 [N], see utils.compute_true_ious."""
        return utils.compute_true_ious(self.truth.class_ids, self.truth.masks, self.result["class_ids"], self.masks)


@torch.no_grad()
def look_inside(model: MaskRCNN, image: np.ndarray, instances: Instances | None = None) -> Stages:
    """Follow an image, as detect() takes it, through the network.

    instances: the objects of the image, as Dataset.load_instances returns them. The image then goes through the
        network a second time, as in training.

    Raises: as detect() and, with instances, as TrainingData.
    """
    config, out = model.config, {}
    image = image_array(image, config.IMAGE_CHANNEL_COUNT, "image", config.BIT_DEPTH, config.PIXEL_RANGE)
    molded, _, windows = model.mold_inputs([image])
    pixels = torch.from_numpy(molded).to(model.device).permute(0, 3, 1, 2)
    windows = torch.from_numpy(windows).to(pixels)
    detections = model.predict(Images(pixels, windows), out)
    anchors, proposals = torch.cat(out["anchors"]), out["proposals"]
    roi_scores, roi_class_ids = out["box/class_logits"].softmax(dim=1).max(dim=1)
    roi_deltas = out["box/box_deltas"][torch.arange(len(proposals), device=model.device), roi_class_ids]
    refined_rois = decode_boxes(out["box/rois"], roi_deltas, config.BBOX_STD_DEV, config)
    anchor_deltas = torch.cat(out["rpn/anchor_deltas"], dim=1)[0]
    origins = _origins(detections, out, shrink(windows, config), config).cpu().numpy()
    detections, window = detections.to("cpu"), windows[0].tolist()
    _, kept = unmold_detections(detections.boxes, window, image.shape, config)

    def in_image(boxes: Tensor) -> np.ndarray:
        return unmold_boxes(boxes.cpu(), window, image.shape, config).numpy()

    return Stages(
        image=image,
        anchors=in_image(anchors),
        objectness=torch.cat(out["rpn/objectness_logits"], dim=1)[0].sigmoid().cpu().numpy(),
        refined_anchors=in_image(decode_boxes(anchors, anchor_deltas, config.RPN_BBOX_STD_DEV, config)),
        proposals=in_image(proposals),
        roi_class_ids=roi_class_ids.cpu().numpy(),
        roi_scores=roi_scores.cpu().numpy(),
        refined_rois=in_image(clip_to_windows(refined_rois, shrink(windows, config), config)),
        origins=origins[kept.numpy()],
        mask_probs=detections[kept].mask_logits.sigmoid().numpy(),
        result=model.to_result(detections, window, image.shape[:2], "rle"),
        out=out,
        truth=None if instances is None else _truth(model, image, instances),
    )


def _origins(detections: Detections, out: dict[str, Any], window: Tensor, config) -> Tensor:
    """The index of the proposal whose box, moved by the deltas of the detection's class, is the detection's: [N].

    With BOX_HEAD_LOOKS, "box/rois" are where the last look found the proposals, in the same order.
    """
    deltas = out["box/box_deltas"][:, detections.class_ids]  # [R, N, 4]
    rois = out["box/rois"][:, None].expand_as(deltas)
    moved = clip_to_windows(decode_boxes(rois, deltas, config.BBOX_STD_DEV, config), window, config)
    distances = (moved - detections.boxes).abs().sum(dim=2)  # [R, N]
    return distances.argmin(dim=0) if distances.numel() else detections.class_ids.new_zeros(len(detections))


class _OneImage(Dataset):
    """A data set of one image with its instances."""

    def __init__(self, image: np.ndarray, instances: Instances) -> None:
        super().__init__()
        self.image, self.instances = image, instances
        self.add_image("look_inside", 0, None)
        self.prepare()

    def load_image(self, image_id: int) -> np.ndarray:
        return self.image

    def load_instances(self, image_id: int) -> Instances:
        return self.instances


def _truth(model: MaskRCNN, image: np.ndarray, instances: Instances) -> Truth:
    """The objects, and what training makes of them."""
    config, out = model.config, {}
    sample = TrainingData(_OneImage(image, instances), config, augment=False).sample(0)
    images, targets = mold_batch(collate([sample]), model.device, config)
    with torch.autocast(model.device.type, enabled=False):
        model(images, targets, out=out)
    anchors, matched = out["targets/anchors"], out["targets/rois"].matched
    class_ids, masks, boxes = check_instances(instances, image.shape, "the image", config.NUM_CLASSES)
    if isinstance(masks, list):
        masks = utils.rle_to_mask(masks) if masks else np.zeros((*image.shape[:2], 0), bool)
    is_object = class_ids > 0
    return Truth(
        class_ids=class_ids[is_object],
        boxes=np.asarray(utils.extract_bboxes(masks) if boxes is None else boxes, np.float32)[is_object],
        masks=masks[..., is_object],
        positive=anchors.anchors[anchors.matched >= 0].cpu().numpy(),
        negative=anchors.anchors[anchors.matched == BACKGROUND].cpu().numpy(),
        target_class_ids=targets.class_ids[matched[matched >= 0]].cpu().numpy(),
        target_masks=out["targets/masks"].cpu().numpy(),
    )


############################################################
#  Pictures
############################################################


def draw_stages(model: MaskRCNN, image: np.ndarray, limit: int = 8) -> dict[str, np.ndarray]:
    """The pictures of all stages, by name: uint8 [H, W, 3] each. limit: instances shown where each is shown alone.

    Returns: 1_anchors, 2_refinement, 3_masks, 4_composition and, if there are predicted IoUs, 5_mask_scoring.
    """
    stages = look_inside(model, image)
    result = stages.result
    pictures = {
        "1_anchors": draw_anchors(stages),
        "2_refinement": draw_refinement(model, stages, limit),
        "3_masks": draw_masks(model, stages, limit),
        "4_composition": visualize.figure_to_image(
            visualize.display_result(image, result, model.class_names, figsize=(10, 10))
        ),
    }
    if result["mask_ious"] is not None and len(result["mask_ious"]):
        figure = visualize.display_mask_scoring(image, result, model.class_names, limit=limit)
        pictures["5_mask_scoring"] = visualize.figure_to_image(figure)
    return pictures


def draw_anchors(stages: Stages, count: int = 30) -> np.ndarray:
    """Stage 1: the best anchors, the same refined, and the proposals that NMS leaves."""
    best, proposals = stages.best_anchors(count), stages.proposals[:count]
    parts = {
        f"1. The {len(best)} best of {len(stages.anchors):,} anchors": stages.anchors[best],
        "2. Moved and resized by the RPN": stages.refined_anchors[best],
        f"3. After NMS: the {len(proposals)} best of {len(stages.proposals)} proposals": proposals,
    }
    return side_by_side([_boxes(stages.image, boxes, title) for title, boxes in parts.items()])


def _boxes(image: np.ndarray, boxes: np.ndarray, title: str) -> np.ndarray:
    figure = visualize.draw_boxes(image, boxes, visibilities=[2] * len(boxes), title=title, figsize=(5, 5))
    return visualize.figure_to_image(figure)


def draw_refinement(model: MaskRCNN, stages: Stages, limit: int) -> np.ndarray:
    """Stage 2: the proposals that became detections dashed, the detections solid."""
    result = stages.result
    captions = [model.class_names[class_id] for class_id in result["class_ids"][:limit]]
    title = "Dashed: proposal. Solid: the box after the second stage"
    boxes = (stages.proposals[stages.origins[:limit]], result["rois"][:limit])
    return visualize.figure_to_image(
        visualize.display_refinement(stages.image, *boxes, captions, title=title, figsize=(10, 10))
    )


def draw_masks(model: MaskRCNN, stages: Stages, limit: int) -> np.ndarray:
    """Stage 3: above, each mask as the network gives it; below, pasted into the image."""
    from matplotlib.colors import Normalize

    image, result, count = stages.image, stages.result, min(limit, len(stages.mask_probs))
    if count == 0:
        return visualize.figure_to_image(visualize.display_images([image], ["Nothing is found, so there are no masks"]))
    names = [model.class_names[class_id] for class_id in result["class_ids"][:count]]
    above = [
        f"{name}: {probs.shape[0]} x {probs.shape[1]}" for name, probs in zip(names, stages.mask_probs, strict=False)
    ]
    sizes = (result["rois"][:count, 2:] - result["rois"][:count, :2]).round().astype(int).tolist()
    below = [f"pasted: {height} x {width}" for height, width in sizes]
    crops = [_squared(pasted(image, result, i)) for i in range(count)]
    blank = [np.full((28, 28, 3), 255, np.uint8)] * max(0, 4 - count)  # so that few are not drawn huge
    above, below = above + [""] * len(blank), below + [""] * len(blank)
    figure = visualize.display_images(
        [*stages.mask_probs[:count], *blank, *crops, *blank], above + below, cols=max(4, count), norm=Normalize(0, 1)
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
