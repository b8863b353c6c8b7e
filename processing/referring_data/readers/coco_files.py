"""A user's own data: a COCO instances file, and a list of {image, object, expression, split} in JSON, JSONL or CSV.

docs/data.md documents the files.
"""

import difflib
import functools
import logging
import re
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from m3dec.processing.images import mask_array
from m3dec.processing.referring_data.schema import ReferringDataError, area_of_mask, encode_mask

from .coco_records import MOST_LETTERS, in_order_of_splits, is_split_name, read_instances, row_without_image
from .contradictions import contradictions, warn_of_contradictions
from .expression_lists import read_entries
from .images import ImageFolder, check_image_size, image_size
from .tables import tables_by_split, warn_of_shared_images

logger = logging.getLogger(__name__)

OBJECT_FIELDS = ("annotation_id", "annotation_ids", "mask")
FIELDS = ("image", "expression", *OBJECT_FIELDS, "split", "category")
LISTED = 20  # faults in an error, lines in a warning


class Fault(NamedTuple):
    """What is wrong with one entry of a user's file."""

    line: int  # where the entry begins, from 1 on
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


def read_coco_files(
    expressions: str | Path,
    image_root: str | Path,
    instances: str | Path | None = None,
    mask_root: str | Path | None = None,
    on_missing: str = "error",
) -> datasets.DatasetDict:
    """Read a user's own data.

    Each entry of `expressions` has `image`, an image's file name; `expression`; the object as `annotation_id`, a
    number, as `annotation_ids`, several (in CSV with spaces between), or as `mask`, the file name of a black and white
    image; and, if wanted, `split` ("train" where it is not given) and `category`, the kind of expression. Where the
    expression means nothing in the image, annotation_id is -1. Entries of one object in one split are one reference.

    Args:
        expressions: a .json list, a .jsonl file or a .csv file, in UTF-8.
        image_root: the folder of the images.
        instances: a COCO file with `images` and `annotations`; not needed where every object is a mask.
        mask_root: the folder of the masks; that of `expressions` where it is not given.
        on_missing: "error" where images are missing, or "skip" to leave out what refers to them.

    Returns:
        One table per split. Warnings are logged where one expression means two objects of an image, where a mask
        contradicts the `area` or `bbox` of its annotation, and where training images are in another split too.

    Raises:
        ReferringDataError: something is wrong; the message lists it by line. `find_faults` gives the whole list.
        FileNotFoundError: a file or folder is not there.
    """
    rows, faults, doubts = check_entries(expressions, image_root, instances, mask_root, on_missing)
    warn_of_contradictions((doubt.message for doubt in doubts), instances)
    if faults:
        listed = "\n".join(map(str, faults[:LISTED]))
        more = f"\nand {len(faults) - LISTED} more: find_faults lists them all" if len(faults) > LISTED else ""
        raise ReferringDataError(f"{len(faults)} fault{'s' * (len(faults) > 1)} in {expressions}:\n{listed}{more}")
    # Tables are found again by the rows themselves, not by the files: the rows depend on the images too.
    settings = {"rows": tuple(rows)}
    splits = tables_by_split(lambda rows: iter(rows), settings, [], ImageFolder(image_root), on_missing)
    warn_of_shared_images(splits, str(expressions))
    return splits


def find_faults(
    expressions: str | Path,
    image_root: str | Path,
    instances: str | Path | None = None,
    mask_root: str | Path | None = None,
    on_missing: str = "error",
) -> list[Fault]:
    """All faults of a user's files, by line. Where the list is empty, `read_coco_files` reads them without a warning.

    The files that an entry names are checked only when its fields are right. A mask that contradicts the `area` or the
    `bbox` of its annotation is a fault here, and a warning of `read_coco_files`.

    Raises:
        ReferringDataError: the instances file cannot be read at all.
        FileNotFoundError: a file or folder is not there.
    """
    _, faults, doubts = check_entries(expressions, image_root, instances, mask_root, on_missing)
    return sorted([*faults, *doubts], key=lambda fault: fault.line)


def check_entries(
    expressions, image_root, instances, mask_root, on_missing
) -> tuple[list[dict], list[Fault], list[Fault]]:
    """The rows of all references, split by split, without their images; all that is wrong with the entries; and the
    masks that contradict their annotations, each with the line that names it first.

    Arguments as of `read_coco_files`.
    """
    entries = list(read_entries(Path(expressions), wrong_names))
    files = NamedFiles(image_root, instances, Path(expressions).parent if mask_root is None else mask_root)
    files.images.find_all([], on_missing)  # refuses another on_missing
    faults, missing, doubts = [], set(), {}
    references = {}  # (image, object, split) → its row
    meanings = defaultdict(dict)  # (image, expression) → object → line
    progress = tqdm(entries, desc=f"checking {expressions}", unit="entry", disable=len(entries) < 1000)
    for number, (line, entry) in enumerate(progress):
        wrong = list(wrong_fields(entry))
        if wrong:
            faults += [Fault(line, message) for message in wrong]
            continue
        entry = without_blanks(entry)
        name, text, split = entry["image"], entry["expression"], entry.get("split", "train")
        target = entry.get("mask") or annotation_ids(entry)
        try:
            if on_missing == "skip" and files.find_image(name) is None:
                missing.add(name)
                continue
            if (name, target, split) not in references:
                row = references[name, target, split] = files.row(name, target, split, ref_id=len(references))
                for message in files.contradictions(row):
                    doubts.setdefault(message, Fault(line, message))
        except ReferringDataError as error:
            faults.append(Fault(line, str(error)))
            continue
        sentence = {"sent_id": number, "raw": text, "sent": text.lower(), "category": entry.get("category")}
        references[name, target, split]["sentences"].append(sentence)
        meanings[name, text.lower()].setdefault(target, line)
    if missing:
        files.images.find_all(missing.union(name for name, _, _ in references), on_missing)  # logs them
    if not references and not faults:
        reason = f"no entry's image is in {files.images.root}" if missing else "there is no entry in the file"
        faults.append(Fault(1, reason))
    warn_of_two_meanings([list(lines.values()) for lines in meanings.values() if len(lines) > 1], expressions)
    return in_order_of_splits(references.values()), faults, list(doubts.values())


def warn_of_two_meanings(lines: list[list[int]], expressions: str | Path) -> None:
    """Log which lines give one expression to several objects of an image: nobody can tell from it which is meant."""
    if lines:
        listed = "; ".join("lines " + " and ".join(map(str, together[:LISTED])) for together in lines[:LISTED])
        more = "; …" if len(lines) > LISTED else ""
        logger.warning(
            f"{len(lines)} expressions of {expressions} mean different objects of one image: {listed}{more}. Say more "
            "of each object, or name them together by annotation_ids."
        )


# One entry


@functools.lru_cache(maxsize=100)  # entries mostly have the same fields
def wrong_names(names: tuple[str, ...]) -> list[str]:
    """What is wrong with the names of an entry's fields."""
    wrong = []
    for name in dict.fromkeys(names):
        if name not in FIELDS:
            near = difflib.get_close_matches(name.strip().lower(), FIELDS, n=1)
            meant = f" Is it {near[0]}?" if near else ""
            wrong.append(f"fields are {', '.join(FIELDS)}, but here is {reprlib.repr(name)}.{meant}")
        elif names.count(name) > 1:
            wrong.append(f"a field is there once, but {name} is {names.count(name)} times")
    for name in ("image", "expression"):
        if name not in names:
            wrong.append(f"{name} is not there")
    if not set(OBJECT_FIELDS) & set(names):
        wrong.append(f"one of {', '.join(OBJECT_FIELDS)} says what is meant, but none is there")
    return wrong


def wrong_fields(entry) -> Iterator[str]:
    """What is wrong with an entry, whatever it points to."""
    if isinstance(entry, ReferringDataError):
        yield str(entry)
        return
    if not isinstance(entry, dict):
        yield f'an entry is {{"image": …, "expression": …, …}}, but here is {reprlib.repr(entry)}'
        return
    yield from wrong_names(tuple(entry))
    given = without_blanks(entry)
    for name in ("image", "expression"):
        if name in entry and name not in given:
            yield f"{name} is blank"
    for name in ("image", "expression", "mask", "split", "category"):
        if name in given and not is_text(given[name]):
            yield f"{name} is a text, but here is {reprlib.repr(given[name])}"
    if is_text(given.get("split")) and not is_split_name(given["split"]):
        yield f"split is a word of letters, digits and _, and not 'all', but here is {reprlib.repr(given['split'])}"
    text = given.get("expression")
    if is_text(text) and (len(text) > MOST_LETTERS or not re.search(r"[^\W_]", text)):
        yield f"an expression has a word, and at most {MOST_LETTERS:,} letters, but here is {reprlib.repr(text)}"
    objects = [name for name in OBJECT_FIELDS if name in given]
    if len(objects) != 1 and set(OBJECT_FIELDS) & set(entry):
        yield (
            f"one of {', '.join(OBJECT_FIELDS)} says what is meant (annotation_id -1: nothing), but here "
            f"{'are ' + ' and '.join(objects) if objects else 'all are blank'}"
        )
    elif objects and "mask" not in objects and annotation_ids(given) is None:
        yield (
            "annotations are different whole numbers, in CSV with spaces between, or -1 alone for none, but here is "
            f"{reprlib.repr(given[objects[0]])}"
        )


def without_blanks(entry: dict) -> dict:
    """An entry without the fields that are left blank."""
    return {name: value for name, value in entry.items() if value is not None and value != ""}


def is_text(value) -> bool:
    """Whether a value is text that can be written to a file: JSON has escapes for halves of letters."""
    return isinstance(value, str) and value != "" and (value.isascii() or not re.search("[\ud800-\udfff]", value))


def annotation_ids(entry: dict) -> tuple[int, ...] | None:
    """The annotations an entry names, in rising order, none for -1; None where they are not whole numbers."""
    given = entry.get("annotation_id", entry.get("annotation_ids"))
    values = given.split() if isinstance(given, str) else given if isinstance(given, list) else [given]
    try:
        ids = {int(value) for value in values if isinstance(value, str | int) and not isinstance(value, bool)}
        if any(isinstance(value, str) and not re.fullmatch(r"-?\d+", value) for value in values):
            return None  # Python's int reads 1_0
    except ValueError:
        return None
    if not ids or len(ids) < len(values) or (-1 in ids and len(ids) > 1):
        return None
    return tuple(sorted(ids - {-1}))


# What an entry names


class NamedFiles:
    """The images, annotations and masks that entries name, each checked when an entry first names it.

    Raises:
        ReferringDataError: the instances file cannot be read.
        FileNotFoundError: it is not there, or a folder is not.
    """

    def __init__(self, image_root: str | Path, instances: str | Path | None, mask_root: str | Path):
        self.instances = instances
        self.images = ImageFolder(image_root)
        if not Path(mask_root).is_dir():
            raise FileNotFoundError(f"Masks are read from {mask_root}, which is not a folder. Pass mask_root=…")
        self.masks = ImageFolder(mask_root)
        records, self.annotations = ({}, {}) if instances is None else read_instances(Path(instances))
        self.file_names = {number: record["file_name"] for number, record in records.items()}
        self.records = {}  # file name → COCO's record of the image
        for record in records.values():
            name, number = record["file_name"], record["id"]
            if name in self.records or not is_id(number):
                raise ReferringDataError(
                    f"A COCO file's images have each another file_name, and an id of 64 bits, but one in {instances} "
                    f"has {name!r:.80} and {number!r:.40}. Correct the file."
                )
            self.records[name] = record
        self._unused_id = min([0, *records]) - 1  # below zero: no number of COCO's
        self.find_image = functools.cache(self.images.find)
        self.record = functools.cache(self.record)

    def row(self, name: str, target: str | tuple[int, ...], split: str, ref_id: int) -> dict:
        """A reference to `target` in the image `name`, without its image and sentences.

        `target` is the name of a mask or the numbers of annotations. Raises a ReferringDataError where something is
        not there, or is not as it should be.
        """
        image = self.record(name)
        is_mask = isinstance(target, str)
        objects = [self._mask(target, image)] if is_mask else [self._annotation(number, image) for number in target]
        row = row_without_image(ref_id=ref_id, split=split, image=image, annotations=objects, sentences=[])
        if objects and not is_mask and not area_of_mask(row["mask"]):
            raise ReferringDataError(
                f"annotation {' '.join(map(str, target))} covers no pixel of {name}: are its coordinates in pixels? "
                "Where nothing is meant, give annotation_id -1"
            )
        return row | {"ann_id": []} if is_mask else row  # a mask file has no annotation's number

    def contradictions(self, row: dict) -> Iterable[str]:
        """What is wrong with the annotations of a row whose masks contradict their `area` or `bbox`."""
        meant = [self.annotations[number] for number in row["ann_id"]]
        return contradictions(meant, row["height"], row["width"], row["mask"])

    def record(self, name: str) -> dict:
        """COCO's record of an image. Where the instances have none, it is made from the image itself."""
        path = self.find_image(name)
        if path is None:
            raise ReferringDataError(f"the image {name!r} is not in {self.images.root}")
        if name in self.records:
            record = self.records[name]
            check_image_size(path, record["height"], record["width"], name)
            return record
        height, width = image_size(path, name)
        self._unused_id -= 1
        return {"id": self._unused_id + 1, "file_name": name, "height": height, "width": width}

    def _annotation(self, number: int, image: dict) -> dict:
        if number not in self.annotations:
            there = "no instances file is given" if self.instances is None else f"it is not in {self.instances}"
            raise ReferringDataError(f"annotation {number} is named, but {there}")
        annotation = self.annotations[number]
        if annotation["image_id"] != image["id"]:
            other = self.file_names.get(annotation["image_id"]) if is_id(annotation["image_id"]) else None
            raise ReferringDataError(
                f"annotation {number} is of {other or 'no image'!r}, not of {image['file_name']!r}"
            )
        if not is_id(annotation["id"]) or not (annotation["category_id"] is None or is_id(annotation["category_id"])):
            raise ReferringDataError(
                f"an annotation's id and category_id are whole numbers, but those of annotation {number} are "
                f"{reprlib.repr(annotation['id'])} and {reprlib.repr(annotation['category_id'])}"
            )
        return annotation

    def _mask(self, name: str, image: dict) -> dict:
        """A mask file as an annotation."""
        path = self.masks.find(name)
        if path is None:
            raise ReferringDataError(f"the mask {name!r} is not in {self.masks.root}")
        size, expected = image_size(path, name), (image["height"], image["width"])
        if size != expected:
            raise ReferringDataError(
                f"a mask has its image's size, but {name} is {size} and the image {expected} (height, width)"
            )
        try:
            with Image.open(path) as opened:
                if opened.mode not in ("1", "L"):
                    raise ValueError(f"its mode is {opened.mode}. Save it as gray, Pillow's mode L, 255 on the object")
                mask = mask_array(opened, name) == 1
        except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
            raise ReferringDataError(f"a mask is a black and white image, but {name} is not: {error}") from error
        if not mask.any():
            raise ReferringDataError(f"the mask {name} is all black; where nothing is meant, give annotation_id -1")
        runs = encode_mask(mask)
        return {"id": name, "category_id": None, "bbox": coco_mask.toBbox(runs).tolist(), "segmentation": runs}


def is_id(value) -> bool:
    """Whether a value is a number of the schema: whole and of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
