"""The field's scores of referring segmentation: overall IoU, mean IoU and Precision@X, from integer pixel counts."""

import numpy as np

PRECISIONS = {f"pr@0.{tenths}": tenths for tenths in range(5, 10)}  # X in tenths, so that it is compared in integers
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
        self.above = [0] * len(PRECISIONS)  # expressions with an IoU above each X
        self.without_areas = 0  # expressions that came as a pair only
        self.no_target = 0  # expressions with an empty target
        self.no_target_empty = 0  # of them, those whose prediction is empty too
        self.target_answered = 0  # expressions with a target and a prediction that is not empty

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
        counts = [pixel_counts(p, t) for p, t in zip(prediction, target, strict=True)]
        self.update_pairs([row[:2] for row in counts], [row[2:] for row in counts])

    def update_pairs(self, pairs, areas=None) -> None:
        """Add expressions by their pixel counts.

        Args:
            pairs: (N, 2) integers, [intersection, union] of each expression. N may be 0.
            areas: (N, 2) integers, [pixels of the prediction, pixels of the target]. Without them compute() cannot
                tell an empty target from a missed one, and gives no generalised scores.

        Raises:
            ValueError: another shape, not integers, an intersection that is negative or larger than its union, or
                areas that do not fit their pairs. Nothing has been added then.
        """
        pairs = check_pairs(pairs)
        intersection, union = pairs.T
        if areas is None:
            self.without_areas += len(pairs)
        else:
            predicted, target = _check_areas(areas, pairs).T
            self.no_target += int((target == 0).sum())
            self.no_target_empty += int(((target == 0) & (predicted == 0)).sum())
            self.target_answered += int(((target > 0) & (predicted > 0)).sum())
        ious, above = iou_and_above(pairs)
        self.count += len(pairs)
        self.intersection += int(intersection.sum())
        self.union += int(union.sum())
        self.iou_sum += float(ious.sum())
        self.above = [before + int(new) for before, new in zip(self.above, above.sum(axis=0), strict=True)]

    def merge(self, other: "ReferringIoU") -> None:
        """Add all that `other` has seen, as if it had been seen here."""
        for name, theirs in vars(other).items():
            mine = getattr(self, name)
            both = [a + b for a, b in zip(mine, theirs, strict=True)] if name == "above" else mine + theirs
            setattr(self, name, both)

    def compute(self) -> dict[str, float | int]:
        """The scores so far, from 0.0 to 1.0; NaN before the first expression.

        Returns:
            oiou: the sum of intersections over the sum of unions, also called cumulative IoU (1.0 if all is empty).
            miou: the mean of the expressions' IoUs.
            pr@0.5 … pr@0.9: the part of the expressions with an IoU strictly above X.
            count: the number of expressions, an int.

            The generalised scores (GRES), only if a target was empty and every expression came with its areas, by
            update() or by update_pairs(pairs, areas):
            giou: the mean IoU over all expressions; an empty target has IoU 1 if the prediction is empty, else 0.
            ciou: the sum of intersections over the sum of unions, over all expressions.
            Pr@X is over all expressions too, an empty answer to an empty target being above every X; GRES's own
            evaluation counts it over expressions with a target only.
            n_acc: the part of the expressions without a target whose prediction is empty.
            t_acc: the part of the expressions with a target whose prediction is not empty; NaN if there is none.
        """
        if self.count == 0:
            return dict.fromkeys(["oiou", "miou", *PRECISIONS], float("nan")) | {"count": 0}
        oiou = self.intersection / self.union if self.union else 1.0
        miou = self.iou_sum / self.count
        precisions = {name: above / self.count for name, above in zip(PRECISIONS, self.above, strict=True)}
        scores = {"oiou": oiou, "miou": miou, **precisions, "count": self.count}
        if self.no_target == 0 or self.without_areas > 0:
            return scores
        with_target = self.count - self.no_target
        return scores | {
            "giou": miou,  # IoU 1 of an empty union is the same rule, so both names hold one number
            "ciou": oiou,
            "n_acc": self.no_target_empty / self.no_target,
            "t_acc": self.target_answered / with_target if with_target else float("nan"),
        }


def intersection_and_union(prediction, target) -> tuple[int, int]:
    """Pixels in both masks, and pixels in either: (h, w) bool, or integers 0 and 1, of one size.

    Raises:
        ValueError: the sizes differ, or a mask is not binary.
    """
    return pixel_counts(prediction, target)[:2]


def pixel_counts(prediction, target) -> tuple[int, int, int, int]:
    """Pixels in both masks, in either, in the prediction and in the target; masks as in `intersection_and_union`."""
    prediction, target = _binary(prediction, "prediction"), _binary(target, "target")
    if prediction.shape != target.shape:
        raise ValueError(
            f"Prediction and target have one size, but they are {prediction.shape} and {target.shape}. "
            "Resize the prediction to the target's size; the processor's post-processing takes target_sizes."
        )
    intersection, union = np.count_nonzero(prediction & target), np.count_nonzero(prediction | target)
    return int(intersection), int(union), int(np.count_nonzero(prediction)), int(np.count_nonzero(target))


def check_pairs(pairs) -> np.ndarray:
    """The pairs [intersection, union] as int64 (N, 2); N may be 0. Raises ValueError for what cannot be such pairs."""
    pairs = _integer_rows(
        pairs,
        "Pairs are integers of shape (N, 2), [intersection, union] in pixels",
        "Make them with intersection_and_union(prediction, target).",
    )
    wrong = np.flatnonzero((pairs[:, 0] < 0) | (pairs[:, 0] > pairs[:, 1]) | (pairs[:, 1] >= _MOST_PIXELS))
    if wrong.size:
        raise ValueError(
            f"A pair [intersection, union] has 0 <= intersection <= union, but row {wrong[0]} is "
            f"{pairs[wrong[0]].tolist()}. Is the union first, or an area in its place?"
        )
    return pairs.astype(np.int64)


def iou_and_above(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair's IoU (N,) float64, 1.0 for an empty union, and whether it is above each X of Pr@X (N, 5) bool."""
    intersection, union = pairs.T
    ious = np.where(union == 0, 1.0, intersection / np.maximum(union, 1))
    tenths = np.array(list(PRECISIONS.values()))  # strictly above: 7 of 10 pixels are not above 0.7
    return ious, (10 * intersection[:, None] > tenths * union[:, None]) | (union == 0)[:, None]


def _check_areas(areas, pairs: np.ndarray) -> np.ndarray:
    areas = _integer_rows(
        areas,
        "Areas are integers of shape (N, 2), [prediction, target] in pixels",
        "Count the pixels of each mask.",
    ).astype(np.int64)
    if len(areas) != len(pairs):
        raise ValueError(
            f"Every pair needs its areas, but got {len(pairs)} pairs and {len(areas)} areas. "
            "Give two lists of one length, in the same order, or leave the areas out."
        )
    intersection, union = pairs.T
    wrong = np.flatnonzero((areas < intersection[:, None]).any(axis=1) | (areas.sum(axis=1) - intersection != union))
    if wrong.size:
        raise ValueError(
            "Areas fit their pair: union = prediction + target - intersection, and no area is below the intersection, "
            f"but row {wrong[0]} has [intersection, union] {pairs[wrong[0]].tolist()} and [prediction, target] "
            f"{areas[wrong[0]].tolist()}. Count both on the same two masks."
        )
    return areas


def _integer_rows(rows, rule: str, advice: str) -> np.ndarray:
    try:
        rows = np.asarray(rows)
    except ValueError:  # rows of different lengths
        rows = np.asarray(rows, dtype=object)
    if rows.size == 0 and rows.shape in ((0,), (0, 2)):
        return np.zeros((0, 2), np.int64)
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu":
        raise ValueError(f"{rule}, but got {rows.dtype} {rows.shape}. {advice}")
    return rows


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
