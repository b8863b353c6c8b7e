"""COCO's records, images and annotations, checked and made into rows of the schema. All readers of sources share it."""

import json
import re
import reprlib
from pathlib import Path

from m3dec.processing.referring_data.schema import ReferringDataError

from .segmentations import union_of_segmentations

MOST_LETTERS = 5_000  # of one sentence
SIZES = {"height": int, "width": int}  # field → its type


def row_without_image(*, ref_id: int, split: str, image: dict, annotations: list[dict], sentences: list[dict]) -> dict:
    """A row of `REFERRING_FEATURES` without "image", and with "split", from COCO's own records.

    Args:
        ref_id: of the reference.
        split: its split's name.
        image: {"id", "file_name", "height", "width"}.
        annotations: of what is meant, each {"id", "category_id", "bbox" (x, y, width, height), "segmentation"}; may be
            none.
        sentences: each {"sent_id", "sent", and "raw", "category" where there are any}.

    Raises:
        ReferringDataError: a record lacks something or a mask is not one of its image.
    """
    name = f"annotation {', '.join(str(annotation['id']) for annotation in annotations)}"
    categories = {annotation["category_id"] for annotation in annotations}
    segmentations = [annotation["segmentation"] for annotation in annotations]
    return {
        "image_id": image["id"],
        "ref_id": ref_id,
        "ann_id": [annotation["id"] for annotation in annotations],
        "category_id": categories.pop() if len(categories) == 1 else None,
        "file_name": image["file_name"],
        "height": image["height"],
        "width": image["width"],
        "bbox": _box_around([annotation["bbox"] for annotation in annotations], name),
        "sentences": [_sentence_of(sentence, ref_id) for sentence in sentences],
        "mask": union_of_segmentations(segmentations, image["height"], image["width"], name),
        "split": split,
    }


def _box_around(boxes: list, name: str) -> list[float]:
    """[x0, y0, x1, y1] around boxes [x, y, width, height]; [] around none."""
    numbers = [number for box in boxes for number in (box if isinstance(box, list) and len(box) == 4 else [None])]
    # A comparison with NaN is false; math.isfinite fails at a whole number of 400 digits.
    if not all(isinstance(number, int | float) and abs(number) < 2**31 for number in numbers):
        raise ReferringDataError(
            f"A bbox is [x, y, width, height], but {name} has {reprlib.repr(boxes)}. Correct the file."
        )
    corners = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    return [select(side) for select, side in zip((min, min, max, max), zip(*corners, strict=True), strict=False)]


def _sentence_of(sentence: dict, ref_id: int) -> dict:
    """A sentence of the schema. Where a file gives only one of `raw` and `sent`, it is taken for both."""
    sent, raw = sentence.get("sent", sentence.get("raw")), sentence.get("raw", sentence.get("sent"))
    if not isinstance(sent, str) or not isinstance(raw, str) or max(len(sent), len(raw)) > MOST_LETTERS:
        raise ReferringDataError(
            f"A sentence is text of at most {MOST_LETTERS:,} letters, but one of reference {ref_id} is "
            f"{reprlib.repr(sent)}. Correct or remove it."
        )
    return {"sent_id": sentence["sent_id"], "raw": raw, "sent": sent, "category": sentence.get("category")}


def is_split_name(name: str) -> bool:
    """Whether a split can have this name: prepare_data.py names files by it, and 🤗 Datasets keeps "all" for itself."""
    return re.fullmatch(r"\w+", name) is not None and name != "all"


def in_order_of_splits(entries: list[dict]) -> list[dict]:
    """The entries split by split, by their "split". Splits come in the order in which they first appear."""
    order = {split: number for number, split in enumerate(dict.fromkeys(entry["split"] for entry in entries))}
    return sorted(entries, key=lambda entry: order[entry["split"]])


def read_instances(path: Path, fields: tuple[str, ...] = ("category_id", "bbox")) -> tuple[dict, dict]:
    """Images and annotations of a COCO instances file, each by its id, with the fields that every one must have.

    Args:
        path: the file.
        fields: that an annotation must have besides its id, image_id and segmentation.

    Raises:
        ReferringDataError: the file is damaged or no instances file.
    """
    instances = parse_json(path.read_bytes(), path)
    needed = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("id", "image_id", *fields, "segmentation"),
    }
    found = {}
    for kind, fields in needed.items():
        entries, found[kind] = instances.get(kind) if isinstance(instances, dict) else None, {}
        if not isinstance(entries, list):
            raise ReferringDataError(f"A COCO instances file has a list of {kind}, but {path} has none.")
        for number, entry in enumerate(entries):
            check_record(entry, kind, fields, {"id": int, "file_name": str} | SIZES, f"number {number} in {path}")
            if found[kind].setdefault(entry["id"], entry) != entry:
                raise ReferringDataError(
                    f"All {kind} of a COCO file have different ids, but two in {path} have the id {entry['id']}. Give "
                    "new ids where files are put together."
                )
    return found["images"], found["annotations"]


def check_record(record, kind: str, fields: tuple[str, ...], types: dict[str, type], name: str) -> None:
    """Raise a ReferringDataError where a record lacks a field or has one of a wrong type.

    Args:
        record: one entry of a COCO file.
        kind: the name of its list, such as "annotations".
        fields: that it must have.
        types: field → its type, for the fields that must have one.
        name: what an error calls the record.
    """
    lacking = [field for field in fields if not isinstance(record, dict) or field not in record]
    if lacking:
        raise ReferringDataError(
            f"Every one of a COCO file's {kind} has {', '.join(fields)}, but {name} has no {', '.join(lacking)}. "
            "Correct the file."
        )
    wrong = [field for field in fields if not isinstance(record[field], types.get(field, object))]
    if wrong:
        raise ReferringDataError(
            f"A COCO file's ids and sizes are whole numbers and its file names text, but of its {kind} {name} has the "
            f"{wrong[0]} {reprlib.repr(record[wrong[0]])}. Correct the file."
        )


def parse_json(data: bytes, path: Path):
    """What a JSON file holds; a ReferringDataError where it is damaged."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ReferringDataError(f"{path} is not whole JSON: {error}. Fetch or write it again.") from error
