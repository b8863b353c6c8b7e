"""A user's own data: what is read, and what is told about every line that cannot be."""

import csv
import io
import json
import logging
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from referring_files import runs_of

from m3dec.processing.referring_data import ReferringDataError, decode_mask, load_referring_dataset
from m3dec.processing.referring_data.generated.photographs import InstanceFile
from m3dec.processing.referring_data.readers.coco_files import find_faults, read_coco_files

HEIGHT, WIDTH = 30, 41
SQUARE = [4, 5, 13, 5, 13, 13, 4, 13]
BENCH = [9, 9, 29, 9, 29, 18, 9, 18]  # overlaps with the square
BENCH_BOX = [9, 9, 20, 9]
KINDS = ["csv", "json", "jsonl"]
PAGE = Path(__file__).parent.parent / "docs" / "data.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def annotation(number, segmentation=(SQUARE,), image_id=1, **changes):
    entry = {"id": number, "image_id": image_id, "category_id": 3, "bbox": [4, 5, 9, 8], "iscrowd": 0}
    return entry | {"segmentation": segmentation} | changes


def run_lengths(mask) -> dict:
    return {"size": list(mask.shape), "counts": runs_of(mask)}


def rectangle():
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[6:17, 8:31] = True
    return mask


def save_turned(path, width, height):
    """An image that lies on its side in its file, and is shown turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (width, height)).save(path, exif=exif)


@pytest.fixture
def my(tmp_path):
    """my/images with a.jpg and b.jpg, my/instances.json with three annotations of a.jpg and one of b.jpg."""
    return draw(tmp_path / "my")


def draw(my):
    (my / "images").mkdir(parents=True)
    (my / "masks").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(my / "images" / name)
    Image.fromarray(rectangle()).save(my / "masks" / "rectangle.png")
    a_crowd = annotation(13, run_lengths(rectangle()), iscrowd=1, bbox=[8, 6, 23, 11])
    write_instances(my, [annotation(11), annotation(12, [BENCH], bbox=BENCH_BOX), a_crowd])
    return my


def write_instances(my, annotations, images=()):
    images = [
        {"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH},
        {"id": 2, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH},
        *images,
    ]
    annotations = [*annotations, annotation(21, image_id=2)]
    (my / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def entry(number=11, text="the ball", image="a.jpg", **more):
    return {"image": image, "expression": text, "annotation_id": number} | more


def write(path, entries):
    """Entries as a list of the kind that the path's suffix says."""
    if path.suffix == ".json":
        path.write_text(json.dumps(entries, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in entries))
    else:
        names = list(dict.fromkeys(name for one in entries for name in one))
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(names)
            for one in entries:
                values = [one.get(name, "") for name in names]
                table.writerow([" ".join(map(str, v)) if isinstance(v, list) else v for v in values])


def paths(my, name="expressions.jsonl"):
    return {"expressions": my / name, "image_root": my / "images", "instances": my / "instances.json"}


def read(my, entries, name="expressions.jsonl", **options):
    write(my / name, entries)
    return load_referring_dataset("coco", **paths(my, name) | options)


def faults_in(my, text, name="expressions.jsonl", **options):
    """[(line, message)] of a list that is `text`."""
    (my / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return [tuple(fault) for fault in find_faults(**paths(my, name) | options)]


def rows_of(splits):
    return {name: table.remove_columns("image").to_list() for name, table in splits.items()}


# What is read


def test_an_object_of_two_entries_is_one_reference_with_two_sentences(my):
    splits = read(my, [entry(11, "The Ball", category="short"), entry(12, "the bench"), entry(11, "it is round")])
    assert [row["ann_id"] for row in splits["train"]] == [[11], [12]]
    row = splits["train"][0]
    assert row["image"].size == (WIDTH, HEIGHT)
    assert (row["image_id"], row["file_name"], row["height"], row["width"]) == (1, "a.jpg", HEIGHT, WIDTH)
    assert (row["category_id"], row["bbox"]) == (3, [4.0, 5.0, 13.0, 13.0])
    assert row["sentences"] == [
        {"sent_id": 0, "raw": "The Ball", "sent": "the ball", "category": "short"},
        {"sent_id": 2, "raw": "it is round", "sent": "it is round", "category": None},
    ]


def test_an_object_in_two_splits_is_two_references_and_the_shared_image_a_warning(my, caplog):
    splits = read(my, [entry(), entry(split="val"), entry(21, image="b.jpg", split="val")])
    assert {name: [row["ann_id"] for row in table] for name, table in splits.items()} == {
        "train": [[11]],
        "val": [[11], [21]],
    }
    assert "1 images of" in caplog.text and "val are in train as well" in caplog.text


def test_one_expression_of_two_objects_of_an_image_is_warned_of_with_its_lines(my, caplog):
    same = [entry(11, "a thing"), entry(12, "the bench"), entry(12, "A thing"), entry(11, "the ball")]
    read(my, [*same, entry(11, "a thing"), entry(21, "a thing", image="b.jpg")])
    assert "1 expressions of" in caplog.text and ": lines 1 and 3. " in caplog.text
    caplog.clear()
    read(my, [entry(11, "the ball"), entry(11, "the ball"), entry(21, "the ball", image="b.jpg")])
    assert caplog.text == ""


@pytest.mark.parametrize("kind", KINDS)
def test_minus_one_means_nothing_and_an_image_needs_no_record_in_the_instances(my, kind):
    Image.new("RGB", (7, 5)).save(my / "images" / "new.jpg")
    Image.new("RGB", (7, 5)).save(my / "images" / "other.jpg")
    entries = [entry(-1, "a zebra", "new.jpg"), entry(-1, "a zebra"), entry(-1, "a gnu"), entry(-1, "x", "other.jpg")]
    nothing, zebra, other = read(my, entries, f"expressions.{kind}")["train"]
    assert (nothing["ann_id"], nothing["bbox"], nothing["category_id"]) == ([], [], None)
    assert (nothing["height"], nothing["width"]) == (5, 7)
    assert decode_mask(nothing["mask"]).shape == (5, 7) and not decode_mask(nothing["mask"]).any()
    assert len({1, 2, nothing["image_id"], other["image_id"]}) == 4
    assert len(zebra["sentences"]) == 2


def test_several_annotations_in_any_order_are_one_object_and_a_crowd_is_like_any(my):
    entries = [
        {"image": "a.jpg", "expression": text, "annotation_ids": ids}
        for text, ids in [("x", [13, 11]), ("y", [11, 13])]
    ]
    (row,) = read(my, entries)["train"]
    expected = rectangle()
    expected[5:13, 4:13] = True
    np.testing.assert_array_equal(decode_mask(row["mask"]), expected)
    assert row["ann_id"] == [11, 13] and len(row["sentences"]) == 2


def many_references(my):
    """66 entries of all kinds of objects, and the mask of each by pycocotools' decoding and NumPy's or."""
    rng = np.random.default_rng(5)
    annotations, masks = [], {}
    for number in range(100, 160):
        if number % 3:  # one to three polygons, which may overlap
            parts = [rng.uniform(0, 30, 2 * rng.integers(3, 8)).round(2).tolist() for _ in range(rng.integers(1, 4))]
            decoded = coco_mask.decode(coco_mask.frPyObjects(parts, HEIGHT, WIDTH)).any(axis=2)
            segmentation = parts
        else:  # holes everywhere; every other one COCO's compressed string
            decoded = rng.random((HEIGHT, WIDTH)) < 0.6
            segmentation = run_lengths(decoded)
            if number % 2:
                packed = coco_mask.encode(np.asfortranarray(decoded.astype(np.uint8)))
                segmentation = {"size": packed["size"], "counts": packed["counts"].decode()}
        annotations.append(annotation(number, segmentation, iscrowd=int(number % 3 == 0)))
        masks[number] = decoded
    write_instances(my, annotations)
    entries, expected = [], []
    for number in range(100, 150):
        ids = sorted({number, *(int(other) for other in rng.integers(100, 160, number % 4))})
        entries.append({"image": "a.jpg", "expression": f"thing {number}", "annotation_ids": ids})
        expected.append(np.any([masks[one] for one in ids], axis=0))
    for number in range(16):
        mask = rng.random((HEIGHT, WIDTH)) < 0.3
        values = [mask, mask.astype(np.uint8), 255 * mask.astype(np.uint8)][number % 3]
        Image.fromarray(values).save(my / "masks" / f"{number}.png")
        entries.append({"image": "b.jpg", "expression": f"thing {number}", "mask": f"masks/{number}.png"})
        expected.append(mask)
    for number, one in enumerate(entries):
        one["split"] = ("train", "val", "test_A")[number * 3 // len(entries)]  # in order, so that rows are too
    return entries, expected


def test_masks_are_pycocotools_union_pixel_for_pixel_and_three_kinds_of_list_give_the_same_rows(my):
    entries, expected = many_references(my)
    rows = [rows_of(read(my, entries, f"expressions.{kind}")) for kind in KINDS]
    assert rows[0] == rows[1] == rows[2]
    assert list(rows[0]) == ["train", "val", "test_A"]
    flat = [row for table in rows[0].values() for row in table]
    assert len(flat) == len(expected) == 66
    for row, one, mask in zip(flat, entries, expected, strict=True):
        np.testing.assert_array_equal(decode_mask(row["mask"]), mask)
        assert row["ann_id"] == one.get("annotation_ids", [])
    y, x = np.nonzero(expected[-1])
    assert flat[-1]["bbox"] == [x.min(), y.min(), x.max() + 1, y.max() + 1] and flat[-1]["category_id"] is None


def test_data_of_masks_alone_needs_no_instances_and_the_masks_may_lie_elsewhere(my):
    shutil.move(my / "masks" / "rectangle.png", my / "one.png")
    write(my / "e.csv", [{"image": "b.jpg", "expression": "it", "mask": "one.png"}])
    for mask_root in (None, my):
        (row,) = read_coco_files(my / "e.csv", my / "images", mask_root=mask_root)["train"]
        np.testing.assert_array_equal(decode_mask(row["mask"]), rectangle())
    assert len(find_faults(my / "e.csv", my / "images", mask_root=my / "masks")) == 1


def test_sizes_and_masks_are_those_of_a_turned_image_as_it_is_displayed(my):
    save_turned(my / "images" / "turned.jpg", HEIGHT, WIDTH)  # displayed (41, 30)
    write_instances(
        my, [annotation(31, image_id=3)], [{"id": 3, "file_name": "turned.jpg", "height": HEIGHT, "width": WIDTH}]
    )
    entries = [
        entry(31, image="turned.jpg"),
        {"image": "turned.jpg", "expression": "it", "mask": "masks/rectangle.png"},
    ]
    by_annotation, by_mask = read(my, entries)["train"]
    assert (by_annotation["height"], by_annotation["width"]) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(decode_mask(by_mask["mask"]), rectangle())


def test_missing_images_are_faults_or_left_out_with_one_warning_until_they_are_there(my, caplog):
    entries = [entry(-1, "x", "gone.jpg"), entry(), entry(-1, "y", "gone.jpg"), entry(-1, "y", "lost.jpg")]
    with pytest.raises(
        ReferringDataError, match=r"3 faults in .*\nline 1: the image 'gone\.jpg'.*\nline 3: .*\nline 4"
    ):
        read(my, entries)
    (row,) = read(my, entries, on_missing="skip")["train"]
    assert row["ann_id"] == [11]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "2 of 3 images" in caplog.text and "gone.jpg, lost.jpg" in caplog.text
    Image.new("RGB", (7, 5)).save(my / "images" / "gone.jpg")
    assert [row["width"] for row in read(my, entries, on_missing="skip")["train"]] == [7, WIDTH]
    Image.new("RGB", (9, 5)).save(my / "images" / "gone.jpg")
    assert [row["width"] for row in read(my, entries, on_missing="skip")["train"]] == [9, WIDTH]


def test_where_all_images_are_missing_skipping_them_is_a_fault(my):
    text = json.dumps(entry(image="gone.jpg"))
    ((line, message),) = faults_in(my, text, on_missing="skip")
    assert line == 1 and message.startswith("no entry's image is in ")


def test_what_is_read_is_what_the_files_say_now(my):
    first = read(my, [entry()])["train"][0]
    write_instances(my, [annotation(11, [BENCH])])
    assert decode_mask(read(my, [entry()])["train"][0]["mask"]).sum() == 20 * 9 != decode_mask(first["mask"]).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_order_mark_and_any_line_ends_change_nothing(my, kind):
    plain = rows_of(read(my, [entry(text="café"), entry(12)], f"plain.{kind}"))
    text = (my / f"plain.{kind}").read_text(encoding="utf-8")  # with \n for any line end
    for number, end in enumerate(["\n", "\r\n", "\r"]):
        (my / f"{number}.{kind}").write_bytes(text.replace("\n", end).encode("utf-8-sig"))
        assert rows_of(load_referring_dataset("coco", **paths(my, f"{number}.{kind}"))) == plain


def test_csv_may_have_semicolons_and_a_suffix_in_capitals(my):
    text = 'image;expression;annotation_id\na.jpg;"left; below, of it";11\na.jpg;the ball, red;12\n'
    assert faults_in(my, text, "e.CSV") == []
    texts = [row["sentences"][0]["raw"] for row in read_coco_files(**paths(my, "e.CSV"))["train"]]
    assert texts == ["left; below, of it", "the ball, red"]


# What is told


MASKS = {  # file name → what makes it
    "palette.png": lambda path: Image.fromarray(rectangle().astype(np.uint8)).convert("P").save(path),
    "rgb.png": lambda path: Image.fromarray(rectangle()).convert("RGB").save(path),
    "rgba.png": lambda path: Image.fromarray(rectangle()).convert("RGBA").save(path),
    "sixteen.png": lambda path: Image.fromarray(rectangle().astype(np.uint16)).save(path),
    "grays.png": lambda path: Image.fromarray(7 * rectangle().astype(np.uint8)).save(path),
    "noisy.jpg": lambda path: Image.fromarray(255 * rectangle().astype(np.uint8)).save(path, quality=30),
    "black.png": lambda path: Image.new("L", (WIDTH, HEIGHT)).save(path),
    "turned.png": lambda path: Image.fromarray(rectangle().T.copy()).save(path),
    "cut.png": lambda path: path.write_bytes(_png_of_noise()[:-200]),
    "text.png": lambda path: path.write_text("no image"),
    "link.png": lambda path: path.symlink_to(path.parents[2] / "outside.png"),
}


def _png_of_noise():
    Image.fromarray(np.random.default_rng(3).random((HEIGHT, WIDTH)) < 0.5).convert("L").save(
        buffer := io.BytesIO(), "png"
    )
    return buffer.getvalue()


def masked(name):
    return {"image": "a.jpg", "expression": "it", "mask": name}


def several(ids):
    return {"image": "a.jpg", "expression": "it", "annotation_ids": ids}


FAULTS = {  # what a line holds → what is said of it
    '{"image": "a.jpg", ': "this is no JSON",
    "[" * 100_000: "this is no JSON: maximum recursion",
    '{"image": "a.jpg", "annotation_id": ' + "9" * 5_000 + "}": "this is no JSON: .*digits",
    '"a text"': "an entry is .* but here is 'a text'",
    "[" * 300 + "]" * 300: r"an entry is .* but here is \[\[",
    json.dumps({"image": "a.jpg", "expresion": "it", "annotation_id": 11}): "here is 'expresion'. Is it expression\\?",
    json.dumps(entry(Split="val")): r"here is 'Split'\. Is it split\?",
    json.dumps(entry(xyzzy=1)): "here is 'xyzzy'.$",
    '{"expression": "it", "annotation_id": 11}': "image is not there",
    json.dumps(entry(image=["a.jpg"])): r"image is a text, but here is \['a.jpg'\]",
    json.dumps(entry(text="")): "expression is blank",
    json.dumps(entry(text=5)): "expression is a text, but here is 5",
    json.dumps(entry(text="?!")): r"an expression has a word.*'\?!'",
    json.dumps(entry(text="a" * 5_001)): "at most 5,000 letters",
    json.dumps(entry(text="half \ud800")): "expression is a text",
    '{"image": "a.jpg", "expression": "it"}': "says what is meant, but none is there",
    json.dumps(entry(None)): "all are blank",
    json.dumps(entry(mask="m.png")): "here are annotation_id and mask",
    json.dumps(entry("eleven")): "whole numbers.*'eleven'",
    json.dumps(entry("11.0")): r"whole numbers.*'11\.0'",
    json.dumps(entry(11.0)): r"whole numbers.*here is 11\.0",
    json.dumps(entry(float("nan"))): "whole numbers.*nan",
    json.dumps(entry(True)): "whole numbers.*True",
    json.dumps(several([11, -1])): r"whole numbers.*\[11, -1\]",
    json.dumps(several([11, 11])): r"whole numbers.*\[11, 11\]",
    json.dumps(several([])): r"whole numbers.*\[\]",
    json.dumps(masked(5)): "mask is a text, but here is 5",
    json.dumps(entry(split="a/b")): "split is a word.*'a/b'",
    json.dumps(entry(category=5)): "category is a text, but here is 5",
    json.dumps(entry(image="gone.jpg")): "the image 'gone.jpg' is not in ",
    json.dumps(entry(image="/etc/passwd")): "folder of the images.*'/etc/passwd'",
    json.dumps(entry(image="../outside.png")): r"folder of the images.*'\.\./outside\.png'",
    json.dumps(entry(image="link.jpg")): "links that leave it.*'link.jpg'",
    json.dumps(entry(-1, image="text.jpg")): "text.jpg is not",
    json.dumps(entry(31, image="larger.jpg")): r"larger\.jpg is \(31, 42\).*\(30, 41\)",
    json.dumps(entry(41, image="turned.jpg")): r"turned\.jpg is \(41, 30\).*\(30, 41\)",
    json.dumps(entry(99)): "annotation 99 is named, but it is not in ",
    json.dumps(several([11, 21])): "annotation 21 is of 'b.jpg', not of 'a.jpg'",
    json.dumps(entry(51)): "three points.*annotation 51",
    json.dumps(entry(52)): "three points.*annotation 52",
    json.dumps(entry(53)): "bbox.*annotation 53.*nan",
    json.dumps(entry(54)): "category_id .*annotation 54.*'dog'",
    json.dumps(entry(55)): "annotation 55 has 2 runs",
    json.dumps(entry(56)): "annotation 56 is of 'no image', not of 'a.jpg'",
    json.dumps(masked("gone.png")): "the mask 'gone.png' is not in ",
    json.dumps(masked("/etc/passwd")): "'/etc/passwd'",
    json.dumps(masked("../outside.png")): r"'\.\./outside\.png'",
    json.dumps(masked("masks/link.png")): "links that leave it.*'masks/link.png'",
    json.dumps(masked("masks/turned.png")): r"masks/turned\.png is \(41, 30\).*\(30, 41\)",
    json.dumps(masked("masks/black.png")): "all black",
    json.dumps(masked("masks/palette.png")): "its mode is P",
    json.dumps(masked("masks/rgb.png")): "its mode is RGB",
    json.dumps(masked("masks/rgba.png")): "its mode is RGBA",
    json.dumps(masked("masks/sixteen.png")): "its mode is I",
    json.dumps(masked("masks/grays.png")): "masks/grays.png holds 0, 7",
    json.dumps(masked("masks/noisy.jpg")): "masks/noisy.jpg holds 0, 1",
    json.dumps(masked("masks/cut.png")): "masks/cut.png is not: ",
    json.dumps(masked("masks/text.png")): "masks/text.png is not: ",
}  # fmt: skip


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Every fault once, on each third line, after a blank line and a good one."""
    my = draw(tmp_path_factory.mktemp("faulty") / "my")
    Image.fromarray(rectangle()).save(my.parent / "outside.png")
    (my / "images" / "link.jpg").symlink_to(my.parent / "outside.png")
    (my / "images" / "text.jpg").write_text("no image")
    Image.new("RGB", (WIDTH + 1, HEIGHT + 1)).save(my / "images" / "larger.jpg")
    save_turned(my / "images" / "turned.jpg", WIDTH, HEIGHT)
    for name, make in MASKS.items():
        make(my / "masks" / name)
    size = {"height": HEIGHT, "width": WIDTH}
    write_instances(
        my,
        [
            annotation(11),
            annotation(31, image_id=3),
            annotation(41, image_id=4),
            annotation(51, [[1, 2, 3, 4]]),
            annotation(52, [[*SQUARE[:-1], float("nan")]]),
            annotation(53, bbox=[1, 2, 3, float("nan")]),
            annotation(54, category_id="dog"),
            annotation(55, {"size": [HEIGHT, WIDTH], "counts": [5, 7]}),
            annotation(56, image_id=[1]),
        ],
        [{"id": 3, "file_name": "larger.jpg"} | size, {"id": 4, "file_name": "turned.jpg"} | size],
    )
    (my / "expressions.jsonl").write_text("".join(f"\n{json.dumps(entry())}\n{text}\n" for text in FAULTS))
    return my


@pytest.fixture(scope="module")
def found(faulty):
    return find_faults(**paths(faulty))


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[text[:60] for text in FAULTS])
def test_every_kind_of_fault_is_told_with_its_line(found, number):
    messages = [str(fault) for fault in found if fault.line == 3 * number + 3]
    expected = list(FAULTS.values())[number]
    assert any(re.match(rf"line {3 * number + 3}: .*{expected}", message, re.DOTALL) for message in messages), messages


def test_nothing_is_told_of_good_lines(found):
    assert {fault.line for fault in found} == {3 * number + 3 for number in range(len(FAULTS))}


def test_the_readers_error_lists_the_first_faults_and_counts_the_others(faulty, found):
    with pytest.raises(ReferringDataError) as caught:
        load_referring_dataset("coco", **paths(faulty))
    first, *listed, last = str(caught.value).split("\n")
    assert first == f"{len(found)} faults in {faulty / 'expressions.jsonl'}:"
    assert listed == [f"line {fault.line}: {fault.message}" for fault in found[:20]]
    assert last.startswith(f"and {len(found) - 20} more")


def test_an_entry_with_several_wrong_fields_has_each_told(my):
    text = json.dumps({"image": 5, "expression": "!", "annotation_id": "x", "mask": 7, "split": "-", "kategory": "a"})
    assert len(faults_in(my, text)) == 6


CSV_HEAD = "image,expression,annotation_id,split\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CSV_HEAD + 'a.jpg,"two\nor\nthree lines",11,\na.jpg,it,99,\n', {5: "annotation 99"}),
        (CSV_HEAD + '\n\na.jpg,"two\nlines",99,\n\na.jpg,it,98,\n', {4: "annotation 99", 7: "annotation 98"}),
        (CSV_HEAD + "a.jpg,line\u2028or \x0b\x0c\x85 none,11,\na.jpg,it,99,\n", {3: "annotation 99"}),
        (CSV_HEAD + "a.jpg,left, below,11,\na.jpg,it,99,\n", {2: "the 4 fields of the first, but here are 5", 3: "99"}),
        (CSV_HEAD + "a.jpg,it,11\na.jpg,it,99,\n", {2: "the 4 fields of the first, but here are 3", 3: "99"}),
        (CSV_HEAD + 'a.jpg,"it" is,11,\na.jpg,it,99,\n', {2: "this is no CSV", 3: "annotation 99"}),
        (CSV_HEAD + 'a.jpg,it,98,\na.jpg,"it,11,\na.jpg,it,99,\n', {2: "annotation 98", 3: "quotation mark left open"}),
        (CSV_HEAD + f"a.jpg,{'a' * 200_000},11,\na.jpg,it,99,\n", {2: "this is no CSV: .*limit", 3: "annotation 99"}),
        (CSV_HEAD.replace("split", "image"), {1: "a field is there once, but image is 2 times"}),
        ("\n" + CSV_HEAD.replace("split", "spilt") + "a.jpg,it,99,\n", {2: "'spilt'. Is it split"}),
        (CSV_HEAD.replace("split", " Split") + "a.jpg,it,99,\n", {1: "' Split'. Is it split"}),
        ("image,expression\na.jpg,it\n", {1: "says what is meant, but none is there"}),
        (CSV_HEAD + "a.jpg,,11,\n,it,11,\na.jpg,it,,\n", {2: "expression is bl", 3: "image is bl", 4: "all are bl"}),
        (CSV_HEAD + "a.jpg,it,11 -1,\na.jpg,it,11.0,\n", {2: "whole numbers.*'11 -1'", 3: "whole numbers.*'11.0'"}),
        ("", {1: "there is no entry"}),
        (CSV_HEAD, {1: "there is no entry"}),
    ],
)  # fmt: skip
def test_faults_of_a_csv_file_have_their_lines(my, text, expected):
    found = faults_in(my, text, "e.csv")
    assert [line for line, _ in found] == list(expected)
    for line, message in found:
        assert re.search(expected[line], message)


GOOD, BAD = json.dumps(entry()), json.dumps(entry(99), indent=1)  # BAD has five lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"[{GOOD},\n\n{BAD},\n{GOOD},{BAD}]", {3: "annotation 99", 8: "annotation 99"}),
        (f"\n[\n{BAD}\n,\n{BAD}]\n\n", {3: "annotation 99", 9: "annotation 99"}),
        (f'["a text",\n5,\n{GOOD}]', {1: "here is 'a text'", 2: "here is 5"}),
        (f'[{BAD},\n{GOOD},\n{{"image": "a.jpg",\n "expression" }},\n{BAD}]', {1: "99", 7: "from here on: .*line 8"}),
        (f"[{BAD}\n{GOOD}]", {1: "annotation 99", 6: "a comma between entries"}),
        (f"[{GOOD},\n]", {2: "from here on"}),
        (f"[{GOOD},\n{GOOD}\n", {3: "from here on: .* ] at the end"}),
        (f"[{GOOD}]\n{GOOD}", {1: "from here on: .* ] at the end"}),
        (f"[\n{'[' * 100_000}", {2: "from here on: maximum recursion"}),
        (f'{{"entries": [{GOOD}]}}', {1: "the file is no JSON list"}),
        ("", {1: "the file is no JSON list"}),
        ("[\n]\n", {1: "there is no entry"}),
    ],
)
def test_faults_of_a_json_list_have_their_lines(my, text, expected):
    found = faults_in(my, text, "e.json")
    assert [line for line, _ in found] == list(expected)
    for line, message in found:
        assert re.search(expected[line], message)


def test_a_broken_line_of_jsonl_hides_no_other_and_an_empty_file_is_a_fault(my):
    bad = json.dumps(entry(99))
    assert [line for line, _ in faults_in(my, f"{bad}\n{GOOD[:-1]}\n\n{GOOD}\n{bad}")] == [1, 2, 5]
    unusual = json.dumps(entry(text="line\u2028or \x85 none"), ensure_ascii=False)
    assert [line for line, _ in faults_in(my, f"{unusual}\n{bad}")] == [2]
    assert faults_in(my, "\n \n") == [(1, "there is no entry in the file")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_a_fault_that_names_the_file(my, kind, encoding):
    write(my / f"e.{kind}", [entry(text="cafe"), entry(text="cafe")])
    text = (my / f"e.{kind}").read_text()
    ((line, message),) = faults_in(my, text.replace("cafe", "café").encode(encoding), f"e.{kind}")
    assert re.search(rf"e\.{kind} is not in UTF-8", message)
    assert line == (1 if encoding == "utf-16" else text[: text.index("cafe")].count("\n") + 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"expressions": "e.txt"}, ReferringDataError, r"\.csv file, but .*e\.txt"),
        ({"expressions": "none/e.csv"}, FileNotFoundError, r"Expressions are read from .*none/e\.csv"),
        ({"instances": "none.json"}, FileNotFoundError, r"none\.json"),
        ({"instances": "e.jsonl"}, ReferringDataError, r"list of images, but .*e\.jsonl"),
        ({"image_root": "none"}, FileNotFoundError, "image_root"),
        ({"mask_root": "none"}, FileNotFoundError, "mask_root"),
        ({"on_missing": "ignore"}, ValueError, "'ignore'"),
    ],
)
def test_a_wrong_argument_is_named(my, monkeypatch, options, error, message):
    monkeypatch.chdir(my)
    write(Path("e.jsonl"), [entry()])
    files = {"expressions": "e.jsonl", "image_root": "images", "instances": "instances.json"}
    for function in (find_faults, read_coco_files):
        with pytest.raises(error, match=message):
            function(**files | options)


@pytest.mark.parametrize("change", [{"id": "two"}, {"id": 2**63}, {"file_name": "a.jpg"}, {"file_name": ["b.jpg"]}])
def test_instances_whose_images_cannot_be_told_apart_are_an_error(my, change):
    instances = json.loads((my / "instances.json").read_text())
    instances["images"][1] |= change
    (my / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(ReferringDataError, match=r"file.*name.* in .*instances\.json has .*Correct the file"):
        read(my, [entry()])


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_two_records_of_one_id_are_an_error_where_they_differ(my, kind):
    path = my / "instances.json"
    instances = json.loads(path.read_text())
    instances[kind].append(dict(instances[kind][0]))
    path.write_text(json.dumps(instances))
    assert faults_in(my, json.dumps(entry())) == [] or kind == "images"
    instances[kind][-1]["file_name" if kind == "images" else "category_id"] = "c.jpg" if kind == "images" else 2
    path.write_text(json.dumps(instances))
    with pytest.raises(ReferringDataError, match=f"All {kind} .* have different ids, but two in .*instances.json have"):
        faults_in(my, json.dumps(entry()))


@pytest.mark.parametrize("polygon", [[0.1, 0.1, 0.4, 0.1, 0.4, 0.3], [-9, -9, -2, -9, -5, -2], [1, 1, 5, 5, 9, 9]])
def test_an_annotation_that_covers_no_pixel_is_a_fault_and_not_an_image_without_the_thing(my, polygon):
    path = my / "instances.json"
    instances = json.loads(path.read_text())
    next(a for a in instances["annotations"] if a["id"] == 11)["segmentation"] = [polygon]
    path.write_text(json.dumps(instances))
    ((line, message),) = faults_in(my, json.dumps(entry()))
    assert line == 1 and "annotation 11 covers no pixel of a.jpg: are its coordinates in pixels?" in message


RELATIVE = [[0.1, 0.2, 0.9, 0.2, 0.9, 0.8, 0.1, 0.8]]
CONTRADICTIONS = {  # changes of annotation 11, a square of 8 pixels → what is said of it
    "relative polygon": ({"segmentation": RELATIVE}, "from 0 to 1: multiply"),
    "all relative": (
        {"segmentation": [[0.1, 0.2, 0.9, 0.2, 0.9, 0.8, 0.1, 0.8]], "bbox": [0.1, 0.2, 0.8, 0.6]},
        "from 0 to 1",
    ),
    "corners": ({"segmentation": [BENCH], "bbox": [9, 9, 29, 18]}, "x0, y0, x1, y1"),
    "doubled": ({"bbox": [8, 10, 18, 16], "area": 288}, r"of another size than 30 x 41 \(height x width\)"),
    "cut off": ({"segmentation": [[30, 20, 75, 20, 75, 60, 30, 60]], "bbox": [30, 20, 45, 40]}, "of another size"),
    "another area": ({"segmentation": run_lengths(np.ones((HEIGHT, WIDTH))), "bbox": [0, 0, 41, 30]}, "another size"),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_mask_that_contradicts_its_area_or_bbox_is_a_fault_and_one_warning_of_reading(my, kind, caplog):
    changes, reason = CONTRADICTIONS[kind]
    write_instances(my, [annotation(11, **{"area": 72} | changes), annotation(12, [BENCH], bbox=BENCH_BOX, area=180)])
    entries = [entry(text="good", number=12), entry(), entry(text="the other ball"), entry(split="val")]
    ((line, message),) = faults_in(my, "\n".join(map(json.dumps, entries)))
    assert line == 2 and re.search(rf"annotation 11 has area .* and bbox .*its mask has area .*{reason}", message)
    caplog.clear()
    load_referring_dataset("coco", **paths(my))
    (said,) = [record.message for record in caplog.records if "contradict their" in record.message]
    assert said.startswith("1 masks of ") and message in said


def test_areas_as_other_programs_write_them_and_thin_things_contradict_nothing(my):
    thin, slope = [2, 2, 38, 2.6, 38, 3.4, 2, 2.9], [1, 1, 29, 28, 30, 28, 2, 1]
    areas = {31: 24 * 20 / 2, 32: 24 * 20, 33: 0, 34: None, 35: "240"}  # exact; of the bbox; left blank; no number
    triangles = [annotation(n, [[4, 5, 28, 5, 4, 25]], bbox=[4, 5, 24, 20], area=area) for n, area in areas.items()]
    lines = [annotation(41, [thin], bbox=[2, 2, 36, 1], area=25), annotation(42, [slope], bbox=[1, 1, 29, 27], area=1)]
    write_instances(my, [*triangles, *lines, annotation(43, bbox=[0, 0, 0, 0], area=72)])
    numbers = [*areas, 41, 42, 43]
    text = "\n".join(json.dumps(entry(number, text=f"thing {number}")) for number in numbers)
    assert faults_in(my, text) == []


def test_a_size_that_is_a_text_is_named(my):
    path = my / "instances.json"
    path.write_text(path.read_text().replace(f'"width": {WIDTH}', f'"width": "{WIDTH}"'))
    with pytest.raises(ReferringDataError, match=r"sizes are whole numbers.* number 0 in .* has the width '41'"):
        read(my, [entry()])
    with pytest.raises(ReferringDataError, match="sizes are whole numbers"):
        InstanceFile(path)


def test_annotations_without_instances_are_a_fault(my):
    ((line, message),) = faults_in(my, GOOD, instances=None)
    assert (line, message) == (1, "annotation 11 is named, but no instances file is given")


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_entries_are_checked_in_ten_seconds(my, kind):
    """40,000 in four: a time that grows with the square would be far above."""
    write(my / f"e.{kind}", [entry(text=f"the ball with the number {number}") for number in range(40_000)])
    start = time.process_time()
    assert find_faults(**paths(my, f"e.{kind}")) == []
    assert time.process_time() - start < 4


# The page


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture
def as_on_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_the_pages_files(tmp_path)


def write_the_pages_files(folder):
    """The files of the page's examples, and images for them, in `folder`/my."""
    my = draw(folder / "my")
    for name in ("park.jpg", "street.jpg"):
        shutil.copy(my / "images" / "a.jpg", my / "images" / name)
    shutil.copy(my / "masks" / "rectangle.png", my / "masks" / "left_dog.png")
    lists, instances = sorted(blocks("json"), key=lambda text: '"annotations"' in text)
    (my / "instances.json").write_text(instances)
    for kind, text in [("csv", *blocks("csv")), ("jsonl", *blocks("jsonl")), ("json", lists)]:
        (my / f"expressions.{kind}").write_text(text)
    return my


def test_the_pages_lists_are_without_fault_and_say_the_same_in_three_forms(as_on_the_page):
    for kind in KINDS:
        assert find_faults(**paths(as_on_the_page, f"expressions.{kind}")) == []
    rows = [rows_of(read_coco_files(**paths(as_on_the_page, f"expressions.{kind}"))) for kind in KINDS]
    assert rows[0] == rows[1] == rows[2]
    assert [row["ann_id"] for row in rows[0]["train"] + rows[0]["val"]] == [[11], [11, 12], [], []]
    assert rows[0]["val"][1]["bbox"] == [8.0, 6.0, 31.0, 17.0]


def test_the_pages_python_runs(as_on_the_page, capsys):
    (code,) = (text for text in blocks("python") if "find_faults" in text)
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert capsys.readouterr().out == ""
    assert names["row"]["sentences"][0]["raw"] == "the red ball"


def test_the_pages_files_are_there(as_on_the_page):
    (tree,) = blocks("text")
    for line in tree.splitlines():
        assert Path(line.split()[0]).is_file()


def test_the_page_names_every_field():
    from m3dec.processing.referring_data.readers.coco_files import FIELDS

    table = PAGE.read_text(encoding="utf-8").split("| field |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `")))
    assert (
        tuple(named)
        == ("image", "expression", "annotation_id", "annotation_ids", "mask", "split", "category")
        == FIELDS
    )
