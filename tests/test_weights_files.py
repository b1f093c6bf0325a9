"""Files of weights are data: checksums are compared, links are not followed, sizes are checked before reading."""

import zipfile

import h5py
import numpy as np
import pytest
import torch

from weights.convert import _read_keras
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


def test_an_archive_that_unpacks_to_more_than_the_file_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10_000_000))
    with pytest.raises(ValueError, match=r"torch did not write: torch compresses nothing, and here bomb/data.pkl"):
        load_torch_file(path)


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
    tensors, _ = _read_keras(keras(lambda group: group.create_dataset("kernel:0", data=WEIGHTS)))
    assert torch.equal(tensors["conv1.kernel"], torch.from_numpy(WEIGHTS).T)
    packed = keras(lambda group: group.create_dataset("kernel:0", data=WEIGHTS, compression="gzip"))
    assert torch.equal(_read_keras(packed)[0]["conv1.kernel"], torch.from_numpy(WEIGHTS).T)


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
            _read_keras(keras(fill))
    links = [h5py.ExternalLink(str(tmp_path / "other.h5"), "x"), h5py.SoftLink("/conv1")]
    for link in links:
        with pytest.raises(ValueError, match="/conv1/conv1/kernel:0 is a link to another place or file, which was not"):
            _read_keras(keras(lambda group, link=link: group.__setitem__("kernel:0", link)))


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20), (1 << 40,)])
def test_a_shape_that_the_file_cannot_hold_takes_no_memory(keras, shape):
    path = keras(lambda group: group.create_dataset("kernel:0", shape, "f4", chunks=(1024,) * len(shape)))
    with pytest.raises(ValueError, match=r"has the shape .* MB, which is more than the file can hold; it is damaged"):
        _read_keras(path)
