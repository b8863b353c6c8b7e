"""What a data set is like, in numbers: sentences, words and masks of a split."""

from collections import Counter

import datasets
import numpy as np
from tqdm import tqdm

from m3dec.processing.referring_data.readers.published_counts import count
from m3dec.processing.word_vectors import split_words

from .schema import area_of_mask


def summarise(table: datasets.Dataset) -> tuple[dict, Counter[str]]:
    """Figures of one split, and how often each word occurs in it.

    Returns:
        references, sentences, images: how many.
        words_mean, words_most: words an expression, as the tokenizer of word vectors splits them.
        over_15_words, over_20_words: the share of the sentences that § IV-A's 15 and 20 words would cut off.
        area_05, area_50, area_95: percentiles of the area of masks that are not empty, as a share of their image.
        empty_masks: references that mean nothing.
        kinds: how many sentences there are of each kind, where the files say it.
    """
    lengths, areas, words, kinds = [], [], Counter(), Counter()
    references = table.remove_columns("image")
    for row in tqdm(references, desc="counting", unit="reference", disable=len(references) < 5000):
        for sentence in row["sentences"]:
            split = split_words(sentence["sent"])
            lengths.append(len(split))
            words.update(split)
            kinds[sentence["category"]] += 1
        areas.append(area_of_mask(row["mask"]) / (row["height"] * row["width"]))
    lengths, areas = np.array(lengths or [0]), np.array(areas)
    area_05, area_50, area_95 = np.percentile(areas[areas > 0], [5, 50, 95]).tolist() if areas.any() else [0.0] * 3
    return count(table) | {
        "words_mean": float(lengths.mean()),
        "words_most": int(lengths.max()),
        "over_15_words": float((lengths > 15).mean()),
        "over_20_words": float((lengths > 20).mean()),
        "area_05": area_05,
        "area_50": area_50,
        "area_95": area_95,
        "empty_masks": int((areas == 0).sum()),
        "kinds": {str(kind): number for kind, number in kinds.most_common() if kind is not None},
    }, words
