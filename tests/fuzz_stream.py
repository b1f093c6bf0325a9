"""Damaged files of an evaluation: its results are those of an undamaged one, or a sentence names the file."""

import hashlib
import json
import logging
import shutil

import numpy as np
import pytest
from evaluate_tiny import Noise
from fuzzing import damaged_bytes, damaged_json, fuzz
from helpers import detection_result, random_rectangles, tiny_model

import utils
from evaluation.detect import detect_to_folder, load_results
from evaluation.results import to_results
from evaluation.stream import Line, line_bytes, read_line

COUNT = 9


class Fixed(Noise):
    """Images without files; image i has the colour i."""

    def load_image(self, image_id):
        return np.full((40, 50, 3), image_id, np.uint8)


def quick_model():
    """Finds what follows from an image's colour, in no time."""
    model = tiny_model(IMAGES_PER_GPU=2, GPU_COUNT=0)

    def detect_batches(batches, dtype="float32", masks="rle"):
        model.seconds = {}
        for images in batches:
            yield [found(int(image[0, 0, 0])) for image in images]

    model.detect_batches = detect_batches
    return model


def found(number: int) -> dict:
    rng, count = np.random.default_rng(number), 1 + number % 3
    return detection_result(
        random_rectangles(rng, count), rng.integers(1, 4, count), rng.random(count), rng.random(count)
    )


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Each damaged line is logged, thousands of times."""
    caplog.set_level(logging.ERROR, "evaluation.detect")


def evaluation(tmp_path):
    """A finished evaluation whose lines are in two parts, a function that runs it again elsewhere, and its results."""
    model, dataset, good = quick_model(), Fixed(COUNT), tmp_path / "good"
    detect_to_folder(model, dataset, range(COUNT), good, verbose=False)
    part = good / "detections" / "part-000.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:6]))
    part.with_name("part-001.jsonl").write_bytes(b"".join(lines[6:]))
    identity = json.loads((good / "evaluation.json").read_bytes())["identity"]

    def run(folder):
        detect_to_folder(model, dataset, range(COUNT), folder, verbose=False, identity=identity)
        return load_results(folder, range(1, COUNT + 1))

    return good, run, run(good)


def test_evaluation_folders(tmp_path):
    """Bytes of any file: lines and evaluation.json. What was damaged is detected again."""
    good, run, expected = evaluation(tmp_path)
    names = ["detections/part-000.jsonl", "detections/part-000.jsonl", "detections/part-001.jsonl", "evaluation.json"]

    def case(rng: np.random.Generator) -> None:
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        path = folder / names[rng.integers(len(names))]
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
        assert run(folder) == expected

    fuzz(case, 80, "evaluation.json")


def test_damaged_records(tmp_path):
    """Values of evaluation.json, of this release and of one without checksums."""
    good, run, expected = evaluation(tmp_path)
    record = json.loads((good / "evaluation.json").read_bytes())
    old = {name: value for name, value in record.items() if name not in ("evaluation", "checksum")} | {"version": 1}

    def case(rng: np.random.Generator) -> None:
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        (folder / "evaluation.json").write_text(json.dumps(damaged_json(record if rng.random() < 0.5 else old, rng)))
        assert run(folder) == expected

    fuzz(case, 100, "folder")


def test_values_of_lines():
    """Values under a checksum that fits: what is let through is within its range, and can be written again."""
    results = to_results(found(2), 3, [0, 17, 18, 21])
    *body, _ = line_bytes(Line(3, *results, "0123abcd")).rpartition(b', "checksum": ')
    values = json.loads(body[0] + b"}")

    def case(rng: np.random.Generator) -> None:
        text = json.dumps(damaged_json(values, rng))[:-1].encode()
        checksum = hashlib.sha256(text).hexdigest()[:16].encode()
        try:
            line = read_line(text + b', "checksum": "' + checksum + b'"}\n', codes=True)
        except ValueError as error:
            raise ValueError(f"line: {error}") from error
        assert line.boxes == read_line(line_bytes(line), codes=True).boxes
        assert np.isfinite([entry["score"] for entry in (*line.boxes, *line.masks)]).all()
        assert all(0 <= utils.rle_area(entry["segmentation"]) < 2**32 for entry in line.masks)
        assert np.array([entry["bbox"] for entry in line.boxes], np.float32).size == 4 * len(line.masks)

    fuzz(case, 800, "line")
