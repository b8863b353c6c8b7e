"""The reader of the official layout, on files of exactly that layout."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from m3dec.processing.referring_data import REFERRING_FEATURES, decode_mask, load_referring_dataset
from m3dec.processing.referring_data.refer_files import UnsafePickleError, union_of_parts
from m3dec.processing.referring_data.schema import encode_mask

HEIGHT, WIDTH = 30, 41
LEFT_BOX = [3, 4, 20, 4, 20, 20, 3, 20]
MIDDLE_BOX = [10, 10, 33, 10, 33, 27, 10, 27]  # overlaps with the left one
SPOT = np.zeros((HEIGHT, WIDTH), dtype=bool)
SPOT[5:9, 30:38] = True


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths, counted one pixel at a time down the columns."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


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
    union = union_of_parts({"id": 1, "segmentation": parts}, HEIGHT, WIDTH)
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


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(official, tmp_path):
    trace = tmp_path / "trace"
    write(official / "tiny", refs=[reference(1, 11, "train", "a man"), Hostile(trace)])
    with pytest.raises(UnsafePickleError, match="open"):
        load(official)
    assert not trace.exists()


def test_a_pickle_that_asks_for_an_outside_object_is_refused(official):
    (official / "tiny" / "refs(unc).p").write_bytes(b"\x80\x02U\x04fileQ.")
    with pytest.raises(UnsafePickleError, match="outside object 'file'"):
        load(official)


def test_what_is_read_is_what_the_files_say_now(official):
    before = load(official)["train"][0]
    change(official / "tiny", annotations={"segmentation": [LEFT_BOX]})
    after = load(official)["train"][0]
    assert decode_mask(before["mask"]).sum() > decode_mask(after["mask"]).sum() == 16 * 17


def test_pictures_may_lie_elsewhere(official, tmp_path):
    (official / "tiny" / "images").rename(tmp_path / "train2014")
    assert load(official, image_root=tmp_path / "train2014")["train"][0]["image"].size == (WIDTH, HEIGHT)
    with pytest.raises(FileNotFoundError, match="image_root"):
        load(official)


def test_a_missing_picture_is_named(official):
    (official / "tiny" / "images" / "COCO_train2014_000000000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 pictures .*COCO_train2014_000000000007\.jpg"):
        load(official)


def test_a_wrong_split_by_names_the_ones_there_are(official):
    with pytest.raises(FileNotFoundError, match=r"refs\(umd\)\.p.*split_by=\['unc'\]"):
        load(official, split_by="umd")


def test_missing_instances_are_named(official):
    (official / "tiny" / "instances.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"instances\.json"):
        load(official)


def test_an_unknown_source_names_the_known_one():
    with pytest.raises(ValueError, match=r"'refer'.*'hub'"):
        load_referring_dataset("hub", root=".", dataset="tiny", split_by="unc")


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
