"""How far the scores could be off by the choice of images: percentile intervals of the bootstrap over images."""

import numpy as np

from .score import PRECISIONS, check_pairs, iou_and_above


def bootstrap_intervals(
    pairs, image_ids, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the scores, from drawing whole images with replacement.

    The sentences of one image are not independent, so an image is drawn with all of its sentences.

    Args:
        pairs: (N, 2) integers, [intersection, union] of each expression, as for ReferringIoU; N >= 1.
        image_ids: (N,) integers or strings, the image of each expression; any order.
        confidence: the part of the resampled scores inside the interval, between 0 and 1.
        resamples: how often as many images are drawn as there are.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        (low, high) of oiou, miou, pr@0.5 … pr@0.9, from 0.0 to 1.0. They tell the spread by the choice of images
        only, not that of training or of labelling. With one image both ends are its score.

    Raises:
        ValueError: no pairs, ids that do not fit them, a confidence or a number of resamples out of range.
    """
    _check_resampling(confidence, resamples)
    (scores,) = _resampled_scores([check_pairs(pairs)], image_ids, resamples, seed)
    return {name: _interval(values, confidence) for name, values in scores.items()}


def paired_bootstrap_intervals(
    pairs, other_pairs, image_ids, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the differences between two models' scores on the same expressions, first less second.

    Each time the same images are drawn for both, so what makes an image hard for both cancels out: the interval is
    narrower than the two models' own would suggest. Where it holds 0, these images do not decide between the two.

    Args as for `bootstrap_intervals`; `other_pairs` (N, 2) are the same expressions, in the same order, by the second.

    Returns:
        (low, high) of the difference of oiou, miou, pr@0.5 … pr@0.9, from -1.0 to 1.0.

    Raises:
        ValueError: as `bootstrap_intervals`, or the two have different numbers of pairs.
    """
    _check_resampling(confidence, resamples)
    pairs, other_pairs = check_pairs(pairs), check_pairs(other_pairs)
    if len(pairs) != len(other_pairs):
        raise ValueError(
            f"Both models answer the same expressions, but got {len(pairs)} and {len(other_pairs)} pairs. Give both "
            "in the same order, one pair for each expression."
        )
    scores, others = _resampled_scores([pairs, other_pairs], image_ids, resamples, seed)
    return {name: _interval(values - others[name], confidence) for name, values in scores.items()}


def _check_resampling(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"The confidence lies between 0 and 1, but it is {confidence}. For 95 % give 0.95.")
    if not isinstance(resamples, int) or resamples < 1:
        raise ValueError(f"resamples is an integer of at least 1, but it is {resamples!r}. 1000 is usual.")


def _resampled_scores(models: list[np.ndarray], image_ids, resamples: int, seed: int) -> list[dict[str, np.ndarray]]:
    """For the pairs (N, 2) of each model every score (resamples,), over the same drawn images for all of them."""
    images, count = np.asarray(image_ids), len(models[0])
    if count == 0 or images.shape != (count,) or images.dtype.kind not in "iuU":
        raise ValueError(
            "Every pair needs the id of its image, an integer or a string, and there is at least one pair, but got "
            f"{count} pairs and ids of {images.dtype} {images.shape}. Give the ids in the order of the pairs."
        )
    _, image = np.unique(images, return_inverse=True)
    sums = [_sums_by_image(pairs, image) for pairs in models]
    num_images = len(sums[0])
    random = np.random.default_rng(seed)
    totals = np.empty((len(models), resamples, sums[0].shape[1]))
    for resample in range(resamples):
        drawn = np.bincount(random.integers(num_images, size=num_images), minlength=num_images)  # how often each image
        for model, model_sums in enumerate(sums):  # apart, so that equal models have equal scores to the last bit
            totals[model, resample] = drawn @ model_sums
    return [_scores(total) for total in totals]


def _sums_by_image(pairs: np.ndarray, image: np.ndarray) -> np.ndarray:
    """What each image adds to each sum, (images, 9). Below 2**53 float64 holds the pixels exactly, and is fast."""
    ious, above = iou_and_above(pairs)
    columns = [np.ones(len(pairs)), *pairs.T, ious, *above.T]
    return np.stack([np.bincount(image, weights=column) for column in columns], axis=1)


def _scores(totals: np.ndarray) -> dict[str, np.ndarray]:
    """The scores (resamples,) that the sums `totals` (resamples, 9) give."""
    count, intersection, union, iou_sum, *above = totals.T
    oiou = np.where(union == 0, 1.0, intersection / np.maximum(union, 1))
    precisions = {name: passed / count for name, passed in zip(PRECISIONS, above, strict=True)}
    return {"oiou": oiou, "miou": iou_sum / count, **precisions}


def _interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    return tuple(np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist())
