"""One row per reference: the table every reader of this folder returns, whatever its files look like."""

import math

import datasets
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from m3dec.processing.referring_iou.run_lengths import decode_counts, fill, mask_of

REFERRING_FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "image_id": datasets.Value("int64"),
        "ref_id": datasets.Value("int64"),
        "ann_id": datasets.List(datasets.Value("int64")),  # several where several objects are meant, none where nothing
        "category_id": datasets.Value("int64"),  # null where nothing is meant, or objects of several categories
        "file_name": datasets.Value("string"),
        "height": datasets.Value("int32"),
        "width": datasets.Value("int32"),
        "bbox": datasets.List(datasets.Value("float32")),  # x0, y0, x1, y1 in pixels; empty where nothing is meant
        "sentences": datasets.List(
            {
                "sent_id": datasets.Value("int64"),
                "raw": datasets.Value("string"),
                "sent": datasets.Value("string"),
                "category": datasets.Value("string"),  # the kind of expression, null where the files do not say
            }
        ),
        # COCO's compressed run lengths, the union of all parts of all objects meant.
        "mask": {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")},
    }
)


class ReferringDataError(ValueError):
    """A file of a referring data set is damaged, contradicts itself or another, or is not what it was taken for."""


def decode_mask(mask: dict) -> np.ndarray:
    """Unpack a row's `mask`, `{"size": [height, width], "counts": str}`, into a bool array (height, width).

    Raises:
        ReferringDataError: the runs do not fill that size; pycocotools would show what the memory held before. Or the
            size is more than any image has that Pillow opens; it is refused before memory is taken.
    """
    if math.prod(mask["size"]) > 2 * Image.MAX_IMAGE_PIXELS:
        raise ReferringDataError(
            f"A mask has at most {2 * Image.MAX_IMAGE_PIXELS:,} pixels, as an image that Pillow opens, but one claims "
            f"{list(mask['size'])} (height, width). Prepare or fetch the data again."
        )
    return mask_of(_runs_of(mask), *mask["size"])


def area_of_mask(mask: dict) -> int:
    """How many pixels a row's `mask` has; errors as of `decode_mask`."""
    return int(_runs_of(mask)[1::2].sum())


def _runs_of(mask: dict) -> np.ndarray:
    """The lengths of a mask's runs, int64, by turns outside and on the object."""
    size, runs = mask["size"], decode_counts(mask["counts"])
    if runs is None or not fill(runs, math.prod(size)):
        raise ReferringDataError(
            f"The runs of a mask fill its size, but those of one do not, of {list(size)} (height, width): "
            f"{mask['counts']!r:.80}. Prepare or fetch the data again."
        )
    return runs


def encode_mask(mask: np.ndarray) -> dict:
    """Pack a bool array (height, width) into `{"size": [height, width], "counts": str}`."""
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}
