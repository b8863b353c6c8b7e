"""What a model makes of words: how many everyday words it has a row for, and what a synonym costs that no training
sentence had.

    python examples/benchmarks/benchmark_words.py \\
        --model hub/checkpoints/m3dec-photos --data_roots outputs/photographs_data/*

Every sentence of the evaluation split that has a trained word is asked as it is, and with the word replaced by its
synonym. examples/studies/unseen_synonyms.csv lists the pairs, examples/studies/everyday_words.txt the words.
"""

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from transformers import HfArgumentParser, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.evaluation.loop import evaluate
from m3dec.processing.referring_data import load_referring_dataset

STUDIES = Path(__file__).parents[1] / "studies"


@dataclass
class WordArguments:
    model: str = HfArg(help="A folder or hub name.")
    data_roots: list[str] = field(metadata={"help": "Folders of prepared data."})
    split: str = "val"
    pairs: str = HfArg(default=str(STUDIES / "unseen_synonyms.csv"), help="A .csv of word,synonym.")
    most_references: int = HfArg(default=40, help="Of each pair and set, the first ones.")


def main(command_line: list[str] | None = None):
    (arguments,) = HfArgumentParser(WordArguments).parse_args_into_dataclasses(command_line)
    model = M3DecForImageSegmentation.from_pretrained(arguments.model)
    processor = M3DecProcessor.from_pretrained(arguments.model)
    everyday = (STUDIES / "everyday_words.txt").read_text(encoding="utf-8").split()
    known = [word for word in everyday if is_one_token(processor.tokenizer, word)]
    print(f"{len(known)} of {len(everyday)} everyday words have a row of their own.")

    with open(arguments.pairs, encoding="utf-8", newline="") as file:
        pairs = [(row["word"], row["synonym"]) for row in csv.DictReader(file)]
    splits = [load_referring_dataset("prepared", root=root) for root in arguments.data_roots]
    tables = [tables[arguments.split] for tables in splits if arguments.split in tables]
    accelerator, scores = Accelerator(cpu=not torch.accelerator.is_available()), []

    def mean_iou(parts: list[datasets.Dataset]) -> float:
        results = [result for part in parts for result in evaluate(model, processor, part, accelerator)]
        return sum(result.iou for result in results) / len(results)

    print(f"{'word':16}{'synonym':16}{'sentences':>10}{'mIoU':>8}{'replaced':>10}{'difference':>12}")
    for word, synonym in pairs:
        parts = [with_word(table, word, arguments.most_references) for table in tables]
        parts = [part for part in parts if len(part)]
        if parts:
            changes = {"word": word, "by": synonym}
            changed = [part.map(replaced, fn_kwargs=changes, features=part.features) for part in parts]
            before, after = mean_iou(parts), mean_iou(changed)
            scores.append((before, after))
            count = sum(len(sentences) for part in parts for sentences in part["sentences"])
            print(f"{word:16}{synonym:16}{count:10}{before:8.1%}{after:10.1%}{after - before:+12.1%}")
    before, after = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    print(f"{f'mean of {len(scores)} pairs':42}{before:8.1%}{after:10.1%}{after - before:+12.1%}")


def is_one_token(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    """Whether a word is one token that is not the unknown one; a word in pieces has no row of its own."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def with_word(table: datasets.Dataset, word: str, most: int) -> datasets.Dataset:
    """The first `most` rows that mean one thing, with those of their sentences that have the word."""

    def having(row: dict) -> list[dict]:
        return [s for s in row["sentences"] if re.search(rf"\b{re.escape(word)}\b", s["sent"])]

    columns = table.select_columns(["sentences", "ann_id"])
    numbers = [number for number, row in enumerate(columns) if len(row["ann_id"]) == 1 and having(row)]
    chosen = table.select(numbers[:most])
    return chosen.map(lambda row: {"sentences": having(row)}, features=chosen.features)


def replaced(row: dict, word: str, by: str) -> dict:
    """A row with the word replaced in all its sentences."""
    change = re.compile(rf"\b{re.escape(word)}\b")
    return {
        "sentences": [
            {**s, "raw": change.sub(by, s["raw"]), "sent": change.sub(by, s["sent"])} for s in row["sentences"]
        ]
    }


if __name__ == "__main__":
    main()
