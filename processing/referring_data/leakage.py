"""Images that are trained on and tested on: RefCOCO, RefCOCO+ and RefCOCOg each drew splits from one pool."""

import logging
from pathlib import Path

import datasets

from m3dec.processing.referring_data.readers.published_counts import REPORTED
from m3dec.processing.referring_data.readers.refer_files import read_refs
from m3dec.processing.referring_data.readers.tables import image_ids

logger = logging.getLogger(__name__)


def held_out_images(root: str | Path) -> dict[str, set[int]]:
    """COCO's numbers of the images of every val and test split of RefCOCO, RefCOCO+ and RefCOCOg.

    Args:
        root: the folder of the official files; those of the three sets that it lacks are left out, with a warning. Only
            the refs files are needed.

    Returns:
        "refcoco (unc) val" → its images, and so on.
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
    """Of each held-out split, the images that `train` has too; splits that share none are left out."""
    trained_on = image_ids(train)
    return {split: shared for split, images in held_out.items() if (shared := images & trained_on)}
