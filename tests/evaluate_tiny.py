"""An evaluation of test_evaluation_detect.py as a program, also for torchrun: evaluate_tiny.py FOLDER SETTINGS.

SETTINGS, in JSON: images_per_gpu, count; kill: [rank, bytes] after which that process kills itself while it writes;
fails: an image at which a process ends; role "errors": what each process is told is written to files.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np
import torch
from deadly import kill_at
from helpers import tiny_model

import runtime
from data.dataset import Dataset
from evaluation.detect import detect_to_folder, load_results, write_submission
from evaluation.results import image_numbers


class Noise(Dataset):
    """Images of all sizes."""

    def __init__(self, count: int, broken=(), fails=None) -> None:
        super().__init__()
        for class_id, name in enumerate(("cat", "dog", "cow"), start=1):
            self.add_class("noise", class_id, name)
        for i in range(count):
            self.add_image("noise", f"picture {i}", None)
        self.broken, self.fails = broken, fails
        self.prepare()

    def load_image(self, image_id):
        if image_id in self.broken:
            raise OSError(f"image {image_id} is torn")
        if image_id == self.fails:
            raise RuntimeError("what went wrong")
        rng = np.random.default_rng(image_id)
        return rng.integers(0, 256, (*rng.integers(40, 90, 2), 3), dtype=np.uint8)


def errors(folder: Path, model, count: int) -> None:
    """Once with other weights, once with an image that only the last process cannot read."""
    texts = []
    for name, each, broken in (("whole", tiny_model(seed=1), ()), ("broken", model, [2])):
        try:
            detect_to_folder(each, Noise(count, broken), range(count), folder / name, verbose=False)
        except ValueError as error:
            texts.append(str(error))
    (folder / f"errors-{runtime.rank()}.json").write_text(json.dumps(texts))


def main(folder: Path, images_per_gpu=1, count=13, kill=None, fails=None, role="detect") -> None:
    torch.set_num_threads(1)
    runtime.setup_distributed("cpu")
    model, dataset = tiny_model(IMAGES_PER_GPU=images_per_gpu, GPU_COUNT=0), Noise(count, fails=fails)
    if kill:
        kill_at(*kill)
    if role == "errors":
        errors(folder, model, count)
    else:
        detect_to_folder(model, dataset, dataset.image_ids, folder, verbose=False)
        if runtime.rank() == 0:
            numbers = image_numbers(dataset)
            write_submission(folder, *load_results(folder, numbers))
    runtime.close_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
