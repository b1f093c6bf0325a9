"""Files of weights are data: checksums are compared, links are not followed, sizes are checked before reading."""

import zipfile

import h5py
import numpy as np
import pytest
import torch

from weights.keras_files import read_keras
from weights.torch_files import load_torch_file

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_flipped_bit_in_any_tensor_is_found(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(100.0), "b": torch.ones(50)}, path)
    content = bytearray(path.read_bytes())
    for tensor in (torch.arange(100.0), torch.ones(50)):
        place = content.find(tensor.numpy().tobytes())
        assert place > 0
        content[place + 5] ^= 4
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights.pth is damaged: the bytes of '.*' do not have the checksum"):
            load_torch_file(path)
        content[place + 5] ^= 4
    path.write_bytes(content)
    assert torch.equal(load_torch_file(path)["a"], torch.arange(100.0))


@pytest.mark.parametrize("again", [b"2\x86", b"q\x010h\x01h\x01\x86"], ids=["doubled", "from the memo"])
def test_a_key_of_tuples_in_tuples_is_refused(again, tmp_path):
    """Each tuple is twice in the next one: to look it up in a dict would take 2^40 steps, and no signal ends them."""
    torch.save({"a": 1}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for name in good.namelist():
            pickled = b"\x80\x02})" + again * 40 + b"K\x01s."
            bad.writestr(name, pickled if name.endswith("data.pkl") else good.read(name))
    with pytest.raises(ValueError, match=r"bad\.pth is truncated or damaged; .*tuples lie in each other"):
        load_torch_file(tmp_path / "bad.pth")


def test_many_tuples_are_read(tmp_path):
    contents = {"steps": [(step, (step, 0.5)) for step in range(1000)], (1, ("a", "b")): ("class",) * 1203}
    torch.save(contents, tmp_path / "x.pth")
    assert load_torch_file(tmp_path / "x.pth") == contents


def test_an_archive_that_unpacks_to_more_than_the_file_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10_000_000))
    with pytest.raises(ValueError, match=r"torch did not write: torch compresses nothing, and here bomb/data.pkl"):
        load_torch_file(path)


# Of torch.save({"a": torch.arange(100.0)}): places in the pickle, and what they say after a change.
CLAIMS = {
    "size": (
        b"Kd\x85",
        b"M\xe8\x03\x85",
        r"a tensor of shape \(1000,\) claims more numbers than the 100 of its storage",
    ),
    "stride": (b"K\x01\x85", b"K\x02\x85", "claims more numbers than the 100 of its storage"),
    "offset": (b"QK\x00", b"QK\x01", "claims more numbers than the 100 of its storage"),
    "negative offset": (b"QK\x00", b"QJ\xff\xff\xff\xff", "a shape has negative numbers"),
    "enormous": (b"Kd\x85", b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85", "claims more numbers than the 100 of its storage"),
    "endless": (b"Kd\x85", b"\x8a\xff" + b"\x7f" * 255 + b"\x85", "of shape of enormous numbers claims more numbers"),
    "storage": (b"Kdt", b"M\xe8\x03t", "should have 1,000 numbers and has 400 bytes|a storage is cut off"),
    "memo": (b"Kd\x85", b"r\xff\xff\xff\x7fKd\x85", "claims 2147483647 objects"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_pickle_claims_is_compared_with_the_file(claim, zipped, tmp_path):
    """Archives have right checksums here. torch itself would let a storage grow, to numbers that nobody wrote."""
    before, after, message = CLAIMS[claim]
    if claim == "storage" and not zipped:  # None follows there: the storage is no view of another
        before, after = before.replace(b"t", b"N"), after.replace(b"t", b"N")
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(100.0)}, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                assert not name.endswith("data.pkl") or data.count(before) == 1
                archive.writestr(name, data.replace(before, after) if name.endswith("data.pkl") else data)
    else:
        data = path.read_bytes()
        place = data.index(before, data.index(b"storage"))
        path.write_bytes(data[:place] + after + data[place + len(before) :])
    with pytest.raises(ValueError, match=rf"weights.pth is (truncated or )?damaged.*({message})"):
        load_torch_file(path)


def test_a_harmless_pickle_can_call_nothing(tmp_path):
    """Each name in a pickle stands for a function of ours, which a pickle can neither change nor replace."""
    path = tmp_path / "weights.pth"
    for text, message in {
        b"cos\nsystem\n(S'touch x'\ntR.": r"no weight: os\.system\. It could run code",
        b"c__builtin__\neval\n(S'1'\ntR.": r"no weight: builtins\.eval\. It could run code",
        b"ctorch._utils\n_rebuild_tensor_v2\n}(S'_function'\nNub.": "a function with a state",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.": "a tensor has no storage",
        b"ccollections\nOrderedDict\n}b.": "truncated or damaged",
        b"cbuiltins\nbytearray\n(I999999999999\ntR.": "holds bytes",
    }.items():
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", text)
        with pytest.raises(ValueError, match=message):
            load_torch_file(path)


def test_names_that_lie_twice_in_an_archive(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(100.0)}, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(next(name for name in archive.namelist() if name.endswith("data.pkl")), b"N.")
    with pytest.raises(ValueError, match="two entries of the archive have the same name"):
        load_torch_file(path)


def test_tensors_that_share_a_storage_still_do(tmp_path):
    path, numbers = tmp_path / "weights.pth", torch.arange(12.0)
    torch.save(
        {"a": numbers.view(3, 4).T, "b": numbers[2:5], "c": numbers[:0], "d": torch.tensor(5, dtype=torch.int8)}, path
    )
    loaded = load_torch_file(path)
    assert torch.equal(loaded["a"], numbers.view(3, 4).T)
    assert loaded["b"].tolist() == [2, 3, 4]
    assert loaded["c"].shape == (0,)
    assert int(loaded["d"]) == 5
    before = path.read_bytes()
    loaded["a"][2, 0] = 99
    assert loaded["b"].tolist() == [99, 3, 4]
    assert path.read_bytes() == before, "the file is mapped, and not written"


@pytest.fixture
def keras(tmp_path):
    """A function that writes a Keras file of one layer, whose weight fill(group) stores."""

    def write(fill):
        path = tmp_path / "keras.h5"
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = np.array([b"conv1"])
            group = file.create_group("conv1")
            group.attrs["weight_names"] = np.array([b"conv1/kernel:0"])
            fill(group.create_group("conv1"))
        return path

    return write


def test_weights_in_the_file_are_read(keras):
    tensors, _ = read_keras(keras(lambda group: group.create_dataset("kernel:0", data=WEIGHTS)))
    assert torch.equal(tensors["conv1.kernel"], torch.from_numpy(WEIGHTS).T)
    packed = keras(lambda group: group.create_dataset("kernel:0", data=WEIGHTS, compression="gzip"))
    assert torch.equal(read_keras(packed)[0]["conv1.kernel"], torch.from_numpy(WEIGHTS).T)


def test_other_files_are_not_opened(keras, tmp_path):
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = WEIGHTS
    layout = h5py.VirtualLayout(shape=(2, 3), dtype=np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", shape=(2, 3))
    storages = [
        lambda group: group.create_dataset("kernel:0", (2, 3), "f4", external=str(tmp_path / "secret")),
        lambda group: group.create_virtual_dataset("kernel:0", layout),
    ]
    for fill in storages:
        with pytest.raises(ValueError, match="the numbers of /conv1/conv1/kernel:0 are stored in other files, which"):
            read_keras(keras(fill))
    links = [h5py.ExternalLink(str(tmp_path / "other.h5"), "x"), h5py.SoftLink("/conv1")]
    for link in links:
        with pytest.raises(ValueError, match="/conv1/conv1/kernel:0 is a link to another place or file, which was not"):
            read_keras(keras(lambda group, link=link: group.__setitem__("kernel:0", link)))


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20), (1 << 40,)])
def test_a_shape_that_the_file_cannot_hold_takes_no_memory(keras, shape):
    path = keras(lambda group: group.create_dataset("kernel:0", shape, "f4", chunks=(1024,) * len(shape)))
    with pytest.raises(ValueError, match=r"has the shape .* MB, which is more than the file can hold; it is damaged"):
        read_keras(path)


def test_more_names_than_any_model_has_are_not_read(keras, monkeypatch):
    path = keras(lambda group: group.create_dataset("kernel:0", data=WEIGHTS))
    with h5py.File(path, "a") as file:
        del file.attrs["layer_names"]
        file.attrs["layer_names"] = np.zeros(11, "S1")
    monkeypatch.setattr(
        "weights.keras_files._MOST_NAMES", 10
    )  # HDF5 allows 100,000 in files of its newest version only
    with pytest.raises(ValueError, match="layer_names claims 11 names, more than any model has; it is damaged"):
        read_keras(path)
