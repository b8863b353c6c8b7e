import json
import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from m3dec.processing.referring_iou import ReferringIoU, intersection_and_union

NAMES = ["pr@0.5", "pr@0.6", "pr@0.7", "pr@0.8", "pr@0.9"]
PAIRS = st.lists(
    st.integers(0, 60).flatmap(lambda union: st.tuples(st.integers(0, union), st.just(union))), min_size=1, max_size=12
)
H, W = 2, 3
MASKS = [frozenset(p for p in range(H * W) if bits >> p & 1) for bits in range(2 ** (H * W))]  # as sets of pixels
EMPTY_OR_NOT = st.sampled_from([MASKS[0]] * 20 + MASKS)
ANSWERS = st.lists(st.tuples(EMPTY_OR_NOT, EMPTY_OR_NOT), min_size=1, max_size=5)  # (prediction, target)
thoroughly = settings(max_examples=1000, deadline=None)


def by_fractions(pairs):
    """Every score in exact fractions, one expression at a time."""
    ious = [Fraction(i, u) if u else Fraction(1) for i, u in pairs]
    union = sum(u for _, u in pairs)
    scores = {
        "oiou": Fraction(sum(i for i, _ in pairs), union) if union else Fraction(1),
        "miou": sum(ious) / len(ious),
    }
    for tenths, name in zip(range(5, 10), NAMES, strict=True):
        scores[name] = Fraction(sum(iou > Fraction(tenths, 10) for iou in ious), len(ious))
    return {name: float(score) for name, score in scores.items()} | {"count": len(pairs)}


def score_of(pairs):
    score = ReferringIoU()
    score.update_pairs(np.array(pairs, dtype=np.int64).reshape(-1, 2))
    return score


def by_pixel_sets(answers):
    """The scores of generalised segmentation from their definitions, one expression and one set of pixels at a time."""
    ious, intersection, union, no_target, with_target = [], 0, 0, [], []
    for prediction, target in answers:
        if target:
            ious.append(Fraction(len(prediction & target), len(prediction | target)))
            with_target.append(len(prediction) > 0)
        else:
            ious.append(Fraction(len(prediction) == 0))
            no_target.append(len(prediction) == 0)
        intersection += len(prediction & target)
        union += len(prediction | target)
    return {
        "giou": float(sum(ious) / len(ious)),
        "ciou": intersection / union if union else 1.0,
        "n_acc": sum(no_target) / len(no_target) if no_target else None,
        "t_acc": sum(with_target) / len(with_target) if with_target else math.nan,
    }


def mask_of(pixels):
    mask = np.zeros(H * W, bool)
    mask[list(pixels)] = True
    return mask.reshape(H, W)


def score_of_answers(answers):
    score = ReferringIoU()
    score.update([mask_of(prediction) for prediction, _ in answers], [mask_of(target) for _, target in answers])
    return score


def integers_of(score):
    """All that a score has counted; the sum of the IoUs is its only float."""
    counted = {name: value for name, value in vars(score).items() if name != "iou_sum"}
    assert all(type(value) is int for value in [*counted.pop("above"), *counted.values()])
    return {name: value for name, value in vars(score).items() if name != "iou_sum"}


@thoroughly
@given(PAIRS)
def test_the_scores_are_those_of_exact_fractions(pairs):
    assert score_of(pairs).compute() == pytest.approx(by_fractions(pairs), rel=1e-13)


@thoroughly
@given(ANSWERS)
def test_the_scores_of_masks_with_empty_ones_are_those_of_sets_of_pixels(answers):
    scores, expected = score_of_answers(answers).compute(), by_pixel_sets(answers)
    pairs = [(len(prediction & target), len(prediction | target)) for prediction, target in answers]
    if all(target for _, target in answers):
        assert scores == pytest.approx(by_fractions(pairs), rel=1e-13)
    else:
        assert scores == pytest.approx(by_fractions(pairs) | expected, rel=1e-13, nan_ok=True)
        assert list(scores)[-5:] == ["count", "giou", "ciou", "n_acc", "t_acc"]


@thoroughly
@given(ANSWERS, st.data())
def test_merging_the_parts_of_any_partition_in_any_order_equals_the_whole(answers, data):
    part_of = data.draw(st.lists(st.integers(0, 3), min_size=len(answers), max_size=len(answers)))
    parts = [score_of_answers([a for a, p in zip(answers, part_of, strict=True) if p == part]) for part in range(4)]
    merged = ReferringIoU()
    for part in data.draw(st.permutations(parts)):
        merged.merge(part)
    whole = score_of_answers(answers)
    assert integers_of(merged) == integers_of(whole)
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-13, nan_ok=True)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_expressions_dealt_out_to_ranks_are_counted_as_by_one(ranks):
    random = np.random.default_rng(ranks)
    for n in range(1, 51):
        prediction, target, both = random.integers(0, 3, size=(3, n))
        pairs, areas = (
            np.stack([both, prediction + target + both], 1),
            np.stack([prediction, target], 1) + both[:, None],
        )
        whole, gathered, merged = ReferringIoU(), ReferringIoU(), ReferringIoU()
        whole.update_pairs(pairs, areas)
        gathered.update_pairs(
            np.concatenate([pairs[rank::ranks] for rank in range(ranks)]),
            np.concatenate([areas[rank::ranks] for rank in range(ranks)]),
        )
        for rank in range(ranks):
            part = ReferringIoU()
            part.update_pairs(pairs[rank::ranks], areas[rank::ranks])
            merged.merge(part)
        assert integers_of(gathered) == integers_of(merged) == integers_of(whole)
        assert whole.count == n


RANK = """
import json
from accelerate import Accelerator
from accelerate.utils import gather_object

accelerator = Accelerator(cpu=True)
for n in (1, 2, 5, 50):
    rows = [[i % 7, i % 7 + i % 5 + i % 3, i % 7 + i % 5, i % 7 + i % 3] for i in range(n)]
    rows = gather_object(rows[accelerator.process_index :: accelerator.num_processes])
    if accelerator.is_main_process:
        print(json.dumps([accelerator.num_processes, n, rows]))
accelerator.end_training()
"""


def test_three_real_processes_gather_every_expression_once(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]  # on a free port
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(tmp_path / "rank.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [(processes, n) for processes, n, _ in answers] == [(3, n) for n in (1, 2, 5, 50)]
    for _, n, rows in answers:
        gathered, alone = ReferringIoU(), ReferringIoU()
        gathered.update_pairs([row[:2] for row in rows], [row[2:] for row in rows])
        for i in range(n):
            both, wrong, missed = i % 7, i % 5, i % 3
            alone.update_pairs([[both, both + wrong + missed]], [[both + wrong, both + missed]])
        assert integers_of(gathered) == integers_of(alone)


def test_the_iou_of_masks_is_that_of_pycocotools():
    random = np.random.default_rng(0)
    score, ious = ReferringIoU(), []
    for size in [(5, 7), (13, 11), (31, 17), (1, 1), (2, 97)]:
        prediction, target = random.random((2, *size)) < 0.6
        target[0, 0] = True
        encoded = [coco_mask.encode(np.asfortranarray(m[:, :, None], dtype=np.uint8)) for m in (prediction, target)]
        iou = coco_mask.iou(encoded[0], encoded[1], [0]).item()
        i, u = intersection_and_union(prediction, target)
        assert i / u == pytest.approx(iou, rel=1e-15)
        score.update(prediction, target)
        ious.append(iou)
    assert score.compute()["miou"] == pytest.approx(np.mean(ious), rel=1e-14)


@pytest.mark.parametrize("tenths", range(5, 10))
@pytest.mark.parametrize("scale", [1, 7, 3001, 999_999_937])
def test_an_iou_of_exactly_x_is_not_above_x(tenths, scale):
    name = f"pr@0.{tenths}"
    assert score_of([(tenths * scale, 10 * scale)]).compute()[name] == 0.0
    assert score_of([(tenths * scale + 1, 10 * scale)]).compute()[name] == 1.0


def test_a_list_of_masks_counts_as_its_masks_one_by_one():
    random = np.random.default_rng(1)
    predictions = [random.random(size) < 0.5 for size in [(3, 5), (7, 2), (4, 4)]]
    targets = [random.random(mask.shape) < 0.5 for mask in predictions]
    together, apart = ReferringIoU(), ReferringIoU()
    together.update(predictions, targets)
    for prediction, target in zip(predictions, targets, strict=True):
        apart.update(prediction.astype(np.uint8), target)
    assert together.compute() == apart.compute()
    assert together.count == 3


def test_two_empty_masks_have_iou_1_and_add_nothing_to_the_overall_iou():
    empty, full = np.zeros((4, 6), bool), np.ones((4, 6), bool)
    score = ReferringIoU()
    score.update(empty, empty)
    generalised = {"giou": 1.0, "ciou": 1.0, "n_acc": 1.0, "t_acc": pytest.approx(math.nan, nan_ok=True)}
    assert score.compute() == dict.fromkeys(["oiou", "miou", *NAMES], 1.0) | {"count": 1} | generalised
    score.update(empty, full)
    generalised = {"giou": 0.5, "ciou": 0.0, "n_acc": 1.0, "t_acc": 0.0}
    assert score.compute() == {"oiou": 0.0, "miou": 0.5, **dict.fromkeys(NAMES, 0.5), "count": 2} | generalised


def test_generalised_scores_need_the_areas_of_every_expression():
    empty = np.zeros((4, 6), bool)
    masks, pairs, merged = ReferringIoU(), score_of([(0, 0), (1, 2)]), ReferringIoU()
    masks.update(empty, empty)
    assert "giou" in masks.compute()
    assert "giou" not in pairs.compute()
    merged.merge(masks)
    merged.merge(pairs)
    assert list(merged.compute()) == ["oiou", "miou", *NAMES, "count"]
    masks.update_pairs([], [])
    masks.update_pairs([])
    masks.update_pairs([[1, 2]], [[1, 2]])
    assert masks.compute()["t_acc"] == 1.0


@pytest.mark.parametrize(
    ("areas", "message"),
    [
        ([[4, 5], [2, 2]], r"row 1 has \[intersection, union\] \[2, 3\] and \[prediction, target\] \[2, 2\]"),
        ([[1, 8], [2, 3]], "row 0 .* no area is below|no area is below .* row 0"),
        ([[4, 5]], "2 pairs and 1 areas"),
        ([[4.0, 5.0], [2.0, 3.0]], "Areas are integers .* float64"),
        ([4, 5], r"Areas are integers .* \(2,\)"),
        ([[4, 5], [2]], "Areas are integers .* object"),
        (np.array([[4, 5], [2**64 - 1, 3]], np.uint64), "row 1"),
    ],
)
def test_areas_that_do_not_fit_their_pairs_are_refused_and_change_nothing(areas, message):
    score = ReferringIoU()
    score.update_pairs([[0, 0]], [[0, 0]])
    before = dict(vars(score))
    with pytest.raises(ValueError, match=message):
        score.update_pairs([[2, 7], [2, 3]], areas)
    assert vars(score) == before


def test_scores_of_nothing_are_nan():
    score = ReferringIoU()
    score.update([], [])
    score.update_pairs(np.zeros((0, 2), np.int64))
    scores = score.compute()
    assert list(scores) == ["oiou", "miou", *NAMES, "count"]
    assert scores.pop("count") == 0
    assert all(math.isnan(value) for value in scores.values())


def test_thirty_thousand_large_masks_lose_no_pixel():
    score = ReferringIoU()
    for _ in range(30):
        score.update_pairs(np.tile([[2_000_000_001, 3_000_000_001]], (1000, 1)))
    assert (score.intersection, score.union) == (30_000 * 2_000_000_001, 30_000 * 3_000_000_001)
    assert score.compute()["miou"] == pytest.approx(2_000_000_001 / 3_000_000_001, rel=1e-12)


def test_small_integer_types_do_not_overflow():
    score = ReferringIoU()
    score.update_pairs(np.full((300, 2), 255, np.uint8))
    assert score.compute() == dict.fromkeys(["oiou", "miou", *NAMES], 1.0) | {"count": 300}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0.5, 1.0]], "float64"),
        ([[True, True]], "bool"),
        ([1, 2], r"\(2,\)"),
        ([[1, 2, 3]], r"\(1, 3\)"),
        ([[1, 2], [3]], r"object \(2,\)"),
        (np.zeros((0, 3), np.int64), r"\(0, 3\)"),
        ([[1, 2], [3, 2]], r"row 1 is \[3, 2\]"),
        ([[-1, 2]], r"row 0 is \[-1, 2\]"),
        (np.array([[1, 2**64 - 1]], np.uint64), "row 0"),
    ],
)
def test_pairs_that_cannot_be_pixel_counts_are_refused_and_change_nothing(pairs, message):
    score = score_of([(1, 2)])
    with pytest.raises(ValueError, match=message):
        score.update_pairs(pairs)
    assert score.compute() == score_of([(1, 2)]).compute()


MASK = np.zeros((3, 4), bool)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (MASK, MASK.T, r"\(3, 4\) and \(4, 3\)"),
        (MASK, np.zeros((3, 4)), "target is a mask .* float64"),
        (np.full((3, 4), 255, np.uint8), MASK, "prediction is a mask .* uint8"),
        (MASK[None], MASK, r"\(1, 3, 4\)"),
        ([MASK, MASK], [MASK], "2 predictions and 1 targets"),
    ],
)
def test_masks_that_do_not_fit_are_refused(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        ReferringIoU().update(prediction, target)
