"""Pickles of NumPy arrays, as Detectron and Detectron2 publish weights, read as data.

Such a file is {"model": {name: array}, "__author__": text, ...}, written by any version of Python, NumPy and pickle.
NumPy's functions, which a pickle would call, believe what they are told, and a pickle may name any other function. So
this file has a machine of its own for the instructions of pickle. The few names that it knows stand for notes of what
an array is said to be, which are compared with the bytes in the file. Every other name is refused.

Long strings of bytes are views of the file, so that an array takes no memory twice.
"""

import codecs
import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

import utils

from .pickles import Forbidden, Ignored, kind_of, resolve

_MOST_INSTRUCTIONS = 200_000  # published files have up to 30,000
_VIEWED = 512  # strings of bytes of at least this length are views of the file
_MOST_REPEATED = 1 << 20  # bytes that copies and arrays may have together beyond the size of their file
_LONGEST_NAME = 200


def begins_a_pickle(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a pickle that holds a dict, of any protocol."""
    return re.match(rb"\x80[\x02-\x05]|\(d|\}[q(r.]|\(?ccollections\n", head) is not None


def read_array_pickle(data: mmap.mmap) -> Any:
    """What a pickle holds: plain containers, numbers, texts, and tensors in place of arrays.

    data: a file that may be written to in memory alone (mmap.ACCESS_COPY). It must stay open; some tensors are views.

    Raises: Forbidden for a name of anything but arrays and plain containers; any other error for damage.
    """
    machine = _Machine(data)
    value = machine.run()
    budget = _Budget(len(data), "its arrays claim much more memory than the file has bytes")
    return resolve(value, lambda array: _tensor(array, budget), StoredArray)


class _Budget:
    """Bytes that the contents of a pickle may take, so that a few bytes named often take no memory."""

    def __init__(self, file_size: int, reason: str) -> None:
        self._left, self._reason = file_size + _MOST_REPEATED, reason

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise pickle.UnpicklingError(self._reason)


############################################################
#  Notes of arrays
############################################################


class _NumberType:
    """A dtype of NumPy, as a pickle describes it. Raises: Forbidden for the dtype of Python objects."""

    def __init__(self, code: Any, *rest: Any) -> None:
        if not isinstance(code, str) or len(code) > 20:
            raise pickle.UnpicklingError("a type of numbers without a name")
        if code.startswith("O"):
            raise Forbidden(f"numpy.dtype({utils.printable(code)!r}), an array of Python objects")
        self.code, self.order, self.is_plain = code, "=", True

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("a type of numbers in an unknown form")
        self.order, self.is_plain = state[1], all(part is None for part in state[2:5])

    def dtype(self) -> np.dtype | None:
        """NumPy's dtype; None for what is no number of 64 bits or less."""
        if not self.is_plain or not re.fullmatch(r"f[248]|[iu][1248]|b1", self.code):
            return None
        return np.dtype(self.code).newbyteorder(self.order)


class StoredArray:
    """An array that the pickle describes. What data says is compared with the rest when the tensor is made."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype = _NumberType("f4")
        self.data: Any = b""
        self.order = "C"
        self.axes: tuple[int, ...] | None = None  # the order of the dimensions in memory, of those in another order

    def build(self, state: Any) -> None:
        """What numpy.ndarray.__setstate__ is given: version, shape, dtype, whether columns come first, and bytes."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise pickle.UnpicklingError("an array in an unknown form")
        shape, dtype, columns_first, data = state[-4:]
        self.fill(data, dtype, shape, "F" if columns_first else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> None:
        if not isinstance(dtype, _NumberType) or order not in ("C", "F", "A", "K"):
            raise pickle.UnpicklingError("an array in an unknown form")
        self.shape, self.dtype, self.data = _sides(shape), dtype, data
        self.order, self.axes = "F" if order == "F" else "C", None if axes is None else _sides(axes)


def _sides(shape: Any) -> tuple[int, ...]:
    is_shape = isinstance(shape, tuple | list) and len(shape) <= 64
    if not is_shape or not all(type(side) is int and 0 <= side < 1 << 62 for side in shape):
        raise pickle.UnpicklingError("a shape is no list of numbers from 0 up")
    return tuple(shape)


def _numbers(array: StoredArray) -> np.ndarray | None:
    """The numbers of an array, a view of the bytes it was given; None for types that are no numbers.

    Raises: pickle.UnpicklingError unless there are as many bytes as it claims.
    """
    dtype = array.dtype.dtype()
    if dtype is None:
        return None
    data = array.data.encode("latin1") if isinstance(array.data, str) else array.data  # a string of Python 2
    if not isinstance(data, bytes | memoryview):
        raise pickle.UnpicklingError(f"an array has {kind_of(data)} in place of bytes")
    if math.prod(array.shape) * dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array claims another size than the {len(data):,} bytes that it has")
    numbers = np.frombuffer(data, dtype) if len(data) else np.empty(0, dtype)
    numbers = numbers.reshape(array.shape, order=array.order)
    return numbers if array.axes is None else numbers.transpose(array.axes)


def _tensor(array: StoredArray, budget: _Budget) -> Any:
    """An array as a tensor, whose numbers this machine can compute with."""
    numbers = _numbers(array)
    if numbers is None:
        thing = Ignored()
        thing.kind = f"an array of {utils.printable(array.dtype.code)}, which are no numbers of 64 bits or less"
        return thing
    budget.take(numbers.nbytes)
    dtype = numbers.dtype.newbyteorder("=")
    is_usable = numbers.dtype == dtype and numbers.flags.aligned and numbers.flags.writeable
    return torch.from_numpy(numbers if is_usable else np.array(numbers, dtype))


############################################################
#  What the names in a pickle stand for
############################################################


class _Name(NamedTuple):
    """A function or class that a pickle names. call: what stands for it; it gets the machine, then the arguments."""

    full_name: str
    call: Callable | None


def _bytes(machine: "_Machine", text: Any = "", encoding: Any = "latin1") -> bytes:
    """_codecs.encode, by which protocols 0 to 2 store bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    machine.copied.take(len(text))
    return text.encode("latin1")


def _same_bytes(machine: "_Machine", data: Any = b"", encoding: Any = "latin1") -> bytes | memoryview:
    """bytes() and bytearray(), which nobody changes here."""
    return data if isinstance(data, bytes | memoryview) else _bytes(machine, data, encoding)


def _scalar(machine: "_Machine", dtype: Any, data: Any = b"") -> Any:
    """A single number of NumPy. Texts and others are left out: no weight is one."""
    number = StoredArray()
    number.fill(data, dtype, ())
    values = _numbers(number)
    return Ignored() if values is None else values.item()


def _frombuffer(machine: "_Machine", data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> StoredArray:
    """numpy.core.numeric._frombuffer, by which protocol 5 stores arrays."""
    array = StoredArray()
    array.fill(data, dtype, shape, order)
    if axes is not None:
        array.axes = _sides(axes)
    return array


def _ordered_dict(machine: "_Machine", items: Any = ()) -> dict:
    machine.copied.take(100 * len(items))
    items = list(items.items()) if isinstance(items, dict) else items
    return {_key(key): value for key, value in items}


_CORES = ("numpy.core", "numpy._core")
_CALLS: dict[str, Callable | None] = {
    **{f"{core}.multiarray._reconstruct": lambda machine, *arguments: StoredArray() for core in _CORES},
    **{f"{core}.multiarray.scalar": _scalar for core in _CORES},
    **{f"{core}.numeric._frombuffer": _frombuffer for core in _CORES},
    "numpy.ndarray": None,
    "numpy.dtype": lambda machine, *arguments: _NumberType(*arguments),
    "collections.OrderedDict": _ordered_dict,
    "builtins.bytes": _same_bytes,
    "builtins.bytearray": _same_bytes,
    "_codecs.encode": _bytes,
}


def _named(module: Any, name: Any) -> _Name:
    """What stands for a name. Raises: Forbidden for others than those of arrays and plain containers."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise pickle.UnpicklingError("a name is no text")
    full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"  # the latter in Python 2
    if full_name not in _CALLS:
        raise Forbidden(utils.printable(full_name, _LONGEST_NAME))
    return _Name(full_name, _CALLS[full_name])


def _key(key: Any) -> str | int:
    """The key of a dict. Tuples of tuples, which also could be one, can take forever to compare."""
    if not isinstance(key, str | int):
        raise pickle.UnpicklingError(f"a key of a dict is {kind_of(key)}")
    return key


############################################################
#  Instructions
############################################################

_LENGTHS = {  # bytes of the length that stands before a string
    "SHORT_BINBYTES": 1,
    "BINBYTES": 4,
    "BINBYTES8": 8,
    "BYTEARRAY8": 8,
    "SHORT_BINSTRING": 1,
    "BINSTRING": 4,
}


def _instructions(data: mmap.mmap) -> Iterator[tuple[str, Any]]:
    """The name and the argument of each instruction of a pickle, up to STOP."""
    for _ in range(_MOST_INSTRUCTIONS):
        position = data.tell()
        opcode = pickletools.code2op.get(data.read(1).decode("latin1"))
        if opcode is None:
            raise pickle.UnpicklingError(f"byte {position:,} is no instruction" if position < len(data) else "no end")
        if opcode.name in _LENGTHS:
            yield opcode.name, _string(data, opcode.name)
        elif opcode.name == "STRING":
            yield opcode.name, _escaped_string(data)
        else:
            yield opcode.name, None if opcode.arg is None else opcode.arg.reader(data)
        if opcode.name == "STOP":
            return
    raise pickle.UnpicklingError(f"it has more than {_MOST_INSTRUCTIONS:,} instructions")


def _string(data: mmap.mmap, opcode: str) -> str | bytes | memoryview:
    """A string of bytes whose length stands before it. Of Python 2, a short one is a text."""
    size = _LENGTHS[opcode]
    count = int.from_bytes(data.read(size), "little")
    start = data.tell()
    if start + count > len(data):
        raise pickle.UnpicklingError(f"a string of {count:,} bytes is cut off")
    data.seek(start + count)
    if count >= _VIEWED:
        return memoryview(data)[start : start + count]
    value = data[start : start + count]
    return value.decode("latin1") if opcode.endswith("STRING") else value


def _escaped_string(data: mmap.mmap) -> str:
    """A string of protocol 0, in quotes and with escapes, up to the end of the line."""
    line = data.readline().rstrip(b"\r\n")
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise pickle.UnpicklingError("a string without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")


class _Machine:
    """Follows the instructions of a pickle. copied: bytes that it may copy."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        self.copied = _Budget(len(data), "it names the same text again and again")

    def run(self) -> Any:
        """The object that the pickle describes."""
        for name, argument in _instructions(self._data):
            if name == "STOP":
                break
            follow = _FOLLOWS.get(name)
            if follow is None:
                raise pickle.UnpicklingError(f"the instruction {name}, which pickles of arrays do not have")
            follow(self, argument)
        return self._stack.pop()

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self, argument: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._below.pop()
        return values

    def pop(self, argument: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.pop_mark()

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise pickle.UnpicklingError("a tuple of too few values")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def name(self, argument: str | None) -> None:
        if argument is None:
            name, module = self._stack.pop(), self._stack.pop()
        else:
            module, _, name = argument.partition(" ")
        self.push(_named(module, name))

    def append(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise pickle.UnpicklingError(f"items for {kind_of(self._stack[-1])}")
        self._stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not dict or len(values) % 2:
            raise pickle.UnpicklingError(f"keys and values for {kind_of(self._stack[-1])}")
        self._stack[-1].update((_key(key), value) for key, value in zip(values[::2], values[1::2], strict=True))

    def call(self, argument: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Name) or function.call is None or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f"a call of {kind_of(function)}")
        self.push(function.call(self, *arguments))

    def build(self, argument: Any) -> None:
        state, thing = self._stack.pop(), self._stack[-1]
        if isinstance(thing, _NumberType | StoredArray):
            thing.build(state)
        elif type(thing) is not dict:  # an OrderedDict's attributes are left out
            raise pickle.UnpicklingError(f"a state of {kind_of(thing)}")

    def forbid_class(self, argument: Any) -> None:
        """INST, NEWOBJ, ...: objects of a class, which arrays and plain containers are not."""
        if isinstance(argument, str):
            _named(*argument.partition(" ")[::2])
        name = next((value.full_name for value in reversed(self._stack) if isinstance(value, _Name)), "a class")
        raise Forbidden(f"an object of {name}")


def _pair(machine: _Machine) -> list[Any]:
    value, key = machine._stack.pop(), machine._stack.pop()
    return [key, value]


_FOLLOWS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(
        (
            "INT",
            "BININT",
            "BININT1",
            "BININT2",
            "LONG",
            "LONG1",
            "LONG4",
            "FLOAT",
            "BINFLOAT",
            "STRING",
            "UNICODE",
            "BINUNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE8",
            *_LENGTHS,
        ),
        _Machine.push,
    ),
    "NONE": lambda machine, argument: machine.push(None),
    "NEWTRUE": lambda machine, argument: machine.push(True),
    "NEWFALSE": lambda machine, argument: machine.push(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, argument: machine.pop_mark() and None,
    "DUP": lambda machine, argument: machine.push(machine._stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine._memo[index])),
    "EMPTY_TUPLE": lambda machine, argument: machine.push(()),
    "EMPTY_LIST": lambda machine, argument: machine.push([]),
    "EMPTY_DICT": lambda machine, argument: machine.push({}),
    "TUPLE": lambda machine, argument: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, argument: machine.tuple_of(1),
    "TUPLE2": lambda machine, argument: machine.tuple_of(2),
    "TUPLE3": lambda machine, argument: machine.tuple_of(3),
    "LIST": lambda machine, argument: machine.push(machine.pop_mark()),
    "DICT": lambda machine, argument: (lambda items: (machine.push({}), machine.set_items(items)))(machine.pop_mark()),
    "APPEND": lambda machine, argument: machine.append([machine._stack.pop()]),
    "APPENDS": lambda machine, argument: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, argument: machine.set_items(_pair(machine)),
    "SETITEMS": lambda machine, argument: machine.set_items(machine.pop_mark()),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Machine.name),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    **dict.fromkeys(("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"), _Machine.forbid_class),
}
