"""The sample balloon: training on VIA's labels, and colour in balloons only."""

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import video
from samples import balloon

TINY = [
    "BACKBONE=resnet18", "BACKBONE_WIDTH=0.125", "TOP_DOWN_PYRAMID_SIZE=16", "RPN_CHANNELS=16",
    "FPN_CLASSIF_FC_LAYERS_SIZE=16", "MASK_HEAD_CHANNELS=8", "MASKIOU_HEAD_CHANNELS=8", "MASKIOU_FC_LAYERS_SIZE=16",
    "IMAGE_MIN_DIM=64", "IMAGE_MAX_DIM=64", "IMAGES_PER_GPU=1", "STEPS_PER_EPOCH=1", "VALIDATION_STEPS=1",
]  # fmt: skip


def write_balloons(folder: Path) -> Path:
    """Red squares, labelled as VIA 1 has them: Matterport's balloon data."""
    for split, count in (("train", 3), ("val", 2)):
        (folder / split).mkdir(parents=True)
        regions = {}
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 90, (64, 64, 3), dtype=np.uint8)
            pixels[10:40, 12:44] = (220, 30, 40)
            path = folder / split / f"{split}{number}.jpg"
            Image.fromarray(pixels).save(path)
            shape = {"name": "polygon", "all_points_x": [12, 44, 44, 12], "all_points_y": [10, 10, 40, 40]}
            regions[f"{path.name}{path.stat().st_size}"] = {
                "filename": path.name, "size": path.stat().st_size, "file_attributes": {},
                "regions": {"0": {"shape_attributes": shape, "region_attributes": {}}},
            }  # fmt: skip
        (folder / split / "via_region_data.json").write_text(json.dumps(regions))
    return folder


def test_it_trains_on_via_labels_and_splashes_pictures(tmp_path, capsys):
    dataset, logs = write_balloons(tmp_path / "balloons"), tmp_path / "logs"
    words = ["--logs", str(logs), "--device", "cpu"]
    train = ["train", "--dataset", str(dataset), "--model", "none", "--epochs", "1", "--layers", "all", *words]
    assert balloon.main([*train, "--set", *TINY]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"object +3 +2", printed)
    assert "epoch 1/1: loss" in printed
    source, output = dataset / "val" / "val0.jpg", tmp_path / "out"
    assert balloon.main(["splash", str(source), "--output", str(output), *words]) == 0
    picture = np.asarray(Image.open(output / "val0.jpg"))
    assert picture.shape == (64, 64, 3)


def test_colour_is_where_a_mask_is_and_only_there():
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = 200
    masks = np.zeros((4, 6, 2), bool)
    masks[1, 2, 0] = masks[3, 5, 1] = True
    result = balloon.color_splash(image, masks)
    assert result.dtype == np.uint8
    colored = result[..., 0] != result[..., 1]
    np.testing.assert_array_equal(colored, masks.any(axis=2))
    assert (balloon.color_splash(image, masks[..., :0]) == result[0, 0]).all(), "without masks all is gray"


def test_a_video_is_painted_frame_by_frame(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="PyAV is not installed")
    frame = np.full((48, 64, 3), (200, 20, 20), np.uint8)
    clock = (Fraction(10), Fraction(1, 1000))
    writer = video.VideoWriter(tmp_path / "film.mp4", video.Frame(frame, 0, clock=clock))
    for number in range(3):
        writer.write(Fraction(number, 10), frame)
    writer.close()

    class Model:
        def detect(self, images):
            masks = np.zeros((*images[0].shape[:2], 1), bool)
            masks[:, :32] = True
            return [{"masks": masks}]

    monkeypatch.setattr(balloon.cli, "open_model", lambda *_, **__: Model())
    assert balloon.main(["splash", str(tmp_path / "film.mp4"), "--output", str(tmp_path / "out")]) == 0
    frames = list(video.read_video(video.Source(str(tmp_path / "out" / "film.mp4"), "video"), 0, 1))
    assert len(frames) == 3
    pixels = frames[1].image.astype(int)
    assert np.ptp(pixels[20, 10]) > 100, "the left half keeps its red"
    assert np.ptp(pixels[20, 54]) < 30, "the right half is gray"


def test_training_without_a_folder_is_one_sentence(capsys):
    assert balloon.main(["train"]) == 2
    assert "train needs --dataset DIR" in capsys.readouterr().err
