"""What an unseen synonym costs is measured on the sentences that have the trained word, and nothing else changes."""

import pytest
from test_prepare_data import scenes  # noqa: F401

from m3dec.examples.benchmarks.benchmark_words import is_one_token, main, replaced, with_word
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.readers.prepared_shards import write_prepared
from m3dec.processing.word_vectors import word_tokenizer


def test_a_word_has_a_row_where_it_is_one_known_token():
    tokenizer = word_tokenizer(["cat", "dog"])
    assert [is_one_token(tokenizer, word) for word in ("cat", "bird", "cat dog")] == [True, False, False]


def test_only_whole_words_are_replaced():
    row = {"sentences": [{"raw": "The star by the starfish", "sent": "the star by the starfish"}]}
    assert replaced(row, "star", "sun")["sentences"][0]["sent"] == "the sun by the starfish"


@pytest.fixture
def prepared(scenes, tmp_path):  # noqa: F811
    splits = load_referring_dataset("refer", root=scenes, dataset="scenes", split_by="scenes")
    return write_prepared(splits, tmp_path / "prepared", num_shards=1)


def test_rows_keep_only_sentences_with_the_word(prepared):
    table = load_referring_dataset("prepared", root=prepared)["train"]
    rows = with_word(table, "square", most=3)
    assert 1 <= len(rows) <= 3
    assert all("square" in sentence["sent"].split() for row in rows for sentence in row["sentences"])


def test_a_word_replaced_by_itself_costs_nothing_and_by_an_unknown_one_something(prepared, tmp_path, capsys):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("word,synonym\nthe,the\nsquare,zzzz\nnowhere,else\n", encoding="utf-8")
    main(["--model", str(SHIPPED_CHECKPOINT), "--data_roots", str(prepared), "--pairs", str(pairs), "--split", "train"])
    lines = capsys.readouterr().out.splitlines()
    assert "everyday words have a row" in lines[0]
    same, other = lines[2].split(), lines[3].split()
    assert same[:2] == ["the", "the"] and same[-1] == "+0.0%"
    assert other[:2] == ["square", "zzzz"] and float(other[-1].rstrip("%")) < -5
    assert lines[-1].startswith("mean of 2 pairs")  # a word that no sentence has is left out
