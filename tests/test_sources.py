"""One data set, through every source that can hold it: the same masks, sentences, boxes, numbers and images."""

import shutil
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pytest
import referring_files as files
from datasets import List, Value

from m3dec.processing.referring_data import REFERRING_FEATURES, decode_mask, load_referring_dataset
from m3dec.processing.referring_data.readers.prepared_shards import write_prepared

REFERENCES = files.build()
EVALUATION = [reference for reference in REFERENCES if reference.split != "train"]
POLYGONS = [reference for reference in EVALUATION if reference.polygons]
SINGLE_POLYGONS = [reference for reference in REFERENCES if reference.polygons and len(reference.polygons) == 1]
VAL = [reference for reference in REFERENCES if reference.split == "val"]


@dataclass
class Held:
    """What a source says, and what it was given: references by split and the source's ref_id."""

    rows: dict[str, dict[int, dict]]
    references: dict[str, dict[int, files.Reference]]
    loses: frozenset[str]  # fields it cannot hold
    features: list[datasets.Features]

    def pairs(self):
        for split, references in self.references.items():
            for number, reference in references.items():
                yield self.rows[split][number], reference


def by_ref_id(references: list, split=lambda theirs: theirs) -> dict:
    return {
        split(theirs): {reference.ref_id: reference for reference in several}
        for theirs, several in files.by_split(references).items()
    }


def held(splits, references: dict, *loses: str) -> Held:
    rows = {split: {row["ref_id"]: row for row in table} for split, table in splits.items()}
    return Held(rows, references, frozenset(loses), [table.features for table in splits.values()])


def refer(root, references=REFERENCES, dataset="refcoco", split_by="unc", **names) -> Held:
    files.write_official(root, references, dataset, split_by, **names)
    splits = load_referring_dataset("refer", root=root, dataset=dataset, split_by=split_by)
    return held(splits, by_ref_id(references))


def refer_from_the_cache(root) -> Held:
    refer(root)
    return refer(root)


def refer_with_names_of_2017(root) -> Held:
    return refer(root, image_name=files.name_2017)


def refer_umd(root) -> Held:
    splits = {"train": "train", "val": "val", "testA": "test", "testB": "test"}
    references = [replace(reference, split=splits[reference.split]) for reference in REFERENCES]
    return refer(root, references, dataset="refcocog", split_by="umd")


def refer_google(root) -> Held:
    """Train and val share images."""
    references = [replace(ref, split="val" if ref.ref_id % 5 == 0 else "train") for ref in REFERENCES]
    return refer(root, references, dataset="refcocog", split_by="google")


def refer_refclef(root) -> Held:
    return refer(root, dataset="refclef", name=files.name_refclef)


def grefcoco(root) -> Held:
    references = files.generalised(REFERENCES)
    files.write_grefcoco(root, references)
    return held(load_referring_dataset("grefcoco", root=root), by_ref_id(references))


def joined(root, streaming=False) -> Held:
    files.write_joined(root / "mirror", REFERENCES)
    images = files.write_images(root / "train2014", REFERENCES)
    splits = load_referring_dataset("hub", name=root / "mirror", image_root=images, streaming=streaming)
    return held(splits, by_ref_id(REFERENCES))


def benchmark(root, streaming=False) -> Held:
    files.write_benchmark(root, POLYGONS)
    splits = load_referring_dataset("hub", name=root, streaming=streaming)
    return held(splits, by_ref_id(POLYGONS, "refcoco_unc_{}".format))


def questions(root, streaming=False) -> Held:
    files.write_questions(root, SINGLE_POLYGONS)
    splits = load_referring_dataset("hub", name=root, streaming=streaming)
    theirs = {"val": "val_mixed", "train": "test_google", "testA": "testA", "testB": "testB"}
    references = {theirs[split]: dict(enumerate(refs)) for split, refs in files.by_split(SINGLE_POLYGONS).items()}
    return held(splits, references, "ref_id", "ann_id", "category_id", "sent_id", "raw")


def cleaned(root, streaming=False) -> Held:
    files.write_cleaned(root, VAL)
    splits = load_referring_dataset("hub", name=root, streaming=streaming)
    references = {"val": {reference.objects[0].ann_id: reference for reference in VAL}}
    return held(splits, references, "ref_id", "category_id", "sent_id", "raw")


def prepared_folder(root):
    """Prepared, moved, and all that it was made from deleted."""
    files.write_official(root / "official", REFERENCES)
    splits = load_referring_dataset("refer", root=root / "official", dataset="refcoco", split_by="unc")
    write_prepared(splits, root / "prepared", num_shards=3)
    shutil.rmtree(root / "official")
    return (root / "prepared").rename(root / "moved")


def prepared(root, streaming=False) -> Held:
    splits = load_referring_dataset("prepared", root=prepared_folder(root), streaming=streaming)
    return held(splits, by_ref_id(REFERENCES))


def prepared_as_a_mirror(root, streaming=False) -> Held:
    return held(load_referring_dataset("hub", name=prepared_folder(root), streaming=streaming), by_ref_id(REFERENCES))


FROM_FILES = [
    refer,
    refer_from_the_cache,
    refer_with_names_of_2017,
    refer_umd,
    refer_google,
    refer_refclef,
    grefcoco,
]
FROM_PARQUET = [joined, benchmark, questions, cleaned, prepared, prepared_as_a_mirror]
SOURCES = [pytest.param((source, {}), id=source.__name__) for source in FROM_FILES] + [
    pytest.param((source, {"streaming": streaming}), id=source.__name__ + "-streaming" * streaming)
    for source in FROM_PARQUET
    for streaming in (False, True)
]


@pytest.fixture(scope="module", params=SOURCES)
def source(request, tmp_path_factory) -> Held:
    read, options = request.param
    return read(tmp_path_factory.mktemp("source"), **options)


def test_every_reference_is_there_once_under_its_split(source):
    assert {split: sorted(rows) for split, rows in source.rows.items()} == {
        split: sorted(references) for split, references in source.references.items()
    }


def test_every_mask_is_the_union_of_its_parts_pixel_for_pixel(source):
    for row, reference in source.pairs():
        mask = decode_mask(row["mask"])
        assert (mask.shape, mask.dtype) == ((reference.image.height, reference.image.width), bool)
        np.testing.assert_array_equal(mask, reference.mask, err_msg=f"reference {reference.ref_id}")


def test_every_sentence_is_in_its_place(source):
    for row, reference in source.pairs():
        sentences = reference.sentences
        assert [sentence["sent"] for sentence in row["sentences"]] == [sentence["sent"] for sentence in sentences]
        assert [sentence["category"] for sentence in row["sentences"]] == [None] * len(sentences)
        for name in {"raw", "sent_id"} - source.loses:
            assert [sentence[name] for sentence in row["sentences"]] == [sentence[name] for sentence in sentences]


def test_no_two_sentences_of_a_split_have_one_number(source):
    for rows in source.rows.values():
        numbers = [sentence["sent_id"] for row in rows.values() for sentence in row["sentences"]]
        assert len(numbers) == len(set(numbers))


def test_every_box_and_number_is_the_files_own(source):
    for row, reference in source.pairs():
        categories = {thing.category_id for thing in reference.objects}
        expected = {
            "bbox": reference.box,
            "ref_id": reference.ref_id,
            "ann_id": [thing.ann_id for thing in reference.objects],
            "category_id": categories.pop() if len(categories) == 1 else None,
            "image_id": reference.image.image_id,
            "height": reference.image.height,
            "width": reference.image.width,
        }
        kept = expected.keys() - source.loses
        assert {name: row[name] for name in kept} == {name: expected[name] for name in kept}


def test_every_image_has_its_own_pixels(source):
    for row, reference in source.pairs():
        assert row["image"].mode == ("RGB" if reference.image.pixels.ndim == 3 else "L")
        np.testing.assert_array_equal(np.asarray(row["image"]), reference.image.pixels)


def test_every_table_has_the_schema_and_nothing_else(source):
    text, integer, short = Value("string"), Value("int64"), Value("int32")
    expected = {
        "image": datasets.Image(),
        "image_id": integer,
        "ref_id": integer,
        "ann_id": List(integer),
        "category_id": integer,
        "file_name": text,
        "height": short,
        "width": short,
        "bbox": List(Value("float32")),
        "sentences": List({"sent_id": integer, "raw": text, "sent": text, "category": text}),
        "mask": {"size": List(short), "counts": text},
    }
    assert all(dict(features) == expected and list(features) == list(expected) for features in source.features)
    assert dict(REFERRING_FEATURES) == expected
    assert all(list(row) == list(expected) for rows in source.rows.values() for row in rows.values())


def test_the_built_set_has_every_kind_of_mask_in_every_split():
    """The built set is not one that any reader would pass."""
    for references in files.by_split(REFERENCES).values():
        objects = [(reference.objects[0], reference.image) for reference in references]
        polygons = [(thing.segmentation, image) for thing, image in objects if isinstance(thing.segmentation, list)]
        numbers = [number for segmentation, _ in polygons for part in segmentation for number in part]
        assert {len(segmentation) for segmentation, _ in polygons} == {1, 3}
        assert any(number < 0 for number in numbers) and any(number % 0.5 for number in numbers)
        added = [
            sum(files.coco_mask.decode(files.run_lengths(part, pic.height, pic.width)).astype(int) for part in parts)
            for parts, pic in polygons
        ]
        assert any(mask.max() > 1 for mask in added)  # parts that overlap
        counts = [thing.segmentation["counts"] for thing, _ in objects if isinstance(thing.segmentation, dict)]
        assert {type(runs) for runs in counts} == {str, list}
        assert {thing.iscrowd for thing, _ in objects} == {0, 1}
        assert all(0 < reference.mask.mean() < 1 for reference in references)
        assert {len(reference.sentences) for reference in references} == {1, 2, 3, 4}
