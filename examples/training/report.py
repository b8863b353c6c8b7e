"""What a training shows of itself while it runs: curves.png of its figures, samples.png of its answers."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from m3dec.examples.evaluation.loop import text_field
from m3dec.processing.drawing import TEXT_COLOR, contact_sheet, outline, overlay
from m3dec.processing.referring_data.sampling import references_by_image, usable_sentences
from m3dec.processing.referring_data.schema import decode_mask
from m3dec.processing.referring_iou import intersection_and_union

# Okabe and Ito's, told apart by colour-blind eyes too; their yellow is too faint on white.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#303030")
LOSSES = {"loss": "sum", "mask_loss": "mask", "reconstruction_loss": "LFR"}  # Eq. 5
SCORES = {"miou": "mIoU", "oiou": "oIoU"} | {f"pr@0.{tenth}": f"Pr@0.{tenth}" for tenth in range(5, 10)}
NAME_HEIGHT = 15  # of a curve's name, in pixels
CELL_WIDTH = 180  # of samples.png, in pixels

Series = tuple[list[float], list[float]]  # steps and values


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw a run's `metrics.jsonl` as a PNG file, which is put in its place when it is whole.

    Lines that are not whole, as of a run that was killed, are left out; panels without figures yet say so.
    """
    lines = read_metrics(metrics)
    write_whole(picture, lambda path: curves_figure(lines).savefig(path, format="png"))


def read_metrics(metrics: Path) -> list[dict]:
    """The whole lines of a `metrics.jsonl`, in order of their steps."""
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
    figure = Figure(figsize=(13, 7), dpi=100)
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3, gridspec_kw={"wspace": 0.52, "hspace": 0.32}).flat
    figure.subplots_adjust(left=0.045, right=0.905, top=0.95, bottom=0.1)
    figure.supxlabel("optimisation steps", fontsize=10, color=TEXT_COLOR)
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
    speeds = {"images": series(trained, "images_per_second")}
    draw_panel(next(panels), "speed, each second", speeds)
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
    """The kinds of expressions with most expressions, as many as there are colours, in the order of the alphabet."""
    figures = measured[-1]["figures"] if measured else {}
    kinds = sorted((kind for kind in figures if kind != "all"), key=lambda kind: -figures[kind].get("count", 0))
    return sorted(kinds[: len(COLORS)])


def draw_panel(axes: Axes, title: str, curves: dict[str, Series], scale: str = "from zero") -> None:
    """Draw the curves by their names, in a `scale` "from zero", "percent" (of shares) or "log" (and smoothed)."""
    axes.set_title(title, loc="left", fontsize=12, color=TEXT_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.tick_params(which="both", colors="#606060", labelsize=10)
    axes.set_axisbelow(True)
    ends = []
    for color, (name, (steps, values)) in zip(COLORS, curves.items(), strict=False):
        if not steps or (scale == "log" and max(values) <= 0):
            continue
        line = {"color": color, "marker": "o" if len(steps) < 15 else "", "markersize": 3.5}
        if scale == "percent":
            values = [100 * value for value in values]
        if scale == "log":
            axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
            values = running_mean(values, window=1 + len(values) // 25)
        axes.plot(steps, values, linewidth=1.8, **line)
        ends.append((steps[-1], values[-1], name, color))
    if not ends:
        axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center", color="#808080")
        axes.set(xticks=[], yticks=[])
        return
    if scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.4)))
    elif scale == "percent":
        axes.set_ylim(0, 100)
    else:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    name_curves(axes, ends)


def running_mean(values: list[float], window: int) -> list[float]:
    """The mean of each value and the `window` - 1 before it, as far as there are."""
    starts = [max(0, end - window) for end in range(1, len(values) + 1)]
    return [sum(values[start:end]) / (end - start) for end, start in enumerate(starts, start=1)]


def name_curves(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write the name and last value beside each curve's end (step, value, name, color), and none over another."""
    axes.get_ylim()  # settles the limits, and with them where the ends are
    heights = [axes.transData.transform((step, value))[1] for step, value, _, _ in ends]
    order = sorted(range(len(ends)), key=lambda number: heights[number])
    places, lowest = list(heights), -math.inf
    for number in order:
        places[number] = lowest = max(places[number], lowest)
        lowest += NAME_HEIGHT
    highest = axes.transAxes.transform((0, 1))[1] - NAME_HEIGHT / 2
    for number in reversed(order):
        places[number] = highest = min(places[number], highest)
        highest -= NAME_HEIGHT
    for (step, value, name, color), height, place in zip(ends, heights, places, strict=True):
        axes.annotate(
            f"{name if len(name) <= 12 else name[:11] + '…'} {value:.3g}".strip(),
            (step, value),
            xytext=(6, (place - height) * 72 / axes.figure.dpi),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=10,
            annotation_clip=False,
            parse_math=False,  # a dollar in a name is a dollar
        )


@torch.inference_mode()
def draw_samples(model, processor, dataset: datasets.Dataset, picture: Path, images: int = 6) -> None:
    """Draw what `model` answers about the first pictures of `dataset`, beside the truth, as a PNG file.

    Each picture comes with two sentences, of different targets where it has such. Nothing is drawn where no sentence
    holds a word. The model is asked in eval, and left in the modes that its parts were in.

    Args:
        model: an `M3DecForImageSegmentation`, on any device.
        processor: its `M3DecProcessor`.
        dataset: rows of `REFERRING_FEATURES`.
        picture: the file to write; it is put in its place when it is whole.
        images: how many pictures at most.
    """
    modes = [(part, part.training) for part in model.modules()]  # a frozen backbone's differ from the others'
    model.eval()
    try:
        rows = sample_rows(model, processor, dataset, images)
    finally:
        for part, mode in modes:
            part.training = mode
    if rows:
        sheet = contact_sheet(rows, ["picture", "expression", "prediction", "truth"], CELL_WIDTH, font_size=14)
        write_whole(picture, lambda path: sheet.save(path, format="png"))


def sample_rows(model, processor, dataset: datasets.Dataset, images: int) -> list[list]:
    """The rows of samples.png: picture, expression, prediction with its IoU, truth."""
    field = text_field(model.config)
    first = list(references_by_image(dataset).values())[:images]
    dataset = dataset.select([number for numbers in first for number in numbers])
    usable = usable_sentences(dataset, field, processor.holds_word)
    rows = []
    for numbers in references_by_image(dataset).values():
        asked = two_sentences(dataset.select_columns(["sentences", "mask"]), numbers, usable)
        if not asked:
            continue
        image = dataset[numbers[0]]["image"].convert("RGB")
        texts = [sentence[field] for sentence, _ in asked]
        outputs = model(**processor(images=[image], text=[texts]).to(model.device))
        sizes = [(image.height, image.width)] * len(asked)
        answers = processor.post_process_referring_segmentation(outputs, target_sizes=sizes)
        for text, answer, (_, truth) in zip(texts, answers, asked, strict=True):
            intersection, union = intersection_and_union(answer["mask"], truth)
            caption = f"IoU {intersection / union if union else 1:.2f}"
            edge = outline(image, truth, width=max(2, 2 * image.width // CELL_WIDTH))  # 2 pixels of the sheet
            rows.append([image, text, (overlay(image, answer["mask"]), caption), edge])
    return rows


def two_sentences(references: datasets.Dataset, numbers: list[int], usable: list[list[int]]) -> list[tuple]:
    """Two sentences and their masks of one picture's `references`: of two targets, or else of one."""
    by_target = {}
    for number in numbers:
        row = references[number]
        found = [(row["sentences"][place], decode_mask(row["mask"])) for place in usable[number]]
        by_target.setdefault(row["mask"]["counts"], []).extend(found)
    targets = [found for found in by_target.values() if found]
    return (
        [found[0] for found in targets[:2]] if len(targets) > 1 else [pair for found in targets for pair in found][:2]
    )


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write a file beside `path`, and move it there: who looks in between sees the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    temporary.replace(path)
