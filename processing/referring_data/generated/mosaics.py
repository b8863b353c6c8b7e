"""Mosaics: one to four photographs cropped, mirrored, nearer or farther, side by side, so that a noun has rivals."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image

from .photographs import Photograph, Thing

CELLS = (1, 2, 3, 4)
CELL_WEIGHTS = (0.25, 0.35, 0.2, 0.2)
CANVASES = ((400, 400), (400, 300), (300, 400), (400, 266))  # width, height in pixels
SEEN, GONE = 0.6, 0.02  # a thing of which more is seen is still called so; one of which less is seen is gone
LEAST_PIXELS = 30


def make_mosaic(draw: random.Random, another: Callable[[], Photograph], image_id: int) -> Photograph:
    """A mosaic of photographs that `another` gives, about a thing of each.

    Args:
        draw: decides everything that is random.
        another: gives a photograph with at least one thing, drawn by `draw`.
        image_id: of the mosaic; its file name is made of it.
    """
    width, height = draw.choice(CANVASES)
    boxes = _cells(draw, draw.choices(CELLS, CELL_WEIGHTS)[0], width, height)
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    things, exhaustive = [], True
    for cell, (left, top, right, bottom) in enumerate(boxes):
        source = another()
        source = source.mirrored() if draw.random() < 0.5 else source
        part = _crop(draw, source, (right - left) / (bottom - top))
        exhaustive &= source.exhaustive
        size = (right - left, bottom - top)
        canvas[top:bottom, left:right] = np.asarray(Image.fromarray(part.image).resize(size, Image.Resampling.BICUBIC))
        first = 1 + max((thing.id for thing in things), default=0)
        ids = {thing.id: first + number for number, thing in enumerate(part.things)}
        whole = (0, 0, part.image.shape[1], part.image.shape[0])
        for thing in part.things:
            mask = np.asarray(Image.fromarray(thing.within(whole)).resize(size, Image.Resampling.NEAREST))
            if np.count_nonzero(mask) >= LEAST_PIXELS:
                ids_here = {"id": ids[thing.id], "owner": ids.get(thing.owner)}
                things.append(thing.with_mask(mask, left, top, cell=cell, **ids_here))
    return Photograph(canvas, tuple(things), exhaustive, f"mosaic-{image_id:07d}.jpg", image_id)


def _cells(draw: random.Random, count: int, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """left, top, right, bottom of each cell."""
    columns = 2 if count == 4 and draw.random() < 0.6 else count
    rows = count // columns
    if count == 2 and draw.random() < 0.2:
        columns, rows = 1, 2
    return [
        (width * x // columns, height * y // rows, width * (x + 1) // columns, height * (y + 1) // rows)
        for y in range(rows)
        for x in range(columns)
    ]


def _crop(draw: random.Random, photograph: Photograph, aspect: float) -> Photograph:
    """A window of `aspect` (width by height) around one of the things, that cuts nothing in half if it can be."""
    height, width = photograph.image.shape[:2]
    most = min(width, height * aspect)  # the widest window
    crowds = {thing.id for thing in photograph.things if thing.crowd}
    whole = [thing for thing in photograph.things if thing.owner is None and not thing.crowd] or photograph.things
    for last in (False,) * 6 + (True,):
        left, top, right, bottom = draw.choice(whole).box
        least = min(most, 1.1 * max(right - left, (bottom - top) * aspect, 40))
        window = most if last else draw.uniform(least, most)
        x = _place(draw, left, right, window, width)
        y = _place(draw, top, bottom, window / aspect, height)
        box = (round(x), round(y), max(round(x + window), round(x) + 1), max(round(y + window / aspect), round(y) + 1))
        parts = [part for thing in photograph.things if (part := _seen(thing, box))]
        if not any(part.crowd and part.id not in crowds for part in parts):
            break
    return replace(photograph, image=photograph.image[box[1] : box[3], box[0] : box[2]], things=tuple(parts))


def _place(draw: random.Random, low: float, high: float, window: float, side: float) -> float:
    """Where a window begins that holds low to high, or their middle, and does not leave the side."""
    first, last = max(0.0, high - window), min(low, side - window)
    if first > last:
        first = last = min(max((low + high - window) / 2, 0.0), side - window)
    return draw.uniform(first, last)


def _seen(thing: Thing, box: tuple[int, int, int, int]) -> Thing | None:
    """The thing within a window, None where it is gone. What is cut counts as a crowd: it is there, and is not told."""
    mask = thing.within(box)
    share = np.count_nonzero(mask) / thing.area
    if share <= GONE:
        return None
    whole = share >= SEEN or thing.region or thing.owner is not None
    return thing.with_mask(mask, crowd=thing.crowd or not whole)
