"""benchmarks/head_choices.py: heads of a few steps on the embedded detector, and the table."""

import contextlib
import io
import json
import math

import pytest
import torch

import model as modellib
from benchmarks import head_choices, measure_gain
from config import Config
from weights.load import load_checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the printed lines of three variants, of one step each."""
    folder = tmp_path_factory.mktemp("choices")
    words = ["--detectors", "shapes", "--variants", "own", "detections", "probability", "--steps", "1"]
    words += ["--images", "2", "--samples", "2", "--folder", str(folder), "--set", "IMAGES_PER_GPU=1"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("MASKSCORING_KEEP_MEMORY", "0")
        patch.setattr(head_choices, "EPOCHS", 1)
        assert head_choices.main(words) == 0
    return folder, words, printed.getvalue().splitlines()


def test_heads_of_a_detector_differ_and_its_detections_do_not(finished):
    folder, _, printed = finished
    runs = json.loads(printed[-1])["runs"]
    assert list(runs) == ["own", "detections", "probability"]
    rows = [row for (row,) in runs.values()]
    for metric in ("box AP", "mask AP (class score)", "mask AP (true IoU)", "detections"):
        assert len({row[metric] for row in rows}) == 1, metric
    assert len({row["IoU correlation"] for row in rows}) == 3
    stored = torch.load(next((folder / "0-detections").rglob("*_0001.pth")), weights_only=True)
    assert stored["config"]["MASKIOU_DETECTIONS"]
    before = load_checkpoint("shapes")["model"]
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name].float(), stored["model"][name])}
    assert changed == {"maskiou_head"}


def test_what_is_finished_is_not_run_again(finished, monkeypatch, capsys):
    _, words, printed = finished
    monkeypatch.setattr(head_choices, "EPOCHS", 1)
    monkeypatch.setattr(head_choices, "train", lambda *_: pytest.fail("trains again"))
    monkeypatch.setattr(head_choices.measure_gain, "measure", lambda *_: pytest.fail("measures again"))
    assert head_choices.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-6:-1] == printed[-6:-1]


def test_a_probability_is_right_where_it_is_the_iou():
    """The loss is 0 there and grows to both sides; its slope in the logit is the error."""
    logits = torch.tensor([[9.0, 0.0], [9.0, 1.0], [9.0, -2.0]], requires_grad=True)
    target = torch.tensor([0.5, 0.2, 1.0])
    counts = torch.tensor([True, True, False])
    losses = head_choices.probability_loss(logits.sigmoid(), torch.tensor([1, 1, 1]), target, counts, Config())
    chance = 1 / (1 + math.exp(-1))
    by_hand = 0.2 * math.log(0.2 / chance) + 0.8 * math.log(0.8 / (1 - chance))
    assert losses.sums["mrcnn_maskiou_loss"].item() == pytest.approx(by_hand, rel=1e-5)
    assert losses.counts["mrcnn_maskiou_loss"].item() == 2
    losses.sums["mrcnn_maskiou_loss"].backward()
    assert logits.grad[:, 1].tolist() == pytest.approx([0, chance - 0.2, 0], abs=1e-6)


def test_the_head_is_linear_again_afterwards():
    linear, loss = modellib.MaskIoUHead.forward, modellib.maskiou_loss
    with head_choices.outputs_of("probability"):
        assert modellib.MaskIoUHead.forward is not linear
        assert modellib.maskiou_loss is head_choices.probability_loss
    assert (modellib.MaskIoUHead.forward, modellib.maskiou_loss) == (linear, loss)


def test_table_of_choices():
    def row(gain):
        return {
            "mask AP (class score)": 0.4, "mask AP": 0.4 + gain, "mask AP75": 0.5, "IoU correlation": 0.3,
            "correlation on objects": 0.8, "gains": {"AP": [gain, 0, 1]},
        }  # fmt: skip

    *_, own, base, other = head_choices.table(
        {"own": [row(0.03), row(0.05)], "detections": [row(0.02), row(0.02)], "proposals": [row(0.01), row(0.02)]}
    ).splitlines()
    assert base == "| detections | 40.00 | 42.00 | 50.00 | +2.00 | 0.30, on objects 0.80 | - |"
    assert own.endswith(f"| +4.00 | 0.30, on objects 0.80 | {measure_gain.difference([0.01, 0.03])} |")
    assert other.endswith(f"| {measure_gain.difference([-0.01, 0.0])} |")
