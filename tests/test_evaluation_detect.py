"""Detections that are written as they come: interruptions, damage, several processes, and what a folder refuses."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_tiny import Noise
from helpers import detection_result, random_rectangles, rectangles, tiny_model
from torch import nn

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
    read_lines,
    write_submission,
)
from evaluation.results import Detector, ResumableDetector, ground_truth, to_results

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
    assert [line.image_id for line in read_lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert done_images(tmp_path) == {1, 2, 3, 4, 5, 6}
    assert part.read_bytes() == whole[: whole[:-1].rfind(b"\n") + 1]


@pytest.mark.parametrize("torn", [1, 65535, 65536, 65537, 200000])
@pytest.mark.parametrize("before", [b"", b'{"image_id": 1, "boxes": [], "masks": []}\n'])
def test_long_torn_lines(tmp_path, before, torn):
    path = tmp_path / "detections" / "part-003.jsonl"
    path.parent.mkdir()
    path.write_bytes(before + b"x" * torn)
    assert done_images(tmp_path) == ({1} if before else set())
    assert path.read_bytes() == before


def test_folders_without_detections(tmp_path):
    assert done_images(tmp_path) == set()
    assert load_results(tmp_path, []) == ([], [])
    (tmp_path / "detections").mkdir()
    (tmp_path / "detections" / "part-000.jsonl").touch()
    assert done_images(tmp_path) == set()
    assert len(detect(tmp_path).batches) == 4


@pytest.mark.parametrize("garbage", [
    b"what is this", b"", b"5", b"[]", b'"image_id"', b"\x00\x00\x00", b"\xff\xfe", b'{"image_id": 3}',
    b'{"image_id": "3", "boxes": [], "masks": []}', b'{"image_id": 3, "boxes": 5, "masks": []}',
    b'{"image_id": 3, "boxes": [], "masks": null}', b'{"image_id": 3, "boxes": [], "masks": [], "more": 1}',
])  # fmt: skip
def test_garbage_is_an_error_that_says_where(tmp_path, part, garbage):
    expected, lines = results_in(tmp_path), part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([*lines[:2], garbage + b"\n", *lines[3:]]))
    message = r"part-000\.jsonl, line 3, is damaged: it is not the results of an image\. Remove the line"
    with pytest.raises(ValueError, match=message):
        detect(tmp_path)
    with pytest.raises(ValueError, match=message):
        results_in(tmp_path)
    part.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert detect(tmp_path).batches == [[2, 3]]
    assert results_in(tmp_path) == expected


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
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda answer: answer.__setitem__(0, [[0, 1]]))
    with contextlib.ExitStack() as stack:
        assert _remaining_chunks(Told(), Plain(7), range(7), tmp_path / "new", "float32", None, stack) == [[0, 1]]
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
    path = folder / "evaluation.json"
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


@pytest.mark.parametrize(("change", "message"), [
    (lambda record: record.update(format="other"), r"evaluation\.json was not written by an evaluation; choose"),
    (lambda record: record.update(identity=[]), r"was not written by an evaluation"),
    (lambda record: record["identity"].update(settings="x"), r"was not written by an evaluation"),
    (lambda record: record["identity"].pop("settings"), r"was not written by an evaluation"),
    (lambda record: record.pop("identity"), r"was not written by an evaluation"),
    (lambda record: record.update(version=2), r"has version 2 of the format, and this release writes 1"),
    (lambda record: record["identity"]["settings"].update(OF_LATER=3), r"OF_LATER 3 there, None now"),
    (lambda record: record["identity"]["settings"].update(DIALECT="crop"), r"DIALECT crop there, mmdet now"),
    (lambda record: record["identity"].pop("dtype"), r"dtype None there, float32 now"),
])  # fmt: skip
def test_records_of_other_programs(tmp_path, part, change, message):
    change_record(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        detect(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"5", b"\xff\xff"])
def test_damaged_records(tmp_path, part, text):
    (tmp_path / "evaluation.json").write_bytes(text)
    with pytest.raises(
        ValueError, match=r"was not written by an evaluation; choose another --output, or remove the file"
    ):
        detect(tmp_path)


def test_the_record(tmp_path):
    identity = identify(Told(), Plain(7), range(7), "float32")
    assert identity == json.loads(json.dumps(identity))
    assert identity["count"] == 7
    claim_folder(tmp_path / "new" / "folder", identity)
    claim_folder(tmp_path / "new" / "folder", identity)
    contents = json.loads((tmp_path / "new" / "folder" / "evaluation.json").read_text())
    assert contents == {"format": "mask-scoring-rcnn evaluation", "version": 1, "identity": identity}


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
