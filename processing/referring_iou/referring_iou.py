"""The scores as a module of `evaluate`: evaluate.load("processing/referring_iou"), see README.md beside this file.

`evaluate` copies this file and what it imports with a dot to a folder of its own, so nothing here needs the package.
"""

import datasets
import evaluate
import numpy as np

from .bootstrap import bootstrap_intervals
from .run_lengths import decode_counts, mask_of
from .score import ReferringIoU, check_pairs, pixel_counts

MOST_PIXELS = 2**28  # of one mask; what Pillow opens has fewer

_DESCRIPTION = "Overall IoU, mean IoU and Precision@X of referring image segmentation, from integer pixel counts."

_INPUTS = """
Args:
    predictions: N masks, each COCO RLE {"size": [h, w], "counts": str} or (h, w) of bool or of 0 and 1, all of one
        kind; or, without references, (N, 2) integers [intersection, union].
    references: the N true masks, of the same kind and sizes.
    image_ids: to compute() only, the image of every expression so far, integers or strings; adds `intervals`.
    confidence: of these intervals, 0.95 by default.

Returns:
    oiou, miou, pr@0.5 … pr@0.9: from 0.0 to 1.0; count: the number of expressions.
    giou, ciou, n_acc, t_acc: only if a reference is empty and all expressions came as masks.
    intervals: (low, high) of oiou, miou and pr@0.5 … pr@0.9, from drawing images with replacement.
"""

_CITATION = """
Kazemzadeh, Ordonez, Matten, Berg: ReferItGame: Referring to Objects in Photographs of Natural Scenes, EMNLP 2014.
Yu, Poirson, Yang, Berg, Berg: Modeling Context in Referring Expressions, ECCV 2016.
Liu, Ding, Jiang: GRES: Generalized Referring Expression Segmentation, CVPR 2023.
"""


class ReferringIouMetric(evaluate.Metric):
    """What `evaluate` stores of an expression is its pixel counts: masks are compared when they are added."""

    def _info(self):
        counts = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            # [intersection, union], and [prediction, target] in pixels, or [] for an expression that came as a pair
            features=datasets.Features({"predictions": counts, "references": counts}),
        )

    def add_batch(self, *, predictions=None, references=None):
        """Add expressions. ValueError for malformed ones, and then none of them is added."""
        pairs, areas = _pairs_and_areas(predictions, references)
        super().add_batch(predictions=pairs, references=areas)

    def add(self, *, prediction=None, reference=None):
        """Add one expression. ValueError for a malformed one."""
        self.add_batch(predictions=[prediction], references=None if reference is None else [reference])

    def _compute(self, predictions, references, image_ids=None, confidence=0.95):
        score = ReferringIoU()
        score.update_pairs(predictions, references if all(references) else None)
        if image_ids is None:
            return score.compute()
        return score.compute() | {"intervals": bootstrap_intervals(predictions, image_ids, confidence)}


def _pairs_and_areas(predictions, references) -> tuple[list, list]:
    if predictions is None:
        raise ValueError("References are compared with predictions, but none came. Give predictions of one length.")
    if references is None:
        pairs = check_pairs(predictions).tolist()
        return pairs, [[]] * len(pairs)
    if len(predictions) != len(references):
        raise ValueError(
            f"Every prediction needs its reference, but got {len(predictions)} predictions and {len(references)} "
            "references. Give two lists of one length, in the same order."
        )
    if len({isinstance(mask, dict) for mask in [*predictions, *references]}) > 1:
        raise ValueError(
            "All masks of one call are of one kind, but some are RLE dicts and some are not. Encode the others, or "
            "add each kind by a call of its own."
        )
    counts = []
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        try:
            counts.append(pixel_counts(_mask(prediction), _mask(reference)))
        except ValueError as error:
            raise ValueError(f"Expression {index} of this call: {error}") from error
    return [row[:2] for row in counts], [row[2:] for row in counts]


def _mask(mask) -> np.ndarray:
    if isinstance(mask, dict):
        return _decode_rle(mask)
    try:
        return np.asarray(mask)
    except ValueError as error:
        raise ValueError("The rows of a mask have one length, but they differ. Give h rows of w numbers.") from error


def _decode_rle(mask: dict) -> np.ndarray:
    """COCO's compressed runs `{"size": [h, w], "counts": str}` as a bool array (h, w)."""
    size, counts = np.asarray(mask.get("size")), mask.get("counts")
    whole = size.shape == (2,) and size.dtype.kind in "iu" and size.min() >= 1
    if not whole or int(size[0]) * int(size[1]) > MOST_PIXELS or not isinstance(counts, str | bytes):
        raise ValueError(
            f'An RLE mask is {{"size": [h, w], "counts": str}} with 1 to {MOST_PIXELS:,} pixels, but got '
            f"size {mask.get('size')!r} and counts of {type(counts).__name__}. "
            "Encode with pycocotools.mask.encode; frPyObjects compresses a list of runs."
        )
    height, width = size.tolist()
    runs = decode_counts(counts)
    if runs is None:
        problem = "are no compressed COCO string"
    elif runs.min() < 0:
        problem = "are partly negative"
    elif sum(runs.tolist()) != height * width:  # Python's integers, which do not overflow
        problem = f"cover {sum(runs.tolist())}"
    else:
        return mask_of(runs, height, width)
    raise ValueError(
        f"The runs of an RLE mask fill its size, {height} x {width} = {height * width} pixels, but these {problem}. "
        "Is the size [height, width] of the mask that was encoded, and the string complete?"
    )
