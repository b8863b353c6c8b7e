"""Photographs with annotated things, out of a COCO instance file of any size, one photograph in memory at a time."""

import functools
import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from m3dec.processing.referring_data.readers.coco_records import SIZES, check_record
from m3dec.processing.referring_data.readers.contradictions import contradictions
from m3dec.processing.referring_data.readers.images import ImageFolder, check_image_size, no_image
from m3dec.processing.referring_data.readers.segmentations import union_of_segmentations
from m3dec.processing.referring_data.schema import ReferringDataError, encode_mask

from .colors import color_shares

BLOCK = 2**22  # bytes of a file in memory at once
FIELDS = {  # that every record of a list has
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "segmentation"),
    "categories": ("id", "name"),
}


@dataclass(frozen=True, eq=False)
class Thing:
    """One annotation of a photograph."""

    id: int
    category: str
    category_id: int
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two outside of it
    mask: np.ndarray  # bool (bottom - top, right - left), within the box alone
    owner: int | None = None  # the id of the thing that it is a part of, a bag's person
    region: bool = False  # may hold several things of its kind, such as all hair
    crowd: bool = False  # several things that nobody told apart
    cell: int = 0  # of a mosaic, the photograph that it came from

    @functools.cached_property
    def area(self) -> int:
        return int(np.count_nonzero(self.mask))

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    def within(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """The mask as it is seen through a window of the image, bool of the window's height and width."""
        seen = np.zeros((box[3] - box[1], box[2] - box[0]), dtype=bool, order="F")  # as pycocotools wants it
        left, top = max(box[0], self.box[0]), max(box[1], self.box[1])
        right, bottom = min(box[2], self.box[2]), min(box[3], self.box[3])
        if left < right and top < bottom:
            part = self.mask[top - self.box[1] : bottom - self.box[1], left - self.box[0] : right - self.box[0]]
            seen[top - box[1] : bottom - box[1], left - box[0] : right - box[0]] = part
        return seen

    def annotation(self, height: int, width: int) -> dict:
        """COCO's record of the thing, in an image of that size."""
        left, top, right, bottom = self.box
        runs = encode_mask(self.within((0, 0, width, height)))
        box = [left, top, right - left, bottom - top]
        return {"id": self.id, "category_id": self.category_id, "bbox": box, "segmentation": runs}

    def with_mask(self, mask: np.ndarray, left: int = 0, top: int = 0, **changes) -> "Thing":
        """The same thing with another mask, bool and not empty, whose corner is at `left` and `top` of the image."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        box = (left + x, top + y, left + right, top + bottom)
        return replace(self, mask=mask[y:bottom, x:right], box=box, **changes)


@dataclass(frozen=True, eq=False)
class Photograph:
    """An image and what is annotated in it."""

    image: np.ndarray  # uint8 (height, width, 3), RGB
    things: tuple[Thing, ...]
    exhaustive: bool  # every thing of the file's categories is annotated
    file_name: str
    image_id: int

    @functools.cached_property
    def is_dark(self) -> bool:
        """Whether it was taken at night: its colors cannot be told."""
        return float(self.image[::4, ::4].mean()) < 55

    def shares(self, thing: Thing) -> np.ndarray:
        """The share of each color in a thing, float64 (number of COLORS,)."""
        if thing.id not in self._shares:
            left, top, right, bottom = thing.box
            self._shares[thing.id] = color_shares(self.image[top:bottom, left:right][thing.mask])
        return self._shares[thing.id]

    @functools.cached_property
    def _shares(self) -> dict[int, np.ndarray]:
        return {}

    def mirrored(self) -> "Photograph":
        width = self.image.shape[1]
        things = tuple(
            replace(thing, mask=thing.mask[:, ::-1], box=(width - right, top, width - left, bottom))
            for thing in self.things
            for left, top, right, bottom in [thing.box]
        )
        return replace(self, image=self.image[:, ::-1], things=things)


class InstanceFile:
    """A COCO instance file. It is read once; only the place of each annotation in the file stays in memory.

    Of COCO's own fields `images`, `annotations` and `categories` are read. Further fields are known: an annotation's
    `region` and `part_of`, and an image's `exhaustive`. A file none of whose images says `exhaustive` is taken for one
    that annotates every thing of its categories, as COCO does where it has no crowd. `contradictions` names the masks
    read so far that contradict their annotations.

    Raises:
        FileNotFoundError: there is no such file.
        ReferringDataError: it is damaged, or no instance file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.images, self.categories, self.contradictions = {}, {}, []
        places = {"image": array("q"), "start": array("q"), "end": array("q")}
        with self.path.open("rb") as file:
            for kind, start, end, entry in entries_of_lists(file, self.path):
                if kind in FIELDS:
                    check_record(entry, kind, FIELDS[kind], {"id": int, "image_id": int} | SIZES, f"one in {path}")
                if kind == "annotations":
                    places["image"].append(entry["image_id"])
                    places["start"].append(start)
                    places["end"].append(end)
                elif kind == "images":
                    self.images[entry["id"]] = {name: entry.get(name) for name in (*FIELDS["images"], "exhaustive")}
                elif kind == "categories":
                    self.categories[entry["id"]] = str(entry["name"]).lower()
        if not self.images or not self.categories:
            raise ReferringDataError(
                f"A COCO instance file has images, annotations and categories, but {path} has {len(self.images)} "
                f"images and {len(self.categories)} categories. Is it a file of captions or keypoints?"
            )
        says = any(image["exhaustive"] is not None for image in self.images.values())
        for image in self.images.values():
            image["exhaustive"] = bool(image["exhaustive"]) if says else True
        image_ids = np.array(places["image"])
        order = np.argsort(image_ids, kind="stable")
        self._starts, self._ends = np.array(places["start"])[order], np.array(places["end"])[order]
        self._image_ids = image_ids[order]

    def __len__(self) -> int:
        return len(self._image_ids)

    def photograph(self, image_id: int, folder: ImageFolder) -> Photograph | None:
        """The photograph of a number with its things; None where nothing in it is annotated or its file is missing."""
        entry = self.images[image_id]
        first, last = np.searchsorted(self._image_ids, [image_id, image_id + 1])
        path = folder.find(entry["file_name"])
        if first == last or path is None:
            return None
        check_image_size(path, entry["height"], entry["width"], entry["file_name"])
        try:
            with Image.open(path) as opened:
                image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
            raise no_image(entry["file_name"], error) from error
        with self.path.open("rb") as file:
            texts = [
                (file.seek(start), file.read(end - start))[1]
                for start, end in zip(self._starts[first:last].tolist(), self._ends[first:last].tolist(), strict=True)
            ]
        things = tuple(filter(None, (self._thing(json.loads(text), entry) for text in texts)))
        return Photograph(image, things, entry["exhaustive"], entry["file_name"], image_id)

    def annotated(self) -> set[int]:
        """The numbers of the images in which something is annotated."""
        return set(np.unique(self._image_ids).tolist())

    def _thing(self, annotation: dict, image: dict) -> Thing | None:
        name = f"annotation {annotation['id']} of {self.path.name}"
        if annotation["category_id"] not in self.categories:
            raise ReferringDataError(
                f"An annotation's category is one of the file's, but {name} has {annotation['category_id']!r:.40}."
            )
        runs = union_of_segmentations([annotation["segmentation"]], image["height"], image["width"], name)
        self.contradictions += contradictions([annotation], image["height"], image["width"], runs)
        left, top, width, height = (int(number) for number in coco_mask.toBbox(runs))
        if not width or not height:
            return None
        return Thing(
            id=annotation["id"],
            category=self.categories[annotation["category_id"]],
            category_id=annotation["category_id"],
            box=(left, top, left + width, top + height),
            mask=coco_mask.decode(runs)[top : top + height, left : left + width].astype(bool),
            owner=annotation.get("part_of"),
            region=bool(annotation.get("region")),
            crowd=bool(annotation.get("iscrowd")),
        )


def entries_of_lists(file: BinaryIO, path: Path) -> Iterator[tuple[str, int, int, object]]:
    """The entries of the lists of a JSON object, of a file of any size: the list's key, the bytes where an entry starts
    and ends, and the entry.

    Raises:
        ReferringDataError: it is no JSON object, or cut off.
    """
    text = _Window(file, path)
    try:
        for _ in text.items("{", "}"):
            _, _, key = text.value()
            text.expect(":")
            if text.comes("["):
                for _ in text.items("[", "]"):
                    yield key, *text.value()
            else:
                text.value()
    except (json.JSONDecodeError, RecursionError, UnicodeError) as error:
        raise ReferringDataError(f"{path} is not whole JSON: {error}. Fetch or write it again.") from error


class _Window:
    """What is being read of a JSON file, some megabytes of it. Each byte is a letter: so places are places of bytes."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.text, self.place, self.first, self.ended = file, path, "", 0, 0, False
        self.decode, self.blanks = json.JSONDecoder().raw_decode, re.compile(r"[ \t\n\r]*")
        self.grow()

    def grow(self) -> None:
        """Forget what was read, and read as much again as is left, at least a block."""
        block = self.file.read(max(BLOCK, len(self.text) - self.place))
        self.text, self.first, self.place = self.text[self.place :] + block.decode("latin-1"), self.at, 0
        self.ended = not block

    @property
    def at(self) -> int:
        return self.first + self.place

    def comes(self, letter: str) -> bool:
        """Whether `letter` is next, behind blanks."""
        self.place = self.blanks.match(self.text, self.place).end()
        while self.place == len(self.text) and not self.ended:
            self.grow()
            self.place = self.blanks.match(self.text, self.place).end()
        return self.text[self.place : self.place + 1] == letter

    def expect(self, letter: str) -> None:
        if not self.comes(letter):
            raise ReferringDataError(
                f"{self.path} is not whole JSON: {letter!r} is expected at letter {self.at}, but there is "
                f"{self.text[self.place : self.place + 10]!r}. Fetch or write it again."
            )
        self.place += 1

    def items(self, opening: str, closing: str) -> Iterator[None]:
        """Stop before each item between two brackets, so that the caller can read it."""
        self.expect(opening)
        while not self.comes(closing):
            yield
            if not self.comes(closing):
                self.expect(",")
        self.expect(closing)

    def value(self) -> tuple[int, int, object]:
        """Where the next value starts and ends, and the value."""
        self.comes("")
        while True:
            try:
                value, end = self.decode(self.text, self.place)
                if end < len(self.text) or self.ended:  # a number at the end of the window may go on
                    break
            except json.JSONDecodeError:
                if self.ended:
                    raise
            self.grow()
        read, start, self.place = self.text[self.place : end], self.at, end
        # Bytes were taken for letters: other letters than ASCII are read anew.
        return start, self.at, value if read.isascii() else json.loads(read.encode("latin-1"))
