"""Measure a model on a referring data set, or compare two: tables, and where asked for JSON, rows and a page.

    python examples/evaluate_referring.py --model hub/checkpoints/m3dec-scenes --data_root outputs/data \\
        --dataset scenes --split_by scenes --split test --rows outputs/shipped.parquet --page outputs/page
    python examples/evaluate_referring.py --compare outputs/shipped.parquet outputs/scenes/best --split test

Every expression of the split counts once, at its image's own size. Each image is encoded once for all its expressions.
With `torchrun --nproc_per_node N` in place of `python`, N processes share the images.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from transformers import HfArgumentParser

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.evaluation.loop import DEFAULT_THRESHOLD, evaluate
from m3dec.examples.evaluation.page import Truths, write_comparison_page, write_page
from m3dec.examples.evaluation.results import Answers, read_rows, write_rows
from m3dec.examples.evaluation.tables import (
    by_kind,
    by_length,
    by_size,
    comparison,
    intervals,
    peak_rates,
    text_table,
    which_is_better,
)
from m3dec.examples.user_errors import exits_with_message
from m3dec.processing.referring_data.data_arguments import DataArguments


@dataclass
class EvaluationArguments:
    model: str | None = field(
        default=None,
        metadata={"help": "A folder or hub name with the model and its processor; or an earlier run's rows, .parquet."},
    )
    compare: list[str] | None = field(
        default=None, metadata={"help": "Instead of --model: two of the same kind, on the same expressions."}
    )
    split: str | None = field(default=None, metadata={"help": "val, test, testA, … None: that of rows given, or val."})
    threshold: float | None = field(
        default=None, metadata={"help": "Of the probability; VLT reported at 0.35. None: that of rows given, or 0.5."}
    )
    per_device_eval_batch_size: int = field(
        default=8, metadata={"help": "Images at once; each with all its expressions."}
    )
    confidence: float | None = field(
        default=None,
        metadata={"help": "Also give intervals, such as 0.95, by a bootstrap over images; --compare always does."},
    )
    json: str | None = field(default=None, metadata={"help": "Also write the figures to this file."})
    rows: str | None = field(default=None, metadata={"help": "Also write a row per expression to this .parquet."})
    page: str | None = field(default=None, metadata={"help": "Also write a page with images into this folder."})

    def check(self) -> None:
        """Raise SystemExit where the flags do not fit together."""
        if (self.model is None) == (self.compare is None):
            raise SystemExit("Give --model MODEL for the scores of one model, or --compare A B for two: one of them.")
        if self.compare is not None and len(self.compare) != 2:
            raise SystemExit(f"--compare is about two, A and B, but got {len(self.compare)}: {' '.join(self.compare)}.")
        if self.compare and self.rows:
            raise SystemExit("--rows are one model's. Write them with --model first, then give the files to --compare.")
        if self.rows and not self.rows.endswith(".parquet"):
            raise SystemExit(f"--rows writes a Parquet file, but {self.rows} does not end in .parquet. Name it so.")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise SystemExit(f"--threshold is between 0 and 1, such as 0.5, but it is {self.threshold}.")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise SystemExit(f"--confidence is between 0 and 1, such as 0.95, but it is {self.confidence}.")


@exits_with_message
def main(command_line: list[str] | None = None):
    parser = HfArgumentParser((DataArguments, EvaluationArguments))
    data, arguments = parser.parse_args_into_dataclasses(command_line)
    arguments.check()
    try:
        measure(data, arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error


def measure(data: DataArguments, arguments: EvaluationArguments) -> None:
    """Get the answers of one model or two, from their rows or from the models, and report them.

    Raises:
        ValueError, OSError: a file or a model cannot be read or written, or they do not fit together.
    """
    make_folders(arguments)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # else processes on CPUs ignore one another
    names = arguments.compare or [arguments.model]
    # Everything is read and checked before the first question, because answers may take hours.
    earlier = {name: read_rows(name) for name in names if name.endswith(".parquet")}
    models = {name: load_model(name, accelerator) for name in names if name not in earlier}
    settle_protocol(arguments, earlier, asking=bool(models))
    split = load_split(data, arguments.split, accelerator) if models or arguments.page else None

    def answers_of(name: str) -> Answers:
        if name in earlier:
            return earlier[name]
        keep_masks, at_once = bool(arguments.rows or arguments.page), arguments.per_device_eval_batch_size
        results = evaluate(*models[name], split, accelerator, at_once, arguments.threshold, keep_masks)
        return Answers(name, data.describe(), arguments.split, arguments.threshold, results)

    runs = [answers_of(name) for name in names]
    if not accelerator.is_main_process:
        return
    report = report_two if arguments.compare else report_one
    figures = report(*runs, arguments, split)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(without_nan(figures), indent=2), encoding="utf-8")


def make_folders(arguments: EvaluationArguments) -> None:
    """Make the folders of all that will be written. If one cannot be made, the program ends before it asks anything."""
    folders = [Path(file).parent for file in (arguments.rows, arguments.json) if file]
    for folder in [*folders, *([Path(arguments.page)] if arguments.page else [])]:
        folder.mkdir(parents=True, exist_ok=True)


def load_model(name: str, accelerator: Accelerator) -> tuple[M3DecForImageSegmentation, M3DecProcessor]:
    model = M3DecForImageSegmentation.from_pretrained(name).to(accelerator.device)
    return model, M3DecProcessor.from_pretrained(name)


def settle_protocol(arguments: EvaluationArguments, earlier: dict[str, Answers], asking: bool) -> None:
    """Set the split and the threshold that no flag gives: the earlier rows' split, and `DEFAULT_THRESHOLD`.

    Raises:
        ValueError: rows are of another split or threshold than the flags say or than models, if `asking`, will have.
    """
    for name, run in earlier.items():
        if arguments.split not in (None, run.split):
            raise ValueError(
                f"{name} was made on {run.split}, so it says nothing about {arguments.split}. Give the model."
            )
        if run.threshold != (arguments.threshold or (DEFAULT_THRESHOLD if asking else run.threshold)):
            raise ValueError(
                f"{name} was made with threshold {run.threshold}, and only the model can answer with another: give "
                f"--threshold {run.threshold}, or the model in its place."
            )
    arguments.split = arguments.split or next((run.split for run in earlier.values()), "val")
    arguments.threshold = arguments.threshold or DEFAULT_THRESHOLD


def load_split(data: DataArguments, name: str, accelerator: Accelerator) -> datasets.Dataset:
    with accelerator.main_process_first():
        splits = data.load()
    if name not in splits:
        raise ValueError(f"There is no split {name!r}. The splits of this data set are {', '.join(splits)}.")
    return splits[name]


def report_one(run: Answers, arguments: EvaluationArguments, split: datasets.Dataset | None) -> dict:
    """Print the tables of one model, write its rows and its page, and return the figures."""
    truths = Truths(split, run.results) if arguments.page else None
    kinds, lengths, sizes = by_kind(run.results), by_length(run.results), by_size(run.results)
    figures = kinds | {"by_length": lengths, "by_size": sizes}
    tables, notes = {"kind": kinds, "words": lengths, "target size": sizes}, []
    print(run.heading)
    for title, rows in tables.items():
        print(text_table(rows, title))
    in_target, blind = peak_rates(run.results)
    if not math.isnan(in_target):
        figures["listening"] = {"peak_in_target": in_target, "blind_chance": blind}
        notes.append(f"peak in its target: {100 * in_target:.2f}; a model that does not listen: {100 * blind:.2f}")
    if arguments.confidence:
        figures["intervals"] = intervals(run.results, arguments.confidence)
        for name, (low, high) in figures["intervals"].items():
            ends = f"{100 * low:.2f} to {100 * high:.2f}"
            notes.append(f"{name}: {ends} in {arguments.confidence:.0%} of resampled sets")
    print(*notes, sep="\n")
    if arguments.rows:
        write_rows(arguments.rows, run)
    if arguments.page:
        print(write_page(arguments.page, run, truths, tables, notes))
    return figures


def report_two(first: Answers, second: Answers, arguments: EvaluationArguments, split: datasets.Dataset | None) -> dict:
    """Print the differences of two models, write the page that shows both, and return the figures."""
    confidence = arguments.confidence or 0.95
    figures = comparison(first, second, confidence)
    truths = Truths(split, first.results) if arguments.page else None
    print(f"A: {first.model}\nB: {second.model}\n{first.heading}")
    print(text_table({"A": figures["A"]["all"], "B": figures["B"]["all"]}))
    for name, row in figures["differences"].items():
        ends = f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f} in {confidence:.0%} of resampled sets"
        print(f"{name}: A - B = {100 * row['difference']:+.2f}, {ends}: {which_is_better(row)}")
    counts = [figures[f"solved_by_{who}"] for who in ("A_only", "B_only", "both", "neither")]
    print("IoU above 0.5 by A only: {}, by B only: {}, by both: {}, by neither: {}".format(*counts))
    if arguments.page:
        print(write_comparison_page(arguments.page, first, second, truths, figures, confidence))
    return figures


def without_nan(figures):
    """JSON has no NaN, so a share of no expressions becomes null."""
    if isinstance(figures, dict):
        return {name: without_nan(value) for name, value in figures.items()}
    return None if isinstance(figures, float) and math.isnan(figures) else figures


if __name__ == "__main__":
    main()
