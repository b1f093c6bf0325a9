"""The scripts of benchmarks/ run and say what they promise. How fast anything is, is not tested."""

import contextlib
import io
import json
import os
import platform
import random
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import rectangle, segm_result, tiny_model, two_rankings, write_pictures
from PIL import Image

import cli
import export
import native
import onnx_detect
import runtime
import utils
from benchmarks import (
    ablations,
    bench_data,
    bench_detect,
    bench_eval,
    bench_export,
    bench_ops,
    bench_peers,
    bench_train,
    check_exports,
    compare_checkouts,
    doctor,
    kills,
    machine,
    measure_gain,
    overfit_nuclei,
    plan_against_sample,
    plan_defaults,
    reproduce,
    soak,
)
from config import Config
from fused import fuses, widens
from model import Images
from samples import nucleus, shapes


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=native.ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_bench_ops_ends_with_a_json_line(tmp_path):
    output = tmp_path / "ops.json"
    done = run("benchmarks/bench_ops.py", "--quick", "--threads", "1", "--output", str(output))
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    facts = json.loads(line)
    assert facts["threads"] == 1
    assert facts["revision"]
    assert output.read_text() == line + "\n"
    names = [case["name"] for case in facts["cases"]]
    assert any("backward" in name for name in names)
    assert any("batched_nms" in name for name in names)
    for case in facts["cases"]:
        assert case["ours_ms"] > 0
        assert any(case["name"] in row and f"{case['ours_ms']:.2f}" in row for row in table)


def test_bench_visualize_ends_with_a_json_line(tmp_path):
    output = tmp_path / "visualize.json"
    done = run("benchmarks/bench_visualize.py", "--quick", "--output", str(output))
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    assert output.read_text() == line + "\n"
    facts = json.loads(line)
    assert facts["threads"] == 1
    assert [case["name"].split(",")[0] for case in facts["cases"]] == ["draw_instances"] * 4 + ["display_instances"]
    for case in facts["cases"]:
        assert case["ms"] > 0
        assert any(case["name"] in row and f"{case['ms']:.1f}" in row for row in table)


def test_bench_eval_ends_with_a_json_line(tmp_path):
    output = tmp_path / "eval.json"
    done = run("benchmarks/bench_eval.py", "--quick", "--threads", "1", "--output", str(output))
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    assert output.read_text() == line + "\n"
    facts = json.loads(line)
    masks, coco, both = facts["cases"]
    assert both["ours_s"] == pytest.approx(masks["ours_s"] + coco["ours_s"])
    assert both["plain_s"] == pytest.approx(masks["plain_s"] + coco["plain_s"])
    assert masks["plain_measured_on"] == 2
    assert masks["differing"] <= 0.05 * 200, "the two ways paste almost the same"
    assert coco["largest_difference"] <= 1e-12
    assert coco["AP"]["mask AP (true IoU)"] > coco["AP"]["mask AP"] > 0
    assert facts["loading"]["images"] == 200
    assert any("both" in row and f"{both['ours_s']:.1f}" in row for row in table)


def test_made_up_detections_are_the_same_every_time():
    (objects, found), (again, same) = bench_eval.make_image(3, 20), bench_eval.make_image(3, 20)
    assert objects == again
    assert torch.equal(found.probs, same.probs)
    assert torch.equal(found.boxes, same.boxes)
    assert len(found.scores) == 20
    assert bench_eval.make_image(4, 20)[1].shape == (640, 480)
    assert found.probs.shape == (20, 28, 28)


def test_two_checkouts_take_turns(tmp_path, monkeypatch, capsys):
    answers = """
import os, sys
print("a line of another kind")
print("ready", flush=True)
for line in sys.stdin:
    print(float(os.environ.get("MS", "2")) * (1 + (line == "bfloat16\\n")), flush=True)
"""
    monkeypatch.setattr(compare_checkouts, "WORKER", answers)
    output = tmp_path / "facts.json"
    assert compare_checkouts.main([str(tmp_path), "--rounds", "2", "--variable", "MS=8", "--output", str(output)]) == 0
    assert "float32   here      2 ms, there      8 ms, ratio 0.250" in capsys.readouterr().out
    rows = json.loads(output.read_text())["cases"]
    assert [(row["dtype"], row["ms"], row["ratio"]) for row in rows] == [
        ("float32", [2, 8], 0.25),
        ("bfloat16", [4, 16], 0.25),
    ]
    monkeypatch.setattr(compare_checkouts, "WORKER", "import no_such_module")
    with pytest.raises(ValueError, match="cannot detect"):
        compare_checkouts.main([str(tmp_path)])


def test_bench_peers_ends_with_a_json_line(tmp_path):
    pytest.importorskip("onnxscript", reason="compares with runtimes that the project does not need")
    pytest.importorskip("onnxruntime", reason="compares with runtimes that the project does not need")
    output = tmp_path / "peers.json"
    done = run("benchmarks/bench_peers.py", "--quick", "--threads", "1", "--output", str(output))
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(output.read_text())["cases"]}
    assert {"ours, float32", "ours, bfloat16"} < set(rows)
    assert all(max(row["difference"].values()) < 1e-3 for name, row in rows.items() if name.endswith("float32"))


def test_bench_export(tmp_path, monkeypatch, capsys):
    """Runtimes take turns, and accuracy is that of the data set; here with the network itself in place of the file."""

    class Ours:
        def detect(self, image, masks="array"):
            return model.detect([image], masks=masks)[0]

        def run(self, pixels, windows):
            return model.predict(Images(torch.from_numpy(pixels), torch.from_numpy(windows)))

    model = tiny_model(NUM_CLASSES=len(shapes.CLASSES) + 1, CLASS_NAMES=("BG", *shapes.CLASSES))
    monkeypatch.setattr(bench_export, "detectors", lambda *_: iter([("onnxruntime, float32", Ours())]))
    monkeypatch.setattr(bench_export, "export_to", lambda *_: None)
    monkeypatch.setattr(bench_export, "load_model", lambda *_: model)
    monkeypatch.setattr(bench_export.bench_detect, "our_model", lambda *_: model)
    monkeypatch.setattr(bench_export, "INPUT", (64, 96))
    monkeypatch.setattr(sys, "argv", ["bench_export.py", "--quick", "--output", str(tmp_path / "a.json")])
    bench_export.main()
    facts = json.loads((tmp_path / "a.json").read_text())
    assert [row["name"] for row in facts["cases"]] == ["ours, float32", "ours, bfloat16", "onnxruntime, float32"]
    assert all(len(row["rounds_ms"]["network"]) == 1 for row in facts["cases"])
    accuracy = facts["shapes_mask_ap"]
    assert accuracy["onnxruntime, float32"] == pytest.approx(accuracy["ours, float32"])
    assert "onnxruntime, float32" in capsys.readouterr().out


def test_check_exports(tmp_path, monkeypatch, capsys):
    """It counts what an interpreter wrote beside the file; here the results of the model itself."""
    model = tiny_model()

    def detect_there(command, cwd, check):
        for number, group in enumerate(command[3:]):
            for i, result in enumerate(model.detect([cwd / name for name in group.split(",")])):
                np.savez(cwd / f"{number}_{i}.npz", **result)

    settings = onnx_detect.Settings.parse(json.dumps(export.settings_of(model)))
    detector = types.SimpleNamespace(settings=settings)
    monkeypatch.setattr(check_exports, "subprocess", types.SimpleNamespace(run=detect_there))
    monkeypatch.setattr(check_exports, "model_of", lambda *_: model)
    monkeypatch.setattr(check_exports.export, "export_model", lambda _: (b"", model, detector))
    arguments = ["check_exports.py", "--python", "python", "--only", "shapes", "--output", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    check_exports.main()
    rows = json.loads((tmp_path / "a.json").read_text())["cases"]
    assert len(rows) == 7
    assert all(row["matched"] == row["identical"] == row["expected"] == row["found"] > 0 for row in rows)
    assert all(row["misses"] == 0 for row in rows)


def test_the_parts_that_peers_run_are_the_network(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(bench_peers, "parts", lambda *_: [("all", bench_peers.Masks(model), inputs)])
    monkeypatch.setattr(bench_peers, "onnx_file", lambda *_: "no file")
    monkeypatch.setattr(bench_peers, "peers", lambda *_: [("peer", lambda: [2 * a for a in ours()])])
    inputs = (torch.randn(3, model.config.TOP_DOWN_PYRAMID_SIZE, 14, 14), torch.tensor([1, 1, 1]))
    ours = bench_peers.ours(model, bench_peers.Masks(model), inputs, "float32")
    own, _, peer = bench_peers.measure(model, threads=1, rounds=2, quick=True)
    assert own["difference"] == {"all": 0}
    assert peer["difference"]["all"] == pytest.approx(1)
    assert len(peer["rounds_ms"]["all"]) == 2
    assert [len(result) for result in ours()] == [3, 3]


def test_bench_detect_ends_with_a_json_line(tmp_path):
    output = tmp_path / "detect.json"
    arguments = ("--quick", "--threads", "2", "--output", str(output))
    done = run("benchmarks/bench_detect.py", *arguments, MASKSCORING_KEEP_MEMORY="")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert output.read_text() == done.stdout.splitlines()[-1] + "\n"
    assert facts["keeps_memory"] == (platform.libc_ver()[0] == "glibc")
    dtypes = ["float32"] if widens("cpu", torch.bfloat16) else ["float32", "bfloat16"]
    assert [(case["name"], case["dtype"]) for case in facts["cases"]] == [("MS R-CNN R-50", dtype) for dtype in dtypes]
    for case in facts["cases"]:
        assert case["detections"] == 100
        # The design counts 269 GMAC at 800 x 1067, padded to 1088. Of these, 14 are 1,000 RoIs, 51 are 100 masks and 39
        # their MaskIoU; the others go with the area, here 320 x 427, padded to 448.
        roi_gmac = 14 + 51 + 39
        gmac = roi_gmac + (269 - roi_gmac) * (320 * 448) / (800 * 1088)
        assert case["gflop"] == pytest.approx(2 * gmac, rel=0.05)
        assert case["convolution_gflop_per_s"] == pytest.approx(case["gflop"] / case["convolution_ms"] * 1e3)
        assert case["share_of_peak"] == pytest.approx(case["convolution_gflop_per_s"] / case["peak_gflop_per_s"])
        assert set(bench_detect.STAGES) | {"resize", "pasting masks"} < set(case["stages_ms"])


def test_matches_counts_what_agrees():
    masks = np.zeros((20, 20, 2), bool)
    masks[2:10, 2:10, 0] = masks[5:18, 5:18, 1] = True
    one = {
        "rois": np.array([[2.0, 2, 10, 10], [5, 5, 18, 18]]),
        "class_ids": np.array([1, 2]),
        "scores": np.array([0.9, 0.8]),
        "masks": masks,
    }
    assert bench_detect.matches(one, one) == 2
    for change in (
        {"rois": one["rois"] + [[0, 0, 0, 1.1], [0, 0, 0, 0]]},
        {"class_ids": np.array([3, 2])},
        {"scores": np.array([0.904, 0.8])},
        {"masks": np.stack([masks[..., 0] & (np.arange(20) > 2), masks[..., 1]], axis=-1)},
    ):
        assert bench_detect.matches(one, one | change) == 1


def test_overlapping_counts_boxes_of_a_class():
    one = {"rois": np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]]), "class_ids": np.array([1, 2])}
    assert bench_detect.overlapping(one, one) == 2
    assert bench_detect.overlapping(one, one | {"class_ids": np.array([1, 1])}) == 1
    assert bench_detect.overlapping(one, one | {"rois": one["rois"] + [[0, 0, 0, 0], [0, 6, 0, 6]]}) == 1


def test_bench_train_ends_with_a_json_line(tmp_path):
    output = tmp_path / "train.json"
    done = run("benchmarks/bench_train.py", "--quick", "--threads", "1", "--output", str(output))
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    facts = json.loads(line)
    assert output.read_text() == line + "\n"
    assert facts["threads"] == 1
    (case,) = facts["cases"]
    assert (case["name"], case["dtype"], case["maskiou"]) == ("MS R-CNN", "float32", True)
    assert set(bench_train.OUR_STAGES) | {"prepare", "backward", "optimiser"} < set(case["stages_ms"])
    assert all(ms > 0 for ms in case["stages_ms"].values())
    assert len(case["losses"]) == 6
    assert all(0 < loss < 100 for loss in case["losses"].values())
    assert case["images_per_s"] == pytest.approx(2000 / case["ms"])
    assert case["peak_mb"] is None or case["peak_mb"] > case["saved_mb"] > 10
    assert any(f"{case['ms']:.1f}" in row for row in table)


def test_rois_of_bench_train_are_those_that_are_sampled():
    """With the objects' own boxes, they are as many as are wanted of either kind, so that nothing is left to chance."""
    for size in (bench_train.Size(), bench_train.QUICK):
        scene = bench_train.make_scene(1, size, bench_train.OBJECTS)
        overlaps = utils.compute_overlaps(torch.cat([scene.boxes, scene.rois]), scene.boxes).amax(dim=1)
        assert len(overlaps) == size.rois
        assert (overlaps > 0.55).sum() == size.rois // 4
        assert (overlaps < 0.45).sum() == size.rois - size.rois // 4
        sides = (scene.boxes[:, 2:] - scene.boxes[:, :2]).int()
        assert [list(crop.shape) for crop in scene.crops] == sides.tolist()


class Subject:
    """What bench_train times: 1 s to prepare, 5 in the forward, of which 2 in its part, 10 backward, 4 optimiser."""

    def __init__(self):
        self.seconds = 0.0
        self.model = torch.nn.Linear(250, 1000, bias=False)
        self.optimizer = self

    def clock(self):
        return self.seconds

    def prepare(self):
        self.seconds += 1
        return (torch.ones(1000, 250),)

    def part(self):
        self.seconds += 2

    def forward(self, x):
        self.part()
        self.seconds += 3
        y = self.model(x).exp()  # saves x and y
        y.register_hook(self.backward)
        return {"loss": (y.sin() + y.cos()).sum()}  # save y

    def backward(self, gradient):
        self.seconds += 10

    def step(self):
        self.seconds += 4

    def zero_grad(self):
        self.model.zero_grad()

    def stages(self):
        return [(self, "part", "part")]


def test_stages_of_bench_train_add_up():
    subject = Subject()
    stages = bench_train.stage_seconds(subject, subject.clock, 3)
    assert stages == {"part": 2, "rest of the forward": 3, "prepare": 1, "backward": 10, "optimiser": 4}
    assert subject.part == Subject.part.__get__(subject)  # as it was


def test_saved_megabytes_count_a_storage_once():
    assert bench_train.saved_megabytes(Subject()) == pytest.approx(1.0 + 4.0)  # x and y, not the weight


def test_bench_train_compares_with_torchvision():
    cases = [
        (bench_train.THEIRS, 800, 4000),
        (bench_train.THEIRS_KEEPING, 600, 5000),
        (bench_train.OURS[0], 500, 2000),
        (bench_train.OURS[1], 400, 2000),
    ]
    rows = [
        {**case._asdict(), "ms": ms, "peak_mb": mb, "saved_mb": 1.0, "stages_ms": {"targets": 1, "backward": 3}}
        for case, ms, mb in cases
    ]
    bench_train.compare(rows)
    assert (rows[3]["speedup"], rows[3]["speedup_keeping_memory"]) == (2, 1.5)
    assert [row["memory_share"] for row in rows] == [1, 1.25, 0.5, 0.5]
    assert rows[3]["images_per_s"] == 5
    assert rows[3]["targets_share"] == 0.25
    assert " 2.00 x " in bench_train.format_row(rows[3])


needs_nuclei = pytest.mark.skipif(
    not overfit_nuclei.DATA.is_dir(), reason="shared/ is not here: the images may not be in the repository"
)


@needs_nuclei
def test_overfit_nuclei_ends_with_a_json_line(tmp_path):
    done = run("benchmarks/overfit_nuclei.py", "--quick", "--threads", "1", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert (tmp_path / "overfit_nuclei.json").read_text() == line + "\n"
    facts = json.loads(line)
    assert facts["steps"] == 2
    assert 0 <= facts["mask AP50"] <= 1
    losses = [json.loads(row)["loss"] for row in (tmp_path / "overfit_nuclei.jsonl").read_text().splitlines()]
    assert facts["loss_of_first_steps"] == pytest.approx(np.mean(losses))


@needs_nuclei
def test_training_from_nothing_learns(tmp_path):
    """The two minutes of benchmarks/overfit_nuclei.py: the loss halves."""
    settings = {"STEPS_PER_EPOCH": 7, "WARMUP_STEPS": 10, "CHECKPOINT_MINUTES": 0}
    model = overfit_nuclei.overfit(nucleus.make_dataset(overfit_nuclei.DATA, "train"), tmp_path, **settings)
    losses = overfit_nuclei.read_losses(model.log_dir)
    assert len(losses) == 12 * 7
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 2


def test_bench_ops_refuses_to_time_what_disagrees():
    case = bench_ops.Case("wrong", lambda: torch.zeros(3), lambda: torch.ones(3), None)
    with pytest.raises(AssertionError):
        bench_ops.measure(case, "cpu", 0.0)


def test_bench_ops_compares_a_gpu_with_the_kernels_of_the_cpu(monkeypatch):
    """The reference in torch takes minutes on a GPU: it is not called, and not timed."""
    monkeypatch.setattr(bench_ops, "roi_cases", lambda device, shrink: iter([]))
    monkeypatch.setattr(bench_ops.nms.reference, "batched_nms", lambda *_: pytest.fail("the reference was called"))
    monkeypatch.setattr(bench_ops, "torchvision", None)
    made = bench_ops.nms_cases
    monkeypatch.setattr(bench_ops, "nms_cases", lambda device, shrink: made("cpu", shrink))
    monkeypatch.setattr(bench_ops.machine, "median_ms", lambda *_, **__: 1.0)
    monkeypatch.setattr(bench_ops.machine, "peak_mb", lambda *_: 1.0)
    rows = [bench_ops.measure(case, "cuda", 0.0) for case in bench_ops.cases_on("cuda", 64)]
    assert [row.reference_ms for row in rows] == [None, None]
    assert "-" in bench_ops.format_row(rows[0])


def test_bench_ops_counts_the_boxes_that_torchvision_keeps():
    """On CUDA it shifts groups apart, which rounds boxes: an index more or less is no fault of ours."""
    ours = torch.arange(200)
    bench_ops.check(bench_ops.Case("nms", lambda: ours, lambda: ours, lambda: torch.cat([ours[:100], ours[101:]])))
    with pytest.raises(AssertionError, match="torchvision keeps 100 boxes, we keep 200; 100 in both"):
        bench_ops.check(bench_ops.Case("nms", lambda: ours, lambda: ours, lambda: ours[:100]))


def test_speedup_and_rate():
    case = bench_ops.Case("c", lambda: torch.ones(1), lambda: torch.ones(1), lambda: torch.ones(1), 2, 10**6)
    row = bench_ops.measure(case, "cpu", 0.0)
    assert row.speedup == pytest.approx(row.torchvision_ms / row.ours_ms)
    assert row.gb_per_s == pytest.approx(1e-3 / (row.ours_ms / 1e3))
    assert "-" in bench_ops.format_row(bench_ops.Row("c", 1.0, 1.0, None, None, None, None, None, 1.0))


def test_fpn_level():
    sides = torch.tensor([100.0, 112.0, 223.0, 224.0, 448.0, 2000.0])
    boxes = torch.stack([torch.zeros(6), torch.zeros(6), sides, sides], dim=1)
    assert bench_ops.fpn_level(boxes).tolist() == [0, 1, 1, 2, 3, 3]


def test_arguments_that_benchmarks_share():
    arguments = machine.make_parser("x.py", None, "one image", device=True, threads=True).parse_args(["--threads", "2"])
    assert vars(arguments) == {"output": None, "quick": False, "device": "cpu", "threads": 2}
    parser = machine.make_parser("x.py", "Measures.", output="DIR")
    assert vars(parser.parse_args(["--output", "a"])) == {"output": Path("a")}
    assert "see that it runs" not in parser.format_help()


def test_median_is_over_at_least_three_calls():
    calls = []
    assert machine.median_ms(lambda: calls.append(0), seconds=0.0, warm_up=2) >= 0
    assert len(calls) == 5


def test_peak_memory():
    peak = machine.peak_mb(lambda: torch.ones(25_000_000).sum(), trim=True)
    assert peak is None or 90 < peak < 130


def test_figures_are_printed_and_written(tmp_path, capsys):
    machine.finish({"ms": 1.5}, None)
    machine.finish({"ms": 1.5}, tmp_path / "figures.json")
    assert capsys.readouterr().out == '{"ms": 1.5}\n' * 2
    assert (tmp_path / "figures.json").read_text() == '{"ms": 1.5}\n'


def test_bench_large_training_ends_with_a_json_line(tmp_path):
    output = tmp_path / "figures.json"
    done = run("benchmarks/bench_large_training.py", "--quick", "--output", str(output))
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts == json.loads(output.read_text())
    assert (facts["listed"], facts["samples"], len(facts["digest"])) == (30, 2, 16)
    assert 0 < facts["sample_s"] < facts["check_s"]


def test_bench_data_ends_with_a_json_line(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 30, "width": 40} for number in (7, 8)]
    for image in images:
        Image.new("RGB", (40, 30), "red").save(tmp_path / "val2017" / image["file_name"])
    label = {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 100, "bbox": [2, 3, 10, 10]}
    label["segmentation"] = [[2, 3, 12, 3, 12, 13, 2, 13]]
    contents = {"images": images, "annotations": [label], "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(contents))
    output = tmp_path / "data.json"
    done = run("benchmarks/bench_data.py", "--quick", "--dataset", str(tmp_path), "--output", str(output))
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts == json.loads(output.read_text())
    assert (facts["pictures"], facts["threads"]) == (2, 1)
    assert {*bench_data.OURS, "whole"} == facts["ours_ms"].keys()
    assert 0 < facts["ours_ms"]["decode"] < facts["ours_ms"]["whole"]


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools, as the reference calls it
def test_the_masks_of_torchvisions_side():
    """A square of two parts, one of them twice, and a crowd, which is left out."""
    part = [2, 3, 12, 3, 12, 13, 2, 13]
    objects = [
        {"bbox": [2, 3, 20, 10], "category_id": 5, "iscrowd": 0, "segmentation": [part, [x + 10 for x in part]]},
        {"bbox": [0, 0, 40, 30], "category_id": 5, "iscrowd": 1, "segmentation": {"size": [30, 40], "counts": [1200]}},
    ]
    target = bench_data.target_of(objects, 30, 40)
    assert target["boxes"].tolist() == [[2, 3, 22, 13]]
    assert target["labels"].tolist() == [5]
    assert target["masks"].shape == (1, 30, 40)
    assert target["masks"][0, 3:13, 2:12].all()
    assert bench_data.target_of([], 30, 40)["masks"].shape == (0, 30, 40)


def test_machine_is_described():
    facts = machine.describe()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cpu"]


def test_doctor_reports():
    done = run("benchmarks/doctor.py")
    assert done.returncode == 0, done.stderr
    assert f"torch: {torch.__version__}" in done.stdout
    assert "C++ compiler: " in done.stdout
    assert "nms: cpu " in done.stdout
    assert "roialign: cpu " in done.stdout
    fused = [dtype for dtype in ("float32", "bfloat16") if fuses("cpu", getattr(torch, dtype))]
    assert f"residual and ReLU in one pass on the CPU: {', '.join(fused) or 'none'}\n" in done.stdout
    assert f"this process may use {runtime.usable_cores()}\n" in done.stdout
    assert re.search(r"threads: \d+ in commands, \d+ by torch; ", done.stdout)


def test_doctor_says_what_to_do():
    done = run("benchmarks/doctor.py", MASKSCORING_KERNELS="reference")
    assert done.returncode == 0
    assert "To do:\n" in done.stdout
    assert "the cpu kernels are not in use, so the slow reference runs" in done.stdout
    assert "make kernels" in done.stdout


def test_doctor_without_torch():
    """As on a fresh machine: the report still comes, and says how to get torch."""
    code = "import sys; sys.modules['torch'] = None; from benchmarks import doctor; sys.exit(doctor.main())"
    done = run("-c", code)
    assert done.returncode == 1, done.stderr
    assert "pip install -r requirements.txt" in done.stdout


def test_doctor_without_compilers():
    assert doctor.tool([]) == "none"


############################################################
#  Kills
############################################################


def test_kills_end_with_a_json_line(tmp_path):
    output = tmp_path / "kills.json"
    counts = ("--training", "0", "--evaluation", "0", "--large", "0", "--conversion", "0", "--download", "2")
    done = run("benchmarks/kills.py", *counts, "--output", str(output), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    assert output.read_text() == line + "\n"
    facts = json.loads(line)
    (row,) = facts["cases"]
    assert facts["seed"] == 0
    assert (row["name"], row["kills"], row["lost"], row["leftovers"], row["differing"]) == ("download", 2, 0, 0, [])
    assert row["equal"] == row["rounds"] > 0
    assert any(text.split()[:2] == ["download", "2"] for text in table)


def writing(again: str) -> kills.Kind:
    """Writes 40 bytes one by one. After a kill it goes on (again "continues"), begins anew, or leaves a file."""

    def write(folder: Path) -> None:
        path = folder / "file"
        if again == "begins anew":
            path.unlink(missing_ok=True)
        if again == "leaves a file":
            (folder / "file.tmp").touch()
        size = path.stat().st_size if path.exists() else 0
        with path.open("ab", buffering=0) as file:
            for number in range(size, 40):
                file.write(os.urandom(1) if again == "differs" else bytes([number]))
                time.sleep(0.01)

    def progress(folder: Path) -> int:
        return (folder / "file").stat().st_size if (folder / "file").exists() else 0

    return kills.Kind("writing", write, progress, lambda folder: {"file": (folder / "file").read_bytes().hex()})


@pytest.mark.parametrize("again", ["continues", "begins anew", "leaves a file", "differs"])
def test_kills_notice_what_goes_wrong(tmp_path, again):
    row = kills.measure(writing(again), 8, tmp_path, random.Random(1))
    assert row["kills"] == 8
    assert row["rounds"] >= 2
    assert (row["lost"] > 0) == (again == "begins anew")
    assert (row["leftovers"] > 0) == (again == "leaves a file")
    assert (row["equal"], row["differing"]) == ((0, ["file"]) if again == "differs" else (row["rounds"], []))


def test_a_command_that_fails_ends_the_kills(tmp_path):
    kind = kills.Kind("failing", lambda folder: print("what went wrong") or 3, lambda folder: 0, lambda folder: {})
    with pytest.raises(cli.Failure, match=r"failing: a command ended with 3: .*what went wrong"):
        kills.measure(kind, 1, tmp_path, random.Random(1))


def test_digests_tell_values_apart():
    tensor = torch.tensor([1.0, 2.0])
    same = [{"a": [tensor, (1, "x", None)]}, {"a": [tensor.clone(), [1, "x", None]]}]
    others = [{"a": [tensor + 1e-6, (1, "x", None)]}, {"b": [tensor, (1, "x", None)]}, {"a": [tensor, (1, "y", None)]},
              {"a": [tensor.double(), (1, "x", None)]}, {"a": [tensor[None], (1, "x", None)]}]  # fmt: skip
    assert kills.digest(same[0]) == kills.digest(same[1])
    assert len({*map(kills.digest, [same[0], *others])}) == 6


############################################################
#  Results
############################################################

TINY_SHAPES = [
    *("BACKBONE_WIDTH=0.125", "TOP_DOWN_PYRAMID_SIZE=16", "RPN_CHANNELS=16", "FPN_CLASSIF_FC_LAYERS_SIZE=16"),
    *("MASK_HEAD_CHANNELS=8", "MASKIOU_HEAD_CHANNELS=8", "MASKIOU_FC_LAYERS_SIZE=16"),
    *("IMAGES_PER_GPU=2", "STEPS_PER_EPOCH=2", "VALIDATION_STEPS=1", "EVAL_EVERY=0", "WORKERS=0"),
]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """Two seeds, of two steps each, measured on a few images: the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("reproduce")
    words = ["shapes", "--folder", str(folder), "--seeds", "0", "1", "--images", "6", "--samples", "20"]
    words += [
        "--output",
        str(folder / "results.json"),
        "--train",
        "--epochs",
        "1",
        "--head-epochs",
        "1",
        "--images",
        "8",
        "--set",
        *TINY_SHAPES,
    ]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("MASKSCORING_KEEP_MEMORY", "0")
        assert reproduce.main(words) == 0
    return folder, printed.getvalue(), words


def test_reproduce_trains_measures_and_compares(reproduced):
    folder, printed, _ = reproduced
    facts = json.loads((folder / "results.json").read_text())
    assert printed.splitlines()[-1] == json.dumps(facts)
    assert list(facts["models"]) == ["seed 0", "seed 1"]
    for numbers in facts["models"].values():
        assert numbers["images"] == 6
        assert numbers["training_s"] > 0
        assert list(numbers["gains"])[:3] == ["AP", "AP50", "AP75"]
        assert numbers["gains"]["AP"][0] == pytest.approx(numbers["re-scoring gain"], abs=1e-12)
    one, other = (torch.load(folder / "shapes" / f"seed-{seed}.pth", weights_only=True)["model"] for seed in (0, 1))
    assert one["fpn.lateral.2.weight"].dtype == torch.float16
    assert not torch.equal(one["fpn.lateral.2.weight"], other["fpn.lateral.2.weight"]), "each seed has its own weights"
    assert "samples/shapes.py train --seed 1" in printed


def test_reproduce_does_not_begin_again(reproduced, monkeypatch, capsys):
    """What is measured is not measured again; what is trained to its end is not trained further."""
    folder, _, words = reproduced
    before = json.loads((folder / "results.json").read_text())["models"]
    monkeypatch.setattr(reproduce.shapes, "main", lambda words: pytest.fail("it trains again"))
    assert reproduce.main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["models"] == before
    (folder / "shapes" / "seed-0.json").unlink()
    assert reproduce.main(words) == 0, "measured again, not trained again"
    again = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert {**again["seed 0"], "detection_s": 0} == {**before["seed 0"], "detection_s": 0}
    for path in folder.glob("shapes/seed-0*.json"):
        path.unlink()
    asked = []
    monkeypatch.setattr(reproduce.shapes, "main", lambda words: asked.append(words) or 130)
    assert reproduce.main(words) == 130, "the signal that ended the training"
    assert asked[0][asked[0].index("--model") + 1] == "last"
    monkeypatch.setattr(reproduce.shapes, "main", lambda words: 2)
    assert reproduce.main(words) == 1
    assert "the training of seed 0 failed" in capsys.readouterr().err


def test_the_first_steps_of_a_seed_are_the_same_twice(reproduced, tmp_path, monkeypatch, capsys):
    folder, printed, words = reproduced
    assert "the first 2 steps of seed 0, trained twice: all losses and weights are equal to the bit" in printed
    facts = json.loads((folder / "first-steps.json").read_text())
    records = [json.loads(line) for line in next(folder.glob("shapes/seed-0/*/metrics.jsonl")).read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == 2 + 2, "and the MaskIoU head's"
    assert facts["losses"] == losses[:2], "they are those of the whole training"
    settings = words[words.index("--train") + 1 :]
    runs = iter([{"losses": [1.0, 2.0], "weights": "a"}, {"losses": [1.0, 2.5], "weights": "a"}])
    monkeypatch.setattr(reproduce, "first_steps", lambda *arguments: next(runs))
    with pytest.raises(cli.Failure, match="they differ from step 2 on"):
        reproduce.check_first_steps(0, 2, settings)
    runs = iter([{"losses": [1.0], "weights": "a"}, {"losses": [1.0], "weights": "b"}])
    with pytest.raises(cli.Failure, match="they differ in the weights after 1 steps"):
        reproduce.check_first_steps(0, 1, settings)


def test_the_first_steps_beside_the_committed_ones(tmp_path, monkeypatch, capsys):
    losses = [2.0, 1.0]
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    monkeypatch.setattr(reproduce, "first_steps", lambda *arguments: {"seed": 0, "losses": losses, "weights": "a"})
    for there, seed in ((1.04, 0), (1.2, 1)):
        path = tmp_path / "2026-11-28-first-steps-x.json"
        path.write_text(json.dumps({"seed": seed, "losses": [2.0, there], "cpu": "x"}))
        reproduce.check_first_steps(0, 2, [])
    assert capsys.readouterr().out.count("losses differ by at most 0.038 of them") == 1, "seed 1 is not compared"
    path.write_text(json.dumps({"seed": 0, "losses": [2.0, 1.2], "cpu": "x"}))
    with pytest.raises(cli.Failure, match=r"losses of the first 2 steps differ from 2026.* by 16\.7%, where 5% is"):
        reproduce.check_first_steps(0, 2, [])


def test_committed_first_steps():
    (path,) = reproduce.RESULTS.glob("*-first-steps-*.json")
    known = json.loads(path.read_text())
    assert (known["seed"], len(known["losses"])) == (0, 20)


def test_comparison_with_committed_figures(monkeypatch, tmp_path):
    row = {**dict.fromkeys(reproduce.COMPARED.values(), 0.25), "correlation on objects": 0.5}
    here = {**row, "mask AP": 0.3, "correlation on objects": 0.75}
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    assert reproduce.committed("shapes") == ("no committed result of shapes", {})
    for day, known in (("02", row), ("01", here)):
        text = json.dumps({"models": {"seed 0": known}})
        (tmp_path / f"2026-11-{day}-shapes-x.json").write_text(text)
    name, known = reproduce.committed("shapes")
    assert (name, known) == ("2026-11-02-shapes-x.json", {"seed 0": row}), "the newest"
    lines = reproduce.comparison({"seed 0": here, "seed 1": here}, known).splitlines()
    assert len(lines) == 1 + len(reproduce.COMPARED), "seed 1 is not among the committed ones"
    assert any(line.split()[-3:] == ["30.00", "25.00", "+5.00"] for line in lines)
    assert lines[-1].split()[-3:] == ["0.75", "0.50", "+0.25"]


def test_committed_models():
    """Each seed that is trained unless others are asked for has numbers to be compared with, not the embedded model."""
    for data, seeds in reproduce.SEEDS.items():
        name, known = reproduce.committed(data)
        assert re.fullmatch(rf"....-..-..-{data}-\w+-1-thread\.json", name)
        assert list(known) == [f"seed {seed}" for seed in seeds]
        lowest = {"shapes": 0.445, "nuclei": 0.5, "photos": 0.4}[data]
        assert all(numbers["mask AP"] > lowest for numbers in known.values())
    (path,) = reproduce.RESULTS.glob("*-embedded-shapes-*.json")
    assert json.loads(path.read_text())["models"]["seed 0"]["mask AP"] > 0.45


TINY_NETWORK = [word for word in TINY_SHAPES if not word.startswith(("STEPS_PER_EPOCH", "EVAL_EVERY"))]
TINY_NUCLEI = [*TINY_NETWORK, "IMAGE_MIN_DIM=64", "IMAGE_MAX_DIM=64", "TRAIN_DTYPE=float32"]
# Torch 2.13 aborts in a step of 8 channels: the backward of a convolution of 1 x 1 with stride 2, in maps of 64 x 64.
TINY_PHOTOS = [*TINY_NETWORK[1:], "BACKBONE_WIDTH=0.25", "EVAL_EVERY=0", "TRAIN_DTYPE=float32"]


@pytest.fixture
def data_sets(tmp_path, monkeypatch):
    """Nuclei and photos of a few pictures, in the place of ../shared/data; a step seems to take 2 seconds."""
    monkeypatch.setenv("MASKSCORING_KEEP_MEMORY", "0")
    monkeypatch.setattr(reproduce, "DATA", tmp_path / "data")
    monkeypatch.setattr("data.plan.VALIDATIONS", 1)
    for module in ("own_training", "benchmarks.reproduce"):
        monkeypatch.setattr(f"{module}.step_seconds", lambda *_: 2.0)
        monkeypatch.setattr(f"{module}.detection_seconds", lambda *_: 0.1)
    write_pictures(tmp_path / "data" / "nuclei", ("train", "val"), (6, 3))
    write_pictures(tmp_path / "data" / "photos", ("train", "val", "test_easy"), (6, 3, 4))
    return tmp_path


def losses_of(folder: Path) -> list[float]:
    records = reproduce.read_records(next(folder.rglob("metrics.jsonl")))
    return [record["loss"] for record in records if record["kind"] == "train"]


def test_reproduce_nuclei_in_a_time(data_sets, monkeypatch, capsys):
    words = ["nuclei", "--folder", str(data_sets / "out"), "--minutes", "1", "--samples", "5", "--train"]
    assert reproduce.main([*words, "--set", *TINY_NUCLEI]) == 0
    printed = capsys.readouterr().out
    facts = json.loads(printed.splitlines()[-1])
    assert (facts["data"], facts["minutes"], facts["images"]) == ("nuclei", 1, 3)
    assert facts["models"]["seed 0"]["max_dets"] == nucleus.MAX_DETS
    folder = data_sets / "out" / "nuclei-1-minutes"
    steps = len(losses_of(folder / "seed-0"))
    assert steps == 7 + 7, "7 steps and 7 of the MaskIoU head fit beside 30 seconds for the rest"
    assert "--eval-images 3 --set STEPS_PER_EPOCH=7 WARMUP_STEPS=0 EVAL_EVERY=1" in printed
    assert f"beside {reproduce.committed('nuclei')[0]}" in printed
    assert "is not expected to reach its numbers" in printed
    halves, best = (
        torch.load(path, weights_only=True)["model"]["fpn.lateral.2.weight"]
        for path in (folder / "seed-0.pth", next(folder.rglob("*_best.pth")))
    )
    assert torch.equal(halves, best.half())
    monkeypatch.setattr(reproduce.nucleus, "main", lambda words: pytest.fail("it trains again"))
    assert reproduce.main([*words, "--set", *TINY_NUCLEI]) == 0


def test_reproduce_photos_in_a_time(data_sets, monkeypatch, capsys):
    """What it measures is what custom.py evaluate says of the subset test."""
    monkeypatch.setattr(reproduce, "RESULTS", data_sets)
    words = ["photos", "--folder", str(data_sets / "out"), "--minutes", "1", "--samples", "5", "--train"]
    assert reproduce.main([*words, "--set", *TINY_PHOTOS]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"custom.py train --seed 0 .*--set REPEAT_THRESHOLD=0.5 COPY_PASTE=0.3 .*--minutes 1", printed)
    assert reproduce.PHOTOS_LENGTH[0] not in printed, "the plan chooses the length"
    assert "there is no committed result of photos yet, so these numbers are compared with nothing" in printed
    assert "is not expected to reach" not in printed
    facts = json.loads(printed.splitlines()[-1])
    assert (facts["data"], facts["minutes"], facts["images"]) == ("photos", 1, 4)
    folder, report = data_sets / "out" / "photos-1-minutes", data_sets / "report"
    assert len(losses_of(folder / "seed-0")) == 2 * 7, "14 steps fit beside the 30 seconds of the report"

    words = ["evaluate", "--dataset", str(data_sets / "data" / "photos"), "--subset", "test"]
    assert reproduce.custom.main([*words, "--model", str(folder / "seed-0.pth"), "--output", str(report)]) == 0
    metrics = json.loads((report / "metrics.json").read_text())
    metrics, numbers = metrics.get("metrics", metrics), facts["models"]["seed 0"]
    assert metrics["mask AP"] == pytest.approx(numbers["mask AP"], abs=1e-12)
    assert metrics["detections"] == numbers["detections"] > 0


def test_reproduce_photos_at_full_length(data_sets, monkeypatch):
    commands = []
    monkeypatch.setattr(reproduce, "_run", lambda program, module, words: commands.append(words))
    arguments = types.SimpleNamespace(minutes=None, train=[], dataset=None)
    reproduce.train("photos", 0, data_sets, arguments)
    assert {*reproduce.PHOTOS, *reproduce.PHOTOS_LENGTH} < set(commands[0])
    assert "--minutes" not in commands[0]


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        (1, "--epochs 1 --head-epochs 1 --set STEPS_PER_EPOCH=2 WARMUP_STEPS=0 EVAL_EVERY=1"),
        (4, "--epochs 4 --head-epochs 1 --set STEPS_PER_EPOCH=16 WARMUP_STEPS=6 EVAL_EVERY=1"),
        (50, "--epochs 4 --head-epochs 1 --set STEPS_PER_EPOCH=250 WARMUP_STEPS=100 EVAL_EVERY=1"),
        (70, ""),
    ],
)
def test_the_length_of_shapes_in_a_time(minutes, expected, data_sets, monkeypatch):
    """By hand. A step takes 2 s, the evaluation of 100 images after each epoch 10 s, and the rest 30 s.

    In 1 minute, these would take more than a third: one epoch and one of the MaskIoU head stay, and 60 - 50 seconds are
    5 steps in both. In 4 minutes, 240 - 80 seconds are 80 steps, 16 in each of 4 + 1 epochs. 50 minutes are enough for
    all 1,000 steps, but not for 4 epochs of the head, for which 70 are.
    """
    words = ["shapes", "--steps", "0", "--folder", str(data_sets), "--minutes", str(minutes)]
    words += ["--train", "--epochs", "4", "--set", *TINY_NETWORK]
    asked = []
    monkeypatch.setattr(reproduce.shapes, "main", lambda words: asked.append(" ".join(words)) or 130)
    assert reproduce.main(words) == 130
    monkeypatch.setattr(reproduce, "step_seconds", lambda *_: pytest.fail("it has the length that it began with"))
    assert reproduce.main(words) == 130
    assert asked[0] == asked[1]
    assert asked[0].endswith(f"{TINY_NETWORK[-1]} {expected}".rstrip())


def test_reproduce_leaves_out_models_without_data(data_sets, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "run_seed", lambda name, *_: print(f"it trains {name}") or {"images": 0})
    monkeypatch.setattr(reproduce, "check_first_steps", lambda *_: {})
    monkeypatch.setattr(measure_gain, "table", lambda rows: "")
    monkeypatch.setattr(reproduce, "comparison", lambda *_: "")
    words = ["--seeds", "0", "--folder", str(data_sets / "out")]
    assert reproduce.main([*words, "--output", str(data_sets / "numbers.json")]) == 0
    assert re.findall("it trains (.*)", capsys.readouterr().out) == ["shapes", "nuclei", "photos"]
    for name in ("shapes", "nuclei", "photos"):
        assert json.loads((data_sets / f"numbers-{name}.json").read_text())["data"] == name
    monkeypatch.setattr(reproduce, "DATA", data_sets / "nowhere")
    assert reproduce.main(words) == 0
    printed = capsys.readouterr().out
    assert re.findall("it trains (.*)", printed) == ["shapes"]
    assert f"nuclei is left out: there is no folder {data_sets / 'nowhere' / 'nuclei'}" in printed
    assert reproduce.main([*words, "photos", "--dataset", str(data_sets / "data" / "photos")]) == 0
    assert re.findall("it trains (.*)", capsys.readouterr().out) == ["photos"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nuclei", "photos", "--dataset", "."], "--dataset is the data set of nuclei or of photos, not of nuclei and"),
        (["shapes", "--dataset", "."], "--dataset is the data set of nuclei or of photos, not of shapes"),
        (["nuclei", "--dataset", "nowhere"], "--dataset nowhere: there is no such folder"),
        (["shapes", "--steps", "0", "--minutes", "0.1"], "--minutes 0.1 leaves no time to learn; at least 2 minutes"),
    ],
)
def test_mistakes_of_reproduce_are_one_line(words, message, data_sets, capsys):
    assert reproduce.main([*words, "--folder", str(data_sets / "out"), "--train", "--set", *TINY_NUCLEI]) == 2
    assert message in capsys.readouterr().err


def test_reproduce_names_its_models(capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["cells"])
    assert "must be some of shapes, nuclei, photos, not 'cells'" in capsys.readouterr().err


def test_make_passes_models_and_minutes_on():
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "reproduce", "MODELS=shapes nuclei", "MINUTES=10"],
        cwd=native.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1].endswith("benchmarks/reproduce.py shapes nuclei --minutes 10")


def test_measure_gain_of_several_models(reproduced, tmp_path, capsys):
    folder, _, _ = reproduced
    output = tmp_path / "gain.json"
    models = [str(folder / "shapes" / f"seed-{seed}.pth") for seed in (0, 1)]
    words = ["shapes", "--images", "6", "--samples", "20", "--output", str(output), "--model", *models]
    assert measure_gain.main(words) == 0
    *table, line = capsys.readouterr().out.splitlines()
    assert output.read_text() == line + "\n"
    facts = json.loads(line)
    known = json.loads((folder / "results.json").read_text())["models"]
    for name, seed in zip(models, known.values(), strict=True):
        assert facts["models"][name]["gains"] == seed["gains"], "reproduce.py measures the same"
    assert [row.split("|")[1].strip() for row in table[-3:]] == [*models, "mean"]
    assert measure_gain.main(["shapes", "--model", str(tmp_path / "none.pth")]) == 2
    assert "none.pth does not exist" in capsys.readouterr().err


def test_correlation_on_objects_leaves_out_what_is_on_none(monkeypatch):
    contents, masks = two_rankings(4, 2)
    nowhere = [segm_result(image, 1, rectangle(80, 80, 99, 99), 0.6, 0.9) for image in range(4)]
    monkeypatch.setattr(measure_gain, "detect_dataset", lambda *_, **__: ([], masks + nowhere))
    monkeypatch.setattr(measure_gain, "ground_truth", lambda *_: contents)
    monkeypatch.setattr(measure_gain, "known_truth", lambda *_: contents)
    numbers = measure_gain.measure(None, None, 100, samples=5)
    predicted, true = [each["mask_iou"] for each in masks], [0.55, 1.0] * 4
    assert numbers["correlation on objects"] == pytest.approx(np.corrcoef(predicted, true)[0, 1])
    everywhere = np.corrcoef([*predicted, *[0.9] * 4], [*true, *[0] * 4])[0, 1]
    assert numbers["IoU correlation"] == pytest.approx(everywhere)
    assert numbers["detections"] == 12


def test_mean_over_seeds():
    """By hand: 1, 2, 3 have the mean 2 and the standard error 1 / sqrt(3); t(0.975, 2) is 4.303."""
    mean, low, high = measure_gain.mean_gain([1, 2, 3])
    assert mean == 2
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    with pytest.raises(ValueError, match="two of them at least, not 1"):
        measure_gain.mean_gain([1])


def ablate(folder, *words) -> tuple[int, str]:
    """The exit status and what is printed, of runs of a few steps."""
    sizes = ["--steps", "4", "--images", "4", "--samples", "10", "--folder", str(folder)]
    settings = [word for word in TINY_SHAPES if not word.startswith("STEPS_PER_EPOCH")]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = ablations.main([*sizes, *words, "--set", *settings])
    return status, printed.getvalue()


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKSCORING_KEEP_MEMORY", "0")
        assert ablate(folder, "--seeds", "1", "--variants", ablations.BASE)[0] == 0
        status, printed = ablate(folder, "--seeds", "0", "--output", str(folder / "all.json"))
    assert status == 0
    return folder, printed


def weights_of_run(folder, name):
    (path,) = (ablations.run_folder(folder, name, 0) / "logs").glob("*/mask_rcnn_shapes_0004.pth")
    return torch.load(path, weights_only=True)


def test_each_ablation_trains_what_its_name_says(ablated):
    folder, _ = ablated
    base = weights_of_run(folder, ablations.BASE)
    alike = set(ablations.ALIKE)
    for name, settings in ablations.VARIANTS.items():
        if name in alike:
            assert not (ablations.run_folder(folder, name, 0) / "logs").exists(), "it has the weights of another"
            continue
        run = weights_of_run(folder, name)
        changed = {key for key, value in run["config"].items() if value != base["config"][key]}
        assert changed == set(settings)
        assert {key: run["config"][key] for key in settings} == settings
    plain = weights_of_run(folder, ablations.AFTERWARDS)["model"]
    (path,) = (ablations.run_folder(folder, ablations.AFTERWARDS, 0) / "head").glob("*/mask_rcnn_shapes_0002.pth")
    after = torch.load(path, weights_only=True)["model"]
    learned = {name.split(".")[0] for name in plain if not torch.equal(plain[name], after[name])}
    assert learned == {"maskiou_head"}, "the detector stays as it is"


def test_ablations_are_not_run_again_and_are_told_together(ablated):
    """Also those of other calls: each process says what is finished so far."""
    folder, first = ablated
    facts = json.loads((folder / "all.json").read_text())
    assert list(facts["runs"]) == list(ablations.VARIANTS)
    assert {name: sorted(runs) for name, runs in facts["runs"].items()} == {
        name: ["0", "1"] if name == ablations.BASE else ["0"] for name in ablations.VARIANTS
    }
    before = {path: path.read_bytes() for path in folder.glob("*/numbers.json")}
    assert len(before) == 1 + len(ablations.VARIANTS)
    status, printed = ablate(folder, "--seeds", "0", "--variants", "detached")
    assert status == 0
    assert {path: path.read_bytes() for path in folder.glob("*/numbers.json")} == before
    assert printed.splitlines()[-10:-1] == first.splitlines()[-10:-1], "the same table"


def test_an_ablation_that_was_interrupted_goes_on_from_its_own_weights(ablated, tmp_path):
    """Not from the detector's again, which its head started from."""
    folder, _ = ablated
    start = weights_of_run(folder, ablations.AFTERWARDS)
    new = ablations.continued(Config.from_dict(start["config"]), tmp_path, start)
    assert torch.equal(new.maskiou_head.maskious.weight, start["model"]["maskiou_head.maskious.weight"])
    (path,) = (ablations.run_folder(folder, ablations.AFTERWARDS, 0) / "head").glob("*/mask_rcnn_shapes_0001.pth")
    stored = torch.load(path, weights_only=True)
    gone_on = ablations.continued(Config.from_dict(stored["config"]), path.parent.parent, start)
    assert not torch.equal(gone_on.maskiou_head.maskious.weight, new.maskiou_head.maskious.weight)


def test_table_of_ablations():
    """By hand: means, and differences seed by seed, of seeds that both have."""

    def run(gain, correlation=0.5):
        return {
            "mask AP (class score)": 0.2,
            "mask AP": 0.2 + gain,
            "re-scoring gain": gain,
            "IoU correlation": correlation,
        }

    runs = {
        ablations.BASE: {0: run(0.01), 1: run(0.02), 2: run(0.03)},
        "detached": {0: run(0.02, 0.6), 1: run(0.04, 0.7), 2: run(0.06, 0.8)},
        "logit 0.5": {1: run(0.0)},
    }
    *_, base, detached, logit = (line.split(" | ") for line in ablations.table(runs).splitlines())
    assert base[1:] == ["3", "20.00", "22.00", "+2.00", "0.500", "- |"]
    assert detached[1:6] == ["3", "20.00", "24.00", "+4.00", "0.700"]
    value, low, high = measure_gain.mean_gain([0.01, 0.02, 0.03])
    assert detached[6] == f"{100 * value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) |"
    assert logit[6] == "-2.00 |"


############################################################
#  soak.py
############################################################


def test_soak_ends_with_a_json_line(tmp_path):
    done = run("benchmarks/soak.py", "--quick", "--threads", "1", "--output", str(tmp_path), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert (tmp_path / "soak.json").read_text() == line + "\n"
    facts = json.loads(line)
    assert facts["columns"] == list(soak.COLUMNS)
    for kind in ("detection", "training"):
        rows = np.array(facts["curves"][kind])
        assert (rows > 0).all()
        assert (np.diff(rows[:, :2], axis=0) >= 0).all(), "time and count go up"
        assert (rows[:, soak.COLUMNS.index("used")] < rows[:, soak.COLUMNS.index("resident")]).all()
        assert f"{kind}: " in done.stdout
    assert len(facts["curves"]["training"]) == 10
    assert (tmp_path / "soak.png").read_bytes()[:4] == b"\x89PNG"


def test_fifths_of_a_soak():
    rows = [[second, second, 100 + second, 50, 10, 7] for second in range(10)]
    assert soak.fifths(rows, "resident") == [(100, 101), (102, 103), (104, 105), (106, 107), (108, 109)]
    assert soak.fifths(rows, "used") == [(50, 50)] * 5
    assert soak.fifths(rows[:1], "objects") == [(7, 7)]


def test_a_curve_of_memory_follows_what_is_allocated():
    curve, blocks = soak.Curve(), []
    curve.add(0)  # collects what earlier tests left
    curve.add(0)
    blocks.append(np.ones(200_000_000 // 8))
    curve.add(1)
    used = soak.COLUMNS.index("used")
    assert curve.rows[2][used] - curve.rows[1][used] == pytest.approx(200, abs=20)


def test_plan_defaults_compares_each_variant_with_the_plan(tmp_path, monkeypatch, capsys):
    commands = []

    def train(words):
        commands.append(words)
        folder = Path(words[words.index("--output") + 1]) / "evaluation"
        folder.mkdir(parents=True)
        value = (
            0.4
            + 0.1 * any(word.startswith("COPY_PASTE") for word in words)
            + 0.01 * int(words[words.index("--seed") + 1])
        )
        (folder / "metrics.json").write_text(json.dumps({"metrics": {"mask AP": value}}))
        return 0

    monkeypatch.setattr(plan_defaults.custom, "main", train)
    words = ["--dataset", "cells", "--folder", str(tmp_path), "--variants", "as planned", "copy-paste", "--steps", "80"]
    assert plan_defaults.main(words) == 0
    *table, line = capsys.readouterr().out.splitlines()
    assert json.loads(line)["mask AP"] == {"as planned": {"0": 40.0, "1": 41.0}, "copy-paste": {"0": 50.0, "1": 51.0}}
    assert "copy-paste             50.5   +10.0  +10.0" in table
    assert all("STEPS_PER_EPOCH=10" in words for words in commands)
    assert plan_defaults.main(words) == 0
    assert len(commands) == 4, "what is finished stays"


def test_plan_against_sample_trains_both_alike(tmp_path, monkeypatch, capsys):
    commands = {"planned": [], "by hand": []}
    monkeypatch.setattr(plan_against_sample.custom, "main", lambda words: commands["planned"].append(words) or 0)
    monkeypatch.setattr(plan_against_sample.nucleus, "main", lambda words: commands["by hand"].append(words) or 0)
    monkeypatch.setattr(plan_against_sample.nucleus, "make_dataset", lambda *_: None)
    monkeypatch.setattr(plan_against_sample, "find_last", lambda folder, name: folder / "log" / "last.pth")
    monkeypatch.setattr(plan_against_sample, "mask_ap", lambda path, _: 50.0 if path.name == "model.pth" else 49.0)
    words = ["--dataset", "nuclei", "--folder", str(tmp_path), "--seeds", "0", "2", "--steps", "900"]
    assert plan_against_sample.main(words) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["seed"] for row in facts["rows"]] == [0, 2]
    assert facts["rows"][0]["planned, mask AP"] == 50.0
    assert facts["rows"][0]["by hand, mask AP"] == 49.0
    for name in commands:
        assert all("STEPS_PER_EPOCH=100" in each for each in commands[name])
