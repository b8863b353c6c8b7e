"""What is true of the things of a photograph: yes, no, or not sure (None), and then nothing is said of it."""

from collections.abc import Callable, Sequence

import numpy as np

from .colors import color_shares, has_color
from .photographs import Photograph, Thing
from .words import CategoryWords, words_of

APART = 0.07  # of the image's side, between positions that are told apart
LARGER = 1.6  # times as many pixels: bigger
TALLER = 1.3  # times as high or wide
NEXT, AWAY = 0.04, 0.12  # of the image's diagonal, between things that are next to each other and that are not
MOST_OVERLAP = 0.3  # of the smaller box lies in the other, of things that are beside each other
SAME = 0.75  # of two masks of a kind is common: one thing, annotated twice
LEAST_AREA = 0.0004  # of the image: smaller things are not asked for
MOST_RIVALS = 12  # of more, nobody counts the third
MOST_TRUSTED, TRUSTED_AREA, TRUSTED_ALONE = 6, 0.015, 0.05  # of an image that does not say that all is annotated


class Scene:
    """The things of one photograph, and which of them a word may mean."""

    def __init__(self, photograph: Photograph, words: dict[str, CategoryWords]):
        self.photograph, self.known = photograph, words
        self.height, self.width = photograph.image.shape[:2]
        self.things = _without_doubles([thing for thing in photograph.things if not thing.crowd])
        self.by_id = {thing.id: thing for thing in self.things}
        self.words = {thing.category: words_of(thing.category, words) for thing in photograph.things}
        self.crowds = [thing for thing in photograph.things if thing.crowd]
        self.wholes = [thing for thing in self.things if thing.owner is None]
        self._meant, self._trusted, self._upper_shares = {}, {}, {}  # what was found out already
        self.parts = {}  # owner's id → its parts
        for thing in self.things:
            if thing.owner is not None:
                self.parts.setdefault(thing.owner, []).append(thing)

    def entry(self, thing: Thing) -> CategoryWords:
        return self.words[thing.category]

    def meant_by(self, word: str) -> list[Thing]:
        """All things that somebody may call by `word`."""
        if word not in self._meant:
            self._meant[word] = [thing for thing in self.things if word in self.entry(thing).possible]
        return self._meant[word]

    def trusted(self, word: str) -> bool:
        """Whether all things that may be called by `word` are annotated, one by one."""
        if word not in self._trusted:
            self._trusted[word] = self._is_trusted(word)
        return self._trusted[word]

    def _is_trusted(self, word: str) -> bool:
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

    def are_alike(self, thing: Thing) -> bool:
        """Whether all that stands in the image is of one category, so that "one" is enough of a noun."""
        alike = all(other.category == thing.category for other in (*self.wholes, *self.crowds))
        entry = self.entry(thing)
        several = alike and thing.owner is None and len(self.wholes) > 1
        several &= sum(other.area for other in self.wholes) > 0.1 * self.height * self.width  # what the image is about
        return several and self.trusted(entry.words[0]) and not (entry.stuff or entry.pair)

    def is_plainly_largest(self, thing: Thing, word: str) -> bool:
        """Whether a thing is by far the biggest that `word` may mean, and big enough that none is overlooked."""
        crowded = any(word in self.entry(crowd).possible for crowd in self.crowds)
        big = thing.area >= TRUSTED_AREA * self.height * self.width
        return big and not crowded and self.largest(self.meant_by(word), lambda other: other.area, LARGER) is thing

    def told_sex(self, thing: Thing) -> set[str]:
        """ "woman" or "man", or both, where what a person wears tells it."""
        return {self.entry(part).tells for part in self.parts.get(thing.id, ())} - {""}

    # Properties: functions of a thing

    def colored(self, color: str) -> Callable[[Thing], bool | None]:
        return lambda thing: has_color(self.photograph.shares(thing), color)

    def dressed_in(self, color: str) -> Callable[[Thing], bool | None]:
        """Whether a person's upper half is of a color."""
        return lambda thing: has_color(self.upper_shares(thing), color)

    def upper_shares(self, thing: Thing) -> np.ndarray:
        """The share of each color between a fifth and a half of a thing's height, where a person has a shirt."""
        if thing.id not in self._upper_shares:
            left, top, right, bottom = thing.box
            rows = slice((bottom - top) // 5, max((bottom - top) // 2, (bottom - top) // 5 + 1))
            seen = self.photograph.image[top:bottom, left:right][rows][thing.mask[rows]]
            self._upper_shares[thing.id] = color_shares(seen)
        return self._upper_shares[thing.id]

    def has_part(self, word: str, color: str | None = None) -> Callable[[Thing], bool | None]:
        """Whether a thing has a part that is called `word`, of a color where one is given."""

        def has(thing: Thing) -> bool | None:
            parts = [part for part in self.parts.get(thing.id, ()) if word in self.entry(part).possible]
            sure = [part for part in parts if word in self.entry(part).general]
            if color is None:
                return True if sure else None if parts else False
            answers = [has_color(self.photograph.shares(part), color) for part in parts]
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
        sure = _before(thing.center[0], other.center[0], self.width)
        return None if sure and self.overlap(thing, other) > MOST_OVERLAP else sure

    def above(self, thing: Thing, other: Thing) -> bool | None:
        sure = _before(thing.center[1], other.center[1], self.height)
        sure = None if sure and self.overlap(thing, other) > MOST_OVERLAP else sure
        beside = abs(thing.center[0] - other.center[0]) > 0.5 * max(_width(thing), _width(other))
        return None if sure and beside else sure

    def next_to(self, thing: Thing, other: Thing) -> bool | None:
        if thing.cell != other.cell:
            return None
        gap = self.gap(thing, other)
        if gap > AWAY:
            return False
        return True if gap <= NEXT and self.overlap(thing, other) <= MOST_OVERLAP else None

    def on(self, thing: Thing, other: Thing) -> bool | None:
        """Whether a thing stands, sits or lies on another, as far as masks show it."""
        if not self.entry(other).holds or thing.cell != other.cell or self.gap(thing, other) > NEXT / 2:
            return False
        left, top, right, bottom = other.box
        over = left <= thing.center[0] <= right and thing.center[1] < (top + bottom) / 2
        foot = thing.box[3]
        lies = over and top + 0.02 * self.height < foot <= bottom and _width(thing) < 0.9 * (right - left)
        return True if lies and self.touches(thing, other) else None

    def inside(self, thing: Thing, other: Thing) -> bool | None:
        """Whether a thing lies in another, as an apple in a bowl."""
        if not self.entry(other).inside or thing.cell != other.cell or self.gap(thing, other) > NEXT / 2:
            return False
        within = _box_area(_common_box(thing.box, other.box)) >= 0.8 * _box_area(thing.box)
        over = thing.center[1] < other.center[1] + 0.1 * _height(other)
        return True if within and over and thing.area < other.area and self.touches(thing, other) else None

    def in_front_of(self, thing: Thing, other: Thing) -> bool | None:
        """Whether one of two things of a kind stands before the other: nearer, lower, bigger, and partly over it."""
        if thing.cell != other.cell or thing.category != other.category or self.entry(thing).fixed:
            return False
        lower = thing.box[3] - other.box[3]
        if lower <= 0 or self.gap(thing, other) > AWAY:
            return False
        left, _, right, _ = _common_box(thing.box, other.box)
        over = right - left >= 0.4 * min(_width(thing), _width(other)) and self.touches(thing, other)
        near = lower >= APART * self.height and thing.area >= 1.2 * other.area
        return True if near and over and other.box[3] > thing.box[1] else None

    def rides(self, thing: Thing, other: Thing) -> bool | None:
        """Whether a person is on a horse, a bicycle or a board."""
        if thing.cell != other.cell or self.gap(thing, other) > NEXT / 2:
            return False
        left, _, right, _ = _common_box(thing.box, other.box)
        over = right - left >= 0.5 * min(_width(thing), _width(other)) and thing.center[1] < other.center[1]
        lifted = thing.box[3] <= other.box[3] - 0.1 * _height(other)
        return True if over and lifted and self.touches(thing, other) else None

    def overlap(self, thing: Thing, other: Thing) -> float:
        """The share of the smaller box that lies in the other."""
        common = _box_area(_common_box(thing.box, other.box))
        return common / min(_box_area(thing.box), _box_area(other.box))

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
        window = (left, top, right, bottom)
        return bool((_dilated(thing.within(window), 3) & other.within(window)).any())

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

    def is_apart(self, things: Sequence[Thing], thing: Thing, side: str) -> bool:
        """Whether no other thing is on this side of the image too, so that "the left one" can only be this."""
        axis, sign, length = self._axis(side)
        others = [sign * (other.center[axis] - length / 2) for other in things if other is not thing]
        place = sign * (thing.center[axis] - length / 2)
        return len(others) == 1 or all(other >= 0 or other - place >= 0.25 * length for other in others)

    def is_on_side(self, thing: Thing, side: str) -> bool:
        """Whether the middle of a thing is in this half of the image."""
        axis, sign, length = self._axis(side)
        return sign * (thing.center[axis] - length / 2) < 0

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
        """What is nearest to the camera (sign 1): the biggest, whose foot is lowest; or farthest (-1)."""
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


def _height(thing: Thing) -> int:
    return thing.box[3] - thing.box[1]


def _without_doubles(things: list[Thing]) -> list[Thing]:
    """The things, each once: some files annotate one thing twice."""
    kept = []
    for thing in things:
        near = [other for other in kept if other.category == thing.category and other.owner == thing.owner]
        if not any(_are_same(thing, other) for other in near):
            kept.append(thing)
    return kept


def _are_same(thing: Thing, other: Thing) -> bool:
    common = _box_area(_common_box(thing.box, other.box))
    if common < SAME * max(_box_area(thing.box), _box_area(other.box)):
        return False
    window = _common_box(thing.box, other.box)
    both = thing.within(window) & other.within(window)
    return both.sum() >= SAME * max(thing.area, other.area)


def _grown(box: tuple, by: int) -> tuple[int, int, int, int]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _dilated(mask: np.ndarray, by: int) -> np.ndarray:
    padded = np.pad(mask, by)
    out = np.zeros_like(mask)
    for y in range(0, 2 * by + 1, by):
        for x in range(0, 2 * by + 1, by):
            out |= padded[y : y + mask.shape[0], x : x + mask.shape[1]]
    return out
