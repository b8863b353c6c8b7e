import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from m3dec.processing.referring_iou import ReferringIoU, intersection_and_union

NAMES = ["pr@0.5", "pr@0.6", "pr@0.7", "pr@0.8", "pr@0.9"]
PAIRS = st.lists(
    st.integers(0, 60).flatmap(lambda union: st.tuples(st.integers(0, union), st.just(union))), min_size=1, max_size=30
)


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


@given(PAIRS)
def test_the_scores_are_those_of_exact_fractions(pairs):
    assert score_of(pairs).compute() == pytest.approx(by_fractions(pairs), rel=1e-13)


@given(PAIRS, st.data())
def test_merging_the_parts_of_any_partition_equals_the_whole(pairs, data):
    part_of = data.draw(st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs)))
    parts = [score_of([pair for pair, p in zip(pairs, part_of, strict=True) if p == part]) for part in range(4)]
    merged = ReferringIoU()
    for part in data.draw(st.permutations(parts)):
        merged.merge(part)
    whole = score_of(pairs)
    assert (merged.count, merged.intersection, merged.union, merged.above) == (
        whole.count,
        whole.intersection,
        whole.union,
        whole.above,
    )
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-13)


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
    assert score.compute() == dict.fromkeys(["oiou", "miou", *NAMES], 1.0) | {"count": 1}
    score.update(empty, full)
    assert score.compute() == {"oiou": 0.0, "miou": 0.5, **dict.fromkeys(NAMES, 0.5), "count": 2}


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
