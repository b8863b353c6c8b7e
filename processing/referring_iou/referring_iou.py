"""The field's scores of referring segmentation: overall IoU, mean IoU and Precision@X, from integer pixel counts."""

import numpy as np

_TENTHS = (5, 6, 7, 8, 9)  # the X of Pr@X, in tenths, so that they are compared in integers
_MOST_PIXELS = 2**40  # more than any mask; keeps every product and sum below exact


class ReferringIoU:
    """Scores that grow with each expression; it keeps sums and counts only.

    score = ReferringIoU()
    score.update(prediction, target)
    score.compute()  # {"oiou": 0.61, "miou": 0.64, "pr@0.5": 0.71, …, "pr@0.9": 0.2, "count": 10834}

    Each expression counts once. An expression whose prediction and target are both empty has IoU 1 and adds nothing to
    the overall IoU. Across processes gather the pairs [intersection, union], not averages, or `merge`.
    """

    def __init__(self):
        self.count = 0
        self.intersection = 0  # pixels, over all expressions
        self.union = 0
        self.iou_sum = 0.0
        self.above = [0] * len(_TENTHS)  # expressions with an IoU above each X

    def update(self, prediction, target) -> None:
        """Add one expression's masks, or equally long lists of masks.

        Args:
            prediction: (h, w) bool, or integers 0 and 1, True on the object; or a list of them, sizes may differ.
            target: the truth, of the same size or sizes.

        Raises:
            ValueError: the lists or the sizes differ, or a mask is not binary.
        """
        if not isinstance(prediction, list | tuple):
            prediction, target = [prediction], [target]
        if len(prediction) != len(target):
            raise ValueError(
                f"Every prediction needs its target, but got {len(prediction)} predictions and {len(target)} targets. "
                "Give two lists of one length, in the same order."
            )
        self.update_pairs([intersection_and_union(p, t) for p, t in zip(prediction, target, strict=True)])

    def update_pairs(self, pairs) -> None:
        """Add expressions by their pixel counts.

        Args:
            pairs: (N, 2) integers, [intersection, union] of each expression. N may be 0.

        Raises:
            ValueError: another shape, not integers, or an intersection that is negative or larger than its union.
        """
        pairs = np.asarray(pairs)
        if pairs.size == 0 and pairs.shape in ((0,), (0, 2)):
            return
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise ValueError(
                "Pairs are integers of shape (N, 2), [intersection, union] in pixels, but got "
                f"{pairs.dtype} {pairs.shape}. Make them with intersection_and_union(prediction, target)."
            )
        wrong = np.flatnonzero((pairs[:, 0] < 0) | (pairs[:, 0] > pairs[:, 1]) | (pairs[:, 1] >= _MOST_PIXELS))
        if wrong.size:
            raise ValueError(
                f"A pair [intersection, union] has 0 <= intersection <= union, but row {wrong[0]} is "
                f"{pairs[wrong[0]].tolist()}. Is the union first, or an area in its place?"
            )
        intersection, union = pairs.astype(np.int64).T
        self.count += len(pairs)
        self.intersection += int(intersection.sum())
        self.union += int(union.sum())
        self.iou_sum += float(np.where(union == 0, 1.0, intersection / np.maximum(union, 1)).sum())
        for index, tenths in enumerate(_TENTHS):  # strictly above: 7 of 10 pixels are not above 0.7
            self.above[index] += int(((10 * intersection > tenths * union) | (union == 0)).sum())

    def merge(self, other: "ReferringIoU") -> None:
        """Add all that `other` has seen, as if it had been seen here."""
        self.count += other.count
        self.intersection += other.intersection
        self.union += other.union
        self.iou_sum += other.iou_sum
        self.above = [mine + theirs for mine, theirs in zip(self.above, other.above, strict=True)]

    def compute(self) -> dict[str, float | int]:
        """The scores so far, from 0.0 to 1.0; NaN before the first expression.

        Returns:
            oiou: the sum of intersections over the sum of unions, also called cumulative IoU (1.0 if all is empty).
            miou: the mean of the expressions' IoUs.
            pr@0.5 … pr@0.9: the part of the expressions with an IoU strictly above X.
            count: the number of expressions, an int.
        """
        names = [f"pr@0.{tenths}" for tenths in _TENTHS]
        if self.count == 0:
            return dict.fromkeys(["oiou", "miou", *names], float("nan")) | {"count": 0}
        return {
            "oiou": self.intersection / self.union if self.union else 1.0,
            "miou": self.iou_sum / self.count,
            **{name: above / self.count for name, above in zip(names, self.above, strict=True)},
            "count": self.count,
        }


def intersection_and_union(prediction, target) -> tuple[int, int]:
    """Pixels in both masks, and pixels in either: (h, w) bool, or integers 0 and 1, of one size.

    Raises:
        ValueError: the sizes differ, or a mask is not binary.
    """
    prediction, target = _binary(prediction, "prediction"), _binary(target, "target")
    if prediction.shape != target.shape:
        raise ValueError(
            f"Prediction and target have one size, but they are {prediction.shape} and {target.shape}. "
            "Resize the prediction to the target's size; the processor's post-processing takes target_sizes."
        )
    return int(np.count_nonzero(prediction & target)), int(np.count_nonzero(prediction | target))


def _binary(mask, name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim == 2 and mask.dtype.kind in "iu" and np.isin(mask, (0, 1)).all():
        return mask.astype(bool)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(
            f"The {name} is a mask (h, w) of bool or of 0 and 1, but it is {mask.dtype} {mask.shape}. Compare with a "
            "threshold first: mask > 0 for 0 and 255, probability > 0.5; and give several masks as a list."
        )
    return mask
