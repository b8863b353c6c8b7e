"""Pictures that are trained on and tested on: RefCOCO, RefCOCO+ and RefCOCOg drew their splits apart, from one pool."""

import logging
from pathlib import Path

import datasets

from .refer_files import read_refs
from .sampling import references_by_image
from .schema import ReferringDataError
from .tables import bytes_of, image_ids, undecoded_pictures

logger = logging.getLogger(__name__)

# The splits that papers report. Those of RefCOCOg by Google share pictures with their own training split.
REPORTED = (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))


def held_out_images(root: str | Path) -> dict[str, set[int]]:
    """COCO's numbers of the pictures of every val and test split of RefCOCO, RefCOCO+ and RefCOCOg.

    Args:
        root: the folder of the official files; those of the three sets that it lacks are left out, with a warning. Only
            the refs files are needed.

    Returns:
        "refcoco (unc) val" → its pictures, and so on.
    """
    images, unknown = {}, []
    for dataset, split_by in REPORTED:
        path = Path(root) / dataset / f"refs({split_by}).p"
        if not path.is_file():
            unknown.append(f"{dataset}/{path.name}")
            continue
        for ref in read_refs(path):
            if ref["split"] != "train":
                images.setdefault(f"{dataset} ({split_by}) {ref['split']}", set()).add(ref["image_id"])
    if unknown:
        logger.warning("Not below %s, so what they hold out is not known: %s.", root, ", ".join(unknown))
    return images


def find_leaks(train: datasets.Dataset, held_out: dict[str, set[int]]) -> dict[str, set[int]]:
    """Of each held-out split, the pictures that `train` has too; splits that share none are left out."""
    trained_on = image_ids(train)
    return {split: shared for split, images in held_out.items() if (shared := images & trained_on)}


def without_leaks(train: datasets.Dataset, held_out: dict[str, set[int]]) -> datasets.Dataset:
    """The rows of `train` whose pictures no held-out split has; how many pictures went is logged."""
    leaks = set().union(*find_leaks(train, held_out).values())
    if not leaks:
        return train
    numbers = train.with_format("arrow")[:]["image_id"].to_pylist()
    kept = [row for row, image_id in enumerate(numbers) if image_id not in leaks]
    logger.warning(
        "%d training pictures with %d references are left out: they stand in a val or test split.",
        len(leaks),
        len(train) - len(kept),
    )
    return train.select(kept)


def same_picture(table: datasets.Dataset, row: int, other: datasets.Dataset, other_row: int) -> bool:
    """Whether two rows have the same picture, to the byte."""
    pictures = (undecoded_pictures(table)[row]["image"], undecoded_pictures(other)[other_row]["image"])
    return len({bytes_of(picture) for picture in pictures}) == 1


def mixed_training_set(sets: list[datasets.DatasetDict]) -> datasets.Dataset:
    """The training splits of several sets as one, without a picture that any of them holds out.

    Args:
        sets: each with "train" and the splits it is measured on; all of pictures with COCO's own numbers.

    Raises:
        ReferringDataError: a set has no training split, or a number means different pictures in two sets, as it does
            where each set counts its own.
    """
    pictures, held_out = {}, {}  # image_id → file name, set, and a row with it; split → its pictures
    for number, splits in enumerate(sets):
        if "train" not in splits:
            raise ReferringDataError(f"A set to train on has a split 'train', but one has {', '.join(splits)} only.")
        for split, table in splits.items():
            for (image_id, name), rows in references_by_image(table).items():
                name = name.removeprefix("COCO_train2014_")
                before, first, *where = pictures.setdefault(image_id, (name, number, table, rows[0]))
                known = first == number or Path(name).stem.endswith(f"{image_id:012d}")  # its own, or COCO's
                if name != before or not (known or same_picture(*where, table, rows[0])):
                    raise ReferringDataError(
                        f"Sets are mixed by COCO's numbers of pictures, but {image_id} is {before!r} in one and "
                        f"{name!r}, another picture, in another. Mix sets of COCO's pictures, such as RefCOCO, "
                        "RefCOCO+ and RefCOCOg."
                    )
            if split != "train":
                held_out[f"{split} of set {number + 1}"] = image_ids(table)
    return datasets.concatenate_datasets([without_leaks(splits["train"], held_out) for splits in sets])
