"""Checkpoint files: names, what is kept, full disks, the lock of a folder, random numbers."""

import errno
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import runtime
from training import checkpoints
from training.checkpoints import Position, checkpoint_path, find_last, list_checkpoints
from weights.checkpoint import size_of

ROOT = Path(__file__).parent.parent
CONTENTS = {"model": {"weight": torch.arange(1000.0)}, "training": {"epoch": 1, "best": None, "sums": [1, 2.5]}}


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


############################################################
#  Names
############################################################


def test_names(tmp_path):
    assert checkpoint_path("logs", "Coco", 12) == Path("logs/mask_rcnn_coco_0012.pth")
    assert checkpoint_path("logs", "Coco", 12, 345) == Path("logs/mask_rcnn_coco_0012_000345.pth")
    assert checkpoint_path("logs", None, 0, 1) == Path("logs/mask_rcnn__0000_000001.pth")
    positions = [Position(0, 7), Position(1, 0), Position(1, 20), Position(10000, 0), Position(10000, 1000000)]
    touch(*(checkpoint_path(tmp_path, "coco", *position) for position in reversed(positions)))
    touch(tmp_path / "mask_rcnn_coco_best.pth", tmp_path / "mask_rcnn_coco2_0001.pth", tmp_path / "other_0001.pth")
    found = list_checkpoints(tmp_path, "COCO")
    assert list(found) == positions
    assert all(path == checkpoint_path(tmp_path, "coco", *position) for position, path in found.items())


def test_find_last(tmp_path):
    """Newest folder, then epoch, then step, as numbers; folders without checkpoints do not count."""
    old, new = tmp_path / "coco20240101T1200", tmp_path / "coco20250101T1200"
    touch(checkpoint_path(old, "coco", 50), checkpoint_path(new, "coco", 9), checkpoint_path(new, "coco", 10))
    assert find_last(tmp_path, "Coco") == checkpoint_path(new, "coco", 10)
    touch(checkpoint_path(new, "coco", 10, 500), new / "mask_rcnn_coco_best.pth")
    assert find_last(tmp_path, "Coco") == checkpoint_path(new, "coco", 10, 500)
    (tmp_path / "coco20260101T1200").mkdir()
    touch(tmp_path / "coco20260101T1200" / "mask_rcnn_coco_best.pth")
    touch(checkpoint_path(tmp_path / "coconut20270101T1200", "coconut", 1), tmp_path / "coco2028")
    assert find_last(tmp_path, "Coco") == checkpoint_path(new, "coco", 10, 500)


@pytest.mark.parametrize("folder", ["", "missing"])
def test_find_last_says_what_it_looked_for(tmp_path, folder):
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint mask_rcnn_toy_\*\.pth in any folder .*toy\*; train first"
    ):
        find_last(tmp_path / folder, "Toy")


def test_new_log_folders_differ_and_sort_by_time(tmp_path):
    folders = []
    for _ in range(3):  # in one minute, and maybe in one second
        folders.append(checkpoints.make_log_dir(tmp_path, "Toy"))
        touch(checkpoint_path(folders[-1], "toy", 1))
    assert len(set(folders)) == 3
    assert find_last(tmp_path, "toy").parent == folders[-1] == max(folders)
    assert folders[0].name == time.strftime("toy%Y%m%dT%H%M") or time.localtime().tm_sec < 5


############################################################
#  Files
############################################################


def test_saved_and_read_as_data(tmp_path):
    path = checkpoint_path(tmp_path, "toy", 1)
    checkpoints.save_checkpoint(path, CONTENTS)
    loaded = torch.load(path, weights_only=True)
    assert torch.equal(loaded["model"]["weight"], CONTENTS["model"]["weight"])
    assert loaded["training"] == CONTENTS["training"]
    assert os.listdir(tmp_path) == [path.name]


class FullDisk:
    """A file that takes some bytes and no more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


@pytest.mark.parametrize("room", [0, 100, 3000])  # the file has about 6,000 bytes
def test_full_disk(tmp_path, monkeypatch, room):
    path = checkpoint_path(tmp_path, "toy", 1)
    checkpoints.save_checkpoint(path, CONTENTS)
    before = path.read_bytes()
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: FullDisk(opened(self, *a, **k), room))
    with pytest.raises(OSError, match="could not be written") as error:
        checkpoints.save_checkpoint(path, {"model": {"weight": torch.zeros(2_500_000)}})
    monkeypatch.undo()
    assert error.value.errno == errno.ENOSPC
    for text in (
        str(path),
        "No space left on device",
        "it needs 10 MB",
        "MB are free",
        "Earlier checkpoints are intact",
    ):
        assert text in str(error.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_disk_full_at_the_end(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match=r"could not be written \(Disk quota exceeded\)"):
        checkpoints.save_checkpoint(checkpoint_path(tmp_path, "toy", 1), CONTENTS)
    assert not os.listdir(tmp_path)


def test_what_cannot_be_saved_is_no_matter_of_the_disk(tmp_path):
    with pytest.raises(Exception, match="pickle") as error:
        checkpoints.save_checkpoint(checkpoint_path(tmp_path, "toy", 1), {"model": lambda: None})
    assert not isinstance(error.value, OSError)


def test_size():
    assert size_of(CONTENTS) == 4000
    assert size_of([torch.zeros(3, dtype=torch.int64), {"a": (torch.zeros(2, dtype=torch.uint8), "x", 1)}]) == 26


@pytest.mark.parametrize("links", [True, False])
def test_the_best_stays(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    best = checkpoints.best_path(tmp_path, "Toy")
    assert best == tmp_path / "mask_rcnn_toy_best.pth"
    for epoch in (1, 2):
        path = checkpoint_path(tmp_path, "toy", epoch)
        touch(path)
        checkpoints.keep_as_best(path, best)
        path.unlink()
        assert best.read_text() == path.name
    assert os.listdir(tmp_path) == [best.name]


def test_the_last_stay(tmp_path):
    paths = [checkpoint_path(tmp_path, "toy", *at) for at in ((9, 0), (9, 5), (10, 0), (10, 3))]
    kept = [tmp_path / "mask_rcnn_toy_best.pth", tmp_path / "nonfinite_0001_000002.pth", tmp_path / "mine.pth"]
    touch(*paths, *kept, tmp_path / ".mask_rcnn_toy_0001.pth.0123.tmp")
    checkpoints.prune_checkpoints(tmp_path, "toy", 2)
    assert set(tmp_path.iterdir()) == {*paths[2:], *kept}
    checkpoints.prune_checkpoints(tmp_path, "toy", 5)
    assert set(tmp_path.iterdir()) == {*paths[2:], *kept}


def test_set_aside(tmp_path):
    paths = [checkpoint_path(tmp_path, "toy", *at) for at in ((1, 0), (1, 5), (2, 0))]
    touch(*paths)
    moved = checkpoints.set_aside_later(tmp_path, "toy", Position(1, 0))
    assert [path.name for path in moved] == [f"{path.name}.superseded" for path in paths[1:]]
    assert [path.read_text() for path in moved] == [path.name for path in paths[1:]]
    assert list(list_checkpoints(tmp_path, "toy").values()) == paths[:1]


############################################################
#  Random numbers
############################################################


def draw():
    return random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(1).item()  # noqa: NPY002


def test_random_states_through_a_file(tmp_path):
    with runtime.random_states_kept():
        runtime.seed_all(3)
        draw()
        checkpoints.save_checkpoint(tmp_path / "states.pth", runtime.random_states())
        expected = draw()
        runtime.set_random_states(torch.load(tmp_path / "states.pth", weights_only=True))
        assert draw() == expected
        runtime.seed_all(3, rank=1)
        draw()
        assert draw() != expected


def test_random_states_kept():
    state = runtime.random_states()
    with runtime.random_states_kept():
        runtime.seed_all(0)
        draw()
    with runtime.random_states_kept():
        expected = draw()
    runtime.set_random_states(state)
    with runtime.random_states_kept():
        assert draw() == expected


def test_seeded_numbers_leave_the_generators_alone():
    with runtime.random_states_kept():
        runtime.seed_all(3)
        expected = draw()
        runtime.seed_all(3)
        with runtime.seeded(5):
            inside = draw()
        assert draw() == expected
        with runtime.seeded(5):
            assert draw() == inside
        with runtime.seeded(2**40 + 5):
            assert draw() != inside
        torch.manual_seed(5)
        ours = torch.rand(3)
        with runtime.seeded(5):
            assert torch.equal(torch.rand(3), ours), "as torch.manual_seed"


############################################################
#  The lock
############################################################

HOLDER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from runtime import locked_folder
with locked_folder(sys.argv[2]):
    if sys.argv[3] == "forks" and os.fork() == 0:
        time.sleep(60)
    if sys.argv[3] == "forks and waits":
        if os.fork() == 0:
            sys.exit()
        os.wait()
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("holder", ["alone", "forks", "forks and waits"])
def test_folder_is_locked_until_its_process_dies(tmp_path, holder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, ROOT, tmp_path / "toy", holder], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "locked\n"
        with (
            pytest.raises(ValueError, match=rf"by another training or evaluation \(process {process.pid} on .*\)"),
            runtime.locked_folder(tmp_path / "toy"),
        ):
            pass
        process.kill()
        process.wait()
        with runtime.locked_folder(tmp_path / "toy"):  # though a loader that it forked may live on
            assert (tmp_path / "toy" / ".lock.owner").read_text().startswith(f"process {os.getpid()} on ")
    finally:
        os.killpg(process.pid, 9) if holder == "forks" else process.kill()
        process.stdout.close()
        process.wait()


def test_lock_is_released(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), runtime.locked_folder(tmp_path):
            raise KeyError
    with runtime.locked_folder(tmp_path), runtime.locked_folder(tmp_path / "other"):
        pass


def test_threads_lock_each_other_out(tmp_path):
    def enter() -> None:
        with runtime.locked_folder(tmp_path):
            pass

    with ThreadPoolExecutor(1) as pool:
        with runtime.locked_folder(tmp_path), pytest.raises(ValueError, match=f"process {os.getpid()} on"):
            pool.submit(enter).result()
        pool.submit(enter).result()


def test_a_folder_is_usable_where_nothing_can_be_locked(tmp_path, monkeypatch):
    def refuse(*arguments) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    entered = []
    with runtime.locked_folder(tmp_path), runtime.locked_folder(tmp_path):
        entered.append(True)
    assert entered


def test_a_busy_file_is_waited_for(tmp_path):
    calls, free = [], threading.Event()

    def hold() -> None:
        with runtime.locked_file(tmp_path / "lock", lambda: None):
            calls.append("held")
            free.wait(10)
            calls.append("released")

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        while not calls:
            time.sleep(0.01)
        with runtime.locked_file(tmp_path / "lock", lambda: (calls.append("busy"), free.set())):
            assert calls == ["held", "busy", "released"]
        holder.result()
