"""The reader of the official layout, on files of exactly that layout."""

import json
import logging
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from referring_files import runs_of

from m3dec.processing.referring_data import (
    REFERRING_FEATURES,
    ReferringDataError,
    decode_mask,
    load_referring_dataset,
)
from m3dec.processing.referring_data.readers import refer_files
from m3dec.processing.referring_data.readers.images import MissingImagesError
from m3dec.processing.referring_data.readers.published_counts import PUBLISHED_COUNTS
from m3dec.processing.referring_data.readers.segmentations import union_of_segmentations
from m3dec.processing.referring_data.schema import encode_mask

HEIGHT, WIDTH = 30, 41
LEFT_BOX = [3, 4, 20, 4, 20, 20, 3, 20]
MIDDLE_BOX = [10, 10, 33, 10, 33, 27, 10, 27]  # overlaps with the left one
SPOT = np.zeros((HEIGHT, WIDTH), dtype=bool)
SPOT[5:9, 30:38] = True


def reference(ref_id, ann_id, split, *texts):
    sentences = [
        {"raw": text, "sent": text.lower(), "sent_id": 10 * ref_id + i, "tokens": text.lower().split()}
        for i, text in enumerate(texts)
    ]
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "category_id": 1,
        "image_id": 7,
        "file_name": f"COCO_train2014_000000000007_{ann_id}.jpg",
        "split": split,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def annotation(ann_id, segmentation, bbox):
    return {"id": ann_id, "image_id": 7, "category_id": 1, "iscrowd": 0, "bbox": bbox, "segmentation": segmentation}


@pytest.fixture
def official(tmp_path):
    """root/tiny with three references: two polygons, uncompressed and compressed runs."""
    folder = tmp_path / "tiny"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT), "gray").save(folder / "images" / "COCO_train2014_000000000007.jpg")
    refs = [
        reference(1, 11, "train", "Left man.", "man at left"),
        reference(2, 12, "val", "the spot"),
        reference(3, 13, "val", "spot again"),
    ]
    instances = {
        "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            annotation(11, [LEFT_BOX, MIDDLE_BOX], [3, 4, 30, 23]),
            annotation(12, {"size": [HEIGHT, WIDTH], "counts": runs_of(SPOT)}, [30, 5, 8, 4]),
            annotation(13, encode_mask(SPOT), [30, 5, 8, 4]),
        ],
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
    }
    write(folder, refs, instances)
    return tmp_path


def write(folder, refs=None, instances=None):
    if refs is not None:
        (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    if instances is not None:
        (folder / "instances.json").write_text(json.dumps(instances))


def change(folder, **changes):
    """Change the first image's or annotation's entry of instances.json."""
    instances = json.loads((folder / "instances.json").read_text())
    for name, entry in changes.items():
        instances[name][0].update(entry)
    write(folder, instances=instances)


def load(root, split_by="unc", **options):
    return load_referring_dataset("refer", root=root, dataset="tiny", split_by=split_by, **options)


def test_a_reference_is_one_row_in_the_schema(official):
    splits = load(official)
    assert {name: len(table) for name, table in splits.items()} == {"train": 1, "val": 2}
    assert all(table.features == REFERRING_FEATURES for table in splits.values())
    row = splits["train"][0]
    assert row["image"].size == (WIDTH, HEIGHT)
    assert row["file_name"] == "COCO_train2014_000000000007.jpg"  # not the ref's, which is no file
    assert (row["ref_id"], row["ann_id"], row["image_id"], row["category_id"]) == (1, [11], 7, 1)
    assert (row["height"], row["width"], row["bbox"]) == (HEIGHT, WIDTH, [3.0, 4.0, 33.0, 27.0])
    assert row["sentences"] == [
        {"sent_id": 10, "raw": "Left man.", "sent": "left man.", "category": None},
        {"sent_id": 11, "raw": "man at left", "sent": "man at left", "category": None},
    ]


def test_overlapping_polygons_are_united_and_both_kinds_of_run_lengths_are_read(official):
    splits = load(official)
    boxes = np.zeros((HEIGHT, WIDTH), dtype=bool)
    boxes[4:20, 3:20] = True
    boxes[10:27, 10:33] = True
    np.testing.assert_array_equal(decode_mask(splits["train"][0]["mask"]), boxes)
    for row in splits["val"]:
        np.testing.assert_array_equal(decode_mask(row["mask"]), SPOT)


coordinates = st.floats(0, 40).map(lambda x: round(x, 2))
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=7).map(
    lambda p: [c for xy in p for c in xy]
)


@given(st.lists(polygons, min_size=1, max_size=4))
def test_a_union_is_every_pixel_of_any_polygon(parts):
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for part in parts:
        expected |= coco_mask.decode(coco_mask.frPyObjects([part], HEIGHT, WIDTH))[:, :, 0] == 1
    union = union_of_segmentations([parts], HEIGHT, WIDTH, "annotation 1")
    np.testing.assert_array_equal(decode_mask(union), expected)


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_mask_survives_packing(height, width, rng):
    mask = np.array([[rng.random() < 0.5 for _ in range(width)] for _ in range(height)])
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


def test_a_python_2_pickle_with_bytes_beyond_ascii_is_read(official):
    path = official / "tiny" / "refs(unc).p"
    unicode_text, python_2_text = b"X\x0b\x00\x00\x00man at left", b"U\x0bcaf\xe9 street"
    path.write_bytes(path.read_bytes().replace(unicode_text, python_2_text))
    assert load(official)["train"][0]["sentences"][1]["raw"] == "café street"


def test_what_is_read_is_what_the_files_say_now(official):
    before = load(official)["train"][0]
    change(official / "tiny", annotations={"segmentation": [LEFT_BOX]})
    after = load(official)["train"][0]
    assert decode_mask(before["mask"]).sum() > decode_mask(after["mask"]).sum() == 16 * 17


def test_images_may_lie_elsewhere(official, tmp_path):
    (official / "tiny" / "images").rename(tmp_path / "train2014")
    assert load(official, image_root=tmp_path / "train2014")["train"][0]["image"].size == (WIDTH, HEIGHT)
    with pytest.raises(FileNotFoundError, match="image_root"):
        load(official)


def test_a_missing_image_is_named(official):
    (official / "tiny" / "images" / "COCO_train2014_000000000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images .*COCO_train2014_000000000007\.jpg"):
        load(official)


def test_a_wrong_split_by_names_the_ones_there_are(official):
    with pytest.raises(FileNotFoundError, match=r"refs\(umd\)\.p.*split_by=\['unc'\]"):
        load(official, split_by="umd")


def test_missing_instances_are_named(official):
    (official / "tiny" / "instances.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"instances\.json"):
        load(official)


def test_an_unknown_source_names_the_known_one():
    with pytest.raises(ValueError, match=r"'refer'.*'refcoco'"):
        load_referring_dataset("refcoco", root=".", dataset="tiny", split_by="unc")


@pytest.mark.parametrize("key", ["ann_id", "image_id"])
def test_a_reference_to_nothing_is_an_error(official, key):
    refs = [reference(1, 11, "train", "a man")]
    refs[0][key] = 99
    write(official / "tiny", refs=refs)
    with pytest.raises(ValueError, match=f"{key}.*99 of reference 1"):
        load(official)


def test_a_mask_of_another_size_than_its_image_is_an_error(official):
    change(official / "tiny", images={"height": WIDTH, "width": HEIGHT})
    with pytest.raises(ValueError, match=r"annotation 12 is \[30, 41\] and its image \[41, 30\]"):
        load(official)


@pytest.mark.parametrize("segmentation", [[], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]]])
def test_a_polygon_of_fewer_than_three_points_is_an_error_not_a_box(official, segmentation):
    change(official / "tiny", annotations={"segmentation": segmentation})
    with pytest.raises(ValueError, match="annotation 11"):
        load(official)


def test_a_reference_that_covers_no_pixel_is_warned_of(official, caplog):
    load(official)
    assert "covers no pixel" not in caplog.text
    change(official / "tiny", annotations={"segmentation": [[0.1, 0.1, 0.4, 0.1, 0.4, 0.3]]})
    load(official)
    assert "Reference 1 of" in caplog.text and "covers no pixel" in caplog.text


# Images that are not there, or are called otherwise.
def add_images(folder, *names):
    """References 21, 22, … of split val, each to an image of its own."""
    refs, instances = pickle.loads((folder / "refs(unc).p").read_bytes()), read_instances_file(folder)
    for number, name in enumerate(names, start=1):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / name)
        refs.append({**reference(20 + number, 200 + number, "val", f"thing {number}"), "image_id": number})
        instances["images"].append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        instances["annotations"].append({**annotation(200 + number, [LEFT_BOX], [3, 4, 17, 16]), "image_id": number})
    write(folder, refs, instances)


def read_instances_file(folder):
    return json.loads((folder / "instances.json").read_text())


def ref_ids(splits):
    return {split: table["ref_id"][:] for split, table in splits.items()}


def test_what_refers_to_missing_images_is_left_out_on_request_and_listed(official, caplog):
    folder = official / "tiny"
    names = ["a.jpg", "b.jpg", "c.jpg"]
    add_images(folder, *names)
    for name in names[:2]:
        (folder / "images" / name).unlink()
    with pytest.raises(MissingImagesError, match=r"2 of 4 images .*a\.jpg, b\.jpg.*on_missing='skip'") as error:
        load(official)
    assert error.value.names == names[:2]
    with caplog.at_level(logging.WARNING):
        splits = load(official, on_missing="skip")
    assert ref_ids(splits) == {"train": [1], "val": [2, 3, 23]}
    assert [row["image"].size for row in splits["val"]] == [(WIDTH, HEIGHT)] * 3
    assert "2 of 4 images are not in" in caplog.text and "a.jpg, b.jpg" in caplog.text


def test_images_left_out_do_not_make_the_others_shared(official, caplog):
    folder = official / "tiny"
    add_images(folder, "a.jpg", "b.jpg")
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    write(folder, [ref for ref in refs if ref["split"] == "train" or ref["image_id"] != 7])
    (folder / "images" / "a.jpg").unlink()
    assert ref_ids(load(official, on_missing="skip")) == {"train": [1], "val": [22]}
    assert "are in train as well" not in caplog.text


def test_an_unknown_on_missing_names_the_known_ones(official):
    with pytest.raises(ValueError, match=r"'error' or 'skip'.*'ignore'"):
        load(official, on_missing="ignore")


@pytest.mark.parametrize("named, there", [(2014, 2017), (2017, 2014)])
def test_images_of_2014_and_2017_serve_alike(official, named, there):
    names = {2014: "COCO_train2014_000000000007.jpg", 2017: "000000000007.jpg"}
    images = official / "tiny" / "images"
    (images / names[2014]).rename(images / names[there])
    change(official / "tiny", images={"file_name": names[named]})
    row = load(official)["train"][0]
    assert row["image"].size == (WIDTH, HEIGHT)
    assert row["file_name"] == names[named]


# What is particular to one of the data sets.
@pytest.mark.parametrize("dataset, left", [("refclef", [21]), ("tiny", [21, 22, 23, 24])])
def test_the_three_images_that_the_field_skips_are_left_out_of_refclef_alone(official, dataset, left):
    folder = official / "tiny"
    add_images(folder, "1.jpg", "19579.jpg", "17975.jpg", "19575.jpg")
    refs, instances = pickle.loads((folder / "refs(unc).p").read_bytes()), read_instances_file(folder)
    for old, new in {2: 19579, 3: 17975, 4: 19575}.items():
        for entry in [*refs, *instances["annotations"]]:
            entry["image_id"] = new if entry["image_id"] == old else entry["image_id"]
        instances["images"][old]["id"] = new
    write(folder, [ref for ref in refs if ref["ref_id"] > 20], instances)
    if dataset == "refclef":
        for name in ("19579.jpg", "17975.jpg", "19575.jpg"):  # nor are they missed
            (folder / "images" / name).unlink()
    folder.rename(official / dataset)
    splits = load_referring_dataset("refer", root=official, dataset=dataset, split_by="unc")
    assert ref_ids(splits) == {"val": left}


def test_counts_that_are_not_the_published_ones_are_said_plainly(official, caplog):
    (official / "tiny").rename(official / "refcoco")
    load_referring_dataset("refer", root=official, dataset="refcoco", split_by="unc")
    for sentence in [
        "refcoco (unc) train was published with 42,404 references, but here are 1.",
        "refcoco (unc) train was published with 120,624 sentences, but here are 2.",
        "refcoco (unc) val was published with 3,811 references, but here are 2.",
        "refcoco (unc) val was published with 10,834 sentences, but here are 2.",
        "refcoco (unc) was published with a split 'testA', which is not here.",
        "refcoco (unc) was published with a split 'testB', which is not here.",
    ]:
        assert caplog.messages.count(sentence) == 1
    assert {record.levelname for record in caplog.records} == {"WARNING"}


@pytest.mark.parametrize(
    "published, differences",
    [
        ({"train": (1, 2), "val": (2, 2)}, 0),
        ({"train": (1, None), "val": (2, None)}, 0),  # sentences were not counted
        ({"train": (1, 3), "val": (2, 2)}, 1),
        ({"train": (2, 2), "val": (2, 2)}, 1),
        ({"train": (1, 2), "val": (2, 2), "test": (1, 1)}, 1),
    ],
)
def test_only_differences_from_the_published_counts_are_said(official, caplog, monkeypatch, published, differences):
    monkeypatch.setitem(PUBLISHED_COUNTS, ("tiny", "unc"), published)
    load(official)
    assert sum("was published with" in message for message in caplog.messages) == differences


def test_of_a_set_that_nobody_published_no_counts_are_expected(official, caplog):
    load(official)
    assert "published" not in caplog.text


def test_images_of_val_that_are_in_train_as_well_are_warned_of(official, caplog):
    load(official)  # image 7 in both, as images are in RefCOCOg's splits by Google
    assert "1 images of tiny (unc) val are in train as well" in caplog.text
    caplog.clear()
    refs = pickle.loads((official / "tiny" / "refs(unc).p").read_bytes())
    write(official / "tiny", refs[1:])
    load(official)
    assert not caplog.records


# The cache.
@pytest.fixture
def files_read(monkeypatch):
    """The names of the files that were read for their references, one entry each time."""
    names, read = [], refer_files.read_refs
    monkeypatch.setattr(refer_files, "read_refs", lambda path: names.append(path.name) or read(path))
    return names


def test_files_are_read_once_and_a_second_load_is_from_the_cache(official, files_read):
    first, second = load(official), load(official)
    assert files_read == ["refs(unc).p"]
    assert [first[split][:] for split in first] == [second[split][:] for split in second]


@pytest.mark.parametrize("name", ["refs(unc).p", "instances.json"])
def test_a_changed_file_is_read_again_even_if_it_has_the_same_size_and_time(official, files_read, name):
    path = official / "tiny" / name
    load(official)
    before, data = path.stat(), path.read_bytes()
    changed = data.replace(b"man at left", b"cat at left").replace(b'"category_id": 1', b'"category_id": 5')
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert changed != data and (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    row = load(official)["train"][0]
    assert len(files_read) == 2
    found = (row["sentences"][1]["raw"], row["category_id"])
    assert found == (("cat at left", 1) if name == "refs(unc).p" else ("man at left", 5))


def test_images_are_looked_for_again_at_every_load(official):
    load(official)
    (official / "tiny" / "images" / "COCO_train2014_000000000007.jpg").unlink()
    with pytest.raises(MissingImagesError):
        load(official)


# Files that are damaged, or contradict each other.
def test_an_object_in_another_image_than_its_reference_is_an_error(official):
    add_images(official / "tiny", "a.jpg")
    change(official / "tiny", annotations={"image_id": 1})
    with pytest.raises(ReferringDataError, match="reference 1 is in 7 and its annotation 11 in 1"):
        load(official)


def entry_of(kind, **changes):
    def damage(refs, instances):
        (refs if kind == "refs" else instances[kind])[0].update(changes)

    return damage


def without(kind, name):
    def damage(refs, instances):
        del (refs if kind == "refs" else instances[kind])[0][name]

    return damage


def sentence(**changes):
    def damage(refs, instances):
        refs[0]["sentences"][0].update(changes)

    return damage


def replaced(kind, value):
    def damage(refs, instances):
        instances[kind] = value

    return damage


DAMAGES = {
    # refs(unc).p
    "no entries": ("refs", lambda refs, instances: refs.clear()),
    "a text among the references": ("refs", lambda refs, instances: refs.append("a")),
    "nothing among the references": ("refs", lambda refs, instances: refs.append(None)),
    "a reference without sentences": ("refs", without("refs", "sentences")),
    "a reference without a split": ("refs", without("refs", "split")),
    "a reference without a number": ("refs", without("refs", "ref_id")),
    "a reference without an object": ("refs", without("refs", "ann_id")),
    "a text as a number": ("refs", entry_of("refs", ref_id="1")),
    "a number of 64 bits": ("refs", entry_of("refs", ref_id=2**63)),
    "a text as an object": ("refs", entry_of("refs", ann_id="11")),
    "a list of texts as objects": ("refs", entry_of("refs", ann_id=["11"])),
    "a list of lists as objects": ("refs", entry_of("refs", ann_id=[[11]])),
    "a number as a split": ("refs", entry_of("refs", split=1)),
    "a split that is a path": ("refs", entry_of("refs", split="../../train")),
    "sentences that are a text": ("refs", entry_of("refs", sentences="a man")),
    "a sentence that is a text": ("refs", entry_of("refs", sentences=["a man"])),
    "a sentence without a number": ("refs", entry_of("refs", sentences=[{"raw": "a man", "sent": "a man"}])),
    "a sentence without words": ("refs", entry_of("refs", sentences=[{"sent_id": 1}])),
    "a sentence whose number is a text": ("refs", sentence(sent_id="first")),
    "a sentence that is a number": ("refs", sentence(sent=5)),
    "a raw sentence that is a list": ("refs", sentence(raw=["a", "man"])),
    "an absurdly long sentence": ("refs", sentence(sent="a man " * 100_000)),
    "an absurdly long raw sentence": ("refs", sentence(raw="a man " * 100_000)),
    "half a letter in a sentence": ("refs", sentence(sent="\ud800")),
    # instances.json
    "no images": ("instances", lambda refs, instances: instances.pop("images")),
    "no annotations": ("instances", lambda refs, instances: instances.pop("annotations")),
    "images by number": ("instances", replaced("images", {"7": {}})),
    "annotations that are a text": ("instances", replaced("annotations", "none")),
    "nothing among the images": ("instances", replaced("images", [None])),
    "a list among the annotations": ("instances", replaced("annotations", [[]])),
    "an image without a name": ("instances", without("images", "file_name")),
    "an image without a height": ("instances", without("images", "height")),
    "an image whose number is a list": ("instances", entry_of("images", id=[7])),
    "an image whose name is a number": ("instances", entry_of("images", file_name=7)),
    "an image whose name is a list": ("instances", entry_of("images", file_name=["a.jpg"])),
    "an image of no height": ("instances", entry_of("images", height=0)),
    "an image of a height below zero": ("instances", entry_of("images", height=-HEIGHT)),
    "an image of a broken height": ("instances", entry_of("images", height=HEIGHT + 0.5)),
    "an image whose height is a text": ("instances", entry_of("images", height=str(HEIGHT))),
    "a huge image": ("instances", entry_of("images", height=10**6, width=10**6)),
    "an image of endless height": ("instances", entry_of("images", height=float("inf"))),
    "an annotation without a mask": ("instances", without("annotations", "segmentation")),
    "an annotation without a category": ("instances", without("annotations", "category_id")),
    "an annotation whose category is a text": ("instances", entry_of("annotations", category_id="person")),
    "an annotation whose number is an object": ("instances", entry_of("annotations", id={})),
    "a mask that is nothing": ("instances", entry_of("annotations", segmentation=None)),
    "a mask that is a text": ("instances", entry_of("annotations", segmentation="all of it")),
    "a mask with a corner that is no number": (
        "instances",
        entry_of("annotations", segmentation=[[float("nan"), *LEFT_BOX[1:]]]),
    ),
    "run lengths below zero": (
        "instances",
        entry_of("annotations", segmentation={"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]}),
    ),
    "run lengths that end too early": (
        "instances",
        entry_of("annotations", segmentation={"size": [HEIGHT, WIDTH], "counts": [10, 20]}),
    ),
    "a box without a number": ("instances", entry_of("annotations", bbox=[3, 4, float("nan"), 23])),
    "an endless box": ("instances", entry_of("annotations", bbox=[3, 4, float("inf"), 23])),
    "a box of a number of 400 digits": ("instances", entry_of("annotations", bbox=[3, 4, 10**400, 23])),
    "a box of three numbers": ("instances", entry_of("annotations", bbox=[3, 4, 30])),
    "a box of texts": ("instances", entry_of("annotations", bbox=["3", "4", "30", "23"])),
    "a box that is nothing": ("instances", entry_of("annotations", bbox=None)),
}


@pytest.mark.parametrize("damaged, damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_an_error_that_names_the_file(official, damaged, damage):
    folder = official / "tiny"
    refs, instances = pickle.loads((folder / "refs(unc).p").read_bytes()), read_instances_file(folder)
    damage(refs, instances)
    write(folder, refs, instances)
    with pytest.raises(ReferringDataError) as error:
        load(official)
    assert str(folder / {"refs": "refs(unc).p", "instances": "instances.json"}[damaged]) in str(error.value)
    assert len(str(error.value)) < 1_000  # whatever the entry was


DAMAGED_FILES = {
    "half of it": lambda data: data[: len(data) // 2],
    "all but a byte": lambda data: data[:-1],
    "nothing": lambda data: b"",
    "a page": lambda data: b"<html>404</html>",
    "other bytes before": lambda data: b"\xff\xfe" + data,
    "many lists": lambda data: b"[" * 100_000,
    "an empty object": lambda data: b"{}",
    "null": lambda data: b"null",
    "a pickled dict": lambda data: pickle.dumps({"refs": []}, protocol=2),
    "a pickled text": lambda data: pickle.dumps("references", protocol=2),
}


@pytest.mark.parametrize("name", ["refs(unc).p", "instances.json"])
@pytest.mark.parametrize("damage", DAMAGED_FILES.values(), ids=DAMAGED_FILES)
def test_a_damaged_file_is_an_error_that_names_it(official, name, damage):
    path = official / "tiny" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ReferringDataError) as error:
        load(official)
    assert str(path) in str(error.value)


# gRefCOCO.
def write_grefs(root, *grefs):
    folder = root / "grefcoco"
    (root / "tiny").rename(folder)
    (folder / "grefs(unc).json").write_text(json.dumps(grefs))


def test_several_objects_are_united_and_none_is_an_empty_mask_without_a_box(official):
    several = reference(1, [11, 12], "val", "both")
    none = reference(2, [-1], "val", "the unicorn")
    write_grefs(official, several, none)
    both, nothing = load_referring_dataset("grefcoco", root=official)["val"]
    expected = SPOT.copy()
    expected[4:20, 3:20] = True
    expected[10:27, 10:33] = True
    np.testing.assert_array_equal(decode_mask(both["mask"]), expected)
    assert (both["ann_id"], both["bbox"], both["category_id"]) == ([11, 12], [3.0, 4.0, 38.0, 27.0], 1)
    assert not decode_mask(nothing["mask"]).any() and decode_mask(nothing["mask"]).shape == (HEIGHT, WIDTH)
    assert (nothing["ann_id"], nothing["bbox"], nothing["category_id"]) == ([], [], None)


@pytest.mark.parametrize("data", ["", "[", "{}", "[]", '["a"]', '[{"ref_id": 1}]'])
def test_grefs_that_are_no_list_of_references_are_an_error_that_names_the_file(official, data):
    write_grefs(official)
    path = official / "grefcoco" / "grefs(unc).json"
    path.write_text(data)
    with pytest.raises(ReferringDataError) as error:
        load_referring_dataset("grefcoco", root=official)
    assert str(path) in str(error.value)
