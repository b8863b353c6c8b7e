"""What a training shows of itself while it runs: curves.png of its figures, samples.png of its answers."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from PIL import Image

from m3dec.examples.evaluation.loop import text_field
from m3dec.processing.drawing import TEXT_COLOR, contact_sheet, outline, overlay
from m3dec.processing.referring_data.sampling import references_by_image, usable_sentences
from m3dec.processing.referring_data.schema import decode_mask
from m3dec.processing.referring_iou import intersection_and_union

# Okabe and Ito's, told apart by color-blind eyes too; their yellow is too faint on white.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#303030")
LOSSES = {"loss": "sum", "mask_loss": "mask", "reconstruction_loss": "LFR"}  # Eq. 5
SCORES = {"miou": "mIoU", "oiou": "oIoU"} | {f"pr@0.{tenth}": f"Pr@0.{tenth}" for tenth in range(5, 10)}
CELL_WIDTH = 180  # of samples.png, in pixels

Series = tuple[list[float], list[float]]  # steps and values


def draw_curves(metrics: Path, path: Path) -> None:
    """Draw a run's `metrics.jsonl` as a PNG file, and diagnostics.png beside it. Panels without figures yet say so."""
    lines = read_metrics(metrics)
    for name, make in {path.name: curves_figure, "diagnostics.png": diagnostics_figure}.items():
        write_whole(path.with_name(name), lambda temporary, make=make: make(lines).savefig(temporary, format="png"))


def read_metrics(metrics: Path) -> list[dict]:
    """The whole lines of a `metrics.jsonl`, in order of their steps. A run that was killed may leave others."""
    lines = []
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and "step" in values:
            lines.append(values)
    return sorted(lines, key=lambda values: values["step"])


def curves_figure(lines: list[dict]) -> Figure:
    """Six panels over the steps: losses, scores, mIoU by kind, peak in the target, learning rate and speed."""
    figure = Figure(figsize=(13, 7), dpi=100, layout="constrained")
    panels = figure.subplots(2, 3).flat
    figure.supxlabel("optimization steps", fontsize=10, color=TEXT_COLOR)
    trained = [line for line in lines if "figures" not in line]
    measured = [line for line in lines if "figures" in line]

    losses = {name: series(trained or measured, field) for field, name in LOSSES.items()}
    draw_panel(next(panels), "loss", losses, scale="log")
    scores = {name: series(measured, "figures", "all", field) for field, name in SCORES.items()}
    draw_panel(next(panels), "scores over all, percent", scores, scale="percent")
    kinds = {kind: series(measured, "figures", kind, "miou") for kind in most_frequent_kinds(measured)}
    draw_panel(next(panels), "mIoU by kind, percent", kinds, scale="percent")
    peaks = {"model": series(measured, "peak_in_target"), "blind": series(measured, "blind_chance")}
    draw_panel(next(panels), "surest pixel in the target, percent", peaks, scale="percent")
    draw_panel(next(panels), "learning rate", {"": series(trained, "learning_rate")})
    draw_panel(next(panels), "speed, each second", {"images": series(trained, "images_per_second")})
    return figure


def diagnostics_figure(lines: list[dict]) -> Figure:
    """Eight panels over the steps: what `diagnostics.py` names, by layer or part, and how far LFR's targets differ."""
    figure = Figure(figsize=(17, 7), dpi=100, layout="constrained")
    figure.supxlabel("optimization steps", fontsize=10, color=TEXT_COLOR)
    panels = {
        "imi_gate": ("IMI: gates w_ci", "free"),
        "imi_share": ("IMI: what it injects, of its query", "from zero"),
        "silent": ("M³Att silent, percent of expressions", "percent"),
        "word_entropy": ("attention over words: 1 is even", "from zero"),
        "position_entropy": ("attention over positions: 1 is even", "from zero"),
        "lfr_error": ("LFR: error", "log"),
        "reconstruction_spread": ("LFR: spread of its targets", "log"),
        "gradient_norm": ("gradient after clipping", "log"),
    }
    for axes, (name, (title, scale)) in zip(figure.subplots(2, 4).flat, panels.items(), strict=True):
        fields = dict.fromkeys(field for line in lines for field in line if field.partition("/")[0] == name)
        draw_panel(axes, title, {field.partition("/")[2]: series(lines, field) for field in fields}, scale)
    return figure


def series(lines: list[dict], *path: str) -> Series:
    """The steps and values of what stands at `path` in the lines that have it."""
    steps, values = [], []
    for line in lines:
        value = line
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, int | float) and math.isfinite(value):
            steps.append(line["step"])
            values.append(value)
    return steps, values


def most_frequent_kinds(measured: list[dict]) -> list[str]:
    """The kinds of expressions with most expressions, as many as there are colors, in the order of the alphabet."""
    figures = measured[-1]["figures"] if measured else {}
    kinds = sorted((kind for kind in figures if kind != "all"), key=lambda kind: -figures[kind].get("count", 0))
    return sorted(kinds[: len(COLORS)])


def draw_panel(axes: Axes, title: str, curves: dict[str, Series], scale: str = "from zero") -> None:
    """Draw the curves by their names, in a `scale` "from zero", "free", "percent" (of shares) or "log" (smoothed)."""
    axes.set_title(title, loc="left", fontsize=12, color=TEXT_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.tick_params(which="both", colors="#606060", labelsize=10)
    for color, (name, (steps, values)) in zip(COLORS, curves.items(), strict=False):
        if not steps or (scale == "log" and max(values) <= 0):
            continue
        if scale == "percent":
            values = [100 * value for value in values]
        if scale == "log":
            axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
            values = running_mean(values, window=1 + len(values) // 25)
        label = f"{name if len(name) <= 12 else name[:11] + '…'} {values[-1]:.3g}".strip()
        marker = "o" if len(steps) < 15 else ""
        axes.plot(steps, values, color=color, linewidth=1.8, marker=marker, markersize=3.5, label=label)
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center", color="#808080")
        axes.set(xticks=[], yticks=[])
        return
    if scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.4)))
    elif scale == "percent":
        axes.set_ylim(0, 100)
    elif scale == "from zero":
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, labelcolor="linecolor")
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar in a name is a dollar


def running_mean(values: list[float], window: int) -> list[float]:
    """The mean of each value and the `window` - 1 before it, as far as there are."""
    starts = [max(0, end - window) for end in range(1, len(values) + 1)]
    return [sum(values[start:end]) / (end - start) for end, start in enumerate(starts, start=1)]


@torch.inference_mode()
def draw_samples(model, processor, dataset: datasets.Dataset, path: Path, images: int = 6) -> None:
    """Draw what `model` answers about the first images of `dataset`, beside the truth, as a PNG file.

    Each image comes with two expressions, of different targets where it has such. Nothing is drawn where no expression
    holds a word. The model is left in eval.
    """
    model.eval()
    first = list(references_by_image(dataset).values())[:images]
    dataset, rows = dataset.select([number for numbers in first for number in numbers]), []
    usable = usable_sentences(dataset, text_field(model.config), processor.holds_word)
    for numbers in references_by_image(dataset).values():
        asked = two_expressions(dataset.remove_columns("image"), numbers, usable, text_field(model.config))
        rows += sample_rows(model, processor, dataset[numbers[0]]["image"].convert("RGB"), asked) if asked else []
    if rows:
        sheet = contact_sheet(rows, ["image", "expression", "prediction", "truth"], CELL_WIDTH, font_size=14)
        write_whole(path, lambda temporary: sheet.save(temporary, format="png"))


def sample_rows(model, processor, image: Image.Image, asked: list[tuple]) -> list[list]:
    """For each expression and its mask: the image, the expression, the prediction with its IoU, and the truth."""
    texts, truths = zip(*asked, strict=True)
    outputs = model(**processor(images=[image], text=[list(texts)]).to(model.device))
    answers = processor.post_process_referring_segmentation(outputs, [truth.shape for truth in truths])
    rows = []
    for text, answer, truth in zip(texts, answers, truths, strict=True):
        intersection, union = intersection_and_union(answer["mask"], truth)
        caption = f"IoU {intersection / union if union else 1:.2f}"
        edge = outline(image, truth, width=max(2, 2 * image.width // CELL_WIDTH))  # 2 pixels of the sheet
        rows.append([image, text, (overlay(image, answer["mask"]), caption), edge])
    return rows


def two_expressions(references: datasets.Dataset, numbers: list[int], usable: list[list[int]], field: str) -> list:
    """Two expressions about one image and their masks: of two targets, or else of one."""
    found, of_target = [], Counter()
    for number in numbers:
        row = references[number]
        for place in usable[number]:
            found.append((of_target[row["mask"]["counts"]], row["sentences"][place][field], row["mask"]))
            of_target[row["mask"]["counts"]] += 1
    found.sort(key=lambda one: one[0])  # the first of each target before the second of any
    return [(text, decode_mask(mask)) for _, text, mask in found[:2]]


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write a file beside `path`, and move it there when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    temporary.replace(path)
