"""Scores of a model folder on a referring data set, its rows and pages, and two models side by side.

    python examples/evaluate_referring.py --model hub/checkpoints/m3dec-scenes --data_root outputs/data \\
        --dataset scenes --split_by scenes --split test --rows outputs/shipped.parquet --page outputs/page
    python examples/evaluate_referring.py --compare outputs/shipped.parquet outputs/scenes/best --split test

Every sentence of the split counts once, at each image's own size; each image is encoded once for all its sentences.
With `torchrun --nproc_per_node N` in place of `python` the images are dealt out to N processes.
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
from m3dec.examples.evaluation.results import Answers, check_comparable, read_rows, write_rows
from m3dec.examples.evaluation.tables import (
    by_kind,
    by_length,
    by_size,
    comparison,
    intervals,
    listening,
    table,
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
        default=8, metadata={"help": "Images at once; each with all its sentences."}
    )
    confidence: float | None = field(
        default=None,
        metadata={"help": "Also give intervals, such as 0.95, by a bootstrap over images; --compare always does."},
    )
    json: str | None = field(default=None, metadata={"help": "Also write the figures to this file."})
    rows: str | None = field(default=None, metadata={"help": "Also write a row per expression to this .parquet."})
    page: str | None = field(default=None, metadata={"help": "Also write a page with pictures into this folder."})

    def check(self) -> None:
        """End with a sentence where the flags do not fit together, before anything is computed."""
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
    or_exit(make_folders, arguments)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # else processes on CPUs ignore one another
    names, split = arguments.compare or [arguments.model], None
    sources = [or_exit(rows_or_model, name, arguments, accelerator) for name in names]  # all, before the first answers
    made = next((source for name, source in zip(names, sources, strict=True) if is_rows(name)), None)
    arguments.split = arguments.split or (made.split if made else "val")
    arguments.threshold = arguments.threshold or DEFAULT_THRESHOLD
    if arguments.page or not all(is_rows(name) for name in names):
        split = load_split(data, arguments.split, accelerator)
    runs = [
        or_exit(answers_of, name, source, data, arguments, split, accelerator)
        for name, source in zip(names, sources, strict=True)
    ]
    if not accelerator.is_main_process:
        return
    if arguments.compare:
        or_exit(check_comparable, *runs)
    truths = or_exit(Truths, split, runs[0].results) if arguments.page else None
    figures = report_two(*runs, arguments, truths) if arguments.compare else report_one(*runs, arguments, truths)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(without_nan(figures), file, indent=2)


def without_nan(figures):
    """With null, which JSON has, for NaN, such as a share of no expressions."""
    if isinstance(figures, dict):
        return {name: without_nan(value) for name, value in figures.items()}
    return None if isinstance(figures, float) and math.isnan(figures) else figures


def make_folders(arguments: EvaluationArguments) -> None:
    """Make the folders of all that will be written now: one that cannot be made ends no hour of answers."""
    folders = [Path(file).parent for file in (arguments.rows, arguments.json) if file]
    for folder in [*folders, *([Path(arguments.page)] if arguments.page else [])]:
        folder.mkdir(parents=True, exist_ok=True)


def load_split(data: DataArguments, name: str, accelerator: Accelerator) -> datasets.Dataset:
    with accelerator.main_process_first():
        splits = data.load()
    if name not in splits:
        raise SystemExit(f"There is no split {name!r}. The splits of this data set are {', '.join(splits)}.")
    return splits[name]


def is_rows(name: str) -> bool:
    """Whether this is an earlier run's rows, and not a model."""
    return name.endswith(".parquet")


def or_exit(function, *arguments):
    """What `function` returns; its complaint ends the program."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error


def rows_or_model(name: str, arguments: EvaluationArguments, accelerator):
    """An earlier run's rows, or a model and its processor.

    Raises:
        ValueError, OSError: there is no such model, the rows cannot be read, or they are of another split or threshold
            than was asked for, or of another threshold than a model beside them will answer with.
    """
    if not is_rows(name):
        model = M3DecForImageSegmentation.from_pretrained(name).to(accelerator.device)
        return model, M3DecProcessor.from_pretrained(name)
    run = read_rows(name)
    if arguments.split not in (None, run.split):
        raise ValueError(f"{name} was made on {run.split}, so it says nothing about {arguments.split}. Give the model.")
    beside_a_model = not all(is_rows(other) for other in arguments.compare or [name])
    threshold = arguments.threshold or (DEFAULT_THRESHOLD if beside_a_model else run.threshold)
    if threshold != run.threshold:
        raise ValueError(
            f"{name} was made with threshold {run.threshold}, and only the model can answer with another: give "
            f"--threshold {run.threshold}, or the model in its place."
        )
    return run


def answers_of(name: str, source, data: DataArguments, arguments: EvaluationArguments, split, accelerator) -> Answers:
    """The answers of `rows_or_model(name)`: read already, or asked for now."""
    if is_rows(name):
        return source
    model, processor = source
    size, threshold = arguments.per_device_eval_batch_size, arguments.threshold
    keep_masks = bool(arguments.rows or arguments.page)
    results = evaluate(model, processor, split, accelerator, size, threshold, keep_masks)
    return Answers(name, data.describe(), arguments.split, threshold, results)


def report_one(run: Answers, arguments: EvaluationArguments, truths: Truths | None) -> dict:
    """Print the tables of one model, write its rows and its page, and return the figures."""
    kinds, lengths, sizes = by_kind(run.results), by_length(run.results), by_size(run.results)
    figures = kinds | {"by_length": lengths, "by_size": sizes}
    tables = {"kind": kinds, "words": lengths, "target size": sizes}
    print(run.heading)
    for title, rows in tables.items():
        print(table(rows, title))
    notes = []
    own, blind = listening(run.results)
    if not math.isnan(own):
        figures["listening"] = {"peak_in_target": own, "blind_chance": blind}
        notes.append(f"peak in its target: {100 * own:.2f}; a model that does not listen: {100 * blind:.2f}")
    if arguments.confidence:
        figures["intervals"] = intervals(run.results, arguments.confidence)
        notes += [
            f"{name}: {100 * low:.2f} to {100 * high:.2f} in {arguments.confidence:.0%} of resampled sets"
            for name, (low, high) in figures["intervals"].items()
        ]
    print(*notes, sep="\n")
    if arguments.rows:
        write_rows(arguments.rows, run)
    if truths is not None:
        print(write_page(arguments.page, run, truths, tables, notes))
    return figures


def report_two(first: Answers, second: Answers, arguments: EvaluationArguments, truths: Truths | None) -> dict:
    """Print what two models differ by, write the page that shows both, and return the figures."""
    confidence = arguments.confidence or 0.95
    figures = comparison(first, second, confidence)
    print(f"A: {first.model}\nB: {second.model}\n{first.heading}")
    print(table({"A": figures["A"]["all"], "B": figures["B"]["all"]}))
    for name, row in figures["differences"].items():
        ends = f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f} in {confidence:.0%} of resampled sets"
        print(f"{name}: A - B = {100 * row['difference']:+.2f}, {ends}: {which_is_better(row)}")
    counts = [figures[f"solved_by_{who}"] for who in ("A_only", "B_only", "both", "neither")]
    print("IoU above 0.5 by A only: {}, by B only: {}, by both: {}, by neither: {}".format(*counts))
    if truths is not None:
        print(write_comparison_page(arguments.page, first, second, truths, figures, confidence))
    return figures


if __name__ == "__main__":
    main()
