"""Which sentences a training sees, and which of them share an image: the same for any number of processes."""

import bisect
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset, Sampler

from .schema import decode_mask

logger = logging.getLogger(__name__)


class Share(NamedTuple):
    """What an epoch shows of one set: every example `whole` times, and `rest` of them, in turn, once more."""

    start: int  # the place of its first example in an epoch that is not shuffled
    examples: list[list[tuple[int, int | None]]]  # of each the (row, its sentence's place, or None to draw one)
    whole: int
    rest: int
    turns: list[int]  # the numbers of its examples, in the order in which `rest` of them have their turn


class ReferringExamples(Dataset):
    """A training set: each example is an image and up to `expressions_per_image` sentences about it.

    With sentences="one" an epoch goes through every reference once, with one of its sentences, drawn by (seed, epoch,
    ref_id); with "all", through every sentence. Nothing depends on who asks: an example of an epoch is the same in
    every worker and process, and after a resume. `set_epoch` before each epoch.

    Of a set with the weight 0.25 an epoch goes through a quarter of its examples, rounded and at least one, and the
    next epoch through the next quarter, in an order drawn by the seed: four epochs see every example once. With the
    weight 2 an epoch goes through every example twice, and each time draws a sentence.

    Args:
        dataset: a table with `REFERRING_FEATURES`.
        text_field: "sent" or "raw", the form of the sentences.
        seed: of the drawing.
        sentences: "one" or "all".
        expressions_per_image: the most sentences that share an image, which is decoded and encoded once for them.
        holds_word: tells whether a sentence can be asked at all, such as `M3DecProcessor.holds_word`. Others are left
            out, with a warning that counts them.
        sets: the number of rows and the weight of each set that `dataset` is made of, one behind the other. Rows of two
            sets never share an image. None: one set of the weight 1.

    Raises:
        ValueError: another word for `sentences`, rows of sets that are not those of the table, or a weight that is not
            above 0.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        text_field: str = "sent",
        seed: int = 0,
        sentences: str = "one",
        expressions_per_image: int = 1,
        holds_word: Callable[[str], bool] = lambda text: any(letter.isalnum() for letter in text),
        sets: Sequence[tuple[int, float]] | None = None,
    ):
        if sentences not in ("one", "all"):
            raise ValueError(f"sentences is 'one' of each reference or 'all', but it is {sentences!r}.")
        sets = [(len(dataset), 1.0)] if sets is None else sets
        if sum(rows for rows, _ in sets) != len(dataset):
            raise ValueError(
                f"The sets of a table have all its rows, but {[rows for rows, _ in sets]} are given for "
                f"{len(dataset)}. Give the number of rows of each set."
            )
        if not all(0 < weight < math.inf for _, weight in sets):
            raise ValueError(f"A set's weight is above 0, such as 0.25, but given are {[w for _, w in sets]}.")
        self.images = dataset.select_columns("image")
        self.references = dataset.select_columns(["ref_id", "sentences", "mask"])
        self.text_field, self.seed = text_field, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change
        self.usable = usable_sentences(dataset, text_field, holds_word)
        self.shares, self.length, first_row = [], 0, 0
        for number, (num_rows, weight) in enumerate(sets):
            examples = []
            for rows in references_by_image(dataset.select(range(first_row, first_row + num_rows))).values():
                rows = [first_row + row for row in rows if self.usable[first_row + row]]
                asked = [(row, place) for row in rows for place in (self.usable[row] if sentences == "all" else [None])]
                examples += [asked[i : i + expressions_per_image] for i in range(0, len(asked), expressions_per_image)]
            first_row += num_rows
            if not examples:
                continue
            shown, turns = max(1, round(weight * len(examples))), list(range(len(examples)))
            random.Random(f"{seed} set {number}").shuffle(turns)
            self.shares.append(Share(self.length, examples, *divmod(shown, len(examples)), turns))
            self.length += shown

    def set_epoch(self, epoch: int) -> None:
        """Draw other sentences from now on: those of `epoch`, counted from 0."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        """How many examples an epoch has."""
        return self.length

    def __getitem__(self, number: int) -> dict:
        """Of the epoch's example at the place `number`: `image`, a PIL image; `text`, its sentences; `masks`, for each
        a bool array (height, width); `ref_ids` and `sent_ids`."""
        group, again = self.group_at(number)
        example = {"image": self.images[group[0][0]]["image"], "text": [], "masks": [], "ref_ids": [], "sent_ids": []}
        for row, place in group:
            reference = self.references[row]
            if place is None:
                key = f"{self.seed} {self.epoch.item()} {reference['ref_id']}"
                draw = random.Random(f"{key} {again}" if again else key)
                place = draw.choice(self.usable[row])
            sentence = reference["sentences"][place]
            example["text"].append(sentence[self.text_field])
            example["masks"].append(decode_mask(reference["mask"]))
            example["ref_ids"].append(reference["ref_id"])
            example["sent_ids"].append(sentence["sent_id"])
        return example

    def group_at(self, number: int) -> tuple[list[tuple[int, int | None]], int]:
        """The rows and the places of their sentences that the epoch shows at the place `number`, None for a sentence to
        draw; and how often it showed them before.

        Raises:
            IndexError: the epoch has no such place.
        """
        if not 0 <= number < self.length:
            raise IndexError(f"An epoch has {self.length} examples, but number {number} was asked for.")
        share = self.shares[bisect.bisect_right(self.shares, number, key=lambda share: share.start) - 1]
        again, place = divmod(number - share.start, len(share.examples))
        if again == share.whole:
            place = share.turns[(self.epoch.item() * share.rest + place) % len(share.turns)]
        return share.examples[place], again


class ShuffledByEpoch(Sampler):
    """The order of an epoch's examples: shuffled by (seed, epoch) alone, whatever else was drawn before.

    The first `start` are left out, to go on in the middle of an epoch.
    """

    def __init__(self, examples: ReferringExamples):
        self.examples, self.start = examples, 0

    def __len__(self) -> int:
        return len(self.examples) - self.start

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.examples)))
        random.Random(f"{self.examples.seed} {self.examples.epoch.item()}").shuffle(order)
        return iter(order[self.start :])


def references_by_image(dataset: datasets.Dataset) -> dict[tuple[int, str], list[int]]:
    """Row numbers of `dataset` by image, (image_id, file_name), in the order in which they first appear."""
    columns = dataset.select_columns(["image_id", "file_name"]).with_format("arrow")[:]
    rows = {}
    for number, key in enumerate(zip(*(column.to_pylist() for column in columns.columns), strict=True)):
        rows.setdefault(key, []).append(number)
    return rows


def usable_sentences(dataset: datasets.Dataset, text_field: str, holds_word: Callable[[str], bool]) -> list[list[int]]:
    """For each row the places of its sentences that hold a word; the others are counted in a warning."""
    column = dataset.select_columns("sentences").with_format("arrow")[:]["sentences"]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    texts = pc.struct_field(pc.list_flatten(column), text_field)
    suspects = np.flatnonzero(~pc.match_substring_regex(texts, "[A-Za-z0-9]").to_numpy(zero_copy_only=False))
    wordless = {place for place in suspects.tolist() if not holds_word(texts[place].as_py())}
    if wordless:
        example = texts[min(wordless)].as_py()[:80]
        logger.warning(f"{len(wordless)} of {len(texts)} sentences hold no word and are left out, such as {example!r}.")
    usable, start = [], 0
    for length in pc.list_value_length(column).to_pylist():
        usable.append([place for place in range(length) if start + place not in wordless])
        start += length
    return usable
