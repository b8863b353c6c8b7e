"""Results as a page with pictures, in the manner of Figs. 7 to 10: plain HTML that opens from a folder, offline."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from html import escape
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from m3dec.processing.drawing import outline, overlay
from m3dec.processing.referring_data.schema import decode_mask

from .results import Answers, ExpressionResult
from .tables import Figures, score_names, verdict

WIDTH = 480  # of the pictures, in pixels; smaller ones are enlarged, so that outlines stay thin
CASES = 12  # best, and worst
GROUPS = 4  # pictures with several targets
PAIRS = 8  # disputed
GAINS = 8  # for each of two models

STYLE = """
:root { color-scheme: light dark; --text: #1b2430; --quiet: #596576; --ground: #ffffff; --card: #f4f6f8;
  --line: #d9dfe6; --truth: #2fbf4f; --answer: #00c8ff; }
@media (prefers-color-scheme: dark) { :root { --text: #e8ecf1; --quiet: #a3afbd; --ground: #14181d; --card: #1e242b;
  --line: #343d47; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .25rem; }
p { margin: .25rem 0 1rem; max-width: 60rem; color: var(--quiet); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; }
th { font-weight: 400; }
th[scope=col], .part th { color: var(--quiet); font-weight: 600; }
.part th { padding-top: .9rem; }
.top { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 3rem; }
ul.notes { margin: 1rem 0; padding-left: 1.2rem; color: var(--quiet); font-size: .87rem; max-width: 26rem; }
.key { display: inline-block; width: 1em; height: 1em; vertical-align: -.12em; border-radius: 3px; margin-right: .3em; }
.truth { border: 3px solid var(--truth); } .answer { background: var(--answer); opacity: .7; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: 1.1rem; margin: 1rem 0; }
.group { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem; margin: 1rem 0; }
.group .grid { margin: 0; grid-template-columns: repeat(auto-fill, minmax(10.2rem, 1fr)); }
.group > p { margin: 0 0 .6rem; color: var(--text); max-width: none; overflow-wrap: anywhere; }
.two .grid { grid-template-columns: repeat(2, minmax(0, 22rem)); }
.three .grid { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(34rem, 100%), 1fr)); gap: 0 1.1rem; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 6px; }
figcaption { padding: .45rem .1rem 0; line-height: 1.35; overflow-wrap: anywhere; }
small { color: var(--quiet); font-size: .85rem; display: block; }
"""
KEY = (
    '<p><span class="key truth"></span>outline in green: the truth&emsp;'
    '<span class="key answer"></span>tint in light blue: the answer&emsp;score: the answer\'s mean probability</p>'
)


class Truths:
    """The pictures and true masks that results are about.

    Args:
        dataset: the split, rows of `REFERRING_FEATURES`.
        results: all that a page may show.

    Raises:
        ValueError: the results are not about this data set.
    """

    def __init__(self, dataset: datasets.Dataset, results: list[ExpressionResult]):
        self.dataset = dataset
        columns = (
            dataset.select_columns(["ref_id", "image_id", "file_name", "mask"]).with_format("arrow")[:].to_pylist()
        )
        self.masks = {(row["ref_id"], row["image_id"], row["file_name"]): row["mask"] for row in columns}
        self.numbers = {(row["image_id"], row["file_name"]): number for number, row in enumerate(columns)}
        for result in results:
            mask = self.masks.get((result.ref_id, *result.picture))
            if mask is None or coco_mask.area(mask) != result.target:
                found = "none" if mask is None else f"one of {coco_mask.area(mask)} pixels"
                raise ValueError(
                    "A page shows answers beside the truth of the same data, but of the target of reference "
                    f"{result.ref_id}, {result.target} pixels in {result.file_name}, this split has {found}. Give the "
                    "data flags and the --split with which the answers were made."
                )

    def run_lengths(self, result: ExpressionResult) -> dict:
        """The true mask as COCO's run lengths, {"size": [height, width], "counts": str}."""
        return self.masks[result.ref_id, result.image_id, result.file_name]

    def draw(self, result: ExpressionResult, answer: bool = True, truth: bool = True) -> Image.Image:
        """The picture, `WIDTH` wide, with the answer's tint and the truth's outline."""
        picture = self.dataset[self.numbers[result.picture]]["image"].convert("RGB")
        size = (WIDTH, max(1, round(WIDTH * result.height / result.width)))

        def shown(mask: np.ndarray) -> np.ndarray:
            grey = Image.fromarray(mask.astype(np.uint8) * 255)
            return np.asarray(grey.resize(size, Image.Resampling.BILINEAR)) > 127

        picture = picture.resize(size, Image.Resampling.LANCZOS)
        if answer:
            picture = overlay(picture, shown(result.answer()))
        return outline(picture, shown(decode_mask(self.run_lengths(result))), width=3) if truth else picture


class Page:
    """A folder with index.html and the pictures it shows, written piece by piece."""

    def __init__(self, folder: str | Path, truths: Truths):
        self.folder, self.truths, self.parts, self.count = Path(folder), truths, [], 0
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)

    def figure(self, result: ExpressionResult, caption: str, answer: bool = True, truth: bool = True) -> str:
        """One picture with a `caption` of HTML below."""
        self.count += 1
        name = f"pictures/{self.count:03d}.jpg"
        self.truths.draw(result, answer, truth).save(self.folder / name, quality=88, subsampling=0)
        shows = " and ".join(["the answer"] * answer + ["the truth"] * truth)
        alt = escape(f"{result.file_name}, {result.expression}: {shows}")
        return f'<figure><img src="{name}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'

    def section(self, title: str, text: str, body: list[str], style: str = "grid") -> None:
        """A heading, a sentence about it, and `body`, or that there is nothing to show."""
        inside = "\n".join(body) if body else "<p>No such case.</p>"
        self.parts.append(f'<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n<div class="{style}">\n{inside}\n</div>')

    def write(self, title: str) -> Path:
        """Put the parts together; returns the page."""
        page = self.folder / "index.html"
        page.write_text(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            + "\n".join(self.parts)
            + "\n</body>\n</html>\n",
            encoding="utf-8",
        )
        return page


def write_page(folder: str | Path, run: Answers, truths: Truths, tables: dict[str, Figures], notes: list[str]) -> Path:
    """A page about one model: its scores, and its best, worst and most disputed answers.

    Args:
        folder: index.html and a folder of pictures go into it.
        run: results with their masks.
        truths: of the same split.
        tables: figures for each heading, such as those of `by_kind`.
        notes: more lines, such as intervals.
    """
    page = Page(folder, truths)
    page.parts.append(f"<h1>{escape(run.model)}</h1>\n<p>{escape(run.heading)}. Figures in percent.</p>")
    page.parts.append(f'<div class="top">{tables_html(tables)}{notes_html(notes)}</div>{KEY}')
    with_target = [result for result in run.results if result.target]
    body = [page.figure(result, caption(result)) for result in best(with_target)]
    page.section("Best", "The highest IoU, one answer of each picture.", body)
    body = [group(page, results, "") for results in several_targets(with_target, truths)]
    text = "Different expressions find different things: the pictures with most targets found (IoU above 0.5)."
    page.section("Several targets of one picture", text, body, "")
    body = [page.figure(result, caption(result)) for result in worst(run.results)]
    text = "The lowest IoU, one answer of each picture; of equal ones first the one the model was surest of."
    page.section("Worst", text, body)
    body = [
        group(page, pair, f"answers overlap with IoU {answers:.2f}, targets with {targets:.2f}", "group two")
        for pair, answers, targets in disputed(run.results, truths)
    ]
    text = (
        "Two expressions about one picture mean different things, and both answers claim the same pixels: at least one "
        "was not understood. First those whose answers overlap most beyond their targets, one pair of each picture."
    )
    page.section("Most disputed", text, body, "columns")
    return page.write(f"{run.model}: {run.data} {run.split}")


def write_comparison_page(
    folder: str | Path, first: Answers, second: Answers, truths: Truths, figures: dict, confidence: float
) -> Path:
    """A page about two models, A and B, in the manner of Fig. 7: both beside the truth where they differ most.

    Args:
        folder: index.html and a folder of pictures go into it.
        first, second: A's and B's results with their masks, of the same expressions.
        truths: of the same split.
        figures: what `comparison` returned.
        confidence: of its intervals.
    """
    page = Page(folder, truths)
    page.parts.append(
        f"<h1>A: {escape(first.model)}<br>B: {escape(second.model)}</h1>\n"
        f"<p>{escape(first.heading)}. Figures in percent; intervals hold {confidence:.0%} of resampled sets.</p>"
    )
    page.parts.append(f'<div class="top">{differences_html(figures)}{kinds_html(figures)}</div>')
    page.parts.append(
        "<p>IoU above 0.5: by both {}, by A only {}, by B only {}, by neither {}.</p>".format(
            *(figures[f"solved_by_{who}"] for who in ("both", "A_only", "B_only", "neither"))
        )
        + KEY
    )
    pairs = list(zip(first.results, second.results, strict=True))
    for name, sign in (("A", 1), ("B", -1)):
        gains = [(sign * (one.iou - other.iou), one, other) for one, other in pairs]
        gains = sorted((gain for gain in gains if gain[0] > 0), key=lambda gain: (-gain[0], gain[1].ids))
        body = [side_by_side(page, *gain[1:]) for gain in one_of_each_picture(gains, GAINS, lambda gain: gain[1])]
        text = f"The largest gains in IoU of {name} over the other, one expression of each picture."
        page.section(f"Where {name} is better", text, body, "")
    return page.write(f"{first.model} and {second.model}: {first.data} {first.split}")


def best(results: list[ExpressionResult]) -> list[ExpressionResult]:
    """`CASES` results with the highest IoU, one of each picture."""
    return one_of_each_picture(sorted(results, key=lambda result: (-result.iou, result.ids)), CASES)


def worst(results: list[ExpressionResult]) -> list[ExpressionResult]:
    """`CASES` results with the lowest IoU and then the highest score, one of each picture."""
    return one_of_each_picture(sorted(results, key=lambda result: (result.iou, -result.score, result.ids)), CASES)


def one_of_each_picture(cases: Iterable, most: int, result_of=lambda case: case) -> list:
    """The first `most` cases, each the first of its picture."""
    firsts = {}
    for case in cases:
        firsts.setdefault(result_of(case).picture, case)
    return list(firsts.values())[:most]


def by_picture(results: list[ExpressionResult]) -> list[list[ExpressionResult]]:
    pictures = defaultdict(list)
    for result in results:
        pictures[result.picture].append(result)
    return list(pictures.values())


def several_targets(results: list[ExpressionResult], truths: Truths) -> list[list[ExpressionResult]]:
    """Of the `GROUPS` pictures with most targets found, two at least, the best answer for each target."""
    groups = []
    for members in by_picture(results):
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

    A pair is about one picture and means two things. One pair of each picture is taken.
    """
    pairs = []
    for members in by_picture([result for result in results if result.predicted and result.target]):
        answers = [{"size": [r.height, r.width], "counts": r.predicted_mask.encode()} for r in members]
        targets = [{"size": [r.height, r.width], "counts": truths.run_lengths(r)["counts"].encode()} for r in members]
        overlaps = [coco_mask.iou(masks, masks, [0] * len(masks)) for masks in (answers, targets)]
        for i, j in itertools.combinations(range(len(members)), 2):
            of_answers, of_targets = (float(overlap[i, j]) for overlap in overlaps)
            if targets[i]["counts"] != targets[j]["counts"] and of_answers > of_targets:
                pairs.append(([members[i], members[j]], of_answers, of_targets))
    pairs.sort(key=lambda pair: (pair[2] - pair[1], pair[0][0].ids, pair[0][1].ids))
    return one_of_each_picture(pairs, PAIRS, lambda pair: pair[0][0])


def caption(result: ExpressionResult) -> str:
    """The expression, what it scored and of which kind it is."""
    kind = "" if result.category is None else f" · {escape(result.category)}"
    return f"{escape(result.expression)}<small>IoU {result.iou:.2f} · score {result.score:.2f}{kind}</small>"


def group(page: Page, results: list[ExpressionResult], text: str, style: str = "group") -> str:
    """Several answers about one picture, side by side."""
    heading = f"{escape(results[0].file_name)}<small>{escape(text)}</small>"
    figures = "\n".join(page.figure(result, caption(result)) for result in results)
    return f'<div class="{style}"><p>{heading}</p><div class="grid">\n{figures}\n</div></div>'


def side_by_side(page: Page, one: ExpressionResult, other: ExpressionResult) -> str:
    """A's answer, B's and the truth."""
    kind = "" if one.category is None else f" · {escape(one.category)}"
    figures = [
        page.figure(one, f"A, IoU {one.iou:.2f}", truth=False),
        page.figure(other, f"B, IoU {other.iou:.2f}", truth=False),
        page.figure(one, "truth", answer=False),
    ]
    heading = f"{escape(one.expression)}<small>{escape(one.file_name)}{kind}</small>"
    return f'<div class="group three"><p>{heading}</p><div class="grid">\n' + "\n".join(figures) + "\n</div></div>"


def tables_html(tables: dict[str, Figures]) -> str:
    """Figures as one table with a part for each title, IoUs and precisions in percent."""
    names = list(dict.fromkeys(name for figures in tables.values() for name in score_names(figures)))
    parts = {
        f"by {title}": [
            [escape(kind), *(percent(values.get(name, math.nan)) for name in names), str(values["count"])]
            for kind, values in figures.items()
        ]
        for title, figures in tables.items()
    }
    return rows_html(["", *names, "count"], parts)


def differences_html(figures: dict) -> str:
    """Both models' scores, their difference and its interval."""
    rows = [
        [
            name,
            percent(figures["A"]["all"][name]),
            percent(figures["B"]["all"][name]),
            f"{100 * row['difference']:+.2f}",
            f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}",
            verdict(row),
        ]
        for name, row in figures["differences"].items()
    ]
    return rows_html(["", "A", "B", "A − B", "interval", ""], {"": rows})


def kinds_html(figures: dict) -> str:
    """Both models' mIoU by kind of expression."""
    rows = [
        [
            escape(kind),
            percent(values["miou"]),
            percent(figures["B"][kind]["miou"]),
            f"{100 * (values['miou'] - figures['B'][kind]['miou']):+.2f}",
            str(values["count"]),
        ]
        for kind, values in figures["A"].items()
    ]
    return rows_html(["miou by kind", "A", "B", "A − B", "count"], {"": rows})


def rows_html(head: list[str], parts: dict[str, list[list[str]]]) -> str:
    """A table of cells that are HTML already, in parts with a title or ""; each row's first is its heading."""
    lines = ["<tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in head) + "</tr>"]
    for title, rows in parts.items():
        if title:
            lines.append(f'<tr class="part"><th colspan="{len(head)}" scope="rowgroup">{escape(title)}</th></tr>')
        for first, *rest in rows:
            cells = "".join(f"<td>{cell}</td>" for cell in rest)
            lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def notes_html(notes: list[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>\n' if items else ""


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.2f}"
