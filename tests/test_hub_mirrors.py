"""Mirrors with rows in their exact columns, and copies of them that are not what they seem."""

import json
import logging
import shutil

import datasets
import numpy as np
import pytest
import referring_files as files

from m3dec.processing.referring_data import (
    REFERRING_FEATURES,
    ReferringDataError,
    decode_mask,
    load_referring_dataset,
)
from m3dec.processing.referring_data.readers import hub_mirrors
from m3dec.processing.referring_data.readers.images import MissingImagesError
from m3dec.processing.referring_data.readers.prepared_shards import write_prepared

REFERENCES = files.build(num_images={"train": 2, "val": 2, "testA": 2, "testB": 2})
VAL = [reference for reference in REFERENCES if reference.split == "val"]
TRAIN = [reference for reference in REFERENCES if reference.split == "train"]
POLYGON = next(reference for reference in VAL if reference.polygons and len(reference.polygons) == 1)

# One row of each mirror, its features, and every field that is read.
MIRRORS = {
    "joined": (
        files.joined_row(VAL[0]),
        files.JOINED,
        "ref_id ann_id image_id category_id split raw_anns raw_image_info "
        "sentences sentences.sent_id sentences.sent sentences.raw",
    ),
    "benchmark": (
        files.benchmark_row([POLYGON]),
        files.BENCHMARK,
        "image image_info image_info.file_name image_info.height image_info.width ref_list "
        "ref_list.ann_info ref_list.ann_info.id ref_list.ann_info.image_id ref_list.ann_info.category_id "
        "ref_list.ann_info.bbox ref_list.ann_info.segmentation ref_list.ref_info ref_list.ref_info.ref_id "
        "ref_list.ref_info.sentences ref_list.ref_info.sentences.sent_id ref_list.ref_info.sentences.sent "
        "ref_list.ref_info.sentences.raw",
    ),
    "questions": (
        files.question_row(POLYGON, 0),
        files.QUESTIONS,
        "question_id image answer segmentation bbox file_name",
    ),
    "cleaned": (
        files.cleaned_row([VAL[0]]),
        files.CLEANED,
        "image image_id file_name samples samples.id samples.sentences samples.bbox "
        "samples.mask samples.mask.counts samples.mask.size",
    ),
}
CASES = [(mirror, path) for mirror, (_, _, paths) in MIRRORS.items() for path in paths.split()]


def renamed(tree, names: list[str], new: str | None):
    """Rows or features with the field at the end of `names` called `new`, or without it."""
    if isinstance(tree, datasets.List):
        return datasets.List(renamed(tree.feature, names, new))
    if isinstance(tree, list):
        return [renamed(entry, names, new) for entry in tree]
    name, *rest = names
    if rest:
        return {**tree, name: renamed(tree[name], rest, new)}
    return {new if key == name else key: value for key, value in tree.items() if key != name or new}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return files.write_images(tmp_path_factory.mktemp("images"), REFERENCES)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    return files.write_joined(tmp_path_factory.mktemp("joined"), REFERENCES)


def read(name, **options) -> list[dict]:
    """All rows of all splits."""
    tables = load_referring_dataset("hub", name=name, **options)
    tables = tables.values() if isinstance(tables, dict) else [tables]
    return [row for table in tables for row in table]


def mirror_options(mirror: str, images) -> dict:
    return {"image_root": images} if mirror == "joined" else {}


@pytest.mark.parametrize("mirror", MIRRORS)
def test_the_rows_that_the_errors_are_tried_on_are_good_ones(mirror, tmp_path, images):
    row, features, _ = MIRRORS[mirror]
    folder = files.write_parquet(tmp_path, "val", [row], features)
    (reference,) = read(folder, **mirror_options(mirror, images))
    assert reference["image_id"] == (VAL[0] if mirror in ("joined", "cleaned") else POLYGON).image.image_id


@pytest.mark.parametrize("new", ["other", None], ids=["renamed", "removed"])
@pytest.mark.parametrize("mirror, path", CASES)
def test_a_field_that_is_not_there_is_named_beside_the_columns_found(mirror, path, new, tmp_path, images):
    row, features, _ = MIRRORS[mirror]
    names = path.split(".")
    row, features = renamed(row, names, new), datasets.Features(renamed(dict(features), names, new))
    folder = files.write_parquet(tmp_path, "val", [row], features)
    with pytest.raises(ReferringDataError) as error:
        read(folder, streaming=True, **mirror_options(mirror, images))
    message = str(error.value)
    before, _, found = message.partition("columns found are")
    assert names[-1] in before
    assert all(column in found for column in features)


@pytest.mark.parametrize("mirror, path", [case for case in CASES if case[1].count(".") in (0, 3)])
def test_without_streaming_a_renamed_field_is_named_as_well(mirror, path, tmp_path, images):
    row, features, _ = MIRRORS[mirror]
    names = path.split(".")
    row, features = renamed(row, names, "other"), datasets.Features(renamed(dict(features), names, "other"))
    folder = files.write_parquet(tmp_path, "val", [row], features)
    with pytest.raises(ReferringDataError, match=rf"(?s){names[-1]}.*columns found are.*{next(iter(features))}"):
        read(folder, **mirror_options(mirror, images))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "mirror, column", [("questions", "answer"), ("questions", "bbox"), ("cleaned", "samples"), ("joined", "sentences")]
)
def test_a_field_without_a_value_is_an_error_that_shows_which(mirror, column, streaming, tmp_path, images):
    row, features, _ = MIRRORS[mirror]
    folder = files.write_parquet(tmp_path, "val", [{**row, column: None}], features)
    with pytest.raises(ReferringDataError, match=rf"Row 0 of '\w+'.*{column} \(NoneType\)"):
        read(folder, streaming=streaming, **mirror_options(mirror, images))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    files.write_official(root, VAL)
    splits = load_referring_dataset("refer", root=root, dataset="refcoco", split_by="unc")
    return write_prepared(splits, root / "shards", num_shards=1)


@pytest.mark.parametrize("column", REFERRING_FEATURES)
def test_a_prepared_table_without_a_column_is_not_taken_for_one(column, prepared, tmp_path):
    table = datasets.load_dataset(str(prepared), split="val")
    (tmp_path / "data").mkdir()
    table.rename_column(column, "other").to_parquet(tmp_path / "data" / "val-00000-of-00001.parquet")
    with pytest.raises(ReferringDataError, match=rf"no column {column}, which what prepare_data.*found are .*other"):
        read(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("new", ["other", None], ids=["renamed", "removed"])
@pytest.mark.parametrize("path", ["mask.counts", "mask.size", "sentences.sent", "sentences.sent_id"])
def test_a_prepared_table_with_other_fields_inside_is_an_error_not_nulls(path, new, streaming, prepared, tmp_path):
    table = datasets.load_dataset(str(prepared), split="val").cast_column("image", datasets.Image(decode=False))
    names = path.split(".")
    features = datasets.Features(renamed(dict(table.features), names, new))
    files.write_parquet(tmp_path, "val", renamed(table.to_list(), names, new), features)
    with pytest.raises(ReferringDataError, match=rf"(?s)Column {names[0]} .*{names[1]}.*columns found are image, "):
        read(tmp_path, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_prepared_table_of_wider_numbers_is_cast(streaming, prepared, tmp_path):
    table = datasets.load_dataset(str(prepared), split="val").cast_column("height", files.INTEGER)
    (tmp_path / "data").mkdir()
    table.cast_column("bbox", files.NUMBERS).to_parquet(tmp_path / "data" / "val-00000-of-00001.parquet")
    splits = load_referring_dataset("hub", name=tmp_path, streaming=streaming)
    assert splits["val"].features == REFERRING_FEATURES
    assert [row["bbox"] for row in splits["val"]] == [row["bbox"] for row in table]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["hub", "prepared"])
def test_a_prepared_row_that_names_a_file_of_this_computer_opens_none(source, streaming, prepared, images, tmp_path):
    table = datasets.load_dataset(str(prepared), split="val").cast_column("image", datasets.Image(decode=False))
    rows = table.to_list()
    rows[-1]["image"] = {"bytes": None, "path": str(next(images.iterdir()))}
    shutil.copytree(prepared, tmp_path / "shards")
    (shard,) = (tmp_path / "shards" / "data").iterdir()
    datasets.Dataset.from_list(rows, features=table.features).to_parquet(shard)
    where = {"hub": {"name": tmp_path / "shards"}, "prepared": {"root": tmp_path / "shards"}}[source]
    with pytest.raises(ReferringDataError, match=r"hold their images, but one of .*shards"):
        for row in load_referring_dataset(source, streaming=streaming, **where)["val"]:
            row["image"].load()


def test_unknown_columns_are_an_error_that_names_what_the_nearest_mirror_has(tmp_path):
    files.write_parquet(tmp_path, "val", [{"text": "a"}], datasets.Features({"text": files.TEXT}))
    with pytest.raises(ReferringDataError, match=r"no column .*image.*columns found are text\..*'coco'"):
        read(tmp_path)


# Splits.
@pytest.mark.parametrize("streaming", [False, True])
def test_the_split_called_test_by_jxu124_is_test_a_and_asking_for_it_names_those_there_are(streaming, joined, images):
    with pytest.raises(ReferringDataError, match=r"no split 'test'; it has 'train', 'val', 'testA', 'testB'\."):
        read(joined, split="test", image_root=images, streaming=streaming)
    rows = read(joined, split="testA", image_root=images, streaming=streaming)
    assert {row["ref_id"] for row in rows} == {ref.ref_id for ref in REFERENCES if ref.split == "testA"}


def test_a_missing_train_split_is_never_another_one(tmp_path):
    files.write_benchmark(tmp_path, [POLYGON])
    with pytest.raises(ReferringDataError, match=r"no split 'train'; it has 'refcoco_unc_val'\. .*evaluation only"):
        read(tmp_path, split="train")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    for split in ("val", "test", "testA"):
        files.write_parquet(folder, split, [files.question_row(POLYGON, 0)], files.QUESTIONS)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_val_of_two_official_splits_is_not_val_and_a_test_by_google_is_not_test(questions, streaming):
    splits = load_referring_dataset("hub", name=questions, streaming=streaming)
    assert set(splits) == {"val_mixed", "test_google", "testA"}
    with pytest.raises(ReferringDataError, match=r"no split 'val'; it has .*'val_mixed'.*mixes two official splits"):
        read(questions, split="val", streaming=streaming)
    with pytest.raises(ReferringDataError, match=r"no split 'test'; it has .*'test_google'.*by Google"):
        read(questions, split="test", streaming=streaming)
    assert len(read(questions, split="val_mixed", streaming=streaming)) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "theirs, rows, ours",
    [
        ("val", 3_811, "val"),  # RefCOCO
        ("val", 3_805, "val"),  # RefCOCO+
        ("val", 2_573, "val"),  # RefCOCOg
        ("test", 5_023, "test"),  # RefCOCOg
        ("val", 8_811, "val_mixed"),
        ("val", 7_573, "val_mixed"),
        ("test", 5_000, "test_google"),
        ("val", 5_000, "val_mixed"),
        ("test", 3_811, "test_google"),  # a val's number
        ("val", 5_023, "val_mixed"),
    ],
)
def test_a_split_with_the_number_of_one_official_split_is_that_one(theirs, rows, ours, streaming, tmp_path):
    row = datasets.Dataset.from_list([files.question_row(POLYGON, 0)], features=files.QUESTIONS)
    table = row.select([0] * rows)
    if streaming:  # on the Hub, the card says how many there are
        table = row.to_iterable_dataset()
        table.info.splits = {theirs: datasets.SplitInfo(theirs, num_examples=rows)}
        table._split = datasets.NamedSplit(theirs)
    mirror = hub_mirrors.recognise(list(files.QUESTIONS), "a copy")
    assert hub_mirrors.official_name(mirror, theirs, table) == ours


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("published", "ours"), [(2, "val"), (3, "val_mixed")])
def test_a_stream_without_a_number_of_rows_has_its_splits_named_by_its_files(
    published, ours, streaming, tmp_path, monkeypatch
):
    monkeypatch.setitem(hub_mirrors.PUBLISHED_COUNTS, ("refcoco+", "unc"), {"val": (published, None)})
    files.write_parquet(tmp_path, "val", [files.question_row(POLYGON, place) for place in range(2)], files.QUESTIONS)
    assert list(load_referring_dataset("hub", name=tmp_path, streaming=streaming)) == [ours]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("theirs", ["train", "validation", "val"])
def test_cleaned_val_is_val_whatever_its_files_are_called(theirs, streaming, tmp_path):
    """Files without a split are "train" to 🤗 Datasets."""
    files.write_cleaned(tmp_path, VAL, theirs)
    assert list(load_referring_dataset("hub", name=tmp_path, streaming=streaming)) == ["val"]
    with pytest.raises(ReferringDataError, match=r"no split 'train'; it has 'val'\. It is for evaluation only"):
        read(tmp_path, split="train", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_of_another_split_than_its_table_is_an_error(streaming, tmp_path, images):
    rows = [files.joined_row(VAL[0]), files.joined_row(TRAIN[0])]
    files.write_parquet(tmp_path, "validation", rows, files.JOINED)
    with pytest.raises(ReferringDataError, match=rf"'val' holds reference {TRAIN[0].ref_id} of 'train'"):
        read(tmp_path, image_root=images, streaming=streaming)


def test_a_split_whose_name_is_a_path_writes_nowhere(tmp_path, images):
    rows = [files.joined_row(VAL[0]) | {"split": "../../train"}]
    files.write_parquet(tmp_path / "mirror", "validation", rows, files.JOINED)
    splits = load_referring_dataset("hub", name=tmp_path / "mirror", image_root=images)
    with pytest.raises(ReferringDataError, match=r"'\.\./\.\./train'"):
        write_prepared(splits, tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


# Images.
@pytest.mark.parametrize("streaming", [False, True])
def test_a_mirror_without_images_asks_for_their_folder(joined, streaming):
    with pytest.raises(ReferringDataError, match=r"holds no images.*image_root"):
        read(joined, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_image_is_an_error_or_leaves_its_references_out(joined, streaming, tmp_path, caplog):
    images = files.write_images(tmp_path, REFERENCES)
    gone = files.name_2014(VAL[0].image.image_id)
    (images / gone).unlink()
    options = {"split": "val", "image_root": images, "streaming": streaming}
    with pytest.raises(MissingImagesError, match=gone) as error:
        read(joined, **options)
    assert error.value.names == [gone]
    with caplog.at_level(logging.WARNING):
        rows = read(joined, **options, on_missing="skip")
    assert {row["ref_id"] for row in rows} == {ref.ref_id for ref in VAL if ref.image != VAL[0].image}
    assert gone in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("mirror", ["benchmark", "cleaned"])
def test_an_image_of_another_size_than_its_annotations_is_an_error(mirror, streaming, tmp_path):
    row, features, _ = MIRRORS[mirror]
    other = TRAIN[0].image
    files.write_parquet(tmp_path, "val", [{**row, "image": files.embedded(other)}], features)
    with pytest.raises(ReferringDataError, match=rf"{other.height}, {other.width}.*\(height, width\)"):
        read(tmp_path, streaming=streaming)


@pytest.mark.parametrize("mirror", ["benchmark", "questions", "cleaned"])
def test_bytes_that_are_no_image_are_an_error(mirror, tmp_path):
    row, features, _ = MIRRORS[mirror]
    files.write_parquet(tmp_path, "val", [{**row, "image": {"bytes": b"GIF8 no more", "path": None}}], features)
    with pytest.raises(ReferringDataError, match="the image of row 0 is not"):
        read(tmp_path)


# Values.
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["raw_anns", "raw_image_info"])
@pytest.mark.parametrize("value", ["{'id': 1}", '{"id": ', "[]", "", None])
def test_records_that_are_no_json_object_are_an_error(column, value, streaming, tmp_path, images):
    files.write_parquet(tmp_path, "val", [{**files.joined_row(VAL[0]), column: value}], files.JOINED)
    with pytest.raises(ReferringDataError, match=f"{column} is a (string of JSON|JSON object)"):
        read(tmp_path, image_root=images, streaming=streaming)


@pytest.mark.parametrize(
    "column, field",
    [("raw_anns", "segmentation"), ("raw_anns", "bbox")]
    + [("raw_image_info", name) for name in ("file_name", "height", "width")],
)
def test_a_record_without_a_field_is_an_error_that_names_it(column, field, tmp_path, images):
    row = files.joined_row(VAL[0])
    record = json.dumps(renamed(json.loads(row[column]), [field], None))
    files.write_parquet(tmp_path, "val", [{**row, column: record}], files.JOINED)
    with pytest.raises(ReferringDataError, match=f"no '{field}'.*columns found are .*{column}"):
        read(tmp_path, image_root=images)


@pytest.mark.parametrize("name", ["581857.jpg", "COCO_train2014_581857_3.jpg", "", None])
def test_a_question_whose_file_name_has_no_number_of_an_image_is_an_error(name, tmp_path):
    files.write_parquet(tmp_path, "testA", [{**files.question_row(POLYGON, 0), "file_name": name}], files.QUESTIONS)
    with pytest.raises(ReferringDataError, match="file_name holds the number"):
        read(tmp_path)


def test_run_lengths_of_a_benchmark_that_stand_as_json_are_read(tmp_path):
    """A copy may hold its segmentations as strings, since run lengths do not fit into a column of polygons."""
    reference = next(reference for reference in VAL if not reference.polygons)
    features = renamed(dict(files.BENCHMARK), ["ref_list", "ann_info", "segmentation"], "segmentation")
    features["ref_list"].feature["ann_info"]["segmentation"] = files.TEXT
    row = files.benchmark_row([reference])
    annotation = row["ref_list"][0]["ann_info"]
    annotation["segmentation"] = json.dumps(annotation["segmentation"])
    files.write_parquet(tmp_path, "refcoco_unc_val", [row], datasets.Features(features))
    (found,) = read(tmp_path)
    np.testing.assert_array_equal(decode_mask(found["mask"]), reference.mask)
