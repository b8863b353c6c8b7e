"""Masks that contradict the `area` or the `bbox` of their annotation, and what is likely wrong in the file."""

import logging
from collections.abc import Iterable
from pathlib import Path

from pycocotools import mask as coco_mask
from tqdm import tqdm

from .coco_records import read_instances
from .segmentations import union_of_segmentations

logger = logging.getLogger(__name__)

# Masks of 16 sets of photographs were made polygons, simplified by 0, 1 or 2 pixels, and drawn again. At these limits 3
# of 27,573 are named, all objects in small pieces. Of polygons that were halved 100% are named, of doubled ones 92%.
BORDER = 2  # pixels
MOST_TIMES = 2  # that one area is the other, besides the border
LEAST_OVERLAP = 0.4  # intersection over union of two boxes, both with the border


def find_contradictions(instances: str | Path) -> list[str]:
    """One sentence for each annotation of an instances file whose mask contradicts its `area` or `bbox`.

    Raises:
        ReferringDataError: the file is damaged, or a segmentation is none.
    """
    images, annotations = read_instances(Path(instances), fields=())
    found = []
    for annotation in tqdm(annotations.values(), desc=f"checking {instances}", unit="annotation", delay=2):
        if image := images.get(annotation["image_id"]):
            found += contradictions([annotation], image["height"], image["width"])
    return found


def contradictions(annotations: list[dict], height: int, width: int, mask: dict | None = None) -> Iterable[str]:
    """What is wrong with each annotation whose mask contradicts the annotation's own `area` or `bbox`.

    A bbox or an area of 0 counts as not given. The area may be that of the bbox, as some programs write it.

    Args:
        annotations: COCO's records of one image.
        height: of the image, in pixels.
        width: of the image, in pixels.
        mask: of the only annotation, COCO's compressed run lengths, where it is known already.
    """
    for annotation in annotations:
        name = f"annotation {annotation['id']}"
        parts, area, box = annotation["segmentation"], annotation.get("area"), annotation.get("bbox")
        drawn = mask if mask and len(annotations) == 1 else union_of_segmentations([parts], height, width, name)
        pixels, drawn_box = int(coco_mask.area(drawn)), coco_mask.toBbox(drawn).tolist()
        area = area if isinstance(area, int | float) and area > 0 else pixels
        box = box if isinstance(box, list) and len(box) == 4 and min(box[2:]) > 0 else drawn_box
        border = 2 * BORDER * sum(drawn_box[2:])
        overlap = _overlap(drawn_box, box)
        in_times = max((pixels - border) / max(area, 1), (area - border) / max(pixels, 1))
        if isinstance(parts, list) and all(0 <= number <= 1 for part in parts for number in part):
            reason = "its polygons have coordinates from 0 to 1: multiply x by the image's width and y by its height"
        elif _overlap(drawn_box, _as_corners(box)) > max(0.9, overlap + 0.1):
            reason = "its bbox seems to be x0, y0, x1, y1; COCO's is x, y, width, height"
        elif overlap < LEAST_OVERLAP or (in_times > MOST_TIMES and area != box[2] * box[3]):
            reason = f"are its coordinates for an image of another size than {height} x {width} (height x width)?"
        else:
            continue
        given = " and ".join(f"{field} {annotation[field]!r:.80}" for field in ("area", "bbox") if field in annotation)
        yield f"{name} has {given}, but its mask has area {pixels} and bbox {drawn_box}: {reason}"


def warn_of_contradictions(found: Iterable[str], instances: str | Path) -> None:
    """Log how many annotations of a file contradict their masks, and the first of them."""
    if found := list(dict.fromkeys(found)):
        logger.warning(f"{len(found)} masks of {instances} contradict their annotations, such as: {found[0]}")


def _as_corners(box: list[float]) -> list[float]:
    """[x, y, width, height] of a box that was meant as [x0, y0, x1, y1]."""
    return [*box[:2], max(box[2] - box[0], 0), max(box[3] - box[1], 0)]


def _overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union of two boxes [x, y, width, height], both with the border."""
    sides = [
        min(a + length, b + other_length) - max(a, b) + 2 * BORDER
        for a, length, b, other_length in zip(one[:2], one[2:], other[:2], other[2:], strict=True)
    ]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(box[2] + 2 * BORDER) * (box[3] + 2 * BORDER) for box in (one, other)]
    return shared / (sum(areas) - shared)
