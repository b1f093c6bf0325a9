"""Non-maximum suppression: keeps the boxes with the highest scores, without boxes that overlap them.

One op serves both functions. By default it runs the reference in torch, on every device. The libraries that
`make kernels` builds from src/ replace the reference for float32 on the CPU and on CUDA.

    N boxes   G groups
    Boxes are (y1, x1, y2, x2) in pixels; (y2, x2) lies outside. Height is y2 - y1, with no +1.
"""

import ctypes
from typing import Optional

import torch
from torch import Tensor

import native
from nms import reference

__all__ = ["batched_nms", "nms"]

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
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, max_keep: int | None = None
) -> Tensor:
    """nms within each group, all groups in one call.

    The result is exact, because boxes of different groups are never compared. The usual trick moves each group to
    coordinates of its own, which rounds the boxes and flips decisions near the threshold.

    boxes, scores, iou_threshold: as for nms.
    groups: integers [N], any values, such as image * levels + level; None for one group.
    max_keep: the most boxes to keep *of each group*. For a limit over all groups, cut the result: keep[:limit].

    Returns: int64 [K], indices of the boxes that are kept in any group, in descending score; of equal scores, the lower
        index comes first.
    Raises: ValueError as nms, and for groups that are not integers or a negative max_keep.
    """
    _check(boxes, scores, groups, iou_threshold, max_keep)
    dtype = torch.float64 if torch.float64 in (boxes.dtype, scores.dtype) else torch.float32
    groups = None if groups is None else groups.long()
    max_keep = None if max_keep is None else int(max_keep)
    return _batched_nms(boxes.detach().to(dtype), scores.detach().to(dtype), groups, float(iou_threshold), max_keep)


def _check(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, max_keep: int | None) -> None:
    for name, values in {"boxes": boxes, "scores": scores, "groups": groups}.items():
        if not isinstance(values, Tensor) and not (name == "groups" and values is None):
            raise ValueError(f"{name} must be a torch.Tensor, not {type(values).__name__}; torch.as_tensor makes one")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [N, (y1, x1, y2, x2)], not {list(boxes.shape)}; one image at a time?")
    if boxes.shape[0] > _MAX_BOXES:
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
    # int() comes last, for it fails for infinities and NaN.
    if max_keep is not None and not (0 <= max_keep <= _UNLIMITED and max_keep == int(max_keep)):
        raise ValueError(f"max_keep must be None or an integer of at least 0, not {max_keep}")


############################################################
#  The op
############################################################


def _check_op(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, max_keep: int | None) -> None:
    """Raises ValueError unless kernels can take these. They believe shapes and dtypes, and anyone may call the op."""
    _check(boxes, scores, groups, iou_threshold, max_keep)
    if boxes.dtype != scores.dtype or boxes.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"boxes ({boxes.dtype}) and scores ({scores.dtype}) of the op must both be float32 or float64")
    if groups is not None and groups.dtype != torch.int64:
        raise ValueError(f"groups of the op must be int64, not {groups.dtype}")


@torch.library.custom_op("maskscoring::batched_nms", mutates_args=())
def _batched_nms(
    boxes: Tensor, scores: Tensor, groups: Optional[Tensor], iou_threshold: float, max_keep: Optional[int]
) -> Tensor:
    _check_op(boxes, scores, groups, iou_threshold, max_keep)
    return reference.batched_nms(boxes, scores, groups, iou_threshold, max_keep)


@_batched_nms.register_fake
def _(boxes, scores, groups, iou_threshold, max_keep):
    n = boxes.shape[0]
    # Inductor refuses to index an empty tensor with an unknown number of indices.
    count = 0 if isinstance(n, int) and n == 0 else torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(count, dtype=torch.int64)


for _device in ("cpu", "cuda"):
    _batched_nms.register_autocast(_device, torch.float32)  # in half precision, boxes would be off by pixels


############################################################
#  Native kernels
############################################################

_POINTER, _INT, _INT64, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _limit(max_keep: int | None) -> int:
    return _UNLIMITED if max_keep is None else max_keep


def _register_cpu(library: ctypes.CDLL) -> None:
    library.nms_cpu.argtypes = [_POINTER, _POINTER, _POINTER, _INT64, _FLOAT, _INT64, _INT, _POINTER]
    library.nms_cpu.restype = _INT64

    @native.kernel("batched_nms", "cpu")
    def _(boxes, scores, groups, iou_threshold, max_keep):
        _check_op(boxes, scores, groups, iou_threshold, max_keep)
        if boxes.dtype != torch.float32:
            return reference.batched_nms(boxes, scores, groups, iou_threshold, max_keep)
        boxes, scores = boxes.contiguous(), scores.contiguous()
        groups = None if groups is None else groups.contiguous()
        keep = torch.empty(len(boxes), dtype=torch.int64)
        count = library.nms_cpu(
            _pointer(boxes), _pointer(scores), _pointer(groups), len(boxes),
            iou_threshold, _limit(max_keep), torch.get_num_threads(), _pointer(keep))  # fmt: skip
        if count < 0:
            raise MemoryError(f"nms of {len(boxes)} boxes ran out of memory")
        return keep[:count]


def _register_cuda(library: ctypes.CDLL) -> None:
    @native.kernel("batched_nms", "cuda")
    def _(boxes, scores, groups, iou_threshold, max_keep):
        _check_op(boxes, scores, groups, iou_threshold, max_keep)
        if boxes.dtype != torch.float32:
            return reference.batched_nms(boxes, scores, groups, iou_threshold, max_keep)
        with torch.cuda.device(boxes.device):
            stream = torch.cuda.current_stream().cuda_stream
            return _run_cuda(library, boxes, scores, groups, iou_threshold, max_keep, stream)


def _run_cuda(library: ctypes.CDLL, boxes, scores, groups, iou_threshold, max_keep, stream) -> Tensor:
    """Sorts with torch, then runs nms_cuda of a library on the current device and the given stream."""
    library.nms_cuda.argtypes = [*[_POINTER] * 4, _INT64, _FLOAT, _INT64, *[_POINTER] * 3]
    library.nms_cuda.restype = ctypes.c_char_p
    boxes, scores = boxes.contiguous(), scores.contiguous()
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score  # by group, then by descending score
    if groups is not None:
        groups = groups.contiguous()
        order = by_score[groups[by_score].argsort(stable=True)]
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if len(boxes) > 0:
        words = (len(boxes) + 63) // 64
        overlap_bits = torch.empty(len(boxes), words, dtype=torch.int64, device=boxes.device)
        error = library.nms_cuda(
            _pointer(boxes), _pointer(scores), _pointer(groups), _pointer(order), len(boxes), iou_threshold,
            _limit(max_keep), _pointer(overlap_bits), _pointer(kept), stream)  # fmt: skip
        if error is not None:
            raise RuntimeError(f"nms on CUDA: {error.decode()}")
    return by_score[kept[by_score]]  # reads the count: the only synchronisation with the host


native.register("nms", cpu=_register_cpu, cuda=_register_cuda if torch.version.cuda else None)
