"""benchmarks/head_afterwards.py: runs of a few steps, and the table of docs/results.md."""

import contextlib
import io
import json
import re

import pytest
import torch

import cli
import native
from benchmarks import head_afterwards
from model import MaskRCNN
from weights.load import load_checkpoint

RESULTS = native.ROOT / "benchmarks" / "results" / "2026-11-28-head-afterwards"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple:
    """The folder and the printed lines of a benchmark of two seeds."""
    folder = tmp_path_factory.mktemp("heads")
    words = ["shapes", "--steps", "1", "--images", "2", "--samples", "2", "--seeds", "0", "1"]
    words += ["--folder", str(folder), "--output", str(folder / "line.json"), "--set", "IMAGES_PER_GPU=1"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("MASKSCORING_KEEP_MEMORY", "0")
        patch.setattr(head_afterwards, "EPOCHS", 1)
        assert head_afterwards.main(words) == 0
    return folder, words, printed.getvalue().splitlines()


def test_heads_differ_and_detections_do_not(finished):
    folder, _, printed = finished
    facts = json.loads(printed[-1])
    assert (folder / "line.json").read_text() == printed[-1] + "\n"
    rows = facts["models"]
    assert list(rows) == ["embedded head", "seed 0", "seed 1"]
    for metric in ("box AP", "mask AP (class score)", "mask AP (true IoU)", "detections"):
        assert len({row[metric] for row in rows.values()}) == 1, metric
    assert len({row["IoU correlation"] for row in rows.values()}) == 3
    assert [row.split("|")[1].strip() for row in printed[-5:-1]] == [*rows, "mean"]


def test_what_is_finished_is_not_run_again(finished, monkeypatch, capsys):
    _, words, printed = finished
    monkeypatch.setattr(head_afterwards, "EPOCHS", 1)
    monkeypatch.setattr(head_afterwards, "train", lambda *_: pytest.fail("trains again"))
    monkeypatch.setattr(head_afterwards, "measured", lambda *_: pytest.fail("measures again"))
    assert head_afterwards.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-5:-1] == printed[-5:-1]


def test_the_detector_is_the_embedded_one_and_the_head_is_new(finished):
    folder, _, _ = finished
    (path,) = (folder / "shapes-1-seed-0").glob("logs/*/mask_rcnn_shapes_0001.pth")
    before, after = load_checkpoint("shapes")["model"], torch.load(path, weights_only=True)["model"]
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"maskiou_head"}
    model = MaskRCNN.from_checkpoint(path, "cpu")
    head_afterwards.check_frozen(model, "shapes")
    with torch.no_grad():
        model.mask_head.mask_logits.bias[0] += 1e-3
    with pytest.raises(cli.Failure, match=r"1 tensors of the detector changed .*mask_head\.mask_logits\.bias"):
        head_afterwards.check_frozen(model, "shapes")


def test_a_plain_checkpoint_has_no_head():
    plain = head_afterwards.plain(load_checkpoint("shapes"))
    assert MaskRCNN.from_checkpoint(plain, "cpu").maskiou_head is None


def test_nuclei_need_their_folder(capsys):
    assert head_afterwards.main(["nuclei"]) == 2
    assert "nuclei need --dataset" in capsys.readouterr().err


@pytest.mark.skipif(not RESULTS.is_dir(), reason="nothing is committed")
@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_page_has_the_committed_numbers(path):
    text = (native.ROOT / "docs" / "results.md").read_text()
    facts = json.loads(path.read_text())
    assert f"revision {facts['revision']}" in " ".join(text.split())
    rows = facts["models"]
    assert len({row["mask AP (class score)"] for row in rows.values()}) == 1
    for name, row in rows.items():
        (line,) = re.findall(rf"^\| {path.stem}, {name} \| (.*) \|$", text, flags=re.MULTILINE)
        value, low, high = (f"{100 * number:+.2f}" for number in row["gains"]["AP"])
        correlations = f"{row['IoU correlation']:.2f}, on objects {row['correlation on objects']:.2f}"
        numbers = [f"{100 * row[metric]:.1f}" for metric in ("mask AP (class score)", "mask AP", "mask AP75")]
        assert line.split(" | ") == [*numbers, f"{value} ({low} to {high})", correlations]
