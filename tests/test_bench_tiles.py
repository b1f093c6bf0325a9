"""Mosaics of real images, scenes of shapes, how well tiles agree with one piece, and a detector without mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import tifffile
from PIL import Image

import tiles
import utils
from benchmarks import bench_tiles, make_mosaic, seam_rules
from benchmarks.bench_tiles import agreement
from benchmarks.perfect_detector import Check, Ellipses, Kind
from data.crops import Crop
from detections import ImageDetections

ROOT = Path(__file__).resolve().parent.parent


############################################################
#  Images
############################################################


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


def test_a_scene_of_shapes_has_their_masks(tmp_path):
    scene = make_mosaic.make_shapes(260, 300, 40, 60, seed=1)
    assert scene.image.shape == (260, 300, 3)
    assert len(scene.masks) == len(scene.class_ids) > 8
    assert set(scene.class_ids) <= set(range(1, 8))
    filled = np.zeros((260, 300), int)
    for y, x, mask in scene.masks:
        assert mask.any(axis=0)[[0, -1]].all()
        assert 20 <= max(mask.shape) <= 63
        filled[y : y + mask.shape[0], x : x + mask.shape[1]] += mask
        color = scene.image[y : y + mask.shape[0], x : x + mask.shape[1]][mask].mean(axis=0)
        assert np.abs(color - scene.image[filled == 0][0]).max() > 30, "an object is easy to see"
    assert filled.max() == 1, "none is in front of another"
    words = [str(tmp_path / "a.png"), "--side", "90", "--shapes", "30", "40", "--seed", "3"]
    make_mosaic.main(make_mosaic.build_parser().parse_args(words))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(image, make_mosaic.make_shapes(90, 90, 30, 40, 3).image)
    assert make_mosaic.make_shapes(20, 20, 30, 40).masks == [], "no room"


def test_a_sparse_image_stores_what_is_not_black(folder):
    bench_tiles.write_sparse(folder / "a.tif", 1100, utils.image_files(folder))
    image = tifffile.imread(folder / "a.tif")
    assert image.shape == (1100, 1100, 3)
    with tifffile.TiffFile(folder / "a.tif") as file:
        counts = file.pages[0].databytecounts
    assert (len(counts), sum(count > 0 for count in counts)) == (9, 4)
    assert 0 < (image.max(axis=2) > 0).mean() < 0.6


############################################################
#  Agreement
############################################################


def detections_of(*boxes, class_ids=None, size=100) -> ImageDetections:
    masks = np.zeros((size, size, len(boxes)), bool)
    for i, (y1, x1, y2, x2) in enumerate(boxes):
        masks[y1:y2, x1:x2, i] = True
    ones = np.ones(len(boxes), np.float32)
    rois = np.array(boxes, np.float32).reshape(-1, 4)
    class_ids = np.array(class_ids or [1] * len(boxes), np.int32)
    return ImageDetections(rois, class_ids, ones, ones, ones, utils.mask_to_rle(masks))


def test_agreement_by_hand():
    reference = detections_of((0, 0, 20, 20), (30, 0, 50, 20), (60, 0, 80, 20), (0, 50, 20, 70))
    # The same; the same and a double; three quarters; nothing; and something new.
    found = detections_of((0, 0, 20, 20), (30, 0, 50, 20), (32, 0, 50, 20), (60, 0, 75, 20), (80, 80, 90, 90))
    numbers = {"objects": 5, "0.95": 0.5, "0.9": 0.5, "0.5": 0.75, "new": 0.2, "doubles": 0.2}
    assert agreement(reference, found) == numbers
    nothing = detections_of()
    assert agreement(reference, nothing) == dict.fromkeys(numbers, 0)
    assert agreement(nothing, found)["new"] == 1


def test_agreement_of_some_objects_and_within_a_class():
    reference = detections_of((0, 0, 20, 20), (30, 0, 50, 20), (60, 0, 80, 20))
    found = detections_of((0, 0, 20, 20), (30, 0, 50, 20), class_ids=[1, 2])
    assert agreement(reference, found)["0.95"] == pytest.approx(1 / 3)
    assert agreement(reference, found, np.array([True, False, False]))["0.95"] == 1
    assert agreement(reference, found, np.array([False, True, True]))["0.5"] == 0
    assert agreement(reference, found)["new"] == 0.5


def test_limits_of_one_piece_grow_with_the_area():
    settings_of_whole = []

    class Model:
        config = type("Settings", (), {"PRE_NMS_LIMIT": 2, "POST_NMS_ROIS_INFERENCE": 3, "DETECTION_MAX_INSTANCES": 5})
        device = "cpu"

        def to_checkpoint(self):
            return {}

    class Whole:
        @staticmethod
        def from_checkpoint(checkpoint, device, **settings):
            settings_of_whole.append(settings)
            return Whole()

        def detect(self, images, masks):
            found = detections_of((0, 0, 9, 9), (0, 0, 5, 5)).to_result()
            return [{**found, "scores": np.array([0.5, 0.4], np.float32)}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_tiles, "MaskRCNN", Whole)
        found = bench_tiles.detect_whole(Model(), np.zeros((200, 400, 3), np.uint8), 100)
    limits = {"PRE_NMS_LIMIT": 16, "POST_NMS_ROIS_INFERENCE": 24, "DETECTION_MAX_INSTANCES": 40}
    assert settings_of_whole == [{**limits, "IMAGE_RESIZE_MODE": "pad64"}]
    assert found.rois.tolist() == [[0, 0, 9, 9]]


def test_objects_that_no_tile_sees_whole():
    (ellipse,) = [Ellipses(500, [Kind(1, 5, 6)])]
    plan = bench_tiles.seams_of(ellipse).plan  # one tile sees all
    boxes = np.array([[0, 0, 500, 500.0], [10, 10, 20, 20]])
    assert bench_tiles.unseen(boxes, plan).tolist() == [False, False]
    plan = bench_tiles.seams_of(Ellipses(3008, [Kind(1, 5, 6)])).plan  # tiles from 0 and 832, with 192 in common
    boxes = np.array([[0, 0, 1022, 1022.0], [0, 0, 1023, 50], [834, 0, 900, 900], [831, 1, 1030, 9]])
    assert bench_tiles.unseen(boxes, plan).tolist() == [False, True, False, True]


############################################################
#  Rules
############################################################


def two_tiles_views(*boxes) -> tiles.TiledDetections:
    """Detections of one class, with scores from 0.9 downwards."""
    tile = tiles.Tile(0, 0, (0, 0, 128, 128), (0, 0, 128, 128))
    views = []
    for number, (y1, x1, y2, x2) in enumerate(boxes):
        mask, score = Crop(y1, x1, np.ones((y2 - y1, x2 - x1), bool)), 0.9 - number / 10
        views.append(tiles.make_view(tile, number, (100, 100), (y1, x1, y2, x2), mask, 1, score, 0.5, score / 2))
    return tiles.detections_of([[view] for view in views])


def boxes_of(found: ImageDetections) -> list[tuple]:
    return sorted(utils.rle_to_bbox(code) for code in found.masks)


WHOLE, PART, TOUCHING = (10, 10, 30, 50), (10, 12, 30, 50), (10, 28, 30, 68)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no rule", [WHOLE, PART, TOUCHING]),
        ("box NMS", [WHOLE, TOUCHING]),
        ("supervision, NMS", [WHOLE, TOUCHING]),
        ("supervision, NMM", [WHOLE, TOUCHING]),
        ("SAHI, GREEDYNMM", [(10, 10, 30, 68)]),  # TOUCHING shares 22 of its 40 columns
    ],
)
def test_the_rules_of_others(name, expected):
    rule, package = seam_rules.RULES[name]
    if package is not None:
        pytest.importorskip(package, reason=f"pip install {package}")
    found = rule(two_tiles_views(WHOLE, PART, TOUCHING), (100, 100))
    assert boxes_of(found) == sorted(expected)
    assert found.scores.max() == pytest.approx(0.9, abs=0.05)  # a joined one may have a mean
    assert set(found.class_ids.tolist()) == {1}


def test_rules_that_cannot_run_say_why(monkeypatch, capsys):
    monkeypatch.setattr(seam_rules.importlib.util, "find_spec", lambda name: None if name == "sahi" else object())
    detections = two_tiles_views(WHOLE)
    assert [name for name, _ in seam_rules.usable_rules(detections, (100_000, 100_000))] == ["no rule", "box NMS"]
    said = capsys.readouterr().err
    assert "SAHI, GREEDYNMM is left out: pip install sahi\n" in said
    assert "supervision, NMM is left out: its masks of 1 detections would take more than 1 GB" in said


############################################################
#  A detector without mistakes
############################################################


@pytest.mark.parametrize("seed", range(3))
def test_what_a_perfect_detector_sees_comes_out_once_and_exactly(seed):
    ellipses = Ellipses(2500, [Kind(120, 8, 60), Kind(4, 200, 900)], seed)
    seams, check, pieces = bench_tiles.seams_of(ellipses), Check(ellipses), []
    for row in seams.plan.rows():
        for tile in row:
            seams.add(tile, ellipses.views(tile))
        found = seams.finish(row[0].row)
        pieces += found.pieces.tolist()
        check.add(found)
    assert (check.once, check.wrong) == (check.count, 0)
    assert check.count >= 120
    assert max(pieces) >= 2, "some are larger than a tile"


def test_what_comes_out_twice_or_wrong_is_counted():
    ellipses = Ellipses(300, [Kind(1, 20, 30), Kind(1, 40, 50)], seed=1)
    check = Check(ellipses)
    tile = bench_tiles.seams_of(ellipses).plan.tile(0, 0)
    first, second = ellipses.views(tile)
    check.add(tiles.detections_of([[first], [first], [second]]))
    assert (check.once, check.wrong, check.count) == (1, 0, 2)
    mask = second.mask.mask.copy()
    mask[mask.shape[0] // 2, mask.shape[1] // 2] ^= True
    wrong = tiles.make_view(tile, 2, (300, 300), second.box, second.mask._replace(mask=mask), 1, 0.9, 0.9, 0.8)
    check.add(tiles.detections_of([[wrong]]))
    assert (check.once, check.wrong) == (1, 1)


############################################################
#  Commands
############################################################


@pytest.fixture
def arguments(folder, monkeypatch):
    monkeypatch.setenv("MASKSCORING_KEEP_MEMORY", "1")  # which the curves change
    return bench_tiles.build_parser().parse_args(["--quick", "--seeds", "1", "--images", str(folder)])


def test_nuclei_are_found_as_in_one_piece(arguments):
    rows = {row["rule"]: row for row in bench_tiles.nuclei(arguments)["rows"]}
    ours, boxes, every = rows["tiles.py"], rows["box NMS"], rows["no rule"]
    assert ours["reference"] > 10
    assert every["objects"] > boxes["objects"] >= ours["objects"] > 0
    assert ours["0.5"] > 0.8
    assert rows["best view"]["0.95"] >= rows["without looks"]["0.95"]
    assert every["doubles"] > 0.1 > ours["doubles"]


def test_shapes_that_no_tile_sees_whole_are_counted(arguments):
    rows = bench_tiles.shapes(arguments)["rows"]
    of_piece = [row for row in rows if row["rule"] == "one piece"]
    assert [(row["tile"], row["overlap"]) for row in of_piece] == [(256, 64), (128, 64), (96, 32)]
    assert all(row["0.95"] in (0, 1) and row["right"] in (None, 1) for row in of_piece)
    assert of_piece[2]["reference"] > 0
    (ours,) = [row for row in rows if row["rule"] == "tiles.py" and row["overlap"] == 32]
    assert ours["0.5"] > 0.5
    assert ours["drawn"] == of_piece[2]["drawn"] > 0


@pytest.mark.parametrize("name", bench_tiles.CURVES)
def test_each_curve_has_its_points(arguments, name):
    rows = bench_tiles.curve(name, arguments)
    assert [row["value"] for row in rows] == list(bench_tiles.CURVES[name].quick)
    assert all(row["objects"] > 0 and row["ms"] > 0 and row["mb_in_all"] > 0 for row in rows)


def test_bench_tiles_ends_with_a_json_line(tmp_path):
    command = [sys.executable, "benchmarks/bench_tiles.py", "--quick", "--part", "perfect", "objects"]
    done = subprocess.run([*command, "--output", tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "tiles.json").read_text()) == facts
    assert matplotlib.image.imread(tmp_path / "tiles.png").shape[0] > 300
    perfect = facts["perfect"]
    assert (perfect["once"], perfect["wrong"]) == (perfect["objects"], 0)
    assert facts["slopes"] == bench_tiles.bench_growth.slopes(facts["curves"])
    assert list(facts["slopes"]) == ["objects"]


def test_parts_without_curves_need_no_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_tiles.bench_growth, "in_process", lambda file, words: {"rows": []})
    bench_tiles.main(bench_tiles.build_parser().parse_args(["--quick", "--part", "shapes", "--output", str(tmp_path)]))
    assert json.loads((tmp_path / "tiles.json").read_text()) == json.loads(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["tiles.json"]
