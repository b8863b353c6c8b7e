"""The intervals of the scores, against a plain loop over the images that were drawn."""

import numpy as np
import pytest

from m3dec.processing.referring_iou import ReferringIoU, bootstrap_intervals, paired_bootstrap_intervals

NAMES = ["oiou", "miou", "pr@0.5", "pr@0.6", "pr@0.7", "pr@0.8", "pr@0.9"]


def ordinary(images, seed=0):
    """Pairs and the images of one to six sentences each, some of them of two empty masks."""
    random = np.random.default_rng(seed)
    ids = np.repeat(np.arange(images), random.integers(1, 7, images))
    union = random.integers(0, 50, len(ids))
    return np.stack([random.integers(0, union + 1), union], 1), ids


def scores_by_loop(pairs, ids, resamples, seed):
    """Every sentence of every drawn image goes through ReferringIoU again."""
    random = np.random.default_rng(seed)
    images, scores = sorted(set(ids)), []
    for _ in range(resamples):
        score = ReferringIoU()
        for drawn in random.integers(len(images), size=len(images)):
            score.update_pairs(
                [pair for pair, image in zip(pairs.tolist(), ids, strict=True) if image == images[drawn]]
            )
        scores.append(score.compute())
    return {name: np.array([score[name] for score in scores]) for name in NAMES}


def by_loop(pairs, ids, confidence, resamples, seed):
    ends = [50 * (1 - confidence), 50 * (1 + confidence)]
    scores = scores_by_loop(pairs, ids, resamples, seed)
    return {name: np.percentile(values, ends) for name, values in scores.items()}


@pytest.mark.parametrize(("images", "confidence", "seed"), [(2, 0.5, 0), (7, 0.95, 1), (13, 0.8, 2)])
def test_the_intervals_are_those_of_a_loop_over_the_drawn_images(images, confidence, seed):
    pairs, ids = ordinary(images, seed)
    order = np.random.default_rng(9).permutation(len(ids))
    pairs, ids = pairs[order], [f"image {image}" for image in ids[order]]
    expected = by_loop(pairs, ids, confidence, 40, seed)
    intervals = bootstrap_intervals(pairs, ids, confidence, resamples=40, seed=seed)
    assert list(intervals) == NAMES
    for name, (low, high) in intervals.items():
        assert type(low) is type(high) is float
        assert (low, high) == pytest.approx(expected[name], rel=1e-12)


def test_the_interval_holds_the_score_and_grows_with_the_confidence():
    pairs, ids = ordinary(150)
    score = ReferringIoU()
    score.update_pairs(pairs)
    scores = score.compute()
    narrow, wide = bootstrap_intervals(pairs, ids, 0.5), bootstrap_intervals(pairs, ids, 0.99)
    for name in NAMES:
        assert wide[name][0] < narrow[name][0] < scores[name] < narrow[name][1] < wide[name][1]
    assert bootstrap_intervals(pairs, ids, 0.5) == narrow
    assert bootstrap_intervals(pairs, ids, 0.5, seed=1) != narrow


def test_one_image_has_an_interval_without_width_at_its_score():
    score = ReferringIoU()
    score.update_pairs([[1, 3], [2, 7], [0, 0]])
    for name, (low, high) in bootstrap_intervals([[1, 3], [2, 7], [0, 0]], [5, 5, 5], resamples=20).items():
        assert low == high == pytest.approx(score.compute()[name], rel=1e-14)


def test_only_empty_masks_have_intervals_at_1():
    assert set(bootstrap_intervals([[0, 0]] * 3, [0, 1, 2], resamples=20).values()) == {(1.0, 1.0)}


def test_nine_of_ten_intervals_hold_the_truth_where_sentences_share_their_image():
    random = np.random.default_rng(0)
    covered = {"oiou": 0, "miou": 0}
    alone = 0
    for _ in range(120):
        ids = np.repeat(np.arange(60), random.integers(1, 7, 60))
        of_image, of_sentence = random.integers(20, 61, 60)[ids], random.integers(-15, 16, len(ids))
        pairs = np.stack([of_image + of_sentence, np.full(len(ids), 100)], 1)  # both IoUs are 0.4 in the long run
        for name in covered:
            low, high = bootstrap_intervals(pairs, ids, 0.9, resamples=200)[name]
            covered[name] += low <= 0.4 <= high
        low, high = bootstrap_intervals(pairs, np.arange(len(ids)), 0.9, resamples=200)["miou"]
        alone += low <= 0.4 <= high
    assert all(0.84 <= count / 120 <= 0.96 for count in covered.values()), covered
    assert alone / 120 < 0.75  # drawing sentences instead of images promises too much


def two_models(images, better, seed=0):
    """Pairs of one model, and of another that adds `better` pixels to nearly every intersection."""
    random = np.random.default_rng(seed)
    ids = np.repeat(np.arange(images), random.integers(1, 7, images))
    hardness = random.integers(10, 61, images)[ids]  # both find the same images hard
    ours = np.stack([hardness + random.integers(-5, 6, len(ids)) + better, np.full(len(ids), 100)], 1)
    return ours, np.stack([hardness + random.integers(-5, 6, len(ids)), np.full(len(ids), 100)], 1), ids


@pytest.mark.parametrize(("images", "confidence", "seed"), [(2, 0.5, 0), (11, 0.9, 1)])
def test_paired_intervals_are_those_of_a_loop_that_draws_the_same_images_for_both(images, confidence, seed):
    ours, theirs, ids = two_models(images, better=2, seed=seed)
    one, other = (scores_by_loop(pairs, ids, 40, seed) for pairs in (ours, theirs))
    intervals = paired_bootstrap_intervals(ours, theirs, ids, confidence, resamples=40, seed=seed)
    assert list(intervals) == NAMES
    for name, ends in intervals.items():
        expected = np.percentile(one[name] - other[name], [50 * (1 - confidence), 50 * (1 + confidence)])
        assert ends == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_model_differs_from_itself_by_exactly_nothing():
    pairs, ids = ordinary(60)
    assert set(paired_bootstrap_intervals(pairs, pairs, ids, resamples=50).values()) == {(0.0, 0.0)}


def test_a_paired_interval_decides_where_the_two_own_intervals_overlap():
    ours, theirs, ids = two_models(80, better=3)
    low, high = paired_bootstrap_intervals(ours, theirs, ids, 0.95)["miou"]
    assert 0 < low < 0.03 < high < 0.06
    assert bootstrap_intervals(ours, ids, 0.95)["miou"][0] < bootstrap_intervals(theirs, ids, 0.95)["miou"][1]
    turned = paired_bootstrap_intervals(theirs, ours, ids, 0.95)["miou"]
    assert turned == pytest.approx((-high, -low))


def test_paired_intervals_need_as_many_pairs_of_both():
    with pytest.raises(ValueError, match="got 2 and 1 pairs"):
        paired_bootstrap_intervals([[1, 2], [2, 2]], [[1, 2]], [1, 2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pairs": [], "image_ids": []}, "at least one pair, but got 0 pairs"),
        ({"image_ids": [1]}, r"2 pairs and ids of int64 \(1,\)"),
        ({"image_ids": [1.0, 2.0]}, "ids of float64"),
        ({"image_ids": None}, "ids of object"),
        ({"pairs": [[3, 2], [1, 2]]}, r"row 0 is \[3, 2\]"),
        ({"confidence": 95}, "between 0 and 1, but it is 95"),
        ({"confidence": 0.0}, "between 0 and 1, but it is 0.0"),
        ({"resamples": 0}, "at least 1, but it is 0"),
        ({"resamples": 10.0}, "an integer of at least 1, but it is 10.0"),
    ],
)
def test_what_cannot_be_resampled_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(**{"pairs": [[1, 2], [2, 2]], "image_ids": [1, 2]} | changed)
    with pytest.raises(ValueError, match=message):
        arguments = {"pairs": [[1, 2], [2, 2]], "image_ids": [1, 2]} | changed
        paired_bootstrap_intervals(other_pairs=arguments["pairs"], **arguments)
