"""Files that the benchmarks read in place of photographs and of COCO's masks: drawn noise and round polygons."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def write_photograph(path: Path, number: int, size: tuple[int, int], cell: int, quality: int) -> None:
    """Write a JPEG file that compresses about as a photograph does: smooth cells of `cell` pixels, and grain."""
    rng, (width, height) = np.random.default_rng(number), size
    coarse = rng.integers(0, 256, (height // cell + 1, width // cell + 1, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    image = image + rng.integers(-12, 13, (height, width, 1))
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=quality)


def annotation(
    rng: random.Random, number: int, image_id: int, category_id: int, size: tuple[int, int], radius: float, corners: int
) -> dict:
    """An annotation of COCO's with a polygon around a random place."""
    width, height = size
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    angles = sorted(rng.uniform(0, 6.28) for _ in range(corners))
    points = [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]
    outline = [round(c, 2) for px, py in points for c in (min(max(px, 0), width), min(max(py, 0), height))]
    box = [x - radius, y - radius, 2 * radius, 2 * radius]
    keys = {"id": number, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
    return keys | {"area": radius**2, "bbox": box, "segmentation": [outline]}


def write_instances(path: Path, images: Iterable[dict], annotations: Iterable[dict], names: list[str]) -> None:
    """Write an instances file of COCO's, entry by entry: that of train2017 would take gigabytes of memory."""
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {{}}, "categories": {json.dumps(categories)}')
        for key, entries in (("images", images), ("annotations", annotations)):
            file.write(f', "{key}": [')
            for number, entry in enumerate(entries):
                file.write(",\n" * bool(number) + json.dumps(entry))
            file.write("]")
        file.write("}")
