"""The official layouts: `refs(<split by>).p` as `lichengunc/refer`, `grefs(<split by>).json` as gRefCOCO, each beside
its `instances.json`."""

import json
import logging
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path

import datasets
from pycocotools import mask as coco_mask

from m3dec.processing.referring_data.schema import ReferringDataError

from .pictures import PictureFolder
from .plain_pickle import read_plain_pickle
from .published_counts import compare_with_published
from .segmentations import union_of_segmentations
from .tables import image_ids, tables_by_split

logger = logging.getLogger(__name__)

MOST_LETTERS = 5_000  # of one sentence
LEFT_OUT_IMAGES = {"refclef": {19579, 17975, 19575}}  # the field's readers skip them


def read_refer_files(
    root: str | Path,
    dataset: str,
    split_by: str,
    image_root: str | Path | None = None,
    on_missing: str = "error",
) -> datasets.DatasetDict:
    """Read `root/dataset/refs(split_by).p` and `root/dataset/instances.json`.

    Args:
        root: the folder that holds one folder per data set.
        dataset: that folder's name: "refcoco", "refcoco+", "refcocog", "refclef", "scenes".
        split_by: who made the splits, the name in the parentheses: "unc", "umd", "google", "berkeley", "scenes".
        image_root: the folder of the pictures; `root/dataset/images` where it is not given. COCO's train2014 and
            train2017 serve alike.
        on_missing: "error" where pictures are missing, or "skip" to leave out what refers to them.

    Returns:
        One table per split named in the refs file, in the order of the file. Pictures are kept as paths and decoded
        when a row is asked for; masks are the union of all parts of the object. Warnings are logged where the counts
        are not the published ones, and where training pictures stand in another split.

    Raises:
        FileNotFoundError: a file is not there.
        MissingPicturesError: pictures are not there and on_missing is "error".
        UnsafePickleError: the refs file asks for more than plain data.
        ReferringDataError: a file is damaged, or the files contradict each other.
    """
    return _read(root, dataset, split_by, image_root, on_missing, "refs", ".p")


def read_grefcoco_files(
    root: str | Path,
    dataset: str = "grefcoco",
    split_by: str = "unc",
    image_root: str | Path | None = None,
    on_missing: str = "error",
) -> datasets.DatasetDict:
    """Read gRefCOCO: `root/dataset/grefs(split_by).json` and its own `root/dataset/instances.json`.

    A reference may mean several objects, whose masks are united, or nothing: an empty mask, no ann_id, no bbox.
    Arguments, returns and errors are those of `read_refer_files`.
    """
    return _read(root, dataset, split_by, image_root, on_missing, "grefs", ".json")


def _read(root, dataset, split_by, image_root, on_missing, kind, suffix) -> datasets.DatasetDict:
    folder = Path(root) / dataset
    refs_path, instances_path = folder / f"{kind}({split_by}){suffix}", folder / "instances.json"
    if not refs_path.is_file():
        there = sorted(path.name[len(kind) + 1 : -len(suffix) - 1] for path in folder.glob(f"{kind}(*){suffix}"))
        advice = f"Files there: split_by={there}." if there else "There is none; is root the folder above the data set?"
        raise FileNotFoundError(f"The references are read from {refs_path}, which does not exist. {advice}")
    if not instances_path.is_file():
        raise FileNotFoundError(
            f"Masks are read from {instances_path}, which does not exist. Put it beside {refs_path.name}."
        )
    pictures = PictureFolder(folder / "images" if image_root is None else image_root)
    splits = tables_by_split(
        _rows,
        {"refs_path": str(refs_path), "instances_path": str(instances_path), "dataset": dataset},
        [refs_path, instances_path],
        pictures,
        on_missing,
    )
    if on_missing == "error":  # with pictures left out, counts differ anyway
        compare_with_published(splits, dataset, split_by)
    warn_of_shared_images(splits, f"{dataset} ({split_by})")
    return splits


def is_split_name(name: str) -> bool:
    """Whether a split can be called so: prepare_data.py names files by it, and "all" means every one to 🤗 Datasets."""
    return re.fullmatch(r"\w+", name) is not None and name != "all"


def warn_of_shared_images(splits: datasets.DatasetDict, name: str) -> None:
    """Log a warning for each split that shares pictures with "train", as RefCOCOg's splits by Google do."""
    images = {split: image_ids(table) for split, table in splits.items()}
    for split, ids in images.items():
        shared = ids & images.get("train", set()) if split != "train" else ()
        if shared:
            logger.warning(
                "%d pictures of %s %s stand in train as well: figures on it are not of unseen pictures.",
                len(shared),
                name,
                split,
            )


def _rows(refs_path: str, instances_path: str, dataset: str) -> Iterator[dict]:
    """The rows of all references, split by split, in the order of the file."""
    refs = read_refs(Path(refs_path))
    images, annotations = read_instances(Path(instances_path))
    left_out = LEFT_OUT_IMAGES.get(dataset, ())
    order = {split: number for number, split in enumerate(dict.fromkeys(ref["split"] for ref in refs))}
    for ref in sorted(refs, key=lambda ref: order[ref["split"]]):
        if ref["image_id"] in left_out:
            continue
        try:
            row = row_of(ref, images, annotations, instances_path)
        except ReferringDataError as error:
            raise ReferringDataError(f"{refs_path} with {instances_path}: {error}") from None
        yield row


def row_of(ref: dict, images: dict, annotations: dict, instances_path: str | Path) -> dict:
    """One reference without its picture, whose name is the one in instances.json: the ref's own is no file's. One that
    covers no pixel is warned of."""
    image = _find(images, ref["image_id"], "image_id", ref, instances_path)
    ann_ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    ann_ids = [ann_id for ann_id in ann_ids if ann_id != -1]  # gRefCOCO's [-1] is no target
    meant = [_find(annotations, ann_id, "ann_id", ref, instances_path) for ann_id in ann_ids]
    for annotation in meant:
        if annotation["image_id"] != ref["image_id"]:
            raise ReferringDataError(
                f"A reference and its object are in one image, but reference {ref['ref_id']} is in {ref['image_id']} "
                f"and its annotation {annotation['id']} in {annotation['image_id']}. Take both files from one release."
            )
    row = row_without_image(
        ref_id=ref["ref_id"],
        split=ref["split"],
        image=image,
        annotations=meant,
        sentences=ref["sentences"],
    )
    if meant and not coco_mask.area(row["mask"]):
        logger.warning(
            "Reference %d of %s covers no pixel, so it will count as one that means nothing. Are its coordinates in "
            "pixels?",
            ref["ref_id"],
            instances_path,
        )
    return row


def row_without_image(*, ref_id: int, split: str, image: dict, annotations: list[dict], sentences: list[dict]) -> dict:
    """A row of `REFERRING_FEATURES` but for "image", and with "split", from COCO's own records.

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
    return {
        "image_id": image["id"],
        "ref_id": ref_id,
        "ann_id": [annotation["id"] for annotation in annotations],
        "category_id": categories.pop() if len(categories) == 1 else None,
        "file_name": image["file_name"],
        "height": image["height"],
        "width": image["width"],
        "bbox": box_around([annotation["bbox"] for annotation in annotations], name),
        "sentences": [sentence_of(sentence, ref_id) for sentence in sentences],
        "mask": union_of_segmentations(
            [annotation["segmentation"] for annotation in annotations], image["height"], image["width"], name
        ),
        "split": split,
    }


def box_around(boxes: list, name: str) -> list[float]:
    """[x0, y0, x1, y1] around boxes [x, y, width, height]; [] around none."""
    numbers = [number for box in boxes for number in (box if isinstance(box, list) and len(box) == 4 else [None])]
    # A comparison with NaN is false; math.isfinite fails at a whole number of 400 digits.
    if not all(isinstance(number, int | float) and abs(number) < 2**31 for number in numbers):
        raise ReferringDataError(
            f"A bbox is [x, y, width, height], but {name} has {reprlib.repr(boxes)}. Correct the file."
        )
    corners = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    return [select(side) for select, side in zip((min, min, max, max), zip(*corners, strict=True), strict=False)]


def sentence_of(sentence: dict, ref_id: int) -> dict:
    """A sentence of the schema; where the files give no `raw` form, or no `sent`, it is the other one."""
    sent, raw = sentence.get("sent", sentence.get("raw")), sentence.get("raw", sentence.get("sent"))
    if not isinstance(sent, str) or not isinstance(raw, str) or max(len(sent), len(raw)) > MOST_LETTERS:
        raise ReferringDataError(
            f"A sentence is text of at most {MOST_LETTERS:,} letters, but one of reference {ref_id} is "
            f"{reprlib.repr(sent)}. Correct or remove it."
        )
    return {"sent_id": sentence["sent_id"], "raw": raw, "sent": sent, "category": sentence.get("category")}


def read_refs(path: Path) -> list[dict]:
    """The references of a refs file, pickle (of Python 2 too) or JSON, with the fields that every one must have.

    Raises:
        UnsafePickleError: a pickle asks for more than plain data.
        ReferringDataError: the file is damaged, or not a list of references.
    """
    data = path.read_bytes()
    refs = read_plain_pickle(data, str(path)) if path.suffix == ".p" else _parse_json(data, path)
    kinds = {"ref_id": int, "ann_id": int | list, "image_id": int, "split": str, "sentences": list}
    if not isinstance(refs, list) or not refs:
        kind = "an empty list" if refs == [] else type(refs).__name__
        raise ReferringDataError(f"A refs file is a list of references, but {path} holds {kind}. Fetch it again.")
    num_sentences = 0
    for number, ref in enumerate(refs):
        for name, kind in kinds.items():
            if not isinstance(ref, dict) or not isinstance(ref.get(name), kind):
                there = f"{reprlib.repr(ref.get(name))} under it" if isinstance(ref, dict) and name in ref else "none"
                raise ReferringDataError(
                    f"Every reference has {', '.join(kinds)}, but entry {number} of {path} lacks a good {name}: "
                    f"{there}. Is it the refs file of the data set?"
                )
        if not is_split_name(ref["split"]):
            raise ReferringDataError(
                f"A split's name is letters and digits, and not 'all', but entry {number} of {path} has "
                f"{ref['split']!r:.60}."
            )
        if not all(isinstance(sentence, dict) and "sent_id" in sentence for sentence in ref["sentences"]):
            raise ReferringDataError(
                f"Every sentence has a sent_id, but one of reference {ref['ref_id']} in {path} has none."
            )
        num_sentences += len(ref["sentences"])
    if num_sentences > len(data):  # one list of sentences remembered and put into many references
        raise ReferringDataError(
            f"{path} has {len(data):,} bytes, but claims {num_sentences:,} sentences. Do not use the file."
        )
    return refs


def read_instances(path: Path) -> tuple[dict, dict]:
    """Images and annotations of a COCO instances file, each by its id, with the fields that every one must have.

    Raises:
        ReferringDataError: the file is damaged or no instances file.
    """
    instances = _parse_json(path.read_bytes(), path)
    needed = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("id", "image_id", "category_id", "bbox", "segmentation"),
    }
    kinds = {"id": int, "file_name": str}
    for kind, fields in needed.items():
        entries = instances.get(kind) if isinstance(instances, dict) else None
        if not isinstance(entries, list):
            raise ReferringDataError(f"A COCO instances file has a list of {kind}, but {path} has none.")
        for number, entry in enumerate(entries):
            lacking = [name for name in fields if not isinstance(entry, dict) or name not in entry]
            if lacking:
                raise ReferringDataError(
                    f"Every one of a COCO file's {kind} has {', '.join(fields)}, but number {number} in {path} has no "
                    f"{', '.join(lacking)}. Correct the file."
                )
            wrong = [name for name in fields if not isinstance(entry[name], kinds.get(name, object))]
            if wrong:
                raise ReferringDataError(
                    f"A COCO file's ids are whole numbers and its file names text, but number {number} of the {kind} "
                    f"in {path} has the {wrong[0]} {reprlib.repr(entry[wrong[0]])}. Correct the file."
                )
    return tuple(_by_id(instances[kind], kind, path) for kind in needed)


def _by_id(entries: list[dict], kind: str, path: Path) -> dict[int, dict]:
    found = {}
    for entry in entries:
        if found.setdefault(entry["id"], entry) != entry:
            raise ReferringDataError(
                f"A COCO file's {kind} have each another id, but two in {path} have {entry['id']}. Number them anew "
                "where files are put together."
            )
    return found


def _parse_json(data: bytes, path: Path):
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ReferringDataError(f"{path} is not whole JSON: {error}. Fetch or write it again.") from error


def _find(entries: dict, key, kind: str, ref: dict, instances_path: str | Path) -> dict:
    """The image or annotation a reference points to."""
    if not isinstance(key, int) or key not in entries:
        raise ReferringDataError(
            f"Every reference must have its {kind} in instances.json, but {reprlib.repr(key)} of reference "
            f"{ref['ref_id']} is not in {instances_path}. Take both files from the same release."
        )
    return entries[key]
