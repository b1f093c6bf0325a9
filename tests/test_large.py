"""evaluation/large.py: which images are detected in tiles, rows that survive interruptions, and their results."""

import csv
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from detect_blobs import BlobFinder, many_blobs, save_blobs
from helpers import files_of_at_most, geotiff, tiny_model
from PIL import Image

import cli
import custom
import demo
import evaluation.large
import utils
from coco import CocoConfig
from config import Config
from data.sources import find_pictures
from evaluation.large import (
    Job,
    TiledResults,
    TileOptions,
    claim_image,
    describe_tiles,
    detect_rows,
    file_facts,
    find_rows,
    hint_at_tiles,
    look_again,
    needs_tiles,
    picture_shape,
    read_row,
    remaining_rows,
    tile_sizes,
)
from evaluation.stream import read_values, values_bytes
from samples.nucleus import NucleusConfig
from tiles import TiledDetections, detect_tiled

SCRIPT = Path(__file__).with_name("detect_blobs.py")
SMALL = TileOptions(128, 32)  # 4 x 3 tiles of the picture of many_blobs
CONFIG = BlobFinder().config
IDENTITY = {"weights": "w", "settings": {"DIALECT": CONFIG.DIALECT}, "dtype": "float32", "bits": "auto"}


############################################################
#  Which images are detected in tiles
############################################################


def in_crops(scale: float, crop: int = 256, **settings) -> Config:
    return Config(IMAGE_RESIZE_MODE="pad64", IMAGE_MIN_DIM=crop, IMAGE_MAX_DIM=crop, IMAGE_MIN_SCALE=scale, **settings)


@pytest.mark.parametrize(("config", "options", "expected"), [
    (Config(), TileOptions(), (1024, 256, 1)),  # ordinary anchors have 128 pixels
    (in_crops(0, RPN_ANCHOR_SCALES=(8, 16, 32, 64, 128)), TileOptions(), (1024, 128, 1)),
    (in_crops(2, RPN_ANCHOR_SCALES=(8, 16, 32, 64, 128)), TileOptions(), (1024, 128, 2)),
    (in_crops(4, RPN_ANCHOR_SCALES=(8, 16, 32, 64, 128)), TileOptions(), (512, 128, 4)),
    (in_crops(0, 1536), TileOptions(), (1536, 256, 1)),  # never less than it learned from
    (NucleusConfig(), TileOptions(), (1024, 128, 2)),
    (Config(), TileOptions(512), (512, 128, 1)),
    (Config(), TileOptions(512, 0), (512, 0, 1)),
    (Config(), TileOptions(scale=0.5), (1024, 256, 0.5)),
])  # fmt: skip
def test_sizes_of_tiles(config, options, expected):
    assert tile_sizes(config, options) == expected


@pytest.mark.parametrize(("config", "shape", "options", "expected"), [
    (in_crops(2), (2048, 2048, 3), TileOptions(), False),
    (in_crops(2), (2048, 2049, 3), TileOptions(), True),
    (NucleusConfig(), (2048, 2049), TileOptions(), True),
    (Config(IMAGE_RESIZE_MODE="none"), (2048, 2049), TileOptions(), True),
    (CocoConfig(), (10000, 10000), TileOptions(), False),  # a photograph, as far as anybody knows
    (Config(IMAGE_RESIZE_MODE="square", IMAGE_MAX_DIM=1024), (10000, 10000), TileOptions(), False),
    (CocoConfig(), (13377, 13377), TileOptions(), False),  # MAX_IMAGE_PIXELS
    (CocoConfig(), (13378, 13378), TileOptions(), True),
    (CocoConfig(), (2, 100_001), TileOptions(), True),
    (CocoConfig(), (1024, 1025), TileOptions(1024), True),
    (CocoConfig(), (1024, 1024), TileOptions(1024), False),
    (in_crops(2), (100_000, 100_000), TileOptions("off"), False),
])  # fmt: skip
def test_the_rule_of_tiles(config, shape, options, expected):
    assert needs_tiles(shape, config, options) == expected


def test_what_was_chosen_is_said_with_the_reason():
    assert describe_tiles({}, Config(), TileOptions()) == []
    (text,) = describe_tiles({"a.tif": (5000, 6000), "b.tif": (9000, 9000)}, in_crops(2), TileOptions())
    assert text == (
        "2 pictures in tiles of 1024 x 1024 pixels that overlap by 128, scaled by 2, such as a.tif (5000 x 6000): they "
        "have more pixels than 4 tiles; --tiles off detects in one piece"
    )
    (text,) = describe_tiles({"a.tif": (5000, 6000)}, Config(), TileOptions(512))
    assert text.startswith("1 picture in tiles of 512 x 512 pixels that overlap by 128, such as a.tif")
    assert text.endswith(
        ": as --tiles 512 says; in one piece, the network sees it 6.2 times smaller, as with --scale 0.16"
    )
    (text,) = describe_tiles({"a.tif": (500, 600)}, Config(), TileOptions(512))
    assert text.endswith(": as --tiles 512 says")
    (text,) = describe_tiles({"a.tif": (5000, 6000)}, Config(), TileOptions(300, 70, 0.4))
    assert text.startswith("1 picture in tiles of 320 x 320 pixels that overlap by 160, scaled by 0.4, such"), "as used"
    assert text.endswith(": as --tiles 300 says")
    (text,) = describe_tiles({"a.tif": (50_000, 60_000)}, Config(), TileOptions())
    assert text.endswith(": they are too large to be read in one piece")


def test_what_is_said_of_tiles_in_vain_is_named():
    assert describe_tiles({}, Config(), TileOptions("off", None, None)) == []
    (text,) = describe_tiles({}, Config(), TileOptions("off", 100))
    assert text == "--overlap changes nothing, as no picture is detected in tiles: --tiles off says so"
    (text,) = describe_tiles({}, Config(), TileOptions(512, 100, 2.0))
    assert text.startswith(
        "--overlap and --scale change nothing, as no picture is detected in tiles: none is large enough"
    )
    (text,) = describe_tiles({"a.tif": (5000, 6000)}, Config(), TileOptions(512, 100))
    assert "change" not in text


def test_a_hint_at_tiles():
    shapes = {"small.jpg": (800, 1000), "large.jpg": (8000, 6000), "larger.jpg": (9000, 9000)}
    (text,) = hint_at_tiles(shapes, Config(), TileOptions())
    assert text.startswith("2 pictures are shrunk more than 4 times for the network, such as larger.jpg (11.2 times)")
    assert "--tiles 1024" in text
    (text,) = hint_at_tiles({"large.jpg": (8000, 6000)}, Config(), TileOptions())
    assert text.startswith("1 picture is shrunk more than 4 times for the network, such as large.jpg")
    assert hint_at_tiles({"small.jpg": (800, 1000)}, Config(), TileOptions()) == []
    assert hint_at_tiles(shapes, Config(), TileOptions("off")) == [], "the user has decided"
    assert hint_at_tiles(shapes, in_crops(2), TileOptions()) == [], "nothing is shrunk"


def test_the_size_of_a_picture_by_its_header(tmp_path):
    assert picture_shape(save_blobs(tmp_path / "a.png", size=(30, 50))) == ((30, 50), True)
    assert picture_shape(tmp_path / "gone.png") == (None, False)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert picture_shape(tmp_path / "bad.png") == (None, False)


############################################################
#  Rows
############################################################


@pytest.fixture
def finder(monkeypatch):
    """The detector that custom.py opens, and that looks into tiles."""
    finder = BlobFinder()
    monkeypatch.setattr(cli, "open_model", lambda *arguments, **options: finder)
    monkeypatch.setattr(evaluation.large, "detect_views", lambda model, *arguments: model.detect_views(*arguments))
    return finder


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return many_blobs(tmp_path_factory.mktemp("slides") / "slide.png")


def claim(path: Path, folder: Path, options=SMALL, **changes):
    return claim_image(path, file_facts(path), folder, {**IDENTITY, **changes}, CONFIG, options)


def detect_remaining(finder, image) -> list[int]:
    """Detect what is missing, in further tiles too. Returns: the rows that were detected."""
    jobs, _ = remaining_rows(image, CONFIG)
    assert detect_rows(finder, jobs, CONFIG, verbose=False) == {}
    assert look_again(finder, [image], CONFIG, verbose=False) == {}
    return [job.row for job in jobs]


def texts_of(rows) -> list[str]:
    found = TiledDetections.cat(list(rows))
    columns = (found.rois, found.class_ids, found.scores, found.mask_ious, found.mask_scores, found.pieces)
    return [
        str([column[i].tolist() for column in columns] + [y, x, mask.astype(int).tolist()])
        for i, (y, x, mask) in enumerate(found.masks)
    ]


@pytest.fixture
def done(finder, slide, tmp_path):
    """An image whose rows are all detected."""
    image = claim(slide, tmp_path / "done")
    assert detect_remaining(finder, image) == list(range(4))
    finder.seen_tiles.clear()
    return image


def part_of(image) -> Path:
    return image.folder / "detections" / "part-000.jsonl"


def test_stored_rows_give_what_tiles_see(finder, slide, done):
    with evaluation.large.open_source(slide) as source:
        pixels = evaluation.large.Pixels(source, CONFIG)
        seen = [list(finder.detect_views(pixels, done.plan, row)) for row in done.plan.rows()]
        look = functools.partial(finder.detect_views, pixels, done.plan)
        expected = texts_of(evaluation.large.merge_views(done.plan, seen, CONFIG, look))
    results = TiledResults(done, CONFIG)
    assert texts_of(results) == expected
    assert texts_of(results) == expected, "again"
    found = TiledDetections.cat(list(results))
    assert len(found) > 20
    assert (found.pieces > 1).sum() == 1, "one blob is larger than a tile"
    whole = finder._find(np.asarray(Image.open(slide)))
    assert sorted(map(utils.rle_area, whole["masks"])) == sorted(int(mask.sum()) for _, _, mask in found.masks)


def test_a_part_may_end_anywhere(finder, slide, done):
    """As kill -9 leaves it: after each line, and inside of each."""
    expected, whole = texts_of(TiledResults(done, CONFIG)), part_of(done).read_bytes()
    ends = np.cumsum([0, *(len(line) for line in whole.splitlines(keepends=True))]).tolist()
    cuts = {*ends, *(end - 1 for end in ends[1:]), *(end + 1 for end in ends[:-1])}
    for cut in sorted(cuts):
        part_of(done).write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends[1:])
        assert detect_remaining(finder, done) == list(range(complete, 4))
        assert texts_of(TiledResults(done, CONFIG)) == expected
        assert part_of(done).read_bytes() == whole


def test_what_is_missing_is_named(done):
    whole = part_of(done).read_bytes().splitlines(keepends=True)
    part_of(done).write_bytes(b"".join(whole[:1] + whole[3:]))
    with pytest.raises(ValueError, match=r"lacks 2 rows of tiles of .*slide\.png: 1, 2; do all processes write"):
        TiledResults(done, CONFIG)


def changed(line: bytes, change) -> bytes:
    values = read_values(line)
    change(values)
    return values_bytes(values)


def in_view(**entries):
    """Change the first view of a row."""

    def change(values) -> None:
        views = next(tile["views"] for tile in values["tiles"] if tile["views"])
        views[0].update(entries)

    return change


@pytest.mark.parametrize(("change", "reason"), [
    (lambda values: values.pop("tiles"), "it is not what a row of tiles sees"),
    (lambda values: values.update(more=1), "it is not what a row of tiles sees"),
    (lambda values: values.update(row=4), "it is not what a row of tiles sees"),
    (lambda values: values.update(row=True), "it is not what a row of tiles sees"),
    (lambda values: values["tiles"][0].update(column=4), "it has not each tile of its row once"),
    (lambda values: values["tiles"][0].update(count=None), "it is not what a row of tiles sees"),
    (lambda values: values["tiles"][0].update(column=1), "it has not each tile of its row once"),
    (in_view(box=[1, 2, 3]), "it is not what a row of tiles sees"),
    (in_view(box=[1, 2, 3, float("nan")]), "a score or a box is not finite, or far too large"),
    (in_view(score="1"), "a score or a box is not finite, or far too large"),
    (in_view(mask_iou=None), "a score or a box is not finite, or far too large"),
    (in_view(class_id=4), "a class is none of the model's"),
    (in_view(class_id=0), "a class is none of the model's"),
    (in_view(y=-1), "a mask lies outside of its tile"),
    (in_view(x=199), "a mask lies outside of its tile"),
    (in_view(mask={"size": [2**31, 2**31], "counts": "04"}), "a mask lies outside of its tile"),
    (in_view(mask={"size": [2, 2], "counts": "P" * 9}), "the run-length code of a mask does not fit its size"),
    (in_view(y=70, x=10, mask={"size": [1, 1], "counts": "1"}), "a mask has no pixels"),
    (in_view(mask={"counts": "1"}), "it is not what a row of tiles sees"),
])  # fmt: skip
def test_damaged_lines_are_named_and_their_rows_detected_again(finder, done, change, reason):
    whole = part_of(done).read_bytes()
    lines = whole.splitlines(keepends=True)
    part_of(done).write_bytes(b"".join([lines[0], changed(lines[1], change), *lines[2:]]))
    rows, ((span, text),) = find_rows(done, CONFIG)
    assert ([row for row in rows if isinstance(row, int)], span.number, text) == ([0, 2, 3], 2, reason)
    assert detect_remaining(finder, done) == [1]
    assert sorted(part_of(done).read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_line_with_another_byte_is_no_line(done):
    lines = part_of(done).read_bytes().splitlines(keepends=True)
    with pytest.raises(ValueError, match="its checksum does not fit"):
        read_row(lines[0].replace(b'"number": 1', b'"number": 7', 1), done.plan, CONFIG)


def test_a_row_that_contradicts_another_line_is_detected_again(finder, done):
    lines = part_of(done).read_bytes().splitlines(keepends=True)
    part_of(done).write_bytes(b"".join([*lines, lines[1], changed(lines[2], in_view(score=0.5))]))
    _, ((span, text),) = find_rows(done, CONFIG)
    assert (span.number, text) == (7, "row 2 of the tiles has other results in another line")
    assert detect_remaining(finder, done) == [2]
    assert len(part_of(done).read_bytes().splitlines()) == 5


############################################################
#  Further tiles
############################################################


def test_further_tiles_have_a_line_of_their_own(finder, done):
    lines = part_of(done).read_bytes().splitlines(keepends=True)
    row = read_row(lines[-1], done.plan, CONFIG)
    assert (len(lines), row.number) == (5, tuple(tile.window[:2] for tile, _, _ in row.seen))
    whole = [view for _, views, _ in row.seen for view in views if not view.is_cut and view.extent[2] == 132]
    assert [view.extent for view in whole] == [(60, 182, 132, 196)]
    assert look_again(finder, [done], CONFIG, verbose=False) == {}
    assert finder.seen_tiles == [], "they are detected once"


def test_missing_further_tiles_are_named_and_detected_again(finder, done):
    expected, whole = texts_of(TiledResults(done, CONFIG)), part_of(done).read_bytes()
    part_of(done).write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"lacks what 1 further tiles of .*slide\.png show; were its lines changed"):
        list(TiledResults(done, CONFIG))
    assert look_again(finder, [done], CONFIG, verbose=False) == {}
    assert (texts_of(TiledResults(done, CONFIG)), part_of(done).read_bytes()) == (expected, whole)


@pytest.mark.parametrize(("change", "reason"), [
    (lambda values: values["tiles"][0].update(start=[0, 512]), "a tile lies outside of the image, or there twice"),
    (lambda values: values["tiles"].append(values["tiles"][0]), "a tile lies outside of the image, or there twice"),
    (lambda values: values["tiles"][0].update(start=[0, -1]), "it is not what a row of tiles sees"),
    (lambda values: values["tiles"][0].update(start=[0, 1.5]), "it is not what a row of tiles sees"),
    (lambda values: values["tiles"][0].update(start=None), "it is not what a row of tiles sees"),
    (in_view(score=float("nan")), "a score or a box is not finite, or far too large"),
])  # fmt: skip
def test_damaged_lines_of_further_tiles_are_named(finder, done, change, reason):
    whole = part_of(done).read_bytes()
    lines = whole.splitlines(keepends=True)
    part_of(done).write_bytes(b"".join([*lines[:-1], changed(lines[-1], change)]))
    _, problems = find_rows(done, CONFIG)
    assert [(span.number, text) for span, text in problems] == [(5, reason)]
    assert detect_remaining(finder, done) == []
    assert part_of(done).read_bytes() == whole


def test_a_picture_that_is_gone_before_further_tiles_costs_itself_only(finder, done, slide, tmp_path):
    path = tmp_path / "copy.png"
    path.write_bytes(slide.read_bytes())
    image = claim(path, tmp_path / "copy")
    assert detect_rows(finder, remaining_rows(image, CONFIG)[0], CONFIG, verbose=False) == {}
    path.unlink()
    failures = look_again(finder, [image, done], CONFIG, verbose=False)
    assert list(failures) == [path]
    assert "there is no such file" in failures[path]


def test_scores_that_are_no_numbers_are_not_stored(finder, slide, tmp_path):
    finder._find = lambda image, find=finder._find: {**(result := find(image)), "scores": result["scores"] * np.nan}
    image = claim(slide, tmp_path / "nan")
    with pytest.raises(ValueError, match=r"row 0 of the tiles shows cannot be stored, because a score .*damaged"):
        detect_rows(finder, [Job(image, 0)], CONFIG, verbose=False)
    assert part_of(image).read_bytes() == b""


def test_a_full_disk_is_named(finder, slide, tmp_path):
    image = claim(slide, tmp_path / "full")
    with files_of_at_most(3000), pytest.raises(OSError, match=r"part-000\.jsonl"):
        detect_rows(finder, [Job(image, row) for row in range(4)], CONFIG, verbose=False)


############################################################
#  What a folder is of
############################################################


def test_a_folder_of_another_run_is_refused_with_the_differences(done, slide):
    assert claim(slide, done.folder) == done
    with pytest.raises(ValueError, match="holds another evaluation: tile 128 there, 192 now"):
        claim(slide, done.folder, TileOptions(192, 32))
    with pytest.raises(ValueError, match="weights w there, v now"):
        claim(slide, done.folder, weights="v")
    assert part_of(done).stat().st_size > 0, "and stays as it is"


def test_another_file_is_detected_again(finder, done, tmp_path, capsys):
    path = many_blobs(tmp_path / "slide.png", seed=1)
    image = claim(path, done.folder)
    assert capsys.readouterr().out == f"detected again, because its file has changed: {path}\n"
    assert image.evaluation != done.evaluation
    assert detect_remaining(finder, image) == list(range(4))
    os.utime(path, (1, 1))
    assert claim(path, done.folder) == image, "another time alone changes nothing"


def test_a_line_of_another_evaluation_is_refused(done):
    text = part_of(done).read_bytes().replace(done.evaluation.encode(), b"01234567")
    lines = [values_bytes(json.loads(line[: line.rindex(b', "checksum')] + b"}")) for line in text.splitlines()]
    part_of(done).write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="line 1, is of another evaluation"):
        TiledResults(done, CONFIG)


def test_digests_of_files_and_folders(tmp_path, monkeypatch):
    path, folder = many_blobs(tmp_path / "a.png"), tmp_path / "b.zarr"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "1").write_bytes(b"x")
    monkeypatch.setattr(evaluation.large, "source_shape", lambda path: (272, 200))
    facts, of_folder = file_facts(path), file_facts(folder)
    assert (facts["file size"], facts["height"], facts["width"]) == (path.stat().st_size, 272, 200)
    monkeypatch.setattr(evaluation.large, "SAMPLED_BYTES", 1000)
    sampled = file_facts(path)
    assert sampled["file digest"] != facts["file digest"]
    assert file_facts(path) == sampled
    os.utime(path, (1, 1))
    assert file_facts(path) != sampled, "of a file that is not read in full, the time counts"
    (folder / "0" / "1").write_bytes(b"yz")
    assert file_facts(folder) != of_folder
    with pytest.raises(FileNotFoundError):
        file_facts(tmp_path / "gone")


def test_the_size_of_a_file_that_is_no_picture(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.svs"):
        file_facts(tmp_path / "a.svs")


############################################################
#  The command
############################################################

TILES = ("--tiles", "128", "--overlap", "32")


def detect(folder, *options, out) -> int:
    return custom.main(["detect", "--dataset", str(folder), "--model", "x", "--output", str(out), *map(str, options)])


@pytest.fixture
def pictures(tmp_path):
    """A large picture and a small one."""
    many_blobs(tmp_path / "slides" / "large.png")
    save_blobs(tmp_path / "slides" / "small.png", (1, 0.9, 4, 5, 12, 25), (2, 0.8, 20, 30, 35, 40))
    return tmp_path / "slides"


def files_in(out: Path) -> dict[str, bytes]:
    """The results, without what is only kept to continue."""
    paths = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    kept = ("detections/", "large/", "evaluation.json", ".lock")
    return {name: path.read_bytes() for name, path in sorted(paths.items()) if not name.startswith(kept)}


def test_large_pictures_join_the_others(pictures, finder, tmp_path, capsys):
    kinds = ("--to", "pictures,csv,coco,geojson,label_images,labelme,yolo")
    assert detect(pictures, *TILES, *kinds, out=tmp_path / "tiled") == 0
    printed = capsys.readouterr().out
    assert "1 picture in tiles of 128 x 128 pixels that overlap by 64, such as large.png (272 x 200): as --" in printed
    assert finder.seen == [(40, 60)]
    assert len(finder.seen_tiles) == 13
    assert detect(pictures, "--tiles", "off", *kinds, out=tmp_path / "whole") == 0
    assert "in tiles" not in capsys.readouterr().out
    tiled, whole = files_in(tmp_path / "tiled"), files_in(tmp_path / "whole")
    assert tiled.keys() - {"label_images/classes/"} >= {name for name in whole if "classes/" not in name}
    value, expected = (json.loads(files["annotations.json"]) for files in (tiled, whole))
    assert value["images"] == expected["images"]
    codes, expected_codes = (
        {str((each["image_id"], each["category_id"], each["segmentation"])) for each in contents["annotations"]}
        for contents in (value, expected)
    )
    assert len(codes) == len(value["annotations"]) > 10
    assert codes == expected_codes
    assert len(tiled["objects.csv"].splitlines()) == len(whole["objects.csv"].splitlines())
    masks = [tmp_path / name / "label_images" / "masks" / "large.tif" for name in ("tiled", "whole")]
    areas = [(tifffile.imread(path) > 0).sum() for path in masks]
    assert areas[0] == areas[1] > 0
    shapes = json.loads(tiled["labelme/large.json"])["shapes"]
    assert len(shapes) == len(json.loads(whole["labelme/large.json"])["shapes"])


def test_numbers_are_the_same_everywhere(pictures, finder, tmp_path):
    assert detect(pictures, *TILES, "--to", "csv,coco,geojson,labelme,label_images", out=tmp_path / "out") == 0
    text = (tmp_path / "out" / "objects.csv").read_text()
    rows = [row for row in csv.DictReader(text.splitlines()) if row["file"] == "large.png"]
    scores = {int(row["number"]): float(row["mask_score"]) for row in rows}
    assert sorted(scores) == list(range(1, len(rows) + 1))
    assert [scores[number] for number in sorted(scores)] == sorted(scores.values(), reverse=True), "best mask first"
    areas = {int(row["number"]): int(row["area_px"]) for row in rows}
    value = json.loads((tmp_path / "out" / "annotations.json").read_text())
    of_large = [each for each in value["annotations"] if each["image_id"] == 1]
    assert {each["attributes"]["number"]: each["area"] for each in of_large} == areas
    numbers = tifffile.imread(tmp_path / "out" / "label_images" / "masks" / "large.tif")
    found, counts = np.unique(numbers[numbers > 0], return_counts=True)
    assert dict(zip(found.tolist(), counts.tolist(), strict=True)) == areas


def test_an_interrupted_command_continues(pictures, finder, tmp_path, capsys):
    finder.stop_after = 9  # the small picture, and two rows of three tiles
    assert detect(pictures, *TILES, out=tmp_path / "out") == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err
    finder.stop_after = None
    assert detect(pictures, *TILES, out=tmp_path / "out") == 0
    assert "taken over from an earlier run: 2 rows of tiles, where 2 remain" in capsys.readouterr().out
    assert len(finder.seen) == 1
    assert len(finder.seen_tiles) == 8 + 6 + 1
    assert detect(pictures, *TILES, out=tmp_path / "out") == 0
    assert "taken over from an earlier run: 2 pictures" in capsys.readouterr().out
    assert len(finder.seen_tiles) == 15, "the third time, nothing is detected"
    assert detect(pictures, *TILES, out=tmp_path / "whole") == 0
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole")


def test_other_tiles_need_another_folder(pictures, finder, tmp_path, capsys):
    assert detect(pictures, *TILES, out=tmp_path / "out") == 0
    capsys.readouterr()
    assert detect(pictures, "--tiles", 192, out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "tile 128 there, 192 now" in error
    assert error.count("\n") == 1
    assert detect(pictures, "--threshold", 0.2, *TILES, out=tmp_path / "out") == 0
    assert len(finder.seen_tiles) == 13, "another threshold needs no detection"


def test_a_large_picture_that_cannot_be_read_costs_itself_only(pictures, finder, tmp_path, capsys):
    damaged = pictures / "damaged.tif"
    tifffile.imwrite(damaged, np.zeros((400, 300), np.uint8), tile=(64, 64), compression="zlib")
    contents = bytearray(damaged.read_bytes())
    with tifffile.TiffFile(damaged) as tiff:
        start = tiff.pages[0].dataoffsets[-1]
    contents[start : start + 8] = b"x" * 8
    damaged.write_bytes(contents)
    assert detect(pictures, *TILES, out=tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "1 picture cannot be read and had to be left out\nnot read: image " in printed.err
    assert "damaged.tif" in printed.err
    assert "2 pictures, " in printed.out
    seen = len(finder.seen_tiles)
    assert detect(pictures, *TILES, out=tmp_path / "out") == 1
    assert len(finder.seen_tiles) - seen < 12, "its good rows are not detected again, nor are the other picture's"


def test_pictures_of_a_map_have_its_coordinates_whatever_their_size(finder, tmp_path):
    save_blobs(tmp_path / "a.png", (1, 0.9, 4, 6, 12, 26))
    many_blobs(tmp_path / "b.png")
    (tmp_path / "maps").mkdir()
    for name in "ab":
        geotiff(tmp_path / "maps" / f"{name}.tif", np.asarray(Image.open(tmp_path / f"{name}.png")), photometric="rgb")
    assert detect(tmp_path / "maps", *TILES, "--to", "csv,geojson,label_images", out=tmp_path / "out") == 0
    assert detect(tmp_path / "maps", "--tiles", "off", "--to", "geojson,label_images", out=tmp_path / "whole") == 0
    read = {
        path: json.loads((tmp_path / path).read_text())
        for path in (
            "out/geojson/a.geojson",
            "out/geojson/b.geojson",
            "whole/geojson/a.geojson",
            "whole/geojson/b.geojson",
        )
    }
    assert {value["crs"]["properties"]["name"] for value in read.values()} == {"urn:ogc:def:crs:EPSG::32633"}
    (object_of_a,) = read["out/geojson/a.geojson"]["features"]
    corners = np.array(object_of_a["geometry"]["coordinates"][0])
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == ([500003, 3999994], [500013, 3999998])
    assert object_of_a["properties"]["class"] == "cat, small"
    assert object_of_a["properties"]["mask_score"] == object_of_a["properties"]["measurements"]["mask_score"]
    shapes = [
        sorted(str(each["geometry"]) for each in read[f"{out}/geojson/b.geojson"]["features"])
        for out in ("out", "whole")
    ]
    assert shapes[0] == shapes[1]
    worlds = {str(path.relative_to(tmp_path)): path.read_text().split() for path in tmp_path.rglob("*.tfw")}
    masks = {f"{out}/label_images/masks/{name}.tfw" for out in ("out", "whole") for name in "ab"}
    assert masks <= set(worlds)
    assert {Path(name).parent.parent.name for name in set(worlds) - masks} == {"classes"}
    assert {tuple(map(float, lines)) for lines in worlds.values()} == {(0.5, 0, 0, -0.5, 500000.25, 3999999.75)}
    with (tmp_path / "out" / "objects.csv").open() as file:
        row, *others = csv.DictReader(file)
    assert (row["centroid_map_x"], row["centroid_map_y"]) == ("500008", "3999996")
    assert all(each["centroid_map_x"] for each in others)


def test_a_picture_that_fails_in_its_further_tiles_costs_itself_only(pictures, finder, tmp_path, capsys, monkeypatch):
    def detect_views(model, pixels, plan, tiles, *arguments):
        if any(tile.column >= plan.shape[1] for tile in tiles):
            raise OSError("the disk is gone")
        return model.detect_views(pixels, plan, tiles, *arguments)

    monkeypatch.setattr(evaluation.large, "detect_views", detect_views)
    assert detect(pictures, *TILES, out=tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "not read: the disk is gone" in printed.err
    assert printed.out.splitlines()[-1].startswith("1 picture, ")


def test_what_a_label_image_of_a_large_picture_loses_is_said(pictures, finder, tmp_path, capsys, monkeypatch):
    """Each blob is found a second time, as another class."""

    def find_twice(image, find=finder._find):
        once = find(image)
        columns = {name: np.concatenate([values, values]) for name, values in once.items() if name != "masks"}
        classes = np.concatenate([once["class_ids"], once["class_ids"] % 3 + 1])
        return {**columns, "class_ids": classes, "masks": once["masks"] * 2}

    monkeypatch.setattr(finder, "_find", find_twice)
    assert detect(pictures, *TILES, "--to", "label_images", out=tmp_path / "out") == 0
    masks = [tifffile.imread(path) for path in sorted((tmp_path / "out" / "label_images" / "masks").glob("large*"))]
    printed = capsys.readouterr().out
    assert f"label_images: {(masks[0] > 0).sum():,} pixels are of several objects" in printed


def test_changed_and_removed_pictures(pictures, finder, tmp_path, capsys):
    assert detect(pictures, *TILES, out=tmp_path / "out") == 0
    many_blobs(pictures / "large.png", seed=3)
    assert detect(pictures, *TILES, out=tmp_path / "out") == 0
    assert "detected again, because its file has changed: " in capsys.readouterr().out
    assert len(finder.seen_tiles) == 26


@pytest.mark.parametrize(("arguments", "message"), [
    (("--tiles", "none"), "must be auto, off, or the side of a tile, 1 to"),
    (("--tiles", "0"), "must be auto, off, or the side of a tile, 1 to"),
    (("--tiles", "20000"), "must be auto, off, or the side of a tile, 1 to"),
    (("--scale", "0"), "must be a number above 0"),
])  # fmt: skip
def test_mistakes_in_arguments(arguments, message, pictures, tmp_path, capsys):
    with pytest.raises(SystemExit):
        detect(pictures, *arguments, out=tmp_path / "out")
    assert message in capsys.readouterr().err


def test_mistakes_that_the_plan_finds(pictures, finder, tmp_path, capsys):
    assert detect(pictures, "--tiles", "128", "--overlap", "100", out=tmp_path / "out") == 2
    assert "overlap must be 0 or more, and at most half of tile, got overlap=100" in capsys.readouterr().err
    assert detect(pictures, "--tiles", "16", out=tmp_path / "other") == 2
    assert "tile must be at least 128 pixels" in capsys.readouterr().err


############################################################
#  Processes
############################################################


def run(out: Path, pictures: Path, processes: int = 1, **options) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    arguments = ["--dataset", str(pictures), "--output", str(out), *TILES, "--to", "pictures,csv,coco,geojson"]
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), json.dumps(options), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )


def test_two_processes_find_what_one_does_also_after_a_kill(pictures, tmp_path):
    many_blobs(pictures / "other.png", seed=5)
    done = run(tmp_path / "one", pictures)
    assert done.returncode == 0, done.stderr
    (part,) = (tmp_path / "one" / "large").glob("large.png-*/detections/*")
    lines = part.read_bytes().splitlines(keepends=True)
    half = len(lines[1]) + len(lines[3]) // 2  # the second process has rows 1 and 3
    killed = run(tmp_path / "two", pictures, 2, kill=[1, half])
    assert killed.returncode != 0
    done = run(tmp_path / "two", pictures, 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "taken over from an earlier run" in done.stdout
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
    parts = sorted(path.name for path in (tmp_path / "two" / "large").glob("large.png-*/detections/*"))
    assert parts == ["part-000.jsonl", "part-001.jsonl"], "the rows of a picture are shared"


############################################################
#  With a network
############################################################

NUCLEI = Path(cli.__file__).parent / "assets" / "nuclei_1.jpg"


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    """A part of a picture of nuclei, in 2 x 2 tiles of 192."""
    path = tmp_path_factory.mktemp("nuclei") / "part.png"
    Image.open(NUCLEI).crop((0, 0, 250, 256)).save(path)
    return path


def test_a_model_detects_in_tiles(nuclei, tmp_path, capsys):
    arguments = ["--dataset", str(nuclei), "--model", "nuclei", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert custom.main(["detect", *arguments, "--tiles", "160", "--overlap", "64"]) == 0
    assert "in tiles of 160 x 160 pixels that overlap by 64, scaled by 2" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results) > 5
    assert (tmp_path / "out" / "pictures" / "part.jpg").is_file()


def test_the_demo_detects_in_tiles(nuclei, tmp_path, capsys):
    small = tmp_path / "small.png"
    Image.open(NUCLEI).crop((0, 0, 120, 128)).save(small)
    arguments = [str(nuclei), str(small), "--model", "nuclei", "--output", str(tmp_path), "--device", "cpu"]
    assert demo.main([*arguments, "--tiles", "160", "--overlap", "64", "--threshold", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "1 picture in tiles of 160 x 160 pixels" in printed
    assert "instances in 2 images" in printed
    entries = json.loads((tmp_path / "detections.json").read_text())
    assert {Path(entry["file_name"]).name for entry in entries} == {"part.png", "small.png"}
    assert {tuple(entry["segmentation"]["size"]) for entry in entries if "part" in entry["file_name"]} == {(256, 250)}
    with Image.open(tmp_path / "part.jpg") as picture:
        assert picture.size == (250, 256)
        drawn = np.asarray(picture).astype(int)
    assert np.abs(drawn - np.asarray(Image.open(nuclei).convert("RGB"))).max() > 50, "masks are drawn"


def test_a_huge_image_gets_a_small_picture_in_the_demo(nuclei, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "MOST_DRAWN", 1000)
    monkeypatch.setattr("evaluation.large_outputs.PREVIEW", 100)
    arguments = [str(nuclei), "--model", "nuclei", "--output", str(tmp_path), "--device", "cpu"]
    assert demo.main([*arguments, "--tiles", "160", "--overlap", "64"]) == 0
    with Image.open(tmp_path / "part.jpg") as picture:
        assert picture.size == (84, 86), "every third pixel"


def test_a_path_is_detected_in_as_its_pixels_are(slide):
    model = tiny_model()
    pixels = np.asarray(Image.open(slide))[:200, :150]
    expected = texts_of(detect_tiled(model, pixels, 128, 32))
    Image.fromarray(pixels).save(slide.with_name("part.png"))
    assert texts_of(detect_tiled(model, slide.with_name("part.png"), 128, 32)) == expected != []
    with pytest.raises(FileNotFoundError, match=r"gone\.png: there is no such file"):
        detect_tiled(model, str(slide.with_name("gone.png")))


############################################################
#  Slides and Zarr
############################################################


def test_slides_and_zarr_are_pictures(tmp_path, finder, capsys):
    save_blobs(tmp_path / "slides" / "a.png")
    (tmp_path / "slides" / "b.ndpi").write_bytes(b"no slide")
    (tmp_path / "slides" / "c.zarr" / "0").mkdir(parents=True)
    (tmp_path / "slides" / "c.zarr" / ".zattrs").write_text("{}")
    (tmp_path / "slides" / "c.zarr" / "0" / "d.png").write_bytes(b"a part of the array")
    found = find_pictures([str(tmp_path / "slides")])
    assert [picture.name for picture in found.pictures] == ["a.png", "b.ndpi", "c.zarr"]
    assert [picture.name for picture in find_pictures([str(tmp_path / "slides" / "c.zarr")]).pictures] == ["c.zarr"]
    assert detect(tmp_path / "slides", out=tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "1 picture, 0 objects" in printed.out
    assert "2 pictures cannot be read and had to be left out" in printed.err
    assert printed.err.count("not read: ") == 2


def test_an_ome_zarr_is_detected_in(slide, finder, tmp_path, capsys):
    zarr = pytest.importorskip("zarr", reason="OME-Zarr needs the package zarr")
    folder = tmp_path / "slides" / "slide.zarr"
    array = zarr.create_array(str(folder), shape=(3, 272, 200), chunks=(3, 64, 64), dtype="uint8")
    array[:] = np.moveaxis(np.asarray(Image.open(slide)), 2, 0)
    assert detect(folder.parent, *TILES, "--to", "csv,coco,label_images,yolo", out=tmp_path / "out") == 0
    assert "yolo: left out: slide.zarr is a folder" in capsys.readouterr().out
    assert (tmp_path / "out" / "label_images" / "masks" / "slide.zarr").is_dir()
    assert len(finder.seen_tiles) == 13
    assert detect(folder.parent, "--tiles", "off", out=tmp_path / "whole") == 1
    assert "slide.zarr is a directory; a folder of Zarr is read by regions only" in capsys.readouterr().err
