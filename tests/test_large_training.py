"""Trainings and evaluations on large pictures: parts of them are read, and the numbers stay those of the whole."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy
import skimage
import tifffile
from helpers import TinyConfig, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cli
import coco
import custom
import data.dataset
import data.large
import evaluation.large
import tiles
import utils
from data.check import check
from data.crops import cut_out, extents, turned_size
from data.dataset import Dataset, Instances
from data.formats import label_images
from data.images import ImageReader, image_size, read_image, reads_by_regions
from data.large import RegionImage, open_large, resize_region
from data.loader import make_loader
from data.plan import facts_of, make_plan
from data.recognise import open_records
from data.record_dataset import RecordDataset
from data.records import combine, even_odd
from data.samples import TrainingData
from evaluation.detect import detect_dataset, identify
from evaluation.large import TileOptions
from evaluation.results import ground_truth
from evaluation.run import evaluate_dataset, evaluate_to_folder, evaluation_callback
from evaluation.tiled import TiledDetector, estimate_seconds, in_tiles, load_picture, tile_notes
from model import MaskRCNN
from roialign.paste import crop_to_rle


@pytest.fixture
def small_is_large(monkeypatch):
    """Pictures of 64 x 64 pixels count as large."""
    monkeypatch.setattr(data.large, "LEAST_PIXELS", 1 << 12)
    monkeypatch.setattr(data.dataset, "LEAST_PIXELS", 1 << 12)
    forget()
    yield
    forget()


def forget():
    for function in (data.large._opened, data.large._is_large, data.large._rule):
        function.cache_clear()


def blobs(height: int, width: int, seed: int = 0, dtype=np.uint8) -> np.ndarray:
    """A picture of smooth noise [H, W, 3]."""
    rng = np.random.default_rng(seed)
    noise = scipy.ndimage.gaussian_filter(rng.random((height, width, 3)), (2, 2, 0))
    noise = (noise - noise.min()) / np.ptp(noise)
    return (noise * np.iinfo(dtype).max).astype(dtype)


def rectangles(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    """Masks bool [H, W, N] of rectangles with a notch."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((height, width, count), bool)
    for i in range(count):
        (y, x), (h, w) = rng.integers(0, [height - 8, width - 8]), rng.integers(6, 60, 2)
        masks[y : y + h, x : x + w, i] = True
        masks[y : y + 2, x : x + 2, i] = False
    return masks


class Files(Dataset):
    """Pictures in files, with RLEs."""

    def __init__(self, paths, count=12):
        super().__init__()
        self.add_class("files", 1, "thing")
        for number, path in enumerate(paths):
            height, width = image_size(path).shown
            self.add_image("files", number, str(path), height=height, width=width)
            self.image_info[-1]["rles"] = utils.mask_to_rle(rectangles(height, width, count, seed=number))
        self.prepare()

    def load_instances(self, image_id):
        rles = self.image_info[image_id]["rles"]
        return Instances(np.ones(len(rles), np.int32), rles)


class Whole(Files):
    """The same, with a load_image of its own, so that nothing is read by regions."""

    def load_image(self, image_id):
        return super().load_image(image_id)


def settings(**options) -> TinyConfig:
    options = {
        "NUM_CLASSES": 2, "CLASS_NAMES": ("BG", "thing"), "IMAGE_RESIZE_MODE": "crop", "IMAGE_MIN_DIM": 64,
        "IMAGE_MAX_DIM": 64, "GPU_COUNT": 0, "WORKERS": 0, **options,
    }  # fmt: skip
    return TinyConfig(**options)


def assert_equal_samples(first, second):
    assert first.window == second.window
    assert first.shape == second.shape
    assert first.original == second.original
    np.testing.assert_array_equal(first.image.numpy(), second.image.numpy())
    for name, value in first.targets._asdict().items():
        other = getattr(second.targets, name)
        for a, b in zip(*([value, other] if name == "masks" else ([value], [other])), strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b)), name


############################################################
#  Parts of a resized image
############################################################


@given(
    old=st.tuples(*[st.integers(1, 60)] * 2), new=st.tuples(*[st.integers(1, 90)] * 2),
    part=st.tuples(*[st.floats(0, 1)] * 4),
    resampling=st.sampled_from(["opencv", "pillow", "torch", "skimage"]),
)  # fmt: skip
def test_a_part_of_a_resized_image_is_that_of_the_whole(old, new, part, resampling):
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    height, width = (1 + int(share * (side - 1)) for share, side in zip(part[:2], new, strict=True))
    y, x = (int(share * (side - kept)) for share, side, kept in zip(part[2:], new, (height, width), strict=True))
    whole = utils.resize_pixels(image, new, resampling)[y : y + height, x : x + width]
    found = resize_region(lambda y1, x1, y2, x2: image[y1:y2, x1:x2], old, new, (y, x, height, width), resampling)
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found, whole)


def test_only_what_a_part_needs_is_read():
    regions = []

    def read(*region):
        regions.append(region)
        return np.zeros((region[2] - region[0], region[3] - region[1], 3), np.uint8)

    resize_region(read, (1000, 1000), (2000, 500), (1000, 100, 64, 64))
    assert regions == [(499, 200, 533, 328)]


############################################################
#  Crops of masks
############################################################


def test_extents_and_crops_of_chosen_masks():
    masks = np.concatenate([rectangles(90, 70, 5), np.zeros((90, 70, 1), bool)], axis=2)
    for form in (masks, utils.mask_to_rle(masks)):
        boxes = extents(form)
        assert boxes.dtype == np.float32
        assert boxes.tolist() == utils.extract_bboxes(masks).tolist()
        chosen = np.array([3, 1])
        wanted = np.concatenate([boxes[chosen, :2], boxes[chosen, 2:] - 3], axis=1)
        for crop, i, (y1, x1, y2, x2) in zip(cut_out(form, chosen, wanted), chosen, wanted.astype(int), strict=True):
            assert (crop.y, crop.x) == (y1, x1)
            np.testing.assert_array_equal(crop.mask, masks[y1:y2, x1:x2, i])
    assert extents([]).shape == extents(masks[..., :0]).shape == (0, 4)
    assert [turned_size((3, 5, 3), turns) for turns in range(-1, 3)] == [(5, 3), (3, 5), (5, 3), (3, 5)]


def test_a_code_is_cut_at_a_box():
    mask = np.zeros((30, 20), bool)
    mask[3:28, 5:15] = True
    code = utils.mask_to_rle(mask)
    assert utils.rle_to_crop(code, (0, 0, 5, 7))[:2] == (3, 5)
    y, x, crop = utils.rle_to_crop(code, (10, 8, 40, 12))
    assert (y, x, crop.shape, crop.all()) == (10, 8, (18, 4), True)
    assert utils.rle_to_crop(code, (0, 0, 3, 20))[2].shape == (0, 0)


@pytest.mark.parametrize("operation", [np.logical_or, np.logical_xor, np.greater])
def test_masks_are_combined_in_a_small_canvas(operation):
    masks = rectangles(80, 60, 4, seed=2)
    masks[..., 3] = False
    for chosen in ([0, 1], [0, 1, 2], [3, 0], [0, 3], [3], [2]):
        expected = masks[..., chosen[0]]
        for i in chosen[1:]:
            expected = operation(expected, masks[..., i])
        codes = utils.mask_to_rle(masks[..., chosen])
        assert combine(codes, operation, 80, 60) == utils.mask_to_rle(expected)
    assert even_odd([], 80, 60) == utils.polygons_to_rle([], 80, 60)


############################################################
#  Pictures
############################################################


def write_tiff(path: Path, values: np.ndarray, **options) -> Path:
    kind = "rgb" if values.ndim == 3 else "minisblack"
    options = {"tile": (48, 32), "compression": "zlib", "photometric": kind, **options}
    tifffile.imwrite(path, values, **options)
    return path


def write_sparse_tiff(path: Path, side: int, squares: dict[tuple[int, int], int], tile: int = 512) -> Path:
    """A gray TIFF of side x side pixels in which only some tiles were written.

    squares: {(row, column) of a tile: its value}.
    """
    count = -(-side // tile)
    offsets, sizes, body = [0] * count**2, [0] * count**2, b""
    start = 8
    for (row, column), value in squares.items():
        offsets[row * count + column], sizes[row * count + column] = start + len(body), tile * tile
        body += bytes([value]) * tile * tile
    tables = start + len(body)
    directory = tables + 8 * count**2
    entries = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, count**2, tables), (325, 4, count**2, tables + 4 * count**2),
    ]  # fmt: skip
    data = b"II*\0" + struct.pack("<I", directory) + body
    data += struct.pack(f"<{count**2}I", *offsets) + struct.pack(f"<{count**2}I", *sizes)
    data += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    path.write_bytes(data)
    return path


WRITTEN = {
    "tiles": lambda path: write_tiff(path, blobs(210, 170)),
    "strips": lambda path: write_tiff(path, blobs(210, 170), tile=None, rowsperstrip=7),
    "raw": lambda path: write_tiff(path, blobs(210, 170), tile=None, compression=None),
    "gray": lambda path: write_tiff(path, blobs(210, 170)[..., 0]),
    "deep": lambda path: write_tiff(path, blobs(210, 170, dtype=np.uint16)[..., 1] // 16),
    "turned": lambda path: write_tiff(path, blobs(210, 170), extratags=[(274, 3, 1, 6, False)]),
}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("pixel_range", ["depth", "percentiles"])
def test_regions_have_the_pixels_of_the_picture(tmp_path, monkeypatch, small_is_large, kind, pixel_range):
    path = WRITTEN[kind](tmp_path / "a.tif")
    reader = ImageReader()
    reader.inspect([path], pixel_range=pixel_range)
    image, whole = open_large(path, reader), reader.read(path)
    assert image.shape == whole.shape
    for region in ((0, 0, 40, 50), (100, 60, *whole.shape[:2]), (0, 0, *whole.shape[:2])):
        y1, x1, y2, x2 = region
        np.testing.assert_array_equal(image.read(*region), whole[y1:y2, x1:x2])
    assert image.bits == (16 if kind == "deep" else 8)
    assert open_large(path, reader) is image, "it stays open"
    monkeypatch.setattr(data.large.os, "getpid", lambda: 1)
    assert open_large(path, reader) is not image, "a fork opens it anew"


def test_small_pictures_and_others_are_decoded_as_a_whole(tmp_path, small_is_large):
    reader = ImageReader()
    Image.fromarray(blobs(90, 90)).save(tmp_path / "a.png")
    write_tiff(tmp_path / "small.tif", blobs(50, 60))
    assert open_large(tmp_path / "a.png", reader) is None
    assert open_large(tmp_path / "small.tif", reader) is None
    assert open_large(tmp_path / "missing.tif", reader) is None
    assert not reads_by_regions(tmp_path / "a.png")
    (tmp_path / "damaged.tif").write_bytes(b"II*\0 this is none")
    assert open_large(tmp_path / "damaged.tif", reader) is None
    write_tiff(tmp_path / "stored.tif", blobs(90, 90), extratags=[(274, 3, 1, 6, False)])
    assert open_large(tmp_path / "stored.tif", reader, upright=False) is None, "its labels are of the stored pixels"


def test_one_strip_that_is_packed_is_decoded_as_a_whole(tmp_path, monkeypatch, small_is_large):
    path = write_tiff(tmp_path / "a.tif", blobs(210, 170), tile=None, rowsperstrip=210)
    assert reads_by_regions(path), "it is not large"
    monkeypatch.setattr("data.tiff.MOST_PIXELS_OF_PIECE", 20_000)
    assert not reads_by_regions(path)
    assert open_large(path, ImageReader()) is None


def test_a_data_set_with_its_own_load_image_is_asked_for_whole_images(tmp_path, small_is_large):
    path = write_tiff(tmp_path / "a.tif", blobs(210, 170))
    assert isinstance(Files([path]).load_regions(0), RegionImage)
    assert Whole([path]).load_regions(0) is None
    dataset = Files([path])
    dataset.add_image("files", "none", None)
    dataset.prepare()
    assert dataset.load_regions(1) is None


def test_a_sample_of_a_picture_is_spread_over_it(tmp_path, small_is_large):
    gradient = np.tile(np.linspace(0, 255, 640).astype(np.uint8)[:, None, None], (1, 700, 3))
    image = open_large(write_tiff(tmp_path / "a.tif", gradient), ImageReader())
    sample = image.sample()
    assert sample.shape == (512, 512, 3)
    assert sample.mean() == pytest.approx(gradient.mean(), abs=1)
    tiny = open_large(write_tiff(tmp_path / "b.tif", blobs(9, 500)), ImageReader())
    assert tiny.sample().shape == (9, 480, 3)


############################################################
#  Training
############################################################

AUGMENTED = {
    "plain": {},
    "microscopy": {
        "SCALE_JITTER": (0.8, 1.25), "QUARTER_TURNS": True, "HORIZONTAL_FLIP": 0.5, "VERTICAL_FLIP": 0.5,
        "BRIGHTNESS_JITTER": 0.2, "CONTRAST_JITTER": 0.2,
    },
    "enlarged": {"IMAGE_MIN_SCALE": 2.0, "QUARTER_TURNS": True},
    "pasted": {"COPY_PASTE": 0.9, "SCALE_JITTER": (0.5, 2.0), "COLOR_JITTER": 0.4},
    "mini masks": {"USE_MINI_MASK": True, "QUARTER_TURNS": True},
    "many": {"MAX_GT_INSTANCES": 2},
    "matterport": {"DIALECT": "matterport", "SCALE_JITTER": (0.8, 1.25), "QUARTER_TURNS": True},
    "torchvision": {"DIALECT": "torchvision", "SCALE_JITTER": (0.8, 1.25)},
}  # fmt: skip


@pytest.mark.parametrize("kind", AUGMENTED)
def test_samples_by_regions_are_those_of_the_whole_picture(tmp_path, small_is_large, kind):
    paths = [write_tiff(tmp_path / f"{i}.tif", blobs(150 + 31 * i, 170, seed=i)) for i in range(2)]
    config = settings(**AUGMENTED[kind])
    by_regions, whole = (TrainingData(dataset, config) for dataset in (Files(paths), Whole(paths)))
    objects = 0
    for seed in range(12):
        sample = by_regions.sample(seed % 2, seed)
        assert_equal_samples(sample, whole.sample(seed % 2, seed))
        objects += len(sample.targets.boxes)
    assert objects > 12


def test_masks_of_a_crop_are_those_of_the_picture(tmp_path, small_is_large):
    dataset = Files([write_tiff(tmp_path / "a.tif", blobs(150, 170))])
    config, masks = settings(HORIZONTAL_FLIP=0.0), rectangles(150, 170, 12, seed=0)
    for seed in range(12):
        sample = TrainingData(dataset, config).sample(0, seed)
        y, x, height, width = utils.plan_image((150, 170), config, rng=np.random.default_rng(seed)).region
        expected = masks[y : y + height, x : x + width]
        expected = expected[..., expected.any(axis=(0, 1))]
        assert sample.targets.boxes.tolist() == utils.extract_bboxes(expected).tolist()
        assert sample.targets.masks.pixels.sum() == expected.sum()


def test_workers_have_the_files_open_by_themselves(tmp_path, small_is_large):
    """A fork shares the place in an open file with its parent: then both would read what the other looked for."""
    paths = [write_tiff(tmp_path / f"{i}.tif", blobs(400, 300, seed=i)) for i in range(2)]
    config = settings(WORKERS=2, IMAGES_PER_GPU=2, STEPS_PER_EPOCH=6)
    data_of = TrainingData(Files(paths), config)
    assert data_of.dataset.load_regions(0) is not None, "it is open before the workers start"
    loader, whole = make_loader(data_of), TrainingData(Whole(paths), config)
    for batch, picks in zip(loader, loader.order, strict=True):
        for image, (index, seed) in zip(batch.images, picks, strict=True):
            np.testing.assert_array_equal(image.numpy(), whole.sample(index, seed).image.numpy())


def test_a_sample_reads_its_crop_and_decodes_its_masks_only(tmp_path, monkeypatch, small_is_large):
    path = write_tiff(tmp_path / "a.tif", blobs(600, 700))
    dataset = Files([path], count=60)
    data_of = TrainingData(dataset, settings(QUARTER_TURNS=True, SCALE_JITTER=(0.8, 1.25)))
    read, cut = [], []
    read_region, rle_to_crop = RegionImage.read, utils.rle_to_crop

    def count_read(self, *region):
        read.append((region[2] - region[0]) * (region[3] - region[1]))
        return read_region(self, *region)

    def count_cut(rle, box=None):
        y, x, mask = rle_to_crop(rle, box)
        cut.append(mask.size)
        return y, x, mask

    monkeypatch.setattr(RegionImage, "read", count_read)
    monkeypatch.setattr(utils, "rle_to_crop", count_cut)
    monkeypatch.setattr(Dataset, "load_image", lambda self, image_id: pytest.fail("it is decoded as a whole"))
    for seed in range(8):
        read.clear()
        cut.clear()
        sample = data_of.sample(0, seed)
        assert len(read) == 1
        assert read[0] <= (64 / 0.8 + 3) ** 2
        assert len(cut) < 30, "of 60"
        assert max(cut, default=0) <= (64 / 0.8 + 2) ** 2
        assert len(sample.targets.boxes) <= len(cut)


def test_augmentation_of_a_users_own_gets_whole_images(tmp_path, small_is_large):
    path, seen = write_tiff(tmp_path / "a.tif", blobs(210, 170)), []

    def note(image, masks):
        seen.append(image.shape)
        return image, masks

    TrainingData(Files([path]), settings(), augmentation=note).sample(0, 1)
    assert seen == [(210, 170, 3)]


def test_exact_boxes_say_which_masks_are_seen(tmp_path, monkeypatch, small_is_large):
    records = polygon_set(tmp_path, write_tiff(tmp_path / "a.tif", blobs(300, 260)), [(20, 30), (200, 220)], 20)
    check(records)
    dataset = RecordDataset(records)
    expected = [TrainingData(dataset, settings()).sample(0, seed) for seed in range(6)]
    assert {len(sample.targets.boxes) for sample in expected} == {0, 1}
    monkeypatch.setattr(utils, "rle_to_bbox", lambda rle: pytest.fail("its box is known"))
    for seed, sample in enumerate(expected):
        assert_equal_samples(TrainingData(dataset, settings()).sample(0, seed), sample)


def polygon_set(folder: Path, path: Path, places, side: int):
    """Records of a picture with squares at (y, x), in COCO's format."""
    height, width = image_size(path).shown
    squares = [[x, y, x + side, y, x + side, y + side, x, y + side] for y, x in places]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [square], "area": side**2,
         "bbox": [square[0], square[1], side, side]}
        for i, square in enumerate(squares, 1)
    ]  # fmt: skip
    contents = {
        "images": [{"id": 1, "file_name": path.name, "height": height, "width": width}],
        "annotations": annotations, "categories": [{"id": 1, "name": "cell"}],
    }  # fmt: skip
    (folder / "annotations.json").write_text(json.dumps(contents))
    return open_records(folder)


############################################################
#  Pictures that no memory should hold
############################################################

HUGE = 40_000


@pytest.fixture
def huge(tmp_path):
    """Records of a sparse picture of 40,000 x 40,000 pixels with 300 squares."""
    forget()
    folder = tmp_path / "set"
    folder.mkdir()
    path = write_sparse_tiff(folder / "slide.tif", HUGE, {(40, 40): 90, (40, 41): 120, (3, 70): 200})
    rng = np.random.default_rng(0)
    places = [(20_500, 20_500), *rng.integers(0, HUGE - 40, (299, 2)).tolist()]
    yield polygon_set(folder, path, places, 40)
    forget()


def test_a_huge_sparse_picture_is_checked_planned_and_trained(huge, monkeypatch):
    monkeypatch.setattr("data.images.decode", lambda *arguments: pytest.fail("it is decoded as a whole"))
    read, read_region = [], RegionImage.read

    def count(self, *region):
        read.append((region[2] - region[0]) * (region[3] - region[1]))
        return read_region(self, *region)

    monkeypatch.setattr(RegionImage, "read", count)
    report = check(huge)
    assert (report.faults["error"], len(report.table.classes)) == ([], 300)
    assert sum(read) <= 512 * 512
    plan = make_plan(facts_of(huge, report))
    assert plan.settings["IMAGE_RESIZE_MODE"] == "crop"
    assert plan.settings["DETECTION_MAX_INSTANCES"] == 100, "a tile shows a few of them"
    dataset = RecordDataset(huge)
    config = settings(**{**plan.settings, "IMAGES_PER_GPU": 1}, CLASS_NAMES=("BG", "cell"))
    assert dataset.load_regions(0).shape == (HUGE, HUGE, 3)
    read.clear()
    samples = [TrainingData(dataset, config).sample(0, seed) for seed in range(5)]
    assert sum(read) <= 5 * (2 * config.IMAGE_MIN_DIM) ** 2
    assert all(sample.original == (HUGE, HUGE) for sample in samples)


def test_a_huge_picture_as_a_whole_is_refused_in_a_sentence(huge):
    check(huge)
    dataset = RecordDataset(huge)
    with pytest.raises(ValueError, match=r"slide\.tif: 40000 x 40000 pixels are more than .* have to be tiled TIFF"):
        TrainingData(dataset, settings(IMAGE_RESIZE_MODE="square", CLASS_NAMES=("BG", "cell"))).sample(0)
    with pytest.raises(ValueError, match=r"slide\.tif has 40000 x 40000 pixels, and is too large to be taken as a"):
        dataset.load_regions(0).read(0, 0, HUGE, HUGE)


def test_other_huge_pictures_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data.images.MAX_IMAGE_PIXELS", 5000)
    Image.fromarray(blobs(90, 90)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"decompression bomb.*have to be tiled TIFF files"):
        image_size(tmp_path / "a.png", 5000)
    path = write_tiff(tmp_path / "a.tif", blobs(90, 90))
    assert image_size(path, 5000).shown == (90, 90)
    with pytest.raises(ValueError, match="decompression bomb"):
        read_image(path, 5000)


def test_check_shows_a_part_of_a_large_picture(tmp_path, capsys, small_is_large):
    folder = tmp_path / "set"
    folder.mkdir()
    path = write_tiff(folder / "a.tif", blobs(1300, 1400))
    polygon_set(folder, path, [(50, 60), (700, 900), (1200, 1300)], 30)
    assert custom.main(["check", "--dataset", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "1 picture" in capsys.readouterr().out
    page = (tmp_path / "out" / "check.html").read_text()
    assert "1400 x 1300, 3 objects; a part of 1024 x 1024" in page


############################################################
#  Label images
############################################################


def test_a_label_image_in_strips_is_that_of_the_whole(tmp_path, monkeypatch):
    numbers = skimage.measure.label(blobs(300, 200)[..., 0] > 140, connectivity=1).astype(np.uint16)
    numbers[numbers == 3] = 60_000
    path = write_tiff(tmp_path / "a_masks.tif", numbers)
    size, expected, count = label_images.read_objects(path)
    assert len(expected) == len(np.unique(numbers)) - 1 > 20
    assert count >= len(expected)
    monkeypatch.setattr(label_images, "STRIP", 200 * 37)
    monkeypatch.setattr(label_images, "read_numbers", lambda path: pytest.fail("it is read as a whole"))
    assert label_images.is_large(path)
    assert label_images.read_objects(path) == (size, expected, count)


############################################################
#  Evaluation
############################################################


def spots(image: np.ndarray) -> dict:
    """What a perfect detector finds: bright spots, with scores by their size."""
    labels, count = scipy.ndimage.label(image[..., 0] > 128)
    places = scipy.ndimage.find_objects(labels)
    boxes = [[y.start, x.start, y.stop, x.stop] for y, x in places]
    masks = [labels[place] == number for number, place in enumerate(places, 1)]
    scores = np.array([0.3 + (mask.sum() % 60) / 100 for mask in masks], np.float32)
    order = np.argsort(-scores, kind="stable")
    codes = [crop_to_rle(*box[:2], mask, image.shape[:2]) for box, mask in zip(boxes, masks, strict=True)]
    return {
        "rois": np.array(boxes, np.float32).reshape(-1, 4)[order], "class_ids": np.ones(count, np.int32),
        "scores": scores[order], "mask_ious": np.full(count, 0.9, np.float32),
        "mask_scores": 0.9 * scores[order], "masks": [codes[i] for i in order],
    }  # fmt: skip


class Spots(Dataset):
    """Pictures with bright discs of up to 40 pixels: of 390 x 320 pixels, and smaller ones."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.add_class("spots", 1, "thing")
        for number, (height, width) in enumerate([(390, 320), (120, 100), (330, 260), (100, 130)]):
            image = np.zeros((height, width, 3), np.uint8)
            rng = np.random.default_rng(number)
            for y in range(25, height - 24, 60):
                for x in range(25, width - 24, 60):
                    radius = rng.integers(6, 20)
                    rows, columns = np.ogrid[:height, :width]
                    image[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 255
            path = write_tiff(folder / f"{number}.tif", image)
            self.add_image("spots", number, str(path), height=height, width=width)
        self.prepare()

    def load_instances(self, image_id):
        masks = spots(read_image(self.image_info[image_id]["path"]))["masks"]
        return Instances(np.ones(len(masks) - 1, np.int32), masks[1:])  # the surest one is wrong


@pytest.fixture
def detecting(tmp_path, monkeypatch, small_is_large):
    """A data set, and a network that finds spots, in one piece and in tiles. Each is counted."""
    calls = {"whole": 0, "tiles": 0}

    def detect_batches(self, batches, dtype="float32", masks="rle"):
        self.seconds = {"network": 1.0}
        for batch in batches:
            calls["whole"] += len(batch)
            yield [spots(image) for image in batch]

    def detect_tiles(model, inputs, dtype):
        calls["tiles"] += len(inputs)
        return [spots(part.image) for part in inputs]

    monkeypatch.setattr(MaskRCNN, "detect_batches", detect_batches)
    monkeypatch.setattr(
        MaskRCNN, "detect", lambda self, images, **options: next(detect_batches(self, [images], **options))
    )
    monkeypatch.setattr(tiles, "_detect", detect_tiles)
    config = {"NUM_CLASSES": 2, "CLASS_NAMES": ("BG", "thing"), "IMAGE_RESIZE_MODE": "pad64", "IMAGES_PER_GPU": 2}
    return Spots(tmp_path), tiny_model(**config, DETECTION_MAX_INSTANCES=150), calls


TILES = TileOptions(192, 64)


def test_evaluation_in_tiles_is_that_in_one_piece(detecting):
    dataset, model, calls = detecting
    expected = evaluate_dataset(model, dataset, verbose=False)
    assert calls == {"whole": 4, "tiles": 0}
    assert 0 < expected["mask AP"] < 1
    detector = in_tiles(model, dataset, options=TILES)
    assert list(detector.shapes) == [0, 2]
    found = evaluate_dataset(detector, dataset, verbose=False)
    assert calls["whole"] == 6, "the two small ones"
    assert calls["tiles"] == 6 + 6
    assert found.pop("max_dets") >= expected.pop("max_dets")
    assert found == expected


def test_results_and_report_of_an_evaluation_in_tiles(detecting, tmp_path, monkeypatch, capsys):
    dataset, model, calls = detecting
    whole = detect_dataset(model, dataset)
    detector = in_tiles(model, dataset, options=TILES)
    found = evaluate_to_folder(detector, dataset, tmp_path / "tiles")
    printed = capsys.readouterr().out
    assert "2 pictures in tiles of 192 x 192 pixels that overlap by 64" in printed
    assert "the best 150 detections of a class in a picture count: tiles may find any number" in printed
    for name, expected in zip(("bbox.json", "segm.json"), whole, strict=True):
        results = json.loads((tmp_path / "tiles" / name).read_text())
        texts, expected = (sorted(json.dumps(entry, sort_keys=True) for entry in part) for part in (results, expected))
        assert texts == expected
    page = (tmp_path / "tiles" / "report.html").read_text()
    assert "in tiles of 192 x 192" in page
    assert "No picture:" not in page
    before = dict(calls)
    monkeypatch.setattr("evaluation.run.write_report", lambda *arguments: None)
    again = evaluate_to_folder(detector, dataset, tmp_path / "tiles")
    assert calls == before, "nothing is detected again"
    assert again.metrics == found.metrics
    with pytest.raises(ValueError, match="holds another evaluation: tiles"):
        evaluate_to_folder(model, dataset, tmp_path / "tiles", verbose=False)


def test_all_that_tiles_find_counts(detecting, monkeypatch):
    dataset, model, _ = detecting
    monkeypatch.setattr("evaluation.run.USUAL_MAX_DETS", 4)
    model.config.DETECTION_MAX_INSTANCES = 9  # as many as a tile has, and the picture has 30
    detector = in_tiles(model, dataset, options=TILES)
    assert evaluate_dataset(detector, dataset, verbose=False)["max_dets"] == 30
    assert evaluate_dataset(detector, dataset, max_dets=20, verbose=False)["max_dets"] == 20
    assert evaluate_dataset(model, dataset, verbose=False)["max_dets"] == 9


def test_validation_in_a_training_takes_tiles_by_itself(detecting, monkeypatch, capsys):
    dataset, model, calls = detecting
    monkeypatch.setattr("evaluation.tiled.BY_MODEL", TILES)
    monkeypatch.setattr("evaluation.large.MOST_TILES", 0.1)
    expected = evaluate_dataset(in_tiles(model, dataset), dataset, verbose=False)
    callback = evaluation_callback(dataset)
    callback.check(model)
    assert "in tiles of" in capsys.readouterr().out
    assert calls["tiles"] > 0
    assert callback(model) == expected


def test_tiles_belong_to_what_is_evaluated(detecting):
    dataset, model, _ = detecting
    whole = identify(model, dataset, [0, 1], "float32")
    tiled = identify(in_tiles(model, dataset, options=TILES), dataset, [0, 1], "float32")
    assert tiled.pop("tiles") == {"tile": 192, "overlap": 64, "scale": 1.0}
    assert tiled == whole
    assert "tiles" not in whole, "digests of earlier releases stay"


@pytest.mark.parametrize("options", [TileOptions("off"), TileOptions(400)])
def test_what_a_user_says_of_tiles_counts_to_the_end(detecting, tmp_path, monkeypatch, options):
    """Evaluation asks once more which images need tiles, and by the model alone some do."""
    dataset, model, calls = detecting
    monkeypatch.setattr(evaluation.large, "SIDE", 128)
    assert in_tiles(model, dataset).shapes
    detector = in_tiles(model, dataset, options=options)
    identity = identify(detector, dataset, dataset.image_ids.tolist(), "float32")
    assert "tiles" not in identity
    found = evaluate_to_folder(detector, dataset, tmp_path / "out", verbose=False, identity=identity)
    assert calls == {"whole": 4, "tiles": 0}
    assert found.metrics["max_dets"] == model.config.DETECTION_MAX_INSTANCES, "no image has any number"
    assert tile_notes(in_tiles(model, dataset, options=TileOptions("off", 100)), dataset) == [
        "--overlap changes nothing, as no picture is detected in tiles: --tiles off says so"
    ]


def test_only_images_that_need_tiles_are_read_by_regions(detecting):
    dataset, model, _ = detecting
    detector = in_tiles(model, dataset, options=TILES)
    kinds = [type(load_picture(detector, dataset, image_id)) for image_id in range(4)]
    assert kinds == [RegionImage, np.ndarray, RegionImage, np.ndarray]
    assert in_tiles(model, dataset, [1, 3]) is model
    other = object()
    assert in_tiles(other, dataset, options=TILES) is other, "no MaskRCNN"
    assert isinstance(detector, TiledDetector)
    assert in_tiles(detector, dataset, options=TILES) is detector


def test_images_of_unknown_size_are_asked_for_it(detecting):
    dataset, model, _ = detecting
    for info in dataset.image_info:
        del info["height"], info["width"]
    dataset.image_info[3]["path"] = None
    assert list(in_tiles(model, dataset, options=TILES).shapes.values()) == [(390, 320), (330, 260)]


def test_the_time_of_detection_is_estimated_by_a_tile(detecting, monkeypatch):
    dataset, model, calls = detecting
    monkeypatch.setattr("evaluation.tiled.BY_MODEL", TILES)
    assert estimate_seconds(model, dataset, 1) > 0
    assert calls == {"whole": 1, "tiles": 0}
    monkeypatch.setattr(in_tiles, "__defaults__", (None, TILES, False))
    assert estimate_seconds(model, dataset, 0) > 0
    assert calls == {"whole": 2, "tiles": 0}, "one tile, as an image"


def test_tiles_are_arguments_of_evaluate_only():
    parser = coco.build_parser()
    cli.check_arguments(parser.parse_args(["train"]), parser, coco._ARGUMENTS_OF)
    tiles = ["--tiles", "512", "--overlap", "64", "--scale", "2"]
    cli.check_arguments(parser.parse_args(["evaluate", *tiles]), parser, coco._ARGUMENTS_OF)
    for arguments in (["--tiles", "512"], ["--overlap", "64"], ["--scale", "2"]):
        with pytest.raises(ValueError, match=f"{arguments[0]} is an argument of evaluate only"):
            cli.check_arguments(parser.parse_args(["train", *arguments]), parser, coco._ARGUMENTS_OF)
    arguments = custom.build_parser().parse_args(["evaluate", "--dataset", "x", "--tiles", "off"])
    assert (arguments.tiles, arguments.overlap, arguments.scale) == ("off", None, None)


def test_ground_truth_of_a_huge_picture_needs_no_pixel(huge, monkeypatch):
    check(huge)
    monkeypatch.setattr("data.images.decode", lambda *arguments: pytest.fail("it is decoded"))
    contents = ground_truth(RecordDataset(huge))
    assert len(contents["annotations"]) == 300
    assert contents["images"][0]["height"] == HUGE
