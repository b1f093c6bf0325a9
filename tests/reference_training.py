"""Training targets and losses in plain NumPy, one object at a time, after spec/mmdet.md part 13 and spec/benchmark.md.

Written from the specification alone, to check model.py against, and itself checked against what mmdetection and the
paper's code computed (test_train_goldens.py). Everything is float64 unless a comparison hangs on float32.

    N boxes   G objects   P positive RoIs   K classes, 0 is background   M mask side
    Boxes are (y1, x1, y2, x2); (y2, x2) lies outside. An assignment is the object of each box, BACKGROUND or IGNORED.
"""

import math

import numpy as np

BACKGROUND, IGNORED = -1, -2


############################################################
#  Assignment
############################################################


def iou(box: np.ndarray, other: np.ndarray) -> np.float32:
    """IoU of two boxes, float32 as the sources compute it: two equal overlaps must stay equal."""
    box, other = box.astype(np.float32), other.astype(np.float32)
    height = max(min(box[2], other[2]) - max(box[0], other[0]), np.float32(0))
    width = max(min(box[3], other[3]) - max(box[1], other[1]), np.float32(0))
    inter = height * width
    areas = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return inter / max(areas - inter, np.float32(1e-6))


def ious(boxes: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
    """[N, G]: iou() of each pair; a loop over the objects only, since anchors are many."""
    columns = np.zeros((len(boxes), len(gt_boxes)), np.float32)
    boxes = boxes.astype(np.float32)
    for g, gt in enumerate(gt_boxes.astype(np.float32)):
        low, high = np.maximum(boxes[:, :2], gt[:2]), np.minimum(boxes[:, 2:], gt[2:])
        inter = np.prod(np.maximum(high - low, 0), axis=1, dtype=np.float32)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float32) + np.prod(gt[2:] - gt[:2])
        columns[:, g] = inter / np.maximum(areas - inter, np.float32(1e-6))
    return columns


def assign(boxes, gt_boxes, positive: float, negative: float, low_quality: float | None, steals: bool) -> np.ndarray:
    """The object of each box: int [N].

    low_quality: objects whose best overlap is at least this take all boxes that have it. None: they do not.
    steals: such a box then belongs to that object (mmdetection, the last one wins); otherwise to the one that it
        overlaps most (maskrcnn-benchmark).
    """
    overlaps = ious(np.asarray(boxes), np.asarray(gt_boxes))
    matched = np.full(len(boxes), BACKGROUND)
    if overlaps.size == 0:
        return matched
    best = overlaps.max(axis=1)
    matched[best >= np.float32(negative)] = IGNORED
    is_positive = best >= np.float32(positive)
    matched[is_positive] = overlaps.argmax(axis=1)[is_positive]
    if low_quality is not None:
        for g in range(len(gt_boxes)):
            highest = overlaps[:, g].max()
            if highest >= np.float32(low_quality) and highest > 0:  # the paper's code takes all boxes at 0
                for n in np.flatnonzero(overlaps[:, g] == highest):
                    matched[n] = g if steals else overlaps[n].argmax()
    return matched


def is_inside(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Which boxes lie wholly in the window (y1, x1, y2, x2): bool [N]."""
    return (boxes[:, :2] >= window[:2]).all(axis=1) & (boxes[:, 2:] <= window[2:]).all(axis=1)


def crowd_share(box: np.ndarray, crowd: np.ndarray) -> float:
    """The share of a box that lies in a crowd."""
    height = max(min(box[2], crowd[2]) - max(box[0], crowd[0]), 0)
    width = max(min(box[3], crowd[3]) - max(box[1], crowd[1]), 0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return height * width / area if area > 0 else 0.0


############################################################
#  Sampling
############################################################


def evenly(indices: np.ndarray, count: int) -> np.ndarray:
    """count of the indices, equally spaced: what the goldens of mmdetection have instead of chance."""
    return np.array([indices[i * len(indices) // count] for i in range(count)], dtype=int)


def sample(matched: np.ndarray, total: int, positive_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of positives and negatives, at most total, with at most a share of positives; evenly spaced."""
    positives, negatives = np.flatnonzero(matched >= 0), np.flatnonzero(matched == BACKGROUND)
    positives = evenly(positives, min(int(total * positive_share), len(positives)))
    negatives = evenly(negatives, min(total - len(positives), len(negatives)))
    return positives, negatives


############################################################
#  Targets
############################################################


def deltas(boxes: np.ndarray, gt_boxes: np.ndarray, std_dev=(1, 1, 1, 1)) -> np.ndarray:
    """(dy, dx, log dh, log dw) / std_dev that turn boxes [N, 4] into their objects' [N, 4]."""
    rows = []
    for (y1, x1, y2, x2), (gy1, gx1, gy2, gx2) in zip(boxes.astype(float), gt_boxes.astype(float), strict=True):
        height, width = y2 - y1, x2 - x1
        dy, dx = ((gy1 + gy2) / 2 - (y1 + y2) / 2) / height, ((gx1 + gx2) / 2 - (x1 + x2) / 2) / width
        rows.append((dy, dx, math.log((gy2 - gy1) / height), math.log((gx2 - gx1) / width)))
    return np.array(rows).reshape(-1, 4) / np.array(std_dev)


def _weights(start: float, length: float, cells: int, size: int) -> np.ndarray:
    """[cells, size]: how much each of size pixels counts in the mean of a cell of RoIAlign, along one axis."""
    weights = np.zeros((cells, size))
    samples = math.ceil(length / cells)
    for cell in range(cells):
        for i in range(samples):
            at = start + (cell + (i + 0.5) / samples) * length / cells - 0.5
            if at < -1 or at > size:
                continue
            at = max(at, 0.0)
            low = min(int(at), size - 1)
            high, share = min(low + 1, size - 1), at - low if low < size - 1 else 0.0
            weights[cell, low] += (1 - share) / samples
            weights[cell, high] += share / samples
    return weights


def crop(mask: np.ndarray, box: np.ndarray, side: int = 28) -> np.ndarray:
    """RoIAlign (aligned, as many samples as pixels) of a mask [H, W] in a box: [M, M]."""
    y1, x1, y2, x2 = box.astype(float)
    rows = _weights(y1, y2 - y1, side, mask.shape[0])
    columns = _weights(x1, x2 - x1, side, mask.shape[1])
    return rows @ mask.astype(float) @ columns.T


def mask_target(mask: np.ndarray, box: np.ndarray, side: int = 28) -> np.ndarray:
    """The object in a box as 0 and 1, [M, M]; the box clipped to the mask's canvas."""
    height, width = mask.shape
    box = np.minimum(np.maximum(box, 0), np.array([height, width, height, width], np.float32))
    return (crop(mask, box, side) >= 0.5 - 1e-9).astype(float)


def truncated_fraction(mask: np.ndarray, box: np.ndarray) -> float:
    """Pixels of the mask [H, W] in the box, whose corners are truncated, by all of its pixels (mmdetection)."""
    height, width = mask.shape
    y1, x1, y2, x2 = (int(side) for side in box)
    y1, y2 = min(max(y1, 0), height), min(max(y2, 0), height)
    x1, x2 = min(max(x1, 0), width), min(max(x2, 0), width)
    inside = mask[y1 : y1 + max(y2 - y1, 1), x1 : x1 + max(x2 - x1, 1)].sum()
    return float(inside) / (float(mask.sum()) + 1e-7)


def exact_area(mask: np.ndarray, box: np.ndarray) -> float:
    """Area of the part of a mask [H, W] in a box: each pixel counts by its share in the box."""
    total = 0.0
    for y, x in zip(*mask.nonzero(), strict=True):
        height = max(min(y + 1, float(box[2])) - max(y, float(box[0])), 0)
        width = max(min(x + 1, float(box[3])) - max(x, float(box[1])), 0)
        total += height * width
    return total


def maskiou_target(logits: np.ndarray, target: np.ndarray, fraction: float, threshold: float) -> float:
    """IoU of a predicted mask [M, M] with the whole object; nan of two empty masks (mmdetection)."""
    predicted = logits > threshold
    inter = float((predicted * target).sum())
    whole = float(target.sum()) / (fraction + 1e-7)
    union = float(predicted.sum()) + whole - inter
    return inter / union if union > 0 else math.nan


############################################################
#  Losses
############################################################


def cross_entropy(logits: np.ndarray, label: int) -> float:
    """-log softmax(logits)[label] of one row."""
    logits = logits.astype(float)
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])


def binary_cross_entropy(logit: float, target: float) -> float:
    """Of one logit."""
    return max(logit, 0) - logit * target + math.log1p(math.exp(-abs(logit)))


def smooth_l1(difference: float, beta: float) -> float:
    """Quadratic below beta; |difference| for beta 0."""
    difference = abs(difference)
    return 0.5 * difference**2 / beta if difference < beta else difference - 0.5 * beta


def rpn_losses(images: list[dict], counts_missing: bool, beta: float, eps: float = 0.0) -> tuple[float, float]:
    """Class and box loss.

    images: of each logits [A], deltas [A, 4], indices of positives and negatives, target_deltas [P, 4].
    counts_missing: an image without positives counts as if it had one, and so negatives.
    """
    floor = 1 if counts_missing else 0
    count = sum(max(len(image["positives"]), floor) + max(len(image["negatives"]), floor) for image in images) + eps
    class_loss = box_loss = 0.0
    for image in images:
        for i in image["positives"]:
            class_loss += binary_cross_entropy(float(image["logits"][i]), 1)
        for i in image["negatives"]:
            class_loss += binary_cross_entropy(float(image["logits"][i]), 0)
        for i, target in zip(image["positives"], image["target_deltas"], strict=True):
            box_loss += sum(smooth_l1(float(d), beta) for d in image["deltas"][i] - target)
    return class_loss / max(count, 1), box_loss / max(count, 1)


def class_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross entropy of logits [R, K] with labels [R]; 0 of none."""
    return sum(cross_entropy(row, label) for row, label in zip(logits, labels, strict=True)) / max(len(labels), 1)


def box_loss(box_deltas: np.ndarray, labels: np.ndarray, targets: np.ndarray, beta: float) -> float:
    """Of the object's class: sum over positives, by the number of all RoIs. [R, K, 4], [R], [R, 4]."""
    total = 0.0
    for r in np.flatnonzero(labels):
        total += sum(smooth_l1(float(d), beta) for d in box_deltas[r, labels[r]] - targets[r])
    return total / max(len(labels), 1)


def mask_loss(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean over P * M * M of logits of the objects' classes; 0 of none."""
    pairs = zip(logits.ravel().tolist(), targets.ravel().tolist(), strict=True)
    return sum(binary_cross_entropy(logit, target) for logit, target in pairs) / max(logits.size, 1)


def maskiou_loss(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Half of the mean squared difference over targets above 0; 0 of none."""
    squares = [(float(p) - float(t)) ** 2 for p, t in zip(predicted, targets, strict=True) if t > 0]
    return 0.5 * sum(squares) / max(len(squares), 1)
