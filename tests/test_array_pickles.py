"""Pickles of NumPy arrays, as Detectron2's model zoo has them: what is written is read, and nothing is executed."""

import base64
import os
import pickle
import tracemalloc
import zlib

import numpy as np
import pytest
import torch

from weights.state_dicts import find_state_dict
from weights.torch_files import load_torch_file

# Written by pickle of Python 2.7.18 with NumPy 1.16.6, by protocol: a_w, float32; and b, float64 of the other byte
# order, with columns first.
PYTHON_2 = {
    0: "eNp9kUFrxCAUhO/vj+ilQc22TZfSBnrKJYfmGhCjJi1sohhDk3/ft8m2bJftggOOM8r3kBrPoSK9M/ZAwAugxqd4oOQX2h3oYer9kmgXbNJPh/"
    "ipQlALyGC1G8YYJh3B3wPdejCYLfcPQAsGsSINgfjuH9FylABc8VQ2cfEWfAa0Iu2OAF7AErafsHmEeCZQlmVxx2EVvtcUjGFQz4z96PXc1LP+3ee5"
    "q2cu6jlL9wjRjCtMh7DdBR1nf/C6jSg7I+L8hPRyDYlfIF1TfivEGdqbN7P/wnUwnExKNcUPF6TEb+MCgd5U21pxdCmMyTdSeIc/",
    2: "eNprYKotZNQIZc3NT0nNKQRymDVCmRPjywtZkvNKcwsq9ZLzi1L1cktzSjITi4oSK7nii1KT8/OKS4pKk0u4ClkhqrjyUiCyhWzeDK2hj"
    "EntQYXsGt6M3kzeTG1QJSkllQWpXIUcoUxpJt4M3oxAJZwa3syhjDZ+fn5e/4EATHgzlCR1hgowMDDYA/EBBgYHh3yhZquSJKCpGawZCP"
    "O5YOZngIy0gBrJDTbSDsPIjlAFBihwgNL2H6B8DghdklQayhUfn1hakpFfFB9fyBPK5pyYlpZqVMhbqgcAiB9aVg==",
}
RNG = np.random.default_rng(0)
ARRAYS = {
    "matrix": RNG.random((30, 50)).astype(np.float32),
    "columns": np.asfortranarray(RNG.random((30, 50)).astype(np.float32)),
    "axes": RNG.random((4, 5, 6)).astype(np.float32).transpose(1, 0, 2),
    "slices": RNG.random((6, 7, 9))[:, ::2],
    "nothing": np.zeros((0, 3), np.float32),
    "a number's array": np.array(3.0),
    **{f"{order}{code}": np.arange(1, 400).astype(f"{order}{code}")
       for order in "<>" for code in ("f2", "f4", "f8", "i2", "i4", "i8", "u2")},
    "bytes": np.arange(200, dtype=np.uint8),
    "signed": np.arange(-100, 100, dtype=np.int8),
    "truths": np.array([True, False]),
}  # fmt: skip


def write(path, contents, protocol=2):
    path.write_bytes(pickle.dumps(contents, protocol))
    return path


@pytest.mark.parametrize("old_names", [False, True], ids=["numpy._core", "numpy.core"])
@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(protocol, old_names, tmp_path):
    """Also with the names of NumPy 1."""
    contents = {"model": ARRAYS, "__author__": "name é", "matching_heuristics": True, "step": np.float32(2.5)}
    data = pickle.dumps(contents, protocol)
    if old_names:  # a byte shorter, so that lengths and frames change too
        for length in range(1, 30):
            data = data.replace(bytes([0x8C, length]) + b"numpy._core", bytes([0x8C, length - 1]) + b"numpy.core")
        data = data.replace(b"cnumpy._core", b"cnumpy.core")
        if protocol < 4:
            assert b"_core" not in data
    (tmp_path / "x.pkl").write_bytes(data)
    found = load_torch_file(tmp_path / "x.pkl")
    assert found["__author__"] == "name é"
    assert found["matching_heuristics"] is True
    assert found["step"] == 2.5
    assert found["model"].keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert isinstance(found["model"][name], torch.Tensor), name
        assert found["model"][name].shape == array.shape
        assert found["model"][name].numpy().dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found["model"][name].numpy(), array), name


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_python_2(protocol, tmp_path):
    (tmp_path / "x.pkl").write_bytes(zlib.decompress(base64.b64decode(PYTHON_2[protocol])))
    found = load_torch_file(tmp_path / "x.pkl")
    assert found["__author__"] == "Caffe2"
    assert torch.equal(found["model"]["a_w"], torch.tensor([[0.5, -2.0], [3.0, 1e-3]]))
    assert found["model"]["b"].tolist() == [[0, 1], [2, 3]]
    assert found["model"]["b"].dtype == torch.float64


def test_nothing_writes_into_the_file(tmp_path):
    path = write(tmp_path / "x.pkl", {"a": np.zeros(5000, np.float32)}, 4)
    before = path.read_bytes()
    load_torch_file(path)["a"].fill_(1)
    assert path.read_bytes() == before


def test_blobs_and_bare_arrays(tmp_path):
    """Detectron keeps arrays in "blobs", each with its momentum; ImageNet weights are the dict itself."""
    blobs = {"conv1_w": np.ones(3, np.float32), "conv1_w_momentum": np.zeros(3, np.float32)}
    for contents, dropped in (
        ({"blobs": blobs, "cfg": "MODEL: x"}, ["cfg", "conv1_w_momentum"]),
        (blobs, ["conv1_w_momentum"]),
    ):
        found = find_state_dict(tmp_path, load_torch_file(write(tmp_path / "x.pkl", contents)))
        assert list(found.tensors) == ["conv1_w"]
        assert found.dropped == dropped


############################################################
#  What is refused
############################################################


class Call:
    """Something whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Thing:
    pass


def marker(path):
    """A call that leaves a file."""
    return Call(os.mkdir, str(path))


FORBIDDEN = {
    "os.system": (lambda: Call(os.system, "true"), r"(posix|nt)\.system"),
    "numpy.load": (lambda: Call(np.load, "/etc/passwd"), r"numpy\.load"),
    "eval": (lambda: Call(eval, "1"), r"builtins\.eval"),
    "getattr": (lambda: Call(getattr, "a", "upper"), r"builtins\.getattr"),
    "an object of a class": (Thing, r"(test_array_pickles\.Thing|copyreg\._reconstructor|copy_reg\._reconstructor)"),
    "a set": (lambda: {1}, r"builtins\.set"),
    "a tensor": (lambda: torch.zeros(2), r"torch\._utils\._rebuild_tensor_v2"),
    "an array of objects": (lambda: np.array([None]), r"numpy\.dtype\('O8'\), an array of Python objects"),
    "a matrix class": (lambda: np.ma.zeros(2), r"numpy\.ma\.core\._mareconstruct"),
}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", FORBIDDEN)
def test_anything_else_is_refused_by_its_name(name, protocol, tmp_path):
    make, match = FORBIDDEN[name]
    if name == "a set" and protocol > 3:
        match = "the instruction EMPTY_SET, which pickles of arrays do not have"
    contents = {"model": {"a": np.zeros(2, np.float32)}, "__author__": make(), "b": marker(tmp_path / "called")}
    path = write(tmp_path / "x.pkl", contents, protocol)
    with pytest.raises(ValueError, match=match) as error:
        load_torch_file(path)
    assert str(error.value).startswith(str(path))
    assert str(error.value).count("\n") == 0
    assert not (tmp_path / "called").exists()


def test_names_are_shown_without_control_characters(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04\x8c\x06a\x1b[2Jb\x8c\x04evil\x93.")
    with pytest.raises(ValueError, match=r"no weight: a\\x1b\[2Jb\.evil"):
        load_torch_file(tmp_path / "x.pkl")
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"\x8c\x01b\x93.")
    with pytest.raises(ValueError, match=r"no weight: a{200}\.\.\.") as error:
        load_torch_file(tmp_path / "x.pkl")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("dtype", ["c8", "U3", "S3", "M8[s]", "f4,i4", np.longdouble])
def test_arrays_of_other_things_are_no_weights(dtype, tmp_path):
    path = write(tmp_path / "x.pkl", {"a": np.zeros(2, dtype), "b": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match=r"a is an array of .*, which are no numbers of 64 bits or less"):
        find_state_dict(path, load_torch_file(path))


DTYPE = b"cnumpy\ndtype\n(\x8c\x02f4\x89\x88tR(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"


def array(shape, data, dtype=DTYPE):
    """An array's pickle by hand. shape, data: instructions that push them."""
    return EMPTY + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


BYTES = b"B\x10\x00\x00\x00" + bytes(16)  # of four numbers
HUGE = b"\x8a\x08" + (1 << 61).to_bytes(8, "little")
NEGATIVE = b"J\xff\xff\xff\xff"
FEW = "an array claims another size than the 16 bytes that it has"
WRONG = {
    "a huge shape": (array(HUGE + b"\x85", BYTES), FEW),
    "a product of huge sides": (array(b"(" + HUGE * 60 + b"t", BYTES), FEW),
    "a side of a thousand bytes": (array(b"\x8b" + (1000).to_bytes(4, "little") + b"\x7f" * 1000 + b"\x85", BYTES),
                                   "a shape is no list of numbers"),
    "a negative side": (array(NEGATIVE + b"\x85", BYTES), "a shape is no list of numbers from 0 up"),
    "two negative sides": (array(NEGATIVE * 2 + b"\x86", BYTES), "a shape is no list of numbers from 0 up"),
    "a side that is a truth": (array(b"\x88\x85", BYTES), "a shape is no list of numbers"),
    "too small a shape": (array(b"K\x03\x85", BYTES), FEW),
    "a hundred sides": (array(b"(" + b"K\x01" * 100 + b"t", BYTES), "a shape is no list of numbers"),
    "bytes that are cut off": (array(b"K\x04\x85", b"B\xff\xff\xff\x7f"), "a string of 2,147,483,647 bytes is cut off"),
    "a list for bytes": (array(b"K\x04\x85", b"]"), "an array has a list in place of bytes"),
    "no type of numbers": (array(b"K\x04\x85", BYTES, b"N"), "an array in an unknown form"),
    "a call of a class": (b"cnumpy\nndarray\n)R", "a call of"),
    "a call of a number": (b"K\x01)R", "a call of a number"),
    "a state of a number": (b"K\x01Nb", "a state of a number"),
    "a tuple as a key": (b"}))s", "a key of a dict is a tuple"),
    "a persistent object": (b"K\x01Q", "the instruction BINPERSID"),
    "an empty stack": (b"00000", "IndexError"),
    "an object without arguments": (b"cnumpy\nndarray\n)\x81", r"an object of numpy\.ndarray"),
    "an old instance": (b"(ios\nsystem\n", r"os\.system"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_pickles_by_hand(name, tmp_path):
    body, match = WRONG[name]
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04}\x8c\x01a" + body + b"s.")
    with pytest.raises(ValueError, match=match) as error:
        load_torch_file(tmp_path / "x.pkl")
    assert str(error.value).startswith(str(tmp_path / "x.pkl"))
    assert len(str(error.value)) < 1000


def test_an_array_by_hand(tmp_path):
    """So that the pickles above are wrong in one thing only."""
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04}\x8c\x01a" + array(b"K\x02K\x02\x86", BYTES) + b"s.")
    assert load_torch_file(tmp_path / "x.pkl")["a"].tolist() == [[0, 0], [0, 0]]


def laughs(innermost, again):
    """Lists of lists, each twice in the next one."""
    return b"\x80\x04}\x8c\x01a" + innermost + again * 50_000 + b"s."


SHORT_LONG_BYTES = b"B\x00\x00\x01\x00" + bytes(65536) + b"\x94"
MEMORY = {
    "a list twice in the next, 50,000 times": (laughs(b"]", b"2\x86"), "more than 50 lie in each other"),
    "lists in lists": (b"\x80\x04}\x8c\x01a" + b"]" * 150_000 + b"a" * 149_999 + b"s.", "200,000 instructions"),
    "the same bytes in 1,000 arrays": (
        b"\x80\x04}(\x8c\x01x" + SHORT_LONG_BYTES + b"\x8c\x01d" + DTYPE + b"\x94" + b"".join(
            b"\x8c\x05" + b"%05d" % n + EMPTY + b"(K\x01M\x00\x40\x85h\x01\x89h\x00tb" for n in range(1000)
        ) + b"u.",
        "its arrays claim much more memory than the file has bytes",
    ),
    "the same text encoded 20,000 times": (
        b"\x80\x04}\x8c\x01a(X\x00\x00\x01\x00" + b"a" * 65536 + b"\x94"
        + b"c_codecs\nencode\nh\x00\x8c\x06latin1\x86R" * 20_000 + b"ls.",
        "it names the same text again and again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_bounded(name, tmp_path):
    data, match = MEMORY[name]
    (tmp_path / "x.pkl").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=match):
        load_torch_file(tmp_path / "x.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6, f"{peak / 1e6:.0f} MB"


def test_large_arrays_are_views_of_the_file(tmp_path):
    """A zoo file of 400 MB must not take a second time that."""
    path = write(tmp_path / "x.pkl", {f"a{n}": np.zeros(250_000, np.float32) for n in range(20)}, 4)
    tracemalloc.start()
    load_torch_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6, f"{peak / 1e6:.0f} MB for a file of 20 MB"
