"""COCO's segmentations, polygons and run lengths of both kinds, to one compressed mask.

Everything is checked before pycocotools gets it. Its C code accepts run lengths that do not fill their image. It ends a
union too early where two masks have an empty run at one place, and writes past its memory where they have many. And it
takes as much memory for a polygon as its outline is long.
"""

import reprlib

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from m3dec.processing.referring_data.schema import ReferringDataError
from m3dec.processing.referring_iou.run_lengths import decode_counts, fill

MOST_OUTLINE = 1_000_000  # pixels along a polygon; an object that fills a 640 x 480 image has some 3,000


def union_of_segmentations(segmentations: list, height: int, width: int, name: str) -> dict:
    """One mask of all pixels of any of `segmentations`; of none, the empty mask.

    Args:
        segmentations: each a list of polygons [x, y, x, y, …] in pixels, or run lengths {"size": [height, width],
            "counts": list of int, or COCO's compressed str}.
        height: of the image, in pixels.
        width: of the image, in pixels.
        name: what an error calls them.

    Returns:
        {"size": [height, width], "counts": str}: COCO's compressed run lengths.

    Raises:
        ReferringDataError: run lengths that are negative, do not fill the image or have another size; a polygon of
            fewer than three points, of an odd number of coordinates, or with one that is no number or far outside;
            an image size that no image has.
    """
    check_size(height, width, name)
    parts = [runs for one in segmentations for runs in _parts(one, height, width, name)]
    if not parts:
        parts = [coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)]
    merged = parts[0] if len(parts) == 1 else coco_mask.merge(parts)
    counts = merged["counts"]
    return {"size": [height, width], "counts": counts if isinstance(counts, str) else counts.decode("ascii")}


def check_size(height, width, name: str) -> None:
    """Refuse what is no image size, or one that Pillow would refuse as well."""
    whole = all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in (height, width))
    if not whole or height < 1 or width < 1 or height * width > 2 * Image.MAX_IMAGE_PIXELS:
        raise ReferringDataError(
            f"An image has a height and a width of at least one pixel and at most {2 * Image.MAX_IMAGE_PIXELS:,} "
            f"pixels in all, but {name} has {reprlib.repr(height)} x {reprlib.repr(width)} (height x width). Correct "
            "the file."
        )


def _parts(segmentation, height: int, width: int, name: str) -> list[dict]:
    if isinstance(segmentation, dict):
        return [_run_lengths(segmentation, height, width, name)]
    # A part of one or two points has no area, and pycocotools would take four numbers for a box.
    polygons = segmentation if isinstance(segmentation, list) else []
    polygons = [part for part in polygons if not isinstance(part, list) or len(part) >= 6]
    if not polygons:
        raise ReferringDataError(
            f"An object has a polygon, a list x, y, x, y, … of at least three points, but {name} has "
            f"{reprlib.repr(segmentation)}. Correct or remove it."
        )
    return coco_mask.frPyObjects([_polygon(part, height, width, name) for part in polygons], height, width)


def _polygon(part, height: int, width: int, name: str) -> list[float]:
    points = _as_numbers(part)
    far = 10 * max(height, width)
    if points is None or len(points) % 2 or len(points) < 6 or not (np.abs(points) <= far).all():  # NaN is not <=
        raise ReferringDataError(
            f"A polygon is a list x, y, x, y, … of at least three points in pixels, none further away than ten times "
            f"the image's longer side ({far}), but {name} has {reprlib.repr(part)}. Correct or remove it."
        )
    corners = points.reshape(-1, 2)
    outline = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()
    if outline > MOST_OUTLINE:
        raise ReferringDataError(
            f"A polygon's outline is at most {MOST_OUTLINE:,} pixels long, but {name} has one of {outline:,.0f}. "
            "Correct or remove it."
        )
    return part


def _run_lengths(segmentation: dict, height: int, width: int, name: str) -> dict:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ReferringDataError(
            f"A mask has the size of its image, but {name} is {reprlib.repr(size)} and its image {[height, width]} "
            "(height, width). Correct the sizes."
        )
    runs = decode_counts(counts) if isinstance(counts, str | bytes) else _as_runs(counts)
    area = height * width
    if runs is None or not fill(runs, area):
        arrived = "no such list" if runs is None else f"{len(runs)} runs that sum to {sum(runs.tolist())}"
        arrived += ", some of them negative" if runs is not None and (runs < 0).any() else ""
        raise ReferringDataError(
            f"Run lengths are whole numbers of 0 or more, or COCO's string of them, that sum to the image's "
            f"{height} x {width} = {area} pixels, but {name} has {arrived}. Fetch or write the file again."
        )
    return coco_mask.frPyObjects({"size": [height, width], "counts": _joined(runs)}, height, width)


def _joined(runs: np.ndarray) -> list[int]:
    """The run lengths of the same mask in which none but the first is 0."""
    places, times = np.unique(np.cumsum(runs), return_counts=True)  # where the value changes, and how often
    changes = places[(times % 2 == 1) & (places < places[-1])]
    return np.diff(changes, prepend=0, append=places[-1]).tolist()


def _as_numbers(values) -> np.ndarray | None:
    """A list of numbers as float64, None for anything else."""
    if not isinstance(values, list | tuple):
        return None
    if not all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values):
        return None
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return None


def _as_runs(counts) -> np.ndarray | None:
    """A list of whole numbers as int64, None for anything else."""
    runs = _as_numbers(counts)  # JSON writers make 5.0 of 5; exact up to 2**53
    if runs is None or not (np.isfinite(runs) & (np.abs(runs) < 2**53) & (runs == np.floor(runs))).all():
        return None
    return runs.astype(np.int64)
