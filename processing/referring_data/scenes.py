"""Scenes: drawn pictures of a few shapes, each with six expressions that mean exactly one of them.

A two-dimensional relative of CLEVR-Ref+ (Liu et al., CVPR 2019). Distractors share attributes with the target, so who
does not read the expression cannot do much better than chance. `write_scenes` writes the official layout of the
referring data sets, so one reader serves these and RefCOCO.
"""

import itertools
import json
import math
import os
import pickle
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from tqdm import tqdm

from .schema import encode_mask

KINDS = ("attribute", "relation", "nearest", "superlative", "ordinal", "negation")

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "moon", "heart")
COLOURS = {
    "red": (214, 36, 44),
    "orange": (247, 138, 28),
    "yellow": (250, 218, 46),
    "green": (42, 160, 68),
    "blue": (36, 98, 214),
    "purple": (122, 52, 166),
    "pink": (248, 138, 190),
}
SIZES = {"small": 0.073, "large": 0.122}  # radius over the side of the image, before a jitter of 5%
FILLS = ("solid", "outlined")
TEXTURES = ("plain", "striped", "dotted")
ATTRIBUTES = ("shape", "colour", "size", "fill", "texture")

# No shape of any split has one of these pairs, except in "compositional", where every target has one.
RESERVED_PAIRS = frozenset(
    {
        ("circle", "orange"),
        ("square", "purple"),
        ("triangle", "pink"),
        ("star", "green"),
        ("ring", "blue"),
        ("cross", "red"),
        ("moon", "yellow"),
        ("heart", "blue"),
    }
)


def write_scenes(
    root: str | Path, split_sizes: dict[str, int], seed: int = 0, image_size: int = 160, dataset: str = "scenes"
) -> Path:
    """Draw scenes and write `root/dataset/refs(scenes).p`, `root/dataset/instances.json` and `root/dataset/images/`.

    Args:
        root: the folder to write into.
        split_sizes: images per split, for instance `{"train": 8000, "val": 500, "compositional": 500}`. The split
            "compositional" asks for pairs of shape and colour which no shape of another split has.
        seed: the same seed gives the same bytes; picture k of a split does not depend on the sizes of the splits.
        image_size: side of the pictures in pixels, at least 96.
        dataset: name of the folder.

    Returns:
        The folder `root/dataset`. Every image has six sentences, one of each kind in `KINDS`, spread over three to six
        references. An annotation carries the shape's `attributes`; its mask is what can be seen of the shape: a
        polygon, or a compressed RLE where the shape has a hole or is partly hidden.

    Raises:
        ValueError: a size of a split or of the image is not possible.
        FileExistsError: the folder is already there.
    """
    if not split_sizes or any(not isinstance(size, int) or size < 0 for size in split_sizes.values()):
        raise ValueError(f"split_sizes must give each split a number of images, such as train=100, got {split_sizes}.")
    folder = Path(root) / dataset
    if folder.exists():
        raise FileExistsError(f"Scenes are written into a new folder, but {folder} exists. Delete it or rename it.")
    unfinished = folder.with_name(f".{dataset}-{os.getpid()}")
    (unfinished / "images").mkdir(parents=True)
    try:
        refs, instances = [], {"info": {"seed": seed}, "images": [], "annotations": [], "categories": categories()}
        pictures = [(split, index) for split, size in split_sizes.items() for index in range(size)]
        for split, index in tqdm(pictures, desc="drawing scenes", unit="image"):
            scene = draw_scene(seed, split, index, image_size)
            name = f"scenes_{split}_{index:06d}.jpg"
            scene.image.save(unfinished / "images" / name, quality=95, subsampling=0)
            add_to_files(scene, name, split, refs, instances)
        (unfinished / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
        (unfinished / "refs(scenes).p").write_bytes(pickle.dumps(refs, protocol=2))
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


@dataclass
class Shape:
    """One shape of a scene: what it is, where it stands and which pixels of it can be seen."""

    attributes: dict[str, str]  # one value for each of ATTRIBUTES
    centre: tuple[float, float] = (0.0, 0.0)
    radius: float = 0.0
    angle: float = 0.0
    outline: list[tuple[float, float]] = field(default_factory=list)  # the drawn polygon, in pixels
    hole: list[tuple[float, float]] = field(default_factory=list)  # of a ring, else empty
    mask: np.ndarray | None = None  # (S, S) bool, the visible pixels
    is_whole: bool = True  # nothing stands before it
    bbox: tuple[int, int, int, int] = (0, 0, 0, 0)  # x, y, width, height of the visible pixels

    @property
    def position(self) -> tuple[float, float]:
        """Centre of the visible box: what "left", "near" and "second" are measured by."""
        x, y, width, height = self.bbox
        return x + width / 2, y + height / 2


@dataclass(frozen=True)
class Expression:
    """A sentence, the programme it says, and the one shape of the scene that the programme denotes."""

    kind: str
    sent: str
    raw: str
    programme: tuple
    target: int


@dataclass
class Scene:
    """A picture (S x S, RGB), its shapes from back to front, and one expression of each kind."""

    image: Image.Image
    shapes: list[Shape]
    expressions: list[Expression]


def draw_scene(seed: int, split: str = "train", index: int = 0, image_size: int = 160) -> Scene:
    """Picture `index` of a split. The split "compositional" has targets of `RESERVED_PAIRS`, others have none."""
    if image_size < 96:
        raise ValueError(f"image_size must be at least 96, or small shapes are a blur, but it is {image_size}.")
    rng = random.Random(f"{seed}/{split}/{index}")  # seeded through SHA-512: the same in every process
    number = rng.randint(3, 8)
    compositional = split == "compositional"
    while True:
        shapes = place(rng, draw_attributes(rng, number, compositional), image_size)
        expressions = shapes and describe(rng, shapes, image_size, compositional)
        if expressions:
            return Scene(paint(rng, shapes, image_size), shapes, expressions)


# ---- What the shapes are and where they stand -----------------------------------------------------------------------


def draw_attributes(rng: random.Random, number: int, compositional: bool) -> list[dict[str, str]]:
    """Attributes of `number` shapes, from few kinds and colours so that they share them, and one near-twin."""
    while True:
        palette = {
            "shape": rng.sample(SHAPES, rng.randint(2, 3 if number < 6 else 4)),
            "colour": rng.sample(sorted(COLOURS), rng.randint(2, 3 if number < 6 else 4)),
            "size": list(SIZES),
            "fill": FILLS if rng.random() < 0.5 else FILLS[:1],
            "texture": rng.sample(TEXTURES, rng.randint(1, 3)),
        }
        if compositional:
            pairs = rng.sample(sorted(RESERVED_PAIRS), 2)
            palette["shape"] = list({**dict.fromkeys(pair[0] for pair in pairs), **dict.fromkeys(palette["shape"])})
            palette["colour"] = list({**dict.fromkeys(pair[1] for pair in pairs), **dict.fromkeys(palette["colour"])})
        drawn = []
        while len(drawn) < number - 1:
            attributes = {name: rng.choice(values) for name, values in palette.items()}
            if compositional and rng.random() < 0.6:
                attributes["shape"], attributes["colour"] = rng.choice(pairs)
            if is_drawable(attributes) and (compositional or not is_reserved(attributes)):
                drawn.append(attributes)
        changed = rng.choice(ATTRIBUTES)
        twin = {**drawn[0], changed: rng.choice(palette[changed])}
        if not is_drawable(twin) or number_of_differences(twin, drawn[0]) != 1:
            continue
        drawn.append(twin)
        rng.shuffle(drawn)
        reserved = sum(map(is_reserved, drawn))
        if reserved >= 2 if compositional else not reserved:
            return drawn


def is_drawable(attributes: dict[str, str]) -> bool:
    """An outlined circle looks like a ring, an outlined ring like a blur, a textured outline like neither."""
    if attributes["fill"] == "solid":
        return True
    return attributes["texture"] == "plain" and attributes["shape"] not in ("circle", "ring")


def is_reserved(attributes: dict[str, str]) -> bool:
    return (attributes["shape"], attributes["colour"]) in RESERVED_PAIRS


def number_of_differences(first: dict[str, str], second: dict[str, str]) -> int:
    return sum(first[name] != second[name] for name in ATTRIBUTES)


def place(rng: random.Random, drawn: list[dict[str, str]], image_size: int) -> list[Shape] | None:
    """Put the shapes on the picture, in some scenes one a little over another. None where they did not fit."""
    overlaps = rng.random() < 0.5
    shapes = []
    for attributes in drawn:
        radius = SIZES[attributes["size"]] * image_size * rng.uniform(0.95, 1.05)
        margin, closeness = 1.1 * radius + 1, 1.06
        behind = rng.choice(shapes) if shapes and overlaps and rng.random() < 0.4 else None
        if behind:
            closeness = 0.72
        for _ in range(30):
            if behind:
                away, angle = rng.uniform(0.72, 0.95) * (radius + behind.radius), rng.uniform(0, math.tau)
                x, y = behind.centre[0] + away * math.cos(angle), behind.centre[1] + away * math.sin(angle)
            else:
                x, y = (rng.uniform(margin, image_size - margin) for _ in "xy")
            inside = margin <= min(x, y) and max(x, y) <= image_size - margin
            if inside and all(math.dist((x, y), s.centre) > closeness * (radius + s.radius) for s in shapes):
                break
        else:
            return None
        turn = math.pi if attributes["shape"] in ("triangle", "star", "moon") else 0.3
        shapes.append(Shape(attributes, (x, y), radius, rng.uniform(-turn, turn)))
    return shapes if find_visible_masks(shapes, image_size) else None


def find_visible_masks(shapes: list[Shape], image_size: int) -> bool:
    """Fill in outlines and visible masks; False where a shape is hidden by more than a quarter."""
    covered = np.zeros((image_size, image_size), dtype=bool)
    for shape in reversed(shapes):
        shape.outline = turned(UNIT_OUTLINES[shape.attributes["shape"]], shape)
        full = rasterised(shape.outline, image_size)
        if shape.attributes["shape"] == "ring":
            shape.hole = turned(RING_HOLE, shape)
            full &= ~rasterised(shape.hole, image_size)
        shape.mask = full & ~covered
        visible, area = int(shape.mask.sum()), int(full.sum())
        if visible < 0.75 * area:
            return False
        shape.is_whole = visible == area
        columns, rows = (np.flatnonzero(shape.mask.any(axis=axis)) for axis in (0, 1))
        left, top = int(columns[0]), int(rows[0])
        shape.bbox = (left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top)
        covered |= full
    return True


def turned(points: list[tuple[float, float]], shape: Shape) -> list[tuple[float, float]]:
    """Unit outline → pixels, rounded as they are written, so that what is read back is what was drawn."""
    (x0, y0), cos, sin = shape.centre, math.cos(shape.angle) * shape.radius, math.sin(shape.angle) * shape.radius
    return [(round(x0 + x * cos - y * sin, 2), round(y0 + x * sin + y * cos, 2)) for x, y in points]


def rasterised(outline: list[tuple[float, float]], image_size: int) -> np.ndarray:
    flat = list(itertools.chain.from_iterable(outline))
    return coco_mask.decode(coco_mask.frPyObjects([flat], image_size, image_size))[:, :, 0].astype(bool)


def arc(radius: float, start: float, stop: float, steps: int, x: float = 0.0) -> list[tuple[float, float]]:
    angles = [start + (stop - start) * i / steps for i in range(steps)]
    return [(x + radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def heart() -> list[tuple[float, float]]:
    points = []
    for i in range(40):
        a = math.tau * i / 40
        down = -13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a)
        points.append((math.sin(a) ** 3 * 1.02, (down - 2.5) / 15.5))
    return points


# Polygons of about radius 1, scaled so that shapes of one size look equally large.
UNIT_OUTLINES = {
    "circle": arc(0.96, 0, math.tau, 40),
    "square": arc(1.22, math.pi / 4, math.pi / 4 + math.tau, 4),
    "triangle": arc(1.2, -math.pi / 2, -math.pi / 2 + math.tau, 3),
    "star": [
        (radius * math.sin(angle), -radius * math.cos(angle))
        for i in range(5)
        for radius, angle in ((1.18, i * math.tau / 5), (0.54, (i + 0.5) * math.tau / 5))
    ],
    "ring": arc(1.0, 0, math.tau, 40),
    "cross": [
        *((0.36, -1.05), (0.36, -0.36), (1.05, -0.36), (1.05, 0.36), (0.36, 0.36), (0.36, 1.05)),
        *((-0.36, 1.05), (-0.36, 0.36), (-1.05, 0.36), (-1.05, -0.36), (-0.36, -0.36), (-0.36, -1.05)),
    ],
    "moon": [
        (x + 0.2, y) for x, y in arc(1.08, 0.916, math.tau - 0.916, 30) + arc(0.86, 4.85, math.tau - 4.85, 24, x=0.54)
    ],
    "heart": heart(),
}
RING_HOLE = arc(0.5, 0, math.tau, 32)


# ---- What is said of them -------------------------------------------------------------------------------------------

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
CLEAR_GAP = 0.06  # of the image's side: an order that is told by less is not told at all
CLEAR_RATIO = 1.15  # a nearest shape is at least this much nearer than the next


def readings(programme: tuple, shapes: list[Shape], image_size: int) -> tuple[set[int], set[int]]:
    """What a programme denotes: the shapes it surely means, and all those that someone might take it to mean.

    A programme is `(kind, noun, …)`, a noun a dict of attributes:
    `("attribute", noun)`, `("negation", noun, attribute, value)`, `("relation", noun, direction, anchor noun)`,
    `("nearest", noun, "nearest" or "farthest", anchor noun)`, `("superlative", noun, direction)` and
    `("ordinal", noun, direction, n)`, the n-th from that side. An expression is unambiguous where both sets are equal
    and have one member.
    """
    kind, noun, *arguments = programme
    named = denoted(noun, shapes)
    if kind == "attribute":
        return named, named
    if kind == "negation":
        attribute, value = arguments
        remaining = {i for i in named if shapes[i].attributes[attribute] != value}
        return remaining, remaining
    if kind in ("superlative", "ordinal"):
        direction, rank = arguments if kind == "ordinal" else (*arguments, 1)
        return nth_from_side(named, DIRECTIONS[direction], rank, shapes, image_size)
    anchors = denoted(arguments[1], shapes)
    if len(anchors) != 1:
        return set(), named
    (anchor,) = anchors
    if kind == "relation":
        return beside(named - anchors, DIRECTIONS[arguments[0]], shapes[anchor], shapes, image_size)
    return nearest_to(named - anchors, arguments[0] == "farthest", shapes[anchor], shapes, image_size)


def denoted(noun: dict[str, str], shapes: list[Shape]) -> set[int]:
    return {i for i, s in enumerate(shapes) if all(s.attributes[name] == value for name, value in noun.items())}


def beside(named, direction, anchor, shapes, image_size) -> tuple[set[int], set[int]]:
    """Surely: well to that side and more so than up or down. Possibly: to that side at all."""
    (dx, dy), (x0, y0) = direction, anchor.position
    surely, possibly = set(), set()
    for i in named:
        x, y = shapes[i].position[0] - x0, shapes[i].position[1] - y0
        along, across = x * dx + y * dy, abs(x * dy) + abs(y * dx)
        if along > 0:
            possibly.add(i)
        if along >= CLEAR_GAP * image_size and along >= across:
            surely.add(i)
    return surely, possibly


def nearest_to(named, farthest, anchor, shapes, image_size) -> tuple[set[int], set[int]]:
    """The gap also exceeds what the radii differ by, so measuring from edge to edge gives the same answer."""
    order = sorted((math.dist(shapes[i].position, anchor.position), i) for i in named)
    if farthest:
        order.reverse()
    if len(order) < 2:
        return set(), set(named)
    near, far = sorted((order[0][0], order[1][0]))
    clear = far >= CLEAR_RATIO * near and far - near >= CLEAR_GAP * image_size
    first = {order[0][1]}
    return (first, first) if clear else (set(), first | {order[1][1]})


def nth_from_side(named, direction, rank, shapes, image_size) -> tuple[set[int], set[int]]:
    """The n-th shape from a side, if its place differs clearly from its neighbours' in that order."""
    dx, dy = direction
    order = sorted((-shapes[i].position[0] * dx - shapes[i].position[1] * dy, i) for i in named)
    if rank > len(order):
        return set(), set()
    place, chosen = order[rank - 1]
    neighbours = order[max(rank - 2, 0) : rank - 1] + order[rank : rank + 1]
    rivals = {i for p, i in neighbours if abs(p - place) < CLEAR_GAP * image_size}
    return (set() if rivals else {chosen}), rivals | {chosen}


def describe(rng: random.Random, shapes: list[Shape], image_size: int, compositional: bool) -> list[Expression] | None:
    """One expression of each kind, spread over the shapes, at most three for one; None where a kind is impossible."""
    targets = [i for i, s in enumerate(shapes) if not compositional or is_reserved(s.attributes)]
    times_used = dict.fromkeys(targets, 0)
    nouns = [possible_nouns(rng, shape, shapes) for shape in shapes]
    expressions = []
    for kind in rng.sample(KINDS, len(KINDS)):
        free = sorted((i for i in targets if times_used[i] < 3), key=lambda i: times_used[i] + rng.random())
        found = next(filter(None, (find_expression(rng, kind, i, nouns, shapes, image_size) for i in free)), None)
        if found is None:
            return None
        times_used[found.target] += 1
        expressions.append(found)
    return expressions


def possible_nouns(rng, shape: Shape, shapes: list[Shape]) -> list[tuple[dict[str, str], set[int]]]:
    """Descriptions of a shape by up to four of its attributes and what each denotes, mostly the short ones first."""
    nouns = []
    for length in range(5):
        for names in itertools.combinations(ATTRIBUTES, length):
            rarely_said = (shape.attributes["fill"] == "solid" and "fill" in names) + (
                shape.attributes["texture"] == "plain" and "texture" in names
            )
            effort = length + rarely_said + 1.7 * ("shape" not in names) + 2.5 * rng.random()
            nouns.append((effort, len(nouns), {name: shape.attributes[name] for name in names}))
    return [(noun, denoted(noun, shapes)) for _, _, noun in sorted(nouns, key=lambda n: n[:2])]


def find_expression(rng, kind, target, nouns, shapes, image_size) -> Expression | None:
    """The first programme of this kind that means `target` without doubt, said in 2 to 15 words."""
    for programme in propose(rng, kind, target, nouns, shapes):
        surely, possibly = readings(programme, shapes, image_size)
        if surely == possibly == {target}:
            sent = say(rng, programme)
            if 2 <= len(sent.split()) <= 15:
                return Expression(kind, sent, as_typed(rng, sent), programme, target)
    return None


def propose(rng, kind: str, target: int, nouns, shapes: list[Shape]):
    """Programmes of one kind which may mean `target`, and which cannot be answered by a part of their words."""
    attributes = shapes[target].attributes
    differences = [number_of_differences(attributes, other.attributes) for other in shapes]
    sides = rng.sample(sorted(DIRECTIONS), 4)
    if kind == "attribute":
        if 1 in differences:
            yield from (("attribute", noun) for noun, named in nouns[target] if len(named) == 1)
    elif kind == "negation":
        # A twin which differs only in what is denied.
        twins = [other.attributes for other, n in zip(shapes, differences, strict=True) if n == 1]
        denied = [(a, t[a]) for t in twins for a in ATTRIBUTES if t[a] != attributes[a] and t[a] != "plain"]
        for noun, named in nouns[target]:
            if len(named) > 1:
                yield from (("negation", noun, *pair) for pair in denied if pair[0] not in noun)
    elif kind == "superlative":
        yield from (("superlative", noun, side) for noun, named in nouns[target] if len(named) > 1 for side in sides)
    elif kind == "ordinal":
        last = rng.random() < 0.35  # the last of a row could be told without counting
        for noun, named in nouns[target]:
            for side in sides if len(named) > 2 else ():
                yield from (("ordinal", noun, side, rank) for rank in range(2, min(5, len(named) + last)))
    else:
        anchors = [next((n for n, named in nouns[i] if named == {i}), None) for i in range(len(shapes)) if i != target]
        anchors = rng.sample([noun for noun in anchors if noun], sum(map(bool, anchors)))
        words = sides if kind == "relation" else rng.sample(("nearest", "nearest", "farthest"), 3)
        for noun, named in nouns[target]:
            for anchor in anchors if len(named) > 1 else ():
                if len(named - denoted(anchor, shapes)) > 1:
                    yield from ((kind, noun, word, anchor) for word in words)


# ---- In which words -------------------------------------------------------------------------------------------------

# The first word of each list is the commonest.
SYNONYMS = {
    "moon": ("moon", "crescent"),
    "circle": ("circle", "disk"),
    "cross": ("cross", "plus"),
    "purple": ("purple", "violet"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
    "solid": ("filled",),
    "outlined": ("outlined", "hollow"),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
}
ANYTHING = ("thing", "object", "shape")
BESIDE = {
    "left": ("left of", "to the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right side of"),
    "top": ("above", "over", "higher than"),
    "bottom": ("below", "under", "beneath"),
}
DISTANCES = {
    "nearest": ("nearest to", "closest to", "nearest"),
    "farthest": ("farthest from", "furthest from", "farthest away from"),
}
MOST = {
    "left": ("leftmost", "furthest left", "farthest to the left"),
    "right": ("rightmost", "furthest right", "farthest to the right"),
    "top": ("topmost", "highest", "uppermost", "nearest the top"),
    "bottom": ("lowest", "furthest down", "nearest the bottom"),
}
RANKS = {2: "second", 3: "third", 4: "fourth"}


def say(rng: random.Random, programme: tuple) -> str:
    """One way to say a programme in English, in lower case."""
    kind, noun, *arguments = programme
    words = noun_phrase(rng, noun)
    that_is = rng.choice(("", "", "that is ", "which is "))
    if kind == "attribute":
        return words if noun and rng.random() < 0.25 and " " in words else f"the {words}"
    if kind == "negation":
        attribute, value = arguments
        article = "a " if attribute == "shape" else ""
        return f"the {words} {that_is or 'that is '}not {article}{word_for(rng, value)}"
    if kind == "superlative":
        most = rng.choice(MOST[arguments[0]])
        return f"the {words} {that_is}{most}" if " " in most else f"the {most} {words}"
    if kind == "ordinal":
        side, rank = arguments
        if that_is:
            return f"the {words} {that_is}{RANKS[rank]} from the {side}"
        return f"the {RANKS[rank]} {words} from the {side}"
    phrases = BESIDE if kind == "relation" else DISTANCES
    return f"the {words} {that_is}{rng.choice(phrases[arguments[0]])} the {noun_phrase(rng, arguments[1])}"


def noun_phrase(rng: random.Random, noun: dict[str, str]) -> str:
    """Adjectives in the order people use, then the shape's name: "small striped red star"."""
    order = ("size", "fill", "texture", "colour") if rng.random() < 0.75 else ("size", "colour", "fill", "texture")
    words = [word_for(rng, noun[name]) for name in order if name in noun]
    return " ".join([*words, word_for(rng, noun["shape"]) if "shape" in noun else rng.choice(ANYTHING)])


def word_for(rng: random.Random, value: str) -> str:
    words = SYNONYMS.get(value, (value,))
    return words[0] if rng.random() < 0.5 else rng.choice(words)


def as_typed(rng: random.Random, sent: str) -> str:
    """The sentence as a person may have typed it."""
    typed = sent.capitalize() if rng.random() < 0.4 else sent
    return typed + rng.choice(("", "", "."))


# ---- How they look --------------------------------------------------------------------------------------------------

PAPER = (252, 250, 244)  # inside an outlined shape
FINE = 4  # shapes are drawn this much larger, then reduced: smooth edges


def paint(rng: random.Random, shapes: list[Shape], image_size: int) -> Image.Image:
    """The picture: a quiet background, then the shapes from back to front."""
    image = background(rng, image_size)
    for shape in shapes:
        paint_shape(rng, image, shape)
    return image


def background(rng: random.Random, image_size: int) -> Image.Image:
    """Two greyish tones that fade into each other, grain, and a few thin lines: nothing with a colour's name."""
    level = rng.choice((rng.uniform(196, 236), rng.uniform(196, 236), rng.uniform(58, 96)))
    levels = [level + rng.uniform(-16, 16) for _ in range(2)]
    tones = np.array([[level + rng.uniform(-5, 5) for _ in range(3)] for level in levels])
    angle = rng.uniform(0, math.tau)
    axis = np.linspace(-0.5, 0.5, image_size)
    slope = (0.5 + 0.7 * (axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)))[:, :, None]
    grain = np.frombuffer(rng.randbytes(image_size * image_size), dtype=np.uint8).reshape(image_size, image_size, 1)
    pixels = tones[0] + slope * (tones[1] - tones[0]) + (grain / 255 - 0.5) * rng.uniform(0, 24)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 6)):
        ends = [rng.uniform(-0.1, 1.1) * image_size for _ in range(4)]
        step = rng.choice((-30, 30))
        draw.line(ends, fill=tuple(min(255, int(tone + step)) for tone in tones[0]), width=1)
    return image


def paint_shape(rng: random.Random, image: Image.Image, shape: Shape):
    """Draw one shape four times as large on a patch of its own, and paste it reduced."""
    left, top = (int(c - 1.3 * shape.radius) - 1 for c in shape.centre)
    side = (2 * int(1.3 * shape.radius) + 4) * FINE
    outline, hole = ([((x - left) * FINE, (y - top) * FINE) for x, y in part] for part in (shape.outline, shape.hole))
    colour = tuple(min(255, max(0, c + rng.randint(-8, 8))) for c in COLOURS[shape.attributes["colour"]])
    edge = tuple(int(0.55 * c) for c in colour)
    solid = shape.attributes["fill"] == "solid"

    patch = Image.new("RGB", (side, side), colour if solid else PAPER)
    draw = ImageDraw.Draw(patch)
    paint_texture(rng, draw, shape, colour, edge, side)
    line, width = (edge, FINE) if solid else (colour, round(0.24 * shape.radius * FINE))
    draw.line([*outline, *outline[:2]], fill=line, width=2 * width, joint="curve")
    alpha = Image.new("L", (side, side), 0)
    cut = ImageDraw.Draw(alpha)
    cut.polygon(outline, fill=255)
    if hole:
        draw.line([*hole, *hole[:2]], fill=line, width=2 * width, joint="curve")
        cut.polygon(hole, fill=0)
    image.paste(patch.reduce(FINE), (left, top), alpha.reduce(FINE))


def paint_texture(rng: random.Random, draw: ImageDraw.ImageDraw, shape: Shape, colour, edge, side: int):
    """Stripes or dots over the whole patch, dark on light colours and light on dark ones."""
    texture = shape.attributes["texture"]
    if texture == "plain":
        return
    ink = edge if shape.attributes["colour"] in ("yellow", "orange", "pink") else PAPER
    step = max(0.42 * shape.radius, 4.5) * FINE
    count = int(side / step) + 2
    angle = rng.choice((0, 1, 2, 3)) * math.pi / 4 + rng.uniform(-0.1, 0.1)
    cos, sin = math.cos(angle), math.sin(angle)
    for i in range(-count, count):
        across = (i + 0.5) * step
        if texture == "striped":
            x, y = side / 2 + across * cos, side / 2 + across * sin
            ends = (x - side * sin, y + side * cos, x + side * sin, y - side * cos)
            draw.line(ends, fill=ink, width=round(0.42 * step))
            continue
        for j in range(-count, count):
            along = (j + 0.5 * (i % 2)) * step * 1.1
            x, y, r = side / 2 + across * cos - along * sin, side / 2 + across * sin + along * cos, 0.28 * step
            if 0 < x < side and 0 < y < side:
                draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)


# ---- In which files -------------------------------------------------------------------------------------------------


def categories() -> list[dict]:
    return [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(SHAPES, start=1)]


def add_to_files(scene: Scene, file_name: str, split: str, refs: list[dict], instances: dict):
    """Append a scene to the two lists of the official layout; ids count on from what is there."""
    image_id = len(instances["images"]) + 1
    width, height = scene.image.size
    instances["images"].append({"id": image_id, "file_name": file_name, "height": height, "width": width})
    first_annotation = len(instances["annotations"]) + 1
    for shape in scene.shapes:
        polygon = shape.is_whole and not shape.hole
        instances["annotations"].append(
            {
                "id": len(instances["annotations"]) + 1,
                "image_id": image_id,
                "category_id": SHAPES.index(shape.attributes["shape"]) + 1,
                "iscrowd": 0,
                "area": int(shape.mask.sum()),
                "bbox": list(shape.bbox),
                "segmentation": [[c for point in shape.outline for c in point]] if polygon else encode_mask(shape.mask),
                "attributes": shape.attributes,
            }
        )
    next_sentence = sum(len(ref["sent_ids"]) for ref in refs[-1:]) + (refs[-1]["sent_ids"][0] if refs else 0)
    for target in sorted({expression.target for expression in scene.expressions}):
        said = [expression for expression in scene.expressions if expression.target == target]
        sent_ids = list(range(next_sentence, next_sentence + len(said)))
        next_sentence += len(said)
        annotation_id = first_annotation + target
        refs.append(
            {
                "ref_id": len(refs) + 1,
                "ann_id": annotation_id,
                "category_id": instances["annotations"][annotation_id - 1]["category_id"],
                "image_id": image_id,
                "file_name": f"{Path(file_name).stem}_{annotation_id}.jpg",
                "split": split,
                "sent_ids": sent_ids,
                "sentences": [
                    {"raw": e.raw, "sent": e.sent, "sent_id": i, "tokens": e.sent.split(), "category": e.kind}
                    for i, e in zip(sent_ids, said, strict=True)
                ],
            }
        )
