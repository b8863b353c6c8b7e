"""What is true of the things of a photograph, with margins: yes, no, or not sure (None), where nothing is said."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from .colors import COLORS, has_color
from .photographs import Photograph, Thing
from .words import CategoryWords, words_of

APART = 0.07  # of the image's side, between positions that are told apart
LARGER = 1.6  # times as many pixels: bigger
TALLER = 1.3  # times as high or wide
NEXT, AWAY = 0.04, 0.12  # of the image's diagonal, between things that are next to each other and that are not
LEAST_AREA = 0.0004  # of the image: smaller things are not asked for
MOST_RIVALS = 12  # of more, nobody counts the third
MOST_TRUSTED, TRUSTED_AREA, TRUSTED_ALONE = 6, 0.015, 0.05  # of an image that does not say that all is annotated


class Scene:
    """The things of one photograph, and which of them a word may mean."""

    def __init__(self, photograph: Photograph, words: dict[str, CategoryWords]):
        self.photograph = photograph
        self.height, self.width = photograph.image.shape[:2]
        self.things = [thing for thing in photograph.things if not thing.crowd]
        self.by_id = {thing.id: thing for thing in self.things}
        self.words = {thing.category: words_of(thing.category, words) for thing in photograph.things}
        self.crowds = [thing for thing in photograph.things if thing.crowd]
        self.parts = {}  # owner's id → its parts
        for thing in self.things:
            if thing.owner is not None:
                self.parts.setdefault(thing.owner, []).append(thing)

    def entry(self, thing: Thing) -> CategoryWords:
        return self.words[thing.category]

    def meant_by(self, word: str) -> list[Thing]:
        """All things that somebody may call by `word`."""
        return [thing for thing in self.things if word in self.entry(thing).possible]

    def trusted(self, word: str) -> bool:
        """Whether all things that may be called by `word` are annotated, one by one."""
        if any(word in self.entry(crowd).possible for crowd in self.crowds):
            return False
        if self.photograph.exhaustive:
            return True
        things = self.meant_by(word)
        least = TRUSTED_ALONE if len(things) == 1 else TRUSTED_AREA
        whole = self.height * self.width
        return 1 <= len(things) <= MOST_TRUSTED and all(thing.area >= least * whole for thing in things)

    def is_large_enough(self, thing: Thing) -> bool:
        return thing.area >= max(LEAST_AREA * self.height * self.width, 30)

    # Properties: functions of a thing

    def colored(self, color: str) -> Callable[[Thing], bool | None]:
        return lambda thing: has_color(self.photograph.shares[thing.id], color)

    def dressed_in(self, color: str) -> Callable[[Thing], bool | None]:
        """Whether a person's upper half is of a color."""
        return lambda thing: has_color(self.upper_shares[thing.id], color)

    @functools.cached_property
    def upper_shares(self) -> dict[int, np.ndarray]:
        """Thing's id → the share of each color between a fifth and a half of its height, where a person has a shirt."""
        shares = {}
        for thing in self.things:
            left, top, right, bottom = thing.box
            rows = slice(top + (bottom - top) // 5, max(top + (bottom - top) // 2, top + 1))
            labels = self.photograph.color_labels[rows, left:right][thing.mask[rows, left:right]]
            counts = np.bincount(labels, minlength=len(COLORS)).astype(float)
            shares[thing.id] = counts / max(counts.sum(), 1.0)
        return shares

    def has_part(self, word: str, color: str | None = None) -> Callable[[Thing], bool | None]:
        """Whether a thing has a part that is called `word`, of a color where one is given."""

        def has(thing: Thing) -> bool | None:
            parts = [part for part in self.parts.get(thing.id, ()) if word in self.entry(part).possible]
            sure = [part for part in parts if word in self.entry(part).general]
            if color is None:
                return True if sure else None if parts else False
            answers = [has_color(self.photograph.shares[part.id], color) for part in parts]
            if any(answer and part in sure for answer, part in zip(answers, parts, strict=True)):
                return True
            return None if any(answer is not False for answer in answers) else False

        return has

    def touched_by(self, other: Thing) -> Callable[[Thing], bool | None]:
        """Whether a thing that is carried is at a person: it touches, and lies mostly within the person's box."""

        def touched(thing: Thing) -> bool | None:
            left, top, right, bottom = _common_box(thing.box, other.box)
            inside = max(right - left, 0) * max(bottom - top, 0) / _box_area(other.box)
            if thing.cell == other.cell and inside >= 0.5 and self.touches(thing, other):
                return True
            return False if self.gap(thing, other) > NEXT / 2 else None

        return touched

    # Relations between two things

    def left_of(self, thing: Thing, other: Thing) -> bool | None:
        return _before(thing.center[0], other.center[0], self.width)

    def above(self, thing: Thing, other: Thing) -> bool | None:
        sure = _before(thing.center[1], other.center[1], self.height)
        beside = abs(thing.center[0] - other.center[0]) > 0.5 * max(_width(thing), _width(other))
        return None if sure and beside else sure

    def next_to(self, thing: Thing, other: Thing) -> bool | None:
        if thing.cell != other.cell:
            return None
        gap = self.gap(thing, other)
        if gap > AWAY:
            return False
        inside = _box_area(_common_box(thing.box, other.box)) > 0.3 * min(_box_area(thing.box), _box_area(other.box))
        return True if gap <= NEXT and not inside else None

    def on(self, thing: Thing, other: Thing) -> bool | None:
        """Whether a thing stands, sits or lies on another, as far as masks show it."""
        if thing.cell != other.cell or self.gap(thing, other) > NEXT / 2:
            return False
        left, top, right, bottom = other.box
        over = left <= thing.center[0] <= right and thing.center[1] < (top + bottom) / 2
        foot = thing.box[3]
        lies = over and top + 0.02 * self.height < foot <= bottom and _width(thing) < 0.9 * (right - left)
        return True if lies and self.touches(thing, other) else None

    def gap(self, thing: Thing, other: Thing) -> float:
        """Between the boxes, as a share of the image's diagonal."""
        a, b = thing.box, other.box
        across, down = max(a[0], b[0]) - min(a[2], b[2]), max(a[1], b[1]) - min(a[3], b[3])
        return float(np.hypot(max(across, 0), max(down, 0)) / np.hypot(self.width, self.height))

    def touches(self, thing: Thing, other: Thing) -> bool:
        """Whether a pixel of one lies within three of a pixel of the other."""
        left, top, right, bottom = _common_box(_grown(thing.box, 3), _grown(other.box, 3))
        left, top = max(left, 0), max(top, 0)
        if right <= left or bottom <= top:
            return False
        near = _dilated(thing.mask[top:bottom, left:right], 3)
        return bool((near & other.mask[top:bottom, left:right]).any())

    # One of several: functions of things that give one of them, or None where none is it by the margin

    def extreme(self, things: Sequence[Thing], side: str) -> Thing | None:
        """The first from the left, right, top or bottom."""
        axis, sign, length = self._axis(side)
        order = sorted(things, key=lambda thing: sign * thing.center[axis])
        apart = sign * (order[1].center[axis] - order[0].center[axis]) if len(order) > 1 else 0
        return order[0] if apart >= APART * length else None

    def in_order(self, things: Sequence[Thing], side: str) -> list[Thing] | None:
        """All of them from one side on; None where two are not told apart."""
        axis, sign, length = self._axis(side)
        order = sorted(things, key=lambda thing: sign * thing.center[axis])
        places = [sign * thing.center[axis] for thing in order]
        apart = min((b - a for a, b in zip(places, places[1:])), default=0)  # noqa: B905, RUF007
        return order if len(order) > 1 and apart >= APART * length else None

    def middle(self, things: Sequence[Thing]) -> Thing | None:
        """The middle one of three, or of any odd number, from left to right."""
        order = self.in_order(things, "left") if len(things) % 2 and len(things) > 2 else None
        return order[len(order) // 2] if order else None

    def largest(self, things: Sequence[Thing], size: Callable[[Thing], float], times: float) -> Thing | None:
        order = sorted(things, key=size, reverse=True)
        return order[0] if len(order) > 1 and size(order[0]) >= times * size(order[1]) else None

    def smallest(self, things: Sequence[Thing], size: Callable[[Thing], float], times: float) -> Thing | None:
        order = sorted(things, key=size)
        return order[0] if len(order) > 1 and size(order[1]) >= times * size(order[0]) else None

    def nearest(self, things: Sequence[Thing], sign: int) -> Thing | None:
        """What stands nearest to the camera (sign 1): the biggest, whose foot is lowest; or farthest (-1)."""
        find = self.largest if sign > 0 else self.smallest
        thing = find(things, lambda thing: thing.area, LARGER)
        if thing is None or any(thing.cell != other.cell for other in things):
            return None
        others = [other.box[3] for other in things if other is not thing]
        foot = sign * thing.box[3]
        return thing if foot >= max(sign * other for other in others) + APART / 2 * self.height else None

    def place(self, thing: Thing) -> str | None:
        """Where in the image a thing plainly is: left, right, top, bottom, middle."""
        x, y = thing.center[0] / self.width, thing.center[1] / self.height
        left, top, right, bottom = thing.box
        if x < 0.36 and right < 0.6 * self.width:
            return "left"
        if x > 0.64 and left > 0.4 * self.width:
            return "right"
        if abs(x - 0.5) < 0.08 and abs(y - 0.5) < 0.15:
            return "middle"
        if y < 0.3 and bottom < 0.5 * self.height:
            return "top"
        return "bottom" if y > 0.75 and top > 0.5 * self.height else None

    def _axis(self, side: str) -> tuple[int, int, int]:
        axis = 0 if side in ("left", "right") else 1
        return axis, 1 if side in ("left", "top") else -1, (self.width, self.height)[axis]


def _before(first: float, second: float, length: int) -> bool | None:
    if second - first >= APART * length:
        return True
    return False if first - second >= 0 else None


def _common_box(a: tuple, b: tuple) -> tuple[int, int, int, int]:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _box_area(box: tuple) -> int:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _width(thing: Thing) -> int:
    return thing.box[2] - thing.box[0]


def _grown(box: tuple, by: int) -> tuple[int, int, int, int]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _dilated(mask: np.ndarray, by: int) -> np.ndarray:
    padded = np.pad(mask, by)
    out = np.zeros_like(mask)
    for y in range(0, 2 * by + 1, by):
        for x in range(0, 2 * by + 1, by):
            out |= padded[y : y + mask.shape[0], x : x + mask.shape[1]]
    return out
