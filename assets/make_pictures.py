"""README's pictures, from this project's own code, data and weights: the same bytes each time.

    python assets/make_pictures.py [--model CHECKPOINT] [--output FOLDER] [--threshold SCORE]

nuclei_detections.png: a microscopy image (NOTICE names its source), without and with detections of the embedded model.
The others show images of samples/shapes.py, from its subset test, which no training sees:
shapes.jpg: an example of demo.py, and the image in the pictures of stages. It is one of the first twelve images, chosen
    for the variety of its shapes, and drawn larger.
shapes_detections.png: the first four images, with detections of a mask score of 0.1 and more.
shapes_calibration.png: the detections in the first 200, and their IoU with an object of their class.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np

import cli
import demo
import stages
import utils
import visualize
from captions import Caption
from data.dataset import Dataset
from data.images import read_image
from model import MaskRCNN
from samples import shapes
from weights.load import load_model

SAMPLE = 7


def draw_sample() -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The image of shapes.jpg: uint8 [512, 512, 3]; the masks of its objects, bool [512, 512, G], and their classes."""
    dataset = shapes.ShapesDataset()
    dataset.load_shapes(SAMPLE + 1, 512, 512, subset="test")
    dataset.prepare()
    return dataset.load_image(SAMPLE), dataset.load_mask(SAMPLE)


def true_ious(result: dict[str, Any], masks: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """The IoU of each detection's mask with the object of its class that it covers best, 0 without one: [N].

    masks: bool [H, W, G]. class_ids: [G].
    """
    ious = utils.compute_overlaps_masks(stack(result["masks"], masks.shape), masks)  # [N, G]
    return np.where(result["class_ids"][:, None] == class_ids, ious, 0).max(axis=1, initial=0)


def stack(rles: Sequence[dict[str, Any]], shape: Sequence[int]) -> np.ndarray:
    """Masks of an image of a shape as bool [H, W, N]."""
    masks = np.zeros((*shape[:2], len(rles)), bool)
    for i, rle in enumerate(rles):
        masks[..., i] = utils.rle_to_mask(rle)
    return masks


def draw_detections(model: MaskRCNN, images: Sequence[np.ndarray], results: Sequence[dict[str, Any]]) -> np.ndarray:
    """A sheet: images above, the same with detections below, all twice as large. Mask scores below 0.1 are left out."""
    columns = []
    for image, result in zip(images, results, strict=True):
        large = shapes.enlarged(image)
        shown = result["mask_scores"] >= 0.1
        masks = shapes.enlarged(stack(result["masks"], image.shape)[..., shown])
        named_scores = zip(result["class_ids"][shown], result["mask_scores"][shown], strict=True)
        captions = [
            Caption(f"{model.class_names[class_id]} {score:.2f}", short=f"{score:.2f}")
            for class_id, score in named_scores
        ]
        drawn = visualize.draw_instances(large, 2 * result["rois"][shown], masks, captions)
        columns.append(np.concatenate([large, np.full((8, *large.shape[1:]), 255, np.uint8), drawn]))
    return stages.side_by_side(columns)


def draw_nuclei(model: MaskRCNN, image: np.ndarray) -> np.ndarray:
    """The image, and beside it what a model finds, named by mask scores: 1800 pixels wide, to be shown at 900."""
    (result,) = model.detect([image], masks="rle")
    instances = (result["rois"], result["masks"], result["class_ids"])
    captions = [f"{score:.2f}" for score in result["mask_scores"]]
    height, width = image.shape[:2]
    gap, head = 0.08, 0.3  # inches
    cell = (9 - gap) / 2
    total = cell * height / width + head
    figure = visualize.new_figure(9, total)
    before, after = (figure.add_axes((left / 9, 0, cell / 9, 1 - head / total)) for left in (0, cell + gap))
    before.imshow(image)
    before.set_axis_off()
    before.set_title("A microscopy image that training has not seen", fontsize=10)
    visualize.display_instances(image, *instances, model.class_names, captions=captions, show_bbox=False, ax=after)
    after.set_title("Nuclei that the embedded model finds, with mask scores", fontsize=10)
    return visualize.figure_to_image(figure, scale=2)


def make_pictures(model: MaskRCNN, dataset: Dataset) -> dict[str, np.ndarray]:
    """All pictures by name: uint8 [H, W, 3] each. dataset: prepared, of 4 images or more."""
    images = [dataset.load_image(image_id) for image_id in dataset.image_ids]
    results = [result for batch in model.detect_batches([image] for image in images) for result in batch]
    ious = [true_ious(result, *dataset.load_mask(image_id)) for image_id, result in enumerate(results)]
    columns = {name: np.concatenate([result[name] for result in results]) for name in ("mask_ious", "scores")}
    calibration = visualize.plot_calibration(
        columns["mask_ious"].clip(0, 1),
        np.concatenate(ious),
        columns["scores"],
        title=f"Does a score know how good the mask is? Detections in {len(images)} images that training has not seen",
    )
    sample, truth = draw_sample()
    (result,) = model.detect([sample], masks="rle")
    scoring = visualize.display_mask_scoring(sample, result, model.class_names, true_ious(result, *truth))
    return {
        "detections": draw_detections(model, images[:4], results[:4]),
        **stages.draw_stages(model, sample),
        "5_mask_scoring": visualize.figure_to_image(scoring),
        "calibration": visualize.figure_to_image(calibration),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    parser = cli.Parser("make_pictures.py", __doc__)
    parser.add_argument("--model", default="shapes", help="a model of samples/shapes.py; default: the embedded one")
    cli.add_output(parser, "the pictures", str(ROOT / "assets"))
    parser.add_argument(
        "--images", type=cli.whole_number(4), default=200, help="images for the plot, 4 or more; default: 200"
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="the lowest class score to show; default: 0.5")
    arguments = parser.parse_args(argv)
    return cli.run("make_pictures.py", lambda: write_pictures(arguments))


def write_pictures(arguments: argparse.Namespace) -> None:
    """Write all pictures to --output, and print their sizes."""
    model = load_model(arguments.model, "cpu", DETECTION_MIN_CONFIDENCE=arguments.threshold)
    if model.config.NUM_CLASSES != shapes.ShapesConfig.NUM_CLASSES or model.maskiou_head is None:
        raise ValueError(f"{arguments.model} is not a model of samples/shapes.py with a MaskIoU head")
    dataset = shapes.make_dataset(model.config, "test", arguments.images)
    nuclei = load_model("nuclei", "cpu", DETECTION_MIN_CONFIDENCE=arguments.threshold)
    photograph = read_image(demo.EXAMPLES["nuclei"][0])
    pictures = {"nuclei_detections.png": draw_nuclei(nuclei, photograph), "shapes.jpg": draw_sample()[0]}
    pictures |= {f"shapes_{name}.png": picture for name, picture in make_pictures(model, dataset).items()}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        path = arguments.output / name
        demo.save_picture(picture, path)
        print(f"{path}: {picture.shape[1]} x {picture.shape[0]}, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
