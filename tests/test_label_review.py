"""benchmarks/label_review.py: faults are planted as it says, and its measures are right."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import utils
from benchmarks import label_review as benchmark
from data.records import Object, Picture
from evaluation.label_queue import Seen
from evaluation.review import Found

ROOT = Path(__file__).parent.parent
SIZE = (120, 160)


def disc(y: float, x: float, radius: float = 8) -> dict:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return utils.mask_to_rle((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


DISCS = [disc(y, x) for y in range(15, 120, 30) for x in range(15, 160, 30)]


def iou(first: dict, second: dict) -> float:
    a, b = utils.rle_to_mask([first, second]).transpose(2, 0, 1)
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("seed", range(5))
def test_each_fault_is_what_it_is_called(seed):
    rng = np.random.default_rng(seed)
    whole = disc(60, 80, 15)
    area, size = utils.rle_area(whole), np.sqrt(utils.rle_area(whole))
    moved = benchmark.shift(whole, rng)
    assert utils.rle_area(moved) == area
    way = np.subtract(utils.rle_to_bbox(moved)[:2], utils.rle_to_bbox(whole)[:2])
    assert 0.2 * size - 1 <= np.hypot(*way) <= 0.4 * size + 1
    assert abs(utils.rle_area(benchmark.resize(whole, rng)) - area) > 0.15 * area
    half = benchmark.halve(whole, rng)
    assert utils.rle_area(half) == pytest.approx(area / 2, rel=0.1)
    assert iou(half, whole) == pytest.approx(utils.rle_area(half) / area)
    taken = utils.rle_to_mask(DISCS).any(axis=2)
    added = benchmark.add([disc(10, 10, 3)], taken, rng)
    assert not (utils.rle_to_mask(added) & taken).any()
    assert benchmark.add([whole], np.ones(SIZE, bool), rng) is None
    assert benchmark.halve(benchmark._placed(3, 3, np.ones((1, 1), bool), SIZE), rng) is None


def test_the_faults_are_as_many_as_said():
    counts = dict.fromkeys(["shifted", "resized", "halved", "added", "deleted"], 0)
    for seed in range(60):
        planted = benchmark.plant(DISCS, np.random.default_rng(seed))
        assert len(planted.masks) == len(planted.faults)
        for name in planted.faults:
            if name:
                counts[name] += 1
        counts["deleted"] += len(planted.deleted)
        right = [mask for mask, fault in zip(planted.masks, planted.faults, strict=True) if not fault]
        assert all(mask in DISCS for mask in right)
    expected = 60 * len(DISCS) * benchmark.SHARE
    for name, count in counts.items():
        assert 0.5 * expected < count < 1.5 * expected, name


def test_measures_are_those_of_the_repeated_candidates():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 8, 60) / 8.0  # many are equal
    faults = rng.random(60) < 0.3
    counts = rng.integers(0, 3, (20, 60))
    ranking = benchmark.Ranking(values, faults)
    rows = [np.repeat(np.arange(60), count) for count in counts]
    expected = []
    for places in rows:
        order = places[np.argsort(-values[places], kind="stable")]
        positives = int(faults[places].sum())
        better = stats.mannwhitneyu(values[places][faults[places]], values[places][~faults[places]]).statistic
        precisions = [faults[order][:first].mean() for first in (positives, benchmark.FIRST)]
        expected.append([*precisions, better / (positives * (len(places) - positives))])
    np.testing.assert_allclose(ranking.measure(counts), expected)
    assert np.isnan(benchmark.Ranking(values, np.zeros(60, bool)).measure(counts)).all()
    few = benchmark.Ranking(values, faults).measure(np.eye(60, dtype=int)[:1])  # one candidate
    assert few[0, 1] == 1 if faults[0] else np.isnan(few[0, 1])


def seen(count: int) -> list[Seen]:
    """Pictures with discs, of which a model finds all but the last, with right masks, and one where nothing is."""
    pictures = []
    for number in range(count):
        picture = Picture(None, f"{number}.json", height=SIZE[0], width=SIZE[1])
        picture.objects = [Object("cell", f"id {place}", rle=mask) for place, mask in enumerate(DISCS)]
        masks = [*DISCS[:-1], disc(1, 1, 5)]
        scores = np.array([0.9] * (len(masks) - 1) + [0.3])
        ious = np.full(len(masks), 0.9)
        pictures.append(
            Seen(picture, picture.label, Found(np.ones(len(masks), int), scores, ious, scores * ious, masks))
        )
    return pictures


def test_the_true_error_counts_what_is_missed_and_wrong():
    (one,) = seen(1)
    share, errors = benchmark.true_errors(one)
    assert errors == 1, "the wrong one has a mask score below 0.5"
    assert share == pytest.approx(1 - 2 * 19 / (2 * 19 + 1))


def test_a_good_model_finds_the_planted_faults():
    pictures = seen(4)
    chances = [np.full(len(one.found.scores), 0.9) for one in pictures]
    planted = [benchmark.tasks_of(pictures, seed, chances) for seed in range(2)]
    assert set(planted[0]) == {"shape", "surplus", "labels", "missing", "queue"}
    for name, least in {"labels": 0.7, "missing": 0.9, "queue": 0.6}.items():
        rows = benchmark.measure([each[name] for each in planted], 4, 20, benchmark.BASELINES[name])
        value, low, high = rows["review"]["first as planted"]["interval"]
        assert low <= value <= high
        assert value > least, name
        assert rows["random"]["first as planted"]["interval"][0] < 0.5
        assert rows[benchmark.BASELINES[name]]["AUROC"]["gain"] == [0, 0, 0]


def test_chances_come_from_the_other_pictures():
    pictures = seen(8)
    chances = benchmark.calibrated_chances(pictures)
    assert [len(of_picture) for of_picture in chances] == [len(one.found.scores) for one in pictures]
    assert all(of_picture[0] > 0.8 > 0.4 > of_picture[-1] for of_picture in chances)
    assert benchmark.calibrated_chances(pictures[:1]) is None


def test_the_docs_have_the_committed_figures():
    page = (ROOT / "docs" / "own_data.md").read_text()
    results = {}
    for title, name in {"nuclei": "nuclei", "persons": "person"}.items():
        path = f"benchmarks/results/2026-11-28-label-review-{name}-xeon-1-thread.json"
        assert f"(../{path})" in page
        results[title] = json.loads((ROOT / path).read_text())
    assert benchmark.summary(results) in page
    for facts in results.values():
        for task in facts["review"].values():
            for row in task["rankings"].values():
                for value, low, high in (row[kind]["interval"] for kind in benchmark.MEASURES):
                    assert low <= value <= high or np.isnan(value)
