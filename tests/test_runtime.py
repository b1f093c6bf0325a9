"""What any process needs: files written whole, memory, devices, the code's revision."""

import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import needs_cuda
from helpers import files_of_at_most
from torch._subclasses import FakeTensorMode

import native
import runtime

ROOT = Path(__file__).parent.parent

############################################################
#  Cores
############################################################


def write_groups(root, memberships, files):
    """A made-up /proc/self/cgroup, and files of control groups under root/sys/fs/cgroup."""
    groups = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {"proc/self/cgroup": memberships, **groups}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("memberships", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {}, None),
        # Nested: the least counts, wherever it stands
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3.0),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "200000 100000\n"}, 2.0),
        # A container that sees itself as the root, under the path that it has outside
        ("0::/docker/1f\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/../other\n", {"cpu.max": "50000 100000\n"}, 0.5),
        # Version 1, alone and beside an empty version 2
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        (
            "4:memory:/m\n3:cpu,cpuacct:/a\n0::/\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "40000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "10000\n"},
            4.0,
        ),
        # Another controller's folder, and a group that this process is not in
        ("4:cpuset:/a\n0::/b\n", {"a/cpu.max": "100000 100000\n", "b/cpu.max": "max 100000\n"}, None),
        ("0::/a:b\n", {"a:b/cpu.max": "100000 100000\n"}, 1.0),
    ],
)
def test_cpu_quota(tmp_path, memberships, files, quota):
    write_groups(tmp_path, memberships, files)
    assert runtime.cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("quota", "cores"), [("max", 8), ("20000", 1), ("100000", 1), ("100001", 2), ("250000", 3), ("3000000", 8)]
)
def test_usable_cores(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    write_groups(tmp_path, "0::/\n", {"cpu.max": f"{quota} 100000\n"})
    assert runtime.usable_cores(tmp_path) == cores


def test_usable_cores_without_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    assert runtime.usable_cores(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert runtime.usable_cores(tmp_path) == 6


def test_threads_are_limited(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        runtime.limit_threads(4)
        assert torch.get_num_threads() == 3, "never more than torch chose"
        runtime.limit_threads(2)
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        runtime.limit_threads(1)
        assert torch.get_num_threads() == 2, "the user decides"
    finally:
        torch.set_num_threads(before)


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


def forked(run) -> int:
    """The number of a process that calls run() and ends."""
    process = os.fork()
    if process == 0:
        try:
            run()
        finally:
            os._exit(0)
    return process


def killed_while_writing(path) -> None:
    def write(file):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(forked(lambda: runtime.write_atomically(path, write)), 0)


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"old")
    (tmp_path / ".weights.pth.mine.tmp").touch()
    killed_while_writing(path)
    (left,) = tmp_path.glob(".weights.pth.*-*.tmp")
    assert left.read_bytes() == b"half"
    assert path.read_bytes() == b"old"
    runtime.write_atomically(tmp_path / "weights", lambda file: file.write(b"new"))
    assert left.exists(), "it belongs to another path"
    runtime.write_atomically(path, lambda file: file.write(b"new"))
    assert sorted(os.listdir(tmp_path)) == [".weights.pth.mine.tmp", "weights", "weights.pth"]


DEAD = 999_999_999  # no Linux has a process of this number


@pytest.mark.parametrize(("writer", "days", "stays"), [
    ("{machine}-{dead}-", 0, False),
    ("{machine}-{alive}-", 0, True),
    ("{machine}-{alive}-", 9, True),  # a writer may be stopped for days
    ("0123abcd-{dead}-", 0, True),  # another machine: nobody knows
    ("0123abcd-{alive}-", 2, False),
    ("", 0, True),  # of an older release
    ("", 2, False),
    ("{machine}-{dead}-x", 9, True),  # not ours
])  # fmt: skip
def test_only_files_without_a_living_writer_are_removed(tmp_path, writer, days, stays):
    writer = writer.format(machine=runtime._machine(), dead=DEAD, alive=os.getppid())
    left = tmp_path / f".file.{writer}0123456789abcdef.tmp"
    left.touch()
    os.utime(left, (time.time() - days * 86400 - 10,) * 2)
    runtime.write_atomically(tmp_path / "file", lambda file: file.write(b"x"))
    assert left.exists() == stays


def test_leftovers_that_are_links_or_folders(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").touch()
    names = [f".file.{runtime._machine()}-{DEAD}-{digit * 16}.tmp" for digit in "01"]
    (tmp_path / names[0]).symlink_to(target)
    (tmp_path / names[1]).mkdir()
    (tmp_path / names[1] / "part").touch()
    runtime.write_atomically(tmp_path / "file", lambda file: file.write(b"x"))
    assert sorted(os.listdir(tmp_path)) == ["file", "target"]
    assert (target / "mine").exists()


def test_a_large_folder_is_searched_once(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_MANY_FILES", 3)
    paths = [tmp_path / f"{i}" for i in range(4)]
    left = [runtime.temporary_path(path) for path in paths]
    left = [path.with_name(path.name.replace(f"-{os.getpid()}-", f"-{DEAD}-")) for path in left]
    for path in left:
        path.touch()
    searched = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: searched.append(folder) or scandir(folder))
    for path in paths[:3]:
        runtime.write_atomically(path, lambda file: file.write(b"x"))
    assert [path.exists() for path in left] == [False, False, False, True]
    assert searched == [str(tmp_path)]


def test_writers_of_one_path_in_two_processes(tmp_path):
    """Neither takes the other's unfinished file for a leftover."""
    path = tmp_path / "file"

    def write_often():
        for _ in range(30):
            runtime.write_atomically(path, lambda file: file.write(b"x" * 1000))
        (tmp_path / str(os.getpid())).touch()

    running = [forked(write_often) for _ in range(2)]
    for process in running:
        os.waitpid(process, 0)
        (tmp_path / str(process)).unlink()  # it came to its end
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"x" * 1000


def test_names_of_any_alphabet_and_length(tmp_path):
    for name in ("\u00e4" * 127, "\u4e09" * 85, "\U0001f600" * 63, "\udcff" * 200):
        runtime.write_atomically(tmp_path / name, lambda file: file.write(b"x"))
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()


def test_a_full_disk_names_the_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=rf"File too large: '{path}'$"), files_of_at_most(1000):
        runtime.write_atomically(path, lambda file: file.write(b"x" * 5000))
    assert path.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError, match="elsewhere"):  # what goes wrong in other files keeps its name
        runtime.write_atomically(path, lambda file: (tmp_path / "elsewhere").read_bytes())
    with pytest.raises(ValueError, match="no such thing"), runtime.errors_name(path):
        raise ValueError("no such thing")
    assert os.listdir(tmp_path) == ["metrics.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="no folder is closed to this user")
def test_a_closed_folder_names_the_file(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match=rf"'{tmp_path}/file'$"):
        runtime.write_atomically(tmp_path / "file", lambda file: file.write(b"x"))


def test_own_files_are_never_links(tmp_path):
    target, path = tmp_path / "target", tmp_path / "file.part"
    for mode in ("wb", "ab"):
        with runtime.open_own(path, mode) as file:
            file.write(b"x")
    assert path.read_bytes() == b"xx"
    path.unlink()
    target.write_bytes(b"mine")
    path.symlink_to(target)
    message = rf"{path} is a symbolic link, .* not followed; remove the link"
    for mode in ("rb", "wb", "ab", "rb+"):
        with pytest.raises(OSError, match=message):
            runtime.open_own(path, mode)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=message):
        runtime.open_own(path, "wb")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="is no regular file"):
        runtime.open_own(path, "rb")
    assert target.read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_link_made_after_the_first_look_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    monkeypatch.setattr("os.path.islink", lambda path: False)
    with pytest.raises(OSError, match="is a symbolic link"):
        runtime.open_own(tmp_path / "link", "wb")
    with pytest.raises(OSError, match="is a symbolic link"), runtime.locked_file(tmp_path / "link", print):
        pass
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", [".lock", ".lock.owner"])
def test_locks_follow_no_links(tmp_path, name):
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).symlink_to(target)
    with pytest.raises(OSError, match=rf"{name} is a symbolic link"), runtime.locked_folder(tmp_path / "folder"):
        pass
    assert target.read_bytes() == b"mine"


def test_the_owner_of_a_lock_is_printed_as_text(tmp_path):
    with runtime.locked_folder(tmp_path):
        (tmp_path / ".lock.owner").write_bytes(b"\x1b[2Jme\xff\n" + b"x" * 10_000)
        with pytest.raises(ValueError, match="in use") as caught, runtime.locked_folder(tmp_path):
            pass
    assert "([2Jme" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


############################################################
#  Memory
############################################################


LIMITED = """
import numpy, runtime
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
assert runtime.keep_memory()
runtime.KEPT_BYTES = 500 << 20
blocks = [numpy.ones(1 << 17) for _ in range(800)]
del blocks[::2]
before = resident()
runtime.limit_kept_memory()
assert resident() > before - 50, "400 MB and less are kept"
runtime.KEPT_BYTES = 300 << 20
runtime.limit_kept_memory()
assert resident() < before - 300, (before, resident())
assert all(block.sum() == 1 << 17 for block in blocks)
used, free = runtime.allocated_memory()
large = numpy.empty(600 << 20, numpy.uint8)  # mapped by itself, outside of the heap
assert runtime.allocated_memory()[0] - used >= 600 << 20, "it is in use, and not kept"
del large, blocks
assert runtime.allocated_memory()[0] < used - (300 << 20)
assert runtime.allocated_memory()[1] > free + (300 << 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library has no mallinfo2")
def test_kept_memory_has_a_limit():
    """Free blocks between others count: the C library alone would keep them for ever."""
    done = subprocess.run([sys.executable, "-c", LIMITED], cwd=native.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runtime.limit_kept_memory()  # without keep_memory() it does nothing


RETURNED = """
import numpy, runtime
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
runtime.keep_memory_if_told()
blocks = [numpy.ones(1 << 13) for _ in range(6400)]  # 64 KB each, in the heap
del blocks[::2]
before = resident()
runtime.return_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(("told", "is_returned"), [("", True), ("0", True), ("1", False)])
def test_freed_memory_is_returned_unless_it_is_to_be_kept(told, is_returned):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "MASKSCORING_KEEP"))}
    environment = clean | {"MASKSCORING_KEEP_MEMORY": told}
    done = subprocess.run(
        [sys.executable, "-c", RETURNED], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) > 150) == is_returned, "200 MB between blocks that stay"


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


############################################################
#  Constants on a device
############################################################


def test_a_constant_is_made_once():
    like = torch.zeros(1)
    first = runtime.constant([1, 2.5], like)
    assert first.tolist() == [1, 2.5]
    assert runtime.constant((1, 2.5), like) is first
    assert runtime.constant((1, 2.5), like.double()).dtype == torch.float64
    with torch.inference_mode():
        made = runtime.constant((7, 8), torch.zeros(1))
    (torch.ones(2, requires_grad=True) * made).sum().backward()  # not a tensor of inference mode


def test_a_constant_of_a_compiler_is_not_kept():
    """torch.export runs the program with tensors without data. Whoever comes later needs the numbers."""
    with FakeTensorMode():
        runtime.constant((31, 32), torch.zeros(1))
    assert runtime.constant((31, 32), torch.zeros(1)).tolist() == [31, 32]


############################################################
#  Rounding on a GPU
############################################################


@pytest.mark.parametrize("tf32", [True, False])
def test_products_are_rounded_inside_the_block_only(tf32):
    """The switches exist without a GPU, too. The tests themselves run without TF32, see conftest.py."""
    switches, seen = (torch.backends.cuda.matmul, torch.backends.cudnn), []

    def look_and_fail() -> None:
        seen.extend(switch.allow_tf32 for switch in switches)
        raise KeyError

    with pytest.raises(KeyError), runtime.rounding_of_products(tf32, "cuda:0"):
        look_and_fail()
    assert seen == [tf32] * 2
    assert [switch.allow_tf32 for switch in switches] == [False] * 2
    with runtime.rounding_of_products(True, "cpu"):
        assert [switch.allow_tf32 for switch in switches] == [False] * 2


def test_rounding_is_told_where_there_is_a_choice():
    assert runtime.describe_rounding(True, torch.device("cpu")) is None
    assert "TF32=False" in runtime.describe_rounding(True, torch.device("cuda"))
    assert "TF32=True" in runtime.describe_rounding(False, "cuda:1")


############################################################
#  Streams of a GPU
############################################################


class FakeStream:
    """A stream of a GPU, with what it was asked to do."""

    def __init__(self) -> None:
        self.calls: list = []

    def record_event(self) -> str:
        return "made"

    def wait_event(self, event: str) -> None:
        self.calls.append(event)


class FakeTensor:
    is_cuda, device = True, "cuda:0"

    def __init__(self) -> None:
        self.streams: list = []

    def record_stream(self, stream: FakeStream) -> None:
        self.streams.append(stream)


def test_what_one_stream_made_another_waits_for(monkeypatch):
    made_on, other, tensor = FakeStream(), FakeStream(), FakeTensor()
    current, capturing = made_on, False
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    shared = runtime.Shared([torch.zeros(1), tensor])
    shared.use_here()
    assert (made_on.calls, tensor.streams) == ([], []), "a stream does its work in order"
    current, capturing = other, True
    shared.use_here()
    assert (other.calls, tensor.streams) == ([], []), "a graph may not depend on events from outside"
    capturing = False
    shared.use_here()
    assert (other.calls, tensor.streams) == (["made"], [other])


def test_tensors_of_a_cpu_need_no_stream(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", None)
    runtime.Shared([torch.zeros(1)]).use_here()


@needs_cuda
def test_another_stream_sees_what_was_made():
    tensor = torch.zeros(1 << 26, device="cuda")
    made = sum(tensor + i for i in range(20))
    shared = runtime.Shared([made])
    with torch.cuda.stream(torch.cuda.Stream()):
        shared.use_here()
        assert (made == 190).all()
