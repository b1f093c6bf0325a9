"""Mosaics of real images, and how well tiles agree with one piece."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import utils
from benchmarks import bench_tiles, make_mosaic
from benchmarks.bench_tiles import agreement
from detections import ImageDetections

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path):
    """Pictures of nuclei at half their size, and plain ones that are lower and narrower."""
    for number in (1, 2):
        image = Image.open(ROOT / "assets" / f"nuclei_{number}.jpg")
        image.reduce(2).save(tmp_path / f"{number}.png")
    for number in range(3, 6):
        Image.new("RGB", (20 * number, 90), (number, 0, 50)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_a_mosaic_is_filled_and_follows_from_its_seed(folder):
    paths = utils.image_files(folder)
    mosaics = [make_mosaic.make_mosaic(paths, 300, 500, seed) for seed in (0, 0, 1)]
    assert mosaics[0].shape == (300, 500, 3)
    np.testing.assert_array_equal(mosaics[0], mosaics[1])
    assert (mosaics[0] != mosaics[2]).any()
    assert (mosaics[0].max(axis=2) > 0).mean() > 0.5, "only what is narrower than its column leaves black"
    column = make_mosaic.make_mosaic(paths[2:3], 200, 50, seed=3)
    assert (column == [3, 0, 50]).all(axis=2).mean() > 0.6


def test_a_mosaic_is_written_where_it_is_asked_for(folder):
    command = [sys.executable, "benchmarks/make_mosaic.py", folder / "out.png", "--side", "70", "--images", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder / 'out.png'}: 70 x 70 pixels\n"
    (folder / "out.png").rename(folder / "made.out")
    with Image.open(folder / "made.out") as image:
        np.testing.assert_array_equal(image, make_mosaic.make_mosaic(utils.image_files(folder), 70, 70))


def detections_of(*boxes) -> ImageDetections:
    masks = np.zeros((100, 100, len(boxes)), bool)
    for i, (y1, x1, y2, x2) in enumerate(boxes):
        masks[y1:y2, x1:x2, i] = True
    ones = np.ones(len(boxes), np.float32)
    rois = np.array(boxes, np.float32).reshape(-1, 4)
    return ImageDetections(rois, ones.astype(np.int32), ones, ones, ones, utils.mask_to_rle(masks))


def test_agreement_by_hand():
    reference = detections_of((0, 0, 20, 20), (30, 0, 50, 20), (60, 0, 80, 20), (0, 50, 20, 70))
    # The same; the same and a double; three quarters; nothing; and something new.
    found = detections_of((0, 0, 20, 20), (30, 0, 50, 20), (32, 0, 50, 20), (60, 0, 75, 20), (80, 80, 90, 90))
    assert agreement(reference, found) == {"objects": 5, "0.95": 0.5, "0.5": 0.75, "new": 0.2, "doubles": 0.2}
    nothing = detections_of()
    assert agreement(reference, nothing) == {"objects": 0, "0.95": 0, "0.5": 0, "new": 0, "doubles": 0}
    assert agreement(nothing, found)["new"] == 1


def test_limits_of_one_piece_grow_with_the_area():
    limits = []

    class Model:
        config = type("Settings", (), {"PRE_NMS_LIMIT": 2, "POST_NMS_ROIS_INFERENCE": 3, "DETECTION_MAX_INSTANCES": 5})
        device = "cpu"

        def to_checkpoint(self):
            return {}

    class Whole:
        @staticmethod
        def from_checkpoint(checkpoint, device, **settings):
            limits.append(settings)
            return Whole()

        def detect(self, images, masks):
            found = detections_of((0, 0, 9, 9), (0, 0, 5, 5)).to_result()
            return [{**found, "scores": np.array([0.5, 0.4], np.float32)}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_tiles, "MaskRCNN", Whole)
        found = bench_tiles.detect_whole(Model(), np.zeros((200, 400, 3), np.uint8), 100)
    assert limits == [{"PRE_NMS_LIMIT": 16, "POST_NMS_ROIS_INFERENCE": 24, "DETECTION_MAX_INSTANCES": 40}]
    assert found.rois.tolist() == [[0, 0, 9, 9]]


def test_bench_tiles_ends_with_a_json_line(folder):
    output = folder / "tiles.json"
    command = [sys.executable, "benchmarks/bench_tiles.py", "--quick", "--threads", "1"]
    command += ["--images", folder, "--output", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(output.read_text()) == facts
    ours, boxes, every = facts["rows"]
    assert [row["rule"] for row in facts["rows"]] == ["tiles.py", "box NMS", "no rule"]
    assert facts["reference"] > 10
    assert every["objects"] > boxes["objects"] >= ours["objects"] > 0
    assert ours["0.5"] > 0.8
    assert ours["tiles"] == 9
    assert every["doubles"] > 0.2 > ours["doubles"]
