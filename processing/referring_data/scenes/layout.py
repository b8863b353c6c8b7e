"""What the shapes of a scene are and where they are placed."""

import itertools
import math
import random
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as coco_mask

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "moon", "heart")
COLORS = {
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
# "colour" is spelled as the files of the scenes spell it.
ATTRIBUTES = ("shape", "colour", "size", "fill", "texture")

# No shape of any split has one of these pairs, except in "compositional", where every target has one.
RESERVED_COLORS = ("orange", "purple", "pink", "green", "blue", "red", "yellow", "blue")  # in the order of SHAPES
RESERVED_PAIRS = frozenset(zip(SHAPES, RESERVED_COLORS, strict=True))


@dataclass
class Shape:
    """One shape of a scene: what it is, where it stands and which pixels of it can be seen."""

    attributes: dict[str, str]  # one value for each of ATTRIBUTES
    center: tuple[float, float] = (0.0, 0.0)
    radius: float = 0.0
    angle: float = 0.0
    outline: list[tuple[float, float]] = field(default_factory=list)  # the drawn polygon, in pixels
    hole: list[tuple[float, float]] = field(default_factory=list)  # of a ring, else empty
    mask: np.ndarray | None = None  # (S, S) bool, the visible pixels
    is_whole: bool = True  # nothing stands before it
    bbox: tuple[int, int, int, int] = (0, 0, 0, 0)  # x, y, width, height of the visible pixels

    @property
    def position(self) -> tuple[float, float]:
        """Center of the visible box: what "left", "near" and "second" are measured by."""
        x, y, width, height = self.bbox
        return x + width / 2, y + height / 2


def draw_attributes(rng: random.Random, number: int, compositional: bool) -> list[dict[str, str]]:
    """Attributes of `number` shapes, from few kinds and colors so that they share them, and one near-twin."""
    while True:
        palette = {
            "shape": rng.sample(SHAPES, rng.randint(2, 3 if number < 6 else 4)),
            "colour": rng.sample(sorted(COLORS), rng.randint(2, 3 if number < 6 else 4)),
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
    """Put the shapes on the image, in some scenes one a little over another. None where they did not fit."""
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
                x, y = behind.center[0] + away * math.cos(angle), behind.center[1] + away * math.sin(angle)
            else:
                x, y = (rng.uniform(margin, image_size - margin) for _ in "xy")
            inside = margin <= min(x, y) and max(x, y) <= image_size - margin
            if inside and all(math.dist((x, y), s.center) > closeness * (radius + s.radius) for s in shapes):
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
        full = rasterized(shape.outline, image_size)
        if shape.attributes["shape"] == "ring":
            shape.hole = turned(RING_HOLE, shape)
            full &= ~rasterized(shape.hole, image_size)
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
    (x0, y0), cos, sin = shape.center, math.cos(shape.angle) * shape.radius, math.sin(shape.angle) * shape.radius
    return [(round(x0 + x * cos - y * sin, 2), round(y0 + x * sin + y * cos, 2)) for x, y in points]


def rasterized(outline: list[tuple[float, float]], image_size: int) -> np.ndarray:
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
