"""Counts the places where a program would wait for a GPU, on a machine without one."""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
# Operators whose result has a size that only the device knows, that hand a number to the program, or that copy from
# memory of the program's own: lift_fresh is what torch.tensor, new_tensor and x[index] = number make.
_WAITING = {
    "aten.nonzero.default",
    "aten.bincount.default",
    "aten.masked_select.default",
    "aten._local_scalar_dense.default",
    "aten._unique2.default",
    "aten.unique_consecutive.default",
    "aten.unique_dim.default",
    "aten.equal.default",
    "aten.repeat_interleave.Tensor",
    "aten.lift_fresh.default",
    "maskscoring.batched_nms.default",
}
_INDEXING = {"aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default", "aten._index_put_impl_.default"}


class Waits(TorchDispatchMode):
    """A context that notes, in `found`, each operator that waits on CUDA, with its place: "aten.nonzero.default in
    propose, model.py:705".

    What it cannot see: waits inside of kernels and operators of our own (those that are known are in _WAITING) and of
    torch's operators; copies between devices, which do not exist on a CPU, other than those of lists; memory that CUDA
    allocates or frees; code for other devices than the CPU, unless the test makes it run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._calls = _Calls(self.found)

    def __enter__(self) -> "Waits":
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        self._calls.__exit__(*exception)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = str(operator)
        has_mask = name in _INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in _WAITING or has_mask:
            self.found.append(f"{name} in {_place()}")
        return operator(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Notes calls that reach no operator on a CPU, but wait on CUDA."""

    NAMES = ("tolist", "numpy", "cpu", "__array__")

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found
        self.functions = {getattr(Tensor, name): name for name in self.NAMES}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.functions:
            self.found.append(f"Tensor.{self.functions[function]} in {_place()}")
        return function(*args, **(kwargs or {}))


def _place() -> str:
    """The innermost function of the project, tests apart, that is being called; "torch" if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and "tests" not in path.parts and ".venv" not in path.parts:
            name = frame.f_code.co_qualname.split(".<locals>")[0]
            return f"{name}, {path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch"
