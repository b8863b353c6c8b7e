"""Several sets in one training: images told apart by their set, photographs found under any name."""

import io
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

from m3dec.processing.referring_data import REFERRING_FEATURES, ReferringDataError, mixture
from m3dec.processing.referring_data.mixture import coco_number, file_lengths, numbered_apart, without_held_out
from m3dec.processing.referring_data.sampling import ReferringExamples, references_by_image
from m3dec.processing.referring_data.schema import encode_mask


def photograph(color: int) -> bytes:
    """The file of an image of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", (11, 7), (color, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def table(*images: tuple[int, str, int], folder=None) -> datasets.Dataset:
    """One reference for each (image_id, file_name, color); inside the rows, or in files of `folder`."""
    rows = []
    for number, (image_id, name, color) in enumerate(images):
        image = {"bytes": photograph(color), "path": None}
        if folder:
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(image["bytes"])
            image = {"bytes": None, "path": str(folder / name)}
        sentences = [{"sent_id": number, "raw": f"thing {color}", "sent": f"thing {color}", "category": None}]
        rows.append(
            {"image": image, "image_id": image_id, "ref_id": number, "ann_id": [], "category_id": 1, "file_name": name}
            | {"height": 7, "width": 11, "bbox": [], "sentences": sentences}
            | {"mask": encode_mask(np.ones((7, 11), bool))}
        )
    return datasets.Dataset.from_list(rows, features=REFERRING_FEATURES)


def colors(dataset: datasets.Dataset) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in dataset["image"]]


def test_images_of_two_sets_with_the_same_numbers_and_names_stay_two():
    first = datasets.DatasetDict(train=table((1, "a.png", 10), (2, "b.png", 20)), val=table((3, "c.png", 30)))
    second = datasets.DatasetDict(train=table((2, "b.png", 40), (1, "a.png", 50), (2, "b.png", 40)))
    sets = numbered_apart([first, second])
    mixed = datasets.concatenate_datasets(without_held_out(sets))
    assert mixed.features == REFERRING_FEATURES and list(mixed.features) == list(REFERRING_FEATURES)
    assert [colors(mixed.select(rows)) for rows in references_by_image(mixed).values()] == [[10], [20], [40, 40], [50]]
    assert len(set(mixed["image_id"][:]) | set(sets[0]["val"]["image_id"][:])) == 5
    groups = ReferringExamples(mixed, expressions_per_image=3, sets=[(2, 1.0), (3, 1.0)])
    assert [example["text"] for example in groups] == [["thing 10"], ["thing 20"], ["thing 40"] * 2, ["thing 50"]]


def test_an_image_keeps_one_number_in_all_splits_of_its_set():
    splits = datasets.DatasetDict(train=table((7, "a.png", 10)), val=table((7, "b.png", 20), (7, "a.png", 10)))
    (numbered,) = numbered_apart([splits])
    (number,), (other, same) = numbered["train"]["image_id"], numbered["val"]["image_id"]
    assert number == same != other


@pytest.mark.parametrize("inside", [True, False])
def test_the_same_photograph_is_found_under_another_name_and_number_by_its_bytes(inside, tmp_path, caplog):
    folders = [None, None] if inside else [tmp_path / "one", tmp_path / "two"]
    first = table((1, "a.png", 10), (2, "b.png", 20), (2, "b.png", 20), (3, "c.png", 30), folder=folders[0])
    second = table((1, "x.png", 20), (2, "a.png", 40), folder=folders[1])
    sets = [datasets.DatasetDict(train=first), datasets.DatasetDict(train=second)]  # nothing is held out
    assert [colors(one) for one in without_held_out(sets)] == [[10, 20, 20, 30], [20, 40]] and not caplog.text
    sets = [datasets.DatasetDict(train=first), datasets.DatasetDict(train=table((5, "y.png", 50)), val=second)]
    assert [colors(one) for one in without_held_out(sets)] == [[10, 30], [50]]
    assert "1 training images with 2 references of set 1 are left out" in caplog.text


def test_a_set_loses_the_photographs_that_it_holds_out_itself_too():
    splits = datasets.DatasetDict(train=table((1, "a.png", 10), (2, "b.png", 20)), test=table((9, "copy.png", 20)))
    assert [colors(one) for one in without_held_out([splits])] == [[10]]


def test_photographs_of_coco_are_found_by_number_whatever_their_bytes_are():
    first = table((9, "COCO_train2014_000000000009.jpg", 10), (8, "COCO_train2014_000000000008.jpg", 20))
    other = datasets.DatasetDict(train=table((1, "z.png", 30)), val=table((1, "000000000009.jpg", 40)))
    assert [colors(one) for one in without_held_out([datasets.DatasetDict(train=first), other])] == [[20], [30]]


def test_a_photograph_of_coco_is_found_under_a_name_that_is_not_cocos():
    coco = datasets.DatasetDict(train=table((9, "000000000009.jpg", 10)), val=table((8, "000000000008.jpg", 20)))
    own = datasets.DatasetDict(train=table((8, "my.png", 20), (9, "000000000005.png", 50)))
    assert [colors(one) for one in without_held_out([coco, own])] == [[10], [50]]


def test_files_are_compared_only_where_a_name_is_not_cocos_and_a_length_is_shared_and_each_once(tmp_path, monkeypatch):
    read = Counter()
    bytes_of = mixture.bytes_of
    monkeypatch.setattr(mixture, "bytes_of", lambda one: (read.update([one["path"]]), bytes_of(one))[1])
    coco = table((9, "000000000009.jpg", 10), folder=tmp_path)
    without_held_out([datasets.DatasetDict(train=coco, val=table((8, "000000000008.jpg", 20), folder=tmp_path))])
    assert not read
    first = table((1, "a.png", 10), (2, "b.png", 20), folder=tmp_path)
    (tmp_path / "b.png").write_bytes(photograph(20) + b" longer")
    val = table((3, "c.png", 30), folder=tmp_path)
    without_held_out([datasets.DatasetDict(train=first, val=val), datasets.DatasetDict(train=first, test=val)])
    assert read == {str(tmp_path / "a.png"): 1, str(tmp_path / "c.png"): 1}


def test_the_lengths_of_files_are_known_without_opening_one(tmp_path):
    inside, outside = table((1, "a.png", 10), (2, "b.png", 20)), table((1, "a.png", 10), folder=tmp_path)
    both = datasets.concatenate_datasets([inside, outside]).select([2, 0, 1])
    assert file_lengths(both) == [len(photograph(color)) for color in (10, 10, 20)]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("COCO_train2014_000000000009.jpg", 9),
        ("000000000009.jpg", 9),
        ("train2017/000000581857.jpg", 581857),
        ("20240101123456.jpg", None),  # a camera's
        ("scenes_train_000001.jpg", None),
        ("img000000000009.jpg", None),
        ("9.jpg", None),
    ],
)
def test_cocos_number_is_read_from_cocos_names_alone(name, number):
    assert coco_number(name) == number


def test_a_set_without_a_training_split_and_one_of_which_nothing_is_left_are_refused():
    one, other = datasets.DatasetDict(train=table((1, "a.png", 10))), datasets.DatasetDict(val=table((1, "b.png", 10)))
    with pytest.raises(ReferringDataError, match="has a split 'train', but one has val only"):
        without_held_out([one, other])
    with pytest.raises(ReferringDataError, match="set 1 of the mixture has none"):
        without_held_out([one, datasets.DatasetDict(train=table((2, "c.png", 30)), **other)])


def test_of_a_hundred_thousand_rows_no_image_is_decoded_and_only_files_of_a_shared_length_are_read(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("an image is decoded")

    read, bytes_of = Counter(), mixture.bytes_of
    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    monkeypatch.setattr(mixture, "bytes_of", lambda one: (read.update("."), bytes_of(one))[1])
    one = table((0, "0.png", 0)).with_format("arrow")[:]
    columns = {name: one[name].to_pylist() * 50_000 for name in one.column_names}
    columns["image_id"] = list(range(50_000))
    columns["file_name"] = [f"{number}.png" for number in range(50_000)]
    columns["image"] = [{"bytes": b"%08d" % number, "path": None} for number in range(50_000)]
    columns["image"][:100] = [{"bytes": b"%09d" % number, "path": None} for number in range(100)]
    big = datasets.Dataset.from_dict(columns, features=REFERRING_FEATURES)
    train, val = big.select(range(100, 50_000)), big.select(range(100))
    sets = numbered_apart([datasets.DatasetDict(train=big), datasets.DatasetDict(train=train, val=val)])
    mixed = without_held_out(sets)
    assert [len(one) for one in mixed] == [49_900, 49_900] and read.total() == 200
    examples = ReferringExamples(datasets.concatenate_datasets(mixed), sets=[(49_900, 1.0), (49_900, 0.25)])
    assert len(examples) == 49_900 + 12_475
