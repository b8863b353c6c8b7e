"""COCO's compressed run lengths: the string that stands for a mask, as pycocotools' maskApi writes it."""

import numpy as np


def fill(runs: np.ndarray, area: int) -> bool:
    """Whether runs, by turns outside and on the object, are those of a mask of `area` pixels."""
    # No run alone is larger than the area, or the sum may overflow and come round to the right number.
    return bool(len(runs) and (runs >= 0).all() and (runs <= area).all() and runs.sum() == area)


def mask_of(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask of runs that fill it, bool (height, width)."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def decode_counts(counts: str | bytes) -> np.ndarray | None:
    """The lengths of the runs, int64, negative ones too if the string is broken; None for what is no such string.

    The runs go down the columns, by turns outside and on the object. A run is one or more characters, from "0" to "o",
    that carry five bits each, the lowest first; bit 5 says that another character follows, bit 4 of the last one is
    the sign. From the fourth run on, what is written is the difference to the run before the last.
    """
    counts = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts  # beyond ASCII: refused
    bits = np.frombuffer(counts, np.uint8).astype(np.int64) - ord("0")
    last = bits < 32  # of a run's characters
    if len(bits) == 0 or bits.min() < 0 or bits.max() > 63 or not last[-1]:
        return None
    first = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff(first, append=len(bits))
    if lengths.max() > 7:  # 35 bits, more than any mask has pixels
        return None
    place = np.arange(len(bits)) - np.repeat(first, lengths)
    runs = np.add.reduceat((bits & 31) << 5 * place, first)
    runs -= np.where(bits[last] & 16, 1 << 5 * lengths, 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
