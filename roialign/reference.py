"""The operators in plain torch: the oracle of the tests, and the kernels where no library is built.

Positions are computed in the dtype of the boxes and in the peers' order of operations, because rounding can push a
sample over the edge of the feature map, where it counts as zero. RoIs are pooled one by one, which is clear and slow.
RoIs of masks are pooled together, sample by sample.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

############################################################
#  RoIAlign
############################################################


class _AxisSamples(NamedTuple):
    """The samples of one RoI along one axis, without samples outside of the feature map."""

    bins: Tensor  # [S], the bin of each sample
    low: Tensor  # [S], the cell below
    high: Tensor  # [S], the cell above
    weight: Tensor  # [S], of the cell above
    count: int  # samples of a bin, with the samples outside of the feature map


def pyramid_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    batch_index: Tensor,
    levels: Tensor | None,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """roi_align of each RoI from its own level; roialign.pyramid_roi_align has the contract."""
    pooled = [features[0].new_zeros(0, features[0].shape[1], *output_size, dtype=_wide(features[0]))]
    level_of = [0] * len(rois) if levels is None else levels.tolist()
    for roi, image, level in zip(rois, batch_index.tolist(), level_of, strict=True):
        feature = features[level][image]  # [C, H, W]
        y, x = _roi_samples(roi, feature.shape[1:], output_size, spatial_scales[level], sampling_ratio, aligned)
        columns = _span(x)
        window = feature[:, :, columns]
        x_low, x_high, y_weight = x.low - columns.start, x.high - columns.start, y.weight[:, None]
        low, high = (window[:, cells].to(pooled[0].dtype) for cells in (y.low, y.high))  # [C, samples y, window]
        rows = low * (1 - y_weight) + high * y_weight
        samples = rows[:, :, x_low] * (1 - x.weight) + rows[:, :, x_high] * x.weight  # [C, samples y, samples x]
        by_row = samples.new_zeros(len(feature), output_size[0], len(x.bins)).index_add(1, y.bins, samples)
        bins = samples.new_zeros(len(feature), *output_size).index_add(2, x.bins, by_row)
        pooled.append(bins[None] / max(y.count * x.count, 1))
    return torch.cat(pooled).to(features[0].dtype)


def pyramid_roi_align_backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    rois: Tensor,
    batch_index: Tensor,
    levels: Tensor | None,
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> None:
    """Adds the gradients of the features to maps. grad: [R, C, h, w], of the result of pyramid_roi_align."""
    level_of = [0] * len(rois) if levels is None else levels.tolist()
    for bins, roi, image, level in zip(grad, rois, batch_index.tolist(), level_of, strict=True):
        feature = maps[level][image]  # [C, H, W]
        y, x = _roi_samples(roi, feature.shape[1:], bins.shape[1:], spatial_scales[level], sampling_ratio, aligned)
        rows, columns = _span(y), _span(x)
        samples = bins[:, y.bins][:, :, x.bins] / max(y.count * x.count, 1)  # [C, samples y, samples x]
        by_column = samples.new_zeros(len(feature), len(y.bins), columns.stop - columns.start)
        by_column.index_add_(2, x.low - columns.start, samples * (1 - x.weight))
        by_column.index_add_(2, x.high - columns.start, samples * x.weight)
        window = samples.new_zeros(len(feature), rows.stop - rows.start, columns.stop - columns.start)
        window.index_add_(1, y.low - rows.start, by_column * (1 - y.weight[:, None]))
        window.index_add_(1, y.high - rows.start, by_column * y.weight[:, None])
        feature[:, rows, columns] += window


def _span(axis: _AxisSamples) -> slice:
    """The cells that the samples touch."""
    return slice(int(axis.low.min()), int(axis.high.max()) + 1) if len(axis.low) else slice(0, 0)


def _roi_samples(
    roi: Tensor, cells: Sequence[int], bins: Sequence[int], scale: float, sampling_ratio: int, aligned: bool
) -> tuple[_AxisSamples, _AxisSamples]:
    """The samples of one RoI [4] along y and x; none for an RoI that is not finite."""
    offset = 0.5 if aligned else 0.0
    start, stop = (roi * scale - offset).view(2, 2)  # [(y, x)] each
    size = stop - start if aligned else (stop - start).clamp(min=1)
    usable = bool((torch.isfinite(start) & torch.isfinite(size)).all()) and 0 not in cells
    y, x = (_axis_samples(start[i], size[i], bins[i], cells[i] if usable else 0, sampling_ratio) for i in range(2))
    return y, x


def _axis_samples(start: Tensor, size: Tensor, bins: int, cells: int, sampling_ratio: int) -> _AxisSamples:
    if cells == 0:
        none = torch.zeros(0, dtype=torch.int64, device=start.device)
        return _AxisSamples(none, none, none, start.new_zeros(0), 0)
    step = size / bins
    count = sampling_ratio if sampling_ratio > 0 else max(min(int(step.ceil()), 2**30), 0)
    # A huge RoI has too many samples to try them all. The samples on the map are consecutive; the slack allows for
    # rounding. Steps are negative only where the count is fixed, and then the count is small.
    first, last = 0, bins * count
    if count > 64 and step > 0:
        spacing = step.item() / count
        slack = 2 + int((cells * 1e-3 + abs(start.item()) * 1e-6) / spacing)
        first = max(first, int((-1 - start.item()) / spacing) - slack)
        last = min(last, int((cells - start.item()) / spacing) + slack)
    sample = torch.arange(first, max(first, last), device=start.device)
    bin_of, index = sample // max(count, 1), sample % max(count, 1)
    position = start + bin_of.to(start.dtype) * step + (index.to(start.dtype) + 0.5) * step / count
    inside = (position >= -1) & (position <= cells)
    bin_of, position = bin_of[inside], position[inside].clamp(min=0)
    low = position.long().clamp(max=cells - 1)
    weight = torch.where(low == cells - 1, 0, position - low.to(position.dtype))
    return _AxisSamples(bin_of, low, (low + 1).clamp(max=cells - 1), weight, count)


def _wide(features: Tensor) -> torch.dtype:
    """The dtype of sums: float32 or wider."""
    return torch.promote_types(features.dtype, torch.float32)


############################################################
#  crop_and_resize
############################################################


class _CropAxis(NamedTuple):
    """The sample of each bin of one axis, [R, bins] each."""

    inside: Tensor  # whether it lies on the image
    low: Tensor  # the cell below
    high: Tensor  # the cell above
    weight: Tensor  # of the cell above


def crop_and_resize(
    image: Tensor, boxes: Tensor, batch_index: Tensor, crop_size: tuple[int, int], extrapolation_value: float
) -> Tensor:
    """tf.image.crop_and_resize; roialign.crop_and_resize has the contract."""
    if image.numel() == 0:
        return image.new_full((len(boxes), image.shape[1], *crop_size), extrapolation_value)
    y, x = _crop_axes(boxes, crop_size, image.shape[2:])
    index = batch_index[:, None, None]

    def corner(y_cells: Tensor, x_cells: Tensor) -> Tensor:
        return image[index, :, y_cells[:, :, None], x_cells[:, None, :]].to(_wide(image))  # [R, h, w, C]

    y_weight, x_weight = y.weight[:, :, None, None], x.weight[:, None, :, None]
    above = corner(y.low, x.low) + (corner(y.low, x.high) - corner(y.low, x.low)) * x_weight
    below = corner(y.high, x.low) + (corner(y.high, x.high) - corner(y.high, x.low)) * x_weight
    crops = above + (below - above) * y_weight
    inside = (y.inside[:, :, None] & x.inside[:, None, :])[..., None]
    return torch.where(inside, crops, extrapolation_value).to(image.dtype).permute(0, 3, 1, 2)


def crop_and_resize_backward(grad: Tensor, fmap: Tensor, boxes: Tensor, batch_index: Tensor) -> None:
    """Adds the gradient of the image to fmap. grad: [R, C, h, w], of the result of crop_and_resize."""
    if fmap.numel() == 0:
        return
    y, x = _crop_axes(boxes, grad.shape[2:], fmap.shape[2:])
    inside = (y.inside[:, :, None] & x.inside[:, None, :])[..., None]
    samples = torch.where(inside, grad.permute(0, 2, 3, 1), 0)  # [R, h, w, C]
    by_cell = fmap.permute(0, 2, 3, 1)  # a view
    for y_cells, y_weight in ((y.low, 1 - y.weight), (y.high, y.weight)):
        for x_cells, x_weight in ((x.low, 1 - x.weight), (x.high, x.weight)):
            where = (batch_index[:, None, None], y_cells[:, :, None], x_cells[:, None, :])
            share = samples * (y_weight[:, :, None] * x_weight[:, None, :])[..., None]
            by_cell.index_put_(where, share, accumulate=True)


def pyramid_crop_and_resize(
    features: Sequence[Tensor],
    boxes: Tensor,
    batch_index: Tensor,
    levels: Tensor | None,
    crop_size: tuple[int, int],
    extrapolation_value: float,
) -> Tensor:
    """crop_and_resize of each box from its own level; roialign.pyramid_crop_and_resize has the contract."""
    crops = features[0].new_empty(len(boxes), features[0].shape[1], *crop_size)
    for feature, rows in _by_level(features, levels):
        crops[rows] = crop_and_resize(feature, boxes[rows], batch_index[rows], crop_size, extrapolation_value)
    return crops


def pyramid_crop_and_resize_backward(
    grad: Tensor, maps: Sequence[Tensor], boxes: Tensor, batch_index: Tensor, levels: Tensor | None
) -> None:
    """crop_and_resize_backward of each box to its own level."""
    for fmap, rows in _by_level(maps, levels):
        crop_and_resize_backward(grad[rows], fmap, boxes[rows], batch_index[rows])


def _by_level(features: Sequence[Tensor], levels: Tensor | None) -> list[tuple[Tensor, Tensor | slice]]:
    """Each map, and the rows of the boxes that belong to it."""
    if levels is None:
        return [(features[0], slice(None))]
    return [(feature, levels == level) for level, feature in enumerate(features)]


def _crop_axes(boxes: Tensor, crop_size: Sequence[int], image_size: Sequence[int]) -> tuple[_CropAxis, _CropAxis]:
    y, x = (_crop_axis(boxes[:, i], boxes[:, i + 2], crop_size[i], image_size[i]) for i in range(2))
    return y, x


def _crop_axis(low: Tensor, high: Tensor, bins: int, cells: int) -> _CropAxis:
    last = cells - 1
    if bins > 1:
        step = (high - low) * last / (bins - 1)
        position = (low * last)[:, None] + torch.arange(bins, device=low.device, dtype=low.dtype) * step[:, None]
    else:
        position = (0.5 * (low + high) * last)[:, None]
    inside = (position >= 0) & (position <= last)
    position = torch.where(inside, position, 0)
    # Beyond 2^24 cells, rounding to float32 may put a position above the last cell.
    low, high = (cell.long().clamp(max=max(last, 0)) for cell in (position.floor(), position.ceil()))
    return _CropAxis(inside, low, high, position - position.floor())


############################################################
#  Masks
############################################################


class _MaskAxis(NamedTuple):
    """The samples of P RoIs along one axis, [P, bins, S] each, in rows or columns of their crops.

    Cells outside of the crop have weight 0 and number 0. So do samples outside of the canvas, and the places of a bin
    that has fewer than S samples.
    """

    low: Tensor  # the cell below
    high: Tensor  # the cell above
    low_weight: Tensor
    high_weight: Tensor
    count: Tensor  # [P], samples of a bin, with the samples outside of the canvas


def crop_masks(
    pixels: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    origins: Tensor,
    canvases: Tensor,
    rois: Tensor,
    mask_index: Tensor,
    output_size: Sequence[int],
) -> Tensor:
    """roialign.crop_masks has the contract. The loops run over the samples of a bin, in the order of their sum."""
    crops = rois.new_zeros(len(rois), *output_size)
    if crops.numel() == 0 or pixels.numel() == 0:
        return crops
    geometry = [(origins[mask_index, i], sizes[mask_index, i], canvases[mask_index, i]) for i in range(2)]
    y, x = (_mask_axis(rois[:, i], rois[:, i + 2], output_size[i], *geometry[i]) for i in range(2))
    starts, widths = offsets[mask_index, None, None], sizes[mask_index, 1, None, None]
    low_rows, high_rows = starts + y.low * widths, starts + y.high * widths  # [P, bins, S], into pixels
    last = len(pixels) - 1  # a crop without pixels may point beyond it
    for i in range(y.low.shape[2]):
        for j in range(x.low.shape[2]):
            sample = 0
            for rows, y_weight in ((low_rows, y.low_weight), (high_rows, y.high_weight)):
                for columns, x_weight in ((x.low, x.low_weight), (x.high, x.high_weight)):
                    place = (rows[:, :, None, i] + columns[:, None, :, j]).clamp(max=last)  # [P, h, w]
                    sample = sample + y_weight[:, :, None, i] * x_weight[:, None, :, j] * pixels[place]
            crops += sample
    return crops / (y.count * x.count).clamp(min=1).to(crops.dtype)[:, None, None]


def _mask_axis(low: Tensor, high: Tensor, bins: int, origin: Tensor, size: Tensor, cells: Tensor) -> _MaskAxis:
    """One axis of RoIs from low to high [P], of crops that begin at origin and have a size, in canvases of cells."""
    start = low - 0.5
    extent = high - 0.5 - start
    usable = torch.isfinite(start) & torch.isfinite(extent) & (cells > 0)
    step = extent / torch.full_like(extent, bins)  # not by a number: CUDA would multiply by its reciprocal
    step = torch.where(usable, step, 0)[:, None, None]
    count = step.ceil().clamp(0, 2**30).long()
    bin_starts = start[:, None, None] + torch.arange(bins, device=low.device)[:, None].to(step.dtype) * step

    def position(sample: Tensor) -> Tensor:
        return bin_starts + (sample.to(step.dtype) + 0.5) * step / count.to(step.dtype)

    cells, origin, size = (tensor[:, None, None] for tensor in (cells, origin, size))
    first, last = torch.zeros_like(count).expand(-1, bins, 1), count.expand(-1, bins, 1)
    if len(count) and int(count.max()) > 64:  # a huge RoI has too many samples to try them all
        first, last = _first_sample(position, -1.0, count, bins), _first_sample(position, cells + 1.0, count, bins)
    sample = first + torch.arange(int((last - first).max()) if len(count) else 0, device=low.device)  # [P, bins, S]
    positions = position(sample)
    inside = (sample < last) & (positions >= -1) & (positions <= cells)
    positions = torch.where(inside, positions, 0).clamp(min=0)
    low_cell = torch.minimum(positions.long(), (cells - 1).clamp(min=0))
    high_weight = torch.where(low_cell == cells - 1, 0, positions - low_cell.to(positions.dtype))
    table = []
    for cell, weight in ((low_cell, 1 - high_weight), (low_cell + 1, high_weight)):
        in_crop = inside & (cell >= origin) & (cell < origin + size)
        table.append((torch.where(in_crop, cell - origin, 0), torch.where(in_crop, weight, 0)))
    return _MaskAxis(table[0][0], table[1][0], table[0][1], table[1][1], count[:, 0, 0])


def _first_sample(position: Callable[[Tensor], Tensor], limit: Tensor | float, count: Tensor, bins: int) -> Tensor:
    """The first sample of each bin [P, bins, 1] at or beyond a limit, by bisection; positions ascend."""
    low, high = torch.zeros_like(count).expand(-1, bins, 1), count.expand(-1, bins, 1)
    for _ in range(31):  # of at most 2^30 samples
        middle = (low + high) // 2
        below = (position(middle) < limit) & (low < high)
        low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
    return low


def mask_areas(
    pixels: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    origins: Tensor,
    canvases: Tensor,
    boxes: Tensor,
    mask_index: Tensor,
) -> Tensor:
    """roialign.mask_areas has the contract. Running sums over pixels leave one term for each row of each box."""
    areas = boxes.new_zeros(len(boxes), dtype=torch.float64)
    if pixels.numel() == 0:
        return areas.float()
    offsets, sizes, origins, canvases = (field[mask_index] for field in (offsets, sizes, origins, canvases))
    # The box in its crop, in float64 and so without rounding, cut to the crop and the canvas.
    start = torch.maximum(boxes[:, :2].double() - origins, (-origins).clamp(min=0).double())
    stop = torch.minimum(boxes[:, 2:].double() - origins, torch.minimum(sizes, canvases - origins).double())
    filled = (stop > start).all(dim=1, keepdim=True)  # and not NaN
    start, stop = torch.where(filled, start, 0), torch.where(filled, stop, 0)
    first = start[:, 0].floor().long()
    rows = stop[:, 0].ceil().long() - first  # [P], of each box
    box = torch.arange(len(boxes), device=boxes.device).repeat_interleave(rows)  # [N], the box of each row
    row = first[box] + torch.arange(len(box), device=boxes.device) - (rows.cumsum(0) - rows)[box]
    height = torch.minimum(stop[box, 0], row + 1.0) - torch.maximum(start[box, 0], row.double())
    begin = offsets[box] + row * sizes[box, 1]
    sums = torch.nn.functional.pad(pixels.cumsum(0), (1, 0))  # of all pixels before each

    def area_before(x: Tensor) -> Tensor:
        """Of one row, the pixels left of x."""
        whole = x.floor()
        place = begin + whole.long()
        return sums[place] + (x - whole) * pixels[place.clamp(max=len(pixels) - 1)]

    areas.index_add_(0, box, height * (area_before(stop[box, 1]) - area_before(start[box, 1])))
    return areas.float()


############################################################
#  Pasting
############################################################

_STRIP_PIXELS = 1 << 22  # A crop is computed in strips of this many floating-point pixels.


def paste_crops(
    probs: Tensor, boxes: Tensor, image_size: tuple[int, int], rule: str
) -> Iterator[tuple[int, int, Tensor]]:
    """The masks one by one, each inside the part of the image that its box covers; roialign.paste_masks has the rules.

    probs: float32 or float64 [N, M, M]. boxes: float32 [N, (y1, x1, y2, x2)] on the CPU. image_size: (H, W).

    Returns: an iterator of (y1, x1, crop). The crop is bool [h, w], on the device of probs, and lies inside the image;
        an empty mask may have one of 0 x 0.
    """
    return (_paste_crop(prob, box, image_size, rule) for prob, box in zip(probs, boxes.numpy(), strict=True))


def _paste_crop(prob: Tensor, box: np.ndarray, size: tuple[int, int], rule: str) -> tuple[int, int, Tensor]:
    empty = (0, 0, torch.zeros(0, 0, dtype=torch.bool, device=prob.device))
    prob = prob.to(torch.float64 if rule == "resize" else torch.float32)  # as the peers compute
    if not (np.isfinite(box).all() and prob.isfinite().all()):
        return empty
    (y1, ys), (x1, xs) = (
        _paste_positions(box[axis], box[axis + 2], prob.shape[axis], size[axis], rule) for axis in (0, 1)
    )  # fmt: skip
    if len(ys) == 0 or len(xs) == 0:
        return empty
    rows = torch.from_numpy(_taps(ys, prob.shape[0])).to(prob)  # [h, M]
    columns = torch.from_numpy(_taps(xs, prob.shape[1])).to(prob)  # [w, M]
    crop = torch.empty(len(ys), len(xs), dtype=torch.bool, device=prob.device)
    compare = torch.gt if rule == "expand" else torch.ge
    with torch.autocast(prob.device.type, enabled=False):
        across = prob @ columns.T  # [M, w]
        step = max(1, _STRIP_PIXELS // len(xs))
        for start in range(0, len(ys), step):
            strip = slice(start, start + step)
            values = rows[strip] @ across
            if rule == "resize":  # skimage clips to the mask's range, so a mask of ones does not fade at its edge
                values.clamp_(min=prob.min())
            compare(values, 0.5, out=crop[strip])
    return y1, x1, crop


@np.errstate(over="ignore", invalid="ignore")
def _paste_positions(low: np.float32, high: np.float32, cells: int, limit: int, rule: str) -> tuple[int, np.ndarray]:
    """Where each pixel of a box samples the mask, along one axis. The centre of cell i is at position i.

    low, high: the box's sides. cells: of the mask. limit: the image's height or width.

    Returns: the box's first pixel inside the image; the positions [n] of this pixel and the following ones.
    """
    if rule == "centres":
        start, stop = _truncate(np.floor(low)) - 1, _truncate(np.ceil(high)) + 1 if high > low else -math.inf
    elif rule == "expand":
        middle, half = (high + low) * np.float32(0.5), (high - low) * np.float32(0.5) * np.float32((cells + 2) / cells)
        first = _truncate(middle - half)
        start, stop = first, max(_truncate(middle + half), first) + 1
    else:
        start, stop = first, last = _truncate(low), _truncate(high)
    inside = max(start, 0)
    pixels = np.arange(inside, max(min(stop, limit), inside))
    if rule == "centres":
        grid = (pixels.astype(np.float32) + np.float32(0.5) - low) / (high - low) * 2 - 1
        return inside, ((grid + 1) * cells - 1) / 2
    if rule == "expand":  # the ring of zeros is cell -1 and cell M
        scale = np.float32(cells + 2) / np.float32(stop - start)
        return inside, ((pixels - first).astype(np.float32) + np.float32(0.5)) * scale - np.float32(1.5)
    return inside, (pixels - first + 0.5) * (cells / max(last - first, 1)) - 0.5


def _truncate(number: np.float32) -> int:
    """The number without its fraction, clamped to +-1e9."""
    return int(max(-1e9, min(1e9, float(number))))


def _taps(positions: np.ndarray, cells: int) -> np.ndarray:
    """Bilinear weights of cells along an axis, with zeros around them.

    positions: floating [n]; cell i has its centre at i.

    Returns: [n, cells], dtype of positions; at most two weights of a row are not zero.
    """
    positions = positions.clip(-2, cells)  # beyond are zeros only; positions in a box without width are infinite
    first = np.floor(positions)
    part = positions - first
    rows, column = np.arange(len(positions)), first.astype(np.int64) + 2
    weights = np.zeros((len(positions), cells + 4), positions.dtype)
    weights[rows, column] = 1 - part
    weights[rows, column + 1] = part
    return weights[:, 2:-2]


def resize_plane(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """skimage.transform.resize of order 1 and mode constant: bilinear, zeros around the plane, clipped to its range.

    plane: float64 [old height, old width]. size: (height, width).

    Returns: float64 [height, width].
    """
    rows, columns = (
        _taps((np.arange(new) + 0.5) * (old / new) - 0.5, old) for old, new in zip(plane.shape, size, strict=True)
    )
    return (rows @ plane @ columns.T).clip(plane.min(), plane.max())
