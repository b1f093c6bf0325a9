"""What any process needs: files written whole, memory, devices, the code's revision."""

import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import needs_cuda

import runtime

ROOT = Path(__file__).parent.parent

############################################################
#  Files
############################################################


def test_write_atomically_writes(tmp_path):
    path = tmp_path / "file.json"
    for content in (b"old", b"new"):
        runtime.write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file.json"]


def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path):
    def write(file):
        file.write(b"half")
        raise KeyboardInterrupt

    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        runtime.write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.json"]
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        runtime.write_atomically(tmp_path / "none" / "file", write)


def test_write_atomically_keeps_permissions_ordinary_and_links(tmp_path):
    plain, target, link = tmp_path / "plain", tmp_path / "target", tmp_path / "link"
    plain.write_bytes(b"")
    link.symlink_to(target)
    runtime.write_atomically(link, lambda file: file.write(b"x"))
    assert link.is_symlink()
    assert target.read_bytes() == b"x"
    assert target.stat().st_mode == plain.stat().st_mode
    runtime.write_atomically(tmp_path / ("n" * 255), lambda file: file.write(b"x"))


def test_write_atomically_from_several_threads(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([65 + i]) * 100_000 for i in range(4)]
    threads = [
        threading.Thread(target=runtime.write_atomically, args=(path, lambda f, c=c: f.write(c))) for c in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents


############################################################
#  Memory
############################################################


KEEPS = "import runtime; print(runtime.keep_memory(), runtime.keep_memory())"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(
    ("environment", "kept"),
    [({}, True), ({"MASKSCORING_KEEP_MEMORY": "0"}, False), ({"MALLOC_TRIM_THRESHOLD_": "1000000"}, False)],
)
def test_keep_memory(environment, kept):
    """In a process of its own, since it changes the whole process."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "MASKSCORING_KEEP"))}
    done = subprocess.run(
        [sys.executable, "-c", KEEPS], cwd=ROOT, env=clean | environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(kept)] * 2, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_kept_memory_is_used_again():
    """A block of 100 MB that was freed comes back without new pages; by default each costs 25,000 of them."""
    code = (
        "import runtime, numpy, resource; runtime.keep_memory(); faults = []\n"
        "for _ in range(4):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    numpy.empty(100_000_000, numpy.uint8).fill(1)\n"
        "    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
        "print(max(faults[1:]))"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "MASKSCORING_KEEP"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert int(done.stdout) < 1000, done.stderr


############################################################
#  Devices
############################################################


def fake_gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")


def test_find_device(monkeypatch):
    fake_gpus(monkeypatch, 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert runtime.find_device() == torch.device("cuda")
    for name in ("cpu", "cuda", "cuda:1", "mps", torch.device("cuda", 1)):
        assert runtime.find_device(name) == torch.device(name)
    names = {"gpu": "cuda", "GPU:1": "cuda:1", "CPU": "cpu", "cpu:0": "cpu", "Cuda:0": "cuda:0", "MPS": "mps"}
    assert {name: str(runtime.find_device(name)) for name in names} == names
    fake_gpus(monkeypatch, 0)
    assert runtime.find_device() == runtime.find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("GPU", 0, "device 'GPU' cannot be used: torch sees 0 NVIDIA GPUs; choose cpu"),
        ("gpu:1", 1, "device 'gpu:1' cannot be used: torch sees 1 NVIDIA GPUs; choose cpu or cuda:0 to cuda:0"),
        ("cpu:1", 1, "device 'cpu:1' cannot be used: there is one cpu; leave the number out"),
        ("mps:2", 1, "device 'mps:2' cannot be used: there is one mps; leave the number out"),
        ("xpu", 1, "device must be cpu, cuda, cuda:N or mps, not 'xpu'"),
        ("cuda:-1", 1, "device must be cpu, cuda, cuda:N or mps, not 'cuda:-1'"),
        ("cuda:" + "9" * 5000, 1, f"device must be cpu, cuda, cuda:N or mps, not 'cuda:{'9' * 95}'"),
        ("", 1, "device must be cpu, cuda, cuda:N or mps, not ''"),
        ("meta", 1, "not 'meta'"),
        ("cuda", 0, "device 'cuda' cannot be used: torch sees 0 NVIDIA GPUs; choose cpu"),
        ("cuda:2", 2, "device 'cuda:2' cannot be used: torch sees 2 NVIDIA GPUs; choose cpu or cuda:0 to cuda:1"),
        ("mps", 1, "device 'mps' cannot be used: torch finds no Apple GPU; choose cpu"),
    ],
)
def test_a_device_that_is_not_there(monkeypatch, name, gpus, message):
    fake_gpus(monkeypatch, gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        runtime.find_device(name)


def test_a_torch_without_cuda(monkeypatch):
    fake_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="'cuda' cannot be used: this torch is built without CUDA; choose cpu"):
        runtime.find_device("cuda")


@needs_cuda
def test_the_device_is_usable():
    assert torch.ones(1, device=runtime.find_device()).is_cuda


def test_peak_memory_is_of_this_process():
    """It grows by what is used, in megabytes, and stays when that is freed."""
    before = runtime.peak_memory_mb()
    assert 50 < before < 100_000
    block = torch.ones(int(before * 1e6) + 50_000_000, dtype=torch.uint8)  # nothing freed earlier can hold it
    after = runtime.peak_memory_mb("cpu")
    assert after >= block.numel() / 1e6
    del block
    assert runtime.peak_memory_mb(torch.device("cpu")) >= after


def test_what_is_asked_of_each_kind_of_device(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: asked.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: asked.append("mps"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append(f"anew on {device}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    for device in ("cpu", "mps", "cuda:1"):
        runtime.wait_for(device)
        runtime.forget_peak(device)
    assert asked == ["mps", "cuda:1", "anew on cuda:1"]
    assert [runtime.tensor_bytes(device) for device in (None, "cpu", "mps", "cuda")] == [None, None, None, 7]
    assert runtime.tensor_bytes("cuda", peak=True) == 3_000_000
    assert runtime.peak_memory_mb(torch.device("cuda")) == 3
    assert [runtime.device_name(device) for device in ("cpu", "cuda")] == [None, "H100"]
    pinned = [runtime.uses_pinned_memory(torch.device(kind)) for kind in ("cpu", "mps", "cuda")]
    assert pinned == [False, False, True]


def test_the_device_of_a_training(monkeypatch):
    fake_gpus(monkeypatch, 2)
    assert [runtime.training_device(count).type for count in (0, 1, 8)] == ["cpu", "cuda", "cuda"]
    fake_gpus(monkeypatch, 0)
    assert [runtime.training_device(count).type for count in (0, 1)] == ["cpu", "cpu"]


def test_a_process_has_the_gpu_of_its_number(monkeypatch):
    chosen = []
    fake_gpus(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runtime.setup_distributed() == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    assert runtime.setup_distributed("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"LOCAL_RANK 2 has no GPU: torch sees 2; .* --nproc_per_node=2"):
        runtime.setup_distributed("cuda")


############################################################
#  The code's revision
############################################################


def test_git_revision(monkeypatch, tmp_path):
    revision = runtime.git_revision()
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert revision is None if head.returncode else revision.removesuffix("-dirty") == head.stdout.strip()
    assert revision is None or runtime.git_revision(12) == head.stdout[:12] + revision[40:]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runtime.git_revision() is None
