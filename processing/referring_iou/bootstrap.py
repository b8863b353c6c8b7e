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
    pairs, images = check_pairs(pairs), np.asarray(image_ids)
    if len(pairs) == 0 or images.shape != (len(pairs),) or images.dtype.kind not in "iuU":
        raise ValueError(
            "Every pair needs the id of its image, an integer or a string, and there is at least one pair, but got "
            f"{len(pairs)} pairs and ids of {images.dtype} {images.shape}. Give the ids in the order of the pairs."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"The confidence lies between 0 and 1, but it is {confidence}. For 95 % give 0.95.")
    if not isinstance(resamples, int) or resamples < 1:
        raise ValueError(f"resamples is an integer of at least 1, but it is {resamples!r}. 1000 is usual.")

    # What an image adds to each sum. Below 2**53 float64 holds the pixels exactly, and multiplies fast.
    ious, above = iou_and_above(pairs)
    _, image = np.unique(images, return_inverse=True)
    columns = [np.ones(len(pairs)), *pairs.T, ious, *above.T]
    sums = np.stack([np.bincount(image, weights=column) for column in columns], axis=1)  # (images, 9)

    random = np.random.default_rng(seed)
    totals = np.empty((resamples, sums.shape[1]))
    for total in totals:
        drawn = np.bincount(random.integers(len(sums), size=len(sums)), minlength=len(sums))  # how often each image
        total[:] = drawn @ sums
    count, intersection, union, iou_sum, *above = totals.T  # (resamples,) each

    oiou = np.where(union == 0, 1.0, intersection / np.maximum(union, 1))
    precisions = {name: passed / count for name, passed in zip(PRECISIONS, above, strict=True)}
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    return {
        name: tuple(np.quantile(values, ends).tolist())
        for name, values in {"oiou": oiou, "miou": iou_sum / count, **precisions}.items()
    }
