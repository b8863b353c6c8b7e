"""A user's own data: a COCO instances file, and a list of {image, object, expression, split} in JSON, JSONL or CSV.

docs/data.md documents the files.
"""

import csv
import difflib
import functools
import io
import json
import logging
import re
import reprlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from m3dec.processing.images import mask_array
from m3dec.processing.referring_data.schema import ReferringDataError, decode_mask, encode_mask

from .pictures import PictureFolder, check_picture_size, picture_size
from .refer_files import MOST_LETTERS, is_split_name, read_instances, row_without_image, warn_of_shared_images
from .tables import tables_by_split

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

    Each entry of `expressions` has `image`, a picture's file name; `expression`; the object as `annotation_id`, a
    number, as `annotation_ids`, several (in CSV with spaces between), or as `mask`, the file name of a black and white
    picture; and, if wanted, `split` ("train" where it is not given) and `category`, the kind of expression. Where the
    expression means nothing in the picture, annotation_id is -1. Entries of one object in one split are one reference.

    Args:
        expressions: a .json list, a .jsonl file or a .csv file, in UTF-8.
        image_root: the folder of the pictures.
        instances: a COCO file with `images` and `annotations`; not needed where every object is a mask.
        mask_root: the folder of the masks; that of `expressions` where it is not given.
        on_missing: "error" where pictures are missing, or "skip" to leave out what refers to them.

    Returns:
        One table per split. Warnings are logged where one expression means two objects of a picture, and where training
        pictures stand in another split.

    Raises:
        ReferringDataError: something is wrong; the message lists it by line. `find_faults` gives the whole list.
        FileNotFoundError: a file or folder is not there.
    """
    rows, faults = examine(expressions, image_root, instances, mask_root, on_missing)
    if faults:
        listed = "\n".join(map(str, faults[:LISTED]))
        more = f"\nand {len(faults) - LISTED} more: find_faults lists them all" if len(faults) > LISTED else ""
        raise ReferringDataError(f"{len(faults)} fault{'s' * (len(faults) > 1)} in {expressions}:\n{listed}{more}")
    # The rows say themselves whether tables made before are still right: they depend on the pictures too.
    settings = {"rows": tuple(rows)}
    splits = tables_by_split(lambda rows: iter(rows), settings, [], PictureFolder(image_root), on_missing)
    warn_of_shared_images(splits, str(expressions))
    return splits


def find_faults(
    expressions: str | Path,
    image_root: str | Path,
    instances: str | Path | None = None,
    mask_root: str | Path | None = None,
    on_missing: str = "error",
) -> list[Fault]:
    """Everything that is wrong with a user's files, by line; nothing where `read_coco_files` will read them.

    An entry's fields come first: the files they name are looked at once the fields are right.

    Raises:
        ReferringDataError: the instances file cannot be read at all.
        FileNotFoundError: a file or folder is not there.
    """
    return examine(expressions, image_root, instances, mask_root, on_missing)[1]


def examine(expressions, image_root, instances, mask_root, on_missing) -> tuple[list[dict], list[Fault]]:
    """The rows of all references, split by split, without their pictures; and what is wrong, instead of stopping at it.

    Arguments as of `read_coco_files`.
    """
    entries = list(read_entries(Path(expressions)))
    files = NamedFiles(image_root, instances, Path(expressions).parent if mask_root is None else mask_root)
    files.pictures.find_all([], on_missing)  # refuses another on_missing
    faults, missing = [], set()
    references = {}  # (picture, object, split) → its row
    meanings = defaultdict(dict)  # (picture, expression) → object → line
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
            if on_missing == "skip" and files.find_picture(name) is None:
                missing.add(name)
                continue
            if (name, target, split) not in references:
                references[name, target, split] = files.row(name, target, split, ref_id=len(references))
        except ReferringDataError as error:
            faults.append(Fault(line, str(error)))
            continue
        sentence = {"sent_id": number, "raw": text, "sent": text.lower(), "category": entry.get("category")}
        references[name, target, split]["sentences"].append(sentence)
        meanings[name, text.lower()].setdefault(target, line)
    if missing:
        files.pictures.find_all(missing.union(name for name, _, _ in references), on_missing)  # logs them
    if not references and not faults:
        reason = f"no entry's picture is in {files.pictures.root}" if missing else "there is no entry in the file"
        faults.append(Fault(1, reason))
    warn_of_two_meanings([list(lines.values()) for lines in meanings.values() if len(lines) > 1], expressions)
    order = {split: number for number, split in enumerate(dict.fromkeys(split for _, _, split in references))}
    return sorted(references.values(), key=lambda row: order[row["split"]]), faults


def warn_of_two_meanings(lines: list[list[int]], expressions: str | Path) -> None:
    """Log which lines give one expression to several objects of a picture: nobody can tell from it which is meant."""
    if lines:
        listed = "; ".join("lines " + " and ".join(map(str, together[:LISTED])) for together in lines[:LISTED])
        logger.warning(
            "%d expressions of %s mean different objects of one picture: %s%s. Say more of each object, or name "
            "them together by annotation_ids.",
            len(lines),
            expressions,
            listed,
            "; …" if len(lines) > LISTED else "",
        )


# The file of expressions


def read_entries(path: Path) -> Iterator[tuple[int, object]]:
    """Each entry of a .json, .jsonl or .csv file with the line where it begins; an error in place of what is no entry.

    Raises:
        ReferringDataError: another kind of file.
        FileNotFoundError: no file.
    """
    kinds = {".json": _entries_of_list, ".jsonl": _entries_of_lines, ".csv": _entries_of_csv}
    if path.suffix.lower() not in kinds:
        raise ReferringDataError(f"Expressions are in a {', '.join(kinds)} file, but {path} is none of them.")
    if not path.is_file():
        raise FileNotFoundError(f"Expressions are read from {path}, which is no file.")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield line, ReferringDataError(f"{path} is not in UTF-8. Save it so; Excel calls it “CSV UTF-8”.")
        return
    yield from kinds[path.suffix.lower()](text)


def _entries_of_csv(text: str) -> Iterator[tuple[int, dict | ReferringDataError]]:
    first = text.lstrip().partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","  # as Excel writes where 1,5 is a number
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    names, line = None, 1
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, ReferringDataError(f"this is no CSV: {error}. Is a quotation mark left open?")
            row = []
        if row and names is None:
            names = tuple(row)
            if wrong := wrong_names(names):
                yield from ((line, ReferringDataError(message)) for message in wrong)
                return
        elif row and not any(row):
            pass  # Excel leaves lines of commas
        elif row and len(row) != len(names):
            message = f"every line has the {len(names)} fields of the first, but here are {len(row)}. "
            message += f"A text with a {delimiter!r} in it stands in quotation marks."
            yield line, ReferringDataError(message)
        elif row:
            yield line, dict(zip(names, row, strict=True))
        line = rows.line_num + 1


def _entries_of_lines(text: str) -> Iterator[tuple[int, object]]:
    for line, row in enumerate(text.split("\n"), start=1):  # splitlines would split at letters that JSON allows
        if row.strip():
            try:
                yield line, json.loads(row)
            except json.JSONDecodeError as error:
                yield line, ReferringDataError(f"this is no JSON: {error.msg} at letter {error.colno}")
            except (ValueError, RecursionError) as error:
                yield line, ReferringDataError(f"this is no JSON: {error}")


def _entries_of_list(text: str) -> Iterator[tuple[int, object]]:
    """The entries of a JSON list one by one, so that each has its line."""
    decode, blanks = json.JSONDecoder().raw_decode, re.compile(r"[ \t\n]*")
    place = counted = blanks.match(text).end()
    line = 1 + text.count("\n", 0, place)
    if text[place : place + 1] != "[":
        yield line, ReferringDataError("the file is no JSON list: it begins with [ and has entries { } in it")
        return
    if re.fullmatch(r"\[\s*\]\s*", text[place:]):
        return
    while text[place : place + 1] in ("[", ","):
        place = blanks.match(text, place + 1).end()
        line, counted = line + text.count("\n", counted, place), place
        try:
            entry, place = decode(text, place)
        except (ValueError, RecursionError) as error:
            yield line, ReferringDataError(f"this is no JSON from here on: {error}")
            return
        yield line, entry
        place = blanks.match(text, place).end()
    if text[place:].rstrip() != "]":
        line += text.count("\n", counted, place)
        message = "this is no JSON from here on: a comma between entries, or ] at the end, is not there"
        yield line, ReferringDataError(message)


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
    """The pictures, annotations and masks that entries name, each checked when an entry first names it.

    Raises:
        ReferringDataError: the instances file cannot be read.
        FileNotFoundError: it is not there, or a folder is not.
    """

    def __init__(self, image_root: str | Path, instances: str | Path | None, mask_root: str | Path):
        self.instances = instances
        self.pictures = PictureFolder(image_root)
        if not Path(mask_root).is_dir():
            raise FileNotFoundError(f"Masks are read from {mask_root}, which is not a folder. Pass mask_root=…")
        self.masks = PictureFolder(mask_root)
        images, self.annotations = ({}, {}) if instances is None else read_instances(Path(instances))
        self.file_names = {number: image["file_name"] for number, image in images.items()}
        self.images = {}
        for image in images.values():
            name, number = image["file_name"], image["id"]
            if name in self.images or not is_id(number):
                raise ReferringDataError(
                    f"A COCO file's images have each another file_name, and an id of 64 bits, but one in {instances} "
                    f"has {name!r:.80} and {number!r:.40}. Correct the file."
                )
            self.images[name] = image
        self._unused_id = min([0, *images]) - 1  # below zero: no number of COCO's
        self.find_picture = functools.cache(self.pictures.find)
        self.image = functools.cache(self.image)

    def row(self, name: str, target: str | tuple[int, ...], split: str, ref_id: int) -> dict:
        """A reference without its picture and sentences.

        Args:
            name: the picture's.
            target: what is meant in it, the name of a mask or the numbers of annotations.
            split: the reference's.
            ref_id: the reference's.

        Raises:
            ReferringDataError: something is not there, or is not as it should be.
        """
        image = self.image(name)
        is_mask = isinstance(target, str)
        objects = [self._mask(target, image)] if is_mask else [self._annotation(number, image) for number in target]
        row = row_without_image(ref_id=ref_id, split=split, image=image, annotations=objects, sentences=[])
        if objects and not is_mask and not decode_mask(row["mask"]).any():
            raise ReferringDataError(
                f"annotation {' '.join(map(str, target))} covers no pixel of {name}: are its coordinates in pixels? "
                "Where nothing is meant, give annotation_id -1"
            )
        return row | {"ann_id": []} if is_mask else row  # a mask is no annotation, though it was made one

    def image(self, name: str) -> dict:
        """COCO's record of a picture, or where the instances have none one made from the picture itself."""
        path = self.find_picture(name)
        if path is None:
            raise ReferringDataError(f"the picture {name!r} is not in {self.pictures.root}")
        if name in self.images:
            image = self.images[name]
            check_picture_size(path, image["height"], image["width"], name)
            return image
        height, width = picture_size(path, name)
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
        size, expected = picture_size(path, name), (image["height"], image["width"])
        if size != expected:
            raise ReferringDataError(
                f"a mask has its picture's size, but {name} is {size} and the picture {expected} (height, width)"
            )
        try:
            with Image.open(path) as opened:
                if opened.mode not in ("1", "L"):
                    raise ValueError(f"its mode is {opened.mode}. Save it as gray, Pillow's mode L, 255 on the object")
                mask = mask_array(opened, name) == 1
        except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
            raise ReferringDataError(f"a mask is a black and white picture, but {name} is not: {error}") from error
        if not mask.any():
            raise ReferringDataError(f"the mask {name} is all black; where nothing is meant, give annotation_id -1")
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = float(columns[0]), float(rows[0])
        box = [left, top, float(columns[-1]) + 1 - left, float(rows[-1]) + 1 - top]
        return {"id": name, "category_id": None, "bbox": box, "segmentation": encode_mask(mask)}


def is_id(value) -> bool:
    """Whether a value is a number of the schema: whole and of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
