"""Photographs with annotated things, out of a COCO instance file of any size, one photograph in memory at a time."""

import functools
import json
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from m3dec.processing.referring_data.pictures import PictureFolder
from m3dec.processing.referring_data.schema import ReferringDataError, decode_mask
from m3dec.processing.referring_data.segmentations import union_of_segmentations

from .colors import color_shares, label_pixels

IMAGE_FIELDS = ("id", "file_name", "height", "width")
ANNOTATION_FIELDS = ("id", "image_id", "category_id", "segmentation")


@dataclass(frozen=True, eq=False)
class Thing:
    """One annotation of a photograph."""

    id: int
    category: str
    category_id: int
    mask: np.ndarray  # bool (height, width)
    owner: int | None = None  # the id of the thing that it is a part of, a bag's person
    region: bool = False  # may hold several things of its kind, such as all hair
    crowd: bool = False  # several things that nobody told apart
    cell: int = 0  # of a mosaic, the photograph that it came from

    @functools.cached_property
    def area(self) -> int:
        return int(self.mask.sum())

    @functools.cached_property
    def box(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom in pixels, the last two outside of it."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True, eq=False)
class Photograph:
    """An image and what is annotated in it."""

    image: np.ndarray  # uint8 (height, width, 3), RGB
    things: tuple[Thing, ...]
    exhaustive: bool  # every thing of the file's categories is annotated
    file_name: str
    image_id: int

    @functools.cached_property
    def color_labels(self) -> np.ndarray:
        return label_pixels(self.image)

    @functools.cached_property
    def shares(self) -> dict[int, np.ndarray]:
        """Thing's id → the share of each color in it."""
        return {thing.id: color_shares(self.color_labels, thing.mask) for thing in self.things}

    @functools.cached_property
    def is_dark(self) -> bool:
        """Whether it was taken at night: its colors cannot be told."""
        return float(self.image[::4, ::4].mean()) < 55

    def mirrored(self) -> "Photograph":
        things = tuple(replace(thing, mask=thing.mask[:, ::-1]) for thing in self.things)
        return replace(self, image=self.image[:, ::-1], things=things)


class InstanceFile:
    """A COCO instance file. Its text stays in memory once, a byte a letter, and an annotation is parsed when asked for.

    Of COCO's own fields `images`, `annotations` and `categories` are read. Further fields are known: an annotation's
    `region` and `part_of`, and an image's `exhaustive`. A file none of whose images says `exhaustive` is taken for one
    that annotates every thing of its categories, as COCO does where it has no crowd.

    Raises:
        FileNotFoundError: there is no such file.
        ReferringDataError: it is damaged, or no instance file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        text = self.path.read_bytes().decode("latin-1")  # any bytes, one letter each; an entry's text is decoded anew
        self._text = text
        self.images, self.categories, places = {}, {}, {"image_id": [], "start": [], "end": []}
        for kind, start, end, entry in _entries(text, self.path):
            if kind == "annotations":
                self._check(entry, ANNOTATION_FIELDS, "annotations")
                places["image_id"].append(entry["image_id"])
                places["start"].append(start)
                places["end"].append(end)
            elif kind == "images":
                entry = json.loads(text[start:end].encode("latin-1"))
                self._check(entry, IMAGE_FIELDS, "images")
                self.images[entry["id"]] = {name: entry.get(name) for name in (*IMAGE_FIELDS, "exhaustive")}
            elif kind == "categories":
                entry = json.loads(text[start:end].encode("latin-1"))
                self._check(entry, ("id", "name"), "categories")
                self.categories[entry["id"]] = str(entry["name"]).lower()
        if not self.images or not self.categories:
            raise ReferringDataError(
                f"A COCO instance file has images, annotations and categories, but {path} has {len(self.images)} "
                f"images and {len(self.categories)} categories. Is it a file of captions or keypoints?"
            )
        says = any(image["exhaustive"] is not None for image in self.images.values())
        for image in self.images.values():
            image["exhaustive"] = bool(image["exhaustive"]) if says else True
        image_ids = np.array(places["image_id"], dtype=np.int64)
        order = np.argsort(image_ids, kind="stable")
        self._starts, self._ends = np.array(places["start"])[order], np.array(places["end"])[order]
        self._image_ids = image_ids[order]

    def __len__(self) -> int:
        return len(self._image_ids)

    def photograph(self, image_id: int, pictures: PictureFolder) -> Photograph | None:
        """The photograph of a number with its things; None where nothing in it is annotated or its file is missing."""
        entry = self.images[image_id]
        first, last = np.searchsorted(self._image_ids, [image_id, image_id + 1])
        path = pictures.find(entry["file_name"])
        if first == last or path is None:
            return None
        try:
            with Image.open(path) as opened:
                image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
            raise ReferringDataError(
                f"Photographs are files that Pillow opens, but {entry['file_name']} is not: {error!s:.120}. Replace it."
            ) from error
        if image.shape[:2] != (entry["height"], entry["width"]):
            raise ReferringDataError(
                f"An image has the size its annotations say, but {entry['file_name']} is {image.shape[:2]} and its "
                f"annotations are for {(entry['height'], entry['width'])} (height, width)."
            )
        places = zip(self._starts[first:last], self._ends[first:last], strict=True)
        things = (self._thing(start, end, entry) for start, end in places)
        things = tuple(thing for thing in things if thing is not None)
        return Photograph(image, things, entry["exhaustive"], entry["file_name"], image_id)

    def _thing(self, start: int, end: int, image: dict) -> Thing | None:
        annotation = json.loads(self._text[start:end].encode("latin-1"))
        name = f"annotation {annotation['id']} of {self.path.name}"
        if annotation["category_id"] not in self.categories:
            raise ReferringDataError(
                f"An annotation's category is one of the file's, but {name} has {annotation['category_id']!r:.40}."
            )
        mask = decode_mask(union_of_segmentations([annotation["segmentation"]], image["height"], image["width"], name))
        if not mask.any():
            return None
        return Thing(
            id=annotation["id"],
            category=self.categories[annotation["category_id"]],
            category_id=annotation["category_id"],
            mask=mask,
            owner=annotation.get("part_of"),
            region=bool(annotation.get("region")),
            crowd=bool(annotation.get("iscrowd")),
        )

    def _check(self, entry, fields: tuple[str, ...], kind: str) -> None:
        lacking = [name for name in fields if not isinstance(entry, dict) or name not in entry]
        wrong = [] if lacking else [name for name in ("id", "image_id") if not isinstance(entry.get(name, 0), int)]
        if lacking or wrong:
            raise ReferringDataError(
                f"Every one of a COCO file's {kind} has {', '.join(fields)}, ids as whole numbers, but one in "
                f"{self.path} is {reprlib.repr(entry)}. Correct the file."
            )


def _entries(text: str, path: Path) -> Iterator[tuple[str, int, int, object]]:
    """The entries of the lists of a JSON object: the list's key, where the entry starts and ends, and the entry."""
    decode, blanks = json.JSONDecoder().raw_decode, re.compile(r"[ \t\n\r]*")

    def skip(place: int, expected: str = "") -> int:
        place = blanks.match(text, place).end()
        if expected and text[place : place + 1] != expected:
            raise ReferringDataError(
                f"{path} is not whole JSON: {expected!r} is expected at letter {place}, but there is "
                f"{text[place : place + 10]!r}. Fetch or write it again."
            )
        return blanks.match(text, place + len(expected)).end()

    try:
        place = skip(0, "{")
        while text[place : place + 1] != "}":
            key, place = decode(text, place)
            place = skip(place, ":")
            if text[place : place + 1] != "[":
                _, place = decode(text, place)
            else:
                place = skip(place, "[")
                while text[place : place + 1] != "]":
                    entry, end = decode(text, place)
                    yield key, place, end, entry
                    place = skip(end)
                    if text[place : place + 1] != "]":
                        place = skip(place, ",")
                place += 1
            place = skip(place)
            if text[place : place + 1] != "}":
                place = skip(place, ",")
    except (json.JSONDecodeError, RecursionError) as error:
        raise ReferringDataError(f"{path} is not whole JSON: {error}. Fetch or write it again.") from error
