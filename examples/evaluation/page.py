"""Results as a page with images, in the manner of Figs. 7 to 10: plain HTML that opens from a folder, offline."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from pycocotools import mask as coco_mask

from m3dec.processing.drawing import outline, overlay
from m3dec.processing.referring_data.schema import decode_mask

from .results import Answers, ExpressionResult
from .tables import Figures, score_names, which_is_better

WIDTH = 480  # of the images, in pixels; smaller ones are enlarged, so that outlines stay thin
CASES = 12  # best, and worst
GROUPS = 4  # images with several targets
PAIRS = 8  # disputed
GAINS = 8  # for each of two models


def percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.2f}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"percent": percent, "which_is_better": which_is_better}


class Truths:
    """The images and true masks that results are about.

    Args:
        dataset: the split, rows of `REFERRING_FEATURES`.
        results: all that a page may show.

    Raises:
        ValueError: the results are not about this data set.
    """

    def __init__(self, dataset: datasets.Dataset, results: list[ExpressionResult]):
        self.dataset = dataset
        columns = dataset.select_columns(["ref_id", "image_id", "file_name", "mask"])
        rows = columns.with_format("arrow")[:].to_pylist()
        self.masks = {(row["ref_id"], row["image_id"], row["file_name"]): row["mask"] for row in rows}
        self.numbers = {(row["image_id"], row["file_name"]): number for number, row in enumerate(rows)}
        for result in results:
            mask = self.masks.get((result.ref_id, *result.image_key))
            if mask is None or coco_mask.area(mask) != result.target:
                found = "none" if mask is None else f"one of {coco_mask.area(mask)} pixels"
                raise ValueError(
                    "A page shows answers beside the truth of the same data, but of the target of reference "
                    f"{result.ref_id}, {result.target} pixels in {result.file_name}, this split has {found}. Give the "
                    "data flags and the --split with which the answers were made."
                )

    def run_lengths(self, result: ExpressionResult) -> dict:
        """The true mask as COCO's run lengths, {"size": [height, width], "counts": str}."""
        return self.masks[(result.ref_id, *result.image_key)]

    def draw(self, result: ExpressionResult, answer: bool = True, truth: bool = True) -> Image.Image:
        """The image, `WIDTH` wide, with the answer's tint and the truth's outline."""
        size = (WIDTH, max(1, round(WIDTH * result.height / result.width)))

        def resized(mask: np.ndarray) -> np.ndarray:
            gray = Image.fromarray(mask.astype(np.uint8) * 255)
            return np.asarray(gray.resize(size, Image.Resampling.BILINEAR)) > 127

        image = self.dataset[self.numbers[result.image_key]]["image"].convert("RGB")
        image = image.resize(size, Image.Resampling.LANCZOS)
        if answer:
            image = overlay(image, resized(result.answer()))
        return outline(image, resized(decode_mask(self.run_lengths(result))), width=3) if truth else image


def write_page(folder: str | Path, run: Answers, truths: Truths, tables: dict[str, Figures], notes: list[str]) -> Path:
    """A page about one model: its scores, and its best, worst and most disputed answers.

    Args:
        folder: index.html and a folder of images go into it.
        run: results with their masks.
        truths: of the same split.
        tables: figures for each heading, such as those of `by_kind`.
        notes: more lines, such as intervals.
    """
    with_target = [result for result in run.results if result.target]
    return write_template(
        folder,
        "model_page.html.jinja",
        truths,
        run=run,
        tables=tables,
        names=score_names(row for figures in tables.values() for row in figures.values()),
        notes=notes,
        best=best(with_target),
        several_targets=several_targets(with_target, truths),
        worst=worst(run.results),
        disputed=disputed(run.results, truths),
    )


def write_comparison_page(
    folder: str | Path, first: Answers, second: Answers, truths: Truths, figures: dict, confidence: float
) -> Path:
    """A page about two models, A and B, in the manner of Fig. 7: both beside the truth where they differ most.

    Args:
        folder: index.html and a folder of images go into it.
        first, second: A's and B's results with their masks, of the same expressions.
        truths: of the same split.
        figures: what `comparison` returned.
        confidence: of its intervals.
    """
    gains = {"A": largest_gains(first, second), "B": [pair[::-1] for pair in largest_gains(second, first)]}
    content = {"first": first, "second": second, "figures": figures, "confidence": confidence, "gains": gains}
    return write_template(folder, "comparison_page.html.jinja", truths, **content)


def write_template(folder: str | Path, template: str, truths: Truths, **content) -> Path:
    """Fill in a template and draw the images that it asks for; returns the page."""
    page, numbers = Path(folder) / "index.html", itertools.count(1)
    (page.parent / "pictures").mkdir(parents=True, exist_ok=True)

    def draw(result: ExpressionResult, answer: bool, truth: bool) -> str:
        address = f"pictures/{next(numbers):03d}.jpg"
        truths.draw(result, answer, truth).save(page.parent / address, quality=88, subsampling=0)
        return address

    page.write_text(TEMPLATES.get_template(template).render(draw=draw, **content), encoding="utf-8")
    return page


def best(results: list[ExpressionResult]) -> list[ExpressionResult]:
    """`CASES` results with the highest IoU, one of each image."""
    return one_of_each_image(sorted(results, key=lambda result: (-result.iou, result.ids)), CASES)


def worst(results: list[ExpressionResult]) -> list[ExpressionResult]:
    """`CASES` results with the lowest IoU and then the highest score, one of each image."""
    return one_of_each_image(sorted(results, key=lambda result: (result.iou, -result.score, result.ids)), CASES)


def largest_gains(one: Answers, other: Answers) -> list[tuple[ExpressionResult, ExpressionResult]]:
    """The `GAINS` pairs of results in which `one` has most more IoU than `other`, one of each image."""
    pairs = [pair for pair in zip(one.results, other.results, strict=True) if pair[0].iou > pair[1].iou]
    pairs.sort(key=lambda pair: (pair[1].iou - pair[0].iou, pair[0].ids))
    return one_of_each_image(pairs, GAINS, lambda pair: pair[0])


def one_of_each_image(cases: Iterable, most: int, result_of=lambda case: case) -> list:
    """The first `most` cases, each the first of its image."""
    firsts = {}
    for case in cases:
        firsts.setdefault(result_of(case).image_key, case)
    return list(firsts.values())[:most]


def by_image(results: list[ExpressionResult]) -> list[list[ExpressionResult]]:
    groups = defaultdict(list)
    for result in results:
        groups[result.image_key].append(result)
    return list(groups.values())


def several_targets(results: list[ExpressionResult], truths: Truths) -> list[list[ExpressionResult]]:
    """Of the `GROUPS` images with most targets found, two at least, the best answer for each target."""
    groups = []
    for members in by_image(results):
        found = {}
        for result in sorted(members, key=lambda result: (-result.iou, result.ids)):
            if result.solved:
                found.setdefault(truths.run_lengths(result)["counts"], result)
        if len(found) > 1:
            groups.append(list(found.values())[:8])
    groups.sort(key=lambda group: (-len(group), -sum(result.iou for result in group) / len(group), group[0].ids))
    return groups[:GROUPS]


def disputed(results: list[ExpressionResult], truths: Truths) -> list[tuple[list[ExpressionResult], float, float]]:
    """The `PAIRS` pairs whose answers overlap most beyond their targets, with the IoU of answers and of targets.

    A pair is about one image and means two things. One pair of each image is taken.
    """
    pairs = []
    for members in by_image([result for result in results if result.predicted and result.target]):
        answers = [{"size": [r.height, r.width], "counts": r.predicted_mask.encode()} for r in members]
        targets = [{"size": [r.height, r.width], "counts": truths.run_lengths(r)["counts"].encode()} for r in members]
        overlaps = [coco_mask.iou(masks, masks, [0] * len(masks)) for masks in (answers, targets)]
        for i, j in itertools.combinations(range(len(members)), 2):
            of_answers, of_targets = (float(overlap[i, j]) for overlap in overlaps)
            if targets[i]["counts"] != targets[j]["counts"] and of_answers > of_targets:
                pairs.append(([members[i], members[j]], of_answers, of_targets))
    pairs.sort(key=lambda pair: (pair[2] - pair[1], pair[0][0].ids, pair[0][1].ids))
    return one_of_each_image(pairs, PAIRS, lambda pair: pair[0][0])
