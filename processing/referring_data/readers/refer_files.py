"""The official layouts: `refs(<split by>).p` as `lichengunc/refer`, `grefs(<split by>).json` as gRefCOCO, each beside
its `instances.json`."""

import logging
import reprlib
from collections.abc import Iterator
from pathlib import Path

import datasets

from m3dec.processing.referring_data.schema import ReferringDataError, area_of_mask

from .coco_records import in_order_of_splits, is_split_name, parse_json, read_instances, row_without_image
from .contradictions import contradictions, warn_of_contradictions
from .images import ImageFolder
from .plain_pickle import read_plain_pickle
from .published_counts import compare_with_published
from .tables import tables_by_split, warn_of_shared_images

logger = logging.getLogger(__name__)

LEFT_OUT_IMAGES = {"refclef": {19579, 17975, 19575}}  # the field's readers skip them
REF_FIELDS = {"ref_id": int, "ann_id": int | list, "image_id": int, "split": str, "sentences": list}


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
        image_root: the folder of the images; `root/dataset/images` where it is not given. COCO's train2014 and
            train2017 serve alike.
        on_missing: "error" where images are missing, or "skip" to leave out what refers to them.

    Returns:
        One table per split named in the refs file, in the order of the file. Images are kept as paths and decoded
        when a row is asked for; masks are the union of all parts of the object. Warnings are logged where the counts
        are not the published ones, and where training images are in another split too.

    Raises:
        FileNotFoundError: a file is not there.
        MissingImagesError: images are not there and on_missing is "error".
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
    refs, instances = folder / f"{kind}({split_by}){suffix}", folder / "instances.json"
    if not refs.is_file():
        there = sorted(path.name[len(kind) + 1 : -len(suffix) - 1] for path in folder.glob(f"{kind}(*){suffix}"))
        advice = f"Files there: split_by={there}." if there else "Is root (--data_root) the folder above?"
        raise FileNotFoundError(f"The references are read from {refs}, which does not exist. {advice}")
    if not instances.is_file():
        raise FileNotFoundError(f"Masks are read from {instances}, which does not exist. Put it beside {refs.name}.")
    images = ImageFolder(folder / "images" if image_root is None else image_root)
    settings = {"refs_path": str(refs), "instances_path": str(instances), "dataset": dataset}
    splits = tables_by_split(_rows, settings, [refs, instances], images, on_missing)
    if on_missing == "error":  # with images left out, counts differ anyway
        compare_with_published(splits, dataset, split_by)
    warn_of_shared_images(splits, f"{dataset} ({split_by})")
    return splits


def _rows(refs_path: str, instances_path: str, dataset: str) -> Iterator[dict]:
    """The rows of all references, split by split, in the order of the file."""
    refs = in_order_of_splits(read_refs(Path(refs_path)))
    images, annotations = read_instances(Path(instances_path))
    doubts = []
    for ref in refs:
        if ref["image_id"] in LEFT_OUT_IMAGES.get(dataset, ()):
            continue
        try:
            row = _row_of(ref, images, annotations)
        except ReferringDataError as error:
            raise ReferringDataError(f"{refs_path} with {instances_path}: {error}") from None
        if row["ann_id"] and not area_of_mask(row["mask"]):
            logger.warning(
                f"Reference {ref['ref_id']} of {instances_path} covers no pixel, so it will count as one that means "
                "nothing. Are its coordinates in pixels?"
            )
        meant = [annotations[number] for number in row["ann_id"]]
        doubts += contradictions(meant, row["height"], row["width"], row["mask"])
        yield row
    warn_of_contradictions(doubts, instances_path)


def _row_of(ref: dict, images: dict, annotations: dict) -> dict:
    """One reference without its image. file_name is that of instances.json: the one in the ref names no file."""
    image = _find(images, ref["image_id"], "image_id", ref)
    ann_ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    ann_ids = [ann_id for ann_id in ann_ids if ann_id != -1]  # gRefCOCO's [-1] is no target
    meant = [_find(annotations, ann_id, "ann_id", ref) for ann_id in ann_ids]
    for annotation in meant:
        if annotation["image_id"] != ref["image_id"]:
            raise ReferringDataError(
                f"A reference and its object are in one image, but reference {ref['ref_id']} is in {ref['image_id']} "
                f"and its annotation {annotation['id']} in {annotation['image_id']}. Take both files from one release."
            )
    sentences = ref["sentences"]
    return row_without_image(
        ref_id=ref["ref_id"], split=ref["split"], image=image, annotations=meant, sentences=sentences
    )


def _find(entries: dict, key, kind: str, ref: dict) -> dict:
    """The image or annotation that a reference points to."""
    if not isinstance(key, int) or key not in entries:
        raise ReferringDataError(
            f"Every reference must have its {kind} in instances.json, but {reprlib.repr(key)} of reference "
            f"{ref['ref_id']} is not there. Take both files from the same release."
        )
    return entries[key]


def read_refs(path: Path) -> list[dict]:
    """The references of a refs file, pickle (of Python 2 too) or JSON, with the fields that every one must have.

    Raises:
        UnsafePickleError: a pickle asks for more than plain data.
        ReferringDataError: the file is damaged, or not a list of references.
    """
    data = path.read_bytes()
    refs = read_plain_pickle(data, str(path)) if path.suffix == ".p" else parse_json(data, path)
    if not isinstance(refs, list) or not refs:
        kind = "an empty list" if refs == [] else type(refs).__name__
        raise ReferringDataError(f"A refs file is a list of references, but {path} holds {kind}. Fetch it again.")
    num_sentences = 0
    for number, ref in enumerate(refs):
        for name, kind in REF_FIELDS.items():
            if not isinstance(ref, dict) or not isinstance(ref.get(name), kind):
                there = f"{reprlib.repr(ref.get(name))} under it" if isinstance(ref, dict) and name in ref else "none"
                raise ReferringDataError(
                    f"Every reference has {', '.join(REF_FIELDS)}, but entry {number} of {path} lacks a good {name}: "
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
    if num_sentences > len(data):  # a hostile file can hold one list and refer to it from many references
        raise ReferringDataError(
            f"{path} has {len(data):,} bytes, but claims {num_sentences:,} sentences. Do not use the file."
        )
    return refs
