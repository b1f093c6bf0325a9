"""Detections that are written as they come: interruptions, damage, several processes, and what a folder refuses."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_tiny import Noise
from helpers import detection_result, files_of_at_most, random_rectangles, rectangles, tiny_model
from PIL import Image
from torch import nn

import coco
import runtime
from config import Config
from evaluation.detect import (
    _remaining_chunks,
    _Writer,
    claim_folder,
    detect_dataset,
    detect_to_folder,
    digest_of,
    done_images,
    hash_weights,
    identify,
    load_results,
    plan_chunks,
    read_batches,
    reading_threads,
    write_submission,
)
from evaluation.results import Detector, ResumableDetector, ground_truth, to_results
from evaluation.stream import ImageFile, is_unchanged

SCRIPT = Path(__file__).parent / "evaluate_tiny.py"


class Told(nn.Module):
    """Stands in for a model: what it finds follows from the image's first pixel. `batches` is what it was asked."""

    def __init__(self, images_per_gpu=2, weight=0.5, **settings) -> None:
        super().__init__()
        self.config = Config(NUM_CLASSES=4, IMAGES_PER_GPU=images_per_gpu, GPU_COUNT=0, **settings)
        self.class_names, self.device = ["BG", "cat", "dog", "cow"], torch.device("cpu")
        self.weight = nn.Parameter(torch.tensor([weight]))
        self.batches: list[list[int]] = []

    def detect_batches(self, batches, dtype="float32", masks="rle"):
        assert masks == "rle"
        self.seconds = {"network": 1.0}
        for images in batches:
            self.batches.append([int(image[0, 0, 0]) for image in images])
            yield [self.find(int(image[0, 0, 0])) for image in images]

    def find(self, number: int) -> dict:
        rng = np.random.default_rng(number)
        count = number % 3
        masks, ids = random_rectangles(rng, count) if count else rectangles(), rng.integers(1, 4, count)
        return detection_result(masks, ids, rng.random(count), rng.random(count))


class Plain(Noise):
    """Image i has the colour i."""

    def load_image(self, image_id):
        super().load_image(image_id)
        return np.full((60, 80, 3), image_id, np.uint8)


def detect(folder, model=None, dataset=None, image_ids=None, **options) -> Told:
    model, dataset = model or Told(), dataset or Plain(7)
    ids = dataset.image_ids if image_ids is None else image_ids
    detect_to_folder(model, dataset, ids, folder, verbose=False, **options)
    return model


def results_in(folder, count=7):
    return load_results(folder, range(1, count + 1))


def test_the_model_is_what_evaluation_asks_for():
    model = tiny_model()
    assert isinstance(model, Detector)
    assert isinstance(model, ResumableDetector)

    class WithoutBatches:
        config, class_names, category_ids = model.config, model.class_names, model.category_ids

    class Memory(WithoutBatches):
        detect_batches = Told.detect_batches

    assert not isinstance(WithoutBatches(), Detector)
    assert isinstance(Memory(), Detector)
    assert not isinstance(Memory(), ResumableDetector), "nothing to know its weights by"


@pytest.fixture
def part(tmp_path):
    """The only part of a finished evaluation of 7 images, two at a time."""
    detect(tmp_path)
    return tmp_path / "detections" / "part-000.jsonl"


############################################################
#  Files
############################################################


def test_results_are_those_of_detect_dataset(tmp_path):
    model = detect(tmp_path)
    boxes, masks = detect_dataset(Told(), Plain(7))
    assert model.batches == [[0, 1], [2, 3], [4, 5], [6]]
    assert results_in(tmp_path) == (boxes, masks)
    assert [entry["image_id"] for entry in boxes] == [2, 3, 3, 5, 6, 6]
    assert done_images(tmp_path) == set(range(1, 8))
    ordered = [load_results(tmp_path, [number])[1] for number in (6, 2)]
    assert load_results(tmp_path, [6, 2])[1] == ordered[0] + ordered[1], "the order is the caller's"


def test_submissions_are_what_json_dump_writes(tmp_path, part):
    boxes, masks = results_in(tmp_path)
    paths = write_submission(tmp_path, boxes, masks)
    assert paths == (tmp_path / "bbox.json", tmp_path / "segm.json")
    assert [path.read_text() for path in paths] == [json.dumps(boxes), json.dumps(masks)]
    with pytest.raises(TypeError):
        write_submission(tmp_path, [], [*masks, {"score": np.float32(1)}])
    assert [path.read_text() for path in paths] == ["[]", json.dumps(masks)]


def test_missing_results_are_an_error(tmp_path, part):
    with pytest.raises(ValueError, match=r"lacks the detections of 2 images: 8, 9; do all processes write into one"):
        results_in(tmp_path, 9)


def test_what_it_returns(tmp_path, capsys):
    seconds = detect_to_folder(Told(), Plain(7), range(5), tmp_path)
    assert seconds.keys() == {"network", "total", "images"}
    assert seconds["images"] == 5
    assert seconds["total"] > 0
    assert "5/5" in capsys.readouterr().err
    assert detect_to_folder(Told(), Plain(7), range(5), tmp_path, verbose=False)["images"] == 0
    assert capsys.readouterr() == ("", "")


def test_some_images_of_a_data_set(tmp_path):
    model = detect(tmp_path, image_ids=[5, 1, 2])
    assert model.batches == [[5, 1], [2]]
    assert done_images(tmp_path) == {6, 2, 3}


def test_image_ids_come_once(tmp_path):
    message = r"images have the same id: 2; does image_ids have an image twice"
    with pytest.raises(ValueError, match=message):
        detect(tmp_path, image_ids=[1, 2, 1])
    with pytest.raises(ValueError, match=message):
        detect_dataset(Told(), Plain(7), [1, 2, 1])
    with pytest.raises(ValueError, match=message):
        ground_truth(Plain(7), [1, 2, 1])


@pytest.mark.parametrize(("size", "expected"), [(1, [[3], [0], [1]]), (2, [[3, 0], [1]]), (5, [[3, 0, 1]])])
def test_plan_chunks(size, expected):
    chunks = plan_chunks(Told(size), np.array([3, 0, 1]))
    assert chunks == expected
    assert {type(image_id) for chunk in chunks for image_id in chunk} == {int}
    assert plan_chunks(Told(size), []) == []


############################################################
#  Interruptions
############################################################


def test_a_part_cut_off_anywhere(tmp_path, part):
    """What is not wholly there is detected again, with its neighbours, and nothing else."""
    whole, expected = part.read_bytes(), results_in(tmp_path)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    last = ends[-2]
    lengths = {*range(0, len(whole), 37), *range(last - 2, len(whole) + 1), *ends, *(end - 1 for end in ends)}
    for length in sorted(lengths):
        part.write_bytes(whole[:length])
        model = detect(tmp_path)
        done = sum(end <= length for end in ends)
        assert model.batches == [chunk for chunk in ([0, 1], [2, 3], [4, 5], [6]) if chunk[-1] >= done]
        assert results_in(tmp_path) == expected
        assert part.read_bytes().startswith(whole[: ends[done - 1] if done else 0])


def test_a_torn_line_is_not_read(tmp_path, part):
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    assert done_images(tmp_path) == {1, 2, 3, 4, 5, 6}
    assert part.read_bytes() == whole[:-1], "looking changes nothing"
    assert detect(tmp_path).batches == [[6]]
    assert part.read_bytes() == whole


@pytest.mark.parametrize("torn", [1, 65535, 65536, 65537, 200000])
@pytest.mark.parametrize("kept", [0, 2])
def test_long_torn_lines(tmp_path, part, kept, torn, caplog):
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:kept]) + b"x" * torn)
    assert done_images(tmp_path) == set(range(1, kept + 1))
    assert detect(tmp_path).batches == [[0, 1], [2, 3], [4, 5], [6]][kept // 2 :]
    assert part.read_bytes() == b"".join(lines)
    assert caplog.text == "", "that is how a killed process leaves its file"


def test_folders_without_detections(tmp_path):
    assert done_images(tmp_path) == set()
    assert load_results(tmp_path, []) == ([], [])
    (tmp_path / "detections").mkdir()
    (tmp_path / "detections" / "part-000.jsonl").touch()
    assert done_images(tmp_path) == set()
    assert len(detect(tmp_path).batches) == 4


def line_of(values: dict, **change) -> bytes:
    """A line with a checksum that fits, whatever its values."""
    body = json.dumps({**values, **change})[:-1].encode()
    return body + b', "checksum": "' + hashlib.sha256(body).hexdigest()[:16].encode() + b'"}\n'


def values_of(line: bytes) -> dict:
    values = json.loads(line)
    del values["checksum"]
    assert line_of(values) == line
    return values


def old_line(line: bytes) -> bytes:
    values = values_of(line)
    return json.dumps({name: values[name] for name in ("image_id", "boxes", "masks")}).encode() + b"\n"


def with_(path: str, value):
    """A change of a line: value at path, such as "masks.0.score"."""

    def change(line: bytes) -> bytes:
        values = values_of(line)
        *names, last = [int(name) if name.isdigit() else name for name in path.split(".")]
        place = values
        for name in names:
            place = place[name]
        place[last] = value
        return line_of(values)

    return change


NO_RESULTS = "it is not the results of an image"


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda line: b"what is this\n", "it has no checksum"),
    (lambda line: b"\n", "it has no checksum"),
    (lambda line: b"\x00\x00\x00\n", "it has no checksum"),
    (lambda line: b"\xff\xfe\n", "it has no checksum"),
    (lambda line: line[:-8] + b"\n", "it has no checksum"),
    (old_line, "it has no checksum, as in older releases"),
    (lambda line: line.replace(b'"score": 0.', b'"score": 0.9', 1), "its checksum does not fit"),
    (lambda line: bytes([line[0] ^ 4]) + line[1:], "its checksum does not fit"),
    (lambda line: line[:40] + line[44:], "its checksum does not fit"),
    (lambda line: line_of({"image_id": 3}), NO_RESULTS),
    (lambda line: line_of({**values_of(line), "more": 1}), NO_RESULTS),
    (with_("image_id", "3"), NO_RESULTS),
    (with_("boxes", 5), NO_RESULTS),
    (with_("masks", None), NO_RESULTS),
    (with_("file", [1]), NO_RESULTS),
    (with_("masks", []), "its boxes and masks are not of one image"),
    (with_("boxes.0.image_id", 4), "its boxes and masks are not of one image"),
    (with_("image_id", 99), "its boxes and masks are not of one image"),
    (with_("boxes.0.category_id", 1.5), "a category is no number of one"),
    (with_("boxes.0.bbox", [1, 2, 3]), "a box has no four numbers"),
    (with_("boxes.0.bbox.2", float("nan")), "a score or a box is not finite, or far too large"),
    (with_("masks.0.score", float("inf")), "a score or a box is not finite, or far too large"),
    (with_("masks.0.class_score", "1"), "a score or a box is not finite, or far too large"),
    (with_("masks.0.segmentation.size", [2**32, 2**32]), "its masks have no size of one image"),
    (with_("masks.0.segmentation.size", [9, 9]), "its masks have no size of one image"),
    (with_("masks.0.segmentation.size", [0, 100]), "its masks have no size of one image"),
    (with_("masks.0.segmentation.counts", [1, 2]), "a mask has no run-length code"),
    (with_("masks.0.segmentation.counts", "04"), "the run-length code of a mask does not fit its size"),
    (with_("masks.0.segmentation.counts", "P" * 9), "the run-length code of a mask does not fit its size"),
])  # fmt: skip
def test_lines_that_cannot_be_used_are_named_and_detected_again(tmp_path, part, damage, reason, caplog):
    """Line 3 is that of image 3, which has two detections."""
    expected, lines = results_in(tmp_path), part.read_bytes().splitlines(keepends=True)
    assert len(values_of(lines[2])["boxes"]) == 2
    part.write_bytes(b"".join([*lines[:2], damage(lines[2]), *lines[3:]]))
    assert detect(tmp_path).batches == [[2, 3]]
    assert results_in(tmp_path) == expected
    text = f"{part}: 1 lines cannot be used, and their images are detected again: line 3 ({reason})"
    assert [record.getMessage() for record in caplog.records] == [text]
    caplog.clear()
    assert detect(tmp_path).batches == []
    assert caplog.text == ""


def test_lines_of_other_images_and_double_ones(tmp_path, part, caplog):
    expected, lines = results_in(tmp_path), part.read_bytes().splitlines(keepends=True)
    stranger = {"image_id": 99, "evaluation": values_of(lines[0])["evaluation"], "file": None, "boxes": [], "masks": []}
    part.write_bytes(b"".join([lines[0], line_of(stranger), *lines[1:]]))
    part.with_name("part-007.jsonl").write_bytes(lines[5] + lines[1])
    assert detect(tmp_path).batches == []
    assert results_in(tmp_path) == expected
    assert "line 2 (the evaluation has no image 99)" in caplog.text
    assert part.read_bytes() == b"".join(lines)
    assert part.with_name("part-007.jsonl").read_bytes() == b"", "an equal line adds nothing"
    caplog.clear()
    part.with_name("part-007.jsonl").write_bytes(with_("boxes.0.score", 0.5)(lines[2]))
    assert detect(tmp_path).batches == [[2, 3]], "nobody knows which of the two is right"
    assert results_in(tmp_path) == expected
    assert "part-007.jsonl: 1 lines cannot be used" in caplog.text
    assert "image 3 has other results in another line" in caplog.text


def test_a_line_of_another_evaluation_stops(tmp_path, part):
    """It is intact, and nobody shall lose it."""
    before = part.read_bytes()
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(ValueError, match=rf"{part}, line 1, is of another evaluation \(\w{{8}} there, \w{{8}} now\)"):
        detect(tmp_path, Told(weight=0.25))
    assert part.read_bytes() == before
    (tmp_path / "evaluation.json").unlink()
    assert detect(tmp_path).batches == [], "the same evaluation takes its lines over"


def test_results_that_no_line_can_hold(tmp_path):
    class Broken(Told):
        def find(self, number):
            return {**super().find(number), "mask_scores": np.full(number % 3, np.nan)}

    message = "in image 2 cannot be stored, because a score or a box is not finite, or far too large; are the weights"
    with pytest.raises(ValueError, match=message):
        detect(tmp_path, Broken())


def test_damage_while_an_evaluation_runs(tmp_path, part):
    part.write_bytes(part.read_bytes().replace(b'"score": 0.', b'"score": 0.9', 1))
    with pytest.raises(ValueError, match=r"part-000\.jsonl, line 2, is damaged: its checksum does not fit\. Run again"):
        results_in(tmp_path)


def test_very_long_lines(tmp_path, part, monkeypatch, caplog):
    lines = part.read_bytes().splitlines(keepends=True)
    monkeypatch.setattr("evaluation.stream.MAX_LINE", max(map(len, lines)))
    for junk in (b"x" * 10_000, b"x" * (3 * max(map(len, lines)) - 1)):
        part.write_bytes(b"".join([*lines[:2], junk + b"\n", *lines[2:]]))
        assert detect(tmp_path).batches == []
        assert "line 3 (it has more than" in caplog.text
        assert part.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_parts_that_are_no_files(tmp_path, part, kind):
    other = tmp_path / "other"
    other.write_bytes(part.read_bytes())
    part.unlink()
    {"link": lambda: part.symlink_to(other), "pipe": lambda: os.mkfifo(part), "folder": part.mkdir}[kind]()
    with pytest.raises(OSError, match=rf"{part} is {'a symbolic link' if kind == 'link' else 'no regular file'}"):
        detect(tmp_path)
    assert other.stat().st_size > 0


def test_a_full_disk_names_the_part(tmp_path):
    dataset = Plain(60)
    with pytest.raises(OSError, match=r"File too large: .*part-000\.jsonl"), files_of_at_most(6000):
        detect(tmp_path, dataset=dataset)
    done = len(done_images(tmp_path))
    assert 0 < done < 60
    assert len(detect(tmp_path, dataset=dataset).batches) == 30 - done // 2
    assert results_in(tmp_path, 60) == detect_dataset(Told(), dataset)


############################################################
#  Images that change
############################################################


class Files(Plain):
    """Image i is a file; its first byte is the colour."""

    def __init__(self, folder, count=7):
        super().__init__(count)
        for i, info in enumerate(self.image_info):
            info["path"] = folder / f"{i}.bin"
            info["path"].write_bytes(bytes([i, 0]))

    def load_image(self, image_id):
        return np.full((60, 80, 3), self.image_info[image_id]["path"].read_bytes()[0], np.uint8)


def test_replaced_images_are_detected_again(tmp_path, capsys):
    dataset, out = Files(tmp_path), tmp_path / "out"
    detect(out, dataset=dataset)
    model = Told()
    detect_to_folder(model, dataset, range(7), out)
    assert model.batches == []
    assert capsys.readouterr().out == "taken over from an earlier run: 7 of 7 images\n"
    path = dataset.image_info[3]["path"]
    path.write_bytes(bytes([9, 0]))
    detect_to_folder(model, dataset, range(7), out)
    assert model.batches == [[2, 9]], "together with its neighbour, as always"
    shown = capsys.readouterr().out
    assert "taken over from an earlier run: 5 of 7 images\n" in shown
    assert f"detected again, because their files have changed: 1 images: {path}\n" in shown
    assert results_in(out) == detect_dataset(Told(), dataset)
    assert detect(out, dataset=dataset).batches == []
    path.write_bytes(bytes([9, 0, 0]))
    assert detect(out, dataset=dataset).batches == [[2, 9]], "another size needs no hash to differ"


def test_same_contents_are_not_detected_again(tmp_path, monkeypatch):
    dataset, out = Files(tmp_path), tmp_path / "out"
    detect(out, dataset=dataset)
    for info in dataset.image_info:
        info["path"].write_bytes(info["path"].read_bytes())
        os.utime(info["path"], (1, 1))
    assert detect(out, dataset=dataset).batches == []
    times = dataset.image_info[0]["path"].stat()
    dataset.image_info[0]["path"].write_bytes(bytes([9, 0]))
    os.utime(dataset.image_info[0]["path"], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert detect(out, dataset=dataset).batches == [[9, 1]], "though size and time are the same"

    fresh = tmp_path / "fresh"
    detect(fresh, dataset=dataset)
    monkeypatch.setattr("evaluation.stream._sha256", None)
    assert detect(fresh, dataset=dataset).batches == [], "nothing is hashed where size and times are the same"


def test_images_that_are_read_with_another_depth_are_detected_again(tmp_path):
    dataset, out = Files(tmp_path), tmp_path / "out"
    detect(out, dataset=dataset)
    dataset.inspect_images = lambda *_: setattr(dataset.reader, "chosen", 12)
    assert len(detect(out, dataset=dataset).batches) == 4
    assert detect(out, dataset=dataset).batches == []


def test_an_image_that_changes_while_it_is_read(tmp_path):
    class Changing(Files):
        def load_image(self, image_id):
            image = super().load_image(image_id)
            self.image_info[image_id]["path"].write_bytes(bytes([8, 8]))
            return image

    detect(tmp_path / "out", dataset=Changing(tmp_path), image_ids=[0])
    dataset = Files(tmp_path, 0)
    dataset.image_info = Changing(tmp_path / "out").image_info[:1]
    dataset.image_info[0]["path"] = tmp_path / "0.bin"
    assert detect(tmp_path / "out", dataset=dataset, image_ids=[0]).batches == [[8]]


def write_coco(folder) -> Path:
    """Four pictures of val2017 with an object each."""
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for i in range(1, 5):
        images.append({"id": i, "file_name": f"{i}.png", "height": 60, "width": 80})
        annotations.append({"id": i, "image_id": i, "category_id": 17, "bbox": [9, 9, 30, 20], "area": 600,
                            "iscrowd": 0, "segmentation": [[9, 9, 39, 9, 39, 29, 9, 29]]})  # fmt: skip
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (60, 80, 3), np.uint8)).save(
            folder / "val2017" / f"{i}.png"
        )
    contents = {"images": images, "annotations": annotations, "categories": [{"id": 17, "name": "cat"}]}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(contents))
    return folder


SHARED = Path(__file__).parent.parent.parent / "shared" / "cases" / "coco" / "T4_stale_eval" / "data"


@pytest.mark.parametrize("source", ["made", pytest.param("shared", marks=pytest.mark.skipif(
    not SHARED.is_dir(), reason="../shared is not there"))])  # fmt: skip
def test_an_evaluation_of_replaced_pictures(tmp_path, source, capsys, monkeypatch):
    """coco.py evaluate; pictures inverted; annotations changed."""
    numbers = []
    monkeypatch.setattr("evaluation.run.write_report", lambda evaluation, *_: numbers.append(evaluation.metrics))
    data = write_coco(tmp_path / "data") if source == "made" else Path(shutil.copytree(SHARED, tmp_path / "data"))
    annotations = data / "annotations" / "instances_val2017.json"
    for path in (data, *data.rglob("*")):
        path.chmod(0o755)
    contents = json.loads(annotations.read_text())
    ids, names = zip(*((each["id"], each["name"]) for each in contents["categories"]), strict=True)
    model = tiny_model(NUM_CLASSES=1 + len(ids), CATEGORY_IDS=(0, *ids), CLASS_NAMES=("BG", *names))
    model.save(tmp_path / "model.pth")

    def evaluate(output="out") -> str:
        words = ["evaluate", "--dataset", data, "--model", tmp_path / "model.pth", "--output", tmp_path / output]
        assert coco.main([*map(str, words), "--device", "cpu"]) == 0
        return capsys.readouterr().out

    assert "taken over" not in evaluate()
    for path in sorted((data / "val2017").iterdir())[:3]:
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    shown = evaluate()
    assert "detected again, because their files have changed: 3 images" in shown
    evaluate("fresh")
    assert submission(tmp_path / "out") == submission(tmp_path / "fresh")

    contents["annotations"] = contents["annotations"][:1]
    annotations.write_text(json.dumps(contents))
    assert "taken over from an earlier run: 4 of 4 images" in evaluate()
    assert numbers[-1] != numbers[-2] == numbers[-3], "of out after, fresh, and out before"
    assert submission(tmp_path / "out") == submission(tmp_path / "fresh")


@pytest.mark.parametrize(("before", "after"), [("file", None), (None, "file"), ("file", "folder"), ("file", "\0")])
def test_images_with_and_without_files(tmp_path, before, after):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    places = {None: None, "file": tmp_path / "file", "folder": tmp_path / "folder", "\0": "\0"}
    file = ImageFile.of(places[before])
    assert (file is None) == (before is None)
    assert is_unchanged(file, places[before])
    assert not is_unchanged(file, places[after])


def test_a_system_that_writes_little_at_a_time(tmp_path, part, monkeypatch):
    class Slow:
        def __init__(self, file):
            self.file, self.fileno, self.close = file, file.fileno, file.close

        def write(self, text):
            return self.file.write(text[:100])

    start = _Writer.__init__

    def slow(self, folder):
        start(self, folder)
        self.file = Slow(self.file)

    monkeypatch.setattr(_Writer, "__init__", slow)
    detect(tmp_path / "slow")
    assert (tmp_path / "slow" / "detections" / part.name).read_bytes() == part.read_bytes()


def test_a_model_that_fails_loses_nothing(tmp_path):
    class Failing(Told):
        def find(self, number):
            if number == 4 and len(self.batches) == 3:
                raise RuntimeError("out of memory")
            return super().find(number)

    with pytest.raises(RuntimeError, match="out of memory"):
        detect(tmp_path, Failing())
    assert done_images(tmp_path) == {1, 2, 3, 4}
    assert detect(tmp_path).batches == [[4, 5], [6]]


def run_tiny(folder, processes=1, check=True, **settings) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(folder, processes, settings), capture_output=True, text=True, timeout=120, env=quiet()
    )
    assert (done.returncode == 0) == check, done.stdout + done.stderr
    return done


def command(folder, processes, settings) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, str(SCRIPT), str(folder), json.dumps(settings)]


def quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def submission(folder) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("bbox.json", "segm.json")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The submission of one process, two images at a time and an odd number of them."""
    folder = tmp_path_factory.mktemp("whole")
    run_tiny(folder, images_per_gpu=2, count=13)
    assert min(map(len, submission(folder))) > 10000
    return folder


def test_killed_again_and_again(tmp_path, uninterrupted):
    """kill -9 from outside, whenever the part has grown by a random number of bytes."""
    rng = random.Random(0)
    path = tmp_path / "detections" / "part-000.jsonl"
    total = (uninterrupted / "detections" / "part-000.jsonl").stat().st_size
    for _ in range(2):
        before = path.stat().st_size if path.exists() else 0
        wanted = before + rng.randrange(max(1, (total - before) // 2))
        process = subprocess.Popen(command(tmp_path, 1, {"images_per_gpu": 2}), env=quiet())
        while process.poll() is None and not (path.exists() and path.stat().st_size > wanted):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run_tiny(tmp_path, images_per_gpu=2)
    assert submission(tmp_path) == submission(uninterrupted)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_killed_while_it_writes_and_continued_by_other_processes(tmp_path, uninterrupted, first, second):
    total = (uninterrupted / "detections" / "part-000.jsonl").stat().st_size
    run_tiny(tmp_path, first, check=False, images_per_gpu=2, kill=[first - 1, total // 3 + 77])
    parts = {path: path.read_bytes() for path in (tmp_path / "detections").iterdir()}
    assert len(parts) == first
    assert not parts[tmp_path / "detections" / f"part-{first - 1:03d}.jsonl"].endswith(b"\n")
    run_tiny(tmp_path, second, images_per_gpu=2)
    assert submission(tmp_path) == submission(uninterrupted)
    assert len(list((tmp_path / "detections").iterdir())) == 2
    for path, contents in parts.items():
        assert path.read_bytes().startswith(contents[: contents.rfind(b"\n") + 1]), "what was done stays"


############################################################
#  Several processes
############################################################


def test_two_processes_share_the_work(tmp_path, uninterrupted):
    run_tiny(tmp_path, 2, images_per_gpu=2)
    assert submission(tmp_path) == submission(uninterrupted)
    parts = sorted((tmp_path / "detections").iterdir())
    images = [[json.loads(line)["image_id"] for line in path.read_text().splitlines()] for path in parts]
    assert images == [[1, 2, 5, 6, 9, 10, 13], [3, 4, 7, 8, 11, 12]]


def test_only_the_first_process_touches_the_folder_before_all_agree(tmp_path, monkeypatch):
    """Another could cut off a line that is being written."""
    monkeypatch.setattr("runtime.rank", lambda: 1)
    monkeypatch.setattr("runtime.world_size", lambda: 2)
    told = ("a", [[0, 1]])
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda answer: answer.__setitem__(0, told))
    with contextlib.ExitStack() as stack:
        arguments = (Told(), Plain(7), range(7), tmp_path / "new", "float32", None, stack)
        assert _remaining_chunks(*arguments) == told
    assert not (tmp_path / "new").exists()


def test_an_error_in_one_process_reaches_all(tmp_path, uninterrupted):
    """The folder has the results of other weights, as the first process sees; only the second has image 2."""
    os.symlink(uninterrupted, tmp_path / "whole")
    run_tiny(tmp_path, 2, images_per_gpu=2, role="errors")
    texts = [json.loads((tmp_path / f"errors-{rank}.json").read_text()) for rank in (0, 1)]
    assert texts[0] == texts[1]
    assert "holds another evaluation: weights" in texts[0][0]
    assert "1 images could not be read" in texts[0][1]
    assert "picture 2 (image 2 is torn)" in texts[0][1]
    assert len(done_images(tmp_path / "broken")) == 11


def test_a_process_that_fails_ends_the_others(tmp_path, uninterrupted):
    done = run_tiny(tmp_path, 2, check=False, images_per_gpu=2, fails=10)  # within two minutes, or subprocess raises
    assert "RuntimeError: what went wrong" in done.stderr
    kept = done_images(tmp_path)
    assert {3, 4, 7, 8} <= kept, "of the second process"
    assert not {11, 12} & kept
    run_tiny(tmp_path, images_per_gpu=2)
    assert submission(tmp_path) == submission(uninterrupted)


def test_a_real_model_gives_what_detect_gives(tmp_path):
    dataset, model = Noise(5), tiny_model(IMAGES_PER_GPU=2, GPU_COUNT=0)
    detect(tmp_path, model, dataset)
    boxes, masks = results_in(tmp_path, 5)
    expected = ([], [])
    for image_id in range(0, 5, 2):
        images = [dataset.load_image(each) for each in range(image_id, min(5, image_id + 2))]
        for offset, each in enumerate(model.detect(images, masks="rle")):
            for results, more in zip(expected, to_results(each, image_id + offset + 1, range(4)), strict=True):
                results += more
    assert (boxes, masks) == expected
    assert len(masks) == len(boxes) > 20


############################################################
#  Another evaluation
############################################################


@pytest.mark.parametrize(("other", "message"), [
    ({"model": Told(weight=0.25)}, r"weights \w{16}\.\.\. there, \w{16}\.\.\. now"),
    ({"model": Told(images_per_gpu=1)}, r"IMAGES_PER_GPU 2 there, 1 now"),
    ({"model": Told(DETECTION_MIN_CONFIDENCE=0.2)}, r"DETECTION_MIN_CONFIDENCE 0.05 there, 0.2 now"),
    ({"dataset": Plain(8)}, r"images \w{16}\.\.\. there, \w{16}\.\.\. now, count 7 there, 8 now"),
    ({"image_ids": [6, 5, 4, 3, 2, 1, 0]}, r"images \w{16}\.\.\. there, \w{16}\.\.\. now\."),
    ({"dtype": "bfloat16"}, r"dtype float32 there, bfloat16 now"),
])  # fmt: skip
def test_another_evaluation_is_refused(tmp_path, part, other, message):
    before = part.read_bytes(), (tmp_path / "evaluation.json").read_bytes()
    with pytest.raises(ValueError, match=rf"holds another evaluation: {message}.*Choose another --output, or remove"):
        detect(tmp_path, **other)
    assert (part.read_bytes(), (tmp_path / "evaluation.json").read_bytes()) == before
    assert detect(tmp_path).batches == []


def test_settings_of_training_make_no_other_evaluation(tmp_path, part):
    same = Told(NAME="another", WORKERS=5, SEED=3, STEPS_PER_EPOCH=7, VALIDATION_STEPS=1)
    assert detect(tmp_path, same).batches == []
    same = Told(LEARNING_RATE=0.5, CHECKPOINTS_KEPT=9, TRAIN_ROIS_PER_IMAGE=3, COMPILE=True, LOSS_WEIGHTS={})
    assert detect(tmp_path, same).batches == []


def test_a_folder_of_an_older_release(tmp_path, part):
    """It lacks a setting that is new, which had its default, and has others that detection does not depend on."""

    def age(contents):
        settings = contents["identity"]["settings"]
        assert "LEARNING_RATE" not in settings
        del settings["MASKIOU_CLAMP"], settings["RPN_ANCHOR_SCALES"]
        settings |= {"LEARNING_RATE": 0.3, "MASK_SHAPE": [28, 28], "USE_RPN_ROIS": True}

    change_record(tmp_path, age)
    assert detect(tmp_path).batches == []
    with pytest.raises(ValueError, match="another evaluation: MASKIOU_CLAMP True there, False now"):
        detect(tmp_path, Told(MASKIOU_CLAMP=False))


def test_a_folder_of_a_release_without_checksums(tmp_path, part, caplog):
    """It takes the same evaluation only, whose images are all detected again."""
    expected, lines = results_in(tmp_path), part.read_bytes()

    def age(contents):
        contents["version"] = 1
        del contents["evaluation"]

    change_record(tmp_path, age)
    part.write_bytes(b"".join(map(old_line, lines.splitlines(keepends=True))))
    with pytest.raises(ValueError, match="another evaluation: weights"):
        detect(tmp_path, Told(weight=0.25))
    assert len(detect(tmp_path).batches) == 4
    assert (
        "7 lines cannot be used, and their images are detected again: line 1 (it has no checksum, as in" in caplog.text
    )
    assert results_in(tmp_path) == expected
    assert part.read_bytes() == lines
    assert json.loads((tmp_path / "evaluation.json").read_text())["version"] == 2


def test_defaults_of_a_setting_that_a_folder_lacks_are_those_of_its_dialect(tmp_path):
    folder = tmp_path / "out"
    detect(folder, Told(DIALECT="matterport"))
    change_record(folder, lambda contents: contents["identity"]["settings"].pop("DETECTION_NMS_THRESHOLD"))
    assert detect(folder, Told(DIALECT="matterport")).batches == []
    with pytest.raises(ValueError, match=r"another evaluation: DETECTION_NMS_THRESHOLD 0.3 there, 0.5 now"):
        detect(folder, Told(DIALECT="matterport", DETECTION_NMS_THRESHOLD=0.5))


def test_digests_differ_with_the_evaluation_and_not_with_new_settings():
    identity = identify(Told(), Plain(7), range(7), "float32")
    digest = digest_of(identity)
    assert re.fullmatch("[0-9a-f]{8}", digest)
    without = {name: value for name, value in identity["settings"].items() if name != "MASKIOU_CLAMP"}
    assert digest_of({**identity, "settings": without}) == digest
    others = [identify(Told(MASKIOU_CLAMP=False), Plain(7), range(7), "float32")]
    others += [identify(Told(), Plain(7), range(7), "bfloat16"), identify(Told(), Plain(8), range(8), "float32")]
    assert len({digest, *map(digest_of, others)}) == 4


def test_other_paths_and_categories_are_other_evaluations(tmp_path, part):
    dataset = Plain(7)
    dataset.image_info[3]["path"] = "elsewhere.jpg"
    with pytest.raises(ValueError, match=r"another evaluation: images \w{16}"):
        detect(tmp_path, dataset=dataset)
    model = Told()
    model.class_names = ["BG", "dog", "cat", "cow"]
    with pytest.raises(ValueError, match=r"another evaluation: categories \[0, 1, 2, 3\] there, \[0, 2, 1, 3\] now"):
        detect(tmp_path, model)
    model = Told()
    model.device = torch.device("meta")
    with pytest.raises(ValueError, match=r"another evaluation: device cpu there, meta now"):
        detect(tmp_path, model)


def change_record(folder, change) -> None:
    """Change evaluation.json, and let its checksum fit."""
    path = folder / "evaluation.json"
    contents = json.loads(path.read_text())
    del contents["checksum"]
    change(contents)
    if contents["version"] != 1:
        contents["checksum"] = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]
    path.write_text(json.dumps(contents))


@pytest.mark.parametrize(("change", "message"), [
    (lambda record: record.update(format="other"), r"evaluation\.json was not written by an evaluation; choose"),
    (lambda record: record.update(identity=[]), r"was not written by an evaluation"),
    (lambda record: record["identity"].update(settings="x"), r"was not written by an evaluation"),
    (lambda record: record["identity"].pop("settings"), r"was not written by an evaluation"),
    (lambda record: record.pop("identity"), r"was not written by an evaluation"),
    (lambda record: record.pop("evaluation"), r"was not written by an evaluation"),
    (lambda record: record.update(version="\33" * 9000), r"has version (\\x1b)+\.\.\. of the format"),
    (lambda record: record.update(version=3), r"has version 3 of the format, and this release writes 2"),
    (lambda record: record["identity"]["settings"].update(OF_LATER=3), r"OF_LATER 3 there, None now"),
    (lambda record: record["identity"].update({"\33[2J": "\33"}), r"evaluation: \\x1b\[2J \\x1b there, None now"),
    (lambda record: record["identity"]["settings"].update(DIALECT="crop"), r"DIALECT crop there, mmdet now"),
    (lambda record: record["identity"].pop("dtype"), r"dtype None there, float32 now"),
])  # fmt: skip
def test_records_of_other_programs(tmp_path, part, change, message):
    change_record(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        detect(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"5", b"\xff\xff", b"[" * 100_000, b" " * (1 << 26) + b"{}"])
def test_damaged_records(tmp_path, part, text):
    (tmp_path / "evaluation.json").write_bytes(text)
    with pytest.raises(
        ValueError, match=r"was not written by an evaluation; choose another --output, or remove the file"
    ):
        detect(tmp_path)


def test_a_record_that_was_damaged_a_little(tmp_path, part):
    path = tmp_path / "evaluation.json"
    path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "float16"'))
    message = r"evaluation\.json is damaged: its checksum does not fit\. Remove this file only, and run again"
    with pytest.raises(ValueError, match=message):
        detect(tmp_path)
    with pytest.raises(ValueError, match=message):
        results_in(tmp_path)
    path.unlink()
    assert detect(tmp_path).batches == []


def test_the_record(tmp_path):
    identity = identify(Told(), Plain(7), range(7), "float32")
    assert identity == json.loads(json.dumps(identity))
    assert identity["count"] == 7
    folder = tmp_path / "new" / "folder"
    assert claim_folder(folder, identity) == claim_folder(folder, identity) == digest_of(identity)
    contents = json.loads((folder / "evaluation.json").read_text())
    checksum = contents.pop("checksum")
    expected = {"format": "mask-scoring-rcnn evaluation", "version": 2, "evaluation": digest_of(identity)}
    assert contents == {**expected, "identity": identity}
    assert checksum == hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]


def test_hash_of_weights():
    def hash_of(**tensors) -> str:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return hash_weights(module)

    one = torch.tensor([[1.0, 2.0]])
    same = hash_of(a=one, n=torch.tensor(3), none=torch.zeros(0), flag=torch.tensor([True]))
    assert same == hash_of(a=one.clone(), n=torch.tensor(3), none=torch.zeros(0), flag=torch.tensor([True]))
    hashes = [
        hash_of(a=one), hash_of(b=one), hash_of(a=one.T), hash_of(a=one[0]), hash_of(a=one + 1), hash_of(a=-one),
        hash_of(a=one.view(torch.int32)), same,
    ]  # fmt: skip
    assert len(set(hashes)) == len(hashes)
    wide = torch.arange(6.0).reshape(2, 3)
    assert hash_of(a=wide.T) == hash_of(a=wide.T.contiguous())
    assert hash_of(a=torch.arange(6.0)[::2]) == hash_of(a=torch.tensor([0.0, 2, 4]))
    assert hash_of(a=wide.bfloat16()) != hash_of(a=wide.half())


############################################################
#  Images that cannot be read
############################################################


def test_unreadable_images_are_all_named_and_the_rest_is_kept(tmp_path):
    with pytest.raises(ValueError, match="could not be read") as caught:
        detect(tmp_path, dataset=Plain(7, broken=[5, 2, 4]))
    text = str(caught.value)
    assert "3 images could not be read, so that not all of them have results" in text
    names = "picture 2 (image 2 is torn), picture 4 (image 4 is torn), picture 5 (image 5 is torn)."
    assert names in text
    assert f"The detections in the others are kept in {tmp_path}: repair these images" in text
    assert done_images(tmp_path) == {1, 2, 7}, "image 3 is detected together with image 2"
    with pytest.raises(ValueError, match=r"2 images could not be read.*picture 4 .*picture 5 "):
        detect(tmp_path, dataset=Plain(7, broken=[5, 4]))
    assert detect(tmp_path).batches == [[4, 5]]
    assert results_in(tmp_path) == detect_dataset(Told(), Plain(7))


def test_unreadable_images_are_named_in_order(tmp_path):
    with pytest.raises(ValueError, match=r"picture 1 .*picture 5 "):
        detect(tmp_path, dataset=Plain(7, broken=[5, 1]), image_ids=range(6, -1, -1))


def test_threads_that_read_follow_the_cores(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for cores, threads in ((1, 2), (2, 2), (6, 6), (64, 8)):
        monkeypatch.setattr(runtime, "usable_cores", lambda cores=cores: cores)
        assert reading_threads(None) == threads
    assert [reading_threads(count) for count in (0, 1, 30)] == [1, 1, 30]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert reading_threads(None) == 4


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_read_batches(size, workers):
    chunks = [list(range(start, min(start + size, 8))) for start in range(0, 8, size)]
    failures = {}
    read = list(read_batches(Plain(8, broken=[3]), chunks, failures, workers))
    assert [chunk for chunk, _ in read] == [chunk for chunk in chunks if 3 not in chunk]
    assert [[image[0, 0, 0] for image in images] for _, images in read] == [chunk for chunk, _ in read]
    assert failures == {3: "image 3 is torn"}


def test_images_are_read_ahead_but_not_all_of_them():
    dataset, read = Plain(40), []
    dataset.load_image = lambda image_id: read.append(image_id) or np.zeros((9, 9, 3), np.uint8)
    batches = read_batches(dataset, [[i] for i in range(40)], {}, workers=3)
    next(batches)
    deadline = time.monotonic() + 30
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(read) == [0, 1, 2, 3]
    batches.close()


def test_other_errors_of_a_data_set_are_raised():
    dataset = Plain(3)
    dataset.load_image = lambda image_id: {}[image_id]
    with pytest.raises(KeyError):
        list(read_batches(dataset, [[0], [1]], {}))
    dataset.load_image = Plain(3, broken=[0]).load_image
    with pytest.raises(OSError, match="image 0 is torn"):
        detect_dataset(Told(), dataset)


def test_failures_without_words():
    dataset, failures = Plain(1), {}

    def fail(image_id):
        raise OSError

    dataset.load_image = fail
    assert list(read_batches(dataset, [[0]], failures)) == []
    assert failures == {0: "OSError"}


def test_one_evaluation_at_a_time_in_a_folder(tmp_path):
    """A second one, of the same, would write the same lines twice, and could cut off a line of the first."""

    class Again(Told):
        def find(self, number):
            with pytest.raises(ValueError, match=rf"{tmp_path} is in use by another training or evaluation \(process"):
                detect(tmp_path)
            return super().find(number)

    detect(tmp_path, Again())
    assert detect(tmp_path).batches == [], "it is free again, and complete"


def test_a_model_of_other_classes_writes_nothing(tmp_path):
    model = Told()
    model.class_names = ["BG", "hen", "ox"]
    with pytest.raises(ValueError, match=r"the model knows none of the classes of the data set"):
        detect(tmp_path, model)
    assert list(tmp_path.iterdir()) == []
