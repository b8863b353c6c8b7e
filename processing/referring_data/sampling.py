"""Which sentences a training sees, and which pictures they share: the same for any number of workers and processes."""

import logging
import random
from collections.abc import Callable, Iterator

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset, Sampler

from .schema import decode_mask

logger = logging.getLogger(__name__)


class ReferringExamples(Dataset):
    """A training set: each example is a picture and up to `expressions_per_image` sentences about it.

    With sentences="one" an epoch goes through every reference once, with one of its sentences, drawn by (seed, epoch,
    ref_id); with "all", through every sentence. Nothing else is random here, and nothing depends on who asks: an
    example of an epoch is the same in every worker and process, and after a resume. `set_epoch` before each epoch.

    Args:
        dataset: a table with `REFERRING_FEATURES`.
        text_field: "sent" or "raw", the form of the sentences.
        seed: of the drawing.
        sentences: "one" or "all".
        expressions_per_image: the most sentences that share a picture, which is decoded and encoded once for them.
        holds_word: tells whether a sentence can be asked at all, such as `M3DecProcessor.holds_word`. Others are left
            out, with a warning that counts them.

    Raises:
        ValueError: another word for `sentences`.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        text_field: str = "sent",
        seed: int = 0,
        sentences: str = "one",
        expressions_per_image: int = 1,
        holds_word: Callable[[str], bool] = lambda text: any(letter.isalnum() for letter in text),
    ):
        if sentences not in ("one", "all"):
            raise ValueError(f"sentences is 'one' of each reference or 'all', but it is {sentences!r}.")
        self.pictures = dataset.select_columns("image")
        self.references = dataset.select_columns(["ref_id", "sentences", "mask"])
        self.text_field, self.seed = text_field, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change
        self.usable = usable_sentences(dataset, text_field, holds_word)
        self.groups = []  # of (row, its sentence's place, or None to draw one)
        for rows in references_by_image(dataset).values():
            rows = [row for row in rows if self.usable[row]]
            asked = [(row, place) for row in rows for place in (self.usable[row] if sentences == "all" else [None])]
            self.groups += [asked[i : i + expressions_per_image] for i in range(0, len(asked), expressions_per_image)]

    def set_epoch(self, epoch: int) -> None:
        """Draw other sentences from now on: those of `epoch`, counted from 0."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> dict:
        """`image`, a PIL image; `text`, its sentences; `masks`, for each a bool array (height, width); `ref_ids` and
        `sent_ids`."""
        group = self.groups[number]
        example = {"image": self.pictures[group[0][0]]["image"], "text": [], "masks": [], "ref_ids": [], "sent_ids": []}
        for row, place in group:
            reference = self.references[row]
            if place is None:
                draw = random.Random(f"{self.seed} {self.epoch.item()} {reference['ref_id']}")
                place = draw.choice(self.usable[row])
            sentence = reference["sentences"][place]
            example["text"].append(sentence[self.text_field])
            example["masks"].append(decode_mask(reference["mask"]))
            example["ref_ids"].append(reference["ref_id"])
            example["sent_ids"].append(sentence["sent_id"])
        return example


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
    """Row numbers of `dataset` by picture, (image_id, file_name), in the order in which they first appear."""
    columns = dataset.select_columns(["image_id", "file_name"]).with_format("arrow")[:]
    rows = {}
    for number, key in enumerate(zip(*(column.to_pylist() for column in columns.columns), strict=True)):
        rows.setdefault(key, []).append(number)
    return rows


def usable_sentences(dataset: datasets.Dataset, text_field: str, holds_word: Callable[[str], bool]) -> list[list[int]]:
    """For each row the places of its sentences that hold a word; the others are counted in a warning."""
    column = dataset.with_format("arrow")[:]["sentences"]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    texts = pc.struct_field(pc.list_flatten(column), text_field)
    suspects = np.flatnonzero(~pc.match_substring_regex(texts, "[A-Za-z0-9]").to_numpy(zero_copy_only=False))
    wordless = {place for place in suspects.tolist() if not holds_word(texts[place].as_py())}
    if wordless:
        logger.warning(
            "%d of %d sentences hold no word and are left out, such as %r.",
            len(wordless),
            len(texts),
            texts[min(wordless)].as_py()[:80],
        )
    usable, start = [], 0
    for length in pc.list_value_length(column).to_pylist():
        usable.append([place for place in range(length) if start + place not in wordless])
        start += length
    return usable
