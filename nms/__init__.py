"""Non-maximum suppression: keeps the boxes with the highest scores, without boxes that overlap them.

One op serves nms and batched_nms, and one nms_of_images. By default they run the reference in torch, on every device.
The libraries that `make kernels` builds from src/ replace the reference for float32 on the CPU and on CUDA.

    N boxes   G groups   B images
    Boxes are (y1, x1, y2, x2) in pixels; (y2, x2) lies outside. Height is y2 - y1, with no +1.
"""

import ctypes
from typing import Optional

import torch
from torch import Tensor

import native
from nms import reference

__all__ = ["batched_nms", "nms", "nms_of_images"]

_UNLIMITED = 2**63 - 1  # boxes of a group
_MAX_BOXES = 2**31 - 1


############################################################
#  Public functions
############################################################


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression.

    Boxes are visited in descending score; of equal scores, the lower index comes first. A box is kept unless its IoU
    with a box that was kept before lies strictly above the threshold, both in float32. A box without area overlaps
    nothing. A box is never kept, and suppresses nothing, if it or its score is not finite.

    boxes: [N, (y1, x1, y2, x2)], any floating dtype. The reference computes float64 in float64.
    scores: [N] floating.
    iou_threshold: in [0, 1].

    Returns: int64 [K], indices of the boxes that are kept, in descending score. Carries no gradient.
    Raises: ValueError for a wrong shape, dtype or device, or a threshold outside [0, 1].
    Source: Matterport's utils.non_max_suppression and tf.image.non_max_suppression.
    """
    return batched_nms(boxes, scores, None, iou_threshold)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    max_keep: int | None = None,
    max_boxes: int | None = None,
) -> Tensor:
    """nms within each group, all groups in one call.

    The result is exact, because boxes of different groups are never compared. The usual trick moves each group to
    coordinates of its own, which rounds the boxes and flips decisions near the threshold.

    boxes, scores, iou_threshold: as for nms.
    groups: integers [N], any values, such as image * levels + level; None for one group.
    max_keep: the most boxes to keep *of each group*. For a limit over all groups, cut the result: keep[:limit].
    max_boxes: at most so many boxes of each group take part, those with the highest scores. CUDA needs memory for N x
        max_boxes bits, so give it where the largest group is known; None: for N x N bits.

    Returns: int64 [K], indices of the boxes that are kept in any group, in descending score; of equal scores, the lower
        index comes first.
    Raises: ValueError as nms, and for groups that are not integers, a negative max_keep or a max_boxes
        below 1.
    """
    _check(boxes, scores, groups, iou_threshold, max_keep, max_boxes)
    boxes, scores = _in_one_dtype(boxes, scores)
    groups = None if groups is None else groups.long()
    return _batched_nms(boxes, scores, groups, float(iou_threshold), _integer(max_keep), _integer(max_boxes))


def nms_of_images(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    images: int,
    groups_per_image: int,
    iou_threshold: float,
    limit: int,
    max_boxes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The best boxes of each image of a batch, after nms within each group.

    The results have a shape that is known in advance. So a GPU computes them without a word from the host, which need
    not wait; rows that do not belong into the result get the score -infinity before.

    boxes, scores, iou_threshold, max_boxes: as for batched_nms.
    groups: integers [N], image * groups_per_image + any number below groups_per_image, such as a level or a class.
        Boxes with a group that is negative, or of an image beyond the last, do not take part.
    images: B. There are fewer than 2^31 groups in all.
    limit: the most boxes to keep, of each group and of each image.

    Returns: keep, int64 [B, L], and counts, int64 [B]. L is the smaller one of limit and N. The first counts[i] of
        keep[i] are the indices of the boxes that are kept of image i, in descending score; of equal scores, the lower
        index comes first. The rest is 0.
    Raises: ValueError as batched_nms, and for images, groups_per_image or limit that are no such numbers.
    """
    _check_images(groups, images, groups_per_image, limit)
    _check(boxes, scores, groups, iou_threshold, limit, max_boxes)
    boxes, scores = _in_one_dtype(boxes, scores)
    limit = min(int(limit), len(boxes))
    return _nms_of_images(
        boxes, scores, groups.long(), int(images), int(groups_per_image), float(iou_threshold), limit,
        _integer(max_boxes))  # fmt: skip


def _in_one_dtype(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if torch.float64 in (boxes.dtype, scores.dtype) else torch.float32
    return boxes.detach().to(dtype), scores.detach().to(dtype)


def _integer(number: int | None) -> int | None:
    return None if number is None else int(number)


def _check_images(groups: Tensor, images: int, groups_per_image: int, limit: int) -> None:
    if groups is None:
        raise ValueError("groups must be integers [N], image * groups_per_image + a number below it, not None")
    for name, number, least in (("images", images, 0), ("groups_per_image", groups_per_image, 1), ("limit", limit, 0)):
        if not _is_count(number, least):
            raise ValueError(f"{name} must be an integer of at least {least}, not {number}")
    if images * groups_per_image > _MAX_BOXES:
        raise ValueError(
            f"images x groups_per_image is {images} x {groups_per_image}, and must be at most {_MAX_BOXES}; "
            "number the groups of an image from 0 without gaps"
        )


def _check(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    max_keep: int | None,
    max_boxes: int | None = None,
) -> None:
    for name, values in {"boxes": boxes, "scores": scores, "groups": groups}.items():
        if not isinstance(values, Tensor) and not (name == "groups" and values is None):
            raise ValueError(f"{name} must be a torch.Tensor, not {type(values).__name__}; torch.as_tensor makes one")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [N, (y1, x1, y2, x2)], not {list(boxes.shape)}; one image at a time?")
    # An exported program has any number of boxes; its kernel checks them.
    if not torch.compiler.is_compiling() and boxes.shape[0] > _MAX_BOXES:
        raise ValueError(f"boxes are {boxes.shape[0]}, and must be at most {_MAX_BOXES}; keep the best by score first")
    for name, values in {"scores": scores, "groups": groups}.items():
        if values is None:
            continue
        if values.shape != boxes.shape[:1]:
            raise ValueError(f"{name} {list(values.shape)} must have one entry a box; boxes are {list(boxes.shape)}")
        if values.device != boxes.device:
            raise ValueError(f"{name} on {values.device} and boxes on {boxes.device} must be on one device")
    if not (boxes.is_floating_point() and scores.is_floating_point()):
        raise ValueError(f"boxes ({boxes.dtype}) and scores ({scores.dtype}) must be floating; convert with .float()")
    if groups is not None and (groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool):
        raise ValueError(f"groups must be integers, not {groups.dtype}")
    # Only comparisons, which torch.compile can trace; NaN fails them.
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be a number in [0, 1], not {iou_threshold}")
    for name, number, least in (("max_keep", max_keep, 0), ("max_boxes", max_boxes, 1)):
        if number is not None and not _is_count(number, least):
            raise ValueError(f"{name} must be None or an integer of at least {least}, not {number}")


def _is_count(number: int | None, least: int) -> bool:
    """Whether a number is whole, at least so large, and fits into int64."""
    # int() comes last, for it fails for infinities and NaN.
    return number is not None and least <= number <= _UNLIMITED and number == int(number)


############################################################
#  The ops
############################################################


def _check_op(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    max_keep: int | None,
    max_boxes: int | None = None,
) -> None:
    """Raises ValueError unless kernels can take these. They believe shapes and dtypes, and anyone may call the ops."""
    _check(boxes, scores, groups, iou_threshold, max_keep, max_boxes)
    if boxes.dtype != scores.dtype or boxes.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"boxes ({boxes.dtype}) and scores ({scores.dtype}) of the op must both be float32 or float64")
    if groups is not None and groups.dtype != torch.int64:
        raise ValueError(f"groups of the op must be int64, not {groups.dtype}")


def _check_op_of_images(boxes, scores, groups, images, groups_per_image, iou_threshold, limit, max_boxes=None) -> None:
    _check_images(groups, images, groups_per_image, limit)
    _check_op(boxes, scores, groups, iou_threshold, limit, max_boxes)
    if limit > len(boxes):
        raise ValueError(f"limit of the op must be at most the number of boxes, {len(boxes)}, not {limit}")


@torch.library.custom_op("maskscoring::batched_nms", mutates_args=())
def _batched_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Optional[Tensor],
    iou_threshold: float,
    max_keep: Optional[int],
    max_boxes: Optional[int] = None,
) -> Tensor:
    _check_op(boxes, scores, groups, iou_threshold, max_keep, max_boxes)
    return reference.batched_nms(boxes, scores, groups, iou_threshold, max_keep, max_boxes)


@_batched_nms.register_fake
def _(boxes, scores, groups, iou_threshold, max_keep, max_boxes=None):
    n = boxes.shape[0]
    # Inductor refuses to index an empty tensor with an unknown number of indices.
    count = 0 if isinstance(n, int) and n == 0 else torch.library.get_ctx().new_dynamic_size(max=_MAX_BOXES)
    return boxes.new_empty(count, dtype=torch.int64)


@torch.library.custom_op("maskscoring::nms_of_images", mutates_args=())
def _nms_of_images(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    images: int,
    groups_per_image: int,
    iou_threshold: float,
    limit: int,
    max_boxes: Optional[int] = None,
) -> tuple[Tensor, Tensor]:
    _check_op_of_images(boxes, scores, groups, images, groups_per_image, iou_threshold, limit, max_boxes)
    return reference.nms_of_images(boxes, scores, groups, images, groups_per_image, iou_threshold, limit, max_boxes)


@_nms_of_images.register_fake
def _(boxes, scores, groups, images, groups_per_image, iou_threshold, limit, max_boxes=None):
    return groups.new_empty(images, limit), groups.new_empty(images)


for _device in ("cpu", "cuda"):
    for _op in (_batched_nms, _nms_of_images):
        _op.register_autocast(_device, torch.float32)  # in half precision, boxes would be off by pixels


############################################################
#  Native kernels
############################################################

_POINTER, _INT, _INT64, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_NMS_CUDA = [*[_POINTER] * 4, _INT64, _INT64, _FLOAT, _INT64, _INT64, *[_POINTER] * 3]  # the arguments of nms_cuda


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _limit(count: int | None) -> int:
    return _UNLIMITED if count is None else count


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _register_cpu(library: ctypes.CDLL) -> None:
    library.nms_cpu.argtypes = [_POINTER, _POINTER, _POINTER, _INT64, _FLOAT, _INT64, _INT64, _INT, _POINTER]
    library.nms_of_images_cpu.argtypes = [
        *[_POINTER] * 3, *[_INT64] * 3, _FLOAT, _INT64, _INT64, _INT, _POINTER, _POINTER]  # fmt: skip
    library.nms_cpu.restype = library.nms_of_images_cpu.restype = _INT64

    @native.kernel("batched_nms", "cpu")
    def _(boxes, scores, groups, iou_threshold, max_keep, max_boxes=None):
        _check_op(boxes, scores, groups, iou_threshold, max_keep, max_boxes)
        if boxes.dtype != torch.float32:
            return reference.batched_nms(boxes, scores, groups, iou_threshold, max_keep, max_boxes)
        boxes, scores, groups = _contiguous(boxes, scores, groups)
        keep = torch.empty(len(boxes), dtype=torch.int64)
        count = library.nms_cpu(
            _pointer(boxes), _pointer(scores), _pointer(groups), len(boxes), iou_threshold, _limit(max_boxes),
            _limit(max_keep), torch.get_num_threads(), _pointer(keep))  # fmt: skip
        if count < 0:
            raise MemoryError(f"nms of {len(boxes)} boxes ran out of memory")
        return keep[:count]

    @native.kernel("nms_of_images", "cpu")
    def _(boxes, scores, groups, images, groups_per_image, iou_threshold, limit, max_boxes=None):
        arguments = (images, groups_per_image, iou_threshold, limit, max_boxes)
        _check_op_of_images(boxes, scores, groups, *arguments)
        if boxes.dtype != torch.float32:
            return reference.nms_of_images(boxes, scores, groups, *arguments)
        boxes, scores, groups = _contiguous(boxes, scores, groups)
        keep = torch.zeros(images, limit, dtype=torch.int64)
        counts = torch.empty(images, dtype=torch.int64)
        failed = library.nms_of_images_cpu(
            _pointer(boxes), _pointer(scores), _pointer(groups), len(boxes), images, groups_per_image, iou_threshold,
            _limit(max_boxes), limit, torch.get_num_threads(), _pointer(keep), _pointer(counts))  # fmt: skip
        if failed:
            raise MemoryError(f"nms of {len(boxes)} boxes ran out of memory")
        return keep, counts


def _register_cuda(library: ctypes.CDLL) -> None:
    @native.kernel("batched_nms", "cuda")
    def _(boxes, scores, groups, iou_threshold, max_keep, max_boxes=None):
        _check_op(boxes, scores, groups, iou_threshold, max_keep, max_boxes)
        if boxes.dtype != torch.float32:
            return reference.batched_nms(boxes, scores, groups, iou_threshold, max_keep, max_boxes)
        with torch.cuda.device(boxes.device):
            stream = torch.cuda.current_stream().cuda_stream
            return _run_cuda(library, boxes, scores, groups, iou_threshold, max_keep, max_boxes, stream)

    @native.kernel("nms_of_images", "cuda")
    def _(boxes, scores, groups, images, groups_per_image, iou_threshold, limit, max_boxes=None):
        arguments = (images, groups_per_image, iou_threshold, limit, max_boxes)
        _check_op_of_images(boxes, scores, groups, *arguments)
        if boxes.dtype != torch.float32:
            return reference.nms_of_images(boxes, scores, groups, *arguments)
        with torch.cuda.device(boxes.device):
            stream = torch.cuda.current_stream().cuda_stream
            return _run_cuda_of_images(library, boxes, scores, groups, *arguments, stream)


def _run_cuda(library, boxes, scores, groups, iou_threshold, max_keep, max_boxes, stream) -> Tensor:
    """batched_nms by a library's CUDA kernels, on the current device and the given stream."""
    by_score, kept = _suppress_cuda(library, boxes, scores, groups, 0, iou_threshold, max_keep, max_boxes, stream)
    return by_score[kept[by_score]]  # reads the count: the only synchronisation with the host


def _run_cuda_of_images(
    library, boxes, scores, groups, images, groups_per_image, iou_threshold, limit, max_boxes, stream
) -> tuple[Tensor, Tensor]:
    """nms_of_images likewise. The host waits for nothing."""
    group_count = images * groups_per_image
    if len(boxes) == 0 or group_count == 0:
        return groups.new_zeros(images, limit), groups.new_zeros(images)
    by_score, kept = _suppress_cuda(
        library, boxes, scores, groups, group_count, iou_threshold, limit, max_boxes, stream
    )
    image = groups[by_score].div(groups_per_image, rounding_mode="floor")
    image = image.masked_fill(~kept[by_score], images)  # what is not kept comes last
    image, order = image.sort(stable=True)  # in descending score within an image
    starts = torch.searchsorted(image, torch.arange(images + 1, device=image.device))
    counts = starts.diff().clamp(max=limit)  # [B]
    place = torch.arange(limit, device=image.device)
    keep = by_score[order[(starts[:-1, None] + place).clamp(max=len(boxes) - 1)]]  # [B, limit]
    return keep.masked_fill(place >= counts[:, None], 0), counts


def _suppress_cuda(
    library, boxes, scores, groups, group_count, iou_threshold, max_keep, max_boxes, stream
) -> tuple[Tensor, Tensor]:
    """The order by descending score, int64 [N], and which boxes are kept, bool [N].

    group_count: 0 for groups of any numbers; otherwise 0 to group_count - 1 take part, and no others.
    """
    library.nms_keys_cuda.argtypes = [_POINTER, _POINTER, _INT64, _POINTER, _POINTER]
    library.nms_span_cuda.argtypes, library.nms_span_cuda.restype = [_INT64, _INT64], _INT64
    library.nms_cuda.argtypes = _NMS_CUDA
    library.nms_keys_cuda.restype = library.nms_cuda.restype = ctypes.c_char_p
    boxes, scores, groups = _contiguous(boxes, scores, groups)
    n, largest = len(boxes), _limit(max_boxes)
    kept = torch.zeros(n, dtype=torch.bool, device=boxes.device)
    keys = torch.empty_like(scores)
    if n > 0:
        _raise_error(library.nms_keys_cuda(_pointer(boxes), _pointer(scores), n, _pointer(keys), stream))
    by_score = keys.argsort(descending=True, stable=True)
    # By group, then by descending score.
    order = by_score if groups is None else by_score[groups[by_score].argsort(stable=True)]
    if n > 0:
        shape = (n, library.nms_span_cuda(n, largest))
        overlap_bits = torch.empty(shape, dtype=torch.int64, device=boxes.device)
        error = library.nms_cuda(
            _pointer(boxes), _pointer(scores), _pointer(groups), _pointer(order), n, group_count, iou_threshold,
            largest, _limit(max_keep), _pointer(overlap_bits), _pointer(kept), stream)  # fmt: skip
        _raise_error(error)
    return by_score, kept


def _raise_error(error: bytes | None) -> None:
    if error is not None:
        raise RuntimeError(f"nms on CUDA: {error.decode()}")


native.register("nms", cpu=_register_cpu, cuda=_register_cuda if torch.version.cuda else None)
