"""Results as figures: over all, by kind of expression, by its length, by the target's size, and of two models."""

import itertools
import math
from collections.abc import Callable, Iterable

from m3dec.processing.referring_iou import ReferringIoU, bootstrap_intervals, paired_bootstrap_intervals

from .results import Answers, ExpressionResult, check_comparable, image_numbers

# Numbers of words, from and to. The field's bands for RefCOCO (1-2, 3, 4-5, 6-20) and for RefCOCOg (1-5, 6-7, 8-10,
# 11-20) are each one of these or several together.
LENGTHS = {
    "no word": (0, 0),
    "1-2": (1, 2),
    "3": (3, 3),
    "4-5": (4, 5),
    "6-7": (6, 7),
    "8-10": (8, 10),
    "11+": (11, None),
}
# Pixels of the target in the original image, from and to: COCO's areas, below 32 x 32, below 96 x 96, and above.
SIZES = {"no target": (0, 0), "small": (1, 32**2 - 1), "medium": (32**2, 96**2 - 1), "large": (96**2, None)}
OWN_KEYS = ("all", "by_length", "by_size", "listening", "intervals")  # of the figures, beside the kinds

Figures = dict[str, dict[str, float]]


def by_kind(results: list[ExpressionResult]) -> Figures:
    """The metric over all results under "all", then under each category there is."""
    kinds = sorted({result.category for result in results if result.category is not None})
    return {"all": scores(results)} | {
        f"kind {kind!r}" if kind in OWN_KEYS else kind: scores(result for result in results if result.category == kind)
        for kind in kinds
    }


def by_set(results: list[ExpressionResult], sets: dict[str, set[int]]) -> Figures:
    """The metric of each of several sets, given by their image_ids. Under "mean of sets" are the means of their scores,
    where a large set weighs no more than a small one. With one set alone there are no figures."""
    if len(sets) < 2:
        return {}
    rows = {name: scores(one for one in results if one.image_id in images) for name, images in sets.items()}
    names = set.intersection(*(set(row) for row in rows.values())) - {"count"}
    means = {name: sum(row[name] for row in rows.values()) / len(rows) for name in scores(results) if name in names}
    return rows | {"mean of sets": means | {"count": len(results)}}


def by_length(results: list[ExpressionResult]) -> Figures:
    """The metric by the number of words, a band of `LENGTHS` each that occurs."""
    return by_band(results, LENGTHS, lambda result: result.words)


def by_size(results: list[ExpressionResult]) -> Figures:
    """The metric by the pixels of the target, a band of `SIZES` each that occurs."""
    return by_band(results, SIZES, lambda result: result.target)


def by_band(results: list[ExpressionResult], bands: dict[str, tuple], measure: Callable) -> Figures:
    """The metric in each of `bands` that `measure` of some result falls into."""
    parts = {
        name: [result for result in results if low <= measure(result) and (high is None or measure(result) <= high)]
        for name, (low, high) in bands.items()
    }
    return {name: scores(part) for name, part in parts.items() if part}


def scores(results: Iterable[ExpressionResult]) -> dict[str, float]:
    """Both IoUs, the precisions and the count."""
    results, score = list(results), ReferringIoU()
    score.update_pairs(pairs(results), [[result.predicted, result.target] for result in results])
    return score.compute()


def pairs(results: list[ExpressionResult]) -> list[list[int]]:
    """[intersection, union] of each."""
    return [[result.intersection, result.union] for result in results]


def peak_rates(results: list[ExpressionResult]) -> tuple[float, float]:
    """The share of peaks in their own target, and the share that a model which ignores the words would reach.

    Counted are expressions about images with several distinct targets; NaN twice where there are none. A model that
    ignores the words has one peak for all expressions about an image, and then both shares are near each other. This
    shows early that a training is stuck, when both IoUs are still near 0.
    """
    counted = [result for result in results if result.blind_chance is not None]
    if not counted:
        return math.nan, math.nan
    in_target = sum(result.peak_in_target for result in counted) / len(counted)
    return in_target, sum(result.blind_chance for result in counted) / len(counted)


def intervals(results: list[ExpressionResult], confidence: float) -> dict[str, tuple[float, float]]:
    """`bootstrap_intervals` over the images of `results`."""
    return bootstrap_intervals(pairs(results), image_numbers(results), confidence)


def comparison(first: Answers, second: Answers, confidence: float = 0.95) -> dict:
    """The differences of two models' answers to the same expressions.

    Returns:
        "A", "B": `by_kind` of the first and of the second.
        "differences": for oiou, miou, pr@0.5 … pr@0.9 the "difference" A - B, the ends "low" and "high" of its paired
            interval, and whether it is "undecided": whether 0 lies in the interval.
        "solved_by_both", "solved_by_A_only", "solved_by_B_only", "solved_by_neither": numbers of expressions with an
            IoU above 0.5.

    Raises:
        ValueError: the answers are not about the same expressions, or were thresholded differently.
    """
    check_comparable(first, second)
    ones, others = (sorted(run.results, key=lambda result: result.ids) for run in (first, second))
    figures = {"A": by_kind(ones), "B": by_kind(others)}
    paired = paired_bootstrap_intervals(pairs(ones), pairs(others), image_numbers(ones), confidence)
    figures["differences"] = {}
    for name, (low, high) in paired.items():
        difference = figures["A"]["all"][name] - figures["B"]["all"][name]
        row = {"difference": difference, "low": low, "high": high, "undecided": low <= 0 <= high}
        figures["differences"][name] = row
    solved = [(one.solved, other.solved) for one, other in zip(ones, others, strict=True)]
    names = {"both": (True, True), "A_only": (True, False), "B_only": (False, True), "neither": (False, False)}
    return figures | {f"solved_by_{name}": solved.count(by) for name, by in names.items()}


def text_table(figures: Figures, title: str = "") -> str:
    """A row of figures a line, IoUs and precisions in percent."""
    names = score_names(figures.values())
    width = max(12, len(title), *map(len, figures)) + 1
    lines = [f"{title:{width}}" + "".join(f"{name:>8}" for name in names) + f"{'count':>8}"]
    for kind, values in figures.items():
        percents = "".join(f"{100 * values.get(name, math.nan):8.2f}" for name in names)
        lines.append(f"{kind:{width}}{percents}{values['count']:8d}")
    return "\n".join(lines)


def score_names(rows: Iterable[dict[str, float]]) -> list[str]:
    """The scores that any of the rows has, in order. Only rows with an empty target have some of them."""
    return [name for name in dict.fromkeys(itertools.chain(*rows)) if name != "count"]


def which_is_better(difference: dict) -> str:
    """One of `comparison`'s differences in words: "A is better", "B is better" or "undecided"."""
    if difference["undecided"]:
        return "undecided"
    return "A is better" if difference["difference"] > 0 else "B is better"
